"""A search of a space whose subnets have several input sizes."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from supersam.evaluation import SubnetPredictor, evaluate
from supersam.runs.supernet import load_supernet
from supersam.search.command import format_front
from supersam.search.evaluator import Chunk, EvalRequest, SubnetEvaluator
from supersam.search.inputs import find_inputs
from supersam.search.journal import read_journal, trial_key
from supersam.search.report.page import write_report
from supersam.search.searchers.genes import gene_choices, genes_of, spec_of
from tests.search.test_search_evaluator import searched_images
from tests.search.tiny_search import make_run, search, tiny_search

BOX = {"images": 6, "images_per_batch": 2, "objects_per_image": None, "prompt": "box"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, shards):
    folder = tmp_path_factory.mktemp("resolutions") / "run"
    return make_run(folder, shards, space={"resolutions": [32, 48, 64]})


@pytest.fixture(scope="module")
def inputs(run, tmp_path_factory):
    return find_inputs(tiny_search(run, tmp_path_factory.mktemp("out")))


@pytest.fixture(scope="module")
def found(run, tmp_path_factory):
    """On random weights a smaller input is no worse, so that the front has several."""
    objectives = ["miou", "flops_g"]
    place = tmp_path_factory.mktemp("found") / "s"
    return search(run, place, objectives=objectives, protocol=BOX, trials=24)


def twins(space, seed=0):
    """Subnets that differ in nothing but the resolution, and others."""
    random = np.random.default_rng(seed)
    some = [space.sample(random) for _ in range(3)]
    return list(
        dict.fromkeys(replace(s, resolution=px) for s in some for px in space.resolution_genes)
    )


@pytest.mark.parametrize("resolution", ["logits", "original"])
def test_a_trial_does_not_depend_on_who_shares_its_chunk(run, inputs, tmp_path, resolution):
    """Twins of other resolutions have all layers in common, and must share none."""
    protocol = {**BOX, "resolution": resolution}
    judge = SubnetEvaluator(tiny_search(run, tmp_path, protocol=protocol), inputs.source)
    requests = tuple(
        EvalRequest(trial_key(s, {}), s, "search", "random", 0, i)
        for i, s in enumerate(twins(inputs.space))
    )
    for _ in range(2):  # once more from the cache
        together = judge.evaluate(Chunk(requests))
        alone = [judge.evaluate(Chunk((request,)))[0] for request in requests]
        assert [replace(t, seconds=0.0) for t in together] == [
            replace(t, seconds=0.0) for t in alone
        ]
    scores = {trial.spec.resolution: trial.metrics["miou"] for trial in together[:3]}
    assert len(set(scores.values())) == 3


def test_the_front_is_what_the_evaluator_measures_of_each_subnet(run, inputs, found):
    supernet = load_supernet(inputs.train_run, inputs.space, inputs.source)
    looked_at = searched_images(run, inputs)
    assert len({trial.spec.resolution for trial in found.front}) > 1
    for trial in found.front:
        expected = evaluate(SubnetPredictor(supernet, trial.spec), looked_at, boundary=False)
        assert trial.metrics["miou"] == pytest.approx(expected.miou, abs=1e-4)
        assert trial.num_objects == expected.num_objects


def test_journal_front_and_table_name_the_resolution(run, inputs, found):
    trials = read_journal(found.folder / "journal.jsonl")
    assert {trial.spec.resolution for trial in trials} == {32, 48, None}
    assert all(inputs.space.contains(trial.spec) for trial in trials)
    assert {t.spec.key() for t in found.front} <= {t.spec.key() for t in trials}
    with (found.folder / "pareto.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["resolution"] for row in rows] == [
        str(trial.spec.resolution or "") for trial in found.front
    ]
    lines = [line.split() for line in format_front(found, ("miou",)).splitlines()]
    assert lines[0][-1] == "px"
    assert [line[-1] for line in lines[1:3]] == ["own", "32"]  # largest and smallest


def test_the_same_search_again_finds_everything_in_its_journal(run, found):
    before = (found.folder / "journal.jsonl").read_bytes()
    again = search(run, found.folder, objectives=["miou", "flops_g"], protocol=BOX, trials=24)
    assert [trial.key for trial in again.front] == [trial.key for trial in found.front]
    assert (found.folder / "journal.jsonl").read_bytes() == before


def test_a_report_has_a_column_for_it(found):
    text = write_report(found.folder, images=1).read_text(encoding="utf-8")
    assert "input px" in text
    assert "input 32 of 64 px" in text
    assert json.loads((found.folder / "search.json").read_text())["space"]["resolutions"] == [
        32, 48, 64,
    ]  # fmt: skip


def test_genes_of_tuners_hold_it(inputs):
    space = inputs.space
    assert gene_choices(space)["resolution"] == 3
    for spec in twins(space, seed=3):
        assert spec_of(genes_of(spec, space), space) == spec
    outside = replace(space, resolutions=(32, 48))
    assert genes_of(space.largest(), outside) is None


@pytest.mark.parametrize("searcher", ["regularized", "optuna", "predictor", "opentuner"])
def test_every_searcher_proposes_it(run, inputs, tmp_path, closed_form, searcher):
    proposed = search(run, tmp_path / "s", searcher=searcher, trials=40, population=8)
    trials = read_journal(proposed.folder / "journal.jsonl")
    assert {trial.spec.resolution for trial in trials if trial.batch >= 0} == {32, 48, None}


def test_images_of_a_step_are_scaled_and_targets_stay(run, inputs, tmp_path):
    judge = SubnetEvaluator(tiny_search(run, tmp_path, protocol=BOX), inputs.source)
    batch = judge._batches[0]
    assert batch.at(64) is batch
    small = batch.at(32)
    assert small.images.shape[-2:] == (32, 32)
    assert torch.equal(small.prompts[0].points * 2, batch.prompts[0].points)
    assert small.targets is batch.targets
