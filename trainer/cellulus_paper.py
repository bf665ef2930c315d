"""Cellulus as published: pairs of near pixels should point at one place, and what a network can tell of them does.

Wolf et al., Unsupervised learning of object-centric embeddings for cell instance segmentation, ICCV 2023: "the paper".
Written from its equations; no code of its authors is used.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneframe.trainer.loop import LoopSettings, Progress, fit

CONTEXT_PX = 8
"""What an offset knows of the image around its pixel; one more on the right and below, by the grid of the pooling."""


@dataclass(frozen=True, slots=True)
class PaperSettings:
    """Network, loss, schedule, augmentation and inference, as published."""

    features: int = 64
    """F, of the finest level; 64 in the paper, 24 in the code's first example, 256 in its README."""
    kappa_px: float = 10.0
    """Pixels nearer than this are asked to point at one place."""
    density: float = 0.1
    """Share of the pixels, and of the discs around them, that become pairs."""
    tau: float = 10.0
    """Of `pair_loss`, px^2."""
    regulariser: float = 1e-5
    """Lambda, of `pair_loss`."""
    n_steps: int = 100_000
    learning_rate: float = 4e-5
    """Of Adam. Differs from the paper: without its code's weight decay of 0.01, which vanishes beside a loss summed
    over a million pairs but would rule one that is their mean."""
    drops: tuple[float, ...] = ()
    """Shares of the training after which the rate falls tenfold: none in the code; (0.4, 0.6) in the paper's text."""
    crops: int = 8
    """Of a step."""
    crop_px: int = 252
    control_px: int = 64
    """From one control point of the elastic deformation to the next."""
    jitter_px: float = 2.0
    """Standard deviation of a control point."""
    rotation_rad: float = math.pi / 2
    """Crops are turned by 0 to this."""
    scale: tuple[float, float] = (0.9, 1.1)
    """Crops are drawn larger or smaller by a factor from and to."""
    noise_levels: tuple[float, ...] = (0.5, 1.0)
    """Normalised values of the pixels that are disturbed when the foreground is looked for."""
    noise_passes: int = 16
    """Of each level."""
    noise_share: float = 0.01
    """Of the pixels that are disturbed."""
    bandwidth: float = 0.5
    """Of mean shift, cell diameters."""
    sample: float = 0.1
    """Share of the foreground that mean shift starts from."""
    grow_px: float = 3.0
    """Gaps between cells are closed that are twice as wide; at the reference scale, as all lengths here."""
    shrink_px: float = 6.0
    """Then what lies nearer to the outside goes."""
    least_area: float = 0.1
    """Smaller cells go; share of a disc of the cell diameter."""

    def __post_init__(self) -> None:
        least = {
            "features": 1, "n_steps": 1, "crops": 1, "control_px": 1, "noise_passes": 1,
            "crop_px": 2 * CONTEXT_PX + 2 * math.ceil(self.kappa_px) + 2,
        }  # fmt: skip
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be {low} or more, got {getattr(self, name)}")
        if self.crop_px % 2:
            raise ValueError(f"crop_px must be even, got {self.crop_px}; the network halves it")
        for name in ("kappa_px", "density", "tau", "learning_rate", "bandwidth", "sample", "noise_share"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name):g}")
        if not 0 < self.scale[0] <= self.scale[1] or min(self.jitter_px, self.rotation_rad, self.regulariser) < 0:
            raise ValueError(
                f"expected a scale from low to high, jitter_px, rotation_rad and regulariser of 0 or more, got "
                f"{self.scale}, {self.jitter_px:g}, {self.rotation_rad:g} and {self.regulariser:g}"
            )

    @property
    def workers(self) -> int:
        """Two where the crops of a step can be shared out."""
        return 2 if self.crops % 2 == 0 else 1

    @property
    def schedule(self) -> LoopSettings:
        """As published: the rate constant but for `drops`, gradients as they are, the last weights."""
        return LoopSettings(
            self.n_steps, self.learning_rate, one_cycle=False, drops=self.drops, clip_norm=math.inf, averaging=0.0
        )


