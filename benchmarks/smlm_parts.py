"""What each part of SHOT adds: matching, refinements, frames before; trained alike, scored on the same movies.

    python benchmarks/smlm_parts.py [--steps 2500] [--seeds 1] [--parts exact published K1 K2 F3] [-o FILE.json]

Each variant trains on the same frame (256 x 256 px, 1 emitter per um^2) for the same number of steps; one of K = 2
costs some three times one of K = 0: the seconds stand beside. Scored on movies of 64 x 64 px, consecutive frames, at
the threshold of the largest Jaccard index and at 0.5; gate 250 nm, all emitters of 1 % of the flux.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from oneframe.acquisition.emitters import EmitterMovie, EmitterScene
from oneframe.acquisition.frame import Frame
from oneframe.export import export
from oneframe.runtime.load import load_model
from oneframe.runtime.localisation_score import LocalisationScore
from oneframe.runtime.seams import ChecksFrames
from oneframe.trainer import train

PARTS: dict[str, dict[str, Any]] = {
    "exact": {},
    "published": {"matching": "published"},
    "sinkhorn": {"matching": "sinkhorn"},
    "K1": {"refinements": 1},
    "K2": {"refinements": 2},
    "F3": {"n_frames": 3},
}
DENSITIES = (0.2, 1.0, 2.0, 3.0, 5.0)
N_FRAMES = {0.2: 240}
LEAST_FRAMES = 60
LOWEST = 0.05


def scores(path: Path, seed: int) -> list[dict[str, float]]:
    """Return the figures of a model file at each density."""
    figures = []
    for density in DENSITIES:
        movie = EmitterMovie(EmitterScene(width=64, height=64, density_um2=density, seed=7000 + seed))
        model = load_model(path, threshold=LOWEST)
        score = LocalisationScore(movie.scene.pixel_um)
        for index in range(N_FRAMES.get(density, LEAST_FRAMES)):
            frame = Frame(movie.expose(), index, float(index), movie.scene.pixel_um)
            if isinstance(model, ChecksFrames):
                model.check(frame)
            found = model.detect(frame.pixels)
            if index >= 2:
                score.add(movie.truth(), found)
            movie.advance()
        best = max(score.scan(np.arange(0.1, 0.86, 0.05)), key=lambda each: each.jaccard)
        half = score.at(0.5)
        figures.append(
            {
                "density_um2": density, "jaccard": half.jaccard, "rmse_nm": half.rmse_nm,
                "efficiency": half.efficiency, "best_threshold": best.threshold, "best_jaccard": best.jaccard,
                "best_rmse_nm": best.rmse_nm,
            }
        )  # fmt: skip
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[part for part in PARTS if part != "sinkhorn"])
    parser.add_argument("-o", "--output", type=Path)
    chosen = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(chosen.seeds):
            frame = EmitterMovie(EmitterScene(width=256, height=256, seed=400 + seed)).expose()
            for part in chosen.parts:
                started = time.monotonic()
                model = train(frame, method="shot", pixel_size_um=0.1, seed=seed, steps=chosen.steps, **PARTS[part])
                training_s = time.monotonic() - started
                card = export(model, Path(folder) / f"{part}{seed}.onnx")
                for each in scores(Path(folder) / f"{part}{seed}.onnx", seed):
                    results.append(
                        {
                            "part": part,
                            "seed": seed,
                            "training_s": training_s,
                            "detect_ms": card.speed["detect_ms"],
                            **each,
                        }
                    )
                    print(
                        json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in results[-1].items()}),
                        flush=True,
                    )
    if chosen.output:
        chosen.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
