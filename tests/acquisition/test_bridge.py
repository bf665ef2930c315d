from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from oneframe.acquisition import BadFrameError, EndOfStream, Frame, SourceError, open_source
from oneframe.acquisition.source import parse_source

pytest.importorskip("pycromanager")

from bridge_server import METHODS, BridgeServer, bridge_server, until

from oneframe.acquisition.bridge import BridgeSource, open_bridge

WAIT_S = 20.0
FAST = "?timeout_s=1&wait_s=10"
JAVA_TRACE = "java.lang.NullPointerException: no image here\n\tat mmcorej.CMMCore.getLastTaggedImage(CMMCore.java:99)"


@contextmanager
def _open(server: BridgeServer, options: str = FAST) -> Iterator[BridgeSource]:
    with closing(open_bridge(parse_source(server.url + options))) as source:
        yield source


def _next(source: BridgeSource, such: Callable[[Frame], bool] = lambda _: True) -> Frame:
    """Next frame that is as wanted; each `read` must keep its time."""
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        began_s = time.monotonic()
        frame = source.read(0.2)
        assert time.monotonic() - began_s < 2.5
        if frame is not None and such(frame):
            return frame
    raise AssertionError("no such frame came")


def _noted(*words: str) -> Callable[[Frame], bool]:
    return lambda frame: all(word in frame.metadata.get("note", "") for word in words)


def _read_until_it_ends(source: BridgeSource, within_s: float) -> None:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        source.read(0.2)
    raise AssertionError(f"it did not end within {within_s} s")


def test_frames_are_the_images_of_the_running_live_mode_and_nothing_is_touched() -> None:
    with bridge_server(width=80, height=48) as server, _open(server) as source:
        assert server.calls.total() == 0
        frame = _next(source)
        truth = server.core.getLastImage()
        assert source.info.live
        assert source.info.pixel_size_um == 0.1
        frames = [frame, *(_next(source) for _ in range(5))]
        source.close()
        assert server.core.isSequenceRunning()
        taking = {"popNextTaggedImage", "startContinuousSequenceAcquisition", "stopSequenceAcquisition", "snapImage"}
        assert not (taking | {"setExposure"}) & set(server.calls)
        assert server.objects == {}
    np.testing.assert_array_equal(frame.pixels, truth)
    assert frame.pixels.dtype == np.uint16
    assert frame.pixels.shape == (48, 80)
    assert frame.pixels.max() > 100
    assert frame.pixel_size_um == 0.1
    assert abs(time.time() - frame.time_s) < 5
    told = {
        "camera": "Camera", "exposure_ms": 5.0, "bit_depth": 16, "binning": "1", "roi_xywh_px": [0, 0, 80, 48]
    }  # fmt: skip
    assert told.items() <= frame.metadata.items()
    assert "note" not in frame.metadata
    assert frame.index == 0
    assert all(earlier.index < later.index and earlier.time_s < later.time_s for earlier, later in pairwise(frames))


def test_the_rate_of_the_bridge_is_told() -> None:
    with bridge_server() as server, _open(server) as source:
        frames = [_next(source) for _ in range(40)]
    fps, mb_per_s = (frames[-1].metadata[key] for key in ("bridge_frames_per_s", "bridge_mb_per_s"))
    assert 1 < fps < 250
    assert mb_per_s == pytest.approx(fps * 64 * 48 * 2 / 1e6, abs=0.006)
    assert frames[-1].metadata["bridge_ms"] > 0


@pytest.mark.parametrize(("pixel_type", "dtype"), [("8bit", np.uint8), ("16bit", np.uint16), ("32bit", np.float32)])
def test_pixel_types(pixel_type: str, dtype: Any) -> None:
    with bridge_server(pixel_type=pixel_type) as server, _open(server) as source:
        pixels = _next(source).pixels
        truth = server.core.getLastImage()
    assert pixels.dtype == dtype
    np.testing.assert_array_equal(pixels, truth.view(dtype))


def test_an_image_is_given_once_and_images_between_two_looks_are_a_gap() -> None:
    with bridge_server() as server, _open(server) as source:
        first = _next(source)
        n_images = server.core.getRemainingImageCount()  # nobody takes them out
        until(lambda: server.core.getRemainingImageCount() >= n_images + 60)
        later = _next(source)
        assert 60 <= later.index - first.index < 200
        server.core.setExposure(400.0)
        slow = _next(source, lambda frame: frame.metadata["exposure_ms"] == 400.0)
        while slow is not None:
            slow = source.read(0.1)
        assert source.read(0.0) is None


