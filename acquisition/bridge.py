"""Frames of a running Micro-Manager 2, looked at through the ZeroMQ bridge of pycromanager.

The microscope stays the user's: while live mode is on this source peeks at the newest image and never takes one out of
Micro-Manager's buffer, never starts or stops anything. Images between two looks are a gap in `Frame.index`.

The client of the bridge, pyjavaz, waits for an answer without limit, cannot be interrupted, cannot tell a late answer
from the next one, and leaves 0.4 kB behind with every image. So it lives in a process of its own, which is ended when
an answer is overdue and started again when Micro-Manager is back; `read` and `close` always return in time.
"""

from __future__ import annotations

import atexit
import collections
import concurrent.futures
import hashlib
import importlib
import importlib.util
import ipaddress
import json
import logging
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.frame import Frame
from oneframe.acquisition.source import BadFrameError, EndOfStream, SourceError, SourceInfo, SourceURL
from oneframe.acquisition.tags import taken_s

logger = logging.getLogger(__name__)

_PORT = 4827
_FIRST_WAIT_S = 20.0
"""Below the 30 s of `snap`, so that its user reads why there is no frame."""
_LATER_WAIT_S = 300.0
"""Time to change the sample, or to start Micro-Manager again."""
_START_S = 60.0
_RETRY_S = 0.5
_OFF_POLL_S = 0.1
_SHORTEST_POLL_S, _LONGEST_POLL_S = 0.002, 0.05
"""A look makes Micro-Manager copy an image even if it is the old one: four looks an exposure, within these bounds."""
_LONGEST_MOVE_S = 60.0
_RATE_S = 3.0
_BLINK_S = 0.25
"""A full buffer is emptied by the core itself; what is missing then shows in the numbers."""
_GREY: dict[str, np.dtype[Any]] = {
    "GRAY8": np.dtype(np.uint8),
    "GRAY16": np.dtype(np.uint16),
    "GRAY32": np.dtype(np.float32),
}
_IDENTITY = ("ImageNumber", "ElapsedTime-ms", "TimeReceivedByCore")
_TAGS = (*_IDENTITY, "Camera", "PixelType", "BitDepth", "PixelSizeUm", "Binning", "Width", "Height", "ROI")


def open_bridge(url: SourceURL) -> BridgeSource:
    """Open a running Micro-Manager 2, `micromanager:[//HOST:4827]`; it connects with the first `read`.

    In Micro-Manager, Tools > Options > Run server on port 4827 must be ticked. Frames come while the user's live mode
    is on. While it is off the source waits: 20 s before the first frame, because the user sits there and should be
    told; 300 s later, because samples are changed in mid-run. Micro-Manager itself may be away as long, once it was
    there.

    Options: `timeout_s` (5), the longest that the bridge may take for an answer; `wait_s`, instead of both waiting
    times; `snap=1` takes images one by one while live mode is off (not during one of Micro-Manager's own
    acquisitions: they share the camera); `exposure_ms` is set once when connected, and left alone if not given.

    Raises
    ------
    SourceError
        If the address or an option is wrong.
    ModuleNotFoundError
        If pyjavaz, the client of the bridge, is not installed.
    """
    match = re.fullmatch(r"(?://([^/:]*)(?::(\d+))?/?)?", url.target)
    if match is None or not 0 < int(match[2] or _PORT) < 65536:
        raise SourceError(f"expected micromanager: or micromanager://HOST:{_PORT}, got {url.text}; mend the address")
    options = url.options
    timeout_s = options.number("timeout_s", 5.0, minimum=0.1, maximum=600.0)
    wait_s = options.number("wait_s", 0.0, maximum=1e6)
    settings = _Settings(
        host=match[1] or "127.0.0.1",
        port=int(match[2] or _PORT),
        timeout_s=timeout_s,
        first_wait_s=wait_s or _FIRST_WAIT_S,
        later_wait_s=wait_s or _LATER_WAIT_S,
        exposure_ms=options.number("exposure_ms", 0.0, maximum=1e7),
        snaps=bool(options.integer("snap", 0, maximum=1)),
    )
    options.finish()
    if importlib.util.find_spec("pyjavaz") is None:
        raise ModuleNotFoundError("pyjavaz is not installed; run: pip install 'oneframe[mm]'", name="pyjavaz")
    return BridgeSource(url.text, settings, every=url.every)


