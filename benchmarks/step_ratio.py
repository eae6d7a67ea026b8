"""A sandwich step of SuperSAM against the published way, and against plain segment-anything.

python -m benchmarks.step_ratio [--repeats 8] [--quick] [--threads 2] [--clock wall] [--gate]

`published`: both train the largest, the smallest and a random subnet of the same small model (192
channels, 12 layers, 3 heads, 256 px, windows of 8) on the same images; benchmarks/published.py says
what the stand-in does. First the image encoder alone, then the whole step: 2 images, 8 prompts
each, masks decoded from run lengths, loss, optimizer.
`elastic`: what elasticity costs. The largest subnet's step of the encoder against the same step of
segment-anything's own encoder, and a sandwich step against a step of each of its subnets, taken out
as plain modules.

Sides run in turn. Prints a table and one line of JSON. With --gate, exits with 1 where a whole step
is below 4.0x, the encoder's below 2.0x at batch 1 or 1.3x at batch 4, or elasticity costs over 5 %.
"""

import argparse
import sys
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.in_turn import CLOCKS, compare, print_ratios, print_record, time_in_turn
from benchmarks.published import LR, PublishedStep
from supersam.config import LossConfig, SpaceConfig
from supersam.data.rle import decode_runs
from supersam.data.sample import Batch
from supersam.data.transforms import Crop, Geometry, cut_patch
from supersam.model import SamSupernet, extract_subnet, load_sam
from supersam.model.losses import subnet_loss
from supersam.runtime.memory import keep_freed_memory
from supersam.space import SHAPES, build_space

GATES = {
    "encoder, batch 1": 2.0,
    "encoder, batch 4": 1.3,
    "whole step, 2 images x 8 prompts": 4.0,
}
ELASTICITY = 1.05
ORIGINAL_PX = 384


@dataclass
class Scene:
    """One image with its objects, as a reader of the shards gets it, and its prompts."""

    image: torch.Tensor
    original_size: tuple[int, int]
    points: torch.Tensor
    labels: torch.Tensor
    rles: list


class SupersamStep:
    """Views of one set of weights, gradients added up, one step of one optimizer."""

    def __init__(self, sam, space):
        self.supernet = SamSupernet(sam, space)
        self.optimizer = torch.optim.AdamW(self.supernet.parameters(), lr=LR)

    def train_encoder(self, subnets, images, direction):
        self.optimizer.zero_grad(set_to_none=True)
        for spec in subnets:
            (self.supernet.image_encoder(images, spec) * direction).sum().backward()
        self.optimizer.step()

    def train(self, subnets, scenes):
        """Decodes each mask once, to the loss's resolution, as the loader does."""
        self.optimizer.zero_grad(set_to_none=True)
        batch = batch_of(scenes, self.supernet.space.shape.image_size)
        for spec in subnets:
            with self.supernet.activated(spec):
                prediction = self.supernet(batch.images, batch.sizes, batch.points, batch.labels)
            subnet_loss(prediction, batch, LossConfig(), teacher=None).total.backward()
        self.optimizer.step()


class PlainStep:
    """Plain training of one encoder, which is all there is."""

    def __init__(self, encoder):
        self.encoder = encoder.train().requires_grad_(True)
        self.optimizer = torch.optim.AdamW(encoder.parameters(), lr=LR)

    def train_encoder(self, images, direction):
        self.optimizer.zero_grad(set_to_none=True)
        (self.encoder(images) * direction).sum().backward()
        self.optimizer.step()


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    space = build_space(SpaceConfig(), SHAPES["vit_t"])
    published = {f"encoder, batch {b}": encoder_ratio(space, b, args) for b in (1, 4)}
    published["whole step, 2 images x 8 prompts"] = whole_ratio(space, args)
    elastic = elasticity(space, args)
    print_ratios(published, ("published", "supersam"))
    print_ratios(elastic, ("supersam", "plain"))
    print_record("step_ratio", {"published": published, "elastic": elastic})
    failed = [name for name, gate in GATES.items() if published[name]["ratio"] < gate]
    failed += [name for name, row in elastic.items() if row["ratio"] > ELASTICITY]
    if args.gate and failed:
        print(f"missed: {'; '.join(failed)}", file=sys.stderr)
    return int(args.gate and bool(failed))


def encoder_ratio(space, batch, args):
    """The published encoder step against ours; each round has another random subnet."""
    old, new = both_ways(space)
    images, direction = random_images(space.shape, batch)
    draw = draws(space)
    sides = {
        "old": lambda: old.train_encoder(draw(0), images, direction),
        "new": lambda: new.train_encoder(draw(1), images, direction),
    }
    seconds = time_in_turn(sides, args.repeats, clock=args.clock)
    return compare(seconds["old"], seconds["new"])


