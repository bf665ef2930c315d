"""How cells are drawn: the rim of each, in a colour that its neighbours do not have and that it keeps over time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CELL_RGB: tuple[tuple[int, int, int], ...] = (
    (225, 165, 0),
    (90, 165, 255),
    (0, 255, 0),
    (225, 0, 195),
    (255, 180, 255),
    (255, 0, 0),
    (180, 240, 165),
    (150, 90, 255),
)
"""Colours of cells, found by search: for every kind of vision they differ from one another and from any grey."""

_NEAR_PX, _FAR_PX = 4, 16
_NEAR_WEIGHT = 16  # cells that touch or nearly do must differ; others should
_FORGET_ABOVE = 20_000


def rims(labels: NDArray[np.integer], width_px: int = 1) -> NDArray[np.bool_]:
    """Return which pixels (H, W) of each cell lie along its border: two cells that touch have a rim each.

    Parameters
    ----------
    labels : (H, W) integers
        0 is background.
    width_px : int
        Width of the rim, inwards. What is thinner than that may have gaps.

    >>> rims(np.array([[0, 1, 1, 1, 2, 2, 2, 0]])).astype(int).tolist()
    [[0, 1, 0, 1, 1, 0, 1, 0]]
    """
    rim = np.zeros(labels.shape, bool)
    rows_differ = labels[width_px:] != labels[:-width_px]
    columns_differ = labels[:, width_px:] != labels[:, :-width_px]
    rim[width_px:] |= rows_differ
    rim[:-width_px] |= rows_differ
    rim[:, width_px:] |= columns_differ
    rim[:, :-width_px] |= columns_differ
    rim &= labels > 0
    return rim


class CellColours:
    """Gives every cell one of the `CELL_RGB` when it is first seen: one that no neighbour has, if there is such."""

    def __init__(self) -> None:
        self._colour: dict[int, int] = {}  # of a track; the last seen are at the end

    def of(
        self, labels: NDArray[np.integer], track_id: NDArray[np.int64], parent_id: NDArray[np.int64] | None = None
    ) -> NDArray[np.uint8]:
        """Return the colour (N,) of each cell of the next frame, an index into `CELL_RGB`.

        Parameters
        ----------
        labels : (H, W) integers
            0 is background; row i - 1 is label i.
        track_id : (N,) int64
            A track that was seen before keeps its colour.
        parent_id : (N,) int64, optional
            Track that divided into this one, 0 for none: a daughter looks different from it.
        """
        tracks = track_id.tolist()
        colour = np.array([self._colour.get(track, -1) for track in tracks], np.int64)
        born = np.flatnonzero(colour < 0)
        if len(born):
            parents = np.zeros(len(tracks), np.int64) if parent_id is None else parent_id
            self._choose(colour, born, _closeness(labels, colour < 0), track_id, parents)
        for track, chosen in zip(tracks, colour.tolist(), strict=True):
            self._colour.pop(track, None)
            self._colour[track] = chosen
        if len(self._colour) > _FORGET_ABOVE + len(tracks):
            self._colour = dict(list(self._colour.items())[-len(tracks) - _FORGET_ABOVE // 2 :])
        return colour.astype(np.uint8)

    def _choose(
        self,
        colour: NDArray[np.int64],
        born: NDArray[np.intp],
        closeness: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
        track_id: NDArray[np.int64],
        parent_id: NDArray[np.int64],
    ) -> None:
        """Fill in the colours of the rows that have none."""
        row, neighbour, weight = closeness
        n_colours = len(CELL_RGB)
        used = np.bincount(colour[colour >= 0], minlength=n_colours).astype(np.float64)
        for i in born.tolist():
            near = slice(*np.searchsorted(row, (i, i + 1)).tolist())
            coloured = colour[neighbour[near]] >= 0
            cost = np.bincount(colour[neighbour[near]][coloured], weight[near][coloured], n_colours)
            parent = self._colour.get(int(parent_id[i]), -1)
            if parent_id[i] > 0 and parent >= 0:
                cost[parent] += 1
            order = (np.arange(n_colours) + int(track_id[i])) % n_colours  # equal ones take turns
            colour[i] = order[np.lexsort((used[order], cost[order]))[0]]
            used[colour[i]] += 1


def _closeness(
    labels: NDArray[np.integer], born: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return pairs of rows, one that is `born` (N,) and one close to it, and how much of a border they share.

    The pairs are sorted by the first row. Every other row and column of the labels is looked at.
    """
    is_born, n_cells = np.concatenate([[False], born]), len(born)
    codes, weights = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for reach_px, weight in ((_NEAR_PX, _NEAR_WEIGHT), (_FAR_PX, 1)):
        for one, other in (
            (labels[reach_px:, ::2], labels[:-reach_px, ::2]),
            (labels[::2, reach_px:], labels[::2, :-reach_px]),
        ):
            met = (one != other) & (one > 0) & (other > 0)
            a, b = one[met].astype(np.int64), other[met].astype(np.int64)
            for first, second in ((a, b), (b, a)):
                new = is_born[first]
                codes.append((first[new] - 1) * n_cells + second[new] - 1)
                weights.append(np.full(len(codes[-1]), weight, np.int64))
    pairs, which = np.unique(np.concatenate(codes), return_inverse=True)
    shared = np.bincount(which, np.concatenate(weights), len(pairs)).astype(np.int64)
    row, neighbour = np.divmod(pairs, n_cells)
    return row, neighbour, shared
