"""Cells from one frame and a few annotations: the unsupervised model proposes, a network of one pass learns from both.

The first half is `cellulus`, whose cells become the pseudo labels; the second `supported`. What a person drew also
helps to read the frame: how large the cells are, whether bright or dark, and what makes them stand out.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from oneframe.export.trained import TrainedModel, by_torch
from oneframe.runtime.cell_model import Separation, cells_of
from oneframe.trainer.annotations import Annotations
from oneframe.trainer.cell_proposals import CRITERIA
from oneframe.trainer.cell_scale import WorkingScale, rescaled
from oneframe.trainer.cellulus import CellFrame, labels_of, read_cell_frame, train_cellulus
from oneframe.trainer.cellulus_graph import CellGraph
from oneframe.trainer.cellulus_network import CellulusSettings
from oneframe.trainer.loop import Progress, one_thread
from oneframe.trainer.star_graph import StarGraph, seen_of
from oneframe.trainer.supported import GRID_PX, StarNetwork, SupportedSettings, agreement_of, train_supported

THRESHOLD = 0.4
"""Default probability of a cell's middle."""
_POOR = 0.4
"""Agreement of the cells proposed with those drawn below which other readings of the frame are tried."""
_HEADSTART = 0.1
"""By which another reading of the frame must agree better with what was drawn than the one without it."""
_GOOD = 0.65
"""Overlap with the annotated cells, which were learned from, below which more are asked for."""
_GAIN = 0.03
"""By which the annotated cells, although learned from, must be met better than without them."""
_FAR = 1.4
"""Factor between the diameter read off the frame and that of the drawn cells beyond which the latter counts."""
_STEP_COST = 0.35
"""Time of a step of the second half over one of the first, for the time left."""

Labels = NDArray[np.int32]


