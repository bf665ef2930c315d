"""Square regions and a strip of a frame, side by side in one image: what is looked at in place of the whole frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from oneframe.runtime.card import ModelCard

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RegionSize:
    """Lengths of a region, pixels; all are multiples of `grid_px`, so that cells and blocks of cells stay the same."""

    grid_px: int
    """Edge of a block of the network's cells."""
    core_px: int
    """Edge of the square in the middle, from which detections are taken."""
    margin_px: int
    """On each side of it."""

    @property
    def edge_px(self) -> int:
        """Edge of the whole region."""
        return self.core_px + 2 * self.margin_px

    @classmethod
    def of(cls, card: ModelCard, reach_px: float) -> RegionSize:
        """Return what a model needs to find a particle up to `reach_px` from where it is expected, along each axis.

        The margin takes in the pixels of the fit. A position that was not fitted depends on all that the network sees,
        half of 40 px of cells of 2 px.
        """
        pooling = int(card.settings.get("pooling", 1))
        stride_px = int(card.settings.get("stride_px") or 2) * pooling
        grid_px = stride_px * (2 if card.settings.get("split_cells") else 1)
        while 4 * grid_px <= card.object_diameter_px:
            grid_px *= 2
        margin_px = card.object_diameter_px / 2 + 4 * pooling  # `LikelihoodFit`
        if not card.settings.get("fit"):
            margin_px = max(margin_px, 10 * stride_px)
        core_px = 2 * reach_px + grid_px  # regions lie up to half of `grid_px` off
        return cls(grid_px, _whole(core_px, grid_px), grid_px * max(1, round(margin_px / grid_px)))


def _whole(length_px: float, step_px: int) -> int:
    """Return the next whole number of steps, in pixels."""
    return step_px * math.ceil(length_px / step_px)


@dataclass(frozen=True, slots=True, eq=False)
class Strip:
    """Whole rows of a frame; detections are taken from `first` up to before `end`."""

    first: int
    end: int
    cut_first: int
    """With the margins."""
    cut_end: int

    @property
    def n_cut(self) -> int:
        """Rows with the margins."""
        return self.cut_end - self.cut_first


