"""One box of one frame becomes endless views: cut out, normalised, resampled once, with fresh noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

REFINEMENT = 6
"""Samples per pixel of a source that views are drawn from."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of a frame: first column and row, width and height, all in whole pixels."""

    x_px: int
    y_px: int
    width_px: int
    height_px: int

    def check_within(self, height: int, width: int) -> None:
        """Refuse a box that is too small or reaches beyond a frame of this size.

        Raises
        ------
        ValueError
            With what was expected, what was got, and what to do.
        """
        if min(self.width_px, self.height_px) < 5:
            raise ValueError(
                f"the box must be at least 5 x 5 px, got {self.width_px} x {self.height_px}; draw it larger"
            )
        inside = self.x_px >= 0 and self.y_px >= 0
        if not inside or self.x_px + self.width_px > width or self.y_px + self.height_px > height:
            raise ValueError(
                f"the box must lie within the frame of {width} x {height} px (width x height), got x {self.x_px} to "
                f"{self.x_px + self.width_px}, y {self.y_px} to {self.y_px + self.height_px}; move or shrink it"
            )

    @property
    def side_px(self) -> int:
        """The longer edge."""
        return max(self.width_px, self.height_px)

    def cut(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return the boxed part of (..., H, W)."""
        rows = slice(self.y_px, self.y_px + self.height_px)
        return image[..., rows, self.x_px : self.x_px + self.width_px]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """(pixels - offset) / scale: background near 0, the boxed particle's strongest deviation near 1."""

    offset: float
    scale: float
    noise: float
    """Standard deviation of the frame's pixel noise, in units of `scale`."""


def normalisation_from(image: NDArray[Any], box: Box) -> Normalisation:
    """Read background, contrast and noise off a frame (H, W).

    The background is the median along the rim of the box, the contrast the 99.5 % quantile of the deviations from it;
    the noise comes from second differences, which do not see smooth structure (Immerkaer 1996, with a median).

    Raises
    ------
    ValueError
        If the box holds nothing but one constant value.
    """
    inside = box.cut(image).astype(np.float64)
    rim = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    offset = float(np.median(rim))
    scale = float(np.quantile(np.abs(inside - offset), 0.995))
    if not scale > 0:
        raise ValueError(
            f"expected a particle in the box, got one constant value {inside.flat[0]:g}; snap another frame"
        )
    pixels = image.astype(np.float64)
    second = pixels[:-2] - 2 * pixels[1:-1] + pixels[2:]
    mixed = second[:, :-2] - 2 * second[:, 1:-1] + second[:, 2:]
    noise = float(np.median(np.abs(mixed - np.median(mixed)))) / 0.6745 / 6.0  # 6 = norm of the 3x3 kernel
    return Normalisation(offset, scale, noise / scale)


def background_range(image: NDArray[Any], normalisation: Normalisation, block_px: int) -> tuple[float, float]:
    """Return how far the background of a frame (H, W) lies from that of the box, in units of `scale`.

    From the 2 % to the 98 % quantile of the medians of blocks of `block_px`, and never less than -0.05 to 0.05: uneven
    light must not hide particles that look like the boxed one otherwise.
    """
    height, width = (max(1, n // block_px) for n in image.shape)
    blocks = [
        np.median(block)
        for band in np.array_split(image, height, axis=0)
        for block in np.array_split(band, width, axis=1)
    ]
    low, high = np.quantile((np.array(blocks) - normalisation.offset) / normalisation.scale, [0.02, 0.98])
    return min(-0.05, float(low)), max(0.05, float(high))


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the particle lies in the frame and how large it is."""

    y_px: int
    x_px: int
    diameter_px: float


def extent_of(image: NDArray[Any], box: Box, normalisation: Normalisation) -> Extent:
    """Measure the boxed particle: the middle and the size of what stands out from the noise.

    The diameter is twice the distance from the middle that holds 95 % of the pixels above a third of the contrast.
    """
    inside = box.cut(image).astype(np.float32)
    part = np.abs(inside - np.float32(normalisation.offset)) / np.float32(normalisation.scale)
    part = F.avg_pool2d(torch.from_numpy(part)[None, None], 3, 1, 1, count_include_pad=False)[0, 0].numpy()
    y, x = np.nonzero(part > max(0.33 * part.max(), 1.5 * normalisation.noise))
    middle_y, middle_x = y.mean(), x.mean()
    diameter_px = 2 * np.quantile(np.hypot(y - middle_y, x - middle_x), 0.95) + 1
    middle = round(box.y_px + float(middle_y)), round(box.x_px + float(middle_x))
    return Extent(*middle, float(min(diameter_px, box.side_px)))


def particle_alone(
    image: NDArray[Any],
    box: Box,
    normalisation: Normalisation,
    extent: Extent,
    *,
    reach_px: int,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Return the boxed particle on a wide background, normalised, shape (2 reach + 1, 2 reach + 1).

    The middle of the particle is the middle of the result. Other objects outside the box and what lies beyond the frame
    are replaced by pixels drawn from the background, so that the views hold one particle only.
    """
    frame = (image.astype(np.float32) - np.float32(normalisation.offset)) / np.float32(normalisation.scale)
    side = 2 * reach_px + 1
    rows, columns = np.arange(side) + extent.y_px - reach_px, np.arange(side) + extent.x_px - reach_px
    in_frame = np.outer((rows >= 0) & (rows < frame.shape[0]), (columns >= 0) & (columns < frame.shape[1]))
    wide = frame[np.clip(rows, 0, frame.shape[0] - 1)][:, np.clip(columns, 0, frame.shape[1] - 1)]
    in_box = np.outer(
        (rows >= box.y_px) & (rows < box.y_px + box.height_px),
        (columns >= box.x_px) & (columns < box.x_px + box.width_px),
    )
    limit = max(4 * normalisation.noise, 0.08)
    strange = _dilated(np.abs(wide) > limit)
    background = frame[np.abs(frame) < limit]
    if background.size < 50:
        background = np.zeros(50, np.float32)
    replace = ~in_box & (strange | ~in_frame)
    return np.where(replace, rng.choice(background, size=wide.shape), wide).astype(np.float32)


def denoised(particle: NDArray[np.float32], extent_px: float) -> NDArray[np.float32]:
    """Return the particle (S, S) without the noise that its optics cannot have passed: an isotropic Wiener filter.

    A training image has one noise pattern that turns with the particle in every view; a network that learns it places
    the particle off its centre. Signal and noise are told apart by the power spectrum round the particle, averaged over
    directions; the noise level is read off the highest frequencies, where no microscope has signal.

    References
    ----------
    Wiener, Extrapolation, Interpolation, and Smoothing of Stationary Time Series (1949).
    """
    middle, half = particle.shape[0] // 2, min(particle.shape[0] // 2, math.ceil(extent_px / 2) + 8)
    part = particle[middle - half : middle + half + 1, middle - half : middle + half + 1]
    taper = np.hanning(2 * half + 3)[1:-1] ** 0.5
    power = np.abs(np.fft.fft2(part * np.outer(taper, taper))) ** 2
    radius = _frequency_radius(2 * half + 1)
    noise = power[radius > 0.42].mean()
    edges = np.linspace(0, 0.75, 31)
    ring = np.digitize(radius, edges) - 1
    mean_power = np.bincount(ring.ravel(), power.ravel(), 30) / np.maximum(np.bincount(ring.ravel(), minlength=30), 1)
    gain = np.clip(1 - noise / np.maximum(mean_power, 1e-30), 0, 1)
    lost = np.flatnonzero(gain < 0.1)
    if lost.size:  # beyond the band only chance exceeds the noise
        gain[lost[0] :] = 0
    passed = np.interp(_frequency_radius(particle.shape[0]), (edges[:-1] + edges[1:]) / 2, gain)
    return np.fft.ifft2(np.fft.fft2(particle) * passed).real.astype(np.float32)


def _frequency_radius(size: int) -> NDArray[np.float64]:
    """Distance from zero frequency, cycles per pixel, in the order of `numpy.fft`, (size, size)."""
    f = np.fft.fftfreq(size)
    radius: NDArray[np.float64] = np.hypot(f[:, None], f[None, :])
    return radius


def _dilated(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Grow a mask by two pixels."""
    grown = F.max_pool2d(torch.from_numpy(mask.astype(np.float32))[None, None], 5, 1, 2)[0, 0].numpy()
    return np.asarray(grown > 0)


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """Views of one particle and the way back to the place they were taken from."""

    images: Tensor
    """(B, 1, V, V)."""
    linear: Tensor
    """(B, 2, 2): from steps in the view to steps in the source; rotation, reflection, size."""
    origin_px: Tensor
    """(B, 2): where the centre of each view came from, (y, x) relative to the centre of the source."""
    n_whole: int
    """The first of the views show the whole particle; in the rest an edge may cut it, as the frame's edge does."""

    def to_source(self, position_px: Tensor) -> Tensor:
        """Map positions (B, 2) or (B, N, 2), in px relative to the centre of the view, back to the source."""
        mapped = torch.einsum("bij,b...j->b...i", self.linear, position_px)
        return mapped + self.origin_px.reshape(-1, *[1] * (position_px.ndim - 2), 2)


@dataclass(frozen=True, slots=True)
class ViewSettings:
    """How views differ from the crop; the equivariances are rotation, reflection, translation and size."""

    view_px: int
    """Edge of a view, even."""
    n_views: int = 8
    n_cut: int = 2
    """Views among them in which the particle sits at an edge, so that it is found right up to the frame's border."""
    cut_px: float = 6.0
    """Largest distance from that edge to the particle's centre."""
    shift_px: float = 3.0
    """Largest translation along each axis."""
    gain: tuple[float, float] = (0.7, 1.3)
    """Brightness factor, from and to."""
    size: tuple[float, float] = (1.0, 1.0)
    """Size factor, from and to."""
    offset: tuple[float, float] = (-0.05, 0.05)
    """Change of the background, from and to, in units of the particle's contrast."""
    noise: float = 0.8
    """Largest added noise, relative to the square root of the intensity. The strength is drawn as noise * U^3: mostly
    weak, sometimes far stronger than the frame's own."""


def refined(source: NDArray[np.float32]) -> Tensor:
    """Return `source` (S, S) sampled `REFINEMENT` times finer by cubic splines, for `sample`.

    Between samples this fine, linear interpolation moves nothing. torch's own bicubic kernel (a = -0.75) does: on the
    original pixels it shifts a particle by up to 0.05 px, depending on where between two pixels it lies.
    """
    from scipy import ndimage

    size = (source.shape[0] - 1) * REFINEMENT + 1
    fine = ndimage.zoom(source.astype(np.float32), size / source.shape[0], order=3, mode="mirror")
    return torch.from_numpy(fine)


def random_views(fine: Tensor, settings: ViewSettings, frame_noise: float, generator: torch.Generator) -> Views:
    """Draw views of a `refined` source, all in one resampling, then add noise of pixel size."""
    n, size = settings.n_views, settings.view_px
    draw = torch.rand(12, n, generator=generator)
    smallest, largest = settings.size
    enlarged = smallest * (largest / smallest) ** draw[11]
    linear = orthogonal(2 * torch.pi * draw[0], torch.where(draw[1] < 0.5, -1.0, 1.0)) / enlarged[:, None, None]
    seen_at_px = (2 * draw[2:4].T - 1) * settings.shift_px  # (B, 2), the particle relative to the view's centre
    at_edge = (size / 2 - settings.cut_px * draw[8]) * torch.where(draw[9] < 0.5, -1, 1)
    cut = (torch.arange(n) >= n - settings.n_cut)[:, None]
    axis = F.one_hot((draw[10] < 0.5).long(), 2).bool()  # (B, 2)
    seen_at_px = torch.where(cut & axis, at_edge[:, None], seen_at_px)
    origin_px = -torch.einsum("bij,bj->bi", linear, seen_at_px)
    images = sample(fine[None], linear, origin_px, size)
    low, high = settings.gain
    images = images * (low + (high - low) * draw[4]).reshape(n, 1, 1, 1)
    darkest, brightest = settings.offset
    images = images + (darkest + (brightest - darkest) * draw[5]).reshape(n, 1, 1, 1)
    shot = settings.noise * draw[6].reshape(n, 1, 1, 1) ** 3
    sigma = torch.sqrt(frame_noise**2 * draw[7].reshape(n, 1, 1, 1) + shot**2 * (images.abs() + 0.1))
    images = images + sigma * torch.randn(images.shape, generator=generator)
    return Views(images, linear, origin_px, n - settings.n_cut)


def orthogonal(angle: Tensor, mirror: Tensor) -> Tensor:
    """Return the matrices (B, 2, 2) that turn (y, x) by `angle` (B,), reflected where `mirror` (B,) is -1."""
    cosine, sine = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([cosine, -sine * mirror], -1), torch.stack([sine, cosine * mirror], -1)], -2)


def sample(fine: Tensor, linear: Tensor, origin_px: Tensor, size: int) -> Tensor:
    """Return views (B, C, size, size) of `refined` images (C, F, F): pixel v shows the source at `linear @ v + origin`.

    Both v and the result are pixels relative to the centres of view and source; beyond the source its edge goes on.
    """
    v = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    grid_yx = torch.stack(torch.meshgrid(v, v, indexing="ij"), -1)
    where = torch.einsum("bij,hwj->bhwi", linear, grid_yx) + origin_px[:, None, None, :]
    where = where * (2 * REFINEMENT / (fine.shape[-1] - 1))
    stack = fine.expand(len(linear), *fine.shape)
    # grid_sample wants (x, y)
    return F.grid_sample(stack, where.flip(-1), mode="bilinear", padding_mode="border", align_corners=True)
