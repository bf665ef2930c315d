"""Fourier ring correlation: down to which length two independent halves of a super-resolution image agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

THRESHOLD = 1 / 7
_TAPER = 1 / 8
"""Share of each side over which the images fade to zero, so that their borders are no structure."""
_FEWEST_IN_A_RING = 24
"""Rings with fewer values, those of the longest lengths, are not looked at: their correlation is chance."""
_SMOOTH = 0.04
"""Width of the smoothing, as a share of all rings."""
_SIGNIFICANT = 6.0
"""Standard deviations; the taper makes neighbouring values alike, so that chance reaches further than it should."""
_BLOCKS = 50
_LARGEST_SIDE = 2048


@dataclass(frozen=True, slots=True, eq=False)
class RingCorrelation:
    """A curve, and where it falls below 1/7."""

    per_px: Floats
    """(R,), spatial frequencies, cycles per camera pixel."""
    correlation: Floats
    """(R,)."""
    smoothed: Floats
    """(R,), what the resolution is read from."""
    resolution_px: float | None
    """Camera pixels; None if the halves agree nowhere, or as far as the image reaches."""
    reason: str = ""
    """Why there is no resolution."""


def ring_correlation(first: NDArray[Any], second: NDArray[Any], *, pixel_px: float = 1.0) -> RingCorrelation:
    """Return the Fourier ring correlation of two images.

    Parameters
    ----------
    first, second : (H, W)
        Images of the same place from independent data.
    pixel_px : float
        Edge of their pixels in camera pixels.

    References
    ----------
    Nieuwenhuizen et al., Nat. Methods 10, 557 (2013): FRC of localisation microscopy, threshold 1/7.
    Banterle et al., J. Struct. Biol. 183, 363 (2013).
    """
    if first.shape != second.shape or first.ndim != 2 or min(first.shape) < 16:
        raise ValueError(
            f"expected two images of the same shape, 16 x 16 or larger, got {first.shape} and {second.shape}"
        )
    side = max(first.shape)
    a, b = (_tapered(image, side) for image in (first, second))
    fa, fb = np.fft.rfft2(a), np.fft.rfft2(b)
    ring = np.rint(np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]) * side).astype(np.intp)
    ring, n_rings = ring.ravel(), side // 2
    weight = np.full(fa.shape, 2.0)  # the half plane that is not there is the same again
    weight[:, 0] = 1.0

    def total(values: NDArray[Any]) -> Floats:
        sums = np.bincount(ring, (values * weight).ravel(), minlength=n_rings + 1)
        return np.asarray(sums[1 : n_rings + 1], np.float64)

    together = total((fa * np.conj(fb)).real)
    power = np.sqrt(total(np.abs(fa) ** 2) * total(np.abs(fb) ** 2))
    n_values = total(np.ones(fa.shape))
    correlation = np.divide(together, power, out=np.zeros(n_rings), where=power > 0)
    per_px = np.arange(1, n_rings + 1) / side / pixel_px
    seen = n_values >= _FEWEST_IN_A_RING
    per_px, correlation, n_values = per_px[seen], correlation[seen], n_values[seen]
    smoothed = _smoothed(correlation, n_values)
    resolution_px, reason = _crossing(per_px, correlation, smoothed, n_values)
    return RingCorrelation(per_px, correlation, smoothed, resolution_px, reason)


def localisation_correlation(
    frame: NDArray[Any],
    y_px: NDArray[Any],
    x_px: NDArray[Any],
    *,
    pixel_px: float,
    rng: np.random.Generator,
) -> RingCorrelation:
    """Return the ring correlation of two random halves of a run.

    The halves are made of blocks of frames, 50 in all, so that an emitter that lasts for some frames is rarely in both.
    Emitters that come back in another block are still counted as agreement; the resolution is then too good.

    Parameters
    ----------
    frame, y_px, x_px : (N,)
        Localisations, camera pixels; drift should be taken out before.
    pixel_px : float
        Edge of the images' pixels, camera pixels; a quarter of the resolution or less. A larger field than 2048 such
        pixels is cut to its middle.
    rng : Generator
        Draws the halves.
    """
    known = np.isfinite(y_px) & np.isfinite(x_px)
    frame, y_px, x_px = frame[known], y_px[known], x_px[known]
    if len(frame) < 2 or frame.min() == frame.max():
        raise ValueError(f"expected localisations of two frames or more, got {len(frame)}; log longer")
    n_blocks = min(_BLOCKS, len(np.unique(frame)) // 2 * 2)
    edges = np.quantile(frame, np.arange(1, n_blocks) / n_blocks)
    half = rng.permutation(np.arange(n_blocks) % 2)[np.searchsorted(edges, frame, side="left")].astype(bool)
    side = min(_LARGEST_SIDE, math.ceil(max(np.ptp(y_px), np.ptp(x_px)) / pixel_px) + 1)
    reach = side * pixel_px / 2
    ends = [((p.min() + p.max()) / 2 - reach, (p.min() + p.max()) / 2 + reach) for p in (y_px, x_px)]
    images = [np.histogram2d(y_px[h], x_px[h], bins=max(16, side), range=ends)[0] for h in (half, ~half)]
    return ring_correlation(images[0], images[1], pixel_px=pixel_px)


def _tapered(image: NDArray[Any], side: int) -> Floats:
    """Return the image without its mean, fading at the borders, in the middle of a square of zeros."""
    square = np.zeros((side, side))
    height, width = image.shape
    window = _window(height)[:, None] * _window(width)
    mean = (image * window).sum() / window.sum()
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = (image - mean) * window
    return square


def _window(length: int) -> Floats:
    """Return a Tukey window."""
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return np.asarray(np.sin(np.pi / 2 * np.minimum(distance / (_TAPER * length), 1)) ** 2)


def _smoothed(correlation: Floats, n_values: Floats) -> Floats:
    """Return local means, weighted by how many values a ring has and by a Gaussian of its distance."""
    width = max(1.0, _SMOOTH * len(correlation) / 2)
    offsets = np.arange(-math.ceil(3 * width), math.ceil(3 * width) + 1)
    kernel = np.exp(-0.5 * (offsets / width) ** 2)
    pad = len(offsets) // 2

    def blurred(values: Floats) -> Floats:
        return np.convolve(np.pad(values, pad), kernel, mode="valid")

    return blurred(correlation * n_values) / blurred(n_values)


def _crossing(per_px: Floats, correlation: Floats, smoothed: Floats, n_values: Floats) -> tuple[float | None, str]:
    """Return the length at which the curve first falls below 1/7, if up to there it is above what chance gives."""
    below = np.flatnonzero(smoothed < THRESHOLD)
    end = int(below[0]) if len(below) else len(per_px)
    # Of images without anything in common the correlation of a ring has a standard deviation of 1 / sqrt(values).
    chance = math.sqrt(n_values[:end].sum())
    if end == 0 or (correlation * n_values)[:end].sum() < _SIGNIFICANT * chance:
        return None, "the two halves have no structure in common"
    if not len(below):
        return None, "the two halves agree down to the pixels of the image; take smaller ones"
    i = int(below[0])
    share = (smoothed[i - 1] - THRESHOLD) / (smoothed[i - 1] - smoothed[i])
    return float(1 / (per_px[i - 1] + share * (per_px[i] - per_px[i - 1]))), ""
