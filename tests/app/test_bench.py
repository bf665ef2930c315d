"""`oneframe bench`, and `log` that runs a model as it found best."""

import json

import numpy as np
import pytest
from microscope import SCENE, beads

from oneframe.app.main import main
from oneframe.runtime.backends import MIDDLE_INT8, Backend
from oneframe.runtime.fastest import CACHE_VARIABLE, Fastest, n_processors, recall, remember
from oneframe.runtime.record import read_run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A folder of its own for what is remembered."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def frame_file(tmp_path):
    path = tmp_path / "frame.npy"
    np.save(path, beads("&seed=11").read(5.0).pixels)
    return path


def bench(capsys, model, *options: str) -> tuple[dict[str, dict], list[dict]]:
    """Return the trials by name and all other lines."""
    assert main(["bench", str(model), "--seconds", "0.1", "--json", *options]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    trials = {
        Backend(line["engine"], line["precision"], line["threads"]).name: line
        for line in lines
        if line["event"] == "trial"
    }
    return trials, [line for line in lines if line["event"] != "trial"]


def log(model, tmp_path, capsys, *options: str, more: str = "&frames=3&fps=20") -> tuple[dict, str]:
    """Log three frames; return the run's record and what was said."""
    where = ["--source", SCENE + more, "-o", str(tmp_path / "run")]
    assert main(["log", str(model), *where, "--regions", "off", *options]) == 0
    return read_run(tmp_path / "run"), capsys.readouterr().out


def test_the_ways_are_compared_and_the_winner_is_remembered(bead_model, frame_file, capsys):
    trials, others = bench(capsys, bead_model.path, "--frame", str(frame_file))
    assert {"fp32", "int8"} | ({"fp32, 1 thread"} if n_processors() > 1 else set()) <= set(trials)
    assert trials["fp32"]["ratio"] == 1
    assert all(trial["passed"] and trial["ms"] > 0 and trial["rounds"] >= 3 for trial in trials.values())
    done = others[-1]
    name = Backend(**done["backend"]).name
    assert done["event"] == "done"
    assert done["ms"] == trials[name]["ms"]
    assert done["frame_shape"] == [128, 160]
    (found,), troubles = recall(bead_model.path.read_bytes())
    assert (found.backend, troubles) == (Backend(**done["backend"]), [])


def test_openvino_takes_part_where_it_is_installed(bead_model, frame_file, capsys):
    pytest.importorskip("openvino", reason="needs oneframe[openvino]")
    trials, _ = bench(capsys, bead_model.path, "--frame", str(frame_file))
    assert trials["openvino fp32"]["passed"]


def test_int8_that_is_wrong_on_this_processor_is_refused(bead_model, frame_file, capsys, monkeypatch):
    import onnx
    from onnx import numpy_helper

    from oneframe.export import quantise

    sound = quantise.quantise

    def saturating(parts, images):
        """Scales that overflow, as int8 does on processors that saturate."""
        model = onnx.load_from_string(sound(parts, images))
        for each in model.graph.initializer:
            if each.name.endswith("scale"):
                each.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(each) / np.float32(4), each.name))
        return model.SerializeToString()

    monkeypatch.setattr(quantise, "quantise", saturating)
    trials, others = bench(capsys, bead_model.path, "--frame", str(frame_file))
    assert not trials["int8"]["passed"]
    assert trials["int8"]["ms"] is None
    assert others[-1]["backend"]["precision"] == "fp32"


def test_log_runs_as_was_found_best_and_says_so(bead_model, tmp_path, capsys):
    from oneframe.export.quantise import divide, quantise

    file = bead_model.path.read_bytes()
    parts = divide(file)
    parts[MIDDLE_INT8] = quantise(parts, [bead_model.snap.frame.pixels])
    backend = Backend("onnxruntime", "int8", 1)
    remember(file, Fastest(backend, (128, 160), (128, 160), 0.8, {name: parts[name] for name in backend.needs}))
    run, said = log(bead_model.path, tmp_path, capsys)
    assert said.startswith("128 x 160 px run in int8, 1 thread, 0.80 times the time of fp32")
    assert run["settings"]["backends"][0]["precision"] == "int8"
    assert run["runs_by_backend"] == {"fp32": 0, "int8, 1 thread": 3}


