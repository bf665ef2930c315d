"""`oneframe train`, `verify` and `info`: making and looking at a model file."""

from __future__ import annotations

import argparse
import signal
import threading
import time
from typing import Any

from oneframe.app.console import CommandError, Console, bar, duration
from oneframe.app.frames import new_file
from oneframe.runtime.card import ModelCard


def train(arguments: argparse.Namespace, console: Console) -> None:
    """Train on one box of one frame and export the model."""
    path = new_file(arguments.output, (".onnx",))
    from oneframe.acquisition.recording import read_image

    frame = read_image(arguments.frame)
    from oneframe.export import export
    from oneframe.trainer import Progress
    from oneframe.trainer import train as train_on

    cancel = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: cancel.set())

    def show(progress: Progress) -> None:
        retry = f", attempt {progress.attempt}" if progress.attempt > 1 else ""
        console.tick(
            lambda: (
                f"training {bar(progress.step, progress.n_steps)} {progress.step}/{progress.n_steps}{retry}, "
                f"loss {progress.loss:.3f}, {duration(progress.eta_s)} left"
            ),
            last=progress.step == progress.n_steps,
            event="progress",
            step=progress.step,
            n_steps=progress.n_steps,
            loss=progress.loss,
            eta_s=progress.eta_s,
            attempt=progress.attempt,
        )

    start_s = time.monotonic()
    try:
        trained = train_on(
            frame.pixels,
            method=arguments.method,
            box=None if arguments.box is None else tuple(arguments.box),
            seed=arguments.seed,
            steps=arguments.steps,
            pixel_size_um=arguments.pixel_size_um or frame.pixel_size_um,
            source=arguments.frame,
            on_progress=show,
            cancel=cancel,
        )
    finally:
        signal.signal(signal.SIGINT, previous)
    training_s = time.monotonic() - start_s
    console.say("exporting and checking the model")
    card = export(trained, path)
    quality = card.quality
    console.say(
        f"{path}: trained in {duration(training_s)}; views agree within {quality['view_error_px']:.3f} px; "
        f"{quality['detections_on_frame']} found on the snapped frame at threshold {card.threshold:g}; "
        f"{card.speed['detect_ms']:g} ms per frame here",
        event="done",
        file=str(path),
        training_s=training_s,
        threshold=card.threshold,
        quality=quality,
        speed=card.speed,
    )


def verify(arguments: argparse.Namespace, console: Console) -> None:
    """Replay the self-test of a model file."""
    from oneframe.runtime.selftest import TOLERANCE_PX, verify_model

    _, result = verify_model(arguments.model)
    console.say(
        f"{arguments.model}: {result.n_found} of {result.n_expected} expected objects found, positions within "
        f"{result.worst_px:.2g} px (allowed {TOLERANCE_PX:g}): {'passed' if result.passed else 'FAILED'}",
        event="verified",
        passed=result.passed,
        expected=result.n_expected,
        found=result.n_found,
        worst_px=result.worst_px,
        worst_score=result.worst_score,
    )
    if not result.passed:
        raise CommandError(
            f"expected the {result.n_expected} objects found at export within {TOLERANCE_PX:g} px, got "
            f"{result.n_found} within {result.worst_px:.2g} px; copy the file again or export it again"
        )


def info(arguments: argparse.Namespace, console: Console) -> None:
    """Show the model card."""
    from oneframe.runtime import load_model

    card = load_model(arguments.model).card
    if console.as_json:
        print(card.to_json())
        return
    for name, value in _lines(card):
        console.say(f"{name:<16}{value}")


def _lines(card: ModelCard) -> list[tuple[str, str]]:
    plane = "one plane (H, W)" if card.n_channels == 1 else f"{card.n_channels} planes (C, H, W)"
    pixel = "unknown" if card.pixel_size_um is None else f"{card.pixel_size_um:g} um"
    box = card.crop.get("box_xywh_px")
    learned = f"{card.crop.get('file') or 'an image'}, box x y w h = {' '.join(map(str, box))} px" if box else "unknown"
    return [
        ("method", card.method),
        ("takes", f"{card.input_dtype} camera pixels, {plane}, any size"),
        ("gives", ", ".join(card.columns)),
        ("object", f"{card.object_diameter_px:g} px across"),
        ("threshold", f"{card.threshold:g} (score 0 to 1)"),
        ("pixel size", pixel),
        ("learned from", learned),
        ("seed, steps", f"{card.settings.get('seed', '?')}, {card.settings.get('n_steps', '?')}"),
        ("quality", _facts(card.quality)),
        ("speed", _facts(card.speed)),
        ("versions", _facts(card.versions)),
        ("created", card.created),
    ]


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items()) or "unknown"
