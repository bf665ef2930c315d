import functools
import json
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import zmq

from oneframe.acquisition import Frame, open_source
from oneframe.runtime.account import Status
from oneframe.runtime.cell_table import cell_table
from oneframe.runtime.density import Emitters
from oneframe.runtime.detections import Detections, Tracks
from oneframe.runtime.display import (
    DisplaySink,
    GrownImage,
    Notice,
    Picture,
    PictureStream,
    contrast_levels,
    decode_message,
    decode_picture,
    encode_notice,
    encode_picture,
    picture_of,
    start_viewer,
)
from oneframe.runtime.optics import Optics
from oneframe.runtime.seams import Analysed, Missed
from oneframe.runtime.super_resolution import SuperResolution

STATUS = Status(
    camera_fps=98.4,
    inference_fps=50.2,
    age_p50_ms=12.0,
    age_p99_ms=31.0,
    seen=620,
    analysed=500,
    skipped=120,
    failed=0,
    lost=0,
    n_detections=3,
)
OPTICS = Optics(0.633, 1.33, 1.3, 0.2)
MISSED = Missed(kind="failed", index=0, n_frames=1, time_s=0.0, reason="NaN")


def analysed(pixels, y_px=(), x_px=(), *, index=0, pixel_size_um=None) -> Analysed:
    y, x = np.asarray(y_px, np.float32), np.asarray(x_px, np.float32)
    detections = Detections(y, x, np.linspace(0.5, 1, len(y), dtype=np.float32))
    tracks = Tracks(detections, np.arange(len(y), dtype=np.int64) + 2**40)
    return Analysed(Frame(pixels, index, 1.5e9, pixel_size_um), tracks, age_s=0.012, inference_s=0.008)


def holographic(shape=(48, 65), pixels_per_cell=2, *, index=0) -> Analysed:
    """Return a frame with a field, two rows and all columns that the view knows."""
    plain = analysed(noise(shape, np.uint8), [3.25, 40], [60.5, -0.4], index=index)
    rng = np.random.default_rng(3)
    field_shape = tuple(side // pixels_per_cell for side in shape)
    found = replace(
        plain.tracks.detections,
        z_um=np.float32([-1.5, np.nan]),
        polarizability_um3=np.float32([0.018, 0.005]),
        flags=np.float32([0, 6]),
        field=(1 + 0.1 * (rng.standard_normal(field_shape) + 1j * rng.standard_normal(field_shape))).astype(
            np.complex64
        ),
    )
    return replace(plain, tracks=replace(plain.tracks, detections=found))


def field_picture(**changes) -> Picture:
    settings = {"field_optics": OPTICS, "pixels_per_cell": 2, "z_range_um": (-5.0, 5.0)}
    return replace(picture_of(holographic(), status=STATUS, **settings), **changes)


@functools.cache
def cells(url="sim:cells?seed=1&n=200") -> Analysed:
    """Return a simulated frame with its true cells."""
    source = open_source(url)
    frame, truth = source.read(5.0), source.truth()
    found = cell_table(truth.labels, frame.pixels, np.ones(len(truth.cell_id), np.float32))
    return Analysed(frame, Tracks(found, truth.cell_id), age_s=0.012, inference_s=0.008)


def cell_picture(**changes) -> Picture:
    """Return a picture of two cells in 48 x 64 pixels."""
    labels = np.zeros((48, 64), np.int32)
    labels[10:20, 10:30], labels[20:30, 10:30] = 1, 2
    image = noise()
    found = cell_table(labels, image, np.ones(2, np.float32))
    tracks = Tracks(found, np.array([7, 9]))
    made = picture_of(Analysed(Frame(image, 0, 1.5e9), tracks, 0.012, 0.008), status=STATUS)
    return replace(made, parent_id=np.array([0, 3]), **changes)


def noise(shape=(48, 64), dtype=np.uint16) -> np.ndarray:
    return np.random.default_rng(0).integers(100, 120, shape).astype(dtype)


def picture(**changes) -> Picture:
    made = picture_of(analysed(noise(), [3.25, 40], [60.5, -0.4], pixel_size_um=0.108), status=STATUS)
    return replace(made, **changes)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "<u2", ">u2", "i2", "u4", "i4", "f4"])
