"""Stacks as microscopes and their programs write them."""

import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from supersam.config.data import SourceConfig
from supersam.data.images import decode_rgb
from supersam.data.sources import BadInputError, SourceError, list_items, read_samples
from tests.data.folders import SIZE, rectangle

MASKS = np.array([rectangle(3 + k, 3, 20, 20) for k in range(3)], np.uint8) * 255
STACK = np.random.default_rng(0).integers(0, 256, (3, *SIZE), np.uint8)


def write(folder, stack=STACK, masks=MASKS, suffix=".tif", **options):
    options = {"photometric": "minisblack", **options}
    tifffile.imwrite(folder / f"train{suffix}", stack, **options)
    tifffile.imwrite(folder / f"train_groundtruth{suffix}", masks, photometric="minisblack")


def read(folder, **config):
    source = SourceConfig(kind="tiff", root=folder, min_area_px=1, **config)
    return [s for item in list_items(source) for s in read_samples(source, item).samples]


def pixels(folder):
    return np.array([decode_rgb(sample.image) for sample in read(folder)])


def test_numbers_of_a_mask_are_ids_and_touching_cells_stay_apart(tmp_path):
    for dtype in (np.uint16, np.float32, np.uint32, np.int32):
        labels = np.zeros((3, *SIZE), dtype)
        labels[:, 5:15, 5:15], labels[:, 5:15, 15:25] = 1, 2
        labels[:, 15:25, 5:15] = 300 if dtype == np.uint16 else 70_000
        labels[:, 30:35, 40:45] = 1  # another part of the first
        write(tmp_path, masks=labels)
        for instances, objects in (("components", 4), ("classes", 3)):
            samples = read(tmp_path, instances=instances)
            assert [len(sample.masks) for sample in samples] == [objects] * 3
            assert {mask.category for mask in samples[0].masks} == set(np.unique(labels)[1:])


def test_a_mask_of_one_number_has_components_without_a_category(tmp_path):
    write(tmp_path)
    for sample in read(tmp_path):
        assert [(mask.area, mask.category) for mask in sample.masks] == [(400, 0)]


def test_fractions_in_a_mask_are_refused(tmp_path):
    write(tmp_path, masks=MASKS / np.float32(510))
    with pytest.raises(BadInputError, match="mask page 0 has fractions or NaN; whole numbers"):
        read(tmp_path)


def test_one_directory_for_all_planes_gives_all_planes(tmp_path):
    for name, stack in (("train", STACK), ("train_groundtruth", MASKS)):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, stack, imagej=True)
        data = bytearray(path.read_bytes())
        order = ">" if data[:2] == b"MM" else "<"
        first = struct.unpack_from(f"{order}I", data, 4)[0]
        entries = struct.unpack_from(f"{order}H", data, first)[0]
        struct.pack_into(f"{order}I", data, first + 2 + 12 * entries, 0)  # no next directory
        path.write_bytes(data)
    assert np.array_equal(pixels(tmp_path)[..., 0], STACK)
    path.write_bytes(path.read_bytes()[: -STACK[0].size])
    with pytest.raises(SourceError, match="too short|pages"):
        read(tmp_path)


def test_white_is_zero_is_turned_and_masks_keep_their_numbers(tmp_path):
    write(tmp_path, stack=255 - STACK, photometric="miniswhite")
    assert np.array_equal(pixels(tmp_path)[..., 0], STACK)
    assert len(read(tmp_path)[0].masks) == 1


def test_a_palette_becomes_its_colours(tmp_path):
    colours = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16)
    write(tmp_path, photometric="palette", colormap=colours * 257)
    assert np.array_equal(pixels(tmp_path), colours.T[STACK])


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_compressed_stacks_are_read_as_plain_ones(tmp_path, compression, dtype):
    stack = STACK.astype(dtype) * (1 if dtype == np.uint8 else 16)
    for name, found in (("train", stack), ("train_groundtruth", MASKS)):
        pages = [Image.fromarray(page) for page in found]
        pages[0].save(
            tmp_path / f"{name}.tif",
            save_all=True,
            append_images=pages[1:],
            compression=compression,
        )
    compressed = pixels(tmp_path)
    (tmp_path / "plain").mkdir()
    write(tmp_path / "plain", stack=stack)
    assert np.array_equal(compressed, pixels(tmp_path / "plain"))


@pytest.mark.parametrize("suffix", [".TIF", ".tiff", ".Tiff"])
def test_suffixes_in_any_case(tmp_path, suffix):
    write(tmp_path, suffix=suffix)
    assert np.array_equal(pixels(tmp_path)[..., 0], STACK)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint32, np.int32, np.int8])
