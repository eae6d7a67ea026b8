"""The target's images in three parts: trained on, selected on, and reported on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

SELECT = 40
"""Training images that are kept aside for the search."""


def split_nuclei(source: Path, out: Path, *, select: int = SELECT) -> None:
    """Link the images of `source` (SA-1B layout, `train` and `val`) into parts below `out`.

    `select` images of its training part, by the hash of their names, become `select`; its
    validation part becomes `test`, of which nothing is known before the end.
    """
    if not (source / "train").is_dir():
        raise SystemExit(f"error: {source} has no folder train; give --data the real images")
    train = sorted((source / "train").glob("*.jpg"), key=lambda path: _digest(path.name))
    parts = {
        "select": train[:select],
        "train": train[select:],
        "test": sorted((source / "val").glob("*.jpg")),
    }
    for part, images in parts.items():
        (out / part).mkdir(parents=True, exist_ok=True)
        for image in images:
            for file in (image, image.with_suffix(".json")):
                _link(file, out / part / file.name)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _link(file: Path, place: Path) -> None:
    if not place.is_symlink():
        os.symlink(file.resolve(), place)
