"""mIoU of prefix slices before any supernet training, by the score that ordered the units.

python -m experiments.prefix_miou --run runs/nuclei_vit_t --calibration data/nuclei/train \
    --data data/nuclei/val128 --out runs/design/prefix_nuclei

Each score against the order as trained, its own reverse, and random orders (mean and spread of the
seeds). Goes on where it was stopped; writes OUT.jsonl, OUT.json and OUT.md.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.design_cost import task_loss
from experiments.trained import (
    HeldOut,
    Journal,
    calibration_of,
    load_trained,
    table,
    with_interval,
    write_results,
)
from supersam.design import prioritize_parameters, score_units

SCORES = {
    "magnitude": {"score": "magnitude"},
    "wanda": {"score": "wanda"},
    "taylor (task)": {"score": "taylor", "loss": task_loss},
    "taylor (embedding)": {"score": "taylor"},
    "movement": {"score": "movement", "loss": task_loss},
}


def main():
    args = parse_args()
    torch.set_num_threads(1)
    supernet, run = load_trained(args.run)
    shape = supernet.space.shape
    calibration = calibration_of(
        run, args.calibration, images=args.calibration_images, side=shape.image_size
    )
    held_out = HeldOut(args.data, side=shape.image_size, images=args.images)
    journal = Journal(args.out.with_suffix(".jsonl"))
    state = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    rows, scored = {}, {}
    whole = journal.get("whole", lambda: held_out.score(supernet, supernet.space.largest()))
    for done, fraction in enumerate(args.fractions, start=1):
        for dimension in args.dimensions:
            for name, order in orders(args.seeds).items():
                spec = sliced(supernet.space.largest(), dimension, fraction, shape)
                key = f"{dimension} {fraction:g} {name}"

                def compute(order=order, spec=spec, dimension=dimension):
                    supernet.load_state_dict(state)
                    reorder(supernet, calibration, dimension, scored, **order)
                    return held_out.score(supernet, spec)

                rows[key] = journal.get(key, compute)
        report(args, args.fractions[:done], whole, rows)


def orders(seeds):
    """Name -> arguments of `reorder`."""
    found = {"as trained": {"arguments": None}}
    for name, arguments in SCORES.items():
        found[name] = {"arguments": arguments}
        found[f"{name}, reversed"] = {"arguments": arguments, "reverse": True}
    for seed in range(seeds):
        found[f"random {seed}"] = {"arguments": {"score": "random", "seed": seed}}
    return found


def reorder(supernet, calibration, dimension, scored, *, arguments, reverse=False):
    """Order the trained weights; `scored` keeps what was measured on them."""
    if arguments is None:
        return
    key = tuple(arguments.items())
    if key not in scored:
        scored[key] = score_units(supernet, calibration, **arguments)
    scores = scored[key]
    prioritize_parameters(supernet, scores * (-1 if reverse else 1), dimensions=(dimension,))


def sliced(full, dimension, fraction, shape):
    """The whole encoder with one dimension at a share of its width in every layer."""
    if dimension == "mlp":
        return replace(full, mlp_widths=(round(fraction * shape.mlp_width),) * shape.depth)
    if dimension == "heads":
        return replace(full, heads=(max(1, round(fraction * shape.num_heads)),) * shape.depth)
    return replace(full, embed_dim=round(fraction * shape.embed_dim))


def report(args, fractions, whole, rows):
    parts = []
    for dimension in args.dimensions:
        head = ["order", *(f"{fraction:.0%} of {dimension}" for fraction in fractions)]
        lines = [head]
        for name in ("as trained", *SCORES, *(f"{n}, reversed" for n in SCORES)):
            cells = [rows[f"{dimension} {f:g} {name}"] for f in fractions]
            lines.append([name, *(with_interval(c["miou"], c["interval"]) for c in cells)])
        random = []
        for fraction in fractions:
            found = [
                rows[f"{dimension} {fraction:g} random {s}"]["miou"] for s in range(args.seeds)
            ]
            random.append(f"{statistics.mean(found):.3f} ± {statistics.stdev(found):.3f} "
                          f"({min(found):.3f} to {max(found):.3f})")  # fmt: skip
        lines.append([f"random, {args.seeds} seeds: mean ± standard deviation (range)", *random])
        parts.append(table(lines))
    note = (
        f"Whole model: {whole['miou']:.3f}; {whole['objects']} objects in {whole['images']} images."
    )
    write_results(args.out, [*parts, note], whole=whole, rows=rows)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="held-out shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dimensions", nargs="+", default=["mlp"])
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--calibration-images", type=int, default=64)
    parser.add_argument("--images", type=int, default=150, help="held-out images")
    parser.add_argument("--seeds", type=int, default=5, help="random orders")
    return parser.parse_args()


if __name__ == "__main__":
    main()
