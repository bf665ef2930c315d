"""Public movies of single molecules: trained on what one frame reveals, all frames read, scored where truth is known.

Run: python benchmarks/smlm_movies.py DATA [--only NAME ...] [-o FOLDER]
Needs: pip install "oneframe[train,report]" h5py

DATA holds the folders `deepstorm_demo1` (simulated by ThunderSTORM, with its truth),
`storm_analysis` (3D-DAOSTORM's test movies, with the molecules they were made from) and `picasso` (simulated DNA-PAINT,
with what Picasso found in it: no truth, and only the brightest). A movie whose frames are smaller than 64 x 64 px is
trained on its last 20. For each movie the folder gets the model, a picture to look at, and all figures in movies.json;
a model that an earlier run left there is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition import open_source
from oneframe.acquisition.source import frames
from oneframe.runtime.detections import Detections
from oneframe.runtime.localisation_score import LocalisationScore
from oneframe.runtime.model import load_graph

LOWEST_SCORE = 0.05


@dataclass(frozen=True)
class Emitters:
    """What is known of one frame, px."""

    y_px: NDArray[np.float64]
    x_px: NDArray[np.float64]
    z_um: None = None


Truth = list[Emitters | None]
"""None: nothing is known of that frame."""


@dataclass(frozen=True)
class Movie:
    """One movie and what is known of it."""

    name: str
    path: str
    pixel_um: float
    known: Callable[[Path, int], Truth] | None
    """From the data folder and the number of frames."""
    what: str
    n_training: int = 1
    """Frames at the end that it is trained on, and not judged by."""


def of_thunderstorm(data: Path, n_frames: int) -> Truth:
    """Nanometres from the corner of the image, frames from 1."""
    with (data / "deepstorm_demo1/positions_demo1.csv").open() as file:
        rows = [(int(r["frame"]), float(r["y [nm]"]), float(r["x [nm]"])) for r in csv.DictReader(file)]
    table = np.array(rows)
    each = (table[table[:, 0] == k + 1] for k in range(n_frames))
    return [Emitters(rows[:, 1] / 100 - 0.5, rows[:, 2] / 100 - 0.5) for rows in each]


def of_storm_analysis(data: Path, n_frames: int) -> Truth:
    """Of the first frame only."""
    import h5py

    with h5py.File(data / "storm_analysis/test_ref.hdf5") as file:
        first = Emitters(*(file[f"fr_0/{axis}"][:].astype(np.float64) for axis in ("y", "x")))
    return [first, *[None] * (n_frames - 1)]


def of_picasso(data: Path, n_frames: int) -> Truth:
    import h5py

    with h5py.File(data / "picasso/testdata_locs.hdf5") as file:
        table = file["locs"][:]
    each = (table[table["frame"] == k] for k in range(n_frames))
    return [Emitters(rows["y"].astype(np.float64), rows["x"].astype(np.float64)) for rows in each]


MOVIES = (
    Movie("deepstorm", "deepstorm_demo1/ArtificialDataset_demo1.tif", 0.1, of_thunderstorm, "truth"),
    Movie("daostorm", "storm_analysis/test.dax", 0.1, of_storm_analysis, "truth"),
    Movie("low-snr", "storm_analysis/test_low_snr.dax", 0.1, None, ""),
    Movie("300x200", "storm_analysis/test_300x200.dax", 0.1, None, ""),
    Movie("picasso", "picasso/testdata.raw", 0.13, of_picasso, "Picasso's localisations", 20),
)


def main() -> None:
    """Train, detect, score and draw, movie by movie; what fails is told and the rest goes on."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--only", nargs="+", choices=[movie.name for movie in MOVIES])
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--steps", type=int, help="of training, in place of the default")
    arguments.add_argument("-o", "--output", type=Path, default=Path("smlm-movies"))
    chosen = arguments.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for movie in MOVIES:
        if chosen.only and movie.name not in chosen.only:
            continue
        try:
            results[movie.name] = measure(movie, chosen)
        except Exception as exc:
            results[movie.name] = {"failed": f"{type(exc).__name__}: {exc}"}
        print(f"{movie.name}: {json.dumps(results[movie.name])}", flush=True)
        (chosen.output / "movies.json").write_text(json.dumps(results, indent=1))


