"""Regions in place of whole frames: the same detections on frames of the simulator, and when they are not taken."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from oneframe.acquisition import Frame
from oneframe.acquisition.simulated import BeadCamera, BeadScene, add_bead, bead_table
from oneframe.app.main import main
from oneframe.runtime import Detections, OnnxModel
from oneframe.runtime.link import FrameLinker, LinkSettings
from oneframe.runtime.model import load_graph
from oneframe.runtime.newcomers import NewcomerLook
from oneframe.runtime.regions import LONGEST_GAP, N_WHOLE, RegionModel

SHAPE = (450, 421)
BEADS = np.array([[60.0, 70.0], [150.3, 200.8], [300.7, 100.2], [333.3, 350.5], [200.0, 330.0]])


def yx(found: Detections) -> np.ndarray:
    return np.stack([found.y_px, found.x_px], -1).astype(float)


def picture(beads, *, seed: int, shape: tuple[int, int] = SHAPE, photons: float = 5000.0) -> np.ndarray:
    electrons = np.full(shape, 30.0)
    for y, x in beads:
        add_bead(electrons, y, x, photons, bead_table(0.3, 0.8, 0.53, 0.1))
    return (2 * np.random.default_rng(seed).poisson(electrons) + 100).astype(np.uint16)


class Bench:
    """A model by regions, the linker it needs, and the graph itself to compare with."""

    def __init__(self, path, *, always: bool = False, threads: int = 2) -> None:
        self.graph = load_graph(path, threads=threads)
        self.linker = FrameLinker(LinkSettings(self.graph.card.object_diameter_px))
        self.model = RegionModel(self.graph, self.linker, always=always)
        self.index = -1

    def see(self, image: np.ndarray, step: int = 1) -> Detections:
        """What the model finds in the next frame."""
        self.index += step
        self.model.check(Frame(image, self.index, 0.0))
        found = self.model.detect(image)
        self.linker.link(found, self.index)
        return found

    def by_regions(self, image: np.ndarray, step: int = 1) -> bool:
        """Whether the next frame is looked at by regions; what is found must be what the whole frame gives."""
        before = self.model.report()["frames_by_regions"]
        self.assert_same(self.see(image, step), image)
        return self.model.report()["frames_by_regions"] > before

    def assert_same(self, found: Detections, image: np.ndarray) -> None:
        whole = self.graph.detect(image)
        assert len(found) == len(whole)
        if len(whole):
            away = np.hypot(*(yx(found)[:, None] - yx(whole)[None]).transpose(2, 0, 1))
            assert sorted(away.argmin(0)) == list(range(len(whole)))
            assert away.min(0).max() < 0.01


@pytest.fixture
def bench(bead_model) -> Bench:
    return Bench(bead_model.path)


SCENES = {
    "diffusing": {},
    "drifting out of the frame and in": {"drift_y_px": -1.5, "drift_x_px": 1.0},
    "crossing close by": {"separation_px": 9.0, "n": 25},
    "fast": {"step_px": 3.0},
}


@pytest.mark.parametrize("options", SCENES.values(), ids=SCENES)
def test_regions_give_what_the_whole_frame_gives(bench, options):
    scene = BeadScene(**{"height": SHAPE[0], "width": SHAPE[1], "n": 12, "lifetime": 25, "seed": 4, **options})
    camera = BeadCamera(scene)
    by_regions = []
    for _ in range(20):
        by_regions.append(bench.by_regions(camera.expose()))
        camera.advance()
    assert sum(by_regions) >= 18


def test_particles_at_the_border_are_found_where_they_are(bench):
    height, width = SHAPE
    beads = [(0.2, 100.0), (height - 1.4, 210.0), (130.0, 0.4), (250.0, width - 1.2), (1.0, 1.0), (height - 2.0, 2.0)]
    beads += [(3.0, width - 4.0), (height - 1.0, width - 2.5), (7.5, 300.0), (height - 9.0, 60.0), (200.0, 200.0)]
    assert not bench.by_regions(picture(beads, seed=0))
    assert all(bench.by_regions(picture(beads, seed=seed)) for seed in range(1, 8))


def test_newcomers_that_stand_out_are_seen_in_their_first_frame(bench):
    beads = list(BEADS)
    for k, newcomer in enumerate([(20.0, 20.0), (230.0, 60.0), (448.0, 300.0), (62.0, 82.0), (100.0, 419.6)]):
        assert bench.by_regions(picture(beads, seed=2 * k)) == (k > 0)
        beads.append(newcomer)
        assert bench.by_regions(picture(beads, seed=2 * k + 1))


@pytest.mark.parametrize("where", [(10.0, 40.0), (210.0, 300.0), (446.0, 200.0)])
def test_others_are_seen_by_the_strip_within_the_frames_that_are_told(bench, monkeypatch, where):
    look = NewcomerLook.changed

    def blind(self: NewcomerLook) -> np.ndarray:
        return look(self)[:0]

    monkeypatch.setattr(NewcomerLook, "changed", blind)
    bench.see(picture(BEADS, seed=0))
    bench.see(picture(BEADS, seed=1))
    longest = bench.model.longest_unseen_frames
    assert longest < 30
    images = [picture([*BEADS, where], seed=seed) for seed in range(4)]
    counts = [len(bench.see(images[k % 4])) for k in range(longest)]
    assert counts[0] == len(BEADS)
    assert counts[-1] == len(BEADS) + 1
    bench.assert_same(bench.see(images[0]), images[0])


def test_the_empty_scene_is_watched_for_the_first_particle(bench):
    assert not bench.by_regions(picture([], seed=0))
    assert all(bench.by_regions(picture([], seed=seed)) for seed in range(1, 5))
    assert bench.by_regions(picture([(77.0, 200.0)], seed=5))
    assert len(bench.see(picture([(77.5, 200.0)], seed=6))) == 1


def test_a_particle_that_leaves_is_gone_and_one_that_jumps_is_found(bench):
    bench.see(picture(BEADS, seed=0))
    assert bench.by_regions(picture(BEADS, seed=1))
    assert bench.by_regions(picture(BEADS[1:], seed=2))
    rng = np.random.default_rng(3)
    for seed in range(3, 9):
        jumps = BEADS[1:].copy()
        jumps[0] = rng.uniform(30, 120, 2)
        assert bench.by_regions(picture(jumps, seed=seed))


def test_if_many_are_gone_at_once_the_whole_frame_is_looked_at(bench):
    bench.see(picture(BEADS, seed=0))
    assert bench.by_regions(picture(BEADS, seed=1))
    assert not bench.by_regions(picture(BEADS[3:], seed=2))
    assert bench.by_regions(picture(BEADS[3:], seed=3))


def test_a_crowded_scene_is_looked_at_as_a_whole_until_it_is_empty_again(bench):
    crowd = [(y, x) for y in range(20, 440, 30) for x in range(20, 410, 30)]
    notes = [bench.see(picture(BEADS, seed=seed)).notes for seed in range(3)]
    assert [len(told) for told in notes] == [0, 1, 0]
    assert "no longer whole frames" in notes[1][0]
    assert f"unseen for {bench.model.longest_unseen_frames - 1} frames" in notes[1][0]
    image = picture(crowd, seed=9)
    notes = []
    for _ in range(8):
        found = bench.see(image)
        bench.assert_same(found, image)
        notes += found.notes
    assert len(notes) == 1
    assert "whole frames are analysed from here on" in notes[0]
    assert not bench.model.on
    assert bench.model.longest_unseen_frames == 1
    calm = [picture(BEADS, seed=seed) for seed in range(4)]
    notes = [told for k in range(N_WHOLE + 5) for told in bench.see(calm[k % 4]).notes]
    assert len(notes) == 1
    assert bench.model.on


def test_frames_too_small_for_regions_are_looked_at_as_a_whole(bench):
    images = [picture([(20.0, 30.0)], seed=seed, shape=(63, 90)) for seed in range(4)]
    assert not any(bench.by_regions(image) for image in images)


def test_another_shape_a_threshold_or_a_long_gap_starts_with_a_whole_frame(bench):
    other = (SHAPE[0] + 13, SHAPE[1] - 20)
    assert not bench.by_regions(picture(BEADS, seed=0))
    assert bench.by_regions(picture(BEADS, seed=1))
    assert not bench.by_regions(picture(BEADS, seed=2, shape=other))
    assert bench.by_regions(picture(BEADS, seed=3, shape=other))
    bench.model.threshold = 0.9 * bench.model.threshold
    assert not bench.by_regions(picture(BEADS, seed=4, shape=other))
    assert bench.by_regions(picture(BEADS, seed=5, shape=other))
    assert bench.by_regions(picture(BEADS, seed=6, shape=other), step=LONGEST_GAP)  # a slow analysis skips frames
    assert not bench.by_regions(picture(BEADS, seed=7, shape=other), step=LONGEST_GAP + 1)


def test_after_a_frame_that_cannot_be_used_the_whole_frame_is_looked_at(bench):
    for seed in range(2):
        bench.see(picture(BEADS, seed=seed))
    with pytest.raises(ValueError, match="is the shutter open"):
        bench.see(np.zeros(SHAPE, np.uint16))
    assert not bench.by_regions(picture(BEADS, seed=3))
    assert bench.by_regions(picture(BEADS, seed=4))


def flickering(seed: int) -> np.ndarray:
    """Blocks of pixels flicker, each on its own, so that the coarse view tells nothing."""
    blocks = np.kron(np.random.default_rng(seed).normal(0, 14, (115, 110)), np.ones((4, 4)))[: SHAPE[0], : SHAPE[1]]
    return (picture(BEADS, seed=seed) + blocks + 100).clip(0).astype(np.uint16)


def test_where_newcomers_do_not_stand_out_whole_frames_are_taken_unless_regions_are_asked_for(bead_model):
    automatic, asked = Bench(bead_model.path), Bench(bead_model.path, always=True)
    for seed in range(6):
        automatic.see(flickering(seed))
        asked.see(flickering(seed))
    assert automatic.model.report()["frames_by_regions"] == 0
    assert asked.model.report()["frames_by_regions"] >= 4
    assert asked.model.longest_unseen_frames <= 10


def test_the_same_frames_give_the_same_rows(bead_model):
    benches = [Bench(bead_model.path) for _ in range(2)]
    for seed in range(4):
        one, two = (bench.see(picture(BEADS, seed=seed)) for bench in benches)
        for name, column in one.columns().items():
            np.testing.assert_array_equal(column, two.columns()[name])


def test_on_one_thread_regions_give_what_the_whole_frame_gives_too(bead_model):
    bench = Bench(bead_model.path, threads=1)
    assert not bench.by_regions(picture(BEADS, seed=0))
    assert all(bench.by_regions(picture(BEADS, seed=seed)) for seed in range(1, 4))
    assert bench.by_regions(picture([*BEADS, (20.0, 20.0)], seed=4))


def test_other_models_are_refused(bead_model):
    graph = load_graph(bead_model.path)
    card = replace(graph.card, method="shot")
    with pytest.raises(ValueError, match="for LodeSTAR models of camera images of one channel, got shot"):
        RegionModel(OnnxModel(graph._session, card, None), FrameLinker(LinkSettings(5.0)))


def logged(folder) -> tuple[dict, np.ndarray, list[str]]:
    """`run.json`, the rows of frame, y and x, and the notes."""
    with closing(sqlite3.connect(folder / "run.sqlite")) as base:
        rows = np.array(base.execute("SELECT frame, y_px, x_px FROM detections").fetchall())
        notes = [text for (text,) in base.execute("SELECT text FROM events WHERE kind = 'note'")]
    return json.loads((folder / "run.json").read_text()), rows[np.lexsort(rows.T[::-1].round(1))], notes


def test_log_tells_that_it_looks_at_regions_and_gives_the_same_rows(capsys, bead_model, tmp_path):
    source = f"sim:beads?height={SHAPE[0]}&width={SHAPE[1]}&n=8&seed=3&frames=8"
    runs = {}
    for choice in ("off", "on", "auto"):
        argv = ["log", str(bead_model.path), "--source", source, "-o", str(tmp_path / choice), "--regions", choice]
        assert main([*argv, "--threads", "1"]) == 0, capsys.readouterr().err
        runs[choice] = logged(tmp_path / choice)
    whole, by_regions = runs["off"], runs["on"]
    assert whole[0]["settings"]["regions"] == "off"
    assert "regions" not in whole[0]
    assert by_regions[0]["settings"]["regions"] == "on"
    assert by_regions[0]["regions"]["frames_by_regions"] == 7
    assert f"unseen for {by_regions[0]['regions']['longest_unseen_frames'] - 1} frames" in by_regions[2][0]
    np.testing.assert_allclose(by_regions[1], whole[1], atol=0.01)
    assert "regions" not in runs["auto"][0]  # a recording can wait
    np.testing.assert_array_equal(runs["auto"][1], whole[1])


def test_particles_that_score_about_the_threshold_are_lost_no_more_often_than_by_whole_frames(bead_model):
    counts = []
    bench = Bench(bead_model.path)
    scene = BeadScene(height=SHAPE[0], width=SHAPE[1], n=15, lifetime=0, photons=2700.0, seed=2)
    camera = BeadCamera(scene)
    for _ in range(25):
        image = camera.expose()
        found, whole = yx(bench.see(image)), yx(bench.graph.detect(image))
        away = np.hypot(*(found[:, None] - whole[None]).transpose(2, 0, 1))
        counts.append((len(whole), sum(away.min(0, initial=np.inf) > 1)))
        camera.advance()
    n, lost = np.sum(counts, 0)
    assert len({each for each, _ in counts}) > 3  # some come and go
    assert lost <= 0.01 * n
    assert bench.model.report()["frames_by_regions"] > 15
