"""A run in other programs' formats: their origin, their units, their first frame."""

import csv
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from cell_run import log_cells
from smlm_run import PSF_SIGMA_PX, SHAPE, log_run

from oneframe.runtime.ctc_files import write_ctc
from oneframe.runtime.run_files import SUFFIXES, known_pixel_size_um, write_run
from oneframe.runtime.run_table import read_run_table


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flat") / "run"
    log_run(folder, n_frames=20, n=5)
    return read_run_table(folder)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep") / "run"
    log_run(folder, n_frames=20, n=5, with_z=True, pixel_size_um=None)
    return read_run_table(folder)


def read_csv(path) -> dict[str, np.ndarray]:
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    return dict(zip(head, np.array(rows, float).T, strict=True))


def by_frame(table, name):
    return table.columns[name][np.lexsort((table.track_id, table.track_frame))]


def test_csv_and_trackpy_hold_every_column_in_the_order_of_the_frames(flat, tmp_path):
    write_run(flat, "csv", tmp_path / "a.csv")
    told = read_csv(tmp_path / "a.csv")
    assert set(told) == {"frame", "track_id", *flat.columns}
    assert (np.diff(told["frame"]) >= 0).all()
    for name in flat.columns:
        np.testing.assert_allclose(told[name], by_frame(flat, name), rtol=1e-6, atol=1e-6)
    write_run(flat, "trackpy", tmp_path / "t.csv")
    assert {"frame", "particle", "y", "x", "mass"} <= set(read_csv(tmp_path / "t.csv"))


