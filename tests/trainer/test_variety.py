"""The training gets ready for particles as different as the frame shows, and no more."""

import numpy as np
import pytest

from oneframe.trainer.crops import Box, extent_of, normalisation_from
from oneframe.trainer.variety import USUAL_GAIN, VARIED, variety_on


def frame_of(sizes, heights, seed=0):
    """Draw Gaussian blobs in rows on uneven light; return them and the box of the first."""
    image = np.random.default_rng(seed).normal(100, 2, (240, 240)) + np.linspace(0, 30, 240)
    rows, columns = np.indices(image.shape)
    for k, (sigma, height) in enumerate(zip(sizes, heights, strict=True)):
        y, x = 30 + 45 * (k // 5), 30 + 45 * (k % 5)
        image += height * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2))
    return image.astype(np.float32), Box(15, 15, 31, 31)


def measured(sizes, heights):
    image, box = frame_of(sizes, heights)
    normalisation = normalisation_from(image, box)
    return variety_on(image, box, normalisation, extent_of(image, box, normalisation))


def test_equal_particles_ask_for_nothing():
    found = measured([3.0] * 20, [100.0] * 20)
    assert found.size == (1.0, 1.0)
    np.testing.assert_allclose(found.gain, USUAL_GAIN, atol=0.1)


def test_sizes_that_differ_are_covered():
    found = measured([3.0] + [2.2, 2.6, 3.4, 3.8] * 4, [100.0] * 17)
    assert found == VARIED
    assert found.size[0] < 2.2 / 3.0
    assert found.size[1] > 3.8 / 3.0


def test_dim_and_bright_particles_are_covered():
    found = measured([3.0] * 20, [100.0] + [40.0, 100.0, 140.0] * 6 + [100.0])
    assert found.gain[0] == pytest.approx(0.7 * 0.4, abs=0.06)
    assert found.gain[1] == pytest.approx(1.3 * 1.4, abs=0.15)


def test_a_few_particles_prove_no_spread():
    assert measured([3.0, 1.5, 5.0], [100.0, 30.0, 200.0]).size == (1.0, 1.0)


def test_dark_particles_are_measured_like_bright_ones():
    image, box = frame_of([3.0] + [2.2, 2.6, 3.4, 3.8] * 4, [60.0] * 17)
    both = []
    for picture in (image, 400 - image):
        normalisation = normalisation_from(picture, box)
        both.append(variety_on(picture, box, normalisation, extent_of(picture, box, normalisation)))
    np.testing.assert_allclose(both[0].size, both[1].size, atol=0.05)
    np.testing.assert_allclose(both[0].gain, both[1].gain, atol=0.05)
