"""The network's view of a field: a few planes along z, seen through a narrow pupil, `FocalPlanes`."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.optics import Optics
from oneframe.runtime.refocus import Complex2D, axial_wavenumber

CELL_WAVELENGTHS = 0.75
"""Largest cell of the planes, in wavelengths."""
BAND = 0.9
"""Share of the cells' highest frequency that the planes keep."""
PLANES_PER_DEPTH = 0.8
"""Planes per depth of focus."""


class FocalPlanes:
    """A field propagated to a few distances, its steepest waves left out, as real channels.

    The field of a particle far from focus covers a disc of some 10 um, and its phase holds z only as the pitch of
    rings: hard to learn, and costly to look at. Propagated close to its focus a particle is a spot, and its phase
    there tells the rest of the way. Through a pupil of NA 0.6 to 0.7 the depth of focus is 1.5 to 2 um, so that five
    planes cover 10 um, on cells that are large and therefore few.

    Parameters
    ----------
    optics : Optics
        Of the field.
    shape : (int, int)
        Of the field; rows and columns beyond a multiple of `every` are left out.
    every : int
        Field pixels per cell along each axis; cell [i, j] lies on the field's pixel [every * i, every * j].
    planes_um : sequence of float
    """

    def __init__(self, optics: Optics, shape: tuple[int, int], every: int, planes_um: tuple[float, ...]) -> None:
        self.field_shape = shape
        self.shape = (shape[0] // every, shape[1] // every)
        self._part = tuple(slice(0, n * every) for n in self.shape)
        self._rows, self._columns = (lowest_bins(m, m * every) for m in self.shape)
        self.kernels = plane_kernels(optics, self.shape, every, planes_um)
        self.kernels /= every**2

    def of(self, scattered: Complex2D) -> NDArray[np.float32]:
        """Return Re of all planes, then Im of all, (2 P, h, w), of a scattered field E - 1, (H, W) complex64."""
        from scipy import fft

        rows = fft.fft(scattered[self._part], axis=1)
        columns = fft.fft(np.take(rows, self._columns, axis=1), axis=0, overwrite_x=True)
        planes = fft.ifft2(np.take(columns, self._rows, axis=0) * self.kernels, overwrite_x=True)
        channels = np.empty((2, *planes.shape), np.float32)
        channels[0], channels[1] = planes.real, planes.imag
        return channels.reshape(-1, *self.shape)


def cropped(spectrum: Complex2D, shape: tuple[int, int]) -> Complex2D:
    """Return the low frequencies of a spectrum in the order of `fftfreq`, as a smaller one of this shape."""
    rows, columns = (lowest_bins(n, m) for n, m in zip(shape, spectrum.shape, strict=True))
    return np.asarray(spectrum[rows[:, None], columns])


def lowest_bins(n: int, n_all: int) -> NDArray[np.intp]:
    """Return where the n lowest of `n_all` frequencies stand, in the order of `fftfreq`."""
    return np.asarray(np.r_[0 : (n + 1) // 2, n_all - n // 2 : n_all], np.intp)


def plane_kernels(optics: Optics, shape: tuple[int, int], every: int, planes_um: tuple[float, ...]) -> Complex2D:
    """Return the factors (P, h, w) complex64 of the spectrum of a scattered field sampled at the cells."""
    cell_um = every * optics.pixel_um
    f_y, f_x = (np.fft.fftfreq(n, cell_um) for n in shape)
    f_squared = f_y[:, None] ** 2 + f_x**2
    axial = axial_wavenumber(optics, f_squared)
    phase = np.remainder(np.array(planes_um)[:, None, None] * axial, 2 * np.pi)
    return np.asarray(np.exp(1j * phase) * (f_squared <= band_per_um(optics, every) ** 2), np.complex64)


def band_per_um(optics: Optics, every: int) -> float:
    """Return the highest frequency that the planes keep, cycles per micrometre."""
    return min(optics.pupil_radius_per_um, BAND / (2 * every * optics.pixel_um))


def plane_depth_um(optics: Optics, every: int) -> float:
    """Return the depth of focus through the aperture of the planes."""
    aperture = band_per_um(optics, every) * optics.wavelength_um
    return optics.medium_index * optics.wavelength_um / aperture**2


def noise_in_planes(noise: float, optics: Optics, every: int) -> float:
    """Return what the planes keep of a field's noise per component, which fills the objective's pupil."""
    return noise * band_per_um(optics, every) / optics.pupil_radius_per_um


def pixels_per_cell(optics: Optics) -> int:
    """Return how many pixels of a field make a cell, along each axis."""
    return max(1, math.floor(CELL_WAVELENGTHS * optics.wavelength_um / optics.pixel_um))


def planes_for(optics: Optics, every: int, z_um: tuple[float, float]) -> tuple[float, ...]:
    """Return the distances of the planes that cover particles from a lowest to a highest z, in micrometres."""
    low, high = z_um
    n = max(3, round((high - low) * PLANES_PER_DEPTH / plane_depth_um(optics, every)))
    spacing_um = (high - low) / n
    return tuple(round(low + (i + 0.5) * spacing_um, 4) for i in range(n))
