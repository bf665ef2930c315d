"""SHOT's loss: emitters are assigned to claims one to one, at the least cost; every other claim should be silent."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from oneframe.trainer.emitter_crops import EmitterCrops
from oneframe.trainer.shot_network import CELL_PX, Claims, ShotNetwork

VALID_PX = 0.75 * CELL_PX
"""A cell may claim emitters nearer than this to its centre along both axes: 1 to 4 cells an emitter."""


def shot_loss(network: ShotNetwork, crops: EmitterCrops) -> Tensor:
    """Return the loss per cell, averaged over the claims before and after each refinement."""
    losses = [set_loss(network, claims, crops) for claims in network(crops.counts)]
    return torch.stack(losses).mean()


def set_loss(network: ShotNetwork, claims: Claims, crops: EmitterCrops) -> Tensor:
    """Return the optimal transport loss of the claims against the truth, a scalar, times 16 / cells.

    The cost of a match is the Gaussian likelihood of position, photons and z with the claim's own sigmas, and the cross
    entropy of its score; an unmatched claim costs the cross entropy of silence. Differs from the paper: sigmas per
    claim in place of four for all, so that each emitter comes with its uncertainty.
    """
    cells = claims.logit[0].numel()
    emitter, cell = candidates(crops, claims.logit.shape[-2:])
    chosen = torch.from_numpy(cell)
    likelihood = _likelihood(network, claims, crops, emitter, chosen)
    logit = claims.logit.flatten()
    cost = (likelihood + F.softplus(-logit[chosen])).detach().double().numpy()
    silent = F.softplus(logit).detach().double().numpy()
    if network.settings.matching == "exact":
        share = assigned(emitter, cell, cost - silent[cell], crops.crop).astype(np.float32)
    else:
        share = transported(
            emitter, cell, cost, silent, crops.crop, cells, published=network.settings.matching == "published"
        )
    part = torch.from_numpy(share)
    # what of a claim is matched to no emitter belongs to the dustbin
    claimed = torch.zeros_like(logit).index_add(0, chosen, part)
    matched = (part * (likelihood + F.softplus(-logit[chosen]))).sum()
    loss = matched + ((1 - claimed).clamp(min=0) * F.softplus(logit)).sum()
    level = F.avg_pool2d(crops.background[:, None], CELL_PX)[:, 0]
    wrong = (3 * (claims.background - level) / network.level).square().sum()
    return (loss + network.settings.background_weight * wrong) * (16 / len(logit))


def candidates(crops: EmitterCrops, grid: tuple[int, ...]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return all pairs of an emitter and a cell that may claim it, (P,) each; cells are numbered through all crops."""
    h, w = grid
    y, x = crops.position[:, 0], crops.position[:, 1]
    centre = (CELL_PX - 1) / 2
    row, column = (np.ceil((p - VALID_PX - centre) / CELL_PX).astype(np.intp) for p in (y, x))
    pairs = []
    for down in (0, 1):
        for right in (0, 1):
            r, c = row + down, column + right
            valid = (np.abs(CELL_PX * r + centre - y) < VALID_PX) & (np.abs(CELL_PX * c + centre - x) < VALID_PX)
            valid &= (r >= 0) & (r < h) & (c >= 0) & (c < w)
            pairs.append((np.flatnonzero(valid), ((crops.crop * h + r) * w + c)[valid]))
    emitter, cell = (np.concatenate(each) for each in zip(*pairs, strict=True))
    order = np.argsort(emitter, kind="stable")  # so that pairs of one crop lie together
    return emitter[order], cell[order]


def _likelihood(
    network: ShotNetwork, claims: Claims, crops: EmitterCrops, emitter: NDArray[np.intp], cell: Tensor
) -> Tensor:
    """Return minus the log likelihood of each pair, constants left out, (P,)."""
    truth = torch.from_numpy(crops.position[emitter].astype(np.float32))
    photons = torch.from_numpy((crops.photons[emitter] / network.photons).astype(np.float32))
    terms = [
        (claims.y_px, truth[:, 0], claims.log_sigma_y, 1.0),
        (claims.x_px, truth[:, 1], claims.log_sigma_x, 1.0),
        (claims.photons, photons * network.photons, claims.log_sigma_photons, network.photons),
    ]
    if claims.z_um is not None and claims.log_sigma_z is not None:
        terms.append((claims.z_um, truth[:, 2], claims.log_sigma_z, network.z_reach_um))
    total = torch.zeros(len(cell))
    for claimed, true, log_sigma, scale in terms:
        log_s = log_sigma.flatten()[cell]
        total = total + 0.5 * ((claimed.flatten()[cell] - true) / scale * torch.exp(-log_s)) ** 2 + log_s
    return total


