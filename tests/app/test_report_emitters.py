"""The report of a run of single molecules: what was simulated is told, and drift is taken out of a copy."""

import json

import cv2
import numpy as np
import pytest
from smlm_run import SHAPE, drift_px, log_run

from oneframe.app.main import main

pytest.importorskip("matplotlib", reason="needs oneframe[report]")


def test_the_report_tells_what_was_simulated(tmp_path, capsys):
    log_run(tmp_path / "run", n_frames=300, n=30)
    record = (tmp_path / "run" / "run.sqlite").read_bytes()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "median precision: 6." in capsys.readouterr().out
    folder = tmp_path / "run" / "report"
    told = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert told["localisations"] == 9000
    assert told["density_um2"] == pytest.approx(30 / (6.4 * 8.0), rel=1e-3)
    assert told["median_precision_nm"] == pytest.approx(6.7, abs=0.2)
    assert told["median_photons"] == pytest.approx(1500, rel=0.03)
    assert 2.355 * 6.7 < told["frc_resolution_nm"] < 45
    truth = drift_px(np.arange(300), 300)
    assert told["drift_span_nm"] == pytest.approx(100 * np.hypot(*np.ptp(truth, axis=0)), rel=0.05)
    for name in told["plots"]:
        assert cv2.imread(str(folder / name)).std() > 5
    assert (tmp_path / "run" / "run.sqlite").read_bytes() == record
    assert main(["report", str(tmp_path / "run")]) == 0  # writes over its own


def test_the_corrected_copy_has_the_drift_taken_out(tmp_path):
    log_run(tmp_path / "run", n_frames=300, n=30)
    main(["report", str(tmp_path / "run")])
    table = np.genfromtxt(tmp_path / "run" / "report" / "corrected.csv", delimiter=",", names=True)
    log_run(tmp_path / "still", n_frames=300, n=30, drift=False)  # the same emitters on a stage that stands
    main(["report", str(tmp_path / "still"), "-o", str(tmp_path / "report")])
    still = np.genfromtxt(tmp_path / "report" / "corrected.csv", delimiter=",", names=True)
    for axis in ("y_px", "x_px"):
        error = table[axis] - still[axis]
        assert np.sqrt(np.mean(error**2)) < 0.1  # of 2 px
    np.testing.assert_allclose(table["y_um"], 0.1 * table["y_px"], rtol=1e-5)


def test_a_short_run_without_a_pixel_size_has_a_report_too(tmp_path):
    log_run(tmp_path / "run", n_frames=20, n=10, pixel_size_um=None)
    assert main(["report", str(tmp_path / "run")]) == 0
    told = json.loads((tmp_path / "run" / "report" / "report.json").read_text(encoding="utf-8"))
    assert told["drift"] is None
    assert told["median_precision_nm"] is None
    assert told["median_precision_px"] == pytest.approx(0.067, abs=0.005)
    assert told["frames"]["shape"] == list(SHAPE)
    assert any("no drift is given: expected 3000 localisations" in note for note in told["notes"])
    assert not any("does not tell the size of its frames" in note for note in told["notes"])


def test_a_run_without_localisations_is_refused(tmp_path, capsys):
    log_run(tmp_path / "run", n_frames=5, n=0)
    assert main(["report", str(tmp_path / "run")]) == 1
    assert "expected a run with localisations" in capsys.readouterr().err
