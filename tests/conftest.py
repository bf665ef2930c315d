"""What every test needs: Qt without a screen, a check that no window is left open, and models trained once."""

import os

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")  # before any import of Qt
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before any import of torch: the workers share the processors

import gc
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

Made = TypeVar("Made")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], Made]], Made]:
    """Return what `make` makes in a folder of its own: one worker makes it, the others read it."""
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], Made]) -> Made:
        folder = base / name
        with FileLock(base / f"{name}.lock"):
            kept = folder / "made.pickle"
            if not kept.exists():
                folder.mkdir()
                kept.write_bytes(pickle.dumps(make(folder)))
            return pickle.loads(kept.read_bytes())

    return made


@pytest.fixture(scope="session")
def qt_application():
    """The one Qt application of the test run."""
    pg = pytest.importorskip("pyqtgraph", reason="needs oneframe[view]", exc_type=ImportError)
    return pg.mkQApp("oneframe tests")


@pytest.fixture
def qt(qt_application) -> Iterator[object]:
    """The Qt application; fails the test if it leaves a window behind."""
    from pyqtgraph.Qt import QtCore

    before = set(map(id, qt_application.topLevelWidgets()))
    yield qt_application
    qt_application.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete.value)
    qt_application.processEvents()
    gc.collect()
    left = [widget for widget in qt_application.topLevelWidgets() if id(widget) not in before]
    assert not left, f"windows left open: {left}"


@pytest.fixture(scope="session")
def bead_model(made_once):
    """A model file trained with the default settings on one simulated bead; shared, never written to."""
    pytest.importorskip("torch", reason="needs oneframe[train]")
    return made_once("beads", _bead_model)


def _bead_model(folder: Path) -> Any:
    from microscope import BeadModel, snapped

    from oneframe.export import export
    from oneframe.trainer import train

    snap = snapped()
    trained = train(snap.frame.pixels, box=snap.box, seed=1, pixel_size_um=0.1, source="snap.tif")
    path = folder / "bead.onnx"
    export(trained, path)
    return BeadModel(path, trained, snap)


@dataclass(frozen=True)
class HologramLab:
    """A model file for holograms, and the simulated microscope that it was trained on."""

    path: Path
    trained: Any
    reference: Any
    """Pixels of a hologram without particles."""
    scene: str
    """Source of more such frames, to be continued with `&seed=..`."""
    offset_um: float
    """From the centre of a sphere to the focus of its light, which is what z is counted from."""


@pytest.fixture(scope="session")
def hologram_lab(made_once):
    """A small model trained on one off-axis hologram whose carrier has the sign that is not found; never written to."""
    pytest.importorskip("torch", reason="needs oneframe[train]")
    return made_once("holograms", _hologram_lab)


def _hologram_lab(folder: Path) -> HologramLab:
    import numpy as np

    from oneframe.acquisition import open_source
    from oneframe.export import export
    from oneframe.runtime.field_reader import HologramSettings
    from oneframe.runtime.optics import Optics
    from oneframe.trainer import train

    scene = "sim:hologram?width=256&height=256&separation_um=5&z_um=2&carrier=2.93,-2.93"
    snap = open_source(f"{scene}&n=4&seed=11")
    frame, truth = snap.read(5.0), snap.truth()
    reference = open_source(f"{scene}&n=0&seed=11").read(5.0).pixels
    trained = train(
        frame.pixels,
        box="auto",
        hologram=HologramSettings("off-axis", Optics(0.633, 1.33, 1.3, 0.1)),
        reference=reference,
        seed=1,
        z_range_um=(-3.0, 3.0),
        # a fifth of the default steps, which learns in time where particles are only if that weighs more
        steps=600,
        place_weight=60.0,
    )
    path = folder / "sphere.onnx"
    card = export(trained, path)
    x, y, width, height = card.crop["box_xywh_px"]
    learned = np.argmin(np.hypot(truth.y_px - y - height / 2, truth.x_px - x - width / 2))
    offset_um = card.quality["particle_z_um"] - float(truth.z_um[learned])
    return HologramLab(path, trained, reference, scene, offset_um)


@dataclass(frozen=True)
class ShotLab:
    """A model file for single molecules, and the simulated microscope that it was trained on."""

    path: Path
    trained: Any
    snap: Any
    """The frame it learned from."""
    scene: str
    """Source of more such frames, to be continued with `&seed=..`."""


@pytest.fixture(scope="session")
def shot_lab(made_once):
    """A small model trained on one frame of single molecules for a few hundred steps; never written to."""
    pytest.importorskip("torch", reason="needs oneframe[train]")
    return made_once("molecules", _shot_lab)


