"""The network that finds particles in planes along z, its settings, its loss, and the graph that is deployed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneframe.runtime.detections import Flag
from oneframe.trainer.hologram_views import HologramViews
from oneframe.trainer.peaks import PeakGraph


@dataclass(frozen=True, slots=True)
class HologramTraining:
    """Settings of one training on a hologram."""

    n_steps: int = 4000
    """Gradient steps."""
    n_views: int = 8
    """Views a step."""
    channels: int = 16
    """Width of the network."""
    n_convolutions: int = 5
    """3x3 convolutions; the planes bring every particle close to focus, so that few cells tell all."""
    z_range_um: tuple[float, float] | None = None
    """Lowest and highest z; None: from the frame."""
    spheres: bool = True
    """Give the polarizability for homogeneous spheres; otherwise the light straight ahead, without a model."""
    reach_cells: int = 2
    """Distance from the particle within which cells have a say."""
    shift_cells: float = 2.0
    """Largest distance of the particle from the middle of a view."""
    z_weight: float = 2.0
    """Weight of z in units of 0.6 depths of focus against positions in cells and the logarithm of the signal."""
    within_weight: float = 0.5
    """Weight of what each cell says against what they say together."""
    place_weight: float = 30.0
    """Weight of where a particle is seen at all."""
    spot_cells: float = 0.9
    """Standard deviation of the spot of weights that marks a particle."""
    peak_learning_rate: float = 5e-3
    averaging: float = 0.99
    """Decay per step of the moving average of the network's parameters."""
    alpha: float = 0.5
    """Exponent of the weight w in the score w^alpha c^beta."""
    beta: float = 0.5
    """Exponent of the agreement c of neighbouring predictions."""
    max_attempts: int = 3
    """Trainings tried, each from another random start, before giving up."""

    @property
    def view_cells(self) -> int:
        """Edge of a view: no cell that has a say sees beyond it."""
        return 2 * (self.n_convolutions + self.reach_cells + int(self.shift_cells) + 3)


