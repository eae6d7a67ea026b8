"""mIoU of a trained model at other input sizes, positions interpolated, and after a fine-tuning.

python -m experiments.input_size --run runs/nuclei_vit_t --data data/nuclei/val --sizes 192 320 \
    [--finetune-steps 100 --lr 1e-4]

Scores of the largest subnet, less those at its own size object by object. A fine-tuning is a run
with the settings of `--run`, in a folder of its own beside it. Prints a line for each size and,
last, one line of JSON.
"""

import argparse
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.in_turn import ROOT, print_record
from supersam.data.shards import ShardReader
from supersam.evaluation import SubnetPredictor
from supersam.evaluation.evaluator import score_prompts
from supersam.evaluation.result import subtract
from supersam.runs.supernet import load_model
from supersam.runs.weights import read_run
from supersam.space import resolve_shape, subnet_cost

PROMPTS = ("point", "box")


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    own = resolve_shape(read_run(args.run).model).image_size
    rows, reference = {}, None
    for size in (own, *(each for each in args.sizes if each != own)):
        reference = note(rows, f"{size} px", score(args, args.run, size), reference)
    for size in args.sizes if args.finetune_steps > 0 else ():
        tuned = finetune(args, size)
        name = f"{size} px, {args.finetune_steps} steps"
        note(rows, name, score(args, tuned, size), reference)
    print_record("input_size", rows)
    return 0


def score(args, folder, size):
    """Results by prompt of the largest subnet at `size`, and its cost."""
    supernet, _ = load_model(folder, image_size=size)
    largest = supernet.space.largest()
    scored = score_prompts(
        [SubnetPredictor(supernet, largest, keep_embedding=True)],
        [ShardReader(path) for path in args.data],
        PROMPTS,
        side=size,
        limit=args.images,
        workers=0,
        priors=None,
    )
    results = {prompt: found[0] for prompt, found in scored.items()}
    return results, subnet_cost(largest, supernet.space.shape)


def note(rows, name, scored, reference):
    """Print a line, keep the row; returns the results that the others are compared with."""
    results, cost = scored
    row = {"flops_g": cost.flops_g}
    for prompt, result in results.items():
        row[prompt] = {"miou": result.miou, "interval": result.miou_interval}
        if reference is not None:
            row[prompt]["less_own"] = asdict(subtract(result, reference[prompt]))
    rows[name] = row
    print(f"{name:24}{cost.flops_g:8.2f} GFLOPs", *map(words, results, row_of(row)), flush=True)
    return results if reference is None else reference


def row_of(row):
    return [row[prompt] for prompt in PROMPTS]


def words(prompt, found):
    less = found.get("less_own")
    change = "" if less is None else f" ({less['mean']:+.4f}, {less['interval']})"
    return f"  {prompt} {found['miou']:.4f}{change}"


def finetune(args, size):
    """Train a run of `size` from the weights of `--run`, or find it trained; returns its folder."""
    folder = args.run.with_name(f"{args.run.name}-{size}px-{args.finetune_steps}")
    steps = str(args.finetune_steps)
    command = [
        *(sys.executable, "launch/train.py", "--config", args.run.absolute() / "run.yaml"),
        *("--run", folder.absolute(), "--name", folder.name),
        *("--model.checkpoint", args.run.absolute(), "--model.image-size", size),
        *("--optim.steps", steps, "--optim.lr", args.lr, "--optim.warmup-steps", "5"),
        *("--sandwich.largest-only-steps", steps, "--checkpoint.validate-every-steps", steps),
        *("--checkpoint.overlay-images", 0, "--engine.threads", args.threads),
    ]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, stdout=sys.stderr)
    return folder


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", required=True)
    parser.add_argument("--images", type=int, help="evaluate on this many, spread evenly")
    parser.add_argument("--finetune-steps", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
