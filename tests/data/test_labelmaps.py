"""Label maps: ids are taken as they were stored, or the map is refused."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from supersam.config.data import SourceConfig
from supersam.data.sources import BadInputError, list_items, read_samples
from tests.data.folders import SIZE, noise, save

IDS = np.zeros(SIZE, np.uint8)
IDS[5:15, 5:15], IDS[5:15, 15:30], IDS[20:30, 5:30] = 3, 2, 1
DEEP = IDS.astype(np.uint16) * 300


def place(folder, name="a.png"):
    save(folder / "images" / "train" / "a.jpg", noise(0))
    path = folder / "annotations" / "train" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def read(folder):
    """The ids of a's map, drawn again from the objects that are found."""
    source = SourceConfig(kind="labelmap", root=folder)
    (sample,) = read_samples(source, list_items(source)[0]).samples
    drawn = np.zeros(SIZE, np.int64)
    for mask in sample.masks:
        x, y, width, height = (int(side) for side in mask.bbox)
        drawn[y : y + height, x : x + width] = mask.category  # objects here are rectangles
    return drawn


def write_png(path, pixels, depth, colour_type):
    """A PNG of any depth, which Pillow does not write: (H, W) or (H, W, C)."""
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in pixels]
    else:
        bits = (pixels[..., None] >> np.arange(depth)[::-1]) & 1
        rows = [np.packbits(row).tobytes() for row in bits.reshape(len(pixels), -1)]
    height, width = pixels.shape[:2]
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
        (b"IEND", b""),
    )
    coded = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(coded))


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_grey_png_of_few_bits_keep_their_ids(tmp_path, depth):
    write_png(place(tmp_path), IDS, depth, 0)
    assert np.array_equal(read(tmp_path), IDS)


@pytest.mark.parametrize(("channels", "colour_type"), [(1, 0), (3, 2), (2, 4), (4, 6)])
def test_16_bit_ids_keep_both_bytes_in_every_kind_of_png(tmp_path, channels, colour_type):
    pixels = np.repeat(DEEP[..., None], channels, axis=2)
    if channels in (2, 4):
        pixels[..., -1] = 0xFFFF  # alpha
    write_png(place(tmp_path), pixels, 16, colour_type)
    assert np.array_equal(read(tmp_path), DEEP)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_tiff_maps_of_every_type_hold_the_stored_ids(tmp_path, dtype, photometric):
    tifffile.imwrite(place(tmp_path, "a.tif"), IDS.astype(dtype), photometric=photometric)
    assert np.array_equal(read(tmp_path), IDS)


@pytest.mark.parametrize("white_is_zero", [False, True])
def test_tiff_maps_of_4_bits_hold_the_stored_ids(tmp_path, white_is_zero):
    packed = (IDS[:, ::2] << 4) | IDS[:, 1::2]
    height, width = SIZE
    photometric = 0 if white_is_zero else 1
    tags = [(256, width), (257, height), (258, 4), (259, 1), (262, photometric), (273, 122)]
    tags += [(277, 1), (278, height), (279, packed.size)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    assert len(head) == 122
    place(tmp_path, "a.tif").write_bytes(head + packed.tobytes())
    assert np.array_equal(read(tmp_path), IDS)


def test_a_reduced_copy_beside_a_tiff_map_is_left_out(tmp_path):
    with tifffile.TiffWriter(place(tmp_path, "a.tif")) as file:
        file.write(IDS, photometric="minisblack")
        file.write(IDS[::2, ::2].copy(), photometric="minisblack", subfiletype=1)
    assert np.array_equal(read(tmp_path), IDS)


def several(path, **options):
    pages = [Image.fromarray(IDS), Image.fromarray(IDS[::-1].copy())]
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)


def clear_webp(path):
    pixels = np.stack([IDS + 1] * 3 + [(IDS > 0) * np.uint8(255)], axis=2)
    Image.fromarray(pixels).save(path, lossless=True)


def lossy_webp(path):
    Image.fromarray(np.stack([IDS] * 3, axis=2)).save(path, quality=90)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        (
            "a.webp",
            lossy_webp,
            "is compressed as WEBP, which changes ids at edges; export it as PNG",
        ),
        ("a.webp", clear_webp, "is a WebP without ids where it is clear"),
        (
            "a.tif",
            lambda path: Image.fromarray(IDS).save(path, compression="jpeg"),
            "compressed by JPEG, which changes ids at edges; save it with another",
        ),
        ("a.tif", several, "holds 2 pictures; save one map for each image"),
        ("a.gif", several, "holds 2 pictures"),
        ("a.png", several, "holds 2 pictures"),
        (
            "a.tif",
            lambda path: tifffile.imwrite(path, IDS / np.float32(3), photometric="minisblack"),
            "has fractions or NaN",
        ),
        ("a.tif", lambda path: path.write_bytes(b"II*\0"), "a.tif is not a TIFF file"),
        ("a.png", lambda path: path.write_bytes(b""), "a.png cannot be decoded: it is empty"),
    ],
)
def test_a_map_whose_ids_are_not_certain_is_refused(tmp_path, name, damage, reason):
    damage(place(tmp_path, name))
    with pytest.raises(BadInputError, match=reason):
        read(tmp_path)


def test_a_lossless_webp_is_a_map(tmp_path):
    Image.fromarray(np.stack([IDS] * 3, axis=2)).save(place(tmp_path, "a.webp"), lossless=True)
    assert np.array_equal(read(tmp_path), IDS)


def test_a_map_larger_than_a_whole_image_may_be_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    save(place(tmp_path), IDS)
    assert np.array_equal(read(tmp_path), IDS)


def test_two_maps_of_one_image_are_refused_by_name(tmp_path):
    for name in ("a_mask.png", "a_seg.png"):
        save(place(tmp_path, name), IDS)
    with pytest.raises(BadInputError, match=r"2 label maps of the stem a: a_mask.png, a_seg.png"):
        read(tmp_path)
