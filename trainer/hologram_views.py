"""A particle in focus becomes endless views: moved, turned, propagated, scaled and noisy, exact in Fourier space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneframe.runtime.focal_planes import band_per_um, plane_kernels
from oneframe.runtime.optics import Optics
from oneframe.runtime.refocus import axial_wavenumber
from oneframe.trainer.crops import orthogonal, refined, sample

WINDOW = 5.5
"""Half the edge of the window round a particle in focus, in wavelengths over the aperture of the planes."""
N_RINGS = 16
"""Rings of equal area that a round particle's spectrum is averaged over."""
TWIN_WINDOWS = 3
"""Half the edge of the window of an in-line particle over that: wide enough for the twin to turn its phase."""
LEFT_OUT, ACCOMPANIED = 0.15, 0.3
"""Shares of the views without the particle, and with another one beside it."""
NEAREST_CELLS = 1.0
"""Least distance of the other one, beyond what both are shifted."""
ROUND = 0.05
"""Share of a particle's light that may be uneven round its axis in a round one; polarisation alone makes 2 %."""


@dataclass(frozen=True, slots=True, eq=False)
class FocusedParticle:
    """The scattered field of the boxed particle in its focal plane, centred, nothing else in it."""

    scattered: NDArray[np.complex64]
    """(S, S), S odd, on the pixels of the field; only frequencies that the planes keep."""
    signal: float
    """Its largest absolute value, background 1."""
    is_round: bool


def focused_particle(
    refocused: NDArray[np.complex64],
    yx_px: tuple[float, float],
    optics: Optics,
    every: int,
    noise: float,
    *,
    in_line: bool = False,
) -> FocusedParticle:
    """Cut the particle at `yx_px` out of a field (H, W) that is in focus there.

    Of an in-line hologram the particle's twin lies spread round it. In the spectrum the particle is smooth from ring to
    ring and the twin runs through many turns of phase, so the particle is taken for round, and for smooth.

    Parameters
    ----------
    refocused : (H, W) complex64
        Background 1 + 0i.
    yx_px : (float, float)
        Centre, pixels of the field.
    optics : Optics
        Of the field.
    every : int
        Field pixels per cell of the planes.
    noise : float
        Of the field per component.
    in_line : bool
        There is a twin.
    """
    band = band_per_um(optics, every)
    half_px = max(8, math.ceil(WINDOW / band / optics.pixel_um))
    centred, f_squared = _centred(refocused, yx_px, optics, TWIN_WINDOWS * half_px if in_line else half_px)
    symmetric = _ring_mean(centred, f_squared, band, smooth=in_line)
    inside = f_squared <= band**2
    if in_line:
        n = len(symmetric) // 2
        scattered = symmetric[n - half_px : n + half_px + 1, n - half_px : n + half_px + 1] * _window(half_px)
        return FocusedParticle(scattered.astype(np.complex64), float(np.abs(scattered).max()), True)
    within = np.fft.fftshift(np.fft.ifft2(np.fft.fft2(np.fft.ifftshift(centred)) * inside))
    covered = min(1.0, math.pi * (optics.pupil_radius_per_um * optics.pixel_um) ** 2)  # the noise fills the pupil only
    lost = 2 * noise**2 * inside.mean() / covered * np.sum(_window(half_px) ** 2)
    uneven = np.sum(np.abs(within - symmetric) ** 2) - lost
    is_round = bool(uneven < ROUND * np.sum(np.abs(symmetric) ** 2))
    scattered = symmetric if is_round else within
    return FocusedParticle(scattered.astype(np.complex64), float(np.abs(scattered).max()), is_round)


def _centred(
    refocused: NDArray[np.complex64], yx_px: tuple[float, float], optics: Optics, half_px: int
) -> tuple[NDArray[np.complex128], NDArray[np.float64]]:
    """Return the scattered field round a place, that place in the middle, under a window, (S, S); and its |f|^2."""
    size = 2 * half_px + 1
    corner = [round(at) - half_px for at in yx_px]
    crop = np.zeros((size, size), np.complex128)
    rows, columns = (np.arange(size) + at for at in corner)
    in_frame = [(at >= 0) & (at < n) for at, n in zip((rows, columns), refocused.shape, strict=True)]
    crop[np.ix_(*in_frame)] = refocused[np.ix_(rows[in_frame[0]], columns[in_frame[1]])] - 1
    f = np.fft.fftfreq(size)
    from_middle = [at - start - half_px for at, start in zip(yx_px, corner, strict=True)]
    spectrum = np.fft.fft2(np.fft.ifftshift(crop))
    spectrum *= np.exp(2j * np.pi * (f[:, None] * from_middle[0] + f * from_middle[1]))
    return np.fft.fftshift(np.fft.ifft2(spectrum)) * _window(half_px), (f[:, None] ** 2 + f**2) / optics.pixel_um**2


