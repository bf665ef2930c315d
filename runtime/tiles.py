"""Maps of a frame too large for one pass: `tiled_maps` looks at overlapping tiles, which give what the whole would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]

LARGEST_PX = 4096
"""Longest side of what is looked at in one pass, without the halo: a graph for cells takes about 60 bytes a pixel, 1 GB
for such a square; 2048 px take no less memory (the maps of the whole frame), and more time."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Where tiles may begin, and how much further than a tile its values depend; camera pixels."""

    step_px: int
    """Tiles begin at multiples: there all grids of the graph begin anew."""
    halo_px: int
    """A multiple of `step_px`."""
    grid_px: float = 1.0
    """From one value of the maps to the next; a step is a multiple."""


def tiled_maps(
    maps_of: Callable[[NDArray[Any]], dict[str, Map]],
    image: NDArray[Any],
    tiling: Tiling,
    *,
    largest_px: int = LARGEST_PX,
) -> dict[str, Map]:
    """Return the maps of an image (H, W), tile by tile where a side is longer than `largest_px`.

    They are those of the whole image, bit by bit, if the graph treats all places alike, as convolutions and changes of
    scale by powers of 2 do in ONNX Runtime; other changes of scale round a little differently (1e-3 of a map's range).

    Parameters
    ----------
    maps_of : callable
        The maps of an image, each (h, w) or (R, h, w), on the grid of the tiling.
    """
    height, width = image.shape
    if max(height, width) <= largest_px:
        return maps_of(image)
    rows = []
    for down in _tiles(height, tiling, largest_px):
        row = []
        for along in _tiles(width, tiling, largest_px):
            maps = maps_of(np.ascontiguousarray(image[down.seen, along.seen]))
            row.append({name: values[..., down.kept, along.kept] for name, values in maps.items()})
        rows.append({name: np.concatenate([maps[name] for maps in row], axis=-1) for name in row[0]})
    return {name: np.concatenate([maps[name] for maps in rows], axis=-2) for name in rows[0]}


@dataclass(frozen=True, slots=True)
class _Tile:
    """Along one axis."""

    seen: slice
    """What is looked at, pixels."""
    kept: slice
    """Of the values that it gives: those of the tile without its halo."""


def _tiles(side: int, tiling: Tiling, largest_px: int) -> Iterator[_Tile]:
    """Yield tiles of about the same size."""
    step, halo = tiling.step_px, tiling.halo_px
    n_tiles = -(-side // largest_px)
    length = -(-side // (n_tiles * step)) * step
    for begin in range(0, side, length):
        seen = slice(max(0, begin - halo), min(side, begin + length + halo))
        first = round((begin - seen.start) / tiling.grid_px)
        last = None if begin + length >= side else first + round(length / tiling.grid_px)
        yield _Tile(seen, slice(first, last))
