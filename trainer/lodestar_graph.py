"""LodeSTAR's deployed graph: camera pixels in, one row per particle out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from oneframe.trainer.crops import Normalisation
from oneframe.trainer.likelihood import LikelihoodFit, Likeness
from oneframe.trainer.lodestar_network import STRIDE_PX, LodestarNetwork, LodestarSettings, averaged_weights

LOWEST_SCORE = 1e-6
"""Whatever the threshold, a lower score is the plain background's."""

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
