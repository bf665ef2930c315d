"""Frames a second beside deeplay's LodeSTAR, trackpy and the paper's network: same frames, alternating rounds.

Run: python benchmarks/speed.py [--peer-python VENV/bin/python] [--rounds 7] [--models FOLDER] [-o results.json]
     python benchmarks/speed.py --only default paper [--model NAME=FILE.onnx ...]
     python benchmarks/speed.py --backends                 also the default in int8, and in OpenVINO where installed
     python benchmarks/speed.py --stages FILE.onnx         share of time by stage and by operator, at 200 and 500 beads

Frames are 1024 x 1024 uint16 with 200 simulated beads (`--beads`) of exact truth; one box of frame 0 is what everybody
trains on, and frame 0 is what the settings of the peers are chosen on, in their favour; times and errors are of the
others. Every method gets all processors. A round calls each once, in turn; printed are medians over the rounds, RMSE
per axis of the detections within half a diameter of a bead, and F1. `--peer-python` is of an environment with
deeplay 0.1.4, trackpy and numba; without it the peers are left out. Models are kept in `--models`, not trained
again.

deeplay   `LodeSTAR.detect`, trained 5000 steps on the box (`lodestar_peer.py`); its cutoff is the best of 13, and its
          constant offset is taken out.
trackpy   `locate` at its usual settings, that is diameter and minmass only: the pair with the best F1, then RMSE.
paper     the network, loss and schedule of the paper in oneframe (`--preset paper`), exported, fp32.
default   oneframe's default.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import speed_stages
from numpy.typing import NDArray

from oneframe.acquisition.simulated import BeadCamera, BeadScene
from oneframe.export import export
from oneframe.export.quantise import divide, quantise
from oneframe.runtime import load_model
from oneframe.runtime.backends import MIDDLE_INT8, Backend, Session, open_backend, openvino_precisions
from oneframe.runtime.truth import TruthComparison
from oneframe.trainer import Box
from oneframe.trainer.lodestar import train_lodestar
from oneframe.trainer.lodestar_network import PRESETS

N_FRAMES = 4
BOX_SIDE = 33
SEPARATION_PX = 20.0
CUTOFFS = [("quantile", q) for q in (0.9, 0.95, 0.97, 0.99, 0.995)] + [
    ("constant", c) for c in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
]
DIAMETERS = (9, 11, 13, 15, 17, 21)
Answer = tuple[float, NDArray[np.float64]]
"""Milliseconds, and positions (N, 2), (y, x) px."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What everybody sees."""

    frames: NDArray[np.uint16]
    """(F, H, W)"""
    truth: list[NDArray[np.float64]]
    """(N, 2) of each frame."""
    box: Box
    """Of the most isolated bead of frame 0."""


@dataclass(slots=True, eq=False)
class Method:
    """One way to find the beads, and what was measured of it."""

    name: str
    run: Callable[[int], Answer]
    """Takes the index of a frame."""
    ms: list[float] = field(default_factory=list)
    found: dict[int, NDArray[np.float64]] = field(default_factory=dict)


def scene_of(n_beads: int, size_px: int, seed: int) -> Scene:
    """Simulate frames of one kind, each of a seed of its own."""
    frames, truth = [], []
    for index in range(N_FRAMES):
        kind = BeadScene(
            width=size_px, height=size_px, n=n_beads, lifetime=0, separation_px=SEPARATION_PX, seed=seed + index
        )
        camera = BeadCamera(kind)
        frames.append(camera.expose())
        truth.append(np.column_stack([camera.truth().y_px, camera.truth().x_px]))
    away = np.hypot(*(truth[0][:, None] - truth[0][None]).transpose(2, 0, 1))
    np.fill_diagonal(away, np.inf)
    inside = ((truth[0] > 60) & (truth[0] < size_px - 61)).all(1)
    y, x = np.rint(truth[0][int(np.argmax(np.where(inside, away.min(1), 0)))]).astype(int).tolist()
    half = BOX_SIDE // 2
    return Scene(np.stack(frames), truth, Box(x - half, y - half, BOX_SIDE, BOX_SIDE))


