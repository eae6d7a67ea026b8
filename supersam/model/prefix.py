"""What several passes of a training step share, computed once.

All subnets share the pixels, the patch embedding and the leading layers; all prompts of an image
share its embedding. Each pass continues from a detached copy of the shared result, whose gradient
accumulates over the passes; one more backward pass takes the sum through the shared part. By the
chain rule the gradients equal those of separate passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from supersam.space import SubnetSpec


@dataclass(frozen=True)
class GraphCut:
    """A tensor at which the graph is cut."""

    leaf: Tensor
    """Its values, as a leaf tensor: passes continue from here."""
    _end: Tensor
    """The same values, attached to the graph of the shared part."""

    @classmethod
    def of(cls, end: Tensor) -> GraphCut:
        """Cut the graph at `end`."""
        return cls(leaf=end.detach().requires_grad_(end.requires_grad), _end=end)

    def loss(self) -> Tensor | None:
        """Return a scalar whose backward pass takes the summed gradient into the shared part.

        None if nothing before the cut is trained.
        """
        if self.leaf.grad is None:
            return None
        return (self._end * self.leaf.grad).sum()


@dataclass(frozen=True)
class SharedPrefix:
    """The residual stream at the point where the subnets of a step diverge."""

    layers: int
    """Kept layers computed so far; the same ones in all subnets."""
    cut: GraphCut
    """Where it ends."""

    @property
    def stream(self) -> Tensor:
        """(B, g, g, c), a leaf tensor; c: channels of the widest subnet."""
        return self.cut.leaf

    def loss(self) -> Tensor | None:
        """Return `cut.loss()`."""
        return self.cut.loss()


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
