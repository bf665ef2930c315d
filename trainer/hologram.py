"""LodeSTAR on holograms: one particle of one hologram becomes a tracker of x, y, z and polarizability.

Midtvedt et al., Single-shot self-supervised object detection in microscopy, Nat. Commun. 13, 7492 (2022), Figs. 3, 4:
"the paper". Differs from it in what the network sees, planes close to focus (`FocalPlanes`) in place of one field.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneframe.export.trained import TrainedModel
from oneframe.runtime.card import ModelCard
from oneframe.runtime.field_reader import FieldReader, HologramSettings
from oneframe.runtime.focal_planes import (
    FocalPlanes,
    band_per_um,
    noise_in_planes,
    pixels_per_cell,
    plane_depth_um,
    planes_for,
)
from oneframe.runtime.optics import Optics
from oneframe.runtime.refine import ParticleRefiner, light_of_dark
from oneframe.runtime.refocus import Refocuser
from oneframe.trainer.crops import Box
from oneframe.trainer.hologram_network import (
    HologramGraph,
    HologramNetwork,
    HologramTraining,
    hologram_loss,
    residuals,
    shares,
)
from oneframe.trainer.hologram_particles import Spot, find_particles, pick
from oneframe.trainer.hologram_views import FocusedParticle, ViewMaker, focused_particle
from oneframe.trainer.loop import ConvergenceError, LoopSettings, Progress, fit, one_thread
from oneframe.trainer.peaks import Threshold, choose_threshold

REACH_UM = (-5.5, 5.5)
"""z that is always covered round the plane of focus, at a depth of focus of `REACH_DEPTH_UM`."""
REACH_DEPTH_UM = 1.67
MARGIN_UM = 1.0
"""By which the range goes beyond the particles of the frame, likewise."""
LOG_SIGNAL = (-2.0, 1.0)
"""Logarithm of the signal over the crop's that is always covered."""
LOG_MARGIN = 0.5
FAINTEST = 4.0
"""Standard deviations of the noise in the planes: fainter particles are not asked for."""
SURE = 0.3
"""Signal over the boxed particle's above which a particle counts for the range of z: fainter ones may be rings."""
GHOST = 0.3
"""Signal over the strongest particle's below which it may be the ring of one, under the wrong sign of the carrier."""
DARK = 1.15
"""Signal as one that absorbs over that as a denser or lighter one, from which on a particle is learned as dark."""
NOISE_MARGIN = 1.5
"""Strongest noise of the training over the frame's."""
SCORES = (0.4, 0.8)
"""Shares of the best score on the frame between which the threshold is put."""
NOISY = 0.05
"""Noise over the signal in the planes above which a wider network, taught more slowly, is worth its time."""
UNSETTLED = 0.3
"""Mean error of z in depths of focus above which z is not settled."""


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What a training looks at."""

    field: NDArray[np.complex64]
    """Of dark particles `light_of_dark`."""
    dark: bool
    reader: FieldReader
    every: int
    planes_um: tuple[float, ...]
    spot: Spot
    n_spots: int
    particle: FocusedParticle
    polarizability_um3: float
    spheres: bool
    """Whether the particle agrees with a homogeneous sphere, and shall be taken for one."""
    depth_um: float
    views: ViewMaker

    @property
    def optics(self) -> Optics:
        """Of the field."""
        return self.reader.settings.field_optics

    @property
    def in_line(self) -> bool:
        """Whether each particle has a twin."""
        return self.reader.settings.kind == "in-line"


@dataclass(frozen=True, slots=True)
class ViewErrors:
    """Root mean square errors on fresh views with the frame's own noise."""

    cells: float
    """Per axis."""
    z_um: float
    log_signal: float
    found: float
    """Share of views whose highest weight lies on the particle."""

    def converged(self, depth_um: float) -> bool:
        """Whether the network locates the particle, z included."""
        return self.cells < 0.5 and self.z_um < UNSETTLED * depth_um and self.found > 0.95

    def __str__(self) -> str:
        return f"error {self.cells:.2f} cells, z {self.z_um:.2f} um, {100 * self.found:.0f} % found"