def test_a_picture_survives_the_wire(dtype):
    sent = picture_of(
        analysed(noise(dtype=dtype), [3.25, 40], [60.5, -0.4], index=7, pixel_size_um=0.108), status=STATUS
    )
    got = decode_picture(encode_picture(sent))
    np.testing.assert_array_equal(got.pixels, noise(dtype=dtype))
    assert got.pixels.dtype == np.dtype(dtype).newbyteorder("<")
    for name in ("y_px", "x_px", "score", "track_id"):
        np.testing.assert_array_equal(getattr(got, name), getattr(sent, name))
    for name in ("stride", "frame_shape", "index", "time_s", "pixel_size_um", "levels", "status"):
        assert getattr(got, name) == getattr(sent, name)


def test_a_picture_without_detections_survives_the_wire():
    assert len(decode_picture(encode_picture(picture_of(analysed(noise((3, 5))), status=STATUS)))) == 0


@pytest.mark.parametrize("changes", [{}, {"field_optics": None}, {"z_range_um": None}, {"flags": None, "z_um": None}])
def test_a_field_and_what_is_known_of_z_survive_the_wire(changes):
    sent = field_picture(**changes)
    got = decode_picture(encode_picture(sent))
    np.testing.assert_array_equal(got.pixels, sent.pixels)
    np.testing.assert_array_equal(got.field, sent.field)
    assert got.field.dtype == np.complex64
    assert got.columns() == sent.columns()
    for name, _ in sent.columns():
        np.testing.assert_array_equal(getattr(got, name), getattr(sent, name))
    for name in ("field_optics", "pixels_per_cell", "z_range_um"):
        assert getattr(got, name) == getattr(sent, name)
    assert [name for name in ("z_um", "flags") if getattr(got, name) is None] == [
        name for name in ("z_um", "flags") if name in changes
    ]


CELL_COLUMNS = ("area_px", "mean_intensity", "parent_id")


def test_cells_survive_the_wire():
    sent = cell_picture()
    got = decode_picture(encode_picture(sent))
    for name in ("pixels", "labels", "track_id", *CELL_COLUMNS):
        np.testing.assert_array_equal(getattr(got, name), getattr(sent, name))
        assert getattr(got, name).dtype == getattr(sent, name).dtype
    np.testing.assert_array_equal(got.area_px, [200, 200])
    noisy = np.random.default_rng(0).integers(0, 3, (48, 64)).astype(np.int32)
    np.testing.assert_array_equal(decode_picture(encode_picture(cell_picture(labels=noisy))).labels, noisy)


def test_labels_add_little_to_a_message():
    sent = picture_of(cells(), status=STATUS)
    assert len(sent) > 180
    plain = encode_picture(replace(sent, labels=None))
    message = encode_picture(sent)
    assert len(message) - len(plain) < 0.15 * sent.pixels.nbytes
    np.testing.assert_array_equal(decode_picture(message).labels, cells().tracks.detections.labels)
    worst = np.arange(48 * 64, dtype=np.int32).reshape(48, 64) % 3  # no two neighbours are alike
    n_more = len(encode_picture(cell_picture(labels=worst))) - len(encode_picture(cell_picture(labels=None)))
    assert n_more <= 8 * worst.size + 64


def test_labels_are_thinned_like_the_pixels():
    analysed_cells = cells()
    shown = picture_of(analysed_cells, status=STATUS, max_side_px=200)
    assert shown.stride == 3
    np.testing.assert_array_equal(shown.labels, analysed_cells.tracks.detections.labels[::3, ::3])


