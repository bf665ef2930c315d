"""Backgrounds are taken out of the field, particles stay in it."""

import numpy as np
import pytest
from scatterers import WATER, Sphere, noise, scattered

from oneframe.runtime.field_background import (
    MedianBackground,
    field_noise,
    normalised,
    polynomial_background,
    without_reference,
)

FIELD = WATER.with_pixel(0.2)
SHAPE = (128, 144)


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.abs(difference) ** 2)))


def aberration(shape=SHAPE, rad: float = 9.0) -> np.ndarray:
    """Amplitude that falls off by a third and a phase of several turns."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    phase = rad * (0.7 * x - 0.4 * y + 0.8 * x**2 + 0.5 * y**2 - 0.3 * x * y**2 + 0.1 * x**4)
    return 150 * (1 - 0.2 * (x**2 + y**2)) * np.exp(1j * phase)


def test_normalised_has_background_one_and_the_noise_it_had():
    rng = np.random.default_rng(0)
    field = scattered(FIELD, SHAPE, Sphere(10, 10, 1.0)) + noise(rng, FIELD, SHAPE, 0.02)
    scaled = (field * 345 * np.exp(2.5j)).astype(np.complex64)
    back = normalised(scaled)
    assert back.dtype == np.complex64
    assert abs(np.median(back.real) + 1j * np.median(back.imag) - 1) < 1e-3
    assert rms(back - field) < 1e-3
    assert field_noise(back) == pytest.approx(0.02, rel=0.1)


def test_noise_does_not_count_particles_and_counts_fringes():
    clean = scattered(FIELD, SHAPE, Sphere(10, 10), Sphere(18, 20)).astype(np.complex64)
    assert field_noise(clean) < 0.003
    assert field_noise(clean + 0.15 * np.sin(np.arange(144) / 5).astype(np.complex64)) > 0.05


def test_a_reference_takes_aberration_and_amplitude_out():
    field = scattered(FIELD, SHAPE, Sphere(10, 10, 2.0))
    background = aberration()
    back = without_reference((field * background * np.exp(1j)).astype("c8"), background.astype("c8"))
    assert rms(back - field) < 1e-4


@pytest.mark.parametrize("sigma", [0.005, 0.1])
def test_a_polynomial_takes_smooth_backgrounds_out_of_a_single_shot(sigma):
    rng = np.random.default_rng(1)
    spheres = [Sphere(8, 9, 2.0), Sphere(17, 20, -4.0), Sphere(5, 22, 0.0)]
    field = scattered(FIELD, SHAPE, *spheres) + noise(rng, FIELD, SHAPE, sigma)
    recorded = (field * aberration()).astype(np.complex64)
    back = normalised(recorded / polynomial_background(recorded))
    assert rms(back - field) < 0.002 + 0.15 * sigma
    assert field_noise(back) == pytest.approx(field_noise(field.astype("c8")), rel=0.1)


def test_the_median_of_moving_particles_is_the_background():
    rng = np.random.default_rng(2)
    background = aberration(rad=3.0)
    median = MedianBackground(SHAPE, n_fields=15, every=1)
    places = rng.uniform([3, 3], [22, 25], (4, 2))
    errors = []
    for i in range(32):
        places = (places + rng.normal(0, 1.0, places.shape)) % [25.6, 28.8]
        field = scattered(FIELD, SHAPE, *(Sphere(y, x, 1.0, 0.15) for y, x in places))
        # the phase and the lamp wander from frame to frame
        recorded = field * background * rng.uniform(0.8, 1.2) * np.exp(2j * np.pi * rng.random())
        median.add(recorded.astype(np.complex64))
        assert median.usable == (i >= 1)
        assert median.settled == (i >= 29)
        if median.usable:
            errors.append(rms(median.remove(recorded.astype(np.complex64)) - field))
    scatter = rms(field - 1)
    assert errors[0] < 2 * scatter  # of two frames: still half of each particle of the other
    assert np.mean(errors[-4:]) < 0.3 * scatter
    assert len(median._ring) == 15


def test_only_every_nth_field_is_kept_once_full():
    median = MedianBackground((16, 16), n_fields=3, every=5)
    ring = []
    for i in range(30):
        median.add(np.full((16, 16), 1 + 0.001 * i, np.complex64) + np.eye(16, k=i % 7, dtype=np.complex64))
        ring.append(median._ring.copy())
    changed = [i for i in range(1, 30) if not np.array_equal(ring[i], ring[i - 1], equal_nan=True)]
    assert changed == [1, 2, 5, 10, 15, 20, 25]
    assert median.settled


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normalised(np.zeros((8, 8), "c8")), "light in it, got a median of 0.0; check the reference arm"),
        (lambda: normalised(np.full((8, 8), np.nan, "c8")), "got a median of nan"),
        (lambda: without_reference(np.ones((8, 8), "c8"), np.ones((8, 9), "c8")), r"shape \(8, 8\), got \(8, 9\)"),
        (lambda: without_reference(np.ones((8, 8), "c8"), np.zeros((8, 8), "c8")), "dark pixels; snap it again"),
        (lambda: MedianBackground((8, 8), n_fields=2), "n_fields >= 3 and every >= 1, got 2 and 4; 15 and 4 suit"),
        (lambda: MedianBackground((8, 8)).add(np.ones((8, 9), "c8")), "make a MedianBackground for this shape"),
        (lambda: MedianBackground((8, 8)).remove(np.ones((8, 8), "c8")), "two fields or more for a median, got 0; add"),
        (lambda: polynomial_background(np.ones((64, 64), "c8"), 9), "order from 1 to 8"),
        (lambda: polynomial_background(np.ones((64, 10), "c8")), r"at least 20 pixels, got order 4 .*\(64, 10\); use"),
    ],
)
def test_wrong_calls_are_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()