@pytest.mark.parametrize("options", ["?wait_s=0.5", "?wait_s=0.5&snap=0"])
def test_live_mode_that_stays_off_is_one_sentence(options: str) -> None:
    with bridge_server(live=False) as server, _open(server, options) as source:
        for _ in range(2):
            with pytest.raises(
                SourceError, match=r"no frame for 0\.5 s: live mode is off; press Live .* add \?snap=1$"
            ):
                _read_until_it_ends(source, 10)


def test_live_mode_may_be_switched_on_later() -> None:
    with bridge_server(live=False) as server, _open(server) as source:
        until(lambda: source.read(0.05) is None and server.calls["isSequenceRunning"] > 2)
        server.press_live(True)
        frame = _next(source)
    assert frame.index == 0
    assert "note" not in frame.metadata


def test_live_mode_stopped_and_started_goes_on_with_a_note() -> None:
    with bridge_server() as server, _open(server) as source:
        before = [_next(source) for _ in range(5)][-1]
        server.press_live(False)
        until(lambda: source.read(0.05) is None and "off" in source._trouble)
        server.press_live(True)
        after = _next(source, _noted("live mode was off for"))
        assert after.index > before.index
        assert after.metadata["lost_at_least"] == 0
        assert "note" not in _next(source).metadata


def test_a_restart_between_two_looks_shows_in_the_numbers() -> None:
    with bridge_server() as server, _open(server) as source:
        before = [_next(source) for _ in range(30)][-1]
        server.press_live(False)
        server.press_live(True)
        after = _next(source, _noted("counter began anew: live mode was restarted, or its"))
    assert before.index < after.index < before.index + 60
    assert after.metadata["lost_at_least"] == 0


def test_images_are_snapped_only_if_asked() -> None:
    with bridge_server(live=False, width=80) as server, _open(server, FAST + "&snap=1") as source:
        snapped = [_next(source) for _ in range(3)]
        assert server.calls["snapImage"] >= 3
        assert [frame.index for frame in snapped] == [0, 1, 2]
        assert snapped[0].pixels.shape == (48, 80)
        server.press_live(True)
        live = _next(source, _noted("live mode is on"))
        n_snapped = server.calls["snapImage"]
        assert live.index > 2
        assert _next(source).index > live.index
        assert server.calls["snapImage"] == n_snapped


def test_the_exposure_is_set_only_if_asked() -> None:
    with bridge_server() as server, _open(server, FAST + "&exposure_ms=12") as source:
        assert _next(source).metadata["exposure_ms"] == 12.0
        assert server.calls["setExposure"] == 1


def test_changed_settings_are_noted() -> None:
    with bridge_server() as server, _open(server) as source:
        _next(source)
        server.core.setExposure(7.0)
        assert "exposure_ms changed from 5.0 to 7.0" in _next(source, _noted("exposure")).metadata["note"]
        server.press_live(False)
        server.core.setROI(8, 16, 32, 24)
        server.press_live(True)
        frame = _next(source, _noted("roi_xywh_px changed from [0, 0, 64, 48] to [8, 16, 32, 24]"))
        assert frame.pixels.shape == (24, 32)
        server.press_live(False)
        server.core.setProperty("Camera", "Binning", "2")
        server.core.setProperty("Camera", "BitDepth", "12")
        server.press_live(True)
        frame = _next(source, _noted("binning changed from 1 to 2", "bit_depth changed from 16 to 12"))
    assert frame.metadata["bit_depth"] == 12


def test_images_without_numbers_are_told_apart_by_their_pixels() -> None:
    with bridge_server() as server:
        server.faults.without_numbers = True
        with _open(server) as source:
            assert _next(source).index == 0
            assert source.read(0.3) is None  # beads do not flicker: the next image is the same
            server.core.setXYPosition(9.0, 9.0)
            moved = _next(source)
    assert moved.index == 1
    assert abs(moved.time_s - time.time()) < 5


def test_colours_from_the_beginning_are_refused() -> None:
    with bridge_server() as server:
        server.faults.colour = True
        with (
            _open(server) as source,
            pytest.raises(SourceError, match="expected grey pixels, Micro-Manager's camera sends RGB32; choose a grey"),
        ):
            _next(source)


