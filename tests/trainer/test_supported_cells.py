"""Cells from one frame and a few annotations: the graph and its file, what the card says, what drawn cells tell."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from oneframe.acquisition import open_source
from oneframe.export import export
from oneframe.runtime.cell_model import Separation, cells_of
from oneframe.runtime.load import load_model
from oneframe.runtime.segmentation_score import SegmentationScore
from oneframe.runtime.selftest import verify_model
from oneframe.trainer import train
from oneframe.trainer.annotations import AnnotationError, Annotations
from oneframe.trainer.cell_scale import WorkingScale, working_scale
from oneframe.trainer.cellulus import detect, read_cell_frame
from oneframe.trainer.star_graph import StarGraph
from oneframe.trainer.star_targets import star_targets
from oneframe.trainer.supported import StarNetwork, agreement_of
from oneframe.trainer.supported_cells import _told, at_working_scale, star_separation


def cells(side=160, seed=3, diameter_px=22):
    """Return a frame and its true labels."""
    n = round(0.5 * side**2 / diameter_px**2)
    source = open_source(f"sim:cells?seed={seed}&width={side}&height={side}&n={n}&diameter_px={diameter_px}")
    frame = source.read(5.0)
    truth = source.truth().labels.astype(np.int32)
    source.close()
    return frame.pixels, truth


def drawn(truth, *numbers):
    """Return some of the cells, as a person would draw them."""
    largest = np.argsort(-np.bincount(truth.ravel())[1:], kind="stable") + 1
    return Annotations(np.where(np.isin(truth, largest[list(numbers)]), truth, 0).astype(np.int32))


def figures(truth, labels):
    score = SegmentationScore()
    score.add(truth, labels)
    return score.figures()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Train on a tiny frame, briefly, and export."""
    image, truth = cells()
    annotations = drawn(truth, 0, 3, 6)
    reports, frames = [], []
    trained = train(
        image, method="cellulus", annotations=annotations, steps=40, on_progress=reports.append, on_frame=frames.append
    )
    path = tmp_path_factory.mktemp("stars") / "cells.onnx"
    card = export(trained, path)
    return SimpleNamespace(image=image, truth=truth, trained=trained, path=path, card=card, reports=reports,
                           frames=frames, annotations=annotations)  # fmt: skip


def test_the_file_finds_what_torch_finds(lab):
    model = load_model(lab.path)
    found = model.detect(lab.image)
    expected = detect(lab.trained.graph, lab.image, Separation.from_card(lab.card.separation), lab.card.threshold)
    assert len(found) > 5
    assert (found.labels == expected.labels).mean() > 0.999
    np.testing.assert_allclose(found.score, expected.score, atol=1e-3)
    assert found.labels.max() == len(found)
    assert figures(lab.truth, found.labels).f1 > 0.6
    _, result = verify_model(str(lab.path))
    assert result.passed
    assert result.n_expected > 3


def test_the_score_is_the_probability_and_the_threshold_counts(lab):
    model = load_model(lab.path)
    usual = model.detect(lab.image)
    assert usual.score.min() >= lab.card.threshold
    model.threshold = float(np.median(usual.score))
    fewer = model.detect(lab.image)
    assert fewer.score.min() >= model.threshold
    assert 0 < len(fewer) < len(usual)
    model.threshold = 1.0
    assert not len(model.detect(lab.image))


def test_noise_alone_is_no_cell(lab):
    noise = np.random.default_rng(0).normal(lab.image.min() + 20, 3, (150, 131)).astype(np.uint16)
    assert not len(load_model(lab.path).detect(noise))


def test_the_card_says_what_the_annotations_brought(lab):
    quality = lab.card.quality
    assert quality["annotated_cells"] == 3
    assert 0 <= quality["annotated_iou_before"] <= 1
    found = load_model(lab.path).detect(lab.image)
    assert quality["annotated_iou"] == pytest.approx(agreement_of(found.labels, lab.annotations.labels), abs=0.01)
    assert quality["cells_on_frame"] == pytest.approx(len(found), abs=1)
    assert f"3 annotated cells: without annotation {quality['annotated_iou_before']:.2f}" in quality["annotations"]
    assert lab.card.maps == ("probability", "rays_px")
    assert lab.card.separation["by"] == "stars"


