"""One table, one figure, results.json: what the arms score, by how much they differ, what holds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from experiments.claim.criteria import Difference, Verdict, judge, subnet
from experiments.claim.forms import SIZES
from experiments.claim.run import stage_costs
from experiments.claim.score import Arm, HeldOut, Scores, arms
from experiments.claim.stages import Plan
from supersam.config import UserError
from supersam.evaluation import mean_interval
from supersam.runtime.atomic import write_bytes, write_json

matplotlib.use("Agg")
PRIOR = "prior without the image"
SHOWN_GREY = ("pretrained", "whole", "supernet's largest", subnet(0.7))
"""Arms that are also scored without the image: the difference is what they see."""
Table = dict[str, dict[int, Scores]]
"""Scores by arm and seed."""


def write_report(plan: Plan) -> list[Verdict]:
    """Score every arm that is there, and write `results.json`, `table.md` and `claim.png`.

    Raises UserError where no model is there, or the shards to score it on are missing.
    """
    trained = list(arms(plan))
    if not trained:
        raise UserError(f"no model is trained yet; see {plan.out / 'logs'}")
    images = HeldOut(plan, images="nuclei-test", priors="nuclei-train")
    table: Table = defaultdict(dict)
    for arm in trained:
        table[arm.name][arm.seed] = images.score(arm)
        if arm.name in SHOWN_GREY:
            table[f"{arm.name}, image hidden"][arm.seed] = images.score_hidden(arm)
    table[PRIOR][0] = next(iter(table["pretrained"].values())).prior
    for size in SIZES:
        for seed in sorted(table.get(subnet(size), {})):
            drawn = images.score_random(seed, size)
            if drawn:
                table[f"random {subnet(size)}"][seed] = _mean_scores(drawn)
    differences = _differences(table)
    hours = _hours(plan)
    gate = _gate(plan)
    verdicts = judge(
        {pair: found["point"] for pair, found in differences.items()}, hours, gate and gate[1]
    )
    rows = [_row(name, by_seed) for name, by_seed in table.items()]
    write_json(
        plan.out / "results.json",
        {
            "arms": rows,
            "differences": [
                {"first": first, "second": second, **{p: asdict(d) for p, d in found.items()}}
                for (first, second), found in differences.items()
            ],
            "verdicts": [asdict(verdict) for verdict in verdicts],
            "gate": gate and gate[0],
            "hours": hours,
            "stages": stage_costs(plan),
            "form": asdict(plan.form),
        },
    )
    write_bytes(plan.out / "table.md", _markdown(rows, differences, verdicts, hours).encode())
    _draw(rows, plan.out / "claim.png")
    return verdicts


def _gate(plan: Plan) -> tuple[list[dict[str, object]], Difference] | None:
    """The pretrained model on photographs beside the priors, and the difference with a point.

    None for given weights.
    """
    if plan.checkpoint is not None:
        return None
    photographs = HeldOut(plan, images="natural-val", priors="natural-train")
    scores = photographs.score(Arm("pretrained", 0, plan.pretrained))
    rows = [_row("pretrained", {0: scores}), _row(PRIOR, {0: scores.prior})]
    return rows, paired({0: scores}, {0: scores.prior}, "point")


def _mean_scores(scores: list[Scores]) -> Scores:
    means = {p: np.mean([getattr(s, p) for s in scores], axis=0) for p in ("point", "box")}
    return replace(scores[0], **means)


def _row(name: str, by_seed: dict[int, Scores]) -> dict[str, object]:
    row: dict[str, object] = {"arm": name, "seeds": sorted(by_seed)}
    for prompt in ("point", "box"):
        values = np.mean([getattr(scores, prompt) for scores in by_seed.values()], axis=0)
        group = next(iter(by_seed.values())).group
        row[prompt] = float(values.mean())
        row[f"{prompt}_interval"] = mean_interval(values, group)
    row["objects"], row["images"] = len(group), len(np.unique(group))
    return row


def _differences(table: Table) -> dict[tuple[str, str], dict[str, Difference]]:
    """Every pair that the criteria or a reader would compare: subnets less each other arm."""
    pairs = []
    for size in SIZES:
        share = f"-{size:.0%}".replace("%", " %")
        others = ["pretrained", "whole", "whole, equal compute", "supernet's largest"]
        others += [f"{kind} {share}" for kind in ("prune and tune", "uniform", "random order")]
        others += [f"random {subnet(size)}"]
        for first in (subnet(size), f"{subnet(size)}, tuned"):
            pairs += [(first, other) for other in others]
    pairs += [(name, f"{name}, image hidden") for name in SHOWN_GREY]
    return {
        (first, second): {p: paired(table[first], table[second], p) for p in ("point", "box")}
        for first, second in pairs
        if first in table and second in table
    }


def paired(first: dict[int, Scores], second: dict[int, Scores], prompt: str) -> Difference:
    """Mean IoU of one arm less the other's, by object, over the seeds of both."""
    seeds = sorted(first.keys() & second.keys()) or [0]
    values = [
        getattr(_of_seed(first, seed), prompt) - getattr(_of_seed(second, seed), prompt)
        for seed in seeds
    ]
    mean: NDArray[np.float64] = np.mean(values, axis=0)
    group = next(iter(first.values())).group
    interval = mean_interval(mean, group)
    if interval is None:
        raise SystemExit("error: the test images have one source; an interval needs more")
    return Difference(float(mean.mean()), *interval, seeds=len(seeds))


