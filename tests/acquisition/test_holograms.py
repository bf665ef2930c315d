from __future__ import annotations

import logging

import numpy as np
import pytest

from oneframe.acquisition import Frame, SourceError, frames, open_source
from oneframe.acquisition.holograms import (
    FieldSynthesis,
    HologramCamera,
    HologramScene,
    SimulatedHolograms,
    SphereMotion,
    SphereTruth,
    sampling_warning,
    stokes_einstein_um2_s,
)
from oneframe.acquisition.mie import extinction_um2

PIXEL_UM = 0.2
"""Sampling of the kind `field` with the default camera."""
K_PER_UM = 2 * np.pi * 1.33 / 0.633
SMALL = "sim:hologram?width=192&height=160&seed=4"


def opened(url: str) -> SimulatedHolograms:
    source = open_source(url)
    assert isinstance(source, SimulatedHolograms)
    return source


def read(url: str) -> Frame:
    frame = opened(url).read(1.0)
    assert frame is not None
    return frame


def complex_field(pixels: np.ndarray) -> np.ndarray:
    return pixels[0] + 1j * pixels[1]


def refocused(field: np.ndarray, z_um: float) -> np.ndarray:
    """The field propagated by +z_um: angular spectrum, index of the medium, background kept at 1."""
    ky, kx = (2 * np.pi * np.fft.fftfreq(n, PIXEL_UM) for n in field.shape)
    kz2 = K_PER_UM**2 - ky[:, None] ** 2 - kx**2
    kernel = np.where(kz2 > 0, np.exp(1j * z_um * (np.sqrt(np.maximum(kz2, 0)) - K_PER_UM)), 0)
    return np.fft.ifft2(np.fft.fft2(field) * kernel)


def rendered(z_um: float, *, y_px: float = 128.0, x_px: float = 128.0, radius_um: float = 0.228) -> np.ndarray:
    """The noise-free field (256, 256) of one sphere."""
    scene = HologramScene(kind="field")
    columns = ([y_px], [x_px], [z_um], [radius_um], [1.58], [0.0])
    synthesis = FieldSynthesis(scene)
    spheres = SphereTruth(np.array([0]), *(np.array(column) for column in columns))
    return synthesis.sample(synthesis.scattered(spheres), every=2)


def parabola(below: float, top: float, above: float) -> float:
    """Where a parabola through three values one apart has its maximum, from the middle one."""
    return 0.5 * (below - above) / (below - 2 * top + above)


def peak_px(bright: np.ndarray, row: int, column: int) -> tuple[float, float]:
    """The maximum within 2 px of a pixel, taken as a Gaussian."""
    near = np.log(bright[row - 3 : row + 4, column - 3 : column + 4])
    r, c = (i + 1 for i in divmod(int(near[1:-1, 1:-1].argmax()), 5))
    return row - 3 + r + parabola(*near[r - 1 : r + 2, c]), column - 3 + c + parabola(*near[r, c - 1 : c + 2])


@pytest.mark.parametrize(("radius_um", "index"), [(0.228, 1.58), (0.15, 1.45), (0.3, 1.7), (0.228, 1.2)])
def test_the_light_missing_straight_ahead_is_the_extinction(radius_um: float, index: float) -> None:
    field = opened(f"sim:hologram?kind=field&n=1&z_um=0&margin=200&radius_um={radius_um}&index={index}").field()
    expected_um2 = extinction_um2(radius_um, index, wavelength_um=0.633, medium_index=1.33)
    # the frame ends where a hundredth of a square wavelength is left in the rings
    assert -2 * (field - 1).real.sum() * PIXEL_UM**2 == pytest.approx(expected_um2, rel=0.01, abs=0.002)


def test_a_field_refocused_by_the_spheres_z_is_that_of_a_sphere_in_focus() -> None:
    in_focus = rendered(0.0)
    inner = np.s_[96:160, 96:160]
    for z_um in (-4.0, -1.5, 2.0, 4.0):
        difference = refocused(rendered(z_um), z_um)[inner] - in_focus[inner]
        assert np.sqrt(np.mean(abs(difference) ** 2)) < 1e-3


