"""The self-test inside a model file: a real image and what the model found in it when it was exported."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.detections import COLUMNS, Detections
from oneframe.runtime.load import ready
from oneframe.runtime.model import ModelFileError, OnnxModel, load_graph

METADATA_KEY = "oneframe.selftest"

TOLERANCE_PX = 0.01
"""Largest difference of a position that the self-test allows; other CPUs round differently by about 1e-4 px."""
CELL_TOLERANCE_PX = 0.3
"""Likewise of a cell, whose centroid moves when rounding gives a pixel at its outline to the background."""


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """How a model file did on its self-test."""

    n_expected: int
    n_found: int
    worst_px: float
    """Largest difference of a position, pixels; infinite if the counts differ."""
    worst_score: float
    """Largest difference of a score."""
    tolerance_px: float = TOLERANCE_PX
    """Largest difference of a position that is allowed."""

    @property
    def passed(self) -> bool:
        """True if the file gives here what it gave at export."""
        return self.worst_px <= self.tolerance_px


def repeated(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Return an image (..., h, w) side by side with itself, as large as a frame, (..., height, width)."""
    repeats = [1] * (image.ndim - 2) + [-(-height // image.shape[-2]), -(-width // image.shape[-1])]
    return np.ascontiguousarray(np.tile(image, repeats)[..., :height, :width])


def encode_selftest(image: NDArray[Any], expected: Detections) -> str:
    """Return the text that stands in the model file."""
    record = {
        "dtype": image.dtype.str,
        "shape": image.shape,
        "image": base64.b64encode(zlib.compress(np.ascontiguousarray(image).tobytes(), 9)).decode("ascii"),
        "expected": {name: column.tolist() for name, column in expected.columns().items()},
    }
    return json.dumps(record, separators=(",", ":"))


def decode_selftest(text: str) -> tuple[NDArray[Any], Detections]:
    """Return the image and what is expected in it.

    Raises
    ------
    ValueError
        If the text is damaged.
    """
    try:
        record = json.loads(text)
        pixels = zlib.decompress(base64.b64decode(record["image"], validate=True))
        image = np.frombuffer(pixels, np.dtype(record["dtype"])).reshape(record["shape"])
        expected = record["expected"].items()
        columns: dict[str, Any] = {name: np.array(values, np.float32) for name, values in expected if name in COLUMNS}
        return image, Detections(**columns)
    except (KeyError, TypeError, ValueError, zlib.error) as exc:
        raise ValueError("the self-test in the model file is damaged; export the model again") from exc


def compare(expected: Detections, found: Detections, tolerance_px: float = TOLERANCE_PX) -> SelfTestResult:
    """Compare two tables row by row; rows come in the order of the graph, which is fixed."""
    if len(expected) != len(found):
        return SelfTestResult(len(expected), len(found), float("inf"), float("inf"), tolerance_px)
    worst_px = max(_worst(expected.y_px, found.y_px), _worst(expected.x_px, found.x_px))
    return SelfTestResult(len(expected), len(found), worst_px, _worst(expected.score, found.score), tolerance_px)


def _worst(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.abs(a - b).max()) if len(a) else 0.0


def verify_model(path: str) -> tuple[OnnxModel, SelfTestResult]:
    """Load a model file and replay its self-test.

    Raises
    ------
    ModelFileError
        If the file cannot be loaded or has no readable self-test.
    """
    model = load_graph(path)
    text = model.metadata.get(METADATA_KEY)
    if text is None:
        raise ModelFileError(f"{path} has no self-test; export the model again")
    try:
        image, expected = decode_selftest(text)
    except ValueError as exc:
        raise ModelFileError(f"{path}: {exc}") from exc
    tolerance_px = CELL_TOLERANCE_PX if model.card.maps else TOLERANCE_PX
    return model, compare(expected, ready(model).detect(image), tolerance_px)
