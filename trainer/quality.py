"""The quality card: what a trained model was measured to do before anybody relies on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from oneframe.trainer.crops import Normalisation, ViewSettings, random_views
from oneframe.trainer.symmetry import PixelNoise

Detect = Callable[[Tensor], tuple[Tensor, ...]]
"""Image (H, W) of camera pixels -> y_px, x_px, score, sigma_y_px, sigma_x_px, variance_px2, each (N,)."""

LARGEST_FRAME_PX = 1024
"""Repeatability is measured on the middle of larger frames."""


@dataclass(frozen=True, slots=True)
class OnViews:
    """What the model does on views of the boxed particles with the frame's own noise."""

    rmse_px: float
    """Root mean square error per axis, camera pixels."""
    found: float
    """Share of the views in which the particle was found."""
    within_sigma: float
    """Share of the errors within one predicted standard deviation; 0.68 is right."""
    variance_px2: Tensor
    score: Tensor


@torch.no_grad()
def on_views(
    detect: Detect,
    fine: Tensor,
    view: ViewSettings,
    noise: PixelNoise,
    normalisation: Normalisation,
    *,
    pooling: int,
    seed: int,
    n_views: int = 48,
) -> OnViews:
    """Show the deployed graph views whose position is known, drawn from `refined` particles (M, F, F)."""
    generator = torch.Generator().manual_seed(seed)
    calm = replace(view, n_views=n_views, n_cut=0, gain=(1.0, 1.0), offset=(0.0, 0.0), size=(1.0, 1.0), noise=0.0)
    errors, sigmas, seen = [], [], []
    for source in fine:
        views = random_views(source, calm, 0.0, generator)
        noisy = views.images + noise.variance(views.images).sqrt() * torch.randn(
            views.images.shape, generator=generator
        )
        pixels = (noisy[:, 0] * normalisation.scale + normalisation.offset).repeat_interleave(pooling, 1)
        pixels = pixels.repeat_interleave(pooling, 2)
        centre = (pixels.shape[-1] - 1) / 2
        positions = torch.full((n_views, 2), torch.nan)
        sigma = torch.full((n_views, 2), torch.nan)
        for k, image in enumerate(pixels):
            found = torch.stack(detect(image), -1)
            if len(found):
                # the one nearest to where the particle is; of what else is in a view nothing is known
                expected = -torch.linalg.solve(views.linear[k], views.origin_px[k]) * pooling + centre
                best = found[(found[:, :2] - expected).square().sum(1).argmin()]
                positions[k], sigma[k] = (best[:2] - centre) / pooling, best[3:5]
                seen.append(best[[5, 2]])
        in_source = views.to_source(positions) * pooling
        agreed = in_source.nanmedian(0).values
        error = torch.linalg.solve(views.linear, (in_source - agreed)[..., None])[..., 0]  # along the view's own axes
        errors.append(error)
        sigmas.append(sigma)
    error, sigma = torch.cat(errors), torch.cat(sigmas)
    missed = error.isnan().any(1) | (error.abs().amax(1) > 3 * pooling)
    error, sigma = error[~missed], sigma[~missed]
    columns = torch.stack(seen) if seen else torch.zeros(0, 2)
    return OnViews(
        rmse_px=float(error.square().mean().sqrt()) if len(error) else float("inf"),
        found=1 - float(missed.float().mean()),
        within_sigma=float((error.abs() < sigma).float().mean()) if len(error) else 0.0,
        variance_px2=columns[:, 0],
        score=columns[:, 1],
    )


@dataclass(frozen=True, slots=True)
class Repeatability:
    """How far detections on the snapped frame move when only the picture of it changes."""

    found_again: float
    """Share of the detections that are found in every changed frame."""
    shift_px: float
    """Root mean square difference per axis after a shift by whole pixels."""
    flip_px: float
    noise_px: float
    """The same with as much noise added as the frame has; so sqrt(2) more noise in all."""


