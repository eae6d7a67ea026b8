"""The search space as plain values."""

from supersam.space.cost import SubnetCost, subnet_cost
from supersam.space.presets import (
    build_space,
    published_space,
    read_space,
    read_subnet,
    space_yaml,
    wide_space,
    width_choices,
)
from supersam.space.sampling import SizeMetric, sample_by_size
from supersam.space.shape import SHAPES, EncoderShape, describe_shape, resolve_shape
from supersam.space.space import SearchSpace
from supersam.space.spec import SubnetSpec, places_by_resolution

__all__ = [
    "SHAPES",
    "EncoderShape",
    "SearchSpace",
    "SizeMetric",
    "SubnetCost",
    "SubnetSpec",
    "build_space",
    "describe_shape",
    "places_by_resolution",
    "published_space",
    "read_space",
    "read_subnet",
    "resolve_shape",
    "sample_by_size",
    "space_yaml",
    "subnet_cost",
    "wide_space",
    "width_choices",
]
