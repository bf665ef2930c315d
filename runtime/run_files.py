"""A logged run in the formats of other programs: tables, Picasso's HDF5, ThunderSTORM's CSV."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.run_table import RunTable

Floats = NDArray[np.float64]

SUFFIXES: Mapping[str, str] = {
    "csv": ".csv",
    "parquet": ".parquet",
    "trackpy": ".csv",
    "picasso": ".hdf5",
    "thunderstorm": ".csv",
}
"""Formats, and how their files end."""
_FWHM = 2 * math.sqrt(2 * math.log(2))
_PHOTONS = {"photons", "background", "sigma_y_px", "sigma_x_px"}


def write_run(
    table: RunTable,
    to: str,
    path: Path,
    *,
    pixel_size_um: float | None = None,
    frame_shape: tuple[int, int] | None = None,
) -> list[str]:
    """Write a run in one of the formats of `SUFFIXES`; return what the reader of the file must know, as sentences.

    Parameters
    ----------
    table : RunTable
        The run.
    to : str
        The format.
    path : Path
        New file; Picasso's metadata come to lie beside it, as `.yaml`.
    pixel_size_um : float or None
        Edge of a camera pixel; None: what the run says.
    frame_shape : (int, int) or None
        Height and width of the frames, where they are known; for Picasso.

    Raises
    ------
    ValueError
        If the run lacks what the format needs; the text says what to do.
    ModuleNotFoundError
        If a package for the format is not installed.
    """
    columns = {name: values[_by_frame(table)] for name, values in _columns(table).items()}
    size_um = known_pixel_size_um(table) if pixel_size_um is None else pixel_size_um
    if size_um is not None:
        columns |= {f"{axis}_um": columns[f"{axis}_px"] * size_um for axis in ("y", "x")}
    if to in ("csv", "parquet"):
        (write_table if to == "csv" else _write_parquet)(path, columns)
        return []
    if to == "trackpy":
        write_table(path, _for_trackpy(columns))
        return []
    lacking = sorted(_PHOTONS - columns.keys())
    if lacking:
        raise ValueError(
            f"expected a run of a model that localises single molecules for {to}, this one has no "
            f"{', '.join(lacking)}; convert it to csv, parquet or trackpy"
        )
    if size_um is None:
        raise ValueError(
            f"expected a pixel size for {to}, whose lengths are nanometres, this run knows none; give it with "
            "--pixel-size-um"
        )
    if to == "thunderstorm":
        write_table(path, _for_thunderstorm(table, columns, size_um), quote_heads=True)
        return []
    return _write_picasso(path, table, columns, size_um, frame_shape)


def known_pixel_size_um(table: RunTable) -> float | None:
    """Return the edge of a camera pixel that the run's positions were recorded with, or None."""
    if "y_um" in table.columns:
        pixels, micrometres = (np.abs(table.columns[f"y_{unit}"]) for unit in ("px", "um"))
        if np.nanmax(pixels) > 0:
            return float(np.nansum(micrometres) / np.nansum(pixels))
    known = table.run["source"].get("pixel_size_um") or table.run["card"].get("pixel_size_um")
    return None if known is None else float(known)


def psf_sigma_px(table: RunTable) -> float:
    """Return the width of a single molecule's image: the object of a model for them is as large as its half maximum."""
    return float(table.run["card"]["object_diameter_px"]) / _FWHM


def _columns(table: RunTable) -> dict[str, Any]:
    parents = {} if table.parent_id is None else {"parent_id": table.parent_id}
    return {"frame": table.track_frame, "track_id": table.track_id, **parents, **table.columns}


def _by_frame(table: RunTable) -> NDArray[np.intp]:
    return np.lexsort((table.track_id, table.track_frame))


def _for_trackpy(columns: dict[str, Any]) -> dict[str, Any]:
    """Return the columns under trackpy's names; its positions are pixels too, with the same origin."""
    names = {"y_px": "y", "x_px": "x", "photons": "mass", "frame": "frame", "track_id": "particle"}
    return {names.get(name, name): values for name, values in columns.items()}


