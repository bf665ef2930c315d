from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from oneframe.acquisition import BadFrameError, EndOfStream, Frame, SourceError, frames, open_source
from oneframe.acquisition.recording import read_image
from oneframe.acquisition.snapshot import write_snapshot

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 4096, (5, 30, 40), dtype=np.uint16)


def _read_all(url: str | Path) -> list[Frame]:
    source = open_source(str(url))
    try:
        return list(frames(source))
    finally:
        source.close()


def _write_pages(path: Path, stack: Any) -> None:
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for image in stack:
            writer.write(image, contiguous=False, metadata=None)


TIFF_KINDS: dict[str, dict[str, Any]] = {
    "tifffile": {},
    "imagej": {"imagej": True, "metadata": {"axes": "TYX"}},
    "ome": {"ome": True, "metadata": {"axes": "TYX"}},
    "big endian": {"byteorder": ">"},
    "one entry for all pages": {"truncate": True},
    "one entry, big endian": {"truncate": True, "byteorder": ">"},
    "zlib": {"compression": "zlib"},
}


@pytest.mark.parametrize("kind", TIFF_KINDS)
def test_a_tiff_stack_is_read_image_by_image(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, STACK, photometric="minisblack", **TIFF_KINDS[kind])
    read = _read_all(path)
    assert [frame.index for frame in read] == [0, 1, 2, 3, 4]
    assert all(frame.pixels.dtype == np.uint16 and frame.pixels.dtype.isnative for frame in read)
    np.testing.assert_array_equal([frame.pixels for frame in read], STACK)


def test_pages_without_any_description_are_read(tmp_path: Path) -> None:
    _write_pages(tmp_path / "frames.tif", STACK)
    np.testing.assert_array_equal([frame.pixels for frame in _read_all(tmp_path / "frames.tif")], STACK)


@pytest.mark.parametrize("axes", ["TCYX", "CTYX", "ZCYX"])
def test_channels_become_one_frame(tmp_path: Path, axes: str) -> None:
    images = RNG.integers(0, 255, (4, 2, 30, 40), dtype=np.uint8)  # (T, C, H, W)
    stored = images.swapaxes(0, 1) if axes == "CTYX" else images
    tifffile.imwrite(tmp_path / "a.ome.tif", stored, photometric="minisblack", metadata={"axes": axes})
    np.testing.assert_array_equal([frame.pixels for frame in _read_all(tmp_path / "a.ome.tif")], images)
    second = _read_all(f"{tmp_path / 'a.ome.tif'}?channel=1")
    np.testing.assert_array_equal([frame.pixels for frame in second], images[:, 1])
    with pytest.raises(SourceError, match="channel must be 0 to 1"):
        _read_all(f"{tmp_path / 'a.ome.tif'}?channel=2")


@pytest.mark.parametrize("planar", ["separate", "contig"])
def test_samples_of_a_page_that_are_no_colours_are_channels(tmp_path: Path, planar: str) -> None:
    image = RNG.integers(0, 4096, (3, 30, 40), dtype=np.uint16)
    stored = image if planar == "separate" else np.moveaxis(image, 0, -1)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planar)
    (frame,) = _read_all(tmp_path / "a.tif")
    np.testing.assert_array_equal(frame.pixels, image)


@pytest.mark.parametrize("array", [STACK[0], STACK, STACK.astype(">f4"), np.stack([STACK, STACK], axis=1)])
def test_npy(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "a.npy", array)
    read = _read_all(tmp_path / "a.npy")
    np.testing.assert_array_equal([frame.pixels for frame in read], array if array.ndim > 2 else array[np.newaxis])
    assert all(frame.pixels.dtype.isnative for frame in read)


def test_frames_do_not_depend_on_the_open_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", STACK)
    (first, *_) = _read_all(tmp_path / "a.npy")
    (tmp_path / "a.npy").unlink()
    np.testing.assert_array_equal(first.pixels, STACK[0])


