"""Position and polarizability of particles, measured in the complex field where a network has found them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.polynomial.chebyshev import chebvander
from numpy.typing import NDArray

from oneframe.acquisition.mie import scattering_amplitudes
from oneframe.runtime.field_background import field_noise
from oneframe.runtime.optics import Optics
from oneframe.runtime.refocus import axial_wavenumber

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Spectra = NDArray[np.complex64]

WEAK = 5.0
"""Peaks below this many standard deviations of the noise are not told from it: the search looks at some 20 of them."""
REACH_PX = 1.5
"""How far from the coarse centre a peak is searched for, along each axis."""
FAINT = 20.0
"""Peaks below this many standard deviations of the noise are worth a wider search, and a wider crop."""
ASIDE = 0.3
"""Steps beside the coarse axis in which faint ones are looked for, in wavelengths over the aperture."""
ASIDE_STEPS = 3
"""How many to each side: networks that see noise are off by a wavelength over the aperture at times."""
BEYOND = 9.0
"""By which the square of a peak far from the coarse z, in variances of the noise, must exceed that of one near it."""
MOST_STEPS = 256
"""Along z that the wider search is worth."""
HARMLESS_PX = 0.2
"""A centre that is off by so much reads the same z."""
SMALLEST_CROP_PX = 16
WIDEST_CROP_PX = 256
MODES = 3
"""In which the fall-off of the light from ring to ring may differ from the mean of `TYPICAL` spheres."""
TYPICAL = np.linspace(0.25, 4.2, 16), np.linspace(1.02, 1.35, 8)
"""Radii times k_m, and indices over the medium's: to 0.32 um and 1.80 in water at 633 nm."""
KNOWN = np.linspace(0.25, 4.75, 48), np.linspace(1.02, 1.4, 24)
"""The same of all spheres that a particle is compared with: to 0.36 um and 1.86."""
ANGLES = 24
"""At which the light of a sphere is computed; its Mie series ends before that order."""
MODEL_ERROR = 0.6
"""By how much a pixel of a real spectrum differs from a sphere's, over its value at frequency 0; chosen on simulated
spheres of 0.13 to 0.3 um."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One row a particle: all that its own field tells."""

    yx_px: Floats
    """(N, 2), centres in pixels of the field; as they came where `sigma_yx_px` is NaN."""
    sigma_yx_px: Floats
    """(N, 2), standard errors from the noise; NaN where there is no peak within reach."""
    z: RefinedZ
    polarizability_um3: Floats
    sigma_polarizability_um3: Floats
    """Standard error from the noise, and from what the noise leaves open of the particle's form."""


