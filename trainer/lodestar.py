"""LodeSTAR: a particle tracker trained on one crop of one particle by its symmetries.

Midtvedt et al., Single-shot self-supervised object detection in microscopy, Nat. Commun. 13, 7492 (2022): "the paper".
`lodestar_network` is what learns, `lodestar_graph` what is deployed; here one becomes the other.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneframe.export.trained import TrainedModel
from oneframe.runtime.card import ModelCard
from oneframe.trainer.crops import (
    Box,
    Extent,
    Normalisation,
    ViewSettings,
    background_range,
    denoised,
    extent_of,
    normalisation_from,
    particle_alone,
    random_views,
    refined,
    sample,
)
from oneframe.trainer.likelihood import Likeness, best_located, bound_px
from oneframe.trainer.lodestar_graph import LodestarGraph
from oneframe.trainer.lodestar_network import STRIDE_PX, LodestarNetwork, LodestarSettings, consensus, lodestar_loss
from oneframe.trainer.loop import ConvergenceError, LoopSettings, Progress, fit, one_thread
from oneframe.trainer.peaks import Threshold, choose_threshold
from oneframe.trainer.quality import advice, on_views, repeatability
from oneframe.trainer.symmetry import PixelNoise, Symmetrised, pixel_noise, symmetrised, with_gradients
from oneframe.trainer.variety import variety_on

LARGEST_OBJECT_PX = 24
"""Larger particles are averaged down first, so that a cell's field of view (34 px) takes in the whole of one and some
of what is around it."""


class Plateau(Exception):  # noqa: N818 - the next attempt follows
    """Half of a training has taught nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What a training looks at; all lengths in pooled pixels."""

    fine: Tensor
    """(M, F, F): the `refined` particle of each box on its background."""
    view: ViewSettings
    frame_noise: float
    """Standard deviation of the frame's own noise, in units of the particle's contrast."""
    reach_cells: int
    """Distance from the peak of the weights within which cells have a say."""
    particles: Sequence[Symmetrised]
    """Each boxed particle, as well as one frame shows it."""
    noise: PixelNoise


@dataclass(frozen=True, slots=True)
class Quality:
    """How a trained network does on fresh views of its own crop."""

    error_px: float
    """Root mean square error per axis, over views with the frame's own noise."""
    covered: float
    """Share of cells with a weight above half the peak; near 1 the network has collapsed."""
    peak_rho: float
    """Median over the views of the largest weight, before the sigmoid."""
    centres_px: Tensor
    """(M, 2): where in each source its views agree to see the particle, (y, x) relative to its middle."""

    @property
    def converged(self) -> bool:
        """True if the network locates the particle."""
        return self.error_px < 0.5 and self.covered < 0.5

    @property
    def hopeless(self) -> bool:
        """True if half of a training should have brought more than this."""
        return not self.error_px < 4.0

    def __str__(self) -> str:
        return f"error {self.error_px:.2f} px, weights over {100 * self.covered:.0f} % of the view"


@torch.no_grad()
def measure(network: LodestarNetwork, lesson: Lesson, settings: LodestarSettings, *, seed: int) -> Quality:
    """Look at 64 fresh views, read as the deployed graph reads them."""
    generator = torch.Generator().manual_seed(seed)
    calm = replace(lesson.view, n_views=64, n_cut=0, gain=(1.0, 1.0), offset=(0.0, 0.0), size=(1.0, 1.0), noise=0.0)
    errors, centres, grids = [], [], []
    for fine in lesson.fine:
        views = random_views(fine, calm, lesson.frame_noise, generator)
        grid = network(views.images)
        position, _ = consensus(grid, lesson.reach_cells, settings.averaged_cells)
        in_source = views.to_source(position)
        centres.append(in_source.mean(0))
        errors.append(in_source - centres[-1])
        grids.append(grid)
    error_px = float(torch.cat(errors).square().mean().sqrt())
    rho = torch.cat(grids)[:, 2]
    weight = torch.sigmoid(rho)
    covered = float((weight > 0.5 * weight.amax((1, 2), keepdim=True)).float().mean())
    return Quality(error_px, covered, float(rho.amax((1, 2)).median()), torch.stack(centres))


