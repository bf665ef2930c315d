import functools
import itertools
import os
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

from oneframe.acquisition import Frame, open_source  # noqa: E402
from oneframe.runtime.account import Status  # noqa: E402
from oneframe.runtime.cell_table import cell_table  # noqa: E402
from oneframe.runtime.detections import Detections, Flag, Tracks  # noqa: E402
from oneframe.runtime.display import DisplaySink, Notice, PictureStream, picture_of, start_viewer  # noqa: E402
from oneframe.runtime.field_reader import FieldReader, HologramSettings  # noqa: E402
from oneframe.runtime.optics import Optics  # noqa: E402
from oneframe.runtime.outline import CELL_RGB, CellColours, rims  # noqa: E402
from oneframe.runtime.seams import Analysed  # noqa: E402
from oneframe.runtime.view import (  # noqa: E402
    RING_RGB,
    TAIL_RGB,
    LiveWindow,
    Tails,
    area_text,
    cell_text,
    length_label,
    main,
    nice_length,
    particle_text,
    phase_colours,
    srgb,
    status_html,
    z_colours,
    z_steps,
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


def ring_on_screen(window, rgb, y_px, x_px, radius_px, colour=RING_RGB) -> float:
    """Return the fraction of a circle of the camera on which there is ring colour, 1.5 px of the screen allowed."""
    near = cv2.dilate(is_colour(rgb, colour).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
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
    if sys.platform != "win32":  # it gives way to the analysis
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, viewer.pid) == min(19, own + 10)
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


KINDS = ("off-axis", "in-line", "field")
KEYS = {
    mode: getattr(QtCore.Qt.Key, f"Key_{i}")
    for i, mode in enumerate(("hologram", "amplitude", "phase", "refocused"), 1)
}
Z_RANGE_UM = (-5.0, 5.0)


@functools.cache
def holograms(kind="off-axis", n=1, z_um=3.0, spread_um=0.0, frames=1, side=256):
    """Return the settings of simulated holograms, and their frames with the true positions and the measured fields."""
    url = f"sim:hologram?kind={kind}&z_mid_um={z_um}&z_um={spread_um}&seed=1&width={side}&height={side}&separation_um=5"
    source = open_source(f"{url}&n={n}&frames={frames}")
    reference = open_source(f"{url}&n=0").read(1).pixels
    settings = HologramSettings(kind, Optics(0.633, 1.33, 1.3, source.info.pixel_size_um))
    reader = FieldReader(settings, reference=reference)
    shots = []
    for _ in range(frames):
        frame, truth = source.read(1), source.truth()
        y_px, x_px, z, alpha = (
            column.astype(np.float32) for column in (truth.y_px, truth.x_px, truth.z_um, truth.polarizability_um3)
        )
        found = Detections(
            y_px,
            x_px,
            np.ones(n, np.float32),
            z_um=z,
            polarizability_um3=alpha,
            flags=np.zeros(n, np.float32),
            field=reader.read(frame.pixels),
        )
        shots.append(Analysed(frame, Tracks(found, truth.particle_id), 0.012, 0.008))
    return settings, shots


def shown_hologram(settings, shot, *, z_range_um=Z_RANGE_UM, **changes):
    made = picture_of(
        shot,
        status=STATUS,
        field_optics=settings.field_optics,
        pixels_per_cell=settings.pixels_per_cell,
        z_range_um=z_range_um,
    )
    return replace(made, **changes)


def choose(qt, window, mode, z_um=None):
    """Press the key of a mode, set the distance, and wait for the plane."""
    QtTest.QTest.keyClick(window, KEYS[mode])
    if z_um is not None:
        window._controls._box.setValue(z_um)
    wait_until(qt, lambda: window.plane.mode == mode and (z_um is None or window.plane.z_um == z_um))


@pytest.mark.parametrize("kind", KINDS)
def test_a_refocused_sphere_is_brightest_where_the_slider_has_its_z(qt, window, tmp_path, kind):
    settings, (shot,) = holograms(kind)
    window.take(shown_hologram(settings, shot))
    found = shot.tracks.detections
    place = tuple(np.rint(np.array([found.y_px[0], found.x_px[0]]) / settings.pixels_per_cell).astype(int))
    near = tuple(slice(centre - 2, centre + 3) for centre in place)
    choose(qt, window, "refocused")
    light = {}
    for step in (-30, 0, 20, 25, 30, 35, 40, 50)[kind == "in-line" :]:  # its twin image is as bright at -3 um
        window._controls._slider.setValue(step)
        wait_until(qt, lambda step=step: window.plane.z_um == pytest.approx(step / 10))
        light[step] = window.plane.pixels[near].max()
    assert max(light, key=light.get) == 30
    assert light[30] > 1.5 * max(light[25], light[35])
    assert light[30] > 5 * light[0]
    choose(qt, window, "refocused", 3.0)
    QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_0)
    QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_R)
    grey = screenshot(window, tmp_path / "focus.png")[..., 0]
    row, column = np.rint(window.to_window_px(found.y_px[0], found.x_px[0])).astype(int)
    assert grey[row - 3 : row + 4, column - 3 : column + 4].max() > 240
    (top, left), (bottom, right) = window.to_window_px(10, 10), window.to_window_px(100, 100)
    assert np.median(grey[round(top) : round(bottom), round(left) : round(right)]) < 20


