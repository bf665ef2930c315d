"""A stack of beads at known heights becomes a point spread function that tells z: Huang's curves for both widths."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.psf import GaussianPsf, Width
from oneframe.runtime.gaussian_fit import find_maxima, fit_gaussians

Array = NDArray[np.float64]

BOX_PX = 21
"""Edge of what is cut out round a bead: 3 sigma to each side where it is some three times as wide as in focus."""
FEWEST_PLANES = 7
_START_SIGMA_PX = 1.5
_LEAST_CHANGE = math.log(1.3)
"""Of the ratio of the widths over the range: less does not tell z from noise."""
_LEAST_SLOPE = 0.1
"""Of the ratio's logarithm over z, as a share of the steepest: where the range ends."""
_WIDTH_ERROR = 0.02
"""Relative, added to what the noise makes: beads are not all alike."""


@dataclass(frozen=True, slots=True, eq=False)
class PsfCalibration:
    """Curves, and the points that they were fitted to; M points of all beads and planes."""

    psf: GaussianPsf
    n_beads: int
    bead: NDArray[np.int64]
    """(M,)."""
    z_um: Array
    """(M,): height of the point above the plane midway between the foci, by the stage."""
    width_y_px: Array
    width_x_px: Array
    residual_um: Array
    """(M,): height by the widths, less that by the stage; NaN beyond the range of the calibration."""
    notes: tuple[str, ...]

    @property
    def rms_um(self) -> float:
        """Root mean square of the residual within the range."""
        return float(np.sqrt(np.nanmean(self.residual_um**2)))


def calibrate_psf(
    stack: NDArray[np.generic], step_um: float, *, places_px: NDArray[np.floating] | None = None, box_px: int = BOX_PX
) -> PsfCalibration:
    """Fit the widths of beads against their height.

    Parameters
    ----------
    stack : (Z, H, W)
        Counts; one plane a step.
    step_um : float
        By which the beads rise above the focal plane from plane to plane; negative: they sink.
    places_px : (N, 2), optional
        (y, x) of beads (default: all that stand alone and clear of the edges).

    Raises
    ------
    ValueError
        If there are too few planes or no bead, or the widths do not tell z.

    References
    ----------
    Huang et al., Science 319, 810 (2008).
    """
    planes = np.asarray(stack, np.float64)
    if planes.ndim != 3 or len(planes) < FEWEST_PLANES or not step_um:
        raise ValueError(
            f"expected a stack of at least {FEWEST_PLANES} planes with a step between them, got shape {planes.shape} "
            f"and {step_um * 1000:g} nm; take one through the focus, in steps of some 25 to 50 nm"
        )
    if box_px > min(planes.shape[1:]):
        raise ValueError(
            f"expected planes of {box_px} px a side or more, got {planes.shape[1]} x {planes.shape[2]}; crop less"
        )
    places = _beads(planes, box_px) if places_px is None else np.asarray(places_px, float).reshape(-1, 2)
    number, z_um, width_y, width_x, error_y, error_x = _widths(planes, places, step_um, box_px).T
    bead = number.astype(np.int64)
    shift_um, curve_y, curve_x = _curves(bead, z_um, width_y, width_x, error_y, error_x)
    z_um = z_um - shift_um[bead]
    low, high = _range(curve_y, curve_x, float(z_um.min()), float(z_um.max()))
    psf = GaussianPsf(curve_y, curve_x, (low, high))
    residual_um = np.where((z_um >= low) & (z_um <= high), _height(psf, width_y, width_x) - z_um, np.nan)
    calibration = PsfCalibration(psf, len(shift_um), bead, z_um, width_y, width_x, residual_um, ())
    notes = []
    if calibration.n_beads < 3:
        notes.append(f"only {calibration.n_beads} bead{'s' * (calibration.n_beads > 1)}: three or more tell outliers")
    if calibration.rms_um > 0.05:
        notes.append(
            f"the widths tell the height to {1000 * calibration.rms_um:.0f} nm only: use brighter beads, and check the "
            "step"
        )
    if abs(step_um) > 0.1:
        notes.append(f"steps of {1000 * abs(step_um):.0f} nm are coarse: take some 25 to 50 nm")
    return PsfCalibration(psf, calibration.n_beads, bead, z_um, width_y, width_x, residual_um, tuple(notes))


