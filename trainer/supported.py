"""Supported supervision: a few annotated cells and the pseudo labels of the rest become a network of one pass.

After Cellulus (Wolf et al., ICCV 2023), section 4.2: a StarDist network (Schmidt et al., MICCAI 2018) learns from two
sets at once, the sparse one of the annotated cells and the pseudo one of all the others.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from oneframe.trainer.loop import LoopSettings, Progress, fit, one_thread
from oneframe.trainer.star_targets import N_RAYS, star_targets

GRID_PX = 2
"""Pixels of the image from one output to the next."""
MULTIPLE_PX = 8
"""The network works on 2, 4 and 8 pixels; other sizes are padded inside it."""
NO_TRUST, _FULL_TRUST = 0.35, 0.75
"""Agreement of pseudo labels with annotations up to which they have no weight, and from which they have all of it."""
_MOST_TRUST = 0.5
_RAY_SCALE_PX = 10.0
_FIRST_RAY = 0.3
"""Of every output before training: 10 softplus(0.3) = 8.5 px."""
_FIRST_LOGIT = -1.5

Image = NDArray[np.float32]
Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class SupportedSettings:
    """Sets, loss, network and schedule; lengths at the reference scale, at which a cell is 24 to 30 px wide."""

    n_steps: int = 1000
    learning_rate: float = 3e-3
    crops: int = 4
    """Crops of a step, half of them of either set."""
    crop_px: int = 96
    margin_px: int = 8
    """At the edge of a crop nothing is learned: there the network does not see enough."""
    n_rays: int = N_RAYS
    pseudo_weight: float | None = None
    """a in (1 - a) L_sparse + a L_pseudo; 0.5 in the paper. None: as well as the pseudo labels agree with the
    annotations, see `trusted_weight`."""
    ray_weight: float = 0.5
    """w in BCE + w prob |d - d*|, 1/px."""
    near_px: float = 30.0
    """Background nearer than this to an annotated cell belongs to the sparse set."""
    rim_px: float = 3.0
    """Of a pseudo cell that an annotation replaces, what lies within this of the annotation is background; the rest
    may be another cell and nothing is learned there. Differs from the paper, where all of it is background."""
    least_overlap: float = 0.2
    """An annotation replaces the pseudo cells with which it shares this part of the smaller of both; of others it takes
    only the pixels. Differs from the paper (any overlap): outlines that touch do not cost a neighbour."""
    channels: tuple[int, int, int] = (32, 48, 64)
    """At 2, 4 and 8 pixels."""
    brightness: float = 0.2
    """Largest change of contrast (factor 1 +- this) and of level (of the range of the image) in training."""
    noise: float = 0.06
    """Largest standard deviation of noise added in training, of the range of the image."""
    blur_px: float = 1.0
    """Largest standard deviation of blur added in training."""

    def __post_init__(self) -> None:
        for name, least in {"n_steps": 1, "crops": 2, "crop_px": 32, "margin_px": 0, "n_rays": 4}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if self.crop_px % MULTIPLE_PX or self.crops % 2 or self.n_rays % 4 or 2 * self.margin_px >= self.crop_px:
            raise ValueError(
                f"expected crop_px in multiples of {MULTIPLE_PX} beyond both margins, crops even and n_rays in "
                f"multiples of 4, got {self.crop_px}, {self.crops} and {self.n_rays}"
            )
        if not self.learning_rate > 0 or not 0 < self.least_overlap < 1 or not 0 <= (self.pseudo_weight or 0) <= 1:
            raise ValueError(
                f"expected learning_rate above 0, least_overlap between 0 and 1 and pseudo_weight 0 to 1, got "
                f"{self.learning_rate:g}, {self.least_overlap:g} and {self.pseudo_weight}"
            )
        for name in ("ray_weight", "near_px", "rim_px", "brightness", "noise", "blur_px"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name):g}")


@dataclass(frozen=True, slots=True, eq=False)
class SupportedSets:
    """What is learned of each pixel, and in which set."""

    labels: Labels
    """(H, W), cells above 0: the pseudo labels with the annotated cells in their place."""
    sparse: Mask
    """(H, W), pixels of the sparse set: annotated cells, known background, and background near annotated cells."""
    pseudo: Mask
    """(H, W), pixels of the pseudo set: all whose label is known."""
    agreement: float
    """Mean over annotated cells of the intersection over union with the best pseudo cell, 0..1; NaN without any."""


def supported_sets(pseudo: Labels, annotations: Labels, settings: SupportedSettings) -> SupportedSets:
    """Paste the annotations into the pseudo labels and say which pixels belong to which set.

    Parameters
    ----------
    pseudo : (H, W) int32
        Cells above 0.
    annotations : (H, W) int32
        Annotated cells above 0, 0 unknown, -1 known background; a pseudo cell more than half of which is known
        background goes.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if pseudo.shape != annotations.shape or pseudo.ndim != 2:
        raise ValueError(f"expected pseudo labels and annotations (H, W), got {pseudo.shape} and {annotations.shape}")
    from scipy.ndimage import distance_transform_edt

    annotated = annotations > 0
    area = np.bincount(pseudo.ravel())
    given = np.bincount(annotations[annotated])
    both = annotated & (pseudo > 0)
    pairs, shared = np.unique(np.stack([pseudo[both], annotations[both]]), axis=1, return_counts=True)
    replaced = shared >= settings.least_overlap * np.minimum(area[pairs[0]], given[pairs[1]])
    gone = np.zeros(len(area), bool)
    gone[pairs[0][replaced]] = True
    denied = np.bincount(pseudo[(annotations < 0) & (pseudo > 0)], minlength=len(area)) > area / 2
    gone[0] = denied[0] = False

    labels = np.where((gone | denied)[pseudo] | (annotations < 0), 0, pseudo)
    labels = np.where(annotated, annotations + len(area), labels).astype(np.int32)
    distance = distance_transform_edt(~annotated) if annotated.any() else np.full(pseudo.shape, np.inf)
    known = ~gone[pseudo] | annotated | (annotations < 0) | (distance <= settings.rim_px)
    near = (labels == 0) & (distance < settings.near_px)
    sparse = known & (annotated | (annotations < 0) | near)
    return SupportedSets(labels, sparse, known, agreement_of(pseudo, annotations))


