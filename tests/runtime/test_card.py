"""The model card survives its trip through the model file and refuses what it cannot mean."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneframe.runtime.card import FORMAT_VERSION, ModelCard

NEEDED = {
    "method": "lodestar",
    "input_dtype": "uint16",
    "n_channels": 1,
    "columns": ("y_px", "x_px", "score"),
    "threshold": 0.5,
    "object_diameter_px": 12.0,
}


def card(**changes) -> ModelCard:
    return ModelCard(**{**NEEDED, **changes})


def text_of(**changes) -> str:
    return json.dumps({**json.loads(card().to_json()), **changes})


def test_a_full_card_comes_back_equal():
    full = card(
        columns=("y_px", "x_px", "score", "z_um", "polarizability_um3"),
        normalisation={"offset": 100.0, "scale": 12.5},
        pixel_size_um=0.115,
        optics={"wavelength_um": 0.633, "medium_index": 1.33},
        trained_ranges={"z_um": (-5.0, 5.0), "angle_rad": (0.0, 6.28)},
        crop={"file": "snap.tif", "box_xywh_px": [10, 20, 30, 40]},
        settings={"seed": 7, "steps": 500},
        quality={"rmse_px": 0.08},
        speed={"p50_ms": 11.0},
        versions={"oneframe": "0.1.0"},
        created="2026-01-02T03:04:05+00:00",
    )
    assert ModelCard.from_json(full.to_json()) == full


@given(
    threshold=st.floats(0, 1),
    diameter_px=st.floats(1e-3, 1e4),
    ranges=st.dictionaries(st.text(), st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))),
    method=st.text(),
)
def test_any_card_comes_back_equal(threshold, diameter_px, ranges, method):
    it = card(threshold=threshold, object_diameter_px=diameter_px, trained_ranges=ranges, method=method)
    assert ModelCard.from_json(it.to_json()) == it


def test_the_text_is_plain_json_that_any_language_reads():
    text = card().to_json()
    assert json.loads(text)["columns"] == ["y_px", "x_px", "score"]
    assert json.loads(text)["format_version"] == FORMAT_VERSION


def test_a_number_that_json_does_not_know_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        card(quality={"rmse_px": float("nan")}).to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": ("y_px", "x_px")}, "columns must hold y_px, x_px, score"),
        ({"columns": ("y_px", "x_px", "score", "colour")}, "colour"),
        ({"threshold": 1.5}, "threshold must be a score from 0 to 1, got 1.5"),
        ({"threshold": float("nan")}, "threshold must be a score from 0 to 1, got nan"),
        ({"n_channels": 0}, "n_channels must be a whole number of 1 or more, got 0"),
        ({"object_diameter_px": 0.0}, "object_diameter_px must be above 0, got 0"),
        ({"object_diameter_px": float("inf")}, "object_diameter_px must be above 0, got inf"),
    ],
)
def test_fields_that_contradict_the_format_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        card(**changes)


@pytest.mark.parametrize("text", ["", "no json", "[]", "7", "null", "{}", '{"format_version": "one"}'])
def test_what_is_no_card_is_refused(text):
    with pytest.raises(ValueError, match="expected a oneframe model card"):
        ModelCard.from_json(text)


def test_a_newer_card_asks_for_a_newer_oneframe():
    with pytest.raises(ValueError, match="update oneframe"):
        ModelCard.from_json(text_of(format_version=FORMAT_VERSION + 1))


def test_an_older_card_asks_for_a_new_export():
    with pytest.raises(ValueError, match="train or export the model again"):
        ModelCard.from_json(text_of(format_version=FORMAT_VERSION - 1))


@pytest.mark.parametrize("missing", sorted(NEEDED))
def test_a_missing_field_is_named(missing):
    values = json.loads(card().to_json())
    del values[missing]
    with pytest.raises(ValueError, match=f"damaged: {missing} missing"):
        ModelCard.from_json(json.dumps(values))


def test_an_unknown_field_is_named():
    with pytest.raises(ValueError, match="damaged: colour missing or unknown"):
        ModelCard.from_json(text_of(colour="blue"))
