"""Which pixels of the snapped frame are cells, by contrast alone: where learning begins, and the classical model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from oneframe.runtime.cell_cleanup import size_filter
from oneframe.runtime.cell_table import cell_means
from oneframe.runtime.watershed import LEAST_DEPTH, watershed_labels
from oneframe.trainer.cell_contrast import (
    BLUR_PX,
    COARSE_BLUR_PX,
    HALF_HEIGHT,
    REACH_PX,
    REFERENCE_PX,
    STRIDE_PX,
    LocalContrast,
)

CRITERIA = ("contrast", "intensity", "edges", "smooth")
"""contrast: above the half height between background and top near by; intensity: above one threshold for the frame;
edges: darker or brighter than a narrow neighbourhood, for cells packed side by side; smooth: contrast of the frame more
blurred, for large cells with texture."""
SMOOTHING, LEAST_DISTANCE = 1 / 24, 0.3
"""Of the watershed, in cell diameters: of the distance map, and between the middles of two cells."""
PACKED_DEPTH = 0.45
"""How much narrower than the cell a neck must be to part two rods."""
_DIM = 0.5
"""Packed cells whose relief is below this share of the usual one are none."""

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """Cells of one frame at the reference scale, as one criterion sees them."""

    criterion: str
    sign: float
    labels: NDArray[np.int32]
    """(H, W)"""
    relief: Image
    """(H, W), counts above the local background; of dark cells below it."""
    threshold: float
    """Least relief of the foreground, counts."""
    level: float
    """Of intensity: the threshold on the smoothed frame times `sign`; else NaN."""

    @property
    def blur_px(self) -> float:
        """Of the pixels whose contrast is looked at."""
        return COARSE_BLUR_PX if self.criterion == "smooth" else BLUR_PX

    @property
    def least_relief(self) -> float:
        """What rises less above its surroundings is no cell, counts; bleached to half, the dimmest still do.

        Packed cells are seen by absorbed or scattered light, of which all have about the same.
        """
        if self.criterion not in ("edges", "noise") or not self.labels.any():
            return 0.5 * self.threshold
        return 0.4 * float(np.median(self.relief[self.labels > 0]))


@torch.no_grad()
def contrast_maps(image: Image, sign: float, blur_px: float = BLUR_PX) -> tuple[Image, Image, Image]:
    """Return relief, contrast and the smoothed image, each (H, W), of a frame at the reference scale."""
    height, width = image.shape
    margin = REACH_PX // STRIDE_PX * STRIDE_PX
    sides = [(margin, margin + -side % STRIDE_PX) for side in image.shape]
    maps = LocalContrast(sign, blur_px)(torch.from_numpy(np.pad(image, sides, "edge"))[None, None])
    relief, contrast, smooth = (each[0, 0, margin : margin + height, margin : margin + width].numpy() for each in maps)
    return relief, contrast, smooth


def propose(image: Image, sign: float, criterion: str) -> Proposal:
    """Return the cells of a frame (H, W), camera counts at the reference scale, by one criterion.

    Raises
    ------
    ValueError
        If the criterion is unknown.
    """
    return proposals(image, sign, (criterion,))[0]


def proposals(image: Image, sign: float, criteria: tuple[str, ...]) -> list[Proposal]:
    """Return the cells of a frame by each of several criteria; the contrast is looked at once. Raises as `propose`."""
    unknown = [criterion for criterion in criteria if criterion not in CRITERIA]
    if unknown:
        raise ValueError(f"expected a foreground among {', '.join(CRITERIA)}, got {unknown[0]!r}")
    relief, contrast, smooth = contrast_maps(image, sign)
    threshold = li_threshold(relief)

    def proposed(criterion: str) -> Proposal:
        least, level = threshold, float("nan")
        if criterion == "intensity":
            level = li_threshold(smooth)
            labels = parted(smooth > level)
        elif criterion == "edges":
            labels = _packed_cells(sign * image, relief, threshold)
        else:
            seen = relief
            if criterion == "smooth":
                seen, _, _ = contrast_maps(image, sign, COARSE_BLUR_PX)
                least = li_threshold(seen)
            labels = parted((seen > HALF_HEIGHT * contrast) & (seen > least))
        return Proposal(criterion, sign, labels, relief, least, level)

    return [proposed(criterion) for criterion in criteria]


def parted(foreground: Mask, least_depth: float = LEAST_DEPTH) -> NDArray[np.int32]:
    """Return the pieces of a foreground (H, W), parted at their necks."""
    labels = watershed_labels(
        foreground,
        smoothing_px=SMOOTHING * REFERENCE_PX,
        least_distance_px=LEAST_DISTANCE * REFERENCE_PX,
        least_depth=least_depth,
    )
    return size_filter(labels, least_area_px())


def _packed_cells(bright: Image, relief: Image, threshold: float) -> NDArray[np.int32]:
    """Return cells that stand out of a neighbourhood narrower than themselves, grown to where they stop to."""
    import cv2
    from scipy.ndimage import distance_transform_edt

    narrow, wide = (cv2.GaussianBlur(bright, (0, 0), REFERENCE_PX / part) for part in (16, 4))
    ridge = np.asarray(narrow - wide, np.float32)
    core = (ridge > 0.1 * np.percentile(ridge[ridge > 0], 99)) & (relief > 0.5 * threshold)
    labels = parted(core, PACKED_DEPTH)
    labels = _of_one_kind(labels, relief, threshold)
    distance, nearest = distance_transform_edt(labels == 0, return_indices=True)
    grown = labels[tuple(nearest)]
    grown[(distance > REFERENCE_PX / 8) | ((ridge < 0) & (distance > 1))] = 0
    return size_filter(grown, least_area_px())


def _of_one_kind(labels: NDArray[np.int32], relief: Image, threshold: float) -> NDArray[np.int32]:
    """Return the cells without those that absorb or scatter far less than most, as dust out of focus does."""
    light = cell_means(labels, relief)
    light[light <= threshold] = 0
    seen = light[labels[light[labels] > 0]]
    least = _DIM * float(np.median(seen)) if len(seen) else 0.0  # by area: dust is small
    return np.where(light[labels] > least, labels, 0).astype(np.int32)


def least_area_px(share: float = 0.1) -> float:
    """Return the area of the smallest cell, as a share of a disc of the reference diameter."""
    return share * np.pi * REFERENCE_PX**2 / 4


def li_threshold(values: NDArray[np.float32]) -> float:
    """Return the threshold of least cross entropy.

    References
    ----------
    Li and Tam, Pattern Recognition Letters 19, 771 (1998): iterated from the mean.
    """
    lowest = float(values.min())
    counts, edges = np.histogram(values, 4096)
    light = (edges[:-1] + edges[1:]) / 2 - lowest
    number, weight = np.cumsum(counts), np.cumsum(counts * light)
    threshold = weight[-1] / number[-1]
    for _ in range(100):
        k = int(np.searchsorted(light, threshold, "right")) - 1
        if k < 0 or number[k] == number[-1]:
            break
        below = max(weight[k] / max(number[k], 1), 1e-9)
        above = (weight[-1] - weight[k]) / (number[-1] - number[k])
        moved = (above - below) / np.log(above / below) if above > below else threshold
        if abs(moved - threshold) < (edges[1] - edges[0]) / 2:
            break
        threshold = moved
    return lowest + float(threshold)
