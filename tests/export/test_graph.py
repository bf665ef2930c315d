"""The exported file runs with bare ONNX Runtime and nothing of oneframe, on any size, and gives the same positions."""

import copy
import dataclasses
import json
import platform
import subprocess
import sys

import numpy as np
import pytest
from microscope import yx

from oneframe.acquisition import open_source
from oneframe.runtime import load_model

export_room = pytest.importorskip("oneframe.export", reason="needs oneframe[train]", exc_type=ImportError)

BARE = """
import sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options)
for name in sys.argv[2:]:
    y, x, score = session.run(["y_px", "x_px", "score"], {"image": np.load(name)})
    np.save(name + ".found.npy", np.stack([y, x, score], -1))
assert not any(name.startswith(("oneframe", "torch")) or name == "onnx" for name in sys.modules)
"""


@pytest.mark.parametrize("shape", [(64, 64), (101, 173), (512, 512), (1000, 1200)])
def test_bare_onnxruntime_gives_the_positions_of_detect(bead_model, tmp_path, shape):
    height, width = shape
    n = max(4, height * width // 4000)
    with_n = f"sim:beads?width={width}&height={height}&n={n}&seed=3&lifetime=0"
    image = open_source(with_n).read(10).pixels
    assert image.dtype == np.uint16
    np.save(tmp_path / "image.npy", image)
    command = [sys.executable, "-c", BARE, str(bead_model.path), str(tmp_path / "image.npy")]
    subprocess.run(command, check=True, timeout=60)
    bare = np.load(tmp_path / "image.npy.found.npy")
    found = load_model(bead_model.path).detect(image)
    assert len(bare) == len(found) >= n // 2
    np.testing.assert_allclose(bare[:, :2], yx(found), atol=1e-4)


def test_the_optimised_graph_convolves_in_blocks_of_channels(bead_model, tmp_path):
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(bead_model.path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("ONNX Runtime has blocked convolutions of every size on x86 only")
    domains = [node.domain for node in nodes if node.op_type == "Conv"]
    assert domains == ["com.microsoft.nchwc"] * 6


def test_the_file_holds_no_source_lines(bead_model):
    assert b".py" not in bead_model.path.read_bytes()


def test_an_image_without_particles_gives_no_rows(bead_model):
    empty = np.random.default_rng(0).poisson(160, (71, 90)).astype(np.uint16)
    assert len(load_model(bead_model.path, threshold=0.9).detect(empty)) == 0


def test_the_file_holds_card_and_self_test(bead_model):
    import onnx

    held = {entry.key: entry.value for entry in onnx.load(bead_model.path).metadata_props}
    card = json.loads(held["oneframe"])
    assert card["method"] == "lodestar"
    assert card["speed"]["frame_height_px"] == 128
    assert card["versions"].keys() >= {"oneframe", "torch", "onnx", "onnxruntime"}
    assert json.loads(held["oneframe.selftest"])["dtype"] == "<u2"


def test_a_model_is_never_overwritten(bead_model, tmp_path):
    path = tmp_path / "there.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="exists and a model is never overwritten; choose another name"):
        export_room.export(bead_model.trained, path)
    assert path.read_bytes() == b"mine"


def test_a_graph_that_onnxruntime_reads_differently_is_not_written(bead_model, tmp_path):
    from oneframe.trainer.lodestar_graph import LodestarGraph

    class Drifting(LodestarGraph):
        """Gives other positions each time it is traced or run."""

        calls = 0

        def forward(self, image, threshold):
            self.calls += 1
            y, *others = super().forward(image, threshold)
            return y + 0.5 * self.calls, *others

    graph = copy.deepcopy(bead_model.trained.graph)
    graph.__class__ = Drifting
    graph.fit = None  # half of the time to trace it
    trained = dataclasses.replace(bead_model.trained, graph=graph)
    with pytest.raises(export_room.ExportError, match=r"torch's \d+ objects within 0\.001 px, got"):
        export_room.export(trained, tmp_path / "drifting.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_example_that_contradicts_the_card_is_refused(bead_model):
    with pytest.raises(ValueError, match="example must be uint16 with 2 axes, got float32"):
        dataclasses.replace(bead_model.trained, example=np.zeros((8, 8), np.float32))