@pytest.mark.parametrize(
    ("kind", "mode"),  # not among the fringes of an off-axis hologram; an in-line one has no phase
    [
        ("in-line", "hologram"),
        *itertools.product(["in-line", "off-axis"], ["amplitude", "refocused"]),
        ("off-axis", "phase"),
    ],
)
def test_rings_lie_on_the_particles_in_each_mode(qt, window, tmp_path, kind, mode):
    settings, (shot,) = holograms(kind, 3, 2.5, 0.5)
    found = shot.tracks.detections
    window.take(shown_hologram(settings, shot))
    choose(qt, window, mode, 2.5 if mode == "refocused" else None)
    if mode == "phase":
        for _ in range(9):
            QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_Up)
    rgb = screenshot(window, tmp_path / "rings.png")
    for y_px, x_px, z_um in zip(found.y_px, found.x_px, found.z_um, strict=True):
        colour = z_colours()[z_steps(np.float32([z_um]), Z_RANGE_UM)[0]].astype(int)
        assert ring_on_screen(window, rgb, y_px, x_px, DIAMETER_PX / 2, colour) > 0.9
        assert ring_on_screen(window, rgb, y_px, x_px, DIAMETER_PX, colour) < 0.3
    for key in (QtCore.Qt.Key.Key_R, QtCore.Qt.Key.Key_T):
        QtTest.QTest.keyClick(window, key)
    bare = screenshot(window, tmp_path / "bare.png")
    scale = window.to_window_px(0, 100)[1] / 100 - window.to_window_px(0, 0)[1] / 100  # screen px per camera px
    for y_px, x_px in zip(found.y_px, found.x_px, strict=True):
        row, column = window.to_window_px(y_px, x_px)
        reach = round(14 * scale)
        part = bare[round(row) - reach : round(row) + reach + 1, round(column) - reach : round(column) + reach + 1]
        apart = np.abs(part - np.median(part, axis=(0, 1))).sum(axis=2) ** 2.0  # the particle against the background
        ys, xs = np.indices(apart.shape) - reach
        assert np.hypot((ys * apart).sum(), (xs * apart).sum()) / apart.sum() < 1.2 * scale


def test_modes_are_switched_while_pictures_come(qt, sink, window):
    settings, shots = holograms(n=3, z_um=0.0, spread_um=3.0, frames=6)
    sink._field_optics, sink._pixels_per_cell = settings.field_optics, settings.pixels_per_cell
    assert sink.wait_for_view(10)
    index = 0

    def feed_until(condition):
        nonlocal index
        deadline_s = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline_s, "waited in vain"
            shot = shots[index % len(shots)]
            sink.write(replace(shot, frame=replace(shot.frame, index=index)))
            index += 1
            qt.processEvents(QtCore.QEventLoop.ProcessEventsFlag.AllEvents, 10)

    feed_until(lambda: window.plane is not None)
    for mode in ("refocused", "amplitude", "hologram", "phase", "refocused", "hologram", "amplitude"):
        QtTest.QTest.keyClick(window, KEYS[mode])
        start = index
        feed_until(lambda mode=mode, start=start: window.plane.mode == mode and window.picture.index > start + 3)
        assert window.plane.picture is window.picture
    assert not window._refused


