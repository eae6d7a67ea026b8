from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from supersam.data.dataset import EvalDataset
from supersam.data.shards import ShardReader
from supersam.evaluation import SubnetPredictor, evaluate
from supersam.runs.supernet import load_supernet
from supersam.search import images
from supersam.search.costs import is_hopeless
from supersam.search.evaluator import Chunk, EvalRequest, SubnetEvaluator, rung_ends
from supersam.search.images import chosen_images, scale_masks
from supersam.search.inputs import find_inputs
from supersam.search.journal import trial_key
from supersam.search.prefix import PrefixCache, encode_each, path_of
from supersam.space import resolve_shape
from tests.search.tiny_search import search, tiny_search

UNTIMED = {"seconds": 0.0}


@pytest.fixture(scope="module")
def inputs(run, tmp_path_factory):
    return find_inputs(tiny_search(run, tmp_path_factory.mktemp("out")))


@pytest.fixture(scope="module")
def specs(inputs):
    rng = np.random.default_rng(0)
    drawn = [inputs.space.sample(rng) for _ in range(10)]
    children = [inputs.space.mutate(drawn[0], rng) for _ in range(4)]
    return list(dict.fromkeys([inputs.space.largest(), inputs.space.smallest(), *drawn, *children]))


def requests_of(specs, stage="search"):
    return tuple(
        EvalRequest(trial_key(s, {"stage": stage}), s, stage, "random", 0, i)
        for i, s in enumerate(specs)
    )


def objective(run, inputs, tmp_path, **changes):
    return SubnetEvaluator(tiny_search(run, tmp_path, **changes), inputs.source)


def test_shared_layers_give_bitwise_the_embeddings_of_one_by_one(inputs, specs):
    supernet = load_supernet(inputs.train_run, inputs.space, inputs.source)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        shared = dict(encode_each(supernet.image_encoder, pixels, specs))
        for place, spec in enumerate(specs):
            assert torch.equal(shared[place], supernet.image_encoder(pixels, spec))
    assert sorted(shared) == list(range(len(specs)))


def test_each_step_of_the_tree_is_taken_once(inputs, specs, monkeypatch):
    supernet = load_supernet(inputs.train_run, inputs.space, inputs.source)
    encoder = supernet.image_encoder
    taken = []
    for name in ("attend", "feed"):
        original = getattr(encoder, name)
        monkeypatch.setattr(
            encoder, name, lambda *a, f=original: (taken.append(1), f(*a))[1], raising=True
        )
    with torch.no_grad():
        list(encode_each(encoder, torch.zeros(1, 3, 64, 64), specs))
    paths = [path_of(spec) for spec in specs]
    prefixes = {tuple(p[:n]) for p in paths for n in range(2, len(p) + 1)}
    assert len(taken) == len(prefixes)
    assert len(taken) < sum(len(p) - 1 for p in paths)


@pytest.mark.parametrize("outputs", [0, 3, 20, 1000])
def test_what_a_cache_keeps_changes_nothing_but_the_work(inputs, specs, monkeypatch, outputs):
    supernet = load_supernet(inputs.train_run, inputs.space, inputs.source)
    encoder, rng = supernet.image_encoder, np.random.default_rng(5)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    size = 4 * encoder.embed(pixels, inputs.space.shape.embed_dim).numel()
    cache = PrefixCache(outputs * size, generation_layers=4 * len(specs))
    attended = []
    original = encoder.attend
    monkeypatch.setattr(encoder, "attend", lambda *a: (attended.append(1), original(*a))[1])
    counts = []
    with torch.no_grad():
        for generation in (specs, [inputs.space.mutate(s, rng, probability=0.2) for s in specs]):
            plain = dict(encode_each(encoder, pixels, generation))
            attended.clear()
            cached = dict(encode_each(encoder, pixels, generation, cache))
            counts.append(len(attended))
            assert all(torch.equal(cached[place], plain[place]) for place in plain)
        attended.clear()
        list(encode_each(encoder, pixels, specs, cache))
    assert len(cache) <= outputs
    assert len(attended) <= counts[0]
    assert (len(attended) == 0) == (outputs == 1000)


def test_a_cache_keeps_its_bound_whatever_the_widths():
    rng = np.random.default_rng(0)
    cache = PrefixCache(1000, generation_layers=1)
    for width in rng.integers(1, 200, 100).tolist():
        cache.keep([(width,), (0, 1), (0, 8, 0)], torch.zeros(width, dtype=torch.uint8))
        assert 0 < cache.kept_bytes <= 1000
        assert cache.longest([(width,), (0, 1), (0, 8, 0)])[0] == 3  # the newest is there


@pytest.mark.parametrize("resolution", ["logits", "original"])
def test_a_trial_does_not_depend_on_its_chunk(run, inputs, specs, tmp_path, resolution):
    rungs = {"rungs": [0.3], "keep": 0.5}
    judge = objective(run, inputs, tmp_path, protocol={"resolution": resolution, **rungs})
    requests = requests_of(specs)
    first = judge.evaluate(Chunk(requests, seen=(np.zeros((0, 2)),)))
    assert {t.status for t in first} == {"complete"}
    seen = (np.array([[-t.rungs[0][1], t.metrics["params_m"]] for t in first]),)
    together = judge.evaluate(Chunk(requests, seen=seen))
    alone = [judge.evaluate(Chunk((job,), seen=seen))[0] for job in requests]
    assert [replace(t, **UNTIMED) for t in together] == [replace(t, **UNTIMED) for t in alone]
    assert {t.status for t in together} == {"complete", "stopped"}
    assert {t.num_images for t in together if t.status == "stopped"} == {2}


