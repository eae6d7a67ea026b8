"""Conversion: the same bytes whoever does it, resumable after any death, never half a file."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from supersam.config.data import SourceConfig, SyntheticConfig
from supersam.data.convert import convert
from supersam.data.plan import OtherSourceError
from supersam.data.shards import ShardFolderError, ShardReader
from supersam.data.sources import list_items, read_samples
from supersam.data.verify import verify_shards
from tests.data.folders import make_sa1b
from tests.paths import ROOT
from tests.patience import PATIENCE_S

SHARD_BYTES = 30_000


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = make_sa1b(tmp_path_factory.mktemp("source"), 24)
    return SourceConfig(kind="sa1b", root=root)


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(source, out, shard_bytes=SHARD_BYTES)
    return out


def shards_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*"))}


def test_shards_hold_the_source_in_order(source, converted):
    expected = [s for item in list_items(source) for s in read_samples(source, item).samples]
    reader = ShardReader(converted)
    assert [reader.read(i) for i in range(reader.num_images)] == expected
    assert len(reader.shard_sizes) > 2
    assert verify_shards(converted, full=True).ok


def test_two_workers_write_the_bytes_of_one(source, converted, tmp_path):
    convert(source, tmp_path, workers=2, shard_bytes=SHARD_BYTES)
    assert shards_of(tmp_path) == shards_of(converted)
    assert ShardReader(tmp_path).fingerprint == ShardReader(converted).fingerprint


def test_parts_make_the_whole_and_the_last_one_finishes(source, converted, tmp_path):
    first = convert(source, tmp_path, shard_bytes=SHARD_BYTES, part=1, parts=2)
    assert first.manifest is None
    assert first.missing[0] == "shard-000000.h5"
    with pytest.raises(
        ShardFolderError, match=r"unfinished .*missing: shard-000000.h5.*run launch"
    ):
        ShardReader(tmp_path)
    last = convert(source, tmp_path, shard_bytes=SHARD_BYTES, part=0, parts=2)
    assert last.missing == ()
    assert shards_of(tmp_path) == shards_of(converted)


def test_a_second_run_keeps_whole_shards_and_mends_the_rest(source, converted, tmp_path):
    total = convert(source, tmp_path, shard_bytes=SHARD_BYTES).written
    path = tmp_path / "shard-000001.h5"
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)
    (tmp_path / "shard-000000.h5").unlink()
    again = convert(source, tmp_path, shard_bytes=SHARD_BYTES)
    assert (again.written, again.kept) == (2, total - 2)
    assert shards_of(tmp_path) == shards_of(converted)


def test_another_conversion_is_refused_and_told_apart(source, converted):
    for change, options, difference in (
        ({"min_area_px": 20}, {}, "source.min_area_px: 16 there, 20 here"),
        ({"tile_px": 32}, {}, "source.tile_px: None there, 32 here"),
        ({}, {"shard_bytes": 999_999}, "shard_bytes: 30000 there, 999999 here"),
    ):
        other = source.model_copy(update=change)
        with pytest.raises(OtherSourceError, match=difference):
            convert(other, converted, **({"shard_bytes": SHARD_BYTES} | options))


def test_changed_inputs_are_refused(tmp_path):
    root = make_sa1b(tmp_path / "in", 3)
    source = SourceConfig(kind="sa1b", root=root)
    convert(source, tmp_path / "out")
    with (root / "train" / "sa_0001.json").open("a") as file:
        file.write(" ")
    with pytest.raises(OtherSourceError, match="finished, and the inputs of shard-000000.h5 have"):
        convert(source, tmp_path / "out")
    make_sa1b(root, 4)
    with pytest.raises(OtherSourceError, match="inputs: 3 there, 4 here"):
        convert(source, tmp_path / "out")


def test_a_moved_source_and_a_mended_policy_are_the_same_conversion(tmp_path):
    root = make_sa1b(tmp_path / "in", 3)
    source = SourceConfig(kind="sa1b", root=root)
    convert(source, tmp_path / "out")
    root.rename(tmp_path / "moved")
    moved = source.model_copy(update={"root": tmp_path / "moved", "on_bad": "skip"})
    assert convert(moved, tmp_path / "out").kept == 1


def test_foreign_shards_are_never_overwritten(source, tmp_path):
    (tmp_path / "shard-000000.h5").write_text("precious")
    with pytest.raises(OtherSourceError, match=r"holds shard-000000.h5 but no plan.json"):
        convert(source, tmp_path)


def test_the_manifest_tells_where_the_shards_came_from(source, converted):
    record = json.loads((converted / "manifest.json").read_text())
    assert record["source"] == source.model_dump(mode="json")
    assert record["num_images"] == 24
    assert record["created"]


def test_nonsense_is_refused(source, tmp_path):
    for options in ({"workers": 0}, {"part": 2, "parts": 2}, {"shard_bytes": 0}):
        with pytest.raises(ValueError, match="count from"):
            convert(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


GENERATED = SourceConfig(kind="synthetic", synthetic=SyntheticConfig(images=80, size_px=96))
# Whatever the machine's speed, the process that writes the second shard stays at it: on the disk is
# a temporary, and the conversion cannot be over when it is killed. Workers execute this file too.
SCRIPT = """
import sys
import time
from pathlib import Path
from supersam.config.data import SourceConfig
from supersam.data.convert import convert
from supersam.runtime import atomic

