"""Fields at other distances: spheres come to focus where they are, and nothing is lost inside the aperture."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scatterers import WATER, Sphere, noise, scattered

from oneframe.runtime.optics import Optics
from oneframe.runtime.refocus import Refocuser

FIELD = WATER.with_pixel(0.2)
DATA = Path(__file__).parents[2].parent / "shared" / "data" / "holography"
SHAPES = [(128, 128), (127, 128), (101, 133)]


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.abs(difference) ** 2)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("z_um", [-5.0, 3.0, 40.0])
def test_a_sphere_at_z_is_as_if_in_focus_after_refocusing_by_z(shape, z_um):
    there = scattered(FIELD, shape, Sphere(9.0, 12.3, z_um))
    focused = scattered(FIELD, shape, Sphere(9.0, 12.3, 0.0))
    refocused = Refocuser(FIELD, shape).refocus(there.astype(np.complex64), z_um)
    assert refocused.dtype == np.complex64
    assert rms(refocused - focused) < 3e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_forth_and_back_restores_the_field(shape):
    refocuser = Refocuser(FIELD, shape)
    rng = np.random.default_rng(0)
    field = scattered(FIELD, shape, Sphere(9.0, 12.3, 2.0)) + noise(rng, FIELD, shape, 0.1)
    back = refocuser.refocus(refocuser.refocus(field, 7.3), -7.3)
    assert rms(back - field) < 3e-6


def test_energy_never_grows_and_what_the_objective_cannot_pass_is_dropped():
    rng = np.random.default_rng(0)
    white = (rng.normal(size=(64, 64)) + 1j * rng.normal(size=(64, 64))).astype(np.complex64)
    refocuser = Refocuser(FIELD, (64, 64))
    energy = [np.sum(np.abs(refocuser.refocus(white, z)) ** 2) for z in (0.0, -3.0, 8.0)]
    assert energy == pytest.approx([energy[0]] * 3, rel=1e-5)
    assert energy[0] < 0.6 * np.sum(np.abs(white) ** 2)


def test_the_background_stays_one():
    assert rms(Refocuser(FIELD, (32, 33)).refocus(np.ones((32, 33)), 12.34) - 1) < 1e-6


def test_a_stack_is_its_planes():
    field = scattered(FIELD, (64, 65), Sphere(6.0, 6.0, 1.0)).astype(np.complex64)
    refocuser = Refocuser(FIELD, (64, 65))
    z_um = np.linspace(-3, 3, 7)
    stack = refocuser.stack(field, z_um)
    np.testing.assert_array_equal(stack, [refocuser.refocus(field, z) for z in z_um])
    np.testing.assert_array_equal(refocuser.stack(field, z_um), stack)  # once more, from the kernels kept
    assert refocuser.stack(field, []).shape == (0, 64, 65)


def test_distances_come_and_go_and_memory_stays():
    refocuser = Refocuser(FIELD, (32, 32))
    kernels = [refocuser.kernel(z) for z in range(100)]
    assert len(refocuser._kernels) < 10
    np.testing.assert_array_equal(refocuser.kernel(3), kernels[3])


def test_a_field_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(32, 32\), got \(32, 33\); make a Refocuser for this shape"):
        Refocuser(FIELD, (32, 32)).refocus(np.ones((32, 33), np.complex64), 1.0)


def test_agrees_with_nrefocus_on_a_real_cell():
    nrefocus = pytest.importorskip("nrefocus")
    path = DATA / "nrefocus" / "HL60_field.zip"
    if not path.exists():
        pytest.skip("the field of the HL60 cell is not there")
    with zipfile.ZipFile(path) as archive:
        parts = [np.loadtxt(io.BytesIO(archive.read(f"HL60_{part}.txt"))) for part in ("real", "imag")]
    field = parts[0] + 1j * parts[1]
    # na beyond the medium's index: every wave that propagates, as nrefocus; padding=False: periodic, as here
    optics = Optics(wavelength_um=0.647, medium_index=1.3333, na=1.4, pixel_um=0.139)
    theirs = nrefocus.RefocusNumpy(field, 0.647e-6, 0.139e-6, medium_index=1.3333, padding=False)
    for z_um in (-4.0, 0.5, 11.0):
        ours = Refocuser(optics, field.shape).refocus(field, z_um)
        assert rms(ours - theirs.propagate(z_um * 1e-6)) < 3e-6 * rms(field)
