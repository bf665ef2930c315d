"""Mean shift with a flat kernel, as Cellulus clusters its embeddings: exact, and slow beside `vote_clustering`."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.vote_clustering import consecutive

Points = NDArray[np.float64]

_CHUNK = 2048
"""Means whose neighbours are held at once."""


def mean_shift(
    points: Points, bandwidth: float, *, seeds: Points | None = None, max_iterations: int = 300
) -> NDArray[np.float64]:
    """Return the centres of the clusters of points in the plane, those of scikit-learn's `MeanShift(bandwidth)`.

    Parameters
    ----------
    points : (N, 2) float
    bandwidth : float
        A mean is taken over the points no further away; centres are further apart.
    seeds : (S, 2) float, optional
        Where means start; every point unless given.
    max_iterations : int
        Steps of a mean after its first, 300 as in scikit-learn; it stops when it moves by 1/1000 bandwidth or less.

    Returns
    -------
    (K, 2) float64
        By the number of points around them, most first; of equal ones that with the larger coordinates.

    Raises
    ------
    ValueError
        If shapes or numbers do not fit, or no point is near any seed.

    Notes
    -----
    Means that have the same points around them go to the very same place, and are then followed as one.

    References
    ----------
    Comaniciu and Meer, IEEE PAMI 24, 603 (2002).
    """
    from scipy.spatial import cKDTree

    points = _checked(points, "points")
    start = points if seeds is None else _checked(seeds, "seeds")
    if not bandwidth > 0 or not np.isfinite(bandwidth) or not len(points) or max_iterations < 0:
        raise ValueError(
            f"expected points, a bandwidth above 0 and max_iterations of 0 or more, got {len(points)} points, "
            f"{bandwidth} and {max_iterations}; without foreground there is nothing to cluster"
        )
    centre, intensity = _climbed(points, start, bandwidth, max_iterations)
    if not len(centre):
        raise ValueError(
            f"expected seeds within {bandwidth} of a point, got none; take other seeds or a larger bandwidth"
        )
    centre = centre[np.lexsort((centre[:, 1], centre[:, 0], intensity))[::-1]]
    tree = cKDTree(centre)
    free = np.ones(len(centre), bool)
    kept = []
    for k in range(len(centre)):
        if free[k]:
            free[tree.query_ball_point(centre[k], bandwidth)] = False
            kept.append(k)
    return np.asarray(centre[kept])


def nearest_centre(points: Points, centres: Points) -> NDArray[np.int64]:
    """Return for each of (N, 2) points which of (K, 2) centres is nearest, (N,); of equally near ones the first."""
    from scipy.spatial import cKDTree

    points, centres = _checked(points, "points"), _checked(centres, "centres")
    if len(centres) == 1:
        return np.zeros(len(points), np.int64)
    distance, nearest = cKDTree(centres).query(points, 2)
    found = nearest[:, 0].astype(np.int64)
    for k in np.flatnonzero(distance[:, 1] <= distance[:, 0] * (1 + 1e-12)):
        squares = ((centres - points[k]) ** 2).sum(1)
        found[k] = np.flatnonzero(squares <= squares.min() * (1 + 1e-12))[0]
    return np.asarray(found)


def mean_shift_labels(
    offsets: NDArray[np.float32],
    foreground: NDArray[np.bool_],
    *,
    bandwidth_px: float,
    rng: np.random.Generator,
    sample: float = 0.1,
    max_iterations: int = 300,
) -> NDArray[np.int32]:
    """Return a label image from the offsets of the foreground's pixels, as Cellulus does.

    Parameters
    ----------
    offsets : (2, H, W) float
        (dy, dx) from each pixel to its object, px.
    foreground : (H, W) bool
        Pixels that belong to cells; those whose offset is not finite are background.
    bandwidth_px : float
        Half a cell's diameter in Cellulus.
    rng : Generator
        Draws the pixels that look for centres.
    sample : float
        Share of them, above 0 to 1; 0.1 in Cellulus.
    max_iterations : int
        As in `mean_shift`.

    Returns
    -------
    (H, W) int32
        0 is background, cells 1 .. N from top to bottom. Every foreground pixel goes to the nearest centre, wherever.

    Raises
    ------
    ValueError
        If the shapes do not fit or a number is out of its range.
    """
    if offsets.shape != (2, *foreground.shape) or foreground.ndim != 2 or foreground.dtype != np.bool_:
        raise ValueError(
            f"expected offsets (2, H, W) and a boolean foreground (H, W), got {offsets.dtype} of shape {offsets.shape} "
            f"and {foreground.dtype} of shape {foreground.shape}"
        )
    if not 0 < sample <= 1:
        raise ValueError(f"sample must be above 0 and at most 1, got {sample}; 0.1 is a tenth of the pixels")
    labels = np.zeros(foreground.shape, np.int32)
    inside = foreground & np.isfinite(offsets).all(0)
    row, column = np.nonzero(inside)
    end: Points = np.column_stack([row, column]).astype(np.float64) + offsets[:, row, column].T
    drawn = end[rng.random(len(end)) < sample]
    if not len(end):
        return labels
    centres = mean_shift(drawn if len(drawn) else end[:1], bandwidth_px, max_iterations=max_iterations)
    labels[inside] = nearest_centre(end, centres) + 1
    return consecutive(labels)


def _climbed(points: Points, start: Points, bandwidth: float, max_iterations: int) -> tuple[Points, NDArray[np.intp]]:
    """Return the distinct places (C, 2) where means end, and how many points were around each before its last step."""
    from scipy.spatial import cKDTree

    tree = cKDTree(points)
    mean, seed = _distinct(start, np.arange(len(start)))
    ends: list[tuple[Points, NDArray[np.intp], NDArray[np.intp]]] = []
    for iteration in range(max_iterations + 1):
        old = mean
        mean, near = _means(tree, points, old, bandwidth)
        done = (np.hypot(*(mean - old).T) <= 1e-3 * bandwidth) | (near == 0) | (iteration == max_iterations)
        some = done & (near > 0)
        ends.append((mean[some], seed[some], near[some]))
        mean, seed = _distinct(mean[~done], seed[~done])
        if not len(mean):
            break
    at, seeds, near = (np.concatenate(each) for each in zip(*ends, strict=True))
    order = np.argsort(seeds)
    at, last = _distinct(at[order], np.arange(len(at)))  # of means that end at one place the last seed's counts
    return at, near[order][last]


def _means(tree: Any, points: Points, at: Points, bandwidth: float) -> tuple[Points, NDArray[np.intp]]:
    """Return the mean of the points around each place, (M, 2), the place itself without any, and their number."""
    means, near = at.copy(), np.zeros(len(at), np.intp)
    for first in range(0, len(at), _CHUNK):
        found = tree.query_ball_point(at[first : first + _CHUNK], bandwidth, return_sorted=True)  # one set, one sum
        n = np.fromiter(map(len, found), np.intp, len(found))
        some = np.flatnonzero(n)
        near[first : first + _CHUNK] = n
        if len(some):
            member = np.fromiter(chain.from_iterable(found), np.intp, n.sum())
            begin = np.cumsum(n[some]) - n[some]
            means[first + some] = np.add.reduceat(points[member], begin, axis=0) / n[some, None]
    return means, near


def _distinct(places: Points, seed: NDArray[np.intp]) -> tuple[Points, NDArray[np.intp]]:
    """Return each place once, with the last of its seeds."""
    _, first, of = np.unique(
        np.ascontiguousarray(places).view(np.complex128).ravel(), return_index=True, return_inverse=True
    )
    last = np.zeros(len(first), np.intp)
    np.maximum.at(last, of, seed)
    return places[first], last


def _checked(points: Points, name: str) -> Points:
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"expected {name} (N, 2) of finite numbers, got {points.shape}; drop what is not finite")
    return points
