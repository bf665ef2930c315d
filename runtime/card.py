"""What a model file says about itself: the `ModelCard`, JSON in the ONNX metadata under the key `oneframe`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from oneframe.runtime.detections import COLUMNS

FORMAT_VERSION = 1
"""Raised when a reader of the old version would misread a new file."""

METADATA_KEY = "oneframe"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Everything a reader of a model file must know; written at export, read without the `onnx` package.

    Raises
    ------
    ValueError
        If a field contradicts the file format.
    """

    method: str
    """`lodestar`, `shot` or `cellulus`."""
    input_dtype: str
    """numpy name of the camera pixels the graph takes, such as `uint16`."""
    n_channels: int
    """1: the graph takes (H, W); more: (C, H, W)."""
    columns: tuple[str, ...]
    """Columns of `Detections` that the model gives; without `maps` they are the named outputs of the graph."""
    threshold: float
    """Default of the graph's `threshold` input: lowest score that is reported, 0..1."""
    object_diameter_px: float
    """Size of what it was trained on, pixels; links, rings and tiles take their scale from it."""
    normalisation: dict[str, float] = field(default_factory=dict)
    """`offset` and `scale` inside the graph: (pixels - offset) / scale."""
    pixel_size_um: float | None = None
    optics: dict[str, float] = field(default_factory=dict)
    """`wavelength_um`, `medium_index` and the like, where the method needs them."""
    hologram: dict[str, Any] = field(default_factory=dict)
    """How a camera frame becomes the graph's input: `HologramSettings`, `pixels_per_cell` and `planes_um` of
    `FocalPlanes`; empty where the graph takes camera pixels."""
    maps: tuple[str, ...] = ()
    """Named outputs of a graph that tells of every pixel, float32; the runtime makes rows of them. Each is (H, W), or
    lies on the coarser grid that `separation` gives, with a leading axis where there is more to tell: (R, h, w)."""
    separation: dict[str, Any] = field(default_factory=dict)
    """How the maps become cells: `Separation` in `runtime/cell_model.py`."""
    trained_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """What the training covered, as (lowest, highest) with the unit in the name."""
    crop: dict[str, Any] = field(default_factory=dict)
    """What it learned from: `file`, `sha256` of the pixels, `box_xywh_px`, `thumbnail_png_base64`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Training settings, seed included."""
    quality: dict[str, Any] = field(default_factory=dict)
    """What the training measured, unit in the name."""
    speed: dict[str, Any] = field(default_factory=dict)
    """Inference time measured at export, unit in the name."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of oneframe and the libraries that made the file."""
    created: str = ""
    """ISO 8601, UTC."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        unknown = [name for name in self.columns if name not in COLUMNS]
        if unknown or not {"y_px", "x_px", "score"} <= set(self.columns):
            raise ValueError(f"columns must hold y_px, x_px, score and be among {COLUMNS}, got {self.columns}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be a score from 0 to 1, got {self.threshold}")
        if self.n_channels < 1 or self.n_channels != int(self.n_channels):
            raise ValueError(f"n_channels must be a whole number of 1 or more, got {self.n_channels}")
        if self.pixel_size_um is not None and not (math.isfinite(self.pixel_size_um) and self.pixel_size_um > 0):
            raise ValueError(f"pixel_size_um must be above 0 micrometres or None, got {self.pixel_size_um}")
        if not (math.isfinite(self.object_diameter_px) and self.object_diameter_px > 0):
            raise ValueError(f"object_diameter_px must be above 0, got {self.object_diameter_px}")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Named outputs of the graph, in their order."""
        return self.maps or self.columns

    @property
    def ring_diameter_px(self) -> float:
        """Diameter of the ring that marks an object, with some air round it."""
        return 1.5 * self.object_diameter_px

    def to_json(self) -> str:
        """Return the card as the text that stands in the model file."""
        return json.dumps(asdict(self), allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Read a card.

        Raises
        ------
        ValueError
            If the text is no card, or of a newer format than this reader knows.
        """
        try:
            values = json.loads(text)
            version = int(values["format_version"])
        except (ValueError, KeyError, TypeError) as exc:
            raise ValueError("expected a oneframe model card (JSON with format_version), got something else") from exc
        if version != FORMAT_VERSION:
            raise ValueError(
                f"the model card has format {version}, this oneframe reads {FORMAT_VERSION}; "
                + ("update oneframe" if version > FORMAT_VERSION else "train or export the model again")
            )
        known = {f.name for f in fields(cls)}
        missing = {"method", "input_dtype", "n_channels", "columns", "threshold", "object_diameter_px"} - values.keys()
        if missing or values.keys() - known:
            wrong = sorted(missing) or sorted(values.keys() - known)
            raise ValueError(
                f"the model card is damaged: {', '.join(wrong)} missing or unknown; export the model again"
            )
        try:
            ranges = values.get("trained_ranges", {})
            values["trained_ranges"] = {key: (float(low), float(high)) for key, (low, high) in ranges.items()}
            for name in ("columns", "maps"):
                values[name] = tuple(values.get(name, ()))
            return cls(**values)
        except (TypeError, AttributeError) as exc:
            raise ValueError(f"the model card is damaged: {exc}; export the model again") from exc
