"""`oneframe detect`, `log`, `live` and `recover`: a model at work."""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oneframe.acquisition import BadFrameError, EndOfStream, Frame, open_source
from oneframe.app.console import CommandError, Console
from oneframe.app.frames import new_file
from oneframe.app.holograms import background_of, reference_of
from oneframe.app.outputs import outputs_of
from oneframe.runtime import Detections, HologramModel
from oneframe.runtime.account import Account, Status, StatusBoard
from oneframe.runtime.cell_link import CellLinker, CellLinkSettings
from oneframe.runtime.crew import looks
from oneframe.runtime.density import Emitters, RecentEmitters
from oneframe.runtime.display import DisplaySink, start_viewer
from oneframe.runtime.drift import ALIKE
from oneframe.runtime.fastest import BySize, run_fastest
from oneframe.runtime.link import FrameLinker, LinkSettings, import_solvers
from oneframe.runtime.load import LoadedModel, ready
from oneframe.runtime.model import OnnxModel, load_graph
from oneframe.runtime.pipeline import Ended, Pipeline
from oneframe.runtime.publish import emitter_values
from oneframe.runtime.record import RunRecord, complete_run, recover_run
from oneframe.runtime.regions import RegionModel, serves
from oneframe.runtime.seams import Analysed, Linker, Noted, Sink


def detect(arguments: argparse.Namespace, console: Console) -> None:
    """Find the objects of images and stacks and write one table."""
    path = new_file(arguments.output, (".csv", ".parquet"))
    overlay = None if arguments.overlay is None else new_file(arguments.overlay, (".png",))
    model = open_model(arguments, live=False)
    table = _Table(model)
    bad: list[str] = []
    for image, found in looks(model, _images(arguments.images, bad)):
        name, frame, detections = image.name, image.frame, found.detections
        if detections is None:
            bad.append(f"{name} frame {frame.index}: {found.reason}")
            continue
        for text in detections.notes:
            console.say(f"{name} frame {frame.index}: {text}", event="note", frame=frame.index, note=text)
        table.add(name, frame, detections)
        if overlay is not None:
            _draw(overlay, frame, detections, model)
            overlay = None
        console.tick(
            lambda: f"{table.n_frames} frames, {table.n_rows} detections",
            event="progress",
            frames=table.n_frames,
            detections=table.n_rows,
        )
    table.write(path)
    console.say(
        f"{path}: {table.n_rows} detections in {table.n_frames} frames",
        event="done",
        file=str(path),
        frames=table.n_frames,
        detections=table.n_rows,
        bad=bad,
    )
    if bad:
        raise CommandError(f"{len(bad)} frames could not be used, the others are in {path}; the first: {bad[0]}")


def open_model(arguments: argparse.Namespace, *, live: bool) -> LoadedModel:
    """Return the model that the arguments name; `live` for frames that follow each other.

    Raises
    ------
    CommandError
        If a reference or a background is given to a model that takes camera images.
    ModelFileError, ValueError
        If the file or the reference cannot be used.
    """
    graph = load_graph(arguments.model, threshold=arguments.threshold, threads=getattr(arguments, "threads", None))
    return model_around(graph, arguments, live=live)


def model_around(graph: OnnxModel, arguments: argparse.Namespace, *, live: bool) -> LoadedModel:
    """Return a graph with what its card and the arguments say must happen around it; raises as `open_model`."""
    if graph.card.hologram:
        reference = reference_of(arguments, graph.card.hologram["kind"])
        return HologramModel(graph, reference=reference, background=background_of(arguments, live=live))
    if arguments.reference is not None or arguments.background is not None:
        raise CommandError(f"expected no reference or background: {arguments.model} takes camera images; leave it out")
    return ready(graph)


def use_fastest(model: LoadedModel, arguments: argparse.Namespace, console: Console) -> None:
    """Let a model run as `bench` found best for one frame at a time, unless the arguments know better."""
    if arguments.backend == "fastest" and arguments.threads is None:
        for sentence in run_fastest(model, arguments.model):
            console.say(sentence, event="backend", sentence=sentence)


@dataclass(frozen=True, slots=True, eq=False)
class _Image:
    """A frame, and the image or stack that it is of."""

    name: str
    frame: Frame


def _images(names: list[str], bad: list[str]) -> Iterator[_Image]:
    """Yield every frame of these images and stacks; for those that cannot be read add a line to `bad`."""
    for name in names:
        with closing(open_source(name)) as source:
            while True:
                try:
                    frame = source.read(1.0)
                except EndOfStream:
                    break
                except BadFrameError as exc:
                    bad.append(f"{name}: {exc.reason}")
                    continue
                if frame is not None:
                    yield _Image(name, frame)


