"""How many, how dense, how precise: the numbers behind the activation laser."""

import math
from dataclasses import replace

import numpy as np
import pytest

from oneframe.acquisition import Frame
from oneframe.runtime.density import RecentEmitters, emitters_of
from oneframe.runtime.detections import Detections


def frame(pixel_size_um=None) -> Frame:
    return Frame(np.zeros((50, 80), np.uint16), 0, 1.7e9, pixel_size_um)


def found(n: int, sigma=(0.06, 0.08)) -> Detections:
    one = np.ones(n, np.float32)
    return Detections(one, one, 0.75 * one, sigma_y_px=sigma[0] * one, sigma_x_px=sigma[1] * one)


def test_the_figures_of_a_frame():
    emitters = emitters_of(frame(0.1), found(20))
    assert (emitters.n, emitters.expected) == (20, 15)
    assert emitters.per_1000px2 == pytest.approx(5)
    assert emitters.per_um2 == pytest.approx(20 / (5 * 8))
    assert emitters.precision_nm == pytest.approx(1e2 * math.sqrt((0.06**2 + 0.08**2) / 2), rel=1e-4)
    assert emitters.density_text() == ("0.50", "/µm²")
    assert emitters.precision_text() == ("7.1", "nm")


def test_without_a_pixel_size_lengths_are_pixels_and_the_models_size_stands_in():
    emitters = emitters_of(frame(), found(20))
    assert emitters.per_um2 is None
    assert emitters.precision_nm is None
    assert emitters.density_text() == ("5.0", "/1000 px²")
    assert emitters.precision_text() == ("0.07", "px")
    assert emitters_of(frame(), found(20), 0.1).per_um2 == pytest.approx(0.5)
    assert emitters_of(frame(0.2), found(20), 0.1).per_um2 == pytest.approx(0.125)


def test_an_empty_frame_has_a_density_and_no_precision():
    emitters = emitters_of(frame(0.1), found(0))
    assert emitters.per_um2 == 0
    assert math.isnan(emitters.precision_px)
    assert emitters.precision_text() == ("–", "nm")


def test_a_model_without_predicted_errors_has_none_of_this():
    plain = replace(found(3), sigma_y_px=None, sigma_x_px=None)
    assert emitters_of(frame(), plain) is None
    recent = RecentEmitters()
    recent.add(frame(), plain)
    assert recent.mean is None


def test_the_last_frames_are_averaged_and_empty_ones_do_not_spoil_the_precision():
    recent = RecentEmitters(4, pixel_size_um=0.1)
    for n in (1000, 10, 20, 0, 30):
        recent.add(frame(), found(n, (0.05, 0.05)))
    assert recent.mean.n == 15
    assert recent.mean.precision_nm == pytest.approx(5, rel=1e-4)
    assert recent.mean.per_um2 == pytest.approx(15 / 40)
