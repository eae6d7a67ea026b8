"""The optimizer and DeepSpeed: the only file that imports deepspeed."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from supersam.config import DataConfig, EngineConfig, OptimConfig
from supersam.model import SamSupernet
from supersam.runs.checkpoint_io import Share
from supersam.runtime.process import no_gc_while_importing
from supersam.space import SubnetSpec
from supersam.training.average import WeightAverage

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running averages of gradient and squared gradient."""

# Weights that are looked up, not multiplied.
_TABLES = (
    "pos_embed",
    "rel_pos",
    "_token",
    "point_embeddings",
    "not_a_point_embed",
    "no_mask_embed",
)
_PARTS = {
    "encoder": "image_encoder.",
    "prompt_encoder": "prompt_encoder.",
    "mask_decoder": "mask_decoder.",
}
# Corrections alone reach these: masks as prompts, and background points.
_CORRECTIONS = ("prompt_encoder.mask_downscaling.", "prompt_encoder.point_embeddings.0.")
_FOREGROUND = ("prompt_encoder.point_embeddings.1.",)
_POINT_ONLY = ("prompt_encoder.not_a_point_embed.",)
_BOX_ONLY = ("prompt_encoder.point_embeddings.2.", "prompt_encoder.point_embeddings.3.")


def freeze_untrained(
    supernet: SamSupernet,
    optim: OptimConfig,
    data: DataConfig,
    *,
    only: SubnetSpec | None = None,
) -> None:
    """Turn off the gradients of every parameter that this run does not train.

    These are the parts that the config leaves out, the embeddings of prompts that the run never
    uses, and the layers that `only`, the one subnet of the run, does not have. A trainable
    parameter without a gradient would hide a mistake.
    """
    depth = supernet.space.shape.depth
    removed = set(range(depth)) - set(only.layers) if only is not None else set()
    absent = tuple(f"image_encoder.blocks.{layer}." for layer in sorted(removed))
    unasked: dict[str, tuple[str, ...]] = {"point": _BOX_ONLY, "box": _POINT_ONLY, "either": ()}
    unused = unasked[data.prompt] + absent
    if data.clicks == 0:
        unused += _CORRECTIONS + (_FOREGROUND if data.prompt == "box" else ())
    trained = tuple(_PARTS[part] for part in optim.trainable)
    for name, parameter in supernet.named_parameters():
        parameter.requires_grad_(name.startswith(trained) and not name.startswith(unused))


