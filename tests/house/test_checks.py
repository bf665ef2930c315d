"""Lint, types and import order are tests, so that one command checks everything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("acquisition", "runtime", "export", "trainer", "app")


def check(*command: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [("check", "."), ("format", "--check", ".")])
def test_style(command):
    pytest.importorskip("ruff", reason="needs oneframe[dev]")
    check("-m", "ruff", *command)


def test_types(tmp_path):
    """mypy strict on the tree itself, whether or not the installed package is editable."""
    for name in ("mypy", "torch", "pyqtgraph"):
        pytest.importorskip(name, reason="needs oneframe[all,dev]")
    package = tmp_path / "oneframe"
    package.mkdir()
    for room in ROOMS:
        (package / room).symlink_to(ROOT / room, target_is_directory=True)
    check("-m", "mypy", "--config-file", "pyproject.toml", str(package), MYPYPATH=str(tmp_path))


def test_import_order():
    pytest.importorskip("importlinter", reason="needs oneframe[dev]")
    check("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")
