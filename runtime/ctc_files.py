"""A logged run of cells in the layout of the Cell Tracking Challenge: one label image a frame and the table of tracks.

    mask000.tif ...   uint16, a cell's pixels have the number of its track
    res_track.txt     a line `L B E P` for each track: its number, first and last mask, the track it comes from or 0
    frames.csv        which frame of the run each mask is

Masks are numbered from 0 without gaps, so they are the analysed frames in their order; frames that were skipped or lost
have no mask, which `frames.csv` tells. The Challenge's programs ask that a track is in every mask from its first to its
last: one that was not seen for some frames goes on under a new number whose parent is the old one, as in the
Challenge's own annotations. A parent with two tracks divided, a parent with one was lost for a while.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np

from oneframe.runtime.run_table import RunTable

MOST_TRACKS = 65535
"""The masks have 16 bits."""


def write_ctc(table: RunTable, labels: Path, folder: Path) -> list[str]:
    """Write a run in the layout of the Cell Tracking Challenge; return what its reader must know, as sentences.

    Parameters
    ----------
    table : RunTable
        The run.
    labels : Path
        Its `labels.tif`.
    folder : Path
        Made here; it may exist if it is empty.

    Raises
    ------
    ValueError
        If the run has no label images, or more tracks than 16 bits can tell apart.

    References
    ----------
    Maska et al., Nat. Methods 20, 1010 (2023); the layout: celltrackingchallenge.net, naming and file content.
    """
    import tifffile

    if table.labels_page is None or not labels.exists():
        raise ValueError(
            f"expected a run with label images for ctc, there is no {labels}; convert a run of a model that segments"
        )
    written = np.flatnonzero(table.labels_page >= 0)
    last_id = int(table.track_id.max(initial=0)) + _n_gaps(table)
    if last_id > MOST_TRACKS:
        raise ValueError(
            f"expected {MOST_TRACKS} tracks at most for ctc, whose masks have 16 bits, this run needs {last_id}; "
            "log it in shorter runs"
        )
    folder.mkdir(exist_ok=True)
    digits = max(3, len(str(len(written) - 1)))
    tracks = _Tracks(table)
    with tifffile.TiffFile(labels) as file:
        for mask, page in enumerate(table.labels_page[written].tolist()):
            image = file.pages[page].asarray()
            n_pixels = np.bincount(image.ravel())
            n_pixels[:1] = 0
            number = np.zeros(len(n_pixels), np.uint16)
            for track in np.flatnonzero(n_pixels).tolist():
                number[track] = tracks.seen(track, mask)
            tifffile.imwrite(
                folder / f"mask{mask:0{digits}d}.tif",
                number[image],
                photometric="minisblack",
                compression="zlib",
                metadata=None,
            )
    (folder / "res_track.txt").write_text(tracks.text(), encoding="ascii", newline="\n")
    frames, times_s = table.frame[written].tolist(), table.frame_time_s[written].tolist()
    lines = [f"{mask},{frame},{time_s:.6f}\n" for mask, frame, time_s in zip(count(), frames, times_s, strict=False)]
    (folder / "frames.csv").write_text("mask,frame,time_s\n" + "".join(lines), encoding="ascii", newline="\n")
    notes = []
    if frames != list(range(len(frames))):
        notes.append(
            "the masks are numbered without gaps, the frames of the run are not: frames.csv says which frame each mask "
            "is"
        )
    if tracks.n_parts:
        notes.append(
            f"{tracks.n_parts} times a track was not seen for some frames; it goes on under a new number whose parent "
            "is the old one, because a track of this layout has no gaps"
        )
    return notes


class _Tracks:
    """The table of tracks while the masks are written."""

    def __init__(self, table: RunTable) -> None:
        parents = np.zeros_like(table.track_id) if table.parent_id is None else table.parent_id
        self._parent_of = dict(zip(table.track_id.tolist(), parents.tolist(), strict=True))
        self._next = int(table.track_id.max(initial=0)) + 1
        self._number: dict[int, int] = {}  # what each track is called now
        self._rows: dict[int, list[int]] = {}  # B, E, P
        self.n_parts = 0

    def seen(self, track: int, mask: int) -> int:
        """Return what the track is called in this mask."""
        number = self._number.get(track)
        if number is not None and self._rows[number][1] in (mask, mask - 1):
            self._rows[number][1] = mask
            return number
        if number is None:
            now, parent = track, self._number.get(self._parent_of.get(track, 0), 0)
        else:
            now, parent = self._next, number
            self._next += 1
            self.n_parts += 1
        self._number[track] = now
        self._rows[now] = [mask, mask, parent]
        return now

    def text(self) -> str:
        return "".join(f"{number} {b} {e} {p}\n" for number, (b, e, p) in sorted(self._rows.items()))


def _n_gaps(table: RunTable) -> int:
    """How often a track missed analysed frames and came back."""
    place = np.searchsorted(table.frame, table.track_frame)
    return int(np.count_nonzero((np.diff(table.track_id) == 0) & (np.diff(place) > 1)))
