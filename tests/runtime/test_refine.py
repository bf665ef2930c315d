"""Position and polarizability of spheres with known truth, and the flags of those that cannot be trusted."""

import numpy as np
import pytest
from scatterers import WATER, Sphere, noise, scattered

from oneframe.acquisition.holograms import HologramCamera, HologramScene
from oneframe.acquisition.mie import scattering_amplitudes
from oneframe.runtime.optics import Optics
from oneframe.runtime.refine import ParticleRefiner, clausius_mossotti, light_of_dark
from oneframe.runtime.refocus import Refocuser

FIELD = WATER.with_pixel(0.2)
REFINER = ParticleRefiner(FIELD)
SPHERES = ParticleRefiner(FIELD, spheres=True)
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


def test_faint_particles_are_found_wherever_along_the_axis_they_are():
    within = ParticleRefiner.for_optics(FIELD, z_um=(-6.0, 6.0), shape=SHAPE)
    near = ParticleRefiner(FIELD, half_range_um=1.5)
    errors, in_sigmas, unfound = [], [], 0
    for seed in range(6):
        field, yx_px, z, _ = frame(seed, 0.1)
        rng = np.random.default_rng(seed + 100)
        coarse_px, coarse_um = yx_px + rng.uniform(-1.4, 1.4, yx_px.shape), z + rng.choice([-3.0, 0.5, 3.0], len(z))
        measured = within.measure(field, coarse_px, coarse_um, noise=0.1)
        assert measured.z.trustworthy.all()
        errors.append(measured.z.z_um - z)
        in_sigmas.append(errors[-1] / measured.z.sigma_z_um)
        unfound += np.count_nonzero(np.abs(near.measure(field, coarse_px, coarse_um, noise=0.1).z.z_um - z) > 0.5)
    assert np.sqrt(np.mean(np.square(errors))) < 0.035  # far from focus too: 0.06 in crops that lose the steep rays
    assert np.std(in_sigmas) == pytest.approx(1, rel=0.3)
    assert unfound > 0.5 * np.size(errors)


def test_clear_particles_are_not_looked_for_elsewhere():
    field, yx_px, _, coarse = frame(14, 0.01)
    plain, wide = (
        ParticleRefiner(FIELD, z_um=z_um).measure(field, yx_px, coarse, noise=0.01) for z_um in (None, (-6.0, 6.0))
    )
    np.testing.assert_array_equal(plain.z.z_um, wide.z.z_um)
    np.testing.assert_array_equal(plain.polarizability_um3, wide.polarizability_um3)


def mie(radius_um: float, index: float, z_um: float):
    """Exact field of one Mie sphere, its centre in pixels, and the polarizability that its forward light stands for."""
    scene = HologramScene(
        kind="field", n=1, radius_um=(radius_um,), index=(index,), width=256, height=256, margin=110.0, z_um=0.0,
        z_mid_um=z_um,
    )  # fmt: skip
    camera = HologramCamera(scene)
    truth = camera.motion.truth()
    s1, _ = scattering_amplitudes(1.0, radius_um, index, wavelength_um=0.633, medium_index=1.33)
    forward_um3 = 4 * np.pi / FIELD.wavenumber_per_um**3 * float(s1.imag)
    return camera.field(), np.stack([truth.y_px, truth.x_px], axis=1), abs(forward_um3)


@pytest.mark.parametrize(("sigma", "bound_px"), [(0.005, 0.015), (0.03, 0.06)])
def test_the_centre_is_found_in_noise(sigma, bound_px):
    errors, in_sigmas = [], []
    for seed in range(6):
        field, yx_px, z, _ = frame(seed, sigma)
        coarse_px = yx_px + np.random.default_rng(seed).uniform(-1, 1, yx_px.shape)
        found_px, sigma_px = REFINER.refine_yx(field, coarse_px, z)
        errors.append(found_px - yx_px)
        in_sigmas.append(errors[-1] / sigma_px)
    assert np.sqrt(np.mean(np.square(errors))) < bound_px
    if sigma == 0.03:
        assert np.std(in_sigmas) == pytest.approx(1, rel=0.2)


def test_without_noise_the_centre_is_exact():
    field, yx_px, z, _ = frame(7, 0.0)
    for off in (-1.4, -0.4, 0.0, 0.9):
        found_px, _ = REFINER.refine_yx(field, yx_px + np.array([off, -off]), z, noise=0.0)
        np.testing.assert_allclose(found_px, yx_px, atol=0.02)  # 4 nm