class ParticleCrops:
    """Crops of one size round particles, as the spectra of E_s within the pupil, ring after ring of equal |k|.

    Parameters
    ----------
    optics : Optics
        Of the field.
    size_px : int
        Edge of the crops, even.
    z_um : (Z,)
        Distances along the axis that `to_axis` propagates by.
    """

    def __init__(self, optics: Optics, size_px: int, z_um: Floats) -> None:
        self._size_px = size_px
        bins = np.fft.fftfreq(size_px, 1 / size_px)
        self._turn_per_px = 2j * np.pi / size_px * bins
        squared = bins[:, None] ** 2 + bins**2
        pupil = (optics.pupil_radius_per_um * size_px * optics.pixel_um) ** 2
        inside = np.flatnonzero(squared <= pupil)
        self._inside = inside[np.argsort(squared.flat[inside], kind="stable")]  # ring after ring
        self._row, self._column = np.divmod(self._inside, size_px)
        ring_squared, self._starts, self.ring = np.unique(
            squared.flat[self._inside], return_index=True, return_inverse=True
        )
        """Of each pixel of a spectrum, (P,)."""
        self.n_pixels = len(inside)
        """P"""
        self.n_in_ring = np.diff(self._starts, append=len(inside))
        """(R,)"""
        self.share = ring_squared / pupil
        """Share of the pupil's area within each ring, (R,)."""
        self.axial = axial_wavenumber(optics, ring_squared / (size_px * optics.pixel_um) ** 2)
        """kz - k_m of each ring, (R,)."""
        self.to_axis = (np.exp(1j * np.outer(self.axial, z_um)) / size_px**2).astype(np.complex64)
        """Sums over the rings to E_s on the axis, (R, Z)."""
        self.slope_noise = math.sqrt(np.mean(self.axial[self.ring] ** 2))
        """Noise of dE_s/dz over the noise of E_s, both on the axis."""
        k_y, k_x = self._turn_per_px.imag[self._row], self._turn_per_px.imag[self._column]  # rad per pixel
        moments = np.stack([k_y, k_x, k_y**2, k_y * k_x, k_x**2], axis=1)
        self.moments = (moments / size_px**2).astype(np.complex64)
        """Spectrum to gradient and curvature across the axis, (P, 5)."""
        self.lateral_noise = np.sqrt(np.mean(moments[:, [2, 4]], axis=0))
        """Of the gradient, over that of E_s."""
        around = REACH_PX * np.linspace(-1, 1, 5)
        self.around_px = np.stack(np.meshgrid(around, around, indexing="ij"), axis=-1).reshape(-1, 2)
        """(25, 2)"""
        self.to_patch = np.exp(1j * np.stack([k_y, k_x], axis=1) @ self.around_px.T).astype(np.complex64)
        """Spectrum to E_s there, (P, 25)."""

    def spectra(self, field: NDArray[Any], yx_px: Floats) -> Spectra:
        """Return the spectra in the pupil of E_s around each particle, phases counted from its centre, (N, P)."""
        from scipy import fft

        size = self._size_px
        corner = np.rint(yx_px).astype(int) - size // 2
        crops = np.zeros((len(yx_px), size, size), np.complex64)  # outside of the frame nothing is known: background
        for crop, (y, x) in zip(crops, corner.tolist(), strict=True):
            top, left = max(0, -y), max(0, -x)
            inside = field[max(0, y) : max(0, y + size), max(0, x) : max(0, x + size)]
            crop[top : top + inside.shape[0], left : left + inside.shape[1]] = inside - 1
        spectra = fft.fft2(crops, overwrite_x=True).reshape(len(crops), size * size)
        return self.moved(np.take(spectra, self._inside, axis=1), yx_px - corner)

    def moved(self, spectra: Spectra, by_px: Floats) -> Spectra:
        """Return the spectra with phases counted from points that lie (N, 2) px further on."""
        turned = np.exp(by_px[:, :, None] * self._turn_per_px).astype(np.complex64)  # (N, 2, size)
        moved = np.take(turned[:, 0], self._row, axis=1)
        moved *= np.take(turned[:, 1], self._column, axis=1)
        moved *= spectra
        return moved

    def rings(self, spectra: Spectra) -> Spectra:
        """Return the sums over the rings of each spectrum, (N, R)."""
        return np.asarray(np.add.reduceat(spectra, self._starts, axis=1))

    def propagation(self, z_um: Floats) -> Spectra:
        """Return the factors of the rings that bring z to 0, (N, R)."""
        return np.asarray(np.exp(1j * z_um[:, None] * self.axial), np.complex64)


