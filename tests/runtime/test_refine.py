"""z and polarizability of spheres with known truth, and the flags of those that cannot be trusted."""

import numpy as np
import pytest
from scatterers import WATER, Sphere, noise, scattered

from oneframe.runtime.refine import ParticleRefiner, clausius_mossotti
from oneframe.runtime.refocus import Refocuser

FIELD = WATER.with_pixel(0.2)
REFINER = ParticleRefiner(FIELD)
SHAPE = (256, 256)
PLACES_UM = np.array([[10, 10], [10, 26], [12, 41], [26, 9], [25, 25], [26, 42], [41, 11], [42, 25], [41, 41]])


def frame(seed: int, sigma: float, *, z_um: float = 5.0, radius_um: float = 0.228):
    """Nine spheres apart from each other: field, their positions in pixels, z, and a coarse z as of a network."""
    rng = np.random.default_rng(seed)
    spheres = [Sphere(*(place + rng.uniform(-0.5, 0.5, 2)), rng.uniform(-z_um, z_um), radius_um) for place in PLACES_UM]
    field = scattered(FIELD, SHAPE, *spheres) + noise(rng, FIELD, SHAPE, sigma)
    yx_px = np.array([(s.y_um, s.x_um) for s in spheres]) / FIELD.pixel_um
    z = np.array([s.z_um for s in spheres])
    return field.astype(np.complex64), yx_px, z, z + rng.normal(0, 0.3, len(z))


@pytest.mark.parametrize(("sigma", "bound_um"), [(0.005, 0.020), (0.03, 0.030), (0.1, 0.050)])
def test_z_is_found_in_noise(sigma, bound_um):
    errors, in_sigmas = [], []
    for seed in range(6):
        field, yx_px, z, coarse = frame(seed, sigma)
        rng = np.random.default_rng(seed + 100)
        found = REFINER.refine_z(field, yx_px + rng.normal(0, 0.1, yx_px.shape), coarse)
        errors.append(found.z_um - z)
        in_sigmas.append((found.z_um - z) / found.sigma_z_um)
        assert found.trustworthy.all()
    rmse = np.sqrt(np.mean(np.square(errors)))
    assert rmse < bound_um
    if sigma == 0.1:  # the noise dominates: what was predicted is what it costs
        assert np.std(in_sigmas) == pytest.approx(1, rel=0.3)


def test_a_coarse_z_that_is_far_off_does_not_matter():
    field, yx_px, z, _ = frame(1, 0.005, z_um=3.0)
    near, far = (REFINER.refine_z(field, yx_px, z + off).z_um for off in (0.1, -3.5))
    np.testing.assert_allclose(near, far, atol=0.005)


def test_polarizability_is_absolute():
    for radius_um in (0.15, 0.228):
        alpha, sigma_um3 = [], None
        for seed in range(4):
            field, yx_px, _, coarse = frame(seed, 0.005, radius_um=radius_um)
            found = REFINER.refine_z(field, yx_px, coarse)
            value, sigma_um3 = REFINER.polarizability_um3(field, yx_px, found.z_um, noise=0.005)
            alpha.append(value)
        truth = clausius_mossotti(radius_um, 1.58, 1.33)
        assert np.mean(alpha) == pytest.approx(truth, rel=0.02)
        assert np.std(alpha) == pytest.approx(sigma_um3[0], rel=0.35)


def test_polarizability_is_the_sum_over_the_refocused_field():
    sphere = Sphere(25.6, 25.6, 3.0)
    field = scattered(FIELD, SHAPE, sphere).astype(np.complex64)
    refocused = Refocuser(FIELD, SHAPE).refocus(field, 3.0)
    at_px = np.hypot(*(np.indices(SHAPE) - 128))
    window = np.where(at_px < 12, np.cos(np.pi * at_px / 24) ** 2, 0)
    by_hand = 2 / FIELD.wavenumber_per_um * (window * refocused.imag).sum() * FIELD.pixel_um**2
    alpha, _ = REFINER.polarizability_um3(field, [[128, 128]], 3.0, noise=0.0)
    assert alpha[0] == pytest.approx(by_hand, rel=0.01)
    assert alpha[0] == pytest.approx(sphere.polarizability_um3, rel=0.02)


def test_twice_the_light_is_twice_the_polarizability_at_the_same_z():
    field, yx_px, z, _ = frame(3, 0.0)
    twice = 1 + 2 * (field - 1)
    once_z, twice_z = (REFINER.refine_z(f, yx_px, z, noise=0.0) for f in (field, twice))
    np.testing.assert_allclose(once_z.z_um, twice_z.z_um, atol=1e-4)
    np.testing.assert_allclose(2 * once_z.peak, twice_z.peak, rtol=1e-4)
    once, two = (REFINER.polarizability_um3(f, yx_px, z, noise=0.0)[0] for f in (field, twice))
    np.testing.assert_allclose(2 * once, two, rtol=1e-4)