def test_the_axial_maximum_moves_with_z_one_to_one() -> None:
    def peak_um(field: np.ndarray, around_um: float) -> float:
        z_um = around_um + np.arange(-0.6, 0.61, 0.1)
        axial = np.array([refocused(field, z)[128, 128].imag for z in z_um])
        i = int(axial.argmax())
        return float(z_um[i] + 0.1 * parabola(*axial[i - 1 : i + 2]))

    in_focus_um = peak_um(rendered(0.0), 0.0)
    assert 0.0 < in_focus_um < 0.2  # a sphere of finite size focuses light a little behind its centre
    for z_um in (-4.0, -2.0, 1.0, 3.0):
        assert peak_um(rendered(z_um), z_um) - z_um == pytest.approx(in_focus_um, abs=0.01)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_refocused_spot_is_centred_on_the_truth(seed: int) -> None:
    source = opened(f"sim:hologram?kind=field&seed={seed}&n=4&separation_um=8")
    frame = source.read(1.0)
    assert frame is not None
    assert frame.pixel_size_um == PIXEL_UM
    truth = source.truth()
    for y_px, x_px, z_um in zip(truth.y_px, truth.x_px, truth.z_um, strict=True):
        bright = abs(refocused(complex_field(frame.pixels), z_um) - 1) ** 2
        found_y_px, found_x_px = peak_px(bright, round(y_px), round(x_px))
        assert np.hypot(found_y_px - y_px, found_x_px - x_px) < 0.05


def test_a_hologram_demodulated_with_the_true_carrier_and_the_reference_is_the_field() -> None:
    def demodulated(frame: Frame) -> np.ndarray:
        assert frame.pixel_size_um is not None
        fy, fx = frame.metadata["carrier_per_um"]
        y, x = np.indices(frame.pixels.shape) * frame.pixel_size_um
        spectrum = np.fft.fft2(frame.pixels * np.exp(2j * np.pi * (fy * y + fx * x)))
        frequency = [np.fft.fftfreq(n, frame.pixel_size_um) for n in frame.pixels.shape]
        cutoff = frame.metadata["na"] / frame.metadata["wavelength_um"]
        spectrum[np.hypot(frequency[0][:, None], frequency[1]) > cutoff] = 0
        return np.fft.ifft2(spectrum)[::2, ::2]

    # spheres in focus would do worse: their own intensity reaches into the sideband (rms 7e-4 for three of them)
    bright = "sim:hologram?seed=3&photons=1e9&read_noise=0&bits=16&margin=150&n="
    source = opened(bright + "3")
    frame = source.read(1.0)
    assert frame is not None
    field = demodulated(frame) / demodulated(read(bright + "0"))
    inner = np.s_[8:-8, 8:-8]
    exact = source.field()
    assert np.sqrt(np.mean(abs(exact[inner] - 1) ** 2)) > 0.01
    assert np.sqrt(np.mean(abs(field[inner] - exact[inner]) ** 2)) < 3e-4


def test_an_in_line_hologram_is_the_intensity_of_the_field() -> None:
    in_line = SMALL + "&kind=in-line&photons=1e6&bits=16&read_noise=0"
    source = opened(in_line)
    frame = source.read(1.0)
    assert frame is not None
    relative = (frame.pixels / read(in_line + "&n=0").pixels)[::2, ::2]
    scattered = source.field() - 1
    expected = 1 + 2 * scattered.real + abs(scattered) ** 2
    assert np.std(expected) > 0.05
    assert np.std(relative - expected) < 2.2e-3  # shot noise of two frames of 1e6 electrons
    assert abs(np.mean(relative - expected)) < 1e-4


def test_the_kind_field_is_exact_without_noise_and_has_the_noise_asked_for() -> None:
    exact = opened(SMALL + "&kind=field").field()
    frame = read(SMALL + "&kind=field")
    assert frame.pixels.dtype == np.float32
    assert frame.pixels.shape == (2, 80, 96)
    np.testing.assert_array_equal(complex_field(frame.pixels), exact)
    noise = complex_field(read(SMALL + "&kind=field&field_noise=0.1").pixels) - exact
    assert np.std(noise.real) == pytest.approx(0.1, rel=0.05)
    assert np.std(noise.imag) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("photons", [500.0, 20000.0])
@pytest.mark.parametrize("kind", ["in-line", "off-axis"])
def test_noise_is_shot_noise_and_read_noise(kind: str, photons: float) -> None:
    url = f"sim:hologram?kind={kind}&n=0&width=96&height=96&frames=30&bits=16&vignetting=0"
    source = opened(f"{url}&photons={photons}&read_noise=10")
    per_electron = (2**16 - 1) / source.scene.electrons_at_saturation
    electrons = np.stack([frame.pixels for frame in frames(source)]) / per_electron
    assert electrons.mean() == pytest.approx(photons, rel=0.01)
    lit = electrons.mean(axis=0) > 100  # elsewhere the read noise is cut off at 0
    variance = electrons.var(axis=0, ddof=1)[lit].mean()
    assert variance == pytest.approx(electrons.mean(axis=0)[lit].mean() + 100, rel=0.02)


