"""What a search costs beside the model, and what it saves against the published way.

python -m benchmarks.search sharing   --run RUN   prefix sharing alone: with against without
python -m benchmarks.search loop      --run RUN   subnets a minute against the published way
python -m benchmarks.search overhead  --run RUN   Tune's time per trial, where the model takes none
python -m benchmarks.search ranking   --run RUN   Kendall tau of IoU on logits and on originals

Each prints a table and, last, one line of JSON. `overhead` sleeps in the place of the model: on a
Ray of this machine, or, as the batch step of a Slurm job, on a Ray over all its hosts:

sbatch --nodes=4 --ntasks-per-node=1 --cpus-per-task=1 --wrap "python -m benchmarks.search ..."
"""

import argparse
import contextlib
import os
import socket
import statistics
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.in_turn import print_record
from benchmarks.loader import write_loose
from benchmarks.published import PublishedSearch
from supersam.cluster.search.ray_host import read_head_address
from supersam.cluster.search.supervisor import ray_on_all_hosts
from supersam.config import SearchRun
from supersam.data.shards import ShardReader
from supersam.model import extract_subnet
from supersam.runs.provenance import snapshot_code
from supersam.runtime.signals import StopFlag
from supersam.search.ask_tell import cut_chunks
from supersam.search.evaluator import (
    Chunk,
    EvalRequest,
    SubnetEvaluator,
    score_embedding,
)
from supersam.search.images import chosen_images
from supersam.search.inputs import find_inputs
from supersam.search.journal import Journal, Trial, trial_key
from supersam.search.plan import SearchPlan
from supersam.search.predictor import kendall_tau
from supersam.search.prefix import PrefixCache, cache_bytes, encode_each
from supersam.search.ray.session import joined_ray, local_ray
from supersam.search.searchers.evolution import breed

SLEEP_S = 1.0
STARTED = time.perf_counter()


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    report = {"sharing": sharing, "loop": loop, "overhead": overhead, "ranking": ranking}
    result = report[args.question](args)
    print_record(f"search_{args.question}", result)


def sharing(args):
    """Times to encode a population one by one and with shared layers, interleaved.

    `cached`: in chunks, by an evaluator that has evaluated the parents and keeps outputs.
    """
    asked, basis, objective = prepare(args)
    supernet, space = objective._supernet, basis.space
    pixels = torch.randn(args.batch, 3, space.shape.image_size, space.shape.image_size)
    parents = random_specs(space, 10)
    populations = {
        "random": random_specs(space, args.subnets),
        "generation": children(parents, space, args.subnets),
    }
    images = args.cache_images
    kept = cache_bytes(asked.model_copy(update={"cache_gib": args.cache_gib}), space.shape,
                      images=images, device=torch.device("cpu"))  # fmt: skip
    print(f"keeping up to {kept / 2**30:.2f} GiB for {images} images")
    share = kept * args.batch / images
    table = {}
    for name, specs in populations.items():
        flops = encoder_ratios(supernet, pixels, specs, parents, args, share, cost=count_flops)
        print(f"{name:11} FLOPs: {', '.join(f'{way} {r:.2f}x' for way, r in flops.items())}")
        ratios = [encoder_ratios(supernet, pixels, specs, parents, args, share) for _ in range(3)]
        table[name] = {way: [ratio[way] for ratio in ratios] for way in ratios[0]}
        table[name]["whole"] = [whole_ratio(objective, specs)]
        table[name]["flops"] = flops
        texts = (
            f"{way} {statistics.median(r):.2f}x ({min(r):.2f}-{max(r):.2f})"
            for way, r in table[name].items()
            if way != "flops"
        )
        print(f"{name:11} {len(specs)} subnets: {', '.join(texts)}", flush=True)
    return table


def encoder_ratios(supernet, pixels, specs, parents, args, share, cost=None):
    """What it costs to encode each subnet alone, against three ways of sharing.

    cost: of a call; processor time by default.
    """
    cost = cost or clock
    encode = partial(encode_each_of, supernet, pixels)
    chunks = [[job.spec for job in c.requests] for c in cut_chunks(requests_of(specs), args.chunk)]
    depth = supernet.space.shape.depth
    cache = PrefixCache(share, generation_layers=len(specs) * depth)
    encode(parents, cache)
    alone = cost(lambda: [encode([spec]) for spec in specs])
    ways = {
        "at once": lambda: encode(specs),
        "in chunks": lambda: [encode(chunk) for chunk in chunks],
        "cached": lambda: [encode(chunk, cache) for chunk in chunks],
    }
    return {way: alone / cost(action) for way, action in ways.items()}


def whole_ratio(objective, specs):
    """Time of a trial in chunks of one against all in one chunk, decoding and scoring included."""
    jobs = requests_of(specs)
    shared = clock(lambda: objective.evaluate(Chunk(jobs)))
    return clock(lambda: [objective.evaluate(Chunk((job,))) for job in jobs]) / shared


