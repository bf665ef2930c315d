"""`oneframe refocus`, and what every command makes of the hologram options: settings, reference, reader."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneframe.acquisition import Frame
from oneframe.acquisition.recording import open_recording, read_image
from oneframe.acquisition.source import parse_source
from oneframe.app.console import CommandError, Console
from oneframe.app.frames import new_file
from oneframe.runtime.field_reader import FieldReader, HologramSettings
from oneframe.runtime.optics import Optics
from oneframe.runtime.refocus import Complex2D, Refocuser

if TYPE_CHECKING:
    from oneframe.runtime.field_picture import FieldContrast

WATER = 1.33
NOISY = 0.05
"""Field noise, per component, above which fringes of the background dominate; see `field_noise`."""

_TWINS = (
    "an in-line hologram holds no phase: each particle at z has a twin at -z that looks alike; look on the side of the "
    "focus where the particles are"
)
_LARGEST_TIFF_BYTES = 2**32 - 2**25


def settings_of(arguments: argparse.Namespace, frame: Frame) -> HologramSettings | None:
    """Return what the options and the frame say of the instrument; None without --hologram.

    Options go first; pixel size, wavelength, medium and aperture are then taken from the frame, where it knows them.

    Raises
    ------
    CommandError
        If something is not known, the frame is of another kind, or the options describe a hologram without --hologram.
    ValueError
        If a value makes no sense.
    """
    if arguments.hologram is None:
        names = ("wavelength_um", "medium_index", "na", "carrier", "reference", "background", "z_range_um")
        given = [name for name in names if getattr(arguments, name, None) is not None]
        if given:
            option = f"--{given[0].replace('_', '-')}"
            raise CommandError(f"expected --hologram off-axis, in-line or field with {option}, got none; add it")
        return None
    kind = frame.metadata.get("kind", arguments.hologram)
    if kind != arguments.hologram:
        raise CommandError(f"expected {arguments.hologram} holograms, the frame is {kind}; write --hologram {kind}")

    def known(name: str, option: str, meaning: str, default: float | None = None) -> float:
        given, told = getattr(arguments, name), frame.metadata.get(name, default)
        value = told if given is None else given
        if not isinstance(value, int | float):
            raise CommandError(f"expected {meaning}, the frame does not tell it; add {option}")
        return float(value)

    pixel_um = arguments.pixel_size_um or frame.pixel_size_um
    if pixel_um is None:
        raise CommandError(
            "expected the edge of a pixel in the sample, the frame does not tell it; add --pixel-size-um P"
        )
    optics = Optics(
        wavelength_um=known("wavelength_um", "--wavelength-um L", "the wavelength in vacuum"),
        medium_index=known("medium_index", "--medium-index N", "the refractive index round the particles", WATER),
        na=known("na", "--na A", "the numerical aperture of the objective"),
        pixel_um=pixel_um,
    )
    carrier = None if arguments.carrier is None else (arguments.carrier[0], arguments.carrier[1])
    return HologramSettings(arguments.hologram, optics, carrier)


def reference_of(arguments: argparse.Namespace, kind: str) -> NDArray[Any] | None:
    """Return the frame without particles that --reference names, (H, W), for the kind `field` (2, H, W); or None."""
    return None if arguments.reference is None else read_frame(arguments.reference, kind).pixels


def background_of(arguments: argparse.Namespace, *, live: bool) -> str:
    """Return what fields are divided by: what --background asks for, else what suits."""
    if arguments.background is not None:
        return str(arguments.background)
    if arguments.reference is not None:
        return "reference"
    return "median" if live else "polynomial"


def reader_of(arguments: argparse.Namespace, settings: HologramSettings, *, live: bool) -> FieldReader:
    """Return a reader of such holograms; `live` for frames that follow each other, else each is for itself.

    Raises
    ------
    ValueError
        If --reference and --background do not go together.
    """
    reference = reference_of(arguments, settings.kind)
    return FieldReader(settings, reference=reference, background=background_of(arguments, live=live))


def read_frame(text: str, kind: str) -> Frame:
    """Return the one image of a file: (H, W), or for the kind `field` Re and Im as (2, H, W).

    Parameters
    ----------
    text : str
        The path; the options of a recording may follow, as in `stack.tif?page=3`. Re and Im are two channels, or the
        only two images.
    kind : str
        Of the hologram.

    Raises
    ------
    CommandError, SourceError
        If it is missing or damaged, or holds something else.
    """
    if kind != "field":
        return read_image(text)
    with closing(open_recording(parse_source(text))) as recording:
        n_images = recording.n_pages
        read = [recording.read(0.0) for _ in range(min(n_images, 2))]
    images = [frame for frame in read if frame is not None]
    if n_images == 1 and images and len(images[0].pixels) == 2 and images[0].pixels.ndim == 3:
        return images[0]
    if n_images == 2 and len(images) == 2 and all(frame.pixels.ndim == 2 for frame in images):
        return dataclasses.replace(images[0], pixels=np.stack([frame.pixels for frame in images]))
    found = f"{n_images} image{'s' * (n_images > 1)}, the first of shape {images[0].pixels.shape}" if images else "none"
    raise CommandError(
        f"expected Re and Im of one field in {text}, two planes of one size, got {found}; "
        "pick one with ?page=N, or treat a camera's frame with --hologram off-axis or in-line"
    )


def snap_field(reader: FieldReader, frame: Frame, field: Complex2D, path: Path, console: Console) -> None:
    """Write the picture of a snapped hologram and of the field just read from it, and say what is known of that."""
    from oneframe.runtime.field_picture import field_panels  # late: OpenCV, which `log` starts without
    from oneframe.runtime.overlay import write_png

    _tell_notes(reader, frame, console)
    picture = field_panels(
        None if reader.settings.kind == "field" else frame.pixels,
        field,
        pixel_um=reader.settings.field_optics.pixel_um,
        captions=[_account(reader), _instrument(reader)],
    )
    write_png(path, picture)
    console.say(f"{path}: {_account(reader)}", event="field", file=str(path), **_facts(reader))


def refocus(arguments: argparse.Namespace, console: Console) -> None:
    """Write a hologram's amplitude and phase at other distances, as a stack or a picture."""
    from oneframe.runtime.field_picture import MOST_TILES, FieldContrast, montage
    from oneframe.runtime.overlay import write_png

    path = new_file(arguments.output, (".tif", ".tiff", ".png"))
    z_um = sorted({z for planes in arguments.z_um for z in planes})
    is_picture = path.suffix.lower() == ".png"
    if is_picture and len(z_um) > MOST_TILES:
        raise CommandError(
            f"expected at most {MOST_TILES} planes in a picture, got {len(z_um)}; take larger steps, or write a .tif"
        )
    frame = read_frame(arguments.image, arguments.hologram)
    settings = settings_of(arguments, frame)
    if settings is None:
        raise CommandError("expected a hologram, got none; add --hologram off-axis, in-line or field")
    reader = reader_of(arguments, settings, live=False)
    field = reader.read(frame.pixels)
    refocuser = Refocuser(settings.field_optics, (field.shape[0], field.shape[1]))
    _tell_notes(reader, frame, console)
    _tell_limits(reader, refocuser, z_um, console, sign_is_known=arguments.carrier is not None)
    spectrum = refocuser.spectrum(field)

    def planes() -> Iterator[Complex2D]:
        for n, z in enumerate(z_um, start=1):
            yield refocuser.from_spectrum(spectrum, z)
            line = f"{n} of {len(z_um)} planes"
            console.tick(line.__str__, event="progress", planes=n, n_planes=len(z_um))

    if is_picture:
        picture = montage(
            planes(),
            z_um,
            shape=refocuser.shape,
            pixel_um=refocuser.optics.pixel_um,
            captions=[_account(reader), _instrument(reader)],
        )
        write_png(path, picture)
    else:
        some = [refocuser.from_spectrum(spectrum, z) for z in z_um[:: -(-len(z_um) // 5)]]
        _write_stack(path, planes(), z_um, FieldContrast.of(some), reader, refocuser)
    extent = f"z = {z_um[0]:g} um" if len(z_um) == 1 else f"{len(z_um)} planes from {z_um[0]:g} to {z_um[-1]:g} um"
    console.say(f"{path}: {extent}; {_account(reader)}", event="done", file=str(path), z_um=z_um, **_facts(reader))


def _write_stack(
    path: Path,
    planes: Iterator[Complex2D],
    z_um: list[float],
    contrast: FieldContrast,
    reader: FieldReader,
    refocuser: Refocuser,
) -> None:
    """Write amplitude and phase as an ImageJ hyperstack (Z, 2, H, W) float32, plane by plane."""
    import tifffile

    shape = (len(z_um), 2, *refocuser.shape)
    n_bytes = 4 * math.prod(shape)
    if n_bytes > _LARGEST_TIFF_BYTES:
        raise CommandError(
            f"expected a stack below 4 GB, which is all that ImageJ opens, got {n_bytes / 2**30:.1f} GB; take fewer "
            "planes at a time"
        )
    pixel_um = refocuser.optics.pixel_um
    steps = np.diff(z_um)
    even = len(z_um) > 1 and np.allclose(steps, steps[0], rtol=1e-3)
    metadata: dict[str, Any] = {
        "axes": "ZCYX",
        "unit": "um",
        "mode": "grayscale",
        "Ranges": (1 - contrast.amplitude, 1 + contrast.amplitude, -contrast.phase_rad, contrast.phase_rad),
        "Labels": [f"{part}, z = {z:g} um" for z in z_um for part in ("amplitude", "phase in rad")],
        "Info": "\n".join([_account(reader), _instrument(reader), f"z_um = {', '.join(f'{z:g}' for z in z_um)}"]),
    }
    if even:
        metadata |= {"spacing": float(steps[0]), "zorigin": float(-z_um[0] / steps[0])}
    pages = (part for field in planes for part in (np.abs(field), np.angle(field)))
    try:
        with path.open("xb") as file:
            tifffile.imwrite(
                file,
                pages,
                shape=shape,
                dtype=np.float32,
                imagej=True,
                resolution=(1 / pixel_um, 1 / pixel_um),
                metadata=metadata,
            )
    except BaseException:
        path.unlink(missing_ok=True)  # a part of a stack would pass for the whole
        raise


def _tell_notes(reader: FieldReader, frame: Frame, console: Console) -> None:
    """Say what the user should know before he trusts the field."""
    for note in reader.notes(frame.pixels):
        _tell(note, console)
    if reader.settings.kind == "in-line":
        _tell(_TWINS, console)
    if reader.noise > NOISY and reader.background != "reference":
        _tell(
            f"the field noise is {reader.noise:.2g}, above {NOISY:g} fringes of the background dominate; give "
            "--reference EMPTY.tif, a frame without particles",
            console,
        )


def _tell_limits(
    reader: FieldReader, refocuser: Refocuser, z_um: list[float], console: Console, *, sign_is_known: bool
) -> None:
    """Say which of the planes are not to be trusted."""
    carrier = reader.settings.carrier_yx_per_um
    if carrier is not None and not sign_is_known:
        _tell(
            "a hologram does not tell the sign of its carrier: where particles come into focus at the negative of "
            f"their z, add --carrier {-carrier[0]:.4f} {-carrier[1]:.4f}",
            console,
        )
    farthest_um = max(map(abs, z_um))
    if farthest_um > refocuser.z_limit_um:
        _tell(
            f"beyond {refocuser.z_limit_um:.3g} um the light of a particle leaves the frame and comes in at the "
            f"opposite edge: do not trust the planes up to {farthest_um:g} um; use a larger frame",
            console,
        )


def _tell(note: str, console: Console) -> None:
    console.say(f"note: {note}", event="note", note=note)


def _account(reader: FieldReader) -> str:
    """Return what came out of the frame, for a person."""
    carrier = reader.settings.carrier_yx_per_um
    found = "" if carrier is None else f"carrier ({carrier[0]:.4g}, {carrier[1]:.4g}) cycles/um, "
    return f"{reader.settings.kind}, {found}field noise {reader.noise:.2g} per component"


def _instrument(reader: FieldReader) -> str:
    optics = reader.settings.optics
    return (
        f"wavelength {optics.wavelength_um:g} um, medium {optics.medium_index:g}, NA {optics.na:g}, camera pixel "
        f"{optics.pixel_um:g} um, background: {reader.background}"
    )


def _facts(reader: FieldReader) -> dict[str, Any]:
    """Return the same for a script."""
    carrier = reader.settings.carrier_yx_per_um
    return {
        "kind": reader.settings.kind,
        "field_noise": reader.noise,
        "carrier_yx_per_um": None if carrier is None else list(carrier),
        "background": reader.background,
        "pixel_size_um": reader.settings.field_optics.pixel_um,
    }
