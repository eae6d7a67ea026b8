"""The result of an evaluation for a terminal: one column per prompt, each row explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from supersam.evaluation.clicks import ClickDifference, ClickResult
from supersam.evaluation.metrics import SIZE_BUCKETS
from supersam.evaluation.result import EvalResult
from supersam.runtime.bootstrap import FEW_GROUPS, Difference
from supersam.runtime.table import aligned, count

PRIOR_WORDS = {
    "point": "the best disc around the point",
    "box": "the mean training mask in the box",
}
"""What a baseline answers to a prompt without looking at the image."""

_CLICKS_SHOWN = (1, 3, 5)
_Row = tuple[str, Callable[[EvalResult], str], str]


def format_table(
    results: Mapping[str, EvalResult],
    differences: Mapping[str, Difference] | None = None,
    *,
    reference: str = "",
) -> str:
    """Format results by prompt, at most 100 columns wide.

    Args:
        results: by prompt; the first is the headline.
        differences: by prompt, the score less that of another subnet.
        reference: name of that subnet.
    """
    rows = [["", *results, ""]]
    for label, cell, meaning in _ROWS:
        cells = [cell(result) for result in results.values()]
        if any(cells):
            rows.append([label, *(text or "-" for text in cells), meaning])
    if differences is not None:
        found = [differences[prompt] for prompt in results]
        rows[3:3] = [
            [f"less {_shortened(reference)}", *(f"{d.mean:+.4f}" for d in found), "per object"],
            ["  interval", *(_signed(d.interval) for d in found), "95 %, groups resampled"],
        ]
    return aligned(rows, right=range(1, len(results) + 1))


def format_clicks(
    result: ClickResult, difference: ClickDifference | None = None, *, reference: str = ""
) -> str:
    """Format what clicks give, at most 100 columns wide.

    Args:
        result: of one subnet.
        difference: less another subnet, object by object.
        reference: name of that subnet.
    """
    clicks = len(result.miou)
    shown = [n for n in sorted({*_CLICKS_SHOWN, clicks}) if n <= clicks]
    rows = [["mIoU after", "", "95 %"]]
    rows += [
        [count(n, "click"), f"{result.miou[n - 1]:.4f}", _ends(result.miou_intervals[n - 1])]
        for n in shown
    ]
    rows += [["gained", f"{result.gain.mean:+.4f}", _signed(result.gain.interval)]]
    needed = f"{result.clicks_to_goal:.2f}"
    rows += [[f"clicks to {result.goal}", needed, _ends(result.clicks_to_goal_interval, 2)]]
    rows += [["  never reached", str(result.num_unreached), f"of {result.num_objects} objects"]]
    if difference is not None:
        less = [difference.miou[n - 1] for n in shown]
        cells = [[f"{d.mean:+.4f}", _signed(d.interval)] for d in less]
        fewer = difference.clicks_to_goal
        gain = ["", ""]
        cells += [gain, [f"{fewer.mean:+.2f}", _signed(fewer.interval, 2)], gain]
        head = [f"less {_shortened(reference)}", "95 %"]
        rows = [row + more for row, more in zip(rows, [head, *cells], strict=True)]
    return aligned(rows, right=(1, 3))


def remarks(results: Mapping[str, EvalResult]) -> list[str]:
    """Say in words what a reader of the numbers should know, one sentence each."""
    said = [
        f"With a {prompt} this subnet scores {result.miou:.4f}, less than {PRIOR_WORDS[prompt]} "
        f"({result.prior_miou:.4f}), which never looks at the image."
        for prompt, result in results.items()
        if result.prior_miou is not None and result.miou < result.prior_miou
    ]
    cut = max(result.num_cut_objects for result in results.values())
    if cut > 0:
        said.append(
            f"The frame of a tile cuts {count(cut, 'object')}, left out here; --cut-objects keeps "
            f"{'it' if cut == 1 else 'them'}."
        )
    groups = min(result.num_groups for result in results.values())
    if groups == 1:
        said.append("All objects come from one clip, stack or image: there is no interval.")
    elif groups < FEW_GROUPS:
        said.append(
            f"The objects come from only {groups} clips, stacks or images: the intervals are rough."
        )
    return said


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _interval(result: EvalResult) -> str:
    interval = result.miou_interval
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _ends(interval: tuple[float, float] | None, digits: int = 4) -> str:
    return "-" if interval is None else " to ".join(f"{end:.{digits}f}" for end in interval)


def _signed(interval: tuple[float, float] | None, digits: int = 4) -> str:
    return "-" if interval is None else " to ".join(f"{end:+.{digits}f}" for end in interval)


def _shortened(reference: str) -> str:
    return reference if len(reference) <= 15 else f"...{reference[-12:]}"


def _size(index: int) -> Callable[[EvalResult], str]:
    return lambda result: _number(result.sizes[index].miou)


_ROWS: list[_Row] = [
    ("mIoU", lambda r: _number(r.miou), "single mask, mean over objects"),
    ("  interval", _interval, "95 %, groups resampled"),
    ("without the image", lambda r: _number(r.prior_miou), "best disc; mean mask in the box"),
    ("filling the box", lambda r: _number(r.box_fill_miou), "what a box gives away"),
    ("best of 3", lambda r: _number(r.miou_predicted_best), "by the model's own estimate"),
    ("oracle of 3", lambda r: _number(r.miou_oracle), "by the truth: out of reach"),
    ("mean over images", lambda r: _number(r.image_miou), "each image counts once"),
    ("boundary IoU", lambda r: _number(r.boundary_miou), "along the outline"),
    *(
        (f"{name} objects", _size(index), meaning)
        for index, (name, meaning) in enumerate(
            zip(
                SIZE_BUCKETS,
                ("under 32 x 32 pixels", "under 96 x 96 pixels", "the rest"),
                strict=True,
            )
        )
    ),
    ("error of estimate", lambda r: _number(r.iou_estimate_mae), "IoU head, mean absolute"),
    ("objects", lambda r: str(r.num_objects), ""),
    ("images", lambda r: str(r.num_images), "with an object"),
    ("groups", lambda r: str(r.num_groups), "clips, stacks, source images"),
]
