"""Light scattered by a sphere: the Mie series, in the sign convention exp(-i w t) that the holograms use."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def mie_coefficients(
    radius_um: float, index: float, *, wavelength_um: float, medium_index: float
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Return the electric and the magnetic coefficients a_n, b_n of a sphere, n = 1...N, each shape (N,).

    Parameters
    ----------
    radius_um : float
        Radius, above 0.
    index, medium_index : float
        Real refractive index of the sphere and of the medium around it, above 0.
    wavelength_um : float
        Wavelength in vacuum.

    Raises
    ------
    ValueError
        If one of the four is not above 0.

    References
    ----------
    Bohren and Huffman, Absorption and Scattering of Light by Small Particles (1983), eq. 4.53; the series ends where
    Wiscombe (Appl. Opt. 19, 1505, 1980) ends it, two orders later.
    """
    from scipy.special import spherical_jn, spherical_yn

    if not min(radius_um, index, wavelength_um, medium_index) > 0:
        raise ValueError(
            f"expected radius, index, wavelength and medium index above 0, got {radius_um:g} um, {index:g}, "
            f"{wavelength_um:g} um, {medium_index:g}; leave the sphere out instead"
        )
    x = 2 * np.pi * medium_index / wavelength_um * radius_um
    m = index / medium_index
    n = np.arange(1, int(np.ceil(x + 4.05 * x ** (1 / 3))) + 4)

    def riccati_bessel(argument: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        value, slope = spherical_jn(n, argument), spherical_jn(n, argument, derivative=True)
        return argument * value, value + argument * slope

    psi, psi_slope = riccati_bessel(x)
    inner, inner_slope = riccati_bessel(m * x)
    outgoing = spherical_jn(n, x) + 1j * spherical_yn(n, x)
    outgoing_slope = spherical_jn(n, x, derivative=True) + 1j * spherical_yn(n, x, derivative=True)
    xi, xi_slope = x * outgoing, outgoing + x * outgoing_slope
    a = (m * inner * psi_slope - psi * inner_slope) / (m * inner * xi_slope - xi * inner_slope)
    b = (inner * psi_slope - m * psi * inner_slope) / (inner * xi_slope - m * xi * inner_slope)
    return a, b


def scattering_amplitudes(
    cos_theta: ArrayLike, radius_um: float, index: float, *, wavelength_um: float, medium_index: float
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Return S1 (across the plane of scattering) and S2 (in it) of a sphere, each in the shape of `cos_theta`.

    The scattered wave far away is S exp(ikr) / (-ikr) times the incident one, which is 1 at the sphere's centre. The
    other arguments and errors are those of `mie_coefficients`.

    References
    ----------
    Bohren and Huffman (1983), eq. 4.74, with the angular functions of eq. 4.47.
    """
    mu = np.asarray(cos_theta, np.float64)
    a, b = mie_coefficients(radius_um, index, wavelength_um=wavelength_um, medium_index=medium_index)
    s1, s2 = np.zeros(mu.shape, np.complex128), np.zeros(mu.shape, np.complex128)
    pi_before, pi = np.zeros_like(mu), np.ones_like(mu)  # orders n - 1 and n
    for n, (a_n, b_n) in enumerate(zip(a, b, strict=True), start=1):
        tau = n * mu * pi - (n + 1) * pi_before
        weight = (2 * n + 1) / (n * (n + 1))
        s1 += weight * (a_n * pi + b_n * tau)
        s2 += weight * (a_n * tau + b_n * pi)
        pi_before, pi = pi, ((2 * n + 1) * mu * pi - (n + 1) * pi_before) / n
    return s1, s2


def extinction_um2(radius_um: float, index: float, *, wavelength_um: float, medium_index: float) -> float:
    """Return the area of light that a sphere takes out of a plane wave, square micrometres.

    References
    ----------
    Bohren and Huffman (1983), eq. 4.62.
    """
    a, b = mie_coefficients(radius_um, index, wavelength_um=wavelength_um, medium_index=medium_index)
    k_per_um = 2 * np.pi * medium_index / wavelength_um
    n = np.arange(1, a.size + 1)
    return float(2 * np.pi / k_per_um**2 * np.sum((2 * n + 1) * (a + b).real))
