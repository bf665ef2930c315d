from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneframe.acquisition import EndOfStream, SourceError, open_source, snap

pytest.importorskip("pycromanager")

import mm_test_adapters

from oneframe.acquisition.micromanager import _DEMO_CONFIG, check_device_interface

SMALL = "width=64&height=48&exposure_ms=1&buffer_mb=16"


@contextmanager
def _open(url: str, *, every: bool = False) -> Iterator[Any]:
    source = open_source(url, every=every)
    try:
        yield source
    finally:
        source.close()


def _frame_after_now(source: Any) -> Any:
    """First frame begun after this call: the one before it may have been in the making, for as long as that takes."""
    now_s = time.time()
    while source.read(5.0).time_s < now_s + 0.005:
        pass
    return source.read(5.0)


def _assert_shifted(before: Any, after: Any) -> None:
    """The image moved by exactly (dx, dy) = (-7, +5) px; the stage stops within 0.005 µm, hence the one grey level."""
    difference = after[5:, :-7].astype(int) - before[:-5, 7:]
    assert np.abs(difference).max() <= 1
    assert np.abs(after.astype(int) - before).max() > 100


def test_the_demo_camera_gives_frames_as_asked() -> None:
    with _open("demo:?width=320&height=200&exposure_ms=5&buffer_mb=16") as source:
        assert (source.info.live, source.info.n_frames, source.info.pixel_size_um) == (True, None, 1.0)
        frame = snap(source)
    assert frame.pixels.shape == (200, 320)
    assert frame.pixels.dtype == np.uint16
    assert frame.pixels.max() > 100
    assert frame.pixel_size_um == 1.0
    assert abs(time.time() - frame.time_s) < 5
    assert frame.metadata["exposure_ms"] == 5.0
    assert frame.metadata["bit_depth"] == 16
    assert frame.metadata["binning"] == "1"
    assert frame.metadata["roi_xywh_px"] == [0, 0, 320, 200]
    assert frame.metadata["elapsed_ms"] > 0


def test_no_number_is_missing_when_every_frame_is_wanted() -> None:
    with _open(f"demo:?{SMALL}", every=True) as source:
        assert source.info.buffered
        read = [source.read(5.0) for _ in range(200)]
    assert [frame.index for frame in read] == list(range(200))
    assert all(later.time_s >= earlier.time_s for earlier, later in pairwise(read))
    assert not any("note" in frame.metadata or "lost_at_least" in frame.metadata for frame in read)


def test_moving_the_stage_moves_the_image() -> None:
    with _open("demo:?width=256&height=256&exposure_ms=1&buffer_mb=16") as source:
        before = snap(source).pixels
        source.move_xy_um(7.0, -5.0)
        assert source.stage_xy_um() == pytest.approx((7.0, -5.0), abs=0.01)
        after = _frame_after_now(source).pixels
    _assert_shifted(before, after)


def test_options_and_stages_are_set_before_the_first_frame() -> None:
    options = "&z_um=8&x_um=7&y_um=-5&brightness=4&density=400&bead_size=5"
    with (
        _open("demo:?width=256&height=256&exposure_ms=1&buffer_mb=16") as plain,  # two cameras at once
        _open(f"demo:?width=256&height=256&exposure_ms=1&buffer_mb=16{options}") as other,
    ):
        assert other.stage_xy_um() == pytest.approx((0.0, 0.0))
        moved = snap(other).pixels
        assert other.stage_xy_um() == pytest.approx((7.0, -5.0), abs=0.01)
        origin = snap(plain).pixels
        assert plain.stage_xy_um() == pytest.approx((0.0, 0.0))
        assert moved.mean() > 20 * origin.mean()

        for name, value in (("BeadBrightness", "1"), ("BeadDensity", "100"), ("BeadSize", "2")):
            other.set_property("Camera", name, value)
        blurred = _frame_after_now(other).pixels
        assert blurred.max() < 0.9 * origin.max()
        plain.move_xy_um(7.0, -5.0)
        _assert_shifted(origin, _frame_after_now(plain).pixels)


def test_modes_are_known_by_name_in_any_case() -> None:
    with _open(f"demo:?{SMALL}&mode=artificial+waves") as source:
        assert np.median(snap(source).pixels) > 0  # beads have a black background


