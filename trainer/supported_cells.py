"""Cells from one frame and a few annotated cells: these tell how to read the frame, and are learned beside the others.

After Cellulus (Wolf et al., ICCV 2023), section 4.2. Differs from the paper: annotated and proposed cells together
teach the network of offsets (`cellulus`). That of the paper, of probability and rays (`supported`), is there as well.
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
from oneframe.trainer.cell_proposals import contrast_maps
from oneframe.trainer.cell_scale import WorkingScale, rescaled
from oneframe.trainer.cellulus import (
    Annotated,
    CellFrame,
    at_camera_scale,
    cell_readings,
    labels_of,
    met_by,
    most_plausible,
    read_cell_frame,
    train_cellulus,
    with_noise_proposal,
)
from oneframe.trainer.cellulus_graph import CellGraph
from oneframe.trainer.cellulus_network import CellulusSettings
from oneframe.trainer.loop import Progress, one_thread
from oneframe.trainer.star_graph import StarGraph, seen_of
from oneframe.trainer.supported import (
    GRID_PX,
    NO_TRUST,
    StarNetwork,
    SupportedSettings,
    agreement_of,
    supported_sets,
    train_supported,
)

THRESHOLD = 0.4
"""Of stars: default probability of a cell's middle."""
_HEADSTART = 0.1
"""By which another reading of the frame must agree better with what was drawn than the most plausible one."""
_ALIKE = 0.7
"""What stands out less than this share of the faintest annotated cell is hardly one."""
_CHANCE = 0.2
"""If so many proposed cells do so that by chance the annotated ones would all be others less often, they are none."""
_GOOD = 0.65
"""Overlap with the annotated cells, which were learned from, below which more are asked for."""
_ENOUGH = 0.8
"""Overlap with the annotated cells with which nothing is left to be learned from them."""
_FAR = 1.4
"""Factor between the diameter read off the frame and that of the drawn cells beyond which the latter counts."""
_STARS_COST = 0.35
"""Time of a step of stars over one of the offsets, for the time left."""

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

    First without them: a model that meets the annotated cells is the one, unless they say that much of what it finds is
    none. Else one that learns them beside the others is trained and, if that is not enough either, one that learns them
    alone; that which meets them best is returned.

    Parameters
    ----------
    annotations : Annotations
        Of this frame. Clicks name cells that the model without annotation finds.
    diameter_px, cells, foreground, on_frame : optional
        As for `train_cellulus`; by default what agrees with the drawn cells.
    separate : str, optional
        As for `train_cellulus`; `stars`: a network of probability and rays, as in the paper, which learns the cells of
        an unsupervised model and the annotated ones.

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
    told: dict[str, Any] = {
        "diameter_px": diameter_px,
        "cells": cells,
        "foreground": None if foreground == "noise" else foreground,
    }
    seen: list[CellFrame] = []

    def read(reading: CellFrame) -> CellFrame:
        """Return a reading with the foreground that was asked for, and tell it unless it was told before."""
        frame = reading
        if foreground == "noise":
            alike = [each for each in seen if (each.sign, each.scale) == (frame.sign, frame.scale)]
            frame = alike[0] if alike else with_noise_proposal(frame, seed, on_progress=on_progress, cancel=cancel)
        if on_frame is not None and frame.lines() not in [each.lines() for each in seen]:
            on_frame(frame)
        seen.append(frame)
        return frame

    def trained(separate: str | None, frame: CellFrame, hear: Callable[[Progress], None] | None) -> TrainedModel:
        return train_cellulus(
            image,
            separate=separate,
            pixel_size_um=pixel_size_um,
            seed=seed,
            settings=settings,
            frame=frame,
            on_progress=hear,
            cancel=cancel,
        )

    if separate == "stars":
        frame = read(read_annotated_frame(image, annotations.labels, **told))
        of_stars = _as_long(SupportedSettings(), settings)
        first, second = _both(settings.n_steps, of_stars.n_steps, _STARS_COST, on_progress)
        alone = trained(None, frame, first)
        return _with_stars(alone, image, annotations, of_stars, seed, on_progress=second, cancel=cancel)
    without = before = None
    if len(annotations.cell_clicks) or len(annotations.background_clicks) or settings.pseudo_weight:
        plain = read(_plain_frame(image, annotations.labels, **told))
        without = trained(separate, plain, _noted(on_progress, "cells without annotation"))
        before = _cells(without, image)
    frame = read(read_annotated_frame(image, annotations.labels, **told))
    if before is None:
        before = at_camera_scale(frame.proposal.labels, image.shape)
    labels = annotations.on(before)
    enough, weights = 0.0, {settings.pseudo_weight: "with annotated cells"}
    if (labels > 0).any():
        enough, weights = _ENOUGH, weights | {0.0: "annotated cells alone"}
    tried: list[tuple[float, TrainedModel, Labels]] = []

    def is_enough(model: TrainedModel, found: Labels) -> bool:
        tried.append((met_by(found, labels), model, found))
        return tried[-1][0] >= enough

    for weight, note in weights.items():
        supported = with_annotations(frame, labels, weight)
        if not tried and without is not None and weight and not supported.selective and is_enough(without, before):
            break
        model = trained(separate, supported, _noted(on_progress, note))
        if is_enough(model, _cells(model, image)):
            break
    _, model, found = max(tried, key=lambda each: each[0])  # the first of equals
    return _told_quality(model, found, before, labels)


