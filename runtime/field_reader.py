"""Camera frames become complex fields with background 1 + 0i: `FieldReader`, told how by `HologramSettings`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.field_background import (
    MedianBackground,
    field_noise,
    normalised,
    polynomial_background,
    without_reference,
)
from oneframe.runtime.holography import OffAxisDemodulator, find_carrier, inline_field, saturation_warning
from oneframe.runtime.optics import Optics
from oneframe.runtime.refocus import Complex2D

KINDS = ("off-axis", "in-line", "field")
BACKGROUNDS = ("reference", "median", "polynomial", "none")
SAME = 0.01
"""Largest relative difference of a pixel size or a wavelength that passes as the same."""
EVERY = 25
"""Frames from one look at saturation and carrier to the next."""


@dataclass(frozen=True, slots=True)
class HologramSettings:
    """What is known of an instrument's holograms.

    Raises
    ------
    ValueError
        If the kind is unknown.
    """

    kind: str
    """`off-axis`, `in-line`, or `field`: Re and Im as (2, H, W), from an instrument that demodulates."""
    optics: Optics
    """Of the frames as they come."""
    carrier_yx_per_um: tuple[float, float] | None = None
    """Of an off-axis hologram, cycles per micrometre; None: found in the first hologram that is read."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"expected a hologram kind among {', '.join(KINDS)}, got {self.kind!r}")

    @property
    def pixels_per_cell(self) -> int:
        """Pixels of the frame per pixel of its field, along each axis."""
        return 2 if self.kind == "off-axis" else 1

    @property
    def field_optics(self) -> Optics:
        """Of the fields."""
        return self.optics.with_pixel(self.pixels_per_cell * self.optics.pixel_um)

    def to_card(self) -> dict[str, Any]:
        """Return what a model card keeps of it."""
        return asdict(self)

    @classmethod
    def from_card(cls, values: Mapping[str, Any]) -> HologramSettings:
        """Read what `to_card` gave, after its way through JSON.

        Raises
        ------
        ValueError
            If something is missing or makes no sense.
        """
        try:
            carrier = values["carrier_yx_per_um"]
            return cls(
                values["kind"], Optics(**values["optics"]), None if carrier is None else (carrier[0], carrier[1])
            )
        except (KeyError, TypeError, IndexError) as exc:
            raise ValueError(f"the model card's hologram settings are damaged: {exc}; export the model again") from exc

    def check_frame(self, pixel_um: float | None, metadata: Mapping[str, Any]) -> None:
        """Refuse frames of another instrument, as far as they tell what they come from.

        Raises
        ------
        ValueError
            If pixel size, wavelength, medium, aperture or kind differ by more than a hundredth.
        """
        told = {"pixel_um": pixel_um, **{name: metadata.get(name) for name in ("wavelength_um", "medium_index", "na")}}
        for name, value in told.items():
            wanted = getattr(self.optics, name)
            if isinstance(value, int | float) and abs(value - wanted) > SAME * wanted:
                raise ValueError(
                    f"the model was trained for {name} {wanted:g}, the frames have {value:g}: z and polarizability "
                    "would be wrong; train on a frame of this instrument"
                )
        kind = metadata.get("kind")
        if kind in KINDS and kind != self.kind:
            raise ValueError(f"the model takes {self.kind} holograms, the frames are {kind}; train on one of these")


