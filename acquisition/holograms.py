"""Simulated holograms: Mie spheres that diffuse in three dimensions, their exact field, and the truth."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.mie import scattering_amplitudes
from oneframe.acquisition.simulated_source import SimulatedSource, scene_of
from oneframe.acquisition.source import SourceError, SourceURL

logger = logging.getLogger(__name__)

KINDS = ("off-axis", "in-line", "field")
_BOLTZMANN_J_PER_K = 1.380649e-23


@dataclass(frozen=True, slots=True)
class HologramScene:
    """Spheres that diffuse between walls in a liquid, seen by a holographic microscope.

    Each field is also an option of the SOURCE `sim:hologram?field=value&...`; lists are written with commas. With
    `n=0` the same seed gives the same light without spheres: the reference hologram.

    Raises
    ------
    ValueError
        If a value makes no sense, or the pixels are too coarse to hold the field at all.
    """

    kind: str = "off-axis"
    """`off-axis`, `in-line`, or `field`: the complex amplitude itself, as an instrument that demodulates gives it."""
    width: int = 512
    """Columns of the camera, px; even."""
    height: int = 512
    """Rows of the camera, px; even."""
    n: int = 5
    """Number of spheres."""
    radius_um: tuple[float, ...] = (0.228,)
    """Radius, micrometres; several are dealt out in turn."""
    index: tuple[float, ...] = (1.58,)
    """Refractive index, one for all or one a radius; below `medium_index` the contrast is negative."""
    pixel_um: float = 0.1
    """Edge of a camera pixel in the sample, micrometres. Frames of the kind `field` have pixels twice as large."""
    na: float = 1.3
    """Numerical aperture of the objective, below `medium_index`."""
    wavelength_um: float = 0.633
    """Wavelength in vacuum, micrometres."""
    medium_index: float = 1.33
    """Refractive index of the liquid."""
    photons: float = 20000.0
    """Mean photoelectrons per pixel at the centre of a frame without spheres; reference and object light together."""
    read_noise: float = 1.5
    """Standard deviation of the read noise, electrons."""
    full_well: float = 0.0
    """Electrons at which the camera saturates; 0: three times `photons`."""
    bits: int = 12
    """Bits of the camera; the counts come as uint16."""
    field_noise: float = 0.0
    """Stray light in the object beam, new in each frame: standard deviation of Re and of Im (background 1)."""
    aberration: float = 2.0
    """Phase by which the reference beam's curvature leads in the corners of the frame, rad (off-axis)."""
    vignetting: float = 0.1
    """Fraction of the light that is missing in the corners of the frame (off-axis and in-line)."""
    carrier: tuple[float, ...] = ()
    """Spatial frequency (y, x) of the reference beam, cycles per micrometre; empty: as the sampling law has it."""
    z_um: float = 4.0
    """Half the distance between the reflecting walls below and above, micrometres; 0: all spheres stay in one plane."""
    z_mid_um: float = 0.0
    """Half-way between these walls; the plane of focus is 0, positive is away from the lamp."""
    margin: float = 40.0
    """Reflecting walls at the sides, px inside the frame's edge; below 0: spheres can leave the frame."""
    separation_um: float = 0.0
    """Distance across the optical axis that two spheres keep; they never overlap in space in any case."""
    diffusion: float | None = None
    """Diffusion constant of every sphere, um^2/s; None: by Stokes and Einstein."""
    temperature_k: float = 293.0
    """Temperature, kelvin."""
    viscosity_mpa_s: float = 1.002
    """Viscosity of the liquid, mPa s: water at 293 K."""
    dt_s: float = 0.0333
    """Time from frame to frame, seconds."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"expected kind {', '.join(KINDS)}, got {self.kind!r}; write one of the three")
        if min(self.width, self.height) < 32 or self.width % 2 or self.height % 2:
            raise ValueError(
                f"expected an even width and height of 32 px or more, got {self.width} x {self.height}; round them up"
            )
        for name in ("pixel_um", "na", "wavelength_um", "photons", "dt_s", "temperature_k", "viscosity_mpa_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name):g}")
        if self.na >= self.medium_index:
            raise ValueError(
                f"na must be below medium_index {self.medium_index:g}, got {self.na:g}: "
                "no wave in the liquid is steeper; lower na"
            )
        if not self.radius_um or not min(self.radius_um) > 0:
            raise ValueError(f"radius_um must be above 0, got {_comma(self.radius_um)}; for no spheres write n=0")
        if not self.index or not min(self.index) > 0:
            raise ValueError(f"index must be above 0, got {_comma(self.index)}")
        if len(self.index) not in (1, len(self.radius_um)):
            raise ValueError(
                f"expected one index or one for each of {len(self.radius_um)} radii, got {len(self.index)}; "
                "write as many as radius_um has"
            )
        if len(self.carrier) not in (0, 2):
            raise ValueError(f"carrier must be two numbers, y and x in cycles/um, got {_comma(self.carrier)!r}")
        if not 1 <= self.bits <= 16:
            raise ValueError(f"bits must be from 1 to 16, got {self.bits}")
        if not 0 <= self.vignetting < 1:
            raise ValueError(f"vignetting must be from 0 to below 1, got {self.vignetting:g}")
        coarsest_um = self.wavelength_um / self.na / (4 if self.kind == "field" else 2)
        if self.pixel_um > coarsest_um:
            raise ValueError(
                f"pixel_um must be at most {coarsest_um:.4f} to hold the field of NA {self.na:g} "
                f"(kind {self.kind}), got {self.pixel_um:g}; use a smaller pixel_um or na"
            )

    @property
    def frame_pixel_um(self) -> float:
        """Edge of a pixel of the frames, micrometres."""
        return self.pixel_um * (2 if self.kind == "field" else 1)

    @property
    def carrier_per_um(self) -> tuple[float, float]:
        """Spatial frequency (y, x) of the reference beam, cycles per micrometre."""
        if self.carrier:
            return self.carrier[0], self.carrier[1]
        cutoff = self.na / self.wavelength_um
        nearest, farthest = math.sqrt(2) * cutoff, 0.5 / self.pixel_um - cutoff  # along each axis
        best = round((nearest + farthest) / 2, 2)
        return best, best

    @property
    def electrons_at_saturation(self) -> float:
        """Photoelectrons that give the highest count."""
        return self.full_well or 3 * self.photons


def sampling_warning(scene: HologramScene) -> str | None:
    """Return what is wrong if the object's light does not lie apart from its own intensity in the spectrum."""
    if scene.kind != "off-axis":
        return None
    cutoff, nyquist = scene.na / scene.wavelength_um, 0.5 / scene.pixel_um
    fy, fx = scene.carrier_per_um
    distance, edge = math.hypot(fy, fx), max(abs(fy), abs(fx)) + cutoff
    if distance >= 2 * cutoff and edge <= nyquist:
        return None
    return (
        f"off-axis sampling needs a carrier of {2 * cutoff:.3f} cycles/um or more that stays below "
        f"{nyquist - cutoff:.3f} along y and x; ({fy:g}, {fx:g}) is not, so the field will carry an error of its own; "
        f"use pixel_um <= {scene.wavelength_um / (2 * (1 + math.sqrt(2)) * scene.na):.4f} and the default carrier"
    )


