"""The logged run: a folder that survives being killed at any moment.

`run.json` is written first and completed last, `run.sqlite` is the record and can be read while the run goes on,
`detections.csv` is made at the end. `frames.tif` holds one page a frame where frames are saved. `labels.tif` holds one
for every frame of a model that segments; its values are the `track_id`s, 0 is the background.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import platform
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition import Frame, SourceInfo
from oneframe.runtime.account import Account
from oneframe.runtime.card import ModelCard
from oneframe.runtime.detections import COLUMNS, Tracks
from oneframe.runtime.drift import ALIKE, Drift
from oneframe.runtime.seams import Analysed, Missed, Noted

FORMAT = "oneframe run"
FORMAT_VERSION = 1
"""Raised when a reader of the old version would misread a new run."""

_DRIFT_KINDS = _DRIFT, _DRIFT_ENDED = "drift", "drift ended"
"""Events: something is wrong with the sample, see `Drift`; it looks like the training's again."""
_LOST_AT_LEAST = "lost at least"
"""Event: frames were lost without a gap in the numbers, see `Missed.at_least`."""
_ROWS_FOR_QUANTILES = 1_000_000
"""Of longer tables evenly spread rows are taken."""

_TABLES = """
CREATE TABLE IF NOT EXISTS frames (
    frame INTEGER,        -- number in the source; NULL for a message too bad to have one
    status TEXT NOT NULL, -- analysed | skipped | failed
    time_s REAL,          -- seconds since the Unix epoch
    age_ms REAL,
    inference_ms REAL,
    n_detections INTEGER,
    page INTEGER,         -- page of frames.tif, from 0
    labels_page INTEGER,  -- page of labels.tif, from 0
    reason TEXT,
    metadata TEXT         -- JSON: what changed since the frames above; null: no longer told
);
CREATE TABLE IF NOT EXISTS detections ({detections});
CREATE TABLE IF NOT EXISTS events (time_s REAL, kind TEXT NOT NULL, text TEXT, n_frames INTEGER, frame INTEGER);
CREATE TABLE IF NOT EXISTS stage (time_s REAL, frame INTEGER, x_um REAL, y_um REAL);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT);
"""


class RunFolderError(Exception):
    """A run folder that cannot be made, read or recovered; the text says what to do."""


