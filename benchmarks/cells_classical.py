"""The field's usual recipe for cells, in plain scikit-image with nothing of oneframe in it.

Imported by the benchmarks of cells. A threshold of the image blurred by 1 px, the Euclidean distance to outside, its
local maxima, a seeded watershed: scikit-image's own example of segmentation with `peak_local_max` and `watershed`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_li, threshold_otsu
from skimage.measure import label
from skimage.morphology import remove_small_objects
from skimage.segmentation import watershed


def otsu_watershed(image: NDArray[Any], diameter_px: float) -> NDArray[np.int32]:
    """Return labels (H, W) of an image (H, W) with bright cells of this diameter, by Otsu's threshold."""
    smooth = gaussian(image.astype(np.float64), 1)
    return _watershed(smooth > threshold_otsu(smooth), diameter_px)


def li_watershed(image: NDArray[Any], diameter_px: float) -> NDArray[np.int32]:
    """Return the same by Li's threshold."""
    smooth = gaussian(image.astype(np.float64), 1)
    return _watershed(smooth > threshold_li(smooth), diameter_px)


def _watershed(foreground: NDArray[np.bool_], diameter_px: float) -> NDArray[np.int32]:
    distance = ndimage.distance_transform_edt(foreground)
    apart = max(1, round(0.4 * diameter_px))
    summits = peak_local_max(distance, min_distance=apart, labels=label(foreground), exclude_border=False)
    markers = np.zeros(foreground.shape, np.int32)
    markers[tuple(summits.T)] = np.arange(1, len(summits) + 1)
    cells = watershed(-distance, markers, mask=foreground)
    least_px = int(0.1 * np.pi * diameter_px**2 / 4)
    return np.asarray(remove_small_objects(cells, max_size=least_px), np.int32)
