"""Detections inside a pycromanager `Acquisition`: `AcquisitionHook`."""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.account import Account
from oneframe.runtime.detections import COLUMNS, Detections
from oneframe.runtime.seams import Model

logger = logging.getLogger(__name__)

Axes = dict[str, int | str]
"""Where an image stands in the acquisition, such as `{"time": 3, "z": 1, "channel": "GFP"}`."""
OnDetections = Callable[[Axes, Detections], list[dict[str, Any]] | None]

_QUEUED_BYTES = 256 * 2**20
"""Pixels that may wait for the model, bytes."""
_END = None
"""What ends an acquisition when it is put into pycromanager's event queue."""


@dataclass(slots=True, eq=False)
class _Image:
    """One image of the acquisition and what became of it."""

    axes: Axes
    pixels: NDArray[Any] | None
    """None: to be read from `dataset`."""
    dataset: Any = None
    pixel_size_um: float | None = None
    fate: Literal["waiting", "analysed", "skipped", "failed"] = "waiting"
    reason: str = "still waiting for the model"
    detections: Detections | None = None
    done: threading.Event = field(default_factory=threading.Event)


class AcquisitionHook:
    """Detects on the images of a pycromanager `Acquisition`; pass it as `image_process_fn`, `image_saved_fn` or both.

    It never raises into the acquisition, gives every image back as it came, and holds nothing up: a thread of its own
    detects, and images that come while 64 wait already are skipped and counted. `finish` waits for that thread and,
    with `every`, analyses the skipped images from the saved file:

        hook = AcquisitionHook(load_model("bead.onnx"), every=True)
        with Acquisition("folder", "name", image_process_fn=hook) as acquisition:
            acquisition.acquire(multi_d_acquisition_events(num_time_points=200))
        hook.finish(acquisition.get_dataset())
        hook.write_csv("detections.csv")

    With `on_detections` the acquisition is driven by what is found, and each image waits for its answer, `answer_s` at
    most. Start such an acquisition with its first event and wait for it with `acquisition.await_completion()`; leaving
    a `with` block would end it at once:

        acquisition.acquire({"axes": {"time": 0}})
        acquisition.await_completion()

    Parameters
    ----------
    model : Model
        Called by one thread at a time.
    on_detections : (axes, detections) -> list of events or None, optional
        Returns the events to acquire next, [] for none, None to end the acquisition once the events so far are done.
        If it raises, returns something else, or there is no answer (the model failed or was too slow), the
        acquisition is ended in the same way, because nothing else would ever end it.
    every : bool
        Let `finish` analyse what was skipped.
    queue_images : int
        Images that may wait for the model, 256 MB at most.
    answer_s : float
        Longest wait for one answer, seconds.
    """

    def __init__(
        self,
        model: Model,
        *,
        on_detections: OnDetections | None = None,
        every: bool = False,
        queue_images: int = 64,
        answer_s: float = 5.0,
    ) -> None:
        if queue_images < 1 or not answer_s > 0:
            raise ValueError(
                f"expected queue_images of 1 or more and answer_s above 0, got {queue_images} and {answer_s}"
            )
        self._model = model
        self._on_detections = on_detections
        self._every = every
        self._queue_images = queue_images
        self._answer_s = answer_s
        self._changed = threading.Condition()
        self._images: list[_Image] = []
        self._known: set[frozenset[tuple[str, int | str]]] = set()
        self._queue: deque[_Image] = deque()
        self._dataset: Any = None
        self._thread: threading.Thread | None = None
        self._finishing = False
        self._errors: Counter[str] = Counter()

    # pycromanager counts the parameters of what it is given: two, or three if the last one is to be the event queue. A
    # default would not make it two again, so all three are always taken.
    def __call__(self, first: Any, second: Any, event_queue: Any) -> tuple[Any, Any] | None:
        """Take one image from pycromanager; the parameters are filled by position.

        As `image_process_fn`: the pixels (H, W), their metadata, and the event queue; returns the first two. As
        `image_saved_fn`: the axes, the dataset, and the event queue; returns None.
        """
        is_saved = isinstance(first, Mapping)
        try:
            image = self._saved(first, second) if is_saved else self._acquired(first, second)
        except Exception as exc:  # whatever happens here must not end the acquisition
            image = _Image({}, None)
            _settle(image, "failed", f"an image that cannot be placed in the acquisition: {type(exc).__name__}: {exc}")
        try:
            if image is not None:
                self._take(image, event_queue)
        except Exception as exc:
            self._note_error(f"{type(exc).__name__}: {exc}")
        return None if is_saved else (first, second)

    def finish(self, dataset: Any = None, *, timeout_s: float = 600.0) -> Account:
        """Wait until the images so far are analysed, with `every` the skipped ones too; call it after the acquisition.

        Parameters
        ----------
        dataset
            Where to read skipped images: `acquisition.get_dataset()`. Not needed for an `image_saved_fn`.
        timeout_s : float
            Longest wait, seconds; what is not done by then stays skipped.

        Returns
        -------
        Account
            As `account()`.

        Raises
        ------
        ValueError
            If images are to be read and there is no dataset.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            self._finishing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        if self._every and not (thread is not None and thread.is_alive()):
            self._analyse_skipped(dataset, deadline_s)
        return self.account()

    def detections(self) -> dict[str, NDArray[Any]]:
        """Return what was found, one row per object, in the order in which the images came.

        Returns
        -------
        dict of columns (N,)
            The axes first: int64 where every image has a whole number there, else text, empty for an image without
            this axis. Then the columns of the detections, float32, NaN where an image has none; and `y_um`, `x_um`,
            float64, where the pixel size is known.
        """
        with self._changed:
            found = [(image, image.detections) for image in self._images if image.detections is not None]
        n_rows = [len(rows) for _, rows in found]
        table: dict[str, NDArray[Any]] = {}
        for name in dict.fromkeys(name for image, _ in found for name in image.axes):
            values = [image.axes.get(name, "") for image, _ in found]
            whole = all(isinstance(value, int) for value in values)
            table[name] = np.repeat(np.array(values if whole else [str(v) for v in values]), n_rows)
        for name in COLUMNS:
            columns = [rows.columns().get(name) for _, rows in found]
            if name in ("y_px", "x_px", "score") or any(column is not None for column in columns):
                filled = [
                    np.full(n, np.nan, np.float32) if column is None else column
                    for column, n in zip(columns, n_rows, strict=True)
                ]
                table[name] = np.concatenate([np.empty(0, np.float32), *filled])
        sizes_um = [image.pixel_size_um or self._model.card.pixel_size_um for image, _ in found]
        if any(size is not None for size in sizes_um):
            size_um = np.repeat(np.array([np.nan if size is None else size for size in sizes_um]), n_rows)
            table |= {f"{axis}_um": table[f"{axis}_px"].astype(np.float64) * size_um for axis in ("y", "x")}
        return table

    def write_csv(self, path: str | Path) -> None:
        """Write `detections()` as a table; floats to 9 digits, which is all that float32 holds.

        Raises
        ------
        FileExistsError
            If there is a file of that name: a table is never overwritten.
        """
        table = self.detections()
        columns = [[_text(value) for value in column.tolist()] for column in table.values()]
        with Path(path).open("x", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(table)
            rows.writerows(zip(*columns, strict=True))

    def account(self) -> Account:
        """Return what became of every image; those that still wait count as skipped."""
        with self._changed:
            fates = Counter(image.fate for image in self._images)
            reasons = Counter(image.reason for image in self._images if image.fate != "analysed")
            return Account(
                seen=len(self._images),
                analysed=fates["analysed"],
                skipped=fates["skipped"] + fates["waiting"],
                failed=fates["failed"],
                lost_before=0,
                reasons=dict(reasons),
            )

    @property
    def errors(self) -> dict[str, int]:
        """What went wrong beside the model, and how often: metadata, `on_detections`, answers that came too late."""
        with self._changed:
            return dict(self._errors)

    def _acquired(self, pixels: NDArray[Any], metadata: Mapping[str, Any]) -> _Image:
        """Note an image of `image_process_fn`."""
        if not isinstance(pixels, np.ndarray):
            raise TypeError(f"expected an array of pixels, got {type(pixels).__name__}")
        axes = _plain_axes(metadata.get("Axes", {}))
        with self._changed:
            self._known.add(frozenset(axes.items()))
        return _Image(axes, pixels, pixel_size_um=_pixel_size_um(metadata))

    def _saved(self, told: Mapping[str, Any], dataset: Any) -> _Image | None:
        """Note an image of `image_saved_fn`; None if `image_process_fn` had it before."""
        axes = _plain_axes(told)
        with self._changed:
            self._dataset = dataset
            if frozenset(axes.items()) in self._known:
                return None
        return _Image(axes, None, dataset)

    def _take(self, image: _Image, event_queue: Any) -> None:
        """Queue an image, or skip it; if the acquisition depends on it, wait for its detections."""
        n_bytes = 0 if image.pixels is None else image.pixels.nbytes
        with self._changed:
            self._images.append(image)
            is_full = len(self._queue) >= min(self._queue_images, max(1, _QUEUED_BYTES // max(1, n_bytes)))
            if image.fate == "waiting" and is_full:
                _settle(image, "skipped", "the queue for the model was full")
            elif image.fate == "waiting":
                self._queue.append(image)
                self._ensure_thread()
                self._changed.notify_all()
        if self._on_detections is not None:
            self._answer(image, event_queue, self._on_detections)

    def _answer(self, image: _Image, event_queue: Any, on_detections: OnDetections) -> None:
        """Put what `on_detections` wants next into the event queue; the end if there is no answer."""
        events: list[dict[str, Any]] | None = _END
        try:
            if not image.done.wait(self._answer_s):
                raise TimeoutError(f"no detections within {self._answer_s:g} s; raise answer_s")
            if image.detections is None:
                raise ValueError(f"no detections: {image.reason}")
            events = _checked_events(on_detections(dict(image.axes), image.detections))
        except Exception as exc:
            self._note_error(f"{type(exc).__name__}: {exc}; the acquisition was ended")
        if events is None or events:
            event_queue.put(events)

    def _note_error(self, reason: str) -> None:
        with self._changed:
            self._errors[reason[:300]] += 1
            is_new = self._errors[reason[:300]] == 1
        if is_new:
            logger.warning("acquisition hook: %s", reason)

    def _ensure_thread(self) -> None:
        """Start the thread for the first image, and again for the first one after `finish`."""
        self._finishing = False
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="oneframe-acquisition", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._finishing:
                        self._thread = None
                        return
                    self._changed.wait()
                image = self._queue.popleft()
            self._analyse(image)

    def _analyse(self, image: _Image) -> None:
        fate: Literal["analysed", "failed"] = "failed"
        detections = None
        try:
            pixels = image.pixels
            if pixels is None:
                pixels, metadata = _read(image.dataset, image.axes)
                image.pixel_size_um = _pixel_size_um(metadata)
            detections, fate, reason = self._model.detect(pixels), "analysed", ""
            if self._on_detections is None:  # a label image and a field are as large as the pixels
                detections = replace(detections, labels=None, field=None)
        except Exception as exc:  # one bad image must not end an acquisition of a night
            reason = str(exc) if isinstance(exc, ValueError) else f"{type(exc).__name__}: {exc}"
        with self._changed:
            image.detections = detections
            _settle(image, fate, reason)

    def _analyse_skipped(self, dataset: Any, deadline_s: float) -> None:
        """Analyse from disk, in the calling thread, what was skipped for want of time."""
        with self._changed:
            skipped = [image for image in self._images if image.fate == "skipped"]
        dataset = self._dataset if dataset is None else dataset
        if skipped and dataset is None:
            raise ValueError(
                f"expected a dataset to read {len(skipped)} skipped images from, got none; pass "
                "acquisition.get_dataset()"
            )
        for image in skipped:
            if time.monotonic() > deadline_s:
                return
            image.dataset = dataset
            self._analyse(image)


def _read(dataset: Any, axes: Axes) -> tuple[NDArray[Any], Mapping[str, Any]]:
    """Read one image and its metadata from a dataset that may still be written to."""
    # ndstorage 0.1 reads a growing file through a buffer that it never drops: the head of an image that was written
    # after the buffer was filled comes out as zeros. Seeking from the end of the file empties that buffer.
    for reader in list(getattr(dataset, "_readers_by_filename", {}).values()):
        with contextlib.suppress(AttributeError), dataset._lock:  # noqa: SLF001 - there is no public way
            reader.file.seek(0, 2)
    return dataset.read_image(**axes), dataset.read_metadata(**axes)


def _settle(image: _Image, fate: Literal["analysed", "skipped", "failed"], reason: str) -> None:
    """Write down what became of an image, and let its pixels go."""
    image.fate, image.reason, image.pixels = fate, reason, None
    image.done.set()


def _plain_axes(told: Mapping[str, Any]) -> Axes:
    """Return axes of Python's own numbers and text."""
    plain = {str(name): value.item() if isinstance(value, np.generic) else value for name, value in told.items()}
    return {name: value if isinstance(value, int) else str(value) for name, value in plain.items()}


def _pixel_size_um(metadata: Mapping[str, Any]) -> float | None:
    """Return the pixel size that Micro-Manager wrote, None if it was not calibrated."""
    for name in ("PixelSize_um", "PixelSizeUm"):
        size_um = metadata.get(name)
        if isinstance(size_um, int | float) and math.isfinite(size_um) and size_um > 0:
            return float(size_um)
    return None


def _checked_events(told: Any) -> list[dict[str, Any]] | None:
    """Refuse what would break pycromanager's event thread, after which its acquisition never ends."""
    events = [told] if isinstance(told, dict) else told
    if events is None:
        return None
    if not isinstance(events, list) or not all(
        isinstance(event, dict) and isinstance(event.get("axes"), dict) for event in events
    ):
        raise TypeError(f"on_detections must return a list of events like {{'axes': {{'time': 1}}}}, got {told!r:.100}")
    return [{**event, "axes": _plain_axes(event["axes"])} for event in events]


def _text(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.9g}"
    return value
