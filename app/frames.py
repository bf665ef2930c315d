"""`oneframe snap` and `oneframe serve`: frames to a file, frames to the network."""

from __future__ import annotations

import argparse
import platform
import signal
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from oneframe.acquisition import Frame, open_source
from oneframe.acquisition import snap as snap_frame
from oneframe.app.console import CommandError, Console

if TYPE_CHECKING:
    from oneframe.acquisition.publisher import Publisher
    from oneframe.runtime.refocus import Complex2D


def snap(arguments: argparse.Namespace, console: Console) -> None:
    """Take one frame and save it; of a hologram also show amplitude and phase."""
    from oneframe.acquisition.snapshot import write_snapshot
    from oneframe.app.holograms import reader_of, settings_of, snap_field

    path = new_file(arguments.output, (".tif", ".tiff"))
    picture = path.with_name(f"{path.stem}-field.png")
    if arguments.hologram:
        new_file(str(picture), (".png",))
    with closing(open_source(arguments.source)) as source:
        frame = snap_frame(source)
    if arguments.pixel_size_um:
        frame = replace(frame, pixel_size_um=arguments.pixel_size_um)
    settings = settings_of(arguments, frame)
    field: Complex2D | None = None
    failure: Exception | None = None
    if settings is not None:
        reader = reader_of(arguments, settings, live=False)
        known = {name: getattr(arguments, name) for name in ("wavelength_um", "medium_index", "na")}
        told = {name: value for name, value in known.items() if value is not None}
        try:
            field = reader.read(frame.pixels)
            told["kind"] = settings.kind  # only now is it sure
        except Exception as exc:  # whatever it is, the frame is kept
            failure = exc
        frame = replace(frame, metadata={**frame.metadata, **told})
    write_snapshot(path, frame)
    console.say(
        f"{path}: {frame.width} x {frame.height} px, {frame.pixels.dtype}, {_levels(frame)}, {_size(frame)}",
        event="snapped",
        file=str(path),
        shape=list(frame.pixels.shape),
        dtype=str(frame.pixels.dtype),
        pixel_size_um=frame.pixel_size_um,
        lowest=float(frame.pixels.min()),
        highest=float(frame.pixels.max()),
    )
    if failure is not None:
        raise CommandError(f"{path} is saved, but there is no picture of its field: {failure}") from failure
    if field is not None:
        snap_field(reader, frame, field, picture, console)


def serve(arguments: argparse.Namespace, console: Console) -> None:
    """Publish the frames of a source until it ends or the user stops it."""
    from oneframe.acquisition.keys import ALLOWED, SERVER_SECRET
    from oneframe.acquisition.publisher import Publisher
    from oneframe.acquisition.publisher import serve as serve_source

    stop = threading.Event()

    def ask_to_stop(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, signal.default_int_handler)  # the second time at once, whoever still reads

    signal.signal(signal.SIGINT, ask_to_stop)
    signal.signal(signal.SIGTERM, ask_to_stop)
    folder = None if arguments.keys is None else Path(arguments.keys)
    with (
        closing(open_source(arguments.source, every=arguments.mode == "every")) as source,
        closing(
            Publisher(
                arguments.bind,
                server_keys=None if folder is None else folder / SERVER_SECRET,
                allowed_clients=None if folder is None else folder / ALLOWED,
                latest_port=arguments.latest_port,
            )
        ) as publisher,
    ):
        address = f"zmq+{publisher.address}".replace("//0.0.0.0:", f"//{platform.node()}:")
        reach = "on this computer only" if folder is None else "encrypted"
        console.say(
            f"serving {arguments.source} at {address}, {reach}; newest frame on request (?latest=1) from port "
            f"{publisher.latest_port} (Ctrl-C stops)",
            event="serving",
            address=address,
            latest_port=publisher.latest_port,
            encrypted=folder is not None,
        )
        if arguments.wait:
            console.say("waiting for the first subscriber")
            while not stop.is_set() and not publisher.wait_for_subscriber(0.2):
                pass

        # not in the loop that sends: a terminal that is held up (Ctrl-S, text marked under Windows) would stop it
        ended = threading.Event()
        ticker = threading.Thread(target=_tick, args=(publisher, console, ended), daemon=True, name="oneframe-console")
        ticker.start()
        try:
            account = serve_source(
                source,
                publisher,
                stop=stop,
                n_frames=arguments.frames,
                seconds=arguments.seconds,
                linger_s=arguments.linger_s,
            )
        finally:
            ended.set()
    slow = f"; a subscriber was too slow {account.stalls} times and lost frames" if account.stalls else ""
    console.say(
        f"{account.sent} frames sent, {account.lost} lost before they came here, {account.bad} unusable{slow}: "
        f"{account.reason}",
        event="done",
        sent=account.sent,
        lost=account.lost,
        bad=account.bad,
        stalls=account.stalls,
        total=account.total,
        reason=account.reason,
    )


def _tick(publisher: Publisher, console: Console, ended: threading.Event) -> None:
    while not ended.wait(0.2):
        sent, subscribers = publisher.n_sent, publisher.n_subscribers
        if sent:
            line = f"{sent} frames sent, {subscribers} subscribers"
            console.tick(line.__str__, event="progress", sent=sent, subscribers=subscribers)


def new_file(text: str, suffixes: tuple[str, ...]) -> Path:
    """Return the path of a file to be written.

    Raises
    ------
    CommandError
        If it exists, its folder does not, or it has another suffix than those.
    """
    path = Path(text)
    if path.suffix.lower() not in suffixes:
        raise CommandError(f"expected a file that ends with {' or '.join(suffixes)}, got {text}")
    if path.exists():
        raise CommandError(f"{path} exists and is never overwritten; choose another name")
    if not path.parent.is_dir():
        raise CommandError(f"the folder {path.parent} does not exist; make it first")
    return path


def _levels(frame: Frame) -> str:
    return f"pixels from {frame.pixels.min():g} to {frame.pixels.max():g}"


def _size(frame: Frame) -> str:
    return "pixel size unknown" if frame.pixel_size_um is None else f"{frame.pixel_size_um:g} um per pixel"
