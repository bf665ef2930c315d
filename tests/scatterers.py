"""Exact complex fields of small spheres, and off-axis holograms of them, for the tests of holography."""

from dataclasses import dataclass, field

import numpy as np

from oneframe.runtime.optics import Optics
from oneframe.runtime.refine import clausius_mossotti

WATER = Optics(wavelength_um=0.633, medium_index=1.33, na=1.3, pixel_um=0.1)
CARRIER = (2.93, 2.93)
"""Cycles per micrometre; meets the sampling law of `WATER`."""


@dataclass(frozen=True)
class Sphere:
    """A sphere that scatters weakly (Rayleigh-Gans): every wave of it is in phase with i at its centre."""

    y_um: float
    x_um: float
    z_um: float = 0.0
    radius_um: float = 0.228
    index: float = 1.58
    polarizability_um3: float = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "polarizability_um3", clausius_mossotti(self.radius_um, self.index, 1.33))


def pupil(optics: Optics, shape: tuple[int, int]) -> np.ndarray:
    f_y, f_x = (np.fft.fftfreq(n, optics.pixel_um) for n in shape)
    return f_y[:, None] ** 2 + f_x**2 <= optics.pupil_radius_per_um**2


def scattered(optics: Optics, shape: tuple[int, int], *spheres: Sphere) -> np.ndarray:
    """E = 1 + E_s of the spheres, periodic on the frame: E_s(k) = i alpha k^2 / (2 kz) exp(-i k.r - i (kz - k) z)."""
    f_y, f_x = (np.fft.fftfreq(n, optics.pixel_um) for n in shape)
    k = optics.wavenumber_per_um
    across = 4 * np.pi**2 * (f_y[:, None] ** 2 + f_x**2)
    kz = np.sqrt(np.maximum(k**2 - across, 1e-9))
    q = np.sqrt(across + (kz - k) ** 2)
    spectrum = np.zeros(shape, complex)
    for s in spheres:
        qr = np.maximum(q * s.radius_um, 1e-3)
        form = 3 * (np.sin(qr) - qr * np.cos(qr)) / qr**3
        turns = f_y[:, None] * s.y_um + f_x * s.x_um
        phase = np.exp(-2j * np.pi * turns - 1j * (kz - k) * s.z_um)
        spectrum += 1j * s.polarizability_um3 * k**2 / (2 * kz) * form * phase / optics.pixel_um**2
    return 1 + np.fft.ifft2(spectrum * pupil(optics, shape))


def noise(rng: np.random.Generator, optics: Optics, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """Complex noise inside the pupil, `sigma` per component."""
    inside = pupil(optics, shape)
    white = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    return sigma / np.sqrt(inside.mean()) * np.fft.ifft2(np.fft.fft2(white) * inside)


def off_axis(optics: Optics, e: np.ndarray, carrier_yx_per_um=CARRIER, *, electrons: float = 2e4) -> np.ndarray:
    """Mean intensity |E + R|^2 with R = exp(i 2 pi f.r), in electrons per pixel."""
    y, x = (np.arange(n) * optics.pixel_um for n in e.shape)
    turns = carrier_yx_per_um[0] * y[:, None] + carrier_yx_per_um[1] * x
    return electrons / 2 * np.abs(e + np.exp(2j * np.pi * turns)) ** 2
