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
    from oneframe.app import cells, emitters
    from oneframe.app.holograms import background_of, read_frame, reference_of, settings_of

    check_options(arguments)
    shot = arguments.method == "shot"
    frame = emitters.read_frames(arguments.frame) if shot else read_frame(arguments.frame, arguments.hologram or "")
    hologram = settings_of(arguments, frame)
    if arguments.method != "lodestar":
        own = emitters.training_of(arguments) if shot else cells.training_of(arguments, frame.pixels.shape)
        own["on_frame"] = lambda told: console.say("\n".join(told.lines()), event="frame", lines=told.lines())
    else:
        own = {
            "box": arguments.box,
            "training_scale": arguments.scale,
            "gain": arguments.gain and tuple(arguments.gain),
            "size": arguments.size and tuple(arguments.size),
            "noise": arguments.noise,
            "alpha": arguments.alpha,
            "beta": arguments.beta,
            "z_range_um": arguments.z_range_um and tuple(arguments.z_range_um),
        }
    from oneframe.export import export
    from oneframe.trainer import Progress
    from oneframe.trainer import train as train_on

    cancel = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: cancel.set())

    def show(progress: Progress) -> None:
        more = f", attempt {progress.attempt}" if progress.attempt > 1 else ""
        more += f", {progress.note}" if progress.note else ""
        console.tick(
            lambda: (
                f"training {bar(progress.step, progress.n_steps)} {progress.step}/{progress.n_steps}{more}, "
                f"loss {progress.loss:.3f}, {duration(progress.eta_s)} left"
            ),
            last=progress.step == progress.n_steps,
            event="progress",
            step=progress.step,
            n_steps=progress.n_steps,
            loss=progress.loss,
            eta_s=progress.eta_s,
            attempt=progress.attempt,
            note=progress.note,
        )

    start_s = time.monotonic()
    try:
        trained = train_on(
            frame.pixels,
            method=arguments.method,
            seed=arguments.seed,
            steps=arguments.steps,
            preset=arguments.preset,
            hologram=hologram,
            reference=None if hologram is None else reference_of(arguments, hologram.kind),
            background=None if hologram is None else background_of(arguments, live=False),
            pixel_size_um=arguments.pixel_size_um or frame.pixel_size_um,
            source=arguments.frame,
            on_progress=show,
            cancel=cancel,
            **own,
        )
    finally:
        signal.signal(signal.SIGINT, previous)
    training_s = time.monotonic() - start_s
    console.say("exporting and checking the model")
    card = export(trained, path)
    console.say(
        f"{path}: trained in {duration(training_s)}, threshold {card.threshold:g}, {card.speed['detect_ms']:g} ms per "
        "frame here",
        event="done",
        file=str(path),
        training_s=training_s,
        threshold=card.threshold,
        quality=card.quality,
        speed=card.speed,
    )
    for name, value in quality_lines(card):
        console.say(f"  {name:<24}{value}")


_OF_LODESTAR = ("box", "scale", "size", "noise", "alpha", "beta")


def check_options(arguments: argparse.Namespace) -> None:
    """Refuse options of another method.

    Raises
    ------
    CommandError
        That names the first of them.
    """
    from oneframe.app import cells, emitters

    method = arguments.method
    options = {
        "lodestar": _OF_LODESTAR,
        "shot": (*emitters.KNOWN, *emitters.SETTINGS, "psf"),
        "cellulus": cells.OPTIONS,
    }
    for other, names in options.items():
        for name in names if other != method else ():
            if getattr(arguments, name) is not None:
                option = f"--{name.replace('_', '-')}"
                meant = "" if other == "lodestar" else f", or add --method {other} if {option} is meant"
                raise CommandError(f"expected options of {method}, got {option}; leave it out{meant}")
    n_gain = {"lodestar": 2, "shot": 1, "cellulus": 0}[method]
    if arguments.gain is not None and len(arguments.gain) != n_gain:
        wanted = ("nothing", "counts per photoelectron", "two factors, FROM and TO")[n_gain]
        raise CommandError(f"expected {wanted} after --gain with {method}, got {len(arguments.gain)} numbers")


def quality_lines(card: ModelCard) -> list[tuple[str, str]]:
    """Return the quality card as (name, value), the advice last."""
    quality = card.quality
    if card.method == "cellulus":
        from oneframe.app.cells import quality_lines as cell_lines

        return cell_lines(quality)
    if "advice" not in quality:
        return [("quality", _facts(quality))]
    if "view_z_rmse_um" in quality:
        return _hologram_lines(quality)
    if card.method == "shot":
        from oneframe.app.emitters import quality_lines as emitter_lines

        return emitter_lines(quality, card.pixel_size_um)

    def px(name: str) -> str:
        value = quality[name]
        return "unknown" if value is None else "under 0.001 px" if value < 0.001 else f"{value:.3f} px"

    return [
        ("expected error", f"{px('expected_rmse_px')} per axis; the light of this frame allows {px('bound_px')}"),
        ("errors within one sigma", f"{100 * quality['errors_within_sigma']:.0f} % (68 % is right)"),
        (
            "repeatability",
            f"shift {px('repeat_shift_px')}, flip {px('repeat_flip_px')}, noise {px('repeat_noise_px')}; "
            f"{100 * quality['found_again']:.0f} % found again each time",
        ),
        ("found on this frame", f"{quality['detections_on_frame']}"),
        ("threshold", f"lowest score above it {quality['threshold_gap']:.1f} times the highest below it"),
        *(("warning", text) for text in quality["warnings"]),
        (quality["advice"], quality["advice_sentence"]),
    ]


