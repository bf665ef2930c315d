"""Regions around particles beside whole frames: rate, what is found, and how soon newcomers are seen.

Run: python benchmarks/regions.py MODEL.onnx [--size 2048] [--beads 100] [--frames 120] [-o results.json]

Frames are uint16 of the simulated microscope; beads diffuse, drift, vanish and appear (`--lifetime` frames each). The
model is that of `benchmarks/speed.py`. Every frame goes through the whole frame and through `RegionModel` in turn, the
first of them changing from frame to frame; the time is that of pixels to tracks, linking included, all processors.
Printed are the medians and the means over the frames (whole frames among those of the regions included) and their
ratios; recall and RMSE against the truth; what regions lost, added and moved against the whole frame.

Newcomers: beads that appear between two frames, at least 15 px inside the frame; the delay is counted from the frame in
which the whole frame has them first. `--blind` hides from the coarse look what has changed, so that only the strip and
the regions of others can find newcomers: the longest delay is to stay below the frames that are told.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.simulated import BeadCamera, BeadScene
from oneframe.runtime import Detections
from oneframe.runtime.link import FrameLinker, LinkSettings
from oneframe.runtime.model import load_graph
from oneframe.runtime.newcomers import NewcomerLook
from oneframe.runtime.regions import RegionModel
from oneframe.runtime.seams import Model
from oneframe.runtime.truth import TruthComparison, match

INSIDE_PX = 15.0


class Way:
    """One way to analyse the frames, and what was measured of it."""

    def __init__(self, model: Model, linker: FrameLinker) -> None:
        self.model, self.linker = model, linker
        self.ms: list[float] = []
        self.truth = TruthComparison()

    def see(self, image: NDArray[np.uint16], index: int) -> Detections:
        """Analyse a frame, pixels to tracks."""
        start_s = time.perf_counter()
        found = self.model.detect(image)
        self.linker.link(found, index)
        self.ms.append(1e3 * (time.perf_counter() - start_s))
        return found


class Newcomers:
    """Waits for beads that have just appeared."""

    def __init__(self, size_px: int) -> None:
        self._size_px = size_px
        self._known: set[int] = set()
        self._since: dict[int, int] = {}
        self.delays: list[int] = []
        self.n_never = 0

    def add(self, camera: BeadCamera, index: int, whole: NDArray[np.float64], found: NDArray[np.float64]) -> None:
        """Take what both ways have found in a frame."""
        truth = camera.truth()
        positions = np.stack([truth.y_px, truth.x_px], -1)
        seen_by = [set(truth.bead_id[match(positions, each, 3.0)[0]].tolist()) for each in (whole, found)]
        limits = INSIDE_PX, self._size_px - INSIDE_PX
        inside = set(truth.bead_id[((positions > limits[0]) & (positions < limits[1])).all(1)].tolist())
        here = set(truth.bead_id.tolist())
        if index > 0:
            self._since |= dict.fromkeys((inside - self._known) & seen_by[0], index)
        self._known |= here
        for bead in [bead for bead in self._since if bead in seen_by[1]]:
            self.delays.append(index - self._since.pop(bead))
        gone = [bead for bead in self._since if bead not in here]
        self.n_never += len(gone)
        for bead in gone:
            del self._since[bead]


def measured(chosen: argparse.Namespace) -> dict[str, Any]:
    """Run both ways over the frames."""
    scene = BeadScene(
        width=chosen.size, height=chosen.size, n=chosen.beads, lifetime=chosen.lifetime, separation_px=20.0,
        photons=5000.0 * chosen.light, step_px=chosen.step_px, seed=chosen.seed,
    )  # fmt: skip
    camera = BeadCamera(scene)
    graph = load_graph(chosen.model)
    linkers = [FrameLinker(LinkSettings(graph.card.object_diameter_px)) for _ in range(2)]
    by_regions = RegionModel(graph, linkers[1])
    ways = [Way(graph, linkers[0]), Way(by_regions, linkers[1])]
    newcomers = Newcomers(chosen.size)
    n_lost = n_added = n_whole = 0
    moved_px: list[float] = []
    for index in range(chosen.frames):
        image = camera.expose()
        order = ways if index % 2 else ways[::-1]
        found = {id(way): way.see(image, index) for way in order}
        both = [found[id(way)].yx_px for way in ways]
        truth = np.stack([camera.truth().y_px, camera.truth().x_px], -1)
        for way, positions in zip(ways, both, strict=True):
            way.truth.add(truth, positions)
        i, j = match(both[0], both[1], 1.0)
        n_whole += len(both[0])
        n_lost, n_added = n_lost + len(both[0]) - len(i), n_added + len(both[1]) - len(j)
        moved_px += np.hypot(*(both[0][i] - both[1][j]).T).tolist()
        newcomers.add(camera, index, *both)
        camera.advance()
    timed = [np.array(way.ms[2:]) for way in ways]  # the first two frames allocate
    scores = [way.truth.score() for way in ways]
    return {
        "frames": chosen.frames,
        "frames_by_regions": by_regions.report()["frames_by_regions"],
        "ms": [float(np.median(each)) for each in timed],
        "rate_ratio_of_medians": float(np.median(timed[0]) / np.median(timed[1])),
        "rate_ratio_of_means": float(timed[0].mean() / timed[1].mean()),
        "recall": [score.recall for score in scores],
        "precision": [score.precision for score in scores],
        "rmse_px": [score.rmse_px for score in scores],
        "recall_of_whole_frames_detections": 1 - n_lost / max(1, n_whole),
        "detections": n_whole,
        "lost": n_lost,
        "added": n_added,
        "moved_px_max": max(moved_px, default=0.0),
        "newcomers": len(newcomers.delays) + newcomers.n_never,
        "newcomers_never_seen": newcomers.n_never,
        "newcomer_delay_frames_max": max(newcomers.delays, default=0),
        "newcomer_delay_frames_mean": float(np.mean(newcomers.delays)) if newcomers.delays else 0.0,
        "told_longest_unseen_frames": by_regions.report()["longest_unseen_frames"],
    }


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("--size", type=int, default=2048, metavar="PX")
    arguments.add_argument("--beads", type=int, default=100)
    arguments.add_argument("--frames", type=int, default=120)
    arguments.add_argument("--lifetime", type=float, default=100.0, metavar="FRAMES")
    arguments.add_argument("--step-px", type=float, default=0.7)
    arguments.add_argument("--light", type=float, default=1.0, help="of a bead, over that of the one that was learned")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--blind", action="store_true", help="newcomers do not show in the coarse look")
    arguments.add_argument("-o", "--output", type=Path)
    chosen = arguments.parse_args()
    if chosen.blind:
        look = NewcomerLook.changed
        NewcomerLook.changed = lambda self: look(self)[:0]  # type: ignore[method-assign]
    results = measured(chosen)
    for name, value in results.items():
        print(f"{name:36}", value if not isinstance(value, list) else "  ".join(f"{each:.4f}" for each in value))
    if chosen.output:
        chosen.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
