"""Loaders give each rank its batches, from any step, in any kind of worker, and count damage."""

import itertools
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from supersam.config import UserError
from supersam.config.data import AugmentConfig, DataConfig
from supersam.data.dataset import EvalDataset, ShardDataset, TooManyBadRecordsError
from supersam.data.loader import build_eval_loader, build_loader
from supersam.data.partition import SampleOrder
from supersam.data.shards import ShardReader
from supersam.runtime.distributed import World
from tests.data.samples import random_sample, write_shards
from tests.data.test_dataset import damage, write_folder
from tests.paths import ROOT

SIDE = 32
GLOBAL_BATCH = 6
SIZES = (5, 0, 11, 4)  # 3 steps an epoch and 2 records left over


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    write_shards(folder, SIZES)
    return ShardReader(folder)


def world(rank, world_size):
    return World(rank=rank, world_size=world_size, local_rank=rank, node=0)


def loader(reader, *, rank=0, world_size=1, batch_size=3, max_bad_fraction=0.01, **settings):
    config = DataConfig(
        prompts_per_image=2,
        augment=AugmentConfig(crop_px=(8, 40)),
        max_bad_fraction=max_bad_fraction,
    )
    dataset = ShardDataset([reader], config, side=SIDE, seed=1)
    order = SampleOrder([reader.shard_sizes], GLOBAL_BATCH, seed=1, block_records=2)
    return build_loader(dataset, order, world(rank, world_size), batch_size=batch_size, **settings)


def take(loader, number):
    return list(itertools.islice(loader, number))


def rows(batches):
    """Everything about each sample of the batches, comparable."""
    names = ("sample_ids", "images", "sizes", "points", "labels", "masks", "valid")
    return [
        [row.tolist() for row in rows]
        for batch in batches
        for rows in zip(*(getattr(batch, name) for name in names), strict=True)
    ]


def test_the_micro_batch_a_worker_reads_next_is_announced_to_it(reader, monkeypatch):
    hinted, read = [], []
    monkeypatch.setattr(ShardReader, "will_need", lambda self, index: hinted.append(index))
    read_image = ShardReader.read_image
    monkeypatch.setattr(
        ShardReader, "read_image", lambda self, i: read.append(i) or read_image(self, i)
    )
    take(loader(reader), 6)
    assert hinted[: len(read) - 3] == read[3:]


@pytest.fixture(scope="module")
def expected(reader):
    """The samples of 7 steps, two epochs and one step, read by one process."""
    return rows(take(loader(reader), 14))


def test_a_batch_is_what_its_contract_says(reader):
    (batch,) = take(loader(reader), 1)
    values = {n: v for n, v in vars(batch).items() if n not in ("num_bad", "clicks")}
    fields = {name: (tuple(t.shape), t.dtype) for name, t in values.items()}
    assert fields == {
        "images": ((3, 3, SIDE, SIDE), torch.uint8),
        "sizes": ((3, 2), torch.int64),
        "points": ((3, 2, 2, 2), torch.float32),
        "labels": ((3, 2, 2), torch.int64),
        "masks": ((3, 2, SIDE // 4, SIDE // 4), torch.uint8),
        "valid": ((3, 2), torch.bool),
        "sample_ids": ((3,), torch.int64),
    }
    assert batch.num_bad == 0
    assert batch.clicks is None  # no corrections are asked for
    assert rows([batch.to(torch.device("cpu"))]) == rows([batch])


def test_an_epoch_holds_each_record_at_most_once_and_the_next_one_differs(reader, expected):
    ids = [row[0] for row in expected]
    first, second = ids[:18], ids[18:36]
    known = {reader.read_image(i).id for i in range(reader.num_images)}
    assert len(set(first)) == len(set(second)) == 18
    assert set(first) | set(second) <= known
    assert first != second


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 6), (1, 1), (2, 3), (3, 1), (6, 1)])
def test_any_number_of_ranks_reads_the_same_samples(reader, expected, world_size, batch_size):
    share = GLOBAL_BATCH // world_size
    micro_batches = share // batch_size
    steps = 4
    ranks = [
        rows(
            take(
                loader(reader, rank=r, world_size=world_size, batch_size=batch_size),
                steps * micro_batches,
            )
        )
        for r in range(world_size)
    ]
    together = [
        row for s in range(steps) for rank in ranks for row in rank[s * share : (s + 1) * share]
    ]
    assert together == expected[: steps * GLOBAL_BATCH]


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_loader_starts_at_any_step(reader, expected, step):
    resumed = rows(take(loader(reader, start_step=step), 4))
    assert resumed == expected[step * GLOBAL_BATCH : (step + 2) * GLOBAL_BATCH]


