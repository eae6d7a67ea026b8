"""The figures of a design: what its numbers look like. Draws; computes nothing new."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from supersam.design.designer import cumulative_importance
from supersam.design.sensitivity import Sensitivity
from supersam.design.units import UnitScores
from supersam.runtime.figures import new_figure, save_figure
from supersam.space import EncoderShape, SearchSpace, subnet_cost

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

_WINDOWED, _GLOBAL, _GONE = "tab:blue", "tab:orange", "tab:green"
_INTERVAL = "#334155"
_DRAWS = 2000


def draw_figures(
    folder: Path, space: SearchSpace, scores: UnitScores, sensitivity: Sensitivity, *, score: str
) -> list[Path]:
    """Write all figures to `folder`. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in ("sensitivity", "scores", "cumulative", "sizes")]
    _draw_sensitivity(paths[0], sensitivity, space)
    _draw_scores(paths[1], scores, score)
    _draw_cumulative(paths[2], scores, space, score)
    _draw_sizes(paths[3], space)
    return paths


def _draw_sensitivity(path: Path, sensitivity: Sensitivity, space: SearchSpace) -> None:
    figure, (drop, distance, greedy) = new_figure(1, 3, width_in=14, height_in=4.4)
    whole, alone = sensitivity.whole, sensitivity.alone
    _layer_bars(drop, [whole.miou - d.miou for d in alone], space.shape)
    _draw_intervals(drop, range(len(alone)), [sensitivity.drop_interval(d) for d in alone])
    drop.set(title="without this layer alone", ylabel="mIoU lost on the calibration set")
    _legend_above(drop)
    _layer_bars(distance, [d.embedding_distance for d in alone], space.shape)
    distance.set(title="without this layer alone", ylabel="relative embedding distance")
    _legend_above(distance)
    _draw_greedy(greedy, sensitivity, len(space.removable))
    save_figure(figure, path)


def _draw_greedy(axis: Axes, sensitivity: Sensitivity, removable: int) -> None:
    whole = sensitivity.whole.miou
    miou = [whole, *(effect.miou for effect in sensitivity.greedy)]
    axis.plot(range(len(miou)), miou, "o-", color=_GONE, label="one layer more")
    lost = [sensitivity.drop_interval(effect) for effect in sensitivity.greedy]
    ends = [None if ends is None else (whole - ends[1], whole - ends[0]) for ends in lost]
    _draw_intervals(axis, range(1, len(miou)), ends)
    for step, layer in enumerate(sensitivity.greedy_order, start=1):
        axis.annotate(f"-{layer}", (step, miou[step]), textcoords="offset points", xytext=(4, 4))
    axis.axvspan(-0.4, removable + 0.4, alpha=0.1, color=_GONE, label="may go")
    axis.set(title="greedy removal", xlabel="layers removed", ylabel="mIoU, untrained")
    _legend_above(axis)


def _draw_intervals(
    axis: Axes, places: Sequence[int], ends: Sequence[tuple[float, float] | None]
) -> None:
    """Draw the intervals that are known, as bars without a point."""
    known = [(x, low, high) for x, each in zip(places, ends, strict=True) if each is not None
             for low, high in [each]]  # fmt: skip
    if known:
        x, low, high = map(list, zip(*known, strict=True))
        axis.vlines(x, low, high, color=_INTERVAL, lw=1.2, zorder=3,
                    label="95 % interval, images resampled")  # fmt: skip


def _layer_bars(axis: Axes, values: list[float], shape: EncoderShape) -> None:
    for name, color, is_global in (("windowed", _WINDOWED, False), ("global", _GLOBAL, True)):
        layers = [i for i in range(shape.depth) if (i in shape.global_layers) == is_global]
        axis.bar(layers, [values[i] for i in layers], color=color, label=f"{name} attention")
    axis.set_xlabel("layer")


def _legend_above(axis: Axes) -> None:
    """Put the legend between title and axes, where it hides nothing."""
    axis.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=9)
    axis.set_title(axis.get_title(), pad=40)


def _draw_scores(path: Path, scores: UnitScores, score: str) -> None:
    figure, axes = new_figure(1, 3, width_in=14)
    shown = (("MLP units", scores.mlp), ("heads", scores.heads), ("channels", scores.embed[None]))
    for axis, (name, rows) in zip(axes, shown, strict=True):
        if len(rows) > 1:
            axis.boxplot([row.tolist() for row in rows], positions=range(len(rows)), sym=".")
            axis.set(xlabel="layer (box: middle half; line: median; dots: beyond 1.5 boxes)")
            axis.set(ylabel="score")
        else:
            axis.hist(rows[0].tolist(), bins=40, color=_WINDOWED)
            axis.set(xlabel="score", ylabel="channels")
        axis.set_title(f"{name}: {score}")
    save_figure(figure, path)


def _draw_cumulative(path: Path, scores: UnitScores, space: SearchSpace, score: str) -> None:
    figure, axes = new_figure(1, 3, width_in=14)
    shown = (
        ("MLP units", scores.mlp, [c[0] for c in space.mlp_widths]),
        ("heads", scores.heads, [c[0] for c in space.heads]),
        ("channels", scores.embed[None], [space.embed_dims[0]]),
    )
    for axis, (name, rows, smallest) in zip(axes, shown, strict=True):
        _draw_shares(axis, rows, smallest)
        axis.set(title=f"{name}: {score}", xlabel="share of units kept",
                 ylabel="share of importance kept")  # fmt: skip
    save_figure(figure, path)


def _draw_shares(axis: Axes, rows: Tensor, smallest: Sequence[int]) -> None:
    """A line for each layer, from the first, dark, to the last; a dot where it ends at least."""
    from matplotlib import colormaps

    for layer, (row, least) in enumerate(zip(rows, smallest, strict=True)):
        shares = torch.cat([torch.zeros(1), cumulative_importance(row)]).numpy()
        color = colormaps["viridis"](0.9 * layer / max(1, len(rows) - 1))
        label = f"layer {layer}" if layer in (0, len(rows) - 1) else None
        label = "of every layer" if len(rows) == 1 else label
        axis.plot(np.linspace(0, 1, len(shares)), shares, lw=1, color=color, label=label)
        axis.plot(least / (len(shares) - 1), shares[least], "o", ms=4, color=color,
                  label="smallest width" if layer == 0 else None)  # fmt: skip
    axis.plot([0, 1], [0, 1], ":", color="grey", label="all units alike")
    axis.legend(loc="lower right", fontsize=9)


def _draw_sizes(path: Path, space: SearchSpace) -> None:
    figure, (axis,) = new_figure(width_in=7)
    rng = np.random.default_rng(0)
    sizes = [subnet_cost(space.sample(rng), space.shape).params_m for _ in range(_DRAWS)]
    axis.hist(sizes, bins=50, color=_WINDOWED)
    for name, spec in (("smallest", space.smallest()), ("largest", space.largest())):
        size = subnet_cost(spec, space.shape).params_m
        axis.axvline(size, ls="--", color=_GLOBAL)
        axis.annotate(
            f"{name}\n{size:.1f} M",
            (size, 0.9),
            xycoords=("data", "axes fraction"),
            ha="left" if name == "smallest" else "right",
        )
    axis.set(title=f"sizes of {_DRAWS} random subnets of {space.num_subnets():,}",
             xlabel="parameters, millions", ylabel="subnets")  # fmt: skip
    save_figure(figure, path)
