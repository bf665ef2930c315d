"""What the models have in common that do something of their own before or after their graph."""

from __future__ import annotations

from typing import Any

from oneframe.runtime.card import ModelCard
from oneframe.runtime.model import OnnxModel


class WrappedModel:
    """A graph with something around it; card and threshold are the graph's."""

    def __init__(self, network: OnnxModel) -> None:
        self._network = network

    @property
    def card(self) -> ModelCard:
        """What the model says of itself."""
        return self._network.card

    @property
    def threshold(self) -> float:
        """Lowest score that is reported, 0..1; may be changed between frames."""
        return self._network.threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        self._network.threshold = value

    @property
    def engine(self) -> Any:
        """What runs the graph, as `OnnxModel.engine`."""
        return self._network.engine

    @engine.setter
    def engine(self, engine: Any) -> None:
        self._network.engine = engine
