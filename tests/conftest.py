"""What every test needs: Qt without a screen, and a check that no window is left open."""

import os

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")  # before any import of Qt

import gc
from collections.abc import Iterator

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
