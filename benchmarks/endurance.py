"""Does a night end well? `serve`, `log` and `live` together: memory of every process, and the account of every frame.

Run: python benchmarks/endurance.py --model bead.onnx [--minutes 30] [--source demo:]

One process serves the source; two others subscribe to it, one logs every frame, one shows the newest (offscreen where
there is no display). Every 10 seconds the resident memory of each process and of its children is read; after the first
fifth of the time a line is fitted. Prints the slope in MB per 10,000 frames and whether the frames add up. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def children_of(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            below = (task / "children").read_text().split()
        except OSError:
            continue
        for child in below:
            found += children_of(int(child))
    return found


def resident_mb(pid: int) -> float | None:
    """Return the memory of a process, MB; None if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("VmRSS:")]
    return kilobytes[0] / 1024 if kilobytes else None


def name_of(pid: int, whose: str) -> str:
    """Return what a process is, for the table."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return whose
    modules = [word for word in words if word.startswith("oneframe.")]
    return f"{whose}: {modules[0] if modules else words[0]}"


class Command:
    """One oneframe command whose lines go to a file: a pipe that nobody empties would stop it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        environment = {"QT_QPA_PLATFORM": "offscreen", **os.environ, "OMP_NUM_THREADS": "1"}
        self._lines = folder / f"{arguments[0]}.txt"
        command = [sys.executable, "-m", "oneframe.app", *arguments, "--json"]
        with self._lines.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, env=environment)

    def event(self, *kinds: str) -> dict[str, Any]:
        """Return the last line of these kinds; empty if there is none."""
        told = [json.loads(line) for line in self._lines.read_text().splitlines() if line.endswith("}")]
        return next((line for line in reversed(told) if line["event"] in kinds), {})


def main() -> None:
    """Run, sample, fit, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--minutes", type=float, default=30.0)
    arguments.add_argument("--source", default="demo:?width=256&height=256&exposure_ms=20&bead_size=4")
    chosen = arguments.parse_args()
    memory: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        server = Command(folder, "serve", chosen.source, "--bind", "tcp://127.0.0.1:0", "--wait")
        while not (serving := server.event("serving")):
            time.sleep(0.2)
        options = ["--source", serving["address"], "--threads", "1"]
        log = Command(folder, "log", chosen.model, *options, "-o", str(folder / "run"))
        live = Command(folder, "live", chosen.model, *options, "--seconds", "1e6")
        commands = {"serve": server, "log": log, "live": live}
        begin_s = time.monotonic()
        while time.monotonic() - begin_s < 60 * chosen.minutes and log.process.poll() is None:
            time.sleep(10)
            now_s = time.monotonic() - begin_s
            for whose, command in commands.items():
                for pid in children_of(command.process.pid):
                    size_mb = resident_mb(pid)
                    if size_mb is not None:
                        memory.setdefault(f"{name_of(pid, whose)} ({pid})", []).append((now_s, size_mb))
        seconds = time.monotonic() - begin_s
        server.process.send_signal(signal.SIGINT)
        for command in commands.values():
            command.process.wait(120)
        served, *endings = (command.event("done", "error") for command in commands.values())
        account = json.loads((folder / "run" / "run.json").read_text())
    n_frames = served.get("sent", 0)
    print(f"{seconds / 60:.1f} min, {n_frames} frames sent, {n_frames / seconds:.1f} fps")
    for name, samples in memory.items():
        steady = np.array([sample for sample in samples if sample[0] > 0.2 * seconds])
        if len(steady) < 5:
            continue
        slope = np.polyfit(steady[:, 0] * n_frames / seconds, steady[:, 1], 1)[0]
        print(f"{name}: {steady[0, 1]:.1f} to {steady[-1, 1]:.1f} MB, {1e4 * slope:+.3f} MB per 10,000 frames")
    for name, ending in zip(("log", "live"), endings, strict=True):
        if ending["event"] == "error":
            print(f"{name}: {ending['error']}")
            continue
        made = ending["published"]
        told = ending["before_start"] + ending["seen"] + ending["lost_before"]
        print(
            f"{name}: {ending['seen']} seen = {ending['analysed']} analysed + {ending['skipped']} skipped + "
            f"{ending['failed']} failed; {ending['lost_before']} lost, {ending['before_start']} before it joined; "
            f"the source made {made}: {'adds up' if told == made else f'{made - told} UNACCOUNTED FOR'}; "
            f"{ending['reason']}"
        )
    print(f"run.json: {account['account']}, age p50 {account['age_p50_ms']} p99 {account['age_p99_ms']} ms")


if __name__ == "__main__":
    main()
