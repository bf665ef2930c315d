"""The rooms of the repository are the package: nothing missing, nothing twice, nothing heavy."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("acquisition", "runtime", "export", "trainer", "app")


def test_every_folder_with_code_is_a_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert settings["packages"] == [f"oneframe.{room}" for room in ROOMS]
    assert settings["package-dir"] == {f"oneframe.{room}": room for room in ROOMS}
    for room in ROOMS:
        nested = [path for path in (ROOT / room).rglob("*.py") if path.parent != ROOT / room]
        assert not nested, f"rooms are flat, setuptools would leave out {nested}"
        assert (ROOT / room / "README.md").is_file()


def test_the_wheel_holds_exactly_the_tree(tmp_path):
    pytest.importorskip("wheel", reason="needs oneframe[dev]")
    source = tmp_path / "source"
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("needs a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("oneframe-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tree = {f"oneframe/{room}/{p.name}" for room in ROOMS for p in (source / room).iterdir() if p.name != "README.md"}
    assert packed == tree


def test_no_room_is_imported_twice():
    rooms = {f"{room}.{path.stem}" for room in ROOMS for path in (ROOT / room).glob("*.py")} | set(ROOMS)
    strangers = [name for name in sys.modules if name in rooms and getattr(sys.modules[name], "__file__", None)
                 and Path(sys.modules[name].__file__).is_relative_to(ROOT)]  # fmt: skip
    assert not strangers


def in_new_interpreter(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_detecting_and_logging_load_neither_torch_nor_onnx_nor_pandas_nor_qt(bead_model, tmp_path):
    """The whole base job in an interpreter in which those packages cannot be imported."""
    code = f"""
import sys
for name in ("torch", "onnx", "onnxscript", "pandas", "PySide6", "pyqtgraph", "matplotlib", "sklearn", "skimage"):
    sys.modules[name] = None
import oneframe.acquisition, oneframe.runtime
from oneframe.app.main import main
source = "sim:beads?width=160&height=128&n=10&frames=5"
assert main(["snap", source, "-o", {str(tmp_path / "a.tif")!r}]) == 0
assert main(["detect", {str(bead_model.path)!r}, {str(tmp_path / "a.tif")!r}, "-o", {str(tmp_path / "d.csv")!r}]) == 0
assert main(["log", {str(bead_model.path)!r}, "--source", source, "-o", {str(tmp_path / "run")!r}]) == 0
assert main(["verify", {str(bead_model.path)!r}]) == 0
"""
    assert "5 frames seen = 5 analysed" in in_new_interpreter(code)
    slow = {"torch", "onnx", "pandas", "PySide6", "scipy"}
    assert in_new_interpreter(f"import sys, oneframe.runtime; print({slow} & set(sys.modules))").strip() == "set()"
