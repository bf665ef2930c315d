"""A trained network becomes one self-contained, checked `.onnx` file."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants
from torch.export import Dim

from oneframe.export.trained import TrainedModel, by_torch
from oneframe.runtime.card import METADATA_KEY, ModelCard
from oneframe.runtime.detections import Detections
from oneframe.runtime.load import ready
from oneframe.runtime.model import SMALLEST_FRAME_PX, OnnxModel, open_session
from oneframe.runtime.seams import Model
from oneframe.runtime.selftest import METADATA_KEY as SELFTEST_KEY
from oneframe.runtime.selftest import compare, encode_selftest, repeated

OPSET = 18

PARITY_PX = 1e-3
"""Largest difference between torch and ONNX Runtime that is let through, pixels."""

SCOPES = "pkg.torch.onnx.name_scopes"
"""Which module of the graph a node comes from; `benchmarks/speed_stages.py` sorts times by it."""

_TIMING_S = 5.0
"""A slow model is timed no longer than this, and one frame."""


class ExportError(Exception):
    """The graph could not be written or does not do what the network does."""


def export(trained: TrainedModel, path: str | os.PathLike[str]) -> ModelCard:
    """Write a trained model as one `.onnx` file and check it against torch.

    The graph takes `image` (camera pixels) and, if given, `threshold`; its outputs are named after the columns. The
    card and a self-test stand in the file's metadata. The file appears under its name only when every check passed.

    Returns
    -------
    ModelCard
        The card as written, with speed and versions filled in.

    Raises
    ------
    FileExistsError
        If there is a file of that name: a model is never overwritten.
    ExportError
        If ONNX Runtime and torch disagree on the example.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists and a model is never overwritten; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        model = _to_onnx(trained)
        graph = OnnxModel(open_session(model.SerializeToString(), name="the exported graph"), trained.card, None)
        expected = _checked(trained, graph)
        card = _completed(trained, ready(graph))
        _set_metadata(model, {METADATA_KEY: card.to_json(), SELFTEST_KEY: encode_selftest(trained.example, expected)})
        finished = Path(folder) / path.name
        finished.write_bytes(model.SerializeToString())
        os.replace(finished, path)
    return card


def _to_onnx(trained: TrainedModel) -> onnx.ModelProto:
    """Trace the graph for any H and W and give `threshold` its default."""
    image = torch.from_numpy(np.ascontiguousarray(trained.example))
    threshold = torch.tensor(trained.card.threshold, dtype=torch.float32)
    first = image.ndim - 2
    size = {first: Dim("height", min=SMALLEST_FRAME_PX), first + 1: Dim("width", min=SMALLEST_FRAME_PX)}
    with _quiet():
        program = torch.onnx.export(
            trained.graph,
            (image, threshold),
            dynamo=True,
            dynamic_shapes={"image": size, "threshold": None},
            input_names=["image", "threshold"],
            output_names=list(trained.card.outputs),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
            optimize=False,  # its rewriting takes seconds, and ONNX Runtime does it again
        )
        if program is None:
            raise ExportError("expected torch to return the traced graph, got none; please report this")
        fold_constants(program.model)
        RemoveUnusedNodesPass()(program.model)
        model = program.model_proto
    for node in model.graph.node:
        # torch notes lines of its source and of ours: two thirds of the file, and paths of the user's disk
        scopes = [entry for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(scopes)
    default = numpy_helper.from_array(np.array(trained.card.threshold, np.float32), "threshold")
    model.graph.initializer.append(default)
    onnx.checker.check_model(model)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own internals off the user's screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _checked(trained: TrainedModel, graph: OnnxModel) -> Detections:
    """Return what is expected of the example, after ONNX Runtime was seen to give what torch gives."""
    card = trained.card
    values = by_torch(trained.graph, card.outputs, trained.example, card.threshold)
    if card.maps:
        found = graph.maps(trained.example)
        # in a pixel whose probability is that of the threshold, either is right
        worst = max(float(np.quantile(np.abs(values[name] - found[name]), 0.999)) for name in card.maps)
        if worst > PARITY_PX:
            raise ExportError(
                f"expected ONNX Runtime's maps to be torch's within {PARITY_PX}, got {worst:.2g} in one "
                "pixel of a thousand; please report this"
            )
        return ready(graph).detect(trained.example)
    expected = Detections(**values)
    difference = compare(expected, graph.detect(trained.example))
    if difference.worst_px > PARITY_PX:
        raise ExportError(
            f"expected ONNX Runtime to find torch's {difference.n_expected} objects within {PARITY_PX} px, got "
            f"{difference.n_found} within {difference.worst_px:.2g} px; please report this"
        )
    return expected


def _completed(trained: TrainedModel, model: Model) -> ModelCard:
    """Add the speed on this machine, versions and date to the card."""
    height, width = trained.input_shape or trained.example.shape[-2:]
    frame = repeated(trained.example, height, width)
    model.detect(frame)
    times_s: list[float] = []
    while len(times_s) < 5 and sum(times_s) < _TIMING_S:
        start_s = time.perf_counter()
        model.detect(frame)
        times_s.append(time.perf_counter() - start_s)
    speed = {"frame_height_px": height, "frame_width_px": width, "detect_ms": round(1e3 * float(np.median(times_s)), 2)}
    versions = {"oneframe": version("oneframe"), "torch": torch.__version__, "onnx": onnx.__version__}
    versions["onnxruntime"] = ort.__version__
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return replace(trained.card, speed=speed, versions=versions, created=created)


def _set_metadata(model: onnx.ModelProto, values: dict[str, str]) -> None:
    for key, value in values.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