class ParticleRefiner:
    """Finds the centres of particles near known x, y and z, and weighs them.

    Of the scattered field E_s = E - 1 only values near the axis of the particle are needed,

        E_s(r, z) = sum_k F(k) exp(i k.r) exp(i (kz - k_m) z)

    so a crop is transformed once and its spectrum F kept within the pupil, phases counted from the sub-pixel centre.

    z: summed over rings of equal |k|, brought to the coarse z, and multiplied by one fixed complex matrix for all
    distances around it. z is where Im E_s is highest. y and x: so is Im E_s there; its gradient and curvature are the
    first and second moments of the same spectrum.

    Faint peaks, see `FAINT`, are looked for a little beside the coarse axis too, and along all of `z_um`, and are then
    measured in a crop twice as wide: far out of focus a particle's steep rays leave the crop, and of their frequencies
    only the noise is left in it. At a noise of a tenth of the peak this takes the error of z from 40 to 26 nm, which is
    what the noise allows (Cramer and Rao: 25 nm), and costs some milliseconds a frame.

    Polarizability: alpha = (2 / k_m) Im F(0) px^2, with F(0), the light straight ahead, from the spectrum in focus over
    the inner half of the pupil's area. How it falls off from ring to ring depends on size and index: F is fitted by the
    mean fall-off of `TYPICAL` Mie spheres and the `MODES` in which they differ most from it, each held to the spread
    that it has among them. The fit is free where the signal is strong, and close to the mean where it is weak.
    Frequency 0 itself is left out: a background that is not quite 1 stands there.

    The focus of the light is not the sphere's centre but behind it: in water, at NA 1.3 and 633 nm, by 0.12 to 0.14 um
    for 0.228 um radius and index 1.58, by 0.01 to 0.4 um for 0.13 to 0.3 um and 1.40 to 1.70, and by a few radii for
    spheres much larger than the wavelength. It is the same for all of one kind, and left to the caller's calibration.

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
    neighbour_um : float
        Particles closer than this are flagged.
    z_um : (float, float), optional
        Lowest and highest z of particles: faint ones are searched for in all of it.
    spheres : bool
        Take each particle for a homogeneous sphere denser than the medium, and give the polarizability that
        `clausius_mossotti` has for it: the mean over all `KNOWN` Mie spheres, each weighted by how well its light
        agrees; NaN where the best are the largest or densest of them. Otherwise no form is assumed, and spheres that
        are not small read what they scatter, see `polarizability_um3`.
    calibration : float
        Factor of all polarizabilities.

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
        neighbour_um: float = 3.0,
        z_um: tuple[float, float] | None = None,
        spheres: bool = False,
        calibration: float = 1.0,
    ) -> None:
        if crop_px % 2 or crop_px < SMALLEST_CROP_PX:
            raise ValueError(
                f"expected an even crop_px of {SMALLEST_CROP_PX} or more, got {crop_px}; 64 suits pixels of 0.2 um"
            )
        if not 0 < 2 * step_um <= half_range_um:
            raise ValueError(
                f"expected step_um above 0 and at most half of half_range_um, got {step_um:g} and {half_range_um:g}; "
                "0.1 and 4 suit most samples"
            )
        if not calibration > 0:
            raise ValueError(f"expected a calibration above 0, got {calibration:g}; 1 leaves the values as they are")
        self.optics = optics
        self.z_limit_um = optics.z_limit_um(crop_px * optics.pixel_um)
        """Beyond this |z| the crop has lost too much of the light; see `Optics.z_limit_um`."""
        self.crop_px = crop_px
        """Edge of the crops."""
        self._neighbour_um = neighbour_um
        self._calibration = calibration
        n_steps = math.ceil(half_range_um / step_um)
        self._step_um = step_um
        self._z_um = step_um * np.arange(-n_steps, n_steps + 1, dtype=np.float64)
        self._crops = crops = ParticleCrops(optics, crop_px, self._z_um)
        wide_px = max(crop_px, min(2 * crop_px, WIDEST_CROP_PX))
        self._wide_crops = crops if wide_px == crop_px else ParticleCrops(optics, wide_px, self._z_um)
        self._far_um = np.empty(0)
        if z_um is not None and z_um[1] - z_um[0] <= MOST_STEPS * step_um:
            self._far_um = np.arange(z_um[0], z_um[1] + step_um, step_um)
        self._to_far = (np.exp(1j * np.outer(crops.axial, self._far_um)) / crop_px**2).astype(np.complex64)
        step_px = ASIDE * optics.wavelength_um / optics.na / optics.pixel_um
        aside = np.mgrid[-ASIDE_STEPS : ASIDE_STEPS + 1, -ASIDE_STEPS : ASIDE_STEPS + 1].reshape(2, -1).T
        self._aside_px = step_px * aside[np.hypot(*aside.T) <= ASIDE_STEPS + 0.5].astype(np.float64)
        self._to_aside = crops.moved(np.ones((len(self._aside_px), crops.n_pixels), np.complex64), self._aside_px)
        self._to_um2 = optics.pixel_um**2
        self._noise_to_um2 = crop_px**2 * optics.pixel_um**2 / math.sqrt(crops.n_pixels)  # per pixel of the spectrum
        self._used = np.flatnonzero((crops.share > 0) & (crops.share <= 0.5))
        if len(self._used) < 2 * (1 + MODES):
            raise ValueError(
                f"expected crops of some wavelengths / NA, got {crop_px} px of {optics.pixel_um:g} um at NA "
                f"{optics.na:g}, too few rings in the pupil; use a larger crop_px"
            )
        n_used = crops.n_in_ring[self._used]
        rings = crops.axial, crops.n_in_ring, self._used
        light = sphere_light(optics, *rings, *TYPICAL)
        shapes = light.profile / light.forward[:, None]
        mean = shapes.mean(axis=0)
        _, spread, modes = np.linalg.svd((shapes - mean) / math.sqrt(len(shapes)), full_matrices=False)
        falls = np.vstack([mean, spread[:MODES, None] * modes[:MODES]])  # (1 + MODES, K)
        self._project = falls.T.astype(np.float32)
        self._normal = (falls * n_used) @ falls.T
        self._spheres = None
        if spheres:
            self._spheres = sphere_light(optics, *rings, *KNOWN)
            self._sphere_project = self._spheres.profile.T.astype(np.float32)  # (K, M)
            self._half_sphere_power = (self._spheres.profile**2 @ n_used / 2).astype(np.float32)
            self._sphere_um3 = self._spheres.polarizability_um3.astype(np.float32)

    @classmethod
    def for_optics(
        cls, optics: Optics, *, z_um: tuple[float, float], shape: tuple[int, int], **options: Any
    ) -> ParticleRefiner:
        """Return a refiner whose sizes follow from the optics.

        Searched are three depths of focus on either side of the coarse z. The crop is the smallest from 48 to 256 px
        that holds the light of particles at the ends of the range, and all that counts as near; where the frame is
        smaller than that, see `z_limit_um`.

        Parameters
        ----------
        optics : Optics
            Of the field.
        z_um : (float, float)
            Lowest and highest z of particles.
        shape : (int, int)
            Height and width of the fields.
        **options
            `spheres`, `calibration`, or any other argument, instead of what follows from the optics.

        Raises
        ------
        ValueError
            If the fields are too small, or an option is unusable.
        """
        from scipy import fft

        wave_um = optics.wavelength_um / optics.na
        depth_um = depth_of_focus_um(optics)
        fast = [n for n in range(SMALLEST_CROP_PX, min(WIDEST_CROP_PX, *shape) + 1, 2) if fft.next_fast_len(n) == n]
        if not fast:
            raise ValueError(
                f"expected fields of {SMALLEST_CROP_PX} px or more along each side, got {shape[0]} x {shape[1]}; use "
                "a larger region of the camera"
            )
        neighbour_um, farthest_um = 6 * wave_um, max(map(abs, z_um))
        widths_um = {n: n * optics.pixel_um for n in fast if n >= 48}
        wide = [n for n, um in widths_um.items() if optics.z_limit_um(um) >= farthest_um and um >= 2 * neighbour_um]
        chosen: dict[str, Any] = {
            "half_range_um": 3 * depth_um,
            "step_um": depth_um / 5,
            "crop_px": wide[0] if wide else fast[-1],
            "neighbour_um": neighbour_um,
            "z_um": z_um,
        }
        return cls(optics, **(chosen | options))

    def measure(
        self, field: NDArray[Any], yx_px: NDArray[Any], z_start_um: NDArray[Any] | float, *, noise: float | None = None
    ) -> Measured:
        """Find focus and centre of each particle and weigh it; each crop is transformed once.

        z comes first, then y and x there; z once more if a particle has moved by more than 0.2 px; then polarizability.

        Parameters
        ----------
        field, yx_px, z_start_um, noise
            As for `refine_z`.

        Returns
        -------
        Measured

        Raises
        ------
        ValueError
            As for `refine_z`.
        """
        yx_px, z_start_um = _checked(field, yx_px, z_start_um)
        noise = field_noise(field) if noise is None else noise
        near, crops = self._near_neighbour(yx_px), self._crops
        cut = crops.spectra(field, yx_px)
        spectra, centre_px, sigma_px, z = self._placed(crops, cut, yx_px, z_start_um, near, noise)
        faint = z.peak < FAINT * noise
        if faint.any():
            by_px, brightest_um = self._brightest(cut[faint], z_start_um[faint], noise)
            at_px, wide = yx_px[faint] + by_px, self._wide_crops
            again = self._placed(wide, wide.spectra(field, at_px), at_px, brightest_um, near[faint], noise)
            centre_px[faint], sigma_px[faint] = again[1:3]
            for column in fields(RefinedZ):
                getattr(z, column.name)[faint] = getattr(again[3], column.name)
            spectra[faint] = crops.moved(cut[faint], centre_px[faint] - yx_px[faint])
        alpha_um3, sigma_um3 = self._weigh(spectra, z.z_um, noise)
        return Measured(centre_px, sigma_px, z, alpha_um3, sigma_um3)

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
        spectra = self._crops.spectra(field, yx_px)
        return self._focus(self._crops, spectra, z_start_um, self._near_neighbour(yx_px), noise)

    def refine_yx(
        self, field: NDArray[Any], yx_px: NDArray[Any], z_um: NDArray[Any] | float, *, noise: float | None = None
    ) -> tuple[Floats, Floats]:
        """Find the centre of each particle in its plane of focus, where Im E_s is highest.

        Parameters
        ----------
        field, noise
            As for `refine_z`.
        yx_px : (N, 2)
            Coarse centres; the highest point up to 1.5 px away along each axis is found.
        z_um : (N,) or float
            Where each particle is in focus.

        Returns
        -------
        (N, 2), (N, 2)
            Centres and their standard errors from the noise, in pixels of the field. Where there is no peak within
            reach the centre is the one given and its error NaN.

        Raises
        ------
        ValueError
            As for `refine_z`.
        """
        yx_px, z_um = _checked(field, yx_px, z_um)
        noise = field_noise(field) if noise is None else noise
        spectra = self._crops.spectra(field, yx_px)
        _, centre_px, sigma_px = self._centre(self._crops, spectra, yx_px, z_um, noise)
        return centre_px, sigma_px

    def polarizability_um3(
        self, field: NDArray[Any], yx_px: NDArray[Any], z_um: NDArray[Any] | float, *, noise: float | None = None
    ) -> tuple[Floats, Floats]:
        """Weigh each particle by the light that it scatters straight ahead.

        Parameters
        ----------
        field, yx_px, noise
            As for `refine_z`.
        z_um : (N,) or float
            Where each particle is in focus.

        Returns
        -------
        (N,), (N,)
            Polarizability and its standard error, um^3; see `Measured`. Spheres that are not small scatter otherwise
            than `clausius_mossotti` says, unless the refiner was told that they are `spheres`: in water it reads +4 %
            at 228 nm radius and index 1.58, +12 % at 130 nm and 1.70, -21 % at 300 nm and 1.70 (Mie, without noise).

        Raises
        ------
        ValueError
            As for `refine_z`.
        """
        yx_px, z_um = _checked(field, yx_px, z_um)
        noise = field_noise(field) if noise is None else noise
        return self._weigh(self._crops.spectra(field, yx_px), z_um, noise)

    def _near_neighbour(self, yx_px: Floats) -> Bools:
        """Return which particles have another one close by."""
        gap_um = np.hypot(*(yx_px[:, None] - yx_px[None]).transpose(2, 0, 1)) * self.optics.pixel_um
        np.fill_diagonal(gap_um, np.inf)
        return np.asarray(gap_um.min(axis=1, initial=np.inf) < self._neighbour_um)

    def _placed(
        self, crops: ParticleCrops, spectra: Spectra, yx_px: Floats, z_start_um: Floats, near: Bools, noise: float
    ) -> tuple[Spectra, Floats, Floats, RefinedZ]:
        """Return the spectra moved to the particles' centres, these and their standard errors, and the focus there."""
        z = self._focus(crops, spectra, z_start_um, near, noise)
        spectra, centre_px, sigma_px = self._centre(crops, spectra, yx_px, z.z_um, noise)
        if (np.hypot(*(centre_px - yx_px).T) > HARMLESS_PX).any():
            z = self._focus(crops, spectra, z_start_um, near, noise)
        return spectra, centre_px, sigma_px, z

    def _focus(self, crops: ParticleCrops, spectra: Spectra, z_start_um: Floats, near: Bools, noise: float) -> RefinedZ:
        """Return where Im E_s is highest along each axis."""
        n = len(spectra)
        along_axis = (crops.rings(spectra) * crops.propagation(z_start_um)) @ crops.to_axis  # (N, Z)
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
        return RefinedZ(
            z_um=z_um,
            sigma_z_um=noise * crops.slope_noise / bend_per_um2,
            peak=peak,
            at_edge=(highest != middle) | (at_end > peak) | (np.abs(z_um) > self.z_limit_um),
            near_neighbour=near.copy(),
            weak=peak < WEAK * noise,
            conjugate=-on_axis.min(axis=1) > peak,
        )

    def _brightest(self, spectra: Spectra, z_start_um: Floats, noise: float) -> tuple[Floats, Floats]:
        """Return how far beside the axis of a faint particle Im E_s is highest, (N, 2) px, and at which z.

        A little off its axis a particle's light is weaker already, and where it is faint the noise elsewhere along that
        line is then higher; and a coarse z that noise has spoilt may be off by any distance.
        """
        crops, near, far = self._crops, [], []
        to_start = crops.propagation(z_start_um)
        for turn in self._to_aside:
            rings = crops.rings(spectra * turn)
            far.append((rings @ self._to_far).imag)
            near.append(((rings * to_start) @ crops.to_axis).imag)
        signal = np.concatenate([near, far], axis=2).transpose(1, 0, 2)  # (N, A, Z)
        power = signal * np.abs(signal)
        power[:, :, len(self._z_um) :] -= BEYOND * noise**2
        aside, along = np.divmod(power.reshape(len(spectra), -1).argmax(axis=1), signal.shape[2])
        z_um = np.hstack([z_start_um[:, None] + self._z_um, np.tile(self._far_um, (len(spectra), 1))])
        return self._aside_px[aside], z_um[np.arange(len(spectra)), along]

    def _centre(
        self, crops: ParticleCrops, spectra: Spectra, yx_px: Floats, z_um: Floats, noise: float
    ) -> tuple[Spectra, Floats, Floats]:
        """Return where Im E_s is highest around each axis, its standard error, and the spectra moved there."""
        focused = spectra * np.take(crops.propagation(z_um), crops.ring, axis=1)
        by_px = crops.around_px[np.argmax((focused @ crops.to_patch).imag, axis=1)]
        for _ in range(2):  # Newton's method, from at most 0.53 px away
            moments = crops.moved(focused, by_px) @ crops.moments  # (N, 5)
            gradient = moments[:, :2].real.astype(np.float64)
            curvature = -moments[:, [2, 3, 3, 4]].imag.astype(np.float64).reshape(-1, 2, 2)
            peaked = (np.linalg.det(curvature) > 0) & (curvature[:, 0, 0] < 0)
            inverse = np.linalg.inv(np.where(peaked[:, None, None], curvature, -np.eye(2)))
            by_px = by_px - np.where(peaked[:, None], (inverse @ gradient[:, :, None])[:, :, 0], 0)
        peaked &= np.abs(by_px).max(axis=1) <= REACH_PX
        by_px = np.where(peaked[:, None], by_px, 0)
        sigma_px = noise * np.sqrt((inverse**2) @ crops.lateral_noise**2)
        return crops.moved(spectra, by_px), yx_px + by_px, np.where(peaked[:, None], sigma_px, np.nan)

    def _weigh(self, spectra: Spectra, z_um: Floats, noise: float) -> tuple[Floats, Floats]:
        """Return the polarizability and its standard error."""
        rings = self._crops.rings(spectra) * self._crops.propagation(z_um)
        sums_um2 = rings[:, self._used].imag * np.float32(self._to_um2)
        projected = (sums_um2 @ self._project).astype(np.float64)  # (N, 1 + MODES)
        noise_um2 = noise * self._noise_to_um2
        held = np.diag([0.0] + [1.0] * MODES)
        forward_um2 = projected[:, 0] / self._normal[0, 0]
        for _ in range(3):  # how freely the modes may differ from the mean depends on the signal
            relative = noise_um2 / np.maximum(np.abs(forward_um2), 1e-9)
            inverse = np.linalg.inv(self._normal + relative[:, None, None] ** 2 * held)
            forward_um2 = (inverse @ projected[:, :, None])[:, 0, 0]
        to_um3 = self._calibration * 2 / self.optics.wavenumber_per_um
        if self._spheres is None:
            return to_um3 * forward_um2, to_um3 * noise_um2 * np.sqrt(inverse[:, 0, 0])
        error_um2 = np.maximum(np.hypot(noise_um2, MODEL_ERROR * forward_um2), 1e-9)[:, None]
        likelihood = sums_um2 @ self._sphere_project - self._half_sphere_power  # (N, M), float32: M is a thousand
        likelihood -= likelihood.max(axis=1, keepdims=True)
        likelihood *= (1 / error_um2**2).astype(np.float32)
        np.exp(likelihood, out=likelihood)
        likelihood /= likelihood.sum(axis=1, keepdims=True)
        mean_um3 = likelihood @ self._sphere_um3
        off_um3 = self._sphere_um3 - mean_um3[:, None]
        alpha_um3 = mean_um3.astype(np.float64)
        variance = np.einsum("nm,nm,nm->n", likelihood, off_um3, off_um3)
        unknown = np.where(likelihood @ self._spheres.largest > 0.5, np.nan, self._calibration)
        return unknown * alpha_um3, unknown * np.sqrt(np.maximum(variance, 0))


