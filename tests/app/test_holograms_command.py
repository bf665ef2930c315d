"""`refocus` and `snap --hologram`: particles come to focus where they are, and files say what they hold."""

import argparse
import json
from contextlib import closing

import cv2
import numpy as np
import pytest
import tifffile

from oneframe.acquisition import Frame, open_source
from oneframe.acquisition.recording import read_image
from oneframe.app.console import CommandError
from oneframe.app.holograms import background_of, read_frame, reader_of, reference_of, settings_of
from oneframe.app.main import main, parse
from oneframe.runtime.field_reader import BACKGROUNDS, KINDS, FieldReader, HologramSettings

SPHERE = "sim:hologram?width=192&height=160&n=1&seed=4&z_um=0&z_mid_um=3"
OPTICS = ("--wavelength-um", "0.633", "--na", "1.3")


def run(capsys, *argv: str) -> list[dict]:
    assert main([*argv, "--json"]) == 0, capsys.readouterr().err
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refused(capsys, *argv: str) -> str:
    assert main(list(argv)) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    return error


def taken(url: str) -> Frame:
    frame = open_source(url).read(1.0)
    assert frame is not None
    return frame


def truth_yx_px(url: str) -> tuple[float, float]:
    """Position of the only sphere, in pixels of the frame."""
    source = open_source(url)
    source.read(1.0)
    found = source.truth()
    return float(found.y_px[0]), float(found.x_px[0])


@pytest.fixture(scope="module")
def snaps(tmp_path_factory):
    """A sphere at z = +3 um as each kind of hologram, and the reference of the off-axis one."""
    folder = tmp_path_factory.mktemp("snaps")
    for kind in KINDS:
        assert main(["snap", f"{SPHERE}&kind={kind}", "--hologram", kind, "-o", str(folder / f"{kind}.tif")]) == 0
    empty = SPHERE.replace("n=1", "n=0")
    assert main(["snap", empty, "-o", str(folder / "empty.tif")]) == 0
    return folder


def picture(path) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize("kind", KINDS)
def test_snap_keeps_the_frame_and_shows_its_field(capsys, snaps, tmp_path, kind):
    out = tmp_path / "snap.tif"
    events = run(capsys, "snap", f"{SPHERE}&kind={kind}", "--hologram", kind, "-o", str(out))
    by_name = {event["event"]: event for event in events}
    frame = read_frame(str(out), kind)
    np.testing.assert_array_equal(frame.pixels, taken(f"{SPHERE}&kind={kind}").pixels)
    assert frame.pixel_size_um == pytest.approx(0.2 if kind == "field" else 0.1)
    assert by_name["field"]["file"] == str(tmp_path / "snap-field.png")
    assert 0.001 < by_name["field"]["field_noise"] < 0.03
    assert (by_name["field"]["carrier_yx_per_um"] is None) == (kind != "off-axis")
    if kind == "off-axis":
        assert by_name["field"]["carrier_yx_per_um"] == pytest.approx([2.93, 2.93], abs=0.01)
    assert ("note" in by_name) == (kind == "in-line")
    n_panels = 3 if kind == "off-axis" else 2
    shown = picture(tmp_path / "snap-field.png")
    assert shown.shape[1] / shown.shape[0] == pytest.approx(n_panels * 192 / (160 + 18), rel=0.1)


def test_snap_says_what_is_wrong_with_a_hologram(capsys, tmp_path):
    saturated = f"{SPHERE}&full_well=30000&pixel_um=0.114"
    events = run(capsys, "snap", saturated, "--hologram", "off-axis", "-o", str(tmp_path / "a.tif"))
    notes = [event["note"] for event in events if event["event"] == "note"]
    assert any("saturated" in note for note in notes)
    assert any("the zero order leaks" in note or "folds back" in note for note in notes)


