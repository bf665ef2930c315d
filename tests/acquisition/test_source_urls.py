from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from oneframe.acquisition import EndOfStream, Frame, SourceError, SourceInfo, frames, open_source, snap
from oneframe.acquisition.source import SourceOptions, parse_source


@pytest.mark.parametrize(
    ("text", "scheme", "target"),
    [
        ("sim:beads?seed=3", "sim", "beads"),
        ("demo:", "demo", ""),
        ("demo:?mode=Noise", "demo", ""),
        ("DEMO:", "demo", ""),
        ("mm:setup.cfg", "mm", "setup.cfg"),
        (r"mm:C:\mm\setup.cfg", "mm", r"C:\mm\setup.cfg"),
        ("zmq+tcp://127.0.0.1:5555?timeout_s=2", "zmq+tcp", "//127.0.0.1:5555"),
        ("stack.tif?fps=30", "file", "stack.tif"),
        (r"C:\data\stack.tif?page=2", "file", r"C:\data\stack.tif"),
        ("folder/stack.npy", "file", "folder/stack.npy"),
    ],
)
def test_a_source_is_scheme_target_and_options(text: str, scheme: str, target: str) -> None:
    url = parse_source(text)
    assert (url.text, url.scheme, url.target) == (text, scheme, target)


@pytest.mark.skipif(sys.platform == "win32", reason="no colon in a Windows file name")
def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("demo:.npy", np.zeros((2, 4, 5), np.uint16))
    source = open_source("demo:.npy")
    assert source.info.n_frames == 2
    source.close()


@pytest.mark.parametrize("url", ["sims:beads", "http://camera", "tcp://127.0.0.1:5555"])
def test_an_unknown_kind_of_source_lists_the_known_ones(url: str) -> None:
    with pytest.raises(SourceError, match=r"starts with sim:, demo:, mm:, zmq\+tcp:"):
        open_source(url)


def test_options_are_taken_one_by_one_and_the_rest_is_refused() -> None:
    options = SourceOptions("x:", {"a": "3", "b": "0.5", "c": "Fluorescent Beads", "d": "1"})
    assert options.integer("a", 0) == 3
    assert options.number("b", 0.0) == 0.5
    assert options.text("c", "") == "Fluorescent Beads"
    assert options.number("absent", 7.0) == 7.0
    with pytest.raises(SourceError, match="unknown option d; known are a, absent, b, c"):
        options.finish()


@pytest.mark.parametrize("text", ["", "1.5", "ten", "-1", "101", "nan"])
def test_a_number_outside_its_range_is_refused(text: str) -> None:
    with pytest.raises(SourceError, match="n must be a whole number from 0 to 100"):
        SourceOptions("x:", {"n": text}).integer("n", 5, maximum=100)


@pytest.mark.parametrize("text", ["nan", "inf", "-0.1", "1e13"])
def test_a_real_number_must_be_finite_and_in_range(text: str) -> None:
    with pytest.raises(SourceError, match="n must be a number from 0 to"):
        SourceOptions("x:", {"n": text}).number("n", 5.0)


def test_a_missing_extra_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycromanager", None)
    pytest.importorskip("mm_test_adapters")
    with pytest.raises(SourceError, match=r"pycromanager, which is not installed; run: pip install 'oneframe\[mm\]'"):
        open_source("demo:")


class _Few:
    """A source of a few frames."""

    def __init__(self, n_frames: int) -> None:
        self.info = SourceInfo("few:", live=False, n_frames=n_frames)
        self._left = list(range(n_frames))

    def read(self, timeout_s: float) -> Frame | None:
        if not self._left:
            raise EndOfStream("over", n_frames=self.info.n_frames)
        return Frame(np.zeros((2, 2), np.uint8), self._left.pop(0), 0.0)

    def close(self) -> None:
        return


def test_frames_yields_until_the_end_and_snap_takes_one() -> None:
    assert [frame.index for frame in frames(_Few(3))] == [0, 1, 2]
    assert snap(_Few(1)).index == 0
    with pytest.raises(SourceError, match="few: ended without a frame: over"):
        snap(_Few(0))
