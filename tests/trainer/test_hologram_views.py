"""What the network trains on is what the planes of a hologram would show: same light, same noise, same twin."""

from dataclasses import replace

import numpy as np
import pytest
from scatterers import WATER, noise

from oneframe.acquisition.holograms import FieldSynthesis, HologramScene, SphereTruth
from oneframe.runtime.field_background import field_noise
from oneframe.runtime.focal_planes import FocalPlanes, pixels_per_cell, planes_for
from oneframe.runtime.refine import ParticleRefiner
from oneframe.runtime.refocus import Refocuser

torch = pytest.importorskip("torch", reason="needs oneframe[train]")

from oneframe.trainer.hologram_views import FocusedParticle, HologramViews, ViewMaker, focused_particle  # noqa: E402

FIELD = WATER.with_pixel(0.2)
N_PX = 256
OFF_AXIS_UM, IN_LINE_UM = (-5.5, 5.5), (3.0, 12.0)


class Instrument:
    """Exact fields of one Mie sphere anywhere, as planes, and the maker of its views."""

    def __init__(self, *, in_line: bool, sigma: float = 0.004, radius_um: float = 0.228) -> None:
        self.in_line = in_line
        self.optics = WATER if in_line else FIELD
        self.every = pixels_per_cell(self.optics)
        side = N_PX * (1 if in_line else 2)
        self._synthesis = FieldSynthesis(HologramScene(kind="in-line" if in_line else "field", width=side, height=side))
        self._radius_um = radius_um
        self.z_range_um = IN_LINE_UM if in_line else OFF_AXIS_UM
        planes_um = planes_for(self.optics, self.every, self.z_range_um)
        self.planes = FocalPlanes(self.optics, (N_PX, N_PX), self.every, planes_um)
        refiner = ParticleRefiner.for_optics(self.optics, z_um=(0, 0), shape=(N_PX, N_PX))
        middle = np.array([[N_PX / 2 + 0.3, N_PX / 2 - 0.4]])
        field = 1 + self.scattered(*middle[0], 0.0)
        self.focus_um = float(refiner.measure(field, middle, 0.0, noise=sigma).z.z_um[0])
        """Where the light of a sphere at z = 0 is in focus."""
        refocused = Refocuser(self.optics, (N_PX, N_PX)).refocus(field, self.focus_um)
        self.particle = focused_particle(refocused, tuple(middle[0]), self.optics, self.every, sigma)
        self.sigma = sigma
        self.maker = self.make(planes_um)

    def make(self, planes_um: tuple[float, ...], **changed) -> ViewMaker:
        told = {
            "z_um": self.z_range_um, "log_signal": (-1.2, 0.8), "noise": self.sigma, "view_cells": 24,
            "shift_cells": 2.0, "in_line": self.in_line,
        }  # fmt: skip
        return ViewMaker(self.particle, self.optics, self.every, planes_um, **(told | changed))

    def scattered(self, y_px: float, x_px: float, z_um: float) -> np.ndarray:
        """E - 1 of a sphere; positions in pixels of the field."""
        y, x, z, radius, index = (np.array([v]) for v in (y_px, x_px, z_um, self._radius_um, 1.58))
        truth = SphereTruth(np.array([0]), y, x, z, radius, index, np.array([np.nan]))
        field = self._synthesis.sample(self._synthesis.scattered(truth), every=1 if self.in_line else 2)
        return field - np.complex64(1)

    def shown(self, views: HologramViews, i: int, *, twin: bool = True, dark: bool = False) -> np.ndarray:
        """What the planes of a frame show of the particle of view i, in its units.

        A dark particle's light is i times that of the sphere, and shown turned back.
        """
        n = views.planes.shape[-1]
        first = (self.planes.shape[0] - n) // 2
        y_px, x_px = ((first + (n - 1) / 2 + views.seen_cells[i].numpy()) * self.every).tolist()
        light = self.scattered(y_px, x_px, float(views.z_um[i]) - self.focus_um)
        if self.in_line and twin:
            light = (2j * light.imag if dark else 2 * light.real).astype(np.complex64)
        planes = self.planes.of(light)[:, first : first + n, first : first + n]
        return planes * float(torch.exp(views.log_signal[i])) / self.particle.signal


