"""A few cells of a frame as a person marked them: a label image, or polygons and clicks in a JSON file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.runtime.star_polygons import fill_polygon

FORMAT = "oneframe annotations"
FORMAT_VERSION = 1
BACKGROUND = -1
"""In `Annotations.labels`: there is no cell here."""
MOST_SHARED = 0.25
"""Two drawn cells may share this part of the smaller one; the first keeps it. Beyond, one was drawn twice."""

_SUFFIXES = (".tif", ".tiff", ".png", ".json")


class AnnotationError(ValueError):
    """A file of annotations cannot be used; the text says why and what to do."""


def _no_clicks() -> NDArray[np.float32]:
    return np.empty((0, 2), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """What a person said of a frame."""

    labels: NDArray[np.int32]
    """(H, W): cells above 0, 0 unknown, -1 known background."""
    cell_clicks: NDArray[np.float32] = field(default_factory=_no_clicks)
    """(N, 2), (y, x) px: the pseudo cell here is right as it is."""
    background_clicks: NDArray[np.float32] = field(default_factory=_no_clicks)
    """(M, 2), (y, x) px: there is no cell here; a pseudo cell here is none."""

    def __post_init__(self) -> None:
        if self.labels.ndim != 2 or self.labels.dtype != np.int32 or int(self.labels.min(initial=0)) < BACKGROUND:
            raise AnnotationError(
                f"expected labels (H, W) int32 of cells above 0, 0 unknown and -1 background, got {self.labels.dtype} "
                f"of shape {self.labels.shape} from {self.labels.min(initial=0)}"
            )
        for name, clicks in (("cell_clicks", self.cell_clicks), ("background_clicks", self.background_clicks)):
            if clicks.ndim != 2 or clicks.shape[1] != 2 or clicks.dtype != np.float32:
                raise AnnotationError(f"expected {name} (N, 2) float32, got {clicks.dtype} of shape {clicks.shape}")
            for y, x in clicks.tolist():
                if not (-0.5 <= y < self.labels.shape[0] - 0.5 and -0.5 <= x < self.labels.shape[1] - 0.5):
                    raise AnnotationError(
                        f"a click lies at (y, x) = ({y:g}, {x:g}), outside the image of {_size(self.labels.shape)}; "
                        "remove it, or check that y comes first"
                    )

    @property
    def n_cells(self) -> int:
        """Cells drawn or clicked."""
        drawn = np.unique(self.labels)
        return int((drawn > 0).sum()) + len(self.cell_clicks)

    def on(self, pseudo: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return labels (H, W) int32 in which the clicks name what lies under them in the pseudo labels.

        Raises
        ------
        AnnotationError
            If the shapes differ, a click on a cell hits none, or one cell is said to be right and wrong.
        """
        if pseudo.shape != self.labels.shape:
            raise AnnotationError(
                f"expected pseudo labels of {_size(self.labels.shape)} as the annotations, got {_size(pseudo.shape)}"
            )
        labels = self.labels.copy()
        right: set[int] = set()
        for y, x in np.rint(self.cell_clicks).astype(int).tolist():
            if self.labels[y, x] > 0:
                continue  # drawn already
            cell = int(pseudo[y, x])
            if cell <= 0:
                raise AnnotationError(f"the click at (y, x) = ({y}, {x}) hits no cell; draw this cell as a polygon")
            if cell not in right:
                right.add(cell)
                labels[(pseudo == cell) & (self.labels == 0)] = int(labels.max()) + 1
        for y, x in np.rint(self.background_clicks).astype(int).tolist():
            cell = int(pseudo[y, x])
            if labels[y, x] > 0:
                raise AnnotationError(
                    f"the click at (y, x) = ({y}, {x}) says there is no cell, where another annotation says there is "
                    "one; remove one of the two"
                )
            labels[y, x] = BACKGROUND
            if cell > 0:
                labels[(pseudo == cell) & (labels == 0)] = BACKGROUND
        return labels