def measure(movie: Movie, chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one movie."""
    source = open_source(str(chosen.data / movie.path))
    images = [frame.pixels for frame in frames(source)]
    model_path = chosen.output / f"{movie.name}.onnx"
    result: dict[str, Any] = {"frames": len(images), "shape": images[0].shape}
    if not model_path.exists():
        result |= train_on(images, movie, chosen, model_path)
    model = load_graph(model_path, threshold=LOWEST_SCORE)
    found = [model.detect(image) for image in images]
    threshold = model.card.threshold
    counts = [int((rows.score >= threshold).sum()) for rows in found]
    result |= {"threshold": threshold, "found_per_frame": float(np.mean(counts))}
    truth = movie.known(chosen.data, len(images)) if movie.known else None
    if truth:
        score = LocalisationScore(movie.pixel_um)
        judged = range(len(images) - movie.n_training)
        for emitters, rows in [(truth[k], found[k]) for k in judged]:
            if emitters is not None:
                score.add(emitters, rows)
        best = max(score.scan(), key=lambda figures: figures.jaccard)
        for name, figures in (("own", score.at(threshold)), ("best", best)):
            result[name] = {
                key: round(getattr(figures, key), 4)
                for key in ("threshold", "jaccard", "precision", "recall", "rmse_nm", "efficiency", "within_sigma")
            }
        result["compared_with"], result["known"] = movie.what, score.at(threshold).n_true
    draw(chosen.output / f"{movie.name}.png", movie, images, found, truth, threshold)
    return result


def train_on(images: list[NDArray[Any]], movie: Movie, chosen: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Train on the last frame, or the last few where they are small, and write the model."""
    from oneframe.export import export
    from oneframe.trainer import train

    seen = images[-1] if movie.n_training == 1 else np.stack(images[-movie.n_training :])
    started = time.perf_counter()
    trained = train(seen, method="shot", pixel_size_um=movie.pixel_um, seed=chosen.seed, steps=chosen.steps)
    took = time.perf_counter() - started
    quality = export(trained, path).quality
    return {"training_s": took, "read_off_frame": quality.get("read_off_frame")}


def draw(
    path: Path, movie: Movie, images: list[NDArray[Any]], found: list[Detections], truth: Truth | None, threshold: float
) -> None:
    """Draw part of one frame, bare and with what was found and what is known: the busiest frame with a truth."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    busy = [(rows.score >= threshold).sum() for rows in found]
    index = int(np.argmax([n + 1e6 * (truth is not None and truth[k] is not None) for k, n in enumerate(busy)]))
    image, rows = images[index], found[index].rows(found[index].score >= threshold)
    height, width = image.shape
    size = min(64, height, width)
    middle = (np.median(rows.y_px), np.median(rows.x_px)) if len(rows) else (height / 2, width / 2)
    top, left = (int(np.clip(m - size / 2, 0, n - size)) for m, n in zip(middle, (height, width), strict=True))
    low, high = np.percentile(image, (1, 99.8))
    figure, axes = plt.subplots(1, 2, figsize=(13, 6.9), layout="constrained")
    figure.suptitle(f"{movie.name}, frame {index}", fontsize=13)
    for axis in axes:
        axis.imshow(image, cmap="gray", vmin=low, vmax=high)
        axis.set(xlim=(left - 0.5, left + size - 0.5), ylim=(top + size - 0.5, top - 0.5))
    axes[1].plot(rows.x_px, rows.y_px, "+", color="#ff5c33", markersize=8, label=f"found, score {threshold:.2f} on")
    known = truth[index] if truth else None
    if known is not None:
        axes[1].plot(
            known.x_px, known.y_px, "o", markersize=9, markerfacecolor="none", color="#35d0ff",
            markeredgewidth=0.9, label=movie.what,
        )  # fmt: skip
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
