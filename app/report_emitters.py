"""`oneframe report` of single molecules: super-resolution image, photons, precision, density, resolution, drift."""

from __future__ import annotations

import argparse
import html
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.app.console import CommandError, Console
from oneframe.app.report import FORMAT, STYLE, plain, report_folder
from oneframe.runtime.frc import THRESHOLD, RingCorrelation, localisation_correlation
from oneframe.runtime.run_files import known_pixel_size_um, write_table
from oneframe.runtime.run_table import RunTable
from oneframe.runtime.stage_drift import StageDrift, estimate_drift
from oneframe.runtime.super_resolution import SuperResolution, shown

Floats = NDArray[np.float64]

CORRECTED = "corrected.csv"
_BLUE, _RED, _GREY = "#0072b2", "#d55e00", "0.6"
_MOST_POINTS = 2000
_PICTURE_PX = 1600
"""Longest side of the image in the report; the lengths in it are true, its finest details may be averaged."""


def report_emitters(arguments: argparse.Namespace, table: RunTable, console: Console) -> None:
    """Write the page, the plots, the numbers and the localisations without drift of a logged run."""
    run_folder = Path(arguments.run)
    if not len(table.track_id):
        raise CommandError(f"expected a run with localisations, {run_folder} has none; log more, or lower --threshold")
    folder = report_folder(run_folder / "report" if arguments.output is None else Path(arguments.output))
    size_um = known_pixel_size_um(table)
    notes: list[str] = []
    columns = table.columns
    y_px, x_px = columns["y_px"], columns["x_px"]
    shape = table.frame_shape or tuple(math.ceil(float(np.nanmax(p)) + 0.5) for p in (y_px, x_px))
    if table.frame_shape is None:
        notes.append("the run does not tell the size of its frames: the density is that within its localisations")
    drift = _drift(table, notes)
    if drift is not None:
        drift_y, drift_x = drift.at(table.track_frame)
        y_px, x_px = y_px - drift_y, x_px - drift_x
        _write_corrected(folder / CORRECTED, table, y_px, x_px, size_um)
    precision_px = np.sqrt((columns["sigma_y_px"] ** 2 + columns["sigma_x_px"] ** 2) / 2)
    frc = _correlation(table, y_px, x_px, float(np.nanmedian(precision_px)), notes)
    per_frame = np.bincount(np.searchsorted(table.frame, table.track_frame), minlength=len(table.frame))
    if table.run.get("account") is None:
        notes.append("the run has no account: it was cut off or still goes on; oneframe recover completes it")
    grown = SuperResolution((shape[0], shape[1]), pixel_size_um=size_um)
    grown.add(y_px, x_px, columns["sigma_y_px"], columns["sigma_x_px"])
    notes += [grown.note] if grown.note else []
    plots = [
        ("super-resolution.png", "Every localisation is a Gaussian as wide as its predicted error"
         + (", drift taken out." if drift is not None else ".")),
        ("localisations.png", "Photons and predicted precision of the localisations; emitters in each frame."),
    ]  # fmt: skip
    _draw_image(folder / plots[0][0], grown, size_um)
    _draw_histograms(folder / plots[1][0], table, precision_px, per_frame, shape, size_um)
    if frc is not None:
        plots.append(("resolution.png", "Fourier ring correlation of two random halves; dashed: 1/7."))
        _draw_correlation(folder / plots[-1][0], frc, size_um)
    if drift is not None:
        caption = f"Drift by redundant cross-correlation; {CORRECTED} holds the localisations without it."
        plots.append(("drift.png", caption))
        _draw_drift(folder / plots[-1][0], drift, table.frame, size_um)
    figures = _figures(table, per_frame, precision_px, shape, size_um, frc, drift)
    figures = {"format": FORMAT, "run": str(run_folder), **figures, "notes": notes, "plots": [p for p, _ in plots]}
    (folder / "report.json").write_text(json.dumps(plain(figures), indent=2) + "\n", encoding="utf-8")
    facts = _facts(table, figures)
    page = folder / "report.html"
    page.write_text(_page(run_folder.name, facts, notes, plots), encoding="utf-8")
    for name, value in facts[2:]:
        console.say(f"{name}: {value}")
    for note in notes:
        console.say(f"note: {note}")
    console.say(f"{page}: look at it in a browser", event="done", page=str(page), **plain(figures))


