"""The page about one search, and its figures as files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from supersam.config import ReportRun, SearchRun, load_run
from supersam.config.files import FIGURES, REPORT_FILE, SEARCH_YAML
from supersam.runtime.atomic import write_bytes
from supersam.runtime.bootstrap import FEW_GROUPS
from supersam.runtime.next_command import command, export_folder, next_line
from supersam.search.final_score import FinalScore
from supersam.search.journal import LARGEST, PRETRAINED, Trial
from supersam.search.predictor import FEWEST
from supersam.search.report import figures
from supersam.search.report.baselines import describe_baselines
from supersam.search.report.charts import front_chart, trials_chart
from supersam.search.report.comparison import read_searches, write_comparison
from supersam.search.report.content import Report, read_report
from supersam.search.report.contributions import Contribution, contributions, fewest_trials
from supersam.search.report.drawing import SubnetDrawing, draw_subnet
from supersam.search.report.mask_figure import draw_masks
from supersam.search.report.parts import (
    Bar,
    Cell,
    Chart,
    Drawings,
    Facts,
    Page,
    Panels,
    Part,
    Row,
    Section,
    Table,
    Text,
    render,
    render_drawing,
    svg_uri,
)
from supersam.search.sweep import SweepRow
from supersam.space import EncoderShape

_BAR_PX = 150
_KEY_LETTERS = 8


def run_report(run: ReportRun) -> int:
    """What launch/report.py does: write the page and say where it is. Returns the exit code."""
    if run.out is not None:
        searches = read_searches(run.folders)
        leader = leading_search(write_comparison(run.out, searches), searches)
        path, folder, trained = run.out / REPORT_FILE, leader.folder, leader.run
    else:
        path, folder = write_report(run.folders[0], images=run.images), run.folders[0]
        trained = load_run(SearchRun, folder / SEARCH_YAML).run
    print(f"{path}\n{export_line(trained, folder)}", flush=True)
    return 0


def leading_search(rows: Sequence[SweepRow], searches: Sequence[SearchRun]) -> SearchRun:
    """Return the search of the row with the largest hypervolume."""
    first = max(rows, key=lambda row: row.hypervolume)
    return next(search for search in searches if search.name == first.name)


def export_line(run: Path, search: Path) -> str:
    """Return the line that names the command that exports the knee of a search's front."""
    return next_line("export", *_export_words(run, search))


def _export_words(run: Path, search: Path) -> tuple[object, ...]:
    subnet = f"{search}#knee"
    return "--run", run, "--subnet", subnet, "--out", export_folder(run, subnet)


def write_report(folder: Path, *, images: int = 3) -> Path:
    """Write `report.html` and `figures/` of a search's folder. Returns the page's path.

    `images` held-out images are shown with the masks of three subnets, which loads the supernet; 0
    shows none. Raises UserError where the folder is not a search's, or has no front yet.
    """
    report = read_report(folder)
    place = folder / FIGURES
    place.mkdir(exist_ok=True)
    sections = [
        Section("", _summary(report)),
        Section("Pareto front", _front(report, place)),
        Section("The chosen subnets", _subnets(report, place)),
        *([Section("Masks of three subnets", [_masks(report, images)])] if images > 0 else []),
        Section("What each dimension contributes", _contributions(report, place)),
        Section("How this was found", [_facts(report)]),
    ]
    title = f"{folder.name}: subnets of {report.search.run}"
    path = folder / REPORT_FILE
    write_bytes(path, render(Page(title, headline(report), sections)).encode())
    return path


