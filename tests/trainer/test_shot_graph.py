"""The deployed graph: frames of any size in, emitters above one threshold out, the same in torch and ONNX Runtime."""

import numpy as np
import pytest
import torch

from oneframe.acquisition import open_source
from oneframe.runtime.model import load_graph
from oneframe.trainer.shot_graph import ShotGraph

BORDER_PX = 16
"""What one block sees beyond a claim's cell (7 px), how far a claim may lie from it (3 px), and some more."""


@torch.no_grad()
def found(graph: ShotGraph, image: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Rows (N, columns) of what the graph finds, cell by cell."""
    values = graph(torch.from_numpy(np.ascontiguousarray(image)), torch.tensor(threshold, dtype=torch.float32))
    return np.stack([value.numpy() for value in values], 1)


def frames(height: int, width: int, n: int = 1, options: str = "") -> np.ndarray:
    source = open_source(f"sim:emitters?width={width}&height={height}&density_um2=2&seed=4{options}")
    pixels = np.stack([source.read(5.0).pixels for _ in range(n)])
    return pixels[0] if n == 1 else pixels


@pytest.mark.parametrize(("height", "width"), [(33, 40), (40, 33), (35, 37), (8, 9), (40, 42)])
def test_any_size_is_as_good_as_a_padded_one(lively_graph, height, width):
    graph, _ = lively_graph()
    image = frames(max(height, 16), max(width, 16))[:height, :width]
    padded = np.pad(image, ((0, height % 2), (0, width % 2)), mode="edge")
    rows, more = found(graph, image), found(graph, padded)
    inside = (more[:, 0] < height - 0.5) & (more[:, 1] < width - 0.5)
    assert len(rows) > height * width // 40
    np.testing.assert_allclose(rows, more[inside], rtol=1e-5)


def test_rows_lie_inside_the_frame(lively_graph):
    graph, _ = lively_graph()
    rows = found(graph, frames(41, 37), 0.0)
    assert len(rows) < 21 * 19  # some claims of the outer cells lie beyond the border
    assert rows[:, :2].min() >= -0.5
    assert rows[:, 0].max() < 40.5
    assert rows[:, 1].max() < 36.5


def test_a_tile_gives_what_the_frame_gives(lively_graph):
    graph, _ = lively_graph()
    image = frames(96, 96)
    whole = found(graph, image)
    for top, left in ((0, 0), (0, 32), (32, 32), (24, 10)):
        rows = found(graph, image[top : top + 64, left : left + 64]) + np.array([top, left] + [0] * 5)

        def middle(rows: np.ndarray, top: int = top, left: int = left) -> np.ndarray:
            low, high = np.array([top, left]) + BORDER_PX, np.array([top, left]) + 63 - BORDER_PX
            return rows[((rows[:, :2] > low) & (rows[:, :2] < high)).all(1)]

        assert len(middle(rows)) > 50
        np.testing.assert_allclose(middle(rows), middle(whole), atol=1e-4, rtol=1e-4)


def test_the_threshold_is_a_threshold(lively_graph):
    graph, _ = lively_graph()
    image = frames(40, 40)
    everything = found(graph, image, 0.0)
    for threshold in np.quantile(everything[:, 2], (0.1, 0.5, 0.9)):
        rows = found(graph, image, threshold)
        np.testing.assert_array_equal(rows, everything[everything[:, 2] >= np.float32(threshold)])
        assert 0 < len(rows) < len(everything)
    assert found(graph, image, 1.0).shape == (0, 7)


def test_sigmas_are_scaled(lively_graph):
    graph, _ = lively_graph(has_z=True)
    image = frames(24, 24, options="&astigmatism_um=0.25")
    plain = found(ShotGraph(graph.network), image, 0.0)
    assert graph.columns[5:] == ("sigma_y_px", "sigma_x_px", "z_um", "sigma_z_um")
    ratio = found(graph, image, 0.0) / plain
    np.testing.assert_allclose(ratio, np.broadcast_to([1, 1, 1, 1, 1, 1.1, 1.1, 1, 1.2], ratio.shape), rtol=1e-5)
    assert (np.abs(plain[:, 7]) <= 0.5).all()


@pytest.mark.parametrize(("height", "width"), [(40, 48), (33, 47), (64, 20), (101, 130), (8, 8)])
@pytest.mark.parametrize("name", ["window_file", "astigmatic_file", "shot_lab"])
def test_onnx_runtime_gives_the_same_rows(request, name, height, width):
    file = request.getfixturevalue(name)
    graph = file.trained.graph if name == "shot_lab" else file.graph
    model = load_graph(file.path, threshold=0.4, threads=1)
    image = frames(max(height, 16), max(width, 16), model.card.n_channels)[..., :height, :width]
    detections = model.detect(image)
    rows = np.stack([detections.columns()[column] for column in graph.columns], 1)
    expected = found(graph, image, 0.4)
    assert len(rows) == len(expected) > 0
    np.testing.assert_allclose(rows[:, :2], expected[:, :2], atol=1e-4)
    np.testing.assert_allclose(rows[:, 2:], expected[:, 2:], rtol=2e-4, atol=1e-4)


def test_a_frame_without_emitters_gives_no_rows(shot_lab):
    model = load_graph(shot_lab.path)
    rng = np.random.default_rng(0)
    for shape in ((64, 64), (41, 67)):
        empty = (100 + 1.34 * (rng.poisson(25, shape) + rng.normal(0, 1.6, shape))).astype(np.uint16)
        assert len(model.detect(empty)) == 0
        assert len(found(shot_lab.trained.graph, empty, model.threshold)) == 0


def test_uint8_and_float_frames_are_taken_as_counts(lively_graph):
    graph, _ = lively_graph()
    image = (frames(24, 24) // 8).astype(np.uint8)
    np.testing.assert_array_equal(found(graph, image), found(graph, image.astype(np.float32)))
    np.testing.assert_array_equal(found(graph, image), found(graph, image.astype(np.uint16)))
