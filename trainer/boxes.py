"""Where a frame's clearest isolated particle is, and what is wrong with a box drawn round a particle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from oneframe.trainer.crops import Box

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
Column = NDArray[np.float64]

BOX_PER_DIAMETER = 1.6
"""Edge of a proposed box over the particle's diameter: a rim of 30 % of the diameter on each side, 3 px at least."""
FAINT = 3.0
"""Contrast over noise below which a particle is called faint."""
_SMALLEST_RADIUS_PX, _LARGEST_RADIUS_PX = 2.0, 60.0
_SCALES_PER_OCTAVE = 3
_WIDER = 1.6
"""The wider Gaussian over the narrower: their difference is close to the Laplacian (Marr and Hildreth 1980)."""
_N_BLOBS, _N_BOXES = 1000, 24
"""Blobs whose surroundings are looked at, the strongest, and those of them that are boxed and read, the best."""
_WORST = 0.1
"""The least a proposal may score, a product of marks from 0 to 1: good ones have 0.15 to 0.6, see `_Proposal`."""


def propose_box(image: NDArray[Any]) -> Box:
    """Box the clearest isolated particle of a frame (H, W), bright or dark, of unknown size.

    Blobs are found in scale space. Each is marked for a quiet moat round it, for how many others in the frame are like
    it in size and contrast (a typical particle teaches more than the brightest), and for how much it stands out. The
    best are boxed and marked again: for what else is in the box, for an outline like that of two particles, and for all
    that `box_warnings` tells. A box with neighbours in it, or that the particle does not fit in, is never proposed.

    Parameters
    ----------
    image : (H, W) uint8, uint16 or float32
        The snapped frame; uneven light does no harm. Particles are found from about 4 to 120 px across.

    Raises
    ------
    ValueError
        If nothing in the frame stands out of the noise, or nothing stands alone.

    References
    ----------
    Lindeberg, Int. J. Comput. Vis. 30, 79 (1998) (scale selection).
    """
    found = [proposal for proposal in _proposals(image) if proposal.score >= _WORST and not proposal.reading.misplaced]
    if not found:
        raise ValueError(
            "expected a particle that stands out of the noise and alone, found none in this frame; box one by hand, or "
            "snap a frame with fewer or brighter particles"
        )
    return max(found, key=lambda proposal: proposal.score).box


def box_warnings(image: NDArray[Any], box: Box) -> tuple[str, ...]:
    """Say what is wrong with a box of a frame (H, W), one sentence each; a good box gives none.

    Looked for: pixels at the end of the camera's range, a particle that the frame's edge cuts, a box without a rim of
    background, other objects in the box, and a particle that hardly stands out of the noise. A box that is larger than
    need be is no fault.

    Raises
    ------
    ValueError
        If the box does not lie within the frame.
    """
    box.check_within(*image.shape)
    reading = _read(image, box, _clipping(image))
    if reading is None:
        return (
            "faint: nothing in the box stands out of the noise, a particle is expected; draw the box round one, or "
            "snap a brighter one",
        )
    return reading.warnings()


@dataclass(frozen=True, slots=True)
class _Proposal:
    """A box, what it shows, and how well it would do."""

    box: Box
    score: float
    """The product of how typical and how clear the particle is and the mark of the reading."""
    reading: _Reading


