"""What all subnets of a training step have in common, computed once: pixels, patches, first layers.

The subnets go on from a detached copy, whose gradient gathers theirs; one more backward pass then
takes the sum through the common part. By the chain rule the gradients are those of separate passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from supersam.space import SubnetSpec


@dataclass(frozen=True)
class SharedPrefix:
    """The residual stream where the subnets of a step part."""

    layers: int
    """Leading kept layers that are behind it; the same in all subnets."""
    stream: Tensor
    """(B, g, g, c), a leaf: c channels of the widest subnet."""
    _end: Tensor
    """The same values, the end of the common part's graph."""

    @classmethod
    def of(cls, end: Tensor, layers: int) -> SharedPrefix:
        """Cut the graph after `end`."""
        stream = end.detach().requires_grad_(end.requires_grad)
        return cls(layers=layers, stream=stream, _end=end)

    def loss(self) -> Tensor | None:
        """A scalar whose backward pass takes the gathered gradient through the common part.

        None where nothing before the stream learns.
        """
        if self.stream.grad is None:
            return None
        return (self._end * self.stream.grad).sum()


def common_layers(specs: Sequence[SubnetSpec]) -> int:
    """Leading kept layers that all `specs` have at equal sizes; 0 where their streams differ."""
    if len({spec.embed_dim for spec in specs}) > 1:
        return 0
    genes = [list(zip(s.layers, s.mlp_widths, s.heads, strict=True)) for s in specs]
    count = 0
    for layer in zip(*genes, strict=False):
        if len(set(layer)) > 1:
            break
        count += 1
    return count
