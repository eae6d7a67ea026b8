"""A source to a folder of shards: in parallel, resumable, the same bytes whoever does the work."""

from __future__ import annotations

import json
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from supersam.config.data import SourceConfig
from supersam.data.manifest import (
    Manifest,
    ShardInfo,
    SkippedInput,
    pick,
    shard_file,
    sidecar,
    write_manifest,
)
from supersam.data.plan import claim_folder, make_plan
from supersam.data.shards import ShardWriter
from supersam.data.sources import BadInputError, Item, SourceError, list_items, read_samples
from supersam.runtime.atomic import file_sha256, stale_temporaries, write_json
from supersam.runtime.process import begin_worker

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 << 20


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
class _Job:
    """The work on one shard; pickles."""

    path: Path
    index: int
    items: Sequence[Item]
    source: SourceConfig
    dataset_uuid: str


@dataclass(frozen=True)
class _Result:
    """What came of one shard: the content of its sidecar."""

    shard: ShardInfo
    skipped: tuple[SkippedInput, ...]
    empty_inputs: int
    small_objects: int


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

    Raises SourceError, BadInputError (with `source.on_bad` "error"), OtherSourceError.
    """
    if not 0 <= part < parts or workers < 1 or shard_bytes < 1:
        raise ValueError(
            f"part={part} of parts={parts}, workers={workers}, shard_bytes={shard_bytes}; parts "
            "count from 0, the others from 1"
        )
    began = time.monotonic()
    items = list_items(source)
    _refuse_known_faults(items, source)
    plan, shares = make_plan(source, items, shard_bytes=shard_bytes)
    claim_folder(out, plan)
    _remove(stale_temporaries(out))
    paths = [out / shard_file(k) for k in range(plan.shards)]
    jobs = [_Job(paths[k], k, shares[k], source, plan.dataset_uuid) for k in range(plan.shards)]
    written = _run(jobs[part::parts], workers)
    kept = len(jobs[part::parts]) - written
    missing = tuple(path.name for path in paths if not sidecar(path).is_file())
    manifest = None if missing else _finish(out, paths, source, plan.inputs)
    return ConvertReport(out, manifest, written, kept, missing, time.monotonic() - began)


def _refuse_known_faults(items: Sequence[Item], source: SourceConfig) -> None:
    faulty = [item for item in items if item.fault is not None]
    if faulty and source.on_bad == "error":
        listed = "; ".join(f"{item.name}: {item.fault}" for item in faulty[:8])
        raise BadInputError(
            f"{len(faulty)} of {len(items)} inputs cannot be used: {listed}"
            f"{'; ...' if len(faulty) > 8 else ''}; mend them or take --on-bad skip"
        )


def _run(jobs: Sequence[_Job], workers: int) -> int:
    """Do the jobs; returns how many shards had to be written."""
    written = 0
    total = sum(len(job.items) for job in jobs)
    with tqdm(total=total, unit="img", desc="converting", disable=None) as progress:

        def note(job: _Job, result: _Result | None) -> None:
            nonlocal written
            progress.update(len(job.items))
            if result is None:
                return
            written += 1
            logger.info(
                "%s: %d images, %d masks", job.path.name, result.shard.images, result.shard.masks
            )
            for skipped in result.skipped:
                logger.warning("skipped %s: %s", skipped.name, skipped.reason)

        if workers == 1:
            for job in jobs:
                note(job, _convert_shard(job))
        else:
            _run_in_processes(jobs, workers, note)
    return written


def _run_in_processes(
    jobs: Sequence[_Job], workers: int, note: Callable[[_Job, _Result | None], None]
) -> None:
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # fork is unsafe where threads run
    with ProcessPoolExecutor(workers, mp_context=context, initializer=begin_worker) as pool:
        futures: dict[Future[_Result | None], _Job] = {}
        try:
            for job in jobs:
                futures[pool.submit(_convert_shard, job)] = job
            for future in as_completed(futures):
                note(futures[future], future.result())
        except BaseException as error:
            for future in futures:
                future.cancel()
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
                process.join()
            if jobs:
                _remove(stale_temporaries(jobs[0].path.parent))
            if isinstance(error, BrokenProcessPool):
                raise RuntimeError(
                    "a converter process was killed, perhaps for memory; finished shards are kept, "
                    "run again with fewer workers or a smaller shard_bytes"
                ) from error
            raise


def _convert_shard(job: _Job) -> _Result | None:
    """Write a shard and its sidecar; None if both are there and whole."""
    if _is_finished(job.path):
        return None
    writer = ShardWriter(
        job.path,
        shard_index=job.index,
        attributes={
            "dataset_uuid": job.dataset_uuid,
            "source": job.source.kind,
            "split": job.source.split,
        },
    )
    skipped: list[SkippedInput] = []
    empty_inputs, small_objects = 0, 0
    for item in job.items:
        try:
            found = read_samples(job.source, item)
        except BadInputError as error:
            if job.source.on_bad == "error":
                raise BadInputError(f"{error}; mend it or take --on-bad skip") from error
            skipped.append(SkippedInput(item.name, str(error).removeprefix(f"{item.name}: ")))
            continue
        for sample in found.samples:
            writer.add(sample)
        empty_inputs += found.empty
        small_objects += found.small_objects
    result = _Result(writer.finish(), tuple(skipped), empty_inputs, small_objects)
    write_json(sidecar(job.path), asdict(result))
    return result


def _is_finished(path: Path) -> bool:
    if not (path.is_file() and sidecar(path).is_file()):
        return False
    try:
        shard = _read_sidecar(path).shard
    except (ValueError, KeyError, TypeError):
        return False
    if path.stat().st_size == shard.bytes and file_sha256(path) == shard.sha256:
        return True
    logger.warning("%s is damaged; making it anew", path)
    return False


def _read_sidecar(path: Path) -> _Result:
    record = json.loads(sidecar(path).read_bytes())
    return _Result(
        pick(ShardInfo, record["shard"]),
        tuple(pick(SkippedInput, skipped) for skipped in record["skipped"]),
        record["empty_inputs"],
        record["small_objects"],
    )


def _finish(out: Path, paths: Sequence[Path], source: SourceConfig, inputs: int) -> Manifest:
    results = [_read_sidecar(path) for path in paths]
    skipped = [skipped for result in results for skipped in result.skipped]
    if sum(result.shard.images for result in results) == 0:
        first = f"; the first: {skipped[0].name}: {skipped[0].reason}" if skipped else ""
        raise SourceError(
            f"none of {inputs} inputs has an object of {source.min_area_px} px or more, "
            f"{len(skipped)} were skipped{first}; check the source, then delete {out}"
        )
    return write_manifest(
        out,
        [result.shard for result in results],
        source=source.model_dump(mode="json"),
        skipped=skipped,
        empty_inputs=sum(result.empty_inputs for result in results),
        small_objects=sum(result.small_objects for result in results),
    )


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
