"""Exactness and cost of the acquisition hook in a real pycromanager `Acquisition`.

Run: python benchmarks/acquisition_hook.py [--times 200] [--side 512] [--rounds 3] [--model bead.onnx]

DemoCamera beads, `--times` time points x 2 z, the stage moved for each, saved as NDTiff; without the hook, with it as
`image_process_fn`, and as `image_saved_fn`, in turn. Prints the wall time of each acquisition, what became of every
image, and in how many images a detection differs from that of `detect` on the saved file: 0 is right. Without
`--model` one is trained on a drawn bead like DemoCamera's (needs torch).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import mm_test_adapters
import numpy as np
from pycromanager import Acquisition, Core, start_headless, stop_headless

from oneframe.runtime import OnnxModel, load_model
from oneframe.runtime.hook import AcquisitionHook

BEAD_SIGMA_PX = 3
BOX_SIDE = 28
CONFIG = """\
Property,Core,Initialize,0
Device,Camera,DemoCamera,DCam
Device,XY,DemoCamera,DXYStage
Device,Z,DemoCamera,DStage
Property,Core,Initialize,1
Property,Core,Camera,Camera
Property,Core,Focus,Z
Property,Core,XYStage,XY
Property,Camera,PixelType,16bit
Property,Camera,BitDepth,16
Property,Camera,OnCameraCCDXSize,{side}
Property,Camera,OnCameraCCDYSize,{side}
Property,Camera,Mode,Fluorescent Beads
Property,Camera,BeadSize,{sigma}
Property,Camera,BeadDensity,60
ConfigPixelSize,1x,Camera,Binning,1
PixelSize_um,1x,1.0
"""


def trained_model(folder: Path) -> Path:
    """Train on two beads as DemoCamera draws them: Gaussian, peak 255, no background."""
    from oneframe.export import export
    from oneframe.trainer import train

    y, x = np.mgrid[:96, :96]
    peaks = ((30.3, 28.6), (70.2, 66.1))
    beads = [255 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * BEAD_SIGMA_PX**2)) for cy, cx in peaks]
    corner = (round(peaks[0][1]) - BOX_SIDE // 2, round(peaks[0][0]) - BOX_SIDE // 2)
    path = folder / "bead.onnx"
    export(train(sum(beads).astype(np.uint16), box=(*corner, BOX_SIDE, BOX_SIDE), seed=0), path)
    return path


def acquire(folder: Path, name: str, n_times: int, **hooks: Any) -> tuple[float, Any]:
    """Return seconds that the acquisition took, and its dataset."""
    events = [
        {"axes": {"time": t, "z": z}, "x": 0.7 * t, "y": -0.4 * t, "z": float(z)}
        for t in range(n_times)
        for z in (0, 1)
    ]
    start_s = time.perf_counter()
    with Acquisition(str(folder), name, **hooks) as acquisition:
        acquisition.acquire(events)
    return time.perf_counter() - start_s, acquisition.get_dataset()


def n_different(table: dict[str, Any], dataset: Any, model: OnnxModel, n_times: int) -> int:
    """Count the images of the file in which a detection differs in any bit."""
    bad = 0
    for t in range(n_times):
        for z in (0, 1):
            rows = (table["time"] == t) & (table["z"] == z)
            expected = model.detect(dataset.read_image(time=t, z=z)).columns()
            bad += any(not np.array_equal(table[name][rows], column) for name, column in expected.items())
    return bad


def main() -> None:
    """Measure in turn and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--times", type=int, default=200)
    arguments.add_argument("--side", type=int, default=512, help="of the image, px")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--model", type=Path)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = load_model(chosen.model or trained_model(folder), threads=1)
        config = folder / "demo.cfg"
        config.write_text(CONFIG.format(side=chosen.side, sigma=BEAD_SIGMA_PX))
        start_headless(
            mm_app_path=mm_test_adapters.device_adapter_path(),
            config_file=str(config),
            python_backend=True,
            buffer_size_mb=256,
        )
        Core().set_exposure(2)
        for number in range(chosen.rounds):
            alone_s, _ = acquire(folder, "alone", chosen.times)
            print(f"round {number}: without the hook {alone_s:.2f} s for {2 * chosen.times} images", flush=True)
            for use in ("image_process_fn", "image_saved_fn"):
                hook = AcquisitionHook(model, every=True)
                seconds, dataset = acquire(folder, use, chosen.times, **{use: hook})
                live = hook.account()
                start_s = time.perf_counter()
                account = hook.finish(dataset)
                late_s = time.perf_counter() - start_s
                table = hook.detections()
                differ = n_different(table, dataset, model, chosen.times)
                print(
                    f"  {use}: {seconds:.2f} s ({seconds / alone_s:.2f} times), {live.analysed} of {live.seen} "
                    f"analysed by then, {account.analysed} after {late_s:.1f} s more; {len(table['y_px'])} detections, "
                    f"{differ} images differ",
                    flush=True,
                )
        stop_headless()


if __name__ == "__main__":
    main()