def test_page_loop_and_pixel_size_options(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", STACK)
    (only,) = _read_all(f"{tmp_path / 'a.npy'}?page=3&pixel_size_um=0.2")
    assert only.index == 0
    assert only.pixel_size_um == 0.2
    np.testing.assert_array_equal(only.pixels, STACK[3])
    twice = _read_all(f"{tmp_path / 'a.npy'}?loop=2")
    assert [frame.index for frame in twice] == list(range(10))
    assert [frame.metadata["page"] for frame in twice] == [0, 1, 2, 3, 4] * 2
    endless = open_source(f"{tmp_path / 'a.npy'}?loop=0")
    assert endless.info.n_frames is None
    assert [endless.read(0).index for _ in range(12)] == list(range(12))  # type: ignore[union-attr]
    endless.close()
    with pytest.raises(SourceError, match=r"page must be 0 to 4, the file holds 5 images"):
        open_source(f"{tmp_path / 'a.npy'}?page=5")
    with pytest.raises(SourceError, match="unknown option speed"):
        open_source(f"{tmp_path / 'a.npy'}?speed=5")


def test_the_end_is_told_again_and_again(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", STACK[0])
    source = open_source(str(tmp_path / "a.npy"))
    assert (source.info.live, source.info.n_frames) == (False, 1)
    assert source.read(0) is not None
    for _ in range(2):
        with pytest.raises(EndOfStream, match="over") as caught:
            source.read(0)
        assert caught.value.n_frames == 1
    source.close()
    source.close()
    with pytest.raises(EndOfStream, match="closed"):
        source.read(0)


def test_fps_replays_in_real_time(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", STACK)
    source = open_source(f"{tmp_path / 'a.npy'}?fps=50")
    assert source.info.live
    begin_s = time.monotonic()
    assert source.read(0.0) is not None
    assert source.read(0.001) is None
    rest = list(frames(source))
    assert [frame.index for frame in rest] == [1, 2, 3, 4]
    assert time.monotonic() - begin_s >= 4 / 50
    assert abs(rest[-1].time_s - time.time()) < 5
    source.close()


PIXEL_SIZES: dict[str, tuple[dict[str, Any], float | None]] = {
    "imagej micron": ({"imagej": True, "resolution": (10, 10), "metadata": {"unit": "micron", "axes": "TYX"}}, 0.1),
    "imagej um": ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "um", "axes": "TYX"}}, 0.25),
    "imagej nm": ({"imagej": True, "resolution": (0.01, 0.01), "metadata": {"unit": "nm", "axes": "TYX"}}, 0.1),
    "imagej inch": ({"imagej": True, "resolution": (72, 72), "metadata": {"unit": "inch", "axes": "TYX"}}, None),
    "ome": ({"ome": True, "metadata": {"axes": "TYX", "PhysicalSizeX": 0.065}}, 0.065),
    "ome nm": ({"ome": True, "metadata": {"axes": "TYX", "PhysicalSizeX": 65, "PhysicalSizeXUnit": "nm"}}, 0.065),
    "ome not square": ({"ome": True, "metadata": {"axes": "TYX", "PhysicalSizeX": 1, "PhysicalSizeY": 2}}, None),
    "plain 72 dpi": ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
}


@pytest.mark.parametrize("kind", PIXEL_SIZES)
def test_pixel_size(tmp_path: Path, kind: str) -> None:
    how, expected_um = PIXEL_SIZES[kind]
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack", **how)
    source = open_source(str(tmp_path / "a.tif"))
    assert source.info.pixel_size_um == (None if expected_um is None else pytest.approx(expected_um))
    frame = source.read(0)
    source.close()
    assert frame is not None
    assert frame.pixel_size_um == source.info.pixel_size_um


