"""Every sphere of a field is found where it is, and nothing else; the box picks one of them."""

import numpy as np
import pytest
from scatterers import WATER, Sphere, noise, scattered

from oneframe.acquisition import open_source
from oneframe.runtime.field_background import field_noise
from oneframe.runtime.focal_planes import band_per_um, pixels_per_cell

pytest.importorskip("torch", reason="needs oneframe[train]")  # of the room, not of this file

from oneframe.trainer.crops import Box
from oneframe.trainer.hologram_particles import Spot, find_particles, pick

FIELD = WATER.with_pixel(0.2)
EVERY = pixels_per_cell(FIELD)
DEPTH_UM = FIELD.medium_index / (FIELD.wavelength_um * band_per_um(FIELD, EVERY) ** 2)
Z_UM = (-8.0, 8.0)


@pytest.mark.parametrize("options", ["", "&field_noise=0.03", "&radius_um=0.17,0.228"])
@pytest.mark.parametrize("seed", range(4))
def test_every_sphere_is_found_and_nothing_else(options, seed):
    source = open_source(f"sim:hologram?kind=field&n=7&separation_um=5&z_um=5&seed={seed}{options}")
    re, im = source.read(5.0).pixels
    field = (re + 1j * im).astype(np.complex64)
    truth = source.truth()
    spots = find_particles(field, FIELD, EVERY, Z_UM, field_noise(field))
    assert len(spots) == 7
    assert [spot.signal for spot in spots] == sorted((spot.signal for spot in spots), reverse=True)
    for y_px, x_px, z_um in zip(truth.y_px, truth.x_px, truth.z_um, strict=True):
        nearest = min(spots, key=lambda spot: np.hypot(spot.y_px - y_px, spot.x_px - x_px))
        assert abs(nearest.y_px - y_px) < EVERY / 2
        assert abs(nearest.x_px - x_px) < EVERY / 2
        assert abs(nearest.z_um - z_um) < DEPTH_UM / 2


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_found_where_there_is_none(seed):
    rng = np.random.default_rng(seed)
    field = (1 + noise(rng, FIELD, (256, 256), 0.02)).astype(np.complex64)
    assert find_particles(field, FIELD, EVERY, Z_UM, field_noise(field)) == []
    in_line = (1 + rng.normal(0, 0.02, (256, 256))).astype(np.complex64)
    assert find_particles(in_line, WATER, pixels_per_cell(WATER), (2.0, 24.0), field_noise(in_line)) == []


def test_a_field_without_light_or_noise_holds_nothing():
    assert find_particles(np.ones((64, 64), np.complex64), FIELD, EVERY, Z_UM, 0.0) == []
    rounding = np.random.default_rng(0).normal(1, 1e-7, (64, 64)).astype(np.complex64)  # a frame over itself
    assert find_particles(rounding, FIELD, EVERY, Z_UM, 0.0) == []


def test_spheres_beyond_the_range_and_lighter_ones_do_not_count():
    """At the ends of the range the focus lies beyond; Im E_s of what is lighter than the medium is negative."""
    field = scattered(FIELD, (192, 192), Sphere(10, 10, 0.0), Sphere(28, 28, 12.0), Sphere(10, 28, 0.0, index=1.2))
    spots = find_particles(field.astype(np.complex64), FIELD, EVERY, (-4.0, 4.0), 0.005)
    assert [(round(spot.y_px * 0.2), round(spot.x_px * 0.2)) for spot in spots] == [(10, 10)]


def spot(y_px: float, x_px: float, signal: float = 0.5) -> Spot:
    return Spot(y_px, x_px, 0.0, signal)


CROWD = [spot(40, 40, 0.9), spot(48, 44, 0.8), spot(150, 130, 0.7), spot(160, 30, 0.1)]
"""Two side by side, one alone, and one alone but faint."""


def picked(box, spots=CROWD) -> Spot:
    return pick(spots, box, 2, (200, 200), 0.2)


def test_the_box_picks_the_strongest_inside():
    assert picked(Box(60, 60, 60, 60)) == CROWD[0]
    assert picked(Box(86, 94, 10, 10)) == CROWD[1]  # x 88, y 96 of the camera
    assert picked(Box(250, 290, 30, 30)) == CROWD[2]


def test_without_a_box_the_strongest_and_with_auto_the_lonely_one():
    assert picked(None) == CROWD[0]
    assert picked("auto") == CROWD[2]
    assert picked("auto", CROWD[:1]) == CROWD[0]


def test_auto_keeps_away_from_the_edge():
    assert picked("auto", [spot(3, 100), spot(100, 100), spot(120, 60)]).y_px > 3


def test_a_box_without_a_particle_says_where_there_are_some():
    with pytest.raises(
        ValueError, match=r"expected a particle in the box, found none .* at x 80 y 80, x 88 y 96,.*box"
    ):
        picked(Box(0, 0, 20, 20))


def test_a_frame_without_a_particle_says_what_to_do():
    for box in (None, "auto", Box(0, 0, 20, 20)):
        with pytest.raises(ValueError, match=r"found none that comes to a focus; snap a frame with particles, check"):
            picked(box, [])


def test_a_box_holds_its_first_row_and_column_and_not_the_one_after_its_last():
    box = Box(10, 20, 6, 8)
    assert spot(10, 5).within(box, 2)
    assert not spot(14, 5).within(box, 2)
    assert not spot(10, 8).within(box, 2)
    assert spot(27.9, 15.9).within(box, 1)
