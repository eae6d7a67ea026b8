"""Several searches of one supernet on one page: hypervolume of each searcher and constraint."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from supersam.config import SearchRun, UserError, load_run
from supersam.config.files import REPORT_FILE, SEARCH_YAML
from supersam.runtime.atomic import write_bytes
from supersam.search.folder import read_record
from supersam.search.report import figures
from supersam.search.report.html import Markup, page, picture, table, tag
from supersam.search.sweep import SweepRow, compare, read_progress, volume_curves


def write_comparison(folder: Path, searches: Sequence[SearchRun]) -> list[SweepRow]:
    """Write `sweep.json`, `sweep.csv`, `report.html` and `figures/` of the searches begun so far.

    Returns the rows of the table. The page has a part for each constraint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress = read_progress(searches)
    curves = volume_curves(progress)
    rows = compare(folder, progress, curves)
    place = folder / "figures"
    place.mkdir(exist_ok=True)
    groups: dict[str, list[tuple[SweepRow, list[float]]]] = defaultdict(list)
    for row, curve in zip(rows, curves, strict=True):
        groups[row.constraint or "no constraint"].append((row, curve))
    parts = [_introduction(searches[0])]
    for number, (name, members) in enumerate(groups.items()):
        file = place / f"hypervolume-{number}.svg"
        figures.draw_volumes(file, _by_searcher(members), name)
        parts += [tag("h2", name), tag("figure", picture(file, alt=f"hypervolume, {name}"))]
        lines = [row for row, _ in members]
        parts += [_summary(lines), _table(lines)]
    text = page(f"{folder.name}: searches of {searches[0].run}", *parts)
    write_bytes(folder / REPORT_FILE, text.encode())
    return rows


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


def _by_searcher(
    members: Sequence[tuple[SweepRow, list[float]]],
) -> Mapping[str, list[list[float]]]:
    lines: dict[str, list[list[float]]] = defaultdict(list)
    for row, curve in members:
        lines[row.searcher].append(curve)
    return lines


def _introduction(search: SearchRun) -> Markup:
    text = (
        f"{' against '.join(figures.NAMES[name] for name in search.objectives)}. Hypervolume "
        "is the share of the volume that the subnets of a searcher dominate, of what those of all "
        "dominate together; only searches under one constraint compete. Front and best mIoU are "
        "each search's own, with the largest and the smallest subnet where they are on it."
    )
    return tag("p", text)


def _summary(rows: Sequence[SweepRow]) -> Markup:
    """A line a searcher: its mean over seeds, and their range."""
    volumes: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        volumes[row.searcher].append(row.hypervolume)
    ordered = sorted(volumes.items(), key=lambda item: -float(np.mean(item[1])))
    cells = [
        [name, f"{np.mean(v):.4f}", f"{min(v):.4f} to {max(v):.4f}", str(len(v))]
        for name, v in ordered
    ]
    return table(["searcher", "mean hypervolume", "lowest to highest", "seeds"], cells)


def _table(rows: Sequence[SweepRow]) -> Markup:
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
    return table(head, cells)
