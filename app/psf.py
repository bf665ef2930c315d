"""`oneframe calibrate-psf`: a stack of beads becomes a calibration of the point spread function; and how it is read."""

from __future__ import annotations

import argparse
import importlib.util
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition import EndOfStream
from oneframe.acquisition.psf import GaussianPsf
from oneframe.acquisition.recording import open_recording
from oneframe.acquisition.source import parse_source
from oneframe.app.console import CommandError, Console
from oneframe.app.frames import new_file
from oneframe.trainer.psf_calibration import PsfCalibration, calibrate_psf

_COLOURS = ("#0072b2", "#d55e00")


def calibrate(arguments: argparse.Namespace, console: Console) -> None:
    """Fit Huang's curves to a stack of beads; write the calibration and a plot of it."""
    path = new_file(arguments.output, (".json",))
    picture = path.with_suffix(".png")
    if arguments.step_nm == 0:
        raise CommandError("expected a step between the planes, got 0 nm; give the step of the stage")
    draws = importlib.util.find_spec("matplotlib") is not None
    if draws:
        new_file(str(picture), (".png",))
    stack, pixel_um = _read_stack(arguments.stack)
    pixel_um = arguments.pixel_size_um or pixel_um
    boxes = None if arguments.box in (None, "auto") else arguments.box
    places = None if boxes is None else np.array([(y + (h - 1) / 2, x + (w - 1) / 2) for x, y, w, h in boxes])
    size = {} if boxes is None else {"box_px": max(max(w, h) for _, _, w, h in boxes) // 2 * 2 + 1}
    calibration = calibrate_psf(stack, arguments.step_nm / 1000, places_px=places, **size)
    psf = calibration.psf
    path.write_text(psf.to_json() + "\n", encoding="utf-8")
    for name, width in (("sigma_y", psf.y), ("sigma_x", psf.x)):
        in_nm = "" if pixel_um is None else f" ({1000 * pixel_um * width.sigma_px:.0f} nm)"
        console.say(
            f"{name}: {width.sigma_px:.3f} px{in_nm} in focus at {1000 * width.focus_um:+.0f} nm, wider by sqrt(2) "
            f"about {1000 * width.depth_um:.0f} nm from there"
        )
    notes = list(calibration.notes)
    if draws:
        _draw(picture, calibration)
    else:
        notes.append("no plot without matplotlib: pip install 'oneframe[report]'")
    for note in notes:
        console.say(f"note: {note}", event="note", note=note)
    low_um, high_um = psf.z_range_um
    console.say(
        f"{path}: {calibration.n_beads} beads, {len(calibration.z_um)} fits, z from {1000 * low_um:.0f} to "
        f"{1000 * high_um:.0f} nm, told by the widths to {1000 * calibration.rms_um:.0f} nm; use it with: oneframe "
        f"train FRAME --method shot --psf {path}",
        event="done",
        file=str(path),
        plot=str(picture) if draws else None,
        beads=calibration.n_beads,
        z_range_um=[low_um, high_um],
        residual_nm=1000 * calibration.rms_um,
    )


def read_psf(path: str | Path) -> GaussianPsf:
    """Return the calibration that `oneframe calibrate-psf` wrote.

    Raises
    ------
    CommandError
        If there is no such file, or it holds something else.
    """
    try:
        return GaussianPsf.from_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise CommandError(
            f"expected a calibration in {path}, it cannot be read ({exc}); make one with: oneframe calibrate-psf"
        ) from exc
    except ValueError as exc:
        raise CommandError(f"{path}: {exc}") from exc


def _read_stack(text: str) -> tuple[NDArray[Any], float | None]:
    """Return the planes (Z, H, W) of a recording and its pixel size."""
    planes: list[NDArray[Any]] = []
    pixel_um: float | None = None
    with closing(open_recording(parse_source(text))) as recording:
        while True:
            try:
                frame = recording.read(0.0)
            except EndOfStream:
                break
            if frame is None:
                continue
            if frame.pixels.ndim != 2 or (planes and frame.pixels.shape != planes[0].shape):
                raise CommandError(
                    f"expected planes of one channel and one size in {text}, got {frame.pixels.shape} as number "
                    f"{len(planes)}; pick a channel with ?channel=N"
                )
            planes.append(frame.pixels)
            pixel_um = frame.pixel_size_um
    if not planes:
        raise CommandError(f"expected a stack of planes in {text}, got none; give the recording of a z scan")
    return np.stack(planes), pixel_um


def _draw(path: Path, calibration: PsfCalibration) -> None:
    """Plot points and curves, and how well the widths tell the height."""
    from matplotlib.figure import Figure

    psf = calibration.psf
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    z_nm = 1000 * calibration.z_um
    line_um = np.linspace(calibration.z_um.min(), calibration.z_um.max(), 400)
    columns = (calibration.width_y_px, calibration.width_x_px)
    for name, colour, points, curve in zip(("σ_y", "σ_x"), _COLOURS, columns, psf.sigmas(line_um), strict=True):
        axes.plot(z_nm, points, ".", color=colour, markersize=5, alpha=0.6, markeredgewidth=0)
        axes.plot(1000 * line_um, curve, color=colour, label=name)
    below.plot(z_nm, 1000 * calibration.residual_um, ".", color="0.3", markersize=5, alpha=0.6, markeredgewidth=0)
    below.axhline(0, color="black", linewidth=0.8)
    for one in (axes, below):
        one.axvspan(*(1000 * z for z in psf.z_range_um), color="0.93", zorder=0)
    axes.plot([], [], "s", markersize=10, color="0.88", label="z is told here")
    axes.set_ylim(0, 1.1 * float(np.max(columns)))
    axes.set_ylabel("width of the beads, px")
    below.set_ylabel("error of z, nm")
    below.set_xlabel("z by the stage, nm")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", frameon=False, ncols=3)
    figure.savefig(path, dpi=130)
