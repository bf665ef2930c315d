"""Localisations against known emitters, by the measures of the EPFL 2016 challenge: Jaccard index, RMSE, efficiency."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.detections import Detections

Array = NDArray[np.float64]
THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 20))
LATERAL_PER_NM, AXIAL_PER_NM = 0.01, 0.005  # weights of the two errors in the efficiency, Sage et al. 2019


class KnownEmitters(Protocol):
    """The emitters of one frame: positions in px, z in micrometres or None."""

    @property
    def y_px(self) -> NDArray[Any]: ...  # noqa: D102
    @property
    def x_px(self) -> NDArray[Any]: ...  # noqa: D102
    @property
    def z_um(self) -> NDArray[Any] | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class LocalisationFigures:
    """How localisations compare with the truth, over all frames that were added.

    References
    ----------
    Sage et al., Nat. Methods 16, 387 (2019), online methods (assessment metrics).
    """

    threshold: float
    """Lowest score that was counted."""
    n_true: int
    n_found: int
    n_matched: int
    rmse_y_px: float
    rmse_x_px: float
    """Root mean square errors of the matches per axis, NaN without matches."""
    rmse_z_um: float
    """NaN where the localisations have no z."""
    expected_count: float
    """Sum of the scores of all rows that were added, whatever the threshold: `n_true` if scores are probabilities."""
    within_sigma: float
    """Share of the matched errors along y and x within one predicted sigma; 0.68 for an honest one, NaN without."""
    within_sigma_z: float
    gate_px: float
    pixel_um: float
    frame_jaccard: float
    """Mean over frames of the frame's own index; likewise the next two."""
    frame_rmse_px: float
    frame_efficiency: float

    @property
    def precision(self) -> float:
        """TP / (TP + FP)."""
        return self.n_matched / self.n_found if self.n_found else 1.0

    @property
    def recall(self) -> float:
        """TP / (TP + FN)."""
        return self.n_matched / self.n_true if self.n_true else 1.0

    @property
    def jaccard(self) -> float:
        """TP / (TP + FP + FN)."""
        return _jaccard(self.n_true, self.n_found, self.n_matched)

    @property
    def rmse_px(self) -> float:
        """Lateral error as the challenge has it: root of the mean of dy^2 + dx^2, so sqrt(2) times that of one axis."""
        return float(np.hypot(self.rmse_y_px, self.rmse_x_px))

    @property
    def rmse_nm(self) -> float:
        """Lateral error (y and x together), nanometres."""
        return 1e3 * self.pixel_um * self.rmse_px

    @property
    def rmse_axis_nm(self) -> float:
        """Lateral error along one axis, nanometres."""
        return self.rmse_nm / float(np.sqrt(2))

    @property
    def efficiency(self) -> float:
        """E_lat = 1 - sqrt((1 - J)^2 + (0.01 RMSE / nm)^2)."""
        return _efficiency(self.jaccard, self.rmse_nm, 1e3 * self.gate_px * self.pixel_um, LATERAL_PER_NM)

    @property
    def efficiency_z(self) -> float:
        """E_ax = 1 - sqrt((1 - J)^2 + (0.005 RMSE_z / nm)^2); NaN where the localisations have no z."""
        return 1 - float(np.hypot(1 - self.jaccard, AXIAL_PER_NM * 1e3 * self.rmse_z_um))

    @property
    def efficiency_3d(self) -> float:
        """Mean of the two."""
        return (self.efficiency + self.efficiency_z) / 2


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """What one frame has: candidate pairs within the gate, and what the pairs are judged by."""

    true_of_pair: NDArray[np.intp]
    found_of_pair: NDArray[np.intp]
    cost: Array
    counts: NDArray[np.bool_]
    """(n_true,), which emitters matter."""
    score: Array
    """(n_found,)"""
    error: Array
    """(n_pairs, 3): y and x px, z um."""
    sigma: Array
    """(n_found, 3), the same units; NaN where it is not predicted."""

    def matched(self, threshold: float) -> tuple[NDArray[np.intp], int, int]:
        """Return the pairs that are matched, and how many emitters and localisations count."""
        seen = self.score >= threshold
        candidates = np.flatnonzero(seen[self.found_of_pair])
        t, f = self.true_of_pair[candidates], self.found_of_pair[candidates]
        pairs = candidates[assign(t, f, self.cost[candidates])]
        counted = self.counts[self.true_of_pair[pairs]]
        return pairs[counted], int(self.counts.sum()), int(seen.sum() - (~counted).sum())


