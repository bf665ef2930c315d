"""The seams of the runtime: what a model, a linker and a sink must offer, and what is told to a sink."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from numpy.typing import NDArray

from oneframe.acquisition import Frame
from oneframe.runtime.card import ModelCard
from oneframe.runtime.detections import Detections, Tracks
from oneframe.runtime.drift import Drift


class Model(Protocol):
    """Turns images into detections."""

    @property
    def card(self) -> ModelCard:
        """What the model says of itself."""
        ...

    def detect(self, image: NDArray[Any]) -> Detections:
        """Find the objects of one image (H, W) or (C, H, W).

        Raises
        ------
        ValueError
            If the model does not take this image; the text says why and what to do.
        """
        ...


@runtime_checkable
class ChecksFrames(Protocol):
    """A model that depends on what the frame comes from, not on its pixels alone."""

    def check(self, frame: Frame) -> None:
        """Refuse a frame of another instrument than the model was trained for.

        Raises
        ------
        ValueError
            With what differs and what to do.
        """
        ...


@runtime_checkable
class SharesWork(Protocol):
    """A model whose detections are a function of the image alone: frames may be looked at in any order, or at once."""

    def twins(self) -> Sequence[Model]:
        """Return models that find the same bit for bit, as many as have processors to work on; each for one thread."""
        ...


class Linker(Protocol):
    """Gives detections an identity over time."""

    def link(self, detections: Detections, index: int) -> Tracks:
        """Link the detections of frame `index` to the tracks so far; indices only grow."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Analysed:
    """One frame that went through the model."""

    frame: Frame
    tracks: Tracks
    age_s: float
    """Time from the frame's own `time_s` (live source) or its arrival (recording) to its tracks, seconds."""
    inference_s: float
    """Time spent in `Model.detect`, seconds."""
    drift: Drift | None = None
    """How the sample looks by now; every frame carries it, so that a sink that misses one still learns of a change.
    None: the model does not know what its training looked like."""


@dataclass(frozen=True, slots=True)
class Missed:
    """Frames that were not analysed, and why."""

    kind: Literal["skipped", "failed", "lost"]
    """skipped: seen, not analysed because a newer frame mattered more or the queue was full; failed: seen, could not
    be used; lost: never reached this process, known by a gap in the numbers."""
    index: int | None
    """The source's number of the first of them, where known."""
    n_frames: int
    time_s: float
    """When it was noticed or, for skipped and failed frames, taken; seconds since the Unix epoch."""
    reason: str
    at_least: bool = False
    """True for lost frames that no gap in the numbers tells of: `n_frames` of them at least, how many is unknown."""


@dataclass(frozen=True, slots=True)
class Noted:
    """Something that happened to the run: the camera was started again, its exposure changed, the clock was set."""

    index: int
    """The source's number of the first frame after it."""
    time_s: float
    """When that frame was taken, seconds since the Unix epoch."""
    text: str


class Sink(Protocol):
    """Takes results, called by one thread of its own; slow sinks lose nothing but their own place in the queue."""

    def write(self, analysed: Analysed) -> None:
        """Take one analysed frame."""
        ...

    def skip(self, missed: Missed) -> None:
        """Take note of frames that were not analysed."""
        ...

    def note(self, noted: Noted) -> None:
        """Take note of what happened to the run."""
        ...

    def close(self) -> None:
        """Finish; called once, after the last `write`, `skip` or `note`."""
        ...
