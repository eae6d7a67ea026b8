"""Which input goes into which shard: decided before anything is read, for all jobs alike.

The plan lies in the output folder from the first second, so that a second run, on other nodes and
with other workers, finishes the same shards, or is refused because it would make others.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from supersam.config import SourceConfig, UserError
from supersam.data.manifest import MANIFEST, PLAN, shard_file
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
    names_sha256: str | None = None
    """Of the inputs' names alone; None in plans of older versions."""
    starts: tuple[int, ...] | None = None
    """The first input of each shard: sizes decide it, and they change when an input is mended."""

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as it lies in the folder."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def dataset_uuid(self) -> str:
        """A name for the data set, the same wherever the plan is made."""
        return str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(self.to_dict(), sort_keys=True)))

    def share(self, items: Sequence[Item]) -> list[Sequence[Item]]:
        """Return the inputs of each shard."""
        assert self.starts is not None  # `claim_folder` completes older plans
        ends = (*self.starts[1:], len(items))
        return [items[start:end] for start, end in zip(self.starts, ends, strict=True)]


def make_plan(source: SourceConfig, items: Sequence[Item], *, shard_bytes: int) -> Plan:
    """Return the plan of a conversion: consecutive inputs, about `shard_bytes` in each shard."""
    growth = 1 if source.tile_px is None or source.kind == "tiff" else _TILED_JPEG_GROWTH
    starts, filled = [0], 0
    for k, item in enumerate(items):
        if filled > 0 and filled + item.num_bytes * growth > shard_bytes:
            starts.append(k)
            filled = 0
        filled += item.num_bytes * growth
    return Plan(
        _settings(source),
        shard_bytes,
        len(items),
        inputs_sha256(items),
        len(starts),
        _sha256(item.name for item in items),
        tuple(starts),
    )


def inputs_sha256(items: Sequence[Item]) -> str:
    """Return a hash of the names and sizes of inputs: it tells whether one has been changed."""
    return _sha256(f"{item.num_bytes} {item.name}" for item in items)


def claim_folder(folder: Path, plan: Plan) -> Plan:
    """Return the plan of `folder`: the one that is there, or else `plan`, which is written there.

    Raises OtherSourceError where the folder holds something else, OSError where it cannot be
    written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PLAN
    if path.is_file():
        there = _read_plan(path)
        if differences := _differences(there, plan):
            raise OtherSourceError(
                f"{folder} holds another conversion ({'; '.join(differences)}); choose another "
                "output folder, or delete this one"
            )
        return there if there.starts is not None else plan
    held = [name for name in (MANIFEST, shard_file(0)) if (folder / name).exists()]
    if held:
        raise OtherSourceError(
            f"{folder} holds {held[0]} but no {PLAN}, so its source is unknown; choose another "
            "output folder"
        )
    write_json(path, plan.to_dict())
    return plan


def _read_plan(path: Path) -> Plan:
    try:
        record = json.loads(path.read_bytes())
        known = {f.name: record[f.name] for f in fields(Plan) if f.name in record}
        starts = known.get("starts")
        known["starts"] = None if starts is None else tuple(starts)
        # Settings that its version did not know yet have their defaults.
        known["settings"] = _settings(SourceConfig(**known["settings"]))
        return Plan(**known)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise OtherSourceError(
            f"{path} is damaged or of a newer version ({type(error).__name__}); choose another "
            "output folder, or delete this one"
        ) from error


def _sha256(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()  # line by line: the names of 11 million inputs are a gigabyte
    for k, line in enumerate(lines):
        digest.update(f"\n{line}".encode() if k > 0 else line.encode())
    return digest.hexdigest()


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
    elif there.names_sha256 is not None and there.names_sha256 != here.names_sha256:
        found.append("names of the inputs have changed")
    elif there.names_sha256 is None and there.inputs_sha256 != here.inputs_sha256:
        found.append("names or sizes of the inputs have changed")
    return found
