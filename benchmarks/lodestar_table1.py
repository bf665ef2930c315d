"""The paper's Table 1: how well a model trained on one shape tells its own shape from the four others.

Run: python benchmarks/lodestar_table1.py [--seeds 3] [--images 40] [--preset default] [-o table1.json]

Each of five models, trained on one image of one shape, looks at images of all five at SNR 10. The paper's measure is
the weighted variance of the positions that a model's cells predict; `VARIANCES` holds it and what was tried beside it.
Then images are sorted by shape, in the ways of `SORTERS`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import shapes
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneframe.trainer import Box
from oneframe.trainer.lodestar import train_lodestar
from oneframe.trainer.lodestar_graph import LodestarGraph
from oneframe.trainer.lodestar_network import PRESETS, averaged_weights, cell_positions

SNR = 10
VARIANCES = {
    "image": "all cells of the image with their weights: the paper's measure",
    "averaged": "all cells, weights averaged over neighbouring cells as the deployed model does",
    "floor": "the same plus 1e-6 to each weight, so that an image without weights is not certain of anything",
    "local": "`variance_px2` of the best detection: the cells near it only",
}
SORTERS = {
    "views": "variance (`local`) and score as likely as on 40 other images of the model's own shape",
    "card": "the same, the model's own distribution read off its card, that is, off its one training image",
    "score": "highest score",
    **{f"smallest {name}": f"smallest variance (`{name}`)" for name in VARIANCES},
}
FIT_SEED = 177
"""Of the other images of a model's own shape."""
N_FIT = 40
NOTHING_FOUND = {"local": 1e4, "score": 1e-6}
"""px^2, and the score below which the model reports nothing."""


def weighted_variance(positions: Tensor, weight: Tensor) -> float:
    """Return sum w |p - mean|^2 / sum w, axes summed, px^2, of positions (2, h, w) with weights (h, w)."""
    share = weight / weight.sum()
    mean = (positions * share).sum((1, 2), keepdim=True)
    return float(((positions - mean).square().sum(0) * share).sum())


@torch.no_grad()
def look(graph: LodestarGraph, image: NDArray[np.float32]) -> dict[str, float]:
    """Return every measure of `VARIANCES`, px^2, and the best score of one image."""
    pixels = torch.from_numpy(image)
    grid = graph.network(graph.pooled(pixels - graph.offset)[None, None])[0].to(torch.float64)
    positions = cell_positions(grid[None])[0] * graph.pooling
    averaged = averaged_weights(grid[2:], graph.averaged_cells)[0]
    _, _, score, _, _, local = graph(pixels, torch.tensor(0.0))
    best = {"local": float(local[score.argmax()]), "score": float(score.max())} if len(score) else NOTHING_FOUND
    return {
        "image": weighted_variance(positions, torch.sigmoid(grid[2])),
        "averaged": weighted_variance(positions, averaged),
        "floor": weighted_variance(positions, averaged + 1e-6),
        **best,
    }


def features(seen: list[dict[str, float]]) -> NDArray[np.float64]:
    """Return (log variance, log score) of each image, (N, 2)."""
    return np.log([(each["local"] + 1e-9, each["score"]) for each in seen])


