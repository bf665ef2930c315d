"""The logged run: what is written can be read, at any moment and after a kill, and the account adds up."""

import csv
import json
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from oneframe.acquisition import Frame, SourceInfo
from oneframe.runtime.account import Account
from oneframe.runtime.card import ModelCard
from oneframe.runtime.detections import Detections, Tracks
from oneframe.runtime.record import RunFolderError, RunRecord, complete_run, read_run, recover_run
from oneframe.runtime.run_table import read_run_table
from oneframe.runtime.seams import Analysed, Missed, Noted

CARD = ModelCard("lodestar", "uint16", 1, ("y_px", "x_px", "score", "z_um"), 0.5, 12.0)
SOURCE = SourceInfo("sim:beads?seed=1", live=True)
T0_S = 1_700_000_000.0


def record(
    folder: Path, *, card: ModelCard = CARD, source: SourceInfo = SOURCE, save_frames: bool = False
) -> RunRecord:
    return RunRecord(folder, card=card, source=source, settings={"threshold": 0.4}, save_frames=save_frames)


def analysed(index: int, n: int = 2, *, pixels=None, pixel_size_um=None, metadata=None, **columns) -> Analysed:
    """Frame `index` with n detections at positions known from the index."""
    rows = np.arange(n, dtype=np.float32)
    known = {"y_px": rows + index, "x_px": rows + 0.25, "score": rows * 0 + 0.5, "z_um": rows - 1}
    pixels = np.full((4, 6), index, np.uint16) if pixels is None else pixels
    frame = Frame(pixels, index, T0_S + index, pixel_size_um, metadata or {})
    return Analysed(frame, Tracks(Detections(**known | columns), np.arange(n)), age_s=0.020, inference_s=0.010)


def missed(kind, index, n_frames=1, reason="slow") -> Missed:
    return Missed(kind, index, n_frames, T0_S, reason)


def write_all(run: RunRecord, n_frames: int) -> None:
    for index in range(1, n_frames):
        run.write(analysed(index, 50))


def rows(folder: Path, sql: str) -> list[tuple]:
    """What a reader of its own sees."""
    with closing(sqlite3.connect(folder / "run.sqlite")) as db:
        return db.execute(sql).fetchall()


def csv_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "detections.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_run_json_is_there_before_the_first_frame(tmp_path):
    run_folder = tmp_path / "deep" / "RUN"
    with closing(record(run_folder)):
        run = read_run(run_folder)
    assert ModelCard.from_json(json.dumps(run["card"])) == CARD
    unknown = {"n_frames": None, "pixel_size_um": None}
    assert run["source"] == {"url": SOURCE.url, "live": True, **unknown, "buffered": False}
    assert run["settings"] == {"threshold": 0.4}
    assert {"oneframe", "python", "numpy", "onnxruntime"} == run["versions"].keys()
    assert datetime.fromisoformat(run["started"]).utcoffset().total_seconds() == 0
    assert run["account"] is None
    assert not list(run_folder.glob("*.part"))


def test_settings_that_json_does_not_know_are_written_as_text(tmp_path):
    with closing(RunRecord(tmp_path, card=CARD, source=SOURCE, settings={"model": Path("bead.onnx")})):
        assert read_run(tmp_path)["settings"] == {"model": "bead.onnx"}


def test_an_existing_run_is_refused_and_left_as_it_is(tmp_path):
    folder = tmp_path / "RUN"
    with closing(record(folder)) as first:
        first.write(analysed(0))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RunFolderError, match=r"never overwritten; choose another name, such as .*RUN-2"):
        record(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_name_suggested_is_free(tmp_path):
    for name in ("RUN", "RUN-2", "RUN-3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "note.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunFolderError, match="RUN-4"):
        record(tmp_path / "RUN")


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "RUN").mkdir()
    record(tmp_path / "RUN").close()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "RUN").write_text("mine", encoding="utf-8")
    with pytest.raises(RunFolderError, match="is a file; choose another name"):
        record(tmp_path / "RUN")


