"""One frame becomes a trained model: checks the frame and the box, picks the method, signs the card."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from oneframe.export.trained import TrainedModel
from oneframe.runtime.model import check_pixels
from oneframe.trainer.crops import Box
from oneframe.trainer.lodestar import LodestarSettings, train_lodestar
from oneframe.trainer.loop import Progress

METHODS = ("lodestar",)


def train(
    image: NDArray[Any],
    *,
    method: str = "lodestar",
    box: Box | tuple[int, int, int, int] | None = None,
    seed: int = 0,
    steps: int | None = None,
    pixel_size_um: float | None = None,
    source: str = "",
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
) -> TrainedModel:
    """Train on one frame.

    Parameters
    ----------
    image : (H, W)
        The snapped frame, camera pixels.
    method : str
        `lodestar`.
    box : Box or (x, y, width, height), optional
        Where the one particle to learn is, whole pixels; None takes the whole image.
    seed : int
        Same seed, same frame, same model.
    steps : int, optional
        Gradient steps in place of the method's default.
    pixel_size_um : float, optional
        Edge of a pixel in the sample, micrometres; goes into the card.
    source : str
        Name of the file the frame came from; goes into the card.

    Raises
    ------
    ValueError
        If frame, box or settings cannot be trained on.
    ConvergenceError
        If the network did not learn to locate the particle.
    TrainingCancelled
        If `cancel` was set.
    """
    if method not in METHODS:
        raise ValueError(f"expected a method among {', '.join(METHODS)}, got {method!r}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    _check_image(image)
    if box is None:
        box = (0, 0, image.shape[1], image.shape[0])
    if not isinstance(box, Box):
        box = Box(*box)
    box.check_within(*image.shape)
    settings = LodestarSettings() if steps is None else LodestarSettings(n_steps=steps)
    trained = train_lodestar(image, [box], seed=seed, settings=settings, on_progress=on_progress, cancel=cancel)
    card = replace(trained.card, pixel_size_um=pixel_size_um, crop=_crop_record(image, box, source))
    return replace(trained, card=card)


def _check_image(image: NDArray[Any]) -> None:
    """Refuse what cannot be a frame of one plane."""
    if image.ndim != 2:
        colour = "; convert colour to grey first" if image.ndim == 3 and image.shape[-1] in (3, 4) else ""
        raise ValueError(f"expected one plane (H, W), got shape {image.shape}{colour}")
    if image.dtype.name not in ("uint8", "uint16", "float32"):
        raise ValueError(
            f"expected uint8, uint16 or float32 camera pixels, got {image.dtype}; convert the frame, then snap and run "
            "with the same kind"
        )
    if image.size == 0:
        raise ValueError("expected an image, got an empty one")
    check_pixels(image)


def _crop_record(image: NDArray[Any], box: Box, source: str) -> dict[str, Any]:
    """Return what the card keeps of the crop: place, hash and a thumbnail."""
    crop = np.ascontiguousarray(box.cut(image))
    low, high = float(crop.min()), float(crop.max())
    grey = np.rint(255 * (crop.astype(np.float32) - low) / max(high - low, 1e-9)).astype(np.uint8)
    shrink = 64 / max(grey.shape)
    if shrink < 1:
        grey = cv2.resize(grey, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA).astype(np.uint8)
    png = cv2.imencode(".png", grey)[1].tobytes()
    return {
        "file": source,
        "frame_shape": list(image.shape),
        "box_xywh_px": [box.x_px, box.y_px, box.width_px, box.height_px],
        "sha256": hashlib.sha256(crop.tobytes()).hexdigest(),
        "thumbnail_png_base64": base64.b64encode(png).decode("ascii"),
    }
