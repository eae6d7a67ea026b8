"""What `supersam search` does where it searches: the dry run, one search or a sweep, the table.

Imports no torch before a search begins.
"""

from __future__ import annotations

import json
import logging
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from supersam.config import SearchRun, UserError
from supersam.config.errors import print_error
from supersam.runtime.bootstrap import FEW_GROUPS
from supersam.runtime.process import ends_with_reader, no_gc_while_importing
from supersam.runtime.table import aligned, count
from supersam.search.final_score import FinalScore
from supersam.search.folder import check_folder
from supersam.search.front import SearchResult, best, cheapest, front_entries, knee
from supersam.search.inputs import SearchInputs, find_inputs, require_searchable
from supersam.search.journal import Trial
from supersam.search.prefix import generation_bytes
from supersam.search.sweep import expand, format_sweep

logger = logging.getLogger(__name__)


def run_search_here(search: SearchRun) -> int:
    """Search on this machine, or describe it for `--dry-run`. Returns the exit code."""
    if search.dry_run:
        with ends_with_reader():
            print(describe_searches(search), flush=True)
        return 0
    if not search.sweep.is_empty:
        return _run_sweep_here(search)
    with no_gc_while_importing():
        from supersam.search.session import run_search  # slow: it imports torch

    return finish(search, run_search(search))


def _run_sweep_here(sweep: SearchRun) -> int:
    """Perform the searches one after another, then print their comparison.

    A search that fails for what a user can mend does not keep the others from being done.
    """
    with no_gc_while_importing():
        from supersam.search.report.comparison import write_comparison  # slow: it imports torch
        from supersam.search.session import run_search

    searches = expand(sweep)
    space = find_inputs(searches[0]).space
    for search in searches:  # all are checked before hours go into the first
        require_searchable(search, space)
    failed: list[str] = []
    for search in searches:
        if not sweep.json_:  # then the comparison alone is printed
            print(f"search {search.name}")
        try:
            result = run_search(search)
        except UserError as fault:
            print_error(f"search {search.name}: {fault}")
            failed.append(search.name)
            continue
        if not sweep.json_:
            print(format_front(result, search.objectives))
        code = _end(search, result)
        if code != 0:
            return code
    rows = write_comparison(sweep.folder, searches)
    table = {"searches": [asdict(row) for row in rows], "failed": failed}
    print(json.dumps(table) if sweep.json_ else format_sweep(rows))
    if failed:
        print_error(f"not searched to the end: {', '.join(failed)}; see above")
    return 1 if failed else 0


def finish(search: SearchRun, result: SearchResult) -> int:
    """Print the front of a search and write its report. Returns the exit code."""
    if search.json_:
        print(json.dumps(_as_json(result)))
    else:
        print(format_front(result, search.objectives))
    return _end(search, result)


def _end(search: SearchRun, result: SearchResult) -> int:
    from supersam.search.report.page import export_line, write_report  # slow: torch

    if result.finished and result.front:
        path = write_report(search.folder)
        if search.json_:
            logger.info("report: %s", path)
        else:
            print(f"report: {path}\n{export_line(search.run, search.folder)}", flush=True)
    elif result.finished:
        logger.warning("no subnet that was tried keeps %s: no front, no report",
                       ", ".join(map(str, search.constraints)))  # fmt: skip
    if result.finished:
        return 0
    print("the search was stopped; run the same command to go on", file=sys.stderr)
    return 128 + result.stopped_by if result.stopped_by else 1


def describe_searches(search: SearchRun) -> str:
    """What would be searched, of a sweep each search; see `describe_search`."""
    return "\n\n".join(map(describe_search, expand(search)))


def describe_search(search: SearchRun) -> str:
    """What would be searched, for `--dry-run`. Touches no file. Raises UserError."""
    inputs = find_inputs(search)
    check_folder(search, inputs)
    lines = [
        f"run {search.run}, checkpoint at step {inputs.source.step} ({inputs.weights})",
        f"search space: {inputs.space.num_subnets():,} subnets",
        f"evaluation data: {inputs.selection}; {inputs.seen.detail}",
        _final(inputs),
        f"{search.trials} trials by {search.searcher}, objectives {', '.join(search.objectives)}, "
        f"constraints {', '.join(map(str, search.constraints)) or 'none'}",
        f"kept between subnets, an evaluator: {_kept(search, inputs)}",
        f"folder: {search.folder}",
    ]
    return "\n".join(lines)


