"""What launch/search.py does on the machine, or the allocation, where the search runs."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from supersam.config import SearchRun, UserError
from supersam.config.files import JOURNAL_FILE
from supersam.runtime.device import choose_device
from supersam.runtime.distributed import World
from supersam.runtime.logging import setup_logging
from supersam.runtime.signals import StopFlag, stop_requested
from supersam.search.evaluator import SubnetEvaluator, prepare_process
from supersam.search.folder import FORMAT, folder_format, prepare_folder, write_record
from supersam.search.inputs import SearchInputs, find_inputs, require_searchable
from supersam.search.journal import Journal, Status, Trial
from supersam.search.pareto import write_front
from supersam.search.plan import SearchPlan
from supersam.search.predictor import FEWEST, held_out_error
from supersam.search.ray.address import FindRay
from supersam.search.ray.session import joined_ray, local_ray
from supersam.search.report.comparison import write_comparison
from supersam.search.report.page import write_report
from supersam.search.sweep import expand, format_sweep
from supersam.search.tensorboard import TensorBoard

logger = logging.getLogger(__name__)

_STOP_NOTICE = "stopping after the subnets that are being evaluated; Ctrl-C again to quit now"


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    folder: Path
    front: tuple[Trial, ...]
    """The best subnets, at full resolution where `finished`."""
    references: dict[str, Trial]
    """largest, smallest, and pretrained where training began from given weights."""
    num_trials: int
    finished: bool
    """False where it was asked to stop before the end; the same command goes on."""
    stopped_by: int = 0
    """The signal that asked it to stop; 0 for none."""


def run_search(
    search: SearchRun, *, cluster: FindRay | None = None, stop: StopFlag | None = None
) -> SearchResult:
    """Search, from the beginning or from where the journal ends.

    Runs on the Ray that `cluster` finds, or on one of its own on this machine, or with `--cluster
    inline` in this process without Ray. `stop` is the flag of a caller that takes the signals
    already; by default they are taken once everything is checked. Raises UserError for what a user
    can mend; nothing is written then.
    """
    inputs = find_inputs(search)
    if cluster is None:
        choose_device(search.device)
    wanted = search.trials
    search = prepare_folder(search, inputs)
    setup_logging(World.single(), search.folder / "logs" / "search.log")
    if inputs.train_run.model.checkpoint is not None and not inputs.has_start:
        logger.warning("--model.checkpoint %s is gone: nothing pretrained to compare with",
                       inputs.train_run.model.checkpoint)  # fmt: skip
    if inputs.seen.seen:
        logger.warning("training saw the evaluation data: %s", inputs.seen.detail)
    if search.trials > wanted:
        logger.info("%d trials are done, and %d were asked for: nothing more is proposed; a larger "
                    "--trials goes on", search.trials, wanted)  # fmt: skip
    journal = Journal(search.folder / JOURNAL_FILE)
    try:
        with stop_requested(_STOP_NOTICE) if stop is None else nullcontext(stop) as flag:
            return _Session(search, inputs, journal, flag).run(cluster)
    finally:
        journal.close()


def run_search_here(search: SearchRun) -> int:
    """Search on this machine, print the front, and return the exit code.

    A sweep's searches run one after another; their comparison is printed then. One that fails for
    what a user can mend does not keep the others from being done.
    """
    if search.sweep.is_empty:
        return finish(search, run_search(search))
    searches = expand(search)
    space = find_inputs(searches[0]).space
    for search in searches:  # all are checked before hours go into the first
        require_searchable(search, space)
    failed: list[str] = []
    for search in searches:
        if not search.json_:  # then the comparison alone is printed
            print(f"search {search.name}")
        try:
            result = run_search(search)
        except UserError as fault:
            print(f"error: search {search.name}: {fault}", file=sys.stderr)
            failed.append(search.name)
            continue
        if not search.json_:
            print(format_front(result, search.objectives))
        code = _end(search, result)
        if code != 0:
            return code
    rows = write_comparison(search.folder, searches)
    table = {"searches": [asdict(row) for row in rows], "failed": failed}
    print(json.dumps(table) if search.json_ else format_sweep(rows))
    if failed:
        print(f"error: not searched to the end: {', '.join(failed)}; see above", file=sys.stderr)
    return 1 if failed else 0


def finish(search: SearchRun, result: SearchResult) -> int:
    """Print the front of a search and write its report. Returns the exit code."""
    if search.json_:
        print(json.dumps(_as_json(result)))
    else:
        print(format_front(result, search.objectives))
    return _end(search, result)


def _end(search: SearchRun, result: SearchResult) -> int:
    if result.finished and result.front:
        logger.info("report: %s", write_report(search.folder))
    elif result.finished:
        logger.warning("no subnet that was tried keeps %s: no front, no report",
                       ", ".join(map(str, search.constraints)))  # fmt: skip
    if result.finished:
        return 0
    print("the search was stopped; run the same command to go on", file=sys.stderr)
    return 128 + result.stopped_by if result.stopped_by else 1


class _Session:
    """A search under way: its plan, the evaluators that work on it, and what is written."""

    def __init__(
        self, search: SearchRun, inputs: SearchInputs, journal: Journal, stop: StopFlag
    ) -> None:
        self._search = search
        self._inputs = inputs
        self._stop = stop
        self._started = time.time()
        known = len(journal)
        earlier = folder_format(search.folder) < FORMAT
        self._plan = SearchPlan(search, inputs, journal, earlier_format=earlier)
        self._tensorboard = TensorBoard(search, first_trial=len(self._plan.trials()))
        logger.info("%d subnets in the journal; %d trials asked for", known, search.trials)

    def run(self, cluster: FindRay | None) -> SearchResult:
        """Evaluate what is left, and write the results, also where that fails."""
        plan = self._plan
        try:
            if not plan.is_finished and not self._stop:
                self._evaluate(cluster)
        finally:
            result = self._result()
            self._write(result)
            self._tensorboard.finish(plan.trials(), result.front, result.references)
        return result

    def _evaluate(self, cluster: FindRay | None) -> None:
        place = self._search.cluster
        if cluster is None and place.cluster == "inline":
            self._evaluate_here()
            return
        logger.info("joining Ray%s", "" if cluster is not None else ", starting on this machine")
        most = place.nodes or 1
        nodes = (place.min_nodes or most, most)
        ray = local_ray(self._search) if cluster is None else joined_ray(cluster, nodes=nodes)
        with ray:
            from supersam.search.tuner import evaluate_on_ray  # Ray reads its environment only once

            evaluate_on_ray(
                self._search,
                self._inputs.source,
                self._plan,
                stop=self._stop,
                on_trials=self._on_trials,
            )

    def _evaluate_here(self) -> None:
        prepare_process(self._search, 1)
        evaluator = SubnetEvaluator(self._search, self._inputs.source)
        logger.info("keeping up to %.2f GiB of layers' outputs", evaluator.cache_bytes / 2**30)
        while not self._stop and not self._plan.is_finished:
            chunk = self._plan.next_chunk()
            assert chunk is not None  # this is the only evaluator
            self._on_trials(self._plan.complete(evaluator.evaluate(chunk)))

    def _on_trials(self, new: list[Trial]) -> None:
        trials, front = self._plan.trials(), self._plan.front()
        self._tensorboard.show(trials, front, self._plan.references())
        write_front(self._search.folder, front)
        logger.info("%d of %d trials, %d on the front",
                    len(trials), self._search.trials, len(front))  # fmt: skip

    def _result(self) -> SearchResult:
        return SearchResult(
            folder=self._search.folder,
            front=tuple(self._plan.front()),
            references=self._plan.references(),
            num_trials=len(self._plan.trials()),
            finished=self._plan.is_finished,
            stopped_by=self._stop.number,
        )

    def _write(self, result: SearchResult) -> None:
        status = Counter(trial.status for trial in self._plan.trials())
        write_front(self._search.folder, result.front)
        results = {
            "finished": result.finished,
            "num_trials": result.num_trials,
            "status": {name: status[name] for name in get_args(Status)},
            "seconds": time.time() - self._started,
            "front": [trial.key for trial in result.front],
            "references": {name: trial.to_dict() for name, trial in result.references.items()},
            "predictor": self._predictor_error(),
        }
        write_record(self._search, self._inputs, results)

    def _predictor_error(self) -> dict[str, Any] | None:
        complete = [trial for trial in self._plan.trials() if trial.status == "complete"]
        if len(complete) < FEWEST:
            return None
        miou = np.array([trial.metrics["miou"] for trial in complete])
        specs = [trial.spec for trial in complete]
        return asdict(held_out_error(self._inputs.space, specs, miou))


def format_front(result: SearchResult, objectives: tuple[str, ...]) -> str:
    """An aligned table of the references and the front."""
    names = list(dict.fromkeys(("miou", *objectives, "params_m", "flops_g")))
    header = ["subnet", *names, "95 % interval"]
    rows = [(name, trial) for name, trial in result.references.items()]
    rows += [(trial.spec.key(), trial) for trial in result.front]
    lines = [header] + [[name, *_cells(trial, names)] for name, trial in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join([*table, f"{result.num_trials} trials, {result.folder}"])


def _cells(trial: Trial, names: list[str]) -> list[str]:
    metrics = trial.metrics
    cells = [f"{metrics[name]:.4f}" if name in metrics else "-" for name in names]
    interval = "-"
    if "miou_lo" in metrics:
        interval = f"{metrics['miou_lo']:.4f}-{metrics['miou_hi']:.4f}"
    return [*cells, interval]


def _as_json(result: SearchResult) -> dict[str, Any]:
    return {
        "folder": str(result.folder),
        "finished": result.finished,
        "num_trials": result.num_trials,
        "front": [trial.to_dict() for trial in result.front],
        "references": {name: trial.to_dict() for name, trial in result.references.items()},
    }
