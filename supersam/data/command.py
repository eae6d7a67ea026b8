"""What launch/shard.py does: convert a source to shards, or check a finished folder."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from supersam.config import ShardRun
from supersam.data.convert import ConvertReport, convert
from supersam.data.manifest import MANIFEST, Manifest
from supersam.data.verify import verify_shards
from supersam.runtime.logging import setup_logging
from supersam.runtime.next_command import next_line
from supersam.runtime.table import count, duration

FAILURE = 1
_HELD_OUT = re.compile(r"val|test|dev|eval|held", re.IGNORECASE)
"""What splits are called that are not trained on."""


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
        missing = count(len(report.missing), "shard")
        print(
            f"{run.out}: part {run.part} is done ({_shards(report)}); {missing} of other parts to "
            "come, and the last part to end finishes the set"
        )
        return 0
    _print_manifest(report, report.manifest)
    print(_next_line(run.out, is_held_out=_HELD_OUT.search(run.source.split) is not None))
    return 0


def _next_line(out: Path, *, is_held_out: bool) -> str:
    """Return the training on these shards, with the other half of the data if it lies beside."""
    beside = (each for each in sorted(out.parent.glob("*")) if _is_other(each, is_held_out))
    other = next(beside, Path("DIR"))
    train, val = (other, out) if is_held_out else (out, other)
    return next_line("train", "--config", "vit_s", "--data.train", train, "--data.val", val)


def _is_other(folder: Path, is_held_out: bool) -> bool:
    """Whether shards for training lie in `folder`, or held-out ones where those were made now."""
    is_found_held_out = _HELD_OUT.search(folder.name) is not None
    return (folder / MANIFEST).is_file() and is_found_held_out != is_held_out


def _print_manifest(report: ConvertReport, manifest: Manifest) -> None:
    print(
        f"{report.folder}: {count(manifest.num_images, 'image')}, "
        f"{count(manifest.num_masks, 'mask')} in {count(len(manifest.shards), 'shard')} "
        f"({_shards(report)})"
    )
    counts = manifest.counts
    left_out = (
        (counts.empty_inputs, "image or tile without objects", "images or tiles without objects"),
        (counts.small_objects, "object of fewer pixels than --min-area-px",
         "objects of fewer pixels than --min-area-px"),
        (len(manifest.skipped), "unusable image", None),
        (len(manifest.skipped_objects), "unusable annotation", None),
        (counts.crowds, "crowd region (--include-crowds keeps it)",
         "crowd regions (--include-crowds keeps them)"),
        (counts.without_mask, "annotation without a mask", "annotations without a mask"),
    )  # fmt: skip
    listed = [count(*words) for words in left_out if words[0] > 0]
    print("left out: " + (", ".join(listed) or "nothing"))
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
            f"{count(counts.background_maps, 'label map')}; --background-id null makes it a class"
        )
    if counts.unsure_turns > 0:
        print(
            f"note: of {count(counts.unsure_turns, 'image')} the size does not decide the EXIF "
            "orientation, and they were taken as stored; if the masks were drawn on the upright "
            "picture, convert with --exif upright"
        )
    if counts.first_pictures > 0:
        print(
            f"note: {count(counts.first_pictures, 'image file holds', 'image files hold')} several "
            f"pages or frames, such as {counts.first_picture_of}; the first was taken of each, and "
            "the masks are taken to be of it: save others as images of their own"
        )


def _shards(report: ConvertReport) -> str:
    return f"{report.kept} kept, {report.written} written, {duration(report.seconds)}"


def _verify(run: ShardRun) -> int:
    assert run.verify is not None  # the caller checked
    report = verify_shards(run.verify, full=run.full, workers=run.workers)
    for fault in report.faults:
        print(f"fault: {fault}", file=sys.stderr)
    state = "all as written" if report.ok else count(len(report.faults), "fault")
    depth = "every byte read" if run.full else "sizes and tables read; --full reads every byte"
    shards, images = count(report.shards, "shard"), count(report.images, "image")
    print(f"{run.verify}: {shards}, {images}: {state} ({depth})")
    if not report.ok:
        print("next: give the conversion's command again; it makes damaged shards anew")
    return 0 if report.ok else FAILURE
