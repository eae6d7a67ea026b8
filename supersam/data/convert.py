"""Convert a source to a folder of shards: in parallel, resumable, always the same bytes."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from supersam.config import UserError
from supersam.config.data import SourceConfig
from supersam.data.manifest import (
    MANIFEST,
    PLAN,
    Counts,
    Manifest,
    ShardFolderError,
    ShardInfo,
    SkippedInput,
    pick,
    read_manifest,
    shard_file,
    sidecar,
    write_manifest,
)
from supersam.data.plan import OtherSourceError, claim_folder, inputs_sha256, make_plan
from supersam.data.shards import ShardWriter
from supersam.data.sources import BadInputError, Item, SourceError, list_items, read_samples
from supersam.data.sources.values import one_line
from supersam.runtime.atomic import file_sha256, stale_temporaries, write_json
from supersam.runtime.logging import shown
from supersam.runtime.process import begin_worker
from supersam.runtime.table import count

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 << 20
_POLL_S = 0.5
_SYSTEMS_WORDS = re.compile(r"error message = '([^']+)'")
"""In an error of h5py, which is long and may lack the number."""


class OutputError(UserError):
    """An output folder that cannot be written, or workers that could not finish."""


@dataclass(frozen=True)
class ConvertReport:
    """What a run of `convert` did, and what it left to do."""

    folder: Path
    manifest: Manifest | None
    """None while shards of other parts are missing."""
    written: int
    """Shards written by this run."""
    kept: int
    """Shards found whole and left as they are."""
    missing: tuple[str, ...]
    """Shards that other parts have yet to write."""
    seconds: float


@dataclass(frozen=True)
class _ShardWork:
    """The work on one shard; pickles."""

    path: Path
    index: int
    items: Sequence[Item]
    source: SourceConfig
    dataset_uuid: str
    is_set_finished: bool
    """Whether the folder has a manifest, so that somebody may already read it."""


@dataclass(frozen=True)
class _Result:
    """What came of one shard: the content of its sidecar."""

    shard: ShardInfo
    skipped: tuple[SkippedInput, ...]
    skipped_objects: tuple[SkippedInput, ...]
    counts: Counts
    inputs_sha256: str | None
    """Of the shard's inputs, names and sizes; None where an older version wrote the shard."""


_Note = Callable[[_ShardWork, _Result | None], None]


def convert(
    source: SourceConfig,
    out: Path,
    *,
    workers: int = 1,
    shard_bytes: int = SHARD_BYTES,
    part: int = 0,
    parts: int = 1,
) -> ConvertReport:
    """Convert `source` into the folder `out`; run it again to finish what was interrupted.

    Which input goes into which shard, and every byte of it, depends on the source and
    `shard_bytes` alone. Several jobs may share the work: each does every `parts`-th shard from
    `part`, and the one that finds all shards there writes the manifest. A worker needs about
    `shard_bytes` of memory.

    Raises SourceError, BadInputError (with `source.on_bad` "error"), OtherSourceError, OutputError.
    """
    if not 0 <= part < parts or workers < 1 or shard_bytes < 1:
        raise ValueError(
            f"part={part} of parts={parts}, workers={workers}, shard_bytes={shard_bytes}; parts "
            "count from 0, the others from 1"
        )
    began = time.monotonic()
    items = list_items(source)
    _refuse_known_faults(items, source)
    plan = make_plan(source, items, shard_bytes=shard_bytes)
    try:
        plan = claim_folder(out, plan)
        _remove(stale_temporaries(out))
    except OSError as error:
        raise _not_writable(out, error) from error
    is_finished = (out / MANIFEST).is_file()
    dataset_uuid = plan.dataset_uuid  # of the whole plan: made once, not for each shard
    works = [
        _ShardWork(out / shard_file(k), k, share, source, dataset_uuid, is_finished)
        for k, share in enumerate(plan.share(items))
    ]
    try:
        written = _run(works[part::parts], workers)
    except BaseException:  # Ctrl-C too; raised again below
        if parts == 1 and not any(sidecar(work.path).is_file() for work in works):
            _remove([out / PLAN])  # nothing is kept, so other settings may be tried
        raise
    kept = len(works[part::parts]) - written
    missing = tuple(work.path.name for work in works if not sidecar(work.path).is_file())
    manifest = None if missing else _finish(out, works, source, is_changed=written > 0)
    return ConvertReport(out, manifest, written, kept, missing, time.monotonic() - began)


