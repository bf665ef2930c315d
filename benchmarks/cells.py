"""Cells of one frame: what `oneframe train --method cellulus` exports, beside no network and beside thresholds.

Run: python benchmarks/cells.py nuclei|dsb|annotations|film|sim|speed|figure|show [--data FOLDER] [--seeds 3]
                                [--keep FOLDER] [--diameter given|estimated] [--frames NAME ...] [-o FILE.json]
                                [--plot FILE.png]
Needs: pip install "oneframe[train,report]" scikit-image scikit-learn; but for sim the public frames in FOLDER, which
holds `stardist_nuclei2d`, `dsb2018` and `bacteria_trpL_20f`. `show` prints what earlier runs wrote, `figure` draws what
their models in `--keep` see; a model that is there is not trained again.

nuclei  one frame of touching nuclei: F1, SEG, time of training
dsb     ten frames of nuclei, one model each
annotations  the same with five true cells annotated, drawn by chance three times: without them, from them alone (the
        same pipeline, no proposed cell is learned) and from both
film    rods in phase contrast: trained on the first frame, and on the last; F1, SEG and identities over all twelve
sim     `sim:cells`: trained on frame 0, then 100 frames in which the density doubles and the brightness halves; once
        more with the focus drifting away, the blur growing from 1.2 to 4.2 px
speed   512 x 512 px: the whole chain beside Otsu and watershed, the clustering beside scikit-learn's MeanShift

All columns look at the same frames. ours: the exported file through `load_model`. zero offsets: its foreground and its
clean-up, but each pixel votes for itself. Otsu, Li: `cells_classical`; cut: each of their cells at half its own height
above the median of the rest, as `runtime/cell_cleanup` cuts it. Bright backgrounds: they get the frame inverted, ours
only where a user would say so (the rods). The diameter is what a user would measure: the median equivalent diameter of
the true cells in the frame that is trained on, whole px (of rods the width, 16 px), or with `--diameter estimated` what
the program reads off that frame; the classical columns have the same. Nothing else is told, nothing tuned on the truth.

F1 at IoU > 0.5; SEG as in the Cell Tracking Challenge. Identities: a link is a pair of true cells of successive frames
of which, after the shift in which the frames overlap most, either covers half of the other, unless the first divides;
it is kept if both are found (IoU > 0.5) and have one track id.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cells_classical import li_watershed, otsu_watershed
from numpy.typing import NDArray
from speed_stages import kernel_events

from oneframe.acquisition.cells import MODALITIES, CellMovie, CellScene
from oneframe.runtime import load_model
from oneframe.runtime.cell_cleanup import half_maximum_cut, size_filter
from oneframe.runtime.cell_link import CellLinker
from oneframe.runtime.cell_model import CellModel, Separation, cells_of
from oneframe.runtime.cell_table import cell_table
from oneframe.runtime.model import OnnxModel, load_graph
from oneframe.runtime.segmentation_score import SegmentationScore
from oneframe.runtime.vote_clustering import vote_labels

Labels = NDArray[np.int32]
Image = NDArray[Any]

CLASSICAL = ("Otsu", "Li", "Otsu, cut", "Li, cut")
COLUMNS = ("ours", "zero offsets", *CLASSICAL)
ROD_WIDTH_PX = 16.0
ANNOTATED, DRAWS = 5, 3
"""Cells, and how often others are drawn."""
WAYS: dict[str, dict[str, Any]] = {"alone": {"pseudo_weight": 0.0, "separate": "network"}, "both": {}}
"""What `annotations` compares with the unsupervised model."""
BRIGHT_BACKGROUND = ("091944f1d2",)
"""Frames of `dsb` that are inverted for the classical columns."""
SIM_FRAMES = (*range(0, 100, 10), 99)
SIM_FILM = {"doubling_frames": 100.0, "half_life_frames": 100.0}
SIM_FILMS: dict[str, tuple[str, dict[str, float]]] = {
    **{modality: (modality, SIM_FILM) for modality in MODALITIES},
    "focus drift": ("fluorescence", {**SIM_FILM, "focus_drift_px": 0.04}),
}
"""Name -> modality, and what happens in the film."""


@dataclass(frozen=True)
class Known:
    """What a user says before the training, and the classical columns are told."""

    diameter_px: float | None
    dark: bool = False
    """Whether the classical columns see the frame inverted."""
    cells: str | None = None


class Trained:
    """One exported file as the user has it, and its maps."""

    def __init__(self, path: Path, told: dict[str, Any]) -> None:
        model = load_model(path)
        if not isinstance(model, CellModel):
            raise TypeError(f"expected a model for cells, got {type(model).__name__} from {path}; train with cellulus")
        self.model: CellModel = model
        self.graph: OnnxModel = load_graph(path)
        self.told = told
        """Time of training and what the card says."""

    @property
    def diameter_px(self) -> float:
        """Of a cell, as it was told or estimated."""
        return float(self.model.card.object_diameter_px)

    def columns(self, image: Image, known: Known) -> dict[str, Labels]:
        """Return the labels of every column for an image (H, W)."""
        found = self.model.detect(image).labels
        if found is None:
            raise ValueError("expected labels, the model gave rows only; export it again")
        return {"ours": found, "zero offsets": self._without_offsets(image), **self._classical(image, known)}

    def votes(self) -> Separation:
        """Return how offsets become cells, also where the file parts them otherwise."""
        from oneframe.trainer.cellulus import CellulusSettings, separation

        own = self.model.separation
        if own.by == "votes":
            return own
        return separation(self.diameter_px, CellulusSettings())

    def _without_offsets(self, image: Image) -> Labels:
        maps = self.graph.maps(image)
        still = np.zeros(image.shape, np.float32)
        labels = cells_of({**maps, "offset_y_px": still, "offset_x_px": still}, image, self.votes()).labels
        return np.zeros(image.shape, np.int32) if labels is None else labels

    def _classical(self, image: Image, known: Known) -> dict[str, Labels]:
        seen = inverted(image) if known.dark else image
        plain = {"Otsu": otsu_watershed(seen, self.diameter_px), "Li": li_watershed(seen, self.diameter_px)}
        least_px = 0.1 * math.pi * self.diameter_px**2 / 4
        cut = {}
        for name, labels in plain.items():
            background = float(np.median(seen[labels == 0])) if (labels == 0).any() else float(seen.min())
            cut[f"{name}, cut"] = size_filter(half_maximum_cut(labels, seen, background), least_px)
        return {**plain, **cut}


def inverted(image: Image) -> Image:
    return image.max() - image


def trained(image: Image, known: Known, seed: int, path: Path, **said: Any) -> Trained:
    """Train on an image unless the file is there already; seconds are those of training, without the export.

    `said` is told to `train` as it is.
    """
    from oneframe.export import export
    from oneframe.trainer import train

    beside = path.with_suffix(".json")
    if not path.exists():
        given = {"diameter_px": known.diameter_px, "cells": known.cells, **said}
        started, started_cpu = time.perf_counter(), time.process_time()
        model = train(image, method="cellulus", seed=seed, **{k: v for k, v in given.items() if v is not None})
        told = {"training_s": time.perf_counter() - started, "training_cpu_s": time.process_time() - started_cpu}
        started = time.perf_counter()
        export(model, path)
        told |= {"export_s": time.perf_counter() - started}
        beside.write_text(json.dumps(told))
    told = json.loads(beside.read_text()) if beside.exists() else {}
    made = Trained(path, told)
    card = made.model.card
    made.told |= {
        "seed": seed,
        "diameter_px": card.object_diameter_px,
        "separation": made.model.separation.by,
        "foreground": card.settings["foreground"],
        "kind": card.settings.get("separate", "network"),
        "advice": card.quality.get("advice_sentence", ""),
    }
    print(f"{path.name}: {json.dumps(made.told)}", flush=True)
    return made


def figures_of(truths: Sequence[Image], found: Sequence[Labels]) -> dict[str, float]:
    score = SegmentationScore()
    for truth, labels in zip(truths, found, strict=True):
        score.add(truth, labels)
    figures = score.figures()
    return {
        **{"f1": figures.f1, "seg": figures.seg, "precision": figures.precision, "recall": figures.recall},
        **{"matched_iou": figures.matched_iou, "n_true": figures.n_true, "n_found": figures.n_found},
    }


def eye_diameter_px(truth: Image) -> float:
    """Return the median equivalent diameter of the true cells, whole px."""
    area = np.bincount(truth.ravel())[1:]
    return float(round(float(np.median(np.sqrt(4 / math.pi * area[area > 0])))))


def drawn_cells(truth: Image, seed: int) -> Labels:
    """Return so many true cells as a person annotates, by chance."""
    cells = np.unique(truth[truth > 0])
    chosen = np.random.default_rng(seed).choice(cells, min(ANNOTATED, len(cells)), replace=False)
    return np.where(np.isin(truth, chosen), truth, 0).astype(np.int32)


def without(labels: Image, annotated: Labels) -> Labels:
    """Return labels without those that lie mostly on annotated cells."""
    area = np.maximum(np.bincount(labels.ravel()), 1)
    gone = np.bincount(labels[annotated > 0], minlength=len(area)) > area / 2
    return np.where(gone[labels], 0, labels).astype(np.int32)


def read_tiff(path: Path) -> Image:
    import tifffile

    if not path.is_file():
        raise SystemExit(f"expected the public frames, found no {path}; say where they are with --data")
    return np.asarray(tifffile.imread(path))


class Bench:
    """What all lines have in common: the frames, the seeds, where models and results go."""

    def __init__(self, chosen: argparse.Namespace, folder: Path) -> None:
        self.data: Path = chosen.data
        self.seeds = range(chosen.first_seed, chosen.first_seed + chosen.seeds)
        self.rounds: int = chosen.rounds
        self.frames: list[str] | None = chosen.frames
        self._given = chosen.diameter == "given"
        self._suffix = "" if self._given else "-estimated"
        self._folder = folder

    def known(self, diameter_px: float, **said: Any) -> Known:
        """Return what is told before a training."""
        return Known(diameter_px if self._given else None, **said)

    def trained(self, name: str, image: Image, known: Known, seed: int, **said: Any) -> Trained:
        """Return the model of this name and seed, trained on an image if there is none yet."""
        return trained(image, known, seed, self._folder / f"{name}{self._suffix}-{seed}.onnx", **said)

    def nuclei_frame(self) -> tuple[Image, Image]:
        """Return image and truth."""
        folder = self.data / "stardist_nuclei2d"
        return read_tiff(folder / "img2d.tif"), read_tiff(folder / "mask2d.tif")

    def dsb_frames(self) -> dict[str, tuple[Image, Image]]:
        """Return name -> image and truth."""
        paths = sorted((self.data / "dsb2018").glob("*_img.tif"))
        names = [path.name.removesuffix("_img.tif") for path in paths]
        return {
            name: (read_tiff(path), read_tiff(path.with_name(f"{name}_mask.tif")))
            for name, path in zip(names, paths, strict=True)
            if self.frames is None or name in self.frames
        }

    def film_frames(self) -> tuple[Image, Image]:
        """Return images and truth, (t, y, x)."""
        folder = self.data / "bacteria_trpL_20f"
        return read_tiff(folder / "img.tif"), read_tiff(folder / "mask.tif")

    def nuclei(self) -> dict[str, Any]:
        """Measure the frame of touching nuclei."""
        image, truth = self.nuclei_frame()
        known = self.known(eye_diameter_px(truth))
        runs = []
        for seed in self.seeds:
            model = self.trained("nuclei", image, known, seed)
            each = {name: figures_of([truth], [labels]) for name, labels in model.columns(image, known).items()}
            runs.append({**model.told, "columns": each})
        return {"runs": runs}

    def dsb(self) -> dict[str, Any]:
        """Measure the ten frames."""
        runs = []
        for seed in self.seeds:
            frames, told = {}, {}
            for name, (image, truth) in self.dsb_frames().items():
                known = self.known(eye_diameter_px(truth), dark=name in BRIGHT_BACKGROUND)
                model = self.trained(f"dsb-{name}", image, known, seed)
                columns = model.columns(image, known)
                frames[name] = {column: figures_of([truth], [labels]) for column, labels in columns.items()}
                told[name] = model.told
            runs.append({"seed": seed, "frames": frames, "models": told})
        return {"runs": runs}

    def annotations(self) -> dict[str, Any]:
        """Measure what five annotated cells do; one seed of training."""
        from oneframe.trainer.annotations import Annotations

        seed = self.seeds[0]
        frames: dict[str, list[dict[str, Any]]] = {}
        for name, (image, truth) in self.dsb_frames().items():
            known = self.known(eye_diameter_px(truth))
            unsupervised = self.trained(f"dsb-{name}", image, known, seed).model.detect(image).labels
            frames[name] = []
            for draw in range(DRAWS):
                annotated = drawn_cells(truth, draw)
                found = {"unsupervised": unsupervised}
                for way, said in WAYS.items():
                    said = {**said, "annotations": Annotations(annotated)}
                    model = self.trained(f"annotated-{way}-{name}-{draw}", image, known, seed, **said)
                    found[way] = model.model.detect(image).labels
                rest = without(truth, annotated)
                frames[name].append(
                    {
                        way: {
                            **figures_of([truth], [labels]),
                            "f1_rest": figures_of([rest], [without(labels, annotated)])["f1"],
                        }
                        for way, labels in found.items()
                    }
                )
                print(
                    f"{name}, draw {draw}: {json.dumps({k: v['f1'] for k, v in frames[name][-1].items()})}", flush=True
                )
        return {"frames": frames, "seed": seed}

    def film(self) -> dict[str, Any]:
        """Measure the film of rods."""
        images, truths = self.film_frames()
        known = self.known(ROD_WIDTH_PX, dark=True, cells="dark")
        links = true_links(truths)
        runs = []
        for index in (0, len(images) - 1):
            for seed in self.seeds:
                model = self.trained(f"film-{index}", images[index], known, seed)
                each = [model.columns(image, known) for image in images]
                columns = {}
                for name in COLUMNS:
                    found = [columns_of[name] for columns_of in each]
                    columns[name] = {**figures_of(truths, found), **identities(images, truths, found, links)}
                frames = {
                    name: [figures_of([truth], [one[name]])["f1"] for truth, one in zip(truths, each, strict=True)]
                    for name in COLUMNS
                }
                runs.append({**model.told, "trained_on": index, "columns": columns, "frame_f1": frames})
        return {"runs": runs}

    def sim(self) -> dict[str, Any]:
        """Measure simulated films, fluorescence with every seed, the other contrasts with the first."""
        runs = []
        for name, (modality, happens) in SIM_FILMS.items():
            for seed in self.seeds if modality == "fluorescence" else list(self.seeds)[:1]:
                scene = CellScene.of(modality, seed=seed + 1, **happens)
                frames = simulated(scene, SIM_FRAMES)
                diameter_px = 2 * scene.rod_radius_px if scene.rods else eye_diameter_px(frames[0][1])
                known = self.known(round(diameter_px), dark=scene.rods, cells="dark" if scene.rods else None)
                try:
                    model = self.trained(f"sim-{modality}", frames[0][0], known, seed)
                except ValueError as exc:
                    runs.append({"film": name, "seed": seed, "failed": str(exc)})
                    continue
                each = [
                    {column: figures_of([truth], [found]) for column, found in model.columns(image, known).items()}
                    for image, truth in frames
                ]
                runs.append({**model.told, "film": name, "frames": list(SIM_FRAMES), "figures": each})
        return {"runs": runs}

    def speed(self) -> dict[str, Any]:
        """Measure times."""
        image, truth = self.nuclei_frame()
        known = self.known(eye_diameter_px(truth))
        self.trained("nuclei", image, known, self.seeds[0])
        path = self._folder / f"nuclei{self._suffix}-{self.seeds[0]}.onnx"
        default, single = Trained(path, {}), load_model(path, threads=1)
        diameter_px = default.diameter_px
        ways: dict[str, Callable[[], Any]] = {
            "ours": lambda: default.model.detect(image),
            "ours, 1 thread": lambda: single.detect(image),
            "Otsu and watershed": lambda: otsu_watershed(image, diameter_px),
        }
        chain = alternately(ways, self.rounds)
        return {
            "shape": list(image.shape),
            "chain_ms": chain,
            "ratio": {name: chain[name] / chain["Otsu and watershed"] for name in chain},
            "parts_ms": parts(default, image, self.rounds),
            "operators_ms": operators(path, image, self.rounds),
            "clustering": clustering(default, image, truth, self.rounds),
        }


def true_links(truths: Image) -> list[list[tuple[int, int]]]:
    """Return for each step the pairs of true labels that are one cell by mask overlap, without those that divide."""
    return [_links(before, now) for before, now in itertools.pairwise(truths)]


def _links(before: Image, now: Image) -> list[tuple[int, int]]:
    moved = shifted(before, common_shift(before > 0, now > 0))
    own, areas = np.bincount(before.ravel()), np.bincount(now.ravel())
    pairs: list[tuple[int, int]] = []
    for label in np.flatnonzero(own)[1:].tolist():
        shared = np.bincount(now[moved == label], minlength=len(areas))
        shared[0] = 0
        inside = np.flatnonzero((2 * shared >= areas) & (areas > 0) & (shared > 0))
        if len(inside) == 1 and 2 * shared[inside[0]] >= own[label]:
            pairs.append((label, int(inside[0])))
    return pairs


def common_shift(before: NDArray[np.bool_], now: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the shift (dy, dx), whole px, in which two masks overlap most."""
    from scipy import fft

    shape = [fft.next_fast_len(2 * n, real=True) for n in before.shape]
    transforms = [fft.rfft2(mask.astype(np.float32), shape) for mask in (before, now)]
    overlap = fft.irfft2(np.conj(transforms[0]) * transforms[1], shape)
    place = np.unravel_index(int(np.argmax(overlap)), overlap.shape)
    dy, dx = (int(k) if k < n / 2 else int(k) - n for k, n in zip(place, shape, strict=True))
    return dy, dx


