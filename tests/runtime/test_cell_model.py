from dataclasses import replace

import numpy as np
import pytest

from oneframe.acquisition import open_source
from oneframe.runtime import load_model
from oneframe.runtime.cell_model import CellModel, Separation, cells_of
from oneframe.runtime.segmentation_score import SegmentationScore
from oneframe.runtime.selftest import verify_model


def discs(*middles: tuple[int, int], radius: int = 10) -> np.ndarray:
    y, x = np.mgrid[:64, :96]
    masks = [(y - row) ** 2 + (x - column) ** 2 < radius**2 for row, column in middles]
    return np.asarray(np.any(masks, axis=0))


def maps_of(foreground: np.ndarray, middles: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Maps of a network that knows everything."""
    y, x = np.mgrid[: foreground.shape[0], : foreground.shape[1]]
    far = np.stack([(y - row) ** 2 + (x - column) ** 2 for row, column in middles])
    nearest = np.array(middles)[far.argmin(0)]
    return {
        "foreground": np.where(foreground, 0.8, 0).astype(np.float32),
        "offset_y_px": (nearest[..., 0] - y).astype(np.float32),
        "offset_x_px": (nearest[..., 1] - x).astype(np.float32),
    }


VOTES = Separation("votes", 30.0, bandwidth_px=8.0, least_votes=30.0)
WATERSHED = Separation("watershed", 30.0, smoothing_px=1.0, least_distance_px=6.0)


@pytest.mark.parametrize("how", [VOTES, WATERSHED], ids=["votes", "watershed"])
def test_touching_cells_are_two_rows_with_the_probability_as_score(how):
    middles = [(30, 30), (30, 47)]
    foreground = discs(*middles)
    image = np.where(foreground, 700, 100).astype(np.uint16)
    found = cells_of(maps_of(foreground, middles), image, how)
    assert np.sort(found.x_px) == pytest.approx([30, 47], abs=1.2)
    assert found.score == pytest.approx([0.8, 0.8])
    assert found.mean_intensity == pytest.approx([700, 700])
    assert np.array_equal(found.labels > 0, foreground)


def test_small_things_are_no_cells():
    foreground = discs((30, 30)) | discs((30, 70), radius=2)
    found = cells_of(maps_of(foreground, [(30, 30), (30, 70)]), np.zeros(foreground.shape), VOTES)
    assert len(found) == 1


@pytest.mark.parametrize("how", [VOTES, WATERSHED], ids=["votes", "watershed"])
def test_unlikely_cells_go(how):
    middles = [(30, 20), (30, 50), (30, 80)]
    maps = maps_of(discs(*middles), middles)
    maps["foreground"][:, 40:60] *= 0.75
    found = cells_of(maps, np.zeros((64, 96)), replace(how, least_score=0.7))
    assert np.sort(found.x_px) == pytest.approx([20, 80], abs=0.5)
    assert sorted(np.unique(found.labels)) == [0, 1, 2]
    assert found.score == pytest.approx([0.8, 0.8])
    assert len(cells_of(maps, np.zeros((64, 96)), replace(how, least_score=0.55))) == 3


def test_no_foreground_is_no_cells():
    nothing = np.zeros((64, 96), bool)
    found = cells_of(maps_of(nothing, [(1, 1)]), np.zeros(nothing.shape), VOTES)
    assert len(found) == 0
    assert found.labels is not None
    assert not found.labels.any()


def test_a_damaged_card_is_refused():
    with pytest.raises(ValueError, match="separation is damaged: expected by, least_area_px"):
        Separation.from_card({"by": "votes", "radius": 3})
    with pytest.raises(ValueError, match="separated by votes, watershed, stars or mean-shift, got 'luck'"):
        Separation("luck", 3.0)


def f1_of(model: CellModel, scene: str) -> float:
    source = open_source(scene)
    frame = source.read(5.0)
    score = SegmentationScore()
    score.add(source.truth().labels, model.detect(frame.pixels).labels)
    return score.figures().f1


def test_cells_of_new_frames_are_found(cell_lab):
    model = load_model(cell_lab.path)
    assert isinstance(model, CellModel)
    assert np.mean([f1_of(model, f"{cell_lab.scene}&seed={seed}") for seed in (11, 12, 13)]) > 0.85


def test_half_the_light_is_enough(cell_lab):
    """Bleached to half, with a background that stays: as in a film of an hour."""
    model = load_model(cell_lab.path)
    bright, dim = (f1_of(model, f"{cell_lab.scene}&seed=11&photons={photons}") for photons in (160, 80))
    assert dim > bright - 0.08


def test_an_empty_frame_has_no_cells(cell_lab):
    frame = open_source(f"{cell_lab.scene}&n=0&seed=5".replace("n=26&", "")).read(5.0)
    assert len(load_model(cell_lab.path).detect(frame.pixels)) <= 1


def test_the_same_frame_gives_the_same_cells(cell_lab):
    image = open_source(f"{cell_lab.scene}&seed=11").read(5.0).pixels
    first, second = (load_model(cell_lab.path).detect(image) for _ in range(2))
    assert np.array_equal(first.labels, second.labels)
    assert np.array_equal(first.score, second.score)


def test_a_turned_frame_has_turned_cells(cell_lab):
    model = load_model(cell_lab.path)
    image = open_source(f"{cell_lab.scene}&seed=11").read(5.0).pixels
    score = SegmentationScore(0.7)
    score.add(model.detect(image).labels, np.rot90(model.detect(np.rot90(image).copy()).labels, -1))
    assert score.figures().f1 > 0.85


def test_a_higher_threshold_gives_smaller_cells(cell_lab):
    image = open_source(f"{cell_lab.scene}&seed=11").read(5.0).pixels
    covered = [(load_model(cell_lab.path, threshold=each).detect(image).labels > 0).mean() for each in (0.3, 0.5, 0.9)]
    assert covered[0] > covered[1] > covered[2]


def test_the_file_tests_itself(cell_lab):
    _, result = verify_model(str(cell_lab.path))
    assert result.n_expected > 3
    assert result.passed


def test_the_graph_alone_gives_the_maps(cell_lab):
    """Any ONNX Runtime: camera pixels in, three maps of the same size out."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(cell_lab.path), providers=["CPUExecutionProvider"])
    image = open_source(f"{cell_lab.scene}&seed=11").read(5.0).pixels[:101, :173]
    outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": image}), strict=True))
    assert set(outputs) == {"foreground", "offset_y_px", "offset_x_px"}
    assert {values.shape for values in outputs.values()} == {(101, 173)}
    found = load_model(cell_lab.path).detect(image)
    assert ((outputs["foreground"] > 0) >= (found.labels > 0)).all()