def test_labels_of_another_frame_are_refused():
    tracks = cells().tracks
    wrong = replace(tracks, detections=replace(tracks.detections, labels=np.zeros((512, 500), np.int32)))
    with pytest.raises(ValueError, match="expected labels of 512 x 512 pixels like frame 0, got"):
        picture_of(replace(cells(), tracks=wrong), status=STATUS)


@pytest.mark.parametrize("asked", [False, True])
def test_a_frame_without_cells_has_labels_where_the_model_segments(asked):
    nothing = picture_of(analysed(noise()), status=STATUS, cells=asked)
    assert (nothing.labels is not None) == asked
    got = decode_picture(encode_picture(nothing)).labels
    assert not asked or (got.shape == (48, 64) and not got.any())
    assert picture_of(analysed(noise(), [3.0], [4.0]), status=STATUS, cells=asked).labels is None  # that is no cell


def test_a_sink_sends_cells_and_says_so_of_an_empty_frame():
    sink = DisplaySink(status=lambda: STATUS, max_fps=1e6, cells=True)
    stream = PictureStream(sink.address)
    assert sink.wait_for_view(10)
    sink.write(cells())
    got = stream.read(10)
    sink.write(analysed(noise(), index=1))
    empty = stream.read(10)
    stream.close()
    sink.close()
    np.testing.assert_array_equal(got.labels, cells().tracks.detections.labels)
    assert got.parent_id is None
    assert empty.labels.max() == 0


def test_a_field_too_large_to_send_is_left_out_and_the_picture_still_comes():
    assert picture_of(holographic((2049, 2048), 1), status=STATUS).field is None
    assert picture_of(holographic((2048, 2048), 1), status=STATUS).field is not None


@pytest.mark.parametrize("dtype", ["f2", "f8", "u8", "i8"])
def test_dtypes_the_screen_does_not_need_become_float32(dtype):
    assert picture_of(analysed(noise(dtype=dtype)), status=STATUS).pixels.dtype == np.float32


def test_of_several_channels_the_first_is_shown():
    pixels = noise((3, 20, 30))
    np.testing.assert_array_equal(picture_of(analysed(pixels), status=STATUS).pixels, pixels[0])


def test_a_notice_survives_the_wire():
    assert decode_message(encode_notice(Notice("end", STATUS))) == Notice("end", STATUS)
    with pytest.raises(ValueError, match="expected a picture, got the notice 'end'"):
        decode_picture(encode_notice(Notice("end", STATUS)))


def test_a_status_that_knows_no_age_yet_survives_the_wire():
    got = decode_message(encode_notice(Notice("status", replace(STATUS, age_p50_ms=float("nan")))))
    assert np.isnan(got.status.age_p50_ms)
    assert got.status.age_p99_ms == STATUS.age_p99_ms


@pytest.mark.parametrize(
    ("shape", "stride"), [((1024, 1024), 1), ((1025, 300), 2), ((300, 2500), 3), ((2048, 2048), 2)]
)
def test_large_frames_are_thinned_and_positions_stay_in_camera_pixels(shape, stride):
    pixels = np.zeros(shape, np.uint16)
    pixels[stride * 50, stride * 80] = 900
    shown = picture_of(analysed(pixels, [stride * 50.0], [stride * 80.0]), status=STATUS, max_side_px=1024)
    assert shown.stride == stride
    assert max(shown.pixels.shape) <= 1024
    assert shown.frame_shape == shape
    assert shown.pixels[50, 80] == 900
    assert (shown.y_px[0], shown.x_px[0]) == (stride * 50, stride * 80)


def test_levels_leave_out_the_brightest_and_what_is_no_number():
    image = np.random.default_rng(1).normal(100, 5, (300, 300)).astype(np.float32)
    image[0, 0], image[4, 4], image[8, 8] = np.inf, np.nan, 1e6
    low, high = contrast_levels(image)
    assert 75 < low < 95
    assert 105 < high < 130
    assert contrast_levels(np.full((9, 9), 7, np.uint8)) == (7.0, 8.0)
    assert contrast_levels(np.full((9, 9), np.nan, np.float32)) == (0.0, 1.0)


