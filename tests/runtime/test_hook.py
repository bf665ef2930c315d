"""The acquisition hook as pycromanager calls it; the real `Acquisition` is in tests/integration."""

import csv
import inspect
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneframe.runtime import Detections, ModelCard
from oneframe.runtime.hook import AcquisitionHook

TIMEOUT_S = 10.0


class Finder:
    """Finds as many objects as the first pixel says, after `gate` was passed."""

    card = ModelCard("lodestar", "uint16", 1, ("y_px", "x_px", "score"), 0.5, 8.0)

    def __init__(self, gate: Callable[[], object] = lambda: None) -> None:
        self.gate = gate

    def detect(self, image: np.ndarray) -> Detections:
        self.gate()
        if image.ndim != 2:
            raise ValueError(f"the model takes one plane, got shape {image.shape}")
        n = int(image[0, 0])
        return Detections(np.arange(n, dtype=np.float32), np.full(n, 2.5, np.float32), np.ones(n, np.float32))


def image(n_objects: int) -> np.ndarray:
    return np.full((8, 8), n_objects, np.uint16)


class Saved:
    """A dataset on disk, as pycromanager hands it over."""

    def __init__(self, images: dict[int, np.ndarray]) -> None:
        self.images = images

    def read_image(self, time: int, **_axes: Any) -> np.ndarray:
        return self.images[time]

    def read_metadata(self, **_axes: Any) -> dict[str, Any]:
        return {"PixelSize_um": 0.5}


def tags(**axes: Any) -> dict[str, Any]:
    return {"Axes": axes, "Width": 8}


def test_pycromanager_always_counts_three_parameters():
    hook = AcquisitionHook(Finder())
    assert list(inspect.signature(hook).parameters) == ["first", "second", "event_queue"]
    driven = AcquisitionHook(Finder(), on_detections=lambda axes, found: None)
    assert len(inspect.signature(driven).parameters) == 3


def test_images_come_back_as_they_were_and_rows_carry_their_axes():
    hook = AcquisitionHook(Finder())
    for t in range(3):
        for channel in ("DAPI", "GFP"):
            pixels, told = image(t), tags(time=np.int64(t), channel=channel) | {"PixelSize_um": 0.25}
            returned = hook(pixels, told, queue.Queue())
            assert returned is not None
            assert returned[0] is pixels
            assert returned[1] is told
    assert hook.finish(timeout_s=TIMEOUT_S).analysed == 6
    table = hook.detections()
    assert list(table) == ["time", "channel", "y_px", "x_px", "score", "y_um", "x_um"]
    assert table["time"].dtype == np.int64
    assert table["time"].tolist() == [1, 1, 2, 2, 2, 2]
    assert table["channel"].tolist() == ["DAPI", "GFP", "DAPI", "DAPI", "GFP", "GFP"]
    np.testing.assert_array_equal(table["y_px"], np.float32([0, 0, 0, 1, 0, 1]))
    np.testing.assert_array_equal(table["y_um"], table["y_px"] * 0.25)


def test_a_slow_model_skips_and_never_blocks_and_the_rest_comes_from_disk():
    gate = threading.Event()
    hook = AcquisitionHook(Finder(lambda: gate.wait(TIMEOUT_S)), every=True, queue_images=4)
    start_s = time.monotonic()
    for t in range(50):
        hook(image(1), tags(time=t), queue.Queue())
    assert time.monotonic() - start_s < 2.0
    account = hook.account()
    assert account.seen == 50
    assert account.skipped == 50
    assert account.reasons["the queue for the model was full"] >= 45
    gate.set()
    saved = Saved({t: image(2) for t in range(50)})
    account = hook.finish(saved, timeout_s=TIMEOUT_S)
    assert (account.seen, account.analysed) == (50, 50)
    table = hook.detections()
    assert sorted(set(table["time"].tolist())) == list(range(50))
    assert len(table["time"]) >= 4 + 2 * 45  # two objects in what was read from disk


def test_without_every_what_was_skipped_stays_skipped():
    gate = threading.Event()
    hook = AcquisitionHook(Finder(lambda: gate.wait(TIMEOUT_S)), queue_images=1)
    for t in range(10):
        hook(image(1), tags(time=t), queue.Queue())
    gate.set()
    account = hook.finish(timeout_s=TIMEOUT_S)
    assert account.seen == 10
    assert account.analysed + account.skipped == 10
    assert account.skipped >= 8


def test_as_image_saved_fn_it_reads_from_the_dataset():
    hook = AcquisitionHook(Finder())
    saved = Saved({t: image(t) for t in range(4)})
    for t in range(4):
        assert hook({"time": t, "z": 0}, saved, queue.Queue()) is None
    assert hook.finish(timeout_s=TIMEOUT_S).analysed == 4
    assert hook.detections()["time"].tolist() == [1, 2, 2, 3, 3, 3]
    np.testing.assert_array_equal(hook.detections()["x_um"], 1.25)


def test_as_both_every_image_counts_once():
    hook = AcquisitionHook(Finder())
    saved = Saved({t: image(1) for t in range(5)})
    for t in range(5):
        hook(image(1), tags(time=t), queue.Queue())
        hook({"time": t}, saved, queue.Queue())
    assert hook.finish(timeout_s=TIMEOUT_S).seen == 5


