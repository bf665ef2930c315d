"""The Wiener filter keeps the particle and takes the noise that no optics can pass."""

import numpy as np

from oneframe.acquisition.simulated import add_bead, bead_table
from oneframe.trainer.crops import denoised


def test_noise_goes_and_the_particle_stays():
    clean = np.zeros((121, 121))
    add_bead(clean, 60.3, 59.6, 100.0, bead_table(0.6, 0.7, 0.66, 0.1))
    clean /= clean.max()
    noise = np.random.default_rng(0).normal(0, 0.1, clean.shape)
    filtered = denoised((clean + noise).astype(np.float32), 14.0)
    near = np.hypot(*(np.indices(clean.shape) - 60)) < 15
    left = (filtered - clean)[near].std()
    assert left < 0.5 * noise[near].std()
    assert abs(filtered.max() - 1) < 0.15
    np.testing.assert_allclose(filtered[near].sum(), (clean + noise)[near].sum(), rtol=0.05)


def test_without_noise_nothing_changes():
    clean = np.zeros((101, 101))
    add_bead(clean, 50.2, 50.4, 100.0, bead_table(0.6, 0.7, 0.66, 0.1))
    clean /= clean.max()
    np.testing.assert_allclose(denoised(clean.astype(np.float32), 14.0), clean, atol=0.02)
