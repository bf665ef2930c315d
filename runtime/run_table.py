"""The tracks of a logged run as numpy columns, and the kinds of particles in them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.detections import Flag
from oneframe.runtime.record import RunFolderError, read_run

Floats = NDArray[np.float64]

AGAINST_Z = Flag.WEAK | Flag.OUTSIDE_Z | Flag.NO_FOCUS | Flag.CONJUGATE
"""Why not to use a row's z. Near a neighbour refined z keeps its error (42 nm at 1.5 to 2 um distance, 38 nm beyond
3 um, in simulated fields)."""
AGAINST_POLARIZABILITY = AGAINST_Z | Flag.NEAR_NEIGHBOUR
"""Why not to use a row's polarizability. A signal outside of what was trained concerns the network only, refined rows
are measured in the field; and leaving rows out by their strength would shift the median of those that stay."""
_ROWS_AT_ONCE = 100_000
_SHARPEST = 0.03
"""Standard deviation that a population has at least, so that two tracks that agree by chance are none."""
_FEWEST = 0.05
"""Share of the values, and two at least, that make a population."""


@dataclass(frozen=True, slots=True, eq=False)
class RunTable:
    """A logged run, read back."""

    run: dict[str, Any]
    """What `run.json` says."""
    n_frames: dict[str, int]
    """Frames on record: analysed, skipped, failed."""
    frame: NDArray[np.int64]
    """(F,), numbers of the analysed frames, ascending."""
    frame_time_s: Floats
    """(F,), since the Unix epoch."""
    track_id: NDArray[np.int64]
    """(N,), one row a detection, sorted by track, then by frame."""
    track_frame: NDArray[np.int64]
    """(N,)."""
    columns: dict[str, Floats]
    """`time_s` and the columns of `Detections`, micrometres too, (N,) each; NaN where a row has no value. Columns
    without any value are not there."""
    frame_shape: tuple[int, int] | None = None
    """Height and width of the frames; None in records of older versions."""
    parent_id: NDArray[np.int64] | None = None
    """(N,), the track that divided into that of the row, 0: none; None where objects do not divide."""
    labels_page: NDArray[np.int64] | None = None
    """(F,), page of `labels.tif` with the frame's label image, -1: none; None if there is no such file."""

    def without(self, against: Flag) -> NDArray[np.bool_]:
        """Return (N,), rows that have none of these flags; all rows if the run has no flags."""
        flags = np.nan_to_num(self.columns.get("flags", np.zeros(len(self.track_id))))
        return np.asarray((flags.astype(np.int64) & against.value) == 0)

    def flag_counts(self) -> dict[str, int]:
        """Return how many rows have each flag, under its name; a row may have several."""
        flags = np.nan_to_num(self.columns.get("flags", np.zeros(0))).astype(np.int64)
        counts = {flag.name or str(flag.value): int(np.count_nonzero(flags & flag.value)) for flag in Flag}
        return {name.lower().replace("_", " "): n for name, n in counts.items() if n}

    def track_lengths(self, keep: NDArray[np.bool_] | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the tracks and the number of rows of each; with `keep` (N,), only those rows count."""
        tracks, lengths = np.unique(self.track_id if keep is None else self.track_id[keep], return_counts=True)
        return tracks, lengths

    def track_medians(self, name: str, keep: NDArray[np.bool_], tracks: NDArray[np.int64]) -> Floats:
        """Return the median of a column for each of these tracks (K,), over the rows that `keep` (N,) names."""
        track_id, column = self.track_id[keep], self.columns[name][keep]
        ends = np.searchsorted(track_id, [tracks, tracks + 1])
        return np.array([np.median(column[first:end]) for first, end in ends.T.tolist()])

    def frame_interval(self) -> tuple[int, float, float]:
        """Return by how much the numbers of analysed frames differ mostly, the time between such two, and its scatter.

        The time is a median in seconds; the scatter is relative, half the width of the middle 68 %.

        Raises
        ------
        ValueError
            If there are no two frames.
        """
        if len(self.frame) < 2:
            raise ValueError(f"expected two analysed frames at least, got {len(self.frame)}; log more")
        differences, counts = np.unique(np.diff(self.frame), return_counts=True)
        every = int(differences[np.argmax(counts)])
        times_s = np.diff(self.frame_time_s)[np.diff(self.frame) == every]
        low, dt_s, high = (float(value) for value in np.percentile(times_s, (16, 50, 84)))
        return every, dt_s, (high - low) / 2 / dt_s if dt_s > 0 else np.inf


def read_run_table(folder: Path) -> RunTable:
    """Read a run, complete or not, without changing anything in its folder.

    Raises
    ------
    RunFolderError
        If the folder holds no run, or its record cannot be read.
    """
    run = read_run(folder)
    record = folder / "run.sqlite"
    try:
        with closing(sqlite3.connect(f"{record.resolve().as_uri()}?mode=ro", uri=True)) as db:
            n_frames = {
                str(status): int(n) for status, n in db.execute("SELECT status, COUNT(*) FROM frames GROUP BY status")
            }
            told = db.execute("SELECT value FROM meta WHERE key = 'frame_shape_px'").fetchone()
            frames = _read(db, ["frame", "time_s", "labels_page"], "frames WHERE status = 'analysed' ORDER BY frame")
            names = [name for _, name, *_ in db.execute("PRAGMA table_info(detections)")]
            values = _read(db, names, "detections ORDER BY track_id, frame")
    except sqlite3.Error as exc:
        raise RunFolderError(f"expected a readable record, {record} gives: {exc}; is the folder complete?") from exc
    columns = dict(zip(names, values.T, strict=True))
    track_id, parents = columns.pop("track_id").astype(np.int64), columns.pop("parent_id", None)
    return RunTable(
        run=run,
        n_frames=n_frames,
        frame=frames[:, 0].astype(np.int64),
        frame_time_s=frames[:, 1],
        track_id=track_id,
        track_frame=columns.pop("frame").astype(np.int64),
        columns={name: column for name, column in columns.items() if np.isfinite(column).any()},
        frame_shape=None if told is None else (int(told[0].split()[0]), int(told[0].split()[1])),
        parent_id=None if parents is None else _of_whole_track(track_id, np.nan_to_num(parents).astype(np.int64)),
        labels_page=np.nan_to_num(frames[:, 2], nan=-1).astype(np.int64) if np.isfinite(frames[:, 2]).any() else None,
    )


def _of_whole_track(track_id: NDArray[np.int64], parent_id: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the parent that came to be known for all rows (N,) of each track; rows are sorted by track."""
    if not len(track_id):
        return parent_id
    first = np.flatnonzero(np.diff(track_id, prepend=track_id[0] - 1))
    return np.repeat(np.maximum.reduceat(parent_id, first), np.diff(first, append=len(track_id)))


def populations(values: Floats, *, most: int = 3) -> NDArray[np.int64]:
    """Tell the kinds of particles apart by one logarithmic value of each, such as ln polarizability.

    Mixtures of one to `most` Gaussians are fitted (expectation maximisation); the number is that of the lowest
    Bayesian information criterion among those whose populations are large enough and lie further apart than twice the
    sum of their standard deviations: fewer than some 2 % are confused.

    Returns
    -------
    (N,) int64
        Population of each value, 0 the lowest.
    """
    labels = np.zeros(len(values), np.int64)
    lowest = np.inf
    smallest = max(2, _FEWEST * len(values))
    for k in range(1, most + 1):
        if k > 1 and k * smallest > len(values):
            break
        log_likelihood, mean, sd, found = max(
            (_mixture(values, start) for start in _starts(values, k)), key=lambda fit: fit[0]
        )
        criterion = (3 * k - 1) * np.log(max(2, len(values))) - 2 * log_likelihood
        apart = (np.diff(mean) > 2 * (sd[1:] + sd[:-1])).all()
        if criterion < lowest and apart and np.bincount(found, minlength=k).min() >= smallest:
            lowest, labels = criterion, found
    return labels


def _starts(values: Floats, k: int) -> list[NDArray[np.int64]]:
    """Return labels to start from: equal numbers, and a cut at each of the largest gaps."""
    order = np.argsort(values, kind="stable")
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values))
    cuts = np.sort(np.argsort(np.diff(values[order]))[::-1][: k - 1])
    return [rank * k // max(1, len(values)), np.searchsorted(cuts, rank, side="left").astype(np.int64)]


def _mixture(values: Floats, labels: NDArray[np.int64]) -> tuple[float, Floats, Floats, NDArray[np.int64]]:
    """Fit Gaussians; return the log likelihood, means (ascending), standard deviations, and the one of each value."""
    share = np.eye(int(labels.max(initial=0)) + 1)[labels]  # (N, K)
    log_likelihood = -np.inf
    for _ in range(500):
        weight = share.sum(axis=0) + 1e-9
        mean = (share * values[:, None]).sum(axis=0) / weight
        variance = (share * (values[:, None] - mean) ** 2).sum(axis=0) / weight + _SHARPEST**2
        squared = (values[:, None] - mean) ** 2 / variance
        log_density = np.log(weight / weight.sum()) - (squared + np.log(2 * np.pi * variance)) / 2
        total = np.logaddexp.reduce(log_density, axis=1)
        share = np.exp(log_density - total[:, None])
        before, log_likelihood = log_likelihood, float(total.sum())
        if log_likelihood - before < 1e-6 * len(values):
            break
    order = np.argsort(mean)
    return log_likelihood, mean[order], np.sqrt(variance[order]), np.argmax(log_density[:, order], axis=1)


def _read(db: sqlite3.Connection, names: list[str], rows: str) -> Floats:
    """Return (N, K) numbers, NaN for NULL."""
    cursor = db.execute(f"SELECT {', '.join(names)} FROM {rows}")
    parts = [np.empty((0, len(names)))]
    while some := cursor.fetchmany(_ROWS_AT_ONCE):
        parts.append(np.array(some, np.float64))
    return np.concatenate(parts)