@dataclass(frozen=True, slots=True)
class _Settings:
    host: str
    port: int
    timeout_s: float
    first_wait_s: float
    later_wait_s: float
    exposure_ms: float
    """0: as it is."""
    snaps: bool


class _Overdue(Exception):  # noqa: N818 - no error yet: the run may recover
    """The bridge gave no answer in time, or its process ended."""


class _Question(NamedTuple):
    answer: concurrent.futures.Future[_Answer]
    overdue_s: float


class BridgeSource:
    """The live mode of a running Micro-Manager, and its stage; made by `open_bridge`.

    `metadata` of a frame: `camera`, `exposure_ms`, `bit_depth`, `pixel_type`, `binning`, `roi_xywh_px`, `elapsed_ms` as
    far as Micro-Manager tells them; `bridge_frames_per_s` and `bridge_mb_per_s`, what came through the bridge in the
    last seconds; `bridge_ms`, how long this image took; `note`, what happened just before, with `lost_at_least` 0
    where frames of an unknown number may have been missed.
    """

    def __init__(self, text: str, settings: _Settings, *, every: bool = False) -> None:
        self._info = SourceInfo(text, live=True)
        self._settings = settings
        self._connecting = threading.Lock()
        self._process: _BridgeProcess | None = None
        self._question: _Question | None = None
        self._ready = False
        self._ever_ready = False
        self._gone_since_s: float | None = None
        self._gone_reason = ""
        self._next_s = 0.0
        self._ending: EndOfStream | SourceError | None = None

        self._next_index = 0
        self._offset = 0
        self._previous: tuple[int, float] | None = None
        self._key: list[Any] | None = None
        self._live: bool | None = None
        self._waiting_since_s = 0.0
        self._trouble: dict[str, tuple[float, str]] = {}
        self._camera: dict[str, Any] = {}
        self._exposure_s = 0.0
        self._arrived: collections.deque[tuple[float, int]] = collections.deque()
        self._notes: list[str] = []
        self._maybe_lost = False
        if not _is_loopback(settings.host):
            self._warn(
                f"{settings.host} is another computer: whoever reaches Micro-Manager's bridge can run code there, and "
                f"nothing is encrypted; use ssh -L {settings.port}:127.0.0.1:{settings.port} {settings.host} and "
                "micromanager: instead"
            )
        if every:
            self._warn(
                "every frame was asked for, but a running Micro-Manager can only be looked at: frames between two "
                "looks are missing from the numbers"
            )

    @property
    def info(self) -> SourceInfo:
        """Pixel size once Micro-Manager has told it."""
        return self._info

    def read(self, timeout_s: float) -> Frame | None:
        """Return the newest image if it was not seen before.

        Raises
        ------
        EndOfStream
            When closed.
        BadFrameError
            If an image is not grey, or its size is not what its tags say.
        SourceError
            If Micro-Manager is not there, went away for longer than the waiting time, has live mode off for longer
            than that, raises again and again, or gives colours from the beginning.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            if self._ending is not None:
                raise self._ending.with_traceback(None)
            try:
                frame = self._step(deadline_s)
            except SourceError as exc:
                self._finish(exc)
                raise
            if frame is not None or time.monotonic() >= deadline_s:
                return frame

    def close(self) -> None:
        """Let Micro-Manager go; nothing is stopped there."""
        self._finish(EndOfStream(f"{self._info.url} was closed"))

    def move_xy_um(self, x_um: float, y_um: float) -> None:
        """Move the stage to an absolute position and wait until it is there.

        Frames that were taken before are still on their way: compare `Frame.time_s`.
        """
        stage = self._stage()
        self._call("set_xy_position", stage, float(x_um), float(y_um))
        deadline_s = time.monotonic() + _LONGEST_MOVE_S
        while self._call("device_busy", stage):  # not wait_for_device: it would keep the bridge from everybody else
            if time.monotonic() >= deadline_s:
                raise SourceError(f"{self._info.url}: the stage did not arrive within {_LONGEST_MOVE_S:g} s; check it")
            time.sleep(0.01)

    def stage_xy_um(self) -> tuple[float, float]:
        """Return where the stage is, (x, y) in micrometres."""
        stage = self._stage()
        return float(self._call("get_x_position", stage)), float(self._call("get_y_position", stage))

    def _stage(self) -> str:
        stage = str(self._call("get_xy_stage_device"))
        if not stage:
            raise SourceError(f"{self._info.url}: Micro-Manager has no XY stage; set the Core role XYStage in it")
        return stage

    def _call(self, method: str, *arguments: str | float) -> Any:
        """Call a method of the core; from any thread."""
        deadline_s = time.monotonic() + (self._settings.timeout_s if self._ever_ready else _START_S)
        while not self._connect(time.monotonic() + _RETRY_S / 5):  # in short steps: `read` wants its turn too
            if time.monotonic() >= deadline_s:
                raise SourceError(f"{self._info.url}: {self._gone_reason or 'Micro-Manager is not there'}; try again")
        process = self._process
        try:
            if process is None:
                raise _Overdue
            header = process.ask("run", method=method, arguments=arguments).result(self._settings.timeout_s).header
        except (TimeoutError, _Overdue) as exc:
            reason = f"{method} got no answer from Micro-Manager within {self._settings.timeout_s:g} s; is it busy?"
            raise SourceError(f"{self._info.url}: {reason}") from exc
        if header["state"] == "error":
            raise SourceError(f"{self._info.url}: Micro-Manager says: {header['reason']}")
        return header["value"]

    def _step(self, deadline_s: float) -> Frame | None:
        if not self._connect(deadline_s):
            return None
        if self._question is None:
            if not _pause(self._next_s, deadline_s):
                return None
            self._ask("look", last=self._key)
        answer = self._answer(deadline_s)
        return None if answer is None else self._take(answer)

    # connecting, and coming back

    def _connect(self, deadline_s: float) -> bool:
        """Go on with connecting; True if connected."""
        with self._connecting:
            while not self._ready:
                if self._ending is not None:
                    raise self._ending.with_traceback(None)
                if self._process is None and not (_pause(self._next_s, deadline_s) and self._start()):
                    return False
                answer = self._answer(deadline_s)
                if answer is None:
                    return False
                self._go_on_connecting(answer.header)
            return True

    def _start(self) -> bool:
        host, port = self._settings.host, self._settings.port
        try:
            socket.create_connection((host, port), min(1.0, self._settings.timeout_s)).close()
        except OSError:
            self._lose(f"nothing listens on {host}:{port}")
            return False
        self._process = _BridgeProcess()
        self._question = _Question(self._process.started, time.monotonic() + _START_S)
        return True

    def _go_on_connecting(self, header: Mapping[str, Any]) -> None:
        settings = self._settings
        if header["state"] == "started":
            self._ask(
                "connect",
                host=settings.host,
                port=settings.port,
                timeout_s=settings.timeout_s,
                exposure_ms=settings.exposure_ms,
                patience_s=2.0,  # pyjavaz looks once a second whether it failed
            )
        elif header["state"] == "refused" and not self._ever_ready:
            raise SourceError(f"{self._info.url}: {header['reason']}")
        elif header["state"] in ("error", "refused"):
            self._lose(header["reason"])
        else:
            self._ready = self._ever_ready = True
            self._next_s = 0.0
            self._waiting_since_s = time.monotonic()
            self._trouble.pop("error", None)
            self._exposure_s = header["exposure_ms"] / 1e3
            if header["pixel_size_um"]:
                self._info = replace(self._info, pixel_size_um=header["pixel_size_um"])
            for warning in header["warnings"]:
                self._warn(_version_sentence(warning))
            if self._gone_since_s is not None:
                away_s = time.monotonic() - self._gone_since_s
                self._note(f"{self._gone_reason}; connected again after {away_s:.1f} s", maybe_lost=True)
                self._gone_since_s = None

    def _lose(self, reason: str) -> None:
        """End the bridge's process; raise if there never was a bridge, or not for too long."""
        self._ready = False
        self._question = None
        if self._process is not None:
            self._process.close(0.0)
            self._process = None
        port, now_s = self._settings.port, time.monotonic()
        advice = f"start Micro-Manager and tick Tools > Options > Run server on port {port}"
        if not self._ever_ready:
            raise SourceError(f"{self._info.url}: {reason}; {advice}")
        if self._gone_since_s is None:
            self._gone_since_s = now_s
            self._gone_reason = f"Micro-Manager went away ({reason})"
        elif now_s - self._gone_since_s >= self._settings.later_wait_s:
            raise SourceError(
                f"{self._info.url}: {self._gone_reason} and did not come back within {self._settings.later_wait_s:g} s;"
                f" {advice}, then start this run again"
            )
        self._next_s = now_s + _RETRY_S

    def _ask(self, call: str, *, patience_s: float = 0.0, **arguments: Any) -> None:
        if self._process is not None:
            answer = self._process.ask(call, **arguments)
            self._question = _Question(answer, time.monotonic() + self._settings.timeout_s + patience_s)

    def _answer(self, deadline_s: float) -> _Answer | None:
        """Answer to the open question; None if it is still to come, or never will."""
        if self._question is None:
            return None
        now_s = time.monotonic()
        try:
            answer = self._question.answer.result(max(0.0, min(deadline_s, self._question.overdue_s) - now_s))
        except TimeoutError:
            if time.monotonic() >= self._question.overdue_s:
                self._lose(f"no answer for {self._settings.timeout_s:g} s; is it busy, or waiting in a dialogue?")
            return None
        except _Overdue:
            self._lose("the process that holds the bridge ended")
            return None
        self._question = None
        return answer

    def _finish(self, ending: EndOfStream | SourceError) -> None:
        if self._ending is None:
            self._ending = ending
        process, self._process = self._process, None
        if process is not None:
            process.close(0.0 if self._question is not None and not self._question.answer.done() else 1.0)
        self._ready = False
        self._question = None

    # what an answer means

    def _take(self, answer: _Answer) -> Frame | None:
        state, now_s = answer.header["state"], time.monotonic()
        if state != "error" and (ended := self._trouble.pop("error", None)):
            self._note(f"{ended[1]} for {now_s - ended[0]:.1f} s", maybe_lost=True)
        if state == "image":
            return self._image(answer, now_s)
        if state == "off" and self._settings.snaps:
            self._exposure_s = answer.header["exposure_ms"] / 1e3
            self._ask("snap", patience_s=2 * self._exposure_s)
            return None
        if state == "error":
            began_s, _ = self._trouble.setdefault(state, (now_s, f"Micro-Manager said: {answer.header['reason']}"))
            if now_s - began_s >= self._settings.timeout_s:
                raise SourceError(
                    f"{self._info.url}: Micro-Manager says, for {self._settings.timeout_s:g} s: "
                    f"{answer.header['reason']}; mend it there and start again"
                )
        elif state == "off":
            if self._next_index:
                self._trouble.setdefault(state, (now_s, "live mode was off"))
        elif state == "empty" and self._previous is not None:
            self._trouble.setdefault(state, (now_s, "Micro-Manager's image buffer was empty"))
        self._wait_on(state, now_s)
        return None

    def _wait_on(self, state: str, now_s: float) -> None:
        wait_s = self._settings.later_wait_s if self._next_index else self._settings.first_wait_s
        if now_s - self._waiting_since_s >= wait_s + 2 * self._exposure_s:
            if state == "off":
                reason = "live mode is off; press Live in Micro-Manager, or add ?snap=1"
            else:
                reason = "live mode is on, but the camera gives no new image; check its trigger and cable"
            raise SourceError(f"{self._info.url}: no frame for {wait_s:g} s: {reason}")
        steady = state in ("same", "empty")
        pause_s = min(max(self._exposure_s / 4, _SHORTEST_POLL_S), _LONGEST_POLL_S) if steady else _OFF_POLL_S
        self._next_s = now_s + pause_s

    def _image(self, answer: _Answer, now_s: float) -> Frame:
        header, tags = answer.header, answer.header["tags"]
        for state, (began_s, what) in self._trouble.items():
            if state == "empty" and now_s - began_s < _BLINK_S + self._exposure_s:
                continue
            self._note(f"{what} for {now_s - began_s:.1f} s", maybe_lost=True)
        was_off = "off" in self._trouble
        self._trouble.clear()
        if self._live not in (None, header["live"]):
            self._note("live mode is on again" if header["live"] else "live mode went off; snapping")
            was_off = True
        self._live = header["live"]
        self._key = header["key"]
        self._waiting_since_s = now_s
        self._exposure_s = header["exposure_ms"] / 1e3
        started = self._next_index > 0
        index = self._number(tags if self._live else {}, new_sequence=was_off)
        camera = _camera(tags, header["exposure_ms"])
        self._note_changes(camera)
        kind = str(tags.get("PixelType"))
        if kind not in _GREY:
            reason = f"expected grey pixels, Micro-Manager's camera sends {kind}; choose a grey pixel type there"
            raise BadFrameError(reason, index=index) if started else SourceError(f"{self._info.url}: {reason}")
        pixels = _shaped(answer.pixels, tags, index)
        self._arrived.append((now_s, pixels.nbytes))
        return Frame(
            pixels,
            index,
            taken_s(tags, header["seen_s"]),
            _positive(tags.get("PixelSizeUm")) or self._info.pixel_size_um,
            {**camera, **self._rate(now_s), "bridge_ms": round(1e3 * header["took_s"], 3), **self._news()},
        )

    def _number(self, tags: Mapping[str, Any], *, new_sequence: bool) -> int:
        """Index of an image; Micro-Manager's number begins anew with each live mode."""
        number = _whole(tags.get("ImageNumber"))
        if number is None:
            self._previous = None
            index = self._next_index
        else:
            elapsed_ms = _real(tags.get("ElapsedTime-ms"))
            if self._previous is None or new_sequence:
                self._offset = self._next_index if self._next_index else -number
            elif number <= self._previous[0] or elapsed_ms < self._previous[1]:
                self._offset = self._next_index
                self._note(
                    "the image counter began anew: live mode was restarted, or its buffer was full", maybe_lost=True
                )
            self._previous = number, elapsed_ms
            index = self._offset + number
        self._next_index = index + 1
        return index

    def _note_changes(self, camera: dict[str, Any]) -> None:
        for name, value in camera.items():
            if name != "elapsed_ms" and self._camera.get(name, value) != value:
                self._note(f"{name} changed from {self._camera[name]} to {value}")
        self._camera = camera

    def _note(self, text: str, *, maybe_lost: bool = False) -> None:
        self._notes.append(text)
        self._maybe_lost |= maybe_lost

    def _warn(self, text: str) -> None:
        logger.warning("%s: %s", self._info.url, text)
        self._note(text)

    def _news(self) -> dict[str, Any]:
        news: dict[str, Any] = {"note": "; ".join(self._notes)} if self._notes else {}
        if self._maybe_lost:
            news["lost_at_least"] = 0
        self._notes.clear()
        self._maybe_lost = False
        return news

    def _rate(self, now_s: float) -> dict[str, float]:
        while len(self._arrived) > 2 and now_s - self._arrived[0][0] > _RATE_S:
            self._arrived.popleft()
        span_s = now_s - self._arrived[0][0]
        if span_s <= 0:
            return {}
        later = list(self._arrived)[1:]  # the first one only begins the interval
        megabytes = sum(size for _, size in later) / 1e6
        return {
            "bridge_frames_per_s": round(len(later) / span_s, 2),
            "bridge_mb_per_s": round(megabytes / span_s, 2),
        }


