"""LodeSTAR against the Cramér-Rao bound on the five shapes of the paper's Figure 1.

Run: python benchmarks/lodestar_shapes.py [--seeds 3] [--images 200] [--shapes point sphere ...] [-o results.json]

Trains on one 64 x 64 image of SNR 10 per shape and seed, exports, and reads held-out images through the `.onnx` file:
the best-scored detection of each, whatever its score. RMSE per axis; for the crescent one constant offset in its own
coordinates is taken out, as the paper allows, since its "centre" is a matter of definition.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import shapes
from numpy.typing import NDArray

from oneframe.export import export
from oneframe.runtime import load_model
from oneframe.trainer import Box
from oneframe.trainer.lodestar import LodestarSettings, train_lodestar

TRAINING_SNR = 10


def held_out(shape: str, n_images: int, cache: Path) -> tuple[NDArray[np.float64], list[shapes.Pose]]:
    """Return noise-free images (N, 64, 64) and their poses; drawing them takes longer than reading them back."""
    rng = np.random.default_rng([77, list(shapes.SHAPES).index(shape)])
    poses = [shapes.random_pose(rng) for _ in range(n_images)]
    path = cache / f"{shape}-{n_images}.npy"
    if not path.exists():
        np.save(path, np.stack([shapes.clean_image(shape, pose) for pose in poses]))
    return np.load(path), poses


def errors_px(found: NDArray[np.float64], poses: list[shapes.Pose], *, own_axis: bool) -> NDArray[np.float64]:
    """Return found minus true, (N, 2); with `own_axis` less the median in the particle's own coordinates."""
    error = found - [(pose.y_px, pose.x_px) for pose in poses]
    if not own_axis:
        return error
    angle = np.array([pose.angle for pose in poses])
    cosine, sine = np.cos(angle), np.sin(angle)
    own = np.stack([cosine * error[:, 0] + sine * error[:, 1], -sine * error[:, 0] + cosine * error[:, 1]], -1)
    return own - np.median(own, axis=0)


def train_on(shape: str, seed: int, settings: LodestarSettings, folder: Path) -> tuple[Any, float, Any]:
    """Train and export one model; return it loaded, the training time in seconds and its card."""
    rng = np.random.default_rng([seed, list(shapes.SHAPES).index(shape), 5])
    image = shapes.noisy(shapes.clean_image(shape, shapes.random_pose(rng)), TRAINING_SNR, rng)
    start_s = time.perf_counter()
    trained = train_lodestar(image, [Box(0, 0, shapes.SIZE, shapes.SIZE)], seed=seed, settings=settings)
    training_s = time.perf_counter() - start_s
    path = folder / f"{shape}-{seed}.onnx"
    card = export(trained, path)
    return load_model(path, threshold=0.0), training_s, card


def read_best(model: Any, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the position of each image's best-scored detection, (N, 2)."""
    best = []
    for image in images:
        found = model.detect(image)
        k = int(found.score.argmax())
        best.append((found.y_px[k], found.x_px[k]))
    return np.array(best, np.float64)


def main() -> None:
    """Measure and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--images", type=int, default=200)
    arguments.add_argument("--shapes", nargs="+", default=list(shapes.SHAPES))
    arguments.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of LodestarSettings")
    arguments.add_argument("-o", "--output", type=Path)
    chosen = arguments.parse_args()
    settings = LodestarSettings()
    for text in chosen.set:
        name, value = text.split("=")
        settings = replace(settings, **{name: type(getattr(settings, name))(value)})
    cache = Path(tempfile.gettempdir()) / "oneframe-shapes"
    cache.mkdir(exist_ok=True)
    results: dict[str, Any] = {}
    print(
        f"{'RMSE / bound':<12}" + "".join(f"   SNR {snr:<5}" for snr in shapes.SNRS) + "   train s   worst px at SNR 2"
    )
    for shape in chosen.shapes:
        clean, poses = held_out(shape, chosen.images, cache)
        bounds = [shapes.cramer_rao_px(shape, snr) for snr in shapes.SNRS]
        ratios, times, worst = [], [], []
        with tempfile.TemporaryDirectory() as folder:
            for seed in range(chosen.seeds):
                model, training_s, card = train_on(shape, seed, settings, Path(folder))
                row = []
                for snr, bound in zip(shapes.SNRS, bounds, strict=True):
                    rng = np.random.default_rng([88, snr])
                    images = np.stack([shapes.noisy(image, snr, rng) for image in clean])
                    error = errors_px(read_best(model, images), poses, own_axis=shape == "crescent")
                    row.append(float(np.sqrt((error**2).mean())) / bound)
                    if snr == 2:
                        worst.append(float(np.hypot(*error.T).max()))
                ratios.append(row)
                times.append(training_s)
                attempts = card.settings["attempts"]
                print(
                    f"  {shape} {seed}: "
                    + " ".join(f"{r:6.2f}" for r in row)
                    + f"  {training_s:.0f} s, {attempts} att."
                )
        median, highest = np.median(ratios, axis=0), np.max(ratios, axis=0)
        cells = "".join(f"   {m:4.2f} {h:4.2f}" for m, h in zip(median, highest, strict=True))
        print(f"{shape:<12}{cells}   {np.median(times):5.1f}     {max(worst):.1f}", flush=True)
        results[shape] = {"bound_px": bounds, "ratio": ratios, "training_s": times, "worst_px_snr2": worst}
    if chosen.output:
        chosen.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
