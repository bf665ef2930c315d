"""A complex field at another distance: `Refocuser`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.optics import Optics

Complex2D = NDArray[np.complex64]

_KERNELS_KEPT = 4


class Refocuser:
    """Propagates fields of one shape by the angular spectrum method.

    E(z + d) = FT^-1{ FT[E] exp(i d (sqrt(k_m^2 - kx^2 - ky^2) - k_m)) } with the wavenumber k_m in the medium: z is in
    true micrometres there, a particle at +z is in focus at d = +z, and the background stays 1 + 0i. Waves outside the
    objective's aperture are dropped: no light came that way, so energy never grows. The frame is periodic: what leaves
    at one edge comes in at the opposite one.

    Parameters
    ----------
    optics : Optics
        Of the field: `pixel_um` is the field's, not the hologram's.
    shape : (int, int)
        Height and width of the fields; odd sizes are fine.

    References
    ----------
    Goodman, Introduction to Fourier Optics, 3rd ed., sec. 3.10.
    """

    def __init__(self, optics: Optics, shape: tuple[int, int]) -> None:
        self.optics = optics
        self.shape = shape
        self.z_limit_um = optics.z_limit_um(min(shape) * optics.pixel_um)
        """Up to here the light of a particle in the middle stays on the frame; see `Optics.z_limit_um`."""
        f_y, f_x = (np.fft.fftfreq(n, optics.pixel_um) for n in shape)
        f_squared = f_y[:, None] ** 2 + f_x**2
        self._inside = f_squared <= optics.pupil_radius_per_um**2
        self._kz_minus_k = axial_wavenumber(optics, f_squared[self._inside])
        self._kernels: dict[float, Complex2D] = {}

    def kernel(self, z_um: float) -> Complex2D:
        """Return the factor (H, W) of the spectrum, in the order of `fftfreq`; the last few distances are kept."""
        z_um = float(z_um)
        kernel = self._kernels.get(z_um)
        if kernel is None:
            kernel = np.zeros(self.shape, np.complex64)
            # reduced to one turn in float64: far planes keep their phase in float32
            kernel[self._inside] = np.exp(1j * np.remainder(z_um * self._kz_minus_k, 2 * np.pi).astype(np.float32))
            if len(self._kernels) >= _KERNELS_KEPT:
                self._kernels.pop(next(iter(self._kernels)))
            self._kernels[z_um] = kernel
        return kernel

    def refocus(self, field: NDArray[Any], z_um: float) -> Complex2D:
        """Return the field at a distance.

        Parameters
        ----------
        field : (H, W) complex64
            Background 1 + 0i.
        z_um : float
            Distance along the optical axis; positive where a particle at positive z comes into focus.

        Returns
        -------
        (H, W) complex64

        Raises
        ------
        ValueError
            If the field has another shape.
        """
        return self.from_spectrum(self.spectrum(field), z_um)

    def stack(self, field: NDArray[Any], z_um: Iterable[float]) -> NDArray[np.complex64]:
        """Return the field at many distances, (Z, H, W) complex64; one transform forth, one back per plane."""
        spectrum = self.spectrum(field)
        planes = [self.from_spectrum(spectrum, z) for z in z_um]
        return np.stack(planes) if planes else np.empty((0, *self.shape), np.complex64)

    def spectrum(self, field: NDArray[Any]) -> Complex2D:
        """Return the transform of a field, for `from_spectrum`."""
        from scipy import fft

        if field.shape != self.shape:
            raise ValueError(
                f"expected a field of shape {self.shape}, got {field.shape}; make a Refocuser for this shape"
            )
        spectrum: Complex2D = fft.fft2(field.astype(np.complex64, copy=False))
        return spectrum

    def from_spectrum(self, spectrum: Complex2D, z_um: float) -> Complex2D:
        """Return the field at a distance from its transform at distance 0, which is left as it is."""
        from scipy import fft

        field: Complex2D = fft.ifft2(spectrum * self.kernel(z_um), overwrite_x=True)
        return field


def axial_wavenumber(optics: Optics, f_squared: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return kz - k_m in radians per micrometre for squared lateral frequencies in (cycles/um)^2; evanescent: -k_m."""
    k = optics.wavenumber_per_um
    return np.sqrt(np.maximum(k**2 - 4 * np.pi**2 * f_squared, 0)) - k
