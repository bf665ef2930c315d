"""From a snapped hologram to a logged run with z and polarizability, by the command line alone."""

import csv
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from oneframe.acquisition import open_source
from oneframe.app.main import main
from oneframe.runtime.record import read_run
from oneframe.runtime.truth import match

pytest.importorskip("torch", reason="needs oneframe[train]")

SCENE = "sim:hologram?width=256&height=256&separation_um=5&z_um=2"
N_FRAMES = 20


def run(capsys, *argv: str) -> list[dict]:
    assert main([*argv, "--json"]) == 0, capsys.readouterr().err
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def refused(capsys, *argv: str) -> str:
    assert main(list(argv)) == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    return error


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`snap.tif`, `empty.tif` and the `sphere.onnx` that was trained on them."""
    folder = tmp_path_factory.mktemp("chain")
    for name, n in (("snap", 4), ("empty", 0)):
        assert (
            main(["snap", f"{SCENE}&n={n}&seed=11", "-o", str(folder / f"{name}.tif"), "--hologram", "off-axis"]) == 0
        )
    train = [
        "train", str(folder / "snap.tif"), "--hologram", "off-axis", "--wavelength-um", "0.633", "--na", "1.3",
        "--reference", str(folder / "empty.tif"), "--box", "auto", "--z-range-um", "-3", "3", "--steps", "1000",
        "--seed", "1", "-o", str(folder / "sphere.onnx"),
    ]  # fmt: skip
    assert main(train) == 0
    return folder


@pytest.fixture(scope="module")
def logged(folder) -> Path:
    argv = ["log", str(folder / "sphere.onnx"), "--source", f"{SCENE}&n=4&seed=12&frames={N_FRAMES}"]
    assert main([*argv, "--reference", str(folder / "empty.tif"), "-o", str(folder / "RUN")]) == 0
    return folder / "RUN"


def test_the_file_proves_and_explains_itself(capsys, folder):
    model = str(folder / "sphere.onnx")
    verified = run(capsys, "verify", model)[-1]
    assert verified["passed"]
    assert verified["found"] == verified["expected"] >= 1
    assert main(["info", model]) == 0
    text = capsys.readouterr().out
    for line in ("off-axis holograms", "z from -3 to 3 um", "z_um, polarizability_um3", "snap.tif, box x y w h"):
        assert line in text
    assert main(["info", model, "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["hologram"]["kind"] == "off-axis"
    assert card["optics"] == {"wavelength_um": 0.633, "medium_index": 1.33, "na": 1.3, "pixel_um": 0.1}


def test_detect_writes_where_the_spheres_are(capsys, folder, tmp_path):
    out = tmp_path / "rows.csv"
    argv = ["detect", str(folder / "sphere.onnx"), str(folder / "snap.tif"), "--reference", str(folder / "empty.tif")]
    done = run(capsys, *argv, "-o", str(out), "--overlay", str(tmp_path / "overlay.png"))[-1]
    assert done["detections"] == 4
    assert done["bad"] == []
    assert (tmp_path / "overlay.png").stat().st_size > 1000
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    source = open_source(f"{SCENE}&n=4&seed=11")
    source.read(5.0)
    truth = source.truth()
    true_um = 0.1 * np.stack([truth.y_px, truth.x_px], 1)
    found = np.array([[float(row[name]) for name in ("y_um", "x_um", "z_um", "polarizability_um3")] for row in rows])
    t, f = match(true_um, found[:, :2], 0.5)
    assert len(t) == 4
    np.testing.assert_allclose(found[f, :2], true_um[t], atol=0.03)
    np.testing.assert_allclose(found[f, 2] - 0.13, truth.z_um[t], atol=0.1)  # the light's focus is behind the sphere
    np.testing.assert_allclose(found[f, 3], truth.polarizability_um3[t], rtol=0.1)


def test_the_run_holds_three_dimensions_and_weight(logged):
    account = read_run(logged)["account"]
    assert account["seen"] == account["analysed"] == N_FRAMES
    with closing(sqlite3.connect(logged / "run.sqlite")) as base:
        names = [row[1] for row in base.execute("PRAGMA table_info(detections)")]
        assert {"z_um", "polarizability_um3", "sigma_z_um", "flags", "track_id"} <= set(names)
        rows = base.execute("SELECT z_um, polarizability_um3, sigma_z_um, flags FROM detections").fetchall()
    z_um, weight_um3, sigma_z_um, flags = np.array(rows, float).T
    assert len(rows) == pytest.approx(4 * N_FRAMES, abs=2)
    clear = flags == 0
    assert clear.mean() > 0.9
    assert np.abs(z_um[clear] - 0.13).max() < 2.1
    assert np.median(weight_um3[clear]) == pytest.approx(0.01796, rel=0.05)
    assert ((sigma_z_um[clear] > 0) & (sigma_z_um[clear] < 0.05)).all()


def test_the_report_tells_diffusion_and_weight_of_the_run(capsys, logged):
    pytest.importorskip("matplotlib", reason="needs oneframe[report]")
    done = run(capsys, "report", str(logged))[-1]
    page = Path(done["page"])
    assert page.is_file()
    facts = json.loads((page.parent / "report.json").read_text())
    assert facts["populations"]
    assert all((page.parent / name).stat().st_size > 1000 for name in facts["plots"])


def test_a_model_for_camera_images_refuses_a_reference(capsys, bead_model, folder, tmp_path):
    empty, out = str(folder / "empty.tif"), str(tmp_path / "out.csv")
    error = refused(capsys, "detect", str(bead_model.path), empty, "--reference", empty, "-o", out)
    assert "expected no reference or background" in error
    assert "takes camera images; leave it out" in error
    assert not (tmp_path / "out.csv").exists()
    error = refused(
        capsys, "log", str(bead_model.path), "--source", SCENE, "--background", "median", "-o", str(tmp_path / "run")
    )
    assert "takes camera images" in error
    assert not (tmp_path / "run").exists()


def test_frames_of_another_microscope_are_refused_by_name(capsys, folder, tmp_path):
    other = tmp_path / "other.tif"
    assert main(["snap", f"{SCENE}&n=4&pixel_um=0.09", "-o", str(other)]) == 0
    capsys.readouterr()
    error = refused(capsys, "detect", str(folder / "sphere.onnx"), str(other), "-o", str(tmp_path / "rows.csv"))
    assert "the model was trained for pixel_um 0.1, the frames have 0.09" in error
    error = refused(
        capsys, "log", str(folder / "sphere.onnx"), "--source", f"{SCENE}&wavelength_um=0.7&frames=3",
        "-o", str(tmp_path / "run"),
    )  # fmt: skip
    assert "none of the 3 frames could be analysed" in error
    assert "trained for wavelength_um 0.633, the frames have 0.7" in error


def test_a_reference_of_another_region_is_refused(capsys, folder, tmp_path):
    small = tmp_path / "small.tif"
    assert main(["snap", f"{SCENE}&n=0&width=128", "-o", str(small)]) == 0
    capsys.readouterr()
    argv = ["detect", str(folder / "sphere.onnx"), str(folder / "snap.tif"), "--reference", str(small)]
    error = refused(capsys, *argv, "-o", str(tmp_path / "rows.csv"))
    assert "expected frames of the reference's shape (256, 128), got (256, 256)" in error


def test_training_says_what_it_lacks(capsys, folder, tmp_path):
    out = str(tmp_path / "never.onnx")
    error = refused(capsys, "train", str(folder / "snap.tif"), "--reference", str(folder / "empty.tif"), "-o", out)
    assert "expected --hologram off-axis, in-line or field with --reference, got none; add it" in error
    known = ["--wavelength-um", "0.633", "--na", "1.3", "--reference", str(folder / "empty.tif"), "-o", out]
    error = refused(
        capsys, "train", str(folder / "snap.tif"), "--hologram", "off-axis", *known, "--z-range-um", "3", "-3"
    )
    assert "expected a z range from low to high, got 3 to -3 um" in error
    error = refused(capsys, "train", str(folder / "snap.tif"), "--hologram", "field", *known)
    assert "Re and Im" in error
    assert not Path(out).exists()
