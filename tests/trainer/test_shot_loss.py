"""Emitters are assigned one to one at the least cost, and what is claimed twice is paid for."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from oneframe.acquisition.emitters import EmitterCamera
from oneframe.acquisition.psf import GaussianPsf, Width
from oneframe.trainer.emitter_crops import EmitterCrops, EmitterWorld, draw_crops
from oneframe.trainer.shot_loss import VALID_PX, assigned, candidates, set_loss, shot_loss, sinkhorn, transported
from oneframe.trainer.shot_network import CELL_PX, Claims, ShotNetwork, ShotSettings

ASTIGMATIC = GaussianPsf(Width(1.3, 0.25, 0.4), Width(1.3, -0.25, 0.4), (-0.4, 0.4))
WORLD = EmitterWorld(GaussianPsf.flat(1.3), EmitterCamera(), 3000.0, (20.0, 20.0), (0.01, 0.05))
CELLS = 16
SURE, QUIET = 4.0, -5.0
"""Logits of a confident claim and of a silent one."""


def network_of(world: EmitterWorld = WORLD, **changed: object) -> ShotNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ShotNetwork(world, replace(ShotSettings(channels=8, blocks=1), **changed))


def crops_of(yx_px: list[tuple[float, float]], *, z_um: float = 0.0, crop: list[int] | None = None) -> EmitterCrops:
    """Crops of 32 px with known emitters of 3000 photons on a background of 20."""
    where = np.array(crop if crop is not None else [0] * len(yx_px), np.intp)
    n = 1 + where.max(initial=0)
    position = np.column_stack([np.array(yx_px).reshape(-1, 2), np.full(len(yx_px), z_um)])
    flat = torch.full((n, 2 * CELLS, 2 * CELLS), 20.0)
    return EmitterCrops(flat[:, None].clone(), flat, where, position, np.full(len(yx_px), 3000.0))


def silence(n: int = 1) -> Claims:
    """Nobody claims anything; the background is right and the sigmas are 0.1 px and 0.1 of the photons."""
    at = torch.zeros(n, CELLS, CELLS)
    cells = CELL_PX * torch.arange(CELLS) + 0.5
    y, x = cells[:, None] + at, cells + at
    sigma = at + np.log(0.1)
    return Claims(at + QUIET, y, x, at + 3000, at + 20, sigma.clone(), sigma.clone(), sigma.clone())


def claim(claims: Claims, row: int, column: int, y_px: float, x_px: float, *, logit: float = SURE) -> Claims:
    """One cell of the first crop claims an emitter; returns a copy."""
    claims = Claims(*(None if each is None else each.clone() for each in claims))
    for values, value in ((claims.logit, logit), (claims.y_px, y_px), (claims.x_px, x_px)):
        values[0, row, column] = value
    return claims


def test_cells_may_claim_what_lies_near_their_centre():
    rng = np.random.default_rng(0)
    crops = crops_of(list(rng.uniform(-0.5, 31.5, (200, 2))), crop=sorted(rng.integers(0, 3, 200)))
    emitter, cell = candidates(crops, (CELLS, CELLS))
    centre = CELL_PX * np.arange(CELLS) + 0.5
    expected = {
        (e, (crops.crop[e] * CELLS + r) * CELLS + c)
        for e, (y, x, _) in enumerate(crops.position)
        for r in np.flatnonzero(np.abs(centre - y) < VALID_PX)
        for c in np.flatnonzero(np.abs(centre - x) < VALID_PX)
    }
    assert set(zip(emitter.tolist(), cell.tolist(), strict=True)) == expected
    assert len(emitter) == len(expected)
    n = np.bincount(emitter, minlength=200)
    assert n.min() >= 1  # no emitter is left out, not even at the border
    assert n.max() == 4
    assert n.mean() == pytest.approx(2.25, abs=0.25)


@pytest.mark.parametrize("seed", range(8))
def test_the_assignment_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    n_emitters, n_cells = 4, 5
    pairs = [(e, c) for e in range(n_emitters) for c in range(n_cells) if rng.random() < 0.5]
    emitter, cell = (np.array(each, np.intp) for each in zip(*pairs, strict=True))
    cost = rng.normal(0, 3, len(pairs))
    price = dict(zip(pairs, cost, strict=True))

    best = (0, np.inf)  # most emitters first, then the least cost
    for choice in itertools.product([None, *range(n_cells)], repeat=n_emitters):
        taken = [c for c in choice if c is not None]
        if len(set(taken)) == len(taken) and all(c is None or (e, c) in price for e, c in enumerate(choice)):
            total = sum(price[e, c] for e, c in enumerate(choice) if c is not None)
            best = min(best, (-len(taken), total))
    kept = assigned(emitter, cell, cost, np.zeros(n_emitters, np.intp))
    assert -kept.sum() == best[0]
    assert cost[kept].sum() == pytest.approx(best[1])
    assert len(set(emitter[kept])) == len(set(cell[kept])) == kept.sum()


def test_crops_are_assigned_on_their_own_and_none_is_fine():
    none = np.empty(0, np.intp)
    assert assigned(none, none, np.empty(0), none).shape == (0,)
    emitter, cell = np.array([0, 1, 1]), np.array([3, 12, 13])
    kept = assigned(emitter, cell, np.array([5.0, 2.0, 1.0]), np.array([0, 1]))
    np.testing.assert_array_equal(kept, [True, False, True])


def test_silence_about_nothing_costs_next_to_nothing():
    for matching in ("exact", "sinkhorn", "published"):
        loss = set_loss(network_of(matching=matching), silence(), crops_of([]))
        assert float(loss) == pytest.approx(16 * np.log1p(np.exp(QUIET)), rel=1e-4)


@pytest.mark.parametrize("matching", ["exact", "sinkhorn", "published"])
def test_better_claims_cost_less(matching):
    network, crops = network_of(matching=matching), crops_of([(10.5, 12.5), (21.0, 7.0)])
    right = claim(claim(silence(), 5, 6, 10.5, 12.5), 10, 3, 21.0, 7.0)
    least = set_loss(network, right, crops)
    wrong = {
        "missed": claim(right, 5, 6, 10.5, 12.5, logit=QUIET),
        "unsure": claim(right, 5, 6, 10.5, 12.5, logit=0.0),
        "shifted": claim(right, 5, 6, 10.7, 12.5),
        "shifted along x": claim(right, 5, 6, 10.5, 12.7),
        "photons": right._replace(photons=1.2 * right.photons),
        "background": right._replace(background=right.background + 5),
        "too sure of y": right._replace(log_sigma_y=right.log_sigma_y - 1, y_px=right.y_px + 0.15),
        "not sure of x": right._replace(log_sigma_x=right.log_sigma_x + 1),
    }
    for name, claims in wrong.items():
        assert set_loss(network, claims, crops) > least + 1e-3, name


def test_a_sigma_is_best_at_the_error_itself():
    network, crops = network_of(), crops_of([(10.5, 12.5)])
    right = claim(silence(), 5, 6, 10.5 + 0.3, 12.5)
    losses = [
        float(set_loss(network, right._replace(log_sigma_y=torch.full((1, CELLS, CELLS), np.log(sigma))), crops))
        for sigma in (0.15, 0.25, 0.3, 0.35, 0.6)
    ]
    assert np.argmin(losses) == 2


def test_z_counts_where_it_is_told():
    network = network_of(replace(WORLD, psf=ASTIGMATIC))
    crops = crops_of([(10.5, 12.5)], z_um=0.2)
    flat = claim(silence(), 5, 6, 10.5, 12.5)
    losses = [
        float(set_loss(network, flat._replace(z_um=flat.logit * 0 + z_um, log_sigma_z=flat.log_sigma_y), crops))
        for z_um in (0.1, 0.2, 0.3)
    ]
    assert losses[1] < losses[0]
    assert losses[0] == pytest.approx(losses[2])
    # (0.1 um of 0.4) / 0.1 = 2.5 sigma
    assert losses[0] - losses[1] == pytest.approx(0.5 * 2.5**2 * 16 / CELLS**2, rel=1e-3)


def duplicated(matching: str) -> tuple[float, float]:
    """What a second confident claim of each of three emitters adds, and what it must: its cross entropy of silence."""
    network = network_of(matching=matching)
    at = [(9.5, 9.5), (15.5, 21.5), (25.5, 5.5)]  # midway between cells: four may claim each
    once = silence()
    for y, x in at:
        once = claim(once, int(y) // 2, int(x) // 2, y, x)
    twice = once
    for y, x in at:
        twice = claim(twice, int(y) // 2 + 1, int(x) // 2, y, x)
    crops = crops_of(at)
    added = float(set_loss(network, twice, crops) - set_loss(network, once, crops))
    silent = np.log1p(np.exp(SURE)) - np.log1p(np.exp(QUIET))
    return added, 3 * silent * 16 / CELLS**2


@pytest.mark.parametrize("matching", ["exact", "sinkhorn"])
def test_a_second_confident_claim_is_paid_for_in_full(matching):
    added, expected = duplicated(matching)
    assert added == pytest.approx(expected, rel=0.02)


def test_a_second_confident_claim_pays_by_the_published_iterations():
    added, _ = duplicated("published")
    assert added < 0  # each claim is matched in full, to an emitter that another one has already


@pytest.mark.parametrize("claims_last", [False, True])
def test_the_plan_keeps_its_marginals(claims_last):
    rng = np.random.default_rng(0)
    cost = rng.normal(0, 3, (7, 40))
    mass = np.array([1 / 40] * 6 + [34 / 40])
    plan = sinkhorn(cost, mass, 0.03, 1000, claims_last=claims_last)
    assert plan.shape == (7, 40)
    assert (plan >= 0).all()
    exact, other = (plan.sum(0), plan.sum(1)) if claims_last else (plan.sum(1), plan.sum(0))
    np.testing.assert_allclose(exact, 1 / 40 if claims_last else mass, rtol=1e-6)
    wrong = np.abs(other - (mass if claims_last else 1 / 40)).sum()
    assert wrong < 2e-3
    assert plan.sum() == pytest.approx(1)


def test_a_narrow_plan_is_the_assignment():
    crops = draw_crops(WORLD, 4, 32, np.random.default_rng(5))
    emitter, cell = candidates(crops, (CELLS, CELLS))
    rng = np.random.default_rng(0)
    cost = rng.normal(0, 3, len(emitter))
    silent = rng.uniform(0, 0.2, 4 * CELLS**2)
    best = assigned(emitter, cell, cost - silent[cell], crops.crop)
    share = transported(emitter, cell, cost, silent, crops.crop, CELLS**2, published=False)
    assert best.sum() > 20
    assert np.mean((share > 0.5) == best) > 0.95
    assert np.bincount(emitter, share).max() < 1.001
    # two emitters that only one cell may claim: it takes many more iterations to drive one of them out
    assert np.mean(np.bincount(cell, share)[np.unique(cell)] > 1.05) < 0.05


@pytest.mark.parametrize("matching", ["exact", "sinkhorn", "published"])
@pytest.mark.parametrize("psf", [WORLD.psf, ASTIGMATIC], ids=["flat", "astigmatic"])
def test_all_weights_learn(matching, psf):
    world = replace(WORLD, psf=psf)
    network = network_of(world, matching=matching, refinements=1)
    with torch.no_grad():
        network.correction.weight.add_(0.01)
    loss = shot_loss(network, draw_crops(world, 2, 32, np.random.default_rng(0)))
    loss.backward()
    assert torch.isfinite(loss)
    for name, each in network.named_parameters():
        assert each.grad is not None, name
        assert torch.isfinite(each.grad).all(), name
        assert each.grad.abs().max() > 0, name


def test_gradients_of_crops_without_emitters_are_finite():
    network = network_of()
    loss = shot_loss(network, replace_counts(crops_of([])))
    loss.backward()
    assert all(torch.isfinite(each.grad).all() for each in network.parameters())
    assert network.head[2].weight.grad[1].abs().max() == 0  # nothing to learn of positions


def replace_counts(crops: EmitterCrops) -> EmitterCrops:
    """The same with the counts of a camera of gain 1.34 and offset 100."""
    counts = 100 + 1.34 * torch.poisson(crops.background, generator=torch.Generator().manual_seed(0))[:, None]
    return EmitterCrops(counts, crops.background, crops.crop, crops.position, crops.photons)


def test_the_loss_is_that_of_the_mean_cell_whatever_the_number_of_crops():
    network = network_of()
    crops = draw_crops(WORLD, 4, 32, np.random.default_rng(0))
    parts = []
    for half in (slice(0, 2), slice(2, 4)):
        mine = (crops.crop >= half.start) & (crops.crop < half.stop)
        parts.append(
            EmitterCrops(crops.counts[half], crops.background[half], crops.crop[mine] - half.start,
                         crops.position[mine], crops.photons[mine])
        )  # fmt: skip
    mean = torch.stack([shot_loss(network, part) for part in parts]).mean()
    torch.testing.assert_close(shot_loss(network, crops), mean, rtol=1e-5, atol=1e-6)