class RunRecord:
    """The `Sink` that writes a run to a folder; every call is committed before it returns.

    Made in one thread, `write`, `skip` and `close` may be called in another. Errors of the disk are raised as they
    come (`sqlite3.OperationalError`, `OSError`); what was committed before stays readable.

    Parameters
    ----------
    folder : Path
        Made here, with its parents; it may exist if it is empty.
    card : ModelCard
        Of the model; its columns are the columns of the table `detections`.
    source : SourceInfo
        Where the frames come from.
    settings : dict
        What else is needed to repeat the run; what JSON does not know is written as text.
    save_frames : bool
        Also write every analysed frame to `frames.tif`.

    Raises
    ------
    RunFolderError
        If the folder holds something already.
    """

    def __init__(
        self, folder: Path, *, card: ModelCard, source: SourceInfo, settings: dict[str, Any], save_frames: bool = False
    ) -> None:
        _make_folder(folder)
        run = _new_run(card, source, settings)
        _write_json(folder / "run.json", run)
        self._db = _open_database(folder, card.columns)
        self._lock = threading.Lock()
        with _transaction(self._db):
            about = {"format_version": FORMAT_VERSION, "source": source.url, "started": run["started"]}
            self._db.executemany("INSERT INTO meta VALUES (?, ?)", [(key, str(value)) for key, value in about.items()])
        self._columns = set(_column_names(self._db))
        self._pixel_size_um = card.pixel_size_um if source.pixel_size_um is None else source.pixel_size_um
        self._frame_pages = _Pages(folder / "frames.tif") if save_frames else None
        self._label_pages = _Pages(folder / "labels.tif", compression="zlib", compressionargs={"level": 1})
        self._metadata: dict[str, Any] = {}
        self._frame_shape: tuple[int, ...] = ()
        self._drift = ALIKE
        self._n_frames: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._n_unknown_gaps = 0

    def write(self, analysed: Analysed) -> None:
        """Write one analysed frame and its detections."""
        frame, detections = analysed.frame, analysed.tracks.detections
        with self._lock:
            # Pages before rows: a kill between the two leaves a page too many, never a row without its page.
            page = self._append_page(self._frame_pages, frame.pixels)
            labels_page = self._append_page(self._label_pages, _track_image(analysed.tracks))
            self._add_columns(analysed.tracks)
            with _transaction(self._db):
                self._db.execute(
                    "INSERT INTO frames VALUES (?, 'analysed', ?, ?, ?, ?, ?, ?, NULL, ?)",
                    (
                        frame.index,
                        frame.time_s,
                        analysed.age_s * 1e3,
                        analysed.inference_s * 1e3,
                        len(detections),
                        page,
                        labels_page,
                        self._changed_metadata(frame),
                    ),
                )
                self._write_detections(analysed)
                if not self._frame_shape:
                    self._db.execute(
                        "INSERT INTO meta VALUES ('frame_shape_px', ?)", (f"{frame.height} {frame.width}",)
                    )
                drift = self._write_drift(analysed)
            self._drift = drift
            self._metadata = dict(frame.metadata)
            self._frame_shape = (frame.height, frame.width)
            self._n_frames["analysed"] += 1

    def skip(self, missed: Missed) -> None:
        """Write frames that were not analysed: a row each, or an event if they were lost before they came here."""
        n, first = missed.n_frames, missed.index
        with self._lock:
            with _transaction(self._db):
                if missed.kind == "lost":
                    kind = _LOST_AT_LEAST if missed.at_least else "lost"
                    self._db.execute(
                        "INSERT INTO events VALUES (?, ?, ?, ?, ?)", (missed.time_s, kind, missed.reason, n, first)
                    )
                else:
                    self._db.executemany(
                        "INSERT INTO frames (frame, status, time_s, reason) VALUES (?, ?, ?, ?)",
                        (
                            (None if first is None else first + i, missed.kind, missed.time_s, missed.reason)
                            for i in range(n)
                        ),
                    )
            self._n_frames[missed.kind] += n
            self._reasons[missed.reason] += n
            self._n_unknown_gaps += missed.at_least

    def note(self, noted: Noted) -> None:
        """Write down what happened to the run."""
        with self._lock, _transaction(self._db):
            self._db.execute(
                "INSERT INTO events VALUES (?, 'note', ?, NULL, ?)", (noted.time_s, noted.text, noted.index)
            )

    def stage_moved(self, index: int, time_s: float, x_um: float, y_um: float) -> None:
        """Write down where the stage stands since `time_s`, moved because of frame `index`; from any thread."""
        with self._lock, _transaction(self._db):
            self._db.execute("INSERT INTO stage VALUES (?, ?, ?, ?)", (time_s, index, x_um, y_um))

    def counts(self) -> Account:
        """Return the account of what was written so far."""
        with self._lock:
            return _account(self._n_frames, self._reasons, self._n_unknown_gaps)

    def close(self) -> None:
        """Close the files; `complete_run` finishes the folder."""
        with self._lock:
            self._db.close()
            for pages in (self._frame_pages, self._label_pages):
                if pages is not None:
                    pages.close()

    @staticmethod
    def _append_page(pages: _Pages | None, pixels: NDArray[Any] | None) -> int | None:
        return None if pages is None or pixels is None else pages.append(pixels)

    def _add_columns(self, tracks: Tracks) -> None:
        """Make room for columns that the card did not announce."""
        types = dict.fromkeys(tracks.detections.columns(), "REAL")
        if tracks.parent_id is not None:
            types["parent_id"] = "INTEGER"
        for name, of_type in types.items():
            if name not in self._columns:
                self._db.execute(f"ALTER TABLE detections ADD COLUMN {name} {of_type}")
                self._columns.add(name)

    def _write_detections(self, analysed: Analysed) -> None:
        frame, tracks = analysed.frame, analysed.tracks
        columns = tracks.detections.columns()
        n = len(tracks)
        pixel_size_um = self._pixel_size_um if frame.pixel_size_um is None else frame.pixel_size_um
        values: dict[str, list[Any]] = {
            "frame": [frame.index] * n,
            "time_s": [frame.time_s] * n,
            "track_id": tracks.track_id.tolist(),
            **{name: column.tolist() for name, column in columns.items()},
        }
        if tracks.parent_id is not None:
            values["parent_id"] = tracks.parent_id.tolist()
        if pixel_size_um is not None:
            for axis in ("y", "x"):
                values[f"{axis}_um"] = (columns[f"{axis}_px"].astype(np.float64) * pixel_size_um).tolist()
        places = ", ".join("?" * len(values))
        self._db.executemany(
            f"INSERT INTO detections ({', '.join(values)}) VALUES ({places})", zip(*values.values(), strict=True)
        )

    def _write_drift(self, analysed: Analysed) -> Drift:
        """Write down that the sample looks otherwise from this frame on; return how it looks."""
        frame, drift = analysed.frame, analysed.drift or ALIKE
        if drift.state != self._drift.state:
            kind = _DRIFT_ENDED if drift.state == "alike" else _DRIFT
            self._db.execute(
                "INSERT INTO events VALUES (?, ?, ?, NULL, ?)", (frame.time_s, kind, drift.sentence, frame.index)
            )
        return drift

    def _changed_metadata(self, frame: Frame) -> str | None:
        """JSON of the entries that differ from those of the last analysed frame; None if none does."""
        now, before = frame.metadata, self._metadata
        changed = {key: value for key, value in now.items() if key not in before or before[key] != value}
        changed |= dict.fromkeys(before.keys() - now.keys())
        return json.dumps(changed, default=str) if changed else None