def headline(report: Report) -> str:
    """What was found in one sentence: the knee beside the largest subnet."""
    largest = report.references.get(LARGEST)
    knee = report.picks.get("knee", report.front[0])
    if largest is None or "miou" not in report.search.objectives:
        return f"{len(report.front)} subnets are on the front."
    miou, of_largest = knee.metrics["miou"], largest.metrics["miou"]
    score, where = report.final.get(knee.spec.key()), "on the images it was selected on"
    if score is not None and score.less_largest is not None:
        miou, of_largest = score.miou, score.miou - score.less_largest
        where = "on images it was not selected on"
    fewer = 1 - knee.metrics["params_m"] / largest.metrics["params_m"]
    kept = f"{miou / of_largest:.0%}" if of_largest > 0 else "-"
    return f"The knee keeps {kept} of mIoU with {fewer:.0%} fewer parameters, {where}."


def _summary(report: Report) -> list[Part]:
    record, search = report.record, report.search
    found = (
        f"{search.searcher} evaluated {len(report.trials):,} subnets, the largest and the smallest "
        f"among them, of {record['space']['num_subnets']:,}; {len(report.front)} are on the Pareto "
        f"front of {' against '.join(figures.NAMES[name] for name in search.objectives)}"
        + (f", under {', '.join(map(str, search.constraints))}." if search.constraints else ".")
    )
    return [Text(found), *(Text(words, "warning") for words in _warnings(report))]


def _warnings(report: Report) -> list[str]:
    record, seen = report.record, report.record["data"]["seen_in_training"]
    found = []
    if not record.get("finished", False):
        found.append("The search is not finished: the front is as the search saw it.")
    if seen["seen"]:
        found.append(f"Training saw the evaluation data: {seen['detail']}.")
    if seen["seen"] is None:
        found.append(f"Whether training saw the evaluation data is unknown: {seen['detail']}.")
    final = record.get("final")
    if not report.final:
        found.append(
            "The front is scored on the images that it was selected on, which flatters it. "
            "--final-data DIR or --final-share X measures it on others."
        )
    elif final and (final["seen_in_training"] or {}).get("seen"):
        found.append(f"Training saw the final data: {final['seen_in_training']['detail']}.")
    fewest = min((score.num_groups for score in report.final.values()), default=FEW_GROUPS)
    if fewest < FEW_GROUPS:
        found.append(f"The final data are {fewest} sources alone: intervals are uncertain, too.")
    return found


def _front(report: Report, place: Path) -> list[Part]:
    objectives, front = report.search.objectives, report.front
    figures.draw_front(place / "front.svg", front, report.references, report.picks, objectives)
    caption = (
        "The front and the fixed subnets; bars are 95 % bootstrap intervals of mIoU, sources and "
        f"clips resampled. Selected on {_protocol(front[0])}{_final_words(report)} Point at a dot "
        "for its numbers; click it for its line in the table."
    )
    chart = front_chart(report)
    parts: list[Part] = [
        Chart(chart, caption, svg_uri(place / "front.svg")),
        _table(report),
        *describe_baselines(report),
        _how_to_export(report),
    ]
    if report.trials:
        figures.draw_trials(place / "trials.svg", report.trials, objectives)
        caption = f"All subnets as the search saw them: {_protocol(report.trials[0])}"
        chart = trials_chart(report.trials, front, objectives)
        parts.append(Chart(chart, caption, svg_uri(place / "trials.svg")))
    return parts


def _final_words(report: Report) -> str:
    if not report.final:
        return ""
    score, final = next(iter(report.final.values())), report.record["final"]
    folders = ", ".join(final["folders"])
    share = f", {final['share']:.0%} of the sources" if final["share"] is not None else ""
    return (
        f" Measured on other images, {folders}{share}: {score.num_objects} objects in "
        f"{score.num_images} images of {score.num_groups} sources."
    )


