"""The same centres and labels as scikit-learn's MeanShift, where it is installed; known clusters everywhere."""

import numpy as np
import pytest

from oneframe.runtime.mean_shift import mean_shift, mean_shift_labels, nearest_centre
from oneframe.runtime.segmentation_score import SegmentationScore


def blobs(seed, n=160, k=5, spread=3.0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 80, (k, 2))[rng.integers(0, k, n)] + rng.normal(0, spread, (n, 2))


def grid_embedding(seed):
    """Ends of pixels at whole numbers, as of offsets that were rounded: many at the same place, distances that tie."""
    rng = np.random.default_rng(seed)
    y, x = (each.ravel() for each in np.indices((12, 24)))
    near = np.column_stack([y // 12 * 12 + 6, x // 12 * 12 + 6])
    return np.rint(near + rng.normal(0, 2, near.shape))


CASES = {
    **{f"blobs {seed}": (blobs(seed), 8.0) for seed in range(3)},
    "wide blobs": (blobs(9, spread=9), 10.0),
    "narrow": (blobs(3), 1.5),
    "duplicates": (np.repeat(blobs(1, n=40), 5, axis=0), 8.0),
    "all the same": (np.full((20, 2), 7.5), 3.0),
    "one point": (np.array([[3.0, 4.0]]), 5.0),
    "two points": (np.array([[3.0, 4.0], [30.0, 4.0]]), 5.0),
    "collinear": (np.column_stack([np.arange(60.0), 2 * np.arange(60.0)]), 7.0),
    "collinear along x": (np.column_stack([np.zeros(80), np.linspace(0, 31, 80)]), 4.3),
    "negative": (blobs(2) - 100, 8.0),
    **{f"grid {seed}": (grid_embedding(seed), 6.5) for seed in range(3)},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")  # of scikit-learn
def test_the_same_as_scikit_learn(case):
    cluster = pytest.importorskip("sklearn.cluster")
    points, bandwidth = CASES[case]
    theirs = cluster.MeanShift(bandwidth=bandwidth, bin_seeding=False, cluster_all=False).fit(points)
    ours = mean_shift(points, bandwidth)
    np.testing.assert_allclose(ours, theirs.cluster_centers_, rtol=0, atol=1e-6)
    other = np.random.default_rng(0).uniform(points.min(), points.max() + 1, (500, 2))
    for each in (points, other):
        np.testing.assert_array_equal(nearest_centre(each, ours), theirs.predict(each))


@pytest.mark.filterwarnings("ignore")
def test_seeds_and_few_steps_as_in_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    points = blobs(4, spread=8)
    seeds = np.vstack([points[::7], [[500.0, 500.0]]])  # one with nothing near
    for steps in (0, 1, 3, 300):
        theirs = cluster.MeanShift(bandwidth=9, seeds=seeds, max_iter=steps).fit(points).cluster_centers_
        np.testing.assert_allclose(mean_shift(points, 9, seeds=seeds, max_iterations=steps), theirs, atol=1e-6, rtol=0)


def discs():
    """Offsets to the centres of discs that touch, with errors; the foreground and the true labels."""
    rng = np.random.default_rng(0)
    y, x = np.indices((104, 104)).astype(np.float32)
    truth, offsets = np.zeros((104, 104), np.int32), np.zeros((2, 104, 104), np.float32)
    for k, (cy, cx) in enumerate(np.ndindex(4, 4), 1):
        cy, cx = 16 + 24 * cy, 16 + 24 * cx
        own = np.hypot(y - cy, x - cx) < 12
        truth[own], offsets[0][own], offsets[1][own] = k, (cy - y)[own], (cx - x)[own]
    return offsets + rng.normal(0, 2, offsets.shape).astype(np.float32), truth > 0, truth


@pytest.mark.filterwarnings("ignore")
def test_a_crop_is_clustered_as_by_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    offsets, foreground, _ = discs()
    labels = mean_shift_labels(offsets, foreground, bandwidth_px=12, rng=np.random.default_rng(3))
    ends = np.argwhere(foreground) + offsets[:, foreground].T.astype(np.float64)
    drawn = ends[np.random.default_rng(3).random(len(ends)) < 0.1]
    theirs = np.zeros(foreground.shape, np.int32)
    fitted = cluster.MeanShift(bandwidth=12, cluster_all=False).fit(drawn)
    theirs[foreground] = fitted.predict(ends) + 1
    score = SegmentationScore(1.0, strict=False)
    score.add(theirs, labels)
    assert score.figures().f1 == 1  # the same cells, to the pixel


def test_cells_of_known_centres_are_found():
    offsets, foreground, truth = discs()
    labels = mean_shift_labels(offsets, foreground, bandwidth_px=12, rng=np.random.default_rng(0))
    assert labels.dtype == np.int32
    assert np.array_equal(labels > 0, foreground)
    score = SegmentationScore(0.8)
    score.add(truth, labels)
    assert score.figures().f1 == 1
    again = mean_shift_labels(offsets, foreground, bandwidth_px=12, rng=np.random.default_rng(0))
    assert np.array_equal(labels, again)


def test_every_pixel_gets_a_cell_but_those_whose_offset_is_unknown():
    offsets, foreground = np.zeros((2, 30, 30), np.float32), np.zeros((30, 30), bool)
    foreground[3:9, 3:9] = True
    foreground[28, 28] = True  # far from all that was drawn
    offsets[0, 5, 5] = np.nan
    labels = mean_shift_labels(offsets, foreground, bandwidth_px=8, sample=0.3, rng=np.random.default_rng(1))
    assert labels[5, 5] == 0
    assert labels[28, 28] > 0
    assert not mean_shift_labels(offsets, foreground & False, bandwidth_px=8, rng=np.random.default_rng(1)).any()
    one = np.zeros((30, 30), bool)
    one[4, 4] = True
    assert mean_shift_labels(offsets, one, bandwidth_px=8, rng=np.random.default_rng(1))[4, 4] == 1


def test_a_moved_cloud_has_moved_centres():
    points = blobs(6)
    np.testing.assert_allclose(mean_shift(points + 64, 8), mean_shift(points, 8) + 64, atol=1e-9)


def test_of_equally_near_centres_the_first():
    centres = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    assert nearest_centre(np.array([[2.0, 2.0], [2.0, 4.0], [3.0, 2.0]]), centres).tolist() == [0, 2, 1]
    assert nearest_centre(np.array([[9.0, 9.0]]), centres[:1]).tolist() == [0]


def test_what_is_refused():
    with pytest.raises(ValueError, match="bandwidth above 0"):
        mean_shift(blobs(0), 0)
    with pytest.raises(ValueError, match="0 points"):
        mean_shift(np.empty((0, 2)), 3)
    with pytest.raises(ValueError, match="finite numbers"):
        mean_shift(np.array([[np.nan, 1.0]]), 3)
    with pytest.raises(ValueError, match="take other seeds"):
        mean_shift(blobs(0), 3, seeds=np.array([[900.0, 900.0]]))
    with pytest.raises(ValueError, match="sample must be"):
        mean_shift_labels(*discs()[:2], bandwidth_px=8, sample=0, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="boolean foreground"):
        mean_shift_labels(np.zeros((2, 5, 5)), np.zeros((5, 5)), bandwidth_px=8, rng=np.random.default_rng(0))
