"""A model for cells: camera images in, a label image and one row per cell out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.cell_cleanup import grow, size_filter
from oneframe.runtime.cell_table import cell_means, cell_table, scored_table
from oneframe.runtime.detections import Detections
from oneframe.runtime.model import NothingImagedError, OnnxModel
from oneframe.runtime.paper_cells import paper_cells
from oneframe.runtime.star_polygons import star_labels
from oneframe.runtime.tiles import Tiling, tiled_maps
from oneframe.runtime.vote_clustering import consecutive, vote_labels
from oneframe.runtime.watershed import LEAST_DEPTH, watershed_labels
from oneframe.runtime.wrapped_model import WrappedModel

Map = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Separation:
    """How the maps of a graph become cells; lengths are camera pixels. Stands in the card as `separation`."""

    by: Literal["votes", "watershed", "stars", "mean-shift"]
    """votes: every pixel votes for where its cell's centre lies; watershed: the foreground falls apart at its necks;
    stars: the likeliest places tell the outlines of their cells; mean-shift: `paper_cells`, from offsets alone."""
    least_area_px: float
    """Smaller cells go."""
    least_score: float = 0.0
    """Of votes and watershed: cells of a lower mean probability go."""
    bandwidth_px: float = 0.0
    """votes and mean-shift: no two centres are closer."""
    least_votes: float = 0.0
    """votes: fewer pixels on one spot make no cell."""
    smoothing_px: float = 0.0
    """watershed: of the distance map."""
    least_distance_px: float = 0.0
    """watershed: no two cells' middles are closer."""
    least_depth: float = LEAST_DEPTH
    """watershed: how much narrower than the cell a neck is."""
    grid_px: float = 1.0
    """stars: from one value of the maps to the next, the first of which lies at `origin_px`."""
    origin_px: float = 0.0
    nms_overlap: float = 0.4
    """stars: of two cells that share more than this part of the smaller one the less likely goes."""
    levels: tuple[float, ...] = ()
    """mean-shift: camera counts of the pixels that are disturbed."""
    passes: int = 0
    """mean-shift: of each level."""
    share: float = 0.0
    """mean-shift: of the pixels that are disturbed."""
    grain_px: int = 1
    """mean-shift: squares of so many pixels are disturbed as one."""
    sample: float = 0.0
    """mean-shift: share of the foreground that looks for centres."""
    grow_px: float = 0.0
    """watershed: the foreground ends so far within the cells; mean-shift: gaps are closed that are twice as wide."""
    shrink_px: float = 0.0
    """mean-shift: what lies nearer to the outside goes."""
    tile_step_px: int = 0
    """All but mean-shift: tiles of large frames begin at multiples; 0: they are looked at in one piece."""
    halo_px: int = 0
    """What lies further away has no part in a pixel's maps."""

    def __post_init__(self) -> None:
        if self.by not in ("votes", "watershed", "stars", "mean-shift"):
            raise ValueError(
                f"cells are separated by votes, watershed, stars or mean-shift, got {self.by!r}; update oneframe"
            )
        if not (self.grid_px > 0 and 0 < self.nms_overlap <= 1):
            raise ValueError(
                f"expected grid_px above 0 and nms_overlap in 0..1, got {self.grid_px} and {self.nms_overlap}; export "
                "the model again"
            )

    @classmethod
    def from_card(cls, values: dict[str, Any]) -> Separation:
        """Read it from a card.

        Raises
        ------
        ValueError
            If something is missing or unknown.
        """
        try:
            return cls(**{**values, "levels": tuple(values.get("levels", ()))})
        except TypeError as exc:
            known = ", ".join(field.name for field in fields(cls))
            raise ValueError(
                f"the model card's separation is damaged: expected {known}, got {', '.join(values)}; export it again"
            ) from exc

    def to_card(self) -> dict[str, Any]:
        """Return it as it stands in a card."""
        return asdict(self)


