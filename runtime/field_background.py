"""The background of a complex field: by a reference, by the median over time, or by a polynomial.

Each leaves a field whose background is 1 + 0i; `field_noise` tells how well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.refocus import Complex2D

ENOUGH = 96
"""Samples along an axis from which medians and polynomials are taken: a standard error of 1.3 % of the noise."""
TUKEY = 4.685
"""Tukey's biweight: residuals above this many standard deviations count for nothing (95 % efficient without any)."""


def normalised(field: NDArray[np.complex64]) -> Complex2D:
    """Return the field divided by one complex number, its median, so that the background is 1 + 0i.

    Raises
    ------
    ValueError
        If the field is dark or not finite.
    """
    few = _thinned(field)
    mean = complex(few.mean())
    phase = mean / abs(mean) if abs(mean) > 0 else 1.0  # turned to the real axis, where the two medians are one
    few = few * np.complex64(1 / phase)
    middle = complex(_median(few.real), _median(few.imag)) * phase
    if not 0 < abs(middle) < np.inf:
        raise ValueError(
            f"expected a field with light in it, got a median of {abs(middle)}; check the reference arm and the "
            "background"
        )
    return field * np.complex64(1 / middle)


def field_noise(field: NDArray[np.complex64]) -> float:
    """Return the robust standard deviation of a normalised field per component, real or imaginary.

    0.004 is what 2e4 electrons per pixel leave; above 0.05 the fringes of a background that was not taken out dominate.
    """
    few = _thinned(field, ENOUGH // 2)
    deviation = [_median(np.abs(part - _median(part))) for part in (few.real, few.imag)]
    return float(1.4826 * np.hypot(deviation[0], deviation[1]) / np.sqrt(2))


def without_reference(field: NDArray[np.complex64], reference: NDArray[np.complex64]) -> Complex2D:
    """Return the field divided by the field of a hologram without particles, and normalised.

    Raises
    ------
    ValueError
        If the shapes differ, or the reference is dark somewhere.
    """
    if field.shape != reference.shape:
        raise ValueError(
            f"expected a reference of shape {field.shape}, got {reference.shape}; snap it with the same region "
            "of the camera"
        )
    if not np.all(reference):
        raise ValueError("expected a reference with light everywhere, got dark pixels; snap it again")
    return normalised(field / reference)


class MedianBackground:
    """Running median of the complex field over time: what stays is background, what moves is not.

    Each field is turned and scaled to agree with the median first, so that a phase that wanders between frames does no
    harm. The first fields are all kept, later every `every`-th one; memory is `n_fields` fields. Particles that stay
    where they are vanish into the background.

    Parameters
    ----------
    shape : (int, int)
        Of the fields.
    n_fields : int
        Fields that the median is taken over, at least 3.
    every : int
        Frames from one kept field to the next: a particle should move by its own size in `n_fields * every / 4` frames.

    Raises
    ------
    ValueError
        If `n_fields` or `every` is too small.
    """

    def __init__(self, shape: tuple[int, int], *, n_fields: int = 15, every: int = 4) -> None:
        if n_fields < 3 or every < 1:
            raise ValueError(
                f"expected n_fields >= 3 and every >= 1, got {n_fields} and {every}; 15 and 4 suit a camera's rate"
            )
        self._ring = np.empty((n_fields, *shape), np.complex64)
        self._background = np.ones(shape, np.complex64)
        self._every = every
        self._n_seen = self._next = self._n = 0

    @property
    def usable(self) -> bool:
        """Whether two fields or more have been seen: of one alone nothing can be told apart."""
        return self._n >= 2

    @property
    def settled(self) -> bool:
        """Whether the fields that the median is taken over lie `every` frames apart, the first ones forgotten."""
        return self._n_seen >= len(self._ring) * (self._every + 1)

    def add(self, field: NDArray[np.complex64]) -> None:
        """Take the field of the next frame.

        Raises
        ------
        ValueError
            If it has another shape.
        """
        if field.shape != self._background.shape:
            raise ValueError(
                f"expected a field of shape {self._background.shape}, got {field.shape}; make a MedianBackground "
                "for this shape"
            )
        n = len(self._ring)
        filling = self._n < n
        if filling or self._n_seen % self._every == 0:
            overlap = np.vdot(self._background, field) / np.vdot(self._background, self._background)
            if self._n == 0:
                self._ring[0] = normalised(field)
            else:
                np.multiply(field, 1 / overlap if overlap else 1, out=self._ring[self._next])
            self._next = (self._next + 1) % n
            self._n = min(n, self._n + 1)
        self._n_seen += 1
        # once full, each frame renews one of n bands of rows: no frame waits for the whole median
        rows = slice(None) if filling else slice(self._n_seen % n, None, n)
        chosen = self._ring[: self._n, rows].view(np.float32)
        self._background[rows] = np.median(chosen, axis=0).view(np.complex64)

    def remove(self, field: NDArray[np.complex64]) -> Complex2D:
        """Return the field divided by the median of the fields so far, and normalised.

        Raises
        ------
        ValueError
            If fewer than two fields have been added.
        """
        if not self.usable:
            raise ValueError(f"expected two fields or more for a median, got {self._n}; add the next frame first")
        return normalised(field / self._background)


def polynomial_background(field: NDArray[np.complex64], order: int = 4) -> Complex2D:
    """Fit a smooth background, amplitude and phase, to a single field with particles in it.

    The phase is fitted to the differences between neighbours first, which do not wrap, then to what is left of the
    phase itself; particles count for nothing in either (Tukey's biweight). What is not smooth, as fringes of dust,
    stays in the field: look at `field_noise`.

    Parameters
    ----------
    field : (H, W) complex64
    order : int
        Highest total power of y and x, 1 to 8.

    Returns
    -------
    (H, W) complex64
        To divide the field by; `normalised` afterwards.

    Raises
    ------
    ValueError
        If the order is out of range or the field too small for it.
    """
    if not 1 <= order <= 8 or min(field.shape) < 4 * (order + 1):
        raise ValueError(
            f"expected an order from 1 to 8 and a field of at least {4 * (order + 1)} pixels, got order {order} for "
            f"shape {field.shape}; use order 4, or a reference"
        )
    in_y, in_x = (np.polynomial.legendre.legvander(np.linspace(-1, 1, n), order) for n in field.shape)
    powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    (rows, columns) = (np.arange(0, n - 1, -(-n // ENOUGH)) for n in field.shape)

    def basis(y: NDArray[Any], x: NDArray[Any]) -> NDArray[np.float64]:
        """Return every polynomial on a grid, (Y * X, K)."""
        return np.stack([np.outer(y[:, i], x[:, j]).ravel() for i, j in powers], axis=1)

    def surface(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum of the polynomials on the whole frame, (H, W)."""
        square = np.zeros((order + 1, order + 1))
        square[tuple(np.transpose(powers))] = coefficients
        return np.asarray(in_y @ square @ in_x.T)

    few = field[np.ix_(rows, columns)]
    here = basis(in_y[rows], in_x[columns])
    step_y = np.angle(field[np.ix_(rows + 1, columns)] * few.conj())
    step_x = np.angle(field[np.ix_(rows, columns + 1)] * few.conj())
    slopes = np.concatenate([basis(in_y[rows + 1], in_x[columns]), basis(in_y[rows], in_x[columns + 1])])
    slopes -= np.concatenate([here, here])
    phase = np.zeros(len(powers))
    phase[1:] = _robust_fit(slopes[:, 1:], np.concatenate([step_y.ravel(), step_x.ravel()]))  # constant: no slope
    for _ in range(2):  # the second time without the phases that wrapped in the first
        left = few.ravel() * np.exp(-1j * (here @ phase))
        mean = np.angle(left.mean())
        phase += _robust_fit(here, np.angle(left * np.exp(-1j * mean)))
        phase[0] += mean
    amplitude = surface(_robust_fit(here, np.abs(few).ravel()))
    amplitude = np.maximum(amplitude, 0.05 * np.median(amplitude))  # dark corners must not be blown up
    return np.asarray(amplitude * np.exp(1j * surface(phase)), np.complex64)


def _robust_fit(basis: NDArray[np.float64], values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the coefficients (K,) of basis (N, K) by iterated least squares with Tukey's weights."""
    weights, fitted = np.ones(len(values)), np.zeros(len(values))
    for _ in range(12):
        weighted = basis * weights[:, None]
        coefficients: NDArray[np.float64] = np.linalg.lstsq(weighted.T @ basis, weighted.T @ values, rcond=None)[0]
        before, fitted = fitted, basis @ coefficients
        residual = np.abs(values - fitted)
        scale = TUKEY * 1.4826 * np.median(residual)
        if np.abs(fitted - before).max() <= 1e-3 * scale:
            break
        weights = np.maximum(1 - (residual / scale) ** 2, 0) ** 2
    return coefficients


def _median(values: NDArray[np.float32]) -> float:
    """Return the upper of the middle values; four times faster than NumPy's, which partitions thrice."""
    flat = values.ravel()
    return float(np.partition(flat, flat.size // 2)[flat.size // 2])


def _thinned(field: NDArray[np.complex64], enough: int = ENOUGH) -> NDArray[np.complex64]:
    step_y, step_x = (-(-n // enough) for n in field.shape)
    return field[::step_y, ::step_x]
