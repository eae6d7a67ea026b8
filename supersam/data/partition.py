"""Samples to batches and ranks: one global order for any world size. Pure NumPy: no files.

The order of an epoch is a function of (seed, epoch, shard sizes, global batch) and of nothing else:

1. Shards are cut into blocks of `block_records` neighbours; all blocks of the epoch are permuted.
2. The list of blocks is cut into lanes of equal length. In a lane, the records of each window of
   `window_blocks` blocks' length are permuted.
3. Slot j of a global batch draws from lane floor(j * lanes / global_batch), so that a batch mixes
   all lanes; rank r of R takes the slots [r * G / R, (r + 1) * G / R).

Reads stay close to sequential within a block, and no more than lanes x window records are in play
at once. What is left of an epoch after its last full global batch is dropped; another epoch drops
other records.

An epoch of several sets holds as many records as all of them together. With weights, set d gives
w_d / sum(w) of it; without, every record comes once. A set's records come from its own endless
sequence of turns, each a permutation of its blocks, so that each record is drawn once before any
is drawn again. The turns of a run with one set are its epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

ORDER_VERSION = 1
"""Raised whenever the same settings would give another order."""
MAX_LANES = 256

# What a stream of random numbers is for: streams of one seed never meet.
ORDER_STREAM, TURN_STREAM, WINDOW_STREAM, AUGMENT_STREAM = range(4)


def philox(seed: int, stream: int, *key: int) -> np.random.Philox:
    """The generator of (seed, stream, key): independent of every other key's."""
    return np.random.Philox(np.random.SeedSequence((seed, stream, *key)))


class SampleKey(NamedTuple):
    """One draw of one record."""

    dataset: int
    """Which of the run's data sets."""
    record: int
    """Which record of the set, counted through its shards."""
    turn: int
    """How often the set was gone through before: keys the augmentation."""


