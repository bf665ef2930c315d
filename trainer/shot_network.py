"""SHOT's network: camera counts become claims, one on each cell of a grid, and claims are checked by rendering them.

"SHOT", arXiv 2512.10683: "the paper". Written from its equations; no code of its authors is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneframe.acquisition.psf import Width
from oneframe.trainer.emitter_crops import EmitterWorld

CELL_PX = 2
"""Pixels from cell to cell."""
REACH_PX = 3.0
"""How far from the centre of its cell a claim may lie along each axis: 1.5 cells, as in the paper."""
_LOG_SIGMA = (-4.5, 1.5)
"""Logarithm of the least and largest uncertainty, px; of photons and z, in units of their scales."""
_FIRST_LOGIT = -3.0
"""Of every claim before training: few cells hold an emitter."""


@dataclass(frozen=True, slots=True)
class ShotSettings:
    """Network, loss and schedule; the defaults are measured in docs/shot.md."""

    n_steps: int = 6000
    learning_rate: float = 4e-3
    crops: int = 16
    """Crops of a step, in two halves that are worked on side by side."""
    crop_px: int = 32
    channels: int = 48
    blocks: int = 4
    """Residual blocks of two convolutions each on the grid of cells."""
    stem_channels: int = 16
    refinements: int = 0
    """K of the paper: how often claims are rendered, looked at again and corrected."""
    n_frames: int = 1
    """Frames the network sees; the last is the one whose emitters it tells.

    Differs from the paper, whose window is centred: a live view cannot wait for the frame after.
    """
    matching: str = "exact"
    """`exact` assignment, `sinkhorn` (converged), or `published`: the paper's code's 20 iterations at 1e-4."""
    background_weight: float = 0.02
    """Of the squared error of the background, in units of a third of its mean."""

    def __post_init__(self) -> None:
        least = {
            "n_steps": 1, "crops": 2, "crop_px": 16, "channels": 8, "blocks": 1, "stem_channels": 1, "n_frames": 1,
            "refinements": 0,
        }  # fmt: skip
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be {low} or more, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate:g}")
        if not self.background_weight >= 0:
            raise ValueError(f"background_weight must be 0 or more, got {self.background_weight:g}")
        if self.crop_px % CELL_PX or self.crops % 2:
            raise ValueError(f"crop_px and crops must be even, got {self.crop_px} and {self.crops}")
        if self.refinements > 2 or self.n_frames > 5:
            raise ValueError(f"expected at most 2 refinements and 5 frames, got {self.refinements} and {self.n_frames}")
        if self.matching not in ("exact", "sinkhorn", "published"):
            raise ValueError(f"expected matching exact, sinkhorn or published, got {self.matching!r}")


class Claims(NamedTuple):
    """What each cell says, (B, h, w) each; positions in pixels of the image, sigmas of single emitters."""

    logit: Tensor
    y_px: Tensor
    x_px: Tensor
    photons: Tensor
    background: Tensor
    """Photoelectrons per pixel."""
    log_sigma_y: Tensor
    log_sigma_x: Tensor
    log_sigma_photons: Tensor
    """Of photons in units of the world's."""
    z_um: Tensor | None = None
    log_sigma_z: Tensor | None = None
    """Of z in units of half the calibrated range."""


