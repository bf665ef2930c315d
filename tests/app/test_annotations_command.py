"""`oneframe train --method cellulus --annotations`: from files to a model that is verified, and what is refused."""

import json

import numpy as np
import pytest
import tifffile

from oneframe.acquisition import open_source
from oneframe.app.main import main

SIDE = 128
SCENE = f"sim:cells?width={SIDE}&height={SIDE}&n=14&diameter_px=22&seed=3"


@pytest.fixture(scope="module")
def snap(tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "snap.tif"
    assert main(["snap", SCENE, "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def labels(snap):
    source = open_source(SCENE)
    source.read(5.0)
    truth = source.truth().labels
    source.close()
    largest = np.argsort(-np.bincount(truth.ravel())[1:], kind="stable")[:3] + 1
    path = snap.with_name("labels.tif")
    tifffile.imwrite(path, np.where(np.isin(truth, largest), truth, 0).astype(np.uint16))
    return path


def test_train_verify_info_detect_log(capsys, snap, labels, tmp_path):
    model, annotated = str(tmp_path / "cells.onnx"), ["--annotations", str(labels)]
    options = ["--method", "cellulus", *annotated, "--separate", "stars", "--steps", "40"]
    assert main(["train", str(snap), *options, "-o", model, "--json"]) == 0
    done = [json.loads(line) for line in capsys.readouterr().out.splitlines()][-1]
    assert done["quality"]["annotated_cells"] == 3
    assert main(["verify", model]) == 0
    assert "passed" in capsys.readouterr().out
    assert main(["info", model]) == 0
    assert "3 annotated cells: 0." in " ".join(capsys.readouterr().out.split())
    table = tmp_path / "found.csv"
    assert main(["detect", model, str(snap), "-o", str(table)]) == 0
    rows = np.genfromtxt(table, delimiter=",", names=True, dtype=None, encoding="utf-8")
    assert len(rows) == done["quality"]["cells_on_frame"] > 3
    assert rows["score"].min() >= done["threshold"]
    run = tmp_path / "run"
    assert main(["log", model, "--source", SCENE + "&frames=3", "-o", str(run)]) == 0
    assert tifffile.imread(run / "labels.tif").shape == (3, SIDE, SIDE)


FORM = {"format": "oneframe annotations", "format_version": 1, "shape": [SIDE, SIDE], "cells": [], "background": []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged.json: "),
        (json.dumps(FORM | {"shape": [9, 9]}), "9 x 9 px"),
        (json.dumps(FORM), "mark a few cells"),
    ],
    ids=["damaged", "another frame", "empty"],
)
def test_bad_annotations_are_explained_in_one_sentence(capsys, snap, tmp_path, content, message):
    path = tmp_path / "damaged.json"
    path.write_text(content)
    given = ["--method", "cellulus", "--annotations", str(path), "-o", str(tmp_path / "m.onnx")]
    assert main(["train", str(snap), *given]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "m.onnx").exists()


def test_missing_annotations_and_another_method(capsys, snap, labels, tmp_path):
    output = ["-o", str(tmp_path / "m.onnx")]
    assert main(["train", str(snap), "--method", "cellulus", "--annotations", str(tmp_path / "no.tif"), *output]) == 1
    assert "no.tif" in capsys.readouterr().err
    assert main(["train", str(snap), "--annotations", str(labels), *output]) == 1
    assert "--annotations; leave it out, or add --method cellulus" in capsys.readouterr().err
