"""Several frames of a recording at once: the same rows in the same order, every frame accounted for."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from microscope import beads
from scripted import CARD, Event, Finder, Notes, Script, frame

from oneframe.acquisition import BadFrameError, EndOfStream, Frame, frames
from oneframe.app.main import main
from oneframe.runtime import Detections, HologramModel, ModelCard, load_model
from oneframe.runtime.cell_model import CellModel
from oneframe.runtime.crew import Crew, looks
from oneframe.runtime.frame_window import WindowModel
from oneframe.runtime.link import FrameLinker, LinkSettings
from oneframe.runtime.pipeline import Pipeline
from oneframe.runtime.seams import SharesWork

N_AT_ONCE = 3


@dataclass
class Shared:
    """A model whose twins find one object at a place that the frame tells; `gate` sees every image before."""

    gate: Callable[[np.ndarray], Any] = lambda _: None
    card: ModelCard = CARD
    threads: set[str] = field(default_factory=set)

    def detect(self, image: np.ndarray) -> Detections:
        self.threads.add(threading.current_thread().name)
        self.gate(image)
        return Detections(*np.full((3, 1), image[0, 0], np.float32))

    def twins(self) -> list["Shared"]:
        return [self] * N_AT_ONCE


@dataclass
class Image:
    frame: Frame


@dataclass
class Alone:
    """A model that cannot share its work."""

    model: Any

    @property
    def card(self) -> ModelCard:
        return self.model.card

    def detect(self, image: np.ndarray) -> Detections:
        return self.model.detect(image)


def numbered(index: int) -> Frame:
    """A frame whose first pixel is its index."""
    image = np.arange(64, dtype=np.uint16).reshape(8, 8)
    image[0, 0] = index
    return Frame(image, index, time.time())


def run_of(events: Iterator[Event], model: Any, notes: Notes, **kwargs: Any) -> Pipeline:
    linker = FrameLinker(LinkSettings(max_distance_px=5.0))
    return Pipeline(Script(events, live=False), model, linker, {"notes": notes}, **kwargs)


def rows(notes: Notes) -> list[tuple[Any, ...]]:
    """Everything of every row that was written, bits included."""
    return [
        (a.frame.index, a.tracks.track_id.tobytes(), *(c.tobytes() for c in a.tracks.detections.columns().values()))
        for a in notes.written
    ]


def all_at_once(n_frames: int) -> Callable[[np.ndarray], None]:
    """A gate that only opens for several images together; the first comes alone, the last may be too few."""
    together = threading.Barrier(N_AT_ONCE, timeout=10)

    def gate(image: np.ndarray) -> None:
        if 0 < image[0, 0] < 1 + (n_frames - 1) // N_AT_ONCE * N_AT_ONCE:
            together.wait()

    return gate


def test_frames_are_looked_at_together_and_come_back_in_their_order():
    together = looks(Shared(all_at_once(32)), (Image(numbered(k)) for k in range(32)))
    found = [(image.frame.index, look.detections.y_px.item()) for image, look in together]
    assert found == [(k, k) for k in range(32)]


def test_a_recording_in_the_pipeline_is_shared_and_linked_in_its_order():
    model, notes = Shared(all_at_once(41)), Notes()
    ended = run_of(iter([*map(numbered, range(41)), EndOfStream("over", n_frames=41)]), model, notes).run()
    assert [a.frame.index for a in notes.written] == list(range(41))
    assert [a.tracks.detections.y_px.item() for a in notes.written] == list(range(41))
    assert all(a.tracks.track_id == notes.written[0].tracks.track_id for a in notes.written)  # it moves 1.4 px a frame
    assert (ended.account.seen, ended.account.analysed, ended.reason) == (41, 41, "over")


@pytest.mark.parametrize("kind", ["live", "latest"])
def test_frames_of_a_camera_are_never_shared(kind):
    model, notes = Shared(), Notes()
    linker = FrameLinker(LinkSettings(max_distance_px=5.0))
    source = Script(iter([*map(numbered, range(20)), EndOfStream("over", n_frames=20)]), live=kind == "live")
    Pipeline(source, model, linker, {"notes": notes}, mode="latest" if kind == "latest" else "every").run()
    assert model.threads == {threading.current_thread().name}


def test_models_with_a_memory_do_not_share_their_work():
    assert not any(issubclass(kind, SharesWork) for kind in (WindowModel, HologramModel, Finder))
    assert issubclass(CellModel, SharesWork)
    assert Crew.of(Finder(), frame(0)) is None


def test_frames_too_large_for_the_memory_come_one_after_another(monkeypatch):
    monkeypatch.setattr("oneframe.runtime.crew._BYTES_PER_PX", 2**30 // 64)
    two = Crew.of(Shared(), frame(0))
    assert two is not None
    assert two._free.qsize() == 2
    two.close()
    monkeypatch.setattr("oneframe.runtime.crew._BYTES_PER_PX", 2**30 // 63)
    assert Crew.of(Shared(), frame(0)) is None


def test_bad_frames_have_their_reason_and_the_others_their_order():
    def choke(image: np.ndarray) -> None:
        if image[0, 0] % 5 == 4:
            raise ValueError("too dark") if image[0, 0] % 2 else MemoryError("no room")

    notes = Notes()
    events = [numbered(k) if k != 11 else BadFrameError("cut off", index=11) for k in range(30)]
    account = run_of(iter([*events, EndOfStream("over", n_frames=30)]), Shared(choke), notes).run().account
    assert (account.seen, account.analysed, account.failed, account.lost_before) == (30, 23, 7, 0)
    assert account.reasons == {"cut off": 1, "too dark": 3, "MemoryError: no room": 3}
    assert [a.frame.index for a in notes.written] == [k for k in range(30) if k != 11 and k % 5 != 4]


def test_no_more_frames_are_read_ahead_than_may_wait():
    notes = Notes()
    events = iter([*map(numbered, range(400)), EndOfStream("over", n_frames=400)])
    go_on = threading.Event()
    run = run_of(events, Shared(lambda image: image[0, 0] == 8 and go_on.wait(60)), notes, queue_frames=4)
    worker = threading.Thread(target=run.run)
    worker.start()
    seen = -1
    while seen != (seen := run.status().seen) or seen < 8:  # until the reader stands still: frame 8 is not done
        threading.Event().wait(0.2)
    # frame 8 holds everything: those given to the crew after it, those queued, the one in the reader's hand
    assert 8 < seen <= 8 + 3 * N_AT_ONCE + 4 + 1
    go_on.set()
    worker.join(10)
    assert len(notes.written) == 400


@pytest.mark.parametrize("limit", ["n_frames", "stop", "sink"])
def test_the_run_ends_when_it_should_and_adds_up(limit):
    def events() -> Iterator[Event]:
        for index in itertools.count():
            yield frame(index)

    notes = Notes()
    run = run_of(events(), Shared(), notes, essential=frozenset({"notes"}))

    def on_write() -> None:
        if len(notes.written) == 50 and limit == "stop":
            run.stop("enough")
        if len(notes.written) == 50 and limit == "sink":
            raise OSError("disk full")

    notes.on_write = on_write
    ended = run.run(n_frames=100 if limit == "n_frames" else None)
    account = ended.account
    assert account.seen == account.analysed + account.skipped
    written = [a.frame.index for a in notes.written]
    assert written == list(range(len(written)))
    if limit == "n_frames":
        assert (account.analysed, ended.reason, len(written)) == (100, "100 frames were seen", 100)
    elif limit == "stop":
        assert (len(written), ended.reason, ended.failed) == (account.analysed, "enough", False)
        skipped = sorted(m.index for m in notes.missed)
        assert written + skipped == list(range(account.seen))
    else:
        assert (ended.reason, ended.failed, len(written)) == ("notes failed: disk full", True, 50)


def test_a_model_file_gives_the_same_bits_whoever_looks(bead_model):
    model = load_model(bead_model.path, threads=3)
    assert [twin.threshold for twin in model.twins()] == [model.threshold] * 3
    assert Crew.of(load_model(bead_model.path, threads=1), bead_model.snap.frame) is None
    movie = list(frames(beads("&seed=5&frames=40")))
    written = []
    for kind in (model, Alone(model)):
        notes = Notes()
        run_of(iter([*movie, EndOfStream("over", n_frames=40)]), kind, notes).run()
        written.append(rows(notes))
    assert len(written[0]) == 40
    assert written[0] == written[1]


def test_an_engine_that_bench_chose_sees_every_frame(bead_model):
    model = load_model(bead_model.path, threads=3)
    session, n_runs = model.engine, itertools.count()

    class Counting:
        def run(self, names: list[str], feeds: dict[str, Any], /) -> Any:
            next(n_runs)
            return session.run(names, feeds)

    model.engine = Counting()
    movie = [*frames(beads("&seed=5&frames=12")), EndOfStream("over", n_frames=12)]
    assert run_of(iter(movie), model, Notes()).run().account.analysed == 12
    assert next(n_runs) == 12


def test_detect_writes_the_same_rows_however_many_processors_there_are(bead_model, tmp_path, monkeypatch):
    names = []
    for seed in (3, 4):
        names.append(str(tmp_path / f"{seed}.npy"))
        np.save(names[-1], np.stack([f.pixels for f in frames(beads(f"&seed={seed}&frames=12"))]))
    tables = []
    for n in (1, 4):
        monkeypatch.setattr("os.cpu_count", lambda n=n: n)
        tables.append(tmp_path / f"{n}.csv")
        assert main(["detect", str(bead_model.path), *names, "-o", str(tables[-1])]) == 0
    assert tables[0].read_text() == tables[1].read_text()
    assert len(set(np.genfromtxt(tables[0], delimiter=",", names=True)["frame"])) == 12
