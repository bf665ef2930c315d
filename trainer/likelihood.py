"""The last step of the deployed graph: each position is fitted to the pixels with the image of the learned particle.

The network knows where a particle is to a few hundredths of a pixel, limited by how well so small a network can be
fitted; the maximum-likelihood estimate is limited by the light alone, and it knows its own uncertainty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from oneframe.trainer.crops import REFINEMENT, orthogonal, sample
from oneframe.trainer.symmetry import PixelNoise

N_STEPS = 3
"""Gauss-Newton steps."""
LARGEST_STEP_PX = 0.75
"""Of one step, along each axis."""
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


class _Estimate(NamedTuple):
    """What the fit knows of each particle, (N, 1) each."""

    y: Tensor
    """Pixels from the middle of its patch."""
    x: Tensor
    angle: Tensor
    gain: Tensor
    background: Tensor
    scatter: Tensor
    """Size of the noise: variance of the residual over that of `PixelNoise`."""
    variance_y: Tensor
    variance_x: Tensor
    left_over: Tensor
    """Share of the patch's structure that the model does not explain."""


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
        self.largest_move_px = max(1.0, likeness.diameter_px / 3)
        self.largest_sigma_px = max(1.0, likeness.diameter_px / 5)
        n_sources, _, fine, _ = likeness.images.shape
        if not self.has_angle:
            self._tabulate(likeness)
        # side by side, so that one sampling serves detections of any source
        width = n_sources * fine
        self.register_buffer("atlas", likeness.images.permute(1, 2, 0, 3).reshape(1, 3, fine, width))
        self.half_px = (fine - 1) / (2 * REFINEMENT)
        self.register_buffer("atlas_scale", 2 * REFINEMENT / torch.tensor([width - 1.0, fine - 1.0]))
        middle_x = torch.arange(n_sources) * fine + (fine - 1) / 2
        self.register_buffer("atlas_middle", torch.stack([2 * middle_x / (width - 1) - 1, torch.zeros(n_sources)], -1))
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
        self.register_buffer("edge", v)
        self.register_buffer("grid_y", grid_yx[:, 0].clone())
        self.register_buffer("grid_x", grid_yx[:, 1].clone())
        self.register_buffer("identity", torch.eye(5 if self.has_angle else 4))

    def _tabulate(self, likeness: Likeness) -> None:
        """Shift the cubic spline through each particle by whole pixels, as far as a fit can move.

        A particle without an angle is then a weighted sum of these images: one matrix product, where sampling it
        pixel by pixel takes ONNX Runtime many times as long.
        """
        samples = likeness.images[:, 0, ::REFINEMENT, ::REFINEMENT].numpy()
        half = samples.shape[-1] // 2
        coefficients = np.stack([ndimage.spline_filter(each, 3, mode="mirror") for each in samples])
        # the first step starts up to 0.5 px off the middle of its patch
        farthest_px = 0.5 + LARGEST_STEP_PX * (N_STEPS - 1) + float(likeness.seen_px.abs().max())
        reach = math.ceil(farthest_px + 2) - 1
        shifts = torch.arange(-reach, reach + 1)
        v = np.arange(-self.reach_px, self.reach_px + 1)
        place = np.clip(half + v - shifts.numpy()[:, None], 0, samples.shape[-1] - 1)  # (S, size)
        table = coefficients[:, place[:, None, :, None], place[None, :, None, :]]  # (M, S, S, size, size)
        table = np.concatenate([table.reshape(-1, self.size**2), np.ones((1, self.size**2))])  # and the background
        self.register_buffer("table", torch.from_numpy(table.astype(np.float32)))
        self.register_buffer("shifts", shifts.float())
        background = torch.zeros(4, len(table))
        background[1, -1] = 1
        self.register_buffer("background", background)

    table: Tensor
    background: Tensor
    shifts: Tensor
    atlas: Tensor
    atlas_scale: Tensor
    atlas_middle: Tensor
    bank: Tensor
    bank_pose: Tensor
    bank_move: Tensor
    edge: Tensor
    grid_y: Tensor
    grid_x: Tensor
    identity: Tensor

    def forward(
        self, image: Tensor, y: Tensor, x: Tensor, sigma_px: Tensor, *, scale: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return better y and x and their standard deviations, each (N,).

        Where the pixels do not support the fit, the position stays and `sigma_px` (N,) stands.

        Parameters
        ----------
        image : (H, W)
            Pixels less the background, `scale` times the normalised ones.
        y, x : (N,)
            Where the network sees particles.
        """
        row, column = torch.round(y), torch.round(x)
        pixels, inside = self._patches(image, row, column)
        pixels = pixels / scale
        alike = torch.argmax(pixels @ self.bank.T, 1)
        source, hand, angle = torch.split(self.bank_pose[alike], 1, 1)
        move_y, move_x = torch.split(self.bank_move[alike], 1, 1)
        start_y, start_x = (y - row)[:, None] - move_y, (x - column)[:, None] - move_x
        one, zero = torch.ones_like(start_y), torch.zeros_like(start_y)
        if self.has_angle:
            middle = self.atlas_middle[source[:, 0].to(torch.int64)][:, None]
        else:
            middle = (torch.arange(len(self.bank)) == source).float()[:, None, :, None, None]
        at = _Estimate(start_y, start_x, angle, one, zero, one * 1e12, one, one, one)
        for _ in range(N_STEPS):
            at = self._step(at, pixels, inside, hand, middle)
        moved_squared = (at.y - start_y) ** 2 + (at.x - start_x) ** 2
        sound = (
            (at.left_over < UNLIKE)
            & (at.gain > 0.05)
            & (moved_squared < self.largest_move_px**2)
            & (torch.maximum(at.variance_y, at.variance_x) < self.largest_sigma_px**2)
        )[:, 0]
        return (
            torch.where(sound, row + at.y[:, 0], y),
            torch.where(sound, column + at.x[:, 0], x),
            torch.where(sound, at.variance_y[:, 0].clamp(min=0).sqrt(), sigma_px),
            torch.where(sound, at.variance_x[:, 0].clamp(min=0).sqrt(), sigma_px),
        )

    def _step(self, at: _Estimate, pixels: Tensor, inside: Tensor, hand: Tensor, middle: Tensor) -> _Estimate:
        """Take one Gauss-Newton step."""
        model, jacobian, near = self._model(at, hand, middle)
        variance = self.noise.variance(model)
        rest = pixels - at.background - at.gain * model
        strange = rest * rest / (OUTLIER**2 * at.scatter * variance)
        say = inside * near / (1 + strange * strange)
        weighted = jacobian * (say / variance)[:, None]
        solution, inverse = _solved(weighted @ jacobian.mT, weighted @ pixels[..., None], self.identity)
        rest = pixels - (solution[:, None] @ jacobian)[:, 0]
        n_free = (say.sum(1, keepdim=True) - jacobian.shape[1]).clamp(min=1)
        scatter = (say * rest * rest / variance).sum(1, keepdim=True) / n_free + 1e-12
        gain, background, by_y, by_x, *by_angle = torch.split(solution, 1, 1)
        safe_gain = gain.clamp(min=0.05)
        angle = at.angle
        if by_angle:
            angle = angle + (by_angle[0] / safe_gain).clamp(-0.2, 0.2)
        _, _, variance_y, variance_x, *_ = torch.split(inverse * (scatter / safe_gain**2), 1, 1)
        return _Estimate(
            at.y + (by_y / safe_gain).clamp(-LARGEST_STEP_PX, LARGEST_STEP_PX),
            at.x + (by_x / safe_gain).clamp(-LARGEST_STEP_PX, LARGEST_STEP_PX),
            angle,
            gain,
            background,
            scatter,
            variance_y,
            variance_x,
            self._structure(say * rest) / self._structure(say * (pixels - background)).clamp(min=1e-12),
        )

    def _structure(self, patches: Tensor) -> Tensor:
        """Sum of the products of neighbouring pixels, (N, 1): white noise drops out of it."""
        square = patches.reshape(-1, self.size, self.size)
        down = (square[:, 1:] * square[:, :-1]).sum((1, 2))
        return (down + (square[:, :, 1:] * square[:, :, :-1]).sum((1, 2)))[:, None]

    def _patches(self, image: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Cut patches round whole-pixel places, (N, K), and tell which of their pixels lie in the image."""
        h, w = image.shape
        rows, columns = row[:, None] + self.edge, column[:, None] + self.edge  # (N, size)
        rows_inside, columns_inside = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
        inside = (rows == rows_inside).float()[:, :, None] * (columns == columns_inside).float()[:, None]
        place = (rows_inside.to(torch.int64) * w)[:, :, None] + columns_inside.to(torch.int64)[:, None]
        return F.embedding(place.flatten(1), image.reshape(-1, 1)).squeeze(-1), inside.flatten(1)

    def _model(self, at: _Estimate, hand: Tensor, middle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the particle's image (N, K), its derivatives (N, P, K), and 1 for the pixels in reach, (N, K).

        Derivatives by gain, background, y, x and, with `has_angle`, the angle.
        """
        dy, dx = self.grid_y - at.y, self.grid_x - at.x
        near = (dy * dy + dx * dx < self.radius_px**2).to(dy.dtype)
        if not self.has_angle:
            weight_y, slope_y = _spline_weights(self.shifts - at.y)
            weight_x, slope_x = _spline_weights(self.shifts - at.x)
            nothing = torch.zeros_like(weight_y)
            along = torch.stack([weight_y, nothing, -slope_y, weight_y], 1)[..., None]
            across = torch.stack([weight_x, nothing, weight_x, -slope_x], 1)[:, :, None]
            weights = ((along * across)[:, :, None] * middle).flatten(2)  # (N, 4, M * S * S)
            jacobian = (F.pad(weights, (0, 1)) + self.background) @ self.table  # (N, 4, K)
            return jacobian[:, 0], jacobian, near
        cosine, sine = torch.cos(at.angle), torch.sin(at.angle)
        # px from the middle of the source
        in_y, in_x = cosine * dy - (sine * hand) * dx, sine * dy + (cosine * hand) * dx
        # grid_sample wants (x, y)
        where = torch.stack([in_x, in_y], -1).clamp(-self.half_px, self.half_px) * self.atlas_scale + middle
        found = F.grid_sample(self.atlas, where[None], mode="bilinear", align_corners=True)[0]  # (3, N, K)
        image, along_y, along_x = found.unbind(0)
        by_y, by_x = along_y * cosine + along_x * sine, (along_x * cosine - along_y * sine) * hand
        columns = [image, torch.ones_like(image), -by_y, -by_x, along_x * in_y - along_y * in_x]
        return image, torch.stack(columns, 1), near


def _spline_weights(away: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cubic B-spline at distances from its middle, and its slope."""
    near, far = F.relu(1 - away.abs()), F.relu(2 - away.abs())
    slope = torch.sign(away) * (4 * near * near - far * far) / 2
    return (far * far * far - 4 * near * near * near) / 6, slope


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


def _solved(matrix: Tensor, right: Tensor, identity: Tensor) -> tuple[Tensor, Tensor]:
    """Solve symmetric positive systems (N, P, P) x = (N, P, 1); return x (N, P) and the diagonal of the inverse (N, P).

    Gauss-Jordan elimination, written out: ONNX has no operator for it.
    """
    n = matrix.shape[-1]
    size = (matrix * identity).sum(-1, keepdim=True).clamp(min=1e-12).sqrt()  # scaled to a unit diagonal
    matrix = matrix / (size * size.mT) + 1e-6 * identity
    work = torch.cat([matrix, right / size, identity.expand(matrix.shape)], -1)
    for k, unit in enumerate(torch.split(identity, 1, 1)):
        row = work.narrow(1, k, 1)
        work = work - (work.narrow(2, k, 1) - unit) * (row / row.narrow(2, k, 1))
    _, solution, inverse = torch.split(work, [n, 1, n], 2)
    return (solution / size)[..., 0], (inverse * identity).sum(-1) / size[..., 0] ** 2
