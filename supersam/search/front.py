"""What a search found: its front, as it was written, and the subnets on it that people ask for."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supersam.config import UserError
from supersam.config.files import PARETO_CSV, PARETO_JSON
from supersam.runs.subnet_reference import Place, place_on_front
from supersam.runtime.atomic import write_bytes, write_json
from supersam.search.final_score import FinalScore
from supersam.search.journal import LARGEST, Trial


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
    measured: Mapping[str, Trial] = field(default_factory=dict)
    """The front on images that no proposal saw, by `SubnetSpec.key`; empty where none are given."""
    measured_references: Mapping[str, Trial] = field(default_factory=dict)
    """The fixed subnets on those images, by name."""

    def comparisons(self) -> dict[str, FinalScore]:
        """What was measured on those images, each beside the largest subnet there."""
        largest = self.measured_references.get(LARGEST)
        return {name: FinalScore.of(trial, largest) for name, trial in self.measured.items()}


def read_front(path: Path) -> list[Trial]:
    """The trials of a `pareto.json`, or of the one in a search's folder, in their order.

    Raises UserError where there is none, or none on it yet.
    """
    front = [trial for trial, _ in read_entries(path)]
    if not front:
        raise UserError(f"{path} holds no subnet yet")
    return front


def read_final_scores(path: Path) -> dict[str, FinalScore]:
    """What was measured on images that no proposal saw, by subnet; empty in a search without."""
    scores = {trial.spec.key(): entry.get("final") for trial, entry in read_entries(path)}
    return {name: FinalScore.from_dict(score) for name, score in scores.items() if score}


def read_entries(path: Path) -> list[tuple[Trial, dict[str, Any]]]:
    """Each trial of a front beside its whole entry in the file; see `read_front`."""
    file = path / PARETO_JSON if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file} is not there; name the folder of a search that found something")
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        front = [(Trial.from_dict(values), values) for values in entries]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise UserError(f"{file} is not a front written by launch/search.py: {fault}") from None
    return front


def best(front: list[Trial]) -> Trial:
    """The subnet of the highest mIoU."""
    return _at("best", front)


def knee(front: list[Trial]) -> Trial:
    """The subnet farthest above the line between the ends of the front; see `place_on_front`."""
    return _at("knee", front)


def cheapest(front: list[Trial]) -> Trial:
    """The subnet of the fewest FLOPs."""
    return _at("cheapest", front)


def _at(place: Place, front: list[Trial]) -> Trial:
    return front[place_on_front(place, [trial.metrics for trial in front])]


def front_entries(front: Sequence[Trial], final: Mapping[str, FinalScore]) -> list[dict[str, Any]]:
    """The front as plain values: each trial, with its score on the final data as `final`."""
    entries = []
    for trial in front:
        score = final.get(trial.spec.key())
        entries.append(trial.to_dict() | ({} if score is None else {"final": score.as_dict()}))
    return entries


def write_front(
    folder: Path, front: Sequence[Trial], final: Mapping[str, FinalScore] | None = None
) -> None:
    """Write `pareto.json`, a list of trials, and `pareto.csv`, the same as a table.

    `key` there is the trial's, `subnet` the name that an export has too. final: scores on images
    that no proposal saw, by subnet; an entry then has them as `final`, a row as `final_*`.
    """
    scores = {name: score.as_dict() for name, score in (final or {}).items()}
    entries = [(trial, scores.get(trial.spec.key())) for trial in front]
    write_json(folder / PARETO_JSON, front_entries(front, final or {}))
    names = sorted({name for trial in front for name in trial.metrics})
    measured = list(dict.fromkeys(name for score in scores.values() for name in score))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    genes = ["layers", "mlp_widths", "heads", "embed_dim"]
    if any(trial.spec.resolution is not None for trial in front):
        genes.append("resolution")  # empty where it is the model's own
    head = ["key", "subnet", *names, "num_images", "num_objects", *genes]
    table.writerow([*head, *(f"final_{name}" for name in measured)])
    for trial, score in entries:
        spec = trial.spec.to_dict()
        table.writerow(
            [trial.key, trial.spec.key(), *(trial.metrics.get(name, "") for name in names)]
            + [trial.num_images, trial.num_objects]
            + [" ".join(map(str, spec[name])) for name in genes[:3]]
            + [spec.get(name, "") for name in genes[3:]]
            + [(score or {}).get(name, "") for name in measured]
        )
    write_bytes(folder / PARETO_CSV, text.getvalue().encode())
