"""Classical localisation: maxima, maximum-likelihood fits of Gaussians to many spots at once, and the bounds on both.

Pixels are photoelectrons throughout. A pixel's variance is `excess` * expected + `read_variance`, and its likelihood
that of a Poisson variable of the same mean and variance: (electrons + read_variance / excess) / excess.

References
----------
Smith et al., Nat. Methods 7, 373 (2010): the integrated Gaussian, its derivatives and its bound.
Huang et al., Nat. Methods 10, 653 (2013): read noise as an addition to data and model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oneframe.acquisition.psf import GaussianPsf, pixel_shares

Array = NDArray[np.float64]

SHAPES = ("fixed", "round", "elliptic")
"""Of the fitted Gaussian: width given, one free width, two free widths."""
_BOX_SIGMAS = 3.0
_BOUND_SIGMAS = 5.0
_LEAST_WIDTH_PX, _MOST_WIDENING = 0.3, 4.0


@dataclass(frozen=True, slots=True, eq=False)
class GaussianFit:
    """Fitted spots, N of them; every column has shape (N,)."""

    y_px: Array
    x_px: Array
    photons: Array
    background: Array
    """Per pixel."""
    width_y_px: Array
    """Standard deviation of the spot along y."""
    width_x_px: Array
    sigma_y_px: Array
    """Uncertainty of y_px: the Cramér-Rao bound at the fitted values."""
    sigma_x_px: Array
    sigma_photons: Array
    sigma_width_y_px: Array
    """0 where the width was given."""
    sigma_width_x_px: Array
    chi2: Array
    """Deviance over degrees of freedom: about 1 for one emitter, more for several."""
    converged: NDArray[np.bool_]
    """False where the fit left its box or did not settle."""

    def __len__(self) -> int:
        return len(self.y_px)


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """Least standard deviations of unbiased estimates, (N,) each."""

    y_px: Array
    x_px: Array
    photons: Array
    z_um: Array | None
    """None where the point spread function tells no z."""


def find_maxima(
    electrons: NDArray[np.floating],
    sigma_px: float,
    *,
    threshold: float = 5.0,
    read_variance: float = 0.0,
    excess: float = 1.0,
) -> NDArray[np.int64]:
    """Return whole-pixel places (N, 2), (y, x), of spots, the brightest first.

    Local maxima of a difference of Gaussians above `threshold` times its noise on the background there.

    Parameters
    ----------
    electrons : (H, W)
    sigma_px : float
        Of the point spread function.

    Raises
    ------
    ValueError
        If the image is not one plane of finite values.
    """
    from scipy.ndimage import gaussian_filter, maximum_filter, median_filter

    image = _plane(electrons)
    narrow, wide = 0.8 * sigma_px, 3.0 * sigma_px
    spots = gaussian_filter(image, narrow) - gaussian_filter(image, wide)
    size = 2 * math.ceil(5 * wide) + 1
    point = np.zeros((size, size))
    point[size // 2, size // 2] = 1
    power = float(np.sum((gaussian_filter(point, narrow) - gaussian_filter(point, wide)) ** 2))
    level = np.maximum(median_filter(image, 2 * math.ceil(4 * sigma_px) + 1, mode="nearest"), 0)
    noise = np.sqrt((excess * level + read_variance + 1e-9) * power)
    is_peak = maximum_filter(spots, 2 * max(1, round(sigma_px)) + 1) == spots
    found = np.argwhere(is_peak & (spots > threshold * noise))
    order = np.argsort(-spots[found[:, 0], found[:, 1]], kind="stable")
    return found[order]


def fit_gaussians(
    electrons: NDArray[np.floating],
    y_px: ArrayLike,
    x_px: ArrayLike,
    *,
    sigma_px: float,
    shape: str = "fixed",
    box_px: int | None = None,
    read_variance: float | NDArray[np.floating] = 0.0,
    excess: float = 1.0,
    n_steps: int = 40,
) -> GaussianFit:
    """Fit one Gaussian and a flat background to the box round each place, by maximum likelihood.

    Parameters
    ----------
    electrons : (H, W) or (N, H, W)
        One image for all, or each spot's own.
    y_px, x_px : (N,)
        Where the spots are, to a pixel or so.
    sigma_px : float
        Width of the point spread function; where free, the start.
    shape : {"fixed", "round", "elliptic"}
    box_px : int, optional
        Edge of the box, odd (default: 3 sigma to each side). At the rim of the image it is moved inwards.
    read_variance : float or (H, W)
        Of each pixel, photoelectrons^2.

    Raises
    ------
    ValueError
        If shapes do not fit, or the box is larger than the image.
    """
    if shape not in SHAPES:
        raise ValueError(f"expected shape {', '.join(SHAPES)}, got {shape!r}; choose one")
    images = np.asarray(electrons, np.float64)
    start_y, start_x = np.atleast_1d(np.asarray(y_px, float)), np.atleast_1d(np.asarray(x_px, float))
    n = len(start_y)
    if start_x.shape != (n,) or images.ndim not in (2, 3) or (images.ndim == 3 and len(images) != n):
        raise ValueError(
            f"expected y and x of one length and one image or as many, got {start_y.shape}, {start_x.shape} and "
            f"{images.shape}; pass columns of the same spots"
        )
    size = 2 * math.ceil(_BOX_SIGMAS * sigma_px) + 1 if box_px is None else box_px
    if size % 2 == 0 or size < 5 or size > min(images.shape[-2:]):
        raise ValueError(
            f"expected an odd box of 5 px to the {min(images.shape[-2:])} px of the image, got {size}; choose another "
            "box, or a larger image"
        )
    top, left = (
        np.clip(np.rint(start).astype(int) - size // 2, 0, edge - size)
        for start, edge in ((start_y, images.shape[-2]), (start_x, images.shape[-1]))
    )
    rows, columns = top[:, None, None] + np.arange(size)[:, None], left[:, None, None] + np.arange(size)
    boxes = images[rows, columns] if images.ndim == 2 else images[np.arange(n)[:, None, None], rows, columns]
    added = np.broadcast_to(np.asarray(read_variance, float), images.shape[-2:])[rows, columns] / excess
    data = np.maximum((boxes + added) / excess, 0.0)  # (N, S, S)

    rim = np.concatenate([boxes[:, 0], boxes[:, -1], boxes[:, 1:-1, 0], boxes[:, 1:-1, -1]], axis=1)
    background = np.maximum(np.quantile(rim, 0.3, axis=1), 0.05)
    light = np.maximum((boxes - background[:, None, None]).sum((1, 2)), 10.0)
    n_widths = SHAPES.index(shape)
    theta = np.column_stack([start_y - top, start_x - left, light, background, *[np.full(n, sigma_px)] * n_widths])
    most = np.array([1.0, 1.0, np.inf, np.inf, *[0.3 * sigma_px] * n_widths])

    def deviance(model: Array) -> Array:
        safe = np.where(data > 0, data, 1.0)
        each: Array = 2 * (model - data + data * np.log(safe / model)).sum((1, 2))
        return each

    damping = np.full(n, 1e-3)
    model, jacobian = _spots(theta, size, sigma_px, added, excess)
    best, moved = deviance(model), np.full(n, np.inf)
    for _ in range(n_steps):
        information, score = _fisher(jacobian, model), _score(jacobian, model, data)
        diagonal = np.einsum("npp->np", information)
        step = np.linalg.solve(
            information + np.einsum("np,pq->npq", damping[:, None] * diagonal + 1e-12, np.eye(theta.shape[1])),
            score[..., None],
        )[..., 0]
        step = np.clip(step, -most, most)
        trial = _within(theta + step, sigma_px)
        trial_model, trial_jacobian = _spots(trial, size, sigma_px, added, excess)
        trial_best = deviance(trial_model)
        better = trial_best <= best + 1e-9
        moved = np.where(better, np.abs(trial - theta)[:, :2].max(1), moved)
        damping = np.clip(np.where(better, damping / 10, damping * 10), 1e-9, 1e9)
        theta[better], best[better] = trial[better], trial_best[better]
        model[better], jacobian[better] = trial_model[better], trial_jacobian[better]
        if (moved < 1e-5).all():
            break

    covariance = np.linalg.pinv(_fisher(jacobian, model), hermitian=True)
    sigma = np.sqrt(np.maximum(np.einsum("npp->np", covariance), 0.0))
    inside = (np.abs(theta[:, :2] - (size - 1) / 2) < size / 2).all(1)
    widths = theta[:, 4:] if n_widths else np.full((n, 1), sigma_px)
    width_sigmas = sigma[:, 4:] if n_widths else np.zeros((n, 1))
    return GaussianFit(
        y_px=theta[:, 0] + top,
        x_px=theta[:, 1] + left,
        photons=theta[:, 2],
        background=theta[:, 3],
        width_y_px=widths[:, 0],
        width_x_px=widths[:, -1],
        sigma_y_px=sigma[:, 0],
        sigma_x_px=sigma[:, 1],
        sigma_photons=sigma[:, 2],
        sigma_width_y_px=width_sigmas[:, 0],
        sigma_width_x_px=width_sigmas[:, -1],
        chi2=best / (size**2 - theta.shape[1]),
        converged=inside & (moved < 1e-3),
    )


def bound(
    psf: GaussianPsf,
    photons: ArrayLike,
    background: ArrayLike,
    *,
    z_um: ArrayLike = 0.0,
    read_variance: float = 0.0,
    excess: float = 1.0,
    sub_pixel: tuple[float, float] | None = None,
) -> Bound:
    """Return the Cramér-Rao bound of isolated emitters whose place, photons and background (and z) are unknown.

    Parameters
    ----------
    photons, background, z_um : (N,) or float
    sub_pixel : (float, float), optional
        Place within a pixel, (y, x) from its centre (default: the mean variance over all places).
    """
    n_photons, level, z = (np.atleast_1d(a) for a in np.broadcast_arrays(photons, background, z_um))
    n_photons, level, z = n_photons.astype(float), level.astype(float), z.astype(float)
    widths = psf.sigmas(z)
    half = math.ceil(_BOUND_SIGMAS * float(np.max(widths)))
    places = [sub_pixel] if sub_pixel is not None else [(a, b) for a in _QUARTERS for b in _QUARTERS]
    variances = []
    for dy, dx in places:
        y, x = np.full(len(z), half + dy), np.full(len(z), half + dx)
        light, slopes = _derivatives(psf, y, x, n_photons, z, 2 * half + 1, 2 * half + 1)
        jacobian = np.concatenate([slopes, np.ones_like(light)[:, None]], axis=1) / excess
        model = (light + level[:, None, None] + read_variance / excess) / excess
        covariance = np.linalg.inv(_fisher(jacobian, model))
        variances.append(np.einsum("npp->np", covariance))
    sigma = np.sqrt(np.mean(variances, axis=0))
    return Bound(sigma[:, 0], sigma[:, 1], sigma[:, 2], sigma[:, 3] if psf.has_z else None)


_QUARTERS = (-0.375, -0.125, 0.125, 0.375)


def bound_in_frame(
    psf: GaussianPsf,
    y_px: ArrayLike,
    x_px: ArrayLike,
    photons: ArrayLike,
    background: float | NDArray[np.floating],
    *,
    shape: tuple[int, int],
    z_um: ArrayLike = 0.0,
    read_variance: float = 0.0,
    excess: float = 1.0,
) -> Bound:
    """Return the Cramér-Rao bound of the emitters of a crowded frame, of each with all the others unknown as well.

    Their number is known, so real methods, which do not know it, may not come near where images merge. Emitters whose
    images touch, directly or through others, share one inverse; the background of each such group is unknown too.

    Parameters
    ----------
    y_px, x_px, photons, z_um : (N,)
        Emitters outside the frame may be among them.
    background : float or (H, W)
        Expected, per pixel.
    shape : (H, W)
    """
    arrays = (np.atleast_1d(np.asarray(a, float)) for a in (y_px, x_px, photons, z_um))
    y, x, light_of, z = np.broadcast_arrays(*arrays)
    n, n_free = len(y), 4 if psf.has_z else 3
    sigma = np.full((n, n_free), np.inf)
    if n == 0:
        return _as_bound(sigma, psf)
    light, slopes = _derivatives(psf, y, x, light_of, z, *shape)
    model = (light.sum(0) + background + read_variance / excess) / excess
    slopes = slopes.reshape(n, n_free, -1) / excess
    for group in _touching(y, x, 2 * _BOX_SIGMAS * float(np.max(psf.sigmas(z)))):
        rows = np.vstack([slopes[group].reshape(len(group) * n_free, -1), np.full((1, model.size), 1 / excess)])
        near = (light[group] > 1e-9 * light_of[group, None, None]).any(0).ravel()
        information = (rows[:, near] / model.ravel()[near]) @ rows[:, near].T
        scale = np.sqrt(np.maximum(np.diag(information), 1e-300))
        unit = information / scale / scale[:, None] + 1e-12 * np.eye(len(scale))  # two in one place know nothing
        variance = np.diag(np.linalg.inv(unit)) / scale**2
        sigma[group] = np.sqrt(np.maximum(variance[:-1], 0)).reshape(-1, n_free)
    return _as_bound(sigma, psf)


def _as_bound(sigma: Array, psf: GaussianPsf) -> Bound:
    return Bound(sigma[:, 0], sigma[:, 1], sigma[:, 2], sigma[:, 3] if psf.has_z else None)


def _touching(y_px: Array, x_px: Array, reach_px: float) -> list[NDArray[np.int64]]:
    """Return the groups of emitters that are connected by distances below `reach_px`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    pairs = cKDTree(np.column_stack([y_px, x_px])).query_pairs(reach_px, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(y_px), len(y_px)))
    n_groups, label = connected_components(graph, directed=False)
    return [np.flatnonzero(label == k) for k in range(n_groups)]