def train_supported_cells(
    image: NDArray[Any],
    annotations: Annotations,
    *,
    diameter_px: float | None = None,
    cells: str | None = None,
    foreground: str | None = None,
    separate: str | None = None,
    pixel_size_um: float | None = None,
    seed: int = 0,
    settings: CellulusSettings,
    on_frame: Callable[[CellFrame], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
) -> TrainedModel:
    """Train on one frame (H, W) of cells, a few of which are annotated.

    Parameters
    ----------
    annotations : Annotations
        Of this frame.
    settings : CellulusSettings
        Of the first half; the second has proportionally more steps, which are quicker.
    diameter_px, cells, foreground, on_frame : optional
        As for `train_cellulus`; by default as the drawn cells tell, where they contradict what the frame tells.
    separate : str, optional
        As for `train_cellulus`, of the pseudo labels; `stars`: the network of annotated cells is used even where it
        meets them hardly better than the unsupervised model, which otherwise stays then: where that is right, outlines
        learned from a few cells are worse.

    Raises
    ------
    ValueError
        If no cells are seen, the annotations are of another frame, or a click hits no cell.
    TrainingCancelled
        If `cancel` was set.
    """
    if annotations.labels.shape != image.shape:
        raise ValueError(
            f"expected annotations of a frame of {image.shape}, got {annotations.labels.shape}; annotate the frame "
            "that is trained on"
        )
    of_stars = SupportedSettings()
    of_stars = replace(of_stars, n_steps=math.ceil(of_stars.n_steps * settings.n_steps / CellulusSettings().n_steps))
    first, second = _both(settings.n_steps, of_stars.n_steps, on_progress)
    known = _told(image, annotations.labels, {"diameter_px": diameter_px, "cells": cells, "foreground": foreground})
    alone = train_cellulus(
        image,
        **known,
        separate=None if separate == "stars" else separate,
        pixel_size_um=pixel_size_um,
        seed=seed,
        settings=settings,
        on_frame=on_frame,
        on_progress=first,
        cancel=cancel,
    )
    pseudo = _cells(alone, image)
    labels = annotations.on(pseudo)
    if not isinstance(alone.graph, CellGraph):
        raise TypeError(f"expected the graph of cellulus, got {type(alone.graph).__name__}; train with cellulus")
    scale = alone.graph.scale
    at_scale = at_working_scale(labels, scale)
    seen, relief = seen_by(alone.graph, image)
    network = train_supported(
        seen,
        at_working_scale(pseudo, scale),
        at_scale,
        settings=of_stars,
        seed=seed,
        on_progress=second,
        cancel=cancel,
    )
    graph = star_graph(
        network, alone.graph, least_relief(alone.graph.least_relief, relief, at_scale[::GRID_PX, ::GRID_PX])
    )
    how = star_separation(graph, Separation.from_card(alone.card.separation).least_area_px)
    card = replace(
        alone.card,
        maps=graph.maps,
        threshold=THRESHOLD,
        separation=how.to_card(),
        settings={**alone.card.settings, "supported": asdict(of_stars)},
    )
    supported = replace(alone, graph=graph, card=card)
    found = _cells(supported, image)
    gain = agreement_of(found, labels) - agreement_of(pseudo, labels)
    denied = bool((labels[pseudo > 0] < 0).any())
    if separate != "stars" and not gain >= _GAIN and not denied:  # without annotated cells it is NaN
        return replace(alone, card=replace(alone.card, quality=_quality(alone, found, pseudo, labels, kept=False)))
    return replace(supported, card=replace(card, quality=_quality(alone, found, pseudo, labels, kept=True)))


def star_graph(network: StarNetwork, unsupervised: CellGraph, least_relief: float) -> StarGraph:
    """Return the graph of a network that sees what an unsupervised one sees."""
    return StarGraph(
        network,
        sign=unsupervised.contrast.sign,
        scale=unsupervised.scale,
        floor=unsupervised.floor,
        least_relief=least_relief,
    ).eval()


def star_separation(graph: StarGraph, least_area_px: float) -> Separation:
    """Return how the maps of a graph become cells."""
    return Separation("stars", least_area_px, grid_px=graph.grid_px, origin_px=graph.origin_px)


@torch.no_grad()
def seen_by(graph: CellGraph, image: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the normalised contrast of a frame (H, W) at the working scale of a graph, (h, w), and its relief.

    The relief, counts, is that of every second pixel.
    """
    pixels = torch.from_numpy(rescaled(image, graph.scale))[None, None]
    height, width = pixels.shape[-2:]
    squares, relief = seen_of(pixels, graph.contrast, graph.floor)
    seen = F.pixel_shuffle(squares, GRID_PX)[0, 0, :height, :width]
    return seen.contiguous().numpy(), relief[0, 0, : -(-height // GRID_PX), : -(-width // GRID_PX)].numpy()


def at_working_scale(labels: Labels, scale: WorkingScale) -> Labels:
    """Return labels (H, W) at the scale of the network, by the nearest pixel."""
    index = []
    for side, own in zip(labels.shape, scale.shape(*labels.shape), strict=True):
        index.append(np.rint((np.arange(own) + 0.5) / scale.factor - 0.5).astype(np.intp).clip(0, side - 1))
    return np.ascontiguousarray(labels[index[0][:, None], index[1]])


def _told(image: NDArray[Any], drawn: Labels, given: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of the cells, by the drawn ones where they contradict the frame."""
    if not (drawn > 0).any():
        return given
    known = dict(given)
    areas = np.bincount(drawn[drawn > 0])
    drawn_px = 2 * math.sqrt(float(np.median(areas[areas > 0])) / math.pi)
    readings: list[tuple[float, dict[str, Any]]] = []
    try:
        frame = read_cell_frame(image, **known)
    except ValueError:  # nothing of a cell's size is seen: what was drawn may help
        known["diameter_px"] = given["diameter_px"] or drawn_px
    else:
        if given["diameter_px"] is None and not 1 / _FAR < drawn_px / frame.diameter_px < _FAR:
            known["diameter_px"] = drawn_px
        else:
            readings.append((_agreement(frame, drawn) + _HEADSTART, known))
            if readings[0][0] > _POOR + _HEADSTART:
                return known
    for sign in ("bright", "dark") if given["cells"] is None else (given["cells"],):
        for criterion in CRITERIA if given["foreground"] is None else (given["foreground"],):
            other = {**known, "cells": sign, "foreground": criterion}
            try:
                readings.append((_agreement(read_cell_frame(image, **other), drawn), other))
            except ValueError:
                continue
    return max(readings, key=lambda each: each[0])[1] if readings else given


def _agreement(frame: CellFrame, drawn: Labels) -> float:
    return agreement_of(frame.proposal.labels, at_working_scale(drawn, frame.scale))


def _cells(trained: TrainedModel, image: NDArray[Any]) -> Labels:
    """Return the cells (H, W) that a model finds in its frame."""
    card = trained.card
    with one_thread():
        maps = by_torch(trained.graph, card.maps, image, card.threshold)
    return labels_of(cells_of(maps, image, Separation.from_card(card.separation)), image.shape)


def least_relief(usual: float, relief: NDArray[np.float32], annotations: Labels) -> float:
    """Return the least relief of a cell, counts: at most half that of any annotated one, which is not lost by it."""
    numbers = np.unique(annotations[annotations > 0])
    return min([usual, *(0.5 * float(np.percentile(relief[annotations == k], 75)) for k in numbers)])


def _quality(alone: TrainedModel, found: Labels, pseudo: Labels, labels: Labels, *, kept: bool) -> dict[str, Any]:
    """Return the quality card: the annotated cells before and after, and whether their network is kept."""
    n = len(np.unique(labels[labels > 0]))
    quality = {**alone.card.quality, "annotated_cells": n}
    if kept:
        area = np.bincount(found.ravel())[1:]
        quality |= {
            "cells_on_frame": int(found.max(initial=0)),
            "median_area_px": float(np.median(area)) if len(area) else 0.0,
            "separate": "stars",
        }
    if not n:
        return quality | {"annotations": "no annotated cell, known background only"}
    before, after = agreement_of(pseudo, labels), agreement_of(found, labels)
    quality |= {"annotated_iou_before": before, "annotated_iou": after if kept else before}
    cells = "1 annotated cell" if n == 1 else f"{n} annotated cells"
    told = f"{cells}: without annotation {before:.2f} overlap with the cells found, with it {after:.2f}"
    if not kept:
        return quality | {
            "annotations": f"{told}; the model without annotation is as good and stays (--separate stars)"
        }
    total, good = quality["cells_on_frame"], after >= _GOOD
    return quality | {
        "annotations": f"{told} (intersection over union, of cells that were learned from)",
        "advice": "green" if good else "amber",
        "advice_sentence": f"Ready: {total} cells; look at some that were not annotated, and annotate those that are "
        "wrong."
        if good
        else f"{total} cells, but the annotated ones are met with {after:.2f} only: annotate a few more, of all kinds.",
    }


def _both(
    n_first: int, n_second: int, on_progress: Callable[[Progress], None] | None
) -> tuple[Callable[[Progress], None] | None, Callable[[Progress], None] | None]:
    """Return what hears of the first and the second half and tells of the whole."""
    if on_progress is None:
        return None, None
    n_steps = n_first + n_second
    step_s = [math.nan]

    def first(part: Progress) -> None:
        left = part.n_steps - part.step
        if left and math.isfinite(part.eta_s):
            step_s[0] = part.eta_s / left
        eta_s = part.eta_s + _STEP_COST * step_s[0] * n_second
        done = min(n_first, part.step)
        on_progress(replace(part, step=done, n_steps=n_steps, eta_s=eta_s, note="cells without annotation"))

    def second(part: Progress) -> None:
        on_progress(replace(part, step=n_first + part.step, n_steps=n_steps, note="with annotated cells"))

    return first, second
