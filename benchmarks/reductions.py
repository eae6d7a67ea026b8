"""Bytes that an optimizer step exchanges between ranks: one reduction a sandwich, not one a subnet.

python benchmarks/reductions.py [--gate]

Trains a small model on two local ranks and counts every collective of PyTorch, by name. Prints a
table and, last, one line of JSON. With --gate, bytes that grow with the subnets exit with 1.
"""

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist

RANKS = 2
STEPS = 3
CALLS = ("all_reduce", "reduce", "broadcast", "reduce_scatter_tensor", "all_gather_into_tensor")
LISTS = ("all_gather", "reduce_scatter")


def main():
    args = parse_args()
    context, rows = get_context("spawn"), []
    for random_subnets in (0, 1, 4):
        with tempfile.TemporaryDirectory() as folder:
            ranks = [
                context.Process(target=run_rank, args=(rank, random_subnets, Path(folder)))
                for rank in range(RANKS)
            ]
            for process in ranks:
                process.start()
            for process in ranks:
                process.join(600)
            assert [process.exitcode for process in ranks] == [0] * RANKS
            rows.append(json.loads((Path(folder) / "count.json").read_text()))
    for row in rows:
        parts = "  ".join(f"{name} {size / 2**20:.2f}" for name, size in row["bytes"].items())
        total = sum(row["bytes"].values()) / row["parameter_bytes"]
        print(f"{row['subnets']} subnets: {parts} MiB a step = {total:.2f} x the fp32 weights")
    print(json.dumps({"reductions": rows}))
    return int(args.gate and any(row["bytes"] != rows[0]["bytes"] for row in rows))


def run_rank(rank, random_subnets, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(20000 + os.getppid() % 20000), "DS_ACCELERATOR": "cpu"}
    counts = Counter()
    count_calls(counts)
    from supersam.config import TrainRun, load_run, merge, read_yaml
    from supersam.runs.folder import prepare_run_folder
    from supersam.training.engine import Engine, trainable_parameters
    from supersam.training.session import train

    demo = Path(__file__).parents[1] / "configs" / "train" / "demo.yaml"
    changes = {
        "run": str(folder / "run"),
        "data": {"workers": 0, "synthetic_train": {"images": 16}, "synthetic_val": {"images": 2}},
        "optim": {"steps": STEPS, "warmup_steps": 1, "global_batch": 2},
        "sandwich": {"random_subnets": random_subnets},
        "engine": {"device": "cpu", "threads": 1},
        "checkpoint": {"validate_images": 2, "overlay_images": 0},
    }
    run = TrainRun.model_validate(merge(read_yaml(demo), changes))
    if rank == 0:
        prepare_run_folder(run)
        (folder / "ready").touch()
    deadline = time.monotonic() + 300
    while not (folder / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    run = load_run(TrainRun, folder / "run" / "run.yaml").model_copy(update={"run": run.run})
    steps = []
    original = Engine.step

    def counted(engine):
        counts.clear()
        norm = original(engine)
        weights = sum(p.numel() for _, p in trainable_parameters(engine.supernet)) * 4
        steps.append({"bytes": dict(counts), "parameter_bytes": weights})
        return norm

    backward = Engine.backward

    def silent(engine, loss):
        before = sum(counts.values())
        backward(engine, loss)
        assert sum(counts.values()) == before, "a backward pass exchanged something"

    Engine.step, Engine.backward = counted, silent
    train(run)
    assert all(step == steps[-1] for step in steps[1:])
    if rank == 0:
        row = {"subnets": 2 + random_subnets, **steps[-1]}
        (folder / "count.json").write_text(json.dumps(row))


def count_calls(counts):
    """Add the bytes of the tensor of each collective to `counts`, by its name."""

    def wrap(name, size):
        original = getattr(dist, name)

        @functools.wraps(original)
        def counted(*args, **kwargs):
            counts[name] += size(args, kwargs)
            return original(*args, **kwargs)

        setattr(dist, name, counted)

    def biggest(args, kwargs):
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
        return max((t.numel() * t.element_size() for t in tensors), default=0)

    def listed(args, kwargs):
        lists = [v for v in (*args, *kwargs.values()) if isinstance(v, list)]
        return sum(t.numel() * t.element_size() for t in lists[0])

    for name in CALLS:
        wrap(name, biggest)
    for name in LISTS:
        wrap(name, listed)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gate", action="store_true", help="exit with 1 if subnets cost bytes")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