class LocalisationScore:
    """Takes frames one by one and judges them at any score threshold.

    Each emitter is matched to one localisation at most, within the gates: as many pairs as possible, and of these the
    set with the least sum of squared distances (three-dimensional where both know z).

    Parameters
    ----------
    pixel_um : float
        Edge of a pixel in the sample, for the figures in nanometres.
    gate_px : float, optional
        Farther than this across the optical axis nothing matches; 0.25 um as in the challenge if not given.
    gate_z_um : float
        Likewise along the axis, where the localisations have z.
    """

    def __init__(self, pixel_um: float, *, gate_px: float | None = None, gate_z_um: float = 0.5) -> None:
        if not pixel_um > 0 or (gate_px is not None and not gate_px > 0) or not gate_z_um > 0:
            raise ValueError(
                f"pixel_um, gate_px and gate_z_um must be above 0, got {pixel_um}, {gate_px} and {gate_z_um}"
            )
        self.pixel_um = pixel_um
        self.gate_px = 0.25 / pixel_um if gate_px is None else gate_px
        self.gate_z_um = gate_z_um
        self._frames: list[_Frame] = []

    def add(self, truth: KnownEmitters, found: Detections, *, counts: NDArray[np.bool_] | None = None) -> None:
        """Add one frame.

        Parameters
        ----------
        truth : KnownEmitters
            All emitters that could be matched, N of them.
        found : Detections
            With all scores from the lowest threshold on that will be asked for.
        counts : (N,) bool, optional
            False: an emitter that is too weak or too near the border to matter. Missing it costs nothing, and what
            is matched to it is neither right nor wrong (the challenge: those below the 25 % quantile of photons).
        """
        true_yx = np.stack([truth.y_px, truth.x_px], 1).astype(np.float64)
        found_yx = found.yx_px
        t, f = _within(true_yx, found_yx, self.gate_px)
        dz_um = np.full(len(t), np.nan)
        if found.z_um is not None and truth.z_um is not None:
            dz_um = found.z_um[f].astype(np.float64) - np.asarray(truth.z_um, np.float64)[t]
            near = np.abs(dz_um) <= self.gate_z_um
            t, f, dz_um = t[near], f[near], dz_um[near]
        error = np.column_stack([found_yx[f] - true_yx[t], dz_um])
        unknown = np.full(len(found), np.nan)
        sigma = [unknown if s is None else s for s in (found.sigma_y_px, found.sigma_x_px, found.sigma_z_um)]
        self._frames.append(
            _Frame(
                t,
                f,
                (error[:, :2] ** 2).sum(1) + np.nan_to_num(dz_um / self.pixel_um) ** 2,
                np.ones(len(true_yx), bool) if counts is None else np.asarray(counts, bool),
                found.score.astype(np.float64),
                error,
                np.column_stack(sigma).astype(np.float64),
            )
        )

    def at(self, threshold: float = 0.0) -> LocalisationFigures:
        """Return the figures of the localisations from this score on."""
        n_true = n_found = n_matched = 0
        errors, sigmas, each = [np.empty((0, 3))], [np.empty((0, 3))], []
        for frame in self._frames:
            pairs, n_frame_true, n_frame_found = frame.matched(threshold)
            error = frame.error[pairs]
            errors.append(error)
            sigmas.append(frame.sigma[frame.found_of_pair[pairs]])
            n_true, n_found, n_matched = n_true + n_frame_true, n_found + n_frame_found, n_matched + len(pairs)
            jaccard = _jaccard(n_frame_true, n_frame_found, len(pairs))
            rmse_px = _rms(np.hypot(error[:, 0], error[:, 1]))
            nm = 1e3 * self.pixel_um
            each.append((jaccard, rmse_px, _efficiency(jaccard, nm * rmse_px, nm * self.gate_px, LATERAL_PER_NM)))
        error, sigma = np.concatenate(errors), np.concatenate(sigmas)
        rmse_y_px, rmse_x_px, rmse_z_um = (_rms(error[:, axis]) for axis in range(3))
        frame_means = [_mean(np.array(values)) for values in zip(*each, strict=True)] or [float("nan")] * 3
        return LocalisationFigures(
            threshold=threshold,
            n_true=n_true,
            n_found=n_found,
            n_matched=n_matched,
            rmse_y_px=rmse_y_px,
            rmse_x_px=rmse_x_px,
            rmse_z_um=rmse_z_um,
            expected_count=float(sum(frame.score.sum() for frame in self._frames)),
            within_sigma=_share_within(error[:, :2], sigma[:, :2]),
            within_sigma_z=_share_within(error[:, 2], sigma[:, 2]),
            gate_px=self.gate_px,
            pixel_um=self.pixel_um,
            frame_jaccard=frame_means[0],
            frame_rmse_px=frame_means[1],
            frame_efficiency=frame_means[2],
        )

    def scan(self, thresholds: Iterable[float] = THRESHOLDS) -> tuple[LocalisationFigures, ...]:
        """Return the figures at each threshold; `max(scan, key=lambda f: f.jaccard).threshold` is one to keep."""
        return tuple(self.at(threshold) for threshold in thresholds)

    def sigma_scales(self, threshold: float = 0.0) -> tuple[float, float]:
        """Return by what to multiply lateral and axial sigmas so that 68 % of the matched errors lie within; else 1."""
        matched = [(frame, frame.matched(threshold)[0]) for frame in self._frames]
        ratio = np.concatenate(
            [np.abs(f.error[pairs]) / f.sigma[f.found_of_pair[pairs]] for f, pairs in matched] or [np.empty((0, 3))]
        )
        lateral, axial = (
            float(np.quantile(each, 0.6827)) if each.size and not np.isnan(each).any() else 1.0
            for each in (ratio[:, :2], ratio[:, 2])
        )
        return lateral, axial

    def matches(self, threshold: float = 0.0) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Return for each frame the index of each matched emitter, and of its localisation."""
        pairs = [(frame, frame.matched(threshold)[0]) for frame in self._frames]
        return [(frame.true_of_pair[chosen], frame.found_of_pair[chosen]) for frame, chosen in pairs]


def _within(a_yx: Array, b_yx: Array, gate_px: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of all pairs not farther apart than the gate."""
    from scipy.spatial import cKDTree  # scipy costs a second of import

    if not len(a_yx) or not len(b_yx):
        return np.empty(0, np.intp), np.empty(0, np.intp)
    pairs = cKDTree(a_yx).sparse_distance_matrix(cKDTree(b_yx), gate_px, output_type="ndarray")
    return pairs["i"].astype(np.intp), pairs["j"].astype(np.intp)


