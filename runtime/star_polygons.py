"""Probabilities and rays become cells: the likeliest star-shaped polygons that do not cover each other.

The method is StarDist's (Schmidt et al., MICCAI 2018). Polygons are filled exactly: a pixel belongs to one if its
centre does, wherever between pixels the corners lie.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def ray_directions(n_rays: int) -> Array:
    """Return unit vectors (2, R), (dy, dx): ray 0 points along y, a quarter further along x."""
    angle = 2 * math.pi / n_rays * np.arange(n_rays)
    return np.stack([np.cos(angle), np.sin(angle)])


def star_labels(
    prob: NDArray[np.float32],
    rays: NDArray[np.float32],
    *,
    grid: float,
    origin_px: float = 0.0,
    threshold: float,
    nms_overlap: float = 0.4,
    shape: tuple[int, int],
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return a label image and the score of each cell.

    Parameters
    ----------
    prob : (h, w) float32
        That a place lies deep in a cell, 0..1; value [i, j] is of (grid i + origin_px, grid j + origin_px) of the
        image.
    rays : (R, h, w) float32
        Distances from that place to the outline of its cell along `ray_directions(R)`, px of the image.
    grid : float
        Pixels of the image from one value to the next. On a grid coarser than 2 px overlaps are counted on pixels half
        as wide: large cells take no longer than small ones.
    origin_px : float
        Where the first value lies.
    threshold : float
        Least probability of a cell's middle.
    nms_overlap : float
        Of two cells that share more than this part of the smaller one the less likely is dropped, 0..1. As in
        StarDist, so that a cell within another one goes too, which the intersection over union would leave.
    shape : (int, int)
        Height and width of the image.

    Returns
    -------
    labels : (H, W) int32
        0 is background, cells 1 .. N from top to bottom of their middles; the likelier covers the other.
    score : (N,) float32
        Probability at the middle. Without chance; a part of the image gives the same cells as the whole wherever it
        knows all within `halo_px` around and begins at a multiple of the grid.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    if (
        prob.ndim != 2
        or rays.ndim != 3
        or rays.shape[1:] != prob.shape
        or len(rays) < 3
        or any(abs(grid * cells - n) > 2 * grid + 1 for n, cells in zip(shape, prob.shape, strict=True))
    ):
        raise ValueError(
            f"expected prob (h, w) and 3 or more rays (R, h, w) of an image {tuple(shape)} on a grid of {grid:g} px, "
            f"got {prob.shape} and {rays.shape}"
        )
    row, column = _middles(prob, threshold)
    yx: Array = grid * np.stack([row, column], 1).astype(np.float64) + origin_px
    inside = (yx < np.array(shape) - 0.5).all(1)
    row, column, yx = row[inside], column[inside], yx[inside]
    score = prob[row, column]
    reach = np.nan_to_num(rays[:, row, column].T.astype(np.float64), nan=0.0).clip(0, float(max(shape)))  # (N, R)
    corners = _round(reach)[:, None] * ray_directions(2 * len(rays))  # (N, 2, 2R) from the middle: alike in every part
    coarse = max(1.0, grid / 2)
    on_coarse = tuple(math.ceil(side / coarse) for side in shape)
    cell, pixel = _pixels(corners / coarse, (yx + 0.5) / coarse - 0.5, on_coarse)
    kept = _not_covered(cell, pixel, len(yx), on_coarse, nms_overlap)
    if coarse > 1:
        order = np.flatnonzero(kept)
        cell, pixel = _pixels(corners[order], yx[order], shape)
        cell = order[cell]
    shown = kept[cell]
    top = _paint(cell[shown], pixel[shown], shape)
    seen = np.unique(top[top >= 0])  # one may be hidden by two
    order = seen[np.lexsort((yx[seen, 1], yx[seen, 0]))]
    number = np.zeros(len(yx) + 1, np.int32)
    number[order] = np.arange(1, len(order) + 1)
    return np.asarray(number[top]), np.asarray(score[order], np.float32)


def halo_px(longest_ray_px: float, grid: int) -> int:
    """Return what a part of an image must know around itself so that its cells are those of the whole image.

    A cell's pixel; its middle; its likelier rivals, two rays further; theirs. Longer chains of rivals are not covered.
    """
    return grid * math.ceil((5 * longest_ray_px + 2 * grid) / grid)


def fill_polygon(corners_yx: Array, shape: tuple[int, int]) -> Index:
    """Return the pixels (flat indices) whose centres lie within a polygon (V, 2), even-odd, of px of the image."""
    return _pixels(corners_yx.T[None], np.zeros((1, 2)), shape)[1]


def _middles(prob: NDArray[np.float32], threshold: float) -> tuple[Index, Index]:
    """Return rows and columns of the local maxima above the threshold, likeliest first, then from top to bottom."""
    import cv2

    peak = (prob >= threshold) & (prob >= cv2.dilate(np.ascontiguousarray(prob), np.ones((3, 3), np.uint8)))
    row, column = np.nonzero(peak)
    order = np.argsort(-prob[row, column], kind="stable")
    return row[order], column[order]


def _round(reach: Array) -> Array:
    """Return rays (N, 2R), a mean one between any two: with 16 corners a circle would lose 2.5 % of its area."""
    n, n_rays = reach.shape
    return np.stack([reach, (reach + np.roll(reach, -1, axis=1)) / 2], 2).reshape(n, 2 * n_rays)


def _pixels(corners: Array, middles: Array, shape: tuple[int, ...]) -> tuple[Index, Index]:
    """Return polygon and pixel (flat index) of all pixels whose centres lie within polygons, in order of the polygons.

    Corners (N, 2, V) count from the middles (N, 2). Every edge is cut with the rows between its ends; the columns
    between an odd cut of a row and the next are inside.
    """
    v = corners.shape[2]
    middle = np.floor(middles).astype(np.int64)
    corners = corners + (middles - middle)[..., None]
    y0, x0 = corners[:, 0].ravel(), corners[:, 1].ravel()
    y1, x1 = (np.roll(corners[:, axis], -1, axis=1).ravel() for axis in (0, 1))
    first = np.ceil(np.minimum(y0, y1)).astype(np.int64)
    n_rows = np.ceil(np.maximum(y0, y1)).astype(np.int64) - first  # half open: a corner is cut once
    edge, step = _ragged(n_rows)
    row = first[edge] + step
    cut = x0[edge] + (x1 - x0)[edge] * ((row - y0[edge]) / (y1 - y0)[edge])
    polygon = edge // v
    order = np.lexsort((cut, row, polygon))
    polygon, row, cut = polygon[order][::2], row[order][::2], cut[order]
    row += middle[polygon, 0]
    left, right = (np.ceil(side).astype(np.int64) + middle[polygon, 1] for side in (cut[::2], cut[1::2]))
    left, right = left.clip(0), right.clip(None, shape[1])
    seen = (row >= 0) & (row < shape[0]) & (right > left)
    polygon, row, left, right = polygon[seen], row[seen], left[seen], right[seen]
    span, step = _ragged(right - left)
    return polygon[span], row[span] * shape[1] + left[span] + step


def _ragged(lengths: Index) -> tuple[Index, Index]:
    """Return for each element of rows of such lengths its row and its place in it."""
    row = np.repeat(np.arange(len(lengths)), lengths)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _not_covered(cell: Index, pixel: Index, n: int, shape: tuple[int, ...], overlap: float) -> NDArray[np.bool_]:
    """Return which cells, likeliest first, no likelier one that stays overlaps by more than allowed."""
    from scipy.sparse import csr_matrix

    area = np.bincount(cell, minlength=n)
    begin = np.concatenate([[0], np.cumsum(area)])
    member = csr_matrix((np.ones(len(pixel), np.int32), pixel, begin), shape=(n, shape[0] * shape[1]))
    shared: Any = (member @ member.T).tocoo()
    a, b = shared.row, shared.col
    rivals = (a < b) & (shared.data > overlap * np.minimum(area[a], area[b]))
    a, b = a[rivals], b[rivals]
    order = np.argsort(a, kind="stable")
    b, begin = b[order], np.searchsorted(a[order], np.arange(n + 1))
    stays = area > 0
    for i in range(n):
        if stays[i]:
            stays[b[begin[i] : begin[i + 1]]] = False
    return stays


def _paint(cell: Index, pixel: Index, shape: tuple[int, int]) -> Index:
    """Return the first cell (H, W) of each pixel, -1 where there is none."""
    top = np.full(shape, -1, np.int64)
    top.ravel()[pixel[::-1]] = cell[::-1]  # the last write stays
    return top
