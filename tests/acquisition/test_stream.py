from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from oneframe.acquisition import BadFrameError, EndOfStream, Frame, SourceError, SourceInfo, frames, open_source
from oneframe.acquisition.publisher import Publisher, ServeAccount, serve
from oneframe.acquisition.subscriber import StreamAccount
from oneframe.acquisition.wire import encode_end, encode_frame, encode_start

WAIT_S = 20.0
LIVE = SourceInfo("test:", live=True, pixel_size_um=0.1)
RECORDED = SourceInfo("test:", live=False, n_frames=300)

READER = """
import json, sys
from oneframe.acquisition import BadFrameError, EndOfStream, open_source

source = open_source(sys.argv[1])
first = source.read(0.0)  # connects
print("connected", flush=True)
sys.stdin.readline()
indices, sums = [], []
frame = first
while True:
    try:
        if frame is not None:
            indices.append(frame.index)
            sums.append(int(frame.pixels[..., 0, 0].sum()))
        frame = source.read(0.5)
    except EndOfStream as exc:
        end = exc
        break
print(json.dumps({"indices": indices, "sums": sums, "total": end.n_frames, "reason": end.reason}), flush=True)
source.close()
"""


class Counting:
    """A source of numbered frames; some indices are left out, some frames are bad."""

    def __init__(
        self, info: SourceInfo, n_frames: int, *, missing: frozenset[int] = frozenset(), shape: Any = (64, 64)
    ) -> None:
        self.info = info
        self._indices = (index for index in range(n_frames) if index not in missing)
        self._n_frames = n_frames
        self._shape = shape
        self.bad: frozenset[int] = frozenset()

    def read(self, timeout_s: float) -> Frame | None:
        index = next(self._indices, None)
        if index is None:
            raise EndOfStream("all frames were given", n_frames=self._n_frames)
        if index in self.bad:
            raise BadFrameError("torn", index=index)
        return _frame(index, self._shape)

    def close(self) -> None:
        return


