"""The report of a logged run: true D, populations and calibration out of a real record; what is missing is absent."""

import argparse
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from oneframe.acquisition import Frame, SourceInfo
from oneframe.app.console import CommandError, Console
from oneframe.runtime.card import ModelCard
from oneframe.runtime.detections import Detections, Flag, Tracks
from oneframe.runtime.diffusion import expected_diffusion_um2_s
from oneframe.runtime.record import RunFolderError, RunRecord, complete_run
from oneframe.runtime.refine import clausius_mossotti
from oneframe.runtime.run_table import populations, read_run_table
from oneframe.runtime.seams import Analysed, Missed

pytest.importorskip("matplotlib", reason="needs oneframe[report]")

DT_S = 1 / 30
PIXEL_UM = 0.1
RADII_UM = (0.150, 0.228)
INDEX, MEDIUM = 1.58, 1.33
SCALE = 1.04
"""By how much all polarizabilities of the run are wrong."""
HOLOGRAM_CARD = ModelCard(
    "lodestar", "uint16", 1, ("y_px", "x_px", "score", "z_um", "polarizability_um3", "flags"), 0.5, 12.0,
    optics={"medium_index": MEDIUM}, trained_ranges={"z_um": (-5.0, 5.0)},
)  # fmt: skip
PLAIN_CARD = ModelCard("lodestar", "uint16", 1, ("y_px", "x_px", "score"), 0.5, 12.0)
SOURCE = SourceInfo("sim:hologram?seed=1", live=False, pixel_size_um=PIXEL_UM)


def log_run(
    folder: Path, *, n_frames=200, n_each=8, holograms=True, complete=True, source=SOURCE, jitter_s=0.0, flow_um=0.0
) -> None:
    """Brownian spheres of two radii; 2 % of the rows are missing, 2 % near a neighbour, 2 % without a focus."""
    rng = np.random.default_rng(3)
    radius_um = np.repeat(RADII_UM, n_each)
    d_um2_s = np.array([expected_diffusion_um2_s(r) for r in radius_um])
    alpha_um3 = np.array([clausius_mossotti(r, INDEX, MEDIUM) for r in radius_um]) * SCALE
    n = len(radius_um)
    yxz_um = rng.uniform(0, (50, 50, 4), (n, 3)) - (0, 0, 2)
    pixels = np.zeros((4, 6), np.uint16)
    card = HOLOGRAM_CARD if holograms else PLAIN_CARD
    with closing(RunRecord(folder, card=card, source=source, settings={})) as record:
        for index in range(n_frames):
            yxz_um += rng.normal(0, 1, (n, 3)) * np.sqrt(2 * d_um2_s * DT_S)[:, None] + (0, flow_um, 0)
            seen = rng.random(n) > 0.02
            flags = rng.choice(
                [0, Flag.OUTSIDE_SIGNAL, Flag.NEAR_NEIGHBOUR, Flag.NO_FOCUS], n, p=[0.86, 0.1, 0.02, 0.02]
            )
            found_um = yxz_um + rng.normal(0, (0.012, 0.012, 0.02), (n, 3))
            columns = {"y_px": found_um[:, 0] / PIXEL_UM, "x_px": found_um[:, 1] / PIXEL_UM, "score": np.ones(n)}
            if holograms:
                alpha = alpha_um3 * np.exp(rng.normal(0, 0.05, n))
                columns["z_um"] = np.where(flags == Flag.NO_FOCUS, 9.0, found_um[:, 2])
                columns["polarizability_um3"] = np.where(
                    np.isin(flags, (Flag.NEAR_NEIGHBOUR, Flag.NO_FOCUS)), 0.5, alpha
                )
                columns["flags"] = flags
            rows = Detections(**{name: column[seen].astype(np.float32) for name, column in columns.items()})
            frame = Frame(pixels, index, 1.7e9 + index * DT_S + jitter_s * rng.random())
            record.write(Analysed(frame, Tracks(rows, np.flatnonzero(seen)), age_s=0.02, inference_s=0.01))
        record.skip(Missed("skipped", n_frames, 3, 1.7e9, "slow"))
        account = record.counts()
    if complete:
        complete_run(folder, account, "end of source")


def report(run: Path, **options) -> dict:
    from oneframe.app.report import report as write_report

    names = ("output", "calibrate_radius_um", "calibrate_index", "medium_index", "temperature_k", "viscosity_mpa_s",
             "radius_um", "min_length", "dt_s")  # fmt: skip
    arguments = argparse.Namespace(run=str(run), json=True, **(dict.fromkeys(names) | options))
    write_report(arguments, Console(as_json=True))
    folder = Path(options.get("output") or run / "report")
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "RUN"
    log_run(folder)
    return folder


@pytest.fixture(scope="module")
def calibrated(run):
    return report(run, calibrate_radius_um=RADII_UM[1], calibrate_index=INDEX)


