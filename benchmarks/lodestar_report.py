"""The page docs/lodestar-accuracy.md and its plot, from what `lodestar_shapes.py` and its companions measured."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import lodestar_table1
import matplotlib as mpl
import numpy as np
import shapes

mpl.use("Agg")
import matplotlib.pyplot as plt

Results = dict[str, Any]
"""Shape -> entry, as `lodestar_shapes.measure` and `lodestar_peer.measure` return it."""

LINES: dict[str, dict[str, Any]] = {  # color, marker, line style, line width, marker size
    name: dict(zip(("color", "marker", "linestyle", "linewidth", "markersize"), style, strict=True))
    for name, style in {
        "oneframe": ("#0b5cad", "o", "-", 2.4, 4.5),
        "oneframe, preset paper": ("#58a4e0", "o", "--", 1.5, 3),
        "deeplay 0.1.4": ("#d1495b", "s", "-", 1.8, 4),
        "centroid": ("#6b6b6b", "^", "-", 1.3, 4),
        "radial symmetry": ("#9a9a9a", "v", ":", 1.3, 4),
    }.items()
}
LOWEST, HIGHEST = 0.9, 10.0


def rows_of(shape: str, results: Results, peer: Results, paper: Results) -> dict[str, list[float]]:
    """Return the ratio to the bound at each SNR of every method that was measured, medians over seeds."""
    rows = {"oneframe": np.median(results[shape]["ratio"], axis=0).tolist()}
    if shape in paper:
        rows["oneframe, preset paper"] = np.median(paper[shape]["ratio"], axis=0).tolist()
    if shape in peer:
        rows["deeplay 0.1.4"] = np.median(peer[shape]["ratio"], axis=0).tolist()
    return {**rows, "centroid": results[shape]["centroid"], "radial symmetry": results[shape]["radial_symmetry"]}


def draw(path: Path, results: Results, peer: Results, paper: Results) -> None:
    """Draw one panel per shape: RMSE in units of the bound against SNR."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 7.6), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.08)
    figure.suptitle("Error of a tracker trained on one image, in units of the Cramér-Rao bound", fontsize=14)
    panels, key = axes.flat[:5], axes.flat[5]
    for panel, shape in zip(panels, results, strict=False):
        ratio = np.array(results[shape]["ratio"])
        panel.fill_between(shapes.SNRS, ratio.min(0), ratio.max(0), color="#0b5cad", alpha=0.25, linewidth=0, zorder=2)
        for name, row in rows_of(shape, results, peer, paper).items():
            panel.plot(shapes.SNRS, row, label=name, **LINES[name])
        panel.axhline(1, color="black", linewidth=1)
        panel.set(xscale="log", yscale="log", ylim=(LOWEST, HIGHEST), xlim=(1.85, 21.6))
        panel.set_xticks(shapes.SNRS, [str(snr) for snr in shapes.SNRS])
        panel.set_yticks([1, 1.5, 2, 3, 5, 10], ["1", "1.5", "2", "3", "5", "10"])
        panel.minorticks_off()
        panel.grid(color="#e4e4e4", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.set_title(shape, loc="left", fontsize=13, y=1.02)  # y: the picture does not push it up
        panel.tick_params(labelsize=11)
        picture = panel.inset_axes((0.845, 1.015, 0.155, 0.19), anchor="SE")
        middle = shapes.SIZE // 2
        pose = shapes.Pose(middle - 0.5, middle - 0.5, 0.6)
        seen = shapes.noisy(shapes.clean_image(shape, pose), shapes.TRAINING_SNR, np.random.default_rng(1))
        picture.imshow(seen[middle - 17 : middle + 17, middle - 17 : middle + 17], cmap="gray")
        picture.set(xticks=[], yticks=[])
    for panel in (axes[0, 0], axes[1, 0]):
        panel.set_ylabel("RMSE / bound", fontsize=12)
    for panel in (axes[1, 0], axes[1, 1], axes[0, 2]):
        panel.set_xlabel("SNR", fontsize=12)
    key.axis("off")
    handles = {line.get_label(): line for panel in panels for line in panel.get_lines()}
    key.legend(
        handles=[handles[name] for name in LINES if name in handles],
        loc="upper left", bbox_to_anchor=(0, 1.06), frameon=False, fontsize=13,
    )  # fmt: skip
    tops = [max(row) for shape in results for row in rows_of(shape, results, peer, paper).values()]
    note = (
        f"band: best to worst of {len(ratio)} seeds,\nhidden where thinner than the line\nblack line: the bound\n"
        + ("lines that leave at the top: above 10\n" if max(tops) > HIGHEST else "")
        + "pictures: SNR 10, as trained on"
    )
    key.text(0.03, 0.0, note, fontsize=11.5, color="#444444", transform=key.transAxes, linespacing=1.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write_page(
    page: Path, results: Results, peer: Results | None = None, paper: Results | None = None, table1: Any = None
) -> None:
    """Write the page, and its plot into images/ beside it."""
    peer, paper = peer or {}, paper or {}
    draw(page.parent / "images" / "lodestar-shapes.png", results, peer, paper)
    lines = [
        "# How accurate LodeSTAR is",
        "",
        *_summary(results, peer),
        *(_summary_of_table1(table1) if table1 else []),
        "",
        "![RMSE in units of the Cramér-Rao bound against SNR, five shapes](images/lodestar-shapes.png)",
        "",
        *_how(results, peer, paper),
        *_ratio_table(results, peer, paper),
        *_pixel_table(results),
        *_sigma_table(results),
        *_cost_table(results, peer, paper),
    ]
    if table1:
        lines += _table1(table1)
    page.write_text("\n".join(_wrapped(line) for line in lines).rstrip() + "\n")


def _wrapped(line: str) -> str:
    """Break a line of prose; tables, code, headings and pictures stay."""
    if not line or line[0] in "|#!`" or line.startswith(("python", "    ")):
        return line
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _summary(results: Results, peer: Results) -> list[str]:
    median = np.array([np.median(entry["ratio"], axis=0) for entry in results.values()])
    worst = np.array([np.max(entry["ratio"], axis=0) for entry in results.values()])
    within = np.concatenate([np.ravel(entry["within_sigma"]) for entry in results.values()])
    lost = max(max(entry["worst_px_snr2"]) for entry in results.values())
    text = [
        f"- RMSE per axis over the Cramér-Rao bound: {median.min():.2f} to {median.max():.2f} in the {median.size} "
        f"cells (shape and SNR, median of the seeds), half of them below {np.median(median):.2f}; "
        f"{worst.max():.2f} in the worst cell of the worst seed.",
        f"- The largest error of any image at SNR 2: {lost:.2f} px.",
        f"- The share of errors within one predicted standard deviation: {within.mean():.2f} ({within.min():.2f} to "
        f"{within.max():.2f} by shape, SNR and seed); of a Gaussian it is 0.68.",
    ]
    if peer:
        shared = [shape for shape in results if shape in peer]
        ours = np.array([np.median(results[shape]["ratio"], axis=0) for shape in shared])
        theirs = np.array([np.median(peer[shape]["ratio"], axis=0) for shape in shared])
        text.append(
            f"- deeplay's LodeSTAR, the authors' library, on the same images: {theirs.min():.2f} to "
            f"{theirs.max():.2f}; its error is larger than oneframe's in {(theirs > ours).sum()} of {ours.size} cells, "
            f"by a factor of {np.median(theirs / ours):.2f} in the median."
        )
    return text


def _summary_of_table1(results: Any) -> list[str]:
    names, runs = list(shapes.SHAPES), results["runs"]
    right = [lodestar_table1.accuracy(run["confusion"]["views"]) for run in runs]
    each = np.concatenate([lodestar_table1.ratios(run["mean"]["image"]) for run in runs])
    table = np.median([run["mean"]["image"] for run in runs], axis=0)
    close = [
        f"{model} on {shape} {table[i, j] / table[i, i]:.2g}"
        for i, model in enumerate(names)
        for j, shape in enumerate(names)
        if i != j and table[i, j] < 7 * table[i, i]
    ]
    return [
        "- Five models, one per shape, sort images by variance and score together: the share sorted right is "
        f"{np.mean(right):.3f} ({min(right):.3f} in the worst seed). By the paper's measure alone, the weighted "
        f"variance, other shapes have {np.median(each):.0f} times that of the model's own in the median, but less than "
        f"7 times in {(each < 7).sum()} of {len(each)} cells"
        + (f" (medians of seeds: {', '.join(close)})." if close else ".")
    ]


def _how(results: Results, peer: Results, paper: Results) -> list[str]:
    first = next(iter(results.values()))
    n_seeds = len(first["ratio"])
    text = [
        "## How it was measured",
        "",
        "- Shapes, optics and noise are those of the LodeSTAR paper's Figure 1 and its notebook (Midtvedt et al., Nat. "
        "Commun. 13, 7492, 2022): NA 0.7, 660 nm, 0.1 µm pixels, 64 × 64 pixels, any angle, Poisson noise; drawn here "
        "with exact sub-pixel truth (`benchmarks/shapes.py`).",
        f"- Training: one noisy image of SNR {shapes.TRAINING_SNR} per shape and seed, {n_seeds} seeds (another image "
        "and another start each), default settings, the whole image as the box. The same model reads every SNR.",
        f"- Reading: {first['images']} held-out images per shape and SNR through the exported `.onnx`; the best-scored "
        "detection of each image counts, whatever its score, so that no failure is left out.",
        f"- The held-out images have the seed {first['held_out_seed']}; all tuning looked at those of the seed "
        f"{shapes.TUNING_SEED}.",
        "- The bound is the Cramér-Rao bound on the RMSE per axis for a known shape, brightness and background, with "
        "the angle unknown where there is one; oneframe knows neither brightness nor background, and the shape from "
        f"one noisy image. With {first['images']} images a cell has a statistical error of "
        f"{100 / np.sqrt(4 * first['images']):.1f} %, which all seeds share, as they read the same images: that is how "
        "a cell can lie below 1.",
        "- The \"centre\" of a crescent is a matter of definition. For every method, one constant offset in the "
        "particle's own coordinates (the median over the images of the cell) is taken out, as the paper allows.",
        "- Centroid: of what stands above half the smoothed maximum. Radial symmetry: Parthasarathy, Nat. Methods 9, "
        "724 (2012). Both on the same images.",
    ]  # fmt: skip
    if peer:
        one = next(iter(peer.values()))
        text.append(
            f"- deeplay 0.1.4, untouched, trained as its paper does ({one['steps']} steps of 8 views, Adam 1e-3) on "
            f"the same images, one seed only ({', '.join(peer)}). A position can be read from it in two ways, and in "
            "each cell the better one on the test images themselves was taken, in its favour. "
            f"{_pooled_share(peer)} The pooled reading averages over the whole image, so it works only with one "
            "particle in view; oneframe reads every position from its own neighbourhood."
        )
    if paper:
        one = next(iter(paper.values()))
        text.append(
            "- Preset `paper`: network, loss and schedule of the paper in oneframe (5000 steps of 8 views, no fit to "
            f"the pixels), seeds: {len(one['ratio'])}, shapes: {', '.join(paper)}."
        )
    text += [
        "",
        "```",
        f"python benchmarks/lodestar_shapes.py --held-out-seed {first['held_out_seed']} -o shapes.json",
    ]
    names = ""
    if paper:
        one = next(iter(paper.values()))
        text.append(
            f"python benchmarks/lodestar_shapes.py --held-out-seed {one['held_out_seed']} --preset paper "
            f"--seeds {len(one['ratio'])} --shapes {' '.join(paper)} -o paper.json"
        )
        names += " --paper paper.json"
    if peer:
        text.append(
            f"python benchmarks/lodestar_peer.py --held-out-seed {first['held_out_seed']} -o peer.json"
            "      # in an environment of its own"
        )
        names += " --peer peer.json"
    text += [
        f"python benchmarks/lodestar_table1.py --held-out-seed {first['held_out_seed']} -o table1.json",
        f"python benchmarks/lodestar_shapes.py --results shapes.json{names} --table1 table1.json \\",
        "    --report docs/lodestar-accuracy.md      # needs matplotlib",
        "```",
        "",
    ]
    return text


def _pooled_share(peer: Results) -> str:
    pooled = sum(
        a <= b
        for entry in peer.values()
        for a, b in zip(entry["ratio_pooled"][0], entry["ratio_best_cell"][0], strict=True)
    )
    total = len(peer) * len(shapes.SNRS)
    which = f"all {total}" if pooled == total else f"{pooled} of {total}"
    return f"That was the pooled one in {which} cells."


def _header(*names: str) -> list[str]:
    columns = [*names, *(f"SNR {snr}" for snr in shapes.SNRS)]
    return [
        "| " + " | ".join(columns) + " |",
        "| " + " | ".join(["---"] * len(names) + ["---:"] * len(shapes.SNRS)) + " |",
    ]


def _ratio_table(results: Results, peer: Results, paper: Results) -> list[str]:
    lines = ["## RMSE per axis over the bound", "", "oneframe: median of the seeds, worst seed in brackets.", ""]
    lines += _header("shape", "method")
    for shape, entry in results.items():
        for name, row in rows_of(shape, results, peer, paper).items():
            cells = [f"{value:.2f}" for value in row]
            if name == "oneframe":
                worst = np.max(entry["ratio"], axis=0)
                cells = [f"**{cell}** ({value:.2f})" for cell, value in zip(cells, worst, strict=True)]
            lines.append(f"| {shape if name == 'oneframe' else ''} | {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _pixel_table(results: Results) -> list[str]:
    lines = ["## RMSE per axis in pixels", "", *_header("shape", "")]
    for shape, entry in results.items():
        rmse_px = np.median(entry["ratio"], axis=0) * entry["bound_px"]
        lines.append(f"| {shape} | oneframe | " + " | ".join(f"{value:.4f}" for value in rmse_px) + " |")
        lines.append("| | bound | " + " | ".join(f"{value:.4f}" for value in entry["bound_px"]) + " |")
    return [*lines, ""]


def _sigma_table(results: Results) -> list[str]:
    lines = [
        "## Predicted uncertainty",
        "",
        "Share of the errors, each axis counted by itself, that are smaller than the detection's own `sigma_y_px` or "
        "`sigma_x_px`: median of the seeds, lowest and highest seed in brackets. A Gaussian error has 0.68.",
        "",
        *_header("shape"),
    ]
    for shape, entry in results.items():
        within = np.array(entry["within_sigma"])
        cells = [
            f"{m:.2f} ({a:.2f}, {b:.2f})"
            for m, a, b in zip(np.median(within, axis=0), within.min(0), within.max(0), strict=True)
        ]
        lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cost_table(results: Results, peer: Results, paper: Results) -> list[str]:
    lines = [
        "## Training, and the worst error",
        "",
        "CPU seconds per training, median over seeds (the machine, two cores, had other work, so that the clock says "
        "less); trainings that were started again; the largest error, y and x together, of any image and seed at "
        "SNR 2.",
        "",
        "| shape | method | CPU s | clock s | seeds | restarts | worst error at SNR 2, px |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for shape in results:
        for name, source in (("oneframe", results), ("oneframe, preset paper", paper), ("deeplay 0.1.4", peer)):
            if shape not in source:
                continue
            entry = source[shape]
            restarts = str(sum(entry["attempts"]) - len(entry["attempts"])) if "attempts" in entry else "-"
            lines.append(
                f"| {shape if name == 'oneframe' else ''} | {name} | {np.median(entry['training_cpu_s']):.0f} | "
                f"{np.median(entry['training_s']):.0f} | {len(entry['ratio'])} | {restarts} | "
                f"{max(entry['worst_px_snr2']):.2f} |"
            )
    return [*lines, ""]


def _table1(results: Any) -> list[str]:
    return [
        "## Telling shapes apart (the paper's Table 1)",
        "",
        f"Each model looks at {results['images']} held-out images (seed {results['held_out_seed']}) of every shape at "
        f"SNR {lodestar_table1.SNR}; seeds: {len(results['runs'])}. Where a model reports nothing in an image, "
        f"{lodestar_table1.NOTHING_FOUND['local']:.0f} px² and a score of "
        f"{lodestar_table1.NOTHING_FOUND['score']:g} stand in the place of `variance_px2` and score.",
        "",
        *lodestar_table1.markdown(results),
    ]