def _hologram_lines(quality: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the quality card of a model for holograms."""
    lines = [
        (
            "the particle",
            f"signal {quality['signal']:.2g} of the background, in focus at z {quality['particle_z_um']:+.2f} um, "
            f"{quality['particle_polarizability_um3']:.3g} um^3",
        ),
        ("field noise", f"{quality['field_noise']:.2g} per component"),
        (
            "error of the network",
            f"x, y {quality['view_rmse_um']:.3f} um per axis, z {quality['view_z_rmse_um']:.3f} um, signal "
            f"{100 * quality['view_log_signal_rmse']:.1f} % (on views; the field is measured on top)",
        ),
    ]
    if "repropagated_z_rmse_um" in quality:
        lines.append(
            (
                "self-test on this frame",
                f"propagated by known distances z follows within {quality['repropagated_z_rmse_um']:.3f} um, scaled "
                f"the signal within {100 * quality['rescaled_log_rmse']:.1f} %; "
                f"{100 * quality['found_again']:.0f} % found again",
            )
        )
    return [
        *lines,
        (
            "found on this frame",
            f"{quality['detections_on_frame']} of {quality['particles_on_frame']} in focus somewhere",
        ),
        ("threshold", f"lowest score above it {quality['threshold_gap']:.1f} times the highest below it"),
        *(("warning", text) for text in quality["warnings"]),
        (quality["advice"], quality["advice_sentence"]),
    ]


def verify(arguments: argparse.Namespace, console: Console) -> None:
    """Replay the self-test of a model file."""
    from oneframe.runtime.selftest import verify_model

    _, result = verify_model(arguments.model)
    console.say(
        f"{arguments.model}: {result.n_found} of {result.n_expected} expected objects found, positions within "
        f"{result.worst_px:.2g} px (allowed {result.tolerance_px:g}): {'passed' if result.passed else 'FAILED'}",
        event="verified",
        passed=result.passed,
        expected=result.n_expected,
        found=result.n_found,
        worst_px=result.worst_px,
        worst_score=result.worst_score,
    )
    if not result.passed:
        raise CommandError(
            f"expected the {result.n_expected} objects found at export within {result.tolerance_px:g} px, got "
            f"{result.n_found} within {result.worst_px:.2g} px; copy the file again or export it again"
        )


def info(arguments: argparse.Namespace, console: Console) -> None:
    """Show the model card."""
    from oneframe.runtime.model import load_graph

    card = load_graph(arguments.model).card
    if console.as_json:
        print(card.to_json())
        return
    for name, value in _lines(card):
        console.say(f"{name:<26}{value}")


def _lines(card: ModelCard) -> list[tuple[str, str]]:
    pixel = "unknown" if card.pixel_size_um is None else f"{card.pixel_size_um:g} um"
    box = card.crop.get("box_xywh_px")
    learned = f"{card.crop.get('file') or 'an image'}, box x y w h = {' '.join(map(str, box))} px" if box else "unknown"
    return [
        ("method", card.method),
        ("takes", _input(card)),
        ("gives", ", ".join(card.columns)),
        ("object", f"{card.object_diameter_px:g} px across"),
        ("threshold", f"{card.threshold:g} (score 0 to 1)"),
        ("pixel size", pixel),
        ("learned from", learned),
        ("seed, steps", f"{card.settings.get('seed', '?')}, {card.settings.get('n_steps', '?')}"),
        *quality_lines(card),
        ("speed", _facts(card.speed)),
        ("versions", _facts(card.versions)),
        ("created", card.created),
    ]


def _input(card: ModelCard) -> str:
    """Return what a user feeds the model with."""
    if card.hologram:
        optics = ", ".join(f"{name} {value:g}" for name, value in card.optics.items())
        low, high = card.trained_ranges["z_um"]
        return (
            f"{card.hologram['kind']} holograms ({optics}), refocused by oneframe to {len(card.hologram['planes_um'])} "
            f"planes; z from {low:g} to {high:g} um"
        )
    if card.method == "shot" and card.n_channels > 1:
        return f"{card.input_dtype} camera pixels, {card.n_channels} consecutive frames (F, H, W), the last is told"
    plane = "one plane (H, W)" if card.n_channels == 1 else f"{card.n_channels} planes (C, H, W)"
    return f"{card.input_dtype} camera pixels, {plane}, any size"


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items()) or "unknown"