def stokes_einstein_um2_s(radius_um: float, temperature_k: float, viscosity_mpa_s: float) -> float:
    """Return the diffusion constant of a sphere, um^2/s.

    >>> round(stokes_einstein_um2_s(0.228, 293.0, 1.002), 3)
    0.939
    """
    return _BOLTZMANN_J_PER_K * temperature_k / (6 * math.pi * viscosity_mpa_s * radius_um) * 1e21


def polarizability_um3(
    radius_um: NDArray[np.float64], index: NDArray[np.float64], medium_index: float
) -> NDArray[np.float64]:
    """Return 3 V (n^2 - n_m^2) / (n^2 + 2 n_m^2) of spheres, um^3 (Clausius and Mossotti)."""
    squared, medium = index**2, medium_index**2
    return 4 * np.pi * radius_um**3 * (squared - medium) / (squared + 2 * medium)


@dataclass(frozen=True, slots=True, eq=False)
class SphereTruth:
    """The spheres of one frame, as they really are; all columns have shape (N,)."""

    particle_id: NDArray[np.int64]
    y_px: NDArray[np.float64]
    """In pixels of the frame that was given: the camera's, or those of the field at half the camera's sampling."""
    x_px: NDArray[np.float64]
    z_um: NDArray[np.float64]
    """Distance from the plane of focus; the field propagated by +z_um is in focus at the sphere."""
    radius_um: NDArray[np.float64]
    index: NDArray[np.float64]
    polarizability_um3: NDArray[np.float64]


