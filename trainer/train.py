"""One frame becomes a trained model: checks the frame and the box, picks the method, signs the card."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.psf import GaussianPsf
from oneframe.export.trained import TrainedModel
from oneframe.runtime.field_reader import HologramSettings
from oneframe.runtime.model import check_pixels
from oneframe.trainer.annotations import Annotations
from oneframe.trainer.boxes import box_warnings, propose_box
from oneframe.trainer.cellulus import KNOWN_OF_CELLS, CellFrame, train_cellulus
from oneframe.trainer.cellulus_network import CellulusSettings
from oneframe.trainer.cellulus_paper import PaperSettings
from oneframe.trainer.cellulus_paper_training import KNOWN_OF_PAPER, PaperFrame, train_cellulus_paper
from oneframe.trainer.crops import Box
from oneframe.trainer.emitter_frame import EmitterFrame
from oneframe.trainer.hologram import train_hologram
from oneframe.trainer.hologram_network import HologramTraining
from oneframe.trainer.lodestar import train_lodestar
from oneframe.trainer.lodestar_network import PRESETS, LodestarSettings
from oneframe.trainer.loop import Progress
from oneframe.trainer.shot import KNOWN_OF_FRAME, train_shot
from oneframe.trainer.shot_network import ShotSettings
from oneframe.trainer.supported_cells import train_supported_cells

Settings = TypeVar("Settings", ShotSettings, CellulusSettings, PaperSettings)

METHODS = ("lodestar", "shot", "cellulus")
_OF_WHOLE_FRAME = ("shot", "cellulus")


OnFrame = Callable[[EmitterFrame], None] | Callable[[CellFrame], None] | Callable[[PaperFrame], None]

Boxes = Box | tuple[int, int, int, int] | Sequence[Box | tuple[int, int, int, int]]
"""One box or several; a tuple is x, y, width, height."""


def train(
    image: NDArray[Any],
    *,
    method: str = "lodestar",
    box: Boxes | Literal["auto"] | None = None,
    seed: int = 0,
    steps: int | None = None,
    preset: str = "default",
    pixel_size_um: float | None = None,
    hologram: HologramSettings | None = None,
    reference: NDArray[Any] | None = None,
    background: str | None = None,
    psf: GaussianPsf | None = None,
    annotations: Annotations | None = None,
    on_frame: OnFrame | None = None,
    source: str = "",
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
    **changed: Any,
) -> TrainedModel:
    """Train on one frame.

    Parameters
    ----------
    image : (H, W)
        The snapped frame, camera pixels; (2, H, W) where a hologram comes as Re and Im. For `shot` also a short stack
        (T, H, W).
    method : str
        `lodestar`: particles that look alike, from one of them; `shot`: single molecules, however dense; `cellulus`:
        cells, as a label image.
    box : Box, (x, y, width, height), a sequence of these, or "auto", optional
        Where the one particle to learn is, whole pixels; several boxes show several particles of one kind. "auto" takes
        the clearest isolated particle of the frame, None the whole image.
    seed : int
        Same seed, same frame, same model.
    steps : int, optional
        Gradient steps in place of the method's default.
    preset : str
        `default`, or `paper`: network, loss and schedule of the paper.
    pixel_size_um : float, optional
        Edge of a pixel in the sample, micrometres; goes into the card.
    hologram : HologramSettings, optional
        What the instrument is, if the frame is a hologram: the model then gives z and polarizability too. One box, or
        "auto", or None for the strongest particle.
    reference, background : optional
        Of a hologram, as for `FieldReader`.
    psf : GaussianPsf, optional
        Of `shot`: a calibration of the point spread function, with which the model can give z.
    annotations : Annotations, optional
        Of `cellulus`: a few cells of the frame as a person marked them, see `read_annotations`.
    on_frame : callable, optional
        Of `shot` and `cellulus`: told what the frame revealed, before the training.
    source : str
        Name of the file the frame came from; goes into the card.
    **changed
        Other settings of the method by name, see `LodestarSettings`, `HologramTraining` for holograms, `ShotSettings`,
        `CellulusSettings`, `PaperSettings` for cells with the preset `paper`; also what `read_emitter_frame` and
        `read_cell_frame` need not read off the frame.

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
    if preset not in PRESETS:
        raise ValueError(f"expected a preset among {', '.join(PRESETS)}, got {preset!r}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    changed = {name: value for name, value in changed.items() if value is not None}
    if steps is not None:
        changed["n_steps"] = steps
    if method in _OF_WHOLE_FRAME:
        foreign: dict[str, Any] = {"box": box, "hologram": hologram, "reference": reference, "background": background}
        foreign |= {"annotations": annotations} if method == "shot" else {"psf": psf}
        for name, value in foreign.items():
            if value is not None:
                raise ValueError(
                    f"expected no {name} with {method}, got one; it learns from the whole frame: leave it out"
                )
        how: dict[str, Any] = {
            "pixel_size_um": pixel_size_um, "seed": seed, "on_frame": on_frame, "on_progress": on_progress,
            "cancel": cancel,
        }  # fmt: skip
        if method == "shot":
            if preset != "default":
                raise ValueError(f"expected the default preset for shot, got {preset!r}; leave it out")
            trained = _train_shot(image, changed, psf=psf, **how)
        elif preset == "default":
            trained = _train_cellulus(image, changed, annotations=annotations, **how)
        else:
            if annotations is not None:
                raise ValueError("expected no annotations with the preset paper, got some; leave one of them out")
            trained = _train_paper(image, changed, **how)
        snapped = image if image.ndim == 2 else image[-1]
        crop = _crop_record(snapped, [Box(0, 0, snapped.shape[1], snapped.shape[0])], source)
        return replace(trained, card=replace(trained.card, crop=crop))
    if psf is not None:
        raise ValueError(f"expected a point spread function with shot only, got one with {method}; leave it out")
    if annotations is not None:
        raise ValueError(f"expected annotations with cellulus only, got some with {method}; leave them out")
    _check_image(image, n_planes=2 if hologram is not None and hologram.kind == "field" else 1)
    kind = LodestarSettings if hologram is None else HologramTraining
    unknown = changed.keys() - {field.name for field in fields(kind)}
    if unknown:
        raise ValueError(f"expected settings of {kind.__name__}, got {', '.join(sorted(unknown))}; leave them out")
    if hologram is not None:
        if preset != "default":
            raise ValueError(f"expected the default preset for holograms, got {preset!r}; leave it out")
        trained = train_hologram(
            image,
            _one_box(image, box),
            hologram,
            reference=reference,
            background=background,
            seed=seed,
            training=replace(HologramTraining(), **changed),
            on_progress=on_progress,
            cancel=cancel,
        )
        seen = image if image.ndim == 2 else np.hypot(*image)
        crop = _crop_record(seen, [Box(*trained.card.crop["box_xywh_px"])], source)
        return replace(trained, card=replace(trained.card, crop=crop))
    if reference is not None or background is not None:
        raise ValueError("expected a reference or a background with a hologram only; say which kind: hologram=...")
    boxes = _boxes(image, box)
    warnings = [] if box is None else [text for each in boxes for text in box_warnings(image, each)]
    trained = train_lodestar(
        image,
        boxes,
        seed=seed,
        settings=replace(PRESETS[preset], **changed),
        warnings=warnings,
        on_progress=on_progress,
        cancel=cancel,
    )
    card = replace(trained.card, pixel_size_um=pixel_size_um, crop=_crop_record(image, boxes, source))
    return replace(trained, card=card)


def _train_shot(image: NDArray[Any], changed: dict[str, Any], **how: Any) -> TrainedModel:
    """Train on the emitters that a frame, or a short stack, reveals."""
    for plane in image if image.ndim == 3 else (image,):
        _check_image(plane)
    settings, known = _settings_of(ShotSettings(), changed, KNOWN_OF_FRAME)
    return train_shot(image, known=known, settings=settings, **how)


def _train_cellulus(
    image: NDArray[Any], changed: dict[str, Any], *, annotations: Annotations | None, **how: Any
) -> TrainedModel:
    """Train on the cells of a frame."""
    _check_image(image)
    settings, known = _settings_of(CellulusSettings(), changed, KNOWN_OF_CELLS)
    if annotations is not None:
        return train_supported_cells(image, annotations, settings=settings, **known, **how)
    return train_cellulus(image, settings=settings, **known, **how)


def _train_paper(image: NDArray[Any], changed: dict[str, Any], **how: Any) -> TrainedModel:
    """Train on the cells of a frame as published."""
    _check_image(image)
    settings, known = _settings_of(PaperSettings(), changed, KNOWN_OF_PAPER)
    return train_cellulus_paper(image, settings=settings, **known, **how)


def _settings_of(default: Settings, changed: dict[str, Any], known: frozenset[str]) -> tuple[Settings, dict[str, Any]]:
    """Return the settings with what was changed, and what is known of the frame.

    Raises
    ------
    ValueError
        If a name is neither.
    """
    own = {field.name for field in fields(default)}
    unknown = changed.keys() - own - known
    if unknown:
        kind = type(default).__name__
        raise ValueError(f"expected settings of {kind}, got {', '.join(sorted(unknown))}; leave them out")
    settings = replace(default, **{name: value for name, value in changed.items() if name in own})
    return settings, {name: value for name, value in changed.items() if name not in own}


def _boxes(image: NDArray[Any], box: Boxes | Literal["auto"] | None) -> list[Box]:
    """Return the boxes that were asked for, each within the image."""
    if box is None:
        boxes = [Box(0, 0, image.shape[1], image.shape[0])]
    elif isinstance(box, str):
        if box != "auto":
            raise ValueError(f'expected boxes or "auto", got {box!r}')
        boxes = [propose_box(image)]
    elif isinstance(box, Box):
        boxes = [box]
    else:
        several = [box] if box and isinstance(box[0], int) else box
        boxes = [each if isinstance(each, Box) else Box(*each) for each in several]  # type: ignore[misc]
    if not boxes:
        raise ValueError('expected at least one box, got none; give boxes, "auto" or None')
    for each in boxes:
        each.check_within(*image.shape)
    return boxes


def _one_box(image: NDArray[Any], box: Boxes | Literal["auto"] | None) -> Box | Literal["auto"] | None:
    """Return the one box of a hologram, or what stands for it."""
    if box is None or box == "auto":
        return "auto" if box else None
    boxes = _boxes(image[0] if image.ndim == 3 else image, box)
    if len(boxes) > 1:
        raise ValueError(f"expected one box in a hologram, got {len(boxes)}; the other particles are found without")
    return boxes[0]


def _check_image(image: NDArray[Any], *, n_planes: int = 1) -> None:
    """Refuse what cannot be a frame of so many planes."""
    if n_planes > 1 and (image.ndim != 3 or len(image) != n_planes):
        raise ValueError(f"expected {n_planes} planes ({n_planes}, H, W), got shape {image.shape}; snap the field anew")
    if n_planes == 1 and image.ndim != 2:
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


def _crop_record(image: NDArray[Any], boxes: Sequence[Box], source: str) -> dict[str, Any]:
    """Return what the card keeps of the crops: their places, hash and thumbnail of the first."""
    box = boxes[0]
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
        "more_boxes_xywh_px": [[more.x_px, more.y_px, more.width_px, more.height_px] for more in boxes[1:]],
        "sha256": hashlib.sha256(crop.tobytes()).hexdigest(),
        "thumbnail_png_base64": base64.b64encode(png).decode("ascii"),
    }
