"""A grid of predictions becomes one row per particle: `PeakGraph`, the part that every deployed tracker shares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

LOWEST_SCORE = 1e-6
"""Whatever the threshold, a lower score is the plain background's."""


class PeakGraph(nn.Module):
    """Score, local maxima, weighted local average and the removal of duplicates, for any size of the grid.

    A cell has 3 + V values: (dy, dx) from it to the particle in pixels, the weight before its sigmoid, and any further
    values that are averaged like the positions. They come as (split^2 (3 + V), h, w): block by block of split x split
    cells, the cells of a block row after row.

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
    split : int
        Cells along the edge of a block.
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
        split: int = 1,
    ) -> None:
        super().__init__()
        self.stride_px = stride_px
        self.averaged_cells = averaged_cells
        self.peak_cells, self.merge_cells = peak_cells, merge_cells
        self.agreement_px = agreement_px
        self.alpha, self.beta = alpha, beta
        self.split = split
        half = averaged_cells // 2
        self.register_buffer("about", torch.arange(-reach_cells - half, reach_cells + half + 1))
        steps = torch.cartesian_prod(self.about, self.about)
        self.register_buffer("about_px", (stride_px * steps.T).float())
        within = (steps.abs() <= reach_cells).all(1).float()
        averaged = ((steps[:, None] - steps[None]).abs() <= half).all(-1).float() / averaged_cells**2
        self.register_buffer("averaging", averaged * within)
        self.register_buffer("faintest", 1e-9 * within)
        self.register_buffer("core", (steps.abs() <= 1).all(1).float())
        # a block, its cells, and those around it
        self.register_buffer("beside", torch.arange(-1, split + 1))
        steps = torch.cartesian_prod(self.beside, self.beside)
        self.register_buffer("beside_px", (stride_px * steps.T).float())
        self.register_buffer("in_block", torch.cartesian_prod(torch.arange(split), torch.arange(split)).reshape(-1, 2))
        away = (steps[:, None] - self.in_block).abs().amax(-1)
        self.register_buffer("own", (away == 0).float())
        self.register_buffer("next_to", (away <= 1).float())

    about: Tensor
    about_px: Tensor
    averaging: Tensor
    faintest: Tensor
    core: Tensor
    beside: Tensor
    beside_px: Tensor
    in_block: Tensor
    own: Tensor
    next_to: Tensor

    def found(self, blocks: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
        """Return y, x, score, variance (px^2, axes summed) and the further values of each particle, (N,) each.

        Only blocks with a weight that allows a score above the threshold are looked at: few, where few particles are.
        """
        _, h, w = blocks.shape
        size = h * self.split, w * self.split
        threshold = threshold.clamp(min=LOWEST_SCORE)
        rho = blocks[2 :: blocks.shape[0] // self.split**2].unbind()
        row, column = torch.nonzero(reduce(torch.maximum, rho) >= self._lowest_rho(threshold)).unbind(1)
        score = self.score(blocks, row, column)
        rows, columns = (each[:, None] * self.split + self.in_block[:, k] for k, each in enumerate((row, column)))
        on_grid = torch.zeros(size[0] * size[1]).scatter(0, (rows * size[1] + columns).flatten(), score.flatten())
        on_grid = F.max_pool2d(on_grid.reshape(1, 1, *size), 2 * self.peak_cells + 1, 1, self.peak_cells).flatten()
        score, kind = score.max(1)  # a peak is the best of its block
        row, column = (
            each * self.split + self.in_block[:, k].index_select(0, kind) for k, each in enumerate((row, column))
        )
        highest = on_grid.index_select(0, row * size[1] + column)
        chosen = torch.nonzero((score >= threshold) & (score >= highest))[:, 0]
        row, column, score = (each.index_select(0, chosen) for each in (row, column, score))
        y, x, variance, values = self._local_average(blocks, row, column)
        is_finite = (y + x).abs() < math.inf  # torch.isfinite takes five operators
        chosen = torch.nonzero(self._is_best_near(size, y, x, score) & is_finite)[:, 0]
        y, x, score, variance, *values = (each.index_select(0, chosen) for each in (y, x, score, variance, *values))
        return y, x, score, variance, values

    def _lowest_rho(self, threshold: Tensor) -> Tensor:
        """Below this no agreement lifts the score to the threshold."""
        if self.alpha == 0:
            return threshold.new_full((), -math.inf)
        weight = (threshold ** (1 / self.alpha)).clamp(max=1 - 1e-6)
        return torch.log(weight / (1 - weight)) - 1e-3  # the score itself is compared later

    def score(self, blocks: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Return w^alpha c^beta of the cells of some blocks, (N, split^2), in 0..1.

        Differs from the paper: c = 1 / (1 + variance / px^2) in place of 1 / (1e-6 + variance), so that a score has
        the same meaning in every model.
        """
        rows, columns = row[:, None] * self.split + self.beside, column[:, None] * self.split + self.beside
        (dy, dx, rho, *_), inside = self._cells(blocks, rows, columns)
        n = inside @ self.next_to
        variance = torch.zeros_like(n)
        for away, offset_px in ((dy, self.beside_px[0]), (dx, self.beside_px[1])):
            at = away + offset_px
            at = (at - (at @ self.own).mean(1, keepdim=True)) * inside  # small numbers have exact squares
            mean = (at @ self.next_to) / n
            variance = variance + ((at * at) @ self.next_to) / n - mean * mean
        log_score: Tensor = self.alpha * F.logsigmoid(rho @ self.own) - self.beta * torch.log1p(variance.clamp(min=0))
        return torch.exp(log_score)

    def _cells(self, blocks: Tensor, rows: Tensor, columns: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the values of the cells in rows (N, R) and columns (N, C) of the grid, and 1 for those that exist.

        Of each of 3 + V values (N, R * C); outside of the grid those of cells at its edge.
        """
        _, h, w = blocks.shape
        split, n_values = self.split, blocks.shape[0] // self.split**2
        rows_inside, columns_inside = rows.clamp(0, h * split - 1), columns.clamp(0, w * split - 1)
        inside = (rows == rows_inside).float()[:, :, None] * (columns == columns_inside).float()[:, None]
        in_row, in_column = rows_inside, columns_inside
        if split > 1:  # the grid lies in memory as (split, split, 3 + V, h, w)
            # seven operators if whole numbers are divided; halves are exact
            block_row, block_column = ((each.float() * (1 / split)).to(torch.int64) for each in (in_row, in_column))
            in_row = (in_row - block_row * split) * (split * n_values * h) + block_row
            in_column = (in_column - block_column * split) * (n_values * h * w) + block_column
        place = ((in_row * w)[:, :, None] + in_column[:, None]).flatten(1)
        place = place + (torch.arange(n_values) * (h * w))[:, None, None]  # (3 + V, N, R * C)
        return taken(blocks.flatten(), place).unbind(), inside.flatten(1)

    def _local_average(
        self, blocks: Tensor, row: Tensor, column: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Weighted average and variance, axes summed, of the predictions around each peak, in pixels of the grid.

        Predictions that disagree with those next to the peak (of a neighbouring particle) lose their say.

        Returns
        -------
        y, x, variance : (N,)
        values : list of (N,)
            Of the channels after the third.
        """
        (dy, dx, rho, *values), inside = self._cells(blocks, row[:, None] + self.about, column[:, None] + self.about)
        dy, dx = dy + self.about_px[0], dx + self.about_px[1]
        say = weight = ((torch.sigmoid(rho) * inside) @ self.averaging + self.faintest) * inside
        first = weight * self.core
        away_y, away_x = dy - weighted_mean(dy, first), dx - weighted_mean(dx, first)
        disagreement = (away_y * away_y + away_x * away_x) / self.agreement_px**2
        weight = weight / (1 + disagreement * disagreement)
        mean_y, mean_x = weighted_mean(dy, weight), weighted_mean(dx, weight)
        away_y, away_x = dy - mean_y, dx - mean_x
        variance = weighted_mean(away_y * away_y + away_x * away_x, say)
        half_cell_px = (self.stride_px - 1) / 2
        y = self.stride_px * row + half_cell_px + mean_y[:, 0]
        x = self.stride_px * column + half_cell_px + mean_x[:, 0]
        return y, x, variance[:, 0], [weighted_mean(value, weight)[:, 0] for value in values]

    def _is_best_near(self, size: tuple[int, int], y: Tensor, x: Tensor, peak_score: Tensor) -> Tensor:
        """Of peaks that point to the same place keep the best, of equals the first, (N,) bool."""
        row = torch.round(y / self.stride_px).to(torch.int64).clamp(0, size[0] - 1)
        column = torch.round(x / self.stride_px).to(torch.int64).clamp(0, size[1] - 1)
        order = torch.sort(peak_score, descending=True).indices
        turn = torch.zeros_like(peak_score).scatter(0, order, torch.arange(order.numel(), 0, -1, dtype=torch.float32))
        on_grid = torch.zeros(size[0] * size[1]).scatter_reduce(0, row * size[1] + column, turn, "amax")
        # few peaks with a few cells each: a fraction of the time of looking at the whole grid
        near = torch.arange(-self.merge_cells, self.merge_cells + 1)
        rows, columns = (row[:, None] + near).clamp(0, size[0] - 1), (column[:, None] + near).clamp(0, size[1] - 1)
        place = ((rows * size[1])[:, :, None] + columns[:, None]).flatten(1)
        return turn >= taken(on_grid, place).amax(1)


def taken(values: Tensor, place: Tensor) -> Tensor:
    """Look up many single values, of the shape of `place`; ONNX Runtime's Gather takes four times as long."""
    return values.gather(0, place.flatten()).reshape(place.shape)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over the last axis of (N, K), shape (N, 1); N may be 0.

    As matrix products: ONNX Runtime 1.31 gives the sums of no rows a wrong shape.
    """
    ones = torch.ones(values.shape[-1], 1)
    mean: Tensor = ((values * weight) @ ones) / (weight @ ones)
    return mean


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