def _track_image(tracks: Tracks) -> NDArray[np.int32] | None:
    """Return the label image with the tracks' numbers, (H, W); of labels without a row there is nothing to tell."""
    labels = tracks.detections.labels
    if labels is None:
        return None
    ids = np.zeros(max(len(tracks), int(labels.max(initial=0))) + 1, np.int32)
    ids[1 : len(tracks) + 1] = tracks.track_id
    return ids[labels]


class _Pages:
    """A BigTIFF to which images are appended; each page is complete on disk before `append` returns.

    `settings` are tifffile's. zlib of label images is Python's own: 50 to 90 times smaller, in some 15 ms a megapixel.
    """

    def __init__(self, path: Path, **settings: Any) -> None:
        self._path = path
        self._settings = settings
        self._file: BinaryIO | None = None
        self._writer: Any = None
        self._n_pages = 0

    def append(self, pixels: NDArray[Any]) -> int:
        """Write (H, W) or (C, H, W) as one page and return its number, from 0."""
        if self._file is None:
            import tifffile

            self._file = self._path.open("w+b")
            self._writer = tifffile.TiffWriter(self._file, bigtiff=True)
        # One directory per page: a series that tifffile may extend is readable only after its close.
        self._writer.write(
            pixels,
            contiguous=False,
            metadata=None,
            photometric="minisblack",
            planarconfig="separate" if pixels.ndim == 3 else None,
            **self._settings,
        )
        self._file.flush()
        self._n_pages += 1
        return self._n_pages - 1

    def close(self) -> None:
        if self._file is not None:
            self._writer.close()
            self._file.close()


def read_run(folder: Path) -> dict[str, Any]:
    """Return what `run.json` says; `account` is None while the run goes on and after it was cut off.

    Raises
    ------
    RunFolderError
        If the folder holds no run, or one of another format.
    """
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise RunFolderError(f"expected a folder that oneframe log wrote, {folder} has no run.json") from exc
    except (OSError, ValueError) as exc:
        raise RunFolderError(f"expected a folder that oneframe log wrote, cannot read {folder / 'run.json'}") from exc
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        raise RunFolderError(f"expected a folder that oneframe log wrote, {folder / 'run.json'} is something else")
    if run.get("format_version") != FORMAT_VERSION:
        raise RunFolderError(
            f"{folder} has run format {run.get('format_version')}, this oneframe reads {FORMAT_VERSION}; "
            "use the oneframe that wrote it or a newer one"
        )
    return run


