"""Identities of cells: known films, divisions, and masks that were damaged for a frame."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from cell_run import detect, film

from oneframe.acquisition.cells import MODALITIES
from oneframe.runtime.cell_link import CellLinker, CellLinkSettings
from oneframe.runtime.detections import Detections
from oneframe.runtime.vote_clustering import consecutive

HEIGHT, WIDTH = 120, 160


def image(*boxes) -> np.ndarray:
    """Label image of boxes (y, x, height, width), in their order; (H, W) int32."""
    labels = np.zeros((HEIGHT, WIDTH), np.int32)
    for number, (y, x, height, width) in enumerate(boxes, start=1):
        labels[max(0, y) : y + height, max(0, x) : x + width] = number
    return labels


def link(frames, linker=None, indices=None) -> tuple[list[list[int]], dict[int, int]]:
    """Return the track ids of each frame, in the order of its boxes, and the parents told in the end."""
    linker = linker or CellLinker()
    ids, parents = [], {}
    for index, boxes in zip(indices or range(len(frames)), frames, strict=True):
        tracks = linker.link(detect(image(*boxes)), index)
        ids.append(tracks.track_id.tolist())
        parents |= {t: p for t, p in zip(ids[-1], tracks.parent_id.tolist(), strict=True) if p}
    return ids, parents


A, B = (20, 20, 20, 40), (20, 60, 20, 40)  # side by side
A_B = (20, 20, 20, 80)
LEFT, RIGHT = (20, 20, 20, 20), (20, 40, 20, 20)  # A in two
OTHER = (80, 100, 20, 20)


def test_ids_start_at_1_and_are_never_used_twice():
    ids, parents = link([[A, OTHER], [A], [], [], [], [], [], [A, B]])
    assert ids == [[1, 2], [1], [], [], [], [], [], [3, 4]]
    assert not parents


def test_a_division_ends_the_mother_and_is_told_when_it_has_lasted():
    linker = CellLinker()
    ids, _ = link([[A, OTHER], [A, OTHER], [LEFT, RIGHT, OTHER]], linker)
    assert ids == [[1, 2], [1, 2], [3, 4, 2]]
    tracks = linker.link(detect(image(LEFT, OTHER, RIGHT)), 3)
    assert tracks.track_id.tolist() == [3, 2, 4]
    assert tracks.parent_id.tolist() == [1, 0, 1]
    tracks = linker.link(detect(image(LEFT, RIGHT)), 4)
    assert tracks.parent_id.tolist() == [1, 1]


def test_a_division_can_be_told_at_once():
    ids, parents = link([[A], [LEFT, RIGHT]], CellLinker(CellLinkSettings(confirm_frames=1)))
    assert ids == [[1], [2, 3]]
    assert parents == {2: 1, 3: 1}


def test_daughters_that_jump_apart_about_the_middle_are_known():
    """Plates of an anaphase: they overlap with the mother by a sixth."""
    ids, parents = link([[(30, 40, 16, 16)], [(30, 33, 16, 8), (30, 55, 16, 8)], [(30, 31, 16, 9), (30, 57, 16, 9)]])
    assert ids == [[1], [2, 3], [2, 3]]
    assert parents == {2: 1, 3: 1}


def test_a_cell_cut_in_two_for_a_frame_comes_back():
    ids, parents = link([[A, OTHER], [LEFT, RIGHT, OTHER], [A, OTHER], [A, OTHER]])
    assert ids == [[1, 2], [3, 4, 2], [1, 2], [1, 2]]
    assert not parents


def test_a_cell_in_three_pieces_is_no_division():
    thirds = [(20, 20, 20, 13), (20, 33, 20, 13), (20, 46, 20, 14)]
    ids, parents = link([[A], thirds, thirds, thirds, thirds[:2]])
    assert ids[0] == [1]
    assert set(ids[1]) == {2, 3, 4}
    assert not parents


def test_two_cells_seen_as_one_get_their_identities_back():
    """The object is a track of its own: neither of them grew, and it did not divide."""
    ids, parents = link([[A, B], [A, B], [A_B], [A_B], [B, A], [B, A]])
    assert ids == [[1, 2], [1, 2], [3], [3], [2, 1], [2, 1]]
    assert not parents


def test_cells_that_moved_while_they_were_one_object_get_their_identities_back():
    def at(x):
        return [(20, 20 + x, 20, 30), (20, 50 + x, 20, 50)]

    ids, parents = link([at(0), [(20, 23, 20, 80)], [(20, 26, 20, 80)], [(20, 29, 20, 80)], at(12)])
    assert ids == [[1, 2], [3], [3], [3], [1, 2]]
    assert not parents


def test_what_stays_one_object_is_one_cell_in_the_end():
    settings = CellLinkSettings(max_merged_frames=3)
    ids, parents = link([[A, B], *[[A_B]] * 6, [A, B], [A, B]], CellLinker(settings))
    assert ids[-1] == [4, 5]
    assert parents == {4: 3, 5: 3}


def test_a_third_cell_joins_the_object_and_all_come_back():
    c, all_three = (40, 20, 20, 80), (20, 20, 40, 80)
    ids, parents = link([[A, B, c], [A_B, c], [all_three], [A, B, c]])
    assert ids[-1] == [1, 2, 3]
    assert not parents


def test_a_missed_cell_comes_back_within_the_gap_only():
    frames = [[A], [], [], [], [A], [], [], [], [], [A]]
    assert link(frames)[0] == [[1], [], [], [], [1], [], [], [], [], [2]]


def test_frames_that_were_never_analysed_are_no_misses():
    assert link([[A], [A], [A]], indices=[0, 5, 500])[0] == [[1], [1], [1]]


def test_a_moving_cell_is_expected_further_on_after_lost_frames():
    def at(t):
        return (20, 5 + 6 * t, 14, 14)

    decoy = [at(9), (20, 40, 14, 14)]
    ids, _ = link([[at(0)], [at(1)], [at(2)], [at(3)], [at(4)], decoy], indices=[0, 1, 2, 3, 4, 9])
    assert ids[-1][0] == 1


def test_a_small_cell_that_moves_by_its_own_size_is_followed():
    ids, _ = link([[(20, 10 + 6 * t, 6, 6), OTHER] for t in range(12)])
    assert ids == [[1, 2]] * 12


def test_all_cells_are_found_where_the_stage_took_them():
    """22 px at once, more than their spacing: without the common shift they would be their neighbours."""
    rng = np.random.default_rng(2)
    cells = [
        (y + int(rng.integers(4)), x + int(rng.integers(4)), 12, 12) for y in range(4, 100, 18) for x in (4, 22, 44)
    ]
    moved = [(y, x + 22, h, w) for y, x, h, w in cells]
    ids, parents = link([cells, cells, moved, moved])
    assert ids[2] == ids[3] == ids[0]
    assert not parents


def test_a_stage_that_jumped_is_not_expected_to_jump_again():
    """A packed row, one place along at once: had it a velocity of half a place, all would be their neighbours next."""
    row = [(20, 4 + 16 * k, 15, 16) for k in range(4)]
    moved = [(y, x + 40, h, w) for y, x, h, w in row]
    ids, parents = link([row, row, moved, moved, moved])
    assert ids[2] == ids[3] == ids[4] == ids[0]
    assert not parents


def test_a_cell_that_leaves_the_frame_is_neither_dividing_nor_the_next_that_comes():
    frames = [[(50, -4 * t, 20, 30)] for t in range(9)]
    ids, parents = link([*frames[:8], [], [(50, 0, 20, 10)]])
    assert ids[:8] == [[1]] * 8
    assert ids[-1] != [1]
    assert not parents


def test_a_cell_that_grows_slowly_keeps_its_identity():
    ids, _ = link([[(20, 20, 10, 10 + t)] for t in range(60)])
    assert ids == [[1]] * 60


def test_the_order_of_the_labels_does_not_matter():
    truths = list(film("phase", 6))
    straight, shuffled = CellLinker(), CellLinker()
    rng = np.random.default_rng(0)
    pairs = set()
    for index, truth in enumerate(truths):
        n = len(truth.cell_id)
        order = rng.permutation(n)
        a = straight.link(detect(truth.labels), index).track_id
        number = np.r_[0, order + 1].astype(np.int32)
        b = shuffled.link(detect(number[truth.labels]), index).track_id[order]
        pairs |= set(zip(a.tolist(), b.tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_what_cannot_be_linked_is_told_and_the_linker_stays_as_it_was():
    linker = CellLinker()
    linker.link(detect(image(A, B)), 3)
    bare = Detections(*np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"expected detections with labels, frame 4 has none; take FrameLinker"):
        linker.link(bare, 4)
    with pytest.raises(ValueError, match=r"expected labels 0 .. 1, one for each row, frame 4 has 0 .. 2"):
        linker.link(detect(image(A, B)).rows(np.array([0])), 4)
    with pytest.raises(ValueError, match=r"expected labels of shape \(120, 160\) as before, frame 4 has \(60, 80\)"):
        linker.link(detect(image(A, B)[:60, :80]), 4)
    with pytest.raises(ValueError, match="frame indices must grow, got 3 after 3"):
        linker.link(detect(image(A, B)), 3)
    assert linker.link(detect(image(B, A)), 4).track_id.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_overlap": 1.2}, "min_overlap must be 1 at most, got 1.2"),
        ({"max_gap_frames": -1}, "max_gap_frames must be a finite number of 0 or more, got -1"),
        ({"confirm_frames": 0}, "confirm_frames 1 or more"),
        ({"max_distance_diameters": 0.0}, "max_distance_diameters must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CellLinkSettings(**settings)


def damaged(truth, rng, share: float) -> np.ndarray:
    """Labels in which a share of the cells is merged with one that it touches, another is lost and a third is cut."""
    labels, n = truth.labels, len(truth.cell_id)
    number, hurt = np.arange(n + 1), set()
    for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        for i, j in np.unique(np.sort(np.stack((a, b))[:, (a != b) & (a > 0) & (b > 0)], axis=0), axis=1).T.tolist():
            if rng.random() < share and not hurt & {i, j}:
                number[j] = i
                hurt |= {i, j}
    for i in range(1, n + 1):
        if i not in hurt and rng.random() < share:
            number[i] = 0
            hurt.add(i)
    seen = number[labels].astype(np.int32)
    for i in range(1, n + 1):
        if i not in hurt and rng.random() < share:
            y, x = np.nonzero(labels == i)
            seen[y[y > y.mean()], x[y > y.mean()]] = seen.max() + 1
    return consecutive(seen)


def figures(truths, labels_of) -> dict[str, float]:
    """Link a film and compare: share of links kept, divisions told among the true ones, true ones among those told."""
    linker, links, before = CellLinker(), Counter(), {}
    rows, seen, parent_of = defaultdict(Counter), defaultdict(list), {}
    for index, truth in enumerate(truths):
        labels = labels_of(truth)
        tracks = linker.link(detect(labels), index)
        now = {}
        for row, (track, parent) in enumerate(zip(tracks.track_id.tolist(), tracks.parent_id.tolist(), strict=True)):
            shared = np.bincount(truth.labels[labels == row + 1], minlength=len(truth.cell_id) + 1)[1:]
            cell = int(np.argmax(shared))
            whole = shared[cell] > 0.9 * max(truth.area_px[cell], shared.sum())
            seen[track].append(index)
            if whole:
                now[int(truth.cell_id[cell])] = track
                rows[track][int(truth.cell_id[cell])] += 1
            if parent:
                parent_of[track] = parent
        links.update(before[cell] == track for cell, track in now.items() if cell in before)
        before |= now
    assert all(seen[track][0] > seen[parent][-1] for track, parent in parent_of.items())
    assert set(Counter(parent_of.values()).values()) <= {2}
    cell_of = {track: cells.most_common(1)[0][0] for track, cells in rows.items()}
    told = {(cell_of.get(parent), cell_of.get(track)) for track, parent in parent_of.items()}
    return {"links": links[True] / links.total(), **divisions(truths, told)}


def divisions(truths, told) -> dict[str, float]:
    """Compare pairs of mother and daughter; recall is over those of which both daughters are a third of the mother."""
    true, sure, before, n = set(), set(), {}, len(truths)
    for index, truth in enumerate(truths):
        now = dict(zip(truth.cell_id.tolist(), truth.area_px.tolist(), strict=True))
        mother = dict(zip(truth.cell_id.tolist(), truth.parent_id.tolist(), strict=True))
        born = defaultdict(list)
        for cell in now.keys() - before.keys():
            if mother[cell] in before:
                born[mother[cell]].append(cell)
        for parent, cells in born.items():
            true |= {(parent, cell) for cell in cells}
            if len(cells) == 2 and min(map(now.get, cells)) > before[parent] / 3 and index < n - 1:
                sure |= {(parent, cell) for cell in cells}
        before = now
    return {"recall": len(sure & told) / len(sure), "precision": len(told & true) / max(1, len(told)), "n": len(sure)}


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_film_with_true_masks_keeps_its_identities_and_divisions(modality):
    found = figures(list(film(modality, 26)), lambda truth: truth.labels)
    assert found["n"] >= 20
    assert found["links"] > 0.995
    assert found["recall"] > 0.9
    assert found["precision"] > 0.95


@pytest.mark.parametrize("modality", MODALITIES)
def test_damage_for_a_frame_costs_few_identities_and_makes_few_divisions(modality):
    rng = np.random.default_rng(3)
    found = figures(list(film(modality, 26)), lambda truth: damaged(truth, rng, 0.01))
    assert found["links"] > 0.97
    assert found["recall"] > 0.6
    assert found["precision"] > 0.7
