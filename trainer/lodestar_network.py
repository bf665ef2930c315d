"""LodeSTAR's network, loss and settings.

Midtvedt et al., Single-shot self-supervised object detection in microscopy, Nat. Commun. 13, 7492 (2022): "the paper".
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneframe.trainer.crops import Views

STRIDE_PX = 2
"""Edge of a cell of the prediction grid, (pooled) pixels."""


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
    split_cells: bool = True
    """Convolve over blocks of 2 x 2 cells, and give each of the four its own prediction at the end: a sixth of the
    cost. Differs from the paper."""
    n_convolutions: int | None = None
    """Convolutions before the last, the stem counted as one; None: 5 with `split_cells`, 8 without: both see 34 to 40
    px."""
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
        split_cells=False,
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


class LodestarNetwork(nn.Module):
    """Predicts from an image (B, C, H, W) a grid of (dy, dx, rho), shape (B, 3, H / 2, W / 2).

    Differs from the paper, unless `paper_network`: a strided convolution in place of full-resolution layers and
    pooling, over cells or, with `split_cells`, blocks of four.
    """

    def __init__(self, n_channels: int, settings: LodestarSettings) -> None:
        super().__init__()
        width = settings.channels
        self.split = 2 if settings.split_cells else 1
        self.margin_px = 0
        n_convolutions = settings.n_convolutions or (5 if settings.split_cells else 8)
        layers: list[nn.Module] = []
        if settings.paper_network:
            for n_inputs in (n_channels, width, width):
                layers += [nn.Conv2d(n_inputs, width, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(STRIDE_PX), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        else:
            step = STRIDE_PX * self.split
            self.margin_px = step - 1
            layers += [nn.Conv2d(n_channels, width, step + 4, stride=step), nn.ReLU()]
        for _ in range(n_convolutions - 1):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(width, 3 * self.split**2, 1)

    def blocks(self, image: Tensor) -> Tensor:
        """Return the grid as `PeakGraph` takes it: (B, 3 split^2, h, w), the cells of a block row after row."""
        if self.margin_px:
            # as many cells as cover all pixels
            image = F.pad(image, (2, 2 + self.margin_px, 2, 2 + self.margin_px))
        grid: Tensor = self.head(self.body(image))
        return grid

    def forward(self, image: Tensor) -> Tensor:
        """Return the prediction grid."""
        blocks = self.blocks(image)
        if self.split == 1:
            return blocks
        n, _, h, w = blocks.shape
        by_value = blocks.reshape(n, self.split**2, 3, h, w).transpose(1, 2).reshape(n, -1, h, w)
        return F.pixel_shuffle(by_value, self.split)

    @torch.no_grad()
    def folded(self, scale: float) -> LodestarNetwork:
        """Return a copy that divides its input by `scale`."""
        copied = copy.deepcopy(self)
        next(copied.body.parameters()).div_(scale)
        return copied

    @torch.no_grad()
    def add_to_rho(self, step: float) -> None:
        """Change all weights, before the sigmoid, by the same step."""
        if self.head.bias is not None:
            self.head.bias[2::3] += step


def cell_positions(grid: Tensor) -> Tensor:
    """Return the position that each cell predicts, (B, 2, h, w), px relative to the centre of the view."""
    h, w = grid.shape[-2:]
    y = (torch.arange(h, device=grid.device) - (h - 1) / 2) * STRIDE_PX
    x = (torch.arange(w, device=grid.device) - (w - 1) / 2) * STRIDE_PX
    return grid[:, :2] + torch.stack(torch.meshgrid(y, x, indexing="ij"))


def averaged_weights(rho: Tensor, n_cells: int) -> Tensor:
    """Return the weights (B, h, w) of a grid's third channel, averaged over squares of `n_cells`."""
    return F.avg_pool2d(torch.sigmoid(rho)[:, None], n_cells, 1, n_cells // 2)[:, 0]


def consensus(grid: Tensor, reach_cells: int, n_cells: int, *, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
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
    grid: Tensor,
    views: Views,
    settings: LodestarSettings,
    reach_cells: int,
    generator: torch.Generator,
) -> Tensor:
    """Return the training loss: all views agree (equivariance), all cells of a view agree (internal consistency).

    References
    ----------
    The paper, Methods, "Training": the between and the within loss.
    """
    keep = (torch.rand(grid[:, 2].shape, generator=generator) >= settings.dropout).to(grid.dtype)
    position, spread = consensus(grid, reach_cells, settings.averaged_cells, keep=keep)
    in_source = views.to_source(position)
    agreed = in_source[: views.n_whole].mean(0)
    whole = (in_source[: views.n_whole] - agreed).abs().sum()
    cut = (in_source[views.n_whole :] - agreed.detach()).abs().sum()
    between = (whole + cut) / in_source.numel()
    return between + settings.within_weight * spread.mean()
