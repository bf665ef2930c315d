"""Peers of `speed.py`, each a process of its own: deeplay's LodeSTAR.detect, or trackpy.locate.

Run by `speed.py` as: PYTHON benchmarks/speed_peer.py deeplay|trackpy FRAMES.npy [--box Y X SIDE] [--steps N]
    [--weights FILE]

Never imports oneframe. Reads lines of JSON {"frame": index, "settings": {...}} and answers each with one line
{"ms": wall time, "yx": [[y, x], ...]}; waits without using the processor in between. deeplay (0.1.4) trains first, as
`lodestar_peer.py` does, on the box of frame 0, or reads the weights that it left before.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Locate = Callable[[NDArray[Any], dict[str, Any]], NDArray[Any]]
"""An image (H, W) and settings to positions (N, 2), (y, x) px."""


def trackpy_locate(chosen: argparse.Namespace, frames: NDArray[Any]) -> Locate:
    """Return `trackpy.locate`, which takes the camera's pixels."""
    import trackpy

    trackpy.quiet()

    def locate(image: NDArray[Any], settings: dict[str, Any]) -> NDArray[Any]:
        return np.asarray(trackpy.locate(image, **settings)[["y", "x"]])

    return locate


def deeplay_locate(chosen: argparse.Namespace, frames: NDArray[Any]) -> Locate:
    """Return deeplay's `detect`, with the scaling of the pixels that its users do by hand."""
    import lodestar_peer
    import torch

    y, x, side = chosen.box
    crop = frames[0, y : y + side, x : x + side].astype(np.float32)
    offset = float(np.median(crop))
    scale = float(np.quantile(np.abs(crop - offset), 0.995))
    torch.set_num_threads(1)  # views this small gain nothing from more
    crop = (crop - np.float32(offset)) / np.float32(scale)
    if chosen.weights.exists():
        model = lodestar_peer.untrained(0).eval()
        with torch.no_grad():
            model(torch.from_numpy(crop)[None, None])  # the layers learn their sizes from the first image
        model.model.load_state_dict(torch.load(chosen.weights, weights_only=True))
    else:
        model = lodestar_peer.train(crop, 0, chosen.steps)
        torch.save(model.model.state_dict(), chosen.weights)
    torch.set_num_threads(os.cpu_count() or 1)

    def locate(image: NDArray[Any], settings: dict[str, Any]) -> NDArray[Any]:
        with torch.no_grad():
            pixels = torch.from_numpy((image.astype(np.float32) - np.float32(offset)) / np.float32(scale))
            found = model.detect(pixels[None, None], **settings)[0]
        return np.asarray(found, np.float64).reshape(-1, 2)

    return locate


def main() -> None:
    """Answer until the input ends."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("peer", choices=("deeplay", "trackpy"))
    arguments.add_argument("frames", type=Path)
    arguments.add_argument("--box", type=int, nargs=3, metavar=("Y", "X", "SIDE"))
    arguments.add_argument("--steps", type=int, default=5000)
    arguments.add_argument("--weights", type=Path)
    chosen = arguments.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get among the answers
    frames = np.load(chosen.frames)
    locate = (deeplay_locate if chosen.peer == "deeplay" else trackpy_locate)(chosen, frames)
    for line in sys.stdin:
        asked = json.loads(line)
        start_s = time.perf_counter()
        try:
            found = locate(frames[asked["frame"]], asked["settings"])
        except ValueError as reason:  # deeplay's `detect` fails where its cutoff is 0
            print(reason, file=sys.stderr)
            found = np.empty((0, 2))
        ms = 1e3 * (time.perf_counter() - start_s)
        print(json.dumps({"ms": ms, "yx": found.tolist()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
