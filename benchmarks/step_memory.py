"""Peak memory of a sandwich step against the largest subnet's step alone.

python benchmarks/step_memory.py [--steps 3] [--gate]

Each is trained in a fresh process by the real command (launch/train.py, inline, CPU); the figure
is the growth of the process's peak resident memory above what it holds when training starts: model,
optimizer and libraries are in both. Prints a table and one line of JSON. With --gate, a ratio above
1.1 exits with 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 1.1
ALONE_STEPS = 10**6

# Runs launch/train.py with a note of the resident memory at the first step.
PROBE = """
import json, resource, runpy, sys
from supersam.training.trainer import Trainer

def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20

step = Trainer.train_step
seen = []
def noted(trainer, batches):
    if not seen:
        seen.append(resident_mib())
    step(trainer, batches)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"before_mib": seen[0], "peak_mib": peak}), flush=True)
Trainer.train_step = noted
runpy.run_path("launch/train.py", run_name="__main__")
"""


def main():
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            name: measure(args, Path(folder) / name, largest_only_steps=steps)
            for name, steps in (("largest", ALONE_STEPS), ("sandwich", 0))
        }
    ratio = rows["sandwich"]["step_mib"] / rows["largest"]["step_mib"]
    print(f"{'':10}{'at start MiB':>14}{'peak MiB':>12}{'step MiB':>12}")
    for name, row in rows.items():
        print(f"{name:10}{row['before_mib']:14.0f}{row['peak_mib']:12.0f}{row['step_mib']:12.0f}")
    print(f"sandwich / largest: {ratio:.3f} (limit {LIMIT})")
    record = {**rows, "ratio": ratio, "load_average": os.getloadavg()}
    print(json.dumps({"step_memory": record}))
    return int(args.gate and ratio > LIMIT)


def measure(args, folder, *, largest_only_steps):
    """Train some steps; returns MiB at the start, at the peak and their difference."""
    options = {
        "--run": folder,
        "--cluster": "inline",
        "--model.image-size": args.side,
        "--data.workers": 0,
        "--data.synthetic-train.images": 8,
        "--data.synthetic-val.images": 1,
        "--engine.device": "cpu",
        "--engine.precision": "fp32",
        "--optim.steps": args.steps,
        "--checkpoint.validate-images": 1,
        "--sandwich.random-subnets": 2,
        "--sandwich.largest-only-steps": largest_only_steps,
    }
    words = [str(word) for pair in options.items() for word in pair]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"training in {folder} failed:\n{done.stderr}")
    row = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    return {**row, "step_mib": row["peak_mib"] - row["before_mib"]}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--side", type=int, default=256, help="input side of the model, pixels")
    parser.add_argument("--gate", action="store_true", help="exit with 1 above 1.1")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
