"""What counts as the same detections, and which way to run a model is taken."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from oneframe.runtime import Detections
from oneframe.runtime.backends import Backend
from oneframe.runtime.trial import LEAST_ROUNDS, Trial, agreement, race, thread_counts, turned, winner


def table(n: int = 50, sigma_px: float | None = 0.05) -> Detections:
    rng = np.random.default_rng(1)
    y, x = rng.uniform(0, 1000, (2, n)).astype(np.float32)
    sigma = None if sigma_px is None else np.full(n, sigma_px, np.float32)
    return Detections(y, x, np.ones(n, np.float32), sigma_y_px=sigma, sigma_x_px=sigma)


def moved(detections: Detections, dy_px: float, *, only: int | None = None) -> Detections:
    y = detections.y_px.copy()
    y[slice(None) if only is None else only] += np.float32(dy_px)
    return replace(detections, y_px=y)


@dataclass
class Case:
    name: str
    found: Detections
    passed: bool


CASES = [
    Case("the same", table(), True),
    Case("in another order", table().rows(np.arange(50)[::-1]), True),
    Case("a tenth of sigma off", moved(table(), 0.005), True),
    Case("half a sigma off", moved(table(), 0.025), False),
    Case("one row two sigma off", moved(table(), 0.11, only=3), False),
    Case("one lost", table().rows(np.arange(49)), False),
    Case("one won", table().rows(np.r_[np.arange(50), 0]), False),
    Case("a position that is no number", moved(table(), np.nan, only=3), False),
    Case("nothing", table().rows(np.arange(0)), False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_passes_only_what_adds_little_to_the_error_and_neither_loses_nor_wins(case):
    result = agreement([table()], [case.found], reach_px=3)
    assert result.passed == case.passed
    assert result.sentence.startswith("as fp32" if case.passed else "refused: ")


def test_without_a_claimed_sigma_the_limit_is_fixed():
    plain = table(sigma_px=None)
    assert agreement([plain], [moved(plain, 0.02)], reach_px=3).passed
    assert not agreement([plain], [moved(plain, 0.04)], reach_px=3).passed


def test_turned_frames_are_mirror_images():
    frame = np.arange(6).reshape(2, 3)
    assert [each.tolist() for each in turned(frame, 3)] == [
        [[0, 1, 2], [3, 4, 5]],
        [[3, 4, 5], [0, 1, 2]],
        [[2, 1, 0], [5, 4, 3]],
    ]


def trial(backend: Backend, ms: float, found: Detections | None = None) -> Trial:
    agreed = agreement([table()], [table() if found is None else found], reach_px=3)
    return Trial(backend, lambda frame: None, agreed, [ms])


def test_of_ways_that_are_alike_the_plainest_with_the_fewest_threads_is_taken():
    plain, one = trial(Backend(), 100), trial(Backend(threads=1), 97)
    int8, openvino = trial(Backend(precision="int8"), 95), trial(Backend("openvino"), 93)
    assert winner([plain, one, int8, openvino]) is one
    assert winner([plain, int8, openvino]) is plain
    assert winner([plain, trial(Backend("openvino"), 80), int8]).backend == Backend("openvino")


def test_what_finds_something_else_never_wins_and_is_not_measured():
    wrong = trial(Backend(precision="int8"), 1, found=moved(table(), 1))
    wrong.times_ms.clear()
    plain, other = trial(Backend(), 100), trial(Backend(threads=1), 90)
    race([plain, other, wrong], 0.001, lambda k: np.zeros((8, 8)))
    assert not wrong.times_ms
    assert len(plain.times_ms) >= LEAST_ROUNDS
    assert winner([plain, wrong]) is plain


def test_fewer_threads_leave_processors_to_others():
    assert thread_counts(1) == []
    assert thread_counts(2) == [1]
    assert thread_counts(8) == [7, 4, 2, 1]


def test_times_that_vary_tell_of_other_programs():
    steady, disturbed = trial(Backend(), 10), trial(Backend(), 10)
    steady.times_ms = [10, 10.5, 11, 10, 30]
    disturbed.times_ms = [10, 20, 11, 25, 30]
    assert steady.is_steady
    assert not disturbed.is_steady
