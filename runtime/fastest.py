"""How a model file runs fastest on this machine: what `oneframe bench` found, remembered for `live` and `log`."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from oneframe.runtime.backends import Backend, BackendError, Session, open_backend
from oneframe.runtime.load import LoadedModel

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised when a reader of the old version would misread what a new one wrote."""
CACHE_VARIABLE = "ONEFRAME_CACHE"
"""Names the folder in place of the system's."""
_RECORD = "fastest.json"


@dataclass(frozen=True, slots=True)
class Fastest:
    """What was found for frames of one size."""

    backend: Backend
    frame_shape: tuple[int, ...]
    """Of the camera's frame, (H, W) or (C, H, W)."""
    input_shape: tuple[int, ...]
    """Of what the graph takes, which is what counts: a window of frames, planes of a hologram."""
    ratio: float
    """Time of a frame over that of fp32 with all processors."""
    parts: dict[str, bytes] = field(default_factory=dict)
    """`backend.needs`, by name."""


def cache_folder() -> Path:
    """Return the folder for what can be found out again."""
    told = os.environ.get(CACHE_VARIABLE)
    if told:
        return Path(told)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "oneframe" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "oneframe"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oneframe"


def n_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def processor() -> str:
    """Return what tells this machine's processor from others: name, instruction sets, how many may be used."""
    text = f"{platform.processor()} {platform.machine()}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        told = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
        text = " ".join(value.strip() for key, value in sorted(told.items()) if key.strip() in ("model name", "flags"))
    except OSError:
        pass
    return f"{text}, {n_processors()} processors"


