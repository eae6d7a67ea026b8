"""Image embeddings by many subnets, their common leading layers computed once.

A subnet is a path: patch embedding, then attention and MLP of each kept layer. Paths in
lexicographic order form a tree walked depth first; what two subnets share is computed once, by the
same operations on the same numbers, so the embeddings are bitwise those of one subnet at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from supersam.model.encoder import ElasticImageEncoder
from supersam.space import SubnetSpec

_Step = tuple[int, ...]
"""(channels) of the stem, (layer, heads) of an attention, (layer, width, 0) of an MLP."""


def encode_each(
    encoder: ElasticImageEncoder, pixels: Tensor, specs: Sequence[SubnetSpec]
) -> Iterator[tuple[int, Tensor]]:
    """The embedding of the images by each subnet, in the order of the tree.

    At most one activation for each step of one path is kept.

    Args:
        encoder: the supernet's image encoder.
        pixels: (B, 3, S, S) normalised.
        specs: the subnets.

    Yields:
        the subnet's place in `specs` and its embedding, (B, 256, S / 16, S / 16).
    """
    paths = [path_of(spec) for spec in specs]
    done: list[_Step] = []
    outputs = [pixels]  # of the stem's input, then of each step of `done`
    for place in sorted(range(len(specs)), key=lambda index: paths[index]):
        shared = _common_length(done, paths[place])
        del done[shared:], outputs[shared + 1 :]
        for step in paths[place][shared:]:
            outputs.append(_apply(encoder, outputs[-1], step))
            done.append(step)
        yield place, encoder.project(outputs[-1])


def path_of(spec: SubnetSpec) -> list[_Step]:
    """The steps of a subnet from the pixels to the last layer; sorts siblings together."""
    path: list[_Step] = [(spec.embed_dim,)]
    for layer, width, heads in zip(spec.layers, spec.mlp_widths, spec.heads, strict=True):
        path += [(layer, heads), (layer, width, 0)]
    return path


def _apply(encoder: ElasticImageEncoder, x: Tensor, step: _Step) -> Tensor:
    if len(step) == 1:
        return encoder.embed(x, step[0])
    if len(step) == 2:
        return encoder.attend(x, step[0], step[1])
    return encoder.feed(x, step[0], step[1])


def _common_length(first: Sequence[_Step], second: Sequence[_Step]) -> int:
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
