"""Subnets for any budget without a trial, from what a design measured of the layers.

The cost of a change is an estimate that adds up: a removed layer costs the distance that its
removal moved the image embedding, half of it for its MLP and half for its attention; a narrower
width costs the share of importance that goes with it. Greedily, the change of least cost for each
parameter saved comes next, from the widest subnet to the smallest. A design measures no resolution:
all are proposed at the largest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from supersam.config import UserError
from supersam.search.searchers.base import Problem, Rng, Searcher
from supersam.search.searchers.evolution import mutation_rate
from supersam.space import SearchSpace, SubnetSpec, subnet_cost

_SMALL = 1e-9
"""Share of a cost: what seems to cost nothing is still ordered by what it saves."""


@dataclass(frozen=True)
class Sensitivities:
    """What a design measured, for the encoder of a space."""

    layers: tuple[float, ...]
    """For each layer, how far the embedding moves where it is removed."""
    mlp: tuple[tuple[float, ...], ...]
    """For each layer and number of MLP units, the share of importance that they hold, from 0."""
    heads: tuple[tuple[float, ...], ...]
    """The same of attention heads."""
    embed: tuple[float, ...]
    """The same of the residual stream's channels."""

    def loss(self, spec: SubnetSpec) -> float:
        """The estimated cost of a subnet; 0 for the whole encoder."""
        kept = dict(zip(spec.layers, zip(spec.mlp_widths, spec.heads, strict=True), strict=True))
        lost = 0.0
        for layer, whole in enumerate(self.layers):
            width, heads = kept.get(layer, (0, 0))
            lost += whole * (2 - self.mlp[layer][width] - self.heads[layer][heads]) / 2
        return lost + sum(self.layers) * (1 - self.embed[spec.embed_dim])


def read_sensitivities(file: Path, space: SearchSpace) -> Sensitivities:
    """What `evidence.json` of a design says. Raises UserError where it is of another encoder."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        scores, shape = values["scores_before_reordering"], values["shape"]
        alone = {each["removed"][0]: each for each in values["sensitivity"]["alone"]}
        found = Sensitivities(
            layers=tuple(float(alone[i]["embedding_distance"]) for i in range(shape["depth"])),
            mlp=tuple(map(_shares, scores["mlp"])),
            heads=tuple(map(_shares, scores["heads"])),
            embed=_shares(scores["embed"]),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as fault:
        raise UserError(
            f"--evidence {file} is not the evidence.json of a design: {fault!r}; "
            "launch/design.py writes one"
        ) from fault
    ours = space.shape
    if (shape["depth"], shape["embed_dim"], shape["num_heads"]) != (
        ours.depth, ours.embed_dim, ours.num_heads,
    ):  # fmt: skip
        raise UserError(
            f"--evidence {file} is of an encoder of {shape['depth']} layers, {shape['embed_dim']} "
            f"wide; this one has {ours.depth}, {ours.embed_dim} wide: name that of its design"
        )
    return found


def _shares(scores: Sequence[float]) -> tuple[float, ...]:
    """For 0 units, 1 unit, ...: the share of all scores that the best of them hold."""
    ordered = np.sort(np.maximum(np.asarray(scores, np.float64), 0.0))[::-1]
    shares = np.concatenate(([0.0], np.cumsum(ordered))) / max(ordered.sum(), _SMALL)
    return tuple(shares.tolist())


def greedy_path(space: SearchSpace, known: Sensitivities) -> list[SubnetSpec]:
    """From the widest choices of all layers to the smallest subnet, one change at a time."""
    spec = SubnetSpec(
        tuple(range(space.shape.depth)),
        tuple(choices[-1] for choices in space.mlp_widths),
        tuple(choices[-1] for choices in space.heads),
        space.embed_dims[-1],
        space.resolution_genes[-1],
    )
    path = [spec]
    while changes := list(_smaller(spec, space)):
        params, loss = subnet_cost(spec, space.shape).params, known.loss(spec)
        spec = min(
            changes,
            key=lambda other: (
                (known.loss(other) - loss + _SMALL)
                / (params - subnet_cost(other, space.shape).params)
            ),
        )
        path.append(spec)
    return path


def _smaller(spec: SubnetSpec, space: SearchSpace) -> Iterator[SubnetSpec]:
    """`spec` with one width at its next smaller choice, or one layer gone."""
    for layer, width, heads in zip(spec.layers, spec.mlp_widths, spec.heads, strict=True):
        widths, counts = space.mlp_widths[layer], space.heads[layer]
        if width > widths[0]:
            yield spec.with_width(layer, widths[widths.index(width) - 1])
        if heads > counts[0]:
            yield spec.with_heads(layer, counts[counts.index(heads) - 1])
        if layer in space.removable:
            yield spec.without(layer)
    at = space.embed_dims.index(spec.embed_dim)
    if at > 0:
        yield replace(spec, embed_dim=space.embed_dims[at - 1])


def spread(path: Sequence[SubnetSpec], space: SearchSpace) -> list[SubnetSpec]:
    """A path's subnets, so that the first few of them span its sizes evenly, then the gaps."""
    sizes = np.array([subnet_cost(spec, space.shape).params_m for spec in path])
    ends = sizes.min(), sizes.max()
    halves = chain([0.0, 1.0], *(np.arange(1, 2**n, 2) / 2**n for n in range(1, 8)))
    nearest = [np.abs(sizes - (ends[0] + share * (ends[1] - ends[0]))).argmin() for share in halves]
    order = dict.fromkeys([int(place) for place in nearest] + list(range(len(path))))
    return [path[place] for place in order]


class BudgetSearcher(Searcher):
    """The subnets that the design's measurements propose; then neighbours of these."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        if not problem.first:
            raise UserError(
                "--searcher budget needs --evidence FILE, the evidence.json of the run's design "
                "(launch/design.py); or take another searcher"
            )

    def _propose(self, rng: Rng) -> SubnetSpec:
        first, space = self.problem.first, self.problem.space
        parent = first[int(rng.integers(len(first)))]
        return space.mutate(parent, rng, probability=mutation_rate(space))
