"""LodeSTAR's deployed graph: camera pixels in, one row per particle out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from oneframe.trainer.crops import Normalisation
from oneframe.trainer.likelihood import LikelihoodFit, Likeness
from oneframe.trainer.lodestar_network import STRIDE_PX, LodestarNetwork, LodestarSettings
from oneframe.trainer.peaks import PeakGraph


class LodestarGraph(PeakGraph):
    """The deployed graph: camera pixels in, one row per particle out.

    Normalisation, network, score, local maxima, weighted local average and the removal of duplicates, for any frame
    size. Positions are pixels of the camera, the centre of pixel [0, 0] at (0, 0).
    """

    columns = ("y_px", "x_px", "score", "sigma_y_px", "sigma_x_px", "variance_px2")

    def __init__(
        self,
        network: LodestarNetwork,
        normalisation: Normalisation,
        settings: LodestarSettings,
        *,
        pooling: int,
        reach_cells: int,
        diameter_px: float,
        sigma_px: float,
        likeness: Likeness | None,
    ) -> None:
        cells = diameter_px / (STRIDE_PX * pooling)
        super().__init__(
            stride_px=STRIDE_PX,
            reach_cells=reach_cells,
            averaged_cells=settings.averaged_cells,
            peak_cells=max(1, round(0.25 * cells)),
            merge_cells=max(1, round(0.4 * cells)),
            agreement_px=max(1.0, diameter_px / pooling / 8),  # in pooled pixels, like all inside this class
            alpha=settings.alpha,
            beta=settings.beta,
            split=network.split,
        )
        self.network = network.folded(normalisation.scale)
        self.margin_px = 1 if settings.paper_network else 0  # its pooling drops the last row of odd frames
        self.offset, self.scale = normalisation.offset, normalisation.scale
        self.pooling = pooling
        self.sigma_px = sigma_px
        self.fit = None if likeness is None else LikelihoodFit(likeness)

    def forward(self, image: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        """Return `columns`, each (N,), for an image (H, W) and the lowest score to report."""
        centred = image.to(torch.float32) - self.offset
        pixels = self.pooled(centred)
        y, x, peak_score, variance, _ = self.found(self.predict(pixels), threshold)
        sigma_y = sigma_x = torch.full_like(y, self.sigma_px)
        height, width = image.shape
        if self.fit is not None:
            in_frame = centred
            if self.pooling > 1:
                in_frame = pixels[: height // self.pooling, : width // self.pooling]
            # of what the fit cannot take: no surer than the predictions agree
            sigma_y = (self.sigma_px**2 + variance / 2).sqrt()
            y, x, sigma_y, sigma_x = self.fit(in_frame, y, x, sigma_y, scale=self.scale)
        centre_px = (self.pooling - 1) / 2  # where the centre of a pooled pixel lies in the camera's pixels
        y, x = y * self.pooling + centre_px, x * self.pooling + centre_px
        sigma_y, sigma_x, variance = sigma_y * self.pooling, sigma_x * self.pooling, variance * self.pooling**2
        keep = torch.nonzero((y >= -0.5) & (y < height - 0.5) & (x >= -0.5) & (x < width - 0.5))[:, 0]
        return tuple(each.index_select(0, keep) for each in (y, x, peak_score, sigma_y, sigma_x, variance))

    def pooled(self, pixels: Tensor) -> Tensor:
        """Average pixels (H, W) down; every pixel gets into a cell, also for odd sizes."""
        extra = (1 + self.margin_px) * self.pooling - 1
        if extra == 0:
            return pixels
        pixels = F.pad(pixels[None, None], (0, extra, 0, extra), mode="replicate")
        if self.pooling > 1:
            pixels = F.avg_pool2d(pixels, self.pooling)
        return pixels[0, 0]

    def predict(self, pixels: Tensor) -> Tensor:
        """Return the blocks of cells, as `found` takes them, of pooled pixels (H, W), camera counts less `offset`."""
        return self.network.blocks(pixels[None, None]).squeeze(0)
