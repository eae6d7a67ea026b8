"""Wanda (arXiv 2306.11695): absolute weights that read a unit, times the norm of what they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from supersam.data.sample import Batch
from supersam.design.scores.columns import (
    WRITERS,
    Columns,
    absolute_weight,
    channel_score,
    collect_units,
    reading_weights,
)
from supersam.design.scores.measurement import Measurement
from supersam.design.units import UnitScores
from supersam.model import SamSupernet
from supersam.model.elastic import ElasticAttention


def score_wanda(measurement: Measurement) -> UnitScores:
    """Score every unit by the weights that read it and the norm of its values.

    A channel counts also by what the weights of each layer write to it. What is read behind a layer
    norm includes the norm's gain. A collective.
    """
    supernet = measurement.supernet
    squares = _summed(measurement.per_batch(lambda batch: _squared_reads(supernet, batch)))
    weights = {n: absolute_weight(weight) for n, weight in reading_weights(supernet).items()}
    norms = {name: total.sqrt() for name, total in squares.items()}
    columns = {name: weight.sum(0) * norms[name] for name, weight in weights.items()}
    written = {name: weights[name] @ norms[name] for name in weights if name.endswith(WRITERS)}
    return collect_units(columns, channel_score(columns, written), supernet.space.shape)


def _summed(parts: Sequence[Columns]) -> Columns:
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


@torch.no_grad()
def _squared_reads(supernet: SamSupernet, batch: Batch) -> Columns:
    """Return the sum of squares, over tokens, of each input channel of each reading weight."""
    batch = batch.to(supernet.pixel_mean.device)
    with _ReadTap(supernet) as tap:
        supernet.encode(batch.images, batch.sizes)
    squares: Columns = tap.squares
    return squares


class _ReadTap(TorchFunctionMode):
    """Records what the reading weights read.

    Elastic layers call functions on slices of weights, which module hooks do not see.
    """

    def __init__(self, supernet: SamSupernet) -> None:
        super().__init__()
        self.squares: Columns = {}
        self._names = {
            weight.data_ptr(): name for name, weight in reading_weights(supernet).items()
        }
        self._blocks = supernet.image_encoder.blocks

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (F.linear, F.conv2d) and args[1].data_ptr() in self._names:
            self._record(self._names[args[1].data_ptr()], args[0])
        return func(*args, **(kwargs or {}))

    def _record(self, name: str, x: Tensor) -> None:
        """Add the squares of x, leaving out the padding of windows.

        x: (..., c); (B, c, g, g) at the neck; windows or grids at `proj`.
        """
        if name == "neck.0":
            x = x.permute(0, 2, 3, 1)
        layer, _, rest = name.partition(".")
        if rest == "attn.proj":
            attention = self._blocks[int(layer)].attn
            assert isinstance(attention, ElasticAttention)
            geometry = attention.geometry
            if x.shape[1] != geometry.grid:
                across = (geometry.grid + geometry.pad) // geometry.side
                x = geometry.merge(x, len(x) // across**2)
        self.squares[name] = x.double().square().flatten(0, -2).sum(0).cpu()
