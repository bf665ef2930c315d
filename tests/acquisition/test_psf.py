from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from oneframe.acquisition.psf import GaussianPsf, Width, pixel_shares, render

ASTIGMATIC = GaussianPsf(Width(1.3, 0.2, 0.4, 0.1, 0.05), Width(1.2, -0.25, 0.35), (-0.5, 0.5))


def brute_force(y_px: float, x_px: float, photons: float, sigma_y: float, sigma_x: float, shape: tuple[int, int]):
    """The integral of a Gaussian over each pixel, one at a time."""

    def share(i: int, centre: float, sigma: float) -> float:
        return 0.5 * (math.erf((i + 0.5 - centre) / sigma / 2**0.5) - math.erf((i - 0.5 - centre) / sigma / 2**0.5))

    return np.array(
        [
            [photons * share(r, y_px, sigma_y) * share(c, x_px, sigma_x) for c in range(shape[1])]
            for r in range(shape[0])
        ]
    )


def test_an_image_is_the_sum_of_integrals_over_the_pixels() -> None:
    emitters = [
        (8.3, 12.7, 1000.0, 1.3, 1.3),
        (-2.5, 4.0, 500.0, 1.5, 2.2),  # outside
        (15.4, 22.6, 50.0, 0.4, 3.1),  # in a corner
        (7.5, -40.0, 1e4, 1.0, 1.0),  # too far to be seen
        (-0.5, 10.0, 200.0, 4.0, 0.1),
    ]
    expected = sum(brute_force(*emitter, shape=(16, 24)) for emitter in emitters)
    image = render(*np.array(emitters).T, shape=(16, 24))
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-5)  # 1e-9 of the light of one is cut off


@pytest.mark.parametrize("sigma_px", [0.05, 0.7, 1.3, 5.0])
def test_no_light_is_lost_or_moved(sigma_px: float) -> None:
    rng = np.random.default_rng(0)
    centre = rng.uniform(40, 60, 50)
    shares = pixel_shares(centre, np.full(50, sigma_px), 100)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-8)
    if sigma_px >= 0.7:  # narrower ones are not sampled
        mean = shares @ np.arange(100.0)
        np.testing.assert_allclose(mean, centre, atol=0.005)
        variance = ((np.arange(100) - mean[:, None]) ** 2 * shares).sum(axis=1)
        np.testing.assert_allclose(variance, sigma_px**2 + 1 / 12, atol=0.01)  # a pixel is 1 px wide


def test_without_emitters_there_is_no_light() -> None:
    nobody = np.empty(0)
    np.testing.assert_array_equal(render(nobody, nobody, nobody, nobody, nobody, (4, 5)), np.zeros((4, 5)))


def test_the_width_is_huangs_formula() -> None:
    width = Width(1.2, focus_um=0.3, depth_um=0.4, cubic=0.2, quartic=0.1)
    z_um = np.array([0.3, 0.7, -0.1, 1.1])  # u = 0, 1, -1, 2
    growth = [1, 1 + 1 + 0.2 + 0.1, 1 + 1 - 0.2 + 0.1, 1 + 4 + 0.2 * 8 + 0.1 * 16]
    np.testing.assert_allclose(width.at(z_um), 1.2 * np.sqrt(growth))
    plain = replace(width, cubic=0.0, quartic=0.0)
    assert plain.at(np.array([0.7]))[0] == pytest.approx(1.2 * math.sqrt(2))


def test_a_cubic_that_would_make_the_width_imaginary_leaves_it_positive() -> None:
    assert Width(1.0, depth_um=0.4, cubic=-2.0).at(np.array([2.0]))[0] > 0


def test_a_flat_function_is_the_same_at_every_z() -> None:
    psf = GaussianPsf.flat(1.3)
    assert not psf.has_z
    for sigma in psf.sigmas(np.array([-10.0, 0.0, 0.5])):
        np.testing.assert_array_equal(sigma, [1.3, 1.3, 1.3])


def test_an_astigmatic_one_tells_the_sign_of_z() -> None:
    assert ASTIGMATIC.has_z
    above, below = (sigma_y - sigma_x for sigma_y, sigma_x in (ASTIGMATIC.sigmas(np.array([z])) for z in (0.3, -0.3)))
    assert above < -0.3
    assert below > 0.3


@pytest.mark.parametrize("psf", [ASTIGMATIC, GaussianPsf.flat(1.3)], ids=["astigmatic", "flat"])
def test_json_keeps_the_calibration(psf: GaussianPsf) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    json.loads(psf.to_json(), parse_constant=refuse)
    assert GaussianPsf.from_json(psf.to_json()) == psf


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "something"}, "not marked as one"),
        ({"version": 2}, "not marked as one"),
        ({"y": {"sigma_px": 1.0, "skew": 3}}, "fields of another version"),
        ({"y": {"sigma_px": -1.0}}, "sigma_px and depth_um must be above 0, got -1.0"),
        ({"x": {}}, "sigma_px"),
        ({"x": None}, "NoneType"),
        ({"y": {"sigma_px": "wide"}}, "'str'"),
        ({"z_range_um": [1.0]}, "not enough values"),
    ],
)
def test_json_that_is_no_calibration_is_refused_with_the_reason(change: dict[str, object], reason: str) -> None:
    text = json.dumps({**json.loads(ASTIGMATIC.to_json()), **change})
    with pytest.raises(
        ValueError, match=rf"got something else \(.*{reason}.*\); make one with: oneframe calibrate-psf"
    ):
        GaussianPsf.from_json(text)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "sigma,1.3"])
def test_a_text_that_is_something_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a calibration of the point spread function, got something else"):
        GaussianPsf.from_json(text)


def test_a_width_below_zero_is_refused() -> None:
    for values in ({"sigma_px": 0.0}, {"sigma_px": 1.0, "depth_um": -0.4}, {"sigma_px": math.nan}):
        with pytest.raises(ValueError, match="sigma_px and depth_um must be above 0"):
            Width(**values)