class PaperNetwork(nn.Module):
    """Offsets (dy, dx) of the pixels of an image, px; a small U-Net of one pooling with valid convolutions.

    The paper, section 3 and its code. `forward` sees each pixel's true surroundings and returns as much less; `whole`
    reflects the image at its borders and returns offsets for all of it.

    Parameters
    ----------
    features : int
        F: 24 (184 thousand parameters for one channel), 64 (760 thousand) or any other.
    n_channels : int
        Of the image.
    """

    def __init__(self, features: int, n_channels: int = 1) -> None:
        super().__init__()
        self.fine = _unit(n_channels, features)
        self.coarse = _unit(features, 3 * features)
        self.joint = _unit(4 * features, 64)
        self.head = nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 2, 1))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Return offsets (B, 2, H - 16, W - 16) of normalised images (B, C, H, W); odd H and W lose one pixel more."""
        fine = self.fine(image)
        coarse = F.interpolate(self.coarse(F.max_pool2d(fine, 2)), scale_factor=2.0, mode="nearest")
        height, width = coarse.shape[-2:]
        inner = fine[..., 4 : 4 + height, 4 : 4 + width]
        offsets: Tensor = self.head(self.joint(torch.cat([inner, coarse], 1)))
        return offsets

    def whole(self, image: Tensor, mode: str = "reflect") -> Tensor:
        """Return offsets (B, 2, H, W) of normalised images (B, C, H, W), odd or even; to be reflected 10 px or more."""
        height, width = image.shape[-2:]
        # even sizes get a row and a column too many, odd ones just what the pooling wants: no size is asked for
        padded = F.pad(image, (CONTEXT_PX, CONTEXT_PX + 1, CONTEXT_PX, CONTEXT_PX + 1), mode=mode)
        return self.forward(padded)[..., :height, :width]


def _unit(n_inputs: int, n_outputs: int) -> nn.Sequential:
    """3x3, 1x1, 1x1, 3x3, each with its ReLU: 4 px less."""
    layers: list[nn.Module] = []
    for k, size in enumerate((3, 1, 1, 3)):
        layers += [nn.Conv2d(n_outputs if k else n_inputs, n_outputs, size), nn.ReLU()]
    return nn.Sequential(*layers)


def draw_crops(image: Tensor, settings: PaperSettings, generator: torch.Generator) -> Tensor:
    """Return crops (B, C, S, S) of a normalised image (C, H, W), each turned, scaled and bent in its own way.

    Beyond its borders the image is reflected. Crops without a value above 0 are drawn again, a hundred times at most.

    Parameters
    ----------
    image : (C, H, W) float32
        Normalised; crops may be larger than it.
    settings : PaperSettings
    generator : torch.Generator

    Notes
    -----
    The deformation is that of the code's augmentation: displacements of control points, between them linear.
    """
    crops = _draw(image, settings.crops, settings, generator)
    for _ in range(100):
        dark = torch.nonzero(crops.flatten(1).amax(1) <= 0)[:, 0]
        if not len(dark):
            break
        crops[dark] = _draw(image, len(dark), settings, generator)
    return crops


def _draw(image: Tensor, n: int, settings: PaperSettings, generator: torch.Generator) -> Tensor:
    height, width = image.shape[-2:]
    size = settings.crop_px

    def even(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    half = (size - 1) / 2
    middle = torch.stack([_middle(length, half, even(0, 1)) for length in (height, width)], 1)
    angle, scale = even(0, settings.rotation_rad), even(*settings.scale)
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    turn = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)  # (n, 2, 2)
    line = torch.arange(size) - half
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij")).flatten(1)  # (2, S*S)
    n_points = max(2, round(size / settings.control_px) + 1)
    bent = settings.jitter_px * torch.randn(n, 2, n_points, n_points, generator=generator)
    bent = F.interpolate(bent, size=(size, size), mode="bilinear", align_corners=True)
    where = (turn @ grid).view(n, 2, size, size) + middle[:, :, None, None] + bent  # (y, x), px
    # grid_sample wants (x, y) from -1 to 1
    longest = torch.tensor([max(height - 1, 1), max(width - 1, 1)])[:, None, None]
    where = (2 * where / longest - 1).flip(1).permute(0, 2, 3, 1)
    return F.grid_sample(
        image.expand(n, -1, -1, -1), where, mode="bilinear", padding_mode="reflection", align_corners=True
    )


def _middle(length: int, half: float, share: Tensor) -> Tensor:
    """Return where along an axis crops have their middles: evenly where they fit, else in the middle of the image."""
    if length - 1 <= 2 * half:
        return torch.full_like(share, (length - 1) / 2)
    return half + share * (length - 1 - 2 * half)


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


def trained_offsets(
    image: Tensor,
    settings: PaperSettings,
    schedule: LoopSettings,
    seed: int,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
    note: Callable[[], str] = str,
) -> PaperNetwork:
    """Return a network that has learned the offsets of one image (C, H, W), normalised, by its pairs.

    Parameters
    ----------
    schedule : LoopSettings
        `settings.schedule` as published.
    on_progress, cancel, note : optional
        As for `fit`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PaperNetwork(settings.features, len(image))
    return fit(
        network,
        pair_losses(network, image, settings, seed),
        schedule,
        on_progress=on_progress,
        cancel=cancel,
        note=note,
        workers=settings.workers,
    )


def pair_losses(network: nn.Module, image: Tensor, settings: PaperSettings, seed: int) -> Callable[[int], Tensor]:
    """Return the loss of each part of a step, as `fit` asks for it: on crops and pairs of its own."""
    own = replace(settings, crops=settings.crops // settings.workers)

    def loss_of_part(part: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed + 1_000_003 * (part + 1))
        offsets = network(draw_crops(image, own, generator))
        height, width = offsets.shape[-2:]
        anchors, references = sample_pairs(height, width, own.kappa_px, own.density, generator)
        return pair_loss(offsets, anchors, references, own.tau, own.regulariser)

    return loss_of_part
