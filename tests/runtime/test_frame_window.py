"""A model of several frames sees each frame with those before it, and an even background where they are missing."""

import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from oneframe.acquisition import Frame, open_source
from oneframe.app.main import main
from oneframe.runtime import Detections, OnnxModel, load_model
from oneframe.runtime.frame_window import WindowModel
from oneframe.runtime.model import load_graph
from oneframe.runtime.seams import ChecksFrames

SCENE = "sim:emitters?width=48&height=40&density_um2=1&seed=5"
THRESHOLD = 0.4


def frames(n: int) -> list[np.ndarray]:
    source = open_source(SCENE)
    return [source.read(5.0).pixels for _ in range(n)]


def same(found: Detections, expected: Detections) -> bool:
    return len(found) == len(expected) > 0 and all(
        np.array_equal(column, expected.columns()[name]) for name, column in found.columns().items()
    )


@pytest.fixture
def model(window_file) -> WindowModel:
    model = load_model(window_file.path, threshold=THRESHOLD, threads=1)
    assert isinstance(model, WindowModel)
    return model


@pytest.fixture
def by_hand(window_file):
    """What the graph says of three images; None stands for a missing one."""
    graph = load_graph(window_file.path, threshold=THRESHOLD, threads=1)

    def detect(*images: np.ndarray | None) -> Detections:
        even = np.full_like(images[-1], window_file.world.missing)
        return graph.detect(np.stack([even if image is None else image for image in images]))

    return detect


def test_the_graph_sees_the_last_three_frames_oldest_first(model, by_hand):
    a, b, c, d = frames(4)
    found = []
    for index, image in enumerate((a, b, c, d)):
        model.check(Frame(image, index, 0.0))
        found.append(model.detect(image))
    assert same(found[0], by_hand(None, None, a))
    assert same(found[1], by_hand(None, a, b))
    assert same(found[2], by_hand(a, b, c))
    assert same(found[3], by_hand(b, c, d))
    assert not same(found[3], by_hand(c, b, d))  # the order matters
    assert not same(found[3], by_hand(None, None, d))


@pytest.mark.parametrize("next_index", [0, 1, 3, 7], ids=["begins anew", "again", "a gap", "a long gap"])
def test_after_a_gap_the_window_starts_anew(model, by_hand, next_index):
    a, b, c, d = frames(4)
    for index, image in ((0, a), (1, b)):
        model.check(Frame(image, index, 0.0))
        model.detect(image)
    model.check(Frame(c, next_index, 0.0))
    assert same(model.detect(c), by_hand(None, None, c))
    model.check(Frame(d, next_index + 1, 0.0))
    assert same(model.detect(d), by_hand(None, c, d))


def test_images_without_numbers_follow_each_other(model, by_hand):
    a, b, c = frames(3)
    for image in (a, b):
        model.detect(image)
    assert same(model.detect(c), by_hand(a, b, c))


def test_a_camera_may_write_over_its_buffer(model, by_hand):
    a, b = frames(2)
    buffer = a.copy()
    model.detect(buffer)
    buffer[:] = b
    assert same(model.detect(buffer), by_hand(None, a, b))


def test_another_size_or_kind_of_pixel_starts_anew(model, by_hand):
    a, b, c = frames(3)
    model.detect(a)
    small = np.ascontiguousarray(b[:32, :37])
    assert same(model.detect(small), by_hand(None, None, small))
    assert same(model.detect(c), by_hand(None, None, c))
    faint = np.minimum(a, 255).astype(np.uint8)
    assert same(model.detect(faint), by_hand(None, None, faint.astype(np.uint16)))
    assert same(model.detect(b), by_hand(None, None, b))


def test_a_frame_that_cannot_be_used_is_a_gap(model, by_hand):
    a, b, c = frames(3)
    for index, image in ((0, a), (1, b)):
        model.check(Frame(image, index, 0.0))
        model.detect(image)
    dark = np.zeros_like(a)
    model.check(Frame(dark, 2, 0.0))
    with pytest.raises(ValueError, match="expected an image, got the constant value 0; is the shutter open"):
        model.detect(dark)
    model.check(Frame(c, 3, 0.0))
    assert same(model.detect(c), by_hand(None, None, c))


def test_a_whole_window_is_taken_as_it_is(model, by_hand):
    a, b, c, d = frames(4)
    model.detect(a)
    assert same(model.detect(np.stack([b, c, d])), by_hand(b, c, d))
    assert same(model.detect(b), by_hand(None, a, b))
    with pytest.raises(ValueError, match=r"the model takes 3 planes \(C, H, W\), got shape \(2, 40, 48\)"):
        model.detect(np.stack([a, b]))


def test_it_is_a_model_like_any_other(model, window_file):
    assert isinstance(model, ChecksFrames)
    assert model.card.n_channels == 3
    assert model.threshold == pytest.approx(THRESHOLD)
    (a,) = frames(1)
    n = len(model.detect(a))
    model.threshold = 0.9
    assert len(model.detect(a)) < n
    with pytest.raises(ValueError, match="threshold must be a score from 0 to 1, got 2"):
        model.threshold = 2
    with pytest.raises(ValueError, match="takes camera images; leave it out"):
        load_model(window_file.path, background="median")


def test_a_card_without_the_counts_of_a_missing_frame_is_refused(window_file):
    graph = load_graph(window_file.path)
    card = replace(graph.card, normalisation={"offset": 100.0, "scale": 1.34})
    with pytest.raises(ValueError, match="lacks the counts of a missing frame; train the model again"):
        WindowModel(OnnxModel(graph._session, card, None))


def test_a_model_of_one_frame_keeps_none(shot_lab):
    assert type(load_model(shot_lab.path)) is OnnxModel


def rows(found: list[Detections]) -> np.ndarray:
    return np.concatenate([np.column_stack([each.y_px, each.x_px, each.photons]) for each in found])


def test_log_and_detect_show_the_frames_before(capsys, window_file, tmp_path, by_hand):
    a, b, c, d = frames(4)
    expected = [by_hand(None, None, a), by_hand(None, a, b), by_hand(a, b, c), by_hand(b, c, d)]
    argv = ["log", str(window_file.path), "--source", f"{SCENE}&frames=4", "--threshold", str(THRESHOLD)]
    assert main([*argv, "-o", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    with closing(sqlite3.connect(tmp_path / "run" / "run.sqlite")) as base:
        query = "SELECT frame, y_px, x_px, photons FROM detections ORDER BY rowid"
        logged = np.array(base.execute(query).fetchall())
    for index, each in enumerate(expected):
        of_frame = logged[logged[:, 0] == index][:, 1:]
        assert len(of_frame) == len(each) > 0
        order = np.lexsort(of_frame.T)
        np.testing.assert_allclose(of_frame[order], (one := rows([each]))[np.lexsort(one.T)], atol=1e-3, rtol=1e-4)

    stack = tmp_path / "stack.npy"
    np.save(stack, np.stack([a, b, c, d]))
    argv = ["detect", str(window_file.path), str(stack), "--threshold", str(THRESHOLD)]
    assert main([*argv, "-o", str(tmp_path / "rows.csv")]) == 0, capsys.readouterr().err
    table = np.genfromtxt(tmp_path / "rows.csv", delimiter=",", names=True, usecols=("frame", "y_px", "x_px"))
    assert [(table["frame"] == index).sum() for index in range(4)] == [len(each) for each in expected]
    np.testing.assert_allclose(table["y_px"], rows(expected)[:, 0], atol=1e-3)
