"""Where the time of a frame goes, from pixels to written rows: for `speed.py --stages`.

convert       what a pixel meets before the network: cast, offset, padding, averaging.
network       the convolutions.
peaks         scores, local maxima and their averages.
fit           of each position to the pixels, and the columns.
copy          the checks of the frame, and the record `Detections`.
link, table   `FrameLinker` on moving particles; `RunRecord`, a committed row for each of them.

The graph is cut after each of its stages, the cut ones run in turn, and a stage takes what its graph takes longer than
the one before. ONNX Runtime's profiler tells of operators and of the network's work only: it slows small steps most.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from oneframe.acquisition import Frame, SourceInfo
from oneframe.export.graph import SCOPES
from oneframe.runtime import load_model
from oneframe.runtime.detections import Detections
from oneframe.runtime.link import FrameLinker, LinkSettings
from oneframe.runtime.model import open_session
from oneframe.runtime.record import RunRecord
from oneframe.runtime.seams import Analysed

IN_GRAPH = ("convert", "network", "peaks", "fit")
STEP_PX = 1.0
"""Standard deviation of the particles' steps per axis and frame, for the linker."""


def median_ms(act: Callable[[int], object], n_rounds: int) -> float:
    """Return the median time of `act(round)`."""
    times_s = []
    for k in range(n_rounds):
        start_s = time.perf_counter()
        act(k)
        times_s.append(time.perf_counter() - start_s)
    return 1e3 * float(np.median(times_s))


def profile(path: Path, image: NDArray[Any], n_rounds: int, *, threads: int = 0) -> list[dict[str, Any]]:
    """Return what ONNX Runtime's profiler tells, in the order of running."""
    options = ort.SessionOptions()
    options.enable_profiling, options.intra_op_num_threads, options.log_severity_level = True, threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(n_rounds):
            session.run(None, {"image": image})
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return events


def kernel_events(path: Path, image: NDArray[Any], n_rounds: int, *, threads: int = 0) -> list[dict[str, Any]]:
    """Return what ONNX Runtime's profiler tells of every node that it runs, in the order of running."""
    return _kernels(profile(path, image, n_rounds, threads=threads))


def _kernels(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]


def stage_of_nodes(path: Path) -> dict[str, str]:
    """Return the stage of the deployed graph that each node and each value belongs to."""
    nodes = onnx.load(path).graph.node
    stages: dict[str, str] = {}
    for node in nodes:
        scopes = next((p.value for p in node.metadata_props if p.key == SCOPES), "")
        stages[node.name] = next((module for module in ("network", "fit") if f"'{module}" in scopes), "peaks")
    # what the network is computed from, and is no part of it
    wanted: set[str] = set()
    for node in reversed(nodes):
        if stages[node.name] == "network" or wanted.intersection(node.output):
            wanted.update(node.input)
            if stages[node.name] == "peaks":
                stages[node.name] = "convert"
    for node in nodes:
        stages.update(dict.fromkeys(node.output, stages[node.name]))
    return stages


def cut_after(path: Path, stage: str, stages: dict[str, str]) -> bytes:
    """Return a model file that ends where the nodes of a stage do: what they and those before give the others."""
    model = onnx.load(path)
    graph = model.graph
    late = IN_GRAPH[IN_GRAPH.index(stage) + 1 :]
    early = {name for name, of in stages.items() if of not in late}
    if stage == "peaks":  # the columns, of the same part of the code, come after the fit
        behind: set[str] = set()
        for node in graph.node:
            if stages[node.name] == "fit" or behind.intersection(node.input):
                behind.update((node.name, *node.output))
        early -= behind
    wanted = {name for node in graph.node if node.name not in early for name in node.input}
    ends = [name for node in graph.node if node.name in early for name in node.output if name in wanted]
    needed, kept = set(ends), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:], graph.output[:]
    graph.node.extend(reversed(kept))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in ends)
    return model.SerializeToString()


def graph_ms(path: Path, stages: dict[str, str], image: NDArray[Any], n_rounds: int) -> dict[str, float]:
    """Return how much longer each of `stage_of_nodes` makes a run of the graph."""
    files = [cut_after(path, stage, stages) for stage in IN_GRAPH[:-1]] + [path.read_bytes()]
    sessions = [open_session(file, name=path.name) for file in files]
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(n_rounds + 2):
        for session, each in zip(sessions, times, strict=True):
            start_s = time.perf_counter()
            session.run(None, {"image": image})
            each.append(1e3 * (time.perf_counter() - start_s))
    ends = [0.0, *(float(np.median(each[2:])) for each in times)]
    return {stage: after - before for stage, before, after in zip(IN_GRAPH, ends[:-1], ends[1:], strict=True)}


