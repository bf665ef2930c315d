"""Several frames of a recording at once, on all processors; the results come in the order of the frames."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from oneframe.acquisition import Frame
from oneframe.runtime.detections import Detections
from oneframe.runtime.seams import ChecksFrames, Model, SharesWork

_WORKING_BYTES = 2 * 2**30
"""Memory that the graph may take for all frames that are in work, bytes."""
_BYTES_PER_PX = 400
"""What a graph takes for one pixel: the paper's LodeSTAR network 320, the default 15."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What a model made of one frame."""

    detections: Detections | None
    reason: str
    """Why there are no detections: the frame cannot be used."""
    inference_s: float


class _HasFrame(Protocol):
    @property
    def frame(self) -> Frame: ...


Item = TypeVar("Item", bound=_HasFrame)


def look(model: Model, frame: Frame) -> Look:
    """Show the model a frame; no exception of its own gets through: one bad frame must not end a run of a night."""
    start_s = time.perf_counter()
    try:
        if isinstance(model, ChecksFrames):
            model.check(frame)
        detections = model.detect(frame.pixels)
    except Exception as exc:
        return Look(None, reason_of(exc), time.perf_counter() - start_s)
    return Look(detections, "", time.perf_counter() - start_s)


def reason_of(exc: Exception) -> str:
    """Return why a frame cannot be used; of an error that nobody foresaw also its name."""
    return str(exc) if isinstance(exc, ValueError) else f"{type(exc).__name__}: {exc}"


class Crew(Generic[Item]):
    """Models that look at several frames at once, each in a thread of its own; used by one thread.

    Parameters
    ----------
    models : sequence of Model
        All find the same in a frame, whatever frames they saw before.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        self._free: SimpleQueue[Model] = SimpleQueue()
        for model in models:
            self._free.put(model)
        self._most = 3 * len(models)  # nobody waits for work while the oldest frame takes its time
        self._pool = ThreadPoolExecutor(len(models), "oneframe-model")
        self._ahead: deque[tuple[Item, Future[Look]]] = deque()

    @classmethod
    def of(cls, model: Model, frame: Frame) -> Crew[Item] | None:
        """Return a crew that finds what the model finds, frames being as large as this one.

        None if the model depends on more than the frame, there is one processor only, or two frames of this size take
        too much memory: one frame at a time, on all processors, is right then.
        """
        n_frames = _WORKING_BYTES // (_BYTES_PER_PX * frame.height * frame.width)
        if n_frames < 2 or not isinstance(model, SharesWork):
            return None
        models = model.twins()[:n_frames]
        return cls(models) if len(models) > 1 else None

    def __len__(self) -> int:
        """Count the frames that were given and not taken back."""
        return len(self._ahead)

    @property
    def is_full(self) -> bool:
        """True if no frame may be given now."""
        return len(self._ahead) >= self._most

    @property
    def is_ready(self) -> bool:
        """True if `take` does not wait, or it has to, since the crew is full."""
        return self.is_full or bool(self._ahead and self._ahead[0][1].done())

    def give(self, item: Item) -> None:
        """Hand a frame to whoever is free first."""
        self._ahead.append((item, self._pool.submit(self._look, item.frame)))

    def take(self) -> tuple[Item, Look]:
        """Return the oldest frame with what was found in it, when it is done."""
        item, future = self._ahead.popleft()
        return item, future.result()

    def close(self) -> list[Item]:
        """Let the threads end; return the frames that were not taken back, oldest first."""
        self._pool.shutdown(cancel_futures=True)
        left = [item for item, _ in self._ahead]
        self._ahead.clear()
        return left

    def _look(self, frame: Frame) -> Look:
        model = self._free.get()
        try:
            return look(model, frame)
        finally:
            self._free.put(model)


def looks(model: Model, items: Iterable[Item]) -> Iterator[tuple[Item, Look]]:
    """Yield each item with what the model finds in its frame, in their order; several at once where that is right."""
    crew: Crew[Item] | None = None
    rest = iter(items)
    for first in rest:
        yield first, look(model, first.frame)
        crew = Crew.of(model, first.frame)
        break
    if crew is None:
        yield from ((item, look(model, item.frame)) for item in rest)
        return
    try:
        for item in rest:
            crew.give(item)
            while crew.is_ready:
                yield crew.take()
        while crew:
            yield crew.take()
    finally:
        crew.close()
