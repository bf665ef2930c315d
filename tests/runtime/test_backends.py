"""The same model file in other engines and fewer bits, and what is remembered of them."""

import json
import logging
import re

import numpy as np
import pytest
from microscope import beads

from oneframe.runtime import load_model
from oneframe.runtime.backends import FIRST, LAST, MIDDLE, MIDDLE_INT8, Backend, BackendError, open_backend
from oneframe.runtime.fastest import CACHE_VARIABLE, BySize, Fastest, cache_folder, recall, remember, run_fastest
from oneframe.runtime.trial import agreement


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A folder of its own for what is remembered."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def parts(bead_model):
    """The parts of the model file; int8 knows the snapped frame only."""
    pytest.importorskip("onnx", reason="needs oneframe[train]")
    from oneframe.export.quantise import divide, quantise

    parts = divide(bead_model.path.read_bytes())
    return {**parts, MIDDLE_INT8: quantise(parts, [bead_model.snap.frame.pixels])}


@pytest.fixture(scope="module")
def frame():
    return beads("&seed=11").read(5.0).pixels


def with_scales(part: bytes, factor: float) -> bytes:
    """Return an int8 graph whose numbers mean something else."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(part)
    for each in model.graph.initializer:
        if each.name.endswith("scale"):
            each.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(each) * np.float32(factor), each.name))
    return model.SerializeToString()


BACKENDS = [
    Backend(threads=1),
    Backend("onnxruntime", "int8"),
    Backend("onnxruntime", "int8", 1),
    Backend("openvino", "fp32"),
    Backend("openvino", "int8", 1),
    Backend("openvino", "bf16"),  # emulated where the processor has none
]


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_every_backend_finds_what_fp32_finds(bead_model, parts, frame, backend):
    if backend.engine == "openvino":
        pytest.importorskip("openvino", reason="needs oneframe[openvino]")
    model = load_model(bead_model.path)
    expected = model.detect(frame)
    model.engine = open_backend(backend, bead_model.path.read_bytes(), parts)
    assert len(expected) >= 8
    assert agreement([expected], [model.detect(frame)], reach_px=4).passed
    # an empty frame, another size, and the threshold, which is an input with a default
    assert len(model.detect(np.full((64, 96), 100, np.uint16) + np.eye(64, 96, dtype=np.uint16))) == 0
    model.threshold = 1.0
    assert len(model.detect(frame)) == 0


def test_parts_hold_the_graph_divided_round_the_middle_of_the_network(bead_model, parts):
    import onnx

    counts = {
        name: [node.op_type for node in onnx.load_from_string(part).graph.node].count("Conv")
        for name, part in parts.items()
    }
    whole = [node.op_type for node in onnx.load(bead_model.path).graph.node].count("Conv")
    assert counts[FIRST] == 1
    assert counts[MIDDLE] == counts[MIDDLE_INT8] == whole - 2
    assert counts[LAST] == 1


def test_int8_with_damaged_scales_is_refused(bead_model, parts, frame):
    model = load_model(bead_model.path)
    expected = model.detect(frame)
    for factor in (0.3, 3.0):
        broken = {**parts, MIDDLE_INT8: with_scales(parts[MIDDLE_INT8], factor)}
        model.engine = open_backend(Backend("onnxruntime", "int8"), bead_model.path.read_bytes(), broken)
        assert not agreement([expected], [model.detect(frame)], reach_px=4).passed


def test_a_backend_that_does_not_work_here_says_why(bead_model, parts):
    file = bead_model.path.read_bytes()
    with pytest.raises(BackendError, match=r"int8 runs parts of the graph of which first.onnx, .* is missing"):
        open_backend(Backend("onnxruntime", "int8"), file, {})
    broken = {**parts, LAST: parts[LAST][:1000]}
    with pytest.raises(BackendError, match=r"int8 does not run here: last.onnx is not a complete ONNX model"):
        open_backend(Backend("onnxruntime", "int8"), file, broken)


def test_a_network_without_a_middle_is_not_divided():
    pytest.importorskip("onnx", reason="needs oneframe[train]")
    import onnx
    from onnx import TensorProto, helper

    from oneframe.export.quantise import UndividedError, divide

    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["y"])], "g", [value], [])
    with pytest.raises(UndividedError, match="no convolutions between"):
        divide(onnx.ModelProto(graph=graph).SerializeToString())


@pytest.fixture
def remembered(bead_model, parts, frame):
    """The folder in which int8 is remembered for the model and the frame's size."""
    backend = Backend("onnxruntime", "int8", 1)
    found = Fastest(backend, frame.shape, frame.shape, 0.8, {name: parts[name] for name in backend.needs})
    return remember(bead_model.path.read_bytes(), found)


