"""The only training loop: one-cycle learning rate, clipped gradients, averaged weights, progress, cancelling."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class TrainingCancelled(Exception):  # noqa: N818 - asked for, not an error
    """The user asked to stop."""


class ConvergenceError(Exception):
    """The training ended, but the network does not locate the particle; the text says what was tried."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How long and how fast to learn."""

    n_steps: int
    peak_learning_rate: float = 3e-3
    one_cycle: bool = True
    """The learning rate rises and falls; otherwise it is constant but for `drops`."""
    drops: tuple[float, ...] = ()
    """Shares of the steps after which a rate that is no cycle falls tenfold."""
    warm_up: float = 0.15
    """Share of the steps in which the learning rate rises; then it falls as a cosine to 0."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    averaging: float = 0.99
    """Decay per step of the exponential moving average whose weights are kept."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of a running training."""

    step: int
    n_steps: int
    loss: float
    eta_s: float
    """Time left, seconds; NaN while it is not known."""
    attempt: int = 1
    """Counts restarts, from 1."""
    note: str = ""
    """What the method has to say of itself, such as what it has not learned yet."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch on one thread meanwhile; also a decorator.

    The layers are small: a second core gains little, and where another program (the camera) keeps it busy, two threads
    wait for each other and training takes ten times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def learning_rate_factor(step: int, settings: LoopSettings) -> float:
    """Return the learning rate of a step over its peak."""
    if not settings.one_cycle:
        return 0.1 ** sum(step >= share * settings.n_steps for share in settings.drops)
    position = (step + 0.5) / settings.n_steps
    if position < settings.warm_up:
        return position / settings.warm_up
    return 0.5 * (1 + math.cos(math.pi * (position - settings.warm_up) / (1 - settings.warm_up)))


def fit(
    network: Network,
    loss_of_step: Callable[[int], Tensor],
    settings: LoopSettings,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
    attempt: int = 1,
    note: Callable[[], str] = str,
    workers: int = 1,
) -> Network:
    """Train `network` in place and return a copy with its averaged weights.

    Parameters
    ----------
    network : nn.Module
        What `loss_of_step` evaluates.
    loss_of_step : callable
        Step number to scalar loss; with several workers the number of a part of a step, called in a thread.
    on_progress : callable, optional
        Called about four times a second and after the last step.
    cancel : threading.Event, optional
        When set, the loop stops before the next step.
    note : callable, optional
        Gives `Progress.note`.
    workers : int, optional
        So many parts of a step are worked on side by side and their gradients averaged. Threads of our own, each on
        one core: unlike torch's they do not wait for each other within a layer, and the result does not depend on how
        many cores there are.

    Raises
    ------
    TrainingCancelled
        If `cancel` was set.
    """
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.peak_learning_rate)
    averaged = copy.deepcopy(network)
    start_s = last_report_s = time.monotonic()
    with ThreadPoolExecutor(workers, "training") as pool:
        for step in range(settings.n_steps):
            if cancel is not None and cancel.is_set():
                raise TrainingCancelled(f"stopped at step {step} of {settings.n_steps}")
            for group in optimiser.param_groups:
                group["lr"] = settings.peak_learning_rate * learning_rate_factor(step, settings)
            if workers == 1:
                loss = loss_of_step(step)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
            else:
                loss = _side_by_side(network, loss_of_step, range(workers * step, workers * (step + 1)), pool)
            nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
            optimiser.step()
            _average(averaged, network, min(settings.averaging, (step + 1) / (step + 10)))
            now_s = time.monotonic()
            if on_progress is not None and (now_s - last_report_s > 0.25 or step + 1 == settings.n_steps):
                last_report_s = now_s
                left = settings.n_steps - step - 1
                known = step >= 20 or not left or now_s - start_s > 10
                eta_s = (now_s - start_s) / (step + 1) * left if known else math.nan
                on_progress(Progress(step + 1, settings.n_steps, float(loss.detach()), eta_s, attempt, note()))
    return averaged


def _side_by_side(
    network: nn.Module, loss_of_part: Callable[[int], Tensor], parts: range, pool: ThreadPoolExecutor
) -> Tensor:
    """Set the gradients to the mean over the parts of a step and return the mean loss."""
    parameters = list(network.parameters())

    def gradients(part: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = loss_of_part(part)
        return loss.detach(), torch.autograd.grad(loss, parameters)

    losses, each = zip(*pool.map(gradients, parts), strict=True)
    for parameter, *own in zip(parameters, *each, strict=True):
        parameter.grad = torch.stack(own).mean(0)
    return torch.stack(losses).mean()


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the averaged weights a little towards the present ones."""
    for kept, present in zip(averaged.parameters(), network.parameters(), strict=True):
        kept.lerp_(present, 1 - decay)
