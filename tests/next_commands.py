"""The command that a command names as the next one: found in what was printed, and parsed."""

import shlex

from pydantic import BaseModel

from supersam.config import parse_cli
from supersam.config.commands import COMMANDS


def read_next(printed: str) -> tuple[str, BaseModel]:
    """The name of the command in the last line, and its configuration; SystemExit if invalid."""
    line = printed.splitlines()[-1]
    assert line.startswith("next: "), line
    words = shlex.split(line.removeprefix("next: "), comments=True)
    door = next(end for end, word in enumerate(words) if word in COMMANDS or "launch/" in word)
    name = words[door].rpartition("/")[2].removesuffix(".py")
    command = COMMANDS[name]
    return name, parse_cli(command.run_type, words[door + 1 :])
