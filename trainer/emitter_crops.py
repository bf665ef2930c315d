"""Small images of blinking emitters with exact truth, drawn by the thousand from what one frame has revealed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import erf
from torch import Tensor

from oneframe.acquisition.emitters import LEAST_LIGHT, EmitterCamera
from oneframe.acquisition.psf import GaussianPsf

Array = NDArray[np.float64]

_MARGIN_SIGMAS = 5.0


@dataclass(frozen=True, slots=True)
class EmitterWorld:
    """What emitters, background and camera can be like; `*_spread` is what the values may be wrong by."""

    psf: GaussianPsf
    camera: EmitterCamera
    photons: float
    """Mean photoelectrons of an emitter that is on for a whole frame."""
    background: tuple[float, float]
    """Lowest and highest in the frame, photoelectrons per pixel."""
    density_px: tuple[float, float]
    """Emitters per pixel in a frame, drawn evenly on a logarithmic scale."""
    photons_cv: float = 0.3
    """Spread from emitter to emitter: standard deviation over mean of a log-normal law."""
    on_frames: tuple[float, float] = (0.7, 1.6)
    """Mean length of a blink, frames, drawn anew for each crop."""
    n_frames: int = 1
    """Frames of a crop; the truth is that of the last."""
    psf_spread: float = 0.05
    """Half width of the factor on all widths."""
    photons_spread: float = 0.3
    """Half width of the logarithm of the factor on `photons`."""
    background_spread: float = 0.4
    """The same for the background."""
    gain_spread: float = 0.03
    offset_spread: float = 1.0
    """Half width, photoelectrons."""
    missing_share: float = 0.1
    """Of the crops of several frames, those that lack some of the first, as at the start of a run and after a gap."""

    @property
    def level(self) -> float:
        """Middle of the background on a logarithmic scale, photoelectrons per pixel."""
        return math.sqrt(self.background[0] * self.background[1])

    @property
    def missing(self) -> float:
        """Counts, everywhere, of what stands for a frame that is missing: no emitters, the middle of the background."""
        return float(np.clip(np.rint(self.camera.offset + self.camera.gain * self.level), 0, 65535))

    @property
    def margin_px(self) -> int:
        """How far outside the crop emitters lie as well."""
        z_um = np.linspace(*self.psf.z_range_um, 21)
        return math.ceil(_MARGIN_SIGMAS * max(float(sigma.max()) for sigma in self.psf.sigmas(z_um)))

    def exactly(self, density_px: float) -> EmitterWorld:
        """Return the world as it was read off the frame, without spread, at one density; no frame is missing."""
        on_frames = math.sqrt(self.on_frames[0] * self.on_frames[1])
        return EmitterWorld(
            self.psf, self.camera, self.photons, self.background, (density_px, density_px), self.photons_cv,
            (on_frames, on_frames), self.n_frames, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class EmitterCrops:
    """Images and what is in them; emitters are those of the last frame that send `LEAST_LIGHT` or more into it."""

    counts: Tensor
    """(B, F, S, S) float32, whole camera counts."""
    background: Tensor
    """(B, S, S), photoelectrons per pixel."""
    crop: NDArray[np.intp]
    """(T,): which crop each emitter is in, ascending."""
    position: Array
    """(T, 3): y px, x px, z um; within the crop."""
    photons: Array
    """(T,)"""

    def __len__(self) -> int:
        return len(self.counts)


def draw_crops(world: EmitterWorld, n_crops: int, size_px: int, rng: np.random.Generator) -> EmitterCrops:
    """Draw crops of `size_px` x `size_px`, each with its own density, blinking, photons, background and spread."""
    margin = world.margin_px
    low, high = world.density_px
    density = np.exp(rng.uniform(math.log(low), math.log(high), n_crops))
    on_frames = rng.uniform(*world.on_frames, n_crops)
    # of the blinks that touch the window of F frames, those that are seen in the last one
    n_blinks = density * (size_px + 2 * margin) ** 2 * (on_frames + world.n_frames) / (on_frames + 1)
    n_emitters = rng.poisson(n_blinks)
    slots = (n_crops, max(1, int(n_emitters.max())))
    filled = np.arange(slots[1]) < n_emitters[:, None]

    overlap = _overlaps(rng, slots, on_frames[:, None], world.n_frames)  # (F, B, M)
    sigma_log = math.sqrt(math.log1p(world.photons_cv**2))
    flux = world.photons * np.exp(sigma_log * rng.standard_normal(slots) - sigma_log**2 / 2)
    flux *= _factor(rng, world.photons_spread, n_crops)[:, None]
    photons = flux * overlap * filled

    y_px, x_px = rng.uniform(-margin - 0.5, size_px - 0.5 + margin, (2, *slots))
    z_um = rng.uniform(*world.psf.z_range_um, slots)
    wider = 1 + rng.uniform(-world.psf_spread, world.psf_spread, (n_crops, 1))
    sigma_y, sigma_x = (sigma * wider for sigma in world.psf.sigmas(z_um))
    rows, columns = _shares(y_px, sigma_y, size_px), _shares(x_px, sigma_x, size_px)  # (B, M, S)
    image = np.stack([(rows * each[..., None]).transpose(0, 2, 1) @ columns for each in photons.astype(np.float32)], 1)

    background = _smooth(rng, n_crops, size_px, world.background, world.background_spread)
    camera = world.camera
    counts: NDArray[np.floating] = camera.expose(image + background[:, None], rng)
    if world.gain_spread or world.offset_spread:
        gain = _factor(rng, world.gain_spread, n_crops)
        shift = world.offset_spread * rng.uniform(-1, 1, n_crops) * camera.gain
        counts = camera.offset + (counts - camera.offset) * gain[:, None, None, None] + shift[:, None, None, None]

    counts = np.clip(np.rint(counts), 0, 65535)
    if world.n_frames > 1:
        n_missing = rng.integers(1, world.n_frames, n_crops) * (rng.random(n_crops) < world.missing_share)
        counts[np.arange(world.n_frames) < n_missing[:, None]] = world.missing

    edge = size_px - 0.5
    inside = (y_px >= -0.5) & (y_px < edge) & (x_px >= -0.5) & (x_px < edge)
    seen = filled & inside & (photons[-1] >= LEAST_LIGHT * world.photons)
    return EmitterCrops(
        torch.from_numpy(counts.astype(np.float32)),
        torch.from_numpy(background),
        np.nonzero(seen)[0],
        np.stack([y_px[seen], x_px[seen], z_um[seen]], -1),
        photons[-1][seen],
    )


def _overlaps(rng: np.random.Generator, slots: tuple[int, int], on_frames: Array, n_frames: int) -> Array:
    """Return which part of each frame a blink fills, (F, B, M), of blinks that touch the window."""
    before = rng.random(slots) < on_frames / (on_frames + n_frames)  # began earlier: what is left is exponential too
    start = np.where(before, 0, rng.uniform(0, n_frames, slots))
    end = start + rng.exponential(1, slots) * on_frames
    first = np.arange(n_frames)[:, None, None]
    overlap: Array = np.clip(np.minimum(end, first + 1) - np.maximum(start, first), 0, 1)
    return overlap


def _factor(rng: np.random.Generator, spread: float, n: int) -> Array:
    """Return factors (n,) whose logarithm is even within +-spread."""
    return np.exp(rng.uniform(-spread, spread, n))


def _shares(centre_px: Array, sigma_px: Array, size_px: int) -> NDArray[np.float32]:
    """Return the light of each pixel of a line, (B, M, S); see `acquisition.psf.pixel_shares`."""
    edges = np.arange(size_px + 1, dtype=np.float32) - np.float32(0.5)
    scale = np.float32(1 / math.sqrt(2)) / sigma_px.astype(np.float32)
    below = erf((edges - centre_px.astype(np.float32)[..., None]) * scale[..., None])
    shares: NDArray[np.float32] = np.float32(0.5) * np.diff(below, axis=-1)
    return shares


def _smooth(
    rng: np.random.Generator, n: int, size_px: int, limits: tuple[float, float], spread: float
) -> NDArray[np.float32]:
    """Return smooth surfaces (n, S, S) between two levels that lie anywhere within the limits, spread included."""
    low, high = limits
    ends = np.sort(rng.uniform(math.log(low), math.log(max(high, low * 1.0001)), (2, n)), axis=0)
    ends = np.exp(ends + rng.uniform(-spread, spread, n))
    knots = rng.random((n, 4, 4))
    place = np.linspace(0, 3, size_px)
    left = np.minimum(place.astype(int), 2)
    part = place - left
    part = part * part * (3 - 2 * part)  # smooth at the knots
    weights = np.zeros((size_px, 4))
    weights[np.arange(size_px), left] = 1 - part
    weights[np.arange(size_px), left + 1] = part
    surface = weights @ knots @ weights.T
    background: NDArray[np.float32] = (ends[0] + (ends[1] - ends[0]) * surface.T).T.astype(np.float32)
    return background
