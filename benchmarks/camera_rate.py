"""The highest camera rate at which no frame is missed, and the age of a frame when its rows are on disk.

Run: python benchmarks/camera_rate.py MODEL.onnx [--peer-python VENV/bin/python] [--only oneframe|trackpy]
    [--seconds 10] [--low 4] [--high 200] [-o results.json]

A camera of 1024 x 1024 px that sees 200 simulated beads is served by `oneframe serve` over ZeroMQ, in a process of its
own. The simulator needs longer for a frame than the tracker does, so a ring of frames made before (an NPY recording)
is played at the rate of the camera; `time_s` of a frame is when it was due. Another process follows with
`oneframe log --mode every`; or, under the peer's interpreter (which needs trackpy and pyzmq), with oneframe's own
subscriber, a queue as long as that of `log`, `trackpy.locate(11, minmass=500)` and a table that is flushed after each
frame.

A rate is kept up with if no frame is skipped or lost and the queue does not grow: from the second to the last quarter
of the run the median age rises by less than 1 % of the time in between, or than two frames' time. A failure is tried
again. Bisection to 6 %; then, at half the rate found, the age from exposure to the rows on disk.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import oneframe
from oneframe.acquisition import BadFrameError, EndOfStream, Frame, open_source

SIZE_PX = 1024
N_BEADS = 200
N_RING = 32
QUEUED_FRAMES = 128
"""Frames that wait at most: as many of this size as `log` lets wait."""
MOST_GROWTH = 0.01


def follow_with_log(model: str, address: str, n_frames: int, folder: Path) -> dict[str, Any]:
    """Run `oneframe log`, and note when each frame's rows were committed."""
    from oneframe.app.main import main as oneframe_command
    from oneframe.runtime.record import RunRecord
    from oneframe.runtime.seams import Analysed

    written: list[tuple[float, float]] = []
    write = RunRecord.write

    def timed(record: RunRecord, analysed: Analysed) -> None:
        write(record, analysed)
        written.append((analysed.frame.time_s, time.time() - analysed.frame.time_s))

    RunRecord.write = timed  # type: ignore[method-assign]
    command = ["log", model, "--source", address, "--mode", "every", "--frames", str(n_frames), "-o", str(folder)]
    if oneframe_command([*command, "--json"]) != 0:
        raise SystemExit("oneframe log failed")
    account = json.loads((folder / "run.json").read_text())["account"]
    missed = account["skipped"] + account["failed"] + account["lost_before"]
    return {"written": written, "missed": missed}


