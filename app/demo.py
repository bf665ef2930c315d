"""`oneframe demo`: the whole chain on the simulated microscope, with real processes, against exact truth."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from oneframe.acquisition import open_source
from oneframe.acquisition.simulated import BeadMotion, SimulatedBeads, Truth
from oneframe.acquisition.snapshot import write_snapshot
from oneframe.app.console import CommandError, Console
from oneframe.app.main import main, parser
from oneframe.app.track import account_line, run_pipeline
from oneframe.runtime import Tracks, load_model
from oneframe.runtime.overlay import draw_overlay, write_png
from oneframe.runtime.seams import Analysed, Missed, Noted
from oneframe.runtime.truth import Score, TruthComparison

FRAMES_PER_S = 25
BOX_PX = 24


def demo(arguments: argparse.Namespace, console: Console) -> None:
    """Snap, train, export, verify, track through a real `serve` process, and compare with the truth."""
    folder = _new_folder(arguments.output)
    start_s = time.monotonic()
    snap_path, model_path, run_path = folder / "snap.tif", folder / "bead.onnx", folder / "run"

    console.say(f"1/5 snap: one frame of the simulated microscope -> {snap_path}")
    with_seed = f"sim:beads?seed={arguments.seed + 1000}"
    camera = open_source(with_seed)
    frame = camera.read(10.0)
    if frame is None or not isinstance(camera, SimulatedBeads):
        raise CommandError("the simulated microscope gave no frame; please report this")
    write_snapshot(snap_path, frame)
    box = isolated_box(camera.truth(), frame.height, frame.width, BOX_PX)

    console.say(f"2/5 train: on one bead, box x y w h = {' '.join(map(str, box))} -> {model_path}")
    command = ["train", str(snap_path), "--box", *map(str, box), "-o", str(model_path), "--seed", str(arguments.seed)]
    command += ["--steps", str(arguments.steps)] if arguments.steps else []
    _run(command, console)

    console.say("3/5 verify: the model file replays its self-test")
    _run(["verify", str(model_path)], console)

    console.say(f"4/5 track: {arguments.frames} frames from another process (oneframe serve) -> {run_path}")
    scene = f"sim:beads?seed={arguments.seed + 2000}&frames={arguments.frames}&fps={FRAMES_PER_S}"
    score, last = _track(scene, model_path, run_path, console)

    console.say("5/5 compare with the truth of the simulation")
    overlay_path = folder / "overlay.png"
    _draw(overlay_path, last, load_model(model_path).card.ring_diameter_px)
    console.say(
        f"recall {score.recall:.4f}   precision {score.precision:.4f}   RMSE {score.rmse_px:.4f} px per axis   "
        f"({score.n_true} true positions in {arguments.frames} frames)"
    )
    took_s = time.monotonic() - start_s
    console.say(
        f"look at {overlay_path}; positions in {run_path / 'detections.csv'}; {took_s:.0f} s in all",
        event="done",
        recall=score.recall,
        precision=score.precision,
        rmse_px=score.rmse_px,
        n_true=score.n_true,
        folder=str(folder),
    )


def isolated_box(truth: Truth, height: int, width: int, side: int) -> tuple[int, int, int, int]:
    """Box the bead that is farthest from all others and from the edges, as a user would: x, y, width, height."""
    position = np.column_stack([truth.y_px, truth.x_px])
    distance = np.hypot(*(position[:, None] - position[None]).transpose(2, 0, 1))
    np.fill_diagonal(distance, np.inf)
    to_edge = np.min([position.min(axis=1), (np.array([height, width]) - 1 - position).min(axis=1)], axis=0)
    y, x = np.rint(position[np.minimum(distance.min(axis=1), to_edge).argmax()]).astype(int)
    return int(x) - side // 2, int(y) - side // 2, side, side


class _TruthSink:
    """Compares each analysed frame with the replayed truth and keeps the last one."""

    def __init__(self, motion: BeadMotion) -> None:
        self._motion = motion
        self._index = 0
        self.comparison = TruthComparison()
        self.last: Analysed | None = None
        self.tails: dict[int, list[tuple[float, float]]] = {}

    def write(self, analysed: Analysed) -> None:
        while self._index < analysed.frame.index:
            self._motion.advance()
            self._index += 1
        truth = self._motion.truth()
        found = analysed.tracks.detections
        self.comparison.add(np.column_stack([truth.y_px, truth.x_px]), found.yx_px)
        self.last = analysed
        for track_id, y, x in zip(analysed.tracks.track_id, found.y_px, found.x_px, strict=True):
            self.tails.setdefault(int(track_id), []).append((float(y), float(x)))

    def skip(self, missed: Missed) -> None:
        pass

    def note(self, noted: Noted) -> None:
        pass

    def close(self) -> None:
        pass


def _track(scene: str, model_path: Path, run_path: Path, console: Console) -> tuple[Score, _TruthSink]:
    """Serve the scene from another process and log it here."""
    command = [sys.executable, "-m", "oneframe.app", "serve", scene, "--bind", "tcp://127.0.0.1:0", "--wait", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = _wait_for_address(server)
        arguments = parser().parse_args(["log", str(model_path), "--source", address, "-o", str(run_path)])
        source = open_source(scene)
        if not isinstance(source, SimulatedBeads):
            raise CommandError("the demo needs the simulated microscope; please report this")
        sink = _TruthSink(BeadMotion(source.scene))
        ended = run_pipeline(arguments, load_model(model_path), {"truth": sink}, console)
        console.say(account_line(ended.account), event="tracked", **ended.account.to_dict())
        if ended.failed:
            raise CommandError(ended.reason)
        server.wait(timeout=10)
    finally:
        server.kill()
        server.communicate()
    return sink.comparison.score(), sink


def _wait_for_address(server: subprocess.Popen[str]) -> str:
    if server.stdout is not None:
        for line in server.stdout:
            message: dict[str, Any] = json.loads(line)
            if message["event"] == "serving":
                return str(message["address"])
    raise CommandError(f"oneframe serve ended with code {server.wait()} before it served; try it alone to see why")


def _run(command: list[str], console: Console) -> None:
    """Run another command of the command line; its failure is ours."""
    if main([*command, *(["--json"] if console.as_json else [])]) != 0:
        raise CommandError(f"oneframe {' '.join(command)} failed, see above")


def _draw(path: Path, sink: _TruthSink, diameter_px: float) -> None:
    if sink.last is None:
        raise CommandError("no frame was analysed; run oneframe doctor")
    tracks: Tracks = sink.last.tracks
    tails = [np.array(sink.tails[int(i)][-30:]) for i in tracks.track_id]
    caption = f"oneframe demo, frame {sink.last.frame.index}: {len(tracks)} beads, last 30 positions of each"
    rgb = draw_overlay(sink.last.frame.pixels, tracks, diameter_px=diameter_px, tails=tails, caption=caption)
    write_png(path, rgb)


def _new_folder(text: str | None) -> Path:
    """Make the folder that was asked for, or the next free oneframe-demo."""
    if text is None:
        text = next(name for i in count(1) if not Path(name := f"oneframe-demo-{i}").exists())
    folder = Path(text)
    if folder.exists():
        raise CommandError(f"{folder} exists and is never overwritten; choose another name with -o")
    folder.mkdir(parents=True)
    return folder
