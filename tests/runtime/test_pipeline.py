"""The live loop accounts for every frame, never waits for a sink, and outlives bad frames."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import pytest
from microscope import SCENE
from scripted import IMAGE, Event, Finder, Notes, Script, frame

from oneframe.acquisition import BadFrameError, EndOfStream, Frame, SourceError
from oneframe.app.main import main
from oneframe.runtime.account import Status, StatusBoard
from oneframe.runtime.link import FrameLinker, LinkSettings
from oneframe.runtime.pipeline import Pipeline
from oneframe.runtime.record import RunRecord, read_run
from oneframe.runtime.seams import Analysed


def pipeline(
    events: list[Event], *, live: bool, buffered: bool = False, model: Finder | None = None, **kwargs
) -> tuple[Pipeline, Notes]:
    notes = Notes()
    sinks = {"notes": notes, **kwargs.pop("sinks", {})}
    linker = FrameLinker(LinkSettings(max_distance_px=5.0))
    source = Script(iter(events), live=live, buffered=buffered)
    return Pipeline(source, model or Finder(), linker, sinks, **kwargs), notes


END = EndOfStream("over", n_frames=10)


def test_a_recording_is_analysed_frame_by_frame_and_waits_for_a_slow_model():
    slow = Finder(gate=lambda _: np.linalg.svd(np.ones((120, 120))) and None)
    run, notes = pipeline([*map(frame, range(50)), EndOfStream("over", n_frames=50)], live=False, model=slow,
                          queue_frames=2)  # fmt: skip
    ended = run.run()
    assert [a.frame.index for a in notes.written] == list(range(50))
    assert (ended.account.seen, ended.account.analysed, ended.account.lost_before) == (50, 50, 0)
    assert (ended.reason, ended.failed, ended.published) == ("over", False, 50)
    assert notes.closed == 1


def test_gaps_and_the_missing_tail_are_lost_and_told_to_every_sink():
    run, notes = pipeline([frame(2), frame(3), frame(6), EndOfStream("over", n_frames=9)], live=True)
    account = run.run().account
    assert account.before_start == 2
    assert account.lost_before == 4
    assert [(m.kind, m.index, m.n_frames) for m in notes.missed] == [("lost", 4, 2), ("lost", 7, 2)]
    assert account.before_start + account.seen + account.lost_before == 9


def test_bad_frames_are_counted_with_their_reason_and_the_run_goes_on():
    def choke(image: np.ndarray) -> None:
        if image[0, 0] == 99:
            raise ValueError("the model takes another frame")

    bad = Frame(np.full((8, 8), 99, np.uint16), 2, time.time())
    events = [frame(0), BadFrameError("header and bytes disagree", index=1), bad, BadFrameError("no header"), frame(4),
              EndOfStream("over", n_frames=5)]  # fmt: skip
    run, notes = pipeline(events, live=True, model=Finder(gate=choke))
    account = run.run().account
    assert (account.seen, account.analysed, account.failed, account.lost_before) == (5, 2, 3, 0)
    assert account.reasons == {
        "header and bytes disagree": 1,
        "the model takes another frame": 1,
        "no header": 1,
    }
    assert {m.reason for m in notes.missed if m.kind == "failed"} == set(account.reasons)


def test_latest_mode_analyses_the_newest_frame_and_counts_the_others():
    arrived = threading.Event()
    release = threading.Event()

    def events() -> Iterator[Event]:
        yield frame(0)
        for index in range(1, 20):
            yield frame(index)
        arrived.set()
        release.wait(10)
        yield EndOfStream("over", n_frames=20)

    def hold(_image: np.ndarray) -> None:
        arrived.wait(10)
        release.set()

    notes = Notes()
    linker = FrameLinker(LinkSettings(max_distance_px=5.0))
    run = Pipeline(Script(events(), live=True), Finder(gate=hold), linker, {"notes": notes}, mode="latest")
    account = run.run().account
    assert notes.written[-1].frame.index == 19
    assert account.seen == 20
    assert account.skipped == 20 - len(notes.written) >= 18
    assert account.reasons == {"a newer frame came first": account.skipped}


def test_a_full_queue_of_a_live_source_skips_the_new_frame():
    arrived = threading.Event()

    def events() -> Iterator[Event]:
        yield from map(frame, range(10))
        arrived.set()
        yield EndOfStream("over", n_frames=10)

    model = Finder(gate=lambda _: arrived.wait(10) and None)
    notes = Notes()
    linker = FrameLinker(LinkSettings(max_distance_px=5.0))
    account = Pipeline(Script(events(), live=True), model, linker, {"notes": notes}, queue_frames=3).run().account
    assert account.seen == 10
    assert account.skipped >= 6
    assert [a.frame.index for a in notes.written][:3] == [0, 1, 2] or notes.written[0].frame.index == 0
    assert account.reasons == {"the queue for the model was full": account.skipped}


def test_what_a_model_says_of_one_frame_after_the_other_is_noted_once():
    @dataclass
    class Dark(Finder):
        def detect(self, image):
            dark = len(self.seen) != 5
            self.seen.append(0)
            return replace(super().detect(image), notes=("it is dark",) if dark else ())

    run, notes = pipeline([*map(frame, range(9)), EndOfStream("over")], live=False, model=Dark())
    run.run()
    assert [(noted.index, noted.text) for noted in notes.noted] == [(0, "it is dark"), (6, "it is dark")]


def test_a_stuck_sink_never_blocks_the_others():
    stuck = threading.Event()
    slow = Notes(on_write=lambda: stuck.wait(10) and None)
    run, notes = pipeline([*map(frame, range(200)), EndOfStream("over")], live=True, sinks={"slow": slow})
    done = threading.Thread(target=run.run)
    done.start()
    deadline_s = time.monotonic() + 10
    while len(notes.written) < 200 and time.monotonic() < deadline_s:
        threading.Event().wait(0.01)
    assert len(notes.written) == 200
    assert len(slow.written) == 0
    stuck.set()
    done.join(10)
    assert len(slow.written) == 200


def test_a_sink_that_raises_is_left_out_unless_the_run_depends_on_it():
    def fail() -> None:
        raise OSError("disk full")

    broken = Notes(on_write=fail)
    run, notes = pipeline([*map(frame, range(20)), EndOfStream("over")], live=False, sinks={"broken": broken})
    ended = run.run()
    assert len(notes.written) == 20
    assert not ended.failed
    assert ended.sink_drops == {"broken": {"failed: disk full": 20}}

    broken = Notes(on_write=fail)
    events = [*map(frame, range(20)), *[None] * 100_000]
    run, _ = pipeline(events, live=True, sinks={"record": broken}, essential=frozenset({"record"}))
    ended = run.run()
    assert ended.failed
    assert ended.reason == "record failed: disk full"


def test_what_a_slow_sink_did_not_take_is_counted_and_nobody_waits(monkeypatch):
    monkeypatch.setattr("oneframe.runtime.pipeline._QUEUED_BYTES", 20 * IMAGE.nbytes)
    go_on = threading.Event()
    slow = Notes(on_write=lambda: go_on.wait(60) and None)
    behind: list[Status] = []

    def events() -> Iterator[Event]:
        for index in range(200):
            yield frame(index)
            while len(notes.written) <= index and not run._stop.wait(0.001):  # as fast as the model and a quick sink
                yield None
        behind.append(run.status())
        go_on.set()
        yield EndOfStream("over", n_frames=200)

    notes = Notes()
    linker = FrameLinker(LinkSettings(max_distance_px=5.0))
    run = Pipeline(Script(events(), live=True), Finder(), linker, {"slow": slow, "notes": notes})
    ended = run.run()
    n_dropped = ended.sink_drops["slow"]["too slow"]
    assert ended.sink_drops == {"slow": {"too slow": n_dropped}}
    assert 170 <= n_dropped == 200 - len(slow.written)
    assert behind[0].sink_dropped == n_dropped
    assert not ended.failed
    assert ended.account.analysed == len(notes.written) == 200

    slow = Notes(on_write=lambda: np.linalg.svd(np.ones((60, 60))) and None)
    run, notes = pipeline([*map(frame, range(200)), EndOfStream("over")], live=False, sinks={"slow": slow})
    assert run.run().sink_drops == {}  # a recording waits for its sinks
    assert len(slow.written) == 200
    assert len(notes.written) == 200


def test_a_disk_that_is_too_slow_stands_in_run_json_and_in_the_closing_line(bead_model, tmp_path, monkeypatch, capsys):
    written, folder = RunRecord.write, tmp_path / "run"

    def slowly(record: RunRecord, analysed: Analysed) -> None:
        threading.Event().wait(0.05)
        written(record, analysed)

    monkeypatch.setattr(RunRecord, "write", slowly)
    monkeypatch.setattr("oneframe.runtime.pipeline._QUEUED_BYTES", 10 * bead_model.snap.frame.pixels.nbytes)
    command = ["log", str(bead_model.path), "--source", SCENE + "&fps=200&frames=100", "-o", str(folder)]
    assert main(command) == 0
    run = read_run(folder)
    n_dropped = run["sink_drops"]["record"]["too slow"]
    assert run["sink_drops"] == {"record": {"too slow": n_dropped}}
    assert n_dropped > 0
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line.endswith(f"; {n_dropped} results did not reach the record (too slow)")
    account = run["account"]
    assert account["seen"] == account["analysed"] + account["skipped"] + account["failed"] == 100
    with closing(sqlite3.connect(folder / "run.sqlite")) as db:
        assert db.execute("SELECT COUNT(*) FROM frames").fetchone() == (100 - n_dropped,)


def test_the_board_shows_the_status_of_the_pipeline_that_comes_after_it():
    board = StatusBoard()
    assert (board().seen, board().drift) == (0, "")
    seen: list[int] = []
    run, _ = pipeline([*map(frame, range(5)), EndOfStream("over")], live=False,
                      sinks={"reader": Notes(on_write=lambda: seen.append(board().seen))})  # fmt: skip
    board.follow(run.status)
    run.run()
    assert len(seen) == 5
    assert seen[-1] == board().seen == 5


def test_a_source_that_breaks_down_ends_the_run_with_its_sentence():
    run, notes = pipeline([frame(0), SourceError("the camera was unplugged")], live=True)
    ended = run.run()
    assert ended.failed
    assert ended.reason == "the camera was unplugged"
    assert len(notes.written) == 1

    run, _ = pipeline([frame(0), RuntimeError("driver says 42")], live=True)
    ended = run.run()
    assert "RuntimeError: driver says 42" in ended.reason


@pytest.mark.parametrize("limit", [{"n_frames": 7}, {"seconds": 0.05}])
def test_limits_end_the_run(limit):
    def endless() -> Iterator[Event]:
        index = 0
        while True:
            yield frame(index)
            index += 1

    source = Script(endless(), live=False)
    linker = FrameLinker(LinkSettings(max_distance_px=5.0))
    ended = Pipeline(source, Finder(), linker, {}).run(**limit)
    assert source.closed_in == ["oneframe-source"]
    if "n_frames" in limit:
        assert ended.account.seen == ended.account.analysed == 7
    else:
        assert ended.reason == "the time asked for was over"


def test_stop_from_another_thread_keeps_the_account():
    stopped = threading.Event()

    def endless() -> Iterator[Event]:
        index = 0
        while True:
            yield frame(index)
            index += 1
            if index == 50:
                stopped.set()

    linker = FrameLinker(LinkSettings(max_distance_px=5.0))
    run = Pipeline(Script(endless(), live=True), Finder(), linker, {})
    threading.Thread(target=lambda: (stopped.wait(10), run.stop("enough"))).start()
    ended = run.run()
    assert ended.reason == "enough"
    assert ended.account.seen >= 50


def test_status_tells_rates_and_ages():
    release = threading.Event()

    def events() -> Iterator[Event]:
        yield from map(frame, range(30))
        release.wait(10)
        yield EndOfStream("over")

    linker = FrameLinker(LinkSettings(max_distance_px=5.0))
    notes = Notes()
    run = Pipeline(Script(events(), live=True), Finder(), linker, {"notes": notes})
    worker = threading.Thread(target=run.run)
    worker.start()
    deadline_s = time.monotonic() + 10
    while len(notes.written) < 30 and time.monotonic() < deadline_s:
        threading.Event().wait(0.01)
    status = run.status()
    release.set()
    worker.join(10)
    assert (status.seen, status.analysed, status.n_detections) == (30, 30, 1)
    assert status.camera_fps > 0
    assert 0 <= status.age_p50_ms <= status.age_p99_ms < 5000


# what happens to the camera and to the clock


def told(index: int, *, pixels: np.ndarray = IMAGE, **metadata) -> Frame:
    return Frame(pixels, index, time.time(), metadata=metadata)


def test_what_the_source_notes_reaches_every_sink_and_the_status():
    run, notes = pipeline([told(0), told(1, note="the camera was started again"), told(2), END], live=True)
    run.run()
    assert [(n.index, n.text) for n in notes.noted] == [(1, "the camera was started again")]
    assert run.status().note == "the camera was started again"


def test_a_loss_of_unknown_size_counts_the_least_it_can_have_been():
    events = [told(0), told(1, lost_at_least=7, note="the buffer overflowed"), told(2), EndOfStream("over", n_frames=3)]
    run, notes = pipeline(events, live=True)
    account = run.run().account
    assert (account.lost_before, account.gaps_of_unknown_length) == (7, 1)
    assert account.reasons == {"without a gap in the source's numbers": 7}
    assert [n.text for n in notes.noted] == ["the buffer overflowed"]
    assert [(m.kind, m.index, m.n_frames, m.at_least) for m in notes.missed] == [("lost", None, 7, True)]


def test_a_camera_that_changes_in_mid_run_is_noted_once():
    wide = np.zeros((8, 16), np.uint8)
    events = [
        told(0, exposure_ms=10.0), told(1, exposure_ms=10.0), told(2, exposure_ms=20.0), told(3, exposure_ms=20.0),
        told(4, pixels=wide, exposure_ms=20.0), END,
    ]  # fmt: skip
    run, notes = pipeline(events, live=True)
    run.run()
    assert [(n.index, n.text) for n in notes.noted] == [
        (2, "the camera changed: exposure_ms 10.0 to 20.0"),
        (4, "the camera changed: size 8 x 8 to 16 x 8, pixels uint16 to uint8"),
    ]


def test_a_clock_that_is_set_in_mid_run_is_noted_and_breaks_nothing(monkeypatch):
    real = time.time

    def events() -> Iterator[Event]:
        yield frame(0)
        yield frame(1)
        monkeypatch.setattr(time, "time", lambda: real() - 3600)
        yield frame(2)
        yield END

    notes = Notes()
    linker = FrameLinker(LinkSettings(max_distance_px=5.0))
    ended = Pipeline(Script(events(), live=True), Finder(), linker, {"notes": notes}).run()
    assert ended.account.analysed == 3
    assert [(n.index, n.text) for n in notes.noted] == [(2, "this computer's clock was set by -3600.0 s")]


def test_a_source_with_a_buffer_of_its_own_is_made_to_wait_and_nothing_is_skipped():
    slow = Finder(gate=lambda _: time.sleep(0.002))
    run, _ = pipeline(
        [*map(frame, range(60)), EndOfStream("over", n_frames=60)],
        live=True, buffered=True, model=slow, mode="every", queue_frames=2,
    )  # fmt: skip
    account = run.run().account
    assert (account.analysed, account.skipped, account.lost_before) == (60, 0, 0)


def test_in_latest_mode_a_source_with_a_buffer_is_not_kept_waiting():
    slow = Finder(gate=lambda _: time.sleep(0.05))
    events = [*map(frame, range(60)), EndOfStream("over", n_frames=60)]
    run, _ = pipeline(events, live=True, buffered=True, model=slow, mode="latest")
    account = run.run().account
    assert account.skipped > 40
    assert account.seen == 60
