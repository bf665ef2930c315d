"""Cellulus' own way from offsets to cells: noise passes, foreground, mean shift, margins. Exact, and slow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.cell_cleanup import shrink, size_filter
from oneframe.runtime.cell_table import scored_table
from oneframe.runtime.detections import Detections
from oneframe.runtime.mean_shift import mean_shift_labels
from oneframe.runtime.noise_passes import noise_foreground, noise_passes

if TYPE_CHECKING:
    from oneframe.runtime.cell_model import Separation

Map = NDArray[np.float32]

_SEED = 2023
"""Of the pixels that are disturbed, anew for each frame: the same frame gives the same cells."""
NOT_SEEN = (
    "no cells: under noise the offsets of all pixels are about equally steady; the frame is empty, or the network has "
    "not learned to tell cells from background: train it with more steps, or without --preset paper"
)
"""Why there are none, each time in the same words."""


def paper_cells(
    maps_of: Callable[[NDArray[Any]], dict[str, Map]], image: NDArray[Any], separation: Separation, threshold: float
) -> Detections:
    """Return the cells of an image (H, W) by its offsets and how steady they are.

    Parameters
    ----------
    maps_of : callable
        `offset_y_px` and `offset_x_px`, (H, W) each, of camera pixels (H, W) of the image's dtype; called once for
        each noise pass.
    threshold : float
        0: the foreground is where the offsets are steadier than Otsu's threshold; up to 1: than a part of it.

    Returns
    -------
    Detections
        `score` is 1 where offsets never change and 0 at Otsu's threshold, mean over the pixels of the cell.

    References
    ----------
    Wolf et al., ICCV 2023, section 3, and the order of its code.
    """
    rng = np.random.default_rng(_SEED)
    whole_counts = image.dtype.kind in "iu"

    def embed(disturbed: Map) -> Map:
        pixels = (np.rint(disturbed) if whole_counts else disturbed).astype(image.dtype)
        maps = maps_of(pixels)
        return np.stack([maps["offset_y_px"], maps["offset_x_px"]])

    offsets, spread = noise_passes(
        embed,
        image.astype(np.float32),
        rng=rng,
        n_passes=separation.passes,
        levels=separation.levels,
        share=separation.share,
        grain_px=separation.grain_px,
    )
    seen = noise_foreground(spread)
    steady = np.zeros_like(spread)
    if seen.two_kinds:
        steady = np.where(seen.pixels, 1 - spread / np.float32(seen.threshold_px), np.float32(0))
    labels = mean_shift_labels(
        offsets, steady > threshold, bandwidth_px=separation.bandwidth_px, rng=rng, sample=separation.sample
    )
    labels = shrink(labels, grow_px=separation.grow_px, shrink_px=separation.shrink_px)
    found = scored_table(size_filter(labels, separation.least_area_px), image, steady)
    return found if seen.two_kinds else replace(found, notes=(NOT_SEEN,))
