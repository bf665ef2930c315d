"""What `live` and `log` do with each result besides showing and writing it: the options that ask for `Output`s."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oneframe.acquisition import FrameSource
from oneframe.app.console import CommandError, Console
from oneframe.runtime.condition import StopWhen
from oneframe.runtime.follow import FollowSettings, FollowTrack
from oneframe.runtime.output import CallFunction, OutputSink
from oneframe.runtime.publish import PublishDetections


def outputs_of(
    arguments: argparse.Namespace,
    source: FrameSource,
    stop: Callable[[str], None],
    pixel_size_um: float | None,
    console: Console,
    moved: Callable[[int, float, float, float], None],
) -> dict[str, OutputSink]:
    """Return the outputs that the arguments ask for, by name.

    `stop` ends the run; `moved` takes where the stage went, as in `FollowTrack`.

    Raises
    ------
    CommandError
        If a stage is to be moved and the source has none.
    ValueError, OSError
        If an option makes no sense or an address is taken.
    """

    def tell(sentence: str) -> None:
        console.say(sentence, event="output", sentence=sentence)

    outputs: dict[str, OutputSink] = {}

    def add(name: str, output: Any, *, newest_wins: bool = False) -> None:
        outputs[name] = OutputSink(name, output, newest_wins=newest_wins, tell=tell)

    try:
        if arguments.publish:
            keys = None if arguments.publish_keys is None else Path(arguments.publish_keys)
            publisher = PublishDetections(arguments.publish, pixel_size_um=pixel_size_um, keys=keys)
            add("publish", publisher)
            tell(f"publishing detections at {publisher.address}")
        for text in arguments.call:
            add(f"call {text}", CallFunction(text))
        if arguments.follow is not None:
            settings = _follow_settings(arguments, source, pixel_size_um)
            add("follow", FollowTrack(_stage_of(source), settings, tell=tell, moved=moved), newest_wins=True)
        for text in arguments.stop_when:
            add(f"stop when {text}", StopWhen(text, stop, for_frames=arguments.stop_after))
    except BaseException:
        for output in outputs.values():
            output.close()
        raise
    return outputs


def _follow_settings(arguments: argparse.Namespace, source: FrameSource, pixel_size_um: float | None) -> FollowSettings:
    given: dict[str, Any] = {
        name: value
        for name in ("gain", "dead_band_px", "travel_um")
        if (value := getattr(arguments, f"follow_{name}")) is not None
    }
    if arguments.follow >= 0:
        given["track_id"] = arguments.follow
    if arguments.follow_um_per_px is not None:
        yy, yx, xy, xx = arguments.follow_um_per_px
        given["um_per_px"] = ((yy, yx), (xy, xx))
    elif source.info.pixel_size_um is None and pixel_size_um is not None:
        given["um_per_px"] = ((pixel_size_um, 0.0), (0.0, pixel_size_um))
    return FollowSettings(**given)


def _stage_of(source: FrameSource) -> Any:
    if not (hasattr(source, "move_xy_um") and hasattr(source, "stage_xy_um")):
        raise CommandError(
            f"--follow moves the stage of Micro-Manager, {source.info.url} has none; use demo:, mm: or micromanager:"
        )
    return source
