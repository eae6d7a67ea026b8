"""What a search costs beside the model, and what it saves against the published way.

python benchmarks/search.py sharing   --run RUN   prefix sharing alone: with against without
python benchmarks/search.py loop      --run RUN   subnets a minute against the published way
python benchmarks/search.py overhead  --run RUN   Tune's time per trial, where the model takes none
python benchmarks/search.py ranking   --run RUN   Kendall tau of IoU on logits and on originals

Each prints a table and, last, one line of JSON.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from loader import write_loose
from published_evaluation import PublishedSearch

from supersam.config import SearchRun
from supersam.data.shards import ShardReader
from supersam.model import extract_subnet
from supersam.runtime.signals import StopFlag
from supersam.search.folder import find_basis
from supersam.search.images import chosen_images
from supersam.search.journal import Journal, Trial, trial_key
from supersam.search.objective import (
    Chunk,
    Job,
    SubnetObjective,
    _score_logits,
    _score_originals,
)
from supersam.search.predictor import kendall_tau
from supersam.search.prefix import encode_each
from supersam.search.program import Program
from supersam.search.searchers.evolution import breed

REPEATS = 3
SLEEP_S = 1.0


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    report = {"sharing": sharing, "loop": loop, "overhead": overhead, "ranking": ranking}
    result = report[args.question](args)
    where = {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()}
    print(json.dumps({f"search_{args.question}": result, **where}))


def sharing(args):
    """Seconds to encode a population with shared layers and without, interleaved."""
    asked, basis, objective = prepare(args)
    supernet, space = objective._supernet, basis.space
    pixels = torch.randn(args.batch, 3, space.shape.image_size, space.shape.image_size)
    populations = {"random": random_specs(space, args.subnets), "generation": children(space, args)}
    table = {}
    for name, specs in populations.items():
        ratios = [encoder_ratio(supernet, pixels, specs) for _ in range(REPEATS)]
        whole = whole_ratio(objective, specs)
        table[name] = {"encoder": statistics.median(ratios), "spread": ratios, "whole": whole}
        print(
            f"{name:11} {len(specs)} subnets: encoder {statistics.median(ratios):.2f}x "
            f"({min(ratios):.2f}-{max(ratios):.2f}), with decoding and scoring {whole:.2f}x"
        )
    return table


def encoder_ratio(supernet, pixels, specs):
    """Time to encode without shared layers against with them, of a processor."""
    shared = clock(lambda: encode_each_of(supernet, pixels, specs))
    return clock(lambda: [encode_each_of(supernet, pixels, [spec]) for spec in specs]) / shared


def whole_ratio(objective, specs):
    """Time of a trial in chunks of one against all in one chunk, decoding and scoring included."""
    jobs = jobs_of(specs)
    shared = clock(lambda: objective.evaluate(Chunk(jobs)))
    return clock(lambda: [objective.evaluate(Chunk((job,))) for job in jobs]) / shared


def loop(args):
    """Subnets a minute: one evaluator, the same work without it, and the published way."""
    asked, basis, objective = prepare(args)
    specs = random_specs(basis.space, args.subnets)
    some = specs[: max(2, args.subnets // 8)]
    with tempfile.TemporaryDirectory() as folder:
        published = PublishedSearch(
            extract_subnet(objective._supernet, basis.space.largest()),
            basis.space.shape,
            loose_files(basis, asked, Path(folder) / "loose"),
            prompt=asked.protocol.prompt,
            objects=asked.protocol.objects_per_image,
        )
        seconds = {
            "this search": clock(lambda: objective.evaluate(Chunk(jobs_of(specs)))) / len(specs),
            "extracted, same work": clock(lambda: [extracted(objective, s) for s in some])
            / len(some),
            "published way": clock(lambda: [published.evaluate(s) for s in some]) / len(some),
        }
    ours = seconds["this search"]
    for name, each in seconds.items():
        print(f"{name:24}{60 / each:8.2f} subnets/min, {each / ours:.2f} of this search's time")
    return {
        "per_min": {name: 60 / each for name, each in seconds.items()},
        "ratio": {name: each / ours for name, each in seconds.items()},
    }


@torch.no_grad()
def extracted(objective, spec):
    """What the evaluator does with a subnet, done with an extracted one, alone."""
    sam = extract_subnet(objective._supernet, spec)
    score = _score_originals if objective._batches[0].originals else _score_logits
    ious = []
    for batch in objective._batches:
        pixels = objective._supernet.normalize(batch.images, batch.sizes)
        ious.append(score(objective._supernet, sam.image_encoder(pixels), batch)[0])
    return float(np.concatenate(ious).mean())


def loose_files(basis, asked, folder):
    """The images of the protocol, in SA-1B's layout."""
    (shards,) = basis.data_folders
    files = write_loose(ShardReader(shards), folder).images
    return [files[i] for i in chosen_images(len(files), asked.protocol.images)]


