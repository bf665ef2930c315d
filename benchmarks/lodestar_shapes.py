"""LodeSTAR against the Cramér-Rao bound on the five shapes of the paper's Figure 1.

Run: python benchmarks/lodestar_shapes.py [--seeds 3] [--images 200] [--shapes point ...] [-o results.json]
     python benchmarks/lodestar_shapes.py --preset paper --seeds 1 -o paper.json
     python benchmarks/lodestar_shapes.py --results results.json [--peer peer.json] [--paper paper.json]
         [--table1 table1.json] --report docs/lodestar-accuracy.md        the page from what was measured

Trains on one 64 x 64 image of SNR 10 per shape and seed, exports, and reads held-out images through the `.onnx` file:
the best-scored detection of each, whatever its score. RMSE per axis; for the crescent one constant offset in its own
coordinates is taken out, as the paper allows, since its "centre" is a matter of definition. Two classical trackers read
the same images, `--peer` adds the results of `lodestar_peer.py`, `--table1` those of `lodestar_table1.py`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import shapes
from numpy.typing import NDArray

from oneframe.export import export
from oneframe.runtime import load_model
from oneframe.trainer import Box
from oneframe.trainer.lodestar import train_lodestar
from oneframe.trainer.lodestar_network import PRESETS, LodestarSettings
from oneframe.trainer.loop import ConvergenceError

CLASSICAL: dict[str, Callable[[NDArray[np.float32]], tuple[float, float]]] = {
    "centroid": shapes.centroid,
    "radial_symmetry": shapes.radial_symmetry,
}


def train_on(shape: str, seed: int, settings: LodestarSettings, folder: Path) -> tuple[Any, dict[str, float]]:
    """Train and export one model; return it loaded and what the training took."""
    image = shapes.training_image(shape, seed)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    trained = train_lodestar(image, [Box(0, 0, shapes.SIZE, shapes.SIZE)], seed=seed, settings=settings)
    cost = {
        "training_s": time.perf_counter() - start_s,
        "training_cpu_s": time.process_time() - start_cpu_s,
        "attempts": trained.card.settings["attempts"],
    }
    path = folder / f"{shape}-{seed}.onnx"
    export(trained, path)
    return load_model(path, threshold=0.0), cost


def read_best(model: Any, images: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the position of each image's best-scored detection and its predicted errors, both (N, 2) px."""
    found = [model.detect(image) for image in images]
    best = [int(each.score.argmax()) for each in found]
    position = [(each.y_px[k], each.x_px[k]) for each, k in zip(found, best, strict=True)]
    sigma = [(each.sigma_y_px[k], each.sigma_x_px[k]) for each, k in zip(found, best, strict=True)]
    return np.array(position, np.float64), np.array(sigma, np.float64)


def measure(shape: str, chosen: argparse.Namespace, settings: LodestarSettings, cache: Path) -> dict[str, Any]:
    """Train and measure every seed; return the entry of the results: lists by seed, ratios by seed and SNR.

    A training that did not converge has infinite errors.
    """
    clean, poses = shapes.held_out(shape, chosen.images, cache, seed=chosen.held_out_seed)
    noisy = [shapes.with_noise(clean, snr, seed=chosen.held_out_seed) for snr in shapes.SNRS]
    bounds = [shapes.cramer_rao_px(shape, snr) for snr in shapes.SNRS]

    def ratio_of(found: NDArray[np.float64], bound: float) -> float:
        return float(np.sqrt((shapes.errors_px(found, poses, shape=shape) ** 2).mean())) / bound

    entry: dict[str, Any] = {
        "bound_px": bounds, "ratio": [], "within_sigma": [], "worst_px_snr2": [],
        "training_s": [], "training_cpu_s": [], "attempts": [],
        "preset": chosen.preset, "set": chosen.set, "images": chosen.images, "held_out_seed": chosen.held_out_seed,
        **{name: [ratio_of(np.array([track(image) for image in images]), bound)
                  for images, bound in zip(noisy, bounds, strict=True)] for name, track in CLASSICAL.items()},
    }  # fmt: skip
    for seed in range(chosen.seeds):
        row, within = [], []
        with tempfile.TemporaryDirectory() as folder:
            try:
                model, cost = train_on(shape, seed, settings, Path(folder))
            except ConvergenceError as reason:
                print(f"  {shape} {seed}: {reason}")
                n_snr = len(shapes.SNRS)
                lost = {"ratio": [float("inf")] * n_snr, "within_sigma": [0.0] * n_snr, "worst_px_snr2": float("inf")}
                for name, value in {**lost, "attempts": settings.max_attempts}.items():
                    entry[name].append(value)
                continue
            for snr, images, bound in zip(shapes.SNRS, noisy, bounds, strict=True):
                found, sigma = read_best(model, images)
                error = shapes.errors_px(found, poses, shape=shape)
                row.append(ratio_of(found, bound))
                within.append(float((np.abs(error) <= sigma).mean()))
                if snr == 2:
                    entry["worst_px_snr2"].append(float(np.hypot(*error.T).max()))
        for name, value in {"ratio": row, "within_sigma": within, **cost}.items():
            entry[name].append(value)
        print(
            f"  {shape} {seed}: {_cells(row)}  within sigma {_cells(within)}  "
            f"{cost['training_s']:.0f} s ({cost['training_cpu_s']:.0f} s CPU), {cost['attempts']} att.",
            flush=True,
        )
    return entry


