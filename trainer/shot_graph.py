"""SHOT's deployed graph: camera counts in, one row per emitter out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneframe.trainer.shot_network import CELL_PX, ShotNetwork


class ShotGraph(nn.Module):
    """The deployed graph: camera counts of any size in, the set of emitters above one threshold out.

    Each claim stands for one emitter, so there are no local maxima to search and nothing is suppressed. Positions are
    pixels of the camera, the centre of pixel [0, 0] at (0, 0).

    Parameters
    ----------
    network : ShotNetwork
        Trained.
    sigma_scale, sigma_z_scale : float
        Factors on the claimed uncertainties, such that 68 % of the errors lie within them.
    """

    def __init__(self, network: ShotNetwork, *, sigma_scale: float = 1.0, sigma_z_scale: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.sigma_scale, self.sigma_z_scale = sigma_scale, sigma_z_scale
        self.columns: tuple[str, ...] = (
            "y_px", "x_px", "score", "photons", "background", "sigma_y_px", "sigma_x_px",
        )  # fmt: skip
        if network.psf.has_z:
            self.columns += ("z_um", "sigma_z_um")

    def forward(self, image: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        """Return `columns`, each (N,), for an image (H, W) or (F, H, W) and the lowest score to report."""
        counts = image.to(torch.float32)
        if counts.ndim == 2:
            counts = counts[None]
        height, width = counts.shape[-2:]
        odd = CELL_PX - 1
        counts = F.pad(counts[None], (0, odd, 0, odd), mode="replicate")
        counts = counts[..., : (height + odd) // CELL_PX * CELL_PX, : (width + odd) // CELL_PX * CELL_PX]
        claims = self.network(counts)[-1]
        score = torch.sigmoid(claims.logit)
        sigma_y, sigma_x = (self.sigma_scale * torch.exp(each) for each in (claims.log_sigma_y, claims.log_sigma_x))
        values = [claims.y_px, claims.x_px, score, claims.photons, claims.background, sigma_y, sigma_x]
        if claims.z_um is not None and claims.log_sigma_z is not None:
            values += [
                claims.z_um,
                self.sigma_z_scale * self.network.z_reach_um * torch.exp(claims.log_sigma_z),
            ]
        inside = (claims.y_px >= -0.5) & (claims.y_px < height - 0.5)
        inside &= (claims.x_px >= -0.5) & (claims.x_px < width - 0.5)
        place = torch.nonzero(((score >= threshold) & inside).flatten())[:, 0]
        # embedding becomes one Gather; fancy indexing becomes a Reshape, which ONNX forbids for no rows at all
        rows = F.embedding(place, torch.cat(values).flatten(1).T)
        return tuple(rows.unbind(-1))
