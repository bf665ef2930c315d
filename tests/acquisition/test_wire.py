from __future__ import annotations

import contextlib
import json
import math
import time
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from oneframe.acquisition import BadFrameError, Frame, SourceInfo
from oneframe.acquisition.wire import (
    LIFE_CYCLE,
    MAX_HEADER_BYTES,
    StreamEnd,
    StreamFrame,
    StreamStart,
    decode,
    decode_request,
    encode_end,
    encode_frame,
    encode_request,
    encode_start,
)

DTYPES = [np.dtype(n) for n in ("u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8", ">u2", ">f4")]
PIXELS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9))
)
FRAME = Frame(np.arange(12, dtype=np.uint16).reshape(3, 4), 7, 1_700_000_000.25, 0.1, {"exposure_ms": 5.0})


def _message(**changes: Any) -> list[Any]:
    """The message of `FRAME` with some keys of the header changed; None takes a key out."""
    header, pixels = encode_frame(FRAME, "abc")
    values = {**json.loads(bytes(header)), **changes}
    values.pop("crc")
    return [_sealed({k: v for k, v in values.items() if v is not None}), pixels]


def _sealed(header: dict[str, Any]) -> bytes:
    text = json.dumps(header)[:-1].encode()
    return text + f',"crc":"{zlib.crc32(text):08x}"}}'.encode()


@given(
    pixels=PIXELS,
    index=st.integers(0, 2**63 - 1),
    time_s=st.floats(1.0, 4e9),
    pixel_size_um=st.none() | st.floats(1e-4, 1e3),
    metadata=st.dictionaries(st.text(max_size=9), st.none() | st.booleans() | st.integers() | st.text(max_size=9)),
)
def test_a_frame_survives_the_wire(
    pixels: Any, index: int, time_s: float, pixel_size_um: float | None, metadata: dict[str, Any]
) -> None:
    parts = [bytes(part) for part in encode_frame(Frame(pixels, index, time_s, pixel_size_um, metadata), "series")]
    message = decode(parts)
    assert isinstance(message, StreamFrame)
    frame = message.frame
    np.testing.assert_array_equal(frame.pixels, pixels)
    assert frame.pixels.dtype == pixels.dtype.newbyteorder("=")
    assert (message.series, frame.index, frame.pixel_size_um) == ("series", index, pixel_size_um)
    assert math.isclose(frame.time_s, time_s, abs_tol=1e-6)
    assert dict(frame.metadata) == metadata


@given(data=st.data())
def test_damaged_bytes_never_raise_anything_but_a_bad_frame(data: st.DataObject) -> None:
    header, pixels = (bytearray(part) for part in encode_frame(FRAME, "abc"))
    for position in data.draw(st.lists(st.integers(0, len(header) - 1), min_size=1, max_size=5)):
        header[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(pixels)))
    with contextlib.suppress(BadFrameError):
        assert isinstance(decode([bytes(header), bytes(pixels[:cut])]), StreamFrame)


@given(header=st.binary(max_size=200), body=st.binary(max_size=40))
def test_foreign_bytes_never_raise_anything_but_a_bad_frame(header: bytes, body: bytes) -> None:
    with pytest.raises(BadFrameError, match="expected"):
        decode([header, body])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(key=st.sampled_from(["htype", "type", "shape", "frame", "v", "series", "t_ns", "pixel_um", "md"]), value=JSON)
def test_any_value_of_any_key_is_taken_or_refused(key: str, value: Any) -> None:
    with contextlib.suppress(BadFrameError):
        assert isinstance(decode(_message(**{key: value})), StreamFrame)


def test_decoded_pixels_are_a_read_only_view() -> None:
    body = bytes(24)
    message = decode([_message()[0], body])
    assert isinstance(message, StreamFrame)
    assert np.shares_memory(message.frame.pixels, np.frombuffer(body, np.uint8))
    assert not message.frame.pixels.flags.writeable


def test_encoding_copies_nothing_if_the_pixels_are_contiguous() -> None:
    assert np.shares_memory(np.frombuffer(encode_frame(FRAME, "s")[1], np.uint8), FRAME.pixels)
    every_second = Frame(FRAME.pixels[:, ::2], 0, 1.0)
    message = decode(encode_frame(every_second, "s"))
    assert isinstance(message, StreamFrame)
    np.testing.assert_array_equal(message.frame.pixels, every_second.pixels)


