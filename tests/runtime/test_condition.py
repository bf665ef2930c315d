"""Conditions are read without eval, and a run stops or pauses when one holds."""

import numpy as np
import pytest

from oneframe.acquisition import Frame
from oneframe.runtime import Detections, Tracks
from oneframe.runtime.condition import Condition, StopWhen
from oneframe.runtime.seams import Analysed

IMAGE = np.arange(64, dtype=np.uint16).reshape(8, 8)


def result(index: int, scores: list[float], *, ids: list[int] | None = None, age_s: float = 0.0) -> Analysed:
    score = np.array(scores, np.float32)
    detections = Detections(score, score, score)
    track_id = np.arange(len(scores)) if ids is None else np.array(ids, np.int64)
    return Analysed(Frame(IMAGE, index, 0.0), Tracks(detections, track_id.astype(np.int64)), age_s, 0.0)


@pytest.mark.parametrize(
    ("text", "stops_at"),
    [
        ("objects < 1", 3),
        ("objects>=3", 1),
        ("objects == 0", 3),
        ("objects != 2", 1),
        ("score < 0.3", 2),
        ("score <= .3", 2),
        ("age_ms > 5e2", 4),
        ("track_length >= 3", 2),
    ],
)
def test_each_condition_holds_where_it_should(text, stops_at):
    frames = [
        result(0, [0.9, 0.8]),
        result(1, [0.9, 0.8, 0.7]),
        result(2, [0.2, 0.1]),
        result(3, []),
        result(4, [0.9, 0.9], ids=[7, 8], age_s=0.6),
    ]
    reasons: list[str] = []
    stop = StopWhen(text, reasons.append)
    for number, frame in enumerate(frames):
        stop.act(frame)
        assert len(reasons) == (number >= stops_at), text
    assert f"in frame {stops_at}" in reasons[0]
    assert stop.report()["n_calls"] == 1


def test_it_must_hold_for_frames_in_a_row():
    reasons: list[str] = []
    stop = StopWhen("objects < 1", reasons.append, for_frames=3)
    for index, scores in enumerate([[], [], [0.9], [], [], [], []]):
        stop.act(result(index, scores))
    assert reasons == ["objects < 1 was true for 3 frames: objects 0 in frame 5"]


def test_a_pause_is_called_each_time_anew():
    reasons: list[str] = []
    pause = StopWhen("objects < 1", pause=reasons.append)
    for index, scores in enumerate([[], [], [0.9], [], [0.9], []]):
        pause.act(result(index, scores))
    assert [reason[-1] for reason in reasons] == ["0", "3", "5"]


def test_a_track_counts_the_frames_in_which_it_was_seen():
    reasons: list[str] = []
    stop = StopWhen("track_length >= 100", reasons.append)
    for index in range(300):
        stop.act(result(index, [0.9], ids=[index if index % 3 else 5000]))
    assert "in frame 297" in reasons[0]


def test_tracks_of_long_ago_are_forgotten():
    stop = StopWhen("track_length >= 1e9", lambda _: None)
    for index in range(5000):
        stop.act(result(index, [0.9], ids=[index]))
    assert len(stop._lengths) <= 1000


@pytest.mark.parametrize(
    "text", ["", "objects", "objects < ", "objects < 1 or 1", "__import__('os') < 1", "count < 1", "objects = 1", "1<2"]
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="expected a condition such as 'objects < 1'"):
        Condition.parse(text)


def test_a_column_that_the_model_does_not_give_fails_with_its_name():
    with pytest.raises(ValueError, match="expected a model that gives photons"):
        StopWhen("photons < 100", lambda _: None).act(result(0, [0.9]))


def test_one_of_stop_and_pause_is_needed():
    with pytest.raises(ValueError, match="either stop or pause"):
        StopWhen("objects < 1")
    with pytest.raises(ValueError, match="either stop or pause"):
        StopWhen("objects < 1", print, pause=print)
    with pytest.raises(ValueError, match="for_frames must be 1 or more"):
        StopWhen("objects < 1", print, for_frames=0)
