"""The receiving end of the frame stream: `open_stream`; see `publisher` for the sockets."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from oneframe.acquisition.endpoint import host_and_port, keep_alive
from oneframe.acquisition.frame import Frame
from oneframe.acquisition.keys import ClientKeys, read_client_keys
from oneframe.acquisition.source import BadFrameError, EndOfStream, SourceError, SourceInfo, SourceURL
from oneframe.acquisition.wire import (
    LIFE_CYCLE,
    StreamEnd,
    StreamFrame,
    StreamStart,
    decode,
    encode_request,
)

_ASK_AGAIN_S = 2.0
_AWAY_S = 0.1
"""A reader that was away for longer gets a fresh answer, not the one that waited for it."""
_LAST_FRAME_S = 0.25
_HANDSHAKES = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


def open_stream(url: SourceURL) -> StreamSource:
    """Open what another process publishes; it connects with the first `read`.

    Options: `latest` (0): 1 takes the newest frame each time and skips the others; `server_key` and `client_key`: files
    with the publisher's public and one's own secret key; `timeout_s` (30): the longest silence; `queue` (16): the
    frames that wait here at most; `max_mb` (512): the largest message.

    Raises
    ------
    SourceError
        If the address is not `//HOST:PORT`, is another computer's and no keys are given, or an option is wrong.
    """
    match = re.fullmatch(r"//([^/]+):(\d+)", url.target)
    latest = bool(url.options.integer("latest", 0, maximum=1))
    if latest and url.every:
        raise SourceError(f"{url.text}: latest=1 skips frames and this run wants every one; leave latest=1 out")
    server_key, client_key = url.options.text("server_key", ""), url.options.text("client_key", "")
    if bool(server_key) != bool(client_key):
        raise SourceError("expected server_key=FILE and client_key=FILE, got one of them; give both")
    advice = "connect to zmq+tcp://127.0.0.1:PORT, perhaps the end of an SSH tunnel"
    host, port = host_and_port(url.text, match, advice, bool(server_key))
    source = (LatestSource if latest else StreamSource)(
        url.text,
        f"tcp://{host}:{port}",
        silence_s=url.options.number("timeout_s", 30.0, minimum=0.001, maximum=1e6),
        high_water_mark=url.options.integer("queue", 16, minimum=1, maximum=100_000),
        max_message_mb=url.options.integer("max_mb", 512, minimum=1, maximum=65_536),
        keys=read_client_keys(Path(server_key), Path(client_key)) if server_key else None,
    )
    url.options.finish()
    return source


@dataclass(frozen=True, slots=True)
class StreamAccount:
    """What came of the frames of a series here: `before + received + missed == sent` once it has ended."""

    received: int
    """Taken and handed on."""
    refused: int
    """Messages that were wrong, damaged or came twice."""
    before: int | None
    """Sent before the first one that was received; None if the publisher does not count, in the next two as well."""
    missed: int | None
    """Sent after that and not received: lost on the way, damaged, or skipped by a reader of the newest."""
    sent: int | None
    """Sent in all; None before the end."""


class StreamSource:
    """Frames that another process publishes; made by `open_stream`."""

    _TOPIC = b""

    def __init__(
        self,
        text: str,
        address: str,
        *,
        silence_s: float,
        high_water_mark: int,
        max_message_mb: int,
        keys: ClientKeys | None = None,
    ) -> None:
        self._info = SourceInfo(text, live=True)
        self._address = address
        self._silence_s = silence_s
        self._high_water_mark = high_water_mark
        self._max_message_bytes = max_message_mb * 2**20
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._poller = zmq.Poller()
        self._heard_s = 0.0
        self._handshake_failed = False
        self._series: str | None = None
        self._offset = 0
        self._note = ""
        self._last_index = -1
        self._last_number: int | None = None
        self._received = self._refused = 0
        self._before: int | None = None
        self._missed = 0
        self._sent: int | None = None
        self._ending: EndOfStream | SourceError | None = None

    @property
    def info(self) -> SourceInfo:
        """The address; number of frames and pixel size once the publisher has told them."""
        return self._info

    @property
    def account(self) -> StreamAccount:
        """What came of the frames of the present series so far."""
        missed = None if self._before is None else self._missed
        return StreamAccount(self._received, self._refused, self._before, missed, self._sent)

    def read(self, timeout_s: float) -> Frame | None:
        """Return the next frame; its index is the publisher's.

        When the publisher of a live source broke down and was started again, the numbers go on from the last one, and
        the first frame notes it: how many were lost at the end of the old series, nobody knows.

        Raises
        ------
        EndOfStream
            If the publisher ended the series, or began a recording anew.
        BadFrameError
            If a message is wrong.
        SourceError
            If no message came for `timeout_s` of the URL, or the publisher refuses the keys.
        """
        deadline_s = time.monotonic() + timeout_s
        while self._ending is None:
            parts = self._receive(deadline_s - time.monotonic())
            try:
                frame = None if parts is None else self._take(decode(parts))
            except BadFrameError:
                self._refused += 1
                raise
            if frame is not None or (parts is None and self._ending is None):
                return frame
        raise self._ending.with_traceback(None)

    def close(self) -> None:
        """Disconnect."""
        if self._ending is None:
            self._ending = EndOfStream(f"{self._info.url} was closed")
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = self._socket = self._monitor = None
            self._poller = zmq.Poller()

    def _receive(self, timeout_s: float) -> list[memoryview] | None:
        """Parts of the next message, None if none came in time."""
        self._connect()
        deadline_s = time.monotonic() + timeout_s
        while self._ending is None:
            left_s = deadline_s - time.monotonic()
            ready = dict(self._poller.poll(max(0, math.ceil(left_s * 1000))))
            if self._monitor in ready:
                self._see_handshake()
            parts = self._arrived(ready)
            if parts is not None:
                self._heard_s = time.monotonic()
                return parts
            if left_s <= 0:
                break
        if self._ending is None and time.monotonic() - self._heard_s >= self._silence_s:
            why = "is `oneframe serve` running there?"
            if self._handshake_failed:  # by a server that hung up without giving its reason
                why = "are the keys the right ones?" if self._keys else f"it most likely wants keys; {_GIVE_KEYS}"
            self._finish(SourceError(f"no message from {self._address} for {self._silence_s:g} s; {why}"))
        return None

    def _arrived(self, ready: dict[Any, int]) -> list[memoryview] | None:
        if self._socket is None or self._socket not in ready:
            return None
        return [part.buffer for part in self._socket.recv_multipart(copy=False)]

    def _connect(self) -> None:
        if self._context is not None:
            return
        self._context = zmq.Context()
        self._socket = self._new_socket(self._context, zmq.SUB, self._high_water_mark)
        self._socket.subscribe(self._TOPIC)
        self._monitor = self._socket.get_monitor_socket(_HANDSHAKES)
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._socket.connect(self._address)
        self._heard_s = time.monotonic()

    def _new_socket(
        self, context: zmq.Context[zmq.Socket[bytes]], kind: int, high_water_mark: int
    ) -> zmq.Socket[bytes]:
        socket = context.socket(kind)
        socket.linger = 0
        socket.set(zmq.RCVHWM, high_water_mark)
        socket.set(zmq.MAXMSGSIZE, self._max_message_bytes)
        keep_alive(socket)
        if self._keys is not None:
            self._keys.secure(socket)
        return socket

    def _see_handshake(self) -> None:
        """Learn from a handshake that failed what the user has to mend, where it tells."""
        if self._monitor is None:
            return
        event = recv_monitor_message(self._monitor)["event"]
        self._handshake_failed = event != zmq.EVENT_HANDSHAKE_SUCCEEDED
        if self._series is not None:
            return
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            reason = "does not know this client's key; put its public key (*.key) into the folder `allowed` there"
            self._finish(SourceError(f"{self._address} {reason} and start serve again"))
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            wants, do = ("no keys", "leave server_key= and client_key= out") if self._keys else ("keys", _GIVE_KEYS)
            self._finish(SourceError(f"{self._address} wants {wants}; {do}"))

    def _take(self, message: StreamFrame | StreamStart | StreamEnd) -> Frame | None:
        if self._series is None:
            self._series = message.series
        if isinstance(message, StreamStart):
            self._begin(message)
        elif message.series != self._series:
            index = message.frame.index if isinstance(message, StreamFrame) else None
            raise BadFrameError("a message of another series came, which was never announced", index=index)
        elif isinstance(message, StreamEnd):
            self._end(message)
        else:
            return self._next(message.frame, message.number)
        return None

    def _begin(self, message: StreamStart) -> None:
        told = message.info
        if message.series != self._series:
            if not told.live:
                self._finish(EndOfStream("the publisher restarted (a new series began)"))
                return
            self._begin_anew(message.series)
        self._info = replace(self._info, n_frames=told.n_frames, pixel_size_um=told.pixel_size_um)

    def _begin_anew(self, series: str) -> None:
        self._series = series
        self._offset += self._last_index + 1
        self._note = f"the publisher was started again after frame {self._offset - 1}; what it sent last may be missing"
        self._last_index, self._last_number = -1, None
        self._received = self._refused = self._missed = 0
        self._before = self._sent = None

    def _next(self, frame: Frame, number: int | None) -> Frame | None:
        step = frame.index - self._last_index
        if not self._series and step <= 0:
            self._finish(EndOfStream("the publisher restarted (its frame numbers began anew)"))
            return None
        if step <= 0:
            raise BadFrameError(
                f"frame {frame.index} came after frame {self._last_index}; expected growing numbers", index=frame.index
            )
        if number is not None and self._last_number is not None:
            if not 0 < number - self._last_number <= step:
                raise BadFrameError(
                    f"frame {frame.index} says it is number {number} that was sent, after number {self._last_number}; "
                    "expected growing numbers",
                    index=frame.index,
                )
            self._missed += number - self._last_number - 1
        elif number is not None and self._received == 0:
            self._before = number
        self._last_index, self._last_number = frame.index, number
        self._received += 1
        if self._note:
            frame = replace(frame, metadata={**frame.metadata, "note": self._note, "lost_at_least": 0})
            self._note = ""
        return replace(frame, index=frame.index + self._offset) if self._offset else frame

    def _end(self, message: StreamEnd) -> None:
        sent = message.sent
        past = 0 if self._last_number is None else self._last_number + 1
        if message.total <= self._last_index or (sent is not None and sent < past):
            raise BadFrameError(
                f"the end of the series tells {message.total} frames and {sent} sent, fewer than came; expected more"
            )
        if sent is not None and self._received == 0:
            self._before = sent
        elif sent is not None and self._last_number is not None:
            self._missed += sent - past
        self._sent = sent
        self._finish(EndOfStream(message.reason, n_frames=message.total + self._offset))

    def _finish(self, ending: EndOfStream | SourceError) -> None:
        """Leave the stream, which tells the publisher that the end was seen."""
        self._ending = ending
        self.close()


_GIVE_KEYS = "add ?server_key=FILE&client_key=FILE (made there with: oneframe keys)"


class LatestSource(StreamSource):
    """The newest frame that another process publishes, asked for each time; made by `open_stream` with `latest=1`.

    Start and end of the series come through the stream, its frames are not subscribed to.
    """

    _TOPIC = LIFE_CYCLE

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._answers: zmq.Socket[bytes] | None = None
        self._n_asked = 0
        self._open: set[bytes] = set()
        self._asked_s = self._left_s = 0.0
        self._ended_s: float | None = None

    def close(self) -> None:
        """Disconnect."""
        super().close()
        self._answers = None

    def _receive(self, timeout_s: float) -> list[memoryview] | None:
        waited = self._waiting_answer()
        self._ask()
        parts = super()._receive(timeout_s)
        self._left_s = time.monotonic()
        if parts is None and self._ending is None and waited is not None:
            self._open.clear()  # a later answer may be the same frame
            return waited
        return parts

    def _waiting_answer(self) -> list[memoryview] | None:
        """Take an answer that came while the reader was away: perhaps old, so it is asked again."""
        if self._answers is None or time.monotonic() - self._left_s < _AWAY_S or not self._answers.poll(0):
            return None
        return self._answer()

    def _ask(self) -> None:
        now_s = time.monotonic()
        if self._answers is None or self._series is None or (self._open and now_s - self._asked_s < _ASK_AGAIN_S):
            return
        self._n_asked += 1
        request = encode_request(self._n_asked, self._series, self._last_index)
        try:
            self._answers.send_multipart(request, zmq.NOBLOCK)
        except zmq.Again:
            return
        self._open.add(request[0])
        self._asked_s = now_s

    def _arrived(self, ready: dict[Any, int]) -> list[memoryview] | None:
        if self._answers is not None and self._answers in ready:
            return self._answer()
        return super()._arrived(ready)

    def _answer(self) -> list[memoryview] | None:
        """Take the answer to a request that is open; it closes them all."""
        if self._answers is None:
            return None
        number, *parts = self._answers.recv_multipart(copy=False)
        if number.bytes not in self._open:
            return None
        self._open.clear()
        return [part.buffer for part in parts]

    def _begin(self, message: StreamStart) -> None:
        super()._begin(message)
        if self._answers is not None or self._context is None:
            return
        if message.latest_port is None:
            self._finish(SourceError(f"{self._address} has no latest-frame socket; leave latest=1 out"))
            return
        self._answers = self._new_socket(self._context, zmq.DEALER, 1)
        self._answers.connect(f"{self._address.rpartition(':')[0]}:{message.latest_port}")
        self._poller.register(self._answers, zmq.POLLIN)
        self._ask()

    def _end(self, message: StreamEnd) -> None:
        """Leave once the newest frame is here; the end is repeated."""
        now_s = time.monotonic()
        self._ended_s = now_s if self._ended_s is None else self._ended_s
        if message.total > self._last_index + 1 and now_s - self._ended_s < _LAST_FRAME_S:
            return
        super()._end(message)