def model_method(name: str, path: Path, scene: Scene, engine: Session | None = None) -> Method:
    """Return a model file as a method: uint16 in, detections out; `engine` runs it in place of ONNX Runtime in fp32."""
    model = load_model(path)
    model.engine = engine or model.engine

    def run(index: int) -> Answer:
        start_s = time.perf_counter()
        found = model.detect(scene.frames[index])
        ms = 1e3 * (time.perf_counter() - start_s)
        return ms, found.yx_px

    return Method(name, run)


def backend_methods(path: Path, scene: Scene) -> list[Method]:
    """Return the other ways to run a model file that this machine offers, int8 calibrated on frame 0."""
    file = path.read_bytes()
    parts = divide(file)
    parts[MIDDLE_INT8] = quantise(parts, [scene.frames[0]])
    precisions = openvino_precisions()
    ways = [Backend("onnxruntime", "int8"), *(Backend("openvino", precision) for precision in precisions)]
    return [model_method(way.name, path, scene, open_backend(way, file, parts)) for way in ways]


def trained(preset: str, scene: Scene, folder: Path) -> Path:
    """Return the model of a preset, trained on the box unless it is there."""
    path = folder / f"{preset}.onnx"
    if not path.exists():
        export(train_lodestar(scene.frames[0], [scene.box], seed=0, settings=PRESETS[preset]), path)
    return path