def _pause(until_s: float, deadline_s: float) -> bool:
    """Sleep until a moment; False if the deadline comes before it."""
    now_s = time.monotonic()
    if until_s > now_s:
        time.sleep(max(0.0, min(until_s, deadline_s) - now_s))
    return until_s <= max(deadline_s, now_s)


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _version_sentence(warning: str) -> str:
    versions = re.findall(r"version: (\S+)", warning)
    if len(versions) != 2:
        return " ".join(warning.split())
    return (
        f"Micro-Manager's bridge has version {versions[0]}, pyjavaz here expects {versions[1]}; update Micro-Manager "
        "and pip install -U pycromanager, or expect wrong answers"
    )


def _shaped(pixels: NDArray[Any] | None, tags: Mapping[str, Any], index: int) -> NDArray[Any]:
    """Image (H, W) of the 1-D array that Java sends."""
    kind = tags["PixelType"]
    expected = _GREY[kind]
    height, width = (_whole(tags.get(name)) or 0 for name in ("Height", "Width"))
    if pixels is None or (pixels.dtype != expected and not (kind == "GRAY32" and pixels.dtype == np.uint32)):
        got = "nothing" if pixels is None else pixels.dtype
        raise BadFrameError(f"expected {expected} pixels for {kind}, got {got}; snap again", index=index)
    if pixels.size != height * width or pixels.size == 0:
        raise BadFrameError(
            f"expected {height} x {width} = {height * width} pixels, got {pixels.size}; the ROI or binning probably "
            "changed in this moment",
            index=index,
        )
    return pixels.view(expected).reshape(height, width)