def _plane(electrons: NDArray[Any]) -> Array:
    image = np.asarray(electrons, np.float64)
    if image.ndim != 2 or not np.isfinite(image).all():
        raise ValueError(
            f"expected one plane (H, W) of finite photoelectrons, got shape {image.shape}"
            f"{'' if image.ndim != 2 else ' with NaN or infinity'}; pass one channel of one frame"
        )
    return image


def _shares(centre: Array, width: Array, n_pixels: int) -> tuple[Array, Array, Array]:
    """Return `pixel_shares` (N, n) and their derivatives by the centre and by the width."""
    edges = (np.arange(n_pixels + 1) - 0.5 - centre[:, None]) / width[:, None]
    bell = np.exp(-(edges**2) / 2) / (math.sqrt(2 * math.pi) * width[:, None])
    return pixel_shares(centre, width, n_pixels), -np.diff(bell, axis=1), -np.diff(edges * bell, axis=1)


def _spots(theta: Array, size: int, sigma_px: float, added: Array, excess: float) -> tuple[Array, Array]:
    """Return the expected data (N, S, S) and its derivatives (N, P, S, S) by y, x, photons, background and widths."""
    widths = theta[:, 4:] if theta.shape[1] > 4 else np.full((len(theta), 1), sigma_px)
    in_y, by_y, by_width_y = _shares(theta[:, 0], widths[:, 0], size)
    in_x, by_x, by_width_x = _shares(theta[:, 1], widths[:, -1], size)
    photons = theta[:, 2, None, None]

    def image(rows: Array, columns: Array) -> Array:
        return rows[:, :, None] * columns[:, None, :]

    share = image(in_y, in_x)
    derivatives = [photons * image(by_y, in_x), photons * image(in_y, by_x), share, np.ones_like(share)]
    wider = [photons * image(by_width_y, in_x), photons * image(in_y, by_width_x)]
    if theta.shape[1] == 5:
        derivatives.append(wider[0] + wider[1])
    elif theta.shape[1] == 6:
        derivatives += wider
    model = (photons * share + theta[:, 3, None, None] + added) / excess
    return np.maximum(model, 1e-9), np.stack(derivatives, 1) / excess


