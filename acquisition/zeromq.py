"""The frame stream between processes: `Publisher` and `serve` on one side, `open_stream` on the other.

Both ends stay on this machine: frames cross the loopback interface unencrypted and unauthenticated.
"""

from __future__ import annotations

import ipaddress
import math
import re
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import zmq

from oneframe.acquisition.frame import Frame
from oneframe.acquisition.source import (
    BadFrameError,
    EndOfStream,
    FrameSource,
    SourceError,
    SourceInfo,
    SourceURL,
)
from oneframe.acquisition.wire import (
    Part,
    StreamEnd,
    StreamFrame,
    StreamStart,
    decode,
    encode_end,
    encode_frame,
    encode_start,
)

_POLL_S = 0.1
_END_REPEAT_S = 0.05
_START_REPEAT_S = 1.0
_SUBSCRIBED, _UNSUBSCRIBED = b"\x01", b"\x00"


class Publisher:
    """Sends frames to any number of subscribers; used by one thread.

    Frames of a live source are dropped for a subscriber that is slow (its index has a gap then); frames of a
    recording wait for the slowest subscriber. The pixels of a frame must not be written to after `send`: they leave
    this process later, without a copy.

    Parameters
    ----------
    bind : str
        `tcp://127.0.0.1:PORT`; port 0 or * takes a free one, see `address`.
    high_water_mark : int
        Frames that wait for one slow subscriber at most.

    Raises
    ------
    SourceError
        If the address is not on the loopback interface, malformed or taken.
    """

    def __init__(self, bind: str, *, high_water_mark: int = 16) -> None:
        address = _loopback(bind, re.fullmatch(r"tcp://([^/]+):(\d+|\*)", bind), "bind tcp://127.0.0.1:PORT")
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.set(zmq.SNDHWM, high_water_mark)
        self._socket.set(zmq.MAXMSGSIZE, 4096)  # of what subscribers send: their subscriptions
        self._socket.set(zmq.XPUB_VERBOSER, 1)  # tell every coming and going, not only the first and the last
        try:
            self._socket.bind(address)
        except zmq.ZMQError as exc:
            self._context.destroy(linger=0)
            raise SourceError(f"cannot bind {bind} ({exc.strerror}); is it in use? take another port") from exc
        self.address: str = self._socket.get_string(zmq.LAST_ENDPOINT)
        """Where subscribers connect to."""
        self.n_subscribers = 0
        """Subscribers at the last look."""
        self._series = ""
        self._start: list[Part] = []
        self._start_sent_s = 0.0

    def wait_for_subscriber(self, timeout_s: float) -> bool:
        """Wait until somebody listens; frames sent before would be lost to them."""
        deadline_s = time.monotonic() + timeout_s
        while self.n_subscribers == 0:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            self._look_for_subscribers(left_s)
        return True

    def start(self, info: SourceInfo) -> None:
        """Begin a series of frames of this source."""
        self._series = uuid.uuid4().hex
        self._start = encode_start(self._series, info)
        self._socket.set(zmq.XPUB_NODROP, 0 if info.live else 1)
        self._send_start()

    def announce(self) -> None:
        """Tell that the series still runs, at most once a second; for a source that pauses."""
        self._look_for_subscribers(0.0)
        if time.monotonic() - self._start_sent_s >= _START_REPEAT_S:
            self._send_start()

    def send(self, frame: Frame, *, timeout_s: float = 1.0) -> bool:
        """Send one frame.

        Returns
        -------
        bool
            False if the frame of a recording found no place within `timeout_s` seconds; send it again then.

        Raises
        ------
        BadFrameError
            If the stream does not carry pixels of this type.
        """
        self._look_for_subscribers(0.0)
        return self._put(encode_frame(frame, self._series), timeout_s)

    def end(self, reason: str, total: int, *, linger_s: float = 5.0) -> None:
        """End the series; repeat it until every subscriber has left, `linger_s` seconds at most.

        A subscriber whose queue is full misses a message; one that has seen the end leaves.
        """
        message = encode_end(self._series, total, reason)
        deadline_s = time.monotonic() + linger_s
        self._socket.set(zmq.XPUB_NODROP, 0)
        self._look_for_subscribers(0.0)
        while True:
            self._put(message, 0.0)
            left_s = deadline_s - time.monotonic()
            if self.n_subscribers == 0 or left_s <= 0:
                return
            self._look_for_subscribers(min(_END_REPEAT_S, left_s))

    def close(self) -> None:
        """Close the socket; messages on their way get half a second."""
        self._context.destroy(linger=500)

    def _send_start(self) -> None:
        if self._start:
            self._put(self._start, 0.0)
            self._start_sent_s = time.monotonic()

    def _put(self, message: Sequence[Part], timeout_s: float) -> bool:
        self._socket.set(zmq.SNDTIMEO, math.ceil(timeout_s * 1000))
        try:
            # pyzmq copies parts below 64 kB even so
            self._socket.send_multipart(message, copy=False)
        except zmq.Again:
            return False
        return True

    def _look_for_subscribers(self, timeout_s: float) -> None:
        """Count who came and went; whoever comes late is told what runs."""
        if timeout_s > 0 and not self._socket.poll(math.ceil(timeout_s * 1000)):
            return
        came = False
        while True:
            try:
                event = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            if event[:1] == _SUBSCRIBED:
                self.n_subscribers += 1
                came = True
            elif event[:1] == _UNSUBSCRIBED:
                self.n_subscribers = max(0, self.n_subscribers - 1)
        if came:
            self._send_start()


