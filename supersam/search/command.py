"""What launch/search.py does on the machine, or the allocation, where the search runs."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from supersam.config import SearchRun, UserError
from supersam.config.files import JOURNAL_FILE
from supersam.runtime.device import choose_device
from supersam.runtime.distributed import World
from supersam.runtime.logging import setup_logging
from supersam.runtime.signals import StopFlag, stop_requested
from supersam.search.evaluator import SubnetObjective, prepare_process
from supersam.search.folder import (
    SearchInputs,
    find_inputs,
    prepare_folder,
    require_searchable,
    write_record,
)
from supersam.search.journal import Journal, Trial
from supersam.search.pareto import write_front
from supersam.search.plan import SearchPlan
from supersam.search.predictor import FEWEST, held_out_error
from supersam.search.ray.address import FindRay
from supersam.search.ray.session import joined_ray, local_ray
from supersam.search.report.comparison import write_comparison
from supersam.search.report.page import write_report
from supersam.search.sweep import expand, format_sweep
from supersam.search.tensorboard import Board

logger = logging.getLogger(__name__)


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
    asked: SearchRun, *, cluster: FindRay | None = None, stop: StopFlag | None = None
) -> SearchResult:
    """Search, from the beginning or from where the journal ends.

    Runs on the Ray that `cluster` finds, or on one of its own on this machine, or with `--cluster
    inline` in this process without Ray. `stop` is the flag of a caller that takes the signals
    already; by default they are taken once everything is checked. Raises UserError for what a user
    can mend; nothing is written then.
    """
    basis = find_inputs(asked)
    if cluster is None:
        choose_device(asked.device)
    wanted = asked.trials
    asked = prepare_folder(asked, basis)
    setup_logging(World.single(), asked.folder / "logs" / "search.log")
    if basis.train_run.model.checkpoint is not None and not basis.has_start:
        logger.warning("--model.checkpoint %s is gone: nothing pretrained to compare with",
                       basis.train_run.model.checkpoint)  # fmt: skip
    if basis.seen.seen:
        logger.warning("training saw the evaluation data: %s", basis.seen.detail)
    if asked.trials > wanted:
        logger.info("%d trials are done, and %d were asked for: nothing more is proposed; a larger "
                    "--trials goes on", asked.trials, wanted)  # fmt: skip
    journal = Journal(asked.folder / JOURNAL_FILE)
    try:
        with stop_requested() if stop is None else nullcontext(stop) as flag:
            return _search(asked, basis, journal, cluster, flag)
    finally:
        journal.close()


def run_search_here(asked: SearchRun) -> int:
    """Search on this machine, print the front, and return the exit code.

    A sweep's searches run one after another; their comparison is printed then. One that fails for
    what a user can mend does not keep the others from being done.
    """
    if asked.sweep.is_empty:
        return finish(asked, run_search(asked))
    searches = expand(asked)
    space = find_inputs(searches[0]).space
    for search in searches:  # all are checked before hours go into the first
        require_searchable(search, space)
    failed: list[str] = []
    for search in searches:
        if not asked.json_:  # then the comparison alone is printed
            print(f"search {search.name}")
        try:
            result = run_search(search)
        except UserError as fault:
            print(f"error: search {search.name}: {fault}", file=sys.stderr)
            failed.append(search.name)
            continue
        if not asked.json_:
            print(format_front(result, search.objectives))
        code = _end(search, result)
        if code != 0:
            return code
    rows = write_comparison(asked.folder, searches)
    table = {"searches": [asdict(row) for row in rows], "failed": failed}
    print(json.dumps(table) if asked.json_ else format_sweep(rows))
    if failed:
        print(f"error: not searched to the end: {', '.join(failed)}; see above", file=sys.stderr)
    return 1 if failed else 0


def finish(asked: SearchRun, result: SearchResult) -> int:
    """Print the front of a search and write its report. Returns the exit code."""
    if asked.json_:
        print(json.dumps(_as_json(result)))
    else:
        print(format_front(result, asked.objectives))
    return _end(asked, result)


def _end(asked: SearchRun, result: SearchResult) -> int:
    if result.finished and result.front:
        logger.info("report: %s", write_report(asked.folder))
    elif result.finished:
        logger.warning("no subnet that was tried keeps %s: no front, no report",
                       ", ".join(map(str, asked.constraints)))  # fmt: skip
    if result.finished:
        return 0
    print("the search was stopped; run the same command to go on", file=sys.stderr)
    return 128 + result.stopped_by if result.stopped_by else 1


def _search(
    asked: SearchRun, basis: SearchInputs, journal: Journal, cluster: FindRay | None, stop: StopFlag
) -> SearchResult:
    started, known = time.time(), len(journal)
    program = SearchPlan(asked, basis, journal)
    board = Board(asked, asked.folder, first_trial=len(program.trials()))
    logger.info("%d subnets in the journal; %d trials asked for", known, asked.trials)

    def on_trials(new: list[Trial]) -> None:
        trials, front = program.trials(), program.front()
        board.show(trials, front, program.references())
        write_front(asked.folder, front)
        logger.info("%d of %d trials, %d on the front", len(trials), asked.trials, len(front))

    try:
        if not program.is_finished and not stop:
            _evaluate(asked, basis, program, cluster, stop, on_trials)
    finally:
        result = _result(asked, program, stop)
        _write_results(asked, basis, program, result, seconds=time.time() - started)
        board.finish(program.trials(), result.front, result.references)
    return result


def _evaluate(
    asked: SearchRun,
    basis: SearchInputs,
    program: SearchPlan,
    cluster: FindRay | None,
    stop: StopFlag,
    on_trials: Callable[[list[Trial]], None],
) -> None:
    if cluster is None and asked.cluster.cluster == "inline":
        prepare_process(asked, 1)
        objective = SubnetObjective(asked, basis.source)
        logger.info("keeping up to %.2f GiB of layers' outputs", objective.kept_bytes / 2**30)
        while not stop and not program.is_finished:
            chunk = program.next_chunk()
            assert chunk is not None  # this is the only evaluator
            on_trials(program.complete(objective.evaluate(chunk)))
        return
    logger.info("joining Ray%s", "" if cluster is not None else ", which starts on this machine")
    most = asked.cluster.nodes or 1
    nodes = (asked.cluster.min_nodes or most, most)
    with local_ray(asked) if cluster is None else joined_ray(cluster, nodes=nodes):
        from supersam.search.tuner import evaluate_on_ray  # Ray reads its environment only once

        evaluate_on_ray(asked, basis.source, program, stop=stop, on_trials=on_trials)


def _result(asked: SearchRun, program: SearchPlan, stop: StopFlag) -> SearchResult:
    return SearchResult(
        folder=asked.folder,
        front=tuple(program.front()),
        references=program.references(),
        num_trials=len(program.trials()),
        finished=program.is_finished,
        stopped_by=stop.number,
    )


def _write_results(
    asked: SearchRun,
    basis: SearchInputs,
    program: SearchPlan,
    result: SearchResult,
    *,
    seconds: float,
) -> None:
    trials = program.trials()
    counts = {s: sum(t.status == s for t in trials) for s in ("complete", "stopped", "infeasible")}
    write_front(asked.folder, result.front)
    results: dict[str, Any] = {
        "finished": result.finished,
        "num_trials": len(trials),
        "status": counts,
        "seconds": seconds,
        "front": [trial.key for trial in result.front],
        "references": {name: trial.to_dict() for name, trial in result.references.items()},
        "predictor": None,
    }
    complete = [trial for trial in trials if trial.status == "complete"]
    if len(complete) >= FEWEST:
        miou = np.array([trial.metrics["miou"] for trial in complete])
        error = held_out_error(basis.space, [trial.spec for trial in complete], miou)
        results["predictor"] = asdict(error)
    write_record(asked, basis, results)


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
