"""Frames of a Micro-Manager core in this process, through pycromanager's Python backend.

The camera runs in overwrite mode: when the core's buffer is full the core throws all of it away without an error.
Since device interface 75 its `ImageNumber` goes on counting then, so that the loss shows as a gap in `Frame.index`;
before, it began again at 0, which is noted in the metadata of the next frame as `counter_restarted`: an unknown number
of frames was lost before it.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from oneframe.acquisition.frame import Frame
from oneframe.acquisition.source import (
    BadFrameError,
    EndOfStream,
    SourceError,
    SourceInfo,
    SourceOptions,
    SourceURL,
)

_POLL_S = 0.001
_LONGEST_WAIT_S = 1800.0
"""An image that seems to have waited longer in the core has another clock (summer time) than this process."""

# 1 px = 1 µm is how DemoCamera draws its beads; the stages must be called XY and Z, it looks for them by these names
_DEMO_CONFIG = """\
Property,Core,Initialize,0
Device,Camera,DemoCamera,DCam
Device,XY,DemoCamera,DXYStage
Device,Z,DemoCamera,DStage
Device,Shutter,DemoCamera,DShutter
Property,Core,Initialize,1
Property,Core,Camera,Camera
Property,Core,Focus,Z
Property,Core,XYStage,XY
Property,Core,Shutter,Shutter
Property,Core,AutoShutter,0
Property,Camera,PixelType,16bit
Property,Camera,BitDepth,16
ConfigPixelSize,1x,Camera,Binning,1
PixelSize_um,1x,1.0
"""

# one core at a time: pycromanager hands out the first that was started, and stops all of them together
_loading = threading.Lock()


def open_demo(url: SourceURL) -> MicroManagerSource:
    """Open Micro-Manager's DemoCamera.

    Options: `width`, `height` (512 px); `exposure_ms` (10), which only sets the pace; `mode` (Fluorescent Beads);
    `density` (beads in a tile of 512 µm), `bead_size` (standard deviation, px) and `brightness` of the beads; `x_um`,
    `y_um`, `z_um`, where the stages go before the first frame; `buffer_mb` (256) of the core.

    Raises
    ------
    SourceError
        If an option is wrong, the adapters do not fit the core, or a core is open in this process already.
    """
    if url.target:
        raise SourceError(f"expected demo: or demo:?key=value, got {url.text}; options begin with a question mark")
    options = url.options
    properties = _demo_properties(options)
    mode = options.text("mode", "Fluorescent Beads")
    exposure_ms = options.number("exposure_ms", 10.0, minimum=1.0, maximum=10_000.0)
    x_um, y_um, z_um = (options.number(key, 0.0, minimum=-1e5, maximum=1e5) for key in ("x_um", "y_um", "z_um"))
    buffer_mb = options.integer("buffer_mb", 256, minimum=1, maximum=65_536)
    options.finish()

    def prepare(core: Any) -> None:
        core.set_exposure(exposure_ms)
        core.set_xy_position(x_um, y_um)
        core.set_position(z_um)
        core.wait_for_device("XY")
        core.wait_for_device("Z")

    with _text_file(_DEMO_CONFIG) as config:
        core = _load_core(url.text, config, app=None, buffer_mb=buffer_mb)
    try:
        properties["Mode"] = _known_mode(url.text, mode, core.get_allowed_property_values("Camera", "Mode"))
        with _explained(url.text):
            for name, value in properties.items():
                core.set_property("Camera", name, value)
        return MicroManagerSource(url.text, core, prepare)
    except Exception:
        _unload_core()
        raise


def open_configured(url: SourceURL) -> MicroManagerSource:
    """Open the camera of a Micro-Manager configuration file, `mm:CONFIG.cfg`.

    Options: `exposure_ms` (else as configured); `buffer_mb` (512) of the core; `app`, the Micro-Manager folder with
    the device adapters (else the environment variable MICROMANAGER_PATH, else the package mm-test-adapters).

    Raises
    ------
    SourceError
        If the file is missing or wrong, the adapters do not fit the core, or a core is open in this process already.
    """
    options = url.options
    exposure_ms = options.number("exposure_ms", 0.0, maximum=1e7)
    buffer_mb = options.integer("buffer_mb", 512, minimum=1, maximum=1_048_576)
    app = options.text("app", os.environ.get("MICROMANAGER_PATH", ""))
    options.finish()
    config = Path(url.target).expanduser()
    if not config.is_file():
        raise SourceError(f"expected a Micro-Manager configuration file, {config} is none; check the path")

    def prepare(core: Any) -> None:
        if exposure_ms:
            core.set_exposure(exposure_ms)

    core = _load_core(url.text, config, app=Path(app).expanduser() if app else None, buffer_mb=buffer_mb)
    try:
        return MicroManagerSource(url.text, core, prepare)
    except Exception:
        _unload_core()
        raise


def check_device_interface(app: Path | None = None) -> str | None:
    """Compare the device interface of pymmcore with that of the adapters; a mismatch loads nothing and says no reason.

    Parameters
    ----------
    app : Path, optional
        Micro-Manager folder; the package mm-test-adapters if None.

    Returns
    -------
    str or None
        What does not fit and which package to change; None if they fit, or if the folder does not tell.
    """
    import pymmcore

    told = re.search(r"Device API version (\d+)", pymmcore.CMMCore().getAPIVersionInfo())
    core_interface = int(told[1]) if told else None
    if app is None:
        import mm_test_adapters

        version = mm_test_adapters.__version__
        adapters, where = _leading_number(version), f"mm-test-adapters {version}"
        advice = f"run: pip install 'mm-test-adapters=={core_interface}.*'"
    else:
        adapters, where = _folder_interface(app), f"the Micro-Manager in {app}"
        advice = f"install the pymmcore whose fourth number is {adapters} (pip index versions pymmcore)"
    if None in (core_interface, adapters) or core_interface == adapters:
        return None
    return f"pymmcore {pymmcore.__version__} has device interface {core_interface}, {where} has {adapters}; {advice}"


class MicroManagerSource:
    """The camera of a Micro-Manager core, and its stage; made by `open_demo` and `open_configured`."""

    def __init__(self, text: str, core: Any, prepare: Callable[[Any], None]) -> None:
        self._core: Any = core
        self._prepare: Callable[[Any], None] | None = prepare
        self._running = False
        self._last_number = -1
        self._offset = 0
        self._settings: dict[str, Any] = {}
        with _explained(text):
            if not core.get_camera_device():
                raise SourceError(f"{text}: the configuration names no camera; set the Core role Camera in it")
            pixel_size_um = core.get_pixel_size_um() or None
        self._info = SourceInfo(text, live=True, pixel_size_um=pixel_size_um)
        atexit.register(self.close)  # else the core fails to unload a running camera when Python exits

    @property
    def info(self) -> SourceInfo:
        """Pixel size as configured."""
        return self._info

    def read(self, timeout_s: float) -> Frame | None:
        """Return the next image of the core's buffer; the first call starts the camera.

        Raises
        ------
        EndOfStream
            When closed.
        BadFrameError
            If the image is not grey.
        SourceError
            If the camera cannot start, gives colours or several channels, or stopped.
        """
        core = self._open_core()
        with _explained(self._info.url):
            if not self._running:
                self._start()
            if not self._wait_for_image(timeout_s):
                return None
            image = core.pop_next_tagged_image()
        return self._frame(image.pix, image.tags)

    def close(self) -> None:
        """Stop the camera and unload the core."""
        if self._core is None:
            return
        core, self._core = self._core, None
        atexit.unregister(self.close)
        with _explained(self._info.url):
            try:
                if core.is_sequence_running():
                    core.stop_sequence_acquisition()
            finally:
                _unload_core()

    def move_xy_um(self, x_um: float, y_um: float) -> None:
        """Move the stage to an absolute position and wait until it is there.

        Frames that were taken before are still in the buffer: compare `Frame.time_s`.
        """
        core = self._open_core()
        with _explained(self._info.url):
            self._prepare_once()
            stage = self._stage()
            core.set_xy_position(stage, x_um, y_um)
            core.wait_for_device(stage)

    def stage_xy_um(self) -> tuple[float, float]:
        """Return where the stage is, (x, y) in micrometres."""
        core = self._open_core()
        with _explained(self._info.url):
            x_um, y_um = core.get_xy_position(self._stage())
        return float(x_um), float(y_um)

    def _open_core(self) -> Any:
        if self._core is None:
            raise EndOfStream(f"{self._info.url} was closed")
        return self._core

    def _stage(self) -> str:
        stage = str(self._core.get_xy_stage_device())
        if not stage:
            raise SourceError(f"{self._info.url}: the configuration names no XY stage; set the Core role XYStage in it")
        return stage

    def _prepare_once(self) -> None:
        if self._prepare is not None:
            self._prepare(self._core)
            self._prepare = None

    def _start(self) -> None:
        core = self._core
        self._prepare_once()
        if core.get_number_of_components() != 1 or core.get_number_of_camera_channels() > 1:
            raise SourceError(
                f"{self._info.url}: expected one grey image a frame, got {core.get_number_of_camera_channels()} camera "
                f"channels of {core.get_number_of_components()} components; choose one camera and a grey pixel type"
            )
        core.start_continuous_sequence_acquisition(0)
        self._running = True
        self._settings = {
            "camera": core.get_camera_device(),
            "exposure_ms": core.get_exposure(),
            "bit_depth": core.get_image_bit_depth(),
        }

    def _wait_for_image(self, timeout_s: float) -> bool:
        core = self._core
        deadline_s = time.monotonic() + timeout_s
        while core.get_remaining_image_count() == 0:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                if not core.is_sequence_running() and core.get_remaining_image_count() == 0:
                    raise SourceError(f"{self._info.url}: the camera stopped by itself; check it and start again")
                return False
            time.sleep(min(_POLL_S, left_s))
        return True

    def _frame(self, pixels: Any, tags: Mapping[str, str]) -> Frame:
        number = int(tags.get("ImageNumber", self._last_number + 1))
        metadata = {**self._settings, **_metadata(tags)}
        if number <= self._last_number:
            self._offset += self._last_number + 1
            metadata["counter_restarted"] = True
        self._last_number = number
        index = self._offset + number
        kind = tags.get("PixelType", "")
        if kind == "GRAY32":  # the core hands over the bits of float32
            pixels = pixels.view(np.float32)
        elif kind not in ("GRAY8", "GRAY16"):
            raise BadFrameError(f"expected grey pixels, the camera sent {kind}; choose a grey pixel type", index=index)
        return Frame(pixels, index, _taken_s(tags), self._info.pixel_size_um, metadata)


def _metadata(tags: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "ElapsedTime-ms" in tags:
        found["elapsed_ms"] = float(tags["ElapsedTime-ms"])
    if "Binning" in tags:
        found["binning"] = tags["Binning"]
    roi = [tags.get(key) for key in ("ROI-X-start", "ROI-Y-start", "Width", "Height")]
    if None not in roi:
        found["roi_xywh_px"] = [int(value) for value in roi if value is not None]
    return found


def _taken_s(tags: Mapping[str, str]) -> float:
    """When the core received the image, as local time in its tag; now, if the tag is missing or absurd."""
    now_s = time.time()
    try:
        received_s = datetime.fromisoformat(tags["TimeReceivedByCore"]).timestamp()
    except (KeyError, ValueError):
        return now_s
    return min(received_s, now_s) if abs(now_s - received_s) < _LONGEST_WAIT_S else now_s


def _demo_properties(options: SourceOptions) -> dict[str, str]:
    """DemoCamera's own names and ranges."""
    return {
        "OnCameraCCDXSize": str(options.integer("width", 512, minimum=16, maximum=8192)),
        "OnCameraCCDYSize": str(options.integer("height", 512, minimum=16, maximum=8192)),
        "BeadDensity": str(options.integer("density", 100, minimum=10, maximum=500)),
        "BeadSize": str(options.number("bead_size", 2.0, minimum=1.0, maximum=10.0)),
        "BeadBrightness": str(options.number("brightness", 1.0, minimum=0.125, maximum=8.0)),
    }


