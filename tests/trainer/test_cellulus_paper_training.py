"""The published Cellulus on one simulated frame, from training to the model file, which runs as every other."""

from contextlib import closing

import numpy as np
import pytest
import torch

from oneframe.acquisition import open_source
from oneframe.export import export
from oneframe.runtime.load import load_model
from oneframe.runtime.paper_cells import NOT_SEEN
from oneframe.runtime.selftest import verify_model
from oneframe.trainer.cell_scale import working_scale
from oneframe.trainer.cellulus_paper import PaperNetwork, PaperSettings
from oneframe.trainer.cellulus_paper_training import PaperGraph, paper_separation
from oneframe.trainer.train import train

SMALL = {"preset": "paper", "steps": 2, "features": 4, "crop_px": 44, "crops": 2, "noise_passes": 2}


@pytest.fixture(scope="module")
def frame():
    with closing(open_source("sim:cells?seed=1&width=110&height=96&n=9&diameter_px=20")) as source:
        return source.read(5.0).pixels


@pytest.fixture(scope="module")
def model(frame, tmp_path_factory):
    """Return the path of a model that has learned next to nothing, and what was told before it did."""
    told = []
    trained = train(frame, method="cellulus", diameter_px=20.0, on_frame=told.append, **SMALL)
    path = tmp_path_factory.mktemp("paper") / "cells.onnx"
    export(trained, path)
    return path, told


def test_how_long_it_takes_is_said_first(model):
    _, (told,) = model
    assert (told.diameter_px, told.features, told.n_steps) == (20.0, 4, 2)
    assert told.step_s > 0
    assert "2 steps of" in told.lines()[1]
    long = type(told)(24.0, 64, 100_000, 11.5).lines()[1]
    assert long.endswith("100000 steps of 12 s here: about 13 days (--steps)")


def test_the_file_verifies_and_says_why_it_finds_no_cells(model, frame):
    path, _ = model
    _, result = verify_model(str(path))
    assert result.passed
    found = load_model(path).detect(frame)
    assert found.notes == (NOT_SEEN,)
    assert found.labels.shape == frame.shape
    assert load_model(path).card.quality["warnings"] == [NOT_SEEN]
    assert load_model(path).detect(frame[:8, :9]).labels.shape == (8, 9)


def test_the_card_holds_what_was_published(model, frame):
    card = load_model(model[0]).card
    low, high = np.percentile(frame, [1, 99.8])
    assert card.settings["tau"] == 10
    assert card.settings["preset"] == "paper"
    assert card.separation["by"] == "mean-shift"
    assert card.separation["levels"] == pytest.approx([(low + high) / 2, high])
    assert (card.separation["passes"], card.separation["share"]) == (2, 0.01)


@torch.no_grad()
def test_pixels_are_normalised_by_the_snapped_frame_and_offsets_are_camera_pixels():
    scale = working_scale(50.0)
    network = PaperNetwork(4)
    graph = PaperGraph(network, scale, 100.0, 300.0)
    counts = torch.randint(100, 300, (80, 90), generator=torch.Generator().manual_seed(0))
    even = torch.full((80, 90), 200, dtype=torch.int32)
    dy, dx = graph(even, torch.tensor(0.0))
    wanted = network(torch.full((1, 1, 40, 40), 0.5))[0, :, 5, 5] / scale.factor
    torch.testing.assert_close(torch.stack([dy, dx]), wanted[:, None, None].expand(2, 80, 90))
    brighter = PaperGraph(network, scale, 200.0, 600.0)(2 * counts, torch.tensor(0.0))
    torch.testing.assert_close(brighter, graph(counts, torch.tensor(0.0)))


def test_lengths_follow_the_scale():
    fine, coarse = (paper_separation(working_scale(each), 0.0, 1.0, PaperSettings()) for each in (24.0, 48.0))
    assert (fine.bandwidth_px, fine.shrink_px, fine.grain_px, fine.sample) == (12.0, 6.0, 1, 0.1)
    assert (coarse.bandwidth_px, coarse.shrink_px, coarse.grain_px, coarse.sample) == (24.0, 12.0, 2, 0.025)
    assert coarse.least_area_px == pytest.approx(4 * fine.least_area_px)


def test_what_the_paper_does_not_know_is_refused(frame):
    with pytest.raises(ValueError, match="expected settings of PaperSettings, got foreground"):
        train(frame, method="cellulus", preset="paper", foreground="contrast")
    spotted = np.zeros((64, 64), np.uint16)
    spotted[3, 4] = 1
    with pytest.raises(ValueError, match="counts at the 1st and"):
        train(spotted, method="cellulus", diameter_px=20.0, **SMALL)
