"""A snapped frame goes to disk as a TIFF that ImageJ and `read_image` read, with what is known of the instrument."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oneframe.acquisition.folders import positive
from oneframe.acquisition.frame import Frame
from oneframe.acquisition.holograms import KINDS

_IMAGEJ_TYPES = ("uint8", "uint16", "float32")
_LENGTHS = ("wavelength_um", "medium_index", "na")
_MARK = "oneframe: "
"""Begins the line of ImageJ's Info text that holds the instrument."""


def write_snapshot(path: Path, frame: Frame) -> None:
    """Write one frame, (H, W) or (C, H, W), in the camera's own dtype, and of its metadata what `instrument` keeps.

    Raises
    ------
    FileExistsError
        If there is a file of that name: a frame is never overwritten.
    """
    import tifffile

    if path.exists():
        raise FileExistsError(f"{path} exists and is never overwritten; choose another name")
    per_um = None if frame.pixel_size_um is None else (1 / frame.pixel_size_um, 1 / frame.pixel_size_um)
    metadata = {"axes": "YX" if frame.pixels.ndim == 2 else "CYX", "unit": "um"}
    known = instrument(frame.metadata)
    if known:
        metadata["Info"] = _MARK + json.dumps(known)
    tifffile.imwrite(
        path,
        frame.pixels,
        imagej=frame.pixels.dtype.name in _IMAGEJ_TYPES,
        photometric="minisblack",
        resolution=per_um,
        metadata=metadata,
    )


def instrument(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a snapped hologram keeps of its frame's metadata, as far as it is there and makes sense.

    `kind` (str, as of `HologramScene`), `wavelength_um`, `medium_index` and `na` (finite numbers above 0).
    """
    known = {"kind": values["kind"]} if values.get("kind") in KINDS else {}
    numbers = {name: values.get(name) for name in _LENGTHS}
    return known | {
        name: value for name, value in numbers.items() if isinstance(value, int | float) and positive(value)
    }


def instrument_in(info: object) -> dict[str, Any]:
    """Return the same from the Info text of an ImageJ TIFF; nothing from any other text."""
    for line in info.splitlines() if isinstance(info, str) else ():
        if line.startswith(_MARK):
            try:
                values = json.loads(line.removeprefix(_MARK))
            except (ValueError, RecursionError):  # damaged
                continue
            if isinstance(values, dict):
                return instrument(values)
    return {}
