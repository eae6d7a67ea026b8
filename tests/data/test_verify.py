"""RemovalEffect is found and named, and nothing but the damaged record is lost."""

import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from supersam.config import ShardRun, UserError, exit_code
from supersam.data.command import run_shard
from supersam.data.manifest import read_manifest
from supersam.data.shards import BadRecordError, ShardFolderError, ShardReader
from supersam.data.verify import verify_shards
from tests.data.samples import write_shards

SIZES = (3, 4, 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, write_shards(folder, SIZES)


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "copy")
    return tmp_path / "copy"


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def position(path, dataset, row=0):
    with h5py.File(path) as file:
        return file[dataset].id.get_offset() + row * file[dataset].dtype.itemsize


def faults(folder, *, full=True):
    return [str(fault) for fault in verify_shards(folder, full=full).faults]


def test_a_whole_folder_has_no_faults(whole):
    folder, samples = whole
    for full in (False, True):
        report = verify_shards(folder, full=full, workers=2)
        assert report.ok
        assert (report.shards, report.images) == (len(SIZES), len(samples))
        assert report.masks == sum(len(sample.masks) for sample in samples)


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        ("image/data", "the image's bytes are damaged"),
        ("mask/data", "the run lengths of mask 0 are damaged"),
        ("mask/meta", "the table of its masks is damaged"),
        ("mask/offset", "the table of its masks is damaged"),
        ("mask/crc32", "the table of its masks is damaged"),
    ],
)
def test_a_flipped_bit_is_found_and_costs_one_record(whole, copy, dataset, reason):
    samples = whole[1]
    # The second image of the second shard: where its own part of the dataset starts.
    first, masks = samples[3], len(samples[3].masks)
    assert samples[4].masks
    rows = {"image/data": len(first.image), "mask/data": sum(len(m.rle) for m in first.masks)}
    row = rows.get(dataset, masks + (dataset == "mask/offset"))
    path = copy / "shard-000001.h5"
    flip(path, position(path, dataset, row))
    name, id = samples[4].name, samples[4].id
    (fault,) = [fault for fault in faults(copy) if f"record 1 (image {name})" in fault]
    assert fault.startswith("shard-000001.h5 ")
    assert reason in fault
    reader = ShardReader(copy)
    with pytest.raises(BadRecordError, match=rf"shard-000001.h5 record 1 .*id {id}\): {reason}"):
        reader.read(4)
    # An offset is the end of one mask and the start of the next: two images may share its loss.
    untouched = set(range(len(samples))) - ({4, 5} if dataset == "mask/offset" else {4})
    assert all(reader.read(i) == samples[i] for i in untouched)


def test_a_damaged_index_costs_its_shard_only(whole, copy):
    samples = whole[1]
    path = copy / "shard-000001.h5"
    flip(path, position(path, "image/offset", 1))
    assert faults(copy, full=False) == ["shard-000001.h5: its index is damaged (CRC-32)"]
    reader = ShardReader(copy)
    with pytest.raises(BadRecordError, match=r"shard-000001.h5 record 2: its index is damaged"):
        reader.read_image(5)
    assert all(reader.read(i) == samples[i] for i in (0, 1, 2, 7, 8))


@pytest.mark.parametrize("left", [0, 100, 3000, -1])
def test_a_truncated_shard_is_found_without_reading_it(whole, copy, left):
    path = copy / "shard-000002.h5"
    data = path.read_bytes()
    path.write_bytes(data[:left])
    found = faults(copy, full=False)
    size = len(data[:left])
    assert found[0] == f"shard-000002.h5: has {size} bytes, {len(data)} in the manifest"
    reader = ShardReader(copy)
    assert reader.read(0) == whole[1][0]
    with pytest.raises(BadRecordError, match=r"shard-000002.h5 record 0"):
        reader.read(7)


def test_a_file_that_is_no_shard_is_found(copy):
    path = copy / "shard-000000.h5"
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))
    (fault,) = faults(copy)
    assert fault.startswith("shard-000000.h5: cannot be opened")


def test_a_shard_of_another_conversion_is_found(copy):
    shutil.copy(copy / "shard-000000.h5", copy / "shard-000001.h5")
    assert any("in the manifest" in fault for fault in faults(copy, full=False))
    with pytest.raises(BadRecordError, match="holds 3 images, 4 in the manifest"):
        ShardReader(copy).read(3)


def test_an_incomplete_shard_is_found(copy):
    with h5py.File(copy / "shard-000001.h5", "r+") as file:
        del file.attrs["complete"]
    assert "shard-000001.h5: its writer was stopped before the end" in faults(copy, full=False)


def test_a_change_outside_all_records_is_found(copy):
    path = copy / "shard-000001.h5"
    with h5py.File(path, "r+") as file:
        file.attrs["n"] = file.attrs["n"] + 1
    assert faults(copy) == [
        "shard-000001.h5: differs from the manifest outside its records (SHA-256)"
    ]


def test_missing_surplus_and_unfinished_files_are_named(copy):
    (copy / "shard-000001.h5").unlink()
    (copy / "shard-000009.h5").write_text("extra")
    (copy / ".shard-000001.h5.tmp.node7.4242").write_text("half")
    assert faults(copy) == [
        "shard-000001.h5: missing",
        "shard-000009.h5: is not in the manifest",
        ".shard-000001.h5.tmp.node7.4242: unfinished, of a running or killed writer; "
        "delete it if killed",
    ]


def test_a_folder_without_manifest_is_a_fault(copy):
    (copy / "manifest.json").write_text("{")
    assert "is damaged" in faults(copy)[0]
    (copy / "manifest.json").unlink()
    assert "has no manifest.json" in faults(copy)[0]


def test_damage_while_open_is_found(whole, copy):
    reader = ShardReader(copy)
    reader.read(7)
    with (copy / "shard-000002.h5").open("r+b") as file:
        file.truncate(position(whole[0] / "shard-000002.h5", "image/data", 10))
    with pytest.raises(BadRecordError, match="it was truncated"):
        reader.read(7)


def test_a_shard_of_a_newer_major_version_is_refused(copy):
    with h5py.File(copy / "shard-000000.h5", "r+") as file:
        file.attrs["schema_major"] = 9
    with pytest.raises(ShardFolderError, match=r"shard-000000.h5 has schema_major=9"):
        ShardReader(copy).read(0)
    assert "schema_major=9" in faults(copy)[0]


def test_a_folder_without_anything_of_a_set_is_a_users_mistake(tmp_path, capsys):
    for folder, told in ((tmp_path / "absent", "no folder"), (tmp_path, "holds no shards")):
        assert exit_code(run_shard, ShardRun(verify=folder)) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert str(folder) in message
        assert told in message


def test_a_relative_folder_is_told_with_the_place_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = f"no folder shards/val in {tmp_path}; run the command in the folder from which"
    with pytest.raises(UserError, match=re.escape(place)):
        read_manifest(Path("shards/val"))
    with pytest.raises(UserError, match=f"no folder {tmp_path}/shards; convert a source into it"):
        read_manifest(tmp_path / "shards")
