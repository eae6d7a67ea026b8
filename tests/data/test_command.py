"""What launch/shard.py says and leaves: parts, mended inputs, notes, and faults in one line."""

import json
import logging
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from supersam.config import ShardRun, UserError, exit_code
from supersam.config.data import SourceConfig
from supersam.data import convert as conversion
from supersam.data.command import run_shard
from supersam.data.convert import convert
from supersam.data.images import decode_rgb
from supersam.data.plan import OtherSourceError
from supersam.data.rle import decode_runs
from supersam.data.shards import ShardReader
from tests.data.folders import make_sa1b, noise, rectangle, save
from tests.data.test_images import oriented_png
from tests.data.test_layouts import record, write
from tests.next_commands import read_next
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def log_ends_with_the_test():
    yield
    logging.getLogger("supersam").handlers.clear()
    logging.getLogger("supersam").propagate = True


def shard(source, out, **options):
    return exit_code(run_shard, ShardRun(source=source, out=out, **options))


def test_parts_of_an_array_make_the_whole(tmp_path, capsys, monkeypatch):
    source = SourceConfig(kind="sa1b", root=make_sa1b(tmp_path / "in", 12))

    def split(*args, **options):
        return convert(*args, **{**options, "shard_bytes": 20_000})

    monkeypatch.setattr("supersam.data.command.convert", split)
    for part in (3, 1):
        assert shard(source, tmp_path / "out", part=f"{part}/3") == 0
        assert f"part {part}/3 is done" in capsys.readouterr().out
    assert shard(source, tmp_path / "out", part="2/3") == 0
    assert "12 images, 24 masks" in capsys.readouterr().out
    assert len(ShardReader(tmp_path / "out")) == 12


def test_a_conversion_ends_with_the_training_on_its_shards(tmp_path, capsys):
    for split, expected in (("train", ["train", "DIR"]), ("val", ["train", "val"])):
        source = SourceConfig(kind="sa1b", root=make_sa1b(tmp_path / "in", 1, split=split))
        source = source.model_copy(update={"split": split})
        assert shard(source, tmp_path / split) == 0
        printed = capsys.readouterr().out
        assert f"{tmp_path / split}: 1 image, 2 masks in 1 shard (0 kept, 1 written" in printed
        assert "left out: nothing" in printed
        name, following = read_next(printed)
        folders = [*following.data.train, *following.data.val]
        assert (name, [folder.name for folder in folders]) == ("train", expected)


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "1/0"])
def test_a_part_that_does_not_exist_is_refused(tmp_path, part):
    with pytest.raises(ValueError, match="part"):
        ShardRun(source=SourceConfig(kind="synthetic"), out=tmp_path, part=part)


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_conversion_goes_on_after_a_bad_photo_was_mended(tmp_path, policy):
    root = make_sa1b(tmp_path / "in", 6)
    photo = root / "train" / "sa_0005.jpg"
    whole = photo.read_bytes()
    photo.write_bytes(whole[:-600])
    source = SourceConfig(kind="sa1b", root=root, on_bad=policy)
    size = {"shard_bytes": 12_000}
    if policy == "error":
        with pytest.raises(UserError, match="sa_0005"):
            convert(source, tmp_path / "out", **size)
    else:
        assert convert(source, tmp_path / "out", **size).manifest.num_images == 5
    photo.write_bytes(whole)
    report = convert(source, tmp_path / "out", **size)
    assert (report.manifest.num_images, report.manifest.skipped, report.written) == (6, (), 1)
    assert report.kept > 0
    convert(source, tmp_path / "fresh", **size)
    again, fresh = (ShardReader(tmp_path / name) for name in ("out", "fresh"))
    assert [again.read(i) for i in range(6)] == [fresh.read(i) for i in range(6)]


