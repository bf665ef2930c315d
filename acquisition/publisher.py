"""The sending end of the frame stream: `Publisher`, and `serve` that feeds it from a source.

Two sockets: one sends every frame to everyone, the other answers a request with the newest frame, for readers that
would rather skip than fall behind. Without keys both stay on the loopback interface, where every user of the machine
can read them; with keys (CurveZMQ, `keys`) they are encrypted and talk to known peers only, on any interface.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import zmq

from oneframe.acquisition.endpoint import host_and_port, keep_alive
from oneframe.acquisition.frame import Frame
from oneframe.acquisition.keys import Doorkeeper
from oneframe.acquisition.source import BadFrameError, EndOfStream, FrameSource, SourceError, SourceInfo
from oneframe.acquisition.wire import Part, decode_request, encode_end, encode_frame, encode_start

logger = logging.getLogger(__name__)

END_LINGER_S = 60.0
"""How long the end of a series waits for subscribers that stand still."""

_POLL_S = 0.1
_END_REPEAT_S = 0.05
_START_REPEAT_S = 1.0
_SUBSCRIBED, _UNSUBSCRIBED = b"\x01", b"\x00"
_MAX_EVENTS = 1000
_MAX_WAITING = 256


class Publisher:
    """Sends frames to any number of subscribers; used by one thread.

    Frames of a live source are dropped for a subscriber that is slow (its index has a gap then); frames of a
    recording wait for the slowest subscriber. The pixels of a frame must not be written to after `send`: they leave
    this process later, without a copy.

    Parameters
    ----------
    bind : str
        `tcp://127.0.0.1:PORT`, with keys `tcp://*:PORT` or any interface; port 0 or * takes a free one, see `address`.
    high_water_mark : int
        Frames that wait for one slow subscriber at most.
    server_keys : Path, optional
        The secret key file that `create_keys` made; encrypts the stream and lets in allowed clients only.
    allowed_clients : Path, optional
        Folder with the public keys of those clients; goes with `server_keys`.
    latest_port : int, optional
        Port of the latest-frame socket, 0 a free one; the one after `bind`'s if not given. Subscribers are told.

    Raises
    ------
    SourceError
        If an address that other computers reach is bound without keys, or is malformed or taken, or a key file is
        wrong.
    """

    def __init__(
        self,
        bind: str,
        *,
        high_water_mark: int = 16,
        server_keys: Path | None = None,
        allowed_clients: Path | None = None,
        latest_port: int | None = None,
    ) -> None:
        if (server_keys is None) != (allowed_clients is None):
            raise SourceError("expected the server's keys and a folder of allowed clients, got one of them; give both")
        host, port = host_and_port(
            bind, re.fullmatch(r"tcp://([^/]+):(\d+|\*)", bind), "bind tcp://127.0.0.1:PORT", server_keys is not None
        )
        if latest_port is None:
            latest_port = 0 if port in ("0", "*") else int(port) + 1
        self._context = zmq.Context()
        self._doorkeeper: Doorkeeper | None = None
        self._latest: _LatestFrame | None = None
        try:
            if server_keys is not None and allowed_clients is not None:
                self._doorkeeper = Doorkeeper(self._context, server_keys, allowed_clients)
            self._socket = self._context.socket(zmq.XPUB)
            self._socket.set(zmq.SNDHWM, high_water_mark)
            self._socket.set(zmq.XPUB_VERBOSER, 1)  # tell every coming and going, not only the first and the last
            _bind(self._socket, f"tcp://{host}:{port}", self._doorkeeper)
            self._latest = _LatestFrame(self._context, f"tcp://{host}:{latest_port}", self._doorkeeper)
        except BaseException:
            self._destroy(linger_ms=0)
            raise
        self.address: str = self._socket.get_string(zmq.LAST_ENDPOINT)
        """Where subscribers connect to."""
        self.latest_port: int = self._latest.port
        """Where the newest frame is to be had."""
        self.n_subscribers = 0
        """Subscribers at the last look."""
        self.n_sent = 0
        """Frames of this series that were sent."""
        self.n_stalls = 0
        """Times in this series that a subscriber's queue was found full: it lost this frame and perhaps more."""
        self._series = ""
        self._live = True
        self._past_index = 0
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
        self._series, self._live = uuid.uuid4().hex, info.live
        self.n_sent = self.n_stalls = self._past_index = 0
        self._start = encode_start(self._series, info, self.latest_port)
        self._socket.set(zmq.XPUB_NODROP, 1)
        if self._latest is not None:
            self._latest.clear()
        self._send_start()

    def announce(self) -> None:
        """Tell that the series still runs, at most once a second; for a source that pauses."""
        self._look_for_subscribers(0.0)
        if time.monotonic() - self._start_sent_s >= _START_REPEAT_S:
            self._send_start()
        if self._doorkeeper is not None:
            self._doorkeeper.check()

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
        ValueError
            If no series was started.
        """
        if not self._series:
            raise ValueError("expected a series that runs, got a frame before it; call start first")
        self.announce()
        message = encode_frame(frame, self._series, self.n_sent)
        if not self._put(message, 0.0 if self._live else timeout_s):
            if not self._live:
                return False
            self.n_stalls += 1
            self._socket.set(zmq.XPUB_NODROP, 0)
            self._put(message, 0.0)
            self._socket.set(zmq.XPUB_NODROP, 1)
        self.n_sent += 1
        self._past_index = max(self._past_index, frame.index + 1)
        if self._latest is not None:
            self._latest.put(message, self._series, frame.index)
        return True

    def end(self, reason: str, total: int, *, linger_s: float = END_LINGER_S) -> None:
        """End the series; repeat it until every subscriber has left, `linger_s` seconds at most.

        A subscriber whose queue is full misses a message; one that has read what waits for it and the end leaves. So
        one that stands still for `linger_s` and then goes on still learns what it lost.
        """
        message = encode_end(self._series, max(total, self._past_index), reason, self.n_sent)
        start_s = time.monotonic()
        deadline_s, told = start_s + linger_s, False
        self._socket.set(zmq.XPUB_NODROP, 0)
        self._look_for_subscribers(0.0)
        while True:
            self._put(message, 0.0)
            left_s = deadline_s - time.monotonic()
            if self.n_subscribers == 0 or left_s <= 0:
                return
            if not told and time.monotonic() - start_s > 2 and linger_s > 2:
                told = True
                logger.warning(
                    "%d subscribers have not read the end yet; waiting %.0f s (Ctrl-C leaves them)",
                    self.n_subscribers,
                    left_s,
                )
            self._look_for_subscribers(min(_END_REPEAT_S, left_s))

    def close(self) -> None:
        """Close the sockets; messages on their way get half a second."""
        self._destroy(linger_ms=500)

    def _destroy(self, linger_ms: int) -> None:
        if self._latest is not None:
            self._latest.close()
        if self._doorkeeper is not None:
            self._doorkeeper.close()
        self._context.destroy(linger=linger_ms)

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
        for _ in range(_MAX_EVENTS):
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


class _LatestFrame:
    """Answers requests with the newest frame, from a thread of its own: whoever asks late gets the newest all the same.

    A request for a frame newer than the newest waits for it; the last request of each peer counts.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, doorkeeper: Doorkeeper | None) -> None:
        self._socket = context.socket(zmq.ROUTER)
        self._socket.set(zmq.SNDHWM, 2)
        self._socket.linger = 0
        _bind(self._socket, address, doorkeeper)
        self.port = int(self._socket.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self._bell, self._ear = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        self._bell.bind("inproc://oneframe-newest")
        self._ear.connect("inproc://oneframe-newest")
        self._lock = threading.Lock()
        self._newest: tuple[list[Part], str, int] | None = None
        self._waiting: dict[bytes, tuple[bytes, str, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="oneframe-latest", daemon=True)
        self._thread.start()

    def put(self, message: list[Part], series: str, index: int) -> None:
        """Replace the newest frame."""
        with self._lock:
            self._newest = (message, series, index)
            wanted = bool(self._waiting)
        if wanted:
            self._ring()

    def clear(self) -> None:
        """Forget the newest frame: a new series begins."""
        with self._lock:
            self._newest = None

    def close(self) -> None:
        """Stop; a second call does nothing."""
        if not self._stop.is_set():
            self._stop.set()
            self._ring()
            self._thread.join()

    def _ring(self) -> None:
        try:
            self._bell.send(b"", zmq.NOBLOCK)
        except zmq.Again:
            return  # it has rung often enough

    def _work(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._ear, zmq.POLLIN)
        try:
            while not self._stop.is_set():
                ready = dict(poller.poll())
                if self._ear in ready:
                    self._ear.recv()
                if self._socket in ready:
                    self._take_request(*self._socket.recv_multipart())
                for peer, number, message in self._due():
                    # a peer that left, or that asks and never reads, gets nothing
                    self._socket.send_multipart([peer, number, *message], zmq.NOBLOCK, copy=False)
        except Exception:
            logger.exception("the latest-frame socket broke down; the stream itself goes on")

    def _take_request(self, peer: bytes, *parts: bytes) -> None:
        request = decode_request(parts)
        if request is None:
            return
        with self._lock:
            self._waiting.pop(peer, None)
            self._waiting[peer] = request
            if len(self._waiting) > _MAX_WAITING:
                del self._waiting[next(iter(self._waiting))]

    def _due(self) -> list[tuple[bytes, bytes, list[Part]]]:
        """Take out the requests that the newest frame answers."""
        with self._lock:
            if self._newest is None:
                return []
            message, series, index = self._newest
            due = [
                (peer, number, message)
                for peer, (number, wanted, after) in self._waiting.items()
                if wanted == series and index > after
            ]
            for peer, _, _ in due:
                del self._waiting[peer]
        return due


@dataclass(frozen=True, slots=True)
class ServeAccount:
    """What became of the frames of a source that was served."""

    sent: int
    """Handed to the stream; what a slow subscriber lost shows in its own account."""
    lost: int
    """Lost before they came here, told by gaps in the source's numbers."""
    bad: int
    """Came here, but could not be used."""
    total: int
    """Frames the source made in all, as far as it told."""
    reason: str
    """Why it ended."""
    stalls: int = 0
    """Times that a subscriber's queue was found full: it lost a frame, perhaps more."""


def serve(
    source: FrameSource,
    publisher: Publisher,
    *,
    stop: threading.Event,
    n_frames: int | None = None,
    seconds: float | None = None,
    on_frame: Callable[[int], None] | None = None,
    linger_s: float = END_LINGER_S,
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
    linger_s : float
        How long the end of the series waits for subscribers that stand still, at most.

    Raises
    ------
    SourceError
        If the source or the check of keys breaks down; subscribers are told before.
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
        publisher.end(reason, tally.total, linger_s=min(0.5, linger_s) if interrupted else linger_s)
        raise
    publisher.end(reason, tally.total, linger_s=linger_s)
    return tally.account(reason, publisher.n_stalls)


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

    def account(self, reason: str, n_stalls: int) -> ServeAccount:
        expected = self.total - (self._first or 0)
        lost = max(0, expected - self.sent - self._bad)
        return ServeAccount(self.sent, lost, self._bad, self.total, reason, n_stalls)


def _reason_to_stop(n_sent: int, stop: threading.Event, n_frames: int | None, deadline_s: float) -> str:
    if stop.is_set():
        return "the publisher was stopped"
    if n_frames is not None and n_sent >= n_frames:
        return f"the publisher was asked for {n_frames} frames"
    return "the publisher's time was up" if time.monotonic() >= deadline_s else ""


def _bind(socket: zmq.Socket[bytes], address: str, doorkeeper: Doorkeeper | None) -> None:
    socket.set(zmq.MAXMSGSIZE, 4096)  # of what subscribers send: subscriptions and requests
    keep_alive(socket)
    if doorkeeper is not None:
        doorkeeper.secure(socket)
    try:
        socket.bind(address)
    except zmq.ZMQError as exc:
        raise SourceError(f"cannot bind {address} ({exc.strerror}); is it in use? take another port") from exc
