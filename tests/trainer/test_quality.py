"""The quality card tells a good model from a bad one."""

import numpy as np
import pytest
import torch

from oneframe.trainer.quality import OnViews, Repeatability, advice, repeatability


def on_views(**changed):
    values = {
        "rmse_px": 0.05,
        "found": 1.0,
        "within_sigma": 0.68,
        "variance_px2": torch.ones(5),
        "score": torch.ones(5),
    }
    return OnViews(**{**values, **changed})


STEADY = Repeatability(1.0, 0.0, 0.0, 0.03)


def test_the_card_of_a_default_training_is_green_and_at_the_bound(bead_model):
    quality = bead_model.trained.card.quality
    assert quality["advice"] == "green", quality
    assert quality["bound_px"] * 0.8 < quality["expected_rmse_px"] < quality["bound_px"] * 1.3
    assert 0.55 < quality["errors_within_sigma"] < 0.8
    assert quality["found_on_views"] == 1.0
    assert quality["found_again"] >= 0.9
    assert quality["repeat_shift_px"] < 0.02
    assert quality["repeat_noise_px"] < 0.15
    assert quality["detections_on_frame"] == len(bead_model.snap.truth.y_px)
    assert quality["reference"]["n"] >= 8
    for name in ("variance_px2", "score"):
        low, middle, high = quality["reference"][name]
        assert low <= middle <= high


@pytest.mark.parametrize(
    ("changed", "level", "words"),
    [
        ({}, "green", "expect 0.050 px"),
        ({"n_found": 0}, "red", "Nothing was found"),
        ({"views": on_views(found=0.5)}, "red", "Only 50 %"),
        ({"repeated": Repeatability(0.6, 0, 0, 0)}, "red", "Only 60 %"),
        ({"repeated": Repeatability(0.8, 0, 0, 0)}, "amber", "20 % of the detections come and go"),
        ({"warnings": ["The box is saturated."]}, "amber", "The box is saturated."),
        ({"gap": 1.1}, "amber", "the threshold is a guess"),
        ({"views": on_views(rmse_px=0.2)}, "amber", "the light would allow 0.045 px"),
    ],
)
def test_the_advice_says_what_is_wrong(changed, level, words):
    facts = {"views": on_views(), "bound_px": 0.045, "repeated": STEADY, "n_found": 12, "gap": 5.0, "warnings": []}
    colour, sentence = advice(**{**facts, **changed})
    assert colour == level
    assert words in sentence


def brightest(image, bias=0.0):
    """Detect the centre of mass of the bright pixels; `bias` drags it towards the top left corner of the picture."""
    rows, columns = torch.meshgrid(*map(torch.arange, image.shape), indexing="ij")
    weight = (image > 50).float()
    y, x = (weight * rows).sum() / weight.sum() - bias, (weight * columns).sum() / weight.sum() - bias
    return y[None], x[None], torch.ones(1)


def square():
    image = np.zeros((64, 64), np.uint16)
    image[30:35, 25:30] = 100
    return image


def test_a_steady_detector_repeats_itself():
    found = repeatability(brightest, square(), 1.0, 8.0, seed=0)
    assert found.found_again == 1
    assert found.shift_px == pytest.approx(0, abs=1e-4)
    assert found.flip_px == pytest.approx(0, abs=1e-4)


def test_a_biased_detector_is_seen_in_the_flips():
    found = repeatability(lambda image: brightest(image, bias=0.3), square(), 1.0, 8.0, seed=0)
    assert found.shift_px == pytest.approx(0, abs=1e-4)
    assert found.flip_px == pytest.approx(0.6 / np.sqrt(2), rel=0.01)  # one of the axes is flipped at a time


def test_a_detector_that_finds_nothing_repeats_nothing():
    found = repeatability(lambda _: (torch.zeros(0),) * 3, square(), 1.0, 8.0, seed=0)
    assert found.found_again == 0
    assert found.noise_px == float("inf")
