"""The fused kernels against segment-anything's sequence of operations, forward and backward.

Without a GPU their interpreter runs them: the same programs, block by block, on the CPU.
"""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from supersam.model.attention import KERNELS
from tests.model.test_attention import random_inputs
from tests.model.test_fast_paths import assert_equal_gradients

pytest.importorskip("triton", reason="PyTorch brings triton on Linux alone")
from supersam.model.kernels import launch  # noqa: E402 - after the skip where it cannot be
from supersam.model.kernels.launch import Tiles  # noqa: E402 - the same

HAS_GPU = torch.cuda.is_available()


def with_gradients(name: str, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    mixed = KERNELS[name](*inputs)
    direction = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(0))
    loss = (mixed * direction.to(mixed)).sum()
    found = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    return (mixed.detach(), *found)


def relative_errors(mine: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> list[float]:
    pairs = zip(mine, reference, strict=True)
    return [float((a.double() - b).norm() / max(b.norm(), 1e-30)) for a, b in pairs]


# grid: one window (global attention), whole windows, windows cut off, and one that is larger.
# side: tiles of odd and (16) of exact columns. rows: of keys in a tile; a large grid's have one.
# dim: whole, and cut into two powers of two.
@pytest.mark.parametrize(
    ("grid", "side", "rows", "dim"),
    [
        *((3, 3, 2, 16), (6, 3, 2, 16), (7, 3, 2, 48), (4, 5, 4, 16)),
        *((5, 5, 1, 48), (7, 3, 1, 16)),
        pytest.param(16, 16, 1, 16, marks=pytest.mark.slow),
        pytest.param(16, 14, 4, 16, marks=pytest.mark.slow),
    ],
)
@pytest.mark.skipif(HAS_GPU, reason="a GPU takes other kernels in float32, and has its own test")
def test_fused_attention_is_the_references_with_all_gradients(monkeypatch, grid, side, rows, dim):
    tiles = {kernel: Tiles(rows, 64, 4, 2) for kernel in ("forward", "queries", "keys")}
    monkeypatch.setitem(launch.TILES, ("window", "hopper"), tiles)
    inputs = random_inputs(grid, side, dim=dim, images=2 if grid < 5 else 1)
    if grid > 10:
        inputs = [t.detach()[..., :1, :, :].requires_grad_() for t in inputs[:2]] + inputs[2:]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    errors = relative_errors(
        with_gradients("in_kernel", inputs), with_gradients("reference", exact)
    )
    assert max(errors) < 1e-5, errors


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("grid", "side", "dim"),
    [(64, 64, 64), (64, 64, 80), (64, 14, 64), (64, 14, 80), (14, 14, 64), (16, 16, 64)],
)
def test_in_half_precision_it_is_as_near_as_the_operations_it_replaces(grid, side, dim):
    inputs = random_inputs(grid, side, dim=dim)
    inputs = [t.detach().cuda().bfloat16().requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    reference = with_gradients("reference", exact)
    mine = relative_errors(with_gradients("in_kernel", inputs), reference)
    theirs = relative_errors(with_gradients("sdpa", inputs), reference)
    assert all(a < 1.5 * b + 1e-3 for a, b in zip(mine, theirs, strict=True)), (mine, theirs)


def test_the_compiler_sees_the_shapes_and_strides_of_what_is_computed():
    inputs = [t.detach() for t in random_inputs(5, 3)]
    if HAS_GPU:
        inputs = [t.cuda().bfloat16() for t in inputs]
    forward = torch.ops.supersam.fused_attention.default
    backward = torch.ops.supersam.fused_attention_backward.default
    mixed, *kept = forward(*inputs)
    for operator, given in ((forward, inputs), (backward, [mixed, *inputs, mixed, *kept])):
        torch.library.opcheck(operator, tuple(given), test_utils=("test_schema", "test_faketensor"))


def test_a_backward_pass_gives_the_same_numbers_every_time():
    inputs = random_inputs(64, 14) if HAS_GPU else random_inputs(5, 3)
    if HAS_GPU:
        inputs = [t.detach().cuda().bfloat16().requires_grad_() for t in inputs]
    first, second = (with_gradients("in_kernel", inputs) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_the_package_needs_no_triton():
    code = "import sys; sys.modules['triton'] = None; import supersam.model"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.skipif(HAS_GPU, reason="a GPU takes other kernels in float32, and has its own test")
def test_an_encoder_has_the_references_gradients_in_padded_windows(make_supernet, tiny_space):
    """With the bias of queries, keys and values, which is what the padding is made of."""
    spec = tiny_space.smallest()
    assert max(spec.heads) < tiny_space.shape.num_heads
    direction = torch.randn(1, 256, 5, 5)
    found = {}
    for name in ("reference", "in_kernel"):
        encoder = make_supernet().image_encoder
        encoder.choose_kernel = lambda _, device, name=name: KERNELS[name]
        pixels = torch.randn(1, 3, 80, 80, generator=torch.Generator().manual_seed(0))
        (encoder(pixels, spec) * direction).sum().backward()
        found[name] = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    assert any("qkv.bias" in parameter for parameter in found["reference"])
    assert_equal_gradients(found["in_kernel"], found["reference"], 1e-4)