@dataclass(frozen=True, slots=True)
class ServeAccount:
    """What became of the frames of a source that was served."""

    sent: int
    """Handed to the stream; what a slow subscriber lost shows in its own numbers."""
    lost: int
    """Lost before they came here, told by gaps in the source's numbers."""
    bad: int
    """Came here, but could not be used."""
    total: int
    """Frames the source made in all, as far as it told."""
    reason: str
    """Why it ended."""


def serve(
    source: FrameSource,
    publisher: Publisher,
    *,
    stop: threading.Event,
    n_frames: int | None = None,
    seconds: float | None = None,
    on_frame: Callable[[int], None] | None = None,
) -> ServeAccount:
    """Publish the frames of a source until it ends, `stop` is set or a limit is reached.

    Parameters
    ----------
    source : FrameSource
        Its frames keep their own index, so that subscribers see the gaps of the camera too.
    publisher : Publisher
        Neither it nor the source is closed.
    stop : threading.Event
        Ends the series soon after it is set.
    n_frames : int, optional
        Frames to send at most.
    seconds : float, optional
        Time to go on at most.
    on_frame : callable, optional
        Called after each frame with the number of frames sent so far.

    Raises
    ------
    SourceError
        If the source breaks down; subscribers are told before.
    """
    deadline_s = math.inf if seconds is None else time.monotonic() + seconds
    tally = _Tally()
    publisher.start(source.info)
    try:
        while not (reason := _reason_to_stop(tally.sent, stop, n_frames, deadline_s)):
            try:
                forwarded = _forward(source, publisher, tally, stop)
            except BadFrameError as exc:
                tally.miss(exc.index)
                continue
            if forwarded and on_frame is not None:
                on_frame(tally.sent)
    except EndOfStream as exc:
        reason = exc.reason
        tally.end(exc.n_frames)
    except BaseException as exc:
        interrupted = not isinstance(exc, Exception)
        reason = "the publisher was interrupted" if interrupted else f"the source broke down: {exc}"
        publisher.end(reason, tally.total, linger_s=0.5)
        raise
    publisher.end(reason, tally.total)
    return tally.account(reason)


def _forward(source: FrameSource, publisher: Publisher, tally: _Tally, stop: threading.Event) -> bool:
    """Send the next frame, if there is one."""
    frame = source.read(_POLL_S)
    if frame is None:
        publisher.announce()
        return False
    while not publisher.send(frame, timeout_s=_POLL_S):
        if stop.is_set():
            return False
    tally.see(frame.index)
    tally.sent += 1
    return True


class _Tally:
    """Counts the frames of one series."""

    def __init__(self) -> None:
        self.sent = 0
        self.total = 0
        self._bad = 0
        self._first: int | None = None

    def see(self, index: int) -> None:
        self._first = index if self._first is None else self._first
        self.total = max(self.total, index + 1)

    def miss(self, index: int | None) -> None:
        self._bad += 1
        if index is not None:
            self.see(index)

    def end(self, n_frames: int | None) -> None:
        self.total = max(self.total, n_frames or 0)

    def account(self, reason: str) -> ServeAccount:
        expected = self.total - (self._first or 0)
        lost = max(0, expected - self.sent - self._bad)
        return ServeAccount(self.sent, lost, self._bad, self.total, reason)


def _reason_to_stop(n_sent: int, stop: threading.Event, n_frames: int | None, deadline_s: float) -> str:
    if stop.is_set():
        return "the publisher was stopped"
    if n_frames is not None and n_sent >= n_frames:
        return f"the publisher was asked for {n_frames} frames"
    return "the publisher's time was up" if time.monotonic() >= deadline_s else ""