INSTRUMENT = {"kind": "off-axis", "wavelength_um": 0.633, "medium_index": 1.33, "na": 1.3}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(30, 40), (2, 30, 40)])
def test_a_snapshot_keeps_the_instrument(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    pixels = np.resize(STACK, shape).astype(dtype)
    metadata = {**INSTRUMENT, "exposure_ms": 10, "carrier_per_um": [1.0, 2.0]}
    write_snapshot(tmp_path / "a.tif", Frame(pixels, 7, 0.0, 0.1, metadata))
    (frame,) = _read_all(tmp_path / "a.tif")
    assert frame.metadata == {**INSTRUMENT, "page": 0}
    np.testing.assert_array_equal(frame.pixels, pixels)
    assert frame.pixel_size_um == pytest.approx(0.1)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_imagej
        assert file.series[0].axes == ("YX" if len(shape) == 2 else "CYX")
        assert file.imagej_metadata is not None
        assert file.imagej_metadata["Info"].startswith('oneframe: {"kind": "off-axis", ')


def test_a_snapshot_of_an_unknown_instrument_has_no_info(tmp_path: Path) -> None:
    for n, metadata in enumerate([{}, {"kind": "reflected", "na": None, "wavelength_um": "0.6", "camera": "x"}]):
        write_snapshot(tmp_path / f"{n}.tif", Frame(STACK[0], 0, 0.0, None, metadata))
        assert read_image(tmp_path / f"{n}.tif").metadata == {"page": 0}
        with tifffile.TiffFile(tmp_path / f"{n}.tif") as file:
            assert "Info" not in (file.imagej_metadata or {})


INFOS: dict[str, tuple[str, dict[str, Any]]] = {
    "between the lines of others": ('Title: a\noneframe: {"na": 1.3}\nRange: 0-255', {"na": 1.3}),
    "after a damaged line": ('oneframe: {"na": 1.\noneframe: {"na": 1.3}', {"na": 1.3}),
    "foreign": ('Objective: {"na": 1.3}\nna = 1.3\n not oneframe: {"na": 1.3}', {}),
    "damaged": ('oneframe: {"kind": "off-axis", "na": 1.', {}),
    "deep": ("oneframe: " + "[" * 100_000, {}),
    "no object": ("oneframe: [1.3]", {}),
    "other keys": ('oneframe: {"page": 5, "note": "lost", "na": 1.3}', {"na": 1.3}),
    "other types": ('oneframe: {"kind": 3, "wavelength_um": "0.633", "medium_index": [1.33], "na": true}', {}),
    "other kind": ('oneframe: {"kind": "reflected"}', {}),
    "no lengths": ('oneframe: {"wavelength_um": NaN, "medium_index": -1.33, "na": 0}', {}),
    "endless": (f'oneframe: {{"wavelength_um": Infinity, "na": {"9" * 400}, "kind": "field"}}', {"kind": "field"}),
}


@pytest.mark.parametrize("name", INFOS)
def test_of_a_text_in_the_file_only_the_instrument_is_taken(tmp_path: Path, name: str) -> None:
    info, expected = INFOS[name]
    tifffile.imwrite(tmp_path / "a.tif", STACK[0], imagej=True, metadata={"Info": info})
    assert read_image(tmp_path / "a.tif").metadata == {**expected, "page": 0}


def test_a_recording_that_was_cut_off_is_read_up_to_the_cut(tmp_path: Path) -> None:
    _write_pages(tmp_path / "whole.tif", STACK)
    whole = (tmp_path / "whole.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[:-100])
    source = open_source(str(tmp_path / "cut.tif"))
    good = [source.read(0) for _ in range(4)]
    assert [frame.index for frame in good if frame is not None] == [0, 1, 2, 3]
    with pytest.raises(BadFrameError, match=r"image 4 of .* cannot be read .*cut off") as caught:
        source.read(0)
    assert caught.value.index == 4
    with pytest.raises(EndOfStream, match="over"):
        source.read(0)
    source.close()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_second_series_is_read_on_demand_and_never_silently_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(STACK, photometric="minisblack")
        writer.write(STACK[0, :20, :20], photometric="minisblack")
    with caplog.at_level(logging.WARNING):
        assert len(_read_all(tmp_path / "a.tif")) == 5
    assert "holds 2 image series; reading number 0" in caplog.text
    (small,) = _read_all(f"{tmp_path / 'a.tif'}?series=1")
    assert small.pixels.shape == (20, 20)
    with pytest.raises(SourceError, match="series must be 0 to 1"):
        open_source(f"{tmp_path / 'a.tif'}?series=2")


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".png", ".bmp"])
def test_read_image_returns_the_one_plane(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bead µ{suffix}"
    image = STACK[0].astype(np.uint8)
    if suffix == ".tif":
        tifffile.imwrite(path, image)
    elif suffix == ".npy":
        np.save(path, image)
    else:
        cv2.imencode(suffix, image)[1].tofile(path)
    frame = read_image(path)
    np.testing.assert_array_equal(frame.pixels, image)
    assert frame.index == 0
    assert abs(frame.time_s - time.time()) < 5


def test_a_png_keeps_16_bits(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), STACK[0])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, STACK[0])


