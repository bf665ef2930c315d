"""A model for holograms at work: rows say when not to trust them, and frames that do not fit are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scatterers import WATER, Sphere, off_axis, scattered

from oneframe.acquisition import Frame, open_source
from oneframe.runtime import load_model
from oneframe.runtime.detections import Flag
from oneframe.runtime.field_reader import FieldReader
from oneframe.runtime.focal_planes import FocalPlanes
from oneframe.runtime.hologram_model import HologramModel
from oneframe.runtime.model import ModelFileError, OnnxModel, load_graph

CARRIER = (2.93, -2.93)
SIZE = 256


def frame(*spheres: Sphere, seed: int = 0, electrons: float = 2e4) -> np.ndarray:
    """A hologram with the light and the carrier of the model's microscope."""
    mean = off_axis(WATER, scattered(WATER, (SIZE, SIZE), *spheres), CARRIER, electrons=electrons)
    return np.random.default_rng(seed).poisson(mean).astype(np.uint16)


EMPTY = frame(seed=99)


@pytest.fixture
def model(hologram_lab) -> HologramModel:
    return HologramModel(load_graph(hologram_lab.path), reference=EMPTY)


def flags_at(found, sphere: Sphere, reach_px: float = 5) -> Flag:
    """Flags of the row that stands at a sphere."""
    distance_px = np.hypot(found.y_px - sphere.y_um / 0.1, found.x_px - sphere.x_um / 0.1)
    nearest = int(np.argmin(distance_px))
    assert distance_px[nearest] < reach_px
    return Flag(int(found.flags[nearest]))


def test_spheres_that_stand_alone_have_no_flags(model):
    spheres = [Sphere(6, 6, 1.0), Sphere(18, 7, -1.0), Sphere(12, 19, 0.3)]
    found = model.detect(frame(*spheres))
    assert len(found) == 3
    assert [flags_at(found, sphere) for sphere in spheres] == [Flag(0)] * 3
    assert found.field.shape == (SIZE // 2, SIZE // 2)
    assert found.notes == ()
    assert set(found.columns()) == set(model.card.columns)
    for sigma, limit in ((found.sigma_z_um, 0.05), (found.sigma_y_px, 0.2), (found.sigma_x_px, 0.2)):
        assert ((sigma > 0) & (sigma < limit)).all()


def test_near_neighbours_are_flagged(model):
    pair, lonely = (Sphere(8, 8), Sphere(8, 10.5)), Sphere(18, 18)
    found = model.detect(frame(*pair, lonely))
    assert all(Flag.NEAR_NEIGHBOUR in flags_at(found, sphere) for sphere in pair)
    assert Flag.NEAR_NEIGHBOUR not in flags_at(found, lonely)


@pytest.mark.parametrize("z_um", [-4.2, 4.2])
def test_spheres_outside_the_trained_z_are_flagged(model, z_um):
    """Beyond its range the network may take z for any other: then no focus is there."""
    model.threshold = 0.05
    there, inside = Sphere(12.8, 7, z_um), Sphere(12.8, 19, 0.0)
    found = model.detect(frame(there, inside))
    assert flags_at(found, there, reach_px=10) & (Flag.OUTSIDE_Z | Flag.NO_FOCUS | Flag.WEAK)
    assert flags_at(found, inside) == Flag(0)


def test_a_row_is_flagged_by_the_z_that_it_reports(model):
    """Spheres on both sides of the upper end of the range."""
    low, high = model.card.trained_ranges["z_um"]
    model.threshold = 0.05
    for z_um in np.arange(2.7, 3.31, 0.1):
        found = model.detect(frame(Sphere(12.8, 12.8, float(z_um))))
        outside = (found.z_um < low) | (found.z_um > high)
        np.testing.assert_array_equal((found.flags.astype(int) & Flag.OUTSIDE_Z) > 0, outside)


def test_what_is_reported_of_mere_noise_is_flagged(model):
    """At threshold 0 the network's guesses come too, and none of them passes for a particle."""
    model.threshold = 0.0
    for seed in range(3):
        found = model.detect(frame(seed=seed, electrons=2e3))
        flags = found.flags.astype(int)
        assert (flags > 0).all()
        if len(found):
            assert np.mean((flags & Flag.WEAK) > 0) > 0.9


def test_an_empty_frame_gives_no_rows_and_all_columns(model):
    found = model.detect(frame(seed=3))
    assert len(found) == 0
    assert set(found.columns()) == set(model.card.columns)
    assert found.field is not None
    assert {"z_um", "sigma_z_um", "polarizability_um3", "flags"} <= set(found.columns())


def test_without_refining_the_rows_are_the_networks(hologram_lab):
    image = open_source(f"{hologram_lab.scene}&n=4&seed=21").read(5.0).pixels
    graph = load_graph(hologram_lab.path)
    alone = HologramModel(graph, reference=hologram_lab.reference, refine=False)
    found = alone.detect(image)
    reader = FieldReader(alone.settings, reference=hologram_lab.reference)
    field = reader.read(image)
    planes_um = tuple(graph.card.hologram["planes_um"])
    optics, every = alone.settings.field_optics, graph.card.hologram["pixels_per_cell"]
    rows = graph.detect(FocalPlanes(optics, field.shape, every, planes_um).of(field - 1))
    assert len(found) == len(rows) == 4
    for name, column in rows.columns().items():
        np.testing.assert_array_equal(getattr(found, name), column)
    np.testing.assert_array_equal(found.field, field)
    assert alone.field_noise == reader.noise
    assert len(set(found.sigma_z_um.tolist())) == 1  # the network knows one error for all
    measured = HologramModel(graph, reference=hologram_lab.reference).detect(image)
    np.testing.assert_array_equal(measured.score, found.score)
    assert (measured.sigma_z_um < found.sigma_z_um).all()
    assert np.abs(measured.z_um - found.z_um).max() < 0.8


def test_another_region_is_tracked_without_a_reference_and_refused_with_one(hologram_lab, model):
    sphere = Sphere(8, 9, 1.0)
    image = frame(sphere)
    free = HologramModel(load_graph(hologram_lab.path))
    for rows, columns in ((256, 256), (200, 180), (256, 256)):
        found = free.detect(image[:rows, :columns])
        assert found.field.shape == (rows // 2, columns // 2)
        assert flags_at(found, sphere) == Flag(0)
    model.detect(image)
    with pytest.raises(ValueError, match=r"expected frames of the reference's shape \(256, 256\), got \(200, 180\)"):
        model.detect(image[:200, :180])
    assert len(model.detect(image)) == 1  # and goes on


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"pixel_size_um": 0.12}, "trained for pixel_um 0.1, the frames have 0.12"),
        ({"metadata": {"wavelength_um": 0.532}}, "trained for wavelength_um 0.633, the frames have 0.532"),
        ({"metadata": {"kind": "in-line"}}, "takes off-axis holograms, the frames are in-line"),
    ],
)
def test_frames_of_another_instrument_are_refused(model, changed, sentence):
    untold = Frame(EMPTY, 0, 0.0, None, {})
    model.check(untold)
    with pytest.raises(ValueError, match=sentence):
        model.check(replace(untold, **changed))