def test_a_crop_serves_as_well_as_the_frame():
    field, yx_px, _, coarse = frame(4, 0.005)
    corner = np.rint(yx_px[4]).astype(int) - 32
    crop = field[corner[0] : corner[0] + 64, corner[1] : corner[1] + 64]
    of_crop = REFINER.refine_z(crop, yx_px[4:5] - corner, coarse[4:5], noise=0.005)
    of_frame = REFINER.refine_z(field, yx_px[4:5], coarse[4:5], noise=0.005)
    assert of_crop.z_um[0] == pytest.approx(of_frame.z_um[0], abs=1e-6)


def test_a_turned_field_has_the_same_spheres():
    field, yx_px, _, coarse = frame(5, 0.005)
    turned = np.rot90(field)  # y' = W - 1 - x, x' = y
    found = REFINER.refine_z(field, yx_px, coarse, noise=0.005)
    again = REFINER.refine_z(turned, np.stack([SHAPE[1] - 1 - yx_px[:, 1], yx_px[:, 0]], axis=1), coarse, noise=0.005)
    np.testing.assert_allclose(found.z_um, again.z_um, atol=0.01)


def test_a_sphere_beyond_the_search_is_flagged():
    field = scattered(FIELD, SHAPE, Sphere(20, 20, 5.0), Sphere(40, 40, 12.0)).astype(np.complex64)
    found = REFINER.refine_z(field, [[100, 100], [200, 200]], [0.0, 12.0], noise=0.005)
    assert found.at_edge.tolist() == [True, True]
    assert REFINER.z_limit_um == pytest.approx(6.7, abs=0.1)  # at 12 um the crop has lost the light


def test_neighbours_are_flagged():
    spheres = [Sphere(20, 20), Sphere(20, 22.5), Sphere(40, 40)]
    field = scattered(FIELD, SHAPE, *spheres).astype(np.complex64)
    found = REFINER.refine_z(field, [[100, 100], [100, 112.5], [200, 200]], 0.0, noise=0.005)
    assert found.near_neighbour.tolist() == [True, True, False]
    assert found.trustworthy.tolist() == [False, False, True]


def test_nothing_there_is_weak():
    rng = np.random.default_rng(0)
    field = (1 + noise(rng, FIELD, SHAPE, 0.05)).astype(np.complex64)
    found = REFINER.refine_z(field, PLACES_UM / 0.2, 0.0)
    assert found.weak.all()


def test_the_conjugate_field_is_told():
    field, yx_px, _, coarse = frame(6, 0.005)
    assert not REFINER.refine_z(field, yx_px, coarse).conjugate.any()
    assert REFINER.refine_z(field.conj(), yx_px, -coarse).conjugate.all()


def test_at_the_border_of_the_frame_what_is_missing_counts_as_background():
    sphere = Sphere(3.0, 25.0, 1.0)
    wide = scattered(FIELD, (300, 256), Sphere(12.0, 25.0, 1.0)).astype(np.complex64)
    found = REFINER.refine_z(wide[45:], [[sphere.y_um / 0.2, sphere.x_um / 0.2]], 1.0, noise=0.005)
    assert found.z_um[0] == pytest.approx(1.0, abs=0.1)
    outside = REFINER.refine_z(wide, [[-500.0, 9999.0]], 0.0, noise=0.005)
    assert outside.weak.all()


def test_no_particles_no_rows():
    field = np.ones(SHAPE, np.complex64)
    assert len(REFINER.refine_z(field, np.empty((0, 2)), np.empty(0)).z_um) == 0
    assert len(REFINER.polarizability_um3(field, np.empty((0, 2)), 0.0)[0]) == 0


@pytest.mark.parametrize(
    ("field", "yx_px", "z_um", "message"),
    [
        (np.ones(SHAPE), [[1, 2]], 0.0, r"complex field .* got float64 .*; demodulate the hologram first"),
        (np.ones((2, 8, 8), complex), [[1, 2]], 0.0, r"complex field .* shape"),
        (np.ones(SHAPE, complex), [1, 2], 0.0, r"positions \(N, 2\) and one z or N, got shapes \(2,\)"),
        (np.ones(SHAPE, complex), [[1, 2]], [0.0, 1.0], "one row a particle"),
        (np.ones(SHAPE, complex), [[1, np.nan]], 0.0, "got NaN or infinity; leave such rows out"),
    ],
)
def test_wrong_calls_are_explained(field, yx_px, z_um, message):
    with pytest.raises(ValueError, match=message):
        REFINER.refine_z(field, yx_px, z_um)
    with pytest.raises(ValueError, match=message):
        REFINER.polarizability_um3(field, yx_px, z_um)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_px": 63}, r"even crop_px >= window_px >= 8, got 63 and 24; 64 and 24 suit"),
        ({"crop_px": 16}, "got 16 and 24"),
        ({"step_um": 0.0}, "step_um above 0"),
        ({"half_range_um": 0.1}, "at most half of half_range_um, got 0.1 and 0.1"),
    ],
)
def test_unusable_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ParticleRefiner(FIELD, **changes)


def test_clausius_mossotti():
    assert clausius_mossotti(0.150, 1.58, 1.33) == pytest.approx(0.00511, abs=5e-6)
    assert clausius_mossotti(0.1, 1.0, 1.33) < 0  # a bubble
    with pytest.raises(ValueError, match=r"above 0, got -1 um, 1.58 and 1.33; give the radius in micrometres"):
        clausius_mossotti(-1, 1.58, 1.33)
