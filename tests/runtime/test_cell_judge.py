"""True labels of simulated cells are more plausible than damaged ones; agreement is what equivariance says."""

import numpy as np
import pytest
from scipy import ndimage

from oneframe.acquisition import open_source
from oneframe.acquisition.cells import CellMovie, CellScene
from oneframe.runtime.cell_judge import agreement, plausibility
from oneframe.runtime.vote_clustering import consecutive

DIAMETER_PX = {"fluorescence": 24.0, "phase": 32.0, "bright-field": 34.0}


@pytest.fixture(scope="module", params=DIAMETER_PX)
def scene(request):
    """Image, true labels and diameter of one frame."""
    source = open_source(f"sim:cells?modality={request.param}&width=320&height=288&n=40&seed=3")
    try:
        image = source.read(5.0).pixels
        return image, source.truth().labels, DIAMETER_PX[request.param]
    finally:
        source.close()


def merged(labels):
    """Every cell together with the nearest that is still alone."""
    n = labels.max()
    centre = np.array(ndimage.center_of_mass(labels > 0, labels, range(1, n + 1)))
    name = np.arange(n + 1)
    alone = set(range(n))
    while len(alone) > 1:
        k = alone.pop()
        other = min(alone, key=lambda j: np.hypot(*(centre[j] - centre[k])))
        alone.remove(other)
        name[other + 1] = k + 1
    return consecutive(name[labels])


def split(labels):
    """Every cell cut across its middle, from top to bottom of the frame or from left to right."""
    y, x = np.indices(labels.shape)
    cy, cx = np.array(ndimage.center_of_mass(np.ones(labels.shape), labels, range(labels.max() + 1))).T
    wide = ndimage.standard_deviation(x, labels, range(labels.max() + 1)) > ndimage.standard_deviation(
        y, labels, range(labels.max() + 1)
    )
    second = np.where(wide[labels], x > cx[labels], y > cy[labels])
    return consecutive(np.where(labels > 0, 2 * labels + second, 0))


def eroded(labels):
    keep = np.zeros(labels.shape, bool)
    for k in range(1, labels.max() + 1):
        keep |= ndimage.binary_erosion(labels == k, iterations=3)
    return consecutive(np.where(keep, labels, 0))


def dilated(labels):
    distance, (y, x) = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    return np.where(distance <= 3, labels[y, x], 0).astype(np.int32)


