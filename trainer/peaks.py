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
        self.averaged_cells = averaged_cells
        self.peak_cells, self.merge_cells = peak_cells, merge_cells
        self.agreement_px = agreement_px
        self.alpha, self.beta = alpha, beta
        self.split = split
        kind = torch.arange(split**2)
        self.register_buffer("row_in_block", kind // split)
        self.register_buffer("column_in_block", kind % split)
        half = averaged_cells // 2
        self.beside = _Surroundings(1, split, stride_px)
        self.about = _Surroundings(reach_cells + half, split, stride_px)
        steps = _steps(reach_cells + half)
        within = (steps.abs() <= reach_cells).all(1).float()
        averaged = ((steps[:, None] - steps[None]).abs() <= half).all(-1).float() / averaged_cells**2
        self.register_buffer("averaging", averaged * within)
        self.register_buffer("faintest", 1e-9 * within)
        self.register_buffer("core", (steps.abs() <= 1).all(1).float())

    row_in_block: Tensor
    column_in_block: Tensor
    averaging: Tensor
    faintest: Tensor
    core: Tensor

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
        place = self._cell_row(kind, row) * size[1] + self._cell_column(kind, column)
        on_grid = torch.zeros(size[0] * size[1]).scatter(0, place, score)
        highest = _highest_around(on_grid, size, self.peak_cells).index_select(0, place)
        chosen = torch.nonzero((score >= highest) & (score >= threshold))[:, 0]
        kind, row, column = (each.index_select(0, chosen) for each in (kind, row, column))
        score = score.index_select(0, chosen)
        y, x, variance, values = self._local_average(cells, kind, row, column, h, w)
        chosen = torch.nonzero(self._is_best_near(size, y, x, score) & torch.isfinite(y + x))[:, 0]
        y, x, score, variance, *values = torch.stack([y, x, score, variance, *values]).index_select(1, chosen).unbind()
        return y, x, score, variance, values

    def _cell_row(self, kind: Tensor, row: Tensor) -> Tensor:
        """Return the row in the grid of cells."""
        return row * self.split + self.row_in_block.index_select(0, kind)

    def _cell_column(self, kind: Tensor, column: Tensor) -> Tensor:
        return column * self.split + self.column_in_block.index_select(0, kind)

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
        near, inside = self.beside(cells, kind, row, column, h, w)
        dy, dx, rho, *_ = near.unbind(-1)
        y, x = dy + self.beside.y_px, dx + self.beside.x_px
        away_y, away_x = y - weighted_mean(y, inside), x - weighted_mean(x, inside)
        variance = weighted_mean(away_y * away_y + away_x * away_x, inside)[:, 0]
        log_score: Tensor = self.alpha * F.logsigmoid(rho[:, 4]) - self.beta * torch.log1p(variance)
        return torch.exp(log_score)

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
        near, inside = self.about(cells, kind, row, column, h, w)
        dy, dx, rho, *values = near.unbind(-1)
        dy, dx = dy + self.about.y_px, dx + self.about.x_px
        say = weight = ((torch.sigmoid(rho) * inside) @ self.averaging + self.faintest) * inside
        first = weight * self.core
        away_y, away_x = dy - weighted_mean(dy, first), dx - weighted_mean(dx, first)
        disagreement = (away_y * away_y + away_x * away_x) / self.agreement_px**2
        weight = weight / (1 + disagreement * disagreement)
        mean_y, mean_x = weighted_mean(dy, weight), weighted_mean(dx, weight)
        away_y, away_x = dy - mean_y, dx - mean_x
        variance = weighted_mean(away_y * away_y + away_x * away_x, say)
        half_cell_px = (self.stride_px - 1) / 2
        y = self.stride_px * self._cell_row(kind, row) + half_cell_px + mean_y[:, 0]
        x = self.stride_px * self._cell_column(kind, column) + half_cell_px + mean_x[:, 0]
        return y, x, variance[:, 0], [weighted_mean(value, weight)[:, 0] for value in values]

    def _is_best_near(self, size: tuple[int, int], y: Tensor, x: Tensor, peak_score: Tensor) -> Tensor:
        """Of peaks that point to the same place keep the best, of equals the first, (N,) bool."""
        row = torch.round(y / self.stride_px).to(torch.int64).clamp(0, size[0] - 1)
        column = torch.round(x / self.stride_px).to(torch.int64).clamp(0, size[1] - 1)
        place = row * size[1] + column

        def highest_near(values: Tensor) -> Tensor:
            on_grid = torch.zeros(size[0] * size[1]).scatter_reduce(0, place, values, "amax")
            return _highest_around(on_grid, size, self.merge_cells).index_select(0, place)

        best = peak_score >= highest_near(peak_score)
        turn = torch.where(best, place.numel() - torch.arange(place.numel()), 0).to(torch.float32)
        return best & (turn >= highest_near(turn))


class _Surroundings(nn.Module):
    """Looks up the cells within reach of some cells."""

    def __init__(self, reach_cells: int, split: int, stride_px: int) -> None:
        super().__init__()
        self.split = split
        kind = torch.arange(split**2)
        steps = _steps(reach_cells)
        in_block = torch.stack([kind // split, kind % split], -1)[:, None] + steps  # (split^2, K, 2)
        block = torch.div(in_block, split, rounding_mode="floor")
        # of each kind of cell: steps to the blocks of its neighbours, (split^2, K), and their own kinds
        self.register_buffer("block_row", block[..., 0].clone())
        self.register_buffer("block_column", block[..., 1].clone())
        self.register_buffer("kind", ((in_block - block * split) * torch.tensor([split, 1])).sum(-1))
        self.register_buffer("y_px", (stride_px * steps[:, 0]).float())
        self.register_buffer("x_px", (stride_px * steps[:, 1]).float())

    block_row: Tensor
    block_column: Tensor
    kind: Tensor
    y_px: Tensor
    x_px: Tensor

    def forward(
        self, cells: Tensor, kind: Tensor, row: Tensor, column: Tensor, h: int, w: int
    ) -> tuple[Tensor, Tensor]:
        """Return the values of the cells around each of N, (N, K, 3 + V), and 1 for those in the grid, (N, K)."""
        rows = row[:, None] + self.block_row.index_select(0, kind)
        columns = column[:, None] + self.block_column.index_select(0, kind)
        rows_inside, columns_inside = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
        inside = (rows == rows_inside) & (columns == columns_inside)
        place = (rows_inside * w + columns_inside) * self.split**2 + self.kind.index_select(0, kind)
        # embedding becomes one Gather; fancy indexing becomes a Reshape, which ONNX forbids for no peaks at all
        return F.embedding(place, cells), inside.to(cells.dtype)


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
