"""Link the detections of successive frames to tracks, frame by frame, while they arrive."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.detections import Detections, Tracks

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How `FrameLinker` links; all lengths are camera pixels, all times are counted in frames of the source.

    Raises
    ------
    ValueError
        If a number is not finite or out of its range.
    """

    max_distance_px: float
    """The gate: farthest a particle may be, one frame later, from where its track expects it. Three to five times the
    typical step of the motion; below half the typical spacing of the particles, identities are safe."""

    max_gap_frames: int = 3
    """Analysed frames in a row that a track may miss; with one more it ends. Frames that were never analysed (skipped
    or lost) are no misses."""

    measurement_sigma_px: float | None = None
    """Standard deviation of a detected position. None: `max_distance_px / 20`."""

    position_noise_px: float | None = None
    """Standard deviation of the random (Brownian) step per axis and frame. None: `max_distance_px / 5`, because a gate
    of five standard deviations loses 4 in a million steps in the plane."""

    velocity_noise_px: float | None = None
    """Standard deviation of the change of velocity per axis and frame, pixels per frame. None: `max_distance_px / 50`:
    with the other defaults the velocity is then the mean of about the last ten frames, so one Brownian step
    moves the next prediction by a tenth of that step only."""

    max_gate_growth: float = 2.0
    """The gate of a track that was last seen n frames ago is `max_distance_px` times the root of n, as diffusion
    spreads, but never more than this many times `max_distance_px`."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{f.name} must be a finite number of 0 or more, got {value}")
        if self.max_distance_px == 0 or self.measurement_sigma_px == 0:
            raise ValueError("max_distance_px and measurement_sigma_px must be above 0 pixels, got 0; leave sigma out")
        if self.max_gate_growth < 1:
            raise ValueError(f"max_gate_growth must be 1 or more, got {self.max_gate_growth}; 1 keeps the gate fixed")


def import_solvers() -> None:
    """Import what linking needs: slow, so it is paid before the first frame, or in a thread while the model loads."""
    import scipy.optimize
    import scipy.sparse.csgraph
    import scipy.spatial  # noqa: F401


class FrameLinker:
    """The online linker: a constant-velocity Kalman filter per track and an optimal assignment per frame.

    Track ids start at 0, grow in the order of birth and are never used twice. A new track has velocity 0 with a
    standard deviation of a third of the gate: wide enough to take up a directed motion from its second frame on, and
    too narrow for a prediction to overshoot a Brownian step.

    Parameters
    ----------
    settings : LinkSettings
        Gate, gap and noise.

    References
    ----------
    Jaqaman et al., Nat. Methods 5, 695 (2008): linking as a linear assignment with a cost of no link.
    """

    def __init__(self, settings: LinkSettings) -> None:
        import_solvers()
        self.settings = settings
        self._tracks = _TrackStates.none()
        self._next_id = 0
        self._last_index: int | None = None

    def link(self, detections: Detections, index: int) -> Tracks:
        """Link the detections of frame `index` to the tracks so far.

        Parameters
        ----------
        detections : Detections
            N rows, in any order.
        index : int
            Number of the frame in its source; it must grow from call to call and may jump, because frames that were
            skipped or lost are never linked.

        Returns
        -------
        Tracks
            The same detections, with the (N,) number of the track that each belongs to.

        Raises
        ------
        ValueError
            If `index` does not grow or a position is not finite; the linker then stays as it was.
        """
        n_elapsed = frames_elapsed(self._last_index, index)
        points = np.column_stack((detections.y_px, detections.x_px)).astype(np.float64)  # (N, 2)
        if not np.isfinite(points).all():
            raise ValueError(f"positions must be finite, frame {index} has NaN or infinite ones; drop those rows first")

        s, tracks = self.settings, self._tracks
        tracks.predict(n_elapsed, s)
        track_rows, point_rows = assign(tracks.position, points, tracks.gates(s))
        tracks.update(track_rows, points[point_rows], s)

        track_id = np.full(len(points), -1, np.int64)
        track_id[point_rows] = tracks.track_id[track_rows]
        born = np.flatnonzero(track_id < 0)
        track_id[born] = np.arange(self._next_id, self._next_id + len(born))

        alive = tracks.n_missed <= s.max_gap_frames
        self._tracks = tracks.rows(alive).joined_by(_TrackStates.born(track_id[born], points[born], s))
        self._next_id += len(born)
        self._last_index = index
        return Tracks(detections, track_id)

    def expected(self, index: int) -> Floats:
        """Return where the tracks of now are expected in frame `index`, (T, 2) px, y and x; nothing is changed.

        Raises
        ------
        ValueError
            If `index` does not grow.
        """
        return self._tracks.position + frames_elapsed(self._last_index, index) * self._tracks.velocity


def frames_elapsed(last_index: int | None, index: int) -> int:
    """Return the frames of the source since the last call of a linker, 1 before the first.

    Raises
    ------
    ValueError
        If the numbers do not grow.
    """
    if last_index is None:
        return 1
    if index <= last_index:
        raise ValueError(f"frame indices must grow, got {index} after {last_index}; use a new linker for a new run")
    return index - last_index


@dataclass(slots=True)
class _TrackStates:
    """Columns over the T tracks that are alive; y and x share one 2 x 2 covariance, since their noise is the same."""

    track_id: Ints
    position: Floats  # (T, 2), y and x, px
    velocity: Floats  # (T, 2), px per frame
    var_p: Floats  # (T,), px^2
    cov_pv: Floats
    var_v: Floats
    n_unseen: Ints  # frames of the source since the last detection
    n_missed: Ints  # analysed frames since the last detection

    @classmethod
    def none(cls) -> _TrackStates:
        return cls.born(np.empty(0, np.int64), np.empty((0, 2)), LinkSettings(1.0))

    @classmethod
    def born(cls, track_id: Ints, points: Floats, s: LinkSettings) -> _TrackStates:
        n = len(track_id)
        return cls(
            track_id=track_id,
            position=points,
            velocity=np.zeros((n, 2)),
            var_p=np.full(n, _measurement_sigma(s) ** 2),
            cov_pv=np.zeros(n),
            var_v=np.full(n, (s.max_distance_px / 3) ** 2),
            n_unseen=np.zeros(n, np.int64),
            n_missed=np.zeros(n, np.int64),
        )

    def predict(self, n_elapsed: int, s: LinkSettings) -> None:
        """Move all tracks on by `n_elapsed` frames."""
        self.position += n_elapsed * self.velocity
        self.var_p += n_elapsed * (2 * self.cov_pv + n_elapsed * self.var_v + _position_noise(s) ** 2)
        self.cov_pv += n_elapsed * self.var_v
        self.var_v += n_elapsed * _velocity_noise(s) ** 2
        self.n_unseen += n_elapsed
        self.n_missed += 1

    def gates(self, s: LinkSettings) -> Floats:
        """(T,) farthest distance of a detection that may belong to each track, px."""
        return s.max_distance_px * np.minimum(np.sqrt(self.n_unseen), s.max_gate_growth)

    def update(self, rows: Ints, points: Floats, s: LinkSettings) -> None:
        """Take the detections `points` (K, 2) into the tracks `rows` (K,)."""
        var_p, cov_pv = self.var_p[rows], self.cov_pv[rows]
        innovation = points - self.position[rows]
        gain_p, gain_v = np.stack((var_p, cov_pv)) / (var_p + _measurement_sigma(s) ** 2)
        self.position[rows] += gain_p[:, None] * innovation
        self.velocity[rows] += gain_v[:, None] * innovation
        self.var_p[rows] -= gain_p * var_p
        self.cov_pv[rows] -= gain_p * cov_pv
        self.var_v[rows] -= gain_v * cov_pv
        self.n_unseen[rows] = 0
        self.n_missed[rows] = 0

    def rows(self, keep: NDArray[np.bool_]) -> _TrackStates:
        return _TrackStates(*(getattr(self, f.name)[keep] for f in fields(self)))

    def joined_by(self, others: _TrackStates) -> _TrackStates:
        return _TrackStates(*(np.concatenate((getattr(self, f.name), getattr(others, f.name))) for f in fields(self)))


def assign(expected: Floats, points: Floats, gates: Floats) -> tuple[Ints, Ints]:
    """Find the links of least total cost between expected and detected positions.

    A link costs its squared distance, a track or a detection without a link costs the squared gate: the augmented
    assignment of Jaqaman et al. The graph of pairs within the gates falls apart into small components, which are
    solved one by one. Within a component the cost of no link is its widest gate, so that a track with a wider gate
    (last seen longer ago) has no advantage over one that was just seen.

    Parameters
    ----------
    expected : (T, 2) float64
        Where the tracks are expected, px.
    points : (N, 2) float64
        Where something was detected, px.
    gates : (T,) float64
        Farthest distance of a link of each track, px.

    Returns
    -------
    track_rows, point_rows : (K,) int64
        The links: each row occurs at most once.
    """
    track, point, squared = _pairs_in_gate(expected, points, gates)
    chosen = choose_links(track, point, squared, gates)
    return track[chosen], point[chosen]


def choose_links(track: Ints, point: Ints, cost: Floats, gates: Floats) -> Ints:
    """Choose among pairs of tracks and points the links of least total cost, one at most per track and per point.

    Parameters
    ----------
    track, point : (P,) int64
        Both rows of each pair.
    cost : (P,) float64
        Of each link, such as a squared distance.
    gates : (T,) float64
        Root of what it costs to leave each track without a link; within a component the largest counts.

    Returns
    -------
    (K,) int64
        The places of the links in the arrays of pairs.
    """
    alone = (np.bincount(track)[track] == 1) & (np.bincount(point)[point] == 1) if len(track) else np.ones(0, bool)
    if alone.all():
        return np.arange(len(track))
    crowded = ~alone
    solved = _solve_components(track[crowded], point[crowded], cost[crowded], gates)
    return np.concatenate((np.flatnonzero(alone), np.flatnonzero(crowded)[solved]))


def _pairs_in_gate(expected: Floats, points: Floats, gates: Floats) -> tuple[Ints, Ints, Floats]:
    """List the pairs (track row, point row) within the gates, and their squared distances in px^2."""
    if len(expected) == 0 or len(points) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    from scipy.spatial import cKDTree

    pairs = cKDTree(expected).sparse_distance_matrix(cKDTree(points), gates.max(), output_type="ndarray")
    pairs = pairs[pairs["v"] <= gates[pairs["i"]]]
    return pairs["i"].astype(np.int64), pairs["j"].astype(np.int64), pairs["v"] ** 2


def _solve_components(track: Ints, point: Ints, squared: Floats, gates: Floats) -> Ints:
    """Choose among the pairs that share a track or a point: returns (K,) places in the arrays of pairs."""
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    tracks, t = np.unique(track, return_inverse=True)
    points, p = np.unique(point, return_inverse=True)
    n_nodes = len(tracks) + len(points)
    graph = coo_matrix((np.ones(len(t)), (t, len(tracks) + p)), shape=(n_nodes, n_nodes))
    _, component = connected_components(graph, directed=False)
    row = _rank_within(component[: len(tracks)])[t]
    column = _rank_within(component[len(tracks) :])[p]
    by_component = np.argsort(component[t], kind="stable")
    bounds = np.flatnonzero(np.diff(component[t][by_component])) + 1
    no_link = gates[track] ** 2

    chosen = []
    for pairs in np.split(by_component, bounds):
        r, c = row[pairs], column[pairs]
        # Sum of d^2 over links plus g^2 over all left unlinked = a constant minus the sum of 2 g^2 - d^2 over links. So
        # the (T, N) matrix of these savings, 0 where there is no pair, has the optimum of the (T + N)^2 augmented one.
        saving = np.zeros((r.max() + 1, c.max() + 1))
        saving[r, c] = 2 * no_link[pairs].max() - squared[pairs]
        links = np.zeros_like(saving, dtype=bool)
        links[linear_sum_assignment(saving, maximize=True)] = True
        chosen.append(pairs[links[r, c]])
    return np.concatenate(chosen)


def _rank_within(group: NDArray[np.int32]) -> Ints:
    """(N,) number of equal values before each place, counted from 0."""
    order = np.argsort(group, kind="stable")
    in_order = group[order]
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.searchsorted(in_order, in_order)
    return rank


def _measurement_sigma(s: LinkSettings) -> float:
    return s.max_distance_px / 20 if s.measurement_sigma_px is None else s.measurement_sigma_px


def _position_noise(s: LinkSettings) -> float:
    return s.max_distance_px / 5 if s.position_noise_px is None else s.position_noise_px


def _velocity_noise(s: LinkSettings) -> float:
    return s.max_distance_px / 50 if s.velocity_noise_px is None else s.velocity_noise_px
