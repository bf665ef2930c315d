"""Outputs never hold up a run, whatever they do, and every frame is accounted for."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from microscope import SCENE

from oneframe.acquisition import Frame, open_source
from oneframe.runtime import Detections, ModelCard, Tracks
from oneframe.runtime.link import FrameLinker, LinkSettings
from oneframe.runtime.output import FAILURES_IN_A_ROW, CallFunction, LatencyHistogram, OutputSink
from oneframe.runtime.pipeline import Pipeline
from oneframe.runtime.seams import Analysed

IMAGE = np.arange(64, dtype=np.uint16).reshape(8, 8)
TIMEOUT_S = 10.0


def analysed(index: int, *, time_s: float | None = None, age_s: float = 0.0) -> Analysed:
    one = np.ones(1, np.float32)
    tracks = Tracks(Detections(one, one, one), np.zeros(1, np.int64))
    return Analysed(Frame(IMAGE, index, time.time() if time_s is None else time_s), tracks, age_s, 0.0)


class Spy:
    """An output that does what it is told and notes for which frames it was called."""

    def __init__(self, do: Callable[[Analysed], None] = lambda _: None) -> None:
        self.do = do
        self.acted: list[int] = []
        self.ages_s: list[float] = []
        self.closed = 0

    def act(self, analysed: Analysed) -> None:
        self.ages_s.append(analysed.age_s)
        self.do(analysed)
        self.acted.append(analysed.frame.index)

    def close(self) -> None:
        self.closed += 1


class Gate:
    """Holds an output up until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, _analysed: Analysed) -> None:
        self.reached.set()
        assert self.open.wait(TIMEOUT_S)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def accounted(report: dict) -> bool:
    return report["frames"] == (
        report["n"] + sum(report["failed"].values()) + sum(report["dropped"].values()) + report["waiting"]
    )


def test_a_slow_actuator_gets_the_newest_frame_and_delays_nobody():
    gate = Gate()
    spy = Spy(gate)
    sink = OutputSink("stage", spy, newest_wins=True)
    sink.write(analysed(0))
    assert gate.reached.wait(TIMEOUT_S)
    start_s = time.monotonic()
    for index in range(1, 1001):
        sink.write(analysed(index))
    assert time.monotonic() - start_s < 1.0
    report = sink.report()
    assert report["waiting"] == 2
    assert accounted(report)
    gate.open.set()
    wait_until(lambda: sink.report()["n"] == 2)
    sink.close()
    assert spy.acted == [0, 1000]
    assert sink.report()["dropped"] == {"a newer frame came first": 999}
    assert accounted(sink.report())
    assert spy.closed == 1


def test_a_slow_publisher_gets_what_its_queue_holds_in_order():
    gate = Gate()
    spy = Spy(gate)
    sink = OutputSink("publish", spy, queue_frames=5)
    sink.write(analysed(0))
    assert gate.reached.wait(TIMEOUT_S)
    for index in range(1, 11):
        sink.write(analysed(index))
    gate.open.set()
    sink.close()
    assert spy.acted == [0, 1, 2, 3, 4, 5]
    assert sink.report()["dropped"] == {"the queue for the output was full": 5}
    assert accounted(sink.report())


def test_a_failure_costs_one_frame_and_is_told_once():
    told: list[str] = []

    def fail_on_odd(result: Analysed) -> None:
        if result.frame.index % 2:
            raise RuntimeError("the laser says no")

    spy = Spy(fail_on_odd)
    sink = OutputSink("laser", spy, tell=told.append)
    for index in range(40):
        sink.write(analysed(index))
    sink.close()
    assert spy.acted == list(range(0, 40, 2))
    assert sink.report()["failed"] == {"RuntimeError: the laser says no": 20}
    assert sink.report()["left_out"] is None
    assert told == ["output laser failed at frame 1: RuntimeError: the laser says no"]


def test_an_output_that_only_fails_is_left_out_and_that_is_told_once():
    told: list[str] = []

    def leave(_result: Analysed) -> None:
        raise SystemExit(3)  # user code may do this; it must not end the thread unseen

    sink = OutputSink("gone", Spy(leave), tell=told.append)
    for index in range(200):
        sink.write(analysed(index))
    wait_until(lambda: sink.report()["waiting"] == 0)
    sink.write(analysed(200))
    sink.close()
    report = sink.report()
    assert sum(report["failed"].values()) == FAILURES_IN_A_ROW
    assert report["dropped"] == {"the output was left out": 201 - FAILURES_IN_A_ROW}
    assert accounted(report)
    assert [("left out" in line) for line in told] == [False, True]


def test_an_output_that_never_returns_is_left_behind():
    gate = Gate()
    told: list[str] = []
    sink = OutputSink("hung", Spy(gate), close_s=0.1, tell=told.append)
    for index in range(3):
        sink.write(analysed(index))
    assert gate.reached.wait(TIMEOUT_S)
    start_s = time.monotonic()
    sink.close()
    assert time.monotonic() - start_s < 2.0
    assert sink.report()["dropped"] == {"the run had ended": 2, "the output did not return": 1}
    assert accounted(sink.report())
    assert "is left behind" in told[0]
    gate.open.set()


def test_a_console_that_is_gone_does_not_end_the_output():
    def broken(_sentence: str) -> None:
        raise BrokenPipeError

    def fail_first(result: Analysed) -> None:
        if result.frame.index == 0:
            raise ValueError("once")

    spy = Spy(fail_first)
    sink = OutputSink("spy", spy, tell=broken)
    sink.write(analysed(0))
    sink.write(analysed(1))
    sink.close()
    assert spy.acted == [1]


