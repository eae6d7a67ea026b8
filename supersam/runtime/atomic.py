"""Files that appear whole or not at all, and the hashes that tell whether they still are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

_HASH_PIECE_BYTES = 1 << 20


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; it becomes `path` when the block succeeds.

    Safe against crashes and power loss: the file is on disk before it gets its name. A failed
    block leaves nothing; a killed process leaves a temporary (see `stale_temporaries`). Without
    `durable` it does not wait for the disk: for files that are soon written again.
    """
    temporary = path.with_name(f".{path.name}.tmp.{socket.gethostname()}.{os.getpid()}")
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; it becomes `path` when the block succeeds.

    `path` must be absent or an empty folder. A failed block leaves nothing; a killed process leaves
    its temporary folder, which the next one to make `path` on that host removes.
    """
    temporary = path.with_name(f".{path.name}.tmp.{socket.gethostname()}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had this number
    for left in stale_temporaries(path.parent):
        if left.name.startswith(f".{path.name}.tmp."):
            shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync(temporary)
        os.rename(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write `data` to `path`, replacing what was there in one step."""
    with atomic_file(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Write `value` as JSON, keys in the given order, replacing what was there in one step."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n", durable=durable)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASH_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def temporaries(folder: Path) -> list[Path]:
    """Unfinished files in `folder`, of running and of killed writers, sorted."""
    return sorted(folder.glob(".*.tmp.*.*"))


def stale_temporaries(folder: Path) -> list[Path]:
    """Unfinished files in `folder` whose writer, a process of this host, is gone.

    Files of other hosts are left out: whether their writers live cannot be known from here.
    """
    return [path for path in temporaries(folder) if _writer_is_gone(path)]


def _writer_is_gone(temporary: Path) -> bool:
    writer = temporary.name.split(".tmp.")[-1]
    host, _, pid = writer.rpartition(".")  # a host name may hold dots
    if host != socket.gethostname() or not pid.isdigit():
        return False
    return not psutil.pid_exists(int(pid))


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