class Reader:
    """A second process that reads a stream to its end."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def connected(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "connected\n"

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.process.communicate(timeout=WAIT_S)[0])
        return found


def _frame(index: int, shape: Any = (64, 64)) -> Frame:
    return Frame(np.full(shape, index, np.uint16), index, 1_700_000_000.0 + index, 0.1, {"exposure_ms": 5.0})


@contextmanager
def _publisher(**settings: Any) -> Iterator[Publisher]:
    publisher = Publisher("tcp://127.0.0.1:*", **settings)
    try:
        yield publisher
    finally:
        publisher.close()


@contextmanager
def _reader(publisher: Publisher) -> Iterator[Reader]:
    reader = Reader(f"zmq+{publisher.address}")
    try:
        yield reader
    finally:
        reader.process.kill()
        reader.process.communicate()


@contextmanager
def _stream(publisher: Publisher, options: str = "") -> Iterator[Any]:
    """A subscriber in this process, already known to the publisher."""
    source = open_source(f"zmq+{publisher.address}{options}")
    try:
        assert source.read(0.0) is None
        assert publisher.wait_for_subscriber(WAIT_S)
        yield source
    finally:
        source.close()


@contextmanager
def _in_thread(work: Callable[[], Any]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join(WAIT_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("port", ["*", "0"])
def test_a_free_port_is_taken_and_told(port: str) -> None:
    publisher = Publisher(f"tcp://localhost:{port}")
    assert publisher.address.startswith("tcp://127.0.0.1:")
    assert int(publisher.address.rpartition(":")[2]) > 0
    publisher.close()
    publisher.close()


@pytest.mark.parametrize("bind", ["tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://192.168.1.4:5555", "tcp://lab-pc:5555"])
def test_only_the_loopback_interface_is_bound(bind: str) -> None:
    with pytest.raises(SourceError, match=r"needs keys on both sides \(oneframe keys -o FOLDER\); .* bind tcp://127"):
        Publisher(bind)


@pytest.mark.parametrize("bind", ["127.0.0.1:5555", "ipc://x", "tcp://127.0.0.1", "tcp://127.0.0.1:http", ""])
def test_a_malformed_address_is_refused(bind: str) -> None:
    with pytest.raises(SourceError, match=r"expected a host and a port, got .*; bind tcp://127\.0\.0\.1:PORT"):
        Publisher(bind)


def test_a_taken_port_is_refused() -> None:
    with _publisher() as publisher, pytest.raises(SourceError, match=r"cannot bind .*; is it in use\?"):
        Publisher(publisher.address)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("zmq+tcp://10.0.0.7:5555", r"needs keys on both sides \(oneframe keys -o FOLDER\); without .* SSH tunnel"),
        ("zmq+tcp://lab-pc:5555?latest=1", "needs keys on both sides"),
        ("zmq+tcp://127.0.0.1:5555?latest=2", "latest must be a whole number from 0 to 1"),
        ("zmq+tcp://127.0.0.1:5555?server_key=a", "expected server_key=FILE and client_key=FILE, got one of them"),
        ("zmq+tcp://127.0.0.1", "expected a host and a port"),
        ("zmq+tcp:127.0.0.1:5555", "expected a host and a port"),
        ("zmq+tcp://127.0.0.1:5555/x", "expected a host and a port"),
        ("zmq+tcp://127.0.0.1:5555?timeout_s=-1", "timeout_s must be a number"),
        ("zmq+tcp://127.0.0.1:5555?conflate=1", "unknown option conflate; known are client_key, latest"),
    ],
)
def test_a_wrong_stream_url_is_refused(url: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        open_source(url)


def test_every_frame_of_a_recording_reaches_another_process_in_order() -> None:
    with _publisher() as publisher, _reader(publisher) as reader:
        reader.connected()
        reader.go()
        assert publisher.wait_for_subscriber(WAIT_S)
        account = serve(Counting(RECORDED, 300, shape=(128, 128)), publisher, stop=threading.Event())
        result = reader.result()
    assert result["indices"] == list(range(300))
    assert result["sums"] == list(range(300))
    assert (result["total"], result["reason"]) == (300, "all frames were given")
    assert account == ServeAccount(sent=300, lost=0, bad=0, total=300, reason="all frames were given")


def test_a_stalled_reader_sees_gaps_and_the_total() -> None:
    n_frames, shape = 200, (512, 1024)  # 1 MiB each: more than what the queues and the kernel hold
    with _publisher(high_water_mark=8) as publisher, _reader(publisher) as reader:
        reader.connected()
        assert publisher.wait_for_subscriber(WAIT_S)
        publisher.start(LIVE)
        for index in range(n_frames):
            assert publisher.send(_frame(index, shape))
        reader.go()
        publisher.end("the camera was stopped", n_frames, linger_s=WAIT_S)
        assert publisher.n_subscribers == 0
        result = reader.result()
    indices = result["indices"]
    gaps = sum(later - earlier - 1 for earlier, later in zip([-1, *indices], [*indices, n_frames], strict=True))
    assert indices == sorted(set(indices))
    assert result["sums"] == indices
    assert gaps > 0
    assert len(indices) + gaps == result["total"] == n_frames
    assert result["reason"] == "the camera was stopped"


def test_a_late_subscriber_begins_later_and_learns_what_runs() -> None:
    with _publisher() as publisher:
        publisher.start(LIVE)
        for index in range(5):
            publisher.send(_frame(index))
        with _stream(publisher) as stream:
            assert stream.info.pixel_size_um is None
            publisher.send(_frame(5))
            frame = stream.read(WAIT_S)
            assert frame.index == 5
            assert stream.info.pixel_size_um == 0.1
            assert stream.info.live


def test_a_frame_arrives_as_it_was_sent() -> None:
    sent = Frame(np.arange(60, dtype=np.float32).reshape(3, 4, 5), 9, 1_700_000_000.5, 0.065, {"gain": 2})
    with _publisher() as publisher, _stream(publisher) as stream:
        publisher.start(LIVE)
        publisher.send(sent)
        frame = stream.read(WAIT_S)
    np.testing.assert_array_equal(frame.pixels, sent.pixels)
    assert frame.pixels.dtype == sent.pixels.dtype
    assert (frame.index, frame.time_s, frame.pixel_size_um) == (9, 1_700_000_000.5, 0.065)
    assert dict(frame.metadata) == {"gain": 2}


def test_several_subscribers_get_the_same_frames() -> None:
    with _publisher() as publisher, ExitStack() as stack:
        streams = [stack.enter_context(_stream(publisher)) for _ in range(3)]
        while publisher.n_subscribers < 3:
            publisher.announce()
        with _in_thread(lambda: serve(Counting(RECORDED, 50), publisher, stop=threading.Event())):
            seen: list[list[int]] = [[], [], []]
            threads = [
                threading.Thread(target=lambda s=s, k=k: seen[k].extend(f.index for f in frames(s)))
                for k, s in enumerate(streams)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(WAIT_S)
    assert seen == [list(range(50))] * 3


def test_the_end_is_told_again_and_closing_twice_is_harmless() -> None:
    with _publisher() as publisher, _stream(publisher) as stream:
        publisher.start(LIVE)
        with _in_thread(lambda: publisher.end("enough", 7, linger_s=WAIT_S)):
            for _ in range(2):
                with pytest.raises(EndOfStream, match="enough") as caught:
                    stream.read(WAIT_S)
                assert caught.value.n_frames == 7
        stream.close()
        stream.close()
        with pytest.raises(EndOfStream, match="enough"):
            stream.read(0.0)


def test_a_new_series_ends_the_stream() -> None:
    with _publisher() as publisher, _stream(publisher) as stream:
        publisher.start(LIVE)
        publisher.send(_frame(3))
        assert stream.read(WAIT_S).index == 3
        publisher.start(RECORDED)
        publisher.send(_frame(0))
        with pytest.raises(EndOfStream, match=r"the publisher restarted \(a new series began\)"):
            stream.read(WAIT_S)


def test_the_numbers_go_on_when_the_publisher_of_a_camera_is_started_again() -> None:
    with _publisher() as publisher, _stream(publisher) as stream:
        publisher.start(LIVE)
        publisher.send(_frame(3))
        assert stream.read(WAIT_S).index == 3
        publisher.start(LIVE)
        publisher.send(_frame(0))
        publisher.send(_frame(1))
        first, second = stream.read(WAIT_S), stream.read(WAIT_S)
        assert (first.index, second.index) == (4, 5)
        assert first.metadata["note"].startswith("the publisher was started again after frame 3;")
        assert first.metadata["lost_at_least"] == 0
        assert "note" not in second.metadata
        publisher.end("over", 2, linger_s=0.2)
        with pytest.raises(EndOfStream, match="over") as end:
            stream.read(WAIT_S)
        assert end.value.n_frames == 6
        assert stream.account == StreamAccount(received=2, refused=0, before=0, missed=0, sent=2)


def test_silence_is_an_error_that_names_the_address() -> None:
    with _publisher() as publisher:
        source = open_source(f"zmq+{publisher.address}?timeout_s=0.05")
        for _ in range(2):
            with pytest.raises(SourceError, match=r"no message from tcp://127.* for 0\.05 s; is `oneframe serve`"):
                list(frames(source))
        source.close()


def test_a_source_that_pauses_is_no_silence() -> None:
    class Paused(Counting):
        def read(self, timeout_s: float) -> Frame | None:
            stop.wait(timeout_s)
            return None

    stop = threading.Event()
    with (
        _publisher() as publisher,
        _stream(publisher, "?timeout_s=1.5") as stream,
        _in_thread(lambda: serve(Paused(LIVE, 1), publisher, stop=stop)),
    ):
        assert stream.read(2.5) is None
        stop.set()
        with pytest.raises(EndOfStream, match="the publisher was stopped"):
            stream.read(WAIT_S)


@contextmanager
def _foreign() -> Iterator[tuple[Any, Any]]:
    """A publisher that is not ours, and a stream that is connected to it."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.linger = 0
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        source = open_source(f"zmq+tcp://127.0.0.1:{port}")
        assert source.read(0.0) is None
        assert socket.poll(WAIT_S * 1000)
        assert socket.recv() == b"\x01"
        yield socket, source
        source.close()


