"""Detections go to other programs over ZeroMQ, one line of JSON a frame: `PublishDetections`.

    {"frame": 12, "time_s": 1.7e9, "latency_ms": 8.1, "pixel_size_um": 0.1, "n": 2,
     "track_id": [0, 1], "y_px": [..], "x_px": [..], "score": [..], ..., "y_um": [..], "x_um": [..]}

Of a model that localises emitters a line also has, for whoever drives the activation laser,

    "n_emitters": 79, "expected_emitters": 74.2, "density_um2": 0.48, "density_1000px2": 4.8,
    "median_precision_nm": 9.1, "median_precision_px": 0.091

where `expected_emitters` is the sum of the scores; lengths in the sample are null where the pixel size is unknown.
Of cells it has `"parent_id": [0, 7]`, the track that divided into each; 0: none that is known so far.
A subscriber needs no oneframe: `for line in iter(socket.recv, b""): json.loads(line)`. Numbers that are not finite are
null. `y_um` and `x_um` are there where the pixel size is known.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from oneframe.acquisition.endpoint import host_and_port
from oneframe.acquisition.keys import ALLOWED, SERVER_SECRET, Doorkeeper
from oneframe.runtime.density import Emitters, emitters_of
from oneframe.runtime.seams import Analysed

_LINGER_MS = 500


class PublishDetections:
    """The `Output` that publishes every frame's detections; it never waits for a subscriber.

    A subscriber that is more than `high_water_mark` frames behind misses frames, which it sees by their numbers.

    Parameters
    ----------
    bind : str
        `tcp://127.0.0.1:PORT`; port 0 or * takes a free one, see `address`.
    pixel_size_um : float or None
        For sources that do not know it.
    high_water_mark : int
        Frames that wait for one slow subscriber at most.
    keys : Path or None
        What `oneframe keys` made: encrypt, and let in only its clients; needed beyond this computer.

    Raises
    ------
    SourceError
        If the address is malformed or leaves this computer without keys, or the keys cannot be read.
    OSError
        If it cannot be bound.
    """

    def __init__(
        self, bind: str, *, pixel_size_um: float | None = None, high_water_mark: int = 1000, keys: Path | None = None
    ) -> None:
        self._pixel_size_um = pixel_size_um
        match = re.fullmatch(r"tcp://([^/]+):(\d+|\*)", bind)
        host, port = host_and_port(bind, match, "publish at tcp://127.0.0.1:PORT", keys is not None)
        self._context = zmq.Context()
        self._doorkeeper = None
        self._socket = self._context.socket(zmq.PUB)
        self._socket.set(zmq.SNDHWM, high_water_mark)
        self._socket.set(zmq.MAXMSGSIZE, 4096)  # of what subscribers send: their subscriptions
        if keys is not None:
            try:
                self._doorkeeper = Doorkeeper(self._context, keys / SERVER_SECRET, keys / ALLOWED)
            except BaseException:
                self._context.destroy(linger=0)
                raise
            self._doorkeeper.secure(self._socket)
        try:
            self._socket.bind(f"tcp://{host}:{port}")
        except zmq.ZMQError as exc:
            self._stop_door()
            self._context.destroy(linger=0)
            raise OSError(f"cannot bind {bind} ({exc.strerror}); is it in use? take another port") from exc
        self.address: str = self._socket.get_string(zmq.LAST_ENDPOINT)
        """Where subscribers connect to."""

    def act(self, analysed: Analysed) -> None:
        """Publish one frame."""
        if self._doorkeeper is not None:
            self._doorkeeper.check()
        self._socket.send(line_of(analysed, pixel_size_um=self._pixel_size_um), zmq.NOBLOCK)

    def close(self) -> None:
        """Send what is on its way, for half a second at most, and free the port."""
        self._stop_door()
        self._context.destroy(linger=_LINGER_MS)

    def _stop_door(self) -> None:
        if self._doorkeeper is not None:
            self._doorkeeper.close()


def line_of(analysed: Analysed, *, pixel_size_um: float | None = None) -> bytes:
    """Return one frame's detections as a line of JSON, UTF-8 with the newline.

    Parameters
    ----------
    analysed : Analysed
    pixel_size_um : float or None
        Used where the frame has none.
    """
    frame, tracks = analysed.frame, analysed.tracks
    columns = tracks.detections.columns()
    size_um = pixel_size_um if frame.pixel_size_um is None else frame.pixel_size_um
    message: dict[str, Any] = {
        "frame": frame.index,
        "time_s": frame.time_s,
        "latency_ms": round(analysed.age_s * 1e3, 3) if math.isfinite(analysed.age_s) else None,
        "pixel_size_um": size_um,
        "n": len(tracks),
        "track_id": tracks.track_id.tolist(),
        **({} if tracks.parent_id is None else {"parent_id": tracks.parent_id.tolist()}),
        **{name: _numbers(column) for name, column in columns.items()},
    }
    if size_um is not None:
        for axis in ("y", "x"):
            message[f"{axis}_um"] = _numbers(columns[f"{axis}_px"].astype(np.float64) * size_um)
    emitters = emitters_of(frame, tracks.detections, size_um)
    if emitters is not None:
        message |= emitter_values(emitters)
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def emitter_values(emitters: Emitters) -> dict[str, float | None]:
    """Return how many emitters there are, how dense and how precise, as JSON values; None where it is unknown."""
    values: dict[str, float | None] = {
        "n_emitters": round(emitters.n, 3),
        "expected_emitters": round(emitters.expected, 3),
        "density_um2": emitters.per_um2,
        "density_1000px2": emitters.per_1000px2,
        "median_precision_nm": emitters.precision_nm,
        "median_precision_px": emitters.precision_px,
    }
    return {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}


def _numbers(column: np.ndarray[Any, Any]) -> list[float | None]:
    values: list[float | None] = column.tolist()
    if np.isfinite(column).all():
        return values
    return [value if ok else None for value, ok in zip(values, np.isfinite(column), strict=True)]
