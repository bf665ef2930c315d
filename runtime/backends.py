"""Ways to run the graph of a model file on this processor: ONNX Runtime or OpenVINO, in fp32 or less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.model import open_session

Precision = Literal["fp32", "f16", "bf16", "int8"]

FIRST, MIDDLE, MIDDLE_INT8, LAST = "first.onnx", "middle.onnx", "middle-int8.onnx", "last.onnx"
"""Parts of a graph, made by `oneframe.export.quantise`: up to the network's first convolution, the convolutions between
first and last, these in int8, and the rest."""

_OPENVINO_PRECISION = {"fp32": "f32", "int8": "f32", "f16": "f16", "bf16": "bf16"}


class BackendError(Exception):
    """A way to run a model that does not work here; the text says why."""


class Session(Protocol):
    """Runs a graph."""

    def run(self, names: list[str], feeds: dict[str, Any], /) -> Any:
        """Return the outputs of these names, in their order, for the inputs by name."""
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """A way to run a model file.

    Less than fp32 is only for the middle of the network: its first convolution, which sees camera counts, its last,
    which tells pixels, and what follows stay in fp32.
    """

    engine: Literal["onnxruntime", "openvino"] = "onnxruntime"
    precision: Precision = "fp32"
    threads: int | None = None
    """None: what the engine takes, all processors as a rule."""

    @property
    def name(self) -> str:
        """Return its name as a person reads it."""
        text = self.precision if self.engine == "onnxruntime" else f"{self.engine} {self.precision}"
        return text if self.threads is None else f"{text}, {self.threads} thread{'s' * (self.threads > 1)}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the parts that it runs; none: it runs the model file."""
        if self.precision == "fp32":
            return ()
        return FIRST, MIDDLE_INT8 if self.precision == "int8" else MIDDLE, LAST

    @classmethod
    def from_dict(cls, values: Any) -> Backend:
        """Read what `asdict` wrote.

        Raises
        ------
        ValueError
            If it is something else.
        """
        try:
            backend = cls(**values)
        except TypeError as exc:
            raise ValueError(f"expected engine, precision and threads, got {values}") from exc
        known = backend.engine in ("onnxruntime", "openvino") and backend.precision in _OPENVINO_PRECISION
        if not known or not (backend.threads is None or (isinstance(backend.threads, int) and backend.threads > 0)):
            raise ValueError(f"expected an engine and a precision of this oneframe, got {values}")
        return backend


def open_backend(backend: Backend, model: bytes, parts: Mapping[str, bytes]) -> Session:
    """Return what runs a model file in this way.

    Parameters
    ----------
    backend : Backend
    model : bytes
        Of the model file.
    parts : mapping of name to bytes
        What `backend.needs`.

    Raises
    ------
    BackendError
        If this does not work here.
    """
    missing = [name for name in backend.needs if name not in parts]
    if missing:
        raise BackendError(f"{backend.name} runs parts of the graph of which {', '.join(missing)} is missing")
    try:
        if not backend.needs:
            if backend.engine == "openvino":
                return _OpenVino(model, backend)
            plain: Session = open_session(model, name="the model file", threads=backend.threads)
            return plain
        first, middle, last = (parts[name] for name in backend.needs)
        return _Divided(
            open_session(first, name=FIRST, threads=backend.threads),
            _OpenVino(middle, backend)
            if backend.engine == "openvino"
            else open_session(middle, name=MIDDLE, threads=backend.threads),
            open_session(last, name=LAST, threads=backend.threads),
        )
    except Exception as exc:  # the engines have no common base class for their errors
        raise BackendError(f"{backend.name} does not run here: {first_line(exc)}") from exc


def first_line(exc: Exception) -> str:
    """Return what an engine's error says first, or its kind if it says nothing."""
    return (str(exc).splitlines() or [type(exc).__name__])[0]


def openvino_precisions() -> tuple[Precision, ...]:
    """Return the precisions, fastest last, that OpenVINO computes in on this processor; none without OpenVINO.

    Where a processor has no 16-bit floats OpenVINO takes f32 in place of f16 and emulates bf16: neither is listed.
    """
    try:
        import openvino
    except ModuleNotFoundError:
        return ()
    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    half: tuple[Precision, ...] = ("f16",) if "FP16" in able else ("bf16",) if "BF16" in able else ()
    return "fp32", *half, *(("int8",) if "INT8" in able else ())


class _OpenVino:
    """A graph in OpenVINO, on the processor, in a precision that is told: its default lowers it where it can."""

    def __init__(self, model: bytes, backend: Backend) -> None:
        import openvino

        self._tensor = openvino.Tensor
        core = openvino.Core()
        graph = core.read_model(model)
        _free_threshold(graph)
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISION[backend.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # camera, view and sinks want the cores too
        }
        if backend.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = backend.threads
        compiled = core.compile_model(graph, "CPU", settings)
        self.inputs = [each.any_name for each in compiled.inputs]
        self._index = {name: i for i, each in enumerate(compiled.outputs) for name in each.get_names()}
        self._request = compiled.create_infer_request()

    def run(self, names: list[str], feeds: dict[str, Any], /) -> list[NDArray[Any]]:
        for i, name in enumerate(self.inputs):
            values = np.ascontiguousarray(feeds[name]).reshape(np.shape(feeds[name]))  # numpy makes () a (1,)
            self._request.set_input_tensor(i, self._tensor(values, shared_memory=True))
        self._request.infer()
        # the next call writes into the same memory
        return [self._request.get_output_tensor(self._index[name]).data.copy() for name in names]


def _free_threshold(graph: Any) -> None:
    """Make the threshold an input again: OpenVINO takes an input with a default for a constant."""
    from openvino import opset13

    for node in graph.get_ops():
        if node.get_type_name() == "Constant" and node.get_friendly_name() == "threshold":
            parameter = opset13.parameter([], np.float32, name="threshold")
            parameter.output(0).get_tensor().set_names({"threshold"})
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(parameter.output(0))
            graph.add_parameters([parameter])


class _Divided:
    """A graph in three parts, the middle of the network in an engine of its own."""

    def __init__(self, first: Any, middle: Session, last: Any) -> None:
        self._first, self._middle, self._last = first, middle, last
        self._takes = [each.name for each in first.get_inputs()]
        self._seen = [each.name for each in first.get_outputs()]
        self._needed = {each.name for each in last.get_inputs()} | {"threshold"}
        self._told = [each.name for each in last.get_inputs() if each.name not in ("image", "threshold")]

    def run(self, names: list[str], feeds: dict[str, Any], /) -> Any:
        between = self._first.run(self._seen, {name: feeds[name] for name in self._takes})
        told = self._middle.run(self._told, dict(zip(self._seen, between, strict=True)))
        kept = {name: value for name, value in feeds.items() if name in self._needed}
        return self._last.run(names, kept | dict(zip(self._told, told, strict=True)))
