"""An image with rings round what was found in it, or the outlines of cells, as a picture to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.detections import Detections, Tracks
from oneframe.runtime.display import contrast_levels
from oneframe.runtime.outline import CELL_RGB, CellColours, rims

RGB = NDArray[np.uint8]

RING_RGB = (255, 176, 0)  # amber and sky blue differ for every kind of colour vision, and from any grey
TAIL_RGB = (86, 180, 233)
_SHADOW_RGB = (0, 0, 0)

_READABLE_SIDE_PX = 640
_READABLE_RING_PX = 14
_LARGEST_SIDE_PX = 2560
_SHIFT = 4  # cv2 takes positions in 1/16 px
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_overlay(
    image: NDArray[Any],
    found: Detections | Tracks,
    *,
    diameter_px: float,
    tails: Sequence[NDArray[Any]] | None = None,
    levels: tuple[float, float] | None = None,
    caption: str | None = None,
) -> RGB:
    """Draw an image in grey with a ring round each detection, or the outline of each where there are labels.

    Outlines of neighbours have different colours; they lie on the outermost pixels of each cell.

    Parameters
    ----------
    image : (H, W) or (C, H, W) array
        Any integer or float dtype; of several channels, channel 0 is drawn.
    found : Detections or Tracks
        Positions in pixels of `image`; those that are not finite are left out.
    diameter_px : float
        Ring diameter in pixels of `image`.
    tails : sequence of (M, 2) arrays, optional
        Past positions (y, x) of each track in pixels of `image`, oldest first.
    levels : (float, float), optional
        Values drawn black and white; percentiles 0.1 and 99.9 if not given.
    caption : str, optional
        One line below the picture, ASCII.

    Returns
    -------
    (k * H + caption, k * W, 3) uint8
        RGB. `k` is the whole number that makes a small image and its rings readable, see `magnification`; the
        camera's position (y, x) is drawn at `k * y + (k - 1) / 2`.

    Raises
    ------
    ValueError
        If the image is not (H, W) or (C, H, W), the labels are of another image, or the diameter is not above 0.
    """
    plane = image[0] if image.ndim == 3 else image
    if plane.ndim != 2 or plane.size == 0:
        raise ValueError(f"expected an image (H, W) or (C, H, W), got {image.shape}; pass one plane at a time")
    if not (math.isfinite(diameter_px) and diameter_px > 0):
        raise ValueError(f"diameter_px must be above 0 pixels, got {diameter_px}; take it from the model card")
    detections = found.detections if isinstance(found, Tracks) else found
    if detections.labels is not None and detections.labels.shape != plane.shape:
        raise ValueError(
            f"labels of shape {detections.labels.shape} do not belong to an image of {plane.shape}; "
            "pass the image they were found in"
        )
    k = magnification(plane.shape, diameter_px)
    grey = _stretched(plane, contrast_levels(plane) if levels is None else levels)
    rgb: RGB = np.repeat(_enlarged(grey, k)[:, :, None], 3, axis=2)
    for tail in tails or ():
        _draw_tail(rgb, tail, k)
    if detections.labels is not None:
        _draw_outlines(rgb, detections.labels, found.track_id if isinstance(found, Tracks) else None, k)
    else:
        _draw_rings(rgb, detections, diameter_px, k)
    return rgb if caption is None else np.concatenate([rgb, _caption_strip(caption, rgb.shape[1])])


def magnification(shape: tuple[int, ...], diameter_px: float) -> int:
    """Return the whole number by which an image (H, W) is enlarged for drawing.

    >>> magnification((64, 64), 12.0), magnification((1024, 1024), 12.0), magnification((1024, 1024), 5.0)
    (10, 2, 2)
    """
    longest = max(shape)
    wanted = max(math.ceil(_READABLE_SIDE_PX / longest), math.ceil(_READABLE_RING_PX / diameter_px))
    return max(1, min(wanted, _LARGEST_SIDE_PX // longest))


def write_png(path: Path | str, rgb: RGB) -> None:
    """Write an (H, W, 3) uint8 RGB picture as PNG, also where the path is not ASCII.

    Raises
    ------
    ValueError
        If it is no such picture.
    OSError
        If the file cannot be written.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"expected (H, W, 3) uint8, got {rgb.dtype} of shape {rgb.shape}; make it with draw_overlay")
    encoded = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1]
    Path(path).write_bytes(encoded.tobytes())