class HologramNetwork(nn.Module):
    """Predicts from planes (B, 2 P, h, w) a grid of (dy, dx, rho, z in um, log signal), shape (B, 5, h, w).

    Parameters
    ----------
    n_channels : int
    settings : HologramTraining
    middle_um, unit_um : float
        z is learned as a multiple of a unit from the middle of its range.
    """

    def __init__(self, n_channels: int, settings: HologramTraining, *, middle_um: float, unit_um: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(settings.n_convolutions):
            layers += [nn.Conv2d(settings.channels if i else n_channels, settings.channels, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(settings.channels, 5, 1)
        self.register_buffer("scale", torch.tensor([1.0, 1.0, 1.0, unit_um, 1.0])[:, None, None])
        self.register_buffer("shift", torch.tensor([0.0, 0.0, 0.0, middle_um, 0.0])[:, None, None])

    scale: Tensor
    shift: Tensor

    def forward(self, planes: Tensor) -> Tensor:
        """Return the prediction grid."""
        grid: Tensor = self.head(self.body(planes)) * self.scale + self.shift
        return grid

    @torch.no_grad()
    def folded(self, signal: float) -> nn.Sequential:
        """Return the same network for planes in units of the background, all factors within its weights."""
        copied = copy.deepcopy(self)
        first: Any = copied.body[0]
        first.weight /= signal
        copied.head.weight *= self.scale[:, :, :, None]
        copied.head.bias *= self.scale[:, 0, 0]  # type: ignore[operator]
        copied.head.bias += self.shift[:, 0, 0]
        return nn.Sequential(*copied.body, copied.head)


def residuals(grid: Tensor, views: HologramViews) -> Tensor:
    """Return how far each cell's predictions are from what its view shows, (B, 4, h, w): y, x, z, log signal."""
    h, w = grid.shape[-2:]
    y, x = torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2
    cells = torch.stack(torch.meshgrid(y, x, indexing="ij"))
    known = torch.cat([views.seen_cells, views.z_um[:, None], views.log_signal[:, None]], 1)[:, :, None, None]
    return torch.cat([grid[:, :2] + cells, grid[:, 3:]], 1) - known


def shares(grid: Tensor, views: HologramViews, settings: HologramTraining) -> Tensor:
    """Return each cell's say in its view, (B, 1, h, w), from its weight; summed over a view it is 1."""
    h, w = grid.shape[-2:]
    y, x = torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2
    middle = views.seen_cells.round()
    near_y = (y - middle[:, :1]).abs() <= settings.reach_cells + 0.5
    near = near_y[:, :, None] & ((x - middle[:, 1:]).abs() <= settings.reach_cells + 0.5)[:, None, :]
    say = (torch.sigmoid(grid[:, 2]) + 1e-3) * near
    share: Tensor = (say / say.sum((1, 2), keepdim=True))[:, None]
    return share


def hologram_loss(
    grid: Tensor, views: HologramViews, settings: HologramTraining, unit_um: float
) -> tuple[Tensor, Tensor]:
    """Return the training loss, and the mean error of z, um.

    Equivariance under shifts, propagation (z) and scaling (log signal), all cells near the particle together and each
    for itself. Differs from the paper, which compares the views with their mean and so leaves the origin of z open:
    the crop was refocused, so the views know theirs. The weights learn to mark the particle and nothing else.

    References
    ----------
    Midtvedt et al., Nat. Commun. 13, 7492 (2022), Methods, "Training".
    """
    error = residuals(grid, views)
    share = shares(grid, views, settings).detach()
    counts = views.present[:, None] / views.present.sum().clamp(min=1)
    each = ((error.abs() * share).sum((2, 3)) * counts).sum(0)
    together = ((error * share).sum((2, 3)).abs() * counts).sum(0)
    weight = torch.tensor([1.0, 1.0, settings.z_weight / unit_um, 1.0])
    place = F.binary_cross_entropy_with_logits(grid[:, 2], views.spots(grid.shape[-2:], settings.spot_cells))
    loss = (weight * (settings.within_weight * each + together)).sum() + settings.place_weight * place
    return loss, together[2].detach()


class HologramGraph(PeakGraph):
    """The deployed graph: planes of a scattered field in, one row per particle out.

    Positions are pixels of the camera: cell [i, j] lies on camera pixel [ratio * i, ratio * j].

    Parameters
    ----------
    network : HologramNetwork
    settings : HologramTraining
    scale : float
        Signal in focus of the crop's particle.
    ratio : int
        Camera pixels per cell.
    sigma_px, sigma_z_um : float
        Errors on views.
    polarizability_um3 : float
        Of the crop's particle.
    z_um, log_signal : (float, float)
        Trained ranges.
    """

    columns = (
        "y_px", "x_px", "score", "z_um", "polarizability_um3", "sigma_y_px", "sigma_x_px", "sigma_z_um",
        "variance_px2", "flags",
    )  # fmt: skip

    def __init__(
        self,
        network: HologramNetwork,
        settings: HologramTraining,
        *,
        scale: float,
        ratio: int,
        sigma_px: float,
        sigma_z_um: float,
        polarizability_um3: float,
        z_um: tuple[float, float],
        log_signal: tuple[float, float],
    ) -> None:
        super().__init__(
            stride_px=1,
            reach_cells=settings.reach_cells,
            averaged_cells=1,
            peak_cells=settings.reach_cells,
            merge_cells=settings.reach_cells,
            agreement_px=1.0,
            alpha=settings.alpha,
            beta=settings.beta,
        )
        self.network = network.folded(scale)
        self.ratio = ratio
        self.sigma_px, self.sigma_z_um = sigma_px, sigma_z_um
        self.polarizability_um3 = polarizability_um3
        self.z_um, self.log_signal = z_um, log_signal

    def forward(self, image: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        """Return `columns`, each (N,), for the planes (2 P, h, w) and the lowest score to report."""
        grid = self.network(image[None]).squeeze(0)
        y, x, score, variance, values = self.found(grid, threshold)
        height, width = image.shape[-2:]
        inside = (y >= -0.5) & (y < height - 0.5) & (x >= -0.5) & (x < width - 0.5)
        y, x, score, variance, z_um, log_signal = torch.stack([y, x, score, variance, *values])[:, inside].unbind()
        y, x = y * self.ratio, x * self.ratio
        outside_z = (z_um < self.z_um[0]) | (z_um > self.z_um[1])
        outside_signal = (log_signal < self.log_signal[0]) | (log_signal > self.log_signal[1])
        flags = outside_z * float(Flag.OUTSIDE_Z) + outside_signal * float(Flag.OUTSIDE_SIGNAL)
        # three tensors: the exporter gives one that is returned twice one name only
        sigmas = [torch.full_like(y, sigma) for sigma in (self.sigma_px, self.sigma_px, self.sigma_z_um)]
        polarizability = self.polarizability_um3 * torch.exp(log_signal)
        return y, x, score, z_um, polarizability, *sigmas, variance * self.ratio**2, flags
