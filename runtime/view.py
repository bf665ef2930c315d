"""The live view: `python -m oneframe.runtime.view --connect tcp://127.0.0.1:PORT`.

The only file with Qt. The window takes the newest picture 30 times a second and owns nothing of the run: if it
crashes, no frame is lost. Of a hologram it also shows amplitude, phase and other distances; a thread computes them,
one picture at a time. Beside emitters it shows the super-resolution image that the run's process adds up. Cells have
outlines instead of rings.
"""

from __future__ import annotations

import argparse
import html
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from oneframe.runtime.account import Status
from oneframe.runtime.density import Emitters
from oneframe.runtime.detections import Flag
from oneframe.runtime.display import GrownImage, Notice, Picture, PictureStream
from oneframe.runtime.outline import CELL_RGB, CellColours, rims
from oneframe.runtime.refocus import Refocuser

logger = logging.getLogger(__name__)

RING_RGB = (255, 176, 0)  # amber and sky blue differ for every kind of colour vision, and from any grey
TAIL_RGB = (86, 180, 233)
TAIL_LENGTH = 20
"""Pictures over which a tail reaches back."""
Mode = Literal["hologram", "amplitude", "phase", "refocused"]
MODES: tuple[tuple[Mode, str], ...] = (
    ("hologram", "what the camera sees"),
    ("amplitude", "|E| in the camera's plane; the background is 1"),
    ("phase", "arg E in the camera's plane; the background is 0, and of an in-line hologram everything"),
    ("refocused", "|E − 1|, the light of the particles, at a distance z: brightest where a particle is in focus"),
)
"""What a window can show of a hologram; keys 1 to 4."""

_GREEN, _AMBER, _RED, _BLUE, _QUIET = "#5fb878", "#ffb000", "#ff6b5e", "#56b4e9", "#8a8f98"
_BACKGROUND, _PANEL, _TEXT = "#101214", "#1b1e22", "#e6e6e6"
_TICK_MS = 33
_STALE_AFTER_S = 3.0
_WIDTH_PX = 1000  # the status line in one line
_SMALLEST_RING_PX, _LARGEST_RING_PX = 8.0, 2000.0  # on the screen
_CROSS_CAMERA_PX, _SMALLEST_CROSS_PX, _LARGEST_CROSS_PX = 2.0, 7.0, 21.0  # one pixel of the camera has many emitters
_DOUBTFUL_RGB = (205, 205, 205)
_Z_RANGE_UM = (-10.0, 10.0)  # where the model does not tell
_Z_STEP_UM = 0.1
_Z_COLOURS = 64
_FILL_OPACITY = 0.3
_NEWBORN_PICTURES = 15
_WIDE_LINE_FROM_PX = 60.0  # on the screen: cells above have lines of 2 px
_READABLE_CELL_PX = 24.0  # on the screen: cells above have their number written in them
_MOST_NUMBERS = 300

HELP = (
    ("Space", "freeze and go on"),
    ("↑ ↓", "brighter, darker"),
    ("0", "automatic brightness"),
    ("R  T", "rings, tails"),
    ("F", "whole picture (wheel and drag zoom)"),
    ("S", "save a screenshot"),
    ("F1", "this list"),
    ("Q  Esc", "close the window"),
)
FIELD_HELP = (
    ("1 2 3 4", "hologram, amplitude, phase (↑ ↓ its range), refocused"),
    ("PgUp PgDn", "refocus higher, lower"),
    ("Click", "what is known of a particle; refocus there"),
)
CELL_HELP = (
    ("O  A  T", "outlines, filled areas, tails"),
    ("I", "track numbers, where there is room: zoom in"),
    ("Click", "what is known of a cell"),
)
EMITTER_HELP = (
    ("C", "clear: begin a new super-resolution image"),
    ("Shift ↑ ↓", "super-resolution brighter, darker"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """What lies under the rings: the hologram of a picture, or what was computed from its field."""

    picture: Picture
    mode: Mode
    pixels: NDArray[Any]
    stride: int
    """Pixel [j, i] of `pixels` is pixel [stride * j, stride * i] of the camera."""
    levels: tuple[float, float]
    """Values to show as black and white."""
    z_um: float = 0.0
    """Distance of a refocused plane."""


def hologram_plane(picture: Picture) -> Plane:
    """Return the picture's own pixels as a plane."""
    return Plane(picture, "hologram", picture.pixels, picture.stride, picture.levels)


class PlaneMaker:
    """Computes planes from fields, for one thread; keeps the kernels, and the spectrum of the last picture."""

    def __init__(self) -> None:
        self._refocuser: Refocuser | None = None
        self._spectrum: tuple[Picture, NDArray[np.complex64]] | None = None

    def make(self, picture: Picture, mode: Mode, z_um: float) -> Plane:
        """Return a plane of a picture; without a field, or without its optics for another distance, the hologram.

        Amplitude is shown on both sides of the background 1. A refocused plane shows |E - 1|: a particle that shifts
        only the phase has an amplitude of 1 where it is in focus.
        """
        field, optics, stride = picture.field, picture.field_optics, picture.pixels_per_cell
        if field is None:
            return hologram_plane(picture)
        if mode == "amplitude":
            amplitude = np.abs(field)
            reach = _reach(np.abs(amplitude - 1))
            return Plane(picture, mode, amplitude, stride, (1 - reach, 1 + reach))
        if mode == "phase":
            return Plane(picture, mode, np.angle(field), stride, (-math.pi, math.pi))
        if mode == "refocused" and optics is not None:
            if self._refocuser is None or (self._refocuser.optics, self._refocuser.shape) != (optics, field.shape):
                self._refocuser = Refocuser(optics, (field.shape[0], field.shape[1]))
            if self._spectrum is None or self._spectrum[0] is not picture:
                self._spectrum = picture, self._refocuser.spectrum(field)
            light = np.abs(self._refocuser.from_spectrum(self._spectrum[1], z_um) - 1)
            return Plane(picture, mode, light, stride, (0.0, _reach(light)), z_um)
        return hologram_plane(picture)


def _reach(light: NDArray[np.float32]) -> float:
    """Return a value that shows the few pixels of a particle in focus and the wide rings of one out of it.

    It is 0.05 at least, so that an empty field stays calm.
    """
    finite = light[np.isfinite(light)]
    return max(0.05, math.sqrt(np.percentile(finite, 99.9) * finite.max())) if finite.size else 0.05


def srgb(lightness: Any, a: Any, b: Any) -> NDArray[np.uint8]:
    """Return colours (N, 3) of OKLab, in which equal steps look equal.

    Lightness goes from 0 to 1, `a` from green to red, `b` from blue to yellow; all three are (N,) or broadcast to it.

    References
    ----------
    Ottosson, A perceptual color space for image processing, 2020.

    >>> srgb(np.ones(1), 0.0, 0.0).tolist()
    [[255, 255, 255]]
    """
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        axis=-1,
    ).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * encoded), np.uint8)


def phase_colours() -> NDArray[np.uint8]:
    """Return (256, 3) RGB for -pi..pi: dark grey at 0, orange above, blue below, white at both ends."""
    phase = np.linspace(-np.pi, np.pi, 256)
    tint = np.sign(phase) * np.abs(np.sin(phase)) ** 0.7  # weak phases show too
    return srgb(0.42 + 0.55 * (1 - np.cos(phase)) / 2, np.where(tint > 0, 0.09, 0.02) * tint, 0.14 * tint)


def z_colours() -> NDArray[np.uint8]:
    """Return (64, 3) RGB from the lowest to the highest z: violet, pink, orange, yellow, ever lighter."""
    share = np.linspace(0, 1, _Z_COLOURS)
    hue = np.radians(295 + 165 * share)
    return srgb(0.60 + 0.31 * share, 0.17 * np.cos(hue), 0.17 * np.sin(hue))


def heat_colours() -> NDArray[np.uint8]:
    """Return (1024, 3) RGB for a growing number of localisations: black, red, orange, yellow, white, ever lighter."""
    share = np.linspace(0, 1, 1024)
    hue = np.radians(25 + 85 * share)
    chroma = 0.24 * np.minimum(share / 0.3, 1) * np.minimum((1 - share) / 0.45, 1) ** 0.8
    return srgb(share**0.9, chroma * np.cos(hue), chroma * np.sin(hue))


_GREY_RGB = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
_PHASE_RGB, _Z_RGB, _HEAT_RGB = phase_colours(), z_colours(), heat_colours()


def z_steps(z_um: NDArray[np.float32], range_um: tuple[float, float]) -> NDArray[np.intp]:
    """Return which of the `z_colours` each finite z has; what is beyond the range has the colour of its end."""
    low, high = range_um
    steps = np.rint((z_um - low) / (high - low) * (_Z_COLOURS - 1))
    return np.asarray(steps.clip(0, _Z_COLOURS - 1), np.intp)


