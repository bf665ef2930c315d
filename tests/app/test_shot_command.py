"""`oneframe train --method shot`, `info`, `verify` and `detect` on single molecules."""

import csv
import json
from contextlib import closing

import numpy as np
import pytest
import tifffile

from oneframe.acquisition import open_source
from oneframe.app.console import CommandError
from oneframe.app.emitters import quality_lines, read_frames, training_of
from oneframe.app.main import main, parse
from oneframe.app.models import check_options

SHOT = ["--method", "shot"]


def refused(capsys, *argv: str) -> str:
    assert main(list(argv)) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    return error


@pytest.fixture(scope="module")
def snap(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("shot") / "snap.tif"
    assert main(["snap", "sim:emitters?width=96&height=96&density_um2=1&seed=3", "-o", str(path)]) == 0
    return str(path)


def test_verify_replays_the_self_test(capsys, shot_lab):
    assert main(["verify", str(shot_lab.path), "--json"]) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["passed"]
    assert done["found"] == done["expected"] == shot_lab.trained.card.quality["detections_on_frame"]


def test_info_tells_what_to_expect(capsys, shot_lab):
    assert main(["info", str(shot_lab.path)]) == 0
    text = capsys.readouterr().out
    quality = shot_lab.trained.card.quality
    for line in (
        "uint16 camera pixels, one plane (H, W), any size",
        "photons, background, sigma_y_px, sigma_x_px",
        "gain, counts per photoelectron",
        "at 0.2 per um^2",
        f"Jaccard {quality['expected_jaccard']:.2f}, lateral error {100 * quality['expected_rmse_px']:.0f} nm",
        f"found on this frame       {quality['detections_on_frame']}",
        quality["advice_sentence"],
    ):
        assert line in text
    assert main(["info", str(shot_lab.path), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert (card["method"], card["n_channels"]) == ("shot", 1)


def test_lengths_are_pixels_where_the_pixel_size_is_not_known(shot_lab):
    lines = dict(quality_lines(shot_lab.trained.card.quality, None))
    assert "px" in lines["expected here"]
    assert any(name.startswith("at ") and name.endswith(" per px") for name in lines)


def test_detect_writes_photons_and_sigmas(capsys, shot_lab, snap, tmp_path):
    out = tmp_path / "rows.csv"
    overlay = tmp_path / "overlay.png"
    assert main(["detect", str(shot_lab.path), snap, "-o", str(out), "--overlay", str(overlay)]) == 0
    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    wanted = {"image", "frame", "y_px", "x_px", "score", "photons", "background", "sigma_y_px", "sigma_x_px", "y_um"}
    assert wanted <= set(table[0])
    values = {name: np.array([float(row[name]) for row in table]) for name in wanted - {"image"}}
    np.testing.assert_allclose(values["y_um"], 0.1 * values["y_px"], atol=1e-4)
    assert len(table) == shot_lab.trained.card.quality["detections_on_frame"]
    assert (values["photons"] > 0).all()
    assert ((values["sigma_y_px"] > 0) & (values["sigma_y_px"] < 5)).all()
    assert (values["score"] >= shot_lab.trained.card.threshold - 1e-5).all()
    assert overlay.stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--box", "0", "0", "24", "24"], "expected options of shot, got --box; leave it out"),
        (["--box", "auto"], "expected options of shot, got --box"),
        (["--scale", "2"], "expected options of shot, got --scale"),
        (["--size", "1", "2"], "expected options of shot, got --size"),
        (["--noise", "0.5"], "expected options of shot, got --noise"),
        (["--alpha", "1"], "expected options of shot, got --alpha"),
        (["--gain", "1", "2"], "expected counts per photoelectron after --gain with shot, got 2 numbers"),
        (["--preset", "paper"], "expected the default preset for shot, got 'paper'; leave it out"),
        (["--hologram", "off-axis", "--wavelength-um", "0.6", "--na", "1.3"], "expected no hologram with shot"),
        (["--z-range-um", "-1", "1"], "with --z-range-um, got none"),
        (["--reference", "{snap}"], "with --reference, got none"),
        (["--background", "median"], "with --background, got none"),
        (["--em-gain", "3"], "em_gain must be 0 (no multiplication) or from 10 on"),
        (["--psf", "nowhere.json"], "expected a calibration at nowhere.json, found none; make one with"),
        (["--psf", "{snap}"], "{snap}: "),
        (["--context-frames", "9"], "expected at most 2 refinements and 5 frames, got 0 and 9"),
        (["--refinements", "7"], "expected at most 2 refinements and 5 frames, got 7 and 1"),
    ],
)
def test_what_does_not_belong_is_refused(capsys, snap, tmp_path, options, message):
    out = tmp_path / "never.onnx"
    options = [each.format(snap=snap) for each in options]
    assert message.format(snap=snap) in refused(capsys, "train", snap, *SHOT, *options, "-o", str(out))
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--baseline", "100"], "expected options of lodestar, got --baseline; leave it out, or add --method shot"),
        (["--psf", "a.json"], "expected options of lodestar, got --psf"),
        (["--matching", "exact"], "expected options of lodestar, got --matching"),
        (["--context-frames", "3"], "expected options of lodestar, got --context-frames"),
        (["--gain", "2"], "expected two factors, FROM and TO after --gain with lodestar, got 1 numbers"),
    ],
)
def test_lodestar_refuses_options_of_shot(capsys, snap, tmp_path, options, message):
    assert message in refused(capsys, "train", snap, *options, "-o", str(tmp_path / "never.onnx"))


def test_options_reach_the_training():
    given = [
        "--gain", "2.5", "--baseline", "101", "--read-noise", "1.2", "--em-gain", "300", "--psf-sigma-px", "1.4",
        "--photons", "900", "--density-um2", "2", "--on-frames", "3", "--refinements", "1", "--context-frames", "3",
        "--matching", "sinkhorn",
    ]  # fmt: skip
    arguments = parse(["train", "a.tif", *SHOT, "-o", "m.onnx", *given])
    check_options(arguments)
    assert training_of(arguments) == {
        "gain": 2.5, "offset": 101.0, "read_noise": 1.2, "em_gain": 300.0, "psf_sigma_px": 1.4, "photons": 900.0,
        "density_um2": 2.0, "on_frames": 3.0, "refinements": 1, "n_frames": 3, "matching": "sinkhorn", "psf": None,
    }  # fmt: skip
    assert set(training_of(parse(["train", "a.tif", *SHOT, "-o", "m.onnx"])).values()) == {None}


def test_a_stack_is_learned_from_as_a_whole(snap, tmp_path):
    assert read_frames(snap).pixels.shape == (96, 96)
    assert read_frames(snap).pixel_size_um == pytest.approx(0.1)
    with closing(open_source("sim:emitters?width=32&height=24&seed=3")) as source:
        frames = np.stack([source.read(5.0).pixels for _ in range(120)])
    tifffile.imwrite(tmp_path / "stack.tif", frames, photometric="minisblack")
    np.testing.assert_array_equal(read_frames(str(tmp_path / "stack.tif")).pixels, frames[:100])
    np.save(tmp_path / "field.npy", frames[np.newaxis, :2])  # two channels
    with pytest.raises(CommandError, match=r"expected grey frames in .*field.npy, got channels.*\?channel=N"):
        read_frames(str(tmp_path / "field.npy"))
