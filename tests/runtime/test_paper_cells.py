"""Offsets of known stability become the cells that they were made of; where nothing is steady, it is said why."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from oneframe.runtime.cell_model import Separation
from oneframe.runtime.paper_cells import NOT_SEEN, paper_cells
from oneframe.runtime.segmentation_score import SegmentationScore

HOW = Separation(
    "mean-shift", 40.0, bandwidth_px=10.0, levels=(300.0, 500.0), passes=16, share=0.02, sample=0.1,
)  # fmt: skip


def scene(dtype=np.uint16):
    """Return six cells, of which two touch, as labels and as an image."""
    y, x = np.indices((96, 110))
    labels = np.zeros(y.shape, np.int32)
    for k, (at_y, at_x) in enumerate([(20, 20), (20, 50), (20, 70), (60, 20), (65, 60), (80, 90)], 1):
        labels[(np.hypot(y - at_y, x - at_x) < 11) & (labels == 0)] = k
    rng = np.random.default_rng(0)
    return labels, (100 + 200 * (labels > 0) + rng.normal(0, 5, labels.shape)).astype(dtype)


def pointing(labels, steady=True):
    """Return maps that point at each cell's middle; in the background they follow the pixels around."""
    y, x = np.indices(labels.shape).astype(np.float32)
    middle = np.array([(0, 0), *ndimage.center_of_mass(labels > 0, labels, range(1, labels.max() + 1))], np.float32)
    inside = labels > 0

    def maps_of(image):
        assert image.dtype == np.uint16
        local = ndimage.gaussian_filter(image.astype(np.float32), 4) / 4
        shaken = local * (np.where(inside, 0.02, 1) if steady else 1)
        dy, dx = middle[labels].transpose(2, 0, 1) - np.stack([y, x])
        return {"offset_y_px": np.where(inside, dy, 0) + shaken, "offset_x_px": np.where(inside, dx, 0) + shaken}

    return maps_of


def test_steady_offsets_become_their_cells_the_same_ones_each_time():
    labels, image = scene()
    found, again = (paper_cells(pointing(labels), image, HOW, 0.0) for _ in range(2))
    assert len(found) == 6
    score = SegmentationScore()
    score.add(labels, found.labels)
    assert score.figures().f1 == 1
    assert found.notes == ()
    assert (found.score > 0.3).all()
    assert np.array_equal(found.labels, again.labels)
    assert np.array_equal(found.score, again.score)


def test_a_higher_threshold_leaves_the_steadier_pixels():
    labels, image = scene()
    areas = [int((paper_cells(pointing(labels), image, HOW, each).labels > 0).sum()) for each in (0.0, 0.45, 1.0)]
    assert areas[0] > areas[1] > areas[2] == 0


def test_margins_shrink_the_union_and_small_cells_go():
    labels, image = scene()
    shrunk = paper_cells(pointing(labels), image, replace(HOW, grow_px=3.0, shrink_px=6.0), 0.0)
    assert len(shrunk) == 6
    assert 0.3 * (labels > 0).sum() < (shrunk.labels > 0).sum() < 0.8 * (labels > 0).sum()
    assert len(paper_cells(pointing(labels), image, replace(HOW, least_area_px=1000.0), 0.0)) == 0


def test_where_nothing_is_steadier_it_is_said_why_there_are_no_cells():
    labels, image = scene()
    found = paper_cells(pointing(labels, steady=False), image, HOW, 0.0)
    assert len(found) == 0
    assert found.notes == (NOT_SEEN,)
    assert found.area_px is not None
    assert not found.labels.any()


def test_the_card_keeps_it_all():
    assert Separation.from_card(json.loads(json.dumps(HOW.to_card()))) == HOW
    with pytest.raises(ValueError, match="votes, watershed, stars or mean-shift, got 'magic'"):
        replace(HOW, by="magic")
