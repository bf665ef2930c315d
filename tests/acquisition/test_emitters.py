from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from oneframe.acquisition import SourceError, open_source
from oneframe.acquisition.emitters import EmitterBlinking, EmitterCamera, EmitterMovie, EmitterScene, EmitterTruth

DARK: dict[str, Any] = {"background_low": 0.0, "background_high": 0.0}
EVER: dict[str, Any] = {"on_frames": 1e9, "repeats": 1.0}
"""Emitters that are always on."""
EMCCD = EmitterCamera(gain=6.67, offset=100.0, read_noise=74.4, em_gain=300.0)


def lived(scene: EmitterScene, n_frames: int, *, independent: bool = False) -> list[EmitterTruth]:
    """All that is lit, the margin included, in each of so many frames."""
    blinking = EmitterBlinking(scene)
    seen = []
    for _ in range(n_frames):
        seen.append(blinking.emitters())
        (blinking.redraw if independent else blinking.advance)()
    return seen


@pytest.mark.parametrize("electrons", [0.0, 3.0, 40.0, 2000.0])
@pytest.mark.parametrize("camera", [EmitterCamera(), EMCCD, EmitterCamera(read_noise=0.0)], ids=["sCMOS", "EMCCD", "0"])
def test_counts_have_the_mean_and_the_variance_of_the_camera(camera: EmitterCamera, electrons: float) -> None:
    counts = camera.expose(np.full((4, 150, 150), electrons), np.random.default_rng(1))
    assert counts.dtype == np.float32
    assert counts.shape == (4, 150, 150)
    light = (counts.astype(float) - camera.offset) / camera.gain
    expected = float(camera.variance(np.array(electrons)))
    standard_error = np.sqrt(expected / counts.size)
    assert abs(light.mean() - electrons) < 4 * standard_error + 1e-4
    # the variance of a variance: 2/n for a Gaussian, more for the gamma law of few electrons
    kurtosis = 2 + 12 / max(electrons, 0.2) if camera.em_gain else 2 + 1 / max(electrons, 0.2)
    assert light.var() == pytest.approx(expected, rel=4 * np.sqrt(kurtosis / counts.size), abs=1e-6)


def test_multiplication_doubles_the_variance_of_shot_noise() -> None:
    rng = np.random.default_rng(2)
    light = np.full((300, 300), 100.0)
    plain = replace(EMCCD, em_gain=0.0, read_noise=0.0).expose(light, rng)
    multiplied = replace(EMCCD, read_noise=0.0).expose(light, rng)
    assert multiplied.var() / plain.var() == pytest.approx(2.0, rel=0.03)
    assert EMCCD.read_photoelectrons == pytest.approx(0.248)
    no_light = EMCCD.expose(np.zeros((200, 200)), rng)
    assert no_light.std() == pytest.approx(6.67 * 74.4 / 300, rel=0.02)


def test_counts_are_rounded_and_end_where_the_camera_does() -> None:
    counts = EmitterCamera.digitised(np.array([[-3.0, 1.4, 1.6], [65535.4, 7e4, 0.0]]))
    assert counts.dtype == np.uint16
    np.testing.assert_array_equal(counts, [[0, 1, 2], [65535, 65535, 0]])


