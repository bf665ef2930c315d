"""A grid of predictions becomes one row per particle: `PeakGraph`, the part that every deployed tracker shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from oneframe.trainer.lodestar_network import averaged_weights

LOWEST_SCORE = 1e-6
"""Whatever the threshold, a lower score is the plain background's."""


class PeakGraph(nn.Module):
    """Score, local maxima, weighted local average and the removal of duplicates, for any size of the grid.

    A grid is (3 + V, h, w): (dy, dx) from each cell to the particle in pixels, the weight before its sigmoid, and any
    further values that are averaged like the positions.

    Parameters
    ----------
    stride_px : int
        Pixels from cell to cell.
    reach_cells : int
        Distance from a peak within which cells have a say.
    averaged_cells : int
        Edge of the square over which weights are averaged.
    peak_cells, merge_cells : int
        Distances within which a peak must be the highest, before and after its position is known.
    agreement_px : float
        Predictions farther than this from those next to the peak lose their say.
    alpha, beta : float
        Exponents of weight and agreement in the score.
    """

    columns: tuple[str, ...]
    """Names of what `forward` returns."""

    def __init__(
        self,
        *,
        stride_px: int,
        reach_cells: int,
        averaged_cells: int,
        peak_cells: int,
        merge_cells: int,
        agreement_px: float,
        alpha: float,
        beta: float,
    ) -> None:
        super().__init__()
        self.stride_px = stride_px
        self.reach_cells, self.averaged_cells = reach_cells, averaged_cells
        self.peak_cells, self.merge_cells = peak_cells, merge_cells
        self.agreement_px = agreement_px
        self.alpha, self.beta = alpha, beta
        self.register_buffer("moments", _moment_kernel())

    moments: Tensor

    def found(self, grid: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
        """Return y, x, score, variance (px^2, axes summed) and the further values of each particle, (N,) each."""
        score = self.score(grid)
        row, column = self._peaks(score, threshold)
        y, x, variance, values = self._local_average(grid, row, column)
        peak_score = score[row, column]
        keep = self._is_best_near(score, y, x, peak_score) & torch.isfinite(y + x)
        y, x, peak_score, variance, *values = torch.stack([y, x, peak_score, variance, *values])[:, keep].unbind()
        return y, x, peak_score, variance, values

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
        cell_variance = 2 * self.stride_px**2 * 2 / 3  # of the cells' own positions, both axes
        variance: Tensor = mean_square - mean_y**2 - mean_x**2 + 2 * self.stride_px * with_cell + cell_variance
        return variance.clamp(min=0)

    def _peaks(self, score: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        size = 2 * self.peak_cells + 1
        highest = F.max_pool2d(score[None, None], size, 1, self.peak_cells)[0, 0]
        found = torch.nonzero((score == highest) & (score >= threshold.clamp(min=LOWEST_SCORE)))
        return found[:, 0], found[:, 1]

    def _local_average(self, grid: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Weighted average and variance, axes summed, of the predictions around each peak, in pixels of the grid.

        Predictions that disagree with those next to the peak (of a neighbouring particle) lose their say.

        Returns
        -------
        y, x, variance : (N,)
        values : list of (N,)
            Of the channels after the third.
        """
        h, w = grid.shape[-2:]
        reach = torch.arange(-self.reach_cells, self.reach_cells + 1)
        row_step, column_step = reach.repeat_interleave(len(reach)), reach.repeat(len(reach))  # (K,)
        rows, columns = row[:, None] + row_step, column[:, None] + column_step  # (N, K)
        inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
        place = rows.clamp(0, h - 1) * w + columns.clamp(0, w - 1)
        # embedding becomes one Gather; fancy indexing becomes a Reshape, which ONNX forbids for no peaks at all
        rho = grid[2:3]
        weights = averaged_weights(rho, self.averaged_cells) if self.averaged_cells > 1 else torch.sigmoid(rho)
        near = F.embedding(place, torch.cat([grid[:2], weights, grid[3:]]).flatten(1).T)
        dy, dx, weight, *values = near.unbind(-1)
        dy, dx = dy + self.stride_px * row_step, dx + self.stride_px * column_step
        say = weight = (weight + 1e-9) * inside
        core = (row_step.abs() <= 1) & (column_step.abs() <= 1)
        first_y, first_x = weighted_mean(dy, weight * core), weighted_mean(dx, weight * core)
        distance_squared = (dy - first_y) ** 2 + (dx - first_x) ** 2
        weight = weight / (1 + (distance_squared / self.agreement_px**2) ** 2)
        half_cell_px = (self.stride_px - 1) / 2
        mean_y, mean_x = weighted_mean(dy, weight), weighted_mean(dx, weight)
        variance = weighted_mean((dy - mean_y) ** 2 + (dx - mean_x) ** 2, say)
        y, x = self.stride_px * row + half_cell_px + mean_y[:, 0], self.stride_px * column + half_cell_px + mean_x[:, 0]
        return y, x, variance[:, 0], [weighted_mean(value, weight)[:, 0] for value in values]

    def _is_best_near(self, score: Tensor, y: Tensor, x: Tensor, peak_score: Tensor) -> Tensor:
        """Of peaks that point to the same place keep the best, of equals the first, (N,) bool."""
        h, w = score.shape
        row = torch.round(y / self.stride_px).to(torch.int64).clamp(0, h - 1)
        column = torch.round(x / self.stride_px).to(torch.int64).clamp(0, w - 1)
        place = row * w + column
        best = peak_score >= self._highest_near(peak_score, place, h, w)
        turn = torch.where(best, place.numel() - torch.arange(place.numel()), 0).to(torch.float32)
        return best & (turn >= self._highest_near(turn, place, h, w))

    def _highest_near(self, values: Tensor, place: Tensor, h: int, w: int) -> Tensor:
        """Highest of the values (N,) within `merge_cells` of each value's place on the grid (h, w), (N,)."""
        on_grid = torch.zeros(h * w).scatter_reduce(0, place, values, "amax")
        size = 2 * self.merge_cells + 1
        return F.max_pool2d(on_grid.reshape(1, 1, h, w), size, 1, self.merge_cells).flatten()[place]


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
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
def choose_threshold(graph: PeakGraph, image: NDArray[Any], *, shares: tuple[float, float] = (0.2, 0.7)) -> Threshold:
    """Put the threshold into the widest gap, on a logarithmic scale, between the scores found on the frame itself.

    It lies within these `shares` of the best score.
    """
    values = graph(torch.from_numpy(np.ascontiguousarray(image)), torch.tensor(0.02))
    score, variance = (values[graph.columns.index(name)] for name in ("score", "variance_px2"))
    best = float(score.max()) if len(score) else 1.0
    low, high = (share * best for share in shares)
    levels = torch.cat([torch.tensor([low, high]), score[(score > low) & (score < high)]]).sort().values.log()
    gap = int((levels[1:] - levels[:-1]).argmax())
    threshold = round(float((levels[gap] + levels[gap + 1]).div(2).exp()), 3)
    above = score >= threshold
    return Threshold(
        threshold, int(above.sum()), float((levels[gap + 1] - levels[gap]).exp()), score[above], variance[above]
    )
