"""Crops with known cells by the thousand, composed of one frame: cells that stand alone are pasted side by side.

Where cells touch, no contrast tells them apart for sure; but cells that stand alone are known exactly, and put next to
each other they teach what touching cells look like, and crowds denser than the frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneframe.trainer.cellulus_network import CellulusSettings

Image = NDArray[np.float32]
Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]

_RIM_PX = 6
"""Around a cell its light is taken along."""
_CONVEX = 0.93
"""Area over that of the convex hull from which an object is taken for one cell."""
_LARGE = 1.6
"""Area over the median from which it must be `_VERY_CONVEX`: two cells that touch are nearly convex too."""
_VERY_CONVEX = 0.955
_RAGGED = 0.02
"""Where the outlines of all cells are ragged, those a little less convex than the median are still taken."""
_AREAS = (0.35, 5.0)
"""Area over the median within which an object is taken for one cell."""
_OVERLAP = 0.06
"""Share of a pasted cell that may lie on others."""
_FEWEST = 8
"""With fewer cells that stand alone, some that touch are taken as well."""


@dataclass(frozen=True, slots=True, eq=False)
class CellCutout:
    """One cell to be pasted."""

    light: Image
    """(h, w), counts above the background, faded out beyond the rim and towards other cells."""
    mask: Mask
    """(h, w)"""


@dataclass(frozen=True, slots=True, eq=False)
class CropBatch:
    """What one step learns from; margins belong to `images` only."""

    images: Tensor
    """(B, 1, S + 2 margin, S + 2 margin), counts at the reference scale."""
    floors: Tensor
    """(B, 1, 1, 1), counts."""
    labelled: Tensor
    """(B, S, S) bool"""
    offsets: Tensor
    """(B, 2, S, S), px to the centre of the cell; 0 outside."""
    known: Tensor
    """(B, S, S) bool"""


class CellComposer:
    """Composes crops of a frame and its proposed cells.

    Parameters
    ----------
    image : (H, W) float32
        Counts at the reference scale.
    relief : (H, W) float32
        Counts above the local background; negative contrast counts as positive.
    sign : float
        1: cells are bright; -1: dark.
    labels : (H, W) int32
        Proposed cells, 1 .. N.
    floor : float
        Noise floor of the contrast, counts.
    rim_px : float
        Of each cell so much counts as outside, working pixels.
    n_given : int
        The first so many labels are cells that a person annotated, whole whatever their shape; the share
        1 - `pseudo_weight` of crops and pasted cells shows these.
    known : (H, W) bool, optional
        Where the labels are trusted at all; by default everywhere.
    """

    def __init__(
        self,
        image: Image,
        relief: Image,
        sign: float,
        labels: Labels,
        floor: float,
        settings: CellulusSettings,
        *,
        rim_px: float = 0.0,
        n_given: int = 0,
        known: Mask | None = None,
    ) -> None:
        self.settings, self.floor, self.rim_px = settings, floor, rim_px
        self.crop_px = min(settings.crop_px, *(side // 4 * 4 for side in image.shape))
        self.sign = sign
        self.cutouts, self.given, self.trusted = _cutouts(relief, labels, n_given)
        self._middles = np.argwhere(labels > 0)
        self._given_middles = np.argwhere((labels > 0) & (labels <= n_given))
        if known is not None:  # what is unknown lies in the way as a cell does, one that is not trusted
            self.trusted = np.append(self.trusted, False)
            labels = np.where(known, labels, len(self.trusted) - 1).astype(np.int32)
        margin = settings.margin_px
        self._image = np.pad(image.astype(np.float32), margin, "edge")  # as the graph pads a frame
        self._labels = np.pad(labels, margin, "edge")

    def batch(self, n: int, rng: np.random.Generator) -> CropBatch:
        """Return n crops."""
        margin = self.settings.margin_px
        inner = np.s_[margin:-margin, margin:-margin]
        images, floors, labelled, offsets, known = [], [], [], [], []
        for _ in range(n):
            image, labels, trusted = self._composed(rng)
            turns, flip = int(rng.integers(4)), bool(rng.random() < 0.5)
            image, labels, trusted = (_turned(plane, turns, flip) for plane in (image, labels, trusted))
            image, floor = self._changed(image, rng)
            images.append(image)
            floors.append(floor)
            labelled.append(cores(labels, self.rim_px)[inner])
            offsets.append(offsets_to_centres(labels)[:, margin:-margin, margin:-margin])
            known.append(trusted[inner])
        return CropBatch(
            torch.from_numpy(np.stack(images))[:, None],
            torch.tensor(floors, dtype=torch.float32)[:, None, None, None],
            torch.from_numpy(np.stack(labelled)),
            torch.from_numpy(np.stack(offsets)),
            torch.from_numpy(np.stack(known)),
        )

    def _composed(self, rng: np.random.Generator) -> tuple[Image, Labels, Mask]:
        """Return image, labels and trusted pixels of one crop with its margins."""
        import cv2

        s = self.settings
        size = self.crop_px + 2 * s.margin_px
        corner = rng.integers(0, np.array(self._image.shape) - size + 1)
        middles = self._given_middles if self._of_given(len(self._given_middles), rng) else self._middles
        if len(middles) and rng.random() < 0.75:  # where there are cells
            middle = middles[rng.integers(len(middles))]
            wanted = middle - rng.integers(0, self.crop_px, 2)
            corner = wanted.clip(0, np.array(self._image.shape) - size)
        box = np.s_[corner[0] : corner[0] + size, corner[1] : corner[1] + size]
        image, labels = self._image[box].copy(), self._labels[box].copy()
        doubtful = ~self.trusted[labels]
        if (self.cutouts or self.given) and rng.random() < s.pasted_share:
            self._paste(image, labels, int(rng.integers(1, s.most_pasted + 1)), rng)
        doubtful &= labels == self._labels[box]
        trusted = cv2.dilate(doubtful.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0
        return image, labels, np.asarray(trusted)

    def _of_given(self, n: int, rng: np.random.Generator) -> bool:
        """Return whether one of n annotated cells is drawn, not one of all; chance is asked only if there are any."""
        return n > 0 and bool(rng.random() >= self.settings.pseudo_weight)

    def _paste(self, image: Image, labels: Labels, n: int, rng: np.random.Generator) -> None:
        """Paste n cells into a crop, most of them so that they touch one that is there."""
        spread = self.settings.brightness_spread
        number = int(self._labels.max()) + 1
        for _ in range(3 * n):
            cutouts = self.given if self._of_given(len(self.given), rng) or not self.cutouts else self.cutouts
            cutout = cutouts[rng.integers(len(cutouts))]
            light, mask = _varied(cutout, self.settings, rng)
            place = self._place(labels, mask, rng)
            if place is None:
                continue
            gain = np.float32(self.sign * np.exp(rng.normal(0, spread)))
            image[place] += gain * light
            there = labels[place]
            on_top = (there == 0) | (rng.random() < 0.5)
            there[mask & on_top] = number
            number += 1
            n -= 1
            if not n:
                return

    def _place(self, labels: Labels, mask: Mask, rng: np.random.Generator) -> tuple[slice, slice] | None:
        """Return where to paste a cell, or None if there is no room in the direction that was drawn."""
        height, width = mask.shape
        room = np.array(labels.shape) - mask.shape
        if (room < 0).any():
            return None
        inner = np.argwhere(labels[12:-12:4, 12:-12:4]) * 4 + 12
        if not len(inner) or rng.random() < 0.2:
            y, x = rng.integers(0, room + 1)
            place = np.s_[y : y + height, x : x + width]
            return place if (labels[place][mask] > 0).mean() <= _OVERLAP else None
        start = inner[rng.integers(len(inner))]
        angle = rng.uniform(0, 2 * np.pi)
        step = np.array([np.sin(angle), np.cos(angle)])
        for distance in np.arange(6.0, 60.0, 2.0):
            y, x = np.rint(start + distance * step - np.array(mask.shape) / 2).astype(int)
            if min(y, x) < 0 or y > room[0] or x > room[1]:
                return None
            place = np.s_[y : y + height, x : x + width]
            if (labels[place][mask] > 0).mean() <= _OVERLAP:
                return place
        return None

    def _changed(self, image: Image, rng: np.random.Generator) -> tuple[Image, float]:
        """Return the crop more blurred and noisier now and then, and its noise floor."""
        import cv2

        s = self.settings
        image = np.ascontiguousarray(image)
        if rng.random() < 0.3:
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, max(s.blur_px, 0.31))), np.float32)
        if rng.random() < 0.5:
            sigma = rng.uniform(0, s.noise) * self.floor
            image = image + np.float32(sigma) * rng.standard_normal(image.shape, np.float32)
        return image, self.floor * float(np.exp(rng.uniform(*np.log(s.contrast))))


def cores(labels: Labels, rim_px: float) -> Mask:
    """Return the pixels (H, W) of cells that lie further than `rim_px` from anything else; the frame ends nothing."""
    import cv2

    inside: Mask = labels > 0
    if rim_px <= 0:
        return inside
    reach = math.floor(rim_px)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = (y * y + x * x <= rim_px * rim_px).astype(np.uint8)
    number = labels.astype(np.float32)  # whole up to 2^24
    return inside & np.equal(cv2.erode(number, disc), cv2.dilate(number, disc))


def offsets_to_centres(labels: Labels) -> NDArray[np.float32]:
    """Return the offset (dy, dx) of each pixel to the centroid of its cell, (2, H, W), px; 0 in the background."""
    height, width = labels.shape
    flat = labels.ravel()
    area = np.maximum(np.bincount(flat), 1)
    rows, columns = np.divmod(np.arange(flat.size), width)
    offsets = np.stack([np.bincount(flat, each)[flat] / area[flat] - each for each in (rows, columns)])
    offsets[:, flat == 0] = 0
    return offsets.reshape(2, height, width).astype(np.float32)


def _cutouts(relief: Image, labels: Labels, n_given: int) -> tuple[list[CellCutout], list[CellCutout], Mask]:
    """Return the cells fit to be pasted, of these the given ones, and which of 0 .. N are trusted to be one cell."""
    import cv2

    n = int(labels.max())
    trusted = np.ones(n + 1, bool)
    if not n:
        return [], [], trusted
    area = np.bincount(labels.ravel(), minlength=n + 1)
    median = float(np.median(area[1:]))
    low, high = (share * median for share in _AREAS)
    boxes = _boxes(labels)
    convexity = {label: area[label] / _hull_area(labels[box] == label) for label, box in boxes}
    usual = float(np.median(list(convexity.values()))) - _RAGGED
    kernel = np.ones((5, 5), np.uint8)
    found: list[tuple[int, CellCutout]] = []
    given: list[CellCutout] = []
    for label, box in boxes:
        least = min(usual, _CONVEX) if area[label] < _LARGE * median else min(usual + 2 * _RAGGED, _VERY_CONVEX)
        trusted[label] = label <= n_given or (low < area[label] < high and convexity[label] > least)
        top, left = box[0].start, box[1].start
        inside = min(top, left) > 1 and box[0].stop < labels.shape[0] - 1 and box[1].stop < labels.shape[1] - 1
        if not trusted[label] or not inside:
            continue
        around = np.s_[max(0, top - _RIM_PX) : box[0].stop + _RIM_PX, max(0, left - _RIM_PX) : box[1].stop + _RIM_PX]
        mask = labels[around] == label
        others = (labels[around] > 0) & ~mask
        touching = int((others & (cv2.dilate(mask.astype(np.uint8), kernel) > 0)).sum())
        fade = cv2.GaussianBlur(cv2.dilate(mask.astype(np.float32), kernel), (0, 0), 1.2)
        fade[others] = 0
        cutout = CellCutout(np.asarray(fade * relief[around], np.float32), mask)
        found.append((touching, cutout))
        if label <= n_given:
            given.append(cutout)
    alone = [cutout for touching, cutout in found if not touching]
    if len(alone) < _FEWEST:
        alone = [cutout for _, cutout in sorted(found, key=lambda each: each[0])[:_FEWEST]]
    return alone, given, trusted


def _varied(cutout: CellCutout, settings: CellulusSettings, rng: np.random.Generator) -> tuple[Image, Mask]:
    """Return light and mask of a cell turned by any angle, mirrored or not, larger or smaller, (h, w)."""
    import cv2

    zoom = float(np.exp(rng.uniform(*np.log(settings.sizes))))
    angle = rng.uniform(0, 2 * math.pi)
    height, width = cutout.mask.shape
    side = math.ceil(zoom * math.hypot(height, width)) + 1
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    flip = 1 if rng.random() < 0.5 else -1
    turn = np.array([[cos, -sin * flip], [sin, cos * flip]])
    shift = np.array([side - 1, side - 1]) / 2 - turn @ np.array([width - 1, height - 1]) / 2
    matrix = np.column_stack([turn, shift])
    light = cv2.warpAffine(cutout.light, matrix, (side, side), flags=cv2.INTER_LINEAR)
    mask = cv2.warpAffine(cutout.mask.astype(np.float32), matrix, (side, side), flags=cv2.INTER_LINEAR) > 0.5
    rows, columns = (np.flatnonzero(np.asarray(light > 0).any(axis)) for axis in (1, 0))
    if not len(rows) or not mask.any():
        return cutout.light, cutout.mask
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(light[box], np.float32), np.asarray(mask[box])


def _boxes(labels: Labels) -> list[tuple[int, tuple[slice, slice]]]:
    from scipy.ndimage import find_objects

    return [(label, box) for label, box in enumerate(find_objects(labels), 1) if box is not None]


def _hull_area(mask: Mask) -> float:
    """Return the pixels that the convex hull of a cell's pixels covers."""
    import cv2

    points = np.argwhere(mask)[:, ::-1].astype(np.int32)
    filled = np.zeros(mask.shape, np.uint8)
    cv2.fillConvexPoly(filled, cv2.convexHull(points), 1)
    return float(filled.sum())


def _turned(plane: NDArray[Any], turns: int, flip: bool) -> NDArray[Any]:
    """Turn a plane by multiples of 90 degrees, and mirror it or not."""
    turned = np.rot90(plane, turns)
    return turned[:, ::-1] if flip else turned
