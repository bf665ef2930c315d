"""The message of the frame stream: a JSON header and the raw pixels, never a pickle.

A message has two parts: the header (UTF-8 JSON) and the pixels in C order, little-endian. The base keys are those of
areaDetector's ADZMQ from 1.4 on: `htype` "array-1.0", `type` (numpy name), `shape` (rows, columns), `frame`. Ours:

=========== ==========================================================================
`v`         version of our keys, 2
`series`    random name of one run of the publisher; a new one after each start
`n`         frames of the series that were sent before this one: a gap was lost on the way
`t_ns`      when the frame was taken, nanoseconds since the Unix epoch
`pixel_um`  edge of one pixel in the sample, micrometres (left out if unknown)
`md`        what else the camera told (left out if nothing)
`crc`       CRC-32 of the header before this key, which is the last; eight hexadecimal digits
=========== ==========================================================================

A series begins with `htype` "oneframe-start-1.0" and ends with "oneframe-end-1.0"; their second part is empty. The end
tells the frames the source made (`total`) and those that were sent (`sent`), so that a lost tail shows too.

The CRC tells damage, not forgery: that is what CurveZMQ is for (`keys`). It leaves the pixels out: there it would cost
more than a tenth of their transport, at each end (`benchmarks/stream.py`).
"""

from __future__ import annotations

import json
import math
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oneframe.acquisition.frame import Frame
from oneframe.acquisition.source import BadFrameError, SourceInfo

VERSION = 2
MAX_HEADER_BYTES = 16 * 1024
MAX_DEPTH = 16
"""Deepest nesting of a header."""
MAX_AXIS = 65_536
"""Longest side of an image, pixels."""

_FRAME, _START, _END = "array-1.0", "oneframe-start-1.0", "oneframe-end-1.0"
_MAX_INDEX = 2**63 - 1
_YEAR_2100_NS = 4_102_444_800 * 10**9
_MAX_SERIES = 64
_SEAL = re.compile(rb',"crc":"([0-9a-f]{8})"}\Z')
_SEAL_BYTES = len(b',"crc":"01234567"}')

_REQUEST_NUMBER = re.compile(rb"-1|\d{1,19}", re.ASCII)

LIFE_CYCLE = b'{"htype":"oneframe-'
"""How start and end begin, and no frame: a subscription to it brings these alone."""

_NAMES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32", "float64")
_LITTLE_ENDIAN: dict[str, np.dtype[Any]] = {name: np.dtype(name).newbyteorder("<") for name in _NAMES}
# every spelling of an allowed type; a name from the wire is looked up here and never handed to numpy
_DTYPES: dict[str, np.dtype[Any]] = dict(_LITTLE_ENDIAN)
for _dtype in _LITTLE_ENDIAN.values():
    _code = f"{_dtype.kind}{_dtype.itemsize}"
    _DTYPES.update({f"<{_code}": _dtype, f">{_code}": _dtype.newbyteorder(">")})
    if _dtype.itemsize == 1:
        _DTYPES[f"|{_code}"] = _dtype

Part = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class StreamFrame:
    """One frame as it came over the wire."""

    series: str
    """Which run of the publisher it belongs to; empty for a publisher that is not oneframe."""
    frame: Frame
    number: int | None = None
    """Frames of the series that were sent before this one; None if the publisher does not count."""


@dataclass(frozen=True, slots=True)
class StreamStart:
    """A series begins, or is announced again to late subscribers."""

    series: str
    info: SourceInfo
    """What the publisher's own source says of itself."""
    latest_port: int | None = None
    """Where the newest frame is to be had on request; None if nowhere."""


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """A series is over."""

    series: str
    total: int
    """Frames that the publisher's source made in all, delivered or not."""
    reason: str
    sent: int | None = None
    """Frames of the series that were sent; None if the publisher does not count."""


def encode_start(series: str, info: SourceInfo, latest_port: int | None = None) -> list[Part]:
    """Return the message that begins a series."""
    header = {
        "htype": _START,
        "v": VERSION,
        "series": series,
        "live": info.live,
        "n_frames": info.n_frames,
        "pixel_um": info.pixel_size_um,
        "url": info.url[:2000],
        "latest_port": latest_port,
    }
    return [_to_json(header), b""]


def encode_end(series: str, total: int, reason: str, sent: int | None = None) -> list[Part]:
    """Return the message that ends a series of `total` frames, `sent` of which were sent."""
    header = {"htype": _END, "v": VERSION, "series": series, "total": total, "sent": sent, "reason": reason[:2000]}
    return [_to_json(header), b""]