def test_diffusion_is_that_of_the_spheres_within_the_error_bars(calibrated):
    small, large = calibrated["populations"]
    for group, radius_um in ((small, RADII_UM[0]), (large, RADII_UM[1])):
        true = expected_diffusion_um2_s(radius_um)
        assert group["expected_um2_s"] == pytest.approx(true, rel=0.02)
        for axis in ("xy", "y", "x", "z"):
            d = group[f"d_{axis}"]
            assert abs(d["um2_s"] - true) < 3 * d["standard_error_um2_s"] < 0.25 * true
            assert d["radius_um"] == pytest.approx(radius_um, rel=0.2)
            assert d["drift_removed"] is False
        assert group["d_z"]["n_steps"] < group["d_y"]["n_steps"]  # rows without a focus are gaps


def test_the_two_populations_are_told_apart_and_their_ratio_is_right(calibrated):
    small, large = calibrated["populations"]
    assert (small["track_ids"], large["track_ids"]) == (list(range(8)), list(range(8, 16)))
    true = clausius_mossotti(RADII_UM[0], INDEX, MEDIUM) / clausius_mossotti(RADII_UM[1], INDEX, MEDIUM)
    assert small["ratio_to_heaviest"] == pytest.approx(true, rel=0.02)
    assert small["same_material_radius_um"] == pytest.approx(RADII_UM[0], rel=0.01)


@pytest.mark.parametrize("known", RADII_UM)
def test_the_calibration_takes_out_the_common_scale(run, tmp_path, known):
    figures = report(run, calibrate_radius_um=known, calibrate_index=INDEX, output=str(tmp_path / "r"))
    calibration = figures["calibration"]
    assert calibration["factor"] == pytest.approx(1 / SCALE, rel=0.02)
    assert calibration["population"] == "AB"[RADII_UM.index(known)]
    for group, radius_um in zip(figures["populations"], RADII_UM, strict=True):
        assert group["polarizability_um3"] == pytest.approx(clausius_mossotti(radius_um, INDEX, MEDIUM), rel=0.02)
        assert group["calibration"] is (radius_um == known)


def test_a_calibration_that_cannot_be_meant_is_told(run, tmp_path):
    figures = report(run, calibrate_radius_um=0.5, calibrate_index=INDEX, output=str(tmp_path / "r"))
    assert any("are radius (not diameter), index and medium right" in note for note in figures["notes"])


def test_the_page_holds_the_plots_and_the_numbers(run, calibrated):
    folder = run / "report"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert calibrated["plots"] == ["diffusion.png", "polarizability.png", "z.png"]
    for name in calibrated["plots"]:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert name in page
    for text in ("population B", "200 analysed", "near neighbour", "no focus", "Clausius-Mossotti", "multiplied"):
        assert text in page
    rows = calibrated["rows"]
    shares = {name: n / rows["n"] for name, n in rows["flags"].items()}
    assert shares == pytest.approx({"near neighbour": 0.02, "outside signal": 0.1, "no focus": 0.02}, rel=0.3)
    assert rows["without_polarizability"] == rows["flags"]["near neighbour"] + rows["flags"]["no focus"]
    assert rows["without_z"] == rows["flags"]["no focus"]
    assert calibrated["frames"]["on_record"] == {"analysed": 200, "skipped": 3}
    assert calibrated["z"]["trained_um"] == [-5.0, 5.0]
    assert 0.02 < calibrated["z"]["share_outside"] < 0.5


def test_too_few_steps_for_the_position_error_are_said_and_not_quoted(run, calibrated):
    d_xy = calibrated["populations"][0]["d_xy"]
    assert d_xy["localization_um"] is None
    assert 0.012 < d_xy["localization_limit_um"] < 0.1
    assert "steps are too few to say more" in (run / "report" / "report.html").read_text(encoding="utf-8")


