"""mIoU of the largest, the smallest and random subnets of a run, before and after its training.

python benchmarks/subnet_table.py --run runs/nuclei_vit_t --random 5 --checkpoints initial last

Calls launch/evaluate.py for each subnet, as a user would, and writes results/subnet_table.json and
.md into the run's folder.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from supersam.config import TrainRun, load_run
from supersam.model import resolve_shape
from supersam.space import read_space

ROOT = Path(__file__).parents[1]


def main():
    """Evaluate, print the table, keep it in the run's folder."""
    args = parse_args()
    run = load_run(TrainRun, args.run / "run.yaml")
    space = read_space(args.run / "space.yaml", resolve_shape(run.model))
    rng = np.random.default_rng(args.seed)
    subnets = {"largest": space.largest(), "smallest": space.smallest()}
    subnets |= {f"random {i}": space.sample(rng) for i in range(args.random)}
    jobs = [(c, name) for c in args.checkpoints for name in subnets]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.processes) as pool:
        for name, spec in subnets.items():
            spec.write(Path(folder) / f"{name}.json")
        records = pool.map(
            lambda job: evaluate(args, Path(folder) / f"{job[1]}.json", job[0]), jobs
        )
        rows = [{"checkpoint": c, "name": n, **r} for (c, n), r in zip(jobs, records, strict=True)]
    results = args.run / "results"
    (results / "subnet_table.json").write_text(json.dumps(rows, indent=1))
    table = to_markdown(rows)
    (results / "subnet_table.md").write_text(table)
    print(table)


def evaluate(args, subnet, checkpoint):
    command = [sys.executable, ROOT / "launch/evaluate.py", "--run", args.run, "--json"]
    command += ["--subnet", subnet, "--checkpoint", checkpoint]
    command += ["--data", *args.data] if args.data else []
    command += ["--images", str(args.images)] if args.images else []
    threads = str(max(1, len(os.sched_getaffinity(0)) // args.processes))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def to_markdown(rows):
    prompts = list(rows[0]["prompts"])
    head = ["subnet", "params M", "GFLOPs", "step"]
    for prompt in prompts:
        head += [f"{prompt}: mIoU [95 %]", "best of 3 by its own estimate", "oracle"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row["name"], f"{row['params_m']:.2f}", f"{row['flops_g']:.2f}", str(row["step"])]
        for prompt in prompts:
            result = row["prompts"][prompt]
            low, high = result["miou_interval"]
            cells += [f"{result['miou']:.3f} [{low:.3f}, {high:.3f}]"]
            cells += [f"{result['miou_predicted_best']:.3f}", f"{result['miou_oracle']:.3f}"]
        lines.append(cells)
    result = rows[0]["prompts"][prompts[-1]]
    note = (
        f"{result['num_objects']} objects in {result['num_images']} images; "
        f"filling the box alone scores {result['box_fill_miou']:.3f}.\n"
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n" + note


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="*")
    parser.add_argument("--random", type=int, default=5, help="random subnets")
    parser.add_argument("--seed", type=int, default=0, help="of the random subnets")
    parser.add_argument("--checkpoints", nargs="+", default=["initial", "last"])
    parser.add_argument("--images", type=int, help="evenly spaced images; all without it")
    parser.add_argument("--processes", type=int, default=1, help="evaluations at once")
    return parser.parse_args()


if __name__ == "__main__":
    main()