def test_the_microscope_that_was_trained_on_is_taken(hologram_lab, model):
    model.check(open_source(f"{hologram_lab.scene}&n=1").read(5.0))


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((SIZE, SIZE), np.uint16), "got the constant value 0; is the shutter open"),
        (np.full((SIZE, SIZE), np.nan, np.float32), "expected finite pixels"),
        (np.random.default_rng(0).random((2, SIZE, SIZE)), r"one plane \(H, W\) of an off-axis hologram"),
    ],
)
def test_frames_that_are_no_holograms_are_refused(model, image, sentence):
    with pytest.raises(ValueError, match=sentence):
        model.detect(image)


def test_more_noise_than_was_trained_is_told_once(model):
    assert np.isnan(model.field_noise)
    notes = [note for seed in range(4) for note in model.detect(frame(seed=seed, electrons=600)).notes]
    assert model.field_noise > 1.3 * model.card.trained_ranges["field_noise"][1]
    assert len([note for note in notes if "particles will be missed and z is less sure" in note]) == 1


def test_the_threshold_is_that_of_the_network(model):
    image = frame(Sphere(8, 8), Sphere(18, 18))
    assert len(model.detect(image)) == 2
    model.threshold = 1.0
    assert len(model.detect(image)) == 0
    with pytest.raises(ValueError, match=r"threshold must be a score from 0 to 1, got 1\.5"):
        model.threshold = 1.5


def test_loading_gives_what_takes_camera_frames(hologram_lab):
    model = load_model(hologram_lab.path, reference=hologram_lab.reference, threshold=0.4)
    assert isinstance(model, HologramModel)
    assert model.threshold == pytest.approx(0.4)
    with pytest.raises(ValueError, match="expected a reference frame with the background 'reference'"):
        load_model(hologram_lab.path, background="reference")


def test_a_model_for_camera_images_takes_no_reference(bead_model):
    assert isinstance(load_model(bead_model.path), OnnxModel)
    for wrong in ({"reference": EMPTY}, {"background": "median"}):
        with pytest.raises(ValueError, match=r"expected no reference or background: .* takes camera images; leave it"):
            load_model(bead_model.path, **wrong)


@pytest.mark.parametrize("missing", ["optics", "planes_um", "pixels_per_cell", "spheres", "field_noise", "z_um"])
def test_a_card_that_lacks_something_is_told_when_it_is_loaded(hologram_lab, tmp_path, missing):
    onnx = pytest.importorskip("onnx")
    damaged = onnx.load(hologram_lab.path)
    for entry in damaged.metadata_props:
        if entry.key == "oneframe":
            card = json.loads(entry.value)
            card["hologram"].pop(missing, None)
            card["trained_ranges"].pop(missing, None)
            entry.value = json.dumps(card)
    onnx.save(damaged, tmp_path / "damaged.onnx")
    with pytest.raises((ValueError, ModelFileError), match=rf"{missing}.*export (it|the model) again"):
        load_model(tmp_path / "damaged.onnx")


def test_a_model_of_dark_particles_finds_them_where_dense_ones_would_be(hologram_lab, model, tmp_path):
    onnx = pytest.importorskip("onnx")
    changed = onnx.load(hologram_lab.path)
    for entry in changed.metadata_props:
        if entry.key == "oneframe":
            card = json.loads(entry.value)
            card["hologram"]["dark"] = True
            entry.value = json.dumps(card)
    onnx.save(changed, tmp_path / "dark.onnx")
    field = scattered(WATER, (SIZE, SIZE), Sphere(8, 8, 1.0), Sphere(18, 17, -1.0))
    dense, dark = (off_axis(WATER, 1 + turn * (field - 1), CARRIER).astype(np.uint16) for turn in (1, 1j))
    usual = model.detect(dense)
    found = load_model(tmp_path / "dark.onnx", reference=EMPTY).detect(dark)
    assert len(usual) == len(found) == 2
    assert not found.flags.any()
    for name, bound in (("y_px", 0.1), ("x_px", 0.1), ("z_um", 0.02), ("polarizability_um3", 5e-4)):
        np.testing.assert_allclose(getattr(found, name), getattr(usual, name), atol=bound)
