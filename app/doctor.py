"""`oneframe doctor`: what works on this machine, what is missing, and the exact line that mends it."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from oneframe.app.console import CommandError, Console


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: Literal["ok", "missing", "fail"]
    """missing: an extra that is not installed, no harm; fail: something needed is broken."""
    detail: str
    mend: str = ""
    """The line that mends it."""


def doctor(_arguments: argparse.Namespace, console: Console) -> None:
    """Look at everything oneframe uses; nothing heavy is imported."""
    findings = list(examine())
    for finding in findings:
        mark = {"ok": "ok     ", "missing": "missing", "fail": "FAIL   "}[finding.state]
        mend = f"\n          mend: {finding.mend}" if finding.mend else ""
        console.say(f"{mark}  {finding.what}: {finding.detail}{mend}", event="finding", **asdict(finding))
    broken = [finding.what for finding in findings if finding.state == "fail"]
    if broken:
        raise CommandError(f"{', '.join(broken)} must be mended before oneframe works here, see above")
    console.say("everything that is installed works; next: oneframe demo", event="done", ok=True)


def examine() -> Iterator[Finding]:
    """Yield one finding after the other."""
    yield Finding("Python", "ok", f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} CPU cores")
    yield from _runtime()
    yield _extra("train", ("torch", "onnx", "onnxscript"), "training and exporting models")
    yield _extra("view", ("pyqtgraph", "PySide6-Essentials"), "the live view")
    yield _extra("mm", ("pycromanager", "pymmcore", "mm-test-adapters"), "Micro-Manager cameras and demo:")
    yield _extra("files", ("zarr", "imagecodecs", "h5py"), "OME-Zarr, compressed TIFF, Picasso HDF5")
    yield _extra("openvino", ("openvino",), "second engine for oneframe bench to try")
    yield from _qt()
    yield from _micro_manager()
    yield _one_cv2()
    yield _video()
    yield _loopback()
    yield _encrypted()
    yield _disk()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _runtime() -> Iterator[Finding]:
    needed = ("numpy", "scipy", "onnxruntime", "opencv-python-headless", "pyzmq", "tifffile")
    versions = {name: _version(name) for name in needed}
    if versions["opencv-python-headless"] is None and importlib.util.find_spec("cv2"):
        versions["opencv-python-headless"] = "as another package"
    absent = [name for name, version in versions.items() if version is None]
    detail = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    if absent:
        yield Finding("runtime", "fail", f"{', '.join(absent)} not installed", f"pip install {' '.join(absent)}")
    else:
        yield Finding("runtime", "ok", detail)


def _extra(name: str, distributions: tuple[str, ...], purpose: str) -> Finding:
    versions = {distribution: _version(distribution) for distribution in distributions}
    absent = [distribution for distribution, version in versions.items() if version is None]
    if absent:
        detail = f"{', '.join(absent)} not installed: no {purpose}"
        return Finding(f"extra [{name}]", "missing", detail, f"pip install 'oneframe[{name}]'")
    return Finding(f"extra [{name}]", "ok", ", ".join(f"{key} {value}" for key, value in versions.items()))


def _qt() -> Iterator[Finding]:
    version = _version("PySide6-Essentials")
    if version is None:
        return
    if version.startswith("6.12.0") and sys.version_info < (3, 12):
        yield Finding(
            "PySide6", "fail", "6.12.0 aborts Python 3.11 within seconds", "pip install 'PySide6-Essentials>=6.8,<6.12'"
        )
    if sys.platform == "linux":
        needed = {
            "libGL.so.1": "libgl1",
            "libEGL.so.1": "libegl1",
            "libxkbcommon.so.0": "libxkbcommon0",
            "libdbus-1.so.3": "libdbus-1-3",
            "libfontconfig.so.1": "libfontconfig1",
            "libglib-2.0.so.0": "libglib2.0-0",
        }
        absent = [package for library, package in needed.items() if not _loads(library)]
        if absent:
            mend = f"apt-get install -y --no-install-recommends {' '.join(absent)}"
            yield Finding("Qt libraries", "fail", f"{', '.join(absent)} not installed", mend)
        has_display = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
        platform_name = os.environ.get("QT_QPA_PLATFORM")
        if has_display or platform_name:
            yield Finding("display", "ok", platform_name or "an X or Wayland display")
        else:
            yield Finding("display", "missing", "no display here: log works, live needs one", "export DISPLAY=:0")


def _loads(library: str) -> bool:
    import ctypes

    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _micro_manager() -> Iterator[Finding]:
    if _version("pymmcore") is not None and _version("mm-test-adapters") is not None:
        from oneframe.acquisition.micromanager import check_device_interface

        trouble = check_device_interface()
        if trouble is None:
            yield Finding("device interface", "ok", "pymmcore and the device adapters match")
            yield _camera()
        else:
            yield Finding("device interface", "fail", trouble)
    with socket.socket() as probe:
        probe.settimeout(0.1)
        running = probe.connect_ex(("127.0.0.1", 4827)) == 0
    if running:
        yield Finding("Micro-Manager", "ok", "its ZeroMQ server answers at port 4827")
    else:
        detail = "no server at port 4827 (needed only for a running Micro-Manager)"
        yield Finding(
            "Micro-Manager", "missing", detail, "in Micro-Manager tick Tools > Options > Run server on port 4827"
        )


def _camera() -> Finding:
    """Take one frame of Micro-Manager's DemoCamera, the way `live` and `log` take theirs."""
    from oneframe.acquisition import SourceError, open_source, snap

    start_s = time.perf_counter()
    try:
        with closing(open_source("demo:?width=64&height=64")) as source:
            frame = snap(source, timeout_s=20.0)
    except SourceError as exc:
        return Finding("DemoCamera", "fail", str(exc), "pip install --force-reinstall 'oneframe[mm]'")
    seconds = time.perf_counter() - start_s
    return Finding("DemoCamera", "ok", f"a frame of {frame.width} x {frame.height} px came after {seconds:.1f} s")