def test_no_peak_within_reach_leaves_the_centre_where_it_was():
    field, yx_px, z, _ = frame(8, 0.0)
    coarse_px = yx_px + np.array([2.5, 0.0])
    found_px, sigma_px = REFINER.refine_yx(field, coarse_px, z, noise=0.005)
    np.testing.assert_array_equal(found_px, coarse_px)
    assert np.isnan(sigma_px).all()
    found_px, sigma_px = REFINER.refine_yx(np.ones(SHAPE, np.complex64), [[9.3, 7.1]], 0.0, noise=0.005)
    assert found_px.tolist() == [[9.3, 7.1]]
    assert np.isnan(sigma_px).all()


def test_measuring_at_once_is_measuring_in_turn():
    field, yx_px, _, coarse = frame(9, 0.01)
    coarse_px = yx_px + 0.1
    measured = REFINER.measure(field, coarse_px, coarse, noise=0.01)
    z = REFINER.refine_z(field, coarse_px, coarse, noise=0.01)
    np.testing.assert_allclose(measured.z.z_um, z.z_um, atol=1e-6)
    centre_px, sigma_px = REFINER.refine_yx(field, coarse_px, z.z_um, noise=0.01)
    np.testing.assert_allclose(measured.yx_px, centre_px, atol=1e-5)
    np.testing.assert_allclose(measured.sigma_yx_px, sigma_px, rtol=1e-4)
    alpha, sigma_um3 = REFINER.polarizability_um3(field, centre_px, z.z_um, noise=0.01)
    np.testing.assert_allclose(measured.polarizability_um3, alpha, rtol=0.005)  # a crop may be cut a pixel further on
    np.testing.assert_allclose(measured.sigma_polarizability_um3, sigma_um3, rtol=0.005)


def test_a_coarse_centre_that_is_a_pixel_off_does_not_matter():
    field, yx_px, _, coarse = frame(10, 0.005)
    near, far = (REFINER.measure(field, yx_px + off, coarse, noise=0.005) for off in (0.0, 0.8))
    np.testing.assert_allclose(near.yx_px, far.yx_px, atol=0.01)
    np.testing.assert_allclose(near.z.z_um, far.z.z_um, atol=0.01)
    np.testing.assert_allclose(near.polarizability_um3, far.polarizability_um3, rtol=0.01)


@pytest.mark.parametrize(("radius_um", "index"), [(0.13, 1.40), (0.13, 1.70), (0.228, 1.58), (0.3, 1.40), (0.3, 1.70)])
def test_light_straight_ahead_of_mie_spheres(radius_um, index):
    for z_um in (-4.0, 0.0, 2.0):
        field, yx_px, forward_um3 = mie(radius_um, index, z_um)
        measured = REFINER.measure(field, yx_px, z_um, noise=0.001)
        np.testing.assert_allclose(measured.yx_px, yx_px, atol=0.02)
        assert measured.polarizability_um3[0] == pytest.approx(forward_um3, rel=0.05)


def test_told_that_they_are_spheres_large_ones_read_by_clausius_mossotti():
    for radius_um, index in [(0.15, 1.58), (0.228, 1.58), (0.3, 1.45), (0.3, 1.70)]:
        truth = clausius_mossotti(radius_um, index, 1.33)
        for z_um in (-3.0, 1.0):
            field, yx_px, forward_um3 = mie(radius_um, index, z_um)
            measured = SPHERES.measure(field, yx_px, z_um, noise=0.003)
            assert measured.polarizability_um3[0] == pytest.approx(truth, rel=0.08)
            assert 0 < measured.sigma_polarizability_um3[0] < 0.15 * truth
    assert forward_um3 < 0.82 * truth  # what it would have read otherwise


def test_a_sphere_larger_than_all_that_are_known_is_not_weighed():
    field, yx_px, _ = mie(0.5, 1.58, 0.0)
    measured = SPHERES.measure(field, yx_px, 0.5, noise=0.005)
    assert np.isnan([measured.polarizability_um3[0], measured.sigma_polarizability_um3[0]]).all()


@pytest.mark.parametrize(("sigma", "radius_um"), [(0.01, 0.15), (0.03, 0.228)])
def test_two_thirds_of_the_polarizabilities_lie_within_their_error(sigma, radius_um):
    in_sigmas = []
    for seed in range(12):
        field, yx_px, _, coarse = frame(seed, sigma, radius_um=radius_um)
        measured = REFINER.measure(field, yx_px, coarse, noise=sigma)
        truth = clausius_mossotti(radius_um, 1.58, 1.33)
        in_sigmas.append((measured.polarizability_um3 - truth) / measured.sigma_polarizability_um3)
    assert 0.55 < np.mean(np.abs(in_sigmas) < 1) < 0.85


def test_a_background_that_is_not_quite_1_does_not_matter():
    field, yx_px, z, _ = frame(11, 0.0)
    shifted = field + np.complex64(0.003j)  # sums up to 0.074 um^3 over a crop
    plain, off = (REFINER.polarizability_um3(f, yx_px, z, noise=0.005)[0] for f in (field, shifted))
    np.testing.assert_allclose(off, plain, rtol=0.01)


