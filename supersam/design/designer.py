"""Turns evidence and limits into a search space. Pure: numbers in, a SearchSpace out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import takewhile

import torch
from torch import Tensor

from supersam.config import UserError
from supersam.config.design import LimitsConfig, ScanConfig
from supersam.design.sensitivity import Sensitivity
from supersam.design.units import UnitScores
from supersam.space import (
    EncoderShape,
    SearchSpace,
    published_space,
    subnet_cost,
    wide_space,
    width_choices,
)

_SHARES = 400
"""Shares of importance tried on the way down to a size."""


def design_space(
    shape: EncoderShape,
    scores: UnitScores,
    sensitivity: Sensitivity,
    limits: LimitsConfig | None = None,
) -> SearchSpace:
    """Design the space that the evidence allows within the limits.

    Layers that greedy removal took before the model lost `max_miou_drop` are removable; the first
    of them are removed most often. The smallest width of every layer keeps the same share of the
    layer's importance, `keep_importance` or what `smallest_m` leaves; choices lie evenly from
    there to the full width.

    Raises UserError where no space meets the limits, with the nearest that does.
    """
    limits = limits or LimitsConfig()
    if limits.preset != "evidence":
        space = published_space(shape) if limits.preset == "published" else wide_space(shape)
        return _checked_preset(space, limits)
    _require_choices(limits)
    shares, layers = _cumulative(scores), removable_layers(sensitivity, limits)
    share = limits.keep_importance
    space = _space_of_share(shape, shares, layers, limits, share)
    if limits.smallest_m is None or smallest_m(space) <= limits.smallest_m:
        return space
    for step in range(1, _SHARES + 1):
        share = limits.keep_importance * (1 - step / _SHARES)
        space = _space_of_share(shape, shares, layers, limits, share)
        if smallest_m(space) <= limits.smallest_m:
            return space
    raise UserError(_too_large(shape, shares, sensitivity, limits, space))


def require_reachable(shape: EncoderShape, limits: LimitsConfig, scan: ScanConfig) -> None:
    """Raise UserError where no space can meet the limits, whatever the evidence will be.

    It is known before anything is measured; the message names the nearest limits that can be met.
    """
    if limits.preset != "evidence":
        space = published_space(shape) if limits.preset == "published" else wide_space(shape)
        _checked_preset(space, limits)
        return
    _require_choices(limits)
    found = _least_m(shape, limits, scan)
    if limits.smallest_m is None or found <= limits.smallest_m:
        return
    least = _rounded_up(found)
    freest = _rounded_up(_least_m(shape, _freed(limits), scan))
    freer = (
        "make every dimension elastic (--limits.elastic-heads --limits.elastic-embed), which "
        f"reaches {freest} M at best, or "
    )
    raise UserError(
        f"--limits.smallest-m {limits.smallest_m:g}: whatever the design measures, no subnet "
        f"within these limits has fewer than {least} M parameters; ask for --limits.smallest-m "
        f"{least} or more, or {freer if freest < least else ''}let more layers go with a higher "
        "--scan.max-removed"
    )


def smallest_m(space: SearchSpace) -> float:
    """Return the parameters of the smallest subnet of a space, in millions."""
    return subnet_cost(space.smallest(), space.shape).params_m


def removable_layers(sensitivity: Sensitivity, limits: LimitsConfig) -> tuple[int, ...]:
    """Return the layers that may be removed, the most harmless first."""
    if not limits.elastic_depth:
        return ()
    floor = sensitivity.whole.miou - limits.max_miou_drop
    steps = len(list(takewhile(lambda effect: effect.miou >= floor, sensitivity.greedy)))
    return sensitivity.greedy_order[:steps]


def removal_probabilities(layers: tuple[int, ...], depth: int, mean: float) -> tuple[float, ...]:
    """Return a removal probability for each layer; `layers`: the most harmless first.

    They fall evenly along `layers`, around `mean`, by half of what there is to 0 or 1.
    """
    spread = min(mean, 1 - mean) / 2
    found = [0.0] * depth
    for place, layer in enumerate(layers):
        along = 1 - 2 * place / (len(layers) - 1) if len(layers) > 1 else 0.0
        found[layer] = round(mean + spread * along, 3)
    return tuple(found)


def cumulative_importance(row: Tensor) -> Tensor:
    """Return the share of a row's importance in its best k units, k from 1: (units,) float64."""
    best = row.double().clamp(min=0).sort(descending=True).values
    total = best.sum()
    if total == 0:
        return torch.linspace(1 / len(best), 1, len(best), dtype=torch.float64)
    return best.cumsum(0) / total


def _cumulative(scores: UnitScores) -> UnitScores:
    """`cumulative_importance` of every row."""
    return UnitScores(
        mlp=torch.stack([cumulative_importance(row) for row in scores.mlp]),
        heads=torch.stack([cumulative_importance(row) for row in scores.heads]),
        embed=cumulative_importance(scores.embed),
    )