def test_every_row_can_be_read_by_another_connection_while_the_run_goes_on(tmp_path):
    with closing(record(tmp_path)) as run:
        for index in range(5):
            run.write(analysed(index, 3))
            assert rows(tmp_path, "SELECT COUNT(*), MAX(frame) FROM detections") == [(3 * (index + 1), index)]
        run.skip(missed("skipped", 5))
        assert rows(tmp_path, "SELECT frame, status, reason FROM frames WHERE frame = 5") == [(5, "skipped", "slow")]


def test_an_open_reader_does_not_hold_up_the_run(tmp_path):
    with closing(record(tmp_path)) as run, closing(sqlite3.connect(tmp_path / "run.sqlite")) as reader:
        run.write(analysed(0))
        cursor = reader.execute("SELECT * FROM detections")
        cursor.fetchone()
        run.write(analysed(1))
        assert rows(tmp_path, "SELECT COUNT(*) FROM frames") == [(2,)]
        cursor.close()


def test_made_in_one_thread_and_used_in_another(tmp_path):
    run, errors = record(tmp_path, save_frames=True), []

    def use() -> None:
        try:
            run.write(analysed(0))
            run.skip(missed("failed", None))
            run.close()
        except Exception as exc:
            errors.append(exc)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert errors == []
    assert run.counts() == Account(2, 1, 0, 1, 0, reasons={"slow": 1})


def test_a_frame_is_written_with_its_times_and_counts(tmp_path):
    with closing(record(tmp_path)) as run:
        run.write(analysed(7, 3))
        ((frame, status, time_s, age_ms, inference_ms, n, page),) = rows(
            tmp_path, "SELECT frame, status, time_s, age_ms, inference_ms, n_detections, page FROM frames"
        )
    assert (frame, status, time_s, n, page) == (7, "analysed", T0_S + 7, 3, None)
    assert (age_ms, inference_ms) == pytest.approx((20.0, 10.0))


def test_detections_have_the_columns_of_the_card_then_micrometres(tmp_path):
    with closing(record(tmp_path)) as run:
        run.write(analysed(0))
        names = [row[1] for row in rows(tmp_path, "PRAGMA table_info(detections)")]
    assert names == ["frame", "time_s", "track_id", *CARD.columns, "y_um", "x_um"]


def test_a_column_the_card_did_not_announce_is_kept(tmp_path):
    with closing(record(tmp_path)) as run:
        run.write(analysed(0))
        run.write(analysed(1, 2, area_px=np.array([30, 40], np.float32)))
        assert rows(tmp_path, "SELECT area_px FROM detections") == [(None,), (None,), (30,), (40,)]


def test_a_column_the_model_left_out_and_nan_are_empty(tmp_path):
    with closing(record(tmp_path)) as run:
        run.write(analysed(0, 1, z_um=None, score=np.array([np.nan], np.float32)))
        assert rows(tmp_path, "SELECT z_um, score FROM detections") == [(None, None)]
    complete_run(tmp_path, run.counts(), "end of source")
    assert (csv_rows(tmp_path)[0]["z_um"], csv_rows(tmp_path)[0]["score"]) == ("", "")


@pytest.mark.parametrize(
    ("frame_um", "source_um", "card_um", "expected_um"),
    [(0.1, 0.2, 0.3, 0.1), (None, 0.2, 0.3, 0.2), (None, None, 0.3, 0.3), (None, None, None, None)],
)
def test_positions_in_micrometres_where_the_pixel_size_is_known(tmp_path, frame_um, source_um, card_um, expected_um):
    card = ModelCard("lodestar", "uint16", 1, ("y_px", "x_px", "score", "z_um"), 0.5, 12.0, pixel_size_um=card_um)
    source = SourceInfo("sim:beads", live=True, pixel_size_um=source_um)
    with closing(record(tmp_path, card=card, source=source)) as run:
        run.write(analysed(40, 2, pixel_size_um=frame_um))
        found = rows(tmp_path, "SELECT y_px, x_px, y_um, x_um FROM detections")
    for y_px, x_px, y_um, x_um in found:
        if expected_um is None:
            assert (y_um, x_um) == (None, None)
        else:
            assert (y_um, x_um) == pytest.approx((y_px * expected_um, x_px * expected_um))