def test_calibration_is_a_factor():
    field, yx_px, _, coarse = frame(12, 0.005)
    for once in (REFINER, SPHERES):
        half = ParticleRefiner(FIELD, spheres=once is SPHERES, calibration=0.5)
        plain, scaled = (r.measure(field, yx_px, coarse, noise=0.005) for r in (once, half))
        np.testing.assert_allclose(scaled.polarizability_um3, plain.polarizability_um3 / 2)
        np.testing.assert_allclose(scaled.sigma_polarizability_um3, plain.sigma_polarizability_um3 / 2)


def test_sizes_follow_from_the_optics():
    def crop_px(optics: Optics, z_um: float, shape=(256, 300)) -> int:
        return ParticleRefiner.for_optics(optics, z_um=(-z_um, z_um / 2), shape=shape).crop_px

    assert crop_px(FIELD, 0.0) == 48
    assert crop_px(FIELD, 5.0) == 48
    assert crop_px(FIELD, 6.0) == 60
    assert crop_px(FIELD, 1000.0) == 256
    assert crop_px(FIELD, 1000.0, (2000, 75)) == 72
    assert crop_px(FIELD, 0.0, (40, 40)) == 40
    low = Optics(wavelength_um=0.633, medium_index=1.33, na=0.3, pixel_um=0.2)
    assert crop_px(low, 1.0) * 0.2 >= 12 * 0.633 / 0.3
    field, yx_px, z, coarse = frame(13, 0.005)
    refiner = ParticleRefiner.for_optics(FIELD, z_um=(-5.0, 5.0), shape=SHAPE, calibration=2.0)
    measured = refiner.measure(field, yx_px, coarse)
    assert measured.z.trustworthy.all()
    np.testing.assert_allclose(measured.z.z_um, z, atol=0.1)
    assert np.mean(measured.polarizability_um3) == pytest.approx(2 * clausius_mossotti(0.228, 1.58, 1.33), rel=0.03)
    with pytest.raises(ValueError, match="fields of 16 px or more along each side, got 12 x 200; use a larger region"):
        ParticleRefiner.for_optics(FIELD, z_um=(0, 0), shape=(12, 200))


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


def test_dark_particles_are_in_focus_where_they_are_darkest():
    field, yx_px, z, coarse = frame(15, 0.005)
    dark = 1 + 1j * (field - 1)  # in focus E_s is negative
    np.testing.assert_allclose(light_of_dark(dark), field, atol=1e-6)
    found = REFINER.measure(light_of_dark(dark), yx_px, coarse, noise=0.005)
    assert found.z.trustworthy.all()
    np.testing.assert_allclose(found.z.z_um, z, atol=0.1)
    assert not np.allclose(REFINER.measure(dark, yx_px, coarse, noise=0.005).z.z_um, z, atol=0.2)


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
    for refiner in (REFINER, SPHERES):
        measured = refiner.measure(field, np.empty((0, 2)), 0.0)
        assert measured.yx_px.shape == measured.sigma_yx_px.shape == (0, 2)
        assert measured.z.z_um.shape == measured.polarizability_um3.shape == (0,)


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
    for method in (REFINER.refine_z, REFINER.refine_yx, REFINER.polarizability_um3, REFINER.measure):
        with pytest.raises(ValueError, match=message):
            method(field, yx_px, z_um)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_px": 63}, r"an even crop_px of 16 or more, got 63; 64 suits pixels of 0.2 um"),
        ({"crop_px": 14}, "16 or more, got 14"),
        ({"calibration": 0.0}, "a calibration above 0, got 0; 1 leaves the values as they are"),
        ({"step_um": 0.0}, "step_um above 0"),
        ({"half_range_um": 0.1}, "at most half of half_range_um, got 0.1 and 0.1"),
    ],
)
def test_unusable_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ParticleRefiner(FIELD, **changes)


def test_a_crop_too_small_for_the_aperture_is_refused():
    low = Optics(wavelength_um=0.633, medium_index=1.33, na=0.3, pixel_um=0.2)
    with pytest.raises(ValueError, match=r"got 32 px of 0.2 um at NA 0.3, too few rings .*; use a larger crop_px"):
        ParticleRefiner(low, crop_px=32)


def test_clausius_mossotti():
    assert clausius_mossotti(0.150, 1.58, 1.33) == pytest.approx(0.00511, abs=5e-6)
    assert clausius_mossotti(0.1, 1.0, 1.33) < 0  # a bubble
    with pytest.raises(ValueError, match=r"above 0, got -1 um, 1.58 and 1.33; give the radius in micrometres"):
        clausius_mossotti(-1, 1.58, 1.33)
