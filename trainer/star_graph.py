"""The deployed graph of supported supervision: camera pixels in, probability and rays of star-shaped cells out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from oneframe.trainer.cell_contrast import LocalContrast
from oneframe.trainer.cellulus_graph import MARGIN_PX, STEEP, to_working_scale, with_margin
from oneframe.trainer.supported import GRID_PX, MULTIPLE_PX, StarNetwork

if TYPE_CHECKING:
    from oneframe.trainer.cell_scale import WorkingScale


class StarGraph(nn.Module):
    """Contrast and network: how likely each place lies deep in a cell, and how far that cell's outline is.

    Parameters
    ----------
    network : StarNetwork
    sign : float
        1: bright cells, -1: dark ones.
    scale : WorkingScale
    floor : float
        Noise floor of the contrast, counts at the working scale.
    least_relief : float
        What rises less above its surroundings is no cell, whatever the network says, counts.
    """

    maps = ("probability", "rays_px")

    def __init__(
        self, network: StarNetwork, *, sign: float, scale: WorkingScale, floor: float, least_relief: float
    ) -> None:
        super().__init__()
        self.network, self.contrast = network, LocalContrast(sign)
        self.scale, self.floor, self.least_relief = scale, floor, least_relief

    @property
    def grid_px(self) -> float:
        """Camera pixels from one value of the maps to the next."""
        return GRID_PX / self.scale.factor

    @property
    def origin_px(self) -> float:
        """Where the first value lies, camera pixels: at the centre of the first pixel of the working scale."""
        return 0.5 / self.scale.factor - 0.5

    def forward(self, image: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities (h, w) and rays (R, h, w) for an image (H, W) and the lowest probability.

        Probabilities below the threshold are 0; rays are camera pixels.
        """
        pixels = to_working_scale(image.to(torch.float32), self.scale)
        height, width = pixels.shape[-2:]
        seen, relief = seen_of(pixels, self.contrast, self.floor)
        logit, rays = self.network.told_of(seen)
        likely = torch.sigmoid(torch.minimum(logit, STEEP * (relief - self.least_relief) / self.floor))
        likely = torch.where(likely >= threshold, likely, torch.zeros_like(likely))
        inner = slice((height + 1) // GRID_PX), slice((width + 1) // GRID_PX)
        return likely[0, 0, *inner], rays[0, :, *inner] / self.scale.factor


def seen_of(pixels: Tensor, contrast: LocalContrast, floor: float) -> tuple[Tensor, Tensor]:
    """Return what the network sees of pixels (1, 1, h, w) at the working scale, and their relief, counts.

    Both as `LocalContrast.normalised`, on every second pixel and up to the next multiple of `MULTIPLE_PX`; what lies
    beyond (h, w) continues the last pixels.
    """
    seen, relief, _ = contrast.normalised(with_margin(pixels, MULTIPLE_PX), floor)
    inner = slice(MARGIN_PX // GRID_PX, -MARGIN_PX // GRID_PX)
    return seen[..., inner, inner], relief[..., inner, inner]
