"""Tiles of a frame give what the whole frame gives."""

import copy
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from oneframe.acquisition import open_source
from oneframe.runtime import load_model, tiles
from oneframe.runtime.tiles import Tiling, tiled_maps


def box_filter(halo_px: int):
    """Maps that look `halo_px` far: of every pixel, and of every second one with an axis more."""

    def maps_of(image: np.ndarray) -> dict[str, np.ndarray]:
        padded = np.pad(image.astype(np.float32), halo_px, mode="edge")
        sums = np.lib.stride_tricks.sliding_window_view(padded, (2 * halo_px + 1,) * 2).sum((2, 3))
        return {"sum": sums, "pair": np.stack([sums, -sums])}

    return maps_of


@pytest.mark.parametrize("shape", [(70, 40), (40, 131), (97, 101), (32, 32)])
@pytest.mark.parametrize("largest_px", [16, 33])
def test_tiles_give_the_maps_of_the_whole(shape, largest_px):
    image = np.random.default_rng(1).integers(0, 900, shape)
    maps_of = box_filter(5)
    whole = maps_of(image)
    for name, values in tiled_maps(maps_of, image, Tiling(4, 8), largest_px=largest_px).items():
        assert np.array_equal(values, whole[name])


def test_a_halo_that_is_too_small_is_seen():
    image = np.random.default_rng(1).integers(0, 900, (64, 64))
    values = tiled_maps(box_filter(5), image, Tiling(4, 4), largest_px=32)["sum"]
    assert not np.array_equal(values, box_filter(5)(image)["sum"])


@pytest.mark.parametrize("shape", [(71, 40), (98, 101)])
def test_maps_may_lie_on_a_coarser_grid(shape):
    image = np.random.default_rng(1).integers(0, 900, shape)

    def maps_of(image: np.ndarray) -> dict[str, np.ndarray]:
        return {"every_second": box_filter(2)(image)["pair"][:, ::2, ::2]}

    found = tiled_maps(maps_of, image, Tiling(4, 4, grid_px=2.0), largest_px=24)
    assert np.array_equal(found["every_second"], maps_of(image)["every_second"])


def test_a_large_frame_gives_the_same_cells_tiled_or_whole(cell_lab, monkeypatch):
    model = load_model(cell_lab.path)
    scene = cell_lab.scene.replace("width=256&height=240&n=26", "width=611&height=530&n=130")
    image = open_source(f"{scene}&seed=12").read(5.0).pixels
    whole = model.detect(image)
    monkeypatch.setattr(tiles.tiled_maps, "__kwdefaults__", {"largest_px": 200})
    tiled = model.detect(image)
    assert len(whole) > 90
    assert np.array_equal(tiled.labels, whole.labels)
    for name, values in whole.columns().items():
        np.testing.assert_array_equal(tiled.columns()[name], values)


def agree(graph: Any, image: np.ndarray, tiling: Tiling, share: float) -> None:
    """Compare tiles of half the image with the whole, up to a share of each map's range."""
    torch = pytest.importorskip("torch", reason="needs oneframe[train]")

    def maps_of(pixels: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = graph(torch.from_numpy(pixels), torch.tensor(0.0))
        return {name: values.numpy() for name, values in zip(graph.maps, found, strict=True)}

    whole = maps_of(image)
    for name, values in tiled_maps(maps_of, image, tiling, largest_px=image.shape[0] // 2 + 10).items():
        np.testing.assert_allclose(values, whole[name], rtol=0, atol=share * np.ptp(whole[name]))


def noise(height_px: int) -> np.ndarray:
    return np.random.default_rng(2).normal(500, 60, (height_px, 48)).astype(np.float32)


@pytest.mark.parametrize(
    ("zoom", "share"),
    [(Fraction(1), 1e-6), (Fraction(2), 1e-6), (Fraction(3, 2), 1e-3)],
    ids=["own scale", "enlarged by 2", "enlarged by 3/2, which rounds"],
)
def test_graphs_for_cells_look_no_further_than_their_halo(cell_lab, zoom, share):
    from oneframe.trainer.cell_scale import WorkingScale

    graph = copy.copy(cell_lab.trained.graph)
    graph.scale = scale = WorkingScale(1, zoom)
    agree(graph, noise(3 * scale.halo_px + 37), Tiling(scale.step_px, scale.halo_px), share)


def test_graphs_of_stars_look_no_further_than_their_halo():
    pytest.importorskip("torch", reason="needs oneframe[train]")
    from oneframe.trainer.cell_scale import WorkingScale
    from oneframe.trainer.star_graph import StarGraph
    from oneframe.trainer.supported import StarNetwork

    scale = WorkingScale(2, Fraction(1))
    graph = StarGraph(StarNetwork().eval(), sign=1.0, scale=scale, floor=5.0, least_relief=1.0).eval()
    agree(graph, noise(3 * scale.halo_px + 37), Tiling(scale.step_px, scale.halo_px, graph.grid_px), 1e-6)