@pytest.fixture(scope="module", params=["off-axis", "in-line"])
def instrument(request) -> Instrument:
    return Instrument(in_line=request.param == "in-line")


def drawn(maker: ViewMaker, n: int, seed: int = 0, *, alone: bool = True, **options) -> HologramViews:
    return maker.draw(n, torch.Generator().manual_seed(seed), alone=alone, **options)


def difference(view: np.ndarray, truth: np.ndarray, reach: int = 5) -> float:
    """Relative, within so many cells of the middle: farther out the window of the particle cuts its rings."""
    first = view.shape[-1] // 2 - reach
    near = (slice(None), slice(first, first + 2 * reach), slice(first, first + 2 * reach))
    return float(np.linalg.norm((view - truth)[near]) / np.linalg.norm(truth[near]))


def test_views_are_what_the_planes_of_an_exact_field_show(instrument):
    views = drawn(instrument.maker, 16, noise=0.0)
    errors = [difference(views.planes[i].numpy(), instrument.shown(views, i)) for i in range(16)]
    assert np.mean(errors) < (0.08 if instrument.in_line else 0.045)
    assert max(errors) < (0.12 if instrument.in_line else 0.06)


def test_z_of_the_views_is_that_of_the_sphere_to_a_hundredth_of_a_micrometre():
    instrument = Instrument(in_line=False)
    views = drawn(instrument.maker, 10, seed=1, noise=0.0)
    steps_um = 0.1
    for i in range(10):
        overlaps = []
        for step in (-steps_um, 0.0, steps_um):
            moved = replace(views, z_um=views.z_um + step)
            truth, view = instrument.shown(moved, i), views.planes[i].numpy()
            overlaps.append(float((truth * view).sum() / np.linalg.norm(truth)))
        before, at, after = overlaps
        off_um = steps_um * (before - after) / (2 * (before - 2 * at + after))
        assert abs(off_um) < 0.01


def test_in_line_views_hold_the_twin():
    instrument = Instrument(in_line=True)
    views = drawn(instrument.maker, 6, noise=0.0)
    for i in range(6):
        view = views.planes[i].numpy()
        with_twin, without = (difference(view, instrument.shown(views, i, twin=twin)) for twin in (True, False))
        assert with_twin < 0.12
        assert without > 2 * with_twin
    symmetric = drawn(instrument.make((-6.0, 6.0)), 4)
    re_before, re_behind, im_before, im_behind = symmetric.planes.permute(1, 0, 2, 3)
    np.testing.assert_allclose(re_before, re_behind, atol=1e-4)  # no camera tells +z from -z
    np.testing.assert_allclose(im_before, -im_behind, atol=1e-4)


def test_dark_particles_have_a_dark_twin():
    instrument = Instrument(in_line=True)
    planes_um = planes_for(instrument.optics, instrument.every, instrument.z_range_um)
    views = drawn(instrument.make(planes_um, dark=True), 4, noise=0.0)
    for i in range(4):
        view = views.planes[i].numpy()
        assert difference(view, instrument.shown(views, i, dark=True)) < 0.12
        assert difference(view, instrument.shown(views, i)) > 0.24
    re, im = drawn(instrument.make(planes_um, dark=True), 60, noise=0.03, log_signal=(-30.0, -30.0)).planes.chunk(2, 1)
    usual_re, usual_im = drawn(instrument.maker, 60, noise=0.03, log_signal=(-30.0, -30.0)).planes.chunk(2, 1)
    torch.testing.assert_close(torch.stack([re, im]), torch.stack([usual_im, -usual_re]))


