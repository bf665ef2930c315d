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


def start(*arguments: str, **kwargs: Any) -> subprocess.Popen[str]:
    """Start one oneframe command with --json."""
    command = [sys.executable, "-m", "oneframe.app", *arguments, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **kwargs)


def last_event(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the closing line of a command."""
    out, _ = process.communicate(timeout=60)
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return next((line for line in reversed(lines) if line["event"] in ("done", "error")), {})


def main() -> None:
    """Run, sample, fit, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--minutes", type=float, default=30.0)
    arguments.add_argument("--source", default="demo:?width=256&height=256&exposure_ms=20&bead_size=4")
    chosen = arguments.parse_args()
    environment = {"QT_QPA_PLATFORM": "offscreen", **os.environ, "OMP_NUM_THREADS": "1"}
    memory: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        server = start("serve", chosen.source, "--bind", "tcp://127.0.0.1:0", "--wait", env=environment)
        address = ""
        for line in server.stdout or ():
            event = json.loads(line)
            if event["event"] == "serving":
                address = event["address"]
                break
        run = Path(folder) / "run"
        # results go to files: a pipe that nobody empties would stop the command
        logged = (Path(folder) / "log.txt").open("w+")
        shown = (Path(folder) / "live.txt").open("w+")
        command = [sys.executable, "-m", "oneframe.app"]
        log = subprocess.Popen(
            [*command, "log", chosen.model, "--source", address, "-o", str(run), "--threads", "1", "--json"],
            stdout=logged, env=environment, text=True,
        )  # fmt: skip
        live = subprocess.Popen(
            [*command, "live", chosen.model, "--source", address, "--threads", "1", "--json", "--seconds", "1e6"],
            stdout=shown, env=environment, text=True,
        )  # fmt: skip
        begin_s = time.monotonic()
        while time.monotonic() - begin_s < 60 * chosen.minutes and log.poll() is None:
            time.sleep(10)
            now_s = time.monotonic() - begin_s
            for whose, process in (("serve", server), ("log", log), ("live", live)):
                for pid in children_of(process.pid):
                    size_mb = resident_mb(pid)
                    if size_mb is not None:
                        memory.setdefault(f"{name_of(pid, whose)} ({pid})", []).append((now_s, size_mb))
        server.send_signal(signal.SIGINT)
        served = last_event(server)
        for process in (log, live):
            process.wait(120)
        seconds = time.monotonic() - begin_s
        endings = []
        for file in (logged, shown):
            file.seek(0)
            endings.append([json.loads(line) for line in file if line.startswith("{")][-1])
            file.close()
        account = json.loads((run / "run.json").read_text())
    n_frames = served.get("sent", 0)
    print(f"{seconds / 60:.1f} min, {n_frames} frames sent, {n_frames / seconds:.1f} fps")
    for name, samples in memory.items():
        steady = np.array([sample for sample in samples if sample[0] > 0.2 * seconds])
        if len(steady) < 5:
            continue
        slope = np.polyfit(steady[:, 0] * n_frames / seconds, steady[:, 1], 1)[0]
        print(f"{name}: {steady[0, 1]:.1f} to {steady[-1, 1]:.1f} MB, {1e4 * slope:+.3f} MB per 10,000 frames")
    for name, ending in zip(("log", "live"), endings, strict=True):
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
