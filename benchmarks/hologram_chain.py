"""The live chain on holograms of 512 x 512 with 8 particles, beside plain LodeSTAR on images of the field's size.

Run: python benchmarks/hologram_chain.py [--rounds 60] [-o results.json]
Needs: pip install "oneframe[train]"

Both models are trained first (about a minute). Then they take turns, frame by frame, in one run; printed are medians
over the rounds, for one thread of the network and for as many as ONNX Runtime chooses, and where the time goes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition import open_source
from oneframe.acquisition.source import frames
from oneframe.export import export
from oneframe.runtime import HologramModel, load_model
from oneframe.runtime.field_reader import FieldReader, HologramSettings
from oneframe.runtime.focal_planes import FocalPlanes
from oneframe.runtime.model import load_graph
from oneframe.runtime.optics import Optics
from oneframe.runtime.refine import ParticleRefiner
from oneframe.trainer import train

SETTINGS = HologramSettings("off-axis", Optics(wavelength_um=0.633, medium_index=1.33, na=1.3, pixel_um=0.1))
HOLOGRAMS = "sim:hologram?n=8&z_um=5&separation_um=4"
BEADS = "sim:beads?width=256&height=256&n=8"


def main() -> None:
    """Train, measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=60)
    arguments.add_argument("-o", "--output", type=Path)
    chosen = arguments.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        plain, holograms = Path(folder) / "plain.onnx", Path(folder) / "hologram.onnx"
        images, snapped = images_of(f"{BEADS}&seed=2", 8), images_of(f"{HOLOGRAMS}&seed=2", 8)
        reference = images_of("sim:hologram?n=0&seed=99", 1)[0]
        export(train(images_of(f"{BEADS}&seed=1", 1)[0], box="auto"), plain)
        model = train(images_of(f"{HOLOGRAMS}&seed=1", 1)[0], box="auto", hologram=SETTINGS, reference=reference)
        export(model, holograms)
        for threads in (1, None):
            name = "one thread" if threads else "as ONNX Runtime chooses"
            results[name] = compared(plain, holograms, images, snapped, reference, threads, chosen.rounds)
            print(name, {part: round(value, 2) for part, value in results[name].items()}, flush=True)
    if chosen.output:
        chosen.output.write_text(json.dumps(results, indent=1))


def images_of(source: str, n: int) -> list[NDArray[Any]]:
    return [frame.pixels for frame in frames(open_source(f"{source}&frames={n}"))]


def compared(
    plain: Path,
    holograms: Path,
    images: list[NDArray[Any]],
    snapped: list[NDArray[Any]],
    reference: NDArray[Any],
    threads: int | None,
    rounds: int,
) -> dict[str, float]:
    """Return median milliseconds of each chain and of the parts of the hologram's, and the ratio of the chains."""
    of_images = load_model(plain, threads=threads)
    of_holograms = load_model(holograms, threads=threads, reference=reference)
    coarse = HologramModel(load_graph(holograms, threads=threads), reference=reference, refine=False)
    reader = FieldReader(of_holograms.settings, reference=reference)  # type: ignore[union-attr]
    field = reader.read(snapped[0])
    card = of_holograms.card
    shape = (field.shape[0], field.shape[1])
    planes = FocalPlanes(
        reader.settings.field_optics, shape, card.hologram["pixels_per_cell"], card.hologram["planes_um"]
    )
    channels, graph = planes.of(field - 1), load_graph(holograms, threads=threads)
    refiner = ParticleRefiner.for_optics(reader.settings.field_optics, z_um=(-6.4, 6.4), shape=shape, spheres=True)
    found = coarse.detect(snapped[0])
    at, z_um = np.stack([found.y_px, found.x_px], 1) / 2, found.z_um
    tasks: dict[str, Callable[[int], object]] = {
        "plain LodeSTAR": lambda i: of_images.detect(images[i]),
        "hologram chain": lambda i: of_holograms.detect(snapped[i]),
        "network only": lambda i: coarse.detect(snapped[i]),
        "part: field": lambda i: reader.read(snapped[i]),
        "part: planes": lambda _: planes.of(field - np.complex64(1)),
        "part: graph": lambda _: graph.detect(channels),
        "part: refinement": lambda _: refiner.measure(field, at, z_um, noise=0.008),
    }
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 5):
        for name, task in tasks.items():
            started = time.perf_counter()
            task(turn % len(images))
            if turn >= 5:
                times[name].append(1e3 * (time.perf_counter() - started))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ratios = np.array(times["hologram chain"]) / np.array(times["plain LodeSTAR"])
    return {**medians, "chain over plain": float(np.median(ratios)), "particles": float(len(at))}


if __name__ == "__main__":
    main()
