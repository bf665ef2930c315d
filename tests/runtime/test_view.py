import re
import sys
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

pg = pytest.importorskip("pyqtgraph", reason="needs oneframe[view]", exc_type=ImportError)

from pyqtgraph.Qt import QtCore, QtGui, QtTest  # noqa: E402

from oneframe.acquisition import Frame  # noqa: E402
from oneframe.runtime.account import Status  # noqa: E402
from oneframe.runtime.detections import Detections, Tracks  # noqa: E402
from oneframe.runtime.display import DisplaySink, Notice, PictureStream, picture_of, start_viewer  # noqa: E402
from oneframe.runtime.seams import Analysed  # noqa: E402
from oneframe.runtime.view import (  # noqa: E402
    RING_RGB,
    TAIL_RGB,
    LiveWindow,
    Tails,
    length_label,
    main,
    nice_length,
    status_html,
)

STATUS = Status(
    camera_fps=50.0,
    inference_fps=50.0,
    age_p50_ms=12.0,
    age_p99_ms=18.0,
    seen=500,
    analysed=500,
    skipped=0,
    failed=0,
    lost=0,
    n_detections=3,
)
POSITIONS = np.array([[40.0, 50.5], [100.25, 130.0], [170.0, 60.75]], np.float32)
DIAMETER_PX = 24.0


def scene(positions=POSITIONS, *, index=0, shape=(200, 240), dtype=np.uint16, pixel_size_um=0.1) -> Analysed:
    rng = np.random.default_rng(index)
    image = rng.normal(100, 4, shape)
    ys, xs = np.indices(shape)
    for y, x in positions:
        image += 60 * np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / (2 * 4.0**2))
    ones = np.ones(len(positions), np.float32)
    detections = Detections(np.ascontiguousarray(positions[:, 0]), np.ascontiguousarray(positions[:, 1]), ones)
    ids = np.arange(len(positions), dtype=np.int64)
    return Analysed(Frame(image.astype(dtype), index, 1.5e9, pixel_size_um), Tracks(detections, ids), 0.012, 0.008)


def shown(positions=POSITIONS, *, max_side_px=1024, status=STATUS, **changes):
    return picture_of(scene(positions, **changes), status=status, max_side_px=max_side_px)


@pytest.fixture
def sink():
    made = DisplaySink(status=lambda: STATUS, max_fps=1e6)
    yield made
    made.close()


@pytest.fixture
def window(qt, sink):
    made = LiveWindow(PictureStream(sink.address), title="bead.onnx · sim:beads", diameter_px=DIAMETER_PX)
    made.show()
    wait_until(qt, made.isVisible)
    yield made
    made.close()


def wait_until(qt, condition, timeout_s=20.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        qt.processEvents(QtCore.QEventLoop.ProcessEventsFlag.AllEvents, 20)


def screenshot(window, path) -> np.ndarray:
    """Return the window as (H, W, 3) RGB."""
    window.grab_png(path)
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB).astype(int)


def is_colour(rgb, colour, tolerance=90) -> np.ndarray:
    return (np.abs(rgb - np.array(colour)) < tolerance).all(axis=2)


