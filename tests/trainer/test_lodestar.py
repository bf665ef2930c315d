"""LodeSTAR learns from one crop; the deployed graph finds the truth of the simulated microscope."""

import threading

import numpy as np
import pytest
import torch
from microscope import beads, snapped, yx

from oneframe.runtime.truth import TruthComparison
from oneframe.trainer import ConvergenceError, TrainingCancelled, train
from oneframe.trainer.crops import Box, Normalisation
from oneframe.trainer.lodestar import train_lodestar
from oneframe.trainer.lodestar_graph import LodestarGraph
from oneframe.trainer.lodestar_network import LodestarNetwork, LodestarSettings, consensus


def run(graph: LodestarGraph, image: np.ndarray, threshold: float) -> np.ndarray:
    with torch.no_grad():
        y, x, *_ = graph(torch.from_numpy(np.ascontiguousarray(image)), torch.tensor(threshold))
    return np.column_stack([y.numpy(), x.numpy()])


def untrained(*, diameter_px: float, pooling: int, split_cells: bool = False) -> LodestarGraph:
    settings = LodestarSettings(channels=4, split_cells=split_cells)
    return LodestarGraph(
        LodestarNetwork(1, settings),
        Normalisation(0, 1, 0.1),
        settings,
        pooling=pooling,
        reach_cells=2,
        diameter_px=diameter_px,
        sigma_px=0.1,
        likeness=None,
    )


def test_finds_the_beads_of_frames_it_never_saw(bead_model):
    comparison = TruthComparison()
    source = beads("&seed=99")
    for _ in range(10):
        frame = source.read(5.0)
        found = run(bead_model.trained.graph, frame.pixels, bead_model.trained.card.threshold)
        comparison.add(yx(source.truth()), found)
    score = comparison.score()
    assert score.recall >= 0.97
    assert score.precision >= 0.97
    assert score.rmse_px <= 0.15


def test_finds_beads_cut_by_the_frame_edge(bead_model):
    source = beads("&seed=5&n=30")
    comparison = TruthComparison()
    for _ in range(10):
        frame = source.read(5.0)
        truth, found = yx(source.truth()), run(bead_model.trained.graph, frame.pixels, 0.3)
        to_edge = np.minimum(truth.min(1), np.min(np.array(frame.pixels.shape) - 1 - truth, axis=1))
        at_edge = truth[to_edge < 2]
        nearest = np.abs(found[:, None] - at_edge[None]).max(-1) < 3
        comparison.add(at_edge, found[nearest.any(1)])
    score = comparison.score()
    assert score.n_true > 10
    assert score.recall > 0.8
    assert score.rmse_px < 0.5


def test_rotating_the_frame_rotates_the_detections(bead_model):
    image = bead_model.snap.frame.pixels
    found = run(bead_model.trained.graph, image, 0.3)
    turned = run(bead_model.trained.graph, np.rot90(image), 0.3)
    back = np.column_stack([turned[:, 1], image.shape[1] - 1 - turned[:, 0]])
    distance = np.abs(found[:, None] - back[None]).max(-1).min(1)
    assert len(found) == len(back)
    assert np.median(distance) < 0.1
    assert distance.max() < 0.6


def test_shifting_the_frame_by_whole_pixels_shifts_the_detections(bead_model):
    image = bead_model.snap.frame.pixels
    found = run(bead_model.trained.graph, image, 0.3)
    for dy, dx in ((1, 0), (0, 3), (5, 2)):
        moved = run(bead_model.trained.graph, image[dy:, dx:], 0.3) + np.array([dy, dx])
        inside = found[((found > 12) & (found < np.array(image.shape) - 12)).all(1)]
        distance = np.abs(inside[:, None] - moved[None]).max(-1).min(1)
        assert np.median(distance) < 0.08


def test_the_same_seed_gives_the_same_model():
    snap = snapped()
    settings = LodestarSettings(n_steps=150, channels=16)
    a, b, other = (
        train_lodestar(snap.frame.pixels, [Box(*snap.box)], seed=seed, settings=settings).graph.state_dict()
        for seed in (4, 4, 5)
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], other[name]) for name in a)


def test_cancelling_gives_no_model():
    snap = snapped()
    cancel = threading.Event()
    with pytest.raises(TrainingCancelled, match="stopped at step"):
        train(snap.frame.pixels, box=snap.box, steps=500, on_progress=lambda _: cancel.set(), cancel=cancel)


def test_what_does_not_converge_is_no_model():
    snap = snapped()
    settings = LodestarSettings(n_steps=3, channels=4, max_attempts=2)
    with pytest.raises(
        ConvergenceError, match=r"within 0.5 px, got after 2 attempts: half-way error .* px.*box one clear"
    ):
        train_lodestar(snap.frame.pixels, [Box(*snap.box)], seed=0, settings=settings)


def test_consensus_is_the_weighted_mean_near_the_peak():
    grid = torch.zeros(1, 3, 8, 8)
    grid[:, 2] = -20
    grid[0, 2, 2, 3] = grid[0, 2, 2, 4] = 5
    grid[0, 0, 2, 3] = 0.5
    position, spread = consensus(grid, 2, 1)
    # cells (2, 3) and (2, 4) stand at y = (2 - 3.5) * 2, x = (3 - 3.5) * 2 and (4 - 3.5) * 2
    np.testing.assert_allclose(position.numpy(), [[-3 + 0.25, 0.0]], atol=1e-3)
    assert spread.item() == pytest.approx(1 + 0.25, abs=1e-3)


