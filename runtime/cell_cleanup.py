"""Label images become tidy ones: each cell one piece without holes, its outline where its light falls off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.otsu import otsu_splits
from oneframe.runtime.vote_clustering import consecutive, run_starts

Labels = NDArray[np.int32]


def size_filter(labels: Labels, least_px: float) -> Labels:
    """Return the cells of at least this area, each its largest piece, without holes.

    Parameters
    ----------
    labels : (H, W) int32
        0 is background.
    least_px : float
        Cells whose largest piece has fewer pixels go; 0.1 of a cell's area as in Cellulus, for instance.

    Returns
    -------
    (H, W) int32
        1 .. N. Pieces hang together by edges of pixels, not by corners; of equal ones the upper stays. A hole is
        background within a single cell, as in scipy's `binary_fill_holes`.
    """
    _check(labels)
    if not labels.any():
        return labels.copy()
    cell, length, piece = _runs(labels)
    area = np.bincount(piece, length)
    of_cell = np.empty(len(area), cell.dtype)
    of_cell[piece] = cell
    order = np.lexsort((-np.arange(len(area)), area, of_cell))  # of each cell the largest piece last
    last = np.append(of_cell[order[1:]] != of_cell[order[:-1]], True)
    stays = np.zeros(len(area), bool)
    stays[order[last]] = area[order[last]] >= least_px
    kept = consecutive(np.where(stays[piece], cell, 0))  # holes lie within: filling them leaves the order
    return _without_holes(np.repeat(kept, length).reshape(labels.shape))


def grow(labels: Labels, reach_px: float) -> Labels:
    """Return the cells larger by `reach_px` all around; what is near two goes to the nearer.

    Parameters
    ----------
    labels : (H, W) int32
        0 is background.
    """
    import cv2

    _check(labels)
    if not reach_px > 0 or not labels.any():
        return labels
    distance, nearest = cv2.distanceTransformWithLabels(
        (labels == 0).view(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    inside = labels > 0
    of_pixel = np.zeros(int(nearest.max()) + 1, np.int32)
    of_pixel[nearest[inside]] = labels[inside]
    return np.where(distance <= reach_px, of_pixel[nearest], 0).astype(np.int32)


def shrink(labels: Labels, *, grow_px: float = 3, shrink_px: float = 6) -> Labels:
    """Return the cells without a margin of about `shrink_px - grow_px` along the border of their union.

    Cellulus' step for whole cells: gaps up to twice `grow_px` are closed, then what lies nearer than `shrink_px` to
    the outside goes; cells that touch go on touching. The border of the image is not the outside.

    Parameters
    ----------
    labels : (H, W) int32
        0 is background.
    grow_px, shrink_px : float
        Pixels; 3 and 6 as in Cellulus.

    Returns
    -------
    (H, W) int32
        1 .. N.
    """
    _check(labels)
    outside = ~_near(labels != 0, grow_px)
    return consecutive(np.where(_near(outside, shrink_px), np.int32(0), labels))


def nucleus_cut(labels: Labels, image: NDArray[Any]) -> Labels:
    """Return each cell's brighter class by Otsu's threshold of its own pixels, holes filled.

    Cellulus' step for nuclei. Splits a cell of noise too; pieces are not counted, `size_filter` does that.

    Parameters
    ----------
    labels : (H, W) int32
        0 is background.
    image : (H, W)
        Camera pixels.

    Returns
    -------
    (H, W) int32
        1 .. N.
    """
    _check(labels, image)
    inside = np.flatnonzero(labels.ravel() != 0)
    cell, value = labels.ravel()[inside], image.ravel()[inside].astype(np.float64)
    threshold = otsu_splits(value, cell, int(cell.max(initial=0)) + 1).threshold
    cut = np.zeros_like(labels)
    cut.ravel()[inside] = consecutive(np.where(value >= threshold[cell], cell, 0))
    return _without_holes(cut)


def half_maximum_cut(
    labels: Labels, image: NDArray[Any], background: float | NDArray[Any], *, share: float = 0.5
) -> Labels:
    """Return each cell where it is brighter than a share of its own brightness above the background.

    Parameters
    ----------
    labels : (H, W) int32
        0 is background.
    image : (H, W)
        Pixels, cells bright; where they are dark, pass image and background negative.
    background : float or (H, W)
        Level of the pixels around the cells.
    share : float
        0 to 1, of the brightness of a cell, the 85th percentile of its pixels above the background; 0.5 puts the
        outline where a blurred edge really is.

    Returns
    -------
    (H, W) int32
        1 .. N; a cell no brighter than the background goes. Holes and pieces are left to `size_filter`.
    """
    _check(labels, image)
    if not 0 <= share < 1:
        raise ValueError(f"share must be 0 or more and below 1, got {share:g}; 0.5 is half the maximum")
    inside = np.flatnonzero(labels.ravel() != 0)
    cell = labels.ravel()[inside]
    n = int(cell.max(initial=0))
    level = background if np.ndim(background) == 0 else np.broadcast_to(background, image.shape).ravel()[inside]
    light = image.ravel()[inside].astype(np.float32) - np.asarray(level, np.float32)
    # numpy sorts 16 bits by radix, in linear time
    order = np.argsort(cell.astype(np.uint16) if n < 2**16 else cell, kind="stable")
    by_cell = light[order]
    ends = np.cumsum(np.bincount(cell, minlength=n + 1))
    least = np.full(n + 1, np.inf, np.float32)
    for k in range(1, n + 1):
        own = by_cell[ends[k - 1] : ends[k]]
        bright = _percentile(own) if len(own) else 0.0
        if bright > 0:
            least[k] = share * bright
    cut = np.zeros_like(labels)
    cut.ravel()[inside] = consecutive(np.where(light >= least[cell], cell, 0))
    return cut


def _percentile(values: NDArray[np.float32]) -> float:
    """Return the 85th percentile, as `np.percentile` but without its 50 us of preparation; reorders the values."""
    place = 0.85 * (len(values) - 1)
    low = int(place)
    values.partition(low)
    above = values[low + 1 :].min() if low + 1 < len(values) else values[low]
    return float(values[low] + (place - low) * (above - values[low]))


def _near(mask: NDArray[np.bool_], reach_px: float) -> NDArray[np.bool_]:
    """Return which pixels lie nearer than `reach_px` to one of the mask: a distance transform, but quicker."""
    import cv2

    reach = max(0, math.ceil(reach_px) - 1)
    step = np.arange(-reach, reach + 1)
    disc = np.add.outer(step**2, step**2) < reach_px**2
    return np.asarray(cv2.dilate(mask.view(np.uint8), disc.astype(np.uint8))).astype(bool)


def _runs(labels: Labels) -> tuple[Labels, NDArray[np.intp], NDArray[np.intp]]:
    """Return label, length and connected piece of each run of equal labels along the rows, background included."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    width = labels.shape[1]
    flat = labels.ravel()
    starts = run_starts(labels)
    begin = np.flatnonzero(starts)
    length = np.diff(begin, append=len(flat))
    run = np.repeat(np.arange(len(begin), dtype=np.int32), length)
    # two runs one above the other meet first where one of them starts
    meet = np.flatnonzero((starts[width:] | starts[:-width]) & (flat[width:] == flat[:-width]) & (flat[width:] > 0))
    edges = coo_matrix((np.ones(len(meet), bool), (run[meet], run[meet + width])), (len(begin), len(begin)))
    return flat[begin], length, connected_components(edges, directed=False)[1]