def _final(inputs: SearchInputs) -> str:
    if inputs.final is None or inputs.final_seen is None:
        return "final data: none; --final-data or --final-share measures the front on other images"
    return f"final data: {inputs.final}; {inputs.final_seen.detail}"


def _kept(search: SearchRun, inputs: SearchInputs) -> str:
    if search.cache_gib is not None:
        return f"up to {search.cache_gib:g} GiB of layers' outputs"
    if search.protocol.images is None:
        return "a quarter of its free memory, for layers' outputs"
    full = generation_bytes(search, inputs.space.shape, search.protocol.images) / 2**30
    return f"{full:.2g} GiB of layers' outputs, or a quarter of its free memory where that is less"


def format_front(result: SearchResult, objectives: tuple[str, ...]) -> str:
    """An aligned table of the references and the front, its lines named as SEARCH#N names them."""
    names = list(dict.fromkeys(("miou", *objectives, "params_m", "flops_g")))
    scores = result.comparisons()
    shown = [*result.references.values(), *result.front]
    has_px = any(trial.spec.resolution is not None for trial in shown)
    header = ["subnet", *(_UNITS[name][0] for name in names), "95 % interval"]
    header += ["px"] if has_px else []
    header += ["final mIoU", "95 % interval", "less largest", "95 %"] if scores else []
    rows: list[tuple[str, Trial, FinalScore | None]] = [
        (name, trial, None) for name, trial in result.references.items()
    ]
    named = _place_names(result.front)
    rows += [(named[i], t, scores.get(t.spec.key())) for i, t in enumerate(result.front)]
    lines = [header]
    for name, trial, score in rows:
        px = [str(trial.spec.resolution or "own")] if has_px else []
        lines.append([name, *_cells(trial, names), *px, *(_final_cells(score) if score else [])])
    lines = [[*line, *[""] * (len(header) - len(line))] for line in lines]
    ending = f"{count(result.num_trials, 'trial')}, {result.folder}"
    words = [textwrap.fill(line, width=100) for line in _final_words(result)]
    return "\n".join([aligned(lines, right=range(1, len(header))), *words, ending])


_UNITS = {
    "miou": ("mIoU", ".4f"),
    "params_m": ("M parameters", ".2f"),
    "flops_g": ("GFLOPs", ".2f"),
    "latency_ms": ("ms", ".2f"),
    "peak_mem_mib": ("MiB", ".1f"),
}
"""Heading and form of each metric in a table."""


def _place_names(front: Sequence[Trial]) -> list[str]:
    """`#0`, `#1 knee`, ...: what `--subnet SEARCH#...` takes."""
    if not front:
        return []
    names, trials = [f"#{place}" for place in range(len(front))], list(front)
    for name, pick in (("cheapest", cheapest), ("knee", knee), ("best", best)):
        names[trials.index(pick(trials))] += f" {name}"
    return names


def _cells(trial: Trial, names: list[str]) -> list[str]:
    metrics = trial.metrics
    cells = [format(metrics[n], _UNITS[n][1]) if n in metrics else "-" for n in names]
    found = (metrics["miou_lo"], metrics["miou_hi"]) if "miou_lo" in metrics else None
    return [*cells, _interval(found)]


def _final_cells(score: FinalScore) -> list[str]:
    difference = "-" if score.less_largest is None else f"{score.less_largest:+.4f}"
    return [f"{score.miou:.4f}", _interval(score.interval), difference,
            _interval(score.less_largest_interval)]  # fmt: skip


def _interval(ends: tuple[float, float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"


def _final_words(result: SearchResult) -> list[str]:
    if not result.measured:
        return ["the front was selected on the images that it is scored on, which flatters it; "
                "--final-data DIR measures it on others"]  # fmt: skip
    fewest = min(len(trial.by_group) for trial in result.measured.values())
    if fewest < FEW_GROUPS:
        return [f"the final data are {fewest} sources alone: their intervals are uncertain, too"]
    return []


def _as_json(result: SearchResult) -> dict[str, Any]:
    return {
        "folder": str(result.folder),
        "finished": result.finished,
        "num_trials": result.num_trials,
        "front": front_entries(result.front, result.comparisons()),
        "references": {name: trial.to_dict() for name, trial in result.references.items()},
    }
