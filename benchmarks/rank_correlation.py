"""Does the supernet rank subnets as they rank after training of their own?

python benchmarks/rank_correlation.py --run runs/nuclei_supernet --subnets 8 --steps 100

Exports the largest, the smallest and random subnets twice with launch/export.py, as they are in the
supernet and after --steps of training alone, and prints Kendall's tau between the two mIoUs, with
its 95 % bootstrap interval over subnets. Finished exports are kept: the same command goes on.
Writes results/rank_correlation/ into the run's folder.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from supersam.config import TrainRun, load_run
from supersam.model import resolve_shape
from supersam.space import read_space

ROOT = Path(__file__).parents[1]
DRAWS = 2000


def main():
    """Export, compare, print, keep."""
    args = parse_args()
    run = load_run(TrainRun, args.run / "run.yaml")
    space = read_space(args.run / "space.yaml", resolve_shape(run.model))
    rng = np.random.default_rng(args.seed)
    subnets = {"largest": space.largest(), "smallest": space.smallest()}
    subnets |= {f"random {i}": space.sample(rng) for i in range(args.subnets - 2)}
    folder = args.run / "results" / "rank_correlation"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, spec in subnets.items():
        path = folder / f"{spec.key()}.json"
        spec.write(path)
        cards = [export(args, path, folder, steps) for steps in (0, args.steps)]
        rows.append({"name": name, **row_of(cards, args.prompt)})
        print(rows[-1], flush=True)
    result = {"steps": args.steps, "prompt": args.prompt, "rows": rows, **correlation(rows, rng)}
    (folder / f"rank_correlation-{args.steps}.json").write_text(json.dumps(result, indent=1))
    print(to_markdown(result))


def export(args, spec, folder, steps):
    out = folder / f"{spec.stem}-steps-{steps}"
    command = [sys.executable, ROOT / "launch/export.py", "--run", args.run, "--subnet", spec]
    command += ["--out", out, "--finetune-steps", steps, "--json"]
    command += ["--finetune-lr", args.lr] if args.lr is not None and steps > 0 else []
    command += ["--images", args.images] if args.images is not None else []
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def row_of(cards, prompt):
    before, after = (card["metrics"][prompt] for card in cards)
    return {
        "params_m": cards[0]["cost"]["params_m"],
        "flops_g": cards[0]["cost"]["flops_g"],
        "supernet": before["miou"],
        "supernet_interval": before["miou_interval"],
        "tuned": after["miou"],
        "tuned_interval": after["miou_interval"],
        "num_objects": before["num_objects"],
        "num_images": before["num_images"],
    }


def correlation(rows, rng):
    """Kendall's tau of supernet and tuned mIoU, and of size and tuned mIoU as the baseline."""
    supernet, tuned, flops = (
        np.array([r[n] for r in rows]) for n in ("supernet", "tuned", "flops_g")
    )
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
    head = ["subnet", "params M", "GFLOPs", "supernet mIoU [95 %]", "tuned alone mIoU [95 %]"]
    lines = [head, ["---"] * len(head)]
    for row in result["rows"]:
        cells = [row["name"], f"{row['params_m']:.2f}", f"{row['flops_g']:.2f}"]
        for name in ("supernet", "tuned"):
            low, high = row[f"{name}_interval"]
            cells.append(f"{row[name]:.4f} [{low:.3f}, {high:.3f}]")
        lines.append(cells)
    low, high = result["interval"]
    first = result["rows"][0]
    note = (
        f"Kendall's tau {result['kendall_tau']:.2f} (95 % of resamplings of the subnets: "
        f"{low:.2f} to {high:.2f}; p = {result['p_value']:.3f}); of FLOPs alone "
        f"{result['kendall_tau_of_flops']:.2f}. {result['steps']} steps alone, "
        f"{result['prompt']} prompts, {first['num_objects']} objects in {first['num_images']} "
        "images.\n"
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n" + note


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--subnets", type=int, default=8, help="largest, smallest and random ones")
    parser.add_argument("--steps", type=int, default=100, help="of training each subnet alone")
    parser.add_argument("--lr", type=float, help="its peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of the random subnets")
    parser.add_argument("--prompt", choices=["point", "box"], default="box")
    parser.add_argument("--images", type=int, help="evenly spaced images; all without it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
