"""Simulated films of cells: they grow, divide, creep and push each other, seen in three contrasts, with exact masks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition.emitters import EmitterCamera
from oneframe.acquisition.simulated_source import SimulatedSource, open_scene, scene_of
from oneframe.acquisition.source import SourceError, SourceURL

Array = NDArray[np.float64]
Single = NDArray[np.float32]

MODALITIES: dict[str, dict[str, Any]] = {
    "fluorescence": {},
    "phase": {
        "n": 55,
        "diameter_px": 32.0,
        "elongation": 4.0,
        "pixel_um": 0.065,
        "blur_px": 1.3,
        "photons": 0.0,
        "background": 4000.0,
        "uneven": 0.03,
        "motion_px": 0.05,
    },
    "bright-field": {
        "n": 60,
        "diameter_px": 34.0,
        "elongation": 1.12,
        "pixel_um": 0.3,
        "blur_px": 1.2,
        "photons": 0.0,
        "background": 4000.0,
        "uneven": 0.06,
        "motion_px": 0.3,
    },
}
"""What a typical film of each contrast has otherwise than the defaults of `CellScene`: see `CellScene.of`."""

MOST_COVERED = 0.8
"""Share of the frame that cells may cover at the start; beyond it they could not but overlap."""
_CONFLUENT = 0.88
"""Cells stop growing where they cover this share: contact inhibition."""
_PERSISTENCE = 0.8
"""What is left of a cell's velocity after a frame: it keeps its way for some 5 frames."""
_MITOSIS = 0.045
"""Generations that chromosomes are condensed before a division, and after it."""
_CONDENSED = 0.55
"""Area of a condensed nucleus over that of the same one before."""
_PLATE = 2.2
"""Length over width of the chromosomes in mitosis."""
_ASPECT_CV = 0.13
_LEAN = 2.5
"""Sizes and aspects are drawn from laws cut off at so many standard deviations: the reach of a cell is known."""
_HISTORY_STEP = 1 / 24
"""Generations per step of the growth that leads up to the first frame."""
_NOTCH = 0.6
"""Half-width of the furrow of a dividing cell over its radius."""

_CELL = np.dtype(
    [
        ("id", np.int64),
        ("parent", np.int64),
        ("yx", np.float64, 2),
        ("velocity", np.float64, 2),
        ("angle", np.float64),
        ("area", np.float64),
        ("limit", np.float64),  # divides at this area
        ("young", np.float64),  # generations since its birth
        ("aspect", np.float64),
        ("bend", np.float64),
        ("lobes", np.float64, 4),  # third and fourth harmonic of the outline
        ("light", np.float64),
        ("patch", np.float64, 2),  # where in the table of textures it has its own
    ]
)


