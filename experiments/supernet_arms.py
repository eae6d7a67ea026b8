"""How a supernet is best trained: arms that differ in one choice, same start, steps and seeds.

python -m experiments.supernet_arms --start runs/first --config configs/train/nuclei_vit_t.yaml \
    --train data/nuclei/train --data data/nuclei/val --out runs/arms --arms sandwich growing

Every arm and seed is a run of launch/train.py: the sandwich of `--steps` from the weights of
`--start`. A stopped experiment goes on. Scores the smallest, the largest and the same random
subnets on held-out images with a point, object by object: differences from the first arm are
paired, averaged over seeds, with intervals that resample source images. What comes after
`--options` goes to launch/train.py as it is.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch

from benchmarks.in_turn import provenance
from experiments.trained import HeldOut, load_trained, table, train, with_interval
from supersam.config.files import SPACE_FILE
from supersam.evaluation import mean_interval, paired_difference
from supersam.runs.weights import read_run
from supersam.space import read_space, resolve_shape, sample_by_size

PRIORITIZED = ("--prioritize.when", "start", "--prioritize.dimensions", "mlp")
ARMS = {
    "sandwich": (),
    "distilled": ("--loss.distill",),
    "by genes": ("--sandwich.sampling", "genes"),
    "by size": ("--sandwich.sampling", "size"),
    "no random": ("--sandwich.random-subnets", "0"),
    "two random": ("--sandwich.random-subnets", "2"),
    "growing": ("--sandwich.growing-steps", "HALF"),
    "clip 1": ("--optim.clip-norm", "1"),
    "clip 5": ("--optim.clip-norm", "5"),
    "average": ("--optim.ema", "0.97"),
    "taylor": (*PRIORITIZED, "--prioritize.score", "taylor"),
    "wanda": (*PRIORITIZED, "--prioritize.score", "wanda"),
    "random": (*PRIORITIZED, "--prioritize.score", "random"),
}
"""Flags of each; HALF is half of the steps."""
SUBNETS = ("smallest", "random", "largest")


def main():
    args = parse_args()
    torch.set_num_threads(1)
    held_out = None
    with ThreadPoolExecutor(args.at_once) as pool:
        trainings = {
            pool.submit(train_arm, args, arm, seed): (arm, seed)
            for seed in range(args.seeds)
            for arm in args.arms
        }
        for training in as_completed(trainings):
            folder, (arm, seed) = training.result(), trainings[training]
            if not scores_file(args, arm, seed).is_file():
                held_out = held_out or held_out_of(args, folder)
                score(args, held_out, folder, arm, seed)
            report(args)


def train_arm(args, arm, seed):
    """Train to the end, from where it was. Returns the run's folder."""
    folder = args.out / f"{arm.replace(' ', '-')}-{seed}"
    options = ["--config", args.config, "--model.checkpoint", args.start]
    options += ["--data.train", *args.train, "--data.val", *args.data]
    options += ["--optim.steps", args.steps, "--optim.lr", args.lr, "--optim.seed", seed]
    options += ["--sandwich.largest-only-steps", 0, "--engine.threads", 1]
    options += ["--checkpoint.every-steps", args.save_every, "--checkpoint.keep-last", 1]
    options += ["--checkpoint.validate-every-steps", args.steps, "--checkpoint.validate-images", 4]
    varied = [str(args.steps // 2) if word == "HALF" else word for word in ARMS[arm]]
    train(folder, *options, *args.options, *varied)
    return folder


def held_out_of(args, folder):
    side = resolve_shape(read_run(folder).model).image_size
    return HeldOut(args.data, side=side, images=args.images, prompt="point")


def score(args, held_out, folder, arm, seed):
    """Keep the IoU of each object, (M,), by subnet; of the random subnets their mean."""
    space = read_space(folder / SPACE_FILE, resolve_shape(read_run(folder).model))
    supernet, _ = load_trained(folder, space)
    rng = np.random.default_rng(0)
    drawn = [sample_by_size(space, rng) for _ in range(args.subnets)]
    named = {"smallest": [space.smallest()], "random": drawn, "largest": [space.largest()]}
    kept = {}
    for name, specs in named.items():
        results = [held_out.evaluate(supernet, spec).objects for spec in specs]
        kept[name] = np.mean([objects.iou_single for objects in results], axis=0)
        kept["group"] = results[0].group
    path = scores_file(args, arm, seed)
    np.savez(path.with_suffix(".tmp.npz"), **kept)
    path.with_suffix(".tmp.npz").replace(path)


def scores_file(args, arm, seed):
    return args.out / f"scores-{arm.replace(' ', '-')}-{seed}.npz"


def report(args):
    """Print the means over the seeds that are there, and differences from the first arm."""
    rows, record = [["arm", "seeds", *SUBNETS]], {}
    for arm in args.arms:
        seeds = [s for s in range(args.seeds) if scores_file(args, arm, s).is_file()]
        both = [s for s in seeds if scores_file(args, args.arms[0], s).is_file()]
        if not seeds:
            continue
        cells, record[arm] = [], {"seeds": seeds}
        for name in SUBNETS:
            values, group = mean_of(args, arm, seeds, name)
            found = {"miou": values.mean(), "interval": mean_interval(values, group)}
            text = with_interval(found["miou"], found["interval"])
            if arm != args.arms[0] and both:
                lost = paired_difference(
                    mean_of(args, arm, both, name)[0],
                    mean_of(args, args.arms[0], both, name)[0],
                    group,
                )
                low, high = lost.interval
                text = f"{lost.mean:+.3f} [{low:+.3f}, {high:+.3f}]"
                found |= {"difference": lost.mean, "difference_interval": lost.interval}
            cells.append(text)
            record[arm][name] = found
        rows.append([arm, len(seeds), *cells])
    text = table(rows) + "\n"
    (args.out / "table.md").write_text(text)
    (args.out / "results.json").write_text(json.dumps({**provenance(), "arms": record}, indent=1))
    print(text, flush=True)


def mean_of(args, arm, seeds, name):
    """IoU of each object, the mean over seeds, and the objects' groups."""
    tables = [np.load(scores_file(args, arm, seed), allow_pickle=False) for seed in seeds]
    return np.mean([t[name] for t in tables], axis=0), tables[0]["group"]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=Path, required=True, help="weights: a run or a file")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--train", type=Path, nargs="+", default=[Path("data/nuclei/train")])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="held-out shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--subnets", type=int, default=4, help="random subnets, spread over sizes")
    parser.add_argument("--images", type=int, default=150, help="held-out images")
    parser.add_argument("--at-once", type=int, default=1, help="trainings side by side")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
