"""What becomes RGB, and which files are kept byte for byte."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from supersam.data.images import BadImageError, decode_rgb, load_image
from tests.data.folders import SIZE, encoded, noise


def as_png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_files_that_any_decoder_reads_alike_are_kept(mode):
    data = as_png(Image.fromarray(noise(0)).convert(mode))
    loaded = load_image(data)
    assert loaded.data == data
    assert np.array_equal(loaded.pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.array_equal(decode_rgb(loaded.data), loaded.pixels)


@pytest.mark.parametrize("grey", [False, True])
def test_jpeg_files_are_kept_and_their_colours_in_rgb_order(grey):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 250
    data = encoded(red[..., 0] if grey else red, "JPEG", quality=95)
    loaded = load_image(data)
    assert (loaded.data, loaded.format) == (data, "jpeg")
    expected = [250, 250, 250] if grey else [250, 0, 0]
    assert np.abs(decode_rgb(data).astype(int) - expected).max() <= 3


def test_a_cmyk_jpeg_becomes_an_rgb_png_once():
    file = io.BytesIO()
    Image.fromarray(noise(0)).convert("CMYK").save(file, "JPEG")
    loaded = load_image(file.getvalue())
    assert loaded.format == "png"
    assert np.array_equal(decode_rgb(loaded.data), loaded.pixels)
    with Image.open(io.BytesIO(loaded.data)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")


@pytest.mark.parametrize("format", ["BMP", "TIFF", "WEBP"])
def test_other_file_formats_become_png(format):
    pixels = noise(0)
    options = {"lossless": True} if format == "WEBP" else {}
    loaded = load_image(encoded(pixels, format, **options))
    assert loaded.format == "png"
    assert np.array_equal(decode_rgb(loaded.data), pixels)


def test_16_bit_grey_is_mapped_to_the_range_it_uses():
    grey = np.linspace(300, 4000, 64 * 64).reshape(64, 64).astype(np.uint16)
    loaded = load_image(as_png(Image.fromarray(grey)))
    values = decode_rgb(loaded.data)[..., 0]
    assert (values.min(), values.max()) == (0, 255)
    assert np.all(np.diff(values.ravel().astype(int)) >= 0)
    assert np.array_equal(decode_rgb(loaded.data), loaded.pixels)


def test_a_constant_16_bit_image_is_black():
    grey = np.full((8, 8), 700, np.uint16)
    assert load_image(as_png(Image.fromarray(grey))).pixels.max() == 0


def test_float_images_are_refused():
    file = io.BytesIO()
    Image.fromarray(np.ones((8, 8), np.float32)).save(file, "TIFF")
    with pytest.raises(BadImageError, match="type float32 from 1.0 to 1.0; convert"):
        load_image(file.getvalue())


def rotated_jpeg(pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, "JPEG", exif=exif.tobytes(), quality=95)


def test_an_orientation_is_ignored_where_the_annotation_fits_the_stored_pixels():
    data = rotated_jpeg(noise(0, (20, 30)), 6)
    assert load_image(data, size=(20, 30)).data == data
    assert decode_rgb(data).shape == (20, 30, 3)


def test_an_orientation_is_applied_where_only_that_fits_the_annotation():
    data = rotated_jpeg(noise(0, (20, 30)), 6)
    loaded = load_image(data, size=(30, 20))
    assert loaded.format == "png"
    assert np.array_equal(decode_rgb(loaded.data), np.rot90(decode_rgb(data), -1))


def test_another_size_than_the_annotation_is_refused():
    with pytest.raises(BadImageError, match="image has 20 x 30 px, its annotation 20 x 31"):
        load_image(encoded(noise(0, (20, 30)), "PNG"), size=(20, 31))


@pytest.mark.parametrize("size", [(1, 1), (1, 50)])
def test_images_of_one_pixel_on_a_side_are_refused(size):
    with pytest.raises(BadImageError, match=rf"{size[0]} x {size[1]} px, fewer than 2"):
        load_image(encoded(noise(0, size), "PNG"))


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_no_damaged_file_is_taken(format):
    whole = encoded(noise(0, (64, 64)), format)
    for data in (b"", b"no image", whole[:20], whole[: len(whole) // 2], whole[:-40]):
        with pytest.raises(BadImageError, match="cannot be decoded"):
            load_image(data)


def test_16_bit_colours_are_scaled_as_grey_is():
    grey = np.linspace(0, 4095, 60 * 80).reshape(60, 80).astype(np.uint16)
    expected = load_image(as_png(Image.fromarray(grey))).pixels
    for data in (png16(grey), png16(grey, grey), png16(grey, grey, grey), png16(*[grey] * 4)):
        loaded = load_image(data)
        assert np.array_equal(loaded.pixels, expected)
        assert np.array_equal(decode_rgb(loaded.data), expected)
    file = io.BytesIO()
    tifffile.imwrite(file, np.stack([grey] * 3, axis=-1), photometric="rgb")
    assert np.array_equal(load_image(file.getvalue()).pixels, expected)


def test_16_bit_colours_keep_their_ratios():
    grey = np.linspace(0, 4095, 60 * 80).reshape(60, 80).astype(np.uint16)
    red, green, blue = load_image(png16(grey, grey // 2, grey * 0)).pixels[-1, -1].tolist()
    assert (red, green, blue) == (255, 128, 0)


def png16(*channels):
    """A PNG of 16 bits: grey, grey and alpha, RGB or RGBA."""
    height, width = channels[0].shape
    rows = np.stack(channels, axis=-1).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[len(channels)]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)

    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_upright_picture_is_what_pillow_makes_of_it(orientation):
    data = oriented_png(noise(0, (20, 30)), orientation)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    size = upright.shape[:2]
    loaded = load_image(data, size=size, exif="upright")
    assert np.array_equal(loaded.pixels, upright)
    assert np.array_equal(decode_rgb(loaded.data), upright)
    assert not loaded.is_turn_unsure


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_an_orientation_that_the_size_does_not_decide_is_said(orientation):
    data = oriented_png(noise(0, (20, 30)), orientation)
    loaded = load_image(data, size=(20, 30))
    assert loaded.is_turn_unsure
    assert loaded.data == data
    assert not load_image(data, size=(20, 30), exif="stored").is_turn_unsure
    square = oriented_png(noise(0, (20, 20)), 6)
    assert load_image(square, size=(20, 20)).is_turn_unsure
    assert not load_image(oriented_png(noise(0), 1), size=SIZE).is_turn_unsure


def oriented_png(pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, "PNG", exif=exif.tobytes())


def test_a_scan_beyond_pillows_limit_is_taken_where_it_will_be_cut(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded(noise(0), "PNG")
    assert load_image(data, max_pixels=None).pixels.shape == (*SIZE, 3)
    with pytest.raises(BadImageError, match=r"40 x 56 px, too many .* tiles with --tile-px"):
        load_image(data, max_pixels=1000)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_file_in_no_format_is_told_the_same_way_each_time():
    reasons = set()
    for _ in range(2):
        with pytest.raises(BadImageError) as told:
            load_image(b"no picture\0")
        reasons.add(str(told.value))
    assert reasons == {"the image cannot be decoded: it is not in a known format"}


def as_tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_is_turned_at_every_depth(dtype):
    grey = noise(0)[..., 0].astype(dtype)
    black = load_image(as_tiff(grey, photometric="minisblack")).pixels.astype(int)
    white = load_image(as_tiff(255 - grey, photometric="miniswhite")).pixels
    assert np.abs(black - white).max() <= 1


def test_bytes_with_a_sign_are_refused():
    data = as_tiff(np.full(SIZE, -5, np.int8), photometric="minisblack")
    with pytest.raises(BadImageError, match="8 bits with a sign; convert the image to unsigned"):
        load_image(data)


def several(format, sizes, **options):
    """A file of noisy pictures of these (height, width)."""
    pages = [Image.fromarray(noise(seed, size)) for seed, size in enumerate(sizes)]
    file = io.BytesIO()
    pages[0].save(file, format, save_all=True, append_images=pages[1:], **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_several_pictures_the_first_is_taken_and_their_number_told(format):
    options = {"lossless": True} if format == "WEBP" else {}
    loaded = load_image(several(format, [SIZE, SIZE, SIZE], **options))
    assert loaded.num_pictures == 3
    alone = load_image(several(format, [SIZE], **options))
    assert alone.num_pictures == 1
    assert np.array_equal(loaded.pixels, alone.pixels)
    assert np.array_equal(decode_rgb(loaded.data), loaded.pixels)


def pyramid():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(noise(0))
        writer.write(noise(1), subfiletype=1)  # marked as a reduced copy
        writer.write(noise(2)[::2, ::2])  # a thumbnail, unmarked
    return file.getvalue()


def cut_after_first_page():
    whole, one = (several("TIFF", [SIZE] * pages) for pages in (2, 1))
    return whole[: len(one) + 20]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(several("MPO", [SIZE, SIZE]), id="photograph with a gain map"),
        pytest.param(pyramid(), id="pyramid"),
        pytest.param(cut_after_first_page(), id="second page cut off"),
    ],
)
def test_copies_and_extras_of_a_picture_are_no_further_pictures(data):
    loaded = load_image(data)
    assert loaded.num_pictures == 1
    assert loaded.pixels.shape == (*SIZE, 3)
