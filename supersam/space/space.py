"""The search space: layers that may go, widths of the others, resolutions. Plain values only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from supersam.space.cost import subnet_cost
from supersam.space.shape import EncoderShape
from supersam.space.spec import SubnetSpec

Rng = np.random.Generator
Choice = TypeVar("Choice")


@dataclass(frozen=True)
class SearchSpace:
    """All subnets that a supernet is trained for, and the distribution they are drawn from.

    The largest subnet is the whole encoder and always belongs to the space, whether or not its
    full widths are among the choices (in the published space they are not).
    """

    shape: EncoderShape
    removal: tuple[float, ...]
    """Probability that each layer is removed; 0 keeps it always."""
    mlp_widths: tuple[tuple[int, ...], ...]
    """Choices of MLP hidden units for each layer, ascending."""
    heads: tuple[tuple[int, ...], ...]
    """Choices of attention heads for each layer, ascending."""
    embed_dims: tuple[int, ...]
    """Choices of the residual stream's channels, ascending."""
    resolutions: tuple[int, ...] = ()
    """Choices of the input's side, pixels, ascending; without any it is the model's own."""

    def __post_init__(self) -> None:
        shape = self.shape
        for name in ("removal", "mlp_widths", "heads"):
            if len(getattr(self, name)) != shape.depth:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries; the encoder has "
                    f"{shape.depth} layers, one entry each"
                )
        for layer, p in enumerate(self.removal):
            if not 0.0 <= p < 1.0:
                raise ValueError(
                    f"removal[{layer}]={p} is not a probability below 1; 0 keeps the layer, "
                    f"{min(0.9, max(0.0, p)) if p == p else 0.5:g} is the nearest that works"
                )
        if all(p > 0 for p in self.removal):
            steadiest = min(range(shape.depth), key=lambda layer: self.removal[layer])
            raise ValueError(
                f"every layer is removable; keep at least one: removal[{steadiest}] to 0"
            )
        per_layer = {"mlp_widths": self.mlp_widths, "heads": self.heads}
        for name, choices in (*per_layer.items(), ("embed_dims", (self.embed_dims,))):
            full = {"mlp_widths": shape.mlp_width, "heads": shape.num_heads}.get(
                name, shape.embed_dim
            )
            for layer, values in enumerate(choices):
                _check_choices(f"{name}[{layer}]", values, full)
        _check_resolutions(self.resolutions, shape)

    @property
    def removable(self) -> tuple[int, ...]:
        """Layers that may be removed."""
        return tuple(layer for layer, p in enumerate(self.removal) if p > 0)

    @property
    def resolution_genes(self) -> tuple[int | None, ...]:
        """Choices of `SubnetSpec.resolution`, ascending: None is the model's own, the largest."""
        own = self.shape.image_size
        return tuple(None if px == own else px for px in self.resolutions) or (None,)

    def input_px(self, spec: SubnetSpec) -> int:
        """Return the side of the square input of `spec`, pixels."""
        return self.shape.at(spec.resolution).image_size

    def largest(self) -> SubnetSpec:
        """Return the whole encoder, at the model's own resolution."""
        return SubnetSpec.full(self.shape)

    def smallest(self) -> SubnetSpec:
        """Return the subnet without removable layers, all else at its smallest choice."""
        return self._spec(
            [layer for layer, p in enumerate(self.removal) if p == 0],
            lambda choices: choices[0],
        )

    def widest(self, share: float) -> SearchSpace:
        """Return the part of this space that holds `share` of each gene's choices, widest first.

        Of the removable layers that share may go, most probable ones first. 0 leaves one choice of
        each gene and every layer; 1 is the whole space.
        """
        likely = sorted(self.removable, key=lambda layer: -self.removal[layer])
        may_go = likely[: math.floor(share * len(likely))]

        def cut(choices: tuple[int, ...]) -> tuple[int, ...]:
            return choices[-max(1, math.ceil(share * len(choices))) :]

        return replace(
            self,
            removal=tuple(p if layer in may_go else 0.0 for layer, p in enumerate(self.removal)),
            mlp_widths=tuple(map(cut, self.mlp_widths)),
            heads=tuple(map(cut, self.heads)),
            embed_dims=cut(self.embed_dims),
            resolutions=cut(self.resolutions) if self.resolutions else (),
        )

    def at_px(self, spec: SubnetSpec) -> str:
        """Say at which input size `spec` works, for people; empty where all have the same."""
        return f" of {self.input_px(spec)} px" if self.resolutions else ""

    def describe_ends(self) -> list[str]:
        """Say in one line each what the largest and the smallest subnet cost, for people."""
        ends = {"largest": self.largest(), "smallest": self.smallest()}
        sizes = {name: subnet_cost(spec, self.shape) for name, spec in ends.items()}
        lines = [
            f"{name}: {cost.params_m:.2f} M parameters, {cost.flops_g:.2f} GFLOPs per image"
            f"{self.at_px(ends[name])} with one prompt"
            for name, cost in sizes.items()
        ]
        less = 100 * (1 - sizes["smallest"].params / sizes["largest"].params)
        return [lines[0], f"{lines[1]}, {less:.1f} % smaller"]

    def medium(self) -> SubnetSpec:
        """Return a fixed subnet between: every second removable layer gone, the rest middling."""
        gone = set(self.removable[::2])
        return self._spec(
            [layer for layer in range(self.shape.depth) if layer not in gone],
            lambda choices: choices[len(choices) // 2],
        )

    def sample(self, rng: Rng) -> SubnetSpec:
        """Draw a random subnet: layers by their removal probability, all else uniformly."""
        draws = rng.random(self.shape.depth)
        kept = [i for i, (u, p) in enumerate(zip(draws, self.removal, strict=True)) if u >= p]
        return self._spec(kept, lambda choices: _pick(choices, rng))

    def mutate(self, spec: SubnetSpec, rng: Rng, *, probability: float = 0.1) -> SubnetSpec:
        """Return a neighbour of `spec`: every gene is drawn anew with `probability`."""
        return self._mix(spec, self.sample(rng), rng, probability)

    def crossover(
        self, first: SubnetSpec, second: SubnetSpec, rng: Rng, *, share: float = 0.5
    ) -> SubnetSpec:
        """Return a child that takes each gene from `second` with probability `share`."""
        return self._mix(first, second, rng, share)

    def _mix(self, base: SubnetSpec, other: SubnetSpec, rng: Rng, probability: float) -> SubnetSpec:
        """`base` with each gene replaced by `other`'s with `probability`."""
        mine, theirs = _genes(base), _genes(other)
        layers, widths, heads = [], [], []
        for layer in range(self.shape.depth):
            gone, width, head = rng.random(3) < probability
            kept = layer in (theirs if gone else mine)
            if not kept:
                continue
            here, there = mine.get(layer), theirs.get(layer)
            here = here or there
            there = there or here
            assert here is not None  # one parent keeps the layer
            assert there is not None
            layers.append(layer)
            widths.append((there if width else here)[0])
            heads.append((there if head else here)[1])
        dim = (other if rng.random() < probability else base).embed_dim
        taken = self.resolutions and rng.random() < probability
        resolution = (other if taken else base).resolution
        mixed = SubnetSpec(tuple(layers), tuple(widths), tuple(heads), dim, resolution)
        return mixed if self.contains(mixed) else self._nearest(mixed)

    def _nearest(self, spec: SubnetSpec) -> SubnetSpec:
        """Replace what is full but not among the choices by the widest choice."""
        resolutions = self.resolution_genes
        return SubnetSpec(
            layers=spec.layers,
            mlp_widths=_allowed(spec.mlp_widths, [self.mlp_widths[i] for i in spec.layers]),
            heads=_allowed(spec.heads, [self.heads[i] for i in spec.layers]),
            embed_dim=_allowed((spec.embed_dim,), [self.embed_dims])[0],
            resolution=spec.resolution if spec.resolution in resolutions else resolutions[-1],
        )

    def misfit(self, spec: SubnetSpec) -> str | None:
        """Say why `spec` is not in the space, with the allowed values; None if it is."""
        if spec == self.largest():
            return None
        reason = spec.misfit(self.shape)
        if reason is not None:
            return reason
        missing = sorted(set(range(self.shape.depth)) - set(spec.layers) - set(self.removable))
        if missing:
            return f"layers: {missing} must be kept; removable are {list(self.removable)}"
        for name, values, choices in (
            ("mlp_widths", spec.mlp_widths, self.mlp_widths),
            ("heads", spec.heads, self.heads),
        ):
            for layer, value in zip(spec.layers, values, strict=True):
                if value not in choices[layer]:
                    return f"{name}: {value} of layer {layer} is not in {list(choices[layer])}"
        if spec.embed_dim not in self.embed_dims:
            return f"embed_dim: {spec.embed_dim} is not in {list(self.embed_dims)}"
        if spec.resolution not in self.resolution_genes:
            allowed = list(self.resolutions) or [self.shape.image_size]
            return f"resolution: {self.input_px(spec)} is not in {allowed}"
        return None

    def contains(self, spec: SubnetSpec) -> bool:
        """Tell whether `spec` is a subnet of this space."""
        return self.misfit(spec) is None

    def num_subnets(self) -> int:
        """Count the distinct subnets that `sample` can draw."""
        per_layer = (
            len(widths) * len(heads) + (p > 0)
            for p, widths, heads in zip(self.removal, self.mlp_widths, self.heads, strict=True)
        )
        return math.prod(per_layer) * len(self.embed_dims) * len(self.resolution_genes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers for YAML, without the shape, which is the model's."""
        plain = {
            "removal": list(self.removal),
            "mlp_widths": [list(c) for c in self.mlp_widths],
            "heads": [list(c) for c in self.heads],
            "embed_dims": list(self.embed_dims),
        }
        return {**plain, "resolutions": list(self.resolutions)} if self.resolutions else plain

    @classmethod
    def from_dict(cls, values: dict[str, Any], shape: EncoderShape) -> SearchSpace:
        """Read what `to_dict` wrote. Raises ValueError that names what is wrong."""
        names = {"removal", "mlp_widths", "heads", "embed_dims"}
        if not isinstance(values, dict) or set(values) - {"resolutions"} != names:
            got = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise ValueError(
                f"a search space has the fields {sorted(names)}, and resolutions where they vary; "
                f"got {got}"
            )
        wrong = [p for p in _listed(values["removal"]) if type(p) not in (int, float)]
        if wrong:
            raise ValueError(f"removal holds {wrong[0]!r}; it must be a list of numbers below 1")
        try:
            return cls(
                shape=shape,
                removal=tuple(float(p) for p in values["removal"]),
                mlp_widths=tuple(tuple(c) for c in values["mlp_widths"]),
                heads=tuple(tuple(c) for c in values["heads"]),
                embed_dims=tuple(values["embed_dims"]),
                resolutions=tuple(values.get("resolutions", ())),
            )
        except TypeError as fault:
            raise ValueError(f"a field of the search space is not a list: {fault}") from fault

    def _spec(self, kept: list[int], choose: Any) -> SubnetSpec:
        return SubnetSpec(
            layers=tuple(kept),
            mlp_widths=tuple(choose(self.mlp_widths[layer]) for layer in kept),
            heads=tuple(choose(self.heads[layer]) for layer in kept),
            embed_dim=choose(self.embed_dims),
            resolution=choose(self.resolution_genes) if self.resolutions else None,
        )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _genes(spec: SubnetSpec) -> dict[int, tuple[int, int]]:
    pairs = zip(spec.mlp_widths, spec.heads, strict=True)
    return dict(zip(spec.layers, pairs, strict=True))


def _allowed(values: Sequence[int], choices: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Each value that is a choice; the widest choice in place of the others."""
    return tuple(v if v in c else c[-1] for v, c in zip(values, choices, strict=True))


def _pick(choices: Sequence[Choice], rng: Rng) -> Choice:
    return choices[int(rng.integers(len(choices)))]


def _check_resolutions(values: tuple[int, ...], shape: EncoderShape) -> None:
    for value in values:
        reason = shape.misfit_of(value)
        if reason is not None:
            raise ValueError(f"resolutions: {reason}")
    if list(values) != sorted(set(values)):
        raise ValueError(f"resolutions={list(values)} must ascend: {sorted(set(values))}")


def _check_choices(name: str, values: tuple[int, ...], full: int) -> None:
    if not values or any(type(v) is not int for v in values):
        raise ValueError(f"{name}={list(values)} must be a list of whole numbers, such as [{full}]")
    if list(values) != sorted(set(values)) or values[0] < 1 or values[-1] > full:
        nearest = sorted({min(full, max(1, v)) for v in values})
        raise ValueError(
            f"{name}={list(values)} must ascend within 1 to {full}; the nearest is {nearest}"
        )