sync = atomic.sync


def sync_or_stay(path):
    while path.name.startswith(".shard-000001.h5.tmp.") and path.parent.exists():
        time.sleep(0.02)
    sync(path)


atomic.sync = sync_or_stay

if __name__ == "__main__":
    source = SourceConfig.model_validate_json(sys.argv[3])
    convert(source, Path(sys.argv[1]), workers=int(sys.argv[2]), shard_bytes=100_000)
"""


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    out = tmp_path_factory.mktemp("generated") / "out"
    convert(GENERATED, out, shard_bytes=100_000)
    return out


def begin_conversion(out, workers):
    """Convert in a process group of its own, which stays at its second shard."""
    script = out.with_name("script.py")
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, script, out, str(workers), GENERATED.model_dump_json()],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("how", "workers"), [(signal.SIGKILL, 1), (signal.SIGKILL, 2), (signal.SIGINT, 2)]
)
def test_a_killed_conversion_is_refused_then_finished(tmp_path, generated, how, workers):
    out = tmp_path / "out"
    process = begin_conversion(out, workers)
    wait_for(lambda: any(out.glob("shard-*.json")) and any(out.glob(".shard-000001.h5.tmp.*")))
    process.send_signal(how)
    process.communicate(timeout=PATIENCE_S)
    wait_for(lambda: not group_lives(process.pid))  # the workers end with their parent
    with pytest.raises(ShardFolderError, match="is unfinished"):
        ShardReader(out)
    if how == signal.SIGINT:
        assert list(out.glob(".*")) == []
    report = convert(GENERATED, out, shard_bytes=100_000)
    assert report.kept >= 1
    assert shards_of(out) == shards_of(generated)
    assert verify_shards(out, full=True).ok


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_deleted_while_it_is_written_is_one_line(tmp_path, workers):
    out = tmp_path / "out"
    process = begin_conversion(out, workers)
    wait_for(lambda: any(out.glob(".shard-000001.h5.tmp.*")))
    out.rename(tmp_path / "moved")
    _, err = process.communicate(timeout=PATIENCE_S)
    assert f"OutputError: --out {out} was deleted or moved during the conversion" in err
    assert "Exception in thread" not in err
    assert not out.exists()


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_converting_and_verifying_import_no_torch():
    code = (
        "import sys, supersam.data.convert, supersam.data.verify; sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