def test_of_many_distances_only_the_newest_is_made(qt, window):
    settings, (shot,) = holograms(side=1024)
    window.take(shown_hologram(settings, shot))
    QtTest.QTest.keyClick(window, KEYS["refocused"])
    started_s = time.monotonic()
    for step in range(-40, 41):
        window._controls._slider.setValue(step)
    assert time.monotonic() - started_s < 0.5  # 81 planes of 512 x 512 take longer
    seen = set()

    def arrived():
        seen.add(window.plane.z_um)
        return window.plane.z_um == pytest.approx(4.0)

    wait_until(qt, arrived)
    assert len(seen) <= 4


def test_a_plain_view_has_no_controls_for_holograms(qt, window, tmp_path):
    wait_until(qt, lambda: window._stream.connected)
    for index in range(5):  # the layout has settled
        window.take(shown(index=index))
        qt.processEvents()
    before = screenshot(window, tmp_path / "before.png")
    for key in (*KEYS.values(), QtCore.Qt.Key.Key_PageUp, QtCore.Qt.Key.Key_PageDown):
        QtTest.QTest.keyClick(window, key)
    window.select(*map(float, POSITIONS[0]))
    qt.processEvents()
    assert window.plane.mode == "hologram"
    assert not any(widget.isVisible() for widget in (window._controls, window._legends))
    assert "amplitude" not in window._help.text()
    np.testing.assert_array_equal(screenshot(window, tmp_path / "after.png"), before)


def test_a_doubtful_particle_has_a_dashed_grey_ring(qt, window, tmp_path):
    settings, (shot,) = holograms("in-line", 3, 2.5, 0.5)
    found = shot.tracks.detections
    flags = np.float32([0, Flag.NEAR_NEIGHBOUR | Flag.OUTSIDE_Z, 0])
    z_um = np.where([False, False, True], np.nan, found.z_um).astype(np.float32)
    window.take(shown_hologram(settings, shot, flags=flags, z_um=z_um))
    choose(qt, window, "refocused", -5.0)  # nothing to see there: a dark picture
    rgb = screenshot(window, tmp_path / "doubt.png")
    for row, doubtful in enumerate([False, True, True]):
        y_px, x_px = found.y_px[row], found.x_px[row]
        colour = z_colours()[z_steps(found.z_um[[row]], Z_RANGE_UM)[0]].astype(int)
        grey = ring_on_screen(window, rgb, y_px, x_px, DIAMETER_PX / 2, (205, 205, 205))
        coloured = ring_on_screen(window, rgb, y_px, x_px, DIAMETER_PX / 2, colour)
        assert (0.4 < grey < 0.9) == doubtful
        assert (coloured > 0.9) != doubtful
    text = particle_text(window.picture, 1)
    assert f"z {found.z_um[1]:+.2f} µm" in text
    assert "near neighbour" in text
    assert "outside z" in text
    assert "doubtful" not in particle_text(window.picture, 0)


def test_a_click_on_a_particle_tells_of_it_and_refocuses_there(qt, window):
    settings, shots = holograms(n=3, z_um=0.0, spread_um=3.0, frames=6)
    window.take(shown_hologram(settings, shots[0]))
    choose(qt, window, "refocused")
    found = shots[0].tracks.detections
    row, column = window.to_window_px(float(found.y_px[2]), float(found.x_px[2]))
    viewport = window._graphics.viewport()
    at = viewport.mapFrom(window, QtCore.QPoint(round(column), round(row)))
    QtTest.QTest.mouseClick(viewport, QtCore.Qt.MouseButton.LeftButton, QtCore.Qt.KeyboardModifier.NoModifier, at)
    assert window._controls.z_um == pytest.approx(found.z_um[2], abs=0.006)
    wait_until(qt, lambda: window.plane.z_um == window._controls.z_um)
    assert window._label._text.text().startswith(f"z {found.z_um[2]:+.2f} µm")
    window.take(shown_hologram(settings, shots[1]))  # the label goes with the particle
    moved = shots[1].tracks.detections
    wait_until(qt, lambda: window.picture.z_um[2] == moved.z_um[2])
    assert window._label._text.text().startswith(f"z {moved.z_um[2]:+.2f} µm")
    assert window._label._text.isVisible()
    window.select(2.0, 2.0)
    assert not window._label._text.isVisible()


