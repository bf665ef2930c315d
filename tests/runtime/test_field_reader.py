"""Frames of every kind become fields with background 1, whatever the background is divided by."""

import json

import numpy as np
import pytest

from oneframe.acquisition import open_source
from oneframe.runtime.field_reader import BACKGROUNDS, KINDS, FieldReader, HologramSettings
from oneframe.runtime.optics import Optics

OPTICS = Optics(wavelength_um=0.633, medium_index=1.33, na=1.3, pixel_um=0.1)
SCENE = "sim:hologram?width=192&height=160&seed=3&z_um=2&diffusion=20&separation_um=4"
N_SETTLED = 75
"""Frames until the running median has forgotten the first ones."""


def settings(kind: str, carrier=None) -> HologramSettings:
    return HologramSettings(kind, OPTICS.with_pixel(0.2) if kind == "field" else OPTICS, carrier)


def source(options: str):
    return open_source(SCENE + options)


def pixels(options: str) -> np.ndarray:
    return source(options).read(5.0).pixels


def truth(kind: str, simulated) -> np.ndarray:
    """What a perfect reader gives at each second pixel of the camera: in-line holds |E|^2, not E."""
    field = simulated.field()
    return np.abs(field) ** 2 + 0j if kind == "in-line" else field


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_kind_and_background_gives_the_true_field(kind, background):
    flat = "&aberration=0&vignetting=0" if background == "none" else ""
    options = f"&kind={kind}{flat}&field_noise={0.004 if kind == 'field' else 0}"
    simulated = source(f"&n=2{options}")
    reference = pixels(f"&n=0{options}") if background == "reference" else None
    reader = FieldReader(settings(kind), reference=reference, background=background)
    for _ in range(N_SETTLED + 5 if background == "median" else 1):
        field = reader.read(simulated.read(5.0).pixels)
    assert field.dtype == np.complex64
    assert field.shape == ((160, 192) if kind == "in-line" else (80, 96))
    assert np.median(field.real) == pytest.approx(1, abs=0.003)
    assert np.median(field.imag) == pytest.approx(0, abs=0.003)
    error = (field[::2, ::2] if kind == "in-line" else field) - truth(kind, simulated)
    middle = np.abs(error[8:-8, 8:-8])  # a frame is periodic for a Fourier transform only
    assert np.median(middle) < 0.02
    assert np.sqrt(np.mean(middle**2)) < 0.03
    assert 0.001 < reader.noise < 0.02


def test_what_it_is_divided_by_is_chosen_from_the_reference():
    assert FieldReader(settings("off-axis")).background == "polynomial"
    assert FieldReader(settings("off-axis"), reference=pixels("&n=0")).background == "reference"


def test_the_median_needs_no_reference_once_settled():
    static = np.random.default_rng(1).normal(0, 0.1, (2, 80, 96))  # dust: no surface is fitted to that
    dust = 1 + static[0] + 1j * static[1]
    simulated = source("&kind=field&n=2")
    reader = FieldReader(settings("field"), background="median")
    noises = []
    for _ in range(N_SETTLED + 5):
        re, im = simulated.read(5.0).pixels
        dusty = (re + 1j * im) * dust
        field = reader.read(np.stack([dusty.real, dusty.imag]).astype(np.float32))
        noises.append(reader.noise)
    assert noises[0] > 0.08
    assert noises[-1] < 0.02
    assert np.sqrt(np.mean(np.abs(field - simulated.field()) ** 2)) < 0.03


def test_the_noise_is_that_of_the_field():
    reader = FieldReader(settings("field"), background="none")
    assert np.isnan(reader.noise)
    reader.read(pixels("&kind=field&n=1&field_noise=0.02"))
    assert reader.noise == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_odd_frames_and_another_region_are_read(kind):
    image = pixels(f"&kind={kind}&n=1")
    reader = FieldReader(settings(kind))
    for height, width in ((77, 95), (64, 64), (77, 95)):
        field = reader.read(image[..., :height, :width])
        cells = settings(kind).pixels_per_cell
        assert field.shape == (height // cells, width // cells)
        assert abs(np.median(field.real) - 1) < 0.01


def test_a_reader_that_starts_with_the_known_carrier_finds_the_same_field():
    image = pixels("&n=2")
    found = FieldReader(settings("off-axis"))
    first = found.read(image)
    assert found.settings.carrier_yx_per_um == pytest.approx((2.93, 2.93), abs=0.005)
    told = FieldReader(settings("off-axis", found.settings.carrier_yx_per_um))
    np.testing.assert_array_equal(told.read(image), first)


@pytest.mark.parametrize(
    ("reference", "background", "sentence"),
    [
        (None, "reference", "expected a reference frame with the background 'reference'.* got 'reference' and none"),
        (np.ones((64, 64)), "median", "got 'median' and one; give --reference"),
        (None, "mean", "expected a background among reference, median, polynomial, none, got 'mean'"),
    ],
)
def test_reference_and_background_go_together(reference, background, sentence):
    with pytest.raises(ValueError, match=sentence):
        FieldReader(settings("in-line"), reference=reference, background=background)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="expected a hologram kind among off-axis, in-line, field, got 'gabor'"):
        HologramSettings("gabor", OPTICS)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("off-axis", (2, 64, 64)),
        ("in-line", (64, 64, 3)),
        ("field", (64, 64)),
        ("field", (3, 64, 64)),
        ("in-line", (31, 64)),
    ],
)
def test_frames_with_wrong_planes_are_refused(kind, shape):
    wanted = r"Re and Im \(2, H, W\)" if kind == "field" else rf"one plane \(H, W\) of an {kind}"
    with pytest.raises(ValueError, match=rf"expected {wanted} hologram of 32 px or more, got shape .*snap a frame"):
        FieldReader(settings(kind)).read(np.random.default_rng(0).random(shape))


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_of_another_region_is_refused(kind):
    reader = FieldReader(settings(kind), reference=pixels(f"&kind={kind}&n=0"))
    with pytest.raises(ValueError, match=r"of the reference's shape .* got .*64\); snap a reference with the same"):
        reader.read(pixels(f"&kind={kind}&n=1")[..., :64, :64])