def _window(half_px: int) -> NDArray[np.float64]:
    """Return a window (2 half + 1, 2 half + 1): 1 in the middle, falling smoothly to 0 at the edge."""
    steps = np.abs(np.arange(2 * half_px + 1) - half_px)
    edge = np.sin(np.pi / 2 * np.clip((half_px - steps) / (0.3 * half_px), 0, 1)) ** 2
    return np.outer(edge, edge)


def _ring_mean(
    field: NDArray[np.complex128], f_squared: NDArray[np.float64], band: float, *, smooth: bool
) -> NDArray[np.complex128]:
    """Return a centred field (S, S) averaged over all angles round its middle, within a band.

    `smooth` keeps of the dependence on the squared frequency a cubic only.
    """
    spectrum = np.fft.fft2(np.fft.ifftshift(field))
    inside = f_squared <= band**2
    n_rings = 8 * N_RINGS if smooth else N_RINGS
    ring = np.minimum(n_rings * f_squared[inside] / band**2, n_rings - 1).astype(int)
    n = np.bincount(ring, minlength=n_rings)
    filled = n > 0
    at, *parts = (
        np.bincount(ring, values, n_rings)[filled] / n[filled]
        for values in (f_squared[inside], spectrum[inside].real, spectrum[inside].imag)
    )
    if smooth:
        cubics = [np.polynomial.Polynomial.fit(at, part, 3, w=np.sqrt(n[filled])) for part in parts]
        fitted = [cubic(f_squared) for cubic in cubics]
    else:
        fitted = [np.interp(f_squared, at, part) for part in parts]
    return np.asarray(np.fft.fftshift(np.fft.ifft2((fitted[0] + 1j * fitted[1]) * inside)))


@dataclass(frozen=True, slots=True, eq=False)
class HologramViews:
    """Views of one particle and what each shows."""

    planes: Tensor
    """(B, 2 P, V, V), in units of the particle's signal."""
    seen_cells: Tensor
    """(B, 2): the particle's position, cells relative to the middle of the view."""
    z_um: Tensor
    """(B,)"""
    log_signal: Tensor
    """(B,): logarithm of its signal over the crop's."""
    present: Tensor
    """(B,): 1 where the particle is there, 0 where it was left out."""
    other_cells: Tensor
    """(B, 2): where another particle of the kind is, NaN where there is none."""

    def spots(self, shape: tuple[int, ...], sigma_cells: float) -> Tensor:
        """Return a Gaussian spot at each particle, (B, h, w), 1 at its centre."""
        own = self.present[:, None, None] * _spots(self.seen_cells, shape, sigma_cells)
        return torch.maximum(own, _spots(self.other_cells, shape, sigma_cells).nan_to_num())


def _spots(at_cells: Tensor, shape: tuple[int, ...], sigma_cells: float) -> Tensor:
    """Return a Gaussian spot at each place (B, 2), (B, h, w)."""
    y, x = (torch.arange(n) - (n - 1) / 2 for n in shape)
    squared = (y[:, None] - at_cells[:, 0, None, None]) ** 2 + (x - at_cells[:, 1, None, None]) ** 2
    return torch.exp(-squared / (2 * sigma_cells**2))


