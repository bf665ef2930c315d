"""The drift watch keeps quiet on the sample it was trained on, and speaks up on another one, once."""

import json
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from microscope import SCENE, beads

from oneframe.acquisition import Frame, SourceInfo
from oneframe.app.main import main
from oneframe.runtime import Detections, ModelCard, Tracks, load_model
from oneframe.runtime.account import Status
from oneframe.runtime.display import Notice, decode_message, encode_notice
from oneframe.runtime.drift import ALIKE, EMPTY_FRAMES, Drift, DriftWatch
from oneframe.runtime.link import FrameLinker, LinkSettings
from oneframe.runtime.record import RunRecord, complete_run, read_run, recover_run
from oneframe.runtime.seams import Analysed

COLUMNS = ("y_px", "x_px", "score", "variance_px2")


class Sample:
    """Particles that stay, each with a look of its own that fluctuates: logit of the score and log of the variance."""

    def __init__(self, seed: int, n: int, *, logit: float = 2.3, log_variance: float = -5.0, crowded: float = 0.3):
        self.rng = np.random.default_rng(seed)
        self.logit = self.rng.normal(logit, 0.6, n)
        self.log_variance = self.rng.normal(log_variance, 0.4, n) + 5 * (self.rng.random(n) < crowded)

    def frame(self) -> Tracks:
        n = len(self.logit)
        score = 1 / (1 + np.exp(-self.rng.normal(self.logit, 0.4)))
        variance = np.exp(self.rng.normal(self.log_variance, 0.3))
        y = np.arange(n, dtype=np.float32)
        return Tracks(Detections(y, y, score.astype("f4"), variance_px2=variance.astype("f4")), np.arange(n))

    def reference(self) -> dict:
        found = self.frame().detections
        quantiles = {name: np.quantile(getattr(found, name), (0.05, 0.5, 0.95)).tolist() for name in COLUMNS[2:]}
        return {**quantiles, "n": len(found)}


NOTHING = Tracks(Detections.none(COLUMNS), np.empty(0, np.int64))
REFERENCE = Sample(0, 200).reference()


def watch_on(n: int = 30, **changes) -> DriftWatch:
    return DriftWatch(REFERENCE | changes, n_trained=n, n_on_frame=n)


def states(watch: DriftWatch, frames: list[Tracks]) -> list[str]:
    """The states that came one after the other."""
    seen = [watch.drift.state]
    for tracks in frames:
        state = watch.add(tracks).state
        if state != seen[-1]:
            seen.append(state)
    return seen


def frames_of(sample: Sample, n_frames: int = 150) -> list[Tracks]:
    return [sample.frame() for _ in range(n_frames)]


@pytest.mark.parametrize(("n_trained", "n_in_run"), [(9, 5), (9, 60), (30, 8), (200, 200), (1000, 30)])
def test_other_particles_of_the_same_kind_raise_no_alarm(n_trained, n_in_run):
    n_alarms = 0
    for seed in range(40):
        watch = DriftWatch(Sample(seed, n_trained).reference(), n_trained=n_trained, n_on_frame=n_trained)
        n_alarms += len(states(watch, frames_of(Sample(seed + 1000, n_in_run), 60))) > 1
    assert n_alarms == 0


@pytest.mark.parametrize("crowded", [0.0, 0.8])
def test_another_density_raises_no_alarm(crowded):
    assert states(watch_on(), frames_of(Sample(1, 30, crowded=crowded))) == ["alike"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"logit": -1.0},
            r"no longer looks like .* \(median score 0\.\d+, 0\.91 in training\); .* train on a new frame",
        ),
        ({"log_variance": -1.0}, r"variance of the most consistent particles 0\.\d+ px², 0\.\d+ in training"),
    ],
)
@pytest.mark.parametrize("n_in_run", [1, 12, 700])
def test_particles_that_look_otherwise_raise_one_alarm_that_ends(change, sentence, n_in_run):
    watch = watch_on()
    same, other = Sample(3, n_in_run, crowded=0), Sample(2, n_in_run, crowded=0, **change)
    assert states(watch, frames_of(same, 300)) == ["alike"]
    assert states(watch, frames_of(other, 300)) == ["alike", "unlike"]
    assert re.search(sentence, watch.drift.alarm)
    assert states(watch, frames_of(same, 300)) == ["unlike", "alike"]
    assert watch.drift.alarm == ""