def test_a_recording_runs_in_fp32_several_frames_at_once(bead_model, tmp_path, capsys):
    remember(bead_model.path.read_bytes(), Fastest(Backend(threads=1), (128, 160), (128, 160), 0.8))
    run, said = log(bead_model.path, tmp_path, capsys, more="&frames=3")
    assert "bench" not in said
    assert run["settings"]["backends"] == []
    assert run["account"]["analysed"] == 3


@pytest.mark.parametrize("options", [["--backend", "fp32"], ["--threads", "1"]])
def test_the_user_may_know_better(bead_model, tmp_path, capsys, options):
    remember(bead_model.path.read_bytes(), Fastest(Backend(threads=1), (128, 160), (128, 160), 0.8))
    run, said = log(bead_model.path, tmp_path, capsys, *options)
    assert "bench" not in said
    assert run["settings"]["backends"] == []
    assert "runs_by_backend" not in run


def test_frames_of_another_size_run_in_fp32(bead_model, tmp_path, capsys):
    remember(bead_model.path.read_bytes(), Fastest(Backend(threads=1), (64, 64), (64, 64), 0.8))
    run, said = log(bead_model.path, tmp_path, capsys)
    assert said.startswith("64 x 64 px run in fp32, 1 thread")
    assert run["runs_by_backend"] == {"fp32": 3, "fp32, 1 thread": 0}


def test_without_a_frame_the_piece_in_the_model_file_is_repeated_and_that_is_said(bead_model, capsys):
    _, others = bench(capsys, bead_model.path, "--shape", "150", "200")
    assert others[0]["shape"] == [150, 200]
    assert "no frame given: the" in others[0]["frame"]
    assert "stand in the model file, repeated to 150 x 200 px" in others[0]["frame"]


def test_a_frame_that_shows_nothing_proves_nothing(bead_model, tmp_path, capsys):
    path = tmp_path / "empty.npy"
    np.save(path, np.random.default_rng(0).normal(100, 3, (128, 160)).astype(np.uint16))
    assert main(["bench", str(bead_model.path), "--frame", str(path)]) == 1
    assert "finds nothing in this frame, so that nothing can be compared" in capsys.readouterr().err


def test_a_model_of_several_frames_is_tried_in_fp32_only(window_file, capsys):
    trials, others = bench(capsys, window_file.path)
    assert all(trial["precision"] == "fp32" and trial["passed"] for trial in trials.values())
    assert any("int8 and 16 bits: not for a model of shot" in line.get("reason", "") for line in others)
    assert others[-1]["input_shape"][0] == 3


def test_a_model_of_cells_is_tried_in_fp32_only(cell_lab, capsys):
    trials, others = bench(capsys, cell_lab.path, "--source", f"{cell_lab.scene}&seed=5")
    assert all(trial["precision"] == "fp32" for trial in trials.values())
    assert any("int8 and 16 bits: not for a model of cellulus" in line.get("reason", "") for line in others)
    assert others[-1]["frame_shape"] == [240, 256]


def test_a_hologram_must_be_given(hologram_lab, capsys):
    assert main(["bench", str(hologram_lab.path)]) == 1
    assert "holds no camera frame to try on; pass --frame FILE or --source SOURCE" in capsys.readouterr().err


def test_a_hologram_is_tried_with_all_that_happens_around_the_graph(hologram_lab, tmp_path, capsys):
    reference = tmp_path / "reference.npy"
    np.save(reference, hologram_lab.reference)
    source = f"{hologram_lab.scene}&n=4&seed=12"
    trials, others = bench(capsys, hologram_lab.path, "--source", source, "--reference", str(reference))
    assert all(trial["precision"] == "fp32" and trial["passed"] for trial in trials.values())
    assert others[-1]["frame_shape"] == [256, 256]
    assert len(others[-1]["input_shape"]) == 3