def _refuse_known_faults(items: Sequence[Item], source: SourceConfig) -> None:
    faulty = [item for item in items if item.fault is not None]
    if faulty and source.on_bad == "error":
        listed = "; ".join(f"{item.name}: {item.fault}" for item in faulty[:8])
        raise BadInputError(
            f"{len(faulty)} of {len(items)} inputs cannot be used: {listed}"
            f"{'; ...' if len(faulty) > 8 else ''}; mend them or take --on-bad skip"
        )


def _not_writable(path: Path, error: OSError) -> OutputError:
    if error.errno in (None, errno.ENOENT) and not path.exists():
        return OutputError(
            f"--out {path} was deleted or moved during the conversion; bring it back, or give the "
            "same command again"
        )
    within = _SYSTEMS_WORDS.search(str(error))
    reason = within[1] if within else error if error.errno is None else os.strerror(error.errno)
    return OutputError(
        f"--out {path} cannot be written: {reason}; name another folder, or make room (finished "
        "shards are kept)"
    )


def _run(works: Sequence[_ShardWork], workers: int) -> int:
    """Do the work, showing progress by image; returns how many shards had to be written."""
    written = 0

    def note(work: _ShardWork, result: _Result | None) -> None:
        nonlocal written
        if result is None:
            return
        written += 1
        logger.info(
            "%s: %s, %s",
            work.path.name,
            count(result.shard.images, "image"),
            count(result.shard.masks, "mask"),
        )
        for skipped in (*result.skipped, *result.skipped_objects):
            logger.info("skipped %s: %s", skipped.name, skipped.reason)

    done = _run_here(works, note) if workers == 1 else _run_in_processes(works, workers, note)
    for _ in shown(done, sum(len(work.items) for work in works), what="converting", unit="image"):
        pass
    return written


def _run_here(works: Sequence[_ShardWork], note: _Note) -> Iterator[None]:
    """Convert in this process. Yields once per image."""
    for work in works:
        note(work, (yield from _convert_shard(work)))


_counter: Any = None  # of a worker process: images done by all workers together


def _begin_converter(counter: Any) -> None:
    global _counter
    _counter = counter
    begin_worker()


def _convert_in_worker(work: _ShardWork) -> _Result | None:
    images = _convert_shard(work)
    while True:
        try:
            next(images)
        except StopIteration as end:
            result: _Result | None = end.value
            return result
        with _counter.get_lock():
            _counter.value += 1


