"""Several searches of one supernet on one page: their fronts, and hypervolume of each searcher."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from supersam.config import SearchRun, UserError, load_run
from supersam.config.files import FIGURES, REPORT_FILE, SEARCH_YAML
from supersam.runtime.atomic import write_bytes
from supersam.search.folder import read_record
from supersam.search.report import figures
from supersam.search.report.charts import fronts_chart, volumes_chart
from supersam.search.report.parts import (
    Cell,
    Chart,
    Page,
    Part,
    Row,
    Section,
    Table,
    Text,
    render,
    svg_uri,
)
from supersam.search.sweep import (
    SearchProgress,
    SweepRow,
    compare,
    read_progress,
    volume_curves,
)


def write_comparison(folder: Path, searches: Sequence[SearchRun]) -> list[SweepRow]:
    """Write `sweep.json`, `sweep.csv`, `report.html` and `figures/` of the searches begun so far.

    Returns the rows of the table. The page has a part for each constraint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress = read_progress(searches)
    curves = volume_curves(progress)
    rows = compare(folder, progress, curves)
    place = folder / FIGURES
    place.mkdir(exist_ok=True)
    groups: dict[str, list[_Member]] = defaultdict(list)
    for one, row, curve in zip(progress, rows, curves, strict=True):
        groups[row.constraint or "no constraint"].append(_Member(one, row, curve))
    sections = [Section("", [_introduction(searches[0])])]
    for number, (name, members) in enumerate(groups.items()):
        file = place / f"hypervolume-{number}.svg"
        figures.draw_volumes(file, _by_searcher(members), name)
        sections.append(Section(name, _group(members, file, searches[0].objectives)))
    title = f"{folder.name}: searches of {searches[0].run}"
    page = Page(title, _headline(groups), sections)
    write_bytes(folder / REPORT_FILE, render(page).encode())
    return rows


@dataclass(frozen=True)
class _Member:
    progress: SearchProgress
    row: SweepRow
    curve: list[float]


def _headline(groups: Mapping[str, Sequence[_Member]]) -> str:
    """Which searcher is ahead under each constraint."""
    said = []
    for name, members in groups.items():
        ordered = _mean_volumes(members)
        if len(ordered) > 1:
            (first, best), (second, next_best) = ordered[:2]
            said.append(
                f"{first} leads under {name}: hypervolume {best:.3f}, {second} {next_best:.3f}"
            )
    count = sum(map(len, groups.values()))
    return "; ".join(said) + "." if said else f"{count} searches of one searcher."


def _mean_volumes(members: Sequence[_Member]) -> list[tuple[str, float]]:
    """(searcher, hypervolume on average over its seeds), best first."""
    volumes: dict[str, list[float]] = defaultdict(list)
    for member in members:
        volumes[member.row.searcher].append(member.row.hypervolume)
    means = [(name, float(np.mean(each))) for name, each in volumes.items()]
    return sorted(means, key=lambda item: -item[1])


def _group(members: Sequence[_Member], file: Path, objectives: Sequence[str]) -> list[Part]:
    """The searches under one constraint."""
    fronts = {m.row.name: m.progress.front for m in members if m.progress.front}
    rows = [member.row for member in members]
    caption = "Hypervolume after each trial."
    parts: list[Part] = [Chart(volumes_chart(_by_searcher(members)), caption, svg_uri(file))]
    if fronts:
        caption = "The fronts over each other; tick a search off to hide it."
        parts.insert(0, Chart(fronts_chart(fronts, objectives), caption))
    return [*parts, _summary(rows), _table(rows)]


def read_searches(folders: Sequence[Path]) -> list[SearchRun]:
    """What the folders' searches were asked for.

    Each is named by the end of its path that tells it from the others. Raises UserError where a
    folder is named twice, or where they are not of one supernet, data, protocol and objectives:
    their numbers would not compare.
    """
    searches = [
        load_run(SearchRun, folder / SEARCH_YAML).model_copy(update={"out": folder, "name": name})
        for folder, name in zip(folders, distinguishing_names(folders), strict=True)
    ]
    first, *others = (_comparable(search) for search in searches)
    for folder, other in zip(folders[1:], others, strict=True):
        differing = [name for name in first if first[name] != other[name]]
        if differing:
            raise UserError(
                f"{folder} and {folders[0]} do not compare: they differ in {', '.join(differing)}; "
                "name searches of one sweep"
            )
    return searches


def distinguishing_names(folders: Sequence[Path]) -> list[str]:
    """For each folder the shortest end of its path that no other one has, such as `a/search`.

    Raises UserError where two are the same folder.
    """
    whole = [folder.resolve() for folder in folders]
    for place, folder in enumerate(whole):
        if folder in whole[:place]:
            raise UserError(f"{folders[place]} is named twice; name each search once")
    ends = [[Path(*path.parts[-n:]) for n in range(1, len(path.parts) + 1)] for path in whole]
    counts = Counter(end for some in ends for end in some)
    return [str(next(end for end in some if counts[end] == 1)) for some in ends]


def _comparable(search: SearchRun) -> dict[str, object]:
    record = read_record(search.folder)
    return {
        "weights": record["checkpoint"]["sha256"],
        "evaluation data": record["data"]["id"],
        "objectives": search.objectives,
        "protocol": search.protocol,
    }


def _by_searcher(members: Sequence[_Member]) -> Mapping[str, list[list[float]]]:
    lines: dict[str, list[list[float]]] = defaultdict(list)
    for member in members:
        lines[member.row.searcher].append(member.curve)
    return lines


def _introduction(search: SearchRun) -> Text:
    return Text(
        f"{' against '.join(figures.NAMES[name] for name in search.objectives)}. Hypervolume "
        "is the share of the volume that the subnets of a searcher dominate, of what those of all "
        "dominate together; only searches under one constraint compete. Front and best mIoU are "
        "each search's own, with the largest and the smallest subnet where they are on it."
    )


def _summary(rows: Sequence[SweepRow]) -> Table:
    """A line for each searcher: its mean over seeds, and their range."""
    volumes: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        volumes[row.searcher].append(row.hypervolume)
    ordered = sorted(volumes.items(), key=lambda item: -float(np.mean(item[1])))
    cells = [
        [name, f"{np.mean(v):.4f}", f"{min(v):.4f} to {max(v):.4f}", str(len(v))]
        for name, v in ordered
    ]
    return _plain(["searcher", "mean hypervolume", "lowest to highest", "seeds"], cells)


def _table(rows: Sequence[SweepRow]) -> Table:
    head = ["search", "seed", "trials", "front", "hypervolume", "best mIoU", "minutes", ""]
    cells = [
        [
            row.name,
            str(row.seed),
            str(row.trials),
            str(row.front),
            f"{row.hypervolume:.4f}",
            f"{row.best_miou:.4f}",
            f"{row.seconds / 60:.1f}",
            "" if row.finished else "not finished",
        ]
        for row in rows
    ]
    return _plain(head, cells)


def _plain(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return Table(head, [Row([Cell(text) for text in row]) for row in rows])
