"""`oneframe convert`: a logged run in the format of another program."""

from __future__ import annotations

import argparse
from pathlib import Path

from oneframe.app.console import CommandError, Console
from oneframe.app.frames import new_file
from oneframe.runtime.ctc_files import write_ctc
from oneframe.runtime.run_files import SUFFIXES, write_run
from oneframe.runtime.run_table import read_run_table


def convert(arguments: argparse.Namespace, console: Console) -> None:
    """Write a run as one file, or as a folder of them; nothing in the run's own folder changes."""
    if arguments.to not in (*SUFFIXES, "ctc"):
        formats = ", ".join((*SUFFIXES, "ctc"))
        raise CommandError(f"expected --to {formats}, got {arguments.to}; these are the formats there are")
    folder = Path(arguments.run)
    if arguments.to == "ctc":
        path = _new_folder(arguments.output)
        table = read_run_table(folder)
        notes = write_ctc(table, folder / "labels.tif", path)
    else:
        path = new_file(arguments.output, (SUFFIXES[arguments.to],))
        if arguments.to == "picasso" and path.with_suffix(".yaml").exists():
            raise CommandError(f"{path.with_suffix('.yaml')} exists and is never overwritten; choose another name")
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


def _new_folder(text: str) -> Path:
    """Return the path of a folder to be made, or of an empty one.

    Raises
    ------
    CommandError
        If there is something already, or the folder above does not exist.
    """
    path = Path(text)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CommandError(f"expected a new or empty folder, {path} is there and is never overwritten; choose another")
    if not path.parent.is_dir():
        raise CommandError(f"the folder {path.parent} does not exist; make it first")
    return path