def _drift(table: RunTable, notes: list[str]) -> StageDrift | None:
    try:
        return estimate_drift(table.track_frame, table.columns["y_px"], table.columns["x_px"])
    except ValueError as exc:
        notes.append(f"no drift is given: {exc}")
        return None


def _write_corrected(path: Path, table: RunTable, y_px: Floats, x_px: Floats, size_um: float | None) -> None:
    """Write the run's rows with positions without drift; the record stays as it is."""
    columns = {"frame": table.track_frame, "track_id": table.track_id, **table.columns, "y_px": y_px, "x_px": x_px}
    if size_um is not None:
        columns |= {"y_um": y_px * size_um, "x_um": x_px * size_um}
    order = np.lexsort((table.track_id, table.track_frame))
    path.unlink(missing_ok=True)  # of an earlier report
    write_table(path, {name: values[order] for name, values in columns.items()})


def _correlation(
    table: RunTable, y_px: Floats, x_px: Floats, precision_px: float, notes: list[str]
) -> RingCorrelation | None:
    try:
        pixel_px = min(max(0.5 * precision_px, 0.01), 0.25)
        frc = localisation_correlation(table.track_frame, y_px, x_px, pixel_px=pixel_px, rng=np.random.default_rng(0))
    except ValueError as exc:
        notes.append(f"no resolution is given: {exc}")
        return None
    if frc.resolution_px is None:
        notes.append(f"no resolution is given: {frc.reason}")
    return frc


def _figures(
    table: RunTable,
    per_frame: NDArray[np.int64],
    precision_px: Floats,
    shape: tuple[int, ...],
    size_um: float | None,
    frc: RingCorrelation | None,
    drift: StageDrift | None,
) -> dict[str, Any]:
    nm = None if size_um is None else 1e3 * size_um
    per_px2 = per_frame.mean() / (shape[0] * shape[1])

    def length(px: float | None) -> float | None:
        return None if px is None or nm is None else px * nm

    median_px = float(np.nanmedian(precision_px))
    resolution_px = None if frc is None else frc.resolution_px
    span_px = None
    if drift is not None:
        ys, xs = drift.at(table.frame)
        span_px = float(np.hypot(np.ptp(ys), np.ptp(xs)))
    return {
        "frames": {"on_record": table.n_frames, "account": table.run.get("account"), "shape": list(shape)},
        "localisations": len(table.track_id),
        "pixel_size_um": size_um,
        "emitters_per_frame": float(per_frame.mean()),
        "density_um2": None if size_um is None else per_px2 / size_um**2,
        "density_1000px2": 1000 * per_px2,
        "median_photons": float(np.nanmedian(table.columns["photons"])) if "photons" in table.columns else None,
        "median_precision_nm": length(median_px),
        "median_precision_px": median_px,
        "frc_resolution_nm": length(resolution_px),
        "frc_resolution_px": resolution_px,
        "drift_span_nm": length(span_px),
        "drift_span_px": span_px,
        "drift": None
        if drift is None
        else {
            "frame": drift.frame, "y_px": drift.y_px, "x_px": drift.x_px, "pairs": drift.n_pairs,
            "pairs_left_out": drift.n_left_out, "residual_px": drift.residual_px,
        },
    }  # fmt: skip