def inverted(labels):
    """What is around the cells, in pieces."""
    outside = labels == 0
    tiles = np.add.outer(np.arange(labels.shape[0]) // 30 * 100, np.arange(labels.shape[1]) // 30) + 1
    return consecutive(np.where(outside, tiles, 0))


DAMAGES = {
    "merged": merged,
    "split": split,
    "eroded": eroded,
    "dilated": dilated,
    "shifted": lambda labels: consecutive(np.roll(labels, 12, axis=(0, 1))),
    "inverted": inverted,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_labels_score_less(scene, damage):
    image, labels, diameter_px = scene
    true = plausibility(labels, image, diameter_px=diameter_px)
    worse = plausibility(DAMAGES[damage](labels), image, diameter_px=diameter_px)
    assert true.score > worse.score + 0.02


def test_what_is_judged_is_told(scene):
    image, labels, diameter_px = scene
    judged = plausibility(labels, image, diameter_px=diameter_px)
    assert judged.bright == (diameter_px != DIAMETER_PX["phase"])
    assert judged.cell.shape == (labels.max(),)
    np.testing.assert_allclose(judged.cell, judged.outline * judged.solidity * judged.size, rtol=1e-5)
    for values in (judged.cell, judged.outline, judged.solidity, judged.size, judged.explained, judged.score):
        assert np.all((np.asarray(values) >= 0) & (np.asarray(values) <= 1))
    mirrored = plausibility(labels[::-1].copy(), image[::-1], diameter_px=diameter_px)
    assert mirrored.score == pytest.approx(judged.score, abs=0.01)
    negative = plausibility(labels, 3000.0 - 0.5 * image, diameter_px=diameter_px)
    assert negative.score == pytest.approx(judged.score, abs=1e-3)
    assert negative.bright != judged.bright


def test_the_worse_cell_is_known(scene):
    image, labels, diameter_px = scene
    moved = labels.copy()
    k = int(labels[labels.shape[0] // 4 :].max(initial=0))
    moved[labels == k] = 0
    moved[np.roll(labels == k, round(diameter_px / 2), axis=1) & (moved == 0)] = k
    before, after = (plausibility(each, image, diameter_px=diameter_px) for each in (labels, moved))
    assert after.outline[k - 1] < 0.7 * before.outline[k - 1]
    assert after.score < before.score


def test_a_known_diameter_speaks_against_cells_of_another_size(scene):
    image, labels, diameter_px = scene
    guessed, known, wrong = (
        plausibility(labels, image, diameter_px=size, diameter_known=is_known).score
        for size, is_known in ((diameter_px, False), (diameter_px, True), (2.5 * diameter_px, True))
    )
    assert wrong < 0.6 * known < known <= guessed < 1.1 * known


def test_of_rods_the_width_is_their_diameter():
    scene = CellScene.of("phase", seed=2, width=256, height=256, n=14)
    movie = CellMovie(scene)
    labels, image = movie.truth().labels, movie.expose()
    width_px = 2 * scene.rod_radius_px
    guessed, known, wrong = (
        plausibility(labels, image, diameter_px=width_px, diameter_known=False).score,
        plausibility(labels, image, diameter_px=width_px, diameter_known=True).score,
        plausibility(labels, image, diameter_px=width_px / 2.5, diameter_known=True).score,
    )
    assert wrong < 0.6 * known < known <= guessed < 1.1 * known


def test_nothing_is_not_plausible_and_everything_neither():
    image = np.random.default_rng(0).normal(100, 5, (64, 80))
    none = plausibility(np.zeros(image.shape, np.int32), image, diameter_px=12)
    assert none.score == 0
    assert len(none.cell) == 0
    assert plausibility(np.ones(image.shape, np.int32), image, diameter_px=12).score < 0.1
    flat = np.full(image.shape, 7.0)
    disc = (np.hypot(*(np.indices(image.shape) - 32)) < 8).astype(np.int32)
    assert plausibility(disc, flat, diameter_px=12).score == 0


def test_cells_of_noise_are_little_plausible():
    image = np.random.default_rng(1).normal(100, 5, (128, 128))
    labels, _ = ndimage.label(ndimage.gaussian_filter(image, 3) > 100.5)
    assert plausibility(labels.astype(np.int32), image, diameter_px=12).score < 0.5


def discs(seed=0, shape=(200, 240), diameter_px=20):
    """An image of bright discs apart from each other."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape)
    image = np.zeros(shape)
    for cy in range(15, shape[0], 30):
        for cx in range(15, shape[1], 30):
            image += np.hypot(y - cy - rng.uniform(-4, 4), x - cx - rng.uniform(-4, 4)) < diameter_px / 2
    return 500 + 300 * ndimage.gaussian_filter(image, 1.5) + rng.normal(0, 5, shape)


def half_height(image):
    """Labels of what is above the middle between dark and bright: shifts, scales and brightness carry over."""
    smooth = ndimage.gaussian_filter(image, 1.5)
    labels, _ = ndimage.label(smooth > np.percentile(smooth, [5, 95]).mean())
    return labels.astype(np.int32)


def test_an_equivariant_segmenter_agrees_with_itself():
    calls = []

    def segment(image):
        assert image.dtype == np.float32
        calls.append(image.shape)
        return half_height(image)

    image = discs()
    judged = agreement(segment, image, noise_sigma=5, rng=np.random.default_rng(0), diameter_px=20)
    assert min(judged.shift, judged.scale, judged.noise, judged.brightness) > 0.93  # outlines are whole pixels
    assert max(judged.shift, judged.scale, judged.noise, judged.brightness) <= 1
    assert judged.overall == pytest.approx(np.mean([judged.shift, judged.scale, judged.noise, judged.brightness]))
    assert calls == [image.shape] * 7


def test_a_segmenter_by_chance_does_not():
    rng = np.random.default_rng(0)

    def segment(image):
        labels, _ = ndimage.label(ndimage.gaussian_filter(rng.normal(size=image.shape), 4) > 0.03)
        return labels.astype(np.int32)

    judged = agreement(segment, discs(), noise_sigma=5, rng=np.random.default_rng(0), diameter_px=20)
    assert max(judged.shift, judged.scale, judged.noise, judged.brightness) < 0.3


def test_each_weakness_shows_in_its_own_figure():
    def judged(segment, noise_sigma=5.0):
        return agreement(segment, discs(), noise_sigma=noise_sigma, rng=np.random.default_rng(0), diameter_px=20)

    def fixed(image):
        labels, _ = ndimage.label(ndimage.gaussian_filter(image, 1.5) > 750)
        return labels.astype(np.int32)

    assert judged(fixed).brightness < 0.8 < 0.93 < min(judged(fixed).shift, judged(fixed).scale, judged(fixed).noise)
    assert judged(half_height, 300.0).noise < 0.8

    def in_place(image):
        y, x = np.indices(image.shape)
        return (y // 20 * 100 + x // 20 + 1).astype(np.int32)

    assert judged(in_place).noise == judged(in_place).brightness == 1
    assert judged(in_place).shift < 0.6
    assert judged(lambda image: np.zeros(image.shape, np.int32)).overall == 0


def test_what_does_not_fit_is_refused():
    image, labels = np.zeros((40, 50)), np.zeros((40, 50), np.int32)
    with pytest.raises(ValueError, match="expected int32 labels of the image's shape"):
        plausibility(labels[1:], image, diameter_px=10)
    with pytest.raises(ValueError, match="expected int32 labels of the image's shape"):
        plausibility(labels.astype(np.int64), image, diameter_px=10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="diameter_px above 0"):
        plausibility(labels, image, diameter_px=0)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="from segment"):
        agreement(lambda image: labels[1:], image, noise_sigma=1, rng=rng, diameter_px=10)
    with pytest.raises(ValueError, match="noise_sigma of 0 or more"):
        agreement(lambda image: labels, image, noise_sigma=-1, rng=rng, diameter_px=10)