@dataclass(frozen=True, slots=True)
class CellScene:
    """Cells in one plane: nuclei in fluorescence, rods in phase contrast or round cells in bright field.

    Each field is also an option of the SOURCE `sim:cells?field=value&...`. The defaults are those of fluorescence;
    `CellScene.of` and the SOURCE begin with the typical values of the modality they are given.

    Raises
    ------
    ValueError
        If a value makes no sense.
    """

    modality: str = "fluorescence"
    """`fluorescence`: bright nuclei; `phase`: dark rods with a halo; `bright-field`: rims of low contrast."""
    width: int = 512
    """Columns of the camera, px."""
    height: int = 512
    """Rows of the camera, px."""
    n: int = 95
    """Mean number of cells in the first frame; those cut by its border count by the part that is seen."""
    diameter_px: float = 24.0
    """Diameter of the circle that has the area of a mean cell, px."""
    diameter_cv: float = 0.1
    """Spread of the size at which cells divide: standard deviation over mean of the diameter. Growth adds to it."""
    elongation: float = 1.45
    """Length over width of a mean cell, 1 or more."""
    brightness_cv: float = 0.45
    """Spread of the light from cell to cell: standard deviation over mean of a log-normal law; the dim ones matter."""
    texture: float = 0.2
    """Grain within a cell: standard deviation over mean of its light."""
    pixel_um: float = 0.65
    """Edge of a pixel in the sample, micrometres."""
    blur_px: float = 1.2
    """Standard deviation of the optical blur in the first frame, px."""
    photons: float = 160.0
    """Fluorescence: mean photoelectrons per pixel of a mean cell above the background. Else 0: a cell sends none."""
    background: float = 25.0
    """Light where there is no cell, photoelectrons per pixel."""
    uneven: float = 0.2
    """Slow unevenness of the background: largest deviation over its mean, 0 (flat) to below 1."""
    read_noise: float = 1.6
    """Standard deviation of the read noise, electrons."""
    gain: float = 1.34
    """Counts per photoelectron."""
    offset: float = 100.0
    """Counts without light."""
    motion_px: float = 0.4
    """Own motion: standard deviation of the velocity along each axis, px per frame; kept for some 5 frames."""
    doubling_frames: float = 0.0
    """Frames in which the number and the area of the cells double; 0: they neither grow nor divide."""
    half_life_frames: float = 0.0
    """Frames in which the light of the cells halves (fluorescence), or that of the lamp; 0: it stays."""
    focus_drift_px: float = 0.0
    """What is added to the blur per frame, in quadrature, px."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise ValueError(f"expected modality {', '.join(MODALITIES)}, got {self.modality!r}")
        if self.width < 32 or self.height < 32:
            raise ValueError(f"the frame must be at least 32 x 32 px, got {self.width} x {self.height}")
        if not 6 <= self.diameter_px <= min(self.width, self.height) / 2:
            raise ValueError(
                f"expected diameter_px from 6 to half the shorter edge of the frame, got {self.diameter_px:g}; "
                "make the frame larger or the cells smaller"
            )
        if not 1 <= self.elongation <= 8:
            raise ValueError(f"elongation must be from 1 (round) to 8, got {self.elongation:g}")
        if self.rods and self.elongation < 2:
            raise ValueError(
                f"elongation must be 2 or more in phase contrast, got {self.elongation:g}: rods of one width halve; "
                "take bright-field for round cells"
            )
        if not 0 <= self.diameter_cv <= 0.15:
            raise ValueError(f"diameter_cv must be from 0 to 0.15, got {self.diameter_cv:g}: daughters would divide")
        if not 0 <= self.texture <= 0.5:
            raise ValueError(f"texture must be from 0 to 0.5, got {self.texture:g}")
        if not 0 <= self.uneven < 1:
            raise ValueError(f"uneven must be 0 or more and below 1, got {self.uneven:g}")
        for name in ("pixel_um", "blur_px"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name):g}")
        counted = ("n", "brightness_cv", "photons", "background", "motion_px", "doubling_frames", "half_life_frames")
        for name in (*counted, "focus_drift_px"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name):g}")
        if 0 < self.doubling_frames < 5:
            raise ValueError(
                f"doubling_frames must be 0 (no growth) or 5 or more, got {self.doubling_frames:g}: "
                "cells would divide in every frame"
            )
        covered = self.n * self.area_px / (self.width * self.height)
        if covered > MOST_COVERED:
            raise ValueError(
                f"expected n cells that cover {MOST_COVERED:g} of the frame at most, got {covered:.2f}; "
                "lower n or diameter_px"
            )
        EmitterCamera(self.gain, self.offset, self.read_noise)

    @classmethod
    def of(cls, modality: str, **values: Any) -> CellScene:
        """Return the typical scene of a modality, with these values otherwise."""
        return cls(modality=modality, **{**MODALITIES.get(modality, {}), **values})

    @property
    def camera(self) -> EmitterCamera:
        """The camera that looks on."""
        return EmitterCamera(self.gain, self.offset, self.read_noise)

    @property
    def rods(self) -> bool:
        """Whether cells are straight rods with round ends that grow in length; else ellipses, a little uneven."""
        return self.modality == "phase"

    @property
    def area_px(self) -> float:
        """Area of a mean cell, px^2."""
        return math.pi * self.diameter_px**2 / 4

    @property
    def rod_radius_px(self) -> float:
        """Half the width of a mean cell if it is a rod."""
        return math.sqrt(self.area_px / (4 * (self.elongation - 1) + math.pi))

    @property
    def birth_area_px(self) -> float:
        """Mean area of a newborn cell: in a population that doubles steadily, ages are distributed as 2^-age."""
        return self.area_px / (2 * math.log(2))

    @property
    def margin_px(self) -> int:
        """How far outside the frame cells live as well: further than any cell reaches."""
        largest = 2.4 * self.birth_area_px * math.exp(_LEAN * 2 * self.diameter_cv)
        if self.rods:
            radius = 0.9 * self.rod_radius_px
            reach = 1.06 * largest / (4 * radius) + 2 * radius
        else:
            aspect = max(_PLATE, self.elongation * math.exp(_LEAN * _ASPECT_CV))
            reach = 1.15 * math.sqrt(largest / math.pi * aspect)
        return math.ceil(reach) + 4


@dataclass(frozen=True, slots=True, eq=False)
class CellTruth:
    """The cells seen in one frame, as they really are; columns have shape (N,), row i - 1 is label i."""

    labels: NDArray[np.int32]
    """(H, W): 0 background, 1..N."""
    cell_id: NDArray[np.int64]
    """1 and up; the same in all frames. A division ends it, and so does leaving the neighbourhood of the frame."""
    parent_id: NDArray[np.int64]
    """The cell that divided into this one, however long ago; 0: none. It may have lived outside the frame."""
    y_px: Array
    """Centroid of the pixels in the frame."""
    x_px: Array
    area_px: NDArray[np.int64]
    """Pixels in the frame."""


@dataclass(frozen=True, slots=True, eq=False)
class CellPixels:
    """The pixels about all cells, cell by cell: columns of equal length, except `best`."""

    cell: NDArray[np.int64]
    """Row in the table of cells."""
    at: NDArray[np.int64]
    """Flat index in the world (frame and margin)."""
    depth: Single
    """Distance to the outline, px; positive inside."""
    rho: Single
    """0 on the middle line, 1 on the outline."""
    along: Single
    """Coordinates in the cell, px: along its axis and across."""
    across: Single
    best: Single
    """One value per pixel of the world: the largest `depth` of all cells."""

    @property
    def own(self) -> NDArray[np.bool_]:
        """Which pixels belong to the cell: inside, and no other cell's outline is further away."""
        inside: NDArray[np.bool_] = (self.depth > 0) & (self.depth == self.best[self.at])
        return inside


