"""Small symmetric positive systems, many at once, in few operators that ONNX has: it has none that solves.

Both modules take (N, P, P) and (N, P) and return the solution (N, P) and the diagonal of the inverse (N, P). The
diagonal grows by a millionth: a system that knows too little keeps a solution.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn

_RIDGE = 1e-6


class Elimination(nn.Module):
    """Gauss-Jordan elimination, written out."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.register_buffer("identity", torch.eye(n))

    identity: Tensor

    def forward(self, matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Solve; see the top of the file."""
        # the systems come last, so that every step is a few long rows
        unit = self.identity[..., None]
        matrix, right = matrix.permute(1, 2, 0), right.T[:, None]
        # (P, 1, N); scaled to a unit diagonal: the row of a pivot far above 1 would lose its digits in the difference
        size = (matrix * unit).sum(1, keepdim=True).clamp(min=1e-12).sqrt()
        matrix = matrix / (size * size.transpose(0, 1)) + _RIDGE * unit
        right = right / size
        work = torch.cat([matrix, right, unit.expand(matrix.shape)], 1)  # (P, 2 P + 1, N)
        for k, own in enumerate(torch.split(unit, 1, 1)):
            row = work.narrow(0, k, 1)
            work = work - (work.narrow(1, k, 1) - own) * (row / row.narrow(1, k, 1))
        _, solution, inverse = torch.split(work, [self.n, 1, self.n], 1)
        return (solution / size)[:, 0].T, ((inverse * unit).sum(1) / size[:, 0] ** 2).T


class Minors(nn.Module):
    """Four unknowns by Cramer's rule: 2 x 2 minors of the upper and the lower two rows, and sums of their products.

    Which factors make which product is a matrix product with 0 and 1: a third of the operators that elimination takes,
    each of which costs microseconds however few the systems are. Every sum scales as the rows and columns do, so that
    these need not be scaled; the product of the diagonal must stay within float32.
    """

    def __init__(self) -> None:
        super().__init__()
        pairs = list(combinations(range(4), 2))
        factors = torch.zeros(4, 16, 12)
        for m, (top, (i, j)) in enumerate((top, pair) for top in (0, 2) for pair in pairs):
            bottom = top + 1
            for k, (row, column) in enumerate(((top, i), (bottom, j), (top, j), (bottom, i))):
                factors[k, 4 * row + column, m] = 1
        self.register_buffer("factors", factors.permute(1, 0, 2).flatten(1))  # (16, 4 * 12)
        entries, minors, sums = torch.zeros(16, 48), torch.zeros(12, 48), torch.zeros(48, 16)
        term = 0
        for row in range(4):
            partner = row ^ 1  # expanded along it; the minors are those of the other two rows
            for column in range(4):
                rest = [k for k in range(4) if k != column]
                for m, k in enumerate(rest):
                    left, right = (each for each in rest if each != k)
                    entries[4 * partner + k, term] = 1
                    minors[pairs.index((left, right)) + (6 if row < 2 else 0), term] = 1
                    sums[term, 4 * column + row] = (-1) ** (row + column + m)
                    term += 1
        self.register_buffer("entries", entries)
        self.register_buffer("minors", minors)
        self.register_buffer("sums", sums)
        self.register_buffer("ridge", 1 + _RIDGE * torch.eye(4).flatten())
        index = torch.arange(16)
        self.register_buffer("by_column", (index % 4 == torch.arange(4)[:, None]).float())  # (4, 16)
        self.register_buffer("in_row", (index // 4 == torch.arange(4)[:, None]).float().T.clone())  # (16, 4)
        self.register_buffer("first_row", (index[:, None] == torch.arange(4)).float())  # (16, 4)
        self.register_buffer("first_column", (index[:, None] == 4 * torch.arange(4)).float())
        self.register_buffer("diagonal", (index[:, None] == 5 * torch.arange(4)).float())

    factors: Tensor
    entries: Tensor
    minors: Tensor
    sums: Tensor
    ridge: Tensor
    by_column: Tensor
    in_row: Tensor
    first_row: Tensor
    first_column: Tensor
    diagonal: Tensor

    def forward(self, matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Solve; see the top of the file."""
        matrix = matrix.reshape(-1, 16) * self.ridge
        a, b, c, d = torch.split(matrix @ self.factors, 12, 1)
        adjugate = ((matrix @ self.entries) * ((a * b - c * d) @ self.minors)) @ self.sums
        determinant = ((matrix @ self.first_row) * (adjugate @ self.first_column)) @ torch.ones(4, 1)
        scale = 1 / determinant.clamp(min=1e-37)
        solution = ((right @ self.by_column) * adjugate) @ self.in_row
        return solution * scale, (adjugate @ self.diagonal) * scale
