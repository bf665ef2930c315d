"""A model that looks at several consecutive frames: those before the present one are kept, or filled in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition import Frame
from oneframe.runtime.detections import Detections
from oneframe.runtime.model import OnnxModel, check_pixels
from oneframe.runtime.wrapped_model import WrappedModel


class WindowModel(WrappedModel):
    """Shows the graph each frame together with those before it, oldest first; it tells what is in the last.

    Before the first frame, and where frames are missing, the graph sees an even image of the background instead, as it
    did now and then in training. Frames come in order: one instance belongs to one run.

    Parameters
    ----------
    network : OnnxModel
        The graph of the model file, which takes `card.n_channels` frames.

    Raises
    ------
    ValueError
        If the card does not tell the counts of the background.
    """

    def __init__(self, network: OnnxModel) -> None:
        super().__init__(network)
        try:
            self._missing = float(network.card.normalisation["missing"])
        except KeyError as exc:
            raise ValueError("the model card lacks the counts of a missing frame; train the model again") from exc
        self._window: NDArray[Any] | None = None
        self._index: int | None = None

    def check(self, frame: Frame) -> None:
        """Take note of the number of the frame that comes next; after a gap the window starts anew.

        Who never calls this says that every image follows the one before.
        """
        if self._index is not None and frame.index != self._index + 1:
            self._window = None
        self._index = frame.index

    def detect(self, image: NDArray[Any]) -> Detections:
        """Find the objects of the next frame.

        Parameters
        ----------
        image : (H, W), or (F, H, W): a whole window, oldest first, which neither uses nor changes what is kept
            Camera pixels. Another size or dtype than before starts anew.

        Raises
        ------
        ValueError
            If the frame does not fit the model, or nothing was imaged; the next one then starts anew.
        """
        if image.ndim != 2:
            return self._network.detect(image)
        window, self._window = self._window, None
        if window is None or (window.shape[1:], window.dtype) != (image.shape, image.dtype):
            window = self._empty(image)
        else:
            window[:-1] = window[1:]
        window[-1] = image
        check_pixels(image)
        found = self._network.detect(window)
        self._window = window
        return found

    def _empty(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return a window of missing frames, (F, H, W)."""
        missing = self._missing
        if image.dtype.kind in "iu":
            missing = round(min(missing, np.iinfo(image.dtype).max))
        return np.full((self.card.n_channels, *image.shape), missing, image.dtype)