def show(shape: str, entry: dict[str, Any]) -> None:
    """Print what was measured on one shape."""
    ratio = np.array(entry["ratio"])
    median, highest = np.median(ratio, axis=0), ratio.max(axis=0)
    print(f"{shape:<10} median  {_cells(median)}   worst {_cells(highest)}")
    print(f"{'':<10} px      " + " ".join(f"{m * b:6.4f}" for m, b in zip(median, entry["bound_px"], strict=True)))
    print(f"{'':<10} sigma   {_cells(np.median(entry['within_sigma'], axis=0))}")
    for name in CLASSICAL:
        print(f"{'':<10} {name:<16} {_cells(entry[name])}")
    print(f"{'':<10} worst error at SNR 2: {max(entry['worst_px_snr2']):.2f} px", flush=True)


def _cells(values: Any) -> str:
    return " ".join(f"{value:5.2f}" for value in values)


def main() -> None:
    """Measure, or read what was measured; print it; write the page."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--images", type=int, default=200)
    arguments.add_argument("--held-out-seed", type=int, default=shapes.TUNING_SEED)
    arguments.add_argument("--shapes", nargs="+", default=list(shapes.SHAPES), choices=list(shapes.SHAPES))
    arguments.add_argument("--preset", choices=list(PRESETS), default="default")
    arguments.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of LodestarSettings")
    arguments.add_argument("-o", "--output", type=Path)
    files = "results to show beside them"
    arguments.add_argument("--results", type=Path, help="do not measure: read what -o wrote earlier")
    arguments.add_argument("--peer", type=Path, help=f"{files}: of lodestar_peer.py")
    arguments.add_argument("--paper", type=Path, help=f"{files}: of --preset paper")
    arguments.add_argument("--table1", type=Path, help=f"{files}: of lodestar_table1.py")
    arguments.add_argument("--report", type=Path, metavar="PAGE", help="write this page and its images/")
    chosen = arguments.parse_args()
    settings = PRESETS[chosen.preset]
    for text in chosen.set:
        name, value = text.split("=")
        settings = replace(settings, **{name: json.loads(value)})
    cache = Path(tempfile.gettempdir()) / "oneframe-shapes"
    results = json.loads(chosen.results.read_text()) if chosen.results else {}
    print(f"RMSE / bound at SNR {shapes.SNRS}", flush=True)
    for shape in list(results) or chosen.shapes:
        if shape not in results:
            results[shape] = measure(shape, chosen, settings, cache)
            if chosen.output:
                chosen.output.write_text(json.dumps(results, indent=1))
        show(shape, results[shape])
    beside = {
        name: json.loads(path.read_text())
        for name, path in (("peer", chosen.peer), ("paper", chosen.paper), ("table1", chosen.table1))
        if path
    }
    if "peer" in beside:
        for shape, entry in beside["peer"].items():
            print(
                f"{shape:<10} deeplay {_cells(entry['ratio'][0])}   worst px at SNR 2 {entry['worst_px_snr2'][0]:.2f}"
            )
    if chosen.report:
        import lodestar_report  # draws with matplotlib, which nothing else here needs

        lodestar_report.write_page(chosen.report, results, **beside)


if __name__ == "__main__":
    main()
