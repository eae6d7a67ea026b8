"""The door of every command: `supersam NAME`, `python -m supersam NAME`, `launch/NAME.py`.

Imports no torch; a command's own code is imported when its flags have been understood. What takes
time to import comes after `excuse_interrupt` is in force: Ctrl-C leaves one word at any moment.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from supersam import __version__

if TYPE_CHECKING:
    from supersam.config.commands import Command


def main(name: str | None = None) -> NoReturn:
    """Run the command `name` on the words of the command line, and exit with its code.

    Without `name`, the first word is the command.
    """
    sys.excepthook = excuse_interrupt
    from supersam.config.commands import COMMANDS, write_completion
    from supersam.config.errors import print_error
    from supersam.runtime.process import begin_in_utf8, outlive_readers

    begin_in_utf8()
    outlive_readers()
    words = sys.argv[1:]
    if name is not None:
        sys.exit(run_command(name, words, prog=f"launch/{name}.py"))
    if not words or words[0] in ("-h", "--help"):
        print(_overview(COMMANDS))
    elif words[0] == "--version":
        print(f"supersam {__version__}")
    elif words[0].startswith("--tyro-"):
        write_completion(words)
    elif words[0] not in COMMANDS:
        sys.exit(print_error(f"{words[0]!r} is not a command; {_known(words[0], [*COMMANDS])}"))
    else:
        sys.exit(run_command(words[0], words[1:], prog=f"supersam {words[0]}"))
    sys.exit(0)


def run_command(name: str, words: list[str], *, prog: str) -> int:
    """Run the command `name` with the flags `words`. Returns its exit code."""
    from supersam.config import exit_code, parse_cli
    from supersam.config.commands import COMMANDS
    from supersam.runtime.process import ends_with_reader

    command = COMMANDS[name]
    if words[:1] == ["--version"]:
        print(f"supersam {__version__}")
        return 0

    def act(words: list[str]) -> int:
        with ends_with_reader():  # --help
            run = parse_cli(
                command.run_type,
                words,
                default_config=command.default_config,
                recall=command.recall,
                prog=prog,
            )
        module, _, function = command.action_for(run).partition(":")
        code: int = getattr(importlib.import_module(module), function)(run)
        return code

    # an import may also meet a mistake: a torchvision of another torch
    return exit_code(act, words)


def excuse_interrupt(
    kind: type[BaseException], fault: BaseException, trace: TracebackType | None
) -> None:
    """Report a Ctrl-C that nothing else has taken in one word, without a traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, fault, trace)


def _overview(commands: Mapping[str, Command]) -> str:
    rows = "\n".join(f"  {name:10}{each.summary}" for name, each in commands.items())
    return (
        "usage: supersam COMMAND [--help] [--config FILE ...] [FLAGS]\n\n"
        "Segment Anything as a weight-sharing supernet.\n\n"
        f"{rows}\n\nsupersam COMMAND --help lists its flags; supersam --version prints the version."
    )


def _known(word: str, commands: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, commands, n=1)
    return f"did you mean {close[0]}?" if close else f"commands are {', '.join(commands)}"