def test_a_plain_area_detector_message_decodes() -> None:
    header = {
        "htype": "array-1.0",
        "type": "int16",
        "shape": [2, 3],
        "frame": 41,
        "ndattr": {"gain": 2},
        "encoding": "",
    }
    message = decode([json.dumps(header).encode(), np.arange(6, dtype="<i2").tobytes()])
    assert isinstance(message, StreamFrame)
    assert message.series == ""
    assert message.frame.index == 41
    assert abs(message.frame.time_s - time.time()) < 5
    np.testing.assert_array_equal(message.frame.pixels, [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("name", ["uint16", "<u2", ">u2"])
def test_byte_orders(name: str) -> None:
    wire = FRAME.pixels.astype(">u2" if name == ">u2" else "<u2").tobytes()
    message = decode([_message(type=name)[0], wire])
    assert isinstance(message, StreamFrame)
    np.testing.assert_array_equal(message.frame.pixels, FRAME.pixels)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"htype": "image-1.0"}, "expected htype array-1.0"),
        ({"htype": ["array-1.0"]}, "before 1.4; update the publisher"),
        ({"type": "object"}, "expected type uint8"),
        ({"type": "O"}, "expected type uint8"),
        ({"type": "uint64"}, "expected type uint8"),
        ({"type": ["u2"]}, "expected type uint8"),
        ({"shape": [12]}, "expected shape"),
        ({"shape": [1, 1, 3, 4]}, "expected shape"),
        ({"shape": [-3, -4]}, "expected shape"),
        ({"shape": [3.0, 4]}, "expected shape"),
        ({"shape": [True, 12]}, "expected shape"),
        ({"shape": [1, 2**40]}, "each 1 to 65536"),
        ({"shape": [3, 5]}, "needs 30 bytes of pixels, got 24"),
        ({"frame": -1}, "expected frame as a whole number"),
        ({"frame": 1.5}, "expected frame as a whole number"),
        ({"frame": 2**64}, "expected frame as a whole number"),
        ({"t_ns": math.nan}, "expected finite numbers in the header, got nan"),
        ({"t_ns": 1e18}, "expected t_ns"),
        ({"t_ns": 10**30}, "expected t_ns"),
        ({"pixel_um": 0}, "expected pixel_um above 0"),
        ({"pixel_um": math.inf}, "expected finite numbers"),
        ({"md": {"gain": [1, -math.inf]}}, "expected finite numbers"),
        ({"md": {"note": "\ud800"}}, "half a character"),
        ({"md": {"\udfff": 1}}, "half a character"),
        ({"md": json.loads("[" * 20 + "]" * 20)}, "nested 16 deep at most"),
        ({"series": 3}, "expected series as text"),
        ({"series": None}, "expected series as text"),
        ({"series": ""}, "expected series as text of 1 to 64"),
        ({"series": "x" * 65}, "expected series as text of 1 to 64"),
        ({"n": -1}, "expected n as a whole number from 0 to 7"),
        ({"n": 8}, "expected n as a whole number from 0 to 7"),
        ({"md": [1]}, "expected md as an object"),
        ({"v": 3}, "has version 3, this oneframe reads 2; update oneframe"),
    ],
)
def test_a_lying_header_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadFrameError, match=reason):
        decode(_message(**changes))


def test_the_index_of_a_bad_frame_is_told_where_it_can_be_read() -> None:
    with pytest.raises(BadFrameError, match="needs 30 bytes") as caught:
        decode(_message(shape=[3, 5]))
    assert caught.value.index == 7


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], "2 parts"),
        ([b"{}"], "2 parts"),
        ([b"{}", b"", b""], "2 parts"),
        ([b"\xff\xfe", b""], "header in JSON"),
        ([b"[" * 16_000, b""], "header in JSON"),
        ([b"1" * 16_000, b""], "header in JSON"),
        ([b"[1]", b""], "JSON object"),
        ([b" " * (MAX_HEADER_BYTES + 1), b""], "at most 16384 bytes"),
        ([b"\x80\x04\x95pickle", b""], "header in JSON"),
    ],
)
def test_a_message_that_is_none_is_refused(parts: list[bytes], reason: str) -> None:
    with pytest.raises(BadFrameError, match=reason):
        decode(parts)


def test_colours_of_a_foreign_camera_are_refused() -> None:
    header = {"htype": "array-1.0", "type": "uint8", "shape": [4, 5, 3], "frame": 0}
    with pytest.raises(BadFrameError, match="let the camera send mono pixels"):
        decode([json.dumps(header).encode(), bytes(60)])


@pytest.mark.parametrize("dtype", ["u8", "i8", "f2"])
def test_pixels_that_the_stream_does_not_carry_are_refused(dtype: str) -> None:
    with pytest.raises(BadFrameError, match="convert the frame first") as caught:
        encode_frame(Frame(np.zeros((2, 2), dtype), 5, 1.0), "")
    assert caught.value.index == 5


