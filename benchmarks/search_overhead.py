"""Seconds of a one-second trial that are not spent in it: sleeps in the place of the model.

python benchmarks/search.py overhead --run RUN, on a Ray of this machine's own; or, as the batch
step of a Slurm job, on a Ray over all its hosts:

sbatch --nodes=4 --ntasks-per-node=1 --cpus-per-task=1 --wrap "python benchmarks/search.py ..."
"""

import contextlib
import os
import socket
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

from supersam.cluster.search.ray_host import read_head_address
from supersam.cluster.search.supervisor import ray_on_all_hosts
from supersam.cluster.snapshot import snapshot_code
from supersam.runtime.signals import StopFlag
from supersam.search.journal import Journal, Trial
from supersam.search.plan import SearchPlan
from supersam.search.ray.session import joined_ray, local_ray

SLEEP_S = 1.0
STARTED = time.perf_counter()


def measure_overhead(asked, basis):
    """The share of an evaluator's time between chunks, and seconds until the first result."""
    times = []
    # every host sees the run's folder
    with tempfile.TemporaryDirectory(dir=asked.run) as folder, ray_here(asked, Path(folder)):
        from supersam.search.tuner import evaluate_on_ray  # Ray reads its environment only once

        journal = Journal(Path(folder) / "journal.jsonl")
        evaluate_on_ray(
            asked,
            basis.source,
            SearchPlan(asked, basis, journal),
            stop=StopFlag(),
            on_trials=lambda new: times.append(time.perf_counter()),
            evaluator=sleeping_evaluator(),
        )
    spans = [(t.host, t.metrics["begin_s"], t.metrics["end_s"]) for t in journal]
    gaps, busy = idle_time({span for span in spans if span[1] > min(s[2] for s in spans)})
    first = times[0] - STARTED
    evaluators = len({host for host, _, _ in spans})
    hosts = len({host.rpartition("/")[0] for host, _, _ in spans})
    print(f"{len(journal)} trials of {SLEEP_S:g} s, {evaluators} evaluators on {hosts} host(s)")
    print(f"overhead {100 * gaps / busy:.2f} %; first result after {first:.1f} s")
    return {
        "overhead": gaps / busy,
        "first_result_s": first,
        "trials": len(journal),
        "hosts": hosts,
    }


@contextlib.contextmanager
def ray_here(asked, folder):
    """This process has joined a Ray."""
    if "SLURM_JOB_ID" not in os.environ:
        with local_ray(asked):
            yield
        return
    snapshot_code(folder)
    nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
    with (
        ray_on_all_hosts(folder, folder) as meeting,
        joined_ray(partial(read_head_address, meeting), nodes=(nodes, nodes)),
    ):
        yield


def idle_time(chunks):
    """Seconds between the chunks of each evaluator, and in them."""
    gaps = busy = 0.0
    for host in {host for host, _, _ in chunks}:
        mine = sorted((begin, end) for h, begin, end in chunks if h == host)
        busy += sum(end - begin for begin, end in mine)
        gaps += sum(after[0] - before[1] for before, after in pairwise(mine))
    return gaps, busy


def sleeping_evaluator():
    """An evaluator whose trials take a second each and no processor."""
    from supersam.search.tuner import Evaluator

    class Sleeping(Evaluator):
        def setup(self, config, desk, asked, source, evaluators, place):
            self._desk = desk

        def evaluate(self, chunk):
            begin = time.time()
            time.sleep(SLEEP_S * len(chunk.requests))
            end = time.time()
            return [made_up_trial(job, begin, end) for job in chunk.requests]

    return Sleeping


def made_up_trial(job, begin, end):
    widths = sum(job.spec.mlp_widths)
    return Trial(
        **{name: getattr(job, name) for name in ("key", "spec", "stage", "searcher")},
        **{name: getattr(job, name) for name in ("batch", "index")},
        status="complete",
        metrics={
            "miou": 1 - 1 / (1 + widths),
            "params_m": widths / 1e3,
            "begin_s": begin,
            "end_s": end,
        },
        num_images=1,
        num_objects=1,
        seconds=SLEEP_S,
        step=0,
        host=f"{socket.gethostname()}/{os.getpid()}",
    )
