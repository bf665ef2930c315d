"""z and polarizability of particles, measured in the complex field where a network has found them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.field_background import field_noise
from oneframe.runtime.optics import Optics
from oneframe.runtime.refocus import axial_wavenumber

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

WEAK = 5.0
"""Peaks below this many standard deviations of the noise are not told from it: the search looks at some 20 of them."""


@dataclass(frozen=True, slots=True, eq=False)
class RefinedZ:
    """One row a particle: where it is in focus, and whether to believe it."""

    z_um: Floats
    sigma_z_um: Floats
    """Standard error of `z_um` from the noise; systematic errors of the optics come on top."""
    peak: Floats
    """Im E_s in focus, in units of the background's amplitude."""
    at_edge: Bools
    """The focus lies outside the range that was searched, or beyond what the crop can tell: search elsewhere."""
    near_neighbour: Bools
    """Another particle stands close: `z_um` and above all polarizability mix the two."""
    weak: Bools
    """The peak does not stand out of the noise: `z_um` may be anywhere."""
    conjugate: Bools
    """-Im E_s has the higher peak: a particle lighter than the medium, or the carrier has the wrong sign."""

    @property
    def trustworthy(self) -> Bools:
        """Rows without any flag."""
        return ~(self.at_edge | self.near_neighbour | self.weak | self.conjugate)


