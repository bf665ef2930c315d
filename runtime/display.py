"""What the live view shows, and its way there: `DisplaySink` publishes the newest picture, `PictureStream` takes it.

The view runs in a process of its own, so that a crash of the window never costs a frame of the run. One message is

    4 bytes, little endian   length of the header
    header                   JSON, padded with spaces to a multiple of 8 bytes
    field                    complex64 of `field_shape`; nothing where there is none
    pixels                   as the header's `dtype` and `shape` say
    y_px, x_px, score        float32, `n` values each
    track_id                 int64, `n` values
    z_um and others          as `columns` names them, `n` values each
    labels                   runs along the rows: uint32 lengths, then int32 labels; nothing where there are none
    super-resolution image   uint16 of the `shape` in `grown`, then uint8 of its z; nothing where there is none

and always a single part: only then may the reader let a newer picture replace the one it has not shown yet.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zmq
from numpy.typing import NDArray
from zmq.utils.monitor import recv_monitor_message

from oneframe.acquisition import Frame
from oneframe.runtime.account import Status
from oneframe.runtime.density import Emitters, RecentEmitters
from oneframe.runtime.optics import Optics
from oneframe.runtime.seams import Analysed, Missed, Noted
from oneframe.runtime.super_resolution import SuperResolution, white_level

WIRE_VERSION = 5

_WIRE_DTYPES = ("|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<f4")
_COLUMNS = (("y_px", "<f4"), ("x_px", "<f4"), ("score", "<f4"), ("track_id", "<i8"))
_OPTIONAL = (
    ("z_um", "<f4"),
    ("polarizability_um3", "<f4"),
    ("flags", "<f4"),
    ("area_px", "<f4"),
    ("mean_intensity", "<f4"),
    ("parent_id", "<i8"),
)
_MAX_HEADER_BYTES = 1 << 16
_MAX_MESSAGE_BYTES = 1 << 27
_MAX_SIDE_PX = 1 << 16
_MAX_FIELD_BYTES = 1 << 25  # 2048 x 2048
_FIELD_BYTES_PER_S = 1 << 26  # 512 x 512 at 32 pictures a second
_MAX_SENTENCE = 1000
_LINGER_MS = 500
_VIEW_NICENESS = 10
"""Of the window's process: beside two busy processors it gets a tenth of one, on idle ones all that it wants."""
_CLEAR = b"\xff\xff\xff\xffclear"
"""A view that subscribes to this asks for a new super-resolution image: the one way back that a subscriber has."""
_GROWN_SIDE_PX = 2048
_GROWN_PERIOD_S = 0.25
_GROWN_SHARE = 0.1
"""Of the sink's time that the super-resolution image may take; large ones are sent less often."""
_Z_STEPS = 254
_NO_Z = 255


