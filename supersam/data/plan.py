"""Which input goes into which shard: decided before anything is read, whoever then does the work.

The plan lies in the output folder from the first second, so that a second run, on other nodes and
with other workers, finishes the same shards, or is refused because it would make others.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from supersam.config import SourceConfig, UserError
from supersam.data.manifest import MANIFEST, PLAN, pick, shard_file
from supersam.data.sources import Item
from supersam.runtime.atomic import write_json

# Tiles are PNG; measured on photographs and micrographs: 3.5 to 4 times the JPEG.
_TILED_JPEG_GROWTH = 4
_NOT_IN_THE_SHARDS = {"root", "on_bad"}  # the folder may be mounted elsewhere, an input mended


class OtherSourceError(UserError):
    """An output folder that holds the shards of another conversion."""


@dataclass(frozen=True)
class Plan:
    """A conversion, as far as it decides the shards."""

    settings: Mapping[str, Any]
    """The source's."""
    shard_bytes: int
    inputs: int
    inputs_sha256: str
    """Of the inputs' names and sizes, in order."""
    shards: int

    @property
    def dataset_uuid(self) -> str:
        """A name for the data set, the same wherever the plan is made."""
        return str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(asdict(self), sort_keys=True)))


def make_plan(
    source: SourceConfig, items: Sequence[Item], *, shard_bytes: int
) -> tuple[Plan, list[Sequence[Item]]]:
    """The plan, and the inputs of each shard: consecutive, about `shard_bytes` together."""
    growth = 1 if source.tile_px is None or source.kind == "tiff" else _TILED_JPEG_GROWTH
    parts: list[Sequence[Item]] = []
    start, filled = 0, 0
    for k, item in enumerate(items):
        if filled > 0 and filled + item.num_bytes * growth > shard_bytes:
            parts.append(items[start:k])
            start, filled = k, 0
        filled += item.num_bytes * growth
    parts.append(items[start:])
    listing = "\n".join(f"{item.num_bytes} {item.name}" for item in items)
    sha256 = hashlib.sha256(listing.encode()).hexdigest()
    plan = Plan(_settings(source), shard_bytes, len(items), sha256, len(parts))
    return plan, parts


def claim_folder(folder: Path, plan: Plan) -> None:
    """Write the plan into `folder`; OtherSourceError if it holds something else."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PLAN
    if path.is_file():
        try:
            there = pick(Plan, json.loads(path.read_bytes()))
        except (ValueError, KeyError) as error:
            raise OtherSourceError(
                f"{path} is of another version or damaged ({type(error).__name__}: {error}); "
                "choose another output folder, or delete this one"
            ) from error
        if there != plan:
            raise OtherSourceError(
                f"{folder} holds another conversion ({'; '.join(_differences(there, plan))}); "
                "choose another output folder, or delete this one"
            )
        return
    held = [name for name in (MANIFEST, shard_file(0)) if (folder / name).exists()]
    if held:
        raise OtherSourceError(
            f"{folder} holds {held[0]} but no {PLAN}, so nobody knows of what source; choose "
            "another output folder"
        )
    write_json(path, asdict(plan))


def _settings(source: SourceConfig) -> dict[str, Any]:
    """What decides the shards' content."""
    unused = set() if source.kind == "synthetic" else {"synthetic"}
    return source.model_dump(mode="json", exclude=_NOT_IN_THE_SHARDS | unused)


def _differences(there: Plan, here: Plan) -> list[str]:
    found = [
        f"source.{key}: {there.settings.get(key)!r} there, {here.settings.get(key)!r} here"
        for key in sorted({*there.settings, *here.settings})
        if there.settings.get(key) != here.settings.get(key)
    ]
    if there.shard_bytes != here.shard_bytes:
        found.append(f"shard_bytes: {there.shard_bytes} there, {here.shard_bytes} here")
    if there.inputs != here.inputs:
        found.append(f"inputs: {there.inputs} there, {here.inputs} here")
    elif there.inputs_sha256 != here.inputs_sha256:
        found.append("names or sizes of the inputs have changed")
    return found
