"""Importance of MLP units, attention heads and embedding channels, measured on a calibration set.

A unit leaves when the weights that read it lose their columns: columns of `lin2` for an MLP unit,
of `proj` for a head, of `qkv`, `lin1` and the neck for a channel. Every score is made of these
columns. No state outlives a call, and any number of ranks finds the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from supersam.config.design import ScoreName
from supersam.data.sample import Batch
from supersam.design.units import UnitScores
from supersam.model import Prediction, SamSupernet
from supersam.model.elastic import ElasticAttention, ElasticBlock
from supersam.runtime.distributed import World, gather_objects
from supersam.space import EncoderShape

ScoreLoss = Callable[[Prediction, Batch], Tensor]
"""What taylor and movement differentiate: a scalar of the largest subnet's prediction."""
Measured = TypeVar("Measured")
Columns = dict[str, Tensor]
"""A value for each input column of each reading weight, by name: `3.mlp.lin2`, `neck.0`."""

_NOISE = 0.01  # of SlimSAM's disturbed embedding (arXiv 2312.05284); its scale ranks nothing
_STRIDE = 1e-3  # of movement: each step moves a matrix by this share of its norm


def score_units(
    supernet: SamSupernet,
    calibration: Sequence[Batch],
    *,
    score: ScoreName,
    world: World | None = None,
    loss: ScoreLoss | None = None,
    seed: int = 0,
) -> UnitScores:
    """The importance of every unit of the largest subnet. A collective where `world` has ranks.

    magnitude: sum of absolute weights that read or write the unit. wanda (arXiv 2306.11695): those
    that read it, times the norm of what they read. taylor (arXiv 1905.10650): what the loss changes
    to first order without the unit, its size averaged over the batches. movement (arXiv
    2005.07683): how far a few steps of training push the unit's weights away from zero. random: the
    control, noise that stays with a unit wherever it goes.

    Args:
        supernet: its weights are the same before and after; on any device.
        calibration: the same batches on every rank, which takes every R-th of them.
        score: which of the five.
        world: this rank; None for a process on its own.
        loss: for taylor and movement; None takes the distance to a disturbed embedding.
        seed: of random scores.
    """
    world = world or World.single()
    with supernet.activated(supernet.space.largest()), _evaluating(supernet):
        if score == "random":
            return _random_scores(supernet, seed)
        if score == "magnitude":
            return _magnitude_scores(supernet)
        if score == "wanda":
            return _wanda_scores(supernet, calibration, world)
        loss = loss or embedding_loss(seed)
        if score == "movement":
            return _movement_scores(supernet, calibration, loss)
        return _taylor_scores(supernet, calibration, world, loss)


def embedding_loss(seed: int = 0) -> ScoreLoss:
    """Squared distance to the image embedding itself plus noise: needs no annotation."""

    def loss(prediction: Prediction, batch: Batch) -> Tensor:
        generator = torch.Generator().manual_seed(seed + int(batch.sample_ids[0]))
        embedding = prediction.embedding.float()
        noise = torch.randn(embedding.shape, generator=generator).to(embedding.device)
        return F.mse_loss(embedding, embedding.detach() + _NOISE * noise)

    return loss


def _wanda_scores(supernet: SamSupernet, calibration: Sequence[Batch], world: World) -> UnitScores:
    squares = _summed(_on_share(calibration, world, lambda batch: _squared_reads(supernet, batch)))
    weights = _readers(supernet)
    columns = {
        name: _absolute(weight).sum(0) * squares[name].sqrt() for name, weight in weights.items()
    }
    return _collect(columns, supernet.space.shape, even=True)


def _taylor_scores(
    supernet: SamSupernet, calibration: Sequence[Batch], world: World, loss: ScoreLoss
) -> UnitScores:
    shape = supernet.space.shape

    def of_batch(batch: Batch) -> UnitScores:
        products = _weight_times_gradient(supernet, batch, loss)[0]
        return _collect(products, shape, even=False).abs() * len(batch.images)

    first, *rest = _on_share(calibration, world, of_batch)
    scores: UnitScores = sum(rest, start=first)
    return scores * (1 / sum(len(batch.images) for batch in calibration))


