"""The graph of a model file, ready to run in ONNX Runtime: pixels in, `Detections` out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from oneframe.runtime.card import METADATA_KEY, ModelCard
from oneframe.runtime.detections import Detections

SMALLEST_FRAME_PX = 8


class ModelFileError(Exception):
    """A model file that cannot be used; the text says why and what to do."""


class OnnxModel:
    """A model file, loaded and ready. Made by `load_model` or `load_graph`."""

    def __init__(
        self,
        session: ort.InferenceSession,
        card: ModelCard,
        threshold: float | None,
        *,
        on_one_thread: Callable[[], ort.InferenceSession] | None = None,
    ) -> None:
        self._session = session
        self._on_one_thread = on_one_thread
        self.engine: Any = session
        """What runs the graph: a `Session` of `runtime/backends.py`, ONNX Runtime in fp32 unless it is replaced."""
        self._card = card
        self.threshold = card.threshold if threshold is None else threshold

    @property
    def card(self) -> ModelCard:
        """What the model says of itself."""
        return self._card

    @property
    def metadata(self) -> dict[str, str]:
        """All metadata of the model file."""
        return metadata(self._session)

    @property
    def threshold(self) -> float:
        """Lowest score that is reported, 0..1; may be changed between frames."""
        return float(self._threshold)

    @threshold.setter
    def threshold(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise ValueError(f"threshold must be a score from 0 to 1, got {value}")
        self._threshold = np.array(value, np.float32)

    def detect(self, image: NDArray[Any]) -> Detections:
        """Find the objects of one image.

        Parameters
        ----------
        image : (H, W) or (C, H, W)
            Camera pixels. Another dtype than the model's is taken where every value survives the conversion.

        Raises
        ------
        ValueError
            If the number of channels, the size or the values do not fit the model, or nothing was imaged.
        """
        return self.run(self.as_input(image))

    def run(self, pixels: NDArray[Any]) -> Detections:
        """Find the objects of an image that is known to be what the graph takes; as `detect`, without its checks."""
        return Detections(**self._outputs(pixels))

    def twins(self) -> list[OnnxModel]:
        """Return models that find the same bits, one for each thread that this one may use, each on one thread.

        None where another engine runs the graph: OpenVINO's takes one frame at a time, and its frames are counted.
        """
        if self.engine is not self._session:
            return []
        n_threads = self._session.get_session_options().intra_op_num_threads or os.cpu_count() or 1
        if n_threads < 2 or self._on_one_thread is None:
            return []
        session = self._on_one_thread()
        return [OnnxModel(session, self._card, self.threshold) for _ in range(n_threads)]

    def maps(self, image: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Return what a graph with `card.maps` tells of every pixel, float32; raises as `detect`."""
        return self.run_maps(self.as_input(image))

    def run_maps(self, pixels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Return the maps of an image that is known to be what the graph takes; as `maps`, without its checks."""
        return self._outputs(pixels)

    def _outputs(self, pixels: NDArray[Any]) -> dict[str, Any]:
        names = self._card.outputs
        values = self.engine.run(list(names), {"image": pixels, "threshold": self._threshold})
        return dict(zip(names, values, strict=True))

    def as_input(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return the image as the graph takes it, (H, W) where that is one plane; raises as `detect`."""
        card = self._card
        if image.ndim == 3 and card.n_channels == 1 and image.shape[0] == 1:
            image = image[0]
        n_channels = 1 if image.ndim == 2 else image.shape[0] if image.ndim == 3 else 0
        if n_channels != card.n_channels:
            wanted = "one plane (H, W)" if card.n_channels == 1 else f"{card.n_channels} planes (C, H, W)"
            hint = "; convert colour to grey" if image.ndim == 3 and image.shape[-1] in (3, 4) else ""
            raise ValueError(f"the model takes {wanted}, got shape {image.shape}{hint}; pass one plane at a time")
        if min(image.shape[-2:]) < SMALLEST_FRAME_PX:
            raise ValueError(
                f"the frame must be at least {SMALLEST_FRAME_PX} x {SMALLEST_FRAME_PX} px, got {image.shape}"
            )
        check_pixels(image)
        return _converted(image, np.dtype(card.input_dtype))


class NothingImagedError(ValueError):
    """All pixels of an image are equal."""


def check_pixels(image: NDArray[Any]) -> None:
    """Refuse an image that shows nothing or holds values that are no light; quick where it is fine.

    Raises
    ------
    NothingImagedError
        If all pixels are equal.
    ValueError
        If a pixel is NaN or infinite.
    """
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        n_bad = int(image.size - np.isfinite(image).sum())
        raise ValueError(f"expected finite pixels, got {n_bad} that are NaN or infinite; mend the image first")
    first = image.flat[0]
    if (image[..., ::16, ::16] == first).all() and (image == first).all():
        raise NothingImagedError(f"expected an image, got the constant value {first}; is the shutter open?")


def _converted(image: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the image as C-ordered `dtype` if no value is lost."""
    if image.dtype != dtype and not np.can_cast(image.dtype, dtype):
        kept = image.astype(dtype) if _in_range(image, dtype) else None
        if kept is None or not (kept == image).all():
            raise ValueError(
                f"the model takes {dtype} camera pixels, got {image.dtype} from {image.min():g} to {image.max():g}; "
                "pass the camera's own counts, or train on a frame of this kind"
            )
        image = kept
    return np.ascontiguousarray(image, dtype)


def _in_range(image: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Return whether the extremes fit into `dtype`; float targets take everything."""
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return bool(image.min() >= limits.min and image.max() <= limits.max)


def load_graph(
    path: str | os.PathLike[str], *, threshold: float | None = None, threads: int | None = None
) -> OnnxModel:
    """Load the graph of a model file, whatever its input; `load_model` gives what takes camera frames.

    Parameters
    ----------
    path : path
        An `.onnx` file made by `oneframe train`.
    threshold : float, optional
        Lowest score to report, 0..1, in place of the card's.
    threads : int, optional
        CPU threads for one frame; by default what ONNX Runtime chooses.

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, not ONNX, or not made by oneframe.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"expected a model file, found none at {path}; train one with: oneframe train")
    file = path.read_bytes()
    session = open_session(file, name=str(path), threads=threads)
    text = metadata(session).get(METADATA_KEY)
    if text is None:
        raise ModelFileError(
            f"{path} is an ONNX file without a oneframe model card; expected a file made by: oneframe train"
        )
    try:
        card = ModelCard.from_json(text)
    except ValueError as exc:
        raise ModelFileError(f"{path}: {exc}") from exc
    outputs = {output.name for output in session.get_outputs()}
    if not set(card.outputs) <= outputs:
        raise ModelFileError(f"{path} promises {card.outputs}, its graph gives {sorted(outputs)}; export it again")
    return OnnxModel(session, card, threshold, on_one_thread=lambda: open_session(file, name=str(path), threads=1))


def open_session(model: bytes, *, name: str, threads: int | None = None) -> ort.InferenceSession:
    """Return an ONNX Runtime session on the CPU for the bytes of a model file.

    Raises
    ------
    ModelFileError
        If the bytes are no complete ONNX model.
    """
    options = ort.SessionOptions()
    # threads that wait by spinning take the core from camera, refinement and sinks
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # the overridable threshold is meant to be one
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime has no common base class for its errors
        raise ModelFileError(
            f"{name} is not a complete ONNX model ({len(model)} bytes); copy it again or export it again"
        ) from exc


def metadata(session: ort.InferenceSession) -> dict[str, str]:
    """Return the metadata of the model file."""
    return dict(session.get_modelmeta().custom_metadata_map)
