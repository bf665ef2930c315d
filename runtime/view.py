"""The live view: `python -m oneframe.runtime.view --connect tcp://127.0.0.1:PORT`.

The only file with Qt. The window takes the newest picture 30 times a second and owns nothing of the run: if it
crashes, no frame is lost.
"""

from __future__ import annotations

import argparse
import html
import logging
import math
import signal
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from oneframe.runtime.account import Status
from oneframe.runtime.display import Notice, Picture, PictureStream

logger = logging.getLogger(__name__)

RING_RGB = (255, 176, 0)  # amber and sky blue differ for every kind of colour vision, and from any grey
TAIL_RGB = (86, 180, 233)
TAIL_LENGTH = 20
"""Pictures over which a tail reaches back."""

_GREEN, _AMBER, _RED, _BLUE, _QUIET = "#5fb878", "#ffb000", "#ff6b5e", "#56b4e9", "#8a8f98"
_BACKGROUND, _PANEL, _TEXT = "#101214", "#1b1e22", "#e6e6e6"
_TICK_MS = 33
_STALE_AFTER_S = 3.0
_WIDTH_PX = 1000  # the status line in one line
_SMALLEST_RING_PX, _LARGEST_RING_PX = 8.0, 2000.0  # on the screen

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


def status_html(status: Status, *, losing: bool) -> str:
    """Return the status line as HTML; numbers that go up and down keep their width.

    What is wrong with the sample stands on a line of its own.

    Parameters
    ----------
    status : Status
        What to show.
    losing : bool
        Whether frames or results were lost in the last seconds: red instead of amber.
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
        _segment("particles", f"{status.n_detections:d}"),
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
        self.n_pictures = 0
        """Pictures taken from the stream."""
        self.ended = False
        """Whether the pipeline said that the run ended."""
        self.frozen = False
        self._status: Status | None = None
        self._tails = Tails()
        self._levels: tuple[float, float] | None = None
        self._levels_automatic = True
        self._levels_s = -math.inf
        self._arrived_s = time.monotonic()
        self._harm = (0, -math.inf)  # frames and results lost so far, when that number last grew
        self._flash = ("", -math.inf)  # a message, until when it is shown
        self._refused = 0
        self._build()
        self._keys: dict[Any, Any] = {
            QtCore.Qt.Key.Key_Space: self.toggle_freeze,
            QtCore.Qt.Key.Key_0: self.automatic_levels,
            QtCore.Qt.Key.Key_Up: lambda: self._scale_levels(1 / 1.25),
            QtCore.Qt.Key.Key_Down: lambda: self._scale_levels(1.25),
            QtCore.Qt.Key.Key_R: lambda: self._rings.setVisible(not self._rings.isVisible()),
            QtCore.Qt.Key.Key_T: lambda: self._curve.setVisible(not self._curve.isVisible()),
            QtCore.Qt.Key.Key_F: self._view.enableAutoRange,
            QtCore.Qt.Key.Key_S: self.save_screenshot,
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
        """Take the newest message, if there is one."""
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
        self.ended = isinstance(message, Notice) and message.kind == "end"
        if isinstance(message, Notice):
            self.show_status()
            return
        self._arrived_s = now_s
        self.n_pictures += 1
        self._tails.add(message)
        if not self.frozen:
            self._show(message, now_s)

    def toggle_freeze(self) -> None:
        """Hold the picture, or go on with the newest one."""
        self.frozen = not self.frozen
        self.show_status()

    def automatic_levels(self) -> None:
        """Let black and white follow the picture again."""
        self._levels_automatic, self._levels, self._levels_s = True, None, -math.inf
        if self.picture is not None:
            self._follow_levels(self.picture, time.monotonic())

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
        text, colour = self._state(now_s)
        self._badge.setText(text)
        self._badge.setStyleSheet(_BADGE_STYLE.format(colour=colour))
        self._waiting.setVisible(self.picture is None)
        message, until_s = self._flash
        self._info.setText(message if now_s < until_s else self._picture_text())
        if self._status is not None:
            self._line.setText(status_html(self._status, losing=now_s - self._harm[1] < 5.0))

    def keyPressEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Do what `HELP` says."""
        action = self._keys.get(event.key())
        if action is None:
            super().keyPressEvent(event)
        else:
            action()

    def closeEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Let go of the stream."""
        self._timer.stop()
        self._status_timer.stop()
        self._stream.close()
        super().closeEvent(event)

    def to_window_px(self, y_px: float, x_px: float) -> tuple[float, float]:
        """Return where in the window (y, x) a position of the camera is drawn."""
        on_scene = self._view.mapViewToScene(QtCore.QPointF(x_px, y_px))
        corner = self._graphics.mapTo(self, QtCore.QPoint(0, 0))
        transform = self._graphics.viewportTransform()
        point = transform.map(on_scene)
        return point.y() + corner.y(), point.x() + corner.x()

    def _show(self, picture: Picture, now_s: float) -> None:
        first = self.picture is None
        self.picture = picture
        self._follow_levels(picture, now_s)
        self._image.setImage(picture.pixels, autoLevels=False, levels=self._levels)
        height, width = picture.pixels.shape
        stride = picture.stride
        self._image.setRect(QtCore.QRectF(-stride / 2, -stride / 2, stride * width, stride * height))
        if first:
            self._fit_window(picture)
            self.show_status()
        self._draw_marks()

    def _draw_marks(self) -> None:
        """Draw what lies on the picture, at the present zoom."""
        if self.picture is None:
            return
        screen_px = self._view.viewPixelSize()[0]
        finite = np.isfinite(self.picture.y_px) & np.isfinite(self.picture.x_px)
        self._rings.setData(
            x=self.picture.x_px[finite],
            y=self.picture.y_px[finite],
            size=min(max(self._diameter_px / screen_px, _SMALLEST_RING_PX), _LARGEST_RING_PX),
        )
        if not self.frozen:
            y_px, x_px = self._tails.curve()
            self._curve.setData(x=x_px, y=y_px, connect="finite")
        self._scale_bar.place(self.picture.pixel_size_um)

    def _follow_levels(self, picture: Picture, now_s: float) -> None:
        """Take the picture's own levels, at most once a second and half of the way, so that nothing flickers."""
        if not self._levels_automatic or now_s - self._levels_s < 1.0:
            return
        self._levels_s = now_s
        if self._levels is None:
            self._levels = picture.levels
        else:
            (low, high), (own_low, own_high) = self._levels, picture.levels
            self._levels = ((low + own_low) / 2, (high + own_high) / 2)
        self._image.setLevels(self._levels)

    def _scale_levels(self, factor: float) -> None:
        """Move white towards black or away from it, and stay there."""
        if self._levels is not None:
            low, high = self._levels
            self._levels_automatic, self._levels = False, (low, low + (high - low) * factor)
            self._image.setLevels(self._levels)

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
        scale = min(room.width() / width, (room.height() - around) / height, max(1.0, 820 / max(height, width)))
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
        self._view.addItem(self._image)
        self._view.addItem(self._curve, ignoreBounds=True)
        self._view.addItem(self._rings, ignoreBounds=True)
        self._scale_bar = ScaleBar(self._view)
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
        self._help = _Panel(self._graphics, _help_html())
        self._help.hide()
        self._badge.setMinimumWidth(78)
        self._badge.setAlignment(QtCore.Qt.AlignmentFlag.AlignCenter)
        self._badge.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Fixed)

        central = QtWidgets.QWidget()
        column = QtWidgets.QVBoxLayout(central)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(_bar(self._name, self._info, stretch=0))
        column.addWidget(self._graphics, 1)
        column.addWidget(_bar(self._badge, self._line, stretch=1))
        self.setCentralWidget(central)


_WINDOW_STYLE = f"""
QMainWindow {{ background: {_BACKGROUND}; }}
QWidget#bar {{ background: {_PANEL}; }}
QLabel {{ color: {_TEXT}; background: transparent; }}
QLabel#name {{ font-weight: bold; }}
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


def _help_html() -> str:
    rows = "".join(
        f'<tr><td style="color:{_AMBER}; padding-right:18px">{key}</td><td>{what}</td></tr>' for key, what in HELP
    )
    return f"<table cellspacing=3>{rows}</table>"


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
