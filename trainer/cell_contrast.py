"""What stands out of its surroundings, and by how much: pixels become independent of brightness and of uneven light.

The same layers look at a frame when its cells are proposed, in training, and inside the deployed graph.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REFERENCE_PX = 24.0
"""Cell diameter at the scale on which contrast and network work."""
STRIDE_PX = 4
"""Surroundings are looked at on a grid this coarse; sides must be multiples."""
REACH_PX = 56
"""Pixels further away than this have no part in a pixel's contrast."""
HALF_HEIGHT = 0.45
"""Of the contrast: outlines at half height, and a little outside it, where the blurred edge of a cell is seen."""

BLUR_PX, COARSE_BLUR_PX = REFERENCE_PX / 20, REFERENCE_PX / 10
"""Of the pixels whose contrast is looked at; the coarse one where texture or noise has a grain of its own."""
_LOW_PX, _HIGH_PX = 1.5 * REFERENCE_PX, 0.8 * REFERENCE_PX
"""Width of the windows in which background and top are looked for: beyond one cell, within one cell."""
_LOW_BLUR_PX, _HIGH_BLUR_PX = REFERENCE_PX / 2, REFERENCE_PX / 3


class LocalContrast(nn.Module):
    """Relief of a pixel above the local background, the contrast (relief of the local top), and the smoothed pixels.

    Background and top are the lowest and highest values near by, smoothed: an adaptive threshold at a share of the
    contrast follows dim and bright cells, uneven light and bleaching alike.

    Parameters
    ----------
    sign : float
        1: cells are brighter than their surroundings, -1: darker.
    blur_px : float
        Standard deviation of the blur of the smoothed pixels.

    References
    ----------
    Bernsen, Proc. 8th Int. Conf. on Pattern Recognition (1986): thresholds between local extremes.
    """

    fine: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, sign: float, blur_px: float = BLUR_PX) -> None:
        super().__init__()
        self.sign = sign
        for name, sigma in (
            ("fine", blur_px), ("low", _LOW_BLUR_PX / STRIDE_PX), ("high", _HIGH_BLUR_PX / STRIDE_PX)
        ):  # fmt: skip
            self.register_buffer(name, _gaussian(sigma))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return all three for images (B, 1, H, W), sides multiples of `STRIDE_PX`, camera counts times `sign`."""
        low, contrast = (_enlarged(each, STRIDE_PX) for each in self._surroundings(self.sign * pixels))
        smooth = _blurred(self.sign * pixels, self.fine)
        return smooth - low, contrast, smooth

    def normalised(self, pixels: Tensor, floor: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """Return what a network sees of images (B, 1, H, W), their relief and contrast, on every second pixel.

        Parameters
        ----------
        pixels : (B, 1, H, W)
            Sides multiples of `STRIDE_PX`, camera counts.
        floor : float or (B, 1, 1, 1)
            Contrasts below it are taken for it, counts, so that noise stays small.

        Returns
        -------
        seen : (B, 4, H / 2, W / 2)
            The pixels of each square of 2 x 2 side by side: 0 in the background, about 1 on cells.
        relief : (B, 1, H / 2, W / 2)
            Mean of the square above the local background, counts.
        contrast : (B, 1, H / 2, W / 2)
            Relief of the local top, counts; not raised to the floor.
        """
        pixels = self.sign * pixels
        low, contrast = (_enlarged(each, STRIDE_PX // 2) for each in self._surroundings(pixels))
        above = F.pixel_unshuffle(pixels, 2) - low
        raised = contrast.clamp(min=floor) if isinstance(floor, float) else torch.maximum(contrast, floor)
        return above / raised, above.mean(1, keepdim=True), contrast

    def _surroundings(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return local background and contrast on a grid of `STRIDE_PX`."""
        coarse = F.avg_pool2d(pixels, STRIDE_PX)
        low = _blurred(-_highest(-coarse, _LOW_PX), self.low)
        high = _blurred(_highest(coarse, _HIGH_PX), self.high)
        return low, (high - low).clamp(min=0)


def _enlarged(images: Tensor, factor: int) -> Tensor:
    return F.interpolate(images, scale_factor=float(factor), mode="bilinear", align_corners=False)


def _gaussian(sigma_px: float) -> Tensor:
    reach = math.ceil(3 * sigma_px)
    weight = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float32) / sigma_px) ** 2)
    return weight / weight.sum()


def _blurred(images: Tensor, weight: Tensor) -> Tensor:
    reach = len(weight) // 2
    across = F.conv2d(F.pad(images, (reach, reach, 0, 0), "replicate"), weight[None, None, None, :])
    return F.conv2d(F.pad(across, (0, 0, reach, reach), "replicate"), weight[None, None, :, None])


def _highest(coarse: Tensor, width_px: float) -> Tensor:
    """Return the highest value within a square about each, on the coarse grid."""
    width = round(width_px / STRIDE_PX) | 1
    return F.max_pool2d(F.pad(coarse, (width // 2,) * 4, "replicate"), width, stride=1)
