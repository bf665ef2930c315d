"""The network's planes are the field at other distances, on fewer pixels, and cover the z that was asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scatterers import WATER, Sphere, scattered

from oneframe.runtime.focal_planes import CELL_WAVELENGTHS, FocalPlanes, band_per_um, pixels_per_cell, planes_for
from oneframe.runtime.optics import Optics
from oneframe.runtime.refocus import Refocuser

FIELD = WATER.with_pixel(0.2)
EVERY = pixels_per_cell(FIELD)


def band_limited(shape: tuple[int, int], every: int, seed: int = 0) -> np.ndarray:
    """A random scattered field with no frequency that the planes leave out."""
    rng = np.random.default_rng(seed)
    f_y, f_x = (np.fft.fftfreq(n, FIELD.pixel_um) for n in shape)
    inside = f_y[:, None] ** 2 + f_x**2 <= band_per_um(FIELD, every) ** 2
    spectrum = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) * inside
    return np.fft.ifft2(spectrum).astype(np.complex64)


def complex_planes(channels: np.ndarray) -> np.ndarray:
    n = len(channels) // 2
    return channels[:n] + 1j * channels[n:]


@given(
    cells=st.tuples(st.integers(16, 45), st.integers(16, 45)),
    left_out=st.tuples(st.integers(0, EVERY - 1), st.integers(0, EVERY - 1)),
    z_um=st.floats(-12, 12),
)
@settings(max_examples=30, deadline=None)
def test_planes_are_the_refocused_field_at_the_cells(cells, left_out, z_um):
    """Also of odd and prime shapes; rows and columns that fill no cell are left out."""
    part = (cells[0] * EVERY, cells[1] * EVERY)
    shape = (part[0] + left_out[0], part[1] + left_out[1])
    whole = np.full(shape, 9, np.complex64)
    whole[: part[0], : part[1]] = band_limited(part, EVERY)
    planes = FocalPlanes(FIELD, shape, EVERY, (z_um, 0.0))
    refocuser = Refocuser(FIELD, part)
    found = complex_planes(planes.of(whole))
    assert planes.field_shape == shape
    assert found.shape == (2, *cells)
    for plane, z in zip(found, (z_um, 0.0), strict=True):
        expected = refocuser.refocus(whole[: part[0], : part[1]], z)[::EVERY, ::EVERY]
        np.testing.assert_allclose(plane, expected, atol=2e-6 * np.sqrt(whole.size))


@pytest.mark.parametrize("shape", [(61, 67), (127, 64), (45, 101)])
def test_cells_that_are_pixels_lose_nothing_of_the_field(shape):
    planes = FocalPlanes(FIELD, shape, 1, (3.0,))
    field = band_limited(shape, 1)
    np.testing.assert_allclose(
        complex_planes(planes.of(field))[0], Refocuser(FIELD, shape).refocus(field, 3.0), atol=1e-4
    )


def test_the_planes_are_linear_in_the_light_and_leave_it_as_it_was():
    planes = FocalPlanes(FIELD, (64, 64), EVERY, (-2.0, 2.0))
    field = band_limited((64, 64), EVERY)
    before = field.copy()
    np.testing.assert_allclose(planes.of(np.float32(2.5) * field), 2.5 * planes.of(field), atol=1e-5)
    np.testing.assert_array_equal(field, before)
    assert planes.of(field).dtype == np.float32
    assert not planes.of(np.zeros((64, 64), np.complex64)).any()


@pytest.mark.parametrize("z_um", [-5.0, -3.1, -0.4, 0.0, 0.9, 2.6, 4.9])
def test_a_sphere_is_brightest_in_the_plane_nearest_to_it(z_um):
    distances = np.arange(-5.0, 5.1, 2.0)
    field = scattered(FIELD, (128, 128), Sphere(12.8, 8.0, z_um)) - 1  # on cells [32, 20]
    planes = FocalPlanes(FIELD, (128, 128), EVERY, tuple(distances))
    n = len(distances)
    signal = planes.of(field.astype(np.complex64))[n:]
    brightest, y, x = np.unravel_index(np.argmax(signal), signal.shape)
    assert (y, x) == (32, 20)
    assert abs(distances[brightest] - z_um) == pytest.approx(np.abs(distances - z_um).min())


@given(low=st.floats(-30, 30), width=st.floats(0.5, 40))
def test_the_planes_cover_the_range(low, width):
    high = low + width
    planes = np.array(planes_for(FIELD, EVERY, (low, high)))
    spacing = width / len(planes)
    depth_um = FIELD.medium_index / (FIELD.wavelength_um * band_per_um(FIELD, EVERY) ** 2)
    assert len(planes) >= 3
    np.testing.assert_allclose(np.diff(planes), spacing, atol=2e-4)
    assert planes[0] - low == pytest.approx(spacing / 2, abs=1e-4)
    assert high - planes[-1] == pytest.approx(spacing / 2, abs=1e-4)
    assert spacing < 1.5 * depth_um  # no particle is out of focus everywhere


@given(
    pixel_um=st.floats(0.02, 1.0), wavelength_um=st.floats(0.35, 1.1), na=st.floats(0.1, 1.45), index=st.floats(1, 1.52)
)
def test_cells_suit_every_instrument(pixel_um, wavelength_um, na, index):
    optics = Optics(wavelength_um, index, na, pixel_um)
    every = pixels_per_cell(optics)
    assert every >= 1
    assert every == 1 or every * pixel_um <= CELL_WAVELENGTHS * wavelength_um
    assert (every + 1) * pixel_um > CELL_WAVELENGTHS * wavelength_um
    band = band_per_um(optics, every)
    assert 0 < band <= optics.pupil_radius_per_um
    assert band < 0.5 / (every * pixel_um)  # below what the cells can hold
