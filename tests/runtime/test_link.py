"""Linking against known motion: identities, gaps, jumps, and the optimum of the assignment."""

import itertools
import subprocess
import sys
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from oneframe.runtime.detections import Detections
from oneframe.runtime.link import FrameLinker, LinkSettings, assign


def found(points) -> Detections:
    """Detections at (N, 2) positions."""
    y_px, x_px = np.asarray(points, np.float32).reshape(-1, 2).T.copy()
    return Detections(y_px, x_px, np.ones(len(y_px), np.float32))


def linker(max_distance_px: float = 10.0, **more) -> FrameLinker:
    return FrameLinker(LinkSettings(max_distance_px, **more))


def link_all(frames: Iterable, linker: FrameLinker, indices: Iterable[int] | None = None) -> list[list[int]]:
    """Track ids per frame."""
    indices = itertools.count() if indices is None else indices
    return [linker.link(found(points), i).track_id.tolist() for points, i in zip(frames, indices, strict=False)]


def brownian(rng, *, n_frames: int, side: int, spacing_px: float, step_px: float):
    """(n_frames, side^2, 2) positions of particles that start on a grid."""
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2) * spacing_px
    return grid + np.cumsum(rng.normal(0, step_px, (n_frames, side * side, 2)), axis=0)


def nearest_px(points) -> float:
    """Smallest distance between two of the points."""
    distance_px = np.linalg.norm(points[:, None] - points, axis=-1)
    return float(distance_px[~np.eye(len(points), dtype=bool)].min())


def same_partition(a: list[list[int]], b: list[list[int]]) -> bool:
    """Whether two sets of track ids differ by their names only."""
    pairs = set(zip(itertools.chain(*a), itertools.chain(*b), strict=True))
    return len(pairs) == len({i for i, _ in pairs}) == len({j for _, j in pairs})


def test_ids_start_at_0_and_only_grow():
    ids = link_all([[(0, 0), (50, 50)], [(0, 1)], [(0, 1), (90, 90)]], linker())
    assert ids == [[0, 1], [0], [0, 2]]


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.3])
@pytest.mark.parametrize("speed_px", [2.0, 4.0, 6.0])
def test_two_particles_that_cross_in_straight_lines_keep_their_identities(angle, speed_px):
    t = np.arange(-20, 21)[:, None] * speed_px
    ahead, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    one, other = t * (ahead + 0.3 * across), t * (ahead - 0.3 * across) + 0.1 * across
    frames = np.stack((one, other), axis=1) + 200
    ids = link_all(frames, linker(10.0), range(41))
    assert ids == [[0, 1]] * 41


def test_two_particles_that_meet_head_on_pass_through_each_other():
    t = np.arange(-10, 11)
    frames = np.stack((np.stack((0 * t, 3.0 * t), 1), np.stack((0 * t + 0.5, 1.0 - 3.0 * t), 1)), axis=1) + 100
    assert link_all(frames, linker(10.0)) == [[0, 1]] * 21


def test_brownian_particles_are_linked_without_a_switch():
    rng = np.random.default_rng(4)
    truth = brownian(rng, n_frames=100, side=15, spacing_px=70.0, step_px=1.0)[:, :200]
    assert min(nearest_px(points) for points in truth) > 12.0  # two that meet cannot be told apart by any linker
    online, ids_of_truth = linker(6.0), {}
    for index, points in enumerate(truth):
        order = rng.permutation(200)
        track_id = online.link(found(points[order]), index).track_id
        for particle, number in zip(order, track_id, strict=True):
            assert ids_of_truth.setdefault(int(particle), int(number)) == number
    assert sorted(ids_of_truth.values()) == list(range(200))


def test_velocity_does_not_carry_brownian_particles_away():
    """Steps of a fifth of the gate, the assumption behind the defaults: a prediction that overshoots loses tracks."""
    truth = brownian(np.random.default_rng(5), n_frames=200, side=10, spacing_px=60.0, step_px=2.0)
    assert max(map(max, link_all(truth, linker(10.0)))) == 99


def test_directed_motion_faster_than_half_the_spacing_is_followed():
    """A row of particles 8 px apart that moves by 5 px a frame: the nearest neighbour is the wrong one."""
    start = np.stack((np.zeros(10), np.arange(10) * 8.0), 1)
    slow = np.minimum(np.arange(12), 6)[:, None] * 1.0  # px per frame, speeding up
    frames = [start + np.array((0, shift)) for shift in np.cumsum(slow)]
    assert link_all(frames, linker(7.0)) == [list(range(10))] * 12


@pytest.mark.parametrize("n_missing", [1, 2, 3])
def test_a_particle_missing_for_no_longer_than_the_gap_keeps_its_id(n_missing):
    frames = [[(20, 20), (50, 50)]] * 5 + [[(50, 50)]] * n_missing + [[(20, 20), (50, 50)]]
    assert link_all(frames, linker(max_gap_frames=3))[-1] == [0, 1]


