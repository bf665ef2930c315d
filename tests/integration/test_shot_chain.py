"""From a snapped frame of single molecules to a logged run with photons and uncertainties, by the command line."""

import csv
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from oneframe.acquisition import open_source
from oneframe.app.main import main
from oneframe.runtime import Detections
from oneframe.runtime.localisation_score import LocalisationScore
from oneframe.runtime.record import read_run

pytest.importorskip("torch", reason="needs oneframe[train]")

N_FRAMES = 12
COLUMNS = ("y_px", "x_px", "score", "photons", "background", "sigma_y_px", "sigma_x_px")


def run(capsys, *argv: str) -> list[dict]:
    assert main([*argv, "--json"]) == 0, capsys.readouterr().err
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def logged(shot_lab, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("chain") / "RUN"
    source = f"{shot_lab.scene}&seed=21&frames={N_FRAMES}"
    assert main(["log", str(shot_lab.path), "--source", source, "-o", str(out)]) == 0
    return out


def test_a_snapped_frame_becomes_a_model(capsys, tmp_path):
    scene, snap, model = "sim:emitters?width=64&height=72&density_um2=0.5&photons=8000", "snap.tif", "molecules.onnx"
    assert main(["snap", f"{scene}&seed=3", "-o", str(tmp_path / snap)]) == 0
    capsys.readouterr()
    argv = ["train", str(tmp_path / snap), "--method", "shot", "--baseline", "100", "--steps", "60", "--seed", "1"]
    events = run(capsys, *argv, "-o", str(tmp_path / model))
    told = next(event["lines"] for event in events if event["event"] == "frame")
    assert any(line.startswith("offset, counts: 100 (given)") for line in told)
    assert any(line.startswith("emitters per um^2: 0.") for line in told)
    done = events[-1]
    assert done["event"] == "done"
    assert done["quality"]["read_off_frame"] == told
    assert done["quality"]["expected_jaccard"] > 0.3
    assert run(capsys, "verify", str(tmp_path / model))[-1]["passed"]


def test_the_run_holds_photons_and_uncertainties(logged, shot_lab):
    account = read_run(logged)["account"]
    assert account["seen"] == account["analysed"] == N_FRAMES
    with closing(sqlite3.connect(logged / "run.sqlite")) as base:
        names = {row[1] for row in base.execute("PRAGMA table_info(detections)")}
        assert {"photons", "background", "sigma_y_px", "sigma_x_px", "y_um", "track_id"} <= names
        rows = np.array(base.execute(f"SELECT frame, {', '.join(COLUMNS)} FROM detections").fetchall(), np.float32)
    score = LocalisationScore(0.1)
    source = open_source(f"{shot_lab.scene}&seed=21")
    for index in range(N_FRAMES):
        source.read(5.0)
        mine = rows[rows[:, 0] == index]
        score.add(source.truth(), Detections(**dict(zip(COLUMNS, mine[:, 1:].T, strict=True))))
    figures = score.at()
    assert figures.jaccard > 0.5
    assert 0.5 < figures.within_sigma < 0.85
    assert figures.rmse_px < 0.8


def test_the_table_of_the_run_has_them_too(logged):
    with (logged / "detections.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {*COLUMNS, "frame"} <= set(table[0])
    photons, sigma = (np.array([float(row[name]) for row in table]) for name in ("photons", "sigma_x_px"))
    assert 300 < np.median(photons) < 3000  # 3000 a frame, of which blinks fill a half on average
    bright = photons > np.median(photons)
    assert np.median(sigma[bright]) < np.median(sigma[~bright])  # more light, less doubt