def test_colours_in_mid_run_are_bad_frames_until_the_user_goes_back() -> None:
    with bridge_server() as server, _open(server) as source:
        before = _next(source)
        server.faults.colour = True
        with pytest.raises(BadFrameError, match="sends RGB32; choose a grey pixel type") as caught:
            _next(source, lambda _: False)
        server.faults.colour = False
        after = _next_good(source, _noted("pixel_type changed from RGB32 to GRAY16"))
    assert before.index < (caught.value.index or 0) < after.index


def test_a_wrong_number_of_pixels_is_never_an_image() -> None:
    with bridge_server() as server, _open(server) as source:
        before = _next(source)
        server.faults.missing_pixels = 64
        with pytest.raises(
            BadFrameError, match=r"expected 48 x 64 = 3072 pixels, got 3008; the ROI or binning"
        ) as caught:
            _next(source, lambda _: False)
        server.faults.missing_pixels = 0
        after = _next_good(source)
    assert before.index < (caught.value.index or 0) < after.index


def _next_good(source: BridgeSource, such: Callable[[Frame], bool] = lambda _: True) -> Frame:
    for _ in range(50):
        try:
            return _next(source, such)
        except BadFrameError:
            continue
    raise AssertionError("only bad frames came")


def test_a_buffer_that_is_empty_for_a_moment_is_noted() -> None:
    with bridge_server() as server, _open(server) as source:
        _next(source)
        server.faults.empty = True
        assert _drained(source, 0.3)
        server.faults.empty = False
        after = _next(source, _noted("Micro-Manager's image buffer was empty for"))
    assert after.metadata["lost_at_least"] == 0


def _drained(source: BridgeSource, silence_s: float) -> bool:
    return any(source.read(silence_s) is None for _ in range(20))


def test_a_camera_that_gives_nothing_is_one_sentence() -> None:
    with bridge_server() as server:
        server.faults.empty = True
        with (
            _open(server, "?wait_s=0.5") as source,
            pytest.raises(
                SourceError, match=r"no frame for 0\.5 s: live mode is on, but the camera gives no new image;"
            ),
        ):
            _read_until_it_ends(source, 10)


def test_an_exception_in_java_for_a_moment_is_noted() -> None:
    with bridge_server() as server, _open(server) as source:
        _next(source)
        server.faults.exception = JAVA_TRACE
        assert _drained(source, 0.3)
        server.faults.exception = ""
        after = _next(source, _noted("Micro-Manager said: no image here for"))
    assert after.metadata["lost_at_least"] == 0


def test_an_exception_in_java_that_stays_is_one_sentence() -> None:
    with bridge_server() as server, _open(server) as source:
        _next(source)
        server.faults.exception = JAVA_TRACE
        with pytest.raises(SourceError, match=r"Micro-Manager says, for 1 s: no image here; mend it there") as caught:
            _read_until_it_ends(source, 10)
    assert "\n" not in str(caught.value)


def test_a_bridge_of_another_version_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    with bridge_server(version="4.2.0") as server, _open(server) as source:
        frame = _next(source)
    sentence = r"Micro-Manager's bridge has version 4.2.0, pyjavaz here expects 5.1.0; update"
    assert sentence in frame.metadata["note"]
    assert sentence in caplog.text


def test_nothing_that_listens_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    source = open_bridge(parse_source(f"micromanager://localhost:{port}"))
    advice = rf"nothing listens on localhost:{port}; start Micro-Manager and tick .* Run server on port {port}"
    began_s = time.monotonic()
    for _ in range(2):
        with pytest.raises(SourceError, match=advice):
            source.read(0.0)
    with pytest.raises(SourceError, match=advice):
        source.move_xy_um(0.0, 0.0)
    source.close()
    assert time.monotonic() - began_s < 5


@pytest.mark.parametrize("talks_zmq", [True, False])
def test_a_bridge_that_does_not_answer_is_one_sentence(talks_zmq: bool) -> None:
    with bridge_server() as server, socket.create_server(("127.0.0.1", 0)) as mute:
        server.faults.delay_s = 60.0
        port = server.port if talks_zmq else mute.getsockname()[1]
        with closing(open_bridge(parse_source(f"micromanager://127.0.0.1:{port}?timeout_s=0.5"))) as source:
            began_s = time.monotonic()
            with pytest.raises(
                SourceError, match=rf"127\.0\.0\.1:{port} gave no answer for 0\.5 s; is it Micro-Manager"
            ):
                _read_until_it_ends(source, 10)
            assert time.monotonic() - began_s < 8


