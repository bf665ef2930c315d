from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pytest

from oneframe.acquisition import EndOfStream, Frame, SourceError, frames, open_source
from oneframe.acquisition.recording import read_image

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "shot"
STACK = np.random.default_rng(0).integers(0, 65536, (5, 30, 40), dtype=np.uint16)
FRAME_BYTES = 30 * 40 * 2

INF = """binning = 1 x 1
data type = 16 bit integers (binary, big endian)
frame dimensions = 40 x 30
number of frames = 5
Lock Target = 0.0
"""
YAML = """Byte Order: <
Camera: Simulation
Camera.Pixelsize: 160
Data Type: uint16
Frames: 5
Height: 30
Structure.CX:
- 3.16e-17
Width: 40
---
Frames: 99
Pixelsize: 130
"""


def write_dax(folder: Path, *, inf: str | None = INF, order: str = ">", name: str = "movie.dax") -> Path:
    path = folder / name
    path.write_bytes(STACK.astype(f"{order}u2").tobytes())
    if inf is not None:
        path.with_suffix(".inf").write_text(inf)
    return path


def write_picasso(folder: Path, *, yaml: str = YAML, dtype: str = "<u2") -> Path:
    path = folder / "movie.raw"
    path.write_bytes(STACK.astype(dtype).tobytes())
    path.with_suffix(".yaml").write_text(yaml)
    return path


def read_all(url: str | Path) -> list[Frame]:
    source = open_source(str(url))
    try:
        return list(frames(source))
    finally:
        source.close()


def assert_whole(read: list[Frame]) -> None:
    assert [frame.index for frame in read] == [0, 1, 2, 3, 4]
    assert all(frame.pixels.dtype == np.uint16 and frame.pixels.dtype.isnative for frame in read)
    np.testing.assert_array_equal([frame.pixels for frame in read], STACK)


def test_a_dax_movie_is_big_endian_and_its_shape_is_in_the_inf(tmp_path: Path) -> None:
    read = read_all(write_dax(tmp_path))
    assert_whole(read)
    assert read[0].pixel_size_um is None


@pytest.mark.parametrize(
    ("inf", "order"),
    [
        (INF.replace("big endian", "little endian"), "<"),
        (INF.replace("data type = 16 bit integers (binary, big endian)\n", ""), ">"),
        (INF.replace("\n", "\r\n").replace(" = ", "="), ">"),
        ("free text, or: an odd line\n" + INF, ">"),
    ],
    ids=["little endian", "no data type", "windows", "free text"],
)
def test_other_inf_files_are_understood(tmp_path: Path, inf: str, order: str) -> None:
    assert_whole(read_all(write_dax(tmp_path, inf=inf, order=order)))


def test_names_in_capitals(tmp_path: Path) -> None:
    path = write_dax(tmp_path, name="MOVIE.DAX", inf=None)
    (tmp_path / "MOVIE.INF").write_text(INF)
    assert_whole(read_all(path))


def test_a_picasso_movie_is_read_with_its_pixel_size(tmp_path: Path) -> None:
    read = read_all(write_picasso(tmp_path))
    assert_whole(read)
    assert read[0].pixel_size_um == 0.16


@pytest.mark.parametrize("sign", ["'>'", '">"', ">"])
def test_a_picasso_movie_may_be_big_endian(tmp_path: Path, sign: str) -> None:
    assert_whole(read_all(write_picasso(tmp_path, yaml=YAML.replace(": <", f": {sign}"), dtype=">u2")))


def test_a_picasso_movie_keeps_its_data_type(tmp_path: Path) -> None:
    yaml = YAML.replace("uint16", "float32").replace("Camera.Pixelsize: 160\n", "")
    read = read_all(write_picasso(tmp_path, yaml=yaml, dtype="<f4"))
    assert read[0].pixels.dtype == np.float32
    assert read[0].pixel_size_um is None
    np.testing.assert_array_equal([frame.pixels for frame in read], STACK)
    eight = YAML.replace("uint16", "uint8").replace("Byte Order: <\n", "")
    read = read_all(write_picasso(tmp_path, yaml=eight, dtype="u1"))
    np.testing.assert_array_equal([frame.pixels for frame in read], STACK.astype(np.uint8))


def test_the_options_of_a_recording_work(tmp_path: Path) -> None:
    path = write_dax(tmp_path)
    np.testing.assert_array_equal(read_image(f"{path}?page=3").pixels, STACK[3])
    looped = read_all(f"{path}?loop=2&pixel_size_um=0.1")
    assert len(looped) == 10
    assert looped[7].pixel_size_um == 0.1
    source = open_source(f"{path}?fps=20")
    assert source.info.live
    begin_s = time.monotonic()
    assert len(list(frames(source))) == 5
    assert time.monotonic() - begin_s >= 4 / 20
    source.close()
    with pytest.raises(EndOfStream, match="was closed"):
        source.read(0.0)
    with pytest.raises(SourceError, match="only a TIFF has several series"):
        open_source(f"{path}?series=1")


