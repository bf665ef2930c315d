"""A logged run of single molecules on filaments, with known drift: for the tests of what is done with such a run."""

from contextlib import closing
from pathlib import Path

import numpy as np

from oneframe.acquisition import Frame, SourceInfo
from oneframe.runtime.card import ModelCard
from oneframe.runtime.detections import Detections, Tracks
from oneframe.runtime.record import RunRecord, complete_run
from oneframe.runtime.seams import Analysed

PSF_SIGMA_PX = 1.3
SHAPE = (64, 80)
COLUMNS = ("y_px", "x_px", "score", "photons", "background", "sigma_y_px", "sigma_x_px")
CARD = ModelCard("shot", "uint16", 1, COLUMNS, 0.5, 2.3548 * PSF_SIGMA_PX)


def filaments(rng: np.random.Generator, shape=SHAPE, n=8) -> np.ndarray:
    """Return points (N, 2) on curved lines."""
    height, width = shape
    step = np.linspace(0, 1, 3000)
    lines = []
    for _ in range(n):
        angle = rng.uniform(0, 2 * np.pi) + rng.normal(0, 1.5) * step
        start = rng.uniform((5, 5), (height - 5, width - 5))
        lines.append(start + np.stack([np.cumsum(np.sin(angle)), np.cumsum(np.cos(angle))], 1) * width / 3000)
    points = np.concatenate(lines)
    return points[((points > 1) & (points < (height - 2, width - 2))).all(axis=1)]


def drift_px(frame, n_frames: int) -> np.ndarray:
    """Return (N, 2): 2 px along y and back by half, 1 px along x."""
    share = np.asarray(frame) / n_frames
    return np.stack([2 * np.sin(2.6 * share), -(share**2)], axis=1)


def emitters(rng: np.random.Generator, points: np.ndarray, n: int, *, with_z=False) -> Detections:
    """Return detections with errors as large as they say."""
    photons = rng.lognormal(np.log(1500), 0.4, n)
    sigma = 2 * PSF_SIGMA_PX / np.sqrt(photons)
    yx = points[rng.integers(0, len(points), n)] + rng.normal(0, 1, (n, 2)) * sigma[:, None]
    columns = {
        "y_px": yx[:, 0], "x_px": yx[:, 1], "score": rng.uniform(0.6, 1, n), "photons": photons,
        "background": np.full(n, 20.0), "sigma_y_px": sigma, "sigma_x_px": sigma,
    }  # fmt: skip
    if with_z:
        columns |= {"z_um": rng.uniform(-0.4, 0.4, n), "sigma_z_um": np.full(n, 0.03)}
    return Detections(**{name: values.astype(np.float32) for name, values in columns.items()})


def log_run(folder: Path, *, n_frames=400, n=30, pixel_size_um=0.1, drift=True, **options) -> None:
    rng = np.random.default_rng(7)
    points = filaments(rng)
    source = SourceInfo("sim:emitters", live=False, pixel_size_um=pixel_size_um)
    pixels = np.zeros(SHAPE, np.uint16)
    with closing(RunRecord(folder, card=CARD, source=source, settings={})) as record:
        for index in range(n_frames):
            moved = points + drift_px([index], n_frames) * drift
            rows = emitters(rng, moved, n, **options)
            frame = Frame(pixels, index, 1.7e9 + index * 0.02)
            record.write(Analysed(frame, Tracks(rows, np.arange(n) + index * n), age_s=0.02, inference_s=0.01))
        account = record.counts()
    complete_run(folder, account, "end of source")
