"""`serve` in one process and `log` in another: every frame is accounted for, also for a late or a slow subscriber."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from microscope import SCENE

from oneframe.runtime.record import read_run

Event = dict[str, Any]


@contextmanager
def oneframe(*argv: str) -> Iterator[tuple[subprocess.Popen[str], Callable[[Callable[[Event], bool]], Event]]]:
    """Run a command; yield it and a function that waits for a JSON line that fits."""
    process = subprocess.Popen(
        [sys.executable, "-m", "oneframe.app", *argv, "--json"], stdout=subprocess.PIPE, text=True
    )

    def wait_for(fits: Callable[[Event], bool]) -> Event:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if fits(event):
                return event
        raise AssertionError(f"{argv} ended without the expected line")

    try:
        yield process, wait_for
    finally:
        process.kill()
        process.communicate()


def is_a(kind: str) -> Callable[[Event], bool]:
    return lambda event: event["event"] == kind


def check_account(run: Path, n_published: int) -> dict[str, Any]:
    account: dict[str, Any] = read_run(run)["account"]
    assert account["seen"] == account["analysed"] + account["skipped"] + account["failed"]
    assert account["before_start"] + account["seen"] + account["lost_before"] == n_published
    assert read_run(run)["published"] == n_published
    assert sum(account["reasons"].values()) == account["skipped"] + account["failed"] + account["lost_before"]
    return account


def test_with_wait_nothing_is_lost(bead_model, tmp_path):
    with oneframe("serve", SCENE + "&fps=200&frames=120", "--bind", "tcp://127.0.0.1:0", "--wait") as (_, served):
        address = served(is_a("serving"))["address"]
        with oneframe("log", str(bead_model.path), "--source", address, "-o", str(tmp_path / "run")) as (log, logged):
            logged(is_a("done"))
            assert log.wait(20) == 0
        assert served(is_a("done"))["sent"] == 120
    account = check_account(tmp_path / "run", 120)
    assert account["seen"] == 120
    assert account["before_start"] == account["lost_before"] == 0


def test_a_late_subscriber_knows_what_was_before(bead_model, tmp_path):
    with oneframe("serve", SCENE + "&fps=40&frames=160", "--bind", "tcp://127.0.0.1:0") as (_, served):
        address = served(is_a("serving"))["address"]
        served(lambda event: event.get("sent", 0) >= 20)
        with oneframe("log", str(bead_model.path), "--source", address, "-o", str(tmp_path / "run")) as (_, logged):
            logged(is_a("done"))
    account = check_account(tmp_path / "run", 160)
    assert account["before_start"] >= 20
    assert account["seen"] > 0


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs a signal that stops a process")
def test_a_subscriber_that_stands_still_counts_what_it_lost(bead_model, tmp_path):
    scene = "sim:beads?width=256&height=256&n=6&fps=120&frames=600"
    with oneframe("serve", scene, "--bind", "tcp://127.0.0.1:0", "--wait") as (_, served):
        address = served(is_a("serving"))["address"]
        with oneframe("log", str(bead_model.path), "--source", address, "-o", str(tmp_path / "run")) as (log, logged):
            logged(lambda event: event.get("analysed", 0) > 5)
            log.send_signal(signal.SIGSTOP)
            served(lambda event: event.get("sent", 0) >= 250)
            log.send_signal(signal.SIGCONT)
            logged(is_a("done"))
    check_account(tmp_path / "run", 600)


def test_messages_that_lie_are_failed_frames_and_the_run_goes_on(bead_model, tmp_path):
    import threading

    import zmq

    from oneframe.acquisition import SourceInfo
    from oneframe.acquisition.wire import encode_end, encode_frame, encode_start

    frame = bead_model.snap.frame
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        publisher.linger = 2000
        port = publisher.bind_to_random_port("tcp://127.0.0.1")

        def publish() -> None:
            publisher.recv()  # the subscription
            publisher.send_multipart(encode_start("s", SourceInfo("test", live=True)))
            for index in range(6):
                header, pixels = encode_frame(type(frame)(frame.pixels, index, frame.time_s), "s")
                publisher.send_multipart([header, bytes(pixels)[:-1] if index == 2 else pixels])
            publisher.send_multipart([b"no json", b""])
            publisher.send_multipart(encode_end("s", 6, "over"))

        thread = threading.Thread(target=publish)
        thread.start()
        source, run = f"zmq+tcp://127.0.0.1:{port}", tmp_path / "run"
        with oneframe("log", str(bead_model.path), "--source", source, "-o", str(run)) as (_, logged):
            done = logged(is_a("done"))
        thread.join(10)
    assert (done["seen"], done["analysed"], done["failed"], done["lost_before"]) == (7, 5, 2, 0)
    assert read_run(run)["account"]["reasons"] == done["reasons"]
