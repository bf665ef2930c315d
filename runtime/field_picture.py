"""Complex fields as pictures to look at: the panels of one hologram, and a montage of its refocused planes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.display import contrast_levels
from oneframe.runtime.overlay import RGB
from oneframe.runtime.refocus import Complex2D

MOST_TILES = 64
"""Planes of a montage; more would be too small to see anything in."""
PANEL_PX = 720
"""Longest side of a panel; larger frames are averaged down to it."""

_WIDTH_PX, _HEIGHT_PX = 2400, 1500  # of a montage, at most
_TILE_PX = 560
_NARROWEST_PX = 760  # room for the legend
_GAP_PX = 6
_LOWEST_CONTRAST = 0.02  # below it only noise would be seen
_NO_PHASE = 1e-5
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_TEXT_SCALE, _LINE_PX = 0.5, 24
_PAPER, _INK = (24, 24, 24), (225, 225, 225)


@dataclass(frozen=True, slots=True)
class FieldContrast:
    """How values become grey, the same for every plane: the background, amplitude 1 and phase 0, is the middle."""

    amplitude: float
    """1 - this is black, 1 + this is white."""
    phase_rad: float
    """Minus this is black, plus this is white; pi: the phase goes round in colours."""

    @classmethod
    def of(cls, fields: Iterable[NDArray[np.complex64]]) -> FieldContrast:
        """Return the contrast that suits all of these fields, background 1 + 0i, together."""
        deviations = [(_reach(np.abs(np.abs(e) - 1)), _reach(np.abs(np.angle(e)))) for e in fields]
        amplitude, phase_rad = (max(_LOWEST_CONTRAST, *column) for column in zip(*deviations, strict=True))
        return cls(min(1.0, amplitude), math.pi if phase_rad > math.pi / 2 else phase_rad)

    def amplitude_rgb(self, field: NDArray[np.complex64]) -> RGB:
        """Return |E| in grey, (H, W, 3) uint8."""
        return _grey((np.abs(field) - 1) / self.amplitude)

    def phase_rgb(self, field: NDArray[np.complex64]) -> RGB:
        """Return the phase in grey, or in colours that close at +-pi, (H, W, 3) uint8."""
        return self.phase_scale_rgb(np.angle(field))

    def phase_scale_rgb(self, phase_rad: NDArray[Any]) -> RGB:
        """Return the colours of phases (H, W)."""
        grey = _grey(phase_rad / self.phase_rad)
        if self.phase_rad < math.pi:
            return grey
        return np.asarray(cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_TWILIGHT_SHIFTED), cv2.COLOR_BGR2RGB))


def field_panels(hologram: NDArray[Any] | None, field: Complex2D, *, pixel_um: float, captions: Sequence[str]) -> RGB:
    """Draw a hologram, its amplitude and its phase side by side.

    Parameters
    ----------
    hologram : (H, W), any real dtype, or None
        As the camera gave it; None: there is none, the instrument demodulates.
    field : (h, w) complex64
        Background 1 + 0i, of the same size as the hologram or of half of it.
    pixel_um : float
        Of the field.
    captions : sequence of str
        Lines below the panels, ASCII.

    Returns
    -------
    (Y, X, 3) uint8
        RGB. The phase is left out where there is none to see: the field is real, as in-line holograms are.

    Raises
    ------
    ValueError
        If hologram and field do not belong together.
    """
    panels: list[tuple[str, RGB]] = []
    scale = _drawn_scale(PANEL_PX / max(field.shape))
    shown = _sized(field, scale)
    contrast = FieldContrast.of([shown])
    if hologram is not None:
        cell = hologram.shape[0] // field.shape[0]
        if hologram.ndim != 2 or cell < 1 or tuple(n // cell for n in hologram.shape) != field.shape:
            raise ValueError(
                f"expected a field of a hologram of shape {hologram.shape}, got one of {field.shape}; pass the field "
                "that was read from it"
            )
        whole = hologram[: cell * field.shape[0], : cell * field.shape[1]].astype(np.float32)
        low, high = contrast_levels(whole)
        grey = _grey(2 * (_resized(whole, shown.shape) - low) / (high - low) - 1)
        panels.append((f"hologram, {hologram.shape[1]} x {hologram.shape[0]} px", grey))
    has_phase = bool(np.abs(shown.imag).max() > _NO_PHASE)
    panels.append(("amplitude", contrast.amplitude_rgb(shown)))
    if has_phase:
        panels.append(("phase", contrast.phase_rgb(shown)))
    k = max(1, int(scale))
    columns = [np.concatenate([_line(title, k * shown.shape[1]), _blocks(rgb, k)]) for title, rgb in panels]
    grid = _beside(columns)
    scale_px = scale / pixel_um
    return _with_legend(grid, scale_px, k * shown.shape[1], contrast, captions, with_phase=has_phase)


def montage(
    fields: Iterable[Complex2D], z_um: Sequence[float], *, shape: tuple[int, int], pixel_um: float,
    captions: Sequence[str] = (),
) -> RGB:  # fmt: skip
    """Draw the planes of a refocused field, amplitude and phase side by side, in one contrast.

    Parameters
    ----------
    fields : iterable of (H, W) complex64
        Background 1 + 0i; taken one by one, only what is drawn is kept.
    z_um : sequence of float
        Distance of each.
    shape : (int, int)
        Height and width of the fields.
    pixel_um : float
        Of the fields.
    captions : sequence of str
        Lines below the tiles, ASCII.

    Returns
    -------
    (Y, X, 3) uint8
        RGB, row by row in the order of `z_um`.

    Raises
    ------
    ValueError
        If there is no plane, or there are more than `MOST_TILES`.
    """
    if not 1 <= len(z_um) <= MOST_TILES:
        raise ValueError(
            f"expected 1 to {MOST_TILES} planes in a picture, got {len(z_um)}; take fewer, or write a .tif stack"
        )
    n_columns, scale = _arrangement(len(z_um), shape)
    shown = [_sized(field, scale) for field in fields]
    contrast = FieldContrast.of(shown)
    k = max(1, int(scale))
    cells: list[RGB] = []
    for z, field in zip(z_um, shown, strict=True):
        amplitude, phase = _blocks(contrast.amplitude_rgb(field), k), _blocks(contrast.phase_rgb(field), k)
        _write_on(amplitude, f"z = {z:+g} um" if z else "z = 0 um")
        if not cells:
            _write_on(amplitude, "amplitude", at_bottom=True)
            _write_on(phase, "phase", at_bottom=True)
        cells.append(_beside([amplitude, phase], gap_px=2))
    cells += [np.full_like(cells[0], _PAPER[0])] * (-len(cells) % n_columns)
    gap = np.full((_GAP_PX, _beside(cells[:n_columns]).shape[1], 3), _PAPER, np.uint8)
    rows = [_beside(cells[i : i + n_columns]) for i in range(0, len(cells), n_columns)]
    grid = np.concatenate([part for row in rows for part in (row, gap)][:-1])
    return _with_legend(grid, scale / pixel_um, k * shown[0].shape[1], contrast, captions, with_phase=True)


def bar_length_um(widest_um: float) -> float:
    """Return the longest of 1, 2, 5, 10, ... that is no longer than this.

    >>> bar_length_um(7.3), bar_length_um(0.3), bar_length_um(2.0)
    (5.0, 0.2, 2.0)
    """
    decade = 10.0 ** math.floor(math.log10(widest_um * 1.000001))
    return max(step * decade for step in (1.0, 2.0, 5.0) if step * decade <= widest_um * 1.000001)


def _arrangement(n: int, shape: tuple[int, int]) -> tuple[int, float]:
    """Return the number of columns and the scale that show n pairs of tiles largest."""
    height, width = shape
    most = _TILE_PX / max(shape)

    def scale(n_columns: int) -> float:
        n_rows = -(-n // n_columns)
        across = (_WIDTH_PX / n_columns - _GAP_PX) / (2 * width)
        return _drawn_scale(min(most, across, (_HEIGHT_PX / n_rows - _GAP_PX) / height))

    def clumsiness(n_columns: int) -> tuple[float, int]:
        n_rows = -(-n // n_columns)
        return -scale(n_columns), max(n_rows * height, 2 * n_columns * width)  # as large as can be, then as square

    best = min(range(1, n + 1), key=clumsiness)
    return best, scale(best)


def _drawn_scale(scale: float) -> float:
    """Whole numbers above 1: what the camera saw, not an interpolation."""
    return float(int(scale)) if scale >= 1 else scale


def _sized(field: NDArray[Any], scale: float) -> NDArray[Any]:
    """Average a field down to a scale below 1; the complex mean, for a phase that wraps has none."""
    if scale >= 1:
        return field
    shape = (max(1, round(scale * field.shape[0])), max(1, round(scale * field.shape[1])))
    return _resized(field.real, shape) + 1j * _resized(field.imag, shape)


def _resized(plane: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if plane.shape == shape:
        return plane
    smaller = shape[0] < plane.shape[0]
    method = cv2.INTER_AREA if smaller else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(np.ascontiguousarray(plane, np.float32), (shape[1], shape[0]), interpolation=method))


def _reach(values: NDArray[Any]) -> float:
    """Return a value that shows both the few bright pixels of a particle in focus and the rings of one out of it."""
    return math.sqrt(float(np.percentile(values, 99.9)) * float(values.max()))


def _grey(values: NDArray[Any]) -> RGB:
    """Return (H, W, 3) uint8: -1 is black, 1 white."""
    grey = np.clip(np.rint(127.5 + 127.5 * values), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _blocks(rgb: RGB, k: int) -> RGB:
    return rgb if k == 1 else rgb.repeat(k, axis=0).repeat(k, axis=1)


def _beside(parts: Sequence[RGB], gap_px: int = _GAP_PX) -> RGB:
    gap = np.full((len(parts[0]), gap_px, 3), _PAPER, np.uint8)
    return np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=1)


def _write_on(tile: RGB, text: str, *, at_bottom: bool = False) -> None:
    """Write in a corner of an image, on a ground that shows it on white."""
    scale = min(_TEXT_SCALE, _TEXT_SCALE * (tile.shape[1] - 8) / _text_width_px(text))
    width = round(_text_width_px(text) * scale / _TEXT_SCALE)
    top = len(tile) - 20 if at_bottom else 0
    tile[top : top + 20, : width + 8] = _PAPER
    cv2.putText(tile, text, (4, top + 15), _FONT, scale, _INK, 1, cv2.LINE_AA)


def _line(text: str, width_px: int) -> RGB:
    strip: RGB = np.full((_LINE_PX, width_px, 3), _PAPER, np.uint8)
    cv2.putText(strip, text, (6, 17), _FONT, _TEXT_SCALE, _INK, 1, cv2.LINE_AA)
    return strip


def _with_legend(
    grid: RGB, px_per_um: float, tile_px: int, contrast: FieldContrast, captions: Sequence[str], *, with_phase: bool
) -> RGB:
    """Add the scale bar, what grey means, and the captions below."""
    if grid.shape[1] < _NARROWEST_PX:
        grid = np.pad(grid, ((0, 0), (0, _NARROWEST_PX - grid.shape[1]), (0, 0)), constant_values=_PAPER[0])
    legend: RGB = np.full((_LINE_PX + 8, grid.shape[1], 3), _PAPER, np.uint8)
    length_um = bar_length_um(min(0.4 * tile_px, 150) / px_per_um)
    x = 8 + max(1, round(length_um * px_per_um))
    legend[14:18, 8:x] = _INK
    x = _text_at(legend, f"{length_um:g} um", x + 6) + 28
    ramp = np.tile(np.linspace(-1, 1, 120), (12, 1))
    x = _text_at(legend, f"amplitude {1 - contrast.amplitude:.2f}", x) + 6
    legend[10:22, x : x + 120] = _grey(ramp)
    x = _text_at(legend, f"{1 + contrast.amplitude:.2f}", x + 126) + 28
    if with_phase:
        x = _text_at(legend, f"phase {-contrast.phase_rad:.2g}", x) + 6
        legend[10:22, x : x + 120] = contrast.phase_scale_rgb(contrast.phase_rad * ramp)
        _text_at(legend, f"{contrast.phase_rad:.2g} rad", x + 126)
    lines = [_line(text, grid.shape[1]) for caption in captions for text in _wrapped(caption, grid.shape[1] - 12)]
    return np.concatenate([grid, legend, *lines])


def _text_at(strip: RGB, text: str, x: int) -> int:
    """Write at x and return where the text ends."""
    cv2.putText(strip, text, (x, 21), _FONT, _TEXT_SCALE, _INK, 1, cv2.LINE_AA)
    return x + _text_width_px(text)


def _wrapped(text: str, width_px: int) -> list[str]:
    """Return the lines of a text that is broken between words."""
    lines = [""]
    for word in text.replace("µ", "u").replace("μ", "u").encode("ascii", "replace").decode("ascii").split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _text_width_px(longer) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _text_width_px(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, _TEXT_SCALE, 1)[0][0])