NO_STRIP = Strip(0, 0, 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What is cut from the frame and where it is put."""

    origins: Ints
    """(N, 2) first row and column of each region in the frame."""
    places: Ints
    """(N, 2) the same in the montage."""
    row_of: Ints
    """(N,) row and column of regions in the montage."""
    column_of: Ints
    strip: Strip
    strip_place: int
    """First row of the strip in the montage."""
    height: int
    """Of the montage."""
    width: int
    """As that of the frame if there is a strip."""


class Led(NamedTuple):
    """Detections of a montage, led back to the frame: those that lie in a core."""

    positions: Floats
    """(K, 2) pixels of the frame."""
    rows: NDArray[np.intp]
    """(K,) which detections of the montage they are."""
    region: NDArray[np.intp]
    """(K,) where each was found."""
    depth: Floats
    """(K,) px to the nearest side of that core."""


class Montage:
    """Cuts regions and a strip out of frames of one shape and leads what is found in them back.

    Regions start at multiples of `grid_px`. Those at the border of the frame are put to the same border of the
    montage, so that there, too, the network sees what it would see in the whole frame.

    Parameters
    ----------
    shape : (H, W)
    size : RegionSize
    background : float
        Camera counts where no region is.

    Raises
    ------
    ValueError
        If the frame is too small for two regions along an axis.
    """

    def __init__(self, shape: tuple[int, int], dtype: np.dtype[Any], size: RegionSize, background: float) -> None:
        height, width = shape
        if min(shape) < 2 * size.edge_px:
            raise ValueError(f"expected a frame of at least two regions of {size.edge_px} px, got {shape}; use none")
        self.shape = shape
        self.size = size
        # the last region along each axis takes what is left of the frame
        self._last = np.array([_last_origin(height, size), _last_origin(width, size)])
        self.n_columns = int(self._last[1]) // size.edge_px + 1
        """Regions side by side, at the most."""
        self._sheets = np.empty((2, height * width), dtype)
        self._window = (size.edge_px, size.edge_px)
        self._background = np.array(background).astype(dtype)

    def strips(self, n: int) -> list[Strip]:
        """Return at most `n` strips, none thinner than a region, that cover the frame."""
        height, size = self.shape[0], self.size
        thick = max(size.edge_px, _whole(height / n, size.grid_px))
        last = max(0, height - thick) // size.grid_px * size.grid_px
        strips = []
        for first in [*range(0, last, thick), last]:
            end = first + thick
            if end + size.margin_px >= height:
                end = height
            strips.append(Strip(first, end, max(0, first - size.margin_px), min(height, end + size.margin_px)))
        return strips

    def around(self, positions: Floats) -> Ints:
        """Return where the regions around positions (N, 2) start, (N, 2), inside the frame."""
        size = self.size
        origins = size.grid_px * np.rint((positions + 0.5 - size.edge_px / 2) / size.grid_px).astype(np.int64)
        return np.clip(origins, 0, self._last)

    def each_once(self, origins: Ints) -> Ints:
        """Return the different ones of origins (N, 2), in order."""
        place = np.unique(origins[:, 0] * self.shape[1] + origins[:, 1])
        return np.stack(np.divmod(place, self.shape[1]), -1)

    def gathered(self, positions: Ints) -> Ints:
        """Return where the regions start that hold positions (N, 2), one for all that lie within a core's size, (K, 2).

        Each is put around the mean of its positions: what has changed there lies in the middle of a core.
        """
        if not len(positions):
            return positions
        tile = positions // self.size.core_px
        _, group, count = np.unique(tile[:, 0] * self.shape[1] + tile[:, 1], return_inverse=True, return_counts=True)
        mean = np.stack([np.bincount(group, along) / count for along in positions.T], -1)
        return self.around(mean)

    def cores(self, origins: Ints) -> tuple[Ints, Ints]:
        """Return first and end rows and columns, (N, 2) each, from which regions take detections.

        At the border of the frame a core reaches up to it.
        """
        first = origins + self.size.margin_px
        end = first + self.size.core_px
        return np.where(origins == 0, 0, first), np.where(origins == self._last, np.array(self.shape), end)

    def plan(self, origins: Ints, strip: Strip, *, highest: int) -> Plan | None:
        """Arrange the regions that the strip does not hold anyway, each once.

        Parameters
        ----------
        origins : (N, 2)
            As from `around`.
        highest : int
            None is returned if as many pixels as so many rows of the frame do not hold them.
        """
        first, end = self.cores(origins)
        outside = (first[:, 0] < strip.first) | (end[:, 0] > strip.end)
        origins = self.each_once(origins[outside])
        edge = self.size.edge_px
        below, beside = (self.shape - self._last - edge).tolist()  # what the last region of the frame has more
        top, left = (origins == 0).T
        bottom, right = (origins == self._last).T
        n_columns = self.n_columns
        if not strip.n_cut:  # about square: the less is left empty
            n_least = max(1 + math.isqrt(max(0, len(origins) - 1)), math.ceil(len(origins) * edge / max(1, highest)))
            n_columns = min(n_columns, max(n_least, int(top.sum()), int(bottom.sum())))
        n_rows = max(math.ceil(len(origins) / n_columns), left.sum(), right.sum(), int(top.any()) + int(bottom.any()))
        height = n_rows * edge + strip.n_cut + (below if bottom.any() else 0)
        last_column_px = (n_columns - 1) * edge if n_columns < self.n_columns else int(self._last[1])
        width = last_column_px + edge + beside
        if height * width > highest * self.shape[1]:
            return None
        slots = _slots(n_rows, n_columns, top, bottom, left, right)
        if slots is None:
            return None
        row_of, column_of = slots
        n_above = 0 if strip.first == 0 else n_rows - 1 if bottom.any() else n_rows
        y = row_of * edge + np.where(row_of >= n_above, strip.n_cut, 0)
        x = np.where(column_of == n_columns - 1, last_column_px, column_of * edge)
        return Plan(origins, np.stack([y, x], -1), row_of, column_of, strip, n_above * edge, height, width)

    def cut(self, frame: NDArray[Any], plan: Plan, *, sheet: int = 0) -> NDArray[Any]:
        """Return the montage; it is written over by the next call for the same sheet, 0 or 1."""
        size, strip = self.size, plan.strip
        pixels = self._sheets[sheet, : plan.height * plan.width].reshape(plan.height, plan.width)
        pixels[:] = self._background
        if strip.n_cut:
            pixels[plan.strip_place : plan.strip_place + strip.n_cut] = frame[strip.cut_first : strip.cut_end]
        if not len(plan.origins):
            return pixels
        (from_y, from_x), (to_y, to_x) = plan.origins.T, plan.places.T
        places = sliding_window_view(pixels, self._window, writeable=True)
        places[to_y, to_x] = sliding_window_view(frame, self._window)[from_y, from_x]
        for i in np.flatnonzero((plan.origins == self._last).any(1)):  # the frame's last rows and columns
            end_y, end_x = np.where(plan.origins[i] == self._last, self.shape, plan.origins[i] + size.edge_px)
            region = frame[from_y[i] : end_y, from_x[i] : end_x]
            pixels[to_y[i] : to_y[i] + region.shape[0], to_x[i] : to_x[i] + region.shape[1]] = region
        return pixels

    def back(self, plan: Plan, positions: Floats) -> Led:
        """Lead positions (M, 2) in the montage back to the frame; see `each_object_once`."""
        strip, edge = plan.strip, self.size.edge_px
        n_regions = len(plan.origins)
        # the strip is the last of the regions; -1 is none
        moves = np.vstack([plan.origins - plan.places, [[strip.cut_first - plan.strip_place, 0]]])
        first, end = self.cores(plan.origins)
        first = np.vstack([first, [[strip.first, 0]]])
        end = np.vstack([end, [[strip.end, self.shape[1]]]])
        n_rows = (plan.height - strip.n_cut) // edge
        last_column_px = plan.width - (self.shape[1] - int(self._last[1]))
        n_columns = last_column_px // edge + 1
        region_at = np.full((n_rows + 1, n_columns + 1), -1)
        region_at[plan.row_of, plan.column_of] = np.arange(n_regions)
        y, x = np.floor(positions + 0.5).astype(np.int64).T
        below = y >= plan.strip_place + strip.n_cut
        in_strip = (y >= plan.strip_place) & ~below
        row = np.clip((y - np.where(below, strip.n_cut, 0)) // edge, 0, n_rows - 1 if n_rows else 0)
        column = np.where(x >= last_column_px, n_columns - 1, x // edge)
        column = np.where((column == n_columns - 1) & (x < last_column_px), n_columns, column)
        region = np.where(in_strip, n_regions, region_at[row, np.clip(column, 0, n_columns)])
        in_frame = positions + moves[region]
        depth = np.minimum(in_frame + 0.5 - first[region], end[region] - 0.5 - in_frame).min(1)
        kept = np.flatnonzero((region >= 0) & (depth >= 0))
        return Led(in_frame[kept], kept, region[kept], depth[kept])


def each_object_once(parts: Sequence[Led], *, same_px: float) -> NDArray[np.bool_]:
    """Return which of all detections of a frame's montages stay, (sum of K,).

    Parameters
    ----------
    parts : sequence of Led
    same_px : float
        Detections of different regions that are nearer than this are the same: the one deeper in its core stays.
    """
    firsts = np.cumsum([0, *(1 + part.region.max(initial=0) for part in parts[:-1])])
    region = np.concatenate([part.region + first for part, first in zip(parts, firsts, strict=True)])
    positions, depth = (np.concatenate([getattr(part, name) for part in parts]) for name in ("positions", "depth"))
    if len(positions) < 2:
        return np.ones(len(positions), bool)
    from scipy.spatial import cKDTree

    i, j = cKDTree(positions).query_pairs(same_px, output_type="ndarray").T
    loser = np.where(depth[i] >= depth[j], j, i)
    stays = np.ones(len(positions), bool)
    stays[loser[region[i] != region[j]]] = False
    return stays


def _last_origin(length: int, size: RegionSize) -> int:
    return (length - size.edge_px) // size.grid_px * size.grid_px


def _slots(
    n_rows: int,
    n_columns: int,
    top: NDArray[np.bool_],
    bottom: NDArray[np.bool_],
    left: NDArray[np.bool_],
    right: NDArray[np.bool_],
) -> tuple[Ints, Ints] | None:
    """Return row and column of each region, those at a border at the same border; None if there is no room for them."""
    free = np.ones((n_rows, n_columns), bool)
    # rows and columns at a border come last, for those that need them
    rows = np.array(sorted(range(n_rows), key=lambda row: row in (0, n_rows - 1)), np.int64)
    columns = np.array(sorted(range(n_columns), key=lambda column: column in (0, n_columns - 1)), np.int64)
    anywhere = np.ones(len(top), bool)
    vertical = ((top, np.array([0])), (bottom, np.array([n_rows - 1])), (anywhere, rows))
    horizontal = ((left, np.array([0])), (right, np.array([n_columns - 1])), (anywhere, columns))
    groups = [(a & b, in_rows, in_columns) for a, in_rows in vertical for b, in_columns in horizontal]  # corners first
    row_of, column_of = np.full((2, len(top)), -1)
    for chosen, in_rows, in_columns in groups:
        which = np.flatnonzero(chosen & (row_of < 0))
        if not len(which):
            continue
        place = np.flatnonzero(free[np.ix_(in_rows, in_columns)])[: len(which)]
        if len(place) < len(which):
            return None
        a, b = np.divmod(place, len(in_columns))
        row_of[which], column_of[which] = in_rows[a], in_columns[b]
        free[in_rows[a], in_columns[b]] = False
    return row_of, column_of
