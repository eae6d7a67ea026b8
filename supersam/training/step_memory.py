"""Predicts the memory of a training step without the device.

The real model takes a step on fake tensors, which have shapes but no values; every storage is
counted from its making to its end. Not counted are a frozen teacher, the allocator's gaps, what a
kernel takes for itself, and the driver's context: about a gigabyte on a GPU.
"""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from supersam.config import DataConfig, TrainRun
from supersam.data.sample import LOGIT_STRIDE, Batch
from supersam.model import Prediction, SamSupernet
from supersam.model.attention import (
    AttentionKernel,
    in_windows,
    join_heads,
    position_bias,
    reference_attention,
    split_heads,
)
from supersam.model.kernels.operator import fused_attention
from supersam.model.sam import build_sam
from supersam.runtime.device import computes_bf16
from supersam.runtime.table import count
from supersam.space import EncoderShape, build_space, resolve_shape
from supersam.training.clicks import Prompts, accumulate_rounds
from supersam.training.engine import freeze_untrained, trainable_parameters

_FP32 = 4
MOST_IMAGES = 4096
"""Larger micro-batches are not tried."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one rank."""

    weights: int
    """The model's parameters, and their moving average where the run keeps one."""
    optimizer: int
    """This rank's share of AdamW's moments and of DeepSpeed's own copy of the weights."""
    step: int
    """Gradients and activations at their peak."""

    @property
    def total(self) -> int:
        """All of these bytes."""
        return self.weights + self.optimizer + self.step