def ring_on_screen(window, rgb, y_px, x_px, radius_px) -> float:
    """Return the fraction of a circle of the camera on which there is ring colour, 1.5 px of the screen allowed."""
    near = cv2.dilate(is_colour(rgb, RING_RGB).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    places = [window.to_window_px(y_px + radius_px * np.sin(a), x_px + radius_px * np.cos(a)) for a in angles]
    return float(np.mean([near[round(y), round(x)] for y, x in places]))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_rings_lie_round_the_particles_of_a_picture_from_the_wire(qt, sink, window, tmp_path, dtype):
    assert sink.wait_for_view(10)
    sink.write(scene(dtype=np.dtype(dtype)))
    wait_until(qt, lambda: window.n_pictures == 1)
    qt.processEvents()
    rgb = screenshot(window, tmp_path / "window.png")
    for y_px, x_px in POSITIONS:
        assert ring_on_screen(window, rgb, y_px, x_px, DIAMETER_PX / 2) > 0.9
        assert ring_on_screen(window, rgb, y_px, x_px, DIAMETER_PX / 4) < 0.1
        row, column = window.to_window_px(y_px, x_px)
        assert rgb[round(row), round(column)].min() > 200  # the particle itself is bright
    assert ring_on_screen(window, rgb, 100.0, 30.0, DIAMETER_PX / 2) < 0.1


def test_levels_do_not_saturate(window, tmp_path, qt):
    window.take(shown())
    qt.processEvents()
    rgb = screenshot(window, tmp_path / "window.png")
    (top, left), (bottom, right) = window.to_window_px(5, 100), window.to_window_px(80, 230)
    background = rgb[round(top) : round(bottom), round(left) : round(right)]
    assert 10 < np.median(background) < 120
    assert (background == 255).mean() < 0.01
    assert (background == 0).mean() < 0.05


def test_a_thinned_picture_has_its_rings_where_the_camera_saw_them(qt, window, tmp_path):
    window.take(shown(POSITIONS * 4, shape=(800, 960), max_side_px=250))
    qt.processEvents()
    assert window.picture.stride == 4
    rgb = screenshot(window, tmp_path / "window.png")
    (first_row, first_column), (last_row, last_column) = window.to_window_px(0, 0), window.to_window_px(796, 956)
    scale = (last_column - first_column) / 956
    assert (last_row - first_row) / 796 == pytest.approx(scale, rel=0.02)
    for y_px, x_px in POSITIONS * 4:
        assert ring_on_screen(window, rgb, y_px, x_px, DIAMETER_PX / 2) > 0.9
        assert rgb[tuple(np.rint(window.to_window_px(y_px, x_px)).astype(int))].min() > 150


def test_rings_keep_their_size_in_the_sample_when_zoomed(qt, window, tmp_path):
    window.take(shown())
    qt.processEvents()
    y_px, x_px = map(float, POSITIONS[1])
    window._view.setRange(QtCore.QRectF(x_px - 30, y_px - 30, 60, 60), padding=0)
    qt.processEvents()
    rgb = screenshot(window, tmp_path / "window.png")
    assert ring_on_screen(window, rgb, y_px, x_px, DIAMETER_PX / 2) > 0.9
    QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_F)
    qt.processEvents()
    assert window._view.viewRect().width() >= 240


def test_tails_follow_the_tracks_and_keys_hide_what_lies_on_the_picture(qt, window, tmp_path):
    for index in range(12):
        window.take(shown(POSITIONS + np.float32([0, 2 * index]), index=index))
    qt.processEvents()
    both = screenshot(window, tmp_path / "both.png")
    for y_px, x_px in POSITIONS:
        row, column = np.rint(window.to_window_px(y_px, x_px + 4)).astype(int)
        assert is_colour(both, TAIL_RGB)[row - 2 : row + 3, column - 2 : column + 3].any()
    QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_T)
    QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_R)
    qt.processEvents()
    none = screenshot(window, tmp_path / "none.png")
    picture = slice(round(window.to_window_px(0, 0)[0]), round(window.to_window_px(199, 0)[0]))
    assert not is_colour(none[picture], TAIL_RGB, 60).any()
    assert not is_colour(none[picture], RING_RGB, 60).any()


def test_tails_break_where_a_track_was_not_seen_and_vanish_after_it():
    tails = Tails(length=4)
    for index, ids in enumerate([[7, 3], [7], [3, 7], [9]]):
        picture = shown(np.float32([[index, 10 * track] for track in ids]), index=index)
        tails.add(replace(picture, track_id=np.array(ids)))
    y_px, x_px = tails.curve()
    lines = {float(x): y.tolist() for x, y in zip((30, 70, 90), y_px.reshape(3, 5), strict=True)}
    np.testing.assert_array_equal(lines[30], [0, np.nan, 2, np.nan, np.nan])
    np.testing.assert_array_equal(lines[70], [0, 1, 2, np.nan, np.nan])
    np.testing.assert_array_equal(lines[90], [np.nan, np.nan, np.nan, 3, np.nan])
    assert np.isnan(x_px.reshape(3, 5)[:, -1]).all()
    for index in range(4, 9):
        tails.add(shown(np.empty((0, 2), np.float32), index=index))
    assert len(tails.curve()[0]) == 0


def test_tails_start_afresh_with_a_new_run_and_leave_out_what_is_not_linked():
    tails = Tails()
    tails.add(shown(index=50))
    tails.add(replace(shown(index=0), track_id=np.array([-1, 5, 5])))
    assert np.isfinite(tails.curve()[0]).sum() == 1


