"""Offsets become cells: every pixel votes for where its cell's centre lies, and the peaks of the votes are the cells.

What mean shift finds by moving every point uphill is read off one blurred image of votes: the same peaks, a thousand
times sooner, without chance.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIGMA = 1 / 3
"""Blur of the votes, bandwidths: a Gaussian that ends about where mean shift's flat kernel does."""


def vote_labels(
    offsets: NDArray[np.float32],
    foreground: NDArray[np.bool_],
    *,
    bandwidth_px: float,
    least_votes: float,
) -> NDArray[np.int32]:
    """Return a label image from the offsets of the foreground's pixels.

    Parameters
    ----------
    offsets : (2, H, W) float
        (dy, dx) from each pixel to the centre of its cell, px; read in the foreground only. Ends outside the image
        count at its border, and a pixel whose offset is not finite is background.
    foreground : (H, W) bool
        Pixels that belong to cells.
    bandwidth_px : float
        No two centres are closer; 0.4 to 0.5 cell diameters.
    least_votes : float
        Fewer pixels than this on one spot make no cell; 0.1 of a cell's area, for instance.

    Returns
    -------
    (H, W) int32
        0 is background, cells 1 .. N from top to bottom. Each foreground pixel goes to the centre nearest to its end,
        however far, as in scikit-learn's `MeanShift.predict`. A part of the image gives the same cells as the whole
        wherever it knows all pixels within `halo_px` around.

    Raises
    ------
    ValueError
        If the shapes do not fit or a number is not above 0.
    """
    import cv2

    if offsets.shape != (2, *foreground.shape) or foreground.ndim != 2 or foreground.dtype != np.bool_:
        raise ValueError(
            f"expected offsets (2, H, W) and a boolean foreground (H, W), got {offsets.dtype} of shape {offsets.shape} "
            f"and {foreground.dtype} of shape {foreground.shape}"
        )
    if not bandwidth_px > 0 or not least_votes > 0:
        raise ValueError(f"bandwidth_px and least_votes must be above 0, got {bandwidth_px} and {least_votes}")
    height, width = foreground.shape
    labels = np.zeros((height, width), np.int32)
    pixel = np.flatnonzero(foreground)
    y, x = offsets.reshape(2, -1)[:, pixel]
    known = np.isfinite(y) & np.isfinite(x)
    if not known.all():
        pixel, y, x = pixel[known], y[known], x[known]
    if not len(pixel):
        return labels
    row = np.rint(y + (pixel // width)).clip(0, height - 1).astype(np.int32)
    column = np.rint(x + (pixel % width)).clip(0, width - 1).astype(np.int32)
    end = row * width + column
    votes = np.bincount(end, minlength=height * width).reshape(height, width).astype(np.float32)
    sigma_px = max(0.5, _SIGMA * bandwidth_px)
    blurred = cv2.GaussianBlur(votes, _kernel(sigma_px), sigma_px, borderType=cv2.BORDER_CONSTANT)
    peaks = _peaks(np.asarray(blurred, np.float32), bandwidth_px, least_votes / (2 * math.pi * sigma_px**2))
    if not peaks.any():
        return labels
    _, nearest = cv2.distanceTransformWithLabels(
        (~peaks).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP
    )
    labels.ravel()[pixel] = nearest.ravel()[end]
    return consecutive(labels)


def halo_px(bandwidth_px: float, longest_offset_px: float) -> int:
    """Return what a part of an image must know around itself so that its cells are those of the whole image."""
    sigma_px = max(0.5, _SIGMA * bandwidth_px)
    # a pixel's end; its centre, one cell radius or so further; the centre's rivals; the votes of these; theirs
    return math.ceil(3 * longest_offset_px + 3 * bandwidth_px + _kernel(sigma_px)[0])


def consecutive(labels: NDArray[Any]) -> NDArray[np.int32]:
    """Return the label image with numbers 1 .. N, in the order in which the cells begin from top to bottom."""
    flat = labels.ravel()
    n = int(flat.max(initial=0))
    first = np.full(n + 1, len(flat), np.int64)
    inside = np.flatnonzero(flat)
    first[flat[inside[::-1]]] = inside[::-1]  # the last write stays: the first pixel
    present = np.flatnonzero(first < len(flat))
    number = np.zeros(n + 1, np.int32)
    number[present[np.argsort(first[present], kind="stable")]] = np.arange(1, len(present) + 1)
    return np.asarray(number[labels])


def run_starts(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return (H * W,), where a run of equal labels along a row begins, in a label image of one pixel or more."""
    flat = labels.ravel()
    starts = np.empty(len(flat), bool)
    np.not_equal(flat[1:], flat[:-1], out=starts[1:])
    starts[:: labels.shape[1]] = True
    return starts


def _kernel(sigma_px: float) -> tuple[int, int]:
    side = 2 * math.ceil(3 * sigma_px) + 1
    return side, side


def _peaks(density: NDArray[np.float32], bandwidth_px: float, least: float) -> NDArray[np.bool_]:
    """Return where the votes peak: as high as `least`, and nothing higher within the bandwidth."""
    import cv2
    from scipy.spatial import cKDTree

    top = (density >= cv2.dilate(density, np.ones((3, 3), np.uint8))) & (density >= least)
    _, _, _, middle = cv2.connectedComponentsWithStats(top.view(np.uint8))
    yx = np.rint(middle[1:, ::-1]).astype(np.intp)  # a flat top, as of offsets of 0, is one peak
    height = density[yx[:, 0], yx[:, 1]]
    if len(yx) > 1:
        a, b = cKDTree(yx).query_pairs(bandwidth_px, output_type="ndarray").T  # a < b: of equal ones the first stays
        stays = np.ones(len(yx), bool)
        stays[np.where(height[b] <= height[a] * (1 + 1e-5), b, a)] = False
        yx = yx[stays]
    peaks = np.zeros(density.shape, bool)
    peaks[yx[:, 0], yx[:, 1]] = True
    return peaks
