"""How much the particles of a frame differ from the boxed one: what the training must be ready for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oneframe.trainer.crops import Box, Extent, Normalisation

FEWEST = 8
"""Particles besides the boxed one from which a spread is believed."""
USUAL_GAIN = (0.7, 1.3)
"""Brightness factors to be ready for when all particles look alike."""


ALIKE = 1.2
"""Ratio of the 90 % to the 10 % quantile of the sizes up to which particles count as equal. Measured: simulated beads
1.10, nuclei 1.4 to 1.6, cells in colonies 3.6."""


@dataclass(frozen=True, slots=True)
class Variety:
    """Factors, from and to, relative to the boxed particle."""

    size: tuple[float, float] = (1.0, 1.0)
    gain: tuple[float, float] = USUAL_GAIN


VARIED = Variety((0.5, 1.5), (0.4, 1.6))
"""For particles of different sizes. Ranges taken from the measured spread instead did worse on nuclei."""


def variety_on(image: NDArray[Any], box: Box, normalisation: Normalisation, extent: Extent) -> Variety:
    """Measure size and brightness of the blobs of a frame (H, W) against the boxed particle.

    Each blob is measured at half of its own peak, after uneven light is taken off. Where sizes are equal, only the
    brightness is widened: a tracker of equal beads in a crowd gets less precise if it has to expect others.
    """
    frame = (image.astype(np.float32) - np.float32(normalisation.offset)) / np.float32(normalisation.scale)
    quarter = cv2.resize(frame, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    light = ndimage.median_filter(quarter, max(3, round(extent.diameter_px)), mode="nearest")
    inside = box.cut(frame)
    sign = np.float32(np.sign(inside.flat[np.abs(inside).argmax()]))
    height, width = frame.shape
    smooth = cv2.blur((frame - cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)) * sign, (3, 3))
    own = float(box.cut(smooth).max())
    limit = max(0.2 * own, 2 * normalisation.noise)
    window = max(3, int(0.7 * extent.diameter_px) | 1)
    rows, columns = np.nonzero((smooth == ndimage.maximum_filter(smooth, window)) & (smooth > limit))
    blobs = [
        (np.hypot(y - extent.y_px, x - extent.x_px), *measured)
        for y, x in zip(rows.tolist(), columns.tolist(), strict=True)
        if (measured := _blob(smooth, y, x, int(extent.diameter_px) + 2)) is not None
    ]
    if not blobs:
        return Variety()
    boxed = min(blobs)
    reach = box.side_px / 2
    others = np.array([blob[1:] for blob in blobs if blob[0] > reach or blob is boxed]) / boxed[1:]
    if len(others) <= FEWEST:
        return Variety()
    small, large = np.quantile(others[:, 0], [0.1, 0.9])
    if large / small > ALIKE:
        return VARIED
    dim, bright = np.quantile(others[:, 1], [0.05, 0.95])
    gain = max(0.15, USUAL_GAIN[0] * min(1.0, float(dim))), USUAL_GAIN[1] * min(1.5, max(1.0, float(bright)))
    return Variety(gain=(round(gain[0], 2), round(gain[1], 2)))


def _blob(smooth: NDArray[np.float32], y: int, x: int, reach: int) -> tuple[float, float] | None:
    """Return edge and height of the blob that peaks at (y, x); None if it is cut or does not end within reach."""
    if not (reach <= y < smooth.shape[0] - reach and reach <= x < smooth.shape[1] - reach):
        return None
    part = smooth[y - reach : y + reach + 1, x - reach : x + reach + 1]
    peak = float(part[reach, reach])
    labels, _ = ndimage.label(part > 0.5 * peak)
    mask = labels == labels[reach, reach]
    if mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any():
        return None
    return float(np.sqrt(mask.sum())), peak