@one_thread()
def train_lodestar(
    image: NDArray[Any],
    boxes: Sequence[Box],
    *,
    seed: int,
    settings: LodestarSettings,
    warnings: Sequence[str] = (),
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
) -> TrainedModel:
    """Train on one or several boxes of one frame (H, W), each round one particle.

    Parameters
    ----------
    warnings : sequence of str
        What is known to be wrong with the boxes; goes into the quality card.

    Raises
    ------
    ConvergenceError
        If no attempt located the particle.
    TrainingCancelled
        If `cancel` was set.
    """
    start_s = time.monotonic()
    each = [normalisation_from(image, box) for box in boxes]
    normalisation = Normalisation(*(float(np.median(values)) for values in zip(*map(astuple, each), strict=True)))
    extents = [extent_of(image, box, own) for box, own in zip(boxes, each, strict=True)]
    diameter_px = float(np.median([extent.diameter_px for extent in extents]))
    pooling = settings.training_scale or max(1, round(diameter_px / LARGEST_OBJECT_PX + 0.25))
    lesson = _lesson_from(
        image,
        boxes,
        each,
        extents,
        normalisation,
        diameter_px=diameter_px,
        pooling=pooling,
        seed=seed,
        settings=settings,
    )

    tried: list[str] = []
    for attempt in range(1, settings.max_attempts + 1):
        start = seed + 1_000_003 * (attempt - 1)
        try:
            network = _train_once(lesson, settings, seed=start, on_progress=on_progress, cancel=cancel, attempt=attempt)
        except Plateau as reason:
            tried.append(f"half-way {reason}")
            continue
        quality = measure(network, lesson, settings, seed=seed)
        if quality.converged:
            break
        tried.append(str(quality))
    else:
        raise ConvergenceError(
            f"expected the views to agree within 0.5 px, got after {len(tried)} attempts: {'; '.join(tried)}; "
            "box one clear, isolated particle with a rim of background, or train for more --steps"
        )
    _set_level(network, quality)
    likeness = _likeness(lesson, quality, diameter_px / pooling)
    graph = LodestarGraph(
        network,
        normalisation,
        settings,
        pooling=pooling,
        reach_cells=lesson.reach_cells,
        diameter_px=diameter_px,
        sigma_px=quality.error_px,
        likeness=likeness if settings.fit else None,
    ).eval()
    chosen = choose_threshold(graph, image)
    view = lesson.view
    card = ModelCard(
        method="lodestar",
        input_dtype=str(image.dtype),
        n_channels=1,
        columns=LodestarGraph.columns,
        threshold=chosen.value,
        object_diameter_px=round(diameter_px, 2),
        normalisation={"offset": normalisation.offset, "scale": normalisation.scale},
        trained_ranges={
            "gain": view.gain, "background": view.offset, "size": view.size, "shift_px": (-view.shift_px, view.shift_px)
        },
        settings={
            **asdict(settings), "seed": seed, "view_px": view.view_px, "pooling": pooling,
            "stride_px": STRIDE_PX, "attempts": attempt,
        },
        quality={
            **_quality_card(graph, image, lesson, likeness, normalisation, chosen, warnings, seed=seed),
            "view_error_px": round(quality.error_px * pooling, 4),
            "weights_cover": round(quality.covered, 4),
            "training_s": round(time.monotonic() - start_s, 1),
        },
    )  # fmt: skip
    return TrainedModel(graph, card, _example_of(image, boxes[0]), (image.shape[0], image.shape[1]))


