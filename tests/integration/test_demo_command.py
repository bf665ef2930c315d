"""`oneframe demo`, shortened: the whole chain with real processes, against exact truth."""

import json

import pytest

from oneframe.app.main import main
from oneframe.runtime.record import read_run

pytest.importorskip("torch", reason="needs oneframe[train]")


def test_the_demo_runs_the_whole_chain(capsys, tmp_path):
    folder = tmp_path / "demo"
    assert main(["demo", "-o", str(folder), "--frames", "40", "--steps", "600", "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert any(event.get("n_detections") for event in told)
    assert not any("n_emitters" in event for event in told)  # beads are none
    done = told[-1]
    assert done["recall"] >= 0.97
    assert done["precision"] >= 0.97
    assert done["rmse_px"] <= 0.15
    account = read_run(folder / "run")["account"]
    assert account["seen"] == account["analysed"] == 40
    assert {path.name for path in folder.iterdir()} == {"snap.tif", "bead.onnx", "overlay.png", "run"}
    assert main(["demo", "-o", str(folder)]) == 1
    assert "exists and is never overwritten" in capsys.readouterr().err