def agreement_of(labels: Labels, annotations: Labels) -> float:
    """Return the mean over annotated cells of the intersection over union with the best cell of `labels` (H, W).

    0..1; NaN where none is annotated. Neither 0 (unknown) nor -1 (background) of the annotations counts.
    """
    annotated = annotations > 0
    if not annotated.any():
        return math.nan
    area, given = np.bincount(labels.ravel()), np.bincount(annotations[annotated])
    both = annotated & (labels > 0)
    pairs, shared = np.unique(np.stack([labels[both], annotations[both]]), axis=1, return_counts=True)
    iou = np.zeros(len(given))
    np.maximum.at(iou, pairs[1], shared / (area[pairs[0]] + given[pairs[1]] - shared))
    return float(iou[given > 0].mean())


def trusted_weight(agreement: float) -> float:
    """Return the weight of pseudo labels that agree so well with the annotations, 0 to 0.5.

    0.5, as in the paper, where they do; 0 where they are something else than what was annotated, so that they are not
    learned once more. Of known background alone nothing is said of the cells: NaN counts as agreement.
    """
    if math.isnan(agreement):
        return _MOST_TRUST
    return _MOST_TRUST * min(1.0, max(0.0, (agreement - NO_TRUST) / (_FULL_TRUST - NO_TRUST)))


