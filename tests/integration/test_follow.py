"""The loop closed on real MMCore frames: DemoCamera's beads drift away and the stage brings one back."""

import threading

import numpy as np
import pytest

from oneframe.acquisition import Frame, SourceInfo, open_source
from oneframe.runtime import load_model
from oneframe.runtime.condition import StopWhen
from oneframe.runtime.follow import FollowTrack
from oneframe.runtime.link import FrameLinker, LinkSettings
from oneframe.runtime.output import OutputSink
from oneframe.runtime.pipeline import Pipeline
from oneframe.runtime.seams import Analysed, Missed, Noted

pytest.importorskip("pycromanager", reason="needs oneframe[mm]")

# of this size and brightness `bead_model` finds the beads; the period leaves room for a loaded machine
CAMERA = "demo:?width=128&height=128&exposure_ms=60&density=30&bead_size=4&brightness=2"
CENTRE = 63.5


class Drifting:
    """A camera and its stage, which slips by `drift_um` in x with every frame and does not know it."""

    def __init__(self, url: str, drift_um: float) -> None:
        self._source = open_source(url)
        self._drift_um = drift_um
        self._lock = threading.Lock()
        self.slipped_um = 0.0

    @property
    def info(self) -> SourceInfo:
        return self._source.info

    def read(self, timeout_s: float) -> Frame | None:
        frame = self._source.read(timeout_s)
        if frame is not None:
            with self._lock:
                x_um, y_um = self._source.stage_xy_um()
                self._source.move_xy_um(x_um + self._drift_um, y_um)
                self.slipped_um += self._drift_um
        return frame

    def close(self) -> None:
        self._source.close()

    def move_xy_um(self, x_um: float, y_um: float) -> None:
        with self._lock:
            self._source.move_xy_um(x_um + self.slipped_um, y_um)

    def stage_xy_um(self) -> tuple[float, float]:
        with self._lock:
            x_um, y_um = self._source.stage_xy_um()
            return x_um - self.slipped_um, y_um


class Offsets:
    """Notes how far from the centre the nearest bead is."""

    def __init__(self) -> None:
        self.frames: list[int] = []
        self.offsets_px: list[tuple[float, float]] = []

    def write(self, analysed: Analysed) -> None:
        found = analysed.tracks.detections
        dy, dx = found.y_px - CENTRE, found.x_px - CENTRE
        if len(found):
            nearest = int(np.argmin(dy**2 + dx**2))
            self.frames.append(analysed.frame.index)
            self.offsets_px.append((float(dy[nearest]), float(dx[nearest])))

    def skip(self, missed: Missed) -> None: ...

    def note(self, noted: Noted) -> None: ...

    def close(self) -> None: ...


def test_a_bead_stays_within_one_pixel_of_the_centre_while_the_stage_drifts(bead_model):
    scene = Drifting(CAMERA, 0.5)
    told: list[str] = []
    follower = FollowTrack(scene, tell=told.append)
    stage = OutputSink("stage", follower, newest_wins=True, stale_s=1.0, tell=told.append)
    offsets = Offsets()
    model = load_model(bead_model.path, threads=1)
    pipeline = Pipeline(
        scene, model, FrameLinker(LinkSettings(10.0)), {"stage": stage, "offsets": offsets}, mode="latest"
    )
    ended = pipeline.run(n_frames=100, seconds=60)

    assert not ended.failed, ended.reason
    assert scene.slipped_um == pytest.approx(50.0)
    settled = np.array(offsets.frames) >= 25
    distance_px = np.hypot(*np.array(offsets.offsets_px).T)
    assert distance_px[0] > 5.0
    assert settled.sum() >= 60
    # a machine that stands still for three frames lets the bead drift 1.5 px, which is not the follower's doing
    assert np.mean(distance_px[settled] < 1.0) > 0.95
    assert np.median(distance_px[settled]) < 0.7
    report = stage.report()
    assert report["failed"] == {}
    assert report["output"]["lost"] == 0
    assert 20 <= report["output"]["moves"] <= 60
    assert report["latency_p50_ms"] < 500
    assert len(told) == 1, told
    assert "following track" in told[0]


def test_without_a_drift_the_stage_comes_to_rest(bead_model):
    scene = Drifting(CAMERA, 0.0)
    follower = FollowTrack(scene, tell=lambda _: None)
    stage = OutputSink("stage", follower, newest_wins=True)
    offsets = Offsets()
    model = load_model(bead_model.path, threads=1)
    ended = Pipeline(
        scene, model, FrameLinker(LinkSettings(10.0)), {"stage": stage, "offsets": offsets}, mode="latest"
    ).run(n_frames=40, seconds=60)
    assert not ended.failed, ended.reason
    distance_px = np.hypot(*np.array(offsets.offsets_px).T)
    assert distance_px[0] > 5.0
    assert (distance_px[-15:] < 0.3).all()
    assert 2 <= stage.report()["output"]["moves"] <= 6


def test_a_condition_ends_the_run(bead_model):
    scene = Drifting(CAMERA, 0.0)
    reasons: list[str] = []

    def stop(reason: str) -> None:
        reasons.append(reason)
        pipeline.stop(reason)

    condition = OutputSink("stop", StopWhen("track_length >= 5", stop))
    model = load_model(bead_model.path, threads=1)
    pipeline = Pipeline(scene, model, FrameLinker(LinkSettings(10.0)), {"stop": condition})
    ended = pipeline.run(seconds=60)
    assert ended.reason == reasons[0]
    assert "track_length >= 5 was true" in ended.reason
    assert ended.account.analysed >= 5
