"""Cellulus as published: pairs of near pixels should point at one place, and what a network can tell of them does.

Wolf et al., Unsupervised learning of object-centric embeddings for cell instance segmentation, ICCV 2023: "the paper".
Written from its equations; no code of its authors is used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sample_pairs(
    height: int, width: int, kappa: float, density: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return pixels and as many partners near them, (P, 2) int64 each, rows of (y, x).

    Parameters
    ----------
    height, width : int
        Of the offsets that the pairs are for.
    kappa : float
        Partners are nearer than this, px; about a third of a cell's diameter.
    density : float
        Share of the pixels that become anchors, and of the disc of `kappa` round each that becomes its partners: P
        grows with its square.

    Raises
    ------
    ValueError
        If no anchor has its disc within the image.

    References
    ----------
    The paper, section 3. Differs from the paper: its code draws y of an anchor from the width and x from the height.
    """
    reach = math.ceil(kappa) - 1  # of the longest integer step below kappa
    inner = height - 2 * math.ceil(kappa), width - 2 * math.ceil(kappa)
    if reach < 1 or min(inner) < 1:
        raise ValueError(
            f"expected kappa above 1 and an image of more than twice that, got {kappa:g} and {height} x {width} px; "
            "take a larger crop"
        )
    n_anchors = max(1, int(density * inner[0] * inner[1]))
    n_partners = max(1, int(density * math.pi * kappa**2))
    anchor = torch.stack([torch.randint(size, (n_anchors,), generator=generator) for size in inner], 1)
    anchor = (anchor + math.ceil(kappa)).repeat_interleave(n_partners, 0)
    step = torch.arange(-reach, reach + 1)
    disc = torch.cartesian_prod(step, step)
    length2 = disc.square().sum(1)
    disc = disc[(length2 > 0) & (length2 < kappa**2)]
    return anchor, anchor + disc[torch.randint(len(disc), (len(anchor),), generator=generator)]


def pair_loss(offsets: Tensor, anchors: Tensor, references: Tensor, tau: float, regulariser: float) -> Tensor:
    """Return how far apart the ends of pairs lie, a scalar from 0 (all as one) to 1, and a little for long offsets.

    The mean over pairs (i, j) of 1 - exp(-|E(i) - E(j)|^2 / tau) + regulariser |r(i)|, where r is the offset and
    E(i) = r(i) + i the end of pixel i. Only the anchor i is pulled: no gradient goes to j.

    Parameters
    ----------
    offsets : (B, 2, H, W)
        (dy, dx) from each pixel to its object, px.
    anchors, references : (P, 2) or (B, P, 2) int64
        (y, x): the same pairs for all crops, or each crop its own.
    tau : float
        Ends further apart than its root hardly pull at each other, px^2.
    regulariser : float
        Weight of the mean length of an anchor's offset, 1/px.

    Notes
    -----
    Differs from the paper: its code weighs the absolute |E(i)|, which pulls everything to a corner of the crop.
    Differs from the paper: its text has 1 / (1 + exp(-d^2 / tau)), which is 1/2 for equal ends; this is its code's.
    Differs from the paper: the mean, where it has the sum; to Adam without weight decay that is the same.
    """
    n, _, _, width = offsets.shape
    flat = offsets.flatten(2)
    own, other = (
        (pixel[..., 0] * width + pixel[..., 1]).reshape(-1, 1, pixel.shape[-2]).expand(n, 2, -1)
        for pixel in (anchors, references)
    )
    apart = (anchors - references).to(offsets.dtype).transpose(-1, -2)
    offset = flat.gather(2, own)  # (B, 2, P)
    dy, dx = (offset - flat.detach().gather(2, other) + apart).unbind(1)
    y, x = offset.unbind(1)
    length = (y.square() + x.square() + 1e-12).sqrt()
    return 1 - torch.exp((dy.square() + dx.square()) * (-1 / tau)).mean() + regulariser * length.mean()