def encode_frame(frame: Frame, series: str, number: int | None = None) -> list[Part]:
    """Return the message of one frame; its second part is a view of the pixels where they are contiguous.

    `number` counts the frames of the series that were sent before. Metadata that are no JSON, or too long for the
    header, are left out and the message says so.

    Raises
    ------
    BadFrameError
        If the pixels have a type that the stream does not carry (64-bit integers, half floats).
    """
    dtype = _LITTLE_ENDIAN.get(frame.pixels.dtype.name)
    if dtype is None:
        raise BadFrameError(
            f"the stream carries {', '.join(_NAMES)}, got {frame.pixels.dtype}; convert the frame first",
            index=frame.index,
        )
    header: dict[str, Any] = {
        "htype": _FRAME,
        "type": dtype.name,
        "shape": list(frame.pixels.shape),
        "frame": frame.index,
        "v": VERSION,
        "series": series,
        "t_ns": round(frame.time_s * 1e9),
    }
    if number is not None:
        header["n"] = number
    if frame.pixel_size_um is not None:
        header["pixel_um"] = frame.pixel_size_um
    pixels = np.ascontiguousarray(frame.pixels, dtype=dtype)
    return [_with_metadata(header, frame.metadata), pixels.reshape(-1).view(np.uint8).data]


def encode_request(number: int, series: str, after: int) -> list[bytes]:
    """Return the request for a frame of a series that is newer than frame `after`; -1 takes any."""
    return [b"%d" % number, series.encode(), b"%d" % after]


def decode_request(parts: Sequence[bytes]) -> tuple[bytes, str, int] | None:
    """Read a request: its number, which the answer repeats, series and `after`; None if it is none."""
    if len(parts) != 3 or len(parts[1]) > _MAX_SERIES or not all(_REQUEST_NUMBER.fullmatch(p) for p in parts[::2]):
        return None
    return parts[0], parts[1].decode("utf-8", "replace"), int(parts[2])


def decode(parts: Sequence[Part]) -> StreamFrame | StreamStart | StreamEnd:
    """Read one message; the pixels of a frame are a read-only view of its second part.

    Raises
    ------
    BadFrameError
        If anything about the message is wrong; the reason says what.
    """
    if len(parts) != 2:
        raise BadFrameError(f"expected a message of 2 parts (header, pixels), got {len(parts)}")
    header, body = _read_header(parts[0]), memoryview(parts[1])
    kind = header.get("htype")
    if kind == _FRAME:
        return _decode_frame(header, body)
    if isinstance(kind, list):
        raise BadFrameError("expected htype as text, got a list as ADZMQ sent it before 1.4; update the publisher")
    if kind not in (_START, _END):
        raise BadFrameError(f"expected htype {_FRAME}, {_START} or {_END}, got {_shown(kind)}")
    if body.nbytes:
        raise BadFrameError(f"expected an empty second part with {kind}, got {body.nbytes} bytes")
    return _decode_start(header) if kind == _START else _decode_end(header)


def _decode_frame(header: Mapping[str, Any], body: memoryview) -> StreamFrame:
    index = _readable_index(header)
    try:
        ours = "v" in header
        pixels = _pixels(header, body, ours)
        metadata = header.get("md", {})
        if not isinstance(metadata, dict):
            raise BadFrameError(f"expected md as an object, got {_shown(metadata)}")
        frame = Frame(
            pixels,
            index=_whole(header, "frame", _MAX_INDEX),
            time_s=_whole(header, "t_ns", _YEAR_2100_NS, minimum=1) / 1e9 if "t_ns" in header else time.time(),
            pixel_size_um=_pixel_size_um(header),
            metadata=metadata,
        )
        number = _whole(header, "n", frame.index) if ours and "n" in header else None
        return StreamFrame(_series(header) if ours else "", frame, number)
    except BadFrameError as exc:
        raise BadFrameError(exc.reason, index=index) from exc


def _decode_start(header: Mapping[str, Any]) -> StreamStart:
    live = header.get("live")
    if not isinstance(live, bool):
        raise BadFrameError(f"expected live as true or false, got {_shown(live)}")
    n_frames = None if header.get("n_frames") is None else _whole(header, "n_frames", _MAX_INDEX)
    port = None if header.get("latest_port") is None else _whole(header, "latest_port", 65_535, minimum=1)
    info = SourceInfo(_text(header, "url"), live, n_frames=n_frames, pixel_size_um=_pixel_size_um(header))
    return StreamStart(_series(header), info, port)


def _decode_end(header: Mapping[str, Any]) -> StreamEnd:
    total = _whole(header, "total", _MAX_INDEX)
    sent = None if header.get("sent") is None else _whole(header, "sent", total)
    return StreamEnd(_series(header), total, _text(header, "reason"), sent)