@pytest.mark.parametrize("shape", [(64, 64), (65, 64), (64, 67), (33, 51)])
@pytest.mark.parametrize("pooling", [1, 2, 3])
def test_every_pixel_of_any_frame_lies_in_a_cell(shape, pooling):
    graph = untrained(diameter_px=8, pooling=pooling, split_cells=True)
    blocks = graph.predict(graph.pooled(torch.rand(shape)))
    assert tuple(blocks.shape[1:]) == tuple(-(-n // (4 * pooling)) for n in shape)


def test_the_variance_of_neighbouring_predictions_is_exact():
    graph = untrained(diameter_px=8, pooling=1)
    rng = np.random.default_rng(0)
    offsets = rng.normal(0, 3, (2, 9, 9))
    grid = torch.from_numpy(np.concatenate([offsets, np.zeros((1, 9, 9))])).float()
    rows, columns = np.indices((9, 9)) * 2.0
    y, x = offsets[0] + rows, offsets[1] + columns
    expected = [[y[i : i + 3, j : j + 3].var() + x[i : i + 3, j : j + 3].var() for j in range(7)] for i in range(7)]
    rows, columns = torch.cartesian_prod(torch.arange(1, 8), torch.arange(1, 8)).T
    graph.alpha, graph.beta = 0.0, 1.0  # the score tells nothing but the variance
    score = graph.score(grid, rows, columns)
    np.testing.assert_allclose((1 / score - 1).reshape(7, 7).numpy(), expected, rtol=1e-4)


def test_blocks_of_cells_are_the_grid_in_another_order():
    torch.manual_seed(3)
    settings = LodestarSettings(channels=8, alpha=0.5)
    network = LodestarNetwork(1, settings)
    network.head.weight.data *= 20
    kind = {"pooling": 1, "reach_cells": 3, "diameter_px": 8.0, "sigma_px": 0.1, "likeness": None}
    graph = LodestarGraph(network, Normalisation(0, 1, 0.1), settings, **kind)
    network.split = 1
    plain = LodestarGraph(network, Normalisation(0, 1, 0.1), settings, **kind)
    network.split = 2
    plain.predict = lambda pixels: network(pixels[None, None])[0]
    image = torch.randn((72, 88), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        blocks, grid = graph(image, torch.tensor(0.15)), plain(image, torch.tensor(0.15))
    found, expected = (torch.stack(columns).T[torch.stack(columns)[2].argsort()] for columns in (blocks, grid))
    assert len(found) > 10
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_threshold_only_leaves_out_the_rows_below_it(bead_model):
    image = torch.from_numpy(bead_model.snap.frame.pixels)
    with torch.no_grad():
        everything = torch.stack(bead_model.trained.graph(image, torch.tensor(0.0))).T
        for threshold in (0.05, 0.4, 0.8):
            found = torch.stack(bead_model.trained.graph(image, torch.tensor(threshold))).T
            torch.testing.assert_close(found, everything[everything[:, 2] >= threshold])


def test_two_peaks_that_point_to_one_place_are_one_particle():
    graph = untrained(diameter_px=24, pooling=1)
    grid = torch.zeros(3, 32, 32)
    grid[2] = -20
    for row, column in ((10, 10), (10, 20)):
        for i in range(row - 3, row + 4):
            for j in range(column - 3, column + 4):
                rho = 5.0 if max(abs(i - row), abs(j - column)) <= 1 else -20.0
                grid[:, i, j] = torch.tensor([20.5 - (2 * i + 0.5), 30.5 - (2 * j + 0.5), rho])
    graph.predict = lambda _: grid
    y, x, score, *_ = graph(torch.zeros(64, 64), torch.tensor(0.3))
    np.testing.assert_allclose(torch.stack([y, x, score]).T.numpy(), [[20.5, 30.5, score[0]]], atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: np.stack([image] * 3, -1), r"one plane \(H, W\), got shape \(128, 160, 3\); convert colour"),
        (lambda image: np.full_like(image, 7), "constant value 7"),
        (lambda image: image[:0], "empty"),
        (lambda image: np.where(image > 300, np.nan, image).astype(np.float32), r"finite pixels, got \d+ that are NaN"),
        (lambda image: image.astype(np.complex64), "uint8, uint16 or float32 camera pixels, got complex64"),
    ],
)
def test_frames_that_cannot_be_learned_from_are_refused(change, message):
    snap = snapped()
    with pytest.raises(ValueError, match=message):
        train(change(snap.frame.pixels), box=snap.box, steps=1)


def test_a_constant_box_is_refused():
    image = snapped().frame.pixels.copy()
    image[20:40, 20:40] = 50
    with pytest.raises(ValueError, match="expected a particle in the box, got one constant value 50"):
        train(image, box=(22, 22, 12, 12), steps=1)


def test_the_card_says_what_it_learned_from(bead_model):
    card = bead_model.trained.card
    assert card.method == "lodestar"
    assert card.input_dtype == "uint16"
    assert card.crop["box_xywh_px"] == list(bead_model.snap.box)
    assert len(card.crop["sha256"]) == 64
    assert card.pixel_size_um == 0.1
    assert 4 < card.object_diameter_px < 12
    assert card.settings["seed"] == 1


def test_a_frame_without_particles_gives_no_rows(bead_model):
    empty = np.random.default_rng(0).poisson(160, (70, 90)).astype(np.uint16)
    assert run(bead_model.trained.graph, empty, 0.9).shape == (0, 2)
