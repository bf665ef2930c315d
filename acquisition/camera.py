"""The parent's side of a Micro-Manager camera: `MicroManagerSource` and the child process that owns the core.

A device adapter that crashes takes its process with it, so the core runs in a child (`camera_process`): this process
sees the child end, says how, and starts it again. Several cameras may be open at once, each in its own child.
"""

from __future__ import annotations

import atexit
import io
import itertools
import logging
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import IO, Any

from oneframe.acquisition.camera_wire import BrokenMessageError, CameraSetup, line, read_message
from oneframe.acquisition.frame import Frame
from oneframe.acquisition.source import BadFrameError, EndOfStream, SourceError, SourceInfo

logger = logging.getLogger(__name__)

_ROOM = 4  # frames on their way to the reader in every mode; the others wait in the core
_QUICK_S = 1e-3
"""A reader that is back so soon gets the next frame sent ahead: it would not grow old waiting for it."""
_PIPE_BYTES = 1 << 20
_LOAD_S = 180.0  # a microscope of many serial devices takes its time
_ANSWER_S = 10.0
_STOP_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 30.0
_STEADY_S = 60.0
"""A camera that gave frames for so long after it was started again has its `restart=` times again."""


class MicroManagerSource:
    """The camera of a Micro-Manager core in a child process, and its stage; made by `open_demo` and `open_configured`.

    One thread calls `read`. The stage and the settings may be used by any thread meanwhile: the child carries commands
    out between two images, and an answer takes 10 s at most.

    Parameters
    ----------
    setup : CameraSetup
    restarts : int
        How often a camera that died after its first frame is started again.

    Raises
    ------
    SourceError
        If the camera cannot be opened.
    """

    def __init__(self, setup: CameraSetup, *, restarts: int) -> None:
        self._setup = setup
        self._restarts = restarts
        self._changed = threading.Condition()  # guards what follows
        self._images: deque[Frame | BadFrameError] = deque()
        self._returned_s = -1.0  # when the last image was handed over
        self._room = 0  # images asked for that have not come
        self._child: _Child | None = None
        self._ready = False
        self._wanted = False
        self._closed = False
        self._failure: SourceError | None = None
        self._answers: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()
        self._offset = 0  # index of the first frame of this child
        self._next_index = 0
        self._n_deaths = 0
        self._steady_at_s = 0.0
        self._waiting = 0  # frames in the core when the last frame left it
        self._note = ""
        self._lost = 0
        self._info = SourceInfo(setup.url, live=True, buffered=setup.every)
        self._thread = threading.Thread(target=self._keep_running, name=f"camera {setup.url}", daemon=True)
        self._thread.start()
        self._wait_until_ready()
        atexit.register(self.close)  # else the child would be killed with its camera running

    @property
    def info(self) -> SourceInfo:
        """Pixel size as configured; `buffered` in every mode."""
        return self._info

    def read(self, timeout_s: float) -> Frame | None:
        """Return the next frame in every mode, the newest else; the first call starts the camera.

        Raises
        ------
        EndOfStream
            When closed.
        BadFrameError
            If the image is not grey.
        SourceError
            If the camera cannot start, gives colours or several channels, died too often, or its buffer overflowed.
        """
        with self._changed:
            self._open_or_raise()
            self._ask_for_images()
            quick = time.monotonic() - self._returned_s < _QUICK_S
            self._changed.wait_for(lambda: self._images or self._failure is not None, timeout_s)
            if not self._images:
                if self._failure is not None:
                    raise self._failure
                return None
            image = self._images.popleft()
            if quick:
                self._ask_for_images()
            self._returned_s = time.monotonic()
        if isinstance(image, BadFrameError):
            raise image
        return image

    def close(self) -> None:
        """Stop the camera and end its process."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            child = self._child
        atexit.unregister(self.close)
        if child is not None:
            child.end()
        self._thread.join()

    def move_xy_um(self, x_um: float, y_um: float) -> None:
        """Move the stage to an absolute position and wait until it is there; frames go on coming meanwhile.

        Frames that were taken before are still in the buffer: compare `Frame.time_s`.

        Raises
        ------
        SourceError
            If the stage refuses, or has not arrived after 8 s.
        """
        self._command("move_xy_um", float(x_um), float(y_um))

    def stage_xy_um(self) -> tuple[float, float]:
        """Return where the stage is, (x, y) in micrometres."""
        x_um, y_um = self._command("stage_xy_um")
        return float(x_um), float(y_um)

    def set_exposure_ms(self, exposure_ms: float) -> None:
        """Set the exposure; the first frame after it carries a note.

        A setting that the camera does not take while it runs stops it for a moment. When every frame is wanted the
        waiting ones are read first, so call this from another thread than `read` then.
        """
        self._command("set_exposure_ms", float(exposure_ms))
        self._setup = replace(self._setup, exposure_ms=float(exposure_ms))

    def set_property(self, device: str, name: str, value: str) -> None:
        """Set a property of a device as Micro-Manager's property browser does; see `set_exposure_ms`."""
        self._command("set_property", device, name, str(value))

    def set_roi_xywh_px(self, x_px: int, y_px: int, width_px: int, height_px: int) -> None:
        """Read only this part of the sensor, in the camera's own order x, y, width, height; see `set_exposure_ms`."""
        self._command("set_roi_xywh_px", int(x_px), int(y_px), int(width_px), int(height_px))

    def _wait_until_ready(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._failure is not None)
            if self._failure is None:
                return
        self._thread.join()
        raise self._failure

    def _open_or_raise(self) -> None:
        if self._closed:
            raise EndOfStream(f"{self._info.url} was closed")

    def _ask_for_images(self) -> None:
        """Tell the child how many images there is room for: in latest mode one, when it is wanted."""
        if not self._wanted:
            self._wanted = True
            self._send({"do": "start"})
        wish = (_ROOM if self._setup.every else 1) - len(self._images) - self._room
        if wish > 0 and self._ready:
            self._room += wish
            self._send({"do": "room", "n": wish})

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._child is not None and self._ready:
            self._child.send(message)

    def _command(self, do: str, *arguments: Any) -> Any:
        url = self._info.url
        answer: Future[Any] = Future()
        with self._changed:
            self._open_or_raise()
            if self._failure is not None:
                raise self._failure
            if not self._ready:
                raise SourceError(f"{url}: the camera is being started again; try once more in a moment")
            number = next(self._numbers)
            self._answers[number] = answer
            self._send({"do": do, "id": number, "arguments": arguments})
        try:
            return answer.result(_ANSWER_S)
        except TimeoutError:
            raise SourceError(
                f"{url}: no answer to {do} within {_ANSWER_S:g} s; does the camera or stage hang?"
            ) from None
        finally:
            with self._changed:
                self._answers.pop(number, None)

    def _keep_running(self) -> None:
        """Start the child, pass on what it says, and start it again when it dies; the thread of this source."""
        while True:
            with self._changed:
                if self._closed:
                    return
                self._child = child = _Child(self._setup)
            told = self._pass_on(child)
            reason = told or child.how_it_ended()
            child.release()
            with self._changed:
                self._ready = False
                self._fail_commands(reason)
                if self._closed or self._failure is not None:
                    return
                if not self._survive(reason):
                    return

    def _pass_on(self, child: _Child) -> str:
        """Take the child's messages until it ends; return its own last word, if it had one."""
        told = ""

        def give_up() -> None:
            nonlocal told
            told = f"the camera was not ready within {_LOAD_S:g} s; is it switched on?"
            child.kill()

        too_late = threading.Timer(_LOAD_S, give_up)
        too_late.daemon = True
        too_late.start()
        try:
            while True:
                header, pixels = read_message(child.output)
                with self._changed:
                    match header["kind"]:
                        case "ready":
                            too_late.cancel()
                            self._begin(header["pixel_size_um"])
                        case "frame":
                            self._room -= 1
                            self._images.append(self._frame(header, pixels))
                        case "bad":
                            self._room -= 1
                            self._next_index = self._offset + header["index"] + 1
                            self._images.append(BadFrameError(header["reason"], index=self._next_index - 1))
                        case "answer":
                            self._answered(header)
                        case "overflow":
                            self._failure = self._overflow(header["capacity"])
                        case "failed":
                            told = header["text"].removeprefix(f"{self._info.url}: ")
                    self._changed.notify_all()
        except (BrokenMessageError, OSError):
            return told
        finally:
            too_late.cancel()
            child.kill_after(_STOP_S)

    def _begin(self, pixel_size_um: float | None) -> None:
        self._info = replace(self._info, pixel_size_um=pixel_size_um)
        self._ready = True
        self._offset, self._room = self._next_index, 0
        if self._wanted:
            self._send({"do": "start"})
            self._ask_for_images()

    def _frame(self, header: Mapping[str, Any], pixels: Any) -> Frame:
        index = self._offset + header["index"]
        self._next_index = index + 1
        self._waiting = header["waiting"]
        metadata = header["metadata"]
        if self._note:
            metadata["note"] = "; ".join(filter(None, (self._note, metadata.get("note", ""))))
            metadata["lost_at_least"] = self._lost + metadata.get("lost_at_least", 0)
            self._note, self._lost = "", 0
            self._steady_at_s = time.monotonic() + _STEADY_S
        elif self._n_deaths and time.monotonic() > self._steady_at_s:
            self._n_deaths = 0
        return Frame(pixels, index, header["time_s"], self._info.pixel_size_um, metadata)

    def _overflow(self, capacity: int) -> SourceError:
        return SourceError(
            f"{self._info.url}: the camera's buffer of {capacity} frames ({self._setup.buffer_mb} MB) overflowed after "
            f"frame {self._next_index - 1}, because frames came faster than they were read; raise buffer_mb=, lower "
            "the camera's rate, look for fewer objects, or go on after a loss with overflow=restart"
        )

    def _answered(self, header: Mapping[str, Any]) -> None:
        answer = self._answers.pop(header["id"], None)
        if answer is None:  # came too late
            return
        if "error" in header:
            answer.set_exception(SourceError(header["error"]))
        else:
            answer.set_result(header["value"])

    def _fail_commands(self, reason: str) -> None:
        for answer in self._answers.values():
            answer.set_exception(SourceError(f"{self._info.url}: {reason}"))
        self._answers.clear()

    def _survive(self, reason: str) -> bool:
        """Wait before the next start; or tell that there is none."""
        url = self._info.url
        self._n_deaths += 1
        if self._next_index == 0:
            self._failure = SourceError(f"{url}: {reason}")
        elif self._n_deaths > self._restarts:
            again = f" after it was started again {self._restarts} times" if self._restarts else ""
            self._failure = SourceError(f"{url}: {reason}{again}; check the camera and its cable, then start again")
        else:
            logger.warning("%s: %s; it is started again", url, reason)
            self._note = f"the camera was started again: {reason}"
            self._lost += self._waiting
            self._waiting = 0
            pause_s = min(_FIRST_PAUSE_S * 4 ** (self._n_deaths - 1), _LONGEST_PAUSE_S)
            self._changed.wait_for(lambda: self._closed, pause_s)
            return not self._closed
        self._changed.notify_all()
        return False


