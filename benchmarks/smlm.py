"""Localisation of dense emitters: SHOT trained on one simulated frame, beside classical fits and the Cramér-Rao bound.

Run: python benchmarks/smlm.py [--models A.onnx B.onnx | --seeds 3 | --classical-only] [--peer PYTHON]
                               [--densities 0.2 1 2 3 5] [--frames 48] [-o FILE.json] [--plot FILE.png]
     python benchmarks/smlm.py --from FILE.json [--plot FILE.png]        tables and plot of an earlier run
Needs: pip install "oneframe[train,report]"; --peer: the Python of an environment with picassosr (`smlm_peer.py`).

Frames: `sim:emitters` with its defaults (pixels of 0.1 um, sigma 1.3 px, read noise 1.6 e-, background 15 to 40, flux
3000, on for one frame), 64 x 64 px, as many as hold 2000 emitters or --frames. Each seed trains on a frame of its own,
256 x 256 px at 1 emitter per um^2, and is told nothing but the size of a pixel. Truth: the emitters inside the frame
that send 1 % of the mean flux. "brightest 75 %" leaves those below the 25 % quantile of photons out, as the EPFL
challenge does; "inner" the outermost 4 px, where Picasso does not look. Gate 250 nm.

RMSE is that of the challenge, y and x together: sqrt(mean(dy^2 + dx^2)). Classical methods get the threshold, the box
and the shape of the Gaussian that have the best Jaccard index on other frames of the same density, half as many and 24
at least; SHOT has the threshold in its card, "calibrated" one found in that way. Bounds: Cramér-Rao, over the emitters
that a method matched; "alone": as if no other emitter were there, "crowd": with the positions and photons of all, and
the background, unknown. No error above the gate can be matched, so neither bound counts more for an emitter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.emitters import EmitterMovie, EmitterScene, EmitterTruth
from oneframe.acquisition.psf import render
from oneframe.runtime.detections import Detections
from oneframe.runtime.gaussian_fit import bound, bound_in_frame, find_maxima, fit_gaussians
from oneframe.runtime.localisation_score import LocalisationFigures, LocalisationScore
from oneframe.runtime.model import load_graph

DENSITIES = (0.2, 1.0, 2.0, 3.0, 5.0)
PIXEL_UM = 0.1
TRAINING_PX = 256
CALIBRATION_FRAMES = 24
N_THRESHOLDS = 60
LEAST_EMITTERS = 2000
LOWEST_SCORE = 0.02
BORDER_PX = 4
LOWEST_PEAK = 2.0
TRUTHS = ("all", "brightest 75 %", "inner")
"""Which emitters count; inner: those more than `BORDER_PX` from the border, where every method looks."""
FIGURES = (
    *("jaccard", "precision", "recall", "rmse_nm", "rmse_axis_nm", "efficiency", "within_sigma"),
    *("frame_jaccard", "frame_rmse_px", "frame_efficiency", "n_true", "n_found", "n_matched"),
    "threshold",
)

TABLES = {
    **{"jaccard": 3, "precision": 3, "recall": 3, "rmse_nm": 1, "rmse_axis_nm": 1, "efficiency": 3},
    **{"frame_jaccard": 3, "frame_efficiency": 3, "within_sigma": 3, "bound_alone_nm": 1, "bound_crowd_nm": 1},
}
"""Figures that are printed, and with how many digits."""
BRIEF = ("jaccard", "precision", "recall", "rmse_nm", "efficiency")
"""Those also printed where fewer emitters count."""
LINES: dict[str, dict[str, Any]] = {
    "SHOT": {"color": "#0b5cad", "marker": "o", "linewidth": 2.4, "markersize": 5},
    "SHOT, calibrated": {"color": "#58a4e0", "marker": "o", "linestyle": "--", "linewidth": 1.4, "markersize": 3.5},
    "Gaussian fit": {"color": "#6b6b6b", "marker": "^", "linewidth": 1.6, "markersize": 5},
    "Picasso MLE": {"color": "#d1495b", "marker": "s", "linewidth": 1.6, "markersize": 4.5},
}

Found = list[Detections]


@dataclass
class Movie:
    """Frames that have nothing to do with each other, each between the frames before and after, and their truth."""

    scene: EmitterScene
    triples: NDArray[np.uint16]
    """(n, 3, H, W); what is to be found is in the second of each three."""
    truth: list[EmitterTruth]
    expected: NDArray[np.float64]
    """(n, H, W), photoelectrons without noise."""
    background: NDArray[np.float64]
    """(n, H, W), what of it is not the emitters'."""

    @classmethod
    def simulated(cls, density_um2: float, n_frames: int, seed: int, size_px: int = 64) -> Movie:
        """Simulate; the emitters of one seed are the same at any number of frames."""
        triples, truth, expected, background = [], [], [], []
        for index in range(n_frames):
            scene = EmitterScene(width=size_px, height=size_px, density_um2=density_um2, seed=1000 * seed + index)
            movie = EmitterMovie(scene)
            before = movie.expose()
            movie.advance()
            now = movie.expose()
            truth.append(movie.truth())
            expected.append(movie.expected())
            movie.advance()
            triples.append([before, now, movie.expose()])
            background.append(movie.background)
        return cls(scene, np.array(triples), truth, np.array(expected), np.array(background))

    @property
    def frames(self) -> NDArray[np.uint16]:
        """(n, H, W)."""
        return self.triples[:, 1]

    def counting(self, which: str) -> list[NDArray[np.bool_]]:
        """Return for each frame the emitters that count."""
        if which == "brightest 75 %":
            least = np.quantile(np.concatenate([t.photons for t in self.truth]), 0.25)
            return [t.photons >= least for t in self.truth]
        if which == "inner":
            return [self.inner(t.y_px, t.x_px) for t in self.truth]
        return [np.ones(t.y_px.size, bool) for t in self.truth]

    def inner(self, y_px: NDArray[Any], x_px: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which positions are more than `BORDER_PX` from the border."""
        height, width = self.triples.shape[2:]
        return (np.minimum(y_px, x_px) > BORDER_PX) & (y_px < height - 1 - BORDER_PX) & (x_px < width - 1 - BORDER_PX)


def scored(movie: Movie, found: Found, which: str = "all") -> LocalisationScore:
    score = LocalisationScore(PIXEL_UM)
    for truth, rows, counts in zip(movie.truth, found, movie.counting(which), strict=True):
        score.add(truth, rows.rows(movie.inner(rows.y_px, rows.x_px)) if which == "inner" else rows, counts=counts)
    return score


def best_threshold(movie: Movie, found: Found) -> LocalisationFigures:
    """Return the figures at the threshold with the best Jaccard index."""
    scores = np.concatenate([rows.score for rows in found])
    thresholds = np.unique(np.quantile(scores, np.linspace(0, 0.995, N_THRESHOLDS))) if len(scores) else [0.0]
    return max(scored(movie, found).scan(map(float, thresholds)), key=lambda f: f.jaccard)


def bounds_px2(movie: Movie) -> dict[str, list[NDArray[np.float64]]]:
    """Return the least variance, y and x together, of each true emitter of each frame, alone and in the crowd."""
    camera, psf, shape = movie.scene.camera, movie.scene.psf, movie.frames.shape[1:]
    noise = {"read_variance": camera.read_photoelectrons**2, "excess": camera.excess}
    found: dict[str, list[NDArray[np.float64]]] = {"alone": [], "crowd": []}
    for truth, expected, background in zip(movie.truth, movie.expected, movie.background, strict=True):
        y_px, x_px, photons = truth.y_px, truth.x_px, truth.photons
        place = np.rint(y_px).astype(int), np.rint(x_px).astype(int)
        rest = expected - render(y_px, x_px, photons, *psf.sigmas(truth.z_um), shape)
        alone = bound(psf, photons, background[place], **noise)
        crowd = bound_in_frame(psf, y_px, x_px, photons, rest, shape=shape, **noise)
        found["alone"].append(alone.y_px**2 + alone.x_px**2)
        found["crowd"].append(crowd.y_px**2 + crowd.x_px**2)
    return found


def bound_nm(bounds: list[NDArray[np.float64]], score: LocalisationScore, threshold: float) -> float:
    """Return the root mean square bound of the emitters that were matched."""
    matched = [least[true] for least, (true, _) in zip(bounds, score.matches(threshold), strict=True)]
    return 1e3 * PIXEL_UM * float(np.sqrt(np.mean(np.minimum(np.concatenate(matched), score.gate_px**2))))


class Picasso:
    """Picasso's Localize in an environment of its own: each box and shape of the Gaussian is a way of its own."""

    name = "Picasso MLE"

    def __init__(self, python: str) -> None:
        self._python = python

    def find(self, movie: Movie) -> dict[str, tuple[Found, float]]:
        """Return for each way what it found, and seconds per frame."""
        camera, n = movie.scene.camera, len(movie.frames)
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder) / "frames.npz", Path(folder) / "found.npz"
            np.savez(given, frames=np.ascontiguousarray(movie.frames), offset=camera.offset, gain=camera.gain)
            script = Path(__file__).with_name("smlm_peer.py")
            subprocess.run([self._python, str(script), str(given), "-o", str(made)], check=True, capture_output=True)
            tables = dict(np.load(made))
        ways = [name for name in tables if not name.endswith("seconds")]
        rows = {way: [_rows(tables[way][tables[way][:, 0] == k, 1:]) for k in range(n)] for way in ways}
        return {way: (rows[way], float(tables[f"{way} seconds"]) / n) for way in ways}


