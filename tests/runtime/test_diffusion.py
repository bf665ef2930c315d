"""The covariance estimator on simulated Brownian motion: true D and position error, within its own error bars."""

import numpy as np
import pytest

from oneframe.runtime.diffusion import common_motion, diffusion, expected_diffusion_um2_s, find_steps

DT_S = 1 / 30


def brownian(seed, *, n_tracks=6, n_frames=60, n_axes=1, d_um2_s=1.0, sigma_um=0.0, blur_steps=1, flow_um=None):
    """Return track, frame and position of tracks that all begin in frame 0; exposures last `blur_steps` / 20 of dt."""
    rng = np.random.default_rng(seed)
    fine = 20 if blur_steps > 1 else 1
    steps = rng.normal(0, np.sqrt(2 * d_um2_s * DT_S / fine), (n_tracks, n_frames * fine, n_axes))
    path = np.cumsum(steps, axis=1).reshape(n_tracks, n_frames, fine, n_axes)[:, :, :blur_steps].mean(axis=2)
    path += rng.normal(0, sigma_um, path.shape)
    if flow_um is not None:
        path += np.cumsum(flow_um)[None, :, None]
    track, frame = np.repeat(np.arange(n_tracks), n_frames), np.tile(np.arange(n_frames), n_tracks)
    return track, frame, path.reshape(-1, n_axes)


def thinned(seed, track, frame, position, share=0.1):
    keep = np.random.default_rng(seed).random(len(track)) >= share
    return track[keep], frame[keep], position[keep]


