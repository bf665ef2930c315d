"""A cheap look at the whole frame: where it differs from how it looked when the model last looked there."""

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
_LEAST_NOISE = 0.4
"""Camera counts: means of whole numbers are no surer."""
_SAMPLED = 8
"""The noise is that of one block in so many, in both directions."""


class NewcomerLook:
    """Averages frames of one shape over blocks and compares them with what the model has seen.

    A newcomer changes a few blocks; static structure, and what the model has looked at without finding anything, do
    not change. Changes of the lamp are no newcomers: what extends over more than 16 blocks is taken out.

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
        self._halves: list[NDArray[Any]] = []
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
        if view.dtype not in (np.uint8, np.uint16, np.int16, np.float32):
            view = view.astype(np.float32)  # OpenCV takes no others
        n_halves = self.block_px.bit_length() - 1
        for k in range(n_halves):  # of other factors OpenCV has no quick way
            if len(self._halves) == k:
                self._halves.append(np.empty((view.shape[0] // 2, view.shape[1] // 2), view.dtype))
            half = self._halves[k]
            cv2.resize(view, half.shape[::-1], dst=half, interpolation=cv2.INTER_AREA)
            view = half.astype(np.float32) if half.dtype == np.uint8 else half  # a step of 8 bits is more than noise
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
        sample = change[::_SAMPLED, ::_SAMPLED]
        sample = sample[sample != 0]  # without what was seen in this very frame
        noise = _LEAST_NOISE
        if len(sample):
            noise = max(noise, 1.4826 * float(np.median(np.abs(sample - np.median(sample)))))
        self.threshold = max(_NOISE * noise, _SHARE * self._weakest)
        self.trusted = _NOISE * noise <= _TRUSTED * self._weakest
        small = _means(change)
        if np.abs(small).max() > 0.1 * self.threshold:
            change -= _spread(small, change)
        low, high, _, _ = cv2.minMaxLoc(change)
        if max(-low, high) <= self.threshold:
            return np.empty((0, 2), np.int64)
        rows, columns = np.divmod(np.flatnonzero(np.abs(change) > self.threshold), change.shape[1])
        return self.block_px * np.stack([rows, columns], -1) + self.block_px // 2

    def _signal(self, positions: NDArray[Any]) -> Coarse:
        """(N,) by how much particles stand out of the surroundings, camera counts: the strongest of 3 x 3 blocks."""
        size = np.abs(self._now - _spread(_means(self._now), self._now))
        strongest = cv2.dilate(size, np.ones((3, 3), np.uint8))
        block = np.floor((positions + 0.5) / self.block_px).astype(np.int64)
        rows, columns = np.minimum(block, np.array(size.shape) - 1).T
        found: Coarse = strongest[rows, columns]
        return found


def _means(coarse: Coarse) -> Coarse:
    """Return the means over 16 blocks in both directions."""
    for _ in range(4):
        size = [max(1, length // 2) for length in coarse.shape[::-1]]
        coarse = np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_AREA), np.float32)
    return coarse


def _spread(means: Coarse, like: Coarse) -> Coarse:
    """Return means on the blocks of `like` again."""
    return np.asarray(cv2.resize(means, like.shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