def complete_run(
    folder: Path,
    account: Account,
    ended: str,
    *,
    published: int | None = None,
    sink_drops: Mapping[str, Mapping[str, int]] | None = None,
    outputs: Mapping[str, Mapping[str, Any]] | None = None,
    runs_by_backend: Mapping[str, int] | None = None,
    regions: Mapping[str, int] | None = None,
) -> None:
    """Finish a run after its record was closed: write `detections.csv` and complete `run.json`.

    Parameters
    ----------
    folder : Path
        Of the run.
    account : Account
        What became of every frame.
    ended : str
        Why the run ended, for the reader of `run.json`.
    published : int or None
        Frames that the source made in all, read or not; None if it cannot know.
    sink_drops : mapping or None
        Results that a sink did not take, the record itself being one: name of the sink, reason, count.
    outputs : mapping or None
        How each output of a closed loop did, latencies included: its name and its report.
    runs_by_backend : mapping or None
        How often each way to run the model was taken, by a frame or by regions of it; None: fp32 always.
    regions : mapping or None
        `RegionModel.report`, where one was at work.

    Raises
    ------
    RunFolderError
        If the folder holds no run, or a completed one.
    """
    run = _read_open_run(folder)
    with _existing_record(folder, run) as db:
        ending: dict[str, Any] = {
            "published": published,
            "ended": ended,
            "sink_drops": {name: dict(reasons) for name, reasons in (sink_drops or {}).items()},
            "outputs": {name: dict(report) for name, report in (outputs or {}).items()},
            "finished": _iso(time.time()),
        }
        if runs_by_backend is not None:
            ending["runs_by_backend"] = dict(runs_by_backend)
        if regions is not None:
            ending["regions"] = dict(regions)
        _complete(folder, run, db, account, ending)


def recover_run(folder: Path) -> Account:
    """Complete a run that was cut off, from what its record holds.

    Frames that neither a row nor an event tells of, known by gaps between the numbers of the rows, count as lost.

    Returns
    -------
    Account
        What became of every frame up to the last one on record.

    Raises
    ------
    RunFolderError
        If the folder holds no run, a completed one, one that is still being written, or a damaged record.
    """
    run = _read_open_run(folder)
    files = [folder / name for name in ("run.json", "run.sqlite", "run.sqlite-wal")]
    finished_s = max(file.stat().st_mtime for file in files if file.exists())
    with _existing_record(folder, run, alone=True) as db:
        account = _account_on_record(db)
        ending = {
            "published": None,
            "ended": "cut off; recovered",
            "recovered": True,
            "sink_drops": None,  # nobody was left to tell
            "finished": _iso(finished_s),
        }
        _complete(folder, run, db, account, ending)
    return account


def _make_folder(folder: Path) -> None:
    """Make the folder of a new run, or take an empty one."""
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"expected a folder for the run, {folder} is a file; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise RunFolderError(
            f"expected a new or empty folder for the run, {folder} holds files, which are never overwritten; "
            f"choose another name, such as {_free_name(folder)}"
        )


def _free_name(folder: Path) -> Path:
    """First of NAME-2, NAME-3, ... that does not exist."""
    n = 2
    while (free := folder.parent / f"{folder.name or 'run'}-{n}").exists():
        n += 1
    return free