def _camera(tags: Mapping[str, Any], exposure_ms: float) -> dict[str, Any]:
    """Read what the tags tell of the camera; strings and numbers both occur."""
    found: dict[str, Any] = {"exposure_ms": float(exposure_ms)}
    if "Camera" in tags:
        found["camera"] = str(tags["Camera"])
    for name, tag in (("binning", "Binning"), ("pixel_type", "PixelType")):
        if tag in tags:
            found[name] = str(tags[tag])
    if (bit_depth := _whole(tags.get("BitDepth"))) is not None:
        found["bit_depth"] = bit_depth
    roi = re.fullmatch(r"(\d+)-(\d+)-(\d+)-(\d+)", str(tags.get("ROI")))
    if roi is not None:
        found["roi_xywh_px"] = [int(value) for value in roi.groups()]
    if "ElapsedTime-ms" in tags:
        found["elapsed_ms"] = _real(tags["ElapsedTime-ms"])
    return found


def _whole(value: Any) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        return None


def _real(value: Any) -> float:
    try:
        return float(str(value))
    except ValueError:
        return 0.0


def _positive(value: Any) -> float | None:
    number = _real(value)
    return number if 0 < number < float("inf") else None


# the process that holds the bridge: calls come as lines of JSON, answers leave as a line of JSON and raw pixels