@dataclass(frozen=True, slots=True, eq=False)
class GrownImage:
    """The super-resolution image so far.

    Raises
    ------
    ValueError
        If shapes or dtypes contradict one another.
    """

    pixels: NDArray[np.uint16]
    """(h, w), square root of the localisations per pixel; 65535 is the brightest."""
    camera_px: float
    """Edge of one of these pixels in camera pixels; the corner of the image is the camera's corner, (-0.5, -0.5)."""
    white: int
    """Value to show as white."""
    n_localisations: int
    z_step: NDArray[np.uint8] | None = None
    """(h, w), mean z from 0, the lowest of `Picture.z_range_um`, to 254, the highest; 255 where nothing is."""
    note: str = ""
    """What is not as asked for."""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 2 or self.pixels.dtype.str != "<u2" or 0 in self.pixels.shape:
            raise ValueError(f"expected (h, w) <u2 pixels, got {self.pixels.dtype.str} of {self.pixels.shape}")
        if self.z_step is not None and (self.z_step.shape != self.pixels.shape or self.z_step.dtype != np.uint8):
            raise ValueError(
                f"expected z_step |u1 of {self.pixels.shape}, got {self.z_step.dtype.str} of {self.z_step.shape}"
            )
        if not (math.isfinite(self.camera_px) and self.camera_px > 0 and 1 <= self.white <= 65535):
            raise ValueError(f"expected camera_px above 0 and white from 1, got {self.camera_px} and {self.white}")

    @classmethod
    def of(cls, grown: SuperResolution, z_range_um: tuple[float, float] | None) -> GrownImage:
        """Return what is shown of a super-resolution image, 2048 pixels a side at most."""
        light, mean_z_um, n = grown.thinned(_GROWN_SIDE_PX)
        brightest = max(float(light.max()), 1e-30)
        z_step = None
        if mean_z_um is not None and z_range_um is not None:
            low, high = z_range_um
            steps = np.rint((mean_z_um - low) * (_Z_STEPS / (high - low))).clip(0, _Z_STEPS)
            z_step = np.where(light > 0, np.nan_to_num(steps, nan=_NO_Z), _NO_Z).astype(np.uint8)
        white = math.sqrt(white_level(light) / brightest)
        return cls(
            pixels=np.rint(np.sqrt(light * np.float32(1 / brightest)) * 65535).astype("<u2"),
            camera_px=n / grown.per_camera_px,
            white=min(65535, max(1, round(65535 * white))),
            n_localisations=grown.n_localisations,
            z_step=z_step,
            note=grown.note,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One frame as the live view shows it: thinned pixels, and positions in pixels of the camera.

    Raises
    ------
    ValueError
        If shapes or dtypes contradict one another.
    """

    pixels: NDArray[Any]
    """(H, W), every `stride`-th row and column of the frame; 8 to 32 bit integers or float32."""
    stride: int
    """Pixel [j, i] of `pixels` is pixel [stride * j, stride * i] of the camera."""
    frame_shape: tuple[int, int]
    """Height and width of the frame in the camera's pixels."""
    index: int
    time_s: float
    y_px: NDArray[np.float32]
    """(N,), centre of the camera's pixel [0, 0] at 0."""
    x_px: NDArray[np.float32]
    score: NDArray[np.float32]
    track_id: NDArray[np.int64]
    levels: tuple[float, float]
    """Pixel values to show as black and white."""
    status: Status
    pixel_size_um: float | None = None
    z_um: NDArray[np.float32] | None = None
    """(N,), as in `Detections`, and so are the next four."""
    polarizability_um3: NDArray[np.float32] | None = None
    flags: NDArray[np.float32] | None = None
    area_px: NDArray[np.float32] | None = None
    mean_intensity: NDArray[np.float32] | None = None
    parent_id: NDArray[np.int64] | None = None
    """(N,), track of the cell that divided into this one; 0: none."""
    labels: NDArray[np.int32] | None = None
    """(H, W), of the thinned pixels: 0 is background, row i - 1 is label i; only of models that segment cells."""
    field: NDArray[np.complex64] | None = None
    """(h, w), background 1 + 0i; only of holograms."""
    field_optics: Optics | None = None
    """Of the field; None: it cannot be refocused."""
    pixels_per_cell: int = 1
    """Pixel [j, i] of `field` is pixel [pixels_per_cell * j, pixels_per_cell * i] of the camera."""
    z_range_um: tuple[float, float] | None = None
    """Lowest and highest z that the model was trained for."""
    emitters: Emitters | None = None
    """How many, how dense, how precise, over the last frames; only of models that localise emitters."""
    grown: GrownImage | None = None
    """Comes with some of the pictures."""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 2 or self.pixels.dtype.str not in _WIRE_DTYPES:
            raise ValueError(
                f"a picture has (H, W) pixels of {', '.join(_WIRE_DTYPES)}, "
                f"got {self.pixels.dtype.str} of shape {self.pixels.shape}; make it with `picture_of`"
            )
        if self.stride < 1 or self.pixels.shape != tuple(-(-side // self.stride) for side in self.frame_shape):
            raise ValueError(
                f"a frame of {self.frame_shape} with stride {self.stride} does not give {self.pixels.shape} pixels"
            )
        n_rows = self.y_px.shape
        for name, dtype in self.columns():
            column = getattr(self, name)
            if column.ndim != 1 or column.shape != n_rows or column.dtype.str != dtype:
                raise ValueError(
                    f"column {name} must be {dtype} of shape {n_rows}, got {column.dtype.str} of shape {column.shape}"
                )
        if self.labels is not None:
            self._check_labels(self.labels)
        if not (all(map(math.isfinite, self.levels)) and self.levels[0] < self.levels[1]):
            raise ValueError(f"levels must be two finite values, the lower one first, got {self.levels}")
        if self.field is not None:
            fits = tuple(side // self.pixels_per_cell for side in self.frame_shape)
            if self.field.dtype.str != "<c8" or self.field.shape != fits or 0 in fits:
                raise ValueError(
                    f"the field of a frame of {self.frame_shape} with {self.pixels_per_cell} pixels per cell must be "
                    f"<c8 of shape {fits}, got {self.field.dtype.str} of shape {self.field.shape}; give `DisplaySink` "
                    "the pixels_per_cell of the hologram's settings"
                )
        z_range_um = self.z_range_um
        if z_range_um is not None and not (all(map(math.isfinite, z_range_um)) and z_range_um[0] < z_range_um[1]):
            raise ValueError(f"z_range_um must be two finite values, the lower one first, got {z_range_um}")

    def _check_labels(self, labels: NDArray[np.int32]) -> None:
        if labels.dtype.str != "<i4" or labels.shape != self.pixels.shape:
            raise ValueError(
                f"labels must be <i4 of shape {self.pixels.shape} like the pixels, got {labels.dtype.str} of shape "
                f"{labels.shape}; give those of the frame that was analysed"
            )
        if int(labels.view("<u4").max()) > len(self):  # below 0 is far above, too
            raise ValueError(
                f"labels must be from 0 to {len(self)}, one for each row, got {labels.min()} to {labels.max()}"
            )

    def columns(self) -> list[tuple[str, str]]:
        """Return name and dtype of the columns that are present."""
        return [*_COLUMNS, *(column for column in _OPTIONAL if getattr(self, column[0]) is not None)]

    def __len__(self) -> int:
        return int(self.y_px.shape[0])


@dataclass(frozen=True, slots=True)
class Notice:
    """What is told without a picture: how the pipeline is doing, or that it ended."""

    kind: Literal["status", "end"]
    status: Status
    emitters: Emitters | None = None
    grown: GrownImage | None = None


def contrast_levels(pixels: NDArray[Any]) -> tuple[float, float]:
    """Return the values to show as black and white: percentiles 0.1 and 99.9.

    Parameters
    ----------
    pixels : (H, W) array
        Values that are not finite do not count. From 256 x 256 pixels on, one in 16 is looked at.

    Returns
    -------
    (float, float)
        Finite, the first below the second; an even image gives its value and that value + 1.
    """
    if pixels.size >= 256 * 256:
        pixels = pixels[::4, ::4]
    finite = pixels[np.isfinite(pixels)] if pixels.dtype.kind == "f" else pixels
    if finite.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(finite, (0.1, 99.9)))
    return (low, high) if high > low else (low, max(low + 1.0, math.nextafter(low, math.inf)))


def picture_of(
    analysed: Analysed,
    *,
    status: Status,
    max_side_px: int = 1024,
    levels: tuple[float, float] | None = None,
    field_optics: Optics | None = None,
    pixels_per_cell: int = 1,
    z_range_um: tuple[float, float] | None = None,
    emitters: Emitters | None = None,
    grown: GrownImage | None = None,
    cells: bool = False,
) -> Picture:
    """Make the picture of an analysed frame.

    Parameters
    ----------
    analysed : Analysed
        Of a (C, H, W) frame, channel 0 is shown.
    status : Status
        How the pipeline is doing.
    max_side_px : int
        The frame is thinned by a whole stride until no side is longer.
    levels : (float, float) or None
        Values to show as black and white; None measures them.
    field_optics, pixels_per_cell, z_range_um, emitters, grown
        See `Picture`. Fields above 2048 x 2048 are left out.
    cells : bool
        A frame in which nothing was found has labels too: background only.

    Raises
    ------
    ValueError
        If the labels are of another shape than the frame.
    """
    frame, detections = analysed.frame, analysed.tracks.detections
    pixels, stride = _thinned(frame, max_side_px)
    field, labels = detections.field, detections.labels
    if labels is None and cells and not len(detections):
        labels = np.zeros((frame.height, frame.width), np.int32)
    if labels is not None and labels.shape != (frame.height, frame.width):
        raise ValueError(
            f"expected labels of {frame.height} x {frame.width} pixels like frame {frame.index}, got {labels.shape}; "
            "give those that were found in it"
        )
    return Picture(
        pixels=pixels,
        stride=stride,
        frame_shape=(frame.height, frame.width),
        index=frame.index,
        time_s=frame.time_s,
        y_px=detections.y_px,
        x_px=detections.x_px,
        score=detections.score,
        track_id=analysed.tracks.track_id,
        levels=contrast_levels(pixels) if levels is None else levels,
        status=status,
        pixel_size_um=frame.pixel_size_um,
        z_um=detections.z_um,
        polarizability_um3=detections.polarizability_um3,
        flags=detections.flags,
        area_px=detections.area_px,
        mean_intensity=detections.mean_intensity,
        parent_id=getattr(analysed.tracks, "parent_id", None),
        labels=None if labels is None else np.ascontiguousarray(labels[::stride, ::stride], "<i4"),
        field=None if field is None or field.nbytes > _MAX_FIELD_BYTES else field,
        field_optics=field_optics,
        pixels_per_cell=pixels_per_cell,
        z_range_um=z_range_um,
        emitters=emitters,
        grown=grown,
    )


def _thinned(frame: Frame, max_side_px: int) -> tuple[NDArray[Any], int]:
    """Return (H, W) pixels that can be sent, no side above `max_side_px`, and their stride."""
    plane = frame.pixels if frame.pixels.ndim == 2 else frame.pixels[0]
    stride = -(-max(plane.shape) // max_side_px)
    little_endian = plane.dtype.newbyteorder("<")
    dtype = little_endian if little_endian.str in _WIRE_DTYPES else np.dtype("<f4")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(plane[::stride, ::stride], dtype=dtype), stride


def encode_picture(picture: Picture) -> bytes:
    """Return the message that carries a picture."""
    columns, field = picture.columns(), picture.field
    runs = [] if picture.labels is None else _runs(picture.labels)
    header = {
        "kind": "picture",
        "version": WIRE_VERSION,
        "shape": picture.pixels.shape,
        "dtype": picture.pixels.dtype.str,
        "stride": picture.stride,
        "frame_shape": picture.frame_shape,
        "index": picture.index,
        "time_s": picture.time_s,
        "pixel_size_um": picture.pixel_size_um,
        "levels": picture.levels,
        "status": _status_values(picture.status),
        "n": len(picture),
        "columns": columns,
        "n_runs": len(runs[0]) if runs else None,
        "field_shape": None if field is None else field.shape,
        "field_optics": None if picture.field_optics is None else asdict(picture.field_optics),
        "pixels_per_cell": picture.pixels_per_cell,
        "z_range_um": picture.z_range_um,
        **_growth_values(picture),
    }
    arrays = [*([] if field is None else [field]), picture.pixels, *(getattr(picture, name) for name, _ in columns)]
    arrays += [*runs, *_grown_arrays(picture)]
    return b"".join([_header_bytes(header), *(np.ascontiguousarray(array).data for array in arrays)])


def _runs(labels: NDArray[np.int32]) -> list[NDArray[Any]]:
    """Return lengths and labels of the runs of equal pixels, row after row: a tenth of the bytes, and soon done."""
    flat = labels.ravel()
    start = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    return [np.diff(start, append=flat.size).astype("<u4"), flat[start]]


def _read_runs(lengths: NDArray[np.uint32], labels: NDArray[np.int32], shape: tuple[int, int]) -> NDArray[np.int32]:
    n_pixels = int(lengths.sum(dtype=np.uint64))
    if n_pixels != shape[0] * shape[1]:
        raise ValueError(f"runs of {n_pixels} labels for {shape[0]} x {shape[1]} pixels")
    return np.repeat(labels, lengths.astype(np.int64)).reshape(shape)


def encode_notice(notice: Notice) -> bytes:
    """Return the message that carries a notice."""
    status = _status_values(notice.status)
    header = {"kind": notice.kind, "version": WIRE_VERSION, "status": status, **_growth_values(notice)}
    return b"".join([_header_bytes(header), *(np.ascontiguousarray(array).data for array in _grown_arrays(notice))])


def _growth_values(message: Picture | Notice) -> dict[str, Any]:
    """Return what the header tells of emitters; what is not finite becomes None."""
    emitters, grown = message.emitters, message.grown
    told: dict[str, Any] = {"emitters": None, "grown": None}
    if emitters is not None:
        values = asdict(emitters)
        told["emitters"] = {name: v if v is None or math.isfinite(v) else None for name, v in values.items()}
    if grown is not None:
        told["grown"] = {
            "shape": grown.pixels.shape,
            "camera_px": grown.camera_px,
            "white": grown.white,
            "n_localisations": grown.n_localisations,
            "with_z": grown.z_step is not None,
            "note": grown.note,
        }
    return told


def _grown_arrays(message: Picture | Notice) -> list[NDArray[Any]]:
    if message.grown is None:
        return []
    z_step = message.grown.z_step
    return [message.grown.pixels, *([] if z_step is None else [z_step])]


def _header_bytes(header: dict[str, Any]) -> bytes:
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode("ascii")
    text += b" " * (-(len(text) + 4) % 8)
    return struct.pack("<I", len(text)) + text


def _status_values(status: Status) -> dict[str, float | str | None]:
    """Return the status as JSON values; what is not finite becomes None."""
    values = asdict(status)
    return {name: value if isinstance(value, str) or math.isfinite(value) else None for name, value in values.items()}


def decode_picture(message: bytes) -> Picture:
    """Read the message of a picture.

    Raises
    ------
    ValueError
        If the message is anything else, or contradicts itself.
    """
    decoded = decode_message(message)
    if not isinstance(decoded, Picture):
        raise ValueError(f"expected a picture, got the notice {decoded.kind!r}; read it with `decode_message`")
    return decoded


def decode_message(message: bytes) -> Picture | Notice:
    """Read a message of `DisplaySink`; nothing in it is trusted.

    Raises
    ------
    ValueError
        If the message is none, or contradicts itself.
    """
    header, offset = _read_header(message)
    try:
        if header["version"] != WIRE_VERSION:
            raise ValueError(f"wire version {header['version']!r}, this oneframe reads {WIRE_VERSION}")
        kind, status = header["kind"], _read_status(header["status"])
        if kind == "picture":
            return _read_picture(header, status, message, offset)
        if kind not in ("status", "end"):
            raise ValueError(f"unknown kind {kind!r}")
        n_grown = _grown_bytes(header["grown"])
        if len(message) != offset + n_grown:
            raise ValueError(f"{len(message)} bytes, the header tells of {offset + n_grown}")
        return Notice(kind, status, _read_emitters(header["emitters"]), _read_grown(header["grown"], message, offset))
    except (ValueError, KeyError, TypeError, OverflowError) as exc:
        raise ValueError(
            f"expected a message of a oneframe live view, got a damaged one ({exc}); check the address and that both "
            "ends run the same oneframe"
        ) from exc


def _read_header(message: bytes) -> tuple[dict[str, Any], int]:
    """Return the header and where the pixels begin."""
    length = struct.unpack_from("<I", message)[0] if len(message) >= 4 else 0
    try:
        if not 2 <= length <= min(_MAX_HEADER_BYTES, len(message) - 4):
            raise ValueError(f"header of {length} bytes in a message of {len(message)}")
        header = json.loads(message[4 : 4 + length].decode("ascii"), parse_constant=_refuse_constant)
        if not isinstance(header, dict):
            raise ValueError("the header is no JSON object")
    except (ValueError, RecursionError) as exc:
        raise ValueError(
            f"expected a message of a oneframe live view, got something else ({exc}); check the address"
        ) from exc
    return header, 4 + length


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _read_status(values: Any) -> Status:
    readers = {"float": _number_or_nan, "int": _count, "str": _sentence}
    known = {field.name: readers[str(field.type)] for field in fields(Status)}
    if not isinstance(values, dict) or values.keys() != known.keys():
        raise ValueError(f"status {values!r}")
    read_values: dict[str, Any] = {name: read(values[name], name) for name, read in known.items()}
    return Status(**read_values)


def _number_or_nan(value: Any, name: str) -> float:
    return math.nan if value is None else _number(value, name)


def _sentence(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > _MAX_SENTENCE:
        raise ValueError(f"{name} must be a text of up to {_MAX_SENTENCE} characters, got {value!r:.100}")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _count(value: Any, name: str, lowest: int = 0, highest: int = 1 << 62) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise ValueError(f"{name} must be a whole number from {lowest} to {highest}, got {value!r}")
    return value


def _read_picture(header: dict[str, Any], status: Status, message: bytes, offset: int) -> Picture:
    height, width = (_count(side, "shape", 1, _MAX_SIDE_PX) for side in header["shape"])
    frame_height, frame_width = (_count(side, "frame_shape", 1, _MAX_SIDE_PX) for side in header["frame_shape"])
    if header["dtype"] not in _WIRE_DTYPES:
        raise ValueError(f"dtype {header['dtype']!r}")
    told = [tuple(column) for column in header["columns"]]
    columns = [column for column in (*_COLUMNS, *_OPTIONAL) if column in _COLUMNS or column in told]
    if told != columns:
        raise ValueError(f"columns {header['columns']!r}")
    n_rows = _count(header["n"], "n", 0, _MAX_MESSAGE_BYTES)
    n_runs = 0 if header["n_runs"] is None else _count(header["n_runs"], "n_runs", 1, height * width)
    field_shape = (0, 0) if header["field_shape"] is None else _read_field_shape(header["field_shape"])
    sizes: list[tuple[str, str, int]] = [  # in the order of the message
        ("field", "<c8", field_shape[0] * field_shape[1]),
        ("pixels", header["dtype"], height * width),
        *((name, dtype, n_rows) for name, dtype in columns),
        ("run_lengths", "<u4", n_runs),
        ("run_labels", "<i4", n_runs),
    ]
    expected = offset + sum(n_values * np.dtype(dtype).itemsize for _, dtype, n_values in sizes)
    expected += _grown_bytes(header["grown"])
    if len(message) != expected:
        raise ValueError(f"{len(message)} bytes, the header tells of {expected}")

    arrays: dict[str, Any] = {}
    for name, dtype, n_values in sizes:
        values = np.frombuffer(message, dtype, n_values, offset)
        offset += values.nbytes
        arrays[name] = values if name in ("field", "pixels") else values.copy()  # copied: it may not be aligned
    arrays["field"] = arrays["field"].reshape(field_shape) if header["field_shape"] is not None else None
    arrays["pixels"] = arrays["pixels"].reshape(height, width)
    runs = arrays.pop("run_lengths"), arrays.pop("run_labels")
    arrays["labels"] = _read_runs(*runs, (height, width)) if n_runs else None
    low, high = (_number(level, "levels") for level in header["levels"])
    pixel_size_um = None if header["pixel_size_um"] is None else _number(header["pixel_size_um"], "pixel_size_um")
    if pixel_size_um is not None and pixel_size_um <= 0:
        raise ValueError(f"pixel_size_um must be above 0, got {pixel_size_um}")
    z_range_um = header["z_range_um"]
    if z_range_um is not None:
        lowest_um, highest_um = (_number(z_um, "z_range_um") for z_um in z_range_um)
        z_range_um = (lowest_um, highest_um)
    return Picture(
        stride=_count(header["stride"], "stride", 1, _MAX_SIDE_PX),
        frame_shape=(frame_height, frame_width),
        index=_count(header["index"], "index"),
        time_s=_number(header["time_s"], "time_s"),
        levels=(low, high),
        status=status,
        pixel_size_um=pixel_size_um,
        field_optics=None if header["field_optics"] is None else _read_optics(header["field_optics"]),
        pixels_per_cell=_count(header["pixels_per_cell"], "pixels_per_cell", 1, _MAX_SIDE_PX),
        z_range_um=z_range_um,
        emitters=_read_emitters(header["emitters"]),
        grown=_read_grown(header["grown"], message, offset),
        **arrays,
    )


def _read_emitters(values: Any) -> Emitters | None:
    if values is None:
        return None
    names = {field.name for field in fields(Emitters)}
    if not isinstance(values, dict) or values.keys() != names:
        raise ValueError(f"emitters {values!r}")
    read = {name: _number_or_nan(value, name) for name, value in values.items()}
    read["pixel_size_um"] = None if values["pixel_size_um"] is None else read["pixel_size_um"]  # type: ignore[assignment]
    return Emitters(**read)


def _grown_bytes(values: Any) -> int:
    """Return how many bytes the super-resolution image takes in the message."""
    if values is None:
        return 0
    height, width = (_count(side, "grown", 1, _GROWN_SIDE_PX) for side in values["shape"])
    return height * width * (3 if values["with_z"] else 2)


def _read_grown(values: Any, message: bytes, offset: int) -> GrownImage | None:
    if values is None:
        return None
    height, width = values["shape"]  # checked by `_grown_bytes`
    pixels = np.frombuffer(message, "<u2", height * width, offset).copy()
    z_step = None
    if values["with_z"]:
        z_step = np.frombuffer(message, np.uint8, height * width, offset + pixels.nbytes).reshape(height, width)
    return GrownImage(
        pixels=pixels.reshape(height, width),
        camera_px=_number(values["camera_px"], "camera_px"),
        white=_count(values["white"], "white", 1, 65535),
        n_localisations=_count(values["n_localisations"], "n_localisations"),
        z_step=z_step,
        note=_sentence(values["note"], "note"),
    )


def _read_field_shape(sides: Any) -> tuple[int, int]:
    height, width = (_count(side, "field_shape", 1, _MAX_SIDE_PX) for side in sides)
    return height, width


def _read_optics(values: Any) -> Optics:
    names = [field.name for field in fields(Optics)]
    if not isinstance(values, dict) or sorted(values) != sorted(names):
        raise ValueError(f"field_optics {values!r}")
    return Optics(**{name: _number(values[name], name) for name in names})


class DisplaySink:
    """A `Sink` that publishes the newest picture for live views, and never waits for one.

    Frames that come faster than `max_fps`, or while no view is connected, are not shown; that is no loss and is not
    counted as one.

    Parameters
    ----------
    bind : str
        ZeroMQ address to publish at; `*` as the port takes a free one, see `address`.
    status : () -> Status
        How the pipeline is doing; called once per published message.
    max_fps : float
        Most pictures per second.
    max_side_px : int
        Longest side of a published picture; larger frames are thinned.
    field_optics : Optics or None
        Of the fields of a model for holograms, so that the view can refocus them.
    pixels_per_cell : int
        Camera pixels per pixel of the field, along each axis. Fields above 512 x 512 slow the pictures down.
    z_range_um : (float, float) or None
        Lowest and highest z that the model was trained for.
    emitters : bool
        The model localises emitters: every frame's are added to a super-resolution image here, shown or not, so that
        none is missing from it; it goes along with four pictures a second.
    pixel_size_um : float or None
        For sources that do not know it.
    cells : bool
        The model segments cells: a frame without one is shown as such. Their labels go along in any case.

    Raises
    ------
    OSError
        If the address cannot be bound.
    """

    def __init__(
        self,
        bind: str = "tcp://127.0.0.1:*",
        *,
        status: Callable[[], Status],
        max_fps: float = 30.0,
        max_side_px: int = 1024,
        field_optics: Optics | None = None,
        pixels_per_cell: int = 1,
        z_range_um: tuple[float, float] | None = None,
        emitters: bool = False,
        pixel_size_um: float | None = None,
        cells: bool = False,
    ) -> None:
        if not (max_fps > 0 and 1 <= max_side_px <= 4096):
            raise ValueError(
                f"expected max_fps above 0 and max_side_px from 1 to 4096, got {max_fps} and {max_side_px}"
            )
        self._status = status
        self._period_s = 1.0 / max_fps
        self._max_side_px = max_side_px
        self._field_optics = field_optics
        self._pixels_per_cell = pixels_per_cell
        self._z_range_um = z_range_um
        self._pixel_size_um = pixel_size_um
        self._cells = cells
        self._recent = RecentEmitters(pixel_size_um=pixel_size_um) if emitters else None
        self._grown: SuperResolution | None = None
        self._grown_due_s = -math.inf
        self._due_s = -math.inf
        self._published_s = -math.inf
        self._levels = (0.0, 1.0)
        self._levels_s = -math.inf
        self._viewed = False
        self.n_published = 0
        """Pictures handed to the socket so far."""
        self._context = zmq.Context()
        # XPUB publishes like PUB and also hears of subscribers: without one, nothing is encoded.
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.SNDHWM, 2)
        try:
            self._socket.bind(bind)
        except zmq.ZMQError as exc:
            self._context.destroy(linger=0)
            raise OSError(
                f"cannot publish the live view at {bind}: {exc}; choose another port, or * for a free one"
            ) from exc
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        """Where a view connects to."""

    def wait_for_view(self, timeout_s: float) -> bool:
        """Return True as soon as a live view is connected, False if none is within `timeout_s` seconds."""
        deadline_s = time.monotonic() + timeout_s
        while not self._is_viewed():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not self._socket.poll(math.ceil(left_s * 1000)):
                return self._is_viewed()
        return True

    def write(self, analysed: Analysed) -> None:
        """Publish the frame, if one is due and somebody looks."""
        if self._recent is not None:
            self._add_emitters(analysed, self._recent)
        now_s = time.monotonic()
        if now_s < self._due_s:
            return
        self._due_s = max(self._due_s + self._period_s, now_s)
        if not self._is_viewed():
            return
        picture = picture_of(
            analysed,
            status=self._status(),
            max_side_px=self._max_side_px,
            levels=self._levels if now_s - self._levels_s < 1.0 else None,
            field_optics=self._field_optics,
            pixels_per_cell=self._pixels_per_cell,
            z_range_um=self._z_range_um,
            emitters=None if self._recent is None else self._recent.mean,
            grown=self._grown_image() if now_s >= self._grown_due_s else None,
            cells=self._cells,
        )
        if picture.field is not None:
            self._due_s = max(self._due_s, now_s + picture.field.nbytes / _FIELD_BYTES_PER_S)
        if picture.levels is not self._levels:
            self._levels, self._levels_s = picture.levels, now_s
        self._publish(encode_picture(picture))
        self._published_s = now_s
        self.n_published += 1

    def skip(self, missed: Missed) -> None:
        """Publish the counters once a second while there is no picture to carry them."""
        now_s = time.monotonic()
        if now_s - self._published_s >= 1.0 and self._is_viewed():
            self._published_s = now_s
            self._publish(encode_notice(Notice("status", self._status())))

    def note(self, noted: Noted) -> None:
        """Do nothing: the status tells."""

    def close(self) -> None:
        """Tell the views that the run ended; takes two seconds at most. A second call does nothing."""
        if self._socket.closed:
            return
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)  # wait for room rather than lose the last word
        self._socket.setsockopt(zmq.SNDTIMEO, _LINGER_MS)
        with contextlib.suppress(zmq.Again):
            emitters = None if self._recent is None else self._recent.mean
            self._socket.send(encode_notice(Notice("end", self._status(), emitters, self._grown_image())))
        self._socket.close(linger=_LINGER_MS)
        # libzmq can wait for ever for a view that left at this moment: then the thread stays, and does no harm.
        ending = threading.Thread(target=self._context.term, daemon=True, name="oneframe-display-end")
        ending.start()
        ending.join(2 * _LINGER_MS / 1000)

    def _add_emitters(self, analysed: Analysed, recent: RecentEmitters) -> None:
        """Add one frame's emitters to the super-resolution image; a frame of another size begins a new one."""
        frame, found = analysed.frame, analysed.tracks.detections
        recent.add(frame, found)
        if found.sigma_y_px is None or found.sigma_x_px is None:
            return
        with_z = found.z_um is not None and self._z_range_um is not None
        if self._grown is None or self._grown.frame_shape != (frame.height, frame.width):
            size_um = self._pixel_size_um if frame.pixel_size_um is None else frame.pixel_size_um
            self._grown = SuperResolution((frame.height, frame.width), pixel_size_um=size_um, with_z=with_z)
        self._grown.add(found.y_px, found.x_px, found.sigma_y_px, found.sigma_x_px, found.z_um)

    def _grown_image(self) -> GrownImage | None:
        """Return the super-resolution image, if there is one, and see to it that the next is not due too soon."""
        if self._grown is None:
            return None
        start_s = time.monotonic()
        image = GrownImage.of(self._grown, self._z_range_um)
        now_s = time.monotonic()
        self._grown_due_s = start_s + max(_GROWN_PERIOD_S, (now_s - start_s) / _GROWN_SHARE)
        return image

    def _is_viewed(self) -> bool:
        """Read who came and went since the last call, and whether somebody wants to see the emitters anew."""
        while self._socket.poll(0, zmq.POLLIN):
            told = self._socket.recv()
            if told[1:] != _CLEAR:
                self._viewed = told[:1] == b"\x01"
            elif told[:1] == b"\x01" and self._grown is not None:
                self._grown.clear()
                self._grown_due_s = -math.inf
        return self._viewed

    def _publish(self, message: bytes) -> None:
        # XPUB drops a message for a subscriber that is full, so this returns at once.
        self._socket.send(message, zmq.NOBLOCK, copy=False)


class PictureStream:
    """The newest message of a `DisplaySink`, read by one thread of another process.

    Parameters
    ----------
    address : str
        `DisplaySink.address`, such as `tcp://127.0.0.1:40123`; the sink may start later.

    Raises
    ------
    OSError
        If the address cannot be understood.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.CONFLATE, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._connected = False
        # A socket of its own: CONFLATE keeps the newest message of both directions, subscriptions too.
        self._wishes = self._context.socket(zmq.SUB)
        try:
            self._socket.connect(address)
            self._wishes.connect(address)
        except zmq.ZMQError as exc:
            self.close()
            raise OSError(f"expected an address like tcp://127.0.0.1:40123, got {address!r}: {exc}") from exc

    def read(self, timeout_s: float) -> Picture | Notice | None:
        """Return the newest message, or None if none came within `timeout_s` seconds; older ones are gone.

        Raises
        ------
        ValueError
            For one message that cannot be used; the next call goes on.
        """
        if not self._socket.poll(math.ceil(timeout_s * 1000)):
            return None
        return decode_message(self._socket.recv())

    @property
    def connected(self) -> bool:
        """Whether the sink's process is there."""
        while not self._socket.closed and self._monitor.poll(0):
            self._connected = recv_monitor_message(self._monitor)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
        return self._connected

    def clear_emitters(self) -> None:
        """Ask the sink to begin a new super-resolution image, for all views."""
        if not self._socket.closed:
            self._wishes.setsockopt(zmq.SUBSCRIBE, _CLEAR)
            self._wishes.setsockopt(zmq.UNSUBSCRIBE, _CLEAR)

    def close(self) -> None:
        """Release the sockets; a second call does nothing."""
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._context.destroy(linger=0)


def start_viewer(
    address: str,
    *,
    title: str,
    diameter_px: float,
    screenshot: Path | None = None,
    after_frames: int | None = None,
    close_at_end: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a live view in a process of its own.

    Parameters
    ----------
    address : str
        `DisplaySink.address`.
    title : str
        What is looked at: model and source.
    diameter_px : float
        Diameter of the rings in pixels of the camera.
    screenshot : Path or None
        Write a PNG there and close, after `after_frames` pictures or at the end of the run.
    after_frames : int or None
        Pictures to show before the screenshot; None takes the first.
    close_at_end : bool
        Close the window when the run ends.

    Raises
    ------
    ModuleNotFoundError
        If the packages of the live view are not installed.
    """
    for alternatives in (("pyqtgraph",), ("PySide6", "PyQt6")):
        if not any(importlib.util.find_spec(name) for name in alternatives):
            raise ModuleNotFoundError(
                f"the live view needs the package {alternatives[0]}, which is not installed; "
                "run: pip install 'oneframe[view]'",
                name=alternatives[0],
            )
    command = [sys.executable, "-m", "oneframe.runtime.view", "--connect", address]
    command += ["--title", title, "--diameter-px", str(diameter_px)]
    if screenshot is not None:
        command += ["--screenshot", str(screenshot)]
    if after_frames is not None:
        command += ["--after-frames", str(after_frames)]
    if close_at_end:
        command += ["--close-at-end"]
    flags = getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0)  # Windows
    viewer = subprocess.Popen(command, stdin=subprocess.DEVNULL, creationflags=flags)
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # the analysis goes first where both want the processor
            politely = min(19, os.getpriority(os.PRIO_PROCESS, 0) + _VIEW_NICENESS)
            os.setpriority(os.PRIO_PROCESS, viewer.pid, politely)
    return viewer