def predict_memory(run: TrainRun, *, world_size: int, on_gpu: bool, images: int) -> StepMemory:
    """Memory of a rank of `world_size` whose micro-batches have `images` images.

    on_gpu: attention `auto` is in_kernel there, and segment-anything's own on a CPU. bf16
    follows autocast on a CPU; on a GPU the softmax of segment-anything's own kernel takes twice as
    much.
    """
    shape = resolve_shape(run.model)
    with FakeTensorMode():
        supernet = SamSupernet(
            build_sam(shape), build_space(run.space, shape), attention=run.model.attention
        )
        freeze_untrained(supernet, run.optim, run.data)
        bf16 = _computes_bf16(run, on_gpu)
        supernet.image_encoder.choose_kernel = lambda name, device: _kernel(name, on_gpu, bf16=bf16)
        supernet.prepare_training(
            checkpoint_activations=run.engine.checkpoint_activations, compiled=False
        )
        batch = _empty_batch(shape, run.data, images=images)
        peak = _peak_bytes(supernet, batch, run, bf16=bf16)
    trained = sum(p.numel() for _, p in trainable_parameters(supernet)) * _FP32
    average = trained if run.optim.ema > 0 else 0
    return StepMemory(
        weights=sum(p.numel() for p in supernet.parameters()) * _FP32 + average,
        optimizer=3 * trained // world_size,
        # The step itself holds the gradients twice: as they came, and this rank's share, flat.
        step=max(peak, trained + trained // world_size),
    )


def largest_batch(run: TrainRun, *, world_size: int, on_gpu: bool, limit: int) -> int:
    """Most images of a micro-batch that are predicted to need no more than `limit` bytes.

    0 where not even one fits. Each try takes a step without numbers: some seconds for ViT-B.
    """

    @functools.cache
    def total(images: int) -> int:
        return predict_memory(run, world_size=world_size, on_gpu=on_gpu, images=images).total

    if total(1) > limit:
        return 0
    some = 2
    while total(some) == total(1) and some < MOST_IMAGES:
        some *= 2  # with few images the optimizer's step is the peak
    fits, too_many = 1, some
    if total(some) <= limit:
        # Each further image needs as much as the first ones, or more where the peak moves to
        # another moment: what a straight line says is too much, is.
        each = (total(some) - total(1)) / (some - 1)
        further = int((limit - total(some)) / max(each, 1))
        fits, too_many = some, min(some + further, MOST_IMAGES) + 1
    tried = too_many - 1
    while fits < too_many - 1:
        if total(tried) <= limit:
            fits = tried
        else:
            too_many = tried
        tried = (fits + too_many) // 2
    return fits


def _computes_bf16(run: TrainRun, on_gpu: bool) -> bool:
    """Of the GPUs of a cluster this host may have none: `auto` is taken for those of today."""
    named = "bf16" if on_gpu and run.engine.precision == "auto" else run.engine.precision
    return computes_bf16(named, torch.device("cpu"))


def _peak_bytes(supernet: SamSupernet, batch: Batch, run: TrainRun, *, bf16: bool) -> int:
    """Count the most bytes alive at once in two passes of the largest subnet.

    The second pass meets the gradients of the first: no subnet of a sandwich needs more.
    """

    def answer(embedding: Tensor, prompts: Prompts) -> Prediction:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return supernet.predict(embedding, prompts.points, prompts.labels, prompts.masks)

    with _LiveBytes() as live:
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                embedding = supernet.encode(batch.images, batch.sizes)
            accumulate_rounds(
                answer,
                embedding,
                batch,
                run.loss,
                teacher=None,
                backward=lambda loss: loss.backward(),  # type: ignore[no-untyped-call]  # torch has no type here
                scale=1.0,
            )
    return int(live.peak)


def _empty_batch(shape: EncoderShape, data: DataConfig, *, images: int) -> Batch:
    side, prompts = shape.image_size, data.prompts_per_image
    cells = side // LOGIT_STRIDE
    return Batch(
        images=torch.empty(images, 3, side, side, dtype=torch.uint8),
        sizes=torch.empty(images, 2, dtype=torch.int64),
        points=torch.empty(images, prompts, 2, 2),
        labels=torch.empty(images, prompts, 2, dtype=torch.int64),
        masks=torch.empty(images, prompts, cells, cells, dtype=torch.uint8),
        valid=torch.empty(images, prompts, dtype=torch.bool),
        sample_ids=torch.empty(images, dtype=torch.int64),
        clicks=torch.empty(images, prompts, data.clicks) if data.clicks > 0 else None,
    )


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # nor here
    """Counts the bytes of the storages that are made inside it, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor here
        self._known = WeakIdKeyDictionary()
        self._alive: int = 0
        self.peak: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = {id(s) for s in map(_storage, args) if s is not None}
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, lambda tensor: self._note(tensor, before), result)
        return result

    def _note(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known or id(storage) in given:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self._alive += size
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self._alive -= size


def _storage(value: Any) -> Any:
    return value.untyped_storage() if isinstance(value, Tensor) else None


def _kernel(name: str, on_gpu: bool, *, bf16: bool) -> AttentionKernel:
    """The kernel of that name, without the numbers: on a CPU, real or fake, sdpa is unfused."""
    in_kernel = fused_attention if bf16 else _sdpa
    if not on_gpu:
        in_kernel = reference_attention
    kernels = {"reference": reference_attention, "sdpa": _sdpa, "in_kernel": in_kernel}
    return kernels["in_kernel" if name == "auto" else name]


def _sdpa(qkv: Tensor, padding: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor) -> Tensor:
    """Keeps what PyTorch's fused kernel keeps on a GPU."""

    def attend(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
        q, k, v = split_heads(qkv)
        mixed: Tensor = _Fused.apply(q, k, v, position_bias(q, rel_h, rel_w))
        return join_heads(mixed)

    return in_windows(attend, qkv, padding, rel_pos_h, rel_pos_w)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        mixed = torch.empty_like(v)
        ctx.save_for_backward(q, k, v, bias, mixed, q.new_empty(q.shape[:3], dtype=torch.float32))
        return mixed

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:4])


def describe_memory(memory: StepMemory, images: int) -> str:
    """One line on the memory of a rank whose micro-batches have `images` images."""
    gib = 2**30
    return (
        f"memory of a rank: {memory.total / gib:.2f} GiB; weights {memory.weights / gib:.2f}, "
        f"optimizer state {memory.optimizer / gib:.2f}, gradients and activations of "
        f"{count(images, 'image')} at once {memory.step / gib:.2f}"
    )