def test_progress_covers_both_halves(lab):
    steps = [report.step for report in lab.reports]
    assert steps == sorted(steps)
    assert {report.n_steps for report in lab.reports} == {lab.reports[-1].step}
    assert len({report.note for report in lab.reports}) == 2
    assert lab.reports[-1].eta_s == 0
    assert len(lab.frames) == 1


SCALES = [WorkingScale(pooling, Fraction(zoom)) for pooling, zoom in ((1, "1"), (1, "2/3"), (1, "8/3"), (4, "6/5"))]


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_true_maps_become_the_true_cells_at_any_scale(scale):
    """Nothing is shifted on the way from the grid to camera pixels."""
    image, truth = cells(round(160 / scale.factor) + 3, diameter_px=24 / scale.factor)
    prob, rays = star_targets(at_working_scale(truth, scale))
    graph = StarGraph(StarNetwork(), sign=1, scale=scale, floor=1, least_relief=1)
    maps = {"probability": prob[::2, ::2], "rays_px": rays[:, ::2, ::2] / np.float32(scale.factor)}
    maps["probability"] = np.where(maps["probability"] > 0.4, maps["probability"], 0)
    found = cells_of(maps, image, star_separation(graph, 1))
    result = figures(truth, found.labels)
    assert result.f1 > 0.88  # slivers at the border have no middle on the grid
    assert result.matched_iou > 0.85
    seen = np.flatnonzero(np.bincount(truth.ravel(), minlength=truth.max() + 1)[1:]) + 1
    shift = []
    for k in seen:
        y, x = np.nonzero(truth == k)
        near = np.hypot(found.y_px - y.mean(), found.x_px - x.mean()).argmin()
        shift.append((found.y_px[near] - y.mean(), found.x_px[near] - x.mean()))
    assert np.abs(np.median(shift, axis=0)).max() < 0.15 / scale.factor


def test_the_maps_lie_where_the_graph_says():
    scale = working_scale(70.0)
    torch.manual_seed(0)
    graph = StarGraph(StarNetwork().eval(), sign=-1, scale=scale, floor=5.0, least_relief=1.0).eval()
    image = np.random.default_rng(0).integers(0, 900, (211, 187)).astype(np.uint16)
    with torch.no_grad():
        prob, rays = graph(torch.from_numpy(image), torch.tensor(0.0))
    assert rays.shape == (16, *prob.shape)
    for side, n in zip(image.shape, prob.shape, strict=True):
        last = graph.origin_px + graph.grid_px * (n - 1)
        assert side - 2 * graph.grid_px - 1 < last < side + graph.grid_px


def test_drawn_cells_tell_their_size_and_polarity():
    image, truth = cells(200)
    dark = (image.max() - image).astype(np.uint16)
    some = drawn(truth, 0, 1, 2, 3).labels
    nothing = {"diameter_px": None, "cells": None, "foreground": None}
    frame = read_cell_frame(dark, **_told(dark, some, nothing))
    assert frame.sign == -1
    assert agreement_of(frame.proposal.labels, at_working_scale(some, frame.scale)) > 0.4
    assert _told(dark, np.zeros_like(some), nothing) == nothing
    known = {"diameter_px": 9.0, "cells": "bright", "foreground": "contrast"}
    assert _told(image, some, known) == known
    small = np.zeros_like(some)
    small[50:57, 50:57] = 1
    assert _told(image, small, nothing)["diameter_px"] == pytest.approx(7 * 2 / np.sqrt(np.pi))


def test_what_is_refused():
    image, truth = cells()
    some = drawn(truth, 0)
    with pytest.raises(ValueError, match="annotate the frame that is trained on"):
        train(image[1:], method="cellulus", annotations=some, steps=1)
    with pytest.raises(ValueError, match="annotations with cellulus only"):
        train(image, annotations=some)
    with pytest.raises(ValueError, match="no annotations with shot"):
        train(image, method="shot", annotations=some)
    empty = np.argwhere(image == image.min())[:1].astype(np.float32)
    with pytest.raises(AnnotationError, match="hits no cell"):
        train(image, method="cellulus", annotations=Annotations(np.zeros_like(truth), empty), steps=2)
