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
from oneframe.trainer.peaks import taken
from oneframe.trainer.small_systems import Elimination, Minors
from oneframe.trainer.symmetry import PixelNoise

N_STEPS = 3
"""Gauss-Newton steps."""
LARGEST_STEP_PX = 0.75
"""Of one step, along each axis."""
UNLIKE = 0.35
"""Share of a patch's structure that the fit may leave over; beyond it the object is not like the learned ones."""
OUTLIER = 5.0
"""Residual, in standard deviations, at which a pixel has lost half its say (it shows something else)."""
_LEAST_SCATTER = 1e-20
"""Squared contrast; keeps a patch without noise finite."""


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
    """What the fit knows of each particle, (N, 1) each, or (N, 2) along y and x."""

    place: Tensor
    """Pixels from the middle of its patch, (N, 2)."""
    angle: Tensor
    gain: Tensor
    background: Tensor
    scatter: Tensor | None
    """Variance of the residual of a pixel without signal; None: not known yet."""
    variance: Tensor
    """(N, 2)"""
    left_over: Tensor
    """Share of the patch's structure that the model does not explain."""


class LikelihoodFit(nn.Module):
    """Moves positions to the maximum of the likelihood of the pixels around them, and tells how sure they are.

    The model of a patch is gain * particle(turned, shifted) + background, its pixels independent with the variance of
    `PixelNoise`, the size of which is taken from the residual of each patch. The best of a bank of turned particles
    starts Gauss-Newton steps in position, angle, gain and background; pixels that something else covers lose their say.
    A patch is the K pixels of a disc; a smaller disc moves in it with the particle: if it did not, the RMSE of beads
    9 px apart would be 0.13 px instead of 0.09.

    References
    ----------
    Ober, Ram, Ward, Localization accuracy in single-molecule microscopy, Biophys. J. 86, 1185 (2004): the bound that
    this estimate reaches.
    """

    def __init__(self, likeness: Likeness, *, n_bank_angles: int = 48) -> None:
        super().__init__()
        # how the variance rises with the signal; its size is taken from the residual
        self.noise = PixelNoise(1.0, likeness.noise.shot / likeness.noise.dark)
        self.has_angle = likeness.has_angle
        self.radius_px = likeness.diameter_px / 2 + 4
        radius_px = self.radius_px + 0.5  # of the patch, whose middle is a whole pixel
        reach_px = math.ceil(radius_px)
        self.largest_move_px = max(1.0, likeness.diameter_px / 3)
        self.largest_sigma_px = max(1.0, likeness.diameter_px / 5)
        n_sources, _, fine, _ = likeness.images.shape
        v = torch.arange(-reach_px, reach_px + 1.0)
        square_yx = torch.stack(torch.meshgrid(v, v, indexing="ij"), -1).reshape(-1, 2)
        disc = square_yx.square().sum(-1) < radius_px**2
        grid_yx = square_yx[disc]
        self.register_buffer("edge", v)
        self.register_buffer("grid_y", grid_yx[:, 0].clone())
        self.register_buffer("grid_x", grid_yx[:, 1].clone())
        self.register_buffer("towards", -2 * grid_yx.T.clone())
        self.register_buffer("from_middle", grid_yx.square().sum(-1))
        # which row and which column of the square each pixel lies in, (2 * size, K)
        self.register_buffer("lies_in", (torch.cat([v[:, None] == self.grid_y, v[:, None] == self.grid_x])).float())
        away = grid_yx[:, None] - grid_yx[None]
        self.register_buffer("next_to", ((away.sum(-1) == 1) & (away.abs().sum(-1) == 1)).float())
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
                sample(likeness.images[int(s), :1], linear[None], likeness.seen_px[int(s)][None], len(v))[:, 0]
                for s, linear in zip(source, turned, strict=True)
            ]
        ).flatten(1)[:, disc]
        bank = bank - bank.mean(1, keepdim=True)
        self.register_buffer("bank", bank / bank.norm(dim=1, keepdim=True))
        self.register_buffer("bank_pose", torch.stack([source, hand, angle], -1))
        seen_from_middle = torch.einsum("bji,bj->bi", turned, likeness.seen_px[source.long()])
        self.register_buffer("bank_move", seen_from_middle)
        self.solve = Elimination(5) if self.has_angle else Minors()

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
        n_shifts = len(shifts) ** 2
        row, column = (
            half + grid[:, None].int() - torch.cartesian_prod(shifts, shifts)[:, k].int()
            for k, grid in enumerate((self.grid_y, self.grid_x))
        )
        place = [np.clip(each.numpy().T, 0, samples.shape[-1] - 1) for each in (row, column)]  # (S * S, K)
        table = coefficients[:, place[0], place[1]].reshape(-1, len(self.grid_y))  # (M * S * S, K)
        table = np.concatenate([table, np.ones((1, table.shape[1]))])  # and the background
        self.register_buffer("table", torch.from_numpy(table.astype(np.float32)))
        self.register_buffer("shifts", shifts.float())
        # the weight of each row of the table, in the image and in its derivatives, is a product of one along y and one
        # along x; these are sums of `_spline_powers` along y and x, (8 * S, 4 * rows), the background's being 1
        by = torch.cartesian_prod(shifts, shifts).repeat(len(samples), 1)
        which_y, which_x = (F.pad((shifts[:, None] == by[:, k]).float(), (0, 1)) for k in range(2))
        nothing = torch.zeros_like(which_y)
        along = [(which_y, nothing, nothing, which_y), (nothing, nothing, -which_y, nothing)]
        across = [(which_x, nothing, which_x, nothing), (nothing, nothing, nothing, -which_x)]
        nothing = torch.cat([nothing] * 4, 1)
        (spline_y, slope_y), (spline_x, slope_x) = ([torch.cat(part, 1) for part in axis] for axis in (along, across))
        self.register_buffer("along", _of_powers(torch.cat([spline_y, nothing]), torch.cat([slope_y, nothing])))
        self.register_buffer("across", _of_powers(torch.cat([nothing, spline_x]), torch.cat([nothing, slope_x])))
        constant = torch.zeros(4, len(table))
        constant[1, -1] = 1
        self.register_buffer("constant", constant.flatten())
        which = torch.arange(len(samples)).repeat_interleave(n_shifts)
        of_source = F.pad((torch.arange(len(samples))[:, None] == which).float(), (0, 1), value=1.0)
        self.register_buffer("of_source", of_source.repeat(1, 4))

    table: Tensor
    along: Tensor
    across: Tensor
    constant: Tensor
    of_source: Tensor
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
    lies_in: Tensor
    towards: Tensor
    from_middle: Tensor
    next_to: Tensor

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
        seen, sigma_px = torch.stack([y, x], 1), sigma_px[:, None]
        if self.has_angle:  # one more row that is dropped again: ONNX Runtime samples no grid of no rows
            seen, sigma_px = F.pad(seen, (0, 0, 0, 1)), F.pad(sigma_px, (0, 0, 0, 1))
        middle = torch.round(seen)
        pixels, inside = self._patches(image, middle)
        pixels = pixels / scale
        pose, move = self.bank_pose, self.bank_move
        if len(self.bank) > 1:
            alike = torch.argmax(pixels @ self.bank.T, 1)
            pose, move = pose.index_select(0, alike), move.index_select(0, alike)
        source, hand, angle = torch.split(pose, 1, 1)
        start = seen - middle - move
        one = torch.ones(1, 1)
        at = _Estimate(start, angle, one, torch.zeros(1, 1), None, start, one)
        for _ in range(N_STEPS):
            at = self._step(at, pixels, inside, hand, source)
        moved_squared = (at.place - start).square() @ torch.ones(2, 1)
        sound = (
            (at.left_over < UNLIKE)
            & (at.gain > 0.05)
            & (moved_squared < self.largest_move_px**2)
            & (at.variance.amax(1, keepdim=True) < self.largest_sigma_px**2)
        )
        place = torch.where(sound, middle + at.place, seen)
        sigma = torch.where(sound, at.variance.clamp(min=0).sqrt(), sigma_px)
        if self.has_angle:
            place, sigma = place[:-1], sigma[:-1]
        return place[:, 0], place[:, 1], sigma[:, 0], sigma[:, 1]

    def _step(self, at: _Estimate, pixels: Tensor, inside: Tensor, hand: Tensor, source: Tensor) -> _Estimate:
        """Take one Gauss-Newton step."""
        model, jacobian = self._model(at, hand, source)
        precision = 1 / self.noise.variance(model)
        rest = pixels - at.background - at.gain * model
        # (pixel - place)^2 < radius^2
        near = at.place @ self.towards + self.from_middle < self.radius_px**2 - at.place.square() @ torch.ones(2, 1)
        say = near.float() * inside
        if at.scatter is not None:
            strange = rest * rest * precision * (1 / (OUTLIER**2 * at.scatter))
            say = say / (1 + strange * strange)
        weight = say * precision
        weighted_rest = weight * rest
        right = (jacobian @ weighted_rest[..., None])[..., 0]
        step, inverse = self.solve((jacobian * weight[:, None]) @ jacobian.mT, right)
        ones = torch.ones(rest.shape[1], 1)
        before = (weighted_rest * rest) @ ones
        explained = (step * right) @ torch.ones(step.shape[1], 1)
        squares = torch.maximum(before - explained, 1e-6 * before)  # of the rest after the step
        scatter = squares / (say @ ones - jacobian.shape[1]).clamp(min=1) + _LEAST_SCATTER
        by_gain, by_background, by_place, *by_angle = torch.split(step, [1, 1, 2, 1][: jacobian.shape[1] - 1], 1)
        gain = at.gain + by_gain
        safe_gain = gain.clamp(min=0.05)
        angle = at.angle
        if by_angle:
            angle = angle + (by_angle[0] / safe_gain).clamp(-0.2, 0.2)
        unexplained = self._structure(say * (rest - (step[:, None] @ jacobian)[:, 0]))
        background = at.background + by_background
        return _Estimate(
            at.place + (by_place / safe_gain).clamp(-LARGEST_STEP_PX, LARGEST_STEP_PX),
            angle,
            gain,
            background,
            scatter,
            inverse[:, 2:4] * (scatter / safe_gain**2),
            unexplained / self._structure(say * (pixels - background)).clamp(min=1e-12),
        )

    def _structure(self, patches: Tensor) -> Tensor:
        """Sum of the products of neighbouring pixels, (N, 1): white noise drops out of it."""
        return ((patches @ self.next_to) * patches) @ torch.ones(patches.shape[1], 1)

    def _patches(self, image: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        """Cut patches round whole-pixel places (N, 2): (N, K), and 1 for those of their pixels that the image has."""
        h, w = image.shape
        rows, columns = (each + self.edge for each in torch.split(middle, 1, 1))  # (N, size)
        in_image = torch.cat([(rows >= 0) & (rows < h), (columns >= 0) & (columns < w)], 1).float()
        inside = F.relu(in_image @ self.lies_in - 1)
        steps = self.grid_y.to(torch.int64) * w + self.grid_x.to(torch.int64)
        row, column = torch.split(middle.to(torch.int64), 1, 1)
        # one bound after the other: Clip takes whole numbers one by one
        place = torch.minimum((row * w + column + steps).clamp(min=0), torch.tensor(h * w - 1))
        return taken(image.flatten(), place), inside

    def _model(self, at: _Estimate, hand: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return the particle's image (N, K) and its derivatives (N, P, K).

        Derivatives by gain, background, y, x and, with `has_angle`, the angle.
        """
        if not self.has_angle:
            powers = _spline_powers(self.shifts - at.place[..., None])
            rows = (powers @ self.along + self.constant) * (powers @ self.across + self.constant)
            if len(self.bank) > 1:
                rows = rows * ((torch.arange(len(self.bank)) == source).float() @ self.of_source)
            jacobian = (rows.reshape(-1, len(self.table)) @ self.table).reshape(-1, 4, len(self.grid_y))
            return jacobian[:, 0], jacobian
        cosine, sine = torch.cos(at.angle), torch.sin(at.angle)
        y, x = torch.split(at.place, 1, 1)
        dy, dx = self.grid_y - y, self.grid_x - x
        # px from the middle of the source
        in_y, in_x = cosine * dy - (sine * hand) * dx, sine * dy + (cosine * hand) * dx
        # grid_sample wants (x, y)
        where = torch.stack([in_x, in_y], -1).clamp(-self.half_px, self.half_px) * self.atlas_scale
        where = where + self.atlas_middle[source[:, 0].to(torch.int64)][:, None]
        found = F.grid_sample(self.atlas, where[None], mode="bilinear", align_corners=True)[0]  # (3, N, K)
        image, along_y, along_x = found.unbind(0)
        by_y, by_x = along_y * cosine + along_x * sine, (along_x * cosine - along_y * sine) * hand
        columns = [image, torch.ones_like(image), -by_y, -by_x, along_x * in_y - along_y * in_x]
        return image, torch.stack(columns, 1)


def _spline_powers(away: Tensor) -> Tensor:
    """Return powers of distances (N, 2, S) from the middles of cubic B-splines, (N, 8 * S): see `_of_powers`."""
    away = away[:, None]
    within = F.relu(torch.tensor([2.0, 1.0])[:, None, None] - away.abs())
    squares = within * within
    return torch.cat([squares * within, squares * torch.sign(away)], 1).flatten(1)


def _of_powers(spline: Tensor, slope: Tensor) -> Tensor:
    """Return what takes `_spline_powers` to that to which the splines and their slopes, (2 * S, M) each, are taken."""
    return torch.cat([spline / 6, spline * (-4 / 6), slope * -0.5, slope * 2])


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
