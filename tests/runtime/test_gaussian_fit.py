"""Fits reach the Cramér-Rao bound without bias; the bounds agree with each other and with finite differences."""

import numpy as np
import pytest

from oneframe.acquisition.psf import GaussianPsf, Width, render
from oneframe.runtime import gaussian_fit
from oneframe.runtime.gaussian_fit import bound, bound_in_frame, find_maxima, fit_gaussians

ROUND = GaussianPsf.flat(1.3)
ASTIGMATIC = GaussianPsf(Width(1.3, 0.25, 0.4), Width(1.3, -0.25, 0.4), (-0.4, 0.4))


def spots(seed, *, n=3000, photons=1500.0, background=25.0, sigma_y=1.3, sigma_x=1.3, read_noise=1.6, excess=1.0):
    """Return images (n, 15, 15) of single emitters about the middle, and where they are."""
    rng = np.random.default_rng(seed)
    y, x = rng.uniform(6.5, 7.5, (2, n))
    one = [
        render(y[i : i + 1], x[i : i + 1], np.array([photons]), np.array([sigma_y]), np.array([sigma_x]), (15, 15))
        for i in range(n)
    ]
    light = rng.poisson(np.array(one) + background).astype(float)
    if excess == 2.0:
        light = rng.standard_gamma(np.maximum(light, 1e-9))
    return light + rng.normal(0, read_noise, light.shape), y, x


@pytest.mark.parametrize("excess", [1.0, 2.0])
@pytest.mark.parametrize("shape", ["fixed", "round", "elliptic"])
def test_fits_are_unbiased_and_reach_the_bound(shape, excess):
    images, y, x = spots(1, excess=excess)
    fit = fit_gaussians(
        images, np.full(len(y), 7), np.full(len(y), 7), sigma_px=1.3, shape=shape, box_px=13, read_variance=1.6**2,
        excess=excess,
    )  # fmt: skip
    assert fit.converged.mean() > 0.99
    for error, told in ((fit.y_px - y, fit.sigma_y_px), (fit.x_px - x, fit.sigma_x_px)):
        assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(y))
        assert error.std() == pytest.approx(np.sqrt(np.mean(told**2)), rel=0.05)
    assert fit.photons.mean() == pytest.approx(1500, rel=0.01)
    assert fit.background.mean() == pytest.approx(25, rel=0.02)
    assert fit.photons.std() == pytest.approx(fit.sigma_photons.mean(), rel=0.06)
    if shape == "fixed":
        assert (fit.y_px - y).std() == pytest.approx(
            bound(ROUND, 1500, 25, read_variance=1.6**2, excess=excess).y_px[0], rel=0.05
        )
        assert (fit.sigma_width_y_px == 0).all()
    else:
        assert fit.width_y_px.mean() == pytest.approx(1.3, rel=0.01)
        assert fit.width_x_px.std() == pytest.approx(fit.sigma_width_x_px.mean(), rel=0.06)
    if excess == 1.0:
        assert fit.chi2.mean() == pytest.approx(1, abs=0.05)


def test_elliptic_spots_have_their_two_widths():
    images, y, _ = spots(2, n=400, sigma_y=1.1, sigma_x=1.9, photons=4000)
    fit = fit_gaussians(images, np.full(len(y), 7), np.full(len(y), 7), sigma_px=1.4, shape="elliptic", box_px=15)
    assert fit.width_y_px.mean() == pytest.approx(1.1, rel=0.01)
    assert fit.width_x_px.mean() == pytest.approx(1.9, rel=0.01)


def test_two_emitters_in_one_box_fit_badly():
    y, x = np.array([20.0, 21.8]), np.array([20.0, 20.0])
    both = np.full(2, 1.3)
    image = np.random.default_rng(3).poisson(render(y, x, np.full(2, 2000.0), both, both, (41, 41)) + 20).astype(float)
    assert fit_gaussians(image, [21], [20], sigma_px=1.3).chi2[0] > 2


def test_maxima_are_found_and_noise_is_not():
    rng = np.random.default_rng(4)
    y, x = (a.ravel() + rng.uniform(-0.4, 0.4, 49) for a in np.mgrid[9:128:18, 9:128:18][:, :7, :7])
    width = np.full(49, 1.3)
    light = render(y, x, np.full(49, 800.0), width, width, (128, 128)) + 20
    image = rng.poisson(light) + rng.normal(0, 1.6, light.shape)
    found = find_maxima(image, 1.3, read_variance=1.6**2)
    distance = np.hypot(found[:, :1] - y, found[:, 1:] - x).min(1)
    assert len(found) == 49
    assert distance.max() < 1
    assert len(find_maxima(rng.poisson(20, (128, 128)).astype(float), 1.3)) <= 1


