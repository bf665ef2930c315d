"""Pictures of fields: the background is the same grey in every plane, lengths are right, nothing is cut off."""

import math

import numpy as np
import pytest
from scatterers import CARRIER, WATER, Sphere, off_axis, scattered

from oneframe.runtime.field_picture import MOST_TILES, FieldContrast, bar_length_um, field_panels, montage
from oneframe.runtime.refocus import Refocuser

FIELD = WATER.with_pixel(0.2)
SPHERE = Sphere(6.0, 12.0, 2.0)


def field(shape=(64, 96)) -> np.ndarray:
    return scattered(FIELD, shape, SPHERE).astype(np.complex64)


def bar_px(picture: np.ndarray, line_from_bottom: int) -> int:
    """Length of the scale bar, the longest bright run in the legend."""
    rows = picture[-line_from_bottom:, :, 0] == 225
    longest = 0
    for row in rows:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        longest = max(longest, int((edges[1::2] - edges[::2]).max(initial=0)))
    return longest


def test_the_background_is_middle_grey_in_every_plane():
    refocuser, z_um = Refocuser(FIELD, (64, 96)), [-4.0, 0.0, 2.0, 6.0]
    e = field()
    contrast = FieldContrast.of([e])
    for z in z_um:
        plane = refocuser.refocus(e, z)
        assert np.median(contrast.amplitude_rgb(plane)) in (127, 128), z
        assert np.median(contrast.phase_rgb(plane)) in (127, 128), z


def test_a_particle_in_focus_and_its_rings_out_of_focus_both_show():
    refocuser = Refocuser(FIELD, (128, 128))
    near, far = refocuser.refocus(field((128, 128)), 2.0), refocuser.refocus(field((128, 128)), 6.0)
    contrast = FieldContrast.of([near, far])
    assert contrast == FieldContrast.of([far, near])
    assert contrast.phase_rgb(near).max() == 255
    rings = contrast.amplitude_rgb(far)[:, :, 0].astype(int)
    assert rings.max() - rings.min() > 40


def test_a_weak_field_is_not_stretched_to_noise_and_a_strong_one_goes_round_in_colours():
    rng = np.random.default_rng(0)
    noise = (1 + 0.001 * rng.normal(size=(64, 64))).astype(np.complex64)
    assert FieldContrast.of([noise]) == FieldContrast(0.02, 0.02)
    ramp = np.exp(1j * np.linspace(-math.pi, math.pi, 200)).astype(np.complex64) * np.ones((8, 1), np.complex64)
    contrast = FieldContrast.of([ramp])
    assert contrast.phase_rad == math.pi
    rgb = contrast.phase_rgb(ramp)[0].astype(int)
    assert np.abs(rgb[0] - rgb[-1]).max() < 12  # -pi and +pi are the same phase
    assert np.abs(rgb[50] - rgb[150]).max() > 60  # -pi/2 and +pi/2 are not
    assert np.abs(np.diff(rgb, axis=0)).max() < 25  # no seam


@pytest.mark.parametrize(
    ("shape", "n"), [((64, 96), 1), ((64, 96), 7), ((33, 41), 64), ((900, 1200), 5), ((32, 400), 3), ((400, 32), 12)]
)
def test_montage_shows_every_plane_within_a_screen_or_two(shape, n):
    fields = [np.full(shape, 1 + 0.2 * i / n, np.complex64) for i in range(n)]
    z_um = list(np.linspace(-3, 3, n)) if n > 1 else [1.0]
    picture = montage(fields, z_um, shape=shape, pixel_um=0.2, captions=["field noise 0.004"])
    assert picture.dtype == np.uint8
    assert picture.shape[0] <= 1650
    assert picture.shape[1] <= 2400
    greys = {int(grey) for grey in np.unique(picture[:, :, 0]) if np.count_nonzero(picture[:, :, 0] == grey) > 400}
    assert len(greys) >= min(n, 20)  # every plane has its own


@pytest.mark.parametrize("shape", [(64, 96), (700, 900)])
def test_the_scale_bar_is_as_long_as_it_says(shape):
    picture = montage([np.ones(shape, np.complex64)], [0.0], shape=shape, pixel_um=0.2)
    k = 5 if shape == (64, 96) else 560 / 900
    widest_um = min(0.4 * shape[1] * k, 150) * 0.2 / k
    assert bar_px(picture, 32) == pytest.approx(bar_length_um(widest_um) / 0.2 * k, abs=1)


def test_planes_stand_where_they_belong():
    """One plane is dark: its amplitude tile is the dark one, its phase tile is not."""
    fields = [np.ones((100, 100), np.complex64) for _ in range(4)]
    fields[2] *= np.float32(0.5)
    picture = montage(fields, [0, 1, 2, 3], shape=(100, 100), pixel_um=0.2)[:, :, 0]
    dark = np.argwhere(picture[:-32] == 0)  # without the legend
    height = dark[:, 0].max() - dark[:, 0].min() + 1
    width = dark[:, 1].max() - dark[:, 1].min() + 1
    assert height == width
    assert height % 100 == 0
    assert (picture[dark[:, 0].min() + 60, dark[:, 1].max() + 20 :][: width // 2] > 120).all()


def test_panels_show_hologram_amplitude_and_phase_at_one_scale():
    e = scattered(WATER, (128, 192), SPHERE)
    hologram = off_axis(WATER, e, CARRIER)
    picture = field_panels(hologram, e[::2, ::2].astype(np.complex64), pixel_um=0.2, captions=["carrier"])
    k = 720 // 96
    assert picture.shape == (24 + 64 * k + 32 + 24, 3 * 96 * k + 12, 3)
    phase = picture[24 : 24 + 64 * k, 2 * (96 * k + 6) :, 0].astype(float) - 127.5
    y, x = np.unravel_index(np.argmax(np.abs(phase)), phase.shape)
    assert abs(y / k - SPHERE.y_um / 0.2) < 4
    assert abs(x / k - SPHERE.x_um / 0.2) < 4


def test_panels_without_hologram_without_phase_and_of_odd_or_large_frames():
    e = field()
    two = field_panels(None, e, pixel_um=0.2, captions=[])
    assert two.shape[1] == 2 * 96 * 7 + 6
    real = field_panels(np.abs(e), np.abs(e).astype(np.complex64), pixel_um=0.2, captions=[])
    assert real.shape[1] == 2 * 96 * 7 + 6
    odd = field_panels(np.ones((129, 193)) + np.arange(193), e, pixel_um=0.2, captions=[])
    assert odd.shape[1] == 3 * 96 * 7 + 12
    large = field_panels(np.ones((1800, 2000)) + np.arange(2000), np.ones((900, 1000), np.complex64) * np.exp(0.1j),
                         pixel_um=0.2, captions=["long " * 400])  # fmt: skip
    assert large.shape[1] == 3 * 720 + 12
    assert 648 < large.shape[0] < 1100
    assert (large[-100:, -4:] == large[-1, -1]).all()  # a long caption is broken, not cut off


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=f"expected 1 to {MOST_TILES} planes in a picture, got 65"):
        montage([], [0.0] * 65, shape=(64, 64), pixel_um=0.2)
    with pytest.raises(ValueError, match="got 0; take fewer"):
        montage([], [], shape=(64, 64), pixel_um=0.2)
    with pytest.raises(ValueError, match="pass the field that was read from it"):
        field_panels(np.ones((64, 64)), field((64, 96)), pixel_um=0.2, captions=[])
