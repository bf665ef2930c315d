"""Annotations as a person makes them: label images, polygons, clicks, and everything that can be wrong with them."""

import json

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from oneframe.trainer.annotations import AnnotationError, Annotations, read_annotations, write_annotations

SHAPE = (30, 40)
SQUARE = [[4.5, 5.5], [4.5, 12.5], [10.5, 12.5], [10.5, 5.5]]


@pytest.fixture
def saved(tmp_path):
    """Write content under the format's name and return the path."""

    def write(cells=(), background=(), **changed):
        path = tmp_path / "cells.json"
        content = {"format": "oneframe annotations", "format_version": 1, "shape": list(SHAPE)}
        path.write_text(json.dumps(content | {"cells": cells, "background": background} | changed))
        return path

    return write


def test_polygons_and_clicks(saved):
    read = read_annotations(
        saved(
            [{"polygon": SQUARE}, {"click": [20, 30.25]}],
            [{"polygon": [[0, 0], [0, 39], [7, 39], [7, 0]]}, {"click": [29, 39]}],
        ),
        SHAPE,
    )
    expected = np.zeros(SHAPE, np.int32)
    expected[:7, :39] = -1
    expected[5:11, 6:13] = 1  # a cell goes before background
    assert np.array_equal(read.labels, expected)
    assert read.cell_clicks.tolist() == [[20, 30.25]]
    assert read.background_clicks.tolist() == [[29, 39]]
    assert read.n_cells == 2


def test_what_lies_beyond_the_image_is_cut_off_and_a_line_of_pixels_may_be_shared(saved):
    over = [[-9, -9], [-9, 3.5], [4.5, 3.5], [4.5, -9]]
    neighbour = [[y, x + 6.2] for y, x in SQUARE]
    read = read_annotations(saved([{"polygon": over}, {"polygon": SQUARE}, {"polygon": neighbour}]), SHAPE)
    assert (read.labels[:5, :4] == 1).all()
    assert (read.labels == 1).sum() == 20
    assert (read.labels == 2).sum() == 42  # the first keeps what both have
    assert (read.labels == 3).sum() == 36


def test_clicks_name_the_pseudo_cells_under_them(saved):
    pseudo = np.zeros(SHAPE, np.int32)
    pseudo[2:9, 2:9], pseudo[2:9, 20:30], pseudo[20:28, 20:30], pseudo[20:28, 2:9] = 7, 8, 9, 10
    read = read_annotations(
        saved(
            [{"polygon": [[1, 1], [1, 10], [10, 10], [10, 1]]}, {"click": [4, 24.6]}, {"click": [6, 22]}],
            [{"click": [22, 25]}, {"click": [15, 35]}],
        ),
        SHAPE,
    )
    labels = read.on(pseudo)
    assert (labels[2:9, 2:9] == 1).all()
    assert (labels[pseudo == 8] == 2).all()  # clicked twice, one cell
    assert (labels[pseudo == 9] == -1).all()
    assert (labels[pseudo == 10] == 0).all()
    assert labels[15, 35] == -1
    assert labels.max() == 2


def test_clicks_that_cannot_be_followed(saved):
    pseudo = np.zeros(SHAPE, np.int32)
    pseudo[2:9, 2:9] = 7
    missed = read_annotations(saved([{"click": [20, 20]}]), SHAPE)
    with pytest.raises(AnnotationError, match=r"\(20, 20\) hits no cell; draw"):
        missed.on(pseudo)
    both = read_annotations(saved([{"click": [4, 4]}], [{"click": [5, 5]}]), SHAPE)
    with pytest.raises(AnnotationError, match="remove one of the two"):
        both.on(pseudo)
    with pytest.raises(AnnotationError, match="expected pseudo labels of 30 x 40"):
        both.on(pseudo[1:])


@pytest.mark.parametrize(
    ("dtype", "background"), [(np.uint8, 255), (np.uint16, 65535), (np.int16, -1), (np.int32, -1)], ids=str
)
def test_label_images(tmp_path, dtype, background):
    image = np.zeros(SHAPE, dtype)
    image[3:9, 3:9], image[3:9, 9:14], image[20:25, 20:25], image[0] = 1, 40, 1, background
    path = tmp_path / "labels.tif"
    tifffile.imwrite(path, image)
    read = read_annotations(path, SHAPE)
    assert (read.labels[0] == -1).all()
    assert read.n_cells == 3  # two of one value do not touch
    assert len({read.labels[5, 5], read.labels[5, 10], read.labels[22, 22]}) == 3
    assert (read.labels[3:9, 3:9] == read.labels[5, 5]).all()
    if np.dtype(dtype).kind == "u":
        picture = tmp_path / "labels.png"
        picture.write_bytes(cv2.imencode(".png", image)[1].tobytes())
        assert np.array_equal(read_annotations(picture, SHAPE).labels, read.labels)


