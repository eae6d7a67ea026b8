"""Samples per second of shards against the same data as loose JPEG and JSON files.

python -m benchmarks.loader [--data SHARDS] [--batches 12] [--repeats 5] [--quick] [--gate]

Without --data, synthetic shards are made first. The loose files have SA-1B's layout: an image, and
a JSON with all its masks as compressed run lengths. What follows the reading, decoding, cropping,
prompts, is the same code for both. Sides run in turn, warm (files in the page cache) and cold (put
out of it before every round), with one and with two worker processes; the clock starts at the first
batch. Then the bytes and calls that reading one sample takes, from /proc/self/io, and processor
time by its parts: `index` reads the record's tables, its bytes and their checksums; `image` decodes
the picture, `masks` the run lengths of 8 objects; `rest` is resizing, cutting and drawing prompts.
With --gate, exits with 1 where shards are slower than loose files in any of the four, or index
takes above 5 % of image + masks of images of 1024 px or more.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.in_turn import compare, print_ratios, print_record
from supersam.config import DataConfig, SourceConfig, SyntheticConfig
from supersam.data.convert import convert
from supersam.data.dataset import ShardDataset
from supersam.data.hdf5 import MASK_META
from supersam.data.images import decode_rgb
from supersam.data.loader import build_loader
from supersam.data.partition import SampleOrder
from supersam.data.rle import decode_runs
from supersam.data.shard_file import ImageRecord
from supersam.data.shards import ShardReader
from supersam.runtime.distributed import World

BATCH = 4
OBJECTS = 8
INDEX_LIMIT = 0.05


class LooseReader:
    """What a ShardReader offers, of a folder in SA-1B's layout."""

    def __init__(self, folder):
        self.images = sorted(path for path in folder.iterdir() if path.suffix != ".json")
        self.num_images = len(self.images)
        self.last = None

    def read_image(self, index):
        path = self.images[index]
        record = json.loads(path.with_suffix(".json").read_bytes())
        annotations = record["annotations"]
        self.last = [annotation["segmentation"]["counts"].encode() for annotation in annotations]
        rows = [
            (
                annotation["area"],
                annotation["bbox"],
                annotation["point_coords"][0],
                0,
                annotation["predicted_iou"],
                annotation["stability_score"],
            )
            for annotation in annotations
        ]
        return ImageRecord(
            record["image"]["image_id"],
            path.name,
            path.read_bytes(),
            "png" if path.suffix == ".png" else "jpeg",
            record["image"]["height"],
            record["image"]["width"],
            np.array(rows, MASK_META),
            origin=None,
        )

    def will_need(self, _):
        """No hint: loose files are opened when read."""

    def read_masks(self, _, which):
        """Of the image that was read last."""
        return [self.last[k] for k in which]


def main():
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = args.data or synthetic_shards(Path(folder) / "shards", args.size_px)
        loose = write_loose(ShardReader(shards), Path(folder) / "loose")
        rows, absolute = throughput(shards, loose, args)
        reading = {"shards": reading_cost(ShardReader(shards)), "loose": reading_cost(loose)}
        parts_ms = sample_parts(ShardReader(shards), args)
    print_ratios(rows, ("loose", "shards"))
    for name, value in absolute.items():
        print(f"{name:34}{value:10.1f} images/s from shards")
    for name, cost in reading.items():
        print(f"{name:34}{cost['kib']:10.1f} KiB and {cost['calls']:.1f} read calls a sample")
    for name, value in parts_ms.items():
        print(f"{name:34}{value:10.3f} ms of a processor for a sample")
    share = parts_ms["index"] / (parts_ms["image"] + parts_ms["masks"])
    print(f"index and integrity: {share:.1%} of decoding")
    results = {"ms_per_batch": rows, "images_per_s": absolute, "reading": reading}
    print_record("loader", {**results, "parts_ms": parts_ms, "index_share": share})
    missed = [name for name, row in rows.items() if row["ratio"] < 1]
    missed += ["index"] if args.side >= 1024 and share > INDEX_LIMIT else []
    if args.gate and missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    return int(args.gate and bool(missed))


def throughput(shards, loose, args):
    """Seconds of a batch from loose files against shards, and images per second of shards."""
    rows, absolute = {}, {}
    for workers in (1, 2):
        for state in ("warm", "cold"):
            seconds = {"loose": [], "shards": []}
            for number in range(args.repeats + 1):
                for side, reader in (("loose", loose), ("shards", ShardReader(shards))):
                    if state == "cold":
                        forget(shards if side == "shards" else loose.images[0].parent)
                    took = time_batches(reader, workers, args)
                    if number > 0:
                        seconds[side].append(took)
            name = f"{workers} worker(s), {state}"
            rows[name] = compare(seconds["loose"], seconds["shards"])
            absolute[name] = BATCH / (rows[name]["fast_ms"] / 1e3)
    return rows, absolute