class ViewMaker:
    """Draws views: what the planes of a frame show round this particle, wherever it is.

    Parameters
    ----------
    particle : FocusedParticle
    optics : Optics
        Of the field.
    every : int
        Field pixels per cell.
    planes_um : sequence of float
    z_um, log_signal : (float, float)
        Ranges that are drawn from.
    noise : float
        Strongest noise per component of the field, drawn from 0 to this.
    in_line : bool
        The camera saw no phase: each particle has its twin at the opposite distance.
    dark : bool
        The particle is shown as `light_of_dark`.
    """

    def __init__(
        self,
        particle: FocusedParticle,
        optics: Optics,
        every: int,
        planes_um: tuple[float, ...],
        *,
        z_um: tuple[float, float],
        log_signal: tuple[float, float],
        noise: float,
        view_cells: int,
        shift_cells: float,
        in_line: bool,
        dark: bool = False,
    ) -> None:
        from scipy import fft

        self.z_um, self.log_signal = z_um, log_signal
        self._turn = -1j if dark else 1.0
        self._every, self._in_line = every, in_line
        self._view, self._shift = view_cells, shift_cells
        cell_um, band = every * optics.pixel_um, band_per_um(optics, every)
        sine = band * optics.wavelength_um / optics.medium_index
        # a twin must not come back over the edge, or it is none
        farthest_um = max(map(abs, z_um)) if in_line else (z_um[1] - z_um[0])
        spread_cells = 2 * farthest_um * sine / math.sqrt(1 - sine**2) / cell_um
        wanted = max(2 * view_cells, view_cells / 2 + spread_cells)
        self._size = 2 * int(fft.next_fast_len(math.ceil(wanted / 2)))  # even, as the view is
        shape = (self._size, self._size)
        scaled = particle.scattered / particle.signal
        self._fine = torch.stack([refined(scaled.real), refined(scaled.imag)])
        self._kernels = torch.from_numpy(plane_kernels(optics, shape, every, planes_um))
        self._nearest = 2 * shift_cells + NEAREST_CELLS
        self._f = torch.fft.fftfreq(self._size)
        f = np.fft.fftfreq(self._size, cell_um)
        f_squared = f[:, None] ** 2 + f**2
        self._axial = torch.from_numpy(axial_wavenumber(optics, f_squared).astype(np.float32))
        self._pupil = torch.from_numpy((f_squared <= band**2).astype(np.float32))
        # noise of the field is spread over the objective's pupil, or in-line over the whole camera
        covered = 1.0 if in_line else math.pi * (optics.pupil_radius_per_um * optics.pixel_um) ** 2
        kept = math.pi * (band * optics.pixel_um) ** 2
        self.noise = noise
        self._noise_in_band = noise / particle.signal * math.sqrt(min(1.0, kept / covered))

    def draw(
        self,
        n: int,
        generator: torch.Generator,
        *,
        noise: float | None = None,
        log_signal: tuple[float, float] | None = None,
        alone: bool = False,
    ) -> HologramViews:
        """Draw n views; `noise` per component of the field, and a range of signals, in place of the training's.

        In some the particle is left out, beside some stands another of the kind, unless it is to be `alone`.
        """
        u = torch.rand(11, n, generator=generator)
        turn = orthogonal(2 * torch.pi * u[0], torch.where(u[1] < 0.5, -1.0, 1.0))
        seen = (2 * u[2:4].T - 1) * self._shift
        # the middle of an even grid lies between cells, the source's middle on a pixel
        origin = -torch.einsum("bij,bj->bi", turn, seen)
        source = sample(self._fine, turn * self._every, origin * self._every, self._size)
        low, high = self.z_um
        z_um = low + (high - low) * u[4]
        weakest, strongest = self.log_signal if log_signal is None else log_signal
        log = weakest + (strongest - weakest) * u[5]
        # propagated by -z, light that was in focus at 0 is in focus at z
        phase = -z_um[:, None, None] * self._axial
        spectrum = torch.fft.fft2(torch.complex(source[:, 0], source[:, 1]))
        spectrum = spectrum * torch.polar(torch.exp(log)[:, None, None] * self._pupil, phase)
        present, other = torch.ones(n), torch.full((n, 2), torch.nan)
        if not alone:
            present = (u[7] >= LEFT_OUT).float()
            # the particle of the view before, moved to where it takes no part in what is known of this one
            far = self._nearest + (self._view / 2 + 2 - self._nearest) * u[8]
            move = far[:, None] * torch.stack([torch.sin(2 * torch.pi * u[9]), torch.cos(2 * torch.pi * u[9])], 1)
            with_other = (u[10] < ACCOMPANIED)[:, None]
            other = torch.where(with_other, seen.roll(1, 0) + move, torch.nan)
            ramp = torch.exp(-2j * torch.pi * (move[:, :1, None] * self._f[:, None] + move[:, 1:, None] * self._f))
            beside = spectrum.roll(1, 0) * ramp * with_other[:, :, None]
            spectrum = spectrum * present[:, None, None] + beside
        if noise is None:
            sigma = self._noise_in_band * u[6]
        else:
            sigma = torch.full((n,), self._noise_in_band * noise / max(self.noise, 1e-12))
        if self._in_line:
            field = torch.fft.ifft2(spectrum / self._turn)
            spectrum = self._turn * torch.fft.fft2(torch.complex(2 * field.real, torch.zeros(())))
        spectrum = spectrum + self._turn * self._noise(sigma, generator)
        planes = torch.fft.ifft2(spectrum[:, None] * self._kernels)
        start = (self._size - self._view) // 2
        planes = planes[:, :, start : start + self._view, start : start + self._view]
        return HologramViews(torch.cat([planes.real, planes.imag], 1), seen, z_um, log, present, other)

    def _noise(self, sigma: Tensor, generator: torch.Generator) -> Tensor:
        """Return the spectrum of noise within the band, (B, S, S), of this standard deviation per component."""
        shape = (len(sigma), self._size, self._size)
        if self._in_line:  # real: its spectrum is symmetric
            white = torch.fft.fft2(torch.randn(shape, generator=generator))
        else:
            white = self._size * torch.randn(shape, dtype=torch.complex64, generator=generator)
        spread = math.sqrt(2) / self._pupil.mean().sqrt()
        noise: Tensor = white * self._pupil * (sigma * spread)[:, None, None]
        return noise
