"""Drift that was put in comes out again, to a few nanometres; without structure nothing is claimed."""

import numpy as np
import pytest
from smlm_run import SHAPE, drift_px, filaments

from oneframe.runtime.stage_drift import estimate_drift

N_FRAMES = 1000


def localisations(n=20_000, *, sigma_px=0.2, drift=1.0, stray=0.1, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    points = filaments(rng, shape)
    frame = rng.integers(0, N_FRAMES, n)
    yx = points[rng.integers(0, len(points), n)]
    lost = rng.random(n) < stray
    yx[lost] = rng.uniform(0, np.array(shape) - 1, (lost.sum(), 2))
    yx = yx + drift * drift_px(frame, N_FRAMES) + rng.normal(0, sigma_px, (n, 2))
    return frame, yx[:, 0], yx[:, 1]


@pytest.mark.parametrize(
    ("options", "rms_px"),
    [({}, 0.03), ({"drift": 0.0}, 0.03), ({"n": 4000}, 0.1), ({"shape": (300, 280), "n": 8000}, 0.06)],
)
def test_known_drift_is_found(options, rms_px):
    frame, y_px, x_px = localisations(**options)
    every = np.arange(N_FRAMES)
    found = np.stack(estimate_drift(frame, y_px, x_px).at(every), axis=1)
    error = found - options.get("drift", 1.0) * (drift_px(every, N_FRAMES) - drift_px([0], N_FRAMES))
    assert np.sqrt((error**2).mean()) < rms_px  # 0.03 px are 3 nm of pixels of 100 nm, in 200 nm of drift
    assert np.abs(found[0]).max() < 1e-9


def test_the_order_of_the_rows_and_rows_without_a_place_make_no_difference():
    frame, y_px, x_px = localisations(6000)
    drift = estimate_drift(frame, y_px, x_px)
    order = np.random.default_rng(3).permutation(len(frame))
    y_px = np.append(y_px[order], np.nan)
    again = estimate_drift(np.append(frame[order], 5), y_px, np.append(x_px[order], 1.0))
    np.testing.assert_allclose(again.y_px, drift.y_px, atol=0.02)


def test_pairs_that_contradict_the_others_are_left_out():
    frame, y_px, x_px = localisations(n=12_000, stray=0.0)
    strange = (frame > 480) & (frame < 520)  # something bright walks through
    y_px[strange] = 20 + 0.02 * np.arange(strange.sum())
    found = estimate_drift(frame, y_px, x_px)
    error = found.at(np.arange(N_FRAMES))[0] - drift_px(np.arange(N_FRAMES), N_FRAMES)[:, 0]
    assert np.median(np.abs(error)) < 0.05


def test_too_little_is_refused():
    with pytest.raises(ValueError, match="expected 3000 localisations or more in 3 frames or more, got 2999"):
        estimate_drift(*localisations(2999))
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="expected segments that tell the same drift"):
        estimate_drift(rng.integers(0, N_FRAMES, 8000), *rng.uniform(0, 60, (2, 8000)))