def _movement_scores(
    supernet: SamSupernet, calibration: Sequence[Batch], loss: ScoreLoss
) -> UnitScores:
    """A step needs the one before it, so that every rank walks the whole way."""
    weights = _readers(supernet)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    moved: Columns = {}
    try:
        for batch in calibration:
            products, gradients = _weight_times_gradient(supernet, batch, loss)
            for name, weight in weights.items():
                moved[name] = moved.get(name, 0.0) - products[name]
                stride = _STRIDE * weight.detach().norm() / gradients[name].norm().clamp(min=1e-30)
                weight.data.sub_(stride * gradients[name])
    finally:
        for name, weight in weights.items():
            weight.data.copy_(before[name])
    return _collect(moved, supernet.space.shape, even=False)


def _magnitude_scores(supernet: SamSupernet) -> UnitScores:
    shape = supernet.space.shape
    columns = {name: _absolute(weight).sum(0) for name, weight in _readers(supernet).items()}
    rows = {name: _absolute(weight).sum(1) for name, weight in _readers(supernet).items()}
    for layer in range(shape.depth):
        columns[f"{layer}.mlp.lin2"] += rows[f"{layer}.mlp.lin1"]
        q_k_v = rows[f"{layer}.attn.qkv"].view(shape.num_heads, 3, shape.head_dim)
        columns[f"{layer}.attn.proj"] += q_k_v.sum(1).flatten()
    writers = {n: row for n, row in rows.items() if n.endswith(("lin2", "proj"))}
    scores = _collect(columns, shape, even=True)
    written = torch.stack([row / row.mean() for row in writers.values()]).sum(0)
    return UnitScores(scores.mlp, scores.heads, scores.embed + written)


def _random_scores(supernet: SamSupernet, seed: int) -> UnitScores:
    """Noise drawn from the bits of the weights that read a unit, whatever their order."""
    weights = _readers(supernet)
    salt = (2 * seed + 1) * 0x9E3779B97F4A7C1  # odd, and so it stays modulo 2**64
    salt = (salt + 2**63) % 2**64 - 2**63  # as the signed 64-bit number that a tensor takes
    keys = {name: _mix(weight, salt) for name, weight in weights.items()}
    shape = supernet.space.shape
    layers = range(shape.depth)
    heads = torch.stack([keys[f"{i}.attn.proj"] for i in layers])
    return UnitScores(
        mlp=_uniform(torch.stack([keys[f"{i}.mlp.lin2"] for i in layers])),
        heads=_uniform(heads.view(shape.depth, shape.num_heads, -1).sum(2)),
        embed=_uniform(torch.stack([keys[f"{i}.mlp.lin1"] for i in layers]).sum(0)),
    )


def _collect(columns: Columns, shape: EncoderShape, *, even: bool) -> UnitScores:
    """Columns to units. `even`: each weight that reads the channels has the same say."""
    layers = range(shape.depth)
    heads = torch.stack([columns[f"{i}.attn.proj"] for i in layers])
    reading = [columns[n] for i in layers for n in (f"{i}.attn.qkv", f"{i}.mlp.lin1")]
    reading.append(columns["neck.0"])
    embed = torch.stack([c / c.mean().clamp(min=1e-30) if even else c for c in reading]).sum(0)
    return UnitScores(
        mlp=torch.stack([columns[f"{i}.mlp.lin2"] for i in layers]),
        heads=heads.view(shape.depth, shape.num_heads, -1).sum(2),
        embed=embed,
    )


def _absolute(weight: Tensor) -> Tensor:
    """(out, in) float64 on the CPU."""
    return weight.detach().flatten(1).abs().double().cpu()


def _on_share(
    calibration: Sequence[Batch], world: World, measure: Callable[[Batch], Measured]
) -> list[Measured]:
    """`measure` of every batch, in their order: this rank's share computed, the others' gathered.

    They are added in one order on every rank, so that the world's size changes no bit.
    """
    mine = {
        index: measure(calibration[index])
        for index in range(world.rank, len(calibration), world.world_size)
    }
    found = {index: value for part in gather_objects(mine) for index, value in part.items()}
    return [found[index] for index in range(len(calibration))]


