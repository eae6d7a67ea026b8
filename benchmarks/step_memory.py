"""Peak memory of a sandwich step against the largest subnet's step alone.

python benchmarks/step_memory.py

Counts the bytes of live tensors, from PyTorch's own record of allocations: the resident set of the
process also holds what the C library keeps of freed memory, which depends on its fragmentation.
"""

import argparse
import json
import sys

import torch
from torch.profiler import ProfilerActivity, profile

from supersam.config import LossConfig, SpaceConfig
from supersam.data.sample import Batch
from supersam.model import SamSupernet, load_sam
from supersam.space import SHAPES, build_space
from supersam.training.losses import subnet_loss
from supersam.training.sandwich import SandwichSampler

LIMIT = 1.1


def main():
    args = parse_args()
    torch.set_num_threads(1)
    space = build_space(SpaceConfig(), SHAPES["vit_t"])
    supernet = SamSupernet(load_sam("vit_t"), space)
    batch = random_batch(args.images, args.prompts, SHAPES["vit_t"].image_size)
    subnets = SandwichSampler(space, seed=0, random_subnets=2).draw(0)
    peaks = {
        "largest": peak_mib(supernet, batch, subnets[:1]),
        "sandwich": peak_mib(supernet, batch, subnets),
    }
    ratio = peaks["sandwich"] / peaks["largest"]
    for name, peak in peaks.items():
        print(f"{name:10}{peak:10.1f} MiB of live tensors at the peak, weights not counted")
    print(f"sandwich / largest: {ratio:.3f} (limit {LIMIT})")
    print(json.dumps({"step_memory": {**peaks, "ratio": ratio}}))
    return int(args.gate and ratio > LIMIT)


def peak_mib(supernet, batch, subnets):
    """Most bytes alive at once while the gradients of `subnets` are accumulated, in MiB."""
    supernet.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        for subnet in subnets:
            with supernet.activated(subnet):
                prediction = supernet(batch.images, batch.sizes, batch.points, batch.labels)
            subnet_loss(prediction, batch, LossConfig(), teacher=None).total.backward()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak / 2**20


def random_batch(images, prompts, side):
    generator = torch.Generator().manual_seed(0)

    def pixels(*shape):
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    return Batch(
        images=pixels(images, 3, side, side),
        sizes=torch.full((images, 2), side),
        points=torch.rand(images, prompts, 2, 2, generator=generator) * side,
        labels=torch.tensor([1, -1]).expand(images, prompts, 2),
        masks=pixels(images, prompts, side // 4, side // 4),
        valid=torch.ones(images, prompts, dtype=torch.bool),
        sample_ids=torch.arange(images),
    )


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--gate", action="store_true", help="exit with 1 above 1.1")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