def assigned(
    emitter: NDArray[np.intp], cell: NDArray[np.intp], cost: NDArray[np.float64], crop: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Return which pairs the cheapest assignment of all emitters takes, (P,); as many emitters as can get a cell."""
    kept = np.zeros(len(emitter), bool)
    ends = np.flatnonzero(np.diff(crop[emitter])) + 1
    for pairs in np.split(np.arange(len(emitter)), ends):
        if not len(pairs):
            continue
        _, row = np.unique(emitter[pairs], return_inverse=True)
        _, column = np.unique(cell[pairs], return_inverse=True)
        n_rows, n_columns = row.max() + 1, column.max() + 1
        price = np.clip(cost[pairs], -1e3, 1e3)
        table = np.full((n_rows, n_columns + n_rows), 1e6)
        table[:, n_columns:] = 1e4  # left without a cell
        table[row, column] = price
        which = np.full((n_rows, n_columns), -1)
        which[row, column] = np.arange(len(pairs))
        rows, columns = linear_sum_assignment(table)
        real = columns < n_columns
        kept[pairs[which[rows[real], columns[real]]]] = True
    return kept


def transported(
    emitter: NDArray[np.intp],
    cell: NDArray[np.intp],
    cost: NDArray[np.float64],
    silent: NDArray[np.float64],
    crop: NDArray[np.intp],
    n_cells: int,
    *,
    published: bool,
) -> NDArray[np.float32]:
    """Return which part of each claim the entropic plan of each crop gives to each emitter, (P,), by Sinkhorn.

    Converged to 1e-3: up to 200 iterations at 1e-2 of the median cost of the pairs, ending with the emitters' marginal.
    `published`: 20 iterations at 1e-4 of the median of all costs, which end with the claims' marginal, as the paper's
    code does it.
    """
    share = np.zeros(len(emitter), np.float32)
    for pairs in np.split(np.arange(len(emitter)), np.flatnonzero(np.diff(crop[emitter])) + 1):
        if not len(pairs):
            continue
        _, row = np.unique(emitter[pairs], return_inverse=True)
        start = crop[emitter[pairs[0]]] * n_cells
        table = np.full((row.max() + 2, n_cells), 10 * np.abs(cost[pairs]).max())
        table[row, cell[pairs] - start] = cost[pairs]
        table[-1] = silent[start : start + n_cells]
        mass = np.full(len(table), 1 / n_cells)
        mass[-1] = 1 - (len(table) - 1) / n_cells
        if published:
            plan = sinkhorn(table, mass, 1e-4 * float(np.median(np.abs(table))), 20, claims_last=True)
        else:
            plan = sinkhorn(table, mass, 1e-2 * float(np.median(np.abs(cost[pairs]))), 200, claims_last=False)
        share[pairs] = n_cells * plan[row, cell[pairs] - start]
    return share


def sinkhorn(
    cost: NDArray[np.float64], mass: NDArray[np.float64], width: float, n_iterations: int, *, claims_last: bool
) -> NDArray[np.float64]:
    """Return the entropic transport plan (M + 1, D) between emitters with dustbin (`mass`) and even claims (1 / D).

    `width` is the weight of the entropy, in units of the cost. Stops early where nothing changes any more.

    References
    ----------
    Cuturi, NIPS 2013; in the log domain as Peyre and Cuturi, Computational Optimal Transport (2019), sec. 4.4.
    """
    kernel = -cost / max(width, 1e-6)
    log_mass, log_even = np.log(mass), -math.log(cost.shape[1])
    u, v = np.zeros(len(mass)), np.zeros(cost.shape[1])
    for _ in range(n_iterations):
        before = u
        if claims_last:
            u = log_mass - _log_sum(kernel + v, 1)
            v = log_even - _log_sum(kernel + u[:, None], 0)
        else:
            v = log_even - _log_sum(kernel + u[:, None], 0)
            u = log_mass - _log_sum(kernel + v, 1)
        if np.abs(u - before).max() < 1e-4:
            break
    plan: NDArray[np.float64] = np.exp(kernel + u[:, None] + v)
    return plan


def _log_sum(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """log(sum(exp(values)))."""
    highest = values.max(axis, keepdims=True)
    total: NDArray[np.float64] = np.log(np.exp(values - highest).sum(axis)) + highest.squeeze(axis)
    return total
