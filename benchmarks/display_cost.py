"""What the live view costs the analysis: `oneframe live` against `oneframe log`, in turns.

Run: python benchmarks/display_cost.py MODEL.onnx [--source FILE.tif] [--frames 400] [--rounds 5] [--mode every|latest]

Both analyse the same source and log it; `live` also shows it, in a window without a screen (Qt's `offscreen`) where
there is none. The rate of the analysis is that between a fifth of the frames and the last, as the record tells; the
processor time is that of all processes of the command. Without `--source` a recording of simulated beads
(1024 x 1024 px, 200 beads) is made. Linux only.
"""

from __future__ import annotations

import argparse
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
from bead_frames import bead_frames

N_RING = 32


def make_recording(path: Path, n_frames: int) -> None:
    """Write simulated beads, the first frames over and over."""
    frames = bead_frames(N_RING, 1024, 200, separation_px=16, seed=2)
    file = np.lib.format.open_memmap(path, "w+", np.uint16, (n_frames, 1024, 1024))
    for index in range(n_frames):
        file[index] = frames[index % N_RING]
    file.flush()


def analyse(command: str, chosen: argparse.Namespace, source: str, folder: Path) -> tuple[float, float]:
    """Run a command; return frames per second of the analysis and seconds of processor time of all its processes."""
    line = [sys.executable, "-m", "oneframe.app", command, chosen.model, "--source", source, "--mode", chosen.mode]
    environment = {"QT_QPA_PLATFORM": "offscreen", **os.environ} if "DISPLAY" not in os.environ else None
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [*line, "--frames", str(chosen.frames), "-o", str(folder), "--json"],
        env=environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    with closing(sqlite3.connect(folder / "run.sqlite")) as db:
        rows = db.execute("SELECT time_s + age_ms / 1e3 FROM frames WHERE status = 'analysed' ORDER BY 1").fetchall()
    done_s = np.array(rows)[len(rows) // 5 :, 0]
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (len(done_s) - 1) / (done_s[-1] - done_s[0]), cpu_s


def main() -> None:
    """Measure in turn and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", metavar="MODEL.onnx")
    arguments.add_argument("--source")
    arguments.add_argument("--frames", type=int, default=400)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--mode", choices=("every", "latest"), default="every")
    chosen = arguments.parse_args()
    told: dict[str, list[float]] = {"log": [], "live": []}
    with tempfile.TemporaryDirectory() as place:
        source = chosen.source
        if source is None:
            source = str(Path(place) / "beads.npy")
            make_recording(Path(source), chosen.frames)
        for turn in range(chosen.rounds):
            for command, rates in told.items():
                rate_hz, cpu_s = analyse(command, chosen, source, Path(place) / f"{command}{turn}")
                rates.append(rate_hz)
                print(f"{command}: {rate_hz:.1f} frames/s, {cpu_s:.1f} s of processor time", flush=True)
    ratio = np.array(told["live"]) / np.array(told["log"])
    print(f"live / log: median {np.median(ratio):.3f} of {', '.join(f'{r:.2f}' for r in ratio)}")


if __name__ == "__main__":
    main()
