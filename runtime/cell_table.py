"""A label image becomes one row per cell: centroid, area, intensity and the ellipse of its second moments."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.detections import Detections

COLUMNS = (
    "y_px", "x_px", "score", "area_px", "mean_intensity", "major_axis_px", "minor_axis_px", "orientation_rad"
)  # fmt: skip
"""What a model of cells tells of each."""


def scored_table(labels: NDArray[np.int32], image: NDArray[Any], likely: NDArray[np.float32]) -> Detections:
    """Return `cell_table` with the mean of `likely`, (H, W) from 0 to 1, over a cell's pixels as its score."""
    return cell_table(labels, image, cell_means(labels, likely)[1:].clip(0, 1).astype(np.float32))


def cell_means(labels: NDArray[np.int32], values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean of values (H, W) over the background and each cell, (1 + N,); 0 where there are no pixels."""
    flat = labels.ravel()
    means: NDArray[np.float64] = np.bincount(flat, values.ravel()) / np.maximum(np.bincount(flat), 1)
    return means


def cell_table(labels: NDArray[np.int32], image: NDArray[Any], score: NDArray[np.float32]) -> Detections:
    """Return one row per cell; row i - 1 is label i.

    Parameters
    ----------
    labels : (H, W) int32
        0 is background, cells 1 .. N without gaps.
    image : (H, W)
        Camera pixels.
    score : (N,) float32
        Confidence in each cell, 0..1.

    Returns
    -------
    Detections
        `COLUMNS` and the labels. The axes are those of the ellipse with the cell's second moments, as in
        scikit-image's `regionprops`; a pixel counts as a square.

    Raises
    ------
    ValueError
        If the labels do not belong to the image or the scores not to the labels.
    """
    n = len(score)
    if labels.shape != image.shape or labels.ndim != 2 or int(labels.max(initial=0)) != n:
        raise ValueError(
            f"expected labels 1 .. {n} of an image {image.shape}, got {labels.shape} up to {labels.max(initial=0)}"
        )
    inside = np.flatnonzero(labels)
    cell = labels.ravel()[inside] - 1
    row, column = np.divmod(inside, labels.shape[1])
    area = np.maximum(np.bincount(cell, minlength=n), 1).astype(np.float64)

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        averaged: NDArray[np.float64] = np.bincount(cell, values, minlength=n) / area
        return averaged

    y, x = mean(row), mean(column)
    dy, dx = row - y[cell], column - x[cell]
    yy, xx, xy = mean(dy * dy) + 1 / 12, mean(dx * dx) + 1 / 12, mean(dy * dx)
    middle, half = (yy + xx) / 2, np.hypot((xx - yy) / 2, xy)
    columns: dict[str, Any] = {
        "y_px": y,
        "x_px": x,
        "score": score,
        "area_px": area,
        "mean_intensity": mean(image.ravel()[inside]),
        "major_axis_px": 4 * np.sqrt(middle + half),
        "minor_axis_px": 4 * np.sqrt(np.maximum(middle - half, 0)),
        "orientation_rad": np.arctan2(2 * xy, xx - yy) / 2,
    }
    single: dict[str, Any] = {name: values.astype(np.float32) for name, values in columns.items()}
    return Detections(**single, labels=labels)
