"""Runs of simulated cells with their true masks, logged as a model that segments would log them."""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from oneframe.acquisition import Frame, SourceInfo
from oneframe.acquisition.cells import CellLife, CellScene, CellTruth
from oneframe.runtime.card import ModelCard
from oneframe.runtime.cell_link import CellLinker
from oneframe.runtime.cell_table import COLUMNS, cell_table
from oneframe.runtime.detections import Detections
from oneframe.runtime.record import RunRecord, complete_run
from oneframe.runtime.seams import Analysed, Missed

T0_S = 1_700_000_000.0


def detect(labels) -> Detections:
    """Return the cells of a label image 1 .. N."""
    return cell_table(labels, labels, np.ones(int(labels.max(initial=0)), np.float32))


def film(modality: str, n_frames: int, **scene) -> Iterator[CellTruth]:
    """Yield the truth, frame by frame."""
    life = CellLife(CellScene.of(modality, **{"width": 256, "height": 256, "n": 24, "doubling_frames": 20, **scene}))
    for index in range(n_frames):
        if index:
            life.advance()
        yield life.truth()


def log_cells(folder: Path, n_frames: int, *, skipped: Collection[int] = (), dropped: float = 0.0) -> None:
    """Log a film of rods; frames that are skipped are told as such, and a share of the cells is not found."""
    rng = np.random.default_rng(0)
    card = ModelCard("cellulus", "uint16", 1, COLUMNS, 0.5, 24.0)
    source = SourceInfo("sim:cells", live=False)
    record = RunRecord(folder, card=card, source=source, settings={})
    linker = CellLinker()
    for index, truth in enumerate(film("phase", n_frames)):
        if index in skipped:
            record.skip(Missed("skipped", index, 1, T0_S + index, "slow"))
            continue
        n = len(truth.cell_id)
        found = rng.random(n) >= dropped
        number = np.where(found, np.cumsum(found), 0).astype(np.int32)
        labels = np.r_[np.int32(0), number][truth.labels].astype(np.int32)
        tracks = linker.link(detect(labels), index)
        record.write(Analysed(Frame(truth.labels.astype(np.uint16), index, T0_S + index), tracks, 0.01, 0.01))
    counts = record.counts()
    record.close()
    complete_run(folder, counts, "done")
