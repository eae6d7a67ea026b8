"""The page that shows a report and needs nothing else, and its figures as files."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from supersam.config import ReportRun
from supersam.config.files import REPORT_FILE
from supersam.runtime.atomic import write_bytes
from supersam.runtime.figures import save_pixels
from supersam.search.journal import Trial
from supersam.search.plan import PRETRAINED
from supersam.search.predictor import FEWEST
from supersam.search.report import figures
from supersam.search.report.comparison import read_searches, write_comparison
from supersam.search.report.content import Report, read_report
from supersam.search.report.contributions import Contribution, contributions
from supersam.search.report.drawing import draw_subnet, drawing_px
from supersam.search.report.html import Markup, facts, page, picture, table, tag
from supersam.search.report.mask_figure import COLUMNS, draw_masks
from supersam.space import EncoderShape

_SHOWN = 12  # contributions in the table; the figure has all


def run_report(search: ReportRun) -> int:
    """What launch/report.py does: write the page and say where it is. Returns the exit code."""
    if search.out is not None:
        write_comparison(search.out, read_searches(search.folders))
        path = search.out / REPORT_FILE
    else:
        path = write_report(search.folders[0], images=search.images)
    print(path)
    return 0


def write_report(folder: Path, *, images: int = 3) -> Path:
    """Write `report.html` and `figures/` of a search's folder. Returns the page's path.

    `images` held-out images are shown with the masks of three subnets, which loads the supernet; 0
    shows none. Raises UserError where the folder is no search, or has no front yet.
    """
    report = read_report(folder)
    place = folder / "figures"
    place.mkdir(exist_ok=True)
    parts = [
        _summary(report),
        *_front(report, place),
        *_subnets(report, place),
        *(_masks(report, place, images) if images > 0 else ()),
        *_contributions(report, place),
        *_facts(report),
    ]
    path = folder / REPORT_FILE
    write_bytes(path, page(f"{folder.name}: subnets of {report.search.run}", *parts).encode())
    return path


def _summary(report: Report) -> Markup:
    record, search = report.record, report.search
    seen = record["data"]["seen_in_training"]
    text = (
        f"{search.searcher} evaluated {len(report.trials):,} subnets, the largest and the smallest "
        f"among them, of {record['space']['num_subnets']:,}; {len(report.front)} are on the Pareto "
        f"front of {' against '.join(figures.NAMES[name] for name in search.objectives)}"
        + (f", under {', '.join(map(str, search.constraints))}." if search.constraints else ".")
    )
    warnings = []
    if not record.get("finished", False):
        warnings.append("The search is not finished: the front is as the search saw it.")
    if seen["seen"]:
        warnings.append(f"Training saw the evaluation data: {seen['detail']}.")
    if seen["seen"] is None:
        warnings.append(f"Whether training saw the evaluation data is unknown: {seen['detail']}.")
    return Markup(tag("p", text) + "".join(tag("p", each, class_="warning") for each in warnings))


def _front(report: Report, place: Path) -> list[Markup]:
    objectives = report.search.objectives
    figures.draw_front(
        place / "front.svg", report.front, report.references, report.picks, objectives
    )
    parts = [
        tag("h2", "Pareto front"),
        _figure(
            place / "front.svg",
            "The front and the fixed subnets; bars are 95 % bootstrap intervals of mIoU, images "
            f"resampled. {_protocol(report.front[0])}",
        ),
        _table(report),
        _how_to_export(report),
    ]
    if report.trials:
        figures.draw_trials(place / "trials.svg", report.trials, objectives)
        caption = f"All subnets as the search saw them. {_protocol(report.trials[0])}"
        parts.append(_figure(place / "trials.svg", caption))
    return parts


def _table(report: Report) -> Markup:
    names = list(dict.fromkeys((*report.search.objectives, "params_m", "flops_g")))
    costs = [name for name in names if name != "miou"]
    place = {trial.key: f"#{i}" for i, trial in enumerate(report.front)}
    picked = {trial.key: name for name, trial in report.picks.items()}
    rows = []
    for name, trial in report.references.items():
        rows.append([name, *_cells(trial, costs)])
    for trial in report.front:
        name = " ".join(filter(None, (place[trial.key], picked.get(trial.key))))
        rows.append([name, *_cells(trial, costs)])
    head = ["subnet", "mIoU", "95 %", *(figures.SHORT[name] for name in costs), "layers", "key"]
    return table(head, rows)


def _how_to_export(report: Report) -> Markup:
    words = ("python launch/export.py --run", shlex.quote(str(report.record["run"])), "--subnet",
             shlex.quote(f"{report.folder}#knee"), "--out DIR")  # fmt: skip
    return tag(
        "p",
        "A line of the table as a model of its own, here the knee: ",
        tag("code", " ".join(words)),
    )


def _cells(trial: Trial, costs: Sequence[str]) -> list[str]:
    metrics = trial.metrics
    interval = (
        f"{metrics['miou_lo']:.3f} to {metrics['miou_hi']:.3f}" if "miou_lo" in metrics else "-"
    )
    shown = [f"{metrics[name]:.2f}" if name in metrics else "-" for name in costs]
    return [
        f"{metrics['miou']:.4f}",
        interval,
        *shown,
        str(len(trial.spec.layers)),
        trial.spec.key(),
    ]


def _subnets(report: Report, place: Path) -> list[Markup]:
    shape = report.space.shape
    parts = [
        tag("h2", "The chosen subnets"),
        tag(
            "p",
            "A column is a layer of the supernet; g marks global attention. Blue is the part of "
            "the MLP's width that is kept, squares below are attention heads, and a dashed column "
            "is a removed layer.",
        ),
    ]
    chosen = {**report.picks, **_fixed(report)}
    drawings = (_drawing(name, trial, shape, place) for name, trial in chosen.items())
    return [*parts, tag("div", *drawings, class_="drawings")]


def _drawing(name: str, trial: Trial, shape: EncoderShape, place: Path) -> Markup:
    svg = draw_subnet(trial.spec, shape, name=name)
    write_bytes(place / f"subnet-{name}.svg", svg.encode())
    metrics = trial.metrics
    caption = (
        f"{name}: mIoU {metrics['miou']:.4f}, {metrics['params_m']:.2f} M parameters, "
        f"{metrics['flops_g']:.2f} GFLOPs"
    )
    return tag(
        "figure",
        tag("div", Markup(svg), class_="wide"),
        tag("figcaption", caption),
        style=f"width:{drawing_px(shape)}px",
    )


def _fixed(report: Report) -> dict[str, Trial]:
    """The largest and the smallest subnet, where the front has not chosen them already."""
    picked = {trial.spec for trial in report.picks.values()}
    return {
        name: trial
        for name, trial in report.references.items()
        if name != PRETRAINED and trial.spec not in picked
    }


def _masks(report: Report, place: Path, images: int) -> list[Markup]:
    chosen = list({**report.picks, **_fixed(report)}.items())[:3]
    subnets = {name: trial.spec for name, trial in chosen}
    step = report.record["checkpoint"]["step"]
    file = place / "masks.png"
    save_pixels(draw_masks(report.search, step, subnets, images=images), file)
    heads = (tag("span", name) for name in (*COLUMNS, *subnets))
    shown = tag(
        "div", tag("div", *heads, class_="heads"), picture(file, alt="masks"), class_="masks"
    )
    caption = (
        "The single mask of each prompt, on the same held-out images for each subnet. Images are "
        "spread over the set, of neighbours the one with most objects, and twelve objects at most "
        "are shown."
    )
    return [
        tag("h2", "Masks of three subnets"),
        tag("figure", tag("div", shown, class_="wide"), tag("figcaption", caption)),
    ]


def _contributions(report: Report, place: Path) -> list[Markup]:
    head = tag("h2", "What each dimension contributes")
    if len(report.trials) < FEWEST:
        return [head, tag("p", f"Fewer than {FEWEST} trials: too few to tell.")]
    found = contributions(report.space, report.trials)
    figures.draw_contributions(place / "contributions.svg", found)
    error = report.record.get("predictor")
    caption = (
        "Predicted change of mIoU when one dimension of the largest subnet is brought to its "
        "smallest choice, by ridge regression on all trials; bars are 95 % of fits on resampled "
        "trials, grey where they reach zero."
    )
    if error is not None:
        caption += (
            f" On trials it had not seen, the model is off by {error['mae']:.4f} on average; "
            f"Kendall's tau with the measured order is {error['kendall_tau']:.2f}."
        )
    return [head, _figure(place / "contributions.svg", caption), _savings(found)]


def _savings(found: list[Contribution]) -> Markup:
    """Dimensions by the mIoU that they cost for each GFLOP saved, the cheapest first."""
    ordered = sorted(found, key=lambda each: -each.miou / max(each.flops_g, 1e-9))
    rows = [
        [
            each.dimension,
            each.change,
            f"{each.miou:+.4f}",
            f"{each.interval[0]:+.4f} to {each.interval[1]:+.4f}",
            f"{each.params_m:.3g}",
            f"{each.flops_g:.3g}",
        ]
        for each in ordered[:_SHOWN]
    ]
    head = ["dimension", "change", "mIoU", "95 %", "saves M parameters", "saves GFLOPs"]
    note = "Where to save first: the least mIoU lost for each GFLOP saved."
    return Markup(tag("p", note) + table(head, rows))


def _facts(report: Report) -> list[Markup]:
    record, search = report.record, report.search
    status = Counter(trial.status for trial in report.trials)
    devices = ", ".join(sorted({trial.device for trial in report.trials if trial.device}))
    rows = [
        ("supernet", f"{record['run']}, step {record['checkpoint']['step']}, weights "
                     f"{record['checkpoint']['sha256']}"),
        ("evaluation data", f"{', '.join(record['data']['folders'])}; "
                            f"{record['data']['seen_in_training']['detail']}"),
        ("searcher", f"{search.searcher}, seed {search.seed}, population {search.population}"),
        *([("measured on", devices)] if search.measured and devices else []),
        ("trials", ", ".join(f"{count} {name}" for name, count in status.items())),
        ("time in evaluations", f"{sum(trial.seconds for trial in report.trials) / 60:.1f} min"),
        ("software", ", ".join(f"{n} {v}" for n, v in record["versions"].items())),
    ]  # fmt: skip
    return [tag("h2", "How this was found"), facts(rows)]


def _protocol(trial: Trial) -> str:
    where = "the original image" if trial.resolution == "original" else "the model's mask logits"
    return (
        f"{trial.num_objects} objects in {trial.num_images} images, IoU on the pixels of {where}."
    )


def _figure(file: Path, caption: str) -> Markup:
    return tag("figure", picture(file, alt=caption), tag("figcaption", caption))