@settings(max_examples=60)
@given(arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(-1, 3)))
def test_written_annotations_come_back(tmp_path_factory, labels):
    """Any pixels at all: parts, holes, corners that touch."""
    path = tmp_path_factory.mktemp("written") / "a.json"
    clicks = np.array([[0, 0.25]], np.float32)
    write_annotations(path, Annotations(labels, clicks, clicks))
    read = read_annotations(path, labels.shape)
    cells = np.unique(labels[labels > 0])
    expected = np.where(labels > 0, np.searchsorted(cells, labels) + 1, labels)
    assert np.array_equal(read.labels, expected)
    assert np.array_equal(read.cell_clicks, clicks)
    assert np.array_equal(read.background_clicks, clicks)


BAD = {
    "outside": ([{"polygon": [[50, 50], [50, 60], [60, 60]]}], "outside the image of 30 x 40"),
    "two points": ([{"polygon": [[5, 5], [9, 9], [5, 5]]}], "cells entry 1: expected a polygon of 3 or more"),
    "a line": ([{"polygon": [[5, 5], [9, 9], [7, 7]]}], "encloses no pixel"),
    "twice": ([{"polygon": SQUARE}, {"polygon": SQUARE}], "entry 2 and drawn cell 1 share 42 pixels"),
    "a key": ([{"polygon": SQUARE, "name": "a"}], "cells entry 1: expected"),
    "words": ([{"click": ["a", "b"]}], "two finite numbers"),
    "three numbers": ([{"click": [1, 2, 3]}], "two finite numbers"),
    "not a list": ([{"polygon": {}}], "two finite numbers"),
    "click outside": ([{"click": [35, 10]}], "a click lies at .* outside"),
    "nothing": ([], "there is no annotation in it"),
}


@pytest.mark.parametrize(("cells", "text"), BAD.values(), ids=BAD.keys())
def test_bad_cells_are_explained(saved, cells, text):
    with pytest.raises(AnnotationError, match=rf"^cells\.json: .*{text}"):
        read_annotations(saved(cells), SHAPE)


def test_bad_files_are_explained(saved, tmp_path):
    good = [{"polygon": SQUARE}]
    for changed, text in (
        ({"format": "geojson"}, "another kind of file"),
        ({"format_version": 2}, "expected format_version 1, got 2"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"shape": [40, 30]}, "the annotated image has 40 x 30 px"),
        ({"shape": 7}, "the annotated image has"),
        ({"cells": 5}, "expected a list of cells"),
    ):
        with pytest.raises(AnnotationError, match=text):
            read_annotations(saved(**({"cells": good} | changed)), SHAPE)
    path = tmp_path / "a.json"
    path.write_text("{")
    with pytest.raises(AnnotationError, match="it is no JSON"):
        read_annotations(path, SHAPE)
    with pytest.raises(AnnotationError, match="expected a file that ends with"):
        read_annotations(tmp_path / "a.csv", SHAPE)
    with pytest.raises(FileNotFoundError):
        read_annotations(tmp_path / "none.json", SHAPE)


def test_bad_label_images_are_explained(tmp_path):
    path = tmp_path / "labels.tif"
    white = np.zeros(SHAPE, np.uint8)
    white[3:9, 3:9] = 255
    for image, text in (
        (white, "has the value 255, which means background"),
        (np.zeros(SHAPE, np.uint16), "there is no annotation"),
        (np.ones(SHAPE, np.float32), "expected a label image"),
        (np.ones((40, 30), np.uint8), "the annotated image has 40 x 30 px"),
        (np.full(SHAPE, -5, np.int16), "got -5"),
    ):
        tifffile.imwrite(path, image)
        with pytest.raises(AnnotationError, match=text):
            read_annotations(path, SHAPE)
    path.write_bytes(b"no picture")
    with pytest.raises(AnnotationError, match="cannot be read as TIFF"):
        read_annotations(path, SHAPE)
    picture = tmp_path / "labels.png"
    picture.write_bytes(b"no picture")
    with pytest.raises(AnnotationError, match="no picture in it"):
        read_annotations(picture, SHAPE)


def test_the_record_checks_itself():
    with pytest.raises(AnnotationError, match="int64"):
        Annotations(np.zeros(SHAPE, np.int64))
    with pytest.raises(AnnotationError, match="from -2"):
        Annotations(np.full(SHAPE, -2, np.int32))
    with pytest.raises(AnnotationError, match="cell_clicks"):
        Annotations(np.zeros(SHAPE, np.int32), np.zeros(2, np.float32))