def _table(report: Report) -> Table:
    names = list(dict.fromkeys((*report.search.objectives, "params_m", "flops_g")))
    costs = [name for name in names if name != "miou"]
    picked = {trial.key: name for name, trial in report.picks.items()}
    has_final = bool(report.final)
    rows = [
        Row([Cell("", -1), Cell(name),
             *_cells(trial, costs, report.final_references.get(name), report)],
            id=f"fixed-{name}")
        for name, trial in report.references.items()
    ]  # fmt: skip
    for i, trial in enumerate(report.front):
        score = report.final.get(trial.spec.key())
        cells = _cells(trial, costs, score, report)
        rows.append(Row([Cell(f"#{i}", i), Cell(picked.get(trial.key, "")), *cells], id=f"s{i}"))
    head = ["", "subnet", "mIoU, selected on" if has_final else "mIoU", "95 %"]
    if has_final:
        head += ["mIoU, other images", "95 %", "less largest", "95 %, paired"]
    head += [figures.SHORT[name] for name in costs]
    head += ["input px"] if report.space.resolutions else []
    return Table([*head, "layers", "key"], rows)


def _cells(
    trial: Trial, costs: Sequence[str], score: FinalScore | None, report: Report
) -> list[Cell]:
    metrics = trial.metrics
    ends = (metrics["miou_lo"], metrics["miou_hi"]) if "miou_lo" in metrics else None
    cells = [_number(metrics["miou"], ".4f"), _interval(ends)]
    if report.final:
        cells += [
            _number(None if score is None else score.miou, ".4f"),
            _interval(None if score is None else score.interval),
            _number(None if score is None else score.less_largest, "+.4f"),
            _interval(None if score is None else score.less_largest_interval, "+.3f"),
        ]
    cells += [_number(metrics.get(name), ".2f") for name in costs]
    if report.space.resolutions:
        cells.append(_number(report.space.input_px(trial.spec), "d"))
    return [*cells, _number(len(trial.spec.layers), "d"), Cell(trial.spec.key()[:_KEY_LETTERS])]


def _number(value: float | None, form: str) -> Cell:
    return Cell("-") if value is None else Cell(format(value, form), value)


def _interval(ends: tuple[float, float] | None, form: str = ".3f") -> Cell:
    if ends is None:
        return Cell("-")
    return Cell(f"{ends[0]:{form}} to {ends[1]:{form}}", ends[0])


def _how_to_export(report: Report) -> Text:
    words = _export_words(Path(report.record["run"]), report.folder)
    return Text(
        "A line of the table as a model of its own, here the knee; #3 takes the line of that "
        "number:",
        code=command("export", *words),
    )


def _subnets(report: Report, place: Path) -> list[Part]:
    shape = report.space.shape
    words = (
        "A column is a layer of the supernet; g marks global attention. Blue is the part of the "
        "MLP's width that is kept, squares below are attention heads, and a dashed column is a "
        "removed layer."
    )
    chosen = {**report.picks, **_fixed(report)}
    drawings = [_drawing(name, trial, shape) for name, trial in chosen.items()]
    for drawing in drawings:
        write_bytes(place / f"subnet-{drawing.name}.svg", render_drawing(drawing).encode())
    return [Text(words), Drawings(drawings)]


def _drawing(name: str, trial: Trial, shape: EncoderShape) -> SubnetDrawing:
    metrics = trial.metrics
    caption = (
        f"{name}: mIoU {metrics['miou']:.4f}, {metrics['params_m']:.2f} M parameters, "
        f"{metrics['flops_g']:.2f} GFLOPs"
    )
    return draw_subnet(trial.spec, shape, name=name, caption=caption)


def _fixed(report: Report) -> dict[str, Trial]:
    """The largest and the smallest subnet, where the front has not chosen them already."""
    picked = {trial.spec for trial in report.picks.values()}
    return {
        name: trial
        for name, trial in report.references.items()
        if name != PRETRAINED and trial.spec not in picked
    }


def _masks(report: Report, images: int) -> Panels:
    chosen = list({**report.picks, **_fixed(report)}.items())[:3]
    subnets = {name: trial.spec for name, trial in chosen}
    step = report.record["checkpoint"]["step"]
    return draw_masks(report.search, step, subnets, images=images, folder=report.folder)