class Residual(nn.Module):
    """Two convolutions and what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.2)  # deep stacks start near the identity

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        return F.relu(features + self.second(F.relu(self.first(features))))


class ShotNetwork(nn.Module):
    """Camera counts (B, F, H, W), H and W even, become `Claims` on cells of 2 x 2 pixels."""

    def __init__(self, world: EmitterWorld, settings: ShotSettings) -> None:
        super().__init__()
        self.settings = settings
        self.camera, self.photons, self.psf = world.camera, world.photons, world.psf
        self.level = world.level
        sigma_y, sigma_x = (float(sigma.mean()) for sigma in world.psf.sigmas(np.linspace(*world.psf.z_range_um, 21)))
        self.peak = world.photons / (2 * math.pi * sigma_y * sigma_x)
        self.patch_px = 2 * (math.ceil(4 * max(sigma_y, sigma_x) + REACH_PX) + 1)
        z_low, z_high = world.psf.z_range_um
        self.z_middle_um, self.z_reach_um = (z_low + z_high) / 2, (z_high - z_low) / 2
        n_out = 8 + 2 * world.psf.has_z
        c = settings.channels
        self.stem = nn.Conv2d(2 * settings.n_frames, settings.stem_channels, 3, padding=1)
        self.down = nn.Conv2d(settings.stem_channels, c, 4, stride=CELL_PX, padding=1)
        self.body = nn.Sequential(*[Residual(c) for _ in range(settings.blocks)])
        told = nn.Conv2d(c, n_out, 1)
        with torch.no_grad():
            told.weight.mul_(0.1)
            nn.init.constant_(told.bias, 0.0)  # type: ignore[arg-type]
            told.bias[0] = _FIRST_LOGIT  # type: ignore[index]
        self.head = nn.Sequential(nn.Conv2d(c, c, 1), nn.ReLU(), told)
        if settings.refinements:
            self.merge = nn.Conv2d(3 * c, c, 1)
            self.correct = nn.Sequential(Residual(c), Residual(c))
            self.correction = nn.Conv2d(c, c, 3, padding=1)
            nn.init.zeros_(self.correction.weight)  # at first a refinement changes nothing
            nn.init.zeros_(self.correction.bias)  # type: ignore[arg-type]

    def forward(self, counts: Tensor) -> list[Claims]:
        """Return the claims before any refinement and after each, best last."""
        electrons = (counts - self.camera.offset) / self.camera.gain
        seen = features = self.encode(electrons)
        claims = [self.decode(features)]
        for _ in range(self.settings.refinements):
            rendered = self.encode(torch.cat([electrons[:, :-1], self.render(claims[-1])], 1))
            merged = F.relu(self.merge(torch.cat([seen, rendered, features], 1)))
            features = features + self.correction(self.correct(merged))
            claims.append(self.decode(features))
        return claims

    def encode(self, electrons: Tensor) -> Tensor:
        """Return features (B, C, H / 2, W / 2) of photoelectrons (B, F, H, W)."""
        read2 = self.camera.read_photoelectrons**2
        linear = 3 * (electrons - self.level) / self.peak
        root = (electrons + 0.375 + read2).clamp(min=0).sqrt() - math.sqrt(self.level + 0.375 + read2)
        inputs = torch.cat([linear, 3.4 * root / math.sqrt(self.peak)], 1)
        features: Tensor = self.body(F.relu(self.down(F.relu(self.stem(inputs)))))
        return features

    def decode(self, features: Tensor) -> Claims:
        """Return what each cell claims."""
        logit, dy, dx, photons, background, *rest = self.head(features).unbind(1)
        h, w = logit.shape[-2:]
        centre = (CELL_PX - 1) / 2
        log_sigma = [_between(each) for each in (rest[0], rest[1], rest[2])]
        z = {}
        if len(rest) > 3:
            z = {
                "z_um": self.z_middle_um + 1.25 * self.z_reach_um * torch.tanh(rest[3]),
                "log_sigma_z": _between(rest[4]),
            }
        return Claims(
            logit,
            CELL_PX * torch.arange(h)[:, None] + centre + REACH_PX * torch.tanh(dy),
            CELL_PX * torch.arange(w) + centre + REACH_PX * torch.tanh(dx),
            self.photons * F.softplus(photons),
            self.level * F.softplus(background + 0.54),  # 1 where the head says 0
            *log_sigma,
            **z,
        )

    def render(self, claims: Claims) -> Tensor:
        """Return the expected photoelectrons (B, 1, H, W) of all claims, each as strong as it is likely.

        Differs from the paper: a Gaussian integrated over pixels, within a patch round the claim's cell.
        """
        n, h, w = claims.logit.shape
        size = self.patch_px
        first = CELL_PX * torch.arange(max(h, w)) - size // 2 + CELL_PX // 2  # first pixel of a cell's patch
        if claims.z_um is None:
            sigma_y, sigma_x = (torch.full((), width.sigma_px) for width in (self.psf.y, self.psf.x))
        else:
            sigma_y, sigma_x = (_sigma_px(axis, claims.z_um) for axis in (self.psf.y, self.psf.x))
        rows = _shares(claims.y_px - first[:h, None], sigma_y, size)  # (B, h, w, S)
        columns = _shares(claims.x_px - first[:w], sigma_x, size)
        light = torch.sigmoid(claims.logit) * claims.photons
        patches = (rows * light[..., None])[..., :, None] * columns[..., None, :]  # (B, h, w, S, S)
        patches = patches.reshape(n, h * w, size * size).transpose(1, 2)
        canvas = F.fold(patches, (CELL_PX * h, CELL_PX * w), size, padding=size // 2 - CELL_PX // 2, stride=CELL_PX)
        background = F.interpolate(claims.background[:, None], scale_factor=CELL_PX, mode="nearest")
        return canvas + background


def _between(raw: Tensor) -> Tensor:
    """Return the logarithm of a sigma within its limits; -1 where `raw` is 0."""
    low, high = _LOG_SIGMA
    return (low + high) / 2 + (high - low) / 2 * torch.tanh(2 * (raw + 0.15) / (high - low))


def _sigma_px(axis: Width, z_um: Tensor) -> Tensor:
    """Return `Width.at` for tensors."""
    u = (z_um - axis.focus_um) / axis.depth_um
    return axis.sigma_px * (1 + u**2 + axis.cubic * u**3 + axis.quartic * u**4).clamp(min=0.05).sqrt()


def _shares(centre: Tensor, sigma: Tensor, size: int) -> Tensor:
    """Return the light of each of `size` pixels of a line, (..., size)."""
    edges = torch.arange(size + 1) - 0.5
    below = torch.erf((edges - centre[..., None]) / (math.sqrt(2) * sigma[..., None]))
    return 0.5 * (below[..., 1:] - below[..., :-1])
