"""The peer: Picasso's Localize (`picassosr`), untouched, on the frames of `smlm.py`.

Run: python benchmarks/smlm_peer.py FRAMES.npz -o FOUND.npz [--boxes 5 7 9] [--methods gaussmle gaussmle-spherical]
`smlm.py --peer PYTHON` runs it: PYTHON is of an environment with picassosr, which never imports oneframe.

FRAMES.npz holds `frames` (n, H, W) uint16 and the camera's `offset` and `gain`, counts per electron. FOUND.npz gets,
for each method and box, a table `METHOD-BOX`: frame, y px, x px, net gradient, photons, sigma y px, sigma x px, and
`METHOD-BOX seconds`, of identification and fit together, the second of two runs, one process. Centre of pixel [0, 0]
is (0, 0). What lies outside its box after the fit is left out; Picasso looks for no maximum within half a box of the
border.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from picasso import localize

COLUMNS = ("frame", "y", "x", "net_gradient", "photons", "lpy", "lpx")


def main() -> None:
    """Localise with each method and box."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("frames", type=Path)
    arguments.add_argument("-o", "--output", type=Path, required=True)
    arguments.add_argument("--boxes", type=int, nargs="+", default=[5, 7, 9])
    arguments.add_argument("--methods", nargs="+", default=["gaussmle", "gaussmle-spherical"])
    chosen = arguments.parse_args()
    given = np.load(chosen.frames)
    movie = given["frames"]
    camera = {"Baseline": float(given["offset"]), "Sensitivity": 1 / float(given["gain"]), "Gain": 1, "Pixelsize": 100}
    found: dict[str, np.ndarray] = {}
    for method in chosen.methods:
        for box in chosen.boxes:
            run(movie[:2], camera, method, box)  # numba compiles
            started = time.perf_counter()
            found[f"{method}-{box}"] = run(movie, camera, method, box)
            found[f"{method}-{box} seconds"] = np.array(time.perf_counter() - started)
    np.savez(chosen.output, **found)


def run(movie: np.ndarray, camera: dict[str, float], method: str, box: int) -> np.ndarray:
    """Return the table of one method, all maxima with a net gradient above 0."""
    identification = {"Min. Net Gradient": 0.0, "Box Size": box}
    located = localize.localize_frames(
        movie, None, identification, camera_info=camera, fitting_method=method, threaded=False
    )
    table = located[list(COLUMNS)].to_numpy(np.float64)
    size = np.array(movie.shape[1:])
    inside = ((table[:, 1:3] > -0.5) & (table[:, 1:3] < size - 0.5)).all(1)
    return table[inside & np.isfinite(table).all(1)]


if __name__ == "__main__":
    main()
