"""Shards give back what was written, to every kind of process, and refuse what they should."""

import concurrent.futures
import errno
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from supersam.data import open_files
from supersam.data.shards import (
    MASK_META,
    BadRecordError,
    ShardFolderError,
    ShardReader,
    ShardWriter,
    open_held_out,
    write_manifest,
)
from tests.data.samples import random_sample, write_shards
from tests.paths import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def samples(folder):
    return write_shards(folder, (5, 1, 0, 7))


def test_every_sample_is_read_as_written(folder, samples):
    reader = ShardReader(folder)
    assert [reader.read(i) for i in range(reader.num_images)] == samples
    assert reader.shard_sizes == (5, 1, 0, 7)
    assert reader.num_masks == sum(len(sample.masks) for sample in samples)


@pytest.fixture
def one_open_file(monkeypatch):
    monkeypatch.setattr(open_files, "_files", open_files.OpenFiles(1))


@pytest.mark.usefixtures("one_open_file")
def test_the_order_of_reads_does_not_matter(folder, samples):
    reader = ShardReader(folder)
    for i in np.random.default_rng(0).integers(0, len(samples), 50):
        assert reader.read(i) == samples[i]


def test_chosen_masks_are_read_in_the_order_asked(folder, samples):
    reader = ShardReader(folder)
    index = max(range(len(samples)), key=lambda i: len(samples[i].masks))
    rles = [mask.rle for mask in samples[index].masks]
    which = [len(rles) - 1, 0, len(rles) - 1]
    assert reader.read_masks(index, which) == [rles[k] for k in which]
    assert reader.read_masks(index, []) == []
    with pytest.raises(IndexError, match=f"which has {len(rles)}"):
        reader.read_masks(index, [len(rles)])


def test_an_image_record_holds_the_mask_table(folder, samples):
    for i, sample in enumerate(samples):
        record = ShardReader(folder).read_image(i)
        assert record.masks.dtype == MASK_META
        assert record.masks["area"].tolist() == [mask.area for mask in sample.masks]
        assert record.masks["point"].tolist() == [list(mask.point) for mask in sample.masks]
        assert (record.image, record.format) == (sample.image, sample.format)


def test_an_index_outside_the_folder_is_refused(folder, samples):
    for index in (-1, len(samples)):
        with pytest.raises(IndexError, match=f"has {len(samples)}"):
            ShardReader(folder).read_image(index)


def test_a_pickled_reader_reads_the_same(folder, samples):
    reader = ShardReader(folder)
    reader.read(0)
    assert pickle.loads(pickle.dumps(reader)).read(3) == samples[3]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_used_reader_works_in_child_processes(folder, samples, method):
    reader = ShardReader(folder)
    reader.read(0)
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert list(pool.map(reader.read, range(len(samples)))) == samples
    assert reader.read(1) == samples[1]


def test_what_is_needed_soon_is_announced_where_the_system_takes_hints(
    folder, samples, monkeypatch
):
    reader, hints = ShardReader(folder), []
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fadvise", lambda *hint: hints.append(hint), raising=False)
        reader.will_need(3)
    content = (folder / "shard-000000.h5").read_bytes()
    assert samples[3].image in [content[at : at + size] for _, at, size, _ in hints]
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    reader.will_need(4)
    assert [reader.read(i) for i in (3, 4)] == samples[3:5]


@pytest.mark.usefixtures("one_open_file")
def test_threads_share_a_reader(folder, samples):
    reader = ShardReader(folder)
    indices = list(range(len(samples))) * 10
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(reader.read, indices)) == [samples[i] for i in indices]


