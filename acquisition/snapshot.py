"""A snapped frame goes to disk as a TIFF that ImageJ and `read_image` read with its pixel size."""

from __future__ import annotations

from pathlib import Path

from oneframe.acquisition.frame import Frame

_IMAGEJ_TYPES = ("uint8", "uint16", "float32")


def write_snapshot(path: Path, frame: Frame) -> None:
    """Write one frame, (H, W) or (C, H, W), in the camera's own dtype.

    Raises
    ------
    FileExistsError
        If there is a file of that name: a frame is never overwritten.
    """
    import tifffile

    if path.exists():
        raise FileExistsError(f"{path} exists and is never overwritten; choose another name")
    per_um = None if frame.pixel_size_um is None else (1 / frame.pixel_size_um, 1 / frame.pixel_size_um)
    metadata = {"axes": "YX" if frame.pixels.ndim == 2 else "CYX", "unit": "um"}
    tifffile.imwrite(
        path,
        frame.pixels,
        imagej=frame.pixels.dtype.name in _IMAGEJ_TYPES,
        photometric="minisblack",
        resolution=per_um,
        metadata=metadata,
    )