def moved(found: Detections, n_frames: int) -> list[Detections]:
    """Return the particles on a random walk."""
    rng = np.random.default_rng(0)
    walk = rng.normal(0, STEP_PX, (n_frames, 2, len(found))).cumsum(0).astype(np.float32)
    return [replace(found, y_px=found.y_px + y, x_px=found.x_px + x) for y, x in walk]


def host_ms(path: Path, image: NDArray[Any], n_rounds: int) -> dict[str, float]:
    """Return the times of what is outside of the graph, and of a whole call of `detect`."""
    model = load_model(path)
    found = model.detect(image)
    columns = {name: getattr(found, name) for name in model.card.columns}
    walk = moved(found, n_rounds + 2)
    linker = FrameLinker(LinkSettings(max_distance_px=5 * STEP_PX))
    for k in (0, 1):
        linker.link(walk[k], k)
    tracks = []
    with tempfile.TemporaryDirectory() as folder:
        record = RunRecord(Path(folder) / "run", card=model.card, source=SourceInfo("sim:beads", True), settings={})
        link = median_ms(lambda k: tracks.append(linker.link(walk[k + 2], k + 2)), n_rounds)
        rows = [Analysed(Frame(image, k, float(k)), each, 0.01, 0.01) for k, each in enumerate(tracks)]
        table = median_ms(lambda k: record.write(rows[k]), n_rounds)
        record.close()
    return {
        "detect": median_ms(lambda _: model.detect(image), n_rounds),
        "copy": median_ms(lambda _: (model.as_input(image), Detections(**columns)), n_rounds),
        "link": link,
        "table": table,
    }


def work_of(events: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the multiplications and additions of one run's convolutions, and the bytes they read and write."""
    operations, n_bytes = 0.0, 0.0
    for event in {event["name"]: event for event in events if event["args"]["op_name"] == "Conv"}.values():
        shapes = [next(iter(each.values())) for each in event["args"]["input_type_shape"]]
        result = next(iter(event["args"]["output_type_shape"][0].values()))
        operations += 2.0 * math.prod(result) * math.prod(shapes[1][1:])
        n_bytes += 4.0 * (sum(math.prod(shape) for shape in shapes) + math.prod(result))
    return operations, n_bytes


def peaks_of_machine(n_rounds: int) -> tuple[float, float]:
    """Return the floating-point operations of a matrix product and the bytes of a copy, per second."""
    a, b = (np.random.default_rng(k).random((2048, 2048), np.float32) for k in (0, 1))
    product = 2 * 2048**3 / (1e-3 * median_ms(lambda _: a @ b, n_rounds))
    source = np.zeros(1 << 26, np.float32)
    target = np.ones_like(source)
    return product, 2 * source.nbytes / (1e-3 * median_ms(lambda _: np.copyto(target, source), n_rounds))


def show(path: Path, image: NDArray[Any], n_rounds: int) -> dict[str, float]:
    """Print and return the time of a frame by stage, ms; print operators, and how near the network is to the roof."""
    host = host_ms(path, image, n_rounds)
    events = profile(path, image, n_rounds + 2)
    kernels = _kernels(events)
    times, operator = defaultdict(list), {}
    for event in kernels:
        name = event["name"].removesuffix("_kernel_time")
        times[name].append(event["dur"] / 1e3)
        operator[name] = event["args"]["op_name"]
    nodes = {name: float(np.median(each[2:])) for name, each in times.items()}
    network_ms, by_operator = 0.0, defaultdict(float)
    stages = stage_of_nodes(path)
    for name, ms in nodes.items():
        original = name.split("/")[0].removesuffix("_nchwc")
        if stages.get(original) == "network" or operator[name].startswith("Reorder"):
            network_ms += ms
        by_operator[operator[name]] += ms
    by_stage = graph_ms(path, stages, image, n_rounds) | {stage: host[stage] for stage in ("copy", "link", "table")}
    total = sum(by_stage.values())
    print(f"{path.name}: {host['detect']:.2f} ms a frame without the profiler; {len(nodes)} nodes")
    for stage, ms in by_stage.items():
        print(f"  {stage:<9} {ms:7.2f} ms {100 * ms / total:5.1f} %")
    for excluded in (("network",), ("network", "fit")):
        rest = total - sum(by_stage[stage] for stage in excluded)
        print(f"  all but {' and '.join(excluded)}: {100 * rest / total:.1f} %")
    print("  " + ", ".join(f"{name} {ms:.2f}" for name, ms in sorted(by_operator.items(), key=lambda i: -i[1])[:12]))
    operations, n_bytes = work_of(kernels)
    product, copy = peaks_of_machine(n_rounds)
    network_s = 1e-3 * network_ms
    print(
        f"  network: {operations / 1e9:.2f} GFLOP, {n_bytes / 1e6:.0f} MB; {operations / network_s / 1e9:.0f} GFLOP/s "
        f"of a matrix product's {product / 1e9:.0f}, {n_bytes / network_s / 1e9:.1f} GB/s of a copy's {copy / 1e9:.1f}"
    )
    return by_stage
