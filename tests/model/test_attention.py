"""Kernels against each other and windows against segment-anything's own."""

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention, window_partition, window_unpartition
from torch import Tensor

from supersam.model.attention import KERNELS, WindowGeometry


def random_inputs(
    grid: int, side: int, dtype: torch.dtype = torch.float32, *, dim: int = 16, images: int = 3
) -> list[Tensor]:
    """qkv of (images, grid, grid, 2, 3, dim), that of the padding, and the two position tables."""
    generator = torch.Generator().manual_seed(side)
    shapes = [(images, grid, grid, 2, 3, dim), (2, 3, dim)] + [(2 * side - 1, dim)] * 2
    made = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return [tensor.requires_grad_(True) for tensor in made]


@pytest.mark.parametrize(("grid", "side"), [(1, 1), (3, 3), (8, 8), (7, 3), (4, 5), (6, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_fused_kernel_equals_the_reference_with_gradients(grid, side, dtype, tolerance):
    inputs = random_inputs(grid, side, dtype)
    direction = torch.randn(3, grid, grid, 32, generator=torch.Generator().manual_seed(0))
    outputs = {}
    for name in ("reference", "sdpa"):
        mixed = KERNELS[name](*inputs)
        outputs[name] = (
            mixed,
            *torch.autograd.grad(
                (mixed * direction).sum(), inputs, allow_unused=True, materialize_grads=True
            ),
        )
    assert outputs["reference"][3].abs().sum() > 0 or side == 1
    assert (outputs["reference"][2].abs().sum() > 0) == bool(grid % side)
    for fused, reference in zip(outputs["sdpa"], outputs["reference"], strict=True):
        torch.testing.assert_close(fused, reference, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("side", [3, 7])
def test_reference_kernel_is_segment_anythings_attention_bit_for_bit(side):
    torch.manual_seed(0)
    theirs = Attention(32, num_heads=2, use_rel_pos=True, input_size=(side, side))
    for position in (theirs.rel_pos_h, theirs.rel_pos_w):
        torch.nn.init.normal_(position)
    x = torch.randn(3, side, side, 32)
    qkv = theirs.qkv(x).reshape(3, side, side, 3, 2, 16).transpose(3, 4)
    unused = torch.zeros(2, 3, 16)
    mixed = KERNELS["reference"](qkv, unused, theirs.rel_pos_h, theirs.rel_pos_w)
    mine = theirs.proj(mixed)
    assert torch.equal(mine, theirs(x))


@pytest.mark.parametrize(("grid", "window"), [(5, 3), (6, 3), (4, 14), (1, 2), (5, 0)])
def test_windows_are_segment_anythings_and_merge_to_what_was_cut(grid, window):
    geometry = WindowGeometry(grid, window)
    x = torch.randn(2, grid, grid, 8)
    windows = geometry.partition(x)
    assert torch.equal(geometry.merge(windows, 2), x)
    if window:
        theirs, padded = window_partition(x, window)
        assert torch.equal(windows, theirs)
        changed = windows.sin()
        expected = window_unpartition(changed, window, padded, (grid, grid))
        assert torch.equal(geometry.merge(changed, 2), expected)


def test_kernels_agree_in_the_whole_model(make_supernet, tiny_space):
    from tests.model.scenes import random_scene

    scene = random_scene(tiny_space.shape.image_size)
    reference, fused = make_supernet(attention="reference"), make_supernet(attention="sdpa")
    with torch.no_grad():
        for spec in (tiny_space.largest(), tiny_space.smallest()):
            with reference.activated(spec), fused.activated(spec):
                torch.testing.assert_close(
                    fused(*scene.inputs()).masks,
                    reference(*scene.inputs()).masks,
                    rtol=1e-4,
                    atol=1e-4,
                )
