"""Ways to run a model, tried in turn on one frame: how long each takes, and whether it finds what fp32 finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.backends import Backend
from oneframe.runtime.detections import Detections
from oneframe.runtime.selftest import CELL_TOLERANCE_PX

LEAST_F1 = 0.999
"""Of the detections against those of fp32: below a thousand objects none may be lost or won."""
SHARE_OF_SIGMA = 0.3
"""Largest RMS difference from fp32 over the sigma that the rows claim: errors add in squares, so that the error of a
position grows by 4 % at most."""
RMS_PX, WORST_PX = 0.02, 0.1
"""Largest differences of positions where the model claims no sigma; the worst row may also differ by one sigma."""
CELL_RMS_PX = 0.1
"""Likewise of cells, the worst of which may differ as in the self-test."""
ALIKE = 0.1
"""Of ways whose times differ by less the plainer one is taken: the difference is within that of two measurements."""
HOPELESS = 1.5
"""What takes so many times the fastest after `LEAST_ROUNDS` is not measured longer."""
LEAST_ROUNDS = 3
UNSTEADY = 1.3
"""From this ratio of the quartiles of fp32's own times on, something else was running."""
CHECK_S = 1.0
"""A way is checked on turned copies of the frame as well while that takes fp32 no longer."""

_PRECISIONS = ("fp32", "f16", "bf16", "int8")


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the detections of two ways to run a model compare."""

    n_expected: int
    n_found: int
    f1: float
    rms_px: float
    """Root mean square difference per axis of the rows that both found."""
    worst_px: float
    """Largest difference along an axis."""
    rms_limit_px: float
    worst_limit_px: float

    @property
    def passed(self) -> bool:
        """True if one may stand for the other."""
        close = self.rms_px <= self.rms_limit_px and self.worst_px <= self.worst_limit_px
        return self.f1 >= LEAST_F1 and close

    @property
    def sentence(self) -> str:
        """Return what a person reads."""
        if self.passed:
            return f"as fp32 within {self.worst_px:.1g} px"
        if self.f1 < LEAST_F1:
            return f"refused: {self.n_found} objects where fp32 finds {self.n_expected}, F1 {self.f1:.3f}"
        return (
            f"refused: {self.rms_px:.2g} px from fp32 (RMS, at most {self.rms_limit_px:.2g}), worst "
            f"{self.worst_px:.2g} px (at most {self.worst_limit_px:.2g})"
        )


def agreement(expected: Sequence[Detections], found: Sequence[Detections], *, reach_px: float) -> Agreement:
    """Compare what was found in some frames with what fp32 finds there.

    Parameters
    ----------
    expected, found : sequences of Detections, one a frame
    reach_px : float
        Rows farther apart are not the same object.
    """
    pairs = [_differences(a, b, reach_px) for a, b in zip(expected, found, strict=True)]
    away = np.concatenate([np.empty((0, 2)), *pairs])
    n_expected, n_found = sum(map(len, expected)), sum(map(len, found))
    f1 = 2 * len(away) / max(1, n_expected + n_found)
    rms_px = float(np.sqrt((away**2).mean())) if len(away) else 0.0
    worst_px = float(np.abs(away).max(initial=0.0))
    return Agreement(n_expected, n_found, f1, rms_px, worst_px, *_limits(expected))


def _differences(a: Detections, b: Detections, reach_px: float) -> NDArray[np.float64]:
    """Return by how much (y, x) of rows differ that are each other's nearest, (N, 2)."""
    from scipy.spatial import cKDTree

    here, there = a.yx_px, b.yx_px
    there = there[np.isfinite(there).all(1)]
    if not len(here) or not len(there):
        return np.empty((0, 2))
    distance, nearest = cKDTree(there).query(here)
    back = cKDTree(here).query(there)[1]
    same = (distance <= reach_px) & (back[nearest] == np.arange(len(here)))
    return np.asarray(there[nearest[same]] - here[same])


def _limits(expected: Sequence[Detections]) -> tuple[float, float]:
    """Return the largest RMS and single difference, px, that do no harm."""
    if any(each.labels is not None for each in expected):
        return CELL_RMS_PX, CELL_TOLERANCE_PX
    claims = [each.sigma_y_px for each in expected if each.sigma_y_px is not None and len(each)]
    if not claims:
        return RMS_PX, WORST_PX
    sigma_px = float(np.median(np.concatenate(claims)))
    return SHARE_OF_SIGMA * sigma_px, max(WORST_PX, sigma_px)


