"""Hypervolume of every searcher against random draws, and against the truth of a small space.

python -m experiments.searchers --run RUN --out DIR [--space space.yaml] [--exhaustive]

All searches share one journal: a subnet that two of them propose is evaluated once. Interrupt it
and start it again; nothing is evaluated twice. --space searches a part of the run's space, and
--exhaustive first evaluates all of it. `nsga2+evidence` is a searcher whose first proposals follow
from --evidence, what the run's design measured; all of `budget+evidence` do, and need no trial to
be chosen. Prints a table and, last, one line of JSON.
"""

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from supersam.config import SearchRun
from supersam.search.evaluator import SubnetEvaluator, prepare_process
from supersam.search.inputs import find_inputs
from supersam.search.journal import Journal
from supersam.search.pareto import cost_matrix, hypervolume
from supersam.search.plan import SearchPlan
from supersam.search.predictor import held_out_error
from supersam.space import read_space


def main():
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    asked = ask(args, "random", 0)
    basis = find_inputs(asked)
    space = read_space(args.space, basis.space.shape) if args.space else basis.space
    prepare_process(asked, 1)
    study = Study(args, basis, space, SubnetEvaluator(asked, basis.source))
    searches = {}
    if args.exhaustive:
        searches["exhaustive", 0] = study.trials("exhaustive", 0, budget=space.num_subnets())
    for seed in range(args.seeds):
        for searcher in args.searchers:
            searches[searcher, seed] = study.trials(searcher, seed, budget=args.trials)
    report(args, space, searches)


class Study:
    """Searches that share a journal and an evaluator."""

    def __init__(self, args, basis, space, objective):
        self.args, self.basis, self.space, self.objective = args, basis, space, objective
        self.journal = Journal(args.out / "journal.jsonl")

    def trials(self, searcher, seed, *, budget):
        """The trials of a search, in the order of their proposals."""
        asked = ask(self.args, searcher, seed, budget)
        plan = SearchPlan(asked, replace(self.basis, space=self.space), self.journal)
        while not plan.is_finished:  # references and front too, as in a user's search
            plan.complete(self.objective.evaluate(plan.next_chunk()))
        print(f"{searcher} {seed}: {len(plan.trials())} trials", file=sys.stderr, flush=True)
        return plan.trials()


def report(args, space, searches):
    every = {t.key: t for trials in searches.values() for t in trials}
    costs = cost_matrix(list(every.values()), args.objectives)
    best, span = costs.min(0), np.ptp(costs, axis=0)

    def volume(trials):
        scaled = (cost_matrix(trials, args.objectives) - best) / span
        return hypervolume(scaled, np.full(len(args.objectives), 1 + 1e-9))

    truth = searches.pop(("exhaustive", 0), None)
    whole = volume(truth if truth is not None else list(every.values()))
    marks = [mark for mark in args.marks if mark <= args.trials] or [args.trials]
    print(f"{'searcher':20}" + "".join(f"{f'{mark} trials':>25}" for mark in marks))
    table = {}
    for searcher in args.searchers:
        curves = [
            [volume(searches[searcher, seed][:mark]) / whole for mark in marks]
            for seed in range(args.seeds)
        ]
        table[searcher] = curves
        cells = [
            f"{statistics.mean(c):.4f} ({min(c):.4f}-{max(c):.4f})"
            for c in zip(*curves, strict=True)
        ]
        print(f"{searcher:20}" + "".join(f"{cell:>25}" for cell in cells))
    print(f"1 is the front of {'all subnets' if truth else 'all searches together'}")
    known = searches["random", 0] if ("random", 0) in searches else list(every.values())
    error = held_out_error(
        space, [t.spec for t in known], np.array([t.metrics["miou"] for t in known])
    )
    print(f"predictor on {error.num_trials} random trials, held out: {error}")
    summary = {"marks": marks, "seeds": args.seeds, "share_of_volume": table}
    summary |= {"subnets": len(every), "mae": error.mae, "kendall_tau": error.kendall_tau}
    print(json.dumps({"searchers": summary}))


def ask(args, searcher, seed, trials=1):
    searcher, _, evidence = searcher.partition("+")
    return SearchRun.model_validate(
        {
            "run": args.run,
            "out": args.out,
            "searcher": searcher,
            "evidence": args.evidence if evidence else None,
            "seed": seed,
            "trials": trials,
            "population": args.population,
            "chunk": args.population,
            "objectives": args.objectives,
            "device": args.device,
            "threads": args.threads,
            "protocol": {
                "images": args.images,
                "objects_per_image": args.objects,
                "precision": args.precision,
            },
        }
    )


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--space", type=Path)
    parser.add_argument("--exhaustive", action="store_true")
    parser.add_argument(
        "--searchers",
        nargs="+",
        default=["random", "nsga2", "regularized", "optuna", "opentuner", "predictor"],
    )
    parser.add_argument("--evidence", type=Path, help="evidence.json of the run's design")
    parser.add_argument("--marks", nargs="+", type=int, default=[50, 100, 200, 300])
    parser.add_argument("--objectives", nargs="+", default=["miou", "params_m"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