def test_a_micro_manager_without_a_camera_is_one_sentence() -> None:
    with bridge_server(live=False) as server:
        server.core.setCameraDevice("")
        with _open(server) as source, pytest.raises(SourceError, match=r"no camera; load a .* the Core role Camera$"):
            _next(source)


def test_several_cameras_in_one_are_refused() -> None:
    with bridge_server(live=False) as server:
        core = server.core
        core.loadDevice("Second", "DemoCamera", "DCam")
        core.loadDevice("Both", "Utilities", "Multi Camera")
        core.initializeDevice("Second")
        core.initializeDevice("Both")
        core.setProperty("Both", "Physical Camera 1", "Camera")
        core.setProperty("Both", "Physical Camera 2", "Second")
        core.setCameraDevice("Both")
        with _open(server) as source, pytest.raises(SourceError, match=r"expected one camera, .* choose one in it$"):
            _next(source)


def test_a_server_that_comes_back_is_found_again() -> None:
    with bridge_server() as server, _open(server) as source:
        before = _next(source)
        server.vanish()
        began_s = time.monotonic()
        while source._ready:
            source.read(0.1)
            assert time.monotonic() - began_s < 5
        server.come_back()
        after = _next(source, _noted("Micro-Manager went away (no answer for 1 s", "connected again after"))
        assert after.index > before.index
        assert after.metadata["lost_at_least"] == 0
        np.testing.assert_array_equal(after.pixels, before.pixels)
        assert source.stage_xy_um() == pytest.approx((0.0, 0.0), abs=0.01)


def test_a_server_that_stays_away_is_one_sentence() -> None:
    with bridge_server() as server, _open(server, "?timeout_s=0.5&wait_s=1") as source:
        _next(source)
        server.vanish()
        with pytest.raises(
            SourceError, match=r"went away \(no answer for 0\.5 s.* did not come back within 1 s; start"
        ):
            _read_until_it_ends(source, 10)


def test_an_answer_that_is_overdue_never_becomes_the_answer_to_another_question() -> None:
    with bridge_server() as server, _open(server) as source:
        before = _next(source)
        server.faults.delay_s = 1.5
        until(lambda: source.read(0.1) is None and not source._ready)
        server.faults.delay_s = 0.0
        after = _next(source, _noted("connected again"))
    np.testing.assert_array_equal(after.pixels, before.pixels)
    assert after.index > before.index


def test_a_slow_bridge_is_only_slow() -> None:
    with bridge_server() as server, _open(server) as source:
        _next(source)
        server.faults.delay_s = 0.05
        read = [_next(source) for _ in range(3)]
    assert read[0].index < read[1].index < read[2].index
    assert not any("note" in frame.metadata for frame in read)


def test_the_process_that_holds_the_bridge_may_be_killed() -> None:
    with bridge_server() as server, _open(server) as source:
        _next(source)
        assert source._process is not None
        source._process._process.kill()
        assert _next(source, _noted("the process that holds the bridge ended", "connected again")).index > 0


def test_closing_returns_in_time_whatever_the_server_does() -> None:
    with bridge_server() as server:
        sources = [open_bridge(parse_source(server.url)) for _ in range(3)]
        for source in sources[:2]:
            _next(source)
        server.faults.delay_s = 60.0
        sources[0].read(0.1)
        began_s = time.monotonic()
        for source in sources:
            source.close()
            source.close()
            with pytest.raises(EndOfStream, match="was closed"):
                source.read(0.0)
        assert time.monotonic() - began_s < 5


