"""What a cheaper LodeSTAR network costs in accuracy: time of a frame against RMSE over the Cramér-Rao bound.

Run: python benchmarks/lodestar_frontier.py --held-out-seed 2026 --models FOLDER -o frontier.json
     python benchmarks/lodestar_frontier.py --results frontier.json --picture docs/images/lodestar-frontier.png

Trains `VARIANTS` of the default on the single images of `lodestar_shapes.py` and reads its held-out images, seven SNRs
a shape. As the fit hides what the network errs by, each model also looks at the four other shapes: other images are
told apart if variance and score are less likely than those of 95 % of images of its own shape (SNR 10, `N_APART`
images a shape). Then every model sees a 1024 x 1024 frame of 256 particles of its shape, tiled from held-out images of
SNR 10; the variants take turns, and a time counts over that of the default of the same shape and seed. Models are kept
in `--models`, not trained again: train beside other work, and measure the times when there is none.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lodestar_shapes
import lodestar_table1
import numpy as np
import shapes
from numpy.typing import NDArray

from oneframe.runtime import load_model
from oneframe.trainer.lodestar_network import LodestarSettings
from oneframe.trainer.loop import ConvergenceError

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "8 channels": {"channels": 8},
    "32 channels": {"channels": 32},
    "3 convolutions": {"n_convolutions": 3},
    "no fit": {"fit": False},
    "cells one by one": {"split_cells": False},
}
"""Settings that differ from the default's. Cells one by one: the network before decision 16."""
TILES = 16
SNR = 10
N_APART = 40