class FieldReader:
    """Turns the frames of one instrument into fields, in order; one instance belongs to one thread.

    Parameters
    ----------
    settings : HologramSettings
    reference : (H, W) or, for the kind `field`, (2, H, W), optional
        A frame without particles, in the same light.
    background : str, optional
        `reference`: divide by the reference's field. `polynomial`: by a smooth surface, fitted to each field anew
        (slow, right for single frames). `median`: by the median of the fields over the last seconds, and by a
        polynomial fitted to the first one until there are enough. `none`: by one number only. By default `reference`
        where there is one, else `polynomial`.

    Raises
    ------
    ValueError
        If reference and background do not go together.
    """

    def __init__(
        self, settings: HologramSettings, *, reference: NDArray[Any] | None = None, background: str | None = None
    ) -> None:
        self.background = background or ("polynomial" if reference is None else "reference")
        if self.background not in BACKGROUNDS:
            raise ValueError(f"expected a background among {', '.join(BACKGROUNDS)}, got {background!r}")
        if (self.background == "reference") != (reference is not None):
            raise ValueError(
                f"expected a reference frame with the background 'reference' and only then, got {self.background!r} "
                f"and {'none' if reference is None else 'one'}; give --reference EMPTY.tif, or another background"
            )
        self.settings = settings
        self.noise = math.nan
        """Of the field read last, per component, robust; see `field_noise`."""
        self._reference = reference
        self._over_reference: Complex2D | None = None
        self._demodulator: OffAxisDemodulator | None = None
        self._median: MedianBackground | None = None
        self._smooth: Complex2D | None = None
        self._shape: tuple[int, ...] = ()
        self._raw_field: Complex2D | None = None  # where it is looked at: with the background still in it
        self._n_read = 0
        self._found_here = False  # the carrier, in the first frame itself
        self._told: set[str] = set()

    def read(self, image: NDArray[Any]) -> Complex2D:
        """Return the field of the next frame, background 1 + 0i, (h, w) complex64.

        Raises
        ------
        ValueError
            If the frame does not fit the settings or the reference, or shows no light.
        """
        if image.shape != self._shape:
            self._start(image)
        raw = self._raw(image)
        if self._over_reference is not None:
            field = normalised(raw * self._over_reference)
        elif self._median is not None:
            field = self._without_median(raw, self._median)
        elif self.background == "polynomial":
            field = normalised(raw / polynomial_background(raw))
        else:
            field = normalised(raw)
        self._n_read += 1
        self._raw_field = raw if self._n_read % EVERY == 1 else None
        self.noise = field_noise(field)
        return field

    def notes(self, image: NDArray[Any]) -> list[str]:
        """Return what the user should know since the last call, each sentence once; `image` was read last."""
        found = []
        if self._n_read == 1:
            found.append(self._demodulator.warning if self._demodulator else self.settings.field_optics.field_warning())
        if self._n_read % EVERY == 1:
            if self.settings.kind != "field":
                found.append(saturation_warning(image))
            if self._demodulator and self._raw_field is not None and (self._n_read > 1 or not self._found_here):
                found.append(self._demodulator.drift_warning(self._raw_field))
        kinds = [re.sub(r"\d[\d.e+-]*", "", text) for text in found]  # the numbers change from frame to frame
        fresh = [text for text, kind in zip(found, kinds, strict=True) if text and kind not in self._told]
        self._told.update(kinds)
        return fresh

    def _start(self, image: NDArray[Any]) -> None:
        """Prepare for frames of this shape."""
        wanted = (
            "Re and Im (2, H, W)" if self.settings.kind == "field" else f"one plane (H, W) of an {self.settings.kind}"
        )
        fits = image.ndim == 3 and len(image) == 2 if self.settings.kind == "field" else image.ndim == 2
        if not fits or min(image.shape[-2:]) < 32:
            raise ValueError(f"expected {wanted} hologram of 32 px or more, got shape {image.shape}; snap a frame anew")
        if self._reference is not None and self._reference.shape != image.shape:
            raise ValueError(
                f"expected frames of the reference's shape {self._reference.shape}, got {image.shape}; snap a "
                "reference with the same region of the camera"
            )
        if self.settings.kind == "off-axis":
            sharpest = image if self._reference is None else self._reference
            self._found_here = self.settings.carrier_yx_per_um is None and self._reference is None
            carrier = self.settings.carrier_yx_per_um or find_carrier(sharpest, self.settings.optics)
            self.settings = replace(self.settings, carrier_yx_per_um=carrier)
            self._demodulator = OffAxisDemodulator(self.settings.optics, (image.shape[0], image.shape[1]), carrier)
        self._shape = image.shape
        if self._reference is not None and self.settings.kind != "in-line":
            empty = self._raw(self._reference)
            self._over_reference = without_reference(np.ones_like(empty), empty)
        height, width = (n // self.settings.pixels_per_cell for n in image.shape[-2:])
        self._median = MedianBackground((height, width)) if self.background == "median" else None
        self._smooth = None

    def _raw(self, image: NDArray[Any]) -> Complex2D:
        """Return the field with the background still in it; in-line with a reference: without."""
        if self._demodulator is not None:
            return self._demodulator.field(image)
        if self.settings.kind == "field":
            return np.asarray(image[0] + 1j * image[1], np.complex64)
        if self._reference is not None:
            return inline_field(image, self._reference)
        return image.astype(np.complex64)

    def _without_median(self, raw: Complex2D, median: MedianBackground) -> Complex2D:
        median.add(raw)
        if median.settled:
            return median.remove(raw)
        if self._smooth is None:
            self._smooth = polynomial_background(raw)
        return normalised(raw / self._smooth)
