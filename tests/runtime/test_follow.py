"""A particle is kept in the centre, without oscillation however late the frames come, and the stage never runs away."""

from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest

from oneframe.acquisition import EndOfStream, Frame
from oneframe.runtime import Detections, Tracks
from oneframe.runtime.follow import FollowSettings, FollowTrack
from oneframe.runtime.link import FrameLinker, LinkSettings
from oneframe.runtime.seams import Analysed

SIDE = 65
CENTRE = 32.0
IMAGE = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)


class Clock:
    """The time as the follower sees it, so that a loaded machine changes nothing."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return 1.7e9 + self.now_s


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("oneframe.runtime.follow.time", clock)
    Scene.clock = clock
    return clock


@dataclass
class Scene:
    """Particles under a stage: positions (N, 2) in um, seen by a camera turned and scaled by `px_per_um`."""

    clock: ClassVar[Clock]
    particles_um: np.ndarray
    px_per_um: np.ndarray = field(default_factory=lambda: np.eye(2))
    stage_um: np.ndarray = field(default_factory=lambda: np.array([300.0, -40.0]))  # y, x
    pixel_size_um: float | None = 1.0
    moves: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.particles_um = self.particles_um + self.stage_um

    def move_xy_um(self, x_um: float, y_um: float) -> None:
        self.stage_um = np.array([y_um, x_um])
        self.moves.append((y_um, x_um))
        self.clock.now_s += 1e-3

    def stage_xy_um(self) -> tuple[float, float]:
        return float(self.stage_um[1]), float(self.stage_um[0])

    def offsets_px(self) -> np.ndarray:
        return (self.particles_um - self.stage_um) @ self.px_per_um.T

    def expose(self, index: int) -> tuple[Frame, Detections]:
        """Take a frame, 10 ms after the last one; its time is that of the clock."""
        self.clock.now_s = 0.01 * (index + 1)
        yx = (self.offsets_px() + CENTRE).astype(np.float32)
        yx = yx[(np.abs(yx - CENTRE) <= CENTRE).all(axis=1)]
        return Frame(IMAGE, index, self.clock.now_s, self.pixel_size_um), Detections(
            yx[:, 0].copy(), yx[:, 1].copy(), np.ones(len(yx), np.float32)
        )

    def analysed(self, frame: Frame, tracks: Tracks) -> Analysed:
        return Analysed(frame, tracks, self.clock.now_s - frame.time_s, 0.0)


def numbered(detections: Detections) -> Tracks:
    """Tracks whose numbers are the rows."""
    return Tracks(detections, np.arange(len(detections), dtype=np.int64))


def follow(scene: Scene, follower: FollowTrack, n_frames: int, *, late: int = 0, drift_um=(0.0, 0.0), start=0):
    """Run the loop, every result `late` frames after its exposure; return the offset of particle 0 in each frame."""
    linker = FrameLinker(LinkSettings(8.0))
    on_the_way: deque[tuple[Frame, Detections]] = deque()
    offsets = []
    for index in range(start, start + n_frames):
        on_the_way.append(scene.expose(index))
        offsets.append(scene.offsets_px()[0])
        scene.particles_um = scene.particles_um + np.array(drift_um)
        scene.clock.now_s += 2e-3  # detection
        if len(on_the_way) > late:
            frame, detections = on_the_way.popleft()
            follower.act(scene.analysed(frame, linker.link(detections, frame.index)))
    return np.array(offsets)


@pytest.mark.parametrize("late", [0, 1, 5])
def test_it_comes_to_the_centre_without_overshoot_however_late_the_frames_are(late):
    scene = Scene(np.array([[9.0, -14.0]]))
    follower = FollowTrack(scene, tell=lambda _: None)
    offsets = follow(scene, follower, 20 + 12 * late, late=late)
    distance = np.linalg.norm(offsets, axis=1)
    assert distance[-1] < 0.25
    assert (np.diff(distance) <= 1e-3).all()  # float32 positions
    assert (offsets @ offsets[0] > -0.1).all()
    assert 2 <= len(scene.moves) <= 4
    assert follower.report()["waited"] == len(scene.moves) * late


def test_without_an_error_the_stage_is_left_alone():
    scene = Scene(np.array([[0.1, -0.1]]))
    follow(scene, FollowTrack(scene, tell=lambda _: None), 30)
    assert scene.moves == []


@pytest.mark.parametrize("late", [0, 1, 3])
def test_a_steady_drift_is_led_instead_of_trailed(late):
    worst = {}
    for predict in (0, 16):
        scene = Scene(np.array([[2.0, 2.0]]))
        settings = FollowSettings(predict_frames=predict, dead_band_px=0.0, travel_um=1e4)
        follower = FollowTrack(scene, settings, tell=lambda _: None)
        offsets = follow(scene, follower, 200, late=late, drift_um=(0.0, 0.5))[100:, 1]
        worst[predict] = np.abs(offsets).max()
    # a move is possible every late + 1 frames, between two of them 0.5 px are added each
    assert worst[0] > 0.5 * (late + 1)
    assert worst[16] < 0.5 * (late + 1) / 2 + 0.25


def test_a_turned_mirrored_and_scaled_camera():
    turn = np.deg2rad(30.0)
    px_per_um = 4.0 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.diag([1.0, -1.0])
    matrix = np.linalg.inv(px_per_um)
    scene = Scene(np.array([[3.0, -2.0]]), px_per_um=px_per_um, pixel_size_um=None)
    settings = FollowSettings(um_per_px=tuple(map(tuple, matrix.tolist())), gain=1.0)
    follow(scene, FollowTrack(scene, settings, tell=lambda _: None), 10)
    assert len(scene.moves) == 1
    np.testing.assert_allclose(scene.offsets_px()[0], 0.0, atol=1e-3)


def test_with_the_axes_the_wrong_way_round_the_stage_stops_within_its_travel():
    told: list[str] = []
    scene = Scene(np.array([[3.0, -2.0]]))
    start = scene.stage_um
    settings = FollowSettings(um_per_px=((-1.0, 0.0), (0.0, -1.0)), travel_um=10.0, lost_after_frames=3)
    follow(scene, FollowTrack(scene, settings, tell=told.append), 60)
    assert (np.abs(np.array(scene.moves) - start) <= 10.0).all()
    assert any("limit of its travel, 10 µm from the start" in line or "was not seen" in line for line in told)
    assert len(told) < 10


def test_the_travel_is_limited_and_that_is_told_once():
    told: list[str] = []
    scene = Scene(np.array([[0.0, 20.0]]))
    follow(scene, FollowTrack(scene, FollowSettings(travel_um=5.0), tell=told.append), 30)
    assert scene.stage_xy_um() == (-35.0, 300.0)
    assert sum("limit of its travel" in line for line in told) == 1


def test_a_lost_particle_leaves_the_stage_where_it_is_until_it_is_back():
    told: list[str] = []
    scene = Scene(np.array([[1.0, 0.0]]))
    follower = FollowTrack(scene, tell=told.append)
    follow(scene, follower, 10)
    where, n_moves = scene.stage_um, len(scene.moves)
    gone = Tracks(Detections.none(), np.empty(0, np.int64))
    for index in range(10, 60):
        frame, _ = scene.expose(index)
        follower.act(scene.analysed(frame, gone))
    np.testing.assert_array_equal(scene.stage_um, where)
    assert len(scene.moves) == n_moves
    assert [line for line in told if "was not seen for 10 frames; the stage stays where it is" in line] == told[1:]
    scene.particles_um = scene.particles_um + 4.0
    follow(scene, follower, 10, start=60)  # a new linker: the particle has another number, if by chance the same
    assert "found the particle again" in told[2]
    assert np.linalg.norm(scene.offsets_px()[0]) < 0.3
    assert follower.report()["lost"] == 1


def test_it_stays_with_its_particle_when_the_numbers_change():
    scene = Scene(np.array([[2.0, 1.0], [2.0, -29.0], [-28.0, 1.0]]))
    follower = FollowTrack(scene, tell=lambda _: None)
    rng = np.random.default_rng(0)
    for index in range(60):
        frame, detections = scene.expose(index)
        order = rng.permutation(len(detections))
        follower.act(scene.analysed(frame, numbered(detections.rows(order))))  # numbers that mean nothing
        scene.particles_um = scene.particles_um + rng.normal(0, 0.3, 2)
    assert np.linalg.norm(scene.offsets_px()[0]) < 2.0


def test_a_track_chosen_by_its_number():
    scene = Scene(np.array([[2.0, 1.0], [2.0, -19.0]]))
    follower = FollowTrack(scene, FollowSettings(track_id=1), tell=lambda _: None)
    follow(scene, follower, 20)
    assert np.linalg.norm(scene.offsets_px()[1]) < 0.3


def test_a_frame_whose_age_is_not_known_moves_nothing():
    scene = Scene(np.array([[5.0, 0.0]]))
    follower = FollowTrack(scene, tell=lambda _: None)
    frame, detections = scene.expose(0)
    follower.act(Analysed(frame, numbered(detections), float("nan"), 0.0))  # the clock was set, says `OutputSink`
    assert scene.moves == []
    follower.act(scene.analysed(frame, numbered(detections)))
    assert len(scene.moves) == 1


def test_a_frame_counts_only_if_its_whole_exposure_followed_the_move():
    scene = Scene(np.array([[5.0, 0.0]]))
    follower = FollowTrack(scene, FollowSettings(exposure_s=0.015), tell=lambda _: None)
    follow(scene, follower, 2)
    assert len(scene.moves) == 1  # the second frame began to be exposed before it
    follow(scene, follower, 1, start=2)
    assert len(scene.moves) == 2


def test_an_unknown_pixel_size_is_a_failure_with_its_remedy():
    scene = Scene(np.array([[5.0, 0.0]]), pixel_size_um=None)
    with pytest.raises(ValueError, match="set it in Micro-Manager, or give um_per_px"):
        follow(scene, FollowTrack(scene), 1)


def test_the_end_of_the_camera_is_no_failure():
    class Closed(Scene):
        def stage_xy_um(self) -> tuple[float, float]:
            raise EndOfStream("closed")

    scene = Closed(np.array([[5.0, 0.0]]))
    follow(scene, FollowTrack(scene), 2)


def test_a_move_that_fails_counts_as_begun():
    class Stuck(Scene):
        def move_xy_um(self, x_um: float, y_um: float) -> None:
            raise OSError("the stage is stuck")

    scene = Stuck(np.array([[5.0, 0.0]]))
    follower = FollowTrack(scene, tell=lambda _: None)
    frame, detections = scene.expose(0)
    with pytest.raises(OSError, match="stuck"):
        follower.act(scene.analysed(frame, numbered(detections)))
    follower.act(scene.analysed(frame, numbered(detections)))  # exposed before
    assert follower.report()["waited"] == 1


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"gain": 0.0}, "gain must be above 0"),
        ({"gain": 1.5}, "gain must be above 0"),
        ({"travel_um": float("inf")}, "travel_um must be a finite number"),
        ({"radius_px": -1.0}, "radius_px must be a finite number"),
        ({"um_per_px": ((1.0, 1.0), (1.0, 1.0))}, "2 x 2 matrix that can be inverted"),
        ({"lost_after_frames": 0}, "lost_after_frames must be 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        FollowSettings(**settings)


def test_where_the_stage_went_is_told_from_the_start_on():
    told = []
    scene = Scene(np.array([[8.0, -5.0]]))
    start = scene.stage_xy_um()
    follow(scene, FollowTrack(scene, tell=lambda _: None, moved=lambda *where: told.append(where)), 30)
    assert told[0] == (0, pytest.approx(1.7e9 + 0.01), *start)
    assert [(y, x) for _, _, x, y in told[1:]] == scene.moves
    assert [time_s for _, time_s, _, _ in told] == sorted(time_s for _, time_s, _, _ in told)