def test_a_particle_missing_for_longer_than_the_gap_gets_a_new_id():
    frames = [[(20, 20), (50, 50)]] * 5 + [[(50, 50)]] * 4 + [[(20, 20), (50, 50)]]
    assert link_all(frames, linker(max_gap_frames=3))[-1] == [2, 1]


def test_without_gaps_one_miss_ends_a_track():
    assert link_all([[(5, 5)], [], [(5, 5)]], linker(max_gap_frames=0)) == [[0], [], [1]]


def test_a_moving_particle_is_found_again_where_its_velocity_took_it():
    frames = [[(10, 6.0 * t)] if t not in (10, 11) else [] for t in range(14)]
    ids = link_all(frames, linker(8.0, max_gate_growth=1.0))
    assert ids[9] == ids[12] == ids[13] == [0]


def test_births_and_deaths():
    frames = [[(0, 0)], [(0, 0), (40, 40)], [(40, 40)], [(40, 40)], [(40, 40)], [(40, 40), (0, 0)]]
    assert link_all(frames, linker(max_gap_frames=2)) == [[0], [0, 1], [1], [1], [1], [1, 2]]


def test_empty_frames_are_linked_and_count_as_misses():
    assert link_all([[], [(1, 1)], [], [], [(1, 1)], [], []], linker(max_gap_frames=2)) == [
        [],
        [0],
        [],
        [],
        [0],
        [],
        [],
    ]


def test_a_jump_of_the_index_is_no_miss():
    frames = [[(20, 20), (60, 60)]] * 3
    assert link_all(frames, linker(max_gap_frames=0), [0, 50, 1000]) == [[0, 1]] * 3


def test_a_miss_after_a_jump_of_the_index_is_one_miss():
    frames = [[(20, 20), (60, 60)], [(60, 60)], [(20, 20), (60, 60)]]
    assert link_all(frames, linker(max_gap_frames=1), [0, 50, 51])[-1] == [0, 1]


def test_the_first_step_of_a_track_is_not_taken_for_its_velocity_in_full():
    """Out and back by more than half the gate: a prediction of one more full step would miss the way back."""
    assert link_all([[(0, 0)], [(0, 5.5)], [(0, 0)]], linker(10.0)) == [[0]] * 3


def test_velocity_is_per_frame_of_the_source():
    """Frames 0 to 9 and then every fourth: a particle at 3 px a frame is expected 12 px further."""
    indices = [*range(10), 13, 17, 21]
    frames = [[(0, 3.0 * i), (30, 300 - 3.0 * i)] for i in indices]
    assert link_all(frames, linker(7.0, max_gate_growth=1.0), indices) == [[0, 1]] * len(indices)


def test_the_gate_grows_with_the_root_of_the_time_up_to_its_cap():
    def keeps_id(n_elapsed: int, distance_px: float) -> bool:
        return link_all([[(0, 0)], [(0, distance_px)]], linker(10.0), [0, n_elapsed])[1] == [0]

    assert keeps_id(1, 9.9)
    assert not keeps_id(1, 10.1)
    assert keeps_id(2, 14.1)
    assert not keeps_id(2, 14.2)
    assert keeps_id(100, 19.9)
    assert not keeps_id(100, 20.1)


def test_skipped_brownian_frames_keep_their_ids():
    truth = brownian(np.random.default_rng(6), n_frames=300, side=8, spacing_px=80.0, step_px=1.0)
    assert max(map(max, link_all(truth[::5], linker(6.0), range(0, 300, 5)))) == 63


def test_a_track_just_seen_is_not_robbed_by_one_seen_long_ago():
    """One detection between both: the nearer track wins although the other has the wider gate."""
    frames = [[(0, 0), (0, 20)], [(0, 0)], [(0, 0)], [(0, 9)]]
    assert link_all(frames, linker(10.0))[-1] == [0]


@pytest.mark.parametrize("index", [3, 2, 0])
def test_an_index_that_does_not_grow_is_refused_and_changes_nothing(index):
    online = linker()
    online.link(found([(1, 1)]), 3)
    with pytest.raises(ValueError, match=f"must grow, got {index} after 3"):
        online.link(found([(1, 1)]), index)
    assert online.link(found([(1, 1)]), 4).track_id.tolist() == [0]


def test_positions_that_are_not_finite_are_refused_and_change_nothing():
    online = linker()
    online.link(found([(1, 1)]), 0)
    with pytest.raises(ValueError, match="frame 1 has NaN"):
        online.link(found([(1, np.nan)]), 1)
    assert online.link(found([(1, 1)]), 1).track_id.tolist() == [0]


