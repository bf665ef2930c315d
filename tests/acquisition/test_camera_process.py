"""The camera's process: nothing is lost in silence, whatever dies or is slow."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneframe.acquisition import Frame, SourceError, open_source

pytest.importorskip("pycromanager")

from oneframe.acquisition import camera
from oneframe.acquisition.micromanager import _DEMO_CONFIG

FAST = "demo:?width=64&height=48&exposure_ms=1"
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@contextmanager
def _open(url: str, *, every: bool = False) -> Iterator[Any]:
    source = open_source(url, every=every)
    try:
        yield source
    finally:
        source.close()


def _read_until(source: Any, found: Callable[[Frame], bool], *, within_s: float = 20.0) -> list[Frame]:
    """Frames up to the first that is meant."""
    frames: list[Frame] = []
    deadline_s = time.monotonic() + within_s
    while not frames or not found(frames[-1]):
        assert time.monotonic() < deadline_s, f"nothing found in {len(frames)} frames"
        frame = source.read(0.5)
        if frame is not None:
            frames.append(frame)
    return frames


def _has_note(frame: Frame) -> bool:
    return "note" in frame.metadata


def _indices(frames: list[Frame]) -> list[int]:
    return [frame.index for frame in frames]


def _kill(source: Any) -> None:
    os.kill(source._child.pid, signal.SIGKILL)


def _slowly(source: Any) -> Iterator[Frame]:
    """Frames at a fifth of the camera's pace."""
    while True:
        frame = source.read(5.0)
        assert frame is not None
        yield frame
        time.sleep(0.005)


def test_every_frame_before_an_overflow_comes_and_then_one_sentence() -> None:
    read: list[Frame] = []
    with _open(f"{FAST}&buffer_mb=1", every=True) as source:
        with pytest.raises(SourceError, match=r"buffer of \d+ frames \(1 MB\) overflowed after frame \d+,") as caught:
            read.extend(_slowly(source))
        capacity, last = (int(n) for n in re.findall(r"of (\d+) frames .* after frame (\d+),", str(caught.value))[0])
        assert _indices(read) == list(range(last + 1))
        assert len(read) >= capacity > 100
        assert "raise buffer_mb=, lower the camera's rate, look for fewer objects" in str(caught.value)
        with pytest.raises(SourceError, match=f"after frame {last}"):
            source.read(0.0)


def test_the_camera_goes_on_after_an_overflow_if_that_is_wished() -> None:
    with _open(f"{FAST}&buffer_mb=1&overflow=restart", every=True) as source:
        read = []
        for frame in _slowly(source):
            read.append(frame)
            if _has_note(frame):
                break
        read += [source.read(5.0) for _ in range(10)]
    assert _indices(read) == list(range(len(read)))
    noted = read[-11]
    lost = noted.metadata["lost_at_least"]
    assert noted.metadata["note"] == f"the camera's buffer overflowed; at least {lost} frames were lost"
    pace_s = (read[-12].time_s - read[-60].time_s) / 48
    assert lost == pytest.approx((noted.time_s - read[-12].time_s) / pace_s, rel=0.3)


def test_the_newest_frame_wins_under_overload_and_the_gaps_count_the_others() -> None:
    seen, ages_s = [], []
    with _open(f"{FAST}&buffer_mb=16") as source:
        while len(seen) < 100:
            frame = source.read(5.0)
            ages_s.append(time.time() - frame.time_s)
            seen.append(frame)
            time.sleep(0.01)
    indices = _indices(seen)
    gaps = indices[0] + sum(np.diff(indices) - 1)
    assert len(seen) + gaps == indices[-1] + 1
    assert gaps > 3 * len(seen)
    assert np.median(ages_s) < 0.02
    assert not any(map(_has_note, seen))
    # the numbers are the camera's own: its clock shows as many frames as they say
    elapsed_ms = np.array([frame.metadata["elapsed_ms"] for frame in seen])
    assert 0.9 < np.diff(elapsed_ms).sum() / (indices[-1] - indices[0]) < 10


