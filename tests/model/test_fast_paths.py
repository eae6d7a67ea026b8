"""Every faster way to compute a step against the plain one: shared, recomputed, compiled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from supersam.config import SpaceConfig
from supersam.model import Prediction, SamSupernet, attention
from supersam.model.attention import KERNELS, choose_kernel
from supersam.model.elastic import ALIGNMENT, ElasticMLP
from supersam.model.prefix import common_layers
from supersam.space import SearchSpace, SubnetSpec, build_space
from tests.model.scenes import Scene, random_scene

EMBEDS = SpaceConfig(removable=(1, 2), elastic_embed=True, embed_fractions=(1 / 3, 1.0))
FIXED_LAYERS = SpaceConfig(removable=(2,), elastic_mlp=False)


def sandwich(space: SearchSpace) -> list[SubnetSpec]:
    rng = np.random.default_rng(0)
    return [space.largest(), space.sample(rng), space.sample(rng), space.smallest()]


def projected(prediction: Prediction) -> Tensor:
    """A random direction: the mean of what a norm puts out has no gradient."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=prediction.masks.dtype)
    for part in (prediction.masks, prediction.ious, prediction.embedding):
        direction = torch.randn(part.shape, generator=generator, dtype=torch.float64)
        total = total + (part * direction).sum()
    return total


def gradients(supernet: SamSupernet) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in supernet.named_parameters() if p.grad is not None}
    supernet.zero_grad(set_to_none=True)
    return found


def separate_gradients(supernet: SamSupernet, scene: Scene, specs) -> dict[str, Tensor]:
    for spec in specs:
        with supernet.activated(spec):
            projected(supernet(*scene.inputs())).backward()
    return gradients(supernet)


def assert_equal_gradients(mine, theirs, relative: float) -> None:
    assert mine.keys() == theirs.keys()
    total = torch.stack([g.norm() for g in theirs.values()]).norm()
    for name, gradient in theirs.items():
        allowed = relative * gradient.norm() + relative * 1e-2 * total
        assert (mine[name] - gradient).norm() <= allowed, name


@pytest.mark.parametrize(
    ("config", "layers"), [(SpaceConfig(removable=(1, 2)), 0), (FIXED_LAYERS, 2), (EMBEDS, 0)]
)
def test_a_shared_prefix_gives_the_gradients_of_separate_passes(
    make_supernet, tiny_shape, config, layers
):
    space = build_space(config.model_copy(update={"width_multiple": 32}), tiny_shape)
    supernet = make_supernet(space)
    scene = random_scene(tiny_shape.image_size)
    specs = sandwich(space)
    expected = separate_gradients(supernet, scene, specs)
    prefix = supernet.begin(scene.images, scene.sizes, specs)
    assert prefix.layers == layers
    for spec in specs:
        with supernet.activated(spec):
            prediction = supernet.forward_from(prefix, scene.points, scene.labels)
            with torch.no_grad():
                torch.testing.assert_close(prediction.masks, supernet(*scene.inputs()).masks)
        projected(prediction).backward()
    prefix.loss().backward()
    assert_equal_gradients(gradients(supernet), expected, 1e-4)


def test_a_shared_prefix_is_exact_in_double_precision(make_supernet, tiny_shape):
    """Of the encoder: the decoder's results are float32 by design."""
    space = build_space(FIXED_LAYERS, tiny_shape)
    supernet, scene = make_supernet(space).double(), random_scene(tiny_shape.image_size)
    encoder, specs = supernet.image_encoder, sandwich(space)
    direction = torch.randn(2, 256, 5, 5, dtype=torch.float64)
    for spec in specs:
        pixels = supernet.normalize(scene.images, scene.sizes)
        (encoder(pixels, spec) * direction).sum().backward()
    expected = gradients(supernet)
    prefix = supernet.begin(scene.images, scene.sizes, specs)
    for spec in specs:
        x = encoder.run_layers(prefix.stream, spec, first=prefix.layers)
        (encoder.project(x) * direction).sum().backward()
    prefix.loss().backward()
    assert_equal_gradients(gradients(supernet), expected, 1e-12)


def test_a_prefix_that_does_not_learn_has_no_loss(make_supernet, tiny_space):
    supernet = make_supernet()
    supernet.image_encoder.requires_grad_(False)
    scene = random_scene(tiny_space.shape.image_size)
    prefix = supernet.begin(scene.images, scene.sizes, [tiny_space.smallest()])
    projected(supernet.forward_from(prefix, scene.points, scene.labels)).backward()
    assert prefix.loss() is None


