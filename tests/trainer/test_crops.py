"""Views are exact: what the transform says is where the particle is."""

import numpy as np
import pytest
import torch

from oneframe.acquisition.simulated import add_bead, bead_table
from oneframe.trainer.crops import (
    Box,
    ViewSettings,
    background_range,
    extent_of,
    normalisation_from,
    particle_alone,
    random_views,
    refined,
    sample,
)


def bead_image(y_px: float, x_px: float, size: int = 81, photons: float = 1000.0) -> np.ndarray:
    image = np.zeros((size, size))
    add_bead(image, y_px, x_px, photons, bead_table(0.5, 0.8, 0.53, 0.1))
    return image


def centroid(image: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(image.shape)
    return np.array([(rows * image).sum(), (columns * image).sum()]) / image.sum()


def test_every_view_leads_back_to_the_particle():
    rows, columns = np.indices((81, 81)) - 40.0
    source = refined(np.exp(-((rows - 0.4) ** 2 + (columns + 0.3) ** 2) / 18))
    settings = ViewSettings(48, n_views=32, n_cut=0, gain=(1.0, 1.0), offset=(0.0, 0.0), noise=0.0)
    views = random_views(source, settings, 0.0, torch.Generator().manual_seed(0))
    seen = torch.tensor(np.array([centroid(v[0].numpy()) for v in views.images]) - 23.5, dtype=torch.float32)
    back = views.to_source(seen).numpy()
    np.testing.assert_allclose(back, np.tile([0.4, -0.3], (32, 1)), atol=0.005)


def test_cut_views_put_the_particle_at_each_of_the_four_edges():
    source = refined(bead_image(40, 40, 121))
    settings = ViewSettings(40, n_views=64, n_cut=64, cut_px=6.0, noise=0.0)
    views = random_views(source, settings, 0.0, torch.Generator().manual_seed(0))
    seen = -torch.einsum("bji,bj->bi", views.linear, views.origin_px)  # the inverse of an orthogonal matrix
    to_edge = 20 - seen.abs().amax(1)
    assert views.n_whole == 0
    assert to_edge.min() >= 0
    assert to_edge.max() <= 6
    edges = {(int(axis), bool(position[axis] > 0)) for position, axis in zip(seen, seen.abs().argmax(1), strict=True)}
    assert len(edges) == 4


def test_a_quarter_turn_is_an_exact_quarter_turn():
    image = np.random.default_rng(0).random((41, 41), np.float32)
    turned = sample(refined(image)[None], torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]]), torch.zeros(1, 2), 21)
    np.testing.assert_allclose(turned[0, 0].numpy(), np.rot90(image)[10:31, 10:31], atol=1e-3)


def test_normalisation_reads_background_contrast_and_noise():
    rng = np.random.default_rng(0)
    image = 500 + bead_image(40, 40, photons=40000.0) + rng.normal(0, 12, (81, 81))
    read = normalisation_from(image, Box(25, 25, 31, 31))
    assert read.offset == pytest.approx(500, abs=5)
    assert read.noise * read.scale == pytest.approx(12, rel=0.1)


def test_neighbours_and_the_frame_edge_become_background():
    rng = np.random.default_rng(0)
    image = 100 + rng.normal(0, 5, (81, 81)) + bead_image(12, 12, photons=50000.0) + bead_image(12, 50, photons=50000.0)
    box = Box(0, 0, 25, 25)
    read = normalisation_from(image, box)
    extent = extent_of(image, box, read)
    assert (extent.y_px, extent.x_px) == (12, 12)
    assert 8 < extent.diameter_px < 16
    alone = particle_alone(image, box, read, extent, reach_px=40, rng=rng)
    assert alone.shape == (81, 81)
    outside = np.ones((81, 81), bool)
    outside[28:53, 28:53] = False
    assert np.abs(alone[outside]).max() < 0.15
    assert alone[40, 40] > 0.8


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (Box(60, 10, 30, 20), r"must lie within the frame of 81 x 81 px .* got x 60 to 90"),
        (Box(-1, 10, 30, 20), r"got x -1 to 29"),
        (Box(10, 10, 4, 20), r"at least 5 x 5 px, got 4 x 20"),
    ],
)
def test_a_box_that_does_not_fit_is_refused(box, message):
    with pytest.raises(ValueError, match=message):
        box.check_within(81, 81)


def test_uneven_light_widens_the_range_of_backgrounds():
    rng = np.random.default_rng(0)
    even = 500 + rng.normal(0, 5, (200, 200)) + np.pad(bead_image(40, 40, photons=40000.0), ((0, 119), (0, 119)))
    box = Box(25, 25, 31, 31)
    read = normalisation_from(even, box)
    assert background_range(even, read, 24) == (-0.05, 0.05)
    slope = even + np.linspace(0, read.scale, 200)
    low, high = background_range(slope, normalisation_from(slope, box), 24)
    assert low == pytest.approx(-0.2, abs=0.1)
    assert high == pytest.approx(0.75, abs=0.15)