def _rows(table: NDArray[np.float64]) -> Detections:
    names = ("y_px", "x_px", "score", "photons", "sigma_y_px", "sigma_x_px")
    return Detections(**dict(zip(names, table.astype(np.float32).T, strict=True)))


class GaussianMle:
    """The package's own maxima and single-emitter fits, told the camera and, where the shape is fixed, the width."""

    name = "Gaussian fit"

    def find(self, movie: Movie) -> dict[str, tuple[Found, float]]:
        """Return for each shape and box what it found, scored by photons over uncertainty, and seconds per frame."""
        camera, sigma_px = movie.scene.camera, movie.scene.sigma_px
        noise = {"read_variance": camera.read_photoelectrons**2, "excess": camera.excess}
        ways: dict[str, tuple[Found, float]] = {}
        for shape in ("fixed", "round"):
            for box_px in (5, 7):
                started, found = time.perf_counter(), []
                for frame in movie.frames:
                    electrons = (frame.astype(np.float64) - camera.offset) / camera.gain
                    places = find_maxima(electrons, sigma_px, threshold=LOWEST_PEAK, **noise)
                    fit = fit_gaussians(electrons, *places.T, sigma_px=sigma_px, shape=shape, box_px=box_px, **noise)
                    score = fit.photons / np.maximum(fit.sigma_photons, 1e-9)
                    columns = (fit.y_px, fit.x_px, score, fit.photons, fit.sigma_y_px, fit.sigma_x_px)
                    kept = fit.converged & (fit.photons > 0)
                    found.append(_rows(np.column_stack(columns)[kept]))
                ways[f"{shape}-{box_px}"] = found, (time.perf_counter() - started) / len(found)
        return ways