def test_the_number_box_gives_the_keyboard_back(qt, window):
    settings, (shot,) = holograms()
    window.take(shown_hologram(settings, shot))
    choose(qt, window, "refocused")
    box = window._controls._box
    for end in (QtCore.Qt.Key.Key_Return, QtCore.Qt.Key.Key_Escape):
        window.activateWindow()
        QtTest.QTest.mouseClick(box.lineEdit(), QtCore.Qt.MouseButton.LeftButton)
        box.selectAll()
        QtTest.QTest.keyClicks(box.lineEdit(), "2.95")
        QtTest.QTest.keyClick(box, end)
        assert window.isVisible()
        assert not box.hasFocus()
        assert window._controls.z_um == pytest.approx(2.95)
        wait_until(qt, lambda: window.plane.z_um == pytest.approx(2.95))
        box.setValue(0.0)
    QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_PageUp)
    assert window._controls.z_um == pytest.approx(0.1)


def test_a_frozen_picture_can_be_refocused_and_its_brightness_follows(qt, window):
    settings, shots = holograms(n=3, z_um=0.0, spread_um=3.0, frames=6)
    window.take(shown_hologram(settings, shots[0]))
    QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_Space)
    window.take(shown_hologram(settings, shots[1]))
    z_um = float(np.round(shots[0].tracks.detections.z_um[0], 1))
    choose(qt, window, "refocused", 5.0)
    choose(qt, window, "refocused", z_um)
    assert window.picture.index == shots[0].frame.index
    window._levels_s -= 2
    window.show_status()
    assert 0.4 * window.plane.levels[1] < window._levels[1] <= window.plane.levels[1]
    assert window._plane_legend.texts[2] == f"{window._levels[1]:.2f}"


def test_amplitude_is_bright_on_both_sides_of_the_background_and_phase_within_a_turn(qt, window):
    settings, (shot,) = holograms(z_um=1.5)
    window.take(shown_hologram(settings, shot))
    for mode, middle, furthest in (("amplitude", 1.0, 1.0), ("phase", 0.0, np.pi)):
        choose(qt, window, mode)
        for key in (QtCore.Qt.Key.Key_Up, QtCore.Qt.Key.Key_Down, QtCore.Qt.Key.Key_Down):
            QtTest.QTest.keyClick(window, key)
            low, high = window._levels
            assert (low + high) / 2 == pytest.approx(middle)
            assert 0.01 < high - middle <= furthest + 1e-9
    assert high == pytest.approx(np.pi)
    np.testing.assert_allclose(window.plane.pixels, np.angle(shot.tracks.detections.field))


def test_a_field_of_unknown_optics_cannot_be_refocused(qt, window):
    settings, (shot,) = holograms()
    window.take(shown_hologram(settings, shot, field_optics=None))
    QtTest.QTest.keyClick(window, KEYS["refocused"])
    assert window._controls.mode == "hologram"
    choose(qt, window, "amplitude")


def test_a_field_without_a_number_does_not_stop_the_view(qt, window):
    settings, (shot,) = holograms()
    nan = np.full_like(shot.tracks.detections.field, np.nan)
    window.take(shown_hologram(settings, shot, field=nan))
    for mode in ("amplitude", "phase", "refocused"):
        choose(qt, window, mode)
    window.take(shown_hologram(settings, shot))
    wait_until(qt, lambda: np.isfinite(window.plane.pixels).all())


def test_the_slider_spans_what_the_model_was_trained_for(window):
    settings, (shot,) = holograms()
    window.take(shown_hologram(settings, shot, z_range_um=(-1.25, 7.5)))
    box, slider = window._controls._box, window._controls._slider
    assert (box.minimum(), box.maximum(), box.singleStep()) == (-1.25, 7.5, 0.1)
    window._controls.refocus(99.0)
    assert (window._controls.z_um, slider.value()) == (7.5, slider.maximum())
    assert window._z_legend.texts[1:3] == ("-1.25", "+7.5 µm")


def test_colours_are_those_of_oklab_and_mean_what_they_should():
    assert srgb(np.float64([0.62796]), np.float64([0.22486]), np.float64([0.12585])).tolist() == [[255, 0, 0]]
    phase, lightness = phase_colours().astype(int), np.array([0.2126, 0.7152, 0.0722])
    assert np.abs(phase[0] - phase[-1]).max() < 6  # one turn
    assert np.abs(np.diff(phase, axis=0)).max() < 30  # no step, hence no false edge
    assert phase[140, 0] > phase[140, 2]
    assert phase[115, 0] < phase[115, 2]
    assert (np.diff(z_colours() @ lightness) > -0.5).all()
    steps = z_steps(np.float32([-9, -5, 0, 5, 9]), Z_RANGE_UM)
    assert steps.tolist() == [0, 0, 32, 63, 63]


