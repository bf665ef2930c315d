import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

pytest.importorskip("torch", reason="needs oneframe[train]")

from oneframe.acquisition import open_source
from oneframe.runtime.segmentation_score import SegmentationScore
from oneframe.trainer.cell_proposals import CRITERIA, contrast_maps, li_threshold, propose


def scene(text: str):
    source = open_source(text)
    frame = source.read(5.0)
    return frame.pixels.astype(np.float32), source.truth().labels


def f1(truth: np.ndarray, labels: np.ndarray) -> float:
    score = SegmentationScore()
    score.add(truth, labels)
    return score.figures().f1


@pytest.mark.parametrize("criterion", ["contrast", "intensity"])
def test_nuclei_are_proposed(criterion):
    image, truth = scene("sim:cells?width=256&height=256&n=24&seed=3")
    assert f1(truth, propose(image, 1.0, criterion).labels) > 0.8  # cells cut by the border count


def test_packed_rods_are_proposed_by_their_edges():
    """Enlarged to where a rod's width is the reference, as `working_scale` does for a diameter of that width."""
    import cv2

    image, truth = scene("sim:cells?modality=phase&width=256&height=256&n=20&seed=3")
    zoom = 1.6
    larger = np.asarray(cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR))
    labels = cv2.resize(truth.astype(np.float32), larger.shape[::-1], interpolation=cv2.INTER_NEAREST).astype(np.int32)
    by = {criterion: f1(labels, propose(larger, -1.0, criterion).labels) for criterion in CRITERIA}
    assert by["edges"] > 0.6
    assert by["edges"] > by["contrast"] + 0.1


def test_dust_out_of_focus_is_no_packed_cell():
    image, _ = scene("sim:cells?modality=phase&width=256&height=256&n=8&seed=3")
    cells = propose(image, -1.0, "edges")
    deep = float(np.median(cells.relief[cells.labels > 0]))
    y, x = np.mgrid[:256, :256]
    spot = np.unravel_index(np.argmax(distance_transform_edt(cells.labels == 0)), cells.labels.shape)
    dust = 0.4 * deep * np.exp(-((y - spot[0]) ** 2 + (x - spot[1]) ** 2) / (2 * 9**2)).astype(np.float32)
    assert cells.labels.any()
    assert not propose(image - dust, -1.0, "edges").labels[spot]
    assert propose(image - 3 * dust, -1.0, "edges").labels[spot]


def test_texture_cuts_no_large_cell_once_it_is_smoothed():
    import cv2

    y, x = np.mgrid[:240, :240]
    truth = np.zeros(y.shape, np.int32)
    for k, (cy, cx) in enumerate([(60, 60), (60, 170), (170, 60), (170, 170)], 1):
        truth[(y - cy) ** 2 + (x - cx) ** 2 < 17**2] = k
    found: dict[str, list[float]] = {"contrast": [], "smooth": []}
    for seed in range(4):
        noise = np.random.default_rng(seed).standard_normal(y.shape).astype(np.float32)
        grain = np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.5))
        image = (100 + (truth > 0) * 60 + grain / grain.std() * (5 + 10 * (truth > 0))).astype(np.float32)
        for criterion, each in found.items():
            each.append(f1(truth, propose(image, 1.0, criterion).labels))
    assert found["smooth"] == [1.0] * 4
    assert min(found["contrast"]) < 0.8


def test_cells_are_proposed_alike_however_bright_the_light():
    image, _ = scene("sim:cells?width=256&height=256&n=24&seed=3")
    labels = propose(image, 1.0, "contrast").labels
    dimmer = propose(0.3 * image + 500, 1.0, "contrast").labels
    assert f1(labels, dimmer) > 0.97


def test_dark_cells_are_bright_ones_upside_down():
    image, _ = scene("sim:cells?width=128&height=128&n=8&seed=3")
    bright, dark = (propose(sign * image, sign, "contrast").labels for sign in (1.0, -1.0))
    assert f1(bright, dark) == 1.0


def test_relief_is_what_stands_above_the_background():
    image = np.full((96, 96), 200.0, np.float32)
    image[40:56, 40:56] += 90
    relief, contrast, smooth = contrast_maps(image, 1.0)
    assert relief[48, 48] == pytest.approx(90, rel=0.05)
    assert relief[10, 10] == pytest.approx(0, abs=1)
    assert contrast[48, 48] == pytest.approx(90, rel=0.15)
    assert smooth[10, 10] == pytest.approx(200, abs=1)


def test_li_threshold_is_scikit_images():
    filters = pytest.importorskip("skimage.filters", reason="needs scikit-image")
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(20, 3, 9000), rng.normal(60, 9, 2000)]).astype(np.float32)
    assert li_threshold(values) == pytest.approx(filters.threshold_li(values), abs=0.5)


def test_an_unknown_criterion_is_refused():
    with pytest.raises(ValueError, match="expected a foreground among contrast, intensity, edges, smooth"):
        propose(np.zeros((64, 64), np.float32), 1.0, "colour")