@pytest.mark.parametrize(("kept", "told"), [(3 * FRAME_BYTES + 7, r" without the 7 bytes"), (3 * FRAME_BYTES, "$")])
def test_a_movie_that_was_cut_off_is_played_as_far_as_it_goes_and_the_rest_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: int, told: str
) -> None:
    path = write_dax(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with caplog.at_level(logging.WARNING):
        source = open_source(str(path))
    assert source.info.n_frames == 3
    (message,) = caplog.messages
    assert "movie.inf tells of 5 frames of 40 x 30 px, 3 are there, 2 missing; playing those" in message
    assert message.endswith("playing those") if told == "$" else told in message
    np.testing.assert_array_equal([frame.pixels for frame in frames(source)], STACK[:3])
    source.close()


@pytest.mark.parametrize(
    ("inf", "sentence"),
    [
        (None, r"movie.dax needs its header movie.inf beside it, which is not there; copy it too, or write one with"),
        ("", r"expected 'frame dimensions = WIDTH x HEIGHT' in .*movie.inf, got no such line; correct it"),
        (INF.replace("40 x 30", "40 by 30"), "expected 'frame dimensions = WIDTH x HEIGHT' .* got '40 by 30'"),
        (INF.replace("40 x 30", "0 x 30"), "expected 'frame dimensions' .* whole number above 0, got '0'"),
        (INF.replace("= 5", "= many"), "expected 'number of frames' in .*movie.inf .* got 'many'; correct it"),
        (INF.replace("number", "sum"), "expected 'number of frames' in .*movie.inf .* got None"),
        (
            INF.replace("16 bit integers", "32 bit floats"),
            "expected 'data type = 16 bit integers .* got '32 bit floats",
        ),
        (
            INF.replace("= 5", "= 3"),
            "holds 12000 bytes, but movie.inf tells of 3 frames of 40 x 30 px, 7200 bytes; is it the header of another"
            " movie.; if their size is right, write 5 frames into it",
        ),
        (INF.replace("40 x 30", "17 x 30"), r"is it the header of another movie\?$"),
        (
            INF.replace("40 x 30", "4000 x 3000"),
            "not one whole frame, but movie.inf tells of 5 frames .* copy the movie",
        ),
    ],
)
def test_an_inf_that_is_missing_or_does_not_fit_is_refused(tmp_path: Path, inf: str | None, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        open_source(str(write_dax(tmp_path, inf=inf)))


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        ("", r"expected 'Frames' in .*movie.yaml to be a whole number above 0, got None"),
        (YAML.replace("Height: 30", "Height: 30.5"), "expected 'Height' in .* got '30.5'"),
        (YAML.replace("uint16", "complex64"), "expected 'Data Type: .*float64' in .*movie.yaml, got 'complex64'"),
        (YAML.replace("Byte Order: <", "Byte Order: little"), "expected 'Byte Order: < .* got 'little'"),
        (YAML.replace("Byte Order: <", ""), "expected 'Byte Order: < .* got no such line"),
        (YAML.replace("Frames: 5", "Frames: 4"), "tells of 4 frames of 40 x 30 px, 9600 bytes"),
    ],
)
def test_a_yaml_that_is_incomplete_or_does_not_fit_is_refused(tmp_path: Path, yaml: str, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        open_source(str(write_picasso(tmp_path, yaml=yaml)))


def test_a_raw_file_of_another_program_is_told_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "camera.raw").write_bytes(bytes(100))
    with pytest.raises(SourceError, match=r"needs its header camera.yaml beside it.*'Width: N', 'Height: N'"):
        open_source(str(tmp_path / "camera.raw"))


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the microscopy data beside the checkout")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("storm_analysis/test.dax", (10, 256, 256)),
        ("storm_analysis/test_300x200.dax", (10, 200, 300)),
        ("storm_analysis/test_low_snr.dax", (2, 300, 400)),
        ("picasso/testdata.raw", (100, 32, 32)),
    ],
)
def test_real_movies_are_read_the_right_way_round(name: str, shape: tuple[int, ...]) -> None:
    stack = np.stack([frame.pixels for frame in read_all(DATA / name)]).astype(float)
    assert stack.shape == shape
    assert (
        90 < stack.min() < 200
    )  # the offset of the camera; with the bytes the wrong way round it is tens of thousands
    assert stack.max() < 5000
    for ahead, behind in ((stack[:, 1:], stack[:, :-1]), (stack[..., 1:], stack[..., :-1])):  # images of spots
        assert np.corrcoef(ahead.ravel(), behind.ravel())[0, 1] > 0.1
