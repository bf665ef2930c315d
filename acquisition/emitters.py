"""Simulated single-molecule movies: fluorophores that blink in continuous time, a camera model, and the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.psf import GaussianPsf, Width, render
from oneframe.acquisition.simulated_source import SimulatedSource, open_scene, scene_of
from oneframe.acquisition.source import SourceURL

Array = NDArray[np.float64]

STRUCTURES = ("uniform", "lines")
LEAST_LIGHT = 0.01
"""An emitter belongs to the truth of a frame if it sends this fraction of the mean flux into it."""
_MARGIN_SIGMAS = 5.0
_FILAMENT_SIGMA_UM = 0.02
"""Fluorophores about the axis of a filament: a microtubule with its antibodies is some 50 nm wide."""
_FILAMENT_STEP_UM = 0.02
_PERSISTENCE_UM = 30.0


@dataclass(frozen=True, slots=True)
class EmitterCamera:
    """An sCMOS or EMCCD camera: photoelectrons become counts.

        sCMOS:  counts = gain * (k + N(0, read_noise)) + offset                  k ~ Poisson(electrons)
        EMCCD:  counts = gain * (Gamma(k, 1) + N(0, read_noise / em_gain)) + offset

    Gamma(k, em_gain) is what a multiplication register makes of k photoelectrons; it is told here in photoelectrons,
    that is, divided by em_gain. So `gain` is in counts per photoelectron in both cases, behind the register, and the
    mean count is gain * electrons + offset always.

    Raises
    ------
    ValueError
        If a value makes no sense.

    References
    ----------
    Hirsch et al., PLoS ONE 8, e53671 (2013) (gamma law of the register).
    """

    gain: float = 1.34
    """Counts per photoelectron. An EMCCD's: its em_gain over the electrons per count of its data sheet."""
    offset: float = 100.0
    """Counts without light."""
    read_noise: float = 1.6
    """Standard deviation, electrons, where the camera reads out: behind an EMCCD's register, as data sheets have it."""
    em_gain: float = 0.0
    """Mean multiplication of an EMCCD's register, 10 or more; 0: none."""

    def __post_init__(self) -> None:
        if not self.gain > 0:
            raise ValueError(f"gain must be above 0 counts per electron, got {self.gain:g}")
        if not self.read_noise >= 0:
            raise ValueError(f"read_noise must be 0 or more electrons, got {self.read_noise:g}")
        if self.em_gain and not self.em_gain >= 10:
            raise ValueError(
                f"em_gain must be 0 (no multiplication) or from 10 on, where the gamma law holds, got {self.em_gain:g}"
            )

    @property
    def excess(self) -> float:
        """Variance over that of shot noise: 2 behind a multiplication register, else 1."""
        return 2.0 if self.em_gain else 1.0

    @property
    def read_photoelectrons(self) -> float:
        """Standard deviation of the read noise in photoelectrons, which is what one localises with."""
        return self.read_noise / (self.em_gain or 1.0)

    def variance(self, electrons: Array) -> Array:
        """Return the variance of a pixel, photoelectrons^2, at this expected light."""
        variance: Array = self.excess * np.asarray(electrons) + self.read_photoelectrons**2
        return variance

    def expose(self, electrons: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.float32]:
        """Return counts (..., H, W) with all noise, not rounded, for expected photoelectrons (..., H, W) per pixel."""
        light = rng.poisson(electrons).astype(np.float32)
        if self.em_gain:
            light = rng.standard_gamma(light, dtype=np.float32)
        if self.read_noise:
            light += np.float32(self.read_photoelectrons) * rng.standard_normal(light.shape, dtype=np.float32)
        light *= np.float32(self.gain)
        light += np.float32(self.offset)
        return light

    @staticmethod
    def digitised(counts: NDArray[np.floating]) -> NDArray[np.uint16]:
        """Return counts as a camera of 16 bits gives them: rounded, 0 to 65535."""
        rounded: NDArray[np.uint16] = np.clip(np.rint(counts), 0, 65535).astype(np.uint16)
        return rounded


