"""A model file becomes a ready `Model`: camera pixels in, `Detections` out."""

from __future__ import annotations

import os
from typing import Any

from numpy.typing import NDArray

from oneframe.runtime.cell_model import CellModel
from oneframe.runtime.frame_window import WindowModel
from oneframe.runtime.hologram_model import HologramModel
from oneframe.runtime.model import OnnxModel, load_graph

LoadedModel = OnnxModel | CellModel | HologramModel | WindowModel
"""What `load_model` gives: of camera images, of cells, of holograms, of several consecutive frames."""


def load_model(
    path: str | os.PathLike[str],
    *,
    threshold: float | None = None,
    threads: int | None = None,
    reference: NDArray[Any] | None = None,
    background: str | None = None,
) -> LoadedModel:
    """Load a model file.

    Parameters
    ----------
    path : path
        An `.onnx` file made by `oneframe train`.
    threshold : float, optional
        Lowest score to report, 0..1, in place of the card's.
    threads : int, optional
        CPU threads for one frame; by default what ONNX Runtime chooses.
    reference, background : optional
        Of a model for holograms, as for `FieldReader`.

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, not ONNX, or not made by oneframe.
    ValueError
        If reference and background do not go together, or the model takes no holograms.
    """
    graph = load_graph(path, threshold=threshold, threads=threads)
    if graph.card.hologram:
        return HologramModel(graph, reference=reference, background=background)
    if reference is not None or background is not None:
        raise ValueError(f"expected no reference or background: {path} takes camera images; leave it out")
    return ready(graph)


def ready(graph: OnnxModel) -> OnnxModel | CellModel | WindowModel:
    """Return a graph that takes camera images with what its card says must happen around it.

    Raises
    ------
    ValueError
        If the card lacks what that needs.
    """
    if graph.card.maps:
        return CellModel(graph)
    if graph.card.method == "shot" and graph.card.n_channels > 1:
        return WindowModel(graph)
    return graph