def test_the_latency_runs_from_the_exposure_to_the_end_of_act():
    spy = Spy(lambda _: time.sleep(0.05))
    sink = OutputSink("spy", spy)
    for index in range(3):
        sink.write(analysed(index, time_s=time.time() - 0.2, age_s=0.15))
    sink.close()
    report = sink.report()
    assert 250 * 0.98 <= report["latency_p50_ms"] <= report["latency_p99_ms"] < 2000
    assert min(spy.ages_s) >= 0.2
    assert report["latency_unknown"] == 0


@pytest.mark.parametrize(
    ("time_s", "age_s", "known"),
    [
        (lambda: 0.0, 0.3, True),  # a recording of long ago: its age counts from its arrival
        (lambda: time.time() + 7200, 0.3, True),  # a recording whose clock was wrong
        (lambda: time.time() - 3600, 3600.0, False),  # the clock was set forward before the analysis
        (lambda: time.time() + 3600, -3600.0, False),  # set back
    ],
)
def test_a_clock_that_was_set_does_not_enter_the_latency(time_s, age_s, known):
    spy = Spy()
    sink = OutputSink("spy", spy, stale_s=5.0)
    sink.write(analysed(0, time_s=time_s(), age_s=age_s))
    sink.close()
    report = sink.report()
    assert report["n"] == 1
    assert report["latency_unknown"] == (not known)
    if known:
        assert 300 * 0.98 <= report["latency_p50_ms"] < 2000
    else:
        assert report["latency_p50_ms"] is None
        assert np.isnan(spy.ages_s[0])


def test_an_old_result_moves_nothing():
    spy = Spy()
    sink = OutputSink("stage", spy, stale_s=0.5)
    sink.write(analysed(0, time_s=time.time() - 1.0, age_s=0.9))
    sink.write(analysed(1))
    sink.close()
    assert spy.acted == [1]
    assert sink.report()["dropped"] == {"the result was too old": 1}


def test_the_histogram_gives_quantiles_to_one_percent():
    latencies_s = np.random.default_rng(4).lognormal(-4.0, 1.5, 20_000)
    histogram = LatencyHistogram()
    for latency_s in latencies_s:
        histogram.add(float(latency_s))
    histogram.add(1e9)
    assert histogram.n == 20_001
    for fraction in (0.01, 0.5, 0.99):
        exact = np.quantile(latencies_s, fraction)
        assert histogram.quantile_s(fraction) == pytest.approx(exact, rel=0.015)
    assert LatencyHistogram().quantile_s(0.5) is None


def test_in_a_pipeline_a_broken_and_a_hung_output_change_nothing_for_the_others():
    class Finder:
        card = ModelCard("lodestar", "uint16", 1, ("y_px", "x_px", "score"), 0.5, 8.0)

        def detect(self, _image: np.ndarray) -> Detections:
            one = np.ones(1, np.float32)
            return Detections(one, one, one)

    def fail(_result: Analysed) -> None:
        raise OSError("no such device")

    gate = Gate()
    good = Spy()
    outputs = {
        "good": OutputSink("good", good),
        "broken": OutputSink("broken", Spy(fail), tell=lambda _: None),
        "hung": OutputSink("hung", Spy(gate), newest_wins=True, close_s=0.1, tell=lambda _: None),
    }
    source = open_source(SCENE + "&frames=60&seed=1")
    ended = Pipeline(source, Finder(), FrameLinker(LinkSettings(5.0)), outputs).run()
    gate.open.set()
    assert ended.account.analysed == 60
    assert not ended.failed
    assert ended.sink_drops == {}
    assert good.acted == list(range(60))
    assert all(accounted(sink.report()) for sink in outputs.values())
    assert outputs["broken"].report()["n"] == outputs["hung"].report()["n"] == 0


def test_call_function_by_name_and_from_a_file(tmp_path, monkeypatch):
    seen: list[int] = []
    CallFunction(lambda result: seen.append(result.frame.index)).act(analysed(3))
    assert seen == [3]
    (tmp_path / "mine.py").write_text("calls = []\ndef act(result):\n    calls.append(result.frame.index)\n")
    CallFunction(f"{tmp_path / 'mine.py'}:act").act(analysed(4))
    monkeypatch.syspath_prepend(str(tmp_path))
    CallFunction("mine:act").act(analysed(5))
    import mine

    assert mine.calls == [5]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("no_colon", "mind the colon"),
        ("no.such.module:act", "cannot import 'no.such.module'.*No module named"),
        ("json:no_such", "expected the function 'no_such' in json, there is none; it has .*dumps"),
        ("string:digits", "expected the function 'digits' in string"),
        ("nowhere/mine.py:act", "there is no file"),
    ],
)
def test_a_function_that_is_not_there_is_explained(text, match):
    with pytest.raises(ValueError, match=match):
        CallFunction(text)


def test_the_report_carries_what_the_output_itself_reports():
    class Reporting(Spy):
        def report(self) -> dict[str, object]:
            return {"moves": len(self.acted)}

    sink = OutputSink("stage", Reporting())
    sink.write(analysed(0))
    sink.close()
    assert sink.report()["output"] == {"moves": 1}


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="queue_frames of 1 or more"):
        OutputSink("x", Spy(), queue_frames=0)
    with pytest.raises(ValueError, match="stale_s above 0"):
        OutputSink("x", Spy(), stale_s=0.0)
