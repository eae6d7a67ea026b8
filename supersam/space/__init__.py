"""The search space as plain values."""

from supersam.space.cost import SubnetCost, subnet_cost
from supersam.space.presets import (
    build_space,
    published_space,
    read_space,
    space_yaml,
    wide_space,
    width_choices,
)
from supersam.space.shape import SHAPES, EncoderShape
from supersam.space.space import SearchSpace
from supersam.space.spec import SubnetSpec

__all__ = [
    "SHAPES",
    "EncoderShape",
    "SearchSpace",
    "SubnetCost",
    "SubnetSpec",
    "build_space",
    "published_space",
    "read_space",
    "space_yaml",
    "subnet_cost",
    "wide_space",
    "width_choices",
]
