"""How many emitters a frame has, how dense and how precise they are: what an activation laser is driven by."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from oneframe.acquisition import Frame
from oneframe.runtime.detections import Detections


@dataclass(frozen=True, slots=True)
class Emitters:
    """Of one frame, or on average of the last ones."""

    n: float
    """Emitters in a frame."""
    expected: float
    """Sum of the scores: how many there are, each counted by how sure it is."""
    per_1000px2: float
    """Emitters per 1000 square pixels."""
    precision_px: float
    """Median over the emitters of their predicted standard deviation, the root mean square of y and x; NaN if none."""
    pixel_size_um: float | None = None

    @property
    def per_um2(self) -> float | None:
        """Emitters per square micrometre; None where the pixel size is unknown."""
        return None if self.pixel_size_um is None else self.per_1000px2 / 1000 / self.pixel_size_um**2

    @property
    def precision_nm(self) -> float | None:
        """The same in nanometres; None where the pixel size is unknown, NaN without an emitter."""
        return None if self.pixel_size_um is None else 1e3 * self.precision_px * self.pixel_size_um

    def density_text(self) -> tuple[str, str]:
        """Return the density and its unit."""
        if (per_um2 := self.per_um2) is None:
            return f"{self.per_1000px2:.1f}", "/1000 px²"
        return f"{per_um2:.2f}", "/µm²"

    def precision_text(self) -> tuple[str, str]:
        """Return the median precision and its unit; a dash where there is none."""
        precision_nm = self.precision_nm
        value, unit = (self.precision_px, "px") if precision_nm is None else (precision_nm, "nm")
        if not math.isfinite(value):
            return "–", unit
        return (f"{value:.2f}" if unit == "px" else f"{value:.1f}"), unit


def emitters_of(frame: Frame, detections: Detections, pixel_size_um: float | None = None) -> Emitters | None:
    """Return the figures of one frame; None where the model does not predict the errors of its positions.

    Parameters
    ----------
    frame : Frame
    detections : Detections
        Found in it.
    pixel_size_um : float or None
        Used where the frame has none.
    """
    if detections.sigma_y_px is None or detections.sigma_x_px is None:
        return None
    precision_px = np.sqrt((np.square(detections.sigma_y_px) + np.square(detections.sigma_x_px)) / 2)
    precision_px = precision_px[np.isfinite(precision_px)]
    n = len(detections)
    return Emitters(
        n=float(n),
        expected=float(np.nansum(detections.score, dtype=float)),
        per_1000px2=1000 * n / (frame.height * frame.width),
        precision_px=float(np.median(precision_px)) if len(precision_px) else math.nan,
        pixel_size_um=pixel_size_um if frame.pixel_size_um is None else frame.pixel_size_um,
    )


class RecentEmitters:
    """Figures over the last frames: means, and the median of the medians.

    Parameters
    ----------
    n_frames : int
        How many count.
    pixel_size_um : float or None
        Used where a frame has none.
    """

    def __init__(self, n_frames: int = 50, *, pixel_size_um: float | None = None) -> None:
        self._last: deque[Emitters] = deque(maxlen=n_frames)
        self._pixel_size_um = pixel_size_um

    def add(self, frame: Frame, detections: Detections) -> None:
        """Take the next frame; one without predicted errors is left out."""
        emitters = emitters_of(frame, detections, self._pixel_size_um)
        if emitters is not None:
            self._last.append(emitters)

    @property
    def mean(self) -> Emitters | None:
        """The figures; None before the first frame."""
        if not self._last:
            return None
        precisions_px = [e.precision_px for e in self._last if math.isfinite(e.precision_px)]
        return Emitters(
            n=float(np.mean([e.n for e in self._last])),
            expected=float(np.mean([e.expected for e in self._last])),
            per_1000px2=float(np.mean([e.per_1000px2 for e in self._last])),
            precision_px=float(np.median(precisions_px)) if precisions_px else math.nan,
            pixel_size_um=self._last[-1].pixel_size_um,
        )
