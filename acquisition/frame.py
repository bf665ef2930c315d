"""One camera image with what is needed to trust it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image as the camera gave it.

    Raises
    ------
    TypeError
        If `pixels` is not an array of unsigned integers, integers or floats.
    ValueError
        If the shape is not (H, W) or (C, H, W), an axis is empty, or index, time or pixel size make no sense.
    """

    pixels: NDArray[Any]
    """(H, W) or (C, H, W), the camera's own dtype; never written to after the frame was made."""

    index: int
    """Number of this frame in its source, from 0. A gap in it is the record of a lost frame."""

    time_s: float
    """When the frame was taken, seconds since the Unix epoch (host clock)."""

    pixel_size_um: float | None = None
    """Edge of one pixel in the sample, micrometres; None if the source does not know it."""

    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What else the camera told, as JSON-compatible values."""

    def __post_init__(self) -> None:
        if not isinstance(self.pixels, np.ndarray) or self.pixels.dtype.kind not in "uif":
            kind = getattr(self.pixels, "dtype", type(self.pixels).__name__)
            raise TypeError(f"pixels must be a numpy array of integers or floats, got {kind}; convert the image first")
        if self.pixels.ndim not in (2, 3) or 0 in self.pixels.shape:
            raise ValueError(
                f"pixels must have shape (H, W) or (C, H, W) without an empty axis, got {self.pixels.shape}; "
                "pass one plane at a time"
            )
        if self.index < 0:
            raise ValueError(f"index must be 0 or more, got {self.index}")
        if not math.isfinite(self.time_s):
            raise ValueError(f"time_s must be a finite number of seconds, got {self.time_s}")
        if self.pixel_size_um is not None and not (math.isfinite(self.pixel_size_um) and self.pixel_size_um > 0):
            raise ValueError(f"pixel_size_um must be above 0 micrometres or None, got {self.pixel_size_um}")

    @property
    def height(self) -> int:
        """Rows, in pixels."""
        return int(self.pixels.shape[-2])

    @property
    def width(self) -> int:
        """Columns, in pixels."""
        return int(self.pixels.shape[-1])