@pytest.mark.parametrize(
    "life",
    [
        {},
        {"on_frames": 0.3},
        {"on_frames": 8.0, "repeats": 1.0},
        {"off_frames": 0.3, "repeats": 4.0},
        {"photons_cv": 0.8, "density_um2": 2.0},
        {"structure": "lines"},
    ],
    ids=str,
)
@pytest.mark.parametrize("independent", [True, False], ids=["redraw", "advance"])
def test_the_truth_has_the_density_asked_for(life: dict[str, Any], independent: bool) -> None:
    scene = EmitterScene(**{"width": 256, "height": 256, "seed": 3, **life})
    blinking = EmitterBlinking(scene)
    counts = []
    for _ in range(150):
        # lines: in the frame and its margin together
        counts.append(blinking.truth().y_px.size if scene.structure == "uniform" else _anywhere(blinking, scene))
        (blinking.redraw if independent else blinking.advance)()
    side_px = 256 + (2 * scene.margin_px if scene.structure == "lines" else 0)
    density_um2 = np.array(counts) / (side_px * scene.pixel_um) ** 2
    n_independent = 150 if independent else 150 / (2 * scene.on_frames + scene.repeats)
    error = scene.density_um2 / np.sqrt(scene.density_um2 * (side_px * 0.1) ** 2 * n_independent)
    assert abs(density_um2.mean() - scene.density_um2) < 4 * error + 0.005 * scene.density_um2
    # the first frame is as any other, not the start of a process
    assert abs(density_um2[0] - scene.density_um2) < 5 * error * np.sqrt(n_independent)


def _anywhere(blinking: EmitterBlinking, scene: EmitterScene) -> int:
    return int(np.count_nonzero(blinking.emitters().photons >= 0.01 * scene.photons))


def test_truth_is_what_lies_in_the_frame_and_sends_a_hundredth_of_the_flux() -> None:
    scene = EmitterScene(width=40, height=60, density_um2=3.0, photons=1000.0)
    movie = EmitterMovie(scene)
    n_outside = n_faint = 0
    for _ in range(40):
        lit, truth = movie.blinking.emitters(), movie.truth()
        inside = (lit.y_px >= -0.5) & (lit.y_px < 59.5) & (lit.x_px >= -0.5) & (lit.x_px < 39.5)
        chosen = inside & (lit.photons >= 10)
        np.testing.assert_array_equal(truth.emitter_id, lit.emitter_id[chosen])
        np.testing.assert_array_equal(truth.x_px, lit.x_px[chosen])
        assert np.unique(lit.emitter_id).size == lit.emitter_id.size
        assert lit.photons.min() > 0
        assert not lit.z_um.any()
        n_outside += np.count_nonzero(~inside)
        n_faint += np.count_nonzero(inside & ~chosen)
        movie.advance()
    assert n_outside > 100
    assert n_faint > 10


def test_light_falls_evenly_also_at_the_border_and_none_is_lost() -> None:
    scene = EmitterScene(width=40, height=40, density_um2=4.0, seed=7, **DARK)
    movie = EmitterMovie(scene)
    total = np.zeros((40, 40))
    for _ in range(2500):
        total += movie.expected()
        movie.redraw()
    per_um2 = total / 2500 / scene.pixel_um**2
    # every blink sends its flux times its length, wherever it is
    sent_per_um2 = scene.blinks_um2 * scene.on_frames * scene.photons
    assert per_um2.mean() == pytest.approx(sent_per_um2, rel=0.03)
    rim = np.ones((40, 40), bool)
    rim[2:-2, 2:-2] = False
    assert per_um2[rim].mean() == pytest.approx(sent_per_um2, rel=0.05)  # without a margin three quarters of it


def test_a_picture_is_its_expectation_and_the_noise_of_the_camera() -> None:
    scene = EmitterScene(width=64, height=48, density_um2=2.0, seed=5)
    movie = EmitterMovie(scene)
    expected = movie.expected()
    assert (expected >= movie.background).all()
    np.testing.assert_array_equal(movie.expected(), expected)
    light = (np.stack([movie.expose() for _ in range(300)]).astype(float) - scene.offset) / scene.gain
    rounding = 1 / 12 / scene.gain**2
    deviation = (light.mean(axis=0) - expected) / np.sqrt((scene.camera.variance(expected) + rounding) / 300)
    assert deviation.std() == pytest.approx(1, abs=0.06)
    assert abs(deviation.mean()) < 0.1
    relative = light.var(axis=0, ddof=1) / (scene.camera.variance(expected) + rounding)
    assert relative.mean() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("repeats", [1.0, 3.0])
