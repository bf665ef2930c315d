"""Regions and strips of a frame, cut and put side by side: every pixel is where `back` says, borders stay borders."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneframe.runtime.card import ModelCard
from oneframe.runtime.montage import NO_STRIP, Montage, RegionSize, each_object_once

SIZE = RegionSize(grid_px=4, core_px=16, margin_px=8)
BACKGROUND = 60_000


def montage(height: int, width: int, size: RegionSize = SIZE) -> tuple[Montage, np.ndarray]:
    """One for frames of a shape, and a frame in which no two pixels are the same."""
    frame = np.arange(height * width, dtype=np.uint32).reshape(height, width)
    return Montage(frame.shape, frame.dtype, size, BACKGROUND * 1000.0), frame


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(64, 150),
    width=st.integers(64, 230),
    n=st.integers(0, 12),
    n_strips=st.integers(1, 6),
    seed=st.integers(0, 10_000),
)
def test_what_lies_in_a_core_is_led_back_to_where_it_was(height, width, n, n_strips, seed):
    cuts, frame = montage(height, width)
    rng = np.random.default_rng(seed)
    positions = rng.uniform(-0.5, 1, (n, 2)) * np.array(frame.shape)
    positions = np.clip(positions, -0.5, np.array(frame.shape) - 0.51)
    strips = [*cuts.strips(n_strips), NO_STRIP]
    strip = strips[rng.integers(len(strips))]
    plan = cuts.plan(cuts.around(positions), strip, highest=height)
    if plan is None:
        return
    cut = cuts.cut(frame, plan)
    assert cut.shape == (plan.height, plan.width)
    assert cut.size <= frame.size
    assert plan.width == width or not strip.end
    first, end = cuts.cores(plan.origins)
    held = ((positions[:, None] + 0.5 >= first) & (positions[:, None] + 0.5 <= end)).all(-1).any(-1)
    in_strip = (positions[:, 0] + 0.5 >= strip.first) & (positions[:, 0] + 0.5 <= strip.end)
    assert (held | in_strip).all()

    where = np.stack(np.meshgrid(np.arange(plan.height), np.arange(plan.width), indexing="ij"), -1).reshape(-1, 2)
    led = cuts.back(plan, where.astype(float))
    y, x = where[led.rows].T
    from_y, from_x = led.positions.astype(int).T
    np.testing.assert_array_equal(cut[y, x], frame[from_y, from_x])
    # where a core reaches the border of the frame it reaches that of the montage
    assert (y[from_y == 0] == 0).all()
    assert (y[from_y == height - 1] == plan.height - 1).all()
    assert (x[from_x == 0] == 0).all()
    assert (x[from_x == width - 1] == plan.width - 1).all()
    # blocks of cells stay blocks of cells
    assert ((y - from_y) % SIZE.grid_px == 0).all()
    assert ((x - from_x) % SIZE.grid_px == 0).all()


@pytest.mark.parametrize("corner", [(16, 16), (14, 32), (0, 0), (123, 60), (90, 46)])
def test_what_has_changed_lies_in_a_core_with_what_is_beside_it(corner):
    cuts, _ = montage(128, 128)
    blocks = np.array(corner) + 4 * np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), -1).reshape(-1, 2)
    blocks = blocks[((blocks >= 0) & (blocks < 128)).all(1)]
    for changed in (blocks, blocks[:2], blocks[-1:]):
        first, end = cuts.cores(cuts.gathered(changed))
        beside = np.clip(changed[:, None] + np.array([[-2, 0], [2, 0], [0, -2], [0, 2]]), 0, 127).reshape(-1, 2)
        assert ((beside[:, None] >= first) & (beside[:, None] < end)).all(-1).any(-1).all()
    assert cuts.gathered(blocks[:0]).shape == (0, 2)


@pytest.mark.parametrize("n", [1, 3, 10, 60])
@pytest.mark.parametrize("height", [64, 99, 512, 1021])
def test_strips_cover_the_frame_and_are_no_thinner_than_a_region(height, n):
    cuts, _ = montage(height, 64)
    strips = cuts.strips(n)
    assert len(strips) <= n
    rows = np.concatenate([np.arange(strip.first, strip.end) for strip in strips])
    np.testing.assert_array_equal(np.unique(rows), np.arange(height))
    assert all(strip.end - strip.first >= SIZE.edge_px for strip in strips)


@pytest.mark.parametrize("together", [True, False])
def test_a_detection_that_two_regions_hold_counts_once_and_two_detections_of_one_region_twice(together):
    cuts, _ = montage(128, 128)
    origins = np.array([[20, 20], [20, 28]])
    in_frame = np.array([[36.0, 41.0], [36.0, 42.5]])  # the second alone is nearer to the middle of the other region
    led = []
    for regions in [origins] if together else origins[:, None]:
        plan = cuts.plan(regions, NO_STRIP, highest=128)
        in_montage = [in_frame - origin + place for origin, place in zip(plan.origins, plan.places, strict=True)]
        led.append(cuts.back(plan, np.concatenate(in_montage)))
    stays = each_object_once(led, same_px=1.0)
    assert stays.tolist() == [False, False, True, True]
    np.testing.assert_array_equal(np.concatenate([part.positions for part in led])[stays], in_frame)


def test_two_sheets_hold_two_montages():
    cuts, frame = montage(128, 128)
    plans = [cuts.plan(np.array([origin]), NO_STRIP, highest=128) for origin in ([20, 20], [40, 60])]
    sheets = [cuts.cut(frame, plan, sheet=k) for k, plan in enumerate(plans)]
    for plan, sheet in zip(plans, sheets, strict=True):
        (y, x), (to_y, to_x) = plan.origins[0], plan.places[0]
        np.testing.assert_array_equal(sheet[to_y : to_y + 32, to_x : to_x + 32], frame[y : y + 32, x : x + 32])


def test_more_than_may_be_looked_at_is_refused():
    cuts, _ = montage(128, 128)
    origins = cuts.around(np.random.default_rng(0).uniform(0, 128, (40, 2)))
    assert cuts.plan(origins, NO_STRIP, highest=64) is None
    assert cuts.plan(origins[:3], NO_STRIP, highest=64) is not None
    with pytest.raises(ValueError, match="at least two regions of 32 px"):
        montage(63, 128)


def test_the_size_follows_from_the_card():
    card = ModelCard(
        method="lodestar",
        input_dtype="uint16",
        n_channels=1,
        columns=("y_px", "x_px", "score"),
        threshold=0.3,
        object_diameter_px=8.3,
        settings={"pooling": 1, "stride_px": 2, "split_cells": True, "fit": True},
    )
    assert RegionSize.of(card, 6.0) == SIZE
    not_fitted = replace(card, settings={**card.settings, "fit": False})
    assert RegionSize.of(not_fitted, 6.0).margin_px == 20
    of_before = replace(card, settings={"pooling": 1, "fit": True})  # cells of 2 px, no blocks
    assert RegionSize.of(of_before, 6.0).grid_px == 4
    large = replace(card, object_diameter_px=53.0, settings={**card.settings, "pooling": 2, "stride_px": 4})
    assert RegionSize.of(large, 37.0) == RegionSize(16, 96, 32)
