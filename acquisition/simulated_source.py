"""A simulated camera as a `FrameSource`: paced frames of a scene, their truth, and the options that make the scene."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from numpy.typing import NDArray

from oneframe.acquisition.frame import Frame
from oneframe.acquisition.pace import Pace
from oneframe.acquisition.source import EndOfStream, SourceError, SourceInfo, SourceURL

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Scene = TypeVar("Scene", bound="DataclassInstance")
Source = TypeVar("Source")
Scene_co = TypeVar("Scene_co", covariant=True)
Truth_co = TypeVar("Truth_co", covariant=True)


class Movie(Protocol[Scene_co, Truth_co]):
    """Takes pictures of a scene, one frame after the other."""

    @property
    def scene(self) -> Scene_co:
        """What is simulated."""
        ...

    def expose(self) -> NDArray[Any]:
        """Return a picture of the current frame, as a camera gives it."""
        ...

    def advance(self) -> None:
        """Move on to the next frame."""
        ...

    def truth(self) -> Truth_co:
        """Return what there is in the current frame."""
        ...


class SimulatedSource(Generic[Scene_co, Truth_co]):
    """A movie as a source.

    With `fps` the frames come at that rate at most; without, each is made when it is asked for. No frame is ever
    dropped here.
    """

    def __init__(
        self,
        movie: Movie[Scene_co, Truth_co],
        *,
        n_frames: int | None,
        fps: float,
        url: str,
        pixel_size_um: float,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._movie = movie
        self._info = SourceInfo(url, live=fps > 0, n_frames=n_frames, pixel_size_um=pixel_size_um)
        self._metadata = metadata or {}
        self._pace = Pace(fps)
        self._index = 0
        self._closed = False

    @property
    def info(self) -> SourceInfo:
        """What is known before the first frame."""
        return self._info

    @property
    def scene(self) -> Scene_co:
        """What is simulated; its seed replays the truth without images."""
        return self._movie.scene

    def read(self, timeout_s: float) -> Frame | None:
        """Return the next frame, or None if it is not due within `timeout_s` seconds."""
        if self._closed or self._index == self._info.n_frames:
            raise EndOfStream("all frames were made" if not self._closed else "closed", n_frames=self._index)
        if not self._pace.wait(timeout_s):
            return None
        if self._index:
            self._movie.advance()
        pixels = self._movie.expose()
        frame = Frame(pixels, self._index, self._time_s(), self._info.pixel_size_um, self._metadata)
        self._index += 1
        return frame

    def truth(self) -> Truth_co:
        """Return what there was in the frame read last."""
        return self._movie.truth()

    def close(self) -> None:
        """Stop making frames."""
        self._closed = True

    def _time_s(self) -> float:
        """When the frame just made was taken, seconds since the Unix epoch."""
        return time.time()


def scene_of(
    typical: Scene, url: SourceURL, *, signed: Collection[str] = (), given: Mapping[str, Any] | None = None
) -> Scene:
    """Read a scene out of the options, leaving `frames` and `fps` there.

    Parameters
    ----------
    typical : Scene
        Holds where the options say nothing. Its fields are words, whole or real numbers.
    signed : names
        Fields that may be below 0.
    given : mapping, optional
        Values of fields that were read otherwise.

    Raises
    ------
    SourceError
        If an option is no such value, or the scene refuses it.
    """
    values = dict(given or {})
    for name in (field.name for field in fields(typical) if field.name not in values):
        default = getattr(typical, name)
        if isinstance(default, str):
            values[name] = url.options.text(name, default)
        elif isinstance(default, int):
            values[name] = url.options.integer(name, default)
        else:
            values[name] = url.options.number(name, default, minimum=-1e6 if name in signed else 0)
    try:
        return replace(typical, **values)
    except ValueError as exc:
        raise SourceError(f"{url.text}: {exc}") from exc


def open_scene(source: Callable[..., Source], scene: Any, url: SourceURL) -> Source:
    """Return the source of a scene with the `frames` and `fps` of the options, of which none may then be left."""
    n_frames = url.options.integer("frames", 0) or None
    fps = url.options.number("fps", 0.0, maximum=1e5)
    url.options.finish()
    return source(scene, n_frames=n_frames, fps=fps, url=url.text)
