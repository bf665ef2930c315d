"""Stop or pause a run when a condition on its results holds: `StopWhen`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from oneframe.runtime.detections import COLUMNS
from oneframe.runtime.seams import Analysed

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_FORM = re.compile(r"\s*(\w+)\s*(<=|>=|==|!=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_NAMES = ("objects", "age_ms", "track_length", *COLUMNS)
_FORGET_FRAMES = 1000
"""A track that was not seen for so many analysed frames will not come back."""


@dataclass(frozen=True, slots=True)
class Condition:
    """`NAME OPERATOR NUMBER`, such as `objects < 1`; made by `parse`.

    Names: `objects` in the frame; `age_ms` of the result; `track_length`, the analysed frames in which the oldest track
    of this frame was seen; and every column of the detections (`score`, `photons` ...), which stands for its median
    over the frame and is never true in a frame without objects. Operators: < <= > >= == !=.

    >>> Condition.parse("score < 0.3").holds(0.2)
    True
    """

    name: str
    operator: str
    number: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition.

        Raises
        ------
        ValueError
            If the text is none.
        """
        match = _FORM.fullmatch(text)
        if match is None or match[1] not in _NAMES:
            raise ValueError(
                f"expected a condition such as 'objects < 1', got {text!r}; "
                f"write NAME OPERATOR NUMBER with one of {', '.join(_NAMES)} and one of {' '.join(_COMPARE)}"
            )
        return cls(match[1], match[2], float(match[3]))

    def holds(self, value: float) -> bool:
        """Return whether it is true of a value; never of NaN."""
        return not math.isnan(value) and _COMPARE[self.operator](value, self.number)

    def __str__(self) -> str:
        return f"{self.name} {self.operator} {self.number:g}"


class StopWhen:
    """The `Output` that stops or pauses when a condition holds; wants every frame (`newest_wins=False`).

    Parameters
    ----------
    condition : str
        See `Condition`.
    stop : str -> None
        Called once, with the reason; `Pipeline.stop` is one.
    pause : str -> None
        In place of `stop`: called each time that the condition begins to hold.
    for_frames : int
        Analysed frames in a row for which it must hold.

    Raises
    ------
    ValueError
        If the condition is none, `for_frames` is below 1, or not exactly one of `stop` and `pause` is given.
    """

    def __init__(
        self,
        condition: str,
        stop: Callable[[str], None] | None = None,
        *,
        pause: Callable[[str], None] | None = None,
        for_frames: int = 1,
    ) -> None:
        if for_frames < 1:
            raise ValueError(f"for_frames must be 1 or more, got {for_frames}")
        call = stop or pause
        if call is None or (stop is not None and pause is not None):
            raise ValueError("expected either stop or pause, got both or none; pass one function")
        self._condition = Condition.parse(condition)
        self._call = call
        self._once = stop is not None
        self._for_frames = for_frames
        self._in_a_row = 0
        self._n_frames = 0
        self._lengths: dict[int, tuple[int, int]] = {}  # track -> frames in which it was seen, the last of them
        self.n_calls = 0
        """How often the condition came to hold."""

    def act(self, analysed: Analysed) -> None:
        """Look at one frame."""
        value = self._value(analysed)
        self._in_a_row = self._in_a_row + 1 if self._condition.holds(value) else 0
        if self._in_a_row == self._for_frames and not (self._once and self.n_calls):
            self.n_calls += 1
            frames = f" for {self._for_frames} frames" if self._for_frames > 1 else ""
            name, index = self._condition.name, analysed.frame.index
            self._call(f"{self._condition} was true{frames}: {name} {value:g} in frame {index}")

    def close(self) -> None:
        """Nothing to let go of."""

    def report(self) -> dict[str, object]:
        """Return the condition and how often it came to hold."""
        return {"condition": str(self._condition), "n_calls": self.n_calls}

    def _value(self, analysed: Analysed) -> float:
        name = self._condition.name
        if name == "objects":
            return float(len(analysed.tracks))
        if name == "age_ms":
            return analysed.age_s * 1e3
        if name == "track_length":
            return self._track_length(analysed)
        column = analysed.tracks.detections.columns().get(name)
        if column is None:
            raise ValueError(f"expected a model that gives {name}, this one does not; choose another condition")
        return float(np.median(column)) if len(column) else math.nan

    def _track_length(self, analysed: Analysed) -> float:
        self._n_frames += 1
        now, longest = self._n_frames, 0
        for track in analysed.tracks.track_id.tolist():
            length = self._lengths.get(track, (0, 0))[0] + 1
            self._lengths[track] = length, now
            longest = max(longest, length)
        if now % _FORGET_FRAMES == 0:
            self._lengths = {t: seen for t, seen in self._lengths.items() if now - seen[1] < _FORGET_FRAMES}
        return float(longest)
