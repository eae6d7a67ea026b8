"""Searches on one real Ray that cannot be finished: prints how each ended. test_tuner.py runs it.

python -m tests.search.failing_searches RUN DIVERGED_RUN FOLDER
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from supersam.config import SearchRun, UserError
from supersam.runs.weights import read_run
from supersam.runtime.signals import StopFlag
from supersam.search.folder import prepare_folder
from supersam.search.inputs import SearchInputs, find_inputs
from supersam.search.journal import Journal
from supersam.search.plan import SearchPlan
from supersam.search.ray.session import local_ray
from tests.search.tiny_search import tiny_search


def main(run: Path, diverged: Path, folder: Path) -> dict[str, str]:
    """How each search ended, by what was wrong."""
    images = shutil.copytree(read_run(run).data.val[0], folder / "images")
    vanishing = tiny_search(read_run(run), folder / "vanishing", data=[str(images)])
    plan_of_vanishing = prepare(vanishing)
    shutil.rmtree(images)  # after the search was checked, before its evaluator starts
    with local_ray(vanishing):
        from supersam.search import tuner  # Ray reads its environment only once

        class Dying(tuner.Evaluator):
            def evaluate(self, chunk: Any) -> Any:
                os._exit(1)

        tuner._MAX_FAILURES = 1
        return {
            "images vanish": end_of(vanishing, *plan_of_vanishing),
            "weights are NaN": end_of(search := tiny_search(read_run(diverged), folder / "nan"),
                                      *prepare(search)),
            "evaluators die": end_of(search := tiny_search(read_run(run), folder / "dying"),
                                     *prepare(search), evaluator=Dying),
        }  # fmt: skip


def prepare(search: SearchRun) -> tuple[SearchInputs, SearchPlan]:
    """What a search stands on and its plan, checked as the command does."""
    inputs = find_inputs(search)
    search = prepare_folder(search, inputs)
    return inputs, SearchPlan(search, inputs, Journal(search.folder / "journal.jsonl"))


def end_of(search: SearchRun, inputs: SearchInputs, plan: SearchPlan, **evaluator: Any) -> str:
    """What a search ends with, and how many trials it has."""
    from supersam.search.tuner import evaluate_on_ray

    try:
        evaluate_on_ray(
            search, inputs.source, plan, images=inputs.selection, stop=StopFlag(),
            on_trials=plan.complete, **evaluator,
        )  # fmt: skip
    except (UserError, RuntimeError) as fault:
        return f"{type(fault).__name__}: {fault}; {len(plan.trials())} trials"
    return "finished"


if __name__ == "__main__":
    print(json.dumps(main(*map(Path, sys.argv[1:]))))
