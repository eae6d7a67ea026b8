"""Which layout a folder has, told from the names of its files alone.

A wrong `--source` is then answered with the right one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from supersam.config.data import SourceConfig
from supersam.data.sources.annotated import IMAGE_SUFFIXES
from supersam.data.sources.coco import coco_splits
from supersam.data.sources.labelmap import labelmap_splits
from supersam.data.sources.tiff import tiff_splits

_MOST_FOLDERS = 50
_MOST_FILES = 1000
"""Of one folder: a data set shows its layout in its first files."""


class Layout(NamedTuple):
    """A layout that a folder has."""

    root: Path
    kind: str
    """As `--source` names it."""
    splits: Sequence[str]
    """As `--split` names them; at least one."""


def suggest_layout(config: SourceConfig) -> str:
    """Say which layout `config.root`, or a folder in it, has instead of `config.kind`.

    Returns a clause that begins with "; ", with the flags to take; empty where none is recognised.
    """
    root = config.root
    if root is None or not root.is_dir():
        return ""
    here = _layouts(root)
    if any(layout.kind == config.kind for layout in here):
        return ""  # the kind is right, and the split is what is wrong
    found = here or [layout for folder in _folders(root) for layout in _layouts(folder)]
    found.sort(key=lambda layout: layout.kind != config.kind)
    return "".join(f"; {_advice(layout, config)}" for layout in found[:2])


def _advice(layout: Layout, config: SourceConfig) -> str:
    flags = f"--source {layout.kind}"
    if layout.root != config.root:
        flags = f"--root {layout.root} {flags}"
    if config.split not in layout.splits:
        close = difflib.get_close_matches(config.split, layout.splits, n=1, cutoff=0.0)
        flags += f" --split {close[0]}"
    others = ", ".join(layout.splits[:6]) + (", ..." if len(layout.splits) > 6 else "")
    return f"{layout.root} looks like {layout.kind} (splits: {others}): take {flags}"


def _layouts(root: Path) -> list[Layout]:
    splits = {
        "coco": coco_splits(root),
        "labelmap": labelmap_splits(root, paired=True),
        "tiff": tiff_splits(root),
        "sa1b": _sa1b_splits(root),
    }
    return [Layout(root, kind, sorted(names)) for kind, names in splits.items() if names]


def _sa1b_splits(root: Path) -> list[str]:
    """Return the folders in which an image lies beside a JSON file of its name."""
    places = [(folder.name, folder) for folder in _folders(root)] + [(".", root)]
    return [name for name, folder in places if _has_pairs(folder)]


def _has_pairs(folder: Path) -> bool:
    kinds: dict[str, set[bool]] = {}
    for name in _file_names(folder):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in (*IMAGE_SUFFIXES, ".json"):
            kinds.setdefault(stem, set()).add(suffix.lower() == ".json")
    return any(len(both) == 2 for both in kinds.values())


def _file_names(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry, _ in zip(entries, range(_MOST_FILES)):  # noqa: B905 - the shorter one ends
                yield entry.name
    except OSError:  # a folder that others may not read is not recognised
        return


def _folders(root: Path) -> list[Path]:
    names = sorted(name for name in _file_names(root) if not name.startswith("."))
    return [root / name for name in names if (root / name).is_dir()][:_MOST_FOLDERS]
