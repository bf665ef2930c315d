"""An image that grows: every localisation is a Gaussian as wide as its own predicted error, with an integral of 1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]

MOST_PIXELS = 4096 * 4096
"""Of the canvas, 64 MB; twice that with z."""
_FINE_NM = 12.5
"""Edge of a pixel of the canvas where the camera's pixel size is known: two in the width of a good localisation."""
_PER_CAMERA_PX = 8
_FEWEST_PER_CAMERA_PX, _MOST_PER_CAMERA_PX = 2, 20
_REACH = 3.0
"""Standard deviations to which a Gaussian is drawn."""
_LEAST_SIGMA, _LARGEST_SIGMA = 0.5, 12.0
"""Pixels of the canvas: narrower ones would be narrower than a pixel, wider ones cost time and tell nothing."""
_RADII = np.array([2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 18, 22, 27, 36])
_VALUES_AT_ONCE = 1 << 19
_WAITING = 2048
"""Localisations that are drawn together: few at a time cost five times as much."""


class SuperResolution:
    """Adds up localisations, for one thread.

    Parameters
    ----------
    frame_shape : (int, int)
        Height and width of the camera's frames.
    per_camera_px : int or None
        Pixels of the canvas along the edge of a camera pixel; None: some 12.5 nm each, 8 where the pixel size is
        unknown. Less where the canvas would have more than `MOST_PIXELS`, see `note`.
    pixel_size_um : float or None
        Edge of a camera pixel.
    with_z : bool
        Also keep the mean z of each pixel.

    References
    ----------
    Baddeley, Cannell, Soeller, Microsc. Microanal. 16, 64 (2010): Gaussian rendering at the localisation precision.
    """

    def __init__(
        self,
        frame_shape: tuple[int, int],
        *,
        per_camera_px: int | None = None,
        pixel_size_um: float | None = None,
        with_z: bool = False,
    ) -> None:
        if min(frame_shape) < 1 or (per_camera_px is not None and per_camera_px < 1):
            raise ValueError(
                f"expected a frame of 1 x 1 pixels or more and per_camera_px of 1 or more, got {frame_shape} and "
                f"{per_camera_px}"
            )
        wanted = per_camera_px or _fine(pixel_size_um)
        self.per_camera_px = max(1, min(wanted, math.isqrt(MOST_PIXELS // (frame_shape[0] * frame_shape[1]))))
        self.note = ""
        """What is not as asked for, a sentence, or nothing."""
        if self.per_camera_px < wanted:
            self.note = (
                f"the super-resolution image has {self.per_camera_px} pixels along a camera pixel instead of {wanted}, "
                f"so that it fits into memory; choose a smaller region of the camera for more"
            )
        self.frame_shape = frame_shape
        self.n_localisations = 0
        """Of the image."""
        self.n_left_out = 0
        """Localisations without a position or an error, or outside of the frame."""
        self._waiting: list[NDArray[np.float32]] = []  # (5, N): canvas y, x, their standard deviations, z
        self._n_waiting = 0
        self._pad = math.ceil(_REACH * _LARGEST_SIGMA) + 1
        self._shape = tuple(side * self.per_camera_px + 2 * self._pad for side in frame_shape)
        self._canvas = np.zeros(self._shape, np.float32)
        self._z_canvas = np.zeros(self._shape, np.float32) if with_z else None

    @property
    def image(self) -> Image:
        """(H * per_camera_px, W * per_camera_px), localisations per pixel of the canvas; a view.

        Pixel [j, i] covers the camera's positions from i / per_camera_px - 0.5 on, along x.
        """
        self._draw_waiting()
        return self._inner(self._canvas)

    @property
    def mean_z_um(self) -> Image | None:
        """Mean z of each pixel, NaN where nothing is; None without z."""
        if self._z_canvas is None:
            return None
        self._draw_waiting()
        return _ratio(self._inner(self._z_canvas), self._inner(self._canvas))

    def thinned(self, longest_px: int) -> tuple[Image, Image | None, int]:
        """Return the image as means of n x n pixels so that no side is longer, the mean z of these, and n."""
        image = self.image
        n = -(-max(image.shape) // longest_px)
        if n == 1:
            return image, self.mean_z_um, 1
        light = _mean_of_blocks(image, n)
        if self._z_canvas is None:
            return light, None, n
        return light, _ratio(_mean_of_blocks(self._inner(self._z_canvas), n), light), n

    def clear(self) -> None:
        """Begin anew."""
        self.n_localisations = self.n_left_out = self._n_waiting = 0
        self._waiting.clear()
        self._canvas.fill(0)
        if self._z_canvas is not None:
            self._z_canvas.fill(0)

    def add(
        self,
        y_px: NDArray[Any],
        x_px: NDArray[Any],
        sigma_y_px: NDArray[Any],
        sigma_x_px: NDArray[Any],
        z_um: NDArray[Any] | None = None,
    ) -> None:
        """Add localisations.

        Parameters
        ----------
        y_px, x_px : (N,)
            Positions in camera pixels, centre of pixel [0, 0] at (0, 0).
        sigma_y_px, sigma_x_px : (N,)
            Their standard deviations; drawn with 0.5 pixels of the canvas at least and 12 at most.
        z_um : (N,) or None
            Heights; needed with `with_z`.
        """
        if self._z_canvas is not None and z_um is None:
            raise ValueError("expected z_um for an image with z, got none; make it without with_z")
        scale = self.per_camera_px
        # The centre of canvas pixel i is i; the padding comes first.
        ys, xs = ((np.asarray(p, np.float32) + 0.5) * scale - 0.5 + self._pad for p in (y_px, x_px))
        sigma_y, sigma_x = (np.asarray(sigma, np.float32) * scale for sigma in (sigma_y_px, sigma_x_px))
        z = np.zeros_like(ys) if z_um is None else np.asarray(z_um, np.float32)
        rows = np.stack([ys, xs, sigma_y, sigma_x, z])
        with np.errstate(invalid="ignore"):
            good = np.isfinite(rows).all(axis=0) & (sigma_y > 0) & (sigma_x > 0)
            for position, side in zip((ys, xs), self.frame_shape, strict=True):
                good &= (position >= self._pad - 0.5) & (position < self._pad + side * scale - 0.5)
        n_good = int(np.count_nonzero(good))
        self.n_left_out += len(good) - n_good
        self.n_localisations += n_good
        self._waiting.append(rows[:, good])
        self._n_waiting += n_good
        if self._n_waiting >= _WAITING:
            self._draw_waiting()

    def _draw_waiting(self) -> None:
        """Draw what was added, those of a similar width together."""
        if not self._n_waiting:
            return
        ys, xs, sigma_y, sigma_x, z_um = np.concatenate(self._waiting, axis=1)
        self._waiting.clear()
        self._n_waiting = 0
        sigma_y, sigma_x = (sigma.clip(_LEAST_SIGMA, _LARGEST_SIGMA) for sigma in (sigma_y, sigma_x))
        group = np.searchsorted(_RADII, _REACH * np.maximum(sigma_y, sigma_x))
        for number in np.unique(group).tolist():
            radius, rows = int(_RADII[number]), np.flatnonzero(group == number)
            at_once = max(1, _VALUES_AT_ONCE // (2 * radius + 1) ** 2)
            for first in range(0, len(rows), at_once):
                some = rows[first : first + at_once]
                self._draw(ys[some], xs[some], sigma_y[some], sigma_x[some], radius, z_um[some])

    def _draw(self, ys: Image, xs: Image, sigma_y: Image, sigma_x: Image, radius: int, z_um: Image) -> None:
        """Add Gaussians of one radius, as the product of their two profiles."""
        offsets = np.arange(-radius, radius + 1)
        whole_y, whole_x = np.rint(ys), np.rint(xs)
        row, column = whole_y.astype(np.intp), whole_x.astype(np.intp)
        along_y = _profiles(ys - whole_y, sigma_y, offsets)  # float32 throughout: `np.add.at` is slow where it converts
        along_x = _profiles(xs - whole_x, sigma_x, offsets)
        patches = along_y[:, :, None] * along_x[:, None, :]  # (N, k, k)
        places = ((row[:, None] + offsets) * self._shape[1])[:, :, None] + (column[:, None] + offsets)[:, None, :]
        np.add.at(self._canvas.reshape(-1), places.reshape(-1), patches.reshape(-1))
        if self._z_canvas is not None:
            np.add.at(self._z_canvas.reshape(-1), places.reshape(-1), (patches * z_um[:, None, None]).reshape(-1))

    def _inner(self, canvas: Image) -> Image:
        return canvas[self._pad : -self._pad, self._pad : -self._pad]


def _fine(pixel_size_um: float | None) -> int:
    """Return how many pixels of the canvas a camera pixel is divided into."""
    if pixel_size_um is None:
        return _PER_CAMERA_PX
    return min(max(round(1e3 * pixel_size_um / _FINE_NM), _FEWEST_PER_CAMERA_PX), _MOST_PER_CAMERA_PX)


def _profiles(off_centre: Image, sigma: Image, offsets: NDArray[np.intp]) -> Image:
    """Return Gaussians (N, k) whose values add up to 1."""
    values: Image = np.exp(-0.5 * ((offsets.astype(np.float32) - off_centre[:, None]) / sigma[:, None]) ** 2)
    values /= values.sum(axis=1, keepdims=True)
    return values


def white_level(image: Image, *, percentile: float = 99.7) -> float:
    """Return the value to show as white: a percentile of the pixels that anything was drawn to, 0 of an empty image.

    From 1024 x 1024 pixels on, one in 16 is looked at.
    """
    some = image[::4, ::4] if image.size >= 1024 * 1024 else image
    drawn = some[some > 0]
    return float(np.percentile(drawn, percentile)) if drawn.size else 0.0


def shown(image: Image, *, white: float | None = None, gamma: float = 0.5) -> Image:
    """Return 0..1 for the screen.

    Parameters
    ----------
    image : (H, W)
        What was added up.
    white : float or None
        Value that becomes 1; None: `white_level`.
    gamma : float
        Exponent; 0.5 shows single localisations beside dense places.
    """
    white = white_level(image) if white is None else white
    if white <= 0:
        return np.zeros(image.shape, np.float32)
    bright: Image = np.clip(image / np.float32(white), 0, 1) ** np.float32(gamma)
    return bright


def _ratio(above: Image, below: Image) -> Image:
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: Image = above / below
    return ratio


def _mean_of_blocks(image: Image, n: int) -> Image:
    """Return the means of n x n pixels; rows and columns left over are cut off."""
    height, width = (side // n for side in image.shape)
    import cv2  # late: the live view's sink is there without it

    block = image[: height * n, : width * n]
    return np.asarray(cv2.resize(block, (width, height), interpolation=cv2.INTER_AREA), np.float32)
