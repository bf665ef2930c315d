"""Static error of the tracked positions, read off the mean square displacement of a film; oneframe beside trackpy.

Run: python benchmarks/lodestar_msd.py [--seeds 3] [--frames 300] [--photons 5000 1000]

Films of the simulated microscope (beads of 0.6 µm that diffuse 0.15 px per axis and frame, no drift), the same for
both programs. One box of the first frame trains oneframe; trackpy.locate gets the diameter of its own tutorial's rule
(larger than the bead, odd) and a mass above the noise. Both tables are linked by trackpy.link. For Brownian motion
MSD(t) = 4 D t + 4 sigma^2 (Michalet, Phys. Rev. E 82, 041914, 2010); the exposure is a flash, so nothing blurs. Lags 1
to 4 are fitted. Beside it the error against the truth. Needs trackpy.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import trackpy
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from oneframe.acquisition import open_source
from oneframe.acquisition.simulated import SimulatedBeads
from oneframe.export import export
from oneframe.runtime import load_model
from oneframe.trainer import train

SCENE = "sim:beads?width=320&height=320&n=30&lifetime=0&step_px=0.15&drift_y_px=0&drift_x_px=0&brightness_cv=0"
LAGS = 4


def film(photons: float, seed: int, n_frames: int) -> tuple[list[NDArray[Any]], list[NDArray[np.float64]]]:
    """Return images and the true positions (N, 2) of each."""
    source = open_source(f"{SCENE}&photons={photons:g}&seed={seed}")
    if not isinstance(source, SimulatedBeads):
        raise TypeError(f"expected the simulated microscope, got {source}")
    images, truths = [], []
    for _ in range(n_frames):
        frame = source.read(5.0)
        if frame is not None:
            truth = source.truth()
            images.append(frame.pixels)
            truths.append(np.column_stack([truth.y_px, truth.x_px]))
    return images, truths


def by_oneframe(images: list[NDArray[Any]], seed: int) -> pd.DataFrame:
    """Train on the first frame and detect in all."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(train(images[0], box="auto", seed=seed), path)
        model = load_model(path)
        found = [model.detect(image) for image in images]
    return pd.concat(
        pd.DataFrame({"y": each.y_px, "x": each.x_px, "frame": index, "sigma": each.sigma_y_px})
        for index, each in enumerate(found)
    )


def by_trackpy(images: list[NDArray[Any]]) -> pd.DataFrame:
    """Locate in all frames; the mass that separates beads from noise is the middle of the widest gap, frame 0."""
    mass = np.sort(trackpy.locate(images[0], 11)["mass"].to_numpy())
    gap = int(np.argmax(np.diff(np.log(mass))))
    least = float(np.sqrt(mass[gap] * mass[gap + 1]))
    return trackpy.batch(np.stack(images), 11, minmass=least, processes=1)[["y", "x", "frame"]]


def static_error_px(table: pd.DataFrame) -> float:
    """Return sigma per axis from the intercept of the MSD; NaN if it is negative."""
    tracks = trackpy.filter_stubs(trackpy.link(table, 2.0, memory=0), 20)
    msd = trackpy.emsd(tracks, mpp=1, fps=1, max_lagtime=LAGS).to_numpy()
    _, intercept = np.polyfit(np.arange(1, LAGS + 1), msd, 1)
    return float(np.sqrt(intercept / 4)) if intercept > 0 else float("nan")


def true_error_px(table: pd.DataFrame, truths: list[NDArray[np.float64]]) -> tuple[float, float]:
    """Return the RMSE per axis of what lies within 1 px of a bead, and the share of beads that were found."""
    errors, n_beads = [], 0
    for index, found in table.groupby("frame"):
        truth = truths[int(index)]
        inside = ((truth > 10) & (truth < 309)).all(1)
        distance, nearest = cKDTree(found[["y", "x"]].to_numpy()).query(truth[inside])
        n_beads += int(inside.sum())
        errors.append((found[["y", "x"]].to_numpy()[nearest] - truth[inside])[distance < 1])
    error = np.concatenate(errors)
    return float(np.sqrt((error**2).mean())), len(error) / n_beads


def main() -> None:
    """Measure every film with both programs."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--frames", type=int, default=300)
    arguments.add_argument("--photons", type=float, nargs="+", default=[5000.0, 1000.0])
    chosen = arguments.parse_args()
    trackpy.quiet()
    for photons in chosen.photons:
        for seed in range(chosen.seeds):
            images, truths = film(photons, seed, chosen.frames)
            for name, table in (("oneframe", by_oneframe(images, seed)), ("trackpy", by_trackpy(images))):
                rmse_px, found = true_error_px(table, truths)
                print(
                    f"{photons:5.0f} photons, seed {seed}, {name:<8}: static error from the MSD "
                    f"{static_error_px(table):.4f} px, true {rmse_px:.4f} px, found {found:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