@dataclass(frozen=True, slots=True, eq=False)
class SphereLight:
    """What M spheres scatter, each in the plane where Im E_s is highest on its axis."""

    forward: Floats
    """(M,), Im F(0), um^2."""
    profile: Floats
    """(M, K), mean of Im F over some rings, um^2."""
    polarizability_um3: Floats
    """(M,), by `clausius_mossotti`."""
    largest: Bools
    """(M,), at the upper end of sizes or densities: what agrees best with these may lie beyond."""


def sphere_light(
    optics: Optics,
    axial_per_um: Floats,
    n_in_ring: NDArray[Any],
    used: NDArray[Any],
    sizes: Floats,
    densities: Floats,
) -> SphereLight:
    """Return the light of Mie spheres of all sizes and densities.

    E_s(k) = -(2 pi / (k kz)) S(theta), and the mean over the azimuth of S is (S1 + S2) / 2: a polynomial in the cosine,
    of the order at which the Mie series ends, so that a few angles tell all.

    Parameters
    ----------
    optics : Optics
        Wavelength, medium and aperture.
    axial_per_um : (R,)
        kz - k_m of each ring of the spectrum.
    n_in_ring : (R,)
        Pixels of the spectrum in each ring.
    used : (K,)
        Rings whose light is told.
    sizes : (A,)
        Radius times k_m, ascending.
    densities : (B,)
        Index over the medium's, ascending.
    """
    k = optics.wavenumber_per_um
    cosines = 1 + axial_per_um / k
    steepest = cosines.min() - 1e-6
    at = np.cos(np.pi * (np.arange(ANGLES) + 0.5) / ANGLES)  # Chebyshev's points
    angles = (1 + steepest + (1 - steepest) * at) / 2
    order = ANGLES - 1
    to_rings = chebvander((2 * cosines - 1 - steepest) / (1 - steepest), order) @ np.linalg.inv(chebvander(at, order))
    to_rings *= -2 * math.pi / (k**2 * np.maximum(cosines, 1e-3)[:, None])  # (R, ANGLES)
    radii, indices = (sizes / k).tolist(), (densities * optics.medium_index).tolist()
    kinds = [(radius, index) for radius in radii for index in indices]
    told = {"wavelength_um": optics.wavelength_um, "medium_index": optics.medium_index}
    light = np.stack([sum(scattering_amplitudes(angles, *kind, **told)) / 2 for kind in kinds])  # (M, ANGLES)
    z_um = depth_of_focus_um(optics) * np.linspace(-0.5, 1.5, 161)
    to_axis = (to_rings * n_in_ring[:, None]).T @ np.exp(1j * np.outer(axial_per_um, z_um))
    focus_um = z_um[np.argmax((light @ to_axis).imag, axis=1)]
    return SphereLight(
        forward=(light @ to_rings[0]).imag,
        profile=(light @ to_rings[used].T * np.exp(1j * np.outer(focus_um, axial_per_um[used]))).imag,
        polarizability_um3=np.array([clausius_mossotti(*kind, optics.medium_index) for kind in kinds]),
        largest=np.array([radius == radii[-1] or index == indices[-1] for radius, index in kinds]),
    )


def light_of_dark(field: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Return the field (H, W) as it would be if particles delayed the light that they take away.

    In focus E_s of a particle that absorbs is negative, that of a denser one positive imaginary: turned by a quarter
    they are the same.
    """
    return np.complex64(1) - np.complex64(1j) * (field - np.complex64(1))


def depth_of_focus_um(optics: Optics) -> float:
    """Return n wavelength / NA^2."""
    return optics.medium_index * optics.wavelength_um / optics.na**2


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
