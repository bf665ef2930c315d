"""Keep a particle in the centre of the image by moving the stage: `FollowTrack`."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition import EndOfStream, Frame
from oneframe.runtime.detections import Tracks
from oneframe.runtime.seams import Analysed

logger = logging.getLogger(__name__)

Vector = NDArray[np.float64]
"""(2,), y and x."""


class Stage(Protocol):
    """What moves the sample; `acquisition.micromanager.MicroManagerSource` is one."""

    def move_xy_um(self, x_um: float, y_um: float) -> None:
        """Move to an absolute position and return when it is reached."""
        ...

    def stage_xy_um(self) -> tuple[float, float]:
        """Return where it is, (x, y) in micrometres."""
        ...


@dataclass(frozen=True, slots=True)
class FollowSettings:
    """How `FollowTrack` follows.

    Raises
    ------
    ValueError
        If a number is out of its range, or the matrix cannot be inverted.
    """

    track_id: int | None = None
    """The track to follow. None: the one nearest to the centre of the first frame with any."""

    gain: float = 0.8
    """Share of the offset that one move corrects, above 0 and up to 1; less is calmer where positions are noisy."""

    dead_band_px: float = 0.2
    """Moves shorter than this are not made."""

    travel_um: float = 100.0
    """Farthest the stage may go along each axis from where it stood at the first frame."""

    radius_px: float = 20.0
    """The particle is looked for within this distance of where it was seen last, whatever number its track has by now.
    Below half the spacing of the particles and above what one moves from frame to frame."""

    um_per_px: tuple[tuple[float, float], tuple[float, float]] | None = None
    """Matrix from an offset (y, x) in the image, pixels, to the stage move (y, x), micrometres, that brings a particle
    with this offset to the centre. None: the pixel size, without rotation or mirroring; so it is in DemoCamera, where
    a stage move of +x shifts the image by -x."""

    exposure_s: float | None = None
    """Exposure of the camera, seconds. None: as the frame tells (`exposure_ms`), else 0."""

    predict_frames: int = 16
    """Frames over which the particle's velocity is measured, so that a steady drift is led instead of trailed.
    0: no prediction."""

    lost_after_frames: int = 10
    """Frames in a row without the particle after which it is told that it is lost."""

    def __post_init__(self) -> None:
        if not 0 < self.gain <= 1:
            raise ValueError(f"gain must be above 0 and at most 1, got {self.gain}")
        for name in ("dead_band_px", "travel_um", "radius_px", "predict_frames", "exposure_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number of 0 or more, got {value}")
        if self.lost_after_frames < 1:
            raise ValueError(f"lost_after_frames must be 1 or more, got {self.lost_after_frames}")
        if self.um_per_px is not None:
            matrix = np.asarray(self.um_per_px, np.float64)
            if matrix.shape != (2, 2) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
                raise ValueError(f"um_per_px must be a 2 x 2 matrix that can be inverted, got {self.um_per_px}")


class FollowTrack:
    """The `Output` that keeps a particle in the centre; only the newest frame counts (`newest_wins=True`).

    A frame counts only if its exposure began after the last move had ended: so no offset is corrected twice, however
    late the frames come. Positions are kept in the coordinates of the stage, in which a particle does not jump when
    the stage moves; there its track is found again when the linker gave it another number. When it is gone the stage
    stays where it is.

    Parameters
    ----------
    stage : Stage
    settings : FollowSettings
    tell : str -> None
        Takes what the user should know: which track is followed, that it is lost, that the travel is at its limit.
    moved : (frame, time_s, x_um, y_um) -> None
        Takes where the stage stands, at the first frame and after each move (wall clock): without it positions in the
        image tell nothing of the way that a followed particle went.
    """

    def __init__(
        self,
        stage: Stage,
        settings: FollowSettings | None = None,
        *,
        tell: Callable[[str], None] = logger.warning,
        moved: Callable[[int, float, float, float], None] = lambda *_: None,
    ) -> None:
        self.settings = FollowSettings() if settings is None else settings
        self.track_id: int | None = None
        """Number of the track that is followed by now."""
        self._stage = stage
        self._tell = tell
        self._moved = moved
        self._start_um: Vector | None = None
        self._moved_s = -math.inf  # when the last move ended, monotonic clock
        self._seen: deque[tuple[float, Vector]] = deque(maxlen=max(2, self.settings.predict_frames))
        self._at_limit = False
        self._n_missing = 0
        self._n_moves = 0
        self._n_waited = 0
        self._n_lost = 0

    def act(self, analysed: Analysed) -> None:
        """Look where the particle is and move the stage if it has to.

        Raises
        ------
        ValueError
            If neither the frame nor the settings tell the pixel size.
        """
        try:
            self._follow(analysed)
        except EndOfStream:  # the run has ended and the camera with its stage was closed
            return

    def close(self) -> None:
        """Leave the stage where it is."""

    def report(self) -> dict[str, object]:
        """Return what the follower did; `waited`: frames that were exposed before a move had ended."""
        return {
            "track_id": self.track_id,
            "moves": self._n_moves,
            "waited": self._n_waited,
            "lost": self._n_lost,
            "at_travel_limit": self._at_limit,
        }

    def _follow(self, analysed: Analysed) -> None:
        frame = analysed.frame
        exposure_s = self._exposure_s(frame)
        began_s = time.monotonic() - analysed.age_s - exposure_s  # cameras stamp a frame at the end of its exposure
        if not began_s > self._moved_s:
            self._n_waited += 1
            return
        um_per_px = self._um_per_px(frame)
        x_um, y_um = self._stage.stage_xy_um()
        stage_um = np.array([y_um, x_um])
        if self._start_um is None:
            self._start_um = stage_um
            self._moved(frame.index, time.time(), x_um, y_um)
        offset_px = self._find(analysed.tracks, frame, stage_um, np.linalg.inv(um_per_px))
        if offset_px is None:
            self._miss(frame.index)
            return
        if self._n_missing >= self.settings.lost_after_frames:
            self._tell(f"frame {frame.index}: found the particle again, as track {self.track_id}")
            self._seen.clear()  # where it went meanwhile tells nothing of its velocity
        self._n_missing = 0
        self._seen.append((began_s + exposure_s / 2, stage_um + um_per_px @ offset_px))
        move_um = self._move_um(um_per_px @ offset_px)
        goal_um = self._within_travel(stage_um + move_um, self._start_um, frame.index)
        if np.linalg.norm(np.linalg.solve(um_per_px, goal_um - stage_um)) >= max(self.settings.dead_band_px, 1e-9):
            self._move_to(goal_um, frame.index)

    def _exposure_s(self, frame: Frame) -> float:
        if self.settings.exposure_s is not None:
            return self.settings.exposure_s
        told = frame.metadata.get("exposure_ms")
        return float(told) / 1e3 if isinstance(told, int | float) else 0.0

    def _um_per_px(self, frame: Frame) -> NDArray[np.float64]:
        if self.settings.um_per_px is not None:
            return np.asarray(self.settings.um_per_px, np.float64)
        if frame.pixel_size_um is None:
            raise ValueError(
                f"expected a pixel size to follow a track, frame {frame.index} has none; set it in Micro-Manager, or "
                "give um_per_px"
            )
        return np.eye(2) * frame.pixel_size_um

    def _find(self, tracks: Tracks, frame: Frame, stage_um: Vector, px_per_um: NDArray[Any]) -> Vector | None:
        """Return the offset (y, x) of the particle from the centre of the image, px, or None if it is not there."""
        detections = tracks.detections
        offsets = np.column_stack((detections.y_px, detections.x_px)).astype(np.float64)  # (N, 2)
        offsets -= np.array([frame.height - 1, frame.width - 1]) / 2
        expected = px_per_um @ (self._seen[-1][1] - stage_um) if self._seen else None
        if expected is None:
            row = self._first_row(tracks.track_id, offsets)
        else:
            row = self._next_row(tracks.track_id, np.linalg.norm(offsets - expected, axis=1))
        if row is None:
            return None
        found = int(tracks.track_id[row])
        if self.track_id is None:
            self._tell(f"frame {frame.index}: following track {found}")
        self.track_id = found
        offset_px: Vector = offsets[row]
        return offset_px

    def _first_row(self, track_id: NDArray[np.int64], offsets: NDArray[np.float64]) -> int | None:
        wanted = self.settings.track_id
        if wanted is not None:
            rows = np.flatnonzero(track_id == wanted)
            return int(rows[0]) if len(rows) else None
        return int(np.argmin(np.linalg.norm(offsets, axis=1))) if len(offsets) else None

    def _next_row(self, track_id: NDArray[np.int64], distance_px: NDArray[Any]) -> int | None:
        """Choose its own track if that is near where the particle was, else the nearest."""
        near = distance_px <= self.settings.radius_px
        own = np.flatnonzero(near & (track_id == self.track_id))
        if len(own):
            return int(own[0])
        return int(np.argmin(distance_px)) if near.any() else None

    def _miss(self, index: int) -> None:
        self._n_missing += 1
        if self._n_missing == self.settings.lost_after_frames:
            self._n_lost += 1
            which = self.settings.track_id if self.track_id is None else self.track_id
            name = "any particle" if which is None else f"track {which}"
            self._tell(
                f"frame {index}: {name} was not seen for {self._n_missing} frames; the stage stays where it is until "
                "it is back"
            )

    def _move_um(self, offset_um: Vector) -> Vector:
        """Return the next move (y, x): what corrects the offset, and what meets the drift until the move after it."""
        gain = self.settings.gain
        if self.settings.predict_frames == 0 or len(self._seen) < 4:
            return gain * offset_um
        times_s = np.array([time_s for time_s, _ in self._seen])
        interval_s = float(np.median(np.diff(times_s)))
        if interval_s <= 0:
            return gain * offset_um
        where_um = np.array([position for _, position in self._seen])  # (N, 2)
        since_s = times_s - times_s.mean()
        velocity = since_s @ (where_um - where_um.mean(axis=0)) / (since_s @ since_s)  # um per s
        # Between two moves the offset runs through velocity * interval, and a move comes `late_s` after its exposure.
        # With this offset at the exposure the middle of that run, not its end, is in the centre.
        late_s = time.monotonic() - times_s[-1]
        meant_um = velocity * (interval_s / 2 - late_s)
        move: Vector = gain * (offset_um - meant_um) + velocity * interval_s
        return move

    def _within_travel(self, goal_um: Vector, start_um: Vector, index: int) -> Vector:
        travel_um = self.settings.travel_um
        allowed = np.clip(goal_um, start_um - travel_um, start_um + travel_um)
        at_limit = bool((allowed != goal_um).any())
        if at_limit and not self._at_limit:
            self._tell(f"frame {index}: the stage is at the limit of its travel, {travel_um:g} µm from the start")
        self._at_limit = at_limit
        return allowed

    def _move_to(self, goal_um: Vector, index: int) -> None:
        y_um, x_um = goal_um.tolist()
        try:
            self._stage.move_xy_um(x_um, y_um)
        finally:  # a move that failed may have begun
            self._moved_s = time.monotonic()
            self._n_moves += 1
        self._moved(index, time.time(), x_um, y_um)