@dataclass(frozen=True, slots=True)
class _Answer:
    header: dict[str, Any]
    pixels: NDArray[Any] | None
    """(N,)"""


class _BridgeProcess:
    """The process that holds the bridge, seen from here; may be asked by several threads."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "oneframe.acquisition.bridge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self.started: concurrent.futures.Future[_Answer] = concurrent.futures.Future()
        self._open: collections.deque[concurrent.futures.Future[_Answer]] = collections.deque([self.started])
        self._asking = threading.Lock()
        self._ended = False
        self._reader = threading.Thread(target=self._read_answers, name="oneframe-bridge", daemon=True)
        self._reader.start()

    def ask(self, call: str, **arguments: Any) -> concurrent.futures.Future[_Answer]:
        answer: concurrent.futures.Future[_Answer] = concurrent.futures.Future()
        line = json.dumps({"call": call, **arguments}).encode() + b"\n"
        with self._asking:
            self._open.append(answer)
            try:
                if self._ended or self._process.stdin is None:
                    raise BrokenPipeError
                self._process.stdin.write(line)
                self._process.stdin.flush()
            except (OSError, ValueError):
                self._open.remove(answer)
                answer.set_exception(_Overdue())
        return answer

    def close(self, grace_s: float) -> None:
        """Let the process say goodbye to Micro-Manager for `grace_s` seconds, then end it."""
        with self._asking, suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read_answers(self) -> None:
        with suppress(OSError, ValueError):
            while (answer := _receive(self._process.stdout)) is not None:
                with self._asking:
                    self._open.popleft().set_result(answer)
        with self._asking:
            self._ended = True
            while self._open:
                self._open.popleft().set_exception(_Overdue())


def _receive(stream: Any) -> _Answer | None:
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    header = json.loads(line)
    if "dtype" not in header:
        return _Answer(header, None)
    pixels = np.empty(header["n"], header["dtype"])
    return _Answer(header, pixels) if stream.readinto(pixels.data.cast("B")) == pixels.nbytes else None


def _send(stream: BinaryIO, header: dict[str, Any], pixels: NDArray[Any] | None = None) -> None:
    if pixels is None or pixels.size == 0:
        pixels = None
    else:
        header |= {"dtype": pixels.dtype.str, "n": pixels.size}
    stream.write(json.dumps(header).encode() + b"\n")
    if pixels is not None:
        stream.write(pixels.data.cast("B"))
    stream.flush()


class _Bridge:
    """The one bridge of that process."""

    def __init__(self) -> None:
        self._connection: Any = None
        self._core: Any = None

    def connect(self, host: str, port: int, timeout_s: float, exposure_ms: float) -> dict[str, Any]:
        # not mmpycorex.Core: it is the same object, with every reason for a failure replaced by one sentence
        pyjavaz, bridge = importlib.import_module("pyjavaz"), importlib.import_module("pyjavaz.bridge").Bridge
        timeout_ms = int(1000 * timeout_s)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            # JavaObject takes no address, but finds the bridge of its port
            self._connection = bridge.create_or_get_existing_bridge(port=port, ip_address=host, timeout=timeout_ms)
            try:
                core = self._core = pyjavaz.JavaObject("mmcorej.CMMCore", port=port, timeout=timeout_ms)
            except Exception as exc:
                if "has been closed" not in str(exc):  # all that pyjavaz says of a handshake that failed
                    raise
                reason = f"{host}:{port} gave no answer for {timeout_s:g} s; is it Micro-Manager's bridge?"
                raise ConnectionError(reason) from exc
        if not core.get_camera_device():
            return _refused("Micro-Manager has no camera; load a configuration with the Core role Camera")
        if core.get_number_of_camera_channels() > 1:
            return _refused("expected one camera, Micro-Manager combines several; choose one in it")
        if exposure_ms:
            core.set_exposure(float(exposure_ms))
        return {
            "state": "connected",
            "exposure_ms": float(core.get_exposure()),
            "pixel_size_um": float(core.get_pixel_size_um()),
            "warnings": [str(warning.message) for warning in caught],
        }

    def run(self, method: str, arguments: list[str | float]) -> dict[str, Any]:
        return {"state": "done", "value": getattr(self._core, method)(*arguments)}

    def look(self, last: list[Any] | None) -> tuple[dict[str, Any], NDArray[Any] | None]:
        """Peek at the newest image of the running live mode; its pixels are fetched only if it is new."""
        began_s = time.perf_counter()
        if not self._core.is_sequence_running():
            return {"state": "off", "exposure_ms": float(self._core.get_exposure())}, None
        try:
            image = self._core.get_last_tagged_image()
        except Exception as exc:  # pyjavaz raises nothing narrower
            if "buffer is empty" not in str(exc):
                raise
            return {"state": "empty"}, None
        return self._image(image, last, began_s, live=True)

    def snap(self) -> tuple[dict[str, Any], NDArray[Any] | None]:
        began_s = time.perf_counter()
        self._core.snap_image()
        return self._image(self._core.get_tagged_image(), None, began_s, live=False)

    def leave(self) -> None:
        """Let Java forget the core's shadow; its destructor asks for that."""
        self._core = self._connection = None

    def _image(
        self, image: Any, last: list[Any] | None, began_s: float, *, live: bool
    ) -> tuple[dict[str, Any], NDArray[Any] | None]:
        seen_s = time.time()
        tags = image.tags
        key = [tags[name] for name in _IDENTITY if name in tags] if live and "ImageNumber" in tags else None
        if key is not None and key == last:
            return {"state": "same"}, None
        pixels = image.pix if tags.get("PixelType") in _GREY else None
        if key is None and live and pixels is not None:
            key = [hashlib.blake2b(pixels, digest_size=16).hexdigest()]
            if key == last:
                return {"state": "same"}, None
        header = {
            "state": "image",
            "live": live,
            "key": key,
            "seen_s": seen_s,
            "exposure_ms": float(self._core.get_exposure()),
            "took_s": time.perf_counter() - began_s,
            "tags": {name: tags[name] for name in _TAGS if name in tags},
        }
        return header, pixels


