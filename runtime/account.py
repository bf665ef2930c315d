"""The account of a run: what became of every frame, and how fresh the results were."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Account:
    """What became of every frame of a run.

    Raises
    ------
    ValueError
        If the numbers do not add up: seen = analysed + skipped + failed.
    """

    seen: int
    """Frames that reached this process."""
    analysed: int
    skipped: int
    """Seen, but not analysed: a newer frame mattered more, or the queue was full."""
    failed: int
    """Seen, but unusable: bad message, wrong shape, NaN."""
    lost_before: int
    """Never reached this process while it listened, told by gaps in the numbers of the camera or the stream."""
    before_start: int = 0
    """Made by the source before this run joined it."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Frames per reason of being skipped, failed or lost."""
    gaps_of_unknown_length: int = 0
    """How often frames were lost without a trace in the numbers; `lost_before` counts the least it can have been."""

    def __post_init__(self) -> None:
        if self.seen != self.analysed + self.skipped + self.failed:
            raise ValueError(
                f"the account does not add up: seen {self.seen} != analysed {self.analysed} + skipped {self.skipped} "
                f"+ failed {self.failed}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the account as it stands in `run.json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Status:
    """How a running pipeline is doing, over its last few seconds."""

    camera_fps: float
    """Frames per second that the source made, lost ones included."""
    inference_fps: float
    """Frames per second that were analysed."""
    age_p50_ms: float
    """Median age of the last results (see `Analysed.age_s`), milliseconds."""
    age_p99_ms: float
    seen: int
    analysed: int
    skipped: int
    failed: int
    lost: int
    n_detections: int
    """Objects in the newest analysed frame."""
    sink_backlog: int = 0
    """Results waiting to be written, all sinks together."""
    sink_dropped: int = 0
    """Results a sink was too slow to take, all sinks together."""
    drift: str = ""
    """What is wrong with the sample (`Drift.alarm`), or nothing."""
    note: str = ""
    """What happened to the run in the last seconds (`Noted`), or nothing."""
    bridge_mb_per_s: float = math.nan
    """What comes through Micro-Manager's bridge, where the frames come that way; else NaN."""


class StatusBoard:
    """Where sinks read the status: they are made before the pipeline that they are given to."""

    def __init__(self) -> None:
        self._read: Callable[[], Status] | None = None

    def follow(self, read: Callable[[], Status]) -> None:
        """Show from now on what `read` tells; it may be called from any thread."""
        self._read = read

    def __call__(self) -> Status:
        """Return how the pipeline is doing, or an empty status as long as there is none."""
        nan = float("nan")
        return Status(0.0, 0.0, nan, nan, 0, 0, 0, 0, 0, 0) if self._read is None else self._read()
