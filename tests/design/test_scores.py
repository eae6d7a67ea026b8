"""Scores against their definitions: a gate's gradient, a layer's own inputs, plain sums."""

from __future__ import annotations

import typing

import pytest
import torch
import torch.nn.functional as F

from supersam.config.design import ImportanceConfig, ScoreName
from supersam.design import embedding_loss, prioritize_parameters, score_units
from supersam.design.units import UnitScores, channel_axis
from supersam.model.attention import reference_attention
from tests.design.calibration_sets import task_loss, tiny_calibration

SCORES = typing.get_args(ScoreName)


@pytest.fixture(scope="module")
def calibration(synthetic_shards):
    return tiny_calibration(synthetic_shards)


@pytest.fixture(scope="module")
def image(synthetic_shards):
    return tiny_calibration(synthetic_shards, images=1, batch=1)[0]


def same(a, b) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("mlp", "heads", "embed"))


@pytest.mark.parametrize("score", SCORES)
def test_scores_have_a_value_for_each_unit_and_repeat_bit_by_bit(make_supernet, calibration, score):
    supernet = make_supernet()
    before = {name: p.clone() for name, p in supernet.named_parameters()}
    first = score_units(supernet, calibration, score=score, loss=task_loss)
    shape = supernet.space.shape
    assert first.mlp.shape == (shape.depth, shape.mlp_width)
    assert first.heads.shape == (shape.depth, shape.num_heads)
    assert first.embed.shape == (shape.embed_dim,)
    assert same(first, score_units(supernet, calibration, score=score, loss=task_loss))
    assert all(torch.equal(p, before[name]) for name, p in supernet.named_parameters())
    assert all(p.grad is None for p in supernet.parameters())


def test_magnitude_counts_negative_weights_as_large(make_supernet, calibration):
    supernet = make_supernet()
    supernet.image_encoder.blocks[1].mlp.lin1.weight.data[7] = -5.0
    scores = score_units(supernet, calibration, score="magnitude")
    assert int(scores.mlp[1].argmax()) == 7


def test_wanda_is_the_weights_times_the_norm_of_what_the_layer_itself_reads(
    make_supernet, calibration, monkeypatch
):
    supernet = make_supernet()
    block = supernet.image_encoder.blocks[2]
    read: dict[str, list[torch.Tensor]] = {"attn": [], "mlp": []}
    hooks = [
        getattr(block, name).register_forward_pre_hook(
            lambda _, args, name=name: read[name].append(args[0])
        )
        for name in read
    ]
    scores = score_units(supernet, calibration, score="wanda")
    for hook in hooks:
        hook.remove()
    proj, heads = block.attn.proj, supernet.space.shape.num_heads
    with torch.no_grad():
        weight, bias = proj.weight.clone(), proj.bias.clone()
        proj.weight.copy_(torch.eye(len(bias)))  # so that attention gives what proj reads
        proj.bias.zero_()
        mixed = [block.attn(x, heads, reference_attention) for x in read["attn"]]
        proj.weight.copy_(weight)
        proj.bias.copy_(bias)
        hidden = [F.gelu(block.mlp.lin1(x)) for x in read["mlp"]]

    def norm(parts):
        return torch.cat([part.flatten(0, -2) for part in parts]).double().norm(dim=0)

    expected = block.mlp.lin2.weight.abs().sum(0) * norm(hidden)
    torch.testing.assert_close(scores.mlp[2], expected.double(), rtol=1e-5, atol=0)
    columns = block.attn.proj.weight.abs().sum(0) * norm(mixed)
    expected = columns.view(heads, -1).sum(1).double()
    torch.testing.assert_close(scores.heads[2], expected, rtol=1e-5, atol=0)


def test_taylor_is_the_gradient_of_a_gate_on_the_unit(make_supernet, image):
    supernet, step = make_supernet(), 0.05
    pattern = torch.randn(256, 5, 5, generator=torch.Generator().manual_seed(0))

    def loss(prediction, batch):
        return (prediction.embedding * pattern).sum()

    scores = score_units(supernet, [image], score="taylor", loss=loss)
    lin2 = supernet.image_encoder.blocks[0].mlp.lin2.weight
    original = lin2.detach().clone()
    unit = int(scores.mlp[0].argmax())

    def with_gate(value: float) -> float:
        lin2.data[:, unit] = value * original[:, unit]
        with torch.no_grad():
            return float((supernet.encode(image.images, image.sizes).double() * pattern).sum())

    slope = (with_gate(1 + step) - with_gate(1 - step)) / (2 * step)
    assert float(scores.mlp[0, unit]) == pytest.approx(abs(slope), rel=0.02)


def test_the_loss_of_taylor_is_a_choice_and_the_embedding_loss_needs_no_masks(
    make_supernet, calibration
):
    supernet = make_supernet()
    blank = [type(b)(**{**vars(b), "masks": torch.zeros_like(b.masks)}) for b in calibration]
    by_embedding = score_units(supernet, calibration, score="taylor")
    assert same(by_embedding, score_units(supernet, blank, score="taylor", loss=embedding_loss()))
    by_task = score_units(supernet, calibration, score="taylor", loss=task_loss)
    assert not torch.equal(by_task.mlp, by_embedding.mlp)