@one_thread()
def train_hologram(
    image: NDArray[Any],
    box: Box | Literal["auto"] | None,
    settings: HologramSettings,
    *,
    reference: NDArray[Any] | None = None,
    background: str | None = None,
    seed: int,
    training: HologramTraining,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
) -> TrainedModel:
    """Train on one particle of one hologram.

    Parameters
    ----------
    image : (H, W), or (2, H, W) for the kind `field`
        The snapped frame.
    box : Box, "auto" or None
        Round the particle's rings or their middle, camera pixels; "auto": the one that stands most alone; None: the
        strongest of the frame.
    settings : HologramSettings
        With the carrier open it is found, and its sign chosen so that the boxed particle is denser than the medium.
    reference, background
        As for `FieldReader`.

    Raises
    ------
    ValueError
        If there is no particle to learn, or the frame does not fit the settings.
    ConvergenceError
        If no attempt located the particle and its z.
    TrainingCancelled
        If `cancel` was set.
    """
    start_s = time.monotonic()
    _check_z_range(training.z_range_um, in_line=settings.kind == "in-line")
    lesson, notes = _lesson(image, box, settings, reference, background, training)
    if noise_in_planes(lesson.reader.noise, lesson.optics, lesson.every) > NOISY * lesson.particle.signal:
        training = replace(training, channels=24, peak_learning_rate=3e-3)
    tried: list[str] = []
    for attempt in range(1, training.max_attempts + 1):
        start = seed + 1_000_003 * (attempt - 1)
        network = _train_once(lesson, training, start, on_progress, cancel, attempt)
        learned = measure(network, lesson, training, seed=seed, noise=0.0)  # noise alone is no reason to try again
        errors = measure(network, lesson, training, seed=seed, noise=lesson.reader.noise)
        if learned.converged(lesson.depth_um) and errors.found > 0.8:
            break
        tried.append(str(errors))
    else:
        raise ConvergenceError(
            f"expected an error below 0.5 cells and of z below {UNSETTLED * lesson.depth_um:.2g} um, got after "
            f"{len(tried)} attempts: {'; '.join(tried)}; box one clear, isolated particle, or train for more --steps"
        )
    reader, views = lesson.reader, lesson.views
    ratio = lesson.every * reader.settings.pixels_per_cell
    graph = HologramGraph(
        network,
        training,
        scale=lesson.particle.signal,
        ratio=ratio,
        sigma_px=errors.cells * ratio,
        sigma_z_um=errors.z_um,
        polarizability_um3=lesson.polarizability_um3,
        z_um=views.z_um,
        log_signal=views.log_signal,
    ).eval()
    planes = FocalPlanes(lesson.optics, _shape(lesson.field), lesson.every, lesson.planes_um)
    channels = planes.of(lesson.field - 1)
    chosen = choose_threshold(graph, channels, shares=SCORES)
    card = ModelCard(
        method="lodestar",
        input_dtype="float32",
        n_channels=len(channels),
        columns=HologramGraph.columns,
        threshold=chosen.value,
        object_diameter_px=round(3 / band_per_um(lesson.optics, lesson.every) / reader.settings.optics.pixel_um, 2),
        normalisation={"offset": 0.0, "scale": lesson.particle.signal},
        pixel_size_um=reader.settings.optics.pixel_um,
        optics=asdict(reader.settings.optics),
        hologram={
            **reader.settings.to_card(),
            "background": reader.background,
            "pixels_per_cell": lesson.every,
            "planes_um": lesson.planes_um,
            "spheres": lesson.spheres,
            "dark": lesson.dark,
        },
        trained_ranges={
            "z_um": views.z_um,
            "signal": (math.exp(views.log_signal[0]), math.exp(views.log_signal[1])),
            "field_noise": (0.0, views.noise),
        },
        crop={"box_xywh_px": _box_of(lesson, image.shape[-2:])},
        settings={**asdict(training), "seed": seed, "attempts": attempt},
        quality={
            **_quality(graph, lesson, errors, chosen, notes, planes),
            "training_s": round(time.monotonic() - start_s, 1),
        },
    )
    return TrainedModel(graph, card, _example(channels, lesson), planes.shape)


