"""One accumulated sandwich step is the sum of separate gradients and plain AdamW, on any world."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from supersam.config import EngineConfig, OptimConfig, TrainRun, UserError, merge
from supersam.data.loader import DeviceBatches
from supersam.runtime.distributed import World, close_world, init_world
from supersam.runtime.signals import StopFlag
from supersam.space import EncoderShape, SearchSpace, build_space
from supersam.training.engine import (
    deepspeed_config,
    freeze_untrained,
    learning_rate_scale,
    parameter_groups,
    trainable_parameters,
)
from supersam.training.session import build_supernet
from tests.distributed.ranks import run_ranks
from tests.training.runs import (
    build_trainer,
    plain_training,
    subnet_gradients,
    tiny_run,
    train_loader,
    weights_and_moments,
)

STEPS = 1  # of a second, rounding where the first gradient is zero would be a whole update
CASES: dict[str, dict[str, Any]] = {
    "zero1": {"engine": {"zero_stage": 1}, "optim": {"clip_norm": 0.0}},
    "zero2": {"engine": {"zero_stage": 2}, "optim": {"clip_norm": 0.0}},
    "zero2-clipped": {"engine": {"zero_stage": 2}, "optim": {"clip_norm": 0.05}},
    "zero1-clipped-accumulated-distilled": {
        "optim": {"accumulate": 2, "clip_norm": 0.05},
        "loss": {"distill": True},
        "sandwich": {"random_subnets": 2},
    },
    "resolutions-distilled": {
        "space": {"resolutions": [48, 64, 80]},
        "loss": {"distill": True},
        "sandwich": {"random_subnets": 3},
    },
    "clicked": {"data": {"clicks": 3}, "optim": {"clip_norm": 0.0}},
    "zero2-accumulated-clicked-distilled": {
        "engine": {"zero_stage": 2},
        "space": {"resolutions": [48, 80]},
        "data": {"clicks": 2},
        "optim": {"accumulate": 2, "clip_norm": 0.05},
        "loss": {"distill": True},
    },
}


@pytest.fixture(scope="module")
def runs(synthetic_shards, tmp_path_factory) -> dict[str, TrainRun]:
    folder = tmp_path_factory.mktemp("engine")
    return {name: tiny_run(folder, synthetic_shards, case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def space(runs, tiny_shape) -> SearchSpace:
    return build_space(next(iter(runs.values())).space, tiny_shape)


@pytest.fixture(scope="module")
def expected(runs, tiny_shape) -> dict[str, dict[str, Tensor]]:
    return {
        name: plain_training(run, build_space(run.space, tiny_shape), steps=STEPS)
        for name, run in runs.items()
    }


def trained(run: TrainRun, world: World, space: SearchSpace) -> dict[str, Tensor]:
    """Weights and moments after some steps of the real trainer."""
    trainer = build_trainer(run, world, space)
    batches = DeviceBatches(iter(trainer.loader), trainer.device)
    for _ in range(STEPS):
        trainer.train_step(batches)
        trainer.state.step += 1
    return weights_and_moments(trainer.supernet, trainer.engine)


def train_as_rank(runs: dict[str, TrainRun], shape: EncoderShape, folder: Path) -> None:
    world = init_world(torch.device("cpu"))
    for name, run in runs.items():
        state = trained(run, world, build_space(run.space, shape))
        torch.save(state, folder / f"{name}-{world.rank}.pt")
    close_world()


def assert_same_training(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Moments, which are linear in the gradients, and weights, to 1e-6."""
    assert state.keys() == expected.keys()
    moments = [v.norm() for n, v in expected.items() if n.startswith("exp_avg/")]
    total = torch.stack(moments).norm()
    for name, value in expected.items():
        difference = state[name] - value
        if name.startswith("exp_avg/"):
            assert difference.norm() <= 1e-5 * value.norm() + 1e-8 * total, name
        if name.startswith("weight/"):
            # Adam divides by the gradient's size: where that is rounding alone (the bias of keys
            # has no gradient), so is the direction of the update.
            moment = expected[name.replace("weight/", "exp_avg/")].abs()
            difference = difference[moment > max(1e-2 * moment.max(), 1e-6 * total)]
        assert difference.numel() == 0 or difference.abs().max() <= 1e-6, name


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_train_like_plain_torch(runs, tiny_shape, expected, tmp_path, world_size):
    assert run_ranks(world_size, train_as_rank, runs, tiny_shape, tmp_path) == [0] * world_size
    for name in CASES:
        for rank in range(world_size):
            assert_same_training(torch.load(tmp_path / f"{name}-{rank}.pt"), expected[name])


def test_clipping_is_what_makes_the_cases_differ(expected):
    plain, clipped = (
        torch.cat([t.flatten() for n, t in expected[case].items() if n.startswith("exp_avg/")])
        for case in ("zero2", "zero2-clipped")
    )
    assert clipped.norm() < 0.5 * plain.norm()


def require_change(run: TrainRun, space: SearchSpace) -> None:
    trainer = build_trainer(run, init_world(torch.device("cpu")), space)
    before = {n: p.detach().clone() for n, p in trainer.supernet.named_parameters()}
    trainer.train_step(DeviceBatches(iter(trainer.loader), trainer.device))
    learning = {n for n, _ in trainable_parameters(trainer.supernet)}
    changed = {n for n, p in trainer.supernet.named_parameters() if not torch.equal(p, before[n])}
    assert changed == learning
    assert 100 < len(learning) < len(before)


def test_a_step_changes_every_trainable_parameter_and_no_other(runs, space):
    assert run_ranks(1, require_change, runs["zero1"], space) == [0]