def test_a_flash_of_three_frames_is_no_drift():
    same, flash = frames_of(Sample(1, 30), 100), frames_of(Sample(2, 900, logit=-1.0), 3)
    assert states(watch_on(), [*same, *flash, *same]) == ["alike"]


def test_what_lies_at_the_limit_does_not_flicker():
    low, median, _ = (float(np.log(q / (1 - q))) for q in REFERENCE["score"])
    at_limit = Sample(4, 30, crowded=0)
    at_limit.logit += low - median
    assert len(states(watch_on(), frames_of(at_limit, 2000))) <= 2


def test_fewer_than_twenty_detections_say_nothing():
    other = Sample(2, 1, logit=-2.0)
    watch = watch_on()
    assert states(watch, frames_of(other, 19)) == ["alike"]
    assert watch.add(other.frame()).state == "unlike"


def test_an_empty_field_is_told_once_and_judged_afresh():
    watch = watch_on()
    assert states(watch, [*frames_of(Sample(1, 20), 30), *[NOTHING] * (EMPTY_FRAMES - 1)]) == ["alike"]
    assert states(watch, [NOTHING] * 200) == ["alike", "empty"]
    assert watch.drift.sentence.startswith("nothing was found in 50 frames in a row, the training frame showed 30;")
    assert states(watch, frames_of(Sample(2, 20, logit=-1.0), 40)) == ["empty", "unlike"]
    assert states(watch, [*[NOTHING] * 60, *frames_of(Sample(1, 20), 40)]) == ["unlike", "empty", "alike"]


def test_where_the_training_frame_showed_one_particle_it_may_be_out_of_view_for_longer():
    assert states(watch_on(1), [NOTHING] * 199) == ["alike"]
    assert states(watch_on(1), [NOTHING] * 200) == ["alike", "empty"]
    unknown = DriftWatch(REFERENCE, n_trained=30)
    assert states(unknown, [NOTHING] * 1000) == ["alike"]


def test_detections_below_the_threshold_of_the_training_do_not_count():
    poor = Sample(2, 30, logit=-1.0)
    assert states(watch_on(), frames_of(poor)) == ["alike", "unlike"]
    watch = DriftWatch(REFERENCE, n_trained=30, threshold=0.6)
    mixed = []
    for good, bad in zip(frames_of(Sample(1, 30)), frames_of(poor), strict=True):
        score = np.concatenate([good.detections.score, 0.6 * bad.detections.score])
        y = np.zeros(60, np.float32)
        mixed.append(Tracks(Detections(y, y, score), np.arange(60)))
    assert states(watch, mixed) == ["alike"]


def test_a_model_without_variance_is_watched_by_its_score():
    def without(tracks: Tracks) -> Tracks:
        return replace(tracks, detections=replace(tracks.detections, variance_px2=None))

    assert states(watch_on(), [without(t) for t in frames_of(Sample(1, 30))]) == ["alike"]
    assert states(watch_on(), [without(t) for t in frames_of(Sample(1, 30, logit=-1.0))]) == ["alike", "unlike"]


def card_with(**quality) -> ModelCard:
    return ModelCard("lodestar", "uint16", 1, COLUMNS, 0.1, 8.0, quality=quality)


@pytest.mark.parametrize(
    "quality",
    [
        {},
        {"reference": None},
        {"reference": "fine"},
        {"reference": {"n": 9}},
        {"reference": REFERENCE | {"n": "many"}},
        {"reference": REFERENCE | {"score": [0.5, 0.9]}},
        {"reference": REFERENCE | {"score": [0.9, 0.5, 0.1]}},
        {"reference": REFERENCE | {"variance_px2": [0.0, 0.0, 0.0]}},
        {"reference": REFERENCE | {"variance_px2": 1.0}},
    ],
)
def test_without_a_usable_reference_there_is_no_watch(quality):
    assert DriftWatch.of(card_with(**quality)) is None
    assert DriftWatch.of(card_with(reference=REFERENCE, detections_on_frame=200)) is not None