def test_without_spheres_the_same_light_remains_but_not_the_same_noise() -> None:
    quiet = SMALL + "&photons=1e6&bits=16&read_noise=0"
    empty, sample = read(quiet + "&n=0"), read(quiet + "&n=1&radius_um=0.01")  # as good as none
    light, other_light = (frame.pixels.astype(float) for frame in (empty, sample))
    assert np.corrcoef(light.ravel(), other_light.ravel())[0, 1] > 0.99999
    noise = (light - other_light) / np.sqrt(np.maximum(light, 1))
    per_electron = (2**16 - 1) / 3e6
    assert np.std(noise) == pytest.approx(np.sqrt(2 * per_electron), rel=0.05)
    assert empty.metadata == sample.metadata
    assert opened(quiet + "&n=0").truth().particle_id.size == 0


def test_frames_say_how_they_were_taken() -> None:
    frame = read(SMALL + "&carrier=2.5,-3.1&medium_index=1.34")
    assert frame.metadata == {
        "kind": "off-axis",
        "wavelength_um": 0.633,
        "medium_index": 1.34,
        "na": 1.3,
        "carrier_per_um": [2.5, -3.1],
    }
    spectrum = abs(np.fft.fft2(frame.pixels - frame.pixels.mean()))
    row, column = np.unravel_index(spectrum.argmax(), spectrum.shape)
    fy, fx = np.fft.fftfreq(160, 0.1)[row], np.fft.fftfreq(192, 0.1)[column]
    np.testing.assert_allclose(np.sign(fy) * np.array([fy, fx]), [2.5, -3.1], atol=0.1)
    in_line = read(SMALL + "&kind=in-line")
    assert set(in_line.metadata) == {"kind", "wavelength_um", "medium_index", "na"}


def test_time_goes_on_by_dt_s_where_frames_are_made_on_demand() -> None:
    times_s = [frame.time_s for frame in frames(opened(SMALL + "&n=1&frames=3&dt_s=0.5"))]
    np.testing.assert_allclose(np.diff(times_s), 0.5, atol=1e-5)
    assert opened(SMALL + "&fps=0.1").scene.dt_s == 10.0


@pytest.mark.parametrize(
    ("diffusion", "expected_um2_s"), [(0.5, 0.5), (None, stokes_einstein_um2_s(0.15, 293.0, 1.002))]
)
def test_the_spheres_diffuse_as_told_along_every_axis(diffusion: float | None, expected_um2_s: float) -> None:
    scene = HologramScene(n=20, width=4096, height=4096, z_um=200, radius_um=(0.15,), diffusion=diffusion, seed=8)
    motion = SphereMotion(scene)
    track = []
    for _ in range(300):
        spheres = motion.spheres()
        track.append([spheres.z_um, spheres.y_px * scene.pixel_um, spheres.x_px * scene.pixel_um])
        motion.advance()
    steps_um = np.diff(track, axis=0)  # (time, axis, sphere)
    measured = (steps_um**2).mean(axis=(0, 2)) / (2 * scene.dt_s)
    np.testing.assert_allclose(measured, expected_um2_s, rtol=0.06)  # 4 standard errors of 6000 steps
    uncorrelated = (steps_um[1:] * steps_um[:-1]).mean() / (steps_um**2).mean()
    assert abs(uncorrelated) < 0.03


def test_spheres_keep_apart_and_between_the_walls() -> None:
    scene = HologramScene(n=12, width=256, height=200, margin=30, z_um=1.0, z_mid_um=5.0, separation_um=2.0, dt_s=0.2)
    motion = SphereMotion(scene)
    for _ in range(100):
        truth = motion.truth()
        assert truth.particle_id.tolist() == list(range(12))
        assert truth.z_um.min() >= 4.0
        assert truth.z_um.max() <= 6.0
        assert truth.y_px.min() >= 29.5
        assert truth.y_px.max() <= 169.5
        assert truth.x_px.max() <= 225.5
        yx_um = np.column_stack([truth.y_px, truth.x_px]) * scene.pixel_um
        apart_um = np.linalg.norm(yx_um[:, None] - yx_um[None], axis=2) + 99 * np.eye(12)
        assert apart_um.min() >= 2.0
        motion.advance()


def test_spheres_never_overlap_in_space() -> None:
    scene = HologramScene(n=30, width=64, height=64, margin=0, z_um=2.0, radius_um=(0.4, 0.2), pixel_um=0.1)
    motion = SphereMotion(scene)
    for _ in range(30):
        spheres = motion.spheres()
        position_um = np.column_stack([spheres.z_um, spheres.y_px * 0.1, spheres.x_px * 0.1])
        apart_um = np.linalg.norm(position_um[:, None] - position_um[None], axis=2) + 99 * np.eye(30)
        assert (apart_um >= spheres.radius_um[:, None] + spheres.radius_um).all()
        motion.advance()


