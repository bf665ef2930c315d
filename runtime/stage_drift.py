"""How far the stage drifted during a recorded run, told by the localisations themselves.

The run is cut into segments. Each segment's localisations make an image, every pair of images is correlated, and the
shifts of all pairs together give the drift of each segment by least squares; pairs that contradict the others are left
out. In between the drift is a smooth curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MOST_SEGMENTS = 20
_FEWEST_SEGMENTS = 3
_FEWEST_LOCALISATIONS = 1000
"""Of a segment: with fewer the correlation of two images is noise."""
_BIN_PX = 0.2
"""Edge of the images' pixels, camera pixels: some 20 nm."""
_FINE_BINS, _COARSE_BINS = 1.0, 10.0
"""Standard deviations of what is blurred away: the noise of single localisations; and uneven density, whose wide peak
would draw every shift to zero."""
_LARGEST_SIDE = 1024
_MOST_CONTRADICTION_PX = 0.2
"""Wang et al. 2014: pairs that differ by more from what the others say are left out."""


@dataclass(frozen=True, slots=True, eq=False)
class StageDrift:
    """Drift of a run, 0 at its first frame: a position minus the drift of its frame is where the emitter was then."""

    frame: Floats
    """(S,), mean frame number of each segment."""
    y_px: Floats
    """(S,)."""
    x_px: Floats
    """(S,)."""
    n_pairs: int
    """Pairs of segments that were used."""
    n_left_out: int
    """Pairs that contradicted the others."""
    residual_px: float
    """Root mean square, per axis, by which the used pairs differ from the drift."""

    def at(self, frame: NDArray[Any]) -> tuple[Floats, Floats]:
        """Return drift along y and x, px, at each frame (N,)."""
        return _curve(self.frame, self.y_px, frame), _curve(self.frame, self.x_px, frame)


