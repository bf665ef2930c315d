"""The hook in a real pycromanager `Acquisition` (Python backend, DemoCamera): what it finds is what is in the file.

Each acquisition runs in a process of its own: there can be only one core in a process.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from oneframe.runtime import load_model

pytest.importorskip("pycromanager", reason="needs oneframe[mm]")

# Beads move with the stage, so that every image is another one; of this size and brightness `bead_model` finds them.
START = '''
import json, sys
from pathlib import Path
import mm_test_adapters
from pycromanager import Acquisition, Core, start_headless, stop_headless
from oneframe.runtime import load_model
from oneframe.runtime.hook import AcquisitionHook

model_path, folder, kind = sys.argv[1:]
config = """Property,Core,Initialize,0
Device,Camera,DemoCamera,DCam
Device,XY,DemoCamera,DXYStage
Device,Z,DemoCamera,DStage
Property,Core,Initialize,1
Property,Core,Camera,Camera
Property,Core,Focus,Z
Property,Core,XYStage,XY
Property,Camera,PixelType,16bit
Property,Camera,BitDepth,16
Property,Camera,OnCameraCCDXSize,128
Property,Camera,OnCameraCCDYSize,128
Property,Camera,Mode,Fluorescent Beads
Property,Camera,BeadSize,4
Property,Camera,BeadBrightness,2
Property,Camera,BeadDensity,60
ConfigPixelSize,1x,Camera,Binning,1
PixelSize_um,1x,1.0
"""
path = Path(folder) / "demo.cfg"
path.write_text(config)
start_headless(mm_app_path=mm_test_adapters.device_adapter_path(), config_file=str(path), python_backend=True,
               buffer_size_mb=32)
core = Core()
core.set_exposure(2)
model = load_model(model_path, threads=1)
'''

TIME_LAPSE = (
    START
    + """
hook = AcquisitionHook(model, every=kind != "few", queue_images=1 if kind in ("every", "few") else 64)
given = {"image_saved_fn": hook} if kind == "saved" else {"image_process_fn": hook}
if kind == "both":
    given["image_saved_fn"] = hook
events = [
    {"axes": {"time": t, "z": z}, "x": 3.0 * t, "y": -2.0 * t, "z": float(z)} for t in range(20) for z in range(2)
]
with Acquisition(folder, "run", **given) as acquisition:
    acquisition.acquire(events)
account = hook.finish(acquisition.get_dataset(), timeout_s=60)
hook.write_csv(Path(folder) / "detections.csv")
dataset_path = acquisition.get_dataset().path
stop_headless()
print(json.dumps({"account": account.to_dict(), "errors": hook.errors, "dataset": str(dataset_path)}))
"""
)

ADAPTIVE = (
    START
    + '''
def centre(axes, found):
    """Move the bead that is nearest to the centre there; end when it is."""
    if len(found) == 0 or axes["time"] >= 10:
        raise RuntimeError("the bead was lost")
    dy, dx = found.y_px - 63.5, found.x_px - 63.5
    nearest = int((dy**2 + dx**2).argmin())
    if abs(dy[nearest]) < 0.2 and abs(dx[nearest]) < 0.2:
        return None
    x, y = core.get_xy_position("XY")
    return [{"axes": {"time": axes["time"] + 1}, "x": x + float(dx[nearest]), "y": y + float(dy[nearest])}]

def broken(axes, found):
    if axes["time"] == 2:
        raise RuntimeError("no idea what next")
    return [{"axes": {"time": axes["time"] + 1}}]

hook = AcquisitionHook(model, on_detections=broken if kind == "broken" else centre)
given = {"image_saved_fn": hook} if kind == "saved" else {"image_process_fn": hook}
acquisition = Acquisition(folder, "run", **given)
acquisition.acquire({"axes": {"time": 0}, "x": 9.0, "y": -6.0})
acquisition.await_completion()
account = hook.finish(timeout_s=60)
dataset_path = acquisition.get_dataset().path
stop_headless()
print(json.dumps({"account": account.to_dict(), "errors": hook.errors, "dataset": str(dataset_path)}))
'''
)


def acquire(script: str, model, folder, kind: str) -> dict:
    """Run an acquisition in another process and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(model.path), str(folder), kind], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def saved_images(dataset_path: str) -> dict[tuple[int, int], np.ndarray]:
    """Read every image of the file: (time, z) -> pixels."""
    from ndstorage import Dataset

    dataset = Dataset(dataset_path)
    try:
        images = {}
        for axes in dataset.get_image_coordinates_list():
            images[axes["time"], axes.get("z", 0)] = dataset.read_image(**axes).copy()
        return images
    finally:
        dataset.close()


@pytest.mark.parametrize("kind", ["process", "saved", "both", "every"])
def test_detections_equal_those_of_the_saved_file_bit_for_bit(kind, bead_model, tmp_path):
    told = acquire(TIME_LAPSE, bead_model, tmp_path, kind)
    assert told["errors"] == {}
    account = told["account"]
    assert (account["seen"], account["analysed"]) == (40, 40)
    images = saved_images(told["dataset"])
    assert sorted(images) == [(t, z) for t in range(20) for z in range(2)]
    assert len({image.tobytes() for image in images.values()}) == 40
    table = np.genfromtxt(tmp_path / "detections.csv", delimiter=",", names=True)
    model = load_model(bead_model.path, threads=1)
    n_rows = 0
    for (t, z), image in images.items():
        rows = table[(table["time"] == t) & (table["z"] == z)]
        expected = model.detect(image)
        n_rows += len(expected)
        for name, column in expected.columns().items():
            np.testing.assert_array_equal(rows[name].astype(np.float32), column)
        np.testing.assert_allclose(rows["y_um"], rows["y_px"], rtol=1e-8)
    assert n_rows == len(table) > 100


def test_images_that_did_not_fit_are_counted(bead_model, tmp_path):
    told = acquire(TIME_LAPSE, bead_model, tmp_path, "few")
    account = told["account"]
    assert account["seen"] == account["analysed"] + account["skipped"] == 40
    assert sum(account["reasons"].values()) == account["skipped"]


@pytest.mark.parametrize("kind", ["process", "saved"])
def test_an_acquisition_driven_by_detections_ends_where_it_should(kind, bead_model, tmp_path):
    told = acquire(ADAPTIVE, bead_model, tmp_path, kind)
    assert told["errors"] == {}
    images = saved_images(told["dataset"])
    assert sorted(images) == [(t, 0) for t in range(len(images))]
    assert 2 <= len(images) <= 5
    assert told["account"]["analysed"] == len(images)
    model = load_model(bead_model.path, threads=1)
    distances = []
    for t in range(len(images)):
        found = model.detect(images[t, 0])
        distances.append(np.hypot(found.y_px - 63.5, found.x_px - 63.5).min())
    assert distances[-1] < 0.3
    assert min(distances[:-1]) > 0.2


def test_an_answer_that_fails_ends_the_acquisition_and_loses_no_image(bead_model, tmp_path):
    told = acquire(ADAPTIVE, bead_model, tmp_path, "broken")
    assert list(told["errors"].values()) == [1]
    assert "no idea what next" in next(iter(told["errors"]))
    assert sorted(saved_images(told["dataset"])) == [(0, 0), (1, 0), (2, 0)]
