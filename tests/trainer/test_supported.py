"""Supported supervision: what belongs to which set, what is not learned, the graph, and that training helps."""

import threading
import warnings
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch.export import Dim

from oneframe.acquisition import open_source
from oneframe.runtime.segmentation_score import SegmentationScore
from oneframe.runtime.star_polygons import star_labels
from oneframe.trainer.loop import TrainingCancelled
from oneframe.trainer.star_targets import star_targets
from oneframe.trainer.supported import (
    GRID_PX,
    StarNetwork,
    SupportedSettings,
    _Crops,
    predict,
    star_loss,
    supported_sets,
    train_supported,
    trusted_weight,
)

SMALL = SupportedSettings(n_steps=150, crop_px=64, channels=(16, 24, 32))


def f1(truth, labels):
    score = SegmentationScore()
    score.add(truth, labels)
    return score.figures().f1


def cells(side=192):
    """Return a normalised frame and its true labels."""
    source = open_source(f"sim:cells?seed=3&width={side}&height={side}&n={side**2 // 1150}&diameter_px=22")
    frame = source.read(5.0)
    truth = source.truth().labels.astype(np.int32)
    source.close()
    low, high = np.percentile(frame.pixels, (1, 99.8))
    return ((frame.pixels - low) / (high - low)).astype(np.float32), truth


def damaged(truth, seed=0):
    """Return labels as a bad segmentation gives them: of ten cells one is lost, two are halved, one is merged."""
    rng, labels = np.random.default_rng(seed), truth.copy()
    for k in np.unique(truth)[1:]:
        fate, own = rng.uniform(), truth == k
        if fate < 0.1:
            labels[own] = 0
        elif fate < 0.3:
            labels[own & (np.arange(truth.shape[1]) > np.argwhere(own)[:, 1].mean())] = 1000 + k
        elif fate < 0.4:
            y, x = np.argwhere(own).mean(0)
            labels[own] = min(
                (np.hypot(*(np.argwhere(truth == j).mean(0) - (y, x))), j) for j in np.unique(truth)[1:] if j != k
            )[1]
    return labels


def test_training_mends_damaged_pseudo_labels():
    image, truth = cells()
    pseudo = damaged(truth)
    annotations = np.where(np.isin(truth, np.unique(truth)[[3, 9, 15]]), truth, 0).astype(np.int32)
    reports = []
    network = train_supported(image, pseudo, annotations, settings=SMALL, on_progress=reports.append)
    prob, rays = predict(network, image)
    labels, score = star_labels(prob, rays, grid=GRID_PX, threshold=0.4, shape=image.shape)
    assert f1(truth, labels) > f1(truth, pseudo) + 0.05
    assert len(score) == labels.max()
    assert reports[-1].step == SMALL.n_steps


