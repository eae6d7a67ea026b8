"""How much memory an evaluator keeps the outputs of layers in, for subnets that share them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supersam.config import SearchRun
from supersam.runtime.memory import free_bytes
from supersam.space import EncoderShape

if TYPE_CHECKING:
    import torch

_SHARE = 0.25
"""Of the memory that is free when the evaluator has loaded model and images."""


def kept_bytes(
    asked: SearchRun, shape: EncoderShape, *, images: int, device: torch.device, sharers: int = 1
) -> float:
    """What `cache_gib` says, or a share of what is free, and no more than a generation can fill.

    Args:
        asked: the search.
        shape: the supernet's encoder.
        images: evaluation images.
        device: where the outputs are kept.
        sharers: evaluators that share the memory of this device.
    """
    if asked.cache_gib is not None:
        return asked.cache_gib * 2**30
    free = _free_on_gpu(device) if device.type == "cuda" else free_bytes()
    return min(_SHARE * free / sharers, generation_bytes(asked, shape, images))


def _free_on_gpu(device: torch.device) -> int:
    import torch  # slow, and a submission does not come here

    return torch.cuda.mem_get_info(device)[0]


def generation_bytes(asked: SearchRun, shape: EncoderShape, images: int) -> float:
    """All outputs of all layers of all subnets of a generation, none shared."""
    numbers = shape.grid**2 * shape.embed_dim * shape.depth
    return float(4 * numbers * asked.population * images)
