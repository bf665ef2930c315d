"""How good are labels of a frame that nobody annotated? Plausible cells, and the same ones in a changed frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.cell_table import cell_table
from oneframe.runtime.outline import rims
from oneframe.runtime.segmentation_score import SegmentationScore

Labels = NDArray[np.int32]
Single = NDArray[np.float32]
Array = NDArray[np.float64]

SHIFTS_PX = ((7.0, -5.0), (-3.5, 2.5))
"""(dy, dx): whole, but odd, so that strides of 2 and 4 fall elsewhere; and between pixels."""
SCALES = (0.9, 1.1)
GAIN, LIFT = 0.6, 0.2
"""A dimmer lamp, and a background higher by this share of the frame's range."""

_STEPS = 4
"""The brightness across an outline is read at so many places inside, and as many outside."""
_VALLEY = 0.2
"""A border between cells that touch is sure if it lies in a valley this deep, in units of the cell's outer edge."""
_SIZE_SPREAD = 0.7
"""Natural logarithm of areas, standard deviation: daughters are half their mother, clumps and crumbs are rarer."""
_WORST_SOLIDITY, _GOOD_SOLIDITY = 0.6, 0.95
_NORMAL_PX = 4
_KNOWN_SPREAD = 1.4
"""As `_SIZE_SPREAD`, of the median area about a known one: wide, a diameter wrong by 1.4 costs 0.1."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How much of a segmentation is found again in changed frames, 0 to 1."""

    shift: float
    """The frame a few pixels, whole and half ones, further."""
    scale: float
    """Cells 0.9 and 1.1 times as large."""
    noise: float
    """As much noise again."""
    brightness: float
    """Gain and background otherwise."""

    @property
    def overall(self) -> float:
        """Mean of the four."""
        return (self.shift + self.scale + self.noise + self.brightness) / 4


@dataclass(frozen=True, slots=True, eq=False)
class Plausibility:
    """Evidence, without truth, that N labels are whole cells; everything 0 to 1."""

    score: float
    """Ranks label images of one frame: harmonic mean of the cells' mean plausibility and of `explained`."""
    cell: Single
    """(N,), row i - 1 is label i: product of the three below."""
    outline: Single
    """(N,): it lies where the brightness changes most, everywhere in the same sense; or in a valley between cells."""
    solidity: Single
    """(N,): convexity, area over that of the convex hull, 0 at 0.6 and 1 at 0.95."""
    size: Single
    """(N,): 1 for the frame's median area; a cell cut by the border of the frame may be smaller."""
    explained: float
    """Share of the contrast on the scale of cells that lies in or next to one."""
    bright: bool
    """Whether the cells are brighter than what is around them."""