def _refused(reason: str) -> dict[str, Any]:
    return {"state": "refused", "reason": reason}


def _hold_bridge() -> None:
    """Answer calls until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    calls: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(calls,), daemon=True).start()
    # pyjavaz registers a function for each image and never takes it back, which fills the memory in long runs
    vars(atexit)["register"] = lambda function, *_, **__: function
    bridge = _Bridge()
    _send(answers, {"state": "started"})
    while (call := calls.get()) is not None:
        try:
            answer = getattr(bridge, call.pop("call"))(**call)
            _send(answers, *(answer if isinstance(answer, tuple) else (answer,)))
        except BrokenPipeError:
            break
        except Exception as exc:
            _send(answers, {"state": "error", "reason": _first_line(exc)})
    bridge.leave()
    os._exit(0)  # pyjavaz would wait for servers that are gone


def _listen(calls: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    for line in sys.stdin.buffer:
        calls.put(json.loads(line))
    calls.put(None)
    time.sleep(2.0)
    os._exit(1)  # the parent is gone, and the bridge hangs


def _first_line(exc: Exception) -> str:
    """Reason within a Java stack trace."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()] or [type(exc).__name__]
    return re.sub(r"^(?:[\w$]+\.)+\w*(?:Exception|Error): ", "", lines[0])


if __name__ == "__main__":
    _hold_bridge()