def _lesson(
    image: NDArray[Any],
    box: Box | Literal["auto"] | None,
    settings: HologramSettings,
    reference: NDArray[Any] | None,
    background: str | None,
    training: HologramTraining,
) -> tuple[Lesson, list[str]]:
    """Make the field, find the particle and its focus, decide what is shown of it."""
    reader = FieldReader(settings, reference=reference, background=background)
    field = reader.read(image)
    notes = reader.notes(image)
    optics = settings.field_optics
    every = pixels_per_cell(optics)
    depth_um = plane_depth_um(optics, every)
    in_line = settings.kind == "in-line"
    unit = depth_um / REACH_DEPTH_UM
    searched = training.z_range_um or ((2 * unit if in_line else -12 * unit), (24 if in_line else 12) * unit)
    spots = find_particles(field, optics, every, searched, reader.noise)
    if settings.kind == "off-axis" and settings.carrier_yx_per_um is None:
        conjugate = find_particles(field.conj(), optics, every, searched, reader.noise)
        right, wrong = (_strongest(found, box, settings) for found in (spots, conjugate))
        if wrong > max(right, GHOST * _strongest(spots, None, settings)):
            y_per_um, x_per_um = reader.settings.carrier_yx_per_um or (0.0, 0.0)
            turned = replace(settings, carrier_yx_per_um=(-y_per_um, -x_per_um))
            return _lesson(image, box, turned, reference, background, training)
    dark = False
    if (
        settings.kind != "off-axis" or settings.carrier_yx_per_um is not None
    ):  # else the sign of z hangs on the contrast
        as_dark, as_lighter = light_of_dark(field), np.complex64(2) - field
        others = [find_particles(light, optics, every, searched, reader.noise) for light in (as_dark, as_lighter)]
        dense, shadow, lighter = (_strongest(found, box, settings) for found in (spots, *others))
        dark = shadow > DARK * max(dense, lighter)
        if dark:
            field, spots = as_dark, others[0]
            notes.append(
                "the particle takes light away rather than delays it: z is where it is darkest, and polarizability "
                "stands for the light that it takes"
            )
    spot = pick(spots, box, settings.pixels_per_cell, _shape(field), optics.pixel_um)
    refocuser = Refocuser(optics, _shape(field))
    spheres = training.spheres and not dark
    refiner = ParticleRefiner.for_optics(optics, z_um=(0, 0), shape=_shape(field), spheres=spheres)
    z_um, at = spot.z_um, np.array([[spot.y_px, spot.x_px]])
    for _ in range(2):  # close to focus all of its light is near
        refocused = refocuser.refocus(field, z_um)
        measured = refiner.measure(refocused, at, 0.0, noise=reader.noise)
        z_um, at = z_um + float(measured.z.z_um[0]), measured.yx_px
    polarizability = float(measured.polarizability_um3[0])
    spheres = spheres and math.isfinite(polarizability)
    if not spheres:  # too large or too dense a sphere for the model, or none
        plain = ParticleRefiner.for_optics(optics, z_um=(0, 0), shape=_shape(field))
        polarizability = abs(float(plain.measure(refocused, at, 0.0, noise=reader.noise).polarizability_um3[0]))
    refocused = refocuser.refocus(field, z_um)
    yx_px = float(at[0, 0]), float(at[0, 1])
    particle = focused_particle(refocused, yx_px, optics, every, reader.noise, in_line=in_line)
    spot = replace(spot, y_px=yx_px[0], x_px=yx_px[1], z_um=z_um)
    z_range = training.z_range_um or _z_range([spot, *spots], unit, searched, in_line=in_line)
    logs = [math.log(other.signal / spot.signal) for other in spots]
    noise = noise_in_planes(reader.noise, optics, every)
    faintest = min(0.0, max(LOG_SIGNAL[0], math.log(FAINTEST * noise / particle.signal)))
    log_signal = (
        min([faintest, *(log - LOG_MARGIN for log in logs)]),
        max([LOG_SIGNAL[1], *(log + LOG_MARGIN for log in logs)]),
    )
    views = ViewMaker(
        particle,
        optics,
        every,
        planes := planes_for(optics, every, z_range),
        z_um=z_range,
        log_signal=log_signal,
        noise=NOISE_MARGIN * reader.noise,
        view_cells=training.view_cells,
        shift_cells=training.shift_cells,
        in_line=in_line,
        dark=dark,
    )  # fmt: skip
    lesson = Lesson(
        field, dark, reader, every, planes, spot, len(spots), particle, polarizability, spheres, depth_um, views
    )
    return lesson, notes


def _check_z_range(z_um: tuple[float, float] | None, *, in_line: bool) -> None:
    if z_um is None:
        return
    low, high = z_um
    if not low < high:
        raise ValueError(f"expected a z range from low to high, got {low:g} to {high:g} um; swap or widen it")
    if in_line and low < 0 < high:
        raise ValueError(
            f"expected a z range on one side of focus, got {low:g} to {high:g} um: an in-line hologram does not tell "
            "+z from -z; move the focus out of the sample and train on one side"
        )


def _strongest(spots: Sequence[Spot], box: Box | Literal["auto"] | None, settings: HologramSettings) -> float:
    """Return the strongest signal in a box, or of the frame."""
    inside = [spot for spot in spots if not isinstance(box, Box) or spot.within(box, settings.pixels_per_cell)]
    return max((spot.signal for spot in inside), default=0.0)


