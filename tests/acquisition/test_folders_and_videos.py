"""Recordings in other forms: folders of images, OME-Zarr, NDTiff, videos; all give the pixels that were written."""

import re
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from oneframe.acquisition import BadFrameError, EndOfStream, Frame, SourceError, frames, open_source
from oneframe.acquisition.recording import read_image

RNG = np.random.default_rng(1)
STACK = RNG.integers(0, 4096, (12, 24, 32), dtype=np.uint16)


def read_all(url: str | Path) -> list[Frame]:
    source = open_source(str(url))
    try:
        return list(frames(source))
    finally:
        source.close()


def assert_same(read: list[Frame], expected: np.ndarray) -> None:
    assert [frame.index for frame in read] == list(range(len(expected)))
    np.testing.assert_array_equal([frame.pixels for frame in read], expected)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_a_folder_of_images_follows_the_numbers_in_their_names(tmp_path, suffix):
    for number, image in enumerate(STACK):
        name = tmp_path / f"img_{number}{suffix}"
        tifffile.imwrite(name, image) if suffix == ".tif" else cv2.imwrite(str(name), image)
    (tmp_path / "notes.txt").write_text("not an image")
    assert_same(read_all(tmp_path), STACK)
    assert read_image(f"{tmp_path}?page=10").pixels.tolist() == STACK[10].tolist()


def test_a_folder_of_stacks_goes_on_from_file_to_file(tmp_path):
    for number, part in enumerate(np.split(STACK, [5, 7])):
        tifffile.imwrite(tmp_path / f"part{number}.tif", part, photometric="minisblack")
    assert_same(read_all(tmp_path), STACK)


def test_an_ome_tiff_in_several_files_is_read_once(tmp_path):
    names = [f"run_{part}.ome.tif" for part in range(2)]
    uuids = [f"urn:uuid:00000000-0000-0000-0000-00000000000{part}" for part in range(2)]
    blocks = "".join(
        f'<TiffData FirstT="{6 * part}" IFD="0" PlaneCount="6"><UUID FileName="{names[part]}">{uuids[part]}</UUID>'
        "</TiffData>"
        for part in range(2)
    )
    for part in range(2):
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuids[part]}"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="32" SizeY="24" SizeZ="1" SizeC="1" '
            f'SizeT="12" PhysicalSizeX="0.1" PhysicalSizeY="0.1"><Channel ID="Channel:0" SamplesPerPixel="1"/>{blocks}'
            "</Pixels></Image></OME>"
        )
        with tifffile.TiffWriter(tmp_path / names[part]) as writer:
            for number, image in enumerate(STACK[6 * part : 6 * part + 6]):
                writer.write(image, contiguous=False, metadata=None, description=xml if number == 0 else None)
    assert_same(read_all(tmp_path), STACK)


def test_a_damaged_file_among_others_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "a1.tif", STACK[0])
    (tmp_path / "a2.tif").write_bytes(b"II*\0 nothing")
    with pytest.raises(SourceError, match=r"a2\.tif cannot be read as TIF"):
        open_source(str(tmp_path))


def test_a_folder_without_images_is_explained(tmp_path):
    (tmp_path / "deeper").mkdir()
    with pytest.raises(SourceError, match="point to the folder that holds the images themselves"):
        open_source(str(tmp_path))


# OME-Zarr


def write_ome_zarr(path: Path, array: np.ndarray, axes: str, *, zarr_format: int, unit: str = "micrometer") -> None:
    zarr = pytest.importorskip("zarr")
    kinds = {"t": "time", "c": "channel"}
    described = [
        {"name": axis, "type": kinds.get(axis, "space"), **({"unit": unit} if axis in "zyx" else {})} for axis in axes
    ]
    scale = [0.5 if axis in "yx" else 1.0 for axis in axes]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    multiscales = [{"version": "0.4" if zarr_format == 2 else "0.5", "axes": described, "datasets": [level]}]
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    group.attrs.update({"multiscales": multiscales} if zarr_format == 2 else {"ome": {"multiscales": multiscales}})
    group.create_array("0", data=array, chunks=(1,) * (array.ndim - 2) + array.shape[-2:])


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_ome_zarr_is_read_in_time_order_with_its_pixel_size(tmp_path, zarr_format):
    write_ome_zarr(tmp_path / "a.zarr", STACK[:, None, None], "tczyx", zarr_format=zarr_format)
    read = read_all(tmp_path / "a.zarr")
    assert_same(read, STACK)
    assert read[0].pixel_size_um == 0.5


