"""Masks that are drawn when they are looked at."""

import pickle

import pytest
import torch

from supersam.data.masks import ObjectMasks


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(6, 23, 17, generator=generator) > 0.6
    masks[2] = False  # an object without a pixel
    masks[4] = True
    return masks


def test_what_is_drawn_is_what_was_kept(drawn):
    masks = ObjectMasks.of(drawn)
    assert len(masks) == 6
    assert torch.equal(masks[:], drawn)
    assert torch.equal(masks[1:3], drawn[1:3])
    assert masks[6:].shape == (0, 23, 17)
    assert all(torch.equal(one, other) for one, other in zip(masks, drawn, strict=True))


def test_some_objects_are_taken_by_index_and_drawn_alone(drawn):
    masks = ObjectMasks.of(drawn).take([5, 0])
    assert torch.equal(masks[:], drawn[[5, 0]])
    patch = masks.patch(1)
    x0, y0, x1, y1 = patch.box
    assert torch.equal(torch.from_numpy(patch.pixels), drawn[0, y0:y1, x0:x1])
    assert drawn[0].sum() == patch.pixels.sum()
    assert ObjectMasks.of(drawn).patch(2) is None


def test_a_frame_is_drawn_as_it_is_cut_from_the_whole(drawn):
    masks = ObjectMasks.of(drawn)
    rows, columns = slice(3, 20), slice(5, 6)
    assert torch.equal(masks.draw(slice(0, 4), (rows, columns)), drawn[:4, rows, columns])
    assert masks.areas(slice(None)).tolist() == drawn.sum((1, 2)).tolist()


def test_the_smallest_frame_of_some_objects():
    drawn = torch.zeros(3, 40, 30, dtype=torch.bool)
    drawn[0, 5:7, 10:20], drawn[1, 30:40, 12] = True, True
    masks = ObjectMasks.of(drawn)
    assert masks.frame(slice(0, 1)) == (slice(5, 7), slice(10, 20))
    assert masks.frame(slice(0, 3)) == (slice(5, 40), slice(10, 20))
    assert masks.frame(slice(2, 3)) is None


def test_an_object_of_a_large_image_needs_the_memory_of_its_outline():
    mask = torch.zeros(1, 3000, 3000, dtype=torch.bool)
    mask[:, 100:120, 200:220] = True
    assert len(pickle.dumps(ObjectMasks.of(mask))) < 2000