STALL = """
import sys, time
from pathlib import Path
from oneframe.acquisition.camera_core import Camera
from oneframe.acquisition.camera_process import _load_core, _unload
from oneframe.acquisition.camera_wire import CameraSetup

config = Path(sys.argv[1]).resolve()
core = _load_core(CameraSetup("demo:", str(config), False, "", 1, False, False, 1.0), config)
camera = Camera(core, CameraSetup("demo:", "", False, "", 1, False, False, 1.0))
camera.start()
while (first := camera.pop()) is None:
    time.sleep(0.001)
n_waiting = 0
while (n_now := core.get_remaining_image_count()) >= n_waiting:  # until the core cleared its buffer
    n_waiting = n_now
while (later := camera.pop()) is None:
    time.sleep(0.001)
print(first.index, later.index, n_waiting, later.metadata["elapsed_ms"] - first.metadata["elapsed_ms"])
camera.stop()
_unload(core)
"""


def _config(folder: Path, *lines: str) -> Path:
    path = folder / "setup.cfg"
    size = ("Property,Camera,OnCameraCCDXSize,64", "Property,Camera,OnCameraCCDYSize,48", "Property,Camera,Exposure,1")
    path.write_text(_DEMO_CONFIG + "\n".join((*size, *lines)) + "\n")
    return path


def test_what_the_core_throws_away_is_a_gap(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STALL, str(_config(tmp_path))], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    first, later, n_waiting, elapsed_ms = (float(word) for word in done.stdout.split())
    assert later - first > n_waiting > 50
    assert later - first <= elapsed_ms  # 1 ms is the shortest exposure


@posix
def test_a_killed_camera_is_started_again_and_numbers_go_on() -> None:
    with _open(f"{FAST}&buffer_mb=16", every=True) as source:
        before = [source.read(5.0) for _ in range(20)]
        _kill(source)
        after = _read_until(source, _has_note)
        after += [source.read(5.0) for _ in range(20)]
    assert _indices(before + after) == list(range(len(before) + len(after)))
    noted = next(filter(_has_note, after))
    assert noted.metadata["note"] == "the camera was started again: its process was ended by SIGKILL"
    assert noted.metadata["lost_at_least"] >= 0
    assert sum(map(_has_note, after)) == 1


@posix
def test_frames_that_waited_in_a_killed_camera_are_counted() -> None:
    with _open(f"{FAST}&buffer_mb=16", every=True) as source:
        for frame in _slowly(source):
            if frame.index >= 30:
                break
        _kill(source)
        noted = _read_until(source, _has_note)[-1]
    assert noted.metadata["lost_at_least"] > 50  # read at a fifth of the pace


@posix
def test_a_camera_that_dies_too_often_is_given_up_within_a_second() -> None:
    with _open(f"{FAST}&restart=1&buffer_mb=16") as source:
        source.read(5.0)
        _kill(source)
        _read_until(source, _has_note)
        _kill(source)
        start_s = time.monotonic()
        reason = r"ended by SIGKILL after it was started again 1 times; check the camera and its cable"
        with pytest.raises(SourceError, match=reason):
            _read_until(source, lambda frame: False)
        assert time.monotonic() - start_s < 1
        with pytest.raises(SourceError, match="ended by SIGKILL"):
            source.move_xy_um(0.0, 0.0)


@posix
def test_an_adapter_that_crashes_takes_only_its_process(tmp_path: Path) -> None:
    with _open(f"{FAST}&buffer_mb=16") as source:
        last = source.read(5.0).index
        source.set_exposure_ms(3)
        with pytest.raises(SourceError, match="its process was ended by SIGSEGV"):
            source.set_property("Camera", "SimulateCrash", "Dereference Null Pointer")
        noted = _read_until(source, lambda frame: "SIGSEGV" in frame.metadata.get("note", ""))[-1]
        assert noted.index > last
        assert noted.metadata["exposure_ms"] == 3  # as it was before
    crash = _config(tmp_path, "Property,Camera,SimulateCrash,Dereference Null Pointer")
    with pytest.raises(SourceError, match=r"setup\.cfg: its process was ended by SIGSEGV$"):
        open_source(f"mm:{crash}")