@dataclass(frozen=True, slots=True)
class EmitterScene:
    """Blinking fluorophores in the focal plane, or about it where the microscope is astigmatic.

    Each field is also an option of the SOURCE `sim:emitters?field=value&...`. A fluorophore blinks for the first time
    at any moment, stays on for an exponential time, bleaches with probability 1 / `repeats` or else blinks again after
    an exponential time; the photons in a frame are its flux times the part of the frame it was on.

    Raises
    ------
    ValueError
        If a value makes no sense.
    """

    width: int = 128
    """Columns of the camera, px."""
    height: int = 128
    """Rows of the camera, px."""
    density_um2: float = 1.0
    """Mean number of emitters per um^2 in a frame: those that send 1 % of `photons` into it or more, as the truth."""
    pixel_um: float = 0.1
    """Edge of a pixel in the sample, micrometres."""
    sigma_px: float = 1.3
    """Standard deviation of the point spread function in focus, px."""
    photons: float = 3000.0
    """Mean photoelectrons of an emitter that is on for a whole frame."""
    photons_cv: float = 0.3
    """Spread of that from emitter to emitter: standard deviation over mean of a log-normal law."""
    on_frames: float = 1.0
    """Mean length of a blink, frames."""
    off_frames: float = 2.5
    """Mean time from blink to blink of one fluorophore, frames."""
    repeats: float = 1.5
    """Mean number of blinks of a fluorophore; 1.5: it bleaches in two of three."""
    background_low: float = 15.0
    """Background where it is lowest in the frame, photoelectrons per pixel."""
    background_high: float = 40.0
    """Background where it is highest; equal to `background_low`: flat."""
    background_um: float = 5.0
    """Length over which the background changes, micrometres."""
    read_noise: float = 1.6
    """Standard deviation of the read noise, electrons; see `EmitterCamera`."""
    gain: float = 1.34
    """Counts per photoelectron."""
    offset: float = 100.0
    """Counts without light."""
    em_gain: float = 0.0
    """Mean multiplication of an EMCCD; 0: an sCMOS camera."""
    structure: str = "uniform"
    """Where fluorophores sit: `uniform`, or `lines`: on a few filaments, so that a reconstruction shows something."""
    drift_y_px: float = 0.0
    """Drift of the sample, px per frame."""
    drift_x_px: float = 0.0
    astigmatism_um: float = 0.0
    """Half the distance between the foci of y (above, +) and x (below, -), micrometres; 0: a flat sample, no z."""
    depth_um: float = 0.4
    """Distance from its focus at which a width has grown by sqrt(2), micrometres; 0.4: an oil objective."""
    z_range_um: float = 0.4
    """Emitters lie from -z_range_um to +z_range_um, if the microscope is astigmatic."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width < 8 or self.height < 8:
            raise ValueError(f"the frame must be at least 8 x 8 px, got {self.width} x {self.height}")
        positive = ("pixel_um", "sigma_px", "photons", "on_frames", "off_frames", "background_um", "depth_um")
        for name in (*positive, "z_range_um"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name):g}")
        for name in ("density_um2", "photons_cv", "background_low", "astigmatism_um"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name):g}")
        if self.on_frames < LEAST_LIGHT:
            raise ValueError(
                f"on_frames must be {LEAST_LIGHT:g} or more, got {self.on_frames:g}: so short a blink is not seen"
            )
        if not self.repeats >= 1:
            raise ValueError(f"repeats must be 1 or more, got {self.repeats:g}: every fluorophore blinks once")
        if self.background_high < self.background_low:
            raise ValueError(
                f"expected background_high at or above background_low {self.background_low:g}, got "
                f"{self.background_high:g}; set both, equal ones for a flat background"
            )
        if self.structure not in STRUCTURES:
            raise ValueError(f"expected structure {' or '.join(STRUCTURES)}, got {self.structure!r}")
        EmitterCamera(self.gain, self.offset, self.read_noise, self.em_gain)

    @property
    def camera(self) -> EmitterCamera:
        """The camera that looks on."""
        return EmitterCamera(self.gain, self.offset, self.read_noise, self.em_gain)

    @property
    def psf(self) -> GaussianPsf:
        """The point spread function; with z if the microscope is astigmatic."""
        if not self.astigmatism_um:
            return GaussianPsf.flat(self.sigma_px)
        y, x = (Width(self.sigma_px, side * self.astigmatism_um, self.depth_um) for side in (1.0, -1.0))
        return GaussianPsf(y, x, (-self.z_range_um, self.z_range_um))

    @property
    def margin_px(self) -> float:
        """How far outside the frame emitters lie as well: 5 sigma, where sigma is largest."""
        z_um = np.array(self.psf.z_range_um)
        return _MARGIN_SIGMAS * float(np.max(self.psf.sigmas(z_um)))

    @property
    def blinks_um2(self) -> float:
        """Mean number of blinks that begin per um^2 and frame so that `density_um2` emitters are seen.

        A blink of a flux r times the mean gives the fraction t = 0.01 / r of a frame's light or more to
        exp(-t / on) (1 - t + on) frames on average. Two blinks of one fluorophore with a pause g between them fall into
        one frame, both with that light, with probability (1 - 2 t - g)+ exp(-2 t / on). Several faint blinks that make
        it together are left out: blinks and pauses of 0.2 frames cost 1 % of the density, of 0.1 frames 11 %.
        """
        spread = math.sqrt(math.log1p(self.photons_cv**2))
        quantiles = (np.arange(64) + 0.5) / 64
        normal = np.array([NormalDist().inv_cdf(float(q)) for q in quantiles])
        least = LEAST_LIGHT / np.exp(spread * normal - spread**2 / 2)
        on, off = self.on_frames, self.off_frames
        frames_seen = np.where(least < 1, np.exp(-least / on) * (1 - least + on), 0.0)
        room = np.maximum(1 - 2 * least, 0.0)
        together = np.exp(-2 * least / on) * (room - off * -np.expm1(-room / off))
        pauses = 1 - 1 / self.repeats  # per blink
        return self.density_um2 / float(np.mean(frames_seen - pauses * together))


@dataclass(frozen=True, slots=True, eq=False)
class EmitterTruth:
    """The emitters of one frame, as they really are; all columns have shape (N,)."""

    emitter_id: NDArray[np.int64]
    """The fluorophore; the same in all its blinks."""
    y_px: Array
    x_px: Array
    z_um: Array
    """Above the plane midway between the foci; 0 where the microscope tells no z."""
    photons: Array
    """Photoelectrons sent into this frame."""


class EmitterBlinking:
    """The fluorophores' life, frame by frame; needs no images, so truth can be replayed at any time from the seed."""

    def __init__(self, scene: EmitterScene) -> None:
        self._scene = scene
        self._rng = np.random.default_rng([scene.seed, 1])
        self._extent_px = np.array([scene.height, scene.width]) + 2 * scene.margin_px
        self._lines = _filaments(scene, self._extent_px) if scene.structure == "lines" else None
        self._blinks = scene.blinks_um2 * float(np.prod(self._extent_px)) * scene.pixel_um**2  # begin per frame
        self._frame = -1
        self._next_id = 0
        self.redraw()

    def advance(self) -> None:
        """Move on to the next frame."""
        self._keep(~self._bleached)
        begin = self._frame + 1
        n_born = self._rng.poisson(self._blinks / self._scene.repeats)
        since = np.concatenate([np.full(self._id.size, float(begin)), begin + self._rng.random(n_born)])
        self._add(since[self._id.size :], np.ones(n_born, bool))
        self._expose(since)

    def redraw(self) -> None:
        """Move on to a frame with other fluorophores altogether, independent of all frames before."""
        self._id = np.empty(0, np.int64)
        self._sample_px = np.empty((0, 2))
        self._z_um, self._flux, self._switch = np.empty(0), np.empty(0), np.empty(0)
        self._on = np.empty(0, bool)
        # the steady state: exponential times have no memory, so that the first frame is like any other
        n_on = self._rng.poisson(self._blinks * self._scene.on_frames)
        n_off = self._rng.poisson(self._blinks * (1 - 1 / self._scene.repeats) * self._scene.off_frames)
        since = np.full(n_on + n_off, float(self._frame + 1))
        self._add(since, np.arange(n_on + n_off) < n_on)
        n_born = self._rng.poisson(self._blinks / self._scene.repeats)
        born = self._frame + 1 + self._rng.random(n_born)
        self._add(born, np.ones(n_born, bool))
        self._expose(np.concatenate([since, born]))

    def emitters(self) -> EmitterTruth:
        """Return all that sent light in this frame, however little, also those in the margin."""
        return self._truth(self._exposed > 0)

    def truth(self) -> EmitterTruth:
        """Return those whose centre lies within the frame and that sent 1 % of the mean flux or more."""
        position = self._position_px()
        limits = np.array([self._scene.height, self._scene.width]) - 0.5
        inside = ((position >= -0.5) & (position < limits)).all(axis=1)
        return self._truth(inside & (self._flux * self._exposed >= LEAST_LIGHT * self._scene.photons))

    def _truth(self, chosen: NDArray[np.bool_]) -> EmitterTruth:
        y_px, x_px = self._position_px()[chosen].T
        return EmitterTruth(self._id[chosen], y_px, x_px, self._z_um[chosen], (self._flux * self._exposed)[chosen])

    def _position_px(self) -> Array:
        drift_px = np.array([self._scene.drift_y_px, self._scene.drift_x_px]) * self._frame
        position: Array = (self._sample_px + drift_px) % self._extent_px  # the sample wraps round, outside the frame
        return position - self._scene.margin_px - 0.5

    def _keep(self, chosen: NDArray[np.bool_]) -> None:
        self._id, self._sample_px, self._z_um = self._id[chosen], self._sample_px[chosen], self._z_um[chosen]
        self._flux, self._switch, self._on = self._flux[chosen], self._switch[chosen], self._on[chosen]

    def _add(self, since: Array, on: NDArray[np.bool_]) -> None:
        """Add fluorophores that are on or off at the time `since` (N,), frames."""
        scene, rng = self._scene, self._rng
        sample_px, z_um = self._places(since.size)
        spread = math.sqrt(math.log1p(scene.photons_cv**2))
        flux = scene.photons * np.exp(spread * rng.standard_normal(since.size) - spread**2 / 2)
        stay = rng.standard_exponential(since.size) * np.where(on, scene.on_frames, scene.off_frames)
        self._id = np.concatenate([self._id, np.arange(self._next_id, self._next_id + since.size)])
        self._sample_px = np.concatenate([self._sample_px, sample_px])
        self._z_um = np.concatenate([self._z_um, z_um])
        self._flux = np.concatenate([self._flux, flux])
        self._on = np.concatenate([self._on, on])
        self._switch = np.concatenate([self._switch, since + stay])
        self._next_id += since.size

    def _places(self, n: int) -> tuple[Array, Array]:
        """Positions (n, 2) px in the sample and z (n,) um of new fluorophores."""
        scene, rng = self._scene, self._rng
        if self._lines is None:
            sample_px, z_um = rng.random((n, 2)) * self._extent_px, scene.z_range_um * rng.uniform(-1, 1, n)
        else:
            chosen = self._lines[rng.integers(len(self._lines), size=n)]
            beside_px = _FILAMENT_SIGMA_UM / scene.pixel_um * rng.standard_normal((n, 2))
            sample_px, z_um = (chosen[:, :2] + beside_px) % self._extent_px, chosen[:, 2]
        return sample_px, z_um if scene.astigmatism_um else np.zeros(n)

    def _expose(self, since: Array) -> None:
        """Live through the next frame, each from `since` (N,) on: how long each was on, who bleached."""
        scene, rng = self._scene, self._rng
        self._frame += 1
        end = self._frame + 1.0
        self._exposed = np.zeros(self._id.size)
        self._bleached = np.zeros(self._id.size, bool)
        which = np.arange(self._id.size)
        while which.size:
            until = np.minimum(self._switch[which], end)
            self._exposed[which] += np.where(self._on[which], until - since[which], 0.0)
            which = which[self._switch[which] < end]
            since[which] = self._switch[which]
            was_on = self._on[which]
            bleaches = was_on & (rng.random(which.size) < 1 / scene.repeats)
            self._bleached[which] = bleaches
            which, was_on = which[~bleaches], was_on[~bleaches]
            self._on[which] = ~was_on
            stay = np.where(was_on, scene.off_frames, scene.on_frames)
            self._switch[which] += rng.standard_exponential(which.size) * stay