class _Child:
    """The process with the core, and its three pipes."""

    def __init__(self, setup: CameraSetup) -> None:
        # without a console and in a group of its own: Ctrl-C is for the parent, which ends the child in order.
        # -P: the current folder is no place to import from
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "oneframe.acquisition.camera_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
            | getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self._input: IO[bytes] = self._process.stdin  # type: ignore[assignment]  # PIPE above
        self.output: IO[bytes] = self._process.stdout  # type: ignore[assignment]
        _widen(self.output)
        self._writing = threading.Lock()
        self._said: deque[str] = deque(maxlen=20)
        self._errors: io.FileIO = self._process.stderr  # type: ignore[assignment]
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._write(setup.to_line())

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; one to a child that died is lost, which its pipe tells elsewhere."""
        self._write(line(message))

    def end(self) -> None:
        """Let the child stop its camera and end; kill it if it does not."""
        with self._writing, suppress(OSError):
            self._input.close()
        self.kill_after(_STOP_S)

    def kill_after(self, seconds: float) -> None:
        """Kill the child if it does not end by itself."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the child at once."""
        self._process.kill()

    def how_it_ended(self) -> str:
        """Say what ended the child."""
        code = self._process.wait()
        if code < 0:
            with suppress(ValueError):
                return f"its process was ended by {signal.Signals(-code).name}"
        text = f"its process ended with exit code {code if code < 2**31 else hex(code)}"
        self._listener.join(1.0)
        last = next((words for words in reversed(self._said) if words), "")
        return f"{text} ({last})" if last else text

    def release(self) -> None:
        """Close the pipes of a child that ended."""
        with self._writing, suppress(OSError):
            self._input.close()
        self._listener.join(1.0)
        self.output.close()

    def _write(self, text: bytes) -> None:
        with self._writing, suppress(OSError, ValueError):  # ValueError: closed here
            left = memoryview(text)
            while left.nbytes:
                left = left[self._input.write(left) :]

    def _listen(self) -> None:
        """Keep the last words of the child's standard error; a full pipe would stop it."""
        with io.BufferedReader(self._errors) as lines:
            for words in lines:
                self._said.append(words[:500].decode(errors="replace").strip())


def _widen(pipe: IO[bytes]) -> None:
    """Let a whole frame wait in the pipe, where the system allows it: fewer turns of the two processes."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