def _derivatives(
    psf: GaussianPsf, y: Array, x: Array, photons: Array, z_um: Array, height: int, width: int
) -> tuple[Array, Array]:
    """Return each emitter's image (N, H, W) and its derivatives (N, 3 or 4, H, W) by y, x, photons and z."""
    width_y, width_x = psf.sigmas(z_um)
    in_y, by_y, by_width_y = _shares(y, width_y, height)
    in_x, by_x, by_width_x = _shares(x, width_x, width)
    share = in_y[:, :, None] * in_x[:, None, :]
    light = photons[:, None, None]
    slopes = [light * by_y[:, :, None] * in_x[:, None, :], light * in_y[:, :, None] * by_x[:, None, :], share]
    if psf.has_z:
        (above_y, above_x), (below_y, below_x) = psf.sigmas(z_um + 1e-4), psf.sigmas(z_um - 1e-4)
        rise_y, rise_x = ((a - b)[:, None, None] / 2e-4 for a, b in ((above_y, below_y), (above_x, below_x)))
        slopes.append(
            light
            * (rise_y * by_width_y[:, :, None] * in_x[:, None, :] + rise_x * in_y[:, :, None] * by_width_x[:, None, :])
        )
    return light * share, np.stack(slopes, 1)


def _fisher(jacobian: Array, model: Array) -> Array:
    """Return the information (N, P, P) of Poisson pixels (N, S, S)."""
    flat = jacobian.reshape(*jacobian.shape[:2], -1)
    information: Array = (flat / model.reshape(len(model), 1, -1)) @ flat.transpose(0, 2, 1)
    return information


def _score(jacobian: Array, model: Array, data: Array) -> Array:
    score: Array = np.einsum("npij,nij->np", jacobian, (data - model) / model)
    return score


def _within(theta: Array, sigma_px: float) -> Array:
    """Keep photons, background and widths where they mean something."""
    theta[:, 2] = np.maximum(theta[:, 2], 1.0)
    theta[:, 3] = np.maximum(theta[:, 3], 1e-3)
    theta[:, 4:] = np.clip(theta[:, 4:], _LEAST_WIDTH_PX, _MOST_WIDENING * sigma_px)
    return theta
