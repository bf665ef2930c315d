"""The server side of pycromanager's ZeroMQ bridge, with real DemoCamera frames behind it and faults to switch on.

It speaks the protocol of `org.micromanager.pyjavaz.ZMQServer` 5.1.0 as verified against the Java server, as far as an
unmodified pyjavaz needs it for `mmcorej.CMMCore`; its tags are those of MMCoreJ's `TaggedImageCreator`.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mm_test_adapters
import numpy as np
import pymmcore
import zmq

VERSION = "5.1.0"
# Java name -> (return type, argument types of each overload); the ones that take or start images are here to be refused
METHODS: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "deviceBusy": ("boolean", (("java.lang.String",),)),
    "getCameraDevice": ("java.lang.String", ((),)),
    "getExposure": ("double", ((), ("java.lang.String",))),
    "getLastTaggedImage": ("mmcorej.TaggedImage", ((), ("int",))),
    "getNumberOfCameraChannels": ("long", ((),)),
    "getPixelSizeUm": ("double", ((), ("boolean",))),
    "getTaggedImage": ("mmcorej.TaggedImage", ((), ("int",))),
    "getXPosition": ("double", ((), ("java.lang.String",))),
    "getXYStageDevice": ("java.lang.String", ((),)),
    "getYPosition": ("double", ((), ("java.lang.String",))),
    "isSequenceRunning": ("boolean", ((), ("java.lang.String",))),
    "popNextTaggedImage": ("mmcorej.TaggedImage", ((), ("int",))),
    "setExposure": ("void", (("double",), ("java.lang.String", "double"))),
    "setXYPosition": ("void", (("double", "double"), ("java.lang.String", "double", "double"))),
    "snapImage": ("void", ((),)),
    "startContinuousSequenceAcquisition": ("void", (("double",),)),
    "stopSequenceAcquisition": ("void", ((), ("java.lang.String",))),
}
GREY = {1: ("GRAY8", "byte-array"), 2: ("GRAY16", "short-array"), 4: ("GRAY32", "float-array")}


@dataclass
class Faults:
    """What goes wrong from now on; read by the server before each answer."""

    delay_s: float = 0.0
    """Before each answer."""
    exception: str = ""
    """Java stack trace instead of an image."""
    empty: bool = False
    """The image buffer has nothing."""
    colour: bool = False
    """Images say RGB32 and have four bytes a pixel."""
    missing_pixels: int = 0
    without_numbers: bool = False
    """Images carry no ImageNumber, as some cameras'."""