class ParticleRefiner:
    """Finds the focus of particles at known x, y, and weighs them.

    Of the scattered field E_s = E - 1 only the value on the axis of the particle is needed,

        E_s(r0, z) = sum_k F(k) exp(i k.r0) exp(i (kz - k_m) z)

    so the spectrum F of a crop is shifted to the sub-pixel centre, summed over rings of equal |k|, brought to the
    coarse z, and multiplied by one fixed complex matrix for all distances around it. z is where Im E_s is highest.

    For spheres much larger than the wavelength this is the focus of the light behind them, not their centre: an offset
    of a few radii, the same for all of one kind.

    Parameters
    ----------
    optics : Optics
        Of the field.
    half_range_um : float
        How far from the coarse z is searched.
    step_um : float
        Between the distances that are computed; a parabola finds the maximum in between.
    crop_px : int
        Edge of the square crop, even.
    window_px : int
        Width of the Hann window under which the scattered field is added up for the polarizability; even.
    neighbour_um : float
        Particles closer than this are flagged.

    Raises
    ------
    ValueError
        If a size is unusable.
    """

    def __init__(
        self,
        optics: Optics,
        *,
        half_range_um: float = 4.0,
        step_um: float = 0.1,
        crop_px: int = 64,
        window_px: int = 24,
        neighbour_um: float = 3.0,
    ) -> None:
        if crop_px % 2 or window_px % 2 or not 8 <= window_px <= crop_px:
            raise ValueError(
                f"expected even crop_px >= window_px >= 8, got {crop_px} and {window_px}; 64 and 24 suit pixels "
                "of 0.2 um"
            )
        if not 0 < 2 * step_um <= half_range_um:
            raise ValueError(
                f"expected step_um above 0 and at most half of half_range_um, got {step_um:g} and {half_range_um:g}; "
                "0.1 and 4 suit most samples"
            )
        self.optics = optics
        self.z_limit_um = optics.z_limit_um(crop_px * optics.pixel_um)
        """Beyond this |z| the crop has lost too much of the light; see `Optics.z_limit_um`."""
        self._crop_px = crop_px
        self._neighbour_um = neighbour_um
        bins = np.fft.fftfreq(crop_px, 1 / crop_px)
        self._turn_per_px = 2j * np.pi / crop_px * bins
        squared = bins[:, None] ** 2 + bins**2
        pupil = (optics.pupil_radius_per_um * crop_px * optics.pixel_um) ** 2
        inside = np.flatnonzero(squared <= pupil)
        self._inside = inside[np.argsort(squared.flat[inside], kind="stable")]  # ring after ring
        ring_squared, self._starts, ring = np.unique(squared.flat[self._inside], return_index=True, return_inverse=True)
        self._axial = axial_wavenumber(optics, ring_squared / (crop_px * optics.pixel_um) ** 2)
        n_steps = math.ceil(half_range_um / step_um)
        self._step_um = step_um
        self._z_um = step_um * np.arange(-n_steps, n_steps + 1)
        self._to_axis = (np.exp(1j * np.outer(self._axial, self._z_um)) / crop_px**2).astype(np.complex64)
        # noise of dE_s/dz over the noise of E_s, both on the axis
        self._slope_noise = math.sqrt(np.mean(self._axial[ring] ** 2))
        # the same numbers are squared distances in pixels from where the phases are counted from
        window = np.where(squared < (window_px / 2) ** 2, np.cos(np.pi / window_px * np.sqrt(squared)) ** 2, 0.0)
        weights = np.fft.fft2(window).real.flat[self._inside]
        weights /= weights.sum()  # the centre counts 1, also without the frequencies outside the pupil
        to_um3 = 2 / optics.wavenumber_per_um * optics.pixel_um**2
        n_in_ring = np.diff(self._starts, append=len(inside))
        self._weights = (to_um3 * np.add.reduceat(weights, self._starts) / n_in_ring).astype(np.complex64)
        covered = len(inside) / crop_px**2  # share of the spectrum that holds all the noise
        self._alpha_noise = to_um3 * math.sqrt((window**2).sum() / covered)

    def refine_z(
        self, field: NDArray[Any], yx_px: NDArray[Any], z_start_um: NDArray[Any] | float, *, noise: float | None = None
    ) -> RefinedZ:
        """Find the focus of each particle.

        Parameters
        ----------
        field : (H, W) complex64
            Background 1 + 0i; the whole frame, or a crop.
        yx_px : (N, 2)
            Centres in pixels of the field; an error of 0.15 px does no harm.
        z_start_um : (N,) or float
            Coarse z, around which is searched.
        noise : float, optional
            Of the field per component; measured by `field_noise` if not given.

        Returns
        -------
        RefinedZ

        Raises
        ------
        ValueError
            If positions are not (N, 2) finite numbers, or the shapes do not fit.
        """
        yx_px, z_start_um = _checked(field, yx_px, z_start_um)
        noise = field_noise(field) if noise is None else noise
        n = len(yx_px)
        rings = self._rings(field, yx_px, z_start_um)
        along_axis = rings @ self._to_axis  # (N, Z)
        on_axis = along_axis.imag.astype(np.float64)
        highest = np.argmax(on_axis, axis=1)
        middle = np.clip(highest, 1, len(self._z_um) - 2)
        before, at, after = (on_axis[np.arange(n), middle + i] for i in (-1, 0, 1))
        curvature = before - 2 * at + after
        curved = curvature < 0
        shift = np.where(curved, (before - after) / (2 * np.where(curved, curvature, 1)), 0).clip(-1, 1)
        z_um = z_start_um + self._z_um[middle] + shift * self._step_um
        peak = at - (before - after) * shift / 4
        # towards a focus outside of the range |E_s| grows to the end, while Im E_s goes up and down
        at_end = np.abs(along_axis[:, [0, -1]]).max(axis=1, initial=0)
        bend_per_um2 = np.where(curved, -curvature, np.nan) / self._step_um**2
        gap_um = np.hypot(*(yx_px[:, None] - yx_px[None]).transpose(2, 0, 1)) * self.optics.pixel_um
        np.fill_diagonal(gap_um, np.inf)
        return RefinedZ(
            z_um=z_um,
            sigma_z_um=noise * self._slope_noise / bend_per_um2,
            peak=peak,
            at_edge=(highest != middle) | (at_end > peak) | (np.abs(z_um) > self.z_limit_um),
            near_neighbour=gap_um.min(axis=1, initial=np.inf) < self._neighbour_um,
            weak=peak < WEAK * noise,
            conjugate=-on_axis.min(axis=1) > peak,
        )

    def polarizability_um3(
        self, field: NDArray[Any], yx_px: NDArray[Any], z_um: NDArray[Any] | float, *, noise: float | None = None
    ) -> tuple[Floats, Floats]:
        """Weigh each particle by the light that it scatters forward, without any calibration.

        alpha = (2 / k_m) sum(Im E_s) px^2 in focus, the sum taken under a window that is 1 at the centre: narrow in
        the spectrum, so that it reads the forward direction without the ripple of a hard edge.

        Parameters
        ----------
        field, yx_px, noise
            As for `refine_z`.
        z_um : (N,) or float
            Where each particle is in focus.

        Returns
        -------
        (N,), (N,)
            Polarizability and its standard error from the noise, um^3. Spheres that are not small scatter otherwise
            than `clausius_mossotti` says; in water it reads +4 % at 228 nm radius and index 1.58, +12 % at 130 nm and
            1.70, -20 % at 300 nm and 1.70 (Mie, without noise).

        Raises
        ------
        ValueError
            As for `refine_z`.
        """
        yx_px, z_um = _checked(field, yx_px, z_um)
        noise = field_noise(field) if noise is None else noise
        alpha = (self._rings(field, yx_px, z_um) @ self._weights).imag.astype(np.float64)
        return alpha, np.full(len(alpha), noise * self._alpha_noise)

    def _rings(self, field: NDArray[Any], yx_px: Floats, z_um: Floats) -> NDArray[np.complex64]:
        """Return E_s at each particle's centre and z, as sums over the rings of its spectrum in the pupil, (N, K)."""
        from scipy import fft

        size = self._crop_px
        corner = np.rint(yx_px).astype(int) - size // 2
        crops = np.zeros((len(yx_px), size, size), np.complex64)  # outside of the frame nothing is known: background
        for crop, (y, x) in zip(crops, corner.tolist(), strict=True):
            top, left = max(0, -y), max(0, -x)
            inside = field[max(0, y) : max(0, y + size), max(0, x) : max(0, x + size)]
            crop[top : top + inside.shape[0], left : left + inside.shape[1]] = inside - 1
        spectra = fft.fft2(crops, overwrite_x=True)
        # to the sub-pixel centre, (N, 1 or 2, size)
        shift = np.exp((yx_px - corner)[:, :, None] * self._turn_per_px).astype(np.complex64)
        spectra *= shift[:, 0, :, None]
        spectra *= shift[:, 1, None, :]
        rings = np.add.reduceat(spectra.reshape(len(crops), size * size)[:, self._inside], self._starts, axis=1)
        rings *= np.exp(1j * z_um[:, None] * self._axial)
        return np.asarray(rings)