def test_the_scores_of_taylor_do_not_depend_on_the_size_of_a_batch(make_supernet, synthetic_shards):
    supernet = make_supernet()
    apart, together = (
        score_units(
            supernet,
            tiny_calibration(synthetic_shards, images=4, batch=batch),
            score="taylor",
            loss=task_loss,
        )
        for batch in (1, 4)
    )
    for name in ("mlp", "heads", "embed"):
        assert torch.equal(getattr(together, name), getattr(apart, name))


@pytest.mark.parametrize("score", ["magnitude", "wanda"])
@pytest.mark.parametrize("what", ["gain", "writer"])
def test_a_channel_counts_by_the_norms_gain_and_by_what_is_written_to_it(
    make_supernet, calibration, score, what
):
    supernet, channel = make_supernet(), 11
    block = supernet.image_encoder.blocks[1]
    before = score_units(supernet, calibration, score=score).embed
    with torch.no_grad():
        if what == "gain":
            block.norm2.weight[channel] *= 4
        else:
            block.mlp.lin2.weight[channel] *= 4
    after = score_units(supernet, calibration, score=score).embed
    gains = after / before
    assert int(gains.argmax()) == channel
    assert float(gains[channel]) > 1.05


def test_taylor_of_a_channel_is_the_first_order_change_without_all_of_its_weights(
    make_supernet, image
):
    supernet, step = make_supernet(), 1e-3
    pattern = torch.randn(256, 5, 5, generator=torch.Generator().manual_seed(0))
    scores = score_units(
        supernet, [image], score="taylor", loss=lambda p, _: (p.embedding * pattern).sum()
    )
    channel = int(scores.embed.argmax())
    encoder = supernet.image_encoder
    tied = [
        (p, axis) for n, p in encoder.named_parameters() if (axis := channel_axis(n)) is not None
    ]
    original = [p.detach().clone() for p, _ in tied]

    def with_gate(value: float) -> float:
        for (p, axis), whole in zip(tied, original, strict=True):
            p.data.copy_(whole)
            p.data.select(axis, channel).mul_(value)
        with torch.no_grad():
            return float((supernet.encode(image.images, image.sizes).double() * pattern).sum())

    slope = (with_gate(1 + step) - with_gate(1 - step)) / (2 * step)
    assert float(scores.embed[channel]) == pytest.approx(abs(slope), rel=0.02)


def test_movement_away_from_the_minimum_of_its_loss_is_noise_and_refused():
    settings = {"score": "movement", "loss": "embedding"}
    assert "only noise moves" in str(ImportanceConfig.model_validate(settings).fault)
    assert ImportanceConfig.model_validate(settings | {"loss": "task"}).fault is None
    assert ImportanceConfig.model_validate(settings | {"score": "taylor"}).fault is None


def test_movement_prefers_weights_that_training_lets_grow(make_supernet, calibration):
    supernet = make_supernet()
    lin2 = supernet.image_encoder.blocks[0].mlp.lin2.weight

    def growing(prediction, batch):
        return (
            -lin2[:, 3].square().sum()
            + lin2[:, 5].square().sum()
            + 0 * sum(w.sum() for w in supernet.image_encoder.parameters())
        )

    scores = score_units(supernet, calibration, score="movement", loss=growing)
    assert int(scores.mlp[0].argmax()) == 3
    assert int(scores.mlp[0].argmin()) == 5


def test_random_scores_differ_by_seed_and_stay_with_the_unit(make_supernet, calibration):
    supernet = make_supernet()
    first = score_units(supernet, calibration, score="random", seed=1)
    assert not same(first, score_units(supernet, calibration, score="random", seed=2))
    assert len(first.mlp.unique()) == first.mlp.numel()
    order = prioritize_parameters(supernet, first)
    again = score_units(supernet, calibration, score="random", seed=1)
    moved = UnitScores(
        first.mlp.gather(1, order.mlp), first.heads.gather(1, order.heads), first.embed[order.embed]
    )
    assert same(again, moved)


def test_any_seed_gives_random_scores_of_its_own(make_supernet, calibration):
    supernet = make_supernet()
    seeds = (0, 13, 2**31, 2**63 - 1)
    scores = [score_units(supernet, calibration, score="random", seed=seed) for seed in seeds]
    assert len({tuple(each.mlp.flatten().tolist()) for each in scores}) == len(seeds)
    assert all(0.4 < float(each.mlp.mean()) < 0.6 for each in scores)


def test_frozen_weights_are_scored_and_stay_frozen(make_supernet, calibration):
    supernet = make_supernet().requires_grad_(False)
    scores = score_units(supernet, calibration, score="taylor", loss=task_loss)
    assert float(scores.mlp.abs().sum()) > 0
    assert not any(p.requires_grad for p in supernet.parameters())
