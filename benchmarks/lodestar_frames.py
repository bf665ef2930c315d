"""LodeSTAR on real frames: nuclei, beads in water and stem cells, each trained from one box.

Run: python benchmarks/lodestar_frames.py [--data FOLDER] [--seeds 1] [--set size=0.6,1.4 ...] [-o FOLDER]

Trains, exports, and detects through the `.onnx` file at the threshold that it carries. Prints what was found against a
reference; with -o writes the frames with a ring round each detection. Data that is not there is skipped.

nuclei  `bbbc/`: BBBC039 (CC0), eight frames of U2OS nuclei with instance masks; every object of at least 30 px counts,
        debris and what the frame's edge cuts included. Matched within 10 px of the mask's centroid.
beads   `trackpy/bulk_water_*.png`: 1 um beads in water at all depths. There is no truth. `trackpy.locate(11)`, the
        tutorial's call, drops one of two beads closer than 12 px and marks faint haze; the same program with a diameter
        of 7 agrees with it to 0.7 only. So also: recall of the beads that are clear (diameter 7, mass 100), precision
        against all that may be beads (mass 33), positions against the clear ones. Four single frames cannot be linked:
        a static error from the mean square displacement needs the film.
cells   `deeptrack_lodestar/BF-C2DL-HSC_*.tif`: bright-field stem cells, the paper's Figure 2f: box and frames are the
        paper's. Compared with centres marked by eye between rows 402 and 698.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oneframe.acquisition.recording import read_image
from oneframe.export import export
from oneframe.runtime import load_model
from oneframe.runtime.overlay import draw_overlay, write_png
from oneframe.runtime.truth import match
from oneframe.trainer import Box
from oneframe.trainer.lodestar import train_lodestar
from oneframe.trainer.lodestar_network import LodestarSettings

NUCLEI_BOXES = {
    "A02_s1": Box(528, 325, 55, 55),
    "A09_s1": Box(330, 116, 52, 52),
    "A18_s1": Box(623, 422, 49, 49),
}
"""Isolated nuclei of about median area and brightness, each the one box of a model of its own."""
SMALLEST_NUCLEUS_PX = 30
BEAD_BOX = Box(503, 156, 17, 17)
BEAD_FRAMES = ("000", "100", "200", "298")
CLEAR_MASS, FAINT_MASS = 100, 33
CELL_BOX = Box(80, 538, 40, 40)
CELL_ROWS = (402, 698)
CELL_COLUMNS = (0, 320)
CELLS_XY = (
    "101,412 119,407 141,413 152,404 169,406 195,418 128,422 177,427 95,431 112,430 147,430 125,441 169,442 192,446 "
    "89,458 107,453 131,457 149,454 165,466 182,458 70,470 101,473 117,470 142,472 159,480 180,479 68,490 88,487 "
    "110,489 132,484 149,495 165,493 196,497 178,503 86,502 128,502 65,507 104,508 157,514 92,520 118,521 138,522 "
    "174,526 195,524 65,526 94,534 124,537 154,535 106,543 138,541 170,545 189,541 59,545 91,552 107,560 126,556 "
    "139,563 155,557 178,559 192,566 207,559 91,569 117,572 129,583 154,578 173,576 205,579 102,584 144,592 166,595 "
    "186,586 202,598 117,597 103,609 156,606 179,605 139,609 116,619 129,630 155,624 175,621 197,619 217,616 111,635 "
    "148,642 170,639 214,635 120,655 136,656 158,655 178,654 197,647 222,660 128,671 147,672 166,672 197,664 187,679 "
    "230,676 209,688 138,688 156,690 174,692 193,696"
)
"""Centres of the 104 cells in those rows, marked by eye before any detection was drawn."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A trained and exported model."""

    model: Any
    training_s: float

    def positions(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """Return what it detects at its own threshold, (N, 2) as (y, x)."""
        found = self.model.detect(image)
        return np.column_stack([found.y_px, found.x_px])

    def __str__(self) -> str:
        card = self.model.card
        return f"threshold {card.threshold:.3f}, diameter {card.object_diameter_px:.0f} px, {self.training_s:.0f} s"


class Count:
    """Adds up matches of detections to a reference, frame by frame."""

    def __init__(self, radius_px: float) -> None:
        self.radius_px = radius_px
        self.n_reference = self.n_found = self.n_matched = 0
        self.differences: list[NDArray[np.float64]] = []

    def add(self, reference: NDArray[Any], found: NDArray[Any]) -> None:
        """Match one frame's detections (M, 2) with its reference (N, 2), one to one."""
        a, b = match(reference, found, self.radius_px)
        self.n_reference += len(reference)
        self.n_found += len(found)
        self.n_matched += len(a)
        self.differences.append(found[b] - reference[a])

    @property
    def recall(self) -> float:
        """Share of the reference that was found."""
        return self.n_matched / max(1, self.n_reference)

    @property
    def precision(self) -> float:
        """Share of the detections that the reference knows."""
        return self.n_matched / max(1, self.n_found)

    def __str__(self) -> str:
        f1 = 2 * self.n_matched / max(1, self.n_reference + self.n_found)
        away_px = np.median(np.hypot(*np.concatenate(self.differences).T)) if self.n_matched else float("nan")
        return (
            f"F1 {f1:.3f}  recall {self.recall:.3f}  precision {self.precision:.3f}  found {self.n_found} of "
            f"{self.n_reference}  median distance {away_px:.2f} px"
        )


def train_on(image: NDArray[Any], box: Box, seed: int, settings: LodestarSettings, folder: Path) -> Reader:
    """Train on one box and read the model back from its file."""
    start_s = time.perf_counter()
    trained = train_lodestar(image, [box], seed=seed, settings=settings)
    training_s = time.perf_counter() - start_s
    path = folder / f"{time.monotonic_ns()}.onnx"
    export(trained, path)
    return Reader(load_model(path), training_s)


def nuclei(folder: Path) -> dict[str, tuple[NDArray[Any], NDArray[np.float64]]]:
    """Return each frame of BBBC039 by its well and site, and the centroids (N, 2) of its masks."""
    frames = {}
    for path in sorted(folder.glob("*.tif")):
        mask = np.asarray(cv2.imread(str(path.with_name(path.stem + "_mask.png")), cv2.IMREAD_UNCHANGED))[..., 2]
        centroids = []
        for value in np.unique(mask[mask > 0]):  # in red; those that touch differ, others may share one
            parts, n = ndimage.label(mask == value)
            index = np.arange(1, n + 1)
            large = index[np.bincount(parts.ravel(), minlength=n + 1)[1:] >= SMALLEST_NUCLEUS_PX]
            centroids += ndimage.center_of_mass(parts > 0, parts, large)
        frames[path.name[8:14]] = read_image(path).pixels, np.array(centroids)
    return frames


def measure_nuclei(data: Path, seed: int, settings: LodestarSettings, models: Path, pictures: Path | None) -> None:
    """One model per box, each read on all eight frames."""
    frames = nuclei(data / "bbbc")
    for name, box in NUCLEI_BOXES.items():
        reader = train_on(frames[name][0], box, seed, settings, models)
        count = Count(10.0)
        for other, (image, centroids) in frames.items():
            count.add(centroids, reader.positions(image))
            draw(reader, image, pictures, f"nuclei-{name}-on-{other}")
        print(f"nuclei {name}, seed {seed}: {count}; {reader}", flush=True)


def measure_beads(data: Path, seed: int, settings: LodestarSettings, models: Path, pictures: Path | None) -> None:
    """One model on the first frame, read on all four."""
    frames = {name: grey(data / "trackpy" / f"bulk_water_{name}.png") for name in BEAD_FRAMES}
    reader = train_on(frames["000"], BEAD_BOX, seed, settings, models)
    tutorial, clear, faint = Count(3.0), Count(3.0), Count(3.0)
    for name, image in frames.items():
        found = reader.positions(image)
        draw(reader, image, pictures, f"beads-{name}")
        for count, diameter, separation, mass in (
            (tutorial, 11, 12, 20),
            (clear, 7, 5, CLEAR_MASS),
            (faint, 7, 5, FAINT_MASS),
        ):
            count.add(located(image, diameter, separation, mass), found)
    print(f"beads, seed {seed}: against trackpy.locate(11, minmass=20): {tutorial}; {reader}")
    print(
        f"    clear beads (diameter 7, mass {CLEAR_MASS}): recall {clear.recall:.3f} of {clear.n_reference};  "
        f"detections that are at least faint (mass {FAINT_MASS}): precision {faint.precision:.3f} of {faint.n_found}"
    )
    difference = np.concatenate(clear.differences)
    spread = 1.4826 * np.median(np.abs(difference - np.median(difference, axis=0)), axis=0)
    print(
        f"    positions minus trackpy's, clear beads: robust SD y {spread[0]:.3f}, x {spread[1]:.3f} px "
        "(both errors together; 4 single frames cannot be linked)",
        flush=True,
    )


def measure_cells(data: Path, seed: int, settings: LodestarSettings, models: Path, pictures: Path | None) -> None:
    """One model on the paper's crop, read on a frame 1512 frames later."""
    folder = data / "deeptrack_lodestar"
    reader = train_on(read_image(folder / "BF-C2DL-HSC_t0251.tif").pixels, CELL_BOX, seed, settings, models)
    image = read_image(folder / "BF-C2DL-HSC_t1763.tif").pixels
    found = reader.positions(image)
    draw(reader, image, pictures, "cells-1763")
    y, x = found.T
    in_rows = (y >= CELL_ROWS[0]) & (y < CELL_ROWS[1]) & (x >= CELL_COLUMNS[0]) & (x < CELL_COLUMNS[1])
    count = Count(8.0)
    count.add(np.array([[float(v) for v in pair.split(",")] for pair in CELLS_XY.split()])[:, ::-1], found[in_rows])
    print(f"cells, seed {seed}: {count}; {len(found)} in the whole frame; {reader}", flush=True)


def grey(path: Path) -> NDArray[np.uint8]:
    """Return a colour picture as one grey image (H, W)."""
    return np.asarray(cv2.cvtColor(np.asarray(cv2.imread(str(path))), cv2.COLOR_BGR2GRAY), np.uint8)


def located(image: NDArray[Any], diameter: int, separation: float, mass: float) -> NDArray[np.float64]:
    """Return trackpy's dark features, (N, 2)."""
    import trackpy  # an optional package, which the other two data sets do without

    trackpy.quiet()
    found = trackpy.locate(image, diameter, invert=True, minmass=mass, separation=separation)
    return np.asarray(found[["y", "x"]].to_numpy(np.float64))


def draw(reader: Reader, image: NDArray[Any], pictures: Path | None, name: str) -> None:
    """Write the frame with rings, if there is a folder for pictures."""
    if pictures is not None:
        diameter_px = reader.model.card.object_diameter_px
        write_png(pictures / f"{name}.png", draw_overlay(image, reader.model.detect(image), diameter_px=diameter_px))


def settings_from(texts: list[str]) -> Iterator[tuple[str, Any]]:
    """Read NAME=VALUE, a pair of numbers as NAME=LOW,HIGH."""
    for text in texts:
        name, value = text.split("=")
        now = getattr(LodestarSettings(), name)
        numbers = tuple(float(part) for part in value.split(","))
        yield name, numbers if isinstance(now, tuple) else type(now if now is not None else 0)(numbers[0])


def main() -> None:
    """Measure what there is data for."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside_repository = Path(__file__).resolve().parents[2] / "shared" / "data" / "lodestar"
    arguments.add_argument("--data", type=Path, default=beside_repository, help="folder with bbbc/, trackpy/, ...")
    arguments.add_argument("--seeds", type=int, default=1)
    arguments.add_argument("--only", nargs="+", choices=("nuclei", "beads", "cells"), help="not all three")
    arguments.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of LodestarSettings")
    arguments.add_argument("-o", "--output", type=Path, help="folder for the pictures")
    chosen = arguments.parse_args()
    settings = replace(LodestarSettings(), **dict(settings_from(chosen.set)))
    if chosen.output:
        chosen.output.mkdir(parents=True, exist_ok=True)
    sets = {
        "nuclei": (measure_nuclei, "bbbc/*_mask.png"),
        "beads": (measure_beads, "trackpy/bulk_water_298.png"),
        "cells": (measure_cells, "deeptrack_lodestar/BF-C2DL-HSC_t1763.tif"),
    }
    with tempfile.TemporaryDirectory() as models:
        for name in chosen.only or sets:
            measure, needed = sets[name]
            if not any(chosen.data.glob(needed)):
                print(f"{name}: skipped, there is no {needed} in {chosen.data}")
                continue
            for seed in range(chosen.seeds):
                measure(chosen.data, seed, settings, Path(models), chosen.output)


if __name__ == "__main__":
    main()