def open_stream(url: SourceURL) -> StreamSource:
    """Open what another process of this machine publishes; it connects with the first `read`.

    Options: `timeout_s` (30) is the longest silence; `queue` (16) the frames that wait here at most; `max_mb` (512)
    the largest message.

    Raises
    ------
    SourceError
        If the address is not `//HOST:PORT` on this machine, or an option is wrong.
    """
    match = re.fullmatch(r"//([^/]+):(\d+)", url.target)
    advice = f"bring it here with an SSH tunnel and connect to zmq+tcp://127.0.0.1:{match[2] if match else 'PORT'}"
    address = _loopback(url.text, match, advice)
    source = StreamSource(
        url.text,
        address,
        silence_s=url.options.number("timeout_s", 30.0, minimum=0.001, maximum=1e6),
        high_water_mark=url.options.integer("queue", 16, minimum=1, maximum=100_000),
        max_message_mb=url.options.integer("max_mb", 512, minimum=1, maximum=65_536),
    )
    url.options.finish()
    return source


def _loopback(text: str, match: re.Match[str] | None, advice: str) -> str:
    """`tcp://ADDRESS:PORT` of a matched host and port, if that is on the loopback interface."""
    if match is None:
        raise SourceError(f"expected a host and a port, got {text}; {advice}")
    host = "127.0.0.1" if match[1] == "localhost" else match[1]
    try:
        local = ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise SourceError(f"{text}: remote streams need CurveZMQ, which is not built yet; {advice}")
    return f"tcp://{host}:{match[2]}"


class StreamSource:
    """Frames that another process publishes; made by `open_stream`."""

    def __init__(self, text: str, address: str, *, silence_s: float, high_water_mark: int, max_message_mb: int) -> None:
        self._info = SourceInfo(text, live=True)
        self._address = address
        self._silence_s = silence_s
        self._high_water_mark = high_water_mark
        self._max_message_bytes = max_message_mb * 2**20
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._heard_s = 0.0
        self._series: str | None = None
        self._last_index = -1
        self._ending: EndOfStream | SourceError | None = None

    @property
    def info(self) -> SourceInfo:
        """The address; number of frames and pixel size once the publisher has told them."""
        return self._info

    def read(self, timeout_s: float) -> Frame | None:
        """Return the next frame; its index is the publisher's.

        Raises
        ------
        EndOfStream
            If the publisher ended the series or began a new one.
        BadFrameError
            If a message is wrong.
        SourceError
            If no message came for `timeout_s` of the URL.
        """
        deadline_s = time.monotonic() + timeout_s
        while self._ending is None:
            parts = self._receive(deadline_s - time.monotonic())
            frame = None if parts is None else self._take(decode(parts))
            if frame is not None or (parts is None and self._ending is None):
                return frame
        raise self._ending.with_traceback(None)

    def close(self) -> None:
        """Disconnect."""
        if self._ending is None:
            self._ending = EndOfStream(f"{self._info.url} was closed")
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = self._socket = None

    def _receive(self, timeout_s: float) -> list[memoryview] | None:
        """Parts of the next message, None if none came in time."""
        socket = self._connected()
        if socket.poll(max(0, math.ceil(timeout_s * 1000))):
            self._heard_s = time.monotonic()
            return [part.buffer for part in socket.recv_multipart(copy=False)]
        if time.monotonic() - self._heard_s >= self._silence_s:
            reason = f"no message from {self._address} for {self._silence_s:g} s; is `oneframe serve` running there?"
            self._finish(SourceError(reason))
        return None

    def _connected(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            self._context = zmq.Context()
            self._socket = self._context.socket(zmq.SUB)
            self._socket.set(zmq.RCVHWM, self._high_water_mark)
            self._socket.set(zmq.MAXMSGSIZE, self._max_message_bytes)
            self._socket.subscribe(b"")
            self._socket.connect(self._address)
            self._heard_s = time.monotonic()
        return self._socket

    def _take(self, message: StreamFrame | StreamStart | StreamEnd) -> Frame | None:
        if self._series is None:
            self._series = message.series
        if message.series != self._series:
            self._finish(EndOfStream("the publisher restarted (a new series began)"))
        elif isinstance(message, StreamEnd):
            self._finish(EndOfStream(message.reason, n_frames=message.total))
        elif isinstance(message, StreamStart):
            told = message.info
            self._info = replace(self._info, n_frames=told.n_frames, pixel_size_um=told.pixel_size_um)
        else:
            return self._next(message.frame)
        return None

    def _next(self, frame: Frame) -> Frame | None:
        if frame.index > self._last_index:
            self._last_index = frame.index
            return frame
        if self._series:
            raise BadFrameError(
                f"frame {frame.index} came after frame {self._last_index}; expected growing numbers", index=frame.index
            )
        self._finish(EndOfStream("the publisher restarted (its frame numbers began anew)"))
        return None

    def _finish(self, ending: EndOfStream | SourceError) -> None:
        """Leave the stream, which tells the publisher that the end was seen."""
        self._ending = ending
        self.close()
