"""The proposed box holds one particle, whole and alone; a bad box is told, a good one is not."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneframe.acquisition import open_source
from oneframe.acquisition.recording import read_image
from oneframe.acquisition.simulated import SimulatedBeads, add_bead, bead_table
from oneframe.trainer.boxes import box_warnings, propose_box
from oneframe.trainer.crops import Box

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "lodestar"


def snapped(options: str) -> tuple[np.ndarray, np.ndarray]:
    """A frame of the simulated microscope and the true positions (N, 2)."""
    source = open_source("sim:beads?" + options)
    assert isinstance(source, SimulatedBeads)
    frame = source.read(5.0)
    assert frame is not None
    truth = source.truth()
    return frame.pixels, np.column_stack([truth.y_px, truth.x_px])


def scene(*beads: tuple[float, ...], shape: tuple[int, int] = (160, 200), seed: int = 0) -> np.ndarray:
    """Beads (y, x, photons, radius_um = 0.3) with Poisson noise on 30 photons, times 2 plus 100, uint16."""
    electrons = np.full(shape, 30.0)
    for y_px, x_px, photons, *radius_um in beads:
        add_bead(electrons, y_px, x_px, photons, bead_table(*(radius_um or [0.3]), 0.8, 0.53, 0.1))
    return np.rint(100 + 2 * np.random.default_rng(seed).poisson(electrons)).astype(np.uint16)


def uneven_light(shape: tuple[int, ...], counts: float) -> np.ndarray:
    rows, columns = np.indices(shape) / max(shape)
    return counts * np.exp(-((rows - 0.3) ** 2 + (columns - 0.6) ** 2) / 0.2)


def assert_one_bead(box: Box, position: np.ndarray) -> None:
    """The box is centred on a true bead and no other true bead is in it."""
    centre = np.array([box.y_px + (box.height_px - 1) / 2, box.x_px + (box.width_px - 1) / 2])
    assert np.hypot(*(position - centre).T).min() < 1.5
    inside = np.abs(position - centre) <= [box.height_px / 2, box.width_px / 2]
    assert inside.all(axis=1).sum() == 1


KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda a: a,
    "dark": lambda a: 20000 - a,
    "uneven light": lambda a: (a + uneven_light(a.shape, 400)).astype(np.uint16),
    "float32": lambda a: (a / 7 - 30).astype(np.float32),
    "uint8": lambda a: np.clip((a - 100.0) / 4, 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_proposed_box_holds_one_true_bead(kind, seed):
    pixels, position = snapped(f"seed={seed}&n=14&width=320&height=256")
    pixels = KINDS[kind](pixels)
    box = propose_box(pixels)
    assert_one_bead(box, position)
    assert box_warnings(pixels, box) == ()


@pytest.mark.parametrize(
    ("options", "diameter_px"),
    [
        ("radius_um=0.05&photons=2000&n=10&width=256&height=256", 6),
        ("radius_um=1.2&photons=60000&n=12&separation_px=40&width=360&height=360", 28),
        ("radius_um=3&photons=300000&n=5&separation_px=100&width=440&height=440", 66),
        ("n=60&width=320&height=320", 9),
        ("photons=1200&n=14&width=320&height=320", 9),
        ("n=1&seed=4&width=320&height=320", 9),
    ],
)
def test_beads_of_any_size_number_and_brightness_are_boxed_with_a_rim(options, diameter_px):
    pixels, position = snapped(options)
    box = propose_box(pixels)
    assert_one_bead(box, position)
    assert 1.4 * diameter_px < box.side_px < 2.3 * diameter_px
    assert box_warnings(pixels, box) == ()


def test_a_mirrored_frame_gives_a_box_as_good():
    pixels, position = snapped("seed=3&n=30&width=300&height=220")
    for sign_y in (1, -1):
        for sign_x in (1, -1):
            seen = np.column_stack(
                [
                    position[:, 0] if sign_y == 1 else len(pixels) - 1 - position[:, 0],
                    position[:, 1] if sign_x == 1 else pixels.shape[1] - 1 - position[:, 1],
                ]
            )
            assert_one_bead(propose_box(np.ascontiguousarray(pixels[::sign_y, ::sign_x])), seen)


def test_one_alone_is_preferred_to_touching_ones():
    pairs = [(30, 30, 5000), (30, 38, 5000), (120, 40, 5000), (127, 44, 5000), (40, 150, 5000), (48, 150, 5000)]
    pixels = scene(*pairs, (110, 140, 5000))
    assert_one_bead(propose_box(pixels), np.array([[110, 140]]))


def test_a_typical_one_is_preferred_to_the_brightest_and_to_the_largest():
    typical = [(30, 30, 5000), (120, 40, 5000), (40, 150, 5000), (130, 100, 5000), (80, 70, 5000)]
    pixels = scene(*typical, (110, 150, 40000), (75, 110, 60000, 1.0))
    assert_one_bead(propose_box(pixels), np.array([bead[:2] for bead in typical]))


def test_one_that_is_not_saturated_is_preferred():
    pixels = scene((40, 40, 7000), (40, 150, 7000), (120, 40, 4500), (120, 150, 7000))
    pixels = np.minimum(pixels, int(pixels[30:50, 30:50].max() * 0.7)).astype(np.uint16)
    assert_one_bead(propose_box(pixels), np.array([[120, 40]]))


def test_a_line_and_the_frame_edge_are_no_particles():
    pixels = scene((3, 60, 5000), (100, 198, 5000), (60, 150, 5000))
    pixels[100:104] += 300
    assert_one_bead(propose_box(pixels), np.array([[60, 150]]))


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((100, 120), 7, np.uint8),
        np.zeros((64, 64), np.float32),
        np.random.default_rng(0).normal(500, 20, (300, 300)).astype(np.uint16),
        np.random.default_rng(1).normal(0, 1e-3, (300, 300)).astype(np.float32),
        np.random.default_rng(2).poisson(3, (300, 300)).astype(np.uint8),
        (np.random.default_rng(3).normal(500, 20, (300, 300)) + uneven_light((300, 300), 4000)).astype(np.uint16),
        np.full((6, 6), 3, np.uint16),
    ],
    ids=["constant", "zeros", "noise", "small noise", "shot noise", "uneven light", "tiny"],
)
def test_a_frame_without_particles_is_refused(pixels):
    with pytest.raises(ValueError, match=r"expected a particle .* found none in this frame; box one by hand"):
        propose_box(pixels)


def test_a_frame_where_none_stands_alone_is_refused():
    rows, columns = np.indices((160, 160))
    honeycomb = scene(*((y, x, 5000) for y in range(4, 160, 9) for x in range(4, 160, 9)), shape=(160, 160))
    with pytest.raises(ValueError, match="alone, found none"):
        propose_box((honeycomb + rows + columns).astype(np.uint16))


LONE = (60, 80, 5000)
GOOD = Box(70, 50, 21, 21)


def clipped(limit: int) -> np.ndarray:
    return np.minimum(scene(LONE), limit).astype(np.uint16)


def eight_bit() -> np.ndarray:
    return np.clip((scene(LONE) - 100.0) * 0.8, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class BadBox:
    """A box and how its one warning begins, and the figures that must be in it."""

    name: str
    pixels: np.ndarray
    box: Box
    warning: str


BAD = [
    BadBox("12-bit camera in a 16-bit file", clipped(330), GOOD, r"saturated: \d+% .* highest .*\(330\)"),
    BadBox("8 bits full", eight_bit(), GOOD, r"saturated: \d+% .* highest .*\(255\)"),
    BadBox("floats with a flat top", clipped(330).astype(np.float32) / 10, GOOD, r"saturated: \d+% .*\(33\)"),
    BadBox("8 bits empty", 255 - eight_bit(), GOOD, r"saturated: \d+% .* lowest .*\(0\)"),
    BadBox("a neighbour reaches in", scene(LONE, (60, 91, 5000)), GOOD, r"touching: .* (right side|area)"),
    BadBox("two in the box", scene(LONE, (60, 94, 5000)), Box(65, 40, 40, 40), r"touching: other objects .*\d+%"),
    BadBox("off centre", scene(LONE), Box(78, 50, 21, 21), r"touching: .* left side .*\d+%"),
    BadBox(
        "half of a pair", scene((60, 80, 90000, 1.2), (60, 104, 90000, 1.2)), Box(62, 42, 32, 37), r"touching: .*right"
    ),
    BadBox("at the frame's edge", scene((60, 2, 5000)), Box(0, 50, 20, 20), r"cut off: .* left edge"),
    BadBox("beside the frame's edge", scene((60, 2, 5000)), Box(1, 50, 20, 20), r"cut off: .* left edge"),
    BadBox("in the corner", scene((1, 198, 5000)), Box(185, 0, 15, 15), r"cut off: .* upper and right edge"),
    BadBox("no rim", scene(LONE), Box(77, 57, 7, 7), r"too tight: .*\d+% of the box's rim"),
    BadBox("inside a large one", scene((60, 80, 200000, 2.0)), Box(66, 46, 29, 29), r"too tight: .*\d+%"),
    BadBox("no rim on two sides", scene((60, 80, 90000, 1.2)), Box(69, 40, 23, 41), r"too tight: .*\d+%"),
    BadBox("hardly seen", scene((60, 80, 500)), GOOD, r"faint: .* \d\.\d times the noise"),
    BadBox("empty", scene(LONE), Box(130, 100, 21, 21), r"faint: nothing in the box"),
]


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_a_bad_box_is_told_in_one_sentence(case):
    (sentence,) = box_warnings(case.pixels, case.box)
    assert sentence
    with pytest.raises(AssertionError, match=f"^{case.warning}"):
        raise AssertionError(sentence)


@pytest.mark.parametrize("side", [17, 24, 32, 60])
@pytest.mark.parametrize("kind", KINDS)
def test_a_good_box_gives_no_warning_whatever_its_size(kind, side):
    pixels = KINDS[kind](scene(LONE, (120, 150, 5000)))
    assert box_warnings(pixels, Box(80 - side // 2, 60 - side // 2, side, side)) == ()


def test_a_single_brightest_pixel_is_not_saturation():
    pixels = eight_bit() // 2
    pixels[60, 80] = 255
    assert box_warnings(pixels, GOOD) == ()


def test_a_box_outside_the_frame_is_refused():
    with pytest.raises(ValueError, match="must lie within the frame"):
        box_warnings(scene(LONE), Box(190, 50, 21, 21))


def real(name: str) -> np.ndarray:
    """A real frame, or skip."""
    path = next(DATA.glob(f"*/{name}"), None) if DATA.exists() else None
    if path is None:
        pytest.skip(f"{name} is not beside the checkout")
    if path.suffix == ".tif":
        pytest.importorskip("imagecodecs")
    if not name.startswith("bulk_water"):
        return read_image(path).pixels
    import cv2

    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).mean(-1).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "least_px", "most_px"),
    [
        ("bf_0000.png", 28, 48),
        ("bulk_water_000.png", 9, 18),
        ("bulk_water_200.png", 9, 18),
        ("Fluo-C2DL-Huh7_t000.tif", 60, 140),
        ("PhC-C2DL-PSC_t000.tif", 15, 50),
        ("BF-C2DL-HSC_t0251.tif", 12, 45),
    ],
)
def test_real_frames_give_a_box_of_the_right_size(name, least_px, most_px):
    pixels = real(name)
    box = propose_box(pixels)
    assert least_px <= box.side_px <= most_px
    assert box_warnings(pixels, box) == ()


@pytest.mark.parametrize("well", ["A02_s1", "A06_s6", "A09_s1", "A15_s5", "A16_s2", "A16_s3", "A18_s1"])
def test_the_box_on_real_nuclei_holds_one_nucleus_of_the_masks(well):
    import cv2
    from scipy import ndimage

    image_path = next((DATA / "bbbc").glob(f"IXMtest_{well}_*.tif"), None)
    if image_path is None:
        pytest.skip("no real nuclei beside the checkout")
    mask = cv2.imdecode(np.fromfile(str(image_path)[:-4] + "_mask.png", np.uint8), cv2.IMREAD_UNCHANGED)[..., 2]
    box = propose_box(read_image(image_path).pixels)
    n_whole = 0
    for value in range(1, int(mask.max()) + 1):  # touching nuclei differ in value
        labels: Any = ndimage.label(mask == value)[0]
        inside = np.bincount(box.cut(labels).ravel(), minlength=labels.max() + 1)[1:]
        area = np.bincount(labels.ravel())[1:]
        n_whole += int(((inside == area) & (area >= 30)).sum())
        assert not ((inside > 20) & (inside < area)).any(), "a part of another nucleus is in the box"
    assert n_whole == 1


@pytest.mark.parametrize(
    ("name", "box"),
    [("BF-C2DL-HSC_t0251.tif", Box(80, 538, 40, 40)), ("Fluo-C2DL-Huh7_t000.tif", Box(482, 228, 76, 76))],
)
def test_the_crops_of_the_lodestar_paper_give_no_warning(name, box):
    assert box_warnings(real(name), box) == ()
