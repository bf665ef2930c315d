"""Spreads against all passes kept, foregrounds of known stability, and noise that is no cell."""

import numpy as np
import pytest
from scipy import ndimage

from oneframe.runtime.noise_passes import noise_foreground, noise_passes
from oneframe.runtime.otsu import otsu_splits, otsu_threshold


def filters(image):
    """An embedding without any learning: two layers of random filters."""
    rng = np.random.default_rng(7)
    hidden = [np.maximum(ndimage.convolve(image, rng.normal(0, 0.3, (7, 7))), 0) for _ in range(4)]
    return np.stack([sum(rng.normal() * ndimage.uniform_filter(each, 5) for each in hidden) for _ in range(2)])


def steady_in_cells(cells):
    """An embedding that follows the pixels around, ten times less within cells."""

    def embed(image):
        local = ndimage.gaussian_filter(image, 2) * np.where(cells, 1, 10)
        return np.stack([local, -local]).astype(np.float32)

    return embed


def cells_of(shape=(96, 120)):
    y, x = np.indices(shape)
    return np.hypot(y % 40 - 20, x % 40 - 20) < 11


def test_mean_and_spread_are_those_of_all_passes_together():
    image = np.random.default_rng(0).random((30, 40)).astype(np.float32)
    seen = []

    def embed(disturbed):
        seen.append(disturbed.copy())
        return filters(disturbed)

    before = image.copy()
    mean, spread = noise_passes(embed, image, rng=np.random.default_rng(1), n_passes=5)
    assert np.array_equal(image, before)
    assert (mean.shape, spread.shape) == ((2, 30, 40), (30, 40))
    assert mean.dtype == spread.dtype == np.float32
    every = np.stack([filters(each) for each in seen])
    np.testing.assert_allclose(mean, every.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(spread, every.std(0).sum(0), rtol=1e-5, atol=1e-6)
    changed = np.stack([each != image for each in seen])
    assert len(seen) == 10
    assert {*np.unique(np.stack(seen)[:5][changed[:5]])} == {0.5}
    assert {*np.unique(np.stack(seen)[5:][changed[5:]])} == {1.0}
    assert changed.mean() == pytest.approx(0.01, rel=0.4)


def test_thirty_two_passes_and_the_generator_alone_decides():
    calls = []

    def embed(disturbed):
        calls.append(1)
        return np.stack([disturbed, disturbed])

    image = np.zeros((20, 20), np.float32)
    first, again, other = (noise_passes(embed, image, rng=np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert len(calls) == 3 * 32
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_a_grain_is_disturbed_as_one():
    seen = []

    def embed(disturbed):
        seen.append(disturbed.copy())
        return np.stack([disturbed, disturbed])

    noise_passes(embed, np.zeros((31, 50), np.float32), rng=np.random.default_rng(0), n_passes=8, share=0.1, grain_px=3)
    changed = np.stack(seen) > 0
    whole = changed[:, :30, :48].reshape(-1, 10, 3, 16, 3)
    assert np.array_equal(whole.any((2, 4)), whole.all((2, 4)))
    assert changed.mean() == pytest.approx(0.1, rel=0.2)


def test_large_offsets_hide_no_small_spread():
    def embed(disturbed):
        return np.stack([1e4 + 1e-3 * disturbed.astype(np.float64)] * 2)

    _, spread = noise_passes(embed, np.zeros((50, 50), np.float32), rng=np.random.default_rng(0), share=0.5)
    assert np.median(spread) == pytest.approx(2 * 1e-3 * np.sqrt(2.5 / 8 - (1.5 / 4) ** 2), rel=0.15)


def test_what_stays_steady_is_the_foreground():
    cells = cells_of()
    image = np.zeros(cells.shape, np.float32)
    _, spread = noise_passes(steady_in_cells(cells), image, rng=np.random.default_rng(0), share=0.05)
    found = noise_foreground(spread)
    assert found.two_kinds
    assert found.contrast > 5
    assert (found.pixels & cells).sum() / (found.pixels | cells).sum() > 0.95


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("picture", ["noise", "zeros", "white"])
def test_frames_without_cells_have_no_foreground(picture, seed):
    rng = np.random.default_rng(seed)
    image = {"noise": rng.normal(0.3, 0.3, (96, 120)), "zeros": np.zeros((96, 120)), "white": np.full((96, 120), 50.0)}
    _, spread = noise_passes(filters, image[picture].astype(np.float32), rng=rng, n_passes=8)
    found = noise_foreground(spread)
    assert not found.two_kinds
    assert not found.pixels.any()
    always = noise_foreground(spread, least_separability=0, least_contrast=0)
    assert 0.2 < always.pixels.mean() < 0.9  # what is published splits it nevertheless


def test_spreads_that_are_all_equal_are_one_kind():
    assert not noise_foreground(np.zeros((9, 9), np.float32)).pixels.any()
    assert noise_foreground(np.full((9, 9), 3, np.float32)).separability == 0


def test_otsu_of_scikit_image():
    filters_ = pytest.importorskip("skimage.filters")
    for seed in range(6):
        rng = np.random.default_rng(seed)
        share = rng.uniform(0.1, 0.6)
        values = np.where(rng.random((80, 90)) < share, rng.normal(4, 1, (80, 90)), rng.normal(0, 1, (80, 90)))
        assert otsu_threshold(values) == pytest.approx(filters_.threshold_otsu(values), abs=np.ptp(values) / 256)


def test_known_splits():
    values = np.array([0.0, 0, 0, 10, 10, 10])
    assert 0 < otsu_threshold(values) <= 10
    assert otsu_splits(values, np.zeros(6, int), 1).separability[0] == pytest.approx(1)
    assert otsu_threshold(np.full(5, 3.0)) == 3
    assert np.isnan(otsu_threshold(np.empty(0)))
    assert otsu_threshold(np.array([0, 0, 10, 10, np.nan, np.inf])) == otsu_threshold(np.array([0, 0, 10, 10]))


def test_separability_of_one_gaussian_and_of_an_even_spread():
    rng = np.random.default_rng(0)
    both = otsu_splits(
        np.concatenate([rng.normal(0, 3, 40_000), rng.random(40_000)]), np.repeat([0, 1], 40_000), 2
    ).separability
    np.testing.assert_allclose(both, [2 / np.pi, 0.75], atol=0.01)


def test_sets_are_split_each_on_its_own():
    rng = np.random.default_rng(0)
    sets = [rng.normal(k, 1 + k, 50 + 30 * k) for k in range(4)]
    together = otsu_splits(np.concatenate(sets), np.repeat(range(4), [len(each) for each in sets]), 5)
    np.testing.assert_allclose(together.threshold[:4], [otsu_threshold(each) for each in sets])


def test_what_is_refused():
    image = np.zeros((9, 9), np.float32)
    with pytest.raises(ValueError, match="share from 0 to 1"):
        noise_passes(filters, image, rng=np.random.default_rng(0), share=2)
    with pytest.raises(ValueError, match="from embed"):
        noise_passes(lambda each: each, image, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="finite spread"):
        noise_foreground(np.full((9, 9), np.nan, np.float32))