def test_frames_missed_in_a_row_get_a_row_each(tmp_path):
    with closing(record(tmp_path)) as run:
        run.skip(missed("skipped", 3, 3, "a newer frame"))
        run.skip(missed("failed", None, 2, "bad message"))
        assert rows(tmp_path, "SELECT frame, status, reason FROM frames") == [
            *((index, "skipped", "a newer frame") for index in (3, 4, 5)),
            *[(None, "failed", "bad message")] * 2,
        ]
        assert run.counts() == Account(5, 0, 3, 2, 0, reasons={"a newer frame": 3, "bad message": 2})


def test_lost_frames_are_an_event_and_no_rows(tmp_path):
    with closing(record(tmp_path)) as run:
        run.skip(missed("lost", 10, 4, "gap in the numbers"))
        run.note(Noted(14, T0_S + 1, "the camera was started again"))
        assert rows(tmp_path, "SELECT COUNT(*) FROM frames") == [(0,)]
        assert rows(tmp_path, "SELECT kind, text, n_frames, frame FROM events") == [
            ("lost", "gap in the numbers", 4, 10),
            ("note", "the camera was started again", None, 14),
        ]
        assert run.counts() == Account(0, 0, 0, 0, 4, reasons={"gap in the numbers": 4})


def test_a_loss_of_unknown_size_is_told_as_one_also_after_a_recovery(tmp_path):
    at_least = Missed("lost", None, 7, T0_S, "the buffer overflowed", at_least=True)
    with closing(record(tmp_path)) as run:
        run.write(analysed(0))
        run.skip(at_least)
        run.write(analysed(1))
        account = run.counts()
    assert (account.lost_before, account.gaps_of_unknown_length) == (7, 1)
    assert recover_run(tmp_path) == account


def test_where_the_stage_went_is_on_record(tmp_path):
    with closing(record(tmp_path)) as run:
        run.stage_moved(3, T0_S, 12.5, -4.0)
        assert rows(tmp_path, "SELECT frame, time_s, x_um, y_um FROM stage") == [(3, T0_S, 12.5, -4.0)]


def test_metadata_is_written_when_it_changes_and_then_the_change_only(tmp_path):
    told = [{"exposure_ms": 10, "gain": 1}, {"exposure_ms": 10, "gain": 1}, {"exposure_ms": 20, "gain": 1}, {"gain": 1}]
    with closing(record(tmp_path)) as run:
        for index, metadata in enumerate(told):
            run.write(analysed(index, metadata=metadata))
        texts = [text for (text,) in rows(tmp_path, "SELECT metadata FROM frames")]
    changes = [None if text is None else json.loads(text) for text in texts]
    assert changes == [told[0], None, {"exposure_ms": 20}, {"exposure_ms": None}]


def test_a_frame_that_cannot_be_written_leaves_no_half_behind(tmp_path):
    with closing(record(tmp_path)) as run:
        run.write(analysed(0))
        with closing(sqlite3.connect(tmp_path / "run.sqlite")) as other:
            other.execute("DROP TABLE detections")
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            run.write(analysed(1))
        assert rows(tmp_path, "SELECT frame FROM frames") == [(0,)]
        assert run.counts().analysed == 1


def test_a_full_disk_is_raised_and_what_was_written_stays(tmp_path):
    with closing(record(tmp_path)) as run:
        run.write(analysed(0))
        (n_pages,) = run._db.execute("PRAGMA page_count").fetchone()
        run._db.execute(f"PRAGMA max_page_count={n_pages + 2}")  # SQLite's own way to run out of disk
        with pytest.raises(sqlite3.OperationalError, match="full"):
            write_all(run, 1000)
        n_written = run.counts().analysed
    assert rows(tmp_path, "SELECT COUNT(*) FROM frames") == [(n_written,)]
    assert recover_run(tmp_path).analysed == n_written