def test_closing_twice_is_harmless() -> None:
    with _open(f"demo:?{SMALL}") as source:
        assert snap(source).pixels.shape == (48, 64)
    source.close()
    with pytest.raises(EndOfStream, match="was closed"):
        source.read(0.0)
    with pytest.raises(EndOfStream, match="was closed"):
        source.stage_xy_um()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (
            "demo:?mode=Beads",
            "mode must be one of Artificial Waves, Color Test Pattern, Fluorescent Beads, Noise, got 'Beads'",
        ),
        ("demo:?exposure_ms=0.5", "exposure_ms must be a number from 1 to 10000"),
        ("demo:?density=5", "density must be a whole number from 10 to 500"),
        ("demo:?pixel_type=32bitRGB", "unknown option pixel_type"),
        ("demo:?overflow=ignore", "overflow must be stop or restart, got 'ignore'"),
        ("demo:beads", "options begin with a question mark"),
        ("mm:absent.cfg", "expected a Micro-Manager configuration file, absent.cfg is none"),
    ],
)
def test_a_wrong_url_is_one_sentence(url: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        open_source(url)


def test_exposure_sets_the_pace() -> None:
    def interval_ms(source: Any) -> float:
        while "note" not in source.read(5.0).metadata:
            pass
        elapsed_ms = [source.read(5.0).metadata["elapsed_ms"] for _ in range(6)]
        return float(np.median(np.diff(elapsed_ms)))

    with _open(f"demo:?{SMALL}", every=True) as source:
        source.read(5.0)
        source.set_exposure_ms(40)
        assert interval_ms(source) > 0.9 * 40
        source.set_exposure_ms(2)
        assert interval_ms(source) < 40


def test_a_short_wait_gives_no_frame() -> None:
    with _open("demo:?width=64&height=48&exposure_ms=200&buffer_mb=16") as source:
        assert source.read(0.0) is None
        assert source.read(5.0) is not None


def test_a_buffer_that_is_too_small_says_so() -> None:
    with (
        _open("demo:?width=2048&height=2048&buffer_mb=1") as source,
        pytest.raises(SourceError, match="raise buffer_mb="),
    ):
        source.read(1.0)


def _config(folder: Path, *lines: str) -> Path:
    path = folder / "setup.cfg"
    size = ("Property,Camera,OnCameraCCDXSize,64", "Property,Camera,OnCameraCCDYSize,48", "Property,Camera,Exposure,1")
    path.write_text(_DEMO_CONFIG + "\n".join((*size, *lines)) + "\n")
    return path


def test_a_configuration_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _config(tmp_path, "Property,Camera,PixelType,8bit", "Property,Camera,BitDepth,8", "PixelSize_um,1x,0.065")
    monkeypatch.chdir(tmp_path)
    with _open("mm:setup.cfg?buffer_mb=16&exposure_ms=3") as source:
        frame = snap(source)
        assert source.stage_xy_um() == pytest.approx((0.0, 0.0))
    assert (frame.pixels.dtype, frame.pixels.shape) == (np.uint8, (48, 64))
    assert frame.pixel_size_um == 0.065
    assert frame.metadata["exposure_ms"] == 3.0


def test_32_bit_pixels_are_floats(tmp_path: Path) -> None:
    with _open(
        f"mm:{_config(tmp_path, 'Property,Camera,PixelType,32bit', 'Property,Camera,BitDepth,32')}?buffer_mb=16"
    ) as source:
        pixels = snap(source).pixels
    assert pixels.dtype == np.float32
    assert 0 < pixels.max() < 10
    assert pixels.std() > 0


@pytest.mark.parametrize("pixel_type", ["32bitRGB", "64bitRGB"])
def test_a_colour_camera_is_refused_before_it_starts(tmp_path: Path, pixel_type: str) -> None:
    with (
        _open(f"mm:{_config(tmp_path, f'Property,Camera,PixelType,{pixel_type}')}?buffer_mb=16") as source,
        pytest.raises(SourceError, match=r"expected one grey image a frame, .* choose one camera and a grey"),
    ):
        source.read(1.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("# nothing\n", "names no camera; set the Core role Camera"),
        (_DEMO_CONFIG + "Property,Camera,Nope,1\n", "Micro-Manager says: Line .* Invalid property name .*Nope"),
        (_DEMO_CONFIG.replace("DemoCamera,DCam", "NoSuchMaker,X"), 'Failed to load device adapter "NoSuchMaker"'),
        (re.sub(".*XYStage.*\n", "", _DEMO_CONFIG), "names no XY stage"),
    ],
)
def test_a_wrong_configuration_is_one_sentence(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "wrong.cfg"
    path.write_text(text)
    with pytest.raises(SourceError, match=reason) as caught, _open(f"mm:{path}?buffer_mb=16") as source:
        source.move_xy_um(1.0, 1.0)
    assert "\n" not in str(caught.value)


def test_the_folder_of_micro_manager_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(tmp_path)
    with pytest.raises(SourceError, match=r"expected the folder of Micro-Manager, .* set app= or MICROMANAGER_PATH"):
        open_source(f"mm:{config}?app={tmp_path / 'absent'}")
    monkeypatch.setenv("MICROMANAGER_PATH", mm_test_adapters.device_adapter_path())
    with _open(f"mm:{config}?buffer_mb=16") as source:
        assert snap(source).pixels.shape == (48, 64)


def test_device_interfaces_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_device_interface() is None
    assert check_device_interface(Path(mm_test_adapters.device_adapter_path())) is None
    # a package that is read by the camera's process, and prints where its messages go
    (tmp_path / "mm_test_adapters.py").write_text("__version__ = '1.20200101'\nprint('hello', flush=True)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    reason = (
        r"has device interface (\d+), mm-test-adapters 1\.20200101 has 1; run: pip install 'mm-test-adapters==\1\.\*'"
    )
    with pytest.raises(SourceError, match=reason):
        open_source("demo:")


def test_python_may_exit_while_the_camera_runs() -> None:
    code = "from oneframe.acquisition import open_source as o; s = o('demo:'); print(s.read(5.0).index >= 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
