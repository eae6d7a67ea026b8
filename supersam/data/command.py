"""What launch/shard.py does: convert a source to shards, or check a finished folder."""

from __future__ import annotations

import sys

from supersam.config import ShardRun
from supersam.data.convert import ConvertReport, convert
from supersam.data.manifest import Manifest
from supersam.data.verify import verify_shards
from supersam.runtime.logging import setup_logging

FAILURE = 1


def run_shard(run: ShardRun) -> int:
    """Convert or verify, and say in a few lines what came of it. Returns the exit code."""
    setup_logging()
    if run.verify is not None:
        return _verify(run)
    assert run.out is not None  # ShardRun asks for one of the two
    part, parts = run.share
    report = convert(
        run.source,
        run.out,
        workers=run.workers,
        shard_bytes=run.shard_mib << 20,
        part=part,
        parts=parts,
    )
    if report.manifest is None:
        print(
            f"{run.out}: part {run.part} is done ({_shards(report)}); {len(report.missing)} shards "
            "of other parts are missing"
        )
        return 0
    _print_manifest(report, report.manifest)
    return 0


def _print_manifest(report: ConvertReport, manifest: Manifest) -> None:
    print(
        f"{report.folder}: {manifest.num_images} images, {manifest.num_masks} masks in "
        f"{len(manifest.shards)} shards ({_shards(report)})"
    )
    counts = manifest.counts
    left_out = {
        "images or tiles without objects": counts.empty_inputs,
        "small objects": counts.small_objects,
        "unusable images": len(manifest.skipped),
        "unusable annotations": len(manifest.skipped_objects),
        "crowd regions (--include-crowds keeps them)": counts.crowds,
        "annotations without a mask": counts.without_mask,
    }
    always = 3
    listed = [
        f"{count} {what}"
        for k, (what, count) in enumerate(left_out.items())
        if k < always or count > 0
    ]
    print("left out: " + ", ".join(listed))
    if report.kept > 0:  # those of the shards written now are in the log already
        for skipped in (*manifest.skipped, *manifest.skipped_objects):
            print(f"  skipped {skipped.name}: {skipped.reason}", file=sys.stderr)
    _print_decisions(manifest)


def _print_decisions(manifest: Manifest) -> None:
    """What was decided for the user, and the flag that decides otherwise."""
    counts = manifest.counts
    if counts.background_maps > 0:
        print(
            f"note: id {manifest.source.get('background_id')} was taken as background in "
            f"{counts.background_maps} label maps; --background-id null makes it a class"
        )
    if counts.unsure_turns > 0:
        print(
            f"note: {counts.unsure_turns} images have an EXIF orientation that their size does not "
            "decide, and were taken as stored; if the masks were drawn on the upright picture, "
            "convert with --exif upright"
        )


def _shards(report: ConvertReport) -> str:
    return f"{report.kept} kept, {report.written} written, {report.seconds:.1f} s"


def _verify(run: ShardRun) -> int:
    assert run.verify is not None  # the caller checked
    report = verify_shards(run.verify, full=run.full, workers=run.workers)
    for fault in report.faults:
        print(f"fault: {fault}", file=sys.stderr)
    state = "all as written" if report.ok else f"{len(report.faults)} faults"
    depth = "every byte read" if run.full else "sizes and tables read; --full reads every byte"
    print(f"{run.verify}: {report.shards} shards, {report.images} images: {state} ({depth})")
    return 0 if report.ok else FAILURE
