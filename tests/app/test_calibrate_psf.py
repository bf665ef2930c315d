"""`calibrate-psf`: curves and heights of simulated bead stacks come back; what tells no z is refused."""

import json

import numpy as np
import pytest
import tifffile

from oneframe.acquisition.psf import GaussianPsf, Width, render
from oneframe.app.console import CommandError
from oneframe.app.main import main
from oneframe.app.psf import read_psf
from oneframe.trainer.psf_calibration import calibrate_psf

TRUE = GaussianPsf(Width(1.25, 0.22, 0.38, 0.1, 0.05), Width(1.35, -0.22, 0.42, -0.08, 0.06), (-0.5, 0.5))
STEP_UM = 0.04


def bead_stack(seed=0, psf=TRUE, *, n=6, n_planes=31, photons=20_000.0, tilt_um=0.06, step_um=STEP_UM):
    """Return counts (Z, 110, 110), and for each bead y, x and the height of the middle plane."""
    rng = np.random.default_rng(seed)
    grid = np.array([(y, x) for y in (18, 55, 92) for x in (18, 55, 92)])[:n]
    y, x = (grid + rng.uniform(-0.5, 0.5, (n, 2))).T
    z_middle = rng.uniform(-tilt_um, tilt_um, n)
    planes = []
    for k in range(n_planes):
        z_um = (k - (n_planes - 1) / 2) * step_um + z_middle
        light = render(y, x, photons * rng.uniform(0.9, 1.1, n), *psf.sigmas(z_um), (110, 110)) + 30
        planes.append(rng.poisson(light) * 1.34 + rng.normal(100, 2, light.shape))
    return np.rint(planes).astype(np.uint16), np.column_stack([y, x]), z_middle


def written(tmp_path, stack):
    path = tmp_path / "beads.tif"
    tifffile.imwrite(path, stack)
    return path


def test_the_curves_come_back():
    stack, _, _ = bead_stack()
    found = calibrate_psf(stack, STEP_UM)
    assert found.n_beads == 6
    z_um = np.linspace(-0.4, 0.4, 41)
    for true, fitted in zip(TRUE.sigmas(z_um), found.psf.sigmas(z_um), strict=True):
        np.testing.assert_allclose(fitted, true, rtol=0.015)
    low, high = found.psf.z_range_um
    assert low < -0.35
    assert high > 0.35
    assert found.rms_um < 0.010


def test_beads_at_different_heights_make_one_curve():
    stack, places, z_middle = bead_stack(5, n_planes=21)
    found = calibrate_psf(stack, STEP_UM, places_px=places)
    assert (np.bincount(found.bead) == 21).all()
    ends = [found.z_um[found.bead == b].max() for b in range(6)]
    np.testing.assert_allclose(ends - np.mean(ends), z_middle - z_middle.mean(), atol=0.006)


def test_a_step_the_other_way_mirrors_the_curves():
    stack, _, _ = bead_stack(1)
    up, down = calibrate_psf(stack, STEP_UM).psf, calibrate_psf(stack, -STEP_UM).psf
    assert down.y.focus_um == pytest.approx(-up.y.focus_um, abs=0.003)
    assert down.z_range_um[0] == pytest.approx(-up.z_range_um[1], abs=0.01)


def test_the_command_writes_what_training_reads(tmp_path, capsys):
    stack, _, _ = bead_stack(2)
    path = tmp_path / "psf.json"
    argv = ["calibrate-psf", str(written(tmp_path, stack)), "--step-nm", "40", "-o", str(path)]
    assert main([*argv, "--pixel-size-um", "0.1"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "6 beads" in said
    assert "nm) in focus at +2" in said
    psf = read_psf(path)
    assert psf.has_z
    assert psf.y.focus_um == pytest.approx(0.22, abs=0.01)
    assert psf.x.sigma_px == pytest.approx(1.35, rel=0.02)
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert main(argv) == 1  # nothing is overwritten
    assert "exists" in capsys.readouterr().err


def test_named_beads_only(tmp_path, capsys):
    stack, places, _ = bead_stack(3)
    boxes = [str(v) for y, x in places[:1].astype(int) for v in (x - 10, y - 10, 21, 21)]
    argv = ["calibrate-psf", str(written(tmp_path, stack)), "--step-nm", "40", "-o", str(tmp_path / "p.json")]
    assert main([*argv, "--box", *boxes, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["beads"] == 1
    assert lines[-1]["residual_nm"] < 15
    assert any("only 1 bead" in line.get("note", "") for line in lines)


def test_what_tells_no_z_is_refused(tmp_path, capsys):
    round_psf = GaussianPsf(Width(1.3, 0.0, 0.4), Width(1.3, 0.0, 0.4))
    path = written(tmp_path, bead_stack(4, round_psf)[0])
    assert main(["calibrate-psf", str(path), "--step-nm", "40", "-o", str(tmp_path / "p.json")]) == 1
    assert "put the cylindrical lens in" in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()
    with pytest.raises(ValueError, match="at least 7 planes"):
        calibrate_psf(np.zeros((3, 64, 64)), 0.04)
    with pytest.raises(ValueError, match="beads that stand alone"):
        calibrate_psf(np.random.default_rng(0).poisson(30, (20, 64, 64)), 0.04)
    with pytest.raises(ValueError, match="planes of 21 px a side"):
        calibrate_psf(np.zeros((20, 16, 64)), 0.04)


def test_unreadable_calibrations_are_explained(tmp_path):
    with pytest.raises(CommandError, match="cannot be read"):
        read_psf(tmp_path / "none.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(CommandError, match="expected a calibration"):
        read_psf(tmp_path / "other.json")
