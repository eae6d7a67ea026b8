"""Fronts, trials and curves as plain values that `page.js` draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from supersam.search.final_score import FinalScore
from supersam.search.journal import Trial
from supersam.search.report.content import Report
from supersam.search.report.figures import LABELS, SHORT

FRONT, FINAL, TRIAL = "--c0", "--c1", "--trial"
_FIXED = {"largest": "--c4", "smallest": "--c2", "pretrained": "--c3"}
_PALETTE = [f"--c{number}" for number in range(7)]

Series = dict[str, Any]


def front_chart(report: Report) -> dict[str, Any]:
    """The front as it was selected, as it was measured on other images, and the fixed subnets."""
    front, final = report.front, report.final
    x, y = report.search.objectives[-1], report.search.objectives[0]
    names = {trial.key: name for name, trial in report.picks.items()}
    labels = [f"#{i} {names.get(trial.key, '')}".strip() for i, trial in enumerate(front)]
    selected = [
        {**_point(trial, x, y, label), "row": f"s{i}", "label": names.get(trial.key, "")}
        for i, (trial, label) in enumerate(zip(front, labels, strict=True))
    ]
    series: list[Series] = [
        {"name": "selected on" if final else "front", "colour": FRONT, "line": True,
         "points": _ordered(selected)}
    ]  # fmt: skip
    measured = [
        {**_final_point(trial, final[trial.spec.key()], x, label), "row": f"s{i}"}
        for i, (trial, label) in enumerate(zip(front, labels, strict=True))
        if trial.spec.key() in final
    ]
    if measured and y == "miou":
        series.append(
            {"name": "measured on other images", "colour": FINAL, "line": True, "hollow": True,
             "points": _ordered(measured)}
        )  # fmt: skip
    for name, trial in report.references.items():
        look = {"name": name, "colour": _FIXED.get(name, "--c5"), "square": True}
        points = [{**_point(trial, x, y, name), "row": f"fixed-{name}"}]
        if name in report.final_references and y == "miou":
            score = report.final_references[name]
            points.append({**_final_point(trial, score, x, name), "row": f"fixed-{name}"})
        series.append({**look, "points": points})
    return {"x": LABELS[x], "y": LABELS[y], "series": series}


def trials_chart(
    trials: Sequence[Trial], front: Sequence[Trial], objectives: Sequence[str]
) -> dict[str, Any]:
    """Every complete trial as the search saw it, in thirds by when it was proposed."""
    x, y = objectives[-1], objectives[0]
    rows = {trial.spec: f"s{i}" for i, trial in enumerate(front)}
    points = [
        {**_point(t, x, y, f"trial {n}: {t.spec.key()}", bars=False),
         **({"row": rows[t.spec]} if t.spec in rows else {})}
        for n, t in enumerate(trials)
    ]  # fmt: skip
    third = -(-len(points) // 3) or 1
    names = ("first third of the trials", "second third", "last third")
    series = [
        {"name": name, "colour": colour, "size": 3.5, "points": points[i * third : (i + 1) * third]}
        for i, (name, colour) in enumerate(zip(names, (TRIAL, "--c2", FRONT), strict=True))
    ]
    return {"x": LABELS[x], "y": LABELS[y], "series": [s for s in series if s["points"]]}


def fronts_chart(
    fronts: Mapping[str, Sequence[Trial]], objectives: Sequence[str]
) -> dict[str, Any]:
    """The fronts of several searches over each other."""
    x, y = objectives[-1], objectives[0]
    series = [
        {"name": name, "colour": _PALETTE[place % len(_PALETTE)], "line": True,
         "dash": place >= len(_PALETTE), "size": 4,
         "points": _ordered(_point(t, x, y, f"{name} #{i}", bars=False)
                            for i, t in enumerate(front))}
        for place, (name, front) in enumerate(fronts.items())
    ]  # fmt: skip
    return {"x": LABELS[x], "y": LABELS[y], "series": series}


def volumes_chart(curves: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Hypervolume after each trial: a line for each seed, a colour for each searcher."""
    series = [
        {"name": name if seed == 0 else f"{name}, seed {seed + 1} of {len(lines)}",
         "colour": _PALETTE[place % len(_PALETTE)], "line": True, "dots": False,
         "points": [{"x": n, "y": round(value, 5)} for n, value in enumerate(line, start=1)]}
        for place, (name, lines) in enumerate(curves.items())
        for seed, line in enumerate(lines)
    ]  # fmt: skip
    label = "hypervolume, share of all together"
    return {"x": "trials", "y": label, "series": [s for s in series if s["points"]]}


def _point(trial: Trial, x: str, y: str, label: str, *, bars: bool = True) -> dict[str, Any]:
    metrics = trial.metrics
    words = [f"{SHORT[name]} {metrics[name]:.4g}" for name in SHORT if name in metrics]
    point = {"x": metrics[x], "y": metrics[y], "text": "\n".join([label, *words])}
    if bars and y == "miou" and "miou_lo" in metrics:
        point |= {"lo": metrics["miou_lo"], "hi": metrics["miou_hi"]}
    return point


def _final_point(trial: Trial, score: FinalScore, x: str, label: str) -> dict[str, Any]:
    words = [label, f"mIoU {score.miou:.4f} on other images"]
    words.append(f"mIoU {trial.metrics['miou']:.4f} where it was selected")
    if score.less_largest is not None:
        words.append(f"{score.less_largest:+.4f} to the largest")
    point = {"x": trial.metrics[x], "y": score.miou, "text": "\n".join(words)}
    if score.interval is not None:
        point |= {"lo": score.interval[0], "hi": score.interval[1]}
    return point


def _ordered(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(points, key=lambda point: point["x"])