def _facts(table: RunTable, figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what the page says of the run as (name, value)."""

    def length(name: str) -> str:
        if figures[f"{name}_nm"] is not None:
            return f"{figures[f'{name}_nm']:.1f} nm"
        return "unknown" if figures[f"{name}_px"] is None else f"{figures[f'{name}_px']:.3f} px"

    density = f"{figures['density_1000px2']:.2f} /1000 px^2"
    if figures["density_um2"] is not None:
        density = f"{figures['density_um2']:.3g} /um^2"
    account = figures["frames"]["account"]
    counts = ", ".join(f"{n} {status}" for status, n in table.n_frames.items())
    lost = "no account" if account is None else f"{account['lost_before']} lost before they came here"
    facts = [
        ("source", str(table.run["source"]["url"])),
        ("frames", f"{counts}; {lost}"),
        ("localisations", f"{figures['localisations']}, {figures['emitters_per_frame']:.1f} a frame, {density}"),
        ("median precision", length("median_precision") + ", as predicted"),
    ]
    if figures["median_photons"] is not None:
        facts.append(("median photons", f"{figures['median_photons']:.0f}"))
    facts.append(("resolution (Fourier ring correlation)", length("frc_resolution")))
    if figures["drift"] is not None:
        drift = figures["drift"]
        pairs = f"{drift['pairs']} pairs of segments, {drift['pairs_left_out']} more left out"
        facts.append(("drift", f"{length('drift_span')} from end to end ({pairs}), taken out in {CORRECTED}"))
    return facts


def _draw_image(path: Path, grown: SuperResolution, size_um: float | None) -> None:
    """Write the image with a scale bar, in the colours of glowing iron."""
    from matplotlib.figure import Figure

    light, _, n = grown.thinned(_PICTURE_PX)
    enlarge = max(1, 900 // max(light.shape))
    height, width = (side * enlarge for side in light.shape)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(shown(light), cmap="afmhot", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    camera_px = grown.per_camera_px / n  # columns of the picture
    length = _round_length(light.shape[1] / 6 / camera_px * (size_um or 1.0))
    bar = length / (size_um or 1.0) * camera_px
    label = f"{length:g} px" if size_um is None else f"{length:g} µm" if length >= 1 else f"{1e3 * length:g} nm"
    right, bottom = 0.97 * light.shape[1], 0.97 * light.shape[0]
    axes.fill_between([right - bar, right], bottom - 0.008 * light.shape[0], bottom, color="white", linewidth=0)
    axes.text(right - bar / 2, bottom - 0.016 * light.shape[0], label, color="white", ha="center", va="bottom", size=14)
    figure.savefig(path)


def _round_length(longest: float) -> float:
    """Return the longest of 1, 2, 5, 10, ... (and 0.5, 0.2, ...) that is not above `longest`."""
    decade = 10.0 ** math.floor(math.log10(longest))
    return max(step * decade for step in (1.0, 2.0, 5.0) if step * decade <= longest)


def _draw_histograms(
    path: Path,
    table: RunTable,
    precision_px: Floats,
    per_frame: NDArray[np.int64],
    shape: tuple[int, ...],
    size_um: float | None,
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    photons, precision, axes = (figure.add_subplot(grid[place]) for place in ((0, 0), (0, 1), (1, slice(None))))
    if "photons" in table.columns:
        values = table.columns["photons"]
        values = values[np.isfinite(values) & (values > 0)]
        _histogram(photons, values, "photons", f"median {np.median(values):.0f}")
    unit, factor = ("px", 1.0) if size_um is None else ("nm", 1e3 * size_um)
    values = precision_px[np.isfinite(precision_px)] * factor
    median = f"median {np.median(values):.3g} {unit}"
    _histogram(precision, values, f"predicted precision, {unit}", median)
    time_s = table.frame_time_s - table.frame_time_s.min()
    every = 1 + len(per_frame) // _MOST_POINTS
    axes.plot(time_s[::every], per_frame[::every], ".", markersize=3, color=_GREY, markeredgewidth=0)
    width = max(1, len(per_frame) // 50)  # of the moving mean, frames
    if len(per_frame) >= 3 * width:
        means = np.convolve(per_frame, np.ones(width) / width, mode="valid")
        axes.plot(time_s[width // 2 : width // 2 + len(means)], means, color=_BLUE, label=f"mean of {width} frames")
        axes.legend(frameon=False, loc="upper right")
    axes.set_ylim(0, 1.15 * max(1, per_frame.max()))
    axes.set_xlabel("time, s")
    axes.set_ylabel("emitters in a frame")
    scale = 1000 / (shape[0] * shape[1]) if size_um is None else 1 / (shape[0] * shape[1] * size_um**2)

    def density(n: Any) -> Any:
        return n * scale

    def number(per_area: Any) -> Any:
        return per_area / scale

    side = axes.secondary_yaxis("right", functions=(density, number))
    side.set_ylabel("per 1000 px²" if size_um is None else "per µm²")
    figure.savefig(path, dpi=130)


def _histogram(axes: Any, values: Floats, name: str, label: str) -> None:
    """Draw a histogram up to the last percent, and its median."""
    end = np.percentile(values, 99) * 1.1 if len(values) else 1.0
    counts, _, _ = axes.hist(values, np.linspace(0, end, 61), color=_BLUE, alpha=0.8)
    axes.set_ylim(0, 1.25 * max(1, counts.max()))  # room for the legend
    axes.axvline(np.median(values), color=_RED, linewidth=1.5, label=label)
    axes.set_xlim(0, end)
    axes.set_xlabel(name)
    axes.set_ylabel("localisations")
    axes.legend(frameon=False, loc="upper right")


def _draw_correlation(path: Path, frc: RingCorrelation, size_um: float | None) -> None:
    from matplotlib.figure import Figure

    unit, factor = ("px", 1.0) if size_um is None else ("nm", 1e3 * size_um)
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    frequency = frc.per_px / factor
    axes.plot(frequency, frc.correlation, color=_GREY, linewidth=0.8)
    axes.plot(frequency, frc.smoothed, color=_BLUE, linewidth=1.8)
    axes.axhline(THRESHOLD, color="black", linewidth=1, linestyle="--")
    end = frequency[-1]
    if frc.resolution_px is not None:
        resolution = frc.resolution_px * factor
        axes.axvline(1 / resolution, color=_RED, linewidth=1.5, label=f"{resolution:.3g} {unit}")
        axes.legend(frameon=False)
        end = min(end, 3 / resolution)
    axes.set_xlim(0, end)
    axes.set_ylim(-0.1, 1.05)
    axes.set_xlabel(f"spatial frequency, 1/{unit}")
    axes.set_ylabel("correlation")
    figure.savefig(path, dpi=130)


def _draw_drift(path: Path, drift: StageDrift, frames: NDArray[np.int64], size_um: float | None) -> None:
    from matplotlib.figure import Figure

    unit, factor = ("px", 1.0) if size_um is None else ("nm", 1e3 * size_um)
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    few = np.linspace(frames[0], frames[-1], 500)
    for name, colour, curve, nodes in (
        ("y", _BLUE, drift.at(few)[0], drift.y_px),
        ("x", _RED, drift.at(few)[1], drift.x_px),
    ):
        axes.plot(few, curve * factor, color=colour, label=name)
        axes.plot(drift.frame, nodes * factor, "o", color=colour, markersize=4)
    low, high = axes.get_ylim()
    least = 0.05 * factor  # half a tenth of a pixel: noise shall not look like drift
    axes.set_ylim(min(low, -least), max(high, least))
    axes.axhline(0, color="0.8", linewidth=1, zorder=0)
    axes.set_xlabel("frame")
    axes.set_ylabel(f"drift, {unit}")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def _page(title: str, facts: list[tuple[str, str]], notes: list[str], plots: list[tuple[str, str]]) -> str:
    """Return the page as HTML, with links to the plots beside it."""

    def text(words: str) -> str:
        return html.escape(words.replace("um^2", "µm²").replace("px^2", "px²"))

    rows = "\n".join(f"<tr><td>{text(name)}</td><td>{text(value)}</td></tr>" for name, value in facts)
    told = "\n".join(f"<li>{text(note)}</li>" for note in notes)
    images = "\n".join(
        f'<figure><img src="{name}" alt="{text(caption)}"><figcaption>{text(caption)}</figcaption></figure>'
        for name, caption in plots
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}: report</title>
<style>{STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
<table class="facts">
{rows}
</table>
{f"<h2>Notes</h2><ul>{told}</ul>" if notes else ""}
{images}
<p>Resolution: Fourier ring correlation (Nieuwenhuizen et al. 2013) of random halves, blocks of frames; emitters that
come back make it look better than it is. Drift: Wang et al. 2014. All numbers: report.json.</p>
</body></html>
"""
