"""Cellulus as published, from one frame to the trained model: slow, and here to compare with."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oneframe.export.trained import TrainedModel, by_torch
from oneframe.runtime import cell_table
from oneframe.runtime.card import ModelCard
from oneframe.runtime.cell_model import Separation
from oneframe.runtime.paper_cells import paper_cells
from oneframe.trainer.cell_contrast import REFERENCE_PX
from oneframe.trainer.cell_scale import WorkingScale, rescaled, working_scale
from oneframe.trainer.cellulus import example_of, read_cell_frame
from oneframe.trainer.cellulus_graph import to_camera_scale, to_working_scale
from oneframe.trainer.cellulus_paper import PaperNetwork, PaperSettings, trained_offsets
from oneframe.trainer.loop import LoopSettings, Progress, one_thread

KNOWN_OF_PAPER = frozenset(("diameter_px",))
"""What `train_cellulus_paper` can be told in place of reading it off the frame."""
_PERCENTILES = (1.0, 99.8)
"""Of the frame's pixels, which become 0 and 1; as in the code's examples."""
_TRIED_STEPS, _LONG_S = 4, 5.0
"""So many are timed, or one that takes so long."""


@dataclass(frozen=True, slots=True)
class PaperFrame:
    """What is known before the training as published."""

    diameter_px: float
    """Of a cell, camera pixels."""
    features: int
    n_steps: int
    step_s: float
    """Of one step on this machine, measured on the first."""

    def lines(self) -> list[str]:
        """Return it as sentences for the user."""
        hours = self.step_s * self.n_steps / 3600
        left = (
            f"{60 * hours:.1f} min" if hours < 2 else f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"
        )
        return [
            f"cells: {self.diameter_px:.1f} px across (--diameter-px)",
            f"as published: network of {self.features} features, {self.n_steps} steps of {self.step_s:.2g} s here: "
            f"about {left} (--steps)",
        ]


class PaperGraph(nn.Module):
    """Camera pixels (H, W) become offsets (dy, dx), camera px, (H, W) each.

    Parameters
    ----------
    network : PaperNetwork
        Of one channel.
    scale : WorkingScale
    low, high : float
        Camera counts that become 0 and 1.
    """

    maps = ("offset_y_px", "offset_x_px")

    def __init__(self, network: PaperNetwork, scale: WorkingScale, low: float, high: float) -> None:
        super().__init__()
        self.network = network
        self.scale = scale
        self.low, self.high = low, high

    def forward(self, image: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps; the runtime applies the threshold."""
        height, width = image.shape
        pixels = to_working_scale(image.to(torch.float32), self.scale)
        # replicated at the border, not reflected as in the paper: a frame may be smaller than the context
        offsets = self.network.whole((pixels - self.low) / (self.high - self.low), "replicate")
        dy, dx = to_camera_scale(offsets, self.scale, height, width) / self.scale.factor
        return dy, dx


@one_thread()
def train_cellulus_paper(
    image: NDArray[Any],
    *,
    diameter_px: float | None = None,
    pixel_size_um: float | None = None,
    seed: int = 0,
    settings: PaperSettings,
    on_frame: Callable[[PaperFrame], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
) -> TrainedModel:
    """Train on one frame (H, W) of cells with the network, loss, schedule and augmentation of the paper.

    Parameters
    ----------
    diameter_px : float, optional
        Of a cell, camera pixels; by default as `read_cell_frame` sees them.
    on_frame : callable, optional
        Told how long it will take, before the training.

    Raises
    ------
    ValueError
        If no cells are seen, or the frame has no contrast.
    TrainingCancelled
        If `cancel` was set.
    """
    low, high = (float(value) for value in np.percentile(image, _PERCENTILES))
    if not high > low:
        raise ValueError(
            f"expected a frame whose pixels differ, got {low:g} counts at the 1st and the 99.8th percentile; snap it "
            "with more light"
        )
    diameter_px = diameter_px or read_cell_frame(image).diameter_px
    scale = working_scale(diameter_px)
    seen = torch.from_numpy((rescaled(image, scale) - np.float32(low)) / np.float32(high - low))[None]
    if on_frame is not None:
        step_s = _seconds_of_a_step(seen, settings, seed)
        on_frame(PaperFrame(diameter_px, settings.features, settings.n_steps, step_s))
    network = trained_offsets(seen, settings, settings.schedule, seed, on_progress=on_progress, cancel=cancel)
    graph = PaperGraph(network, scale, low, high).eval()
    return _completed(image, graph, diameter_px, settings, seed, pixel_size_um)


def _seconds_of_a_step(seen: Tensor, settings: PaperSettings, seed: int) -> float:
    """Return how long a step takes, measured on a network that is thrown away."""
    taken_s = math.inf
    for _ in range(_TRIED_STEPS):  # the first ones wait for memory
        start_s = time.monotonic()
        trained_offsets(seen, settings, LoopSettings(1), seed)
        taken_s = min(taken_s, time.monotonic() - start_s)
        if taken_s > _LONG_S:
            break
    return taken_s


def paper_separation(scale: WorkingScale, low: float, high: float, settings: PaperSettings) -> Separation:
    """Return how the offsets become cells, px of the camera."""
    diameter_px = REFERENCE_PX / scale.factor
    return Separation(
        "mean-shift",
        settings.least_area * math.pi * diameter_px**2 / 4,
        bandwidth_px=settings.bandwidth * diameter_px,
        levels=tuple(low + level * (high - low) for level in settings.noise_levels),
        passes=settings.noise_passes,
        share=settings.noise_share,
        grain_px=scale.pooling,
        sample=min(1.0, settings.sample * scale.factor**2),  # as many pixels as at the network's scale
        grow_px=settings.grow_px / scale.factor,
        shrink_px=settings.shrink_px / scale.factor,
    )


def _completed(
    image: NDArray[Any],
    graph: PaperGraph,
    diameter_px: float,
    settings: PaperSettings,
    seed: int,
    pixel_size_um: float | None,
) -> TrainedModel:
    """Sign the card."""
    how = paper_separation(graph.scale, graph.low, graph.high, settings)
    found = paper_cells(lambda pixels: by_torch(graph, graph.maps, pixels, 0.0), image, how, 0.0)
    quality = {
        "read_off_frame": [
            f"cells: {diameter_px:.1f} px across (--diameter-px)",
            f"as published: network of {settings.features} features, {settings.n_steps} steps",
        ],
        "cells_on_frame": len(found),
        "median_area_px": float(np.median(found.area_px)) if len(found) and found.area_px is not None else 0.0,
        "warnings": list(found.notes),
    }
    card = ModelCard(
        method="cellulus",
        input_dtype=image.dtype.name,
        n_channels=1,
        columns=cell_table.COLUMNS,
        threshold=0.0,
        object_diameter_px=diameter_px,
        normalisation={"offset": graph.low, "scale": graph.high - graph.low, "factor": graph.scale.factor},
        pixel_size_um=pixel_size_um,
        maps=graph.maps,
        separation=how.to_card(),
        settings={**asdict(settings), "seed": seed, "preset": "paper"},
        quality=quality,
    )
    return TrainedModel(graph, card, example_of(image, found), input_shape=image.shape)
