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

pytest.importorskip("triton", reason="PyTorch brings triton on Linux alone")
HAS_GPU = torch.cuda.is_available()


def with_gradients(name: str, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    mixed = KERNELS[name](*inputs)
    direction = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(0))
    loss = (mixed * direction.to(mixed)).sum()
    return (mixed.detach(), *torch.autograd.grad(loss, inputs))


def relative_errors(mine: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> list[float]:
    pairs = zip(mine, reference, strict=True)
    return [float((a.double() - b).norm() / b.norm()) for a, b in pairs]


# side: tiles of several rows of keys (3, 5, 14, 16, keys of 20) and of one (20, 33); of odd and of
# exact columns.
# dim: whole, and cut into two powers of two.
@pytest.mark.parametrize(
    ("side", "dim"),
    [
        *((3, 16), (5, 48), (14, 16), (16, 16)),
        *(pytest.param(side, 16, marks=pytest.mark.slow) for side in (20, 33)),
    ],
)
@pytest.mark.skipif(HAS_GPU, reason="a GPU takes other kernels in float32, and has its own test")
def test_fused_attention_is_the_references_with_all_gradients(side, dim):
    inputs = [t.detach() for t in random_inputs(side, dim=dim)]
    if side > 5:
        inputs[0] = inputs[0][:1, :, :1].contiguous()
    inputs = [t.requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    errors = relative_errors(
        with_gradients("in_kernel", inputs), with_gradients("reference", exact)
    )
    assert max(errors) < 1e-5, errors


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize(("side", "dim"), [(64, 64), (64, 80), (14, 64), (14, 80), (16, 64)])
def test_in_half_precision_it_is_as_near_as_the_operations_it_replaces(side, dim):
    inputs = [t.detach().cuda().bfloat16().requires_grad_() for t in random_inputs(side, dim=dim)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    reference = with_gradients("reference", exact)
    mine = relative_errors(with_gradients("in_kernel", inputs), reference)
    theirs = relative_errors(with_gradients("sdpa", inputs), reference)
    assert all(a < 1.5 * b + 1e-3 for a, b in zip(mine, theirs, strict=True)), (mine, theirs)


def test_the_compiler_sees_the_shapes_and_strides_of_what_is_computed():
    inputs = [t.detach() for t in random_inputs(5)]
    if HAS_GPU:
        inputs = [t.cuda().bfloat16() for t in inputs]
    forward = torch.ops.supersam.fused_attention.default
    backward = torch.ops.supersam.fused_attention_backward.default
    mixed, *kept = forward(*inputs)
    for operator, given in ((forward, inputs), (backward, [mixed, *inputs, mixed, *kept])):
        torch.library.opcheck(operator, tuple(given), test_utils=("test_schema", "test_faketensor"))


def test_a_backward_pass_gives_the_same_numbers_every_time():
    inputs = random_inputs(14 if HAS_GPU else 5)
    if HAS_GPU:
        inputs = [t.detach().cuda().bfloat16().requires_grad_() for t in inputs]
    first, second = (with_gradients("in_kernel", inputs) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_the_package_needs_no_triton():
    code = "import sys; sys.modules['triton'] = None; import supersam.model"
    subprocess.run([sys.executable, "-c", code], check=True)