def _quality_card(
    graph: LodestarGraph,
    image: NDArray[Any],
    lesson: Lesson,
    likeness: Likeness,
    normalisation: Normalisation,
    chosen: Threshold,
    warnings: Sequence[str],
    *,
    seed: int,
) -> dict[str, Any]:
    """Measure the deployed graph on views with known positions and on the snapped frame."""
    threshold = torch.tensor(chosen.value)

    def detect(pixels: Tensor) -> tuple[Tensor, ...]:
        columns: tuple[Tensor, ...] = graph(pixels, threshold)
        return columns

    pooling, fine = graph.pooling, lesson.fine
    views = on_views(detect, fine, lesson.view, lesson.noise, normalisation, pooling=pooling, seed=seed)
    repeated = repeatability(
        detect, image, normalisation.noise * normalisation.scale, likeness.diameter_px * pooling, seed=seed
    )
    bound = pooling * max(
        bound_px(picture, lesson.noise, likeness.diameter_px, has_angle=likeness.has_angle)
        for picture in likeness.images
    )
    level, sentence = advice(views, bound, repeated, chosen.n_found, chosen.gap, warnings)
    enough = chosen.n_found >= 8
    variance, score = (chosen.variance_px2, chosen.score) if enough else (views.variance_px2, views.score)
    return {
        "advice": level,
        "advice_sentence": sentence,
        "warnings": list(warnings),
        "snr": round(1 / max(normalisation.noise, 1e-9), 1),
        "expected_rmse_px": _rounded(views.rmse_px),
        "bound_px": _rounded(bound),
        "errors_within_sigma": round(views.within_sigma, 3),
        "found_on_views": round(views.found, 3),
        "found_again": round(repeated.found_again, 3),
        "repeat_shift_px": _rounded(repeated.shift_px),
        "repeat_flip_px": _rounded(repeated.flip_px),
        "repeat_noise_px": _rounded(repeated.noise_px),
        "detections_on_frame": chosen.n_found,
        "threshold_gap": round(chosen.gap, 2),
        "reference": {
            "variance_px2": _quantiles(variance), "score": _quantiles(score), "n": len(score)
        },
    }  # fmt: skip


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _quantiles(values: Tensor) -> list[float]:
    if not len(values):
        return [0.0, 0.0, 0.0]
    return [float(f"{q:.4g}") for q in torch.quantile(values, torch.tensor([0.05, 0.5, 0.95])).tolist()]


def _lesson_from(
    image: NDArray[Any],
    boxes: Sequence[Box],
    each: Sequence[Normalisation],
    extents: Sequence[Extent],
    normalisation: Normalisation,
    *,
    diameter_px: float,
    pooling: int,
    seed: int,
    settings: LodestarSettings,
) -> Lesson:
    """Cut the boxed particles out of the frame and decide what is shown of them."""
    diameter = diameter_px / pooling
    seen = [variety_on(image, *facts) for facts in zip(boxes, each, extents, strict=True)]
    size = settings.size or (min(v.size[0] for v in seen), max(v.size[1] for v in seen))
    gain = settings.gain or (min(v.gain[0] for v in seen), max(v.gain[1] for v in seen))
    step_px = STRIDE_PX * (2 if settings.split_cells else 1)
    view_px = int(max(40, step_px * math.ceil((diameter * max(1.0, size[1]) + 24) / step_px)))
    brightness = np.array([own.scale / normalisation.scale for own in each])
    view = ViewSettings(
        view_px,
        settings.n_views,
        settings.n_cut,
        cut_px=diameter / 2 + 3,
        gain=(gain[0] * float(brightness.min()), gain[1] * float(brightness.max())),
        size=size,
        offset=background_range(image, normalisation, math.ceil(2 * diameter * pooling)),
        noise=settings.noise,
    )
    reach_px = math.ceil((view_px * math.sqrt(2) + 6) / min(1.0, size[0])) * pooling
    rng = np.random.default_rng([seed, 1])
    particles, noises, shapes = [], [], []
    for box, own, extent in zip(boxes, each, extents, strict=True):
        raw = _pooled(particle_alone(image, box, own, extent, reach_px=reach_px, rng=rng), pooling)
        clean = denoised(raw, extent.diameter_px / pooling)
        noises.append(pixel_noise(raw, clean))
        shapes.append(symmetrised(clean, extent.diameter_px / pooling, noises[-1]))
        particles.append(shapes[-1].image if settings.denoise else raw)
    return Lesson(
        fine=torch.stack([refined(particle) for particle in particles]),
        view=view,
        frame_noise=normalisation.noise / pooling,
        reach_cells=min(7, max(2, math.ceil((diameter / 2 + 2) / STRIDE_PX))),
        particles=shapes,
        noise=PixelNoise(*np.median([astuple(noise) for noise in noises], axis=0).tolist()),
    )


