"""LodeSTAR: a particle tracker trained on one crop of one particle by its symmetries.

Midtvedt et al., Single-shot self-supervised object detection in microscopy, Nat. Commun. 13, 7492 (2022): "the paper".
Network, loss, settings and the deployed graph, top to bottom.
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
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from oneframe.export.trained import TrainedModel
from oneframe.runtime.card import ModelCard
from oneframe.trainer.crops import (
    Box,
    Extent,
    Normalisation,
    Views,
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
from oneframe.trainer.likelihood import LikelihoodFit, Likeness, best_located, bound_px
from oneframe.trainer.loop import ConvergenceError, LoopSettings, Progress, fit, one_thread
from oneframe.trainer.quality import advice, on_views, repeatability
from oneframe.trainer.symmetry import PixelNoise, Symmetrised, pixel_noise, symmetrised, with_gradients
from oneframe.trainer.variety import variety_on

STRIDE_PX = 2
"""Edge of a cell of the prediction grid, in (pooled) pixels."""


LOWEST_SCORE = 1e-6
"""Whatever the threshold, a lower score is the plain background's."""

LARGEST_OBJECT_PX = 24
"""Larger particles are averaged down first, so that a cell's field of view (34 px) takes in the whole of one and some
of what is around it."""


@dataclass(frozen=True, slots=True)
class LodestarSettings:
    """Settings of one training."""

    n_steps: int = 1000
    """Gradient steps."""
    n_views: int = 10
    """Views of a crop a step."""
    n_cut: int = 2
    """Views among them in which an edge may cut the particle. Differs from the paper, whose public code loses 6 px of
    border."""
    channels: int = 16
    """Width of the network."""
    n_convolutions: int = 8
    """3x3 convolutions after the stem."""
    paper_network: bool = False
    """Three full-resolution layers and pooling in place of the stem."""
    training_scale: int | None = None
    """Pixels that are averaged along each axis before anything else; None: from the size of the particle."""
    gain: tuple[float, float] | None = None
    """Brightness factor of the views, from and to; None: as the particles of the frame differ (`variety_on`)."""
    size: tuple[float, float] | None = None
    """Size factor of the views, from and to; None: as the particles of the frame differ."""
    noise: float = 0.8
    """Largest noise added to a view, as in `ViewSettings`."""
    denoise: bool = True
    """Filter the boxed particle and average it over its symmetries first. Differs from the paper."""
    far_share: float = 0.3
    """Share of the steps in which all cells of a view have a say; then only those near the peak, as when deployed.
    Near cells only from the start makes two of three trainings restart."""
    within_weight: float = 0.1
    """Weight of the internal-consistency loss against the equivariance loss."""
    averaged_cells: int = 3
    """Edge of the square over which the weights are averaged before they weigh the predictions. Differs from the paper:
    without it one cell has all the say, and its own small errors depend on where in the cell the particle lies."""
    dropout: float = 0.01
    """Share of the weights left out of a view's average, as in the paper."""
    peak_learning_rate: float = 3e-3
    """Of Adam; rises and falls over the training, if `one_cycle`."""
    one_cycle: bool = True
    averaging: float = 0.99
    """Decay per step of the moving average of the network's parameters."""
    fit: bool = True
    """Fit each position to the pixels (`LikelihoodFit`). Differs from the paper."""
    alpha: float = 0.5
    """Exponent of the weight w in the score w^alpha c^beta."""
    beta: float = 0.5
    """Exponent of the agreement c of neighbouring predictions."""
    max_attempts: int = 3
    """Trainings tried, each from another random start, before giving up."""


PRESETS = {
    "default": LodestarSettings(),
    "paper": LodestarSettings(
        n_steps=5000,
        n_views=8,
        n_cut=0,
        paper_network=True,
        channels=32,
        gain=(1.0, 1.0),
        size=(1.0, 1.0),
        noise=0.0,
        denoise=False,
        far_share=1.0,
        within_weight=0.16,
        averaged_cells=1,
        peak_learning_rate=1e-3,
        one_cycle=False,
        averaging=0.0,
        fit=False,
    ),
}
"""Named settings; `paper`: network, loss and schedule of the paper and its public code (5000 steps of 8 views)."""


