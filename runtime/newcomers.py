"""A cheap look at the whole frame: where does it differ from how it looked when the model last looked there?"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Coarse = NDArray[np.float32]
Ints = NDArray[np.int64]

_NOISE = 5.5
"""A change must exceed so many standard deviations of the noise: one false alarm in 25 million blocks."""
_SHARE = 0.25
"""A change must exceed this share of what the weakest known particle would bring."""
_TRUSTED = 0.5
"""The look is trusted if changes are told from noise at this share."""
_BACKGROUND_BLOCKS = 16
"""Changes of this extent are the lamp's."""
_LEAST_NOISE = 0.2
"""Camera counts: averages of whole numbers are no surer."""


class NewcomerLook:
    """Averages frames of one shape over blocks and compares them with what the model has seen.

    A newcomer changes a few blocks; static structure, and what the model has looked at without finding anything, do
    not change. Slow changes of the lamp are no newcomers: they are taken out, as far as they are smooth.

    Parameters
    ----------
    shape : (H, W)
    block_px : int
        Edge of a block, a power of two.
    """

    def __init__(self, shape: tuple[int, int], block_px: int) -> None:
        self.block_px = block_px
        self._whole = tuple(length // block_px * block_px for length in shape)
        size = shape[0] // block_px, shape[1] // block_px
        self._now: Coarse = np.empty(size, np.float32)
        self._seen: Coarse = np.empty(size, np.float32)
        self._change: Coarse = np.empty(size, np.float32)
        self._weakest = np.inf
        self.threshold = np.inf
        """Camera counts by which a block must change."""
        self.trusted = False
        """Whether a newcomer half as strong as the weakest known particle would be told from noise."""

    def look(self, frame: NDArray[Any]) -> None:
        """Take a frame (H, W)."""
        height, width = self._whole
        view = frame[:height, :width]
        if view.dtype.kind not in "uf" or view.dtype.itemsize > 4 or view.dtype == np.uint32:
            view = view.astype(np.float32)  # OpenCV takes no others
        size = np.array([width, height])
        # OpenCV has a fast path for halves only; the first is taken in the camera's own numbers
        for _ in range(self.block_px.bit_length() - 1):
            size //= 2
            view = cv2.resize(view, size.tolist(), interpolation=cv2.INTER_AREA).astype(np.float32, copy=False)
        self._now[:] = view

    def seen_all(self) -> None:
        """Note that the model has looked at all of this frame."""
        self._seen[:] = self._now

    def know(self, positions: NDArray[Any], otherwise: float) -> None:
        """Learn from the particles of this frame how much a newcomer changes a block; nine of ten are no weaker.

        Parameters
        ----------
        positions : (N, 2)
            Where the model has found particles.
        otherwise : float
            Camera counts, where it has found none.
        """
        self._weakest = float(np.quantile(self._signal(positions), 0.1)) if len(positions) else otherwise

    def seen(self, first: Ints, end: Ints) -> None:
        """Note that the model looks at these parts of this frame.

        Parameters
        ----------
        first, end : (N, 2)
            First and end rows and columns, px; only blocks that lie in them as a whole count.
        """
        first, end = -(-first // self.block_px), end // self.block_px
        for (a, c), (b, d) in zip(first.tolist(), end.tolist(), strict=True):
            self._seen[a:b, c:d] = self._now[a:b, c:d]

    def changed(self) -> Ints:
        """Return the middles of the blocks that have changed since they were seen, (N, 2) px; sets the threshold."""
        change = np.subtract(self._now, self._seen, out=self._change)
        sample = change[::4, ::4]
        unseen = sample != 0
        change -= _smooth(change)
        size = np.abs(change, out=change)
        sample = size[::4, ::4][unseen]
        noise = max(_LEAST_NOISE, 1.4826 * float(np.median(sample))) if len(sample) else np.inf
        self.threshold = max(_NOISE * noise, _SHARE * self._weakest)
        self.trusted = _NOISE * noise <= _TRUSTED * self._weakest
        rows, columns = np.divmod(np.flatnonzero(size > self.threshold), size.shape[1])
        return self.block_px * np.stack([rows, columns], -1) + self.block_px // 2

    def _signal(self, positions: NDArray[Any]) -> Coarse:
        """(N,) by how much particles stand out of the surroundings, camera counts: the strongest of 3 x 3 blocks."""
        size = np.abs(self._now - _smooth(self._now))
        strongest = cv2.dilate(size, np.ones((3, 3), np.uint8))
        block = np.floor((positions + 0.5) / self.block_px).astype(np.int64)
        rows, columns = np.minimum(block, np.array(size.shape) - 1).T
        found: Coarse = strongest[rows, columns]
        return found


def _smooth(coarse: Coarse) -> Coarse:
    """Return what is broader than `_BACKGROUND_BLOCKS`."""
    height, width = coarse.shape
    small = (max(1, width // _BACKGROUND_BLOCKS), max(1, height // _BACKGROUND_BLOCKS))
    mean = cv2.resize(coarse, small, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(mean, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