class StarNetwork(nn.Module):
    """Image (B, 1, H, W) of any size becomes logits (B, 1, h, w) and rays (B, R, h, w), h = ceil(H / 2).

    Value [i, j] is of pixel (2 i, 2 j); rays are px along `ray_directions`. Three levels of 2, 4 and 8 pixels, all with
    few channels: a pixel sees some 35 px around itself, a whole cell from its rim.
    """

    def __init__(self, n_rays: int = N_RAYS, channels: tuple[int, int, int] = (32, 48, 64)) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.n_rays = n_rays
        self.fine = _Convolutions(4, fine, fine)
        self.down = nn.Conv2d(fine, middle, 2, stride=2)
        self.middle = nn.Conv2d(middle, middle, 3, padding=1)
        self.down_again = nn.Conv2d(middle, coarse, 2, stride=2)
        self.coarse = nn.ModuleList([nn.Conv2d(coarse, coarse, 3, padding=1) for _ in range(2)])
        self.up = _Convolutions(middle + coarse, middle, middle, first=1)
        self.up_again = _Convolutions(fine + middle, fine, fine, first=1)
        self.head = nn.Conv2d(fine, 64, 1)
        self.told = nn.Conv2d(64, 1 + n_rays, 1)
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d) and layer is not self.told:  # torch's own start is too faint here
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            for residual in (self.middle, *self.coarse):
                residual.weight.mul_(0.3)
            nn.init.constant_(self.told.bias, _FIRST_RAY)  # type: ignore[arg-type]
            self.told.bias[0] = _FIRST_LOGIT  # type: ignore[index]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and rays of images of any size."""
        height, width = image.shape[-2:]
        most, above = MULTIPLE_PX, MULTIPLE_PX - 1
        padded = F.pad(image, (0, above, 0, above), mode="replicate")  # by a fixed size: the graph is for any H and W
        padded = padded[..., : (height + above) // most * most, : (width + above) // most * most]
        logit, rays = self.told_of(F.pixel_unshuffle(padded, GRID_PX))
        return tuple(told[..., : (height + 1) // GRID_PX, : (width + 1) // GRID_PX] for told in (logit, rays))  # type: ignore[return-value]

    def told_of(self, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and rays of images (B, 4, h, w), pixels of 2 x 2 side by side; sides are multiples of 4."""
        fine = self.fine(squares)
        middle = F.relu(self.down(fine))
        middle = F.relu(middle + self.middle(middle))
        coarse = F.relu(self.down_again(middle))
        for convolution in self.coarse:
            coarse = F.relu(coarse + convolution(coarse))
        middle = self.up(torch.cat([middle, _doubled(coarse)], 1))
        fine = self.up_again(torch.cat([fine, _doubled(middle)], 1))
        told = self.told(F.relu(self.head(fine)))
        return told[:, :1], _RAY_SCALE_PX * F.softplus(told[:, 1:])


class _Convolutions(nn.Sequential):
    """Two convolutions, the second of 3 x 3."""

    def __init__(self, n_in: int, n_between: int, n_out: int, *, first: int = 3) -> None:
        super().__init__(
            nn.Conv2d(n_in, n_between, first, padding=first // 2),
            nn.ReLU(),
            nn.Conv2d(n_between, n_out, 3, padding=1),
            nn.ReLU(),
        )


def _doubled(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2.0, mode="nearest")


def star_loss(logit: Tensor, rays: Tensor, prob: Tensor, distances: Tensor, ray_weight: float = 1.0) -> Tensor:
    """Return the mean over known pixels of the cross entropy and of prob |d - d*|.

    Parameters
    ----------
    logit, prob : (B, 1, h, w)
        Said and true; where the true one is below 0 nothing is known.
    rays, distances : (B, R, h, w)
        Said and true, px; the difference is a mean over the rays.
    """
    known = (prob >= 0).to(logit.dtype)
    n = known.sum().clamp(min=1)
    depth = prob.clamp(min=0)
    entropy = F.binary_cross_entropy_with_logits(logit, depth, reduction="none")
    error = (rays - distances).abs().mean(1, keepdim=True)
    loss: Tensor = (known * (entropy + ray_weight * depth * error)).sum() / n
    return loss


class _Crops:
    """Draws crops of either set, turned, flipped, brighter or darker, noisier and more blurred."""

    def __init__(self, image: Image, sets: SupportedSets, settings: SupportedSettings, seed: int) -> None:
        self.settings = settings
        self.rng = np.random.default_rng(seed)
        prob, rays = star_targets(sets.labels, settings.n_rays)
        more = [(0, max(0, settings.crop_px - side)) for side in image.shape]  # a small image: the rest is unknown
        self.image = np.pad(image, more, mode="symmetric")
        self.known = {name: np.pad(mask, more) for name, mask in (("sparse", sets.sparse), ("pseudo", sets.pseudo))}
        self.targets = np.pad(np.concatenate([prob[None], rays]), [(0, 0), *more])  # (1 + R, H, W)
        annotated = np.argwhere(sets.sparse & (sets.labels > 0))
        self.annotated = annotated if len(annotated) else np.argwhere(sets.sparse)
        cell = sets.labels[tuple(self.annotated.T)]
        self.of_cell = [self.annotated[cell == k] for k in np.unique(cell)]

    def draw(self, name: str, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return n crops: images (n, 1, S, S), true probabilities (n, 1, s, s) and rays (n, R, s, s)."""
        images, targets = zip(*(self._one(name) for _ in range(n)), strict=True)
        stacked = torch.from_numpy(np.stack(targets))
        return torch.from_numpy(np.stack(images))[:, None], stacked[:, :1], stacked[:, 1:]

    def _one(self, name: str) -> tuple[Image, Image]:
        size, margin = self.settings.crop_px, self.settings.margin_px
        top, left = self._corner(name)
        box = np.s_[top : top + size, left : left + size]
        target = self.targets[:, box[0], box[1]].copy()
        trusted = self.known[name][box].copy()
        for axis, (start, side) in enumerate(zip((top, left), self.image.shape, strict=True)):
            across = np.moveaxis(trusted, axis, 0)
            across[: margin if start else 0] = False
            across[size - margin if start + size < side else size :] = False
        target[0][~trusted] = -1
        image, target = self._turned(self.image[box], target)
        return self._changed(image), np.ascontiguousarray(target[:, ::GRID_PX, ::GRID_PX])

    def _corner(self, name: str) -> NDArray[np.intp]:
        """Return where a crop begins; beyond the border means at it, so that borders are seen often enough."""
        size = self.settings.crop_px
        room = np.array(self.image.shape) - size
        if name == "pseudo":
            corner = self.rng.integers(-(size // 4), room + size // 4 + 1)
        else:
            own = self.of_cell[self.rng.integers(len(self.of_cell))]
            corner = own[self.rng.integers(len(own))] - self.rng.integers(size // 4, size - size // 4, 2)
        return np.asarray(corner.clip(0, room), np.intp)

    def _turned(self, image: Image, target: Image) -> tuple[Image, Image]:
        """Turn and flip both; the rays change places."""
        n = self.settings.n_rays
        ray = np.arange(n)
        turns, flip = int(self.rng.integers(4)), self.rng.integers(2)
        image, target = np.rot90(image, turns), np.rot90(target, turns, axes=(1, 2))
        ray = (ray - turns * (n // 4)) % n
        if flip:
            image, target, ray = image[:, ::-1], target[:, :, ::-1], ray[-np.arange(n) % n]
        return image, np.concatenate([target[:1], target[1 + ray]])

    def _changed(self, image: Image) -> Image:
        import cv2

        s, rng = self.settings, self.rng
        blur_px = rng.uniform(-s.blur_px, s.blur_px)  # half of them stay as sharp as they are
        if blur_px > 0.2:
            image = np.asarray(cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), blur_px), np.float32)
        changed = image * (1 + rng.uniform(-s.brightness, s.brightness)) + rng.uniform(-s.brightness, s.brightness) / 2
        noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(0, s.noise)
        return np.asarray(changed + noise, np.float32)


@one_thread()
def train_supported(
    image: Image,
    pseudo: Labels,
    annotations: Labels,
    *,
    settings: SupportedSettings | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
) -> StarNetwork:
    """Train on one frame, a few annotated cells and pseudo labels of the rest.

    Parameters
    ----------
    image : (H, W) float32
        Normalised, at the reference scale.
    pseudo : (H, W) int32
        Cells above 0, as an unsupervised model or a threshold finds them.
    annotations : (H, W) int32
        Annotated cells above 0, 0 unknown, -1 known background. Without any the pseudo labels alone are learned.
    settings : SupportedSettings, optional
    seed : int
        Same seed, same network.

    Returns
    -------
    StarNetwork
        `sigmoid(logit)` and rays are what `star_labels` takes, with a grid of `GRID_PX`.

    Raises
    ------
    ValueError
        If the shapes differ, or there is neither a pseudo cell nor an annotation.
    TrainingCancelled
        If `cancel` was set.
    """
    settings = SupportedSettings() if settings is None else settings
    if image.shape != pseudo.shape:
        raise ValueError(f"expected image and pseudo labels of one shape, got {image.shape} and {pseudo.shape}")
    sets = supported_sets(pseudo, annotations, settings)
    if not (sets.labels > 0).any():
        raise ValueError("expected a cell in the pseudo labels or the annotations, got none; annotate some cells")
    crops = _Crops(image.astype(np.float32), sets, settings, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = StarNetwork(settings.n_rays, settings.channels)
    a = trusted_weight(sets.agreement) if settings.pseudo_weight is None else settings.pseudo_weight
    weights = {"sparse": 1 - a, "pseudo": a} if sets.sparse.any() else {"pseudo": 1.0}
    weights = {name: weight for name, weight in weights.items() if weight > 0}

    def loss_of_step(_: int) -> Tensor:
        drawn = [crops.draw(name, settings.crops // len(weights)) for name in weights]
        logit, rays = network(torch.cat([images for images, _, _ in drawn]))
        n = len(logit) // len(weights)
        losses = [
            weight * star_loss(logit[k : k + n], rays[k : k + n], prob, distances, settings.ray_weight)
            for k, weight, (_, prob, distances) in zip(range(0, len(logit), n), weights.values(), drawn, strict=True)
        ]
        return torch.stack(losses).sum()

    schedule = LoopSettings(settings.n_steps, settings.learning_rate)
    return fit(network, loss_of_step, schedule, on_progress=on_progress, cancel=cancel).eval()


@torch.no_grad()
def predict(network: StarNetwork, image: Image) -> tuple[Image, Image]:
    """Return probabilities (h, w) and rays (R, h, w) of a normalised image (H, W)."""
    logit, rays = network(torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None])
    return torch.sigmoid(logit)[0, 0].numpy(), rays[0].numpy()
