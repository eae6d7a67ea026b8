"""The leading layers that all subnets of a training step share, computed once.

The shared part is the pixels, the patch embedding and the first layers. Each subnet continues from
a detached copy of its result, whose gradient accumulates over the subnets; one more backward pass
takes the sum through the shared part. By the chain rule the gradients equal those of separate
passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from supersam.space import SubnetSpec


@dataclass(frozen=True)
class SharedPrefix:
    """The residual stream at the point where the subnets of a step diverge."""

    layers: int
    """Kept layers computed so far; the same ones in all subnets."""
    stream: Tensor
    """(B, g, g, c), a leaf tensor; c: channels of the widest subnet."""
    _end: Tensor
    """The same values, attached to the graph of the shared part."""

    @classmethod
    def of(cls, end: Tensor, layers: int) -> SharedPrefix:
        """Build the prefix that ends with the stream `end`: the graph is cut there."""
        stream = end.detach().requires_grad_(end.requires_grad)
        return cls(layers=layers, stream=stream, _end=end)

    def loss(self) -> Tensor | None:
        """Return a scalar whose backward pass takes the summed gradient into the shared part.

        None if nothing before the stream is trained.
        """
        if self.stream.grad is None:
            return None
        return (self._end * self.stream.grad).sum()


def common_layers(specs: Sequence[SubnetSpec]) -> int:
    """Count the leading kept layers that all `specs` have at equal sizes.

    0 if the widths of their residual streams differ.
    """
    if len({spec.embed_dim for spec in specs}) > 1:
        return 0
    genes = [list(zip(s.layers, s.mlp_widths, s.heads, strict=True)) for s in specs]
    count = 0
    for layer in zip(*genes, strict=False):
        if len(set(layer)) > 1:
            break
        count += 1
    return count
