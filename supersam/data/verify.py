"""Check whether a folder of shards is whole. Names every fault; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from supersam.data.hdf5 import DamagedShardError
from supersam.data.manifest import MANIFEST, PLAN, ShardFolderError, ShardInfo, read_manifest
from supersam.data.shard_file import OpenShard
from supersam.runtime.atomic import file_sha256, temporaries


@dataclass(frozen=True)
class Fault:
    """Something wrong with a file, or with one record of it."""

    file: str
    reason: str
    index: int | None = None
    """The record's place in its shard; None for the whole file."""
    name: str | None = None
    """The record's image."""

    def __str__(self) -> str:
        record = "" if self.index is None else f" record {self.index} (image {self.name})"
        return f"{self.file}{record}: {self.reason}"


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify_shards`."""

    folder: Path
    shards: int
    images: int
    masks: int
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return len(self.faults) == 0


def verify_shards(folder: Path, *, full: bool, workers: int = 1) -> VerifyReport:
    """Compare `folder` with its manifest: sizes and indices, and with `full` every byte.

    `workers` threads read different shards. Faults come in the order of the shards. Raises
    ShardFolderError where there is nothing of a set to check: the folder's name is wrong.
    """
    _require_a_set(folder)
    try:
        manifest = read_manifest(folder)
    except ShardFolderError as error:
        return VerifyReport(folder, 0, 0, 0, (Fault(MANIFEST, str(error)),))
    with ThreadPoolExecutor(workers) as pool:
        checks = pool.map(lambda shard: list(_check(folder, shard, full)), manifest.shards)
        faults = [fault for found in checks for fault in found]
    faults += _check_surplus(folder, {shard.file for shard in manifest.shards})
    return VerifyReport(
        folder, len(manifest.shards), manifest.num_images, manifest.num_masks, tuple(faults)
    )


def _require_a_set(folder: Path) -> None:
    if not folder.is_dir():
        raise ShardFolderError(f"no folder {folder}; name one that launch/shard.py has written")
    if not any((folder / name).is_file() for name in (MANIFEST, PLAN)) and not _shards(folder):
        raise ShardFolderError(
            f"{folder} holds no shards and no {MANIFEST}; name a folder that launch/shard.py has "
            "written"
        )


def _check(folder: Path, info: ShardInfo, full: bool) -> Iterator[Fault]:
    path = folder / info.file
    if not path.is_file():
        yield Fault(info.file, "missing")
        return
    size = path.stat().st_size
    if size != info.bytes:
        yield Fault(info.file, f"has {size} bytes, {info.bytes} in the manifest")
    try:
        shard = OpenShard(path)
    except (DamagedShardError, ShardFolderError) as error:
        yield Fault(info.file, str(error))
        return
    if not full:
        return
    bad = shard.bad_records()
    yield from (Fault(info.file, error.reason, error.index, error.name) for error in bad)
    if size == info.bytes and len(bad) == 0 and file_sha256(path) != info.sha256:
        yield Fault(info.file, "differs from the manifest outside its records (SHA-256)")


def _check_surplus(folder: Path, known: set[str]) -> Iterator[Fault]:
    for path in _shards(folder):
        if path.name not in known:
            yield Fault(path.name, "is not in the manifest")
    for path in temporaries(folder):
        yield Fault(path.name, "unfinished, of a running or killed writer; delete it if killed")


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.h5"))