def time_batches(reader, workers, args):
    """Seconds of a batch, after the first."""
    dataset = ShardDataset([reader], DataConfig(), side=args.side, seed=0)
    order = SampleOrder([[reader.num_images]], BATCH, seed=0)
    loader = build_loader(
        dataset,
        order,
        World.single(),
        batch_size=BATCH,
        workers=workers,
        start_method="fork",  # as fast once started, and it starts at once
    )
    batches = iter(loader)
    next(batches)
    started = time.perf_counter()
    for _ in range(args.batches):
        next(batches)
    return (time.perf_counter() - started) / args.batches


def reading_cost(reader):
    """KiB and calls of reading an image, its table and 8 masks, after the files were opened."""
    for index in range(reader.num_images):
        reader.read_image(index)
    before = io_counts()
    for index in range(reader.num_images):
        record = reader.read_image(index)
        reader.read_masks(index, range(min(OBJECTS, len(record.masks))))
    after = io_counts()
    spent = {name: (after[name] - before[name]) / reader.num_images for name in before}
    return {"kib": spent["rchar"] / 1024, "calls": spent["syscr"]}


def sample_parts(reader, args):
    """Median ms of each part, of samples whose files are open and cached."""
    dataset = ShardDataset([reader], DataConfig(prompts_per_image=OBJECTS), side=args.side, seed=0)
    parts = {"index": [], "image": [], "masks": [], "rest": []}
    for index in range(reader.num_images):
        dataset[0, index, 0]
        clock = [time.process_time()]
        record = reader.read_image(index)
        rles = reader.read_masks(index, range(min(OBJECTS, len(record.masks))))
        clock.append(time.process_time())
        decode_rgb(record.image)
        clock.append(time.process_time())
        for rle in rles:
            decode_runs(rle, record.height, record.width)
        clock.append(time.process_time())
        dataset[0, index, 1]
        clock.append(time.process_time())
        spent = [after - before for before, after in pairwise(clock)]
        spent[3] -= sum(spent[:3])  # the whole sample without the parts above
        for name, value in zip(parts, spent, strict=True):
            parts[name].append(value * 1e3)
    return {name: statistics.median(values) for name, values in parts.items()}


def io_counts():
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def forget(folder):
    """Put the files of `folder` out of the page cache; the kernel keeps what it has not written."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_loose(reader, folder):
    """The records of the shards as files in SA-1B's layout, in the order of the shards."""
    folder.mkdir()
    for index in range(reader.num_images):
        record = reader.read_image(index)
        path = folder / f"sa_{index:07d}.{'png' if record.format == 'png' else 'jpg'}"
        path.write_bytes(record.image)
        rles = reader.read_masks(index, range(len(record.masks)))
        size = [record.height, record.width]
        annotations = [
            {
                "segmentation": {"size": size, "counts": rle.decode()},
                "area": int(meta["area"]),
                "bbox": meta["bbox"].tolist(),
                "point_coords": [meta["point"].tolist()],
                "predicted_iou": float(meta["predicted_iou"]),
                "stability_score": float(meta["stability_score"]),
            }
            for meta, rle in zip(record.masks, rles, strict=True)
        ]
        image = {"image_id": record.id, "height": record.height, "width": record.width}
        text = json.dumps({"image": image, "annotations": annotations})
        path.with_suffix(".json").write_text(text)
    return LooseReader(folder)


def synthetic_shards(folder, size_px):
    synthetic = SyntheticConfig(images=64, size_px=size_px)
    convert(SourceConfig(kind="synthetic", synthetic=synthetic), folder, workers=1)
    return folder


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of shards")
    parser.add_argument("--batches", type=int, default=12, help="of 4 images, a measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=1024, help="input side of the model, pixels")
    parser.add_argument("--size-px", type=int, default=1024, help="of the synthetic images")
    parser.add_argument("--quick", action="store_true", help="under a minute: 256 px, 2 rounds")
    parser.add_argument("--gate", action="store_true", help="exit with 1 where shards are slower")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.side, args.size_px = 2, 256, 256
    return args


if __name__ == "__main__":
    sys.exit(main())
