"""What a trained method hands over to be exported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oneframe.runtime.card import ModelCard


@torch.no_grad()
def by_torch(graph: nn.Module, names: tuple[str, ...], image: NDArray[Any], threshold: float) -> dict[str, Any]:
    """Return the named outputs of a deployed graph for an image, camera pixels, as arrays."""
    values = graph(torch.from_numpy(np.ascontiguousarray(image)), torch.tensor(threshold, dtype=torch.float32))
    return {name: value.numpy() for name, value in zip(names, values, strict=True)}


@dataclass(frozen=True, slots=True, eq=False)
class TrainedModel:
    """A network whose `forward(image, threshold)` is the deployed graph, and its card.

    Raises
    ------
    ValueError
        If the example is not an image that the card says the graph takes.
    """

    graph: nn.Module
    """Takes camera pixels, (H, W) or (C, H, W) of `card.input_dtype`, and a scalar float32 threshold; returns one
    float32 tensor per name in `card.outputs`, in that order: (N,) of columns; maps as in `card.maps`."""

    card: ModelCard

    example: NDArray[Any]
    """A real image to export with and to keep as the self-test; cropped, so that the file stays small."""

    input_shape: tuple[int, int] | None = None
    """Height and width that the graph sees when deployed, for the speed in the card; None: the example's."""

    def __post_init__(self) -> None:
        expected_ndim = 2 if self.card.n_channels == 1 else 3
        if self.example.ndim != expected_ndim or self.example.dtype != np.dtype(self.card.input_dtype):
            raise ValueError(
                f"example must be {self.card.input_dtype} with {expected_ndim} axes, "
                f"got {self.example.dtype} of shape {self.example.shape}"
            )