@pytest.mark.parametrize(
    ("batches", "rungs", "ends"),
    [(1, [0.5], []), (2, [0.5, 0.9], [1]), (8, [0.01, 0.1, 0.5, 0.99], [1, 4])],
)
def test_a_rung_is_never_all_images(batches, rungs, ends):
    assert rung_ends(rungs, batches) == ends


def test_a_rung_that_rounds_to_all_images_stops_nothing(run, inputs, specs, tmp_path):
    protocol = {"images": 2, "images_per_batch": 2, "rungs": [0.5], "keep": 0.1}
    judge = objective(run, inputs, tmp_path, protocol=protocol)
    best = np.tile([-1.0, 0.0], (8, 1))
    trials = judge.evaluate(Chunk(requests_of(specs[:3]), seen=(best,)))
    assert [(t.status, t.num_images, t.rungs) for t in trials] == [("complete", 2, ())] * 3


def searched_images(run, inputs):
    dataset = EvalDataset(
        [ShardReader(p) for p in inputs.selection.folders],
        side=resolve_shape(run.model).image_size,
        prompt="box",
    )
    return [dataset[i] for i in chosen_images(len(dataset), 6)]


@pytest.mark.parametrize("resolution", ["logits", "original"])
def test_the_front_of_a_search_is_what_evaluate_measures(run, inputs, tmp_path, resolution):
    found = search(
        run,
        tmp_path,
        protocol={"resolution": resolution, "objects_per_image": None, "prompt": "box"},
    )
    supernet = load_supernet(inputs.train_run, inputs.space, inputs.source)
    looked_at = searched_images(run, inputs)
    assert found.front
    for trial in found.front:
        expected = evaluate(SubnetPredictor(supernet, trial.spec), looked_at, boundary=False)
        assert trial.metrics["miou"] == pytest.approx(expected.miou, abs=1e-4)
        assert trial.num_objects == expected.num_objects
        assert trial.resolution == "original"
        assert trial.metrics["miou_lo"] <= trial.metrics["miou"] <= trial.metrics["miou_hi"]


def test_latency_and_memory_are_measured_before_anything_is_evaluated(run, inputs, specs, tmp_path):
    judge = objective(
        run, inputs, tmp_path,
        constraint=["latency_ms<=0.001", "peak_mem_mib<=1000"],
        latency={"repeats": 3, "warmup": 1},
    )  # fmt: skip
    (trial,) = judge.evaluate(Chunk(requests_of(specs[:1])))
    assert trial.status == "infeasible"
    assert trial.num_images == 0
    assert "miou" not in trial.metrics
    assert trial.metrics["latency_ms"] > 0.001
    assert trial.metrics["peak_mem_mib"] > 4 * trial.metrics["params_m"] / 1.05


def test_a_larger_subnet_needs_more_memory(run, inputs, tmp_path):
    judge = objective(run, inputs, tmp_path, objectives=["miou", "peak_mem_mib"])
    ends = (inputs.space.largest(), inputs.space.smallest())
    large, small = judge.evaluate(Chunk(requests_of(ends)))
    assert large.metrics["peak_mem_mib"] > small.metrics["peak_mem_mib"]


def test_a_small_subnet_is_judged_against_small_ones():
    seen = np.array([[-0.9, 9.0], [-0.8, 8.0], [-0.5, 2.0], [-0.4, 3.0], *[[-0.1, 9.0]] * 6])
    assert not is_hopeless(np.array([-0.3, 1.0]), seen, keep=0.3)
    assert is_hopeless(np.array([-0.3, 9.5]), seen, keep=0.3)
    assert not is_hopeless(np.array([-0.3, 9.5]), seen[:7], keep=0.3)


def test_no_object_vanishes_on_a_coarser_grid():
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, 3, 5] = True
    masks[1, :8] = True
    small = scale_masks(masks, (4, 4))
    assert small[0].nonzero().tolist() == [[0, 1]]
    assert torch.equal(small[1], torch.tensor([[True], [True], [False], [False]]).expand(4, 4))
    assert torch.equal(scale_masks(masks, (16, 16)), masks)


def test_masks_are_brought_to_the_logits_grid_only_where_they_are_compared_there(
    run, inputs, specs, tmp_path, monkeypatch
):
    scaled = []
    scale = images.scale_masks
    monkeypatch.setattr(images, "scale_masks", lambda *a: (scaled.append(1), scale(*a))[1])
    judge = objective(run, inputs, tmp_path)
    judge.evaluate(Chunk(requests_of(specs[:1])))
    assert not scaled
    objective(run, inputs, tmp_path, protocol={"resolution": "logits"})
    assert len(scaled) == 6


def test_few_images_are_spread_over_the_set():
    assert sorted(chosen_images(100, 4)) == [0, 25, 50, 75]
    assert sorted(chosen_images(3, None)) == [0, 1, 2]
