"""Seconds that `--help` of each launch script takes, in a fresh process: by the clock and of a CPU.

python -m benchmarks.startup [--repeats 5] [--gate]

Prints a table and, last, one line of JSON. With --gate, a median above one second exits with 1.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT_S = 1.0


def main():
    args = parse_args()
    scripts = sorted((ROOT / "launch").glob("*.py"))
    seconds = {script.name: [] for script in scripts}
    cpu = {script.name: [] for script in scripts}
    for _ in range(args.repeats):
        for script in scripts:  # interleaved: a busy moment hits all of them
            clock, own = time_help(script)
            seconds[script.name].append(clock)
            cpu[script.name].append(own)
    rows = {
        name: {
            "median_s": statistics.median(s),
            "min_s": min(s),
            "max_s": max(s),
            "cpu_s": statistics.median(cpu[name]),
        }
        for name, s in seconds.items()
    }
    print(f"{'script':16}{'median s':>10}{'min':>8}{'max':>8}{'CPU s':>8}")
    for name, row in rows.items():
        clock = f"{row['median_s']:10.2f}{row['min_s']:8.2f}{row['max_s']:8.2f}"
        print(f"{name:16}{clock}{row['cpu_s']:8.2f}")
    print(json.dumps({"startup": rows, "load_average": os.getloadavg()}))
    slow = [name for name, row in rows.items() if row["median_s"] > LIMIT_S]
    return int(args.gate and bool(slow))


def time_help(script):
    """Seconds by the clock, and of a CPU: the same on a busy machine."""
    started, before = time.perf_counter(), children_s()
    subprocess.run(
        [sys.executable, script, "--help"], stdout=subprocess.DEVNULL, cwd=ROOT, check=True
    )
    return time.perf_counter() - started, children_s() - before


def children_s():
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gate", action="store_true", help="exit with 1 above one second")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
