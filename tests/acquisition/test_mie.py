from __future__ import annotations

import numpy as np
import pytest

from oneframe.acquisition.mie import extinction_um2, mie_coefficients, scattering_amplitudes

OPTICS = {"wavelength_um": 0.633, "medium_index": 1.33}
COS_THETA = np.array([1.0, 0.5, -0.7])
SPHERES = [(0.02, 1.2), (0.15, 1.4), (0.228, 1.58), (0.228, 1.2), (0.3, 1.7), (1.1, 1.42)]

# miepython 3.3.0: S1_S2(..., norm="wiscombe"), conjugated to exp(-i w t), and qext * pi * radius^2
STORED = {
    (0.228, 1.58): (
        [1.312746371 - 3.438865804j, 0.566354102 - 0.864012806j, -0.269355423 + 0.273732391j],
        [1.312746371 - 3.438865804j, 0.532803645 - 0.512310344j, 0.202184878 - 0.073705726j],
        0.09465315442385662,
    ),
    (0.3, 1.7): (
        [8.260366832 - 8.575707449j, 0.31164787 + 0.793925579j, 0.735155527 - 0.386601963j],
        [8.260366832 - 8.575707449j, 0.798438076 + 0.967563779j, -0.253244337 - 0.513446511j],
        0.5955985058548555,
    ),
    (0.228, 1.2): (
        [0.280354471 + 1.633452723j, 0.163376857 + 0.594129581j, -0.015193702 - 0.087880942j],
        [0.280354471 + 1.633452723j, 0.099371230 + 0.242519317j, 0.017507806 + 0.055117541j],
        0.020214441731730416,
    ),
}


@pytest.mark.parametrize(("radius_um", "index"), STORED)
def test_amplitudes_and_extinction_equal_stored_values_of_miepython(radius_um: float, index: float) -> None:
    s1, s2 = scattering_amplitudes(COS_THETA, radius_um, index, **OPTICS)
    stored_s1, stored_s2, stored_extinction = STORED[radius_um, index]
    np.testing.assert_allclose(s1, stored_s1, atol=2e-9)
    np.testing.assert_allclose(s2, stored_s2, atol=2e-9)
    assert extinction_um2(radius_um, index, **OPTICS) == pytest.approx(stored_extinction, rel=1e-12)


@pytest.mark.parametrize(("radius_um", "index"), SPHERES)
def test_amplitudes_equal_miepython(radius_um: float, index: float) -> None:
    miepython = pytest.importorskip("miepython", exc_type=ImportError)
    x = 2 * np.pi * 1.33 / 0.633 * radius_um
    theirs = miepython.S1_S2(index / 1.33, x, COS_THETA, norm="wiscombe")
    for own, other in zip(scattering_amplitudes(COS_THETA, radius_um, index, **OPTICS), theirs, strict=True):
        np.testing.assert_allclose(own, np.conj(other), rtol=0, atol=1e-9 * abs(theirs[0][0]))


@pytest.mark.parametrize(("radius_um", "index"), SPHERES)
def test_a_sphere_that_absorbs_nothing_scatters_what_it_takes_out_of_the_beam(radius_um: float, index: float) -> None:
    mu, weight = np.polynomial.legendre.leggauss(200)
    s1, s2 = scattering_amplitudes(mu, radius_um, index, **OPTICS)
    k_per_um = 2 * np.pi * 1.33 / 0.633
    scattered_um2 = np.pi / k_per_um**2 * np.sum(weight * (abs(s1) ** 2 + abs(s2) ** 2))
    extinction = extinction_um2(radius_um, index, **OPTICS)
    assert scattered_um2 == pytest.approx(extinction, rel=1e-9)
    forward, _ = scattering_amplitudes(1.0, radius_um, index, **OPTICS)  # the optical theorem
    assert 4 * np.pi / k_per_um**2 * forward.real == pytest.approx(extinction, rel=1e-12)


@pytest.mark.parametrize("index", [1.2, 1.34, 1.58])
def test_a_very_small_sphere_is_a_dipole_of_the_clausius_mossotti_polarizability(index: float) -> None:
    radius_um, k_per_um = 0.005, 2 * np.pi * 1.33 / 0.633
    polarizability_um3 = 4 * np.pi * radius_um**3 * (index**2 - 1.33**2) / (index**2 + 2 * 1.33**2)
    s1, s2 = scattering_amplitudes(COS_THETA, radius_um, index, **OPTICS)
    dipole = -1j * k_per_um**3 * polarizability_um3 / (4 * np.pi)
    np.testing.assert_allclose(s1, np.full(3, dipole), rtol=0, atol=5e-3 * abs(dipole))
    np.testing.assert_allclose(s2, dipole * COS_THETA, rtol=0, atol=5e-3 * abs(dipole))


def test_a_sphere_of_the_mediums_index_is_invisible() -> None:
    s1, s2 = scattering_amplitudes(COS_THETA, 0.5, 1.33, **OPTICS)
    assert max(abs(s1).max(), abs(s2).max()) < 1e-12


@pytest.mark.parametrize(("radius_um", "index"), [(0.0, 1.58), (-0.1, 1.58), (0.2, 0.0), (float("nan"), 1.5)])
def test_a_sphere_without_size_or_index_is_refused(radius_um: float, index: float) -> None:
    with pytest.raises(ValueError, match="expected radius, index, wavelength and medium index above 0"):
        mie_coefficients(radius_um, index, **OPTICS)