def test_a_camera_that_cannot_go_on_is_started_again() -> None:
    with _open(f"{FAST}&buffer_mb=16") as source:
        source.read(5.0)
        with pytest.raises(SourceError, match=r"Micro-Manager says: .*Nope"):
            source.set_property("Camera", "Nope", "1")
        assert "note" not in source.read(5.0).metadata
        source.set_property("Camera", "PixelType", "32bitRGB")
        noted = _read_until(source, _has_note)[-1]
    assert "the camera was started again: expected one grey image a frame" in noted.metadata["note"]
    assert noted.pixels.dtype == np.uint16


def test_a_camera_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "_LOAD_S", 0.05)
    with pytest.raises(SourceError, match=r"the camera was not ready within 0\.05 s; is it switched on\?"):
        open_source(FAST)


@posix
def test_the_camera_ends_with_its_parent() -> None:
    code = (
        f"from oneframe.acquisition import open_source; s = open_source({FAST!r}, every=True); s.read(5.0)\n"
        "print(s._child.pid, flush=True); s._thread.join()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())  # type: ignore[union-attr]
        assert _lives(child)
        parent.kill()
    deadline_s = time.monotonic() + 10
    while _lives(child):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and ") Z " in status.read_text())  # ended, but nobody asked yet


@pytest.mark.parametrize("every", [False, True])
def test_stage_and_settings_may_be_used_while_another_thread_reads(every: bool) -> None:
    frames: list[Frame] = []
    stop = threading.Event()
    with _open("demo:?width=256&height=256&exposure_ms=2&buffer_mb=64", every=every) as source:

        def read() -> None:
            while not stop.is_set():
                frame = source.read(0.5)
                if frame is not None:
                    frames.append(frame)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            _wait_for(lambda: len(frames) > 3)
            still = frames[-1].pixels
            source.move_xy_um(7.0, -5.0)
            assert source.stage_xy_um() == pytest.approx((7.0, -5.0), abs=0.01)
            n = len(frames)
            _wait_for(lambda: len(frames) > n + 20)
            moved = frames[-1].pixels
            source.set_exposure_ms(4)
            source.set_property("Camera", "Binning", "2")
            source.set_roi_xywh_px(8, 16, 64, 32)
            _wait_for(lambda: frames[-1].pixels.shape == (32, 64))
        finally:
            stop.set()
            reader.join(10)
    assert np.abs(moved[5:, :-7].astype(int) - still[:-5, 7:]).max() <= 1
    notes = "; ".join(frame.metadata["note"] for frame in frames if _has_note(frame))
    assert "exposure_ms changed from 2.0 to 4.0" in notes
    assert "binning changed from 1 to 2; roi_xywh_px changed from [0, 0, 256, 256] to [0, 0, 128, 128]" in notes
    assert "roi_xywh_px changed from [0, 0, 128, 128] to [8, 16, 64, 32]" in notes
    assert frames[-1].metadata["exposure_ms"] == 4.0
    assert (np.diff(_indices(frames)) > 0).all()
    if every:
        assert _indices(frames) == list(range(len(frames)))


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def test_frames_that_waited_keep_the_settings_they_were_taken_with() -> None:
    with _open("demo:?width=64&height=48&exposure_ms=2&buffer_mb=16", every=True) as source:
        for frame in _slowly(source):
            if frame.index >= 40:
                break
        source.set_exposure_ms(20)
        frames = _read_until(source, _has_note)
        frames += [source.read(5.0) for _ in range(5)]
    assert len(frames) > 30  # they waited
    exposure_ms = np.array([frame.metadata["exposure_ms"] for frame in frames])
    interval_ms = np.diff([frame.metadata["elapsed_ms"] for frame in frames])
    assert (exposure_ms[:-6] == 2).all()
    assert (exposure_ms[-6:] == 20).all()
    assert np.median(interval_ms[:-6]) < 10
    assert interval_ms[-5:].min() > 18