def _proposals(image: NDArray[Any]) -> list[_Proposal]:
    """Box and read the most promising blobs of a frame."""
    levels = _pyramid(image)
    responses = _responses(levels)
    # at the finest scale most of a frame is noise; the pixels' own would miss noise that is alike in neighbours
    noise = float(np.median(np.abs(responses[0].contrast))) / 0.6745 / responses[0].noise
    noise = max(noise, _rounding(image))
    blobs = _blobs(responses, noise)
    if not len(blobs.y_px):
        return []
    moat_px, quiet = _moats(levels, blobs, noise)
    to_edge_px = _to_edge(blobs.y_px, blobs.x_px, image.shape)
    typical = _typical(blobs, quiet, to_edge_px)
    clear = np.abs(blobs.contrast) * blobs.radius_px
    clear = clear / (clear + np.average(clear, weights=typical * quiet + 1e-9))
    clipping = _clipping(image)
    promise = typical * quiet * clear * np.where(_clipped_blobs(image, blobs, clipping), 0.3, 1)
    found: dict[Box, _Proposal] = {}
    for i in np.argsort(-promise)[: 2 * _N_BOXES]:
        if promise[i] == 0 or len(found) == _N_BOXES:
            break
        box = _box_round(image, *(float(a[i]) for a in (blobs.y_px, blobs.x_px, blobs.radius_px, moat_px)))
        reading = None if box is None or box in found else _read(image, box, clipping)
        if box is not None and reading is not None:
            found[box] = _Proposal(box, float(typical[i] * clear[i]) * reading.mark(), reading)
    return list(found.values())


def _rounding(image: NDArray[Any]) -> float:
    """Return the standard deviation that rounding to whole counts leaves."""
    return 0.29 if image.dtype.kind in "ui" else max(1e-6 * float(np.ptp(image)), 1e-30)


def _pyramid(image: NDArray[Any]) -> list[Image]:
    """Return the frame at full, half, quarter ... resolution."""
    levels = [image.astype(np.float32)]
    while min(levels[-1].shape) >= 32 and len(levels) < 6:
        levels.append(np.asarray(cv2.pyrDown(levels[-1]), np.float32))
    return levels


@dataclass(frozen=True, slots=True, eq=False)
class _Response:
    """Differences of Gaussians at one scale, in units of the contrast of a disc of that radius."""

    radius_px: float
    level: int
    contrast: Image
    noise: float
    """Standard deviation that white pixel noise of 1 leaves."""


def _responses(levels: list[Image]) -> list[_Response]:
    """Filter the frame at geometric scales, each on the coarsest level that resolves it."""
    largest_px = min(_LARGEST_RADIUS_PX, max(_SMALLEST_RADIUS_PX, min(levels[0].shape) / 5))
    n_scales = int(_SCALES_PER_OCTAVE * math.log2(largest_px / _SMALLEST_RADIUS_PX)) + 1
    found = []
    for k in range(n_scales):
        radius_px = _SMALLEST_RADIUS_PX * 2 ** (k / _SCALES_PER_OCTAVE)
        narrow_px = radius_px / math.sqrt(2 * _WIDER)  # with this the two answer a disc of that radius most
        wide_px = narrow_px * _WIDER
        level = min(len(levels) - 1, max(0, int(math.log2(narrow_px / 1.4))))
        narrow, wide = (_blurred(levels, level, sigma_px) for sigma_px in (narrow_px, wide_px))
        # the answer at the centre of a disc of contrast 1
        disc = math.exp(-(radius_px**2) / (2 * wide_px**2)) - math.exp(-(radius_px**2) / (2 * narrow_px**2))
        variance = (1 / narrow_px**2 + 1 / wide_px**2 - 4 / (narrow_px**2 + wide_px**2)) / (4 * math.pi)
        found.append(_Response(radius_px, level, (narrow - wide) / disc, math.sqrt(variance) / disc))
    return found