def test_freezing_holds_the_picture(window):
    window.take(shown(index=1))
    QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_Space)
    window.take(shown(index=2))
    assert (window.picture.index, window.n_pictures, window.frozen) == (1, 2, True)
    QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_Space)
    window.take(shown(index=3))
    assert (window.picture.index, window.frozen) == (3, False)


def test_brightness_stays_where_the_user_put_it_until_it_is_automatic_again(window):
    first = shown()
    window.take(first)
    assert tuple(window._image.levels) == first.levels
    QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_Up)
    brighter = tuple(window._image.levels)
    assert brighter[0] == first.levels[0]
    assert brighter[1] < first.levels[1]
    window.take(replace(shown(index=1), levels=(0.0, 9.0)))
    assert tuple(window._image.levels) == brighter
    QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_0)
    assert tuple(window._image.levels) == (0.0, 9.0)


def test_the_state_of_the_run_is_shown(qt, sink, window):
    assert window._badge.text() == "WAITING"
    wait_until(qt, lambda: window._stream.connected)
    window.take(shown())
    window.show_status()
    assert window._badge.text() == "LIVE"
    window._arrived_s -= 7
    window.show_status()
    assert window._badge.text() == "NO PICTURE FOR 7 s"
    sink.close()
    wait_until(qt, lambda: window.ended)
    window.show_status()
    assert window._badge.text() == "RUN ENDED"


def test_a_vanished_pipeline_is_shown(qt, sink, window):
    wait_until(qt, lambda: window._stream.connected)
    window.take(shown())
    sink._context.destroy(linger=0)  # as when its process is killed: no last word
    wait_until(qt, lambda: not window._stream.connected)
    window.show_status()
    assert window._badge.text() == "NO CONNECTION"


def visible(html: str) -> str:
    return re.sub("<[^>]*>", "", html).replace("&nbsp;", " ")


def test_the_status_line_keeps_the_place_of_what_goes_up_and_down():
    status = replace(STATUS, camera_fps=98.4, inference_fps=50.2, age_p99_ms=31, skipped=120, n_detections=42)
    line = visible(status_html(status, losing=False))
    assert line == (
        "camera  98.4 fps | analysed  50.2 fps | age p50  12 / p99  31 ms | skipped 120 | lost 0 | failed 0 | "
        "particles 42"
    )
    other = replace(status, camera_fps=5.0, inference_fps=0.0, age_p50_ms=float("nan"), age_p99_ms=float("nan"))
    assert len(visible(status_html(other, losing=False))) == len(line)


AMBER, RED = "#ffb000", "#ff6b5e"


@pytest.mark.parametrize(
    ("changes", "losing", "expected"),
    [
        ({}, False, set()),
        ({"age_p99_ms": 25.0}, False, {AMBER}),
        ({"age_p99_ms": 70.0}, False, {RED}),
        ({"lost": 4}, False, {AMBER}),
        ({"lost": 4}, True, {RED}),
        ({"failed": 1}, True, {RED}),
        ({"sink_dropped": 2}, True, {RED}),
        ({"camera_fps": 0.0, "age_p99_ms": 500.0}, False, set()),
    ],
)
def test_the_status_line_warns_of_late_and_lost_frames(changes, losing, expected):
    html = status_html(replace(STATUS, **changes), losing=losing)
    assert {colour for colour in (AMBER, RED) if colour in html} == expected


def test_losses_are_red_only_while_they_grow(window):
    window.take(shown(status=replace(STATUS, lost=5)))  # before this window opened
    window.show_status()
    assert RED not in window._line.text()
    window.take(shown(index=1, status=replace(STATUS, lost=6)))
    window.show_status()
    assert RED in window._line.text()
    window._harm = (window._harm[0], window._harm[1] - 6)
    window.show_status()
    assert RED not in window._line.text()


def test_counters_without_a_picture_are_shown(window):
    window.take(Notice("status", replace(STATUS, failed=77)))
    assert "failed 77" in visible(window._line.text())
    assert window.picture is None


def test_help_and_close_by_key(qt, window):
    assert not window._help.isVisible()
    QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_F1)
    assert window._help.isVisible()
    assert window._help.height() > 100
    QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_Escape)
    assert window._stream._socket.closed


