"""A grid of predictions becomes one row per particle: `PeakGraph`, the part that every deployed tracker shares."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
        self.reach_cells, self.averaged_cells = reach_cells, averaged_cells
        self.peak_cells, self.merge_cells = peak_cells, merge_cells
        self.agreement_px = agreement_px
        self.alpha, self.beta = alpha, beta
        self.split = split
        kind = torch.arange(split**2)
        self.register_buffer("row_in_block", kind // split)
        self.register_buffer("column_in_block", kind % split)
        self.register_buffer("beside", _steps(1))
        half = averaged_cells // 2
        about = _steps(reach_cells + half)
        self.register_buffer("about", about)
        within = (about.abs() <= reach_cells).all(1).float()
        self.register_buffer("within", within)
        self.register_buffer("core", (about.abs() <= 1).all(1).float())
        averaged = ((about[:, None] - about[None]).abs() <= half).all(-1).float() / averaged_cells**2
        self.register_buffer("averaging", averaged * within)

    row_in_block: Tensor
    column_in_block: Tensor
    beside: Tensor
    about: Tensor
    within: Tensor
    core: Tensor
    averaging: Tensor

    def found(self, blocks: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
        """Return y, x, score, variance (px^2, axes summed) and the further values of each particle, (N,) each.

        Only cells whose weight allows a score above the threshold are looked at: few, where few particles are.
        """
        _, h, w = blocks.shape
        size = h * self.split, w * self.split
        n_values = blocks.shape[0] // self.split**2
        cells = blocks.flatten(1).T.reshape(-1, n_values)  # (h * w * split^2, 3 + V)
        threshold = threshold.clamp(min=LOWEST_SCORE)
        kind, row, column = torch.nonzero(blocks[2::n_values] >= self._lowest_rho(threshold)).unbind(1)
        score = self.score(cells, kind, row, column, h, w)
        cell_row, cell_column = self._cell(kind, row, column)
        place = cell_row * size[1] + cell_column
        on_grid = torch.zeros(size[0] * size[1]).scatter(0, place, score)
        is_peak = (score >= _highest_around(on_grid, size, self.peak_cells)[place]) & (score >= threshold)
        kind, row, column, place = torch.stack([kind, row, column, place])[:, is_peak].unbind()
        peak_score = score[is_peak]
        y, x, variance, values = self._local_average(cells, kind, row, column, h, w)
        keep = self._is_best_near(size, y, x, peak_score) & torch.isfinite(y + x)
        y, x, peak_score, variance, *values = torch.stack([y, x, peak_score, variance, *values])[:, keep].unbind()
        return y, x, peak_score, variance, values

    def _cell(self, kind: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Return row and column in the grid of cells."""
        in_block = self.row_in_block.index_select(0, kind), self.column_in_block.index_select(0, kind)
        return row * self.split + in_block[0], column * self.split + in_block[1]

    def _lowest_rho(self, threshold: Tensor) -> Tensor:
        """Below this no agreement lifts the score to the threshold."""
        if self.alpha == 0:
            return threshold.new_full((), -math.inf)
        weight = (threshold ** (1 / self.alpha)).clamp(max=1 - 1e-6)
        return torch.log(weight / (1 - weight)) - 1e-3  # the score itself is compared later

    def score(self, cells: Tensor, kind: Tensor, row: Tensor, column: Tensor, h: int, w: int) -> Tensor:
        """Return w^alpha c^beta of some cells, (N,), in 0..1: cell `kind` of the block in `row` and `column`.

        Differs from the paper: c = 1 / (1 + variance / px^2) in place of 1 / (1e-6 + variance), so that a score has
        the same meaning in every model.
        """
        near, inside, along_y, along_x = self._around(self.beside, cells, kind, row, column, h, w)
        y, x = near[..., 0] + along_y, near[..., 1] + along_x
        away_y, away_x = y - weighted_mean(y, inside), x - weighted_mean(x, inside)
        variance = weighted_mean(away_y * away_y + away_x * away_x, inside)[:, 0]
        rho = near[:, len(self.beside) // 2, 2]
        log_score: Tensor = self.alpha * F.logsigmoid(rho) - self.beta * torch.log1p(variance)
        return torch.exp(log_score)

    def _around(
        self, steps: Tensor, cells: Tensor, kind: Tensor, row: Tensor, column: Tensor, h: int, w: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the cells (N, K, 3 + V) at steps (K, 2), if they are in the grid (N, K), and the steps in px, (K,)."""
        in_block = torch.stack([self.row_in_block, self.column_in_block], -1)[:, None] + steps  # (split^2, K, 2)
        block = torch.div(in_block, self.split, rounding_mode="floor")
        step_row, step_column = block.unbind(-1)
        other = ((in_block - block * self.split) * torch.tensor([self.split, 1])).sum(-1)
        # embedding becomes one Gather; fancy indexing becomes a Reshape, which ONNX forbids for no peaks at all
        rows = row[:, None] + step_row.index_select(0, kind)
        columns = column[:, None] + step_column.index_select(0, kind)
        inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
        block_place = rows.clamp(0, h - 1) * w + columns.clamp(0, w - 1)
        near = F.embedding(block_place * self.split**2 + other.index_select(0, kind), cells)
        along_y, along_x = (self.stride_px * steps).to(cells.dtype).unbind(-1)
        return near, inside.to(cells.dtype), along_y, along_x

    def _local_average(
        self, cells: Tensor, kind: Tensor, row: Tensor, column: Tensor, h: int, w: int
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Weighted average and variance, axes summed, of the predictions around each peak, in pixels of the grid.

        Predictions that disagree with those next to the peak (of a neighbouring particle) lose their say.

        Returns
        -------
        y, x, variance : (N,)
        values : list of (N,)
            Of the channels after the third.
        """
        near, inside, along_y, along_x = self._around(self.about, cells, kind, row, column, h, w)
        dy, dx, rho, *values = near.unbind(-1)
        dy, dx = dy + along_y, dx + along_x
        say = weight = ((torch.sigmoid(rho) * inside) @ self.averaging + 1e-9 * self.within) * inside
        first_y, first_x = weighted_mean(dy, weight * self.core), weighted_mean(dx, weight * self.core)
        distance_squared = (dy - first_y) ** 2 + (dx - first_x) ** 2
        weight = weight / (1 + (distance_squared / self.agreement_px**2) ** 2)
        half_cell_px = (self.stride_px - 1) / 2
        mean_y, mean_x = weighted_mean(dy, weight), weighted_mean(dx, weight)
        variance = weighted_mean((dy - mean_y) ** 2 + (dx - mean_x) ** 2, say)
        cell_row, cell_column = self._cell(kind, row, column)
        y = self.stride_px * cell_row + half_cell_px + mean_y[:, 0]
        x = self.stride_px * cell_column + half_cell_px + mean_x[:, 0]
        return y, x, variance[:, 0], [weighted_mean(value, weight)[:, 0] for value in values]

    def _is_best_near(self, size: tuple[int, int], y: Tensor, x: Tensor, peak_score: Tensor) -> Tensor:
        """Of peaks that point to the same place keep the best, of equals the first, (N,) bool."""
        row = torch.round(y / self.stride_px).to(torch.int64).clamp(0, size[0] - 1)
        column = torch.round(x / self.stride_px).to(torch.int64).clamp(0, size[1] - 1)
        place = row * size[1] + column

        def highest_near(values: Tensor) -> Tensor:
            on_grid = torch.zeros(size[0] * size[1]).scatter_reduce(0, place, values, "amax")
            return _highest_around(on_grid, size, self.merge_cells)[place]

        best = peak_score >= highest_near(peak_score)
        turn = torch.where(best, place.numel() - torch.arange(place.numel()), 0).to(torch.float32)
        return best & (turn >= highest_near(turn))


def _highest_around(on_grid: Tensor, size: tuple[int, int], reach_cells: int) -> Tensor:
    """Highest value within reach of every cell, flat as `on_grid`."""
    window = 2 * reach_cells + 1
    return F.max_pool2d(on_grid.reshape(1, 1, *size), window, 1, reach_cells).flatten()


def _steps(reach_cells: int) -> Tensor:
    """Return the steps to all cells within reach, row after row, (K, 2)."""
    reach = torch.arange(-reach_cells, reach_cells + 1)
    return torch.cartesian_prod(reach, reach)


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
