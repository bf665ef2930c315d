"""Parts of the live loop that do what a test writes down: a source, a model, a sink."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from oneframe.acquisition import Frame, SourceInfo
from oneframe.runtime import Detections, ModelCard
from oneframe.runtime.seams import Analysed, Missed, Noted

CARD = ModelCard("lodestar", "uint16", 1, ("y_px", "x_px", "score"), 0.5, 8.0)
IMAGE = np.arange(64, dtype=np.uint16).reshape(8, 8)

Event = Frame | Exception | None


class Script:
    """A source that plays a list: frames, errors to raise, None for nothing yet."""

    def __init__(self, events: Iterator[Event], *, live: bool, buffered: bool = False) -> None:
        self._events = events
        self.info = SourceInfo("script", live=live, buffered=buffered)
        self.closed_in: list[str] = []

    def read(self, timeout_s: float) -> Frame | None:
        event = next(self._events)
        if isinstance(event, Exception):
            raise event
        return event

    def close(self) -> None:
        self.closed_in.append(threading.current_thread().name)


@dataclass
class Finder:
    """A model that finds one object, after `gate` was passed."""

    card: ModelCard = CARD
    gate: Callable[[np.ndarray], None] = lambda _: None
    seen: list[int] = field(default_factory=list)

    def detect(self, image: np.ndarray) -> Detections:
        self.gate(image)
        one = np.ones(1, np.float32)
        return Detections(one, one, one)


@dataclass
class Notes:
    """A sink that writes everything down."""

    written: list[Analysed] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)
    noted: list[Noted] = field(default_factory=list)
    closed: int = 0
    on_write: Callable[[], None] = lambda: None

    def write(self, analysed: Analysed) -> None:
        self.on_write()
        self.written.append(analysed)

    def skip(self, missed: Missed) -> None:
        self.missed.append(missed)

    def note(self, noted: Noted) -> None:
        self.noted.append(noted)

    def close(self) -> None:
        self.closed += 1


def frame(index: int) -> Frame:
    return Frame(IMAGE, index, time.time())
