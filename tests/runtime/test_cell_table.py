import numpy as np
import pytest

from oneframe.runtime.cell_table import cell_table

Y, X = np.mgrid[:60, :80]


def ellipse(y: float, x: float, major: float, minor: float, angle: float) -> np.ndarray:
    along = (X - x) * np.cos(angle) + (Y - y) * np.sin(angle)
    across = (Y - y) * np.cos(angle) - (X - x) * np.sin(angle)
    return (2 * along / major) ** 2 + (2 * across / minor) ** 2 < 1


def test_an_ellipse_is_measured_as_what_it_is():
    labels = np.zeros(Y.shape, np.int32)
    labels[ellipse(30.25, 40.5, 40, 20, 0.6)] = 1
    image = np.where(labels > 0, 500, 100).astype(np.uint16)
    found = cell_table(labels, image, np.array([0.9], np.float32))
    assert (found.y_px[0], found.x_px[0]) == pytest.approx((30.25, 40.5), abs=0.2)
    assert found.major_axis_px[0] == pytest.approx(40, abs=0.5)
    assert found.minor_axis_px[0] == pytest.approx(20, abs=0.5)
    assert found.orientation_rad[0] == pytest.approx(0.6, abs=0.02)
    assert found.area_px[0] == pytest.approx(np.pi * 40 * 20 / 4, rel=0.02)
    assert found.mean_intensity[0] == 500


def test_rows_follow_the_labels():
    labels = np.zeros(Y.shape, np.int32)
    labels[5:8, 10:13] = 2
    labels[40:44, 60:62] = 1
    found = cell_table(labels, np.full(labels.shape, 7.0), np.ones(2, np.float32))
    assert found.y_px.tolist() == [41.5, 6.0]
    assert found.area_px.tolist() == [8, 9]


def test_an_image_without_cells_gives_no_rows():
    found = cell_table(np.zeros((9, 9), np.int32), np.zeros((9, 9)), np.empty(0, np.float32))
    assert len(found) == 0
    assert found.labels is not None


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match=r"expected labels 1 .. 3 of an image"):
        cell_table(np.zeros((9, 9), np.int32), np.zeros((9, 9)), np.ones(3, np.float32))
