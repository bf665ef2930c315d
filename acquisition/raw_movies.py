"""Raw movies of single-molecule microscopes, whose header is a text file beside them: DAX and Picasso's RAW."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.folders import positive
from oneframe.acquisition.source import SourceError

logger = logging.getLogger(__name__)

_DATA_TYPES = ("uint8", "uint16", "uint32", "int16", "int32", "float32", "float64")
_DAX_FORM = "lines such as 'frame dimensions = WIDTH x HEIGHT' and 'number of frames = N'"
_PICASSO_FORM = "lines such as 'Width: N', 'Height: N', 'Frames: N', 'Data Type: uint16' and 'Byte Order: <'"


@dataclass(frozen=True, slots=True)
class _Header:
    """What the text file says."""

    path: Path
    n_frames: int
    height: int
    width: int
    dtype: np.dtype[Any]
    pixel_size_um: float | None


class RawMovie:
    """The images of a `.dax` movie with its `.inf`, or of a Picasso `.raw` movie with its `.yaml`; mapped into memory.

    A file that is shorter than its header says is played as far as it goes, and the log says how much is missing.

    Raises
    ------
    SourceError
        If the header is missing, incomplete or does not fit the data; the text says which.
    """

    def __init__(self, path: Path) -> None:
        header = _dax_header(path) if path.suffix.lower() == ".dax" else _picasso_header(path)
        shape = (_whole_frames(path, header), header.height, header.width)
        self._images: NDArray[Any] | None = np.memmap(path, header.dtype, "r", shape=shape)
        self._n_images = shape[0]
        self.pixel_size_um = header.pixel_size_um

    def __len__(self) -> int:
        return self._n_images

    def read(self, page: int) -> NDArray[Any]:
        """Return (H, W), in the byte order of this machine."""
        if self._images is None:
            raise ValueError("the file is closed")
        return np.array(self._images[page], dtype=self._images.dtype.newbyteorder("="))

    def close(self) -> None:
        """Let go of the file."""
        self._images = None


def _whole_frames(path: Path, header: _Header) -> int:
    """How many frames the file holds, which is no more than the header says."""
    frame_bytes = header.height * header.width * header.dtype.itemsize
    promised, size = header.n_frames * frame_bytes, path.stat().st_size
    whole, rest = divmod(size, frame_bytes)
    told = f"{header.path.name} tells of {header.n_frames} frames of {header.width} x {header.height} px"
    if size > promised:
        remedy = "" if rest else f"; if their size is right, write {whole} frames into it"
        raise SourceError(
            f"{path} holds {size} bytes, but {told}, {promised} bytes; is it the header of another movie?{remedy}"
        )
    if not whole:
        raise SourceError(f"{path} holds {size} bytes, not one whole frame, but {told}; copy the movie again")
    if size < promised:
        cut = f" without the {rest} bytes of the one that was cut" if rest else ""
        missing = header.n_frames - whole
        logger.warning("%s is cut off: %s, %d are there, %d missing; playing those%s", path, told, whole, missing, cut)
    return whole


def _dax_header(path: Path) -> _Header:
    """Frame dimensions, frames and byte order of an .inf file; its dimensions are those after binning."""
    header, entries = _entries(path, ".inf", "=", _DAX_FORM)
    dimensions = re.fullmatch(r"(\d+)\s*x\s*(\d+)", entries.get("frame dimensions", ""))
    if dimensions is None:
        raise _unfit(header, "frame dimensions", entries, "frame dimensions = WIDTH x HEIGHT")
    data_type = entries.get("data type", "16 bit integers (binary, big endian)")  # what a DAX file is by definition
    if not data_type.startswith("16 bit integer"):
        raise _unfit(header, "data type", entries, "data type = 16 bit integers (binary, big endian)")
    dtype = np.dtype("<u2" if "little endian" in data_type else ">u2")
    width, height = (_count(header, number, "frame dimensions") for number in dimensions.groups())
    n_frames = _count(header, entries.get("number of frames"), "number of frames")
    return _Header(header, n_frames, height, width, dtype, None)


def _picasso_header(path: Path) -> _Header:
    """Shape, data type and pixel size of a Picasso .yaml file: plain `key: value` lines of its first document."""
    header, entries = _entries(path, ".yaml", ":", _PICASSO_FORM)
    n_frames, height, width = (_count(header, entries.get(key), key) for key in ("Frames", "Height", "Width"))
    if entries.get("Data Type") not in _DATA_TYPES:
        raise _unfit(header, "Data Type", entries, f"Data Type: {', '.join(_DATA_TYPES[:-1])} or {_DATA_TYPES[-1]}")
    dtype = np.dtype(entries["Data Type"])
    if dtype.itemsize > 1 and entries.get("Byte Order") not in ("<", ">"):
        raise _unfit(header, "Byte Order", entries, "Byte Order: < (least byte first) or >")
    nm = positive(entries.get("Pixelsize", entries.get("Camera.Pixelsize")))
    dtype = dtype.newbyteorder(">" if entries.get("Byte Order") == ">" else "<")
    return _Header(header, n_frames, height, width, dtype, nm and nm / 1000)


def _entries(path: Path, suffix: str, sign: str, form: str) -> tuple[Path, Mapping[str, str]]:
    """Return the header file of a movie, and its lines as key and value."""
    header = next((path.with_suffix(s) for s in (suffix, suffix.upper()) if path.with_suffix(s).is_file()), None)
    if header is None:
        raise SourceError(
            f"{path} needs its header {path.with_suffix(suffix).name} beside it, which is not there; copy it too, or "
            f"write one with {form}"
        )
    entries: dict[str, str] = {}
    for line in header.read_text("utf-8", errors="replace").splitlines():
        if line.startswith("---") and entries:
            break  # the documents that follow tell what was done with the movie
        key, found, value = line.partition(sign)
        if found and not key.startswith((" ", "-", "#")):
            entries[key.strip()] = value.strip().strip("'\"")
    return header, entries


def _count(header: Path, text: str | None, key: str) -> int:
    if text is None or not text.isdecimal() or not int(text):
        raise SourceError(f"expected {key!r} in {header} to be a whole number above 0, got {text!r}; correct it")
    return int(text)


def _unfit(header: Path, key: str, entries: Mapping[str, str], form: str) -> SourceError:
    got = repr(entries[key]) if key in entries else "no such line"
    return SourceError(f"expected {form!r} in {header}, got {got}; correct it, or save the movie as TIFF")
