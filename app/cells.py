"""What `oneframe train --method cellulus` makes of its options, and how its quality card reads."""

from __future__ import annotations

import argparse
from typing import Any

OPTIONS = ("diameter_px", "cells", "foreground", "separate", "annotations")


def training_of(arguments: argparse.Namespace, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what the options say of a frame of a shape, by the names of `trainer.train`.

    Raises
    ------
    AnnotationError
        If the annotations cannot be used.
    """
    told = {name: getattr(arguments, name) for name in OPTIONS}
    if arguments.annotations is not None:
        from oneframe.trainer.annotations import read_annotations

        told["annotations"] = read_annotations(arguments.annotations, (shape[-2], shape[-1]))
    return told


def quality_lines(quality: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the quality card of a model for cells as (name, value)."""
    told = quality["read_off_frame"]
    rows = [("read off the frame" if line is told[0] else "", line) for line in told]
    rows.append(
        ("found on this frame", f"{quality['cells_on_frame']} cells, median area {quality['median_area_px']:.0f} px^2")
    )
    for name, facts in quality.get("kinds", {}).items():
        used = ", used" if name == quality["separate"] else ""
        again = ", ".join(
            f"{what} {100 * facts[f'agreement_{what}']:.0f} %" for what in ("shift", "scale", "noise", "brightness")
        )
        rows.append(
            (f"{name}{used}", f"{facts['cells']} cells, plausibility {facts['plausibility']:.2f}; found again: {again}")
        )
    if "annotations" in quality:
        rows.append(("annotations", quality["annotations"]))
    rows += [("warning", text) for text in quality.get("warnings", ())]
    return [*rows, (quality["advice"], quality["advice_sentence"])] if "advice" in quality else rows
