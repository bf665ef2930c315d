"""SHOT's network: claims where and as bright as it says, rendered as the camera would see them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from oneframe.acquisition.emitters import EmitterCamera
from oneframe.acquisition.psf import GaussianPsf, Width, render
from oneframe.trainer.emitter_crops import EmitterWorld, draw_crops
from oneframe.trainer.shot_network import CELL_PX, REACH_PX, Claims, ShotNetwork, ShotSettings

FLAT = GaussianPsf.flat(1.3)
ASTIGMATIC = GaussianPsf(Width(1.3, 0.25, 0.4), Width(1.2, -0.25, 0.5, 0.1), (-0.4, 0.4))
WORLD = EmitterWorld(FLAT, EmitterCamera(1.34, 100.0, 1.6), 3000.0, (15.0, 40.0), (0.005, 0.05))
SMALL = ShotSettings(channels=8, blocks=1)


def network_of(world: EmitterWorld = WORLD, seed: int = 0, **changed: object) -> ShotNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ShotNetwork(world, replace(SMALL, **changed))


def random_claims(psf: GaussianPsf, h: int, w: int, seed: int = 0, n: int = 2) -> Claims:
    """Claims anywhere within their cells' reach, so that those of the outer cells lie beyond the border too."""
    random = torch.Generator().manual_seed(seed)

    def even(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, h, w, generator=random)

    y = CELL_PX * torch.arange(h)[:, None] + 0.5 + even(-REACH_PX, REACH_PX)
    x = CELL_PX * torch.arange(w) + 0.5 + even(-REACH_PX, REACH_PX)
    zero = torch.zeros(n, h, w)
    z = {"z_um": even(*psf.z_range_um), "log_sigma_z": zero} if psf.has_z else {}
    return Claims(even(-3, 3), y, x, even(100, 3000), even(5, 50), zero, zero, zero, **z)


@pytest.mark.parametrize(("h", "w"), [(12, 9), (3, 16)])
@pytest.mark.parametrize("psf", [FLAT, ASTIGMATIC], ids=["flat", "astigmatic"])
def test_claims_are_rendered_as_the_point_spread_function_says(psf, h, w):
    claims = random_claims(psf, h, w)
    image = network_of(replace(WORLD, psf=psf)).render(claims)
    assert image.shape == (2, 1, CELL_PX * h, CELL_PX * w)
    for k in range(2):
        y, x, photons, logit = (each[k].flatten().double().numpy() for each in
                                (claims.y_px, claims.x_px, claims.photons, claims.logit))  # fmt: skip
        z = claims.z_um[k].flatten().double().numpy() if psf.has_z else np.zeros(h * w)
        sigma_y, sigma_x = psf.sigmas(z)
        expected = render(y, x, photons / (1 + np.exp(-logit)), sigma_y, sigma_x, (CELL_PX * h, CELL_PX * w))
        expected += np.kron(claims.background[k].double().numpy(), np.ones((CELL_PX, CELL_PX)))
        # the patch ends 4 sigma beyond the reach: 6e-5 of the light of the brightest
        np.testing.assert_allclose(image[k, 0].numpy(), expected, rtol=1e-4, atol=0.02)
    outside = (claims.y_px < -0.5) | (claims.x_px < -0.5) | (claims.y_px > CELL_PX * h - 0.5)
    assert outside.any()