def clausius_mossotti(radius_um: float, index: float, medium_index: float) -> float:
    """Return the polarizability of a small sphere in um^3, 3 V (n_p^2 - n_m^2) / (n_p^2 + 2 n_m^2).

    >>> round(clausius_mossotti(0.228, 1.58, 1.33), 5)
    0.01796

    Raises
    ------
    ValueError
        If a value is not above 0.
    """
    if not (radius_um > 0 and index > 0 and medium_index > 0):
        raise ValueError(
            f"expected radius and indices above 0, got {radius_um:g} um, {index:g} and {medium_index:g}; give the "
            "radius in micrometres, 0.1 for a bead of 200 nm diameter"
        )
    volume_um3 = 4 / 3 * math.pi * radius_um**3
    return 3 * volume_um3 * (index**2 - medium_index**2) / (index**2 + 2 * medium_index**2)


def _checked(field: NDArray[Any], yx_px: NDArray[Any], z_um: NDArray[Any] | float) -> tuple[Floats, Floats]:
    """Return positions (N, 2) and distances (N,) in float64."""
    yx, z = np.asarray(yx_px, np.float64), np.asarray(z_um, np.float64)
    if field.ndim != 2 or not np.iscomplexobj(field):
        raise ValueError(
            f"expected a complex field (H, W), got {field.dtype} of shape {field.shape}; demodulate the hologram first"
        )
    if yx.ndim != 2 or yx.shape[1] != 2 or z.shape not in ((), (len(yx),)):
        raise ValueError(
            f"expected positions (N, 2) and one z or N, got shapes {yx.shape} and {z.shape}; give one row a particle"
        )
    if not (np.isfinite(yx).all() and np.isfinite(z).all()):
        raise ValueError("expected finite positions and z, got NaN or infinity; leave such rows out")
    return yx, np.broadcast_to(z, len(yx))
