"""What README and docs tell people to type is read as the command line reads it."""

import re
import shlex
from pathlib import Path

import pytest

from supersam.config import parse_cli
from supersam.config.commands import COMMANDS
from tests.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "supersam").rglob("*.py"))
PLACEHOLDERS = {"SEARCH", "DIR", "PATH"}
MADE_BY_USERS = {"mysite.yaml", "designs/nuclei/space-design/train.yaml"}


def commands() -> list[tuple[str, str]]:
    """Page and line of every command of this project in a shell block."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.partition("  #")[0].strip()
                if re.match(r"(supersam|python launch/\w+\.py)( |$)", line) and ">" not in line:
                    found.append((str(page.relative_to(ROOT)), line))
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_of_the_docs_is_read_without_a_fault(page, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    if words[0] == "python":
        name, flags = Path(words[1]).stem, words[2:]
    else:
        name, flags = words[1], words[2:]
    assert name in COMMANDS, page
    if PLACEHOLDERS.intersection(flags) or "..." in flags:
        pytest.skip("a form, not a command")
    for file in MADE_BY_USERS.intersection(flags):
        place = flags.index(file)
        del flags[place - 1 : place + 1]
    parse_cli(COMMANDS[name].run_type, flags, default_config=COMMANDS[name].default_config)


def test_the_docs_hold_commands():
    assert len(commands()) > 40


def headings() -> list[str]:
    """The messages that the page of troubleshooting explains."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^### `([^`]+)`", text, re.MULTILINE)


@pytest.mark.parametrize("message", headings())
def test_a_message_that_is_explained_is_one_that_this_software_prints(message):
    assert message in SOURCE


def test_every_setting_has_a_line_in_the_reference():
    hooks = pytest.importorskip("docs.hooks", reason="mkdocs is not installed")
    page = hooks.settings_page()
    for name, command in COMMANDS.items():
        assert f"## {name}\n" in page
        assert command.summary in page
    assert "| `optim.lr` | `0.0001` | Peak learning rate" in page