class Shot:
    """An exported model; thresholds are looked for from `LOWEST_SCORE` on."""

    def __init__(self, path: Path, threshold: float | None = None, name: str = "SHOT") -> None:
        self.name = name
        self._model = load_graph(path, threshold=LOWEST_SCORE, threads=1)
        self.threshold = self._model.card.threshold if threshold is None else threshold

    def find(self, movie: Movie) -> dict[str, tuple[Found, float]]:
        """Return what it found, and seconds per frame."""
        images = movie.triples if self._model.card.n_channels == 3 else movie.frames
        self._model.detect(images[0])
        started = time.perf_counter()
        found = [self._model.detect(image) for image in images]
        return {"": (found, (time.perf_counter() - started) / len(found))}


Method = Picasso | GaussianMle | Shot


def trained(seed: int, path: Path, steps: int | None = None) -> dict[str, float]:
    """Train on a frame of its own and write the model; return the seconds it took."""
    from oneframe.export import export
    from oneframe.trainer import train

    scene = EmitterScene(width=TRAINING_PX, height=TRAINING_PX, density_um2=1.0, seed=seed + 1)
    started, started_cpu = time.perf_counter(), time.process_time()
    model = train(EmitterMovie(scene).expose(), method="shot", pixel_size_um=PIXEL_UM, seed=seed, steps=steps)
    took = {"training_s": time.perf_counter() - started, "training_cpu_s": time.process_time() - started_cpu}
    export(model, path)
    return took