def test_the_noise_in_the_planes_is_that_of_a_field(instrument):
    sigma, rng = 0.03, np.random.default_rng(0)
    if instrument.in_line:
        field = 1 + rng.normal(0, np.sqrt(2) * sigma, (N_PX, N_PX)) + 0j
    else:
        field = 1 + noise(rng, FIELD, (N_PX, N_PX), sigma)
    assert field_noise(field) == pytest.approx(sigma, rel=0.05)
    true = instrument.planes.of((field - 1).astype(np.complex64)) / instrument.particle.signal
    views = drawn(instrument.maker, 60, noise=sigma, log_signal=(-30.0, -30.0)).planes.numpy()
    assert views.std() == pytest.approx(true.std(), rel=0.05)
    np.testing.assert_allclose(views.std((0, 2, 3)), true.std((1, 2)), rtol=0.15)
    drawn_noise = drawn(instrument.maker, 200, log_signal=(-30.0, -30.0)).planes.std((1, 2, 3))
    strongest = views.std() * instrument.sigma / sigma
    assert 0 <= drawn_noise.min() < 0.1 * strongest
    assert 0.9 * strongest < drawn_noise.max() < 1.2 * strongest


def test_the_same_seed_gives_the_same_views(instrument):
    first, second, other = (drawn(instrument.maker, 4, seed=seed) for seed in (5, 5, 6))
    for name in ("planes", "seen_cells", "z_um", "log_signal"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_views_fill_the_ranges_and_say_what_they_show(instrument):
    views = drawn(instrument.maker, 500)
    assert views.planes.shape == (500, 2 * len(instrument.planes.kernels), 24, 24)
    for values, (low, high) in (
        (views.z_um, instrument.z_range_um), (views.log_signal, (-1.2, 0.8)), (views.seen_cells, (-2.0, 2.0)),
    ):  # fmt: skip
        assert low <= values.min() < low + 0.03 * (high - low)
        assert high - 0.03 * (high - low) < values.max() <= high
    spots = views.spots((24, 24), 0.9)
    assert spots.shape == (500, 24, 24)
    brightest = spots.flatten(1).argmax(1)
    at = torch.stack([brightest // 24, brightest % 24], 1) - 11.5
    assert (at - views.seen_cells).abs().max() <= 0.5 + 1e-5


def test_where_the_particle_was_left_out_there_is_only_what_else_is_said(instrument):
    views = drawn(instrument.maker, 60, alone=False, noise=0.0)
    light = views.planes.abs().amax((1, 2, 3))
    empty = (views.present == 0) & views.other_cells.isnan().all(1)
    assert 0 < empty.sum() < 30
    assert light[empty].max() < 1e-5
    assert light[views.present == 1].min() > 0.1
    marked = views.spots((24, 24), 0.9).amax((1, 2)) > 0.5
    assert not marked[empty].any()
    assert marked[views.present == 1].all()


def test_a_sphere_is_round_and_two_side_by_side_are_not():
    instrument = Instrument(in_line=False)
    assert instrument.particle.is_round
    rng = np.random.default_rng(2)
    for sigma in (0.005, 0.03):
        field = 1 + instrument.scattered(128.0, 128.0, -instrument.focus_um) + noise(rng, FIELD, (N_PX, N_PX), sigma)
        found = focused_particle(field.astype(np.complex64), (128.0, 128.0), FIELD, instrument.every, sigma)
        assert found.is_round
        assert found.signal == pytest.approx(instrument.particle.signal, rel=0.1)
    pair = 1 + sum(instrument.scattered(128.0, x, -instrument.focus_um) for x in (125.5, 130.5))
    assert not focused_particle(pair, (128.0, 128.0), FIELD, instrument.every, 0.005).is_round


def test_a_particle_at_the_edge_is_cut_with_what_there_is():
    instrument = Instrument(in_line=False)
    field = 1 + instrument.scattered(3.0, 250.0, -instrument.focus_um)
    found = focused_particle(field, (3.0, 250.0), FIELD, instrument.every, 0.005)
    assert isinstance(found, FocusedParticle)
    assert np.isfinite(found.scattered).all()
    assert found.signal == pytest.approx(instrument.particle.signal, rel=0.35)
