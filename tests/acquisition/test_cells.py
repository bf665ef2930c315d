from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from oneframe.acquisition import SourceError, open_source
from oneframe.acquisition.cells import MODALITIES, CellLife, CellMovie, CellScene, CellTruth

STILL: dict[str, Any] = {"motion_px": 0.0, "uneven": 0.0, "texture": 0.0, "brightness_cv": 0.0}
TINY: dict[str, Any] = {"width": 160, "height": 128, "diameter_px": 18.0}


def scene(modality: str, **values: Any) -> CellScene:
    """A small scene of a modality, 15 cells."""
    return CellScene.of(modality, **{**TINY, "n": 15, "seed": 2, **values})


def check(truth: CellTruth, shape: tuple[int, int]) -> None:
    """The columns say of the labels what the labels show."""
    assert truth.labels.shape == shape
    assert truth.labels.dtype == np.int32
    n = truth.cell_id.size
    np.testing.assert_array_equal(np.unique(truth.labels), np.arange(0 if (truth.labels == 0).any() else 1, n + 1))
    assert np.unique(truth.cell_id).size == n
    assert truth.parent_id.shape == truth.y_px.shape == truth.x_px.shape == truth.area_px.shape == (n,)
    index = np.arange(1, n + 1)
    np.testing.assert_array_equal(truth.area_px, ndimage.sum_labels(truth.labels > 0, truth.labels, index))
    centres = np.array(ndimage.center_of_mass(truth.labels > 0, truth.labels, index)).reshape(n, 2)
    np.testing.assert_allclose(np.column_stack([truth.y_px, truth.x_px]), centres, atol=1e-9)


def whole(truth: CellTruth) -> np.ndarray:
    """Which cells (N,) the border does not touch."""
    inner = truth.labels[1:-1, 1:-1]
    rim = np.concatenate([truth.labels[[0, -1]].ravel(), truth.labels[:, [0, -1]].ravel()])
    seen = np.isin(np.arange(1, truth.cell_id.size + 1), inner)
    return seen & ~np.isin(np.arange(1, truth.cell_id.size + 1), rim)


def film(of: CellScene, n_frames: int) -> list[CellTruth]:
    life = CellLife(of)
    seen = [life.truth()]
    for _ in range(n_frames - 1):
        life.advance()
        seen.append(life.truth())
    return seen


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_truth_agrees_with_itself_in_every_frame(modality: str) -> None:
    for truth in film(scene(modality, doubling_frames=20), 25):
        check(truth, (128, 160))
        assert truth.cell_id.min() >= 1
        assert (truth.parent_id < truth.cell_id).all()


@pytest.mark.parametrize("modality", MODALITIES)
def test_cells_touch_but_hardly_press_into_each_other(modality: str) -> None:
    life = CellLife(CellScene.of(modality, n=2 * CellScene.of(modality).n, seed=1))
    pixels = life.pixels()
    inside = np.bincount(pixels.cell[pixels.depth > 0], minlength=life.cells.size)
    own = np.bincount(pixels.cell[pixels.own], minlength=life.cells.size)
    assert 1 - own.sum() / inside.sum() < 0.02  # given to the neighbour whose outline is further away
    assert (own / inside).min() > 0.8
    labels = life.truth().labels
    beside = (labels[:, 1:] != labels[:, :-1]) & (labels[:, 1:] > 0) & (labels[:, :-1] > 0)
    assert beside.sum() > 50
    pieces = [ndimage.label(labels[box] == i + 1)[1] for i, box in enumerate(ndimage.find_objects(labels))]
    assert pieces == [1] * len(pieces)


