"""Whether somebody edited `run.yaml` by hand since the last start of a run or design. No torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supersam.config import read_yaml
from supersam.config.files import RUN_FILE, STARTED_FILE
from supersam.runtime.atomic import write_bytes


def write_settings(folder: Path, text: str) -> None:
    """Write `run.yaml`, and the copy that shows later edits of it."""
    for name in (RUN_FILE, STARTED_FILE):
        write_bytes(folder / name, text.encode())


def keep_settings(folder: Path) -> None:
    """Take `run.yaml` as it is for the settings of this start."""
    write_bytes(folder / STARTED_FILE, (folder / RUN_FILE).read_bytes())


def tell_edits(folder: Path) -> None:
    """Print on stderr what was edited by hand, from what to what; nothing where nothing was.

    Folders of earlier versions hold no copy to compare with.
    """
    if not (folder / RUN_FILE).is_file() or not (folder / STARTED_FILE).is_file():
        return
    before, now = (read_yaml(folder / name) for name in (STARTED_FILE, RUN_FILE))
    edited = differences(flat(before), flat(now))
    if edited:
        print(
            f"note: {folder / RUN_FILE} was edited since the last start, which counts from now "
            f"on: {'; '.join(edited)}",
            file=sys.stderr,
            flush=True,
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List `name: old -> new` of each setting that differs. before, now: as of `flat`."""
    return [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        found |= flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return found
