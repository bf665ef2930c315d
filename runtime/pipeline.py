"""The live loop: source thread, latest-frame slot or bounded queue, inference, linking, sinks that never block it.

Frames of a source that waits are looked at several at once (`crew`); linking and sinks get them in their order.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from oneframe.acquisition import BadFrameError, EndOfStream, Frame, FrameSource, SourceError
from oneframe.runtime.account import Account, Status
from oneframe.runtime.crew import Crew, Look, look, reason_of
from oneframe.runtime.drift import DriftWatch
from oneframe.runtime.seams import Analysed, Linker, Missed, Model, Noted, Sink

logger = logging.getLogger(__name__)

Mode = Literal["latest", "every"]
_Entry = Analysed | Missed | Noted

_WINDOW_S = 3.0
"""Rates and ages of the status are taken over this time."""
_NOTE_S = 10.0
"""A note stays in the status so long."""
_CLOCK_JUMP_S = 1.0
"""Largest step of the wall clock against the monotonic one that goes without a note."""
_UNTOLD = "without a gap in the source's numbers"
"""One reason for all losses of unknown size: their own texts hold numbers, and a night would fill the account."""
_WATCHED = ("exposure_ms", "roi_xywh_px", "binning", "bit_depth")
"""Entries of a frame's metadata whose change is noted."""
_QUEUED_BYTES = 256 * 2**20
"""Pixels that may wait for the model, and again for each sink, bytes."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended."""

    reason: str
    failed: bool
    """True if the source or a sink the run depends on broke down."""
    account: Account
    published: int | None
    """Frames the source made in all, where it told."""
    sink_drops: dict[str, dict[str, int]] = field(default_factory=dict)
    """Results that a sink did not take: name of the sink, reason, count."""


@dataclass(frozen=True, slots=True, eq=False)
class _Arrival:
    """A frame and when it reached this process (monotonic clock)."""

    frame: Frame
    arrived_s: float


