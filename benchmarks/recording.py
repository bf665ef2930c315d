"""How much faster a recording is than a live camera, and whether its rows are the same.

Run: python benchmarks/recording.py MODEL.onnx [--recording FILE.tif] [--frames 2000] [--rounds 5] [--others 0.15]

Both are the whole chain of `oneframe log`: frames read from the same TIFF, model, links, record on disk. `live`: one
frame after another, the model on all processors, as for a camera; `recording`: several frames at once, as `log` and
`detect` do with a source that waits. They take turns; the ratio is the median over the rounds. Then every column of
every row but the time of reading is compared bit for bit. Without `--recording` one of simulated beads is made
(512 x 512 px, 50 beads), 200 frames over and over.

On a computer with other work both get what that leaves, which says little: with `--others S` only rounds count in which
other programs took less than that share of all processors; what they took is printed. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bead_frames import bead_frames
from numpy.typing import NDArray

from oneframe.acquisition import open_source
from oneframe.runtime import Detections, ModelCard
from oneframe.runtime.link import FrameLinker, LinkSettings
from oneframe.runtime.load import load_model
from oneframe.runtime.pipeline import Pipeline
from oneframe.runtime.record import RunRecord
from oneframe.runtime.seams import Model

SIZE_PX = 512
N_BEADS = 50
N_SCENES = 200


@dataclass
class OneAfterAnother:
    """A model that does not say that it can share its work."""

    model: Model

    @property
    def card(self) -> ModelCard:
        """Of the model."""
        return self.model.card

    def detect(self, image: NDArray[Any]) -> Detections:
        """As the model."""
        return self.model.detect(image)


def make_recording(path: Path, n_frames: int) -> None:
    """Write simulated beads, page by page."""
    import tifffile

    frames = bead_frames(min(N_SCENES, n_frames), SIZE_PX, N_BEADS, seed=3)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for index in range(n_frames):
            file.write(frames[index % len(frames)], contiguous=True)


def processors() -> tuple[float, float, float]:
    """Return the seconds of all processors: idle, busy, busy with this process."""
    values = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    per_s = os.sysconf("SC_CLK_TCK")
    idle = (values[3] + values[4]) / per_s
    own = os.times()
    return idle, sum(values) / per_s - idle, own.user + own.system


def analyse(model: Model, recording: Path, folder: Path, n_frames: int) -> dict[str, float]:
    """Run the chain once and return its rate and what it took."""
    source = open_source(str(recording))
    record = RunRecord(folder, card=model.card, source=source.info, settings={})
    linker = FrameLinker(LinkSettings(max_distance_px=model.card.object_diameter_px, max_gap_frames=2))
    before, start_s = processors(), time.perf_counter()
    ended = Pipeline(source, model, linker, {"record": record}).run(n_frames=n_frames)
    seconds = time.perf_counter() - start_s
    idle, busy, own = (b - a for a, b in zip(before, processors(), strict=True))
    if ended.account.analysed != n_frames:
        raise SystemExit(f"expected {n_frames} frames, {ended.account.analysed} were analysed: {ended.reason}")
    return {"fps": n_frames / seconds, "own": own / (idle + busy), "others": max(0.0, busy - own) / (idle + busy)}


def rows_of(folder: Path) -> list[Any]:
    """Return every detection of a run, all columns but the time at which its frame was read."""
    with closing(sqlite3.connect(folder / "run.sqlite")) as db:
        names = [name for _, name, *_ in db.execute("PRAGMA table_info(detections)") if name != "time_s"]
        return db.execute(f"SELECT {', '.join(names)} FROM detections ORDER BY rowid").fetchall()


def main() -> None:
    """Measure in turn and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", metavar="MODEL.onnx")
    arguments.add_argument("--recording", type=Path, metavar="FILE")
    arguments.add_argument("--frames", type=int, default=2000)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--others", type=float, default=1.0, metavar="SHARE")
    arguments.add_argument("-o", "--output", type=Path)
    chosen = arguments.parse_args()
    model = load_model(chosen.model)
    kinds: dict[str, Model] = {"live": OneAfterAnother(model), "recording": model}
    told: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    same: list[bool] = []
    with tempfile.TemporaryDirectory() as place:
        recording = chosen.recording
        if recording is None:
            recording = Path(place) / "beads.tif"
            make_recording(recording, chosen.frames)
        for turn in range(chosen.rounds):
            rows = []
            for kind, what in kinds.items():
                folder = Path(place) / f"{kind}-{turn}"
                told[kind].append(analyse(what, recording, folder, chosen.frames))
                rows.append(rows_of(folder))
            same.append(rows[0] == rows[1])
            line = ", ".join(
                f"{kind} {runs[-1]['fps']:.0f} fps (processors {runs[-1]['own']:.2f}, others {runs[-1]['others']:.2f})"
                for kind, runs in told.items()
            )
            print(f"{line}; {len(rows[0])} rows {'the same' if same[-1] else 'DIFFER'}", flush=True)
    live, several = (np.array([run["fps"] for run in runs]) for runs in told.values())
    counts = np.array([max(a["others"], b["others"]) < chosen.others for a, b in zip(*told.values(), strict=True)])
    ratio = float(np.median((several / live)[counts])) if counts.any() else float("nan")
    bits = "bit-identical" if all(same) else "DIFFER"
    print(f"recording / live: {ratio:.2f}, median of {counts.sum()} of {len(counts)} rounds; rows {bits}")
    if chosen.output:
        chosen.output.write_text(json.dumps({"ratio": ratio, "same": all(same), **told}, indent=1))


if __name__ == "__main__":
    main()