def read_annotations(path: str | os.PathLike[str], shape: tuple[int, int]) -> Annotations:
    """Read annotations of an image of a shape.

    Parameters
    ----------
    path : path
        `.tif` or `.png`: a label image of integers. 0 is unknown, above 0 are cells; pixels of one value that do not
        touch are several cells. Known background is -1 or, in unsigned types, their highest value (255, 65535).

        `.json`: `{"format": "oneframe annotations", "format_version": 1, "shape": [H, W], "cells": [...],
        "background": [...]}`; each entry is `{"polygon": [[y, x], ...]}` or `{"click": [y, x]}`, in px with the centre
        of pixel [0, 0] at (0, 0). A pixel belongs to a polygon if its centre does; what lies beyond the image is cut
        off. Drawn cells go before drawn background.
    shape : (int, int)
        Height and width of the annotated image.

    Raises
    ------
    AnnotationError
        If the file cannot be used.
    FileNotFoundError
        If there is none.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise AnnotationError(f"{path.name}: expected a file that ends with {', '.join(_SUFFIXES)}")
    try:
        annotations = (
            _of_json(path.read_text(encoding="utf-8"), shape)
            if path.suffix.lower() == ".json"
            else _of_image(_label_image(path), shape)
        )
        if not (annotations.labels.any() or len(annotations.cell_clicks) or len(annotations.background_clicks)):
            raise AnnotationError("there is no annotation in it; mark a few cells")
    except AnnotationError as exc:
        raise AnnotationError(f"{path.name}: {exc}") from exc
    return annotations


def write_annotations(path: str | os.PathLike[str], annotations: Annotations) -> None:
    """Write annotations as JSON; `read_annotations` gives back the same pixels, cells numbered from 1."""
    labels = annotations.labels

    def entries(values: list[int], clicks: NDArray[np.float32]) -> list[dict[str, Any]]:
        drawn = [{"polygon": _outline(labels == value)} for value in values]
        return [*drawn, *({"click": click} for click in clicks.tolist())]

    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "shape": list(labels.shape),
        "cells": entries([v for v in np.unique(labels).tolist() if v > 0], annotations.cell_clicks),
        "background": entries([BACKGROUND] if (labels < 0).any() else [], annotations.background_clicks),
    }
    Path(path).write_text(json.dumps(content), encoding="utf-8")


def _label_image(path: Path) -> NDArray[Any]:
    if path.suffix.lower() == ".png":
        import cv2

        # not cv2.imread: it fails on names that are not ASCII under Windows
        picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        if picture is None:
            raise AnnotationError("there is no picture in it; save the label image again")
        return np.asarray(picture)
    import tifffile

    try:
        return np.asarray(tifffile.imread(path))
    except (tifffile.TiffFileError, ValueError) as exc:
        raise AnnotationError(f"it cannot be read as TIFF ({exc}); save the label image again") from exc


def _of_image(image: NDArray[Any], shape: tuple[int, int]) -> Annotations:
    """Return the cells of a label image, those of one value that do not touch apart."""
    from scipy.ndimage import find_objects, label

    if image.ndim != 2 or image.dtype.kind not in "iu":
        raise AnnotationError(
            f"expected a label image (H, W) of integers, got {image.dtype} of shape {image.shape}; save it as 8- or "
            "16-bit grey"
        )
    _same_size(image.shape, shape)
    unsigned = image.dtype.kind == "u"
    background = image == (np.iinfo(image.dtype).max if unsigned else BACKGROUND)
    if not unsigned and image.min(initial=0) < BACKGROUND:
        raise AnnotationError(f"expected values from -1 (background), got {image.min()}; number the cells from 1")
    if image.size and image.max() > np.iinfo(np.int32).max and not background.any():
        raise AnnotationError(f"expected values below 2^31, got {image.max()}; number the cells from 1")
    values, number = np.unique(np.where(background, 0, image), return_inverse=True)
    if background.any() and len(values) == 1 and unsigned:
        raise AnnotationError(
            f"all that is marked has the value {image.max()}, which means background; number the cells from 1"
        )
    number = number.reshape(image.shape)
    labels = np.where(background, BACKGROUND, 0).astype(np.int32)
    n = 0
    for k, box in enumerate(find_objects(number), 1):
        parts, n_parts = label(number[box] == k, np.ones((3, 3)))
        labels[box] = np.where(parts > 0, parts + n, labels[box])
        n += n_parts
    return Annotations(labels)


def _of_json(text: str, shape: tuple[int, int]) -> Annotations:
    try:
        content = json.loads(text)
    except ValueError as exc:
        raise AnnotationError(f"it is no JSON ({exc}); write it again") from exc
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise AnnotationError(f'expected "format": "{FORMAT}"; this is another kind of file')
    if content.get("format_version") != FORMAT_VERSION:
        raise AnnotationError(
            f"expected format_version {FORMAT_VERSION}, got {content.get('format_version')}; update oneframe"
        )
    unknown = sorted(set(content) - {"format", "format_version", "shape", "cells", "background"})
    if unknown:
        raise AnnotationError(f"unknown key {unknown[0]!r}; expected shape, cells and background")
    told = content.get("shape")
    _same_size(tuple(told) if isinstance(told, list) else (), shape)
    labels = np.zeros(shape, np.int32)
    clicks: dict[str, list[list[float]]] = {"cells": [], "background": []}
    n = 0
    for kind in ("cells", "background"):
        entries = content.get(kind, [])
        if not isinstance(entries, list):
            raise AnnotationError(f"expected a list of {kind}, got {entries!r}")
        for i, entry in enumerate(entries, 1):
            which = f"{kind} entry {i}"
            if not isinstance(entry, dict) or set(entry) not in ({"polygon"}, {"click"}):
                raise AnnotationError(f'{which}: expected {{"polygon": [[y, x], ...]}} or {{"click": [y, x]}}')
            if "click" in entry:
                clicks[kind].append(_positions([entry["click"]], which)[0].tolist())
                continue
            pixels = _filled(_positions(entry["polygon"], which), shape, which)
            if kind == "background":
                own = pixels[labels.ravel()[pixels] == 0]
                labels.ravel()[own] = BACKGROUND
                continue
            n += 1
            labels.ravel()[_apart(pixels, labels, which)] = n
    return Annotations(
        labels,
        np.array(clicks["cells"], np.float32).reshape(-1, 2),
        np.array(clicks["background"], np.float32).reshape(-1, 2),
    )


def _positions(entry: Any, which: str) -> NDArray[np.float64]:
    """Return positions (N, 2)."""
    try:
        yx = np.array(entry, np.float64)
    except (TypeError, ValueError):
        yx = np.empty(0)
    if yx.ndim != 2 or yx.shape[1] != 2 or not np.isfinite(yx).all():
        raise AnnotationError(f"{which}: expected positions [y, x] of two finite numbers, got {str(entry)[:60]}")
    return yx


def _filled(yx: NDArray[np.float64], shape: tuple[int, int], which: str) -> NDArray[np.int64]:
    """Return the pixels of a polygon."""
    if len(np.unique(yx, axis=0)) < 3:
        raise AnnotationError(f"{which}: expected a polygon of 3 or more different points, got {len(yx)} points")
    low, high = yx.min(0), yx.max(0)
    if (high < -0.5).any() or (low > np.array(shape) - 0.5).any():
        raise AnnotationError(
            f"{which}: the polygon about (y, x) = ({yx[:, 0].mean():.0f}, {yx[:, 1].mean():.0f}) lies outside the "
            f"image of {_size(shape)}; remove it, or check that y comes first"
        )
    pixels = fill_polygon(yx.clip(-1e6, 1e6), shape)
    if not len(pixels):
        raise AnnotationError(
            f"{which}: the polygon at (y, x) = ({low[0]:.0f}, {low[1]:.0f}) encloses no pixel; draw it larger"
        )
    return pixels


def _apart(pixels: NDArray[np.int64], labels: NDArray[np.int32], which: str) -> NDArray[np.int64]:
    """Return the pixels of a drawn cell that no other has."""
    others = labels.ravel()[pixels]
    areas = np.bincount(labels[labels > 0])
    for other, shared in enumerate(np.bincount(others[others > 0])):
        if shared > MOST_SHARED * min(len(pixels), areas[other]):
            raise AnnotationError(
                f"{which} and drawn cell {other} share {shared} pixels; draw each cell once and leave its neighbour out"
            )
    own: NDArray[np.int64] = pixels[others == 0]
    return own


def _outline(mask: NDArray[np.bool_]) -> list[list[float]]:
    """Return a polygon along the edges of the pixels; loops of several parts and holes are joined by double lines."""
    padded = np.pad(mask, 1)
    leads: dict[tuple[int, int], list[tuple[int, int]]] = {}  # corner -> next corners, the mask to the right
    for axis in (0, 1):
        change = np.diff(padded.astype(np.int8), axis=axis)
        for a, b in np.argwhere(change).tolist():
            enters = change[a, b] > 0
            # corner [i, j] is at (i - 0.5, j - 0.5) of the mask
            start, end = ((a, b - 1), (a, b)) if axis == 0 else ((a, b), (a - 1, b))
            if not enters:
                start, end = end, start
            leads.setdefault(start, []).append(end)
    polygon: list[tuple[int, int]] = []
    while leads:
        first = at = next(iter(leads))
        loop = [first]
        while at in leads:
            following = leads[at].pop()
            if not leads[at]:
                del leads[at]
            loop.append(at := following)
        polygon += [*_corners(loop), polygon[0] if polygon else first]
    return [[y - 0.5, x - 0.5] for y, x in polygon]


def _corners(loop: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Drop the points in the middle of straight lines; begin and end of the loop stay."""
    kept = [loop[0]]
    for before, here, after in zip(loop, loop[1:], loop[2:], strict=False):
        if (here[0] - before[0], here[1] - before[1]) != (after[0] - here[0], after[1] - here[1]):
            kept.append(here)
    return [*kept, loop[-1]]


def _same_size(got: tuple[int, ...], expected: tuple[int, int]) -> None:
    if tuple(got) != tuple(expected):
        raise AnnotationError(
            f"the annotated image has {_size(got)}, the frame {_size(expected)}; annotate the frame that is trained on"
        )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape) + " px (height x width)"