def _space_of_share(
    shape: EncoderShape,
    shares: UnitScores,
    layers: tuple[int, ...],
    limits: LimitsConfig,
    share: float,
) -> SearchSpace:
    """The space whose smallest widths keep `share` of the importance of each layer.

    shares: cumulative importance, see `_cumulative`. layers: removable, the most harmless first.
    """

    def choices(row: Tensor, multiple: int, elastic: bool) -> tuple[int, ...]:
        full = len(row)
        if not elastic or limits.widths == 1:
            return (full,)
        kept = int((row < share - 1e-9).sum()) + 1
        least = min(full, math.ceil(kept / multiple) * multiple)
        return _spread_choices(least, full, limits.widths, multiple)

    multiple = min(limits.width_multiple, shape.embed_dim)
    return SearchSpace(
        shape=shape,
        removal=removal_probabilities(layers, shape.depth, limits.removal_probability),
        mlp_widths=tuple(choices(row, multiple, limits.elastic_mlp) for row in shares.mlp),
        heads=tuple(choices(row, 1, limits.elastic_heads) for row in shares.heads),
        embed_dims=choices(shares.embed, multiple, limits.elastic_embed),
    )


def _spread_choices(least: int, full: int, count: int, multiple: int) -> tuple[int, ...]:
    """`count` widths, evenly from the smallest to the full one, in multiples."""
    shares = [least / full + (1 - least / full) * i / (count - 1) for i in range(count)]
    return width_choices(shares, full, multiple)


def _checked_preset(space: SearchSpace, limits: LimitsConfig) -> SearchSpace:
    if limits.smallest_m is not None and smallest_m(space) > limits.smallest_m:
        least = _rounded_up(smallest_m(space))
        raise UserError(
            f"--limits.smallest-m {limits.smallest_m:g}: the {limits.preset} space of this encoder "
            f"ends at {least} M parameters; ask for --limits.smallest-m {least}, or take "
            "--limits.preset evidence, or wide"
        )
    return space


def _too_large(
    shape: EncoderShape,
    shares: UnitScores,
    sensitivity: Sensitivity,
    limits: LimitsConfig,
    space: SearchSpace,
) -> str:
    """Say in words which limits nearest to these a space meets."""
    freer = _freed(limits)
    layers = removable_layers(sensitivity, freer)
    freest = _rounded_up(smallest_m(_space_of_share(shape, shares, layers, freer, 0.0)))
    least = _rounded_up(smallest_m(space))
    return (
        f"--limits.smallest-m {limits.smallest_m:g}: the smallest subnet within these limits has "
        f"{least} M parameters; ask for --limits.smallest-m {least} or more, or make every "
        f"dimension elastic (--limits.elastic-heads --limits.elastic-embed), which reaches "
        f"{freest} M, or let more layers go with a higher --limits.max-miou-drop "
        f"(now {limits.max_miou_drop:g})"
    )


def _freed(limits: LimitsConfig) -> LimitsConfig:
    """The limits with every dimension elastic."""
    names = ("elastic_depth", "elastic_mlp", "elastic_heads", "elastic_embed")
    changes = {name: True for name in names} | {"widths": max(2, limits.widths)}
    return limits.model_copy(update=changes)


def _require_choices(limits: LimitsConfig) -> None:
    elastic = (limits.elastic_mlp, limits.elastic_heads, limits.elastic_embed)
    if not (any(elastic) and limits.widths > 1) and not limits.elastic_depth:
        raise UserError(
            "these limits leave one subnet, the whole model: turn on one of "
            "--limits.elastic-depth, --limits.elastic-mlp, --limits.elastic-heads, "
            "--limits.elastic-embed, with --limits.widths of at least 2"
        )


def _least_m(shape: EncoderShape, limits: LimitsConfig, scan: ScanConfig) -> float:
    """Parameters of the smallest subnet that any evidence allows, in millions."""
    any_scores = UnitScores(
        mlp=torch.ones(shape.depth, shape.mlp_width),
        heads=torch.ones(shape.depth, shape.num_heads),
        embed=torch.ones(shape.embed_dim),
    )
    spaces = (
        _space_of_share(shape, any_scores, layers, limits, 0.0)
        for layers in _most_layers(shape, limits, scan)
    )
    return min(map(smallest_m, spaces))


def _most_layers(
    shape: EncoderShape, limits: LimitsConfig, scan: ScanConfig
) -> Iterator[tuple[int, ...]]:
    """Yield the largest sets of layers that greedy removal may take.

    There is one for each number of layers with global attention: those are larger.
    """
    most = shape.depth // 2 if scan.max_removed is None else scan.max_removed
    most = min(most, shape.depth - 1) if limits.elastic_depth else 0
    windowed = [i for i in range(shape.depth) if i not in shape.global_layers]
    spare = max(0, len(shape.global_layers) - scan.keep_global)
    for number in range(min(spare, most) + 1):
        yield (*shape.global_layers[:number], *windowed[: most - number])


def _rounded_up(millions: float) -> float:
    return math.ceil(millions * 100) / 100