def _filaments(scene: EmitterScene, extent_px: Array) -> Array:
    """Points (N, 3) on smooth curves, evenly apart: y and x in px of the sample, z in um."""
    rng = np.random.default_rng([scene.seed, 4])
    extent_um = extent_px * scene.pixel_um
    length_um = 1.2 * float(extent_um.max())
    along_um = np.arange(0.0, length_um, _FILAMENT_STEP_UM)
    points = []
    for _ in range(max(3, round(float(np.prod(extent_um)) / 25))):
        turns = rng.normal(0.0, math.sqrt(_FILAMENT_STEP_UM / _PERSISTENCE_UM), along_um.size)
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(turns)
        step_px = _FILAMENT_STEP_UM / scene.pixel_um
        yx = rng.random(2) * extent_px + step_px * np.cumsum([np.sin(heading), np.cos(heading)], axis=1).T
        wave_um, phase = rng.uniform(5, 15), rng.uniform(0, 2 * np.pi)
        points.append(np.column_stack([yx, scene.z_range_um * np.sin(2 * np.pi * along_um / wave_um + phase)]))
    return np.concatenate(points)


def _smooth_background(scene: EmitterScene) -> Array:
    """Light (H, W) between `background_low` and `background_high`, both reached: plane waves of random directions."""
    rng = np.random.default_rng([scene.seed, 3])
    y_um, x_um = (np.arange(n) * scene.pixel_um for n in (scene.height, scene.width))
    field = np.zeros((scene.height, scene.width))
    for ky, kx, phase in zip(*rng.normal(0, 1 / scene.background_um, (2, 24)), rng.uniform(0, 6.28, 24), strict=True):
        field += np.cos(ky * y_um[:, None] + kx * x_um + phase)
    field -= field.min()
    scaled: Array = scene.background_low + (scene.background_high - scene.background_low) * field / field.max()
    return scaled