def _without_holes(labels: Labels) -> Labels:
    """Return the labels with each piece of background filled that one cell alone surrounds."""
    import cv2

    n, background = cv2.connectedComponents((labels == 0).view(np.uint8), connectivity=4)
    enclosed = np.ones(n, bool)
    enclosed[0] = False  # the cells
    for border in (background[0], background[-1], background[:, 0], background[:, -1]):
        enclosed[border] = False
    if not enclosed.any():
        return labels
    pixel = np.flatnonzero(np.take(enclosed, background))
    piece, flat, width = background.ravel()[pixel], labels.ravel(), labels.shape[1]
    least, most = np.full(n, np.iinfo(np.int32).max, np.int32), np.zeros(n, np.int32)
    for step in (-width, -1, 1, width):
        beside = flat[pixel + step]
        cells = beside > 0
        np.minimum.at(least, piece[cells], beside[cells])
        np.maximum.at(most, piece[cells], beside[cells])
    filled = labels.copy()
    filled.ravel()[pixel] = np.where(least == most, most, 0)[piece]
    return filled


def _check(labels: Labels, image: NDArray[Any] | None = None) -> None:
    shape = labels.shape if image is None else image.shape
    if labels.ndim != 2 or labels.dtype != np.int32 or shape != labels.shape:
        raise ValueError(
            f"expected int32 labels (H, W) and an image of their shape, got {labels.dtype} of shape {labels.shape} "
            f"and an image of shape {shape}; one channel at a time"
        )
