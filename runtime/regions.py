"""A LodeSTAR model that looks at whole frames only now and then: in between at regions around its particles.

Most of a frame with few particles is empty. `RegionModel` cuts the squares where the linker expects its tracks, those
where a coarse look at the whole frame sees a change, and in every other frame a strip, in turn another one; the graph
sees them as one image (`Montage`). What is found is what the whole frame would give; positions agree to 0.01 px where
the particle was fitted. Scores and `variance_px2` differ near the rim of a region's core, where the network sees the
neighbouring region in place of what is more than the margin away.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition import Frame
from oneframe.runtime.card import ModelCard
from oneframe.runtime.detections import Detections
from oneframe.runtime.link import FrameLinker
from oneframe.runtime.model import OnnxModel
from oneframe.runtime.montage import NO_STRIP, Ints, Led, Montage, Plan, RegionSize, Strip, each_object_once
from oneframe.runtime.newcomers import NewcomerLook
from oneframe.runtime.wrapped_model import WrappedModel

N_STRIPS = 60
"""Strips that cover the frame."""
STRIP_EVERY = 2
"""One of so many frames has a strip."""
N_STRIPS_ALONE = 10
"""Strips where the coarse look is not trusted; then every frame has one."""
PAYS = 0.6
"""Share of the frame that may be looked at; with more, the whole frame is hardly slower."""
REACH = 0.7
"""Half a core over the farthest link, which is three to five typical steps; what moves farther shows as a change."""
LONGEST_GAP = 50
"""Frames of the source from one analysed frame to the next, beyond which the next one is looked at as a whole."""
DOUBTFUL = 0.5
"""Places with a score above this share of the threshold are looked at again in the next frame."""
LOST = 0.2
"""If more than this share of the detections, and three, are gone at once, the whole frame is looked at."""
N_REFUSED = 5
"""Frames in a row in which regions do not serve, until whole frames are taken."""
N_WHOLE = 100
"""So many, before regions are tried again."""
FAINT = 0.2
"""Without known particles: by how much a newcomer changes a block, over the contrast of the learned one."""
PARTICLE_PX = 2000
"""Pixels that take the graph as long as finding and fitting one particle."""
LOOK_SHARE = 1 / 22
"""Of the frame's pixels: as many take the graph as long as the coarse look."""


