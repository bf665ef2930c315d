"""The camera of a loaded core: its images in order, numbered, with what changed and what was lost on the way."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.camera_wire import CameraSetup
from oneframe.acquisition.source import SourceError
from oneframe.acquisition.tags import taken_s

GREY = ("GRAY8", "GRAY16", "GRAY32")
_ENDLESS = 2**31 - 1  # the largest C long on Windows
_NOTED = ("exposure_ms", "bit_depth", "binning", "roi_xywh_px", "pixel_type")


@dataclass(frozen=True, slots=True)
class Image:
    """One image of the core; its pixels are (H, W) uint8, uint16 or float32, or as they came if they are not grey."""

    index: int
    time_s: float
    metadata: dict[str, Any]
    pixels: NDArray[Any]


class FrameCounter:
    """Makes the core's `ImageNumber` an index that only rises.

    A gap in `ImageNumber` stays a gap. A core before device interface 75 throws its full buffer away and counts from 0
    again; the frames lost then are estimated from the time that passed and the pace before.
    """

    def __init__(self) -> None:
        self.next_index = 0
        self._offset = 0
        self._owes = False
        self._times: deque[tuple[int, float, float]] = deque(maxlen=64)  # index, elapsed ms, received s

    def begin_sequence(self, *, after_overflow: bool = False) -> None:
        """Expect numbers from 0, because the camera was started (again)."""
        self._offset = self.next_index
        self._owes = after_overflow
        if not after_overflow:
            self._times.clear()

    def index(self, number: int, elapsed_ms: float, received_s: float) -> tuple[int, int]:
        """Return the index of an image, and how many frames at least were lost before it that the index does not show.

        Parameters
        ----------
        number : int
            The core's `ImageNumber`.
        elapsed_ms : float
            Time on the camera's clock.
        received_s : float
            Time on the host's clock.
        """
        lost = 0
        if self._owes or self._offset + number < self.next_index:
            # the numbers before this one in the new count are a gap of the index already
            lost = max(1, self._missed(elapsed_ms, received_s) - number)
            self.begin_sequence()
        index = self._offset + number
        self.next_index = index + 1
        self._times.append((index, elapsed_ms, received_s))
        return index, lost

    def _missed(self, elapsed_ms: float, received_s: float) -> int:
        if len(self._times) < 2:
            return 1
        (first, first_ms, first_s), (last, last_ms, last_s) = self._times[0], self._times[-1]
        gap, span = elapsed_ms - last_ms, last_ms - first_ms
        if gap <= 0:  # the camera's clock began again too
            gap, span = received_s - last_s, last_s - first_s
        return int(gap * (last - first) / span) - 1 if span > 0 else 1


class Camera:
    """The camera of a loaded core: images in order, with what changed on the way."""

    def __init__(self, core: Any, setup: CameraSetup) -> None:
        self.running = False
        self._core = core
        self._setup = setup
        self._prepared = False
        self._counter = FrameCounter()
        self._notes: list[str] = []
        self._lost = 0
        self._settings: dict[str, Any] = {}
        self._coming: tuple[int, dict[str, Any]] | None = None  # settings, and the first index that has them
        self._before: dict[str, Any] = {}

    def prepare(self) -> None:
        """Set exposure and stages as the URL says, once."""
        if self._prepared:
            return
        self._prepared = True
        if self._setup.exposure_ms is not None:
            self._core.set_exposure(self._setup.exposure_ms)
        if self._setup.xyz_um is not None:
            x_um, y_um, z_um = self._setup.xyz_um
            self._core.set_xy_position(x_um, y_um)
            self._core.set_position(z_um)
            self._core.wait_for_device("XY")
            self._core.wait_for_device("Z")

    def start(self, *, after_overflow: bool = False) -> None:
        """Start the sequence."""
        core = self._core
        self.prepare()
        if core.get_number_of_components() != 1 or core.get_number_of_camera_channels() > 1:
            n_channels, n_components = core.get_number_of_camera_channels(), core.get_number_of_components()
            raise SourceError(
                f"{self._setup.url}: expected one grey image a frame, got {n_channels} camera channels of "
                f"{n_components} components; choose one camera and a grey pixel type"
            )
        self._counter.begin_sequence(after_overflow=after_overflow)
        self._coming, self._settings = None, self._read_settings()
        if self._setup.every:
            core.start_sequence_acquisition(_ENDLESS, 0, True)
        else:
            core.start_continuous_sequence_acquisition(0)
        self.running = True

    def stop(self) -> None:
        """Stop the sequence; the images that wait in the core stay there."""
        self.running = False
        if self._core.is_sequence_running():
            self._core.stop_sequence_acquisition()

    def settings_changed(self) -> None:
        """Read the settings again; they hold for images that come after those that wait in the core."""
        if self.running:
            due = self._counter.next_index + self._core.get_remaining_image_count()
            self._coming = (due, self._read_settings())

    def pop(self) -> Image | None:
        """Return the oldest image that waits in the core; None if there is none."""
        try:
            popped = self._core.pop_next_tagged_image()
        except IndexError:  # also when the core threw away a full buffer since it was asked how many wait
            return None
        return self.image(popped.pix, popped.tags)

    def image(self, pixels: NDArray[Any], tags: Mapping[str, str]) -> Image:
        """Give an image its index and note what changed before it."""
        time_s = taken_s(tags, time.time())
        number = int(tags.get("ImageNumber", 0))
        index, lost = self._counter.index(number, float(tags.get("ElapsedTime-ms", 0.0)), time_s)
        if lost:
            self._lost += lost
            self._notes.append(f"the camera's buffer overflowed; at least {lost} frames were lost")
        if self._coming is not None and (lost or index >= self._coming[0]):
            self._settings, self._coming = self._coming[1], None
        metadata = {**self._settings, **_metadata(tags)}
        for name in _NOTED:
            if name in self._before and self._before[name] != metadata.get(name):
                self._notes.append(f"{name} changed from {self._before[name]} to {metadata.get(name)}")
        self._before = metadata
        if metadata["pixel_type"] == "GRAY32":  # the core hands over the bits of float32
            pixels = pixels.view(np.float32)
        return Image(index, time_s, metadata, pixels)

    def take_notes(self) -> dict[str, Any]:
        """Return what happened since the last call, as keys of a frame's metadata."""
        told: dict[str, Any] = {}
        if self._notes:
            told["note"] = "; ".join(self._notes)
        if self._lost:
            told["lost_at_least"] = self._lost
        self._notes, self._lost = [], 0
        return told

    def _read_settings(self) -> dict[str, Any]:
        core = self._core
        return {
            "camera": core.get_camera_device(),
            "exposure_ms": core.get_exposure(),
            "bit_depth": core.get_image_bit_depth(),
        }


def _metadata(tags: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"pixel_type": tags.get("PixelType", "")}
    if "ElapsedTime-ms" in tags:
        found["elapsed_ms"] = float(tags["ElapsedTime-ms"])
    if "Binning" in tags:
        found["binning"] = tags["Binning"]
    roi = [tags.get(key) for key in ("ROI-X-start", "ROI-Y-start", "Width", "Height")]
    if None not in roi:
        found["roi_xywh_px"] = [int(value) for value in roi if value is not None]
    return found


@contextmanager
def explained(text: str) -> Iterator[None]:
    """Turn what the core raises into one sentence."""
    try:
        yield
    except MemoryError as exc:
        raise SourceError(f"{text}: the core's buffer is too small for the images; raise buffer_mb=") from exc
    except (RuntimeError, OSError, IndexError) as exc:
        raise SourceError(f"{text}: Micro-Manager says: {' '.join(str(exc).split())}") from exc
