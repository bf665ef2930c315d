"""What a network of StarDist learns: how deep a pixel lies in its cell, and how far the outline is along rays.

Schmidt et al., MICCAI 2018. The rays are exact for the outline of the pixels: none is marched past an edge.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.star_polygons import ray_directions

N_RAYS = 16
"""As in the supported supervision of Cellulus."""


def star_targets(labels: NDArray[Any], n_rays: int = N_RAYS) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return probability and ray distances of every pixel.

    Parameters
    ----------
    labels : (H, W) integer
        Cells above 0, in any numbers; they may touch. All else is background.
    n_rays : int
        Along `ray_directions`.

    Returns
    -------
    prob : (H, W) float32
        Distance to the nearest pixel outside the cell over its largest in the cell, 0..1; beyond the border of the
        image nothing is outside, so that a cut cell is likeliest where it is cut. 0 in the background.
    rays : (n_rays, H, W) float32
        Distances from the pixel's centre to where its cell or the image ends, px; 0 in the background.

    Raises
    ------
    ValueError
        If it is no label image or there are fewer than 3 rays.
    """
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or n_rays < 3:
        raise ValueError(
            f"expected a label image (H, W) of integers and 3 or more rays, got {labels.dtype} of shape "
            f"{labels.shape} and {n_rays} rays"
        )
    cells = np.where(labels > 0, labels, 0).astype(np.int64)
    return _depth(cells), _rays(cells, n_rays)


def _depth(cells: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the normalised distance of each pixel to the outside of its cell."""
    from scipy.ndimage import distance_transform_edt, find_objects

    prob = np.zeros(cells.shape, np.float32)
    _, number = np.unique(cells, return_inverse=True)
    number = number.reshape(cells.shape) + (0 if (cells == 0).any() else 1)
    for k, box in enumerate(find_objects(number), 1):
        around = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        own = number[around] == k
        # not cv2.distanceTransform: its last digit changes with where the memory lies
        depth = np.ones(own.shape) if own.all() else distance_transform_edt(own)
        prob[around][own] = depth[own] / depth[own].max()
    return prob


def _rays(cells: NDArray[np.int64], n_rays: int) -> NDArray[np.float32]:
    """Return the distance to the first pixel of another value, (n_rays, H, W)."""
    height, width = cells.shape
    padded = np.pad(cells, 1).ravel()
    inside = np.flatnonzero(padded)
    own = padded[inside]
    rays = np.zeros((n_rays, height, width), np.float32)
    longest = max(height, width) + 1
    for ray, (dy, dx) in zip(rays, ray_directions(n_rays).T, strict=True):
        lengths = np.zeros(len(inside), np.float32)
        going, at = np.arange(len(inside)), inside
        for distance, down, right in _crossings(dy, dx, longest):
            if not len(going):
                break
            alive = padded[at + (down * (width + 2) + right)] == own[going]
            if not alive.all():
                lengths[going[~alive]] = distance
                going, at = going[alive], at[alive]
        y, x = np.divmod(inside, width + 2)
        ray[y - 1, x - 1] = lengths
    return rays


def _crossings(dy: float, dx: float, longest_px: int) -> list[tuple[float, int, int]]:
    """Return for each pixel edge that a ray from a pixel's centre crosses the distance and the pixel entered there."""
    edges = np.arange(longest_px) + 0.5
    distance = np.sort(np.concatenate([edges / abs(d) for d in (dy, dx) if abs(d) > 1e-9]))
    distance = distance[np.append(np.diff(distance) > 1e-9, True)]  # through a corner: one crossing
    distance = distance[distance < longest_px * math.sqrt(2)]
    within = distance + np.append(np.diff(distance), 1e-3) / 2
    down, right = (np.rint(within * d).astype(int) for d in (dy, dx))
    return list(zip(distance.tolist(), down.tolist(), right.tolist(), strict=True))