class RegionModel(WrappedModel):
    """Looks at whole frames only when it has to, otherwise at regions, a coarse view and a strip.

    A newcomer that changes the coarse view at least half as much as nine of ten known particles would is looked at in
    the frame in which it appears; any other at the latest after `longest_unseen_frames` analysed frames, unless it
    moves from strip to strip. Whole frames are taken first, after a long gap, for another shape of frame, after a frame
    that could not be used, when many particles are lost at once, and wherever regions do not pay.

    Parameters
    ----------
    network : OnnxModel
        Of a method with one row per particle, for camera images of one channel.
    linker : FrameLinker
        Must be given every frame's detections before the next frame: it knows where particles are expected.
    always : bool
        Take regions wherever they are smaller than the frame. Else they must pay (`PAYS`), and the coarse view must
        tell particles from noise.

    Raises
    ------
    ValueError
        If the model is of another kind.
    """

    def __init__(self, network: OnnxModel, linker: FrameLinker, *, always: bool = False) -> None:
        super().__init__(network)
        if not serves(network.card):
            raise ValueError(
                f"regions are for LodeSTAR models of camera images of one channel, got {network.card.method} of "
                f"{network.card.n_channels}; analyse whole frames"
            )
        self._linker = linker
        self._always = always
        self._size = RegionSize.of(network.card, REACH * linker.settings.max_distance_px)
        self._pool = ThreadPoolExecutor(1, "oneframe-regions")
        self._scene: _Scene | None = None
        self._kind: tuple[tuple[int, ...], float] | None = None  # shape and threshold of the frame before
        self._index = self._last_index = 0
        self._fresh = False  # the coarse look knows the frame before
        self._n_found = 0
        self._doubtful = np.empty((0, 2))  # where something scores nearly enough
        self._turn = 0
        self._trouble = 0
        self._rest = 0
        self.on = False
        """Whether the frames of now are looked at by regions."""
        self._n_by_regions = 0
        self._longest_unseen_frames = 1

    @property
    def longest_unseen_frames(self) -> int:
        """Analysed frames after which every place was looked at, with regions on; 1 for whole frames."""
        if not self.on or self._scene is None:
            return 1
        return self._scene.n_turns

    def report(self) -> dict[str, int]:
        """Return what `run.json` says of it."""
        return {"frames_by_regions": self._n_by_regions, "longest_unseen_frames": self._longest_unseen_frames}

    def check(self, frame: Frame) -> None:
        """Take note of the number of the frame that comes next; else it is the one after the last."""
        self._index = frame.index

    def detect(self, image: NDArray[Any]) -> Detections:
        """Find the objects of the next frame; its detections must be linked before the one after it.

        Parameters
        ----------
        image : (H, W)
            Camera pixels.

        Raises
        ------
        ValueError
            If the frame does not fit the model, or nothing was imaged; the next one is then looked at as a whole.
        """
        follows = self._fresh and self._index - self._last_index <= LONGEST_GAP
        self._fresh = False
        pixels = self._network.as_input(image)
        kind = (pixels.shape, self.threshold)
        if kind != self._kind:
            self._kind, follows = kind, False
            self._scene = self._scene_of(pixels)
        was_on = self.on
        found = self._found(pixels, follows)
        self._n_found = len(found)
        self._last_index, self._index = self._index, self._index + 1
        return found if self.on == was_on else replace(found, notes=(self._note(),))

    @cached_property
    def _halves(self) -> list[OnnxModel]:
        """The graph twice, each on one thread; empty where it has no two threads."""
        return self._network.twins()[:2]

    def _scene_of(self, pixels: NDArray[Any]) -> _Scene | None:
        """Return what belongs to frames of this shape, None if they are too small for regions."""
        if min(pixels.shape) < 2 * self._size.edge_px:
            return None
        return _Scene.of(pixels, self._size, self.card)

    def _found(self, pixels: NDArray[Any], follows: bool) -> Detections:
        scene = self._scene
        if scene is None or self._rest:
            self._rest = max(0, self._rest - 1)
            return self._network.run(pixels)
        found = None
        if follows:
            found = self._by_regions(scene, pixels)
            self._weigh(serves=found is not None)
        else:
            scene.look.look(pixels)
        if found is None:
            found = self._certain(self._run(self._network, pixels))
            scene.look.seen_all()
        if not self.on or self._turn == 0:
            scene.look.know(found.yx_px, FAINT * self.card.normalisation.get("scale", np.inf))
        self._fresh = True
        return found

    def _by_regions(self, scene: _Scene, pixels: NDArray[Any]) -> Detections | None:
        """Find the objects of what is chosen; None if that does not pay or too many are lost.

        Where the graph may use two threads, one sees the first of the expected places while the other looks at the
        frame as a whole and then sees the rest: threads that share the steps of so small a graph only wait for each
        other.
        """
        montage = scene.montage
        expected = self._expected(montage)
        highest = int((1.0 if self._always else PAYS) * montage.shape[0])
        first = self._first(scene, expected, highest)
        if first is None:
            scene.look.look(pixels)
            return None
        ahead = self._ahead(scene, first, pixels)
        parts = []
        try:
            scene.look.look(pixels)
            rest = self._rest_of(scene, expected, first, highest)
            if rest is not None:
                parts.append(self._part(self._network if ahead is None else self._halves[1], montage, rest, pixels, 1))
        finally:
            if ahead is not None:
                parts.append(ahead.result())
        if rest is None:
            return None
        found = self._certain(_joined(parts, same_px=self.card.object_diameter_px / 4))
        if len(found) < min((1 - LOST) * self._n_found, self._n_found - 2):
            return None
        self._n_by_regions += 1
        self._longest_unseen_frames = max(self._longest_unseen_frames, scene.n_turns)
        return found

    def _expected(self, montage: Montage) -> Ints:
        """Return where the regions start that hold what is to be looked at again, (N, 2)."""
        expected = self._linker.expected(self._index)
        inside = ((expected >= -0.5) & (expected < np.array(montage.shape) - 0.5)).all(1)
        return montage.each_once(montage.around(np.concatenate([expected[inside], self._doubtful])))

    def _first(self, scene: _Scene, expected: Ints, highest: int) -> Plan | None:
        """Choose the regions that need not wait for the coarse look; None if all are too many."""
        if len(expected) > highest // self._size.edge_px * scene.montage.n_columns:
            return None
        n = scene.n_ahead(len(expected), self._turn + 1) if self._halves else 0
        return scene.montage.plan(expected[:n], NO_STRIP, highest=highest)

    def _rest_of(self, scene: _Scene, expected: Ints, first: Plan, highest: int) -> Plan | None:
        """Choose what else to look at; None if that does not pay."""
        montage, look = scene.montage, scene.look
        look.seen(*montage.cores(expected))
        changed = montage.gathered(look.changed())
        if not (look.trusted or self._always):
            return None
        scene.divide(trusted=look.trusted)
        self._turn = (self._turn + 1) % scene.n_turns
        strip = scene.strip_of(self._turn)
        look.seen(*montage.cores(changed))
        look.seen(np.array([[strip.first, 0]]), np.array([[strip.end, montage.shape[1]]]))
        others = np.concatenate([expected[len(first.origins) :], changed])
        return montage.plan(others, strip, highest=highest - first.height * first.width // montage.shape[1])

    def _ahead(self, scene: _Scene, first: Plan, pixels: NDArray[Any]) -> Future[_Part] | None:
        """Begin with a plan in another thread, if it has regions."""
        if not first.height:
            return None
        return self._pool.submit(self._part, self._halves[0], scene.montage, first, pixels, 0)

    def _part(self, network: OnnxModel, montage: Montage, plan: Plan, pixels: NDArray[Any], sheet: int) -> _Part:
        """Find the objects of a plan, doubtful ones as well."""
        found = Detections.none(self.card.columns)
        if plan.height:
            found = self._run(network, montage.cut(pixels, plan, sheet=sheet))
        return _Part(found, montage.back(plan, found.yx_px))

    def _run(self, network: OnnxModel, pixels: NDArray[Any]) -> Detections:
        """Find objects, doubtful ones as well."""
        threshold = self.threshold
        try:
            network.threshold = DOUBTFUL * threshold
            return network.run(pixels)
        finally:
            network.threshold = threshold

    def _certain(self, found: Detections) -> Detections:
        """Return what reaches the threshold, and keep in mind where the rest is."""
        certain = found.score >= np.float32(self.threshold)
        self._doubtful = found.yx_px[~certain]
        return found if certain.all() else found.rows(certain)

    def _weigh(self, *, serves: bool) -> None:
        """Decide whether regions stay on: a frame in which they do not serve weighs as much as two in which they do."""
        self._trouble = max(0, self._trouble - 1) if serves else self._trouble + 2
        if serves:
            self.on = True
        if self._trouble >= 2 * N_REFUSED:
            self.on, self._trouble, self._rest = False, 0, N_WHOLE

    def _note(self) -> str:
        if not self.on:
            return "whole frames are analysed from here on: regions around the particles do not pay"
        return (
            "regions around the particles, changes and a strip are analysed from here on, no longer whole frames: a "
            f"newcomer that does not stand out may stay unseen for {self.longest_unseen_frames - 1} frames"
        )


def serves(card: ModelCard) -> bool:
    """Return whether a model can be given regions."""
    return card.method == "lodestar" and card.n_channels == 1 and not card.hologram and not card.maps


class _Part(NamedTuple):
    """What was found in a montage."""

    found: Detections
    led: Led


def _joined(parts: list[_Part], *, same_px: float) -> Detections:
    """Return the objects of a frame's montages, each once, where they are in the frame."""
    stays = each_object_once([part.led for part in parts], same_px=same_px)
    y_px, x_px = np.concatenate([part.led.positions for part in parts])[stays].astype(np.float32).T.copy()
    tables = [(part.found.columns(), part.led.rows) for part in parts]
    columns = {name: np.concatenate([table[name][rows] for table, rows in tables])[stays] for name in tables[0][0]}
    return Detections(**{**columns, "y_px": y_px, "x_px": x_px})


class _Scene:
    """What belongs to frames of one shape."""

    def __init__(self, montage: Montage, look: NewcomerLook) -> None:
        self.montage, self.look = montage, look
        self._strips: list[Strip] = []
        self._every = 0

    @classmethod
    def of(cls, pixels: NDArray[Any], size: RegionSize, card: ModelCard) -> _Scene:
        height, width = pixels.shape
        block_px = 2
        while size.grid_px % (2 * block_px) == 0 and 2 * block_px <= card.object_diameter_px / 1.5:
            block_px *= 2
        montage = Montage((height, width), pixels.dtype, size, card.normalisation.get("offset", 0.0))
        return cls(montage, NewcomerLook((height, width), block_px))

    @property
    def n_turns(self) -> int:
        """Frames in which the strips go over the whole frame."""
        return self._every * len(self._strips)

    def n_ahead(self, n: int, turn: int) -> int:
        """Return how many of n regions to begin with, so that the rest and the coarse look take as long as they do."""
        height, width = self.montage.shape
        strip = self.strip_of(turn % self.n_turns) if self._strips else NO_STRIP
        other_px = LOOK_SHARE * height * width + strip.n_cut * width
        return min(n, round(n / 2 + other_px / (2 * (self.montage.size.edge_px**2 + PARTICLE_PX))))

    def divide(self, *, trusted: bool) -> None:
        """Choose the strips for a coarse look that is trusted or not."""
        every = STRIP_EVERY if trusted else 1
        if every != self._every:
            self._every, self._strips = every, self.montage.strips(N_STRIPS if trusted else N_STRIPS_ALONE)

    def strip_of(self, turn: int) -> Strip:
        """Return the strip of a turn, from 0 to `n_turns`."""
        return NO_STRIP if turn % self._every else self._strips[turn // self._every]