def _shot_lab(folder: Path) -> ShotLab:
    from oneframe.acquisition import open_source
    from oneframe.export import export
    from oneframe.trainer import train

    scene = "sim:emitters?width=96&height=96&density_um2=1"
    snap = open_source(f"{scene}&seed=3").read(5.0)
    small = {"channels": 16, "blocks": 2, "crops": 8, "steps": 450}
    trained = train(snap.pixels, method="shot", seed=1, pixel_size_um=0.1, source="snap.tif", offset=100.0, **small)
    path = folder / "molecules.onnx"
    export(trained, path)
    return ShotLab(path, trained, snap, scene)


@dataclass(frozen=True)
class CellLab:
    """A model file for cells, and the simulated microscope that it was trained on."""

    path: Path
    trained: Any
    scene: str
    """Source of more such frames, to be continued with `&seed=..`."""


@pytest.fixture(scope="session")
def cell_lab(made_once):
    """A model trained on one frame of simulated nuclei for a third of the default steps; never written to."""
    pytest.importorskip("torch", reason="needs oneframe[train]")
    return made_once("cells", _cell_lab)


def _cell_lab(folder: Path) -> CellLab:
    from oneframe.acquisition import open_source
    from oneframe.export import export
    from oneframe.trainer import train

    scene = "sim:cells?width=256&height=240&n=26"
    image = open_source(f"{scene}&seed=3").read(5.0).pixels
    trained = train(image, method="cellulus", separate="network", seed=1, steps=130, crop_px=64, pixel_size_um=0.65)
    path = folder / "cells.onnx"
    export(trained, path)
    return CellLab(path, trained, scene)


@dataclass(frozen=True)
class LivelyGraph:
    """The graph of an untrained network that finds a lot, and its file."""

    path: Path
    graph: Any
    world: Any


@pytest.fixture(scope="session")
def lively_graph():
    """Make graphs whose scores lie about 0.5, and their worlds, from settings of `ShotSettings`."""
    pytest.importorskip("torch", reason="needs oneframe[train]")
    import torch

    from oneframe.acquisition.emitters import EmitterCamera
    from oneframe.acquisition.psf import GaussianPsf, Width
    from oneframe.trainer.emitter_crops import EmitterWorld
    from oneframe.trainer.shot_graph import ShotGraph
    from oneframe.trainer.shot_network import ShotNetwork, ShotSettings

    def make(*, has_z: bool = False, **settings: Any) -> tuple[Any, Any]:
        psf = GaussianPsf.flat(1.3)
        if has_z:
            psf = GaussianPsf(Width(1.3, 0.25, 0.4), Width(1.3, -0.25, 0.4), (-0.4, 0.4))
        n_frames = settings.get("n_frames", 1)
        world = EmitterWorld(psf, EmitterCamera(), 3000.0, (15.0, 40.0), (0.005, 0.05), n_frames=n_frames)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            network = ShotNetwork(world, ShotSettings(channels=8, blocks=1, **settings))
            with torch.no_grad():
                network.head[2].weight.mul_(100)
                network.head[2].bias[0] = 0.0
                if settings.get("refinements"):
                    torch.nn.init.normal_(network.correction.weight, std=0.1)
        return ShotGraph(network, sigma_scale=1.1, sigma_z_scale=1.2), world

    return make


def _exported(tmp_path_factory: Any, graph: Any, world: Any, scene: str) -> LivelyGraph:
    import numpy as np

    from oneframe.acquisition import open_source
    from oneframe.export import TrainedModel, export
    from oneframe.runtime import ModelCard

    source = open_source(scene)
    n_frames = world.n_frames
    frames = np.stack([source.read(5.0).pixels for _ in range(n_frames)])
    normalisation = {"offset": 100.0, "scale": 1.34, "missing": world.missing}
    card = ModelCard("shot", "uint16", n_frames, graph.columns, 0.5, 3.0, normalisation, pixel_size_um=0.1)
    path = tmp_path_factory.mktemp("lively") / "lively.onnx"
    export(TrainedModel(graph, card, frames if n_frames > 1 else frames[0]), path)
    return LivelyGraph(path, graph, world)


@pytest.fixture(scope="session")
def window_file(tmp_path_factory, lively_graph):
    """A graph with one refinement that looks at three frames; never written to."""
    graph, world = lively_graph(n_frames=3, refinements=1)
    return _exported(tmp_path_factory, graph, world, "sim:emitters?width=48&height=40&density_um2=1")


@pytest.fixture(scope="session")
def astigmatic_file(tmp_path_factory, lively_graph):
    """A graph with two refinements that tells z; never written to."""
    graph, world = lively_graph(has_z=True, refinements=2)
    scene = "sim:emitters?width=48&height=40&density_um2=1&astigmatism_um=0.25"
    return _exported(tmp_path_factory, graph, world, scene)
