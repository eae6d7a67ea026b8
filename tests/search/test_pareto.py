from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from supersam.search import Trial, hypervolume, pareto_front
from supersam.search.front import write_front
from supersam.search.pareto import (
    crowding_distance,
    growing_volumes,
    non_dominated,
    num_dominators,
)
from supersam.search.searchers.evolution import best_first
from tests.search.trials import make_trial

OBJECTIVES = ["miou", "params_m"]


def test_the_front_is_what_nothing_dominates():
    trials = [
        make_trial(0, miou=0.5, params_m=1.0),
        make_trial(1, miou=0.6, params_m=2.0),
        make_trial(2, miou=0.55, params_m=2.5),  # dominated by 1
        make_trial(3, miou=0.5, params_m=1.0),  # equal to 0
        make_trial(4, miou=0.9, params_m=0.1, status="stopped"),
    ]
    assert [t.key for t in pareto_front(trials, OBJECTIVES)] == ["0", "1"]
    assert pareto_front([], OBJECTIVES) == []


@pytest.mark.parametrize(("rows", "objectives"), [(60, 3), (700, 2), (700, 1)])
def test_what_no_other_row_dominates(rows, objectives):
    costs = np.random.default_rng(0).integers(0, 40, (rows, objectives)) / 40  # some are equal
    expected = num_dominators(costs, costs) == 0
    np.testing.assert_array_equal(non_dominated(costs), expected)


def test_the_best_are_those_of_front_after_front():
    costs = np.random.default_rng(0).random((60, 3))
    order = best_first(costs, 60)
    assert sorted(order.tolist()) == list(range(60))
    assert best_first(costs, 7).tolist() == order[:7].tolist()
    front = int(non_dominated(costs).sum())
    assert non_dominated(costs)[order[:front]].all()
    assert np.isinf(crowding_distance(costs[order[:front]])[:2]).all()


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_hypervolume_is_the_share_of_points_that_are_dominated(objectives):
    rng = np.random.default_rng(1)
    costs = rng.random((20, objectives))
    darts = rng.random((100_000, objectives))
    share = np.mean([(costs <= dart).all(1).any() for dart in darts[:20_000]])
    assert hypervolume(costs, np.ones(objectives)) == pytest.approx(share, abs=0.02)


def test_rows_beyond_the_reference_count_nothing():
    costs = np.array([[0.5, 0.5], [0.1, 2.0]])
    assert hypervolume(costs, np.ones(2)) == pytest.approx(0.25)
    assert hypervolume(costs[1:], np.ones(2)) == 0.0


def test_the_ends_of_a_front_are_never_crowded():
    distance = crowding_distance(np.array([[0.0, 3.0], [1.0, 1.0], [1.1, 0.9], [3.0, 0.0]]))
    assert np.isinf(distance[[0, 3]]).all()
    assert (distance[1:3] < 2).all()


def test_the_front_is_written_as_json_and_as_a_table(tmp_path):
    front = [make_trial(0), make_trial(1, miou=0.6, latency_ms=3.5)]
    write_front(tmp_path, front)
    assert [Trial.from_dict(v) for v in json.loads((tmp_path / "pareto.json").read_text())] == front
    rows = list(csv.DictReader((tmp_path / "pareto.csv").open()))
    assert [float(row["miou"]) for row in rows] == [0.5, 0.6]
    assert [row["latency_ms"] for row in rows] == ["", "3.5"]
    assert rows[1]["mlp_widths"] == "17 32"
    assert [row["subnet"] for row in rows] == [trial.spec.key() for trial in front]


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_a_growing_volume_is_that_of_the_trials_so_far(objectives):
    costs = np.random.default_rng(0).integers(0, 6, (40, objectives)) / 5  # some are equal
    corner = np.full(objectives, 0.9)  # some lie beyond it
    expected = [hypervolume(costs[: count + 1], corner) for count in range(len(costs))]
    assert growing_volumes(costs, corner) == pytest.approx(expected)
