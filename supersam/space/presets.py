"""Search spaces from rules relative to an encoder's size: the published one, and elastic rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from supersam.config import SpaceConfig, UserError, dump_yaml, read_yaml
from supersam.space.shape import EncoderShape
from supersam.space.space import SearchSpace
from supersam.space.spec import SubnetSpec

_PUBLISHED_DEPTH = 12
_PUBLISHED_REMOVABLE = (1, 2, 5, 6, 9)
_PUBLISHED_WIDTHS = (768 / 3072, 1020 / 3072, 1536 / 3072, 2304 / 3072)


def build_space(config: SpaceConfig, shape: EncoderShape) -> SearchSpace:
    """Build the search space that `config` describes for an encoder of `shape`."""
    space = _space_of(config, shape)
    return replace(space, resolutions=config.resolutions) if config.resolutions else space


def _space_of(config: SpaceConfig, shape: EncoderShape) -> SearchSpace:
    if config.file is not None:
        return read_space(config.file, shape)
    if config.preset == "published":
        return published_space(shape)
    if config.preset == "wide":
        return wide_space(shape)
    return _elastic_space(config, shape)


def published_space(shape: EncoderShape) -> SearchSpace:
    """Build the space of Abebe et al. (arXiv 2501.08504), by the same rule for other encoders.

    In ViT-B layers 1, 2, 5, 6, 9 of 12 are removed with probability 0.5; layer 0 keeps its full
    MLP; the others have 768, 1020, 1536 or 2304 of 3072 units; heads and channels are not elastic.
    """
    twelfth = [layer * _PUBLISHED_DEPTH // shape.depth for layer in range(shape.depth)]
    widths = tuple(sorted({max(1, round(f * shape.mlp_width)) for f in _PUBLISHED_WIDTHS}))
    return SearchSpace(
        shape=shape,
        removal=tuple(0.5 if part in _PUBLISHED_REMOVABLE else 0.0 for part in twelfth),
        mlp_widths=((shape.mlp_width,), *((widths,) * (shape.depth - 1))),
        heads=((shape.num_heads,),) * shape.depth,
        embed_dims=(shape.embed_dim,),
    )


def wide_space(shape: EncoderShape) -> SearchSpace:
    """Build a space in which every dimension is elastic, down to a quarter.

    It reaches below 10 M parameters for ViT-B, where the published space ends at 37 M because heads
    and channels stay.
    """
    quarters = (0.25, 0.5, 0.75, 1.0)
    multiple = min(64, max(1, shape.embed_dim // 4))
    return SearchSpace(
        shape=shape,
        removal=published_space(shape).removal,
        mlp_widths=(width_choices(quarters, shape.mlp_width, multiple),) * shape.depth,
        heads=(width_choices(quarters, shape.num_heads, 1),) * shape.depth,
        embed_dims=width_choices(quarters, shape.embed_dim, multiple),
    )


def read_space(path: Path, shape: EncoderShape) -> SearchSpace:
    """Read `space.yaml`. Raises UserError that names the file and the fault."""
    try:
        return SearchSpace.from_dict(read_yaml(path), shape)
    except ValueError as fault:
        raise UserError(f"{path} is not a search space for this encoder: {fault}") from fault


def read_subnet(path: Path, space: SearchSpace) -> SubnetSpec:
    """Read a subnet from a JSON file. Raises UserError if it is not in `space`."""
    try:
        spec = SubnetSpec.read(path)
    except ValueError as fault:
        raise UserError(str(fault)) from fault
    reason = space.misfit(spec)
    if reason is not None:
        raise UserError(f"{path} is not in this run's search space: {reason}")
    return spec


def space_yaml(space: SearchSpace) -> str:
    """Return the text of `space.yaml`."""
    return dump_yaml(space.to_dict())


def _elastic_space(config: SpaceConfig, shape: EncoderShape) -> SearchSpace:
    removable = config.removable if config.elastic_depth else ()
    outside = [layer for layer in removable if layer >= shape.depth]
    if outside:
        raise ValueError(
            f"--space.removable {' '.join(map(str, outside))} do not exist in this encoder; "
            f"layers are numbered 0 to {shape.depth - 1}"
        )
    widths = width_choices(config.mlp_fractions, shape.mlp_width, config.width_multiple)
    heads = width_choices(config.head_fractions, shape.num_heads, 1)
    channels = width_choices(config.embed_fractions, shape.embed_dim, config.width_multiple)
    return SearchSpace(
        shape=shape,
        removal=tuple(
            config.removal_probability if layer in removable else 0.0
            for layer in range(shape.depth)
        ),
        mlp_widths=(widths if config.elastic_mlp else (shape.mlp_width,),) * shape.depth,
        heads=(heads if config.elastic_heads else (shape.num_heads,),) * shape.depth,
        embed_dims=channels if config.elastic_embed else (shape.embed_dim,),
    )


def width_choices(fractions: Sequence[float], full: int, multiple: int) -> tuple[int, ...]:
    """Round `fractions` of `full` to the nearest multiple, at least one of it; ascending."""
    step = min(multiple, full)
    rounded = {min(full, max(step, round(f * full / step) * step)) for f in fractions}
    return tuple(sorted(rounded))