def _new_run(card: ModelCard, source: SourceInfo, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what is known before the first frame, as it stands in `run.json`."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "started": _iso(time.time()),
        "source": asdict(source),
        "settings": settings,
        "versions": {
            "oneframe": _version("oneframe"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "onnxruntime": _version("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"),
        },
        "card": json.loads(card.to_json()),
        "account": None,
    }


def _version(*distributions: str) -> str | None:
    """Version of the first of these packages that is installed."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _iso(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")


def _write_json(path: Path, run: dict[str, Any]) -> None:
    """Write a file that is there as a whole or not at all."""
    with _replacing(path) as draft:
        draft.write_text(json.dumps(run, indent=2, default=str) + "\n", encoding="utf-8")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a draft beside `path` that takes its place when it is finished."""
    draft = path.with_name(path.name + ".part")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _open_database(folder: Path, columns: Iterable[str]) -> sqlite3.Connection:
    """Open `run.sqlite`; tables that are not there yet are made."""
    names = ("frame INTEGER", "time_s REAL", "track_id INTEGER", *(f"{name} REAL" for name in columns))
    db = sqlite3.connect(folder / "run.sqlite", isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.executescript(_TABLES.format(detections=", ".join((*names, "y_um REAL", "x_um REAL"))))
    except sqlite3.Error:
        db.close()
        raise
    return db


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Commit all of the block or nothing."""
    db.execute("BEGIN")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _column_names(db: sqlite3.Connection) -> list[str]:
    """Columns of the table `detections`, in its order."""
    return [name for _, name, *_ in db.execute("PRAGMA table_info(detections)")]


def _read_open_run(folder: Path) -> dict[str, Any]:
    run = read_run(folder)
    if run["account"] is not None:
        raise RunFolderError(f"expected a run without an account, {folder} is complete; there is nothing to do")
    return run


@contextmanager
def _existing_record(folder: Path, run: dict[str, Any], *, alone: bool = False) -> Iterator[sqlite3.Connection]:
    """Open the record of a run; with `alone`, only if no other process has it open."""
    try:
        columns = [name for name in run["card"]["columns"] if name in COLUMNS]
        with closing(_open_database(folder, columns)) as db:
            if alone and not _leave_wal(db):
                raise RunFolderError(
                    f"expected a run that was cut off, {folder} is open in another process; "
                    "end the run or close the viewer, then try again"
                )
            yield db
    except sqlite3.DatabaseError as exc:
        raise RunFolderError(f"expected a readable record, {folder / 'run.sqlite'} gives: {exc}") from exc


def _leave_wal(db: sqlite3.Connection) -> bool:
    """Make the database one plain file, readable from a read-only disk; False if another connection is open."""
    db.execute("PRAGMA busy_timeout=1000")
    try:
        db.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.OperationalError:
        return False
    return True


def _complete(
    folder: Path, run: dict[str, Any], db: sqlite3.Connection, account: Account, ending: dict[str, Any]
) -> None:
    with _replacing(folder / "detections.csv") as draft:
        _write_csv(draft, db)
    if importlib.util.find_spec("pyarrow") is not None:
        with _replacing(folder / "detections.parquet") as draft:
            _write_parquet(draft, folder / "detections.csv")
    seconds = datetime.fromisoformat(ending["finished"]) - datetime.fromisoformat(run["started"])
    age_p50_ms, age_p99_ms = _percentiles(db, "age_ms", (50, 99))
    (inference_p50_ms,) = _percentiles(db, "inference_ms", (50,))
    run |= ending
    run |= {
        "duration_s": round(max(0.0, seconds.total_seconds()), 3),
        "age_p50_ms": age_p50_ms,
        "age_p99_ms": age_p99_ms,
        "inference_p50_ms": inference_p50_ms,
        "drift": _drift_summary(run, db),
        "account": account.to_dict(),
    }
    _write_json(folder / "run.json", run)
    _leave_wal(db)


def _write_csv(path: Path, db: sqlite3.Connection) -> None:
    """Write the table `detections` in the order of the frames, and each row with the parent that came to be known."""
    names = _column_names(db)
    known = (
        "SELECT track_id AS daughter, MAX(parent_id) AS mother FROM detections WHERE parent_id > 0 GROUP BY track_id"
    )
    parents = f"LEFT JOIN ({known}) ON daughter = track_id" if "parent_id" in names else ""
    rows = db.execute(
        f"SELECT {', '.join(map(_as_text, names))} FROM detections {parents} ORDER BY frame, detections.rowid"
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)


def _write_parquet(path: Path, table: Path) -> None:
    """Write the same table as Parquet."""
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    parquet.write_table(arrow_csv.read_csv(table), path)


def _as_text(name: str) -> str:
    """Return SQL for a column of the CSV: pixels to 1e-5, times to 1e-6 s, other floats to 9 digits (float32)."""
    if name in ("frame", "track_id"):
        return name
    if name == "parent_id":
        return "COALESCE(mother, parent_id)"
    digits = "%.6f" if name == "time_s" else "%.5f" if name.endswith("_px") else "%.9g"
    return f"CASE WHEN {name} IS NULL THEN NULL ELSE printf('{digits}', {name}) END"


def _percentiles(db: sqlite3.Connection, column: str, percents: tuple[int, ...]) -> list[float | None]:
    rows = db.execute(f"SELECT {column} FROM frames WHERE status = 'analysed' AND {column} IS NOT NULL")
    values = np.fromiter((value for (value,) in rows), np.float64)
    if len(values) == 0:
        return [None] * len(percents)
    return [round(float(value), 3) for value in np.percentile(values, percents)]


def _drift_summary(run: dict[str, Any], db: sqlite3.Connection) -> dict[str, Any] | None:
    """Compare the run's detections with the training's; None if the model does not know what these were like."""
    card = run["card"]
    reference = card.get("quality", {}).get("reference")
    if not isinstance(reference, dict):
        return None
    counted = f"score >= {card['threshold'] - 1e-6}"  # as in `DriftWatch`
    (n_rows,) = db.execute(f"SELECT COUNT(*) FROM detections WHERE {counted}").fetchone()
    measured: dict[str, Any] = {"n": n_rows}
    for column in {"variance_px2", "score"} & reference.keys() & set(_column_names(db)):
        one_in = max(1, n_rows // _ROWS_FOR_QUANTILES)
        rows = db.execute(
            f"SELECT {column} FROM detections WHERE {counted} AND {column} IS NOT NULL AND rowid % ? = 0", (one_in,)
        )
        values = np.fromiter((value for (value,) in rows), np.float64)
        if len(values):
            measured[column] = [float(f"{q:.4g}") for q in np.quantile(values, (0.05, 0.5, 0.95))]
    share, alarms = _alarms(db)
    return {"reference": reference, "measured": measured, "share_in_alarm": share, "alarms": alarms}


def _alarms(db: sqlite3.Connection) -> tuple[float, list[dict[str, Any]]]:
    """Return the share of the analysed frames with an alarm, and of each alarm its first frame and that after it."""
    alarms: list[dict[str, Any]] = []
    events = db.execute("SELECT kind, text, frame FROM events WHERE kind IN (?, ?) ORDER BY rowid", _DRIFT_KINDS)
    for kind, text, frame in events:
        if alarms and alarms[-1]["until_frame"] is None:
            alarms[-1]["until_frame"] = frame
        if kind == _DRIFT:
            alarms.append({"first_frame": frame, "until_frame": None, "sentence": text})
    rows = db.execute("SELECT frame FROM frames WHERE status = 'analysed' ORDER BY frame")
    analysed = np.fromiter((frame for (frame,) in rows), np.int64)
    n_in_alarm = 0
    for alarm in alarms:
        until = alarm["until_frame"]
        end = len(analysed) if until is None else int(np.searchsorted(analysed, until))
        n_in_alarm += end - int(np.searchsorted(analysed, alarm["first_frame"]))
    return round(n_in_alarm / max(1, len(analysed)), 4), alarms


def _account_on_record(db: sqlite3.Connection) -> Account:
    n_frames: Counter[str] = Counter(dict(db.execute("SELECT status, COUNT(*) FROM frames GROUP BY status")))
    reasons: Counter[str] = Counter()
    for reason, n in db.execute("SELECT reason, COUNT(*) FROM frames WHERE status <> 'analysed' GROUP BY reason"):
        reasons[reason] += n
    n_unknown_gaps = 0
    lost = "SELECT kind, text, n_frames FROM events WHERE kind IN ('lost', ?)"
    for kind, reason, n in db.execute(lost, (_LOST_AT_LEAST,)):
        n_frames["lost"] += n
        reasons[reason] += n
        n_unknown_gaps += kind == _LOST_AT_LEAST
    n_untold = _n_untold(db)
    if n_untold > 0:
        n_frames["lost"] += n_untold
        reasons["gap in the record"] += n_untold
    return _account(n_frames, reasons, n_unknown_gaps)


def _n_untold(db: sqlite3.Connection) -> int:
    """Count the numbers between the first and the last row that neither a row nor an event tells of."""
    first, last, n_numbers, n_rows_without = db.execute(
        "SELECT MIN(frame), MAX(frame), COUNT(DISTINCT frame), COUNT(*) - COUNT(frame) FROM frames"
    ).fetchone()
    if first is None:
        return 0
    (n_told,) = db.execute(
        "SELECT COALESCE(SUM(n_frames), 0) FROM events"
        " WHERE kind = 'lost' AND (frame IS NULL OR frame BETWEEN ? AND ?)",
        (first, last),
    ).fetchone()
    # A failed frame without a number stands for one of the missing numbers.
    return int(last - first + 1 - n_numbers - n_rows_without - n_told)


def _account(n_frames: Counter[str], reasons: Counter[str], n_unknown_gaps: int) -> Account:
    n_seen = n_frames["analysed"] + n_frames["skipped"] + n_frames["failed"]
    return Account(
        seen=n_seen,
        analysed=n_frames["analysed"],
        skipped=n_frames["skipped"],
        failed=n_frames["failed"],
        lost_before=n_frames["lost"],
        reasons=dict(reasons),
        gaps_of_unknown_length=n_unknown_gaps,
    )
