"""A model for holograms: camera frames in, positions, z and polarizability out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition import Frame
from oneframe.runtime.detections import Detections, Flag
from oneframe.runtime.field_reader import FieldReader, HologramSettings
from oneframe.runtime.focal_planes import FocalPlanes
from oneframe.runtime.model import OnnxModel, check_pixels
from oneframe.runtime.refine import ParticleRefiner, depth_of_focus_um, light_of_dark
from oneframe.runtime.wrapped_model import WrappedModel

NOISY = 1.3
"""Noise of the field over the strongest that was trained, from which on it is told."""
AMPLE = 1.1
"""Of the trained z, for which the crops are made: those of particles at its ends must hold more than half the light."""


class HologramModel(WrappedModel):
    """The network finds the particles in planes along z, their own light tells where exactly and how much they weigh.

    Each frame becomes a field (`FieldReader`), the field planes (`FocalPlanes`), the planes coarse rows (the graph);
    each row is then measured in the field at full aperture (`ParticleRefiner`). Frames come in order: one instance
    belongs to one run.

    Parameters
    ----------
    network : OnnxModel
        The graph of the model file.
    reference : array, optional
        A frame without particles.
    background : str, optional
        As for `FieldReader`.
    refine : bool
        False: what the network alone says.

    Raises
    ------
    ValueError
        If the card's settings are damaged, or reference and background do not go together.
    """

    def __init__(
        self,
        network: OnnxModel,
        *,
        reference: NDArray[Any] | None = None,
        background: str | None = None,
        refine: bool = True,
    ) -> None:
        super().__init__(network)
        self._reader = FieldReader(
            HologramSettings.from_card(network.card.hologram), reference=reference, background=background
        )
        recipe = network.card.hologram
        try:
            self._every, self._spheres = int(recipe["pixels_per_cell"]), bool(recipe["spheres"])
            self._planes_um = tuple(map(float, recipe["planes_um"]))
            self._z_um, self._noisiest = (network.card.trained_ranges[name] for name in ("z_um", "field_noise"))
        except (KeyError, TypeError, ValueError) as exc:
            raise ValueError(f"the model card's hologram settings are damaged: {exc}; export the model again") from exc
        self._dark = bool(recipe.get("dark", False))
        self._refine = refine
        self._tools: tuple[FocalPlanes, ParticleRefiner] | None = None
        self._told_noise = False

    @property
    def settings(self) -> HologramSettings:
        """What the holograms must be."""
        return self._reader.settings

    @property
    def field_noise(self) -> float:
        """Of the field read last, per component; NaN before the first."""
        return self._reader.noise

    def detect(self, image: NDArray[Any]) -> Detections:
        """Find the particles of the next frame.

        Parameters
        ----------
        image : (H, W), or (2, H, W) for the kind `field`
            Camera pixels.

        Returns
        -------
        Detections
            With `field`, and in `notes` what is newly wrong with the hologram.

        Raises
        ------
        ValueError
            If the frame does not fit the model or the reference, or nothing was imaged.
        """
        check_pixels(image)
        field = self._reader.read(image)
        if self._tools is None or self._tools[0].field_shape != field.shape:
            self._tools = self._make_tools((field.shape[0], field.shape[1]))
        planes, refiner = self._tools
        light = light_of_dark(field) if self._dark else field
        found = self._network.run(planes.of(light - np.complex64(1)))
        columns: dict[str, Any] = found.columns()
        if self._refine and len(found):
            columns |= self._measured(refiner, light, found)
        return Detections(**columns, field=field, notes=tuple(self._notes(image)))

    def _make_tools(self, shape: tuple[int, int]) -> tuple[FocalPlanes, ParticleRefiner]:
        """Prepare for fields of this shape."""
        optics = self.settings.field_optics
        low, high = self._z_um
        beyond_um = (AMPLE - 1) * max(abs(low), abs(high))
        reach_um = max(3 * depth_of_focus_um(optics), 5 * self.card.quality["view_z_rmse_um"])
        refiner = ParticleRefiner.for_optics(
            optics,
            z_um=(low - beyond_um, high + beyond_um),
            shape=shape,
            spheres=self._spheres,
            half_range_um=reach_um,
        )
        return FocalPlanes(optics, shape, self._every, self._planes_um), refiner

    def _measured(
        self, refiner: ParticleRefiner, field: NDArray[np.complex64], found: Detections
    ) -> dict[str, NDArray[np.float32]]:
        """Return the columns that the field tells better than the network."""
        columns = found.columns()
        per_px = self.settings.pixels_per_cell
        at_px = found.yx_px / per_px
        coarse_um = columns["z_um"].astype(np.float64)
        measured = refiner.measure(field, at_px, coarse_um, noise=self._reader.noise)
        z = measured.z
        in_focus = ~(z.at_edge | z.weak) & np.isfinite(measured.sigma_yx_px).all(axis=1)
        weighed = in_focus & np.isfinite(measured.polarizability_um3)
        low, high = self._z_um
        z_um = np.where(in_focus, z.z_um, coarse_um)
        flags = columns["flags"].astype(int) & ~int(Flag.OUTSIDE_Z)
        for bad, flag in (
            ((z_um < low) | (z_um > high), Flag.OUTSIDE_Z),
            (z.weak, Flag.WEAK),
            (z.near_neighbour, Flag.NEAR_NEIGHBOUR),
            (~in_focus & ~z.weak, Flag.NO_FOCUS),
            (in_focus & ~weighed, Flag.OUTSIDE_SIGNAL),
            (z.conjugate, Flag.CONJUGATE),
        ):
            flags |= np.where(bad, int(flag), 0)
        better = {
            "y_px": (measured.yx_px[:, 0] * per_px, in_focus),
            "x_px": (measured.yx_px[:, 1] * per_px, in_focus),
            "sigma_y_px": (measured.sigma_yx_px[:, 0] * per_px, in_focus),
            "sigma_x_px": (measured.sigma_yx_px[:, 1] * per_px, in_focus),
            "z_um": (z.z_um, in_focus),
            "sigma_z_um": (z.sigma_z_um, in_focus),
            "polarizability_um3": (measured.polarizability_um3, weighed),
            "flags": (flags, np.ones(len(flags), bool)),
        }
        return {name: np.where(use, value, columns[name]).astype(np.float32) for name, (value, use) in better.items()}

    def _notes(self, image: NDArray[Any]) -> list[str]:
        notes = self._reader.notes(image)
        if not self._told_noise and self._reader.noise > NOISY * self._noisiest[1]:
            self._told_noise = True
            notes.append(
                f"the field's noise is {self._reader.noise:.3g} per component, the training had at most "
                f"{self._noisiest[1]:.3g}: particles will be missed and z is less sure; take a new --reference, or "
                "train on a frame of now"
            )
        return notes

    def check(self, frame: Frame) -> None:
        """Refuse a frame of another instrument, as far as it tells where it comes from.

        Raises
        ------
        ValueError
            As `HologramSettings.check_frame`.
        """
        self.settings.check_frame(frame.pixel_size_um, frame.metadata)
