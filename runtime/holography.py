"""A camera frame becomes a complex field: off-axis demodulation, in-line normalisation, checks of the hologram."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.optics import Optics
from oneframe.runtime.refocus import Complex2D, Refocuser

SHARPEST = 0.2
"""Least share of the spectrum's power round the carrier's peak: above 0.5 with fringes, below 0.1 in in-line frames."""
FULL_SCALES = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16))
SATURATED = 1e-3
"""Share of saturated pixels that is worth a sentence."""
DRIFTED_RAD = math.pi / 4
"""Phase over the frame, from a carrier that moved, that is worth a sentence."""
TILE_PX = 4
"""Edge of the squares of a field that are averaged before its carrier is looked for."""


def find_carrier(hologram: NDArray[Any], optics: Optics) -> tuple[float, float]:
    """Find the spatial frequency of an off-axis hologram's fringes, far below one bin of its spectrum.

    Parameters
    ----------
    hologram : (H, W), any real dtype
    optics : Optics
        Of the hologram. The peak is looked for outside 0.4 NA / wavelength, where the zero order is weak.

    Returns
    -------
    (float, float)
        f_y and f_x in cycles per micrometre, f_x >= 0. No hologram tells which of the two sidebands is the field and
        which its conjugate: where z runs backwards and Im E_s of a dense particle is negative, use the negated carrier.

    Raises
    ------
    ValueError
        If the frame is no 2-D image, or has no fringes.
    """
    from scipy import fft

    if hologram.ndim != 2 or min(hologram.shape) < 32:
        raise ValueError(f"expected a hologram of at least 32 x 32 pixels, got shape {hologram.shape}; snap a frame")
    height, width = hologram.shape
    windowed = hologram - hologram.mean(dtype=np.float64)
    windowed *= np.hanning(height)[:, None]
    windowed *= np.hanning(width)
    f_y, f_x = np.fft.fftfreq(height, optics.pixel_um), np.fft.rfftfreq(width, optics.pixel_um)
    power = np.abs(fft.rfft2(windowed)) ** 2
    power[f_y[:, None] ** 2 + f_x**2 < (0.4 * optics.pupil_radius_per_um) ** 2] = 0
    y, x = divmod(int(np.argmax(power)), len(f_x))
    reach = max(2, min(height, width) // 64)  # bins: a curved reference wave widens the peak
    near = power[np.arange(y - reach, y + reach + 1) % height, max(0, x - reach) : x + reach + 1]
    if not near.sum() > SHARPEST * power.sum():
        raise ValueError(
            "expected an off-axis hologram, found no fringes finer than "
            f"{1 / (0.4 * optics.pupil_radius_per_um):.2g} um; check the reference arm and the optics, or treat the "
            "frame as in-line"
        )
    y_per_um, x_per_um = f_y[y], f_x[x]
    step_y, step_x = 0.2 / (height * optics.pixel_um), 0.2 / (width * optics.pixel_um)
    for _ in range(4):  # 11 x 11 values of the transform, five times finer each round
        at_y, at_x = y_per_um + step_y * np.arange(-5, 6), x_per_um + step_x * np.arange(-5, 6)
        there = _waves(-at_y, height, optics) @ windowed @ _waves(-at_x, width, optics).T
        y, x = divmod(int(np.argmax(np.abs(there))), 11)
        y_per_um, x_per_um, step_y, step_x = at_y[y], at_x[x], step_y / 5, step_x / 5
    return float(y_per_um), float(x_per_um)


def _waves(per_um: NDArray[np.float64], n: int, optics: Optics) -> NDArray[np.complex128]:
    """Return exp(i 2 pi f x) at n pixels for each frequency, (F, n)."""
    return np.asarray(np.exp(2j * np.pi * optics.pixel_um * per_um[:, None] * np.arange(n)))


class OffAxisDemodulator:
    """Turns off-axis holograms of one shape into complex fields of half the size.

    h = |E + R|^2 with the reference wave R = A exp(i 2 pi f_c.r) gives E A = LP[h exp(i 2 pi f_c.r)], where LP passes
    the disc NA / wavelength. The hologram is multiplied by the wave before the transform, not shifted by whole bins
    after it: the carrier then stands exactly at frequency 0 and leaves no ripple at the edges. Only the columns of the
    pupil are transformed further.

    Buffers are reused: one instance belongs to one thread.

    Parameters
    ----------
    optics : Optics
        Of the hologram.
    shape : (int, int)
        Of the hologram. Of an odd size the last row or column is left out.
    carrier_yx_per_um : (float, float)
        From `find_carrier`, found once.

    Raises
    ------
    ValueError
        If the carrier cannot be on this camera.
    """

    def __init__(self, optics: Optics, shape: tuple[int, int], carrier_yx_per_um: tuple[float, float]) -> None:
        nyquist = 1 / (2 * optics.pixel_um)
        if not all(abs(f) <= nyquist * 1.0001 for f in carrier_yx_per_um):
            raise ValueError(
                f"expected a carrier within {nyquist:.4g} cycles/um in y and x, got {carrier_yx_per_um}; find it again "
                "for these optics"
            )
        self.shape = shape
        self.carrier_yx_per_um = carrier_yx_per_um
        self.warning = optics.off_axis_warning(carrier_yx_per_um)
        """What follows from a broken sampling law; empty if it holds."""
        height, width = (n // 2 for n in shape)
        self.field_optics = optics.with_pixel(2 * optics.pixel_um)
        self.refocuser = Refocuser(self.field_optics, (height, width))
        """For the fields that come out."""
        f_y, f_x = (np.array([f]) for f in carrier_yx_per_um)
        reference = _waves(f_y, 2 * height, optics).T * _waves(f_x, 2 * width, optics)
        self._reference = (reference / 4).astype(np.complex64)  # 1/4: the inverse transform is of a quarter of the size
        reach = math.ceil(optics.pupil_radius_per_um * width * self.pixel_um)  # what is steeper, no kernel lets pass
        self._n_first, self._n_last = min((width + 1) // 2, reach + 1), min(width // 2, reach)
        self._turned = np.empty_like(self._reference)
        self._columns = np.empty((2 * height, self._n_first + self._n_last), np.complex64)
        self._kernel: tuple[float, Complex2D] | None = None
        self._rows = np.zeros((height, width), np.complex64)

    @property
    def field_shape(self) -> tuple[int, int]:
        """Height and width of the field."""
        return self.refocuser.shape

    @property
    def pixel_um(self) -> float:
        """Pixel of the field, twice the hologram's; the field's pixel [i, j] lies on the hologram's [2 i, 2 j]."""
        return self.field_optics.pixel_um

    def field(self, hologram: NDArray[Any]) -> Complex2D:
        """Return the field in the plane of the hologram times the reference's amplitude, (H/2, W/2) complex64.

        Raises
        ------
        ValueError
            If the hologram has another shape.
        """
        return self.refocused(hologram, 0.0)

    def refocused(self, hologram: NDArray[Any], z_um: float) -> Complex2D:
        """Return the field at a distance, as `field` and `Refocuser.refocus` would in turn, for the price of `field`.

        A background that is divided out has to be refocused likewise: exact where it is a constant, near enough to look
        at where it is smooth. What is measured is divided in the plane of the hologram first.
        """
        from scipy import fft

        spectrum = self._spectrum(hologram)
        first, last = self._n_first, self.field_shape[1] - self._n_last
        if self._kernel is None or self._kernel[0] != z_um:
            kernel = self.refocuser.kernel(z_um)
            self._kernel = z_um, np.concatenate([kernel[:, :first], kernel[:, last:]], axis=1)
        spectrum *= self._kernel[1]
        columns = fft.ifft(spectrum, axis=0, overwrite_x=True)
        self._rows[:, :first], self._rows[:, last:] = columns[:, :first], columns[:, first:]
        field: Complex2D = fft.ifft(self._rows, axis=1)
        return field

    def _spectrum(self, hologram: NDArray[Any]) -> Complex2D:
        """Return the spectrum of a field of half the size, and of its columns only those with a part in the pupil."""
        from scipy import fft

        if hologram.shape != self.shape:
            raise ValueError(
                f"expected a hologram of shape {self.shape}, got {hologram.shape}; make an OffAxisDemodulator for this "
                "shape"
            )
        height, width = (2 * n for n in self.field_shape)
        hologram = hologram[:height, :width]
        # without its mean, the zero order leaks less from the edges of the frame
        mean = np.float32(hologram[::16].mean(dtype=np.float64))  # near enough
        first, last = self._n_first, width - self._n_last
        self._turned[:] = hologram
        self._turned -= mean
        self._turned *= self._reference
        rows = fft.fft(self._turned, axis=1, overwrite_x=True)
        self._columns[:, :first], self._columns[:, first:] = rows[:, :first], rows[:, last:]
        columns = fft.fft(self._columns, axis=0, overwrite_x=True)
        low, high = (height // 2 + 1) // 2, height // 4
        return np.concatenate([columns[:low], columns[height - high :]])

    def drift_warning(self, field: NDArray[np.complex64]) -> str:
        """Return what follows if the carrier has moved since it was found; else an empty text.

        Parameters
        ----------
        field : (H/2, W/2) complex64
            From `field`, before any background is taken out of it.
        """
        moved_yx_per_um, coherence = _phase_slope(field, self.pixel_um)
        if coherence < 0.5:
            return (
                "the carrier is lost: the field has no common phase slope; the reference arm is blocked or was turned, "
                "no field can be trusted; mend it and find the carrier again"
            )
        turns_um = max(abs(f) * n for f, n in zip(moved_yx_per_um, field.shape, strict=True))
        ramp_rad = 2 * math.pi * turns_um * self.pixel_um
        if ramp_rad < DRIFTED_RAD:
            return ""
        return (
            f"the carrier has moved by {math.hypot(*moved_yx_per_um):.2g} cycles/um since it was found, {ramp_rad:.1f} "
            "rad of phase over the frame: the background of before no longer fits, x, y and z shift; find the carrier "
            "again and take a new reference"
        )


def _phase_slope(field: NDArray[np.complex64], pixel_um: float) -> tuple[tuple[float, float], float]:
    """Return the mean slope of the phase in cycles per micrometre, (y, x), and the share of the light that has it.

    Of means over squares of `TILE_PX`: what stands at other frequencies, as the harmonics of saturated fringes, has no
    say.
    """
    height, width = (n // TILE_PX for n in field.shape)
    tiles = field[: height * TILE_PX, : width * TILE_PX].reshape(height, TILE_PX, width, TILE_PX).mean(axis=(1, 3))
    along_y, along_x = (np.vdot(a, b) / a.size for a, b in ((tiles[:-1], tiles[1:]), (tiles[:, :-1], tiles[:, 1:])))
    power = np.vdot(field, field).real / field.size
    agree = min(abs(along_y), abs(along_x)) / power if power > 0 else 0.0
    tile_um = TILE_PX * pixel_um
    return (_turns(along_y) / tile_um, _turns(along_x) / tile_um), float(agree)


def _turns(value: np.complexfloating[Any, Any]) -> float:
    return float(np.angle(value)) / (2 * math.pi)


def saturation_warning(hologram: NDArray[Any], full_scale: float | None = None) -> str:
    """Return what follows if too many pixels are saturated; else an empty text.

    Parameters
    ----------
    hologram : (H, W), any real dtype
    full_scale : float, optional
        Highest value of the camera; by default the frame's own maximum, if that is the end of 8, 10, 12, 14 or 16 bit.
    """
    top = float(hologram.max())
    if full_scale is None:
        if top not in FULL_SCALES:
            return ""
        full_scale = top
    share = np.count_nonzero(hologram >= full_scale) / hologram.size
    if share < SATURATED:
        return ""
    return (
        f"{100 * share:.2g} % of the pixels are saturated: the crests of the fringes are cut, which shows up as false "
        "structure in the field and biases polarizability; shorten the exposure or dim the laser"
    )


def inline_field(image: NDArray[Any], background: NDArray[Any]) -> Complex2D:
    """Return the field of an in-line hologram, I / I_bg as a complex number without imaginary part.

    I / I_bg - 1 = 2 Re E_s + |E_s|^2 is taken for E_s. The camera saw no phase: each particle has a twin at the
    opposite distance, and measures of intensity (|E_s|, contrast) find +z and -z alike. Search and track on one side
    of focus only, with all particles on that side.

    Parameters
    ----------
    image, background : (H, W), any real dtype
        With and without particles, in the same light.

    Returns
    -------
    (H, W) complex64
        Background 1 + 0i. Pixels that are dark in the background count as background.

    Raises
    ------
    ValueError
        If the shapes differ, or the background is dark on more than 1 % of its pixels.
    """
    if image.shape != background.shape or image.ndim != 2:
        raise ValueError(
            f"expected image and background of one shape (H, W), got {image.shape} and {background.shape}; snap both "
            "with the same region of the camera"
        )
    lit = background > 0
    if lit.mean() < 0.99:
        raise ValueError(
            f"expected a background with light on it, got {100 * (1 - lit.mean()):.0f} % dark pixels; snap it again "
            "with the light on and without particles"
        )
    ratio = np.ones(image.shape, np.float32)
    np.divide(image, background, out=ratio, where=lit, casting="unsafe")
    return ratio.astype(np.complex64)