def _blurred(levels: list[Image], level: int, sigma_px: float) -> Image:
    """Return a level blurred so that, with the blur it has already, it is that of `sigma_px` of the full frame."""
    variance_px2 = (4.0**level - 1) / 3  # pyrDown blurs by one pixel of the level it starts from
    more_px = math.sqrt(max(sigma_px**2 - variance_px2, 0.01)) / 2**level
    return np.asarray(cv2.GaussianBlur(levels[level], (0, 0), more_px, borderType=cv2.BORDER_REFLECT), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Blobs:
    """Local extrema of position and scale, in columns of equal length."""

    y_px: Column
    x_px: Column
    radius_px: Column
    """Of the disc that would answer most."""
    contrast: Column
    """Of that disc, camera counts; negative is dark."""


def _blobs(responses: list[_Response], noise: float) -> _Blobs:
    """Return what stands six times out of the noise as an extremum of place and scale, and is not part of a line."""
    strengths = [np.abs(response.contrast) for response in responses]
    around = [cv2.dilate(strength, np.ones((3, 3), np.uint8)) for strength in strengths]
    columns = []
    for k, (response, strength) in enumerate(zip(responses, strengths, strict=True)):
        step_px = 2.0**response.level
        reach = 2 * max(1, round(response.radius_px / step_px / 2)) + 1
        highest = cv2.dilate(strength, np.ones((reach, reach), np.uint8))
        y, x = np.nonzero((strength == highest) & (strength > 6 * noise * response.noise))
        keep = _roundness(response.contrast, y, x) > 0.08
        # the mirrored frame has extrema on its edge
        keep &= _to_edge(y, x, strength.shape) * step_px > response.radius_px / 2
        for j in (k - 1, k + 1):
            if 0 <= j < len(responses):
                ratio = 2.0 ** (response.level - responses[j].level)
                rows = np.minimum(np.rint(y * ratio).astype(int), around[j].shape[0] - 1)
                cols = np.minimum(np.rint(x * ratio).astype(int), around[j].shape[1] - 1)
                keep &= strength[y, x] >= around[j][rows, cols]
        y, x = y[keep], x[keep]
        radius_px = np.full(len(y), response.radius_px)
        columns.append(np.stack([y * step_px, x * step_px, radius_px, response.contrast[y, x]]))
    table = np.concatenate(columns, axis=1).astype(np.float64)
    y_px, x_px, radius_px, contrast = table = table[:, np.argsort(-np.abs(table[3]) * table[2])[:_N_BLOBS]]
    near = np.hypot(y_px[:, None] - y_px, x_px[:, None] - x_px) < 3 * radius_px
    lobe = near & (np.abs(contrast) > 3 * np.abs(contrast[:, None])) & (radius_px > 0.5 * radius_px[:, None])
    return _Blobs(*table[:, ~lobe.any(axis=1)])  # without side lobes and texture


def _to_edge(y: NDArray[Any], x: NDArray[Any], shape: tuple[int, ...]) -> Column:
    """Return the distance to the nearest edge of a frame."""
    distance: Column = np.min([y, x, shape[0] - 1 - y, shape[1] - 1 - x], axis=0).astype(np.float64)
    return distance


def _roundness(values: Image, y: NDArray[np.int64], x: NDArray[np.int64]) -> Column:
    """Return determinant over squared trace of the Hessian: 0.25 for a round extremum, 0 on a ridge.

    References
    ----------
    Lowe, Int. J. Comput. Vis. 60, 91 (2004), sec. 4.1.
    """
    v = np.pad(values.astype(np.float64), 1, mode="reflect")
    y, x = y + 1, x + 1
    yy = v[y + 1, x] + v[y - 1, x] - 2 * v[y, x]
    xx = v[y, x + 1] + v[y, x - 1] - 2 * v[y, x]
    xy = (v[y + 1, x + 1] + v[y - 1, x - 1] - v[y + 1, x - 1] - v[y - 1, x + 1]) / 4
    ratio: Column = (yy * xx - xy**2) / np.maximum((yy + xx) ** 2, 1e-30)
    return ratio


_ANGLES = np.arange(48) * 2 * np.pi / 48
_DISTANCES = np.arange(0, 5.3, 0.15)
"""In units of a blob's radius."""
_MOAT = 1.5
"""Outer over inner radius of the moat."""
_FACTORS = (1.0, 1.2, 1.45, 1.75, 2.1, 2.5, 3.0, 3.5)
"""Radii of the whole particle, halo and rings included, over the radius of its blob."""


def _moats(levels: list[Image], blobs: _Blobs, noise: float) -> tuple[Column, Column]:
    """Return the inner radius of the quietest moat round each blob, px, and a mark for how quiet it is."""
    best_px, mark = np.zeros(len(blobs.y_px)), np.zeros(len(blobs.y_px))
    for radius_px in np.unique(blobs.radius_px):
        which = np.flatnonzero(blobs.radius_px == radius_px)
        y_px, x_px = blobs.y_px[which], blobs.x_px[which]
        to_edge_px = _to_edge(y_px, x_px, levels[0].shape)
        sigma_px = max(0.8, radius_px / 6)
        rings = _polar(levels, y_px, x_px, radius_px * _DISTANCES, sigma_px)
        left = noise / (2 * math.sqrt(math.pi) * sigma_px)  # of white noise, after the blur
        for factor in _FACTORS:
            inside = rings[:, factor > _DISTANCES].reshape(len(which), -1)
            moat = rings[:, (factor <= _DISTANCES) & (_MOAT * factor >= _DISTANCES)].reshape(len(which), -1)
            background = np.median(moat, axis=1, keepdims=True)
            contrast = np.quantile(np.abs(inside - background), 0.95, axis=1)
            activity = np.quantile(np.abs(moat - background), 0.9, axis=1)
            activity = np.sqrt(np.maximum(activity**2 - (1.8 * left) ** 2, 0))
            fits = (contrast > 6 * left) & (to_edge_px >= 1.4 * factor * radius_px)
            here = _quiet(activity / np.maximum(contrast, 1e-30)) * factor**-0.15 * fits
            better = here > mark[which]
            mark[which] = np.where(better, here, mark[which])
            best_px[which] = np.where(better, factor * radius_px, best_px[which])
    return best_px, mark


def _quiet(activity: Any) -> Any:
    """Return a mark for what stirs in the background, relative to the particle's contrast: 0.64 at a tenth."""
    return np.exp(-((activity / 0.15) ** 2))


def _polar(levels: list[Image], y_px: Column, x_px: Column, distance_px: Column, sigma_px: float) -> Image:
    """Return (N, D, A): the blurred frame at each distance from each place, in all directions."""
    level = min(len(levels) - 1, max(0, int(math.log2(sigma_px))))
    rows = (y_px[:, None, None] + distance_px[:, None] * np.sin(_ANGLES)) / 2**level
    columns = (x_px[:, None, None] + distance_px[:, None] * np.cos(_ANGLES)) / 2**level
    y, x = (a.astype(np.float32).reshape(len(y_px), -1) for a in (rows, columns))
    values = cv2.remap(_blurred(levels, level, sigma_px), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(values, np.float32).reshape(rows.shape)


def _typical(blobs: _Blobs, quiet: Column, to_edge_px: Column) -> Column:
    """Return a mark for how much of the frame's signal is in other places, yet alike in size, contrast and sign."""
    y_px, x_px, radius_px, strength = blobs.y_px, blobs.x_px, blobs.radius_px, np.abs(blobs.contrast)
    weight = strength * radius_px**1.5 * (quiet + 0.1)  # the texture and the lines that fill some frames count little
    octaves = np.log2(radius_px)[:, None] - np.log2(radius_px)
    stops = np.log2(strength)[:, None] - np.log2(strength)
    alike = np.exp(-0.5 * ((octaves / 0.4) ** 2 + (stops / 0.5) ** 2))
    alike *= np.sign(blobs.contrast)[:, None] == np.sign(blobs.contrast)
    alike *= np.hypot(y_px[:, None] - y_px, x_px[:, None] - x_px) > 1.5 * np.maximum(radius_px[:, None], radius_px)
    np.fill_diagonal(alike, 0.05)  # a frame may hold one particle only
    density = alike @ weight
    whole = to_edge_px > 1.5 * radius_px
    mark: Column = np.minimum(1, density / density[whole].max(initial=1e-30))
    return mark


def _square(y_px: float, x_px: float, diameter_px: float, shape: tuple[int, ...]) -> Box | None:
    """Return a box round a particle, or None if it would reach beyond the frame."""
    side = math.ceil(max(BOX_PER_DIAMETER * diameter_px, diameter_px + 6))
    y, x = round(y_px - (side - 1) / 2), round(x_px - (side - 1) / 2)
    inside = y >= 0 and x >= 0 and y + side <= shape[0] and x + side <= shape[1]
    return Box(x, y, side, side) if inside else None


def _box_round(image: NDArray[Any], y_px: float, x_px: float, radius_px: float, moat_px: float) -> Box | None:
    """Box what stands out within the moat of a blob, halo included, with a rim of background."""
    (top, left), (bottom, right) = (
        [min(max(0, round(centre + d)), size) for centre, size in zip((y_px, x_px), image.shape, strict=True)]
        for d in (-1.4 * moat_px, 1.4 * moat_px + 1)
    )
    rough = Box(left, top, right - left, bottom - top)
    scene = _scene(image, rough)
    if scene is None:
        return None
    labels, own = _objects(scene, scene.faintest)
    y, x = np.nonzero((labels == own)[scene.box])
    y, x = y + rough.y_px, x + rough.x_px
    within = np.hypot(y - y_px, x - x_px) <= 1.1 * moat_px
    if not within.any():
        return None
    y, x = y[within], x[within]
    diameter_px = max(float(np.ptp(y)) + 1, float(np.ptp(x)) + 1, 2.2 * radius_px)
    return _square((y.min() + y.max()) / 2, (x.min() + x.max()) / 2, diameter_px, image.shape)


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """A box and half its edge round it, less the background."""

    y_px: int
    x_px: int
    """First row and column in the frame."""
    strength: Image
    """(H, W), camera counts: how far the slightly blurred pixels are from the background, up or down."""
    dark: Mask
    rows: slice
    columns: slice
    """Where the box is in it."""
    contrast: float
    """Of what is in the middle of the box, camera counts."""
    spread: float
    """Standard deviation of the blurred background, camera counts."""
    noise: float
    """Standard deviation of the background's pixels, camera counts."""
    blur_px: float
    frame_edges: frozenset[str]
    """Sides at which the scene ends because the frame does."""

    @property
    def box(self) -> tuple[slice, slice]:
        """Select the box from the scene."""
        return self.rows, self.columns

    @property
    def faintest(self) -> float:
        """Strength from which pixels are part of an object, halo included."""
        return max(4 * self.spread, 0.12 * self.contrast)

    @property
    def clear(self) -> float:
        """Strength from which another object does harm."""
        return max(4 * self.spread, 0.25 * self.contrast)


def _scene(image: NDArray[Any], box: Box) -> _Scene | None:
    """Cut a box and its surroundings out; None if nothing in the box stands out of the background."""
    reach = max(6, box.side_px // 2)
    y_px, x_px = max(0, box.y_px - reach), max(0, box.x_px - reach)
    raw = image[y_px : box.y_px + box.height_px + reach, x_px : box.x_px + box.width_px + reach].astype(np.float32)
    blur_px = max(0.8, box.side_px / 40)
    smooth = np.asarray(cv2.GaussianBlur(raw, (0, 0), blur_px, borderType=cv2.BORDER_REFLECT), np.float32)
    floor = _rounding(image) / (2 * math.sqrt(math.pi) * blur_px)
    background, spread = _background(smooth, floor)
    deviation = smooth - background
    strength = np.abs(deviation)
    rows = slice(box.y_px - y_px, box.y_px - y_px + box.height_px)
    columns = slice(box.x_px - x_px, box.x_px - x_px + box.width_px)
    middle = strength[rows, columns][_from_middle(box.height_px, box.width_px) < 0.35]
    contrast = float(np.quantile(middle, 0.97))
    noise = max(_pixel_noise(raw), _rounding(image))
    if contrast < 4 * noise / (2 * math.sqrt(math.pi) * blur_px):
        return None
    if contrast < 4 * spread:  # objects crowd, no background is left to read it off
        spread = contrast / 10
    else:
        noise = max(noise, float((raw - background)[strength < 3 * spread].std()))
    ends = (y_px == 0, y_px + len(raw) == len(image), x_px == 0, x_px + raw.shape[1] == image.shape[1])
    frame_edges = frozenset(side for side, is_edge in zip(_SIDES, ends, strict=True) if is_edge)
    return _Scene(y_px, x_px, strength, deviation < 0, rows, columns, contrast, spread, noise, blur_px, frame_edges)


def _pixel_noise(pixels: Image) -> float:
    """Return the standard deviation of the noise, read off second differences (Immerkaer 1996, with a median)."""
    second = pixels[:-2] - 2 * pixels[1:-1] + pixels[2:]
    mixed = second[:, :-2] - 2 * second[:, 1:-1] + second[:, 2:]
    return float(np.median(np.abs(mixed))) / 0.6745 / 6.0  # 6 = norm of the 3x3 kernel


def _from_middle(height: int, width: int) -> Column:
    """Return the distance of each pixel from the middle of a box, in units of the box's edges."""
    y, x = ((np.arange(n) + 0.5) / n - 0.5 for n in (height, width))
    distance: Column = np.hypot(y[:, None], x)
    return distance


def _background(values: Image, floor: float) -> tuple[Image, float]:
    """Return the smooth surface through the commonest values of (H, W), and their spread about it, at least `floor`.

    A polynomial of second degree by Tukey's M-estimator, started at the shortest interval that holds 30 % of the
    values: objects may cover more than half.
    """
    y, x = (np.linspace(-0.5, 0.5, n) for n in values.shape)
    y, x = np.broadcast_arrays(y[:, None], x)
    terms = np.stack([np.ones_like(y), y, x, y * y, y * x, x * x], axis=-1)  # (H, W, 6)
    every = max(1, int(math.sqrt(values.size / 4000)))
    v = values[::every, ::every].astype(np.float64).ravel()
    design = terms[::every, ::every].reshape(len(v), -1)
    ordered = np.sort(v)
    n = max(2, int(0.3 * len(v)))
    lengths = ordered[n - 1 :] - ordered[: len(v) - n + 1]
    first = int(lengths.argmin())
    surface = np.zeros(design.shape[1])
    surface[0] = ordered[first : first + n].mean()
    spread = max(lengths[first] / 0.77, floor)  # 30 % of a normal distribution lie within 0.77 standard deviations
    for _ in range(10):
        residual = v - design @ surface
        u = residual / (4.7 * spread)
        weight = np.where(np.abs(u) < 1, (1 - u**2) ** 2, 0)
        weighted = design * weight[:, None]
        surface = np.linalg.lstsq(weighted.T @ design, weighted.T @ v, rcond=None)[0]
        spread = max(1.4826 * float(np.median(np.abs(residual[weight > 0]))), floor)
    return (terms @ surface).astype(np.float32), spread


def _objects(scene: _Scene, threshold: float) -> tuple[NDArray[np.int32], int]:
    """Return the labels of all that is stronger than a threshold, and that of the boxed particle (0: none)."""
    signal = scene.strength > threshold
    gap = 3 if scene.blur_px < 1.5 else 5  # core and ring of one particle are parted where their signs change
    grown = cv2.dilate(signal.astype(np.uint8), np.ones((gap, gap), np.uint8))
    labels = np.where(signal, cv2.connectedComponents(grown)[1], 0).astype(np.int32)
    inside, strength = labels[scene.box], scene.strength[scene.box]
    central = strength * np.exp(-8 * _from_middle(*inside.shape) ** 2)
    mass = np.bincount(inside.ravel(), central.ravel())
    mass[0] = 0
    return labels, int(mass.argmax())


@dataclass(frozen=True, slots=True)
class _Clipping:
    """The values at which the camera's range ends, as far as the frame shows it."""

    top: float
    bottom: float


def _clipping(image: NDArray[Any]) -> _Clipping:
    """Read off a frame where its values end: at those of its type, or at a maximum that too many pixels share.

    A 12-bit camera ends at 4095 in a file of 16 bits. NaN stands for an end that the frame does not reach.
    """
    bottom = 0.0 if image.dtype.kind == "u" else math.nan
    highest = float(image.max())
    if image.dtype.kind == "u" and highest == np.iinfo(image.dtype).max:
        return _Clipping(highest, bottom)
    n = min(image.size, 2000 + image.size // 50)
    counts = np.unique(np.partition(image, -n, axis=None)[-n:], return_counts=True)[1]
    is_end = counts[-1] >= 4 and counts[-1] > 4 * counts[-6:-1].mean() if len(counts) > 5 else False
    return _Clipping(highest if is_end else math.nan, bottom)


def _clipped_blobs(image: NDArray[Any], blobs: _Blobs, clipping: _Clipping) -> Mask:
    """Tell which blobs have more than 2 % of clipped pixels in their middle (the square within half the radius)."""
    height, width = image.shape
    reach = np.maximum(1, blobs.radius_px / 2)
    first_y, last_y = (np.clip(np.rint(blobs.y_px + d), 0, height - 1).astype(int) for d in (-reach, reach))
    first_x, last_x = (np.clip(np.rint(blobs.x_px + d), 0, width - 1).astype(int) for d in (-reach, reach))
    clipped = np.zeros(len(reach), bool)
    for end, sign in ((clipping.top, 1), (clipping.bottom, -1)):
        total = cv2.integral((image == end).astype(np.uint8))
        n = total[last_y + 1, last_x + 1] - total[first_y, last_x + 1]
        n = n - total[last_y + 1, first_x] + total[first_y, first_x]
        area = (last_y - first_y + 1) * (last_x - first_x + 1)
        clipped |= (n > 0.02 * area) & (np.sign(blobs.contrast) == sign)
    return clipped


_SIDES = ("upper", "lower", "left", "right")


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a box shows, in figures."""

    contrast_to_noise: float
    clipped_share: float
    """Of the particle's pixels."""
    clipped_at: float
    cut_off: tuple[str, ...]
    """Sides of the frame that cut the particle."""
    crossed: tuple[str, ...]
    """Sides of the box, other than those, that the particle or what it touches reaches over."""
    rim_share: float
    """Of the box's rim that the particle covers."""
    runs_on: bool
    """The particle reaches on as far as the scene is wide: it is more than one."""
    others_share: float
    """Pixels of other objects in the box over those of the particle."""
    solidity: float
    """Area of the particle over that of its convex hull."""
    activity: float
    """What stirs in the background of the box, over the contrast."""

    @property
    def misplaced(self) -> bool:
        """Whether the particle is not alone and whole in the box."""
        return bool(self.cut_off or self.crossed or self.others_share > 0.05)

    def mark(self) -> float:
        """Return how well the box would do, 0 to 1."""
        one_outline = min(1.0, self.solidity / 0.95) ** 8
        return float(_quiet(self.activity)) * one_outline * 0.3 ** len(self.warnings())

    def warnings(self) -> tuple[str, ...]:
        """Say what is wrong."""
        found = []
        if self.clipped_share > 0.01:
            end = "highest" if self.clipped_at > 0 else "lowest"
            found.append(
                f"saturated: {self.clipped_share:.0%} of the particle's pixels are at the {end} value the camera gives "
                f"({self.clipped_at:g}) and tell nothing; change exposure or light and snap again, or box another one"
            )
        if self.cut_off:
            found.append(
                f"cut off: the particle reaches the {_listed(self.cut_off)} edge of the frame; box one that is whole"
            )
        across = {"upper", "lower"} <= set(self.crossed) or {"left", "right"} <= set(self.crossed)
        if across and not self.runs_on:
            found.append(
                f"too tight: the particle covers {self.rim_share:.0%} of the box's rim, where background is expected; "
                "draw the box wider, with a quarter of the particle's diameter free on each side"
            )
        elif self.crossed:
            found.append(
                f"touching: something reaches over the {_listed(self.crossed)} side of the box and covers "
                f"{self.rim_share:.0%} of its rim; draw the box round the whole particle, or box one that stands alone"
            )
        if self.others_share > 0.05:
            found.append(
                f"touching: other objects in the box have {self.others_share:.0%} of the particle's area; draw the box "
                "smaller, or box one that stands alone"
            )
        if self.contrast_to_noise < FAINT:
            found.append(
                f"faint: the particle stands {self.contrast_to_noise:.1f} times the noise out of the background, "
                f"{FAINT:g} or more are expected; expose longer, or box a brighter one"
            )
        return tuple(found)


def _listed(sides: tuple[str, ...]) -> str:
    """Return `left`, `upper and left`, `upper, left and right`."""
    return " and ".join(filter(None, [", ".join(sides[:-1]), sides[-1]]))


def _read(image: NDArray[Any], box: Box, clipping: _Clipping) -> _Reading | None:
    """Measure what a box shows; None if nothing in it stands out of the background."""
    scene = _scene(image, box)
    if scene is None:
        return None
    labels, own = _objects(scene, scene.clear)
    if not own:
        return None
    particle = labels == own
    inner = particle[scene.box]
    area = int(inner.sum())
    n_least = max(2, 0.04 * box.side_px)
    crossed = {side for side, rim in _rims(inner).items() if rim.sum() >= n_least}
    run_on = {side for side, rim in _rims(particle).items() if rim.sum() >= 2}
    cut_off = crossed & run_on & scene.frame_edges
    pixels, dark = box.cut(image), scene.dark[scene.box]
    n_high = int(np.sum(inner & ~dark & (pixels == clipping.top)))
    n_low = int(np.sum(inner & dark & (pixels == clipping.bottom)))
    return _Reading(
        contrast_to_noise=scene.contrast / scene.noise,
        clipped_share=max(n_high, n_low) / area if max(n_high, n_low) > 2 else 0.0,
        clipped_at=clipping.top if n_high >= n_low else clipping.bottom,
        cut_off=tuple(side for side in _SIDES if side in cut_off),
        crossed=tuple(side for side in _SIDES if side in crossed - cut_off),
        rim_share=float(np.concatenate(list(_rims(inner).values())).mean()),
        runs_on=bool(run_on - scene.frame_edges),
        others_share=_others(labels[scene.box], own) / area,
        solidity=_solidity(inner),
        activity=_activity(scene),
    )


def _rims(mask: Mask) -> dict[str, Mask]:
    """Return the outermost row or column on each side."""
    return dict(zip(_SIDES, (mask[0], mask[-1], mask[:, 0], mask[:, -1]), strict=True))


def _others(labels: NDArray[np.int32], own: int) -> int:
    """Count the pixels of objects other than the particle and the rings round it."""
    y, x = (float(a.mean()) for a in np.nonzero(labels == own))
    n_pixels = 0
    for label in set(np.unique(labels)) - {0, own}:
        rows, columns = np.nonzero(labels == label)
        if not (rows.min() <= y <= rows.max() and columns.min() <= x <= columns.max()):
            n_pixels += len(rows)
    return n_pixels


def _solidity(mask: Mask) -> float:
    """Return the area within the outline of a particle over that of its convex hull; less than 1 for two in touch."""
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    outline = max(cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)
    return float((cv2.contourArea(outline) + 1) / (cv2.contourArea(cv2.convexHull(outline)) + 1))


def _activity(scene: _Scene) -> float:
    """Return the 98 % quantile of what is left in the box without the particle and the noise, over the contrast."""
    labels, own = _objects(scene, scene.faintest)
    particle = cv2.dilate((labels == own).astype(np.uint8), np.ones((3, 3), np.uint8))
    rest = scene.strength[scene.box][particle[scene.box] == 0]
    if not rest.size:
        return 1.0
    noise = scene.noise / (2 * math.sqrt(math.pi) * scene.blur_px)
    return math.sqrt(max(float(np.quantile(rest, 0.98)) ** 2 - (2.4 * noise) ** 2, 0)) / scene.contrast