def test_parquet_holds_the_same(flat, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    write_run(flat, "parquet", tmp_path / "a.parquet")
    np.testing.assert_array_equal(parquet.read_table(tmp_path / "a.parquet")["y_px"], by_frame(flat, "y_px"))


def test_thunderstorm_counts_frames_from_1_and_nanometres_from_the_corner_of_the_first_pixel(flat, tmp_path):
    write_run(flat, "thunderstorm", tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text(encoding="utf-8").startswith('"id","frame","x [nm]","y [nm]","sigma [nm]",')
    told = read_csv(tmp_path / "t.csv")
    assert told["frame"].min() == 1
    np.testing.assert_array_equal(told["id"], np.arange(1, 101))
    np.testing.assert_allclose(told["x [nm]"], 100 * (by_frame(flat, "x_px") + 0.5), rtol=1e-6)
    np.testing.assert_allclose(told["y [nm]"], 100 * (by_frame(flat, "y_px") + 0.5), rtol=1e-6)
    np.testing.assert_allclose(told["sigma [nm]"], 100 * PSF_SIGMA_PX, rtol=1e-4)
    np.testing.assert_allclose(told["uncertainty_xy [nm]"], 100 * by_frame(flat, "sigma_x_px"), rtol=1e-6)
    np.testing.assert_allclose(told["intensity [photon]"], by_frame(flat, "photons"), rtol=1e-6)
    np.testing.assert_allclose(told["bkgstd [photon]"], np.sqrt(20), rtol=1e-6)


def test_thunderstorm_in_three_dimensions_has_z_in_nanometres_and_the_given_pixel_size(deep, tmp_path):
    write_run(deep, "thunderstorm", tmp_path / "t.csv", pixel_size_um=0.2)
    told = read_csv(tmp_path / "t.csv")
    np.testing.assert_allclose(told["z [nm]"], 1e3 * by_frame(deep, "z_um"), rtol=1e-6)
    np.testing.assert_allclose(told["uncertainty_z [nm]"], 30, rtol=1e-6)
    np.testing.assert_allclose(told["x [nm]"], 200 * (by_frame(deep, "x_px") + 0.5), rtol=1e-6)
    assert {"sigma1 [nm]", "sigma2 [nm]"} <= set(told)


def test_picasso_counts_from_the_centre_of_the_first_pixel_and_has_its_metadata_beside_it(deep, tmp_path):
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    notes = write_run(deep, "picasso", tmp_path / "p.hdf5", pixel_size_um=0.2, frame_shape=SHAPE)
    assert notes == []
    with h5py.File(tmp_path / "p.hdf5") as file:
        locs = file["locs"][:]
    assert locs["frame"].min() == 0
    for theirs, ours, factor in (("x", "x_px", 1), ("y", "y_px", 1), ("photons", "photons", 1), ("bg", "background", 1),
                                 ("lpx", "sigma_x_px", 1), ("z", "z_um", 1e3), ("lpz", "sigma_z_um", 1e3)):  # fmt: skip
        np.testing.assert_allclose(locs[theirs], factor * by_frame(deep, ours), rtol=1e-6)
    np.testing.assert_allclose(locs["sx"], PSF_SIGMA_PX, rtol=1e-4)
    told = (tmp_path / "p.yaml").read_text(encoding="utf-8")
    for line in ("Frames: 20", f"Height: {SHAPE[0]}", f"Width: {SHAPE[1]}", "Pixelsize: 200.0"):
        assert re.search(f"^{line}$", told, re.MULTILINE)
    notes = write_run(deep, "picasso", tmp_path / "q.hdf5", pixel_size_um=0.2)
    assert "does not tell the size of its frames" in notes[0]


def test_nanometres_need_a_pixel_size(deep, tmp_path):
    with pytest.raises(ValueError, match=r"expected a pixel size for thunderstorm.*--pixel-size-um"):
        write_run(deep, "thunderstorm", tmp_path / "t.csv")
    assert not list(tmp_path.iterdir())


def test_the_pixel_size_is_the_one_the_record_was_made_with(flat, deep):
    assert known_pixel_size_um(flat) == pytest.approx(0.1)
    assert known_pixel_size_um(deep) is None


def test_a_missing_package_is_told_with_the_line_that_installs_it(flat, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match="pip install h5py"):
        write_run(flat, "picasso", tmp_path / "p.hdf5")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pyarrow"):
        write_run(flat, "parquet", tmp_path / "p.parquet")


def test_every_format_has_a_suffix():
    assert set(SUFFIXES) == {"csv", "parquet", "trackpy", "picasso", "thunderstorm"}


def ctc_rules(folder) -> tuple[np.ndarray, dict[int, tuple[int, int, int]]]:
    """Check a folder against the rules of the Cell Tracking Challenge; return its masks and its tracks."""
    files = sorted(folder.glob("mask*.tif"))
    digits = max(3, len(str(len(files) - 1)))
    assert [file.name for file in files] == [f"mask{i:0{digits}d}.tif" for i in range(len(files))]
    masks = np.stack([tifffile.imread(file) for file in files])
    assert masks.dtype == np.uint16
    lines = [tuple(map(int, line.split(" "))) for line in (folder / "res_track.txt").read_text().splitlines()]
    tracks = {number: row for number, *row in lines}
    assert len(tracks) == len(lines)
    assert 0 not in tracks
    for number, (begin, end, parent) in tracks.items():
        seen = np.flatnonzero((masks == number).any(axis=(1, 2)))
        np.testing.assert_array_equal(seen, np.arange(begin, end + 1), err_msg=f"track {number}")
        assert parent == 0 or tracks[parent][1] < begin, f"track {number}"
    assert set(np.unique(masks)) - {0} == set(tracks)
    return masks, tracks


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells") / "run"
    log_cells(folder, n_frames=24)
    return folder


def test_ctc_has_the_masks_and_the_tracks_of_the_run(cells, tmp_path):
    table = read_run_table(cells)
    write_ctc(table, cells / "labels.tif", tmp_path / "ctc")
    masks, tracks = ctc_rules(tmp_path / "ctc")
    labels = tifffile.imread(cells / "labels.tif")
    np.testing.assert_array_equal(masks > 0, labels > 0)
    whole = masks <= table.track_id.max()  # a track goes on under a higher number after a gap
    assert whole.mean() > 0.99
    np.testing.assert_array_equal(masks[whole], labels[whole])
    parents = dict(zip(table.track_id.tolist(), table.parent_id.tolist(), strict=True))
    assert {number: tracks[number][2] for number in parents} == parents
    assert sum(parent > 0 for parent in parents.values()) >= 10  # five divisions at least
    assert (tmp_path / "ctc" / "frames.csv").read_text().splitlines()[:2] == [
        "mask,frame,time_s",
        "0,0,1700000000.000000",
    ]


def test_ctc_tells_which_frames_it_has_and_ends_tracks_at_a_gap(tmp_path):
    log_cells(tmp_path / "run", n_frames=16, skipped=(3, 4, 9), dropped=0.1)
    notes = write_ctc(read_run_table(tmp_path / "run"), tmp_path / "run" / "labels.tif", tmp_path / "ctc")
    assert "frames.csv says which frame each mask is" in notes[0]
    assert re.search(r"\d+ times a track was not seen for some frames", notes[1])
    masks, _ = ctc_rules(tmp_path / "ctc")
    assert len(masks) == 13
    frames = read_csv(tmp_path / "ctc" / "frames.csv")["frame"]
    np.testing.assert_array_equal(frames, [i for i in range(16) if i not in (3, 4, 9)])


def test_ctc_refuses_more_tracks_than_its_masks_can_tell_apart_and_writes_nothing(tmp_path):
    log_cells(tmp_path / "run", n_frames=2)
    table = read_run_table(tmp_path / "run")
    many = replace(table, track_id=table.track_id + 65535)
    with pytest.raises(ValueError, match=r"expected 65535 tracks at most for ctc.* this run needs 65\d+"):
        write_ctc(many, tmp_path / "run" / "labels.tif", tmp_path / "ctc")
    assert not (tmp_path / "ctc").exists()


def test_ctc_needs_label_images(flat, tmp_path):
    with pytest.raises(ValueError, match="expected a run with label images for ctc"):
        write_ctc(flat, tmp_path / "labels.tif", tmp_path / "ctc")


def test_a_table_of_cells_has_their_parents(cells, tmp_path):
    write_run(read_run_table(cells), "csv", tmp_path / "a.csv")
    told = read_csv(tmp_path / "a.csv")
    assert (told["parent_id"] < told["track_id"]).all()
    assert told["parent_id"].max() > 0