def _stretched(plane: NDArray[Any], levels: tuple[float, float]) -> NDArray[np.uint8]:
    """Return (H, W) uint8: the lower level is 0, the upper 255; values that are no number are 0."""
    low, high = levels
    scaled = (plane.astype(np.float32) - np.float32(low)) * np.float32(255.0 / (high - low))
    stretched: NDArray[np.uint8] = np.clip(np.nan_to_num(scaled, nan=0.0), 0.0, 255.0).astype(np.uint8)
    return stretched


def _enlarged(plane: NDArray[Any], k: int) -> NDArray[Any]:
    """Return every pixel as a k x k block: what the camera saw, not an interpolation."""
    return plane if k == 1 else plane.repeat(k, axis=0).repeat(k, axis=1)


def _fixed_point(position_px: NDArray[Any], k: int) -> NDArray[np.int32]:
    """Return positions of the image as positions of the enlarged picture, in 1/16 px."""
    enlarged = k * np.asarray(position_px, np.float64) + (k - 1) / 2
    return np.clip(np.rint(enlarged * (1 << _SHIFT)), -(2**30), 2**30).astype(np.int32)


def _draw_rings(rgb: RGB, detections: Detections, diameter_px: float, k: int) -> None:
    finite = np.isfinite(detections.y_px) & np.isfinite(detections.x_px)
    ys, xs = _fixed_point(detections.y_px[finite], k), _fixed_point(detections.x_px[finite], k)
    radius = round(k * diameter_px / 2 * (1 << _SHIFT))
    thickness = 2 if max(rgb.shape) > 900 or k * diameter_px > 30 else 1
    for colour, width in ((_SHADOW_RGB, thickness + 2), (RING_RGB, thickness)):  # the shadow shows it on white
        for y, x in zip(ys.tolist(), xs.tolist(), strict=True):
            cv2.circle(rgb, (x, y), radius, colour, width, cv2.LINE_AA, _SHIFT)


def _draw_tail(rgb: RGB, tail: NDArray[Any], k: int) -> None:
    tail = tail[np.isfinite(tail).all(axis=1)]
    if len(tail) > 1:
        points_xy = _fixed_point(tail[:, ::-1], k)  # (M, 2) in (x, y): cv2's order
        cv2.polylines(rgb, [points_xy.reshape(-1, 1, 2)], False, TAIL_RGB, 1, cv2.LINE_AA, _SHIFT)


def _draw_outlines(rgb: RGB, labels: NDArray[np.int32], track_id: NDArray[np.int64] | None, k: int) -> None:
    """Colour the rim of each cell; without tracks, labels are what the colours go by."""
    n_cells = int(labels.max(initial=0))
    if track_id is None or len(track_id) != n_cells:
        track_id = np.arange(n_cells)
    colour = np.array(CELL_RGB, np.uint8)[CellColours().of(labels, track_id)]  # (N, 3)
    enlarged = _enlarged(labels, k)
    rim = rims(enlarged, min(k, 2))
    rgb[rim] = colour[enlarged[rim] - 1]


def _caption_strip(caption: str, width_px: int) -> RGB:
    """Return a dark strip with one line of text that fits."""
    text = caption.replace("µ", "u").replace("μ", "u").encode("ascii", "replace").decode("ascii")
    scale = min(0.5, max(0.35, 0.5 * (width_px - 16) / max(1, _text_width_px(text, 0.5))))
    while len(text) > 4 and _text_width_px(text, scale) > width_px - 16:
        text = text[:-4] + "..."
    strip: RGB = np.full((28, width_px, 3), 24, np.uint8)
    cv2.putText(strip, text, (8, 19), _FONT, scale, (225, 225, 225), 1, cv2.LINE_AA)
    return strip


def _text_width_px(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, _FONT, scale, 1)[0][0])