class ForbidWaiting(TorchDispatchMode):
    """Fails where the host reads a value, which on a GPU waits for everything before it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.equal,
        ), f"{func} in a step"
        return func(*args, **(kwargs or {}))


def require_no_waiting(run: TrainRun, space: SearchSpace) -> None:
    trainer = build_trainer(run, init_world(torch.device("cpu")), space)
    batch = next(iter(trainer.loader))
    with ForbidWaiting():
        with pytest.raises(AssertionError):
            float(torch.ones(()))
        for _ in range(2):
            losses = trainer.accumulate_sandwich(batch, 0, scale=1.0)
            trainer.telemetry.add(losses, images=len(batch.images), data_wait_s=0.0)


@pytest.mark.parametrize(
    "name", ["zero1-clipped-accumulated-distilled", "zero2-accumulated-clicked-distilled"]
)
def test_the_host_reads_no_value_between_the_backward_passes(runs, space, name):
    case = runs[name]
    engine = case.engine.model_copy(update={"precision": "bf16"})
    run = case.model_copy(update={"engine": engine})
    assert run_ranks(1, require_no_waiting, run, space) == [0]


def require_refusal(run: TrainRun, space: SearchSpace) -> None:
    trainer = build_trainer(run, init_world(torch.device("cpu")), space)
    with pytest.raises(UserError, match=r"diverged: at step .* is (nan|inf).* lower --optim.lr"):
        trainer.fit(StopFlag())


def test_a_run_that_diverges_stops_before_it_is_saved(runs, space):
    changes = {"lr": 1e20, "warmup_steps": 0, "steps": 10}
    run = TrainRun.model_validate(merge(runs["zero1"].model_dump(), {"optim": changes}))
    assert run_ranks(1, require_refusal, run, space) == [0]


@pytest.mark.parametrize("clicks", [0, 4])
@pytest.mark.parametrize("prompt", ["point", "box", "either"])
def test_every_trainable_parameter_gets_a_gradient_from_the_largest_subnet(
    synthetic_shards, tmp_path, space, prompt, clicks
):
    changes = {"data": {"prompt": prompt, "prompts_per_image": 6, "clicks": clicks}}
    run = tiny_run(tmp_path, synthetic_shards, changes)
    supernet = build_supernet(run, space)
    freeze_untrained(supernet, run.optim, run.data)
    batch = next(iter(train_loader(run, World.single())))
    (gradients,) = subnet_gradients(run, supernet, batch, [space.largest()])
    names = [name for name, _ in trainable_parameters(supernet)]
    dead = [n for n, g in zip(names, gradients, strict=True) if not g.abs().sum() > 0]
    assert dead == []
    corrections = {
        "prompt_encoder.point_embeddings.0.weight",
        "prompt_encoder.mask_downscaling.0.bias",
    }
    assert corrections & set(names) == (corrections if clicks > 0 else set())


@pytest.mark.parametrize("parts", [("encoder",), ("mask_decoder",), ("encoder", "prompt_encoder")])
def test_only_the_parts_asked_for_learn(synthetic_shards, tmp_path, space, parts):
    run = tiny_run(tmp_path, synthetic_shards, {"optim": {"trainable": parts}})
    supernet = build_supernet(run, space)
    freeze_untrained(supernet, run.optim, run.data)
    prefixes = {name.partition(".")[0] for name, _ in trainable_parameters(supernet)}
    assert prefixes == {"image_encoder" if p == "encoder" else p for p in parts}


def test_every_trainable_parameter_is_in_one_group_and_only_matrices_decay(make_supernet):
    supernet = make_supernet()
    groups = parameter_groups(supernet, 0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in supernet.parameters() if p.requires_grad)
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    names = {name for name, p in supernet.named_parameters() if id(p) in decayed}
    assert "image_encoder.blocks.0.mlp.lin1.weight" in names
    undecayed = ("bias", "norm", "pos_embed", "rel_pos", "token", "point_embeddings")
    assert not [name for name in names if any(word in name for word in undecayed)]


def test_learning_rate_warms_up_then_falls_to_its_minimum():
    scale = learning_rate_scale(OptimConfig(steps=100, warmup_steps=10, min_lr_ratio=0.1))
    rates = [scale(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_a_run_shorter_than_its_warm_up_has_a_rate(steps):
    scale = learning_rate_scale(OptimConfig(steps=steps, warmup_steps=10))
    assert all(0 < scale(step) <= 1 for step in range(steps + 1))


def test_clipping_is_said_to_deepspeed_even_when_off():
    config = deepspeed_config(OptimConfig(clip_norm=0.0), EngineConfig(), world_size=2)
    assert config["gradient_clipping"] == 0.0


@pytest.mark.parametrize(("stage", "reason"), [(3, "stage 3 gathers whole"), (7, "no such stage")])
def test_other_zero_stages_are_refused_with_the_reason(stage, reason):
    with pytest.raises(ValidationError, match=f"--engine.zero-stage {stage}: .*{reason}.*use 1"):
        EngineConfig(zero_stage=stage)


def test_a_rank_starts_without_what_only_others_need():
    """Inductor takes longer to import than all of deepspeed; conversions and figures do as well."""
    script = """
import sys
import torch
import supersam.training.session, supersam.search.session
from supersam.config import EngineConfig, OptimConfig
from supersam.runtime.distributed import init_world
from supersam.training.engine import Engine
init_world(torch.device("cpu"))
Engine(torch.nn.Linear(2, 2), OptimConfig(), EngineConfig(), world_size=1)
assert not {"torch._inductor.compile_fx", "scipy.ndimage", "matplotlib.axes"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
