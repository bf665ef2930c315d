"""Cells from one unlabelled frame: which way they stand out, what tells them apart, one network for both.

After Cellulus (Wolf et al., ICCV 2023): offsets that point at one place per object, learned without annotation.
Differs from the paper: the cells that contrast alone tells apart are the start, and crops composed of them teach the
rest (`cell_crops`); see `docs/decisions/0014`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oneframe.export.trained import TrainedModel, by_torch
from oneframe.runtime import cell_table
from oneframe.runtime.card import ModelCard
from oneframe.runtime.cell_judge import Agreement, agreement, noise_sigma, plausibility
from oneframe.runtime.cell_model import Separation, cells_of
from oneframe.runtime.detections import Detections
from oneframe.runtime.vote_clustering import consecutive
from oneframe.runtime.watershed import LEAST_DEPTH
from oneframe.trainer.cell_contrast import REFERENCE_PX, LocalContrast
from oneframe.trainer.cell_crops import CellComposer
from oneframe.trainer.cell_proposals import (
    CRITERIA,
    LEAST_DISTANCE,
    PACKED_DEPTH,
    SMOOTHING,
    Proposal,
    least_area_px,
    proposals,
)
from oneframe.trainer.cell_scale import WorkingScale, likely_diameters, rescaled, working_scale
from oneframe.trainer.cellulus_graph import CellGraph
from oneframe.trainer.cellulus_network import CellulusNetwork, CellulusSettings, cell_loss
from oneframe.trainer.cellulus_paper import pair_loss, sample_pairs
from oneframe.trainer.loop import LoopSettings, Progress, fit, one_thread
from oneframe.trainer.noise_proposals import noise_proposal
from oneframe.trainer.supported import agreement_of

_HEADSTART = 0.03
"""By which another criterion must be more plausible than the first; smaller differences are chance."""
FLOOR = 0.5
"""Noise floor of the contrast over the threshold on the relief."""
_ALIKE = 0.05
"""Differences of plausibility below this are chance."""
_AS_LIKELY = 0.9
"""Share of the score of the least likely annotated cell below which nothing is a cell."""
_CRUMB = 0.25
"""Of the median area of rods: what is smaller is none."""
_WIDTHS = 9.0
"""Of packed rods, so many rims are as wide as one."""
_ABOVE_NOISE = 4.0
"""Median relief of the cells over the noise of the smoothed frame; frames without cells come to 2."""
_LARGEST = 12.0
"""Median area over that of a disc of the diameter."""
_CHANGES = {
    "shift": "the frame is shifted",
    "scale": "cells are 10 % larger or smaller",
    "noise": "the frame is noisier",
    "brightness": "the light is weaker",
}
KNOWN_OF_CELLS = frozenset(("diameter_px", "cells", "foreground", "separate"))
"""What `train_cellulus` can be told in place of reading it off the frame."""
_WORKERS = 2
_EXAMPLE_PX = 128


@dataclass(frozen=True, slots=True, eq=False)
class Annotated:
    """What a person says of a frame's cells, beside what the frame says itself."""

    labels: NDArray[np.int32]
    """(H, W), camera pixels: cells above 0, 0 unknown, -1 known background."""
    n_cells: int
    """Of them in the frame's proposal, where they come first."""
    known: NDArray[np.bool_]
    """(h, w), where the proposal is trusted."""
    contrast: float
    """Hardly one of these cells stands out less, counts; 0: nothing is known of it."""
    selective: bool
    """Whether much of the frame does and is none of them; else fainter cells are welcome, as after bleaching."""


