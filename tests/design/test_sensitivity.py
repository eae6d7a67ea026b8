"""The layer scan: what it measures, what it keeps, what it does not measure twice."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from supersam.config.design import ScanConfig
from supersam.design import RemovalMeter, Sensitivity, scan_sensitivity
from supersam.design.cache import EffectCache, RemovalEffect
from supersam.design.sensitivity import cache_content
from supersam.evaluation import mask_iou
from tests.design.calibration_sets import tiny_calibration


@pytest.fixture(scope="module")
def calibration(synthetic_shards):
    return tiny_calibration(synthetic_shards)


@pytest.fixture
def supernet(make_supernet):
    return make_supernet()


def test_damage_is_the_iou_and_the_distance_of_the_supernet_without_the_layers(
    supernet, calibration
):
    (effect,) = RemovalMeter(supernet, calibration).measure([(2, 0)])
    ious, distances = [], []
    for batch in calibration:
        with torch.no_grad():
            whole = supernet(batch.images, batch.sizes, batch.points, batch.labels)
            with supernet.activated(supernet.space.largest().without(0, 2)):
                less = supernet(batch.images, batch.sizes, batch.points, batch.labels)
        iou = mask_iou(less.masks[:, :, 0] > 0, batch.masks > 127)
        ious += iou[batch.valid].tolist()
        errors = F.pairwise_distance(less.embedding.flatten(1), whole.embedding.flatten(1), eps=0)
        distances += (errors / whole.embedding.flatten(1).norm(dim=1)).tolist()
    assert effect.removed == (0, 2)
    assert effect.miou == pytest.approx(sum(ious) / len(ious), rel=1e-5)
    assert effect.embedding_distance == pytest.approx(sum(distances) / len(distances), rel=1e-5)


def test_a_layer_that_does_nothing_costs_nothing_and_goes_first(supernet, calibration):
    block = supernet.image_encoder.blocks[2]
    for linear in (block.attn.proj, block.mlp.lin2):
        linear.weight.data.zero_()
        linear.bias.data.zero_()
    found = scan_sensitivity(supernet, calibration, ScanConfig(by="embedding", max_removed=1))
    assert found.alone[2].embedding_distance == 0
    assert found.alone[2].miou == found.whole.miou
    assert found.greedy_order == (2,)
    assert min(d.embedding_distance for i, d in enumerate(found.alone) if i != 2) > 0


def test_greedy_removal_takes_the_least_harmful_layer_of_each_round(supernet, calibration):
    config = ScanConfig(by="embedding", max_removed=2, keep_global=0)
    found = scan_sensitivity(supernet, calibration, config)
    first = min(found.alone, key=lambda effect: effect.embedding_distance)
    assert found.greedy[0] == first
    meter = RemovalMeter(supernet, calibration)
    rest = [layer for layer in range(4) if layer not in first.removed]
    pairs = meter.measure([(*first.removed, layer) for layer in rest])
    assert found.greedy[1] == min(pairs, key=lambda effect: effect.embedding_distance)


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_the_last_global_attention_layers_stay(supernet, calibration, keep):
    found = scan_sensitivity(supernet, calibration, ScanConfig(max_removed=4, keep_global=keep))
    left = set(supernet.space.shape.global_layers) - set(found.greedy_order)
    assert len(left) >= keep
    assert len(found.greedy_order) == (3 if keep < 2 else 2)


def test_what_the_cache_knows_is_not_measured_again(supernet, calibration, tmp_path):
    path, content = tmp_path / "cache" / "scan.jsonl", cache_content(supernet, calibration)
    config = ScanConfig(max_removed=2)

    def scan(content: str):
        cache = EffectCache(path, content)
        before = len(cache)
        return scan_sensitivity(supernet, calibration, config, cache=cache), len(cache) - before

    first, measured = scan(content)
    assert measured == len(path.read_text().splitlines()) > 0
    with path.open("a") as file:
        file.write('{"content": "cut sh')  # a kill
    assert scan(content) == (first, 0)
    again, measured = scan("other weights")
    assert (again, measured > 0) == (first, True)
    assert scan(content)[1] == 0


def test_only_the_first_rank_opens_the_cache(tmp_path):
    effect = RemovalEffect((1,), miou=0.5, embedding_distance=0.1)
    (tmp_path / "not").mkdir()  # reading or appending to a folder would raise
    cache = EffectCache(tmp_path / "not", "content", is_first=False)
    cache.add(effect)
    assert cache.get((1,)) == effect


def test_a_killed_scan_goes_on_where_it_was(supernet, calibration, tmp_path):
    path, content = tmp_path / "scan.jsonl", cache_content(supernet, calibration)
    whole = scan_sensitivity(supernet, calibration, cache=EffectCache(path, content))
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:4]) + "\n")
    cache = EffectCache(path, content)
    meter = RemovalMeter(supernet, calibration, cache=cache)
    assert len(cache) == 4
    meter.measure([tuple(json.loads(line)["removed"]) for line in lines])
    assert meter.num_measured == len(lines) - 4
    assert scan_sensitivity(supernet, calibration, cache=cache) == whole


def test_the_content_changes_with_weights_and_with_images(make_supernet, calibration):
    supernet = make_supernet()
    content = cache_content(supernet, calibration)
    assert content == cache_content(make_supernet(), calibration)
    assert content != cache_content(supernet, calibration[:-1])
    supernet.image_encoder.blocks[0].mlp.lin1.bias.data[0] += 1e-3
    assert content != cache_content(supernet, calibration)


def test_predicted_damage_adds_what_layers_cost_alone(supernet, calibration):
    found = scan_sensitivity(supernet, calibration, ScanConfig(max_removed=0))
    alone = [found.whole.miou - effect.miou for effect in found.alone]
    assert found.predicted_drop((0, 3)) == pytest.approx(alone[0] + alone[3])
    assert found.greedy == ()
    assert isinstance(found.whole, RemovalEffect)


def test_the_interval_of_a_drop_is_paired_and_needs_several_batches():
    whole = RemovalEffect((), 0.5, 0.0, ((1.0, 2), (1.5, 3), (0.5, 1)))
    same = RemovalEffect((1,), 0.4, 0.1, ((0.8, 2), (1.2, 3), (0.4, 1)))  # 0.1 less each object
    mixed = RemovalEffect((2,), 0.4, 0.1, ((0.0, 2), (1.5, 3), (0.9, 1)))
    old = RemovalEffect((3,), 0.4, 0.1)
    found = Sensitivity(whole, (same, mixed, old), ())
    assert found.drop_interval(same) == pytest.approx((0.1, 0.1))
    low, high = found.drop_interval(mixed)
    assert low < 0 < high
    assert found.drop_interval(old) is None


def test_effects_keep_the_scores_of_each_batch_in_the_cache(tmp_path):
    effect = RemovalEffect((1, 3), 0.4, 0.1, ((0.25, 2), (1.5, 3)))
    EffectCache(tmp_path / "effects.jsonl", "content").add(effect)
    again = EffectCache(tmp_path / "effects.jsonl", "content")
    assert again.get((1, 3)) == effect


def test_a_cache_of_an_older_version_is_read(tmp_path):
    path = tmp_path / "effects.jsonl"
    EffectCache(path, "content").add(RemovalEffect((2,), 0.4, 0.1))
    line = json.loads(path.read_text())
    del line["by_batch"]
    path.write_text(json.dumps(line) + "\n")
    assert EffectCache(path, "content").get((2,)) == RemovalEffect((2,), 0.4, 0.1)
