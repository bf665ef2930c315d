import cv2
import numpy as np
import pytest

from oneframe.acquisition import open_source
from oneframe.runtime.detections import Detections, Tracks
from oneframe.runtime.outline import rims
from oneframe.runtime.overlay import RING_RGB, TAIL_RGB, draw_overlay, magnification, write_png


def found(y_px, x_px, **more) -> Detections:
    y, x = np.asarray(y_px, np.float32), np.asarray(x_px, np.float32)
    return Detections(y, x, np.ones(len(y), np.float32), **more)


def noise(shape=(160, 240)) -> np.ndarray:
    return np.random.default_rng(0).normal(400, 20, shape).astype(np.uint16)


def centre_of(mask) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0)


def is_colour(rgb, colour) -> np.ndarray:
    return (np.abs(rgb.astype(int) - np.array(colour)) < 60).all(axis=2)


@pytest.mark.parametrize(("y_px", "x_px"), [(80.0, 120.0), (80.5, 120.25), (33.3, 200.7)])
def test_a_ring_lies_round_its_position_to_a_tenth_of_a_pixel(y_px, x_px):
    rgb = draw_overlay(np.zeros((160, 240), np.uint8), found([y_px], [x_px]), diameter_px=20)
    k = magnification((160, 240), 20)
    weight = rgb[:, :, 0].astype(float)  # red: the ring on black
    ys, xs = np.indices(weight.shape)
    centre = np.array([(ys * weight).sum(), (xs * weight).sum()]) / weight.sum()
    np.testing.assert_allclose((centre - (k - 1) / 2) / k, [y_px, x_px], atol=0.1)
    radius = np.hypot(*(np.argwhere(weight > 128) - centre).T)
    assert radius.mean() / k == pytest.approx(10, abs=0.1)
    np.testing.assert_allclose(radius / k, 10, atol=2.5 / k)  # a line of 2 px, anti-aliased


def test_small_images_are_enlarged_and_large_ones_are_not():
    assert draw_overlay(noise((64, 80)), found([], []), diameter_px=12).shape == (64 * 8, 80 * 8, 3)
    assert draw_overlay(noise((1000, 900)), found([], []), diameter_px=20).shape == (1000, 900, 3)
    assert magnification((5000, 5000), 3.0) == 1


def test_contrast_is_stretched_without_saturating():
    rgb = draw_overlay(noise((700, 700)), found([], []), diameter_px=20)
    assert rgb.dtype == np.uint8
    assert 90 < np.median(rgb) < 165
    assert (rgb == 255).mean() < 0.01
    assert (rgb == 0).mean() < 0.01


def test_given_levels_are_black_and_white():
    ramp = np.tile(np.arange(700, dtype=np.float32), (700, 1))
    grey = draw_overlay(ramp, found([], []), diameter_px=20, levels=(100, 610))[0, :, 0]
    assert (grey[100], grey[355], grey[610], grey[699]) == (0, 127, 255, 255)


def test_tracks_and_tails_are_drawn():
    tracks = Tracks(found([100], [150]), np.array([3]))
    rgb = draw_overlay(noise(), tracks, diameter_px=12, tails=[np.array([[20.0, 30.0], [20.0, 90.0], [np.nan, 1.0]])])
    k = magnification((160, 240), 12)
    np.testing.assert_allclose(centre_of(is_colour(rgb, TAIL_RGB)) / k, [20.3, 60.3], atol=1.0)
    np.testing.assert_allclose(centre_of(is_colour(rgb, RING_RGB)) / k, [100.3, 150.3], atol=1.0)


def colours_along(rgb, labels, label, k) -> set[tuple[int, ...]]:
    """Return the colours in the enlarged border pixels of a cell; grey is the picture."""
    rim = rims(np.where(labels == label, 1, 0)).repeat(k, axis=0).repeat(k, axis=1)
    inside = rgb[rim]
    return {tuple(colour) for colour in inside[np.ptp(inside, axis=1) > 0].tolist()}