def test_the_same_seed_gives_the_same_network():
    image, truth = cells(96)
    brief = replace(SMALL, n_steps=3)
    a, b, c = (train_supported(image, truth, np.zeros_like(truth), settings=brief, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(next(a.parameters()), next(c.parameters()))


def test_sets():
    pseudo = np.zeros((60, 200), np.int32)
    pseudo[10:20, 10:22] = 1  # drawn anew, a little smaller
    pseudo[10:20, 22:34] = 2  # touches it
    pseudo[30:40, 10:50] = 3  # two cells taken for one; the left one is drawn
    pseudo[10:20, 60:70] = 4  # none
    pseudo[10:20, 180:190] = 5  # far
    given = np.zeros_like(pseudo)
    given[11:19, 11:23] = 1
    given[30:40, 10:28] = 2
    given[8:22, 58:72] = -1
    sets = supported_sets(pseudo, given, SupportedSettings())
    assert len(np.unique(sets.labels)) == 5  # two drawn, 2, 5 and background
    assert (sets.labels[11:19, 11:23] == sets.labels[15, 15]).all()
    assert (sets.labels[10:20, 23:34] == 2).all()
    assert (sets.labels[10, 10:22] == 0).all()
    assert sets.pseudo[10, 10:22].all()  # the old rim is background
    assert not sets.labels[30:40, 28:50].any()
    assert sets.pseudo[30:40, 28:31].all()
    assert not sets.pseudo[30:40, 31:50].any()  # another cell, or not: unknown
    assert not sets.labels[8:22, 58:72].any()
    assert (sets.sparse <= sets.pseudo).all()
    assert sets.sparse[given != 0].all()
    assert not sets.sparse[sets.labels == 2].any()
    assert sets.sparse[25, 15]
    assert not sets.sparse[:, 120:].any()
    assert sets.pseudo[:, 120:].all()
    # drawn: 96 px, of which 88 lie in the 120 of cell 1; and 180 of the 400 of cell 3
    assert sets.agreement == pytest.approx((88 / (96 + 120 - 88) + 180 / 400) / 2)


def test_pseudo_labels_count_as_far_as_they_agree():
    weights = [trusted_weight(agreement) for agreement in (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)]
    assert weights == sorted(weights)
    assert weights[:2] == [0, 0]
    assert weights[-2:] == [0.5, 0.5]
    assert trusted_weight(float("nan")) == 0.5


def test_without_annotations_there_is_no_sparse_set():
    pseudo = np.zeros((40, 40), np.int32)
    pseudo[5:15, 5:15] = 3
    sets = supported_sets(pseudo, np.zeros_like(pseudo), SupportedSettings())
    assert np.array_equal(sets.labels, pseudo)
    assert sets.pseudo.all()
    assert not sets.sparse.any()
    assert np.isnan(sets.agreement)


def test_what_is_unknown_is_not_learned():
    random = torch.Generator().manual_seed(0)
    logit = torch.randn(2, 1, 6, 7, generator=random, requires_grad=True)
    rays = (10 * torch.rand(2, 8, 6, 7, generator=random)).requires_grad_()
    prob, distances = torch.rand(2, 1, 6, 7, generator=random), 10 * torch.rand(2, 8, 6, 7, generator=random)
    prob[:, :, :, 3:] = -1
    loss = star_loss(logit, rays, prob, distances, 0.5)
    loss.backward()
    assert not logit.grad[..., 3:].any()
    assert not rays.grad[..., 3:].any()
    assert logit.grad[..., :3].all()
    known = star_loss(logit[..., :3], rays[..., :3], prob[..., :3], distances[..., :3], 0.5)
    torch.testing.assert_close(loss, known)
    by_hand = -(prob * torch.sigmoid(logit).log() + (1 - prob) * torch.sigmoid(-logit).log())[..., :3].mean()
    by_hand = by_hand + 0.5 * (prob * (rays - distances).abs().mean(1, keepdim=True))[..., :3].mean()
    torch.testing.assert_close(loss, by_hand)
    assert star_loss(logit, rays, torch.full_like(prob, -1), distances) == 0


def test_crops_are_turned_together_with_their_rays():
    """Targets calculated again from the turned image are those that were turned."""
    labels = np.zeros((96, 96), np.int32)
    labels[20:44, 30:47], labels[50:80, 40:52], labels[55:70, 60:85] = 1, 2, 3
    plain = SupportedSettings(crop_px=96, margin_px=8, noise=0, blur_px=0, brightness=0)
    sets = supported_sets(labels, np.where(labels == 2, 1, 0).astype(np.int32), plain)
    crops = _Crops(sets.labels.astype(np.float32), sets, plain, 0)
    images, prob, rays = crops.draw("pseudo", 12)
    seen = set()
    for image, p, r in zip(images.numpy(), prob.numpy(), rays.numpy(), strict=True):
        expected_p, expected_r = star_targets(image[0].astype(np.int32))
        np.testing.assert_allclose(p[0], expected_p[::2, ::2])
        np.testing.assert_allclose(r, expected_r[:, ::2, ::2], atol=1e-4)
        seen.add(image.tobytes())
    assert len(seen) >= 5
    _, sparse, _ = crops.draw("sparse", 1)
    assert (sparse < 0).any()
    assert (sparse > 0.9).any()


def test_edges_of_crops_are_not_learned_those_of_the_image_are():
    image, truth = cells(96)
    sets = supported_sets(truth, np.zeros_like(truth), SMALL)
    crops = _Crops(image, sets, SMALL, 0)
    _, prob, _ = crops.draw("pseudo", 40)
    unknown = (prob < 0).float().mean((1, 2, 3))
    assert unknown.max() <= 1 - (48 / 64) ** 2 + 1e-6
    assert unknown.min() >= 1 - (56 / 64) ** 2 - 1e-6  # a corner of the image


def test_an_image_smaller_than_a_crop():
    image, truth = cells(96)
    part = np.s_[:40, :50]
    network = train_supported(image[part], truth[part], np.zeros_like(truth[part]), settings=replace(SMALL, n_steps=2))
    prob, rays = predict(network, image[part])
    assert prob.shape == (20, 25)
    assert rays.shape == (16, 20, 25)


@pytest.mark.parametrize(("height", "width"), [(64, 72), (61, 83), (9, 8)])
def test_any_size_and_alike_where_the_padding_does_not_reach(height, width):
    torch.manual_seed(0)
    network = StarNetwork().eval()
    image = torch.rand(1, 1, height, width)
    with torch.no_grad():
        logit, rays = network(image)
    assert logit.shape == (1, 1, -(-height // 2), -(-width // 2))
    assert rays.shape == (1, 16, -(-height // 2), -(-width // 2))
    assert (rays > 0).all()


def test_the_network_sees_a_whole_cell_and_no_more():
    torch.manual_seed(0)
    network = StarNetwork().eval()
    image = torch.rand(1, 1, 160, 160)
    image.requires_grad_()
    network(image)[0][0, 0, 40, 40].backward()
    y, x = np.nonzero(image.grad[0, 0].numpy())
    assert 30 <= 80 - y.min() <= 45
    assert 30 <= x.max() - 80 <= 45


def test_the_graph_in_onnx_runtime_is_the_network(tmp_path):
    torch.manual_seed(0)
    network = StarNetwork().eval()
    path = tmp_path / "stars.onnx"
    size = {2: Dim("height", min=16), 3: Dim("width", min=16)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.rand(1, 1, 83, 61),), path, dynamo=True, dynamic_shapes=(size,), verbose=False,
            external_data=False, opset_version=18,
        )  # fmt: skip
    session = ort.InferenceSession(path)
    for shape in ((83, 61), (40, 96), (97, 98)):
        image = np.random.default_rng(0).random((1, 1, *shape), np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(image))
        for out, want in zip(session.run(None, {session.get_inputs()[0].name: image}), expected, strict=True):
            np.testing.assert_allclose(out, want.numpy(), atol=1e-4)


def test_what_is_refused():
    image, truth = cells(96)
    nothing = np.zeros_like(truth)
    with pytest.raises(ValueError, match="annotate some cells"):
        train_supported(image, nothing, nothing, settings=SMALL)
    with pytest.raises(ValueError, match="of one shape"):
        train_supported(image[1:], truth, nothing, settings=SMALL)
    with pytest.raises(ValueError, match="pseudo labels and annotations"):
        train_supported(image, truth, nothing[1:], settings=SMALL)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(TrainingCancelled):
        train_supported(image, truth, nothing, settings=SMALL, cancel=cancel)
    for wrong in ({"n_steps": 0}, {"crop_px": 90}, {"crops": 3}, {"pseudo_weight": 2}, {"noise": -1}, {"n_rays": 6}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SupportedSettings(**wrong)
