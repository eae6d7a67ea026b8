"""Content tells images apart, not names, folders or tiles; frames of a clip belong together."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from supersam.config.data import SourceConfig
from supersam.data.convert import convert
from supersam.data.dataset import EvalDataset
from supersam.data.identity import clip_of, content_id, cut_sides, shared_sources, stable_id
from supersam.data.sample import Origin, Tile
from supersam.data.shards import ShardFolderError, ShardReader, open_held_out
from tests.data.folders import add_sa1b, make_sa1b, noise, rectangle
from tests.data.samples import write_shards

GOLDEN = Path(__file__).parent / "golden" / "schema-1.0"


def shards_of(root, out, **settings):
    convert(SourceConfig(**{"kind": "sa1b", "root": root, **settings}), out)
    return ShardReader(out)


def video(root, *, seed, frames=4):
    for k in range(frames):
        masks = [rectangle(2, 3, 8, 9), rectangle(20, 10, 15, 12)]
        add_sa1b(root / "val", f"frame_{k:06d}", masks, noise(seed + k))
    return root


def test_frames_of_two_videos_with_the_same_names_are_different_images(tmp_path):
    first = shards_of(video(tmp_path / "a", seed=0), tmp_path / "first", split="val")
    second = shards_of(video(tmp_path / "b", seed=100), tmp_path / "second", split="val")
    assert first.image_ids().tolist() == second.image_ids().tolist()  # these are of the names
    assert shared_sources([first], [second]).images == 0
    assert len(open_held_out([first.folder, second.folder])) == 2
    groups = [set(reader.origins().group.tolist()) for reader in (first, second)]
    assert [len(found) for found in groups] == [1, 1]
    assert not groups[0] & groups[1]


def test_the_same_photos_under_other_names_and_roots_are_the_same_images(tmp_path):
    source = make_sa1b(tmp_path / "src", 3)
    direct = shards_of(source, tmp_path / "direct")
    by_parent = shards_of(tmp_path, tmp_path / "by_parent", split="src/train")
    for path in (source / "train").iterdir():
        shutil.copy(path, path.with_name(f"renamed_{path.name}"))
    copies = shards_of(source, tmp_path / "copies")
    for reader, images in ((by_parent, 3), (copies, 6)):
        shared = shared_sources([reader], [direct])
        assert (shared.images, shared.by_content) == (images, True)
        with pytest.raises(ShardFolderError, match="share 3 of 3 images by content"):
            open_held_out([direct.folder, reader.folder])


def test_tiles_have_the_identity_of_the_image_they_were_cut_from(tmp_path):
    source = make_sa1b(tmp_path / "src", 2)
    whole = shards_of(source, tmp_path / "whole")
    tiled = shards_of(source, tmp_path / "tiled", tile_px=32, min_area_px=1)
    assert set(tiled.origins().source.tolist()) == set(whole.origins().source.tolist())
    assert shared_sources([tiled], [whole]).images == len(tiled) > len(whole)
    photo = (source / "train" / "sa_0000.jpg").read_bytes()
    assert whole.read(0).origin == Origin(content_id(photo), content_id(photo))
    tiles = [
        tiled.read(i).origin.tile for i in range(len(tiled)) if "sa_0000" in tiled.read(i).name
    ]
    assert tiles[0] == Tile(0, 0, 20, 28, 40, 56)
    assert tiles[-1] == Tile(20, 0, 20, 28, 40, 56)
    assert cut_sides(tiles[0]) == (False, False, True, True)
    assert cut_sides(tiles[-1]) == (False, True, True, False)


def test_an_evaluation_image_states_source_group_and_tile(tmp_path):
    root = video(tmp_path / "src", seed=0, frames=2)
    reader = shards_of(root, tmp_path / "out", split="val", tile_px=32, min_area_px=1)
    images = list(EvalDataset([reader], side=64, prompt="point"))
    origins = [reader.read(i).origin for i in range(len(reader))]
    assert [(image.source, image.group, image.tile) for image in images] == [
        (origin.source, origin.group, origin.tile) for origin in origins
    ]
    first = content_id((root / "val" / "frame_000000.jpg").read_bytes())
    assert {image.group for image in images} == {first}
    assert len({image.source for image in images}) == 2


def test_the_pages_of_a_stack_are_one_group(tmp_path):
    pages = np.random.default_rng(0).integers(0, 4000, (3, 40, 56)).astype(np.uint16)
    masks = np.repeat(rectangle(2, 3, 8, 9)[None], 3, axis=0).astype(np.uint8) * 255
    tifffile.imwrite(tmp_path / "train.tif", pages, photometric="minisblack")
    tifffile.imwrite(tmp_path / "train_groundtruth.tif", masks, photometric="minisblack")
    reader = shards_of(tmp_path, tmp_path / "out", kind="tiff")
    origins = reader.origins()
    assert origins.source.tolist() == [content_id(page) for page in pages]
    assert origins.group.tolist() == [content_id(pages[0])] * 3


def test_shards_without_content_are_told_apart_by_the_names_of_their_sources(tmp_path):
    reader = ShardReader(GOLDEN)
    names = [reader.read(i).name for i in range(len(reader))]
    origins = reader.origins()
    assert not origins.by_content
    assert origins.source.tolist() == [stable_id(name.partition("#y")[0]) for name in names]
    image = EvalDataset([reader], side=64, prompt="point")[0]
    assert (image.source, image.group, image.tile) == (origins.source[0], origins.group[0], None)
    new = shards_of(make_sa1b(tmp_path / "src", 2), tmp_path / "new")
    shared = shared_sources([reader, new], [reader])
    assert (shared.images, shared.by_content) == (len(reader), False)
    assert "make them anew" in shared.how


def test_tiles_of_old_shards_belong_to_the_name_before_the_suffix(tmp_path):
    source = make_sa1b(tmp_path / "src", 1)
    readers = [
        shards_of(source, tmp_path / "whole"),
        shards_of(source, tmp_path / "tiled", tile_px=32, min_area_px=1),
    ]
    for reader in readers:
        for path in reader.folder.glob("*.h5"):
            with h5py.File(path, "r+") as file:
                del file["image/origin"]
    origins = readers[1].origins()
    assert not origins.by_content
    assert set(origins.source.tolist()) == {stable_id("train/sa_0000.jpg")}
    assert shared_sources([readers[1]], [readers[0]]).images == len(readers[1])


def test_a_damaged_table_of_sources_is_found(tmp_path):
    reader = shards_of(make_sa1b(tmp_path / "src", 2), tmp_path / "out")
    with h5py.File(tmp_path / "out" / "shard-000000.h5", "r+") as file:
        table = file["image/origin"][()]
        table["source"][1] += 1
        file["image/origin"][...] = table
    with pytest.raises(ShardFolderError, match="table of source images is damaged"):
        reader.origins()


def test_a_folder_with_an_image_of_unknown_origin_knows_names_alone(tmp_path):
    write_shards(tmp_path, (2, 0, 3))
    origins = ShardReader(tmp_path).origins()
    assert (len(origins.source), origins.by_content) == (5, False)


@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("val/frame_000001.png", "val/frame"),
        ("train/frame_000012_png.rf.ab12.jpg", "train/frame"),
        ("images/train/0001TP_006690.jpg", "images/train/0001TP"),
        ("images/train/0006R0_f00930.jpg#y0,x10", "images/train/0006R0"),
        ("images/train/Seq05VD_f00000.png", "images/train/Seq05VD"),
        ("val/ulm/ulm_000003_000019_leftImg8bit.png", "val/ulm/ulm_000003"),
        ("val/ulm/ulm_000003_000019.png", "val/ulm/ulm_000003"),
        ("a/my_mp4-12_jpg.rf.9a.jpg", "a/my"),
        ("a/video3/000001.jpg", "a/video3"),
        ("a/clip_03_0012.png", "a/clip_03"),
        ("training.tif#12", "training.tif"),
        ("train/sa_0001.jpg", None),
        ("val2017/000000000139.jpg", None),
        ("train/ADE_train_00000001.jpg", None),
        ("a/clip_0001.jpg", None),
        ("a/videos/0001.jpg", None),
        ("a/patch_000128_000256.png", None),
        ("a/IMG_20240101_123456.jpg", None),
    ],
)
def test_a_clip_is_known_by_names_that_state_one(name, clip):
    assert clip_of(name) == clip