@pytest.mark.parametrize(
    "pixels",
    [
        np.arange(48, dtype=np.uint16).reshape(6, 8),
        np.arange(48, dtype=np.uint8).reshape(2, 4, 6),
        np.arange(72, dtype=np.uint8).reshape(3, 4, 6),
        np.linspace(-1, 1, 20, dtype=np.float32).reshape(4, 5),
        np.arange(40, dtype=np.uint16).reshape(4, 10)[:, ::2],
    ],
    ids=["uint16", "2 channels", "3 channels", "float32", "not contiguous"],
)
def test_pages_equal_the_frames_and_can_be_read_while_the_run_goes_on(tmp_path, pixels):
    with closing(record(tmp_path, save_frames=True)) as run:
        for index in range(0, 6, 2):
            run.write(analysed(index, pixels=pixels + pixels.dtype.type(index)))
            run.skip(missed("skipped", index + 1))
        pages = rows(tmp_path, "SELECT frame, page FROM frames WHERE page IS NOT NULL")
        with tifffile.TiffFile(tmp_path / "frames.tif") as tif:
            assert tif.is_bigtiff
            assert len(tif.pages) == 3
            for frame, page in pages:
                written = tif.pages[page].asarray()
                np.testing.assert_array_equal(written, pixels + pixels.dtype.type(frame))
                assert written.dtype == pixels.dtype
    assert pages == [(0, 0), (2, 1), (4, 2)]


def test_label_images_tell_tracks_and_are_saved_with_or_without_the_frames(tmp_path):
    labels = np.array([[0, 1, 1, 0, 2, 9]] * 4, np.int32)  # no row has label 9
    with closing(record(tmp_path, save_frames=True)) as run:
        run.write(analysed(0))
        run.write(cells(1, labels, [7, 3], [0, 0]))
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "labels.tif")[0], [0, 7, 7, 0, 3, 0])
    assert rows(tmp_path, "SELECT page, labels_page FROM frames") == [(0, None), (1, 0)]
    with closing(record(tmp_path / "no frames")) as run:
        run.write(cells(1, labels, [7, 3], [0, 0]))
    assert [file.name for file in (tmp_path / "no frames").glob("*.tif")] == ["labels.tif"]


def cells(index: int, labels, track_id, parent_id) -> Analysed:
    frame = analysed(index, len(track_id), labels=labels)
    tracks = Tracks(frame.tracks.detections, np.array(track_id), np.array(parent_id))
    return Analysed(frame.frame, tracks, age_s=0.020, inference_s=0.010)


def test_label_images_are_small(tmp_path):
    """Cells of 20 pixels: a fortieth of the raw page at least."""
    labels = np.kron(np.arange(1, 401).reshape(20, 20), np.ones((25, 25), int)).astype(np.int32)
    ids = np.arange(1, 401)
    with closing(record(tmp_path)) as run:
        for index in range(3):
            run.write(cells(index, labels, ids, ids * 0))
    assert (tmp_path / "labels.tif").stat().st_size < 3 * labels.nbytes / 40
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "labels.tif", key=2), labels)


