"""The five shapes of the LodeSTAR paper's Figure 1: exact sub-pixel truth, Cramér-Rao bound, classical trackers.

Midtvedt et al., Nat. Commun. 13, 7492 (2022), and its notebook "tracking particles of various shapes": NA 0.7, 660 nm,
0.1 um pixels, 64 x 64; image = Poisson(I s) / s with I scaled to 0..1 plus 0.1 and s = SNR^2 / 1.1^2.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float64]

SIZE = 64
PIXEL_UM = 0.1
NA = 0.7
WAVELENGTH_UM = 0.66
PEAK = 1.1
BACKGROUND = 0.1
SNRS = (2, 3, 5, 7, 10, 14, 20)
TRAINING_SNR = 10
TUNING_SEED = 77
"""Held-out images that were looked at while methods were made; a published figure comes from another seed."""
_SAMPLES = 12
"""Samples per pixel and axis of the drawn shape."""


def _ball(y: Image, x: Image) -> Image:
    return np.sqrt(np.maximum(100 - y**2 - x**2, 0))


def _annulus(y: Image, x: Image) -> Image:
    r2 = y**2 + x**2
    return ((r2 <= 144) & (r2 >= 64)).astype(float)


def _ellipse(y: Image, x: Image) -> Image:
    return ((y / 12) ** 2 + (x / 7) ** 2 <= 1).astype(float)


def _crescent(y: Image, x: Image) -> Image:
    return ((y**2 + x**2 <= 100) & ((y - 6) ** 2 + x**2 > 100)).astype(float)


# name -> intensity at (y, x) px from the centre, unrotated; None is a point
SHAPES: dict[str, Callable[[Image, Image], Image] | None] = {
    "point": None,
    "sphere": _ball,
    "annulus": _annulus,
    "ellipse": _ellipse,
    "crescent": _crescent,
}


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a particle is: centre in pixels, angle in radians."""

    y_px: float
    x_px: float
    angle: float


def random_pose(rng: np.random.Generator) -> Pose:
    """Draw a pose as the notebook does: centre in 27..37, any angle."""
    y_px, x_px = rng.uniform(27, 37, 2)
    return Pose(float(y_px), float(x_px), float(rng.uniform(0, 2 * np.pi)))


def clean_image(shape: str, pose: Pose) -> Image:
    """Return the noise-free image (64, 64), from 0.1 to 1.1: shape, incoherent Airy optics, square pixels."""
    fine = SIZE * _SAMPLES
    frequency = np.fft.fftfreq(fine, PIXEL_UM / _SAMPLES)
    q = np.minimum(np.hypot(frequency[:, None], frequency) / (2 * NA / WAVELENGTH_UM), 1)
    transfer = 2 / np.pi * (np.arccos(q) - q * np.sqrt(1 - q**2))
    pixel = np.sinc(frequency * PIXEL_UM)
    draw = SHAPES[shape]
    if draw is None:
        spectrum = np.ones((fine, fine), complex)
        offset_px = np.array([pose.y_px, pose.x_px])
    else:
        offset_px = np.zeros(2)
        c = (np.arange(fine) + 0.5) / _SAMPLES - 0.5  # centres of the samples, px
        y, x = c[:, None] - pose.y_px, c[None, :] - pose.x_px
        cosine, sine = np.cos(pose.angle), np.sin(pose.angle)
        spectrum = np.fft.fft2(draw(cosine * y + sine * x, -sine * y + cosine * x))
    # samples stand at (i + 0.5) / n - 0.5 px: for the point, move it there with a phase
    if draw is None:
        where = (offset_px + 0.5) * PIXEL_UM - 0.5 * PIXEL_UM / _SAMPLES
        spectrum = np.exp(-2j * np.pi * (frequency[:, None] * where[0] + frequency[None, :] * where[1]))
    blurred = np.fft.ifft2(spectrum * transfer * pixel[:, None] * pixel[None, :]).real
    # the box filter above is centred on each sample: read it at the centre of the pixel, between two samples
    middle = _SAMPLES // 2
    image = np.mean(
        [blurred[i::_SAMPLES, j::_SAMPLES] for i in (middle - 1, middle) for j in (middle - 1, middle)], axis=0
    )
    image = (image - image.min()) / (image.max() - image.min())
    return image + BACKGROUND


def photons_per_unit(snr: float) -> float:
    """Return s of the paper: photons of an intensity of 1."""
    return snr**2 / PEAK**2