def _for_thunderstorm(table: RunTable, columns: dict[str, Any], size_um: float) -> dict[str, Any]:
    """Return ThunderSTORM's columns: frames from 1, nanometres from the corner of the camera's first pixel.

    The origin was checked with a data set that ThunderSTORM simulated: pixel i covers i to i + 1.
    """
    nm = 1e3 * size_um
    n = len(columns["frame"])
    sigma_nm = np.full(n, psf_sigma_px(table) * nm)
    written: dict[str, Any] = {
        "id": np.arange(1, n + 1),
        "frame": columns["frame"] + 1,
        "x [nm]": (columns["x_px"] + 0.5) * nm,
        "y [nm]": (columns["y_px"] + 0.5) * nm,
    }
    if "z_um" in columns:
        written |= {"z [nm]": 1e3 * columns["z_um"], "sigma1 [nm]": sigma_nm, "sigma2 [nm]": sigma_nm}
    else:
        written["sigma [nm]"] = sigma_nm
    precision_px = np.sqrt((columns["sigma_x_px"] ** 2 + columns["sigma_y_px"] ** 2) / 2)
    written |= {
        "intensity [photon]": columns["photons"],
        "offset [photon]": columns["background"],
        "bkgstd [photon]": np.sqrt(np.maximum(columns["background"], 0)),
        "uncertainty_xy [nm]": precision_px * nm,
    }
    if "sigma_z_um" in columns:
        written["uncertainty_z [nm]"] = 1e3 * columns["sigma_z_um"]
    return written


def _write_picasso(
    path: Path, table: RunTable, columns: dict[str, Any], size_um: float, frame_shape: tuple[int, int] | None
) -> list[str]:
    """Write the table `locs` and the metadata; Picasso counts pixels from the centre of the first, as we do."""
    try:
        import h5py
    except ModuleNotFoundError as exc:
        raise ModuleNotFoundError(
            "Picasso's format needs the package h5py, which is not installed; run: pip install h5py", name="h5py"
        ) from exc
    n = len(columns["frame"])
    sigma = np.full(n, psf_sigma_px(table))
    written = {
        "frame": columns["frame"].astype("<u4"),
        "x": columns["x_px"],
        "y": columns["y_px"],
        "photons": columns["photons"],
        "sx": sigma,
        "sy": sigma,
        "bg": columns["background"],
        "lpx": columns["sigma_x_px"],
        "lpy": columns["sigma_y_px"],
        "score": columns["score"],
    }
    if "z_um" in columns:
        written["z"] = 1e3 * columns["z_um"]
    if "sigma_z_um" in columns:
        written["lpz"] = 1e3 * columns["sigma_z_um"]
    notes = []
    if frame_shape is None:
        frame_shape = tuple(math.ceil(float(np.max(columns[f"{axis}_px"], initial=0.0))) + 1 for axis in ("y", "x"))  # type: ignore[assignment]
        notes.append(
            f"the run does not tell the size of its frames: {path.with_suffix('.yaml').name} says {frame_shape[1]} x "  # type: ignore[index]
            f"{frame_shape[0]} pixels, as far as the localisations reach"  # type: ignore[index]
        )
    locs = np.empty(n, [(name, "<u4" if name == "frame" else "<f4") for name in written])
    for name, values in written.items():
        locs[name] = values
    with h5py.File(path, "x") as file:
        file.create_dataset("locs", data=locs)
    facts = {
        "Byte Order": "<",
        "Data Type": "uint16",
        "Frames": int(table.frame[-1]) + 1 if len(table.frame) else 0,
        "Height": frame_shape[0],  # type: ignore[index]
        "Width": frame_shape[1],  # type: ignore[index]
        "Generated by": f"oneframe {table.run['versions'].get('oneframe') or ''}".strip(),
        "Pixelsize": 1e3 * size_um,
        "Source": table.run["source"]["url"],
    }
    lines = [f"{name}: {json.dumps(value)}\n" for name, value in facts.items()]  # JSON's values are YAML's too
    path.with_suffix(".yaml").write_text("".join(lines), encoding="utf-8")
    return notes


def write_table(path: Path, columns: dict[str, Any], *, quote_heads: bool = False) -> None:
    """Write columns of equal length as a new CSV file: seven digits, seconds to 1e-6, an empty cell for NaN."""
    texts: list[Callable[[Any], Any]] = [str if values.dtype.kind in "iu" else _text for values in columns.values()]
    with path.open("x", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL if quote_heads else csv.QUOTE_MINIMAL).writerow(columns)
        rows = csv.writer(file)
        for first in range(0, len(next(iter(columns.values()))), 100_000):
            some = [values[first : first + 100_000].tolist() for values in columns.values()]
            rows.writerows(zip(*(map(text, part) for text, part in zip(texts, some, strict=True)), strict=True))


def _text(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.6f}" if abs(value) > 1e6 else f"{value:.7g}"


def _write_parquet(path: Path, columns: dict[str, Any]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as exc:
        raise ModuleNotFoundError(
            "a .parquet file needs the package pyarrow, which is not installed; run: pip install pyarrow",
            name="pyarrow",
        ) from exc
    parquet.write_table(pyarrow.table(columns), path)