def remember(model: bytes, found: Fastest) -> Path:
    """Keep what was found for a model file on this machine, in place of what was known for this size.

    Returns
    -------
    Path
        The folder that holds it.
    """
    folder = _folder(model, found.input_shape)
    folder.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "format": FORMAT,
        "processor": processor(),
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "versions": _versions(found.backend),
        "backend": asdict(found.backend),
        "frame_shape": found.frame_shape,
        "input_shape": found.input_shape,
        "ratio": found.ratio,
        "parts_sha256": {name: hashlib.sha256(part).hexdigest() for name, part in found.parts.items()},
    }
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".bench-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        for name, part in found.parts.items():
            (new / name).write_bytes(part)
        (new / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(new, folder)
    return folder


def recall(model: bytes) -> tuple[list[Fastest], list[str]]:
    """Return what was found for a model file on this machine, and why some of it cannot be used, a sentence each."""
    found, troubles = [], []
    for folder in sorted(cache_folder().glob(f"bench/{_prefix(model)}*")):
        try:
            found.append(_read(folder, model))
        except (OSError, ValueError, KeyError, TypeError) as exc:
            text = f"{exc}" if isinstance(exc, _OutdatedError) else f"{folder / _RECORD} is damaged ({exc})"
            troubles.append(f"what oneframe bench remembered is not used: {text}; fp32 runs, or bench again")
    return found, troubles


class _OutdatedError(ValueError):
    """What was remembered holds no longer."""


def _read(folder: Path, model: bytes) -> Fastest:
    record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    if record["format"] != FORMAT:
        raise _OutdatedError(f"it is of another oneframe, format {record['format']}")
    if (record["processor"], record["model_sha256"]) != (processor(), hashlib.sha256(model).hexdigest()):
        raise _OutdatedError("it is of another processor or model")
    backend = Backend.from_dict(record["backend"])
    for name, now in _versions(backend).items():
        before = record["versions"].get(name)
        if now != before:
            raise _OutdatedError(f"{name} was {before}, is {now or 'not installed'} now")
    parts = {name: (folder / name).read_bytes() for name in backend.needs}
    for name, part in parts.items():
        if hashlib.sha256(part).hexdigest() != record["parts_sha256"][name]:
            raise ValueError(f"{name} is not as it was written")
    frame_shape, input_shape = (tuple(int(n) for n in record[name]) for name in ("frame_shape", "input_shape"))
    return Fastest(backend, frame_shape, input_shape, float(record["ratio"]), parts)


def _prefix(model: bytes) -> str:
    """Return how the names of the folders begin that belong to a model file on this machine."""
    return f"{hashlib.sha256(model).hexdigest()[:16]}-{hashlib.sha256(processor().encode()).hexdigest()[:8]}-"


def _folder(model: bytes, input_shape: tuple[int, ...]) -> Path:
    return cache_folder() / "bench" / (_prefix(model) + "x".join(map(str, input_shape)))


def _versions(backend: Backend) -> dict[str, str | None]:
    names = ["onnxruntime"] + ["openvino"] * (backend.engine == "openvino")
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


class BySize:
    """Runs frames of the sizes that were benched as was found best, others in fp32, and counts both.

    Should the better way fail on a frame that fp32 can take, fp32 takes over for the rest of the run.
    """

    def __init__(self, plain: Session, best: list[tuple[Fastest, Session]]) -> None:
        self._plain = plain
        self._best = {found.input_shape: (found, session) for found, session in best}
        self._n_runs = dict.fromkeys([Backend().name, *(found.backend.name for found, _ in best)], 0)

    def run(self, names: list[str], feeds: dict[str, Any], /) -> Any:
        """Return the outputs of these names."""
        known = self._best.get(feeds["image"].shape)
        if known is None:
            return self._in_fp32(names, feeds)
        found, session = known
        try:
            values = session.run(names, feeds)
        except Exception as exc:  # the engines have no common base class for their errors
            values = self._in_fp32(names, feeds)
            del self._best[found.input_shape]
            logger.warning("%s failed (%s): fp32 runs from now on", found.backend.name, exc)
            return values
        self._n_runs[found.backend.name] += 1
        return values

    def _in_fp32(self, names: list[str], feeds: dict[str, Any]) -> Any:
        values = self._plain.run(names, feeds)
        self._n_runs[Backend().name] += 1
        return values

    def settings(self) -> list[dict[str, Any]]:
        """Return what runs which size, for the record of a run; what is not named runs in fp32."""
        return [
            {**asdict(found.backend), "frame_shape": found.frame_shape, "input_shape": found.input_shape}
            for found, _ in self._best.values()
        ]

    def n_runs(self) -> dict[str, int]:
        """Return how often each way ran the graph; regions of a frame are images of sizes of their own: fp32."""
        return dict(self._n_runs)


def run_fastest(model: LoadedModel, path: str | os.PathLike[str]) -> list[str]:
    """Let a model run as `bench` found fastest for its file here; return sentences that say so, or why not.

    What is remembered is opened and runs once on an empty frame of its size, so that the first frame is no slower than
    others. Without anything remembered the model stays as it is, and nothing is said.
    """
    file = Path(path).read_bytes()
    known, sentences = recall(file)
    best: list[tuple[Fastest, Session]] = []
    for found in known:
        size = " x ".join(map(str, found.frame_shape))
        if found.backend == Backend():
            sentences.append(f"runs in fp32, which oneframe bench found fastest here for {size} px")
            continue
        try:
            session = open_backend(found.backend, file, found.parts)
            _warm_up(session, model, found)
        except BackendError as exc:
            sentences.append(f"{exc}; fp32 runs instead, or bench again")
            continue
        sentences.append(
            f"{size} px run in {found.backend.name}, {found.ratio:.2f} times the time of fp32 when oneframe bench "
            "compared them here; --backend fp32 for fp32"
        )
        best.append((found, session))
    if best:
        model.engine = BySize(model.engine, best)
    return sentences


def _warm_up(session: Session, model: LoadedModel, found: Fastest) -> None:
    image = np.zeros(found.input_shape, model.card.input_dtype)
    threshold = np.array(model.threshold, np.float32)
    try:
        session.run(list(model.card.outputs), {"image": image, "threshold": threshold})
    except Exception as exc:  # the engines have no common base class for their errors
        raise BackendError(f"{found.backend.name} does not run here: {exc}") from exc
