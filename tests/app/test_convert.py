"""`oneframe convert` from the command line: it writes a new file, leaves the run alone, and says what it cannot."""

from types import SimpleNamespace

import pytest
from cell_run import log_cells
from smlm_run import SHAPE, log_run

from oneframe.app.main import main
from oneframe.app.track import linker_for
from oneframe.runtime.card import ModelCard
from oneframe.runtime.cell_link import CellLinker
from oneframe.runtime.link import FrameLinker, LinkSettings
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
        (
            ["--to", "napari", "-o", "a.csv"],
            "expected --to csv, parquet, trackpy, picasso, thunderstorm, ctc, got napari",
        ),
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


def test_a_run_of_cells_becomes_a_folder(tmp_path, capsys):
    log_cells(tmp_path / "run", n_frames=12)
    assert main(["convert", str(tmp_path / "run"), "--to", "ctc", "-o", str(tmp_path / "01_RES")]) == 0
    assert "of 12 frames" in capsys.readouterr().out
    names = sorted(file.name for file in (tmp_path / "01_RES").iterdir())
    assert names == ["frames.csv", *(f"mask{i:03d}.tif" for i in range(12)), "res_track.txt"]
    assert main(["convert", str(tmp_path / "run"), "--to", "ctc", "-o", str(tmp_path / "01_RES")]) == 1
    assert "is there and is never overwritten" in capsys.readouterr().err


def test_a_run_without_label_images_makes_no_folder(run, tmp_path, capsys):
    assert main(["convert", str(run), "--to", "ctc", "-o", str(tmp_path / "01_RES")]) == 1
    assert "convert a run of a model that segments" in capsys.readouterr().err
    assert not (tmp_path / "01_RES").exists()


@pytest.mark.parametrize(("maps", "linker"), [(("foreground",), CellLinker), ((), FrameLinker)])
def test_the_model_decides_who_links(maps, linker):
    card = ModelCard("cellulus" if maps else "lodestar", "uint16", 1, ("y_px", "x_px", "score"), 0.5, 12.0, maps=maps)
    chosen = linker_for(SimpleNamespace(card=card), LinkSettings(18.0, max_gap_frames=2))
    assert type(chosen) is linker
    assert chosen.settings.max_gap_frames == 2
    assert getattr(chosen.settings, "max_distance_diameters", 1.5) == 1.5