class _Table:
    """Detections of many images on their way to one file."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._columns: dict[str, list[Any]] = {}
        self.n_frames = 0
        self.n_rows = 0

    def add(self, name: str, frame: Frame, detections: Detections) -> None:
        n = len(detections)
        self.n_frames += 1
        self.n_rows += n
        columns: dict[str, Any] = {"image": [name] * n, "frame": [frame.index] * n, **detections.columns()}
        pixel_size_um = frame.pixel_size_um or self._model.card.pixel_size_um
        size = np.nan if pixel_size_um is None else pixel_size_um
        columns |= {"y_um": detections.y_px * size, "x_um": detections.x_px * size}
        for key, values in columns.items():
            self._columns.setdefault(key, []).extend(values)

    def write(self, path: Path) -> None:
        columns = self._columns or {key: [] for key in ("image", "frame", *self._model.card.columns)}
        if path.suffix == ".parquet":
            _write_parquet(path, columns)
            return
        with path.open("x", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(columns)
            rows.writerows(zip(*([_text(value) for value in values] for values in columns.values()), strict=True))


def _text(value: Any) -> Any:
    """Write floats to 1e-5, NaN as an empty cell."""
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.5f}"
    return value


def _write_parquet(path: Path, columns: dict[str, list[Any]]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as exc:
        raise CommandError(
            "a .parquet file needs the package pyarrow; run: pip install pyarrow, or write .csv"
        ) from exc
    parquet.write_table(pyarrow.table(columns), path)


def _draw(path: Path, frame: Frame, detections: Detections, model: LoadedModel) -> None:
    from oneframe.runtime.overlay import draw_overlay, write_png

    pixels = frame.pixels
    if detections.field is not None and isinstance(model, HologramModel):  # fringes hide what is to be seen
        enlarge = np.ones((model.settings.pixels_per_cell,) * 2, np.float32)
        pixels = np.kron(np.abs(detections.field), enlarge)
    write_png(path, draw_overlay(pixels, detections, diameter_px=model.card.ring_diameter_px))


def log(arguments: argparse.Namespace, console: Console) -> None:
    """Run a model on a source without a window and write every frame's fate to a folder."""
    threading.Thread(target=import_solvers, name="oneframe-imports").start()  # while the model loads
    model = open_model(arguments, live=True)
    ended = run_pipeline(arguments, model, {}, console)
    _report(ended, arguments, console)


def live(arguments: argparse.Namespace, console: Console) -> None:
    """Show positions on the live camera view; with an output folder also log them."""
    screenshot = None if arguments.screenshot is None else new_file(arguments.screenshot, (".png",))
    model = open_model(arguments, live=True)
    board = StatusBoard()
    display = _display_for(model, board)
    try:
        viewer = start_viewer(
            display.address,
            title=f"{Path(arguments.model).name} on {arguments.source}",
            diameter_px=model.card.ring_diameter_px,
            screenshot=screenshot,
            after_frames=60 if screenshot else None,
            close_at_end=arguments.frames is not None or arguments.seconds is not None,
        )
        while viewer.poll() is None and not display.wait_for_view(0.2):
            pass

        def watch(pipeline: Pipeline) -> None:
            _when_closed(viewer, pipeline, console, keeps_on=arguments.output is not None)

        ended = run_pipeline(arguments, model, {"view": display}, console, board=board, on_start=watch)
    finally:
        display.close()
    exit_code = viewer.wait()
    _report(ended, arguments, console)
    if exit_code != 0:
        raise CommandError(
            f"the live view ended with code {exit_code}; is there a display? see oneframe doctor, or use log"
        )


def _display_for(model: LoadedModel, board: StatusBoard) -> DisplaySink:
    """Return the display of what the model gives."""
    if not isinstance(model, HologramModel):
        return DisplaySink(
            status=board,
            z_range_um=model.card.trained_ranges.get("z_um"),
            emitters=model.card.method == "shot",
            pixel_size_um=model.card.pixel_size_um,
            cells=bool(model.card.maps),
        )
    settings = model.settings
    return DisplaySink(
        status=board,
        field_optics=settings.field_optics,
        pixels_per_cell=settings.pixels_per_cell,
        z_range_um=model.card.trained_ranges["z_um"],
    )


def _when_closed(viewer: subprocess.Popen[bytes], pipeline: Pipeline, console: Console, *, keeps_on: bool) -> None:
    """End the run when the user closes the window; when the window crashes, a logged run goes on."""

    def wait() -> None:
        exit_code = viewer.wait()
        if exit_code == 0:
            pipeline.stop("the window was closed")
        elif keeps_on:
            console.say(f"the live view ended with code {exit_code}; the run is logged on, Ctrl-C ends it")
        else:
            pipeline.stop(f"the live view ended with code {exit_code}")

    threading.Thread(target=wait, daemon=True, name="oneframe-viewer").start()


