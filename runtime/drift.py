"""Whether the sample still looks like what the model was trained on: `DriftWatch`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.card import ModelCard
from oneframe.runtime.detections import Tracks

WINDOW = 256
"""Detections that are looked at."""
PER_FRAME = 16
"""Most detections that one frame adds, so that a flash of a few frames is no drift."""
FEWEST = 20
"""Detections below which nothing is said."""
FEWEST_FRAMES = 10
"""Frames below which nothing is said."""
EMPTY_FRAMES = 50
"""Frames in a row without a detection that are worth a sentence; more if the training frame showed only a few."""
CALM = 0.7
"""Share of the tolerance below which an alarm ends; in between it stays as it is."""


@dataclass(frozen=True, slots=True)
class Drift:
    """How the sample compares with the training's."""

    state: Literal["alike", "unlike", "empty"]
    sentence: str
    """What to tell the user when the state changes."""

    @property
    def alarm(self) -> str:
        """The sentence while something is wrong, else an empty text."""
        return "" if self.state == "alike" else self.sentence


ALIKE = Drift("alike", "the sample looks like what the model was trained on again")


@dataclass(frozen=True, slots=True)
class _Measure:
    """One column: how far its distribution may move towards the bad side."""

    column: str
    name: str
    unit: str
    quantile: float
    """The quantile of the run that is watched."""
    trained: float
    """The same quantile in the training."""
    badness: Callable[[float], float]
    tolerance: Callable[[float], float]
    """Largest rise of the badness, from the standard error of the comparison in standard deviations."""

    def excess(self, value: float, error: float) -> float:
        """Return how much of the tolerance a quantile of the run has used up."""
        return (self.badness(value) - self.badness(self.trained)) / self.tolerance(error)


