"""The deployed graph for cells: camera pixels in, maps of the same size out, which the runtime makes cells of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneframe.trainer.cell_contrast import BLUR_PX, HALF_HEIGHT, LocalContrast
from oneframe.trainer.cellulus_network import MULTIPLE_PX, CellulusNetwork

if TYPE_CHECKING:
    from oneframe.trainer.cell_scale import WorkingScale

STEEP = 20.0
"""Logit per noise floor by which the relief exceeds the least one."""
MARGIN_PX = 16
"""A frame's border pixels are repeated so far, working pixels, as those of crops were in training."""


def to_working_scale(image: Tensor, scale: WorkingScale) -> Tensor:
    """Return an image (H, W) at the scale of the network, (1, 1, h, w)."""
    pixels = image[None, None]
    if scale.pooling > 1:
        more = scale.pooling - 1
        pixels = F.avg_pool2d(F.pad(pixels, (0, more, 0, more), mode="replicate"), scale.pooling)
    if scale.zoom != 1:
        pixels = F.interpolate(pixels, scale_factor=float(scale.zoom), mode="bilinear", align_corners=False)
    return pixels


def to_camera_scale(maps: Tensor, scale: WorkingScale, height: int, width: int) -> Tensor:
    """Return maps (1, C, h, w) at the camera's scale, (C, height, width)."""
    if scale.factor == 1:
        return maps[0]
    if scale.zoom != 1:
        maps = F.interpolate(maps, scale_factor=float(1 / scale.zoom), mode="bilinear", align_corners=False)
    if scale.pooling > 1:
        maps = F.interpolate(maps, scale_factor=float(scale.pooling), mode="bilinear", align_corners=False)
    # where the sizes do not divide, a row or column is missing: the last one stands in
    maps = F.pad(maps, (0, 3 * scale.pooling, 0, 3 * scale.pooling), mode="replicate")
    return maps[0, :, :height, :width]


def with_margin(pixels: Tensor, multiple_px: int) -> Tensor:
    """Return pixels (1, 1, h, w) with `MARGIN_PX` around, and as many more below and right as make (h, w) multiples."""
    above = multiple_px - 1
    # replicated, not reflected: a frame may be smaller than the margin
    padded = F.pad(pixels, (MARGIN_PX, MARGIN_PX + above, MARGIN_PX, MARGIN_PX + above), mode="replicate")
    height, width = ((side + above) // multiple_px * multiple_px + 2 * MARGIN_PX for side in pixels.shape[-2:])
    return padded[..., :height, :width]


class CellGraph(nn.Module):
    """Contrast and network: the probability of being a cell and the offset to the cell's centre, of every pixel.

    Parameters
    ----------
    network : CellulusNetwork or None
        None: the classical criterion alone, without offsets.
    sign : float
        1: bright cells, -1: dark ones.
    scale : WorkingScale
    floor : float
        Noise floor of the contrast, counts at the working scale.
    least_relief : float
        What rises less above its surroundings is no cell, whatever the network says, counts.
    threshold : float
        Of the classical criterion: likewise.
    level : float or None
        Of the classical criterion: one threshold for the frame, in place of half the local contrast.
    blur_px : float
        Of the classical criterion: blur of the pixels, working pixels.
    least_contrast : float
        Where the local top rises less, there is no cell, counts; unlike the least relief it does not trim outlines.
    """

    def __init__(
        self,
        network: CellulusNetwork | None,
        *,
        sign: float,
        scale: WorkingScale,
        floor: float,
        least_relief: float,
        threshold: float,
        level: float | None = None,
        blur_px: float = BLUR_PX,
        least_contrast: float = 0.0,
    ) -> None:
        super().__init__()
        self.network, self.contrast = network, LocalContrast(sign, blur_px)
        self.scale, self.floor, self.least_relief = scale, floor, least_relief
        self.threshold, self.level, self.least_contrast = threshold, level, least_contrast
        self.maps: tuple[str, ...] = ("foreground",)
        if network is not None:
            self.maps += ("offset_y_px", "offset_x_px")

    def forward(self, image: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        """Return `maps`, each (H, W), for an image (H, W) and the lowest probability of the foreground.

        `foreground` is 0 where the probability is below the threshold; offsets are camera pixels.
        """
        height, width = image.shape
        pixels = to_working_scale(image.to(torch.float32), self.scale)
        told = self.told(pixels)
        maps = to_camera_scale(told, self.scale, height, width)
        likely = torch.sigmoid(maps[0])
        foreground = torch.where(likely >= threshold, likely, torch.zeros_like(likely))
        return foreground, *(offset / self.scale.factor for offset in maps[1:])

    def told(self, pixels: Tensor) -> Tensor:
        """Return logit and offsets at the working scale, (1, C, h, w), for pixels (1, 1, h, w)."""
        height, width = pixels.shape[-2:]
        padded = with_margin(pixels, MULTIPLE_PX)
        if self.network is not None:
            seen, relief, contrast = self.contrast.normalised(padded, self.floor)
            above = relief - self.least_relief
            if self.least_contrast:
                above = torch.minimum(above, contrast - self.least_contrast)
            told = self.network(seen, STEEP * above / self.floor)
        else:
            relief, contrast, smooth = self.contrast(padded)
            if self.level is not None:
                told = (smooth - self.level) / self.floor
            else:
                told = torch.minimum(relief - HALF_HEIGHT * contrast, relief - self.threshold) / self.floor
            if self.least_contrast:
                told = torch.minimum(told, (contrast - self.least_contrast) / self.floor)
        inner: Tensor = told[..., MARGIN_PX : MARGIN_PX + height, MARGIN_PX : MARGIN_PX + width]
        return inner
