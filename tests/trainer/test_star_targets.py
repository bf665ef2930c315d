"""Rays and depth against circles and ellipses whose outline is known, touching cells and cut ones."""

import numpy as np
import pytest

from oneframe.runtime.segmentation_score import SegmentationScore
from oneframe.runtime.star_polygons import ray_directions, star_labels
from oneframe.trainer.star_targets import star_targets


def ellipse(shape, yx, axes, angle=0.0):
    """Return the mask and the exact distances (R, N) from its pixels' centres to the outline."""
    y, x = np.indices(shape, dtype=float)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / np.array(axes)[:, None]
    at = np.tensordot(turn, np.stack([y - yx[0], x - yx[1]]), 1)
    mask = (at**2).sum(0) < 1
    p, d = at[:, mask], turn @ ray_directions(16)  # |p + t d| = 1
    a, b, c = (d**2).sum(0)[:, None], d.T @ p, (p**2).sum(0) - 1
    return mask, (-b + np.sqrt(b**2 - a * c)) / a


@pytest.mark.parametrize(
    ("axes", "angle"), [((12.3, 12.3), 0.0), ((16.0, 9.0), 0.4), ((8.0, 19.0), 1.2)], ids=["circle", "oval", "long"]
)
def test_rays_end_at_the_outline(axes, angle):
    mask, expected = ellipse((60, 64), (29.3, 31.7), axes, angle)
    prob, rays = star_targets(mask.astype(np.uint8))
    assert prob.dtype == rays.dtype == np.float32
    assert rays.shape == (16, 60, 64)
    error = rays[:, mask] - expected
    assert abs(error.mean()) < 0.15
    deep = prob[mask] > 0.3  # from the rim a ray may run along the steps of the pixels
    assert np.abs(error[:, deep]).max() < 2
    assert np.sqrt((error[:, deep] ** 2).mean()) < 0.4
    assert not rays[:, ~mask].any()
    assert not prob[~mask].any()


def test_depth_is_1_in_the_middle_and_falls_to_the_outline():
    mask, _ = ellipse((41, 41), (20, 20), (15, 15))
    prob, _ = star_targets(mask.astype(np.int32))
    y, x = np.indices(mask.shape)
    expected = 1 - np.hypot(y - 20, x - 20) / 15
    assert prob[20, 20] == 1
    assert np.abs(prob - expected)[mask].max() < 0.1


def test_touching_cells_end_at_each_other():
    labels = np.zeros((20, 30), np.int64)
    labels[4:16, 3:14], labels[4:16, 14:27] = 70000, 5
    prob, rays = star_targets(labels)
    along = 4  # a quarter of the rays further than y: x
    np.testing.assert_allclose(rays[along, 10, 3:14], np.arange(10.5, 0, -1))
    np.testing.assert_allclose(rays[along + 8, 10, 14:27], np.arange(0.5, 13))
    np.testing.assert_allclose(rays[0, 4:16, 8], np.arange(11.5, 0, -1))
    np.testing.assert_allclose(rays[2, 10, 8], 5.5 * np.sqrt(2), rtol=1e-6)
    assert prob[10, 13] == prob[10, 3] < 0.2
    swapped, rays_of_swapped = star_targets(np.where(labels > 0, 70005 - labels, 0))
    assert np.array_equal(prob, swapped)
    assert np.array_equal(rays, rays_of_swapped)


def test_cells_at_the_border_are_deepest_there_and_rays_end_with_the_image():
    labels = np.zeros((20, 30), np.int32)
    labels[0:8, 5:20] = 1
    prob, rays = star_targets(labels)
    assert prob[0, 12] == 1
    np.testing.assert_allclose(rays[8, :8, 12], np.arange(0.5, 8))
    whole, rays = star_targets(np.ones((9, 9), np.int32))
    assert (whole == 1).all()
    assert rays[0, 8, 4] == 0.5


def test_flips_and_quarter_turns_turn_the_rays():
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 5, (7, 8)), np.ones((6, 6), int))
    prob, rays = star_targets(labels)
    k = np.arange(16)
    for turned, order in (
        (lambda a: np.rot90(a, axes=(-2, -1)), (k + 12) % 16),
        (lambda a: a[..., ::-1], -k % 16),
        (lambda a: a[..., ::-1, :], (8 - k) % 16),
    ):
        again, rays_again = star_targets(turned(labels))
        np.testing.assert_array_equal(again, turned(prob))
        np.testing.assert_allclose(rays_again, turned(rays)[order], atol=1e-4)


def test_polygons_of_the_middles_are_the_cells():
    truth = np.zeros((120, 160), np.int32)
    rng = np.random.default_rng(1)
    for k, (y, x) in enumerate([(25, 25), (25, 61), (30, 100), (80, 40), (82, 75), (85, 128), (4, 130)], 1):
        truth[ellipse(truth.shape, (y, x), rng.uniform(11, 17, 2), rng.uniform(0, 3))[0]] = k
    prob, rays = star_targets(truth)
    labels, _ = star_labels(prob, rays, grid=1, threshold=0.5, shape=truth.shape)
    score = SegmentationScore(iou=0.9)
    score.add(truth, labels)
    assert score.figures().f1 == 1


def test_nothing_and_what_is_refused():
    prob, rays = star_targets(np.full((5, 6), -1, np.int32), n_rays=8)
    assert prob.shape == (5, 6)
    assert rays.shape == (8, 5, 6)
    assert not prob.any()
    with pytest.raises(ValueError, match="label image"):
        star_targets(np.zeros((5, 6), np.float32))
    with pytest.raises(ValueError, match="2 rays"):
        star_targets(np.zeros((5, 6), np.int32), n_rays=2)