def emitting(index=0, *, n=80, z=False) -> Analysed:
    """Return a frame of 128 x 128 with emitters on a line, all of them known."""
    rng = np.random.default_rng(index)
    y = np.linspace(10, 110, n, dtype=np.float32)
    x = np.float32(30) + y / 2
    pixels = rng.poisson(20, (128, 128)).astype(np.uint16)
    sigma = np.full(n, 0.15, np.float32)
    height = np.linspace(-0.4, 0.4, n, dtype=np.float32) if z else None
    found = Detections(y, x, np.ones(n, np.float32), sigma_y_px=sigma, sigma_x_px=sigma, z_um=height)
    return Analysed(Frame(pixels, index, 1.5e9, 0.1), Tracks(found, np.arange(n, dtype=np.int64)), 0.012, 0.008)


@pytest.fixture
def emitter_view(qt):
    """A window beside a sink of emitters."""
    sink = DisplaySink(status=lambda: STATUS, max_fps=1e6, emitters=True, z_range_um=(-0.4, 0.4))
    window = LiveWindow(PictureStream(sink.address), title="shot.onnx", diameter_px=4.0)
    window.show()
    wait_until(qt, lambda: sink.wait_for_view(0))
    yield sink, window
    window.close()
    sink.close()


def super_resolution_at(window, rgb, y_px, x_px) -> int:
    """Return the brightest value of the super-resolution image within 1 px of the screen of a place of the camera."""
    scene = window._grown.view.mapViewToScene(QtCore.QPointF(x_px, y_px))
    corner = window._graphics.mapTo(window, QtCore.QPoint(0, 0))
    row, column = round(scene.y() + corner.y()), round(scene.x() + corner.x())
    return int(rgb[row - 1 : row + 2, column - 1 : column + 2].max())


@pytest.mark.parametrize("z", [False, True])
def test_emitters_have_crosses_and_the_super_resolution_image_beside_them_is_at_the_same_place(
    qt, emitter_view, tmp_path, z
):
    sink, window = emitter_view
    sink.write(emitting(z=z))
    wait_until(qt, lambda: window._grown.grown is not None)
    for _ in range(5):
        qt.processEvents()
    rgb = screenshot(window, tmp_path / "window.png")
    for y_px in emitting().tracks.detections.y_px[[5, 40, 70]].tolist():
        row, column = window.to_window_px(y_px, 30 + y_px / 2)
        near = rgb[round(row) - 3 : round(row) + 4, round(column) - 3 : round(column) + 4]
        assert (near.max(axis=2) - near.min(axis=2)).max() > 90  # coloured, not grey
        assert super_resolution_at(window, rgb, y_px, 30 + y_px / 2) > 90
        assert super_resolution_at(window, rgb, y_px, 60 + y_px / 2) < 20
    assert "80 localisations" in window._grown._text.text()
    assert "12.5 nm" in window._grown._text.text()
    assert "density" in window._line.text()
    assert "15.0" in window._line.text()  # nm


def test_the_image_follows_the_cameras_zoom_and_is_cleared_by_a_key(qt, emitter_view):
    sink, window = emitter_view
    sink.write(emitting())
    wait_until(qt, lambda: window._grown.grown is not None)
    window._view.setRange(xRange=(40, 60), yRange=(30, 50), padding=0)
    wait_until(qt, lambda: np.allclose(window._grown.view.viewRange(), window._view.viewRange(), atol=0.5))
    QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_C)
    assert window._grown.grown is None
    assert "waiting" in window._grown._text.text()
    wait_until(qt, lambda: sink._is_viewed() and sink._grown.n_localisations == 0)
    sink.write(emitting(1))
    wait_until(qt, lambda: window._grown.grown is not None)
    assert window._grown.grown.n_localisations == 80


def test_shift_and_an_arrow_brighten_the_super_resolution_image_only(qt, emitter_view):
    sink, window = emitter_view
    sink.write(emitting())
    wait_until(qt, lambda: window._grown.grown is not None)
    white, levels = window._grown._image.levels[1], window._levels
    QtTest.QTest.keyClick(window, QtCore.Qt.Key.Key_Up, QtCore.Qt.KeyboardModifier.ShiftModifier)
    assert window._grown._image.levels[1] < white
    assert window._levels == levels