def doubtful_rows(picture: Picture) -> NDArray[np.bool_]:
    """Return which rows (N,) of a picture have a z or a polarizability that is not to be trusted."""
    doubtful = np.zeros(len(picture), bool)
    if picture.flags is not None:
        doubtful |= picture.flags != 0
    if picture.z_um is not None:
        doubtful |= ~np.isfinite(picture.z_um)
    return doubtful


def particle_text(picture: Picture, row: int) -> str:
    """Return what is known of one particle, a line each."""
    lines = []
    if picture.z_um is not None:
        lines.append(f"z {picture.z_um[row]:+.2f} µm")
    if picture.polarizability_um3 is not None:
        lines.append(f"α {picture.polarizability_um3[row]:.4f} µm³")
    flags = 0.0 if picture.flags is None else float(picture.flags[row])
    against = Flag(int(flags)) if math.isfinite(flags) and 0 <= flags < 2**31 else Flag(0)
    lines += [f"doubtful: {flag.name.lower().replace('_', ' ')}" for flag in Flag if flag in against and flag.name]
    return "\n".join(lines)


def cell_text(picture: Picture, row: int) -> str:
    """Return what is known of one cell, a line each."""
    lines = [f"cell {picture.track_id[row]}"]
    if picture.area_px is not None:
        area_px = float(picture.area_px[row])
        lines.append(f"area {area_px:.0f} px²")
        if picture.pixel_size_um is not None:
            lines[-1] += "  " + " ".join(area_text(area_px, picture.pixel_size_um))
    if picture.mean_intensity is not None:
        lines.append(f"intensity {picture.mean_intensity[row]:.4g}")
    if picture.parent_id is not None and picture.parent_id[row] > 0:
        lines.append(f"daughter of {picture.parent_id[row]}")
    return "\n".join(lines)


def median_area_px(picture: Picture) -> float:
    """Return the median area of the cells; NaN without one."""
    area_px = picture.area_px
    if area_px is None and picture.labels is not None:
        area_px = np.bincount(picture.labels.ravel(), minlength=len(picture) + 1)[1:] * float(picture.stride**2)
    return float(np.median(area_px)) if area_px is not None and len(area_px) else math.nan


def area_text(area_px: float, pixel_size_um: float | None) -> tuple[str, str]:
    """Return an area of the camera and its unit; a dash where there is none.

    >>> area_text(400.0, 0.5), area_text(400.0, None), area_text(float("nan"), 0.5)
    (('100', 'µm²'), ('400', 'px²'), ('–', 'µm²'))
    """
    unit = "px²" if pixel_size_um is None else "µm²"
    area = area_px * (pixel_size_um or 1.0) ** 2
    if not math.isfinite(area):
        return "–", unit
    return f"{area:.{0 if area >= 100 or pixel_size_um is None else 1 if area >= 10 else 2}f}", unit


