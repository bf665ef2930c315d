"""One particle of one hologram teaches where all of them are, in three dimensions, and how much they weigh."""

import threading

import numpy as np
import pytest

from oneframe.acquisition import open_source
from oneframe.runtime.detections import Flag
from oneframe.runtime.field_reader import FieldReader, HologramSettings
from oneframe.runtime.hologram_model import HologramModel
from oneframe.runtime.holography import find_carrier
from oneframe.runtime.model import load_graph
from oneframe.runtime.optics import Optics
from oneframe.runtime.truth import match

pytest.importorskip("torch", reason="needs oneframe[train]")

from oneframe.trainer import Box, ConvergenceError, TrainingCancelled, train
from oneframe.trainer.hologram import _lesson
from oneframe.trainer.hologram_network import HologramTraining

OPTICS = Optics(wavelength_um=0.633, medium_index=1.33, na=1.3, pixel_um=0.1)
SMALL = "sim:hologram?width=192&height=192&z_um=2&seed=5"
OFF_AXIS = HologramSettings("off-axis", OPTICS)
N_FRAMES = 8


def pixels(url: str) -> np.ndarray:
    return open_source(url).read(5.0).pixels


def errors(lab, *, refine: bool) -> dict[str, np.ndarray]:
    """Errors of all rows on frames that the training never saw; every sphere has one row, and every row a sphere."""
    model = HologramModel(load_graph(lab.path), reference=lab.reference, refine=refine)
    source = open_source(f"{lab.scene}&n=4&seed=99&diffusion=30")
    told: dict[str, list[np.ndarray]] = {name: [] for name in ("z_um", "y_um", "x_um", "weight", "flags", "true_z_um")}
    for _ in range(N_FRAMES):
        found = model.detect(source.read(5.0).pixels)
        truth = source.truth()
        true_yx, found_yx = (np.stack([rows.y_px, rows.x_px], 1) for rows in (truth, found))
        t, f = match(true_yx, found_yx, 5.0)
        assert len(t) == len(true_yx) == len(found_yx)
        told["true_z_um"].append(truth.z_um[t])
        told["z_um"].append(found.z_um[f] - lab.offset_um - truth.z_um[t])
        told["y_um"].append(0.1 * (found_yx[f] - true_yx[t])[:, 0])
        told["x_um"].append(0.1 * (found_yx[f] - true_yx[t])[:, 1])
        told["weight"].append(found.polarizability_um3[f] / truth.polarizability_um3[t])
        told["flags"].append(found.flags[f])
    return {name: np.concatenate(values) for name, values in told.items()}


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.fixture(scope="module")
def alone(hologram_lab):
    return errors(hologram_lab, refine=False)


@pytest.fixture(scope="module")
def refined(hologram_lab):
    return errors(hologram_lab, refine=True)


def test_the_network_alone_finds_every_sphere_and_its_z(alone):
    assert rms(alone["z_um"]) < 0.4
    assert rms(alone["y_um"]) < 0.1
    assert rms(alone["x_um"]) < 0.1
    assert np.abs(np.log(alone["weight"])).max() < 0.3


def test_measured_in_the_field_they_are_exact(refined):
    assert rms(refined["z_um"]) < 0.05
    assert np.abs(refined["z_um"]).max() < 0.15
    assert rms(refined["y_um"]) < 0.015
    assert rms(refined["x_um"]) < 0.015
    np.testing.assert_allclose(refined["weight"], 1, atol=0.10)


def test_a_carrier_that_is_found_with_the_wrong_sign_is_turned_round(hologram_lab, alone, refined):
    found = find_carrier(hologram_lab.reference, OPTICS)
    assert found == pytest.approx((-2.93, 2.93), abs=0.01)
    assert hologram_lab.trained.card.hologram["carrier_yx_per_um"] == pytest.approx((2.93, -2.93), abs=0.01)
    for rows in (alone, refined):
        measured_um = rows["true_z_um"] + rows["z_um"]
        assert np.polyfit(rows["true_z_um"], measured_um, 1)[0] == pytest.approx(1, abs=0.15)
    assert not (refined["flags"].astype(int) & Flag.CONJUGATE).any()


def test_with_the_other_sign_z_runs_backwards_and_every_row_says_so(hologram_lab):
    wrong, right = (HologramSettings("off-axis", OPTICS, carrier) for carrier in ((-2.93, 2.93), (2.93, -2.93)))
    image = pixels(f"{hologram_lab.scene}&n=4&seed=11")
    fields = [FieldReader(each, reference=hologram_lab.reference).read(image) for each in (wrong, right)]
    np.testing.assert_allclose(fields[0], fields[1].conj(), atol=0.05)


