"""Several searches of one run, and their comparison: same reference, same units."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np

from supersam.config import SearchRun
from supersam.config.files import JOURNAL_FILE, PARETO_JSON, SEARCH_FILE, SWEEP_CSV, SWEEP_JSON
from supersam.config.search import SweepConfig
from supersam.runtime.atomic import write_bytes, write_json
from supersam.runtime.table import aligned
from supersam.search.folder import read_record, trials_done
from supersam.search.front import read_entries
from supersam.search.journal import Trial, read_journal
from supersam.search.pareto import cost_matrix, growing_volumes, hypervolume


@dataclass(frozen=True)
class SweepRow:
    """One search among others."""

    name: str
    searcher: str
    constraint: str
    seed: int
    finished: bool
    trials: int
    """Subnets that its searcher proposed, those given up early among them."""
    front: int
    """Subnets on its front as in `pareto.json`, the largest and the smallest among them."""
    hypervolume: float
    """Share of the volume that the trials of all searches dominate together. What the searcher
    found alone: the largest and the smallest subnet are everybody's."""
    best_miou: float
    """Highest mIoU of the front; 0 without a front."""
    seconds: float
    """Time in the model and the scoring."""


def expand(search: SearchRun) -> list[SearchRun]:
    """The searches of a sweep, each with a folder below the sweep's; of a single search, itself."""
    sweep = search.sweep
    if sweep.is_empty:
        return [search]
    searches = []
    for searcher, constraint, seed in product(
        sweep.searchers or (search.searcher,),
        sweep.constraints or ("",),
        sweep.seeds or (search.seed,),
    ):
        name = "-".join(filter(None, (searcher, _slug(constraint), f"seed{seed}")))
        searches.append(
            search.model_copy(
                update={
                    "searcher": searcher,
                    "constraint": (*search.constraint, *filter(None, [constraint])),
                    "seed": seed,
                    "name": name,
                    "out": search.folder / name,
                    "sweep": SweepConfig(),
                }
            )
        )
    return searches


@dataclass(frozen=True)
class SearchProgress:
    """A search that has begun, and what it has found so far."""

    search: SearchRun
    trials: list[Trial]
    """Complete trials that its searcher proposed, in that order; fixed subnets belong to all."""
    proposed: int
    """Number of these trials and of those that were given up early."""
    front: list[Trial]
    """The front as it was written last; empty before."""


def read_progress(searches: Sequence[SearchRun]) -> list[SearchProgress]:
    """The searches that have begun, with their trials so far."""
    return [_read(search) for search in searches if (search.folder / SEARCH_FILE).is_file()]


def compare(
    folder: Path, progress: Sequence[SearchProgress], curves: Sequence[list[float]]
) -> list[SweepRow]:
    """Write `sweep.json` and `sweep.csv`, a row for each search in their order.

    curves: their `volume_curves`.
    """
    rows = [_row(one, curve) for one, curve in zip(progress, curves, strict=True)]
    write_json(folder / SWEEP_JSON, {"searches": [asdict(row) for row in rows]})
    text = io.StringIO()
    table = csv.DictWriter(text, list(SweepRow.__dataclass_fields__), lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in rows)
    write_bytes(folder / SWEEP_CSV, text.getvalue().encode())
    return rows


def volume_curves(progress: Sequence[SearchProgress]) -> list[list[float]]:
    """For each search its hypervolume after each trial, as a share of that of all searches.

    Volumes are taken in the box that all trials span, each objective scaled to 1.
    """
    every = [trial for one in progress for trial in one.trials]
    if not every:
        return [[] for _ in progress]
    costs = cost_matrix(every, progress[0].search.objectives)
    span = np.ptp(costs, axis=0)
    scaled = (costs - costs.min(0)) / np.where(span > 0, span, 1.0)
    corner = np.full(scaled.shape[1], 1.0 + 1e-9)
    whole = hypervolume(scaled, corner)
    ends = np.cumsum([len(one.trials) for one in progress])
    return [
        [volume / whole for volume in growing_volumes(part, corner)]
        for part in np.split(scaled, ends[:-1])
    ]


def format_sweep(rows: Sequence[SweepRow]) -> str:
    """An aligned table for a terminal."""
    lines = [["search", "trials", "front", "hypervolume", "best mIoU", ""]]
    lines += [
        [row.name, str(row.trials), str(row.front), f"{row.hypervolume:.4f}"]
        + [f"{row.best_miou:.4f}", "" if row.finished else "not finished"]
        for row in rows
    ]
    return aligned(lines)


def _read(search: SearchRun) -> SearchProgress:
    journal = search.folder / JOURNAL_FILE
    trials = read_journal(journal) if journal.is_file() else []
    complete = [t for t in trials if t.stage == "search" and t.status == "complete"]
    in_order = sorted(complete, key=lambda t: (t.batch, t.index))
    has_front = (search.folder / PARETO_JSON).is_file()
    front = read_entries(search.folder) if has_front else []
    return SearchProgress(search, in_order, trials_done(search.folder), [t for t, _ in front])


def _row(progress: SearchProgress, curve: list[float]) -> SweepRow:
    search, front = progress.search, progress.front
    return SweepRow(
        name=search.name,
        searcher=search.searcher,
        constraint=" ".join(search.constraint),
        seed=search.seed,
        finished=bool(read_record(search.folder).get("finished", False)),
        trials=progress.proposed,
        front=len(front),
        hypervolume=curve[-1] if curve else 0.0,
        best_miou=max((trial.metrics["miou"] for trial in front), default=0.0),
        seconds=sum(trial.seconds for trial in progress.trials),
    )


def _slug(constraint: str) -> str:
    """`params_m<=45` as part of a folder's name: `params_m_le_45`."""
    named = constraint.replace("<=", "_le_").replace(">=", "_ge_")
    return re.sub(r"[^A-Za-z0-9.]+", "_", named).strip("_")