def test_one_bad_image_is_counted_with_its_reason():
    hook = AcquisitionHook(Finder())
    hook(np.zeros((8, 8, 3), np.uint8), tags(time=0), queue.Queue())
    hook(image(1), tags(time=1), queue.Queue())
    account = hook.finish(timeout_s=TIMEOUT_S)
    assert (account.analysed, account.failed) == (1, 1)
    assert "one plane" in next(iter(account.reasons))


@settings(max_examples=200, deadline=None)
@given(
    first=st.one_of(st.none(), st.integers(), st.dictionaries(st.text(max_size=3), st.none()), st.just(image(1))),
    second=st.one_of(st.none(), st.dictionaries(st.sampled_from(["Axes", "PixelSize_um"]), st.none() | st.text())),
)
def test_nothing_that_comes_in_raises_into_the_acquisition(first, second):
    hook = AcquisitionHook(Finder(), on_detections=lambda axes, found: None, answer_s=5.0)
    returned = hook(first, second, queue.Queue())
    if not isinstance(first, dict):
        assert returned == (first, second) or returned[0] is first
    assert hook.finish(timeout_s=TIMEOUT_S).seen == 1


def test_what_is_found_drives_the_acquisition():
    def next_events(axes, found):
        return [{"axes": {"time": np.int64(axes["time"] + 1)}}] * len(found) or None

    hook = AcquisitionHook(Finder(), on_detections=next_events)
    events: queue.Queue = queue.Queue()
    hook(image(2), tags(time=0), events)
    assert events.get_nowait() == [{"axes": {"time": 1}}, {"axes": {"time": 1}}]
    hook(image(0), tags(time=1), events)
    assert events.get_nowait() is None
    assert events.empty()


def test_no_events_puts_nothing_into_the_queue():
    hook = AcquisitionHook(Finder(), on_detections=lambda axes, found: [])
    events: queue.Queue = queue.Queue()
    hook(image(2), tags(time=0), events)
    assert events.empty()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda axes, found: 1 / 0, "ZeroDivisionError"),
        (lambda axes, found: "stop", "must return a list of events"),
        (lambda axes, found: [{"time": 1}], "must return a list of events"),
    ],
)
def test_an_answer_that_fails_ends_the_acquisition_instead_of_hanging_it(answer, error):
    hook = AcquisitionHook(Finder(), on_detections=answer)
    events: queue.Queue = queue.Queue()
    hook(image(2), tags(time=0), events)
    assert events.get_nowait() is None
    (reason,) = hook.errors
    assert error in reason
    assert "the acquisition was ended" in reason
    assert hook.finish(timeout_s=TIMEOUT_S).analysed == 1


def test_an_answer_that_is_late_or_missing_ends_the_acquisition():
    gate = threading.Event()
    hook = AcquisitionHook(Finder(lambda: gate.wait(TIMEOUT_S)), on_detections=lambda axes, found: [], answer_s=0.1)
    events: queue.Queue = queue.Queue()
    start_s = time.monotonic()
    hook(image(2), tags(time=0), events)
    assert time.monotonic() - start_s < 2.0
    assert events.get_nowait() is None
    gate.set()
    hook(np.zeros((8, 8, 3), np.uint8), tags(time=1), events)
    assert events.get_nowait() is None
    assert [reason.split(":")[0] for reason in hook.errors] == ["TimeoutError", "ValueError"]


def test_a_table_of_images_with_different_axes_and_nothing_found(tmp_path):
    hook = AcquisitionHook(Finder())
    assert list(hook.detections()) == ["y_px", "x_px", "score"]
    hook(image(1), tags(time=0, position="A1"), queue.Queue())
    hook(image(1), tags(time=1), queue.Queue())
    hook(image(0), tags(time=2), queue.Queue())
    hook.finish(timeout_s=TIMEOUT_S)
    table = hook.detections()
    assert table["position"].tolist() == ["A1", ""]
    path = tmp_path / "detections.csv"
    hook.write_csv(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"time": "0", "position": "A1", "y_px": "0", "x_px": "2.5", "score": "1"}
    assert len(rows) == 2
    with pytest.raises(FileExistsError, match=r"detections\.csv"):
        hook.write_csv(path)


def test_finish_needs_a_dataset_for_what_was_skipped():
    gate = threading.Event()
    hook = AcquisitionHook(Finder(lambda: gate.wait(TIMEOUT_S)), every=True, queue_images=1)
    for t in range(5):
        hook(image(1), tags(time=t), queue.Queue())
    gate.set()
    with pytest.raises(ValueError, match=r"pass acquisition.get_dataset\(\)"):
        hook.finish(timeout_s=TIMEOUT_S)


def test_a_hook_serves_one_acquisition_after_another():
    hook = AcquisitionHook(Finder())
    for round_ in range(3):
        hook(image(1), tags(time=round_), queue.Queue())
        assert hook.finish(timeout_s=TIMEOUT_S).analysed == round_ + 1


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="queue_images of 1 or more"):
        AcquisitionHook(Finder(), queue_images=0)
