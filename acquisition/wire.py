"""The message of the frame stream: a JSON header and the raw pixels, never a pickle.

A message has two parts: the header (UTF-8 JSON) and the pixels in C order, little-endian. The base keys are those of
areaDetector's ADZMQ from 1.4 on: `htype` "array-1.0", `type` (numpy name), `shape` (rows, columns), `frame`. Ours:

=========== ==========================================================================
`v`         version of our keys, 1
`series`    random name of one run of the publisher; a new one after each start
`t_ns`      when the frame was taken, nanoseconds since the Unix epoch
`pixel_um`  edge of one pixel in the sample, micrometres (left out if unknown)
`md`        what else the camera told (left out if nothing)
=========== ==========================================================================

A series begins with `htype` "oneframe-start-1.0" and ends with "oneframe-end-1.0"; their second part is empty.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oneframe.acquisition.frame import Frame
from oneframe.acquisition.source import BadFrameError, SourceInfo

VERSION = 1
MAX_HEADER_BYTES = 16 * 1024
MAX_AXIS = 65_536
"""Longest side of an image, pixels."""

_FRAME, _START, _END = "array-1.0", "oneframe-start-1.0", "oneframe-end-1.0"
_MAX_INDEX = 2**63 - 1
_YEAR_2100_NS = 4_102_444_800 * 10**9

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


@dataclass(frozen=True, slots=True)
class StreamStart:
    """A series begins, or is announced again to late subscribers."""

    series: str
    info: SourceInfo
    """What the publisher's own source says of itself."""


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """A series is over."""

    series: str
    total: int
    """Frames that the publisher's source made in all, delivered or not."""
    reason: str


def encode_start(series: str, info: SourceInfo) -> list[Part]:
    """Return the message that begins a series."""
    header = {
        "htype": _START,
        "v": VERSION,
        "series": series,
        "live": info.live,
        "n_frames": info.n_frames,
        "pixel_um": info.pixel_size_um,
        "url": info.url[:2000],
    }
    return [_to_json(header), b""]


def encode_end(series: str, total: int, reason: str) -> list[Part]:
    """Return the message that ends a series of `total` frames."""
    header = {"htype": _END, "v": VERSION, "series": series, "total": total, "reason": reason[:2000]}
    return [_to_json(header), b""]


def encode_frame(frame: Frame, series: str) -> list[Part]:
    """Return the message of one frame; its second part is a view of the pixels where they are contiguous.

    Metadata that are no JSON, or too long for the header, are left out and the message says so.

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
    if frame.pixel_size_um is not None:
        header["pixel_um"] = frame.pixel_size_um
    pixels = np.ascontiguousarray(frame.pixels, dtype=dtype)
    return [_with_metadata(header, frame.metadata), pixels.reshape(-1).view(np.uint8).data]


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
        return StreamFrame(_text(header, "series") if ours else "", frame)
    except BadFrameError as exc:
        raise BadFrameError(exc.reason, index=index) from exc


def _decode_start(header: Mapping[str, Any]) -> StreamStart:
    live = header.get("live")
    if not isinstance(live, bool):
        raise BadFrameError(f"expected live as true or false, got {_shown(live)}")
    n_frames = None if header.get("n_frames") is None else _whole(header, "n_frames", _MAX_INDEX)
    info = SourceInfo(_text(header, "url"), live, n_frames=n_frames, pixel_size_um=_pixel_size_um(header))
    return StreamStart(_text(header, "series"), info)


def _decode_end(header: Mapping[str, Any]) -> StreamEnd:
    return StreamEnd(_text(header, "series"), _whole(header, "total", _MAX_INDEX), _text(header, "reason"))


def _read_header(part: Part) -> dict[str, Any]:
    n_bytes = memoryview(part).nbytes
    if n_bytes > MAX_HEADER_BYTES:
        raise BadFrameError(f"expected a header of at most {MAX_HEADER_BYTES} bytes, got {n_bytes}")
    try:
        header = json.loads(bytes(part).decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise BadFrameError("expected a header in JSON, got something else") from exc
    if not isinstance(header, dict):
        raise BadFrameError(f"expected a JSON object as header, got {_shown(header)}")
    version = header.get("v", VERSION)
    if isinstance(version, bool) or version != VERSION:
        raise BadFrameError(
            f"the message has version {_shown(version)}, this oneframe reads {VERSION}; update oneframe"
        )
    return header


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
    value = header.get(key)
    if not isinstance(value, str):
        raise BadFrameError(f"expected {key} as text, got {_shown(value)}")
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
        whole = _to_json({**header, "md": dict(metadata)})
    except (TypeError, ValueError):
        return _to_json({**header, "md": {"omitted": "the metadata were no JSON"}})
    if len(whole) <= MAX_HEADER_BYTES:
        return whole
    return _to_json({**header, "md": {"omitted": f"the metadata were longer than {MAX_HEADER_BYTES} bytes"}})


def _to_json(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
