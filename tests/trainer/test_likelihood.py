"""The fit reaches the Cramér-Rao bound, knows its uncertainty, and leaves alone what it does not understand."""

import numpy as np
import pytest
import torch

from oneframe.trainer.crops import orthogonal, refined, sample
from oneframe.trainer.likelihood import LikelihoodFit, Likeness, _Estimate, bound_px
from oneframe.trainer.symmetry import PixelNoise, with_gradients

NOISE = PixelNoise(0.05**2, 0.05**2)
SIZE = 41


def spot(sigma_y, sigma_x, bend=0.0):
    rows, columns = np.indices((SIZE, SIZE)) - SIZE // 2.0
    particle = np.exp(-((rows / sigma_y) ** 2 + (columns / sigma_x) ** 2) / 2) * (1 + bend * np.tanh(rows / 2))
    return particle.astype(np.float32)


def fit_of(particle, *, has_angle, has_hand=False):
    images = with_gradients(particle)[None]
    return LikelihoodFit(Likeness(images, torch.zeros(1, 2), 14.0, NOISE, has_angle, has_hand))


def frames(particle, n, seed=0, gain=1.0, background=0.0):
    """Draw particles at random places and angles in frames of 48 px; return frames and truth (n, 2)."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * torch.pi * torch.rand(n, generator=generator)
    linear = orthogonal(angle, torch.ones(n))
    offset = 4 * torch.rand(n, 2, generator=generator) - 2
    views = sample(refined(particle)[None], linear, -torch.einsum("bij,bj->bi", linear, offset), 48)[:, 0] * gain
    noisy = views + background + NOISE.variance(views).sqrt() * torch.randn(views.shape, generator=generator)
    return noisy, offset + 23.5


def fitted(fit, images, start, sigma_px=9.0):
    rows = [
        torch.stack(fit(image, at[:1], at[1:], torch.tensor([sigma_px])))[:, 0]
        for image, at in zip(images, start, strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize(("sigma_y", "has_angle"), [(2.5, False), (4.5, True)])
def test_reaches_the_bound_and_knows_its_uncertainty(sigma_y, has_angle):
    particle = spot(sigma_y, 2.5)
    images, truth = frames(particle, 300)
    start = truth + 0.2 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    found = fitted(fit_of(particle, has_angle=has_angle), images, start)
    error = found[:, :2] - truth
    bound = bound_px(with_gradients(particle), NOISE, 14.0, has_angle=has_angle)
    assert float(error.square().mean().sqrt()) < 1.1 * bound
    assert 0.63 < float((error.abs() < found[:, 2:]).float().mean()) < 0.73


def test_a_round_particle_is_the_sampled_one_at_every_shift():
    particle = spot(2.5, 2.5)
    fit = fit_of(particle, has_angle=False)
    y, x = (torch.linspace(-1.9, 1.9, 9)[:, None] for _ in range(2))
    shifts = torch.cat([y, x.flip(0)], 1)
    image, jacobian = fit._model(_Estimate(shifts, *[torch.ones_like(y)] * 6), torch.ones_like(y), torch.zeros_like(y))
    size = len(fit.edge)
    expected = sample(with_gradients(particle), torch.eye(2).expand(9, 2, 2), -shifts, size)
    expected = expected[:, :, fit.grid_y.long() + size // 2, fit.grid_x.long() + size // 2]
    np.testing.assert_allclose(image, expected[:, 0], atol=2e-3)
    np.testing.assert_allclose(jacobian[:, 2:], -expected[:, 1:], atol=5e-3)
    np.testing.assert_array_equal(jacobian[:, 1], np.ones((9, len(fit.grid_y))))


def test_brightness_and_background_do_not_move_the_position():
    particle = spot(2.5, 2.5)
    fit = fit_of(particle, has_angle=False)
    calm, truth = frames(particle, 20, seed=2)
    bright = 3 * calm + 0.7
    np.testing.assert_allclose(fitted(fit, bright, truth)[:, :2], fitted(fit, calm, truth)[:, :2], atol=0.01)


def test_a_neighbour_in_the_window_hardly_pulls():
    particle = spot(2.0, 2.0)
    fit = fit_of(particle, has_angle=False)
    images, truth = frames(particle, 40, seed=3)
    rows, columns = np.indices((48, 48))
    crowded = images.clone()
    for image, (y, x) in zip(crowded, truth.tolist(), strict=True):
        image += torch.from_numpy(np.exp(-((rows - y - 9) ** 2 + (columns - x) ** 2) / 8)).float()
    alone, beside = fitted(fit, images, truth)[:, :2] - truth, fitted(fit, crowded, truth)[:, :2] - truth
    assert float(beside.square().mean().sqrt()) < 2 * float(alone.square().mean().sqrt())


def test_where_there_is_nothing_the_position_stays():
    noise = torch.randn((48, 48), generator=torch.Generator().manual_seed(5)) * 1e-4
    found = fitted(fit_of(spot(2.5, 2.5), has_angle=False), noise[None], torch.tensor([[20.3, 25.6]]))
    np.testing.assert_allclose(found[0], [20.3, 25.6, 9.0, 9.0], atol=1e-5)


def test_at_the_frame_edge_the_visible_part_is_fitted():
    particle = spot(2.5, 2.5)
    images, truth = frames(particle, 40, seed=6)
    cut, truth = images[:, 22:, :], truth - torch.tensor([22.0, 0.0])
    found = fitted(fit_of(particle, has_angle=False), cut, truth)
    error = found[:, :2] - truth
    assert float(error[:, 0].square().mean().sqrt()) < 0.3
    assert float((error[:, 0].abs() < 2 * found[:, 2]).float().mean()) > 0.85


def test_a_lopsided_particle_is_reported_at_its_middle_where_the_network_sees_another_point():
    particle = spot(4.5, 2.5, bend=0.9)
    seen = torch.tensor([[2.0, 0.0]])
    fit = LikelihoodFit(Likeness(with_gradients(particle)[None], seen, 14.0, NOISE, has_angle=True, has_hand=False))
    generator = torch.Generator().manual_seed(8)
    angle = 2 * torch.pi * torch.rand(60, generator=generator)
    linear = orthogonal(angle, torch.ones(60))
    views = sample(refined(particle)[None], linear, torch.zeros(60, 2), 48)[:, 0]
    views = views + NOISE.variance(views).sqrt() * torch.randn(views.shape, generator=generator)
    network = 23.5 + torch.einsum("bji,bj->bi", linear, seen.expand(60, 2))
    error = fitted(fit, views, network)[:, :2] - 23.5
    assert float(error.square().mean().sqrt()) < 0.1