def _contributions(report: Report, place: Path) -> list[Part]:
    if len(report.trials) < FEWEST:
        return [Text(f"Fewer than {FEWEST} trials: too few to tell.")]
    found = contributions(report.space, report.trials)
    figures.draw_contributions(place / "contributions.svg", found)
    words = (
        "Predicted change of mIoU when one dimension of the largest subnet is brought to its "
        "smallest choice, by ridge regression on all trials; lines are 95 % of the spread of fits "
        "on resampled trials. Grey is not resolved: the line reaches zero, or trials are too few."
    )
    error = report.record.get("predictor")
    if error is not None:
        words += (
            f" On trials it had not seen, the model is off by {error['mae']:.4f} on average; "
            f"Kendall's tau with the measured order is {error['kendall_tau']:.2f}."
        )
    enough = fewest_trials(report.space)
    few = f"{len(report.trials)} trials are too few to resolve contributions; {enough} would do."
    parts: list[Part] = [Text(few, "warning")] if len(report.trials) < enough else []
    note = "Sort by the last column for where to save first: the least mIoU lost per GFLOP saved."
    return [*parts, Text(words), _contribution_table(found), Text(note, "note")]


def _contribution_table(found: Sequence[Contribution]) -> Table:
    ends = [value for each in found for value in (*each.interval, each.miou, 0.0)]
    low, span = min(ends), max(max(ends) - min(ends), 1e-9)

    def px(value: float) -> float:
        return round((value - low) / span * (_BAR_PX - 2) + 1, 1)

    rows = [
        Row([
            Cell(each.dimension),
            Cell(each.change),
            _number(each.miou, "+.4f"),
            _interval(each.interval, "+.4f"),
            Cell(
                f"{each.miou:+.4f}",
                bar=Bar(
                    value=each.miou,
                    zero=px(0),
                    left=min(px(0), px(each.miou)),
                    width=round(abs(px(each.miou) - px(0)), 1),
                    low=px(each.interval[0]),
                    high=px(each.interval[1]),
                    resolved=each.is_resolved,
                ),
            ),
            Cell("" if each.is_resolved else "not resolved"),
            _number(each.params_m, ".3g"),
            _number(each.flops_g, ".3g"),
            _number(-1e3 * each.miou / max(each.flops_g, 1e-9), ".3g"),
        ])
        for each in found
    ]  # fmt: skip
    head = ["dimension", "change", "mIoU", "95 %", "", "", "saves M parameters", "saves GFLOPs",
            "mIoU lost per TFLOP"]  # fmt: skip
    return Table(head, rows)


def _facts(report: Report) -> Facts:
    record, search = report.record, report.search
    status = Counter(trial.status for trial in report.trials)
    devices = ", ".join(sorted({trial.device for trial in report.trials if trial.device}))
    return Facts([
        ("supernet", f"{record['run']}, step {record['checkpoint']['step']}, weights "
                     f"{record['checkpoint']['sha256']}"),
        ("selected on", f"{', '.join(record['data']['folders'])}; "
                        f"{record['data']['seen_in_training']['detail']}"),
        *([("measured on", f"{', '.join(record['final']['folders'])}; "
                           f"{record['final']['seen_in_training']['detail']}")]
          if record.get("final") else []),
        ("searcher", f"{search.searcher}, seed {search.seed}, population {search.population}"),
        *([("device", devices)] if search.measured and devices else []),
        ("trials", ", ".join(f"{count} {name}" for name, count in status.items())),
        ("time in evaluations", f"{sum(trial.seconds for trial in report.trials) / 60:.1f} min"),
        ("software", ", ".join(f"{n} {v}" for n, v in record["versions"].items())),
    ])  # fmt: skip


def _protocol(trial: Trial) -> str:
    where = "the original image" if trial.resolution == "original" else "the model's mask logits"
    return (
        f"{trial.num_objects} objects in {trial.num_images} images, IoU on the pixels of {where}."
    )