def _summed(parts: Sequence[Columns]) -> Columns:
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


@torch.no_grad()
def _squared_reads(supernet: SamSupernet, batch: Batch) -> Columns:
    """Sum of squares of every input channel of every reading weight, over a batch's tokens."""
    batch = batch.to(supernet.pixel_mean.device)
    with _ReadTap(supernet) as tap:
        supernet.encode(batch.images, batch.sizes)
    squares: Columns = tap.squares
    return squares


def _weight_times_gradient(
    supernet: SamSupernet, batch: Batch, loss: ScoreLoss
) -> tuple[Columns, dict[str, Tensor]]:
    """Sums over each column of weight x gradient, float64 on the CPU; and the gradients."""
    batch = batch.to(supernet.pixel_mean.device)
    weights = _readers(supernet)
    with _differentiable(weights.values()), torch.enable_grad():
        prediction = supernet(batch.images, batch.sizes, batch.points, batch.labels)
        gradients = torch.autograd.grad(loss(prediction, batch), list(weights.values()))
    products = {
        name: (weight.detach().double() * gradient.double()).flatten(1).sum(0).cpu()
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
    return products, dict(zip(weights, gradients, strict=True))


def _readers(supernet: SamSupernet) -> dict[str, Tensor]:
    """The weights that read units, (out, in) or (out, in, 1, 1), by name."""
    encoder = supernet.image_encoder
    found: dict[str, Tensor] = {}
    for layer, block in enumerate(encoder.blocks):
        assert isinstance(block, ElasticBlock)
        found[f"{layer}.attn.qkv"] = block.attn.qkv.weight
        found[f"{layer}.attn.proj"] = block.attn.proj.weight
        found[f"{layer}.mlp.lin1"] = block.mlp.lin1.weight
        found[f"{layer}.mlp.lin2"] = block.mlp.lin2.weight
    first = encoder.neck[0]
    assert isinstance(first, nn.Conv2d)  # segment-anything's 1 x 1 projection
    found["neck.0"] = first.weight
    return found


class _ReadTap(TorchFunctionMode):
    """Sees what the reading weights read: layers are functions of slices here, without hooks."""

    def __init__(self, supernet: SamSupernet) -> None:
        super().__init__()
        self.squares: Columns = {}
        self._names = {weight.data_ptr(): name for name, weight in _readers(supernet).items()}
        self._blocks = supernet.image_encoder.blocks

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (F.linear, F.conv2d) and args[1].data_ptr() in self._names:
            self._record(self._names[args[1].data_ptr()], args[0])
        return func(*args, **(kwargs or {}))

    def _record(self, name: str, x: Tensor) -> None:
        """x: (..., c); (B, c, g, g) at the neck; windows or grids at `proj`: no padding counts."""
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


@contextmanager
def _differentiable(weights: Any) -> Iterator[None]:
    """Let frozen weights have gradients for a while."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


@contextmanager
def _evaluating(supernet: SamSupernet) -> Iterator[None]:
    was_training = supernet.training
    supernet.eval()
    try:
        yield
    finally:
        supernet.train(was_training)


def _mix(weight: Tensor, salt: int) -> Tensor:
    """A 64-bit key of each input column: its entries' bits, mixed one by one and added."""
    bits = weight.detach().flatten(1).float().cpu().contiguous().view(torch.int32).long()
    bits = (bits ^ (bits >> 13)) * salt
    return ((bits ^ (bits >> 29)) * 0x2545F4914F6CDD1D).sum(0)


def _uniform(keys: Tensor) -> Tensor:
    """Numbers in [0, 1) from 64-bit keys."""
    keys = (keys ^ (keys >> 31)) * 0x5851F42D4C957F2D
    return ((keys >> 11) & ((1 << 40) - 1)).double() / (1 << 40)
