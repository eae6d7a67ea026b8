"""FLOPs and latency of smaller inputs beside narrower and shallower subnets, on one thread.

python -m experiments.resolutions --model vit_s --image-size 320 --resolutions 192 256
python -m experiments.resolutions --run RUN --data SHARDS

With a run whose space has resolutions, the mIoU of each line with a point on held-out shards, and
its paired difference from the first line, source images resampled; without one, weights are random
and nothing is said of accuracy. Each line changes one dimension of the whole model,
or two. A latency is that of the extracted model for one image with one prompt; all are timed in
turn, by the CPU clock, which other work on the machine disturbs less. Prints a table and, last, one
line of JSON.
"""

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.in_turn import compare, print_record, time_in_turn
from experiments.trained import HeldOut, load_trained
from supersam.config.files import SPACE_FILE
from supersam.data.sample import LABEL_FOREGROUND, LABEL_PAD
from supersam.evaluation import SamModelPredictor
from supersam.evaluation.result import subtract
from supersam.model import SamSupernet, extract_subnet, load_sam
from supersam.runs.weights import read_run
from supersam.space import SHAPES, read_space, resolve_shape, subnet_cost, wide_space


def main():
    args = parse_args()
    torch.set_num_threads(1)
    supernet, space = build(args)
    shape = space.shape
    subnets = alternatives(space)
    timed = subnets if args.rounds > 0 else {}
    calls = {name: call_of(supernet, spec) for name, spec in timed.items()}
    seconds = time_in_turn(calls, args.rounds, clock="cpu")
    whole = next(iter(subnets))
    rows = {}
    for name, spec in subnets.items():
        cost = subnet_cost(spec, shape)
        rows[name] = {"params_m": cost.params_m, "flops_g": cost.flops_g}
        if calls:
            found = compare(seconds[name], seconds[whole])
            rows[name] |= {"ms": statistics.median(seconds[name]) * 1e3}
            rows[name] |= {each: found[each] for each in ("ratio", "min", "max")}
    if args.run is not None:
        score(args, supernet, subnets, rows)
    print_rows(rows, whole)
    print_record("resolutions", rows)
    return 0


def build(args):
    """A supernet and its space: those of a run, or random weights."""
    if args.run is not None:
        space = read_space(args.run / SPACE_FILE, resolve_shape(read_run(args.run).model))
        if not smaller_inputs(space):
            raise SystemExit(f"error: the space of {args.run} has one resolution only")
        return load_trained(args.run, space)[0], space
    shape = replace(SHAPES[args.model], image_size=args.image_size)
    space = replace(wide_space(shape), resolutions=(*sorted(args.resolutions), shape.image_size))
    return SamSupernet(load_sam(shape), space), space


def score(args, supernet, subnets, rows):
    """Add the mIoU of each subnet with a point, and how far it is from the first one's."""
    side = supernet.space.shape.image_size
    held_out = HeldOut(args.data, side=side, images=args.images, prompt="point")
    first = None
    for name, spec in subnets.items():
        found = held_out.evaluate(supernet, spec)
        first = first or found
        rows[name] |= {"miou": found.miou, "interval": found.miou_interval}
        if found is not first:
            lost = subtract(found, first)
            rows[name] |= {"difference": lost.mean, "difference_interval": lost.interval}


def alternatives(space):
    """Subnets of the space by name, the whole model first."""
    whole, shape = space.largest(), space.shape
    smaller = smaller_inputs(space)
    shallow = whole.without(*space.removable)
    half, quarter = (tuple(width // part for width in whole.mlp_widths) for part in (2, 4))
    named = {
        f"whole, {shape.image_size} px": whole,
        **{f"{px} px": replace(whole, resolution=px) for px in reversed(smaller)},
        "half of each MLP": replace(whole, mlp_widths=half),
        "quarter of each MLP": replace(whole, mlp_widths=quarter),
        "half of the heads": replace(whole, heads=tuple(n // 2 for n in whole.heads)),
        "half of the channels": replace(whole, embed_dim=shape.embed_dim // 2),
        f"{len(shallow.layers)} of {shape.depth} layers": shallow,
        **{
            f"{len(shallow.layers)} of {shape.depth} layers, {px} px": replace(
                shallow, resolution=px
            )
            for px in reversed(smaller)
        },
        f"smallest, {shape.image_size} px": replace(space.smallest(), resolution=None),
        f"smallest, {smaller[0]} px": space.smallest(),
    }
    return {name: spec for name, spec in named.items() if space.contains(spec)}


def smaller_inputs(space):
    """The resolutions below the whole model's own."""
    return [px for px in space.resolutions if px < space.shape.image_size]


def call_of(supernet, spec):
    """One forward pass of the extracted model: one image, one prompt."""
    side = supernet.space.input_px(spec)
    predictor = SamModelPredictor(extract_subnet(supernet, spec))
    image = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    points = torch.full((1, 1, 2, 2), side / 2)
    labels = torch.tensor([[[LABEL_FOREGROUND, LABEL_PAD]]])
    return lambda: predictor.predict(image, torch.tensor([[side, side]]), points, labels)


def print_rows(rows, whole):
    head = f"{'':30}{'M parameters':>14}{'GFLOPs':>9}{'share':>7}{'ms':>9}{'share':>7}{'range':>14}"
    print(head + ("  mIoU, difference [95 %]" if "miou" in rows[whole] else ""))
    for name, row in rows.items():
        share = row["flops_g"] / rows[whole]["flops_g"]
        line = f"{name:30}{row['params_m']:14.2f}{row['flops_g']:9.2f}{share:7.2f}"
        if "ms" in row:
            line += f"{row['ms']:9.0f}{row['ratio']:7.2f}{row['min']:7.2f} to {row['max']:.2f}"
        if "miou" in row:
            line += f"{row['miou']:7.3f}"
        if "difference" in row:
            low, high = row["difference_interval"]
            line += f"  {row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(line)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="vit_s")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[192, 256])
    parser.add_argument("--rounds", type=int, default=7, help="0 counts FLOPs alone")
    parser.add_argument("--run", type=Path, help="trained with --space.resolutions")
    parser.add_argument("--data", type=Path, nargs="+", help="held-out shards, with --run")
    parser.add_argument("--images", type=int, help="that many of them, spread evenly")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