def test_the_detections_come_back_untouched():
    detections = found([(1, 2), (3, 4)])
    assert linker().link(detections, 0).detections is detections


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), angle=st.floats(0, 6.28), shift=st.floats(-500, 500))
def test_turning_and_moving_the_scene_leaves_the_links_unchanged(seed, angle, shift):
    rng = np.random.default_rng(seed)
    scene = brownian(rng, n_frames=8, side=5, spacing_px=9.0, step_px=1.5)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert same_partition(link_all(scene, linker(6.0)), link_all(scene @ turn + shift, linker(6.0)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_order_of_rows_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    scene = brownian(rng, n_frames=8, side=5, spacing_px=7.0, step_px=1.5)
    orders = [rng.permutation(25) for _ in scene]
    shuffled = link_all([points[order] for points, order in zip(scene, orders, strict=True)], linker(6.0))
    restored = [np.asarray(ids)[np.argsort(order)].tolist() for ids, order in zip(shuffled, orders, strict=True)]
    assert same_partition(link_all(scene, linker(6.0)), restored)


def cost_of(expected, points, gate_px: float, links: Iterable[tuple[int, int]]) -> float:
    """Cost of a set of links in the augmented assignment."""
    links = list(links)
    n_unlinked = len(expected) + len(points) - 2 * len(links)
    return sum(float(((expected[i] - points[j]) ** 2).sum()) for i, j in links) + n_unlinked * gate_px**2


def least_cost(expected, points, gate_px: float, first: int = 0, taken: frozenset[int] = frozenset()) -> float:
    """Cost of the best set of links, by trying all of them."""
    if first == len(expected):
        return (len(points) - len(taken)) * gate_px**2
    costs = [gate_px**2 + least_cost(expected, points, gate_px, first + 1, taken)]
    for j in set(range(len(points))) - taken:
        squared = float(((expected[first] - points[j]) ** 2).sum())
        if squared <= gate_px**2:
            costs.append(squared + least_cost(expected, points, gate_px, first + 1, taken | {j}))
    return min(costs)


positions = hnp.arrays(np.float64, st.tuples(st.integers(0, 5), st.just(2)), elements=st.floats(0, 30))


@settings(max_examples=150, deadline=None)
@given(expected=positions, points=positions, gate_px=st.floats(2, 25))
def test_a_crowd_is_linked_at_the_least_total_cost(expected, points, gate_px):
    track_rows, point_rows = assign(expected, points, np.full(len(expected), gate_px))
    assert len(set(track_rows)) == len(set(point_rows)) == len(track_rows)
    cost = cost_of(expected, points, gate_px, zip(track_rows, point_rows, strict=True))
    assert cost == pytest.approx(least_cost(expected, points, gate_px), abs=1e-6)


def test_many_components_are_linked_at_the_cost_of_the_whole_augmented_matrix():
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(7)
    expected, points, gate_px = rng.uniform(0, 300, (150, 2)), rng.uniform(0, 300, (140, 2)), 25.0
    squared = ((expected[:, None] - points) ** 2).sum(-1)
    augmented = np.full((290, 290), 1e12)
    augmented[:150, :140] = np.where(squared <= gate_px**2, squared, 1e12)
    augmented[np.arange(150), 140 + np.arange(150)] = gate_px**2
    augmented[150 + np.arange(140), np.arange(140)] = gate_px**2
    augmented[150:, 140:] = 0.0
    best = augmented[linear_sum_assignment(augmented)].sum()
    track_rows, point_rows = assign(expected, points, np.full(150, gate_px))
    assert cost_of(expected, points, gate_px, zip(track_rows, point_rows, strict=True)) == pytest.approx(best)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_distance_px": 0.0}, "must be above 0 pixels"),
        ({"max_distance_px": float("inf")}, "max_distance_px must be a finite number"),
        ({"max_distance_px": 5.0, "max_gap_frames": -1}, "max_gap_frames must be a finite number of 0 or more, got -1"),
        ({"max_distance_px": 5.0, "measurement_sigma_px": 0.0}, "must be above 0 pixels"),
        ({"max_distance_px": 5.0, "velocity_noise_px": float("nan")}, "velocity_noise_px must be a finite number"),
        ({"max_distance_px": 5.0, "max_gate_growth": 0.5}, "max_gate_growth must be 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        LinkSettings(**values)


def test_importing_the_linker_does_not_import_scipy():
    code = "import sys, oneframe.runtime.link; sys.exit(any(m.split('.')[0] == 'scipy' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_tells_where_tracks_are_expected_and_stays_as_it_was():
    one, other = linker(), linker()
    assert one.expected(0).shape == (0, 2)
    for t in range(12):
        points = [(3.0 * t, 50 - 2.0 * t), (80.0, 20.0)]
        ids = [each.link(found(points), t).track_id.tolist() for each in (one, other)]
        assert ids[0] == ids[1]
        one.expected(t + 5)
    np.testing.assert_allclose(one.expected(12), [(36, 26), (80, 20)], atol=0.5)
    np.testing.assert_allclose(one.expected(14), [(42, 22), (80, 20)], atol=0.5)
    with pytest.raises(ValueError, match="frame indices must grow, got 11 after 11"):
        one.expected(11)
