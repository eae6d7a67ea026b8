"""What becomes RGB, and which files are kept byte for byte."""

import io

import numpy as np
import pytest
from PIL import Image

from supersam.data.images import BadImageError, decode_rgb, load_image
from tests.data.folders import encoded, noise


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