@pytest.mark.parametrize("modality", MODALITIES)
def test_cells_have_the_number_the_size_and_the_shape_told(modality: str) -> None:
    area, length, n_seen = [], [], []
    of = CellScene.of(modality)
    for seed in range(2):
        truth = CellLife(replace(of, seed=seed, width=768, height=768, n=2 * of.n)).truth()
        n_seen.append((truth.labels > 0).sum() / of.area_px)
        for label in np.flatnonzero(whole(truth)) + 1:
            y, x = np.nonzero(truth.labels == label)
            widths = np.sqrt(np.linalg.eigvalsh(np.cov(y, x)))
            length.append(widths[1] / widths[0])
            area.append(y.size)
    # nuclei in mitosis are smaller; long cells are cut by the border more often than short ones
    assert np.mean(area) == pytest.approx(of.area_px, rel=0.08)
    assert np.mean(n_seen) == pytest.approx(2 * of.n, rel=0.12)
    # the second moments of a rod are those of a longer ellipse
    assert np.median(length) == pytest.approx(of.elongation * (1.05 if of.rods else 1), rel=0.15)


@pytest.mark.parametrize("modality", MODALITIES)
def test_number_and_area_double_in_the_time_told(modality: str) -> None:
    n_cells, area = np.zeros((2, 3)), np.zeros((2, 3))
    for seed in range(3):
        life = CellLife(CellScene.of(modality, doubling_frames=30, seed=seed))
        for at in (0, 1):
            truth = life.truth()
            n_cells[at, seed], area[at, seed] = life.cells.size, (truth.labels > 0).mean()
            for _ in range(30):
                life.advance()
    assert n_cells[1].sum() / n_cells[0].sum() == pytest.approx(2, rel=0.06)
    assert area[1].sum() / area[0].sum() == pytest.approx(2, rel=0.1)


def test_without_a_doubling_time_cells_stay_as_they_are() -> None:
    first, *_, last = film(scene("phase", motion_px=0.0), 6)
    np.testing.assert_array_equal(first.cell_id, last.cell_id)
    assert abs(last.area_px - first.area_px).max() <= 0.1 * first.area_px.max()
    assert np.hypot(last.y_px - first.y_px, last.x_px - first.x_px)[whole(first)].max() < 1


def test_a_culture_that_covers_the_glass_stops_to_grow() -> None:
    life = CellLife(scene("bright-field", doubling_frames=10))
    for _ in range(80):
        life.advance()
    n_cells = life.cells.size
    for _ in range(20):
        life.advance()
    assert life.cells.size == n_cells
    truth = life.truth()
    check(truth, (128, 160))
    assert 0.75 < (truth.labels > 0).mean() <= 1


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_division_keeps_the_area_and_names_the_parent(modality: str) -> None:
    seen = film(CellScene.of(modality, doubling_frames=40, seed=3, motion_px=0.0), 40)
    ratio, apart = [], []
    for before, after in pairwise(seen):
        born = np.setdiff1d(after.cell_id, before.cell_id)
        mothers = dict(zip(before.cell_id[whole(before)], np.flatnonzero(whole(before)), strict=True))
        for parent in np.unique(after.parent_id[np.isin(after.cell_id, born)]):
            daughters = np.flatnonzero((after.parent_id == parent) & np.isin(after.cell_id, born))
            if parent not in mothers:
                continue
            assert daughters.size == 2
            assert parent not in after.cell_id
            if not whole(after)[daughters].all():
                continue
            mother = mothers[parent]
            ratio.append(after.area_px[daughters].sum() / before.area_px[mother])
            y_px, x_px = after.y_px[daughters].mean(), after.x_px[daughters].mean()
            apart.append(np.hypot(y_px - before.y_px[mother], x_px - before.x_px[mother]))
            assert before.labels[round(y_px), round(x_px)] == mother + 1  # where the mother was
            assert 0.35 < after.area_px[daughters[0]] / after.area_px[daughters].sum() < 0.65
    assert len(ratio) > 15
    assert np.median(ratio) == pytest.approx(2 ** (1 / 40), rel=0.03)
    assert min(ratio) > 0.8
    assert max(ratio) < 1.2
    assert np.median(apart) < 2


