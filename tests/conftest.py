"""What every test needs: Qt without a screen, and a check that no window is left open."""

import os

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")  # before any import of Qt

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


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
def bead_model(tmp_path_factory):
    """A model file trained with the default settings on one simulated bead; shared, never written to."""
    pytest.importorskip("torch", reason="needs oneframe[train]")
    from microscope import BeadModel, snapped

    from oneframe.export import export
    from oneframe.trainer import train

    snap = snapped()
    trained = train(snap.frame.pixels, box=snap.box, seed=1, pixel_size_um=0.1, source="snap.tif")
    path = tmp_path_factory.mktemp("model") / "bead.onnx"
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
def hologram_lab(tmp_path_factory):
    """A small model trained on one off-axis hologram whose carrier has the sign that is not found; never written to."""
    pytest.importorskip("torch", reason="needs oneframe[train]")
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
    path = tmp_path_factory.mktemp("hologram") / "sphere.onnx"
    card = export(trained, path)
    x, y, width, height = card.crop["box_xywh_px"]
    learned = np.argmin(np.hypot(truth.y_px - y - height / 2, truth.x_px - x - width / 2))
    offset_um = card.quality["particle_z_um"] - float(truth.z_um[learned])
    return HologramLab(path, trained, reference, scene, offset_um)
