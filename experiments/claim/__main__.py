"""The paper's claim by one command; the same command goes on after a stop.

python -m experiments.claim --data DIR --out DIR [--form small] [--checkpoint P] [--minutes N]
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from experiments.claim.forms import FORMS
from experiments.claim.report import write_report
from experiments.claim.run import has_ended, perform
from experiments.claim.split import split_nuclei
from experiments.claim.stages import Plan, Stage
from experiments.claim.subnets import write_subnets
from supersam.config import UserError
from supersam.config.errors import print_error


def main() -> int:
    """Run or resume the stages, then write table, figure and results.json."""
    args = parse_args()
    plan = Plan(
        data=args.data.absolute(),
        out=args.out.absolute(),
        form=FORMS[args.form],
        seeds=args.seeds,
        checkpoint=args.checkpoint,
        threads=args.at_once,
        options=tuple(shlex.split(args.train_options)),
    )
    split_nuclei(plan.data / "nuclei_sa1b", plan.out / "nuclei", select=args.select)
    deadline = time.monotonic() + 60 * args.minutes
    ended = run_stages(plan, deadline, only=args.only, at_once=args.at_once)
    try:
        verdicts = write_report(plan)
    except UserError as fault:
        return print_error(fault)
    for verdict in verdicts:
        holds = {None: "not judged", True: "holds", False: "does not hold"}[verdict.holds]
        print(f"{verdict.name}: {holds}. {verdict.words}")
    print(f"table, figure and results.json are in {plan.out}")
    return 0 if ended else 1


def run_stages(plan: Plan, deadline: float, *, only: str | None, at_once: int) -> bool:
    """Run what can run before the deadline, `at_once` stages at a time, the earlier ones first.

    Returns whether all has ended well.
    """
    stages = plan.stages()
    ended = {stage.name for stage in stages if has_ended(plan, stage.name)}
    waiting = [stage for stage in stages if stage.name not in ended]
    total = len(stages)
    running: dict[Future[bool], Stage] = {}
    with ThreadPoolExecutor(at_once) as pool:
        while True:
            _choose_subnets(plan, waiting, ended)
            ready = [s for s in waiting if ended.issuperset(s.after) and (only or "") in s.name]
            for stage in ready[: max(0, at_once - len(running))]:
                if time.monotonic() > deadline:
                    break
                waiting.remove(stage)
                print(f"[{total - len(waiting)}/{total}] {stage.name}", file=sys.stderr, flush=True)
                running[pool.submit(perform, plan, stage)] = stage
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                stage = running.pop(done)
                if done.result():
                    ended.add(stage.name)
    if waiting and time.monotonic() > deadline:
        print("the time is over; the same command goes on", file=sys.stderr)
    return ended.issuperset(stage.name for stage in stages)


def _choose_subnets(plan: Plan, waiting: list[Stage], ended: set[str]) -> None:
    """Once a search has ended, its choice is written for the stages that need it."""
    for name in {name for stage in waiting for name in stage.after} - ended:
        seed = name.removeprefix("choose-")
        if name.startswith("choose-") and f"search-{seed}" in ended:
            write_subnets(plan, int(seed))
            ended.add(name)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="experiments.claim", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real images")
    parser.add_argument("--out", type=Path, required=True, help="everything is written here")
    parser.add_argument("--form", choices=list(FORMS), default="full", help="size of all stages")
    parser.add_argument("--checkpoint", type=Path, help="pretrained weights; else they are trained")
    parser.add_argument("--minutes", type=float, default=10**6, help="begin no stage after them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2, help="stages of one thread side by side")
    parser.add_argument("--select", type=int, default=40, help="images kept for the search")
    parser.add_argument("--only", help="run only stages whose names hold this word")
    parser.add_argument("--train-options", default="", help="flags of each training, as one word")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