def whole_ratio(space, args):
    """The published whole step against ours, on 2 images with 8 prompts each."""
    old, new = both_ways(space)
    scenes = [random_scene(space.shape.image_size, seed=i) for i in range(2)]
    draw = draws(space)
    sides = {
        "old": lambda: old.train(draw(0), scenes),
        "new": lambda: new.train(draw(1), scenes),
    }
    seconds = time_in_turn(sides, args.repeats, clock=args.clock)
    return compare(seconds["old"], seconds["new"])


def elasticity(space, args):
    """Elastic steps against plain ones: the largest subnet's, and a sandwich's. Batch 4."""
    images, direction = random_images(space.shape, 4)
    subnets = (space.largest(), space.smallest(), space.sample(np.random.default_rng(0)))
    elastic = SupersamStep(load_sam(space.shape), space)
    plain = [PlainStep(load_sam(space.shape).image_encoder)]
    plain += [PlainStep(extract_subnet(elastic.supernet, s).image_encoder) for s in subnets[1:]]
    sides = {
        "elastic": lambda: elastic.train_encoder(subnets[:1], images, direction),
        "plain": lambda: plain[0].train_encoder(images, direction),
        "sandwich": lambda: elastic.train_encoder(subnets, images, direction),
        "plain sandwich": lambda: [one.train_encoder(images, direction) for one in plain],
    }
    seconds = time_in_turn(sides, args.repeats, clock=args.clock)
    return {
        "largest subnet": compare(seconds["elastic"], seconds["plain"]),
        "sandwich, sum of plain steps": compare(seconds["sandwich"], seconds["plain sandwich"]),
    }


def both_ways(space):
    return PublishedStep(load_sam(space.shape), space.shape), SupersamStep(
        load_sam(space.shape), space
    )


def draws(space):
    """The same random subnets for both sides, between the largest and the smallest."""
    rngs = [np.random.default_rng(0), np.random.default_rng(0)]

    def draw(side):
        return space.largest(), space.smallest(), space.sample(rngs[side])

    return draw


def random_images(shape, batch):
    """Images and a random direction: a mean of squares after the neck's norm has no gradient."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, shape.image_size, shape.image_size, generator=generator)
    return images, torch.randn(batch, 256, shape.grid, shape.grid, generator=generator)


def random_scene(side, *, prompts=8, seed=0):
    """A noise image with an ellipse for each prompt, at 1.5 times the model's input."""
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:ORIGINAL_PX, :ORIGINAL_PX]
    centres = rng.uniform(0.25, 0.75, (prompts, 2)) * ORIGINAL_PX
    radii = rng.uniform(0.05, 0.2, (prompts, 2)) * ORIGINAL_PX
    rles = []
    for (y, x), (high, wide) in zip(centres, radii, strict=True):
        inside = ((rows - y) / high) ** 2 + ((columns - x) / wide) ** 2 < 1
        rles.append(coco_mask.encode(np.asfortranarray(inside.astype(np.uint8))))
    points = torch.zeros(prompts, 2, 2)
    points[:, 0] = torch.from_numpy(centres[:, ::-1] * side / ORIGINAL_PX)
    image = torch.from_numpy(rng.integers(0, 256, (3, side, side), dtype=np.uint8))
    labels = torch.tensor([1, -1]).expand(prompts, 2)
    return Scene(image, (ORIGINAL_PX, ORIGINAL_PX), points, labels, rles)


def batch_of(scenes, side):
    """What the loader makes of the scenes."""
    whole = Crop(0, 0, ORIGINAL_PX, ORIGINAL_PX)
    geometry = Geometry(whole, side)
    masks = []
    for scene in scenes:
        runs = [decode_runs(rle["counts"], ORIGINAL_PX, ORIGINAL_PX) for rle in scene.rles]
        masks.append(np.stack([geometry.map_mask(cut_patch(r, whole)) for r in runs]))
    return Batch(
        images=torch.stack([scene.image for scene in scenes]),
        sizes=torch.full((len(scenes), 2), side),
        points=torch.stack([scene.points for scene in scenes]),
        labels=torch.stack([scene.labels for scene in scenes]),
        masks=torch.from_numpy(np.stack(masks)),
        valid=torch.ones(len(scenes), len(scenes[0].points), dtype=torch.bool),
        sample_ids=torch.arange(len(scenes)),
    )


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--quick", action="store_const", const=2, dest="repeats")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu on a busy machine")
    parser.add_argument("--gate", action="store_true", help="exit with 1 where a gate is missed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
