"""Crops hold the light, the noise and the truth that were asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from oneframe.acquisition.emitters import LEAST_LIGHT, EmitterCamera
from oneframe.acquisition.psf import GaussianPsf, Width, render
from oneframe.trainer.emitter_crops import EmitterCrops, EmitterWorld, draw_crops

CAMERA = EmitterCamera(gain=1.34, offset=100.0, read_noise=1.6)
ASTIGMATIC = GaussianPsf(Width(1.3, 0.25, 0.4), Width(1.3, -0.25, 0.4), (-0.4, 0.4))
WORLD = EmitterWorld(GaussianPsf.flat(1.3), CAMERA, 3000.0, (20.0, 20.0), (0.01, 0.01))


def drawn(world: EmitterWorld, n_crops: int = 64, size_px: int = 32, seed: int = 0) -> EmitterCrops:
    return draw_crops(world, n_crops, size_px, np.random.default_rng(seed))


def electrons(world: EmitterWorld, crops: EmitterCrops) -> np.ndarray:
    return (crops.counts.numpy() - world.camera.offset) / world.camera.gain


def test_the_light_of_the_emitters_is_all_there():
    world = replace(WORLD.exactly(0.01), background=(5.0, 5.0))
    crops = drawn(world, 200, 40)
    y, x = crops.position[:, :2].T
    # only crops whose emitters all lie well inside; what lies outside by less than 5 sigma shines in from there
    light = (electrons(world, crops)[:, 0] - crops.background.numpy()).sum((1, 2))
    true = np.bincount(crops.crop, crops.photons, minlength=200)
    assert light.sum() == pytest.approx(true.sum(), rel=0.03)  # what leaves over the border comes in over it
    image = np.zeros((200, 40, 40))
    for k in range(200):
        mine = crops.crop == k
        sigma = np.full(mine.sum(), 1.3)
        image[k] = render(y[mine], x[mine], crops.photons[mine], sigma, sigma, (40, 40))
    middle = np.s_[:, 8:-8, 8:-8]
    rest = (electrons(world, crops)[:, 0] - crops.background.numpy() - image)[middle]
    assert np.abs(rest.mean()) < 0.1  # photoelectrons per pixel, of some 30
    assert np.var(rest) == pytest.approx((image[middle] + 5 + 1.6**2 + 1 / 12 / 1.34**2).mean(), rel=0.03)


def test_as_many_emitters_as_asked_for_anywhere_in_the_crop():
    crops = drawn(replace(WORLD, density_px=(0.02, 0.02)), 300)
    n = np.bincount(crops.crop, minlength=300)
    assert n.mean() == pytest.approx(0.02 * 32**2, rel=0.06)  # those with 1 % of the light: 2 % fewer
    assert n.var() == pytest.approx(n.mean(), rel=0.3)
    y, x, z = crops.position.T
    for each in (y, x):
        assert each.min() >= -0.5
        assert each.max() < 31.5
        assert np.histogram(each, 4, (-0.5, 31.5))[0] / len(each) == pytest.approx([0.25] * 4, abs=0.025)
    assert (z == 0).all()
    assert crops.photons.min() >= LEAST_LIGHT * WORLD.photons
    assert (np.diff(crops.crop) >= 0).all()


def test_densities_are_even_on_a_logarithmic_scale():
    n = np.bincount(drawn(replace(WORLD, density_px=(0.01, 0.16)), 400).crop, minlength=400)
    assert np.median(n) == pytest.approx(0.04 * 32**2, rel=0.2)
    assert np.mean(n < 0.02 * 32**2) == pytest.approx(0.25, abs=0.08)


def test_photons_follow_flux_and_blinking():
    crops = drawn(replace(WORLD.exactly(0.02), on_frames=(1e6, 1e6)), 200)
    assert crops.photons.mean() == pytest.approx(3000, rel=0.02)  # always on: the flux itself
    assert crops.photons.std() == pytest.approx(900, rel=0.05)
    # blinks of one frame's mean length that touch a frame are on for half of it on average: 1 / (1 + 1)
    blinking = drawn(replace(WORLD.exactly(0.02), on_frames=(1.0, 1.0)), 200)
    assert blinking.photons.mean() == pytest.approx(0.51 * 3000, rel=0.04)


def test_emitters_outside_shine_in_and_are_not_told():
    world = replace(WORLD.exactly(0.03), background=(1.0, 1.0))
    crops = drawn(world, 400, 16)
    light = electrons(world, crops)[:, 0].mean(0) - 1
    inner = light[5:-5, 5:-5].mean()
    assert light[0].mean() == pytest.approx(inner, rel=0.1)  # else half of it would lack
    assert light[:, -1].mean() == pytest.approx(inner, rel=0.1)


def test_the_same_generator_gives_the_same_crops():
    world = replace(WORLD, psf=ASTIGMATIC, n_frames=3)
    a, b, other = drawn(world, 8, seed=1), drawn(world, 8, seed=1), drawn(world, 8, seed=2)
    assert torch.equal(a.counts, b.counts)
    assert torch.equal(a.background, b.background)
    np.testing.assert_array_equal(a.position, b.position)
    assert not torch.equal(a.counts, other.counts)
    assert a.counts.dtype == a.background.dtype == torch.float32
    assert a.counts.shape == (8, 3, 32, 32)
    assert a.background.shape == (8, 32, 32)
    assert torch.equal(a.counts, a.counts.round())
    assert len(a) == 8


def test_z_changes_the_widths_as_calibrated():
    one_z = replace(ASTIGMATIC, z_range_um=(0.2499, 0.2501))  # y in focus, x far from it
    world = replace(WORLD.exactly(0.0008), psf=one_z, background=(1.0, 1.0), photons=1e5)
    crops = drawn(world, 1500)
    alone = [k for k in range(1500) if (crops.crop == k).sum() == 1]
    spread = []
    for k in alone:
        y, x, z = crops.position[crops.crop == k][0]
        image = electrons(world, crops)[k, 0] - crops.background[k].numpy()
        if 13 < y < 18 and 13 < x < 18 and crops.photons[crops.crop == k][0] > 2e4:
            assert z == pytest.approx(0.25, abs=1e-3)
            rows, columns = np.indices(image.shape)
            light = np.where(np.hypot(rows - y, columns - x) < 12, image, 0)
            spread.append([(light * (axis - c) ** 2).sum() / light.sum() for axis, c in ((rows, y), (columns, x))])
    assert len(spread) > 3
    wide = 1.3 * np.sqrt(1 + (0.5 / 0.4) ** 2)
    variance = np.array([1.3, wide]) ** 2 + 1 / 12
    np.testing.assert_allclose(np.median(spread, 0), variance, rtol=0.08)
    assert drawn(replace(world, psf=ASTIGMATIC, density_px=(0.02, 0.02))).position[:, 2].std() > 0.2


def test_a_register_doubles_the_variance():
    dark = replace(WORLD.exactly(1e-6), background=(50.0, 50.0))
    for em_gain, excess in ((0.0, 1), (300.0, 2)):
        world = replace(dark, camera=EmitterCamera(10.0, 200.0, 0.0, em_gain))
        rest = electrons(world, drawn(world))[:, 0] - 50
        assert rest.mean() == pytest.approx(0, abs=0.2)
        assert rest.var() == pytest.approx(excess * 50, rel=0.03)


def test_background_stays_smooth_and_between_its_limits():
    world = replace(WORLD, background=(15.0, 40.0), background_spread=0.0)
    background = drawn(world, 200).background.numpy()
    assert background.min() >= 15
    assert background.max() <= 40
    assert background.mean((1, 2)).std() > 3  # crops differ
    assert np.abs(np.diff(background, axis=1)).max() < 25 * 3 / 31 * 2  # three knots over the crop, steepest midway
    spread = drawn(replace(world, background_spread=0.4), 200).background.numpy()
    assert spread.min() < 15
    assert spread.max() > 40
    assert spread.min() > 15 * np.exp(-0.4) - 0.01


def test_gain_and_offset_are_as_wrong_as_they_may_be():
    dark = replace(WORLD.exactly(1e-6), background=(100.0, 100.0), gain_spread=0.1, offset_spread=5.0)
    level = electrons(dark, drawn(dark, 300))[:, 0].mean((1, 2))
    low, high = 100 * np.exp(-0.1) - 5, 100 * np.exp(0.1) + 5
    assert low - 1 < level.min() < low + 5
    assert high - 5 < level.max() < high + 1


def test_the_truth_of_several_frames_is_that_of_the_last():
    world = replace(WORLD.exactly(0.004), n_frames=3, background=(5.0, 5.0))
    crops = drawn(world, 300, 24)
    light = electrons(world, crops) - crops.background.numpy()[:, None]
    true = np.bincount(crops.crop, crops.photons, minlength=300)
    total = light.sum((2, 3))
    match = [np.corrcoef(total[:, f], true)[0, 1] for f in range(3)]
    assert match[2] > 0.9
    assert match[0] < match[1] < match[2]
    # all frames are alike in what they show on average: the blinking is stationary
    np.testing.assert_allclose(total.mean(0), true.mean(), rtol=0.12)


def test_blinks_tie_frames_together_as_long_as_they_last():
    def tie(on_frames: float) -> float:
        world = replace(WORLD.exactly(0.01), n_frames=2, on_frames=(on_frames, on_frames), photons_cv=1e-3)
        light = electrons(world, drawn(world, 300, 24))[..., 4:-4, 4:-4]
        light = light.reshape(300, 2, 8, 2, 8, 2).sum((3, 5))  # less noise
        return float(np.corrcoef(light[:, 0].ravel(), light[:, 1].ravel())[0, 1])

    # covariance of the parts of neighbouring frames of a stationary exponential blink over its variance
    def expected(on: float) -> float:
        decay = np.exp(-1 / on)
        return float(on**2 * (1 - decay) ** 2 / (2 * on * (1 - on * (1 - decay))))

    for on_frames in (0.3, 1.0, 4.0):
        assert tie(on_frames) == pytest.approx(expected(on_frames), abs=0.06)
    assert tie(1e6) > 0.97


def test_some_crops_lack_their_first_frames_as_at_the_start_of_a_run():
    world = replace(WORLD, n_frames=3, background=(10.0, 40.0), missing_share=0.5)
    assert world.missing == np.rint(100 + 1.34 * 20)
    flat = drawn(world, 200).counts.numpy().reshape(200, 3, -1).std(-1) == 0
    assert not flat[:, 2].any()
    assert flat[:, 0].mean() == pytest.approx(0.5, abs=0.1)
    assert flat[:, 1].mean() == pytest.approx(0.25, abs=0.1)
    assert flat[flat[:, 1], 0].all()  # always the oldest
    counts = drawn(world, 200).counts.numpy()
    assert (counts[flat] == world.missing).all()
    assert not (drawn(world.exactly(0.01), 50).counts.numpy().std((2, 3)) == 0).any()


def test_exactly_keeps_what_was_read_off_the_frame():
    world = replace(WORLD, on_frames=(2.0, 4.5), n_frames=2).exactly(0.05)
    assert world.density_px == (0.05, 0.05)
    assert world.on_frames == pytest.approx((3.0, 3.0))
    assert (world.photons, world.background, world.camera, world.n_frames) == (3000.0, (20.0, 20.0), CAMERA, 2)
    assert world.psf_spread == world.photons_spread == world.background_spread == world.gain_spread == 0
    assert world.offset_spread == world.missing_share == 0