def gaussian_of(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and covariance of `features`."""
    return points.mean(0), np.cov(points.T) + 1e-4 * np.eye(2)


def log_likelihood(points: NDArray[np.float64], mean: NDArray[np.float64], covariance: Any) -> NDArray[np.float64]:
    """Return the Gaussian log-likelihood of points (N, 2), less a constant, (N,)."""
    away = points - mean
    distance2 = np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
    value: NDArray[np.float64] = -0.5 * (distance2 + np.log(np.linalg.det(covariance)))
    return value


def of_card(card: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and covariance of `features` from the 5, 50 and 95 % quantiles on a model's card."""
    reference = card.quality["reference"]
    quantiles = np.stack([np.array(reference["variance_px2"]) + 1e-9, reference["score"]], -1)
    low, middle, high = np.log(quantiles)
    return middle, np.diag(((high - low) / (2 * 1.645)) ** 2 + 1e-4)


def measure(seed: int, chosen: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Train the five models of one seed; return the tables (model, shape) and the confusions (shape, model)."""
    names = list(shapes.SHAPES)
    images = {}
    for shape in names:
        for n_images, held_out_seed in ((chosen.images, chosen.held_out_seed), (N_FIT, FIT_SEED)):
            clean, _ = shapes.held_out(shape, n_images, cache, seed=held_out_seed)
            images[shape, held_out_seed] = shapes.with_noise(clean, SNR, seed=held_out_seed)
    seen, rank = {}, {}
    for model in names:
        whole = [Box(0, 0, shapes.SIZE, shapes.SIZE)]
        trained = train_lodestar(shapes.training_image(model, seed), whole, seed=seed, settings=PRESETS[chosen.preset])
        own = features([look(trained.graph, image) for image in images[model, FIT_SEED]])
        mean, covariance = gaussian_of(own)
        for shape in names:
            row = [look(trained.graph, image) for image in images[shape, chosen.held_out_seed]]
            seen[model, shape] = row
            rank["views", model, shape] = log_likelihood(features(row), mean, covariance)
            rank["card", model, shape] = log_likelihood(features(row), *of_card(trained.card))
            rank["score", model, shape] = np.array([each["score"] for each in row])
            for name in VARIANCES:
                rank[f"smallest {name}", model, shape] = -np.array([each[name] for each in row])
    return {
        "seed": seed,
        **{statistic: {name: [[float(function([each[name] for each in seen[model, shape]])) for shape in names]
                              for model in names] for name in (*VARIANCES, "score")}
           for statistic, function in (("mean", np.mean), ("median", np.median))},
        "confusion": {sorter: [np.bincount(np.argmax([rank[sorter, model, shape] for model in names], axis=0),
                                           minlength=len(names)).tolist() for shape in names] for sorter in SORTERS},
    }  # fmt: skip


def ratios(table: list[list[float]]) -> NDArray[np.float64]:
    """Return the off-diagonal cells of a table in units of their row's diagonal, (20,)."""
    values = np.array(table)
    relative: NDArray[np.float64] = (values / np.diag(values)[:, None])[~np.eye(len(values), dtype=bool)]
    return relative


def accuracy(confusion: Any) -> float:
    """Return the share of images that are sorted to their own shape."""
    counts = np.array(confusion)
    return float(np.trace(counts) / counts.sum())


def markdown(results: dict[str, Any]) -> list[str]:
    """Return the lines of the tables."""
    names, runs = list(shapes.SHAPES), results["runs"]
    lines = []
    for name in ("image", "local", "score"):
        what = "Best score" if name == "score" else f"Weighted variance in px², {VARIANCES[name]}"
        lines += [f"**{what}** (mean over images, median over seeds):", ""]
        lines += ["| model of | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
        table = np.median([run["mean"][name] for run in runs], axis=0)
        for model, row in zip(names, table, strict=True):
            cells = [f"{value:.3g}" for value in row]
            cells[names.index(model)] = f"**{cells[names.index(model)]}**"
            lines.append(f"| {model} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["**Ratio of each cell beside the diagonal to its row's diagonal**, each seed a table of its own:", ""]
    lines += ["| weighted variance | smallest | median | cells below 7 |", "| --- | ---: | ---: | ---: |"]
    for name, what in VARIANCES.items():
        each = np.concatenate([ratios(run["mean"][name]) for run in runs])
        lines.append(f"| {what} | {each.min():.2g} | {np.median(each):.0f} | {(each < 7).sum()} of {len(each)} |")
    lines += ["", "**Images sorted by shape**, share that is sorted right:", ""]
    lines += ["| by | all seeds | worst seed |", "| --- | ---: | ---: |"]
    for sorter, what in SORTERS.items():
        each = [accuracy(run["confusion"][sorter]) for run in runs]
        lines.append(f"| {what} | {np.mean(each):.3f} | {min(each):.3f} |")
    lines += ["", "**Where the images of each shape go** by the first of these, all seeds:", ""]
    lines += ["| image of | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    confusion = np.sum([run["confusion"]["views"] for run in runs], axis=0)
    for shape, row in zip(names, confusion, strict=True):
        lines.append(f"| {shape} | " + " | ".join(str(count) for count in row) + " |")
    return [*lines, ""]


def main() -> None:
    """Measure seed by seed and print the tables; the results are written after each seed."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--images", type=int, default=40)
    arguments.add_argument("--held-out-seed", type=int, default=shapes.TUNING_SEED)
    arguments.add_argument("--preset", choices=list(PRESETS), default="default")
    arguments.add_argument("-o", "--output", type=Path)
    chosen = arguments.parse_args()
    cache = Path(tempfile.gettempdir()) / "oneframe-shapes"
    results: dict[str, Any] = {
        "images": chosen.images, "held_out_seed": chosen.held_out_seed, "preset": chosen.preset, "runs": []
    }  # fmt: skip
    for seed in range(chosen.seeds):
        results["runs"].append(measure(seed, chosen, cache))
        if chosen.output:
            chosen.output.write_text(json.dumps(results, indent=1))
    print("\n".join(markdown(results)))


if __name__ == "__main__":
    main()
