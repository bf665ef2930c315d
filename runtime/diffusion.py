"""How fast tracked particles diffuse: the covariance estimator, and what Stokes and Einstein expect."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.holograms import stokes_einstein_um2_s

FEWEST_PAIRS = 20
"""Pairs of steps in a row from which a diffusion constant is given: its error is some 50 % then."""
_QUOTABLE = 0.2
"""Relative error of the variance up to which the localisation error is worth a number: 10 % of its root."""


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """Displacements of tracked particles from frame to frame, M of them along A axes; see `find_steps`."""

    step_um: NDArray[np.float64]
    """(M, A)."""
    track_id: NDArray[np.int64]
    """(M,)."""
    frame: NDArray[np.int64]
    """(M,), where the step begins."""
    goes_on: NDArray[np.bool_]
    """(M,), True where the next one is the next step of the same track, without a gap."""

    def __len__(self) -> int:
        return len(self.step_um)


@dataclass(frozen=True, slots=True)
class Diffusion:
    """A diffusion constant, and the errors of the positions that it was freed of."""

    diffusion_um2_s: float
    standard_error_um2_s: float
    localization_variance_um2: float
    """Variance of one position; an estimate, so below 0 when the real one is small."""
    localization_variance_error_um2: float
    """Standard error of it."""
    n_steps: int
    n_tracks: int

    @property
    def localization_um(self) -> float | None:
        """Standard deviation of one position; None where so few steps do not tell it from 0 well enough to be quoted.

        Errors that change slowly, over many frames, are not in it: they are the same at both ends of a step.
        """
        if self.localization_variance_error_um2 > _QUOTABLE * self.localization_variance_um2:
            return None
        return math.sqrt(self.localization_variance_um2)

    @property
    def localization_limit_um(self) -> float:
        """What the standard deviation of one position is below (two standard errors)."""
        return math.sqrt(max(self.localization_variance_um2, 0.0) + 2 * self.localization_variance_error_um2)


def find_steps(
    track_id: NDArray[np.int64], frame: NDArray[np.int64], position_um: NDArray[np.float64], *, every: int = 1
) -> Steps:
    """Return the steps between consecutive frames; across a gap of a track there is none.

    Parameters
    ----------
    track_id, frame : (N,)
        Sorted by track, then by frame.
    position_um : (N, A) or (N,)
        Along A axes. Rows with NaN are gaps.
    every : int
        Consecutive are frames whose numbers differ by this, for a run that analysed only each so-many-th frame.

    Raises
    ------
    ValueError
        If the shapes do not fit or the rows are not sorted.
    """
    position = np.asarray(position_um, np.float64)
    position = position[:, None] if position.ndim == 1 else position
    if not len(track_id) == len(frame) == len(position):
        raise ValueError(
            f"expected as many tracks and frames as positions, got {len(track_id)}, {len(frame)} and {len(position)}"
        )
    known = np.isfinite(position).all(axis=1)
    track_id, frame, position = track_id[known], frame[known], position[known]
    same_track, frames = np.diff(track_id) == 0, np.diff(frame)
    if (np.diff(track_id) < 0).any() or (frames[same_track] <= 0).any():
        raise ValueError("expected rows sorted by track, then by frame, each frame once; sort them first")
    starts = np.flatnonzero(same_track & (frames == every))
    goes_on = np.append(np.diff(starts) == 1, False)[: len(starts)]
    return Steps(np.diff(position, axis=0)[starts], track_id[starts], frame[starts], goes_on)


def common_motion(steps: Steps) -> tuple[float, float]:
    """Return how much the particles of a frame move alike, and its standard error, um^2 per axis.

    The mean product of the steps of two different particles in the same frame: 0 for diffusion, the mean squared step
    of a flow or of a shaking stage. NaN if there are never two.
    """
    n, others = _others(steps)
    together = n > 1
    if not together.any():
        return math.nan, math.nan
    weight = (n - 1)[together, None]
    product = steps.step_um[together] * others[together]
    n_pairs = weight.sum() * steps.step_um.shape[1] / 2
    mean_square = float((weight * steps.step_um[together] ** 2).sum() / 2 / n_pairs)
    return float((weight * product).sum() / 2 / n_pairs), mean_square / math.sqrt(n_pairs)


def diffusion(
    steps: Steps,
    dt_s: float,
    *,
    tracks: NDArray[np.int64] | None = None,
    blur: float = 0.0,
    without_drift: bool = False,
) -> Diffusion:
    """Estimate a diffusion constant from the covariance of steps, all tracks and axes pooled.

        D = <dx_n^2> / (2 dt) + <dx_n dx_{n+1}> / dt
        sigma^2 = R <dx_n^2> + (2 R - 1) <dx_n dx_{n+1}>

    Unbiased by errors of the positions, as long as these differ from frame to frame. The standard errors are the
    paper's; they are summed here over tracks of any length, with gaps.

    Parameters
    ----------
    steps : Steps
        Of one axis, or of several along which the particles diffuse alike.
    dt_s : float
        Time of one step.
    tracks : (K,), optional
        Only the steps of these count; the others still tell of the drift.
    blur : float
        Motion blur coefficient R: 0 for a flash, 1/6 for an exposure as long as dt.
    without_drift : bool
        Multiply each step with that relative to the other particles of the frame, so that what all have in common
        drops out. Steps of a particle that is alone in its frame are left out.

    Raises
    ------
    ValueError
        If the steps are too few, or `dt_s` or `blur` make no sense.

    References
    ----------
    Vestergaard, Blainey, Flyvbjerg, Phys. Rev. E 89, 022726 (2014).
    """
    if not (math.isfinite(dt_s) and dt_s > 0 and 0 <= blur <= 0.25):
        raise ValueError(
            f"expected dt_s above 0 and blur from 0 to 1/4, got {dt_s:g} and {blur:g}; blur is exposure / dt / 6 for "
            "light that does not flicker"
        )
    step, counts = steps.step_um, np.ones(len(steps), bool)
    relative, crowd = step, 1.0
    if without_drift:
        n, others = _others(steps)
        counts = n > 1
        relative = step - others
        crowd = float(np.mean(n[counts] / (n[counts] - 1))) if counts.any() else 1.0
    if tracks is not None:
        counts = counts & np.isin(steps.track_id, tracks)
    first = np.flatnonzero(counts[:-1] & counts[1:] & steps.goes_on[:-1])  # of pairs of steps in a row
    if len(first) < FEWEST_PAIRS:
        raise ValueError(
            f"expected at least {FEWEST_PAIRS} pairs of steps in a row for a diffusion constant, got {len(first)}; "
            "log more frames or more particles, or link over fewer gaps"
        )
    if without_drift:
        step = step - step.mean(axis=0)  # changes nothing on average, but a flow would be noise in the products
    square = float(np.mean(step[counts] * relative[counts]))
    product = float(np.mean(step[first] * relative[first + 1] + relative[first] * step[first + 1])) / 2

    n_axes = step.shape[1]
    n_steps, n_pairs = int(counts.sum()), len(first)
    n_triples = int(np.isin(first + 1, first).sum())
    # Gaussian steps, correlated with their neighbours only; the variances of the two means and their covariance.
    # For one track without gaps, D has the paper's D^2 [(6 + 4 e + 2 e^2) / N + 4 (1 + e)^2 / N^2].
    of_square = (2 * square**2 + 4 * product**2 * n_pairs / n_steps) / n_steps
    of_product = (square**2 + product**2 * (1 + 2 * n_triples / n_pairs)) / n_pairs
    of_both = 4 * square * product / n_steps
    scale = crowd / n_axes
    return Diffusion(
        diffusion_um2_s=(square / 2 + product) / dt_s,
        standard_error_um2_s=math.sqrt(scale * (of_square / 4 + of_product + of_both)) / dt_s,
        localization_variance_um2=blur * square + (2 * blur - 1) * product,
        localization_variance_error_um2=math.sqrt(
            scale * (blur**2 * of_square + (2 * blur - 1) ** 2 * of_product + 2 * blur * (2 * blur - 1) * of_both)
        ),
        n_steps=n_steps,
        n_tracks=len(np.unique(steps.track_id[counts])),
    )


def expected_diffusion_um2_s(
    radius_um: float, *, temperature_k: float = 293.0, viscosity_mpa_s: float = 1.002
) -> float:
    """Return the diffusion constant of a sphere far from walls, by Stokes and Einstein; default: water at 293 K.

    It is as much smaller as the radius is larger: the radius that fits a measured D is
    `expected_diffusion_um2_s(1.0) / D`.

    >>> round(expected_diffusion_um2_s(0.228), 3)
    0.939

    Raises
    ------
    ValueError
        If a value is not above 0.
    """
    if not (radius_um > 0 and temperature_k > 0 and viscosity_mpa_s > 0):
        raise ValueError(
            f"expected radius, temperature and viscosity above 0, got {radius_um:g} um, {temperature_k:g} K and "
            f"{viscosity_mpa_s:g} mPa s; water at 293 K has 1.002 mPa s"
        )
    return stokes_einstein_um2_s(radius_um, temperature_k, viscosity_mpa_s)


def _others(steps: Steps) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return for each step how many there are in its frame, and the mean of the other ones (0 if there are none)."""
    _, group, size = np.unique(steps.frame, return_inverse=True, return_counts=True)
    total = np.zeros((len(size), steps.step_um.shape[1]))
    np.add.at(total, group, steps.step_um)
    n = size[group]
    return n, np.where(n[:, None] > 1, total[group] - steps.step_um, 0.0) / np.maximum(n - 1, 1)[:, None]
