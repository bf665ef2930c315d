"""Pieces, holes, margins and outlines of cells against plain per-cell calculations with scipy."""

import numpy as np
import pytest
from scipy import ndimage

from oneframe.runtime.cell_cleanup import grow, half_maximum_cut, nucleus_cut, shrink, size_filter
from oneframe.runtime.vote_clustering import consecutive


def random_labels(seed=0, shape=(90, 120), n=12, speckled=0.02):
    """Cells that touch, with holes and with specks of other cells far away."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape)
    labels = np.zeros(shape, np.int32)
    for k in range(1, n + 1):
        cy, cx, radius = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(5, 16)
        labels[np.hypot(y - cy, x - cx) < radius] = 3 * k  # with gaps in the numbers
    speck = rng.random(shape) < speckled
    labels[speck] = 3 * rng.integers(0, n + 1, speck.sum())
    return labels


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("least_px", [1, 40, 200])
def test_each_cell_is_its_largest_piece_without_holes(seed, least_px):
    labels = random_labels(seed)
    kept = np.zeros_like(labels)
    for k in np.unique(labels[labels > 0]):
        pieces, n = ndimage.label(labels == k)
        areas = np.bincount(pieces.ravel(), minlength=n + 1)[1:]
        if areas.max() >= least_px:
            kept[pieces == 1 + areas.argmax()] = k
    expected = kept.copy()
    for k in np.unique(kept[kept > 0]):
        holes, n = ndimage.label(ndimage.binary_fill_holes(kept == k) & (kept != k))
        for hole in range(1, n + 1):
            if not kept[holes == hole].any():  # no other cell within
                expected[holes == hole] = k
    found = size_filter(labels, least_px)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, consecutive(expected))


def test_edges_hold_pieces_together_and_corners_do_not():
    labels = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1], [2, 2, 1, 1]], np.int32)
    np.testing.assert_array_equal(size_filter(labels, 1), [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1], [2, 2, 1, 1]])
    np.testing.assert_array_equal(size_filter(labels, 3), [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    assert not size_filter(labels, 6).any()
    equal = np.array([[0, 4, 0], [0, 0, 0], [4, 0, 0]], np.int32)
    np.testing.assert_array_equal(size_filter(equal, 1), [[0, 1, 0], [0, 0, 0], [0, 0, 0]])


def test_cells_grow_to_where_the_nearer_one_begins():
    labels = random_labels(speckled=0)
    distance, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    found = grow(labels, 3.0)
    sure = np.abs(distance - 3.0) > 0.25  # cv2's distances are good to 2 %
    np.testing.assert_array_equal((found > 0)[sure], (distance <= 3.0)[sure])
    np.testing.assert_array_equal(found[labels > 0], labels[labels > 0])
    assert (found[found > 0] == labels[tuple(nearest)][found > 0]).mean() > 0.98  # ties aside
    assert grow(labels, 0.0) is labels
    assert not grow(np.zeros_like(labels), 3.0).any()


def test_only_background_within_one_cell_is_a_hole():
    labels = np.zeros((20, 40), np.int32)
    labels[2:18, 2:14] = 1
    labels[5:9, 5:9] = 0  # a hole
    labels[12:15, 0:6] = 0  # a bay
    labels[2:18, 20:30], labels[2:18, 30:38] = 2, 3
    labels[6:9, 28:32] = 0  # a gap between two
    labels[10:16, 22:28] = 0
    labels[12:14, 24:26] = 4  # a cell in a ring
    filled = size_filter(labels, 1)
    assert (filled[5:9, 5:9] == 1).all()
    assert not filled[12:15, 2:6].any()
    assert not filled[6:9, 28:32].any()
    assert (filled[12:14, 24:26] == 4).all()
    assert (filled[10:12, 22:28] == 0).all()
    assert (size_filter(labels, 5)[10:16, 22:28] == 2).all()  # a speck goes, then the hole


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("grow_px", "shrink_px"), [(3, 6), (2.5, 4), (0, 3), (5, 5)])
def test_the_margin_is_that_of_two_distance_transforms(seed, grow_px, shrink_px):
    labels = random_labels(seed)
    near = ndimage.distance_transform_edt(labels == 0) < max(grow_px, 1e-9)
    expected = np.where(ndimage.distance_transform_edt(near) < shrink_px, 0, labels)
    np.testing.assert_array_equal(shrink(labels, grow_px=grow_px, shrink_px=shrink_px), consecutive(expected))


def test_cells_that_touch_go_on_touching():
    labels = np.zeros((40, 60), np.int32)
    labels[8:32, 8:30], labels[8:32, 30:52] = 1, 2
    less = shrink(labels)
    assert (less[20, 27:30] == 1).all()
    assert (less[20, 30:33] == 2).all()
    assert np.flatnonzero(less[20])[0] == 11  # 6 - 3 px less
    assert np.array_equal(shrink(np.ones((9, 9), np.int32)), np.ones((9, 9), np.int32))
    assert not shrink(np.zeros((9, 9), np.int32)).any()


def blurred_cells(seed=0):
    """Two discs that touch, one three times as bright, blurred, on a background of 100 with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((64, 96))
    truth = np.zeros((64, 96), np.int32)
    truth[np.hypot(y - 32, x - 30) < 16], truth[np.hypot(y - 32, x - 63) < 16] = 1, 2
    image = 100 + ndimage.gaussian_filter(np.where(truth == 1, 900.0, np.where(truth == 2, 300.0, 0)), 2)
    return truth, np.round(image + rng.normal(0, 4, image.shape)).astype(np.uint16)