@pytest.mark.parametrize("n_channels", [3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_that_was_saved_as_colours_is_grey(tmp_path: Path, n_channels: int, suffix: str) -> None:
    grey = STACK[0].astype(np.uint8)
    image = np.repeat(grey[..., np.newaxis], n_channels, axis=-1)
    image[..., 3:] = 255
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        cv2.imwrite(str(path), image)
    else:
        tifffile.imwrite(path, image, photometric="rgb")
    np.testing.assert_array_equal(read_image(path).pixels, grey)


@pytest.mark.parametrize("n_channels", [3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
def test_colours_are_refused(tmp_path: Path, n_channels: int, suffix: str) -> None:
    image = RNG.integers(0, 255, (30, 40, n_channels), dtype=np.uint8)
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        cv2.imwrite(str(path), image)
    elif suffix == ".tif":
        tifffile.imwrite(path, image, photometric="rgb")
    else:
        np.save(path, image)
    with pytest.raises(SourceError, match=r"colour image .* convert it to one grey plane"):
        read_image(path)
    with pytest.raises(SourceError, match="convert it to one grey plane"):
        _read_all(path)


def test_a_stack_where_one_image_is_expected_says_how_many_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, STACK, photometric="minisblack")
    with pytest.raises(SourceError, match=r"holds 5 images, one is expected; pick one with .*stack\.tif\?page=N"):
        read_image(path)
    np.testing.assert_array_equal(read_image(f"{path}?page=2").pixels, STACK[2])


def test_channels_where_one_plane_is_expected(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, STACK[:2], photometric="minisblack", metadata={"axes": "CYX"})
    with pytest.raises(SourceError, match=r"holds 2 channels, one grey plane is expected; pick one with"):
        read_image(path)
    np.testing.assert_array_equal(read_image(f"{path}?channel=1").pixels, STACK[1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".tif", ".npy", ".png"])
@pytest.mark.parametrize("kept", [0, 0.02, 0.9])
def test_a_damaged_image_is_one_sentence(tmp_path: Path, suffix: str, kept: float) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(whole, STACK[0])
    elif suffix == ".npy":
        np.save(whole, STACK[0])
    else:
        cv2.imwrite(str(whole), STACK[0])
    content = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(SourceError, match="cannot be read"):
        read_image(cut)


def test_an_imagej_stack_that_was_cut_off_does_not_pass_for_one_image(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "whole.tif", STACK, imagej=True)
    (tmp_path / "cut.tif").write_bytes((tmp_path / "whole.tif").read_bytes()[:-3000])
    with pytest.raises(SourceError, match="cut off: of 5 images 1 are there"):
        read_image(tmp_path / "cut.tif")


def test_an_imagej_stack_without_its_last_entries_is_whole(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "whole.tif", STACK, imagej=True, metadata={"axes": "TYX"})
    (tmp_path / "cut.tif").write_bytes((tmp_path / "whole.tif").read_bytes()[:-300])
    np.testing.assert_array_equal([frame.pixels for frame in _read_all(tmp_path / "cut.tif")], STACK)


def test_a_long_channel_axis_is_time(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.tile(STACK, (3, 1, 1)), imagej=True)
    assert len(_read_all(tmp_path / "a.tif")) == 15


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".png"])
def test_a_foreign_file_is_one_sentence(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_text("this is a letter, not an image\n" * 50)
    with pytest.raises(SourceError, match="cannot be read as"):
        read_image(tmp_path / f"a{suffix}")


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(SourceError, match="cannot be read as NPY"):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize(("name", "reason"), [("absent.tif", "no such file"), ("absent.tif?page=1", "no such file")])
def test_a_missing_file(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        read_image(tmp_path / name)


def test_other_kinds_of_files_and_arrays_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(SourceError, match="expected a TIFF, NPY, MP4, AVI, PNG, JPEG or BMP file"):
        read_image(tmp_path / "a.xlsx")
    np.save(tmp_path / "c.npy", np.zeros((4, 4), np.complex64))
    with pytest.raises(SourceError, match="holds complex64, grey values are expected"):
        read_image(tmp_path / "c.npy")
    np.save(tmp_path / "d.npy", np.zeros(4))
    with pytest.raises(SourceError, match=r"expected an array \(H, W\)"):
        read_image(tmp_path / "d.npy")
