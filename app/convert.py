"""`oneframe convert`: a logged run in the format of another program."""

from __future__ import annotations

import argparse
from pathlib import Path

from oneframe.app.console import CommandError, Console
from oneframe.app.frames import new_file
from oneframe.runtime.run_files import SUFFIXES, write_run
from oneframe.runtime.run_table import read_run_table


def convert(arguments: argparse.Namespace, console: Console) -> None:
    """Write one file of a run; nothing in the run's folder changes."""
    if arguments.to not in SUFFIXES:
        raise CommandError(f"expected --to {', '.join(SUFFIXES)}, got {arguments.to}; these are the formats there are")
    path = new_file(arguments.output, (SUFFIXES[arguments.to],))
    if arguments.to == "picasso" and path.with_suffix(".yaml").exists():
        raise CommandError(f"{path.with_suffix('.yaml')} exists and is never overwritten; choose another name")
    folder = Path(arguments.run)
    table = read_run_table(folder)
    try:
        notes = write_run(
            table, arguments.to, path, pixel_size_um=arguments.pixel_size_um, frame_shape=table.frame_shape
        )
    except ModuleNotFoundError as exc:
        raise CommandError(str(exc)) from exc
    for note in notes:
        console.say(f"note: {note}", event="note", note=note)
    console.say(
        f"{path}: {len(table.track_id)} rows of {len(table.frame)} frames",
        event="done",
        file=str(path),
        to=arguments.to,
        rows=len(table.track_id),
        frames=len(table.frame),
    )
