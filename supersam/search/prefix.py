"""Image embeddings by many subnets, their common leading layers computed once.

A subnet is a path: patch embedding, then attention and MLP of each kept layer. Paths in
lexicographic order form a tree walked depth first; what two subnets share is computed once, by the
same operations on the same numbers, so the embeddings are bitwise those of one subnet at a time.
A `PrefixCache` keeps some outputs for later calls: children share leading layers with parents.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from supersam.config import SearchRun
from supersam.runtime.memory import free_bytes
from supersam.space import EncoderShape, SubnetSpec

if TYPE_CHECKING:  # a submission asks for the budget alone, and shall not wait for torch
    import torch
    from torch import Tensor

    from supersam.model.encoder import ElasticImageEncoder

_Step = tuple[int, ...]
"""(resolution, channels, 0, 0) of the stem, resolution 0 for the model's own; (layer, heads) of an
attention, (layer, width, 0) of an MLP."""


_FREE_SHARE = 0.25
"""Share of the memory that is free when the evaluator has loaded model and images."""
_KEPT_SHARE = 0.6
"""Outputs of a generation that differ, as a share of its subnets times their layers."""


class PrefixCache:
    """Outputs of layers of the subnets seen last, on one batch of images, within a memory bound.

    Where not all layers of a generation fit, those of every second, third, ... layer are kept: a
    child then computes a few layers of its parent again, which is better than all of them.
    """

    def __init__(self, limit_bytes: float, *, generation_layers: int) -> None:
        """generation_layers: layers of all subnets between a parent and its children."""
        self._limit_bytes = limit_bytes
        self._generation_layers = generation_layers
        self._kept: OrderedDict[tuple[_Step, ...], Tensor] = OrderedDict()
        self.kept_bytes = 0
        """Bytes of all outputs kept."""

    def __len__(self) -> int:
        """Outputs kept."""
        return len(self._kept)

    def longest(self, path: Sequence[_Step]) -> tuple[int, Tensor | None]:
        """How many leading steps of `path` are known at most, and their output."""
        for length in range(len(path), 0, -1):
            prefix = tuple(path[:length])
            if prefix in self._kept:
                self._kept.move_to_end(prefix)
                return length, self._kept[prefix]
        return 0, None

    def keep(self, path: Sequence[_Step], output: Tensor) -> None:
        """Keep the output of a path's last step where it ends a layer that is kept."""
        room = int(self._limit_bytes // output.nbytes)
        layers, half = divmod(len(path) - 1, 2)
        if half or layers == 0 or room == 0:
            return
        if layers % math.ceil(_KEPT_SHARE * self._generation_layers / room) == 0:
            self._forget(tuple(path))
            self._kept[tuple(path)] = output
            self.kept_bytes += output.nbytes
        while self.kept_bytes > self._limit_bytes:
            self._forget(next(iter(self._kept)))

    def _forget(self, path: tuple[_Step, ...]) -> None:
        if path in self._kept:
            self.kept_bytes -= self._kept.pop(path).nbytes


def encode_each(
    encoder: ElasticImageEncoder,
    pixels: Tensor,
    specs: Sequence[SubnetSpec],
    cache: PrefixCache | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """The embedding of the images by each subnet, in the order of the tree.

    At most one activation for each step of one path is kept, besides those of `cache`.

    Args:
        encoder: the supernet's image encoder.
        pixels: (B, 3, S, S) normalised, of the resolution of all `specs`.
        specs: the subnets.
        cache: outputs of earlier calls with the same encoder and pixels.

    Yields:
        the subnet's place in `specs` and its embedding, (B, 256, S / 16, S / 16).
    """
    paths = [path_of(spec) for spec in specs]
    done: list[_Step] = []
    outputs: list[Tensor | None] = [pixels]  # the stem's input, then of each step; None is unknown
    for place in sorted(range(len(specs)), key=lambda index: paths[index]):
        path = paths[place]
        shared = _common_length(done, path)
        while outputs[shared] is None:
            shared -= 1
        known, found = (0, None) if cache is None else cache.longest(path)
        del done[shared:], outputs[shared + 1 :]
        if known > shared:
            outputs += [None] * (known - shared - 1) + [found]
            done += path[shared:known]
        for step in path[len(done) :]:
            done.append(step)
            outputs.append(output := _apply(encoder, _known(outputs[-1]), step))
            if cache is not None:
                cache.keep(done, output)
        yield place, encoder.project(_known(outputs[-1]))


def _known(output: Tensor | None) -> Tensor:
    assert output is not None  # the last of a path's outputs always is
    return output


def path_of(spec: SubnetSpec) -> list[_Step]:
    """The steps of a subnet from the pixels to the last layer; sorts siblings together."""
    path: list[_Step] = [(spec.resolution or 0, spec.embed_dim, 0, 0)]
    for layer, width, heads in zip(spec.layers, spec.mlp_widths, spec.heads, strict=True):
        path += [(layer, heads), (layer, width, 0)]
    return path


def _apply(encoder: ElasticImageEncoder, x: Tensor, step: _Step) -> Tensor:
    if len(step) == 4:
        return encoder.embed(x, step[1])
    if len(step) == 2:
        return encoder.attend(x, step[0], step[1])
    return encoder.feed(x, step[0], step[1])


def _common_length(first: Sequence[_Step], second: Sequence[_Step]) -> int:
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))


def cache_bytes(
    search: SearchRun, shape: EncoderShape, *, images: int, device: torch.device, sharers: int = 1
) -> float:
    """What `cache_gib` says, or a share of what is free, and no more than a generation can fill.

    Args:
        search: its settings.
        shape: the supernet's encoder.
        images: evaluation images.
        device: where the outputs are kept.
        sharers: evaluators that share the memory of this device.
    """
    if search.cache_gib is not None:
        return search.cache_gib * 2**30
    free = _free_on_gpu(device) if device.type == "cuda" else free_bytes()
    return min(_FREE_SHARE * free / sharers, generation_bytes(search, shape, images))


def _free_on_gpu(device: torch.device) -> int:
    import torch

    return torch.cuda.mem_get_info(device)[0]


def generation_bytes(search: SearchRun, shape: EncoderShape, images: int) -> float:
    """All outputs of all layers of all subnets of a generation, none shared."""
    numbers = shape.grid**2 * shape.embed_dim * shape.depth
    return float(4 * numbers * search.population * images)
