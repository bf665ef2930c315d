"""Pairs of near pixels, their loss by hand and what it makes of offsets; the network and the crops as published."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from oneframe.trainer.cellulus_paper import (
    PaperNetwork,
    PaperSettings,
    draw_crops,
    pair_loss,
    sample_pairs,
    trained_offsets,
)
from oneframe.trainer.loop import LoopSettings, learning_rate_factor

TAU, REGULARISER = 10.0, 1e-5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_as_many_pairs_as_the_paper_counts():
    anchors, references = sample_pairs(236, 236, 10, 0.1, generator())
    assert anchors.shape == references.shape == (4665 * 31, 2)
    assert len(torch.unique(anchors, dim=0)) > 0.9 * 4665


@pytest.mark.parametrize("kappa", [10, 7.5, 2])
def test_pairs_lie_within_the_image_and_nearer_than_kappa(kappa):
    anchors, references = sample_pairs(60, 90, kappa, 0.3, generator())
    for pixels in (anchors, references):
        assert (pixels >= 0).all()
        assert (pixels[:, 0] < 60).all()
        assert (pixels[:, 1] < 90).all()
    assert anchors[:, 1].max() > 70  # y and x are not swapped: the long side is covered
    margin = math.ceil(kappa)
    assert anchors.min() == margin
    assert anchors[:, 0].max() == 59 - margin
    step2 = (references - anchors).square().sum(1)
    assert step2.min() >= 1
    assert step2.max() < kappa**2


def test_all_steps_of_the_disc_are_equally_likely():
    anchors, references = sample_pairs(300, 300, 4, 0.3, generator())
    steps, counts = torch.unique(references - anchors, dim=0, return_counts=True)
    assert len(steps) == sum(0 < y * y + x * x < 16 for y in range(-4, 5) for x in range(-4, 5))
    assert counts.min() > 0.9 * counts.float().mean()
    assert counts.max() < 1.1 * counts.float().mean()


def test_the_generator_alone_decides():
    first, again, other = (sample_pairs(50, 60, 5, 0.1, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_pairs_of_a_turned_image_are_the_turned_pairs():
    """The law of the pairs knows no axis: swapped sides give swapped statistics."""
    tall, wide = sample_pairs(120, 60, 6, 0.5, generator(1)), sample_pairs(60, 120, 6, 0.5, generator(2))
    for one, other in zip(tall, wide, strict=True):
        np.testing.assert_allclose(one.float().mean(0), other.float().mean(0).flip(0), atol=4)
        np.testing.assert_allclose(one.float().std(0), other.float().std(0).flip(0), atol=4)


def test_crops_too_small_for_a_pair_are_refused():
    with pytest.raises(ValueError, match="take a larger crop"):
        sample_pairs(20, 200, 10, 0.1, generator())
    with pytest.raises(ValueError, match="kappa above 1"):
        sample_pairs(20, 200, 1, 0.1, generator())


def test_known_losses():
    anchors, references = torch.tensor([[5, 5]]), torch.tensor([[5, 8]])
    offsets = torch.zeros(1, 2, 12, 12)
    none = pair_loss(offsets, anchors, references, TAU, 0)
    assert float(none) == pytest.approx(1 - math.exp(-9 / 10))
    offsets[0, 1, 5, 5] = 3  # the anchor points at its partner
    assert float(pair_loss(offsets, anchors, references, TAU, 0)) == 0
    assert float(pair_loss(offsets, anchors, references, TAU, 0.01)) == pytest.approx(0.03)
    offsets[0, 0, 5, 8] = 4  # which points 4 px down
    assert float(pair_loss(offsets, anchors, references, TAU, 0)) == pytest.approx(1 - math.exp(-16 / 10))


def test_crops_may_share_their_pairs_or_have_their_own():
    offsets = torch.randn(3, 2, 40, 50, generator=generator())
    pairs = [sample_pairs(40, 50, 5, 0.05, generator(seed)) for seed in range(3)]
    own = pair_loss(offsets, *(torch.stack(each) for each in zip(*pairs, strict=True)), TAU, REGULARISER)
    apart = [pair_loss(offsets[k : k + 1], *pairs[k], TAU, REGULARISER) for k in range(3)]
    torch.testing.assert_close(own, torch.stack(apart).mean())
    shared = pair_loss(offsets, *pairs[0], TAU, REGULARISER)
    apart = [pair_loss(offsets[k : k + 1], *pairs[0], TAU, REGULARISER) for k in range(3)]
    torch.testing.assert_close(shared, torch.stack(apart).mean())


def test_ends_are_what_counts_not_where_they_are():
    """A common shift of all offsets leaves the loss; a swap of the axes of everything does too."""
    offsets = torch.randn(1, 2, 40, 50, generator=generator())
    anchors, references = sample_pairs(40, 50, 5, 0.05, generator())
    loss = pair_loss(offsets, anchors, references, TAU, 0)
    shift = torch.tensor([3.0, -2.0])[:, None, None]
    torch.testing.assert_close(pair_loss(offsets + shift, anchors, references, TAU, 0), loss)
    turned = pair_loss(offsets.flip(1).transpose(2, 3), anchors.flip(1), references.flip(1), TAU, 0)
    torch.testing.assert_close(turned, loss)


def test_only_anchors_are_pulled():
    offsets = torch.zeros(1, 2, 12, 12, requires_grad=True)
    pair_loss(offsets, torch.tensor([[5, 5]]), torch.tensor([[5, 8]]), TAU, REGULARISER).backward()
    (gradient,) = offsets.grad
    assert gradient[1, 5, 5] == pytest.approx(-2 * 3 / TAU * math.exp(-9 / 10))  # downhill is towards +x
    gradient[1, 5, 5] = 0
    assert not gradient.any()  # no NaN either: the offset is 0


def test_pixels_of_an_object_come_together():
    """Free offsets, fresh pairs within two squares: the ends of each square shrink to one spot near its middle."""
    inside, chance = torch.zeros(40, 70, dtype=torch.bool), generator()
    inside[12:28, 12:28], inside[12:28, 42:58] = True, True
    offsets = torch.zeros(1, 2, 40, 70, requires_grad=True)
    optimiser = torch.optim.Adam([offsets], lr=0.3)
    losses = []
    for _ in range(80):
        anchors, references = sample_pairs(40, 70, 8, 0.3, chance)
        kept = inside[anchors[:, 0], anchors[:, 1]] & inside[references[:, 0], references[:, 1]]
        optimiser.zero_grad()
        loss = pair_loss(offsets, anchors[kept], references[kept], TAU, REGULARISER)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    ends = offsets[0].detach() + torch.stack(torch.meshgrid(torch.arange(40), torch.arange(70), indexing="ij"))
    for columns, middle in (slice(12, 28), 19.5), (slice(42, 58), 49.5):
        square = ends[:, 12:28, columns].flatten(1)
        assert square.std(1).max() < 0.6  # px; 4.6 before
        np.testing.assert_allclose(square.mean(1), [19.5, middle], atol=1)


def network(features: int = 6, n_channels: int = 1) -> PaperNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PaperNetwork(features, n_channels)


@pytest.mark.parametrize(("features", "parameters"), [(24, 184_410), (64, 759_810)])
def test_as_many_parameters_as_published(features, parameters):
    assert sum(each.numel() for each in PaperNetwork(features).parameters()) == parameters


@pytest.mark.parametrize("n_channels", [1, 2])
def test_valid_convolutions_lose_16_px(n_channels):
    assert network(n_channels=n_channels)(torch.zeros(2, n_channels, 252, 60)).shape == (2, 2, 236, 44)


@pytest.mark.parametrize(("height", "width"), [(40, 50), (41, 50), (40, 51), (41, 51), (10, 11), (18, 64)])
@torch.no_grad()
def test_any_size_gets_offsets_everywhere_and_inside_they_are_the_valid_ones(height, width):
    image, unet = torch.randn(1, 1, height, width, generator=generator()), network()
    whole = unet.whole(image)
    assert whole.shape == (1, 2, height, width)
    if min(height, width) > 20:
        valid = unet(image)
        inside = whole[..., 8 : 8 + valid.shape[2], 8 : 8 + valid.shape[3]]
        torch.testing.assert_close(inside, valid)


@torch.no_grad()
def test_an_offset_knows_18_px_at_most():
    image, unet = torch.randn(1, 1, 60, 60, generator=generator()), network()
    changed = image.clone()
    changed[..., 30, 30] += 5
    moved = torch.nonzero((unet.whole(image) - unet.whole(changed)).abs().amax(1)[0] > 0)
    assert (moved.min(0).values >= 30 - 9).all()
    assert (moved.max(0).values <= 30 + 9).all()


@torch.no_grad()
def test_moved_by_the_grid_of_the_pooling_offsets_move_along():
    image, unet = torch.randn(1, 1, 60, 70, generator=generator()), network()
    torch.testing.assert_close(unet(image[..., 4:, 6:]), unet(image)[..., 4:, 6:])


def test_the_loss_falls_on_one_frame():
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    image = ((y % 24 - 12) ** 2 + (x % 24 - 12) ** 2 < 81).float()[None]
    settings = PaperSettings(features=8, crops=2, crop_px=64, kappa_px=8, density=0.1)
    unet, chance = network(8), generator()
    optimiser = torch.optim.Adam(unet.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        anchors, references = sample_pairs(48, 48, settings.kappa_px, settings.density, chance)
        offsets = unet(draw_crops(image, settings, chance))
        optimiser.zero_grad()
        loss = pair_loss(offsets, anchors, references, settings.tau, settings.regulariser)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < np.mean(losses[:5]) - 0.05


STILL = PaperSettings(crops=5, crop_px=64, jitter_px=0, rotation_rad=0, scale=(1, 1))


def test_crops_that_are_not_bent_are_cut_out():
    y, x = torch.meshgrid(torch.arange(100.0), torch.arange(140.0), indexing="ij")
    crops = draw_crops(torch.stack([y + 1, x + 1]), STILL, generator())
    assert crops.shape == (5, 2, 64, 64)
    step = crops - crops[:, :, :1, :1]
    line = torch.arange(64.0)
    torch.testing.assert_close(step[:, 0], line[:, None].expand(5, 64, 64), atol=1e-3, rtol=0)
    torch.testing.assert_close(step[:, 1], line.expand(5, 64, 64), atol=1e-3, rtol=0)
    assert len(torch.unique(crops[:, 1, 0, 0])) == 5


def test_crops_are_turned_scaled_and_bent():
    y, x = torch.meshgrid(torch.arange(400.0), torch.arange(400.0), indexing="ij")
    ramps = torch.stack([y, x])  # what a crop shows is where it was taken from
    turned = draw_crops(ramps, replace(STILL, crops=40, rotation_rad=math.pi / 2, scale=(0.9, 1.1)), generator())
    along = (turned[:, :, 32, 42] - turned[:, :, 32, 22]) / 20
    length, angle = along.norm(dim=1), torch.atan2(-along[:, 0], along[:, 1]).abs()
    assert (length > 1 / 1.1 - 1e-3).all()
    assert (length < 1 / 0.9 + 1e-3).all()
    assert length.std() > 0.03
    assert angle.min() < 0.2
    assert 1.3 < angle.max() <= math.pi / 2
    bent = draw_crops(ramps, replace(STILL, crops=40, jitter_px=2, control_px=32), generator())
    straight = draw_crops(ramps, replace(STILL, crops=40, jitter_px=0, control_px=32), generator())
    assert (bent - straight)[:, :, 0, 0].std() == pytest.approx(2, abs=0.5)  # at a control point


def test_empty_crops_are_drawn_again_and_small_frames_are_reflected():
    image = torch.full((1, 400, 400), -1.0)
    image[0, 100:140, 100:140] = 1
    crops = draw_crops(image, replace(STILL, crops=8), generator())
    assert (crops.flatten(1).amax(1) > 0).all()
    assert draw_crops(-image.abs(), replace(STILL, crops=2), generator()).shape == (2, 1, 64, 64)  # none has any light
    small = torch.rand(1, 30, 90, generator=generator()) + 0.1
    crops = draw_crops(small, replace(STILL, crops=2), generator())
    assert crops.min() > 0
    assert torch.equal(crops, draw_crops(small, replace(STILL, crops=2), generator()))


@pytest.mark.parametrize("crops", [2, 1])
def test_same_seed_same_offsets_and_the_published_schedule_keeps_the_last_weights(crops):
    image = torch.rand(1, 70, 60, generator=generator())
    settings = PaperSettings(features=4, crops=crops, crop_px=44, kappa_px=5, n_steps=3)
    losses = []

    def trained(seed, schedule=settings.schedule):
        unet = trained_offsets(image, settings, schedule, seed, on_progress=lambda told: losses.append(told.loss))
        return torch.cat([each.detach().flatten() for each in unet.parameters()])

    first = trained(0)
    assert torch.equal(first, trained(0))
    assert not torch.equal(first, trained(1))
    assert 0.5 < losses[0] < 1
    longest = (first - trained(0, LoopSettings(1, 1e-12))).abs().max()
    assert 2 * 4e-5 < longest < 3.01 * 4e-5  # three steps of Adam, of which no averaging takes any


def test_the_rate_falls_where_it_is_told_to():
    def rate(step, settings):
        return settings.learning_rate * learning_rate_factor(step, settings.schedule)

    assert rate(99_999, PaperSettings()) == 4e-5
    stepped = PaperSettings(n_steps=50, drops=(0.4, 0.6))
    rates = [rate(step, stepped) for step in (0, 19, 20, 29, 30, 49)]
    np.testing.assert_allclose(rates, [4e-5, 4e-5, 4e-6, 4e-6, 4e-7, 4e-7])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"features": 0}, "features must be 1 or more"),
        ({"crop_px": 30}, "crop_px must be 38 or more"),
        ({"crop_px": 65}, "crop_px must be even"),
        ({"tau": 0}, "tau must be above 0"),
        ({"scale": (1.1, 0.9)}, "a scale from low to high"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        PaperSettings(**wrong)