def test_the_end_of_a_run_brings_the_last_emitters(qt, emitter_view):
    sink, window = emitter_view
    sink.write(emitting())
    wait_until(qt, lambda: window.n_pictures == 1)
    sink._due_s = np.inf  # no more pictures
    for index in range(1, 20):
        sink.write(emitting(index))
    sink.close()
    wait_until(qt, lambda: window.ended)
    assert window._grown.grown.n_localisations == 20 * 80


CELL_FILM = "sim:cells?seed=5&width=128&height=128&n=14&photons=20&doubling_frames=20"
CELL_FRAMES = 6
VISIBLE = np.ones((128, 128), bool)
VISIBLE[100:, 80:] = False  # the scale bar


@functools.cache
def film() -> tuple[Analysed, ...]:
    """Return a film of simulated cells that divide, with their true outlines; the image is dim."""
    source, frames = open_source(CELL_FILM), []
    for _ in range(CELL_FRAMES):
        frame, truth = source.read(5.0), source.truth()
        found = cell_table(truth.labels, frame.pixels, np.ones(len(truth.cell_id), np.float32))
        frames.append(Analysed(frame, Tracks(found, truth.cell_id), 0.012, 0.008))
    return tuple(frames)


@functools.cache
def parents() -> tuple[np.ndarray, ...]:
    source, told = open_source(CELL_FILM), []
    for _ in range(CELL_FRAMES):
        source.read(5.0)
        told.append(source.truth().parent_id)
    return tuple(told)


def shown_cells(index=0, **changes):
    picture = picture_of(film()[index], status=STATUS, cells=True)
    return replace(picture, parent_id=parents()[index], **changes)


def on_screen(qt, window, tmp_path, name="cells.png") -> np.ndarray:
    for _ in range(3):
        qt.processEvents()
    return screenshot(window, tmp_path / name)


def colours_in(window, rgb, rows_yx) -> set[tuple[int, ...]]:
    """Return the colours on the screen within some pixels (y, x) of the camera; grey is the picture."""
    seen = set()
    for y, x in rows_yx.tolist():
        (top, left), (bottom, right) = window.to_window_px(y - 0.5, x - 0.5), window.to_window_px(y + 0.5, x + 0.5)
        part = rgb[round(top) : round(bottom), round(left) : round(right)].reshape(-1, 3)
        seen |= {tuple(colour) for colour in part[np.ptp(part, axis=1) > 20].tolist()}
    return seen


def key(window, letter: str) -> None:
    QtTest.QTest.keyClick(window, getattr(QtCore.Qt.Key, f"Key_{letter}"))


def test_outlines_lie_on_the_border_pixels_of_each_cell_from_the_wire(qt, window, sink, tmp_path):
    assert sink.wait_for_view(10)
    sink.write(film()[0])
    wait_until(qt, lambda: window.n_pictures == 1)
    key(window, "T")
    rgb = on_screen(qt, window, tmp_path)
    labels = window.picture.labels
    colour = CellColours().of(labels, window.picture.track_id)
    for row in range(len(window.picture)):
        border = rims(np.where(labels == row + 1, 1, 0)) & VISIBLE
        assert not border.any() or colours_in(window, rgb, np.argwhere(border)) == {CELL_RGB[colour[row]]}
    assert not colours_in(window, rgb, np.argwhere((labels > 0) & ~rims(labels) & VISIBLE)[::7])
    assert not colours_in(window, rgb, np.argwhere((labels == 0) & VISIBLE)[::29])
    assert len(window._rings.getData()[0]) == 0


def test_outlines_stay_on_the_border_when_zoomed_and_in_a_thinned_picture(qt, window, tmp_path):
    window.take(picture_of(film()[0], status=STATUS, max_side_px=50))
    key(window, "T")
    stride, labels = window.picture.stride, window.picture.labels
    assert stride == 3
    row = int(np.argmin(np.hypot(window.picture.y_px - 64, window.picture.x_px - 64)))
    y_px, x_px = float(window.picture.y_px[row]), float(window.picture.x_px[row])
    for side in (128, 70, 31.7):
        window._view.setRange(QtCore.QRectF(x_px - side / 2, y_px - side / 2, side, side), padding=0)
        rgb = on_screen(qt, window, tmp_path)
        cell = labels == row + 1
        for j, i in np.argwhere(cell & rims(np.where(cell, 1, 0)))[::3].tolist():
            for dj, di in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                if cell[j + dj, i + di]:
                    continue
                middle = np.array([j + 0.5 * dj, i + 0.5 * di]) * stride  # of the edge of the pixel
                at = np.rint(window.to_window_px(*middle)).astype(int)
                near = rgb[at[0] - 2 : at[0] + 3, at[1] - 2 : at[1] + 3].reshape(-1, 3)
                assert np.ptp(near, axis=1).max() > 20, (side, j, i)


