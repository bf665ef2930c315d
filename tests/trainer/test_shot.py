"""SHOT learns from what one frame reveals, finds molecules of frames it never saw, and knows how well."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from oneframe.acquisition import open_source
from oneframe.acquisition.psf import GaussianPsf, Width
from oneframe.runtime.card import ModelCard
from oneframe.runtime.field_reader import HologramSettings
from oneframe.runtime.localisation_score import LocalisationScore
from oneframe.runtime.model import load_graph
from oneframe.runtime.optics import Optics
from oneframe.trainer import ConvergenceError, TrainingCancelled, train
from oneframe.trainer.emitter_crops import EmitterWorld
from oneframe.trainer.emitter_frame import read_emitter_frame
from oneframe.trainer.lodestar_network import PRESETS
from oneframe.trainer.loop import one_thread
from oneframe.trainer.shot import KNOWN_OF_FRAME, _other_gain, trained_network, world_of
from oneframe.trainer.shot_network import ShotSettings

SMALL = {"channels": 16, "blocks": 2, "crops": 8}
KNOWN = {"offset": 100.0, "pixel_size_um": 0.1}


@pytest.fixture
def brief(monkeypatch):
    """Expectations for one density only, to save time."""
    monkeypatch.setattr("oneframe.trainer.shot.TABLE_CROWDING", (0.034,))


def test_finds_the_molecules_of_frames_it_never_saw(shot_lab):
    model = load_graph(shot_lab.path, threads=1)
    score, chance = LocalisationScore(0.1), LocalisationScore(0.1)
    rng = np.random.default_rng(0)
    source = open_source(f"{shot_lab.scene}&seed=77")
    for _ in range(12):
        found = model.detect(source.read(5.0).pixels)
        score.add(source.truth(), found)
        y_px, x_px = rng.uniform(0, 95, (2, len(found))).astype(np.float32)
        chance.add(source.truth(), replace(found, y_px=y_px, x_px=x_px))
    figures, quality = score.at(), shot_lab.trained.card.quality
    assert figures.n_true > 900
    assert chance.at().jaccard < 0.15
    assert figures.jaccard > 0.5
    # what the card promises is what comes: it saw other frames, and read light and density off one
    assert figures.jaccard == pytest.approx(quality["expected_jaccard"], abs=0.08)
    assert figures.precision == pytest.approx(quality["expected_precision"], abs=0.1)
    assert figures.recall == pytest.approx(quality["expected_recall"], abs=0.1)
    assert figures.rmse_px == pytest.approx(quality["expected_rmse_px"], rel=0.2)
    assert figures.within_sigma == pytest.approx(quality["errors_within_sigma"], abs=0.08)
    assert 0.55 < figures.within_sigma < 0.8


def test_photons_and_background_are_those_of_the_scene(shot_lab):
    model = load_graph(shot_lab.path, threads=1)
    source = open_source(f"{shot_lab.scene}&seed=78")
    bright_true, bright_found, background = [], [], []
    for _ in range(8):
        found = model.detect(source.read(5.0).pixels)
        truth = source.truth()
        distance = np.hypot(found.y_px[:, None] - truth.y_px, found.x_px[:, None] - truth.x_px)
        near = distance.argmin(1)
        mine = (distance.min(1) < 0.5) & (truth.photons[near] > 1500)
        bright_true += truth.photons[near][mine].tolist()
        bright_found += found.photons[mine].tolist()
        background += found.background.tolist()
    assert len(bright_true) > 50
    ratio = np.array(bright_found) / np.array(bright_true)
    assert np.median(ratio) == pytest.approx(1, abs=0.2)  # of few steps: drawn towards the mean
    assert np.median(np.abs(ratio - np.median(ratio))) < 0.15
    assert 15 < np.median(background) < 40


def test_the_card_tells_what_the_frame_told(shot_lab):
    card, quality = shot_lab.trained.card, shot_lab.trained.card.quality
    frame = read_emitter_frame(shot_lab.snap.pixels, **KNOWN)
    assert (card.method, card.n_channels, card.input_dtype, card.pixel_size_um) == ("shot", 1, "uint16", 0.1)
    assert card.columns == ("y_px", "x_px", "score", "photons", "background", "sigma_y_px", "sigma_x_px")
    assert card.normalisation["offset"] == quality["offset"] == 100
    assert card.normalisation["scale"] == quality["gain"] == pytest.approx(frame.gain)
    assert card.object_diameter_px == pytest.approx(2.3548 * frame.psf_sigma_px, rel=1e-3)
    assert quality["read_off_frame"] == frame.lines()
    assert quality["density_um2"] == pytest.approx(frame.density_um2)
    found = load_graph(shot_lab.path, threads=1).detect(shot_lab.snap.pixels)
    assert quality["detections_on_frame"] == len(found)
    assert quality["density_found_px"] == pytest.approx(len(found) / 96**2)
    assert quality["advice"] in ("green", "amber")
    assert len(quality["by_density"]) == 5
    densities = [each["density_px"] for each in quality["by_density"]]
    assert densities == sorted(densities)
    low, high = card.trained_ranges["density_px"]
    assert low < min(densities)
    assert max(densities) < high
    assert card.settings["n_steps"] == 450
    assert card.settings["channels"] == 16
    assert card.crop["box_xywh_px"] == [0, 0, 96, 96]
    assert card == ModelCard.from_json(card.to_json())


def world(n_frames: int = 1) -> EmitterWorld:
    snap = open_source("sim:emitters?width=64&height=64&density_um2=1&seed=3").read(5.0)
    return world_of(read_emitter_frame(snap.pixels, **KNOWN), None, n_frames)


def test_two_workers_give_the_same_network_every_time():
    settings = ShotSettings(channels=8, blocks=1, crops=4, n_steps=12)
    with one_thread():
        first, again, other = (trained_network(world(), settings, seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_same_seed_gives_the_same_model(brief, shot_lab):
    trained = [train(shot_lab.snap.pixels, method="shot", seed=seed, steps=150, **SMALL, **KNOWN) for seed in (4, 4)]
    first, again = (each.graph.state_dict() for each in trained)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert trained[0].card == trained[1].card
    assert trained[0].graph.sigma_scale == trained[1].graph.sigma_scale


def test_a_model_of_three_frames_says_so(brief):
    source = open_source("sim:emitters?width=72&height=64&density_um2=0.5&seed=3&photons=8000")
    stack = np.stack([source.read(5.0).pixels for _ in range(2)])
    told = []
    trained = train(
        stack, method="shot", n_frames=3, steps=150, seed=1, on_frame=told.append, on_frames=1.5, **SMALL, **KNOWN
    )
    card = trained.card
    assert card.n_channels == 3
    level = np.sqrt(np.prod(card.trained_ranges["background"]))
    gain, offset = card.normalisation["scale"], card.normalisation["offset"]
    assert card.normalisation["missing"] == np.rint(offset + gain * level)
    assert trained.example.shape == (3, 64, 72)
    assert (trained.example[0] == card.normalisation["missing"]).all()  # the stack has but two
    np.testing.assert_array_equal(trained.example[1:], stack)
    assert card.crop["frame_shape"] == [64, 72]
    assert told[0].on_frames == 1.5


def test_an_astigmatic_calibration_gives_z(brief):
    psf = GaussianPsf(Width(1.3, 0.25, 0.4), Width(1.3, -0.25, 0.4), (-0.4, 0.4))
    source = open_source("sim:emitters?width=72&height=72&density_um2=0.5&astigmatism_um=0.25&seed=3&photons=8000")
    trained = train(source.read(5.0).pixels, method="shot", psf=psf, steps=250, seed=1, **SMALL, **KNOWN)
    card = trained.card
    assert card.columns[-2:] == ("z_um", "sigma_z_um")
    assert card.trained_ranges["z_um"] == (-0.4, 0.4)
    assert card.quality["expected_rmse_z_um"] < 0.2  # of 0.8 um; whoever says 0 always has 0.23


def test_gain_told_five_times_too_high_is_a_red_card(brief, shot_lab):
    gain = 5 * shot_lab.trained.card.quality["gain"]
    quality = train(shot_lab.snap.pixels, method="shot", gain=gain, steps=200, seed=1, **SMALL, **KNOWN).card.quality
    assert quality["advice"] == "red"


def test_what_does_not_converge_is_no_model(shot_lab):
    with pytest.raises(ConvergenceError, match=r"got a Jaccard index of 0\.\d\d after 2 steps; train for more --steps"):
        train(shot_lab.snap.pixels, method="shot", steps=2, **SMALL, **KNOWN)


def test_cancelling_gives_no_model(shot_lab):
    cancel = threading.Event()
    with pytest.raises(TrainingCancelled, match="stopped at step"):
        train(shot_lab.snap.pixels, method="shot", steps=5000, on_progress=lambda _: cancel.set(), cancel=cancel,
              **SMALL, **KNOWN)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box": (0, 0, 24, 24)}, "expected no box with shot, got one; it learns from the whole frame"),
        ({"box": "auto"}, "expected no box with shot"),
        ({"hologram": HologramSettings("field", Optics(0.6, 1.33, 1.3, 0.1))}, "expected no hologram with shot"),
        ({"reference": np.ones((8, 8))}, "expected no reference with shot"),
        ({"background": "median"}, "expected no background with shot"),
        ({"preset": sorted(set(PRESETS) - {"default"})[0]}, "expected the default preset for shot, got 'paper'"),
        ({"alpha": 1.0}, "expected settings of ShotSettings, got alpha; leave them out"),
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"matching": "best"}, "expected matching exact, sinkhorn or published, got 'best'"),
        ({"gain": -1.0}, "expected gain above 0, got -1"),
        ({"density_um2": 1.0, "pixel_size_um": None}, "expected the pixel size with a density per um"),
    ],
)
def test_options_that_do_not_belong_are_refused(shot_lab, options, message):
    with pytest.raises(ValueError, match=message):
        train(shot_lab.snap.pixels, method="shot", **{**KNOWN, **options})


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((64, 64), np.uint16), "expected an image, got the constant value 0"),
        (np.ones((2, 2, 64, 64), np.uint16), r"expected one plane \(H, W\), got shape \(2, 2, 64, 64\)"),
        (np.random.default_rng(0).poisson(100, (96, 96)).astype(np.uint16), "looks like noise and background alone"),
        (
            np.random.default_rng(0).poisson(100, (20, 20)).astype(np.uint16),
            "expected frames of .* 4096 px together, got 1 of 20 x 20",
        ),
    ],
)
def test_frames_that_tell_nothing_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        train(image, method="shot", **KNOWN)


def test_lodestar_takes_no_point_spread_function(shot_lab):
    with pytest.raises(ValueError, match="expected a point spread function with shot only, got one with lodestar"):
        train(shot_lab.snap.pixels, psf=GaussianPsf.flat(1.3))
    with pytest.raises(ValueError, match="expected settings of LodestarSettings, got offset"):
        train(shot_lab.snap.pixels, offset=100.0)
    assert "offset" in KNOWN_OF_FRAME


@pytest.mark.parametrize(("gain", "em_gain", "factors"), [(1.34, 0.0, (1.0, 0.2)), (12.0, 300.0, (1.0, 5.0))])
def test_a_gain_that_the_noise_contradicts_is_noticed(gain, em_gain, factors):
    scene = f"sim:emitters?width=96&height=96&seed=3&gain={gain}&em_gain={em_gain}&background_high=15"
    image = open_source(scene).read(5.0).pixels
    for factor in factors:
        frame = read_emitter_frame(image, gain=factor * gain, em_gain=em_gain or None, offset=100.0)
        other = _other_gain(image, frame)
        assert other is None if factor == 1 else other == pytest.approx(gain, rel=0.3)
