"""The simulated microscope as the tests use it: one scene, one box, one trained model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oneframe.acquisition import Frame, open_source
from oneframe.acquisition.simulated import SimulatedBeads, Truth

SCENE = "sim:beads?width=160&height=128&n=10&lifetime=0"
BOX_SIDE = 24


@dataclass(frozen=True)
class Snapped:
    """A snapped frame, its truth, and the box a user would draw: x, y, width, height."""

    frame: Frame
    truth: Truth
    box: tuple[int, int, int, int]


def beads(options: str = "") -> SimulatedBeads:
    source = open_source(SCENE + options)
    assert isinstance(source, SimulatedBeads)
    return source


def snapped(options: str = "&seed=7") -> Snapped:
    from oneframe.app.demo import isolated_box

    source = beads(options)
    frame = source.read(5.0)
    assert frame is not None
    return Snapped(frame, source.truth(), isolated_box(source.truth(), frame.height, frame.width, BOX_SIDE))


def yx(table: Any) -> np.ndarray:
    """Positions (N, 2) of a truth or of detections."""
    return np.column_stack([table.y_px, table.x_px])


@dataclass(frozen=True)
class BeadModel:
    """A trained model, and where its file is."""

    path: Path
    trained: Any
    snap: Snapped