def test_numbers_of_every_type_are_mapped_like_16_bits(tmp_path, dtype):
    rng = np.random.default_rng(2)
    low, high = (-100, 100) if dtype == np.int8 else (-1000, 3000)
    if dtype == np.uint32:
        low = 0
    stack = rng.integers(low, high, (3, *SIZE)).astype(dtype)
    write(tmp_path, stack=stack)
    found = pixels(tmp_path)[..., 0].astype(int)
    black, white = np.percentile(stack, [0.1, 99.9])
    expected = np.clip((stack - black) * 255 / (white - black), 0, 255)
    assert np.abs(found - expected).max() <= (2 if dtype == np.int8 else 1)


def test_colours_with_alpha_and_in_planes_are_rgb(tmp_path):
    colours = np.random.default_rng(3).integers(0, 256, (3, *SIZE, 4), np.uint8)
    write(tmp_path, stack=colours, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(pixels(tmp_path), colours[..., :3])
    planes = np.moveaxis(colours[..., :3], 3, 1)
    write(tmp_path, stack=planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(pixels(tmp_path), colours[..., :3])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("compression", ["tiff_lzw", "zstd", "tiff_adobe_deflate"])
def test_compressed_masks_of_every_type_keep_their_ids(tmp_path, compression, dtype):
    write(tmp_path)
    ids = np.zeros(SIZE, dtype)
    ids[5:15, 5:15], ids[5:15, 15:25] = 1, 200
    pages = [Image.fromarray(ids)] * 3
    path = tmp_path / "train_groundtruth.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:], compression=compression)
    for sample in read(tmp_path):
        assert [(m.category, m.area) for m in sample.masks] == [(1, 100), (200, 100)]


def test_a_mask_in_jpeg_is_refused(tmp_path):
    write(tmp_path)
    path = tmp_path / "train_groundtruth.tif"
    pages = [Image.fromarray(page) for page in MASKS]
    pages[0].save(path, save_all=True, append_images=pages[1:], compression="jpeg")
    with pytest.raises(BadInputError, match="page 0 of train_groundtruth.tif is compressed by JPE"):
        read(tmp_path)


@pytest.mark.parametrize("number", [np.inf, 1e20, 2.0**63])
def test_ids_beyond_what_can_be_stored_are_refused(tmp_path, number):
    write(tmp_path, masks=np.where(MASKS > 0, number, 0))
    with pytest.raises(BadInputError, match="mask page 0 has ids beyond"):
        read(tmp_path)


def test_every_page_is_seen_by_its_own_palette_and_direction(tmp_path):
    colours = np.zeros((3, 256), np.uint16)
    colours[1] = np.arange(256) * 257
    with tifffile.TiffWriter(tmp_path / "train.tif") as file:
        file.write(STACK[0], photometric="minisblack")
        file.write(255 - STACK[1], photometric="miniswhite")
        file.write(STACK[2], photometric="palette", colormap=colours)
    tifffile.imwrite(tmp_path / "train_groundtruth.tif", MASKS, photometric="minisblack")
    found = pixels(tmp_path)
    assert np.array_equal(found[:2, ..., 0], STACK[:2])
    assert np.array_equal(found[2], np.stack([STACK[2] * 0, STACK[2], STACK[2] * 0], axis=2))


def test_reduced_copies_of_pages_are_left_out(tmp_path):
    write(tmp_path)
    with tifffile.TiffWriter(tmp_path / "train.tif") as file:
        for page in STACK:
            file.write(page, photometric="minisblack", contiguous=False)
            file.write(page[::2, ::2].copy(), photometric="minisblack", subfiletype=1)
    assert np.array_equal(pixels(tmp_path)[..., 0], STACK)


def test_inks_become_rgb_and_other_colours_are_refused(tmp_path):
    inks = np.random.default_rng(5).integers(0, 256, (3, *SIZE, 4), np.uint8)
    inks[..., 3] = 0
    write(tmp_path, stack=inks, photometric="separated")
    assert np.array_equal(pixels(tmp_path), 255 - inks[..., :3])
    write(tmp_path, stack=inks[..., :3].copy(), photometric="cielab")
    with pytest.raises(BadInputError, match="page 0 of train.tif has colours of kind CIELAB"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["train", "train_groundtruth"])
def test_two_stacks_of_one_name_are_refused(tmp_path, name):
    write(tmp_path)
    (tmp_path / f"{name}.tiff").write_bytes((tmp_path / f"{name}.tif").read_bytes())
    with pytest.raises(SourceError, match=f"has {name}.tif and {name}.tiff; leave one"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"II*\0", b"\x89PNG", b""])
def test_a_file_that_is_no_tiff_is_told_in_words(tmp_path, content):
    write(tmp_path)
    (tmp_path / "train.tif").write_bytes(content)
    with pytest.raises(SourceError, match="train.tif is (not a TIFF file, or|empty)"):
        read(tmp_path)