def test_label_images_can_be_written_and_read_without_imagecodecs(tmp_path):
    code = """
import sys
sys.modules["imagecodecs"] = None
import numpy as np, tifffile
from pathlib import Path
from oneframe.runtime.record import _Pages
pages = _Pages(Path(sys.argv[1]), compression="zlib", compressionargs={"level": 1})
pages.append(np.arange(600, dtype=np.int32).reshape(20, 30))
assert (tifffile.imread(sys.argv[1]).ravel() == np.arange(600)).all()
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "labels.tif")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_parent_that_came_to_be_known_later_stands_in_every_row_of_the_table(tmp_path):
    labels = np.array([[1, 0, 2]] * 4, np.int32)
    with closing(record(tmp_path)) as run:
        run.write(cells(0, labels, [1, 2], [0, 0]))
        run.write(cells(1, labels, [3, 4], [0, 0]))
        run.write(cells(2, labels, [3, 4], [1, 1]))
        counts = run.counts()
    assert rows(tmp_path, "SELECT parent_id FROM detections WHERE track_id > 2") == [(0,), (0,), (1,), (1,)]
    complete_run(tmp_path, counts, "done")
    told = [(int(row["track_id"]), int(row["parent_id"])) for row in csv_rows(tmp_path)]
    assert told == [(1, 0), (2, 0), (3, 1), (4, 1), (3, 1), (4, 1)]
    table = read_run_table(tmp_path)
    assert dict(zip(table.track_id.tolist(), table.parent_id.tolist(), strict=True)) == {1: 0, 2: 0, 3: 1, 4: 1}
    assert "parent_id" not in table.columns
    np.testing.assert_array_equal(table.labels_page, [0, 1, 2])


def test_a_run_of_cells_that_was_cut_off_is_recovered_with_its_parents(tmp_path):
    labels = np.array([[1, 0, 2]] * 4, np.int32)
    with closing(record(tmp_path)) as run:
        run.write(cells(0, labels, [3, 4], [1, 1]))
    assert recover_run(tmp_path).analysed == 1
    assert [row["parent_id"] for row in csv_rows(tmp_path)] == ["1", "1"]


def test_objects_that_do_not_divide_have_no_parents(tmp_path):
    with closing(record(tmp_path)) as run:
        run.write(analysed(0))
    recover_run(tmp_path)
    assert "parent_id" not in csv_rows(tmp_path)[0]
    table = read_run_table(tmp_path)
    assert table.parent_id is None
    assert table.labels_page is None


def test_without_labels_and_save_frames_there_are_no_images(tmp_path):
    with closing(record(tmp_path)) as run:
        run.write(analysed(0))
    assert not list(tmp_path.glob("*.tif"))


def test_a_clean_end_completes_the_folder(tmp_path):
    with closing(record(tmp_path)) as run:
        for index in range(10):
            run.write(analysed(index))
        run.skip(missed("skipped", 10))
    account = Account(11, 10, 1, 0, 2, before_start=5, reasons={"slow": 1, "gap": 2})
    complete_run(tmp_path, account, "the source ended", published=18)
    run_json = read_run(tmp_path)
    assert run_json["account"] == account.to_dict()
    assert (run_json["published"], run_json["ended"]) == (18, "the source ended")
    assert run_json["age_p50_ms"] == run_json["age_p99_ms"] == 20.0
    assert run_json["inference_p50_ms"] == 10.0
    assert 0 <= run_json["duration_s"] < 60
    assert datetime.fromisoformat(run_json["finished"]) >= datetime.fromisoformat(run_json["started"])
    assert run_json["card"]["method"] == "lodestar"
    names = {path.name for path in tmp_path.iterdir()} - {"detections.parquet"}  # the latter where pyarrow is installed
    assert names == {"detections.csv", "run.json", "run.sqlite"}


def test_parquet_is_the_same_table(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    with closing(record(tmp_path)) as run:
        for index in range(5):
            run.write(analysed(index))
    complete_run(tmp_path, run.counts(), "over")
    table = parquet.read_table(tmp_path / "detections.parquet")
    rows = np.genfromtxt(tmp_path / "detections.csv", delimiter=",", names=True)
    assert tuple(table.column_names) == rows.dtype.names
    np.testing.assert_array_equal(table["y_px"].to_numpy(), rows["y_px"])


def test_a_run_without_a_frame_is_completed_too(tmp_path):
    with closing(record(tmp_path)) as run:
        pass
    complete_run(tmp_path, run.counts(), "no frame came")
    assert read_run(tmp_path)["age_p50_ms"] is None
    header = "frame,time_s,track_id,y_px,x_px,score,z_um,y_um,x_um\n"
    assert (tmp_path / "detections.csv").read_text(encoding="utf-8") == header


def test_the_csv_is_in_the_order_of_the_frames(tmp_path):
    with closing(record(tmp_path)) as run:
        for index in (4, 2, 9, 0):
            run.write(analysed(index))
    complete_run(tmp_path, run.counts(), "end")
    found = [(int(row["frame"]), int(row["track_id"])) for row in csv_rows(tmp_path)]
    assert found == [(frame, track) for frame in (0, 2, 4, 9) for track in (0, 1)]


def test_the_csv_keeps_the_precision(tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        "y_px": rng.uniform(0, 4096, 200).astype(np.float32),
        "x_px": rng.uniform(-1, 4096, 200).astype(np.float32),
        "score": rng.uniform(0, 1, 200).astype(np.float32),
        "z_um": (rng.normal(size=200) * 1e-6).astype(np.float32),
    }
    with closing(record(tmp_path)) as run:
        run.write(analysed(1, 200, pixel_size_um=0.065, **columns))
    complete_run(tmp_path, run.counts(), "end")
    read = {name: np.array([float(row[name]) for row in csv_rows(tmp_path)]) for name in (*columns, "y_um", "time_s")}
    for name in ("y_px", "x_px"):
        np.testing.assert_allclose(read[name], columns[name], rtol=0, atol=6e-6)
    for name in ("score", "z_um"):
        np.testing.assert_array_equal(read[name].astype(np.float32), columns[name])
    np.testing.assert_allclose(read["y_um"], columns["y_px"].astype(float) * 0.065, rtol=1e-8)
    np.testing.assert_allclose(read["time_s"], T0_S + 1, rtol=0, atol=2e-6)


def test_a_completed_run_is_neither_completed_nor_recovered_again(tmp_path):
    with closing(record(tmp_path)) as run:
        run.write(analysed(0))
    complete_run(tmp_path, run.counts(), "end")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunFolderError, match="is complete; there is nothing to do"):
        complete_run(tmp_path, run.counts(), "again")
    with pytest.raises(RunFolderError, match="is complete; there is nothing to do"):
        recover_run(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_that_goes_on_is_not_recovered(tmp_path):
    with closing(record(tmp_path)) as run:
        run.write(analysed(0))
        with pytest.raises(RunFolderError, match="is open in another process"):
            recover_run(tmp_path)
        run.write(analysed(1))
    assert recover_run(tmp_path).analysed == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no run.json"),
        ("{ torn", "cannot read"),
        ("[]", "is something else"),
        ('{"name": "another program"}', "is something else"),
        ('{"format": "oneframe run", "format_version": 99}', "has run format 99"),
    ],
)
def test_a_folder_that_is_no_run_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "run.json").write_text(text, encoding="utf-8")
    for use in (read_run, recover_run):
        with pytest.raises(RunFolderError, match=message):
            use(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ([] if text is None else ["run.json"])


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"has no run\.json"):
        recover_run(tmp_path / "nowhere")


def test_a_damaged_record_is_told(tmp_path):
    record(tmp_path).close()
    (tmp_path / "run.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(RunFolderError, match="file is not a database"):
        recover_run(tmp_path)


def test_a_run_cut_off_before_its_first_row_is_recovered_empty(tmp_path):
    record(tmp_path).close()
    (tmp_path / "run.sqlite").unlink()
    assert recover_run(tmp_path) == Account(0, 0, 0, 0, 0)


def test_recovery_counts_told_losses_and_gaps_once(tmp_path):
    with closing(record(tmp_path)) as run:
        run.write(analysed(2))
        run.skip(missed("lost", 3, 2, "told"))  # 3, 4
        run.write(analysed(5))
        run.write(analysed(9))  # 6, 7, 8 nobody told of
        run.skip(missed("failed", None, 1, "bad message"))  # one of them came without a number
        run.skip(missed("lost", 10, 4, "told"))  # after the last row
    account = recover_run(tmp_path)
    assert account == Account(4, 3, 0, 1, 8, reasons={"bad message": 1, "told": 6, "gap in the record": 2})


kinds = st.sampled_from(["write", "skipped", "failed", "failed without number", "lost"])


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.tuples(kinds, st.integers(1, 4)), max_size=12))
def test_any_sequence_gives_an_account_equal_to_the_sums(steps):
    expected: Counter[str] = Counter()
    with TemporaryDirectory() as folder:
        run, index = record(Path(folder)), 0
        for kind, n in steps:
            if kind == "write":
                run.write(analysed(index))
                expected["analysed"] += 1
                index += 1
                continue
            name = kind.split()[0]
            run.skip(missed(name, None if "without" in kind else index, n, name))
            expected[name] += n
            index += n
        counted = run.counts()
        run.close()
        recovered = recover_run(Path(folder))
    assert counted == recovered
    assert counted.lost_before == expected["lost"]
    assert (counted.analysed, counted.skipped, counted.failed) == tuple(
        expected[kind] for kind in ("analysed", "skipped", "failed")
    )
    assert counted.reasons == {kind: n for kind, n in expected.items() if kind != "analysed"}


ENDLESS_RUN = """
import itertools, sys
from pathlib import Path
import numpy as np
from oneframe.acquisition import Frame, SourceInfo
from oneframe.runtime.card import ModelCard
from oneframe.runtime.detections import Detections, Tracks
from oneframe.runtime.record import RunRecord
from oneframe.runtime.seams import Analysed, Missed

