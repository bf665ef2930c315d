"""Votes against known centres, against mean shift where scikit-learn is installed, and a part against the whole."""

import math
import time

import numpy as np
import pytest

from oneframe.runtime.segmentation_score import SegmentationScore
from oneframe.runtime.vote_clustering import consecutive, halo_px, vote_labels


def discs(shape, spacing=26, radius=12, noise_px=1.5, seed=0):
    """Return offsets to known centres with errors, the foreground and the true labels, numbered from top to bottom."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape).astype(np.float32)
    truth, offsets = np.zeros(shape, np.int32), rng.normal(0, 30, (2, *shape)).astype(np.float32)
    centres = [
        (r + rng.uniform(-1, 1), c + rng.uniform(-1, 1))
        for r in range(spacing // 2, shape[0] - spacing // 2, spacing)
        for c in range(spacing // 2, shape[1] - spacing // 2, spacing)
    ]
    for k, (cy, cx) in enumerate(centres, 1):
        own = np.hypot(y - cy, x - cx) < radius
        truth[own] = k
        offsets[0][own], offsets[1][own] = (cy - y)[own], (cx - x)[own]
    offsets += rng.normal(0, noise_px, offsets.shape).astype(np.float32)
    return offsets, truth > 0, truth


def test_touching_discs_come_apart_and_the_same_every_time():
    offsets, foreground, truth = discs((200, 260), spacing=23)
    labels = vote_labels(offsets, foreground, bandwidth_px=11, least_votes=45)
    assert labels.dtype == np.int32
    assert labels.max() == truth.max()
    assert np.array_equal(labels > 0, foreground)
    assert (labels == consecutive(truth))[foreground].mean() > 0.99
    assert np.array_equal(labels, vote_labels(offsets, foreground, bandwidth_px=11, least_votes=45))


def test_a_part_of_the_image_gives_the_same_cells():
    offsets, foreground, _ = discs((320, 340), noise_px=3)
    whole = vote_labels(offsets, foreground, bandwidth_px=12, least_votes=45)
    halo = halo_px(12, longest_offset_px=20)
    inner = np.s_[halo : 320 - 30, halo : 340 - 10]
    part = np.s_[: 320 - 30 + halo, : 340 - 10 + halo]
    other = vote_labels(offsets[:, part[0], part[1]], foreground[part], bandwidth_px=12, least_votes=45)
    assert np.array_equal(consecutive(other[inner]), consecutive(whole[inner]))


def test_few_votes_make_no_cell_and_their_pixels_go_to_the_nearest():
    offsets, foreground = np.zeros((2, 60, 60), np.float32), np.zeros((60, 60), bool)
    foreground[10:25, 10:25], foreground[40:43, 40:43] = True, True
    y, x = np.indices((60, 60))
    offsets[0], offsets[1] = np.where(y < 30, 17, 41) - y, np.where(x < 30, 17, 41) - x
    assert vote_labels(offsets, foreground, bandwidth_px=8, least_votes=5).max() == 2
    labels = vote_labels(offsets, foreground, bandwidth_px=8, least_votes=20)
    assert labels.max() == 1
    assert labels[41, 41] == 1
    assert not vote_labels(offsets, foreground, bandwidth_px=8, least_votes=1000).any()


def test_offsets_of_zero_find_blobs_by_themselves():
    _, foreground, truth = discs((120, 120), spacing=34)
    labels = vote_labels(np.zeros((2, 120, 120), np.float32), foreground, bandwidth_px=11, least_votes=45)
    assert labels.max() == truth.max()


def test_ends_outside_and_unknown_offsets():
    offsets, foreground = np.full((2, 30, 30), -100, np.float32), np.ones((30, 30), bool)
    offsets[:, 5, 5] = np.nan
    labels = vote_labels(offsets, foreground, bandwidth_px=5, least_votes=5)
    assert labels[5, 5] == 0
    assert (labels == 1).sum() == 899
    assert not vote_labels(offsets, np.zeros((30, 30), bool), bandwidth_px=5, least_votes=5).any()


def test_a_frame_takes_milliseconds():
    offsets, foreground, _ = discs((512, 512))
    times = []
    for _ in range(5):
        start = time.thread_time()
        vote_labels(offsets, foreground, bandwidth_px=12, least_votes=45)
        times.append(time.thread_time() - start)
    assert min(times) < 0.1  # 10 ms on a quiet machine


def test_as_good_as_mean_shift():
    cluster = pytest.importorskip("sklearn.cluster")
    offsets, foreground, truth = discs((128, 128), spacing=24, noise_px=2)
    ends = np.argwhere(foreground) + offsets[:, foreground].T
    fitted = cluster.MeanShift(bandwidth=12, cluster_all=False).fit(ends[::10])
    shifted = np.zeros(foreground.shape, np.int32)
    shifted[foreground] = fitted.predict(ends) + 1
    ours, theirs = SegmentationScore(), SegmentationScore()
    ours.add(truth, vote_labels(offsets, foreground, bandwidth_px=12, least_votes=45))
    theirs.add(truth, shifted)
    assert ours.figures().f1 >= theirs.figures().f1


def test_what_is_refused():
    good = np.zeros((2, 9, 9), np.float32), np.ones((9, 9), bool)
    with pytest.raises(ValueError, match="boolean foreground"):
        vote_labels(good[0], good[1].astype(int), bandwidth_px=5, least_votes=5)
    with pytest.raises(ValueError, match="above 0"):
        vote_labels(*good, bandwidth_px=0, least_votes=5)
    assert math.isfinite(halo_px(5, 10))
