"""One subnet as a plain value: its layers, how wide each of them is, and its input size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from supersam.space.shape import EncoderShape


@dataclass(frozen=True)
class SubnetSpec:
    """A subnet of the image encoder: prefix slices of the kept layers.

    The three per-layer tuples have one entry for each kept layer, in order; a removed layer has
    none, so that equal subnets are equal values.
    """

    layers: tuple[int, ...]
    """Kept layers of the supernet, ascending."""
    mlp_widths: tuple[int, ...]
    """MLP hidden units of each kept layer: the first units of the full MLP."""
    heads: tuple[int, ...]
    """Attention heads of each kept layer: the first heads of the full layer."""
    embed_dim: int
    """Channels of the residual stream: the first channels of the full stream."""
    resolution: int | None = None
    """Side of the square input, pixels, where it is smaller than the model's own; else None."""

    def __post_init__(self) -> None:
        lengths = {len(self.layers), len(self.mlp_widths), len(self.heads)}
        if lengths != {len(self.layers)} or not self.layers:
            raise ValueError(
                f"a subnet needs one mlp_width and one heads entry for each kept layer, and at "
                f"least one layer; got {len(self.layers)} layers, {len(self.mlp_widths)} "
                f"mlp_widths, {len(self.heads)} heads"
            )
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers={list(self.layers)} must be ascending, each layer once")

    @classmethod
    def full(cls, shape: EncoderShape) -> SubnetSpec:
        """The largest subnet: the whole encoder."""
        return cls(
            layers=tuple(range(shape.depth)),
            mlp_widths=(shape.mlp_width,) * shape.depth,
            heads=(shape.num_heads,) * shape.depth,
            embed_dim=shape.embed_dim,
        )

    def without(self, *removed: int) -> SubnetSpec:
        """Return this subnet without some of its layers."""
        kept = [place for place, layer in enumerate(self.layers) if layer not in removed]
        return replace(
            self,
            layers=tuple(self.layers[place] for place in kept),
            mlp_widths=tuple(self.mlp_widths[place] for place in kept),
            heads=tuple(self.heads[place] for place in kept),
        )

    def with_width(self, layer: int, mlp_width: int) -> SubnetSpec:
        """Return this subnet with another MLP width in one of its layers."""
        return replace(self, mlp_widths=self._with(self.mlp_widths, layer, mlp_width))

    def with_heads(self, layer: int, heads: int) -> SubnetSpec:
        """Return this subnet with another number of heads in one of its layers."""
        return replace(self, heads=self._with(self.heads, layer, heads))

    def _with(self, values: tuple[int, ...], layer: int, value: int) -> tuple[int, ...]:
        place = self.layers.index(layer)
        return (*values[:place], value, *values[place + 1 :])

    def misfit(self, shape: EncoderShape) -> str | None:
        """Why this subnet is not a slice of an encoder of this shape; None where it is."""
        checks = (
            ("layers", self.layers, 0, shape.depth - 1),
            ("mlp_widths", self.mlp_widths, 1, shape.mlp_width),
            ("heads", self.heads, 1, shape.num_heads),
            ("embed_dim", (self.embed_dim,), 1, shape.embed_dim),
        )
        for name, values, low, high in checks:
            outside = [value for value in values if not low <= value <= high]
            if outside:
                return f"{name}: {outside[0]} is outside {low} to {high} of this encoder"
        if self.resolution is None:
            return None
        if self.resolution == shape.image_size:
            return f"resolution: {self.resolution} is the model's own; leave the field out"
        reason = shape.misfit_of(self.resolution)
        return None if reason is None else f"resolution: {reason}"

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        plain = {  # not by `asdict`, which takes five times as long: a journal holds thousands
            "layers": list(self.layers),
            "mlp_widths": list(self.mlp_widths),
            "heads": list(self.heads),
            "embed_dim": self.embed_dim,
        }
        # Left out where it is the model's own: the names of such subnets know no resolution.
        return plain if self.resolution is None else {**plain, "resolution": self.resolution}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SubnetSpec:
        """The inverse of `to_dict`. Raises ValueError that names the wrong field."""
        names = ("layers", "mlp_widths", "heads", "embed_dim")
        if not isinstance(values, dict) or set(values) - {"resolution"} != set(names):
            raise ValueError(
                f"a subnet has the fields {', '.join(names)}, and resolution where it is not the "
                f"model's own; {_amiss(values, names)}"
            )
        lists = {name: _ints(name, values[name]) for name in names[:3]}
        dim = _ints("embed_dim", [values["embed_dim"]])[0]
        given = _ints("resolution", [values["resolution"]]) if "resolution" in values else (None,)
        return cls(**lists, embed_dim=dim, resolution=given[0])

    def write(self, path: Path) -> None:
        """Write this subnet as a JSON file."""
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> SubnetSpec:
        """Read a subnet from a JSON file. Raises ValueError that names the file and the fault."""
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as fault:
            raise ValueError(f"{path} is not a subnet: {fault}") from fault

    def key(self) -> str:
        """16 hex digits that name this subnet in journals and folders; equal for equal subnets."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def places_by_resolution(specs: Sequence[SubnetSpec]) -> dict[int | None, list[int]]:
    """Return the places in `specs` of each resolution, which come in the order of the first."""
    places: dict[int | None, list[int]] = {}
    for place, spec in enumerate(specs):
        places.setdefault(spec.resolution, []).append(place)
    return places


def _amiss(values: Any, names: tuple[str, ...]) -> str:
    """Which fields are missing or too many."""
    if not isinstance(values, dict):
        return f"this is a {type(values).__name__}"
    missing = [name for name in names if name not in values]
    unknown = sorted(set(values) - {*names, "resolution"})
    parts = (("missing", missing), ("unknown", unknown))
    return ", ".join(f"{word}: {', '.join(found)}" for word, found in parts if found)


def _ints(name: str, values: Any) -> tuple[int, ...]:
    wrong = not isinstance(values, list) or [v for v in values if type(v) is not int]
    if wrong:
        raise ValueError(f"{name}={values!r} must be whole numbers")
    return tuple(values)
