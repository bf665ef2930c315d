"""How large the cells of a frame are, whether bright or dark, and the scale on which they are looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from oneframe.trainer.cell_contrast import REFERENCE_PX

Image = NDArray[np.float32]

_GRID_PX, _REACH_PX = 8, 120
"""Coarsest grid of the graphs for cells, and how far from a pixel they look, contrast included; working pixels."""
_SMALLEST_PX, _LARGEST_PX = 5.0, 160.0
"""Diameters that are looked for, camera pixels."""
_CLEAR = 0.2
"""Blobs fainter than this share of the strongest have no say."""


@dataclass(frozen=True, slots=True)
class WorkingScale:
    """From camera pixels to the scale of the network: mean over `pooling` pixels, then enlarged by `zoom`.

    The zoom is a ratio of small numbers, so that tiles of a frame can begin where both grids meet.
    """

    pooling: int
    zoom: Fraction

    @property
    def factor(self) -> float:
        """Pixels of the network per camera pixel."""
        return float(self.zoom) / self.pooling

    @property
    def step_px(self) -> int:
        """Camera pixels after which all grids of the graph begin anew: where tiles of a frame may begin."""
        return _GRID_PX * self.pooling * self.zoom.denominator

    @property
    def halo_px(self) -> int:
        """Camera pixels around a tile that a graph has to see for the tile's own values; a multiple of `step_px`."""
        return math.ceil(_REACH_PX / self.factor / self.step_px) * self.step_px

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of a frame at this scale."""
        return tuple(math.floor(-(-side // self.pooling) * self.zoom) for side in (height, width))  # type: ignore[return-value]


def working_scale(diameter_px: float) -> WorkingScale:
    """Return the scale at which a cell is about `REFERENCE_PX` across, exactly within 8 %."""
    wanted = REFERENCE_PX / diameter_px
    pooling = max(1, math.floor(1 / wanted))
    zoom = wanted * pooling
    if 1 / 1.15 < zoom < 1.15:
        return WorkingScale(pooling, Fraction(1))
    ratios = {Fraction(p, q) for q in range(1, 7) for p in range(1, 8 * q)}
    return WorkingScale(
        pooling, min(ratios, key=lambda each: (round(abs(math.log(each / zoom)) / 0.08), each.denominator))
    )


def rescaled(image: NDArray[np.generic], scale: WorkingScale) -> Image:
    """Return a frame (H, W) at the scale of the network, as its graph does."""
    import torch

    from oneframe.trainer.cellulus_graph import to_working_scale

    with torch.no_grad():
        pixels = torch.from_numpy(np.ascontiguousarray(image, np.float32))
        return to_working_scale(pixels, scale)[0, 0].numpy()


def likely_diameters(image: NDArray[np.generic], sign: float) -> list[float]:
    """Return the diameters of the blobs that stand out, camera pixels, the likeliest first, 3 at most.

    Parameters
    ----------
    image : (H, W)
        Camera pixels.
    sign : float
        1: bright cells, -1: dark ones.

    References
    ----------
    Lindeberg, Int. J. Comput. Vis. 30, 79 (1998): a blob's size is where its scale-normalised Laplacian peaks.
    """
    sizes = np.geomspace(_SMALLEST_PX, min(_LARGEST_PX, min(image.shape) / 2), 32)
    number, strength = _blobs(sign * image.astype(np.float32), sizes)
    if not len(strength):
        return []
    clear = strength > _CLEAR * np.percentile(strength, 99)
    votes = np.bincount(number[clear], strength[clear], minlength=len(sizes))
    smooth = np.convolve(votes, [0.2, 0.6, 1.0, 0.6, 0.2], "same")
    peaks = [k for k in range(len(smooth)) if smooth[k] > 0 and smooth[k] == smooth[max(0, k - 3) : k + 4].max()]
    return [float(sizes[k]) for k in sorted(peaks, key=lambda k: -smooth[k])[:3]]


def _blobs(image: Image, sizes: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return of each blob, a peak in space and scale, the number of its size and its strength."""
    import cv2

    image = image - np.float32(np.median(image))
    responses = []
    for size in sizes:
        sigma = size / (2 * math.sqrt(2))
        shrink = max(1, int(sigma / 4))
        small = cv2.resize(
            image, (max(4, image.shape[1] // shrink), max(4, image.shape[0] // shrink)), interpolation=cv2.INTER_AREA
        )
        own = math.sqrt(max((sigma / shrink) ** 2 - (1 - shrink**-2) / 12, 0.3))
        smooth = cv2.GaussianBlur(small, (0, 0), own, borderType=cv2.BORDER_REFLECT)
        responses.append(np.asarray(-((sigma / shrink) ** 2) * cv2.Laplacian(smooth, cv2.CV_32F, ksize=1)))
    kernel = np.ones((3, 3), np.uint8)
    numbers, strengths = [], []
    for k in range(1, len(sizes) - 1):
        here = responses[k]
        peak = (here >= cv2.dilate(here, kernel)) & (here > 0)
        for other in (responses[k - 1], responses[k + 1]):
            beside = cv2.resize(other, here.shape[::-1], interpolation=cv2.INTER_LINEAR)
            peak &= here > 0.999 * cv2.dilate(beside, kernel)
        strengths.append(here[peak])
        numbers.append(np.full(int(peak.sum()), k))
    return np.concatenate(numbers), np.concatenate(strengths)
