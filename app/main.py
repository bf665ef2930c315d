"""The command line of DESIGN section 4: parses, imports what the command needs, explains failures in one sentence."""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from oneframe.app.console import CommandError, Console

# command -> (module, function); imported only when called, so that --help answers at once
_COMMANDS = {
    "demo": ("oneframe.app.demo", "demo"),
    "doctor": ("oneframe.app.doctor", "doctor"),
    "snap": ("oneframe.app.frames", "snap"),
    "train": ("oneframe.app.models", "train"),
    "verify": ("oneframe.app.models", "verify"),
    "info": ("oneframe.app.models", "info"),
    "detect": ("oneframe.app.track", "detect"),
    "live": ("oneframe.app.track", "live"),
    "log": ("oneframe.app.track", "log"),
    "recover": ("oneframe.app.track", "recover"),
    "bench": ("oneframe.app.bench", "bench"),
    "report": ("oneframe.app.report", "report"),
    "convert": ("oneframe.app.convert", "convert"),
    "refocus": ("oneframe.app.holograms", "refocus"),
    "serve": ("oneframe.app.frames", "serve"),
    "keys": ("oneframe.app.keys", "keys"),
    "calibrate-psf": ("oneframe.app.psf", "calibrate"),
}

# top-level module -> extra of the package that brings it
_EXTRAS = {
    "torch": "train",
    "onnx": "train",
    "onnxscript": "train",
    "pyqtgraph": "view",
    "PySide6": "view",
    "pycromanager": "mm",
    "pymmcore": "mm",
    "mm_test_adapters": "mm",
    "matplotlib": "report",
    "openvino": "openvino",
}

_MOST_PLANES = 10_000
"""Of one range of refocused planes: more is a slip of the pen."""

_SOURCE_HELP = (
    "where frames come from: sim:beads, sim:hologram, sim:emitters or sim:cells[?seed=..&frames=..&fps=..] (simulated "
    "microscope), demo: (Micro-Manager's DemoCamera), mm:CONFIG.cfg (own MMCore), micromanager: (a running "
    "Micro-Manager), zmq+tcp://HOST:PORT[?latest=1] (another process's serve; with ?server_key=FILE&client_key=FILE "
    "from another computer), or the path of a recording (TIFF, NPY, AVI, MP4, OME-Zarr, NDTiff, DAX, Picasso RAW, a "
    "folder of images; ?fps= replays in real time)"
)

