"""Micro-Manager's cameras through pycromanager: what `demo:` and `mm:CONFIG.cfg` open.

The core runs in a process of its own: see `camera` for this side, `camera_process` for the other.

In latest mode the core's buffer is overwritten: when it is full the core throws all of it away without an error. Since
device interface 75 its `ImageNumber` goes on counting then, so that the loss shows as a gap in `Frame.index`; before,
it began again at 0, and the frame carries `lost_at_least`. In every mode the buffer is bounded and its end is told.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
from pathlib import Path

from oneframe.acquisition.camera import MicroManagerSource
from oneframe.acquisition.camera_wire import CameraSetup
from oneframe.acquisition.source import SourceError, SourceOptions, SourceURL

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


def open_demo(url: SourceURL) -> MicroManagerSource:
    """Open Micro-Manager's DemoCamera.

    Options: `width`, `height` (512 px); `exposure_ms` (10), which only sets the pace; `mode` (Fluorescent Beads);
    `density` (beads in a tile of 512 µm), `bead_size` (standard deviation, px) and `brightness` of the beads; `x_um`,
    `y_um`, `z_um`, where the stages go before the first frame; `buffer_mb` (256) of the core; `restart` (3), how often
    a camera that died is started again; `overflow` (stop, or restart after a loss), when every frame is wanted.

    Raises
    ------
    SourceError
        If an option is wrong, or the adapters do not fit the core.
    """
    if url.target:
        raise SourceError(f"expected demo: or demo:?key=value, got {url.text}; options begin with a question mark")
    _need_packages()
    options = url.options
    properties = _demo_properties(options)
    mode = options.text("mode", "Fluorescent Beads")
    exposure_ms = options.number("exposure_ms", 10.0, minimum=1.0, maximum=10_000.0)
    x_um, y_um, z_um = (options.number(key, 0.0, minimum=-1e5, maximum=1e5) for key in ("x_um", "y_um", "z_um"))
    buffer_mb = options.integer("buffer_mb", 256, minimum=1, maximum=65_536)
    restarts, restart_on_overflow = _persistence(options)
    options.finish()
    setup = CameraSetup(
        url=url.text,
        config=_DEMO_CONFIG,
        config_is_text=True,
        app="",
        buffer_mb=buffer_mb,
        every=url.every,
        restart_on_overflow=restart_on_overflow,
        exposure_ms=exposure_ms,
        xyz_um=(x_um, y_um, z_um),
        mode=mode,
        camera_properties=properties,
    )
    return MicroManagerSource(setup, restarts=restarts)


def open_configured(url: SourceURL) -> MicroManagerSource:
    """Open the camera of a Micro-Manager configuration file, `mm:CONFIG.cfg`.

    Options: `exposure_ms` (else as configured); `buffer_mb` (512) of the core; `app`, the Micro-Manager folder with
    the device adapters (else the environment variable MICROMANAGER_PATH, else the package mm-test-adapters); `restart`
    (3), how often a camera that died is started again; `overflow` (stop, or restart after a loss), when every frame is
    wanted.

    Raises
    ------
    SourceError
        If the file is missing or wrong, or the adapters do not fit the core.
    """
    _need_packages()
    options = url.options
    exposure_ms = options.number("exposure_ms", 0.0, maximum=1e7)
    buffer_mb = options.integer("buffer_mb", 512, minimum=1, maximum=1_048_576)
    app = options.text("app", os.environ.get("MICROMANAGER_PATH", ""))
    restarts, restart_on_overflow = _persistence(options)
    options.finish()
    config = Path(url.target).expanduser()
    if not config.is_file():
        raise SourceError(f"expected a Micro-Manager configuration file, {config} is none; check the path")
    setup = CameraSetup(
        url=url.text,
        config=str(config.resolve()),
        config_is_text=False,
        app=str(Path(app).expanduser().resolve()) if app else "",
        buffer_mb=buffer_mb,
        every=url.every,
        restart_on_overflow=restart_on_overflow,
        exposure_ms=exposure_ms or None,
    )
    return MicroManagerSource(setup, restarts=restarts)


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


def _persistence(options: SourceOptions) -> tuple[int, bool]:
    """Take the options of both kinds that say when to go on."""
    restarts = options.integer("restart", 3, maximum=1000)
    overflow = options.text("overflow", "stop")
    if overflow not in ("stop", "restart"):
        raise SourceError(f"{options.url}: overflow must be stop or restart, got {overflow!r}")
    return restarts, overflow == "restart"


def _need_packages() -> None:
    """Miss them here, where the sentence names the install line, not in the child."""
    for name in ("pycromanager", "pymmcore", "mm_test_adapters"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _demo_properties(options: SourceOptions) -> dict[str, str]:
    """DemoCamera's own names and ranges."""
    return {
        "OnCameraCCDXSize": str(options.integer("width", 512, minimum=16, maximum=8192)),
        "OnCameraCCDYSize": str(options.integer("height", 512, minimum=16, maximum=8192)),
        "BeadDensity": str(options.integer("density", 100, minimum=10, maximum=500)),
        "BeadSize": str(options.number("bead_size", 2.0, minimum=1.0, maximum=10.0)),
        "BeadBrightness": str(options.number("brightness", 1.0, minimum=0.125, maximum=8.0)),
    }


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