def with_header(message: bytes, **changes) -> bytes:
    length = struct.unpack_from("<I", message)[0]
    header = json.loads(message[4 : 4 + length]) | changes
    text = json.dumps({key: value for key, value in header.items() if value != "absent"}).encode()
    return struct.pack("<I", len(text)) + text + message[4 + length :]


HOSTILE = {
    "nothing": lambda good: b"",
    "too short": lambda good: good[:3],
    "cut off": lambda good: good[:-1],
    "one byte more": lambda good: good + b"x",
    "header longer than the message": lambda good: struct.pack("<I", 2**31) + good[4:],
    "header longer than allowed": lambda good: struct.pack("<I", 70_000) + b" " * 70_000,
    "no JSON": lambda good: struct.pack("<I", 8) + b"\x80pickle." + good,
    "deeply nested": lambda good: struct.pack("<I", 60_000) + b"[" * 60_000,
    "a list": lambda good: struct.pack("<I", 2) + b"[]",
    "other version": lambda good: with_header(good, version=99),
    "unknown kind": lambda good: with_header(good, kind="exec"),
    "missing field": lambda good: with_header(good, stride="absent"),
    "objects": lambda good: with_header(good, dtype="|O"),
    "structured dtype": lambda good: with_header(good, dtype=[["a", "<u2"]]),
    "negative side": lambda good: with_header(good, shape=[-48, -64]),
    "huge side": lambda good: with_header(good, shape=[2**40, 2**40]),
    "bool side": lambda good: with_header(good, shape=[True, 64]),
    "three axes": lambda good: with_header(good, shape=[48, 8, 8]),
    "other shape": lambda good: with_header(good, shape=[64, 48]),
    "too many rows": lambda good: with_header(good, n=3),
    "negative rows": lambda good: with_header(good, n=-1),
    "text index": lambda good: with_header(good, index="7"),
    "zero stride": lambda good: with_header(good, stride=0),
    "stride that does not fit": lambda good: with_header(good, stride=2),
    "infinite time": lambda good: with_header(good, time_s=float("inf")),
    "no time": lambda good: with_header(good, time_s=None),
    "levels the wrong way round": lambda good: with_header(good, levels=[9, 3]),
    "levels of text": lambda good: with_header(good, levels="ab"),
    "negative pixel size": lambda good: with_header(good, pixel_size_um=-1),
    "status with more": lambda good: with_header(good, status={"camera_fps": 1.0, "more": 1}),
    "status of text": lambda good: with_header(good, status="fine"),
    "other columns": lambda good: with_header(good, columns=[["y_px", "<f8"]]),
    "columns of numbers": lambda good: with_header(good, columns=[1, 2]),
    "a column that is not there": lambda good: with_header(good, columns=[*COLUMNS, ["z_um", "<f4"]]),
    "a field that is not there": lambda good: with_header(good, field_shape=[24, 32]),
    "a field of no size": lambda good: with_header(good, field_shape=[0, 0]),
    "senseless optics": lambda good: with_header(good, field_optics=asdict(OPTICS) | {"na": -1.0}),
    "optics of text": lambda good: with_header(good, field_optics=asdict(OPTICS) | {"na": "1"}),
    "optics with more": lambda good: with_header(good, field_optics=asdict(OPTICS) | {"more": 1.0}),
    "no pixels in a cell": lambda good: with_header(good, pixels_per_cell=0),
    "a z range of nothing": lambda good: with_header(good, z_range_um=[3.0, 3.0]),
    "a z range without end": lambda good: with_header(good, z_range_um=[0.0, float("inf")]),
}
COLUMNS = [["y_px", "<f4"], ["x_px", "<f4"], ["score", "<f4"], ["track_id", "<i8"]]
HOSTILE_WITH_FIELD = {
    "a field twice as wide": lambda good: with_header(good, field_shape=[24, 64]),
    "a field that lies elsewhere": lambda good: with_header(good, pixels_per_cell=1),
    "a field cut off": lambda good: good[:-8],
    "a field untold": lambda good: with_header(good, field_shape=None),
    "columns the other way round": lambda good: with_header(
        good, columns=[*COLUMNS, ["flags", "<f4"], ["polarizability_um3", "<f4"], ["z_um", "<f4"]]
    ),
}


