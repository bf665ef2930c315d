"""Grey videos: MP4, AVI and what else OpenCV's FFmpeg reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.source import EndOfStream, SourceError

Pixels = NDArray[Any]

_ALMOST_GREY = 6
"""Grey levels by which the colours of a grey video may differ after its codec."""


class VideoStack:
    """A video file, read image by image; going back means reading again from the start, so that no image is missed.

    Videos are 8 bit and mostly compressed with losses: good for a look, not for a measurement.
    """

    pixel_size_um = None

    def __init__(self, path: Path) -> None:
        self._path = path
        self._video: Any = None
        self._next = 0
        self._is_grey = False
        self._rewind()
        self._n_told = self._count_told()
        if self._n_told < 1:
            self.close()
            raise SourceError(f"{path} does not tell how many images it holds; save it again as AVI, MP4 or TIFF")

    def __len__(self) -> int:
        return self._n_told

    def read(self, page: int) -> Pixels:
        """Return (H, W), uint8."""
        if page < self._next:
            self._rewind()
        while self._next < page:
            self._grab()
        self._grab()
        ok, pixels = self._video.retrieve()
        if not ok:
            raise ValueError("it cannot be decoded")
        return self._grey(pixels)

    def close(self) -> None:
        """Close the file."""
        if self._video is not None:
            self._video.release()
            self._video = None

    def _count_told(self) -> int:
        import cv2

        return int(self._video.get(cv2.CAP_PROP_FRAME_COUNT))

    def _grab(self) -> None:
        if not self._video.grab():
            raise EndOfStream(
                f"{self._path} ends after {self._next} images, its header told {self._n_told}", n_frames=self._next
            )
        self._next += 1

    def _rewind(self) -> None:
        import cv2

        self.close()
        self._video = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG)
        self._next = 0
        if not self._video.isOpened():
            raise SourceError(f"{self._path} cannot be read as a video; is it complete, and what its name says?")

    def _grey(self, pixels: Pixels) -> Pixels:
        if pixels.ndim == 2:
            return pixels
        low, high = pixels.min(axis=-1), pixels.max(axis=-1)
        if int((high - low).max()) > _ALMOST_GREY:
            if self._is_grey:
                raise ValueError("it has colours, those before had none")  # what a decoder makes of half an image
            raise SourceError(
                f"{self._path} is a colour video, grey images are expected; convert it, in ImageJ with Image > Type > "
                "8-bit, or with: ffmpeg -i IN -pix_fmt gray OUT.avi"
            )
        self._is_grey = True
        return np.ascontiguousarray(pixels[..., 1])