def test_touching_cells_are_outlined_apart_and_nothing_else_is_coloured():
    labels = np.zeros((160, 240), np.int32)
    labels[40:80, 50:100], labels[40:80, 100:130] = 1, 2
    rgb = draw_overlay(noise(), found([60], [75], labels=labels), diameter_px=12)
    k = magnification((160, 240), 12)
    coloured = np.ptp(rgb, axis=2) > 0
    for inside in ((40, 60), (79, 60), (60, 50), (60, 99), (60, 100), (60, 129)):
        assert coloured[k * inside[0] : k * inside[0] + k, k * inside[1] : k * inside[1] + k].any(), inside
    np.testing.assert_array_equal(
        coloured.reshape(160, k, 240, k).any(axis=(1, 3)), rims(labels)
    )  # in border pixels, and in all
    assert coloured[k * 60, k * 90 : k * 110].sum() == 4  # two lines of 2 px side by side
    (first,), (second,) = (colours_along(rgb, labels, label, k) for label in (1, 2))
    assert first != second


@pytest.mark.parametrize("tracked", [False, True])
def test_every_simulated_cell_has_one_colour_and_neighbours_another(tracked):
    source = open_source("sim:cells?seed=3&width=160&height=160&n=30")
    frame = source.read(5.0)
    truth = source.truth()
    detections = found(truth.y_px, truth.x_px, labels=truth.labels)
    rgb = draw_overlay(frame.pixels, Tracks(detections, truth.cell_id) if tracked else detections, diameter_px=36)
    k = magnification((160, 160), 36)
    colours = [colours_along(rgb, truth.labels, label, k) for label in range(1, len(detections) + 1)]
    assert [len(colour) for colour in colours] == [1] * len(detections)
    below, above = truth.labels[1:], truth.labels[:-1]
    met = (below != above) & (below > 0) & (above > 0)
    assert met.any()
    for a, b in zip(below[met].tolist(), above[met].tolist(), strict=True):
        assert colours[a - 1] != colours[b - 1]


def test_an_image_without_cells_stays_grey():
    rgb = draw_overlay(noise(), found([], [], labels=np.zeros((160, 240), np.int32)), diameter_px=12)
    assert (np.ptp(rgb, axis=2) == 0).all()


def test_channels_nan_and_positions_outside_do_no_harm():
    image = noise((3, 160, 240)).astype(np.float32)
    image[0, :5] = np.nan
    detections = found([np.nan, 1e9, -3, 10], [5, 5, 5, np.inf])
    assert draw_overlay(image, detections, diameter_px=12).shape == (160 * 3, 240 * 3, 3)


@pytest.mark.parametrize("text", ["12 particles, 0.108 µm", "x" * 500, ""])
def test_a_caption_adds_a_strip_that_fits(text):
    plain = draw_overlay(noise(), found([], []), diameter_px=12)
    rgb = draw_overlay(noise(), found([], []), diameter_px=12, caption=text)
    assert rgb.shape[0] > plain.shape[0]
    assert rgb.shape[1] == plain.shape[1]
    strip = rgb[plain.shape[0] :]
    assert (strip[:, -6:] == strip[0, -1]).all()
    assert (strip.max() > 100) == bool(text)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="expected an image"):
        draw_overlay(noise((2, 3, 4, 5)), found([], []), diameter_px=12)
    with pytest.raises(ValueError, match="diameter_px must be above 0"):
        draw_overlay(noise(), found([], []), diameter_px=float("nan"))
    with pytest.raises(ValueError, match="do not belong to an image"):
        draw_overlay(noise(), found([], [], labels=np.zeros((3, 3), np.int32)), diameter_px=12)
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
        write_png("never.png", noise())


def test_a_png_keeps_its_colours_under_any_name(tmp_path):
    rgb = draw_overlay(noise(), found([80], [120]), diameter_px=12)
    path = tmp_path / "Überlagerung µ.png"
    write_png(path, rgb)
    read = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(cv2.cvtColor(read, cv2.COLOR_BGR2RGB), rgb)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_png(tmp_path / "nowhere" / "a.png", rgb)
