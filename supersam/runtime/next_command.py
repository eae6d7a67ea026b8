"""The last line of a command: the command that a user would type next. Imports no torch."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def command(name: str, *words: object) -> str:
    """Return a command line of SuperSAM that can be typed as it stands.

    It goes through the door that this process came through: `supersam NAME`, `python -m supersam
    NAME` or `python launch/NAME.py`.
    """
    return " ".join([_door(Path(sys.argv[0]), name), *(shlex.quote(str(word)) for word in words)])


def next_line(name: str, *words: object, why: str = "") -> str:
    """Return the line `next: COMMAND`, and after it what that command is for."""
    line = f"next: {command(name, *words)}"
    return f"{line}    # {why}" if why else line


def _door(script: Path, name: str) -> str:
    if script.name == "__main__.py" and script.parent.name == "supersam":
        return f"python -m supersam {name}"
    if script.suffix == ".py" and script.parent.name == "launch":
        return f"python {shlex.quote(str(script.with_name(f'{name}.py')))}"
    return f"supersam {name}"


def export_folder(run: Path, subnet: str = "") -> Path:
    """Return a folder for the export of a run's subnet; it is free where this is its first one.

    subnet: as `--subnet` names it.
    """
    ending = subnet.rpartition("#")[2] if "#" in subnet else Path(subnet).stem
    return Path("exports") / "-".join(part for part in (run.name, ending) if part)