class CellLife:
    """The cells' life, frame by frame; needs no images, so truth can be replayed at any time from the seed.

    The world is the frame and a margin, and what leaves it on one side comes in on the other as another cell. Cells
    repel each other as rods with round ends. Those of the first frame descend from a few: they lie together as
    in a culture.
    """

    def __init__(self, scene: CellScene) -> None:
        from scipy.fft import next_fast_len

        self._scene = scene
        self._rng = np.random.default_rng([scene.seed, 1])
        margin = scene.margin_px
        height, width = (next_fast_len(size + 2 * margin, real=True) for size in (scene.height, scene.width))
        self.world = (height, width)
        """Height and width of the world, px: good ones for a Fourier transform."""
        self.window = (slice(margin, margin + scene.height), slice(margin, margin + scene.width))
        """Where the frame lies in the world."""
        self._extent = np.array(self.world, float)
        self._growth = 1 / scene.doubling_frames if scene.doubling_frames else 0.0  # generations per frame
        self._mitosis = max(_MITOSIS, 3 * self._growth)
        self._cells = np.empty(0, _CELL)
        self._next_id = 1
        self._found()
        self._pixels: CellPixels | None = None

    @property
    def cells(self) -> NDArray[np.void]:
        """All that live in the world, one structured row each; positions in the world."""
        return self._cells

    def advance(self) -> None:
        """Move on to the next frame."""
        self._live(self._growth, self._scene.motion_px)
        self._pixels = None

    def condensation(self) -> Array:
        """Return how far each cell (N,) is in mitosis: 0 not at all, 1 dividing or just divided."""
        cells = self._cells
        left = np.log2(cells["limit"] / cells["area"])
        phase = np.maximum(1 - left / self._mitosis, 1 - cells["young"] / self._mitosis)
        if self._scene.modality != "fluorescence":
            phase = 1 - left / 0.2
        ramp = np.clip(1.5 * phase, 0, 1)
        smooth: Array = ramp**2 * (3 - 2 * ramp)
        return smooth

    def pixels(self) -> CellPixels:
        """Return the pixels of all cells of the world."""
        if self._pixels is None:
            self._pixels = self._raster()
        return self._pixels

    def truth(self) -> CellTruth:
        """Return the cells that have at least one pixel in the frame."""
        pixels = self.pixels()
        own = pixels.own
        world = np.zeros(self.world, np.int64)
        world.ravel()[pixels.at[own]] = pixels.cell[own] + 1
        frame = world[self.window]
        area = np.bincount(frame.ravel(), minlength=self._cells.size + 1)
        seen = np.flatnonzero(area[1:])
        label = np.zeros(self._cells.size + 1, np.int32)
        label[seen + 1] = np.arange(1, seen.size + 1)
        labels = label[frame]
        flat = labels.ravel()
        rows, columns = np.divmod(np.arange(flat.size), frame.shape[1])
        area = np.bincount(flat, minlength=seen.size + 1)[1:]
        y_px, x_px = (np.bincount(flat, axis, minlength=seen.size + 1)[1:] / area for axis in (rows, columns))
        return CellTruth(labels, self._cells["id"][seen], self._cells["parent"][seen], y_px, x_px, area)

    def _found(self) -> None:
        """Grow the first frame out of fewer cells, some generations before."""
        scene, rng = self._scene, self._rng
        n = round(scene.n * float(np.prod(self._extent)) / (scene.height * scene.width))
        generations, motion = (3, 0.01) if scene.rods else (2, 0.1)
        self._cells = np.empty(math.ceil(n / 2**generations), _CELL)
        cells = self._cells
        self._draw(cells)
        cells["yx"] = rng.random((cells.size, 2)) * self._extent
        cells["velocity"] = 0
        cells["angle"] = rng.uniform(0, 2 * np.pi, cells.size)
        cells["light"] = np.exp(self._light_sigma * rng.standard_normal(cells.size) - self._light_sigma**2 / 2)
        cells["aspect"] = self._leaning(scene.elongation, _ASPECT_CV, cells.size)
        cells["young"] = rng.random(cells.size)
        cells["area"] = cells["limit"] / 2 ** (1 - cells["young"])
        while 0 < self._cells.size < n:
            self._live(_HISTORY_STEP, motion * scene.diameter_px, most=n)
        for _ in range(10):
            self._live(0.0, 0.0)
        self._cells["velocity"] = scene.motion_px * rng.standard_normal((self._cells.size, 2))
        self._cells["id"] = np.arange(1, self._cells.size + 1)
        self._cells["parent"] = 0
        self._next_id = self._cells.size + 1

    @property
    def _light_sigma(self) -> float:
        return math.sqrt(math.log1p(self._scene.brightness_cv**2))

    def _leaning(self, mean: float, cv: float, n: int) -> Array:
        """Values (n,) about a mean, log-normal and cut off."""
        drawn: Array = mean * np.exp(cv * np.clip(self._rng.standard_normal(n), -_LEAN, _LEAN))
        return drawn

    def _draw(self, cells: NDArray[np.void]) -> None:
        """Give new cells what they do not inherit."""
        rng = self._rng
        cells["id"] = np.arange(self._next_id, self._next_id + cells.size)
        self._next_id += cells.size
        cells["parent"] = 0
        # areas vary twice as much as diameters
        cells["limit"] = self._leaning(2 * self._scene.birth_area_px, 2 * self._scene.diameter_cv, cells.size)
        cells["young"] = 0
        cells["bend"] = 0.035 * np.clip(rng.standard_normal(cells.size), -_LEAN, _LEAN)
        cells["lobes"] = np.clip(0.02 * rng.standard_normal((cells.size, 4)), -0.04, 0.04)
        cells["patch"] = rng.random((cells.size, 2))

    def _live(self, generations: float, motion_px: float, most: int | None = None) -> None:
        """Grow, divide up to so many cells, creep and push."""
        rng, cells = self._rng, self._cells
        confluent = cells["area"].sum() >= _CONFLUENT * float(np.prod(self._extent))
        if generations and (most is not None or not confluent):
            cells["area"] *= 2**generations
            cells["young"] += generations
            self._divide(most)
            cells = self._cells
        kick = rng.standard_normal((cells.size, 2))
        cells["velocity"] = _PERSISTENCE * cells["velocity"] + math.sqrt(1 - _PERSISTENCE**2) * motion_px * kick
        cells["yx"] += cells["velocity"]
        cells["angle"] += rng.standard_normal(cells.size) * motion_px / self._scene.diameter_px
        self._push(n_steps=8 if generations else 4)
        gone = ((cells["yx"] < 0) | (cells["yx"] >= self._extent)).any(axis=1)
        cells["yx"] = self._wrapped()
        cells["id"][gone] = np.arange(self._next_id, self._next_id + np.count_nonzero(gone))
        cells["parent"][gone] = 0
        self._next_id += int(np.count_nonzero(gone))

    def _divide(self, most: int | None) -> None:
        """Replace each cell that has reached its limit by two halves of it."""
        scene, rng, cells = self._scene, self._rng, self._cells
        due = np.flatnonzero(cells["area"] >= cells["limit"])
        if most is not None:
            due = due[: most - cells.size]
        if not due.size:
            return
        mothers = cells[due]
        share = 0.5 + 0.02 * np.clip(rng.standard_normal(due.size), -2, 2)
        daughters = np.concatenate([mothers, mothers])
        side = np.repeat([1.0, -1.0], due.size)
        self._draw(daughters)
        daughters["parent"] = np.tile(mothers["id"], 2)
        daughters["area"] *= np.concatenate([share, 1 - share])
        daughters["limit"] = np.maximum(daughters["limit"], 1.25 * daughters["area"])
        aspect = scene.elongation * (daughters["aspect"] / scene.elongation) ** 0.5
        daughters["aspect"] = np.clip(
            aspect * np.exp(_ASPECT_CV * 0.85 * np.clip(rng.standard_normal(side.size), -1, 1)),
            scene.elongation * math.exp(-_LEAN * _ASPECT_CV),
            scene.elongation * math.exp(_LEAN * _ASPECT_CV),
        )
        # a clone resembles itself: light is inherited but for a part, of a spread that keeps that of all
        sigma = self._light_sigma
        inherited = 0.8 * (np.log(daughters["light"]) + sigma**2 / 2)
        daughters["light"] = np.exp(inherited + 0.6 * sigma * rng.standard_normal(side.size) - sigma**2 / 2)
        self._cells = daughters
        half_length, radius = self._halves()
        sin, cos = np.sin(daughters["angle"]), np.cos(daughters["angle"])
        if scene.modality == "fluorescence":
            # anaphase: two plates leave each other across their length
            axis, apart = np.column_stack([cos, -sin]), 1.1 * radius
            daughters["velocity"] = (side * 0.6 * scene.diameter_px * (1 - _PERSISTENCE))[:, None] * axis
        else:
            axis, apart = np.column_stack([sin, cos]), half_length + radius
        daughters["yx"] += (side * apart)[:, None] * axis
        daughters["angle"] += 0.06 * rng.standard_normal(side.size)
        self._cells = np.concatenate([np.delete(cells, due), daughters])

    def _halves(self) -> tuple[Array, Array]:
        """Return half the length of the middle line and the radius about it, (N,) px, of the cells as they are now."""
        scene, cells = self._scene, self._cells
        condensed = self.condensation()
        if scene.rods:
            radius = scene.rod_radius_px * (1 + 0.8 * cells["bend"])  # some are a little wider
            # the furrow takes area, which length gives back
            furrow = 2 * math.sqrt(math.pi) * _NOTCH * self._furrow(condensed) * radius**2
            half = np.maximum(cells["area"] + furrow - np.pi * radius**2, 0) / (4 * radius)
            return half, radius
        area = cells["area"]
        if scene.modality == "fluorescence":
            area = area * (1 - (1 - _CONDENSED) * condensed)
            aspect = cells["aspect"] ** (1 - condensed) * _PLATE**condensed
        else:
            aspect = cells["aspect"] ** (1 - condensed) * 1.6**condensed
            furrow, x = self._furrow(condensed), 1 / _NOTCH**2
            # mean over the circle of (1 - furrow exp(-(cos / notch)^2))^2
            area = area / (1 - 2 * furrow * math.exp(-x / 2) * np.i0(x / 2) + furrow**2 * math.exp(-x) * np.i0(x))
        minor = np.sqrt(area / (np.pi * np.maximum(aspect, 1 / aspect)))
        major = area / (np.pi * minor)
        return major - minor, minor

    def _furrow(self, condensed: Array) -> Array:
        """Depth of the furrow (N,) over the radius."""
        depth: Array = 0.3 * condensed
        return depth

    def _push(self, n_steps: int) -> None:
        """Move and turn cells that overlap out of each other: softly, a part of the overlap each step."""
        from scipy.spatial import cKDTree

        cells = self._cells
        if cells.size < 2:
            return
        half, radius = self._halves()
        # nuclei touch with a little overlap, shared out by the nearest outline, so that they abut as real ones do
        contact = radius * (1.0 if self._scene.rods else 0.94)
        reach = half + contact
        tree = cKDTree(self._wrapped(), boxsize=self._extent)
        i, j = tree.query_pairs(2 * float(reach.max()) + 2, output_type="ndarray").T
        near = np.hypot(*self._between(i, j).T) < reach[i] + reach[j] + 2
        i, j = i[near], j[near]
        if not i.size:
            return
        least = contact[i] + contact[j]
        # moments of a uniform rod over its mass, px^2
        inertia = (half + radius) ** 2 / 3
        for _ in range(n_steps):
            axis = np.column_stack([np.sin(cells["angle"]), np.cos(cells["angle"])])
            between = self._between(i, j)
            s, t = _closest(between, axis[i], axis[j], half[i], half[j])
            gap = between + t[:, None] * axis[j] - s[:, None] * axis[i]
            distance = np.maximum(np.hypot(*gap.T), 1e-6)
            overlap = np.maximum(least - distance, 0.0)
            if overlap.max() < 0.01:
                break
            normal = gap / distance[:, None]
            lever_i, lever_j = (s * _cross(axis[i], normal), t * _cross(axis[j], normal))
            yielding = 2 + lever_i**2 / inertia[i] + lever_j**2 / inertia[j]
            force = 0.7 * overlap / yielding
            for k in (0, 1):
                shift = np.bincount(j, force * normal[:, k], cells.size) - np.bincount(
                    i, force * normal[:, k], cells.size
                )
                cells["yx"][:, k] += shift
            turn = np.bincount(j, force * lever_j, cells.size) - np.bincount(i, force * lever_i, cells.size)
            cells["angle"] += np.clip(turn / inertia, -0.2, 0.2)

    def _wrapped(self) -> Array:
        """Positions (N, 2) in the world: from 0 to below its size, which the remainder of -1e-17 is not."""
        wrapped = self._cells["yx"] % self._extent
        return np.where(wrapped < self._extent, wrapped, 0.0)

    def _between(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> Array:
        """Vectors (P, 2) from cells i to cells j, the short way round the world."""
        vector = self._cells["yx"][j] - self._cells["yx"][i]
        short: Array = vector - self._extent * np.rint(vector / self._extent)
        return short

    def _raster(self) -> CellPixels:
        """Distances to the outline in the boxes that hold the cells."""
        scene, cells = self._scene, self._cells
        half, radius = self._halves()
        sin, cos = np.sin(cells["angle"]), np.cos(cells["angle"])
        if scene.rods:
            box = half[:, None] * np.abs(np.column_stack([sin, cos])) + 1.5
            box += (radius + 2 / 3 * np.abs(cells["bend"]) * half)[:, None]
        else:
            major = half + radius
            box = 1.12 * np.hypot(major[:, None] * np.column_stack([sin, cos]), radius[:, None] * np.c_[cos, sin]) + 1.5
        first = np.ceil(cells["yx"] - box).astype(np.int64)
        size = np.floor(cells["yx"] + box).astype(np.int64) - first + 1
        n_pixels = size.prod(axis=1)
        cell = np.repeat(np.arange(cells.size), n_pixels)
        count = np.arange(cell.size) - np.repeat(np.cumsum(n_pixels) - n_pixels, n_pixels)
        row = count // size[cell, 1]
        column = count - row * size[cell, 1]
        start = (first - cells["yx"]).astype(np.float32)
        y = row.astype(np.float32) + start[cell, 0]
        x = column.astype(np.float32) + start[cell, 1]
        at = (row + first[cell, 0]) % self.world[0] * self.world[1] + (column + first[cell, 1]) % self.world[1]
        sin32, cos32 = sin.astype(np.float32)[cell], cos.astype(np.float32)[cell]
        along, across = x * cos32 + y * sin32, y * cos32 - x * sin32
        half32, radius32 = half.astype(np.float32), radius.astype(np.float32)
        furrow = self._furrow(self.condensation()).astype(np.float32)
        if scene.rods:
            depth, rho = _rod(along, across, half32, radius32, furrow, cells["bend"].astype(np.float32), cell)
        else:
            if scene.modality == "fluorescence":
                furrow = np.zeros_like(furrow)
            depth, rho = _ellipse(along, across, half32 + radius32, radius32, furrow, cells["lobes"], cell)
        best = np.full(self.world, -np.inf, np.float32)
        np.maximum.at(best.ravel(), at, depth)
        return CellPixels(cell, at, depth, rho, along, across, best.ravel())


def _cross(axis: Array, normal: Array) -> Array:
    """How far (P,) points at 1 on the axes move along the normals when the axes turn."""
    moved: Array = normal[:, 0] * axis[:, 1] - normal[:, 1] * axis[:, 0]
    return moved


def _closest(between: Array, axis_i: Array, axis_j: Array, half_i: Array, half_j: Array) -> tuple[Array, Array]:
    """Return where two segments come closest, (P,) each, px from their middles along their axes.

    References
    ----------
    Ericson, Real-Time Collision Detection (2005), sec. 5.1.9.
    """
    cosine = (axis_i * axis_j).sum(axis=1)
    on_i, on_j = (between * axis_i).sum(axis=1), (between * axis_j).sum(axis=1)
    # the 0.05 draws parallel rods together in their middles, not at a chance end
    s = np.clip((on_i - cosine * on_j) / (1.05 - cosine**2), -half_i, half_i)
    t = np.clip(cosine * s - on_j, -half_j, half_j)
    return np.clip(on_i + cosine * t, -half_i, half_i), t


def _rod(
    along: Single, across: Single, half: Single, radius: Single, furrow: Single, bend: Single, cell: NDArray[np.int64]
) -> tuple[Single, Single]:
    """Depth and rho (M,) in slightly bent rods with round ends."""
    curve, flat = bend / np.maximum(half, 1), half * half / 3
    across = (across + curve[cell] * (along * along - flat[cell])).astype(np.float32)
    beyond = np.maximum(np.abs(along) - half[cell], 0)
    distance = np.sqrt(beyond * beyond + across * across)
    width = radius[cell]
    rho = (distance / width).astype(np.float32)
    if furrow.any():
        pinch = furrow[cell] * np.exp(-((along / (_NOTCH * width)) ** 2))
        width = (width * (1 - pinch)).astype(np.float32)
    return width - distance, rho


def _ellipse(
    along: Single, across: Single, major: Single, minor: Single, furrow: Single, lobes: Array, cell: NDArray[np.int64]
) -> tuple[Single, Single]:
    """Depth and rho (M,) in ellipses whose outline is a little uneven; depth is exact near the outline."""
    p, q = along / major[cell], across / minor[cell]
    circle = np.sqrt(p * p + q * q) + np.float32(1e-6)
    turn = (p + 1j * q) / circle
    coefficients = (lobes[:, 0::2] + 1j * lobes[:, 1::2]).astype(np.complex64)
    cube = turn * turn * turn
    edge = 1 + (cube * (coefficients[cell, 0] + coefficients[cell, 1] * turn)).real
    if furrow.any():
        edge = edge * (1 - furrow[cell] * np.exp(-((turn.real / np.float32(_NOTCH)) ** 2)))
    slope = np.sqrt((turn.real / major[cell]) ** 2 + (turn.imag / minor[cell]) ** 2)
    depth = (edge - circle) / slope
    return depth.astype(np.float32), (circle / edge).astype(np.float32)


def _waves(shape: tuple[int, int], length_px: float, rng: np.random.Generator) -> Array:
    """Sum plane waves of random directions to a field (H, W) whose largest value, or lowest, is 1, or -1."""
    y, x = (np.arange(n) for n in shape)
    field = np.zeros(shape)
    for ky, kx, phase in zip(*rng.normal(0, 1 / length_px, (2, 16)), rng.uniform(0, 6.28, 16), strict=True):
        field += np.cos(ky * y[:, None] + kx * x + phase)
    field -= field.mean()
    scaled: Array = field / np.abs(field).max()
    return scaled


def _grain(n_px: int, scales_px: tuple[float, ...], rng: np.random.Generator) -> Array:
    """Periodic Gaussian noise (n_px, n_px) of standard deviation 1, of several scales in equal parts."""
    frequency = np.hypot(np.fft.fftfreq(n_px)[:, None], np.fft.rfftfreq(n_px))
    total = np.zeros((n_px, n_px))
    for scale in scales_px:
        spectrum = np.fft.rfft2(rng.standard_normal((n_px, n_px))) * np.exp(-2 * (np.pi * scale * frequency) ** 2)
        spectrum[0, 0] = 0
        grain = np.fft.irfft2(spectrum, (n_px, n_px))
        total += grain / grain.std()
    return total / math.sqrt(len(scales_px))


class CellMovie:
    """Takes pictures of a `CellScene`, one after the other."""

    def __init__(self, scene: CellScene) -> None:
        self.scene = scene
        self.life = CellLife(scene)
        rng = np.random.default_rng([scene.seed, 3])
        shape = (scene.height, scene.width)
        self._uneven = 1 + scene.uneven * _waves(shape, min(shape) / 3, rng)
        self._texture = self._textures(rng)
        self._dirt = np.ones(shape) if scene.modality == "fluorescence" else _dirt(shape, scene.diameter_px, rng)
        self._camera = scene.camera
        self._rng = np.random.default_rng([scene.seed, 2])
        self._frame = 0
        self._transfer: tuple[float, Single] | None = None

    @property
    def blur_px(self) -> float:
        """Standard deviation of the blur in the current frame."""
        return math.hypot(self.scene.blur_px, self.scene.focus_drift_px * self._frame)

    @property
    def brightness(self) -> float:
        """What is left of the light of the first frame."""
        return 2.0 ** (-self._frame / self.scene.half_life_frames) if self.scene.half_life_frames else 1.0

    @property
    def background(self) -> Array:
        """Expected light (H, W) without cells in the current frame, photoelectrons per pixel."""
        fading = 1.0 if self.scene.modality == "fluorescence" else self.brightness
        light: Array = fading * self.scene.background * self._uneven * self._dirt
        return light

    def expected(self) -> Array:
        """Return the picture (H, W) without noise, photoelectrons per pixel."""
        from scipy.fft import irfft2, rfft2

        scene = self.scene
        light: Array
        # the world is periodic, so that the optics may be too: what lies outside the frame shines in exactly
        seen = irfft2(rfft2(self._sample()) * self._optics(), self.life.world)[self.life.window]
        if scene.modality == "fluorescence":
            light = self.background + scene.photons * self.brightness * np.maximum(seen, 0)
            return light
        # the light that passed by and that which passed through a cell interfere
        light = self.background * (1 - np.clip(seen, -0.9, 0.92)) ** 2
        return light

    def expose(self) -> NDArray[np.uint16]:
        """Return a picture (H, W) of the current frame, in camera counts; each call has noise of its own."""
        return self._camera.digitised(self._camera.expose(self.expected(), self._rng))

    def truth(self) -> CellTruth:
        """Return the cells of the current frame."""
        return self.life.truth()

    def advance(self) -> None:
        """Move on to the next frame."""
        self.life.advance()
        self._frame += 1

    def _textures(self, rng: np.random.Generator) -> Single:
        """Make the table, periodic, that cells cut their grain from: mean 1, spread `texture`, not below 0."""
        scene = self.scene
        grain = _grain(512, (0.035 * scene.diameter_px + 0.5, 0.09 * scene.diameter_px), rng)
        # nucleoli: dark and round
        spots = np.maximum(_grain(512, (0.08 * scene.diameter_px,), rng) - 1.3, 0)
        grain -= 3 * spots * (scene.modality == "fluorescence")
        grain -= grain.mean()
        table: Single = np.maximum(1 + scene.texture * grain / grain.std(), 0).astype(np.float32)
        return table

    def _sample(self) -> Single:
        """Draw what the world (H, W) is to the light: fluorescence over that of a mean cell, or retardation."""
        scene, pixels, cells = self.scene, self.life.pixels(), self.life.cells
        # an outline cuts a pixel in parts, but the part of a neighbour inside is the neighbour's
        drawn = np.flatnonzero((pixels.depth > -0.5) & (pixels.own | (pixels.best[pixels.at] <= 0)))
        cell, at, rho = pixels.cell[drawn], pixels.at[drawn], pixels.rho[drawn]
        light = np.minimum(pixels.depth[drawn] + np.float32(0.5), 1)
        start = 512 * cells["patch"][cell].astype(np.float32)
        row = (pixels.along[drawn] + start[:, 0]).astype(np.int64) & 511
        column = (pixels.across[drawn] + start[:, 1]).astype(np.int64) & 511
        grain = self._texture[row, column]
        dome = np.sqrt(np.maximum(1 - rho * rho, 0))
        if scene.modality == "fluorescence":
            # (0.55 + 0.45 dome) / 0.85: mean 1 over an ellipse
            condensed = self.life.condensation()
            glow = cells["light"] * (1 + (_CONDENSED**-1.5 - 1) * condensed)
            light *= (np.float32(0.647) + np.float32(0.529) * dome) * grain * glow.astype(np.float32)[cell]
        elif scene.rods:
            thick = np.exp(0.25 * np.clip(np.log(cells["light"]), -1.5, 1.5)).astype(np.float32)
            light *= (np.float32(0.6) + np.float32(0.4) * dome) * (1 + np.float32(0.4) * (grain - 1)) * thick[cell]
        else:
            light *= (np.float32(0.35) + np.float32(0.65) * dome) * (1 + np.float32(0.5) * (grain - 1))
        world = np.bincount(at, light, self.life.world[0] * self.life.world[1]).astype(np.float32)
        return world.reshape(self.life.world)

    def _optics(self) -> Single:
        """Return the transfer function (H, W // 2 + 1) for the world in the current focus."""
        blur_px = self.blur_px
        if self._transfer is None or self._transfer[0] != blur_px:
            height, width = self.life.world
            square = (np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width) ** 2).astype(np.float32)
            self._transfer = (blur_px, self._contrast(square, blur_px))
        return self._transfer[1]

    def _contrast(self, square: Single, blur_px: float) -> Single:
        """Return the transfer at frequencies squared, px^-2."""

        def gauss(sigma_px: float) -> Single:
            transfer: Single = np.exp(np.float32(-2 * (math.pi * sigma_px) ** 2) * square)
            return transfer

        scene = self.scene
        if scene.modality == "fluorescence":
            # an eighth of the light comes from out of focus: the haze about bright nuclei
            return np.float32(0.87) * gauss(blur_px) + np.float32(0.13) * gauss(
                math.hypot(blur_px, scene.diameter_px / 2)
            )
        if scene.rods:
            # the ring of a phase objective shifts the broad part of the scattered light too: halo and shade-off
            radius = scene.rod_radius_px
            halo = 0.5 * gauss(math.hypot(blur_px, 0.8 * radius)) + 0.4 * gauss(math.hypot(blur_px, 2.6 * radius))
            return np.float32(0.95) * (gauss(blur_px) - halo)
        # a little out of focus a cell is a weak lens: its rim is dark outside, bright inside
        rim = gauss(blur_px) - gauss(math.hypot(blur_px, 0.09 * scene.diameter_px))
        return np.float32(-0.28) * rim + np.float32(0.015) * gauss(blur_px)