def test_a_screenshot_by_key_lands_in_the_current_folder(window, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    window.take(shown(index=12))
    QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_S)
    (path,) = tmp_path.glob("oneframe_*_frame000012.png")
    assert path.name in window._info.text()
    with pytest.raises(OSError, match="cannot write the screenshot"):
        window.grab_png(tmp_path / "nowhere" / "a.png")


@pytest.mark.parametrize("pixel_size_um", [0.108, None])
def test_the_scale_bar_has_the_length_it_names(qt, window, pixel_size_um):
    window.take(shown(pixel_size_um=pixel_size_um))
    qt.processEvents()
    left, right = window.to_window_px(0, 0)[1], window.to_window_px(0, 100)[1]
    screen_px_per_camera_px = (right - left) / 100
    number, unit = window._scale_bar._text.text().split()
    camera_px = float(number) / (pixel_size_um or 1)
    assert unit == ("µm" if pixel_size_um else "px")
    assert window._scale_bar._bar.rect().width() == pytest.approx(camera_px * screen_px_per_camera_px, rel=0.02)


@pytest.mark.parametrize(("longest", "length"), [(1.0, 1.0), (0.99, 0.5), (4.9, 2.0), (5.1, 5.0), (1234.0, 1000.0)])
def test_scale_bars_are_round(longest, length):
    assert nice_length(longest) == pytest.approx(length)


def test_scale_bars_name_their_unit():
    labels = [length_label(value, known=True) for value in (0.2, 1.0, 500.0, 2000.0)]
    assert labels == ["200 nm", "1 µm", "500 µm", "2 mm"]
    assert length_label(50.0, known=False) == "50 px"


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="None is immortal from Python 3.12 on and has no count")
def test_paint_paths_lose_no_reference_to_none():
    """PySide6 6.12.0 loses one per path; Python 3.11 aborts once they are used up."""
    tails = Tails()
    for index in range(5):
        tails.add(shown(index=index))
    y_px, x_px = tails.curve()
    before = sys.getrefcount(None)
    for connect in ("finite", "all", "pairs"):
        for _ in range(300):
            pg.functions.arrayToQPath(x_px[:18], y_px[:18], connect=connect)
    assert abs(sys.getrefcount(None) - before) < 100


def test_windows_come_and_go_without_a_crash(qt, sink):
    for _ in range(5):
        window = LiveWindow(PictureStream(sink.address))
        window.show()
        window.take(shown())
        qt.processEvents()
        window.close()
        del window
        qt.processEvents()


def feed(sink, viewer):
    """Publish moving particles until the viewer is gone."""
    gone = threading.Event()
    watcher = threading.Thread(target=lambda: (viewer.wait(60), gone.set()))
    watcher.start()
    index = 0
    while not gone.wait(0.02):
        sink.write(scene(POSITIONS + np.float32([0, index % 40]), index=index))
        index += 1
    watcher.join()


def test_the_viewer_process_saves_its_screenshot_and_leaves(sink, tmp_path):
    path = tmp_path / "viewer.png"
    viewer = start_viewer(
        sink.address, title="bead.onnx · sim:beads", diameter_px=DIAMETER_PX, screenshot=path, after_frames=10
    )
    feed(sink, viewer)
    assert viewer.returncode == 0
    rgb = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB).astype(int)
    assert is_colour(rgb, RING_RGB, 60).sum() > 100
    assert is_colour(rgb, TAIL_RGB, 60).sum() > 50


def test_the_viewer_process_closes_at_the_end_of_the_run(sink):
    viewer = start_viewer(sink.address, title="", diameter_px=5, close_at_end=True)
    assert sink.wait_for_view(30)
    sink.close()
    assert viewer.wait(30) == 0


def test_a_viewer_nobody_sits_at_gives_up(qt, tmp_path, caplog):
    address = "tcp://127.0.0.1:9"  # the discard port: nobody publishes there
    call = ["--connect", address, "--screenshot", str(tmp_path / "never.png"), "--wait-s", "0.2"]
    assert main(call) == 3
    assert "no picture within 0.2 s" in caplog.text
    assert main(["--connect", "here"]) == 2


def test_a_wrong_call_is_explained(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--connect", "tcp://127.0.0.1:9", "--diameter-px", "-1"])
    assert "expected a number above 0" in capsys.readouterr().err


def test_the_fixed_font_is_fixed(qt, window):
    metrics = QtGui.QFontMetricsF(window._line.font())
    assert metrics.horizontalAdvance("1111") == pytest.approx(metrics.horizontalAdvance("8888"))
