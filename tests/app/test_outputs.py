"""The closed loop from the command line: results leave, come back as an end of the run, and never harm it."""

import json
import re
import socket
import threading

import pytest
import zmq
from microscope import SCENE

from oneframe.app.main import main
from oneframe.runtime.record import read_run

FAILING = """
def seen(analysed):
    if analysed.frame.index == 5:
        raise ValueError("not this one")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def log(bead_model, tmp_path, *options: str) -> int:
    return main(["log", str(bead_model.path), "-o", str(tmp_path / "run"), "--json", *options])


def test_a_run_ends_when_its_condition_holds_and_tells_how_the_outputs_did(bead_model, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(FAILING)
    options = ["--source", SCENE + "&fps=60", "--call", f"{tmp_path / 'mine.py'}:seen", "--seconds", "60"]
    assert log(bead_model, tmp_path, *options, "--stop-when", "track_length >= 40", "--stop-after", "3") == 0
    run = read_run(tmp_path / "run")
    assert run["ended"].startswith("track_length >= 40 was true for 3 frames: track_length 4")
    called = run["outputs"][f"call {tmp_path / 'mine.py'}:seen"]
    assert called["failed"] == {"ValueError: not this one": 1}
    assert called["frames"] == run["account"]["analysed"] == called["n"] + 1
    assert 0 < called["latency_p50_ms"] <= called["latency_p99_ms"] < 10_000
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any("failed at frame 5: ValueError: not this one" in line.get("sentence", "") for line in told)


def test_detections_are_published_line_by_line(bead_model, tmp_path):
    address = f"tcp://127.0.0.1:{free_port()}"
    lines: list[dict] = []

    def listen() -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
            subscriber.subscribe(b"")
            subscriber.connect(address)
            while len(lines) < 20 and subscriber.poll(20_000):
                lines.append(json.loads(subscriber.recv()))

    listener = threading.Thread(target=listen)
    listener.start()
    assert log(bead_model, tmp_path, "--source", SCENE + "&fps=60&frames=150", "--publish", address) == 0
    listener.join(30)
    assert len(lines) == 20
    first = lines[0]["frame"]
    assert [line["frame"] for line in lines] == list(range(first, first + 20))
    assert all(len(line["y_px"]) == len(line["sigma_y_px"]) == line["n"] > 0 for line in lines)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--follow"], "--follow moves the stage of Micro-Manager, sim:beads.* has none"),
        (["--call", "nowhere:f"], "cannot import 'nowhere'"),
        (["--stop-when", "mood < 3"], "expected a condition such as 'objects < 1', got 'mood < 3'"),
        (["--publish", "tcp://0.0.0.0:5999"], "leaves this computer, which needs keys on both sides"),
    ],
)
def test_a_wrong_option_is_explained_before_a_folder_is_made(bead_model, tmp_path, capsys, options, sentence):
    assert log(bead_model, tmp_path, "--source", SCENE + "&frames=3", *options) == 1
    assert re.search(sentence, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
