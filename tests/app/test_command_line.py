"""The command line: every command, its exit code, and the one sentence for every kind of bad input."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from microscope import SCENE

from oneframe.app.main import main, parse
from oneframe.runtime.record import read_run


def json_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def succeeds(capsys, *argv: str) -> list[dict]:
    assert main([*argv, "--json"]) == 0, capsys.readouterr().err
    return json_lines(capsys.readouterr().out)


def fails(capsys, *argv: str, code: int = 1) -> str:
    assert main(list(argv)) == code
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def snap_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("snap") / "snap.tif"
    assert main(["snap", SCENE + "&seed=7", "-o", str(path)]) == 0
    return path


def test_snap_keeps_pixels_dtype_and_pixel_size(snap_file):
    from microscope import snapped

    from oneframe.acquisition.recording import read_image

    frame = read_image(snap_file)
    np.testing.assert_array_equal(frame.pixels, snapped().frame.pixels)
    assert frame.pixels.dtype == np.uint16
    assert frame.pixel_size_um == pytest.approx(0.1)


def test_train_verify_info_detect(capsys, snap_file, tmp_path, bead_model):
    model = str(tmp_path / "bead.onnx")
    x, y, width, height = bead_model.snap.box
    box, larger = ["--box", *map(str, (x, y, width, height))], ["--box", *map(str, (x + 1, y, width - 2, height))]
    settings = ["--steps", "150", "--seed", "1", "--alpha", "0.7"]
    events = succeeds(capsys, "train", str(snap_file), *box, *larger, "-o", model, *settings)
    assert events[-1]["event"] == "done"
    assert events[-1]["quality"]["view_error_px"] < 0.2
    assert events[-1]["quality"]["found_on_views"] == 1.0
    assert any(event["event"] == "progress" and event["n_steps"] == 150 for event in events)
    assert succeeds(capsys, "verify", model)[-1]["passed"] is True
    card = succeeds(capsys, "info", model)[0]
    assert card["pixel_size_um"] == pytest.approx(0.1)
    assert card["crop"]["file"] == str(snap_file)
    assert card["crop"]["box_xywh_px"] == [x, y, width, height]
    assert card["crop"]["more_boxes_xywh_px"] == [[x + 1, y, width - 2, height]]
    assert card["settings"]["alpha"] == 0.7
    assert main(["info", model]) == 0
    told = capsys.readouterr().out
    assert "uint16 camera pixels, one plane (H, W), any size" in told
    assert "expected error" in told

    table, overlay = tmp_path / "found.csv", tmp_path / "found.png"
    done = succeeds(capsys, "detect", model, str(snap_file), "-o", str(table), "--overlay", str(overlay))[-1]
    rows = np.genfromtxt(table, delimiter=",", names=True, dtype=None, encoding="utf-8")
    assert done["detections"] == len(rows) > 3
    columns = ("y_px", "x_px", "score", "sigma_y_px", "sigma_x_px", "variance_px2")
    assert rows.dtype.names == ("image", "frame", *columns, "y_um", "x_um")
    assert 0 < np.median(rows["sigma_y_px"]) < 0.2
    np.testing.assert_allclose(rows["y_um"], rows["y_px"] * 0.1, atol=1e-4)
    assert overlay.stat().st_size > 1000


def test_what_no_training_can_learn_ends_with_1_and_says_why(capsys, tmp_path):
    nothing = np.random.default_rng(0).poisson(200, (96, 96)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "nothing.tif", nothing)
    box = ["--box", "20", "20", "40", "40"]
    error = fails(capsys, "train", str(tmp_path / "nothing.tif"), *box, "-o", str(tmp_path / "m.onnx"), "--steps", "60")
    assert "after 3 attempts" in error
    assert "box one clear, isolated particle" in error
    assert not (tmp_path / "m.onnx").exists()


def test_detect_goes_on_after_a_bad_frame_and_says_so(capsys, bead_model, tmp_path):
    good = bead_model.snap.frame.pixels
    np.save(tmp_path / "stack.npy", np.stack([good, np.full_like(good, 5), good]))
    out = tmp_path / "found.csv"
    error = fails(capsys, "detect", str(bead_model.path), str(tmp_path / "stack.npy"), "-o", str(out))
    assert "1 frames could not be used, the others are in" in error
    assert "frame 1: expected an image, got the constant value 5" in error
    rows = np.genfromtxt(out, delimiter=",", names=True, dtype=None, encoding="utf-8")
    assert set(rows["frame"]) == {0, 2}


def test_log_accounts_for_every_frame(capsys, bead_model, tmp_path):
    run = tmp_path / "run"
    source = SCENE + "&seed=3&frames=40"
    done = succeeds(capsys, "log", str(bead_model.path), "--source", source, "-o", str(run), "--save-frames")[-1]
    assert (done["seen"], done["analysed"], done["skipped"], done["failed"], done["lost_before"]) == (40, 40, 0, 0, 0)
    account = read_run(run)["account"]
    assert account["seen"] == account["analysed"] + account["skipped"] + account["failed"] == 40
    rows = np.genfromtxt(run / "detections.csv", delimiter=",", names=True)
    assert set(rows["frame"]) == set(range(40))
    with tifffile.TiffFile(run / "frames.tif") as pages:
        assert len(pages.pages) == 40
    again = fails(capsys, "log", str(bead_model.path), "--source", source, "-o", str(run))
    assert "run" in again
    assert "another name" in again or "overwritten" in again


def test_a_run_that_was_killed_can_be_recovered(capsys, bead_model, tmp_path):
    import sqlite3

    run = tmp_path / "run"
    command = [sys.executable, "-m", "oneframe.app", "log", str(bead_model.path), "-o", str(run), "--json"]
    logger = subprocess.Popen([*command, "--source", SCENE + "&seed=3&fps=50"], stdout=subprocess.PIPE, text=True)
    assert logger.stdout is not None
    for line in logger.stdout:
        if json.loads(line).get("analysed", 0) >= 30:
            break
    logger.kill()
    logger.communicate()
    with sqlite3.connect(run / "run.sqlite") as db:
        n_rows = db.execute("SELECT count(*) FROM frames").fetchone()[0]
        n_found = db.execute("SELECT count(*) FROM detections").fetchone()[0]
    db.close()
    assert n_rows >= 29
    assert read_run(run)["account"] is None
    done = succeeds(capsys, "recover", str(run))[-1]
    assert done["seen"] == done["analysed"] + done["skipped"] + done["failed"] == n_rows
    assert len((run / "detections.csv").read_text().splitlines()) == n_found + 1
    assert read_run(run)["recovered"] is True


@pytest.fixture
def files(tmp_path, snap_file, bead_model):
    """Every kind of file a user may hand in by mistake."""
    good = bead_model.snap.frame.pixels
    tifffile.imwrite(tmp_path / "rgb.tif", np.stack([good.astype(np.uint8)] * 2 + [good.astype(np.uint8) // 2], -1),
                     photometric="rgb")  # fmt: skip
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([good] * 3), photometric="minisblack")
    tifffile.imwrite(tmp_path / "flat.tif", np.full_like(good, 9))
    np.save(tmp_path / "nan.npy", np.where(good > 200, np.nan, good).astype(np.float32))
    (tmp_path / "cut.tif").write_bytes(snap_file.read_bytes()[:3000])
    (tmp_path / "text.tif").write_text("not an image")
    (tmp_path / "cut.onnx").write_bytes(bead_model.path.read_bytes()[:2000])
    (tmp_path / "there.onnx").write_bytes(b"mine")
    return {"folder": tmp_path, "snap": snap_file, "model": bead_model.path}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("train {snap} --box 150 10 30 30 -o {folder}/m.onnx", "the box must lie within the frame of 160 x 128 px"),
        ("train {snap} --box 10 10 3 3 -o {folder}/m.onnx", "at least 5 x 5 px, got 3 x 3"),
        ("train {snap} -o {folder}/there.onnx", "there.onnx exists and is never overwritten"),
        ("train {snap} -o {folder}/model.txt", "expected a file that ends with .onnx"),
        ("train {snap} -o {folder}/none/m.onnx", "does not exist; make it first"),
        ("train {folder}/none.tif -o {folder}/m.onnx", "none.tif"),
        (
            "train {folder}/rgb.tif -o {folder}/m.onnx",
            "is a colour image (shape (128, 160, 3)), one grey plane is expected",
        ),
        ("train {folder}/stack.tif -o {folder}/m.onnx", "holds 3 images, one is expected"),
        ("train {folder}/flat.tif -o {folder}/m.onnx", "got the constant value 9; is the shutter open?"),
        ("train {folder}/nan.npy -o {folder}/m.onnx", "that are NaN or infinite"),
        ("train {folder}/cut.tif -o {folder}/m.onnx", "cut.tif"),
        ("train {folder}/text.tif -o {folder}/m.onnx", "text.tif"),
        ("verify {folder}/cut.onnx", "is not a complete ONNX model (2000 bytes)"),
        ("info {folder}/none.onnx", "expected a model file, found none at"),
        ("detect {model} {folder}/nan.npy -o {folder}/d.csv", "that are NaN or infinite"),
        ("detect {model} {folder}/rgb.tif -o {folder}/e.csv", "one"),
        ("detect {model} {snap} -o {folder}/d.txt", "expected a file that ends with .csv or .parquet"),
        ("detect {model} {snap} -o {folder}/d.csv --threshold 7", "threshold must be a score from 0 to 1, got 7"),
        ("log {model} --source simm:beads -o {folder}/run", "expected a SOURCE that starts with sim:, demo:"),
        ("log {model} --source sim:beeds -o {folder}/run", "expected sim:beads"),
        ("log {model} --source sim:beads?colour=red -o {folder}/run", "unknown option colour; known are"),
        ("log {model} --source sim:beads?width=many -o {folder}/run", "width must be a whole number"),
        ("log {model} --source sim:beads?frames=3 -o {folder}", "another name"),
        ("log {model} --source {folder}/flat.tif -o {folder}/run", "none of the 1 frames could be analysed"),
        ("log {model} --source zmq+tcp://127.0.0.1:9?timeout_s=0.3 -o {folder}/run", "is `oneframe serve` running"),
        ("serve sim:beads --bind tcp://0.0.0.0:5555", "needs keys on both sides"),
        ("snap mm:{folder}/none.cfg -o {folder}/s.tif", "none.cfg"),
        ("recover {folder}", "run.json"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_1(capsys, files, argv, message):
    before = sorted(path.name for path in files["folder"].iterdir())
    error = fails(capsys, *argv.format(**files).split())
    assert message in error
    assert error.startswith(f"oneframe {argv.split()[0]}: ")
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) <= 2
    assert not (files["folder"] / "m.onnx").exists()
    assert (files["folder"] / "there.onnx").read_bytes() == b"mine"
    assert set(before) <= {path.name for path in files["folder"].iterdir()}


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["train", "snap.tif", "--box", "1", "2", "3", "-o", "m.onnx"],
        ["train", "snap.tif", "--box", "somewhere", "-o", "m.onnx"],
        ["train", "snap.tif", "--box", "auto", "--box", "1", "2", "30", "30", "-o", "m.onnx"],
        ["train", "snap.tif", "--size", "1", "-o", "m.onnx"],
        ["train", "snap.tif", "--preset", "other", "-o", "m.onnx"],
        ["train", "snap.tif", "-o", "m.onnx", "--steps", "0"],
        ["log", "m.onnx", "--source", "sim:beads", "-o", "run", "--frames", "2", "--seconds", "3"],
        ["log", "m.onnx", "--source", "sim:beads"],
        ["refocus", "a.tif", "--z-um", "1", "-o", "b.png"],
        ["refocus", "a.tif", "--hologram", "in-line", "-o", "b.png"],
        ["refocus", "--hologram", "in-line", "-o", "b.png", "--z-um", "1", "a.tif"],
        ["refocus", "a.tif", "--hologram", "in-line", "-o", "b.png", "--z-um", "5:-5:1"],
        ["refocus", "a.tif", "--hologram", "in-line", "-o", "b.png", "--z-um", "-5:5:0"],
        ["refocus", "a.tif", "--hologram", "in-line", "-o", "b.png", "--z-um", "-5:5"],
        ["refocus", "a.tif", "--hologram", "in-line", "-o", "b.png", "--z-um", "nan"],
        ["refocus", "a.tif", "--hologram", "in-line", "-o", "b.png", "--z-um", "0:5:1e-9"],
        ["snap", "sim:hologram", "--hologram", "lens-less", "-o", "a.tif"],
        ["snap", "sim:hologram", "--carrier", "1", "-o", "a.tif"],
        ["train", "a.tif", "-o", "m.onnx", "--z-range-um", "-3"],
    ],
)
def test_a_wrong_call_ends_with_2(capsys, argv):
    assert "usage: oneframe" in fails(capsys, *argv, code=2)


def test_negative_numbers_are_no_options():
    words = "train a.tif -o m.onnx --seed -3 --z-range-um -4.5 -1e-1 --carrier -2.9 2.9 --box -1 2 30 30"
    parsed = parse(words.split())
    assert (parsed.seed, parsed.z_range_um, parsed.carrier) == (-3, [-4.5, -0.1], [-2.9, 2.9])
    assert parsed.box == [(-1, 2, 30, 30)]


def test_a_missing_extra_names_the_pip_line(tmp_path, snap_file):
    block = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from oneframe.app.main import main\n"
        f"sys.exit(main(['train', {str(snap_file)!r}, '-o', {str(tmp_path / 'm.onnx')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "pip install 'oneframe[train]'" in done.stderr


def test_help_answers_without_numpy_torch_or_qt():
    check = (
        "import sys\n"
        "from oneframe.app.main import main\n"
        "assert main(['--help']) == 0 and main(['train', '--help']) == main(['refocus', '--help']) == 0\n"
        "heavy = {'numpy', 'torch', 'onnx', 'onnxruntime', 'cv2', 'scipy', 'PySide6', 'pyqtgraph'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Start with: oneframe demo" in done.stdout


def test_ctrl_c_in_training_leaves_no_model(tmp_path, snap_file):
    import signal

    model = tmp_path / "m.onnx"
    command = [sys.executable, "-m", "oneframe.app", "train", str(snap_file), "-o", str(model), "--json"]
    training = subprocess.Popen(
        [*command, "--steps", "100000", "--box", "40", "40", "40", "40"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert training.stdout is not None
    assert json.loads(training.stdout.readline())["event"] == "progress"
    training.send_signal(signal.SIGINT)
    _, error = training.communicate(timeout=60)
    assert training.returncode == 1
    assert "stopped at step" in error
    assert "Traceback" not in error
    assert not model.exists()


def test_doctor_finds_everything_that_is_installed(capsys):
    findings = succeeds(capsys, "doctor")
    states = {finding["what"]: finding["state"] for finding in findings if finding["event"] == "finding"}
    assert states["runtime"] == states["ZeroMQ"] == states["disk"] == states["extra [train]"] == "ok"