class Tails:
    """The way each track took over the last pictures.

    A track that is not seen leaves a gap, so the tail of a lost one shortens and vanishes.
    """

    def __init__(self, length: int = TAIL_LENGTH) -> None:
        self._yx = np.empty((0, length, 2), np.float32)
        self._track_id = np.empty(0, np.int64)
        self._index = -1

    def add(self, picture: Picture) -> None:
        """Take the positions of the next picture; an earlier one than the last starts afresh."""
        if picture.index < self._index:
            self._yx, self._track_id = self._yx[:0], self._track_id[:0]
        self._index = picture.index
        linked = (picture.track_id >= 0) & np.isfinite(picture.y_px) & np.isfinite(picture.x_px)
        seen, first = np.unique(picture.track_id[linked], return_index=True)
        positions = np.stack([picture.y_px[linked], picture.x_px[linked]], axis=1)[first]

        alive = np.isfinite(self._yx[:, 1:, 0]).any(axis=1)
        ids = np.union1d(self._track_id[alive], seen)
        yx = np.full((len(ids), *self._yx.shape[1:]), np.nan, np.float32)
        yx[np.searchsorted(ids, self._track_id[alive]), :-1] = self._yx[alive, 1:]
        yx[np.searchsorted(ids, seen), -1] = positions
        self._yx, self._track_id = yx, ids

    def curve(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return y and x of all tails in one line, broken by NaN."""
        broken = np.pad(self._yx, ((0, 0), (0, 1), (0, 0)), constant_values=np.nan)  # (N, length + 1, 2)
        return broken[..., 0].ravel(), broken[..., 1].ravel()


def status_html(
    status: Status, *, losing: bool, emitters: Emitters | None = None, cell_area: tuple[str, str] | None = None
) -> str:
    """Return the status line as HTML; numbers that go up and down keep their width.

    What is wrong with the sample stands on a line of its own.

    Parameters
    ----------
    status : Status
        What to show.
    losing : bool
        Whether frames or results were lost in the last seconds: red instead of amber.
    emitters : Emitters or None
        How many, how dense, how precise, in place of the number of particles.
    cell_area : (str, str) or None
        Median area and its unit, where the objects are cells.
    """
    period_ms = 1000.0 / status.camera_fps if status.camera_fps > 0 else math.inf
    late = None if not status.age_p99_ms > period_ms else _AMBER if status.age_p99_ms < 3 * period_ms else _RED
    alarm = _RED if losing else _AMBER
    segments = [
        _segment("camera", _fixed(status.camera_fps, 5, 1), "fps"),
        _segment("analysed", _fixed(status.inference_fps, 5, 1), "fps"),
        _segment("age p50", _fixed(status.age_p50_ms, 3, 0), "/")
        + "&nbsp;"
        + _segment("p99", _fixed(status.age_p99_ms, 3, 0), "ms", late),
        _segment("skipped", f"{status.skipped:d}"),
        _segment("lost", f"{status.lost:d}", "", alarm if status.lost else None),
        _segment("failed", f"{status.failed:d}", "", alarm if status.failed else None),
    ]
    if cell_area is not None:
        segments.append(_segment("cells", f"{status.n_detections:d}"))
        segments.append(_segment("median area", cell_area[0].rjust(4), cell_area[1]))
    elif emitters is None:
        segments.append(_segment("particles", f"{status.n_detections:d}"))
    else:
        density, precision = emitters.density_text(), emitters.precision_text()
        segments += [
            _segment("emitters", _fixed(emitters.n, 4, 0)),
            _segment("density", density[0].rjust(4), density[1]),
            _segment("precision", precision[0].rjust(4), precision[1]),
        ]
    if not math.isnan(status.bridge_mb_per_s):
        segments.append(_segment("bridge", _fixed(status.bridge_mb_per_s, 5, 1), "MB/s"))
    if status.sink_backlog or status.sink_dropped:
        segments.append(_segment("to write", f"{status.sink_backlog:d}"))
    if status.sink_dropped:
        segments.append(_segment("not written", f"{status.sink_dropped:d}", "", alarm))
    line = f' <span style="color:{_QUIET}">|</span>&nbsp;'.join(segments)
    told = [text for text in (status.note, status.drift) if text]
    return line + "".join(f'<br><b style="color:{_AMBER}">{html.escape(text)}</b>' for text in told)


def _fixed(value: float, width: int, decimals: int) -> str:
    return f"{value:>{width}.{decimals}f}" if math.isfinite(value) else "–".rjust(width)


def _segment(name: str, value: str, unit: str = "", colour: str | None = None) -> str:
    """Return one quantity as HTML that does not break within itself."""
    shown = f"<b>{value}</b>" if colour else value
    text = f'<span style="color:{_QUIET}">{name}</span> <span style="color:{colour or _TEXT}">{shown}</span>' + (
        f' <span style="color:{_QUIET}">{unit}</span>' if unit else ""
    )
    return text.replace("<span ", "<span\0").replace(" ", "&nbsp;").replace("\0", " ")


def nice_length(longest: float) -> float:
    """Return the longest of 1, 2, 5, 10, 20, ... (and 0.5, 0.2, 0.1, ...) that is not above `longest`.

    >>> nice_length(7.3), nice_length(0.21), nice_length(1999.0)
    (5.0, 0.2, 1000.0)
    """
    decade = 10.0 ** math.floor(math.log10(longest))
    return max(step * decade for step in (1.0, 2.0, 5.0) if step * decade <= longest)


def length_label(length: float, *, known: bool) -> str:
    """Return the text at a scale bar; `known` says that the length is in micrometres, not in pixels.

    >>> length_label(0.5, known=True), length_label(20.0, known=True), length_label(50.0, known=False)
    ('500 nm', '20 µm', '50 px')
    """
    if not known:
        return f"{length:g} px"
    if length >= 1000:
        return f"{length / 1000:g} mm"
    return f"{length:g} µm" if length >= 1 else f"{length * 1000:g} nm"


class ScaleBar:
    """A bar of a round length in the lower right corner of a view."""

    def __init__(self, view: Any) -> None:
        self._view = view
        self._panel = QtWidgets.QGraphicsRectItem(view)
        self._panel.setBrush(pg.mkBrush(0, 0, 0, 150))
        self._bar = QtWidgets.QGraphicsRectItem(view)
        self._bar.setBrush(pg.mkBrush(255, 255, 255))
        self._text = QtWidgets.QGraphicsSimpleTextItem(view)
        self._text.setBrush(pg.mkBrush(255, 255, 255))
        for item in (self._panel, self._bar, self._text):
            item.setZValue(1000)
            if item is not self._text:
                item.setPen(pg.mkPen(None))
            item.hide()

    def place(self, pixel_size_um: float | None) -> None:
        """Fit the bar to the zoom: about a sixth of the view's width."""
        unit = self._view.viewPixelSize()[0] * (pixel_size_um or 1.0)  # length of one screen pixel
        longest = unit * self._view.width() / 6
        if not (math.isfinite(longest) and longest > 0):
            return
        length = nice_length(longest)
        self._text.setText(length_label(length, known=pixel_size_um is not None))
        bar_width, text = length / unit, self._text.boundingRect()
        margin, pad, bar_height = 14.0, 8.0, 4.0
        width = max(bar_width, text.width()) + 2 * pad
        height = text.height() + bar_height + 2 * pad
        left = self._view.width() - margin - width
        top = self._view.height() - margin - height
        self._panel.setRect(left, top, width, height)
        self._text.setPos(left + (width - text.width()) / 2, top + pad / 2)
        self._bar.setRect(left + (width - bar_width) / 2, top + height - pad - bar_height, bar_width, bar_height)
        for item in (self._panel, self._bar, self._text):
            item.show()


class Legend(QtWidgets.QWidget):  # type: ignore[misc]  # Qt comes untyped through pyqtgraph
    """What colours mean: a title, the lowest value, the colours, the highest value, a note."""

    _WIDTH_PX, _HEIGHT_PX = 96, 9

    def __init__(self) -> None:
        super().__init__()
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(7)
        self._bar = QtWidgets.QLabel()
        self._title, self._low, self._high, self._note = (QtWidgets.QLabel() for _ in range(4))
        for label in (self._title, self._low, self._bar, self._high, self._note):
            row.addWidget(label)
        row.addStretch(1)
        for label in (self._title, self._note):
            label.setStyleSheet(f"color: {_QUIET}")
        self.texts: tuple[str, ...] = ()
        """Title, low, high and note as shown."""
        self.hide()

    def explain(self, colours: NDArray[np.uint8], title: str, low: str, high: str, note: str = "") -> None:
        """Show (N, 3) colours from the lowest to the highest value."""
        self.show()
        if self.texts == (title, low, high, note):
            return
        self.texts = (title, low, high, note)
        for label, text in zip((self._title, self._low, self._high, self._note), self.texts, strict=True):
            label.setText(text)
        rgb = np.ascontiguousarray(colours)
        image = QtGui.QImage(rgb.data, len(rgb), 1, rgb.nbytes, QtGui.QImage.Format.Format_RGB888)
        self._bar.setPixmap(QtGui.QPixmap.fromImage(image.scaled(self._WIDTH_PX, self._HEIGHT_PX)))


class ParticleLabel:
    """What is known of one particle, written beside it."""

    def __init__(self, view: Any) -> None:
        self._view = view
        self._panel = QtWidgets.QGraphicsRectItem(view)
        self._panel.setBrush(pg.mkBrush(0, 0, 0, 170))
        self._panel.setPen(pg.mkPen(None))
        self._text = QtWidgets.QGraphicsSimpleTextItem(view)
        self._text.setBrush(pg.mkBrush(_TEXT))
        for item in (self._panel, self._text):
            item.setZValue(900)
        self.hide()

    def write(self, text: str, y_px: float, x_px: float, *, away_px: float) -> None:
        """Put the text `away_px` pixels of the screen right of a position of the camera, or left of it."""
        self._text.setText(text)
        at, size, pad = self._view.mapFromView(QtCore.QPointF(x_px, y_px)), self._text.boundingRect(), 5.0
        left, top = at.x() + away_px, at.y() - size.height() / 2 - pad
        if left + size.width() + 2 * pad > self._view.width():
            left = at.x() - away_px - size.width() - 2 * pad
        top = min(max(top, 0.0), self._view.height() - size.height() - 2 * pad)
        self._panel.setRect(left, top, size.width() + 2 * pad, size.height() + 2 * pad)
        self._text.setPos(left + pad, top + pad)
        for item in (self._panel, self._text):
            item.show()

    def hide(self) -> None:
        """Show nothing."""
        for item in (self._panel, self._text):
            item.hide()


class CellLayer(pg.GraphicsObject):  # type: ignore[misc]  # Qt comes untyped through pyqtgraph
    """Outlines of cells, drawn anew at every zoom: a line along the inside of each cell's border.

    The pixels of the screen are computed here, not painted as paths: the cost does not grow with the number of cells,
    and what is drawn is the very border of the pixels below.
    """

    def __init__(self) -> None:
        super().__init__()
        self._picture: Picture | None = None
        self._colours = CellColours()
        self._line = np.empty(0, np.uint32)
        self._fill = np.empty(0, np.uint32)
        self._born: dict[int, int] = {}  # picture in which a track was first seen; in the first one: -1000
        self._n_pictures = 0
        self._drawn: tuple[Any, ...] = ()
        self._argb = np.empty((0, 0), np.uint32)
        self._image: Any = None
        self.outlines, self.areas, self.numbers = True, False, False
        """What is shown."""
        self.selected_id = -1
        """Track with a thick line."""

    def take(self, picture: Picture | None) -> None:
        """Show the cells of the next picture, or none."""
        if picture is self._picture:
            return
        self.prepareGeometryChange()
        self._picture = picture
        if picture is not None and picture.labels is not None:
            colour = self._colours.of(picture.labels, picture.track_id, picture.parent_id)
            rgb = np.array(CELL_RGB, np.uint32)[colour]  # (N, 3)
            self._line = _with_background(_argb(rgb, 1.0))
            self._fill = _with_background(_argb(rgb, _FILL_OPACITY))
            now = -1000 if self._n_pictures == 0 else self._n_pictures
            self._born = {track: self._born.get(track, now) for track in picture.track_id.tolist()}
            self._n_pictures += 1
        self.redraw()

    def redraw(self) -> None:
        """Draw again: something else is to be shown."""
        self._drawn = ()
        self.update()

    def row_at(self, y_px: float, x_px: float) -> int:
        """Return the row of the cell at a position of the camera, -1 where none is."""
        picture = self._picture
        if picture is None or picture.labels is None:
            return -1
        j, i = math.floor(y_px / picture.stride + 0.5), math.floor(x_px / picture.stride + 0.5)
        height, width = picture.labels.shape
        return int(picture.labels[j, i]) - 1 if 0 <= j < height and 0 <= i < width else -1

    def boundingRect(self) -> Any:  # noqa: N802 - Qt's name
        """Return the camera's picture."""
        if self._picture is None:
            return QtCore.QRectF()
        (height, width), stride = self._picture.pixels.shape, self._picture.stride
        return QtCore.QRectF(-stride / 2, -stride / 2, stride * width, stride * height)

    def paint(self, painter: Any, *_: Any) -> None:
        """Draw the part that is on the screen."""
        picture, view = self._picture, self.getViewBox()
        if picture is None or picture.labels is None or view is None or not (self.outlines or self.areas):
            return
        transform = painter.worldTransform()
        shown = transform.mapRect(self.boundingRect() & self.mapRectFromScene(view.sceneBoundingRect()))
        left, top = math.floor(shown.left()), math.floor(shown.top())
        width, height = math.ceil(shown.right()) - left, math.ceil(shown.bottom()) - top
        if width < 1 or height < 1:
            return
        scale, dx, dy = transform.m11(), transform.dx(), transform.dy()
        drawn = (left, top, width, height, scale, dx, dy)
        if drawn != self._drawn:
            self._drawn = drawn
            rows = np.floor((top + 0.5 + np.arange(height) - dy) / (scale * picture.stride) + 0.5)
            columns = np.floor((left + 0.5 + np.arange(width) - dx) / (scale * picture.stride) + 0.5)
            self._image = self._drawing(picture, picture.labels, rows, columns, scale)
            if self.numbers:
                self._write_numbers(picture, scale, dx - left, dy - top)
        painter.save()
        painter.resetTransform()
        painter.drawImage(left, top, self._image)
        painter.restore()

    def _drawing(self, picture: Picture, labels: NDArray[np.int32], rows: Any, columns: Any, scale: float) -> Any:
        """Return what lies over the pixels of the screen whose rows (h,) and columns (w,) of `labels` are given."""
        height, width = labels.shape
        rows, columns = (at.astype(np.intp).clip(0, side - 1) for at, side in ((rows, height), (columns, width)))
        first, last = rows.min(), rows.max() + 1
        small = labels[first:last].astype(np.uint16 if len(picture) < 65536 else np.int32)
        on_screen = small.take(columns, axis=1).take(rows - first, axis=0)
        argb = self._fill.take(on_screen) if self.areas else np.zeros(on_screen.shape, np.uint32)
        if self.outlines:
            cell_px = scale * math.sqrt(max(0.0, np.nan_to_num(median_area_px(picture))))
            line_px = 2 if cell_px > _WIDE_LINE_FROM_PX else 1
            self._draw_rims(argb, on_screen, rims(on_screen, line_px))
            for more_px, rows_wide in ((1, self._newborn(picture)), (2, picture.track_id == self.selected_id)):
                if rows_wide.any():
                    wide = np.concatenate([[False], rows_wide]).take(on_screen)
                    self._draw_rims(argb, on_screen, rims(on_screen, line_px + more_px) & wide)
        self._argb = argb  # the image does not own its pixels
        h, w = argb.shape
        return QtGui.QImage(argb.data, w, h, 4 * w, QtGui.QImage.Format.Format_ARGB32_Premultiplied)

    def _draw_rims(self, argb: NDArray[np.uint32], on_screen: NDArray[Any], rim: NDArray[np.bool_]) -> None:
        at = np.flatnonzero(rim)
        argb.ravel()[at] = self._line.take(on_screen.ravel().take(at))

    def _newborn(self, picture: Picture) -> NDArray[np.bool_]:
        """Return which rows (N,) are daughters that were first seen some pictures ago."""
        if picture.parent_id is None:
            return np.zeros(len(picture), bool)
        born = np.array([self._born[track] for track in picture.track_id.tolist()], np.int64)
        newborn: NDArray[np.bool_] = (picture.parent_id > 0) & (self._n_pictures - born <= _NEWBORN_PICTURES)
        return newborn

    def _write_numbers(self, picture: Picture, scale: float, dx: float, dy: float) -> None:
        """Write the tracks' numbers into the drawing, unless they would cover the cells."""
        at = np.column_stack([picture.x_px * scale + dx, picture.y_px * scale + dy])
        inside = (np.isfinite(at) & (at >= 0) & (at < [self._image.width(), self._image.height()])).all(axis=1)
        cell_px = scale * math.sqrt(max(0.0, np.nan_to_num(median_area_px(picture))))
        if cell_px < _READABLE_CELL_PX or inside.sum() > _MOST_NUMBERS:
            return
        painter = QtGui.QPainter(self._image)
        font = painter.font()
        font.setPointSizeF(8.0)
        painter.setFont(font)
        centred = QtCore.Qt.AlignmentFlag.AlignCenter
        for row in np.flatnonzero(inside).tolist():
            box = QtCore.QRectF(at[row, 0] - 40, at[row, 1] - 10, 80, 20)
            for colour, shift in (((0, 0, 0, 200), 1.0), ((255, 255, 255, 255), 0.0)):
                painter.setPen(pg.mkPen(*colour))
                painter.drawText(box.translated(shift, shift), centred, str(int(picture.track_id[row])))
        painter.end()


def _argb(rgb: NDArray[np.uint32], opacity: float) -> NDArray[np.uint32]:
    """Return colours (N, 3) as Qt's premultiplied 32 bit pixels (N,)."""
    faded = np.rint(rgb * opacity).astype(np.uint32)
    return np.asarray(round(255 * opacity) << 24 | faded[:, 0] << 16 | faded[:, 1] << 8 | faded[:, 2], np.uint32)


def _with_background(argb: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return a table for labels: 0 is transparent."""
    return np.concatenate([np.zeros(1, np.uint32), argb])


class _NumberBox(QtWidgets.QDoubleSpinBox):  # type: ignore[misc]  # Qt comes untyped through pyqtgraph
    """A box that gives the keyboard back to the window when a number is entered."""

    def keyPressEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Take a number; Enter and Esc end it."""
        if event.key() in (QtCore.Qt.Key.Key_Return, QtCore.Qt.Key.Key_Enter, QtCore.Qt.Key.Key_Escape):
            self.clearFocus()
        else:
            super().keyPressEvent(event)


class FieldControls(QtWidgets.QWidget):  # type: ignore[misc]  # Qt comes untyped through pyqtgraph
    """Buttons for what is shown of a hologram, and the distance to refocus to; hidden until `offer`.

    Parameters
    ----------
    changed : () -> None
        Called when something else is to be shown.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__()
        self._changed = changed
        self.mode: Mode = "hologram"
        """What is to be shown."""
        self.setObjectName("bar")
        self.setAttribute(QtCore.Qt.WidgetAttribute.WA_StyledBackground)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(12, 5, 12, 5)
        row.setSpacing(6)
        self._group = QtWidgets.QButtonGroup(self)
        for number, (mode, explanation) in enumerate(MODES):
            button = QtWidgets.QPushButton(mode)
            button.setCheckable(True)
            button.setFocusPolicy(QtCore.Qt.FocusPolicy.NoFocus)
            button.setToolTip(f"{explanation}  ({number + 1})")
            self._group.addButton(button, number)
            row.addWidget(button)
        self._group.button(0).setChecked(True)
        self._group.idClicked.connect(self._click)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self._slider.setFocusPolicy(QtCore.Qt.FocusPolicy.NoFocus)
        self._slider.setMinimumWidth(120)
        self._slider.valueChanged.connect(self._slide)
        self._box = _NumberBox()
        self._box.setFocusPolicy(QtCore.Qt.FocusPolicy.ClickFocus)
        self._box.setLocale(QtCore.QLocale.c())
        self._box.setDecimals(2)
        self._box.setSingleStep(_Z_STEP_UM)
        self._box.setSuffix(" µm")
        self._box.setMinimumWidth(84)
        self._box.setAlignment(QtCore.Qt.AlignmentFlag.AlignRight)
        self._box.valueChanged.connect(self._take_z)
        row.addSpacing(14)
        row.addWidget(QtWidgets.QLabel("z"))
        row.addWidget(self._slider, 1)
        row.addWidget(self._box)
        self._enable_z()
        self.hide()

    @property
    def z_um(self) -> float:
        """Distance to refocus to."""
        return float(self._box.value())

    def offer(self, z_range_um: tuple[float, float], *, refocusable: bool) -> None:
        """Come up; `refocusable` says whether the optics of the field are known."""
        low, high = z_range_um
        self._box.setRange(low, high)
        self._slider.setRange(round(low / _Z_STEP_UM), round(high / _Z_STEP_UM))
        self._slider.setValue(round(self.z_um / _Z_STEP_UM))
        self._group.button(len(MODES) - 1).setEnabled(refocusable)
        self.show()

    def choose(self, mode: Mode) -> None:
        """Show something else, if that is offered."""
        number = [name for name, _ in MODES].index(mode)
        button = self._group.button(number)
        if self.isHidden() or not button.isEnabled() or mode == self.mode:
            return
        button.setChecked(True)
        self.mode = mode
        self._enable_z()
        self._changed()

    def refocus(self, z_um: float) -> None:
        """Set the distance, within its range."""
        if not self.isHidden() and math.isfinite(z_um):
            self._box.setValue(z_um)

    def step(self, n_steps: int) -> None:
        """Go so many tenths of a micrometre up."""
        if self._slider.isEnabled():
            self._slider.setValue(self._slider.value() + n_steps)

    def _click(self, number: int) -> None:
        self.choose(MODES[number][0])

    def _enable_z(self) -> None:
        for widget in (self._slider, self._box):
            widget.setEnabled(self.mode == "refocused")

    def _slide(self, steps: int) -> None:
        if steps != round(self.z_um / _Z_STEP_UM):
            self._box.setValue(steps * _Z_STEP_UM)

    def _take_z(self, z_um: float) -> None:
        self._slider.setValue(round(z_um / _Z_STEP_UM))
        if self.mode == "refocused":
            self._changed()


class GrownView:
    """The super-resolution image beside the camera's, at the same place and zoom; not there until `show`.

    Parameters
    ----------
    graphics : GraphicsLayoutWidget
        Where it comes up, in the second column.
    beside : ViewBox
        The camera's view.
    clear : () -> None
        Called by the button.
    """

    def __init__(self, graphics: Any, beside: Any, clear: Callable[[], None]) -> None:
        self._graphics = graphics
        self._beside = beside
        self.view: Any = None
        """The view, once it is there."""
        self.grown: GrownImage | None = None
        """The image on the screen."""
        self._brightness = 1.0
        self._pixel_size_um: float | None = None
        self.bar = QtWidgets.QWidget()
        self.bar.setObjectName("bar")
        row = QtWidgets.QHBoxLayout(self.bar)
        row.setContentsMargins(12, 5, 12, 5)
        row.setSpacing(10)
        self._text = QtWidgets.QLabel()
        self._text.setFont(_fixed_font())
        self._text.setTextFormat(QtCore.Qt.TextFormat.PlainText)
        self._button = QtWidgets.QPushButton("clear")
        self._button.setFocusPolicy(QtCore.Qt.FocusPolicy.NoFocus)
        self._button.setToolTip("begin a new super-resolution image  (C)")
        self._button.clicked.connect(lambda: clear())
        row.addStretch(1)
        row.addWidget(self._text)
        row.addWidget(self._button)
        self.bar.hide()

    def show(self) -> None:
        """Come up, empty."""
        if self.view is not None:
            return
        # A frame of dark pixels between the two, so that one picture is told from the other.
        self._graphics.ci.layout.setHorizontalSpacing(4)
        self.view = self._graphics.addViewBox(
            row=0, col=1, lockAspect=True, invertY=True, enableMenu=False, defaultPadding=0.0
        )
        # Else a screen coarser than the image shows one pixel of several, and narrow lines have gaps.
        self._image = pg.ImageItem(axisOrder="row-major", autoDownsample=True)
        self.view.addItem(self._image)
        self._scale_bar = ScaleBar(self.view)
        # Not setXLink and setYLink: with a locked aspect the two push each other away from the whole picture.
        self._beside.sigRangeChanged.connect(self._follow)
        self._beside.sigResized.connect(self._follow)
        self.view.sigRangeChangedManually.connect(lambda: self._beside.setRange(self.view.viewRect(), padding=0))
        self.view.sigResized.connect(self._follow)
        self.bar.show()
        self._write()

    def take(self, grown: GrownImage, pixel_size_um: float | None) -> None:
        """Show the newest image."""
        self.show()
        self.grown, self._pixel_size_um = grown, pixel_size_um
        self._draw()
        height, width = grown.pixels.shape
        edge = grown.camera_px
        self._image.setRect(QtCore.QRectF(-0.5, -0.5, edge * width, edge * height))
        self._follow()
        self._write()

    def empty(self) -> None:
        """Show nothing until the next image."""
        if self.view is not None:
            self.grown = None
            self._image.clear()
            self._write()

    def scale_brightness(self, factor: float) -> None:
        """Show it so much brighter."""
        self._brightness *= factor
        if self.grown is not None:
            self._draw()

    def _draw(self) -> None:
        grown = self.grown
        if grown is None:
            return
        white = grown.white / math.sqrt(self._brightness)  # the pixels are square roots
        if grown.z_step is None:
            self._image.setLookupTable(_HEAT_RGB)
            self._image.setImage(grown.pixels, autoLevels=False, levels=(0, white))
            return
        bright = np.minimum(grown.pixels * np.float32(1 / white), 1)
        bright[grown.z_step == 255] = 0
        colour = _Z_RGB[np.minimum(grown.z_step.astype(np.intp) * _Z_COLOURS // 255, _Z_COLOURS - 1)]
        self._image.setLookupTable(None)
        self._image.setImage((colour * bright[..., None]).astype(np.uint8), autoLevels=False, levels=(0, 255))

    def _follow(self) -> None:
        """Show the same place at the same zoom as the camera's view."""
        self.view.setRange(self._beside.viewRect(), padding=0)
        self._scale_bar.place(self._pixel_size_um)

    def _write(self) -> None:
        if self.grown is None:
            self._text.setText("super-resolution: waiting")
            self._text.setToolTip("")
            return
        edge = self.grown.camera_px
        fine = f"1/{1 / edge:.3g} px" if self._pixel_size_um is None else f"{1e3 * edge * self._pixel_size_um:.3g} nm"
        note = "  (coarser than asked for)" if self.grown.note else ""
        self._text.setText(f"super-resolution: {self.grown.n_localisations} localisations, pixels of {fine}{note}")
        self._text.setToolTip(self.grown.note)


class LiveWindow(QtWidgets.QMainWindow):  # type: ignore[misc]  # Qt comes untyped through pyqtgraph
    """The window of the live view.

    Parameters
    ----------
    stream : PictureStream
        Where pictures come from; closed with the window.
    title : str
        Model and source.
    diameter_px : float
        Ring diameter in pixels of the camera.
    """

    def __init__(self, stream: PictureStream, *, title: str = "", diameter_px: float = 12.0) -> None:
        super().__init__()
        self._stream = stream
        self._title = title
        self._diameter_px = diameter_px
        self.picture: Picture | None = None
        """The picture on the screen."""
        self.plane: Plane | None = None
        """What is shown of it."""
        self.n_pictures = 0
        """Pictures taken from the stream."""
        self.ended = False
        """Whether the pipeline said that the run ended."""
        self.frozen = False
        self._status: Status | None = None
        self._emitters: Emitters | None = None
        self._tails = Tails()
        self._levels: tuple[float, float] | None = None
        self._levels_automatic = True
        self._levels_s = -math.inf
        self._arrived_s = time.monotonic()
        self._harm = (0, -math.inf)  # frames and results lost so far, when that number last grew
        self._flash = ("", -math.inf)  # a message, until when it is shown
        self._refused = 0
        self._newest: Picture | None = None  # what is to be shown; `picture` until its plane is made
        self._maker = PlaneMaker()  # belongs to the thread of `_executor`
        self._executor = ThreadPoolExecutor(1, "oneframe-plane")
        self._making: Future[Plane] | None = None
        self._wanted: tuple[Picture, Mode, float] | None = None  # what the thread makes next
        self._selected_id = -1  # track that was clicked on
        self._cell_area: tuple[str, str] | None = None  # median and unit, once a picture has cells
        self._controls = FieldControls(self._show_newest)
        self._build()
        self._keys: dict[Any, Any] = {
            QtCore.Qt.Key.Key_Space: self.toggle_freeze,
            QtCore.Qt.Key.Key_0: self.automatic_levels,
            QtCore.Qt.Key.Key_Up: lambda: self._scale_levels(1 / 1.25),
            QtCore.Qt.Key.Key_Down: lambda: self._scale_levels(1.25),
            QtCore.Qt.Key.Key_C: self.clear_emitters,
            QtCore.Qt.Key.Key_R: self.toggle_rings,
            QtCore.Qt.Key.Key_O: lambda: self._toggle_cells("outlines"),
            QtCore.Qt.Key.Key_A: lambda: self._toggle_cells("areas"),
            QtCore.Qt.Key.Key_I: lambda: self._toggle_cells("numbers"),
            QtCore.Qt.Key.Key_T: lambda: self._curve.setVisible(not self._curve.isVisible()),
            QtCore.Qt.Key.Key_F: self._view.enableAutoRange,
            QtCore.Qt.Key.Key_S: self.save_screenshot,
            QtCore.Qt.Key.Key_1: lambda: self._controls.choose("hologram"),
            QtCore.Qt.Key.Key_2: lambda: self._controls.choose("amplitude"),
            QtCore.Qt.Key.Key_3: lambda: self._controls.choose("phase"),
            QtCore.Qt.Key.Key_4: lambda: self._controls.choose("refocused"),
            QtCore.Qt.Key.Key_PageUp: lambda: self._controls.step(1),
            QtCore.Qt.Key.Key_PageDown: lambda: self._controls.step(-1),
            QtCore.Qt.Key.Key_F1: lambda: self._help.setVisible(not self._help.isVisible()),
            QtCore.Qt.Key.Key_Q: self.close,
            QtCore.Qt.Key.Key_Escape: self.close,
        }
        self._timer = QtCore.QTimer(self)
        self._timer.setTimerType(QtCore.Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self.tick)
        self._timer.start(_TICK_MS)
        self._status_timer = QtCore.QTimer(self)
        self._status_timer.timeout.connect(self.show_status)
        self._status_timer.start(200)
        self.show_status()

    def tick(self) -> None:
        """Take the newest message, if there is one, and the plane that was made meanwhile."""
        self._next_plane()
        try:
            message = self._stream.read(0.0)
        except ValueError as exc:
            self._refused += 1
            if self._refused == 1:
                logger.warning("%s", exc)
            return
        if message is not None:
            self.take(message)

    def take(self, message: Picture | Notice) -> None:
        """Show a picture, or note how the run is doing."""
        now_s = time.monotonic()
        self._note_harm(message.status, now_s)
        self._status = message.status
        if message.emitters is not None:
            self._take_emitters(message)
        self.ended = isinstance(message, Notice) and message.kind == "end"
        if isinstance(message, Notice):
            self.show_status()
            return
        self._arrived_s = now_s
        self.n_pictures += 1
        if message.emitters is None:  # emitters blink: they go nowhere
            self._tails.add(message)
        if not self.frozen:
            self._newest = message
            self._show_newest()

    def clear_emitters(self) -> None:
        """Begin a new super-resolution image, in the process of the run."""
        if self._emitters is not None:
            self._stream.clear_emitters()
            self._grown.empty()

    def toggle_freeze(self) -> None:
        """Hold the picture, or go on with the newest one."""
        self.frozen = not self.frozen
        self.show_status()

    def automatic_levels(self) -> None:
        """Let black and white follow the picture again."""
        self._levels_automatic, self._levels, self._levels_s = True, None, -math.inf
        if self.plane is not None:
            self._follow_levels(self.plane, time.monotonic())

    def toggle_rings(self) -> None:
        """Hide or show the rings."""
        for rings in (self._halos, self._rings, self._doubtful_rings):
            rings.setVisible(not rings.isVisible())

    def _toggle_cells(self, what: Literal["outlines", "areas", "numbers"]) -> None:
        """Hide or show something of the cells."""
        setattr(self._cells, what, not getattr(self._cells, what))
        self._cells.redraw()

    def select(self, y_px: float, x_px: float) -> None:
        """Tell of the particle or cell at a position of the camera, refocus there; on empty ground tell of none."""
        self._selected_id = -1
        picture = self.picture
        if picture is not None and picture.labels is not None:
            row = self._cells.row_at(y_px, x_px)
            self._selected_id = int(picture.track_id[row]) if row >= 0 else -1
            self._cells.selected_id = self._selected_id
            self._cells.redraw()
        elif picture is not None and picture.z_um is not None and len(picture):
            distance_px = np.hypot(picture.y_px - y_px, picture.x_px - x_px)
            distance_px[~np.isfinite(distance_px)] = np.inf
            row = int(np.argmin(distance_px))
            if distance_px[row] <= max(self._diameter_px / 2, 12 * self._view.viewPixelSize()[0]):
                self._selected_id = int(picture.track_id[row])
                self._controls.refocus(float(picture.z_um[row]))
        self._draw_marks()

    def save_screenshot(self) -> None:
        """Write the window as a PNG into the current folder and say so."""
        frame = "" if self.picture is None else f"_frame{self.picture.index:06d}"
        path = Path.cwd() / f"oneframe_{datetime.now():%Y%m%d-%H%M%S}{frame}.png"
        try:
            self.grab_png(path)
        except OSError as exc:
            self._flash = (str(exc), time.monotonic() + 8)
        else:
            self._flash = (f"saved {path.name}", time.monotonic() + 4)
        self.show_status()

    def grab_png(self, path: Path | str) -> None:
        """Write the window as it stands as a PNG.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        self.show_status()
        if not self.grab().save(str(path), "PNG"):
            raise OSError(f"cannot write the screenshot {path}; check that the folder exists and can be written to")

    def show_status(self) -> None:
        """Bring the texts round the picture up to date."""
        now_s = time.monotonic()
        if self.plane is not None and self.plane.mode != "hologram":
            self._follow_levels(self.plane, now_s)  # also of a frozen picture, at another z
        text, colour = self._state(now_s)
        self._badge.setText(text)
        self._badge.setStyleSheet(_BADGE_STYLE.format(colour=colour))
        self._waiting.setVisible(self.picture is None)
        message, until_s = self._flash
        self._info.setText(message if now_s < until_s else self._picture_text())
        if self._status is not None:
            losing = now_s - self._harm[1] < 5.0
            line = status_html(self._status, losing=losing, emitters=self._emitters, cell_area=self._cell_area)
            self._line.setText(line)

    def keyPressEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Do what `HELP` says."""
        action = self._keys.get(event.key())
        if event.modifiers() & QtCore.Qt.KeyboardModifier.ShiftModifier and event.key() in _BRIGHTER:
            self._grown.scale_brightness(_BRIGHTER[event.key()])
        elif action is None:
            super().keyPressEvent(event)
        else:
            action()

    def closeEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Let go of the stream."""
        self._timer.stop()
        self._status_timer.stop()
        self._executor.shutdown(cancel_futures=True)
        self._stream.close()
        super().closeEvent(event)

    def to_window_px(self, y_px: float, x_px: float) -> tuple[float, float]:
        """Return where in the window (y, x) a position of the camera is drawn."""
        on_scene = self._view.mapViewToScene(QtCore.QPointF(x_px, y_px))
        corner = self._graphics.mapTo(self, QtCore.QPoint(0, 0))
        transform = self._graphics.viewportTransform()
        point = transform.map(on_scene)
        return point.y() + corner.y(), point.x() + corner.x()

    def _take_emitters(self, message: Picture | Notice) -> None:
        """Show how many emitters there are, and the super-resolution image if it came along."""
        if self._emitters is None:
            for rings in (self._halos, self._rings, self._doubtful_rings):
                rings.setSymbol(_cross())
            self._rings.setPen(pg.mkPen(*RING_RGB, width=1.5))
            self._halos.setPen(pg.mkPen(0, 0, 0, 140, width=3.5))
            self._help.setText(_help_html(HELP[:-2] + EMITTER_HELP + HELP[-2:]))
            self._grown.show()
        self._emitters = message.emitters
        if message.grown is not None and not self.frozen:
            self._grown.take(message.grown, None if message.emitters is None else message.emitters.pixel_size_um)

    def _show_newest(self) -> None:
        """Show what is chosen of the newest picture: the hologram now, what is computed as soon as it is there."""
        picture = self._newest
        if picture is None:
            return
        if picture.field is not None and self._controls.isHidden():
            self._offer_field(picture)
        if picture.field is None or self._controls.mode == "hologram":
            self._wanted = None
            self._show(hologram_plane(picture))
        else:
            self._wanted = (picture, self._controls.mode, self._controls.z_um)
            self._next_plane()

    def _next_plane(self) -> None:
        """Show the plane that is ready and have the newest one made; those in between are left out."""
        if self._making is not None and self._making.done():
            making, self._making = self._making, None
            try:
                plane = making.result()
            except (ValueError, MemoryError) as exc:
                logger.warning("%s", exc)
                self._flash = (str(exc), time.monotonic() + 8)
            else:
                if plane.mode == self._controls.mode:
                    self._show(plane)
        if self._making is None and self._wanted is not None:
            self._making, self._wanted = self._executor.submit(self._maker.make, *self._wanted), None

    def _offer_field(self, picture: Picture) -> None:
        """Show what can be chosen of a hologram."""
        self._controls.offer(picture.z_range_um or _Z_RANGE_UM, refocusable=picture.field_optics is not None)
        self._help.setText(_help_html(HELP[:-2] + FIELD_HELP + HELP[-2:]))

    def _show(self, plane: Plane) -> None:
        first, before = self.picture is None, self.plane
        self._show_cells(plane.picture)
        self.picture, self.plane = plane.picture, plane
        if before is None or before.mode != plane.mode:
            self._levels_automatic, self._levels, self._levels_s = True, None, -math.inf
            self._image.setLookupTable(_PHASE_RGB if plane.mode == "phase" else None)
        self._follow_levels(plane, time.monotonic())
        self._image.setImage(plane.pixels, autoLevels=False, levels=self._levels)
        height, width = plane.pixels.shape
        stride = plane.stride
        self._image.setRect(QtCore.QRectF(-stride / 2, -stride / 2, stride * width, stride * height))
        if first:
            self.centralWidget().layout().activate()
            self._fit_window(plane.picture)
            self.show_status()
        self._draw_marks()

    def _show_cells(self, picture: Picture) -> None:
        """Draw outlines where the picture has cells, and say so in the status line and the help."""
        self._cells.take(None if picture.labels is None else picture)
        if picture.labels is not None:
            if self._cell_area is None:
                others = tuple(line for line in HELP if line[0] != "R  T")
                self._help.setText(_help_html(others[:-2] + CELL_HELP + others[-2:]))
            self._cell_area = area_text(median_area_px(picture), self._pixel_size_um(picture))

    def _draw_marks(self) -> None:
        """Draw what lies on the picture, at the present zoom."""
        picture = self.picture
        if picture is None:
            return
        screen_px = self._view.viewPixelSize()[0]
        ring_px = min(max(self._diameter_px / screen_px, _SMALLEST_RING_PX), _LARGEST_RING_PX)
        crosses = picture.emitters is not None
        if crosses:
            ring_px = min(max(_CROSS_CAMERA_PX / screen_px, _SMALLEST_CROSS_PX), _LARGEST_CROSS_PX)
        finite, doubtful = np.isfinite(picture.y_px) & np.isfinite(picture.x_px), doubtful_rows(picture)
        finite &= picture.labels is None  # cells have outlines
        self._set_rings(self._halos, finite & (doubtful | crosses | (picture.z_um is not None)), ring_px)
        self._set_rings(self._rings, finite & ~doubtful, ring_px)
        self._set_rings(self._doubtful_rings, finite & doubtful, ring_px)
        if not self.frozen:
            y_px, x_px = self._tails.curve()
            self._curve.setData(x=x_px, y=y_px, connect="finite")
        self._scale_bar.place(self._pixel_size_um(picture))
        self._draw_label(picture, ring_px)

    @staticmethod
    def _pixel_size_um(picture: Picture) -> float | None:
        """Return the edge of a camera pixel, the model's where the frame has none."""
        of_model = None if picture.emitters is None else picture.emitters.pixel_size_um
        return of_model if picture.pixel_size_um is None else picture.pixel_size_um

    def _set_rings(self, rings: Any, rows: NDArray[np.bool_], size: float) -> None:
        """Put rings of one kind on some rows of the picture; trusted ones have the colour of their z."""
        picture = self.picture
        if picture is None:
            return
        data: dict[str, Any] = {"x": picture.x_px[rows], "y": picture.y_px[rows], "size": size}
        if rings is self._rings and picture.z_um is not None:
            data["pen"] = self._z_pens[z_steps(picture.z_um[rows], picture.z_range_um or _Z_RANGE_UM)]
        rings.setData(**data)

    def _draw_label(self, picture: Picture, ring_px: float) -> None:
        """Write beside the particle that was clicked on, wherever it is now."""
        rows = np.flatnonzero(picture.track_id == self._selected_id)
        if self._selected_id < 0 or not len(rows) or not np.isfinite(picture.y_px[rows[0]] + picture.x_px[rows[0]]):
            self._label.hide()
            return
        row = int(rows[0])
        y_px, x_px = float(picture.y_px[row]), float(picture.x_px[row])
        text, away_px = particle_text(picture, row), ring_px / 2 + 6
        if picture.labels is not None:
            text = cell_text(picture, row)
            columns = np.flatnonzero((picture.labels == row + 1).any(axis=0)) * picture.stride
            if len(columns):  # a small cell may have no pixel left in a thinned picture
                away_px = max(columns[-1] - x_px, x_px - columns[0]) / self._view.viewPixelSize()[0] + 10
        self._label.write(text, y_px, x_px, away_px=away_px)

    def _explain_plane(self) -> None:
        """Say which z the rings have, and what grey or colour means where it is not simply the camera's light."""
        plane, levels = self.plane, self._levels
        if plane is None or levels is None:
            return
        self._legends.setVisible(plane.picture.z_um is not None or not self._controls.isHidden())
        if plane.picture.z_um is None:
            self._z_legend.hide()
        else:
            low, high = (f"{z_um:+g}" for z_um in plane.picture.z_range_um or _Z_RANGE_UM)
            note = "" if plane.picture.flags is None else "  dashed: doubtful"
            self._z_legend.explain(
                _Z_RGB, f"{'particles' if self._emitters is None else 'emitters'} at z", low, f"{high} µm", note
            )
        low, high = (f"{level:.2f}" for level in levels)
        if plane.mode == "hologram":
            self._plane_legend.hide()
        elif plane.mode == "phase":
            self._plane_legend.explain(_PHASE_RGB, "phase", low, f"{high} rad")
        else:
            self._plane_legend.explain(_GREY_RGB, "|E|" if plane.mode == "amplitude" else "|E − 1|", low, high)

    def _follow_levels(self, plane: Plane, now_s: float) -> None:
        """Take the plane's own levels, at most once a second and half of the way, so that nothing flickers."""
        if not self._levels_automatic or now_s - self._levels_s < 1.0:
            return
        self._levels_s = now_s
        if self._levels is None:
            self._levels = plane.levels
        else:
            (low, high), (own_low, own_high) = self._levels, plane.levels
            self._levels = ((low + own_low) / 2, (high + own_high) / 2)
        self._image.setLevels(self._levels)
        self._explain_plane()

    def _scale_levels(self, factor: float) -> None:
        """Move white towards black, or both from the background of amplitude and phase, and stay there."""
        if self._levels is None or self.plane is None:
            return
        low, high = self._levels
        fixed = (low + high) / 2 if self.plane.mode in ("amplitude", "phase") else low
        if self.plane.mode == "phase":
            factor = min(factor, math.pi / high)
        self._levels_automatic = False
        self._levels = (fixed + (low - fixed) * factor, fixed + (high - fixed) * factor)
        self._image.setLevels(self._levels)
        self._explain_plane()

    def _clicked(self, event: Any) -> None:
        if event.button() == QtCore.Qt.MouseButton.LeftButton:
            self.setFocus()  # away from the number box
            on_view = self._view.mapSceneToView(event.scenePos())
            self.select(on_view.y(), on_view.x())

    def _note_harm(self, status: Status, now_s: float) -> None:
        harm = status.lost + status.failed + status.sink_dropped
        if harm > self._harm[0] and self._status is not None:
            self._harm = (harm, now_s)
        else:
            self._harm = (harm, self._harm[1])

    def _state(self, now_s: float) -> tuple[str, str]:
        """Return what the badge says and its colour."""
        silent_s = now_s - self._arrived_s
        if self.ended:
            return "RUN ENDED", _QUIET
        if not self._stream.connected:
            return ("NO CONNECTION", _RED) if self.picture is not None else ("WAITING", _QUIET)
        if silent_s >= _STALE_AFTER_S:
            return f"NO PICTURE FOR {silent_s:.0f} s", _RED
        if self.frozen:
            return "FROZEN", _BLUE
        return ("WAITING", _QUIET) if self.picture is None else ("LIVE", _GREEN)

    def _picture_text(self) -> str:
        refused = f"{self._refused} bad messages    " if self._refused else ""
        if self.picture is None:
            return refused
        height, width = self.picture.frame_shape
        thinned = f" (1 px of {self.picture.stride} shown)" if self.picture.stride > 1 else ""
        clock = datetime.fromtimestamp(self.picture.time_s).strftime("%H:%M:%S") if self.picture.time_s > 0 else ""
        return f"{refused}{width} x {height} px{thinned}    frame {self.picture.index:>6d}    {clock}"

    def _fit_window(self, picture: Picture) -> None:
        """Give the first picture a window of its own proportions that fits the screen."""
        height, width = picture.frame_shape
        # Not self.screen(): PySide6 ties the screen to the window, and the next use after the window is gone crashes.
        room = QtGui.QGuiApplication.primaryScreen().availableSize() * 0.85
        around = self.height() - self._graphics.height()
        if picture.emitters is not None:
            width *= 2  # the super-resolution image beside it
        scale = min(room.width() / width, (room.height() - around) / height, max(1.0, 820 / max(picture.frame_shape)))
        self.resize(min(room.width(), max(_WIDTH_PX, round(width * scale))), round(height * scale) + around)

    def _build(self) -> None:
        self.setAttribute(QtCore.Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(f"{self._title} – oneframe" if self._title else "oneframe")
        self.setStyleSheet(_WINDOW_STYLE)
        self.resize(_WIDTH_PX, 880)
        self._graphics = pg.GraphicsLayoutWidget()
        self._graphics.setFocusPolicy(QtCore.Qt.FocusPolicy.NoFocus)
        self._graphics.setBackground(_BACKGROUND)
        self._graphics.ci.setContentsMargins(0, 0, 0, 0)
        self._view = self._graphics.addViewBox(lockAspect=True, invertY=True, enableMenu=False, defaultPadding=0.0)
        self._image = pg.ImageItem(axisOrder="row-major")
        # A pen above 1 px leaves Qt's fast path: 500 tails then take 12 to 60 ms a picture instead of 1.5 ms.
        self._curve = pg.PlotCurveItem(pen=pg.mkPen(*TAIL_RGB, width=1), antialias=True)
        # Rings follow the zoom (`_draw_marks`) at sizes of the screen: with pxMode=False, 500 of them take 8 ms, not 1.
        self._rings = pg.ScatterPlotItem(
            pxMode=True, symbol="o", pen=pg.mkPen(*RING_RGB, width=1.6), brush=None, antialias=True
        )
        # Dark under what has the colour of its z: that colour need not differ from every grey and every phase.
        self._halos = pg.ScatterPlotItem(
            pxMode=True, symbol="o", pen=pg.mkPen(0, 0, 0, width=5), brush=None, antialias=True
        )
        dashed = pg.mkPen(*_DOUBTFUL_RGB, width=2.0, dash=[3, 3])
        dashed.setCapStyle(QtCore.Qt.PenCapStyle.FlatCap)
        self._doubtful_rings = pg.ScatterPlotItem(pxMode=True, symbol="o", pen=dashed, brush=None, antialias=True)
        self._z_pens = np.array([pg.mkPen(*rgb, width=2.0) for rgb in _Z_RGB.tolist()], dtype=object)
        self._view.addItem(self._image)
        self._cells = CellLayer()
        for item in (self._cells, self._curve, self._halos, self._rings, self._doubtful_rings):
            self._view.addItem(item, ignoreBounds=True)
        self._grown = GrownView(self._graphics, self._view, self.clear_emitters)
        self._scale_bar = ScaleBar(self._view)
        self._label = ParticleLabel(self._view)
        self._graphics.scene().sigMouseClicked.connect(self._clicked)
        self._view.sigRangeChanged.connect(self._draw_marks)
        self._view.sigResized.connect(self._draw_marks)

        self._name, self._info, self._badge = QtWidgets.QLabel(self._title), QtWidgets.QLabel(), QtWidgets.QLabel()
        self._line = QtWidgets.QLabel("")
        self._line.setWordWrap(True)
        self._line.setTextFormat(QtCore.Qt.TextFormat.RichText)
        self._name.setObjectName("name")
        self._name.setTextFormat(QtCore.Qt.TextFormat.PlainText)
        self._name.setSizePolicy(QtWidgets.QSizePolicy.Policy.Ignored, QtWidgets.QSizePolicy.Policy.Preferred)
        self._info.setTextFormat(QtCore.Qt.TextFormat.PlainText)
        for label in (self._info, self._line):
            label.setFont(_fixed_font())
        self._waiting = _Panel(self._graphics, f"waiting for pictures from {self._stream.address}")
        self._help = _Panel(self._graphics, _help_html(HELP))
        self._help.hide()
        self._badge.setMinimumWidth(78)
        self._badge.setAlignment(QtCore.Qt.AlignmentFlag.AlignCenter)
        self._badge.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Fixed)

        self._z_legend, self._plane_legend = Legend(), Legend()
        self._legends = _bar(self._z_legend, self._plane_legend, stretch=0)
        self._legends.hide()
        central = QtWidgets.QWidget()
        column = QtWidgets.QVBoxLayout(central)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(_bar(self._name, self._info, stretch=0))
        column.addWidget(self._controls)
        column.addWidget(self._grown.bar)
        column.addWidget(self._graphics, 1)
        column.addWidget(self._legends)
        column.addWidget(_bar(self._badge, self._line, stretch=1))
        self.setCentralWidget(central)


_BRIGHTER = {QtCore.Qt.Key.Key_Up: 1.25, QtCore.Qt.Key.Key_Down: 1 / 1.25}
_WINDOW_STYLE = f"""
QMainWindow {{ background: {_BACKGROUND}; }}
QWidget#bar {{ background: {_PANEL}; }}
QLabel {{ color: {_TEXT}; background: transparent; }}
QLabel#name {{ font-weight: bold; }}
QPushButton {{ color: {_TEXT}; background: #2a2e34; border: 1px solid #3a3f46; border-radius: 4px; padding: 3px 12px; }}
QPushButton:hover {{ border-color: {_QUIET}; }}
QPushButton:checked {{ color: #101214; background: {_BLUE}; border-color: {_BLUE}; }}
QPushButton:disabled {{ color: #5a5f66; }}
QDoubleSpinBox {{ color: {_TEXT}; background: #101214; border: 1px solid #3a3f46; border-radius: 4px; padding: 2px; }}
QDoubleSpinBox::up-button, QDoubleSpinBox::down-button {{ width: 0; border: none; }}
QDoubleSpinBox:disabled {{ color: #5a5f66; }}
QToolTip {{ color: {_TEXT}; background: {_PANEL}; border: 1px solid #3a3f46; }}
QLabel#panel {{ background: rgba(16, 18, 20, 215); border: 1px solid #3a3f46; border-radius: 6px; padding: 10px 14px; }}
"""
_BADGE_STYLE = (
    "QLabel {{ color: #101214; background: {colour}; border-radius: 4px; padding: 2px 8px; font-weight: bold; }}"
)


def _fixed_font() -> Any:
    font = QtGui.QFontDatabase.systemFont(QtGui.QFontDatabase.SystemFont.FixedFont)
    font.setPointSizeF(9.0)
    return font


class _Panel(QtWidgets.QLabel):  # type: ignore[misc]  # Qt comes untyped through pyqtgraph
    """A text on a dark panel over the picture."""

    def __init__(self, parent: Any, text: str) -> None:
        super().__init__(text, parent)
        self.setObjectName("panel")
        self.setAttribute(QtCore.Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.move(16, 16)

    def showEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Take the size of the text, known only now that the style is."""
        self.ensurePolished()
        self.adjustSize()
        super().showEvent(event)


def _cross() -> Any:
    """Return the mark of an emitter, 1 x 1: rings would hide what lies between dense ones."""
    path = QtGui.QPainterPath()
    for x, y in ((0.5, 0.0), (0.0, 0.5)):
        path.moveTo(-x, -y)
        path.lineTo(x, y)
    return path


def _help_html(rows: Sequence[tuple[str, str]]) -> str:
    table = "".join(
        f'<tr><td style="color:{_AMBER}; padding-right:18px">{key}</td><td>{what}</td></tr>' for key, what in rows
    )
    return f"<table cellspacing=3>{table}</table>"


def _bar(left: Any, right: Any, *, stretch: int) -> Any:
    """Return a strip with two labels; `stretch` says which of them takes the room, 0 the left one, 1 the right."""
    bar = QtWidgets.QWidget()
    bar.setObjectName("bar")
    row = QtWidgets.QHBoxLayout(bar)
    row.setContentsMargins(12, 7, 12, 7)
    row.setSpacing(14)
    row.addWidget(left, 1 - stretch)
    row.addWidget(right, stretch)
    return bar


class _Unattended:
    """Watches a window that nobody sits at: saves its screenshot, closes it and decides the exit code."""

    def __init__(self, window: LiveWindow, arguments: argparse.Namespace) -> None:
        self.exit_code = 0
        self._window = window
        self._screenshot: Path | None = arguments.screenshot
        self._after_frames: int = arguments.after_frames
        self._close_at_end: bool = arguments.close_at_end
        self._patience_s: float = arguments.wait_s
        self._heard_s = time.monotonic()
        self._n_pictures = 0
        self._timer = QtCore.QTimer(window)
        self._timer.timeout.connect(self.check)
        self._timer.start(100)

    def check(self) -> None:
        """Look at the window; a timer calls this ten times a second."""
        window, now_s = self._window, time.monotonic()
        if window.n_pictures > self._n_pictures:
            self._n_pictures, self._heard_s = window.n_pictures, now_s
        done = window.n_pictures >= self._after_frames or window.ended
        if self._screenshot is not None and done and window.picture is not None:
            self._save()
        elif window.ended and (self._close_at_end or self._screenshot is not None):
            self._leave(0 if self._screenshot is None else 3)
        elif now_s - self._heard_s > self._patience_s and (self._close_at_end or self._screenshot is not None):
            logger.error("no picture within %g s; check that the run goes on and the address", self._patience_s)
            self._leave(3)

    def _save(self) -> None:
        try:
            self._window.grab_png(self._screenshot or "")
        except OSError as exc:
            logger.error("%s", exc)
            self._leave(1)
        else:
            self._leave(0)

    def _leave(self, exit_code: int) -> None:
        self.exit_code = exit_code
        self._timer.stop()
        self._window.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Open the live view and return its exit code.

    0: closed, or what was asked for is done; 1: the screenshot could not be written; 2: a wrong call; 3: no picture
    came within `--wait-s` though nobody sits at the window (`--screenshot`, `--close-at-end`).
    """
    arguments = _arguments(argv)
    try:
        stream = PictureStream(arguments.connect)
    except OSError as exc:
        logger.error("%s", exc)
        return 2
    app = pg.mkQApp("oneframe")
    window = LiveWindow(stream, title=arguments.title, diameter_px=arguments.diameter_px)
    unattended = _Unattended(window, arguments)
    before = signal.signal(signal.SIGINT, lambda *_: window.close())
    window.show()
    app.exec()
    signal.signal(signal.SIGINT, before)
    return unattended.exit_code


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m oneframe.runtime.view", description="Live view of a running run.")
    parser.add_argument("--connect", required=True, metavar="ADDRESS", help="such as tcp://127.0.0.1:40123")
    parser.add_argument("--title", default="", help="model and source")
    parser.add_argument(
        "--diameter-px", type=_above_zero, default=12.0, metavar="D", help="ring diameter, camera pixels"
    )
    parser.add_argument("--screenshot", type=Path, metavar="FILE", help="write a PNG and close")
    parser.add_argument("--after-frames", type=int, default=1, metavar="N", help="pictures before the screenshot")
    parser.add_argument("--close-at-end", action="store_true", help="close when the run ends")
    parser.add_argument("--wait-s", type=_above_zero, default=60.0, metavar="S", help="longest silence when unattended")
    return parser.parse_args(argv)


def _above_zero(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
