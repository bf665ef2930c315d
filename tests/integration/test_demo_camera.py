"""Real MMCore frames: snap, train, follow the stage, log. DemoCamera's beads move with the stage by whole pixels."""

import numpy as np
import pytest
from microscope import yx

from oneframe.acquisition import open_source, snap
from oneframe.runtime import load_model
from oneframe.runtime.truth import match

pytest.importorskip("pycromanager", reason="needs oneframe[mm]")
torch = pytest.importorskip("torch", reason="needs oneframe[train]")

CAMERA = "demo:?width=256&height=256&exposure_ms=5&density=40&bead_size=3"


@pytest.fixture(scope="module")
def camera_model(tmp_path_factory):
    from oneframe.export import export
    from oneframe.trainer import train

    source = open_source(CAMERA)
    frame = snap(source)
    source.close()
    path = tmp_path_factory.mktemp("demo_camera") / "bead.onnx"
    export(train(frame.pixels, box=clearest_box(frame.pixels, 28), seed=0, steps=300), path)
    return path


def clearest_box(image: np.ndarray, side: int) -> tuple[int, int, int, int]:
    """Box the brightest bead round which a wide rim is dark."""
    from scipy import ndimage

    peaks = ndimage.maximum_filter(image, 9) == image
    candidates = np.argwhere(peaks & (image > 0.3 * image.max()))
    dark = [
        (image[max(0, y - 25) : y + 26, max(0, x - 25) : x + 26].astype(float).sum(), y, x)
        for y, x in candidates
        if 25 < y < image.shape[0] - 25 and 25 < x < image.shape[1] - 25
    ]
    _, y, x = min(dark)
    return int(x) - side // 2, int(y) - side // 2, side, side


def test_moving_the_stage_by_whole_pixels_moves_the_detections(camera_model):
    model = load_model(camera_model)
    found = {}
    for dx, dy in ((0, 0), (7, -5), (-12, 9)):
        source = open_source(f"{CAMERA}&x_um={dx}&y_um={dy}")
        found[dx, dy] = yx(model.detect(snap(source).pixels))
        source.close()
    still = found.pop((0, 0))
    assert len(still) >= 5
    for (dx, dy), moved in found.items():
        a, b = match(still, moved - np.array([-dy, -dx]), 2.0)
        assert len(a) >= 0.6 * len(still)
        shift = np.median(moved[b] - still[a], axis=0)
        np.testing.assert_allclose(shift, [-dy, -dx], atol=0.05)


def test_log_on_the_real_core(capsys, camera_model, tmp_path):
    from oneframe.app.main import main
    from oneframe.runtime.record import read_run

    run = tmp_path / "run"
    assert main(["log", str(camera_model), "--source", CAMERA, "-o", str(run), "--frames", "60"]) == 0
    assert "60 frames seen = " in capsys.readouterr().out
    account = read_run(run)["account"]
    assert account["seen"] == account["analysed"] + account["skipped"] + account["failed"] == 60
    rows = np.genfromtxt(run / "detections.csv", delimiter=",", names=True)
    assert len(rows) > 60
    assert np.isfinite(rows["y_um"]).all()