@pytest.mark.parametrize(
    ("metadata", "why"),
    [({"gain": math.nan}, "no JSON"), ({"gain": np.float32(1)}, "no JSON"), ({"note": "x" * 20_000}, "longer than")],
)
def test_metadata_that_do_not_fit_are_left_out_and_the_frame_still_goes(metadata: dict[str, Any], why: str) -> None:
    message = decode(encode_frame(Frame(FRAME.pixels, 0, 1.0, None, metadata), "s"))
    assert isinstance(message, StreamFrame)
    assert why in message.frame.metadata["omitted"]


def test_a_series_begins_and_ends() -> None:
    info = SourceInfo("demo:", live=True, n_frames=None, pixel_size_um=0.1)
    assert decode(encode_start("s", info)) == StreamStart("s", info)
    assert decode(encode_start("s", info, 5556)) == StreamStart("s", info, 5556)
    assert decode(encode_end("s", 300, "over")) == StreamEnd("s", 300, "over")
    assert decode(encode_end("s", 300, "over", 290)) == StreamEnd("s", 300, "over", 290)
    with pytest.raises(BadFrameError, match="expected an empty second part"):
        decode([encode_end("s", 300, "over")[0], b"x"])
    end = {"htype": "oneframe-end-1.0", "v": 2, "series": "s", "total": 1, "reason": ""}
    with pytest.raises(BadFrameError, match="expected total as a whole number"):
        decode([_sealed({**end, "total": -1}), b""])
    with pytest.raises(BadFrameError, match="expected sent as a whole number from 0 to 1"):
        decode([_sealed({**end, "sent": 2}), b""])
    start = {"htype": "oneframe-start-1.0", "v": 2, "series": "s", "live": True, "url": ""}
    with pytest.raises(BadFrameError, match="expected live as true or false"):
        decode([_sealed({**start, "live": 1}), b""])
    with pytest.raises(BadFrameError, match="expected latest_port as a whole number from 1 to 65535"):
        decode([_sealed({**start, "latest_port": 65_536}), b""])


def test_what_the_publisher_says_moves_no_cursor() -> None:
    message = decode(encode_end("s", 0, "over\x1b[2J\nFAKE LINE"))
    assert isinstance(message, StreamEnd)
    assert message.reason == "over [2J FAKE LINE"


def test_every_changed_byte_of_a_header_is_noticed() -> None:
    header, pixels = encode_frame(FRAME, "abc", 3)
    for position in range(len(header)):
        for flip in (1, 4, 0x20, 0x80):
            damaged = bytearray(header)
            damaged[position] ^= flip
            with pytest.raises(BadFrameError, match=r"checksum|JSON"):
                decode([damaged, pixels])
        with pytest.raises(BadFrameError, match=r"checksum|JSON"):
            decode([bytes(header[:position]), pixels])


def test_a_header_without_a_checksum_is_only_taken_from_strangers() -> None:
    header = json.loads(bytes(encode_frame(FRAME, "abc")[0]))
    del header["crc"]
    with pytest.raises(BadFrameError, match="expected a checksum"):
        decode([json.dumps(header).encode(), bytes(24)])
    del header["v"]
    message = decode([json.dumps(header).encode(), bytes(24)])
    assert isinstance(message, StreamFrame)
    assert message.series == ""
    with pytest.raises(BadFrameError, match="expected a checksum"):
        decode([b'{"htype":"oneframe-end-1.0","series":"abc","total":1,"reason":""}', b""])


def test_a_life_cycle_subscription_brings_no_frames() -> None:
    assert encode_start("s", SourceInfo("x", live=True))[0][: len(LIFE_CYCLE)] == LIFE_CYCLE
    assert encode_end("s", 1, "over")[0][: len(LIFE_CYCLE)] == LIFE_CYCLE
    assert encode_frame(FRAME, "s")[0][: len(LIFE_CYCLE)] != LIFE_CYCLE


@given(number=st.integers(0, 2**62), series=st.text(min_size=1, max_size=16), after=st.integers(-1, 2**63 - 1))
def test_a_request_survives_the_wire(number: int, series: str, after: int) -> None:
    assert decode_request(encode_request(number, series, after)) == (str(number).encode(), series, after)


@given(parts=st.lists(st.binary(max_size=80), max_size=5))
def test_foreign_bytes_are_no_request_or_one_that_is_bounded(parts: list[bytes]) -> None:
    request = decode_request(parts)
    assert request is None or (len(parts) == 3 and -1 <= request[2] < 10**19)
