"""Corrections by clicks after a fine-tuning with single prompts, and after one with --data.clicks.

python -m experiments.clicks --config configs/train/vit_b.yaml --start sam_vit_b_01ec64.pth \
    --train data/mine/train --data data/mine/val --out runs/clicks

Each arm and seed is a sandwich of launch/train.py from the weights of `--start`; a stopped
experiment goes on. Without a start, one is trained first, with corrections, from random weights: a
model that has something to lose. Scores the largest and the smallest subnet after each click,
before and after, with differences object by object. What comes after `--options` goes to
launch/train.py as it is.
"""

import argparse
from pathlib import Path

import torch

from experiments.trained import HeldOut, table, train, with_interval, write_results
from supersam.config.files import SPACE_FILE
from supersam.evaluation import SubnetPredictor, paired_difference
from supersam.evaluation.clicks import ClickScorer, subtract_clicks
from supersam.runs.supernet import load_model
from supersam.runs.weights import read_run
from supersam.space import read_space, resolve_shape

BEFORE, SINGLE, CORRECTED = "before", "single prompts", "corrections"


def main():
    args = parse_args()
    torch.set_num_threads(1)
    start = args.start or args.out / "start"
    if args.start is None:
        train_arm(args, start, args.start_steps, args.clicks, seed=0)
    scored = {}
    for seed in range(args.seeds):
        for arm, clicks in ((SINGLE, 0), (CORRECTED, args.clicks)):
            folder = args.out / f"{arm.replace(' ', '-')}-{seed}"
            train_arm(args, folder, args.steps, clicks, seed=seed, start=start)
            scored |= {(seed, arm, name): r for name, r in score(args, folder, folder).items()}
    first = args.out / f"{SINGLE.replace(' ', '-')}-0"
    scored |= {(0, BEFORE, name): r for name, r in score(args, start, first).items()}
    report(args, scored)


def train_arm(args, folder, steps, clicks, *, seed, start=None):
    """Train to the end, from where it was."""
    options = ["--config", args.config, "--data.train", *args.train, "--data.val", *args.data]
    if start is None:
        options += ["--model.checkpoint", "None"]
    else:
        options += ["--model.checkpoint", start, "--sandwich.largest-only-steps", 0]
    options += ["--data.clicks", clicks, "--optim.steps", steps, "--optim.seed", seed]
    options += ["--checkpoint.keep-last", 1, "--checkpoint.validate-every-steps", steps]
    options += ["--checkpoint.validate-images", 4, "--engine.threads", 1]
    train(folder, *options, *args.options)


def score(args, folder, space_from):
    """By subnet, what clicks give with the weights of `folder`; the space is another run's."""
    space = read_space(space_from / SPACE_FILE, resolve_shape(read_run(space_from).model))
    supernet, _ = load_model(folder, image_size=space.shape.image_size)
    held_out = HeldOut(args.data, side=space.shape.image_size, images=args.images)
    named = {"largest": space.largest(), "smallest": space.smallest()}
    return {name: click(supernet, spec, held_out, args) for name, spec in named.items()}


def click(supernet, spec, held_out, args):
    """What clicks give with one subnet."""
    scorer = ClickScorer(
        SubnetPredictor(supernet, spec, keep_embedding=True), clicks=args.score_clicks
    )
    for _ in scorer.watch(held_out.images):
        pass
    return scorer.result()


def report(args, scored):
    """Two tables: scores of each arm, and corrections less single prompts."""
    shown = sorted({1, 3, 5, args.score_clicks} & set(range(1, args.score_clicks + 1)))
    after = [f"after {n}" for n in shown]
    rows = [["subnet", "arm", "seed", *after, "gained by clicks", "clicks to 0.8", "never"]]
    less = [["subnet", "seed", *after, "gained by clicks"]]
    for name in ("largest", "smallest"):
        for (seed, arm, which), result in sorted(scored.items()):
            if which != name:
                continue
            cells = [with_interval(result.miou[n - 1], result.miou_intervals[n - 1]) for n in shown]
            gain = with_interval(result.gain.mean, result.gain.interval)
            never = f"{result.num_unreached} of {result.num_objects}"
            rows.append([name, arm, seed, *cells, gain, f"{result.clicks_to_goal:.2f}", never])
        for seed in range(args.seeds):
            pair = (scored[seed, CORRECTED, name], scored[seed, SINGLE, name])
            found = subtract_clicks(*pair).miou
            cells = [with_interval(found[n - 1].mean, found[n - 1].interval) for n in shown]
            more = gain_difference(*pair)
            less.append([name, seed, *cells, with_interval(more.mean, more.interval)])
    record = {" / ".join(map(str, key)): result.as_dict() for key, result in scored.items()}
    parts = [table(rows), "Corrections less single prompts, object by object:", table(less)]
    write_results(args.out / "results", parts, rows=record)


def gain_difference(first, second):
    """What clicks gain on each object: `first` less `second`."""
    gains = [r.objects.ious[:, -1] - r.objects.ious[:, 0] for r in (first, second)]
    return paired_difference(*gains, first.objects.group)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights that all arms begin with")
    parser.add_argument("--train", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="held-out shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200, help="of each arm")
    parser.add_argument(
        "--start-steps", type=int, default=600, help="of a start from random weights"
    )
    parser.add_argument("--clicks", type=int, default=3, help="corrections in training")
    parser.add_argument("--score-clicks", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, default=150, help="held-out images")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
