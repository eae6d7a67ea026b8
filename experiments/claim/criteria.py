"""What the experiment must show, written down before its first run, and the verdicts.

G   The pretrained model is promptable: with a point on photographs of its own kind it is above the
    best disc around the point, which never looks at the image (lower bound above 0). Where it is
    not, the others say nothing: models that answer from the prompt alone do not need an encoder,
    and any subnet of theirs is as good.
S1  Every subnet beats the pretrained model without fine-tuning: the lower bound of the paired
    difference is above +0.05. Necessary, and easy.
S2  The subnet at -50 % is not worse than the whole fine-tuned model by more than 0.02: the lower
    bound of the paired difference is above -0.02.
S3  At each size the subnet is at least equal to pruning, distilling and tuning a model of that
    size alone, and to a uniformly shrunk model tuned alone (upper bound of the paired difference
    not below 0), with less computation in sum.
S4  At -70 % the prioritized supernet is above the one in random order: lower bound above 0.

S1 to S4 are judged on the point prompt, on whole objects of images that nothing was trained or
selected on; all with differences paired by object and resampled by source image over all seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.claim.forms import SIZES

S1_MARGIN, S2_MARGIN = 0.05, -0.02


@dataclass(frozen=True)
class Difference:
    """A paired difference of mean IoU."""

    mean: float
    low: float
    high: float
    """95 % bootstrap interval, source images resampled."""
    seeds: int
    """Trainings that both sides have."""

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Verdict:
    """What became of a criterion."""

    name: str
    holds: bool | None
    """None where an arm that it compares was not run."""
    words: str


def subnet(size: float) -> str:
    """Name of the arm with the search's choice at a size."""
    return f"subnet -{size:.0%}".replace("%", " %")


def judge(
    differences: dict[tuple[str, str], Difference],
    hours: dict[str, float],
    gate: Difference | None = None,
) -> list[Verdict]:
    """The verdicts.

    differences: first arm less second, by their names; those that were not run are absent.
    hours: CPU or GPU hours of `one supernet` and of `separate trainings`.
    gate: the pretrained model less the prior on photographs; None for given weights, which are
        taken to be promptable.
    """
    promptable = "wanted: lower bound above +0.00; pretrained less prior on photographs"
    return [
        Verdict("G", None if gate is None else gate.low > 0, f"{promptable} {gate or 'not run'}"),
        _all_above("S1", [(subnet(size), "pretrained") for size in SIZES], S1_MARGIN, differences),
        _all_above("S2", [(subnet(0.5), "whole")], S2_MARGIN, differences),
        _not_below("S3", differences, hours),
        _all_above("S4", [(subnet(0.7), "random order -70 %")], 0.0, differences),
    ]


def _all_above(
    name: str,
    pairs: list[tuple[str, str]],
    margin: float,
    differences: dict[tuple[str, str], Difference],
) -> Verdict:
    """Whether each lower bound is above `margin`."""
    found = [differences[pair] for pair in pairs if pair in differences]
    holds = all(d.low > margin for d in found) if len(found) == len(pairs) else None
    return Verdict(name, holds, _words(pairs, differences, f"lower bound above {margin:+.2f}"))


def _not_below(
    name: str, differences: dict[tuple[str, str], Difference], hours: dict[str, float]
) -> Verdict:
    pairs = [
        (subnet(size), f"{arm} -{size:.0%}".replace("%", " %"))
        for size in SIZES
        for arm in ("prune and tune", "uniform")
    ]
    found = [differences[pair] for pair in pairs if pair in differences]
    holds = None
    if len(found) == len(pairs) and {"one supernet", "separate trainings"} <= hours.keys():
        cheaper = hours["one supernet"] < hours["separate trainings"]
        holds = cheaper and all(d.high >= 0 for d in found)
    cost = ", ".join(f"{what} {hours[what]:.2f} h" for what in sorted(hours))
    words = _words(pairs, differences, "upper bound not below 0, and fewer hours")
    return Verdict(name, holds, f"{words}; {cost}" if cost else words)


def _words(
    pairs: list[tuple[str, str]], differences: dict[tuple[str, str], Difference], wanted: str
) -> str:
    parts = []
    for first, second in pairs:
        found = differences.get((first, second))
        text = (
            "not run"
            if found is None
            else f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        )
        parts.append(f"{first} less {second} {text}")
    return f"wanted: {wanted}; " + ", ".join(parts)
