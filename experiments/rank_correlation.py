"""Does the supernet rank subnets as they rank after training of their own?

python -m experiments.rank_correlation --run runs/nuclei_supernet --data data/nuclei/val \
    --subnets 8 --steps 100 --lr 2e-5

Trains the largest, the smallest and random subnets alone with launch/train.py, from the supernet's
weights, and prints Kendall's tau between their mIoU in the supernet and after it, with its 95 %
bootstrap interval over subnets. Goes on where it was stopped. Writes results/rank_correlation/ into
the run's folder. What comes after `--options` goes to launch/train.py as it is.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau

from benchmarks.in_turn import provenance
from experiments.trained import HeldOut, Journal, load_trained, table, train, with_interval
from supersam.runs.folder import validation_folders
from supersam.runs.weights import read_run
from supersam.space import read_space, resolve_shape, subnet_cost

DRAWS = 2000


def main():
    """Train, compare, print, keep."""
    args = parse_args()
    torch.set_num_threads(1)
    run = read_run(args.run)
    space = read_space(args.run / "space.yaml", resolve_shape(run.model))
    folder = args.run / "results" / "rank_correlation"
    journal = Journal(folder / f"journal-{args.steps}-{args.lr:g}-{args.prompt}.jsonl")
    subnets = drawn(space, args)
    rows = {}
    with ThreadPoolExecutor(args.at_once) as pool:
        trainings = {
            pool.submit(train_alone, args, folder, spec): name for name, spec in subnets.items()
        }
        held_out = HeldOut(
            args.data or validation_folders(run),
            side=space.shape.image_size,
            images=args.images,
            prompt=args.prompt,
        )
        supernet = load_trained(args.run, space)[0]
        before = {
            name: journal.get(f"{name} before", lambda s=spec: held_out.score(supernet, s))
            for name, spec in subnets.items()
        }
        for training in as_completed(trainings):
            name = trainings[training]
            spec, tuned = subnets[name], training.result()
            after = journal.get(
                f"{name} after",
                lambda s=spec, f=tuned: held_out.score(load_trained(f, space)[0], s),
            )
            cost = subnet_cost(spec, space.shape)
            rows[name] = {"name": name, "params_m": cost.params_m, "flops_g": cost.flops_g,
                          "supernet": before[name], "tuned": after}  # fmt: skip
            if len(rows) > 2:
                report(args, folder, [rows[name] for name in subnets if name in rows])


def drawn(space, args):
    """The largest, the smallest, and of ten times as many random ones those spread in size."""
    rng = np.random.default_rng(args.seed)
    pool = [space.sample(rng) for _ in range(10 * args.subnets)]
    pool.sort(key=lambda spec: subnet_cost(spec, space.shape).flops_g)
    count = args.subnets - 2
    chosen = [pool[round((i + 0.5) * len(pool) / count)] for i in range(count)]
    named = {f"random {i}": spec for i, spec in enumerate(chosen)}
    return {"largest": space.largest(), "smallest": space.smallest(), **named}


def train_alone(args, folder, spec):
    """Train one subnet alone, from the supernet's weights. Returns the run's folder."""
    path = folder / f"{spec.key()}.json"
    spec.write(path)
    out = folder / f"{spec.key()}-steps-{args.steps}-lr-{args.lr:g}"
    options = ["--config", args.run / "run.yaml", "--model.checkpoint", args.run]
    options += ["--space.file", args.run / "space.yaml", "--sandwich.only", path]
    options += ["--sandwich.largest-only-steps", 0, "--prioritize.when", "off"]
    options += ["--optim.steps", args.steps, "--optim.lr", args.lr]
    options += ["--optim.warmup-steps", args.steps // 10]
    options += ["--checkpoint.every-steps", args.steps, "--checkpoint.validate-images", 4]
    options += ["--checkpoint.validate-every-steps", args.steps, "--engine.threads", 1]
    train(out, *options, *args.options)
    return out


def report(args, folder, rows):
    rng = np.random.default_rng(args.seed)
    result = {**provenance(), "steps": args.steps, "lr": args.lr, "prompt": args.prompt,
              "rows": rows, **correlation(rows, rng)}  # fmt: skip
    (folder / "rank_correlation.json").write_text(json.dumps(result, indent=1))
    text = to_markdown(result)
    (folder / "rank_correlation.md").write_text(text)
    print(text, flush=True)


def correlation(rows, rng):
    """Kendall's tau of supernet and tuned mIoU, and of size and tuned mIoU as the baseline."""
    supernet, tuned = (np.array([row[n]["miou"] for row in rows]) for n in ("supernet", "tuned"))
    flops = np.array([row["flops_g"] for row in rows])
    tau = kendalltau(supernet, tuned)
    draws = rng.integers(len(rows), size=(DRAWS, len(rows)))
    taus = [kendalltau(supernet[d], tuned[d]).statistic for d in draws]
    return {
        "kendall_tau": float(tau.statistic),
        "p_value": float(tau.pvalue),
        "interval": [float(q) for q in np.nanquantile(taus, (0.025, 0.975))],
        "kendall_tau_of_flops": float(kendalltau(flops, tuned).statistic),
    }


def to_markdown(result):
    lines = [["subnet", "params M", "GFLOPs", "supernet mIoU [95 %]", "tuned alone mIoU [95 %]"]]
    for row in result["rows"]:
        cells = [row["name"], f"{row['params_m']:.2f}", f"{row['flops_g']:.2f}"]
        for name in ("supernet", "tuned"):
            cells.append(with_interval(row[name]["miou"], row[name]["interval"], digits=4))
        lines.append(cells)
    low, high = result["interval"]
    first = result["rows"][0]["supernet"]
    return table(lines) + (
        f"\n\nKendall's tau {result['kendall_tau']:.2f} (95 % of resamplings of the subnets: "
        f"{low:.2f} to {high:.2f}; p = {result['p_value']:.3f}); of FLOPs alone "
        f"{result['kendall_tau_of_flops']:.2f}. {result['steps']} steps alone at a peak rate of "
        f"{result['lr']:g}, {result['prompt']} prompts, {first['objects']} objects in "
        f"{first['images']} images.\n"
    )


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="*", help="held-out shards; the run's without")
    parser.add_argument("--subnets", type=int, default=8, help="largest, smallest and random ones")
    parser.add_argument("--steps", type=int, default=100, help="of training each subnet alone")
    parser.add_argument("--lr", type=float, default=2e-5, help="its peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of the random subnets")
    parser.add_argument("--prompt", choices=["point", "box"], default="box")
    parser.add_argument("--images", type=int, help="evenly spaced images; all without it")
    parser.add_argument("--at-once", type=int, default=1, help="trainings side by side")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
