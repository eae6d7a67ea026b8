"""Batched prompts and masks against segment-anything's own, one image at a time."""

import copy

import pytest
import torch

from supersam.data.sample import LABEL_BOX_MIN
from supersam.model import load_sam
from supersam.model.decoder import decode_masks, decode_single_masks, embed_prompts
from supersam.model.kernels.decoder import EXACT, FOLDED, FUSED
from tests.model.scenes import Scene, random_scene, sam_masks, sam_prompt_tokens

KERNELS = pytest.mark.parametrize(
    "kernels", [EXACT, FUSED, FOLDED], ids=["exact", "fused", "folded"]
)


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


@pytest.fixture(scope="module")
def biased_sam(sam):
    """With biases as large as what they are added to."""
    sam = copy.deepcopy(sam)
    torch.manual_seed(0)
    for name, bias in sam.mask_decoder.transformer.named_parameters():
        if name.endswith("_proj.bias"):
            torch.nn.init.normal_(bias)
    return sam


def asked(sam, images):
    """A scene, its prompts' tokens, and embeddings of its images."""
    scene = random_scene(80, images=images, prompts=4)
    points, labels = scene.points.flatten(0, 1), scene.labels.flatten(0, 1)
    with torch.no_grad():
        tokens = embed_prompts(sam.prompt_encoder, points, labels).unflatten(0, (images, 4))
    embedding = torch.randn(images, 256, 5, 5, generator=torch.Generator().manual_seed(0))
    return scene, tokens, embedding


@KERNELS
@pytest.mark.parametrize("images", [1, 3])
def test_masks_of_a_batch_are_segment_anythings_image_by_image(biased_sam, images, kernels):
    sam = biased_sam
    scene, tokens, embedding = asked(sam, images)
    with torch.no_grad():
        masks, ious = decode_masks(
            sam.mask_decoder, sam.prompt_encoder, embedding, tokens, kernels=kernels
        )
        single = decode_single_masks(
            sam.mask_decoder, sam.prompt_encoder, embedding, tokens, kernels=kernels
        )
        expected_masks, expected_ious = sam_masks(sam, embedding, scene)
    assert masks.shape == (images, 4, 4, 20, 20)
    torch.testing.assert_close(masks, expected_masks, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ious, expected_ious, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(single, expected_masks[:, :, 0], rtol=1e-5, atol=1e-5)


@KERNELS
@pytest.mark.parametrize("images", [1, 3])
def test_masks_as_prompts_are_segment_anythings(biased_sam, images, kernels):
    sam = biased_sam
    scene, tokens, embedding = asked(sam, images)
    shown = torch.randn(images, 4, 20, 20, generator=torch.Generator().manual_seed(1)) * 5
    with torch.no_grad():
        found = decode_masks(
            sam.mask_decoder, sam.prompt_encoder, embedding, tokens, masks=shown, kernels=kernels
        )
        expected = sam_masks(sam, embedding, scene, shown)
        without = sam_masks(sam, embedding, scene)
    for mine, theirs, other in zip(found, expected, without, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
        assert (mine - other).abs().max() > 1e-3


@pytest.mark.parametrize("kernels", [FUSED, FOLDED], ids=["fused", "folded"])
def test_in_half_precision_they_are_as_near_as_segment_anythings_operations(biased_sam, kernels):
    sam = biased_sam
    _, tokens, embedding = asked(sam, 3)

    def decoded(kernels, *, half):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            return decode_masks(
                sam.mask_decoder, sam.prompt_encoder, embedding, tokens, kernels=kernels
            )

    for exact, mine, theirs in zip(
        decoded(EXACT, half=False),
        decoded(kernels, half=True),
        decoded(EXACT, half=True),
        strict=True,
    ):
        assert 0 < (mine - exact).norm() < 1.5 * (theirs - exact).norm()


@pytest.mark.parametrize("kernels", [FUSED, FOLDED], ids=["fused", "folded"])
def test_gradients_are_those_of_segment_anythings_operations(biased_sam, kernels):
    sam = copy.deepcopy(biased_sam)
    _, tokens, embedding = asked(sam, 2)
    weights = torch.randn(2, 4, 4, 20, 20, generator=torch.Generator().manual_seed(1))
    found = {}
    for each in (EXACT, kernels):
        inputs = {"tokens": tokens.clone(), "embedding": embedding.clone()}
        leaves = inputs | dict(sam.mask_decoder.named_parameters())
        for leaf in leaves.values():
            leaf.requires_grad_().grad = None
        masks, ious = decode_masks(
            sam.mask_decoder,
            sam.prompt_encoder,
            inputs["embedding"],
            inputs["tokens"],
            kernels=each,
        )
        ((masks * weights).sum() + ious.sum()).backward()
        found[each] = {name: leaf.grad for name, leaf in leaves.items()}
    for name, expected in found[EXACT].items():
        scale = expected.norm()
        if name.endswith("k_proj.bias"):  # a softmax over keys does not see it: rounding alone
            scale = found[EXACT][name.replace("k_proj", "q_proj")].norm()
        assert (found[kernels][name] - expected).norm() <= 1e-4 * scale, name


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
