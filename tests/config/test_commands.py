"""One registry behind `supersam NAME`, `python -m supersam NAME` and `launch/NAME.py`."""

from __future__ import annotations

import importlib
import inspect
import json
import signal
import subprocess
import sys
import typing

import pytest

from supersam import __version__
from supersam.cli import main
from supersam.config.commands import COMMANDS
from supersam.config.shipped import DEMO
from supersam.data.shards import ShardReader
from tests.paths import ROOT

LAUNCH_FILES = sorted((ROOT / "launch").glob("*.py"))


def ended(*words: str) -> int:
    """The exit code of `supersam WORDS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "excepthook", sys.excepthook)
        patch.setattr(sys, "argv", ["supersam", *words])
        with pytest.raises(SystemExit) as stop:
            main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_every_launch_file_is_a_command_in_the_same_four_lines():
    for file in LAUNCH_FILES:
        head, *lines = [line for line in file.read_text().splitlines() if line]
        assert f"launch/{file.name}" in head
        assert lines == [
            "from supersam.cli import main",
            'if __name__ == "__main__":',
            f'    main("{file.stem}")',
        ]
        assert file.stem in COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_an_action_takes_the_configuration_of_its_command_and_returns_an_exit_code(name):
    module, _, function = COMMANDS[name].action.partition(":")
    action = getattr(importlib.import_module(module), function)
    hints = typing.get_type_hints(action)
    first = next(iter(inspect.signature(action).parameters))
    assert issubclass(COMMANDS[name].run_type, hints[first])
    assert hints["return"] is int


def test_the_overview_names_every_command(capsys):
    assert ended() == 0
    overview = capsys.readouterr().out
    assert all(f"  {name} " in overview for name in COMMANDS)


@pytest.mark.parametrize("words", [["--version"], ["train", "--version"]])
def test_the_version_is_printed(capsys, words):
    assert ended(*words) == 0
    assert capsys.readouterr().out == f"supersam {__version__}\n"


@pytest.mark.parametrize(
    ("word", "remedy"), [("trian", "did you mean train?"), ("xyz", "commands are shard, ")]
)
def test_an_unknown_command_is_refused_with_the_nearest_one(capsys, word, remedy):
    assert ended(word) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {word!r} is not a command; {remedy}")


def test_a_user_s_mistake_ends_in_one_line_and_code_2(capsys, tmp_path):
    assert ended("status", str(tmp_path / "absent")) == 2
    assert capsys.readouterr().err.count("error: ") == 1


def test_python_dash_m_is_the_same_door():
    words = [sys.executable, "-m", "supersam", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == f"supersam {__version__}\n"


def test_an_interrupt_while_the_command_line_is_imported_leaves_one_word():
    script = (
        "import builtins, sys\n"
        "def stopped(name, *rest, real=builtins.__import__):\n"
        "    if name == 'pydantic': raise KeyboardInterrupt\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = stopped\n"
        "from supersam.cli import main\n"
        "main()"
    )
    words = [sys.executable, "-c", script, "config"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "stopped\n")


def test_a_command_that_is_interrupted_leaves_one_word_and_no_traceback():
    script = (
        "from supersam.cli import *; sys.excepthook = excuse_interrupt; raise KeyboardInterrupt"
    )
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "stopped\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_schema_of_a_command_is_json_that_knows_its_settings(capsys, name):
    assert ended("config", "--schema", name) == 0
    schema = json.loads(capsys.readouterr().out)
    fields = COMMANDS[name].run_type.model_fields
    assert set(schema["properties"]) == {field.alias or key for key, field in fields.items()}
    assert schema["additionalProperties"] is False


def test_a_shipped_configuration_is_printed(capsys):
    assert ended("config", "demo") == 0
    assert capsys.readouterr().out == DEMO.read_text()


@pytest.mark.parametrize("words", [["--schema", "trian"], ["vit_x"]])
def test_config_refuses_what_it_does_not_know(capsys, words):
    assert ended("config", *words) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_bash_completes_commands_and_their_flags(tmp_path):
    script = tmp_path / "supersam"
    words = [sys.executable, "-m", "supersam", "--tyro-write-completion", "bash", str(script)]
    subprocess.run(words, cwd=ROOT, check=True)
    ask = f"""
        source {script}; function=$(complete -p supersam | sed 's/.*-F //; s/ .*//')
        COMP_WORDS=(supersam status --wh); COMP_CWORD=2; $function; echo "${{COMPREPLY[@]}}"
        COMP_WORDS=(supersam tr); COMP_CWORD=1; $function; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["--why", "train"], done.stderr


def unread(*words: object) -> tuple[int, str]:
    """Exit code and stderr of `supersam WORDS` where nobody reads stdout."""
    with subprocess.Popen(
        [sys.executable, "-m", "supersam", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        errors = process.stderr.read()
    return process.returncode, errors


@pytest.mark.parametrize("name", COMMANDS)
def test_help_that_nobody_reads_on_ends_without_a_word(name):
    assert unread(name, "--help") == (-signal.SIGPIPE, "")


@pytest.mark.parametrize("words", [(), ("--version",), ("train", "--version"), ("config",)])
def test_a_word_that_nobody_reads_is_no_fault(words):
    code, errors = unread(*words)
    assert (code in (0, -signal.SIGPIPE), errors) == (True, "")


@pytest.mark.parametrize("redirection", ["| true", ">&-", ">&- 2>&-", "2>&1 | true"])
def test_work_goes_on_to_its_end_where_nobody_reads_what_it_prints(tmp_path, redirection):
    """A file that is opened later must not take the number of a closed stream."""
    out = tmp_path / "out"
    words = f"shard --source synthetic --synthetic.images 2 --out {out}"
    shell = f"set -o pipefail; {sys.executable} -m supersam {words} {redirection}"
    done = subprocess.run(
        ["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert ShardReader(out).num_images == 2
