"""Cells by the criterion of Cellulus, once, on the snapped frame: pixels whose offsets stay the same under noise.

The network learns from these proposals, so that the noise passes are over when it runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from oneframe.runtime.noise_passes import NoiseForeground, noise_foreground, noise_passes
from oneframe.trainer.cell_contrast import REFERENCE_PX
from oneframe.trainer.cell_proposals import Proposal, contrast_maps, li_threshold, parted
from oneframe.trainer.cellulus_paper import PaperSettings, pair_losses
from oneframe.trainer.loop import LoopSettings, Progress, fit, one_thread

Image = NDArray[np.float32]

SETTINGS = PaperSettings(crops=4, crop_px=96, tau=30.0, noise_share=0.04)
"""Differs from the paper: few and small crops, few steps, more disturbed pixels. Offsets are hardly learned in these;
what tells cells from background is how strongly a bright spot changes them, which networks that learned for as long
told worse in trials on a part of one frame. An untrained one has but one kind of pixels."""
SCHEDULE = LoopSettings(200, 3e-3)
_ATTEMPTS = 2
"""Networks that are tried, each from other weights."""
_SMOOTHING_PX = REFERENCE_PX / 12
"""Of the logarithm of the spread, which 32 passes tell of a single pixel by a third only."""


class LightNetwork(nn.Module):
    """Offsets (B, 2, H - 16, W - 16), px, of normalised images (B, 1, H, W), sides even; works at half resolution."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(4, 32, 3), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(32, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU()]
        layers += [nn.Conv2d(32, 64, 1), nn.ReLU(), nn.Conv2d(64, 8, 1), nn.PixelShuffle(2)]
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Return the offsets."""
        offsets: Tensor = self.layers(image)
        return offsets

    def whole(self, image: Tensor) -> Tensor:
        """Return offsets (B, 2, H, W) of images (B, 1, H, W) of any size; the border's pixels stand in beyond it."""
        height, width = image.shape[-2:]
        padded = F.pad(image, (8, 8 + width % 2, 8, 8 + height % 2), mode="replicate")
        return self.forward(padded)[..., :height, :width]


@one_thread()
def noise_proposal(
    image: Image,
    sign: float,
    seed: int,
    *,
    settings: PaperSettings = SETTINGS,
    schedule: LoopSettings = SCHEDULE,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
) -> Proposal:
    """Return the cells of a frame (H, W), camera counts at the reference scale, where its offsets are steady.

    Parameters
    ----------
    sign : float
        1: cells are brighter than their surroundings, -1: darker.

    Raises
    ------
    ValueError
        If all pixels are about equally steady, or nothing of a cell's size is.
    TrainingCancelled
        If `cancel` was set.
    """
    low, high = np.percentile(image, [1, 99.8])
    seen = ((image - low) / max(high - low, 1e-9)).astype(np.float32)
    for attempt in range(1, _ATTEMPTS + 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_ATTEMPTS * seed + attempt)
            network = LightNetwork()
        losses = pair_losses(network, torch.from_numpy(seen)[None], settings, seed)
        network = fit(
            network,
            losses,
            schedule,
            on_progress=on_progress,
            cancel=cancel,
            attempt=attempt,
            note=lambda: "learning offsets for the foreground",
            workers=settings.workers,
        )
        told = steadiness(network, seen, settings, np.random.default_rng(seed))
        if told.two_kinds:
            break
    else:
        raise ValueError(
            "expected pixels of two kinds, steady and unsteady under noise, got one (separability "
            f"{told.separability:.2f}, ratio {told.contrast:.1f}); take another foreground: contrast, intensity, edges"
        )
    labels = parted(told.pixels)
    if not labels.any():
        raise ValueError(
            "expected cells where offsets are steady under noise, got nothing of a cell's size; take another foreground"
        )
    relief, _, _ = contrast_maps(image, sign)
    return Proposal("noise", sign, labels, relief, li_threshold(relief), float("nan"))


@torch.no_grad()
def steadiness(
    network: LightNetwork, seen: Image, settings: PaperSettings, rng: np.random.Generator
) -> NoiseForeground:
    """Return which pixels (H, W) of a normalised image have steady offsets, and whether there are two kinds."""
    import cv2

    _, spread = noise_passes(
        lambda disturbed: network.whole(torch.from_numpy(disturbed)[None, None])[0].numpy(),
        seen,
        rng=rng,
        n_passes=settings.noise_passes,
        levels=settings.noise_levels,
        share=settings.noise_share,
    )
    logarithm = np.log(np.maximum(spread, 1e-12))
    smooth = np.exp(cv2.GaussianBlur(logarithm, (0, 0), _SMOOTHING_PX, borderType=cv2.BORDER_REFLECT))
    return noise_foreground(np.asarray(smooth, np.float32), logarithmic=True)
