"""What a cheaper LodeSTAR network costs in accuracy: time of a frame against RMSE over the Cramér-Rao bound.

Run: python benchmarks/lodestar_frontier.py --held-out-seed 2026 --models FOLDER -o frontier.json
     python benchmarks/lodestar_frontier.py --results frontier.json --picture docs/images/lodestar-frontier.png

Trains `VARIANTS` of the default on the single images of `lodestar_shapes.py` and reads its held-out images, seven SNRs
a shape. Then every model sees a 1024 x 1024 frame of 256 particles of its shape, tiled from held-out images of SNR 10;
the variants take turns, and a time counts over that of the default of the same shape and seed. Models are kept in
`--models`, not trained again: train beside other work, and measure the times when there is none.
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


def tiled(shape: str, chosen: argparse.Namespace, cache: Path) -> NDArray[np.uint16]:
    """Return one frame of `TILES` x `TILES` held-out images."""
    clean, _ = shapes.held_out(shape, chosen.images, cache, seed=chosen.held_out_seed)
    images = shapes.with_noise(clean, SNR, seed=chosen.held_out_seed)
    images = images[np.arange(TILES**2) % len(images)].reshape(TILES, TILES, shapes.SIZE, shapes.SIZE)
    rows = images.transpose(0, 2, 1, 3).reshape(TILES * shapes.SIZE, -1)
    return np.asarray(np.rint(rows * 1000), np.uint16)


def summary(results: dict[str, Any]) -> dict[str, tuple[float, float, float, float]]:
    """Return variant -> time, and the median, lowest and highest RMSE over the bound of its cells.

    A cell is one shape and SNR, its value the median of the seeds; a training that did not converge counts as infinite.
    """
    rows: dict[str, tuple[float, float, float, float]] = {}
    for name in VARIANTS:
        found: dict[str, list[list[float]]] = {}
        for key, ratio in results["ratio"].items():
            variant, shape, _ = key.rsplit(", ", 2)
            if variant == name:
                found.setdefault(shape, []).append(ratio or [float("inf")] * len(shapes.SNRS))
        cells = np.concatenate([np.median(seeds, axis=0) for seeds in found.values()])
        rows[name] = (float(np.median(results["time"][name])), *np.quantile(cells, (0.5, 0, 1)).tolist())
    return rows


def draw(path: Path, results: dict[str, Any]) -> None:
    """Draw each variant as a point, and the range of its cells as a bar."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(9, 5.6), layout="constrained")
    for name, (cost, middle, lowest, highest) in summary(results).items():
        color = "#0b5cad" if name == "default" else "#d1495b" if "no fit" in name else "#4a4a4a"
        panel.plot([cost, cost], [lowest, highest], color=color, linewidth=2.2, alpha=0.45)
        panel.plot(cost, middle, "o", color=color, markersize=7)
        panel.annotate(name, (cost, highest), (0, 5), textcoords="offset points", ha="center", color=color, fontsize=10)
    panel.axhline(1, color="black", linewidth=1)
    panel.set(xscale="log", yscale="log", xlabel="time of a frame / the default's", ylabel="RMSE / Cramér-Rao bound")
    panel.set_xticks([0.5, 0.7, 1, 1.5, 2, 3, 4], ["0.5", "0.7", "1", "1.5", "2", "3", "4"])
    panel.set_yticks([1, 1.5, 2, 3, 5, 10], ["1", "1.5", "2", "3", "5", "10"])
    panel.minorticks_off()
    panel.grid(color="#e4e4e4", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.margins(x=0.12, y=0.1)
    figure.savefig(path, dpi=150)


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
        results = {"ratio": train_all(chosen, cache), "time": time_all(chosen, cache)}
    if chosen.output:
        chosen.output.write_text(json.dumps(results, indent=1))
    print(f"{'':<26} {'time':>6} {'RMSE / bound':>13} {'(range of cells)':>17}")
    for name, (cost, middle, lowest, highest) in summary(results).items():
        print(f"{name:<26} {cost:6.2f} {middle:13.2f} {lowest:9.2f} {highest:7.2f}")
    if chosen.picture:
        draw(chosen.picture, results)


if __name__ == "__main__":
    main()
