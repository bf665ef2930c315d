"""The classical way to cells: a foreground falls apart where it is narrow, by a watershed of distances to outside."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.vote_clustering import consecutive

LEAST_DEPTH = 0.01
"""Share: a rod, as thick in its middle as elsewhere, stays one cell; more than 0.03 joins nuclei that touch."""


def watershed_labels(
    foreground: NDArray[np.bool_], *, smoothing_px: float, least_distance_px: float, least_depth: float = LEAST_DEPTH
) -> NDArray[np.int32]:
    """Return a label image of a foreground alone.

    Parameters
    ----------
    foreground : (H, W) bool
        Pixels that belong to cells.
    smoothing_px : float
        Sigma of the Gaussian on the distance map, 0 or more; rough outlines else make many small cells.
    least_distance_px : float
        Cells that touch have their middles at least so far apart; half a diameter, for instance.
    least_depth : float
        0 to 1, in widths: the neck between two cells is narrower than the narrower cell by at least this share.

    Returns
    -------
    (H, W) int32
        0 is background, cells 1 .. N from top to bottom; each foreground pixel belongs to one, without lines between.

    Raises
    ------
    ValueError
        If the foreground is no boolean image or a number is out of its range.

    Notes
    -----
    Each pixel climbs the distance map to a summit; summits are then joined from the highest pass down, where they are
    nearer than `least_distance_px` or the pass is not `least_depth` below the lower one. The catchment basins are those
    of a flooding by height, found without a queue of pixels.

    References
    ----------
    Couprie and Bertrand, J. Electron. Imaging 14 (2005); Najman and Schmitt, IEEE PAMI 18, 1163 (1996): dynamics.
    """
    import cv2

    if foreground.ndim != 2 or foreground.dtype != np.bool_:
        raise ValueError(
            f"expected a boolean foreground (H, W), got {foreground.dtype} of shape {foreground.shape}; compare the "
            "image with a threshold"
        )
    if not smoothing_px >= 0 or not least_distance_px > 0 or not 0 <= least_depth <= 1:
        raise ValueError(
            f"expected smoothing_px of 0 or more, least_distance_px above 0 and least_depth from 0 to 1, got "
            f"{smoothing_px}, {least_distance_px} and {least_depth}"
        )
    labels = np.zeros(foreground.shape, np.int32)
    if not foreground.any():
        return labels
    inside = cv2.copyMakeBorder(foreground.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    height = np.asarray(cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)
    if foreground.all():
        height[:] = 1.0  # no outside to be far from
    if smoothing_px > 0:
        height = np.asarray(cv2.GaussianBlur(height, (0, 0), smoothing_px), np.float32)
    height[inside == 0] = -1
    height[[0, -1]], height[:, [0, -1]] = -1, -1
    pixel = np.flatnonzero(height.ravel() >= 0)
    summit = _summits(height, pixel)
    labels[foreground] = _joined(height, pixel, summit, least_distance_px, least_depth)
    return consecutive(labels)


def _summits(height: NDArray[np.float32], pixel: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return for each pixel of the foreground which one of them, 0 .. M - 1, it comes to by climbing."""
    width, flat = height.shape[1], height.ravel()
    best, highest = pixel.copy(), flat[pixel]
    for step in (-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1):
        beside = pixel + step
        value = flat[beside]
        better = value > highest
        best[better], highest[better] = beside[better], value[better]
    number = np.zeros(len(flat), np.intp)
    number[pixel] = np.arange(len(pixel))
    up = number[best]
    while True:
        higher = up[up]
        if np.array_equal(higher, up):
            return up
        up = higher


def _joined(
    height: NDArray[np.float32], pixel: NDArray[np.intp], summit: NDArray[np.intp], least_px: float, least_depth: float
) -> NDArray[np.int32]:
    """Return the cell of each pixel, from 1, after summits too near or too little parted have been joined."""
    width, flat = height.shape[1], height.ravel()
    is_top = summit == np.arange(len(summit))
    tops, basin = np.flatnonzero(is_top), (np.cumsum(is_top) - 1)[summit]
    of = np.full(len(flat), -1, np.intp)
    of[pixel] = basin
    pairs, passes = [], []
    for step in (1, width):
        a, b = of[pixel], of[pixel + step]
        border = np.flatnonzero((b >= 0) & (a != b))
        a, b = a[border], b[border]
        pairs.append(np.minimum(a, b) * len(tops) + np.maximum(a, b))
        passes.append(np.minimum(flat[pixel[border]], flat[pixel[border] + step]))
    pair, level = np.concatenate(pairs), np.concatenate(passes)
    order = np.lexsort((pair, -level))
    _, first = np.unique(pair[order], return_index=True)  # the highest pass of each pair
    order = order[np.sort(first)]
    parent = list(range(len(tops)))
    peak = flat[pixel[tops]].tolist()
    y, x = (each.tolist() for each in np.divmod(pixel[tops], width))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    for code, saddle in zip(pair[order].tolist(), level[order].tolist(), strict=True):
        higher, lower = sorted((root(code // len(tops)), root(code % len(tops))), key=lambda k: (-peak[k], k))
        near = (y[higher] - y[lower]) ** 2 + (x[higher] - x[lower]) ** 2 < least_px**2
        if higher != lower and (near or saddle > (1 - least_depth) * peak[lower]):
            parent[lower] = higher
    return np.asarray(np.array([root(k) + 1 for k in range(len(tops))], np.int32)[basin])