def _known_mode(text: str, mode: str, known: tuple[str, ...]) -> str:
    for name in known:
        if name.lower() == mode.lower():
            return name
    raise SourceError(f"{text}: mode must be one of {', '.join(known)}, got {mode!r}")


def _load_core(text: str, config: Path, *, app: Path | None, buffer_mb: int) -> Any:
    import mm_test_adapters
    import mmpycorex
    import pycromanager

    with _loading:
        if mmpycorex.is_pymmcore_active():
            raise SourceError(f"cannot open {text}: a Micro-Manager core is open in this process; close that one first")
        mismatch = check_device_interface(app)
        if mismatch is not None:
            raise SourceError(mismatch)
        if app is None:
            folder = mm_test_adapters.device_adapter_path()
        else:
            folder = str(app)
            _let_windows_find(folder)
        with _explained(text):
            pycromanager.start_headless(
                mm_app_path=folder, config_file=str(config.resolve()), python_backend=True, buffer_size_mb=buffer_mb
            )
        return pycromanager.Core()


def _unload_core() -> None:
    import pycromanager

    pycromanager.stop_headless()


def _let_windows_find(folder: str) -> None:
    """Adapters load the libraries of camera makers from the same folder, which Windows looks up in PATH."""
    if folder not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.environ.get("PATH", "") + os.pathsep + folder


