"""The foreground by noise passes on simulated frames, and what it says where there is but one kind of pixels."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from oneframe.acquisition import open_source
from oneframe.trainer.loop import LoopSettings
from oneframe.trainer.noise_proposals import SETTINGS, LightNetwork, noise_proposal, steadiness


class Shaken(LightNetwork):
    """Offsets that follow the pixels around, ten times less where the image is bright."""

    def whole(self, image):
        local = torch.nn.functional.avg_pool2d(image, 9, 1, 4)
        bright = torch.nn.functional.avg_pool2d(image, 3, 1, 1) > 0.4
        return torch.where(bright, 0.1 * local, local).expand(-1, 2, -1, -1)


@pytest.fixture(scope="module")
def frame():
    with closing(open_source("sim:cells?seed=2&width=160&height=128&n=12&diameter_px=24")) as source:
        return source.read(5.0).pixels.astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(40, 50), (41, 51), (9, 10)])
@torch.no_grad()
def test_any_size_gets_offsets_everywhere(height, width):
    network, image = LightNetwork(), torch.rand(1, 1, height, width)
    whole = network.whole(image)
    assert whole.shape == (1, 2, height, width)
    if height % 2 == 0:
        torch.testing.assert_close(whole[..., 8:-8, 8:-8], network(image))


def test_what_is_steady_is_found_and_noise_has_but_one_kind_of_pixels():
    y, x = np.indices((96, 110))
    cells = np.hypot(y % 40 - 20, x % 40 - 20) < 11
    rng = np.random.default_rng(0)
    seen = (0.7 * cells + rng.normal(0, 0.02, cells.shape)).astype(np.float32)
    found = steadiness(Shaken(), seen, SETTINGS, np.random.default_rng(0)).pixels
    assert (found & cells).sum() / (found | cells).sum() > 0.7
    nothing = rng.normal(0, 0.02, cells.shape).astype(np.float32)
    assert not steadiness(Shaken(), nothing, SETTINGS, rng).two_kinds


def test_an_untrained_network_is_refused_after_two_attempts(frame):
    told = []
    with pytest.raises(ValueError, match=r"pixels of two kinds.* got one .*take another foreground"):
        noise_proposal(
            frame,
            1.0,
            0,
            settings=replace(SETTINGS, crops=2, noise_passes=4),
            schedule=LoopSettings(1, 1e-6),
            on_progress=lambda each: told.append((each.attempt, each.note)),
        )
    assert told == [(1, "learning offsets for the foreground"), (2, "learning offsets for the foreground")]