def _z_range(
    spots: Sequence[Spot], unit: float, searched: tuple[float, float], *, in_line: bool
) -> tuple[float, float]:
    """Return the z to train for: what the frame shows and some air, and always some depths round focus.

    The first of the spots is the boxed particle.
    """
    seen = [spot.z_um for spot in spots if spot.signal >= SURE * spots[0].signal]
    low, high = min(seen) - MARGIN_UM * unit, max(seen) + MARGIN_UM * unit
    if not in_line:
        return round(min(low, REACH_UM[0] * unit), 3), round(max(high, REACH_UM[1] * unit), 3)
    middle = spots[0].z_um
    low, high = min(low, middle + REACH_UM[0] * unit), max(high, middle + REACH_UM[1] * unit)
    return round(max(low, searched[0] / 2), 3), round(high, 3)


def _train_once(
    lesson: Lesson,
    training: HologramTraining,
    seed: int,
    on_progress: Callable[[Progress], None] | None,
    cancel: threading.Event | None,
    attempt: int,
) -> HologramNetwork:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    unit_um = lesson.depth_um / REACH_DEPTH_UM
    network = HologramNetwork(
        2 * len(lesson.planes_um), training, middle_um=sum(lesson.views.z_um) / 2, unit_um=unit_um
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    z_error_um = math.inf

    def loss(_step: int) -> Tensor:
        nonlocal z_error_um
        views = lesson.views.draw(training.n_views, generator)
        grid = network(views.planes.contiguous(memory_format=torch.channels_last))
        total, now_um = hologram_loss(grid, views, training, unit_um)
        z_error_um = float(now_um) if math.isinf(z_error_um) else 0.95 * z_error_um + 0.05 * float(now_um)
        return total

    def note() -> str:
        return f"z not settled yet ({z_error_um:.1f} um)" if z_error_um > UNSETTLED * lesson.depth_um else ""

    settings = LoopSettings(
        training.n_steps, peak_learning_rate=training.peak_learning_rate, averaging=training.averaging
    )
    trained = fit(network, loss, settings, on_progress=on_progress, cancel=cancel, attempt=attempt, note=note)
    return trained.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload, no-any-return]


@torch.no_grad()
def measure(
    network: HologramNetwork, lesson: Lesson, training: HologramTraining, *, seed: int, noise: float
) -> ViewErrors:
    """Look at 256 fresh views of the particle as strong as it is, with noise of the field per component."""
    generator = torch.Generator().manual_seed(seed)
    views = lesson.views.draw(256, generator, noise=noise, log_signal=(0.0, 0.0), alone=True)
    grid = network(views.planes)
    share = shares(grid, views, training)
    error = (residuals(grid, views) * share).sum((2, 3))
    weight = torch.sigmoid(grid[:, 2])
    on_particle = (weight * (share[:, 0] > 0)).amax((1, 2))
    found = on_particle >= weight.amax((1, 2))
    return ViewErrors(
        float(error[:, :2].square().mean().sqrt()),
        float(error[:, 2].square().mean().sqrt()),
        float(error[:, 3].square().mean().sqrt()),
        float(found.float().mean()),
    )