class Pipeline:
    """Runs one source through one model into sinks, and accounts for every frame.

    Parameters
    ----------
    source : FrameSource
        Read by a thread of its own and closed by it.
    model, linker
        Called by the thread that calls `run`. In mode "every", frames of a source that waits go to `Model.twins`, where
        there are such, in threads of their own.
    sinks : mapping of name to Sink
        Each is called by a thread of its own; when one is slower than the frames of a live source, its results are
        dropped and counted, and nobody waits.
    mode : "latest" or "every"
        latest: the newest frame wins, older ones that were not reached are skipped. every: frames queue up, and only
        when the queue is full (a live source) is one skipped; a source that can wait, or that has a buffer of its own
        (`SourceInfo.buffered`), waits.
    essential : names of sinks
        If one of these breaks down the run ends; the others are left out from then on.
    queue_frames : int
        Frames that may wait for the model in mode "every".
    """

    def __init__(
        self,
        source: FrameSource,
        model: Model,
        linker: Linker,
        sinks: Mapping[str, Sink],
        *,
        mode: Mode = "every",
        essential: frozenset[str] = frozenset(),
        queue_frames: int = 256,
    ) -> None:
        self._source = source
        self._model = model
        self._linker = linker
        self._watch = DriftWatch.of(model.card)
        self._live = source.info.live
        backs_up = source.info.buffered and mode == "every"
        self._inbox = _Inbox(
            1 if mode == "latest" else queue_frames, newest_wins=mode == "latest", wait=backs_up or not self._live
        )
        self._books = _Books(live=self._live)
        self._sinks = {
            name: _SinkThread(
                name, sink, wait=not self._live or (backs_up and name in essential), essential=name in essential
            )
            for name, sink in sinks.items()
        }
        self._crew: Crew[_Arrival] | None = None
        self._may_share = mode == "every" and not self._live
        self._stop = threading.Event()
        self._stop_reason = ""
        self._source_end: tuple[str, bool] | None = None
        self._camera: dict[str, str] = {}  # what is watched for changes
        self._told: tuple[str, ...] = ()  # notes of the last frame
        self._clock_s: float | None = None  # wall clock minus monotonic clock

    def run(self, *, n_frames: int | None = None, seconds: float | None = None) -> Ended:
        """Run until the source ends, `n_frames` were seen, `seconds` passed, `stop` was called or a part failed."""
        reader = threading.Thread(target=self._read, args=(n_frames,), name="oneframe-source")
        for sink in self._sinks.values():
            sink.start()
        reader.start()
        deadline_s = None if seconds is None else time.monotonic() + seconds
        try:
            while (reason := self._why_to_stop(deadline_s)) is None:
                self._step()
        finally:
            self._stop.set()
            self._inbox.close()
            reader.join()
            in_work = [] if self._crew is None else self._crew.close()
            for left in (*in_work, *self._inbox.remaining()):
                self._miss(Missed("skipped", left.frame.index, 1, left.frame.time_s, "the run stopped"))
            for sink in self._sinks.values():
                sink.finish()
        broken = [s for s in self._sinks.values() if s.essential and s.error is not None]
        if broken and not reason[1]:
            reason = (f"{broken[0].name} failed: {broken[0].error}", True)
        return Ended(*reason, self._books.account(), self._books.published, self.sink_drops())

    def stop(self, reason: str = "stopped by the user") -> None:
        """Ask the run to end; may be called from any thread and from a signal handler."""
        self._stop_reason = reason
        self._stop.set()

    def status(self) -> Status:
        """Return how the run is doing; may be called from any thread."""
        return self._books.status(
            sink_backlog=sum(s.backlog() for s in self._sinks.values()),
            sink_dropped=sum(sum(reasons.values()) for reasons in self.sink_drops().values()),
            drift="" if self._watch is None else self._watch.drift.alarm,
        )

    def sink_drops(self) -> dict[str, dict[str, int]]:
        """Return the results that a sink did not take: name of the sink, reason, count."""
        drops = {name: sink.drops() for name, sink in self._sinks.items()}
        return {name: reasons for name, reasons in drops.items() if reasons}

    def _why_to_stop(self, deadline_s: float | None) -> tuple[str, bool] | None:
        for sink in self._sinks.values():
            if sink.essential and sink.error is not None:
                return f"{sink.name} failed: {sink.error}", True
        if self._stop.is_set():
            return self._stop_reason, False
        if deadline_s is not None and time.monotonic() >= deadline_s:
            return "the time asked for was over", False
        source_end = self._source_end  # read before looking into the inbox: the source thread sets it last
        return source_end if self._inbox.is_empty() and not self._crew else None

    def _step(self) -> None:
        """Show the next frame to the model, or give it to the crew and conclude what the crew is done with."""
        crew = self._crew
        arrival = None if crew is not None and crew.is_full else self._inbox.take(0.05)
        if crew is not None:
            if arrival is not None:
                crew.give(arrival)
            while crew.is_ready:
                self._conclude(*crew.take())
        elif arrival is not None:
            self._conclude(arrival, look(self._model, arrival.frame))
            if self._may_share and not self._inbox.is_empty():  # a source slower than the model needs no crew
                self._crew, self._may_share = Crew.of(self._model, arrival.frame), False

    def _conclude(self, arrival: _Arrival, found: Look) -> None:
        """Link what was found in a frame, and tell the sinks."""
        frame, detections = arrival.frame, found.detections
        if detections is None:
            self._miss(Missed("failed", frame.index, 1, frame.time_s, found.reason))
            return
        try:
            tracks = self._linker.link(detections, frame.index)
        except Exception as exc:  # as of `look`
            self._miss(Missed("failed", frame.index, 1, frame.time_s, reason_of(exc)))
            return
        age_s = time.time() - frame.time_s if self._live else time.monotonic() - arrival.arrived_s
        self._books.analysed(age_s, len(tracks))
        for text in detections.notes:
            if text not in self._told:  # once, not in each of the frames it is true of
                self._note(frame, text)
        self._told = detections.notes
        drift = None if self._watch is None else self._watch.add(tracks)
        analysed = Analysed(frame, tracks, age_s, found.inference_s, drift)
        for sink in self._sinks.values():
            sink.put(analysed)

    def _miss(self, missed: Missed) -> None:
        if self._books.missed(missed) and missed.kind != "skipped":
            logger.warning("frame %s %s: %s", missed.index, missed.kind, missed.reason)
        for sink in self._sinks.values():
            sink.put(missed)

    def _read(self, n_frames: int | None) -> None:
        """Read until the source ends or the run does; the body of the source thread."""
        try:
            while not self._stop.is_set():
                if n_frames is not None and self._books.seen >= n_frames:
                    self._source_end = (f"{n_frames} frames were seen", False)
                    return
                self._read_one()
        except EndOfStream as end:
            if end.n_frames is not None:
                self._lose(self._books.ended_after(end.n_frames), "the stream ended before they came")
            self._source_end = (end.reason, False)
        except SourceError as exc:
            self._source_end = (str(exc), True)
        except Exception as exc:  # a driver's own exception ends the run with its name, never the process
            logger.exception("the source failed")
            self._source_end = (f"the source failed with {type(exc).__name__}: {exc}", True)
        finally:
            self._source.close()

    def _read_one(self) -> None:
        try:
            frame = self._source.read(0.1)
        except BadFrameError as bad:
            self._lose(self._books.arrived(bad.index), "a gap in the source's numbers")
            self._miss(Missed("failed", bad.index, 1, time.time(), bad.reason))
            return
        if frame is None:
            return
        self._lose(self._books.arrived(frame.index), "a gap in the source's numbers")
        self._heed(frame)
        rejected = self._inbox.put(_Arrival(frame, time.monotonic()), self._stop)
        if rejected is not None:
            self._miss(Missed("skipped", rejected.frame.index, 1, rejected.frame.time_s, self._inbox.why_skipped))

    def _heed(self, frame: Frame) -> None:
        """Pass on what the source has to say of the time before this frame, and what changed since the last one."""
        told = frame.metadata.get("note")
        at_least = frame.metadata.get("lost_at_least")
        if at_least is not None:
            self._miss(Missed("lost", None, int(at_least), frame.time_s, _UNTOLD, at_least=True))  # the note says why
        notes = [str(told)] if told else []
        camera = {name: str(frame.metadata[name]) for name in _WATCHED if name in frame.metadata}
        camera |= {"size": f"{frame.width} x {frame.height}", "pixels": str(frame.pixels.dtype)}
        changed = [name for name in camera if self._camera.get(name, camera[name]) != camera[name]]
        if changed and not told:
            notes.append("the camera changed: " + ", ".join(f"{n} {self._camera[n]} to {camera[n]}" for n in changed))
        self._camera = camera
        self._books.bridge_mb_per_s = float(frame.metadata.get("bridge_mb_per_s", math.nan))
        clock_s = time.time() - time.monotonic()
        if self._clock_s is not None and abs(jump_s := clock_s - self._clock_s) > _CLOCK_JUMP_S:
            notes.append(f"this computer's clock was set by {jump_s:+.1f} s")
        self._clock_s = clock_s
        for text in notes:
            self._note(frame, text)

    def _note(self, frame: Frame, text: str) -> None:
        logger.info("frame %s: %s", frame.index, text)
        self._books.noted(text)
        for sink in self._sinks.values():
            sink.put(Noted(frame.index, frame.time_s, text))

    def _lose(self, gap: tuple[int, int], reason: str) -> None:
        first, n_lost = gap
        if n_lost:
            self._miss(Missed("lost", first, n_lost, time.time(), reason))


