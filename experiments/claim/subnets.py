"""Which subnets stand for a size: the search's choice, the controls', and random ones."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from experiments.claim.forms import SIZES
from experiments.claim.stages import Plan, chosen, shrunk, space_file
from supersam.config.files import JOURNAL_FILE
from supersam.runs.weights import read_run
from supersam.search.journal import Trial, read_journal
from supersam.space import (
    SearchSpace,
    SubnetSpec,
    read_space,
    resolve_shape,
    sample_by_size,
    subnet_cost,
)

_NEAR = 0.04  # of the whole model's parameters: what counts as the same size
_DRAWS = 4000


def write_subnets(plan: Plan, seed: int) -> None:
    """Write the JSON file of the subnet of each size, for the search's choice and the controls."""
    space = designed_space(plan, seed)
    trials = read_journal(plan.run(f"supernet-{seed}") / "results" / "search" / JOURNAL_FILE)
    for size in SIZES:
        most_m = (1 - size) * _params_m(space.largest(), space)
        files = {
            chosen(plan, seed, size): best_within(trials, most_m),
            shrunk(plan, "prune", seed, size): pruned(space, most_m, greedy_order(plan, seed)),
            shrunk(plan, "uniform", seed, size): pruned(space, most_m, ()),
        }
        for path, spec in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            spec.write(path)


def designed_space(plan: Plan, seed: int) -> SearchSpace:
    """The search space of a seed's supernet."""
    run = read_run(plan.run(f"supernet-{seed}"))
    return read_space(space_file(plan, seed), resolve_shape(run.model))


def best_within(trials: list[Trial], most_m: float) -> SubnetSpec:
    """The evaluated subnet of the highest mIoU that has at most `most_m` million parameters."""
    fitting = [trial for trial in trials if trial.metrics["params_m"] <= most_m]
    if not fitting:
        raise SystemExit(f"error: the search evaluated no subnet of {most_m:.1f} M or fewer")
    return max(fitting, key=lambda trial: trial.metrics["miou"]).spec


def pruned(space: SearchSpace, most_m: float, order: tuple[int, ...]) -> SubnetSpec:
    """A subnet of at most `most_m` million parameters without a search: the largest such one.

    The layers of `order` are removed from the first on; the others have one MLP width and one
    number of heads. With an empty order that is a uniformly shrunk model.
    """
    fitting = [spec for spec in _candidates(space, order) if _params_m(spec, space) <= most_m]
    if not fitting:
        return space.smallest()
    return max(fitting, key=lambda spec: _params_m(spec, space))


def _candidates(space: SearchSpace, order: tuple[int, ...]) -> Iterator[SubnetSpec]:
    removable = [layer for layer in order if layer in space.removable]
    for removed in range(len(removable) + 1):
        layers = [i for i in range(space.shape.depth) if i not in removable[:removed]]
        for width in range(max(len(space.mlp_widths[i]) for i in layers)):
            for heads in range(max(len(space.heads[i]) for i in layers)):
                yield SubnetSpec(
                    layers=tuple(layers),
                    mlp_widths=tuple(_at(space.mlp_widths[i], width) for i in layers),
                    heads=tuple(_at(space.heads[i], heads) for i in layers),
                    embed_dim=space.shape.embed_dim,
                )


def _at(choices: tuple[int, ...], place: int) -> int:
    return choices[min(place, len(choices) - 1)]


def random_of_size(plan: Plan, seed: int, spec: SubnetSpec) -> list[SubnetSpec]:
    """Random subnets of about as many parameters as `spec`, none larger by more than 4 %."""
    space = designed_space(plan, seed)
    near_m, aim_m = _NEAR * _params_m(space.largest(), space), _params_m(spec, space)
    rng = np.random.default_rng(seed)
    found: list[SubnetSpec] = []
    for _ in range(_DRAWS):
        draw = sample_by_size(space, rng)
        if abs(_params_m(draw, space) - aim_m) <= near_m and draw not in found:
            found.append(draw)
        if len(found) == plan.form.random_subnets:
            break
    return found


def greedy_order(plan: Plan, seed: int) -> tuple[int, ...]:
    """Layers in the order in which the design's greedy scan removed them."""
    design = space_file(plan, seed).with_name(f"space-{seed}-design")
    evidence = json.loads((design / "evidence.json").read_text(encoding="utf-8"))
    sets = [set[int](), *(set(step["removed"]) for step in evidence["sensitivity"]["greedy"])]
    return tuple(layer for few, more in zip(sets, sets[1:], strict=False) for layer in more - few)


def _params_m(spec: SubnetSpec, space: SearchSpace) -> float:
    return subnet_cost(spec, space.shape).params_m