def ranking(args):
    """Whether IoU on the logits' grid orders subnets as IoU on the original pixels does."""
    asked, basis, objective = prepare(args)
    specs = random_specs(basis.space, args.subnets)
    columns = {}
    for stage in ("search", "final"):
        seconds = clock(lambda s=stage: columns.setdefault(s, scores(objective, specs, s)))
        print(f"{stage:8} {seconds / len(specs):.3f} s a subnet")
    tau = kendall_tau(columns["search"], columns["final"])
    worst = float(np.abs(columns["search"] - columns["final"]).max())
    print(f"Kendall tau {tau:.4f} of {len(specs)} subnets; mIoU differs by at most {worst:.4f}")
    return {"kendall_tau": tau, "subnets": len(specs), "largest_difference": worst}


def scores(objective, specs, stage):
    trials = objective.evaluate(Chunk(jobs_of(specs, stage)))
    return np.array([trial.metrics["miou"] for trial in trials])


def overhead(args):
    """Seconds of a one-second trial that are not spent in it: sleeps in the place of the model."""
    from supersam.search.ray_session import local_ray

    started = time.perf_counter()
    asked, basis, _ = prepare(args, load=False)
    with local_ray(asked), tempfile.TemporaryDirectory() as folder:
        from supersam.search.tuner import evaluate_on_ray

        journal = Journal(Path(folder) / "journal.jsonl")
        program = Program(asked, basis, journal)
        times = []
        evaluate_on_ray(
            asked,
            basis.source,
            program,
            stop=StopFlag(),
            on_trials=lambda new: times.append((time.perf_counter(), len(new))),
            evaluator=sleeping_evaluator(),
        )
    spans = [(t.host, t.metrics["begin_s"], t.metrics["end_s"]) for t in journal]
    gaps, busy = idle_time({span for span in spans if span[1] > min(s[2] for s in spans)})
    first = times[0][0] - started
    print(f"{len(journal)} trials of {SLEEP_S:g} s on {args.evaluators} evaluators")
    print(f"overhead {100 * gaps / busy:.2f} %; first result after {first:.1f} s")
    return {"overhead": gaps / busy, "first_result_s": first, "trials": len(journal)}


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
            time.sleep(SLEEP_S * len(chunk.jobs))
            end = time.time()
            return [made_up_trial(job, begin, end) for job in chunk.jobs]

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
        host=str(os.getpid()),
    )


def prepare(args, load=True):
    asked = SearchRun.model_validate(
        {
            "run": args.run,
            "out": "unused",
            "device": args.device,
            "trials": args.subnets,
            "chunk": args.chunk,
            "cluster": {"evaluators_per_node": args.evaluators},
            "data": args.data,
            "protocol": {
                "images": args.images,
                "images_per_batch": args.batch,
                "precision": args.precision,
                "objects_per_image": args.objects or None,
            },
        }
    )
    basis = find_basis(asked)
    return asked, basis, SubnetObjective(asked, basis.source) if load else None


def random_specs(space, count):
    rng = np.random.default_rng(0)
    return list(dict.fromkeys(space.sample(rng) for _ in range(count)))


def children(space, args):
    """A generation of NSGA-II from ten parents."""
    rng = np.random.default_rng(1)
    parents = [space.sample(rng) for _ in range(10)]
    return list(dict.fromkeys(breed(parents, space, rng) for _ in range(args.subnets)))


def jobs_of(specs, stage="search"):
    return tuple(
        Job(trial_key(spec, {}), spec, stage, "benchmark", 0, i) for i, spec in enumerate(specs)
    )


@torch.no_grad()
def encode_each_of(supernet, pixels, specs):
    return [embedding for _, embedding in encode_each(supernet.image_encoder, pixels, specs)]


def clock(action):
    """Seconds of a processor: the same on a busy machine, with one thread."""
    started = time.process_time()
    action()
    return time.process_time() - started


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=["sharing", "loop", "overhead", "ranking"])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--subnets", type=int, default=50)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--evaluators", type=int, default=4)
    parser.add_argument("--data", type=Path, nargs="+", default=[])
    parser.add_argument("--objects", type=int, default=16, help="objects of an image; 0 is all")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--chunk", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