def test_a_fluorophore_is_on_for_as_long_as_told_in_all_its_blinks(repeats: float) -> None:
    scene = EmitterScene(photons_cv=0.0, on_frames=1.5, off_frames=2.0, repeats=repeats, seed=2)
    seen = lived(scene, 300)
    emitter_id = np.concatenate([lit.emitter_id for lit in seen])
    photons = np.concatenate([lit.photons for lit in seen])
    first = np.concatenate([np.full(lit.emitter_id.size, frame) for frame, lit in enumerate(seen)])
    assert photons.max() <= scene.photons * (1 + 1e-12)
    light = np.bincount(emitter_id, photons) / scene.photons  # frames
    born = np.full(light.size, -1)
    born[emitter_id[::-1]] = first[::-1]
    whole = light[(born >= 1) & (born < 230)]
    # a geometric number of exponential times is an exponential time: its spread is its mean
    error = 1.5 * repeats / np.sqrt(whole.size)
    assert abs(whole.mean() - 1.5 * repeats) < 4 * error
    assert whole.std() / whole.mean() == pytest.approx(1, abs=4 * np.sqrt(2 / whole.size))


def test_a_fluorophore_that_never_bleaches_is_on_for_its_share_of_the_time() -> None:
    scene = EmitterScene(photons_cv=0.0, on_frames=1.0, off_frames=3.0, repeats=1e9, density_um2=0.3, seed=1)
    seen = lived(scene, 400)
    population = np.unique(np.concatenate([lit.emitter_id for lit in seen])).size
    light = sum(lit.photons.sum() for lit in seen) / scene.photons
    assert light / (400 * population) == pytest.approx(0.25, rel=0.03)


def test_a_fluorophore_keeps_its_place_and_its_flux() -> None:
    scene = EmitterScene(astigmatism_um=0.2, photons_cv=0.5, density_um2=0.2, seed=6, **EVER)
    first, *_, last = lived(scene, 5)
    for name in ("emitter_id", "y_px", "x_px", "z_um", "photons"):
        np.testing.assert_allclose(getattr(last, name), getattr(first, name), rtol=1e-6)
    assert first.photons.mean() == pytest.approx(scene.photons, rel=4 * 0.5 / np.sqrt(first.photons.size))
    assert first.photons.std() / first.photons.mean() == pytest.approx(0.5, rel=0.5)
    assert abs(first.z_um).max() <= 0.4
    assert np.ptp(first.z_um) > 0.5


def test_the_sample_drifts_by_as_much_as_told() -> None:
    scene = EmitterScene(drift_y_px=0.3, drift_x_px=-0.2, density_um2=0.5, seed=6, **EVER)
    first, *_, last = lived(scene, 11)
    np.testing.assert_array_equal(first.emitter_id, last.emitter_id)
    stays = (first.y_px < 100) & (first.x_px > 20)  # what leaves the margin comes in on the other side
    np.testing.assert_allclose((last.y_px - first.y_px)[stays], 3.0, atol=1e-9)
    np.testing.assert_allclose((last.x_px - first.x_px)[stays], -2.0, atol=1e-9)


def test_the_widths_of_an_image_tell_z_as_calibrated() -> None:
    scene = EmitterScene(width=96, height=96, density_um2=0.012, astigmatism_um=0.2, z_range_um=0.5, **DARK)
    movie = EmitterMovie(scene)
    rows = np.arange(96.0)
    z_um = []
    for _ in range(400):
        movie.redraw()
        lit = movie.blinking.emitters()
        centred = (np.abs(lit.y_px - 47.5) < 27) & (np.abs(lit.x_px - 47.5) < 27)
        if lit.y_px.size != 1 or not centred.all():
            continue
        image = movie.expected() / lit.photons[0]
        assert image.sum() == pytest.approx(1, abs=1e-7)
        for axis, centre_px, focus_um in ((1, lit.y_px[0], 0.2), (0, lit.x_px[0], -0.2)):
            profile = image.sum(axis=axis)
            assert profile @ rows == pytest.approx(centre_px, abs=0.003)
            variance = profile @ (rows - centre_px) ** 2 - 1 / 12
            growth = 1 + ((lit.z_um[0] - focus_um) / 0.4) ** 2
            assert variance == pytest.approx(1.3**2 * growth, rel=0.003)
        z_um.append(lit.z_um[0])
    assert len(z_um) > 20
    assert np.ptp(z_um) > 0.6
    assert scene.psf.has_z
    assert scene.margin_px > 2 * EmitterScene().margin_px * 0.95


