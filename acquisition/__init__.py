"""Frames come in: cameras, recordings, streams and the simulated microscope, all as `Frame`s."""

from oneframe.acquisition.frame import Frame
from oneframe.acquisition.source import (
    BadFrameError,
    EndOfStream,
    FrameSource,
    SourceError,
    SourceInfo,
    frames,
    open_source,
    snap,
)

__all__ = [
    "BadFrameError",
    "EndOfStream",
    "Frame",
    "FrameSource",
    "SourceError",
    "SourceInfo",
    "frames",
    "open_source",
    "snap",
]