def _video() -> Finding:
    import cv2

    reads = "FFMPEG" in (cv2.videoio_registry.getBackendName(each) for each in cv2.videoio_registry.getBackends())
    if reads:
        return Finding("videos", "ok", "MP4 and AVI through OpenCV's FFmpeg")
    return Finding("videos", "missing", "this OpenCV has no FFmpeg", "pip install opencv-python-headless")


def _one_cv2() -> Finding:
    wheels = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
    installed = [name for name in wheels if _version(name) is not None]
    if len(installed) > 1:
        mend = f"pip uninstall -y {' '.join(installed)} && pip install opencv-python-headless"
        return Finding("cv2", "fail", f"{' and '.join(installed)} overwrite one another", mend)
    return Finding("cv2", "ok", installed[0] if installed else "present")


def _loopback() -> Finding:
    """Send one message through a real ZeroMQ socket."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.PAIR) as here, context.socket(zmq.PAIR) as there:
        try:
            port = here.bind_to_random_port("tcp://127.0.0.1")
            there.connect(f"tcp://127.0.0.1:{port}")
            here.send(b"oneframe")
            arrived = bool(there.poll(2000))
        except zmq.ZMQError as exc:
            return Finding("ZeroMQ", "fail", f"loopback does not work: {exc}", "allow Python in the firewall")
    if not arrived:
        return Finding("ZeroMQ", "fail", "a message over loopback did not arrive", "allow Python in the firewall")
    return Finding("ZeroMQ", "ok", f"loopback works, libzmq {zmq.zmq_version()}, CurveZMQ {zmq.has('curve')}")


def _encrypted() -> Finding:
    """Send one frame through an encrypted stream with keys of its own."""
    import numpy as np

    from oneframe.acquisition import Frame, SourceError, SourceInfo, open_source
    from oneframe.acquisition.keys import ALLOWED, CLIENT_SECRET, SERVER_PUBLIC, SERVER_SECRET, create_keys
    from oneframe.acquisition.publisher import Publisher

    try:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "keys"
            client = create_keys(folder, ["doctor"]).clients[0]
            with closing(
                Publisher("tcp://127.0.0.1:0", server_keys=folder / SERVER_SECRET, allowed_clients=folder / ALLOWED)
            ) as publisher:
                keys = f"server_key={client / SERVER_PUBLIC}&client_key={client / CLIENT_SECRET}"
                with closing(open_source(f"zmq+{publisher.address}?{keys}&timeout_s=5")) as source:
                    source.read(0.0)
                    publisher.wait_for_subscriber(5.0)
                    publisher.start(SourceInfo("doctor", live=True))
                    publisher.send(Frame(np.ones((8, 8), np.uint16), 0, time.time()))
                    arrived = source.read(5.0) is not None
    except (SourceError, OSError) as exc:
        return Finding("encrypted stream", "fail", str(exc), "pip install --force-reinstall pyzmq")
    if not arrived:
        return Finding("encrypted stream", "fail", "no frame came through", "pip install --force-reinstall pyzmq")
    return Finding("encrypted stream", "ok", "a frame came through CurveZMQ")


def _disk() -> Finding:
    """Write 32 MB where a run would be written by default."""
    folder = Path.cwd()
    free_gb = shutil.disk_usage(folder).free / 1e9
    block = os.urandom(2**20)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            start_s = time.perf_counter()
            for _ in range(32):
                file.write(block)
            file.flush()
            rate_mb = 32 / (time.perf_counter() - start_s)
    except OSError as exc:
        return Finding("disk", "fail", f"cannot write to {folder}: {exc}", "change to a folder you may write to")
    if free_gb < 1:
        return Finding("disk", "fail", f"{free_gb:.1f} GB free in {folder}", "free some space or use another disk")
    return Finding("disk", "ok", f"{rate_mb:.0f} MB/s, {free_gb:.0f} GB free in {folder}")