def _folder_interface(app: Path) -> int | None:
    """Device interface of a Micro-Manager folder, asked of its DemoCamera adapter."""
    name = {"win32": "mmgr_dal_DemoCamera.dll", "darwin": "libmmgr_dal_DemoCamera"}.get(
        sys.platform, "libmmgr_dal_DemoCamera.so.0"
    )
    if not app.is_dir():
        raise SourceError(f"expected the folder of Micro-Manager, {app} is none; set app= or MICROMANAGER_PATH")
    try:
        ask = ctypes.CDLL(str(app / name)).GetDeviceInterfaceVersion
    except (OSError, AttributeError):
        return None
    ask.restype = ctypes.c_long
    return int(ask())


def _leading_number(version: str) -> int | None:
    match = re.match(r"\d+", version)
    return int(match[0]) if match else None


@contextmanager
def _explained(text: str) -> Iterator[None]:
    """Turn what the core raises into one sentence."""
    try:
        yield
    except MemoryError as exc:
        raise SourceError(f"{text}: the core's buffer is too small for the images; raise buffer_mb=") from exc
    except (RuntimeError, OSError, IndexError) as exc:
        raise SourceError(f"{text}: Micro-Manager says: {' '.join(str(exc).split())}") from exc


@contextmanager
def _text_file(text: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="oneframe-") as folder:
        path = Path(folder) / "demo.cfg"
        path.write_text(text, encoding="ascii")
        yield path