card = ModelCard("lodestar", "uint16", 1, ("y_px", "x_px", "score"), 0.5, 12.0)
run = RunRecord(Path(sys.argv[1]), card=card, source=SourceInfo("sim:beads", True), settings={}, save_frames=True)
rows = np.arange(20, dtype=np.float32)
labels = np.zeros((64, 64), np.int32)
labels[:20] = np.arange(1, 21)[:, None]
for n in itertools.count():
    index = 10 * n
    tracks = Tracks(Detections(rows, rows, rows, labels=labels), np.arange(20) + n, np.arange(20) * 0)
    run.write(Analysed(Frame(np.full((64, 64), n % 60000, np.uint16), index, 1.7e9 + n), tracks, 0.02, 0.01))
    run.skip(Missed("skipped", index + 1, 4, 1.7e9 + n, "slow"))
    run.skip(Missed("lost", index + 5, 5, 1.7e9 + n, "gap"))
    if n == 199:
        print("200 frames", flush=True)
"""


@pytest.fixture
def killed_run(tmp_path) -> Path:
    """A run whose process was killed (SIGKILL) in the middle of writing, after 200 analysed frames at least."""
    folder = tmp_path / "RUN"
    command = [sys.executable, "-c", ENDLESS_RUN, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "200 frames\n"
        finally:
            process.kill()
    return folder


def test_a_killed_run_is_recovered_with_every_row_that_was_written(killed_run):
    assert read_run(killed_run)["account"] is None
    ((n_frames, n_analysed),) = rows(killed_run, "SELECT COUNT(*), SUM(status = 'analysed') FROM frames")
    assert n_analysed >= 200

    account = recover_run(killed_run)

    assert account.seen == account.analysed + account.skipped + account.failed == n_frames
    assert account.analysed == n_analysed
    assert n_analysed - 1 <= account.skipped / 4 <= n_analysed
    assert n_analysed - 1 <= account.lost_before / 5 <= n_analysed
    assert account.reasons == {"slow": account.skipped, "gap": account.lost_before}
    assert len(csv_rows(killed_run)) == 20 * n_analysed
    run = read_run(killed_run)
    assert run["account"] == account.to_dict()
    assert (run["recovered"], run["ended"]) == (True, "cut off; recovered")
    with pytest.raises(RunFolderError, match="is complete; there is nothing to do"):
        recover_run(killed_run)


def test_the_frames_of_a_killed_run_can_be_read(killed_run):
    pages = rows(killed_run, "SELECT frame, page FROM frames WHERE page IS NOT NULL")
    assert len(pages) >= 200
    with tifffile.TiffFile(killed_run / "frames.tif") as tif:
        for frame, page in pages:
            assert (tif.pages[page].asarray() == frame // 10).all()


def test_the_label_images_of_a_killed_run_can_be_read(killed_run):
    pages = rows(killed_run, "SELECT frame, labels_page FROM frames WHERE labels_page IS NOT NULL")
    assert len(pages) >= 200
    with tifffile.TiffFile(killed_run / "labels.tif") as tif:
        for frame, page in pages:
            np.testing.assert_array_equal(tif.pages[page].asarray()[:20, 5], np.arange(20) + frame // 10)
