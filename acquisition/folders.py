"""Recordings that are folders: numbered TIFF files, OME-Zarr, NDTiff of Micro-Manager and pycromanager."""

from __future__ import annotations

import bisect
import contextlib
import importlib
import io
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.source import SourceError

Pixels = NDArray[Any]

_UM_PER_UNIT = {
    "angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6,
}  # fmt: skip
"""Units of OME-Zarr."""


class ZarrStack:
    """The finest level of an OME-Zarr image (NGFF 0.1 to 0.5), or a plain Zarr array (T, H, W) or (T, C, H, W).

    Frames follow t, then z; a chunk is read when it is asked for.
    """

    def __init__(self, path: Path) -> None:
        zarr = _imported("zarr", path)
        self._path = path
        try:
            node = zarr.open(path, mode="r")
        except Exception as exc:
            raise SourceError(f"{path} cannot be read as Zarr ({exc}); is the copy complete?") from exc
        axes, scale, array = self._image_of(node)
        if array.ndim != len(axes) or axes[-2:] != ["y", "x"] or array.dtype.kind not in "uif":
            raise SourceError(f"{path}: expected grey images with the last axes y and x, got {axes} of {array.dtype}")
        self._array = array
        self._channel_axis = axes.index("c") if "c" in axes[:-2] and array.shape[axes.index("c")] > 1 else None
        others = [axis for axis in range(array.ndim - 2) if axis != self._channel_axis]
        self._places = list(itertools.product(*(range(array.shape[axis]) for axis in others)))
        self._others = others
        self.pixel_size_um = scale

    def __len__(self) -> int:
        return len(self._places)

    def read(self, page: int) -> Pixels:
        """Return (H, W), or (C, H, W)."""
        index: list[Any] = [slice(None)] * self._array.ndim
        for axis, place in zip(self._others, self._places[page], strict=True):
            index[axis] = place
        return np.ascontiguousarray(self._array[tuple(index)])

    def close(self) -> None:
        """Nothing is open between two reads."""

    def _image_of(self, node: Any) -> tuple[list[str], float | None, Any]:
        """Return axes, pixel size and array of the image that a Zarr node holds."""
        if hasattr(node, "ndim"):
            axes = {2: ["y", "x"], 3: ["t", "y", "x"], 4: ["t", "c", "y", "x"]}.get(node.ndim)
            if axes is None:
                raise SourceError(f"{self._path}: expected a Zarr array (H, W) to (T, C, H, W), got {node.shape}")
            return axes, None, node
        attributes = dict(node.attrs)
        attributes = attributes.get("ome", attributes)
        if "multiscales" not in attributes and "0" in node and hasattr(node["0"], "attrs"):
            return self._image_of(node["0"])  # bioformats2raw: the first series
        try:
            image = attributes["multiscales"][0]
            level = image["datasets"][0]
            array = node[level["path"]]
        except (KeyError, IndexError, TypeError) as exc:
            raise SourceError(
                f"expected an OME-Zarr image, {self._path} has no multiscales; point to one image"
            ) from exc
        axes = [axis if isinstance(axis, str) else axis["name"] for axis in image.get("axes", "tczyx")]
        return axes, _zarr_pixel_size_um(image, level, axes), array


def _zarr_pixel_size_um(image: Mapping[str, Any], level: Mapping[str, Any], axes: Sequence[str]) -> float | None:
    """Product of the scales, if y and x agree and their unit is known."""
    sizes_um = []
    for axis in ("y", "x"):
        entry = image["axes"][axes.index(axis)] if "axes" in image else None
        unit_um = _UM_PER_UNIT.get(entry.get("unit", "")) if isinstance(entry, Mapping) else None
        if unit_um is None:
            return None
        transformations = [*level.get("coordinateTransformations", ()), *image.get("coordinateTransformations", ())]
        scales = [step["scale"][axes.index(axis)] for step in transformations if step.get("type") == "scale"]
        if not scales:
            return None
        sizes_um.append(unit_um * math.prod(scales))
    return float(sizes_um[0]) if math.isclose(*sizes_um, rel_tol=0.01) else None