def noisy(clean: Image, snr: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return Poisson(I s) / s."""
    s = photons_per_unit(snr)
    return (rng.poisson(clean * s) / s).astype(np.float32)


def training_image(shape: str, seed: int) -> NDArray[np.float32]:
    """Return the one image (64, 64) that a method trains on."""
    rng = np.random.default_rng([seed, list(SHAPES).index(shape), 5])
    return noisy(clean_image(shape, random_pose(rng)), TRAINING_SNR, rng)


def held_out(shape: str, n_images: int, cache: Path, *, seed: int) -> tuple[Image, list[Pose]]:
    """Return noise-free images (N, 64, 64) and their poses; drawing them takes longer than reading them back."""
    rng = np.random.default_rng([seed, list(SHAPES).index(shape)])
    poses = [random_pose(rng) for _ in range(n_images)]
    path = cache / f"{shape}-{n_images}{'' if seed == TUNING_SEED else f'-{seed}'}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = cache / f"{shape}-{n_images}-{os.getpid()}.npy"
        np.save(unfinished, np.stack([clean_image(shape, pose) for pose in poses]))
        unfinished.replace(path)  # another benchmark may be reading the cache
    return np.load(path), poses


def with_noise(clean: Image, snr: int, *, seed: int) -> NDArray[np.float32]:
    """Return the `held_out` images of this seed with their noise, (N, 64, 64)."""
    rng = np.random.default_rng([seed + 11, snr])
    return np.stack([noisy(image, snr, rng) for image in clean])


def errors_px(found: Image, poses: list[Pose], *, shape: str) -> Image:
    """Return found minus true, (N, 2).

    The "centre" of a crescent is a matter of definition: its median error in its own coordinates is taken out, as the
    paper allows.
    """
    error: Image = found - [(pose.y_px, pose.x_px) for pose in poses]
    if shape != "crescent":
        return error
    angle = np.array([pose.angle for pose in poses])
    cosine, sine = np.cos(angle), np.sin(angle)
    own = np.stack([cosine * error[:, 0] + sine * error[:, 1], -sine * error[:, 0] + cosine * error[:, 1]], -1)
    own -= np.median(own, axis=0)
    return np.stack([cosine * own[:, 0] - sine * own[:, 1], sine * own[:, 0] + cosine * own[:, 1]], -1)


def cramer_rao_px(shape: str, snr: float) -> float:
    """Return the bound on the RMSE per axis, px: y, x and, where it matters, the angle are unknown."""
    return _cramer_rao_of_unit_px(shape) / float(np.sqrt(photons_per_unit(snr)))


@functools.cache
def _cramer_rao_of_unit_px(shape: str, n_poses: int = 12, seed: int = 0) -> float:
    """Return the bound for one photon per unit of intensity."""
    rng = np.random.default_rng(seed)
    step = 0.02
    variances = []
    for _ in range(n_poses):
        pose = random_pose(rng)
        mean = clean_image(shape, pose)
        gradients = []
        for name, h in (("y_px", step), ("x_px", step), ("angle", 0.01)):
            if name == "angle" and shape in ("point", "sphere", "annulus"):
                continue
            ends = [clean_image(shape, replace(pose, **{name: getattr(pose, name) + sign * h})) for sign in (1, -1)]
            gradients.append((ends[0] - ends[1]) / (2 * h))
        g = np.stack(gradients).reshape(len(gradients), -1)
        variances.append(np.diag(np.linalg.inv((g / mean.ravel()) @ g.T))[:2].mean())
    return float(np.sqrt(np.mean(variances)))


def centroid(image: NDArray[np.float32]) -> tuple[float, float]:
    """Return the centre of mass of what stands above half the smoothed maximum."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(image.astype(float), 1.0) - np.median(image)
    weight = np.where(smooth > 0.5 * smooth.max(), smooth, 0)
    rows, columns = np.indices(image.shape)
    return float((rows * weight).sum() / weight.sum()), float((columns * weight).sum() / weight.sum())


def radial_symmetry(image: NDArray[np.float32]) -> tuple[float, float]:
    """Return the centre of radial symmetry (Parthasarathy, Nat. Methods 9, 724 (2012))."""
    from scipy import ndimage

    a = image.astype(float)
    along_u = a[:-1, 1:] - a[1:, :-1]
    along_v = a[:-1, :-1] - a[1:, 1:]
    along_u, along_v = (ndimage.uniform_filter(g, 3, mode="nearest") for g in (along_u, along_v))
    gradient2 = along_u**2 + along_v**2
    rows, columns = np.indices(gradient2.shape) + 0.5
    gy, gx = -(along_u + along_v), along_u - along_v
    norm = np.hypot(gy, gx) + 1e-12
    ny, nx = gy / norm, gx / norm  # the lines run along the gradient
    centre_y, centre_x = (rows * gradient2).sum() / gradient2.sum(), (columns * gradient2).sum() / gradient2.sum()
    w = gradient2 / np.maximum(np.hypot(rows - centre_y, columns - centre_x), 1)
    matrix = np.array([[(w * nx**2).sum(), -(w * nx * ny).sum()], [-(w * nx * ny).sum(), (w * ny**2).sum()]])
    across = nx * rows - ny * columns
    y, x = np.linalg.solve(matrix, [(w * nx * across).sum(), -(w * ny * across).sum()])
    return float(y), float(x)
