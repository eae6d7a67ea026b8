"""What a set of SA-1B's size costs beside one of 1,000 images: 11 M images in 20,000 shards.

python -m benchmarks.scale [--shards 20000] [--images-per-shard 550] [--only QUESTION ...] [--gate]

The folders are generated, in memory where the system has room for files there: one shard of images
of 8 px is written, and every other name is a hard link to it, with its own line in the manifest.
What depends on how many files, lines and images there are is as at SA-1B; what depends on the bytes
of images and masks is not, and a file system of a cluster answers more slowly than memory.

Each question runs in a process of its own, which may open 1,024 files. Seconds are of its
processor; MiB are what it holds afterwards and at its peak, above what it held before. A loader
worker is a real one, forked: MiB are its own memory, after its first batch and after --samples of
random shards; what it is handed where it is not forked is named below. Questions marked * open
every shard: they are asked of --share shards, and their seconds multiplied; so are the MiB of
`convert again`, which lists every input. With --gate, exits with 1 where one takes more than its
limit in the larger set.
"""

import argparse
import gc
import io
import itertools
import json
import multiprocessing
import os
import pickle
import resource
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from pycocotools import mask as coco

from benchmarks.in_turn import print_record
from supersam.config import DataConfig, SourceConfig, SyntheticConfig
from supersam.config.data import AugmentConfig
from supersam.data.convert import convert
from supersam.data.dataset import ShardDataset
from supersam.data.identity import shared_sources
from supersam.data.loader import SHARED_MEMORY, build_loader
from supersam.data.manifest import PLAN, shard_file, sidecar, write_manifest
from supersam.data.partition import SampleOrder
from supersam.data.plan import inputs_sha256, make_plan
from supersam.data.sample import MaskRecord, Origin, SegmentationSample
from supersam.data.shards import ShardReader, ShardWriter
from supersam.data.sources import list_items
from supersam.data.verify import verify_shards
from supersam.design.calibration import draw_batches
from supersam.runtime.atomic import write_json
from supersam.runtime.distributed import World

SMALL = {"shards": 2, "images_per_shard": 500}
IMAGE_PX, SIDE_PX, GLOBAL_BATCH, OPEN_FILES, BATCH = 8, 64, 256, 1024, 8
LIMITS = {
    "open": (10, 64),
    "order": (10, 128),
    "resume in the middle": (10, 128),
    "worker": (None, 128),
    "calibration": (10, 128),
    "verify": (600, 128),
    "verify --full": (None, 128),
    "shared with training": (600, 128),
    "convert again": (None, None),
}
"""Processor seconds, and MiB at the peak (a worker's: more than with 1,000 images)."""
QUESTIONS = tuple(LIMITS)
OF_SHARE = QUESTIONS[5:]


def main():
    args = parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    large = {"shards": args.shards, "images_per_shard": args.images_per_shard}
    args.share = min(args.share, args.shards)
    share = {**large, "shards": args.share}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        folders = {name: Path(folder, name) for name in ("small", "large", "share")}
        for path, sizes in zip(folders.values(), (SMALL, large, share), strict=True):
            apart(make_set, path, *sizes.values(), path.name != "large")
        print(f"{'':24}{'1,000 images':>32}{'the large set':>32}")
        results = {}
        for question in args.only:
            costs = {name: ask(question, folders, name, args) for name in ("small", "large")}
            if question in OF_SHARE:
                multiply(costs, question, args.shards / args.share)
            results[question] = costs
            print_row(question, **costs)
    print_record("scale", {"sizes": large, **results})
    missed = list(gates(results))
    if args.gate and missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    return int(args.gate and bool(missed))


def ask(question, folders, name, args):
    """What a question costs in one of the sets."""
    is_share = question in OF_SHARE and name == "large"
    call, *more = {
        "open": (ShardReader,),
        "order": (first_batch, 0.0),
        "resume in the middle": (first_batch, 2.5),
        "worker": (hold_worker, args.samples),
        "calibration": (calibrate,),
        "verify": (verify, False),
        "verify --full": (verify, True),
        "shared with training": (compare_sources, folders["small"]),
        "convert again": (convert_again,),
    }[question]
    return apart(call, folders["share" if is_share else name], *more)


def multiply(costs, question, times):
    """Take what a share of the large set costs above the small set as many times."""
    for name in ("cpu_s", "mib", "peak_mib") if question == "convert again" else ("cpu_s",):
        small = costs["small"][name]
        costs["large"][name] = small + times * (costs["large"][name] - small)


def first_batch(folder, epochs):
    """Make the order and get one step's samples, after so many epochs."""
    order = SampleOrder([ShardReader(folder).shard_sizes], GLOBAL_BATCH, seed=0)
    batch = order.batch(int(epochs * order.batches_per_epoch))
    assert batch.shape == (GLOBAL_BATCH, 3)
    return order


def verify(folder, full):
    report = verify_shards(folder, full=full)
    assert report.ok, report.faults[:3]


def compare_sources(trained, evaluated):
    shared = shared_sources([ShardReader(evaluated)], [ShardReader(trained)])
    assert shared.images > 0, shared


def calibrate(folder):
    return draw_batches(dataset_of(folder), images=16, batch=8)


def convert_again(folder):
    """Give the command of a finished conversion once more: it looks, and writes nothing."""
    plan = json.loads((folder / PLAN).read_bytes())
    report = convert(source_of(plan["inputs"]), folder, shard_bytes=plan["shard_bytes"])
    assert report.manifest is not None
    assert report.written == 0
    return report