def test_a_cell_keeps_its_colour_and_daughters_have_thick_lines_for_a_while(qt, window, tmp_path):
    key(window, "T")
    colour_of, widths = {}, {}
    for index in range(CELL_FRAMES):
        window.take(shown_cells(index))
        rgb, picture = on_screen(qt, window, tmp_path), window.picture
        for row, track in enumerate(picture.track_id.tolist()):
            cell = picture.labels == row + 1
            if not VISIBLE[cell].all() or cell.sum() < 60:
                continue
            colours = colours_in(window, rgb, np.argwhere(cell & rims(picture.labels))[::3])
            assert len(colours) == 1
            assert colour_of.setdefault(track, colours) == colours
            y, x = np.argwhere(cell & (np.arange(128) == int(picture.x_px[row])))[0]
            (top, left), (bottom, _) = window.to_window_px(y - 0.5, x), window.to_window_px(y + 4.5, x)
            line = rgb[round(top) : round(bottom), round(left)]
            widths.setdefault(track, []).append(int((np.ptp(line, axis=1) > 20).sum()))
    newborn = set(film()[-1].tracks.track_id.tolist()) - set(film()[0].tracks.track_id.tolist())
    newborn = {track for track in newborn if track in widths and parents()[-1][film()[-1].tracks.track_id == track] > 0}
    old = set(widths) & set(film()[0].tracks.track_id.tolist())
    assert len(newborn) >= 2
    assert len(old) >= 5
    assert np.median([widths[track][-1] for track in newborn]) > np.median([widths[track][-1] for track in old])


def test_outlines_areas_and_numbers_are_switched_by_keys(qt, window, tmp_path):
    window.take(shown_cells())
    key(window, "T")
    row = int(np.argmax(window.picture.area_px))
    y, x = (int(centre) + 6 for centre in (window.picture.y_px[row], window.picture.x_px[row]))
    around = np.array([[y, x]])
    both = on_screen(qt, window, tmp_path, "both.png")
    key(window, "A")
    filled = on_screen(qt, window, tmp_path, "filled.png")
    assert not colours_in(window, both, around)
    assert colours_in(window, filled, around)
    key(window, "O")
    areas = on_screen(qt, window, tmp_path, "areas.png")
    lines = {tuple(colour) for colour in CELL_RGB}
    assert lines & set(map(tuple, filled.reshape(-1, 3).tolist()))
    assert not lines & set(map(tuple, areas.reshape(-1, 3).tolist()))
    key(window, "A")
    key(window, "R")  # no rings to hide
    none = on_screen(qt, window, tmp_path, "none.png")
    top, bottom = (round(window.to_window_px(at, 0)[0]) for at in (0, 100))
    assert np.ptp(none[top:bottom], axis=2).max() < 20
    key(window, "O")
    np.testing.assert_array_equal(on_screen(qt, window, tmp_path, "again.png")[top:bottom], both[top:bottom])
    key(window, "I")
    numbers = on_screen(qt, window, tmp_path, "numbers.png")
    centre = [round(at) for at in window.to_window_px(window.picture.y_px[row], window.picture.x_px[row])]
    near = np.s_[centre[0] - 8 : centre[0] + 9, centre[1] - 12 : centre[1] + 13]
    assert (numbers[near] != both[near]).any()
    assert (numbers[near].min(axis=2) > 200).sum() > 5
    window._view.setRange(QtCore.QRectF(-2000, -2000, 4000, 4000), padding=0)  # cells too small to read it
    far = on_screen(qt, window, tmp_path, "far.png")
    key(window, "I")
    np.testing.assert_array_equal(on_screen(qt, window, tmp_path, "far_without.png")[top:bottom], far[top:bottom])