def assign(a: NDArray[np.intp], b: NDArray[np.intp], cost: Array) -> NDArray[np.intp]:
    """Choose among candidate pairs as many as possible, each a and each b once, and of these the least sum of cost.

    Parameters
    ----------
    a, b : (N,)
        The two members of each candidate pair.
    cost : (N,)
        Of the pair, 0 or more.

    Returns
    -------
    (M,)
        Which candidates are chosen, ascending.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    alone = (np.bincount(a)[a] == 1) & (np.bincount(b)[b] == 1) if len(a) else np.empty(0, bool)
    rest = np.flatnonzero(~alone)
    if not len(rest):
        return np.flatnonzero(alone)
    _, row = np.unique(a[rest], return_inverse=True)
    _, column = np.unique(b[rest], return_inverse=True)
    n_rows, n_columns = int(row.max()) + 1, int(column.max()) + 1
    # a column of its own for each row, dearer than all pairs together: the row stays unmatched; 1 +: a 0 is no edge
    dear = 2.0 + float(cost[rest].sum() + len(rest))
    own = np.arange(n_rows)
    weights = np.concatenate([1 + cost[rest], np.full(n_rows, dear)])
    edges = (np.concatenate([row, own]), np.concatenate([column, n_columns + own]))
    matched_row, matched_column = min_weight_full_bipartite_matching(
        coo_matrix((weights, edges), shape=(n_rows, n_columns + n_rows)).tocsr()
    )
    partner = np.full(n_rows, -1)
    partner[matched_row] = matched_column
    chosen = rest[partner[row] == column]
    return np.sort(np.concatenate([np.flatnonzero(alone), chosen]))


def _jaccard(n_true: int, n_found: int, n_matched: int) -> float:
    union = n_true + n_found - n_matched
    return n_matched / union if union else 1.0


def _efficiency(jaccard: float, rmse_nm: float, gate_nm: float, per_nm: float) -> float:
    """Return the efficiency; where nothing was matched, the error is taken to be the gate."""
    if np.isnan(rmse_nm):
        rmse_nm = 0.0 if jaccard == 1 else gate_nm
    return 1 - float(np.hypot(1 - jaccard, per_nm * rmse_nm))


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2))) if len(values) else float("nan")


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _share_within(error: Array, sigma: Array) -> float:
    known = ~(np.isnan(error) | np.isnan(sigma))
    return float(np.mean(np.abs(error[known]) <= sigma[known])) if known.any() else float("nan")
