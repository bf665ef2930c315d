"""The simulated microscope: images with noise, and the exact truth they were made from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.simulated_source import SimulatedSource, open_scene, scene_of
from oneframe.acquisition.source import FrameSource, SourceError, SourceURL

_OVERSAMPLING = 8
"""Samples per pixel of the bead table; cubic interpolation between them is exact to 1e-5 of the peak."""


@dataclass(frozen=True, slots=True)
class BeadScene:
    """Fluorescent beads that diffuse, drift, appear and vanish in the focal plane of a microscope.

    Each field is also an option of the SOURCE `sim:beads?field=value&...`.
    """

    width: int = 512
    """Columns of the camera, px."""
    height: int = 512
    """Rows of the camera, px."""
    n: int = 40
    """Mean number of beads in the frame."""
    radius_um: float = 0.3
    """Radius of a bead, micrometres."""
    na: float = 0.8
    """Numerical aperture of the objective."""
    wavelength_um: float = 0.53
    """Emission wavelength in vacuum, micrometres."""
    pixel_um: float = 0.1
    """Edge of a pixel in the sample, micrometres."""
    photons: float = 5000.0
    """Mean photoelectrons of one bead in one frame."""
    brightness_cv: float = 0.1
    """Spread of the brightness from bead to bead: standard deviation over mean."""
    background: float = 30.0
    """Mean background photoelectrons per pixel."""
    read_noise: float = 1.5
    """Standard deviation of the read noise, electrons."""
    gain: float = 2.0
    """Camera counts per electron."""
    offset: float = 100.0
    """Camera counts without light."""
    step_px: float = 0.7
    """Standard deviation of one diffusion step along each axis, px per frame."""
    drift_y_px: float = 0.05
    """Stage drift, px per frame."""
    drift_x_px: float = 0.1
    separation_px: float = 14.0
    """Beads are hard: centres never come closer than this, px."""
    lifetime: float = 400.0
    """Mean number of frames a bead stays; as many appear as vanish. 0: for ever."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width < 8 or self.height < 8:
            raise ValueError(f"the frame must be at least 8 x 8 px, got {self.width} x {self.height}")
        for name in ("na", "wavelength_um", "pixel_um", "gain"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Where the beads of one frame really are."""

    bead_id: NDArray[np.int64]
    y_px: NDArray[np.float64]
    x_px: NDArray[np.float64]


class BeadMotion:
    """The beads' life, frame by frame; needs no images, so truth can be replayed at any time from the seed."""

    def __init__(self, scene: BeadScene) -> None:
        self._scene = scene
        self._rng = np.random.default_rng([scene.seed, 1])
        self._margin_px = 20.0
        self._extent_px = np.array([scene.height, scene.width]) + 2 * self._margin_px
        self._n_target = scene.n * float(np.prod(self._extent_px)) / (scene.height * scene.width)
        self._next_id = 0
        self._id = np.empty(0, np.int64)
        self._position = np.empty((0, 2))  # in the frame plus a margin, origin at its corner
        self._brightness = np.empty(0)
        self._add(self._rng.poisson(self._n_target) if scene.lifetime else round(self._n_target))

    def advance(self) -> None:
        """Move on to the next frame."""
        scene, rng = self._scene, self._rng
        drift_px = np.array([scene.drift_y_px, scene.drift_x_px])
        step = drift_px + rng.normal(0.0, scene.step_px, self._position.shape)
        for i, target in enumerate((self._position + step) % self._extent_px):
            if self._is_free(target, i):
                self._position[i] = target
        if scene.lifetime:
            stays = rng.random(len(self._id)) >= 1 / scene.lifetime
            self._id = self._id[stays]
            self._position = self._position[stays]
            self._brightness = self._brightness[stays]
            self._add(rng.poisson(self._n_target / scene.lifetime))

    def beads(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Return id (N,), position (N, 2) px in the frame's coordinates, relative brightness (N,); margin included."""
        return self._id, self._position - self._margin_px - 0.5, self._brightness

    def truth(self) -> Truth:
        """Return the beads whose centre lies within the frame."""
        bead_id, position, _ = self.beads()
        limits = np.array([self._scene.height, self._scene.width]) - 0.5
        inside = ((position >= -0.5) & (position < limits)).all(axis=1)
        return Truth(bead_id[inside], position[inside, 0], position[inside, 1])

    def _add(self, n_beads: int) -> None:
        for _ in range(n_beads):
            for _attempt in range(50):
                position = self._rng.random(2) * self._extent_px
                if self._is_free(position, None):
                    self._id = np.append(self._id, self._next_id)
                    self._position = np.vstack([self._position, position])
                    brightness = max(0.2, self._rng.normal(1.0, self._scene.brightness_cv))
                    self._brightness = np.append(self._brightness, brightness)
                    self._next_id += 1
                    break

    def _is_free(self, position: NDArray[np.float64], own: int | None) -> bool:
        distance = np.abs(self._position - position)
        distance = np.minimum(distance, self._extent_px - distance)  # the scene wraps round
        near = (distance**2).sum(axis=1) < self._scene.separation_px**2
        if own is not None:
            near[own] = False
        return not near.any()


@lru_cache(maxsize=4)
def bead_table(radius_um: float, na: float, wavelength_um: float, pixel_um: float) -> NDArray[np.float64]:
    """Return the image of a bead of one photoelectron, sampled `_OVERSAMPLING` times a pixel, shape (S, S), S odd.

    A uniform disc of `radius_um` blurred by the incoherent Airy transfer function and integrated over square pixels.

    References
    ----------
    Goodman, Introduction to Fourier Optics, 3rd ed., eq. 6-31 (transfer function of a circular pupil).
    """
    half_px = int(np.ceil(radius_um / pixel_um + 6 * wavelength_um / na / pixel_um))
    n_samples = 2 * half_px * _OVERSAMPLING * 2  # twice the table, so that the far rings do not wrap into it
    step_um = pixel_um / _OVERSAMPLING
    coordinate_um = (np.arange(n_samples) - n_samples // 2) * step_um
    r_um = np.hypot(coordinate_um[:, None], coordinate_um[None, :])
    disc = np.clip((radius_um - r_um) / step_um + 0.5, 0, 1)
    if disc.sum() == 0:
        disc[n_samples // 2, n_samples // 2] = 1
    frequency = np.fft.fftfreq(n_samples, step_um)  # per micrometre
    q = np.minimum(np.hypot(frequency[:, None], frequency[None, :]) / (2 * na / wavelength_um), 1)
    transfer = 2 / np.pi * (np.arccos(q) - q * np.sqrt(1 - q**2))
    pixel = np.sinc(frequency * pixel_um)
    spectrum = np.fft.fft2(np.fft.ifftshift(disc / disc.sum())) * transfer * pixel[:, None] * pixel[None, :]
    image = np.fft.fftshift(np.fft.ifft2(spectrum).real) * _OVERSAMPLING**2
    centre, reach = n_samples // 2, half_px * _OVERSAMPLING
    return np.ascontiguousarray(
        np.maximum(image[centre - reach : centre + reach + 1, centre - reach : centre + reach + 1], 0)
    )


def _cubic_weights(fraction: float) -> NDArray[np.float64]:
    """Lagrange weights of the samples at -1, 0, 1, 2 for a point at `fraction`."""
    f = fraction
    return np.array(
        [
            -f * (f - 1) * (f - 2) / 6,
            (f + 1) * (f - 1) * (f - 2) / 2,
            -(f + 1) * f * (f - 2) / 2,
            (f + 1) * f * (f - 1) / 6,
        ]
    )


def add_bead(image: NDArray[np.float64], y_px: float, x_px: float, photons: float, table: NDArray[np.float64]) -> None:
    """Add a bead to an image (H, W) of photoelectrons, centred exactly at (y_px, x_px)."""
    reach = table.shape[0] // 2
    rows, row_weights, row_start = _table_samples(y_px, image.shape[0], reach)
    columns, column_weights, column_start = _table_samples(x_px, image.shape[1], reach)
    if rows.size == 0 or columns.size == 0:
        return
    in_rows = sum(w * table[rows + k] for k, w in enumerate(row_weights))
    patch = sum(w * in_rows[:, columns + k] for k, w in enumerate(column_weights))
    image[row_start : row_start + rows.size, column_start : column_start + columns.size] += photons * patch


def _table_samples(centre_px: float, size: int, reach: int) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    """Table index of the first of four samples for each pixel in reach, their weights, and the first pixel."""
    first = max(0, int(np.ceil(centre_px - reach / _OVERSAMPLING)) + 1)
    last = min(size - 1, int(np.floor(centre_px + reach / _OVERSAMPLING)) - 1)
    position = (first - centre_px) * _OVERSAMPLING + reach
    base = int(np.floor(position))
    index = base - 1 + _OVERSAMPLING * np.arange(max(0, last - first + 1))
    return index, _cubic_weights(position - base), first


class BeadCamera:
    """Takes pictures of a `BeadScene`: Poisson photoelectrons, read noise, gain, offset."""

    def __init__(self, scene: BeadScene) -> None:
        self.scene = scene
        self.motion = BeadMotion(scene)
        self._rng = np.random.default_rng([scene.seed, 2])
        self._table = bead_table(scene.radius_um, scene.na, scene.wavelength_um, scene.pixel_um)

    def expose(self) -> NDArray[np.uint16]:
        """Return a picture (H, W) of the beads where they are now, in camera counts."""
        scene = self.scene
        electrons = np.full((scene.height, scene.width), scene.background)
        _, position, brightness = self.motion.beads()
        for (y_px, x_px), relative in zip(position, brightness, strict=True):
            add_bead(electrons, y_px, x_px, scene.photons * relative, self._table)
        counts = self._rng.poisson(electrons).astype(np.float32)
        counts += np.float32(scene.read_noise) * self._rng.standard_normal(counts.shape, dtype=np.float32)
        counts *= scene.gain
        counts += scene.offset
        return np.clip(np.rint(counts), 0, 65535).astype(np.uint16)

    def advance(self) -> None:
        """Move on to the next frame."""
        self.motion.advance()

    def truth(self) -> Truth:
        """Return the beads of the current frame."""
        return self.motion.truth()


class SimulatedBeads(SimulatedSource[BeadScene, Truth]):
    """`sim:beads` as a source; a `BeadMotion` of its scene replays the truth."""

    def __init__(self, scene: BeadScene, *, n_frames: int | None, fps: float, url: str) -> None:
        super().__init__(BeadCamera(scene), n_frames=n_frames, fps=fps, url=url, pixel_size_um=scene.pixel_um)


def bead_scene(url: SourceURL) -> BeadScene:
    """Read the scene out of `sim:beads?...`, leaving `frames` and `fps` in the options."""
    return scene_of(BeadScene(), url, signed=("drift_y_px", "drift_x_px"))


def open_simulated(url: SourceURL) -> FrameSource:
    """Open `sim:beads?frames=..&fps=..` with every field of `BeadScene`, `sim:hologram`, `emitters` or `cells`."""
    if url.target == "hologram":
        from oneframe.acquisition.holograms import open_holograms

        return open_holograms(url)
    if url.target == "emitters":
        from oneframe.acquisition.emitters import open_emitters

        return open_emitters(url)
    if url.target == "cells":
        from oneframe.acquisition.cells import open_cells

        return open_cells(url)
    if url.target != "beads":
        raise SourceError(
            f"expected sim:beads, sim:hologram, sim:emitters or sim:cells, got {url.text!r}; "
            "choose one of these simulated samples"
        )
    return open_scene(SimulatedBeads, bead_scene(url), url)