def turned(frame: NDArray[Any], n: int) -> list[NDArray[Any]]:
    """Return a frame and its mirror images, `n` at most: the same objects at other places relative to the grid."""
    both = [frame, frame[..., ::-1, :], frame[..., ::-1], frame[..., ::-1, ::-1]]
    return [np.ascontiguousarray(each) for each in both[:n]]


def shifted(frame: NDArray[Any], k: int) -> NDArray[Any]:
    """Return a frame shifted round its edges, differently for each `k`.

    An engine that prepares anew for every number of objects is as slow then as it is on a camera; on one frame again
    and again it prepares once.
    """
    return np.roll(frame, (37 * k, 61 * k), (-2, -1))


@dataclass(slots=True, eq=False)
class Trial:
    """One way to run a model, and what was found out about it."""

    backend: Backend
    detect: Callable[[NDArray[Any]], object]
    """Analyses a frame."""
    agreement: Agreement
    times_ms: list[float] = field(default_factory=list)

    @property
    def ms(self) -> float:
        """Median time of a frame."""
        return float(np.median(self.times_ms)) if self.times_ms else float("inf")

    @property
    def is_steady(self) -> bool:
        """False if the times differ so much that other programs must have taken the processors."""
        low_ms, high_ms = np.quantile(self.times_ms, (0.25, 0.75)) if self.times_ms else (1.0, 1.0)
        return bool(high_ms <= UNSTEADY * low_ms)


def race(trials: Sequence[Trial], seconds: float, frame_of: Callable[[int], NDArray[Any]]) -> None:
    """Measure those that passed in turn, for so long and at least `LEAST_ROUNDS` rounds; the hopeless drop out.

    All get the same frame in a round, which `frame_of` makes of its number.

    Times of an earlier race are forgotten, unless they were hopeless: what is compared was measured in turn.
    """
    running = _not_hopeless([trial for trial in trials if trial.agreement.passed])
    for trial in running:
        trial.times_ms.clear()
    end_s = time.perf_counter() + seconds
    n_rounds = 0
    while running and (n_rounds < LEAST_ROUNDS or time.perf_counter() < end_s):
        frame = frame_of(n_rounds)
        for k in range(len(running)):
            trial = running[(n_rounds + k) % len(running)]
            start_s = time.perf_counter()
            trial.detect(frame)
            trial.times_ms.append(1e3 * (time.perf_counter() - start_s))
        n_rounds += 1
        if n_rounds >= LEAST_ROUNDS:
            running = _not_hopeless(running)


def _not_hopeless(trials: list[Trial]) -> list[Trial]:
    """Return fp32, and what was not measured yet or not much slower than the fastest."""
    best_ms = min((trial.ms for trial in trials), default=0.0)
    return [t for t in trials if not t.times_ms or t.ms <= HOPELESS * best_ms or t.backend == Backend()]


def winner(trials: Sequence[Trial]) -> Trial:
    """Return the fastest that passed; of those that are `ALIKE` the plainest, then the one with the fewest threads.

    Plainer is more bits, then ONNX Runtime; fewer threads leave processors to camera and view.
    """
    passed = [trial for trial in trials if trial.agreement.passed]
    best_ms = min(trial.ms for trial in passed)
    alike = [trial for trial in passed if trial.ms * (1 - ALIKE) <= best_ms]

    def plainness(trial: Trial) -> tuple[int, bool, float, float]:
        backend = trial.backend
        threads = float("inf") if backend.threads is None else backend.threads
        return _PRECISIONS.index(backend.precision), backend.engine != "onnxruntime", threads, trial.ms

    return min(alike, key=plainness)


def thread_counts(n_processors: int) -> list[int]:
    """Return the numbers of threads worth a try beside all of them, most first.

    >>> thread_counts(2), thread_counts(8), thread_counts(1)
    ([1], [7, 4, 2, 1], [])
    """
    few = {n_processors - 1, n_processors // 2, n_processors // 4, 1}
    return sorted((n for n in few if 0 < n < n_processors), reverse=True)
