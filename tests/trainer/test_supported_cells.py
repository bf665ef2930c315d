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
from oneframe.trainer.cellulus import detect, met_by, read_cell_frame
from oneframe.trainer.star_graph import StarGraph
from oneframe.trainer.star_targets import star_targets
from oneframe.trainer.supported import StarNetwork, agreement_of
from oneframe.trainer.supported_cells import (
    at_working_scale,
    read_annotated_frame,
    star_separation,
    with_annotations,
)


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
        image,
        method="cellulus",
        annotations=annotations,
        separate="stars",
        steps=40,
        on_progress=reports.append,
        on_frame=frames.append,
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
    assert f"3 annotated cells: {quality['annotated_iou_before']:.2f} overlap" in quality["annotations"]
    assert lab.card.maps == ("probability", "rays_px")
    assert lab.card.separation["by"] == "stars"


def test_clicks_name_the_cells_of_the_model_without_annotation():
    image, truth = cells(96)
    how = {"method": "cellulus", "steps": 2, "separate": "classical"}
    alone = train(image, **how)
    before = detect(alone.graph, image, Separation.from_card(alone.card.separation)).labels
    y, x = np.argwhere(before > 0)[0]
    here, nothing = np.array([[y, x]], np.float32), np.zeros_like(truth)
    reports = []
    right = train(image, **how, annotations=Annotations(nothing, here), on_progress=reports.append).card.quality
    assert right["annotated_iou_before"] == 1.0
    assert right["annotated_cells"] == 1
    wrong = train(image, **how, annotations=Annotations(nothing, background_clicks=here)).card.quality
    assert "known background only" in wrong["annotations"]
    assert len(reports) == 0  # nothing is learned for the plain method


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
    frame = read_annotated_frame(dark, some)
    assert frame.sign == -1
    assert agreement_of(frame.proposal.labels, at_working_scale(some, frame.scale)) > 0.4
    usual = read_cell_frame(image)
    same = read_annotated_frame(image, np.zeros_like(some))
    assert (same.criterion, same.sign, same.diameter_px) == (usual.criterion, usual.sign, usual.diameter_px)
    known = read_annotated_frame(image, some, diameter_px=9.0, cells="bright", foreground="edges")
    assert (known.criterion, known.sign, known.diameter_px) == ("edges", 1, 9.0)
    small = np.zeros_like(some)
    small[50:57, 50:57] = 1
    assert read_annotated_frame(image, small).diameter_px == pytest.approx(7 * 2 / np.sqrt(np.pi))


