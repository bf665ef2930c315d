"""The process that owns a Micro-Manager core: `python -m oneframe.acquisition.camera_process`, see `micromanager`.

One thread owns the core: it pops images with their metadata and carries out commands between two of them. Another waits
for the parent's lines and ends the process if the parent is gone and the core does not let go.

Latest mode: the core is always drained and the newest image waits for the parent's next wish. Every mode: an image is
popped only when the parent has room for it, so that a slow parent fills the core's own bounded buffer and nothing else.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

from oneframe.acquisition.camera_core import GREY, Camera, Image, explained
from oneframe.acquisition.camera_wire import CameraSetup, write_message
from oneframe.acquisition.micromanager import check_device_interface
from oneframe.acquisition.source import SourceError

_POLL_S = 0.001
_LONGEST_MOVE_S = 8.0
_UNLOAD_S = 8.0
_Inbox = queue.SimpleQueue[dict[str, Any]]


class _ParentGoneError(Exception):
    """Nobody reads the pipe any more."""


class Commander:
    """The loop of the thread that owns the core: commands first, then images."""

    def __init__(self, core: Any, setup: CameraSetup, pipe: IO[bytes], inbox: _Inbox) -> None:
        self._core = core
        self._setup = setup
        self._pipe = pipe
        self._inbox = inbox
        self._camera = Camera(core, setup)
        self._room = 0  # images that the parent is ready to take
        self._newest: Image | None = None
        self._moving: list[tuple[int, str, float]] = []  # id of the command, stage, deadline
        self._changes: list[tuple[int, Callable[[], None]]] = []  # what waits for the camera to stand still
        self._resume = False

    def run(self) -> None:
        """Go on until the parent says so or is gone."""
        self._tell({"kind": "ready", "pixel_size_um": self._core.get_pixel_size_um() or None})
        while True:
            advanced = self._advance()
            try:
                message = self._inbox.get(timeout=0.0 if advanced else self._wait_s())
            except queue.Empty:
                continue
            if message["do"] == "end":
                return
            self._obey(message)

    def _wait_s(self) -> float | None:
        """Return how long nothing can happen but a message."""
        if self._moving:
            return _POLL_S
        if not self._camera.running or (self._setup.every and self._room == 0):
            return None
        return _POLL_S

    def _advance(self) -> bool:
        """Hand on images and finish what has waited; return whether there may be more at once."""
        self._answer_arrived()
        popped = self._pop_next() if self._setup.every else self._pop_newest()
        if self._core.get_remaining_image_count() > 0:
            return popped
        if self._changes:
            self._change()
        elif self._camera.running and not self._core.is_sequence_running():
            if self._core.get_remaining_image_count() > 0:  # came in between
                return True
            self._sequence_ended()
        return popped

    def _pop_newest(self) -> bool:
        n_waiting = int(self._core.get_remaining_image_count())
        for _ in range(n_waiting):
            self._newest = self._camera.pop() or self._newest
        self._send_newest()
        return n_waiting > 0

    def _pop_next(self) -> bool:
        if self._room == 0 or self._core.get_remaining_image_count() == 0:
            return False
        image = self._camera.pop()
        if image is not None:
            self._send(image)
        return image is not None

    def _send_newest(self) -> None:
        if self._newest is not None and self._room > 0:
            self._send(self._newest)
            self._newest = None

    def _send(self, image: Image) -> None:
        self._room -= 1
        kind = image.metadata["pixel_type"]
        if kind not in GREY:
            reason = f"expected grey pixels, the camera sent {kind}; choose a grey pixel type"
            self._tell({"kind": "bad", "index": image.index, "reason": reason})
            return
        header = {
            "kind": "frame",
            "index": image.index,
            "time_s": image.time_s,
            "metadata": {**image.metadata, **self._camera.take_notes()},
            "waiting": self._core.get_remaining_image_count(),
        }
        self._tell(header, image.pixels)

    def _tell(self, header: Mapping[str, Any], pixels: NDArray[Any] | None = None) -> None:
        try:
            write_message(self._pipe, header, pixels)
        except OSError as exc:
            raise _ParentGoneError from exc

    def _sequence_ended(self) -> None:
        if not (self._setup.every and self._core.is_buffer_overflowed()):
            raise SourceError(f"{self._setup.url}: the camera stopped by itself")
        self._overflowed()

    def _overflowed(self) -> None:
        self._camera.running = False
        if self._setup.restart_on_overflow:
            self._camera.start(after_overflow=True)
        else:
            self._tell({"kind": "overflow", "capacity": self._core.get_buffer_total_capacity()})

    def _obey(self, message: Mapping[str, Any]) -> None:
        do = message["do"]
        if do == "start":
            self._camera.start()
        elif do == "room":
            self._room += message["n"]
        else:
            self._command(message["id"], do, message["arguments"])

    def _command(self, number: int, do: str, arguments: list[Any]) -> None:
        with self._answering(number):
            if do == "stage_xy_um":
                self._answer(number, list(self._core.get_xy_position(self._stage())))
                return
            self._camera.prepare()
            if do == "move_xy_um":
                stage = self._stage()
                self._core.set_xy_position(stage, *arguments)
                self._moving.append((number, stage, time.monotonic() + _LONGEST_MOVE_S))
            elif do == "set_roi_xywh_px":
                # it empties the core's buffer, so never while images wait there
                self._change_standing(number, lambda: self._core.set_roi(*arguments))
            elif do == "set_exposure_ms":
                self._change_running(number, lambda: self._core.set_exposure(*arguments))
            else:
                self._change_running(number, lambda: self._core.set_property(*arguments))

    def _change_running(self, number: int, change: Callable[[], None]) -> None:
        """Change a setting at once if the camera takes it while it runs, else between two sequences."""
        try:
            if not self._changes:
                change()
                self._camera.settings_changed()
                self._answer(number)
                return
        except RuntimeError:
            if not self._camera.running:
                raise
        self._change_standing(number, change)

    def _change_standing(self, number: int, change: Callable[[], None]) -> None:
        """Stop the camera; the change is made when the images that wait in the core were handed on."""
        self._changes.append((number, change))
        if self._camera.running:
            self._resume = True
            self._camera.stop()

    def _change(self) -> None:
        overflowed = self._setup.every and self._core.is_buffer_overflowed()
        for number, change in self._changes:
            with self._answering(number):
                change()
                self._answer(number)
        self._changes.clear()
        if self._resume:
            self._resume = False
            if overflowed:
                self._overflowed()
            else:
                self._camera.start()

    def _answer_arrived(self) -> None:
        """Answer the moves whose stage has arrived; images are popped meanwhile."""
        for moving in list(self._moving):
            number, stage, deadline_s = moving
            with self._answering(number):
                if self._core.device_busy(stage):
                    if time.monotonic() < deadline_s:
                        continue
                    raise SourceError(f"{self._setup.url}: the stage {stage} still moves after {_LONGEST_MOVE_S:g} s")
                self._answer(number)
            self._moving.remove(moving)

    def _stage(self) -> str:
        stage = str(self._core.get_xy_stage_device())
        if not stage:
            raise SourceError(
                f"{self._setup.url}: the configuration names no XY stage; set the Core role XYStage in it"
            )
        return stage

    def _answer(self, number: int, value: Any = None) -> None:
        self._tell({"kind": "answer", "id": number, "value": value})

    @contextmanager
    def _answering(self, number: int) -> Iterator[None]:
        """Answer a command that fails with the reason."""
        try:
            with explained(self._setup.url):
                yield
        except SourceError as exc:
            self._tell({"kind": "answer", "id": number, "error": str(exc)})


def _load_core(setup: CameraSetup, config: Path) -> Any:
    import mm_test_adapters
    import pycromanager

    mismatch = check_device_interface(Path(setup.app) if setup.app else None)
    if mismatch is not None:
        raise SourceError(mismatch)
    if setup.app:
        folder = setup.app
        _let_windows_find(folder)
    else:
        folder = mm_test_adapters.device_adapter_path()
    with explained(setup.url):
        pycromanager.start_headless(
            mm_app_path=folder, config_file=str(config), python_backend=True, buffer_size_mb=setup.buffer_mb
        )
        core = pycromanager.Core()
        if not core.get_camera_device():
            raise SourceError(f"{setup.url}: the configuration names no camera; set the Core role Camera in it")
        properties = dict(setup.camera_properties)
        if setup.mode:
            known = core.get_allowed_property_values("Camera", "Mode")
            properties["Mode"] = _known_mode(setup.url, setup.mode, known)
        for name, value in properties.items():
            core.set_property("Camera", name, value)
    return core


def _known_mode(text: str, mode: str, known: tuple[str, ...]) -> str:
    for name in known:
        if name.lower() == mode.lower():
            return name
    raise SourceError(f"{text}: mode must be one of {', '.join(known)}, got {mode!r}")


def _let_windows_find(folder: str) -> None:
    """Adapters load the libraries of camera makers from the same folder, which Windows looks up in PATH."""
    if folder not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.environ.get("PATH", "") + os.pathsep + folder


@contextmanager
def _config_file(setup: CameraSetup) -> Iterator[Path]:
    if not setup.config_is_text:
        yield Path(setup.config)
        return
    with tempfile.TemporaryDirectory(prefix="oneframe-") as folder:
        path = Path(folder) / "demo.cfg"
        path.write_text(setup.config, encoding="ascii")
        yield path


def _private_output() -> IO[bytes]:
    """Keep the pipe to the parent for messages: what an adapter prints goes to the standard error instead."""
    pipe = open(os.dup(1), "wb", buffering=0)  # noqa: SIM115 - open as long as the process
    os.dup2(2, 1)
    return pipe


def _listen(inbox: _Inbox) -> None:
    """Pass on the parent's lines until it closes the pipe or dies."""
    for text in sys.stdin.buffer:
        inbox.put(json.loads(text))
    inbox.put({"do": "end"})
    time.sleep(_UNLOAD_S)  # for the core to let go of its devices
    os._exit(1)


def _serve(setup: CameraSetup, pipe: IO[bytes], inbox: _Inbox) -> None:
    with _config_file(setup) as config:
        core = _load_core(setup, config)
    try:
        with explained(setup.url):
            Commander(core, setup, pipe, inbox).run()
    except SourceError as exc:  # told before the camera is asked once more, which may take its time
        write_message(pipe, {"kind": "failed", "text": str(exc)})
    finally:
        _unload(core)


def _unload(core: Any) -> None:
    import pycromanager

    with suppress(RuntimeError):  # a camera that broke
        if core.is_sequence_running():  # the core does not let go of it then
            core.stop_sequence_acquisition()
    with suppress(RuntimeError):
        pycromanager.stop_headless()


def main() -> None:
    """Open the camera that the first line names, and serve the parent until it is gone."""
    pipe = _private_output()
    first = sys.stdin.buffer.readline()
    if not first:
        return
    inbox: _Inbox = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(inbox,), daemon=True).start()
    with suppress(_ParentGoneError, BrokenPipeError):
        try:
            _serve(CameraSetup.from_line(first), pipe, inbox)
        except SourceError as exc:
            write_message(pipe, {"kind": "failed", "text": str(exc)})


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # adapters that were unloaded may still crash in what they do at the end of a process
