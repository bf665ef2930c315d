"""What every simulated sample must do as a source: repeat itself, tell its truth, keep its pace, end."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest

from oneframe.acquisition import EndOfStream, frames, open_source
from oneframe.acquisition.cells import MODALITIES, CellLife, CellScene, SimulatedCells
from oneframe.acquisition.emitters import EmitterBlinking, EmitterScene, SimulatedEmitters
from oneframe.acquisition.holograms import HologramScene, SimulatedHolograms, SphereMotion
from oneframe.acquisition.simulated import BeadMotion, BeadScene, SimulatedBeads
from oneframe.acquisition.simulated_source import SimulatedSource


@dataclass(frozen=True)
class Sample:
    """A simulated sample, and what must come of its options."""

    name: str
    source: type[SimulatedSource[Any, Any]]
    scene_of: Callable[..., Any]
    life: Callable[[Any], Any]
    """Makes the truth of a scene without images."""
    options: dict[str, Any]

    @property
    def scene(self) -> Any:
        return self.scene_of(**self.options)

    def opened(self, **options: Any) -> SimulatedSource[Any, Any]:
        words = {name: str(value).strip("()") for name, value in {**self.options, **options}.items()}
        source = open_source(f"sim:{self.name}?{urlencode(words)}")
        assert type(source) is self.source
        return source


BEADS = {"width": 64, "height": 48, "n": 9, "pixel_um": 0.13, "drift_x_px": -0.3, "lifetime": 5.0}
SPHERES = {"width": 96, "height": 80, "n": 3, "margin": 5.0, "radius_um": (0.2, 0.1), "carrier": (2.9, -3.0)}
BLINKING = {
    **{"width": 48, "height": 40, "density_um2": 3.0, "structure": "lines", "astigmatism_um": 0.2},
    **{"drift_x_px": -0.1, "pixel_um": 0.13, "em_gain": 100.0},
}
CELLS = {
    **{"width": 128, "height": 96, "n": 10, "diameter_px": 16.0},
    **{"doubling_frames": 8.0, "half_life_frames": 5.0},
}
SAMPLES = [
    Sample("beads", SimulatedBeads, BeadScene, BeadMotion, BEADS),
    Sample("hologram", SimulatedHolograms, HologramScene, SphereMotion, SPHERES),
    Sample("emitters", SimulatedEmitters, EmitterScene, EmitterBlinking, BLINKING),
    *(Sample("cells", SimulatedCells, CellScene.of, CellLife, {**CELLS, "modality": name}) for name in MODALITIES),
]


@pytest.fixture(params=SAMPLES, ids=["beads", "hologram", "emitters", *MODALITIES])
def sample(request: pytest.FixtureRequest) -> Sample:
    return request.param


def test_the_same_seed_gives_the_same_frames_and_another_seed_others(sample: Sample) -> None:
    first, again, other = (
        np.stack([frame.pixels for frame in frames(sample.opened(frames=4, seed=seed))]) for seed in (4, 4, 5)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5
    assert (first[0] != first[1]).mean() > 0.5


def test_the_truth_of_each_frame_is_replayed_without_images(sample: Sample) -> None:
    source = sample.opened(frames=10)
    replay = sample.life(source.scene)
    for index, _ in enumerate(frames(source)):
        if index:
            replay.advance()
        seen, again = source.truth(), replay.truth()
        assert seen.y_px.size
        for column in fields(seen):
            np.testing.assert_array_equal(getattr(seen, column.name), getattr(again, column.name))


def test_frames_come_as_told_until_the_end(sample: Sample) -> None:
    source = sample.opened(frames=2)
    assert source.scene == sample.scene
    assert source.info.n_frames == 2
    assert not source.info.live
    read = list(frames(source))
    assert [frame.index for frame in read] == [0, 1]
    for frame in read:
        assert frame.pixels.shape == (sample.scene.height, sample.scene.width)
        assert frame.pixels.dtype == np.uint16
        assert frame.pixel_size_um == source.info.pixel_size_um == sample.scene.pixel_um
    for _ in range(2):
        with pytest.raises(EndOfStream, match="all frames were made") as end:
            source.read(1.0)
        assert end.value.n_frames == 2


def test_a_live_camera_keeps_its_pace_until_it_is_closed(sample: Sample) -> None:
    live = sample.opened(fps=0.1)
    assert live.info.live
    assert live.info.n_frames is None
    assert live.read(0.0) is not None
    assert live.read(0.0) is None
    for _ in range(2):
        live.close()
    with pytest.raises(EndOfStream, match="closed") as end:
        live.read(0.0)
    assert end.value.n_frames == 1
