"""Time of one frame: our single-molecule model beside a network of SHOT-Lite's size, in the same runtime.

    python benchmarks/smlm_speed.py molecules.onnx [--sizes 128 256] [--threads 2] [--rounds 7]

SHOT-Lite's size as in the paper's text: an encoder U-Net 1 -> 48 and a core U-Net 144 -> 48 of 48 channels and depth 2
with group normalisation over the whole image, three frames, a decoder on half the resolution. Random weights: time does
not depend on them. Both are ONNX files in ONNX Runtime, timed alternately; ours with everything from counts to rows.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time

import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneframe.acquisition.emitters import EmitterMovie, EmitterScene
from oneframe.runtime import load_model


class _Double(nn.Sequential):
    def __init__(self, n_in: int, n_out: int) -> None:
        layers: list[nn.Module] = []
        for first in (n_in, n_out):
            layers += [nn.Conv2d(first, n_out, 3, padding=1, bias=False), nn.GroupNorm(1, n_out), nn.SiLU()]
        super().__init__(*layers)


class _UNet(nn.Module):
    def __init__(self, n_in: int, n_out: int, f: int = 48) -> None:
        super().__init__()
        self.top, self.middle, self.bottom = _Double(n_in, f), _Double(f, 2 * f), _Double(2 * f, 4 * f)
        self.up_middle, self.up_top = nn.ConvTranspose2d(4 * f, 2 * f, 2, 2), nn.ConvTranspose2d(2 * f, f, 2, 2)
        self.join_middle, self.join_top = _Double(4 * f, 2 * f), _Double(2 * f, f)
        self.head = nn.Conv2d(f, n_out, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, n_out, H, W)."""
        top = self.top(image)
        middle = self.middle(F.max_pool2d(top, 2))
        bottom = self.bottom(F.max_pool2d(middle, 2))
        middle = self.join_middle(torch.cat([middle, self.up_middle(bottom)], 1))
        joined: Tensor = self.head(self.join_top(torch.cat([top, self.up_top(middle)], 1)))
        return joined


class LiteSize(nn.Module):
    """A network with SHOT-Lite's layers, (F, 1, H, W) -> (1, 6, H / 2, W / 2)."""

    def __init__(self, n_frames: int = 3, n_features: int = 48) -> None:
        super().__init__()
        self.encoder = _UNet(1, n_features)
        self.core = _UNet(n_frames * n_features, n_features)
        self.background = nn.Conv2d(n_features, 1, 1)
        self.decoder = _Double(n_features, 2 * n_features)
        self.head = nn.Conv2d(2 * n_features, 5, 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the candidates' channels and the background."""
        features = self.encoder(frames).flatten(0, 1)[None]
        features = self.core(features)
        return self.head(self.decoder(F.max_pool2d(features, 2))), F.softplus(self.background(features))


def lite_session(size_px: int, threads: int) -> ort.InferenceSession:
    """Return the network of SHOT-Lite's size, ready for frames of this size."""
    file = io.BytesIO()
    program = torch.onnx.export(LiteSize().eval(), (torch.rand(3, 1, size_px, size_px),), dynamo=True, verbose=False)
    if program is None:
        raise RuntimeError("expected torch to return the traced graph, got none")
    file.write(program.model_proto.SerializeToString())
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Print the times and their ratio for each frame size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    model = load_model(arguments.model, threads=arguments.threads)
    for size_px in arguments.sizes:
        frame = EmitterMovie(EmitterScene(width=size_px, height=size_px)).expose()
        lite = lite_session(size_px, arguments.threads)
        planes = np.repeat(frame[None, None].astype(np.float32), 3, 0)
        name = lite.get_inputs()[0].name
        both = {"ours": lambda frame=frame: model.detect(frame), "lite": lambda: lite.run(None, {name: planes})}  # noqa: B023
        times: dict[str, list[float]] = {name: [] for name in both}
        for _ in range(arguments.rounds + 1):
            for what, run in both.items():
                start_s = time.perf_counter()
                run()
                times[what].append(time.perf_counter() - start_s)
        ours_ms, lite_ms = (1e3 * statistics.median(times[what][1:]) for what in ("ours", "lite"))
        print(json.dumps({"size_px": size_px, "ours_ms": ours_ms, "lite_ms": lite_ms, "ratio": lite_ms / ours_ms}))


if __name__ == "__main__":
    main()