@pytest.mark.parametrize("psf", [FLAT, ASTIGMATIC], ids=["flat", "astigmatic"])
def test_rendering_has_the_right_gradients(psf):
    network = network_of(replace(WORLD, psf=psf))
    claims = random_claims(psf, 3, 4, n=1)
    used = {name: getattr(claims, name) for name in ("logit", "y_px", "x_px", "photons", "background", "z_um")}
    used = {name: each.double().requires_grad_() for name, each in used.items() if each is not None}

    def rendered(*values: torch.Tensor) -> torch.Tensor:
        return network.render(claims._replace(**dict(zip(used, values, strict=True))))

    assert torch.autograd.gradcheck(rendered, tuple(used.values()), eps=1e-4, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_claims_start_silent_and_near_their_cells():
    crops = draw_crops(WORLD, 2, 32, np.random.default_rng(0))
    claims = network_of()(crops.counts)[-1]
    assert claims.logit.shape == (2, 16, 16)
    assert torch.sigmoid(claims.logit).max() < 0.2
    cells = CELL_PX * torch.arange(16) + 0.5
    assert (claims.y_px - cells[:, None]).abs().max() < REACH_PX
    assert (claims.x_px - cells).abs().max() < REACH_PX
    assert (claims.photons > 0).all()
    assert float(claims.background.mean()) == pytest.approx(WORLD.level, rel=0.1)
    assert claims.z_um is None


def test_no_claim_leaves_its_reach_or_the_limits_of_its_sigma():
    network = network_of(replace(WORLD, psf=ASTIGMATIC))
    features = 1e3 * torch.randn(1, 8, 6, 7, generator=torch.Generator().manual_seed(0))
    claims = network.decode(features)
    cells = CELL_PX * torch.arange(6)[:, None] + 0.5
    assert (claims.y_px - cells).abs().max() <= REACH_PX + 1e-5
    assert (claims.z_um.abs() <= 1.25 * 0.4 + 1e-6).all()
    for log_sigma in (claims.log_sigma_y, claims.log_sigma_x, claims.log_sigma_photons, claims.log_sigma_z):
        assert (log_sigma >= -4.5).all()
        assert (log_sigma <= 1.5).all()
    assert (claims.photons >= 0).all()


def test_the_same_light_on_another_camera_gives_the_same_claims():
    electrons = np.random.default_rng(0).poisson(30, (1, 1, 16, 16)).astype(np.float32)
    told = []
    for camera in (EmitterCamera(1.0, 100.0, 1.6), EmitterCamera(7.5, 350.0, 1.6)):
        counts = torch.from_numpy(camera.gain * electrons + camera.offset)
        told.append(network_of(replace(WORLD, camera=camera))(counts)[-1])
    for one, other in zip(*told, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("refinements", [1, 2])
def test_a_refinement_changes_nothing_at_first_and_then_learns(refinements):
    network = network_of(refinements=refinements)
    counts = draw_crops(WORLD, 2, 16, np.random.default_rng(0)).counts
    claims = network(counts)
    assert len(claims) == refinements + 1
    for name in ("logit", "y_px", "photons"):
        torch.testing.assert_close(getattr(claims[0], name), getattr(claims[-1], name))
    claims[-1].logit.sum().backward()
    assert network.correction.weight.grad.abs().max() > 0
    with torch.no_grad():
        network.correction.weight.add_(0.05)
    claims = network(counts)
    assert (claims[0].logit - claims[-1].logit).abs().max() > 1e-4
    network.zero_grad()
    claims[-1].logit.sum().backward()
    assert all(each.grad is not None and each.grad.abs().max() > 0 for each in network.merge.parameters())


def test_earlier_frames_are_seen():
    network = network_of(n_frames=3)
    counts = draw_crops(replace(WORLD, n_frames=3), 1, 16, np.random.default_rng(0)).counts
    changed = counts.clone()
    changed[:, 0, 8, 8] += 500
    assert not torch.equal(network(counts)[-1].logit, network(changed)[-1].logit)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_steps": 0}, "n_steps must be 1 or more, got 0"),
        ({"channels": 4}, "channels must be 8 or more, got 4"),
        ({"blocks": 0}, "blocks must be 1 or more, got 0"),
        ({"n_frames": 0}, "n_frames must be 1 or more, got 0"),
        ({"refinements": -1}, "refinements must be 0 or more, got -1"),
        ({"crop_px": 33}, "crop_px and crops must be even, got 33 and"),
        ({"crops": 7}, "must be even, got 32 and 7"),
        ({"refinements": 3}, "at most 2 refinements and 5 frames, got 3 and 1"),
        ({"n_frames": 6}, "at most 2 refinements and 5 frames, got 0 and 6"),
        ({"matching": "best"}, "expected matching exact, sinkhorn or published, got 'best'"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0"),
        ({"background_weight": -1.0}, "background_weight must be 0 or more, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(ShotSettings(), **changed)