def _of_seed(by_seed: dict[int, Scores], seed: int) -> Scores:
    """An arm without seeds, such as the pretrained model, is the same for all."""
    return by_seed.get(seed, next(iter(by_seed.values())))


def _hours(plan: Plan) -> dict[str, float]:
    """CPU hours by what they count for."""
    hours: dict[str, float] = defaultdict(float)
    for cost in stage_costs(plan):
        if cost["arm"]:
            hours[str(cost["arm"])] += float(str(cost["cpu_s"])) / 3600
    return {name: round(value, 3) for name, value in hours.items()}


def _markdown(
    rows: list[dict[str, object]],
    differences: dict[tuple[str, str], dict[str, Difference]],
    verdicts: list[Verdict],
    hours: dict[str, float],
) -> str:
    lines = [
        "| model | seeds | point: mIoU [95 %] | box: mIoU [95 %] |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [f"{row[p]:.3f} [{row[f'{p}_interval'][0]:.3f}, {row[f'{p}_interval'][1]:.3f}]"
                 for p in ("point", "box")]  # fmt: skip
        lines.append(f"| {row['arm']} | {len(row['seeds'])} | {' | '.join(cells)} |")
    lines += ["", f"{rows[0]['objects']} objects in {rows[0]['images']} images.", ""]
    lines += ["| difference, paired | point [95 %] | box [95 %] |", "| --- | --- | --- |"]
    for (first, second), found in differences.items():
        cells = [str(difference) for difference in found.values()]
        lines.append(f"| {first} less {second} | {' | '.join(cells)} |")
    lines += ["", *(f"- {v.name}: {_verdict(v)}. {v.words}" for v in verdicts)]
    lines += ["", "CPU hours: " + ", ".join(f"{n} {h:.2f}" for n, h in sorted(hours.items()))]
    return "\n".join(lines) + "\n"


def _verdict(verdict: Verdict) -> str:
    return {None: "not judged", True: "holds", False: "does not hold"}[verdict.holds]


def _draw(rows: list[dict[str, object]], path: Path) -> None:
    """MIoU with a point over the share of parameters removed."""
    from matplotlib import pyplot

    by_name = {str(row["arm"]): row for row in rows}
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for name, style in (("pretrained", ":"), ("whole", "--")):
        if name in by_name:
            axes.axhline(by_name[name]["point"], linestyle=style, color="0.4", label=name)
    kinds = ("subnet", "prune and tune", "uniform", "random order", "random subnet")
    for place, kind in enumerate(kinds):
        points = [(size, by_name.get(f"{kind} -{size:.0%}".replace("%", " %"))) for size in SIZES]
        known = [(size, row) for size, row in points if row is not None]
        if known:
            values = np.array([row["point"] for _, row in known])
            ends = np.array([row["point_interval"] for _, row in known])
            errors = np.abs(ends.T - values)
            aside = 0.8 * (place - len(kinds) // 2)  # so that intervals do not cover each other
            removed = [100 * size + aside for size, _ in known]
            axes.errorbar(removed, values, errors, marker="o", capsize=3, label=kind)
    axes.set(xlabel="parameters removed, %", ylabel="mIoU, point prompt, unseen images")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=160)
    pyplot.close(figure)
