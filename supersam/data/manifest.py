"""The list of a folder's shards: counts, hashes and where they came from. No HDF5 here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from supersam.config import UserError
from supersam.config.data import SourceConfig
from supersam.runtime.atomic import write_json

T = TypeVar("T")

MANIFEST = "manifest.json"
PLAN = "plan.json"
FORMAT = "supersam-shards"
SCHEMA_MAJOR, SCHEMA_MINOR = 1, 1


class ShardFolderError(UserError):
    """A folder that is not a finished set of shards, or is one of another version."""


@dataclass(frozen=True)
class ShardInfo:
    """One finished shard."""

    file: str
    images: int
    masks: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SkippedInput:
    """An input image, or an annotation of one, that was left out of the shards, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Counts:
    """What a conversion left out or had to decide, in numbers."""

    empty_inputs: int = 0
    """Images or tiles without an object of sufficient size, left out."""
    small_objects: int = 0
    """Objects below the source's `min_area_px`, left out."""
    crowds: int = 0
    """COCO: regions with `iscrowd=1`, left out."""
    without_mask: int = 0
    """Annotations that are boxes or key points alone, left out."""
    background_maps: int = 0
    """Label maps with pixels of `background_id`, which are in no object."""
    unsure_turns: int = 0
    """Images with an EXIF orientation that the annotated size does not decide, taken as stored."""
    first_pictures: int = 0
    """Image files of several pages or frames, of which the first was taken."""
    first_picture_of: str = ""
    """One of them, and how many pictures it holds."""

    def __add__(self, other: Counts) -> Counts:
        example = self.first_picture_of or other.first_picture_of
        sums = {
            f.name: getattr(self, f.name) + getattr(other, f.name)
            for f in fields(Counts)
            if f.name != "first_picture_of"
        }
        return Counts(**sums, first_picture_of=example)

    def words_of_nothing(
        self, inputs: int, source: SourceConfig, skipped: Sequence[SkippedInput]
    ) -> str:
        """Say why a conversion of `inputs` images found no object at all, and what to check."""
        reasons = [
            f"{number} {what}"
            for number, what in (
                (self.crowds, "crowd regions were left out (--include-crowds keeps them)"),
                (self.without_mask, "annotations are boxes or key points without a mask"),
                (self.small_objects, "objects are smaller (--min-area-px)"),
                (len(skipped), "images or annotations were skipped"),
            )
            if number > 0
        ]
        if not reasons:
            return (
                f"none of {inputs} inputs has an object of any size; check that the annotations "
                "are those of these images, and the source's settings"
            )
        first = f"; the first skipped: {skipped[0].name}: {skipped[0].reason}" if skipped else ""
        return (
            f"none of {inputs} inputs has an object of {source.min_area_px} px or more: "
            f"{', '.join(reasons)}{first}; check the source and its settings"
        )

    @staticmethod
    def of_record(record: Mapping[str, Any]) -> Counts:
        """Return the counts in a JSON object; what its version did not count yet is 0."""
        return Counts(**{f.name: record.get(f.name, f.default) for f in fields(Counts)})


