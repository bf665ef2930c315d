"""Touching discs come apart, single cells stay whole, and the basins are those of a flooding."""

import numpy as np
import pytest

from oneframe.runtime.segmentation_score import SegmentationScore
from oneframe.runtime.watershed import watershed_labels


def discs(centres, radii, shape=(120, 160)):
    y, x = np.indices(shape)
    labels = np.zeros(shape, np.int32)
    for k, ((cy, cx), radius) in enumerate(zip(centres, radii, strict=True), 1):
        labels[np.hypot(y - cy, x - cx) < radius] = k
    return labels


def f1(truth, labels, iou=0.5):
    score = SegmentationScore(iou)
    score.add(truth, labels)
    return score.figures().f1


def packed(seed=0):
    """Discs that overlap by up to a tenth."""
    rng = np.random.default_rng(seed)
    centres, radii = [], []
    for y in range(15, 110, 19):
        for x in range(15, 150, 19):
            centres.append((y + rng.uniform(-1, 1), x + rng.uniform(-1, 1)))
            radii.append(rng.uniform(9, 10.5))
    return discs(centres, radii)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("smoothing_px", [0, 1])
def test_touching_discs_come_apart(seed, smoothing_px):
    truth = packed(seed)
    labels = watershed_labels(truth > 0, smoothing_px=smoothing_px, least_distance_px=9)
    assert labels.dtype == np.int32
    assert np.array_equal(labels > 0, truth > 0)
    assert set(np.unique(labels)) == set(range(labels.max() + 1))
    assert f1(truth, labels, 0.8) == 1
    assert np.array_equal(labels, watershed_labels(truth > 0, smoothing_px=smoothing_px, least_distance_px=9))


def test_cells_apart_are_cells_however_small_and_near():
    truth = discs([(20, 20), (20, 36), (60, 60), (100, 140)], [10, 4, 2, 15])
    labels = watershed_labels(truth > 0, smoothing_px=2, least_distance_px=30)
    assert f1(truth, labels, 0.99) == 1


def test_a_rod_is_one_cell_and_two_end_to_end_are_two():
    rod = np.zeros((60, 140), bool)
    rod[20:31, 10:110] = True
    rod[40:51, 10:60], rod[40:51, 60:110] = True, True
    rod[40:43, 57:63], rod[48:51, 57:63] = False, False  # a neck
    labels = watershed_labels(rod, smoothing_px=1, least_distance_px=8)
    assert labels.max() == 3
    assert len(np.unique(labels[20:31, 10:110])) == 1
    assert len({int(labels[45, 20]), int(labels[45, 100])}) == 2


def test_near_middles_are_one_cell():
    truth = discs([(30, 30), (30, 44)], [9, 9])
    assert watershed_labels(truth > 0, smoothing_px=0, least_distance_px=10).max() == 2
    assert watershed_labels(truth > 0, smoothing_px=0, least_distance_px=20).max() == 1


@pytest.mark.parametrize("turn", [lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a.T])
def test_a_turned_image_gives_the_turned_cells(turn):
    truth = packed()
    turned = watershed_labels(np.ascontiguousarray(turn(truth > 0)), smoothing_px=1, least_distance_px=9)
    assert f1(turn(watershed_labels(truth > 0, smoothing_px=1, least_distance_px=9)), turned, 0.95) == 1


def test_the_same_cells_as_scikit_image():
    segmentation = pytest.importorskip("skimage.segmentation")
    feature = pytest.importorskip("skimage.feature")
    from scipy import ndimage

    truth = packed(5)
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(truth > 0), 1)
    summits = feature.peak_local_max(distance, min_distance=9, labels=(truth > 0).astype(int), exclude_border=False)
    markers = np.zeros(truth.shape, int)
    markers[tuple(summits.T)] = np.arange(1, len(summits) + 1)
    theirs = segmentation.watershed(-distance, markers, mask=truth > 0)
    ours = watershed_labels(truth > 0, smoothing_px=1, least_distance_px=9)
    assert f1(theirs, ours, 0.9) == 1


def test_nothing_everything_and_single_pixels():
    settings = {"smoothing_px": 1, "least_distance_px": 5}
    assert not watershed_labels(np.zeros((9, 12), bool), **settings).any()
    assert (watershed_labels(np.ones((9, 12), bool), **settings) == 1).all()
    assert watershed_labels(np.ones((1, 1), bool), **settings).tolist() == [[1]]
    spots = np.zeros((9, 12), bool)
    spots[::4, ::4] = True
    assert watershed_labels(spots, **settings).max() == 9


def test_what_is_refused():
    with pytest.raises(ValueError, match="boolean foreground"):
        watershed_labels(np.ones((9, 9), int), smoothing_px=1, least_distance_px=5)
    with pytest.raises(ValueError, match="least_distance_px above 0"):
        watershed_labels(np.ones((9, 9), bool), smoothing_px=1, least_distance_px=0)