def test_a_cell_moves_as_told_and_keeps_its_name() -> None:
    seen = film(CellScene(n=20, motion_px=0.5, seed=1), 40)
    speed, turned = [], []
    for before, at, after in zip(seen[:-2], seen[1:-1], seen[2:], strict=True):
        both = np.intersect1d(np.intersect1d(before.cell_id[whole(before)], at.cell_id), after.cell_id[whole(after)])
        y, x = (
            [getattr(t, name)[np.searchsorted(t.cell_id, both)] for t in (before, at, after)]
            for name in ("y_px", "x_px")
        )
        assert (np.diff(after.cell_id) > 0).all()
        speed += [*np.diff(y, axis=0)[0], *np.diff(x, axis=0)[0]]
        turned += [*np.diff(y, axis=0).prod(axis=0), *np.diff(x, axis=0).prod(axis=0)]
    assert np.std(speed) == pytest.approx(0.5, rel=0.15)
    assert np.mean(turned) == pytest.approx(0.8 * 0.25, rel=0.3)


def test_cells_are_cut_by_the_border_and_leave_for_good() -> None:
    seen = film(scene("fluorescence", motion_px=3.0), 60)
    assert np.mean([(~whole(truth)).sum() for truth in seen]) > 2
    ids = [set(truth.cell_id.tolist()) for truth in seen]
    came = set().union(*ids)
    assert len(came) > len(ids[0])
    # nothing jumps across: a name is in one place
    for before, after in pairwise(seen):
        stay, i, j = np.intersect1d(before.cell_id, after.cell_id, return_indices=True)
        assert stay.size
        assert np.hypot(before.y_px[i] - after.y_px[j], before.x_px[i] - after.x_px[j]).max() < 20


def test_the_light_of_cells_halves_and_the_background_stays() -> None:
    movie = CellMovie(scene("fluorescence", half_life_frames=6, **STILL))
    first, background = movie.expected(), movie.background
    for _ in range(6):
        movie.advance()
    assert movie.brightness == pytest.approx(0.5)
    np.testing.assert_allclose(movie.background, background)
    np.testing.assert_allclose((movie.expected() - background).sum(), (first - background).sum() / 2, rtol=0.01)
    lamp = CellMovie(scene("phase", half_life_frames=1))
    before = lamp.background
    lamp.advance()
    np.testing.assert_allclose(lamp.background, before / 2)


def test_a_mean_cell_sends_the_photons_told_and_some_are_dim() -> None:
    movie = CellMovie(CellScene(seed=1, brightness_cv=0.0))
    inside = movie.truth().labels > 0
    light = (movie.expected() - movie.background).sum() / inside.sum()
    assert light == pytest.approx(160, rel=0.25)  # mitosis is brighter
    light_of = CellMovie(CellScene(seed=1, n=300)).life.cells["light"]
    assert light_of.mean() == pytest.approx(1, rel=0.15)
    assert light_of.std() / light_of.mean() == pytest.approx(0.45, rel=0.3)
    assert np.quantile(light_of, 0.05) < 0.6


def test_the_focus_drifts() -> None:
    movie = CellMovie(scene("fluorescence", focus_drift_px=0.5, **STILL))
    first = movie.expected()
    for _ in range(8):
        movie.advance()
    assert movie.blur_px == pytest.approx(np.hypot(1.2, 4.0))
    last = movie.expected()
    assert abs(np.diff(last)).max() < 0.5 * abs(np.diff(first)).max()
    assert last.sum() == pytest.approx(first.sum(), rel=0.05)  # light moves, none is lost