def bright_and_faint(faint=30.0):
    """Return a frame of six bright discs and six faint ones, and the labels of both, bright ones first."""
    image, labels = np.full((200, 300), 100.0), np.zeros((200, 300), np.int32)
    y, x = np.mgrid[:200, :300]
    for k in range(12):
        disc = np.hypot(y - 50 - 100 * (k % 2), x - 25 - 50 * (k // 2)) < 11
        labels[disc] = 1 + k // 2 + 6 * (k % 2)
        image[disc] += faint if k % 2 else 100.0
    noise = np.random.default_rng(0).normal(0, 2, image.shape)
    return (image + noise).astype(np.float32), labels


def test_cells_unlike_the_annotated_ones_go():
    image, truth = bright_and_faint()
    some = np.where((truth > 0) & (truth < 4), truth, 0).astype(np.int32)
    frame = read_annotated_frame(image, some, diameter_px=22.0)
    assert frame.proposal.labels.max() == 12
    told = with_annotations(frame, some, 0.7)
    assert told.annotated.selective
    assert told.annotated.n_cells == 3
    assert told.proposal.labels.max() == 6
    assert figures(np.where(truth < 7, truth, 0), told.proposal.labels).f1 == 1.0
    assert set(np.unique(told.proposal.labels[some > 0])) == {1, 2, 3}
    assert told.annotated.known.mean() > 0.95
    trained = train(
        image, method="cellulus", annotations=Annotations(some), diameter_px=22.0, separate="classical", steps=1
    )
    found = detect(trained.graph, image, Separation.from_card(trained.card.separation)).labels
    assert figures(np.where(truth < 7, truth, 0), found).f1 == 1.0
    assert figures(np.where(truth < 7, truth, 0), found).matched_iou > 0.85  # not trimmed
    few = np.where(truth == 1, 1, 0).astype(np.int32)
    assert not with_annotations(frame, few, 0.7).annotated.selective  # every second cell may be fainter than any one
    everywhere = with_annotations(frame, np.where(np.isin(truth, (1, 7)), truth, 0).astype(np.int32), 0.7)
    assert not everywhere.annotated.selective
    assert everywhere.proposal.labels.max() == 12


def test_annotated_cells_alone():
    image, truth = bright_and_faint()
    some = np.where(truth == 2, 5, 0).astype(np.int32)
    some[0, :] = -1
    told = with_annotations(read_annotated_frame(image, some, diameter_px=22.0), some, 0.0)
    assert told.proposal.labels.max() == told.annotated.n_cells == 1
    assert told.annotated.known.mean() < 0.2
    assert told.annotated.known[0].all()
    assert met_by(np.where(truth == 2, 1, 0).astype(np.int32), told.annotated.labels) == 1.0
    assert met_by(np.ones_like(some), told.annotated.labels) < 0
    nothing = np.full_like(some, -1)
    with pytest.raises(ValueError, match="background only; annotate some cells"):
        with_annotations(read_annotated_frame(image, nothing, diameter_px=22.0), nothing, 0.7)


def test_the_file_of_annotated_offsets_finds_what_torch_finds(tmp_path):
    image, truth = bright_and_faint()
    some = np.where((truth > 0) & (truth < 4), truth, 0).astype(np.int32)
    trained = train(
        image, method="cellulus", annotations=Annotations(some), diameter_px=22.0, separate="network", steps=30
    )
    card = export(trained, tmp_path / "cells.onnx")
    found = load_model(tmp_path / "cells.onnx").detect(image)
    expected = detect(trained.graph, image, Separation.from_card(card.separation), card.threshold)
    assert (found.labels == expected.labels).mean() > 0.999
    assert found.labels[truth > 6].max() == 0  # faint, whatever the network has learned
    assert card.quality["annotated_cells"] == 3
    assert 0 < card.separation["least_score"] < found.score.min()


def test_what_is_refused():
    image, truth = cells()
    some = drawn(truth, 0)
    with pytest.raises(ValueError, match="annotate the frame that is trained on"):
        train(image[1:], method="cellulus", annotations=some, steps=1)
    with pytest.raises(ValueError, match="annotations with cellulus only"):
        train(image, annotations=some)
    with pytest.raises(ValueError, match="no annotations with shot"):
        train(image, method="shot", annotations=some)
    nothing = Annotations(np.full_like(truth, -1))
    with pytest.raises(ValueError, match="background only; annotate some cells"):
        train(image, method="cellulus", annotations=nothing, pseudo_weight=0.0, steps=1)
    empty = np.argwhere(image == image.min())[:1].astype(np.float32)
    with pytest.raises(AnnotationError, match="hits no cell"):
        train(image, method="cellulus", annotations=Annotations(np.zeros_like(truth), empty), steps=2)


def test_a_model_that_meets_the_annotated_cells_anyway_is_kept():
    image, _ = cells()
    options = {"method": "cellulus", "separate": "network", "steps": 10}
    plain, notes = train(image, **options), []
    found = detect(plain.graph, image, Separation.from_card(plain.card.separation)).labels
    told = train(image, annotations=drawn(found, 0, 3, 6), on_progress=lambda part: notes.append(part.note), **options)
    assert set(notes) == {"cells without annotation"}
    expected = plain.graph.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in told.graph.state_dict().items())
    quality = told.card.quality
    assert quality["annotated_iou"] == quality["annotated_iou_before"] == 1.0


def test_of_models_that_meet_the_annotated_cells_badly_the_best_is_returned():
    image, truth = cells()
    half = np.where(np.arange(image.shape[1]) % 16 < 8, drawn(truth, 0, 3, 6).labels, 0)  # stripes: no model meets them
    notes = []
    told = train(
        image,
        method="cellulus",
        annotations=Annotations(half.astype(np.int32)),
        diameter_px=22.0,
        separate="network",
        steps=10,
        on_progress=lambda part: notes.append(part.note),
    )
    assert list(dict.fromkeys(notes)) == ["cells without annotation", "with annotated cells", "annotated cells alone"]
    assert told.card.quality["annotated_iou"] < 0.8
    assert told.card.quality["annotated_iou"] >= told.card.quality["annotated_iou_before"]