def estimate_drift(
    frame: NDArray[Any],
    y_px: NDArray[Any],
    x_px: NDArray[Any],
    *,
    largest_px: float = 15.0,
    n_segments: int | None = None,
) -> StageDrift:
    """Estimate drift by redundant cross-correlation.

    Parameters
    ----------
    frame : (N,)
        Frame of each localisation, in any order.
    y_px, x_px : (N,)
        Positions, camera pixels.
    largest_px : float
        No two segments are further apart.
    n_segments : int or None
        Pieces of equal numbers of localisations; None: as many as there are thousands of them, 20 at most.

    Raises
    ------
    ValueError
        If there are too few localisations, or the segments have too little structure in common to tell.

    References
    ----------
    Wang et al., Opt. Express 22, 15982 (2014).
    """
    known = np.isfinite(y_px) & np.isfinite(x_px)
    frame, y_px, x_px = frame[known], y_px[known], x_px[known]
    count = min(_MOST_SEGMENTS, len(frame) // _FEWEST_LOCALISATIONS) if n_segments is None else n_segments
    if count < _FEWEST_SEGMENTS or len(np.unique(frame)) < count:
        raise ValueError(
            f"expected {_FEWEST_SEGMENTS * _FEWEST_LOCALISATIONS} localisations or more in {_FEWEST_SEGMENTS} frames "
            f"or more, got {len(frame)} in {len(np.unique(frame))}; log longer"
        )
    order = np.argsort(frame, kind="stable")
    parts = np.array_split(order, count)
    spectra = [_spectrum(y_px[part], x_px[part], _side(y_px, x_px)) for part in parts]
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    shifts = np.array([_shift(spectra[i], spectra[j], largest_px) for i, j in pairs])  # (P, 2), (y, x)
    drift, used = _agree(pairs, shifts, count)
    if used.sum() < max(count - 1, len(pairs) / 2):
        raise ValueError(
            f"expected segments that tell the same drift, {len(pairs) - used.sum()} of {len(pairs)} pairs contradict "
            "the others; the structure is too sparse, or the run too short"
        )
    differences = np.array([drift[j] - drift[i] for i, j in pairs])[used] - shifts[used]
    middle = np.array([frame[part].mean() for part in parts])
    start = [_curve(middle, drift[:, axis], frame.min(keepdims=True))[0] for axis in (0, 1)]
    return StageDrift(
        frame=middle,
        y_px=drift[:, 0] - start[0],
        x_px=drift[:, 1] - start[1],
        n_pairs=int(used.sum()),
        n_left_out=int(len(pairs) - used.sum()),
        residual_px=float(np.sqrt(np.mean(differences**2))),
    )


def _curve(nodes: Floats, values: Floats, frame: NDArray[Any]) -> Floats:
    """Return a natural cubic spline, straight on before the first node and after the last."""
    from scipy.interpolate import CubicSpline

    spline = CubicSpline(nodes, values, bc_type="natural")
    frame = np.asarray(frame, float)
    inside = spline(frame.clip(nodes[0], nodes[-1]))
    before, after = np.minimum(frame - nodes[0], 0), np.maximum(frame - nodes[-1], 0)
    return np.asarray(inside + spline(nodes[0], 1) * before + spline(nodes[-1], 1) * after)


def _side(y_px: NDArray[Any], x_px: NDArray[Any]) -> int:
    """Return the side of the images, a power of 2."""
    extent = max(np.ptp(y_px), np.ptp(x_px)) / _BIN_PX + 2 * _COARSE_BINS
    return min(_LARGEST_SIDE, 1 << math.ceil(math.log2(max(64.0, extent))))


def _spectrum(y_px: NDArray[Any], x_px: NDArray[Any], side: int) -> NDArray[np.complex64]:
    """Return the spectrum of the localisations' image, between the fine and the coarse blur.

    A larger field is folded into the image: every pair of segments is folded alike, so that their shift stays.
    """
    row, column = (np.rint(p / _BIN_PX).astype(np.int64) % side for p in (y_px, x_px))
    image = np.bincount(row * side + column, minlength=side * side).reshape(side, side).astype(np.float32)
    k2 = np.fft.fftfreq(side)[:, None] ** 2 + np.fft.rfftfreq(side)[None, :] ** 2
    band = np.exp(-2 * (np.pi * _FINE_BINS) ** 2 * k2) - np.exp(-2 * (np.pi * _COARSE_BINS) ** 2 * k2)
    return np.asarray(np.fft.rfft2(image) * band, np.complex64)


def _shift(first: NDArray[np.complex64], second: NDArray[np.complex64], largest_px: float) -> tuple[float, float]:
    """Return by how much the second image lies further along y and x, px."""
    side = first.shape[0]
    reach = min(side // 2 - 4, math.ceil(largest_px / _BIN_PX))
    correlation = np.fft.irfft2(second * np.conj(first), s=(side, side))
    around = np.arange(-reach - 3, reach + 4)
    window = correlation[np.ix_(around % side, around % side)]
    row, column = np.unravel_index(np.argmax(window[3:-3, 3:-3]), (2 * reach + 1, 2 * reach + 1))
    top = window[row : row + 7, column : column + 7]
    y, x = _top(top)
    return (row - reach + y) * _BIN_PX, (column - reach + x) * _BIN_PX


def _top(window: Floats) -> tuple[float, float]:
    """Return where a (7, 7) peak has its top, from its middle: of a Gaussian fitted to the upper half."""
    y, x = (offset - 3.0 for offset in np.indices(window.shape))
    upper = window > 0.4 * window[3, 3]
    weight = window[upper]  # the logarithm of a small value is noisy
    terms = np.stack([np.ones_like(y), y, x, y * y, x * x, x * y], axis=-1)[upper]
    if len(weight) < 6 or window[3, 3] <= 0:
        return 0.0, 0.0
    _, b, c, d, e, f = np.linalg.lstsq(terms * weight[:, None], np.log(weight) * weight, rcond=None)[0]
    determinant = 4 * d * e - f * f
    if not (d < 0 and e < 0 and determinant > 0):
        return 0.0, 0.0
    top = (f * c - 2 * e * b) / determinant, (f * b - 2 * d * c) / determinant
    return tuple(float(np.clip(t, -1.5, 1.5)) for t in top)  # type: ignore[return-value]


def _agree(pairs: list[tuple[int, int]], shifts: Floats, count: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the drift (count, 2) that the pairs agree on, the first at 0, and which of them (P,) do."""
    equations = np.zeros((len(pairs), count))
    for k, (i, j) in enumerate(pairs):
        equations[k, i], equations[k, j] = -1, 1
    equations = equations[:, 1:]
    used = np.ones(len(pairs), bool)
    while True:
        drift = np.linalg.lstsq(equations[used], shifts[used], rcond=None)[0]
        contradiction = np.where(used, np.hypot(*(equations @ drift - shifts).T), 0)
        worst = int(np.argmax(contradiction))
        used[worst] = False
        if contradiction[worst] <= _MOST_CONTRADICTION_PX or np.linalg.matrix_rank(equations[used]) < count - 1:
            used[worst] = True
            return np.vstack([np.zeros((1, 2)), drift]), used
