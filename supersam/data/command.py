"""What launch/shard.py does: convert a source to shards, or check a finished folder."""

from __future__ import annotations

import sys

from supersam.config import ShardRun
from supersam.data.convert import convert
from supersam.data.verify import verify_shards

FAILURE = 1


def run_shard(run: ShardRun) -> int:
    """Convert or verify, and say in a few lines what came of it. Returns the exit code."""
    if run.verify is not None:
        return _verify(run)
    assert run.out is not None  # ShardRun asks for one of the two
    report = convert(run.source, run.out, workers=run.workers, shard_bytes=run.shard_mib << 20)
    manifest = report.manifest
    assert manifest is not None  # this run has no other parts
    print(
        f"{run.out}: {manifest.num_images} images, {manifest.num_masks} masks in "
        f"{len(manifest.shards)} shards ({report.kept} kept, {report.written} written, "
        f"{report.seconds:.1f} s)"
    )
    left_out = {
        "images or tiles without objects": manifest.empty_inputs,
        "small objects": manifest.small_objects,
        "unusable inputs": len(manifest.skipped),
    }
    print("left out: " + ", ".join(f"{count} {what}" for what, count in left_out.items()))
    for skipped in manifest.skipped:
        print(f"  {skipped.name}: {skipped.reason}", file=sys.stderr)
    return 0


def _verify(run: ShardRun) -> int:
    assert run.verify is not None  # the caller checked
    report = verify_shards(run.verify, full=run.full, workers=run.workers)
    for fault in report.faults:
        print(f"fault: {fault}", file=sys.stderr)
    state = "all as written" if report.ok else f"{len(report.faults)} faults"
    depth = "every byte read" if run.full else "sizes and tables read; --full reads every byte"
    print(f"{run.verify}: {report.shards} shards, {report.images} images: {state} ({depth})")
    return 0 if report.ok else FAILURE
