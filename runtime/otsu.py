"""Otsu's threshold: where values fall into two classes with the least variance within each, and how well they do."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BINS = 256
"""Of a histogram between the least and the largest value, as in scikit-image."""


class OtsuSplit(NamedTuple):
    """One threshold for each of N sets of values."""

    threshold: NDArray[np.float64]
    """(N,), the lower class lies below it; the least value where all values of a set are equal."""
    separability: NDArray[np.float64]
    """(N,), Otsu's eta: variance between the classes over the total, 0 to 1; 0.64 for one Gaussian, 0.75 if even."""


def otsu_threshold(values: NDArray[Any]) -> float:
    """Return Otsu's threshold of values of any shape; those that are not finite are left out.

    References
    ----------
    Otsu, IEEE Trans. Syst. Man Cybern. 9, 62 (1979).
    """
    flat = values[np.isfinite(values)].astype(np.float64)
    return float(otsu_splits(flat, np.zeros(len(flat), np.intp), 1).threshold[0]) if len(flat) else float("nan")


def otsu_splits(values: NDArray[np.float64], of: NDArray[Any], n: int) -> OtsuSplit:
    """Split N sets of finite values at once.

    Parameters
    ----------
    values : (M,) float64
    of : (M,) int
        The set of each value, 0 .. N - 1.
    n : int
        Number of sets.
    """
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(low, of, values)
    np.maximum.at(high, of, values)
    span = np.where(high > low, high - low, 1.0)
    place = np.minimum((values - low[of]) * (BINS / span)[of], BINS - 1).astype(np.intp)
    counts = np.bincount(of * BINS + place, minlength=n * BINS).reshape(n, BINS).astype(np.float64)
    below, sums = counts.cumsum(1), (counts * np.arange(BINS)).cumsum(1)
    total, whole = below[:, -1:], sums[:, -1:]
    weight = below * (total - below)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = np.where(weight > 0, (whole * below - total * sums) ** 2 / weight, 0.0)  # times total^2
    split = between.argmax(1)
    best = between[np.arange(n), split]
    squares = counts @ np.arange(BINS) ** 2.0
    spread = squares * total[:, 0] - whole[:, 0] ** 2  # variance times total^2
    separability = np.divide(best, spread, out=np.zeros(n), where=spread > 0)
    return OtsuSplit(np.where(high > low, low + (split + 1) * span / BINS, low), separability)