def met_by(found: NDArray[np.int32], annotated: NDArray[np.int32]) -> float:
    """Return how well cells (H, W) meet annotations: mean overlap with the cells, less the denied pixels they take."""
    met, denied = agreement_of(found, annotated), annotated < 0
    return (0.0 if math.isnan(met) else met) - (float((found[denied] > 0).mean()) if denied.any() else 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class CellFrame:
    """What one frame reveals of its cells."""

    diameter_px: float
    """Of a cell, camera pixels."""
    scale: WorkingScale
    image: NDArray[np.float32]
    """(h, w), the frame at the working scale."""
    proposal: Proposal
    annotated: Annotated | None = None

    @property
    def sign(self) -> float:
        """1: brighter than their surroundings, -1: darker."""
        return self.proposal.sign

    @property
    def criterion(self) -> str:
        """Which of `CRITERIA`, or the noise, makes the foreground."""
        return self.proposal.criterion

    @property
    def selective(self) -> bool:
        """Whether what was annotated says that much of what stands out is none."""
        return self.annotated is not None and self.annotated.selective

    @property
    def least_contrast(self) -> float:
        """What stands out less is no cell, counts; 0 where nothing annotated says so."""
        return self.annotated.contrast if self.annotated is not None and self.selective else 0.0

    @property
    def floor(self) -> float:
        """Noise floor of the contrast, counts."""
        return FLOOR * max(self.proposal.threshold, self.least_contrast)

    @property
    def least_relief(self) -> float:
        """What rises less above its surroundings is no cell, counts; half of what annotated ones do at least is one."""
        usual = self.proposal.least_relief
        return min(usual, 0.5 * self.annotated.contrast) if self.annotated and self.annotated.contrast else usual

    @property
    def packed(self) -> bool:
        """Whether the cells are rods side by side."""
        return self.criterion == "edges"

    def rim_px(self, settings: CellulusSettings) -> float:
        """Return what the network is not taught of each cell's border, working pixels: that packed rods stay apart."""
        if not self.packed:
            return 0.0
        labels = self.proposal.labels
        found = cell_table.cell_table(labels, self.image, np.ones(int(labels.max()), np.float32))
        return min(settings.rim_px, float(np.median(np.asarray(found.minor_axis_px))) / _WIDTHS)

    def lines(self) -> list[str]:
        """Return it as sentences for the user."""
        kind = "brighter" if self.sign > 0 else "darker"
        return [
            f"cells: {self.diameter_px:.1f} px across, {kind} than their surroundings (--diameter-px, --cells)",
            f"foreground by {self.criterion}: {int(self.proposal.labels.max())} cells proposed (--foreground)",
        ]


def train_cellulus(
    image: NDArray[Any],
    *,
    diameter_px: float | None = None,
    cells: str | None = None,
    foreground: str | None = None,
    separate: str | None = None,
    pixel_size_um: float | None = None,
    seed: int = 0,
    settings: CellulusSettings,
    frame: CellFrame | None = None,
    on_frame: Callable[[CellFrame], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
) -> TrainedModel:
    """Train on one frame (H, W) of cells.

    Parameters
    ----------
    diameter_px, cells, foreground : optional
        As for `read_cell_frame`; the foreground also `noise`, as `noise_proposal` sees it.
    separate : str, optional
        `network` or `classical`, threshold and watershed; by default what the frame favours.
    frame : CellFrame, optional
        What the frame reveals; by default it is read.
    on_frame : callable, optional
        Told what the frame revealed, before the training.

    Raises
    ------
    ValueError
        If no cells are seen.
    TrainingCancelled
        If `cancel` was set.
    """
    if separate not in (None, "network", "classical"):
        raise ValueError(f"expected separate network or classical, got {separate!r}")
    if frame is None:
        criterion = None if foreground == "noise" else foreground
        frame = read_cell_frame(image, diameter_px=diameter_px, cells=cells, foreground=criterion)
        if foreground == "noise":
            frame = with_noise_proposal(frame, seed, on_progress=on_progress, cancel=cancel)
    if on_frame is not None:
        on_frame(frame)
    with one_thread():
        if separate == "classical":
            return _completed(image, frame, None, settings, seed, separate, pixel_size_um)
        network = trained_network(frame, settings, seed, on_progress=on_progress, cancel=cancel)
        return _completed(image, frame, network, settings, seed, separate, pixel_size_um)


def read_cell_frame(
    image: NDArray[Any], *, diameter_px: float | None = None, cells: str | None = None, foreground: str | None = None
) -> CellFrame:
    """Return what a frame (H, W) reveals of its cells.

    Parameters
    ----------
    diameter_px : float, optional
        Of a cell, camera pixels; by default as large as the blobs that stand out.
    cells : str, optional
        `bright` or `dark`; by default what gives the better cells.
    foreground : str, optional
        One of `CRITERIA`; likewise.

    Raises
    ------
    ValueError
        If no cells are seen, or an argument is none of these.
    """
    return most_plausible(
        cell_readings(image, diameter_px=diameter_px, cells=cells, foreground=foreground),
        image,
        diameter_known=diameter_px is not None,
    )


def with_noise_proposal(
    frame: CellFrame,
    seed: int,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
) -> CellFrame:
    """Return what a frame reveals with the foreground by noise, as published."""
    proposal = noise_proposal(frame.image, frame.sign, seed, on_progress=on_progress, cancel=cancel)
    return replace(frame, proposal=proposal)


def cell_readings(
    image: NDArray[Any], *, diameter_px: float | None = None, cells: str | None = None, foreground: str | None = None
) -> list[CellFrame]:
    """Return all that `read_cell_frame` weighs, one or more: each sign and criterion. Raises as it does."""
    if cells not in (None, "bright", "dark"):
        raise ValueError(f"expected cells bright or dark, got {cells!r}")
    signs = {None: (1.0, -1.0), "bright": (1.0,), "dark": (-1.0,)}[cells]
    criteria = CRITERIA if foreground is None else (foreground,)
    sizes = {sign: [diameter_px] if diameter_px else likely_diameters(image, sign)[:1] for sign in signs}
    frames = [frame for sign in signs for size in sizes[sign] for frame in _proposed(image, sign, size, criteria)]
    noise = noise_sigma(image.astype(np.float32))
    frames = [frame for frame in frames if _stands_out(frame, noise)]
    if not frames:
        raise ValueError(
            "expected cells, got a frame in which nothing of a cell's size stands out; snap a frame with cells in "
            "focus, or say what they are like: diameter_px, cells, foreground"
        )
    return frames


def most_plausible(frames: list[CellFrame], image: NDArray[Any], *, diameter_known: bool) -> CellFrame:
    """Return which of some readings of a frame (H, W) shows the best cells."""
    if len(frames) == 1:
        return frames[0]
    # one scale for all, on which edges are looked at
    common_px = min(frame.diameter_px for frame in frames)
    scores = [
        plausibility(
            at_camera_scale(frame.proposal.labels, image.shape),
            image,
            diameter_px=common_px,
            diameter_known=diameter_known,
        ).score
        + _HEADSTART * (frame.criterion == CRITERIA[0])
        for frame in frames
    ]
    return frames[int(np.argmax(scores))]


def _proposed(image: NDArray[Any], sign: float, diameter_px: float, criteria: tuple[str, ...]) -> list[CellFrame]:
    """Return the frame as each criterion reads it."""
    scale = working_scale(diameter_px)
    pixels = rescaled(image, scale)
    return [CellFrame(diameter_px, scale, pixels, each) for each in proposals(pixels, sign, criteria)]


def _stands_out(frame: CellFrame, noise: float) -> bool:
    """Return whether the proposed cells are more than the frame's noise, and more than one slope across it."""
    labels, relief = frame.proposal.labels, frame.proposal.relief
    if not labels.any():
        return False
    area_px = np.median(np.bincount(labels.ravel())[1:])
    # what the blur of `LocalContrast` leaves of it
    left = noise / max(1.0, 2 * math.sqrt(math.pi) * frame.diameter_px / 20)
    return bool(np.median(relief[labels > 0]) > _ABOVE_NOISE * left and area_px < _LARGEST * least_area_px(1.0))


def at_camera_scale(labels: NDArray[np.int32], shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Return labels (h, w) as large as the frame (H, W), by the nearest pixel."""
    height, width = shape
    rows = np.minimum(((np.arange(height) + 0.5) * labels.shape[0] / height).astype(np.intp), labels.shape[0] - 1)
    columns = np.minimum(((np.arange(width) + 0.5) * labels.shape[1] / width).astype(np.intp), labels.shape[1] - 1)
    return consecutive(labels[rows[:, None], columns])


def trained_network(
    frame: CellFrame,
    settings: CellulusSettings,
    seed: int,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
) -> CellulusNetwork:
    """Return a network trained on crops composed of the cells that the frame's contrast proposes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CellulusNetwork(settings.channels)
    composer = CellComposer(
        frame.image,
        frame.proposal.relief,
        frame.sign,
        frame.proposal.labels,
        frame.floor,
        settings,
        rim_px=frame.rim_px(settings),
        n_given=0 if frame.annotated is None else frame.annotated.n_cells,
        known=None if frame.annotated is None else frame.annotated.known,
    )
    contrast = LocalContrast(frame.sign)
    margin = settings.margin_px

    def loss_of_part(part: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 0, part])
        batch = composer.batch(settings.crops // _WORKERS, rng)
        with torch.no_grad():
            seen, _, _ = contrast.normalised(batch.images, batch.floors)
        told = network(seen)[..., margin:-margin, margin:-margin]
        loss = cell_loss(told, batch.labelled, batch.offsets, batch.known, settings.offset_weight)
        if settings.pair_weight:
            height, width = told.shape[-2:]
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            pairs = sample_pairs(height, width, settings.kappa_px, settings.pair_density, generator)
            loss = loss + settings.pair_weight * pair_loss(told[:, 1:], *pairs, settings.tau_px2, 0.0)
        return loss

    schedule = LoopSettings(settings.n_steps, settings.learning_rate)
    return fit(network, loss_of_part, schedule, on_progress=on_progress, cancel=cancel, workers=_WORKERS)


def _graph(frame: CellFrame, network: CellulusNetwork | None) -> CellGraph:
    proposal = frame.proposal
    level = None if math.isnan(proposal.level) else proposal.level
    return CellGraph(
        network,
        sign=frame.sign,
        scale=frame.scale,
        floor=frame.floor,
        least_relief=frame.least_relief,
        threshold=proposal.threshold,
        level=level if network is None else None,
        blur_px=proposal.blur_px,
        least_contrast=frame.least_contrast,
    ).eval()


def separation(diameter_px: float, settings: CellulusSettings, by: str = "votes") -> Separation:
    """Return how maps become cells of this diameter, px of the maps."""
    area_px = math.pi * diameter_px**2 / 4
    if by == "votes":
        return Separation(
            "votes",
            settings.least_area * area_px,
            bandwidth_px=settings.bandwidth * diameter_px,
            least_votes=settings.least_area * area_px,
        )
    return Separation(
        "watershed",
        settings.least_area * area_px,
        smoothing_px=SMOOTHING * diameter_px,
        least_distance_px=LEAST_DISTANCE * diameter_px,
        least_depth=PACKED_DEPTH if by == "necks" else LEAST_DEPTH,
    )


def _separation(frame: CellFrame, settings: CellulusSettings, by: str) -> Separation:
    """Return how the frame's cells are made of maps at the camera's scale."""
    how = separation(REFERENCE_PX / frame.scale.factor, settings, by)
    how = replace(how, tile_step_px=frame.scale.step_px, halo_px=frame.scale.halo_px)
    if by == "necks":  # the diameter is the width of a rod, which says little of its area
        area = np.bincount(frame.proposal.labels.ravel())[1:]
        least_px = _CRUMB * float(np.median(area)) / frame.scale.factor**2
        how = replace(how, least_area_px=least_px, grow_px=frame.rim_px(settings) / frame.scale.factor)
    return how


def _completed(
    image: NDArray[Any],
    frame: CellFrame,
    network: CellulusNetwork | None,
    settings: CellulusSettings,
    seed: int,
    separate: str | None,
    pixel_size_um: float | None,
) -> TrainedModel:
    """Judge the network beside the classical pipeline, choose one of them and sign the card."""
    kinds = {"classical": (_graph(frame, None), "watershed")}
    if network is not None:
        kinds["network"] = (_graph(frame, network), "necks" if frame.packed else "votes")
    ways = {name: _separation(frame, settings, by) for name, (_, by) in kinds.items()}
    if network is not None and frame.annotated is not None:
        ways["network"] = _as_likely(
            ways["network"], detect(kinds["network"][0], image, ways["network"]), frame.annotated
        )
    verdicts = {name: _judged(image, graph, ways[name], frame, seed) for name, (graph, _) in kinds.items()}
    favoured = "classical"
    if network is not None and not verdicts["classical"].better_than(verdicts["network"]):
        favoured = "network"
    chosen = separate or favoured
    graph, how = kinds[chosen][0], ways[chosen]
    found = verdicts[chosen].found
    advice, sentence = _advice(verdicts, chosen, favoured)
    card = ModelCard(
        method="cellulus",
        input_dtype=image.dtype.name,
        n_channels=1,
        columns=cell_table.COLUMNS,
        threshold=0.5,
        object_diameter_px=frame.diameter_px,
        normalisation={"sign": frame.sign, "floor": graph.floor, "factor": frame.scale.factor},
        pixel_size_um=pixel_size_um,
        maps=graph.maps,
        separation=how.to_card(),
        settings={**asdict(settings), "seed": seed, "foreground": frame.criterion, "separate": chosen},
        quality={
            "read_off_frame": frame.lines(),
            "cells_on_frame": len(found),
            "median_area_px": float(np.median(found.area_px)) if found.area_px is not None and len(found) else 0.0,
            "separate": chosen,
            "favoured": favoured,
            "kinds": {name: verdict.facts() for name, verdict in verdicts.items()},
            "advice": advice,
            "advice_sentence": sentence,
        },
    )
    return TrainedModel(graph, card, example_of(image, found), input_shape=image.shape)


def _as_likely(how: Separation, found: Detections, annotated: Annotated) -> Separation:
    """Return the separation with the least score by which no annotated cell that is found is lost."""
    labels = annotated.labels
    scores = []
    if found.labels is not None:
        for cell in np.unique(labels[labels > 0]):
            own = labels == cell
            shared = np.bincount(found.labels[own], minlength=2)
            shared[0] = 0
            best = int(shared.argmax())
            if 2 * shared[best] > own.sum():
                scores.append(float(found.score[best - 1]))
    return replace(how, least_score=_AS_LIKELY * min(scores)) if scores else how


@dataclass(frozen=True, slots=True, eq=False)
class _Verdict:
    """What one way to cells makes of the snapped frame, judged without truth."""

    found: Detections
    plausible: float
    agreement: Agreement
    met: float
    """How well it meets what was annotated, 1 at best; 0 where nothing was."""

    def better_than(self, other: _Verdict) -> bool:
        """Return whether both measures say so, and annotated cells do not deny it; where they differ none is better."""
        likelier = self.plausible > other.plausible and self.agreement.overall > other.agreement.overall
        return likelier and self.met >= other.met

    def facts(self) -> dict[str, Any]:
        """Return it for the card."""
        names = ("shift", "scale", "noise", "brightness")
        return {
            "cells": len(self.found),
            "plausibility": round(self.plausible, 3),
            **{f"agreement_{name}": round(getattr(self.agreement, name), 3) for name in names},
        }


def _judged(image: NDArray[Any], graph: CellGraph, how: Separation, frame: CellFrame, seed: int) -> _Verdict:
    found = detect(graph, image, how)
    labels = labels_of(found, image.shape)
    plain = image.astype(np.float32)

    def segment(changed: NDArray[np.float32]) -> NDArray[np.int32]:
        return labels_of(detect(graph, changed, how), changed.shape)

    return _Verdict(
        found,
        plausibility(labels, image, diameter_px=frame.diameter_px).score,
        agreement(
            segment,
            plain,
            noise_sigma=noise_sigma(plain),
            rng=np.random.default_rng(seed),
            diameter_px=frame.diameter_px,
        ),
        0.0 if frame.annotated is None else met_by(labels, frame.annotated.labels),
    )


def _advice(verdicts: dict[str, _Verdict], chosen: str, favoured: str) -> tuple[str, str]:
    """Return `green`, `amber` or `red` and one plain sentence."""
    n, again = len(verdicts[chosen].found), verdicts[chosen].agreement
    weakest = min(("shift", "scale", "noise", "brightness"), key=lambda name: float(getattr(again, name)))
    share = float(getattr(again, weakest))
    if chosen == "classical":
        what = "The plain method, threshold and watershed, is used"
    elif verdicts["classical"].plausible > verdicts["network"].plausible - _ALIKE:
        what = "The plain method looks as good on this frame (--separate classical)"
    else:
        what = "The network parts cells better here than the plain method"
    if chosen != favoured:
        what += f", although the frame favours the {'network' if favoured == 'network' else 'plain method'}"
    if not n or verdicts[chosen].plausible < 0.4:
        return "red", (
            f"{n} cells were found and they do not look like cells: look at them, and say what they are like "
            "(--diameter-px, --cells, --foreground), or annotate a few."
        )
    if share < 0.7:
        return "amber", (
            f"{n} cells, of which only {100 * share:.0f} % are found again when {_CHANGES[weakest]}: check them on the "
            f"live view. {what}."
        )
    return "green", f"Ready: {n} cells, {100 * share:.0f} % of them found again when {_CHANGES[weakest]}. {what}."


def detect(graph: CellGraph, image: NDArray[Any], how: Separation, threshold: float = 0.5) -> Detections:
    """Return the cells that a graph finds in an image (H, W), by torch."""
    return cells_of(by_torch(graph, graph.maps, image, threshold), image, how)


def labels_of(found: Detections, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Return the label image (H, W) of what was found."""
    return np.zeros(shape, np.int32) if found.labels is None else found.labels


def example_of(image: NDArray[Any], found: Detections) -> NDArray[Any]:
    """Return the part of the frame that shows most cells."""
    height, width = image.shape
    side_y, side_x = min(height, _EXAMPLE_PX), min(width, _EXAMPLE_PX)
    best = (-1, 0, 0)
    for top in range(0, height - side_y + 1, max(1, side_y // 2)):
        for left in range(0, width - side_x + 1, max(1, side_x // 2)):
            inside = (found.y_px >= top) & (found.y_px < top + side_y)
            inside &= (found.x_px >= left) & (found.x_px < left + side_x)
            best = max(best, (int(inside.sum()), -top, -left))
    _, top, left = best
    return np.ascontiguousarray(image[-top : -top + side_y, -left : -left + side_x])