def loop(args):
    """Subnets a minute: one evaluator, the same work without it, and the published way.

    In turn, a chunk of the same subnets each: they differ in size, and the machine is not alone.
    """
    asked, basis, objective = prepare(args)
    specs = random_specs(basis.space, args.subnets)
    chunks = [chunk.requests for chunk in cut_chunks(requests_of(specs), args.chunk)]
    with tempfile.TemporaryDirectory() as folder:
        published = PublishedSearch(
            extract_subnet(objective._supernet, basis.space.largest()),
            basis.space.shape,
            loose_files(basis, asked, Path(folder) / "loose"),
            prompt=asked.protocol.prompt,
            objects=asked.protocol.objects_per_image,
        )
        ways = {
            "this search": lambda jobs: objective.evaluate(Chunk(jobs)),
            "extracted, same work": lambda jobs: [extracted(objective, j.spec) for j in jobs],
            "published way": lambda jobs: [published.evaluate(j.spec) for j in jobs],
        }
        seconds = {name: [] for name in ways}
        for jobs in chunks:
            for name, way in ways.items():
                seconds[name].append(clock(partial(way, jobs)))
    ours = np.array(seconds["this search"])
    ratios = {name: (np.array(each) / ours).tolist() for name, each in seconds.items()}
    per_min = {name: 60 * len(specs) / sum(each) for name, each in seconds.items()}
    for name, each in ratios.items():
        print(f"{name:24}{per_min[name]:8.2f} subnets/min; a chunk takes {np.median(each):.2f} "
              f"({min(each):.2f} to {max(each):.2f}) of this search's time")  # fmt: skip
    return {"per_min": per_min, "ratio": ratios}


@torch.no_grad()
def extracted(objective, spec):
    """What the evaluator does with a subnet, done with an extracted one, alone."""
    sam = extract_subnet(objective._supernet, spec)
    ious = []
    for batch in objective._batches:
        pixels = objective._supernet.normalize(batch.images, batch.sizes)
        embedding = sam.image_encoder(pixels)
        ious.append(score_embedding(objective._supernet, embedding, batch)[0])
    return float(np.concatenate(ious, axis=1).mean())


def loose_files(basis, asked, folder):
    """The images of the protocol, in SA-1B's layout."""
    (shards,) = basis.selection.folders
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
    trials = objective.evaluate(Chunk(requests_of(specs, stage)))
    return np.array([trial.metrics["miou"] for trial in trials])


def overhead(args):
    """The share of an evaluator's time between chunks, and seconds until the first result."""
    asked, basis, _ = prepare(args, load=False)
    times = []
    # every host sees the run's folder
    with tempfile.TemporaryDirectory(dir=asked.run) as folder, ray_here(asked, Path(folder)):
        from supersam.search.tuner import evaluate_on_ray  # Ray reads its environment only once

        journal = Journal(Path(folder) / "journal.jsonl")
        evaluate_on_ray(
            asked,
            basis.source,
            SearchPlan(asked, basis, journal),
            images=basis.selection,
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
        ray_on_all_hosts(folder, folder) as address_file,
        joined_ray(partial(read_head_address, address_file), nodes=(nodes, nodes)),
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
        def setup(self, config, queue, search, source, images, evaluators, place):
            self._queue = queue

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


def prepare(args, load=True):
    asked = SearchRun.model_validate(
        {
            "run": args.run,
            "out": "unused",
            "device": args.device,
            "trials": args.subnets,
            "chunk": args.chunk,
            "cache_gib": 0 if args.question == "sharing" else args.cache_gib,  # it has its own
            "cluster": {"evaluators_per_node": args.evaluators},
            "data": args.data,
            "protocol": {
                "prompt": "box",
                "images": args.images,
                "images_per_batch": args.batch,
                "precision": args.precision,
                "objects_per_image": args.objects or None,
            },
        }
    )
    basis = find_inputs(asked)
    return asked, basis, SubnetEvaluator(asked, basis.source) if load else None


def random_specs(space, count):
    rng = np.random.default_rng(0)
    return list(dict.fromkeys(space.sample(rng) for _ in range(count)))


def children(parents, space, count):
    """A generation of NSGA-II, with the parents that are in it again."""
    rng = np.random.default_rng(1)
    return list(dict.fromkeys(breed(parents, space, rng) for _ in range(count)))


def requests_of(specs, stage="search"):
    return tuple(
        EvalRequest(trial_key(spec, {}), spec, stage, "benchmark", 0, i)
        for i, spec in enumerate(specs)
    )


@torch.no_grad()
def encode_each_of(supernet, pixels, specs, cache=None):
    found = encode_each(supernet.image_encoder, pixels, specs, cache)
    return [embedding for _, embedding in found]


def count_flops(action):
    """Floating-point operations of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


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
    parser.add_argument("--cache-gib", type=float, help="without it what a search takes by itself")
    parser.add_argument("--cache-images", type=int, default=128, help="that share it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
