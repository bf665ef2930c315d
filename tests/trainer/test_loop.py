"""The training loop: schedule, averaging, progress, cancelling."""

import threading

import pytest
import torch
from torch import nn

from oneframe.trainer.loop import LoopSettings, TrainingCancelled, fit, learning_rate_factor


def test_one_cycle_rises_then_falls_to_nothing():
    settings = LoopSettings(100)
    factors = [learning_rate_factor(step, settings) for step in range(100)]
    assert factors.index(max(factors)) in (14, 15)
    assert max(factors) == pytest.approx(1, abs=0.04)
    assert factors[-1] < 0.001


def test_fits_a_line_and_reports_progress():
    torch.manual_seed(0)
    line = nn.Linear(1, 1)
    x = torch.linspace(-1, 1, 32)[:, None]
    seen = []
    fitted = fit(
        line, lambda _: (line(x) - 3 * x - 1).square().mean(), LoopSettings(2000, 0.02), on_progress=seen.append
    )
    assert fitted.weight.item() == pytest.approx(3, abs=0.02)
    assert fitted.bias.item() == pytest.approx(1, abs=0.02)
    assert seen[-1].step == seen[-1].n_steps == 2000
    assert seen[-1].eta_s == 0


def test_cancelling_stops_before_the_next_step():
    cancel = threading.Event()
    line = nn.Linear(1, 1)

    def loss(step: int) -> torch.Tensor:
        if step == 4:
            cancel.set()
        return line(torch.ones(1, 1)).square().mean()

    with pytest.raises(TrainingCancelled, match="stopped at step 5 of 100"):
        fit(line, loss, LoopSettings(100), cancel=cancel)


def curve() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A small network, points and their values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.linspace(-1, 1, 64)[:, None]
    return network, x, torch.sin(3 * x)


def fitted(workers: int, *, n_steps: int = 60) -> list[torch.Tensor]:
    """Weights after a training in which each part of a step draws its own points."""
    network, x, y = curve()

    def loss(part: int) -> torch.Tensor:
        chosen = torch.randperm(64, generator=torch.Generator().manual_seed(part))[:16]
        return (network(x[chosen]) - y[chosen]).square().mean()

    return list(fit(network, loss, LoopSettings(n_steps, 0.01), workers=workers).parameters())


def test_workers_side_by_side_give_the_same_network_every_time():
    first, again, alone = fitted(2), fitted(2), fitted(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, alone, strict=True))


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_learn_what_one_learns_from_all_their_parts(workers):
    weights = []
    for parts in (workers, 1):
        network, x, y = curve()
        lot = 64 // parts

        def loss(part: int, network=network, x=x, y=y, parts=parts, lot=lot) -> torch.Tensor:
            mine = slice(lot * (part % parts), lot * (part % parts) + lot)
            return (network(x[mine]) - y[mine]).square().mean()

        fit(network, loss, LoopSettings(1, 0.01), workers=parts)
        weights.append([each.grad for each in network.parameters()])
    for split, joined in zip(*weights, strict=True):
        torch.testing.assert_close(split, joined, rtol=1e-4, atol=1e-7)


def test_every_part_is_worked_on_once():
    network, x, y = curve()
    seen = []

    def loss(part: int) -> torch.Tensor:
        seen.append(part)
        return (network(x) - y).square().mean()

    fit(network, loss, LoopSettings(5), workers=3)
    assert sorted(seen) == list(range(15))


def test_what_fails_in_a_worker_ends_the_training():
    network, x, y = curve()

    def loss(part: int) -> torch.Tensor:
        if part == 7:
            raise ValueError("no frame left")
        return (network(x) - y).square().mean()

    with pytest.raises(ValueError, match="no frame left"):
        fit(network, loss, LoopSettings(50), workers=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("training")]
