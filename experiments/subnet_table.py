"""mIoU of the largest, the smallest and random subnets of a run, before and after its training.

python -m experiments.subnet_table --run runs/nuclei_vit_t --random 5 --checkpoints initial last

Scores as launch/evaluate.py does, without the boundary IoU; on a GPU many images at a time. Writes
results/subnet_table.json and .md into the run's folder.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.in_turn import provenance
from experiments.trained import HeldOut, table, with_interval
from supersam.runs.folder import validation_folders
from supersam.runs.supernet import load_supernet
from supersam.runs.weights import find_weights, read_run
from supersam.runtime.device import choose_device
from supersam.space import read_space, resolve_shape, subnet_cost

PROMPTS = ("point", "box")


def main():
    """Evaluate, print the table, keep it in the run's folder."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    run = read_run(args.run)
    space = read_space(args.run / "space.yaml", resolve_shape(run.model))
    rng = np.random.default_rng(args.seed)
    subnets = {"largest": space.largest(), "smallest": space.smallest()}
    subnets |= {f"random {i}": space.sample(rng) for i in range(args.random)}
    folders, side = args.data or validation_folders(run), space.shape.image_size
    held_out = {
        prompt: HeldOut(folders, side=side, images=args.images, prompt=prompt, exact=True)
        for prompt in PROMPTS
    }
    rows = []
    for checkpoint in args.checkpoints:
        source = find_weights(run, checkpoint)
        supernet = load_supernet(run, space, source).to(choose_device("auto"))
        for name, spec in subnets.items():
            cost = subnet_cost(spec, space.shape)
            results = {p: images.evaluate(supernet, spec) for p, images in held_out.items()}
            rows.append({
                "checkpoint": checkpoint, "name": name, "subnet": spec.to_dict(),
                "step": source.step, "params_m": cost.params_m, "flops_g": cost.flops_g,
                "prompts": {prompt: result.as_dict() for prompt, result in results.items()},
            })  # fmt: skip
            keep(args, rows)
    print(to_markdown(rows))


def keep(args, rows):
    """Write what is known: a benchmark that is stopped has not measured for nothing."""
    results = args.run / "results"
    results.mkdir(exist_ok=True)
    record = {**provenance(), "rows": rows}
    (results / "subnet_table.json").write_text(json.dumps(record, indent=1))
    (results / "subnet_table.md").write_text(to_markdown(rows))


def to_markdown(rows):
    head = ["subnet", "params M", "GFLOPs", "step"]
    for prompt in PROMPTS:
        head += [f"{prompt}: mIoU [95 %]", "best of 3 by its own estimate", "oracle"]
    lines = [head]
    for row in rows:
        cells = [row["name"], f"{row['params_m']:.2f}", f"{row['flops_g']:.2f}", row["step"]]
        for prompt in PROMPTS:
            result = row["prompts"][prompt]
            cells += [with_interval(result["miou"], result["miou_interval"])]
            cells += [f"{result['miou_predicted_best']:.3f}", f"{result['miou_oracle']:.3f}"]
        lines.append(cells)
    result = rows[0]["prompts"]["box"]
    return table(lines) + (
        f"\n\n{result['num_objects']} objects in {result['num_images']} images; "
        f"filling the box alone scores {result['box_fill_miou']:.3f}.\n"
    )


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="*", help="held-out shards; the run's without")
    parser.add_argument("--random", type=int, default=5, help="random subnets")
    parser.add_argument("--seed", type=int, default=0, help="of the random subnets")
    parser.add_argument("--checkpoints", nargs="+", default=["initial", "last"])
    parser.add_argument("--images", type=int, help="evenly spaced images; all without it")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
