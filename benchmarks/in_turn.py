"""Runs alternatives in turn and compares neighbours: what the benchmarks of two sides share.

A figure is the median of the ratios of neighbours, with their range. The CPU clock, of all threads
of this process, is for a machine that others use too: they disturb it less.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def time_in_turn(sides, repeats, *, clock="wall"):
    """Seconds of each call, by name: one unmeasured round of all, then `repeats` rounds."""
    seconds = {name: [] for name in sides}
    now = CLOCKS[clock]
    for number in range(repeats + 1):
        for name, call in sides.items():
            started = now()
            call()
            if number > 0:
                seconds[name].append(now() - started)
    return seconds


def compare(slow, fast):
    """Medians of two sides in ms, and of the ratios slow / fast of neighbours, with their range."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "slow_ms": statistics.median(slow) * 1e3,
        "fast_ms": statistics.median(fast) * 1e3,
        "ratio": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "rounds": len(ratios),
    }


def print_ratios(rows, sides):
    """A table of `compare`d rows by name. sides: what slow and fast are."""
    print(f"{'':34}{sides[0]:>14} ms{sides[1]:>14} ms{'ratio':>8}{'range':>16}")
    for name, row in rows.items():
        span = f"{row['min']:.2f} to {row['max']:.2f}"
        print(f"{name:34}{row['slow_ms']:17.1f}{row['fast_ms']:17.1f}{row['ratio']:8.2f}{span:>16}")


def print_record(name, results):
    """One line of JSON: the results, and where and how they came about."""
    print(json.dumps({name: results, **provenance()}))


def provenance():
    """Where and how a result came about."""
    place = {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": os.getloadavg(),
    }
    if torch.cuda.is_available():
        place["gpu"] = torch.cuda.get_device_name()
    return place


def commit():
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")