@torch.no_grad()
def _quality(
    graph: HologramGraph,
    lesson: Lesson,
    errors: ViewErrors,
    chosen: Threshold,
    notes: Sequence[str],
    planes: FocalPlanes,
) -> dict[str, Any]:
    """Return the quality card: errors on views, and on the snapped frame itself, propagated and scaled anew."""
    pixel_um = lesson.reader.settings.optics.pixel_um
    again = {} if lesson.in_line else _propagated_again(graph, lesson, chosen.value, planes)
    warnings = list(notes)
    if lesson.in_line:
        warnings.append(
            "in-line: the camera saw no phase, so every particle has a twin at -z; keep all particles on the side of "
            "focus that was trained"
        )
    if not lesson.particle.is_round:
        warnings.append("the particle is not round: z and polarizability depend on how it is turned")
    if errors.z_um > UNSETTLED * lesson.depth_um:
        warnings.append(
            f"the field's noise leaves the network's z uncertain by {errors.z_um:.2g} um; the refinement searches that "
            "far, but a --reference averaged over many frames or a stronger particle would serve better"
        )
    confirmed = again.get("repropagated_z_rmse_um", 0.0) < 0.2 * lesson.depth_um
    good = chosen.n_found >= 1 and chosen.gap >= 1.3 and confirmed
    advice = "good" if good and not warnings else "fair" if good else "poor"
    sentence = {
        "good": "the network locates the particle, z included",
        "fair": "the network locates the particle; mind the warnings",
        "poor": "the frame does not confirm what the views promise; box a clearer particle, or give a --reference",
    }[advice]
    return {
        "advice": advice,
        "advice_sentence": sentence,
        "warnings": warnings,
        "field_noise": round(lesson.reader.noise, 5),
        "signal": round(lesson.particle.signal, 4),
        "particle_z_um": round(lesson.spot.z_um, 3),
        "particle_polarizability_um3": float(f"{lesson.polarizability_um3:.4g}"),
        "particle_is_round": lesson.particle.is_round,
        "view_rmse_um": round(errors.cells * lesson.every * lesson.optics.pixel_um, 4),
        "view_z_rmse_um": round(errors.z_um, 4),
        "view_log_signal_rmse": round(errors.log_signal, 4),
        "found_on_views": round(errors.found, 3),
        **again,
        "particles_on_frame": lesson.n_spots,
        "detections_on_frame": chosen.n_found,
        "threshold_gap": round(chosen.gap, 2),
        "depth_of_focus_um": round(lesson.depth_um, 3),
        "pixel_um": pixel_um,
    }


def _propagated_again(graph: HologramGraph, lesson: Lesson, threshold: float, planes: FocalPlanes) -> dict[str, float]:
    """Propagate and scale the snapped field by known amounts: z and signal of each particle must follow."""
    refocuser = Refocuser(lesson.optics, _shape(lesson.field))
    scattered = lesson.field - np.complex64(1)
    low, high = lesson.views.z_um
    order = [HologramGraph.columns.index(name) for name in ("y_px", "x_px", "z_um", "polarizability_um3")]

    def look(field: NDArray[np.complex64]) -> NDArray[np.float64]:
        rows = graph(torch.from_numpy(planes.of(field)), torch.tensor(threshold))
        return np.stack([rows[i].numpy() for i in order], 1).astype(np.float64)

    before = look(scattered)
    z_errors, log_errors, n_expected = [], [], 0
    for share in (-0.4, -0.2, 0.2, 0.4):
        move_um, factor = share * (high - low), math.exp(share)
        after = look(factor * (refocuser.refocus(scattered, move_um)))
        for y_px, x_px, z_um, alpha in before:
            if not low < z_um - move_um < high:
                continue
            n_expected += 1
            if not len(after):
                continue
            nearest = after[np.argmin(np.hypot(after[:, 0] - y_px, after[:, 1] - x_px))]
            if math.hypot(nearest[0] - y_px, nearest[1] - x_px) < 2 * graph.ratio:
                z_errors.append(nearest[2] - (z_um - move_um))
                log_errors.append(math.log(nearest[3] / alpha / factor))
    if not z_errors:
        return {}
    return {
        "repropagated_z_rmse_um": round(float(np.sqrt(np.mean(np.square(z_errors)))), 4),
        "rescaled_log_rmse": round(float(np.sqrt(np.mean(np.square(log_errors)))), 4),
        "found_again": round(len(z_errors) / n_expected, 3),
    }


def _example(channels: NDArray[np.float32], lesson: Lesson) -> NDArray[np.float32]:
    """Return the planes round the particle, to export with and as the self-test."""
    size = [min(64, n) for n in channels.shape[-2:]]
    at = (lesson.spot.y_px / lesson.every, lesson.spot.x_px / lesson.every)
    start = [int(np.clip(c - n // 2, 0, full - n)) for c, n, full in zip(at, size, channels.shape[-2:], strict=True)]
    return np.ascontiguousarray(channels[:, start[0] : start[0] + size[0], start[1] : start[1] + size[1]])


def _box_of(lesson: Lesson, shape: tuple[int, ...]) -> list[int]:
    """Return x, y, width and height of the particle in focus, camera pixels, within the frame."""
    per_px = lesson.reader.settings.pixels_per_cell
    half = per_px * (lesson.particle.scattered.shape[0] // 2)
    (y, x) = (round(at * per_px) for at in (lesson.spot.y_px, lesson.spot.x_px))
    (top, left), (bottom, right) = (max(0, y - half), max(0, x - half)), (y + half + 1, x + half + 1)
    return [left, top, min(right, shape[1]) - left, min(bottom, shape[0]) - top]


def _shape(field: NDArray[np.complex64]) -> tuple[int, int]:
    return field.shape[0], field.shape[1]
