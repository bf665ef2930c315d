"""Model files: what is loaded, what is refused, and what `detect` takes."""

import numpy as np
import pytest
from microscope import beads, yx

from oneframe.runtime import ModelFileError, load_model
from oneframe.runtime.selftest import decode_selftest, encode_selftest, verify_model
from oneframe.runtime.truth import TruthComparison


@pytest.fixture(scope="module")
def model(bead_model):
    return load_model(bead_model.path)


def test_detects_what_torch_detects(bead_model, model):
    import torch

    for image in (bead_model.snap.frame.pixels, beads("&seed=50").read(1.0).pixels[:101, :73]):
        found = model.detect(image)
        with torch.no_grad():
            y, x, score, *_ = bead_model.trained.graph(
                torch.from_numpy(np.ascontiguousarray(image)), torch.tensor(model.threshold)
            )
        assert len(found) > 0
        np.testing.assert_allclose(yx(found), np.column_stack([y, x]), atol=1e-4)
        np.testing.assert_allclose(found.score, score, atol=1e-4)


def test_threshold_can_be_changed_without_loading_again(bead_model):
    model = load_model(bead_model.path, threshold=0.0)
    everything = len(model.detect(bead_model.snap.frame.pixels))
    model.threshold = 0.99999
    assert len(model.detect(bead_model.snap.frame.pixels)) < everything
    with pytest.raises(ValueError, match=r"threshold must be a score from 0 to 1, got 1\.5"):
        model.threshold = 1.5


@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint32", "float32", "float64"])
def test_other_dtypes_are_taken_where_no_value_is_lost(model, bead_model, dtype):
    image = bead_model.snap.frame.pixels
    image = np.minimum(image, 255) if dtype == "uint8" else image
    expected, found = model.detect(image.astype(np.uint16)), model.detect(image.astype(dtype))
    np.testing.assert_array_equal(yx(expected), yx(found))


def test_a_view_with_strides_is_taken(model, bead_model):
    image = bead_model.snap.frame.pixels
    expected = model.detect(np.ascontiguousarray(image[:, ::-1]))
    np.testing.assert_array_equal(yx(model.detect(image[:, ::-1])), yx(expected))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.astype(np.float32) + 0.5, "takes uint16 camera pixels, got float32 from"),
        (lambda a: a.astype(np.int32) - 5000, "takes uint16 camera pixels, got int32 from -"),
        (lambda a: a.astype(np.uint32) + 70_000, "takes uint16 camera pixels, got uint32"),
        (lambda a: np.where(a > 300, np.inf, a), r"finite pixels, got \d+ that are NaN or infinite"),
        (lambda a: np.where(a > 300, np.nan, a), r"finite pixels, got \d+ that are NaN or infinite"),
        (lambda a: np.stack([a] * 3, -1), r"takes one plane \(H, W\), got shape .*convert colour to grey"),
        (lambda a: np.stack([a] * 2), r"takes one plane \(H, W\), got shape \(2, 128, 160\)"),
        (lambda a: a[0], "takes one plane"),
        (lambda a: a[:4], r"at least 8 x 8 px, got \(4, 160\)"),
        (lambda a: a[:0], r"at least 8 x 8 px, got \(0, 160\)"),
        (lambda a: np.full_like(a, 100), "constant value 100; is the shutter open"),
    ],
)
def test_images_that_do_not_fit_are_refused(model, bead_model, change, message):
    with pytest.raises(ValueError, match=message):
        model.detect(change(bead_model.snap.frame.pixels))


def test_verify_replays_the_self_test(bead_model):
    _, result = verify_model(str(bead_model.path))
    assert result.passed
    assert result.n_expected == result.n_found >= 1
    assert result.worst_px < 1e-3


def test_the_self_test_survives_its_text(bead_model, model):
    image = bead_model.snap.frame.pixels
    expected = model.detect(image)
    image_back, expected_back = decode_selftest(encode_selftest(image, expected))
    np.testing.assert_array_equal(image_back, image)
    np.testing.assert_array_equal(yx(expected_back), yx(expected))
    with pytest.raises(ValueError, match="self-test in the model file is damaged"):
        decode_selftest(encode_selftest(image, expected)[:-40])


@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_a_truncated_file_is_refused(bead_model, tmp_path, keep):
    path = tmp_path / "cut.onnx"
    path.write_bytes(bead_model.path.read_bytes()[:keep])
    with pytest.raises(ModelFileError, match=rf"is not a complete ONNX model \({keep} bytes\); copy it again"):
        load_model(path)


def test_a_foreign_or_missing_file_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs oneframe[train]")
    value = onnx.helper.make_tensor_value_info("x", 1, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "foreign", [value], [
        onnx.helper.make_tensor_value_info("y", 1, [1])
    ])  # fmt: skip
    path = tmp_path / "foreign.onnx"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="without a oneframe model card"):
        load_model(path)
    with pytest.raises(ModelFileError, match="expected a model file, found none at"):
        load_model(tmp_path / "none.onnx")


def test_a_card_of_a_newer_format_is_refused(bead_model, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs oneframe[train]")
    model = onnx.load(bead_model.path)
    card = next(entry for entry in model.metadata_props if entry.key == "oneframe")
    card.value = card.value.replace('"format_version":1', '"format_version":2')
    path = tmp_path / "newer.onnx"
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match="format 2, this oneframe reads 1; update oneframe"):
        load_model(path)


def test_truth_comparison_counts_hits_misses_and_strays():
    comparison = TruthComparison(max_distance_px=2)
    comparison.add(np.array([[10.0, 10.0], [50.0, 50.0]]), np.array([[10.3, 10.4], [80.0, 80.0], [10.0, 11.9]]))
    score = comparison.score()
    assert (score.n_true, score.n_found, score.n_matched) == (2, 3, 1)
    assert score.rmse_px == pytest.approx(np.sqrt((0.09 + 0.16) / 2))
    assert score.recall == 0.5
    assert score.precision == pytest.approx(1 / 3)
    comparison.add(np.empty((0, 2)), np.empty((0, 2)))
    assert comparison.score() == score
