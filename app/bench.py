"""`oneframe bench`: which way to run a model is fastest on this machine, and `live` and `log` that take it."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition import open_source, snap
from oneframe.app.console import CommandError, Console
from oneframe.app.track import model_around
from oneframe.runtime.backends import Backend, BackendError, first_line, open_backend, openvino_precisions
from oneframe.runtime.detections import Detections
from oneframe.runtime.fastest import Fastest, n_processors, remember
from oneframe.runtime.load import LoadedModel
from oneframe.runtime.model import OnnxModel, load_graph
from oneframe.runtime.selftest import METADATA_KEY, decode_selftest, repeated
from oneframe.runtime.trial import CHECK_S, Trial, agreement, race, shifted, thread_counts, turned, winner

CALIBRATION_PX = 512
"""Of the frame so many rows and columns tell the ranges for int8."""
EXACT_COLUMNS = {"y_px", "x_px", "score", "sigma_y_px", "sigma_x_px", "variance_px2"}
"""What the check looks at, or what follows from it: a model that tells more is not lowered below fp32."""


def bench(arguments: argparse.Namespace, console: Console) -> None:
    """Try all ways to run a model on one frame, check each against fp32, and remember the fastest."""
    graph = load_graph(arguments.model, threshold=arguments.threshold)
    frame, told = frame_for(arguments, graph)
    console.say(f"{told}, {n_processors()} processors", event="frame", shape=frame.shape, frame=told)
    field = _Field(arguments, graph, frame)
    n_objects = field.plain.agreement.n_expected
    if not n_objects:
        raise CommandError(
            "fp32 finds nothing in this frame, so that nothing can be compared; pass a frame with objects: --frame "
            "FILE or --source SOURCE"
        )
    for backend, trouble in field.enter():
        name = "" if backend is None else f"{backend.name}: "
        console.say(f"{name}{trouble}", event="left_out", backend=backend and asdict(backend), reason=trouble)
    race(field.trials, arguments.seconds, field.frame_of)
    for trouble in field.enter_threads():
        console.say(trouble, event="left_out", reason=trouble)
    race(field.trials, arguments.seconds, field.frame_of)
    best = winner(field.trials)
    _show(field.trials, field.plain, console)
    if not field.plain.is_steady:
        text = "the times varied: other programs took the processors; bench again when they rest"
        console.say(text, event="warning", sentence=text)
    ratio = best.ms / field.plain.ms
    found = Fastest(best.backend, frame.shape, field.input_shape, ratio, field.parts_of(best.backend))
    folder = remember(Path(arguments.model).read_bytes(), found)
    size = " x ".join(map(str, frame.shape))
    console.say(
        f"live and log run {size} px in {best.backend.name} from now on, on this machine ({folder})",
        event="done",
        backend=asdict(best.backend),
        ms=best.ms,
        ratio=ratio,
        frame_shape=frame.shape,
        input_shape=field.input_shape,
        objects=n_objects,
        folder=str(folder),
    )


def frame_for(arguments: argparse.Namespace, graph: OnnxModel) -> tuple[NDArray[Any], str]:
    """Return the frame to try on, and what it is.

    Raises
    ------
    CommandError
        If none is given and the model file holds no camera pixels.
    """
    for name, what in ((arguments.frame, "the first frame of"), (arguments.source, "one frame of")):
        if name is not None:
            with closing(open_source(name)) as source:
                pixels = snap(source, timeout_s=20.0).pixels
            return pixels, f"{what} {name}, {_size(pixels)} px"
    text = graph.metadata.get(METADATA_KEY)
    if graph.card.hologram or text is None:
        raise CommandError(f"{arguments.model} holds no camera frame to try on; pass --frame FILE or --source SOURCE")
    piece = decode_selftest(text)[0]
    speed = graph.card.speed
    height, width = arguments.shape or (speed["frame_height_px"], speed["frame_width_px"])
    frame = repeated(piece, height, width)
    return frame, (
        f"no frame given: the {_size(piece)} px of the snapped frame that stand in the model file, repeated to "
        f"{_size(frame)} px (times depend on how many objects there are)"
    )


def _size(pixels: NDArray[Any]) -> str:
    return " x ".join(map(str, pixels.shape))


class _Watched:
    """Runs a graph and keeps what it was given."""

    image: NDArray[Any]

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, names: list[str], feeds: dict[str, Any], /) -> Any:
        self.image = feeds["image"]
        return self._session.run(names, feeds)


class _Field:
    """Who takes part: fp32, and what is compared with it."""

    def __init__(self, arguments: argparse.Namespace, graph: OnnxModel, frame: NDArray[Any]) -> None:
        self._arguments, self._graph, self._frame = arguments, graph, frame
        self._file = Path(arguments.model).read_bytes()
        self._parts: dict[str, bytes] = {}
        watched = _Watched(graph.engine)
        model = self._model(watched)
        model.detect(frame)  # the first frame allocates
        self.input_shape = watched.image.shape
        self._image = watched.image
        model = self._model(graph.engine)
        start_s = time.perf_counter()
        expected = [model.detect(frame)]
        n_views = 1 if graph.card.hologram else max(1, int(CHECK_S / (time.perf_counter() - start_s)))
        self._views = turned(frame, n_views)
        self._expected = expected + [model.detect(view) for view in self._views[1:]]
        self.plain = self._trial(Backend(), model, self._expected)
        self.trials = [self.plain]

    def frame_of(self, k: int) -> NDArray[Any]:
        """Return what everybody gets in a round; of a hologram the fringes must stay where they are."""
        return self._frame if self._graph.card.hologram else shifted(self._frame, k)

    def _model(self, engine: Any) -> LoadedModel:
        """Return the model on its own, as some keep what they saw before."""
        graph = copy.copy(self._graph)
        graph.engine = engine
        return model_around(graph, self._arguments, live=False)

    def _trial(self, backend: Backend, model: LoadedModel, found: list[Detections]) -> Trial:
        reach_px = self._graph.card.object_diameter_px / 2
        agreed = agreement(self._expected, found, reach_px=reach_px)
        return Trial(backend, model.detect, agreed)

    def _enter(self, backend: Backend) -> str:
        """Check a way and let it take part; return why it cannot."""
        try:
            model = self._model(open_backend(backend, self._file, self._parts))
            found = [model.detect(view) for view in self._views]
        except Exception as exc:  # an engine that fails on this graph is left out, whatever it raises
            return first_line(exc)
        self.trials.append(self._trial(backend, model, found))
        return ""

    def enter(self) -> Iterator[tuple[Backend | None, str]]:
        """Let all ways take part with all processors; yield what cannot, and why."""
        precisions = openvino_precisions()
        if not precisions:
            yield None, "OpenVINO is not installed; to have it tried: pip install 'oneframe[openvino]'"
        ways = [Backend("openvino", "fp32")] if precisions else []
        trouble = self._divide()
        if trouble:
            yield None, trouble
        else:
            ways.append(Backend("onnxruntime", "int8"))
            ways += [Backend("openvino", precision) for precision in precisions[1:]]
        for backend in ways:
            trouble = self._enter(backend)
            if trouble:
                yield backend, trouble

    def _divide(self) -> str:
        """Make the parts that lower precisions need; return why there are none."""
        if self._graph.card.maps or self._graph.card.hologram or set(self._graph.card.columns) - EXACT_COLUMNS:
            return f"int8 and 16 bits: not for a model of {self._graph.card.method} that tells more than positions"
        try:
            from oneframe.export.quantise import UndividedError, divide, quantise
        except ModuleNotFoundError as exc:
            return f"int8 and 16 bits: making them needs the package {exc.name}; run: pip install 'oneframe[train]'"
        from oneframe.runtime.backends import MIDDLE_INT8

        try:
            self._parts = divide(self._file)
            seen = self._image[..., :CALIBRATION_PX, :CALIBRATION_PX]
            self._parts[MIDDLE_INT8] = quantise(self._parts, [np.ascontiguousarray(seen)])
        except (UndividedError, BackendError) as exc:
            return f"int8 and 16 bits: {exc}"
        return ""

    def enter_threads(self) -> Iterator[str]:
        """Let fp32 and what is fastest so far take part with fewer threads too."""
        for backend in dict.fromkeys([Backend(), winner(self.trials).backend]):
            for n in thread_counts(n_processors()):
                trouble = self._enter(replace(backend, threads=n))
                if trouble:
                    yield f"{replace(backend, threads=n).name}: {trouble}"

    def parts_of(self, backend: Backend) -> dict[str, bytes]:
        """Return what a way runs beside the model file."""
        return {name: self._parts[name] for name in backend.needs}


def _show(trials: list[Trial], plain: Trial, console: Console) -> None:
    """Print one line a way, the fastest first."""
    console.say(f"  {'':<26}{'ms a frame':>10}{'of fp32':>9}  check ({plain.agreement.n_expected} objects)")
    for trial in sorted(trials, key=lambda each: each.ms):
        times = f"{trial.ms:>10.1f}{trial.ms / plain.ms:>9.2f}" if trial.times_ms else f"{'-':>10}{'-':>9}"
        check = "" if trial is plain else trial.agreement.sentence
        console.say(
            f"  {trial.backend.name:<26}{times}  {check}",
            event="trial",
            **asdict(trial.backend),
            ms=trial.ms,
            ratio=trial.ms / plain.ms,
            rounds=len(trial.times_ms),
            passed=trial.agreement.passed,
            **asdict(trial.agreement),
        )
