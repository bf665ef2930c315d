"""`oneframe convert` from the command line: it writes a new file, leaves the run alone, and says what it cannot."""

import pytest
from smlm_run import SHAPE, log_run

from oneframe.app.main import main
from oneframe.runtime.run_table import read_run_table


@pytest.fixture
def run(tmp_path):
    log_run(tmp_path / "run", n_frames=10, n=4)
    return tmp_path / "run"


def test_a_run_becomes_a_file_and_stays_as_it_is(run, tmp_path, capsys):
    before = {file: file.read_bytes() for file in run.iterdir()}
    assert main(["convert", str(run), "--to", "thunderstorm", "-o", str(tmp_path / "t.csv")]) == 0
    assert "40 rows of 10 frames" in capsys.readouterr().out
    assert len((tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()) == 41
    assert {file: file.read_bytes() for file in run.iterdir() if file in before} == before


def test_the_record_tells_the_size_of_the_frames(run):
    assert read_run_table(run).frame_shape == SHAPE


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--to", "napari", "-o", "a.csv"], "expected --to csv, parquet, trackpy, picasso, thunderstorm, got napari"),
        (["--to", "picasso", "-o", "a.csv"], "expected a file that ends with .hdf5"),
        (["--to", "csv", "-o", "run/run.csv/a.csv"], "does not exist; make it first"),
    ],
)
def test_what_it_cannot_is_said_in_a_sentence(run, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(run.parent)
    assert main(["convert", "run", *words]) == 1
    assert sentence in capsys.readouterr().err


def test_no_file_is_overwritten(run, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("mine")
    assert main(["convert", str(run), "--to", "picasso", "-o", str(tmp_path / "a.hdf5")]) == 1
    assert "a.yaml exists and is never overwritten" in capsys.readouterr().err
