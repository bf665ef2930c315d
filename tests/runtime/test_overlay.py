import cv2
import numpy as np
import pytest

from oneframe.runtime.detections import Detections, Tracks
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


def test_labels_are_outlined():
    labels = np.zeros((160, 240), np.int32)
    labels[40:80, 50:100], labels[40:80, 100:130] = 1, 2
    rgb = draw_overlay(noise(), found([60], [75], labels=labels), diameter_px=12)
    k = magnification((160, 240), 12)
    rim = is_colour(rgb, RING_RGB)
    for inside in ((40, 60), (79, 60), (60, 50), (60, 99), (60, 100), (60, 129)):
        assert rim[k * inside[0] : k * inside[0] + k, k * inside[1] : k * inside[1] + k].any(), inside
    assert not rim[k * 45 : k * 75, k * 55 : k * 95].any()
    assert not rim[: k * 40].any()


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