def test_a_finished_set_does_not_change_under_its_readers(tmp_path):
    root = make_sa1b(tmp_path / "in", 3)
    source = SourceConfig(kind="sa1b", root=root)
    convert(source, tmp_path / "out")
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    assert convert(source, tmp_path / "out").written == 0
    with (root / "train" / "sa_0001.jpg").open("ab") as file:
        file.write(b"more")
    with pytest.raises(OtherSourceError, match="is finished, and the inputs of shard-000000.h5"):
        convert(source, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


def test_a_folder_of_the_version_before_is_kept(tmp_path):
    """Plans and sidecars as they were: one ignored id or null, no hash of names, no starts."""
    source = SourceConfig(kind="sa1b", root=make_sa1b(tmp_path / "in", 3))
    out = tmp_path / "out"
    convert(source, out)
    plan = json.loads((out / "plan.json").read_text())
    del plan["names_sha256"], plan["starts"], plan["settings"]["exif"]
    plan["settings"]["ignore_id"] = None
    (out / "plan.json").write_text(json.dumps(plan))
    sidecar = out / "shard-000000.json"
    record = json.loads(sidecar.read_text())
    new = ("inputs_sha256", "skipped_objects", "crowds", "without_mask", "background_maps")
    new += ("unsure_turns", "first_pictures", "first_picture_of")
    old = {name: value for name, value in record.items() if name not in new}
    sidecar.write_text(json.dumps(old))
    report = convert(source, out)
    assert (report.kept, report.written, report.manifest.num_images) == (1, 0, 3)


def test_what_was_decided_for_the_user_is_said_with_its_flag(tmp_path, capsys):
    for k, orientation in enumerate((1, 3)):
        photo = oriented_png(noise(k), orientation)
        (tmp_path / "images" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / "train" / f"{k}.png").write_bytes(photo)
        labels = rectangle(5, 5, 20, 20).astype(np.uint8)
        save(tmp_path / "annotations" / "train" / f"{k}.png", labels)
    source = SourceConfig(kind="labelmap", root=tmp_path)
    assert shard(source, tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "id 0 was taken as background in 2 label maps; --background-id null" in told
    assert "of 1 image the size does not decide the EXIF" in told
    assert "--exif upright" in told
    decided = source.model_copy(update={"exif": "upright", "background_id": None})
    assert shard(decided, tmp_path / "decided") == 0
    assert "note:" not in capsys.readouterr().out
    turned = ShardReader(tmp_path / "decided").read(1)
    assert (turned.height, turned.width) == (40, 56)


def test_files_of_several_pictures_are_counted_and_said_once(tmp_path, capsys):
    root = make_sa1b(tmp_path / "in", 4)
    for name in ("sa_0001", "sa_0002"):
        (root / "train" / f"{name}.jpg").unlink()
        pages = [Image.fromarray(noise(seed)) for seed in (1, 2)]
        pages[0].save(root / "train" / f"{name}.tif", save_all=True, append_images=pages[1:])
    source = SourceConfig(kind="sa1b", root=root)
    for _ in ("written", "kept"):
        assert shard(source, tmp_path / "out") == 0
        told = capsys.readouterr().out
        assert told.count("note: ") == 1
        assert (
            "note: 2 image files hold several pages or frames, such as train/sa_0001.tif (2)"
            in told
        )
    assert np.array_equal(decode_rgb(ShardReader(tmp_path / "out").read(1).image), noise(1))


def test_masks_drawn_on_the_upright_picture_lie_on_the_object(tmp_path):
    """A red square in the upper left of the upright picture, stored in each orientation."""
    upright = np.full((40, 56, 3), 40, np.uint8)
    upright[5:15, 6:18] = (255, 60, 60)
    images = []
    for orientation in range(2, 9):
        stored = to_stored(upright, orientation)
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / f"{orientation}.png").write_bytes(oriented_png(stored, orientation))
        size = {"height": stored.shape[0], "width": stored.shape[1]}  # as stored, whatever it shows
        images.append({"id": orientation, "file_name": f"{orientation}.png", **size})
    content = record(*images)
    polygon = [[6.0, 5.0, 18.0, 5.0, 18.0, 15.0, 6.0, 15.0]]
    for annotation in content["annotations"]:
        annotation["segmentation"] = polygon
    write(tmp_path / "annotations" / "instances_train.json", content)
    source = SourceConfig(kind="coco", root=tmp_path, exif="upright")
    convert(source, tmp_path / "out")
    reader = ShardReader(tmp_path / "out")
    for index in range(len(reader)):
        sample = reader.read(index)
        assert np.array_equal(decode_rgb(sample.image), upright), sample.name
        runs = decode_runs(sample.masks[0].rle, sample.height, sample.width)
        drawn = runs.draw(0, 0, sample.height, sample.width)
        assert np.array_equal(drawn, (upright == (255, 60, 60)).all(axis=2)), sample.name


def to_stored(upright, orientation):
    """What a camera stores, so that `orientation` turns it upright."""
    down = -1 if orientation in (3, 4, 7, 8) else 1
    right = -1 if orientation in (2, 3, 6, 7) else 1
    turned = upright[::down, ::right]
    return np.ascontiguousarray(turned.swapaxes(0, 1) if orientation >= 5 else turned)


@pytest.mark.parametrize("place", ["a file", "below a file", "on a full disk"])
def test_an_output_that_cannot_be_written_is_one_line(tmp_path, capsys, monkeypatch, place):
    source = SourceConfig(kind="sa1b", root=make_sa1b(tmp_path / "in", 2))
    (tmp_path / "file").write_text("precious")
    out = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "out"}.get(place)
    if out is None:
        out = tmp_path / "out"

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(conversion.ShardWriter, "finish", full)
    assert shard(source, out) == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert f"--out {out} cannot be written: " in told
    assert (tmp_path / "file").read_text() == "precious"
    assert place != "on a full disk" or not list(out.glob("*shard*"))


KILLED = """
import os, signal, sys
from pathlib import Path
from supersam.config import ShardRun, exit_code
from supersam.config.data import SourceConfig
from supersam.data import convert
from supersam.data.command import run_shard


def die(config, item):
    os.kill(os.getpid(), signal.SIGKILL)


convert.read_samples = die  # in the workers too: they execute this file

if __name__ == "__main__":
    source = SourceConfig(kind="sa1b", root=Path(sys.argv[1]))
    sys.exit(exit_code(run_shard, ShardRun(source=source, out=Path(sys.argv[2]), workers=2)))
"""


def test_a_killed_worker_is_one_line_that_names_flags(tmp_path):
    root = make_sa1b(tmp_path / "in", 2)
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    done = subprocess.run(
        [sys.executable, script, root, tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "fewer --workers or a smaller --shard-mib" in done.stderr
    assert signal.SIGKILL.name not in done.stderr
    assert not list((tmp_path / "out").glob("*shard*"))