@pytest.mark.parametrize("vanishes", [True, False])
def test_python_exits_at_once_without_closing(vanishes: bool) -> None:
    code = (
        "import sys; from oneframe.acquisition.bridge import open_bridge; "
        "from oneframe.acquisition.source import parse_source; s = open_bridge(parse_source(sys.argv[1])); "
        "print(s.read(20.0).index, flush=True); sys.stdin.readline()"
    )
    with bridge_server() as server:
        process = subprocess.Popen(
            [sys.executable, "-c", code, server.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        if vanishes:
            server.vanish()
        began_s = time.monotonic()
        _, errors = process.communicate("\n", timeout=30)
        assert time.monotonic() - began_s < 5
    assert (process.returncode, errors) == (0, "")


def test_the_java_core_is_seen_although_a_core_runs_in_this_process() -> None:
    with (
        closing(open_source("demo:?width=32&height=32&exposure_ms=5&buffer_mb=16")) as demo,
        bridge_server(width=80) as server,
        _open(server) as source,
    ):
        assert _next(source).pixels.shape == (48, 80)
        frame = demo.read(5.0)
        assert frame is not None
        assert frame.pixels.shape == (32, 32)


def test_moving_the_stage_moves_the_image() -> None:
    with bridge_server(width=256, height=256) as server, _open(server) as source:
        assert source.stage_xy_um() == pytest.approx((0.0, 0.0), abs=0.01)
        before = _next(source).pixels
        source.move_xy_um(0.7, -0.5)  # 0.1 µm a pixel is what this Micro-Manager says, but beads know 1 µm
        source.move_xy_um(7.0, -5.0)
        moved_s = time.time()
        assert source.stage_xy_um() == pytest.approx((7.0, -5.0), abs=0.01)
        after = _next(source, lambda frame: frame.time_s > moved_s + 0.02).pixels
    difference = after[5:, :-7].astype(int) - before[:-5, 7:]
    assert np.abs(difference).max() <= 1
    assert np.abs(after.astype(int) - before).max() > 100


def test_a_missing_stage_is_one_sentence_and_frames_go_on() -> None:
    with bridge_server() as server, _open(server) as source:
        server.core.setXYStageDevice("")
        with pytest.raises(SourceError, match="Micro-Manager has no XY stage; set the Core role XYStage"):
            source.move_xy_um(1.0, 1.0)
        server.core.setXYStageDevice("XY")
        server.faults.delay_s = 3.0
        with pytest.raises(SourceError, match="get_xy_stage_device got no answer from Micro-Manager within 1 s"):
            source.stage_xy_um()
        server.faults.delay_s = 0.0
        assert _next(source).index >= 0


def test_another_computer_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    source = open_bridge(parse_source("micromanager://192.0.2.1:4827?timeout_s=0.2"))
    assert "192.0.2.1 is another computer: whoever reaches Micro-Manager's bridge can run code there" in caplog.text
    assert "ssh -L 4827:127.0.0.1:4827 192.0.2.1" in source._notes[0]
    with pytest.raises(SourceError, match=r"nothing listens on 192\.0\.2\.1:4827"):
        source.read(0.0)
    source.close()


def test_who_wants_every_frame_is_told_that_this_is_only_a_look() -> None:
    with (
        bridge_server() as server,
        closing(BridgeSource("micromanager:", replace(_settings(), port=server.port), every=True)) as source,
    ):
        assert "can only be looked at" in _next(source).metadata["note"]


def _settings() -> Any:
    return open_bridge(parse_source("micromanager:"))._settings


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("micromanager:4827", "expected micromanager: or micromanager://HOST:4827"),
        ("micromanager://h:0", "expected micromanager: or micromanager://HOST:4827"),
        ("micromanager://h:99999", "mend the address"),
        ("micromanager:?snap=2", "snap must be a whole number from 0 to 1"),
        ("micromanager:?timeout_s=0", "timeout_s must be a number from 0.1 to 600"),
        ("micromanager:?pop=1", "unknown option pop; known are exposure_ms, snap, timeout_s, wait_s"),
    ],
)
def test_a_wrong_url_is_one_sentence(url: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        open_bridge(parse_source(url))


@pytest.mark.parametrize(("url", "host", "port"), [("", "127.0.0.1", 4827), ("//pc", "pc", 4827), ("//::1", None, 0)])
def test_where_micro_manager_is(url: str, host: str | None, port: int) -> None:
    if host is None:
        with pytest.raises(SourceError, match="expected micromanager:"):
            open_bridge(parse_source(f"micromanager:{url}"))
        return
    settings = open_bridge(parse_source(f"micromanager:{url}"))._settings
    assert (settings.host, settings.port) == (host, port)


def test_pycromanagers_own_core_talks_to_the_test_server() -> None:
    code = (
        "import sys, pycromanager, pyjavaz; core = pycromanager.Core(port=int(sys.argv[1]), timeout=5000); "
        "core.snap_image(); image = core.get_tagged_image(); "
        "print(image.pix.shape, image.pix.dtype, image.tags['Camera-Description'], abs(core.get_x_position('XY'))); "
        "del image; del core; pyjavaz.server_terminated(int(sys.argv[1]))"
    )
    with bridge_server(live=False) as server:
        command = [sys.executable, "-X", "utf8", "-c", code, str(server.port)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "(3072,) uint16 naïve @ 20 °C 0.0\n", "")
        assert server.objects == {}
        assert set(server.calls) <= set(METHODS)
