"""Where frames come from: the `FrameSource` seam and the SOURCE URLs of the command line."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import parse_qsl

from oneframe.acquisition.frame import Frame


class SourceError(Exception):
    """A source that cannot be opened or read on; the text says what to do."""


class BadFrameError(Exception):
    """One frame arrived that cannot be used; the source goes on with the next one."""

    def __init__(self, reason: str, *, index: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.index = index
        """The source's number of the frame, where it could be read."""


class EndOfStream(Exception):  # noqa: N818 - an ending, not an error
    """The source has no more frames."""

    def __init__(self, reason: str, *, n_frames: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.n_frames = n_frames
        """Frames the source made in all, read or not; None if it cannot know."""


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What a source says of itself before its first frame."""

    url: str
    """The SOURCE as the user wrote it."""

    live: bool
    """True if frames come whether or not they are read; False if the source waits for its reader."""

    n_frames: int | None = None
    """Frames to come in all; None if unlimited or unknown."""

    pixel_size_um: float | None = None
    """Edge of one pixel in the sample, micrometres; None if unknown."""

    buffered: bool = False
    """True for a live source whose frames wait in a bounded buffer of its own, which says when it is full: its reader
    may be slow and misses nothing until then."""


class FrameSource(Protocol):
    """A camera, a recording or a stream, read by one thread.

    `read` is called again and again by a single thread until it raises `EndOfStream` or `SourceError`; `close` may be
    called at any time, also twice, by the same thread. A source starts its camera or connection with the first `read`
    at the latest, so opening one is cheap and moves nothing.

    Two keys of a frame's metadata are for the record of the run: `note` (str), something that happened just before this
    frame, and `lost_at_least` (int), frames lost just before it that its index does not show.
    """

    @property
    def info(self) -> SourceInfo:
        """What is known before the first frame."""
        ...

    def read(self, timeout_s: float) -> Frame | None:
        """Return the next frame, or None if none came within `timeout_s` seconds.

        Raises
        ------
        EndOfStream
            After the last frame; again on every later call.
        BadFrameError
            For one frame that cannot be used; the next call goes on.
        SourceError
            If the source broke down and cannot go on.
        """
        ...

    def close(self) -> None:
        """Release the camera, file or socket; a second call does nothing."""
        ...


def frames(source: FrameSource, *, poll_s: float = 0.1) -> Iterator[Frame]:
    """Yield frames until the source ends; bad frames raise."""
    while True:
        try:
            frame = source.read(poll_s)
        except EndOfStream:
            return
        if frame is not None:
            yield frame


def snap(source: FrameSource, *, timeout_s: float = 30.0) -> Frame:
    """Return one frame of the source.

    Raises
    ------
    SourceError
        If the source ends, or gives no frame within `timeout_s` seconds.
    """
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        try:
            frame = source.read(min(0.5, timeout_s))
        except EndOfStream as exc:
            raise SourceError(f"{source.info.url} ended without a frame: {exc.reason}") from exc
        if frame is not None:
            return frame
    raise SourceError(
        f"expected a frame from {source.info.url} within {timeout_s:g} s, got none; is the camera running?"
    )


N = TypeVar("N", int, float)


class SourceOptions:
    """The `?key=value&...` part of a SOURCE URL, taken key by key; what is left over is an error."""

    def __init__(self, url: str, values: Mapping[str, str]) -> None:
        self.url = url
        self._values = dict(values)
        self._known: list[str] = []

    def text(self, key: str, default: str) -> str:
        """Take a word."""
        self._known.append(key)
        return self._values.pop(key, default)

    def integer(self, key: str, default: int, *, minimum: int = 0, maximum: int = 2**31 - 1) -> int:
        """Take a whole number within [minimum, maximum]."""
        return self._number(key, default, int, minimum, maximum)

    def number(self, key: str, default: float, *, minimum: float = 0.0, maximum: float = 1e12) -> float:
        """Take a real number within [minimum, maximum]."""
        return self._number(key, default, float, minimum, maximum)

    def finish(self) -> None:
        """Refuse keys that nobody took."""
        if self._values:
            unknown, known = ", ".join(sorted(self._values)), ", ".join(sorted(self._known))
            raise SourceError(f"{self.url}: unknown option {unknown}; known are {known}")

    def _number(self, key: str, default: N, kind: type[N], minimum: N, maximum: N) -> N:
        text = self.text(key, str(default))
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not minimum <= value <= maximum:
            what = "a whole number" if kind is int else "a number"
            raise SourceError(f"{self.url}: {key} must be {what} from {minimum:g} to {maximum:g}, got {text!r}")
        return value


@dataclass(frozen=True, slots=True)
class SourceURL:
    """A SOURCE taken apart: `scheme:target?options`; a plain path has the scheme `file`."""

    text: str
    scheme: str
    target: str
    options: SourceOptions
    every: bool = False
    """True if the run wants every frame; False if the newest frame wins."""


# scheme -> (module, function, extra of the package that it needs); imported only when asked for
_OPENERS: dict[str, tuple[str, str, str | None]] = {
    "sim": ("oneframe.acquisition.simulated", "open_simulated", None),
    "demo": ("oneframe.acquisition.micromanager", "open_demo", "mm"),
    "mm": ("oneframe.acquisition.micromanager", "open_configured", "mm"),
    "zmq+tcp": ("oneframe.acquisition.subscriber", "open_stream", None),
    "micromanager": ("oneframe.acquisition.bridge", "open_bridge", "mm"),
    "file": ("oneframe.acquisition.recording", "open_recording", None),
}


def parse_source(text: str, *, every: bool = False) -> SourceURL:
    """Take a SOURCE apart.

    >>> url = parse_source("sim:beads?seed=3")
    >>> url.scheme, url.target, url.options.integer("seed", 0)
    ('sim', 'beads', 3)
    """
    body, _, query = text.partition("?")
    scheme, colon, target = body.partition(":")
    if not colon or len(scheme) == 1 or Path(body).exists():  # one letter is a Windows drive
        scheme, target = "file", body
    options = dict(parse_qsl(query, keep_blank_values=True))
    return SourceURL(text, scheme.lower(), target, SourceOptions(text, options), every)


def open_source(url: str, *, every: bool = False) -> FrameSource:
    """Open what a SOURCE URL names; no frame is taken yet.

    Parameters
    ----------
    url : str
        `sim:beads`, `demo:`, `mm:CONFIG.cfg`, `micromanager:`, `zmq+tcp://HOST:PORT` or the path of a recording, each
        with `?key=value&...` options.
    every : bool
        True if the run wants every frame: a camera that can then keeps them in a bounded buffer and ends, with a
        sentence, when it is full. False: the newest frame wins, and lost ones are gaps in `Frame.index`.

    Raises
    ------
    SourceError
        If the kind of source is unknown, an option is wrong, a file is missing or unreadable, or an extra is missing.
    """
    parsed = parse_source(url, every=every)
    if parsed.scheme not in _OPENERS:
        kinds = ", ".join(f"{scheme}:" for scheme in _OPENERS if scheme != "file")
        raise SourceError(f"expected a SOURCE that starts with {kinds} or the path of a recording, got {url!r}")
    module_name, function, extra = _OPENERS[parsed.scheme]
    try:
        opener: Callable[[SourceURL], FrameSource] = getattr(importlib.import_module(module_name), function)
        return opener(parsed)
    except ModuleNotFoundError as exc:
        if extra is None:
            raise
        raise SourceError(
            f"{url} needs the package {exc.name}, which is not installed; run: pip install 'oneframe[{extra}]'"
        ) from exc