def test_a_click_on_a_cell_tells_of_it_wherever_it_goes(qt, window):
    window.take(shown_cells())
    picture = window.picture
    row = int(np.argmin(np.hypot(picture.y_px - 64, picture.x_px - 64)))
    ys, xs = np.nonzero(picture.labels == row + 1)
    window.select(float(ys[0]), float(xs[0]))  # a border pixel, far from the centre
    track = int(picture.track_id[row])
    assert window._label._text.text() == cell_text(picture, row)
    assert window._label._text.text().startswith(f"cell {track}\narea {len(ys)} px²")
    assert window._cells.selected_id == track
    window.take(shown_cells(1))
    moved = int(np.flatnonzero(window.picture.track_id == track)[0])
    assert window._label._text.text() == cell_text(window.picture, moved)
    ys, xs = np.nonzero(window.picture.labels == 0)
    window.select(float(ys[50]), float(xs[50]))
    assert not window._label._text.isVisible()
    window.select(-5.0, 1e6)
    assert not window._label._text.isVisible()


def test_what_is_told_of_a_cell():
    picture = shown_cells(CELL_FRAMES - 1, pixel_size_um=0.5)
    row = int(np.flatnonzero(picture.parent_id > 0)[0])
    area_px, intensity = float(picture.area_px[row]), float(picture.mean_intensity[row])
    expected = [
        f"cell {picture.track_id[row]}",
        f"area {area_px:.0f} px²  {' '.join(area_text(area_px, 0.5))}",
        f"intensity {intensity:.4g}",
        f"daughter of {picture.parent_id[row]}",
    ]
    assert cell_text(picture, row).split("\n") == expected
    bare = replace(picture, pixel_size_um=None, mean_intensity=None, parent_id=None)
    assert cell_text(bare, row).split("\n") == [expected[0], f"area {area_px:.0f} px²"]


def test_the_status_line_counts_cells_and_tells_their_median_area(window):
    status = replace(STATUS, n_detections=len(film()[0].tracks))
    window.take(shown_cells(pixel_size_um=None, status=status))
    window.show_status()
    area_px = np.median(film()[0].tracks.detections.area_px)
    line = visible(window._line.text())
    assert line.endswith(f"cells {len(film()[0].tracks)} | median area {area_px:>4.0f} px²")
    assert "particles" not in line
    window.take(shown_cells(1, pixel_size_um=None, area_px=None))  # then the labels tell
    window.show_status()
    area_px = np.median(film()[1].tracks.detections.area_px)
    assert visible(window._line.text()).endswith(f"median area {area_px:>4.0f} px²")
    assert "outlines, filled areas" in window._help.text()
    assert "rings" not in window._help.text()


def test_frames_without_cells_and_without_labels_are_shown(qt, window, tmp_path):
    window.take(shown_cells())
    window.select(float(window.picture.y_px[0]), float(window.picture.x_px[0]))
    empty = Analysed(film()[0].frame, Tracks(Detections.none(), np.empty(0, np.int64)), 0.012, 0.008)
    window.take(picture_of(empty, status=STATUS, cells=True))
    rgb = on_screen(qt, window, tmp_path)
    top, bottom = (round(window.to_window_px(at, 0)[0]) for at in (0, 100))
    assert not set(CELL_RGB) & set(map(tuple, rgb[top:bottom].reshape(-1, 3).tolist()))
    assert "median area    –" in visible(window._line.text())
    plain = shown(np.float32([[64, 64]]), shape=(128, 128))
    window.take(plain)
    rgb = on_screen(qt, window, tmp_path)
    assert ring_on_screen(window, rgb, 64.0, 64.0, DIAMETER_PX / 2) > 0.9
    window.take(shown_cells(1))
    assert set(CELL_RGB) & set(map(tuple, on_screen(qt, window, tmp_path).reshape(-1, 3).tolist()))


def test_the_viewer_process_draws_outlines(sink, tmp_path):
    path = tmp_path / "viewer.png"
    viewer = start_viewer(sink.address, title="cells.onnx", diameter_px=36, screenshot=path, after_frames=2)
    gone = threading.Event()
    watcher = threading.Thread(target=lambda: (viewer.wait(60), gone.set()))
    watcher.start()
    while not gone.wait(0.02):
        sink.write(film()[0])
    watcher.join()
    assert viewer.returncode == 0
    rgb = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    seen = set(map(tuple, rgb.reshape(-1, 3).tolist()))
    colours = CellColours().of(film()[0].tracks.detections.labels, film()[0].tracks.track_id)
    assert {CELL_RGB[colour] for colour in colours.tolist()} <= seen
