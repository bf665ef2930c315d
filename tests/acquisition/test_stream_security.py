"""Who cannot read, who cannot inject, and what damage does: nothing is accepted that was not sent."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import socket as tcp
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oneframe.acquisition import BadFrameError, EndOfStream, Frame, SourceError, SourceInfo, open_source
from oneframe.acquisition.keys import CLIENT_SECRET, SERVER_PUBLIC, KeyFolder, create_keys
from oneframe.acquisition.publisher import Publisher, serve
from oneframe.acquisition.subscriber import StreamAccount, StreamSource
from oneframe.acquisition.wire import decode, encode_end, encode_frame, encode_start

WAIT_S = 20.0
LIVE = SourceInfo("test:", live=True, pixel_size_um=0.1)
RECORDED = SourceInfo("test:", live=False, n_frames=300)


class Numbered:
    """A recording of numbered frames that waits for its readers."""

    info = RECORDED

    def __init__(self, n_frames: int) -> None:
        self._indices = iter(range(n_frames))
        self._n_frames = n_frames

    def read(self, timeout_s: float) -> Frame | None:
        index = next(self._indices, None)
        if index is None:
            raise EndOfStream("all frames were given", n_frames=self._n_frames)
        return _frame(index)

    def close(self) -> None:
        return


def _frame(index: int) -> Frame:
    pixels = np.random.default_rng(index).integers(0, 4000, (32, 48), dtype=np.uint16)
    return Frame(pixels, index, 1_700_000_000.0 + index / 100, 0.1, {"exposure_ms": 5.0, "camera_frame": index})


def _same(frame: Frame, true: Frame) -> bool:
    return (
        np.array_equal(frame.pixels, true.pixels)
        and frame.pixels.dtype == true.pixels.dtype
        and (frame.index, frame.pixel_size_um, frame.metadata) == (true.index, true.pixel_size_um, true.metadata)
        and abs(frame.time_s - true.time_s) < 1e-6
    )


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFolder:
    return create_keys(tmp_path_factory.mktemp("keys") / "keys", ["ann", "bob"])


@pytest.fixture(scope="module")
def other_keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFolder:
    """Keys of another laboratory."""
    return create_keys(tmp_path_factory.mktemp("other") / "keys", ["eve"])


@contextmanager
def _publisher(keys: KeyFolder | None) -> Iterator[Publisher]:
    if keys is None:
        publisher = Publisher("tcp://127.0.0.1:0")
    else:
        publisher = Publisher("tcp://*:0", server_keys=keys.server_secret, allowed_clients=keys.allowed)
    try:
        yield publisher
    finally:
        publisher.close()


def _url(publisher: Publisher, server: Path | None = None, client: Path | None = None, more: str = "") -> str:
    port = publisher.address.rpartition(":")[2]
    given = f"&server_key={server / SERVER_PUBLIC}&client_key={client / CLIENT_SECRET}" if server and client else ""
    return f"zmq+tcp://127.0.0.1:{port}?timeout_s=20{given}{more}"


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    source = open_source(url)
    try:
        yield source
    finally:
        source.close()


def _read_all(source: Any) -> tuple[list[Frame], EndOfStream]:
    """All frames up to the end; what is refused is counted by the source."""
    taken: list[Frame] = []
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        try:
            frame = source.read(0.5)
        except BadFrameError:
            continue
        except EndOfStream as exc:
            return taken, exc
        if frame is not None:
            taken.append(frame)
    raise AssertionError(f"no end within {WAIT_S} s, {len(taken)} frames")


def _check_complete(source: Any, n_frames: int) -> None:
    """The subscriber reads every frame as it was sent, and its account says so."""
    taken, end = _read_all(source)
    assert [frame.index for frame in taken] == list(range(n_frames))
    assert all(_same(frame, _frame(frame.index)) for frame in taken)
    assert end.n_frames == n_frames
    assert source.account == StreamAccount(received=n_frames, refused=0, before=0, missed=0, sent=n_frames)


@contextmanager
def _serving(publisher: Publisher, n_frames: int) -> Iterator[None]:
    thread = threading.Thread(
        target=lambda: serve(Numbered(n_frames), publisher, stop=threading.Event(), linger_s=WAIT_S)
    )
    thread.start()
    yield
    thread.join(WAIT_S)
    assert not thread.is_alive()


@contextmanager
def _meanwhile(attack: Callable[[threading.Event], None]) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=attack, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_an_allowed_client_reads_everything_on_any_interface(keys: KeyFolder) -> None:
    ann, bob = keys.clients
    with (
        _publisher(keys) as publisher,
        _opened(_url(publisher, ann, ann)) as first,
        _opened(_url(publisher, bob, bob)) as second,
    ):
        assert publisher.address.startswith("tcp://0.0.0.0:")
        for source in (first, second):
            assert source.read(0.0) is None
        deadline_s = time.monotonic() + WAIT_S
        while publisher.n_subscribers < 2 and time.monotonic() < deadline_s:
            publisher.announce()
        with _serving(publisher, 100), _meanwhile(lambda _: _check_complete(second, 100)):
            _check_complete(first, 100)


def test_the_newest_frame_is_encrypted_too(keys: KeyFolder) -> None:
    ann = keys.clients[0]
    with _publisher(keys) as publisher, _opened(_url(publisher, ann, ann, "&latest=1")) as source:
        publisher.start(LIVE)
        for index in range(10):
            publisher.send(_frame(index))
        frame = _next(source, publisher)
        assert _same(frame, _frame(9))


def _next(source: Any, publisher: Publisher) -> Frame:
    """The next frame while the publisher lives on in this thread."""
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        publisher.announce()
        frame = source.read(0.05)
        if frame is not None:
            return frame  # type: ignore[no-any-return]
    raise AssertionError("no frame")


STRANGERS = {
    "no keys": "wants keys; add \\?server_key=FILE&client_key=FILE",
    "not on the list": "does not know this client's key; put its public key",
    "wrong server key": "no message from .* are the keys the right ones",
}


@pytest.mark.parametrize("latest", ["", "&latest=1"])
@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_reads_nothing_and_a_client_loses_nothing(
    stranger: str, latest: str, keys: KeyFolder, other_keys: KeyFolder
) -> None:
    ann, eve = keys.clients[0], other_keys.clients[0]
    server, client = {
        "no keys": (None, None), "not on the list": (ann, eve), "wrong server key": (eve, ann)
    }[stranger]  # fmt: skip
    refused: list[Exception] = []

    with _publisher(keys) as publisher, _opened(_url(publisher, ann, ann)) as friend:

        def attack(_: threading.Event) -> None:
            with _opened(_url(publisher, server, client, latest).replace("timeout_s=20", "timeout_s=1")) as source:
                try:
                    _read_all(source)
                except SourceError as exc:
                    refused.append(exc)
                assert source.account.received == 0

        assert friend.read(0.0) is None
        assert publisher.wait_for_subscriber(WAIT_S)
        with _meanwhile(attack), _serving(publisher, 200):
            _check_complete(friend, 200)
    assert len(refused) == 1
    with pytest.raises(SourceError, match=STRANGERS[stranger]):
        raise refused[0]


def test_the_newest_frame_is_not_given_to_a_stranger(keys: KeyFolder, other_keys: KeyFolder) -> None:
    from oneframe.acquisition.keys import read_client_keys
    from oneframe.acquisition.wire import encode_request

    eve = other_keys.clients[0]
    strange = read_client_keys(keys.clients[0] / SERVER_PUBLIC, eve / CLIENT_SECRET)
    with _publisher(keys) as publisher, zmq.Context() as context:
        publisher.start(LIVE)
        publisher.send(_frame(0))
        for secured in (False, True):
            with context.socket(zmq.DEALER) as socket:
                socket.linger = 0
                if secured:
                    strange.secure(socket)
                socket.connect(f"tcp://127.0.0.1:{publisher.latest_port}")
                socket.send_multipart(encode_request(1, publisher._series, -1))
                assert not socket.poll(300)
        assert publisher._doorkeeper is not None
        assert publisher._doorkeeper.n_refused == 1


@pytest.mark.parametrize("impostor", ["plain", "other keys"])
def test_an_impostor_on_the_port_is_not_listened_to(impostor: str, keys: KeyFolder, other_keys: KeyFolder) -> None:
    ann = keys.clients[0]
    with _publisher(other_keys if impostor == "other keys" else None) as publisher:
        url = _url(publisher, ann, ann).replace("timeout_s=20", "timeout_s=0.5")
        with _opened(url) as source:
            assert source.read(0.0) is None

            def publish(stop: threading.Event) -> None:
                publisher.start(LIVE)
                index = itertools.count()
                while not stop.wait(0.01):
                    publisher.send(_frame(next(index)))

            with _meanwhile(publish), pytest.raises(SourceError, match=r"are the keys the right ones|wants no keys"):
                _read_all(source)
            assert source.account == StreamAccount(0, 0, None, None, None)


def test_without_its_doorkeeper_the_door_is_shut_and_serve_says_so(
    keys: KeyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    ann, bob = keys.clients
    with _publisher(keys) as publisher, _opened(_url(publisher, ann, ann)) as source:
        doorkeeper = publisher._doorkeeper
        assert doorkeeper is not None
        doorkeeper._allowed = None  # type: ignore[assignment]
        assert source.read(0.5) is None
        doorkeeper._thread.join(WAIT_S)
        assert "the check of client keys broke down" in caplog.text
        publisher.start(LIVE)
        with pytest.raises(SourceError, match="new subscribers are refused; start serve again"):
            publisher.send(_frame(0))
        with _opened(_url(publisher, bob, bob)) as second:
            assert second.read(0.5) is None
        assert not publisher.wait_for_subscriber(0.3)


@pytest.mark.parametrize("encrypted", [True, False])
def test_junk_at_the_ports_costs_a_correct_subscriber_nothing(encrypted: bool, keys: KeyFolder) -> None:
    rng = random.Random(7)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
    openings = [b"", greeting[:10], greeting, greeting + b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"]
    n_sent = 0
    ann = keys.clients[0] if encrypted else None

    def attack(stop: threading.Event) -> None:
        nonlocal n_sent
        ports = [int(publisher.address.rpartition(":")[2]), publisher.latest_port]
        while not stop.is_set() and n_sent < 400:
            junk = rng.choice(openings) + rng.randbytes(rng.choice([1, 40, 5000])) + b"\x02" + b"\xff" * 8
            with contextlib.suppress(OSError), tcp.create_connection(("127.0.0.1", rng.choice(ports)), 5) as line:
                line.settimeout(5)
                line.sendall(junk)
                n_sent += 1

    with _publisher(keys if encrypted else None) as publisher, _opened(_url(publisher, ann, ann)) as source:
        assert source.read(0.0) is None
        assert publisher.wait_for_subscriber(WAIT_S)
        with _meanwhile(attack), _serving(publisher, 300):
            _check_complete(source, 300)
    assert n_sent > 10


def test_what_peers_send_upstream_harms_nobody() -> None:
    """A local process without keys may talk to both sockets of a plain publisher; nobody else notices."""
    rng = random.Random(3)
    n_sent = 0

    def attack(stop: threading.Event) -> None:
        nonlocal n_sent
        with zmq.Context() as context:
            upstream, asker = context.socket(zmq.XSUB), context.socket(zmq.DEALER)
            for socket, port in ((upstream, publisher.address.rpartition(":")[2]), (asker, publisher.latest_port)):
                socket.linger = 0
                socket.connect(f"tcp://127.0.0.1:{port}")
            while not stop.is_set() and n_sent < 2000:
                with contextlib.suppress(zmq.Again):
                    upstream.send(rng.choice([b"\x02", b"\x00", b"{", b""]) + rng.randbytes(30), zmq.NOBLOCK)
                    parts = [
                        rng.choice([b"1", b"-1", b"9" * 30, rng.randbytes(9), b""])
                        for _ in range(rng.choice([1, 3, 8]))
                    ]
                    asker.send_multipart(parts, zmq.NOBLOCK)
                    n_sent += 1
            context.destroy(linger=0)

    with _publisher(None) as publisher, _opened(_url(publisher)) as source:
        assert source.read(0.0) is None
        assert publisher.wait_for_subscriber(WAIT_S)
        with _meanwhile(attack), _serving(publisher, 300):
            _check_complete(source, 300)
        with _opened(_url(publisher, more="&latest=1")) as newest:
            publisher.start(LIVE)
            publisher.send(_frame(7))
            assert _next(newest, publisher).index == 7
    assert n_sent > 10


# ---- damage: 10,000 mutations of real messages

FRAMES = [
    Frame(np.arange(60, dtype=dtype).reshape(3, 4, 5), 3, 1_700_000_000.5, 0.065, metadata)
    for dtype, metadata in (
        ("uint8", {}),
        ("uint16", {"exposure_ms": 5.0}),
        ("float32", {"note": "réglage", "roi": [1, 2]}),
    )
]
MESSAGES = [[bytes(part) for part in encode_frame(frame, "0123456789abcdef", 3)] for frame in FRAMES]
MESSAGES += [
    [bytes(part) for part in message]
    for message in (
        encode_start("0123456789abcdef", LIVE, 5556),
        encode_end("0123456789abcdef", 5, "over", 5),
    )
]
# what to do, where (two bytes), with what (two bytes)
_CHANGE = 5


def _mutated(text: bytes, recipe: bytes) -> bytes:
    for start in range(0, len(recipe) - _CHANGE + 1, _CHANGE):
        kind, where, what = recipe[start] % 7, recipe[start + 1 : start + 3], recipe[start + 3 : start + _CHANGE]
        at = int.from_bytes(where) * len(text) >> 16
        head, tail = text[:at], text[at:]
        if kind == 0:  # flip bits
            text = head + bytes([(tail[:1] or b"\x00")[0] ^ (what[0] or 1)]) + tail[1:]
        else:  # overwrite, insert, drop, cut off, repeat, swap halves
            text = (
                head + what + tail[2:],
                head + what + tail,
                head + tail[what[0] % 9 :],
                head,
                text + tail,
                tail + head,
            )[kind - 1]
    return text


def _small(index: int) -> Frame:
    return Frame(np.full((2, 2), index, np.uint8), index, 1.0)


BEGIN = [decode(encode_start("0123456789abcdef", LIVE))]
BEGIN += [decode(encode_frame(_small(index), "0123456789abcdef", index)) for index in range(3)]
FOLLOWING = decode(encode_frame(_small(4), "0123456789abcdef", 4))
KEYS = ["htype", "type", "shape", "frame", "n", "v", "series", "t_ns", "pixel_um", "md", "total", "sent", "live"]
KEYS += ["latest_port", "reason", "url", "n_frames"]


def _begun() -> StreamSource:
    """A subscriber without a socket that has taken the start of a series and its frames 0 to 2."""
    source = StreamSource("test:", "tcp://127.0.0.1:1", silence_s=1, high_water_mark=1, max_message_mb=1)
    for message in BEGIN:
        source._take(message)
    return source


N_MUTATIONS = 0


@settings(max_examples=10_000, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.binary(min_size=2 + _CHANGE, max_size=2 + 3 * _CHANGE))
def _damage(recipe: bytes) -> None:
    global N_MUTATIONS
    which = recipe[0] % len(MESSAGES)
    header, pixels = MESSAGES[which]
    if recipe[1] % 8:
        header = _mutated(header, recipe[2:])
    else:
        pixels = _mutated(pixels, recipe[2:])
    source = _begun()
    N_MUTATIONS += [header, pixels] != MESSAGES[which]
    try:
        taken = source._take(decode([header, pixels]))
    except BadFrameError:
        taken = None
        assert source._series == "0123456789abcdef"
    else:
        assert header == MESSAGES[which][0]  # what is taken has the true header
    if which < len(FRAMES):
        true = FRAMES[which]
        if taken is not None:
            assert (taken.index, taken.time_s, taken.metadata) == (true.index, true.time_s, true.metadata)
            assert (taken.pixels.shape, taken.pixels.dtype) == (true.pixels.shape, true.pixels.dtype)
            if [header, pixels] == MESSAGES[which]:
                np.testing.assert_array_equal(taken.pixels, true.pixels)
        else:  # the true frame has not been shut out
            taken = source._take(decode(MESSAGES[which]))
            assert taken is not None
            assert _same(taken, true)
        assert source._take(FOLLOWING) is not None
    elif header != MESSAGES[which][0]:
        assert source._ending is None  # neither a false start nor a false end stops the run
    source.close()


def test_ten_thousand_mutations_are_refused_and_none_stops_the_subscriber() -> None:
    """Damage of every kind to frames, start and end; what is accepted has the header that was sent.

    A mutation that changes nothing but the values of pixels makes another valid frame. Without keys that cannot be
    told: a checksum over the pixels would cost too much of their transport (`benchmarks/stream.py`). With keys the
    transport refuses it, see `test_bytes_changed_on_the_way_reach_nobody`.
    """
    _damage()
    assert N_MUTATIONS > 9_000


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(
    which=st.integers(0, len(MESSAGES) - 1),
    key=st.sampled_from(KEYS),
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=8,
    ),
)  # fmt: skip
def test_a_lie_with_a_right_checksum_is_refused_or_consistent(which: int, key: str, value: Any) -> None:
    header = json.loads(MESSAGES[which][0])
    del header["crc"]
    text = json.dumps({**header, key: value})[:-1].encode()
    source = _begun()
    with contextlib.suppress(BadFrameError):
        frame = source._take(decode([text + b',"crc":"%08x"}' % zlib.crc32(text), MESSAGES[which][1]]))
        if frame is not None:
            assert frame.index > 2
            assert frame.pixels.nbytes == len(MESSAGES[which][1])
            json.dumps(dict(frame.metadata), allow_nan=False).encode()


def test_replays_wrong_series_and_lying_counts_are_refused_with_a_reason() -> None:
    def message(index: int, number: int, series: str = "0123456789abcdef") -> Any:
        return decode(encode_frame(_small(index), series, number))

    source = _begun()
    for index in range(3):
        with pytest.raises(BadFrameError, match=f"frame {index} came after frame 2; expected growing") as caught:
            source._take(message(index, index))
        assert caught.value.index == index
    with pytest.raises(BadFrameError, match="another series") as caught:
        source._take(message(3, 3, "another"))
    assert caught.value.index == 3
    with pytest.raises(BadFrameError, match="another series"):
        source._take(decode(encode_end("another", 9, "over", 9)))
    with pytest.raises(BadFrameError, match="says it is number 2 that was sent, after number 2"):
        source._take(message(5, 2))
    assert source._take(message(10, 3)) is not None
    with pytest.raises(BadFrameError, match="says it is number 5 that was sent, after number 3"):
        source._take(message(11, 5))
    for total, sent in ((10, 9), (11, 3)):
        with pytest.raises(BadFrameError, match=f"tells {total} frames and {sent} sent, fewer than came"):
            source._take(decode(encode_end("0123456789abcdef", total, "over", sent)))
    assert source._take(message(11, 4)) is not None
    assert source._take(decode(encode_end("0123456789abcdef", 14, "over", 7))) is None
    assert source.account == StreamAccount(received=5, refused=0, before=0, missed=2, sent=7)
    for _ in range(2):
        with pytest.raises(EndOfStream, match="over") as ended:
            source.read(0.0)
        assert ended.value.n_frames == 14


def test_an_attacker_at_the_raw_socket_gets_nothing_accepted() -> None:
    """Hundreds of damaged and replayed messages, and a false end, between the true ones."""
    rng = random.Random(11)
    series, n_frames, n_bad = "0123456789abcdef", 100, 0
    with zmq.Context() as context, context.socket(zmq.XPUB) as attacker:
        attacker.linger = 0
        attacker.sndhwm = 0
        port = attacker.bind_to_random_port("tcp://127.0.0.1")
        with _opened(f"zmq+tcp://127.0.0.1:{port}?queue=100000") as source:
            assert source.read(0.0) is None
            assert attacker.poll(WAIT_S * 1000)
            attacker.send_multipart(encode_start(series, LIVE))
            for index in range(n_frames):
                true = [bytes(part) for part in encode_frame(_frame(index), series, index)]
                damaged = bytearray(true[0])
                damaged[rng.randrange(len(damaged))] ^= rng.randrange(1, 256)
                bad = [
                    [bytes(damaged), true[1]],
                    [true[0], true[1][: rng.randrange(len(true[1]))]],
                    [true[0]],
                    [*true, b""],
                    [b"", true[1]],
                    [b"[" * 9000, b""],
                    encode_frame(_frame(index), "another series", index),
                    encode_end(series, 0, "false end", 0) if index else [b"\x00", b""],
                ]
                for message in rng.sample(bad, 4):
                    attacker.send_multipart(message)
                    n_bad += 1
                attacker.send_multipart(true)
                attacker.send_multipart(true)
                n_bad += 1
            attacker.send_multipart(encode_end(series, n_frames, "over", n_frames))
            attacker.send_multipart(encode_frame(_frame(n_frames), series, n_frames))
            taken, end = _read_all(source)
            assert [frame.index for frame in taken] == list(range(n_frames))
            assert all(_same(frame, _frame(frame.index)) for frame in taken)
            assert (end.reason, end.n_frames) == ("over", n_frames)
            assert source.account == StreamAccount(n_frames, n_bad, 0, 0, n_frames)
    assert n_bad == 500


def test_bytes_changed_on_the_way_reach_nobody(keys: KeyFolder) -> None:
    """A man in the middle changes bytes of the encrypted stream: the connection ends, no frame is taken from it.

    What was lost until it is made anew shows in the account.
    """
    ann = keys.clients[0]
    changed = 0
    with _publisher(keys) as publisher, tcp.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(0.1)
        target = ("127.0.0.1", int(publisher.address.rpartition(":")[2]))

        def carry(stop: threading.Event) -> None:
            nonlocal changed
            rng = random.Random(5)
            while not stop.is_set():
                try:
                    inside, _ = door.accept()
                except TimeoutError:
                    continue
                with inside, tcp.create_connection(target, 5) as outside:
                    inside.settimeout(0.005)
                    outside.settimeout(0.005)
                    n_bytes, limit = 0, rng.randrange(2_000, 60_000)
                    with contextlib.suppress(ConnectionError):
                        while not stop.is_set():
                            for here, there in ((inside, outside), (outside, inside)):
                                try:
                                    chunk = bytearray(here.recv(65_536))
                                except TimeoutError:
                                    continue
                                if not chunk:
                                    raise ConnectionResetError
                                n_bytes += len(chunk) * (here is outside)
                                if n_bytes > limit and here is outside:
                                    chunk[rng.randrange(len(chunk))] ^= rng.randrange(1, 256)
                                    changed += 1
                                there.sendall(chunk)

        def publish(stop: threading.Event) -> None:
            publisher.start(LIVE)
            for index in range(10**6):
                if stop.wait(0.002):
                    break
                publisher.send(_frame(index))

        url = _url(publisher, ann, ann).replace(str(target[1]), str(door.getsockname()[1]))
        with _meanwhile(publish), _meanwhile(carry), _opened(url) as source:
            taken = []
            deadline_s = time.monotonic() + 10
            while changed < 15 and time.monotonic() < deadline_s:
                frame = source.read(0.05)
                if frame is not None:
                    taken.append(frame)
            account = source.account
    assert changed >= 5
    assert len(taken) > 5
    assert all(_same(frame, _frame(frame.index)) for frame in taken)
    assert account.refused == 0
    assert account.before is not None
    assert account.missed is not None
    assert account.before + account.received + account.missed == taken[-1].index + 1