class SphereMotion:
    """Brownian spheres between walls, frame by frame; needs no images, so truth can be replayed from the seed.

    Raises
    ------
    ValueError
        If the spheres find no room.
    """

    def __init__(self, scene: HologramScene) -> None:
        self._scene = scene
        self._rng = np.random.default_rng([scene.seed, 1])
        species = np.arange(scene.n) % len(scene.radius_um)
        self._radius_um = np.array(scene.radius_um)[species]
        self._index = np.broadcast_to(np.array(scene.index), len(scene.radius_um))[species]
        margin_um = scene.margin * scene.pixel_um
        edge_um = -0.5 * scene.pixel_um
        self._low_um = np.array([scene.z_mid_um - scene.z_um, edge_um + margin_um, edge_um + margin_um])
        sides_um = np.array([scene.height, scene.width]) * scene.pixel_um - 2 * margin_um
        self._room_um = np.array([2 * scene.z_um, *sides_um])
        if sides_um.min() <= 0:
            raise ValueError(
                f"a margin of {scene.margin:g} px on each side leaves no room in {scene.width} x {scene.height} px; "
                "lower margin"
            )
        diffusion_um2_s = [
            stokes_einstein_um2_s(radius_um, scene.temperature_k, scene.viscosity_mpa_s)
            if scene.diffusion is None
            else scene.diffusion
            for radius_um in self._radius_um
        ]
        self._step_um = np.sqrt(2 * np.array(diffusion_um2_s) * scene.dt_s)
        self._position_um = np.full((scene.n, 3), np.inf)  # z, y, x
        for i in range(scene.n):
            self._place(i)

    def advance(self) -> None:
        """Move on to the next frame."""
        target_um = self._position_um + self._step_um[:, None] * self._rng.standard_normal(self._position_um.shape)
        # folded at the walls as often as it takes
        beyond_um = np.mod(target_um - self._low_um, 2 * np.maximum(self._room_um, 1e-12))
        target_um = self._low_um + np.minimum(beyond_um, 2 * self._room_um - beyond_um).clip(min=0)
        for i, position_um in enumerate(target_um):
            if self._is_free(position_um, i):
                self._position_um[i] = position_um

    def spheres(self) -> SphereTruth:
        """Return all spheres, also those outside the frame."""
        return self._truth(np.ones(self._scene.n, bool))

    def truth(self) -> SphereTruth:
        """Return the spheres whose centre lies within the frame."""
        centre_px = self._position_um[:, 1:] / self._scene.pixel_um
        limits = np.array([self._scene.height, self._scene.width]) - 0.5
        return self._truth(np.all((centre_px >= -0.5) & (centre_px < limits), axis=1))

    def _truth(self, chosen: NDArray[np.bool_]) -> SphereTruth:
        z_um, y_um, x_um = self._position_um[chosen].T
        radius_um, index = self._radius_um[chosen], self._index[chosen]
        pixel_um = self._scene.frame_pixel_um
        polarizability = polarizability_um3(radius_um, index, self._scene.medium_index)
        return SphereTruth(
            np.flatnonzero(chosen), y_um / pixel_um, x_um / pixel_um, z_um, radius_um, index, polarizability
        )

    def _place(self, i: int) -> None:
        for _attempt in range(1000):
            position_um = self._low_um + self._rng.random(3) * self._room_um
            if self._is_free(position_um, i):
                self._position_um[i] = position_um
                return
        raise ValueError(f"expected room for {self._scene.n} spheres, found it for {i}; lower n or separation_um")

    def _is_free(self, position_um: NDArray[np.float64], own: int) -> bool:
        offset_um = self._position_um - position_um
        offset_um[own] = np.inf
        overlaps = (offset_um**2).sum(axis=1) < (self._radius_um + self._radius_um[own]) ** 2
        too_near = (offset_um[:, 1:] ** 2).sum(axis=1) < self._scene.separation_um**2
        return not (overlaps | too_near).any()


