"""Cellulus' own foreground: where offsets hardly change when pixels of the image are disturbed, there is a cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.otsu import otsu_splits

LEAST_SEPARABILITY = 0.7
"""Otsu's eta of one Gaussian is 0.637, whatever its width; that of spreads over images of noise is 0.61 to 0.64."""
LEAST_CONTRAST = 2.0
"""Ratio of the classes' means, 1.3 to 1.8 over images of noise and of nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class NoiseForeground:
    """Which pixels belong to cells by the spread of their offsets, and whether there are two kinds at all."""

    pixels: NDArray[np.bool_]
    """(H, W), none unless there are two kinds."""
    threshold_px: float
    """Otsu's of the spreads."""
    separability: float
    """Otsu's eta, 0 to 1."""
    contrast: float
    """Mean spread of the background over that of the cells."""
    two_kinds: bool


def noise_passes(
    embed: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    normalised: NDArray[np.float32],
    *,
    rng: np.random.Generator,
    n_passes: int = 16,
    levels: tuple[float, ...] = (0.5, 1.0),
    share: float = 0.01,
    grain_px: int = 1,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and spread of the offsets of an image whose pixels are disturbed again and again.

    Parameters
    ----------
    embed : callable
        Offsets (2, H, W), px, of a normalised image (H, W) float32; called `n_passes` times for each level.
    normalised : (H, W) float32
        The image as the network wants it; left as it is.
    rng : Generator
        Draws the pixels that are disturbed.
    n_passes : int
        For each level.
    levels : tuple of float
        Values that disturbed pixels get; 0.5 and 1 as in the code of the paper, though it calls them salt and pepper.
    share : float
        Of the pixels, 0 to 1, each drawn by itself.
    grain_px : int
        Squares of so many pixels are disturbed as one: what `embed` averages first.

    Returns
    -------
    mean : (2, H, W) float32
        px.
    spread : (H, W) float32
        Standard deviations along y and x together, px.

    Raises
    ------
    ValueError
        If an argument or what `embed` returns does not fit.

    References
    ----------
    Wolf et al., ICCV 2023, section 3.
    """
    if normalised.ndim != 2 or min(n_passes, grain_px) < 1 or not levels or not 0 <= share <= 1:
        raise ValueError(
            f"expected an image (H, W), n_passes and grain_px of 1 or more, levels and a share from 0 to 1, got "
            f"{normalised.shape}, {n_passes}, {grain_px}, {levels} and {share}"
        )
    mean = np.zeros((2, *normalised.shape))
    squares = np.zeros_like(mean)  # Welford 1962: running, without losing small spreads of large offsets
    n = 0
    for level in levels:
        for _ in range(n_passes):
            disturbed = normalised.copy()
            disturbed[_drawn(normalised.shape, share, grain_px, rng)] = level
            offsets = embed(disturbed)
            if offsets.shape != mean.shape:
                raise ValueError(f"expected offsets of shape {mean.shape} from embed, got {offsets.shape}")
            n += 1
            away = offsets - mean
            mean += away / n
            squares += away * (offsets - mean)
    return mean.astype(np.float32), np.sqrt(squares / n).sum(0).astype(np.float32)


def _drawn(shape: tuple[int, ...], share: float, grain_px: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return which pixels (H, W) are disturbed."""
    height, width = shape
    grains = rng.random((-(-height // grain_px), -(-width // grain_px))) < share
    return grains.repeat(grain_px, 0).repeat(grain_px, 1)[:height, :width]


def noise_foreground(
    spread: NDArray[np.float32],
    *,
    least_separability: float = LEAST_SEPARABILITY,
    least_contrast: float = LEAST_CONTRAST,
    logarithmic: bool = False,
) -> NoiseForeground:
    """Return the pixels whose spread is below Otsu's threshold, if there are two kinds of pixels.

    Otsu's threshold always splits, an empty frame's noise too. So the two classes must explain more of the variance
    than those of a single Gaussian would, and differ by a factor.

    Parameters
    ----------
    spread : (H, W) float32
        Of `noise_passes`, px.
    least_separability, least_contrast : float
        0 for both splits always, as published.
    logarithmic : bool
        Split the logarithms and compare geometric means: spreads of the background alone vary by factors.
    """
    values = spread.ravel().astype(np.float64)
    if spread.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(
            f"expected a finite spread (H, W), got {spread.dtype} of shape {spread.shape}; the network's offsets may "
            "not be finite"
        )
    if not len(values) or values.min() == values.max():
        return NoiseForeground(np.zeros(spread.shape, bool), float("nan"), 0.0, 1.0, False)
    if logarithmic:
        values = np.log(np.maximum(values, values[values > 0].min()))
    split = otsu_splits(values, np.zeros(len(values), np.intp), 1)
    threshold, separability = float(split.threshold[0]), float(split.separability[0])
    pixels = (values < threshold).reshape(spread.shape)
    below, above = float(values[pixels.ravel()].mean()), float(values[~pixels.ravel()].mean())
    if logarithmic:
        threshold, contrast = math.exp(threshold), math.exp(above - below)
    else:
        contrast = above / below if below > 0 else float("inf")
    two_kinds = separability >= least_separability and contrast >= least_contrast
    return NoiseForeground(pixels & two_kinds, threshold, separability, contrast, two_kinds)
