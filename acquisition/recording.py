"""Recordings and single images from disk, read one image at a time."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.folders import positive
from oneframe.acquisition.frame import Frame
from oneframe.acquisition.snapshot import instrument_in
from oneframe.acquisition.source import (
    BadFrameError,
    EndOfStream,
    SourceError,
    SourceInfo,
    SourceOptions,
    SourceURL,
)

logger = logging.getLogger(__name__)

Pixels = NDArray[Any]

_TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
_VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv")
_RAW_SUFFIXES = (".dax", ".raw")
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_PICTURE_ENDS = ((b"\x89PNG", b"IEND"), (b"\xff\xd8\xff", b"\xff\xd9"))
_MOST_CHANNELS = 10
"""A longer channel axis is time: tifffile calls the first axis of a plain ImageJ stack C."""
_UM_PER_UNIT = {
    "nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "\\u00b5m": 1.0, "micron": 1.0, "microns": 1.0, "mm": 1e3, "cm": 1e4,
}  # fmt: skip


class _Stack(Protocol):
    """The images of one file."""

    @property
    def pixel_size_um(self) -> float | None:
        """As the file tells it."""
        ...

    def __len__(self) -> int: ...

    def read(self, page: int) -> Pixels:
        """(H, W) or (C, H, W); any exception means that this image is damaged."""
        ...

    def close(self) -> None: ...


def open_recording(url: SourceURL) -> Recording:
    """Open a recording as a source of frames.

    A TIFF, OME-TIFF, NPY, MP4, AVI or picture file, a DAX or Picasso RAW movie; a folder of TIFF files or pictures,
    which follow each other in the order of the numbers in their names; an OME-Zarr or NDTiff folder.

    Options: `fps` replays in real time at that rate; `loop` plays it so many times (0: without end); `page` takes one
    image only and `channel` one channel only, both counted from 0; `series` picks one of several image series of a
    TIFF; `pixel_size_um` replaces what the file says.

    Raises
    ------
    SourceError
        If the file is missing, of another kind or damaged, or an option does not fit it.
    """
    options = url.options
    fps = options.number("fps", 0.0, maximum=1e6)
    n_loops = options.integer("loop", 1)
    page = options.integer("page", -1, minimum=-1)
    channel = options.integer("channel", -1, minimum=-1)
    series = options.integer("series", 0)
    pixel_size_um = options.number("pixel_size_um", 0.0)
    options.finish()

    stack = _open_stack(Path(url.target).expanduser(), series)
    if page >= len(stack):
        stack.close()
        raise SourceError(f"{url.text}: page must be 0 to {len(stack) - 1}, the file holds {len(stack)} images")
    return Recording(
        url.text,
        stack,
        pages=range(len(stack)) if page < 0 else range(page, page + 1),
        n_loops=n_loops,
        fps=fps or None,
        channel=None if channel < 0 else channel,
        pixel_size_um=pixel_size_um or stack.pixel_size_um,
        instrument=stack.instrument if isinstance(stack, _TiffStack) else {},
    )


def read_image(path: str | Path) -> Frame:
    """Return the one grey image (H, W) of a file.

    Parameters
    ----------
    path : str or Path
        A TIFF, NPY or picture file; the options of a recording may follow, as in `stack.tif?page=3`.

    Raises
    ------
    SourceError
        If the file is missing or damaged, or holds colours, channels or several images.
    """
    text = str(path)
    body, _, query = text.partition("?")
    if Path(text).exists():
        body, query = text, ""
    options = SourceOptions(text, dict(parse_qsl(query, keep_blank_values=True)))
    recording = open_recording(SourceURL(text, "file", body, options))
    try:
        if recording.n_pages > 1:
            raise SourceError(
                f"{text} holds {recording.n_pages} images, one is expected; pick one with {body}?page=N, "
                f"N from 0 to {recording.n_pages - 1}"
            )
        frame = recording.read(0.0)
    except (BadFrameError, EndOfStream) as exc:
        raise SourceError(str(exc)) from exc
    finally:
        recording.close()
    if frame is None:
        raise SourceError(f"{text}: fps makes no sense for one image; leave it out")
    if frame.pixels.ndim == 2:
        return frame
    raise SourceError(
        f"{text} holds {len(frame.pixels)} channels, one grey plane is expected; pick one with {body}?channel=N"
    )


class Recording:
    """A file as a source of frames; made by `open_recording`."""

    def __init__(
        self,
        text: str,
        stack: _Stack,
        *,
        pages: range,
        n_loops: int,
        fps: float | None,
        channel: int | None,
        pixel_size_um: float | None,
        instrument: Mapping[str, Any],
    ) -> None:
        self.n_pages = len(pages)
        """Images that are played, once."""
        self._stack: _Stack | None = stack
        self._pages = pages
        self._n_frames = n_loops * len(pages) if n_loops else None
        self._interval_s = None if fps is None else 1.0 / fps
        self._channel = channel
        self._instrument = instrument
        self._begin_s: float | None = None
        self._index = 0
        # frames that keep their own pace are live: who reads late sees older frames
        self._info = SourceInfo(text, live=fps is not None, n_frames=self._n_frames, pixel_size_um=pixel_size_um)

    @property
    def info(self) -> SourceInfo:
        """The file as the user named it, and how many frames it gives."""
        return self._info

    def read(self, timeout_s: float) -> Frame | None:
        """Return the next image; `time_s` is the time of this call.

        Raises
        ------
        EndOfStream
            After the last image, or when closed.
        BadFrameError
            If this image is damaged.
        """
        if self._stack is None:
            raise EndOfStream(f"{self._info.url} was closed", n_frames=self._n_frames)
        if self._n_frames is not None and self._index >= self._n_frames:
            raise EndOfStream("the recording is over", n_frames=self._n_frames)
        if not self._wait_until_due(timeout_s):
            return None
        index = self._index
        self._index += 1
        page = self._pages[index % len(self._pages)]
        try:
            pixels = self._one_channel(self._stack.read(page))
            return Frame(pixels, index, time.time(), self._info.pixel_size_um, {**self._instrument, "page": page})
        except (SourceError, EndOfStream):
            raise
        except Exception as exc:  # the decoders of a damaged file raise whatever they like
            if "imagecodecs" in str(exc):
                raise SourceError(f"{self._info.url}: {exc}; run: pip install imagecodecs") from exc
            raise BadFrameError(
                f"image {page} of {self._info.url} cannot be read ({exc}); was the file cut off while it was written?",
                index=index,
            ) from exc

    def close(self) -> None:
        """Close the file."""
        if self._stack is not None:
            self._stack.close()
            self._stack = None

    def _wait_until_due(self, timeout_s: float) -> bool:
        if self._interval_s is None:
            return True
        now_s = time.monotonic()
        if self._begin_s is None:
            self._begin_s = now_s
        wait_s = self._begin_s + self._index * self._interval_s - now_s
        if wait_s > 0:
            time.sleep(min(wait_s, timeout_s))
        return wait_s <= timeout_s

    def _one_channel(self, pixels: Pixels) -> Pixels:
        """(H, W) or (C, H, W) -> (H, W) if there is or was asked for one channel only."""
        n_channels = len(pixels) if pixels.ndim == 3 else 1
        if self._channel is not None and self._channel >= n_channels:
            raise SourceError(f"{self._info.url}: channel must be 0 to {n_channels - 1}; change channel=")
        if pixels.ndim == 2 or (self._channel is None and n_channels > 1):
            return pixels
        plane: Pixels = pixels[self._channel or 0]
        return plane


def _open_stack(path: Path, series: int) -> _Stack:
    suffix = path.suffix.lower()
    if not path.exists():
        raise SourceError(f"{path}: no such file; check the path")
    if path.is_dir():
        return _open_folder(path)
    if suffix not in (*_TIFF_SUFFIXES, ".npy", *_RAW_SUFFIXES, *_VIDEO_SUFFIXES, *_PICTURE_SUFFIXES):
        raise SourceError(
            "expected a TIFF, NPY, MP4, AVI, PNG, JPEG or BMP file, a folder of them, OME-Zarr, NDTiff, DAX or Picasso "
            f"RAW, got {path}; save it as TIFF, for example with ImageJ"
        )
    if series and suffix not in _TIFF_SUFFIXES:
        raise SourceError(f"{path}: only a TIFF has several series; leave series= out")
    try:
        if suffix in _TIFF_SUFFIXES:
            return _TiffStack(path, series)
        if suffix in _VIDEO_SUFFIXES:
            from oneframe.acquisition.video import VideoStack

            return VideoStack(path)
        if suffix in _RAW_SUFFIXES:
            from oneframe.acquisition.raw_movies import RawMovie

            return RawMovie(path)
        return _NpyStack(path) if suffix == ".npy" else _Picture(path)
    except (SourceError, ModuleNotFoundError):
        raise
    except Exception as exc:  # a foreign or damaged file makes its decoder raise whatever it likes
        raise SourceError(
            f"{path} cannot be read as {suffix[1:].upper()} ({exc}); is it complete, and what its name says?"
        ) from exc


def _open_folder(path: Path) -> _Stack:
    from oneframe.acquisition import folders

    if folders.is_ndtiff(path):
        return folders.NDTiffStack(path)
    if folders.is_zarr(path):
        return folders.ZarrStack(path)
    files = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
    for kind in (_TIFF_SUFFIXES, _PICTURE_SUFFIXES):
        images = folders.numbered([file for file in files if file.suffix.lower() in kind])
        if images:
            first = _open_stack(images[0], 0)
            if isinstance(first, _TiffStack) and first.spans_files:
                return first  # an OME-TIFF in several files, each of which knows the others
            first.close()
            return folders.FolderStack(images, lambda file: _open_stack(file, 0))
    raise SourceError(
        f"expected a folder of TIFF files or pictures, an OME-Zarr or an NDTiff dataset, {path} is none; "
        "point to the folder that holds the images themselves"
    )


class _TiffStack:
    """One series of a TIFF file; every page is read when it is asked for."""

    def __init__(self, path: Path, series: int) -> None:
        import tifffile

        self._path = path
        self._file: Any = tifffile.TiffFile(path)
        try:
            self._series = self._pick_series(series)
            self._plane_of, self._channel_axis = _pages_of_images(self._series)
            self._memory = self._map_if_one_page()
            self.pixel_size_um = _tiff_pixel_size_um(self._file)
            self.instrument = instrument_in((self._file.imagej_metadata or {}).get("Info"))
        except Exception:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._plane_of)

    @property
    def spans_files(self) -> bool:
        """True if the series goes on in other files beside this one."""
        return bool(self._series.is_multifile)

    def read(self, page: int) -> Pixels:
        planes = [self._plane(int(number)) for number in self._plane_of[page]]
        return _native(np.stack(planes) if self._channel_axis else planes[0])

    def close(self) -> None:
        self._memory = None
        self._file.close()

    def _pick_series(self, number: int) -> Any:
        found = self._file.series
        if not found:
            raise ValueError("there is no image in it")
        if number >= len(found):
            raise SourceError(f"{self._path}: series must be 0 to {len(found) - 1}; change series=")
        if len(found) > 1:
            logger.warning("%s holds %d image series; reading number %d (see series=)", self._path, len(found), number)
        written = (self._file.imagej_metadata or {}).get("images", 1)
        if found[number].kind == "generic" and written > len(self._file.pages):
            raise SourceError(
                f"{self._path} is cut off: of {written} images {len(self._file.pages)} are there; copy it again"
            )
        return found[number]

    def _map_if_one_page(self) -> Pixels | None:
        """ImageJ stacks above 4 GB have one page entry for all images, which lie one after the other."""
        n_planes = self._plane_of.size
        entries_missing = self._file.is_imagej and len(self._file.pages) < n_planes
        if n_planes == len(self._series.pages) and not entries_missing:
            return None
        if self._series.dataoffset is None:
            raise SourceError(f"{self._path}: its pages are compressed as one block; save it again page by page")
        dtype = np.dtype(self._series.dtype).newbyteorder(self._file.byteorder)
        shape = (n_planes, *self._series.keyframe.shape)
        return np.memmap(self._path, dtype, "r", offset=self._series.dataoffset, shape=shape)

    def _plane(self, number: int) -> Pixels:
        pixels = self._one_page(number) if self._memory is None else np.array(self._memory[number])
        keyframe = self._series.keyframe
        if keyframe.axes != "YXS":
            return pixels
        if keyframe.photometric.name == "RGB":
            return _grey(pixels, self._path)
        return np.moveaxis(pixels, -1, 0)  # (H, W, C) -> (C, H, W)

    def _one_page(self, number: int) -> Pixels:
        page = self._series.pages[number]
        if page is None:
            raise ValueError("it was never written")
        handle = page.parent.filehandle
        if not handle.closed:
            pixels: Pixels = page.asarray()
            return pixels
        handle.open()  # one of the other files of an OME-TIFF
        try:
            pixels = page.asarray()
        finally:
            handle.close()
        return pixels


def _pages_of_images(series: Any) -> tuple[NDArray[np.int64], bool]:
    """Page numbers of each image as (n_images, n_pages_of_one), and whether those pages are channels."""
    n_page_axes = len(series.keyframe.shape)
    axes, shape = series.axes[:-n_page_axes], series.shape[:-n_page_axes]
    pages = np.arange(math.prod(shape)).reshape(shape)
    if "C" not in axes or not 1 < shape[axes.index("C")] <= _MOST_CHANNELS:
        return pages.reshape(-1, 1), False
    channel = axes.index("C")
    return np.moveaxis(pages, channel, -1).reshape(-1, shape[channel]), True


def _tiff_pixel_size_um(file: Any) -> float | None:
    """Pixel size from OME-XML, Micro-Manager or ImageJ; a bare resolution tag is never trusted (72 dpi)."""
    if file.is_ome:
        return _ome_pixel_size_um(file.ome_metadata or "")
    if file.is_micromanager:
        summary = (file.micromanager_metadata or {}).get("Summary", {})
        return positive(summary.get("PixelSize_um", summary.get("PixelSizeUm")))
    if file.is_imagej:
        unit_um = _UM_PER_UNIT.get(str((file.imagej_metadata or {}).get("unit", "")).lower())
        resolution = file.pages[0].tags.get("XResolution")
        if unit_um is not None and resolution is not None and resolution.value[0]:
            per_unit, denominator = resolution.value
            return positive(unit_um * denominator / per_unit)
    return None


def _ome_pixel_size_um(xml: str) -> float | None:
    element = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", xml)
    attributes = dict(re.findall(r'(\w+)="([^"]*)"', element.group())) if element else {}
    x_um, y_um = (_ome_length_um(attributes, axis) for axis in "XY")
    if x_um is None or (y_um is not None and not math.isclose(x_um, y_um, rel_tol=0.01)):
        return None
    return x_um


def _ome_length_um(attributes: Mapping[str, str], axis: str) -> float | None:
    length = positive(attributes.get(f"PhysicalSize{axis}"))
    unit_um = _UM_PER_UNIT.get(attributes.get(f"PhysicalSize{axis}Unit", "µm"))
    return None if length is None or unit_um is None else length * unit_um


class _NpyStack:
    """(H, W), (T, H, W) or (T, C, H, W), mapped into memory."""

    pixel_size_um = None

    def __init__(self, path: Path) -> None:
        array: Pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype.kind not in "uif":
            raise SourceError(f"{path} holds {array.dtype}, grey values are expected; save them as uint16 or float32")
        if array.ndim >= 3 and array.shape[-1] in (3, 4) and array.dtype == np.uint8:
            raise SourceError(_colour(path, array.shape))
        if array.ndim not in (2, 3, 4) or 0 in array.shape:
            raise SourceError(f"{path}: expected an array (H, W), (T, H, W) or (T, C, H, W), got {array.shape}")
        self._array: Pixels | None = array[np.newaxis] if array.ndim == 2 else array
        self._n_images = len(self._array)

    def __len__(self) -> int:
        return self._n_images

    def read(self, page: int) -> Pixels:
        if self._array is None:
            raise ValueError("the file is closed")
        return _native(np.array(self._array[page]))

    def close(self) -> None:
        self._array = None


class _Picture:
    """One PNG, JPEG or BMP picture."""

    pixel_size_um = None

    def __init__(self, path: Path) -> None:
        import cv2

        # not cv2.imread: it fails on names that are not ASCII under Windows
        content = path.read_bytes()
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise ValueError("no picture in it")
        if any(content.startswith(head) and tail not in content for head, tail in _PICTURE_ENDS):
            raise ValueError("its end is missing")  # the decoders fill what is missing with black
        self._pixels = pixels if pixels.ndim == 2 else _grey(pixels, path)

    def __len__(self) -> int:
        return 1

    def read(self, page: int) -> Pixels:
        return self._pixels

    def close(self) -> None:
        return


def _grey(pixels: Pixels, path: Path) -> Pixels:
    """Grey plane of colours (H, W, 3 or 4), if the colours are equal and alpha is constant."""
    first, alpha = pixels[..., 0], pixels[..., 3:]
    if all(np.array_equal(first, pixels[..., colour]) for colour in (1, 2)) and np.all(alpha == alpha[:1, :1]):
        return first
    raise SourceError(_colour(path, pixels.shape))


def _colour(path: Path, shape: tuple[int, ...]) -> str:
    return (
        f"{path} is a colour image (shape {shape}), one grey plane is expected; "
        "convert it to one grey plane, in ImageJ with Image > Type > 16-bit"
    )


def _native(pixels: Pixels) -> Pixels:
    """Return the pixels in C order and the byte order of this machine."""
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))