@pytest.mark.parametrize("sigma_um", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("without_drift", [False, True])
def test_diffusion_and_its_standard_error_over_many_runs(sigma_um, without_drift):
    found = []
    for seed in range(200):
        rows = thinned(seed, *brownian(seed, n_axes=2, sigma_um=sigma_um))
        found.append(diffusion(find_steps(*rows), DT_S, without_drift=without_drift))
    d, error = (np.array([getattr(f, name) for f in found]) for name in ("diffusion_um2_s", "standard_error_um2_s"))
    assert abs(d.mean() - 1) < 4 * d.std() / np.sqrt(len(d))
    assert d.std() == pytest.approx(error.mean(), rel=0.15)
    variance = np.array([f.localization_variance_um2 for f in found])
    assert abs(variance.mean() - sigma_um**2) < 4 * variance.std() / np.sqrt(len(d))
    claimed = np.mean([f.localization_variance_error_um2 for f in found])
    assert variance.std() == pytest.approx(claimed, rel=0.15)


def test_the_standard_error_is_the_papers_for_one_track_without_gaps():
    found = diffusion(find_steps(*brownian(1, n_tracks=1, n_frames=4001, sigma_um=0.1)), DT_S)
    d, n = found.diffusion_um2_s, found.n_steps
    e = found.localization_variance_um2 / (d * DT_S)
    variance = d**2 * ((6 + 4 * e + 2 * e**2) / n + 4 * (1 + e) ** 2 / n**2)
    assert found.standard_error_um2_s == pytest.approx(np.sqrt(variance), rel=1e-3)


def test_motion_blur_is_allowed_for():
    rows = brownian(2, n_tracks=20, n_frames=1000, sigma_um=0.05, blur_steps=20)
    steps = find_steps(*rows)
    blurred = diffusion(steps, DT_S, blur=1 / 6)
    assert blurred.diffusion_um2_s == pytest.approx(1.0, abs=4 * blurred.standard_error_um2_s)
    assert blurred.localization_variance_um2 == pytest.approx(
        0.05**2, abs=4 * blurred.localization_variance_error_um2 + 1e-4
    )
    assert (
        diffusion(steps, DT_S).localization_variance_um2 < 0
    )  # taken for a flash, the blur reads as less than nothing


def test_only_consecutive_frames_of_one_track_make_a_step():
    track = np.array([1, 1, 1, 1, 2, 2, 2])
    frame = np.array([0, 1, 3, 4, 4, 5, 6])
    y_um = np.array([0.0, 1.0, 5.0, 7.0, 100.0, 110.0, np.nan])
    steps = find_steps(track, frame, y_um)
    assert steps.step_um[:, 0].tolist() == [1.0, 2.0, 10.0]
    assert steps.frame.tolist() == [0, 3, 4]
    assert steps.goes_on.tolist() == [False, False, False]
    straight = find_steps(np.zeros(4, int), np.arange(4), np.arange(4.0) ** 2)
    assert straight.goes_on.tolist() == [True, True, False]


def test_a_run_that_analysed_every_third_frame():
    track, frame, position = brownian(3, n_frames=400)
    every_third = find_steps(track, 3 * frame, position, every=3)
    assert len(find_steps(track, 3 * frame, position)) == 0
    found = diffusion(every_third, DT_S)
    assert found.diffusion_um2_s == pytest.approx(1.0, abs=4 * found.standard_error_um2_s)


@pytest.mark.parametrize("flow", ["steady", "shaking"])
def test_what_all_particles_have_in_common_is_noticed_and_drops_out(flow):
    rng = np.random.default_rng(4)
    moved = np.full(400, 0.3) if flow == "steady" else rng.normal(0, 0.3, 400)
    rows = thinned(5, *brownian(6, n_tracks=8, n_frames=400, n_axes=2, sigma_um=0.05, flow_um=moved))
    steps = find_steps(*rows)
    alike, error = common_motion(steps)
    assert alike == pytest.approx(np.mean(moved**2), rel=0.15)
    assert alike > 20 * error
    assert diffusion(steps, DT_S).diffusion_um2_s > 1.5
    found = diffusion(steps, DT_S, without_drift=True)
    assert found.diffusion_um2_s == pytest.approx(1.0, abs=4 * found.standard_error_um2_s)
    assert found.standard_error_um2_s < 0.1


def test_without_drift_two_kinds_in_one_frame_keep_their_own_constants():
    """Subtracting the mean of few particles would mix the two, and halve both."""
    slow, fast = (
        brownian(7, n_tracks=1, n_frames=20_000, d_um2_s=0.5),
        brownian(8, n_tracks=1, n_frames=20_000, d_um2_s=2.0),
    )
    track, frame, position = (np.concatenate(pair) for pair in zip(slow, fast, strict=True))
    track = track + np.repeat([0, 1], 20_000)
    steps = find_steps(track, frame, position)
    for own, true in ((0, 0.5), (1, 2.0)):
        found = diffusion(steps, DT_S, tracks=np.array([own]), without_drift=True)
        assert found.n_tracks == 1
        assert found.diffusion_um2_s == pytest.approx(true, rel=0.08)


def test_particles_that_diffuse_apart_do_not_move_together():
    values = [common_motion(find_steps(*brownian(seed, n_axes=2))) for seed in range(100)]
    z = [alike / error for alike, error in values]
    assert abs(np.mean(z)) < 0.4
    assert 0.75 < np.std(z) < 1.25
    assert np.isnan(common_motion(find_steps(*brownian(1, n_tracks=1)))[0])


def test_the_position_error_is_quoted_only_where_the_steps_tell_it():
    few = diffusion(find_steps(*brownian(9, n_tracks=1, n_frames=801, d_um2_s=0.97)), DT_S)
    assert few.localization_um is None
    assert 0 < few.localization_limit_um < 0.1
    many = diffusion(find_steps(*brownian(9, n_tracks=20, n_frames=2000, sigma_um=0.1)), DT_S)
    assert many.localization_um == pytest.approx(0.1, rel=0.05)


def test_too_few_steps_are_refused():
    with pytest.raises(
        ValueError, match="at least 20 pairs of steps in a row for a diffusion constant, got 4; log more"
    ):
        diffusion(find_steps(*brownian(1, n_tracks=2, n_frames=4)), DT_S)
    none = find_steps(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2)))
    for without_drift in (False, True):
        with pytest.raises(ValueError, match="got 0; log more"):
            diffusion(none, DT_S, without_drift=without_drift)
    assert np.isnan(common_motion(none)[0])


def test_what_makes_no_sense_is_refused():
    track, frame, position = brownian(1)
    with pytest.raises(ValueError, match="expected rows sorted by track"):
        find_steps(track[::-1], frame, position)
    with pytest.raises(ValueError, match="expected as many tracks and frames as positions"):
        find_steps(track, frame, position[1:])
    for dt_s, blur in ((0.0, 0.0), (DT_S, 0.5), (float("nan"), 0.0)):
        with pytest.raises(ValueError, match="expected dt_s above 0 and blur from 0 to 1/4"):
            diffusion(find_steps(track, frame, position), dt_s, blur=blur)


def test_stokes_einstein():
    assert expected_diffusion_um2_s(0.228) == pytest.approx(0.939, abs=0.001)
    half = expected_diffusion_um2_s(0.228, viscosity_mpa_s=2.004, temperature_k=293.0)
    assert half == pytest.approx(expected_diffusion_um2_s(0.456))
    with pytest.raises(ValueError, match="expected radius, temperature and viscosity above 0, got 0 um"):
        expected_diffusion_um2_s(0.0)