def test_the_card_tells_what_was_learned(hologram_lab):
    card = hologram_lab.trained.card
    source = open_source(f"{hologram_lab.scene}&n=4&seed=11")
    source.read(5.0)
    truth = source.truth()
    x, y, width, height = card.crop["box_xywh_px"]
    inside = (truth.y_px > y) & (truth.y_px < y + height) & (truth.x_px > x) & (truth.x_px < x + width)
    assert inside.any()
    assert card.quality["advice"] in ("good", "fair")
    assert card.quality["particle_is_round"]
    assert card.quality["particle_polarizability_um3"] == pytest.approx(truth.polarizability_um3[0], rel=0.1)
    assert card.quality["detections_on_frame"] == card.quality["particles_on_frame"] == 4
    assert hologram_lab.offset_um == pytest.approx(0.13, abs=0.05)  # the focus of the light is behind the sphere
    assert card.trained_ranges["z_um"] == (-3.0, 3.0)
    assert 1 < card.trained_ranges["field_noise"][1] / card.quality["field_noise"] < 3
    low, high = card.trained_ranges["signal"]
    assert low < 1 < high
    assert card.hologram["background"] == "reference"
    assert card.settings["n_steps"] == 600


@pytest.mark.parametrize("kind", ["field", "in-line"])
def test_dark_particles_are_told_from_dense_and_lighter_ones(kind):
    """A particle that absorbs scatters i times the light of a denser one; where it is dark is where it is in focus."""
    optics = OPTICS.with_pixel(0.2)
    settings = HologramSettings(kind, optics)
    scene = f"{SMALL}&n=1&kind=field&width=512&height=512&seed=3&z_um=0&z_mid_um=6"

    def lesson(light: complex, **options):
        re, im = pixels(scene + "".join(f"&{k}={v}" for k, v in options.items()))
        field = 1 + light * (re + 1j * im - 1)
        image = np.stack([field.real, field.imag]) if kind == "field" else np.abs(field) ** 2
        training = HologramTraining(z_range_um=(2.0, 10.0))
        return _lesson(image.astype(np.float32), None, settings, None, "none", training)

    (dense, no_notes), (dark, notes) = lesson(1), lesson(1j)
    assert not dense.dark
    assert not no_notes
    assert dark.dark
    assert not dark.spheres
    assert "the particle takes light away" in notes[0]
    assert dark.spot.z_um == pytest.approx(dense.spot.z_um, abs=0.15)
    assert dark.spot.z_um == pytest.approx(6.1, abs=0.2)


@pytest.mark.parametrize("kind", ["off-axis", "field"])
def test_a_frame_without_particles_is_refused(kind):
    settings = HologramSettings(kind, OPTICS.with_pixel(0.2) if kind == "field" else OPTICS)
    with pytest.raises(ValueError, match=r"expected a particle in the hologram, found none .* --z-range-um"):
        train(pixels(f"{SMALL}&n=0&kind={kind}&field_noise=0.005"), hologram=settings, steps=5)


def test_a_field_of_nothing_but_one_is_refused():
    settings = HologramSettings("field", OPTICS.with_pixel(0.2))
    with pytest.raises(ValueError, match="expected a particle in the hologram, found none"):
        train(pixels(f"{SMALL}&n=0&kind=field"), hologram=settings, background="none", steps=5)


@pytest.mark.parametrize(
    ("kind", "z_range_um", "sentence"),
    [
        ("off-axis", (3.0, -3.0), "expected a z range from low to high, got 3 to -3 um"),
        ("off-axis", (2.0, 2.0), "expected a z range from low to high, got 2 to 2 um"),
        ("in-line", (-3.0, 9.0), r"z range on one side of focus, got -3 to 9 um: an in-line hologram does not tell"),
    ],
)
def test_z_ranges_that_cannot_be_learned(kind, z_range_um, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(pixels(f"{SMALL}&n=1"), hologram=HologramSettings(kind, OPTICS), z_range_um=z_range_um)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"preset": "paper"}, "expected the default preset for holograms, got 'paper'"),
        ({"box": [Box(0, 0, 20, 20), Box(40, 40, 20, 20)]}, "expected one box in a hologram, got 2"),
        ({"box": Box(180, 0, 20, 20)}, "the box must lie within the frame"),
        ({"box": Box(0, 0, 6, 6)}, "expected a particle in the box, found none in focus at any z"),
        ({"gain": (0.5, 2.0)}, "expected settings of HologramTraining, got gain"),
        ({"hologram": None, "background": "none"}, "a reference or a background with a hologram only"),
        ({"hologram": HologramSettings("field", OPTICS)}, r"expected 2 planes \(2, H, W\), got shape \(192, 192\)"),
    ],
)
def test_what_cannot_be_trained_on_says_why(asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(pixels(f"{SMALL}&n=1"), **({"hologram": OFF_AXIS, "steps": 5} | asked))


def test_five_steps_are_no_model_and_the_same_seed_takes_the_same_ones():
    image = pixels(f"{SMALL}&n=1")
    last = []
    for seed in (3, 3, 4):
        reports = []
        with pytest.raises(
            ConvergenceError,
            match=r"below 0.5 cells and of z below .* um, got after 1 attempts: error .* found; box one",
        ):
            train(image, hologram=OFF_AXIS, seed=seed, steps=5, max_attempts=1, on_progress=reports.append)
        assert "z not settled yet" in reports[-1].note
        last.append(reports[-1].loss)
    assert last[0] == last[1] != last[2]


def test_cancelling_gives_no_model():
    cancel = threading.Event()
    with pytest.raises(TrainingCancelled, match="stopped at step"):
        train(pixels(f"{SMALL}&n=1"), hologram=OFF_AXIS, on_progress=lambda _: cancel.set(), cancel=cancel)