HOSTILE_WITH_CELLS = {
    "runs that are not there": lambda good: with_header(good, n_runs=99),
    "no runs": lambda good: with_header(good, n_runs=0),
    "runs untold": lambda good: with_header(good, n_runs=None),
    "runs of text": lambda good: with_header(good, n_runs="40"),
    "more runs than pixels": lambda good: with_header(good, n_runs=2**40),
    "runs too long": lambda good: good[: -8 * N_RUNS] + b"\xff" * (4 * N_RUNS) + good[-4 * N_RUNS :],
    "runs of nothing": lambda good: good[: -8 * N_RUNS] + bytes(4 * N_RUNS) + good[-4 * N_RUNS :],
    "a label without a row": lambda good: good[:-4] + struct.pack("<i", 3),
    "a label below 0": lambda good: good[:-4] + struct.pack("<i", -1),
    "runs cut off": lambda good: good[:-4],
}
N_RUNS = 41  # one to begin with, two a row of a cell


@pytest.mark.parametrize("name", HOSTILE_WITH_CELLS)
def test_damaged_and_hostile_messages_with_cells_are_refused(name):
    good = encode_picture(cell_picture())
    assert decode_picture(good).labels is not None
    with pytest.raises(ValueError, match="expected a message of a oneframe live view"):
        decode_message(HOSTILE_WITH_CELLS[name](good))


@pytest.mark.parametrize("name", HOSTILE)
def test_damaged_and_hostile_messages_are_refused(name):
    with pytest.raises(ValueError, match="expected a message of a oneframe live view"):
        decode_message(HOSTILE[name](encode_picture(picture())))


@pytest.mark.parametrize("name", HOSTILE_WITH_FIELD)
def test_damaged_and_hostile_messages_with_a_field_are_refused(name):
    with pytest.raises(ValueError, match="expected a message of a oneframe live view"):
        decode_message(HOSTILE_WITH_FIELD[name](encode_picture(field_picture())))


def test_random_bytes_never_do_worse_than_a_value_error():
    rng = np.random.default_rng(2)
    plain, with_field = encode_picture(picture()), encode_picture(field_picture())
    for turn in range(400):
        damaged = bytearray(with_field if turn % 2 else plain)
        for place in rng.integers(0, 700, 5):
            damaged[place] = rng.integers(0, 256)
        try:
            decode_message(bytes(damaged))
        except ValueError as exc:
            assert "oneframe live view" in str(exc)  # noqa: PT017 - either outcome is right


