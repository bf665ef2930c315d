"""What the README says is true: its commands parse, its Python runs, its set-up lines are what CI runs."""

import re
import shlex
from pathlib import Path

import pytest

from oneframe.app.main import parser

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(oneframe (?:snap|train|live|log|doctor)\b.*?)(?: {3,}.*)?$", README, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_parse(command):
    assert parser().parse_args(shlex.split(command)[1:]).command in command


def test_all_five_steps_are_shown():
    assert len(COMMANDS) == 5


def test_the_python_example_runs(bead_model, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(bead_model.path.parent)
    exec(compile(example, "README.md", "exec"), {"image": bead_model.snap.frame.pixels})
    assert "[" in capsys.readouterr().out


def test_two_commands_do_the_set_up():
    assert 'pip install ".[all]" && oneframe demo\n' in README
    assert 'pip install ".[all,dev]" && python -m pytest\n' in README
