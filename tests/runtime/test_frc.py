"""Fourier ring correlation against images whose correlation is known, and against what must make it better."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from smlm_run import filaments

from oneframe.runtime.frc import localisation_correlation, ring_correlation


@pytest.mark.parametrize(("sigma", "noise"), [(2.0, 0.02), (4.0, 0.02), (2.0, 0.1)])
def test_the_resolution_of_blurred_white_structure_in_noise_is_the_one_that_theory_tells(sigma, noise):
    rng = np.random.default_rng(0)
    structure = gaussian_filter(rng.normal(size=(384, 384)), sigma, mode="wrap")
    halves = [structure + noise * rng.normal(size=structure.shape) for _ in range(2)]
    # S / (S + N) = 1/7 with S = exp(-4 pi^2 sigma^2 q^2) and N = noise^2
    expected = 2 * math.pi * sigma / math.sqrt(math.log(6 / noise**2))
    assert ring_correlation(*halves).resolution_px == pytest.approx(expected, rel=0.05)
    assert ring_correlation(*halves, pixel_px=0.1).resolution_px == pytest.approx(0.1 * expected, rel=0.05)


def of_filaments(n, sigma_px, pixel_px=0.1):
    rng = np.random.default_rng(1)
    points = filaments(rng)
    yx = points[rng.integers(0, len(points), n)] + rng.normal(0, sigma_px, (n, 2))
    halves = np.random.default_rng(2)
    return localisation_correlation(rng.integers(0, 500, n), *yx.T, pixel_px=pixel_px, rng=halves)


def test_more_localisations_and_better_ones_resolve_more():
    few, many, precise = of_filaments(3000, 0.3), of_filaments(30_000, 0.3), of_filaments(30_000, 0.15)
    assert precise.resolution_px < 0.75 * many.resolution_px
    assert many.resolution_px < 0.75 * few.resolution_px


def test_noise_has_no_resolution():
    rng = np.random.default_rng(0)
    for _ in range(40):
        found = ring_correlation(*rng.normal(size=(2, 96, 96)))
        assert found.resolution_px is None
        assert "no structure in common" in found.reason
    uniform = localisation_correlation(
        rng.integers(0, 100, 5000), *rng.uniform(0, 40, (2, 5000)), pixel_px=0.1, rng=np.random.default_rng(0)
    )
    assert uniform.resolution_px is None


def test_coarse_pixels_are_told():
    found = of_filaments(30_000, 0.05, pixel_px=1.0)
    assert found.resolution_px is None
    assert "take smaller ones" in found.reason


def test_what_cannot_be_correlated_is_refused():
    with pytest.raises(ValueError, match="expected two images of the same shape"):
        ring_correlation(np.zeros((32, 32)), np.zeros((32, 33)))
    with pytest.raises(ValueError, match="expected localisations of two frames or more"):
        localisation_correlation(np.zeros(5, int), *np.ones((2, 5)), pixel_px=0.1, rng=np.random.default_rng(0))