class SampleOrder:
    """The order of all samples of a run, for any world size. Its only state is the step."""

    def __init__(
        self,
        shard_sizes: Sequence[Sequence[int]],
        global_batch: int,
        *,
        seed: int,
        weights: Sequence[float] | None = None,
        block_records: int = 32,
        window_blocks: int = 4,
    ) -> None:
        """Settings of the order.

        Args:
            shard_sizes: the records of each shard, for each data set.
            global_batch: samples of one optimizer step, over all ranks.
            seed: of all permutations.
            weights: relative share of each set in an epoch; None takes every record once.
            block_records: neighbours that stay together when blocks are permuted.
            window_blocks: blocks whose records are mixed with each other in a lane.
        """
        self.seed = seed
        self.global_batch = global_batch
        self.set_sizes = tuple(sum(sizes) for sizes in shard_sizes)
        self.set_quotas = self.set_sizes
        self.block_records = block_records
        self.window_blocks = window_blocks
        self.lanes = max(c for c in range(1, MAX_LANES + 1) if global_batch % c == 0)
        self._check()
        if weights is not None:
            self.set_quotas = _share_out(self.records_per_epoch, weights, self.set_sizes)
        self._first_of_set = np.cumsum((0, *self.set_sizes))
        self._blocks = [_cut_blocks(sizes, block_records) for sizes in shard_sizes]
        self._epoch: _Epoch | None = None

    def _check(self) -> None:
        if 0 in self.set_sizes:
            which = self.set_sizes.index(0)
            raise ValueError(f"data set {which} (from 0) has no images; leave it out")
        if self.records_per_epoch < self.global_batch:
            raise ValueError(
                f"{self.records_per_epoch} training images are fewer than the global batch of "
                f"{self.global_batch}, so an epoch would have no step; use fewer ranks, a smaller "
                "batch or more images"
            )

    @property
    def records_per_epoch(self) -> int:
        """Records of all sets together; those that fill no global batch are not used."""
        return sum(self.set_sizes)

    @property
    def batches_per_epoch(self) -> int:
        """Global batches, that is optimizer steps, of an epoch."""
        return self.records_per_epoch // self.global_batch

    def describe(self) -> dict[str, object]:
        """What a checkpoint keeps beside the samples consumed: equal values, equal order."""
        return {
            "order_version": ORDER_VERSION,
            "seed": self.seed,
            "global_batch": self.global_batch,
            "lanes": self.lanes,
            "block_records": self.block_records,
            "window_blocks": self.window_blocks,
            "set_sizes": list(self.set_sizes),
            "set_quotas": list(self.set_quotas),
        }

    def require_same(self, saved: Mapping[str, object]) -> None:
        """Raise unless `saved`, the `describe()` of a checkpoint, means this very order."""
        changed = [
            f"{name} was {saved.get(name)} and is {value}"
            for name, value in self.describe().items()
            if saved.get(name) != value
        ]
        if len(changed) > 0:
            raise ValueError(
                f"the data order is not the checkpoint's: {', '.join(changed)}; restore the "
                "settings, or start a new run from the checkpoint's weights"
            )

    def batch(self, step: int) -> Ints:
        """Return the global batch of an optimizer step, (G, 3) int64: a `SampleKey` per slot."""
        epoch, step_of_epoch = divmod(step, self.batches_per_epoch)
        if self._epoch is None or self._epoch.number != epoch:
            self._epoch = self._lay_out(epoch)
        record, turn = self._epoch.records(self._epoch.positions(step_of_epoch))
        which = np.searchsorted(self._first_of_set, record, side="right") - 1
        return np.stack((which, record - self._first_of_set[which], turn), axis=1)

    def rank_batch(self, step: int, rank: int, world_size: int) -> Ints:
        """One rank's slots of `batch(step)`. Returns (G / R, 3) int64: a `SampleKey` a slot."""
        if self.global_batch % world_size != 0:
            raise ValueError(
                f"world_size={world_size} does not divide the global batch of "
                f"{self.global_batch}; use a number of ranks that does"
            )
        share = self.global_batch // world_size
        return self.batch(step)[rank * share : (rank + 1) * share]

    def _lay_out(self, epoch: int) -> _Epoch:
        blocks = _concatenate([self._draw(which, epoch) for which in range(len(self.set_sizes))])
        order = _permutation(len(blocks.first), philox(self.seed, ORDER_STREAM, epoch))
        lane_batch = self.global_batch // self.lanes
        return _Epoch(
            number=epoch,
            blocks=blocks.take(order),
            seed=self.seed,
            lanes=self.lanes,
            lane_batch=lane_batch,
            lane_length=self.batches_per_epoch * lane_batch,
            window=self.block_records * self.window_blocks,
        )

    def _draw(self, which: int, epoch: int) -> _Blocks:
        """The blocks that a set gives to an epoch: the next `quota` records of its turns."""
        size, quota = self.set_sizes[which], self.set_quotas[which]
        begin, end = epoch * quota, (epoch + 1) * quota
        first, length = self._blocks[which]
        parts = []
        for turn in range(begin // size, -(-end // size)):
            order = _permutation(len(first), philox(self.seed, TURN_STREAM, which, turn))
            before = turn * size
            parts.append(_cut(first[order], length[order], begin - before, end - before, turn))
        drawn = _concatenate(parts)
        return drawn._replace(first=drawn.first + self._first_of_set[which])


class _Blocks(NamedTuple):
    """Runs of neighbouring records, (n,) each."""

    first: Ints
    length: Ints
    turn: Ints

    def take(self, order: Ints) -> _Blocks:
        return _Blocks(self.first[order], self.length[order], self.turn[order])


class _Epoch:
    """One epoch: its blocks in order, cut into lanes, and the windows in play."""

    def __init__(
        self,
        *,
        number: int,
        blocks: _Blocks,
        seed: int,
        lanes: int,
        lane_batch: int,
        lane_length: int,
        window: int,
    ) -> None:
        self.number = number
        self._blocks = blocks
        self._ends = np.cumsum(blocks.length)
        self._seed = seed
        self._lanes = lanes
        self._lane_batch = lane_batch
        self._lane_length = lane_length
        self._window = window
        self._shuffled: dict[int, Ints] = {}

    def positions(self, step: int) -> Ints:
        """Where in the list of blocks' records the slots of a batch draw from: (G,) int64."""
        begin, end = step * self._lane_batch, (step + 1) * self._lane_batch
        numbers = range(begin // self._window, -(-end // self._window))
        # Lanes advance together, so the windows of a step are the same few for all of them.
        self._shuffled = {
            n: self._shuffled[n] if n in self._shuffled else self._shuffle(n) for n in numbers
        }
        offsets = np.concatenate(list(self._shuffled.values()), axis=1)
        skipped = begin - numbers[0] * self._window
        return offsets[:, skipped : skipped + self._lane_batch].ravel()

    def _shuffle(self, number: int) -> Ints:
        """The permuted positions of one window in each lane: (lanes, window) int64."""
        begin = number * self._window
        length = min(self._window, self._lane_length - begin)
        stream = philox(self._seed, WINDOW_STREAM, self.number, number)
        raw = stream.random_raw(self._lanes * length).reshape(self._lanes, length)
        lane_begin = np.arange(self._lanes)[:, None] * self._lane_length
        return lane_begin + begin + np.argsort(raw, axis=1, kind="stable")

    def records(self, positions: Ints) -> tuple[Ints, Ints]:
        """Record, counted through all sets, and turn at each position."""
        block = np.searchsorted(self._ends, positions, side="right")
        begin = self._ends[block] - self._blocks.length[block]
        return self._blocks.first[block] + positions - begin, self._blocks.turn[block]


def _concatenate(parts: Sequence[_Blocks]) -> _Blocks:
    return _Blocks(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _permutation(length: int, stream: np.random.Philox) -> Ints:
    # From raw bits: unlike Generator.permutation, the same in every release of NumPy.
    return np.argsort(stream.random_raw(length), kind="stable")


def _cut_blocks(shard_sizes: Sequence[int], block_records: int) -> tuple[Ints, Ints]:
    """First record and length of each block; no block crosses a shard's end."""
    ends = np.cumsum(shard_sizes)
    first = np.concatenate(
        [
            np.arange(end - size, end, block_records)
            for size, end in zip(shard_sizes, ends, strict=True)
        ]
    )
    return first, np.diff(first, append=ends[-1])


def _cut(first: Ints, length: Ints, begin: int, end: int, turn: int) -> _Blocks:
    """The part of a list of blocks that holds its records `begin` to `end`."""
    stop = np.cumsum(length)
    start = stop - length
    low, high = np.maximum(start, begin), np.minimum(stop, end)
    kept = low < high
    first, length = (first + low - start)[kept], (high - low)[kept]
    return _Blocks(first, length, np.full(len(first), turn))


def _share_out(total: int, weights: Sequence[float], sizes: Sequence[int]) -> tuple[int, ...]:
    """How many of an epoch's `total` records each set gives: w / sum(w), rounded to the total."""
    if len(weights) != len(sizes):
        raise ValueError(f"{len(weights)} weights for {len(sizes)} data sets; give one each")
    if not all(0 < w < float("inf") for w in weights):
        raise ValueError(f"weights={tuple(weights)}; give each data set a positive number")
    wanted = np.array(weights, np.float64) * total / sum(weights)
    quotas = np.floor(wanted).astype(np.int64)
    most_short = np.argsort(quotas - wanted, kind="stable")
    quotas[most_short[: total - int(quotas.sum())]] += 1
    if quotas.min() == 0:
        which = int(quotas.argmin())
        raise ValueError(
            f"weight {weights[which]} gives data set {which} (from 0) no record in an epoch of "
            f"{total}; raise it or leave the set out"
        )
    return tuple(int(q) for q in quotas)
