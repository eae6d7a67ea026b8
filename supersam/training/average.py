"""Exponential moving average of the trained weights, which is validated, evaluated and exported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from supersam.model import SamSupernet


class WeightAverage:
    """Follows the trainable weights of a supernet; every rank holds the same copy."""

    def __init__(self, supernet: SamSupernet, decay: float) -> None:
        """Begins at the weights as they are. decay: share of the average that a step keeps."""
        self._decay = decay
        self._weights = {n: p for n, p in supernet.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights after `step` optimizer steps.

        The first steps count more: of step n at least 9 / (10 + n), so that the average leaves the
        initial weights behind.
        """
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._average.values()), list(self._weights.values()), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the supernet inside the `with` block, then the weights again."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def reorder(self, permute: Callable[[str, Tensor], Tensor]) -> None:
        """Follow a reordering of the weights; `permute` as in `Engine.reorder`."""
        self._average = {name: permute(name, tensor) for name, tensor in self._average.items()}

    def state(self) -> dict[str, Tensor]:
        """Return the averaged weights by name."""
        return self._average

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`, written by a run with the same trainable weights."""
        for name, tensor in self._average.items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.clone()
            weight.copy_(self._average[name])
            self._average[name].copy_(kept)
