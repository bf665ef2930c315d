"""From a snapped frame of cells to a logged film with identities, by the command line and the live view."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from oneframe.acquisition import open_source
from oneframe.app.main import main
from oneframe.runtime import load_model
from oneframe.runtime.record import read_run
from oneframe.runtime.segmentation_score import SegmentationScore

pytest.importorskip("torch", reason="needs oneframe[train]")

N_FRAMES = 14
FILM = "&seed=21&doubling_frames=20"


def run(capsys, *argv: str) -> list[dict]:
    assert main([*argv, "--json"]) == 0, capsys.readouterr().err
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def logged(cell_lab, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("chain") / "RUN"
    source = f"{cell_lab.scene}{FILM}&frames={N_FRAMES}"
    assert main(["log", str(cell_lab.path), "--source", source, "-o", str(out)]) == 0
    return out


def test_a_snapped_frame_becomes_a_model(capsys, tmp_path):
    snap, model = str(tmp_path / "snap.tif"), str(tmp_path / "cells.onnx")
    assert main(["snap", "sim:cells?width=160&height=128&n=10&seed=3", "-o", snap]) == 0
    capsys.readouterr()
    events = run(capsys, "train", snap, "--method", "cellulus", "--diameter-px", "24", "--steps", "4", "-o", model)
    told = next(event["lines"] for event in events if event["event"] == "frame")
    assert told[0].startswith("cells: 24.0 px across, brighter than their surroundings")
    assert events[-1]["quality"]["read_off_frame"] == told
    assert set(events[-1]["quality"]["kinds"]) == {"network", "classical"}
    assert run(capsys, "verify", model)[-1]["passed"]
    assert main(["info", model]) == 0
    assert "found again: shift" in capsys.readouterr().out
    table, overlay = str(tmp_path / "cells.csv"), tmp_path / "cells.png"
    assert main(["detect", model, snap, "-o", table, "--overlay", str(overlay)]) == 0
    assert "area_px,mean_intensity" in Path(table).read_text(encoding="utf-8")
    assert cv2.imread(str(overlay)).shape[0] >= 128


@pytest.mark.filterwarnings("error")
def test_where_there_is_nothing_there_are_no_cells(cell_lab):
    model, rng = load_model(cell_lab.path), np.random.default_rng(5)
    white = np.full((160, 192), 65535, np.uint16)
    for frame in (np.zeros_like(white), white, rng.poisson(130.0, white.shape).astype(np.uint16)):
        found = model.detect(frame)
        assert len(found) == 0
        assert not found.labels.any()
        assert any("is the shutter open" in note for note in found.notes) == (frame.min() == frame.max())


def test_options_of_cells_belong_to_cells(capsys, tmp_path):
    assert main(["train", "snap.tif", "--diameter-px", "20", "-o", str(tmp_path / "m.onnx")]) == 1
    assert "add --method cellulus if --diameter-px is meant" in capsys.readouterr().err


def test_the_film_is_segmented_and_cells_keep_their_identity(logged, cell_lab):
    account = read_run(logged)["account"]
    assert account["seen"] == account["analysed"] == N_FRAMES
    pages = tifffile.imread(logged / "labels.tif")
    source = open_source(f"{cell_lab.scene}{FILM}&frames={N_FRAMES}")
    score, kept, told = SegmentationScore(), [], {}
    for page in pages:
        source.read(5.0)
        truth = source.truth()
        score.add(truth.labels, page)
        matches = score.matches()[-1]
        now = dict(zip(truth.cell_id[matches.true_label - 1].tolist(), matches.found_label.tolist(), strict=True))
        kept += [told[cell] == track for cell, track in now.items() if cell in told]
        told |= now
    assert score.figures().f1 > 0.85
    assert np.mean(kept) > 0.95
    with closing(sqlite3.connect(logged / "run.sqlite")) as base:
        tracks = {track for (track,) in base.execute("SELECT DISTINCT track_id FROM detections WHERE frame = 0")}
    assert tracks == set(np.unique(pages[0]).tolist()) - {0}


def test_the_run_becomes_a_folder_of_the_cell_tracking_challenge(logged, tmp_path):
    assert main(["convert", str(logged), "--to", "ctc", "-o", str(tmp_path / "RES")]) == 0
    lines = (tmp_path / "RES" / "res_track.txt").read_text(encoding="ascii").splitlines()
    present = set(np.unique(tifffile.imread(sorted((tmp_path / "RES").glob("mask*.tif"))).ravel()).tolist()) - {0}
    assert {int(line.split()[0]) for line in lines} == present


def test_the_window_shows_outlines(cell_lab, tmp_path):
    pytest.importorskip("pyqtgraph", reason="needs oneframe[view]", exc_type=ImportError)
    shot = tmp_path / "live.png"
    source = f"{cell_lab.scene}{FILM}&fps=20"
    command = [sys.executable, "-m", "oneframe.app", "live", str(cell_lab.path), "--source", source]
    done = subprocess.run(
        [*command, "--screenshot", str(shot)],
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    picture = cv2.imread(str(shot)).astype(int)
    coloured = picture.max(axis=2) - picture.min(axis=2) > 60
    assert 0.005 < coloured.mean() < 0.3
