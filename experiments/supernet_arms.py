"""Supernet training with and without prioritization and distillation: same budget, same seeds.

python -m experiments.supernet_arms --start runs/nuclei_vit_t \
    --config configs/train/nuclei_vit_t.yaml --data data/nuclei/val128 --out runs/design/arms_nuclei

Every arm and seed is a training run of launch/train.py from the same weights; a stopped benchmark
goes on. Scores the smallest, the largest and the same 10 random subnets on held-out images. What
comes after `--options` goes to launch/train.py as it is.
"""

import argparse
import json
import statistics
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch

from benchmarks.in_turn import provenance
from experiments.trained import HeldOut, Journal, load_trained, table, train
from supersam.config import SpaceConfig
from supersam.space import build_space

PRIORITIZED = ("--prioritize.when", "start", "--prioritize.dimensions", "mlp")
ARMS = {
    "as trained": (),
    "taylor": (*PRIORITIZED, "--prioritize.score", "taylor"),
    "wanda": (*PRIORITIZED, "--prioritize.score", "wanda"),
    "random": (*PRIORITIZED, "--prioritize.score", "random"),
    "distilled": ("--loss.distill",),
    "taylor, distilled": (*PRIORITIZED, "--prioritize.score", "taylor", "--loss.distill"),
}
SPACE = ("--space.mlp-fractions", "0.125", "0.25", "0.5", "1.0", "--space.width-multiple", "32")


def main():
    args = parse_args()
    torch.set_num_threads(1)
    journal = Journal(args.out / "journal.jsonl")
    rows = dict(journal.known)
    held_out = None
    with ThreadPoolExecutor(args.at_once) as pool:
        trainings = {
            pool.submit(train_arm, args, arm, seed): (arm, seed)
            for seed in range(args.first_seed, args.seeds)
            for arm in args.arms
        }
        for training in as_completed(trainings):
            folder = training.result()
            if held_out is None:
                side = load_trained(folder)[0].space.shape.image_size
                held_out = HeldOut(args.data, side=side, images=args.images)
            rows |= score(args, journal, held_out, folder, *trainings[training])
            report(args, rows)


def train_arm(args, arm, seed):
    """Train to the end, from where it was. Returns the run's folder."""
    folder = args.out / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
    options = ["--config", args.config, "--model.checkpoint", args.start]
    options += ["--data.train", *args.train, "--data.val", *args.data]
    options += ["--data.prompts-per-image", args.prompts]
    options += ["--optim.steps", args.steps, "--optim.lr", args.lr, "--optim.warmup-steps", 20]
    options += ["--optim.seed", seed, "--sandwich.largest-only-steps", 0]
    options += ["--checkpoint.every-steps", args.save_every, "--checkpoint.keep-last", 1]
    options += ["--checkpoint.validate-every-steps", args.steps, "--checkpoint.validate-images", 4]
    options += [*SPACE, *ARMS[arm], "--tasks-per-node", args.tasks, "--engine.threads", 1]
    train(folder, *options, *args.options)
    return folder


def score(args, journal, held_out, folder, arm, seed):
    """The mIoU of the subnets of a trained arm, by key."""
    loaded = None
    found = {}
    for name in ("smallest", "largest", *(f"random {i}" for i in range(args.subnets))):
        key = f"{arm} / {seed} / {name}"

        def compute(name=name):
            nonlocal loaded
            loaded = loaded or load_trained(folder, space_of(folder))[0]
            return held_out.score(loaded, subnets(loaded.space, args.subnets)[name])

        found[key] = journal.get(key, compute)
    return found


def space_of(folder):
    supernet, run = load_trained(folder)
    assert isinstance(run.space, SpaceConfig)
    return build_space(run.space, supernet.space.shape)


def subnets(space, count):
    rng = np.random.default_rng(0)
    named = {f"random {i}": space.sample(rng) for i in range(count)}
    return {"smallest": space.smallest(), "largest": space.largest(), **named}


def report(args, rows):
    """The mean over finished seeds, and paired differences to the first arm."""
    lines = [["arm", "seeds", "smallest", "mean of random subnets", "largest",
              "smallest, paired difference", "random, paired difference"]]  # fmt: skip
    for arm in args.arms:
        seeds = [s for s in range(args.seeds) if f"{arm} / {s} / largest" in rows]
        if not seeds:
            continue
        columns = [values(rows, arm, seeds, what, args.subnets)
                   for what in ("smallest", "random", "largest")]  # fmt: skip
        base = [s for s in seeds if f"{args.arms[0]} / {s} / largest" in rows]
        differences = []
        for what in ("smallest", "random"):
            mine = values(rows, arm, base, what, args.subnets)
            theirs = values(rows, args.arms[0], base, what, args.subnets)
            differences.append([a - b for a, b in zip(mine, theirs, strict=True)])
        cells = [spread(column) for column in columns]
        paired = arm != args.arms[0] and base != []
        signed = [spread(d, sign="+") if paired else "-" for d in differences]
        lines.append([arm, len(seeds), *cells, *signed])
    text = table(lines) + "\n"
    (args.out / "table.md").write_text(text)
    record = {**provenance(), "rows": rows}
    (args.out / "results.json").write_text(json.dumps(record, indent=1))
    print(text, flush=True)


def values(rows, arm, seeds, what, count):
    """A number for each seed."""
    if what != "random":
        return [rows[f"{arm} / {seed} / {what}"]["miou"] for seed in seeds]
    return [
        statistics.mean(rows[f"{arm} / {seed} / random {i}"]["miou"] for i in range(count))
        for seed in seeds
    ]


def spread(numbers, sign=""):
    """The mean, and the numbers' range."""
    mean = statistics.mean(numbers)
    return f"{mean:{sign}.3f} ({min(numbers):{sign}.3f} to {max(numbers):{sign}.3f})"


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=Path, required=True, help="run to start from")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--train", type=Path, nargs="+", default=[Path("data/nuclei/train")])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="held-out shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--first-seed", type=int, default=0, help="others are reported as the journal has them"
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--prompts", type=int, default=4, help="objects of a training image")
    parser.add_argument("--subnets", type=int, default=10, help="random subnets")
    parser.add_argument("--images", type=int, default=150, help="held-out images")
    parser.add_argument("--tasks", type=int, default=1, help="ranks of each training")
    parser.add_argument("--at-once", type=int, default=1, help="trainings side by side")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