class FieldSynthesis:
    """The field of spheres in the plane of focus, made in the pupil: exact within the aperture, x-polarised.

    The scattered wave of a sphere at r_p, z_p is, per spatial frequency (k = 2 pi n_m / wavelength, time exp(-i w t)),

        E_s(k) = -2 pi / (k kz) (S2 cos^2 phi + S1 sin^2 phi) exp(-i k.r_p - i (kz - k) z_p)

    (Bohren and Huffman, eq. 4.74 and 4.75, as a sum of plane waves.) Light that one sphere scatters on to the next is
    left out, and so is the objective's apodisation. Fields are points of the wave, not means over a pixel. The plane
    computed is twice as high and wide as the frame, so that what leaves the frame on one side does not come back on the
    other.
    """

    def __init__(self, scene: HologramScene) -> None:
        from scipy.fft import next_fast_len

        self._scene = scene
        self._plane = [2 * next_fast_len(n) for n in (scene.height, scene.width)]  # even, for half sampling
        cutoff = scene.na / scene.wavelength_um
        self._k_per_um = 2 * np.pi * scene.medium_index / scene.wavelength_um
        self._ky, self._kx = (_wave_numbers(cutoff, n * scene.pixel_um) for n in self._plane)
        across = self._ky[:, None] ** 2 + self._kx[None, :] ** 2
        self._pupil = across <= (2 * np.pi * cutoff) ** 2
        self._kz = np.sqrt(np.where(self._pupil, self._k_per_um**2 - across, self._k_per_um**2))
        self._axial = (self._kz - self._k_per_um).astype(np.float32)
        self._amplitudes: dict[tuple[float, float], NDArray[np.complex64]] = {}
        self._wave = np.empty(self._pupil.shape, np.complex64)

    def scattered(self, spheres: SphereTruth) -> NDArray[np.complex64]:
        """Return the spectrum of the spheres' light over the pupil, for `sample`."""
        spectrum = np.zeros(self._pupil.shape, np.complex64)
        pixel_um = self._scene.frame_pixel_um
        columns = (spheres.y_px, spheres.x_px, spheres.z_um, spheres.radius_um, spheres.index)
        for y_px, x_px, z_um, radius_um, index in zip(*columns, strict=True):
            phase = self._axial * np.float32(-z_um)
            np.cos(phase, out=self._wave.real)
            np.sin(phase, out=self._wave.imag)
            self._wave *= self._amplitude(float(radius_um), float(index))
            self._wave *= np.exp(-1j * self._ky * y_px * pixel_um).astype(np.complex64)[:, None]
            self._wave *= np.exp(-1j * self._kx * x_px * pixel_um).astype(np.complex64)
            spectrum += self._wave
        return spectrum

    def stray(self, noise: float, rng: np.random.Generator) -> NDArray[np.complex64]:
        """Return the spectrum of random light within the pupil, of standard deviation `noise` in Re and in Im."""
        parts = rng.standard_normal((*self._pupil.shape, 2), dtype=np.float32)
        parts *= noise / math.sqrt(np.count_nonzero(self._pupil))
        return parts.view(np.complex64)[..., 0] * self._pupil

    def sample(self, spectrum: NDArray[np.complex64], *, every: int) -> NDArray[np.complex64]:
        """Return 1 + the spectrum's field at each (`every` 1) or each second (2) pixel, (H / every, W / every).

        Raises
        ------
        ValueError
            If that is too coarse for the aperture.
        """
        from scipy.fft import ifft

        step_um, coarsest_um = every * self._scene.pixel_um, self._scene.wavelength_um / self._scene.na / 2
        if step_um > coarsest_um:
            raise ValueError(
                f"expected samples of the field at most {coarsest_um:.4f} um apart, got {step_um:g} um; use every=1"
            )
        n_rows, n_columns = (n // every for n in self._plane)
        height, width = self._scene.height // every, self._scene.width // every
        # along each axis only what the pupil holds goes in, and only the frame comes out
        columns = ifft(_from_zero(spectrum, n_rows, 0), axis=0, norm="forward", overwrite_x=True)[:height]
        field = ifft(_from_zero(columns, n_columns, 1), axis=1, norm="forward", overwrite_x=True)[:, :width]
        return np.asarray(field + np.complex64(1))

    def _amplitude(self, radius_um: float, index: float) -> NDArray[np.complex64]:
        """Light over the pupil of a sphere at the origin, in units of the field."""
        if (radius_um, index) not in self._amplitudes:
            s1, s2 = scattering_amplitudes(
                self._kz[self._pupil] / self._k_per_um,
                radius_um,
                index,
                wavelength_um=self._scene.wavelength_um,
                medium_index=self._scene.medium_index,
            )
            kx2, ky2 = (k2[self._pupil] for k2 in np.broadcast_arrays(self._kx[None, :] ** 2, self._ky[:, None] ** 2))
            across = np.where(kx2 + ky2 > 0, kx2 + ky2, 1.0)
            cos2 = np.where(kx2 + ky2 > 0, kx2 / across, 1.0)  # S1 = S2 straight ahead
            table = np.zeros(self._pupil.shape, np.complex64)
            area_um2 = float(np.prod(self._plane)) * self._scene.pixel_um**2
            factor = -2 * np.pi / (self._k_per_um * self._kz[self._pupil] * area_um2)
            table[self._pupil] = factor * (s2 * cos2 + s1 * (1 - cos2))
            self._amplitudes[radius_um, index] = table
        return self._amplitudes[radius_um, index]


def _wave_numbers(cutoff_per_um: float, length_um: float) -> NDArray[np.float64]:
    """2 pi times the frequencies of a plane so long, from -cutoff to cutoff, rad per micrometre."""
    reach = int(cutoff_per_um * length_um)
    return np.arange(-reach, reach + 1) * np.float64(2 * np.pi / length_um)


def _from_zero(centred: NDArray[np.complex64], size: int, axis: int) -> NDArray[np.complex64]:
    """Frequencies -m..m along `axis`, moved to where an FFT of length `size` has them."""
    shape = list(centred.shape)
    m = shape[axis] // 2
    shape[axis] = size
    out = np.zeros(shape, np.complex64)
    source, target = np.moveaxis(centred, axis, 0), np.moveaxis(out, axis, 0)
    target[: m + 1] = source[m:]
    target[size - m :] = source[:m]
    return out


class HologramCamera:
    """Takes pictures of a `HologramScene`: reference beam, uneven light, Poisson photoelectrons, read noise, bits."""

    def __init__(self, scene: HologramScene) -> None:
        self.scene = scene
        self.motion = SphereMotion(scene)
        self._synthesis = FieldSynthesis(scene)
        # never the noise of the reference (n = 0) again: it would cancel where one is divided by the other
        self._rng = np.random.default_rng([scene.seed, 2, scene.n])
        y, x = (np.arange(n) - (n - 1) / 2 for n in (scene.height, scene.width))
        from_centre = y[:, None] ** 2 + x**2
        from_centre /= from_centre.max()  # 1 in the corners
        self._light = (scene.photons * (1 - scene.vignetting * from_centre)).astype(np.float32)
        fy, fx = scene.carrier_per_um
        phase = 2 * np.pi * scene.pixel_um * (fy * np.arange(scene.height)[:, None] + fx * np.arange(scene.width))
        phase += scene.aberration * from_centre + np.random.default_rng([scene.seed, 3]).uniform(0, 2 * np.pi)
        self._reference = np.exp(1j * phase).astype(np.complex64)

    def field(self, *, every: int = 2) -> NDArray[np.complex64]:
        """Return the spheres' exact field (H / every, W / every), background 1, without any noise."""
        return self._synthesis.sample(self._synthesis.scattered(self.motion.spheres()), every=every)

    def expose(self) -> NDArray[Any]:
        """Return a picture: uint16 counts (H, W), or for the kind `field` Re and Im, float32 (2, H / 2, W / 2)."""
        scene = self.scene
        spectrum = self._synthesis.scattered(self.motion.spheres())
        if scene.field_noise:
            spectrum += self._synthesis.stray(scene.field_noise, self._rng)
        if scene.kind == "field":
            field = self._synthesis.sample(spectrum, every=2)
            return np.stack([field.real, field.imag])
        field = self._synthesis.sample(spectrum, every=1)
        if scene.kind == "off-axis":
            field += self._reference
        electrons = self._light * (field.real**2 + field.imag**2)
        if scene.kind == "off-axis":
            electrons /= 2  # the two beams are equally bright
        return self._counts(electrons)

    def advance(self) -> None:
        """Move on to the next frame."""
        self.motion.advance()

    def truth(self) -> SphereTruth:
        """Return the spheres of the current frame."""
        return self.motion.truth()

    def _counts(self, electrons: NDArray[np.float32]) -> NDArray[np.uint16]:
        scene = self.scene
        top = 2**scene.bits - 1
        counts = self._rng.poisson(electrons).astype(np.float32)
        counts += np.float32(scene.read_noise) * self._rng.standard_normal(counts.shape, dtype=np.float32)
        counts *= top / scene.electrons_at_saturation
        return np.clip(np.rint(counts), 0, top).astype(np.uint16)


class SimulatedHolograms(SimulatedSource[HologramScene, SphereTruth]):
    """`sim:hologram` as a source; a `SphereMotion` of its scene replays the truth.

    With `fps` the frames come at that rate at most, stamped by the host's clock; without, each is made when it is asked
    for, and stamped `dt_s` after the one before. No frame is ever dropped here. Metadata: `kind`, `wavelength_um`,
    `medium_index`, `na`, and for off-axis `carrier_per_um` [y, x], the reference beam's true spatial frequency: the
    reference is exp(+2 pi i carrier.r), so frame * exp(+2 pi i carrier.r) has the object's field around frequency 0.
    """

    def __init__(self, scene: HologramScene, *, n_frames: int | None, fps: float, url: str) -> None:
        self._camera = HologramCamera(scene)
        self._start_s = 0.0
        metadata: dict[str, Any] = {
            "kind": scene.kind,
            "wavelength_um": scene.wavelength_um,
            "medium_index": scene.medium_index,
            "na": scene.na,
        }
        if scene.kind == "off-axis":
            metadata["carrier_per_um"] = list(scene.carrier_per_um)
        super().__init__(
            self._camera,
            n_frames=n_frames,
            fps=fps,
            url=url,
            pixel_size_um=scene.frame_pixel_um,
            metadata=metadata,
        )

    def field(self) -> NDArray[np.complex64]:
        """Return the exact field of the frame read last at half sampling, (H / 2, W / 2), without any noise."""
        return self._camera.field()

    def _time_s(self) -> float:
        if self._info.live:
            return time.time()
        if not self._index:
            self._start_s = time.time()
        return self._start_s + self._index * self.scene.dt_s


def _scene(url: SourceURL, dt_s: float) -> HologramScene:
    """Read the scene out of the options; `dt_s` holds where they do not say it."""
    typical = HologramScene(dt_s=dt_s)
    given: dict[str, Any] = {"diffusion": None}
    if text := url.options.text("diffusion", ""):
        given["diffusion"] = _numbers(url, "diffusion", text, 0.0)[0]
    for name, minimum in (("radius_um", 0.0), ("index", 0.0), ("carrier", -1e6)):
        given[name] = _numbers(url, name, url.options.text(name, _comma(getattr(typical, name))), minimum)
    return scene_of(typical, url, signed=("aberration", "margin", "z_mid_um"), given=given)


def _numbers(url: SourceURL, name: str, text: str, minimum: float) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in text.split(",") if text)
    except ValueError:
        values = (math.nan,)
    if not all(minimum <= value <= 1e6 for value in values):
        raise SourceError(f"{url.text}: {name} must be numbers from {minimum:g} to 1e6, comma between, got {text!r}")
    return values


def _comma(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


def open_holograms(url: SourceURL) -> SimulatedHolograms:
    """Open `sim:hologram?frames=..&fps=..&seed=..` and every field of `HologramScene`; `dt_s` follows `fps`."""
    fps = url.options.number("fps", 0.0, maximum=1e5)
    scene = _scene(url, dt_s=1 / fps if fps else HologramScene().dt_s)
    n_frames = url.options.integer("frames", 0) or None
    url.options.finish()
    if warning := sampling_warning(scene):
        logger.warning("%s: %s", url.text, warning)
    try:
        return SimulatedHolograms(scene, n_frames=n_frames, fps=fps, url=url.text)
    except ValueError as exc:
        raise SourceError(f"{url.text}: {exc}") from exc
