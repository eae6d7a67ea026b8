"""The result of an evaluation for a terminal: one column per prompt, each row explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from supersam.evaluation.metrics import SIZE_BUCKETS
from supersam.evaluation.result import EvalResult
from supersam.runtime.bootstrap import FEW_GROUPS, Difference
from supersam.runtime.table import aligned, count

PRIOR_WORDS = {
    "point": "the best disc around the point",
    "box": "the mean training mask in the box",
}
"""What a baseline answers to a prompt without looking at the image."""

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


def _signed(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"


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