def test_filaments_are_lines_that_stay() -> None:
    def covered(scene: EmitterScene) -> float:
        """Share of the 50 nm squares of the frame that were ever hit."""
        movie = EmitterMovie(scene)
        hits = np.zeros((256, 256), bool)
        for _ in range(400):
            truth = movie.truth()
            hits[(2 * (truth.y_px + 0.5)).astype(int), (2 * (truth.x_px + 0.5)).astype(int)] = True
            movie.redraw()
        return float(hits.mean())

    assert covered(EmitterScene(structure="lines")) < 0.15
    assert covered(EmitterScene()) > 0.6
    z_um = np.concatenate([lit.z_um for lit in lived(EmitterScene(structure="lines", astigmatism_um=0.2), 50)])
    assert abs(z_um).max() <= 0.4
    assert np.ptp(z_um) > 0.4


def test_the_background_is_smooth_between_its_bounds_and_of_the_seed() -> None:
    background = EmitterMovie(EmitterScene(seed=1)).background
    assert background.min() == pytest.approx(15)
    assert background.max() == pytest.approx(40)
    assert abs(np.diff(background, axis=0)).max() < 1.5
    np.testing.assert_array_equal(background, EmitterMovie(EmitterScene(seed=1, density_um2=3.0)).background)
    assert abs(background - EmitterMovie(EmitterScene(seed=2)).background).max() > 3
    flat = EmitterMovie(EmitterScene(background_low=7.0, background_high=7.0)).background
    np.testing.assert_array_equal(flat, np.full((128, 128), 7.0))
    finer = EmitterMovie(EmitterScene(seed=1, background_um=0.5)).background
    assert abs(np.diff(finer, axis=0)).mean() > 3 * abs(np.diff(background, axis=0)).mean()


def test_no_emitters_is_a_picture_of_the_background() -> None:
    movie = EmitterMovie(EmitterScene(density_um2=0.0))
    np.testing.assert_array_equal(movie.expected(), movie.background)
    assert movie.truth().y_px.size == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("width=4", "the frame must be at least 8 x 8 px, got 4 x 128"),
        ("photons=0", "photons must be above 0, got 0"),
        ("sigma_px=0", "sigma_px must be above 0"),
        ("density_um2=-1", "density_um2 must be a number from 0 to 1e\\+12, got '-1'"),
        ("on_frames=0.001", "on_frames must be 0.01 or more, got 0.001: so short a blink is not seen"),
        ("repeats=0.5", "repeats must be 1 or more, got 0.5: every fluorophore blinks once"),
        ("background_low=50", "expected background_high at or above background_low 50, got 40; set both"),
        ("structure=cells", "expected structure uniform or lines, got 'cells'"),
        ("em_gain=1.5", "em_gain must be 0 .* or from 10 on, where the gamma law holds, got 1.5"),
        ("gain=0", "gain must be above 0 counts per electron"),
        ("seed=x", "seed must be a whole number"),
        ("densty=2", "unknown option densty; known are .*density_um2"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_in_a_sentence(options: str, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        open_source(f"sim:emitters?{options}")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"read_noise": -1.0}, "read_noise must be 0 or more electrons, got -1"),
        ({"gain": float("nan")}, "gain must be above 0 counts per electron, got nan"),
    ],
)
def test_a_camera_that_cannot_be_is_refused(values: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        EmitterCamera(**values)