def shifted(labels: Image, shift: tuple[int, int]) -> Image:
    """Return labels moved by whole px; what comes in is background."""
    out = np.zeros_like(labels)
    here = tuple(slice(max(0, d), n + min(0, d)) for d, n in zip(shift, labels.shape, strict=True))
    there = tuple(slice(max(0, -d), n + min(0, -d)) for d, n in zip(shift, labels.shape, strict=True))
    out[here] = labels[there]
    return out


def identities(
    images: Image, truths: Image, found: Sequence[Labels], links: list[list[tuple[int, int]]]
) -> dict[str, float]:
    """Link the found cells frame by frame, as `oneframe log` does; return how many of the true links are kept."""
    linker, score, track_of = CellLinker(), SegmentationScore(), []
    for index, (image, truth, labels) in enumerate(zip(images, truths, found, strict=True)):
        n = int(labels.max(initial=0))
        tracks = linker.link(cell_table(labels, image, np.ones(n, np.float32)), index)
        score.add(truth, labels)
        matches = score.matches()[-1]
        track_of.append(dict(zip(matches.true_label.tolist(), tracks.track_id[matches.found_label - 1], strict=True)))
    n_links = n_both = n_kept = 0
    for step, pairs in enumerate(links):
        for a, b in pairs:
            before, now = track_of[step].get(a), track_of[step + 1].get(b)
            n_links += 1
            n_both += before is not None and now is not None
            n_kept += before is not None and before == now
    return {
        "n_links": n_links,
        "links_kept": float(n_kept / max(n_links, 1)),
        "links_kept_of_found": float(n_kept / max(n_both, 1)),
    }