@dataclass(frozen=True)
class Manifest:
    """A finished folder of shards, in reading order."""

    shards: tuple[ShardInfo, ...]
    source: Mapping[str, Any] = field(default_factory=dict)
    """The settings the shards were converted with."""
    skipped: tuple[SkippedInput, ...] = ()
    """Images that could not be used."""
    skipped_objects: tuple[SkippedInput, ...] = ()
    """Annotations that could not be used; their images are there without them."""
    counts: Counts = field(default_factory=Counts)

    @property
    def num_images(self) -> int:
        """Images of all shards."""
        return sum(shard.images for shard in self.shards)

    @property
    def num_masks(self) -> int:
        """Masks of all shards."""
        return sum(shard.masks for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Names the content and its order: hash of the schema and the shards' hashes."""
        text = "\n".join([f"{FORMAT} {SCHEMA_MAJOR}", *(shard.sha256 for shard in self.shards)])
        return hashlib.sha256(text.encode()).hexdigest()


def shard_file(index: int) -> str:
    """Return the file name of shard `index`."""
    return f"shard-{index:06d}.h5"


def sidecar(shard: Path) -> Path:
    """Return the path of the JSON beside a finished shard; the manifest is made of these."""
    return shard.with_suffix(".json")


def write_manifest(
    folder: Path,
    shards: Sequence[ShardInfo],
    *,
    source: Mapping[str, Any] | None = None,
    skipped: Sequence[SkippedInput] = (),
    skipped_objects: Sequence[SkippedInput] = (),
    counts: Counts | None = None,
) -> Manifest:
    """Declare `folder` finished. The last step of a conversion: readers refuse it before."""
    manifest = Manifest(
        tuple(shards), source or {}, tuple(skipped), tuple(skipped_objects), counts or Counts()
    )
    content = asdict(manifest)
    record = {
        "format": FORMAT,
        "schema_major": SCHEMA_MAJOR,
        "schema_minor": SCHEMA_MINOR,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "fingerprint": manifest.fingerprint,
        "num_images": manifest.num_images,
        "num_masks": manifest.num_masks,
        **content.pop("counts"),
        **content,
    }
    write_json(folder / MANIFEST, record)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of `folder`.

    Raises ShardFolderError for an unfinished folder, another format, or a newer major version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ShardFolderError(_unfinished(folder))
    try:
        record = json.loads(path.read_bytes())
        check_schema(path, record["format"], record["schema_major"], FORMAT)
        manifest = Manifest(
            tuple(pick(ShardInfo, shard) for shard in record["shards"]),
            record["source"],
            tuple(pick(SkippedInput, skipped) for skipped in record["skipped"]),
            tuple(pick(SkippedInput, each) for each in record.get("skipped_objects", ())),
            Counts.of_record(record),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ShardFolderError(
            f"{path} is damaged ({type(error).__name__}: {error}); run the conversion again"
        ) from error
    if record["fingerprint"] != manifest.fingerprint:
        raise ShardFolderError(
            f"{path} was changed after it was written: its fingerprint does not match its list of "
            "shards; run the conversion again"
        )
    return manifest


def check_schema(path: Path, found: object, major: object, expected: str) -> None:
    """Refuse files of another format or of a major version this code cannot read."""
    if found != expected:
        raise ShardFolderError(f"{path} has format={found!r}, expected {expected!r}")
    if major != SCHEMA_MAJOR:
        raise ShardFolderError(
            f"{path} has schema_major={major}, this version of SuperSAM reads {SCHEMA_MAJOR}; "
            "update SuperSAM or convert the source again"
        )


def pick(kind: type[T], record: Mapping[str, Any]) -> T:
    """Return a dataclass made of a JSON object, without keys that a newer version added."""
    return kind(**{f.name: record[f.name] for f in fields(kind)})  # type: ignore[arg-type]  # any dataclass


def _unfinished(folder: Path) -> str:
    if not folder.is_dir():
        if not folder.is_absolute():
            return (
                f"no folder {folder} in {Path.cwd()}; run the command in the folder from which "
                "that path was given, give it again, or convert a source into it with "
                "launch/shard.py"
            )
        return f"no folder {folder}; convert a source into it with launch/shard.py"
    plan = folder / PLAN
    if not plan.is_file():
        return f"{folder} has no {MANIFEST}; convert a source into it with launch/shard.py"
    planned = [shard_file(i) for i in range(json.loads(plan.read_bytes())["shards"])]
    missing = [name for name in planned if not sidecar(folder / name).is_file()]
    listed = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
    lack = f"{len(missing)} of {len(planned)} shards are missing: {listed}" if missing else MANIFEST
    return (
        f"{folder} is unfinished ({lack}); run launch/shard.py again with the same source and "
        "output folder, finished shards are kept"
    )
