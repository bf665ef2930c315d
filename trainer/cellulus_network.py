"""Cells: the network, what it is trained with, and the settings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLE_PX = 4
"""Sides of the images must be multiples."""
OUTPUTS = ("foreground", "offset_y", "offset_x")


@dataclass(frozen=True, slots=True)
class CellulusSettings:
    """Network, composed crops, losses and schedule; lengths at the reference scale, where cells are 24 px across."""

    n_steps: int = 400
    learning_rate: float = 3e-3
    crops: int = 4
    """Crops of a step."""
    crop_px: int = 96
    margin_px: int = 24
    """Around each crop, seen but not learned from."""
    channels: tuple[int, int] = (16, 48)
    """At 2 and at 4 pixels."""
    most_pasted: int = 8
    """Cells of the frame that are pasted into a crop, at most: they touch each other and those that are there."""
    pasted_share: float = 0.8
    """Of the crops; the others show the frame as it is."""
    brightness_spread: float = 0.25
    """Standard deviation of the logarithm of a pasted cell's brightness over its own."""
    sizes: tuple[float, float] = (0.5, 2.2)
    """Pasted cells are larger or smaller by a factor from and to."""
    contrast: tuple[float, float] = (0.6, 2.2)
    """The noise floor is raised by a factor from and to: as if the cells were brighter or bleached."""
    noise: float = 0.5
    """Largest standard deviation of noise added in training, noise floors."""
    blur_px: float = 1.5
    """Largest standard deviation of blur added in training, as by a drift of the focus."""
    offset_weight: float = 0.1
    """Of the distance between an offset's end and the cell's centre, per px, beside the cross entropy."""
    pair_weight: float = 0.3
    """Of the paper's loss on pairs of near pixels."""
    kappa_px: float = 10.0
    """Pairs are nearer than this."""
    pair_density: float = 0.02
    """Share of the pixels, and of the discs around them, that become pairs."""
    tau_px2: float = 10.0
    """Of that loss: how far apart two ends may be and still attract each other."""
    rim_px: float = 2.5
    """Of packed rods the network learns what lies deeper, at most a ninth of their width; they grow by it again."""
    pseudo_weight: float = 0.7
    """a in (1 - a) L_sparse + a L_pseudo, of frames in which cells are annotated: the share of the crops and of the
    pasted cells that are drawn from all cells, not from the annotated ones. 0: the latter alone are learned."""
    bandwidth: float = 0.4
    """Of the vote clustering, cell diameters."""
    least_area: float = 0.1
    """Smaller cells go; share of a disc of the cell diameter."""

    def __post_init__(self) -> None:
        for name, least in {"n_steps": 1, "crops": 1, "crop_px": 32, "margin_px": 8}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if self.crop_px % MULTIPLE_PX or self.margin_px % MULTIPLE_PX:
            raise ValueError(
                f"crop_px and margin_px must be multiples of {MULTIPLE_PX}, got {self.crop_px} and {self.margin_px}"
            )
        if not 0 <= self.pseudo_weight <= 1:
            raise ValueError(f"pseudo_weight must be 0 to 1, got {self.pseudo_weight:g}")
        for name in ("learning_rate", "bandwidth", "least_area"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name):g}")


class CellulusNetwork(nn.Module):
    """Normalised contrast (B, 4, H / 2, W / 2) becomes logits and offsets (dy, dx) in px: (B, 3, H, W).

    Two levels of 2 and 4 pixels, dilated convolutions on the coarser: a pixel sees the whole of its cell from its rim,
    and all arithmetic happens on a quarter of the pixels or fewer.
    """

    def __init__(self, channels: tuple[int, int] = (16, 48)) -> None:
        super().__init__()
        fine, coarse = channels
        self.stem = nn.Conv2d(4, fine, 3, padding=1)
        self.down = nn.Conv2d(fine, coarse, 3, stride=2, padding=1)
        self.trunk = nn.ModuleList(nn.Conv2d(coarse, coarse, 3, padding=k, dilation=k) for k in (1, 2, 3))
        self.up = nn.Conv2d(coarse, fine, 1)
        self.joint = nn.Conv2d(fine, fine, 3, padding=1)
        self.head = nn.Conv2d(fine, 4 * len(OUTPUTS), 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, seen: Tensor, certain: Tensor | None = None) -> Tensor:
        """Return `OUTPUTS` along the channels, for sides H, W that are multiples of `MULTIPLE_PX`.

        Parameters
        ----------
        seen : (B, 4, H / 2, W / 2)
            Of `LocalContrast.normalised`.
        certain : (B, 1, H / 2, W / 2), optional
            Logits of the foreground are no higher than this.
        """
        fine = F.relu(self.stem(seen))
        coarse = F.relu(self.down(fine))
        for layer in self.trunk:
            coarse = coarse + 0.5 * F.relu(layer(coarse))
        fine = F.relu(fine + F.interpolate(self.up(coarse), scale_factor=2.0, mode="nearest"))
        told = self.head(F.relu(self.joint(fine)))
        if certain is not None:
            told = torch.cat([torch.minimum(told[:, :4], certain), told[:, 4:]], 1)
        return F.pixel_shuffle(told, 2)


def cell_loss(told: Tensor, labelled: Tensor, offsets: Tensor, known: Tensor, offset_weight: float) -> Tensor:
    """Return cross entropy of the foreground plus the offsets' distance from the centres, means over known pixels.

    Parameters
    ----------
    told : (B, 3, H, W)
        Of the network.
    labelled : (B, H, W) bool
        Pixels of cells.
    offsets : (B, 2, H, W)
        From each pixel to the centre of its cell, px; read on cells only.
    known : (B, H, W) bool
        Pixels whose label is trusted.
    """
    entropy = F.binary_cross_entropy_with_logits(told[:, 0], labelled.to(told.dtype), reduction="none")
    inside = labelled & known
    distance = torch.sqrt(((told[:, 1:] - offsets) ** 2).sum(1) + 1) - 1
    loss: Tensor = (entropy * known).sum() / known.sum().clamp(min=1)
    return loss + offset_weight * (distance * inside).sum() / inside.sum().clamp(min=1)