class NDTiffStack:
    """An NDTiff folder, images in the order in which they were saved; channels of one place form one frame."""

    def __init__(self, path: Path) -> None:
        ndstorage = _imported("ndstorage", path)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it tells its progress
                self._dataset: Any = ndstorage.Dataset(str(path))
        except Exception as exc:
            raise SourceError(f"{path} cannot be read as NDTiff ({exc}); is the copy complete?") from exc
        coordinates = [dict(axes) for axes in self._dataset.get_image_coordinates_list()]
        if not coordinates:
            raise SourceError(f"{path} holds no image; was the acquisition stopped before the first?")
        frames: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for axes in coordinates:
            place = tuple((name, value) for name, value in sorted(axes.items()) if name != "channel")
            frames.setdefault(place, []).append(axes)
        self._frames = [sorted(found, key=lambda axes: str(axes.get("channel"))) for found in frames.values()]
        told = positive((self._dataset.summary_metadata or {}).get("PixelSize_um"))
        self.pixel_size_um = told or positive(self._dataset.read_metadata(**coordinates[0]).get("PixelSizeUm"))

    def __len__(self) -> int:
        return len(self._frames)

    def read(self, page: int) -> Pixels:
        """Return (H, W), or (C, H, W)."""
        planes = [np.array(self._dataset.read_image(**axes)) for axes in self._frames[page]]
        return np.stack(planes) if len(planes) > 1 else planes[0]

    def close(self) -> None:
        """Close the files."""
        self._dataset.close()


class FolderStack:
    """The images of several files, one file after the other; one is open at a time.

    Parameters
    ----------
    files : sequence of Path
        In their order.
    open_file : (Path) -> stack
        Opens one of them; what it returns has a length, `pixel_size_um`, `read` and `close`.
    """

    def __init__(self, files: Sequence[Path], open_file: Callable[[Path], Any]) -> None:
        self._files = files
        self._open_file = open_file
        self._open: tuple[int, Any] | None = None
        sizes, lengths = set(), []
        for which in range(len(files)):
            stack = self._stack(which)
            lengths.append(len(stack))
            sizes.add(stack.pixel_size_um)
        self._first = list(itertools.accumulate(lengths, initial=0))
        self.pixel_size_um: float | None = sizes.pop() if len(sizes) == 1 else None

    def __len__(self) -> int:
        return self._first[-1]

    def read(self, page: int) -> Pixels:
        """Return (H, W), or (C, H, W)."""
        which = bisect.bisect_right(self._first, page) - 1
        pixels: Pixels = self._stack(which).read(page - self._first[which])
        return pixels

    def close(self) -> None:
        """Close the file that is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _stack(self, which: int) -> Any:
        if self._open is None or self._open[0] != which:
            self.close()
            self._open = which, self._open_file(self._files[which])
        return self._open[1]


def is_zarr(path: Path) -> bool:
    """Return whether a folder is a Zarr array or group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray", ".zattrs"))


def is_ndtiff(path: Path) -> bool:
    """Return whether a folder holds an NDTiff dataset."""
    return (path / "NDTiff.index").is_file()


def numbered(files: Sequence[Path]) -> list[Path]:
    """Sort by the numbers in the names: frame_2 comes before frame_10."""

    def key(path: Path) -> list[tuple[int, int, str]]:
        parts = re.split(r"(\d+)", path.name.lower())
        return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]

    return sorted(files, key=key)


def _imported(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        raise SourceError(f"{path} needs the package {name} to be read; run: pip install {name}") from exc


def positive(value: object) -> float | None:
    """Return what a file tells as a finite number above 0, else None."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if 0 < number < math.inf else None