def measure(method: Method, calibration: Movie, test: Movie, bounds: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one method at one density: `calibrated`, and where it has one its `own` threshold."""
    ways = {way: best_threshold(calibration, found) for way, (found, _) in method.find(calibration).items()}
    best = max(ways, key=lambda way: ways[way].jaccard)
    found, seconds = method.find(test)[best]
    thresholds = {"calibrated": ways[best].threshold}
    if isinstance(method, Shot):
        thresholds["own"] = method.threshold
    entry: dict[str, Any] = {"way": best, "ms_per_frame": 1e3 * seconds}
    if isinstance(method, Shot):
        figures = scored(test, found).at()
        entry["scores_over_emitters"] = figures.expected_count / figures.n_true
    for name, threshold in thresholds.items():
        entry[name] = {}
        for which in TRUTHS:
            score = scored(test, found, which)
            figures = score.at(threshold)
            entry[name][which] = {
                **{figure: getattr(figures, figure) for figure in FIGURES},
                **{f"bound_{kind}_nm": bound_nm(each, score, threshold) for kind, each in bounds.items()},
            }
    return entry


def measure_all(methods: list[Method], densities: list[float], n_frames: int, seed: int) -> dict[str, Any]:
    """Return name -> density -> one entry for each method of that name; they take turns on the same frames."""
    results: dict[str, Any] = {}
    for density in densities:
        per_frame = density * (64 * PIXEL_UM) ** 2
        n_test = max(n_frames, round(LEAST_EMITTERS / per_frame))
        calibration = Movie.simulated(density, max(CALIBRATION_FRAMES, n_test // 2), 2 * seed + 1)
        test = Movie.simulated(density, n_test, 2 * seed)
        bounds = bounds_px2(test)
        for method in methods:
            entry = measure(method, calibration, test, bounds)
            results.setdefault(method.name, {}).setdefault(str(density), []).append({"frames": n_test, **entry})
            own = "own" if "own" in entry else "calibrated"
            print(f"{density:g} per um^2, {method.name}: {told(entry[own]['all'])}", flush=True)
    return results


def told(figures: dict[str, float]) -> str:
    return (
        f"J {figures['jaccard']:.3f}, P {figures['precision']:.3f}, R {figures['recall']:.3f}, RMSE "
        f"{figures['rmse_nm']:.1f} nm (bound {figures['bound_alone_nm']:.1f}, crowd {figures['bound_crowd_nm']:.1f}), "
        f"E {figures['efficiency']:.3f}"
    )


def rows_of(results: dict[str, Any], which: str, figure: str) -> dict[str, list[float]]:
    """Return name of a line -> median over seeds at each density."""
    rows: dict[str, list[float]] = {}
    for name, by_density in results.items():
        for threshold, label in (("own", name), ("calibrated", f"{name}, calibrated" if name == "SHOT" else name)):
            entries = [[e[threshold][which][figure] for e in each if threshold in e] for each in by_density.values()]
            if all(entries):
                rows[label] = [float(np.median(each)) for each in entries]
    return rows


def print_tables(run: dict[str, Any]) -> None:
    """Print one table per figure: methods by density, medians over seeds."""
    results = run["results"]
    densities = list(next(iter(results.values())))
    print("\n" + f"{'emitters per um^2':58s}" + "".join(f"{d:>9s}" for d in densities))
    for which in TRUTHS:
        for figure, digits in TABLES.items():
            if which != "all" and figure not in BRIEF:
                continue
            for label, row in rows_of(results, which, figure).items():
                values = "".join(f"{value:9.{digits}f}" for value in row)
                print(f"{which + ', ' + figure:34s}{label:24s}{values}")
    for name, by_density in results.items():
        ms = "".join(f"{np.median([e['ms_per_frame'] for e in each]):9.2f}" for each in by_density.values())
        print(f"{'ms per frame of 64 x 64':34s}{name:24s}{ms}")
        if "scores_over_emitters" in next(iter(by_density.values()))[0]:
            ratios = (np.median([e["scores_over_emitters"] for e in each]) for each in by_density.values())
            print(f"{'sum of scores over emitters':34s}{name:24s}" + "".join(f"{ratio:9.2f}" for ratio in ratios))
        ways = "  ".join(", ".join(sorted({e["way"] for e in each})) for each in by_density.values())
        if ways.strip():
            print(f"{'chosen':34s}{name:24s}  {ways}")
    if run.get("training"):
        print(
            "training, seconds:",
            ", ".join(f"{t['training_s']:.0f} ({t['training_cpu_s']:.0f} CPU)" for t in run["training"]),
        )


def draw(path: Path, run: dict[str, Any]) -> None:
    """Draw Jaccard index, RMSE beside its bound, efficiency and honesty of the uncertainty against density."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    results = run["results"]
    densities = [float(d) for d in next(iter(results.values()))]
    panels = {
        "jaccard": "Jaccard index",
        "rmse_nm": "RMSE, nm (y and x together)",
        "efficiency": "efficiency E",
        "within_sigma": "errors within one predicted sigma",
    }
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 7.8), layout="constrained")
    figure.suptitle("Dense emitters: trained on one frame of 1 per µm², read at other densities", fontsize=13)
    for panel, (name, title) in zip(axes.flat, panels.items(), strict=True):
        for label, row in rows_of(results, "all", name).items():
            panel.plot(densities, row, label=label, **LINES.get(label, {}))
        if "SHOT" in results:
            each = [[e["own"]["all"][name] for e in entries] for entries in results["SHOT"].values()]
            panel.fill_between(densities, [min(e) for e in each], [max(e) for e in each], color="#0b5cad", alpha=0.2)
        if name == "rmse_nm":
            first = "SHOT" if "SHOT" in results else next(iter(results))
            for kind, style in (("alone", ":"), ("crowd", "--")):
                row = rows_of(results, "all", f"bound_{kind}_nm")[first]
                panel.plot(
                    densities, row, style, color="black", linewidth=1.2, label=f"bound of what {first} found, {kind}"
                )
        if name == "within_sigma":
            panel.axhspan(0.63, 0.73, color="#cccccc", alpha=0.5, linewidth=0, label="63 to 73 %")
        panel.set_title(title, loc="left", fontsize=11)
        panel.grid(color="#e4e4e4", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.set_xlim(0, max(densities) * 1.03)
    for panel in axes[1]:
        panel.set_xlabel("emitters per µm²")
    axes[0, 0].set_ylim(0, 1)
    axes[0, 1].set_ylim(0, None)
    axes[1, 1].set_ylim(0, 1)
    handles = {line.get_label(): line for panel in axes.flat for line in panel.get_legend_handles_labels()[0]}
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=3, frameon=False, fontsize=9.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Train or load, measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = arguments.add_mutually_exclusive_group()
    which.add_argument("--models", type=Path, nargs="+", default=[], help="trained models, one a seed")
    which.add_argument("--seeds", type=int, default=3, help="train this many")
    which.add_argument("--classical-only", action="store_true")
    which.add_argument("--from", dest="earlier", type=Path, metavar="FILE.json")
    arguments.add_argument("--steps", type=int, help="of training, in place of the default")
    arguments.add_argument("--peer", metavar="PYTHON", help="the Python that has picassosr")
    arguments.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="where the trained models go; those there are not trained again"
    )
    arguments.add_argument("--densities", type=float, nargs="+", default=list(DENSITIES))
    arguments.add_argument("--frames", type=int, default=48)
    arguments.add_argument("--held-out-seed", type=int, default=0, help="of the frames; no tuning has looked at 2026")
    arguments.add_argument("-o", "--output", type=Path)
    arguments.add_argument("--threshold", type=float, help="of SHOT, in place of the one in the card")
    arguments.add_argument("--plot", type=Path)
    chosen = arguments.parse_args()
    if chosen.earlier:
        run = json.loads(chosen.earlier.read_text())
    else:
        with tempfile.TemporaryDirectory() as folder:
            run = _measured(chosen, Path(folder))
        if chosen.output:
            chosen.output.write_text(json.dumps(run, indent=1))
    print_tables(run)
    if chosen.plot:
        draw(chosen.plot, run)


def _measured(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    paths, training = list(chosen.models), []
    if not paths and not chosen.classical_only:
        target = chosen.keep or folder
        target.mkdir(parents=True, exist_ok=True)
        for seed in range(chosen.held_out_seed, chosen.held_out_seed + chosen.seeds):
            paths.append(target / f"shot-{seed}.onnx")
            if not paths[-1].exists():
                training.append(trained(seed, paths[-1], chosen.steps))
                print(f"seed {seed}: {training[-1]['training_s']:.0f} s", flush=True)
    methods: list[Method] = [Shot(path, chosen.threshold) for path in paths]
    methods.append(GaussianMle())
    if chosen.peer:
        methods.append(Picasso(chosen.peer))
    results = measure_all(methods, chosen.densities, chosen.frames, 500 + chosen.held_out_seed)
    return {"results": results, "training": training, "held_out_seed": chosen.held_out_seed}


if __name__ == "__main__":
    main()