def test_a_report_is_written_anew_and_other_files_are_not_touched(run, calibrated, tmp_path):
    assert report(run)["calibration"] is None
    assert report(run, calibrate_radius_um=RADII_UM[1], calibrate_index=INDEX) == calibrated
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CommandError, match="holds other files, which are never overwritten; choose another name"):
        report(run, output=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_without_z_and_polarizability_their_plots_are_absent(tmp_path):
    log_run(tmp_path / "RUN", n_frames=100, holograms=False)
    figures = report(tmp_path / "RUN", radius_um=0.2)
    assert figures["plots"] == ["diffusion.png"]
    (group,) = figures["populations"]
    assert group["name"] == "all"
    assert group["n_tracks"] == 16
    assert "d_z" not in group
    assert group["expected_um2_s"] == pytest.approx(expected_diffusion_um2_s(0.2), rel=1e-4)
    with pytest.raises(CommandError, match="expected a run with polarizability to calibrate"):
        report(tmp_path / "RUN", calibrate_radius_um=0.2, calibrate_index=1.5)


def test_a_run_that_goes_on_or_was_killed_is_reported_and_its_record_left_as_it_is(tmp_path):
    log_run(tmp_path / "RUN", n_frames=40, complete=False)
    with closing(sqlite3.connect(tmp_path / "RUN" / "run.sqlite", isolation_level=None)) as writer:
        writer.execute("INSERT INTO frames (frame, status, time_s) VALUES (99, 'skipped', 1.7e9)")
        assert report(tmp_path / "RUN")["frames"]["on_record"]["skipped"] == 4
        shutil.copytree(tmp_path / "RUN", tmp_path / "KILLED")
    record = [tmp_path / "KILLED" / name for name in ("run.json", "run.sqlite", "run.sqlite-wal")]
    before = [path.read_bytes() for path in record]
    assert before[2]  # the last row stands there only
    figures = report(tmp_path / "KILLED")
    assert figures["frames"]["on_record"] == {"analysed": 40, "skipped": 4}
    assert figures["frames"]["account"] is None
    assert any("oneframe recover completes it" in note for note in figures["notes"])
    assert [path.read_bytes() for path in record] == before


def test_a_folder_without_a_record_is_explained(run, tmp_path):
    with pytest.raises(RunFolderError, match=r"has no run\.json"):
        report(tmp_path)
    shutil.copy(run / "run.json", tmp_path)
    with pytest.raises(RunFolderError, match="unable to open database file; is the folder complete"):
        report(tmp_path)


def test_a_run_too_short_is_explained(tmp_path):
    log_run(tmp_path / "RUN", n_frames=9)
    with pytest.raises(
        CommandError, match=r"a track of 15 frames or more, got 16 tracks, the longest of 9 frames; log"
    ):
        report(tmp_path / "RUN")
    assert not (tmp_path / "RUN" / "report").exists()
    notes = report(tmp_path / "RUN", min_length=2)["notes"]
    assert not any("no D_xy" in note for note in notes)
    log_run(tmp_path / "SHORT", n_frames=3, n_each=2)
    notes = report(tmp_path / "SHORT", min_length=2)["notes"]
    assert any("no D_xy of" in note and "at least 20 pairs of steps in a row" in note for note in notes)


def test_the_clock_of_a_recording_is_not_believed(tmp_path):
    log_run(tmp_path / "RUN", n_frames=60, jitter_s=0.01)
    figures = report(tmp_path / "RUN")
    assert figures["frames"]["dt_s"] is None
    assert figures["plots"] == ["polarizability.png", "z.png"]
    assert any("say the time from frame to frame with --dt-s" in note for note in figures["notes"])
    small, _ = report(tmp_path / "RUN", dt_s=DT_S)["populations"]
    d = small["d_xy"]
    assert abs(d["um2_s"] - expected_diffusion_um2_s(RADII_UM[0])) < 3 * d["standard_error_um2_s"]


def test_a_flow_is_noticed_and_taken_out(tmp_path):
    log_run(tmp_path / "RUN", flow_um=0.3)
    figures = report(tmp_path / "RUN")
    assert any("move together along xy" in note for note in figures["notes"])
    for group, radius_um in zip(figures["populations"], RADII_UM, strict=True):
        d = group["d_xy"]
        assert d["drift_removed"] is True
        assert abs(d["um2_s"] - expected_diffusion_um2_s(radius_um)) < 3 * d["standard_error_um2_s"]


def test_one_of_the_two_calibration_options_is_refused(run):
    with pytest.raises(CommandError, match="--calibrate-radius-um and --calibrate-index together"):
        report(run, calibrate_radius_um=0.2)
    with pytest.raises(CommandError, match=r"expected an index above that of the medium, 1\.33, got"):
        report(run, calibrate_radius_um=0.2, calibrate_index=1.2)


def test_the_table_holds_what_the_record_holds(run):
    table = read_run_table(run)
    with closing(sqlite3.connect(run / "run.sqlite")) as db:
        rows = db.execute("SELECT track_id, frame, z_um, y_um FROM detections ORDER BY track_id, frame").fetchall()
    together = zip(table.track_id, table.track_frame, table.columns["z_um"], table.columns["y_um"], strict=True)
    assert list(together) == rows
    assert len(table.frame) == 200
    every, dt_s, scatter = table.frame_interval()
    assert (every, dt_s) == (1, pytest.approx(DT_S, rel=1e-4))
    assert scatter < 1e-4


@pytest.mark.parametrize(
    ("centres", "sizes", "spread"),
    [
        ((0.0,), (40,), 0.1),
        ((0.0,), (1,), 0.1),
        ((0.0, 1.26), (8, 8), 0.05),
        ((0.0, 1.26), (100, 12), 0.1),
        ((0.0, 1.26), (2, 2), 0.01),
        ((0.0, 0.7, 1.4), (30, 30, 30), 0.1),
    ],
)
def test_populations_are_counted_and_told_apart(centres, sizes, spread):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        values = np.concatenate([rng.normal(c, spread, n) for c, n in zip(centres, sizes, strict=True)])
        true = np.repeat(np.arange(len(sizes)), sizes)
        shuffled = rng.permutation(len(values))
        found = populations(values[shuffled])
        assert (found == true[shuffled]).mean() > 0.98


def test_one_broad_population_and_a_stray_are_not_split():
    rng = np.random.default_rng(0)
    assert populations(rng.uniform(0, 1.5, 60)).max() == 0
    assert populations(np.append(rng.normal(0, 0.1, 40), 3.0)).max() == 0
