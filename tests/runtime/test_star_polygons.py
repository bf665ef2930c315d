"""Polygons are filled as the definition says; the likelier cell wins; a part of the image gives what the whole does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneframe.runtime.star_polygons import fill_polygon, halo_px, ray_directions, star_labels

R = 16


def fields(shape, cells, grid=1):
    """Return prob and rays of round cells (y, x, radius, prob): cones, exact rays from every pixel of the cell."""
    h, w = (-(-n // grid) for n in shape)
    y, x = np.indices((h, w)) * grid
    prob, rays = np.zeros((h, w), np.float32), np.ones((R, h, w), np.float32)
    dy, dx = ray_directions(R)[:, :, None]
    for cy, cx, radius, p in cells:
        cone = p * (1 - np.hypot(y - cy, x - cx) / radius)
        own = cone > prob
        prob[own] = cone[own]
        py, px = (y - cy)[own], (x - cx)[own]
        b = py * dy + px * dx
        rays[:, own] = -b + np.sqrt(b**2 - (py**2 + px**2 - radius**2))
    return prob, rays


COORDINATE = st.floats(-4, 30, width=32)


@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=3, max_size=9))
def test_a_pixel_is_filled_if_its_centre_is_inside(corners):
    """Even-odd, by counting the edges to the left of every centre."""
    corners = np.array(corners)
    filled = np.zeros((20, 26), bool)
    filled.ravel()[fill_polygon(corners, filled.shape)] = True
    y, x = np.indices(filled.shape, dtype=float)
    odd, near = np.zeros(filled.shape, bool), np.zeros(filled.shape, bool)
    for (y0, x0), (y1, x1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        crosses = (y0 <= y) != (y1 <= y)
        if crosses.any():
            cut = x0 + (x1 - x0) * ((np.where(crosses, y, y0) - y0) / (y1 - y0))
            odd ^= crosses & (cut <= x)
            near |= crosses & (np.abs(cut - x) < 1e-9)
    assert np.array_equal(filled[~near], odd[~near])


def test_round_cells_come_back_as_large_as_they_are():
    cells = [(20.3, 20.4, 12.0, 0.9), (22.2, 60.1, 9.0, 0.8), (60.4, 30.3, 15.0, 0.95), (62.0, 78.0, 12.5, 0.7)]
    for grid in (1, 2):
        prob, rays = fields((90, 101), cells, grid)
        labels, score = star_labels(prob, rays, grid=grid, threshold=0.5, shape=(90, 101))
        assert labels.dtype == np.int32
        np.testing.assert_allclose(score, [0.9, 0.8, 0.95, 0.7], atol=0.06)
        area = np.bincount(labels.ravel())[1:]
        np.testing.assert_allclose(np.sqrt(area / np.pi), [12, 9, 15, 12.5], atol=0.1)
        again, _ = star_labels(prob, rays, grid=grid, threshold=0.5, shape=(90, 101))
        assert np.array_equal(labels, again)


def test_the_threshold_leaves_out_the_unlikely():
    prob, rays = fields((60, 60), [(20, 20, 10, 0.9), (45, 45, 10, 0.4)])
    assert star_labels(prob, rays, grid=1, threshold=0.5, shape=(60, 60))[0].max() == 1
    assert star_labels(prob, rays, grid=1, threshold=0.3, shape=(60, 60))[0].max() == 2
    labels, score = star_labels(prob, rays, grid=1, threshold=0.95, shape=(60, 60))
    assert not labels.any()
    assert score.shape == (0,)


def test_of_two_that_overlap_the_likelier_stays_and_lies_on_top():
    prob, rays = np.zeros((40, 60), np.float32), np.full((R, 40, 60), 10, np.float32)
    prob[20, 20], prob[20, 24] = 0.7, 0.8
    labels, score = star_labels(prob, rays, grid=1, threshold=0.5, shape=(40, 60))
    assert score == pytest.approx([0.8])
    assert labels[20, 33] == 1
    assert labels[20, 12] == 0
    prob[20, 24], prob[20, 35] = 0, 0.8  # they share a sixth
    labels, score = star_labels(prob, rays, grid=1, threshold=0.5, shape=(40, 60))
    assert score == pytest.approx([0.7, 0.8])
    assert labels[20, 26] == 2
    assert star_labels(prob, rays, grid=1, threshold=0.5, nms_overlap=0.1, shape=(40, 60))[0].max() == 1


def test_a_small_cell_within_a_large_one_goes():
    prob, rays = np.zeros((50, 50), np.float32), np.full((R, 50, 50), 20, np.float32)
    prob[25, 25], prob[25, 33] = 0.9, 0.8
    rays[:, 25, 33] = 4
    assert star_labels(prob, rays, grid=1, threshold=0.5, shape=(50, 50))[0].max() == 1


def test_one_that_was_dropped_drops_nobody():
    prob, rays = np.zeros((40, 80), np.float32), np.full((R, 40, 80), 10, np.float32)
    prob[20, 20], prob[20, 28], prob[20, 36] = 0.9, 0.8, 0.7
    labels, score = star_labels(prob, rays, grid=1, threshold=0.5, shape=(40, 80))
    assert score == pytest.approx([0.9, 0.7])
    assert labels.max() == 2


def noisy(shape, seed=0):
    rng = np.random.default_rng(seed)
    cells = [
        (y + rng.uniform(-5, 5), x + rng.uniform(-5, 5), rng.uniform(8, 13), rng.uniform(0.6, 1))
        for y in range(10, shape[0], 22)
        for x in range(10, shape[1], 22)
    ]
    prob, rays = fields(shape, cells, grid=2)
    prob = prob + rng.normal(0, 0.05, prob.shape).astype(np.float32)
    return prob, rays + rng.normal(0, 1.5, rays.shape).astype(np.float32)


def test_a_part_of_the_image_gives_the_same_cells():
    prob, rays = noisy((300, 340))
    whole, score = star_labels(prob, rays, grid=2, threshold=0.45, shape=(300, 340))
    halo = halo_px(float(rays.max()), 2)
    top, left = 60, 80
    part = np.s_[top // 2 :, left // 2 :]
    other, _ = star_labels(prob[part], rays[:, *part], grid=2, threshold=0.45, shape=(300 - top, 340 - left))
    inner, inner_other = whole[top + halo :, left + halo :], other[halo:, halo:]
    pairs = np.unique(np.stack([inner.ravel(), inner_other.ravel()], 1), axis=0)
    assert len(pairs) > 20
    assert len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1]))
    assert len(score) == whole.max()


def test_cells_reach_over_the_border_and_an_odd_image_fits():
    prob, rays = fields((31, 45), [(0, 20, 10, 0.9), (30, 44, 10, 0.8)], grid=2)
    labels, _ = star_labels(prob, rays, grid=2, threshold=0.5, shape=(31, 45))
    assert labels.shape == (31, 45)
    assert labels[0, 20] == 1
    assert labels[30, 44] == 2
    rays[:] = np.nan
    assert not star_labels(prob, rays, grid=2, threshold=0.5, shape=(31, 45))[0].any()
    rays[:] = -5
    assert not star_labels(prob, rays, grid=2, threshold=0.5, shape=(31, 45))[0].any()
    rays[:] = np.inf
    assert (star_labels(prob, rays, grid=2, threshold=0.5, shape=(31, 45))[0] > 0).any()


def test_what_is_refused():
    prob, rays = fields((20, 20), [(10, 10, 5, 0.9)])
    with pytest.raises(ValueError, match="on a grid of 2 px"):
        star_labels(prob, rays, grid=2, threshold=0.5, shape=(20, 20))
    with pytest.raises(ValueError, match="3 or more rays"):
        star_labels(prob, rays[:2], grid=1, threshold=0.5, shape=(20, 20))
