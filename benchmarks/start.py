"""From the start of `oneframe log --frames 1` to the first frame's detections, seconds.

Run: python benchmarks/start.py MODEL.onnx [--source sim:beads] [--rounds 5] [--imports]

The first detection's time is what the run's record says: when the frame was taken, and its age after linking. `cold`:
before each start the system forgets what it read from disk (Linux, root only; otherwise only `warm` is measured).
`--imports` prints the modules that take longest to import instead.
"""

from __future__ import annotations

import argparse
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

CACHES = Path("/proc/sys/vm/drop_caches")


def first_detection_s(model: str, source: str, folder: Path, *options: str) -> tuple[float, str]:
    """Start the command; return the seconds to its first detection, and what it wrote to stderr."""
    command = [sys.executable, *options, "-m", "oneframe.app", "log", model, "--source", source, "--frames", "1"]
    start_s = time.time()
    done = subprocess.run([*command, "-o", str(folder), "--json"], capture_output=True, text=True, check=True)
    with closing(sqlite3.connect(folder / "run.sqlite")) as db:
        ((taken_s, age_ms),) = db.execute("SELECT time_s, age_ms FROM frames WHERE status = 'analysed'").fetchall()
    return taken_s + age_ms / 1e3 - start_s, done.stderr


def show_imports(stderr: str) -> None:
    """Print the modules whose import, with all that they import, takes longest."""
    lines = re.findall(r"import time:\s+(\d+) \|\s+(\d+) \| (.+)", stderr)
    for own, total, name in sorted(lines, key=lambda line: -int(line[1]))[:40]:
        print(f"{int(total) / 1e3:8.1f} ms, {int(own) / 1e3:8.1f} of its own: {name}")


def main() -> None:
    """Measure in turn and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", metavar="MODEL.onnx")
    arguments.add_argument("--source", default="sim:beads?width=512&height=512&n=50")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--imports", action="store_true")
    chosen = arguments.parse_args()
    kinds = ["warm", *(["cold"] if os.access(CACHES, os.W_OK) else [])]
    told: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as place:
        if chosen.imports:
            show_imports(first_detection_s(chosen.model, chosen.source, Path(place) / "run", "-X", "importtime")[1])
            return
        first_detection_s(chosen.model, chosen.source, Path(place) / "first")
        for turn in range(chosen.rounds):
            for kind in kinds:
                if kind == "cold":
                    os.sync()
                    CACHES.write_text("3\n")
                told[kind].append(first_detection_s(chosen.model, chosen.source, Path(place) / f"{kind}{turn}")[0])
    for kind, seconds in told.items():
        print(f"{kind}: median {np.median(seconds):.2f} s of {', '.join(f'{s:.2f}' for s in seconds)}")


if __name__ == "__main__":
    main()
