"""What a person or a script reads: sentences, progress with an ETA, or JSON lines."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any


class CommandError(Exception):
    """A failure that one sentence explains; the command ends with exit code 1."""


class Console:
    """Writes to the terminal: sentences for a person, or one JSON object a line with `--json`."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._last_s = 0.0
        self._open_line = False

    def say(self, text: str, **facts: Any) -> None:
        """Print a sentence; with `--json` only the facts, if there are any, as an event."""
        if not self.as_json:
            self._end_line()
            print(text, flush=True)
        elif facts:
            self.event(**facts)

    def event(self, **facts: Any) -> None:
        """Print one JSON line."""
        print(json.dumps(_without_nan(facts)), flush=True)

    def due(self) -> bool:
        """Return whether it is time for another line of progress."""
        every_s = 1.0 if self.as_json else 0.2 if sys.stdout.isatty() else 5.0
        return time.monotonic() - self._last_s >= every_s

    def tick(self, text: Callable[[], str], *, last: bool = False, **facts: Any) -> None:
        """Show how far something is: one line rewritten on a terminal, else a line now and then."""
        if not (last or self.due()):
            return
        self._last_s = time.monotonic()
        if self.as_json:
            self.event(**facts)
        elif sys.stdout.isatty():
            print(f"\r\x1b[K{text()}", end="\n" if last else "", flush=True)
            self._open_line = not last
        else:
            print(text(), flush=True)

    def _end_line(self) -> None:
        if self._open_line:
            print()
            self._open_line = False


def duration(seconds: float) -> str:
    """Return a time as a person says it.

    >>> duration(7.2), duration(95), duration(8000), duration(1e6), duration(float("nan"))
    ('7 s', '1 min 35 s', '2 h 13 min', '11 d 13 h', '?')
    """
    if math.isnan(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, days = minutes // 60, minutes // 1440
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def bar(done: int, total: int, width: int = 24) -> str:
    """Return a progress bar.

    >>> bar(1, 2, 4)
    '[##..]'
    """
    filled = width * done // max(1, total)
    return "[" + "#" * filled + "." * (width - filled) + "]"


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