CONTRADICTIONS = {
    "pixels": ({"pixels": np.zeros((48, 64))}, "a picture has .H, W. pixels"),
    "stride": ({"stride": 3}, "with stride 3 does not give"),
    "column": ({"score": np.zeros(5, np.float32)}, "column score must be <f4"),
    "levels": ({"levels": (1.0, float("nan"))}, "levels must be two finite values"),
    "z range": ({"z_range_um": (5.0, -5.0)}, "z_range_um must be two finite values"),
    "z": ({"z_um": np.zeros(5, np.float32)}, "column z_um must be <f4"),
    "field": ({"field": np.ones((48, 64), np.complex128)}, "must be <c8 of shape"),
    "labels": ({"labels": np.zeros((48, 63), np.int32)}, "labels must be <i4 of shape .48, 64. like the pixels"),
    "labels of bytes": ({"labels": np.zeros((48, 64), np.uint8)}, "labels must be <i4"),
    "labels without rows": ({"labels": np.full((48, 64), 3, np.int32)}, "labels must be from 0 to 2, .* got 3 to 3"),
    "cells": ({"field": np.ones((24, 32), np.complex64)}, "with 1 pixels per cell .* give `DisplaySink`"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_picture_checks_itself(name):
    changes, message = CONTRADICTIONS[name]
    with pytest.raises(ValueError, match=message):
        picture(**changes)


@pytest.fixture
def sink():
    made = DisplaySink(status=lambda: STATUS, max_fps=1e6)
    yield made
    made.close()


@pytest.fixture
def stream(sink):
    made = PictureStream(sink.address)
    yield made
    made.close()


def test_the_newest_picture_arrives_and_then_the_end(sink, stream):
    assert sink.wait_for_view(10)
    assert stream.read(0.0) is None
    for index in range(5):
        sink.write(analysed(noise(), [index], [2], index=index))
        newest = stream.read(10)
        assert (newest.index, newest.y_px[0]) == (index, index)
    assert stream.connected
    sink.close()
    assert stream.read(10) == Notice("end", STATUS)


def test_no_more_pictures_than_the_screen_shows():
    sink = DisplaySink(status=lambda: STATUS, max_fps=30)
    stream = PictureStream(sink.address)
    assert sink.wait_for_view(10)
    frame, started_s, n_written = analysed(noise()), time.monotonic(), 0
    while time.monotonic() < started_s + 0.5:
        sink.write(frame)
        n_written += 1
    stream.close()
    sink.close()
    assert n_written > 100
    assert 8 <= sink.n_published <= 17


def test_a_sink_of_a_model_for_holograms_sends_what_the_view_needs():
    settings = {"field_optics": OPTICS, "pixels_per_cell": 2, "z_range_um": (-4.0, 6.0)}
    sink = DisplaySink(status=lambda: STATUS, **settings)
    stream = PictureStream(sink.address)
    assert sink.wait_for_view(10)
    sent = holographic(index=4)
    sink.write(sent)
    got = stream.read(10)
    stream.close()
    sink.close()
    np.testing.assert_array_equal(got.field, sent.tracks.detections.field)
    assert {name: getattr(got, name) for name in settings} == settings


def test_large_fields_come_less_often():
    sink = DisplaySink(status=lambda: STATUS, max_fps=1e6)
    stream = PictureStream(sink.address)
    assert sink.wait_for_view(10)
    frame, started_s = holographic((1024, 1024), 1), time.monotonic()
    while time.monotonic() < started_s + 0.6:
        sink.write(frame)
    stream.close()
    sink.close()
    assert 2 <= sink.n_published <= 6  # 8 MiB each, 64 MiB a second


def test_nothing_is_encoded_while_nobody_looks(sink):
    started_s = time.monotonic()
    for index in range(500):
        sink.write(analysed(noise((512, 512)), index=index))
    assert sink.n_published == 0
    assert time.monotonic() - started_s < 5
    assert not sink.wait_for_view(0.0)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs POSIX signals")
def test_a_stopped_viewer_never_blocks_the_sink(sink):
    script = (
        "import sys\nfrom oneframe.runtime.display import PictureStream\n"
        f"stream = PictureStream({sink.address!r})\nsys.stdin.read()\n"
    )
    viewer = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    try:
        assert sink.wait_for_view(20)
        viewer.send_signal(signal.SIGSTOP)
        frame, longest_s = analysed(noise((512, 512))), 0.0
        for _ in range(500):
            started_s = time.perf_counter()
            sink.write(frame)
            longest_s = max(longest_s, time.perf_counter() - started_s)
        started_s = time.perf_counter()
        sink.close()
        closing_s = time.perf_counter() - started_s
    finally:
        viewer.kill()
        viewer.communicate()
    assert sink.n_published == 500
    assert longest_s < 0.5
    assert closing_s < 2.0


def test_counters_arrive_though_every_frame_fails(sink, stream):
    assert sink.wait_for_view(10)
    sink.skip(MISSED)
    assert stream.read(10) == Notice("status", STATUS)
    sink.skip(MISSED)
    assert stream.read(0.05) is None  # once a second is enough


def test_the_stream_notices_that_the_sink_is_gone(sink, stream):
    assert sink.wait_for_view(10)
    sink.close()
    deadline_s = time.monotonic() + 10
    while stream.connected and time.monotonic() < deadline_s:
        stream.read(0.01)
    assert not stream.connected


def test_a_stream_goes_on_after_a_bad_message():
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        stream = PictureStream(f"tcp://127.0.0.1:{port}")
        assert socket.poll(10_000)
        socket.send(b"not a picture")
        with pytest.raises(ValueError, match="check the address"):
            stream.read(10)
        socket.send(encode_picture(picture()))
        assert isinstance(stream.read(10), Picture)
        stream.close()


def test_closing_does_not_wait_for_ever():
    sink = DisplaySink(status=lambda: STATUS)
    left_open = sink._context.socket(zmq.PUB)  # libzmq waits for it as it can wait for a view that just left
    started_s = time.monotonic()
    sink.close()
    assert time.monotonic() - started_s < 5
    left_open.close()


def test_an_address_in_use_or_misspelt_is_explained(sink):
    with pytest.raises(OSError, match=r"cannot publish the live view at tcp.*choose another port"):
        DisplaySink(sink.address, status=lambda: STATUS)
    with pytest.raises(OSError, match="expected an address like"):
        PictureStream("here")


def test_a_second_close_does_nothing(sink, stream):
    for closable in (sink, stream):
        closable.close()
        closable.close()
    assert not stream.connected


@pytest.mark.parametrize("wrong", [{"max_fps": 0}, {"max_side_px": 0}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="expected max_fps above 0 and max_side_px"):
        DisplaySink(status=lambda: STATUS, **wrong)


def test_without_qt_the_line_to_install_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyqtgraph", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'oneframe\[view\]'"):
        start_viewer("tcp://127.0.0.1:9", title="", diameter_px=5)


def test_the_pipeline_side_imports_no_qt():
    code = "import sys, oneframe.runtime.display\nprint(sorted({'pyqtgraph', 'PySide6', 'cv2'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_end_is_told_even_after_a_burst(sink, stream):
    assert sink.wait_for_view(10)
    for index in range(50):
        sink.write(analysed(noise((512, 512)), index=index))
    sink.close()
    message = stream.read(10)
    while isinstance(message, Picture):
        message = stream.read(10)
    assert message == Notice("end", STATUS)


def blinking(index: int, n=30, shape=(48, 64), *, z=False) -> Analysed:
    """Return a frame with emitters at random places, each as precise as 0.2 px."""
    rng = np.random.default_rng(index)
    plain = analysed(noise(shape), rng.uniform(0, shape[0] - 1, n), rng.uniform(0, shape[1] - 1, n), index=index)
    sigma = np.full(n, 0.2, np.float32)
    height = np.linspace(-0.4, 0.4, n, dtype=np.float32) if z else None
    found = replace(plain.tracks.detections, sigma_y_px=sigma, sigma_x_px=sigma, z_um=height)
    return replace(plain, tracks=replace(plain.tracks, detections=found))


def grown(*frames: Analysed, with_z=False) -> SuperResolution:
    made = SuperResolution((48, 64), with_z=with_z)
    for one in frames:
        found = one.tracks.detections
        made.add(found.y_px, found.x_px, found.sigma_y_px, found.sigma_x_px, found.z_um)
    return made


@pytest.mark.parametrize("z", [False, True])
def test_a_super_resolution_image_survives_the_wire_with_pictures_and_notices(z):
    image = GrownImage.of(grown(blinking(0, z=z), with_z=z), (-0.4, 0.4))
    emitters = Emitters(30, 22.5, 9.8, float("nan"), 0.1)
    for sent in (picture(emitters=emitters, grown=image), Notice("end", STATUS, emitters, image)):
        got = decode_message(encode_picture(sent) if isinstance(sent, Picture) else encode_notice(sent))
        np.testing.assert_array_equal(got.grown.pixels, image.pixels)
        assert (got.grown.z_step is None) == (not z)
        if z:
            np.testing.assert_array_equal(got.grown.z_step, image.z_step)
            assert {0, 254, 255} <= set(np.unique(image.z_step))
        assert (got.grown.camera_px, got.grown.white, got.grown.n_localisations) == (1 / 8, image.white, 30)
        assert replace(got.emitters, precision_px=0.0) == replace(emitters, precision_px=0.0)
        assert np.isnan(got.emitters.precision_px)


def test_what_is_sent_of_a_super_resolution_image_is_its_square_root():
    made = grown(blinking(0))
    image = GrownImage.of(made, None)
    assert image.pixels.max() == 65535
    np.testing.assert_allclose((image.pixels / 65535.0) ** 2 * made.image.max(), made.image, atol=1e-4)
    assert GrownImage.of(grown(), None).pixels.max() == 0


@pytest.mark.parametrize("change", [{"shape": [1, 1]}, {"white": 0}, {"camera_px": 0}, {"shape": [9999, 9999]}, None])
def test_a_damaged_super_resolution_image_is_refused(change):
    message = encode_picture(picture(grown=GrownImage.of(grown(blinking(0)), None)))
    length = struct.unpack_from("<I", message)[0]
    header = json.loads(message[4 : 4 + length])
    if change is None:
        header["grown"]["with_z"] = True  # more than there is
    else:
        header["grown"] |= change
    text = json.dumps(header).encode()
    with pytest.raises(ValueError, match="got a damaged one"):
        decode_message(struct.pack("<I", len(text)) + text + message[4 + length :])


def read_until(stream, condition, timeout_s=10.0):
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        message = stream.read(0.05)
        if message is not None and condition(message):
            return message
    raise AssertionError("waited in vain")


def test_no_localisation_is_missing_from_the_image_however_few_pictures_are_shown():
    sink = DisplaySink(status=lambda: STATUS, max_fps=5, emitters=True)
    stream = PictureStream(sink.address)
    try:
        for index in range(100):  # half of them before anybody looks
            if index == 50:
                assert sink.wait_for_view(10)
            sink.write(blinking(index))
        assert sink.n_published < 10
        sink.close()
        end = read_until(stream, lambda message: isinstance(message, Notice))
        assert end.kind == "end"
        assert end.grown.n_localisations == 100 * 30
        expected = GrownImage.of(grown(*map(blinking, range(100))), None)
        np.testing.assert_allclose(end.grown.pixels.astype(int), expected.pixels.astype(int), atol=2)
        assert end.emitters.n == 30
    finally:
        stream.close()
        sink.close()


def test_a_view_can_begin_the_image_anew_and_stays_connected():
    sink = DisplaySink(status=lambda: STATUS, max_fps=1e6, emitters=True)
    stream = PictureStream(sink.address)
    try:
        assert sink.wait_for_view(10)
        sink.write(blinking(0))
        assert read_until(stream, lambda message: message.grown is not None).grown.n_localisations == 30
        for _ in range(2):
            stream.clear_emitters()
            deadline_s = time.monotonic() + 10
            while sink._grown.n_localisations:  # the wish is on its way
                sink._is_viewed()
                assert time.monotonic() < deadline_s
            sink.write(blinking(1))
            assert read_until(stream, lambda message: message.grown is not None).grown.n_localisations == 30
            assert sink.wait_for_view(0)
    finally:
        stream.close()
        sink.close()


def test_frames_of_another_size_begin_a_new_image_and_models_without_errors_have_none():
    sink = DisplaySink(status=lambda: STATUS, emitters=True)
    try:
        sink.write(analysed(noise(), [1.0], [2.0]))
        assert sink._grown_image() is None
        sink.write(blinking(0))
        sink.write(blinking(1, shape=(40, 40)))
        assert (sink._grown_image().n_localisations, sink._grown.frame_shape) == (30, (40, 40))
    finally:
        sink.close()
