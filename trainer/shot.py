"""SHOT: dense single-molecule localisation as set prediction, trained on simulations of what one frame reveals.

After "SHOT", arXiv 2512.10683, from its equations. `emitter_frame` reads the frame, `emitter_crops` simulates,
`shot_network` is what learns, `shot_loss` what it learns by, `shot_graph` what is deployed; here one becomes the other.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oneframe.acquisition.psf import GaussianPsf
from oneframe.export.trained import TrainedModel
from oneframe.runtime.card import ModelCard
from oneframe.trainer.emitter_crops import EmitterWorld, draw_crops
from oneframe.trainer.emitter_frame import EmitterFrame, read_emitter_frame
from oneframe.trainer.loop import ConvergenceError, LoopSettings, Progress, TrainingCancelled, fit, one_thread
from oneframe.trainer.shot_graph import ShotGraph
from oneframe.trainer.shot_loss import shot_loss
from oneframe.trainer.shot_network import ShotNetwork, ShotSettings
from oneframe.trainer.shot_trial import Expected, Trial, trial

CROWDING = (0.0015, 0.1)
"""Emitters per squared sigma of the point spread function that every model is trained for: at 100 nm pixels and sigma
130 nm, 0.09 to 6 per um^2."""
TABLE_CROWDING = (0.0034, 0.017, 0.034, 0.05, 0.085)
"""For which the card tells what to expect: 0.2, 1, 2, 3 and 5 per um^2 there."""
SPARSE_UM2 = 0.3
"""Below, classical fitting of single emitters finds as much."""
KNOWN_OF_FRAME = frozenset(
    ("gain", "offset", "read_noise", "em_gain", "psf_sigma_px", "photons", "density_um2", "on_frames")
)
"""What `train_shot` can be told in place of reading it off the frame."""
_EXAMPLE_PX = 96


def train_shot(
    image: NDArray[Any],
    *,
    known: dict[str, float],
    psf: GaussianPsf | None = None,
    pixel_size_um: float | None = None,
    seed: int = 0,
    settings: ShotSettings,
    on_frame: Callable[[EmitterFrame], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
) -> TrainedModel:
    """Train on what one frame, or a short stack, reveals.

    Parameters
    ----------
    image : (H, W) or (T, H, W)
        Camera counts.
    known : dict
        What need not be read off the frame, by the names of `read_emitter_frame`.
    psf : GaussianPsf, optional
        A calibration, which may give z; else the round width read off the frame.
    on_frame : callable, optional
        Told what the frame revealed, before the training.

    Raises
    ------
    ValueError
        If the frame cannot tell what is needed.
    ConvergenceError
        If the network finds little of what it was shown.
    TrainingCancelled
        If `cancel` was set.
    """
    if psf is not None:
        z_um = np.linspace(*psf.z_range_um, 21)
        known = {**known, "psf_sigma_px": float(np.mean(psf.sigmas(z_um)))}
    frame = read_emitter_frame(image, pixel_size_um=pixel_size_um, **known)
    if on_frame is not None:
        on_frame(frame)
    world = world_of(frame, psf, settings.n_frames)
    with one_thread():
        network = trained_network(world, settings, seed, on_progress=on_progress, cancel=cancel)
        return _completed(image, frame, world, network, settings, seed, cancel)


def world_of(frame: EmitterFrame, psf: GaussianPsf | None, n_frames: int) -> EmitterWorld:
    """Return what to simulate: the frame's own values, and as far from them as it may be wrong."""
    sigma2 = frame.psf_sigma_px**2
    low, high = (crowding / sigma2 for crowding in CROWDING)
    width_error = frame.errors.get("psf_sigma_px", 0.0) / frame.psf_sigma_px
    least, most = frame.background_range
    return EmitterWorld(
        psf=psf or GaussianPsf.flat(frame.psf_sigma_px),
        camera=frame.camera,
        photons=frame.photons,
        background=(max(least, 0.1), max(most, 0.1)),
        density_px=(min(low, frame.density_px), max(high, 2 * frame.density_px)),
        photons_cv=frame.photons_cv,
        on_frames=(frame.on_frames / 1.5, 1.5 * frame.on_frames) if math.isfinite(frame.on_frames) else (1e3, 1e3),
        n_frames=n_frames,
        psf_spread=float(np.clip(2 * width_error, 0.03, 0.1)),
    )


