"""A trained model on simulated frames of one density: how much it finds, how well, and how well one could."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from oneframe.runtime.detections import Detections
from oneframe.runtime.gaussian_fit import bound
from oneframe.runtime.localisation_score import LocalisationScore
from oneframe.trainer.emitter_crops import EmitterCrops, EmitterWorld, draw_crops
from oneframe.trainer.shot_graph import ShotGraph

THRESHOLDS = tuple(np.round(np.arange(0.1, 0.86, 0.05), 2).tolist())
FRAME_PX = 64
_GATE_SIGMAS = 2.5 / 1.3
"""The challenge's 250 nm at sigma 130 nm."""
_FLAT = 0.005
"""Jaccard indices nearer to the largest than this are as good: it is flat about its maximum."""
_LIKELY = 0.5
"""Scores are probabilities: no threshold of a model's own lies above this."""
_FEW = 400
"""Emitters whose bound is worked out."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What simulated frames of one density say of a model at one threshold."""

    density_px: float
    threshold: float
    jaccard: float
    precision: float
    recall: float
    rmse_px: float
    """Lateral, y and x together."""
    bound_px: float
    """Cramér-Rao, of the emitters that were matched, as if each were alone."""
    within_sigma: float
    rmse_z_um: float
    bound_z_um: float
    """NaN, like `rmse_z_um`, where the model gives no z."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Simulated frames and what a model found there."""

    world: EmitterWorld
    score: LocalisationScore
    frames: list[_Truth]

    def expected(self, threshold: float | None = None) -> Expected:
        """Return the figures at a threshold.

        By default the highest whose Jaccard index is as good as the largest, 0.5 at most: the higher, the fewer large
        errors and false positives; above 0.5 what is more likely there than not would be left out.
        """
        if threshold is None:
            scan = self.score.scan(THRESHOLDS)
            largest = max(figures.jaccard for figures in scan)
            as_good = [figures.threshold for figures in scan if figures.jaccard >= largest - _FLAT]
            threshold = min(max(as_good), _LIKELY)
        figures = self.score.at(threshold)
        bound_px, bound_z_um = self._bound(threshold)
        return Expected(
            self.world.density_px[0], threshold, figures.jaccard, figures.precision, figures.recall, figures.rmse_px,
            bound_px, figures.within_sigma, figures.rmse_z_um, bound_z_um,
        )  # fmt: skip

    def _bound(self, threshold: float) -> tuple[float, float]:
        """Return the lateral and the axial bound of the matched emitters, root mean square."""
        matched = [(truth, found) for truth, (found, _) in zip(self.frames, self.score.matches(threshold), strict=True)]
        columns = [
            np.concatenate([getattr(truth, name)[found] for truth, found in matched])[:_FEW]
            for name in ("photons", "background", "z_um")
        ]
        if not columns[0].size:
            return float("nan"), float("nan")
        photons, background, z_um = columns
        camera = self.world.camera
        least = bound(
            self.world.psf, photons, background, z_um=z_um, read_variance=camera.read_photoelectrons**2,
            excess=camera.excess,
        )  # fmt: skip
        lateral = least.y_px**2 + least.x_px**2
        gate = self.score.gate_px**2 / 2  # nothing farther than the gate is matched
        axial = float("nan") if least.z_um is None else float(np.sqrt(np.mean(least.z_um**2)))
        return float(np.sqrt(np.mean(np.minimum(lateral, gate)))), axial


@dataclass(frozen=True, slots=True, eq=False)
class _Truth:
    """Emitters of one crop, as `LocalisationScore` takes them."""

    y_px: NDArray[np.float64]
    x_px: NDArray[np.float64]
    z_um: NDArray[np.float64]
    photons: NDArray[np.float64]
    background: NDArray[np.float64]
    """At each emitter."""

    @classmethod
    def of(cls, crops: EmitterCrops) -> _Truth:
        """Take the one crop."""
        y_px, x_px, z_um = crops.position.T
        row, column = np.rint(crops.position[:, :2].T).astype(int)
        return cls(y_px, x_px, z_um, crops.photons, crops.background[0].numpy()[row, column].astype(np.float64))


def trial(graph: ShotGraph, world: EmitterWorld, seed: int, *, n_frames: int = 24) -> Trial:
    """Show the deployed graph frames of this world that the training has not seen."""
    score = LocalisationScore(1.0, gate_px=_GATE_SIGMAS * world.psf.y.sigma_px)
    truths = []
    for k in range(n_frames):
        crops = draw_crops(world, 1, FRAME_PX, np.random.default_rng([seed, 1, k]))
        truths.append(_Truth.of(crops))
        score.add(truths[-1], detections(graph, crops, THRESHOLDS[0]))
    return Trial(world, score, truths)


@torch.no_grad()
def detections(graph: ShotGraph, crops: EmitterCrops, threshold: float) -> Detections:
    """Return what the deployed graph finds in one crop."""
    values = graph(crops.counts[0], torch.tensor(threshold))
    return Detections(**{name: value.numpy() for name, value in zip(graph.columns, values, strict=True)})
