"""A logged run outlives its camera's process, notes what happened to Micro-Manager, and ends cleanly where it must."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from oneframe.app.main import main
from oneframe.runtime.record import read_run

pytest.importorskip("pycromanager", reason="needs oneframe[mm]")

WAIT_S = 60.0


def notes_of(run: Path) -> list[str]:
    with closing(sqlite3.connect(run / "run.sqlite")) as db:
        return [text for (text,) in db.execute("SELECT text FROM events WHERE kind = 'note' ORDER BY frame")]


def rows_of(run: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{run / 'run.sqlite'}?mode=ro", uri=True)) as db:
            return db.execute("SELECT COUNT(*) FROM frames").fetchone()[0]
    except sqlite3.Error:
        return 0


def until(condition, what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain for {what}"
        time.sleep(0.05)


def camera_processes(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()  # a child belongs to the thread that started it
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    return [int(child) for child in children if b"camera_process" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the camera's process in /proc")
def test_a_camera_that_is_killed_is_started_again_and_the_run_goes_on(bead_model, tmp_path):
    run = tmp_path / "run"
    source = "demo:?width=96&height=96&exposure_ms=20"
    command = [sys.executable, "-m", "oneframe.app", "log", str(bead_model.path), "--source", source, "-o", str(run)]
    log = subprocess.Popen([*command, "--frames", "150", "--json"], stdout=subprocess.PIPE, text=True)
    try:
        until(lambda: rows_of(run) > 20, "the first frames")
        (camera,) = camera_processes(log.pid)
        os.kill(camera, signal.SIGKILL)
        out, _ = log.communicate(timeout=WAIT_S)
    finally:
        log.kill()
        log.communicate()
    assert log.returncode == 0
    done = json.loads(out.splitlines()[-1])
    assert (done["event"], done["seen"], done["analysed"]) == ("done", 150, 150)
    account = read_run(run)["account"]
    assert account["gaps_of_unknown_length"] == 1
    (note,) = (note for note in notes_of(run) if "regions" not in note)
    assert "SIGKILL" in note
    assert sum(account["reasons"].values()) == account["lost_before"]


def test_a_running_micro_manager_is_snapped_and_logged_and_its_troubles_are_noted(bead_model, tmp_path, capsys):
    from bridge_server import bridge_server

    run = tmp_path / "run"
    with bridge_server(width=96, height=96) as server:
        url = server.url + "?timeout_s=2&wait_s=20"
        assert main(["snap", url, "-o", str(tmp_path / "snap.tif")]) == 0

        def user() -> None:
            until(lambda: rows_of(run) > 5, "the first frames")
            server.press_live(False)
            server.core.setExposure(20.0)
            server.press_live(True)

        hand = threading.Thread(target=user)
        hand.start()
        exit_code = main(["log", str(bead_model.path), "--source", url, "-o", str(run), "--frames", "300", "--json"])
        hand.join(WAIT_S)
        assert server.core.isSequenceRunning()  # whatever we do, live mode stays the user's
    assert exit_code == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert any((line.get("bridge_mb_per_s") or 0) > 0 for line in told if line["event"] == "progress")
    account = read_run(run)["account"]
    assert account["seen"] == 300 == account["analysed"] + account["skipped"] + account["failed"]
    assert any("exposure" in note for note in notes_of(run))


def test_a_micro_manager_that_goes_away_for_good_ends_the_run_with_a_sentence(bead_model, tmp_path, capsys):
    from bridge_server import bridge_server

    run = tmp_path / "run"
    with bridge_server(width=64, height=64) as server:

        def user() -> None:
            until(lambda: rows_of(run) > 5, "the first frames")
            server.vanish()

        hand = threading.Thread(target=user)
        hand.start()
        url = server.url + "?timeout_s=1&wait_s=2"
        exit_code = main(["log", str(bead_model.path), "--source", url, "-o", str(run), "--json"])
        hand.join(WAIT_S)
    assert exit_code == 1
    error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert "Run server on port" in error
    run_json = read_run(run)
    assert run_json["ended"] == error
    assert run_json["account"]["analysed"] > 5