class Peer:
    """A process of `speed_peer.py`."""

    def __init__(self, python: str, kind: str, frames: Path, *options: str) -> None:
        command = [python, str(Path(__file__).with_name("speed_peer.py")), kind, str(frames), *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, index: int, settings: dict[str, Any]) -> Answer:
        """Return what it makes of a frame."""
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("expected pipes to the peer, got none; please report this")
        self._process.stdin.write(json.dumps({"frame": index, "settings": settings}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["ms"], np.array(answer["yx"], np.float64).reshape(-1, 2)


def score_of(found: NDArray[np.float64], truth: NDArray[np.float64], radius_px: float) -> tuple[float, float]:
    """Return F1 and RMSE per axis in px."""
    comparison = TruthComparison(max_distance_px=radius_px)
    comparison.add(truth, found)
    score = comparison.score()
    return 2 * score.n_matched / max(1, score.n_true + score.n_found), score.rmse_px


def centred(found: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the positions less their median distance from the nearest truth."""
    if not len(found):
        return found
    nearest = np.hypot(*(found[:, None] - truth[None]).transpose(2, 0, 1)).argmin(1)
    return np.asarray(found - np.median(found - truth[nearest], axis=0))


def tuned(peer: Peer, settings: list[dict[str, Any]], scene: Scene, radius_px: float) -> dict[str, Any]:
    """Return the settings with the best F1 on frame 0, of equals the one with the smallest error."""

    def merit(setting: dict[str, Any]) -> tuple[float, float]:
        found = peer.ask(0, setting)[1]
        f1, rmse_px = score_of(centred(found, scene.truth[0]), scene.truth[0], radius_px)
        return round(f1, 2), -rmse_px if np.isfinite(rmse_px) else -1e9

    return max(settings, key=merit)


def peer_methods(chosen: argparse.Namespace, scene: Scene, frames: Path, radius_px: float) -> list[Method]:
    """Start the peers and choose their settings."""
    methods = []
    for kind in ("deeplay", "trackpy"):
        if kind not in chosen.only:
            continue
        options: list[str] = []
        if kind == "deeplay":
            box = scene.box
            options = ["--box", str(box.y_px), str(box.x_px), str(BOX_SIDE), "--steps", str(chosen.peer_steps)]
            options += ["--weights", str(chosen.models / "deeplay.pt")]
            settings: list[dict[str, Any]] = [{"mode": mode, "cutoff": cutoff} for mode, cutoff in CUTOFFS]
        else:
            masses = [500 * 2**k for k in range(7)]
            settings = [{"diameter": d, "minmass": mass} for d in DIAMETERS for mass in masses]
        peer = Peer(chosen.peer_python, kind, frames, *options)
        peer.ask(0, settings[0])
        best = tuned(peer, settings, scene, radius_px)
        print(f"{kind}: {best}", flush=True)

        def run(index: int, peer: Peer = peer, best: dict[str, Any] = best, kind: str = kind) -> Answer:
            ms, found = peer.ask(index, best)
            return ms, centred(found, scene.truth[index]) if kind == "deeplay" else found

        methods.append(Method(kind, run))
    return methods


def table(methods: list[Method], scene: Scene, radius_px: float) -> dict[str, Any]:
    """Print one line a method; the ratio is its time over that of the last, the default."""
    last_ms = float(np.median(methods[-1].ms))
    results: dict[str, Any] = {}
    print(f"{'':<14} {'ms':>8} {'ratio':>7} {'RMSE px':>8} {'F1':>7}")
    for method in methods:
        scores = np.array([score_of(found, scene.truth[k], radius_px) for k, found in method.found.items()])
        f1, rmse_px = scores[:, 0].mean(), np.sqrt((scores[:, 1] ** 2).mean())
        ms = float(np.median(method.ms))
        results[method.name] = {"ms": ms, "all_ms": method.ms, "rmse_px": float(rmse_px), "f1": float(f1)}
        print(f"{method.name:<14} {ms:8.1f} {ms / last_ms:7.2f} {rmse_px:8.4f} {f1:7.4f}", flush=True)
    return results


def main() -> None:
    """Measure in turn and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ("deeplay", "trackpy", "paper", "default")
    arguments.add_argument("--peer-python", help="of the environment with deeplay and trackpy")
    arguments.add_argument("--only", nargs="+", choices=kinds, default=list(kinds))
    arguments.add_argument("--model", nargs="+", default=[], metavar="NAME=FILE", help="further model files")
    arguments.add_argument("--backends", action="store_true", help="also other ways to run the default")
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--beads", type=int, default=200)
    arguments.add_argument("--size", type=int, default=1024, metavar="PX")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--peer-steps", type=int, default=5000, help="of deeplay's training")
    scratch = Path(tempfile.gettempdir()) / "oneframe-speed"
    arguments.add_argument("--models", type=Path, default=scratch, help="folder for what was trained")
    arguments.add_argument("--stages", type=Path, metavar="FILE", help="only profile this model")
    arguments.add_argument("-o", "--output", type=Path)
    chosen = arguments.parse_args()
    if chosen.stages:
        for n_beads in (200, 500):
            speed_stages.show(chosen.stages, scene_of(n_beads, chosen.size, chosen.seed).frames[1], chosen.rounds)
        return
    chosen.models.mkdir(parents=True, exist_ok=True)
    scene = scene_of(chosen.beads, chosen.size, chosen.seed)
    frames = chosen.models / f"frames-{os.getpid()}.npy"
    np.save(frames, scene.frames)
    files = {name: trained(name, scene, chosen.models) for name in ("paper", "default") if name in chosen.only}
    more = {name: Path(path) for name, _, path in (text.partition("=") for text in chosen.model)}
    models = [model_method(name, path, scene) for name, path in {**more, **files}.items()]
    if chosen.backends:
        models = backend_methods(files["default"], scene) + models
    radius_px = float(load_model(next(iter({**files, **more}.values()))).card.object_diameter_px) / 2
    methods = (peer_methods(chosen, scene, frames, radius_px) if chosen.peer_python else []) + models
    for method in methods:
        method.run(1)  # the first frame allocates and compiles
    for turn in range(chosen.rounds):
        index = 1 + turn % (N_FRAMES - 1)
        for method in methods:
            ms, method.found[index] = method.run(index)
            method.ms.append(ms)
    results = table(methods, scene, radius_px)
    frames.unlink()
    if chosen.output:
        chosen.output.write_text(json.dumps({"beads": chosen.beads, "size_px": chosen.size, **results}, indent=1))


if __name__ == "__main__":
    main()
