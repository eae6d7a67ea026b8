"""How a sandwich step grows: over prompts, images and depth; bytes sent over ranks and subnets.

python -m benchmarks.growth [--repeats 3] [--quick] [--gate]

Time is this process's CPU time of largest, smallest and a random subnet, forward and backward, of
vit_t; memory the live tensors at the peak of the largest subnet's. Bytes sent are what one rank
hands to collectives in one optimizer step of a small model with ZeRO-1, over real gloo processes;
backward passes must hand over nothing: one reduction a sandwich, not one a subnet. With --gate,
exits with 1 where doubling a size more than doubles the memory, a rank's bytes grow with the number
of ranks by more than a tenth from 2 on, or with the number of random subnets at all.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.in_turn import print_record
from benchmarks.step_memory import peak_mib, random_batch
from supersam.config import EngineConfig, LossConfig, OptimConfig, SpaceConfig
from supersam.model import SamSupernet, load_sam
from supersam.model.losses import subnet_loss
from supersam.space import SHAPES, EncoderShape, build_space
from supersam.training.sandwich import SandwichSampler

SMALL = EncoderShape(96, 4, 3, (1, 3), image_size=80, window_size=3)
COLLECTIVES = ("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor")
COLLECTIVES += ("reduce_scatter_tensor", "all_to_all_single")
RANK_TIMEOUT_S = 240


def main():
    args = parse_args()
    torch.set_num_threads(1)
    most = 8 if args.quick else 64
    prompts = [2**i for i in range(7) if 2**i <= most]
    images = [1, 2] if args.quick else [1, 2, 4, 8]
    results = {
        "prompts": {n: step_cost(args, images=1, prompts=n) for n in prompts},
        "images": {n: step_cost(args, images=n, prompts=8) for n in images},
        "depth": {n: step_cost(args, images=1, prompts=8, depth=n) for n in (3, 6, 12)},
        "ranks": {n: bytes_sent(n) for n in ((1, 2) if args.quick else (1, 2, 4, 8))},
        "subnets": {n: bytes_sent(2, random_subnets=n) for n in (0, 1, 4)},
    }
    for name in ("prompts", "images", "depth"):
        for size, cost in results[name].items():
            print(f"{name:8}{size:4}{cost['cpu_s']:10.3f} CPU s{cost['peak_mib']:10.1f} MiB")
    for name in ("ranks", "subnets"):
        for size, sent in results[name].items():
            print(f"{name:8}{size:4}{sent / 2**20:10.2f} MiB handed to collectives by a rank")
    print_record("growth", results)
    missed = list(gates(results))
    if args.gate and missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    return int(args.gate and bool(missed))


def gates(results):
    """What grows faster than it may."""
    for name in ("prompts", "images", "depth"):
        sizes = list(results[name])
        for low, high in zip(sizes, sizes[1:], strict=False):
            peaks = [results[name][size]["peak_mib"] for size in (low, high)]
            if peaks[1] > 1.02 * high / low * peaks[0]:
                yield f"memory from {low} to {high} {name}"
    for size, sent in results["ranks"].items():
        if size > 2 and sent > 1.1 * results["ranks"][2]:
            yield f"bytes of {size} ranks"
    if len(set(results["subnets"].values())) > 1:
        yield "bytes over random subnets"


def step_cost(args, *, images, prompts, depth=12):
    """CPU seconds of a sandwich step's forward and backward, and its peak of live tensors."""
    layers = tuple(layer for layer in SHAPES["vit_t"].global_layers if layer < depth)
    shape = replace(SHAPES["vit_t"], depth=depth, global_layers=layers)
    removable = tuple(layer for layer in SpaceConfig().removable if layer < depth)
    space = build_space(SpaceConfig(removable=removable), shape)
    supernet = SamSupernet(load_sam(shape), space)
    batch = random_batch(images, prompts, shape.image_size)
    subnets = SandwichSampler(space, seed=0, random_subnets=1).draw(0)
    seconds = [step_seconds(supernet, batch, subnets) for _ in range(args.repeats + 1)][1:]
    return {
        "cpu_s": statistics.median(seconds),
        "peak_mib": peak_mib(supernet, batch, subnets[:1]),
    }


def step_seconds(supernet, batch, subnets):
    supernet.zero_grad(set_to_none=True)
    started = time.process_time()
    for subnet in subnets:
        with supernet.activated(subnet):
            prediction = supernet(batch.images, batch.sizes, batch.points, batch.labels)
        subnet_loss(prediction, batch, LossConfig(), teacher=None).total.backward()
    return time.process_time() - started


def bytes_sent(ranks, random_subnets=1):
    """Bytes that a rank hands to collectives in its second step, counted in real processes."""
    context = get_context("fork")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        processes = [
            context.Process(target=count_bytes, args=(rank, ranks, random_subnets, store, answers))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(RANK_TIMEOUT_S)
            if process.exitcode != 0:
                [one.kill() for one in processes]
                raise SystemExit(f"a rank of {ranks} failed or hung; see its message above")
        return max(answers.get() for _ in processes)


def count_bytes(rank, ranks, random_subnets, store, answers):
    """One rank: two steps of the engine, the bytes of the second to `answers`."""
    from supersam.training.engine import Engine

    os.environ.update(LOCAL_RANK="0", RANK=str(rank), WORLD_SIZE=str(ranks))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    space = build_space(SpaceConfig(removable=(1, 2), width_multiple=32), SMALL)
    supernet = SamSupernet(load_sam(SMALL), space)
    optim = OptimConfig(global_batch=ranks)
    engine = Engine(supernet, optim, EngineConfig(), world_size=ranks)
    batch = random_batch(1, 2, SMALL.image_size)
    subnets = SandwichSampler(space, seed=0, random_subnets=random_subnets).draw(0)
    sent = count_collectives()
    for _ in range(2):
        sent.clear()
        for subnet in subnets:
            with supernet.activated(subnet):
                prediction = supernet(batch.images, batch.sizes, batch.points, batch.labels)
            engine.backward(subnet_loss(prediction, batch, LossConfig(), teacher=None).total)
        assert not sent, "a backward pass exchanged something"
        engine.step()
    answers.put(sum(sent))
    dist.destroy_process_group()


def count_collectives():
    """Makes every collective of torch.distributed note the bytes of its tensors."""
    sent = []

    def counted(collective):
        def call(*args, **kwargs):
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
            sent.append(max(tensor.nbytes for tensor in tensors))
            return collective(*args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, counted(getattr(dist, name)))
    return sent


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer, smaller sizes")
    parser.add_argument("--gate", action="store_true", help="exit with 1 where a gate is missed")
    args = parser.parse_args()
    if args.quick:
        args.repeats = 1
    return args


if __name__ == "__main__":
    sys.exit(main())
