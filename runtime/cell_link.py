"""Link the cells of successive label images to tracks, frame by frame, while they arrive; divisions start two new ones.

What is told of a frame is never taken back, so a division is told late: when a cell falls into two, the pieces are new
tracks without a parent, and the cell waits. If it is seen whole again, it has its identity back and the pieces end: the
segmentation had cut it. Only when both pieces have been seen in `confirm_frames` frames are they daughters, and their
rows carry its number from then on. Likewise, an object that covers two known cells is neither of them growing but a
track of its own; they wait inside it, and where it falls apart they have their identities back.

Not told apart: two cells that were one object since they came into the frame are a division when they come apart, and a
cell that is cut in two for `confirm_frames` frames is one too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.detections import Detections, Tracks
from oneframe.runtime.link import Floats, Ints, assign, choose_links, frames_elapsed, import_solvers
from oneframe.runtime.segmentation_score import count_pairs
from oneframe.runtime.vote_clustering import run_starts

_WHOLE = 0.75
"""Area over that of a cell that was in pieces, from which on it is whole again."""
_PART = 0.2
"""Area of a part, over that of the whole, from which on it is a cell and no speck."""
_LARGEST_PART = 0.8
"""Area of a daughter over that of its mother, at most."""
_SUM = (0.6, 1.5)
"""Areas of all parts over that of the whole, at least and at most."""
_INSIDE = 0.6
"""Share of a cell that lies in an object which has swallowed it, at least."""
_OF = 0.5
"""Share of a piece that lies in the cell it comes from, at least; also share of the cell that its pieces cover."""
_STAYS = 0.3
"""Share of a mask that is expected in the frame, below which the cell has left it."""
_TOUCHES = 0.1
"""Share of a piece that lies in the cell it comes from, at least, where two leave it in opposite directions."""
_HALF = (0.3, 0.7)
"""Area of each of these over that of the cell, at least and at most."""
_OFF_MIDDLE = 0.25
"""Distance of their common centre from the place where the cell is expected, in its diameters, at most."""
_MISSED, _MET, _BETTER = 0.8, 0.5, 1.05
"""Share of the masks that meet cells, below which a common shift is looked for (the stage drifts or was moved); the
share with it, at least; and that over the share before, at least."""
_FEWEST = 3
"""Cells whose common shift is one, at least."""
_DRIFT = 3.0
"""Farthest common shift, in steps that a cell may make."""
_DRIFT_PX = 256
"""Longer edge of the images in which it is looked for, at most."""


@dataclass(frozen=True, slots=True)
class CellLinkSettings:
    """How `CellLinker` links; times are counted in frames that were analysed.

    Raises
    ------
    ValueError
        If a number is not finite or out of its range.
    """

    min_overlap: float = 0.2
    """Intersection over union of a cell and the mask of its track, moved to where it is expected, from which on they
    are linked by overlap, 0..1."""

    max_distance_diameters: float = 1.0
    """Where nothing overlaps (small and fast cells, frames that were lost): how far from its expected place a cell may
    be one frame later, in diameters of the circle of its area. It grows with the root of the frames that the cell was
    not seen, to twice that; a cell of twice or half the area is as good as one at that distance."""

    max_gap_frames: int = 3
    """Frames in a row that a track may miss; with one more it ends. Frames that were never analysed are no misses."""

    confirm_frames: int = 2
    """Frames in which both pieces of a cell must be seen until they are its daughters; 1: at once."""

    max_merged_frames: int = 10
    """Frames that cells wait inside an object that covers them; later it is what it looks like, one cell."""

    velocity_weight: float = 0.5
    """Weight of the last step in the smoothed velocity, 0 (cells are expected where they were) to 1. The step that most
    cells make together has no part in it: a stage that jumped once need not jump again."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{f.name} must be a finite number of 0 or more, got {value}")
        for name in ("min_overlap", "velocity_weight"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be 1 at most, got {getattr(self, name)}; it is a fraction")
        if self.max_distance_diameters == 0 or self.confirm_frames < 1:
            raise ValueError(
                "max_distance_diameters must be above 0 and confirm_frames 1 or more, got "
                f"{self.max_distance_diameters} and {self.confirm_frames}"
            )


class CellLinker:
    """The online linker of cells: overlap with the moved mask first, distance where nothing overlaps.

    Track ids start at 1, so that 0 is the background in an image of them, grow in the order of birth and are never used
    twice. Time and memory grow with the pixels of the cells.

    Parameters
    ----------
    settings : CellLinkSettings
        Overlap, gate, gaps, divisions.

    References
    ----------
    Jaqaman et al., Nat. Methods 5, 695 (2008): linking as a linear assignment with a cost of no link.
    """

    def __init__(self, settings: CellLinkSettings | None = None) -> None:
        import_solvers()
        self.settings = settings or CellLinkSettings()
        self._tracks = _CellTracks.none()
        self._masks = _Runs.none()
        self._next_id = 1
        self._last_index: int | None = None
        self._shape: tuple[int, ...] | None = None

    def link(self, detections: Detections, index: int) -> Tracks:
        """Link the cells of frame `index` to the tracks so far.

        Parameters
        ----------
        detections : Detections
            N rows with `labels`, in which row i - 1 is label i.
        index : int
            Number of the frame in its source; it must grow from call to call and may jump.

        Returns
        -------
        Tracks
            The same detections, with the (N,) number of the track that each belongs to, and the track that divided into
            it, 0 where none is known so far.

        Raises
        ------
        ValueError
            If there are no labels or they do not fit the rows, their shape changes, or `index` does not grow; the
            linker then stays as it was.
        """
        n_elapsed = frames_elapsed(self._last_index, index)
        cells = _Cells.of(detections, index)
        if self._shape is not None and cells.shape != self._shape:
            raise ValueError(
                f"expected labels of shape {self._shape} as before, frame {index} has {cells.shape}; "
                "use a new linker for another camera setting"
            )
        s = self.settings
        tracks = self._tracks
        tracks.predict(n_elapsed)
        overlaps = self._overlaps(cells)
        links = _Links.none(len(tracks.track_id), len(cells.area))

        _link_overlapping(tracks, cells, overlaps, links, s)
        merged = _merge(tracks, cells, overlaps, links, self._next_id)
        pieces = _split(tracks, cells, overlaps, links)
        _link_near(tracks, cells, overlaps, links, [*merged, *(cell for some in pieces.values() for cell in some)], s)

        linked = np.flatnonzero(links.cell_of >= 0)
        others = np.setdiff1d(np.flatnonzero(links.track_of < 0), merged)
        born = np.concatenate((np.array(merged, np.int64), others))
        track_id = np.empty(len(cells.area), np.int64)
        track_id[links.cell_of[linked]] = tracks.track_id[linked]
        track_id[born] = np.arange(self._next_id, self._next_id + len(born))

        newborn = _CellTracks.born(track_id[born], cells.points[born], cells.area[born])
        for mother, some in pieces.items():
            rows = np.flatnonzero(np.isin(born, some))
            newborn.piece_of[rows], newborn.n_pieces[rows] = tracks.track_id[mother], len(rows)
            newborn.velocity[rows] = tracks.velocity[mother]
        for row in range(len(merged)):
            newborn.velocity[row] = tracks.velocity[tracks.inside == newborn.track_id[row]].mean(axis=0)
        tracks.update(linked, cells.points[links.cell_of[linked]], cells.area[links.cell_of[linked]], s)
        _come_whole(tracks, linked)

        tracks = tracks.joined_by(newborn)
        _confirm(tracks, s)
        alive = _alive(tracks, s)
        at_row = np.empty(len(cells.area), np.int64)
        at_row[links.cell_of[linked]] = linked
        at_row[born] = len(links.cell_of) + np.arange(len(born))
        parent_id = tracks.parent_id[at_row]
        seen = np.zeros(len(alive), bool)
        seen[at_row] = True
        self._masks = self._masks.kept(alive & ~seen, cells, at_row)
        self._tracks = tracks.rows(alive)
        self._next_id += len(born)
        self._last_index = index
        self._shape = cells.shape
        return Tracks(detections, track_id, parent_id)

    def _overlaps(self, cells: _Cells) -> _Overlaps:
        """Compare the cells with the masks where they are expected; if most miss, all have moved together perhaps."""
        tracks, masks = self._tracks, self._masks
        overlaps = masks.overlaps(tracks, cells)
        covered = overlaps.covered(tracks, cells)
        if covered >= _MISSED or np.count_nonzero(~tracks.waits) < _FEWEST:
            return overlaps
        farthest = _DRIFT * self.settings.max_distance_diameters * math.sqrt(4 / math.pi * np.median(tracks.area))
        shift = _common_shift(masks.image(tracks, cells.shape), cells.runs.image(None, cells.shape), farthest)
        tracks.position += shift
        moved = masks.overlaps(tracks, cells)
        if moved.covered(tracks, cells) >= max(_MET, _BETTER * covered):
            return moved
        tracks.position -= shift
        return overlaps


@dataclass(frozen=True, slots=True)
class _Cells:
    """The N cells of one frame, and their P pixels."""

    shape: tuple[int, ...]
    points: Floats  # (N, 2), y and x, px
    area: Floats  # (N,), px
    runs: _Runs  # of rows 0 .. N - 1

    @classmethod
    def of(cls, detections: Detections, index: int) -> _Cells:
        labels, n = detections.labels, len(detections)
        if labels is None:
            raise ValueError(
                f"expected detections with labels, frame {index} has none; take FrameLinker for objects without masks"
            )
        low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
        if low < 0 or high > n:
            raise ValueError(
                f"expected labels 0 .. {n}, one for each row, frame {index} has {low} .. {high}; "
                "take rows away with their labels"
            )
        points = np.column_stack((detections.y_px, detections.x_px)).astype(np.float64)
        if not np.isfinite(points).all():
            raise ValueError(
                f"positions must be finite, frame {index} has NaN or infinite ones; drop those cells first"
            )
        runs = _Runs.of(labels)
        area = np.bincount(runs.row, runs.length, minlength=n).astype(np.float64)
        return cls(labels.shape, points, area, runs)


@dataclass(frozen=True, slots=True)
class _Overlaps:
    """Pairs of a track, whose mask was moved to where it is expected, and a cell that it overlaps."""

    track: Ints
    cell: Ints
    pixels: Floats
    expected: Floats
    """(T,), pixels of each track that are expected in the frame."""

    def covered(self, tracks: _CellTracks, cells: _Cells) -> float:
        """Share of the expected pixels, or of the cells' pixels if these are fewer, where both are."""
        looked_for = ~tracks.waits
        n_pixels = min(self.expected[looked_for].sum(), cells.area.sum())
        return float(self.pixels[looked_for[self.track]].sum() / n_pixels) if n_pixels else 1.0


@dataclass(frozen=True, slots=True)
class _Runs:
    """Masks as runs of pixels along x: some twenty times fewer than pixels, so that all is quick."""

    row: Ints  # (R,), of the table that the masks belong to
    y: Ints
    x: Ints  # first pixel
    length: Ints

    @classmethod
    def none(cls) -> _Runs:
        return cls(*np.empty((4, 0), np.int64))

    @classmethod
    def of(cls, labels: NDArray[np.int32]) -> _Runs:
        """Return the runs of a label image; label i is row i - 1."""
        if not labels.size:
            return cls.none()
        flat, width = labels.ravel(), labels.shape[1]
        first = np.flatnonzero(run_starts(labels))
        length = np.diff(first, append=len(flat))
        row = flat[first].astype(np.int64) - 1
        kept = row >= 0
        y, x = np.divmod(first[kept], width)
        return cls(row[kept], y, x, length[kept])

    def overlaps(self, tracks: _CellTracks, cells: _Cells) -> _Overlaps:
        """Move the masks of tracks to where they are expected, and count the pixels that they share with the cells."""
        width = cells.shape[1]
        track, begin, end = self._expected(tracks, cells.shape)
        expected = np.bincount(track, end - begin, minlength=len(tracks.track_id)).astype(np.float64)

        # The runs of the frame are in order and apart: those that one run meets are neighbours.
        cell_begin = cells.runs.y * width + cells.runs.x
        cell_end = cell_begin + cells.runs.length
        first = np.searchsorted(cell_end, begin, side="right")
        n_met = np.searchsorted(cell_begin, end, side="left") - first
        ours = np.repeat(np.arange(len(track)), n_met)
        theirs = np.arange(len(ours)) - np.repeat(np.cumsum(n_met) - n_met, n_met) + first[ours]
        shared = np.minimum(end[ours], cell_end[theirs]) - np.maximum(begin[ours], cell_begin[theirs])
        shape = (len(tracks.track_id), len(cells.area))
        return _Overlaps(*count_pairs(track[ours], cells.runs.row[theirs], shape, shared), expected)

    def image(self, tracks: _CellTracks | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return (H, W), where masks are; those of tracks, where they are expected."""
        _, begin, end = self._expected(tracks, shape)
        n = shape[0] * shape[1]
        edges = np.bincount(begin, minlength=n + 1) - np.bincount(end, minlength=n + 1)
        return np.asarray(np.cumsum(edges[:n]).reshape(shape) > 0)

    def _expected(self, tracks: _CellTracks | None, shape: tuple[int, ...]) -> tuple[Ints, Ints, Ints]:
        """Return row, first flat index and the one behind the last, of the runs in the frame."""
        height, width = shape
        y, x = self.y, self.x
        if tracks is not None:
            shift = np.rint(tracks.position - tracks.mask_at).clip(-1e6, 1e6).astype(np.int64)
            y, x = y + shift[self.row, 0], x + shift[self.row, 1]
        begin, end = np.maximum(x, 0), np.minimum(x + self.length, width)
        in_frame = (y >= 0) & (y < height) & (begin < end)
        offset = y[in_frame] * width
        return self.row[in_frame], begin[in_frame] + offset, end[in_frame] + offset

    def kept(self, keep: NDArray[np.bool_], cells: _Cells, row_of: Ints) -> _Runs:
        """Return the masks of the tracks that go on: of this frame's cells, and the old ones of tracks to `keep`."""
        alive = keep.copy()
        alive[row_of] = True
        number = np.cumsum(alive) - 1
        old, now = keep[self.row], cells.runs
        return _Runs(
            np.concatenate((number[self.row[old]], number[row_of[now.row]])),
            np.concatenate((self.y[old], now.y)),
            np.concatenate((self.x[old], now.x)),
            np.concatenate((self.length[old], now.length)),
        )


@dataclass(slots=True)
class _Links:
    """Which cell (or -1) each track has, and the other way round."""

    cell_of: Ints  # (T,)
    track_of: Ints  # (N,)

    @classmethod
    def none(cls, n_tracks: int, n_cells: int) -> _Links:
        return cls(np.full(n_tracks, -1, np.int64), np.full(n_cells, -1, np.int64))

    def join(self, tracks: Ints, cells: Ints) -> None:
        self.cell_of[tracks] = cells
        self.track_of[cells] = tracks

    def part(self, tracks: Ints) -> None:
        cells = self.cell_of[tracks]
        self.track_of[cells[cells >= 0]] = -1
        self.cell_of[tracks] = -1


@dataclass(slots=True)
class _CellTracks:
    """Columns over the T tracks that are alive."""

    track_id: Ints
    parent_id: Ints
    position: Floats  # (T, 2), y and x, px: where it is expected
    velocity: Floats  # (T, 2), px per frame of the source
    mask_at: Floats  # (T, 2), position when its mask was taken
    area: Floats  # (T,), px
    n_unseen: Ints  # frames of the source since its mask was taken
    n_missed: Ints  # analysed frames since then
    n_seen: Ints  # frames it was seen in
    piece_of: Ints  # the cell that fell into this one and another, undecided whether it divided; 0: none
    n_pieces: Ints  # into how many that one fell
    in_pieces: NDArray[np.bool_]  # waits until that is decided
    inside: Ints  # the object in which it waits; 0: none

    @classmethod
    def none(cls) -> _CellTracks:
        return cls.born(np.empty(0, np.int64), np.empty((0, 2)), np.empty(0))

    @classmethod
    def born(cls, track_id: Ints, points: Floats, area: Floats) -> _CellTracks:
        n = len(track_id)
        zeros = np.zeros(n, np.int64)
        return cls(
            track_id=track_id,
            parent_id=zeros.copy(),
            position=points.copy(),
            velocity=np.zeros((n, 2)),
            mask_at=points.copy(),
            area=area.copy(),
            n_unseen=zeros.copy(),
            n_missed=zeros.copy(),
            n_seen=zeros + 1,
            piece_of=zeros.copy(),
            n_pieces=zeros.copy(),
            in_pieces=np.zeros(n, bool),
            inside=zeros.copy(),
        )

    @property
    def waits(self) -> NDArray[np.bool_]:
        """(T,), tracks that are not looked for as objects of their own."""
        return self.in_pieces | (self.inside > 0)

    def predict(self, n_elapsed: int) -> None:
        """Move all tracks on by `n_elapsed` frames."""
        self.position += n_elapsed * self.velocity
        self.n_unseen += n_elapsed
        self.n_missed += 1

    def update(self, rows: Ints, points: Floats, area: Floats, s: CellLinkSettings) -> None:
        """Take the cells at `points` (K, 2) into the tracks `rows` (K,), and what waits inside them along."""
        moved = np.zeros_like(self.position)
        moved[rows] = points - self.position[rows]
        w = s.velocity_weight
        step = (points - self.mask_at[rows]) / self.n_unseen[rows, None]
        if len(rows) >= _FEWEST:  # the stage's part, which need not go on
            step = step - np.median(step, axis=0)
        self.velocity[rows] = (1 - w) * self.velocity[rows] + w * step
        self.position[rows] = self.mask_at[rows] = points
        self.area[rows] = area
        self.n_unseen[rows] = self.n_missed[rows] = 0
        self.n_seen[rows] += 1
        self.inside[rows] = 0
        self.in_pieces[rows] = False
        for row in np.flatnonzero(self.inside > 0):
            host = np.flatnonzero(self.track_id == self.inside[row])
            self.position[row] += moved[host].sum(axis=0)
            if len(host):
                self.velocity[row] = self.velocity[host[0]]

    def rows(self, keep: NDArray[np.bool_]) -> _CellTracks:
        return _CellTracks(*(getattr(self, f.name)[keep] for f in fields(self)))

    def joined_by(self, others: _CellTracks) -> _CellTracks:
        return _CellTracks(*(np.concatenate((getattr(self, f.name), getattr(others, f.name))) for f in fields(self)))


def _common_shift(before: NDArray[np.bool_], now: NDArray[np.bool_], farthest_px: float) -> Floats:
    """Return (2,), the shift in y and x of at most so many pixels, after which two masks overlap most."""
    from scipy import fft

    every = math.ceil(max(before.shape) / _DRIFT_PX)
    a, b = (np.asarray(mask[::every, ::every], np.float32) for mask in (before, now))
    reach = math.ceil(farthest_px / every)
    shape = [fft.next_fast_len(n + min(n, reach), real=True) for n in a.shape]
    overlap = fft.irfft2(np.conj(fft.rfft2(a, shape)) * fft.rfft2(b, shape), shape)
    steps = [fft.fftfreq(n, 1 / n) for n in shape]
    overlap[np.hypot(steps[0][:, None], steps[1]) > reach] = -1
    y, x = np.unravel_index(np.argmax(overlap), overlap.shape)
    return np.array([every * steps[0][y], every * steps[1][x]], np.float64)


def _link_overlapping(tracks: _CellTracks, cells: _Cells, o: _Overlaps, links: _Links, s: CellLinkSettings) -> None:
    """Link tracks and cells so that the sum of their overlaps is largest."""
    area = cells.area[o.cell]
    iou = o.pixels / (o.expected[o.track] + area - o.pixels)
    ratio = area / o.expected[o.track]
    # What waits comes back only as itself: a cell in pieces whole, a member of an object with its own size.
    fits = (ratio >= np.where(tracks.in_pieces, _WHOLE, _OF)[o.track]) & (ratio <= 1 / _WHOLE)
    candidates = np.flatnonzero((iou >= s.min_overlap) & (fits | ~tracks.waits[o.track]))
    t, c = o.track[candidates], o.cell[candidates]
    # A link costs 1 - overlap, no link as much as a link of the least overlap.
    no_link = np.full(len(tracks.track_id), math.sqrt((1 - s.min_overlap) / 2))
    chosen = choose_links(t, c, 1 - iou[candidates], no_link)
    links.join(t[chosen], c[chosen])


def _merge(tracks: _CellTracks, cells: _Cells, o: _Overlaps, links: _Links, next_id: int) -> list[int]:
    """Find cells that are several tracks at once, numbered from `next_id` on, and let the tracks wait inside.

    Pieces of one cell that are one object again are that cell, and linked to it.
    """
    own = links.cell_of[o.track]
    inside = (o.pixels >= _INSIDE * o.expected[o.track]) & ~tracks.waits[o.track] & ((own == o.cell) | (own < 0))
    inside &= o.expected[o.track] >= _PART * cells.area[o.cell]
    t, c = o.track[inside], o.cell[inside]
    merged: list[int] = []
    for cell in np.flatnonzero(np.bincount(c, minlength=1) >= 2).tolist():
        members = t[c == cell]
        holder = links.track_of[cell]
        total = o.expected[members].sum() / cells.area[cell]
        if (holder >= 0 and holder not in members) or not _SUM[0] <= total <= _SUM[1]:
            continue
        links.part(members)
        whole = np.flatnonzero((tracks.track_id == tracks.piece_of[members[0]]) & tracks.in_pieces)
        if len(whole) and (tracks.piece_of[members] == tracks.piece_of[members[0]]).all():
            links.join(whole, np.array([cell]))
        else:
            _hide(tracks, members, next_id + len(merged))
            merged.append(cell)
    return merged


def _hide(tracks: _CellTracks, members: Ints, host: int) -> None:
    """Let the members wait inside an object; what waited in one of them already waits in the new one."""
    waiting = np.isin(tracks.inside, tracks.track_id[members])
    hosts = np.isin(tracks.track_id, tracks.inside[waiting])
    tracks.inside[waiting] = host
    tracks.inside[members] = host
    tracks.inside[hosts] = -1  # ends: it is the new one now


def _split(tracks: _CellTracks, cells: _Cells, o: _Overlaps, links: _Links) -> dict[int, list[int]]:
    """Find tracks that fell apart; return the rows of these, which wait now, and the pieces of each.

    Of an object in which cells wait these take the pieces, and it ends.
    """
    own = links.track_of[o.cell]
    near = ~tracks.waits[o.track] & ((own == o.track) | (own < 0))
    near &= (o.pixels >= _TOUCHES * cells.area[o.cell]) & (cells.area[o.cell] >= _PART * o.expected[o.track])
    t, c, pixels = o.track[near], o.cell[near], o.pixels[near]
    returned = tracks.inside[(links.cell_of >= 0) & (tracks.inside > 0)]
    n_pieces = np.bincount(t, minlength=len(tracks.track_id))
    in_pieces = {}
    for row in np.flatnonzero((n_pieces >= 2) | np.isin(tracks.track_id, returned)).tolist():
        pieces, shared = c[t == row], pixels[t == row]
        members = np.flatnonzero(tracks.inside == tracks.track_id[row])
        most = shared >= _OF * cells.area[pieces]
        if len(members):
            if most.sum() >= 2 or tracks.track_id[row] in returned:
                _give_back(tracks, cells, links, row, members, pieces[most])
            continue
        if not _covers(cells, pieces[most], shared[most], o.expected[row]):
            most = _apart(cells, pieces, tracks.position[row], o.expected[row])
        if most.sum() >= 2:
            links.part(np.array([row]))
            tracks.in_pieces[row] = True
            in_pieces[row] = pieces[most].tolist()
    return in_pieces


def _covers(cells: _Cells, pieces: Ints, shared: Floats, area: float) -> bool:
    """Whether pieces that lie in a cell cover it, each a part of it."""
    sizes = cells.area[pieces] / area
    return (
        len(pieces) >= 2
        and bool(shared.sum() >= _OF * area)
        and bool(sizes.max() <= _LARGEST_PART)
        and bool(_SUM[0] <= sizes.sum() <= _SUM[1])
    )


def _apart(cells: _Cells, pieces: Ints, position: Floats, area: float) -> NDArray[np.bool_]:
    """(K,), the two of the pieces that left a cell in opposite directions, halves of it; or none.

    The chromosomes of an anaphase move by more than their own width within a frame, but about their middle.
    """
    pair = np.zeros(len(pieces), bool)
    sizes = cells.area[pieces] / area
    like = np.flatnonzero((sizes >= _HALF[0]) & (sizes <= _HALF[1]))
    if len(like) < 2:
        return pair
    a, b = np.triu_indices(len(like), 1)
    a, b = like[a], like[b]
    weight = (sizes[a] / (sizes[a] + sizes[b]))[:, None]
    middle = weight * cells.points[pieces[a]] + (1 - weight) * cells.points[pieces[b]]
    off = np.linalg.norm(middle - position, axis=1) / math.sqrt(4 / math.pi * area)
    best = int(np.argmin(off))
    if off[best] <= _OFF_MIDDLE and _SUM[0] <= sizes[a[best]] + sizes[b[best]] <= _SUM[1]:
        pair[[a[best], b[best]]] = True
    return pair


def _give_back(tracks: _CellTracks, cells: _Cells, links: _Links, row: int, members: Ints, pieces: Ints) -> None:
    """End an object and give each of its pieces the identity of the member that is expected nearest."""
    from scipy.optimize import linear_sum_assignment

    links.part(np.array([row]))
    tracks.inside[row] = -1  # ends
    free = members[links.cell_of[members] < 0]
    pieces = pieces[links.track_of[pieces] < 0]
    distance = np.linalg.norm(tracks.position[free][:, None] - cells.points[pieces], axis=-1)
    a, b = linear_sum_assignment(distance)
    links.join(free[a], pieces[b])
    tracks.inside[members] = 0


def _link_near(
    tracks: _CellTracks, cells: _Cells, o: _Overlaps, links: _Links, taken: list[int], s: CellLinkSettings
) -> None:
    """Link what is left to the nearest of like size; a cell that has left the frame is not looked for."""
    free = np.ones(len(cells.area), bool)
    free[taken] = False
    here = o.expected >= _STAYS * tracks.area
    t = np.flatnonzero((links.cell_of < 0) & ~tracks.waits & (tracks.inside == 0) & here & (tracks.area > 0))
    c = np.flatnonzero((links.track_of < 0) & free & (cells.area > 0))
    if not len(t) or not len(c):
        return
    reach = s.max_distance_diameters * np.minimum(np.sqrt(tracks.n_unseen[t]), 2)
    gates = reach * np.sqrt(4 / math.pi * tracks.area[t])
    # Size is a third axis: a factor of two is as long as the gate of a usual cell.
    scale = float(np.median(gates))
    expected = np.column_stack((tracks.position[t], scale * np.log2(tracks.area[t])))
    points = np.column_stack((cells.points[c], scale * np.log2(cells.area[c])))
    a, b = assign(expected, points, gates)
    links.join(t[a], c[b])


def _come_whole(tracks: _CellTracks, linked: Ints) -> None:
    """Pieces end where the cell they come from was seen whole; one that was seen beside it is a cell of its own."""
    pieces = np.isin(tracks.piece_of, tracks.track_id[linked]) & (tracks.piece_of > 0)
    tracks.inside[pieces & (tracks.n_missed > 0)] = -1
    tracks.piece_of[pieces] = 0


def _confirm(tracks: _CellTracks, s: CellLinkSettings) -> None:
    """Make two pieces that were seen often enough the daughters of the cell they come from."""
    for mother in np.unique(tracks.piece_of[tracks.piece_of > 0]).tolist():
        pieces = np.flatnonzero(tracks.piece_of == mother)
        seen = (tracks.n_seen[pieces] >= s.confirm_frames) & (tracks.n_missed[pieces] == 0)
        if len(pieces) == 2 and seen.all() and tracks.n_pieces[pieces[0]] == 2:
            tracks.parent_id[pieces] = mother
            tracks.piece_of[pieces] = 0
            tracks.inside[tracks.track_id == mother] = -1


def _alive(tracks: _CellTracks, s: CellLinkSettings) -> NDArray[np.bool_]:
    """(T,), tracks that go on; frees pieces whose cell has ended and tracks whose object has."""
    patience = np.where(tracks.in_pieces, max(s.max_gap_frames, s.confirm_frames), s.max_gap_frames)
    patience = np.where(tracks.inside > 0, s.max_merged_frames, patience)
    alive = (tracks.n_missed <= patience) & (tracks.inside >= 0)
    ids = tracks.track_id[alive]
    alive &= (tracks.inside <= 0) | np.isin(tracks.inside, ids)
    tracks.piece_of[~np.isin(tracks.piece_of, ids)] = 0
    return alive
