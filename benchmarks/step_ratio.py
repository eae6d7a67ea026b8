"""One sandwich step of the image encoder: SuperSAM against the way of the published code.

python benchmarks/step_ratio.py [--repeats 8] [--quick] [--gate]

Both train the largest, the smallest and a random subnet of the same tiny encoder (192 channels, 12
layers, 3 heads, 256 px, windows of 8) on the same images. The stand-in does per subnet what the
published training step does: copies of the whole encoder, new attention and MLP modules filled with
slices, a new AdamW, and a write-back of the difference of two state dicts (truly cloned: the
published code's alias on a CPU would train nothing). The two are run in turn; the figure is the
median of the ratios of neighbours. Prints a table and one line of JSON. With --gate, a ratio below
2.0 at batch 1 or 1.3 at batch 4 exits with 1.
"""

import argparse
import copy
import json
import os
import statistics
import sys
import time

import numpy as np
import torch
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.image_encoder import Attention
from torch import nn

from supersam.config import SpaceConfig
from supersam.model import SamSupernet, load_sam
from supersam.runtime.memory import keep_freed_memory
from supersam.space import SHAPES, build_space

GATES = {1: 2.0, 4: 1.3}
LR = 1e-4


class SupersamStep:
    """Views of one set of weights, gradients added up, one step of one optimizer."""

    def __init__(self, sam, space):
        self.encoder = SamSupernet(sam, space).image_encoder
        self.optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=LR)

    def step(self, subnets, images, direction):
        """Train `subnets` on `images`."""
        self.optimizer.zero_grad(set_to_none=True)
        for spec in subnets:
            (self.encoder(images, spec) * direction).sum().backward()
        self.optimizer.step()


class PublishedStep:
    """Copies for each subnet, an optimizer for each subnet, differences written back."""

    def __init__(self, sam, shape):
        self.encoder = sam.image_encoder
        self.shape = shape

    def step(self, subnets, images, direction):
        """Train `subnets` on `images`, one after the other."""
        for spec in subnets:
            subnet = self.extract(spec)
            optimizer = torch.optim.AdamW(subnet.parameters(), lr=LR)
            before = {name: tensor.clone() for name, tensor in subnet.state_dict().items()}
            optimizer.zero_grad()
            (subnet(images) * direction).sum().backward()
            optimizer.step()
            self.write_back(before, subnet.state_dict(), spec)

    def extract(self, spec):
        """One copy for the largest subnet, two and new modules for the others."""
        subnet = copy.deepcopy(self.encoder)
        if len(spec.layers) == self.shape.depth and set(spec.mlp_widths) == {self.shape.mlp_width}:
            return subnet
        subnet = copy.deepcopy(subnet)
        blocks = [subnet.blocks[layer] for layer in spec.layers]
        for block, layer, width in zip(blocks, spec.layers, spec.mlp_widths, strict=True):
            side = self.shape.window_of(layer) or self.shape.grid
            block.attn = Attention(
                self.shape.embed_dim,
                num_heads=self.shape.num_heads,
                use_rel_pos=True,
                input_size=(side, side),
            )
            block.mlp = MLPBlock(embedding_dim=self.shape.embed_dim, mlp_dim=width)
        subnet.blocks = nn.ModuleList(blocks)
        self.copy_weights(subnet, spec)
        return subnet

    def copy_weights(self, subnet, spec):
        """Fill `subnet` with the leading slices of the supernet's weights."""
        for name, _ in subnet.named_parameters():
            mine = dict(self.encoder.named_parameters())[full_name(name, spec)]  # as published
            theirs = dict(subnet.named_parameters())[name]
            theirs.data.copy_(mine.data[slices(theirs)])

    @torch.no_grad()
    def write_back(self, before, after, spec):
        """Take what the subnet lost from the same slices of the supernet."""
        parameters = dict(self.encoder.named_parameters())
        for name, old in before.items():
            parameters[full_name(name, spec)][slices(old)] -= old - after[name]


def full_name(name, spec):
    """The supernet's name of a subnet's parameter."""
    words = name.split(".")
    if words[0] == "blocks":
        words[1] = str(spec.layers[int(words[1])])
    return ".".join(words)


def slices(tensor):
    return tuple(slice(size) for size in tensor.shape)


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    space = build_space(SpaceConfig(), SHAPES["vit_t"])
    rows = {batch: measure(space, batch, args.repeats) for batch in (1, 4)}
    print(f"{'batch':>5}{'published ms':>14}{'supersam ms':>14}{'ratio':>8}{'range':>16}")
    for batch, row in rows.items():
        span = f"{row['min']:.2f} to {row['max']:.2f}"
        cells = f"{row['published_ms']:14.0f}{row['supersam_ms']:14.0f}{row['ratio']:8.2f}"
        print(f"{batch:5}{cells}{span:>16}")
    print(json.dumps({"step_ratio": rows, "load_average": os.getloadavg()}))
    failed = [batch for batch, row in rows.items() if row["ratio"] < GATES[batch]]
    return int(args.gate and bool(failed))


def measure(space, batch, repeats):
    """Medians of both and of the ratios of neighbours, after one warm-up each."""
    sides = (
        PublishedStep(load_sam(space.shape), space.shape),
        SupersamStep(load_sam(space.shape), space),
    )
    generator = torch.Generator().manual_seed(0)
    side, grid = space.shape.image_size, space.shape.grid
    images = torch.randn(batch, 3, side, side, generator=generator)
    direction = torch.randn(batch, 256, grid, grid, generator=generator)
    rng = np.random.default_rng(0)
    times = []
    for _ in range(repeats + 1):
        subnets = (space.largest(), space.smallest(), space.sample(rng))
        times.append([timed(one, subnets, images, direction) for one in sides])
    published, supersam = zip(*times[1:], strict=True)
    ratios = [a / b for a, b in zip(published, supersam, strict=True)]
    return {
        "published_ms": statistics.median(published) * 1e3,
        "supersam_ms": statistics.median(supersam) * 1e3,
        "ratio": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
    }


def timed(one, *arguments):
    started = time.perf_counter()
    one.step(*arguments)
    return time.perf_counter() - started


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--quick", action="store_const", const=2, dest="repeats")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gate", action="store_true", help="exit with 1 below 2.0 or 1.3")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
