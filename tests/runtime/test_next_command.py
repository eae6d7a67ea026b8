"""The line that names the next command: typed as it stands, through the door that was used."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from supersam.runtime.next_command import command, export_folder, next_line
from tests.paths import ROOT


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        ("/env/bin/supersam", "supersam search"),
        ("/site-packages/supersam/__main__.py", "python -m supersam search"),
        ("launch/train.py", "python launch/search.py"),
        ("/a b/launch/train.py", "python '/a b/launch/search.py'"),
        ("/site-packages/pytest/__main__.py", "supersam search"),
        ("-c", "supersam search"),
    ],
)
def test_a_command_goes_through_the_door_that_was_used(monkeypatch, started, expected):
    monkeypatch.setattr(sys, "argv", [started, "--flag"])
    assert command("search") == expected


def test_words_of_a_command_survive_the_shell():
    words = ["--run", Path("my runs/a"), "--subnet", "runs/a/results/search#knee"]
    line = next_line("export", *words, why="it's the knee")
    assert shlex.split(line, comments=True)[-4:] == [str(word) for word in words]
    assert line.endswith("    # it's the knee")


@pytest.mark.parametrize(
    ("subnet", "expected"),
    [
        ("smallest", "exports/a-smallest"),
        ("runs/a/results/search#knee", "exports/a-knee"),
        ("specs/mine.json", "exports/a-mine"),
        ("", "exports/a"),
    ],
)
def test_an_export_s_folder_is_named_by_run_and_subnet(subnet, expected):
    assert export_folder(Path("runs/a"), subnet) == Path(expected)


def test_the_next_command_needs_no_torch():
    code = "import sys, supersam.cluster.ending, supersam.runtime.table; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
