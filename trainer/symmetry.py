"""What one noisy image of a particle tells beyond its pixels: its noise, its symmetries, its centre."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneframe.trainer.crops import REFINEMENT, orthogonal, refined, sample

N_ANGLES = 48
"""Rotations tried, each with and without reflection."""

TOLERANCE = 0.02
"""Difference, in units of the contrast, that no image is trusted to show: interpolation and uneven light."""


@dataclass(frozen=True, slots=True)
class PixelNoise:
    """Variance of a pixel, in units of the squared contrast: dark + shot * signal, never below a third of dark."""

    dark: float
    shot: float

    def variance(self, signal: Tensor) -> Tensor:
        """Return the variance of pixels with this expected signal, of the same shape."""
        return (self.dark + self.shot * signal).clamp(min=self.dark / 3)


def pixel_noise(particle: NDArray[np.float32], expected: NDArray[np.float32]) -> PixelNoise:
    """Read the noise off a particle (S, S) and its `denoised` image: the mean-variance relation of a camera.

    Janesick, Photon Transfer (SPIE, 2007): the variance rises linearly with the light.
    """
    square = (particle - expected) ** 2
    flat = np.abs(expected) < 0.05
    dark = max(float(square[flat].mean()) if flat.any() else float(square.mean()), 1e-8)
    lit = np.abs(expected) > 0.3
    signal = expected[lit]
    shot = float(((square[lit] - dark) * signal).sum() / max(float((signal**2).sum()), 1e-12)) if lit.any() else 0.0
    return PixelNoise(dark, shot if shot * float(np.sign(signal.sum())) > 0 else 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Symmetrised:
    """A particle averaged over the rotations and reflections that leave it unchanged within its noise."""

    image: NDArray[np.float32]
    """(S, S), the centre of symmetry in its middle."""
    moved_px: tuple[float, float]
    """Where that centre lay in the original, (y, x) relative to its middle."""
    fixed: NDArray[np.float32]
    """(2, 2): projects onto the directions along which a symmetry fixes the centre."""
    n_rotations: float
    """Effective number of rotations, of `N_ANGLES`, that were averaged; 1 if there is no such symmetry."""
    n_reflections: float

    @property
    def is_round(self) -> bool:
        """True if every rotation leaves it unchanged: no angle can be told."""
        return self.n_rotations > 0.8 * N_ANGLES

    @property
    def has_mirror(self) -> bool:
        """True if a reflection leaves it unchanged."""
        return self.n_reflections > 0.5


def symmetrised(image: NDArray[np.float32], diameter_px: float, noise: PixelNoise) -> Symmetrised:
    """Find the symmetries of a `denoised` particle (S, S) and average over them.

    One training image has one noise pattern; a particle that looks the same from several sides carries several
    measurements of itself. Each rotation, with and without reflection, is shifted to fit best and weighed by the
    likelihood that what remains is noise; the centre is the point that all of them leave in place. Along a direction
    that no symmetry fixes, it stays in the middle of the image.

    Parameters
    ----------
    image : (S, S)
        S odd, the particle near the middle.
    diameter_px : float
    noise : PixelNoise
        Of the image before it was denoised.
    """
    index = torch.arange(2 * N_ANGLES)
    linear = orthogonal(2 * math.pi / N_ANGLES * (index % N_ANGLES), torch.where(index < N_ANGLES, 1.0, -1.0))
    radius_px = diameter_px / 2 + 4
    size = 2 * math.ceil(radius_px) + 1
    atlas = with_gradients(image)
    original = sample(atlas[:1], linear[:1], torch.zeros(1, 2), size)[0, 0]
    v = torch.arange(size) - (size - 1) / 2
    disc = (v[:, None] ** 2 + v[None, :] ** 2 < radius_px**2).float()
    far = np.hypot(*(np.indices(image.shape) - image.shape[0] // 2)) > diameter_px / 2 + 6
    kept = min(1.0, float(image[far].var()) / noise.dark)  # share of the noise that was not filtered out
    n_modes = max(10.0, float(disc.sum()) * kept)
    weight = disc / (noise.variance(original) * max(kept, 1e-6) + TOLERANCE**2)

    shift = torch.zeros(len(linear), 2)
    for _ in range(8):
        turned = sample(atlas, linear, -torch.einsum("bij,bj->bi", linear, shift), size)
        slope = -torch.einsum("bihw,bij->bjhw", turned[:, 1:], linear).flatten(2)  # (B, 2, K) d image / d shift
        rest = (original - turned[:, 0]).flatten(1)
        weighted = slope * weight.flatten()
        step = torch.linalg.solve(weighted @ slope.mT + 1e-6 * torch.eye(2), weighted @ rest[..., None])[..., 0]
        shift = shift + step.clamp(-2, 2)
    misfit = (rest**2 * weight.flatten()).sum(1) / (2 * disc.sum())  # 1 for the difference of two noisy copies
    excess = (misfit - 1).clamp(min=0) * n_modes - 2 * math.sqrt(2 * n_modes)
    belief = torch.exp(-0.5 * excess.clamp(min=0))
    belief[0] = 1

    # the centre c stays in place: c = linear (c - shift)
    moves = torch.eye(2) - linear
    pull = torch.einsum("b,bji,bj->i", belief, moves, -torch.einsum("bij,bj->bi", linear, shift))
    strength, direction = torch.linalg.eigh(torch.einsum("b,bji,bjk->ik", belief, moves, moves))
    is_fixed = (strength > 0.5).float()
    fixed = (direction * is_fixed) @ direction.T
    centre = (direction * is_fixed / strength.clamp(min=0.5)) @ direction.T @ pull
    share = belief / belief.sum()
    members = share > 1e-4
    turned = sample(atlas[:1], linear[members], centre.expand(int(members.sum()), 2), image.shape[0])[:, 0]
    mean = (turned * share[members][:, None, None]).sum(0).numpy()
    y, x = centre.tolist()
    return Symmetrised(mean, (y, x), fixed.numpy(), float(belief[:N_ANGLES].sum()), float(belief[N_ANGLES:].sum()))


def with_gradients(image: NDArray[np.float32]) -> Tensor:
    """Return the `refined` image and its derivatives along y and x per pixel, (3, F, F)."""
    fine = refined(image)
    along_y = (torch.roll(fine, -1, 0) - torch.roll(fine, 1, 0)) * (REFINEMENT / 2)
    along_x = (torch.roll(fine, -1, 1) - torch.roll(fine, 1, 1)) * (REFINEMENT / 2)
    return torch.stack([fine, along_y, along_x])