class CellModel(WrappedModel):
    """The graph tells of each pixel whether it is of a cell, and where that cell lies; here it becomes cells.

    Deterministic; each frame is looked at by itself, a large one in tiles, which changes nothing.

    Parameters
    ----------
    network : OnnxModel
        The graph of the model file.

    Raises
    ------
    ValueError
        If the card's separation is damaged.
    """

    def __init__(self, network: OnnxModel) -> None:
        super().__init__(network)
        self.separation = Separation.from_card(network.card.separation)

    def detect(self, image: NDArray[Any]) -> Detections:
        """Find the cells of an image (H, W), camera pixels.

        Returns
        -------
        Detections
            One row per cell, `labels` with row i - 1 as label i. `score` is the mean probability of its pixels, of
            stars that of its middle, by mean shift how steady their offsets are. `notes` say why there are none where
            the foreground is not seen, or all pixels are equal.

        Raises
        ------
        ValueError
            If the image does not fit the model.
        """
        try:
            pixels = self._network.as_input(image)
        except NothingImagedError as nothing:
            flat = image.reshape(image.shape[-2:])
            found = cell_table(np.zeros(flat.shape, np.int32), flat, np.zeros(0, np.float32))
            return replace(found, notes=(str(nothing),))
        if self.separation.by == "mean-shift":
            return paper_cells(self._network.run_maps, pixels, self.separation, self.threshold)
        return cells_of(self._maps(pixels), pixels, self.separation)

    def _maps(self, pixels: NDArray[Any]) -> dict[str, Map]:
        how = self.separation
        if not how.tile_step_px:
            return self._network.run_maps(pixels)
        return tiled_maps(self._network.run_maps, pixels, Tiling(how.tile_step_px, how.halo_px, how.grid_px))

    def twins(self) -> list[CellModel]:
        """Return models that find the same cells: a frame is looked at by itself, with what its seed draws anew."""
        return [CellModel(network) for network in self._network.twins()]


def cells_of(maps: dict[str, Map], image: NDArray[Any], separation: Separation) -> Detections:
    """Return the cells that the maps of an image (H, W) tell of.

    Parameters
    ----------
    maps : dict
        `foreground`, 0 or the probability, and for votes `offset_y_px` and `offset_x_px`; each (H, W) float32. For
        stars `probability` (h, w), 0 or that of lying deep in a cell, and `rays_px` (R, h, w), on the grid of the
        separation.
    """
    if separation.by == "stars":
        return _stars(maps, image, separation)
    foreground = maps["foreground"]
    inside = foreground > 0
    if separation.by == "votes":
        labels = vote_labels(
            np.stack([maps["offset_y_px"], maps["offset_x_px"]]),
            inside,
            bandwidth_px=separation.bandwidth_px,
            least_votes=separation.least_votes,
        )
    else:
        labels = watershed_labels(
            inside,
            smoothing_px=separation.smoothing_px,
            least_distance_px=separation.least_distance_px,
            least_depth=separation.least_depth,
        )
        labels = grow(labels, separation.grow_px)
    labels = size_filter(labels, separation.least_area_px)
    if separation.least_score:
        likely = cell_means(labels, foreground) >= separation.least_score
        labels = consecutive(np.where(likely[labels], labels, 0))
    return scored_table(labels, image, foreground)


def _stars(maps: dict[str, Map], image: NDArray[Any], separation: Separation) -> Detections:
    """Return the cells of probabilities and rays; the score is the probability in the cell's middle."""
    labels, score = star_labels(
        maps["probability"],
        maps["rays_px"],
        grid=separation.grid_px,
        origin_px=separation.origin_px,
        threshold=float(np.finfo(np.float32).tiny),  # below that of the graph they are 0
        nms_overlap=separation.nms_overlap,
        shape=(image.shape[0], image.shape[1]),
    )
    kept = size_filter(labels, separation.least_area_px)
    number = np.zeros(int(kept.max(initial=0)) + 1, np.int64)
    number[kept[labels > 0]] = labels[labels > 0]  # holes and pieces aside, a cell keeps its pixels
    return cell_table(kept, image, score[number[1:] - 1])
