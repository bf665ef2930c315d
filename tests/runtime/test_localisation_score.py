"""Matching against brute force, and every figure on cases small enough to work out by hand."""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pytest

from oneframe.runtime.detections import Detections
from oneframe.runtime.localisation_score import LocalisationScore, assign


@dataclass
class Truth:
    y_px: np.ndarray
    x_px: np.ndarray
    z_um: np.ndarray | None = None


def truth(*yx, z_um=None):
    table = np.array(yx, float).reshape(-1, 2)
    return Truth(table[:, 0], table[:, 1], None if z_um is None else np.array(z_um, float))


def found(*yx, **columns):
    table = np.array(yx, np.float32).reshape(-1, 2)
    columns.setdefault("score", np.ones(len(table)))
    return Detections(table[:, 0], table[:, 1], **{k: np.asarray(v, np.float32) for k, v in columns.items()})


def score_of(*frames, pixel_um=0.1, threshold=0.0, **gates):
    score = LocalisationScore(pixel_um, **gates)
    for t, f in frames:
        score.add(t, f)
    return score.at(threshold)


def best_by_hand(cost):
    """Return (number of pairs, least sum of cost) over all one-to-one pairings; infinite: not allowed."""
    n, m = cost.shape
    if n > m:
        cost, n, m = cost.T, m, n
    best = (0, 0.0)
    for columns in permutations(range(m), n):
        chosen = cost[np.arange(n), columns]
        chosen = chosen[np.isfinite(chosen)]
        if (-len(chosen), chosen.sum()) < (-best[0], best[1]):
            best = (len(chosen), float(chosen.sum()))
    return best


@pytest.mark.parametrize("seed", range(60))
def test_assignment_is_the_best_of_all_pairings(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.uniform(0, 5, (rng.integers(1, 6), 2)) for _ in range(2))
    squared = ((a[:, None] - b) ** 2).sum(-1)
    rows, columns = np.nonzero(squared <= 4)
    chosen = assign(rows, columns, squared[rows, columns])
    assert len(set(rows[chosen])) == len(set(columns[chosen])) == len(chosen)
    count, cost = best_by_hand(np.where(squared <= 4, squared, np.inf))
    assert len(chosen) == count
    assert squared[rows[chosen], columns[chosen]].sum() == pytest.approx(cost)


def test_a_crowd_is_assigned_as_by_the_dense_method():
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(7)
    a = rng.uniform(0, 40, (150, 2))
    b = a[:120] + rng.normal(0, 0.8, (120, 2))
    squared = ((a[:, None] - b) ** 2).sum(-1)
    rows, columns = np.nonzero(squared <= 2.5**2)
    chosen = assign(rows, columns, squared[rows, columns])
    dense = np.where(squared <= 2.5**2, squared, 1e6)
    i, j = linear_sum_assignment(dense)
    allowed = dense[i, j] < 1e6
    assert len(chosen) == allowed.sum()
    assert squared[rows[chosen], columns[chosen]].sum() == pytest.approx(dense[i, j][allowed].sum())


def test_exact_hits_are_matches():
    """A distance of nought is an edge like any other."""
    figures = score_of((truth((3, 3), (4, 3)), found((3, 3), (4, 3))))
    assert (figures.n_matched, figures.rmse_nm) == (2, 0)


def test_units_and_axes_of_the_errors():
    # 0.3 px in y, 0.4 px in x: 50 nm laterally at 100 nm a pixel
    figures = score_of((truth((10, 10)), found((10.3, 9.6))))
    assert figures.rmse_y_px == pytest.approx(0.3, abs=1e-6)
    assert figures.rmse_x_px == pytest.approx(0.4, abs=1e-6)
    assert figures.rmse_nm == pytest.approx(50, abs=1e-4)
    assert figures.rmse_axis_nm == pytest.approx(50 / np.sqrt(2), abs=1e-4)
    assert figures.efficiency == pytest.approx(0.5, abs=1e-6)
    assert score_of((truth((10, 10)), found((10.3, 9.6))), pixel_um=0.16).rmse_nm == pytest.approx(80, abs=1e-4)


def test_counts_make_the_index():
    # two true, three found, one of them right
    figures = score_of((truth((5, 5), (20, 20)), found((5, 5.5), (30, 5), (5, 30))))
    assert (figures.precision, figures.recall, figures.jaccard) == (1 / 3, 1 / 2, 1 / 4)
    assert figures.efficiency == pytest.approx(1 - np.hypot(0.75, 0.5))


@pytest.mark.parametrize(("offset_px", "n_matched"), [(2.5, 1), (2.51, 0)])
def test_the_lateral_gate_is_a_quarter_micrometre(offset_px, n_matched):
    assert score_of((truth((10, 10)), found((10, 10 + offset_px)))).n_matched == n_matched
    assert score_of((truth((10, 10)), found((10, 10 + offset_px))), gate_px=3).n_matched == 1
    assert score_of((truth((10, 10)), found((10, 10 + offset_px))), pixel_um=0.05).n_matched == 1


@pytest.mark.parametrize(("dz_um", "n_matched"), [(0.49, 1), (-0.49, 1), (0.51, 0)])
def test_the_axial_gate_is_half_a_micrometre(dz_um, n_matched):
    figures = score_of((truth((10, 10), z_um=[0.1]), found((10, 10), z_um=[0.1 + dz_um])))
    assert figures.n_matched == n_matched
    if n_matched:
        assert figures.rmse_z_um == pytest.approx(0.49, abs=1e-6)
        assert figures.efficiency_z == pytest.approx(1 - 0.005 * 490, abs=1e-4)
        assert figures.efficiency_3d == pytest.approx((1 + figures.efficiency_z) / 2)


