"""The peer: deeplay's LodeSTAR (0.1.4), untouched, on the images of `lodestar_shapes.py`.

Run: python benchmarks/lodestar_peer.py [--seed 0] [--steps 5000] [--threads 1] [--shapes point ...] [-o results.json]
     python benchmarks/lodestar_peer.py --evaluate WEIGHTS [--held-out-seed 2026] [-o results.json]
     python benchmarks/lodestar_peer.py --time 200        seconds per training step, nothing else

`--evaluate` reads the weights that an earlier run left in the folder `--weights`, in place of training.
Runs in an environment of its own (torch, numpy, scipy, deeplay==0.1.4 with what it imports) and never imports
oneframe. Trains as the paper does: one image of SNR 10, 5000 steps of 8 views of it, Adam 1e-3. A position is read in
deeplay's two ways, `pooled` (weighted average over the image) and `best_cell` (the prediction at the best score, as
`detect` does with its default alpha = beta = 0.5); `ratio` keeps the better of the two, cell by cell.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import sys
import tempfile
import time
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

# deeplay's own dependencies come before the stub below, so that they see what is really installed
import kornia  # noqa: F401
import lightning  # noqa: F401
import numpy as np
import shapes
import torch
import torch_geometric  # noqa: F401
from numpy.typing import NDArray

try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):
    # deeplay imports torchvision without using it in LodeSTAR; its CUDA build fails beside a CPU build of torch
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    for name in ("", ".models", ".transforms", ".transforms.functional"):
        stub = types.ModuleType(f"torchvision{name}")
        stub.__spec__ = importlib.machinery.ModuleSpec(stub.__name__, None)
        sys.modules[stub.__name__] = stub

import deeplay

N_VIEWS = 8
LEARNING_RATE = 1e-3
READINGS = ("pooled", "best_cell")


def untrained(seed: int) -> Any:
    """Return deeplay's model at the start of a training."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - deeplay draws its views from numpy's global generator
    return deeplay.LodeSTAR(n_transforms=N_VIEWS, optimizer=deeplay.Adam(lr=LEARNING_RATE)).build()


def train(image: NDArray[np.float32], seed: int, n_steps: int) -> Any:
    """Return deeplay's model after `n_steps` on one image: its `training_step`, less the trainer around it."""
    model = untrained(seed)
    batch = torch.from_numpy(image)[None, None]
    model.train()
    optimizer = model.configure_optimizers()
    for _ in range(n_steps):
        views, inverse = model.train_preprocess(batch)
        loss = sum(model.compute_loss(model(views), inverse).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def trained_on(shape: str, chosen: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Train and save, or read what an earlier run saved; return the model and how it was trained."""
    folder = chosen.evaluate or chosen.weights
    weights, note = folder / f"{shape}-{chosen.seed}.pt", folder / f"{shape}-{chosen.seed}.json"
    if chosen.evaluate:
        image = torch.from_numpy(shapes.training_image(shape, chosen.seed))[None, None]
        model = untrained(chosen.seed).eval()
        with torch.no_grad():
            model(image)  # the layers learn their sizes from the first image
        model.model.load_state_dict(torch.load(weights, weights_only=True))
        return model, json.loads(note.read_text())
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    model = train(shapes.training_image(shape, chosen.seed), chosen.seed, chosen.steps)
    how = {
        "training_s": [time.perf_counter() - start_s],
        "training_cpu_s": [time.process_time() - start_cpu_s],
        "seed": chosen.seed,
        "steps": chosen.steps,
        "threads": chosen.threads,
    }
    torch.save(model.model.state_dict(), weights)
    note.write_text(json.dumps(how))
    return model, how


@torch.no_grad()
def read_positions(model: Any, images: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Return the (y, x) of each image's one particle, (N, 2) px, by each of `READINGS`."""
    pooled, best_cell = [], []
    for chunk in torch.from_numpy(images)[:, None].split(50):
        pooled.append(model.pooled(chunk).numpy())
        for output in model(chunk):
            predicted, weight = output[:-1], output[-1:]
            score = model.get_detection_score(predicted, weight)[3:-3, 3:-3]  # the border that `detect` cuts
            row, column = np.unravel_index(score.argmax(), score.shape)
            best_cell.append(predicted[:, row + 3, column + 3].numpy())
    return {"pooled": np.concatenate(pooled).astype(float), "best_cell": np.stack(best_cell).astype(float)}


def measure(shape: str, chosen: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Measure one shape; return the entry of the results, each ratio as one row (this seed) of SNRS columns."""
    clean, poses = shapes.held_out(shape, chosen.images, cache, seed=chosen.held_out_seed)
    bounds = [shapes.cramer_rao_px(shape, snr) for snr in shapes.SNRS]
    model, how = trained_on(shape, chosen)
    ratio: dict[str, list[float]] = {reading: [] for reading in READINGS}
    worst: dict[str, float] = {}
    for snr, bound in zip(shapes.SNRS, bounds, strict=True):
        for reading, found in read_positions(model, shapes.with_noise(clean, snr, seed=chosen.held_out_seed)).items():
            error = shapes.errors_px(found, poses, shape=shape)
            ratio[reading].append(float(np.sqrt((error**2).mean())) / bound)
            if snr == 2:
                worst[reading] = float(np.hypot(*error.T).max())
    return {
        "bound_px": bounds,
        "ratio": [[min(cell) for cell in zip(*ratio.values(), strict=True)]],
        **{f"ratio_{reading}": [row] for reading, row in ratio.items()},
        "worst_px_snr2": [min(worst.values())],
        "images": chosen.images,
        "held_out_seed": chosen.held_out_seed,
        **how,
    }


def main() -> None:
    """Measure shape by shape; the results are written after each."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--steps", type=int, default=5000)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--images", type=int, default=200)
    arguments.add_argument("--held-out-seed", type=int, default=shapes.TUNING_SEED)
    arguments.add_argument("--shapes", nargs="+", default=list(shapes.SHAPES), choices=list(shapes.SHAPES))
    arguments.add_argument("--time", type=int, metavar="N", help="only time N training steps on the first shape")
    scratch = Path(tempfile.gettempdir())
    arguments.add_argument("--weights", type=Path, default=scratch / "oneframe-peer", help="folder for the weights")
    arguments.add_argument("--evaluate", type=Path, metavar="WEIGHTS", help="do not train: read this folder")
    arguments.add_argument("-o", "--output", type=Path)
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.time:
        image = shapes.training_image(chosen.shapes[0], chosen.seed)
        train(image, chosen.seed, 5)  # the first steps allocate
        start_s = time.perf_counter()
        train(image, chosen.seed, chosen.time)
        print(f"{(time.perf_counter() - start_s) / chosen.time:.4f} s per step, {chosen.threads} threads")
        return
    cache = scratch / "oneframe-shapes"
    chosen.weights.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    print(f"RMSE / bound at SNR {shapes.SNRS}; deeplay {version('deeplay')}, torch {torch.__version__}", flush=True)
    for shape in chosen.shapes:
        results[shape] = entry = measure(shape, chosen, cache)
        rows = "  ".join(
            f"{reading} " + " ".join(f"{cell:.2f}" for cell in entry[f"ratio_{reading}"][0]) for reading in READINGS
        )
        print(f"{shape:<9} {rows}  {entry['training_s'][0]:.0f} s", flush=True)
        if chosen.output:
            chosen.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
