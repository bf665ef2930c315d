"""Where the particles of one field are: peaks of Im E_s along x, y and z, strongest first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.focal_planes import FocalPlanes, band_per_um, noise_in_planes, plane_depth_um
from oneframe.runtime.optics import Optics
from oneframe.trainer.crops import Box

APART = 4.0
"""Particles closer than this across the axis are taken for one, in wavelengths over the aperture of the planes."""
FAINTEST = 0.12
"""Of the strongest: rings of particles out of focus are fainter."""
LEAST = 1e-3
"""Of the background, however little noise there is."""
CLEAR = 6.0
"""Standard deviations of the noise in the planes."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A particle in focus."""

    y_px: float
    """Pixels of the field."""
    x_px: float
    z_um: float
    signal: float
    """Im E_s in focus, through the aperture of the planes; background 1."""

    def within(self, box: Box, pixels_per_cell: int) -> bool:
        """Whether it lies in a box of the camera's frame."""
        y, x = self.y_px * pixels_per_cell, self.x_px * pixels_per_cell
        return box.y_px <= y < box.y_px + box.height_px and box.x_px <= x < box.x_px + box.width_px


def find_particles(
    field: NDArray[np.complex64], optics: Optics, every: int, z_um: tuple[float, float], noise: float
) -> list[Spot]:
    """Return the particles of a field (H, W) between two distances, strongest first.

    A denser particle has its largest Im E_s in its focal plane. Of peaks that lie over each other only the strongest
    counts: the rest are its rings.
    """
    from scipy import ndimage

    band = band_per_um(optics, every)
    n = max(3, math.ceil((z_um[1] - z_um[0]) / (0.4 * plane_depth_um(optics, every))) + 1)
    distances_um = np.linspace(z_um[0], z_um[1], n)
    planes = FocalPlanes(optics, (field.shape[0], field.shape[1]), every, tuple(distances_um))
    signal = planes.of(field - np.complex64(1))[n:]
    highest = ndimage.maximum_filter(signal, size=3, mode="nearest")
    lowest = max(LEAST, CLEAR * noise_in_planes(noise, optics, every), FAINTEST * float(signal.max()))
    places = np.argwhere((signal == highest) & (signal >= lowest))
    # at the ends of z the focus lies beyond, at the edges of the frame there is light from the opposite edge
    places = places[((places > 0) & (places < np.array(signal.shape) - 1)).all(axis=1)]
    strength = signal[tuple(places.T)]
    apart_cells = APART / band / (every * optics.pixel_um)
    spots: list[Spot] = []
    taken = np.empty((0, 2))
    for i in np.argsort(-strength, kind="stable"):
        k, y, x = places[i]
        if len(taken) and np.hypot(*(taken - (y, x)).T).min() < apart_cells:
            continue
        taken = np.vstack([taken, (y, x)])
        sub = [_vertex(signal[k, max(0, y - 1) : y + 2, x]), _vertex(signal[k, y, max(0, x - 1) : x + 2])]
        spots.append(Spot((y + sub[0]) * every, (x + sub[1]) * every, float(distances_um[k]), float(signal[k, y, x])))
    return spots


def _vertex(values: NDArray[np.float32]) -> float:
    """Return where the parabola through three values is highest, relative to the middle one."""
    if len(values) < 3:
        return 0.0
    before, at, after = values.tolist()
    bend = before - 2 * at + after
    return float(np.clip((before - after) / (2 * bend), -0.5, 0.5)) if bend < 0 else 0.0


def pick(
    spots: Sequence[Spot],
    box: Box | Literal["auto"] | None,
    pixels_per_cell: int,
    shape: tuple[int, int],
    pixel_um: float,
) -> Spot:
    """Return the particle to learn: the strongest in the box or of the frame, or ("auto") the one most alone.

    Raises
    ------
    ValueError
        If there is none.
    """
    if not spots:
        raise ValueError(
            "expected a particle in the hologram, found none that comes to a focus; snap a frame with particles, check "
            "wavelength, aperture and pixel size, or give a --reference and a --z-range-um"
        )
    if isinstance(box, Box):
        inside = [spot for spot in spots if spot.within(box, pixels_per_cell)]
        if not inside:
            where = ", ".join(f"x {s.x_px * pixels_per_cell:.0f} y {s.y_px * pixels_per_cell:.0f}" for s in spots[:5])
            raise ValueError(
                f"expected a particle in the box, found none in focus at any z; there are some at {where}: box one of "
                "these"
            )
        return inside[0]
    if box is None or len(spots) == 1:
        return spots[0]
    place = np.array([(spot.y_px, spot.x_px) for spot in spots])
    distance = np.hypot(*(place[:, None] - place[None]).transpose(2, 0, 1))
    np.fill_diagonal(distance, np.inf)
    to_edge = np.minimum(place, np.array(shape) - 1 - place).min(axis=1)
    room_um = pixel_um * np.minimum(distance.min(axis=1), 2 * to_edge)
    typical = np.median([spot.signal for spot in spots])
    clear = np.array([spot.signal >= 0.7 * typical for spot in spots])
    return spots[int(np.argmax(np.where(clear, room_um, -1.0)))]
