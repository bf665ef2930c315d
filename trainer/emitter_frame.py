"""What one frame of blinking emitters reveals: the camera, the background, the point spread function, the emitters.

Crowded emitters cannot be fitted or counted one by one, so nothing here rests on finding them. The width comes from the
power spectrum, the camera from the noise at frequencies that light cannot reach, photons and density from the
distribution of the filtered pixels, in which overlaps are part of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.emitters import LEAST_LIGHT, EmitterCamera

Array = NDArray[np.float64]

READ_NOISE = 1.6
"""Electrons, of an sCMOS camera, where it is not told: a frame cannot part it from the offset."""
USUAL_OFFSET = 100.0
"""Counts without light of most sCMOS cameras: taken where the frame agrees but does not know to `_SURE_OFFSET`."""
FLUX_CV = 0.3
"""Spread of the flux from emitter to emitter that is assumed."""
ON_FRAMES = 1.0
"""Mean length of a blink, frames, that is assumed unless the photons differ less than such blinks make them."""
FEWEST_PIXELS = 64 * 64
LEAST_SIGMA_PX, MOST_SIGMA_PX = 0.7, 4.0
"""Widths that the method can work with."""

_SURE_OFFSET = 1.5
"""Standard error, counts."""
_LEAST_EDGE_PX = 24
_MOST_PIXELS = 2_000_000
"""Of longer stacks frames spread evenly are read: the rest would add little but time."""
_BANDWIDTH, _N_TAPERS = 3.0, 4
"""Of the tapers: half-width in steps of the frequency, and how many of them along each axis."""
_LEAK, _MOST_EDGE, _RAMP = 0.03, 0.6, 0.08
"""Power of the brightest emitter over the noise where noise begins to be read; frequencies, cycles/px."""
_NARROW, _WIDE = 0.8, 3.0
"""Widths over that of the PSF: the filter is a narrow Gaussian less a wide one, which knows no background."""
_LOW = 0.15
"""Quantile of the smoothed pixels that the background is read from."""
_LEAST_EVIDENCE = 15.0
"""Logarithm of the likelihood ratio from which a frame shows emitters."""
_MUCH_BETTER = 1.0
"""Logarithm of the likelihood ratio from which blinks are taken for longer than is usual."""
_LEAST_STRENGTH = 4.0
"""Peak over noise of an emitter that is on for a whole frame."""
_NAMES = {
    "gain": "gain, counts per photoelectron",
    "offset": "offset, counts",
    "read_noise": "read noise, electrons",
    "background": "background, photoelectrons per px",
    "psf_sigma_px": "PSF sigma, px",
    "photons": "photons of an emitter that is on for a whole frame",
    "density_px": "emitters per px",
}


@dataclass(frozen=True, slots=True, eq=False)
class EmitterFrame:
    """What is known of the frames to come; `origins` and `errors` tell from where and how well."""

    gain: float
    """Counts per photoelectron; behind the register of an EMCCD."""
    offset: float
    """Counts without light."""
    read_noise: float
    """Electrons; for an EMCCD behind the register, as in `EmitterCamera`."""
    em_gain: float
    """Mean multiplication of an EMCCD's register; 0: none."""
    background: float
    """Mean over the frame, photoelectrons per pixel."""
    background_range: tuple[float, float]
    """5 % and 95 % quantile over the frame."""
    background_length_px: float
    """From where it is low to where it is high; infinite where it is flat as far as can be told."""
    background_map: NDArray[np.float32]
    """(H, W), photoelectrons per pixel."""
    psf_sigma_px: float
    photons: float
    """Mean photoelectrons of an emitter that is on for a whole frame."""
    photons_cv: float
    """Its spread from emitter to emitter, standard deviation over mean; assumed."""
    on_frames: float
    """Mean length of a blink, frames; infinite: they do not blink."""
    photon_quantiles: tuple[float, float, float]
    """What 10, 50 and 90 % of the emitters of a frame stay below in it; follows from the three above."""
    density_px: float
    """Emitters per pixel that send 1 % of `photons` or more into the frame."""
    pixel_size_um: float | None
    origins: Mapping[str, str]
    """`measured`, `given` or `assumed`, for gain, offset, read_noise, background, psf_sigma_px, photons, density_px and
    on_frames."""
    errors: Mapping[str, float]
    """Standard errors of what was measured, in the same units."""
    notes: tuple[str, ...] = ()
    """What the user should know besides, whole sentences."""

    @property
    def density_um2(self) -> float | None:
        """Emitters per um^2; None where the pixel size is not known."""
        return None if self.pixel_size_um is None else self.density_px / self.pixel_size_um**2

    @property
    def camera(self) -> EmitterCamera:
        """The camera that took the frame."""
        return EmitterCamera(self.gain, self.offset, self.read_noise, self.em_gain)

    def lines(self) -> list[str]:
        """Return all of it for a person to read."""
        lines = []
        for name, title in _NAMES.items():
            value, error = float(getattr(self, name)), self.errors.get(name)
            if name == "density_px" and self.pixel_size_um is not None:
                title = "emitters per um^2"
                value /= self.pixel_size_um**2
                error = None if error is None else error / self.pixel_size_um**2
            text = f"{value:.4g}" if error is None else _with_error(value, error)
            if name == "background":
                low, high = self.background_range
                text += f", from {low:.3g} to {high:.3g}"
                if math.isfinite(self.background_length_px):
                    text += f" over {self.background_length_px:.0f} px"
            lines.append(f"{title}: {text} ({self.origins[name]})")
        if self.em_gain:
            lines.append(f"multiplication of the EMCCD: {self.em_gain:g} (given)")
        low, median, high = self.photon_quantiles
        blinks = (
            f"blinks of {self.on_frames:g} frames" if math.isfinite(self.on_frames) else "emitters that do not blink"
        )
        lines.append(
            f"photons an emitter sends into one frame: {median:.3g}, 80 % between {low:.3g} and {high:.3g} ({blinks}: "
            f"{self.origins['on_frames']})"
        )
        return lines + [f"note: {note}" for note in self.notes]


