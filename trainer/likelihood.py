"""The last step of the deployed graph: each position is fitted to the pixels with the image of the learned particle.

The network knows where a particle is to a few hundredths of a pixel, limited by how well so small a network can be
fitted; the maximum-likelihood estimate is limited by the light alone, and it knows its own uncertainty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneframe.trainer.crops import REFINEMENT, orthogonal, sample
from oneframe.trainer.symmetry import PixelNoise

N_STEPS = 3
"""Gauss-Newton steps."""
UNLIKE = 0.35
"""Share of a patch's structure that the fit may leave over; beyond it the object is not like the learned ones."""
OUTLIER = 5.0
"""Residual, in standard deviations, at which a pixel has lost half its say (it shows something else)."""


@dataclass(frozen=True, slots=True, eq=False)
class Likeness:
    """Images of the particles that were learned; lengths in pooled pixels."""

    images: Tensor
    """(M, 3, F, F): `with_gradients` of each boxed particle, the point that is reported in its middle."""
    seen_px: Tensor
    """(M, 2): where the network sees each, (y, x) relative to the middle."""
    diameter_px: float
    noise: PixelNoise
    has_angle: bool
    """False if every rotation leaves them unchanged."""
    has_hand: bool
    """True if a reflection changes them."""


class LikelihoodFit(nn.Module):
    """Moves positions to the maximum of the likelihood of the pixels around them, and tells how sure they are.

    The model of a patch is gain * particle(turned, shifted) + background, its pixels independent with the variance of
    `PixelNoise`, the size of which is taken from the residual of each patch. The best of a bank of turned particles
    starts Gauss-Newton steps in position, angle, gain and background; pixels that something else covers lose their say.

    References
    ----------
    Ober, Ram, Ward, Localization accuracy in single-molecule microscopy, Biophys. J. 86, 1185 (2004): the bound that
    this estimate reaches.
    """

    def __init__(self, likeness: Likeness, *, n_bank_angles: int = 48) -> None:
        super().__init__()
        self.noise = likeness.noise
        self.has_angle = likeness.has_angle
        radius_px = likeness.diameter_px / 2 + 4
        self.reach_px = math.ceil(radius_px)
        self.size = 2 * self.reach_px + 1
        self.radius_px = radius_px
        self.largest_move_px = max(1.0, likeness.diameter_px / 5)
        n_sources, _, fine, _ = likeness.images.shape
        self.fine_px = (fine - 1) / REFINEMENT
        # side by side, so that one sampling serves detections of any source
        self.register_buffer("atlas", likeness.images.permute(1, 2, 0, 3).reshape(1, 3, fine, n_sources * fine))
        angles = torch.arange(n_bank_angles) * (2 * math.pi / n_bank_angles) if self.has_angle else torch.zeros(1)
        hands = torch.tensor([1.0, -1.0] if likeness.has_hand and self.has_angle else [1.0])
        source, hand, angle = torch.cartesian_prod(torch.arange(n_sources, dtype=torch.float32), hands, angles).T
        turned = orthogonal(angle, hand)
        bank = torch.cat(
            [
                sample(likeness.images[int(s), :1], linear[None], likeness.seen_px[int(s)][None], self.size)[:, 0]
                for s, linear in zip(source, turned, strict=True)
            ]
        ).flatten(1)
        v = torch.arange(-self.reach_px, self.reach_px + 1.0)
        grid_yx = torch.stack(torch.meshgrid(v, v, indexing="ij"), -1).reshape(-1, 2)
        disc = (grid_yx.square().sum(-1) < radius_px**2).float()
        bank = (bank - (bank * disc).sum(1, keepdim=True) / disc.sum()) * disc
        self.register_buffer("bank", bank / bank.norm(dim=1, keepdim=True))
        self.register_buffer("bank_pose", torch.stack([source, hand, angle], -1))
        seen_from_middle = torch.einsum("bji,bj->bi", turned, likeness.seen_px[source.long()])
        self.register_buffer("bank_move", seen_from_middle)
        self.register_buffer("grid_yx", grid_yx)

    atlas: Tensor
    bank: Tensor
    bank_pose: Tensor
    bank_move: Tensor
    grid_yx: Tensor

    def forward(self, image: Tensor, y: Tensor, x: Tensor, sigma_px: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return better y and x and their standard deviations, each (N,).

        Where the pixels do not support the fit, the position stays and `sigma_px` (N,) stands.

        Parameters
        ----------
        image : (H, W)
            Normalised pixels.
        y, x : (N,)
            Where the network sees particles.
        """
        row, column = torch.round(y), torch.round(x)
        pixels, inside = self._patches(image, row, column)
        alike = torch.argmax(pixels @ self.bank.T, 1)
        pose = self.bank_pose[alike]
        start = torch.stack([y - row, x - column], -1) - self.bank_move[alike]
        seed = torch.stack([torch.ones_like(y), torch.zeros_like(y), torch.full_like(y, 1e12)], -1)
        state = torch.cat([start, pose[:, 2:], seed, torch.ones_like(start), torch.zeros_like(y)[:, None]], -1)
        for _ in range(N_STEPS):
            state = self._step(state, pixels, inside, pose)
        shift, gain, variance, left_over = state[:, :2], state[:, 3], state[:, 6:8], state[:, 8]
        moved = (shift - start).square().sum(-1).sqrt()
        sound = (
            (left_over < UNLIKE)
            & (gain > 0.05)
            & (moved < self.largest_move_px)
            & (variance.amax(1) < self.largest_move_px**2)
        )
        return (
            torch.where(sound, row + shift[:, 0], y),
            torch.where(sound, column + shift[:, 1], x),
            torch.where(sound, variance[:, 0].clamp(min=0).sqrt(), sigma_px),
            torch.where(sound, variance[:, 1].clamp(min=0).sqrt(), sigma_px),
        )

    def _step(self, state: Tensor, pixels: Tensor, inside: Tensor, pose: Tensor) -> Tensor:
        """Take one Gauss-Newton step: state (N, 9) of y, x, angle, gain, background, scatter, variances, left-over."""
        shift, angle = state[:, :2], state[:, 2]
        gain, background, scatter = state[:, 3:4], state[:, 4:5], state[:, 5:6]
        model, jacobian = self._model(shift, angle, pose[:, 1], pose[:, 0])
        variance = self.noise.variance(model)
        rest = pixels - background - gain * model
        say = inside * self._near(shift) / (1 + (rest**2 / (OUTLIER**2 * scatter * variance)) ** 2)
        weighted = jacobian * (say / variance)[:, None, :]
        solution, inverse = _solved(weighted @ jacobian.mT, weighted @ pixels[..., None])
        rest = pixels - (solution[:, None, :] @ jacobian)[:, 0]
        n_free = (say.sum(1, keepdim=True) - jacobian.shape[1]).clamp(min=1)
        scatter = (say * rest**2 / variance).sum(1, keepdim=True) / n_free + 1e-12
        safe_gain = solution[:, :1].clamp(min=0.05)
        shift = shift + (solution[:, 2:4] / safe_gain).clamp(-0.5, 0.5)
        if self.has_angle:
            angle = angle + (solution[:, 4] / safe_gain[:, 0]).clamp(-0.2, 0.2)
        found = inverse[:, 2:4] * scatter / safe_gain**2
        shown = self._structure(say * (pixels - solution[:, 1:2]))
        left_over = self._structure(say * rest) / shown.clamp(min=1e-12)
        return torch.cat([shift, angle[:, None], solution[:, :2], scatter, found, left_over], -1)

    def _structure(self, patches: Tensor) -> Tensor:
        """Sum of the products of neighbouring pixels, (N, 1): white noise drops out of it."""
        square = patches.reshape(-1, self.size, self.size)
        down = (square[:, 1:] * square[:, :-1]).sum((1, 2))
        return (down + (square[:, :, 1:] * square[:, :, :-1]).sum((1, 2)))[:, None]

    def _patches(self, image: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Cut patches round whole-pixel places, (N, K), and tell which of their pixels lie in the image."""
        h, w = image.shape
        rows = row[:, None] + self.grid_yx[:, 0]
        columns = column[:, None] + self.grid_yx[:, 1]
        inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
        place = (rows.clamp(0, h - 1) * w + columns.clamp(0, w - 1)).to(torch.int64)
        return F.embedding(place, image.reshape(-1, 1))[..., 0], inside.float()

    def _near(self, shift: Tensor) -> Tensor:
        """1 for the pixels of a patch within the fit's radius of the particle, (N, K)."""
        return ((self.grid_yx - shift[:, None, :]).square().sum(-1) < self.radius_px**2).float()

    def _model(self, shift: Tensor, angle: Tensor, hand: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return the particle's image (N, K) and its derivatives by gain, background, y, x and angle, (N, P, K)."""
        linear = orthogonal(angle, hand)
        at = (self.grid_yx - shift[:, None, :]) @ linear.mT  # (N, K, 2) px from the middle of the source
        _, _, fine, width = self.atlas.shape
        fine_y = (at[..., 0].clamp(-self.fine_px / 2, self.fine_px / 2) + self.fine_px / 2) * REFINEMENT
        fine_x = (at[..., 1].clamp(-self.fine_px / 2, self.fine_px / 2) + self.fine_px / 2) * REFINEMENT
        fine_x = fine_x + source[:, None] * fine
        where = torch.stack([2 * fine_x / (width - 1) - 1, 2 * fine_y / (fine - 1) - 1], -1)  # grid_sample wants (x, y)
        found = F.grid_sample(self.atlas, where[None], mode="bilinear", align_corners=True)[0]  # (3, N, K)
        image, along_y, along_x = found[0], found[1], found[2]
        by_y = -(along_y * linear[:, 0, 0, None] + along_x * linear[:, 1, 0, None])
        by_x = -(along_y * linear[:, 0, 1, None] + along_x * linear[:, 1, 1, None])
        columns = [image, torch.ones_like(image), by_y, by_x]
        if self.has_angle:
            columns.append(along_x * at[..., 0] - along_y * at[..., 1])
        return image, torch.stack(columns, 1)


def bound_px(image: Tensor, noise: PixelNoise, diameter_px: float, *, has_angle: bool) -> float:
    """Return the Cramér-Rao bound on the standard deviation per axis: no unbiased estimate can do better.

    Position, gain, background and, with `has_angle`, the angle are unknown.

    Parameters
    ----------
    image : (3, F, F)
        `with_gradients` of the particle; lengths in its pixels.
    """
    covariance = _covariance(image, noise, diameter_px)
    if not has_angle:
        covariance = torch.linalg.inv(torch.linalg.inv(covariance)[:4, :4])
    return float(covariance.diagonal()[2:4].mean().sqrt())


def best_located(image: Tensor, noise: PixelNoise, diameter_px: float) -> Tensor:
    """Return the point of a particle that can be located best, (y, x) relative to its middle.

    An error of the angle moves every other point too: of all points, the errors of this one alone do not depend on it.
    For a particle with a centre of symmetry, it is that centre. Arguments as in `bound_px`.
    """
    covariance = _covariance(image, noise, diameter_px)
    point: Tensor = torch.stack([covariance[3, 4], -covariance[2, 4]]) / covariance[4, 4]
    return point


def _covariance(image: Tensor, noise: PixelNoise, diameter_px: float) -> Tensor:
    """Inverse of the Fisher information about gain, background, y, x and angle, (5, 5)."""
    reach_px = math.ceil(diameter_px / 2 + 4)
    v = torch.arange(-reach_px, reach_px + 1.0)
    y, x = torch.meshgrid(v, v, indexing="ij")
    found = sample(image, torch.eye(2)[None], torch.zeros(1, 2), len(v))[0]
    jacobian = torch.stack([found[0], torch.ones_like(y), -found[1], -found[2], found[2] * y - found[1] * x]).flatten(1)
    information = jacobian / noise.variance(found[0]).flatten() @ jacobian.T
    # a round particle knows no angle: keep the matrix regular without saying anything about the rest
    regular: Tensor = torch.linalg.inv(information + 1e-6 * torch.diag(information.diagonal()))
    return regular


def _solved(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Solve symmetric positive systems (N, P, P) x = (N, P, 1); return x (N, P) and the diagonal of the inverse (N, P).

    Gauss-Jordan elimination, written out: ONNX has no operator for it.
    """
    n = matrix.shape[-1]
    size = torch.diagonal(matrix, dim1=1, dim2=2).clamp(min=1e-12).sqrt()  # scaled to a unit diagonal
    matrix = matrix / (size[:, :, None] * size[:, None, :]) + 1e-6 * torch.eye(n)
    work = torch.cat([matrix, right / size[..., None], torch.eye(n).expand(matrix.shape)], -1)
    for k in range(n):
        row, column = work[:, k : k + 1], work[:, :, k : k + 1]
        work = work - (column - torch.eye(n)[:, k : k + 1]) * (row / row[..., k : k + 1])
    return work[..., n] / size, torch.diagonal(work[..., n + 1 :], dim1=1, dim2=2) / size**2
