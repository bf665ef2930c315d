"""Where the time of a frame goes in a model file: for `speed.py --stages`."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from oneframe.export.graph import SCOPES
from oneframe.runtime import load_model
from oneframe.runtime.link import FrameLinker, LinkSettings

OTHERS = "convert, peaks"
"""What belongs to no module of the graph."""


def median_ms(act: Callable[[int], object], n_rounds: int) -> float:
    """Return the median time of `act(round)`."""
    times_s = []
    for k in range(n_rounds):
        start_s = time.perf_counter()
        act(k)
        times_s.append(time.perf_counter() - start_s)
    return 1e3 * float(np.median(times_s))


def kernel_events(path: Path, image: NDArray[Any], n_rounds: int, *, threads: int = 0) -> list[dict[str, Any]]:
    """Return what ONNX Runtime's profiler tells of every node that it runs, in the order of running."""
    options = ort.SessionOptions()
    options.enable_profiling, options.intra_op_num_threads, options.log_severity_level = True, threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(n_rounds):
            session.run(None, {"image": image})
        events = json.loads(Path(session.end_profiling()).read_text())
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]


def node_times_ms(path: Path, image: NDArray[Any], n_rounds: int) -> list[tuple[str, str, float]]:
    """Return name, operator and median time of every node that ONNX Runtime runs."""
    times, operator = defaultdict(list), {}
    for event in kernel_events(path, image, n_rounds + 2):
        name = event["name"].removesuffix("_kernel_time")
        times[name].append(event["dur"] / 1e3)
        operator[name] = event["args"]["op_name"]
    return [(name, operator[name], float(np.median(each[2:]))) for name, each in times.items()]


def stage_of_nodes(path: Path) -> dict[str, str]:
    """Return the module of the deployed graph that each node and each value comes from."""
    stages = {}
    for node in onnx.load(path).graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == SCOPES), "")
        stage = next((module for module in ("network", "fit") if f"'{module}" in scopes), OTHERS)
        stages[node.name] = stage
        stages.update(dict.fromkeys(node.output, stage))
    return stages


def show(path: Path, image: NDArray[Any], n_rounds: int) -> None:
    """Print the time of a frame by stage and by operator."""
    model = load_model(path)
    found = model.detect(image)
    linker = FrameLinker(LinkSettings(max_distance_px=5.0))
    whole = median_ms(lambda _: model.detect(image), n_rounds)
    outside = {
        "checks before the graph": median_ms(lambda _: model.as_input(image), n_rounds),
        "link": median_ms(lambda k: linker.link(found, k), n_rounds + 1),
    }
    stages = stage_of_nodes(path)
    nodes = node_times_ms(path, image, n_rounds)
    by_stage: dict[str, float] = defaultdict(float)
    by_operator: dict[str, float] = defaultdict(float)
    for name, operator, ms in nodes:
        original = name.split("/")[0].removesuffix("_nchwc")
        by_stage[stages.get(original, "network" if operator.startswith("Reorder") else OTHERS)] += ms
        by_operator[operator] += ms
    total = sum(by_stage.values())
    print(f"{path.name}: {len(found)} found, {whole:.2f} ms a frame; {len(nodes)} nodes of {total:.2f} ms")
    for stage, ms in by_stage.items():
        print(f"  graph, {stage:<24} {ms:7.2f} ms {100 * ms / total:5.1f} %")
    for stage, ms in outside.items():
        print(f"  {stage:<31} {ms:7.2f} ms")
    for operator, ms in sorted(by_operator.items(), key=lambda item: -item[1])[:12]:
        print(f"    {operator:<29} {ms:7.2f} ms")