def test_z_that_only_one_side_knows_gates_nothing():
    for figures in (
        score_of((truth((10, 10), z_um=[5.0]), found((10, 10)))),
        score_of((truth((10, 10)), found((10, 10), z_um=[5.0]))),
    ):
        assert figures.n_matched == 1
        assert np.isnan(figures.rmse_z_um)


def test_where_there_is_nothing():
    nothing = score_of((truth(), found()))
    assert (nothing.jaccard, nothing.precision, nothing.recall, nothing.efficiency) == (1, 1, 1, 1)
    assert np.isnan(nothing.rmse_nm)
    missed, invented = score_of((truth((1, 1)), found())), score_of((truth(), found((1, 1))))
    assert missed.jaccard == invented.jaccard == 0
    assert missed.efficiency == invented.efficiency == pytest.approx(1 - np.hypot(1, 2.5))
    assert np.isnan(LocalisationScore(0.1).at().frame_jaccard)


def test_emitters_that_do_not_count_are_neither_missed_nor_wrongly_found():
    score = LocalisationScore(0.1)
    score.add(
        truth((5, 5), (15, 15), (25, 25)),
        found((5, 5.1), (15, 15.2), (40, 40)),
        counts=np.array([True, False, False]),  # the second is found, the third is not: both leave no trace
    )
    figures = score.at()
    assert (figures.n_true, figures.n_found, figures.n_matched) == (1, 2, 1)
    assert figures.rmse_px == pytest.approx(0.1, abs=1e-6)


def test_pooled_and_per_frame_figures_differ_as_they_should():
    full = (truth(*[(10 * k, 10 * k) for k in range(9)]), found(*[(10 * k, 10 * k + 0.1) for k in range(9)]))
    missed = (truth((5, 5)), found())
    figures = score_of(full, missed)
    assert figures.jaccard == 0.9
    assert figures.frame_jaccard == 0.5
    assert figures.frame_rmse_px == pytest.approx(0.1, abs=1e-5)  # a frame without matches has none to average
    assert figures.frame_efficiency == pytest.approx((1 - 0.1 + 1 - np.hypot(1, 2.5)) / 2, abs=1e-5)


def test_thresholds_match_anew():
    """The better localisation of two hides when the threshold passes it; the other one takes its emitter."""
    score = LocalisationScore(0.1)
    score.add(truth((10, 10)), found((10, 10.1), (10, 11), score=[0.4, 0.8]))
    low, high, none = score.scan((0.3, 0.5, 0.9))
    assert (low.n_found, low.n_matched, low.rmse_px) == (2, 1, pytest.approx(0.1, abs=1e-5))
    assert (high.n_found, high.n_matched, high.rmse_px) == (1, 1, pytest.approx(1.0, abs=1e-5))
    assert (none.n_found, none.jaccard) == (0, 0)
    assert [f.expected_count for f in (low, high, none)] == pytest.approx([1.2] * 3)
    assert max((low, high, none), key=lambda f: f.jaccard).threshold == 0.5
    (true_index,), (found_index,) = score.matches(0.5)[0]
    assert (true_index, found_index) == (0, 1)


def test_honest_uncertainty_covers_two_thirds():
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(np.arange(40.0), np.arange(40.0)), -1).reshape(-1, 2) * 10
    sigma = rng.uniform(0.1, 0.3, (len(grid), 3))
    error = rng.normal(0, 1, sigma.shape) * sigma
    columns = {"sigma_y_px": sigma[:, 0], "sigma_x_px": sigma[:, 1], "sigma_z_um": sigma[:, 2], "z_um": error[:, 2]}
    true = truth(*grid, z_um=np.zeros(len(grid)))
    figures = score_of((true, found(*(grid + error[:, :2]), **columns)), gate_z_um=5)
    assert figures.within_sigma == pytest.approx(0.683, abs=0.03)
    assert figures.within_sigma_z == pytest.approx(0.683, abs=0.04)
    assert np.isnan(score_of((true, found(*grid))).within_sigma)


def test_sigmas_are_scaled_to_what_the_errors_are():
    rng = np.random.default_rng(4)
    grid = np.stack(np.meshgrid(np.arange(40.0), np.arange(40.0)), -1).reshape(-1, 2) * 10
    error = rng.normal(0, 0.2, (len(grid), 3))
    claimed = np.full(len(grid), 0.1)  # half of the truth across the axis, a third along it
    score = LocalisationScore(0.1, gate_z_um=5)
    columns = {"sigma_y_px": claimed, "sigma_x_px": claimed, "sigma_z_um": claimed, "z_um": 1.5 * error[:, 2]}
    score.add(truth(*grid, z_um=np.zeros(len(grid))), found(*(grid + error[:, :2]), **columns))
    lateral, axial = score.sigma_scales()
    assert lateral == pytest.approx(2, rel=0.05)
    assert axial == pytest.approx(3, rel=0.06)
    assert LocalisationScore(0.1).sigma_scales() == (1, 1)


@pytest.mark.parametrize(
    "wrong", [{"pixel_um": 0}, {"pixel_um": 0.1, "gate_px": 0}, {"pixel_um": 0.1, "gate_z_um": -1}]
)
def test_sizes_above_nought_are_asked_for(wrong):
    with pytest.raises(ValueError, match="must be above 0"):
        LocalisationScore(**wrong)
