from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pytest

from oneframe.acquisition.camera_core import FrameCounter
from oneframe.acquisition.camera_wire import BrokenMessageError, CameraSetup, read_message, write_message


def test_gaps_of_the_core_stay_gaps() -> None:
    counter = FrameCounter()
    assert [counter.index(n, n * 10.0, n / 100) for n in (0, 1, 2, 7, 8)] == [(0, 0), (1, 0), (2, 0), (7, 0), (8, 0)]


@pytest.mark.parametrize("clock_restarts", [False, True])
def test_a_count_that_begins_again_is_a_loss_told_from_the_time_that_passed(clock_restarts: bool) -> None:
    # cores before device interface 75 begin again at 0 when they clear their full buffer
    counter = FrameCounter()
    for n in range(10):
        assert counter.index(n, n * 10.0, 100 + n / 100) == (n, 0)
    elapsed_ms = 0.1 if clock_restarts else 505.0
    assert counter.index(0, elapsed_ms, 100.505) == (10, 40)  # frame 50, half an interval late: 10 to 49 are gone
    assert counter.index(1, elapsed_ms + 10, 100.515) == (11, 0)
    assert counter.index(3, elapsed_ms + 30, 100.535) == (13, 0)
    assert counter.index(0, elapsed_ms + 35, 100.540) == (14, 1)  # one at least, or it would not have begun again


def test_a_count_that_begins_again_unseen_is_a_gap_of_the_index_too() -> None:
    counter = FrameCounter()
    for n in range(10):
        counter.index(n, n * 10.0, n / 100)
    assert counter.index(4, 505.0, 0.505) == (14, 36)  # 10 to 49 are gone: four of them show as a gap


def test_a_camera_that_was_started_again_lost_nothing_unless_it_overflowed() -> None:
    counter = FrameCounter()
    for n in range(10):
        counter.index(n, n * 10.0, n / 100)
    counter.begin_sequence()
    assert counter.index(0, 1.0, 3.0) == (10, 0)
    assert counter.index(1, 11.0, 3.01) == (11, 0)
    counter.begin_sequence(after_overflow=True)
    assert counter.index(0, 1.0, 3.215) == (12, 19)
    assert counter.index(1, 11.0, 3.225) == (13, 0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_messages_cross_a_pipe(dtype: str) -> None:
    pixels = np.arange(200 * 90, dtype=dtype).reshape(200, 90)[:, ::3]
    source, sink = _pipe()
    with source, sink:
        write_message(sink, {"kind": "frame", "note": "5 µm"}, pixels)
        write_message(sink, {"kind": "ready"})
        header, got = read_message(source)
        assert (header["kind"], header["note"]) == ("frame", "5 µm")
        np.testing.assert_array_equal(got, pixels)
        assert got is not None
        assert got.flags.owndata
        assert got.dtype == dtype
        assert read_message(source) == ({"kind": "ready"}, None)


def _pipe() -> tuple[Any, Any]:
    read, write = os.pipe()
    return open(read, "rb", buffering=0), open(write, "wb", buffering=0)


def _raw(header: Any, n_bytes: int) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(4, "little") + n_bytes.to_bytes(4, "little") + text


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "the other side ended"),
        (b"\x05\0\0", "the other side ended"),
        (_raw({"shape": [2, 2], "type": "uint8"}, 4) + b"abc", "the other side ended"),
        (_raw({"shape": [2, 2], "type": "uint8"}, 5) + b"abcde", "expected 4 bytes of pixels"),
        (_raw({"shape": [1], "type": "object"}, 8), "expected pixels of uint8, uint16, float32, got object"),
        (b"\xff\xff\xff\xff\0\0\0\0", "expected a header of at most"),
    ],
)
def test_a_message_that_is_cut_or_lies_is_refused(raw: bytes, reason: str) -> None:
    source, sink = _pipe()
    with source, sink:
        sink.write(raw)
        sink.close()
        with pytest.raises(BrokenMessageError, match=reason):
            read_message(source)


def test_a_setup_crosses_as_one_line() -> None:
    setup = CameraSetup("mm:a b.cfg", "line\nline", True, "", 16, True, False, 2.5, None, "", {"Mode": "Noise µ"})
    line = setup.to_line()
    assert line.count(b"\n") == 1
    assert CameraSetup.from_line(line) == setup