def test_snap_without_hologram_is_as_before(capsys, tmp_path):
    events = run(capsys, "snap", SPHERE, "-o", str(tmp_path / "a.tif"))
    assert [event["event"] for event in events] == ["snapped"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
    run(capsys, "snap", SPHERE, "-o", str(tmp_path / "b.tif"), "--pixel-size-um", "0.25")
    assert read_frame(str(tmp_path / "b.tif"), "off-axis").pixel_size_um == pytest.approx(0.25)


@pytest.mark.parametrize("there", ["snap.tif", "snap-field.png"])
def test_snap_overwrites_nothing_and_takes_no_frame_then(capsys, tmp_path, there):
    (tmp_path / there).write_bytes(b"mine")
    out = str(tmp_path / "snap.tif")
    error = refused(capsys, "snap", SPHERE, "--hologram", "off-axis", "-o", out)
    assert f"{there} exists and is never overwritten" in error
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_bytes() == b"mine"


def test_a_snapped_frame_is_kept_when_it_has_no_fringes(capsys, tmp_path):
    out = tmp_path / "snap.tif"
    error = refused(capsys, "snap", "sim:beads?seed=1", "--hologram", "off-axis", *OPTICS, "-o", str(out))
    assert f"{out} is saved, but there is no picture of its field: expected an off-axis hologram" in error
    assert [path.name for path in tmp_path.iterdir()] == ["snap.tif"]
    # its kind is not sure, so training may still take it for another one
    assert read_image(out).metadata == {"wavelength_um": 0.633, "na": 1.3, "page": 0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("background", ["polynomial", "reference"])
def test_a_sphere_comes_to_focus_at_its_z(capsys, snaps, tmp_path, kind, background):
    out = tmp_path / "stack.tif"
    reference = []
    if background == "reference":
        empty = str(tmp_path / "empty.tif")
        run(capsys, "snap", f"{SPHERE.replace('n=1', 'n=0')}&kind={kind}", "-o", empty)
        reference = ["--reference", empty]
    argv = ["refocus", str(snaps / f"{kind}.tif"), "--hologram", kind, *OPTICS, *reference]
    events = run(capsys, *argv, "--z-um", "-2:8:0.5", "-o", str(out))
    assert events[-1]["background"] == background
    with tifffile.TiffFile(out) as file:
        axes, metadata, pixels = file.series[0].axes, file.imagej_metadata, file.asarray()
    z_um = np.arange(-2, 8.1, 0.5)
    assert axes == "ZCYX"
    assert pixels.dtype == np.float32
    assert pixels.shape == (21, 2, 160, 192) if kind == "in-line" else (21, 2, 80, 96)
    assert metadata["Labels"][::2] == [f"amplitude, z = {z:g} um" for z in z_um]
    assert metadata["Labels"][1::2] == [f"phase in rad, z = {z:g} um" for z in z_um]
    assert (metadata["unit"], metadata["spacing"], metadata["zorigin"]) == ("um", 0.5, 4.0)
    assert "wavelength 0.633 um, medium 1.33, NA 1.3" in metadata["Info"]
    pixel_um = 0.1 if kind == "in-line" else 0.2
    with closing(open_source(str(out))) as source:
        assert source.info.pixel_size_um == pytest.approx(pixel_um)

    y_px, x_px = truth_yx_px(f"{SPHERE}&kind=field")  # 0.2 um pixels
    y, x = round(y_px * 0.2 / pixel_um), round(x_px * 0.2 / pixel_um)
    reach = round(0.4 / pixel_um)
    near = pixels[:, :, y - reach : y + reach + 1, x - reach : x + reach + 1]
    imaginary = (near[:, 0] * np.sin(near[:, 1])).max(axis=(1, 2))  # peaks where the particle is; its twin: negative
    assert abs(z_um[np.argmax(imaginary)] - 3) <= 0.5
    assert np.median(pixels[:, 0]) == pytest.approx(1, abs=0.01)


def test_refocusing_to_the_plane_of_the_hologram_gives_its_field(capsys, snaps, tmp_path):
    path = snaps / "field.tif"
    run(capsys, "refocus", str(path), "--hologram", "field", *OPTICS, "--z-um", "0", "--background", "none", "-o",
        str(tmp_path / "a.tif"))  # fmt: skip
    amplitude, phase = tifffile.imread(tmp_path / "a.tif")
    expected = tifffile.imread(path)
    got = amplitude * np.exp(1j * phase)
    reader = FieldReader(settings_of(arguments("--hologram", "field", *OPTICS), read_frame(str(path), "field")),
                         background="none")  # fmt: skip
    difference = got - reader.read(expected)
    assert np.sqrt(np.mean(np.abs(difference) ** 2)) < 2e-3  # the rings that the frame's edge cuts off


def test_planes_are_sorted_and_given_once_in_any_notation(capsys, snaps, tmp_path):
    argv = ["refocus", str(snaps / "field.tif"), "--hologram", "field", *OPTICS]
    done = run(capsys, *argv, "--z-um", "3", "-1:1:1", "-.5", "-1e-1", "0", "-o", str(tmp_path / "a.png"))[-1]
    assert done["z_um"] == [-1.0, -0.5, -0.1, 0.0, 1.0, 3.0]
    with tifffile.TiffFile(snaps / "field.tif") as file:
        assert file.series[0].axes == "CYX"
    run(capsys, *argv, "--z-um=-5:5:2.5", "-o", str(tmp_path / "b.tif"))
    run(capsys, *argv, "--z-um", "-3", "1", "9", "-o", str(tmp_path / "c.tif"))
    with tifffile.TiffFile(tmp_path / "c.tif") as file:
        assert "spacing" not in file.imagej_metadata
        assert "z_um = -3, 1, 9" in file.imagej_metadata["Info"]


def test_the_picture_shows_the_sphere_in_focus(capsys, snaps, tmp_path):
    out = tmp_path / "montage.png"
    done = run(capsys, "refocus", str(snaps / "off-axis.tif"), "--hologram", "off-axis", *OPTICS, "--z-um", "-3", "3",
               "-o", str(out))[-1]  # fmt: skip
    assert done["field_noise"] < 0.02
    shown = picture(out)[:, :, 0].astype(int)
    assert shown.shape == (2 * 400 + 6 + 32 + 2 * 24, 2 * 480 + 2)
    y, x = (round(5 * n / 2) for n in truth_yx_px(SPHERE))
    out_of_focus, in_focus = (shown[top + y - 5 : top + y + 6, 482 + x - 5 : 482 + x + 6] for top in (0, 406))
    assert in_focus.max() == 255
    assert np.abs(out_of_focus - 128).max() < 90


def test_in_line_tells_of_the_twin_and_off_axis_of_the_sign(capsys, snaps, tmp_path):
    for kind, word in (("in-line", "twin at -z"), ("off-axis", "add --carrier -2.9"), ("field", "")):
        argv = ["refocus", str(snaps / f"{kind}.tif"), "--hologram", kind, *OPTICS, "--z-um", "0"]
        assert main([*argv, "-o", str(tmp_path / f"{kind}.png")]) == 0
        said = capsys.readouterr().out
        assert word in said
        assert ("note: " in said) == bool(word)
        assert said.count("field noise 0.0") == 1


def test_the_other_sign_of_the_carrier_turns_z_round(capsys, snaps, tmp_path):
    argv = ["refocus", str(snaps / "off-axis.tif"), "--hologram", "off-axis", *OPTICS, "--z-um", "-3", "3"]
    for carrier in ([2.93, 2.93], [-2.93, -2.93]):
        out = tmp_path / f"{carrier[0]:g}.tif"
        events = run(capsys, *argv, "--carrier", *map(str, carrier), "-o", str(out))
        assert events[-1]["carrier_yx_per_um"] == carrier
        assert "note" not in [event["event"] for event in events]
        phase = tifffile.imread(out)[:, 1]
        assert np.argmax(np.abs(phase).max(axis=(1, 2))) == (carrier[0] > 0)


def test_planes_beyond_the_frame_are_not_to_be_trusted(capsys, snaps, tmp_path):
    argv = ["refocus", str(snaps / "field.tif"), "--hologram", "field", *OPTICS, "--z-um", "0", "100"]
    notes = [event["note"] for event in run(capsys, *argv, "-o", str(tmp_path / "a.png")) if event["event"] == "note"]
    assert len(notes) == 1
    assert "the light of a particle leaves the frame" in notes[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("{f}/foreign.tif --hologram off-axis --na 1.3", "the frame does not tell it; add --wavelength-um L"),
        ("{f}/foreign.tif --hologram off-axis --wavelength-um 0.6", "add --na A"),
        ("{f}/off-axis.tif --hologram off-axis --wavelength-um 633 --na 1", "0.633 for 633 nm"),
        ("{f}/bare.tif --hologram off-axis --wavelength-um 0.6 --na 1", "add --pixel-size-um P"),
        ("{f}/off-axis.tif --hologram field {o}", "expected Re and Im of one field in"),
        ("{f}/field.tif --hologram off-axis {o}", "holds 2 channels, one grey plane is expected"),
        ("{f}/in-line.tif --hologram off-axis {o}", "the frame is in-line; write --hologram in-line"),
        ("{f}/foreign.tif --hologram off-axis {o}", "or treat the frame as in-line"),
        ("{f}/none.tif --hologram in-line {o}", "no such file; check the path"),
        ("{f}/none.tif --hologram field {o}", "no such file; check the path"),
        ("{f}/small.tif --hologram in-line {o}", "of 32 px or more, got shape (20, 20)"),
        ("{f}/off-axis.tif --hologram off-axis {o} --carrier 9 9", "expected a carrier within 5 cycles/um"),
        ("{f}/off-axis.tif --hologram off-axis {o} --background reference", "give --reference EMPTY.tif"),
        ("{f}/off-axis.tif --hologram off-axis {o} --background none --reference {f}/empty.tif", "and only then"),
        ("{f}/off-axis.tif --hologram off-axis {o} --reference {f}/small.tif", "expected frames of the reference's"),
        ("{f}/off-axis.tif --hologram off-axis {o} --z-um 0:70:1", "expected at most 64 planes in a picture, got 71"),
    ],
)
def test_bad_input_gets_one_sentence(capsys, snaps, tmp_path, argv, message):
    tifffile.imwrite(snaps / "bare.tif", taken(SPHERE).pixels)
    foreign = taken(f"{SPHERE}&kind=in-line").pixels
    tifffile.imwrite(snaps / "foreign.tif", foreign, imagej=True, resolution=(10, 10), metadata={"unit": "um"})
    small = np.random.default_rng(0).normal(100, 5, (20, 20)).astype(np.float32)
    tifffile.imwrite(snaps / "small.tif", small, imagej=True, resolution=(10, 10), metadata={"unit": "um"})
    words = argv.format(f=snaps, o="--wavelength-um 0.633 --na 1.3").split()
    planes = [] if "--z-um" in words else ["--z-um", "1"]
    error = refused(capsys, "refocus", *words, *planes, "-o", str(tmp_path / "a.png"))
    assert message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_refocus_overwrites_nothing(capsys, snaps, tmp_path, suffix):
    there = tmp_path / f"a{suffix}"
    there.write_bytes(b"mine")
    argv = ["refocus", str(snaps / "field.tif"), "--hologram", "field", *OPTICS, "--z-um", "1", "-o", str(there)]
    assert "exists and is never overwritten" in refused(capsys, *argv)
    assert there.read_bytes() == b"mine"


def test_a_stack_that_fails_half_way_leaves_no_file(monkeypatch, capsys, snaps, tmp_path):
    from oneframe.runtime.refocus import Refocuser

    whole = Refocuser.from_spectrum

    def fails(self, spectrum, z_um):
        if z_um == 3.0:
            raise MemoryError("no memory left")
        return whole(self, spectrum, z_um)

    monkeypatch.setattr(Refocuser, "from_spectrum", fails)
    argv = ["refocus", str(snaps / "field.tif"), "--hologram", "field", *OPTICS, "--z-um", "0:5:0.25"]
    assert "no memory left" in refused(capsys, *argv, "-o", str(tmp_path / "a.tif"))
    assert not list(tmp_path.iterdir())


def arguments(*options: str) -> argparse.Namespace:
    return parse(["snap", SPHERE, "-o", "a.tif", *options])


def test_options_go_before_what_the_frame_says_and_water_is_the_medium():
    frame = taken(SPHERE)
    told = settings_of(arguments("--hologram", "off-axis"), frame)
    assert told == HologramSettings("off-axis", told.optics)
    assert (told.optics.wavelength_um, told.optics.medium_index, told.optics.na) == (0.633, 1.33, 1.3)
    assert told.optics.pixel_um == pytest.approx(0.1)
    assert told.carrier_yx_per_um is None  # what the simulator knows a user does not
    given = ["--wavelength-um", "0.5", "--medium-index", "1.4", "--na", "0.8", "--pixel-size-um", "0.07"]
    other = settings_of(arguments("--hologram", "off-axis", *given, "--carrier", "-2", "3"), frame)
    assert (other.optics.wavelength_um, other.optics.medium_index, other.optics.na) == (0.5, 1.4, 0.8)
    assert other.optics.pixel_um == 0.07
    assert other.carrier_yx_per_um == (-2.0, 3.0)
    bare = Frame(frame.pixels, 0, 0.0, 0.1)
    assert settings_of(arguments("--hologram", "in-line", *OPTICS), bare).optics.medium_index == 1.33


class Camera:
    """A source of one frame that tells nothing of the light."""

    def __init__(self, pixels):
        self.frame = Frame(pixels, 0, 0.0, 0.1, {"camera": "mine"})

    def read(self, timeout_s):
        return self.frame

    def close(self):
        pass


@pytest.mark.parametrize("medium", [(), ("--medium-index", "1.4")])
def test_training_needs_no_option_that_snap_was_told(capsys, monkeypatch, tmp_path, medium):
    pixels = taken(SPHERE).pixels
    monkeypatch.setattr("oneframe.app.frames.open_source", lambda url: Camera(pixels))
    out = tmp_path / "snap.tif"
    given = ["--hologram", "off-axis", "--wavelength-um", "0.64", "--na", "1.25", *medium]
    run(capsys, "snap", "mm:my.cfg", *given, "-o", str(out))
    frame = read_frame(str(out), "off-axis")
    assert ("medium_index" in frame.metadata) == bool(medium)  # water is a guess, not what is known
    train = ["train", str(out), "-o", "m.onnx", "--hologram", "off-axis"]
    told = settings_of(parse(train), frame)
    assert told == settings_of(parse([*train, *given]), Frame(pixels, 0, 0.0, frame.pixel_size_um))
    assert told.optics.wavelength_um == 0.64
    assert told.optics.medium_index == (1.4 if medium else 1.33)
    assert settings_of(parse([*train, "--wavelength-um", "0.5"]), frame).optics.wavelength_um == 0.5
    with pytest.raises(CommandError, match="the frame is off-axis; write --hologram off-axis"):
        settings_of(parse(["train", str(out), "-o", "m.onnx", "--hologram", "in-line"]), frame)


def test_options_of_a_hologram_without_one_are_refused():
    frame = taken(SPHERE)
    assert settings_of(arguments(), frame) is None
    with pytest.raises(CommandError, match="expected --hologram off-axis, in-line or field with --wavelength-um"):
        settings_of(arguments("--wavelength-um", "0.5"), frame)
    with pytest.raises(CommandError, match="the frame is off-axis; write --hologram off-axis"):
        settings_of(arguments("--hologram", "in-line"), frame)
    train = parse(["train", "a.tif", "-o", "m.onnx", "--z-range-um", "-3", "5"])
    with pytest.raises(CommandError, match="with --z-range-um, got none; add it"):
        settings_of(train, frame)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_default_background_suits_the_reader(snaps, live, kind):
    settings = settings_of(arguments("--hologram", kind, *OPTICS), taken(f"{SPHERE}&kind={kind}"))
    plain = arguments("--hologram", kind)
    assert background_of(plain, live=live) == ("median" if live else "polynomial")
    assert reader_of(plain, settings, live=live).background == background_of(plain, live=live)
    empty = arguments("--hologram", kind, "--reference", str(snaps / f"{kind}.tif"))
    assert reference_of(empty, kind).shape == taken(f"{SPHERE}&kind={kind}").pixels.shape
    assert reader_of(empty, settings, live=live).background == "reference"
    asked = arguments("--hologram", kind, "--background", "none")
    assert reader_of(asked, settings, live=live).background == "none"


def test_a_field_may_be_two_channels_or_the_only_two_images(tmp_path):
    pixels = taken(f"{SPHERE}&kind=field").pixels
    tifffile.imwrite(tmp_path / "pages.tif", pixels, photometric="minisblack")
    np.save(tmp_path / "channels.npy", pixels[np.newaxis])
    np.save(tmp_path / "images.npy", pixels)
    for name in ("pages.tif", "channels.npy", "images.npy"):
        np.testing.assert_array_equal(read_frame(str(tmp_path / name), "field").pixels, pixels)
    np.save(tmp_path / "three.npy", np.concatenate([pixels, pixels[:1]]))
    with pytest.raises(CommandError, match=r"got 3 images, the first of shape \(80, 96\); pick one with \?page=N"):
        read_frame(str(tmp_path / "three.npy"), "field")
    np.testing.assert_array_equal(read_frame(f"{tmp_path / 'three.npy'}?page=2", "in-line").pixels, pixels[0])


def test_the_choices_of_the_command_line_are_those_of_the_runtime():
    for kind in KINDS:
        assert arguments("--hologram", kind).hologram == kind
    for background in BACKGROUNDS:
        for command in (["detect", "m.onnx", "a.tif", "-o", "b.csv"], ["live", "m.onnx", "--source", "sim:hologram"],
                        ["log", "m.onnx", "--source", "sim:hologram", "-o", "run"]):  # fmt: skip
            parsed = parse([*command, "--background", background, "--reference", "empty.tif"])
            assert (parsed.background, parsed.reference) == (background, "empty.tif")
