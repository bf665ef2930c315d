"""`oneframe live` on the simulated microscope: the window shows rings on the particles."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from microscope import SCENE

pytest.importorskip("pyqtgraph", reason="needs oneframe[view]", exc_type=ImportError)


def test_the_window_shows_rings_on_the_particles(bead_model, tmp_path):
    shot = tmp_path / "live.png"
    command = [sys.executable, "-m", "oneframe.app", "live", str(bead_model.path), "--source", SCENE + "&fps=40"]
    done = subprocess.run(
        [*command, "--screenshot", str(shot), "-o", str(tmp_path / "run")],
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "the window was closed" in done.stdout
    picture = cv2.imread(str(shot))[:, :, ::-1].astype(int)
    orange = (picture[..., 0] > 180) & (picture[..., 2] < 90) & (picture[..., 1] > 100)
    n_rings, _, stats, centres = cv2.connectedComponentsWithStats(orange.astype(np.uint8))
    rings = [centre for centre, stat in zip(centres[1:], stats[1:], strict=True) if stat[cv2.CC_STAT_AREA] > 20]
    assert n_rings > 4
    bright = [picture[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3].mean() for x, y in rings]
    assert np.median(bright) > 2 * np.median(picture)
    assert (tmp_path / "run" / "detections.csv").is_file()


def test_a_window_that_cannot_open_does_not_end_a_logged_run(bead_model, tmp_path):
    command = [sys.executable, "-m", "oneframe.app", "live", str(bead_model.path), "--source", SCENE + "&frames=30"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "run")],
        env=os.environ | {"QT_QPA_PLATFORM": "no-such-platform"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "30 frames seen = 30 analysed" in done.stdout
    assert "the live view ended with code" in done.stderr
