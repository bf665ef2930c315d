"""The symmetries of one noisy image are found, and only those it has."""

import numpy as np
import pytest
import torch

from oneframe.trainer.crops import denoised
from oneframe.trainer.likelihood import best_located, bound_px
from oneframe.trainer.symmetry import N_ANGLES, PixelNoise, pixel_noise, symmetrised, with_gradients

SIZE = 61


def blob(sigma_y, sigma_x, *, y=0.0, x=0.0, angle=0.0, bend=0.0):
    """A Gaussian, (61, 61), `y, x` from the middle; `bend` makes one side heavier, so that only a mirror is left."""
    rows, columns = np.indices((SIZE, SIZE)) - SIZE // 2.0
    dy, dx = rows - y, columns - x
    u, v = np.cos(angle) * dy + np.sin(angle) * dx, -np.sin(angle) * dy + np.cos(angle) * dx
    return (np.exp(-((u / sigma_y) ** 2 + (v / sigma_x) ** 2) / 2) * (1 + bend * np.tanh(u / 2))).astype(np.float32)


def seen(clean, noise=0.05, seed=0):
    raw = clean + np.random.default_rng(seed).normal(0, noise, clean.shape).astype(np.float32)
    filtered = denoised(raw, 16.0)
    return symmetrised(filtered, 16.0, pixel_noise(raw, filtered)), filtered


@pytest.mark.parametrize("seed", range(3))
def test_a_round_particle_is_round_and_centred_better_than_one_pixel_of_noise(seed):
    found, filtered = seen(blob(2.5, 2.5, y=0.3, x=-0.4), seed=seed)
    assert found.is_round
    assert found.has_mirror
    np.testing.assert_allclose(found.moved_px, (0.3, -0.4), atol=0.1)
    clean = blob(2.5, 2.5)
    assert np.abs(found.image - clean).max() < 0.6 * np.abs(filtered - blob(2.5, 2.5, y=0.3, x=-0.4)).max()


def test_an_ellipse_has_a_half_turn_and_mirrors_but_is_not_round():
    found, _ = seen(blob(4.0, 2.0, y=0.4, x=0.2, angle=0.7))
    assert not found.is_round
    assert found.has_mirror
    assert 1.5 < found.n_rotations < N_ANGLES / 4
    np.testing.assert_allclose(found.moved_px, (0.4, 0.2), atol=0.1)
    np.testing.assert_allclose(found.fixed, np.eye(2), atol=1e-4)


def test_a_lopsided_particle_keeps_its_mirror_and_the_free_direction():
    found, _ = seen(blob(6.0, 2.0, bend=0.9), noise=0.01)
    assert found.n_rotations < 4  # itself and what differs by a few degrees
    assert found.has_mirror
    # the mirror maps x to -x: it fixes x, and leaves y free
    np.testing.assert_allclose(found.fixed, [[0, 0], [0, 1]], atol=0.15)


def test_averaging_keeps_a_particle_without_noise():
    clean = blob(3.0, 3.0)
    found = symmetrised(clean, 16.0, PixelNoise(1e-8, 0.0))
    np.testing.assert_allclose(found.image, clean, atol=0.01)


def test_the_noise_of_a_camera_is_read_off_one_particle():
    rng = np.random.default_rng(3)
    clean = 3 * blob(5.0, 5.0) / 3
    photons = 400.0  # of an intensity of 1; dark background of 0.2
    raw = (rng.poisson((clean + 0.2) * photons) / photons - 0.2).astype(np.float32)
    noise = pixel_noise(raw, clean)
    assert noise.dark == pytest.approx(0.2 / photons, rel=0.15)
    assert noise.shot == pytest.approx(1 / photons, rel=0.25)


def test_the_bound_of_a_gaussian_spot_is_the_textbook_one():
    # white noise of variance s^2, known width: var(x) = 2 w^2 * s^2 / (sum of squares) = 2 s^2 / (pi A^2)
    sigma = 0.05
    bound = bound_px(with_gradients(blob(2.0, 2.0)), PixelNoise(sigma**2, 0.0), 16.0, has_angle=False)
    assert bound == pytest.approx(np.sqrt(2 / np.pi) * sigma, rel=0.03)


def test_the_best_located_point_of_a_symmetric_particle_is_its_centre():
    point = best_located(with_gradients(blob(4.0, 2.0)), PixelNoise(0.01, 0.0), 16.0)
    np.testing.assert_allclose(point, [0, 0], atol=1e-3)
    heavy = best_located(with_gradients(blob(4.0, 2.0, bend=0.9)), PixelNoise(0.01, 0.0), 16.0)
    assert heavy[0] > 0.5  # towards the heavy side
    assert abs(float(heavy[1])) < 0.05
    assert torch.isfinite(heavy).all()