def hold_worker(folder, samples):
    """What a loader worker holds after its first batch, and after `samples`."""
    dataset = dataset_of(folder)
    order = SampleOrder([dataset.readers[0].shard_sizes], GLOBAL_BATCH, seed=0)
    loader = build_loader(
        dataset, order, World.single(), batch_size=BATCH, workers=1, start_method="fork"
    )
    batches = iter(loader)
    next(batches)
    (worker,) = (
        child
        for child in psutil.Process().children()
        if "resource_tracker" not in " ".join(child.cmdline())
    )
    used = processor_seconds(worker)
    cost = {"handed_mib": len(pickle.dumps(dataset)) / 2**20, "mib": private_mib(worker)}
    for _ in itertools.islice(batches, samples // BATCH):
        pass
    return cost | {
        "cpu_s": processor_seconds(worker) - used,
        "peak_mib": private_mib(worker),
        "open_files": worker.num_fds(),
    }


def processor_seconds(process):
    times = process.cpu_times()
    return times.user + times.system


def private_mib(process):
    return process.memory_full_info().uss / 2**20


def dataset_of(folder):
    config = DataConfig(prompts_per_image=1, augment=AugmentConfig(flip_horizontal=0.0))
    return ShardDataset([ShardReader(folder)], config, side=SIDE_PX, seed=0)


def source_of(images):
    return SourceConfig(kind="synthetic", synthetic=SyntheticConfig(images=images, size_px=16))


def make_set(folder, shards, images_per_shard, is_converted):
    """A finished set of shards; `is_converted`: with the conversion's plan and sidecars."""
    folder.mkdir()
    source = source_of(shards * images_per_shard)
    first = write_first(folder / shard_file(0), images_per_shard)
    infos = [replace(first, file=shard_file(k)) for k in range(shards)]
    for info in infos[1:]:
        os.link(folder / first.file, folder / info.file)
    write_manifest(folder, infos, source=source.model_dump(mode="json"))
    if not is_converted:
        return
    items = list_items(source)
    plan = make_plan(source, items, shard_bytes=items[0].num_bytes * images_per_shard)
    write_json(folder / PLAN, plan.to_dict())
    for info, share in zip(infos, plan.share(items), strict=True):
        record = {"shard": asdict(info), "inputs_sha256": inputs_sha256(share)}
        write_json(sidecar(folder / info.file), record, durable=False)


def write_first(path, images):
    """A shard of tiny images, one object each. Returns its line of the manifest."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((IMAGE_PX, IMAGE_PX, 3), np.uint8)).save(file, "PNG")
    object_ = np.zeros((IMAGE_PX, IMAGE_PX), np.uint8, order="F")
    object_[2:6, 2:6] = 1
    mask = MaskRecord(coco.encode(object_)["counts"], 16, (2.0, 2.0, 4.0, 4.0), (3.0, 3.0))
    writer = ShardWriter(path)
    for k in range(images):
        origin = Origin(source=k, group=k)
        name = f"train/sa_{k:08d}.png"
        sample = (k, name, file.getvalue(), "png", IMAGE_PX, IMAGE_PX, (mask,), origin)
        writer.add(SegmentationSample(*sample))
    return writer.finish()


def apart(call, *args):
    """Call it in a process of its own: what it costs, and what it returned if that is small."""
    context = multiprocessing.get_context("fork")  # a new one would import torch each time
    answers = context.SimpleQueue()
    process = context.Process(target=measure, args=(answers, call, *args))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"{call} failed; see its message above")
    return answers.get()


def measure(answers, call, *args):
    """Processor seconds of a call, and MiB while its result is kept."""
    before = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    began = time.process_time()
    result = call(*args)
    seconds = time.process_time() - began
    gc.collect()
    held, peak = (resident_mib(name) - before for name in ("VmRSS", "VmHWM"))
    cost = {"cpu_s": seconds, "mib": held, "peak_mib": max(held, peak)}
    answers.put(result if isinstance(result, dict) else cost)


def resident_mib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def print_row(question, small, large):
    cells = [
        f"{cost['cpu_s']:10.2f} s{cost['mib']:8.1f}, {cost['peak_mib']:6.1f} MiB"
        for cost in (small, large)
    ]
    name = f"{question}{' *' * (question in OF_SHARE)}"
    print(f"{name:24}{cells[0]:>32}{cells[1]:>32}", flush=True)
    if question == "worker":
        handed = [f"{cost['handed_mib']:.2f} MiB" for cost in (small, large)]
        files = [f"{cost['open_files']} files open" for cost in (small, large)]
        print(f"{'  is handed; has':24}{'; '.join((handed[0], files[0])):>32}", end="")
        print(f"{'; '.join((handed[1], files[1])):>32}", flush=True)


def gates(results):
    """The questions that take more than they may in the large set."""
    for question, (most_s, most_mib) in LIMITS.items():
        if question not in results:
            continue
        small, large = results[question]["small"], results[question]["large"]
        mib = large["peak_mib"] - (small["peak_mib"] if question == "worker" else 0)
        if (most_mib is not None and mib > most_mib) or (
            most_s is not None and large["cpu_s"] > most_s
        ):
            yield question


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=20000)
    parser.add_argument("--images-per-shard", type=int, default=550)
    parser.add_argument("--samples", type=int, default=2000, help="that the worker reads")
    parser.add_argument("--share", type=int, default=500, help="shards of the questions *")
    parser.add_argument(
        "--only", nargs="+", choices=QUESTIONS, default=QUESTIONS, metavar="QUESTION"
    )
    parser.add_argument("--folder", type=Path, help="where the sets are generated and removed")
    parser.add_argument("--gate", action="store_true", help="exit with 1 where a limit is missed")
    args = parser.parse_args()
    if args.folder is None and os.access(SHARED_MEMORY, os.W_OK):
        args.folder = SHARED_MEMORY
    return args


if __name__ == "__main__":
    sys.exit(main())