def test_a_reference_of_views_of_one_particle_counts_as_one_particle():
    views = Sample(5, 1, crowded=0)
    found = [views.frame().detections for _ in range(48)]
    reference = {
        name: np.quantile(np.concatenate([getattr(f, name) for f in found]), (0.05, 0.5, 0.95)).tolist()
        for name in COLUMNS[2:]
    }
    card = card_with(reference={**reference, "n": 48}, detections_on_frame=1)
    for seed in range(20):
        watch = DriftWatch.of(card)
        assert watch is not None
        assert states(watch, frames_of(Sample(seed + 50, 3), 60)) == ["alike"]


# with a trained model and the simulated microscope


def drift_of(path: Path, pictures: list[np.ndarray]) -> list[str]:
    model = load_model(path, threads=1)
    watch, linker = DriftWatch.of(model.card), FrameLinker(LinkSettings(max_distance_px=model.card.object_diameter_px))
    assert watch is not None
    return states(watch, [linker.link(model.detect(picture), i) for i, picture in enumerate(pictures)])


def pictures_of(options: str, n_frames: int) -> list[np.ndarray]:
    source = beads(options)
    frames = [source.read(5.0) for _ in range(n_frames)]
    return [frame.pixels for frame in frames if frame is not None]


@pytest.mark.parametrize("options", ["&seed=7", "&seed=11", "&seed=12", "&seed=13&n=25", "&seed=14&photons=6000"])
def test_the_same_beads_raise_no_alarm(bead_model, options):
    assert drift_of(bead_model.path, pictures_of(options, 100)) == ["alike"]


@pytest.mark.parametrize(
    "options",
    [
        "&radius_um=0.6",
        "&radius_um=1.2",
        "&photons=15000&background=90",
        "&photons=1600&background=10",
        "&background=120",
    ],
    ids=["beads twice as large", "four times", "light x 3", "light / 3", "background x 4"],
)
def test_other_beads_and_other_light_raise_an_alarm(bead_model, options):
    found = drift_of(bead_model.path, pictures_of("&seed=11" + options, 80))
    assert found in (["alike", "unlike"], ["alike", "empty"], ["alike", "unlike", "empty"])


@pytest.mark.parametrize(
    "change",
    [
        lambda im: cv2.GaussianBlur(im, (0, 0), 4),
        lambda im: 3000 - im,
        lambda im: cv2.resize(im, None, fx=2.5, fy=2.5),
    ],
    ids=["defocus", "inverted contrast", "other magnification"],
)
def test_another_picture_of_the_beads_raises_an_alarm(bead_model, change):
    pictures = [change(picture) for picture in pictures_of("&seed=11", 80)]
    assert drift_of(bead_model.path, pictures)[1] in ("unlike", "empty")


@pytest.fixture
def changing(tmp_path, bead_model) -> Path:
    """A recording: 60 frames of the beads, 60 of beads twice as large, 60 of the first kind again."""
    same, other, again = (pictures_of(o, 60) for o in ("&seed=11", "&seed=12&radius_um=0.6", "&seed=13"))
    np.save(tmp_path / "changing.npy", np.stack(same + other + again))
    return tmp_path / "changing.npy"