def _run_in_processes(works: Sequence[_ShardWork], workers: int, note: _Note) -> Iterator[None]:
    """Convert in worker processes. Yields once per image."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # fork is unsafe where threads run
    counter = context.Value("Q", 0)
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin_converter, initargs=(counter,)
    ) as pool:
        futures: dict[Future[_Result | None], _ShardWork] = {}
        try:
            for work in works:
                futures[pool.submit(_convert_in_worker, work)] = work
            waiting, seen = set(futures), 0
            while waiting:
                done, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    note(futures[future], future.result())
                now = counter.value
                yield from (None for _ in range(seen, now))
                seen = now
        except BaseException as error:  # Ctrl-C too; raised again below
            # No future is cancelled: the pool, broken now, would stumble over that.
            own = set(multiprocessing.active_children()) - others
            for process in own:
                process.terminate()
            for process in own:
                process.join()
            if works:
                _remove(stale_temporaries(works[0].path.parent))
            if isinstance(error, BrokenProcessPool):
                raise OutputError(
                    "a converting process was killed, most often for lack of memory; finished "
                    "shards are kept: run it again with fewer --workers or a smaller --shard-mib"
                ) from error
            raise


def _convert_shard(work: _ShardWork) -> Generator[None, None, _Result | None]:
    """Write a shard and its sidecar; None if both are there and whole. Yields once per image."""
    if _is_finished(work):
        yield from (None for _ in work.items)
        return None
    writer = ShardWriter(
        work.path,
        shard_index=work.index,
        attributes={
            "dataset_uuid": work.dataset_uuid,
            "source": work.source.kind,
            "split": work.source.split,
        },
    )
    skipped: list[SkippedInput] = []
    skipped_objects: list[SkippedInput] = []
    counts = Counts()
    for item in work.items:
        try:
            found = read_samples(work.source, item)
        except BadInputError as error:
            if work.source.on_bad == "error":
                raise BadInputError(f"{error}; mend it or take --on-bad skip") from error
            place = skipped_objects if item.is_annotation else skipped
            name = one_line(item.name)
            place.append(SkippedInput(name, str(error).removeprefix(f"{name}: ")))
        else:
            for sample in found.samples:
                writer.add(sample)
            counts += found.counts
            skipped_objects += [
                SkippedInput(one_line(f"{item.name}, {which}"), why) for which, why in found.bad
            ]
        yield
    try:
        result = _Result(
            writer.finish(),
            tuple(skipped),
            tuple(skipped_objects),
            counts,
            inputs_sha256(work.items),
        )
        write_json(sidecar(work.path), _to_record(result))
    except OSError as error:
        raise _not_writable(work.path.parent, error) from error
    return result


def _is_finished(work: _ShardWork) -> bool:
    path = work.path
    if not (path.is_file() and sidecar(path).is_file()):
        return False
    try:
        result = _read_sidecar(path)
    except (ValueError, KeyError, TypeError):
        return False
    if path.stat().st_size != result.shard.bytes or file_sha256(path) != result.shard.sha256:
        logger.warning("%s is damaged; making it anew", path)
        return False
    if result.inputs_sha256 in (None, inputs_sha256(work.items)):
        return True
    if work.is_set_finished and not (result.skipped or result.skipped_objects):
        raise OtherSourceError(
            f"{path.parent} is finished, and the inputs of {path.name} have changed since (their "
            "sizes differ); choose another output folder, or delete this one"
        )
    logger.warning("inputs of %s have changed; making it anew", path)
    return False


def _to_record(result: _Result) -> dict[str, Any]:
    record = asdict(result)
    return {**record, **record.pop("counts")}


def _read_sidecar(path: Path) -> _Result:
    record = json.loads(sidecar(path).read_bytes())
    skipped, objects = (
        tuple(pick(SkippedInput, each) for each in record.get(name, ()))
        for name in ("skipped", "skipped_objects")
    )
    return _Result(
        pick(ShardInfo, record["shard"]),
        skipped,
        objects,
        Counts.of_record(record),
        record.get("inputs_sha256"),
    )


def _finish(
    out: Path, works: Sequence[_ShardWork], source: SourceConfig, *, is_changed: bool
) -> Manifest:
    """The manifest: as it is where no shard has changed, so that a finished set is only read."""
    if not is_changed:
        try:
            return read_manifest(out)
        except ShardFolderError:
            pass  # absent or damaged: it is written anew
    results = [_read_sidecar(work.path) for work in works]
    skipped = [skipped for result in results for skipped in result.skipped]
    objects = [skipped for result in results for skipped in result.skipped_objects]
    counts = sum((result.counts for result in results), Counts())
    if sum(result.shard.images for result in results) == 0:
        inputs = sum(len(work.items) for work in works)
        _remove([out / PLAN, *(path for work in works for path in (work.path, sidecar(work.path)))])
        raise SourceError(counts.words_of_nothing(inputs, source, [*skipped, *objects]))
    try:
        return write_manifest(
            out,
            [result.shard for result in results],
            source=source.model_dump(mode="json"),
            skipped=skipped,
            skipped_objects=objects,
            counts=counts,
        )
    except OSError as error:
        raise _not_writable(out, error) from error


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
