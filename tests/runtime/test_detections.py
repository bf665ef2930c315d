"""The tables that cross the seams check themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneframe.runtime.account import Account
from oneframe.runtime.detections import COLUMNS, Detections, Tracks


def column(*values: float):
    return np.array(values, np.float32)


def table(n: int, **more) -> Detections:
    rows = np.arange(n, dtype=np.float32)
    return Detections(y_px=rows, x_px=rows + 100, score=rows / max(n, 1), **more)


def test_columns_are_those_present_in_the_order_of_the_class():
    detections = table(2, area_px=column(3, 4), z_um=column(1, 2))
    assert list(detections.columns()) == ["y_px", "x_px", "score", "z_um", "area_px"]
    assert len(detections) == 2


def test_column_names_are_all_fields_that_hold_rows():
    assert COLUMNS[:3] == ("y_px", "x_px", "score")
    assert "labels" not in COLUMNS
    assert len(COLUMNS) == 17
    assert not {"field", "notes"} & set(COLUMNS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros(2), r"column z_um must be float32 of shape \(2,\), got float64"),
        (np.zeros(3, np.float32), r"column z_um must be float32 of shape \(2,\), got float32 of shape \(3,\)"),
        (np.zeros((2, 1), np.float32), r"column z_um must be float32 .* of shape \(2, 1\)"),
    ],
)
def test_a_column_unlike_the_others_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        table(2, z_um=wrong)


def test_the_first_column_is_checked_too():
    two_d = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match="column y_px must be float32"):
        Detections(two_d, two_d, two_d)


@pytest.mark.parametrize("labels", [np.zeros((4, 4), np.int64), np.zeros(4, np.int32)])
def test_labels_must_be_an_int32_image(labels):
    with pytest.raises(ValueError, match=r"labels must be \(H, W\) int32"):
        table(1, labels=labels)


@given(keep=st.lists(st.booleans(), min_size=6, max_size=6))
def test_rows_takes_the_same_rows_of_every_column(keep):
    mask = np.array(keep)
    kept = table(6, photons=column(*range(10, 16))).rows(mask)
    assert kept.y_px.tolist() == np.flatnonzero(mask).tolist()
    assert kept.photons.tolist() == (np.flatnonzero(mask) + 10).tolist()
    assert kept.z_um is None


def test_rows_by_index_can_reorder_and_leaves_the_labels():
    labels = np.eye(3, dtype=np.int32)
    kept = table(3, labels=labels).rows(np.array([2, 0]))
    assert kept.x_px.tolist() == [102, 100]
    assert kept.labels is labels


def test_none_has_the_columns_asked_for():
    empty = Detections.none(("y_px", "x_px", "score", "photons"))
    assert len(empty) == 0
    assert list(empty.columns()) == ["y_px", "x_px", "score", "photons"]


def test_tracks_need_one_int64_number_per_row():
    assert len(Tracks(table(2), np.array([5, 6]))) == 2
    with pytest.raises(ValueError, match=r"track_id must be int64 of shape \(2,\), got int64 of shape \(3,\)"):
        Tracks(table(2), np.arange(3))
    with pytest.raises(ValueError, match="got int32"):
        Tracks(table(2), np.arange(2, dtype=np.int32))
    assert Tracks(table(2), np.array([5, 6])).parent_id is None
    with pytest.raises(ValueError, match=r"parent_id must be int64 of shape \(2,\)"):
        Tracks(table(2), np.array([5, 6]), np.zeros(3, np.int64))


def test_tables_cannot_be_changed():
    with pytest.raises(AttributeError, match="cannot assign to field"):
        table(1).y_px = column(2)


def test_an_account_that_does_not_add_up_is_refused():
    with pytest.raises(ValueError, match=r"seen 10 != analysed 7 \+ skipped 2 \+ failed 0"):
        Account(seen=10, analysed=7, skipped=2, failed=0, lost_before=0)


def test_an_account_keeps_lost_frames_apart_from_those_seen():
    account = Account(seen=10, analysed=7, skipped=2, failed=1, lost_before=4, reasons={"slow": 2})
    assert account.to_dict() == {
        "seen": 10,
        "analysed": 7,
        "skipped": 2,
        "failed": 1,
        "lost_before": 4,
        "before_start": 0,
        "reasons": {"slow": 2},
        "gaps_of_unknown_length": 0,
    }