@torch.no_grad()
def repeatability(
    detect: Detect, image: NDArray[Any], noise_counts: float, diameter_px: float, *, seed: int
) -> Repeatability:
    """Detect on the frame (H, W), and again after a shift, two flips and added noise of this standard deviation."""
    height, width = image.shape
    top, left = max(0, (height - LARGEST_FRAME_PX) // 2), max(0, (width - LARGEST_FRAME_PX) // 2)
    frame = torch.from_numpy(image[top : top + LARGEST_FRAME_PX, left : left + LARGEST_FRAME_PX].astype(np.float32))
    height, width = frame.shape
    positions = torch.stack(detect(frame)[:2], -1).numpy()
    margin = diameter_px / 2 + 3
    whole = ((positions > margin) & (positions < np.array([height, width]) - 1 - margin)).all(1)
    positions = positions[whole]
    if not len(positions):
        return Repeatability(0.0, float("inf"), float("inf"), float("inf"))
    generator = torch.Generator().manual_seed(seed)
    noisy = frame + noise_counts * torch.randn(frame.shape, generator=generator)
    changed: dict[str, list[tuple[Tensor, Callable[[NDArray[Any]], NDArray[Any]]]]] = {
        "shift": [(frame[1:, 3:], lambda p: p + np.array([1, 3]))],
        "flip": [
            (frame.flip(0), lambda p: p * np.array([-1, 1]) + np.array([height - 1, 0])),
            (frame.flip(1), lambda p: p * np.array([1, -1]) + np.array([0, width - 1])),
        ],
        "noise": [(noisy, lambda p: p)],
    }
    again = np.ones(len(positions), bool)
    moved: dict[str, float] = {}
    for name, pictures in changed.items():
        differences = []
        for picture, back in pictures:
            found = back(torch.stack(detect(picture)[:2], -1).numpy())
            if not len(found):
                return Repeatability(0.0, float("inf"), float("inf"), float("inf"))
            distance, nearest = cKDTree(found).query(positions)
            same = distance < max(1.0, diameter_px / 4)
            again &= same
            differences.append((found[nearest] - positions)[same])
        difference = np.concatenate(differences)
        moved[name] = float(np.sqrt((difference**2).mean())) if len(difference) else float("inf")
    return Repeatability(float(again.mean()), moved["shift"], moved["flip"], moved["noise"])


def advice(
    views: OnViews, bound_px: float, repeated: Repeatability, n_found: int, gap: float, warnings: Sequence[str]
) -> tuple[str, str]:
    """Return `green`, `amber` or `red` and one plain sentence: what to expect, or what is wrong and what to do."""
    if n_found == 0:
        return "red", "Nothing was found on the snapped frame itself; box another particle and train again."
    if views.found < 0.8 or repeated.found_again < 0.7:
        share = 100 * min(views.found, repeated.found_again)
        return "red", (
            f"Only {share:.0f} % of the particles are found again when the picture is shifted, flipped or noisier; "
            "box a clearer particle, box several, or give the camera more light."
        )
    if warnings:
        return "amber", warnings[0]
    if gap < 1.5:
        return "amber", (
            "Particles and background have similar scores on the snapped frame, so the threshold is a guess; "
            "look at the detections and set --threshold, or box several particles."
        )
    if repeated.found_again < 0.9:
        return "amber", (
            f"{100 * (1 - repeated.found_again):.0f} % of the detections come and go when the picture is shifted, "
            "flipped or noisier; raise --threshold, or box several particles."
        )
    if views.rmse_px > 1.5 * bound_px and views.rmse_px > 0.02:
        return "amber", (
            f"Positions are good to {views.rmse_px:.3f} px, the light would allow {bound_px:.3f} px; train for more "
            "--steps if you need more."
        )
    return "green", (
        f"Ready: expect {views.rmse_px:.3f} px per axis on particles like the boxed one; "
        f"the light allows {bound_px:.3f} px."
    )