def simulated(scene: CellScene, wanted: Sequence[int]) -> list[tuple[Image, Image]]:
    """Return image and true labels of these frames of a film."""
    movie, frames = CellMovie(scene), []
    for index in range(max(wanted) + 1):
        image = movie.expose()
        if index in wanted:
            frames.append((image, movie.truth().labels))
        movie.advance()
    return frames


def alternately(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median time of each, ms; they take turns, and the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    return {name: 1e3 * statistics.median(each[1:]) for name, each in times.items()}


def parts(trained: Trained, image: Image, rounds: int) -> dict[str, float]:
    """Return the median time of each part of the chain, ms."""
    maps = trained.graph.maps(image)
    if "offset_y_px" not in maps:
        raise SystemExit("expected a model that votes, got the classical one; take another seed")
    inside, how = maps["foreground"] > 0, trained.votes()
    offsets = np.stack([maps[name] for name in ("offset_y_px", "offset_x_px")])

    def votes() -> Labels:
        return vote_labels(offsets, inside, bandwidth_px=how.bandwidth_px, least_votes=how.least_votes)

    raw = votes()
    labels = size_filter(raw, how.least_area_px)
    score = np.ones(int(labels.max()), np.float32)
    return alternately(
        {
            "graph": lambda: trained.graph.maps(image),
            "votes": votes,
            "size filter": lambda: size_filter(raw, how.least_area_px),
            "table": lambda: cell_table(labels, image, score),
            "whole": lambda: trained.model.detect(image),
        },
        rounds,
    )


def operators(path: Path, image: Image, rounds: int) -> dict[str, float]:
    """Return the time that each kind of operator takes in the graph on one thread, ms per frame, longest first."""
    total: dict[str, float] = {}
    for event in kernel_events(path, image.astype(load_graph(path).card.input_dtype), rounds, threads=1):
        shapes = event["args"].get("output_type_shape", [])
        size = "x".join(map(str, next(iter(shapes[0].values())))) if shapes else ""
        name = f"{event['args']['op_name']} {size}"
        total[name] = total.get(name, 0) + event["dur"] / 1e3 / rounds
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def clustering(trained: Trained, image: Image, truth: Image, rounds: int) -> dict[str, Any]:
    """Compare the vote clustering with scikit-learn's MeanShift on the same embeddings, as Cellulus calls it.

    That is fitted on a tenth of the foreground's pixels, every one of them a seed, then predicts all; bandwidths are
    ours and Cellulus' half a diameter. Both are followed by the same size filter.
    """
    from sklearn.cluster import MeanShift

    maps, how = trained.graph.maps(image), trained.votes()
    inside = maps["foreground"] > 0
    offsets = np.stack([maps[name] for name in ("offset_y_px", "offset_x_px")])

    def votes() -> Labels:
        return vote_labels(offsets, inside, bandwidth_px=how.bandwidth_px, least_votes=how.least_votes)

    ms = alternately({"votes": votes}, rounds)["votes"]
    filtered = size_filter(votes(), how.least_area_px)
    result: dict[str, Any] = {"n_px": int(inside.sum()), "votes": {"ms": ms, **figures_of([truth], [filtered])}}
    ends = (np.argwhere(inside).T + offsets[:, inside]).T
    some = ends[np.random.default_rng(0).random(len(ends)) < 0.1]
    for name, bandwidth_px in {"own bandwidth": how.bandwidth_px, "half a diameter": trained.diameter_px / 2}.items():
        started = time.perf_counter()
        shift = MeanShift(bandwidth=bandwidth_px, cluster_all=False).fit(some)
        number = shift.predict(ends)
        mean_ms = 1e3 * (time.perf_counter() - started)
        labels = np.zeros(inside.shape, np.int32)
        labels[inside] = number + 1
        found = figures_of([truth], [size_filter(labels, how.least_area_px)])
        result[f"MeanShift, {name}"] = {"ms": mean_ms, "times_slower": mean_ms / ms, **found}
    return result


def best_classical(values: dict[str, float]) -> str:
    return max(CLASSICAL, key=lambda name: values[name])


def table(rows: dict[str, Sequence[float | str]], heads: Sequence[str], digits: int = 3) -> None:
    """Print rows of figures under their heads."""
    print(f"{'':22s}" + "".join(f"{head:>14s}" for head in heads))
    for name, values in rows.items():
        print(f"{name:22s}" + "".join(f"{v:>14s}" if isinstance(v, str) else f"{v:14.{digits}f}" for v in values))


def median_over(runs: Sequence[dict[str, Any]], figure: str) -> dict[str, float]:
    return {name: statistics.median(run["columns"][name][figure] for run in runs) for name in COLUMNS}


def _training(runs: Sequence[dict[str, Any]]) -> None:
    each = [f"{run['training_s']:.0f} ({run['training_cpu_s']:.0f} CPU)" for run in runs if "training_s" in run]
    diameters = sorted({f"{run['diameter_px']:.1f}" for run in runs})
    print(f"training, s: {', '.join(each)}; diameter {', '.join(diameters)} px")


def print_nuclei(result: dict[str, Any]) -> None:
    runs = result["runs"]
    shown = ("f1", "seg", "precision", "recall")
    medians = {figure: median_over(runs, figure) for figure in shown}
    print(f"\nnuclei, median of {len(runs)} seeds; best classical column: {best_classical(medians['f1'])}")
    table({name: [medians[figure][name] for figure in shown] for name in COLUMNS}, shown)
    print("each seed, F1/SEG: " + ", ".join("{f1:.3f}/{seg:.3f}".format(**run["columns"]["ours"]) for run in runs))
    _training(runs)


def print_dsb(result: dict[str, Any]) -> None:
    runs = result["runs"]
    names = list(runs[0]["frames"])
    f1 = {name: {c: statistics.median(run["frames"][name][c]["f1"] for run in runs) for c in COLUMNS} for name in names}
    means = {
        c: statistics.median(statistics.mean(run["frames"][n][c]["f1"] for n in names) for run in runs) for c in COLUMNS
    }
    best = best_classical(means)
    print(f"\ndsb, F1, median of {len(runs)} seeds; best classical column: {best}")
    rows: dict[str, Sequence[float | str]] = {name: [f1[name][c] for c in COLUMNS] for name in names}
    for name in names:
        models = [run["models"][name] for run in runs]
        kinds = "/".join(sorted({m["kind"] for m in models}))
        rows[name] = [*rows[name], f1[name]["ours"] - f1[name][best], kinds]
    rows["mean"] = [*(means[c] for c in COLUMNS), means["ours"] - means[best], ""]
    seg = {
        c: statistics.median(statistics.mean(run["frames"][n][c]["seg"] for n in names) for run in runs)
        for c in COLUMNS
    }
    rows["mean SEG"] = [*(seg[c] for c in COLUMNS), seg["ours"] - seg[best], ""]
    table(rows, (*COLUMNS, "over best", "card's choice"))
    worst = min(names, key=lambda n: f1[n]["ours"] - f1[n][best])
    print(f"worst frame beside {best}: {worst}, {f1[worst]['ours'] - f1[worst][best]:+.3f}")
    of_all = {n: f1[n]["ours"] - max(f1[n][c] for c in CLASSICAL) for n in names}
    worst = min(of_all, key=lambda n: of_all[n])
    print(f"worst frame beside whatever classical column is best on it: {worst}, {of_all[worst]:+.3f}")
    _training([told for run in runs for told in run["models"].values()])


def print_annotations(result: dict[str, Any]) -> None:
    frames, ways = result["frames"], ("unsupervised", *WAYS)
    print(f"\n{ANNOTATED} annotated cells, F1, mean of {DRAWS} draws; seed {result['seed']}")
    mean = {
        figure: {
            name: [statistics.mean(draw[way][figure] for draw in draws) for way in ways]
            for name, draws in frames.items()
        }
        for figure in ("f1", "seg", "f1_rest")
    }
    rows: dict[str, Sequence[float | str]] = dict(mean["f1"])
    for title, figure in (("mean", "f1"), ("mean SEG", "seg"), ("annotated left out", "f1_rest")):
        rows[title] = [statistics.mean(each) for each in zip(*mean[figure].values(), strict=True)]
    table(
        {name: [*row, row[2] - row[0], row[2] - row[1]] for name, row in rows.items()},
        (*ways, "gain", "over alone"),
    )  # type: ignore[operator]


def print_film(result: dict[str, Any]) -> None:
    shown = ("f1", "seg", "precision", "recall", "links_kept", "links_kept_of_found")
    for index in sorted({run["trained_on"] for run in result["runs"]}):
        runs = [run for run in result["runs"] if run["trained_on"] == index]
        medians = {figure: median_over(runs, figure) for figure in shown}
        n_links = runs[0]["columns"]["ours"]["n_links"]
        print(f"\nfilm, trained on frame {index}, median of {len(runs)} seeds; {n_links} links by mask overlap")
        heads = (*shown[:4], "links kept", "of found")
        table({name: [medians[figure][name] for figure in shown] for name in COLUMNS}, heads)
        print("each seed, F1: " + ", ".join(f"{run['columns']['ours']['f1']:.3f}" for run in runs))
        print("each frame, first seed: " + " ".join(f"{f1:.2f}" for f1 in runs[0]["frame_f1"]["ours"]))
        _training(runs)


def print_sim(result: dict[str, Any]) -> None:
    for name in SIM_FILMS:
        runs = [run for run in result["runs"] if run["film"] == name]
        for run in (run for run in runs if "failed" in run):
            print(f"\nsim, {name}, seed {run['seed']}: no model: {run['failed']}")
        runs = [run for run in runs if "failed" not in run]
        if not runs:
            continue
        indices = runs[0]["frames"]
        f1 = {
            c: [statistics.median(run["figures"][k][c]["f1"] for run in runs) for k in range(len(indices))]
            for c in COLUMNS
        }
        best = best_classical({c: statistics.mean(f1[c]) for c in CLASSICAL})
        n_true = [run["figures"][k]["ours"]["n_true"] for run in runs[:1] for k in (0, -1)]
        print(f"\nsim, {name}, F1, median of {len(runs)} seeds; {n_true[0]} cells, {n_true[1]} in the last frame")
        print(f"best classical column: {best}")
        rows: dict[str, Sequence[float | str]] = {str(i): [f1[c][k] for c in COLUMNS] for k, i in enumerate(indices)}
        table(rows, COLUMNS)
        print(
            f"ours falls by {f1['ours'][0] - min(f1['ours']):.3f} at most, {f1['ours'][0] - f1['ours'][-1]:.3f} to the"
        )
        below = min(a - b for a, b in zip(f1["ours"], f1[best], strict=True))
        of_all = min(f1["ours"][k] - max(f1[c][k] for c in CLASSICAL) for k in range(len(indices)))
        print(f"last frame; least lead over {best} {below:+.3f}, over the best of each frame {of_all:+.3f}")
        _training(runs)


def print_speed(result: dict[str, Any]) -> None:
    print(f"\nspeed, {' x '.join(map(str, result['shape']))} px")
    rows = {name: [ms, result["ratio"][name]] for name, ms in result["chain_ms"].items()}
    table(rows, ("ms", "ratio"), 2)
    whole = result["parts_ms"]["whole"]
    print()
    table({name: [ms, ms / whole] for name, ms in result["parts_ms"].items()}, ("ms", "share"), 2)
    print("\nthe graph's operators on one thread, ms")
    table({name: [ms] for name, ms in list(result["operators_ms"].items())[:14]}, ("ms",), 2)
    table({"all": [sum(result["operators_ms"].values())]}, ("ms",), 2)
    print(f"\nclustering of {result['clustering']['n_px']} pixels")
    each = {name: one for name, one in result["clustering"].items() if isinstance(one, dict)}
    print(f"{'':34s}{'ms':>12s}{'times slower':>14s}{'F1':>8s}{'SEG':>8s}")
    for name, one in each.items():
        print(f"{name:34s}{one['ms']:12.1f}{one.get('times_slower', 1.0):14.0f}{one['f1']:8.3f}{one['seg']:8.3f}")


PRINT: dict[str, Callable[[dict[str, Any]], None]] = {
    **{"nuclei": print_nuclei, "dsb": print_dsb, "annotations": print_annotations, "film": print_film},
    **{"sim": print_sim, "speed": print_speed},
}


def draw(bench: Bench, path: Path) -> None:
    """Draw frames with the outlines found beside the true ones; models that are not there yet are trained."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    image, truth = bench.nuclei_frame()
    seed = bench.seeds[0]
    shown = {
        "touching nuclei": (image, truth, bench.trained("nuclei", image, bench.known(eye_diameter_px(truth)), seed))
    }
    image, truth = bench.dsb_frames()["091944f1d2"]
    model = bench.trained("dsb-091944f1d2", image, bench.known(eye_diameter_px(truth)), seed)
    shown["stained tissue, bright background"] = image[:400, :400], truth[:400, :400], model
    images, truths = bench.film_frames()
    model = bench.trained("film-0", images[0], bench.known(ROD_WIDTH_PX, dark=True, cells="dark"), seed)
    y, x = (round(float(each.mean())) for each in np.nonzero(truths[-1]))
    box = tuple(
        slice(max(0, min(c - 200, n - 400)), max(400, min(c + 200, n)))
        for c, n in zip((y, x), images[-1].shape, strict=True)
    )
    shown["rods, trained 12 frames before"] = images[-1][box], truths[-1][box], model
    scene = CellScene.of("fluorescence", seed=seed + 1, **SIM_FILM)
    (first, known), (image, truth) = simulated(scene, (0, 99))
    model = bench.trained("sim-fluorescence", first, bench.known(eye_diameter_px(known)), seed)
    shown["simulated, twice as dense and half as bright"] = image[:300, :300], truth[:300, :300], model

    figure, axes = plt.subplots(2, len(shown), figsize=(4 * len(shown), 8.3), layout="constrained")
    for column, (title, (image, truth, model)) in enumerate(shown.items()):
        found = model.model.detect(image).labels
        f1 = figures_of([truth], [found])["f1"] if found is not None else 0.0
        for row, (labels, colour, name) in enumerate(
            ((found, "#ffd400", f"ours, F1 {f1:.2f}"), (truth, "#35d0ff", "truth"))
        ):
            panel = axes[row, column]
            low, high = np.percentile(image, (0.5, 99.7))
            panel.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            for label in np.unique(labels)[1:]:
                panel.contour(labels == label, (0.5,), colors=colour, linewidths=0.8)
            panel.set_title(f"{title}\n{name}" if row == 0 else name, fontsize=10, loc="left")
            panel.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
    plt.close(figure)


def main() -> None:
    """Train or load, measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("line", choices=(*PRINT, "figure", "show"))
    arguments.add_argument("--data", type=Path, default=Path("data/cellulus"), metavar="FOLDER")
    arguments.add_argument("--seeds", type=int, default=3, help="train this many")
    arguments.add_argument("--first-seed", type=int, default=0)
    arguments.add_argument("--frames", nargs="+", metavar="NAME", help="of dsb and annotations, only these")
    arguments.add_argument("--rounds", type=int, default=15, help="of speed")
    arguments.add_argument("--diameter", choices=("given", "estimated"), default="given")
    arguments.add_argument("--keep", type=Path, metavar="FOLDER", help="where the trained models go")
    arguments.add_argument("-o", "--output", type=Path, help="results of all lines, each the latest")
    arguments.add_argument("--plot", type=Path, default=Path("docs/images/cells.png"))
    chosen = arguments.parse_args()
    earlier = json.loads(chosen.output.read_text()) if chosen.output and chosen.output.exists() else {}
    if chosen.line == "show":
        for result in earlier.values():
            PRINT[result["line"]](result)
        return
    with tempfile.TemporaryDirectory() as folder:
        target = chosen.keep or Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        bench = Bench(chosen, target)
        if chosen.line == "figure":
            draw(bench, chosen.plot)
            return
        result = getattr(bench, chosen.line)() | {"line": chosen.line, "diameter": chosen.diameter}
    PRINT[chosen.line](result)
    if chosen.output:
        chosen.output.write_text(json.dumps(earlier | {f"{chosen.line}, diameter {chosen.diameter}": result}, indent=1))


if __name__ == "__main__":
    main()
