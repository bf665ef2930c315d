"""What was found in one frame: `Detections`, and with identities over time `Tracks`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float32]


class Flag(IntFlag):
    """Why not to trust a row's z and polarizability; `Detections.flags` holds the sum."""

    WEAK = 1
    """The signal does not stand out of the field's noise."""
    NEAR_NEIGHBOUR = 2
    """Another particle stands close: the light of the two mixes."""
    OUTSIDE_Z = 4
    """z lies outside the range that was trained."""
    OUTSIDE_SIGNAL = 8
    """The signal is stronger or weaker than any that was trained."""
    NO_FOCUS = 16
    """No focus was found near the network's z, which stands there instead."""
    CONJUGATE = 32
    """The signal has the opposite sign: a particle lighter than the medium."""


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Columns of equal length, one row per found object; positions are pixels, centre of pixel [0, 0] at (0, 0).

    Raises
    ------
    ValueError
        If a column is not (N,) float32 like the others, or `labels` is not (H, W) int32.
    """

    y_px: Column
    x_px: Column
    score: Column
    """Confidence, 0..1."""
    z_um: Column | None = None
    polarizability_um3: Column | None = None
    photons: Column | None = None
    background: Column | None = None
    sigma_y_px: Column | None = None
    """Predicted standard deviation of `y_px`."""
    sigma_x_px: Column | None = None
    sigma_z_um: Column | None = None
    variance_px2: Column | None = None
    """Self-consistency: weighted variance, axes summed, of the positions that the network's cells predict."""
    area_px: Column | None = None
    """Pixels of the cell."""
    mean_intensity: Column | None = None
    """Mean of the cell's pixels, camera counts."""
    major_axis_px: Column | None = None
    """Full axes of the ellipse with the cell's second moments."""
    minor_axis_px: Column | None = None
    orientation_rad: Column | None = None
    """Of the major axis against the rows, -pi/2 to pi/2: positive from left above to right below."""
    flags: Column | None = None
    """Sum of `Flag`s; 0: nothing against the row."""
    labels: NDArray[np.int32] | None = None
    """(H, W), 0 is background; only for segmentation."""
    field: NDArray[np.complex64] | None = None
    """(h, w), background 1 + 0i, in which the rows were found; only for holograms."""
    notes: tuple[str, ...] = ()
    """What the model has to tell about this frame; a run notes what holds of frame after frame once."""

    @property
    def yx_px(self) -> NDArray[np.float64]:
        """(N, 2), `y_px` and `x_px` of each row."""
        return np.stack([self.y_px, self.x_px], axis=1).astype(np.float64)

    def __post_init__(self) -> None:
        n_rows = self.y_px.shape
        for name, column in self.columns().items():
            if column.ndim != 1 or column.dtype != np.float32 or column.shape != n_rows:
                raise ValueError(
                    f"column {name} must be float32 of shape {n_rows}, got {column.dtype} of shape {column.shape}"
                )
        if self.labels is not None and (self.labels.ndim != 2 or self.labels.dtype != np.int32):
            raise ValueError(f"labels must be (H, W) int32, got {self.labels.dtype} of shape {self.labels.shape}")

        if self.field is not None and (self.field.ndim != 2 or self.field.dtype != np.complex64):
            raise ValueError(f"field must be (h, w) complex64, got {self.field.dtype} of shape {self.field.shape}")

    def __len__(self) -> int:
        return int(self.y_px.shape[0])

    def columns(self) -> dict[str, Column]:
        """Return the columns that are present, in the order of the class."""
        present = {name: getattr(self, name) for name in COLUMNS}
        return {name: column for name, column in present.items() if column is not None}

    def rows(self, keep: NDArray[Any]) -> Detections:
        """Return only the rows that a boolean mask or an index array names; the rest stays as it is."""
        return replace(self, **{name: column[keep] for name, column in self.columns().items()})

    @classmethod
    def none(cls, columns: tuple[str, ...] = ("y_px", "x_px", "score")) -> Detections:
        """Return an empty table with these columns."""
        empty: dict[str, Any] = {name: np.empty(0, np.float32) for name in columns}
        return cls(**empty)


COLUMNS: tuple[str, ...] = tuple(f.name for f in fields(Detections) if f.name not in ("labels", "field", "notes"))
"""Names a detection column can have, in the order in which files list them."""


@dataclass(frozen=True, slots=True, eq=False)
class Tracks:
    """The detections of one frame and the track each belongs to."""

    detections: Detections
    track_id: NDArray[np.int64]
    """(N,), one number per row of `detections`, unique within a run."""
    parent_id: NDArray[np.int64] | None = None
    """(N,), the track that divided into this one, 0: none that is known so far. A linker may learn of a division some
    frames after it, so the parent of a track is the largest number of its rows. None: of objects that do not divide."""

    def __post_init__(self) -> None:
        for name in ("track_id", "parent_id"):
            ids = getattr(self, name)
            if ids is not None and (ids.shape != (len(self.detections),) or ids.dtype != np.int64):
                raise ValueError(
                    f"{name} must be int64 of shape ({len(self.detections)},), got {ids.dtype} of shape {ids.shape}"
                )

    def __len__(self) -> int:
        return len(self.detections)