def _noted(hear: Callable[[Progress], None] | None, note: str) -> Callable[[Progress], None] | None:
    return None if hear is None else lambda part: hear(replace(part, note=note))


def _plain_frame(image: NDArray[Any], drawn: Labels, **told: Any) -> CellFrame:
    """Return what the frame reveals by itself or, if that is nothing, with the drawn cells."""
    try:
        return read_cell_frame(image, **told)
    except ValueError:
        if not (drawn > 0).any():
            raise
        return read_annotated_frame(image, drawn, **told)


def read_annotated_frame(
    image: NDArray[Any],
    drawn: Labels,
    *,
    diameter_px: float | None = None,
    cells: str | None = None,
    foreground: str | None = None,
) -> CellFrame:
    """Return what a frame (H, W) reveals of its cells, as it agrees best with drawn ones, above 0 in (H, W).

    Parameters
    ----------
    diameter_px, cells, foreground : optional
        As for `read_cell_frame`, and raises as it does.
    """
    if not (drawn > 0).any():
        return read_cell_frame(image, diameter_px=diameter_px, cells=cells, foreground=foreground)
    areas = np.bincount(drawn[drawn > 0])
    drawn_px = 2 * math.sqrt(float(np.median(areas[areas > 0])) / math.pi)

    def readings(size_px: float | None) -> list[tuple[float, CellFrame]]:
        frames = cell_readings(image, diameter_px=size_px, cells=cells, foreground=foreground)
        usual = most_plausible(frames, image, diameter_known=size_px is not None)
        return [(_agreement(each, drawn) + _HEADSTART * (each is usual), each) for each in frames]

    rated: list[tuple[float, CellFrame]] = []
    try:
        rated = readings(diameter_px)
    except ValueError:  # nothing of a cell's size is seen: what was drawn may help
        if diameter_px is not None:
            raise
    best = max(rated, key=lambda each: each[0], default=None)
    if diameter_px is None and (best is None or not 1 / _FAR < drawn_px / best[1].diameter_px < _FAR):
        best = max(readings(drawn_px), key=lambda each: each[0])
    return best[1]  # type: ignore[index]


def with_annotations(frame: CellFrame, labels: Labels, pseudo_weight: float) -> CellFrame:
    """Return what a frame reveals with annotated cells in place of proposed ones, and without those unlike them.

    Parameters
    ----------
    labels : (H, W) int32
        Camera pixels: annotated cells above 0, 0 unknown, -1 known background.
    pseudo_weight : float
        As in `CellulusSettings`; 0, or proposals that are something else than what was annotated: none of them counts.

    Raises
    ------
    ValueError
        If no cell is left.
    """
    from scipy.ndimage import median

    drawn, pseudo = at_working_scale(labels, frame.scale), frame.proposal.labels
    given = np.unique(drawn[drawn > 0])
    _, contrast, _ = contrast_maps(frame.image, frame.sign)
    least = _ALIKE * float(min(median(contrast, drawn, given), default=0.0))
    stand_out = np.append(0, median(contrast, pseudo, np.arange(1, int(pseudo.max(initial=0)) + 1)))
    fainter = (stand_out[1:] < least).sum() / max(1, len(stand_out) - 1)
    selective = bool((1 - fainter) ** len(given) < _CHANCE)
    if selective:
        pseudo = np.where((stand_out >= least)[pseudo], pseudo, 0).astype(np.int32)
    alone = pseudo_weight == 0 or agreement_of(pseudo, drawn) < NO_TRUST  # NaN where only background is annotated
    sets = supported_sets(np.zeros_like(pseudo) if alone else pseudo, drawn, SupportedSettings())
    first = np.unique(sets.labels[drawn > 0])
    values = np.append(first, np.setdiff1d(sets.labels[sets.labels > 0], first))
    if not len(values):
        raise ValueError(
            "expected a cell among the annotations or what the frame shows, got background only; annotate some cells"
        )
    number = np.zeros(int(values.max()) + 1, np.int32)
    number[values] = np.arange(1, len(values) + 1)
    annotated = Annotated(labels, len(first), sets.sparse if alone else sets.pseudo, least, selective)
    return replace(frame, proposal=replace(frame.proposal, labels=number[sets.labels]), annotated=annotated)


