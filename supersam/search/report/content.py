"""What a search has found, read from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supersam.config import SearchRun, load_run
from supersam.config.files import JOURNAL_FILE, SEARCH_YAML
from supersam.runs.weights import read_run
from supersam.search.final_score import FinalScore
from supersam.search.folder import read_record
from supersam.search.front import best, cheapest, knee, read_final_scores, read_front
from supersam.search.journal import LARGEST, PRETRAINED, SMALLEST, Trial, read_journal
from supersam.space import SearchSpace, resolve_shape

_FIXED = (PRETRAINED, LARGEST, SMALLEST)


@dataclass(frozen=True)
class Report:
    """What a page is made of."""

    folder: Path
    search: SearchRun
    record: Mapping[str, Any]
    """`search.json`."""
    space: SearchSpace
    trials: list[Trial]
    """Complete trials in the order they were proposed, after the largest and the smallest."""
    front: list[Trial]
    references: Mapping[str, Trial]
    final: Mapping[str, FinalScore]
    """Scores of the front on images that no proposal saw, by subnet; empty where not measured."""
    final_references: Mapping[str, FinalScore]
    """Those of the fixed subnets, by name."""

    @property
    def picks(self) -> dict[str, Trial]:
        """Subnets of the front that people ask for, cheapest first; equal ones once."""
        named = {"cheapest": cheapest, "knee": knee, "best": best}
        found: dict[str, Trial] = {}
        for name, pick in named.items():
            trial = pick(self.front)
            if all(trial.key != other.key for other in found.values()):
                found[name] = trial
        return found


def read_report(folder: Path) -> Report:
    """Everything that the page needs. Raises UserError where the folder is not a search."""
    record, search = read_record(folder), load_run(SearchRun, folder / SEARCH_YAML)
    shape = resolve_shape(read_run(search.run).model)
    space = {k: v for k, v in record["space"].items() if k != "num_subnets"}
    journal = read_journal(folder / JOURNAL_FILE)
    # the largest and the smallest are evaluated first, and not again where a searcher asks
    found = [t for t in journal if t.stage != "final" and t.status == "complete"]
    references = {t.searcher: t for t in journal if t.stage == "reference"}
    references |= {n: Trial.from_dict(v) for n, v in record.get("references", {}).items()}
    return Report(
        folder=folder,
        search=search,
        record=record,
        space=SearchSpace.from_dict(space, shape),
        trials=sorted(
            (t for t in found if t.searcher != PRETRAINED), key=lambda t: (t.batch, t.index)
        ),
        front=read_front(folder),
        final=read_final_scores(folder),
        final_references=_final_references(record),
        references={n: references[n] for n in _FIXED if n in references},
    )


def _final_references(record: Mapping[str, Any]) -> dict[str, FinalScore]:
    measured = {n: Trial.from_dict(v) for n, v in record.get("final_references", {}).items()}
    return {n: FinalScore.of(t, measured.get(LARGEST)) for n, t in measured.items()}