def follow_with_trackpy(address: str, n_frames: int, folder: Path) -> dict[str, Any]:
    """Read the stream, locate, write rows."""
    import trackpy

    trackpy.quiet()
    waiting: queue.Queue[Frame | None] = queue.Queue(QUEUED_FRAMES)
    missed = [0]

    def read() -> None:
        source = open_source(address, every=True)
        last = None
        try:
            for _ in range(n_frames):
                frame = None
                while frame is None:
                    frame = source.read(0.1)
                missed[0] += 0 if last is None else frame.index - last - 1
                last = frame.index
                try:
                    waiting.put_nowait(frame)
                except queue.Full:
                    missed[0] += 1
        except (EndOfStream, BadFrameError) as exc:
            print(exc, file=sys.stderr)
            missed[0] += 1
        finally:
            source.close()
            waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    written: list[tuple[float, float]] = []
    folder.mkdir()
    with (folder / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        while (frame := waiting.get()) is not None:
            found = trackpy.locate(frame.pixels, 11, minmass=500)
            rows.writerows((frame.index, frame.time_s, *row) for row in found.to_numpy().tolist())
            file.flush()
            written.append((frame.time_s, time.time() - frame.time_s))
    return {"written": written, "missed": missed[0]}


def wait_for(path: Path, event: str) -> dict[str, Any]:
    """Return the first line of this kind that a command writes."""
    while True:
        for line in path.read_text().splitlines():
            if line.endswith("}") and json.loads(line)["event"] == event:
                told: dict[str, Any] = json.loads(line)
                return told
        time.sleep(0.1)


def probe(kind: str, rate_hz: float, chosen: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Serve the ring at a rate, follow it, and return what came of it."""
    folder = Path(tempfile.mkdtemp(dir=place))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(oneframe.__path__[0]).parent), *sys.path[1:]])}
    peers = {**environment, "PYTHONPATH": os.pathsep.join([str(Path(oneframe.__path__[0]).parent), chosen.peer_path])}
    source = f"{place / 'ring.npy'}?fps={rate_hz}&loop=0"
    lines = folder / "serve.txt"
    with lines.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "oneframe.app", "serve", source, "--bind", "tcp://127.0.0.1:0", "--wait", "--json"],
            stdout=file, env=environment,
        )  # fmt: skip
    try:
        address = wait_for(lines, "serving")["address"]
        is_peer = kind == "trackpy"
        told = folder / "told.json"
        follower = subprocess.run(
            [chosen.peer_python if is_peer else sys.executable, __file__, chosen.model, "--follow", kind, address,
             str(round(rate_hz * chosen.seconds)), str(told)],
            env=peers if is_peer else environment, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        follower.check_returncode()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
    answer = json.loads(told.read_text())
    taken_s, age_s = np.array(answer["written"]).T
    quarter = len(age_s) // 4
    early, late = slice(quarter, 2 * quarter), slice(-quarter, None)
    apart_s = np.median(taken_s[late]) - np.median(taken_s[early])
    rise_s = float(np.median(age_s[late]) - np.median(age_s[early]))
    return {
        "rate_hz": rate_hz,
        "served_hz": (len(taken_s) - 1) / (taken_s[-1] - taken_s[0]) if not answer["missed"] else rate_hz,
        "missed": answer["missed"],
        "growth": 0.0 if rise_s < 2 / rate_hz else float(rise_s / apart_s),
        "p50_ms": float(1e3 * np.percentile(age_s[quarter:], 50)),
        "p99_ms": float(1e3 * np.percentile(age_s[quarter:], 99)),
    }


def keeps_up(kind: str, rate_hz: float, chosen: argparse.Namespace, place: Path) -> bool:
    """Return whether nothing is missed and nothing piles up, in one of two runs."""
    for _ in range(2):
        told = probe(kind, rate_hz, chosen, place)
        good = told["missed"] == 0 and told["growth"] < MOST_GROWTH and told["served_hz"] > 0.98 * rate_hz
        print(
            f"{kind} {rate_hz:.1f} Hz: served at {told['served_hz']:.1f} Hz, {told['missed']} missed, age p50 "
            f"{told['p50_ms']:.0f} ms, grows by {100 * told['growth']:.1f} % of the time: {'yes' if good else 'no'}",
            flush=True,
        )
        if good:
            return True
    return False


def measure(kind: str, chosen: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Bisect, then measure the age at half the rate."""
    low_hz, high_hz = chosen.low, chosen.high
    while high_hz > chosen.precision * low_hz:
        rate_hz = float(np.sqrt(low_hz * high_hz))
        if keeps_up(kind, rate_hz, chosen, place):
            low_hz = rate_hz
        else:
            high_hz = rate_hz
    half = probe(kind, low_hz / 2, chosen, place)
    print(
        f"{kind}: keeps up with {low_hz:.1f} Hz; at {low_hz / 2:.1f} Hz age p50 {half['p50_ms']:.1f} ms, "
        f"p99 {half['p99_ms']:.1f} ms ({half['p99_ms'] / half['p50_ms']:.2f} times), {half['missed']} missed",
        flush=True,
    )
    return {"rate_hz": low_hz, "half": half}


def follow(chosen: argparse.Namespace) -> None:
    """Be the process that follows the stream."""
    kind, address, n_frames, told = chosen.follow
    folder = Path(told).with_name("run")
    if kind == "trackpy":
        answer = follow_with_trackpy(address, int(n_frames), folder)
    else:
        answer = follow_with_log(chosen.model, address, int(n_frames), folder)
    Path(told).write_text(json.dumps(answer))


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", metavar="MODEL.onnx")
    arguments.add_argument("--peer-python", help="of an environment with trackpy and pyzmq")
    arguments.add_argument("--peer-path", default="", help="where that finds what it lacks")
    arguments.add_argument("--only", choices=("oneframe", "trackpy"))
    arguments.add_argument("--seconds", type=float, default=10.0, help="of each run")
    arguments.add_argument("--low", type=float, default=4.0, metavar="HZ", help="kept up with for sure")
    arguments.add_argument("--high", type=float, default=200.0, metavar="HZ", help="too fast for sure")
    arguments.add_argument("--precision", type=float, default=1.06, metavar="RATIO", help="of the rate found")
    arguments.add_argument("--follow", nargs=4, help=argparse.SUPPRESS)
    arguments.add_argument("-o", "--output", type=Path)
    chosen = arguments.parse_args()
    if chosen.follow:
        follow(chosen)
        return
    kinds = [kind for kind in ("oneframe", "trackpy") if chosen.only in (None, kind)]
    if not chosen.peer_python:
        kinds = [kind for kind in kinds if kind == "oneframe"]
    from bead_frames import bead_frames  # late: the peer's interpreter only follows

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        np.save(place / "ring.npy", bead_frames(N_RING, SIZE_PX, N_BEADS, separation_px=16, seed=2))
        results = {kind: measure(kind, chosen, place) for kind in kinds}
    if len(results) == 2:
        print(f"oneframe / trackpy: {results['oneframe']['rate_hz'] / results['trackpy']['rate_hz']:.1f}")
    if chosen.output:
        chosen.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