def parameter_groups(supernet: SamSupernet, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters: matrices decay; biases, norms and embeddings do not."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in trainable_parameters(supernet):
        table = any(word in name for word in _TABLES)
        (plain if parameter.ndim < 2 or table else decayed).append(parameter)
    groups = [(decayed, weight_decay), (plain, 0.0)]
    return [{"params": p, "weight_decay": decay} for p, decay in groups if p]


def trainable_parameters(supernet: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield names and parameters that the optimizer step moves."""
    return ((n, p) for n, p in supernet.named_parameters() if p.requires_grad)


def learning_rate_scale(optim: OptimConfig) -> Callable[[int], float]:
    """Return the schedule: linear warm-up, then a cosine to the minimum, as shares of the peak."""

    def scale(step: int) -> float:
        if step < optim.warmup_steps:
            return (step + 1) / optim.warmup_steps
        span = max(1, optim.steps - optim.warmup_steps)
        done = min(1.0, (step - optim.warmup_steps) / span)
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return optim.min_lr_ratio + (1 - optim.min_lr_ratio) * cosine

    return scale


def deepspeed_config(
    optim: OptimConfig, engine: EngineConfig, *, world_size: int
) -> dict[str, Any]:
    """Derive DeepSpeed's configuration from ours and the world; there is no second file."""
    return {
        "train_micro_batch_size_per_gpu": optim.global_batch // world_size // optim.accumulate,
        "gradient_accumulation_steps": 1,
        # Every backward adds to the gradients; they are reduced once, when the step is taken.
        "managed_gradient_accumulation": False,
        "gradient_clipping": optim.clip_norm,  # DeepSpeed's own default is 1.0, not off
        "zero_optimization": {
            "stage": engine.zero_stage,
            "overlap_comm": False,
            # One rank exchanges nothing, and a buffer to exchange from costs it 40 % of the step.
            "contiguous_gradients": world_size > 1,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,  # the trainer logs
        "wall_clock_breakdown": False,
    }


class Engine:
    """One optimizer over all ranks: any number of backward passes, then one step."""

    def __init__(
        self, supernet: SamSupernet, optim: OptimConfig, engine: EngineConfig, *, world_size: int
    ) -> None:
        """Wraps `supernet`, whose untrained parameters are frozen already."""
        deepspeed = _import_deepspeed()
        self.supernet = supernet
        optimizer = AdamW(
            parameter_groups(supernet, optim.weight_decay),
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            fused=True,
        )
        self._scale = learning_rate_scale(optim)
        self._steps = 0
        self.average = WeightAverage(supernet, optim.ema) if optim.ema > 0 else None
        """None where the run keeps no average of its weights."""
        self._engine, *_ = deepspeed.initialize(
            model=supernet,
            optimizer=optimizer,
            lr_scheduler=LambdaLR(optimizer, self._scale),
            config=deepspeed_config(optim, engine, world_size=world_size),
            dist_init_required=False,
        )

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, a scalar, to those of this step."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> float:
        """Reduce the gradients, clip them, move the weights. Returns the norm before clipping."""
        self._engine.step()
        self._steps += 1
        if self.average is not None:
            self.average.update(self._steps)
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else math.nan

    def averaged(self) -> AbstractContextManager[None]:
        """Evaluate the average of the weights inside a `with` block, where the run keeps one."""
        return nullcontext() if self.average is None else self.average.in_place()

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._engine.optimizer.param_groups[0]["lr"])

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """Yield AdamW's moments, named `exp_avg/NAME`, whole on every rank. A collective."""
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link_moments()
        for name, parameter in trainable_parameters(self.supernet):
            for key in MOMENTS:
                yield f"{key}/{name}", safe_get_full_optimizer_state(parameter, key)

    def moment_shares(self) -> Iterator[Share]:
        """Yield this rank's shares of AdamW's moments; all ranks' shares make up `moments()`."""
        self._link_moments()
        for name, parameter in trainable_parameters(self.supernet):
            mine = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed's
            if mine is not None:
                for key in MOMENTS:
                    values = mine.get_optim_state_fragment(key)
                    yield Share(f"{key}/{name}", mine.lp_fragment_address.start, values)

    def restore(self, moments: Mapping[str, Tensor], *, step: int) -> None:
        """Continue after `step` optimizer steps with `moments`, flattened, by `moments()`'s names.

        The weights must have been in the supernet when this engine was built.
        """
        from deepspeed.utils import safe_set_full_optimizer_state

        zero = self._engine.optimizer
        for flat in zero.single_partition_of_fp32_groups:
            # AdamW creates its state in the first step; a resumed run needs it before.
            state = zero.optimizer.state[flat]
            state["step"] = torch.tensor(float(step), device=flat.device if flat.is_cuda else None)
            state.update({key: torch.zeros_like(flat) for key in MOMENTS})
        self._link_moments()
        for name, parameter in trainable_parameters(self.supernet):
            for key in MOMENTS:
                value = moments[f"{key}/{name}"].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, key)
        self._steps = step
        self._set_rate(step)

    def _set_rate(self, step: int) -> None:
        """Set the learning rate of `step` directly.

        Stepping the scheduler there would print an irrelevant warning.
        """
        scheduler = self._engine.lr_scheduler
        scheduler.last_epoch = step
        groups = scheduler.optimizer.param_groups
        for group, base_lr in zip(groups, scheduler.base_lrs, strict=True):
            group["lr"] = base_lr * self._scale(step)
        scheduler._last_lr = [group["lr"] for group in groups]

    def reorder(self, permute: Callable[[str, Tensor], Tensor]) -> None:
        """Follow a reordering of the weights, already done: their fp32 copies and moments.

        permute: (name of a parameter, tensor of its shape) to the tensor in the new order, or that
        tensor itself where nothing moves. A collective.
        """
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for _, parameter in trainable_parameters(self.supernet):
            safe_set_full_fp32_param(parameter, parameter.detach())
        if self.average is not None:
            self.average.reorder(permute)
        if not self._has_stepped():
            return
        parameters = dict(trainable_parameters(self.supernet))
        for name, moment in self.moments():
            key, _, parameter_name = name.partition("/")
            moved = permute(parameter_name, moment)
            if moved is not moment:
                safe_set_full_optimizer_state(parameters[parameter_name], moved, key)

    def _has_stepped(self) -> bool:
        """Tell whether AdamW has moments, which it creates in its first step."""
        return any(self._engine.optimizer.optimizer.state.values())

    def _link_moments(self) -> None:
        """Tell each parameter where its share of the flat moments lies.

        DeepSpeed does so after the first step of the first group, when the others have no moments.
        """
        from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

        zero = self._engine.optimizer
        for group, flat in zip(
            zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True
        ):
            lazy_init_hp_params_optimizer_state(group, flat, zero.optimizer.state)


def _import_deepspeed() -> Any:
    """Import deepspeed without its banner and its log lines at every start."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists, even in a world of one
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that newer PyTorch calls deprecated; not our user's news.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    with no_gc_while_importing():
        import deepspeed
        import deepspeed.runtime.compiler

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # DeepSpeed probes with a compiler which C++ extensions it could build, and builds one that only
    # inference uses: at each start, on each rank. None is used here, so none is compatible.
    compatible = vars(deepspeed.ops).setdefault("__compatible_ops__", {})
    compatible.update(dict.fromkeys(compatible, False))
    # DeepSpeed decorates an optimizer that is not used here with torch.compile, which loads a whole
    # compiler: 1.4 s of a core at each start, on each rank.
    deepspeed.runtime.compiler.compile = lambda: lambda function: function
    return deepspeed
