"""Wall time of one training beside deeplay's, run alternately on the same machine.

Run: python benchmarks/lodestar_speed.py --peer-python VENV/bin/python [--rounds 3] [--steps 200] [--shapes ...]

One round: oneframe's default training to its end, with and without the export, then `--steps` steps of deeplay's
(`lodestar_peer.py --time`), which is done 5000 times in a full training. Prints each round and the medians.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import shapes

from oneframe.export import export
from oneframe.trainer import train

PEER_STEPS = 5000


def ours_s(shape: str, seed: int) -> tuple[float, float]:
    """Return seconds of a training, and with the export."""
    image = shapes.training_image(shape, seed)
    start_s = time.perf_counter()
    trained = train(image, seed=seed)
    trained_s = time.perf_counter() - start_s
    with tempfile.TemporaryDirectory() as folder:
        export(trained, Path(folder) / "model.onnx")
    return trained_s, time.perf_counter() - start_s


def peer_s(python: str, shape: str, seed: int, n_steps: int) -> float:
    """Return seconds of deeplay's full training, from `n_steps` of it on all cores."""
    command = [python, str(Path(__file__).with_name("lodestar_peer.py")), "--time", str(n_steps), "--shapes", shape]
    command += ["--seed", str(seed), "--threads", str(os.cpu_count())]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"([\d.]+) s per step", told)
    if found is None:
        raise ValueError(f"expected seconds per step from lodestar_peer.py, got {told!r}")
    return PEER_STEPS * float(found[1])


def main() -> None:
    """Measure in turn and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--peer-python", required=True, help="of the environment that holds deeplay")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--steps", type=int, default=200)
    arguments.add_argument("--shapes", nargs="+", default=list(shapes.SHAPES), choices=list(shapes.SHAPES))
    chosen = arguments.parse_args()
    for shape in chosen.shapes:
        rounds = []
        for seed in range(chosen.rounds):
            trained_s, exported_s = ours_s(shape, seed)
            theirs_s = peer_s(chosen.peer_python, shape, seed, chosen.steps)
            rounds.append((trained_s, exported_s, theirs_s, theirs_s / trained_s, theirs_s / exported_s))
            print("  {} {:.1f} s, with export {:.1f} s; deeplay {:.0f} s".format(shape, *rounds[-1][:3]), flush=True)
        trained_s, exported_s, theirs_s, ratio, with_export = np.median(rounds, axis=0)
        print(
            f"{shape:<9} {trained_s:.1f} s, with export {exported_s:.1f} s, deeplay {theirs_s:.0f} s: "
            f"{ratio:.0f} times, with export {with_export:.0f} times as long",
            flush=True,
        )


if __name__ == "__main__":
    main()