def test_what_is_remembered_runs_frames_of_its_size_and_no_others(bead_model, remembered, frame):
    model = load_model(bead_model.path)
    expected = model.detect(frame)
    (sentence,) = run_fastest(model, bead_model.path)
    assert sentence.startswith("128 x 160 px run in int8, 1 thread, 0.80 times the time of fp32")
    assert agreement([expected], [model.detect(frame)], reach_px=4).passed
    assert model.twins() == []  # which would run in fp32
    model.detect(frame[:100])
    assert model.engine.n_runs() == {"fp32": 1, "int8, 1 thread": 1}
    (settings,) = model.engine.settings()
    assert (settings["precision"], settings["input_shape"]) == ("int8", (128, 160))


def test_remembering_again_replaces_what_was_known(bead_model, remembered, frame):
    file = bead_model.path.read_bytes()
    assert remember(file, Fastest(Backend(threads=1), frame.shape, frame.shape, 0.9)) == remembered
    assert [found.backend for found in recall(file)[0]] == [Backend(threads=1)]
    assert [each.name for each in remembered.iterdir()] == ["fastest.json"]
    assert [each.name for each in remembered.parent.iterdir()] == [remembered.name]


def test_another_model_file_knows_nothing_of_it(bead_model, remembered):
    assert recall(bead_model.path.read_bytes() + b"\0") == ([], [])


def edited(**changes):
    def edit(folder):
        record = json.loads((folder / "fastest.json").read_text())
        (folder / "fastest.json").write_text(json.dumps({**record, **changes}))

    return edit


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda folder: (folder / "fastest.json").write_text("{"), "fastest.json is damaged"),
        (lambda folder: (folder / "fastest.json").write_text("[]"), "fastest.json is damaged"),
        (lambda folder: (folder / LAST).unlink(), "is damaged .*last.onnx"),
        (lambda folder: (folder / LAST).write_bytes(b"x"), "last.onnx is not as it was written"),
        (edited(backend={"engine": "magic", "precision": "fp32", "threads": None}), "expected an engine and a prec"),
        (edited(backend={"engine": "onnxruntime", "precision": "fp32", "threads": 0}), "expected an engine and a prec"),
        (edited(backend={"engine": "onnxruntime"}, format=99), "another oneframe, format 99"),
        (edited(processor="abacus"), "another processor or model"),
        (edited(versions={"onnxruntime": "0.1"}), r"onnxruntime was 0\.1, is .* now"),
    ],
)
def test_what_holds_no_longer_is_not_used_and_a_sentence_says_why(bead_model, remembered, frame, harm, reason):
    harm(remembered)
    model = load_model(bead_model.path)
    (sentence,) = run_fastest(model, bead_model.path)
    assert sentence.startswith("what oneframe bench remembered is not used: ")
    assert sentence.endswith("; fp32 runs, or bench again")
    assert re.search(reason, sentence)
    assert not isinstance(model.engine, BySize)
    assert len(model.detect(frame)) >= 8


def test_a_winner_that_does_not_open_leaves_fp32(bead_model, parts, frame):
    backend = Backend("onnxruntime", "int8")
    broken = {name: parts[name] for name in backend.needs} | {LAST: b"nothing"}
    remember(bead_model.path.read_bytes(), Fastest(backend, frame.shape, frame.shape, 0.5, broken))
    model = load_model(bead_model.path)
    (sentence,) = run_fastest(model, bead_model.path)
    assert sentence.startswith("int8 does not run here: last.onnx is not a complete ONNX model")
    assert sentence.endswith("fp32 runs instead, or bench again")
    assert len(model.detect(frame)) >= 8


def test_a_winner_that_fails_on_a_frame_is_left_for_fp32(bead_model, frame, caplog):
    class Failing:
        def run(self, names, feeds, /):
            raise RuntimeError("out of memory")

    model = load_model(bead_model.path)
    expected = model.detect(frame)
    found = Fastest(Backend("openvino"), frame.shape, frame.shape, 0.5)
    model.engine = BySize(model.engine, [(found, Failing())])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            np.testing.assert_array_equal(model.detect(frame).y_px, expected.y_px)
    assert [each.message for each in caplog.records] == ["openvino fp32 failed (out of memory): fp32 runs from now on"]
    assert model.engine.n_runs() == {"fp32": 3, "openvino fp32": 0}


def test_the_cache_is_where_the_system_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "oneframe"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "oneframe" / "Cache"
