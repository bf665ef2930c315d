"""Frames of simulated beads that move, for benchmarks that need many."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.simulated import BeadCamera, BeadScene


def bead_frames(n_frames: int, size_px: int, n_beads: int, **scene: Any) -> NDArray[np.uint16]:
    """Return consecutive frames (T, H, W) of beads that stay in view; `scene` as for `BeadScene`."""
    camera = BeadCamera(BeadScene(width=size_px, height=size_px, n=n_beads, lifetime=0, **scene))
    frames = []
    for _ in range(n_frames):
        frames.append(camera.expose())
        camera.advance()
    return np.stack(frames)