def test_each_contrast_shows_cells_as_it_does_in_a_microscope() -> None:
    def rings(modality: str) -> list[float]:
        """Light over that of the background: deep inside, about the outline inside, about it outside, far away."""
        movie = CellMovie(CellScene.of(modality, seed=1, uneven=0.0, texture=0.0))
        inside = movie.truth().labels > 0
        depth = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
        light = movie.expected() / movie.background
        bounds = ((4, 99), (1, 3), (-3, -1), (-99, -40))
        return [float(light[(depth >= low) & (depth <= high)].mean()) for low, high in bounds]

    deep, rim, outside, far = rings("fluorescence")
    assert deep > rim > outside > far > 0.99
    deep, _, outside, far = rings("phase")
    assert deep < 0.5
    assert outside > 1.1
    assert far == pytest.approx(1, abs=0.03)
    deep, rim, outside, far = rings("bright-field")
    assert rim > 1.01 > 0.99 > outside
    assert abs(deep - 1) < 0.05
    assert far == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_picture_is_its_expectation_and_the_noise_of_the_camera(modality: str) -> None:
    of = scene(modality)
    movie = CellMovie(of)
    expected = movie.expected()
    np.testing.assert_array_equal(movie.expected(), expected)
    light = (np.stack([movie.expose() for _ in range(60)]).astype(float) - of.offset) / of.gain
    variance = of.camera.variance(expected) + 1 / 12 / of.gain**2
    deviation = (light.mean(axis=0) - expected) / np.sqrt(variance / 60)
    assert deviation.std() == pytest.approx(1, abs=0.03)
    assert abs(deviation.mean()) < 0.05
    assert (light.var(axis=0, ddof=1) / variance).mean() == pytest.approx(1, abs=0.01)


def test_no_cells_is_a_picture_of_the_background() -> None:
    movie = CellMovie(scene("fluorescence", n=0, doubling_frames=10))
    for _ in range(3):
        np.testing.assert_allclose(movie.expected(), movie.background)
        truth = movie.truth()
        check(truth, (128, 160))
        assert truth.cell_id.size == 0
        movie.advance()


def test_the_background_is_uneven_as_told_and_of_the_seed() -> None:
    background = CellMovie(CellScene(seed=1)).background
    assert abs(background / 25 - 1).max() == pytest.approx(0.2)
    assert abs(np.diff(background)).max() < 0.3
    np.testing.assert_array_equal(background, CellMovie(CellScene(seed=1, n=3)).background)
    assert abs(background - CellMovie(CellScene(seed=2)).background).max() > 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("width=16", "the frame must be at least 32 x 32 px, got 16 x 512"),
        ("modality=dic", "expected modality fluorescence, phase, bright-field, got 'dic'"),
        ("diameter_px=3", "expected diameter_px from 6 to half the shorter edge of the frame, got 3; make the frame"),
        ("n=600", "expected n cells that cover 0.8 of the frame at most, got 1.04; lower n or diameter_px"),
        ("elongation=0.5", "elongation must be from 1 \\(round\\) to 8, got 0.5"),
        ("modality=phase&elongation=1", "elongation must be 2 or more in phase contrast, got 1: .*take bright-field"),
        ("diameter_cv=0.4", "diameter_cv must be from 0 to 0.15, got 0.4: daughters would divide"),
        ("texture=2", "texture must be from 0 to 0.5, got 2"),
        ("uneven=1", "uneven must be 0 or more and below 1, got 1"),
        ("blur_px=0", "blur_px must be above 0, got 0"),
        ("doubling_frames=2", "doubling_frames must be 0 \\(no growth\\) or 5 or more, got 2: cells would divide in"),
        ("motion_px=-1", "motion_px must be a number from 0"),
        ("gain=0", "gain must be above 0 counts per electron"),
        ("seed=x", "seed must be a whole number"),
        ("doubling=2", "unknown option doubling; known are .*doubling_frames"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_in_a_sentence(options: str, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        open_source(f"sim:cells?{options}")


def test_a_scene_refuses_what_cannot_be_by_itself() -> None:
    with pytest.raises(ValueError, match="photons must be 0 or more, got -1"):
        CellScene(photons=-1.0)
    with pytest.raises(ValueError, match=r"expected modality .*, got 'dic'"):
        CellScene.of("dic")