@pytest.mark.parametrize("n_free", [4, 5, 6])
def test_derivatives_of_the_spot_agree_with_differences(n_free):
    theta = np.array([[6.2, 7.4, 900.0, 12.0, 1.2, 1.7][:n_free]])
    added = np.full((1, 15, 15), 2.5)
    _, slopes = gaussian_fit._spots(theta, 15, 1.3, added, 2.0)
    for k in range(n_free):
        step = np.zeros(n_free)
        step[k] = 1e-5 * theta[0, k]
        upper, _ = gaussian_fit._spots(theta + step, 15, 1.3, added, 2.0)
        lower, _ = gaussian_fit._spots(theta - step, 15, 1.3, added, 2.0)
        np.testing.assert_allclose(slopes[0, k], (upper - lower)[0] / (2 * step[k]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("psf", [ROUND, ASTIGMATIC])
def test_derivatives_of_the_bound_agree_with_differences(psf):
    at = [np.array([v]) for v in (7.2, 6.7, 1000.0, 0.1)]
    _, slopes = gaussian_fit._derivatives(psf, *at, 15, 15)
    for k in range(slopes.shape[1]):
        upper, lower = (
            gaussian_fit._derivatives(psf, *(a + s * 1e-5 * (i == k) for i, a in enumerate(at)), 15, 15)[0]
            for s in (1, -1)
        )
        np.testing.assert_allclose(slopes[:, k], (upper - lower) / 2e-5, rtol=1e-4, atol=2e-3)


def test_bound_has_the_known_limits():
    # without background: width over the root of the photons, a little more for the pixels; photons: their root
    alone = bound(ROUND, [1e3, 1e5], 1e-6)
    np.testing.assert_allclose(alone.y_px * np.sqrt([1e3, 1e5]), 1.3 * np.sqrt(1 + 1 / 12 / 1.3**2), rtol=0.02)
    np.testing.assert_allclose(alone.photons, np.sqrt([1e3, 1e5]), rtol=0.01)
    assert alone.z_um is None
    assert bound(ROUND, 1000, 20, excess=2.0).y_px[0] == pytest.approx(np.sqrt(2) * bound(ROUND, 1000, 20).y_px[0])
    assert bound(ROUND, 1000, 20, read_variance=20).y_px[0] == pytest.approx(bound(ROUND, 1000, 40).y_px[0])
    z = bound(ASTIGMATIC, 3000, 20, z_um=[-0.3, 0.0, 0.3]).z_um
    assert z is not None
    assert ((z > 0.005) & (z < 0.05)).all()
    assert z[0] == pytest.approx(z[2], rel=1e-6)


def test_bound_in_a_frame_is_that_of_isolated_ones_where_they_are_far_apart():
    y, x = np.array([15.3, 15.3, 40.0]), np.array([15.1, 18.6, 41.2])
    photons = np.array([1000.0, 2000.0, 1500.0])
    for psf in (ROUND, ASTIGMATIC):
        frame = bound_in_frame(psf, y, x, photons, 20.0, shape=(56, 56), read_variance=2.5)
        alone = bound(psf, 1500.0, 20.0, read_variance=2.5, sub_pixel=(0.0, 0.2))
        assert frame.y_px[2] == pytest.approx(alone.y_px[0], rel=0.02)
        assert frame.photons[2] == pytest.approx(alone.photons[0], rel=0.05)
        crowded = bound(psf, photons[:2], 20.0, read_variance=2.5).x_px
        assert (frame.x_px[:2] > 1.1 * crowded).all()
    nearer = bound_in_frame(ROUND, y[:2], np.array([15.1, 16.1]), photons[:2], 20.0, shape=(56, 56))
    assert nearer.x_px[0] > 5 * bound(ROUND, 1000, 20).x_px[0]


def test_refusals_say_what_to_do():
    image = np.zeros((20, 20))
    with pytest.raises(ValueError, match="expected shape fixed, round, elliptic, got 'oval'"):
        fit_gaussians(image, [5], [5], sigma_px=1.3, shape="oval")
    with pytest.raises(ValueError, match=r"expected an odd box of 5 px to the 20 px .* got 31"):
        fit_gaussians(image, [5], [5], sigma_px=5)
    with pytest.raises(ValueError, match="y and x of one length"):
        fit_gaussians(image, [5, 6], [5], sigma_px=1.3)
    with pytest.raises(ValueError, match="one plane"):
        find_maxima(np.zeros((2, 20, 20)), 1.3)
    with pytest.raises(ValueError, match="NaN or infinity"):
        find_maxima(np.full((20, 20), np.nan), 1.3)
