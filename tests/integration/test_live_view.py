"""`oneframe live` on the simulated microscope: the window shows rings on the particles."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from microscope import SCENE

from oneframe.acquisition import open_source
from oneframe.runtime.account import Status
from oneframe.runtime.detections import Detections, Tracks
from oneframe.runtime.display import DisplaySink, start_viewer
from oneframe.runtime.field_reader import FieldReader, HologramSettings
from oneframe.runtime.optics import Optics
from oneframe.runtime.seams import Analysed

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


def test_the_window_shows_holograms_with_rings_coloured_by_z(tmp_path, monkeypatch):
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    scene = "sim:hologram?kind=in-line&width=256&height=256&z_um=0&seed=2&n=2&separation_um=8&z_mid_um="
    rings = {}
    for z_um, hue in ((-4.0, "violet"), (4.0, "yellow")):
        source = open_source(f"{scene}{z_um}")
        settings = HologramSettings("in-line", Optics(0.633, 1.33, 1.3, source.info.pixel_size_um))
        reader = FieldReader(settings, reference=open_source(f"{scene}{z_um}".replace("n=2", "n=0")).read(1).pixels)
        sink = DisplaySink(
            status=lambda: Status(30.0, 30.0, 12.0, 18.0, 9, 9, 0, 0, 0, 2),
            field_optics=settings.field_optics,
            z_range_um=(-4.0, 4.0),
        )
        shot = tmp_path / f"{hue}.png"
        viewer = start_viewer(sink.address, title="spheres", diameter_px=24, screenshot=shot, after_frames=3)
        assert sink.wait_for_view(60)
        while viewer.poll() is None:
            frame, truth = source.read(1), source.truth()
            y_px, x_px, z = (column.astype(np.float32) for column in (truth.y_px, truth.x_px, truth.z_um))
            found = Detections(y_px, x_px, np.ones(2, np.float32), z_um=z, field=reader.read(frame.pixels))
            sink.write(Analysed(frame, Tracks(found, truth.particle_id), 0.01, 0.01))
        sink.close()
        assert viewer.returncode == 0
        red, green, blue = np.moveaxis(cv2.imread(str(shot))[100:560, :, ::-1].astype(int), 2, 0)  # the picture only
        rings[hue] = {
            "violet": int(((blue > 180) & (blue - green > 60)).sum()),
            "yellow": int(((red > 200) & (green > 180) & (green - blue > 90)).sum()),
        }
        checked = cv2.imread(str(shot))[30:60, :, ::-1].astype(int)
        assert (np.abs(checked - (86, 180, 233)).max(axis=2) < 6).sum() > 200  # the button of what is shown
    assert rings["violet"]["violet"] > 100 > 10 > rings["violet"]["yellow"]
    assert rings["yellow"]["yellow"] > 100 > 10 > rings["yellow"]["violet"]