def test_a_camera_frame_without_fringes_is_refused():
    with pytest.raises(ValueError, match=r"expected an off-axis hologram, found no fringes"):
        FieldReader(settings("off-axis")).read(pixels("&kind=in-line&n=2"))


@pytest.mark.parametrize(
    ("pixel_um", "metadata", "sentence"),
    [
        (0.11, {}, "trained for pixel_um 0.1, the frames have 0.11: z and polarizability would be wrong; train"),
        (None, {"wavelength_um": 0.532}, "trained for wavelength_um 0.633, the frames have 0.532"),
        (None, {"medium_index": 1.0}, "trained for medium_index 1.33, the frames have 1"),
        (0.1, {"na": 1.2}, "trained for na 1.3, the frames have 1.2"),
        (0.1, {"kind": "in-line"}, "takes off-axis holograms, the frames are in-line; train on one of these"),
    ],
)
def test_frames_of_another_instrument_are_refused(pixel_um, metadata, sentence):
    with pytest.raises(ValueError, match=sentence):
        settings("off-axis").check_frame(pixel_um, metadata)


def test_frames_that_tell_nothing_or_the_same_are_taken():
    check = settings("off-axis").check_frame
    check(None, {})
    check(0.1005, {"wavelength_um": 0.6328, "kind": "off-axis"})
    check(0.1, {"wavelength_um": None, "kind": "camera", "na": "unknown"})
    frame = source("&n=1").read(5.0)
    check(frame.pixel_size_um, frame.metadata)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("carrier", [None, (2.93, -2.931234567)])
def test_settings_survive_the_card(kind, carrier):
    there = settings(kind, carrier)
    back = HologramSettings.from_card(json.loads(json.dumps(there.to_card())))
    assert back == there
    assert back.field_optics.pixel_um == pytest.approx(0.2 if kind != "in-line" else 0.1)


@pytest.mark.parametrize(
    "change", [{"kind": None}, {"optics": None}, {"optics": {"na": 1.3}}, {"carrier_yx_per_um": [1]}, None]
)
def test_damaged_settings_say_so(change):
    card = json.loads(json.dumps(settings("off-axis").to_card()))
    if change is None:
        del card["carrier_yx_per_um"]
    else:
        card |= change
    with pytest.raises(ValueError, match=r"damaged: .*export the model again|expected a hologram kind"):
        HologramSettings.from_card(card)


def test_notes_come_once():
    simulated = source("&n=1&full_well=37000")
    reader = FieldReader(settings("off-axis"))
    told = []
    for _ in range(60):
        image = simulated.read(5.0).pixels
        reader.read(image)
        told += reader.notes(image)
    assert len(told) == 1
    assert "% of the pixels are saturated" in told[0]


def test_a_carrier_that_is_not_the_frames_own_is_told():
    image = pixels("&n=1")
    reader = FieldReader(settings("off-axis", (2.95, 2.95)))
    reader.read(image)
    assert any(note.startswith("the carrier has moved by 0.02") for note in reader.notes(image))
    found = FieldReader(settings("off-axis"))
    found.read(image)
    assert found.notes(image) == []


@pytest.mark.parametrize("options", ["", "&vignetting=0.6", "&width=512&height=512"])
def test_saturation_is_not_taken_for_a_carrier_that_moved(options):
    reference, image = pixels(f"&n=0{options}"), pixels(f"&n=2{options}")
    full_scale = 4095
    bright = np.minimum(image * (full_scale / np.quantile(image, 0.65)), full_scale).astype(np.uint16)
    assert np.mean(bright == full_scale) > 0.34
    reader = FieldReader(settings("off-axis"), reference=reference)
    reader.read(bright)
    told = reader.notes(bright)
    assert len(told) == 1
    assert "35 % of the pixels are saturated" in told[0]


def test_the_carrier_is_looked_at_in_the_field_that_was_read():
    reader, image = FieldReader(settings("off-axis"), reference=pixels("&n=0")), pixels("&n=1")
    reader.read(image)
    dark = np.zeros_like(image)  # demodulated anew it would have lost its carrier
    assert reader.notes(dark) == []
    reader = FieldReader(settings("off-axis"), reference=pixels("&n=0"))
    reader.read(np.random.default_rng(2).poisson(1000, image.shape).astype(np.uint16))
    assert any("the carrier is lost" in note for note in reader.notes(image))


def test_pixels_too_coarse_for_the_aperture_are_told():
    image = pixels("&kind=in-line&n=1")
    reader = FieldReader(HologramSettings("in-line", OPTICS.with_pixel(0.3)))
    reader.read(image)
    assert any("the pixels are too coarse for NA 1.3" in note for note in reader.notes(image))
