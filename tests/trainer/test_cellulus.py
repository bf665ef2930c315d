import numpy as np
import pytest

pytest.importorskip("torch", reason="needs oneframe[train]")

import torch

from oneframe.acquisition import open_source
from oneframe.export import export
from oneframe.runtime import load_model
from oneframe.trainer import train
from oneframe.trainer.cell_scale import likely_diameters, rescaled, working_scale
from oneframe.trainer.cellulus import read_cell_frame
from oneframe.trainer.cellulus_graph import CellGraph
from oneframe.trainer.cellulus_network import CellulusNetwork, cell_loss


def snap(text: str) -> np.ndarray:
    return open_source(text).read(5.0).pixels


@pytest.mark.parametrize("diameter_px", [16.0, 24.0, 40.0])
def test_the_frame_tells_the_diameter_of_its_cells(diameter_px):
    image = snap(f"sim:cells?width=384&height=384&diameter_px={diameter_px:g}&n={2.6e4 / diameter_px**2:.0f}&seed=2")
    assert likely_diameters(image, 1.0)[0] == pytest.approx(diameter_px, rel=0.3)


@pytest.mark.parametrize(("scene", "sign"), [("sim:cells?n=24", 1.0), ("sim:cells?modality=phase&n=20", -1.0)])
def test_the_frame_tells_whether_its_cells_are_dark(scene, sign):
    assert read_cell_frame(snap(f"{scene}&width=256&height=256&seed=3")).sign == sign


@pytest.mark.parametrize("diameter_px", [9.0, 13.1, 24.0, 26.0, 33.0, 43.0, 80.0])
def test_cells_come_to_the_reference_diameter(diameter_px):
    scale = working_scale(diameter_px)
    assert 20 <= diameter_px * scale.factor <= 28
    image = np.zeros((101, 140), np.uint16)
    assert rescaled(image, scale).shape == scale.shape(101, 140)


@pytest.mark.parametrize("diameter_px", [13.1, 24.0, 37.0, 50.0])
def test_maps_lie_on_the_cameras_pixels(diameter_px):
    """A network that says where it sees light: the foreground's centroid is the disc's, at any scale."""
    y, x = np.mgrid[:161, :203]
    disc = (y - 70) ** 2 + (x - 120) ** 2 < (0.5 * diameter_px) ** 2
    image = torch.from_numpy(np.where(disc, 500.0, 100.0).astype(np.float32))
    graph = CellGraph(
        None, sign=1.0, scale=working_scale(diameter_px), floor=20.0, least_relief=20.0, threshold=40.0
    ).eval()
    (foreground,) = graph(image, torch.tensor(0.5))
    assert foreground.shape == image.shape
    rows, columns = np.nonzero(foreground.numpy() > 0)
    assert (rows.mean(), columns.mean()) == pytest.approx((70, 120), abs=0.15)
    assert len(rows) == pytest.approx(disc.sum(), rel=0.2)


def test_offsets_are_camera_pixels():
    class Shift(CellulusNetwork):
        def forward(self, seen, certain=None):
            told = torch.zeros(1, 3, 2 * seen.shape[-2], 2 * seen.shape[-1])
            told[:, 0], told[:, 1] = 5.0, 3.0
            return told

    scale = working_scale(48.0)
    graph = CellGraph(Shift(), sign=1.0, scale=scale, floor=1.0, least_relief=0.0, threshold=0.0).eval()
    _, dy, dx = graph(torch.rand(96, 104), torch.tensor(0.5))
    assert dy.numpy() == pytest.approx(3.0 / scale.factor)
    assert dx.numpy() == pytest.approx(0.0)


def test_the_loss_knows_only_what_is_known():
    labelled = torch.zeros(1, 8, 8, dtype=torch.bool)
    labelled[:, :4] = True
    offsets = torch.zeros(1, 2, 8, 8)
    told = torch.cat([torch.where(labelled, 20.0, -20.0)[:, None], offsets], 1)
    known = torch.ones_like(labelled)
    assert cell_loss(told, labelled, offsets, known, 0.1).item() == pytest.approx(0, abs=1e-6)
    wrong = told.clone()
    wrong[:, :, 0] = 50.0
    known[:, 0] = False
    assert cell_loss(wrong, labelled, offsets, known, 0.1).item() == pytest.approx(0, abs=1e-6)
    assert cell_loss(wrong, labelled, offsets, torch.ones_like(known), 0.1).item() > 1


@pytest.mark.parametrize("modality", ["fluorescence", "phase", "bright-field"])
def test_a_frame_without_cells_is_refused(modality):
    with pytest.raises(ValueError, match="expected cells, got a frame in which nothing of a cell's size stands out"):
        read_cell_frame(snap(f"sim:cells?modality={modality}&width=128&height=128&n=0"))


def test_wrong_words_are_refused():
    image = snap("sim:cells?width=96&height=96&n=4&seed=1")
    with pytest.raises(ValueError, match="expected cells bright or dark, got 'grey'"):
        train(image, method="cellulus", cells="grey")
    with pytest.raises(ValueError, match="expected separate network or classical, got 'magic'"):
        train(image, method="cellulus", separate="magic")
    with pytest.raises(ValueError, match="expected no box with cellulus"):
        train(image, method="cellulus", box="auto")
    with pytest.raises(ValueError, match="expected settings of CellulusSettings, got colour"):
        train(image, method="cellulus", colour=3)


def test_the_card_says_what_the_frame_favours(cell_lab):
    quality = cell_lab.trained.card.quality
    assert quality["advice"] in ("green", "amber")
    assert quality["favoured"] in quality["kinds"]
    assert quality["kinds"]["network"]["agreement_shift"] > 0.7
    assert cell_lab.trained.card.object_diameter_px == pytest.approx(24, rel=0.25)


def test_the_classical_pipeline_is_a_model_file_too(tmp_path):
    image = snap("sim:cells?width=160&height=160&n=10&seed=4")
    trained = train(image, method="cellulus", separate="classical")
    assert trained.card.maps == ("foreground",)
    export(trained, tmp_path / "plain.onnx")
    found = load_model(tmp_path / "plain.onnx").detect(image)
    assert len(found) == trained.card.quality["cells_on_frame"]


def test_the_same_seed_gives_the_same_network():
    image = snap("sim:cells?width=128&height=128&n=8&seed=4")
    first, second = (
        train(image, method="cellulus", separate="network", steps=3, seed=5, diameter_px=24.0, cells="bright").graph
        for _ in range(2)
    )
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