def _read_header(part: Part) -> dict[str, Any]:
    n_bytes = memoryview(part).nbytes
    if n_bytes > MAX_HEADER_BYTES:
        raise BadFrameError(f"expected a header of at most {MAX_HEADER_BYTES} bytes, got {n_bytes}")
    text = bytes(part)
    sealed = _intact(text)
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise BadFrameError("expected a header in JSON, got something else") from exc
    if not isinstance(header, dict):
        raise BadFrameError(f"expected a JSON object as header, got {_shown(header)}")
    _check_value(header, MAX_DEPTH)
    version = header.get("v", VERSION)
    if isinstance(version, bool) or version != VERSION:
        raise BadFrameError(
            f"the message has version {_shown(version)}, this oneframe reads {VERSION}; update oneframe"
        )
    if not sealed and ("v" in header or header.get("htype") != _FRAME):
        raise BadFrameError("expected a checksum (crc) at the end of the header, got none; update the publisher")
    return header


def _intact(text: bytes) -> bool:
    """Whether a header has a checksum at all; raises if it is wrong."""
    seal = _SEAL.search(text)
    if seal is None:
        return False
    if int(seal[1], 16) != zlib.crc32(text[:-_SEAL_BYTES]):
        raise BadFrameError("the header was damaged on its way: its checksum is wrong")
    return True


def _check_value(value: object, depth: int) -> None:
    """Refuse what JSON can hold but no reader after us expects."""
    if isinstance(value, dict | list | tuple):
        if depth == 0:
            raise BadFrameError(f"expected a header nested {MAX_DEPTH} deep at most, got a deeper one")
        for item in value:
            _check_value(item, depth - 1)
        if isinstance(value, dict):
            for item in value.values():
                _check_value(item, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadFrameError(f"expected finite numbers in the header, got {value}")
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise BadFrameError("expected text in the header, got half a character") from exc


def _pixels(header: Mapping[str, Any], body: memoryview, ours: bool) -> np.ndarray[Any, Any]:
    name, shape = header.get("type"), header.get("shape")
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise BadFrameError(f"expected type {', '.join(_NAMES)}, got {_shown(name)}")
    if (
        not isinstance(shape, list)
        or len(shape) not in (2, 3)
        or not all(type(n) is int and 0 < n <= MAX_AXIS for n in shape)
    ):
        raise BadFrameError(
            f"expected shape [rows, columns] or [channels, rows, columns], each 1 to {MAX_AXIS}, got {_shown(shape)}"
        )
    if not ours and len(shape) == 3 and shape[-1] in (3, 4):
        raise BadFrameError(f"expected a grey image, got shape {shape}, a colour one; let the camera send mono pixels")
    n_bytes = math.prod(shape) * dtype.itemsize
    if body.nbytes != n_bytes:
        raise BadFrameError(f"shape {shape} of {name} needs {n_bytes} bytes of pixels, got {body.nbytes}")
    pixels = np.frombuffer(body, dtype).reshape(shape)
    if not dtype.isnative:
        pixels = pixels.astype(dtype.newbyteorder("="))
    pixels.flags.writeable = False
    return pixels


def _readable_index(header: Mapping[str, Any]) -> int | None:
    try:
        return _whole(header, "frame", _MAX_INDEX)
    except BadFrameError:
        return None


def _whole(header: Mapping[str, Any], key: str, maximum: int, *, minimum: int = 0) -> int:
    value = header.get(key)
    if type(value) is not int or not minimum <= value <= maximum:
        raise BadFrameError(f"expected {key} as a whole number from {minimum} to {maximum}, got {_shown(value)}")
    return value


def _text(header: Mapping[str, Any], key: str) -> str:
    """Text for people: nothing in it moves a terminal's cursor."""
    value = header.get(key)
    if not isinstance(value, str):
        raise BadFrameError(f"expected {key} as text, got {_shown(value)}")
    return value if value.isprintable() else "".join(c if c.isprintable() else " " for c in value)


def _series(header: Mapping[str, Any]) -> str:
    value = header.get("series")
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_SERIES:
        raise BadFrameError(f"expected series as text of 1 to {_MAX_SERIES} characters, got {_shown(value)}")
    return value


def _pixel_size_um(header: Mapping[str, Any]) -> float | None:
    value = header.get("pixel_um")
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value < 1e6:
        raise BadFrameError(f"expected pixel_um above 0 micrometres, got {_shown(value)}")
    return float(value)


def _shown(value: object) -> str:
    """Text of a value that somebody else sent, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _with_metadata(header: dict[str, Any], metadata: Mapping[str, Any]) -> bytes:
    if not metadata:
        return _to_json(header)
    try:
        _check_value(dict(metadata), MAX_DEPTH - 1)
        whole = _to_json({**header, "md": dict(metadata)})
    except (TypeError, ValueError, BadFrameError):
        return _to_json({**header, "md": {"omitted": "the metadata were no JSON"}})
    if len(whole) <= MAX_HEADER_BYTES:
        return whole
    return _to_json({**header, "md": {"omitted": f"the metadata were longer than {MAX_HEADER_BYTES} bytes"}})


def _to_json(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()[:-1]
    return b'%s,"crc":"%08x"}' % (text, zlib.crc32(text))
