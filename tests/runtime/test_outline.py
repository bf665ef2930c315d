import itertools

import numpy as np
import pytest

from oneframe.acquisition import open_source
from oneframe.runtime.outline import CELL_RGB, CellColours, rims

DENSE = "sim:cells?seed=9&n=330&doubling_frames=40"
RODS = "sim:cells?modality=phase&seed=2&n=90&doubling_frames=40"

PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
TRITANOPIA = [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
"""Machado et al., IEEE TVCG 15, 1291 (2009), severity 1; for linear RGB."""


def film(url, n_frames):
    source = open_source(url)
    for _ in range(n_frames):
        source.read(5.0)
        yield source.truth()


def touching(labels) -> set[tuple[int, int]]:
    """Return the rows of cells that share an edge of a pixel."""
    pairs = set()
    for one, other in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        met = (one != other) & (one > 0) & (other > 0)
        pairs |= set(zip((one[met] - 1).tolist(), (other[met] - 1).tolist(), strict=True))
    return {(min(pair), max(pair)) for pair in pairs}


@pytest.mark.parametrize("url", [DENSE, RODS])
@pytest.mark.parametrize("width_px", [1, 2])
def test_a_rim_is_the_border_pixels_of_each_cell_and_nothing_else(url, width_px):
    labels = next(film(url, 1)).labels
    labels = labels.repeat(width_px, axis=0).repeat(width_px, axis=1)  # no part is thinner than the rim
    rim = rims(labels, width_px)
    assert not rim[labels == 0].any()
    padded = np.pad(labels, width_px, mode="edge")
    height, width = labels.shape
    near_another = np.zeros(labels.shape, bool)
    for step, (dy, dx) in itertools.product(range(1, width_px + 1), ((0, 1), (1, 0), (0, -1), (-1, 0))):
        row, column = width_px + step * dy, width_px + step * dx
        near_another |= padded[row : row + height, column : column + width] != labels
    np.testing.assert_array_equal(rim, near_another & (labels > 0))
    assert set(np.unique(labels[rim])) == set(range(1, labels.max() + 1))


def test_two_cells_that_touch_have_a_rim_each():
    labels = np.zeros((20, 30), np.int32)
    labels[5:15, 5:15], labels[5:15, 15:25] = 1, 2
    rim = rims(labels)
    assert rim[5:15, 14:16].all()
    assert not rim[6:14, 6:14].any()
    assert not rim[6:14, 16:24].any()
    assert not rims(np.zeros((4, 5), np.int32), 9).any()


@pytest.mark.parametrize("url", [DENSE, RODS])
def test_neighbours_differ_and_a_track_keeps_its_colour(url):
    colours, seen = CellColours(), {}
    n_touching = n_alike = 0
    for truth in film(url, 8):
        colour = colours.of(truth.labels, truth.cell_id, truth.parent_id)
        for track, chosen in zip(truth.cell_id.tolist(), colour.tolist(), strict=True):
            assert seen.setdefault(track, chosen) == chosen
        pairs = touching(truth.labels)
        alike = sum(colour[a] == colour[b] for a, b in pairs)
        assert seen.keys() > set(truth.cell_id.tolist()) or alike == 0  # in the first frame all can be chosen
        n_touching, n_alike = n_touching + len(pairs), n_alike + alike
    assert n_touching > 400
    assert n_alike < 0.02 * n_touching  # cells move, and keep their colours
    assert colour.max() < len(CELL_RGB)
    assert np.ptp(np.bincount(colour, minlength=len(CELL_RGB))) < 0.2 * len(colour)  # all colours are in use


def test_daughters_look_different_from_their_mother_and_each_other():
    before, after = np.zeros((30, 60), np.int32), np.zeros((30, 60), np.int32)
    before[10:20, 10:30] = 1
    after[10:20, 10:20], after[10:20, 20:30] = 1, 2
    for mother in range(1, 20):
        colours = CellColours()
        old = colours.of(before, np.array([mother]))
        new = colours.of(after, np.array([mother + 1, mother + 2]), np.array([mother, mother]))
        assert len({*old.tolist(), *new.tolist()}) == 3


def test_a_frame_without_cells_and_a_track_that_comes_back():
    colours, labels = CellColours(), np.ones((9, 9), np.int32)
    first = colours.of(labels, np.array([5]))
    assert colours.of(np.zeros((9, 9), np.int32), np.empty(0, np.int64)).shape == (0,)
    assert colours.of(labels, np.array([5])) == first


def test_what_was_seen_long_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr("oneframe.runtime.outline._FORGET_ABOVE", 50)
    colours, labels = CellColours(), np.ones((9, 9), np.int32)
    for track in range(1000):
        colours.of(labels, np.array([track]))
    assert len(colours._colour) <= 52


def oklab(rgb, vision) -> np.ndarray:
    """Return colours (N, 3) of 8 bits in OKLab, as somebody with this vision sees them."""
    encoded = np.asarray(rgb) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    linear = (linear @ np.array(vision).T).clip(0, 1)
    cones = np.array([[0.41222, 0.53633, 0.05145], [0.2119, 0.6807, 0.1074], [0.0883, 0.28172, 0.62998]])
    axes = np.array([[0.21045, 0.79362, -0.00407], [1.978, -2.42859, 0.45059], [0.0259, 0.78277, -0.80868]])
    return np.cbrt(linear @ cones.T) @ axes.T


@pytest.mark.parametrize("vision", [np.eye(3), PROTANOPIA, DEUTERANOPIA, TRITANOPIA])
def test_colours_differ_for_every_vision_from_one_another_and_from_grey(vision):
    seen = oklab(CELL_RGB, vision)
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[~np.eye(len(seen), dtype=bool)]
    assert apart.min() > 0.09  # a just noticeable difference is 0.02
    assert np.hypot(seen[:, 1], seen[:, 2]).min() > 0.05
    assert oklab(CELL_RGB, np.eye(3))[:, 0].min() > 0.6  # on black
