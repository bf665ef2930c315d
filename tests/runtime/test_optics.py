"""The optics refuse slips of the unit and say what follows from pixels that are too coarse."""

import math
from dataclasses import replace

import pytest
from scatterers import CARRIER, WATER

from oneframe.runtime.optics import Optics


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("wavelength_um", 633.0, "wavelength_um between 0.1 and 5, got 633; give the vacuum wavelength in micrometres"),
        ("wavelength_um", 6.33e-7, "0.633 for 633 nm"),
        ("medium_index", 0.0, "medium_index between 1 and 3, got 0; give the refractive index"),
        ("na", 40.0, "na between 0.005 and 1.75, got 40; give the numerical aperture"),
        ("pixel_um", 114.0, "pixel_um between 0.001 and 50, got 114; give the camera's pixel over the magnification"),
        ("pixel_um", math.nan, "got nan"),
    ],
)
def test_a_slip_of_the_unit_is_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        replace(WATER, **{name: value})


def test_the_sampling_law_of_the_paper_s_instrument():
    assert pytest.approx(0.633 / (4.83 * 1.3), rel=1e-3) == WATER.off_axis_pixel_um
    assert WATER.off_axis_warning(CARRIER) == ""
    warning = WATER.with_pixel(0.114).off_axis_warning((2.217, 2.499))
    assert "zero order leaks" in warning
    assert "the sideband folds back (4.55 of at most 4.39 cycles/um)" in warning
    assert "use pixels of at most 0.1008 um (now 0.114), or close the aperture" in warning


def test_with_fine_enough_pixels_the_reference_wave_is_to_blame():
    assert "tilt the reference wave more" in WATER.off_axis_warning((1.5, 1.5))
    warning = WATER.off_axis_warning((4.2, 0.0))
    assert "turn the fringes to the diagonal" in warning
    assert "leaks" not in warning


def test_a_field_on_coarse_pixels_folds_back():
    assert WATER.with_pixel(0.2).field_warning() == ""
    assert "at most 0.2435 um; the steep waves fold back" in WATER.with_pixel(0.25).field_warning()


def test_an_aperture_beyond_the_medium_passes_what_the_medium_propagates():
    assert replace(WATER, na=1.49).pupil_radius_per_um == pytest.approx(1.33 / 0.633)


def test_half_of_the_pupil_stays_in_the_window_up_to_the_z_limit():
    dry = Optics(wavelength_um=0.5, medium_index=1.0, na=0.5, pixel_um=0.2)
    angle = math.asin(0.5 / math.sqrt(2))
    assert math.tan(angle) * dry.z_limit_um(10.0) == pytest.approx(5.0)
