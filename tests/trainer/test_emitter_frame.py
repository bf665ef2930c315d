"""What is read off a simulated frame is what it was made with; what a frame cannot tell is refused."""

import math

import numpy as np
import pytest
from scipy.ndimage import zoom

from oneframe.acquisition.emitters import EmitterCamera
from oneframe.acquisition.psf import render
from oneframe.trainer.emitter_frame import read_emitter_frame

PIXEL_UM = 0.1
SCMOS = EmitterCamera()


def frames(
    seed, density_um2, size=128, *, n=1, sigma_px=1.3, photons=3000.0, on_frames=1.0, camera=SCMOS,
    background=(15.0, 40.0),
):  # fmt: skip
    """Return counts (n, size, size), the background (size, size), and the true density per um^2."""
    rng = np.random.default_rng(seed)
    margin = 8
    whole = size + 2 * margin
    hills = zoom(rng.random((whole // 32 + 2,) * 2), 32, order=3)[:whole, :whole]
    low, high = background
    level = low + (high - low) * (hills - hills.min()) / np.ptp(hills)
    stack, counted = [], 0
    for _ in range(n):
        m = rng.poisson(density_um2 * (whole * PIXEL_UM) ** 2)
        part = np.ones(m)
        if math.isfinite(on_frames):
            begin = rng.uniform(-12 * on_frames, 1, 40 * m + 100)
            overlap = np.minimum(begin + rng.exponential(on_frames, len(begin)), 1) - np.maximum(begin, 0)
            part = overlap[overlap > 0.01][:m]
        y, x = rng.uniform(-0.5, whole - 0.5, (2, len(part)))
        width = np.full(len(part), sigma_px)
        light = photons * rng.lognormal(-math.log(1.09) / 2, math.sqrt(math.log(1.09)), len(part)) * part
        image = render(y, x, light, width, width, (whole, whole)) + level
        counts = camera.digitised(camera.expose(image, rng))
        stack.append(counts[margin:-margin, margin:-margin])
        inside = (np.abs(np.stack([y, x]) - (whole - 1) / 2) < size / 2).all(0)
        counted += int(inside.sum())
    true_um2 = counted / n / (size * PIXEL_UM) ** 2
    return np.stack(stack), level[margin:-margin, margin:-margin], true_um2


@pytest.mark.parametrize("density_um2", [0.2, 1.0, 3.0, 5.0])
def test_a_frame_tells_what_it_was_made_with(density_um2):
    counts, background, true_um2 = frames(int(10 * density_um2), density_um2)
    found = read_emitter_frame(counts[0], pixel_size_um=PIXEL_UM)
    assert found.psf_sigma_px == pytest.approx(1.3, rel=0.04)
    assert found.gain == pytest.approx(1.34, rel=0.10)
    assert found.background == pytest.approx(background.mean(), rel=0.12)
    assert found.photons == pytest.approx(3000, rel=0.25)
    assert found.density_um2 == pytest.approx(true_um2, rel=0.30)
    assert found.origins["offset"] == "assumed"
    assert any("offset as" in note for note in found.notes)
    if density_um2 <= 1:
        assert np.corrcoef(found.background_map.ravel(), background.ravel())[0, 1] > 0.9
        assert 30 < found.background_length_px < 150


def test_a_stack_tells_an_unusual_offset():
    camera = EmitterCamera(gain=2.2, offset=210.0)
    counts, background, _ = frames(1, 2.0, n=6, camera=camera)
    found = read_emitter_frame(counts, pixel_size_um=PIXEL_UM)
    assert found.origins["offset"] == "measured"
    assert found.offset == pytest.approx(210, abs=4 * found.errors["offset"])
    assert found.gain == pytest.approx(2.2, abs=4 * found.errors["gain"])
    assert found.background == pytest.approx(background.mean(), rel=0.2)
    assert found.camera == EmitterCamera(found.gain, found.offset, 1.6)


def test_what_is_given_stays_and_helps():
    camera = EmitterCamera(gain=6.0, offset=300.0, read_noise=60.0, em_gain=300.0)
    counts, background, true_um2 = frames(2, 1.0, camera=camera)
    given = {"offset": 300.0, "read_noise": 60.0, "em_gain": 300.0, "psf_sigma_px": 1.3, "photons": 3000.0}
    found = read_emitter_frame(counts[0], pixel_size_um=PIXEL_UM, on_frames=1.0, **given)
    assert {name: getattr(found, name) for name in given} == given
    assert all(found.origins[name] == "given" for name in ("offset", "read_noise", "psf_sigma_px", "photons"))
    assert found.gain == pytest.approx(6, rel=0.1)
    assert found.density_um2 == pytest.approx(true_um2, rel=0.2)
    assert found.background == pytest.approx(background.mean(), rel=0.1)
    both = read_emitter_frame(counts[0], pixel_size_um=PIXEL_UM, gain=6.0, density_um2=1.0, **given)
    assert both.density_px == pytest.approx(0.01)
    assert not {"gain", "offset", "photons", "density_px", "psf_sigma_px"} & set(both.errors)


def test_emitters_that_do_not_blink_are_noticed():
    counts, _, true_um2 = frames(3, 0.5, n=2, on_frames=math.inf)
    found = read_emitter_frame(counts, pixel_size_um=PIXEL_UM)
    assert found.on_frames > 1
    assert found.origins["on_frames"] == "measured"
    assert found.photons == pytest.approx(3000, rel=0.2)
    assert found.density_um2 == pytest.approx(true_um2, rel=0.2)


@pytest.mark.parametrize("sigma_px", [0.9, 2.2])
def test_other_widths(sigma_px):
    counts, _, _ = frames(4, 1.0, sigma_px=sigma_px)
    found = read_emitter_frame(counts[0], pixel_size_um=PIXEL_UM)
    assert found.psf_sigma_px == pytest.approx(sigma_px, rel=0.05)
    assert found.gain == pytest.approx(1.34, rel=0.15)


def test_the_counts_unit_does_not_matter():
    counts, _, _ = frames(5, 1.0)
    one = read_emitter_frame(counts[0].astype(float), offset=100.0)
    two = read_emitter_frame(2.0 * counts[0], offset=200.0)
    assert two.gain == pytest.approx(2 * one.gain, rel=0.01)
    assert two.photons == pytest.approx(one.photons, rel=0.05)
    assert two.density_um2 is None


def test_lines_say_where_each_number_is_from():
    counts, _, _ = frames(6, 1.0)
    lines = read_emitter_frame(counts[0], pixel_size_um=PIXEL_UM, gain=1.34).lines()
    assert any(line == "gain, counts per photoelectron: 1.34 (given)" for line in lines)
    assert any(line.startswith("read noise, electrons: 1.6 (assumed)") for line in lines)
    assert any(line.startswith("emitters per um^2: ") and line.endswith("(measured)") for line in lines)


def noise(seed=0, level=30.0, size=96):
    return np.random.default_rng(seed).poisson(level, (size, size)).astype(np.uint16) + 100


def test_a_frame_that_cannot_tell_is_refused():
    counts = frames(7, 1.0)[0][0]
    with pytest.raises(ValueError, match="expected a frame of emitters, got one that looks like noise"):
        read_emitter_frame(noise())
    with pytest.raises(ValueError, match="got 100 in every pixel"):
        read_emitter_frame(np.full((96, 96), 100, np.uint16))
    with pytest.raises(ValueError, match=r"not saturated, got \d+ pixels that all have 200 counts"):
        read_emitter_frame(np.minimum(counts, 200))
    with pytest.raises(ValueError, match="4096 px together, got 1 of 48 x 48; snap a larger frame"):
        read_emitter_frame(counts[:48, :48])
    with pytest.raises(ValueError, match="finite counts"):
        read_emitter_frame(np.where(counts > 300, np.nan, counts))
    with pytest.raises(ValueError, match=r"expected a frame .* got shape"):
        read_emitter_frame(np.zeros((2, 2, 96, 96)))
    with pytest.raises(ValueError, match=r"sigma 0.7 to 4.0 px, got 0\.[3-6]"):
        read_emitter_frame(frames(8, 1.0, sigma_px=0.45)[0][0])


def test_a_frame_without_noise_does_not_tell_the_gain():
    rng = np.random.default_rng(9)
    y, x = rng.uniform(0, 96, (2, 100))
    width = np.full(100, 1.3)
    image = 100 + render(y, x, rng.uniform(500, 3000, 100), width, width, (96, 96)) + 20
    with pytest.raises(ValueError, match="give the gain"):
        read_emitter_frame(np.rint(image).astype(np.uint16))
    with pytest.raises(ValueError, match="give the gain"):
        read_emitter_frame(image)


def test_values_that_make_no_sense_are_refused():
    counts = frames(10, 1.0)[0][0]
    with pytest.raises(ValueError, match="expected gain above 0, got -1"):
        read_emitter_frame(counts, gain=-1.0)
    with pytest.raises(ValueError, match="give the pixel size too"):
        read_emitter_frame(counts, density_um2=1.0)
    with pytest.raises(ValueError, match="above the offset 5000"):
        read_emitter_frame(counts, offset=5000.0)
