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
