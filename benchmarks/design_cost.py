"""Time and memory of a design, by its parts, at a model's real sizes: random weights and images.

python -m benchmarks.design_cost --model vit_b --images 1 --parts hash wanda measure prioritize

Seconds by the clock and of a CPU (the same on a busy machine; on a GPU only the clock counts).
On a CPU each part is measured in a process of its own, so that its peak memory is its own; on a GPU
the allocator tells it.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.in_turn import ROOT, provenance
from supersam.config import LossConfig
from supersam.data.sample import LABEL_BOX_MAX, LABEL_BOX_MIN, Batch
from supersam.design import FunctionProbe, RemovalMeter, prioritize_parameters, score_units
from supersam.design.sensitivity import cache_content
from supersam.model import SamSupernet, load_sam
from supersam.model.losses import subnet_loss
from supersam.runtime.device import choose_device
from supersam.space import SHAPES, published_space

PARTS = ("hash", "magnitude", "wanda", "taylor", "movement", "measure", "prioritize")


def main():
    args = parse_args()
    device = choose_device(args.device)
    rows = {}
    if args.part is not None or device.type == "cuda":
        setting = Setting(args, device)
        for part in args.parts if args.part is None else [args.part]:
            rows[part] = setting.measure(part)
            print(part, rows[part], file=sys.stderr, flush=True)
            keep(args, rows)
    else:
        for part in args.parts:
            command = [sys.executable, "-m", "benchmarks.design_cost", "--model", args.model]
            command += ["--device", args.device, "--images", str(args.images), "--part", part]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            rows |= json.loads(done.stdout.splitlines()[-1])["parts"]
            print(part, rows[part], file=sys.stderr, flush=True)
            keep(args, rows)
    print(json.dumps({**provenance(), "model": args.model, "images": args.images, "parts": rows}))


def keep(args, rows):
    if args.json is not None:
        record = {**provenance(), "model": args.model, "images": args.images, "parts": rows}
        args.json.write_text(json.dumps(record, indent=1))


class Setting:
    """A model and its images, in memory."""

    def __init__(self, args, device):
        torch.set_num_threads(1)
        shape = SHAPES[args.model]
        self.device = device
        supernet = SamSupernet(load_sam(args.model), published_space(shape)).to(device)
        self.supernet = supernet.eval()
        self.batches = [random_batch(shape.image_size, seed=i) for i in range(args.images)]
        if device.type == "cuda":
            perform("measure", self.supernet, self.batches[:1])  # kernels are loaded at first use

    def measure(self, part):
        """Seconds of a part, and the most memory while it ran."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        rest_gib = memory_gib(self.device)
        clock, cpu = time.perf_counter(), time.process_time()
        extra = perform(part, self.supernet, self.batches) or {}
        if on_gpu:
            torch.cuda.synchronize()
        seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
        peak_gib = memory_gib(self.device)
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "before_gib": rest_gib,
                "peak_gib": peak_gib, "device": str(self.device), **extra}  # fmt: skip


def perform(part, supernet, batches):
    if part == "hash":
        cache_content(supernet, batches)
    elif part == "measure":
        RemovalMeter(supernet, batches).measure([(1,)])
    elif part == "prioritize":
        probe = FunctionProbe(supernet, batches[0])
        prioritize_parameters(supernet, score_units(supernet, [], score="random"))
        return vars(probe.compare())
    else:
        score_units(supernet, batches, score=part, loss=task_loss)
    return None


def task_loss(prediction, batch):
    return subnet_loss(prediction, batch, LossConfig(), teacher=None).total


def random_batch(side, *, seed, prompts=8):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(1, prompts, 2, 2, generator=generator) * (side - 1)
    images = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=generator)
    cells = torch.rand(1, prompts, side // 4, side // 4, generator=generator) > 0.9
    return Batch(
        images=images,
        sizes=torch.tensor([[side, side]]),
        points=corners.sort(dim=2).values,
        labels=torch.tensor([LABEL_BOX_MIN, LABEL_BOX_MAX]).expand(1, prompts, 2).clone(),
        masks=cells.to(torch.uint8) * 255,
        valid=torch.ones(1, prompts, dtype=torch.bool),
        sample_ids=torch.tensor([seed]),
    )


def memory_gib(device):
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_b", choices=list(SHAPES))
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--part", choices=PARTS, help="measure this one in this process")
    parser.add_argument("--json", type=Path, help="write there what is known after each part")
    return parser.parse_args()


if __name__ == "__main__":
    main()
