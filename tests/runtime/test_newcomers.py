"""The coarse look: newcomers change it, the lamp, texture and noise do not."""

import numpy as np
import pytest

from oneframe.acquisition.simulated import add_bead, bead_table
from oneframe.runtime.newcomers import NewcomerLook

SHAPE = (203, 258)


def picture(beads, *, seed: int, photons: float = 5000.0, light: float = 1.0, texture: float = 0.0) -> np.ndarray:
    """uint16, of a background that is brighter to the right and has a grain of its own."""
    electrons = np.full(SHAPE, 30.0) + np.linspace(0, 10, SHAPE[1])
    electrons *= 1 + texture * np.random.default_rng(99).standard_normal(SHAPE)
    for y, x in beads:
        add_bead(electrons, y, x, photons, bead_table(0.3, 0.8, 0.53, 0.1))
    return (2 * np.random.default_rng(seed).poisson(light * electrons.clip(0)) + 100).astype(np.uint16)


KNOWN = np.array([[40.0, 50.0], [150.0, 200.0], [100.3, 31.7]])


@pytest.fixture
def look() -> NewcomerLook:
    look = NewcomerLook(SHAPE, 4)
    look.look(picture(KNOWN, seed=0, texture=0.3))
    look.seen_all()
    look.know(KNOWN, np.inf)
    return look


@pytest.mark.parametrize("where", [(0.0, 0.0), (120.4, 130.0), (198.0, 250.0), (60.0, 61.9)])
@pytest.mark.parametrize("photons", [5000.0, 2500.0])
def test_a_newcomer_of_half_the_light_is_noticed_at_once(look, where, photons):
    beads = picture(KNOWN, seed=1, texture=0.3).astype(int)
    bead = picture([where], seed=2, photons=photons).astype(int) - picture([], seed=2).astype(int)
    look.look(np.clip(beads + bead, 0, 65535).astype(np.uint16))
    changed = look.changed()
    assert look.trusted
    assert np.hypot(*(changed - np.array(where)).T).min() <= 5
    assert np.hypot(*(changed - np.array(where)).T).max() <= 12


def test_what_the_model_looked_at_is_not_noticed_again(look):
    look.look(picture([*KNOWN, (120.0, 130.0)], seed=1, texture=0.3))
    look.seen(np.array([[104, 112]]), np.array([[136, 148]]))
    assert len(look.changed()) == 0
    look.look(picture([*KNOWN, (120.0, 130.0)], seed=2, texture=0.3))
    assert len(look.changed()) == 0


def test_lamp_texture_and_noise_are_no_newcomers(look):
    for seed, light in enumerate((1.0, 1.02, 0.97), start=1):
        look.look(picture(KNOWN, seed=seed, light=light, texture=0.05))
        look.seen_all()
        look.look(picture(KNOWN, seed=seed + 10, light=light * 1.02, texture=0.05))
        assert len(look.changed()) == 0
        assert look.trusted


def test_a_particle_that_comes_slowly_is_noticed_all_the_same(look):
    noticed = []
    for k in range(1, 40):
        beads = picture(KNOWN, seed=k, texture=0.3).astype(int)
        more = picture([(120.0, 130.0)], seed=k, photons=5000 * k / 40).astype(int) - picture([], seed=k).astype(int)
        look.look(np.clip(beads + more, 0, 65535).astype(np.uint16))
        noticed.append(len(look.changed()) > 0)
    assert noticed.index(True) < 25


def test_particles_that_do_not_stand_out_make_it_untrusted(look):
    look.know(np.array([[20.0, 120.0]]), np.inf)  # nothing is there
    look.look(picture(KNOWN, seed=1, texture=0.3))
    look.changed()
    assert not look.trusted


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32, np.float32, np.float64])
def test_other_pixels_are_seen_as_well(dtype):
    look = NewcomerLook(SHAPE, 4)
    scale = 0.4 if dtype is np.uint8 else 1
    before, after = ((picture(beads, seed=k) * scale).astype(dtype) for k, beads in enumerate((KNOWN, KNOWN[:2])))
    look.look(before)
    look.seen_all()
    look.know(KNOWN, np.inf)
    look.look(after)
    changed = look.changed()
    assert look.trusted
    assert len(changed)
    assert np.hypot(*(changed - KNOWN[2]).T).max() < 10
