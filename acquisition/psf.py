"""The point spread function of single emitters: a Gaussian integrated over pixels, astigmatic in z where calibrated."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Width:
    """Width of the image of an emitter along one axis: sigma^2 = sigma_0^2 (1 + u^2 + a u^3 + b u^4), u = (z - c) / d.

    References
    ----------
    Huang et al., Science 319, 810 (2008), supplement eq. 1.
    """

    sigma_px: float
    """Least width, at z = `focus_um`."""
    focus_um: float = 0.0
    """c: where this axis is in focus."""
    depth_um: float = float("inf")
    """d: the distance from there at which the width has grown by sqrt(2); infinite: the same at every z."""
    cubic: float = 0.0
    quartic: float = 0.0

    def __post_init__(self) -> None:
        if not self.sigma_px > 0 or not self.depth_um > 0:
            raise ValueError(f"sigma_px and depth_um must be above 0, got {self.sigma_px} and {self.depth_um}")

    def at(self, z_um: Array) -> Array:
        """Return sigma, px, at each z."""
        u = (np.asarray(z_um, float) - self.focus_um) / self.depth_um
        growth: Array = 1 + u**2 + self.cubic * u**3 + self.quartic * u**4
        return self.sigma_px * np.sqrt(np.maximum(growth, 0.05))


@dataclass(frozen=True, slots=True)
class GaussianPsf:
    """Width along y and x; equal and without z for a plain two-dimensional instrument."""

    y: Width
    x: Width
    z_range_um: tuple[float, float] = (0.0, 0.0)
    """Where the calibration holds; (0, 0): two-dimensional."""

    @classmethod
    def flat(cls, sigma_px: float) -> GaussianPsf:
        """Return the round, two-dimensional function of this width, px."""
        return cls(Width(sigma_px), Width(sigma_px))

    @property
    def has_z(self) -> bool:
        """Whether the shape tells z."""
        return self.z_range_um[1] > self.z_range_um[0]

    def sigmas(self, z_um: Array) -> tuple[Array, Array]:
        """Return sigma_y and sigma_x, px, at each z (N,), micrometres."""
        return self.y.at(z_um), self.x.at(z_um)

    def to_json(self) -> str:
        """Return the calibration as JSON."""
        values = asdict(self)
        for axis in ("y", "x"):
            if values[axis]["depth_um"] == float("inf"):
                del values[axis]["depth_um"]
        return json.dumps({"format": "oneframe-psf", "version": 1, **values}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> GaussianPsf:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError
            If it is no such calibration; the text says what is wrong.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            if values.get("format") != "oneframe-psf" or values.get("version") != 1:
                raise ValueError("it is not marked as one")
            known = {f.name for f in fields(Width)}
            if set(values["y"]) - known or set(values["x"]) - known:
                raise ValueError("it has fields of another version")
            low, high = values["z_range_um"]
            return cls(Width(**values["y"]), Width(**values["x"]), (float(low), float(high)))
        except (KeyError, TypeError, AttributeError, ValueError) as exc:
            raise ValueError(
                f"expected a calibration of the point spread function, got something else ({exc}); make one with: "
                "oneframe calibrate-psf"
            ) from exc


def pixel_shares(centre_px: Array, sigma_px: Array, n_pixels: int) -> Array:
    """Return the share of an emitter's light that each pixel of a line gets, (N, n_pixels).

    Parameters
    ----------
    centre_px, sigma_px : (N,)
        Position and width; pixel i reaches from i - 0.5 to i + 0.5. What is farther than 6 sigma gets nothing.

    References
    ----------
    Smith et al., Nat. Methods 7, 373 (2010), eq. 4a (integrated over pixels).
    """
    from scipy.special import erf

    centre, sigma = np.asarray(centre_px, float), np.asarray(sigma_px, float)
    shares = np.zeros((centre.size, n_pixels))
    if not centre.size:
        return shares
    reach = np.arange(-math.ceil(6 * sigma.max()) - 1, math.ceil(6 * sigma.max()) + 3)  # beyond: less than 1e-8
    pixel = np.rint(centre).astype(np.int64)[:, None] + reach
    below = erf((pixel - 0.5 - centre[:, None]) / (np.sqrt(2) * sigma[:, None]))
    emitter, column = np.nonzero((pixel[:, :-1] >= 0) & (pixel[:, :-1] < n_pixels))
    shares[emitter, pixel[emitter, column]] = 0.5 * (below[emitter, column + 1] - below[emitter, column])
    return shares


def render(y_px: Array, x_px: Array, photons: Array, sigma_y: Array, sigma_x: Array, shape: tuple[int, int]) -> Array:
    """Return the expected image (H, W) of emitters (N,) without background, photoelectrons per pixel."""
    rows = pixel_shares(y_px, sigma_y, shape[0]) * np.asarray(photons)[:, None]
    image: Array = rows.T @ pixel_shares(x_px, sigma_x, shape[1])
    return image