class _Inbox:
    """Frames on their way from the source thread to the model: a slot or a bounded queue."""

    def __init__(self, capacity: int, *, newest_wins: bool, wait: bool) -> None:
        self._frames: deque[_Arrival] = deque()
        self._capacity = capacity
        self._newest_wins = newest_wins
        self._wait = wait
        self._changed = threading.Condition()
        self._closed = False
        self.why_skipped = "a newer frame came first" if newest_wins else "the queue for the model was full"

    def put(self, arrival: _Arrival, stop: threading.Event) -> _Arrival | None:
        """Add a frame; return the one that has to go for it, if any."""
        with self._changed:
            capacity = min(self._capacity, max(1, _QUEUED_BYTES // max(1, arrival.frame.pixels.nbytes)))
            while self._wait and len(self._frames) >= capacity and not (self._closed or stop.is_set()):
                self._changed.wait(0.1)
            rejected = None
            if len(self._frames) >= capacity:
                if not self._newest_wins:
                    return arrival
                rejected = self._frames.popleft()
            self._frames.append(arrival)
            self._changed.notify_all()
            return rejected

    def take(self, timeout_s: float) -> _Arrival | None:
        """Return the next frame, or None if none came in time."""
        with self._changed:
            if not self._frames:
                self._changed.wait(timeout_s)
            arrival = self._frames.popleft() if self._frames else None
            self._changed.notify_all()
            return arrival

    def is_empty(self) -> bool:
        with self._changed:
            return not self._frames

    def close(self) -> None:
        """Let a waiting source thread go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def remaining(self) -> list[_Arrival]:
        with self._changed:
            left_over = list(self._frames)
            self._frames.clear()
            return left_over


class _Books:
    """Counts what became of the frames; one lock, a few operations a frame."""

    def __init__(self, *, live: bool) -> None:
        self._lock = threading.Lock()
        self._live = live
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._last_index: int | None = None
        self._unnumbered = 0  # bad messages without a number since the last numbered one
        self._before_start = 0
        self._made: deque[tuple[float, int]] = deque()  # (time, frames made by the source)
        self._results: deque[tuple[float, float]] = deque()  # (time, age)
        self._n_detections = 0
        self._n_unknown_gaps = 0
        self._note_told = ("", -math.inf)
        self.bridge_mb_per_s = math.nan
        self.published: int | None = None

    @property
    def seen(self) -> int:
        return self._counts["seen"]

    def arrived(self, index: int | None) -> tuple[int, int]:
        """Count a frame that reached us; return the first number and the count of those lost just before it."""
        with self._lock:
            self._counts["seen"] += 1
            first, n_lost = 0, 0
            if index is None:
                self._unnumbered += 1
            else:
                if self._last_index is None:
                    self._before_start = index if self._live else 0
                else:
                    first = self._last_index + 1
                    n_lost = max(0, index - first - self._unnumbered)
                self._last_index, self._unnumbered = index, 0
            self._note(self._made, (time.monotonic(), 1 + n_lost))
            return first, n_lost

    def ended_after(self, n_made: int) -> tuple[int, int]:
        """Learn that the source made `n_made` frames; return first number and count of those lost at the end."""
        with self._lock:
            self.published = n_made
            if self._last_index is None:
                self._before_start = n_made if self._live else 0
                return 0, 0
            first = self._last_index + 1
            return first, max(0, n_made - first - self._unnumbered)

    def analysed(self, age_s: float, n_detections: int) -> None:
        with self._lock:
            self._counts["analysed"] += 1
            self._n_detections = n_detections
            self._note(self._results, (time.monotonic(), age_s))

    def missed(self, missed: Missed) -> bool:
        """Count frames that were not analysed; return whether the reason is new."""
        with self._lock:
            is_new = missed.reason not in self._reasons
            self._counts[missed.kind] += missed.n_frames
            self._n_unknown_gaps += missed.at_least
            self._reasons[missed.reason] += missed.n_frames
            return is_new

    def noted(self, text: str) -> None:
        with self._lock:
            self._note_told = (text[:300], time.monotonic())

    def account(self) -> Account:
        with self._lock:
            counts = self._counts
            reasons = dict(self._reasons)
            return Account(
                counts["seen"], counts["analysed"], counts["skipped"], counts["failed"], counts["lost"],
                self._before_start, reasons, self._n_unknown_gaps,
            )  # fmt: skip

    def status(self, *, sink_backlog: int, sink_dropped: int, drift: str) -> Status:
        with self._lock:
            now_s = time.monotonic()
            ages_ms = [1e3 * age_s for time_s, age_s in self._results if now_s - time_s <= _WINDOW_S]
            made = [n for time_s, n in self._made if now_s - time_s <= _WINDOW_S]
            since_s = min(_WINDOW_S, now_s - self._made[0][0]) if self._made else 0.0
            p50_ms, p99_ms = np.percentile(ages_ms, [50, 99]) if ages_ms else (float("nan"), float("nan"))
            return Status(
                camera_fps=sum(made) / since_s if since_s else 0.0,
                inference_fps=len(ages_ms) / since_s if since_s else 0.0,
                age_p50_ms=float(p50_ms),
                age_p99_ms=float(p99_ms),
                seen=self._counts["seen"],
                analysed=self._counts["analysed"],
                skipped=self._counts["skipped"],
                failed=self._counts["failed"],
                lost=self._counts["lost"],
                n_detections=self._n_detections,
                sink_backlog=sink_backlog,
                sink_dropped=sink_dropped,
                drift=drift,
                note=self._note_told[0] if now_s - self._note_told[1] < _NOTE_S else "",
                bridge_mb_per_s=self.bridge_mb_per_s,
            )

    @staticmethod
    def _note(window: deque[tuple[float, int]] | deque[tuple[float, float]], entry: tuple[float, float]) -> None:
        """Append, and forget what is older than two windows."""
        window.append(entry)  # type: ignore[arg-type]
        while window[0][0] < entry[0] - 2 * _WINDOW_S:
            window.popleft()


class _SinkThread:
    """Calls one sink from a thread of its own, behind a bounded queue."""

    def __init__(self, name: str, sink: Sink, *, wait: bool, essential: bool) -> None:
        self.name = name
        self.essential = essential
        self.error: Exception | None = None
        self._sink = sink
        self._wait = wait
        self._queue: queue.Queue[_Entry | None] = queue.Queue(maxsize=10_000)
        self._queued_bytes = 0
        self._drops: Counter[str] = Counter()
        self._lock = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"oneframe-{name}")

    def start(self) -> None:
        self._thread.start()

    def put(self, entry: _Entry) -> None:
        """Queue an entry, or drop and count it."""
        n_bytes = _pixel_bytes(entry)
        with self._lock:
            while self._wait and self.error is None and self._is_full(n_bytes):
                self._lock.wait(0.1)
            if self.error is not None or self._is_full(n_bytes):
                self._drop()
                return
            self._queued_bytes += n_bytes
            self._queue.put_nowait(entry)

    def backlog(self) -> int:
        return self._queue.qsize()

    def drops(self) -> dict[str, int]:
        """Return how many entries were not taken, per reason."""
        with self._lock:
            return dict(self._drops)

    def finish(self) -> None:
        """Write what is queued, close the sink, join the thread."""
        self._queue.put(None)
        self._thread.join()

    def _is_full(self, n_bytes: int) -> bool:
        waiting = self._queue.qsize()
        return waiting >= self._queue.maxsize - 1 or (waiting > 8 and self._queued_bytes + n_bytes > _QUEUED_BYTES)

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            if self.error is None:
                self._call(partial(self._hand_over, entry))
            with self._lock:
                if self.error is not None:
                    self._drop()
                self._queued_bytes -= _pixel_bytes(entry)
                self._lock.notify_all()
        self._call(self._sink.close)

    def _drop(self) -> None:
        self._drops["too slow" if self.error is None else f"failed: {self.error}"] += 1

    def _hand_over(self, entry: _Entry) -> None:
        if isinstance(entry, Analysed):
            self._sink.write(entry)
        elif isinstance(entry, Missed):
            self._sink.skip(entry)
        else:
            self._sink.note(entry)

    def _call(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as exc:  # a sink's trouble is its own
            if self.error is None:
                logger.error("%s failed: %s", self.name, exc)
                self.error = exc


def _pixel_bytes(entry: _Entry) -> int:
    """Memory that a queued entry keeps from being freed."""
    if not isinstance(entry, Analysed):
        return 0
    field = entry.tracks.detections.field
    return entry.frame.pixels.nbytes + (0 if field is None else field.nbytes)
