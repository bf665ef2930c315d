"""Any ZeroMQ subscriber reads the detections, one line of JSON a frame."""

import json

import numpy as np
import pytest
import zmq

from oneframe.acquisition import Frame, SourceError
from oneframe.acquisition.keys import CLIENT_SECRET, SERVER_PUBLIC, create_keys, read_client_keys
from oneframe.runtime import Detections, Tracks
from oneframe.runtime.output import OutputSink
from oneframe.runtime.publish import PublishDetections, line_of
from oneframe.runtime.seams import Analysed

IMAGE = np.arange(64, dtype=np.uint16).reshape(8, 8)


def result(index: int, y_px: list[float], *, pixel_size_um: float | None = None, age_s: float = 0.01) -> Analysed:
    y = np.array(y_px, np.float32)
    detections = Detections(y, y + np.float32(0.1), np.full(len(y), 0.9, np.float32), photons=y * 100)
    tracks = Tracks(detections, np.arange(len(y), dtype=np.int64) + 5)
    return Analysed(Frame(IMAGE, index, 1.7e9, pixel_size_um), tracks, age_s, 0.0)


def test_a_line_carries_every_column_exactly():
    line = line_of(result(3, [1.25, 7.3], pixel_size_um=0.5))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    told = json.loads(line)
    assert told | {"frame": 3, "time_s": 1.7e9, "latency_ms": 10.0, "n": 2, "pixel_size_um": 0.5} == told
    assert told["track_id"] == [5, 6]
    for name, column in result(3, [1.25, 7.3]).tracks.detections.columns().items():
        np.testing.assert_array_equal(np.array(told[name], np.float32), column)
    np.testing.assert_allclose(told["y_um"], np.array(told["y_px"]) * 0.5)


def test_a_line_of_cells_carries_their_parents():
    lodestar = result(0, [1.0, 2.0])
    tracks = Tracks(lodestar.tracks.detections, np.array([7, 8]), np.array([0, 3]))
    assert json.loads(line_of(Analysed(lodestar.frame, tracks, 0.01, 0.0)))["parent_id"] == [0, 3]
    assert "parent_id" not in json.loads(line_of(lodestar))


def test_what_is_not_known_or_not_finite_is_left_out_or_null():
    told = json.loads(line_of(result(0, [1.0, float("nan")], age_s=float("nan"))))
    assert told["y_px"] == [1.0, None]
    assert told["latency_ms"] is None
    assert told["pixel_size_um"] is None
    assert "y_um" not in told
    assert json.loads(line_of(result(0, []), pixel_size_um=0.2))["y_um"] == []


def test_a_plain_subscriber_gets_every_frame():
    publisher = PublishDetections("tcp://127.0.0.1:*")
    sink = OutputSink("publish", publisher, queue_frames=1000)
    context = zmq.Context()
    try:
        socket = context.socket(zmq.SUB)
        socket.set(zmq.RCVTIMEO, 5000)
        socket.subscribe(b"")
        socket.connect(publisher.address)
        index = 0
        while not socket.poll(5):  # PUB does not tell when a subscriber has arrived
            sink.write(result(index, [1.0]))
            index += 1
            assert index < 1000
        first = json.loads(socket.recv())["frame"]
        for later in range(index, index + 200):
            sink.write(result(later, [1.0, 2.0]))
        sink.close()
        got = [json.loads(socket.recv())["frame"] for _ in range(first + 1, index + 200)]
        assert got == list(range(first + 1, index + 200))
    finally:
        context.destroy(linger=0)
    report = sink.report()
    assert report["n"] == report["frames"] == index + 200


@pytest.mark.parametrize("bind", ["tcp://0.0.0.0:5556", "tcp://*:5556", "tcp://192.168.1.2:5556", "tcp://host:5556"])
def test_only_this_machine_may_listen_without_keys(bind):
    with pytest.raises(SourceError, match="leaves this computer, which needs keys"):
        PublishDetections(bind)


def test_with_keys_only_their_clients_can_read(tmp_path):
    folder = tmp_path / "keys"
    client = create_keys(folder, ["ann"]).clients[0]
    publisher = PublishDetections("tcp://*:0", keys=folder)
    address = publisher.address.replace("0.0.0.0", "127.0.0.1")
    context = zmq.Context()
    try:
        stranger, ann = context.socket(zmq.SUB), context.socket(zmq.SUB)
        read_client_keys(client / SERVER_PUBLIC, client / CLIENT_SECRET).secure(ann)
        for socket in (stranger, ann):
            socket.subscribe(b"")
            socket.connect(address)
        for index in range(400):
            publisher.act(result(index, [1.0, 2.0]))
            if ann.poll(50):
                break
        assert json.loads(ann.recv())["n"] == 2
        assert not stranger.poll(200)
    finally:
        context.destroy(linger=0)
        publisher.close()


def test_a_wrong_or_taken_address_is_explained():
    with pytest.raises(SourceError, match=r"publish at tcp://127.0.0.1:PORT"):
        PublishDetections("127.0.0.1:5556")
    first = PublishDetections("tcp://localhost:0")
    with pytest.raises(OSError, match="take another port"):
        PublishDetections(first.address)
    first.close()


def test_a_line_of_emitters_tells_how_dense_and_how_precise_they_are():
    one = np.ones(4, np.float32)
    found = Detections(one, one, 0.5 * one, photons=900 * one, sigma_y_px=0.1 * one, sigma_x_px=0.1 * one)
    tracks = Tracks(found, np.arange(4, dtype=np.int64))
    told = json.loads(line_of(Analysed(Frame(IMAGE, 0, 1.7e9, 0.1), tracks, 0.01, 0.0)))
    assert (told["n_emitters"], told["expected_emitters"]) == (4, 2)
    assert told["density_um2"] == pytest.approx(4 / 0.64)
    assert told["median_precision_nm"] == pytest.approx(10)
    unknown = json.loads(line_of(Analysed(Frame(IMAGE, 0, 1.7e9), tracks, 0.01, 0.0)))
    assert (unknown["density_um2"], unknown["median_precision_nm"]) == (None, None)
    assert unknown["density_1000px2"] == pytest.approx(62.5)
    empty = json.loads(
        line_of(Analysed(Frame(IMAGE, 0, 1.7e9, 0.1), Tracks(found.rows(one < 0), tracks.track_id[:0]), 0.01, 0))
    )
    assert (empty["n_emitters"], empty["density_um2"], empty["median_precision_nm"]) == (0, 0, None)
    assert "n_emitters" not in json.loads(line_of(result(0, [1.0])))
