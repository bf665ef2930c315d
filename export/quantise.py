"""A model file in three parts, the middle of its network also in int8: what `oneframe bench` tries."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from oneframe.runtime.backends import FIRST, LAST, MIDDLE, MIDDLE_INT8
from oneframe.runtime.model import open_session

LEAST_CHANNELS = 8
"""A convolution of fewer input channels sees pixels, or averages what is known of cells: it is not of the middle."""


class UndividedError(ValueError):
    """A graph that has no middle to be lowered; the text says why."""


def divide(model: bytes) -> dict[str, bytes]:
    """Return the three parts of a model file: up to the first convolution, the convolutions between, and the rest.

    The first convolution sees camera counts, whose range no 8 or 16 bits hold, and the last tells pixels: both stay out
    of the middle, so that only numbers of the order of 1 are ever lowered.

    Parameters
    ----------
    model : bytes
        Of a file made by `oneframe train`.

    Returns
    -------
    dict
        `FIRST` (takes the image, gives what the middle takes), `MIDDLE`, and `LAST` (takes image, threshold and what
        the middle gives, and gives the outputs of the whole).

    Raises
    ------
    UndividedError
        If the network has fewer than three convolutions in a row.
    """
    whole = onnx.load_from_string(model)
    graph = whole.graph
    weights = {each.name: tuple(each.dims) for each in graph.initializer}
    # the second of an ONNX weight is its input channels per group
    wide = {
        _key(node)
        for node in graph.node
        if node.op_type == "Conv" and weights.get(node.input[1], (0, 0))[1] >= LEAST_CHANNELS
    }
    makers, users = _makers(graph.node), _users(graph.node)
    middle = [node for node in graph.node if _key(node) in wide and wide & _after(node, users)]
    if not middle:
        raise UndividedError("its network has no convolutions between the first and the last")
    ahead = {key for node in middle for key in {_key(node)} | _after(node, users)}
    within = ahead & {key for node in middle for key in {_key(node)} | _before(node, makers)}
    # a Relu takes part, so that what is handed on needs no sign
    within |= {_key(user) for node in middle for user in users[node.output[0]] if user.op_type == "Relu"}
    nodes = [node for node in graph.node if _key(node) in within]
    made = {name for node in nodes for name in node.output}
    known = set(weights) | {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    takes = _unique(name for node in nodes for name in node.input if name and name not in made | known)
    gives = _unique(
        name for node in nodes for name in node.output if any(_key(user) not in within for user in users[name])
    )
    ends = [each.name for each in graph.output]
    parts = {FIRST: (["image"], takes), MIDDLE: (takes, gives), LAST: (["image", "threshold", *gives], ends)}
    return {name: _part(whole, makers, inputs, outputs) for name, (inputs, outputs) in parts.items()}


def quantise(parts: dict[str, bytes], images: Iterable[NDArray[Any]]) -> bytes:
    """Return the middle in int8: U8 for what flows, S8 for weights, per channel, as QuantizeLinear pairs.

    Parameters
    ----------
    parts : dict
        Of `divide`.
    images : iterable of arrays
        What the graph takes; the range of what flows is read off them.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    first = open_session(parts[FIRST], name=FIRST)
    names = [each.name for each in first.get_outputs()]
    seen = iter([dict(zip(names, first.run(names, {"image": image}), strict=True)) for image in images])

    class Seen(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(seen, None)

    root = logging.getLogger()
    level = root.level
    with TemporaryDirectory() as folder:
        plain, lowered = Path(folder) / MIDDLE, Path(folder) / MIDDLE_INT8
        plain.write_bytes(parts[MIDDLE])
        root.setLevel(logging.ERROR)  # it recommends a preprocessing that a traced graph does not need
        try:
            quantize_static(
                os.fspath(plain),
                os.fspath(lowered),
                Seen(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=["Conv"],
            )
        finally:
            root.setLevel(level)
        return lowered.read_bytes()


def _part(whole: Any, makers: dict[str, Any], inputs: list[str], outputs: list[str]) -> bytes:
    """Return the part of a graph between these values as a model of its own."""
    needed: set[str] = set()
    names: set[str] = set(outputs)
    waiting = list(outputs)
    while waiting:
        name = waiting.pop()
        maker = makers.get(name)
        if name in inputs or maker is None or _key(maker) in needed:
            continue
        needed.add(_key(maker))
        names.update(maker.input)
        waiting += maker.input
    graph = whole.graph
    shapes = {each.name: each for each in [*graph.input, *graph.output]}
    part = helper.make_graph(
        [node for node in graph.node if _key(node) in needed],
        "part",
        [shapes.get(name) or _of_any_size(name) for name in inputs if name in names],
        [shapes.get(name) or _of_any_size(name) for name in outputs],
        [each for each in graph.initializer if each.name in names],
    )
    model = helper.make_model(part, opset_imports=whole.opset_import, ir_version=whole.ir_version)
    return bytes(model.SerializeToString())


def _of_any_size(name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4)


def _makers(nodes: Iterable[Any]) -> dict[str, Any]:
    return {name: node for node in nodes for name in node.output}


def _users(nodes: Iterable[Any]) -> dict[str, list[Any]]:
    users: dict[str, list[Any]] = defaultdict(list)
    for node in nodes:
        for name in node.input:
            users[name].append(node)
    return users


def _key(node: Any) -> str:
    """Return what no other node has: the name of its first output."""
    return str(node.output[0])


def _after(node: Any, users: dict[str, list[Any]]) -> set[str]:
    """Return the keys of all nodes that depend on this one."""
    return _reached(node, lambda each: [user for name in each.output for user in users[name]])


def _before(node: Any, makers: dict[str, Any]) -> set[str]:
    """Return the keys of all nodes that this one depends on."""
    return _reached(node, lambda each: [makers[name] for name in each.input if name in makers])


def _reached(node: Any, next_to: Callable[[Any], list[Any]]) -> set[str]:
    found: set[str] = set()
    waiting = [node]
    while waiting:
        for other in next_to(waiting.pop()):
            if _key(other) not in found:
                found.add(_key(other))
                waiting.append(other)
    return found


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
