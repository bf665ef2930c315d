"""What the microscope is, and which holograms it can record: `Optics`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

_RANGES = {
    "wavelength_um": (0.1, 5.0, "the vacuum wavelength in micrometres, 0.633 for 633 nm"),
    "medium_index": (1.0, 3.0, "the refractive index round the particles, 1.33 for water"),
    "na": (0.005, 1.75, "the numerical aperture of the objective"),
    "pixel_um": (0.001, 50.0, "the camera's pixel over the magnification, in micrometres"),
}


@dataclass(frozen=True, slots=True)
class Optics:
    """Wavelength, medium, aperture and pixel of a hologram or a field.

    Raises
    ------
    ValueError
        If a value is outside what a microscope can have, most likely because of its unit.
    """

    wavelength_um: float
    """In vacuum."""
    medium_index: float
    """Of what surrounds the particles: waves are propagated with it, so that z is true micrometres in the sample."""
    na: float
    pixel_um: float
    """In the sample."""

    def __post_init__(self) -> None:
        for name, (low, high, meaning) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"expected {name} between {low:g} and {high:g}, got {value:g}; give {meaning}")

    @property
    def wavenumber_per_um(self) -> float:
        """In the medium, radians per micrometre."""
        return 2 * math.pi * self.medium_index / self.wavelength_um

    @property
    def pupil_radius_per_um(self) -> float:
        """Highest frequency of the field, cycles per micrometre; an NA above the medium's index passes no more."""
        return min(self.na, self.medium_index) / self.wavelength_um

    @property
    def off_axis_pixel_um(self) -> float:
        """Largest pixel that keeps zero order and sideband apart, with fringes along the diagonal."""
        return 1 / (2 * (1 + math.sqrt(2)) * self.pupil_radius_per_um)

    def with_pixel(self, pixel_um: float) -> Optics:
        """Return the same optics at another pixel."""
        return replace(self, pixel_um=pixel_um)

    def z_limit_um(self, width_um: float) -> float:
        """Return how far out of focus a particle may be in a window of this width, in micrometres.

        Up to this |z| the cone of light through the inner half of the pupil's area stays within the window; farther
        out z and polarizability rest on few rays.
        """
        sine = self.pupil_radius_per_um * self.wavelength_um / self.medium_index / math.sqrt(2)
        return width_um / 2 * math.sqrt(1 - sine**2) / sine

    def field_warning(self) -> str:
        """Return what follows if the pixels are too coarse for an in-line hologram or a field; else an empty text."""
        limit_um = 1 / (2 * self.pupil_radius_per_um)
        if self.pixel_um <= limit_um * 1.0001:
            return ""
        return (
            f"the pixels are too coarse for NA {self.na:g}: {self.pixel_um:.4g} um, at most {limit_um:.4g} um; the "
            "steep waves fold back and look like noise, z and polarizability suffer; use more magnification"
        )

    def off_axis_warning(self, carrier_yx_per_um: tuple[float, float]) -> str:
        """Return which part of the off-axis sampling law is broken and what follows; an empty text if it holds.

        The law: |f_c| >= 2 NA / wavelength, so that the zero order stays out of the sideband (for weak scatterers), and
        |f_cx| + NA / wavelength <= 1 / (2 pixel), likewise in y, so that the sideband stays on the camera.
        """
        pupil, nyquist = self.pupil_radius_per_um, 1 / (2 * self.pixel_um)
        carrier, steepest = math.hypot(*carrier_yx_per_um), max(map(abs, carrier_yx_per_um))
        leaks, folds = carrier < 2 * pupil * 0.999, steepest + pupil > nyquist * 1.001  # a thousandth does no harm
        if not leaks and not folds:
            return ""
        follows = []
        if leaks:
            follows.append(f"the zero order leaks into the field (carrier {carrier:.3g} of {2 * pupil:.3g} cycles/um)")
        if folds:
            follows.append(f"the sideband folds back ({steepest + pupil:.3g} of at most {nyquist:.3g} cycles/um)")
        coarsest_um = self.off_axis_pixel_um
        if self.pixel_um > coarsest_um * 1.001:
            remedy = f"use pixels of at most {coarsest_um:.4g} um (now {self.pixel_um:.4g}), or close the aperture"
        elif leaks:
            remedy = "tilt the reference wave more, along the diagonal of the camera"
        else:
            remedy = "turn the fringes to the diagonal of the camera, or tilt the reference wave less"
        return f"{' and '.join(follows)}: the field is noisier than it need be, z and polarizability suffer; {remedy}"
