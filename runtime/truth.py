"""Detections against known truth: recall, precision and position error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Score:
    """How detections compare with the truth, over all frames that were added."""

    n_true: int
    n_found: int
    n_matched: int
    rmse_px: float
    """Root mean square error of the matched positions, per axis."""

    @property
    def recall(self) -> float:
        """Share of the true objects that were found."""
        return self.n_matched / self.n_true if self.n_true else 1.0

    @property
    def precision(self) -> float:
        """Share of the detections that are true."""
        return self.n_matched / self.n_found if self.n_found else 1.0


class TruthComparison:
    """Adds up matches frame by frame.

    Parameters
    ----------
    max_distance_px : float
        A detection farther than this from every true position is false.
    """

    def __init__(self, *, max_distance_px: float = 3.0) -> None:
        self._max_distance_px = max_distance_px
        self._n_true = self._n_found = self._n_matched = 0
        self._squared_error_px2 = 0.0

    def add(self, true_yx_px: NDArray[Any], found_yx_px: NDArray[Any]) -> None:
        """Match one frame's detections (M, 2) to its truth (N, 2), each to one at most, nearest in sum."""
        true_index, found_index = match(true_yx_px, found_yx_px, self._max_distance_px)
        self._n_true += len(true_yx_px)
        self._n_found += len(found_yx_px)
        self._n_matched += len(true_index)
        self._squared_error_px2 += float(((true_yx_px[true_index] - found_yx_px[found_index]) ** 2).sum())

    def score(self) -> Score:
        """Return the score so far."""
        mean_square = self._squared_error_px2 / (2 * self._n_matched) if self._n_matched else float("nan")
        return Score(self._n_true, self._n_found, self._n_matched, float(np.sqrt(mean_square)))


def match(
    a_yx_px: NDArray[Any], b_yx_px: NDArray[Any], max_distance_px: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pair two sets of positions one to one, nearest in sum; return the indices of the pairs within the distance."""
    from scipy.optimize import linear_sum_assignment  # 0.4 s of import that a live run without linking does not need

    distance = np.hypot(*(a_yx_px[:, None, :] - b_yx_px[None, :, :]).transpose(2, 0, 1))
    a, b = linear_sum_assignment(np.minimum(distance, 2 * max_distance_px))
    close = distance[a, b] <= max_distance_px
    return a[close], b[close]
