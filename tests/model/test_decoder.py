"""Batched prompts and masks against segment-anything's own, one image at a time."""

import copy

import pytest
import torch

from supersam.data.sample import LABEL_BOX_MIN
from supersam.model import load_sam
from supersam.model.decoder import decode_masks, embed_prompts
from supersam.model.single_mask import decode_single_masks
from tests.model.scenes import Scene, random_scene, sam_masks, sam_prompt_tokens


@pytest.fixture(scope="module")
def sam(tiny_shape):
    return load_sam(tiny_shape)


@pytest.fixture(scope="module")
def scene(tiny_shape) -> Scene:
    return random_scene(tiny_shape.image_size, images=3, prompts=4)


@pytest.mark.parametrize("kind", ["points", "boxes"])
def test_prompt_tokens_are_segment_anythings_bit_for_bit(sam, scene, kind):
    wanted = (scene.labels[..., 0] == LABEL_BOX_MIN) == (kind == "boxes")
    points, labels = scene.points[wanted], scene.labels[wanted]
    assert len(points) == 6
    with torch.no_grad():
        expected, _ = sam_prompt_tokens(sam, points, labels)
        assert torch.equal(embed_prompts(sam.prompt_encoder, points, labels), expected)


def test_a_mixed_batch_has_the_tokens_of_each_kind_alone(sam, scene):
    points, labels = scene.points.flatten(0, 1), scene.labels.flatten(0, 1)
    with torch.no_grad():
        together = embed_prompts(sam.prompt_encoder, points, labels)
        for i in range(len(points)):
            alone, _ = sam_prompt_tokens(sam, points[i, None], labels[i, None])
            # Another batch size may take another kernel of the matrix library.
            torch.testing.assert_close(together[i, None], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("exact", [True, False])
def test_masks_of_a_batch_are_segment_anythings_image_by_image(sam, scene, exact):
    embedding = torch.randn(3, 256, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = embed_prompts(
            sam.prompt_encoder, scene.points.flatten(0, 1), scene.labels.flatten(0, 1)
        )
        masks, ious = decode_masks(
            sam.mask_decoder,
            sam.prompt_encoder,
            embedding,
            tokens.unflatten(0, (3, 4)),
            exact=exact,
        )
        expected_masks, expected_ious = sam_masks(sam, embedding, scene)
    assert masks.shape == (3, 4, 4, 20, 20)
    torch.testing.assert_close(masks, expected_masks, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ious, expected_ious, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("images", [1, 3])
def test_the_single_mask_alone_is_segment_anythings(sam, images):
    sam = copy.deepcopy(sam)
    for name, bias in sam.mask_decoder.transformer.named_parameters():
        if name.endswith("_proj.bias"):  # as large as what they are added to
            torch.nn.init.normal_(bias)
    scene = random_scene(80, images=images, prompts=4)
    embedding = torch.randn(images, 256, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = embed_prompts(
            sam.prompt_encoder, scene.points.flatten(0, 1), scene.labels.flatten(0, 1)
        ).unflatten(0, (images, 4))
        masks = decode_single_masks(sam.mask_decoder, sam.prompt_encoder, embedding, tokens)
        expected, _ = sam_masks(sam, embedding, scene)
    assert masks.shape == (images, 4, 20, 20)
    torch.testing.assert_close(masks, expected[:, :, 0], rtol=1e-5, atol=1e-5)


def test_masks_of_an_image_do_not_depend_on_its_neighbours(make_supernet, tiny_shape):
    supernet = make_supernet()
    scene = random_scene(tiny_shape.image_size, images=3)
    with torch.no_grad():
        together = supernet(*scene.inputs())
        for i in range(3):
            alone = supernet(*(tensor[i, None] for tensor in scene.inputs()))
            torch.testing.assert_close(together.masks[i], alone.masks[0], rtol=1e-5, atol=1e-5)


def test_padding_and_its_prompts_do_not_change_the_masks(make_supernet, tiny_shape):
    """What stands in the padding of an image, or beside a point, is never looked at."""
    supernet = make_supernet()
    scene = random_scene(tiny_shape.image_size, images=1, prompts=1)
    with torch.no_grad():
        before = supernet(*scene.inputs()).masks
        scene.images[:, :, scene.sizes[0, 0] :] = 200
        scene.points[:, :, 1] = 33.0
        assert torch.equal(supernet(*scene.inputs()).masks, before)
