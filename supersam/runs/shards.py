"""Which shards a run reads, and their order; generated ones are made in the run's folder."""

from __future__ import annotations

from pathlib import Path

from supersam.config import SourceConfig, SyntheticConfig, TrainRun, UserError
from supersam.config.files import DATA
from supersam.data.convert import convert
from supersam.data.partition import SampleOrder
from supersam.data.shards import ShardReader, open_held_out
from supersam.runtime.distributed import World, barrier
from supersam.runs.folder import validation_folders


def prepare_data(run: TrainRun) -> tuple[list[Path], list[Path]]:
    """Folders of the training and validation shards; generated ones are made where missing."""
    if run.data.source == "shards":
        return list(run.data.train), list(run.data.val)
    train = run.folder / DATA / "train"
    convert(_synthetic_source(run.data.synthetic_train), train)
    (val,) = validation_folders(run)
    convert(_synthetic_source(run.data.synthetic_val), val)
    return [train], [val]


def open_data(run: TrainRun, world: World) -> tuple[list[ShardReader], list[ShardReader]]:
    """The readers of training and validation; rank 0 generates synthetic shards first."""
    if not world.is_first:
        barrier()
    train, val = prepare_data(run)
    if world.is_first:
        barrier()
    return [ShardReader(path) for path in train], open_held_out(val)


def build_order(run: TrainRun, readers: list[ShardReader]) -> SampleOrder:
    """The order of the run's samples. Raises UserError where there are too few for one batch."""
    try:
        return SampleOrder(
            [reader.shard_sizes for reader in readers],
            run.optim.global_batch,
            seed=run.optim.seed,
            weights=run.data.train_weights or None,
            block_records=run.data.block_records,
            window_blocks=run.data.window_blocks,
        )
    except ValueError as fault:
        raise UserError(f"data: {fault}") from fault


def _synthetic_source(synthetic: SyntheticConfig) -> SourceConfig:
    return SourceConfig(kind="synthetic", synthetic=synthetic)