def halves():
    """The image cut into a left and a right cell."""
    both = np.ones((64, 96), np.int32)
    both[:, 46:] = 2
    return both


@pytest.mark.parametrize("cut", [nucleus_cut, lambda labels, image: half_maximum_cut(labels, image, 100.0)])
def test_outlines_lie_where_the_light_falls_off_whatever_the_brightness(cut):
    truth, image = blurred_cells()
    rough = np.where(ndimage.grey_dilation(truth, 9) > 0, halves(), 0).astype(np.int32)
    for k in (1, 2):
        found = cut(rough, image) == k
        overlap = (found & (truth == k)).sum() / (found | (truth == k)).sum()
        assert overlap > 0.93
        before = ((rough == k) & (truth == k)).sum() / ((rough == k) | (truth == k)).sum()
        assert overlap > before + 0.1


def test_the_cut_is_that_of_each_cells_own_percentile():
    rng = np.random.default_rng(0)
    labels, image = random_labels(3), rng.normal(50, 10, (90, 120)).astype(np.float32)
    expected = np.zeros_like(labels)
    for k in np.unique(labels[labels > 0]):
        own = image[labels == k] - 30
        expected[labels == k] = np.where(own >= 0.7 * np.percentile(own, 85), k, 0)
    differ = half_maximum_cut(labels, image, 30.0, share=0.7) != consecutive(expected)
    assert differ.sum() == 0
    level = rng.normal(30, 1, image.shape).astype(np.float32)
    np.testing.assert_array_equal(half_maximum_cut(labels, image, level), half_maximum_cut(labels, image - level, 0.0))


def test_otsu_in_each_nucleus_is_that_of_scikit_image():
    filters = pytest.importorskip("skimage.filters")
    _, image = blurred_cells()
    cut = nucleus_cut(halves(), image)
    for k in (1, 2):
        own = image[halves() == k]
        threshold, step = filters.threshold_otsu(own), 1 + np.ptp(own) / 256
        kept = cut[halves() == k] == k
        assert kept[own > threshold + step].all()
        assert not kept[own < threshold - step].any()


def test_brightness_and_offset_do_not_matter():
    _, image = blurred_cells()
    image = image.astype(np.float64)
    for cut in (nucleus_cut, lambda labels, pixels: half_maximum_cut(labels, pixels, np.median(pixels[:5]))):
        np.testing.assert_array_equal(cut(halves(), image), cut(halves(), 4 * image + 512))


def test_dark_cells_go_and_empty_images_stay_empty():
    labels, image = halves(), np.full((64, 96), 100.0)
    image[:, 46:] = 50
    assert not half_maximum_cut(labels, image, 100.0).any()
    np.testing.assert_array_equal(nucleus_cut(labels, image), labels)  # one class: nothing to cut
    none = np.zeros((64, 96), np.int32)
    for empty in (size_filter(none, 5), nucleus_cut(none, image), half_maximum_cut(none, image, 0.0)):
        assert empty.dtype == np.int32
        assert not empty.any()


def test_what_is_refused():
    with pytest.raises(ValueError, match="int32 labels"):
        size_filter(np.zeros((5, 5), np.int64), 3)
    with pytest.raises(ValueError, match="image of their shape"):
        nucleus_cut(np.zeros((5, 5), np.int32), np.zeros((2, 5, 5)))
    with pytest.raises(ValueError, match="share must be"):
        half_maximum_cut(np.zeros((5, 5), np.int32), np.zeros((5, 5)), 0.0, share=1)
