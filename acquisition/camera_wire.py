"""What a camera's process and its parent say to each other, over the child's own standard input and output.

Pipes, because they are the simplest channel that is bounded, in order and private: they have no name and no address, so
no other user can read or write them (loopback TCP is open to every user of the machine, a shared-memory segment has a
name), and each side sees the other's death as the end of its pipe. Nothing is unpickled: the parent sends JSON lines,
the child messages of two lengths, a JSON header and raw pixels.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_LENGTHS = struct.Struct("<II")
_LONGEST_HEADER = 1 << 20
_PIXEL_TYPES = ("uint8", "uint16", "float32")


class BrokenMessageError(Exception):
    """The other side ended, or sent what is no message."""


@dataclass(frozen=True, slots=True)
class CameraSetup:
    """What the child needs to open a camera; the first line it reads."""

    url: str
    """The SOURCE as the user wrote it, for messages."""

    config: str
    """Absolute path of the configuration file, or its text if `config_is_text`."""

    config_is_text: bool
    app: str
    """Folder of Micro-Manager with the device adapters; empty for the package mm-test-adapters."""

    buffer_mb: int
    every: bool
    """Bounded buffer that stops the camera when it is full; else it is overwritten and the newest frame wins."""

    restart_on_overflow: bool
    """Start the camera again when the bounded buffer was full, instead of ending."""

    exposure_ms: float | None = None
    """None: as configured."""

    xyz_um: tuple[float, float, float] | None = None
    """Where the stages XY and Z go before the first frame; None: they stay."""

    mode: str = ""
    """DemoCamera's mode in any case of letters; empty: as configured."""

    camera_properties: Mapping[str, str] = field(default_factory=dict)

    def to_line(self) -> bytes:
        """Return the setup as one line of JSON."""
        return line(asdict(self))

    @classmethod
    def from_line(cls, text: bytes) -> CameraSetup:
        """Read what `to_line` wrote."""
        return cls(**json.loads(text))


def line(message: Mapping[str, Any]) -> bytes:
    """Return a message to the child: one line of JSON."""
    return json.dumps(message).encode("ascii") + b"\n"


def write_message(pipe: IO[bytes], header: Mapping[str, Any], pixels: NDArray[Any] | None = None) -> None:
    """Write a message to the parent; waits while the pipe is full.

    Parameters
    ----------
    pipe : unbuffered binary file
    header : mapping
        JSON-compatible; `shape` and `type` are added for pixels.
    pixels : (H, W) uint8, uint16 or float32, optional
    """
    if pixels is None:
        body = memoryview(b"")
    else:
        pixels = np.ascontiguousarray(pixels)
        header = {**header, "shape": pixels.shape, "type": pixels.dtype.name}
        body = pixels.data.cast("B")
    text = json.dumps(header).encode("ascii")
    _write_all(pipe, memoryview(_LENGTHS.pack(len(text), body.nbytes) + text))
    _write_all(pipe, body)


def read_message(pipe: IO[bytes]) -> tuple[dict[str, Any], NDArray[Any] | None]:
    """Read a message of the child.

    Returns
    -------
    header : dict
    pixels : (H, W) uint8, uint16 or float32, or None
        An array of its own.

    Raises
    ------
    BrokenMessageError
        If the pipe ended or carries something else.
    """
    header_length, n_bytes = _LENGTHS.unpack(_read_all(pipe, bytearray(_LENGTHS.size)))
    if header_length > _LONGEST_HEADER:
        raise BrokenMessageError(f"expected a header of at most {_LONGEST_HEADER} bytes, got {header_length}")
    header = json.loads(bytes(_read_all(pipe, bytearray(header_length))))
    if n_bytes == 0:
        return header, None
    if header["type"] not in _PIXEL_TYPES:
        raise BrokenMessageError(f"expected pixels of {', '.join(_PIXEL_TYPES)}, got {header['type']}")
    pixels: NDArray[Any] = np.empty(header["shape"], header["type"])
    if pixels.nbytes != n_bytes:
        raise BrokenMessageError(f"expected {pixels.nbytes} bytes of pixels {pixels.shape}, got {n_bytes}")
    _read_all(pipe, pixels.data.cast("B"))
    return header, pixels


def _write_all(pipe: IO[bytes], left: memoryview) -> None:
    while left.nbytes:
        left = left[pipe.write(left) :]


def _read_all(pipe: IO[bytes], place: bytearray | memoryview) -> bytearray | memoryview:
    left = memoryview(place)
    while left.nbytes:
        n_bytes = pipe.readinto(left)  # type: ignore[attr-defined]  # typeshed's IO has no readinto
        if not n_bytes:
            raise BrokenMessageError("the other side ended")
        left = left[n_bytes:]
    return place
