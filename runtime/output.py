"""Results leave for the outside while the run goes on: the `Output` seam, and `OutputSink` that keeps it at bay."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import math
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from oneframe.runtime.seams import Analysed, Missed, Noted

logger = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 20
"""After so many an output is left out for the rest of the run."""

_QUEUED_BYTES = 256 * 2**20
"""Pixels that may wait for one output, bytes."""
_LONGEST_S = 600.0
"""A result that seems older has another clock than this process, or comes from a recording."""
_MOST_REASONS = 50


class Output(Protocol):
    """Does something with each result while the run goes on: publish it, move the stage, stop the run.

    Both methods are called by one thread, that of an `OutputSink`. Optional: `report() -> dict`, what is worth keeping
    of the run (JSON values).
    """

    def act(self, analysed: Analysed) -> None:
        """Act on one analysed frame; `analysed.age_s` is its age now, seconds, NaN if the clock was set meanwhile.

        Whatever it raises is counted as the failure of this frame; the next frame comes all the same.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds; called once, after the last `act`."""
        ...


class LatencyHistogram:
    """Latencies in bins 2 % wide, from 10 µs to an hour and more: quantiles of any number of them in 8 kB."""

    _LOWEST_S = 1e-5
    _LOG_WIDTH = math.log(1.02)
    _N_BINS = 1024

    def __init__(self) -> None:
        self._bins = [0] * self._N_BINS
        self.n = 0
        """Latencies taken so far."""

    def add(self, latency_s: float) -> None:
        """Take one latency of 0 s or more."""
        place = int(math.log(max(latency_s, self._LOWEST_S) / self._LOWEST_S) / self._LOG_WIDTH)
        self._bins[min(place, self._N_BINS - 1)] += 1
        self.n += 1

    def quantile_s(self, fraction: float) -> float | None:
        """Return the latency that `fraction` (0..1) of all do not exceed, to 1 %; None if there is none."""
        left = max(1, math.ceil(fraction * self.n))
        for place, count in enumerate(self._bins):
            left -= count
            if left <= 0:
                return self._LOWEST_S * math.exp((place + 0.5) * self._LOG_WIDTH)
        return None


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """A result, its age when it came, and when that was (monotonic clock)."""

    analysed: Analysed
    age_s: float
    came_s: float

    def age_now_s(self) -> float:
        return self.age_s + time.monotonic() - self.came_s


class OutputSink:
    """The `Sink` that calls one `Output`, from a thread of its own that nobody ever waits for.

    Frames that come while the output is busy wait in a bounded queue or, where only the newest counts, replace each
    other; what the output does not get is counted with the reason. A frame for which it raises is counted too. After
    20 of these in a row it is left out.

    Parameters
    ----------
    name : str
        For messages.
    output : Output
    newest_wins : bool
        True for what moves something: only the newest frame waits. False for what wants every frame.
    stale_s : float or None
        Results older than this are not acted on, seconds since their exposure.
    queue_frames : int
        Frames that may wait, unless `newest_wins`.
    close_s : float
        Time for the frames that still wait when the run ends, seconds; what hangs for longer is left behind.
    tell : str -> None
        Takes what the user should know: the first failure of a kind, and that the output is left out.
    """

    def __init__(
        self,
        name: str,
        output: Output,
        *,
        newest_wins: bool = False,
        stale_s: float | None = None,
        queue_frames: int = 256,
        close_s: float = 2.0,
        tell: Callable[[str], None] = logger.warning,
    ) -> None:
        if queue_frames < 1 or not close_s >= 0 or not (stale_s is None or stale_s > 0):
            raise ValueError(
                "expected queue_frames of 1 or more, close_s of 0 or more and stale_s above 0 seconds, "
                f"got {queue_frames}, {close_s} and {stale_s}"
            )
        self.name = name
        self._output = output
        self._newest_wins = newest_wins
        self._capacity = 1 if newest_wins else queue_frames
        self._stale_s = math.inf if stale_s is None else stale_s
        self._close_s = close_s
        self._tell = tell
        self._changed = threading.Condition()
        self._waiting: deque[_Entry] = deque()
        self._busy = False
        self._deadline_s: float | None = None  # set by `close`
        self._left_behind = False
        self._left_out: str | None = None
        self._in_a_row = 0
        self._n_frames = 0
        self._n_unknown = 0
        self._failed: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._latency = LatencyHistogram()
        self._n_acted = 0
        # a daemon: an output that hangs must not keep the process from ending
        self._thread = threading.Thread(target=self._work, name=f"oneframe-output-{name}", daemon=True)
        self._started = False

    def write(self, analysed: Analysed) -> None:
        """Hand over one analysed frame; returns at once."""
        entry = _Entry(analysed, _age_s(analysed), time.monotonic())
        with self._changed:
            self._n_frames += 1
            if self._left_out is not None or self._deadline_s is not None:
                self._dropped["the output was left out" if self._left_out else "the run had ended"] += 1
                return
            n_bytes = max(1, analysed.frame.pixels.nbytes)
            if len(self._waiting) >= min(self._capacity, max(1, _QUEUED_BYTES // n_bytes)):
                if not self._newest_wins:
                    self._dropped["the queue for the output was full"] += 1
                    return
                self._waiting.popleft()
                self._dropped["a newer frame came first"] += 1
            self._waiting.append(entry)
            self._start()
            self._changed.notify_all()

    def skip(self, missed: Missed) -> None:
        """Do nothing: outputs act on results only."""

    def note(self, noted: Noted) -> None:
        """Do nothing: outputs act on results only."""

    def close(self) -> None:
        """Give the output what still waits, then close it; takes `close_s` and half a second at most."""
        with self._changed:
            if self._deadline_s is not None:
                return
            self._deadline_s = time.monotonic() + self._close_s
            self._start()
            self._changed.notify_all()
        self._thread.join(self._close_s + 0.5)
        with self._changed:
            self._dropped["the run had ended"] += len(self._waiting)
            self._waiting.clear()
            if not self._thread.is_alive():
                return
            self._left_behind = True
            self._dropped["the output did not return"] += self._busy
        self._say(f"output {self.name} did not end within {self._close_s:g} s and is left behind")

    def report(self) -> dict[str, Any]:
        """Return how it went, as JSON values; may be called from any thread, also during the run.

        `frames` = `n` (acted on) + `failed` + `dropped` + `waiting`. The latency is from the exposure of a frame to the
        end of `act`, over the frames acted on; `latency_unknown` of these saw the clock being set.
        """
        with self._changed:
            p50_s, p99_s = self._latency.quantile_s(0.5), self._latency.quantile_s(0.99)
            report: dict[str, Any] = {
                "frames": self._n_frames,
                "n": self._n_acted,
                "failed": dict(self._failed),
                "dropped": {reason: n for reason, n in self._dropped.items() if n},
                "waiting": len(self._waiting) + (self._busy and not self._left_behind),
                "latency_p50_ms": None if p50_s is None else round(p50_s * 1e3, 2),
                "latency_p99_ms": None if p99_s is None else round(p99_s * 1e3, 2),
                "latency_unknown": self._n_unknown,
                "left_out": self._left_out,
            }
        own = getattr(self._output, "report", None)
        return report if own is None else report | {"output": own()}

    def _say(self, sentence: str) -> None:
        with contextlib.suppress(Exception):  # a console that is gone must not end the thread
            self._tell(sentence)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._thread.start()

    def _work(self) -> None:
        """Call the output until the run ends; the body of the thread."""
        while (entry := self._take()) is not None:
            self._act(entry)
        try:
            self._output.close()
        except (Exception, SystemExit) as exc:
            self._say(f"output {self.name} could not be closed: {_reason(exc)}")

    def _take(self) -> _Entry | None:
        with self._changed:
            while not self._waiting and self._deadline_s is None:
                self._changed.wait()
            if not self._waiting or (self._deadline_s is not None and time.monotonic() > self._deadline_s):
                return None
            self._busy = True
            return self._waiting.popleft()

    def _act(self, entry: _Entry) -> None:
        age_s = entry.age_now_s()
        failure: str | None = None
        stale = age_s > self._stale_s
        if not stale:
            try:
                self._output.act(replace(entry.analysed, age_s=age_s))
            except (Exception, SystemExit) as exc:  # the output's trouble is its own
                failure = _reason(exc)
        with self._changed:
            self._busy = False
            if self._left_behind:
                return
            if stale:
                self._dropped["the result was too old"] += 1
            elif failure is None:
                self._succeed(entry.age_now_s())
            else:
                sentence = self._fail(failure, entry.analysed.frame.index)
        if failure is not None and sentence:
            self._say(sentence)

    def _succeed(self, latency_s: float) -> None:
        self._in_a_row = 0
        self._n_acted += 1
        if math.isnan(latency_s):
            self._n_unknown += 1
        else:
            self._latency.add(latency_s)

    def _fail(self, reason: str, index: int) -> str:
        """Count a failure; return what to tell, if anything."""
        if len(self._failed) >= _MOST_REASONS and reason not in self._failed:
            reason = "other reasons"
        is_new = reason not in self._failed
        self._failed[reason] += 1
        self._in_a_row += 1
        if self._in_a_row >= FAILURES_IN_A_ROW:
            self._left_out = f"failed {self._in_a_row} times in a row, the last time with: {reason}"
            self._dropped["the output was left out"] += len(self._waiting)
            self._waiting.clear()
            return f"output {self.name} is left out from frame {index} on: it {self._left_out}"
        return f"output {self.name} failed at frame {index}: {reason}" if is_new else ""


def _age_s(analysed: Analysed) -> float:
    """Return seconds since the exposure, also of a frame from a recording; NaN if the clock was set meanwhile."""
    since_s = time.time() - analysed.frame.time_s
    # A live frame's age was taken a moment ago with the same clock; a recording's has nothing to do with its time_s.
    age_s = since_s if -0.1 <= since_s - analysed.age_s < 60.0 else analysed.age_s
    return age_s if 0.0 <= age_s < _LONGEST_S else math.nan


def _reason(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"[:300]


class CallFunction:
    """The `Output` that calls a Python function with each `Analysed`.

    Parameters
    ----------
    function : str or callable
        `package.module:function` or `path/to/file.py:function`, or the function itself. What it returns is ignored.

    Raises
    ------
    ValueError
        If the text names no function that can be imported; the text of the error says which part is wrong.
    """

    def __init__(self, function: str | Callable[[Analysed], object]) -> None:
        self._function = _resolved(function) if isinstance(function, str) else function
        if not callable(self._function):
            raise ValueError(f"expected a function, got {self._function!r}; pass a function or package.module:function")

    def act(self, analysed: Analysed) -> None:
        """Call the function."""
        self._function(analysed)

    def close(self) -> None:
        """Nothing to let go of."""


def _resolved(text: str) -> Callable[[Analysed], object]:
    """Import what `module:function` or `file.py:function` names."""
    where, colon, name = text.rpartition(":")
    if not (colon and where and name):
        raise ValueError(f"expected package.module:function or file.py:function, got {text!r}; mind the colon")
    try:
        module = _module_of_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except (Exception, SystemExit) as exc:  # importing runs the user's code
        raise ValueError(f"cannot import {where!r} of {text!r}: {_reason(exc)}; is its folder on PYTHONPATH?") from exc
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        known = ", ".join(sorted(key for key, value in vars(module).items() if callable(value) and key[0] != "_"))
        raise ValueError(f"expected the function {name!r} in {where}, there is none; it has {known or 'no functions'}")
    function: Callable[[Analysed], object] = found
    return function


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    name = f"oneframe_function_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