def test_a_lying_header_is_one_bad_frame_and_the_stream_goes_on() -> None:
    header, pixels = encode_frame(_frame(1), "s")
    with _foreign() as (socket, stream):
        socket.send_multipart(encode_start("s", LIVE))
        socket.send_multipart(encode_frame(_frame(0), "s"))
        socket.send_multipart([header, bytes(pixels)[:-1]])
        socket.send_multipart([b"no header", b"x", b"y"])
        socket.send_multipart(encode_frame(_frame(0), "s"))
        socket.send_multipart(encode_frame(_frame(2), "s"))
        socket.send_multipart(encode_end("s", 3, "over"))
        assert stream.read(WAIT_S).index == 0
        with pytest.raises(BadFrameError, match="needs 8192 bytes of pixels, got 8191") as caught:
            stream.read(WAIT_S)
        assert caught.value.index == 1
        with pytest.raises(BadFrameError, match="a message of 2 parts"):
            stream.read(WAIT_S)
        with pytest.raises(BadFrameError, match="frame 0 came after frame 0"):
            stream.read(WAIT_S)
        assert stream.read(WAIT_S).index == 2
        with pytest.raises(EndOfStream, match="over"):
            stream.read(WAIT_S)


def test_an_area_detector_stream_is_read_and_its_restart_is_an_end() -> None:
    def message(index: int) -> list[bytes]:
        header = {"htype": "array-1.0", "type": "uint8", "shape": [2, 2], "frame": index, "ndattr": {}}
        return [json.dumps(header).encode(), bytes(4)]

    with _foreign() as (socket, stream):
        for index in (4, 6, 0):
            socket.send_multipart(message(index))
        assert [stream.read(WAIT_S).index for _ in range(2)] == [4, 6]
        with pytest.raises(EndOfStream, match="its frame numbers began anew"):
            stream.read(WAIT_S)


def test_a_message_above_the_limit_is_never_taken() -> None:
    with _publisher() as publisher, _stream(publisher, "?max_mb=1&timeout_s=0.5") as stream:
        publisher.start(LIVE)
        publisher.send(_frame(0, (1024, 1024)))
        with pytest.raises(SourceError, match="no message from"):
            list(frames(stream))