def train_all(chosen: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Train what is missing; return "variant, shape, seed" -> RMSE over the bound at each SNR, None: no convergence."""
    ratios: dict[str, Any] = {}
    for shape in chosen.shapes:
        clean, poses = shapes.held_out(shape, chosen.images, cache, seed=chosen.held_out_seed)
        noisy = [shapes.with_noise(clean, snr, seed=chosen.held_out_seed) for snr in shapes.SNRS]
        for seed in range(chosen.seeds):
            for name, changes in VARIANTS.items():
                path = model_path(chosen.models, name, shape, seed)
                try:
                    if not path.exists():
                        settings = replace(LodestarSettings(), **changes)
                        lodestar_shapes.train_on(shape, seed, settings, path.parent)
                except ConvergenceError as reason:
                    print(f"{name}, {shape}, {seed}: {reason}", flush=True)
                    ratios[f"{name}, {shape}, {seed}"] = None
                    continue
                model = load_model(path, threshold=0.0)
                ratio = []
                for snr, images in zip(shapes.SNRS, noisy, strict=True):
                    found, _ = lodestar_shapes.read_best(model, images)
                    error = shapes.errors_px(found, poses, shape=shape)
                    ratio.append(float(np.sqrt((error**2).mean())) / shapes.cramer_rao_px(shape, snr))
                ratios[f"{name}, {shape}, {seed}"] = ratio
                print(f"{name}, {shape}, {seed}: " + " ".join(f"{value:.2f}" for value in ratio), flush=True)
    return ratios


def told_apart(chosen: argparse.Namespace, cache: Path) -> dict[str, float]:
    """Return "variant, shape, seed" -> share of the images of other shapes that are told apart."""
    images = {}
    for shape in shapes.SHAPES:
        for seed in (chosen.held_out_seed, lodestar_table1.FIT_SEED):
            clean, _ = shapes.held_out(shape, N_APART, cache, seed=seed)
            images[shape, seed] = shapes.with_noise(clean, SNR, seed=seed)
    shares = {}
    for shape in chosen.shapes:
        for seed in range(chosen.seeds):
            for name in VARIANTS:
                path = model_path(chosen.models, name, shape, seed)
                if not path.exists():
                    continue
                model = load_model(path, threshold=0.0)
                own = features_of(model, images[shape, lodestar_table1.FIT_SEED])
                likely = lodestar_table1.gaussian_of(own)
                least = np.quantile(lodestar_table1.log_likelihood(own, *likely), 0.05)
                others = [features_of(model, images[other, chosen.held_out_seed])
                          for other in shapes.SHAPES if other != shape]  # fmt: skip
                found = lodestar_table1.log_likelihood(np.concatenate(others), *likely)
                shares[f"{name}, {shape}, {seed}"] = float((found < least).mean())
    return shares


def features_of(model: Any, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return `lodestar_table1.features` of the best detection of each image."""
    seen = []
    for image in images:
        found = model.detect(image)
        best = int(found.score.argmax()) if len(found) else None
        nothing = lodestar_table1.NOTHING_FOUND
        seen.append(nothing if best is None else {"local": found.variance_px2[best], "score": found.score[best]})
    return lodestar_table1.features(seen)


def model_path(folder: Path, name: str, shape: str, seed: int) -> Path:
    """Return where a model is kept."""
    return folder / name.replace(",", "").replace(" ", "-") / f"{shape}-{seed}.onnx"


def time_all(chosen: argparse.Namespace, cache: Path) -> dict[str, list[float]]:
    """Return variant -> times of a frame over the default's, of each shape and seed the median over the rounds."""
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for shape in chosen.shapes:
        frame = tiled(shape, chosen, cache)
        for seed in range(chosen.seeds):
            paths = {name: model_path(chosen.models, name, shape, seed) for name in VARIANTS}
            models = {name: load_model(path) for name, path in paths.items() if path.exists()}
            for model in models.values():
                model.detect(frame)
            taken: dict[str, list[float]] = {name: [] for name in models}
            for _ in range(chosen.rounds):
                for name, model in models.items():
                    start_s = time.perf_counter()
                    model.detect(frame)
                    taken[name].append(time.perf_counter() - start_s)
            for name, values in taken.items():
                times[name].append(float(np.median(values) / np.median(taken["default"])))
    return times


def tiled(shape: str, chosen: argparse.Namespace, cache: Path) -> NDArray[np.float32]:
    """Return one frame of `TILES` x `TILES` held-out images."""
    clean, _ = shapes.held_out(shape, chosen.images, cache, seed=chosen.held_out_seed)
    images = shapes.with_noise(clean, SNR, seed=chosen.held_out_seed)
    images = images[np.arange(TILES**2) % len(images)].reshape(TILES, TILES, shapes.SIZE, shapes.SIZE)
    return np.ascontiguousarray(images.transpose(0, 2, 1, 3).reshape(TILES * shapes.SIZE, -1))


def summary(results: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    """Return variant -> time, then median, lowest and highest of RMSE over the bound, then those of what is told apart.

    A cell is one shape and SNR, its value the median of the seeds; a training that did not converge counts as infinite.
    What is told apart is that of each shape and seed.
    """
    rows: dict[str, tuple[float, ...]] = {}
    for name in VARIANTS:
        found: dict[str, list[list[float]]] = {}
        for key, ratio in results["ratio"].items():
            variant, shape, _ = key.rsplit(", ", 2)
            if variant == name:
                found.setdefault(shape, []).append(ratio or [float("inf")] * len(shapes.SNRS))
        cells = np.concatenate([np.median(seeds, axis=0) for seeds in found.values()])
        apart = [share for key, share in results["apart"].items() if key.rsplit(", ", 2)[0] == name]
        spread = (*np.quantile(cells, (0.5, 0, 1)).tolist(), *np.quantile(apart, (0.5, 0, 1)).tolist())
        rows[name] = (float(np.median(results["time"][name])), *spread)
    return rows


def draw(path: Path, results: dict[str, Any]) -> None:
    """Draw each variant as a point, and the range of its cells as a bar: the error, and what is told apart."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, figsize=(9, 8), layout="constrained", sharex=True)
    for index, (name, (cost, *spreads)) in enumerate(sorted(summary(results).items(), key=lambda row: row[1])):
        color = "#0b5cad" if name == "default" else "#4a4a4a"
        for panel, (middle, lowest, highest) in zip(panels, (spreads[:3], spreads[3:]), strict=True):
            panel.plot([cost, cost], [lowest, highest], color=color, linewidth=2.2, alpha=0.45)
            panel.plot(cost, middle, "o", color=color, markersize=7)
        above = {"xytext": (0, 6 + 14 * (index % 3)), "textcoords": "offset points"}
        panels[0].annotate(name, (cost, spreads[2]), **above, ha="center", color=color, fontsize=10)
    panels[0].axhline(1, color="black", linewidth=1)
    panels[0].set(yscale="log", ylabel="RMSE / Cramér-Rao bound")
    panels[0].set_yticks([1, 1.5, 2, 3, 5], ["1", "1.5", "2", "3", "5"])
    panels[0].set_ylim(0.9, 6)
    panels[1].set(ylabel="other shapes told apart", xlabel="time of a frame / the default's")
    for panel in panels:
        panel.set(xscale="log")
        panel.minorticks_off()
        panel.grid(color="#e4e4e4", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.margins(x=0.15, y=0.15)
    ticks = [0.4, 0.5, 0.6, 0.8, 1, 1.2, 1.5, 2, 3]
    panels[1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Train, measure, print, draw."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--images", type=int, default=200)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--held-out-seed", type=int, default=shapes.TUNING_SEED)
    arguments.add_argument("--shapes", nargs="+", default=["point", "crescent"], choices=list(shapes.SHAPES))
    scratch = Path(tempfile.gettempdir()) / "oneframe-frontier"
    arguments.add_argument("--models", type=Path, default=scratch, help="folder for what was trained")
    arguments.add_argument("-o", "--output", type=Path)
    arguments.add_argument("--results", type=Path, help="do not measure: read what -o wrote earlier")
    arguments.add_argument("--picture", type=Path, help="draw into this PNG (matplotlib)")
    chosen = arguments.parse_args()
    if chosen.results:
        results = json.loads(chosen.results.read_text())
    else:
        for name in VARIANTS:
            model_path(chosen.models, name, "any", 0).parent.mkdir(parents=True, exist_ok=True)
        cache = Path(tempfile.gettempdir()) / "oneframe-shapes"
        results = {
            "ratio": train_all(chosen, cache),
            "apart": told_apart(chosen, cache),
            "time": time_all(chosen, cache),
        }
    if chosen.output:
        chosen.output.write_text(json.dumps(results, indent=1))
    print(f"{'':<20} {'time':>6}  {'RMSE / bound (cells)':<24} told apart (shapes and seeds)")
    for name, (cost, *spreads) in summary(results).items():
        print(
            f"{name:<20} {cost:6.2f}  "
            + "       ".join(
                f"{middle:.2f} ({lowest:.2f} to {highest:.2f})"
                for middle, lowest, highest in (spreads[:3], spreads[3:])
            )
        )
    if chosen.picture:
        draw(chosen.picture, results)


if __name__ == "__main__":
    main()
