from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs oneframe[train]")

from oneframe.trainer.cell_crops import CellComposer, cores, offsets_to_centres
from oneframe.trainer.cellulus_network import CellulusSettings

Y, X = np.mgrid[:160, :160]
SMALL = CellulusSettings(crop_px=64, margin_px=16)


def disc(y: float, x: float, radius: float = 10) -> np.ndarray:
    return (Y - y) ** 2 + (X - x) ** 2 < radius**2


def _frame() -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Return image, relief, sign and labels: four discs that stand alone, and two that were taken for one."""
    labels = np.zeros(Y.shape, np.int32)
    for label, (y, x) in enumerate([(30, 30), (30, 90), (90, 30), (130, 60)], 1):
        labels[disc(y, x)] = label
    labels[disc(100, 110) | disc(100, 127)] = 5
    relief = np.where(labels > 0, 100, 0).astype(np.float32)
    return relief + 50, relief, 1.0, labels


def composer(settings: CellulusSettings = SMALL) -> CellComposer:
    return CellComposer(*_frame(), 20.0, settings)


def test_what_is_not_one_cell_is_neither_pasted_nor_trusted():
    made = composer()
    assert made.trusted.tolist() == [True, True, True, True, True, False]
    assert len(made.cutouts) == 4


def test_offsets_end_at_the_centroid():
    labels = np.zeros(Y.shape, np.int32)
    labels[disc(40, 60)] = 3
    offsets = offsets_to_centres(labels)
    ends = np.stack([Y, X]) + offsets
    assert ends[:, labels == 3] == pytest.approx(np.array([[40], [60]]) * np.ones((labels == 3).sum()), abs=1e-3)
    assert not offsets[:, labels == 0].any()


def test_cores_lie_deeper_than_the_rim_but_a_frame_ends_no_cell():
    labels = np.zeros(Y.shape, np.int32)
    labels[disc(60, 60, 20)] = 1
    labels[:10, 100:] = 2
    labels[:10, 130:] = 3
    found = cores(labels, 2.5)
    np.testing.assert_array_equal(found & (labels == 1), disc(60, 60, 17.5) | (disc(60, 60, 18) & found))
    assert (found & (labels == 1)).sum() == pytest.approx(np.pi * 17.5**2, rel=0.05)
    assert found[:7, 110].all()
    assert not found[8, 110]
    assert not found[5, 128:132].any()
    np.testing.assert_array_equal(cores(labels, 0.0), labels > 0)


def test_packed_cells_are_learned_as_cores():
    rim = CellComposer(*_frame(), 20.0, replace(SMALL, pasted_share=0.0), rim_px=2.0)
    whole = CellComposer(*_frame(), 20.0, replace(SMALL, pasted_share=0.0))
    cored, plain = (made.batch(8, np.random.default_rng(0)).labelled for made in (rim, whole))
    assert not (cored & ~plain).any()
    assert 0.4 < cored.sum() / plain.sum() < 0.8


def test_pasted_cells_are_bright_where_they_are_labelled():
    made = composer(replace(SMALL, pasted_share=1.0, most_pasted=6, noise=0.0, blur_px=0.0, brightness_spread=0.0))
    batch = made.batch(8, np.random.default_rng(0))
    inner = batch.images[:, 0, 16:-16, 16:-16]
    assert inner[batch.labelled].mean() > 120
    assert inner[~batch.labelled].mean() < 70


def test_crowds_grow_denser_with_what_is_pasted():
    share = {}
    for most in (1, 8):
        made = composer(replace(SMALL, pasted_share=1.0, most_pasted=most))
        share[most] = float(made.batch(24, np.random.default_rng(0)).labelled.float().mean())
    assert share[8] > 1.3 * share[1]


def test_the_same_seed_gives_the_same_crops():
    first, second = (composer().batch(3, np.random.default_rng(7)) for _ in range(2))
    assert (first.images == second.images).all()
    assert (first.offsets == second.offsets).all()


def test_a_frame_smaller_than_a_crop_is_shown_whole():
    labels = np.zeros((40, 52), np.int32)
    labels[10:24, 10:24] = 1
    relief = np.where(labels > 0, 100, 0).astype(np.float32)
    batch = CellComposer(relief, relief, 1.0, labels, 20.0, CellulusSettings()).batch(2, np.random.default_rng(0))
    assert batch.labelled.shape == (2, 40, 40)


def test_annotated_cells_are_shown_whatever_their_shape():
    labels = np.zeros(Y.shape, np.int32)
    labels[disc(40, 40) | disc(40, 57)] = 1  # nobody would take it for one cell
    labels[disc(120, 120)] = 2
    relief = np.where(labels > 0, 100, 0).astype(np.float32)
    known = np.ones(Y.shape, bool)
    known[:, 90:] = False

    def made(pseudo_weight, **given):
        settings = replace(SMALL, pseudo_weight=pseudo_weight, pasted_share=1.0, sizes=(1.0, 1.0))
        return CellComposer(relief, relief, 1.0, labels, 20.0, settings, n_given=1, **given)

    assert made(0.0).trusted.tolist() == [True, True, True]
    assert [cutout.mask.sum() for cutout in made(0.0).given] == [(labels == 1).sum()]
    rng = np.random.default_rng(0)
    area = {a: [int(one.sum()) for one in made(a).batch(16, rng).labelled] for a in (0.0, 1.0)}
    assert np.median(area[0.0]) > 1.2 * np.median(area[1.0])
    half = made(0.0, known=known)
    assert half.trusted.tolist() == [True, True, True, False]
    batch = half.batch(16, rng)
    assert 0.1 < batch.known.float().mean() < 0.95