def test_subnets_of_different_streams_have_no_layer_in_common(tiny_space):
    largest = tiny_space.largest()
    assert common_layers([largest, largest]) == 4
    assert common_layers([largest, replace(largest, embed_dim=32)]) == 0


def test_recomputed_activations_give_the_same_gradients_from_less_memory(make_supernet, tiny_space):
    supernet, kept = make_supernet(), {}
    scene, specs = random_scene(tiny_space.shape.image_size), [tiny_space.largest()]
    results = {}
    for recomputed in (False, True):
        supernet.prepare_training(checkpoint_activations=recomputed, compiled=False)
        kept[recomputed] = 0

        def note(tensor: Tensor, recomputed=recomputed) -> Tensor:
            kept[recomputed] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            supernet.image_encoder.run_layers(torch.randn(1, 5, 5, 96), specs[0])
        results[recomputed] = separate_gradients(supernet, scene, specs)
    assert 0 < kept[True] < 0.1 * kept[False]
    for name, gradient in results[False].items():
        assert torch.equal(results[True][name], gradient), name


@pytest.fixture
def counted(make_supernet, tiny_shape):
    """A supernet of three widths whose compiled graphs are counted."""
    torch._dynamo.reset()
    space = build_space(SpaceConfig(removable=(1, 2), width_multiple=96), tiny_shape)
    supernet, counter = make_supernet(space, attention="sdpa"), CompileCounter()
    supernet.prepare_training(checkpoint_activations=False, compiled=True, backend=counter)
    yield supernet, counter
    torch._dynamo.reset()


def test_graphs_are_as_few_as_kinds_of_attention_and_widths(counted):
    supernet, counter = counted
    space, scene = supernet.space, random_scene(80)
    rng = np.random.default_rng(0)
    specs = [space.largest(), space.smallest(), *(space.sample(rng) for _ in range(12))]
    pixels = supernet.normalize(scene.images, scene.sizes)
    for spec in specs:
        supernet.image_encoder(pixels, spec)
    widths = {width for choices in space.mlp_widths for width in choices}
    assert 2 < counter.frame_count <= 2 + len(widths)
    with torch.no_grad():  # an evaluation with batches of another size compiles nothing
        supernet.image_encoder(pixels[:1], space.largest())
    assert counter.frame_count <= 2 + len(widths)


def test_compiled_pieces_give_the_same_gradients_and_the_decoder_is_one_graph(
    counted, make_supernet
):
    supernet, counter = counted
    scene, specs = random_scene(80), sandwich(supernet.space)
    compiled = separate_gradients(supernet, scene, specs)
    plain = make_supernet(supernet.space, attention="sdpa")
    assert_equal_gradients(compiled, separate_gradients(plain, scene, specs), 1e-6)
    widths = {width for spec in specs for width in spec.mlp_widths}
    assert counter.frame_count == 2 + len(widths) + 1


@pytest.mark.parametrize(
    ("name", "device", "capability", "kernel"),
    [
        ("auto", "cuda", (9, 0), "in_kernel"),
        ("auto", "cuda", (7, 0), "sdpa"),
        ("in_kernel", "cuda", (7, 0), "in_kernel"),
        ("sdpa", "cuda", (9, 0), "sdpa"),
        ("auto", "cpu", (0, 0), "reference"),
        ("in_kernel", "cpu", (0, 0), "reference"),
        ("sdpa", "cpu", (0, 0), "sdpa"),
    ],
)
def test_positions_go_into_the_kernel_on_a_gpu_that_can(
    name, device, capability, kernel, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    attention._runs_triton.cache_clear()
    try:
        assert choose_kernel(name, torch.device(device)) is KERNELS[kernel]
    finally:
        attention._runs_triton.cache_clear()


def test_units_for_the_matrix_unit_change_neither_values_nor_gradients(tiny_shape):
    torch.manual_seed(0)
    mlp = ElasticMLP(tiny_shape).double()
    x = torch.randn(2, 3, tiny_shape.embed_dim, dtype=torch.float64)
    width = ALIGNMENT + 3
    found = []
    for path in (mlp, mlp.padded):
        values = path(x.requires_grad_(), width)
        direction = torch.linspace(-1, 1, values.numel(), dtype=values.dtype).view_as(values)
        found.append([values, *torch.autograd.grad(values, (x, *mlp.parameters()), direction)])
    for plain, padded in zip(*found, strict=True):
        torch.testing.assert_close(padded, plain, rtol=1e-12, atol=1e-12)