def trained_network(
    world: EmitterWorld,
    settings: ShotSettings,
    seed: int,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
) -> ShotNetwork:
    """Return a network trained on crops of this world."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ShotNetwork(world, settings)
    workers = 2

    def loss_of_part(part: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, part])
        return shot_loss(network, draw_crops(world, settings.crops // workers, settings.crop_px, rng))

    loop = LoopSettings(settings.n_steps, settings.learning_rate)
    return fit(network, loss_of_part, loop, on_progress=on_progress, cancel=cancel, workers=workers)


def _completed(
    image: NDArray[Any],
    frame: EmitterFrame,
    world: EmitterWorld,
    network: ShotNetwork,
    settings: ShotSettings,
    seed: int,
    cancel: threading.Event | None,
) -> TrainedModel:
    """Calibrate threshold and uncertainties on simulated frames of the frame's own density, and sign the card."""

    def on(density_px: float, seed: int) -> Trial:
        if cancel is not None and cancel.is_set():
            raise TrainingCancelled("stopped while the trained model was tried on simulated frames")
        return trial(graph, world.exactly(density_px), seed)

    graph = ShotGraph(network)
    own = on(frame.density_px, seed)
    best = own.expected()
    if best.jaccard < 0.3:
        raise ConvergenceError(
            f"expected to find most of the emitters of simulated frames like this one, got a Jaccard index of "
            f"{best.jaccard:.2f} after {settings.n_steps} steps; train for more --steps, or snap a frame with more "
            "photons or fewer emitters"
        )
    lateral, axial = own.score.sigma_scales(best.threshold)
    graph = ShotGraph(network, sigma_scale=lateral, sigma_z_scale=axial)
    best = on(frame.density_px, seed + 1).expected(best.threshold)
    sigma2 = frame.psf_sigma_px**2
    table = [on(crowding / sigma2, seed).expected() for crowding in TABLE_CROWDING]
    height, width = image.shape[-2:]
    top, left = max(0, (height - _EXAMPLE_PX) // 2), max(0, (width - _EXAMPLE_PX) // 2)
    seen = _seen(image, settings.n_frames, world.missing)
    example = np.ascontiguousarray(seen[..., top : top + _EXAMPLE_PX, left : left + _EXAMPLE_PX])
    with torch.no_grad():
        on_frame = graph(torch.from_numpy(np.ascontiguousarray(seen)), torch.tensor(best.threshold))[0]
    low, high = world.psf.z_range_um
    advice, sentence = _advice(frame, best, len(on_frame) / (height * width), _other_gain(image, frame))
    card = ModelCard(
        method="shot",
        input_dtype=image.dtype.name,
        n_channels=settings.n_frames,
        columns=graph.columns,
        threshold=best.threshold,
        object_diameter_px=2 * math.sqrt(2 * math.log(2)) * frame.psf_sigma_px,
        normalisation={"offset": frame.offset, "scale": frame.gain, "missing": world.missing},
        pixel_size_um=frame.pixel_size_um,
        trained_ranges={
            "density_px": world.density_px,
            "photons": (0.0, world.photons * math.exp(world.photons_spread)),
            "background": world.background,
            **({"z_um": (low, high)} if world.psf.has_z else {}),
        },
        settings={**asdict(settings), "seed": seed},
        quality={
            **_frame_facts(frame),
            "density_found_px": len(on_frame) / (height * width),
            "expected_jaccard": best.jaccard,
            "expected_precision": best.precision,
            "expected_recall": best.recall,
            "expected_rmse_px": best.rmse_px,
            "expected_bound_px": best.bound_px,
            "errors_within_sigma": best.within_sigma,
            "advice": advice,
            "advice_sentence": sentence,
            "warnings": list(frame.notes),
            **(
                {"expected_rmse_z_um": best.rmse_z_um, "expected_bound_z_um": best.bound_z_um}
                if world.psf.has_z
                else {}
            ),
            "detections_on_frame": len(on_frame),
            "by_density": [
                {name: value for name, value in asdict(each).items() if not math.isnan(value)} for each in table
            ],
        },
    )
    return TrainedModel(graph, card, example, input_shape=(height, width))


def _seen(image: NDArray[Any], n_frames: int, missing: float) -> NDArray[Any]:
    """Return what the graph takes of the last frame: (H, W), or (F, H, W) filled where the stack is shorter."""
    stack = image[None] if image.ndim == 2 else image[-n_frames:]
    filled = np.full((n_frames, *stack.shape[1:]), missing).astype(image.dtype)
    filled[n_frames - len(stack) :] = stack
    seen: NDArray[Any] = filled if n_frames > 1 else filled[0]
    return seen


def _other_gain(image: NDArray[Any], frame: EmitterFrame) -> float | None:
    """Return the gain that the frame's noise tells where quite another one was given, counts per photoelectron."""
    if frame.origins["gain"] != "given":
        return None
    try:
        own = read_emitter_frame(
            image, offset=frame.offset, read_noise=frame.read_noise, em_gain=frame.em_gain or None,
            psf_sigma_px=frame.psf_sigma_px,
        )  # fmt: skip
    except ValueError:
        return None
    return own.gain if abs(own.gain - frame.gain) > 0.3 * frame.gain + 5 * own.errors["gain"] else None


def _advice(frame: EmitterFrame, best: Expected, found_px: float, other_gain: float | None) -> tuple[str, str]:
    """Return `green`, `amber` or `red` and one plain sentence."""
    if other_gain is not None:  # as many emitters are found with it, but photons and errors are wrong
        return "red", (
            f"The noise of the frame tells {other_gain:.3g} counts per photoelectron, {frame.gain:.3g} were given: "
            "photons and uncertainties will be wrong by as much; correct --gain, or leave it out."
        )
    ratio = found_px / (best.recall / max(best.precision, 1e-9) * frame.density_px)
    if not 0.5 < ratio < 2:
        return "red", (
            f"On the snapped frame {ratio:.2g} times as many emitters are found as on simulated frames like it: it is "
            "not what was simulated; look at the detections, and give --gain, --baseline or --psf-sigma-px if you know "
            "them."
        )
    if best.jaccard < 0.6:
        return "amber", (
            f"Emitters are so dense or dim that a Jaccard index of {best.jaccard:.2f} is expected; fewer emitters at a "
            "time or more photons would help more than training."
        )
    if frame.density_um2 is not None and frame.density_um2 < SPARSE_UM2:
        return "green", (
            f"Ready: expect a Jaccard index of {best.jaccard:.2f}. With {frame.density_um2:.2g} emitters per um^2 "
            "classical fitting of single emitters is as good here; more at a time would shorten the experiment."
        )
    return "green", f"Ready: expect a Jaccard index of {best.jaccard:.2f} and a lateral error of {best.rmse_px:.2f} px."


def _frame_facts(frame: EmitterFrame) -> dict[str, Any]:
    """Return what the frame revealed, for the card."""
    names = ("gain", "offset", "read_noise", "em_gain", "background", "psf_sigma_px", "photons", "density_px")
    facts: dict[str, Any] = {name: getattr(frame, name) for name in names}
    facts["density_um2"] = frame.density_um2
    facts["read_off_frame"] = frame.lines()
    return facts
