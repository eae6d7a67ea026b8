"""A subnet inside the supernet is the extracted subnet, and the largest is segment-anything."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from supersam.model import SamSupernet, extract_subnet, load_sam
from supersam.space import SHAPES, SearchSpace, SubnetSpec, published_space
from tests.model.scenes import Scene, random_scene, sam_embedding, sam_masks


def specs_of(space: SearchSpace, count: int = 20) -> list[SubnetSpec]:
    random = np.random.default_rng(0)
    return [space.largest(), space.smallest(), *(space.sample(random) for _ in range(count))]


@pytest.fixture(scope="module")
def supernet(make_supernet) -> SamSupernet:
    return make_supernet()


@pytest.fixture(scope="module")
def scene(tiny_shape) -> Scene:
    return random_scene(tiny_shape.image_size)


def test_every_subnet_is_bit_for_bit_its_extracted_model(supernet, scene):
    one = random_scene(supernet.space.shape.image_size, images=1, prompts=1)
    for spec in specs_of(supernet.space):
        sam = extract_subnet(supernet, spec)
        with torch.no_grad(), supernet.activated(spec):
            torch.testing.assert_close(
                supernet.encode(scene.images, scene.sizes),
                sam_embedding(sam, scene),
                rtol=0,
                atol=0,
            )
            masks, ious = sam_masks(sam, sam_embedding(sam, one), one)
            prediction = supernet(*one.inputs())
        assert masks.abs().sum() > 0
        torch.testing.assert_close(prediction.masks, masks, rtol=0, atol=0)
        torch.testing.assert_close(prediction.ious, ious, rtol=0, atol=0)


def test_subnets_differ_from_each_other(supernet, scene):
    distinct = {spec.key(): spec for spec in specs_of(supernet.space)}
    seen = set()
    for spec in distinct.values():
        with torch.no_grad(), supernet.activated(spec):
            seen.add(float(supernet.encode(scene.images, scene.sizes).double().sum()))
    assert len(seen) == len(distinct) > 15


def test_gradients_of_the_whole_path_are_those_of_the_extracted_model(supernet):
    """From masks and IoU estimates to every weight. A sum in another order is another rounding."""
    scene = random_scene(supernet.space.shape.image_size, images=1, prompts=2)
    holder = copy.deepcopy(supernet)
    for spec in specs_of(supernet.space, count=4):
        sam = extract_subnet(supernet, spec).requires_grad_(True)
        with supernet.activated(spec):
            prediction = supernet(*scene.inputs())
        mine = (prediction.masks, prediction.ious, prediction.embedding)
        embedding = sam_embedding(sam, scene)
        theirs = (*sam_masks(sam, embedding, scene), embedding)
        backward_projections(mine, theirs)
        assert_same_gradients(supernet, sam, spec, holder, relative=1e-5)
        for part in ("prompt_encoder", "mask_decoder"):
            grads = [[p.grad for p in getattr(m, part).parameters()] for m in (supernet, sam)]
            total = torch.stack([g.norm() for g in grads[1] if g is not None]).norm()
            for one, other in zip(*grads, strict=True):
                assert (one is None) == (other is None)
                if one is not None:  # a bias of keys has no gradient but rounding
                    assert (one - other).norm() <= 1e-5 * other.norm() + 1e-7 * total
        supernet.zero_grad(set_to_none=True)


@pytest.fixture
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float64")
def test_gradients_of_every_encoder_are_those_of_its_extracted_model_in_float64(supernet):
    supernet = copy.deepcopy(supernet).double()
    holder = copy.deepcopy(supernet)
    side = supernet.space.shape.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    for spec in specs_of(supernet.space):
        sam = extract_subnet(supernet, spec).requires_grad_(True)
        mine = supernet.image_encoder(pixels, spec)
        backward_projections((mine,), (sam.image_encoder(pixels),))
        assert_same_gradients(supernet, sam, spec, holder, relative=1e-12)
        supernet.zero_grad(set_to_none=True)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    parameters = module.named_parameters()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters}


def backward_projections(mine: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    """Gradients of a random projection: the mean of a normalised output would have none."""
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(tensor.shape, generator=generator) for tensor in mine]
    for outputs in (mine, theirs):
        products = [(o * d).sum() for o, d in zip(outputs, directions, strict=True)]
        torch.stack(products).sum().backward()


def assert_same_gradients(
    supernet: SamSupernet, sam: Sam, spec: SubnetSpec, holder: SamSupernet, *, relative: float
) -> None:
    """Slices of the encoder's gradients are `sam`'s, and there are none beside the slices."""
    holder.image_encoder.load_state_dict(gradients(supernet.image_encoder))  # to be sliced
    sliced = dict(extract_subnet(holder, spec).image_encoder.named_parameters())
    for name, parameter in sam.image_encoder.named_parameters():
        assert parameter.grad.norm() > 0, name
        difference = (sliced[name] - parameter.grad).norm()
        assert difference <= relative * parameter.grad.norm(), name
    inside = sum(int(p.count_nonzero()) for p in sliced.values())
    assert inside == sum(int(p.count_nonzero()) for p in holder.image_encoder.parameters())


def test_the_largest_subnet_is_segment_anythings_model_bit_for_bit(tiny_space):
    sam = load_sam(tiny_space.shape, seed=3)
    reference = copy.deepcopy(sam)
    supernet = SamSupernet(sam, tiny_space, attention="reference")
    scene = random_scene(tiny_space.shape.image_size, images=1, prompts=1)
    height, width = scene.sizes[0].tolist()
    asked = {
        "image": scene.images[0, :, :height, :width],
        "original_size": (height, width),
        "point_coords": scene.points[0, :, :1],
        "point_labels": scene.labels[0, :, :1],
    }
    with torch.no_grad():
        prediction = supernet(*scene.inputs())
        for multimask, mine in ((False, slice(0, 1)), (True, slice(1, 4))):
            theirs = reference([asked], multimask_output=multimask)[0]
            assert theirs["low_res_logits"].abs().sum() > 0
            assert torch.equal(prediction.masks[0, :, mine], theirs["low_res_logits"])
            assert torch.equal(prediction.ious[0, :, mine], theirs["iou_predictions"])


def test_the_largest_extracted_subnet_has_the_weights_that_were_loaded(tiny_space):
    sam = load_sam(tiny_space.shape)
    before = copy.deepcopy(sam.state_dict())
    extracted = extract_subnet(SamSupernet(sam, tiny_space), tiny_space.largest()).state_dict()
    assert list(extracted) == list(before)
    assert all(torch.equal(extracted[name], before[name]) for name in before)


def test_vit_b_widths_agree_bit_for_bit():
    shape = replace(SHAPES["vit_b"], depth=4, global_layers=(2,), image_size=128)
    space = published_space(shape)
    sam = load_sam(space.shape)
    reference = copy.deepcopy(sam)
    supernet = SamSupernet(sam, space, attention="reference")
    scene = random_scene(128, images=1)
    with torch.no_grad():
        assert torch.equal(supernet.encode(*scene.inputs()[:2]), sam_embedding(reference, scene))
        for spec in (space.smallest(), space.sample(np.random.default_rng(0))):
            with supernet.activated(spec):
                mine = supernet.encode(*scene.inputs()[:2])
            assert torch.equal(mine, sam_embedding(extract_subnet(supernet, spec), scene))