def _beads(planes: Array, box_px: int) -> Array:
    """Return the places (N, 2) of beads that stand alone."""
    brightest = np.sort(planes, axis=0)[-max(1, len(planes) // 3) :].mean(0)
    level = float(np.median(brightest))
    noise = 1.4826 * float(np.median(np.abs(brightest - level))) + 1e-9
    found = find_maxima((brightest - level) / noise, _START_SIGMA_PX, threshold=10.0, read_variance=1.0).astype(float)
    half = box_px // 2
    height, width = brightest.shape
    clear = (found >= half).all(1) & (found[:, 0] < height - half) & (found[:, 1] < width - half)
    apart = np.abs(found[:, None] - found[None]).max(2) + 2.0 * box_px * np.eye(len(found))
    # one bead as bright as a twentieth of another does not disturb it
    light = brightest[tuple(found.astype(int).T)] - level
    near = (apart < 0.75 * box_px) & (light[None] > 0.05 * light[:, None])
    places = found[clear & ~near.any(1)] if len(found) else found
    if not len(places):
        raise ValueError(
            f"expected beads that stand alone, {box_px} px apart and as far from the edges as half of it, got none of "
            f"{len(found)}; use a thinner suspension of beads, or name them with --box X Y W H"
        )
    return places


def _widths(planes: Array, places: Array, step_um: float, box_px: int) -> Array:
    """Fit each bead in each plane; return bead, z, both widths and their errors where that worked, (M, 6)."""
    n_planes = len(planes)
    z_um = (np.arange(n_planes) - (n_planes - 1) / 2) * step_um
    dark = float(np.quantile(planes, 0.001)) - 1
    columns: list[Array] = []
    kept = 0
    for y, x in places:
        fit = fit_gaussians(
            planes - dark, np.full(n_planes, y), np.full(n_planes, x), sigma_px=_START_SIGMA_PX, shape="elliptic",
            box_px=box_px, n_steps=80,
        )  # fmt: skip
        wide = np.maximum(fit.width_y_px, fit.width_x_px)
        near = np.hypot(fit.y_px - y, fit.x_px - x) < 3
        error = np.maximum(fit.sigma_width_y_px / fit.width_y_px, fit.sigma_width_x_px / fit.width_x_px)
        good = fit.converged & near & (wide < box_px / 4) & (error < 0.1)
        if good.sum() < max(FEWEST_PLANES, n_planes / 3):
            continue
        errors = [np.hypot(e / w, _WIDTH_ERROR) for e, w in (
            (fit.sigma_width_y_px, fit.width_y_px), (fit.sigma_width_x_px, fit.width_x_px),
        )]  # fmt: skip
        rows = np.column_stack([np.full(n_planes, float(kept)), z_um, fit.width_y_px, fit.width_x_px, *errors])
        columns.append(rows[good])
        kept += 1
    if not kept:
        raise ValueError(
            f"expected beads that can be fitted in a third of the planes, got none of {len(places)}; use brighter "
            "beads, or take fewer planes far from the focus"
        )
    return np.concatenate(columns)


def _curves(
    bead: NDArray[np.int64], z_um: Array, width_y: Array, width_x: Array, error_y: Array, error_x: Array
) -> tuple[Array, Width, Width]:
    """Fit both curves and the height of each bead (B,) at once; z = 0 is midway between the foci."""
    from scipy.optimize import least_squares

    n = int(bead.max()) + 1
    foci = np.zeros((n, 2))
    for i in range(n):
        for axis, width in enumerate((width_y, width_x)):
            # a parabola through the narrow half
            mine = bead == i
            narrow = mine & (width <= np.quantile(width[mine], 0.5))
            a, b, _ = np.polyfit(z_um[narrow], width[narrow] ** 2, 2)
            vertex = -b / (2 * a) if a > 0 else z_um[narrow][np.argmin(width[narrow])]
            foci[i, axis] = np.clip(vertex, z_um[mine].min(), z_um[mine].max())
    middle = foci.mean(1)
    half = float(np.median(foci[:, 0] - foci[:, 1])) / 2

    def widths(v: Array) -> tuple[Width, Width]:
        return (
            Width(math.exp(v[0]), v[4], math.exp(v[2]), v[5], v[6]),
            Width(math.exp(v[1]), -v[4], math.exp(v[3]), v[7], v[8]),
        )

    def residual(v: Array) -> Array:
        y, x = widths(v)
        at = z_um - v[9:][bead]
        return np.concatenate([np.log(y.at(at) / width_y) / error_y, np.log(x.at(at) / width_x) / error_x])

    smallest = [math.log(float(np.quantile(w, 0.05))) for w in (width_y, width_x)]
    start = np.array([*smallest, math.log(0.4), math.log(0.4), half, 0.0, 0.0, 0.0, 0.0, *middle])
    span = float(np.ptp(z_um))
    free = [1.0, 1.0, 3.0, 3.0, span + abs(half), 1.0, 1.0, 1.0, 1.0, *[span] * n]
    low, high = start - np.array(free), start + np.array(free)
    found = least_squares(residual, start, bounds=(low, high), loss="soft_l1", x_scale="jac", max_nfev=2000)
    y, x = widths(found.x)
    return np.asarray(found.x[9:]), y, x


def _range(y: Width, x: Width, low_um: float, high_um: float) -> tuple[float, float]:
    """Return where the ratio of the widths tells z, out of what was measured.

    Raises
    ------
    ValueError
        If it does so nowhere.
    """
    z_um = np.linspace(low_um, high_um, 2001)
    ratio = np.log(y.at(z_um) / x.at(z_um))
    slope = np.gradient(ratio, z_um)
    middle = int(np.argmin(np.abs(z_um)))
    steep = slope * np.sign(slope[middle]) > _LEAST_SLOPE * np.abs(slope).max()
    ends = np.flatnonzero(~steep)
    first = int(ends[ends < middle].max()) + 1 if (ends < middle).any() else 0
    last = int(ends[ends > middle].min()) - 1 if (ends > middle).any() else len(z_um) - 1
    change = abs(float(ratio[last] - ratio[first]))
    if not steep[middle] or change < _LEAST_CHANGE:
        raise ValueError(
            "expected beads that grow along y and along x at different heights, which is what tells z, got foci "
            f"{1000 * abs(y.focus_um - x.focus_um):.0f} nm apart and widths whose ratio changes by "
            f"{100 * math.expm1(change if steep[middle] else 0.0):.0f} % only; put the cylindrical lens in, or train "
            "without z (--psf-sigma-px)"
        )
    return round(float(z_um[first]), 4), round(float(z_um[last]), 4)


def _height(psf: GaussianPsf, width_y: Array, width_x: Array) -> Array:
    """Return the height at which the curves come nearest to the roots of both widths, as Huang et al. do."""
    low, high = psf.z_range_um
    margin = 0.1 * (high - low)
    z_um = np.linspace(low - margin, high + margin, 4001)
    y, x = psf.sigmas(z_um)
    distance = (np.sqrt(width_y)[:, None] - np.sqrt(y)) ** 2 + (np.sqrt(width_x)[:, None] - np.sqrt(x)) ** 2
    height: Array = z_um[np.argmin(distance, axis=1)]
    return height
