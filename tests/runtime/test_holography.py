"""Off-axis and in-line holograms with known fields; real ones against qpretrieve."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scatterers import CARRIER, WATER, Sphere, off_axis, scattered

from oneframe.runtime.field_background import field_noise, normalised, polynomial_background, without_reference
from oneframe.runtime.holography import (
    OffAxisDemodulator,
    find_carrier,
    inline_field,
    saturation_warning,
)
from oneframe.runtime.optics import Optics
from oneframe.runtime.refine import ParticleRefiner
from oneframe.runtime.refocus import Refocuser

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "holography"
SPHERES = (Sphere(15.03, 14.2, 2.0), Sphere(30.11, 33.3, -3.0), Sphere(40.0, 10.0, 0.5, 0.15), Sphere(11.0, 40.0, 4.0))
INTERIOR = (slice(16, -16), slice(16, -16))
BETWEEN_BINS = (2.9137, 2.9412)


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.abs(difference) ** 2)))


def poisson(seed: int, mean: np.ndarray) -> np.ndarray:
    return np.random.default_rng(seed).poisson(mean).astype(np.uint16)


@pytest.mark.parametrize("shape", [(512, 512), (411, 512), (512, 301)])
@pytest.mark.parametrize("carrier", [CARRIER, BETWEEN_BINS, (-2.95, 2.87), (4.2, 0.0), (0.013, 4.2)])
def test_the_carrier_is_found_far_below_a_bin(shape, carrier):
    hologram = poisson(0, off_axis(WATER, scattered(WATER, shape, *SPHERES[:1]), carrier))
    found = np.array(find_carrier(hologram, WATER))
    # of the two peaks the one with f_x > 0, or on the axis f_y > 0
    bound = 1e-4 if min(shape) == 512 else 2e-4
    assert min(np.abs(found - carrier).max(), np.abs(found + carrier).max()) < bound
    assert found[1] > -bound


@pytest.mark.parametrize("carrier", [CARRIER, BETWEEN_BINS, (-2.95, 2.9)])
def test_the_demodulated_field_is_the_analytic_one(carrier):
    truth = scattered(WATER, (512, 512), *SPHERES)
    demodulator = OffAxisDemodulator(WATER, (512, 512), carrier)
    assert demodulator.warning == ""
    assert demodulator.field_shape == (256, 256)
    assert demodulator.pixel_um == pytest.approx(0.2)
    field = demodulator.field(off_axis(WATER, truth, carrier))
    assert field.dtype == np.complex64
    assert rms((normalised(field) - truth[::2, ::2])[INTERIOR]) < 3e-4
    empty = demodulator.field(off_axis(WATER, np.ones((512, 512)), carrier))
    assert rms(without_reference(field, empty) - truth[::2, ::2]) < 3e-4


@pytest.mark.parametrize("shape", [(301, 256), (256, 287), (303, 303)])
def test_odd_sizes(shape):
    # cut to an even size its waves lie between the bins: with some air to the rim of the aperture they stay inside it
    truth = scattered(replace(WATER, na=1.2), shape, Sphere(15.0, 14.0, 1.0))
    demodulator = OffAxisDemodulator(WATER, shape, BETWEEN_BINS)
    field, empty = (demodulator.field(off_axis(WATER, e, BETWEEN_BINS)) for e in (truth, np.ones(shape)))
    field = without_reference(field, empty)
    assert field.shape == (shape[0] // 2, shape[1] // 2)
    expected = truth[::2, ::2][: field.shape[0], : field.shape[1]]
    assert rms((field - expected)[INTERIOR]) < 3e-4


def test_shot_noise_is_what_the_electrons_allow():
    demodulator = OffAxisDemodulator(WATER, (512, 512), CARRIER)
    field = normalised(demodulator.field(poisson(1, off_axis(WATER, np.ones((512, 512)), electrons=2e4))))
    # h = 1e4 |E + R|^2: noise variance 2e4 a pixel, of which the pupil passes its share, over (1e4)^2, two components
    share = np.pi * WATER.pupil_radius_per_um**2 * WATER.pixel_um**2
    assert field_noise(field) == pytest.approx(np.sqrt(2e4 * share / 2) / 1e4, rel=0.05)


def test_the_negated_carrier_gives_the_conjugate():
    hologram = off_axis(WATER, scattered(WATER, (256, 256), Sphere(12.0, 13.0, 2.0)))
    field, conjugate = (
        OffAxisDemodulator(WATER, (256, 256), carrier).field(hologram)
        for carrier in (CARRIER, (-CARRIER[0], -CARRIER[1]))
    )
    assert rms(field - conjugate.conj()) < 1e-5 * rms(field)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_any_dtype_of_the_camera(dtype):
    hologram = off_axis(WATER, scattered(WATER, (128, 128), Sphere(6.0, 6.0)), electrons=50)
    field = OffAxisDemodulator(WATER, (128, 128), CARRIER).field(hologram.astype(dtype))
    assert field.dtype == np.complex64
    assert rms(normalised(field) - scattered(WATER, (128, 128), Sphere(6.0, 6.0))[::2, ::2]) < 0.01


def test_demodulating_and_refocusing_at_once_is_the_same():
    hologram = poisson(2, off_axis(WATER, scattered(WATER, (256, 240), *SPHERES[:1])))
    demodulator = OffAxisDemodulator(WATER, (256, 240), CARRIER)
    at_once = demodulator.refocused(hologram, 3.3)
    in_turn = demodulator.refocuser.refocus(demodulator.field(hologram), 3.3)
    assert rms(at_once - in_turn) < 1e-6 * rms(in_turn)


def test_frames_do_not_share_memory():
    hologram = poisson(3, off_axis(WATER, np.ones((64, 64))))
    demodulator = OffAxisDemodulator(WATER, (64, 64), CARRIER)
    first = demodulator.field(hologram)
    kept = first.copy()
    demodulator.field(hologram[::-1])
    np.testing.assert_array_equal(first, kept)


def test_from_the_hologram_to_z_and_polarizability():
    demodulator = OffAxisDemodulator(WATER, (512, 512), CARRIER)
    hologram = poisson(4, off_axis(WATER, scattered(WATER, (512, 512), *SPHERES)))
    carrier = find_carrier(hologram, WATER)
    field = normalised(OffAxisDemodulator(WATER, (512, 512), carrier).field(hologram))
    refiner = ParticleRefiner(demodulator.field_optics)
    yx_px = np.array([(s.y_um, s.x_um) for s in SPHERES]) / 0.2
    truth = np.array([s.z_um for s in SPHERES])
    found = refiner.refine_z(field, yx_px, truth + 0.3)
    assert found.trustworthy.all()
    np.testing.assert_allclose(found.z_um, truth, atol=0.03)
    alpha, sigma_um3 = refiner.polarizability_um3(field, yx_px, found.z_um)
    np.testing.assert_array_less(np.abs(alpha - [s.polarizability_um3 for s in SPHERES]), 4 * sigma_um3)


def test_a_reference_arm_that_drifts_is_told():
    demodulator = OffAxisDemodulator(WATER, (256, 256), CARRIER)
    scene = scattered(WATER, (256, 256), Sphere(12.0, 13.0, 2.0))

    def warning(carrier):
        return demodulator.drift_warning(demodulator.field(poisson(5, off_axis(WATER, scene, carrier))))

    assert warning(CARRIER) == ""
    assert warning((2.931, 2.93)) == ""  # 0.16 rad over the frame
    moved = warning((2.93, 2.95))
    assert "has moved by 0.02 cycles/um since it was found, 3.2 rad of phase over the frame" in moved
    assert "find the carrier again and take a new reference" in moved
    assert "the carrier is lost" in warning((-2.9, 2.9))
    assert "the carrier is lost" in demodulator.drift_warning(np.zeros((128, 128), np.complex64))


def test_saturation_is_told():
    hologram = off_axis(WATER, np.ones((128, 128)), electrons=2e3)
    assert saturation_warning(hologram.astype(np.uint16)) == ""
    clipped = np.minimum(hologram, 4095 * 0.9).astype(np.uint16)
    assert saturation_warning(clipped) == ""  # no camera's end of scale
    assert "pixels are saturated" in saturation_warning(clipped, full_scale=3685)
    clipped = np.minimum(hologram * 1.2, 4095).astype(np.uint16)
    assert "the crests of the fringes are cut" in saturation_warning(clipped)
    clipped[:] = 100
    clipped[0, 0] = 4095  # one hot pixel
    assert saturation_warning(clipped) == ""


@pytest.mark.parametrize(
    "image",
    [
        np.full((128, 128), 100, np.uint16),
        np.random.default_rng(0).poisson(100, (128, 128)),
        np.abs(scattered(WATER, (128, 128), Sphere(6.0, 6.0, 5.0))) ** 2,
    ],
    ids=["flat", "noise", "in-line"],
)
def test_a_frame_without_fringes_has_no_carrier(image):
    with pytest.raises(ValueError, match=r"expected an off-axis hologram, found no fringes finer than 1.2 um; check"):
        find_carrier(image, WATER)


def test_wrong_calls_are_explained():
    with pytest.raises(ValueError, match=r"at least 32 x 32 pixels, got shape \(2, 64, 64\); snap a frame"):
        find_carrier(np.ones((2, 64, 64)), WATER)
    with pytest.raises(
        ValueError, match=r"carrier within 5 cycles/um in y and x, got .*; find it again for these optics"
    ):
        OffAxisDemodulator(WATER, (64, 64), (2.0, 6.0))
    with pytest.raises(
        ValueError, match=r"shape \(64, 64\), got \(64, 66\); make an OffAxisDemodulator for this shape"
    ):
        OffAxisDemodulator(WATER, (64, 64), CARRIER).field(np.ones((64, 66)))
    with pytest.raises(
        ValueError, match=r"one shape \(H, W\), got \(8, 8\) and \(8, 9\); snap both with the same region"
    ):
        inline_field(np.ones((8, 8)), np.ones((8, 9)))
    with pytest.raises(ValueError, match="got 100 % dark pixels; snap it again with the light on"):
        inline_field(np.ones((8, 8)), np.zeros((8, 8)))


def test_an_inline_field_keeps_the_sign_of_z_in_im_but_not_in_intensity():
    optics = WATER.with_pixel(0.2)
    background = np.linspace(3e3, 5e3, 256)[:, None] * np.ones(256)
    truth = scattered(optics, (256, 256), Sphere(25.6, 25.6, 4.0, 0.15))
    image = np.rint(background * np.abs(truth) ** 2).astype(np.uint16)
    background[3, 3] = 0  # a dead pixel
    field = inline_field(image, background.astype(np.uint16))
    assert field.dtype == np.complex64
    assert field[3, 3] == 1
    assert not field.imag.any()
    real, twin = (Refocuser(optics, (256, 256)).refocus(field, z)[128, 128] - 1 for z in (4.0, -4.0))
    assert abs(real) == pytest.approx(abs(twin), rel=0.01)
    assert real.imag > 0.2
    assert twin.imag < -0.2
    found = ParticleRefiner(optics, half_range_um=2.0).refine_z(field, [[128, 128]], 3.5, noise=0.01)
    assert found.z_um[0] == pytest.approx(4.0, abs=0.2)


def test_agrees_with_qpretrieve_on_a_real_cell():
    qpretrieve = pytest.importorskip("qpretrieve")
    path = DATA / "qpretrieve" / "hologram_cell.npz"
    if not path.exists():
        pytest.skip("the hologram of the cell is not there")
    with np.load(path) as stored:
        cell, empty = stored["data"][:200, :200], stored["bg_data"][:200, :200]  # it filters squares only
    # padding=0: otherwise it works on a larger frame with zeros. 0.34 of the carrier: at the default, a third, eight
    # frequencies lie exactly on the rim of its disc
    theirs = [qpretrieve.OffAxisHologram(image, padding=0) for image in (cell, empty)]
    for one in theirs:
        one.run_pipeline(filter_size=0.34, sideband_freq=theirs[0].pipeline_kws.get("sideband_freq"))
    carrier_px = theirs[0].pipeline_kws["sideband_freq"]
    pixel_um = 0.1
    na = 0.34 * np.hypot(*carrier_px) / pixel_um * 0.633
    optics = Optics(wavelength_um=0.633, medium_index=1.33, na=na, pixel_um=pixel_um)
    found = find_carrier(cell, optics)
    bin_per_um = 1 / (min(cell.shape) * pixel_um)
    assert min(np.abs(np.array(found) - sign * np.array(carrier_px) / pixel_um).max() for sign in (1, -1)) < bin_per_um
    # it takes the sideband at its frequency for the field: the reference wave has the opposite one
    demodulator = OffAxisDemodulator(optics, cell.shape, tuple(-float(f) / pixel_um for f in carrier_px))
    for image, one in zip((cell, empty), theirs, strict=True):
        expected = one.field[0, ::2, ::2]
        assert rms(demodulator.field(image) - expected) < 1e-5 * rms(expected)


@pytest.mark.parametrize("path", sorted(DATA.glob("holo2bright/*.png")) or [None])
def test_real_inline_frames_are_no_off_axis_holograms(path):
    if path is None:
        pytest.skip("the in-line frames are not there")
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    optics = Optics(wavelength_um=0.632, medium_index=1.33, na=0.3, pixel_um=1.0)
    with pytest.raises(ValueError, match="expected an off-axis hologram"):
        find_carrier(image, optics)


def test_simulated_mie_spheres_behind_an_aberrated_reference_wave():
    holograms = pytest.importorskip("oneframe.acquisition.holograms")
    scene = holograms.HologramScene(n=6, seed=5, separation_um=8.0)
    camera, empty = (holograms.HologramCamera(s) for s in (scene, replace(scene, n=0)))
    demodulator = OffAxisDemodulator(WATER, (512, 512), find_carrier(empty.expose(), WATER))
    reference = demodulator.field(empty.expose())
    assert demodulator.drift_warning(reference) == ""
    refiner = ParticleRefiner(demodulator.field_optics)
    z_errors_um, weights = [], []
    for _ in range(5):
        hologram, truth = camera.expose(), camera.motion.truth()
        assert saturation_warning(hologram) == ""
        recorded = demodulator.field(hologram)
        field = without_reference(recorded, reference)
        noise = field_noise(field)
        assert noise < 0.01  # two shots' worth
        assert rms(field - camera.field()) < 1.3 * np.sqrt(2) * noise
        polynomial = normalised(recorded / polynomial_background(recorded))
        assert rms(polynomial - camera.field()) < 1.3 * np.sqrt(2) * noise
        yx_px = np.stack([truth.y_px, truth.x_px], axis=1) / 2
        found = refiner.refine_z(field, yx_px, truth.z_um + 0.2)
        assert found.trustworthy.all()
        z_errors_um.append(found.z_um - truth.z_um)
        weights.append(refiner.polarizability_um3(field, yx_px, found.z_um)[0] / truth.polarizability_um3)
        camera.motion.advance()
    assert np.std(z_errors_um) < 0.025
    assert 0.05 < np.mean(z_errors_um) < 0.2  # the focus of light behind a sphere of this size
    assert np.mean(weights) == pytest.approx(1, abs=0.1)  # 228 nm is large for Clausius-Mossotti
