"""What `oneframe train --method shot` makes of its options and its frame, and how its quality card reads."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from oneframe.acquisition import Frame
from oneframe.acquisition.psf import GaussianPsf
from oneframe.acquisition.recording import open_recording
from oneframe.acquisition.source import parse_source
from oneframe.app.console import CommandError

MOST_FRAMES = 100
"""Of a stack that is learned from; more tell nothing new."""

KNOWN = {
    "baseline": "offset", "read_noise": "read_noise", "em_gain": "em_gain", "psf_sigma_px": "psf_sigma_px",
    "photons": "photons", "density_um2": "density_um2", "on_frames": "on_frames",
}  # fmt: skip
"""Options and what `read_emitter_frame` calls them."""
SETTINGS = {"refinements": "refinements", "context_frames": "n_frames", "matching": "matching"}


def read_frames(text: str) -> Frame:
    """Return the image of a file, (H, W), or its first `MOST_FRAMES` as a stack (T, H, W)."""
    with closing(open_recording(parse_source(text))) as recording:
        n_frames = min(recording.n_pages, MOST_FRAMES)
        frames = [frame for frame in (recording.read(0.0) for _ in range(n_frames)) if frame is not None]
    if len(frames) != n_frames or any(frame.pixels.ndim != 2 for frame in frames):
        raise CommandError(f"expected grey frames in {text}, got channels or a replay; pick one with ?channel=N")
    return frames[0] if n_frames == 1 else replace(frames[0], pixels=np.stack([frame.pixels for frame in frames]))


def read_psf(path: str) -> GaussianPsf:
    """Return the calibration that `oneframe calibrate-psf` wrote."""
    try:
        return GaussianPsf.from_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise CommandError(
            f"expected a calibration at {path}, found none; make one with: oneframe calibrate-psf"
        ) from exc
    except (ValueError, OSError) as exc:
        raise CommandError(f"{path}: {exc}") from exc


def training_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the options say, by the names of `trainer.train`."""
    values = {theirs: getattr(arguments, ours) for ours, theirs in (KNOWN | SETTINGS).items()}
    values["gain"] = arguments.gain and arguments.gain[0]
    values["psf"] = arguments.psf and read_psf(arguments.psf)
    return values


def quality_lines(quality: dict[str, Any], pixel_size_um: float | None) -> list[tuple[str, str]]:
    """Return the quality card of a model for single molecules as (name, value)."""
    told = [line for line in quality["read_off_frame"] if not line.startswith("note: ")]  # those are the warnings
    rows = [("read off the frame" if line is told[0] else "", line) for line in told]
    rows.append(("expected here", _expected(quality, "expected_", pixel_size_um)))
    for each in quality["by_density"]:
        density = each["density_px"]
        name = f"at {density:.3g} per px" if pixel_size_um is None else f"at {density / pixel_size_um**2:.2g} per um^2"
        rows.append((name, f"{_expected(each, '', pixel_size_um)}, best threshold {each['threshold']:g}"))
    rows.append(("errors within one sigma", f"{100 * quality['errors_within_sigma']:.0f} % (68 % is right)"))
    rows.append(("found on this frame", f"{quality['detections_on_frame']}"))
    rows += [("warning", text) for text in quality["warnings"]]
    return [*rows, (quality["advice"], quality["advice_sentence"])]


def _expected(figures: dict[str, Any], prefix: str, pixel_size_um: float | None) -> str:
    """Return Jaccard index and errors, with the bound where it is known."""

    def length(px: float) -> str:
        return f"{px:.2f} px" if pixel_size_um is None else f"{1e3 * pixel_size_um * px:.0f} nm"

    text = f"Jaccard {figures[prefix + 'jaccard']:.2f}, lateral error {length(figures[prefix + 'rmse_px'])}"
    if figures.get(prefix + "bound_px"):
        text += f" (bound {length(figures[prefix + 'bound_px'])})"
    if figures.get(prefix + "rmse_z_um"):
        z_nm, bound_nm = (1e3 * figures[f"{prefix}{what}_z_um"] for what in ("rmse", "bound"))
        text += f", z {z_nm:.0f} nm (bound {bound_nm:.0f} nm)"
    return text
