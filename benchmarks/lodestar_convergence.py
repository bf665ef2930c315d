"""Does every training converge? Five shapes, many seeds, a new noisy training image for each.

Run: python benchmarks/lodestar_convergence.py [--seeds 20] [--shapes ...] [-o results.json]

Counts the trainings that end with a model, the attempts they needed, and the error of each on fresh views.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import shapes

from oneframe.trainer import Box, ConvergenceError
from oneframe.trainer.lodestar import train_lodestar
from oneframe.trainer.lodestar_network import LodestarSettings


def main() -> None:
    """Train and count."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=20)
    arguments.add_argument("--shapes", nargs="+", default=list(shapes.SHAPES))
    arguments.add_argument("-o", "--output", type=Path)
    chosen = arguments.parse_args()
    results: dict[str, Any] = {}
    for shape in chosen.shapes:
        attempts: Counter[int] = Counter()
        failed, ratios, times_s = [], [], []
        for seed in range(chosen.seeds):
            image = shapes.training_image(shape, seed)
            start_s = time.perf_counter()
            try:
                trained = train_lodestar(
                    image, [Box(0, 0, shapes.SIZE, shapes.SIZE)], seed=seed, settings=LodestarSettings()
                )
            except ConvergenceError as exc:
                failed.append(f"seed {seed}: {exc}")
                continue
            finally:
                times_s.append(time.perf_counter() - start_s)
            attempts[trained.card.settings["attempts"]] += 1
            ratios.append(trained.card.quality["expected_rmse_px"] / trained.card.quality["bound_px"])
        counted = ", ".join(f"{n} in attempt {k}" for k, n in sorted(attempts.items()))
        print(
            f"{shape:<9} {chosen.seeds - len(failed)} of {chosen.seeds} converged ({counted}); error over bound "
            f"median {np.median(ratios):.2f} worst {max(ratios):.2f}; {np.median(times_s):.1f} s",
            *failed,
            sep="\n  ",
            flush=True,
        )
        results[shape] = {"failed": failed, "attempts": dict(attempts), "ratio": ratios, "training_s": times_s}
        if chosen.output:
            chosen.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
