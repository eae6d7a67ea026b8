"""Proposals without a trial: from what a design measured of layers, units, heads and channels."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from supersam.config import SearchRun, UserError
from supersam.search.searchers import build_searcher, pose_problem
from supersam.search.searchers.budget import greedy_path, read_sensitivities, spread
from supersam.space import subnet_cost
from tests.search.test_searchers import PROBLEM, SHAPE, SPACE


@pytest.fixture
def evidence(tmp_path):
    """Layer 4 moves nothing, layer 1 much; a tenth of each MLP's units holds all importance."""
    rng = np.random.default_rng(0)
    moved = [5.0, 9.0, 3.0, 4.0, 0.01, 6.0]
    mlp = np.full((SHAPE.depth, SHAPE.mlp_width), 1e-3)
    for row in mlp:
        row[rng.choice(SHAPE.mlp_width, SHAPE.mlp_width // 10, replace=False)] = 1.0
    values = {
        "shape": {"depth": SHAPE.depth, "embed_dim": SHAPE.embed_dim, "num_heads": SHAPE.num_heads},
        "sensitivity": {"alone": [
            {"removed": [i], "embedding_distance": each} for i, each in enumerate(moved)
        ]},
        "scores_before_reordering": {
            "mlp": mlp.tolist(),
            "heads": np.ones((SHAPE.depth, SHAPE.num_heads)).tolist(),
            "embed": np.ones(SHAPE.embed_dim).tolist(),
        },
    }  # fmt: skip
    file = tmp_path / "evidence.json"
    file.write_text(json.dumps(values))
    return file


def test_what_costs_least_goes_first(evidence):
    path = greedy_path(SPACE, read_sensitivities(evidence, SPACE))
    assert (path[0], path[-1]) == (SPACE.largest(), SPACE.smallest())
    assert all(map(SPACE.contains, path))
    sizes = [subnet_cost(spec, SHAPE).params for spec in path]
    assert sizes == sorted(sizes, reverse=True)
    gone = {layer: next(i for i, spec in enumerate(path) if layer not in spec.layers)
            for layer in SPACE.removable}  # fmt: skip
    assert gone[4] < gone[2] < gone[1]  # by how far each one's removal moves the embedding
    narrow = next(i for i, spec in enumerate(path) if max(spec.mlp_widths) < SHAPE.mlp_width)
    fewer_heads = next(i for i, spec in enumerate(path) if min(spec.heads) < SHAPE.num_heads)
    assert narrow < gone[1]
    assert narrow < fewer_heads + len(path) / 2


def test_the_path_loses_less_than_random_subnets_of_its_sizes(evidence):
    known = read_sensitivities(evidence, SPACE)
    path = greedy_path(SPACE, known)
    rng = np.random.default_rng(0)
    drawn = [SPACE.sample(rng) for _ in range(300)]
    won = []
    for spec in path[1:-1]:
        size = subnet_cost(spec, SHAPE).params
        rivals = [d for d in drawn if abs(subnet_cost(d, SHAPE).params / size - 1) < 0.01]
        won += [known.loss(spec) <= known.loss(rival) for rival in rivals]
    assert len(won) > 1000
    assert np.mean(won) > 0.9


def test_a_few_of_a_path_span_its_sizes(evidence):
    path = greedy_path(SPACE, read_sensitivities(evidence, SPACE))
    some = spread(path, SPACE)
    assert set(some) == set(path)
    assert len(some) == len(set(path))
    sizes = np.sort([subnet_cost(spec, SHAPE).params for spec in some[:9]])
    assert np.diff(sizes).max() < 0.3 * np.ptp(sizes)


@pytest.mark.parametrize("name", ["budget", "nsga2", "random", "optuna"])
def test_first_proposals_are_those_of_the_budget(evidence, tmp_path, name):
    search = SearchRun(run=tmp_path, searcher=name, evidence=evidence, population=8)
    problem = pose_problem(search, SPACE)
    searcher = build_searcher(name, problem)
    first = searcher.ask(8)
    assert first == list(problem.first[:8])
    again = searcher.ask(8)
    assert len(again) == 8
    assert not set(again) & set(first)
    assert (again == list(problem.first[8:16])) == (name == "budget")
    assert len(searcher.ask(100)) == 100  # neighbours, where the path is at its end


def test_a_searcher_by_budget_needs_evidence(tmp_path):
    with pytest.raises(UserError, match="--searcher budget needs --evidence FILE"):
        build_searcher("budget", PROBLEM)


def test_evidence_of_another_encoder_is_refused(evidence, tmp_path):
    values = json.loads(evidence.read_text())
    values["shape"]["embed_dim"] = 32
    evidence.write_text(json.dumps(values))
    with pytest.raises(UserError, match="is of an encoder of 6 layers, 32 wide"):
        read_sensitivities(evidence, SPACE)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(UserError, match=r"other\.json is not the evidence\.json of a design"):
        read_sensitivities(tmp_path / "other.json", replace(SPACE))