@pytest.mark.parametrize(
    ("workers", "start_method"),
    [
        (1, "fork"),
        (2, "fork"),
        pytest.param(1, "spawn", marks=pytest.mark.slow),
        pytest.param(1, "forkserver", marks=pytest.mark.slow),
    ],
)
def test_workers_of_any_kind_read_the_same_samples(reader, expected, workers, start_method):
    used = loader(reader, workers=workers, start_method=start_method)
    reader.read(0)  # a file is open in the parent
    assert rows(take(used, 6)) == expected[:18]


def test_damage_in_a_worker_is_counted_and_stops_the_run_above_the_limit(tmp_path):
    samples = [random_sample(i) for i in range(18)]
    reader = write_folder(tmp_path / "shards", samples)
    for k in (4, 9):
        damage(tmp_path / "shards", samples[k])
    tolerant = loader(reader, max_bad_fraction=2 / 18, workers=1, start_method="fork")
    batches = take(tolerant, 12)
    assert sum(batch.num_bad for batch in batches[:6]) == 2
    assert (tolerant.num_bad, tolerant.num_samples) == (4, 36)
    strict = loader(reader, max_bad_fraction=1 / 18)
    with pytest.raises(TooManyBadRecordsError, match="2 of .* records read are damaged"):
        take(strict, 6)


def test_a_micro_batch_that_does_not_fit_is_refused(reader):
    for settings in ({"batch_size": 4}, {"world_size": 4, "batch_size": 1}):
        with pytest.raises(ValueError, match="global batch 6 is not a multiple of"):
            loader(reader, **settings)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (3, 0), (2, 1)])
def test_ranks_evaluate_each_image_once_in_order(reader, world_size, workers):
    dataset = EvalDataset([reader], side=SIDE, prompt="box")
    ids = [reader.read_image(i).id for i in range(len(dataset))]
    for rank in range(world_size):
        images = build_eval_loader(
            dataset, world(rank, world_size), workers=workers, start_method="fork"
        )
        assert len(images) == len(ids[rank::world_size])
        assert [image.sample_id for image in images] == ids[rank::world_size]


def test_an_evaluation_image_survives_the_way_from_a_worker(reader):
    dataset = EvalDataset([reader], side=SIDE, prompt="point")
    images = build_eval_loader(dataset, World.single(), workers=1, start_method="fork")
    for image, here in zip(images, (dataset[i] for i in range(len(dataset))), strict=True):
        for name, value in vars(here).items():
            found = getattr(image, name)
            if name == "masks":
                found, value = found[:], value[:]
            np.testing.assert_array_equal(found, value)


def test_too_little_shared_memory_is_said_before_a_worker_dies_of_it(reader, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"/dev/shm has 0.0 MiB left, and 2 loader worker\(s\)"):
        loader(reader, workers=2)
    assert take(loader(reader, workers=0), 1)  # this process hands nothing over


BIG_BATCHES = """
import subprocess
import numpy as np
from supersam.config import UserError
from supersam.data.loader import _Loader
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/dev/shm"], check=True)
loader = _Loader([np.zeros(100_000)] * 4, num_workers=1, multiprocessing_context="fork")
try:
    list(loader)
except UserError as fault:
    print(fault)
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs a mount namespace of its own",
)
def test_shared_memory_that_others_filled_is_told_in_one_line():
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", BIG_BATCHES],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("/dev/shm has no room for a batch; make it larger"), done.stderr