def test_channels_and_planes_of_ome_zarr(tmp_path):
    images = STACK.reshape(3, 2, 2, 24, 32)  # t, c, z
    write_ome_zarr(tmp_path / "a.zarr", images, "tczyx", zarr_format=2, unit="nanometer")
    read = read_all(tmp_path / "a.zarr")
    assert_same(read, images.swapaxes(1, 2).reshape(6, 2, 24, 32))
    assert read[0].pixel_size_um == pytest.approx(5e-4)
    assert_same(read_all(f"{tmp_path / 'a.zarr'}?channel=1"), images[:, 1].reshape(6, 24, 32))


def test_a_plain_zarr_array_and_one_without_images(tmp_path):
    zarr = pytest.importorskip("zarr")
    zarr.save_array(tmp_path / "plain.zarr", STACK)
    assert_same(read_all(tmp_path / "plain.zarr"), STACK)
    zarr.open_group(tmp_path / "empty.zarr", mode="w")
    with pytest.raises(SourceError, match="has no multiscales; point to one image"):
        open_source(str(tmp_path / "empty.zarr"))


# NDTiff


@pytest.fixture
def ndtiff(tmp_path) -> Path:
    ndstorage = pytest.importorskip("ndstorage", reason="needs oneframe[mm]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the writer leaves a reader open for every image
        dataset = ndstorage.NDTiffDataset(str(tmp_path), name="run", writable=True)
        dataset.initialize({"PixelSize_um": 0.1})
        for time in range(3):
            for channel, name in enumerate(["DAPI", "GFP"]):
                for z in range(2):
                    image = STACK[4 * time + 2 * z + channel]
                    dataset.put_image({"time": time, "channel": name, "z": z}, image, {"PixelSizeUm": 0.1})
        dataset.finish()
        dataset.close()
    return next(path for path in tmp_path.iterdir() if path.is_dir())


def test_ndtiff_is_read_in_the_order_it_was_saved(ndtiff, capsys):
    read = read_all(ndtiff)
    assert_same(read, STACK.reshape(6, 2, 24, 32))
    assert read[0].pixel_size_um == 0.1
    assert_same(read_all(f"{ndtiff}?channel=1"), STACK[1::2])
    assert capsys.readouterr().out == ""


# videos


def write_video(path: Path, images: np.ndarray, codec: str) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 25.0, images.shape[2:0:-1], isColor=True)
    if not writer.isOpened():
        pytest.skip(f"this OpenCV writes no {codec}")
    for image in images:
        writer.write(image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
    writer.release()


SMOOTH = np.stack([cv2.GaussianBlur(RNG.uniform(0, 255, (64, 96)), (0, 0), 6) for _ in range(9)])
SMOOTH = (255 * (SMOOTH - SMOOTH.min()) / np.ptp(SMOOTH)).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "codec", "loss"), [("a.avi", "FFV1", 0), ("a.avi", "MJPG", 12), ("a.mp4", "mp4v", 20)]
)
def test_a_grey_video_is_read_image_by_image(tmp_path, name, codec, loss):
    write_video(tmp_path / name, SMOOTH, codec)
    read = read_all(tmp_path / name)
    assert [frame.index for frame in read] == list(range(9))
    difference = np.abs(np.stack([frame.pixels for frame in read]).astype(int) - SMOOTH)
    assert difference.max() <= loss
    again = read_all(f"{tmp_path / name}?loop=2")
    np.testing.assert_array_equal([f.pixels for f in again[9:]], [f.pixels for f in read])
    np.testing.assert_array_equal(read_image(f"{tmp_path / name}?page=7").pixels, read[7].pixels)


def test_a_video_in_colour_is_refused(tmp_path):
    colours = np.stack([np.stack([image, image.T[:64, :64].repeat(2, 1)[:, :96], 255 - image], -1) for image in SMOOTH])
    write_video(tmp_path / "a.avi", colours, "MJPG")
    with pytest.raises(SourceError, match="is a colour video, grey images are expected"):
        read_all(tmp_path / "a.avi")


def test_a_video_that_was_cut_off_ends_with_what_is_there(tmp_path):
    write_video(tmp_path / "a.avi", SMOOTH, "MJPG")
    content = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: 9 * len(content) // 10])
    source = open_source(str(tmp_path / "cut.avi"))
    n_read, n_bad, ended = 0, 0, None
    while ended is None:
        try:
            n_read += source.read(1.0) is not None
        except BadFrameError:
            n_bad += 1
        except EndOfStream as end:
            ended = end
    source.close()
    assert 2 <= n_read < 9
    assert n_bad <= 1  # the one that was being written
    assert re.search(r"ends after \d images, its header told 9", ended.reason)
    assert ended.n_frames == n_read + n_bad


def test_a_file_that_is_no_video_is_explained(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing of a video")
    with pytest.raises(SourceError, match="cannot be read as a video"):
        open_source(str(tmp_path / "a.mp4"))