def _likeness(lesson: Lesson, quality: Quality, diameter_px: float) -> Likeness:
    """Put the middle of each particle where it is located best, along the directions that no symmetry fixes.

    Where sizes differ, some objects will be too unlike for the fit: then it is where the network sees it, so that both
    mean the same place.
    """
    images, seen = [], []
    size = 2 * math.ceil(diameter_px / 2 + 8) + 1  # what the fit looks at, and a rim
    for particle, agreed in zip(lesson.particles, quality.centres_px, strict=True):
        free = torch.eye(2) - torch.from_numpy(particle.fixed)
        move = torch.zeros(2)
        if float(free.abs().max()) > 1e-3:
            best = best_located(with_gradients(particle.image), lesson.noise, diameter_px)
            move = free @ (best if lesson.view.size == (1.0, 1.0) else agreed)
            move = move * min(1.0, diameter_px / 2 / max(float(move.norm()), 1e-6))
        moved = sample(refined(particle.image)[None], torch.eye(2)[None], move[None], size)[0, 0]
        images.append(with_gradients(moved.numpy()))
        seen.append(free @ agreed - move)
    return Likeness(
        torch.stack(images),
        torch.stack(seen),
        diameter_px=diameter_px,
        noise=lesson.noise,
        has_angle=not all(particle.is_round for particle in lesson.particles),
        has_hand=not all(particle.has_mirror for particle in lesson.particles),
    )


@torch.no_grad()
def _set_level(network: LodestarNetwork, quality: Quality) -> None:
    """Shift rho so that a view's peak has w = 0.9; the loss fixes only ratios of weights."""
    network.add_to_rho(math.log(0.9 / 0.1) - quality.peak_rho)


def _pooled(image: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Average blocks of pixels of an image (S, S)."""
    n_blocks = image.shape[0] // factor
    blocks = image[: n_blocks * factor, : n_blocks * factor].reshape(n_blocks, factor, n_blocks, factor)
    return np.asarray(blocks.mean((1, 3)), np.float32)


def _train_once(
    lesson: Lesson,
    settings: LodestarSettings,
    *,
    seed: int,
    on_progress: Callable[[Progress], None] | None,
    cancel: threading.Event | None,
    attempt: int,
) -> LodestarNetwork:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LodestarNetwork(1, settings)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss_of_step(step: int) -> Tensor:
        far = step < settings.far_share * settings.n_steps
        reach = lesson.view.view_px if far else lesson.reach_cells
        if step == settings.n_steps // 2:
            half_way = measure(network, lesson, settings, seed=seed)
            if half_way.hopeless:
                raise Plateau(str(half_way))
        fine = lesson.fine[int(torch.randint(len(lesson.fine), (), generator=generator))]
        views = random_views(fine, lesson.view, lesson.frame_noise, generator)
        grid = network(views.images.to(memory_format=torch.channels_last))
        return lodestar_loss(grid, views, settings, reach, generator)

    loop = LoopSettings(
        settings.n_steps,
        peak_learning_rate=settings.peak_learning_rate,
        one_cycle=settings.one_cycle,
        averaging=settings.averaging,
    )
    trained = fit(network, loss_of_step, loop, on_progress=on_progress, cancel=cancel, attempt=attempt)
    return trained.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload, no-any-return]


def _example_of(image: NDArray[Any], box: Box) -> NDArray[Any]:
    """Cut at most 128 x 128 px round the box out of the frame."""
    height, width = image.shape
    centre_y, centre_x = box.y_px + box.height_px // 2, box.x_px + box.width_px // 2
    top, left = max(0, min(centre_y - 64, height - 128)), max(0, min(centre_x - 64, width - 128))
    return np.ascontiguousarray(image[top : top + 128, left : left + 128])
