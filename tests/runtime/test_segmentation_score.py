"""F1 and SEG against loops over all pairs of cells, and cases worked out by hand."""

import numpy as np
import pytest

from oneframe.runtime.segmentation_score import SegmentationScore


def random_labels(rng, n, gaps=False):
    labels = np.zeros((40, 50), np.int32)
    for k in range(1, n + 1):
        y, x = rng.integers(0, 34), rng.integers(0, 44)
        labels[y : y + rng.integers(3, 12), x : x + rng.integers(3, 12)] = 7 * k if gaps else k
    return labels


def by_hand(truth, labels, iou, strict):
    """Return matches (true, found) and SEG; one loop over all pairs."""
    matches, seg = set(), []
    for t in np.unique(truth[truth > 0]):
        best = 0.0
        for f in np.unique(labels[labels > 0]):
            both, either = ((truth == t) & (labels == f)).sum(), ((truth == t) | (labels == f)).sum()
            if both / either > iou or (not strict and both / either == iou):
                matches.add((int(t), int(f)))
            if both > 0.5 * (truth == t).sum():
                best = both / either
        seg.append(best)
    return matches, seg


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("strict", [True, False])
def test_like_loops_over_all_pairs(seed, strict):
    rng = np.random.default_rng(seed)
    truth = random_labels(rng, 12, gaps=seed % 2 == 0)
    labels = np.roll(truth, rng.integers(-2, 3, 2), (0, 1)) if seed % 3 else random_labels(rng, 12)
    score = SegmentationScore(strict=strict)
    score.add(truth, labels)
    matches, seg = by_hand(truth, labels, 0.5, strict)
    found = score.matches()[0]
    assert set(zip(found.true_label.tolist(), found.found_label.tolist(), strict=True)) == matches
    figures = score.figures()
    assert figures.seg == pytest.approx(np.mean(seg))
    assert figures.f1 == pytest.approx(2 * len(matches) / (figures.n_true + figures.n_found))


def test_frames_add_up():
    one, two = np.zeros((10, 10), np.uint16), np.zeros((10, 10), np.uint16)
    one[:4, :4], two[:4, :4], two[6:, 6:] = 1, 1, 9
    score = SegmentationScore()
    score.add(one, one)  # all right
    score.add(two, one)  # one missed
    figures = score.figures()
    assert (figures.n_true, figures.n_found, figures.n_matched) == (3, 2, 2)
    assert (figures.precision, figures.recall, figures.f1) == (1, pytest.approx(2 / 3), pytest.approx(0.8))
    assert figures.seg == pytest.approx(2 / 3)
    assert figures.frame_f1 == pytest.approx((1 + 2 / 3) / 2)
    assert figures.frame_seg == pytest.approx(0.75)
    assert figures.matched_iou == 1


def test_at_exactly_one_half_only_the_paper_counts_and_each_cell_once():
    truth, halves = np.ones((1, 8), np.int32), np.array([[1, 1, 1, 1, 2, 2, 2, 2]], np.int32)
    for strict, n_matched in ((True, 0), (False, 1)):
        score = SegmentationScore(strict=strict)
        score.add(truth, halves)
        assert score.figures().n_matched == n_matched


def test_nothing_found_where_nothing_is():
    score = SegmentationScore()
    assert np.isnan(score.figures().frame_f1)
    score.add(np.zeros((5, 5), int), np.zeros((5, 5), int))
    assert score.figures().f1 == 1
    assert np.isnan(score.figures().seg)
    score.add(np.zeros((5, 5), int), np.ones((5, 5), int))
    assert score.figures().f1 == 0


def test_labels_may_be_large():
    truth = np.zeros((20, 20), np.int64)
    truth[3:9, 3:9] = 2**40
    score = SegmentationScore()
    score.add(truth, (truth > 0).astype(np.uint8))
    assert score.matches()[0].true_label.tolist() == [2**40]


def test_what_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        SegmentationScore().add(np.zeros((5, 5), int), np.zeros((5, 6), int))
    with pytest.raises(ValueError, match="integer"):
        SegmentationScore().add(np.zeros((5, 5)), np.zeros((5, 5), int))
    with pytest.raises(ValueError, match="iou must be"):
        SegmentationScore(0)
