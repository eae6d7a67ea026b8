"""Several searches of one supernet on one page: hypervolume of each searcher and constraint."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from supersam.config import SearchRun, UserError, load_run
from supersam.runtime.atomic import write_bytes, write_json
from supersam.search import figures
from supersam.search.folder import SEARCH_YAML, read_record
from supersam.search.html import Markup, page, picture, table, tag
from supersam.search.journal import JOURNAL, Trial, read_journal
from supersam.search.pareto import Costs, cost_matrix, hypervolume

_SAME = "weights, evaluation data, objectives and protocol"


class _Search:
    """One folder's trials and what tells it from the others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked = load_run(SearchRun, folder / SEARCH_YAML)
        record = read_record(folder)
        self.run, self.step = record["run"], record["checkpoint"]["step"]
        self.basis = (
            record["checkpoint"]["sha256"],
            record["data"]["id"],
            self.asked.objectives,
            self.asked.protocol,
        )
        found = [t for t in read_journal(folder / JOURNAL) if t.stage == "search"]
        complete = [trial for trial in found if trial.status == "complete"]
        self.num_trials = len(found)
        self.trials: list[Trial] = sorted(complete, key=lambda t: (t.batch, t.index))

    @property
    def group(self) -> str:
        """The constraints, in words: only searches under the same ones compare."""
        return ", ".join(map(str, self.asked.constraints)) or "no constraint"


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write `report.html`, `comparison.json` and `figures/` into `out`. Returns the page's path.

    Raises UserError where a folder is no search, or they are not of the same supernet, data,
    objectives and protocol.
    """
    searches = [_Search(folder) for folder in folders]
    _require_comparable(searches)
    groups: dict[str, list[_Search]] = defaultdict(list)
    for search in searches:
        groups[search.group].append(search)
    place = out / "figures"
    place.mkdir(parents=True, exist_ok=True)
    parts: list[Markup] = [_introduction(searches[0])]
    rows: list[dict[str, Any]] = []
    for number, (name, members) in enumerate(groups.items()):
        curves = volume_curves(members)
        file = place / f"hypervolume-{number}.svg"
        figures.draw_volumes(file, _by_searcher(members, curves), name)
        found = [_row(s, c) for s, c in zip(members, curves, strict=True)]
        rows += found
        parts += [tag("h2", name), tag("figure", picture(file, alt=f"hypervolume, {name}"))]
        parts += [_summary(found), _table(found)]
    write_json(out / "comparison.json", rows)
    path = out / "report.html"
    write_bytes(path, page(f"Searches of {searches[0].run}", *parts).encode())
    return path


def volume_curves(searches: Sequence[_Search]) -> list[list[float]]:
    """Hypervolume after each complete trial, as a share of the box of all trials of all searches.

    One box for all: numbers of one group compare with each other.
    """
    objectives = searches[0].asked.objectives
    costs = [cost_matrix(search.trials, objectives) for search in searches]
    every = np.concatenate(costs)
    best, span = every.min(0), np.ptp(every, axis=0)
    scaled = [(each - best) / np.where(span > 0, span, 1.0) for each in costs]
    return [_curve(each) for each in scaled]


def _curve(costs: Costs) -> list[float]:
    reference = np.ones(costs.shape[1]) * (1 + 1e-9)  # the worst of all counts too, but nothing
    return [hypervolume(costs[: n + 1], reference) for n in range(len(costs))]


def _require_comparable(searches: Sequence[_Search]) -> None:
    first = searches[0]
    for search in searches:
        if search.basis != first.basis:
            raise UserError(
                f"{search.folder} and {first.folder} do not compare: they differ in {_SAME}; "
                "name searches of one sweep"
            )
        if not search.trials:
            raise UserError(f"{search.folder} has no complete trial yet; leave it out")


def _by_searcher(
    searches: Sequence[_Search], curves: Sequence[list[float]]
) -> Mapping[str, list[list[float]]]:
    lines: dict[str, list[list[float]]] = defaultdict(list)
    for search, curve in zip(searches, curves, strict=True):
        lines[search.asked.searcher].append(curve)
    return lines


def _row(search: _Search, curve: list[float]) -> dict[str, Any]:
    return {
        "folder": str(search.folder),
        "searcher": search.asked.searcher,
        "constraint": search.group,
        "seed": search.asked.seed,
        "trials": search.num_trials,
        "complete": len(search.trials),
        "hypervolume": curve[-1],
        "best_miou": max(trial.metrics["miou"] for trial in search.trials),
        "seconds": sum(trial.seconds for trial in search.trials),
    }


def _introduction(search: _Search) -> Markup:
    text = (
        f"Checkpoint at step {search.step}; objectives "
        f"{', '.join(figures.LABELS[name] for name in search.asked.objectives)}. Hypervolume: the "
        "share of the box of all trials under one constraint that a search's front dominates; 1 "
        "would be one subnet that is best in everything."
    )
    return tag("p", text)


def _summary(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """A line a searcher: its mean over seeds, and their range."""
    volumes: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        volumes[row["searcher"]].append(row["hypervolume"])
    ordered = sorted(volumes.items(), key=lambda item: -float(np.mean(item[1])))
    cells = [
        [name, f"{np.mean(v):.4f}", f"{min(v):.4f} to {max(v):.4f}", str(len(v))]
        for name, v in ordered
    ]
    return table(["searcher", "mean hypervolume", "lowest to highest", "seeds"], cells)


def _table(rows: Sequence[Mapping[str, Any]]) -> Markup:
    head = ["folder", "searcher", "seed", "trials", "complete", "hypervolume", "best mIoU", "min"]
    cells = [
        [
            row["folder"],
            row["searcher"],
            str(row["seed"]),
            str(row["trials"]),
            str(row["complete"]),
            f"{row['hypervolume']:.4f}",
            f"{row['best_miou']:.4f}",
            f"{row['seconds'] / 60:.1f}",
        ]
        for row in rows
    ]
    return table(head, cells)