def test_the_same_samples_make_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_shards(tmp_path / name, (4,))
    first, second = (tmp_path / name / "shard-000000.h5" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_the_fingerprint_tells_content_and_order(tmp_path):
    write_shards(tmp_path / "a", (2, 3))
    write_shards(tmp_path / "b", (3, 2))
    a, b = (ShardReader(tmp_path / name).fingerprint for name in ("a", "b"))
    assert a != b
    assert a == ShardReader(tmp_path / "a").fingerprint


def test_all_datasets_are_contiguous_and_plain(folder, samples):
    with h5py.File(folder / "shard-000000.h5") as file:
        assert file.attrs["complete"] == 1
        datasets = [item for group in file.values() for item in group.values()]
        assert all(dataset.chunks is None for dataset in datasets)
        assert all(dataset.id.get_create_plist().get_nfilters() == 0 for dataset in datasets)


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(ShardFolderError, match=r"no folder .*gone"):
        ShardReader(tmp_path / "gone")
    write_shards(tmp_path, (1,))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ShardFolderError, match=r"no manifest.json; .*launch/shard.py"):
        ShardReader(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    write_shards(tmp_path, (1, 1, 1))
    (tmp_path / "shard-000001.h5").unlink()
    with pytest.raises(ShardFolderError, match="lacks 1 of 3 shards: shard-000001.h5"):
        ShardReader(tmp_path)


def test_an_edited_manifest_is_refused(tmp_path):
    write_shards(tmp_path, (1, 1))
    path = tmp_path / "manifest.json"
    record = json.loads(path.read_text())
    record["shards"].reverse()
    path.write_text(json.dumps(record))
    with pytest.raises(ShardFolderError, match="fingerprint does not match"):
        ShardReader(tmp_path)


def test_a_newer_major_version_is_refused(tmp_path):
    write_shards(tmp_path, (1,))
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_major": 2}))
    with pytest.raises(ShardFolderError, match="schema_major=2.*update SuperSAM"):
        ShardReader(tmp_path)


def test_extra_datasets_of_a_newer_minor_version_are_ignored(tmp_path):
    samples = write_shards(tmp_path, (3,))
    with h5py.File(tmp_path / "shard-000000.h5", "r+") as file:
        file["image/exposure"] = np.ones(3)
        file.attrs["schema_minor"] = 7
        file.attrs["mood"] = "good"
    reader = ShardReader(tmp_path)
    assert [reader.read(i) for i in range(3)] == samples


def test_a_sample_that_cannot_be_stored_is_refused(tmp_path):
    sample = random_sample(0)
    object.__setattr__(sample, "id", -1)
    with pytest.raises(ValueError, match="id=-1 of Bilder/ä 0.jpeg"):
        ShardWriter(tmp_path / "shard-000000.h5").add(sample)


def test_a_bad_record_error_survives_pickling():
    error = BadRecordError("shard-000001.h5", 3, "a.jpg", 7, "damaged")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(error) == "shard-000001.h5 record 3 (image a.jpg, id 7): damaged"


def test_a_folder_of_no_images_reads_as_empty(tmp_path):
    write_manifest(tmp_path, [])
    assert ShardReader(Path(tmp_path)).num_images == 0


def test_folders_that_share_an_image_are_refused_and_others_opened(folder, tmp_path):
    for name, numbers in (("sharing", (12, 20)), ("apart", (30, 31))):
        (tmp_path / name).mkdir()
        writer = ShardWriter(tmp_path / name / "shard-000000.h5")
        for number in numbers:
            writer.add(random_sample(number))
        write_manifest(tmp_path / name, [writer.finish()])
    assert [len(reader) for reader in open_held_out([folder, tmp_path / "apart"])] == [13, 2]
    for second, shared in ((tmp_path / "sharing", 1), (folder, 13)):
        with pytest.raises(ShardFolderError, match=f"share {shared} of 13 images.*name one"):
            open_held_out([folder, tmp_path / "apart", second])


def test_a_shard_that_cannot_be_opened_is_named_with_its_folder(tmp_path):
    folder = tmp_path / "shards"
    write_shards(folder, (3,))
    (shard,) = folder.glob("*.h5")
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(ShardFolderError, match=rf"{folder}: .*cannot be opened.*--verify {folder}"):
        ShardReader(folder).image_ids()


def test_all_readers_together_keep_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(open_files, "_files", open_files.OpenFiles(5))
    written = [write_shards(tmp_path / str(k), (1,) * 4) for k in range(3)]
    readers = [ShardReader(tmp_path / str(k)) for k in range(3)]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for reader, samples in zip(readers, written, strict=True):
            assert [reader.read(i) for i in range(4)] == samples
    assert len(open_files.open_files()) == 5
    # Each reader holds the shard of its last image besides.
    assert len(os.listdir("/proc/self/fd")) - before <= 5 + len(readers)
    del readers, reader
    assert len(open_files.open_files()) == 0


LIMITED = """
import resource, sys
from pathlib import Path
from supersam.data.shards import ShardReader
readers = [ShardReader(Path(folder)) for folder in sys.argv[1:]]
for reader in readers:
    for i in range(3):
        reader.read(i)
others = []
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
try:
    while True:
        others.append(open("/dev/null"))
except OSError:
    pass
for _ in range(2):
    for reader in readers:
        assert len([reader.read(i) for i in range(3)]) == 3
print("read")
"""


def test_a_full_table_of_open_files_is_not_called_damage(tmp_path):
    for k in range(3):
        write_shards(tmp_path / str(k), (1, 1, 1))
    run = [sys.executable, "-c", LIMITED, *(str(tmp_path / str(k)) for k in range(3))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert done.stdout == "read\n", done.stderr


def test_a_shard_that_may_not_be_opened_is_not_called_damaged(tmp_path, monkeypatch):
    write_shards(tmp_path, (2,))

    def refuse(*_, **__):
        raise OSError(errno.EACCES, "Permission denied")

    reader = ShardReader(tmp_path)
    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(ShardFolderError, match="Permission denied; make it readable"):
        reader.read(0)
    monkeypatch.setattr(h5py, "File", lambda *_, **__: refuse_many())
    with pytest.raises(ShardFolderError, match=r"may open \d+ files .*ulimit -n"):
        reader.read(0)


def refuse_many():
    raise OSError(errno.EMFILE, "Too many open files")
