"""What does not grow with the number of images: files opened and bytes held, counted."""

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from supersam.config import SourceConfig, SyntheticConfig
from supersam.data import open_files
from supersam.data.convert import convert
from supersam.data.identity import shared_sources
from supersam.data.manifest import ShardInfo, shard_file, write_manifest
from supersam.data.partition import SampleOrder
from supersam.data.plan import Plan
from supersam.data.shard_file import OpenShard
from supersam.data.shards import ShardReader
from supersam.data.sources import list_items
from tests.data.folders import make_sa1b
from tests.data.samples import write_shards

SKETCH = SyntheticConfig(images=12, size_px=32)


def named_only(folder: Path, count: int, *, images: int = 550) -> Path:
    """A folder whose manifest lists `count` shards, each of them an empty file."""
    folder.mkdir()
    infos = [ShardInfo(shard_file(k), images, 9, 9, f"{k:064x}") for k in range(count)]
    for info in infos:
        (folder / info.file).touch()
    write_manifest(folder, infos)
    return folder


@pytest.fixture
def opened(monkeypatch) -> list[Path]:
    """The shards that are opened."""
    paths: list[Path] = []

    def open_counted(path: Path) -> OpenShard:
        paths.append(path)
        return OpenShard(path)

    monkeypatch.setattr(open_files, "OpenShard", open_counted)
    return paths


def test_a_set_is_opened_and_ordered_without_opening_a_shard(tmp_path, opened):
    reader = ShardReader(named_only(tmp_path / "set", 40))
    order = SampleOrder([reader.shard_sizes], 64, seed=0)
    for step in (0, 5 * order.batches_per_epoch // 2):
        assert order.batch(step).shape == (64, 3)
    assert opened == []


def test_a_worker_is_handed_the_name_and_the_size_of_a_shard_alone(tmp_path):
    few, many = (
        len(pickle.dumps(ShardReader(named_only(tmp_path / str(count), count))))
        for count in (10, 510)
    )
    assert (many - few) / 500 < 40  # a hash alone has 64


def test_an_order_holds_less_than_a_number_an_image():
    sizes = [550] * 2000
    tracemalloc.start()
    order = SampleOrder([sizes], 256, seed=0)
    for step in (0, 2 * order.batches_per_epoch + 7):
        order.batch(step)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * sum(sizes)


def test_open_shards_hold_so_many_bytes_and_one_of_any_size(tmp_path, monkeypatch):
    samples = write_shards(tmp_path, (3,) * 8)
    one = OpenShard(tmp_path / shard_file(0)).index_bytes
    for most_bytes in (0, 3 * one):
        files = open_files.OpenFiles(100, most_bytes)
        monkeypatch.setattr(open_files, "_files", files)
        reader = ShardReader(tmp_path)
        assert [reader.read(i) for i in range(len(reader))] == samples
        assert len(files) == 1 or files.index_bytes <= most_bytes
        assert (len(files) == 1) == (most_bytes == 0)


def test_comparing_sources_by_content_opens_each_shard_once_and_reads_no_name(
    tmp_path, monkeypatch, opened
):
    source = SourceConfig(kind="synthetic", synthetic=SKETCH)
    for name, shard_bytes in (("one", 1 << 20), ("many", 1)):
        convert(source, tmp_path / name, shard_bytes=shard_bytes)
    one, many = ShardReader(tmp_path / "one"), ShardReader(tmp_path / "many")
    monkeypatch.setattr(OpenShard, "name", None)
    opened.clear()
    assert shared_sources([one], [many]).images == one.num_images == len(many.shard_sizes)
    assert len(opened) == 1 + len(many.shard_sizes)


def test_a_part_of_unknown_content_has_all_compared_by_name(tmp_path):
    source = SourceConfig(kind="synthetic", synthetic=SKETCH)
    convert(source, tmp_path / "new")
    write_shards(tmp_path / "old", (2, 1))
    new, old = ShardReader(tmp_path / "new"), ShardReader(tmp_path / "old")
    for first, second in (([new], [new, old]), ([new, old], [new])):
        shared = shared_sources(first, second)
        assert (shared.images, shared.by_content) == (new.num_images, False)
    assert shared_sources([], [new]).images == shared_sources([new], []).images == 0


def test_a_conversion_makes_the_name_of_its_set_once_for_all_shards(tmp_path, monkeypatch):
    calls = []
    to_dict = Plan.to_dict
    monkeypatch.setattr(Plan, "to_dict", lambda plan: calls.append(plan) or to_dict(plan))
    counts = []
    for name, shard_bytes in (("one", 1 << 20), ("many", 1)):
        calls.clear()
        convert(
            SourceConfig(kind="synthetic", synthetic=SKETCH),
            tmp_path / name,
            shard_bytes=shard_bytes,
        )
        counts.append(len(calls))
    assert counts[0] == counts[1]


def test_sa1b_is_listed_folder_by_folder(tmp_path):
    for folder in ("a", "a-b", "a.b"):
        make_sa1b(tmp_path / folder, 2)
    items = list_items(SourceConfig(kind="sa1b", root=tmp_path, split="."))
    names = [item.name for item in items]
    assert names == sorted(names, key=lambda name: Path(name).parts)
    assert np.unique([Path(name).parts[0] for name in names]).tolist() == ["a", "a-b", "a.b"]
    assert all(item.detail == ".json" and item.fault is None for item in items)
