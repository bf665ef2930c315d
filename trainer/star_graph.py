"""The deployed graph of supported supervision: camera pixels in, probability and rays of star-shaped cells out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneframe.trainer.cell_contrast import LocalContrast, normalised
from oneframe.trainer.cellulus_graph import MARGIN_PX, to_working_scale
from oneframe.trainer.cellulus_network import MULTIPLE_PX
from oneframe.trainer.supported import GRID_PX, StarNetwork

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
        self, network: StarNetwork | None, *, sign: float, scale: WorkingScale, floor: float, least_relief: float
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
        relief, seen = self.seen(to_working_scale(image.to(torch.float32), self.scale))
        logit, rays = self.network(seen)
        enough = (relief[..., ::GRID_PX, ::GRID_PX] - self.least_relief) / self.floor
        likely = torch.sigmoid(torch.minimum(logit, 20 * enough))[0, 0]
        return torch.where(likely >= threshold, likely, torch.zeros_like(likely)), rays[0] / self.scale.factor

    def seen(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return relief, counts, and what the network sees, each (1, 1, h, w), of pixels at the working scale."""
        height, width = pixels.shape[-2:]
        before, after = MARGIN_PX, MARGIN_PX + MULTIPLE_PX - 1
        padded = F.pad(pixels, (before, after, before, after), mode="replicate")
        whole = [(side + before + after) // MULTIPLE_PX * MULTIPLE_PX for side in (height, width)]
        relief, contrast, _ = self.contrast(padded[..., : whole[0], : whole[1]])
        inner = slice(before, before + height), slice(before, before + width)
        return relief[..., *inner], normalised(relief, contrast, self.floor)[..., *inner]
