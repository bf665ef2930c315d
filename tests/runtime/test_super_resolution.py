"""The growing image: what is added is there, where and as sharp as it says, however it is added."""

import numpy as np
import pytest

from oneframe.runtime.super_resolution import MOST_PIXELS, SuperResolution, shown, white_level


def added(*rows, shape=(24, 32), **options) -> SuperResolution:
    """Return an image with rows of (y, x, sigma)."""
    made = SuperResolution(shape, **options)
    y, x, sigma = np.array(rows, np.float32).T
    made.add(y, x, sigma, sigma, np.linspace(-1, 1, len(y), dtype=np.float32))
    return made


def moments(image, per_camera_px):
    """Return mean and standard deviation along y and x, camera pixels."""
    y, x = ((np.arange(n) + 0.5) / per_camera_px - 0.5 for n in image.shape)
    total = image.sum()
    mean_y, mean_x = (image.sum(1) * y).sum() / total, (image.sum(0) * x).sum() / total
    sd_y = np.sqrt((image.sum(1) * (y - mean_y) ** 2).sum() / total)
    sd_x = np.sqrt((image.sum(0) * (x - mean_x) ** 2).sum() / total)
    return mean_y, mean_x, sd_y, sd_x


@pytest.mark.parametrize(("y", "x", "sigma"), [(10.0, 12.0, 0.2), (3.37, 27.91, 0.35), (11.5, 15.49, 0.9)])
def test_a_localisation_is_a_gaussian_of_its_own_width_at_its_place_and_counts_one(y, x, sigma):
    made = added((y, x, sigma), per_camera_px=8)
    assert made.image.shape == (192, 256)
    assert made.image.sum() == pytest.approx(1, abs=1e-5)
    mean_y, mean_x, sd_y, sd_x = moments(made.image, 8)
    assert (mean_y, mean_x) == pytest.approx((y, x), abs=0.005)
    assert (sd_y, sd_x) == pytest.approx((sigma, sigma), rel=0.03)  # cut off at 3 standard deviations


def test_precise_localisations_are_sharper_and_brighter():
    sharp, blurred = (added((10, 12, sigma), per_camera_px=8).image.max() for sigma in (0.4, 0.8))
    assert sharp == pytest.approx(4 * blurred, rel=0.05)


def test_y_and_x_have_their_own_widths():
    made = SuperResolution((24, 32), per_camera_px=8)
    one = np.ones(1, np.float32)
    made.add(12 * one, 16 * one, 0.5 * one, 0.25 * one)
    assert moments(made.image, 8)[2:] == pytest.approx((0.5, 0.25), rel=0.03)


def test_it_makes_no_difference_in_which_portions_they_come():
    rng = np.random.default_rng(0)
    n = 5000
    y, x, sigma = rng.uniform(0, 23, n), rng.uniform(0, 31, n), rng.lognormal(-1.3, 0.6, n)
    at_once, one_by_one = (SuperResolution((24, 32), per_camera_px=6) for _ in range(2))
    at_once.add(y, x, sigma, sigma)
    for part in np.array_split(np.arange(n), 90):
        one_by_one.add(y[part], x[part], sigma[part], sigma[part])
    np.testing.assert_allclose(one_by_one.image, at_once.image, atol=1e-3)
    assert at_once.n_localisations == one_by_one.n_localisations == n


def test_what_has_no_place_in_the_frame_is_left_out_and_counted_and_the_border_belongs_to_it():
    made = added((-0.5, -0.5, 0.3), (23.4, 31.4, 0.3), (-0.6, 3, 0.3), (5, 31.6, 0.3), (np.nan, 3, 0.3), (3, 3, np.nan),
                 (3, 3, 0.0))  # fmt: skip
    assert (made.n_localisations, made.n_left_out) == (2, 5)
    assert 0.4 < made.image.sum() < 2  # of those at the border a part lies outside
    assert np.isfinite(made.image).all()


def test_widths_are_bounded_so_that_one_bad_row_costs_no_time():
    made = added((12, 16, 1e-6), (12, 16, 1e6), per_camera_px=8, shape=(32, 32))
    assert made.image.sum() == pytest.approx(2, abs=0.01)
    assert moments(made.image, 8)[2] < 12 / 8


def test_z_is_the_mean_of_what_is_there():
    made = added((5, 5, 0.2), (5, 5, 0.2), (15, 20, 0.2), with_z=True, per_camera_px=8)
    z_um = made.mean_z_um
    assert z_um[44, 44] == pytest.approx(-0.5, abs=1e-3)  # of -1 and 0
    assert z_um[124, 164] == pytest.approx(1, abs=1e-3)
    assert np.isnan(z_um[90, 20])
    with pytest.raises(ValueError, match="expected z_um for an image with z, got none"):
        made.add(*np.ones((4, 1), np.float32))


@pytest.mark.parametrize(("pixel_size_um", "expected"), [(None, 8), (0.1, 8), (0.16, 13), (0.02, 2), (1.0, 20)])
def test_its_pixels_are_some_12_nanometres(pixel_size_um, expected):
    assert SuperResolution((16, 16), pixel_size_um=pixel_size_um).per_camera_px == expected


def test_a_large_camera_gets_larger_pixels_and_is_told_so():
    made = SuperResolution((2048, 2048), per_camera_px=8)
    assert made.per_camera_px == 2
    assert made.image.size <= MOST_PIXELS
    assert "2 pixels along a camera pixel instead of 8" in made.note
    assert SuperResolution((128, 128)).note == ""


def test_clearing_begins_anew():
    made = added((5, 5, 0.2))
    made.clear()
    assert made.n_localisations == 0
    assert not made.image.any()


def test_thinning_keeps_the_light_and_the_place():
    made = added((7.3, 20.1, 0.5), per_camera_px=8, with_z=True)
    light, z_um, n = made.thinned(100)
    assert n == 3
    assert light.sum() * 9 == pytest.approx(1, abs=0.01)
    assert z_um[np.unravel_index(light.argmax(), light.shape)] == pytest.approx(-1)
    assert made.thinned(256)[2] == 1


def test_what_is_shown_goes_from_black_to_white_and_shows_single_ones_beside_dense_places():
    rows = [(5, 5, 0.3)] * 200 + [(15, 20, 0.3)]
    image = added(*rows).image
    bright = shown(image, white=float(image.max()))
    assert bright.max() == 1
    assert 0.05 < bright[15 * 8 + 4, 20 * 8 + 4] < 0.1  # the root of 1/200
    assert shown(np.zeros((4, 4), np.float32)).max() == 0
    assert white_level(np.zeros((4, 4), np.float32)) == 0


def test_senseless_sizes_are_refused():
    with pytest.raises(ValueError, match="expected a frame of 1 x 1 pixels or more"):
        SuperResolution((0, 5))