class Plateau(Exception):  # noqa: N818 - the next attempt follows
    """Half of a training has taught nothing."""


class LodestarNetwork(nn.Module):
    """Predicts from an image (B, C, H, W) a grid of (dy, dx, rho), shape (B, 3, H/2, W/2).

    Differs from the paper, unless `paper_network`: a 6x6 convolution with stride 2 in place of full-resolution layers
    and pooling (the same as space-to-depth and a 3x3 convolution), at half the cost and at least the accuracy on all
    five shapes of the paper's Figure 1.
    """

    def __init__(self, n_channels: int, settings: LodestarSettings) -> None:
        super().__init__()
        width = settings.channels
        layers: list[nn.Module] = []
        if settings.paper_network:
            for n_inputs in (n_channels, width, width):
                layers += [nn.Conv2d(n_inputs, width, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(STRIDE_PX), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        else:
            layers += [nn.Conv2d(n_channels, width, 6, stride=STRIDE_PX, padding=2), nn.ReLU()]
        for _ in range(settings.n_convolutions - 1):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the prediction grid."""
        grid: Tensor = self.head(self.body(image))
        return grid


def cell_positions(grid: Tensor) -> Tensor:
    """Return the position that each cell predicts, (B, 2, h, w), px relative to the centre of the view."""
    h, w = grid.shape[-2:]
    y = (torch.arange(h, device=grid.device) - (h - 1) / 2) * STRIDE_PX
    x = (torch.arange(w, device=grid.device) - (w - 1) / 2) * STRIDE_PX
    return grid[:, :2] + torch.stack(torch.meshgrid(y, x, indexing="ij"))


def averaged_weights(rho: Tensor, n_cells: int) -> Tensor:
    """Return the weights (B, h, w) of a grid's third channel, averaged over squares of `n_cells`."""
    return F.avg_pool2d(torch.sigmoid(rho)[:, None], n_cells, 1, n_cells // 2)[:, 0]


def consensus(grid: Tensor, reach_cells: int, n_cells: int, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Average each view's predictions with their weights, near the peak of the weights.

    The weighted average of the paper, taken only within `reach_cells` of the peak, as the deployed graph does.

    Parameters
    ----------
    grid : (B, 3, h, w)
    reach_cells : int
    n_cells : int
        As in `averaged_weights`.
    keep : (B, h, w) of 0 and 1, optional
        Weights that are not left out by dropout.

    Returns
    -------
    position : (B, 2) px relative to the centre of the view
    spread : (B,) px
        Weighted mean distance, summed over the axes, of the predictions from `position`.
    """
    weight = averaged_weights(grid[:, 2], n_cells)
    peak = weight.flatten(1).argmax(1)
    h, w = weight.shape[-2:]
    row, column = torch.arange(h)[None, :, None], torch.arange(w)[None, None, :]
    near_row = (row - (peak // w)[:, None, None]).abs() <= reach_cells
    near = near_row & ((column - (peak % w)[:, None, None]).abs() <= reach_cells)
    weight = weight * near if keep is None else weight * near * keep
    share = (weight + 1e-6 * near) / (weight + 1e-6 * near).sum((1, 2), keepdim=True)
    predicted = cell_positions(grid)
    position = (predicted * share[:, None]).sum((2, 3))
    spread = ((predicted - position[:, :, None, None]).abs().sum(1) * share).sum((1, 2))
    return position, spread


def lodestar_loss(
    grid: Tensor, views: Views, settings: LodestarSettings, reach_cells: int, generator: torch.Generator
) -> Tensor:
    """Return the training loss: all views agree (equivariance), all cells of a view agree (internal consistency).

    References
    ----------
    The paper, Methods, "Training": the between and the within loss.
    """
    keep = (torch.rand(grid[:, 2].shape, generator=generator) >= settings.dropout).to(grid.dtype)
    position, spread = consensus(grid, reach_cells, settings.averaged_cells, keep)
    in_source = views.to_source(position)
    agreed = in_source[: views.n_whole].mean(0)
    whole = (in_source[: views.n_whole] - agreed).abs().sum()
    cut = (in_source[views.n_whole :] - agreed.detach()).abs().sum()
    between = (whole + cut) / in_source.numel()
    return between + settings.within_weight * spread.mean()


COLUMNS_OUT = ("y_px", "x_px", "score", "sigma_y_px", "sigma_x_px", "variance_px2")
"""What the deployed graph gives."""


class LodestarGraph(nn.Module):
    """The deployed graph: camera pixels in, one row per particle out.

    Normalisation, network, score, local maxima, weighted local average and the removal of duplicates, for any frame
    size. Positions are pixels of the camera, the centre of pixel [0, 0] at (0, 0).
    """

    def __init__(
        self,
        network: LodestarNetwork,
        normalisation: Normalisation,
        settings: LodestarSettings,
        *,
        pooling: int,
        reach_cells: int,
        diameter_px: float,
        sigma_px: float,
        likeness: Likeness | None,
    ) -> None:
        super().__init__()
        self.network = network
        self.offset, self.scale = normalisation.offset, normalisation.scale
        self.alpha, self.beta = settings.alpha, settings.beta
        self.averaged_cells = settings.averaged_cells
        self.pooling = pooling
        self.reach_cells = reach_cells
        cells = diameter_px / (STRIDE_PX * pooling)
        self.peak_cells = max(1, round(0.25 * cells))
        self.merge_cells = max(1, round(0.4 * cells))
        self.agreement_px = max(1.0, diameter_px / pooling / 8)  # in pooled pixels, like all inside this class
        self.sigma_px = sigma_px
        self.fit = None if likeness is None else LikelihoodFit(likeness)
        self.register_buffer("moments", _moment_kernel())

    moments: Tensor

    def forward(self, image: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        """Return the columns `COLUMNS_OUT`, each (N,), for an image (H, W) and the lowest score to report."""
        pixels = self.pooled((image.to(torch.float32) - self.offset) / self.scale)
        grid = self.predict(pixels)
        score = self.score(grid)
        row, column = self._peaks(score, threshold)
        y, x, variance = self._local_average(grid, row, column)
        peak_score = score[row, column]
        keep = self._is_best_near(score, y, x, peak_score) & torch.isfinite(y + x)
        y, x, variance, peak_score = y[keep], x[keep], variance[keep], peak_score[keep]
        sigma_y = sigma_x = torch.full_like(y, self.sigma_px)
        height, width = image.shape
        if self.fit is not None:
            in_frame = pixels[: height // self.pooling, : width // self.pooling]
            # of what the fit cannot take: no surer than the predictions agree
            sigma_y = (self.sigma_px**2 + variance / 2).sqrt()
            # one more row that is dropped again: ONNX Runtime samples no grid of no rows
            rows = [F.pad(column, (0, 1)) for column in (y, x, sigma_y)]
            y, x, sigma_y, sigma_x = (column[:-1] for column in self.fit(in_frame, *rows))
        centre_px = (self.pooling - 1) / 2  # where the centre of a pooled pixel lies in the camera's pixels
        y, x = y * self.pooling + centre_px, x * self.pooling + centre_px
        sigma_y, sigma_x, variance = sigma_y * self.pooling, sigma_x * self.pooling, variance * self.pooling**2
        keep = (y >= -0.5) & (y < height - 0.5) & (x >= -0.5) & (x < width - 0.5)
        return y[keep], x[keep], peak_score[keep], sigma_y[keep], sigma_x[keep], variance[keep]

    def pooled(self, pixels: Tensor) -> Tensor:
        """Average pixels (H, W) down; every pixel gets into a cell, also for odd sizes."""
        extra = STRIDE_PX * self.pooling - 1
        pixels = F.pad(pixels[None, None], (0, extra, 0, extra), mode="replicate")
        if self.pooling > 1:
            pixels = F.avg_pool2d(pixels, self.pooling)
        return pixels[0, 0]

    def predict(self, pixels: Tensor) -> Tensor:
        """Return the grid (3, h, w) of pooled pixels (H, W)."""
        grid: Tensor = self.network(pixels[None, None])[0]
        return grid

    def score(self, grid: Tensor) -> Tensor:
        """Return w^alpha c^beta, shape (h, w), in 0..1.

        Differs from the paper: c = 1 / (1 + variance / px^2) in place of 1 / (1e-6 + variance), so that a score has
        the same meaning in every model.
        """
        log_score: Tensor = self.alpha * F.logsigmoid(grid[2]) - self.beta * torch.log1p(self._variance(grid))
        return torch.exp(log_score)

    def _variance(self, grid: Tensor) -> Tensor:
        """Variance of the predicted positions over 3x3 cells, axes summed, px^2, shape (h, w)."""
        offsets = grid[:2]
        stacked = F.pad(torch.cat([offsets, offsets**2])[None], (1, 1, 1, 1), mode="replicate")
        mean_y, mean_x, mean_square, with_cell = F.conv2d(stacked, self.moments)[0]
        cell_variance = 2 * STRIDE_PX**2 * 2 / 3  # of the cells' own positions, both axes
        variance: Tensor = mean_square - mean_y**2 - mean_x**2 + 2 * STRIDE_PX * with_cell + cell_variance
        return variance.clamp(min=0)

    def _peaks(self, score: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        size = 2 * self.peak_cells + 1
        highest = F.max_pool2d(score[None, None], size, 1, self.peak_cells)[0, 0]
        found = torch.nonzero((score == highest) & (score >= threshold.clamp(min=LOWEST_SCORE)))
        return found[:, 0], found[:, 1]

    def _local_average(self, grid: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted average and variance, axes summed, of the predictions around each peak, in pooled pixels.

        Predictions that disagree with those next to the peak (of a neighbouring particle) lose their say.
        """
        h, w = grid.shape[-2:]
        reach = torch.arange(-self.reach_cells, self.reach_cells + 1)
        row_step, column_step = reach.repeat_interleave(len(reach)), reach.repeat(len(reach))  # (K,)
        rows, columns = row[:, None] + row_step, column[:, None] + column_step  # (N, K)
        inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
        place = rows.clamp(0, h - 1) * w + columns.clamp(0, w - 1)
        # embedding becomes one Gather; fancy indexing becomes a Reshape, which ONNX forbids for no peaks at all
        weights = averaged_weights(grid[2:], self.averaged_cells)
        dy, dx, weight = F.embedding(place, torch.cat([grid[:2], weights]).flatten(1).T).unbind(-1)
        dy, dx = dy + STRIDE_PX * row_step, dx + STRIDE_PX * column_step
        say = weight = (weight + 1e-9) * inside
        core = (row_step.abs() <= 1) & (column_step.abs() <= 1)
        first_y, first_x = _weighted_mean(dy, weight * core), _weighted_mean(dx, weight * core)
        distance_squared = (dy - first_y) ** 2 + (dx - first_x) ** 2
        weight = weight / (1 + (distance_squared / self.agreement_px**2) ** 2)
        half_cell_px = (STRIDE_PX - 1) / 2
        mean_y, mean_x = _weighted_mean(dy, weight), _weighted_mean(dx, weight)
        variance = _weighted_mean((dy - mean_y) ** 2 + (dx - mean_x) ** 2, say)
        y, x = STRIDE_PX * row + half_cell_px + mean_y[:, 0], STRIDE_PX * column + half_cell_px + mean_x[:, 0]
        return y, x, variance[:, 0]

    def _is_best_near(self, score: Tensor, y: Tensor, x: Tensor, peak_score: Tensor) -> Tensor:
        """Of peaks that point to the same place keep the best, of equals the first, (N,) bool."""
        h, w = score.shape
        row = torch.round(y / STRIDE_PX).to(torch.int64).clamp(0, h - 1)
        column = torch.round(x / STRIDE_PX).to(torch.int64).clamp(0, w - 1)
        place = row * w + column
        best = peak_score >= self._highest_near(peak_score, place, h, w)
        turn = torch.where(best, place.numel() - torch.arange(place.numel()), 0).to(torch.float32)
        return best & (turn >= self._highest_near(turn, place, h, w))

    def _highest_near(self, values: Tensor, place: Tensor, h: int, w: int) -> Tensor:
        """Highest of the values (N,) within `merge_cells` of each value's place on the grid (h, w), (N,)."""
        on_grid = torch.zeros(h * w).scatter_reduce(0, place, values, "amax")
        size = 2 * self.merge_cells + 1
        return F.max_pool2d(on_grid.reshape(1, 1, h, w), size, 1, self.merge_cells).flatten()[place]


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over the last axis of (N, K), shape (N, 1); N may be 0.

    As matrix products: ONNX Runtime 1.31 gives the sums of no rows a wrong shape.
    """
    ones = torch.ones(values.shape[-1], 1)
    mean: Tensor = ((values * weight) @ ones) / (weight @ ones)
    return mean


def _moment_kernel() -> Tensor:
    """Convolution from (dy, dx, dy^2, dx^2) to 3x3 means: dy, dx, dy^2 + dx^2, dy * row + dx * column."""
    kernel = torch.zeros(4, 4, 3, 3)
    kernel[0, 0] = kernel[1, 1] = kernel[2, 2] = kernel[2, 3] = 1 / 9
    kernel[3, 0] = torch.tensor([-1.0, 0.0, 1.0])[:, None] / 9
    kernel[3, 1] = torch.tensor([-1.0, 0.0, 1.0])[None, :] / 9
    return kernel


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
        columns=COLUMNS_OUT,
        threshold=chosen.value,
        object_diameter_px=round(diameter_px, 2),
        normalisation={"offset": normalisation.offset, "scale": normalisation.scale},
        trained_ranges={
            "gain": view.gain, "background": view.offset, "size": view.size, "shift_px": (-view.shift_px, view.shift_px)
        },
        settings={**asdict(settings), "seed": seed, "view_px": view.view_px, "pooling": pooling, "attempts": attempt},
        quality={
            **_quality_card(graph, image, lesson, likeness, normalisation, chosen, warnings, seed=seed),
            "view_error_px": round(quality.error_px * pooling, 4),
            "weights_cover": round(quality.covered, 4),
            "training_s": round(time.monotonic() - start_s, 1),
        },
    )  # fmt: skip
    return TrainedModel(graph, card, _example_of(image, boxes[0]))


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
    view_px = int(max(40, 2 * math.ceil((diameter * max(1.0, size[1]) + 24) / 2)))
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
        reach_cells=min(7, max(2, math.ceil(diameter / 4) + 1)),
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
    if network.head.bias is not None:
        network.head.bias[2] += math.log(0.9 / 0.1) - quality.peak_rho


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


@dataclass(frozen=True, slots=True, eq=False)
class Threshold:
    """The lowest score to report, and what led to it."""

    value: float
    n_found: int
    """Particles of the frame above it."""
    gap: float
    """Ratio of the lowest score above it to the highest below it: 1 is a mere guess."""
    score: Tensor
    """(n_found,)"""
    variance_px2: Tensor


@torch.no_grad()
def choose_threshold(graph: LodestarGraph, image: NDArray[Any]) -> Threshold:
    """Put the threshold into the widest gap, on a logarithmic scale, between the scores found on the frame itself.

    It lies within 0.2 to 0.7 of the best score.
    """
    _, _, score, _, _, variance = graph(torch.from_numpy(np.ascontiguousarray(image)), torch.tensor(0.02))
    best = float(score.max()) if len(score) else 1.0
    low, high = 0.2 * best, 0.7 * best
    levels = torch.cat([torch.tensor([low, high]), score[(score > low) & (score < high)]]).sort().values.log()
    gap = int((levels[1:] - levels[:-1]).argmax())
    threshold = round(float((levels[gap] + levels[gap + 1]).div(2).exp()), 3)
    above = score >= threshold
    return Threshold(
        threshold, int(above.sum()), float((levels[gap + 1] - levels[gap]).exp()), score[above], variance[above]
    )


def _example_of(image: NDArray[Any], box: Box) -> NDArray[Any]:
    """Cut at most 128 x 128 px round the box out of the frame."""
    height, width = image.shape
    centre_y, centre_x = box.y_px + box.height_px // 2, box.x_px + box.width_px // 2
    top, left = max(0, min(centre_y - 64, height - 128)), max(0, min(centre_x - 64, width - 128))
    return np.ascontiguousarray(image[top : top + 128, left : left + 128])
