"""Whether somebody edited the settings of a run, design or search by hand since its last start.

Imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supersam.config import read_yaml
from supersam.config.files import RUN_FILE, SEARCH_YAML, STARTED_FILE
from supersam.runtime.atomic import write_bytes


def write_settings(folder: Path, text: str, *, file: str = RUN_FILE) -> None:
    """Write the settings' file, and the copy that shows later edits of it."""
    for name in (file, STARTED_FILE):
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
    before, now = (flat(read_yaml(folder / name)) for name in (STARTED_FILE, RUN_FILE))
    _tell(folder / RUN_FILE, "counts from now on", differences(before, now))


def tell_edits_of_search(folder: Path, taken: Mapping[str, Any]) -> None:
    """Like `tell_edits` of `search.yaml`, which a command line of its own may overrule.

    taken: the settings that this start takes, as `search.yaml` would hold them.
    """
    if not (folder / SEARCH_YAML).is_file() or not (folder / STARTED_FILE).is_file():
        return
    before, now = (flat(read_yaml(folder / name)) for name in (STARTED_FILE, SEARCH_YAML))
    chosen = flat(taken)
    edited = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    taken_up = {name for name in edited if chosen.get(name) == now.get(name)}
    for verb, names in (
        ("counts from now on", taken_up),
        ("does not count, as the command says otherwise", edited - taken_up),
    ):
        some = ({name: each.get(name) for name in names} for each in (before, now))
        _tell(folder / SEARCH_YAML, verb, differences(*some))


def _tell(file: Path, verb: str, edited: Sequence[str]) -> None:
    if edited:
        print(
            f"note: {file} was edited since the last start, which {verb}: {'; '.join(edited)}",
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
