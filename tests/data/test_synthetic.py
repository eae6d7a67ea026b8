"""Generated images: repeatable, drawn alone, and no trivial task."""

import hashlib

import numpy as np
import pytest
from pycocotools import mask as coco

from supersam.config.data import SourceConfig, SyntheticConfig
from supersam.data.images import decode_rgb
from supersam.data.sources import list_items, read_samples
from supersam.data.sources.synthetic import draw_image

CONFIG = SyntheticConfig(images=6, size_px=128)


def drawn(sample):
    size = [sample.height, sample.width]
    return np.array([coco.decode({"size": size, "counts": m.rle}) for m in sample.masks], bool)


def draw_samples(config):
    source = SourceConfig(kind="synthetic", synthetic=config)
    items = list_items(source)
    assert len(items) == config.images
    return [sample for item in items for sample in read_samples(source, item).samples]


def test_an_image_depends_on_seed_and_index_alone():
    samples = draw_samples(CONFIG)
    assert draw_samples(CONFIG.model_copy(update={"images": 3})) == samples[:3]
    other = draw_samples(CONFIG.model_copy(update={"images": 1, "seed": 1}))[0]
    assert other.image != samples[0].image
    assert other.id != samples[0].id


def test_the_pixels_never_change():
    # With another value, runs on generated images cannot be repeated.
    pixels, labels, _ = draw_image(SyntheticConfig(size_px=64), 0)
    digest = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    assert digest[:16] == "e0f30e9b97d5c11a"


@pytest.mark.parametrize("size_px", [16, 17, 256])
def test_every_image_has_objects_that_do_not_overlap(size_px):
    config = SyntheticConfig(size_px=size_px, images=12)
    for sample in draw_samples(config):
        masks = drawn(sample)
        assert decode_rgb(sample.image).shape == (size_px, size_px, 3)
        assert 1 <= len(masks) <= config.max_objects
        assert masks.sum(axis=0).max() == 1
        assert min(mask.area for mask in sample.masks) >= 16


def test_objects_hide_each_other_and_neither_colour_nor_place_gives_them_away():
    inside, outside, share = [], [], []
    for index in range(40):
        pixels, labels, categories = draw_image(SyntheticConfig(size_px=96), index)
        inside.append(pixels[labels > 0].mean())
        outside.append(pixels[labels == 0].mean())
        share.append(len(np.unique(labels[labels > 0])) / len(categories))
    # Mean brightness tells less than a spread between images; some objects are hidden whole.
    assert abs(np.mean(inside) - np.mean(outside)) < np.std(outside)
    assert min(share) < 1


def test_objects_of_plain_images_stand_out_from_an_even_background():
    for index in range(40):
        pixels, labels, _ = draw_image(SyntheticConfig(size_px=96, plain=True), index)
        grey = pixels.sum(axis=2, dtype=int)
        inside, outside = grey[labels > 0], grey[labels == 0]
        darkest, brightest = outside.min(), outside.max()
        assert brightest - darkest <= 3 * 16  # the background's noise
        assert (inside > brightest).all() or (inside < darkest).all()


def test_plain_images_are_others_than_those_of_the_same_seed():
    plain = draw_samples(CONFIG.model_copy(update={"plain": True}))
    assert not {sample.id for sample in plain} & {sample.id for sample in draw_samples(CONFIG)}
    assert plain == draw_samples(CONFIG.model_copy(update={"plain": True}))
