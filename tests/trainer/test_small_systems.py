"""Many small systems at once: what LAPACK gives, however large or small the entries are."""

import numpy as np
import pytest
import torch

from oneframe.trainer.small_systems import Elimination, Minors

SOLVERS = pytest.mark.parametrize(("solver", "n"), [(Elimination(5), 5), (Minors(), 4)], ids=["elimination", "minors"])
SIZES = torch.tensor([1.0, 10.0, 0.1, 1.0, 3.0])


def systems(n: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    root = torch.randn((50, n, 200), generator=generator) * SIZES[:n, None]
    root[:, 1] += 5 * root[:, 0]  # no strangers to each other, as a particle and its background
    return scale * root @ root.mT, torch.randn((50, n), generator=generator)


@SOLVERS
@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e4])
def test_many_systems_are_solved_as_lapack_solves_them(solver, n, scale):
    matrix, right = systems(n, scale)
    solution, inverse = solver(matrix, right)
    exact = matrix.double() + 1e-6 * torch.diag_embed(matrix.double().diagonal(dim1=1, dim2=2))
    away = (solution - torch.linalg.solve(exact, right.double()[..., None])[..., 0]) / inverse.sqrt()
    assert float(away.abs().max()) < 1e-4 / scale**0.5
    np.testing.assert_allclose(inverse, torch.linalg.inv(exact).diagonal(dim1=1, dim2=2), rtol=1e-4)


@SOLVERS
def test_a_system_that_knows_nothing_has_a_finite_solution(solver, n):
    solution, _ = solver(torch.zeros(3, n, n), torch.zeros(3, n))
    assert bool((solution == 0).all())
    alike = torch.ones(3, n, n)  # all unknowns mean the same
    solution, inverse = solver(alike, torch.ones(3, n))
    assert bool(torch.isfinite(solution).all() & torch.isfinite(inverse).all())
    assert not len(solver(torch.zeros(0, n, n), torch.zeros(0, n))[0])


@SOLVERS
def test_few_equations_are_solved_as_lapack_solves_them(solver, n):
    generator = torch.Generator().manual_seed(9)
    root = torch.randn((50, n, 12), generator=generator) * SIZES[:n, None]
    matrix, right = root @ root.mT, torch.randn((50, n), generator=generator)
    solution, inverse = solver(matrix, right)
    np.testing.assert_allclose(solution, torch.linalg.solve(matrix, right[..., None])[..., 0], rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(inverse, torch.linalg.inv(matrix).diagonal(dim1=1, dim2=2), rtol=2e-3)


@SOLVERS
def test_digits_are_kept_however_large_the_pivots(solver, n):
    generator = torch.Generator().manual_seed(10)
    root = torch.randn((50, n, 200), generator=generator) * (300 * SIZES[:n, None])
    matrix, right = root @ root.mT, torch.randn((50, n), generator=generator)
    solution, inverse = solver(matrix, right)
    exact = matrix.double() + 1e-6 * torch.diag_embed(matrix.double().diagonal(dim1=1, dim2=2))
    away = (solution - torch.linalg.solve(exact, right.double()[..., None])[..., 0]) / inverse.sqrt()
    assert float(away.abs().max()) < 1e-4
    np.testing.assert_allclose(inverse, torch.linalg.inv(exact).diagonal(dim1=1, dim2=2), rtol=1e-5)