def test_no_socket_ever_conflates_and_every_queue_is_bounded() -> None:
    with _publisher(high_water_mark=5) as publisher, _stream(publisher, "?queue=3") as stream:
        assert publisher._socket.get(zmq.SNDHWM) == 5
        assert stream._socket.get(zmq.RCVHWM) == 3
        assert not stream._socket.get(zmq.CONFLATE)
        assert stream._socket.get(zmq.MAXMSGSIZE) == 512 * 2**20
    for name in ("publisher.py", "subscriber.py", "wire.py"):
        text = (Path(sys.modules[Publisher.__module__].__file__ or "").parent / name).read_text("utf-8")
        assert "import pickle" not in text
        assert "pyobj" not in text


def test_serve_keeps_the_account() -> None:
    source = Counting(SourceInfo("test:", live=True), 100, missing=frozenset({10, 11, 50}))
    source.bad = frozenset({20, 30})
    calls: list[int] = []
    with _publisher() as publisher:
        account = serve(source, publisher, stop=threading.Event(), on_frame=calls.append)
    assert account == ServeAccount(sent=95, lost=3, bad=2, total=100, reason="all frames were given")
    assert calls == list(range(1, 96))


def test_serve_stops_when_asked_and_at_its_limits() -> None:
    with _publisher() as publisher:
        stop = threading.Event()
        stopped = serve(Counting(LIVE, 10**9), publisher, stop=stop, on_frame=lambda n: stop.set() if n == 5 else None)
        assert (stopped.sent, stopped.total, stopped.reason) == (5, 5, "the publisher was stopped")
        limited = serve(Counting(LIVE, 10**9), publisher, stop=threading.Event(), n_frames=7)
        assert (limited.sent, limited.reason) == (7, "the publisher was asked for 7 frames")
        timed = serve(Counting(LIVE, 10**9), publisher, stop=threading.Event(), seconds=0.05)
        assert timed.sent > 0
        assert timed.reason == "the publisher's time was up"


def test_a_recording_waits_for_its_reader_but_not_when_stopped() -> None:
    stop = threading.Event()
    sent: list[int] = []
    full = threading.Event()

    class Watched(Publisher):
        def send(self, frame: Frame, *, timeout_s: float = 1.0) -> bool:
            delivered = super().send(frame, timeout_s=0.01)
            sent.extend([frame.index] * delivered)
            if not delivered:
                full.set()
            return delivered

    publisher = Watched("tcp://127.0.0.1:0", high_water_mark=2)
    with (
        _stream(publisher, "?queue=2") as stream,
        _in_thread(lambda: serve(Counting(RECORDED, 10**6, shape=(512, 1024)), publisher, stop=stop)),
    ):
        assert full.wait(WAIT_S)
        stop.set()
        assert [frame.index for frame in frames(stream)] == sent
    publisher.close()


def test_subscribers_hear_that_the_source_broke_down() -> None:
    class Broken(Counting):
        def read(self, timeout_s: float) -> Frame | None:
            frame = super().read(timeout_s)
            if frame is not None and frame.index == 2:
                raise SourceError("the cable was pulled")
            return frame

    errors: list[Exception] = []

    def work() -> None:
        try:
            serve(Broken(RECORDED, 10), publisher, stop=threading.Event())
        except SourceError as exc:
            errors.append(exc)

    with _publisher() as publisher, _stream(publisher) as stream, _in_thread(work):
        seen = [stream.read(WAIT_S).index for _ in range(2)]
        with pytest.raises(EndOfStream, match="the source broke down: the cable was pulled") as caught:
            stream.read(WAIT_S)
    assert seen == [0, 1]
    assert caught.value.n_frames == 2
    assert [str(error) for error in errors] == ["the cable was pulled"]


def test_frames_the_stream_does_not_carry_count_as_bad() -> None:
    class Wide(Counting):
        def read(self, timeout_s: float) -> Frame | None:
            frame = super().read(timeout_s)
            if frame is not None and frame.index == 1:
                return Frame(frame.pixels.astype(np.int64), 1, 1.0)
            return frame

    with _publisher() as publisher:
        account = serve(Wide(LIVE, 3), publisher, stop=threading.Event())
    assert (account.sent, account.bad, account.lost) == (2, 1, 0)


def test_a_reader_that_was_killed_does_not_hold_up_the_end() -> None:
    with _publisher() as publisher, _reader(publisher) as reader:
        reader.connected()
        assert publisher.wait_for_subscriber(WAIT_S)
        publisher.start(LIVE)
        reader.process.kill()
        reader.process.wait(WAIT_S)
        publisher.end("over", 0, linger_s=WAIT_S)
        assert publisher.n_subscribers == 0