_NEGATIVE = re.compile(r"^-[\d.][\d.:eE+-]*$")
"""Numbers and ranges that argparse would take for options, such as -5:5:0.5 or -1e-3; a blank before them says no."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="oneframe",
        description="Snap one frame, train on it in about a minute, get one .onnx file, watch or log positions live.",
        epilog="Start with: oneframe demo",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.add_argument("--json", action="store_true", help="machine-readable lines instead of sentences")
        return sub

    demo = command("demo", "run the whole chain on the simulated microscope, no hardware needed")
    demo.add_argument(
        "-o", "--output", metavar="FOLDER", help="new folder for its files (default: the next free oneframe-demo-N)"
    )
    demo.add_argument("--frames", type=_count, default=300, help="frames to track (default: %(default)s)")
    demo.add_argument("--steps", type=_count, help="training steps in place of the default")
    demo.add_argument("--seed", type=int, default=0)

    command("doctor", "tell what works here, what is missing, and the line that mends it")

    snap = command("snap", "take one frame and save it")
    snap.add_argument("source", metavar="SOURCE", help=_SOURCE_HELP)
    snap.add_argument(
        "-o", "--output", metavar="FILE.tif", required=True,
        help="new file; of a hologram FILE-field.png too, its amplitude and phase",
    )  # fmt: skip
    _add_pixel_size(snap)
    _add_hologram(snap)

    train = command("train", "train on one frame and export the model")
    train.add_argument("frame", metavar="SNAP.tif", help="the snapped frame, one plane; for shot also a short stack")
    train.add_argument(
        "--method", choices=["lodestar", "shot", "cellulus"], default="lodestar",
        help="lodestar: particles that look alike, from one of them; shot: single molecules, however dense; cellulus: "
        "cells, as a label image",
    )  # fmt: skip
    train.add_argument(
        "--box", nargs="+", action=_BoxAction, metavar="X Y W H | auto",
        help="the particle to learn, whole pixels: left column, top row, width, height; give it again for more "
        "particles of the same kind; auto takes the clearest isolated one (default: the whole image)",
    )  # fmt: skip
    train.add_argument("-o", "--output", metavar="MODEL.onnx", required=True)
    train.add_argument("--seed", type=int, default=0, help="same seed, same model (default: %(default)s)")
    train.add_argument("--steps", type=_count, help="gradient steps in place of the method's default")
    train.add_argument("--preset", choices=["default", "paper"], default="default", help="paper: as published, slow")
    train.add_argument(
        "--scale", type=_count, metavar="N",
        help="average N x N pixels first, so that a large particle is learned whole (default: from its size)",
    )  # fmt: skip
    train.add_argument(
        "--gain", nargs="+", type=_positive, metavar="G",
        help="lodestar: brightness of the particles to come, as factors from and to; shot: camera counts per "
        "photoelectron (default: from the frame)",
    )  # fmt: skip
    train.add_argument(
        "--size", nargs=2, type=_positive, metavar=("FROM", "TO"),
        help="size of the particles to come, as factors from and to (default: from the frame)",
    )  # fmt: skip
    train.add_argument(
        "--noise", type=float, help="strongest noise to train with, in roots of the signal (default: 0.8)"
    )
    train.add_argument("--alpha", type=float, help="exponent of the weight in the score (default: 0.5)")
    train.add_argument("--beta", type=float, help="exponent of the agreement in the score (default: 0.5)")
    _add_emitters(train)
    _add_cells(train)
    _add_pixel_size(train)
    _add_hologram(train).add_argument(
        "--z-range-um", nargs=2, type=_finite, metavar=("LOW", "HIGH"),
        help="distances from the focus that the model has to know, micrometres (default: from the frame)",
    )  # fmt: skip

    for name, text in (
        ("verify", "replay the self-test inside a model file"),
        ("info", "show what a model file says of itself"),
    ):
        command(name, text).add_argument("model", metavar="MODEL.onnx")

    detect = command("detect", "find the objects of images or stacks")
    detect.add_argument("model", metavar="MODEL.onnx")
    detect.add_argument("images", metavar="IMAGE", nargs="+", help="TIFF, NPY or PNG; a stack counts frame by frame")
    detect.add_argument("-o", "--output", metavar="FILE", required=True, help="new .csv or .parquet file")
    detect.add_argument("--overlay", metavar="FILE.png", help="also draw the first frame with its detections")

    live = command("live", "watch positions on the live camera view")
    log = command("log", "log positions to disk, headless")
    for sub in (live, log):
        sub.add_argument("model", metavar="MODEL.onnx")
        sub.add_argument("--source", required=True, help=_SOURCE_HELP)
        sub.add_argument("-o", "--output", metavar="RUN/", required=sub is log, help="new folder for the logged run")
        limit = sub.add_mutually_exclusive_group()
        limit.add_argument("--frames", type=_count, metavar="N", help="stop after so many frames")
        limit.add_argument("--seconds", type=_positive, metavar="S", help="stop after this time")
        sub.add_argument("--save-frames", action="store_true", help="save the analysed frames too (frames.tif)")
        sub.add_argument(
            "--mode", choices=["latest", "every"], default="latest" if sub is live else "every",
            help="latest: the newest frame wins; every: frames queue up (default: %(default)s)",
        )  # fmt: skip
        sub.add_argument(
            "--max-distance-px", type=_positive, metavar="D",
            help="largest step of a particle from frame to frame (default: one object diameter)",
        )  # fmt: skip
        sub.add_argument("--max-gap-frames", type=int, default=3, help="frames a track may miss (default: %(default)s)")
        sub.add_argument("--threads", type=_count, help="CPU threads for the model, in fp32")
        sub.add_argument(
            "--backend", choices=["fastest", "fp32"], default="fastest",
            help="fastest: of a camera as oneframe bench found for this model, frame size and machine; without it "
            "fp32 (default: %(default)s)",
        )  # fmt: skip
        sub.add_argument(
            "--regions", choices=["auto", "on", "off"], default="auto",
            help="look only at regions around particles, and for newcomers, in place of whole frames (lodestar, camera "
            "images). auto: of live sources, where it pays and newcomers stand out; on: wherever it is less to look at "
            "(default: %(default)s)",
        )  # fmt: skip
        _add_outputs(sub)
    live.add_argument("--screenshot", metavar="FILE.png", help="save the window after 60 pictures and close it")
    _add_bench(command("bench", "find out how a model runs fastest on this machine, for live and log"))
    for sub in (detect, live, log):
        sub.add_argument("--threshold", type=float, metavar="T", help="lowest score to report, 0 to 1")
        _add_background(sub.add_argument_group("hologram", "of a model for holograms, whose card knows the rest"))

    refocus = command("refocus", "show a hologram's amplitude and phase at other distances")
    refocus.add_argument("image", metavar="IMAGE", help="one hologram; of a stack the page: stack.tif?page=3")
    refocus.add_argument(
        "--z-um", nargs="+", type=_planes, required=True, metavar="Z",
        help="distances from the focus, micrometres, or ranges START:STOP:STEP with STOP included; a particle at +z is "
        "in focus at +z",
    )  # fmt: skip
    refocus.add_argument(
        "-o", "--output", metavar="FILE", required=True,
        help="new .tif, a stack for ImageJ of amplitude and phase, or .png, a picture of all planes",
    )  # fmt: skip
    _add_pixel_size(refocus)
    _add_hologram(refocus, required=True)

    report = command("report", "plot a logged run: diffusion, z and polarizability")
    report.add_argument("run", metavar="RUN/", help="a logged run, finished or not")
    report.add_argument("-o", "--output", metavar="FOLDER", help="where to write (default: RUN/report)")
    for name, metavar, text in (
        ("calibrate-radius-um", "R", "radius of the known particles that set the scale of the polarizability"),
        ("calibrate-index", "N", "their refractive index"),
        ("medium-index", "N", "refractive index of the liquid (default: from the model, else 1.33)"),
        ("radius-um", "R", "radius for the Stokes-Einstein line (default: from the calibrated polarizability)"),
        ("temperature-k", "T", "temperature of the sample (default: 293)"),
        ("viscosity-mpa-s", "V", "viscosity of the liquid (default: 1.002, water at 293 K)"),
        ("dt-s", "S", "time from frame to frame (default: from the record; recordings played without ?fps= need it)"),
    ):
        report.add_argument(f"--{name}", type=_positive, metavar=metavar, help=text)
    report.add_argument("--min-length", type=_count, metavar="N", help="frames a track needs to count (default: 15)")

    convert = command("convert", "write a logged run in the format of another program")
    convert.add_argument("run", metavar="RUN/", help="a logged run, finished or not; it stays as it is")
    convert.add_argument(
        "--to", required=True, metavar="FORMAT",
        help="csv, parquet, trackpy (.csv); of single molecules also picasso (.hdf5 and .yaml), thunderstorm (.csv); "
        "of cells also ctc (Cell Tracking Challenge, a folder of masks and res_track.txt)",
    )  # fmt: skip
    convert.add_argument("-o", "--output", metavar="FILE", required=True, help="new file; for ctc a new folder")
    _add_pixel_size(convert)

    recover = command("recover", "complete the account of a run that was cut off")
    recover.add_argument("run", metavar="RUN/")

    serve = command("serve", "publish frames over ZeroMQ")
    serve.add_argument("source", metavar="SOURCE", help=_SOURCE_HELP)
    serve.add_argument("--bind", default="tcp://127.0.0.1:5555", help="(default: %(default)s; port 0 picks a free one)")
    serve.add_argument(
        "--keys", metavar="FOLDER",
        help="encrypt, and let in only the clients that oneframe keys made these for; needed beyond this computer",
    )  # fmt: skip
    serve.add_argument(
        "--latest-port", type=int, metavar="PORT", help="where ?latest=1 asks for the newest frame (default: the next)"
    )
    serve.add_argument(
        "--linger-s", type=float, default=60.0, metavar="S",
        help="at the end wait so long for subscribers that stand still (default: %(default)s)",
    )  # fmt: skip
    serve.add_argument(
        "--mode", choices=["latest", "every"], default="every",
        help="of a camera. every: frames wait in its buffer; latest: the newest wins (default: %(default)s)",
    )  # fmt: skip
    serve.add_argument("--wait", action="store_true", help="start with the first subscriber, so that it misses nothing")
    serve.add_argument("--frames", type=_count, metavar="N")
    serve.add_argument("--seconds", type=_positive, metavar="S")

    keys = command("keys", "make the keys of an encrypted frame stream")
    keys.add_argument("-o", "--output", metavar="FOLDER", required=True, help="new, or made by this command before")
    keys.add_argument(
        "--clients", nargs="+", default=["client"], metavar="NAME", help="who may subscribe (default: one, client)"
    )

    beads = command("calibrate-psf", "learn from a z stack of beads how their widths tell z (astigmatic microscope)")
    beads.add_argument("stack", metavar="STACK", help="z scan of small beads, one plane a step, evenly spaced")
    beads.add_argument(
        "--step-nm", type=_finite, required=True, metavar="S",
        help="by which the beads rise from plane to plane relative to the focal plane, nanometres; negative where the "
        "objective moves up to them",
    )  # fmt: skip
    beads.add_argument("-o", "--output", metavar="PSF.json", required=True, help="new file; PSF.png is its plot")
    beads.add_argument(
        "--box", nargs="+", action=_BoxAction, metavar="X Y W H | auto",
        help="a bead: left column, top row, width, height of what is fitted; may be repeated (default: auto, all that "
        "stand alone)",
    )  # fmt: skip
    _add_pixel_size(beads)
    return top


def _add_pixel_size(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--pixel-size-um", type=_positive, metavar="P",
        help="edge of a pixel in the sample, micrometres (default: as the frame says)",
    )  # fmt: skip


def _add_hologram(sub: argparse.ArgumentParser, *, required: bool = False) -> argparse._ArgumentGroup:
    """Add what `oneframe.app.holograms` reads, and return its group."""
    group = sub.add_argument_group("hologram", "the frame is a hologram, or a complex field")
    group.add_argument(
        "--hologram", choices=["off-axis", "in-line", "field"], required=required,
        help="off-axis: with fringes of a tilted reference wave; in-line: without; field: Re and Im, two planes, from "
        "an instrument that demodulates",
    )  # fmt: skip
    group.add_argument("--wavelength-um", type=_positive, metavar="L", help="in vacuum, micrometres: 0.633 for 633 nm")
    group.add_argument(
        "--medium-index", type=_positive, metavar="N",
        help="refractive index round the particles (default: as the frame says, else 1.33)",
    )  # fmt: skip
    group.add_argument("--na", type=_positive, metavar="A", help="numerical aperture of the objective")
    group.add_argument(
        "--carrier", nargs=2, type=_finite, metavar=("Y", "X"),
        help="spatial frequency of off-axis fringes, cycles per micrometre (default: found in the hologram)",
    )  # fmt: skip
    _add_background(group)
    return group


def _add_emitters(sub: argparse.ArgumentParser) -> None:
    """Add what `oneframe.app.emitters` reads."""
    group = sub.add_argument_group("single molecules", "of --method shot; what is not given is read off the frame")
    for name, metavar, text in (
        ("baseline", "COUNTS", "camera counts without light"),
        ("read-noise", "E", "standard deviation of the read noise, electrons (default: 1.6)"),
        ("em-gain", "M", "multiplication of an EMCCD (default: none)"),
        ("psf-sigma-px", "S", "width of a single molecule's image, px"),
        ("photons", "N", "photoelectrons of a molecule that is on for a whole frame"),
        ("density-um2", "D", "molecules per square micrometre that are on in a frame"),
        ("on-frames", "N", "mean length of a blink, frames (default: 1)"),
    ):
        group.add_argument(f"--{name}", type=_finite, metavar=metavar, help=text)
    group.add_argument("--psf", metavar="PSF.json", help="made by calibrate-psf; with astigmatism the model gives z")
    group.add_argument("--context-frames", type=_count, metavar="N", help="frames the model looks at (default: 1)")
    group.add_argument(
        "--refinements", type=int, metavar="K", help="how often emitters are rendered and corrected (default: 0)"
    )
    group.add_argument("--matching", choices=["exact", "sinkhorn", "published"], help="of the loss (default: exact)")


def _add_cells(sub: argparse.ArgumentParser) -> None:
    """Add what `oneframe.app.cells` reads."""
    group = sub.add_argument_group("cells", "of --method cellulus; what is not given is read off the frame")
    group.add_argument("--diameter-px", type=_positive, metavar="D", help="of a cell, camera pixels")
    group.add_argument("--cells", choices=["bright", "dark"], help="against their surroundings")
    group.add_argument(
        "--foreground", choices=["contrast", "intensity", "edges", "smooth", "noise"],
        help="what tells cells from background. contrast: half the height above the background near by; intensity: one "
        "threshold for the frame; edges: cells packed side by side, as in phase contrast; smooth: contrast of the "
        "frame more blurred, for large cells with texture; noise: where offsets stay the same when pixels are "
        "disturbed, as in Cellulus (half a minute more)",
    )  # fmt: skip
    group.add_argument(
        "--separate", choices=["network", "classical", "stars"],
        help="what tells touching cells apart: the trained network, or threshold and watershed; with --annotations "
        "also stars, outlines as you drew them (default: what the frame favours)",
    )  # fmt: skip
    group.add_argument(
        "--annotations", metavar="FILE",
        help="a few cells of this frame as you marked them, from which the model learns their outlines: a label image "
        "(.tif or .png; 0 is unknown) or polygons and clicks (.json)",
    )  # fmt: skip


def _add_background(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--reference", metavar="EMPTY.tif", help="a frame without particles, in the same light")
    group.add_argument(
        "--background", choices=["reference", "median", "polynomial", "none"],
        help="what the field is divided by: the reference's field; the median over the last seconds; a smooth surface; "
        "one number (default: reference where one is given, else median for a camera, polynomial for an image)",
    )  # fmt: skip


def _add_bench(sub: argparse.ArgumentParser) -> None:
    """Add what `oneframe.app.bench` reads."""
    sub.add_argument("model", metavar="MODEL.onnx")
    frame = sub.add_mutually_exclusive_group()
    frame.add_argument("--frame", metavar="IMAGE", help="to try on: the snapped frame, or any of the camera's size")
    frame.add_argument("--source", metavar="SOURCE", help="take one frame of it to try on, as live and log name it")
    frame.add_argument(
        "--shape", nargs=2, type=_count, metavar=("H", "W"),
        help="without a frame: repeat what the model file holds of it to this size (default: of the snapped frame)",
    )  # fmt: skip
    sub.add_argument(
        "--seconds", type=_positive, default=2.0, metavar="S", help="of each of two races (default: %(default)s)"
    )
    sub.add_argument("--threshold", type=float, metavar="T", help="lowest score to report, 0 to 1")
    _add_background(sub.add_argument_group("hologram", "of a model for holograms, whose card knows the rest"))


def _add_outputs(sub: argparse.ArgumentParser) -> None:
    """Add what `oneframe.app.outputs` reads."""
    group = sub.add_argument_group("closed loop", "what happens with each result besides")
    group.add_argument(
        "--publish",
        metavar="BIND",
        help="publish detections over ZeroMQ at tcp://127.0.0.1:PORT, one JSON line a frame",
    )
    group.add_argument(
        "--publish-keys", metavar="FOLDER", help="encrypt them, as serve --keys does; needed beyond this computer"
    )
    group.add_argument(
        "--call", action="append", default=[], metavar="MODULE:FUNCTION",
        help="call a Python function with each analysed frame (module:function or file.py:function); may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--follow", nargs="?", const=-1, type=int, metavar="TRACK",
        help="move the stage so that a track stays centred (without a number: the one nearest to the centre)",
    )  # fmt: skip
    for name, text in (
        ("gain", "share of the offset that one move corrects (default: 0.8)"),
        ("dead-band-px", "moves shorter than this are not made (default: 0.2)"),
        ("travel-um", "farthest the stage may go along each axis from its start (default: 100)"),
    ):
        group.add_argument(f"--follow-{name}", type=float, metavar="N", help=text)
    group.add_argument(
        "--follow-um-per-px", nargs=4, type=float, metavar=("YY", "YX", "XY", "XX"),
        help="matrix from an offset in the image (y, x) to the stage move (y, x), for a camera that is turned or "
        "mirrored (default: the pixel size)",
    )  # fmt: skip
    group.add_argument(
        "--stop-when", action="append", default=[], metavar="CONDITION",
        help="end the run when this holds, such as 'objects < 1' or 'track_length >= 500'; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--stop-after", type=_count, default=1, metavar="N", help="frames in a row for which it must hold (default: 1)"
    )


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of a call."""
    return parser().parse_args([_NEGATIVE.sub(r" \g<0>", word) for word in words])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0 for success, 2 for a wrong call, 1 for a failure explained in one sentence."""
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
    except SystemExit as exc:  # argparse has said what is wrong, or shown the help
        return int(exc.code or 0)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    module_name, function = _COMMANDS[arguments.command]
    try:
        run = getattr(importlib.import_module(module_name), function)
        run(arguments, Console(as_json=arguments.json))
    except KeyboardInterrupt:
        return _explain("stopped by the user", arguments)
    except Exception as exc:
        if os.environ.get("ONEFRAME_DEBUG"):
            raise
        return _explain(_sentence(exc), arguments)
    return 0


def _sentence(exc: Exception) -> str:
    """Return the one sentence that explains a failure."""
    if isinstance(exc, ModuleNotFoundError):
        extra = _EXTRAS.get((exc.name or "").split(".")[0])
        if extra is not None:
            return f"this needs the package {exc.name}, which is not installed; run: pip install 'oneframe[{extra}]'"
    if isinstance(exc, CommandError | ValueError | OSError) or type(exc).__module__.startswith("oneframe."):
        return str(exc)
    return f"unexpected {type(exc).__name__}: {exc}; set ONEFRAME_DEBUG=1 to see where, and please report it"


def _explain(sentence: str, arguments: argparse.Namespace) -> int:
    if arguments.json:
        Console(as_json=True).event(event="error", error=sentence)
    print(f"oneframe {arguments.command}: {sentence}", file=sys.stderr)
    return 1


class _BoxAction(argparse.Action):
    """Collects `--box X Y W H` as (x, y, width, height), or "auto" alone."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        given = list(values or ())
        before = getattr(namespace, self.dest)
        if given == ["auto"] and before is None:
            setattr(namespace, self.dest, "auto")
            return
        try:
            x, y, width, height = (int(text) for text in given)
        except ValueError:
            raise argparse.ArgumentError(
                self, f"expected X Y W H in whole pixels or auto, got {' '.join(given)}"
            ) from None
        if before == "auto":
            raise argparse.ArgumentError(self, "expected boxes or auto, got both; give one or the other")
        setattr(namespace, self.dest, [*(before or []), (x, y, width, height)])


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number, got {text}")
    return value


def _planes(text: str) -> tuple[float, ...]:
    """Return the distances that Z or START:STOP:STEP names, STOP included."""
    try:
        start, stop, step = [_finite(word) for word in (text.split(":") if ":" in text else (text, text, "1"))]
    except (ValueError, argparse.ArgumentTypeError):
        start, stop, step = 0.0, 0.0, 0.0
    if step <= 0 or stop < start:
        raise argparse.ArgumentTypeError(
            f"expected micrometres, Z or START:STOP:STEP from low to high such as -5:5:0.5, got {text.strip()}; IMAGE "
            "goes before --z-um"
        )
    n_steps = (stop - start) / step + 1e-6
    if n_steps > _MOST_PLANES:
        raise argparse.ArgumentTypeError(f"must be at most {_MOST_PLANES} planes, got {n_steps:.0f}; use a larger STEP")
    return tuple(round(start + i * step, 9) for i in range(int(n_steps) + 1))


if __name__ == "__main__":
    sys.exit(main())
