"""What a design has measured, on disk, keyed by content: a killed design goes on with it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from supersam.runtime.distributed import from_first


@dataclass(frozen=True)
class RemovalEffect:
    """The model without some layers, on the calibration set."""

    removed: tuple[int, ...]
    """Layers that are gone, ascending."""
    miou: float
    """Mean IoU of the single mask with its object, in mask-logit cells."""
    embedding_distance: float
    """Distance to the whole model's image embedding, as a share of its norm."""


class DamageCache:
    """Lines of JSON in one file, one a measurement; other contents' lines stay and are ignored."""

    def __init__(self, path: Path | None, content: str, *, is_first: bool = True) -> None:
        """content: digest of weights and calibration set. A collective of all ranks."""
        # Rank 0 alone reads and appends: over a network file system two ranks may see two files.
        self._path = path if is_first else None
        self._content = hashlib.sha256(content.encode()).hexdigest()[:32]
        self._known = from_first({} if self._path is None else self._read(self._path))

    def __len__(self) -> int:
        return len(self._known)

    def get(self, removed: tuple[int, ...]) -> RemovalEffect | None:
        """The measurement of a set of removed layers, where there is one."""
        return self._known.get(removed)

    def add(self, damage: RemovalEffect) -> None:
        """Keep a measurement; called with the same one on every rank."""
        self._known[damage.removed] = damage
        if self._path is None:
            return
        line = json.dumps({"content": self._content, **asdict(damage)}) + "\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
            line = "\n" + line  # a kill cut the line before this one short
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def _read(self, path: Path) -> dict[tuple[int, ...], RemovalEffect]:
        if not path.exists():
            return {}
        found = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            values = _parse(line)
            if values.pop("content", None) == self._content:
                damage = RemovalEffect(**{**values, "removed": tuple(values["removed"])})
                found[damage.removed] = damage
        return found


def _parse(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