def run_pipeline(
    arguments: argparse.Namespace,
    model: LoadedModel,
    sinks: dict[str, Sink],
    console: Console,
    *,
    board: StatusBoard | None = None,
    on_start: Callable[[Pipeline], None] = lambda _: None,
) -> Ended:
    """Build the pipeline that the arguments ask for, run it, and complete the run's folder.

    Sinks that show how it is doing read it from `board`.
    """
    board = StatusBoard() if board is None else board
    max_distance_px = arguments.max_distance_px or model.card.object_diameter_px
    linking = LinkSettings(max_distance_px=max_distance_px, max_gap_frames=arguments.max_gap_frames)
    linker = linker_for(model, linking)
    source = open_source(arguments.source, every=arguments.mode == "every")
    stop, moved = _Later(), _Later()
    pixel_size_um = source.info.pixel_size_um or model.card.pixel_size_um
    try:
        if source.info.live:  # of a recording several frames are in work at once, in fp32
            use_fastest(model, arguments, console)
        analysis = with_regions(model, linker, arguments.regions, live=source.info.live)
        outputs = outputs_of(arguments, source, stop, pixel_size_um, console, moved)
    except BaseException:
        source.close()
        raise
    folder = None if arguments.output is None else Path(arguments.output)
    if folder is not None:
        settings = {
            "model": arguments.model,
            "model_sha256": hashlib.sha256(Path(arguments.model).read_bytes()).hexdigest(),
            "threshold": model.threshold,
            "mode": arguments.mode,
            "max_distance_px": max_distance_px,
            "max_gap_frames": arguments.max_gap_frames,
            "backends": model.engine.settings() if isinstance(model.engine, BySize) else [],
            "regions": arguments.regions,
        }
        record = RunRecord(
            folder, card=model.card, source=source.info, settings=settings, save_frames=arguments.save_frames
        )
        sinks = {"record": record, **sinks}
        moved.target = record.stage_moved
    lines = _ConsoleSink(console, board, model, pixel_size_um)
    sinks = {"console": lines, **outputs, **sinks}  # the record is closed last
    pipeline = Pipeline(source, analysis, linker, sinks, mode=arguments.mode, essential=frozenset({"record"}))
    stop.target = pipeline.stop
    board.follow(pipeline.status)
    on_start(pipeline)
    previous = {number: signal.signal(number, lambda *_: pipeline.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ended = pipeline.run(n_frames=arguments.frames, seconds=arguments.seconds)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if folder is not None:
        complete_run(
            folder,
            ended.account,
            ended.reason,
            published=ended.published,
            sink_drops=ended.sink_drops,
            outputs={name: output.report() for name, output in outputs.items()},
            runs_by_backend=model.engine.n_runs() if isinstance(model.engine, BySize) else None,
            regions=analysis.report() if isinstance(analysis, RegionModel) else None,
        )
    for name, output in outputs.items():
        console.say(_output_line(name, output.report()), event="output", name=name, report=output.report())
    return ended


def linker_for(model: LoadedModel, settings: LinkSettings) -> Linker:
    """Return what gives the model's detections their identities: cells by their masks, particles by distance."""
    if bool(model.card.maps):
        max_distance_diameters = settings.max_distance_px / model.card.object_diameter_px
        return CellLinker(
            CellLinkSettings(max_distance_diameters=max_distance_diameters, max_gap_frames=settings.max_gap_frames)
        )
    return FrameLinker(settings)


def with_regions(model: LoadedModel, linker: Linker, choice: str, *, live: bool) -> LoadedModel | RegionModel:
    """Return the model, looking at regions where `--regions` and its kind allow it.

    Recordings can wait: unless asked for they are looked at in whole frames, several at once.

    Raises
    ------
    CommandError
        If regions were asked for and the model cannot have them.
    """
    choice = "off" if choice == "auto" and not live else choice
    if choice != "off" and isinstance(model, OnnxModel) and isinstance(linker, FrameLinker) and serves(model.card):
        return RegionModel(model, linker, always=choice == "on")
    if choice == "on":
        raise CommandError("expected a LodeSTAR model of camera images for --regions on, got another; leave it out")
    return model


class _Later:
    """A function that outputs are given before there is one: of the pipeline, of the record."""

    target: Callable[..., None] | None = None

    def __call__(self, *arguments: Any) -> None:
        if self.target is not None:
            self.target(*arguments)


def _output_line(name: str, report: dict[str, Any]) -> str:
    """Return how an output did as one line."""
    text = f"{name}: {report['n']} of {report['frames']} frames"
    if report["latency_p50_ms"] is not None:
        text += f", latency p50 {report['latency_p50_ms']:.0f} / p99 {report['latency_p99_ms']:.0f} ms"
    for what in ("failed", "dropped"):
        text += "".join(f", {n} {what} ({reason})" for reason, n in report[what].items())
    return text


class _ConsoleSink:
    """A line now and then: how the run is doing; and one when the sample looks otherwise than before."""

    def __init__(
        self, console: Console, status: Callable[[], Status], model: LoadedModel, pixel_size_um: float | None
    ) -> None:
        self._console = console
        self._status = status
        self._counts_emitters = model.card.method == "shot"
        self._emitters = RecentEmitters(pixel_size_um=pixel_size_um)
        self._drift = ALIKE

    def write(self, analysed: Analysed) -> None:
        drift = analysed.drift or ALIKE
        if drift.state != self._drift.state:
            index = analysed.frame.index
            self._console.say(
                f"frame {index}: {drift.sentence}",
                event="drift",
                state=drift.state,
                frame=index,
                sentence=drift.sentence,
            )
        self._drift = drift
        if self._counts_emitters:
            self._emitters.add(analysed.frame, analysed.tracks.detections)
        self._tick()

    def skip(self, _missed: object) -> None:
        self._tick()

    def note(self, noted: Noted) -> None:
        self._console.say(f"frame {noted.index}: {noted.text}", event="note", frame=noted.index, note=noted.text)

    def close(self) -> None:
        pass

    def _tick(self) -> None:
        if not self._console.due():
            return
        now = self._status()
        facts = {name: getattr(now, name) for name in now.__slots__}
        emitters = self._emitters.mean
        if emitters is not None:
            facts |= emitter_values(emitters)
        self._console.tick(lambda: status_line(now, emitters), event="progress", **facts)


def status_line(now: Status, emitters: Emitters | None = None) -> str:
    """Return the status as one line; of emitters also how dense and how precise the last ones were."""
    bridge = "" if math.isnan(now.bridge_mb_per_s) else f", bridge {now.bridge_mb_per_s:.1f} MB/s"
    found = f"objects {now.n_detections}"
    if emitters is not None:
        density, precision = " ".join(emitters.density_text()), " ".join(emitters.precision_text())
        found = f"emitters {emitters.n:.0f}, density {density}, precision {precision}"
        found = found.replace("µ", "u").replace("²", "^2").replace("–", "-")  # a terminal may know ASCII only
    return (
        f"camera {now.camera_fps:.1f} fps, analysed {now.inference_fps:.1f} fps, age p50 {now.age_p50_ms:.0f} / "
        f"p99 {now.age_p99_ms:.0f} ms, seen {now.seen}, skipped {now.skipped}, failed {now.failed}, lost {now.lost}, "
        f"{found}{bridge}"
    )


def _report(ended: Ended, arguments: argparse.Namespace, console: Console) -> None:
    """Print the account; a source or a record that broke down is a failure."""
    where = f"{arguments.output}: " if arguments.output else ""
    console.say(
        f"{where}{account_line(ended.account)}; {ended.reason}{_drops_line(ended)}",
        event="done",
        run=arguments.output,
        reason=ended.reason,
        published=ended.published,
        sink_drops=ended.sink_drops,
        **ended.account.to_dict(),
    )
    if ended.failed:
        raise CommandError(ended.reason)
    if ended.account.seen and not ended.account.analysed:
        reasons = "; ".join(ended.account.reasons)
        raise CommandError(f"none of the {ended.account.seen} frames could be analysed: {reasons}")


def _drops_line(ended: Ended) -> str:
    """Return what did not reach a sink, to be added to the account."""
    return "".join(
        f"; {n} results did not reach the {name} ({reason})"
        for name, reasons in ended.sink_drops.items()
        for reason, n in reasons.items()
    )


def account_line(account: Account) -> str:
    """Return the account as one line, reasons included."""
    text = (
        f"{account.seen} frames seen = {account.analysed} analysed + {account.skipped} skipped + "
        f"{account.failed} failed; {'at least ' if account.gaps_of_unknown_length else ''}{account.lost_before} lost "
        "before they came here"
    )
    if account.before_start:
        text += f", {account.before_start} made before this run joined"
    if account.reasons:
        text += " (" + ", ".join(f"{reason}: {n}" for reason, n in account.reasons.items()) + ")"
    return text


def recover(arguments: argparse.Namespace, console: Console) -> None:
    """Complete the account of a run that was cut off."""
    account = recover_run(Path(arguments.run))
    console.say(f"{arguments.run}: {account_line(account)}", event="done", run=arguments.run, **account.to_dict())