def _dirt(shape: tuple[int, int], diameter_px: float, rng: np.random.Generator) -> Array:
    """Transmission (H, W) of glass and medium, about 1: mottle, and rings of dust out of focus."""
    side = 2 ** math.ceil(math.log2(max(shape)))
    dirt = 1 + 0.008 * _grain(side, (1.5, 4.0, 9.0), rng)[: shape[0], : shape[1]]
    y, x = np.arange(shape[0])[:, None], np.arange(shape[1])
    for _ in range(rng.poisson(shape[0] * shape[1] / 4e4)):
        size_px = diameter_px * rng.uniform(0.12, 0.3)
        square = ((y - rng.uniform(0, shape[0])) ** 2 + (x - rng.uniform(0, shape[1])) ** 2) / size_px**2
        dirt += rng.uniform(-0.06, 0.04) * np.cos(3 * np.sqrt(square)) * np.exp(-square / 2)
    return dirt


class SimulatedCells(SimulatedSource[CellScene, CellTruth]):
    """`sim:cells` as a source; a `CellLife` of its scene replays the truth."""

    def __init__(self, scene: CellScene, *, n_frames: int | None, fps: float, url: str) -> None:
        super().__init__(CellMovie(scene), n_frames=n_frames, fps=fps, url=url, pixel_size_um=scene.pixel_um)


def cell_scene(url: SourceURL) -> CellScene:
    """Read the scene out of `sim:cells?...`, leaving `frames` and `fps` in the options."""
    modality = url.options.text("modality", "fluorescence")
    if modality not in MODALITIES:
        raise SourceError(f"{url.text}: expected modality {', '.join(MODALITIES)}, got {modality!r}")
    return scene_of(CellScene.of(modality), url, given={"modality": modality})


def open_cells(url: SourceURL) -> SimulatedCells:
    """Open `sim:cells?frames=..&fps=..&seed=..` and every field of `CellScene`."""
    return open_scene(SimulatedCells, cell_scene(url), url)
