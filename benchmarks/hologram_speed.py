"""Demodulate a hologram of 512 x 512 and refocus it to one plane, beside qpretrieve + nrefocus.

Run: OMP_NUM_THREADS=1 python benchmarks/hologram_speed.py [--rounds 15] [-o results.json]
Needs: pip install qpretrieve nrefocus

Both get the carrier, found before: the peer's own search is not timed. They take turns in one run; printed are medians
over the rounds and their ratio. The peer is timed as it comes (padding) and without any padding, as its users may set
it; `scale_to_filter` gives it fields of about half the size, as ours. Also timed: what else the live view does.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from oneframe.runtime.field_background import normalised
from oneframe.runtime.holography import OffAxisDemodulator, find_carrier
from oneframe.runtime.optics import Optics
from oneframe.runtime.refine import ParticleRefiner

OPTICS = Optics(wavelength_um=0.633, medium_index=1.33, na=1.3, pixel_um=0.1)
Z_UM = 3.0
N_PARTICLES = 8


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("-o", "--output", type=Path)
    chosen = arguments.parse_args()
    holograms = [hologram(seed) for seed in range(4)]  # not the same one twice: the peer keeps its last transform
    tasks = {**ours(holograms[0]), **peers(holograms[0])}
    milliseconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(chosen.rounds + 1):
        for name, task in tasks.items():
            image = holograms[turn % len(holograms)].copy()
            started = time.perf_counter()
            task(image)
            if turn:  # the first round warms up
                milliseconds[name].append(1e3 * (time.perf_counter() - started))
    medians = {name: float(np.median(times)) for name, times in milliseconds.items()}
    base = medians["oneframe: demodulate and refocus"]
    for name, median in medians.items():
        print(f"{name}: {median:.2f} ms, {median / base:.1f} times oneframe's demodulate and refocus")
    if chosen.output:
        chosen.output.write_text(json.dumps({"median_ms": medians, "rounds_ms": milliseconds}, indent=1))


def hologram(seed: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Return fringes with shot noise and a weak, smooth object."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((512, 512)) * OPTICS.pixel_um
    phase = 0.3 * np.exp(-((y - 20 - seed) ** 2 + (x - 25) ** 2) / 4)
    intensity = np.abs(np.exp(1j * phase) + np.exp(2j * np.pi * 2.9275 * (y + x))) ** 2
    return rng.poisson(1e4 * intensity).astype(np.uint16)


def ours(example: np.ndarray[Any, Any]) -> dict[str, Callable[[np.ndarray[Any, Any]], Any]]:
    demodulator = OffAxisDemodulator(OPTICS, example.shape, find_carrier(example, OPTICS))
    refiner = ParticleRefiner(demodulator.field_optics)
    field = normalised(demodulator.field(example))
    rng = np.random.default_rng(0)
    yx_px = rng.uniform(40, 216, (N_PARTICLES, 2))
    return {
        "oneframe: demodulate and refocus": lambda image: demodulator.refocused(image, Z_UM),
        "oneframe: demodulate, normalise, refocus": lambda image: demodulator.refocuser.refocus(
            normalised(demodulator.field(image)), Z_UM
        ),
        f"oneframe: refine z of {N_PARTICLES}": lambda _: refiner.refine_z(field, yx_px, 0.0, noise=0.005),
        f"oneframe: weigh {N_PARTICLES}": lambda _: refiner.polarizability_um3(field, yx_px, 0.0, noise=0.005),
    }


def peers(example: np.ndarray[Any, Any]) -> dict[str, Callable[[np.ndarray[Any, Any]], Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at import they tell which of their backends are not installed
        import nrefocus
        import qpretrieve
    first = qpretrieve.OffAxisHologram(example)
    first.run_pipeline()
    sideband = first.pipeline_kws["sideband_freq"]
    radius = OPTICS.pupil_radius_per_um * OPTICS.pixel_um  # cycles per pixel

    def chain(image: np.ndarray[Any, Any], padded: bool, cropped: bool) -> Any:
        holo = qpretrieve.OffAxisHologram(image, padding=2 if padded else 0)
        holo.run_pipeline(
            sideband_freq=sideband,
            filter_size=radius,
            filter_size_interpretation="frequency",
            scale_to_filter=cropped,
        )
        field = holo.field[0]
        pixel_m = 1e-6 * OPTICS.pixel_um * image.shape[0] / field.shape[0]
        refocus = nrefocus.RefocusNumpy(
            field, 1e-6 * OPTICS.wavelength_um, pixel_m, medium_index=OPTICS.medium_index, padding=padded
        )
        return refocus.propagate(1e-6 * Z_UM)

    return {
        "qpretrieve + nrefocus": lambda image: chain(image, True, False),
        "qpretrieve + nrefocus, half size": lambda image: chain(image, True, True),
        "qpretrieve + nrefocus, no padding": lambda image: chain(image, False, False),
        "qpretrieve + nrefocus, no padding, half size": lambda image: chain(image, False, True),
    }


if __name__ == "__main__":
    main()