class DriftWatch:
    """Compares the detections of the last frames with those of the training.

    Watched are the median score, and the self-consistency `variance_px2` of the most consistent twentieth: neighbours
    raise the variance of the others a hundredfold, so that the median would tell of the density. Both are compared on
    the scale on which they spread evenly, logit and logarithm. The tolerance grows where the training or the run shows
    few particles, since one particle differs from another.

    Parameters
    ----------
    reference : mapping
        `variance_px2` and `score`, each the quantiles [0.05, 0.5, 0.95] of the training's detections; one of them may
        be missing.
    n_trained : int
        Particles that the reference comes from.
    n_on_frame : int or None
        Detections on the snapped frame; None: how many are to be expected is not known.
    threshold : float
        Lowest score that counts: that of the reference.

    Raises
    ------
    ValueError
        If the reference has no usable quantiles.
    """

    def __init__(
        self, reference: Mapping[str, Any], *, n_trained: int, n_on_frame: int | None = None, threshold: float = 0.0
    ) -> None:
        self._measures = _measures(reference)
        self._n_trained = max(1, n_trained)
        self._n_on_frame = n_on_frame
        self._threshold = threshold - 1e-6  # the graph compares in float32
        # the fewer the frame showed, the sooner none is in view by chance
        self._longest_empty = EMPTY_FRAMES * max(1.0, 4 / n_on_frame) if n_on_frame else math.inf
        self._values = np.empty((len(self._measures), WINDOW), np.float32)
        self._track_id = np.empty(WINDOW, np.int64)
        self._next = self._n = self._n_frames = self._n_empty = 0
        self.drift = ALIKE
        """What the last frames show."""

    @classmethod
    def of(cls, card: ModelCard) -> DriftWatch | None:
        """Return the watch for a model, or None if its card holds no reference."""
        reference, n_on_frame = card.quality.get("reference"), card.quality.get("detections_on_frame")
        if not isinstance(reference, dict):
            return None
        try:
            n_trained = int(reference["n"])
            if n_on_frame is not None:
                n_trained = min(n_trained, int(n_on_frame))  # views of one particle tell no more than the particle
            return cls(reference, n_trained=n_trained, n_on_frame=n_on_frame, threshold=card.threshold)
        except (TypeError, KeyError, ValueError):
            return None

    def add(self, tracks: Tracks) -> Drift:
        """Take the detections of the next frame and return how the sample looks by now."""
        rows = np.flatnonzero(tracks.detections.score >= self._threshold)
        if len(rows) == 0:
            self._n_empty += 1
            if self._n_empty >= self._longest_empty and self.drift.state != "empty":
                self._next = self._n = self._n_frames = 0  # what comes back is judged by itself
                self.drift = Drift("empty", self._empty_sentence())
            return self.drift
        self._n_empty = 0
        step = -(-len(rows) // PER_FRAME)
        self._keep(tracks, rows[self._n_frames % step :: step])  # others each time: rows lie in the order of the image
        if self._n >= FEWEST and self._n_frames >= FEWEST_FRAMES:
            self._compare()
        return self.drift

    def _keep(self, tracks: Tracks, rows: NDArray[np.intp]) -> None:
        places = np.arange(self._next, self._next + len(rows)) % WINDOW
        for values, measure in zip(self._values, self._measures, strict=True):
            column: NDArray[np.float32] | None = getattr(tracks.detections, measure.column)
            values[places] = np.nan if column is None else column[rows]
        self._track_id[places] = tracks.track_id[rows]
        self._next = (self._next + len(rows)) % WINDOW
        self._n = min(WINDOW, self._n + len(rows))
        self._n_frames += 1

    def _compare(self) -> None:
        n = self._n
        n_particles = len(set(self._track_id[:n].tolist()))
        error = math.sqrt(1 / self._n_trained + 1 / n_particles)
        worst, culprit = -math.inf, ""
        for values, measure in zip(self._values, self._measures, strict=True):
            rank = int(measure.quantile * (n - 1))
            value = float(np.partition(values[:n], rank)[rank])
            excess = measure.excess(value, error)
            if excess > worst:  # not so for NaN: the model gives no such column
                worst, culprit = excess, f"{measure.name} {value:.2g}{measure.unit}, {measure.trained:.2g} in training"
        if worst > 1 and self.drift.state != "unlike":
            self.drift = Drift("unlike", _UNLIKE.format(culprit))
        elif worst < (CALM if self.drift.state == "unlike" else 1) and self.drift.state != "alike":
            self.drift = ALIKE

    def _empty_sentence(self) -> str:
        return (
            f"nothing was found in {self._n_empty} frames in a row, the training frame showed {self._n_on_frame}; "
            "check focus, light and shutter, or train on a new frame"
        )


_UNLIKE = (
    "the sample no longer looks like what the model was trained on ({}); check focus, light and magnification, "
    "or train on a new frame"
)


def _measures(reference: Mapping[str, Any]) -> list[_Measure]:
    """Return what the reference allows to watch."""
    measures = []
    if (variance := reference.get("variance_px2")) is not None:
        low, _, _ = _quantiles("variance_px2", variance)
        measures.append(
            _Measure(
                "variance_px2", "variance of the most consistent particles", " px²", 0.05, low, _log_variance,
                lambda error: math.log(5) * (1 + error),  # 2.5 times as dense: up to fivefold
            )
        )  # fmt: skip
    if (score := reference.get("score")) is not None:
        low, median, _ = _quantiles("score", score)
        spread = _unlikeliness(low) - _unlikeliness(median)
        # three standard errors of a median, 1.25 / sqrt(n) each; a normal distribution's 0.05 quantile is at 1.645
        per_error = 3 * 1.25 / 1.645
        measures.append(
            _Measure(
                "score", "median score", "", 0.5, median, _unlikeliness,
                lambda error: max(1.2 * (1 + error / 2), spread, per_error * spread * error),
            )
        )  # fmt: skip
    if not measures:
        raise ValueError("expected a reference with variance_px2 or score, got neither; train the model again")
    return measures


def _quantiles(name: str, values: Sequence[float]) -> tuple[float, float, float]:
    low, median, high = (float(value) for value in values)
    if not (0 <= low <= median <= high < math.inf and high > 0):
        raise ValueError(
            f"expected rising quantiles 0.05, 0.5, 0.95 of {name}, got {list(values)}; train the model again"
        )
    return low, median, high


def _log_variance(variance_px2: float) -> float:
    return math.log(max(variance_px2, 1e-4))  # below 0.01 px differences mean nothing


def _unlikeliness(score: float) -> float:
    """Negative logit."""
    score = min(max(score, 1e-3), 1 - 1e-3)
    return math.log((1 - score) / score)