class BridgeServer:
    """Micro-Manager with one DemoCamera and its bridge; the tests are the user who presses Live."""

    def __init__(self, *, width: int = 64, height: int = 48, pixel_type: str = "16bit", version: str = VERSION) -> None:
        self.core = pymmcore.CMMCore()
        core = self.core
        core.setDeviceAdapterSearchPaths([mm_test_adapters.device_adapter_path()])
        for label, device in (("Camera", "DCam"), ("XY", "DXYStage"), ("Z", "DStage")):
            core.loadDevice(label, "DemoCamera", device)
            core.initializeDevice(label)
        core.setCameraDevice("Camera")
        core.setXYStageDevice("XY")
        core.setFocusDevice("Z")
        for name, value in {
            "OnCameraCCDXSize": str(width),
            "OnCameraCCDYSize": str(height),
            "Mode": "Fluorescent Beads",
            "PixelType": pixel_type,
        }.items():
            core.setProperty("Camera", name, value)
        core.definePixelSizeConfig("1x", "Camera", "Binning", "1")
        core.setPixelSizeUm("1x", 0.1)
        core.setPixelSizeConfig("1x")
        core.setExposure(5.0)
        self.version = version
        self.faults = Faults()
        self.calls: Counter[str] = Counter()
        """How often each method of the core was called through the bridge."""
        self.objects: dict[int, Any] = {}
        """Shadows that the client has not given back."""
        self.port = 0
        self._n_objects = 0
        self._context = zmq.Context()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.come_back()

    @property
    def url(self) -> str:
        return f"micromanager://127.0.0.1:{self.port}"

    def press_live(self, on: bool) -> None:
        if on:
            self.core.startContinuousSequenceAcquisition(0)
        else:
            self.core.stopSequenceAcquisition()

    def vanish(self) -> None:
        """End the server as when Micro-Manager is killed."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join(10.0)
            self._thread = None

    def come_back(self) -> None:
        """Serve at the same port as before, with none of the objects of before."""
        bound = self._context.socket(zmq.REP)
        bound.linger = 0
        bound.bind(f"tcp://127.0.0.1:{self.port or '*'}")
        self.port = int(bound.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self.objects.clear()
        self._stop.clear()
        self._thread = threading.Thread(target=self._serve, args=(bound,))
        self._thread.start()

    def close(self) -> None:
        self.vanish()
        self._context.destroy(linger=0)
        if self.core.isSequenceRunning():
            self.core.stopSequenceAcquisition()
        self.core.unloadAllDevices()

    def _serve(self, bound: zmq.Socket[bytes]) -> None:
        with bound:
            while not self._stop.is_set():
                if not bound.poll(20):
                    continue
                request = json.loads(bound.recv_multipart()[0].decode("iso-8859-1"))
                if self._stop.wait(self.faults.delay_s):
                    return
                try:
                    reply = self._reply(request)
                except Exception as exc:
                    reply = {"type": "exception", "value": f"java.lang.Exception: {exc}\n\tat mmcorej.CMMCore"}, []
                header, blobs = reply
                bound.send_multipart([json.dumps(header).encode("iso-8859-1"), *blobs])

    def _reply(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        command = request["command"]
        if command == "connect":
            return {"type": "none", "version": self.version}, []
        if command == "get-constructors":
            return {"type": "none", "api": [{"name": request["classpath"], "arguments": []}]}, []
        if command == "constructor":
            return self._shadow("mmcorej.CMMCore", self.core, api=_api()), []
        if command == "destructor":
            del self.objects[request["hash-code"]]
            return {"type": "none"}, []
        if command == "get-field":
            tags, pixels = self.objects[request["hash-code"]]
            if request["name"] == "tags":
                return {"type": "object", "class": "JSONObject", "value": json.dumps(tags)}, []
            return self._array(pixels)
        if command == "run-method":
            return self._run(request["name"], request["arguments"])
        raise ValueError(f"unknown command {command}")

    def _shadow(self, name: str, thing: Any, **parts: Any) -> dict[str, Any]:
        self._n_objects += 1
        self.objects[self._n_objects] = thing
        described: dict[str, Any] = {"interfaces": [], "fields": [], "api": [], **parts}
        return {
            "type": "unserialized-object",
            "class": name,
            "hash-code": self._n_objects,
            "port": self.port,
            **described,
        }

    def _array(self, pixels: np.ndarray) -> tuple[dict[str, Any], list[bytes]]:
        kind = {"u1": "byte-array", "u2": "short-array", "f4": "float-array"}[pixels.dtype.str[1:]]
        self._n_objects += 1
        number = np.int32(self._n_objects)
        return {"type": kind, "value": f"[B@{self._n_objects:x}"}, [number.tobytes(), pixels.tobytes()]

    def _run(self, name: str, arguments: list[Any]) -> tuple[dict[str, Any], list[bytes]]:
        self.calls[name] += 1
        if "TaggedImage" in name:
            if self.faults.exception:
                return {"type": "exception", "value": self.faults.exception}, []
            return self._shadow("mmcorej.TaggedImage", self._tagged_image(name), fields=["pix", "tags"]), []
        value = getattr(self.core, name)(*arguments)
        kind = METHODS[name][0]
        if kind == "void":
            return {"type": "null"}, []
        return {"type": "string" if kind.endswith("String") else "primitive", "value": value}, []

    def _tagged_image(self, name: str) -> tuple[dict[str, Any], np.ndarray]:
        core, metadata = self.core, pymmcore.Metadata()
        if name == "getTaggedImage":
            pixels = core.getImage()
        elif self.faults.empty:
            raise IndexError("Circular buffer is empty.")
        else:
            pixels = {"getLastTaggedImage": core.getLastImageMD, "popNextTaggedImage": core.popNextImageMD}[name](
                metadata
            )
        tags: dict[str, Any] = {key: metadata.GetSingleTag(key).GetValue() for key in metadata.GetKeys()}
        tags |= {
            "BitDepth": core.getImageBitDepth(),
            "PixelSizeUm": core.getPixelSizeUm(True),
            "ROI": "-".join(str(value) for value in core.getROI()),
            "Width": core.getImageWidth(),
            "Height": core.getImageHeight(),
            "PixelType": GREY[core.getBytesPerPixel()][0],
            "Camera-Description": "naïve @ 20 °C",
            "Channel": "Default",
            "Binning": core.getProperty("Camera", "Binning"),
        }
        if self.faults.without_numbers:
            for key in ("ImageNumber", "ElapsedTime-ms", "TimeReceivedByCore"):
                tags.pop(key, None)
        pixels = pixels.ravel()  # Java's arrays have one dimension
        if pixels.dtype.itemsize == 4:
            pixels = pixels.view(np.float32)
        if self.faults.colour:
            tags["PixelType"] = "RGB32"
            pixels = np.zeros(4 * pixels.size, np.uint8)
        return tags, pixels[: pixels.size - self.faults.missing_pixels]


def _api() -> list[dict[str, Any]]:
    return [
        {"name": name, "return-type": returned, "arguments": list(arguments)}
        for name, (returned, overloads) in METHODS.items()
        for arguments in overloads
    ]


@contextmanager
def bridge_server(*, live: bool = True, **settings: Any) -> Iterator[BridgeServer]:
    server = BridgeServer(**settings)
    try:
        if live:
            server.press_live(True)
        yield server
    finally:
        server.close()


def until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Poll until something is true; fails after `timeout_s` seconds."""
    deadline_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.005)
