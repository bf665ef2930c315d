"""`oneframe report`: what a logged run says of its particles, as one page with plots and as numbers."""

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
from oneframe.runtime.diffusion import common_motion, diffusion, expected_diffusion_um2_s, find_steps
from oneframe.runtime.refine import clausius_mossotti
from oneframe.runtime.run_table import AGAINST_POLARIZABILITY, AGAINST_Z, RunTable, populations, read_run_table

FORMAT = "oneframe report"
MIN_LENGTH = 15
"""Frames of a track from which its median polarizability is shown, as in Midtvedt et al. 2022."""
WATER_INDEX = 1.33
_STEADY = 0.002
"""Relative scatter of the times between frames that a recording replayed at its reader's pace does not stay below."""
_FEWEST_FOR_SPREAD = 4
"""Tracks from which it is told how much they differ."""
_SIGNIFICANT = 3.0
"""Standard errors from which particles are said to move together."""
_MOST_POINTS = 40_000
"""Of longer runs evenly spread points are drawn."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }
.facts td:first-child { white-space: nowrap; color: #666 }
figure { margin: 1.5rem 0 } img { max-width: 100% } figcaption { color: #666 }
"""
"""Of the page."""
_COLOURS = ("#0072b2", "#d55e00", "#009e73")
_GREY = "0.6"


def report(arguments: argparse.Namespace, console: Console) -> None:
    """Write the page, the plots and the numbers of a logged run."""
    import matplotlib.figure  # noqa: F401  (before the work, so that a missing package is told at once)

    run_folder = Path(arguments.run)
    table = read_run_table(run_folder)
    if table.run["card"].get("method") == "shot":
        from oneframe.app.report_emitters import report_emitters

        report_emitters(arguments, table, console)
        return
    settings = _settings(arguments, table)
    figures = _evaluate(table, settings)
    folder = report_folder(run_folder / "report" if arguments.output is None else Path(arguments.output))
    plots = _draw(folder, table, figures)
    figures = {"format": FORMAT, "run": str(run_folder), **figures, "plots": [name for name, _ in plots]}
    (folder / "report.json").write_text(json.dumps(plain(figures), indent=2) + "\n", encoding="utf-8")
    page = folder / "report.html"
    page.write_text(_page(run_folder, table, figures, plots), encoding="utf-8")
    heads, *rows = _population_rows(figures)
    for title, *cells in rows:
        console.say(
            f"{title}: " + "; ".join(f"{head} {cell}" for head, cell in zip(heads[1:], cells, strict=True) if cell)
        )
    for note in figures["notes"]:
        console.say(f"note: {note}")
    lean = [{k: v for k, v in group.items() if not k.startswith("track_")} for group in figures["populations"]]
    facts = plain(figures | {"populations": lean})
    console.say(f"{page}: look at it in a browser", event="done", page=str(page), **facts)


def _settings(arguments: argparse.Namespace, table: RunTable) -> dict[str, Any]:
    """Return the options with their defaults filled in."""
    if (arguments.calibrate_radius_um is None) != (arguments.calibrate_index is None):
        raise CommandError(
            "expected --calibrate-radius-um and --calibrate-index together, got one; give the radius and the "
            "refractive index of the known particles"
        )
    if arguments.calibrate_index is not None and "polarizability_um3" not in table.columns:
        raise CommandError(
            "expected a run with polarizability to calibrate, this one has none; leave --calibrate-radius-um and "
            "--calibrate-index out, or log with a model trained on holograms"
        )
    settings = {
        name: getattr(arguments, name)
        for name in ("calibrate_radius_um", "calibrate_index", "radius_um", "dt_s", "medium_index", "min_length")
    }
    if settings["medium_index"] is None:
        settings["medium_index"] = table.run["card"].get("optics", {}).get("medium_index", WATER_INDEX)
    settings["min_length"] = settings["min_length"] or MIN_LENGTH
    settings["temperature_k"] = 293.0 if arguments.temperature_k is None else arguments.temperature_k
    settings["viscosity_mpa_s"] = 1.002 if arguments.viscosity_mpa_s is None else arguments.viscosity_mpa_s
    return settings