def _with_stars(
    alone: TrainedModel,
    image: NDArray[Any],
    annotations: Annotations,
    settings: SupportedSettings,
    seed: int,
    *,
    on_progress: Callable[[Progress], None] | None,
    cancel: threading.Event | None,
) -> TrainedModel:
    """Return a network of one pass that learned the cells of an unsupervised model and the annotated ones."""
    if not isinstance(alone.graph, CellGraph):
        raise TypeError(f"expected the graph of cellulus, got {type(alone.graph).__name__}; train with cellulus")
    pseudo = _cells(alone, image)
    labels = annotations.on(pseudo)
    scale = alone.graph.scale
    at_scale = at_working_scale(labels, scale)
    seen, relief = seen_by(alone.graph, image)
    network = train_supported(
        seen,
        at_working_scale(pseudo, scale),
        at_scale,
        settings=settings,
        seed=seed,
        on_progress=on_progress,
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
        settings={**alone.card.settings, "separate": "stars", "supported": asdict(settings)},
    )
    stars = replace(alone, graph=graph, card=card)
    found = _cells(stars, image)
    area = np.bincount(found.ravel())[1:]
    quality = card.quality | {
        "cells_on_frame": len(area),
        "median_area_px": float(np.median(area)) if len(area) else 0.0,
        "separate": "stars",
    }
    return _told_quality(replace(stars, card=replace(card, quality=quality)), found, pseudo, labels)


def _as_long(of_stars: SupportedSettings, settings: CellulusSettings) -> SupportedSettings:
    """Return the settings with steps in proportion to those of the offsets."""
    share = settings.n_steps / CellulusSettings().n_steps
    return replace(of_stars, n_steps=math.ceil(of_stars.n_steps * share))


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
    return Separation(
        "stars",
        least_area_px,
        grid_px=graph.grid_px,
        origin_px=graph.origin_px,
        tile_step_px=graph.scale.step_px,
        halo_px=graph.scale.halo_px,
    )


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


def _told_quality(model: TrainedModel, found: Labels, proposed: Labels, labels: Labels) -> TrainedModel:
    """Return the model with a quality card that says how well the annotated cells are met."""
    quality = {**model.card.quality, "annotated_cells": len(np.unique(labels[labels > 0]))}
    n = quality["annotated_cells"]
    if not n:
        quality["annotations"] = "no annotated cell, known background only"
        return replace(model, card=replace(model.card, quality=quality))
    before, after = agreement_of(proposed, labels), agreement_of(found, labels)
    total = quality["cells_on_frame"]
    quality |= {
        "annotated_iou_before": before,
        "annotated_iou": after,
        "annotations": f"{'1 annotated cell' if n == 1 else f'{n} annotated cells'}: {before:.2f} overlap with the "
        f"cells found before they were learned from, {after:.2f} after it (intersection over union)",
    }
    if after < _GOOD:
        quality |= {
            "advice": "amber",
            "advice_sentence": f"{total} cells, but the annotated ones are met with {after:.2f} only: annotate a few "
            "more, of all kinds.",
        }
    elif quality["separate"] == "stars":
        quality |= {
            "advice": "green",
            "advice_sentence": f"Ready: {total} cells; look at some that were not annotated, and annotate those that "
            "are wrong.",
        }
    return replace(model, card=replace(model.card, quality=quality))


def _both(
    n_first: int, n_second: int, cost: float, on_progress: Callable[[Progress], None] | None
) -> tuple[Callable[[Progress], None] | None, Callable[[Progress], None] | None]:
    """Return what hears of both halves and tells of the whole; a step of the second takes `cost` times the first's."""
    if on_progress is None:
        return None, None
    n_steps = n_first + n_second
    step_s = [math.nan]

    def first(part: Progress) -> None:
        left = part.n_steps - part.step
        if left and math.isfinite(part.eta_s):
            step_s[0] = part.eta_s / left
        eta_s = part.eta_s + cost * step_s[0] * n_second
        done = min(n_first, part.step)
        on_progress(replace(part, step=done, n_steps=n_steps, eta_s=eta_s, note="cells without annotation"))

    def second(part: Progress) -> None:
        on_progress(replace(part, step=n_first + part.step, n_steps=n_steps, note="with annotated cells"))

    return first, second