def agreement(
    segment: Callable[[Single], Labels],
    image: NDArray[Any],
    *,
    noise_sigma: float,
    rng: np.random.Generator,
    diameter_px: float,
) -> Agreement:
    """Segment a frame and seven changed copies, and compare.

    Parameters
    ----------
    segment : callable
        (H, W) float32 image to (H, W) int32 labels, 0 is background; called seven times, always with this shape.
    image : (H, W)
        Camera pixels.
    noise_sigma : float
        Standard deviation of the frame's noise, counts.
    rng : numpy.random.Generator
        For the noise.
    diameter_px : float
        Of a cell: a border so wide, and at least 1/16 of the frame, is not compared.

    Returns
    -------
    Agreement
        Each is F1 at an intersection over union of 0.5, times the mean intersection over union of the matches. That
        is taken relative to what the labels themselves keep when moved there and back. 0 where the frame shows no cell.

    Raises
    ------
    ValueError
        If image, noise or diameter make no sense, or `segment` returns another shape.
    """
    _check(image, diameter_px)
    if not noise_sigma >= 0:
        raise ValueError(f"expected noise_sigma of 0 or more, got {noise_sigma}; estimate it from the frame")
    frame = np.ascontiguousarray(image, np.float32)
    height, width = frame.shape
    border = int(min(max(np.ceil(diameter_px), -(-max(height, width) // 16)), min(height, width) // 4))

    def labels_of(changed: Single) -> Labels:
        labels = segment(changed)
        if labels.shape != frame.shape or labels.dtype != np.int32:
            raise ValueError(
                f"expected int32 labels of shape {frame.shape} from segment, got {labels.dtype} of {labels.shape}"
            )
        return labels

    found = labels_of(frame)

    def kept(changed: Labels, limit: Labels | None = None) -> float:
        """Return how well labels, already moved back, agree with those of the frame."""
        f1, iou = _likeness(found, changed, border)
        best = 1.0 if limit is None else _likeness(found, limit, border)[1]
        return f1 * min(1.0, iou / best) if best > 0 else 0.0

    def moved(matrix: Array) -> float:
        return kept(
            _warped(labels_of(_warped(frame, matrix)), matrix, back=True),
            _warped(_warped(found, matrix), matrix, back=True),
        )

    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    shift = [moved(np.array([[1, 0, dx], [0, 1, dy]])) for dy, dx in SHIFTS_PX]
    scale = [moved(np.column_stack([np.eye(2) * k, (1 - k) * middle])) for k in SCALES]
    noisy = frame + rng.normal(0, noise_sigma, frame.shape).astype(np.float32)
    low, high = np.percentile(frame, [0.1, 99.9])
    dimmer = (GAIN * (frame - low) + low + LIFT * (high - low)).astype(np.float32)
    return Agreement(
        shift=float(np.mean(shift)),
        scale=float(np.mean(scale)),
        noise=kept(labels_of(noisy)),
        brightness=kept(labels_of(dimmer)),
    )


def plausibility(
    labels: Labels, image: NDArray[Any], *, diameter_px: float, diameter_known: bool = False
) -> Plausibility:
    """Judge a label image by the frame alone.

    Parameters
    ----------
    labels : (H, W) int32
        0 is background, cells 1 .. N without gaps.
    image : (H, W)
        Camera pixels.
    diameter_px : float
        Scale on which edges and contrast are looked at; the same one for all label images that are compared.
    diameter_known : bool
        True: somebody measured it, of rods the width, and labels whose median area and width are others score less.
        With a guess that misleads.

    Returns
    -------
    Plausibility
        The score is 0 without cells.

    Raises
    ------
    ValueError
        If labels, image and diameter do not fit.

    Notes
    -----
    The brightness is read along the normal of each pixel of a rim, up to a quarter of a diameter to both sides. Towards
    background, the outline's evidence is the slope on it over the steepest one near. Which sign counts is settled for
    the frame as a whole, so that labels of both bright and dark things are worth little.
    """
    _check(image, diameter_px)
    if labels.shape != image.shape or labels.dtype != np.int32:
        raise ValueError(
            f"expected int32 labels of the image's shape {image.shape}, got {labels.dtype} of shape {labels.shape}"
        )
    n = int(labels.max(initial=0))
    if not n:
        none = np.zeros(0, np.float32)
        return Plausibility(0.0, none, none, none, none, 0.0, True)
    frame = np.ascontiguousarray(image, np.float32)
    sigma_px = max(0.7, diameter_px / 20)
    smooth = _blurred(frame, sigma_px)
    noise = noise_sigma(frame) / (2 * np.sqrt(np.pi) * sigma_px)  # what the blur leaves of it
    outline, bright = _outline(labels, n, smooth, noise, max(1.0, diameter_px / 16))
    solidity, size, usual_px = _shape(labels, n)
    cell = outline * solidity * size
    explained = _explained(labels, smooth - _blurred(frame, diameter_px / 2), noise, diameter_px)
    mean = float(cell.mean())
    score = 2 * mean * explained / (mean + explained) if mean + explained > 0 else 0.0
    if diameter_known:
        # of rods people measure the width
        widths_px = np.asarray(cell_table(labels, image, np.ones(n, np.float32)).minor_axis_px, np.float64)
        sizes_px2 = np.array([usual_px, np.pi * float(np.median(widths_px)) ** 2 / 4])
        score *= float(_usual(np.log(sizes_px2 / (np.pi * diameter_px**2 / 4)), _KNOWN_SPREAD).max())
    return Plausibility(
        score=score,
        cell=cell.astype(np.float32),
        outline=outline.astype(np.float32),
        solidity=solidity.astype(np.float32),
        size=size.astype(np.float32),
        explained=explained,
        bright=bright,
    )


def _outline(labels: Labels, n: int, smooth: Single, noise: float, step_px: float) -> tuple[Array, bool]:
    """Return how well each cell's outline lies on edges and in valleys, and whether cells are bright."""
    import cv2

    y, x, cell, normal = _normals(labels)
    if not len(y):
        return np.zeros(n), True
    place = (np.arange(-_STEPS, _STEPS + 1) * step_px + 0.5).astype(np.float32)  # a pixel's border, not its middle
    at_y, at_x = y[:, None] + normal[0][:, None] * place, x[:, None] + normal[1][:, None] * place
    light = _sampled(smooth, at_y, at_x, cv2.INTER_LINEAR)  # (rim pixels, places from inside to outside)
    next_to = slice(_STEPS + 1, _STEPS + 3)
    beyond = _sampled(labels.astype(np.float32), at_y[:, next_to], at_x[:, next_to], cv2.INTER_NEAREST)
    touching = ((beyond > 0) & (beyond != cell[:, None] + 1)).any(1)
    free = ~touching
    slope = light[:, :-2] - light[:, 2:]
    bright = bool(slope[free, _STEPS - 1].sum() >= 0)
    if not bright:
        light, slope = -light, -slope

    def total(values: NDArray[Any], of: NDArray[np.bool_]) -> Array:
        return np.bincount(cell[of], values[of], minlength=n).astype(np.float64)

    n_free, n_touching = (total(of.astype(np.float64), of) for of in (free, touching))
    steepest = total(np.abs(slope).max(1), free)
    on_edge = total(slope[:, _STEPS - 1], free) / np.maximum(np.maximum(steepest, 3 * noise * n_free), 1e-9)
    enough = n_free > 3
    edge = np.divide(steepest, n_free, out=np.zeros(n), where=enough)
    edge[~enough] = np.median(edge[enough]) if enough.any() else 0.0  # a cell among cells
    edge = np.maximum(np.maximum(edge, 3 * noise), 1e-9)
    shoulder = np.minimum(light[:, :_STEPS].max(1), light[:, _STEPS + 1 :].max(1))
    valley = shoulder - light[:, _STEPS - 1 : _STEPS + 2].min(1)
    in_valley = total(np.clip(valley / (_VALLEY * edge[cell]), 0, 1), touching)
    evidence = (np.clip(on_edge, 0, 1) * n_free + in_valley) / np.maximum(n_free + n_touching, 1)
    return evidence, bright


def _normals(labels: Labels) -> tuple[Single, Single, NDArray[np.intp], Single]:
    """Return y, x and cell, from 0, of the pixels of all rims, and their outward normals (2, M)."""
    import cv2

    reach = _NORMAL_PX
    y, x = np.nonzero(rims(labels))
    padded = cv2.copyMakeBorder(labels, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
    width, flat = padded.shape[1], np.asarray(padded).ravel()
    at = (y + reach) * width + x + reach
    own = flat[at]
    normal = np.zeros((2, len(y)), np.float32)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if 0 < dy * dy + dx * dx <= reach * reach:
                same = flat[at + dy * width + dx] == own
                normal[0] -= dy * same
                normal[1] -= dx * same
    length = np.hypot(*normal)
    known = length > 1  # not so where a cell is a line
    cell = own[known].astype(np.intp) - 1
    return y[known].astype(np.float32), x[known].astype(np.float32), cell, normal[:, known] / length[known]


def _shape(labels: Labels, n: int) -> tuple[Array, Array, float]:
    """Return how convex each cell is, how usual its area, and the usual area, px^2."""
    import cv2
    from scipy import ndimage

    area = np.bincount(labels.ravel(), minlength=n + 1)[1:].astype(np.float64)
    solidity = np.zeros(n)
    for k, box in enumerate(ndimage.find_objects(labels)):
        if box is None:
            continue
        pieces, _ = cv2.findContours((labels[box] == k + 1).view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        hull = cv2.convexHull(np.concatenate(pieces))
        # through the middles of pixels: half a pixel is missing all around
        solidity[k] = area[k] / (cv2.contourArea(hull) + cv2.arcLength(hull, True) / 2 + 1)
    at_border = np.zeros(n + 1, bool)
    for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        at_border[side] = True
    cut = at_border[1:]
    usual = max(1.0, float(np.median(area[~cut] if (~cut).sum() > 2 else area)))
    larger = np.log(np.maximum(area, 1) / usual)
    larger[cut] = np.maximum(larger[cut], 0)
    convex = np.clip((solidity - _WORST_SOLIDITY) / (_GOOD_SOLIDITY - _WORST_SOLIDITY), 0, 1)
    return convex, _usual(larger, _SIZE_SPREAD), usual


def _usual(log_ratio: Any, spread: float) -> Array:
    return np.asarray(np.exp(-((log_ratio / spread) ** 2) / 2), np.float64)


def _explained(labels: Labels, contrast: Single, noise: float, diameter_px: float) -> float:
    """Return the share of the squared contrast, beyond noise, in cells and within 1/6 of a diameter around."""
    import cv2

    side = 2 * max(1, round(diameter_px / 6)) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    near = np.asarray(cv2.dilate((labels > 0).view(np.uint8), disc)) > 0
    power = np.maximum(np.abs(contrast) - 2 * noise, 0) ** 2
    total = float(power.sum(dtype=np.float64))
    return float(power[near].sum(dtype=np.float64)) / total if total > 0 else 0.0


def _likeness(a: Labels, b: Labels, border: int) -> tuple[float, float]:
    """Return F1 and the mean intersection over union of the matches, of cells with their middle within the border."""
    score = SegmentationScore()
    score.add(a, b)
    (matches,) = score.matches()
    of_a, of_b = _middle_within(a, border), _middle_within(b, border)
    hit_a, hit_b = of_a[matches.true_label], of_b[matches.found_label]
    iou = matches.iou[hit_a | hit_b]
    both = hit_a.sum() + hit_b.sum()
    return float(both / (of_a.sum() + of_b.sum())) if both else 0.0, float(iou.mean()) if len(iou) else 0.0


def _middle_within(labels: Labels, border: int) -> NDArray[np.bool_]:
    """Return for each number from 0 to the largest label whether such a cell's centroid lies within the border."""
    height, width = labels.shape
    inside = np.flatnonzero(labels)
    cell = labels.ravel()[inside]
    n = int(cell.max(initial=0)) + 1
    area = np.bincount(cell, minlength=n)
    within = area > 0
    for place, size in zip(np.divmod(inside, width), (height, width), strict=True):
        middle = np.bincount(cell, place, minlength=n) / np.maximum(area, 1)
        within &= (middle >= border) & (middle <= size - 1 - border)
    return within


def _warped(image: NDArray[Any], matrix: Array, *, back: bool = False) -> Any:
    """Return an image, or labels, moved by an affine (2, 3) in x and y; what comes in is the mirror image."""
    import cv2

    is_labels = image.dtype == np.int32
    how = (cv2.INTER_NEAREST if is_labels else cv2.INTER_CUBIC) | (cv2.WARP_INVERSE_MAP if back else 0)
    source = image.astype(np.float32)  # whole up to 2^24
    moved = cv2.warpAffine(source, matrix, source.shape[::-1], flags=how, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(moved).astype(image.dtype)


def _sampled(image: Single, y: Single, x: Single, how: int) -> Single:
    """Return the image at places of any number; cv2 takes no more than 32767 rows of them."""
    import cv2

    columns = 4096
    rows = -(-y.size // columns)
    at_y, at_x = np.zeros((2, rows * columns), np.float32)
    at_y[: y.size], at_x[: y.size] = y.ravel(), x.ravel()
    shape = (rows, columns)
    values = cv2.remap(image, at_x.reshape(shape), at_y.reshape(shape), how, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(values, np.float32).ravel()[: y.size].reshape(y.shape)


def _blurred(image: Single, sigma_px: float) -> Single:
    import cv2

    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT), np.float32)


def noise_sigma(image: Single) -> float:
    """Return the standard deviation of the noise: what differs from a plane within 3 by 3 pixels.

    References
    ----------
    Immerkaer, Comput. Vis. Image Underst. 64, 300 (1996).
    """
    import cv2

    kernel = np.outer([1, -2, 1], [1, -2, 1]).astype(np.float32) / 6
    return float(1.4826 * np.median(np.abs(cv2.filter2D(image, -1, kernel))))


def _check(image: NDArray[Any], diameter_px: float) -> None:
    if image.ndim != 2 or not np.isfinite(diameter_px) or not diameter_px > 0:
        raise ValueError(
            f"expected an image (H, W) and a diameter_px above 0, got shape {image.shape} and {diameter_px}; "
            "one channel at a time"
        )