def report_folder(folder: Path) -> Path:
    """Return the folder to write to: new, empty, or with an earlier report, whose plots are taken away."""
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"expected a folder for the report, {folder} is a file; choose another name")
    earlier = folder / "report.json"
    try:
        if earlier.exists():
            before = json.loads(earlier.read_text(encoding="utf-8"))
            if before.get("format") == FORMAT:
                for name in before.get("plots", []):
                    (folder / Path(name).name).unlink(missing_ok=True)
                return folder
    except (ValueError, AttributeError):
        pass
    if folder.exists() and any(folder.iterdir()):
        raise CommandError(
            f"expected a new or empty folder, or one with an earlier report, {folder} holds other files, which are "
            "never overwritten; choose another name"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _evaluate(table: RunTable, settings: dict[str, Any]) -> dict[str, Any]:
    """Return all figures of the report."""
    notes: list[str] = []
    tracks, lengths = table.track_lengths()
    long = tracks[lengths >= settings["min_length"]]
    if len(long) == 0:
        raise CommandError(
            f"expected a track of {settings['min_length']} frames or more, got {len(tracks)} tracks"
            + (f", the longest of {lengths.max()} frames" if len(lengths) else "")
            + "; log longer or lower --min-length"
        )
    calibration, groups = _weigh(table, long, settings, notes)
    timing = _timing(table, settings["dt_s"], notes)
    _add_diffusion(table, groups, timing, settings, notes)
    if table.run.get("account") is None:
        notes.append("the run has no account: it was cut off or still goes on; oneframe recover completes it")
    return {
        "frames": {"on_record": table.n_frames, "account": table.run.get("account"), **timing},
        "tracks": {
            "n": len(tracks),
            "n_long": len(long),
            "min_length": settings["min_length"],
            "length_median": float(np.median(lengths)),
            "length_longest": int(lengths.max()),
        },
        "rows": {
            "n": len(table.track_id),
            "without_polarizability": int((~table.without(AGAINST_POLARIZABILITY)).sum()),
            "without_z": int((~table.without(AGAINST_Z)).sum()),
            "flags": table.flag_counts(),
        },
        "settings": settings,
        "calibration": calibration,
        "populations": groups,
        "z": _z_figures(table),
        "notes": notes,
    }


def _weigh(
    table: RunTable, long: NDArray[np.int64], settings: dict[str, Any], notes: list[str]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Return the calibration and the populations; without polarizability one population of all tracks."""
    everything = {"name": "all", "n_tracks": len(long), "track_ids": long}
    if "polarizability_um3" not in table.columns:
        return None, [everything]
    usable = table.without(AGAINST_POLARIZABILITY) & (table.columns["polarizability_um3"] > 0)
    tracks, counts = table.track_lengths(usable)
    tracks = tracks[counts >= settings["min_length"]]
    if len(tracks) == 0:
        notes.append(
            f"no track has {settings['min_length']} frames with a polarizability that no flag speaks against, so "
            "none is shown"
        )
        return None, [everything]
    if len(tracks) < len(long):
        notes.append(
            f"{len(long) - len(tracks)} tracks have too few rows without a flag to be weighed: in no population"
        )
    alpha_um3 = table.track_medians("polarizability_um3", usable, tracks)
    labels = populations(np.log(alpha_um3))
    groups = []
    for label in range(int(labels.max()) + 1):
        own = alpha_um3[labels == label]
        low, middle, high = np.percentile(own, (16, 50, 84))
        groups.append(
            {
                "name": "ABC"[label],
                "n_tracks": len(own),
                "polarizability_um3": middle,
                "spread": (high - low) / 2 / middle if len(own) >= _FEWEST_FOR_SPREAD else None,
                "calibration": False,
                "track_ids": tracks[labels == label],
                "track_polarizability_um3": own,
            }
        )
    calibration = None if settings["calibrate_index"] is None else _calibrate(groups, settings, notes)
    for group in groups:
        group["ratio_to_heaviest"] = group["polarizability_um3"] / groups[-1]["polarizability_um3"]
    return calibration, groups


def _calibrate(groups: list[dict[str, Any]], settings: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Scale all polarizabilities so that the known population has its own; its radius tells those of the others."""
    radius_um, index, medium = (settings[name] for name in ("calibrate_radius_um", "calibrate_index", "medium_index"))
    expected = clausius_mossotti(radius_um, index, medium)
    if expected <= 0:
        raise CommandError(
            f"expected an index above that of the medium, {medium:g}, got --calibrate-index {index:g}; particles "
            "lighter than the medium cannot calibrate"
        )
    distance = [abs(math.log(group["polarizability_um3"] / expected)) for group in groups]
    nearest = [group for group, d in zip(groups, distance, strict=True) if d < min(distance) + 0.1]
    known = max(nearest, key=lambda group: group["n_tracks"])  # of two as near as 10 %, the larger one
    measured, spread = known["polarizability_um3"], known["spread"]
    factor = expected / measured
    if not 0.5 < factor < 2:
        notes.append(
            f"the population nearest to the calibration particles is {1 / factor:.2g} times what is expected of them; "
            "are radius (not diameter), index and medium right, and are such particles in the run?"
        )
    known["calibration"] = True
    for group in groups:
        for name in ("polarizability_um3", "track_polarizability_um3"):
            group[name] = group[name] * factor
        group["same_material_radius_um"] = radius_um * (group["polarizability_um3"] / expected) ** (1 / 3)
    return {
        "population": known["name"],
        "expected_um3": expected,
        "measured_um3": measured,
        "factor": factor,
        "standard_error": None
        if spread is None
        else 1.25 * spread * factor / math.sqrt(known["n_tracks"]),  # a median's
    }


def _timing(table: RunTable, dt_s: float | None, notes: list[str]) -> dict[str, Any]:
    """Return the time of one step, None where the record does not tell it."""
    every, measured_s, scatter = table.frame_interval()
    timing = {"every": every, "dt_s": measured_s, "dt_scatter": scatter, "dt_from": "times of the frames"}
    if dt_s is not None:
        timing |= {"dt_s": dt_s * every, "dt_from": "--dt-s"}
    elif not table.run["source"].get("live") and scatter > _STEADY:
        timing |= {"dt_s": None, "dt_from": "unknown"}
        notes.append(
            "the frames came from a recording as fast as they were analysed, so their times are not the camera's and "
            "no diffusion constant is given; say the time from frame to frame with --dt-s"
        )
    elif scatter > 0.2:
        notes.append(
            f"the time between frames scatters by {100 * scatter:.0f} %: diffusion constants scale with its median, "
            f"{1e3 * measured_s:.3g} ms"
        )
    return timing


def _add_diffusion(
    table: RunTable,
    groups: list[dict[str, Any]],
    timing: dict[str, Any],
    settings: dict[str, Any],
    notes: list[str],
) -> None:
    """Add the diffusion constants of each population, and what Stokes and Einstein expect where its radius is known."""
    water = {name: settings[name] for name in ("temperature_k", "viscosity_mpa_s")}
    of_1_um = expected_diffusion_um2_s(1.0, **water)
    for group in groups:
        radius_um = settings["radius_um"] or group.get("same_material_radius_um")
        group["expected_um2_s"] = None if radius_um is None else expected_diffusion_um2_s(radius_um, **water)
    if timing["dt_s"] is None:
        return
    if not {"y_um", "x_um"} <= table.columns.keys():
        notes.append("the pixel size is unknown, so D_xy is not given; train with --pixel-size-um")
    for name, columns in {"xy": ("y_um", "x_um"), "y": ("y_um",), "x": ("x_um",), "z": ("z_um",)}.items():
        if not set(columns) <= table.columns.keys():
            continue
        position_um = np.column_stack([table.columns[column] for column in columns])
        if name == "z":
            position_um[~table.without(AGAINST_Z)] = np.nan
        steps = find_steps(table.track_id, table.track_frame, position_um, every=timing["every"])
        alike_um2, error_um2 = common_motion(steps)
        drifts = alike_um2 > _SIGNIFICANT * error_um2
        if drifts and name in ("xy", "z"):
            notes.append(
                f"the particles move together along {name}, {math.sqrt(alike_um2):.2g} um (rms) a frame: taken out of "
                f"D_{name}"
            )
        for group in groups:
            try:
                d = diffusion(steps, timing["dt_s"], tracks=group["track_ids"], without_drift=drifts)
            except ValueError as exc:
                if name in ("xy", "z"):
                    notes.append(f"no D_{name} of {_title(group)}: {exc}")
                continue
            group[f"d_{name}"] = {
                "um2_s": d.diffusion_um2_s,
                "standard_error_um2_s": d.standard_error_um2_s,
                "n_steps": d.n_steps,
                "n_tracks": d.n_tracks,
                "drift_removed": drifts,
                "radius_um": of_1_um / d.diffusion_um2_s if d.diffusion_um2_s > 0 else None,
                "localization_um": d.localization_um,
                "localization_limit_um": d.localization_limit_um,
            }


def _z_figures(table: RunTable) -> dict[str, Any] | None:
    """Return how z is spread, and what the model was trained for."""
    if "z_um" not in table.columns:
        return None
    z_um = table.columns["z_um"][np.isfinite(table.columns["z_um"])]
    trained = table.run["card"].get("trained_ranges", {}).get("z_um")
    low, middle, high = np.percentile(z_um, (5, 50, 95))
    return {
        "p5_um": low,
        "median_um": middle,
        "p95_um": high,
        "trained_um": trained,
        "share_outside": None if trained is None else np.mean((z_um < trained[0]) | (z_um > trained[1])),
    }


def _draw(folder: Path, table: RunTable, figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Write the plots that this run has something for; return their names and captions."""
    groups = figures["populations"]
    plots = []
    if any("d_xy" in group or "d_z" in group for group in groups):
        _draw_diffusion(folder / "diffusion.png", groups)
        caption = "Diffusion constants with standard errors (covariance estimator)."
        if any(group["expected_um2_s"] for group in groups):
            caption += " Black: Stokes-Einstein."
        plots.append(("diffusion.png", caption))
    if "polarizability_um3" in groups[0]:
        _draw_polarizability(folder / "polarizability.png", groups, figures["calibration"])
        caption = f"Polarizability, median of each track of {figures['tracks']['min_length']} frames or more"
        caption += ", calibrated." if figures["calibration"] else ", as the model gives it."
        plots.append(("polarizability.png", caption))
    if figures["z"] is not None:
        _draw_z(folder / "z.png", table, figures)
        plots.append(
            (
                "z.png",
                "Height of the particles over time; grey: rows with a flag against z, and tracks in no population.",
            )
        )
    return plots


def _draw_diffusion(path: Path, groups: list[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 + 1.5 * len(groups), 3.6), layout="constrained")
    axes = figure.subplots()
    for name, shift, marker, fill in (("xy", -0.12, "o", True), ("z", 0.12, "s", False)):
        for i, group in enumerate(groups):
            if (d := group.get(f"d_{name}")) is None:
                continue
            colour = _COLOURS[i]
            axes.errorbar(
                i + shift, d["um2_s"], d["standard_error_um2_s"], fmt=marker, color=colour, capsize=4, markersize=5,
                markerfacecolor=colour if fill else "white",
            )  # fmt: skip
        if any(f"d_{name}" in group for group in groups):
            axes.plot([], [], marker, color="0.3", markerfacecolor="0.3" if fill else "white", label=f"D_{name}")
    for i, group in enumerate(groups):
        if group["expected_um2_s"] is not None:
            axes.hlines(group["expected_um2_s"], i - 0.32, i + 0.32, color="black", linewidth=1.5)
    if any(group["expected_um2_s"] is not None for group in groups):
        axes.plot([], [], "-", color="black", linewidth=1.5, label="Stokes-Einstein")
    axes.set_xticks(range(len(groups)), [f"{_title(group)}\n{group['n_tracks']} tracks" for group in groups])
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    axes.set_ylabel("diffusion constant, µm²/s")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=130)


def _draw_polarizability(path: Path, groups: list[dict[str, Any]], calibration: dict[str, Any] | None) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    everything = np.concatenate([group["track_polarizability_um3"] for group in groups])
    low, high = everything.min() / 1.2, everything.max() * 1.2
    bins = np.geomspace(low, high, 41).tolist()
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for group, colour in zip(groups, _COLOURS, strict=False):
        label = f"{_title(group)}: {group['polarizability_um3']:#.3g} µm³, {group['n_tracks']} tracks"
        axes.hist(
            group["track_polarizability_um3"], bins, color=colour, alpha=0.75, label=label,
            hatch="///" if group["calibration"] else None, edgecolor="white", linewidth=0.5,
        )  # fmt: skip
        axes.axvline(group["polarizability_um3"], color=colour, linewidth=1)
    if calibration is not None:
        label = f"calibration particles: {calibration['expected_um3']:#.3g} µm³"
        axes.axvline(calibration["expected_um3"], color="black", linewidth=1.2, linestyle="--", label=label)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    wide = high / low > 3
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.set_xlabel("polarizability, µm³" + (" (calibrated)" if calibration else ""))
    axes.set_ylabel("tracks")
    figure.legend(loc="outside upper center", frameon=False, fontsize="small", ncols=2)
    figure.savefig(path, dpi=130)


def _draw_z(path: Path, table: RunTable, figures: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    z_um, time_s = table.columns["z_um"], table.columns["time_s"]
    time_s = time_s - time_s.min()
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes, side = figure.subplots(1, 2, sharey=True, width_ratios=(3.5, 1))
    trusted, finite = table.without(AGAINST_Z), np.isfinite(z_um)
    size = 4 if len(z_um) < 5000 else 2.5
    left = finite.copy()
    shown = []
    for i, group in enumerate(figures["populations"]):
        own = finite & trusted & np.isin(table.track_id, group["track_ids"])
        left &= ~own
        shown.append((_title(group), _COLOURS[i], own))
    for name, colour, own in [("not used", _GREY, left), *shown]:
        if not own.any():
            continue
        few = np.flatnonzero(own)[:: 1 + len(z_um) // _MOST_POINTS]
        axes.plot(time_s[few], z_um[few], ".", markersize=size, color=colour, markeredgewidth=0, zorder=2)
        axes.plot([], [], "o", color=colour, label=name)
    edges = np.linspace(z_um[finite].min(), z_um[finite].max() + 1e-9, 41).tolist()
    drawn = [(colour, own) for _, colour, own in shown] + [(_GREY, left)]
    side.hist(
        [z_um[own] for _, own in drawn], edges, color=[colour for colour, _ in drawn], stacked=True,
        orientation="horizontal",
    )  # fmt: skip
    if (trained := figures["z"]["trained_um"]) is not None:
        for one in (axes, side):
            one.axhspan(*trained, color="0.93", zorder=0)
            one.set_ymargin(0.05)
        axes.plot([], [], "s", markersize=10, color="0.88", label="trained range")
    axes.set_xlabel("time, s")
    axes.set_ylabel("z, µm")
    side.set_xlabel("rows")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", frameon=False, fontsize="small", ncols=5
    )
    figure.savefig(path, dpi=130)


def _title(group: dict[str, Any]) -> str:
    return "all tracks" if group["name"] == "all" else f"population {group['name']}"


def _population_rows(figures: dict[str, Any]) -> list[list[str]]:
    """Return one row of text a population, the names of the columns first."""
    rows = [["", "tracks", "polarizability", "D_xy", "D_z", "Stokes-Einstein", "position error xy, z"]]
    for group in figures["populations"]:
        alpha = ""
        if "polarizability_um3" in group:
            alpha = f"{group['polarizability_um3']:#.3g} um^3"
            alpha += "" if group["spread"] is None else f" (+-{100 * group['spread']:.1f} % from track to track)"
            alpha += ", the calibration" if group["calibration"] else ""
        expected = group["expected_um2_s"]
        rows.append(
            [
                _title(group),
                str(group["n_tracks"]),
                alpha,
                *(_constant(group.get(f"d_{name}")) for name in ("xy", "z")),
                "" if expected is None else f"{expected:#.3g} um^2/s",
                ", ".join(_localization(group[f"d_{name}"]) for name in ("xy", "z") if f"d_{name}" in group),
            ]
        )
    return rows


def _constant(d: dict[str, Any] | None) -> str:
    return "" if d is None else f"{d['um2_s']:#.3g} +- {d['standard_error_um2_s']:.2g} um^2/s"


def _localization(d: dict[str, Any]) -> str:
    if d["localization_um"] is not None:
        return f"{1e3 * d['localization_um']:.0f} nm"
    return f"below {1e3 * d['localization_limit_um']:.0f} nm ({d['n_steps']} steps are too few to say more)"


def _facts(table: RunTable, figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what the page says of the run as (name, value)."""
    run, frames, tracks, rows = table.run, figures["frames"], figures["tracks"], figures["rows"]
    account = frames["account"]
    counts = ", ".join(f"{n} {status}" for status, n in frames["on_record"].items())
    lost = "no account" if account is None else f"{account['lost_before']} lost before they came here"
    flags = ", ".join(f"{name} {n}" for name, n in rows["flags"].items())
    flagged = f"none of {rows['n']}"
    if flags:
        flagged = (
            f"{flags}; of {rows['n']} rows {rows['without_polarizability']} are left out of the polarizability, "
            f"{rows['without_z']} out of D_z"
        )
    dt = "unknown" if frames["dt_s"] is None else f"{1e3 * frames['dt_s']:.4g} ms ({frames['dt_from']})"
    facts = [
        ("source", run["source"]["url"]),
        ("started", run["started"]),
        ("frames", f"{counts}; {lost}"),
        ("time of a step", dt),
        (
            "tracks",
            f"{tracks['n']}, of them {tracks['n_long']} of {tracks['min_length']} frames or more; median "
            f"{tracks['length_median']:g}, longest {tracks['length_longest']} frames",
        ),
        ("flagged rows", flagged),
    ]
    if (calibration := figures["calibration"]) is not None:
        settings = figures["settings"]
        text = (
            f"population {calibration['population']} is taken for spheres of {settings['calibrate_radius_um']:g} um "
            f"radius and index {settings['calibrate_index']:g} in {settings['medium_index']:g}, "
            f"{calibration['expected_um3']:.4g} um^3 by Clausius-Mossotti; it read {calibration['measured_um3']:.4g} "
            f"um^3, so all polarizabilities are multiplied by {calibration['factor']:.4f}"
        )
        error = calibration["standard_error"]
        text += " (error unknown: too few tracks)" if error is None else f" +- {error:.2g}"
        facts.append(("calibration", text))
    if (z := figures["z"]) is not None:
        text = f"median {z['median_um']:.2f} um, 90 % from {z['p5_um']:.2f} to {z['p95_um']:.2f} um"
        if z["trained_um"] is not None:
            low, high = z["trained_um"]
            text += f"; trained from {low:g} to {high:g} um, {100 * z['share_outside']:.1f} % of the rows outside"
        facts.append(("z", text))
    return facts


def _page(run_folder: Path, table: RunTable, figures: dict[str, Any], plots: list[tuple[str, str]]) -> str:
    """Return the page as HTML, with links to the plots beside it."""

    def text(plain: str) -> str:
        pretty = {"um^": "µm^", "^2": "²", "^3": "³", "+-": "±", " um": " µm"}
        for ascii_text, sign in pretty.items():
            plain = plain.replace(ascii_text, sign)
        return html.escape(plain)

    def row(cells: list[str], tag: str = "td") -> str:
        return "<tr>" + "".join(f"<{tag}>{text(cell)}</{tag}>" for cell in cells) + "</tr>"

    first, *others = _population_rows(figures)
    facts = "\n".join(row([name, value]) for name, value in _facts(table, figures))
    notes = "\n".join(f"<li>{text(note)}</li>" for note in figures["notes"])
    images = "\n".join(
        f'<figure><img src="{name}" alt="{text(caption)}"><figcaption>{text(caption)}</figcaption></figure>'
        for name, caption in plots
    )
    settings = figures["settings"]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(run_folder.name)}: report</title>
<style>{STYLE}</style></head><body>
<h1>{html.escape(run_folder.name)}</h1>
<table class="facts">
{facts}
</table>
<h2>Particles</h2>
<table>
{row(first, "th")}
{chr(10).join(row(cells) for cells in others)}
</table>
<p>Diffusion constants: covariance estimator (Vestergaard et al. 2014) without motion blur, ± standard error.
Stokes-Einstein: {settings["temperature_k"]:g} K, {settings["viscosity_mpa_s"]:g} mPa s. All numbers: report.json.</p>
{f"<h2>Notes</h2><ul>{notes}</ul>" if notes else ""}
{images}
</body></html>
"""


def plain(value: Any) -> Any:
    """Return what JSON knows, in five digits."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
