"""Label images against known ones, by the field's measures: F1 at an intersection over union, and SEG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.localisation_score import assign

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SegmentationFigures:
    """How label images compare with the truth, over all frames that were added.

    References
    ----------
    F1: Caicedo et al., Nat. Methods 16, 1247 (2019). SEG: Ulman et al., Nat. Methods 14, 1141 (2017).
    """

    n_true: int
    n_found: int
    n_matched: int
    seg: float
    """Mean over all true cells of the Jaccard index with the found cell that covers more than half; NaN without any."""
    matched_iou: float
    """Mean intersection over union of the matches, NaN without any."""
    frame_f1: float
    """Mean over frames of the frame's own F1; NaN without frames."""
    frame_seg: float
    """Likewise, over frames that have true cells."""

    @property
    def precision(self) -> float:
        """TP / (TP + FP)."""
        return self.n_matched / self.n_found if self.n_found else 1.0

    @property
    def recall(self) -> float:
        """TP / (TP + FN)."""
        return self.n_matched / self.n_true if self.n_true else 1.0

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN), TP, FP and FN summed over frames; 1 where there is nothing and nothing was found."""
        return _f1(self.n_true, self.n_found, self.n_matched)


@dataclass(frozen=True, slots=True, eq=False)
class LabelMatches:
    """Which cell of one frame was found as which, M pairs."""

    true_label: Index
    """(M,), values of the true label image."""
    found_label: Index
    iou: Array
    """(M,), intersection over union."""


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """What is left of one frame."""

    n_true: int
    n_found: int
    matches: LabelMatches
    seg: Array
    """(n_true,)"""


class SegmentationScore:
    """Takes label images frame by frame; time and memory grow with the pixels, not with the pairs of cells.

    Parameters
    ----------
    iou : float
        Two cells match from this intersection over union on, 0 to 1; each cell once, as many pairs as possible.
    strict : bool
        True: only above it (the code of Cellulus, of StarDist); False: also at it (the paper of Cellulus).
    """

    def __init__(self, iou: float = 0.5, *, strict: bool = True) -> None:
        if not 0 < iou <= 1:
            raise ValueError(f"iou must be above 0 and at most 1, got {iou}; 0.5 is usual")
        self.iou = iou
        self.strict = strict
        self._frames: list[_Frame] = []

    def add(self, truth: NDArray[Any], labels: NDArray[Any]) -> None:
        """Add one frame: two (H, W) label images of any integer type, 0 is background, numbers may have gaps.

        Raises
        ------
        ValueError
            If the two differ in shape, or are not integer images.
        """
        if (
            truth.shape != labels.shape
            or truth.ndim != 2
            or truth.dtype.kind not in "iu"
            or labels.dtype.kind not in "iu"
        ):
            raise ValueError(
                f"expected two (H, W) integer label images of one shape, got {truth.dtype} of shape {truth.shape} and "
                f"{labels.dtype} of shape {labels.shape}"
            )
        true_label, found_label, true_area, found_area, t, f, both = _contingency(truth, labels)
        iou = both / (true_area[t] + found_area[f] - both)
        candidates = np.flatnonzero(iou > self.iou if self.strict else iou >= self.iou)
        pairs = candidates[assign(t[candidates], f[candidates], 1 - iou[candidates])]
        seg = np.zeros(len(true_label))
        covered = 2 * both > true_area[t]
        seg[t[covered]] = iou[covered]
        matches = LabelMatches(true_label[t[pairs]], found_label[f[pairs]], iou[pairs])
        self._frames.append(_Frame(len(true_label), len(found_label), matches, seg))

    def figures(self) -> SegmentationFigures:
        """Return the figures of all frames so far."""
        frames = self._frames
        ious = np.concatenate([np.empty(0), *(frame.matches.iou for frame in frames)])
        segs = [frame.seg for frame in frames if len(frame.seg)]
        return SegmentationFigures(
            n_true=sum(frame.n_true for frame in frames),
            n_found=sum(frame.n_found for frame in frames),
            n_matched=len(ious),
            seg=float(np.concatenate(segs).mean()) if segs else float("nan"),
            matched_iou=float(ious.mean()) if len(ious) else float("nan"),
            frame_f1=float(np.mean([_f1(f.n_true, f.n_found, len(f.matches.iou)) for f in frames]))
            if frames
            else float("nan"),
            frame_seg=float(np.mean([seg.mean() for seg in segs])) if segs else float("nan"),
        )

    def matches(self) -> list[LabelMatches]:
        """Return for each frame which cell was found as which."""
        return [frame.matches for frame in self._frames]


def _contingency(truth: NDArray[Any], labels: NDArray[Any]) -> tuple[Index, Index, Array, Array, Index, Index, Array]:
    """Return labels and areas of both images, and row, column and pixels of each pair that overlaps."""
    (true_label, true_area, t), (found_label, found_area, f) = _consecutive(truth), _consecutive(labels)
    both = (t > 0) & (f > 0)
    pairs = count_pairs(t[both] - 1, f[both] - 1, (len(true_label), len(found_label)))
    return true_label, found_label, true_area, found_area, *pairs


def count_pairs(
    row: NDArray[Any], column: NDArray[Any], shape: tuple[int, int], weight: NDArray[Any] | None = None
) -> tuple[Index, Index, Array]:
    """Return the pairs (row, column) that occur in a table of this shape, by row, and how often (or their weight)."""
    from scipy.sparse import coo_matrix  # scipy costs a second of import

    values = np.ones(len(row), np.int64) if weight is None else weight
    table = coo_matrix((values, (row, column)), shape=(max(1, shape[0]), max(1, shape[1]))).tocsr().tocoo()
    rows, columns = map(_index, table.coords)
    return rows, columns, table.data.astype(np.float64)


def _consecutive(labels: NDArray[Any]) -> tuple[Index, Array, Index]:
    """Return the labels present, without 0, their areas, and for each pixel the number of its label from 1, or 0."""
    flat = labels.ravel()
    if not len(flat) or flat.min() < 0 or flat.max() > 4 * len(flat):  # no table of this length
        present, flat = np.unique(flat, return_inverse=True)
    else:
        present = np.arange(int(flat.max()) + 1)
    areas = np.bincount(flat, minlength=len(present))
    kept = (areas > 0) & (present != 0)
    number = np.where(kept, np.cumsum(kept), 0)
    return _index(present[kept]), areas[kept].astype(np.float64), _index(number[flat])


def _index(values: NDArray[Any]) -> Index:
    return values.astype(np.int64, copy=False)


def _f1(n_true: int, n_found: int, n_matched: int) -> float:
    return 2 * n_matched / (n_true + n_found) if n_true + n_found else 1.0