def read_emitter_frame(
    counts: NDArray[np.generic],
    *,
    pixel_size_um: float | None = None,
    gain: float | None = None,
    offset: float | None = None,
    read_noise: float | None = None,
    em_gain: float | None = None,
    psf_sigma_px: float | None = None,
    photons: float | None = None,
    density_um2: float | None = None,
    on_frames: float | None = None,
) -> EmitterFrame:
    """Read camera, background, PSF width, photons and density off one frame, or a short stack.

    What is given is not measured, and helps to measure the rest.

    Parameters
    ----------
    counts : (H, W) or (T, H, W)
        As the camera gives them.
    gain, offset, read_noise, em_gain : float, optional
        As in `EmitterCamera`.
    photons : float, optional
        Mean photoelectrons of an emitter that is on for a whole frame.
    density_um2 : float, optional
        Emitters per um^2 that send 1 % of that or more into a frame; needs `pixel_size_um`.
    on_frames : float, optional
        Mean length of a blink, frames; infinite for emitters that do not blink.

    Raises
    ------
    ValueError
        If the frame cannot tell something that was not given, or what is given makes no sense.
    """
    given = {
        "gain": gain, "psf_sigma_px": psf_sigma_px, "photons": photons, "density_um2": density_um2,
        "on_frames": on_frames, "pixel_size_um": pixel_size_um,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None and not value > 0:
            raise ValueError(f"expected {name} above 0, got {value:g}; correct it, or leave it out")
    if density_um2 is not None and pixel_size_um is None:
        raise ValueError("expected the pixel size with a density per um^2, got none; give the pixel size too")
    stack = _checked(counts)
    rounding = 0.0 if np.asarray(counts).dtype.kind == "f" else 1 / 12
    width = _width(_spectrum(stack), len(stack), psf_sigma_px)
    if width.evidence < _LEAST_EVIDENCE or width.error > 0.25 * width.sigma_px or width.sigma_px > 11:
        raise ValueError(
            "expected a frame of emitters, got one that looks like noise and background alone; snap a frame in which "
            "emitters are on, or give a stack"
        )
    if not LEAST_SIGMA_PX <= width.sigma_px <= MOST_SIGMA_PX:
        raise ValueError(
            f"expected a point spread function of sigma {LEAST_SIGMA_PX} to {MOST_SIGMA_PX} px, got "
            f"{width.sigma_px:.2g} px; choose a magnification at which a pixel is about one sigma, or bin pixels"
        )
    known = EmitterCamera(gain or 1.0, 0.0, READ_NOISE if read_noise is None else read_noise, em_gain or 0.0)
    camera = _camera(_noise(stack, width), width, known, gain=gain, offset=offset, rounding=rounding)
    electrons = (stack - camera.of.offset) / camera.of.gain
    known_density_px = None if density_um2 is None or pixel_size_um is None else density_um2 * pixel_size_um**2
    law, light = _law_and_light(electrons, width.sigma_px, camera.of, on_frames, photons, known_density_px)
    background = _background(electrons, width.sigma_px, camera.of, law, light)
    low, high = np.quantile(background, (0.05, 0.95))
    told = {
        "gain": gain, "read_noise": read_noise, "psf_sigma_px": psf_sigma_px, "photons": photons,
        "density_px": density_um2,
    }  # fmt: skip
    origins = {name: "measured" if value is None else "given" for name, value in told.items()}
    origins |= {"background": "measured", "offset": camera.offset_origin}
    origins["on_frames"] = "given" if on_frames else "assumed" if law.on_frames == ON_FRAMES else "measured"
    if read_noise is None:
        origins["read_noise"] = "assumed"
    errors = camera.errors | light.errors | ({} if psf_sigma_px else {"psf_sigma_px": width.error})
    return EmitterFrame(
        gain=camera.of.gain,
        offset=camera.of.offset,
        read_noise=camera.of.read_noise,
        em_gain=camera.of.em_gain,
        background=float(background.mean()),
        background_range=(float(low), float(high)),
        background_length_px=_length_px(background),
        background_map=background.astype(np.float32),
        psf_sigma_px=width.sigma_px,
        photons=light.photons,
        photons_cv=FLUX_CV,
        on_frames=law.on_frames,
        photon_quantiles=law.quantiles(light.photons),
        density_px=light.density_px,
        pixel_size_um=pixel_size_um,
        origins=origins,
        errors=errors,
        notes=(*camera.notes, *_doubts(background, light)),
    )


def _with_error(value: float, error: float) -> str:
    """Return both with the digits that the error leaves."""
    digits = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 3
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _checked(counts: NDArray[np.generic]) -> Array:
    """Return the stack (T, H, W), thinned out if it is long."""
    given = np.asarray(counts)
    if given.ndim not in (2, 3) or given.dtype.kind not in "uif":
        raise ValueError(
            f"expected a frame (H, W) or a stack (T, H, W) of counts, got shape {given.shape} of {given.dtype}; pass "
            "camera frames of one channel"
        )
    stack = given if given.ndim == 3 else given[None]
    n_frames, height, width = stack.shape
    if min(height, width) < _LEAST_EDGE_PX or stack.size < FEWEST_PIXELS:
        raise ValueError(
            f"expected frames of {_LEAST_EDGE_PX} px a side or more and {FEWEST_PIXELS} px together, got {n_frames} of "
            f"{height} x {width}; snap a larger frame, or several"
        )
    values = stack[:: max(1, math.ceil(stack.size / _MOST_PIXELS))].astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("expected finite counts, got NaN or infinity; pass frames as the camera gives them")
    least, largest = float(values.min()), float(values.max())
    if least == largest:
        raise ValueError(f"expected a frame of emitters, got {least:g} in every pixel; snap a frame with light")
    n_largest = int((values == largest).sum())
    n_near = int((values > largest - max(1.5, 0.02 * (largest - least))).sum()) - n_largest
    if n_largest >= 5 and n_largest > 3 * n_near:
        raise ValueError(
            f"expected a frame that is not saturated, got {n_largest} pixels that all have {largest:g} counts; snap it "
            "with less light or a shorter exposure"
        )
    return values


class _Spectrum(NamedTuple):
    """Mean power of a stack, for frequencies with kx >= 0."""

    power: Array
    """(H, W // 2 + 1), counts^2; of white noise, the variance of a pixel."""
    lag_y: Array
    """(2 H - 1,): what the tapers leave of the autocovariance at each lag."""
    lag_x: Array


def _spectrum(stack: Array) -> _Spectrum:
    """Return the power spectrum, averaged over orthogonal tapers: what the edges cut off does not spill over it.

    Thomson, Proc. IEEE 70, 1055 (1982).
    """
    from scipy.signal.windows import dpss

    _, height, width = stack.shape
    tapers_y, tapers_x = (dpss(n, _BANDWIDTH, _N_TAPERS) for n in (height, width))
    power = np.zeros((height, width // 2 + 1))
    for taper_y in tapers_y:
        for taper_x in tapers_x:
            taper = np.outer(taper_y, taper_x)
            share = np.abs(taper) / np.abs(taper).sum()
            level = (stack * share).sum((1, 2), keepdims=True)
            power += (np.abs(np.fft.rfft2((stack - level) * taper)) ** 2).mean(0)
    lag_y, lag_x = (np.mean([np.correlate(v, v, "full") for v in tapers], axis=0) for tapers in (tapers_y, tapers_x))
    return _Spectrum(power / _N_TAPERS**2, lag_y, lag_x)


def _line(lag: Array, sigma_px: float, frequency: Array) -> Array:
    """Power along one axis of emitters of this width: the transform of their tapered autocovariance."""
    n = len(lag) // 2
    variance = 2 * sigma_px**2 + 1 / 6  # of two widths and two pixels
    reach = min(n, math.ceil(6 * math.sqrt(variance)))
    t = np.arange(-reach, reach + 1)
    covariance = lag[n - reach : n + reach + 1] * np.exp(-(t**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    line: Array = np.cos(2 * math.pi * np.outer(frequency, t)) @ covariance
    return line


class _Width(NamedTuple):
    sigma_px: float
    error: float
    floor: float
    """Variance of a pixel's noise, mean over the frame, counts^2."""
    evidence: float
    """Logarithm of the likelihood ratio over noise alone."""


def _width(spectrum: _Spectrum, n_frames: int, sigma_px: float | None) -> _Width:
    """Fit the spectrum of emitters at random places, strength * OTF^2 + floor, by Whittle's likelihood.

    Places at random have a white spectrum however crowded they are, so its shape is that of one emitter.
    """
    from scipy.optimize import minimize

    height, half = spectrum.power.shape
    n_columns = (len(spectrum.lag_x) + 1) // 2
    ky, kx = (np.asarray(k, np.float64) for k in (np.fft.fftfreq(height), np.fft.rfftfreq(n_columns)[:half]))
    all_k2 = ky[:, None] ** 2 + kx**2
    sigma = 1.3 if sigma_px is None else sigma_px
    for _ in range(4):
        # below, the background changes too
        used = all_k2 > max(0.07 / sigma, (_BANDWIDTH + 0.5) / min(height, n_columns)) ** 2
        power, k2 = spectrum.power[used], all_k2[used]
        noise = float(np.median(power[k2 > np.quantile(k2, 0.8)])) + 1e-12
        strength = max(2 * float(power[k2 < np.quantile(k2, 0.03)].mean()), 2 * noise)

        def misfit(v: Array, used: NDArray[np.bool_] = used, power: Array = power, known: float = sigma) -> float:
            width = math.exp(v[2]) if len(v) == 3 else known
            shape = np.outer(_line(spectrum.lag_y, width, ky), _line(spectrum.lag_x, width, kx))[used]
            model = math.exp(v[0]) * np.maximum(shape, 0) + math.exp(v[1])
            return float((np.log(model) + power / model).sum())

        start = [math.log(strength), math.log(noise)]
        bounds = [(None, None), (math.log(noise) - 5, math.log(noise) + 5)]
        if sigma_px is None:
            start, bounds = [*start, math.log(sigma)], [*bounds, (math.log(0.3), math.log(12.0))]
        found = minimize(misfit, start, method="L-BFGS-B", bounds=bounds)
        before, sigma = sigma, math.exp(found.x[2]) if sigma_px is None else sigma
        if abs(sigma / before - 1) < 0.01:
            break
    alone = float((np.log(power.mean()) + power / power.mean()).sum())
    # (2 bandwidths)^2 neighbouring frequencies say the same, with all tapers together
    information = n_frames * (_N_TAPERS / (2 * _BANDWIDTH)) ** 2
    error = 0.0
    if sigma_px is None:
        covariance = np.linalg.pinv(_curvature(misfit, np.asarray(found.x), 0.01) * information)
        error = sigma * math.sqrt(max(float(covariance[2, 2]), 0.0))
    return _Width(sigma, error, math.exp(found.x[1]), information * (alone - float(found.fun)))


def _curvature(function: Callable[[Array], float], at: Array, step: float) -> Array:
    """Return the second derivatives (P, P) of a function of P numbers, by differences."""
    unit = np.eye(len(at)) * step
    return np.array(
        [
            [function(at + a + b) - function(at + a - b) - function(at - a + b) + function(at - a - b) for b in unit]
            for a in unit
        ]
    ) / (4 * step**2)


class _Noise(NamedTuple):
    square: Array
    """(N,): squared noise of pixels, counts^2; its expectation is their variance."""
    level: Array
    """(N,): counts of the same pixels."""
    n_independent: float


def _noise(stack: Array, width: _Width) -> _Noise:
    """Keep the frequencies that light does not reach: what is left is noise, pixel by pixel."""
    from scipy import fft, ndimage

    _, height, n_columns = stack.shape
    sigma = width.sigma_px
    core = ndimage.gaussian_filter(stack, (0, 0.7 * sigma, 0.7 * sigma))
    brightest = float(np.quantile(core, 0.9995) - np.median(core)) * 2 * math.pi * (1.49 * sigma**2 + 1 / 12)
    # up to this frequency the brightest emitter shows in the noise of the few pixels that are its own
    contrast = brightest**2 / (4 * math.pi * sigma**2) / (_LEAK * width.floor)
    edge = min(math.sqrt(math.log(max(contrast, 1.0))) / (2 * math.pi * sigma), _MOST_EDGE)

    def passed(ky: Array, kx: Array) -> Array:
        ramp = np.clip((np.hypot(ky, kx) - edge) / _RAMP, 0, 1)
        share: Array = ramp**2 * (3 - 2 * ramp)
        return share

    # a cosine transform goes on with the mirror image, so the edges make no noise
    mask = passed(np.arange(height)[:, None] / (2 * height), np.arange(n_columns)[None] / (2 * n_columns))
    waves = fft.dctn(stack, axes=(1, 2), norm="ortho")
    rest = fft.idctn(waves * mask, axes=(1, 2), norm="ortho")
    smooth = fft.idctn(waves * (mask == 0), axes=(1, 2), norm="ortho")  # its noise has nothing to do with the rest
    k = np.asarray(np.fft.fftfreq(64), np.float64)
    mask = passed(k[:, None], k[None])
    kernel = np.fft.fftshift(np.fft.ifft2(mask).real)[22:43, 22:43] ** 2
    level = ndimage.convolve(smooth, kernel[None] / kernel.sum(), mode="reflect")
    inner = (slice(None), slice(3, -3), slice(3, -3))
    square = rest[inner] ** 2 / float((mask**2).mean())
    n_independent = square.size * float((mask**2).mean()) ** 2 / float((mask**4).mean())
    return _Noise(square.ravel(), level[inner].ravel(), n_independent)


class _Camera(NamedTuple):
    of: EmitterCamera
    offset_origin: str
    errors: dict[str, float]
    notes: tuple[str, ...]


def _camera(
    noise: _Noise, width: _Width, known: EmitterCamera, *, gain: float | None, offset: float | None, rounding: float
) -> _Camera:
    """Read gain and offset off the rise of the noise with the light, as far as they are not given.

    variance = excess * gain * (counts - offset) + (gain * read noise)^2, see Janesick, Photon Transfer (SPIE, 2007).
    """
    excess, read_variance = known.excess, known.read_photoelectrons**2
    made = known.read_noise, known.em_gain
    if gain is not None and offset is not None:
        return _Camera(EmitterCamera(gain, offset, *made), "given", {}, ())
    if width.floor - rounding < 0.05 * rounding or float(noise.square.mean()) < 1e-9 * float(np.ptp(noise.level)) ** 2:
        raise ValueError(
            "expected a frame with the noise of a camera, got one without, so it does not tell the gain; give the gain "
            "and the offset, or a frame as the camera took it"
        )
    if offset is not None:
        found, error = _gain_above(noise, offset, excess, read_variance, rounding)
        return _Camera(EmitterCamera(found, offset, *made), "given", {"gain": error}, ())
    (at_mean, slope), covariance, mean = _noise_line(noise, None if gain is None else excess * gain)
    found = slope / excess
    if found > 0:
        offset = mean - (at_mean - rounding - found**2 * read_variance) / slope
        by_line = np.array([-1 / slope, (at_mean - rounding) / slope**2 * 1.0 + read_variance / excess**2])
        offset_error = math.sqrt(float(by_line @ covariance @ by_line))
        gain_error = math.sqrt(float(covariance[1, 1])) / excess
        if gain is not None:
            return _Camera(EmitterCamera(gain, offset, *made), "measured", {"offset": offset_error}, ())
        if offset_error < _SURE_OFFSET or abs(offset - USUAL_OFFSET) > 3 * offset_error:
            if found > 4 * gain_error:
                return _Camera(
                    EmitterCamera(found, offset, *made), "measured", {"gain": gain_error, "offset": offset_error}, ()
                )
        elif float(np.quantile(noise.level, 0.01)) > USUAL_OFFSET:
            found, error = _gain_above(noise, USUAL_OFFSET, excess, read_variance, rounding)
            note = (
                f"the frame tells the offset as {_with_error(offset, offset_error)} counts only; {USUAL_OFFSET:g} is "
                "taken, usual for sCMOS cameras: give the offset, it is the mean count with the shutter closed"
            )
            return _Camera(EmitterCamera(found, USUAL_OFFSET, *made), "assumed", {"gain": error}, (note,))
    raise ValueError(
        "expected noise that rises with the light, which tells the gain, got "
        f"{_with_error(slope, math.sqrt(float(covariance[1, 1])))} counts^2 per count; give the gain or the offset of "
        "the camera, or a larger frame, as the camera took it"
    )


def _noise_line(noise: _Noise, slope: float | None) -> tuple[Array, Array, float]:
    """Fit variance = a + b (level - mean level); return (a, b), their covariance and the mean level."""
    mean = float(noise.level.mean())
    x = noise.level - mean
    variance = np.full_like(x, noise.square.mean())
    for _ in range(12):
        square = np.minimum(noise.square, 16 * variance)  # against hot pixels
        weight = variance**-2
        matrix = np.array([[weight.sum(), (weight * x).sum()], [(weight * x).sum(), (weight * x**2).sum()]])
        right = np.array([(weight * square).sum(), (weight * x * square).sum()])
        line = np.linalg.solve(matrix, right)
        if slope is not None:
            line = np.array([(right[0] - slope * matrix[0, 1]) / matrix[0, 0], slope])
        variance = np.maximum(line[0] + line[1] * x, 0.1 * abs(line[0]))
    covariance = np.linalg.inv(matrix) if slope is None else np.diag([1 / matrix[0, 0], 0.0])
    return line, covariance * 2 * noise.square.size / noise.n_independent, mean


def _gain_above(
    noise: _Noise, offset: float, excess: float, read_variance: float, rounding: float
) -> tuple[float, float]:
    """Return the gain and its standard error for a known offset."""
    x = excess * (noise.level - offset)
    if float(np.median(x)) <= 0:
        raise ValueError(
            f"expected counts above the offset {offset:g}, got {float(np.median(noise.level)):.4g} at the median; "
            "correct the offset"
        )
    gain = float(noise.square.mean() / x.mean())
    for _ in range(20):
        variance = np.maximum(gain * x + gain**2 * read_variance + rounding, 0.1 * noise.square.mean())
        weight = variance**-2
        square = np.minimum(noise.square, 16 * variance) - gain**2 * read_variance - rounding
        gain = max(float((weight * x * square).sum() / (weight * x**2).sum()), 1e-9)
    return gain, math.sqrt(2 * x.size / noise.n_independent / float((weight * x**2).sum()))


class _EmitterLaw(NamedTuple):
    """How the photons of the emitters of a frame are distributed, over those of one that is on for the whole frame."""

    on_frames: float
    photons: Array
    """(M,), rising."""
    share: Array
    """(M,), 1 together."""

    @classmethod
    def of(cls, on_frames: float, cv: float) -> _EmitterLaw:
        """Return the law of blinks of exponential length at any time, with a log-normal flux of spread `cv`."""
        z, z_share = np.polynomial.hermite_e.hermegauss(9)
        spread = math.sqrt(math.log1p(cv**2))
        flux = np.exp(spread * z - spread**2 / 2)
        if math.isinf(on_frames):
            part, part_share = np.ones(1), np.ones(1)
        else:
            # begun before or in the frame, ended in or after it; on throughout: the last
            x, x_share = np.polynomial.legendre.leggauss(24)
            x = (x + 1) / 2
            inside = x_share / 2 * np.exp(-x / on_frames) * (2 + (1 - x) / on_frames)
            part, part_share = np.append(x, 1.0), np.append(inside, on_frames * math.exp(-1 / on_frames))
        photons = np.outer(flux, part).ravel()
        share = np.outer(z_share, part_share).ravel()[photons >= LEAST_LIGHT]
        photons = photons[photons >= LEAST_LIGHT]
        group = np.unique(np.round(12 * np.log(photons)), return_inverse=True)[1]
        total = np.bincount(group, share)
        return cls(on_frames, np.bincount(group, share * photons) / total, total / total.sum())

    @property
    def mean(self) -> float:
        """Mean photons over those of a whole frame."""
        return float(self.photons @ self.share)

    def quantiles(self, photons: float) -> tuple[float, float, float]:
        """Return what 10, 50 and 90 % stay below."""
        below = np.cumsum(self.share) - self.share / 2
        low, median, high = photons * np.interp((0.1, 0.5, 0.9), below, self.photons)
        return float(low), float(median), float(high)


class _PixelLaw:
    """The distribution of the pixels of a filtered image of emitters at random places, by Campbell's theorem.

    The characteristic function of a sum over random places is exp(density * integral of (exp(i t s) - 1)) with s what
    one emitter gives at that distance. Radio astronomers count faint sources so: Scheuer, Proc. Camb. Phil. Soc. 53,
    764 (1957), "P(D)".

    Parameters
    ----------
    narrow, wide : float
        Widths of the Gaussian that smooths and of that which is subtracted, over that of the PSF; infinite: none.
    """

    def __init__(self, sigma_px: float, camera: EmitterCamera, law: _EmitterLaw, narrow: float, wide: float) -> None:
        self._narrow_px, self._wide_px = narrow * sigma_px, wide * sigma_px
        self._camera, self._law = camera, law
        psf = sigma_px**2 + 1 / 12
        a, b = self._narrow_px**2, self._wide_px**2
        reach = 5 * math.sqrt(psf + (b if math.isfinite(b) else a))
        u = (np.arange(70) + 0.5) / 70
        r = reach * u**1.5
        self._area = 2 * math.pi * r * reach * 1.5 * u**0.5 / 70

        def gauss(variance: float) -> Array:
            bell: Array = np.exp(-(r**2) / (2 * variance)) / (2 * math.pi * variance)
            return bell

        # what an emitter adds to the filtered pixel, and to its variance, per photon
        self._signal, self._power = gauss(psf + a), gauss(psf + a / 2) / (4 * math.pi * a)
        if math.isfinite(b):
            self._signal = self._signal - gauss(psf + b)
            self._power += gauss(psf + b / 2) / (4 * math.pi * b)
            self._power -= 2 * gauss(psf + a * b / (a + b)) / (2 * math.pi * (a + b))
        self.peak = float(self._signal[0])
        point = np.zeros((129, 129))
        point[64, 64] = 1
        self._square = float((self.filtered(point) ** 2).sum())

    def filtered(self, image: Array) -> Array:
        """Return the image (..., H, W) after the filter."""
        from scipy.ndimage import gaussian_filter

        axes = (-2, -1)
        narrow: Array = gaussian_filter(image, self._narrow_px, truncate=5, axes=axes)
        return (
            narrow - gaussian_filter(image, self._wide_px, truncate=5, axes=axes)
            if np.isfinite(self._wide_px)
            else narrow
        )

    def variance(self, background: float) -> float:
        """Return the variance of a filtered pixel without emitters, photoelectrons^2."""
        return float(self._camera.variance(np.array(background))) * self._square

    def cover(self, low: float, high: float, background: float) -> None:
        """Choose the values for which `density` is given: a range, finer than the noise of this background."""
        noise = math.sqrt(self.variance(background))
        span = 1.5 * max(high - low, 20 * noise)
        self.n = int(min(4096, 2 ** math.ceil(math.log2(span / (0.35 * noise)))))
        self.step, self.low = span / self.n, low - span / 6
        t = 2 * math.pi * np.arange(self.n // 2 + 1) / span
        self._t = t[: int(np.searchsorted(t, 5.5 / noise)) + 1]

    def per_emitter(self, photons: float) -> NDArray[np.complex128]:
        """Return the integral of exp(i t s) - 1 over the places of one emitter, px^2."""
        n = self._law.photons * photons
        signal, power = np.outer(n, self._signal).ravel(), np.outer(n, self._power).ravel() * self._camera.excess
        weight = np.outer(self._law.share, self._area).ravel()
        group = np.round(24 * np.arcsinh(signal / (2 * self.step))).astype(int)
        group -= group.min()
        total = np.bincount(group, weight)
        used = total > 0
        total = total[used]
        signal = np.bincount(group, weight * signal)[used] / total
        power = np.bincount(group, weight * power)[used] / total
        t = self._t[:, None]
        integral: NDArray[np.complex128] = np.exp(1j * t * signal - t**2 / 2 * power) @ total - total.sum()
        return integral

    def density(self, density_px: float, per_emitter: NDArray[np.complex128], background: float) -> Array:
        """Return the share of the pixels at each of `n` values from `low` in steps of `step`."""
        t = self._t
        transform = np.zeros(self.n // 2 + 1, complex)
        transform[: len(t)] = np.exp(
            density_px * per_emitter - t**2 / 2 * self.variance(background) - 1j * t * self.low
        )
        share: Array = np.maximum(np.fft.irfft(np.conj(transform), self.n), 1e-9 / self.n)
        return share


class _Light(NamedTuple):
    density_px: float
    photons: float
    errors: dict[str, float]
    evidence: float
    """Logarithm of the likelihood."""


def _law_and_light(
    electrons: Array,
    sigma_px: float,
    camera: EmitterCamera,
    on_frames: float | None,
    photons: float | None,
    density_px: float | None,
) -> tuple[_EmitterLaw, _Light]:
    """Fit the emitters; where it is not told how long they blink, longer ones only if they fit much better."""

    def fitted(length: float) -> tuple[_EmitterLaw, _Light]:
        law = _EmitterLaw.of(length, FLUX_CV)
        return law, _light(electrons, sigma_px, camera, law, photons, density_px)

    if on_frames is not None:
        return fitted(on_frames)
    usual, steady = fitted(ON_FRAMES), fitted(math.inf)
    if steady[1].evidence < usual[1].evidence + _MUCH_BETTER:
        return usual
    between = fitted(3 * ON_FRAMES)
    return between if between[1].evidence > steady[1].evidence else steady


def _light(
    electrons: Array,
    sigma_px: float,
    camera: EmitterCamera,
    law: _EmitterLaw,
    photons: float | None,
    density_px: float | None,
) -> _Light:
    """Fit photons and density to the histogram of the filtered pixels, as far as they are not given."""
    from scipy.optimize import minimize

    pixels = _PixelLaw(sigma_px, camera, law, _NARROW, _WIDE)
    rim = int(2 * sigma_px) + 1
    values = pixels.filtered(electrons)[:, rim:-rim, rim:-rim].ravel()
    background = max(float(np.quantile(electrons, 0.3)), 0.1)
    pixels.cover(float(values.min()), float(values.max()), background)
    index = np.round((values - pixels.low) / pixels.step).astype(int)
    histogram = np.bincount(np.clip(index, 0, pixels.n - 1), minlength=pixels.n)

    def both(v: Array) -> tuple[float, float]:
        rest = list(v)
        density = math.exp(rest.pop(0)) if density_px is None else density_px
        return density, math.exp(rest.pop(0)) if photons is None else photons

    def misfit(v: Array) -> float:
        density, light = both(v)
        shares = pixels.density(density, pixels.per_emitter(light), background)
        return -float((histogram * np.log(shares)).sum())

    bright = photons or max(float(np.quantile(values, 0.998)), 1.0) / pixels.peak
    above = max(float(electrons.mean()) - background, 0.05 * background)
    fits = []
    for factor in (1.0, 0.5):
        start = [] if density_px is not None else [math.log(above / (bright * factor * law.mean))]
        start += [] if photons is not None else [math.log(bright * factor)]
        if not start:
            return _Light(*both(np.array(start)), {}, 0.0)
        simplex = np.array(
            [start, *(np.array(start) + step for step in np.diag([0.4, -0.3])[: len(start), : len(start)])]
        )
        found = minimize(
            misfit, start, method="Nelder-Mead",
            options={"xatol": 0.005, "fatol": 0.2, "maxfev": 150, "initial_simplex": simplex},
        )  # fmt: skip
        fits.append(found)
    best = min(fits, key=lambda fit: float(fit.fun))
    density, light = both(best.x)
    if light * pixels.peak < _LEAST_STRENGTH * math.sqrt(pixels.variance(background)):
        raise ValueError(
            f"expected emitters that stand out from the noise, got some {light:.3g} photons each on a background of "
            f"{background:.3g}; expose longer, or use more excitation light"
        )
    # pixels as near as an image is wide say the same
    independent = 1 / (4 * math.pi * (sigma_px**2 + (_NARROW * sigma_px) ** 2))
    curvature = _curvature(misfit, np.asarray(best.x, np.float64), 0.03) * independent
    error = np.sqrt(np.maximum(np.diag(np.linalg.pinv(curvature)), 0))
    names = [name for name, known in (("density_px", density_px), ("photons", photons)) if known is None]
    values_of = {"density_px": density, "photons": light}
    errors = {name: float(e) * values_of[name] for name, e in zip(names, error, strict=True)}
    return _Light(density, light, errors, -float(best.fun) * independent)


def _background(electrons: Array, sigma_px: float, camera: EmitterCamera, law: _EmitterLaw, light: _Light) -> Array:
    """Return the background (H, W): a low quantile of the pixels about, less what emitters and noise make of it."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    pixels = _PixelLaw(sigma_px, camera, law, 1.0, math.inf)
    smooth = pixels.filtered(electrons)
    _, height, width = smooth.shape
    # windows wide enough for gaps between the emitters
    covered = light.density_px * math.pi * (3 * sigma_px) ** 2
    edge = min(max(16.0, 10 * sigma_px) * (1 + covered / 2), height / 2, width / 2)
    middles_y, middles_x = (np.linspace(edge / 2, n - edge / 2, max(2, round(2 * n / edge))) for n in (height, width))

    def low_about(y: float, x: float) -> float:
        rows, columns = (slice(int(middle - edge / 2), int(middle + edge / 2)) for middle in (y, x))
        return float(np.quantile(smooth[:, rows, columns], _LOW))

    low = gaussian_filter(np.array([[low_about(y, x) for x in middles_x] for y in middles_y]), 1.0, mode="nearest")
    rows = np.interp(np.arange(height), middles_y - 0.5, np.arange(len(middles_y)))
    columns = np.interp(np.arange(width), middles_x - 0.5, np.arange(len(middles_x)))
    low = map_coordinates(low, np.stack(np.meshgrid(rows, columns, indexing="ij")), order=1, mode="nearest")
    rest = smooth - low
    level = float(electrons.mean()) - light.density_px * light.photons * law.mean
    level = max(level, 0.2 * float(low.mean()), 0.1)
    pixels.cover(float(rest.min()), float(rest.max()), level)
    below = np.cumsum(pixels.density(light.density_px, pixels.per_emitter(light.photons), level))
    expected = pixels.low + pixels.step * float(np.interp(_LOW, below, np.arange(pixels.n)))
    background: Array = np.maximum(low + float(np.quantile(rest, _LOW)) - expected, 0.0)
    return background


def _doubts(background: Array, light: _Light) -> tuple[str, ...]:
    """Return what makes the result doubtful."""
    if float(background.mean()) > 0.01 * light.density_px * light.photons:
        return ()
    return (
        "no background is left below the emitters, so they are taken for too many or too bright: give the photons, the "
        "density or the length of a blink, or snap a frame with fewer emitters",
    )


def _length_px(background: Array) -> float:
    """Return the distance from a valley to a hill of a wave as high and as steep as this, (H, W)."""
    spread = float(background.std())
    if spread <= 0.05 * float(background.mean()):
        return math.inf
    slope = math.sqrt(float(np.mean([np.mean(g**2) for g in np.gradient(background)])))
    return math.pi * spread / slope
