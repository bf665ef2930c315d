"""z of single molecules by astigmatism, beside the Cramér-Rao bound.

    python benchmarks/smlm_depth.py [--seeds 3] [--density 0.2] [--frames 244] [--steps N] [-o FILE.json]

Each seed calibrates a simulated stack of beads (20 nm steps), trains on one frame of 256 x 256 px at 1 emitter per um^2
with that calibration, and is scored on held-out frames of 64 x 64 px at --density; foci at +-0.22 um, emitters within
+-0.4 um. The bound is that of isolated emitters, over those that were matched (within 250 nm across and 500 nm along
the axis), with the true point spread function; no error above the gate counts, so neither does a larger bound.
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
from oneframe.acquisition.psf import GaussianPsf, render
from oneframe.export import export
from oneframe.runtime.gaussian_fit import bound
from oneframe.runtime.localisation_score import LocalisationScore
from oneframe.runtime.model import load_graph
from oneframe.trainer import train
from oneframe.trainer.psf_calibration import calibrate_psf

ASTIGMATISM_UM = 0.22
STEP_UM = 0.02
GATE_Z_UM = 0.5


def scene(density_um2: float, size_px: int, seed: int) -> EmitterScene:
    return EmitterScene(
        width=size_px, height=size_px, density_um2=density_um2, astigmatism_um=ASTIGMATISM_UM, seed=seed
    )


def calibrated(seed: int) -> GaussianPsf:
    """Return what a stack of 12 beads of 10,000 photons tells of the point spread function."""
    rng = np.random.default_rng([seed, 9])
    true, camera = scene(1.0, 64, 0).psf, scene(1.0, 64, 0).camera
    y, x = (np.array([30.0, 70.0, 110.0, 150.0])[part] for part in (np.arange(12) // 4, np.arange(12) % 4))
    y, x = y + rng.uniform(-5, 5, 12), x + rng.uniform(-5, 5, 12)
    planes = []
    for z_um in np.arange(-0.6, 0.6001, STEP_UM):
        sigma_y, sigma_x = true.sigmas(np.full(12, z_um))
        electrons = render(y, x, np.full(12, 10_000.0), sigma_y, sigma_x, (140, 180)) + 20
        planes.append(camera.digitised(camera.expose(electrons, rng)))
    return calibrate_psf(np.stack(planes), STEP_UM).psf


def judged(path: Path, density_um2: float, n_frames: int, seed: int) -> dict[str, float]:
    """Return the figures of a model file on held-out frames."""
    held_out = scene(density_um2, 64, 5000 + seed)
    movie, model = EmitterMovie(held_out), load_graph(path)
    score = LocalisationScore(held_out.pixel_um, gate_z_um=GATE_Z_UM)
    truths = []
    for _ in range(n_frames):
        truths.append(movie.truth())
        score.add(truths[-1], model.detect(movie.expose()))
        movie.redraw()
    columns = []
    for truth, (true, _) in zip(truths, score.matches(), strict=True):
        level = movie.background[np.rint(truth.y_px[true]).astype(int), np.rint(truth.x_px[true]).astype(int)]
        columns.append((truth.photons[true], level, truth.z_um[true]))
    photons, level, z_um = (np.concatenate(each) for each in zip(*columns, strict=True))
    camera = held_out.camera
    least = bound(held_out.psf, photons, level, z_um=z_um, read_variance=camera.read_photoelectrons**2)
    figures = score.at(model.threshold)
    lateral_um = held_out.pixel_um * np.hypot(least.y_px, least.x_px)
    bound_z_nm = 1e3 * np.sqrt(np.mean(np.minimum(least.z_um, GATE_Z_UM) ** 2))  # type: ignore[type-var]
    return {
        "jaccard": figures.jaccard,
        "recall": figures.recall,
        "precision": figures.precision,
        "rmse_z_nm": 1e3 * figures.rmse_z_um,
        "bound_z_nm": float(bound_z_nm),
        "z_over_bound": float(1e3 * figures.rmse_z_um / bound_z_nm),
        "rmse_nm": figures.rmse_nm,
        "bound_nm": float(1e3 * np.sqrt(np.mean(np.minimum(lateral_um, 0.25) ** 2))),
        "within_sigma_z": figures.within_sigma_z,
        "n_matched": figures.n_matched,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--frames", type=int, default=244)
    parser.add_argument("--steps", type=int)
    parser.add_argument("-o", "--output", type=Path)
    chosen = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(chosen.first_seed, chosen.first_seed + chosen.seeds):
            frame = EmitterMovie(scene(1.0, 256, 300 + seed)).expose()
            started = time.monotonic()
            psf = calibrated(seed)
            model = train(frame, method="shot", psf=psf, pixel_size_um=0.1, seed=seed, steps=chosen.steps)
            path = Path(folder) / f"{seed}.onnx"
            training_s = time.monotonic() - started
            export(model, path)
            results.append(
                {"seed": seed, "training_s": training_s, **judged(path, chosen.density, chosen.frames, seed)}
            )
            print(json.dumps({name: round(value, 3) for name, value in results[-1].items()}), flush=True)
    if chosen.output:
        chosen.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
