"""The latest-frame socket: whoever asks gets the newest frame, and knows what it skipped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import zmq

from oneframe.acquisition import EndOfStream, Frame, SourceError, SourceInfo, open_source
from oneframe.acquisition.publisher import END_LINGER_S, Publisher, serve
from oneframe.acquisition.subscriber import StreamAccount
from oneframe.acquisition.wire import encode_frame, encode_start

WAIT_S = 20.0
LIVE = SourceInfo("test:", live=True, pixel_size_um=0.1)


class Camera:
    """A live camera: a frame every `interval_s`, whether or not somebody reads."""

    info = LIVE

    def __init__(self, n_frames: int, interval_s: float) -> None:
        self._n_frames, self._interval_s = n_frames, interval_s
        self._index = -1
        self._pause = threading.Event()
        self._next_s = time.monotonic()

    def read(self, timeout_s: float) -> Frame | None:
        if self._index + 1 == self._n_frames:
            raise EndOfStream("the camera was stopped", n_frames=self._n_frames)
        self._pause.wait(max(0.0, self._next_s - time.monotonic()))
        self._next_s += self._interval_s
        self._index += 1
        return _frame(self._index, time.time())

    def close(self) -> None:
        return


def _frame(index: int, time_s: float = 1.0, shape: tuple[int, int] = (256, 256)) -> Frame:
    return Frame(np.full(shape, index, np.uint16), index, time_s, 0.1)


@contextmanager
def _publisher() -> Iterator[Publisher]:
    publisher = Publisher("tcp://127.0.0.1:0")
    try:
        yield publisher
    finally:
        publisher.close()


@contextmanager
def _newest(publisher: Publisher, options: str = "") -> Iterator[Any]:
    """A reader of the newest frame that knows the series."""
    source = open_source(f"zmq+{publisher.address}?latest=1{options}")
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


def _read(source: Any) -> Frame:
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        frame = source.read(0.1)
        if frame is not None:
            return frame  # type: ignore[no-any-return]
    raise AssertionError("no frame")


def _exhaust(source: Any) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        source.read(1.0)


def test_a_slow_reader_gets_the_newest_frame_and_its_counts_add_up() -> None:
    """Five times overloaded: a frame is about as old as its way took, the gaps are what was skipped.

    In the queues of the stream it would wait for 16 frames and more, 0.4 s.
    """
    n_frames, interval_s, service_s = 500, 0.005, 0.025
    indices: list[int] = []
    ages_s: list[float] = []
    busy = threading.Event()

    def work() -> None:
        while True:
            frame = source.read(1.0)
            if frame is not None:
                ages_s.append(time.time() - frame.time_s)
                indices.append(frame.index)
                assert frame.pixels[0, 0] == frame.index
                busy.wait(service_s)

    with (
        _publisher() as publisher,
        _newest(publisher) as source,
        _in_thread(lambda: serve(Camera(n_frames, interval_s), publisher, stop=threading.Event())),
        pytest.raises(EndOfStream, match="the camera was stopped") as ended,
    ):
        work()
    gaps = sum(later - earlier - 1 for earlier, later in zip([-1, *indices], [*indices, n_frames], strict=True))
    assert ended.value.n_frames == n_frames
    assert indices == sorted(set(indices))
    assert indices[-1] == n_frames - 1
    assert gaps > n_frames // 3
    assert len(indices) + gaps == n_frames
    account = source.account
    assert account.before + account.received + account.missed == account.sent == n_frames
    assert (account.received, account.refused) == (len(indices), 0)
    assert np.median(ages_s) < 2 * service_s
    assert np.quantile(ages_s, 0.95) < 0.25


def test_a_frame_that_waited_while_the_reader_was_away_is_replaced_by_the_newest() -> None:
    with _publisher() as publisher, _newest(publisher) as source:
        publisher.start(LIVE)
        deadline_s = time.monotonic() + WAIT_S
        while not (publisher._latest and publisher._latest._waiting):  # its request waits there
            assert source.read(0.01) is None
            assert time.monotonic() < deadline_s
        for index in range(40):
            publisher.send(_frame(index))
        assert source._answers.poll(WAIT_S * 1000)  # the answer to that request is an old frame by now
        source._left_s -= 1.0
        assert source.read(WAIT_S).index == 39
        assert source.read(0.05) is None
        publisher.send(_frame(40))
        assert source.read(WAIT_S).index == 40


def test_a_reader_that_only_looks_in_now_and_then_gets_frames_too() -> None:
    stop = threading.Event()
    seen: list[int] = []
    pause = threading.Event()
    with (
        _publisher() as publisher,
        _newest(publisher) as source,
        _in_thread(lambda: serve(Camera(10**6, 0.005), publisher, stop=stop)),
    ):
        deadline_s = time.monotonic() + WAIT_S
        while len(seen) < 8 and time.monotonic() < deadline_s:
            frame = source.read(0.0)
            if frame is not None:
                seen.append(frame.index)
            pause.wait(0.12)
        stop.set()
        with pytest.raises(EndOfStream, match="the publisher was stopped"):
            _exhaust(source)
    assert len(seen) == 8
    assert seen == sorted(set(seen))


def test_a_reader_of_the_newest_never_holds_up_a_recording() -> None:
    recorded = SourceInfo("test:", live=False, n_frames=300)
    with _publisher() as publisher, _newest(publisher) as source:
        publisher.start(recorded)
        for index in range(300):  # far more than what queues and kernel hold, and nobody reads
            assert publisher.send(_frame(index, shape=(512, 512)), timeout_s=0.0)
        with _in_thread(lambda: publisher.end("over", 300)):
            assert _read(source).index == 299
            with pytest.raises(EndOfStream, match="over"):
                _read(source)
        assert source.account == StreamAccount(received=1, refused=0, before=299, missed=0, sent=300)


def test_the_start_tells_the_port_and_a_publisher_without_one_is_an_error() -> None:
    with zmq.Context() as context, context.socket(zmq.XPUB) as foreign:
        foreign.linger = 0
        port = foreign.bind_to_random_port("tcp://127.0.0.1")
        source = open_source(f"zmq+tcp://127.0.0.1:{port}?latest=1")
        assert source.read(0.0) is None
        assert foreign.poll(WAIT_S * 1000)
        foreign.send_multipart(encode_frame(_frame(0), "s", 0))
        foreign.send_multipart(encode_start("s", LIVE))
        with pytest.raises(SourceError, match="has no latest-frame socket; leave latest=1 out"):
            _read(source)


def test_the_port_after_the_streams_is_taken_unless_another_is_given() -> None:
    with _publisher() as publisher:
        free = int(publisher.address.rpartition(":")[2])
    first = Publisher(f"tcp://127.0.0.1:{free}", latest_port=0)
    assert first.latest_port not in (0, free)
    with pytest.raises(SourceError, match=r"cannot bind .*; is it in use\?"):
        Publisher("tcp://127.0.0.1:0", latest_port=first.latest_port)
    first.close()


def test_the_newest_and_every_frame_exclude_each_other() -> None:
    with pytest.raises(SourceError, match="latest=1 skips frames and this run wants every one; leave latest=1 out"):
        open_source("zmq+tcp://127.0.0.1:5555?latest=1", every=True)


def test_the_numbers_go_on_when_the_publisher_is_started_again() -> None:
    with _publisher() as publisher, _newest(publisher) as source:
        publisher.start(LIVE)
        publisher.send(_frame(5))
        assert _read(source).index == 5
        publisher.start(LIVE)
        publisher.send(_frame(0))
        frame = _read(source)
        assert frame.index == 6
        assert frame.metadata["note"].startswith("the publisher was started again after frame 5;")


def test_a_subscriber_that_stood_still_at_the_end_still_learns_what_it_lost() -> None:
    """Every queue is full when the publisher ends; 5.5 s later the subscriber goes on and reads on to the end."""
    assert END_LINGER_S >= 60
    with _publisher() as publisher:
        source: Any = open_source(f"zmq+{publisher.address}?timeout_s=3")
        assert source.read(0.0) is None
        assert publisher.wait_for_subscriber(WAIT_S)
        publisher.start(LIVE)
        n_frames, full_s = 0, time.monotonic() + 1.5
        while time.monotonic() < full_s:
            publisher.send(_frame(n_frames, shape=(512, 1024)))
            n_frames += 1
        assert publisher.n_stalls > 0

        def finish() -> None:
            publisher.end("the camera was stopped", n_frames)
            publisher.close()

        with _in_thread(finish):
            threading.Event().wait(5.5)
            with pytest.raises(EndOfStream, match="the camera was stopped") as ended:
                _exhaust(source)
        account = source.account
        source.close()
    assert ended.value.n_frames == n_frames
    assert 0 < account.received < n_frames
    assert account.before == 0
    assert account.received + account.missed == account.sent == n_frames