def test_a_negative_margin_lets_spheres_leave_and_truth_keeps_their_numbers() -> None:
    motion = SphereMotion(HologramScene(n=40, width=64, height=64, margin=-40, separation_um=0.5, seed=2))
    inside, everyone = motion.truth(), motion.spheres()
    assert 0 < inside.particle_id.size < 40
    np.testing.assert_array_equal(inside.y_px, everyone.y_px[inside.particle_id])


def test_two_populations_alternate_with_their_polarizability() -> None:
    source = opened(SMALL + "&n=4&margin=10&radius_um=0.228,0.15&index=1.58")
    truth = source.truth()
    np.testing.assert_allclose(truth.radius_um, [0.228, 0.15, 0.228, 0.15])
    np.testing.assert_allclose(truth.polarizability_um3, [0.01796, 0.00511, 0.01796, 0.00511], atol=1e-5)


def test_options_reach_the_scene() -> None:
    scene = opened(SMALL + "&diffusion=0&z_mid_um=-2&carrier=2.9,2.95&radius_um=0.1,0.2&index=1.5,1.6").scene
    assert (scene.diffusion, scene.z_mid_um, scene.carrier) == (0.0, -2.0, (2.9, 2.95))
    assert (scene.radius_um, scene.index) == ((0.1, 0.2), (1.5, 1.6))
    assert opened(SMALL).scene == HologramScene(width=192, height=160, seed=4)


def test_a_sphere_of_lower_index_has_negative_contrast() -> None:
    lower, equal = (opened(f"{SMALL}&kind=field&n=1&z_um=0&index={index}") for index in (1.25, 1.33))
    assert lower.truth().polarizability_um3[0] < 0
    scattered = lower.field() - 1
    assert scattered.imag[np.unravel_index(abs(scattered).argmax(), scattered.shape)] < 0
    np.testing.assert_array_equal(equal.field(), np.ones((80, 96)))


def test_a_camera_of_few_bits_or_a_small_well_saturates() -> None:
    counts = read(SMALL + "&bits=8&full_well=20000").pixels
    assert counts.dtype == np.uint16
    assert counts.max() == 255
    assert (counts == 255).mean() > 0.1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("kind=onaxis", "expected kind off-axis, in-line, field, got 'onaxis'"),
        ("radius_um=0", "radius_um must be above 0, got 0; for no spheres write n=0"),
        ("radius_um=", "radius_um must be above 0"),
        ("radius_um=0.2,x", "radius_um must be numbers from 0 to 1e6, comma between, got '0.2,x'"),
        ("radius_um=0.2,0.3,0.4&index=1.5,1.6", "expected one index or one for each of 3 radii, got 2"),
        ("index=-1", "index must be numbers from 0"),
        ("na=1.4", "na must be below medium_index 1.33, got 1.4"),
        ("pixel_um=0.3", "pixel_um must be at most 0.2435 to hold the field of NA 1.3"),
        ("kind=field&pixel_um=0.13", r"pixel_um must be at most 0.1217 .* \(kind field\), got 0.13"),
        ("width=101", "expected an even width and height of 32 px or more, got 101 x 512"),
        ("carrier=3", "carrier must be two numbers"),
        ("bits=20", "bits must be from 1 to 16, got 20"),
        ("vignetting=1", "vignetting must be from 0 to below 1"),
        ("diffusion=fast", "diffusion must be numbers from 0"),
        ("photons=0", "photons must be above 0"),
        ("margin=300", "a margin of 300 px on each side leaves no room in 512 x 512 px; lower margin"),
        ("n=500&separation_um=20", "expected room for 500 spheres, found it for"),
        ("photonz=3", "unknown option photonz"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_in_a_sentence(options: str, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        open_source(f"sim:hologram?{options}")


def test_samples_too_coarse_for_the_aperture_are_refused() -> None:
    camera = HologramCamera(HologramScene(width=64, height=64, margin=0, n=1, pixel_um=0.13))
    with pytest.raises(ValueError, match=r"samples of the field at most 0\.2435 um apart, got 0\.26 um"):
        camera.field()
    assert camera.field(every=1).shape == (64, 64)


def test_pixels_that_break_the_sampling_law_are_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        open_source(SMALL)
        open_source(SMALL + "&kind=in-line&pixel_um=0.114")
    assert not caplog.records
    open_source(SMALL + "&pixel_um=0.114")
    assert "use pixel_um <= 0.1008 and the default carrier" in caplog.text
    assert HologramScene().carrier_per_um == (2.93, 2.93)
    assert sampling_warning(HologramScene(carrier=(2.0, 2.0))) is not None
    assert sampling_warning(HologramScene(na=0.6)) is None


def test_another_sample_is_named_in_the_refusal() -> None:
    with pytest.raises(SourceError, match=r"expected sim:beads, .*sim:emitters or sim:cells, got 'sim:holograms'"):
        open_source("sim:holograms")