class EmitterMovie:
    """Takes pictures of an `EmitterScene`, one after the other (`advance`) or independent of each other (`redraw`)."""

    def __init__(self, scene: EmitterScene) -> None:
        self.scene = scene
        self.blinking = EmitterBlinking(scene)
        self.background = _smooth_background(scene)
        """Expected background (H, W), photoelectrons per pixel; the same in all frames."""
        self._camera = scene.camera
        self._psf = scene.psf
        self._rng = np.random.default_rng([scene.seed, 2])

    def expected(self) -> Array:
        """Return the picture (H, W) without noise, photoelectrons per pixel."""
        lit = self.blinking.emitters()
        image = render(lit.y_px, lit.x_px, lit.photons, *self._psf.sigmas(lit.z_um), self.background.shape)
        image += self.background
        return image

    def expose(self) -> NDArray[np.uint16]:
        """Return a picture (H, W) of the current frame, in camera counts; each call has noise of its own."""
        return self._camera.digitised(self._camera.expose(self.expected(), self._rng))

    def truth(self) -> EmitterTruth:
        """Return the emitters of the current frame."""
        return self.blinking.truth()

    def advance(self) -> None:
        """Move on to the next frame."""
        self.blinking.advance()

    def redraw(self) -> None:
        """Move on to a frame with other fluorophores; filaments and background stay."""
        self.blinking.redraw()


class SimulatedEmitters(SimulatedSource[EmitterScene, EmitterTruth]):
    """`sim:emitters` as a source; an `EmitterBlinking` of its scene replays the truth."""

    def __init__(self, scene: EmitterScene, *, n_frames: int | None, fps: float, url: str) -> None:
        super().__init__(EmitterMovie(scene), n_frames=n_frames, fps=fps, url=url, pixel_size_um=scene.pixel_um)


def emitter_scene(url: SourceURL) -> EmitterScene:
    """Read the scene out of `sim:emitters?...`, leaving `frames` and `fps` in the options."""
    return scene_of(EmitterScene(), url, signed=("drift_y_px", "drift_x_px"))


def open_emitters(url: SourceURL) -> SimulatedEmitters:
    """Open `sim:emitters?frames=..&fps=..&seed=..` and every field of `EmitterScene`."""
    return open_scene(SimulatedEmitters, emitter_scene(url), url)