def test_log_says_it_once_and_the_run_keeps_it(bead_model, changing, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["log", str(bead_model.path), "--source", str(changing), "-o", str(run), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [line for line in lines if line["event"] == "drift"]
    assert [line["state"] for line in told] == ["unlike", "alike"]
    begin, end = (line["frame"] for line in told)
    assert 60 < begin <= 90
    assert 120 < end <= 170
    with closing(sqlite3.connect(run / "run.sqlite")) as db:
        events = db.execute("SELECT kind, frame, text FROM events ORDER BY frame").fetchall()
    assert events == [("drift", begin, told[0]["sentence"]), ("drift ended", end, told[1]["sentence"])]
    drift = read_run(run)["drift"]
    assert drift["reference"] == bead_model.trained.card.quality["reference"]
    assert drift["alarms"] == [{"first_frame": begin, "until_frame": end, "sentence": told[0]["sentence"]}]
    assert drift["share_in_alarm"] == pytest.approx((end - begin) / 180, abs=1e-4)
    table = np.genfromtxt(run / "detections.csv", delimiter=",", names=True)
    for column in ("score", "variance_px2"):
        expected = np.quantile(table[column], (0.05, 0.5, 0.95))
        np.testing.assert_allclose(drift["measured"][column], expected, rtol=1e-3)
    assert drift["measured"]["n"] == len(table)


def test_log_says_nothing_of_the_same_sample(bead_model, tmp_path, capsys):
    source = SCENE + "&seed=21&frames=100"
    assert main(["log", str(bead_model.path), "--source", source, "-o", str(tmp_path / "run")]) == 0
    assert "looks like" not in capsys.readouterr().out
    drift = read_run(tmp_path / "run")["drift"]
    assert (drift["share_in_alarm"], drift["alarms"]) == (0.0, [])


# in the record


UNLIKE = Drift("unlike", "the sample no longer looks like what the model was trained on")


def write(run: RunRecord, index: int, drift: Drift | None) -> None:
    run.write(Analysed(Frame(np.zeros((4, 4), np.uint8), index, 1.7e9 + index), NOTHING, 0.01, 0.01, drift))


@pytest.mark.parametrize("reference", [REFERENCE, None])
def test_a_run_that_was_cut_off_in_an_alarm_is_recovered_with_it(tmp_path, reference):
    card = card_with() if reference is None else card_with(reference=reference)
    with closing(RunRecord(tmp_path, card=card, source=SourceInfo("sim:beads", live=True), settings={})) as run:
        for index, drift in enumerate([ALIKE, UNLIKE, UNLIKE, ALIKE, UNLIKE, UNLIKE, UNLIKE, UNLIKE]):
            write(run, index, None if reference is None else drift)
    assert recover_run(tmp_path).analysed == 8
    drift = read_run(tmp_path)["drift"]
    if reference is None:
        assert drift is None
        return
    assert [(alarm["first_frame"], alarm["until_frame"]) for alarm in drift["alarms"]] == [(1, 3), (4, None)]
    assert drift["share_in_alarm"] == 0.75
    assert drift["measured"] == {"n": 0}


def test_a_run_without_a_frame_has_a_summary_too(tmp_path):
    run = RunRecord(
        tmp_path, card=card_with(reference=REFERENCE), source=SourceInfo("sim:beads", live=True), settings={}
    )
    run.close()
    complete_run(tmp_path, run.counts(), "no frame came")
    assert read_run(tmp_path)["drift"] == {
        "reference": REFERENCE, "measured": {"n": 0}, "share_in_alarm": 0.0, "alarms": [],
    }  # fmt: skip


# on the way to the live view

STATUS = Status(98.4, 50.2, 12.0, 31.0, 620, 500, 120, 0, 0, 3, drift=UNLIKE.sentence)


def test_the_sentence_goes_to_the_live_view():
    assert decode_message(encode_notice(Notice("status", STATUS))) == Notice("status", STATUS)


@pytest.mark.parametrize("drift", ["x" * 2000, 7, None, ["unlike"]])
def test_a_message_with_another_thing_in_its_place_is_refused(drift):
    message = encode_notice(Notice("status", replace(STATUS, drift="@")))
    forged = message[4:].rstrip().replace(b'"@"', json.dumps(drift).encode())
    with pytest.raises(ValueError, match="drift must be a text of up to 1000 characters"):
        decode_message(len(forged).to_bytes(4, "little") + forged)


def test_the_status_line_shows_it_as_text():
    pytest.importorskip("pyqtgraph", reason="needs oneframe[view]", exc_type=ImportError)
    from oneframe.runtime.view import status_html

    line = status_html(replace(STATUS, drift="score < 0.5"), losing=False)
    assert line.endswith("score &lt; 0.5</b>")
    assert "<br>" not in status_html(replace(STATUS, drift=""), losing=False)
