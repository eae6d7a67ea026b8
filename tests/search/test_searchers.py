from __future__ import annotations

import argparse
import contextlib
import os
import random
from dataclasses import replace
from typing import get_args

import numpy as np
import opentuner
import pytest
from opentuner import tuningrunmain
from opentuner.api import TuningRunManager
from opentuner.measurement.interface import DefaultMeasurementInterface
from opentuner.resultsdb.models import Result

from supersam.config import Constraint, SpaceConfig
from supersam.config.search import SearcherName, SearchRun
from supersam.search import hypervolume
from supersam.search.ask_tell import AskTell
from supersam.search.costs import fit_limits, known_costs, require_feasible
from supersam.search.journal import Journal
from supersam.search.pareto import cost_matrix
from supersam.search.searchers import Problem, build_searcher, opentuner_bandit
from supersam.search.searchers.baselines import iter_subnets
from supersam.search.searchers.evolution import breed, drawn_winner, splice
from supersam.search.searchers.genes import gene_choices, genes_of, spec_of
from supersam.search.searchers.opentuner_driver import TechniqueDriver
from supersam.space import EncoderShape, build_space
from tests.search.trials import make_trial

SHAPE = EncoderShape(96, 6, 3, (2, 5), image_size=64, window_size=2)
SPACE = build_space(
    SpaceConfig(removable=(1, 2, 4), elastic_heads=True, elastic_embed=True, width_multiple=16),
    SHAPE,
)
PROBLEM = Problem(SPACE, ("miou", "params_m"), seed=3, population=8)
LEARNING = [name for name in get_args(SearcherName) if name not in ("exhaustive", "budget")]


def evaluate(spec, number=0, batch=0):
    """A made-up accuracy that early layers and wide MLPs raise, with some noise of the subnet."""
    gain = sum((6 - i) * w**0.5 for i, w in zip(spec.layers, spec.mlp_widths, strict=True))
    noise = int(spec.key(), 16) % 1000 / 1000
    miou = 0.9 - 40 / (gain + 10) + 0.005 * noise
    metrics = {**known_costs(spec, SPACE), "miou": miou}
    return replace(make_trial(number, batch=batch), spec=spec, key=spec.key(), metrics=metrics)


def run(name, problem=PROBLEM, batches=6, count=8):
    searcher = build_searcher(name, problem)
    searcher.tell([evaluate(SPACE.largest()), evaluate(SPACE.smallest())])
    trials = []
    waiting = []
    for batch in range(batches):  # told one batch late, as the schedule does
        specs = searcher.ask(count)
        if len(waiting) == 1:
            searcher.tell(waiting.pop(0))
        waiting.append([evaluate(s, i, batch) for i, s in enumerate(specs)])
        trials += waiting[-1]
    return trials


@pytest.mark.parametrize("name", LEARNING)
def test_the_same_seed_proposes_the_same_subnets(name):
    np.random.seed(1)
    first = run(name)
    np.random.seed(2)
    assert [t.spec for t in run(name)] == [t.spec for t in first]
    other = run(name, replace(PROBLEM, seed=4))
    assert [t.spec for t in other] != [t.spec for t in first]


def tell_late(searcher, batches, recorded=()):
    """The proposals; those of `recorded` are taken as the journal's. Told one batch late."""
    searcher.tell([evaluate(SPACE.largest()), evaluate(SPACE.smallest())])
    proposed, waiting = [], []
    for number in range(batches):
        taken = number < len(recorded) and searcher.replay(recorded[number])
        proposed.append(recorded[number] if taken else searcher.ask(8))
        if waiting:
            searcher.tell(waiting.pop())
        waiting.append([evaluate(s, i, number) for i, s in enumerate(proposed[-1])])
    return proposed


def proposals_of_a_search(name, folder, *, draw, restart_every=None):
    """What a whole search proposes whose chunks are done in the order of `draw`.

    restart_every: chunks after which it is ended, with what was under way, and begun again.
    """
    search = SearchRun(run=folder, searcher=name, trials=40, population=8, chunk=3)
    with contextlib.closing(Journal(folder / "journal.jsonl")) as journal:

        def begin():
            fixed = [evaluate(SPACE.largest()), evaluate(SPACE.smallest())]
            searcher = build_searcher(name, PROBLEM)
            recorded = list(journal)
            plan = AskTell(
                search, searcher, journal, protocol={}, references=fixed, recorded=recorded
            )
            return plan, []

        plan, waiting = begin()
        done = 0
        while not plan.is_finished:
            waiting += iter(plan.next_chunk, None)
            chunk = waiting.pop(draw(len(waiting)))
            journal.append(
                replace(evaluate(r.spec, r.index, r.batch), key=r.key) for r in chunk.requests
            )
            plan.advance()
            done += 1
            if restart_every is not None and done % restart_every == 0:
                plan, waiting = begin()
        return [trial.spec for trial in plan.trials()]


@pytest.mark.parametrize("name", LEARNING)
def test_proposals_do_not_depend_on_who_finishes_first_nor_on_restarts(name, tmp_path):
    rng = np.random.default_rng(0)
    orders = {
        "first": (lambda count: 0, None),
        "last": (lambda count: count - 1, None),
        "any": (lambda count: int(rng.integers(count)), 2),
    }
    found = {}
    for order, (draw, restart_every) in orders.items():
        (tmp_path / order).mkdir()
        found[order] = proposals_of_a_search(
            name, tmp_path / order, draw=draw, restart_every=restart_every
        )
    assert len(found["first"]) == 40
    assert found["last"] == found["any"] == found["first"]


@pytest.mark.parametrize("at", [0, 3, 31, 32, 33, 37])
def test_opentuner_goes_on_from_a_journal_as_if_never_ended(monkeypatch, at):
    # one tuner, so that it soon breeds from the members of its population
    problem = replace(PROBLEM, objectives=("miou",))
    monkeypatch.setattr(opentuner_bandit, "_ERA", 256)
    whole = tell_late(build_searcher("opentuner", problem), 40)
    again = tell_late(build_searcher("opentuner", problem), 40, recorded=whole[:at])
    assert again == whole


@pytest.mark.parametrize("name", LEARNING)
def test_every_proposal_is_new_feasible_and_of_the_space(name):
    limits = (Constraint.parse("params_m<=5.0"), Constraint.parse("flops_g>=0.082"))
    trials = run(name, replace(PROBLEM, limits=limits))
    specs = [t.spec for t in trials]
    assert len(specs) == len(set(specs)) == 48
    assert all(SPACE.contains(spec) for spec in specs)
    assert all(limit.allows(t.metrics[limit.metric]) for t in trials for limit in limits)


@pytest.mark.parametrize(
    "texts", [["params_m>=5.3"], ["params_m>=4.9", "params_m<=4.91"], ["params_m<=4.8"]]
)
def test_limits_near_an_end_or_each_other_are_kept_by_whole_batches(texts):
    limits = tuple(map(Constraint.parse, texts))
    require_feasible(SPACE, limits)
    searcher = build_searcher("random", replace(PROBLEM, limits=limits))
    specs = [spec for _ in range(3) for spec in searcher.ask(8)]
    assert len(set(specs)) == 24
    assert all(map(replace(PROBLEM, limits=limits).is_feasible, specs))


def test_a_limit_that_only_the_largest_keeps_is_possible():
    narrow = replace(SPACE, mlp_widths=tuple(widths[:1] for widths in SPACE.mlp_widths))
    most = known_costs(narrow.largest(), narrow)["params_m"]
    limit = Constraint("params_m", is_upper=False, limit=most)
    require_feasible(narrow, [limit])
    rng = np.random.default_rng(0)
    assert fit_limits(narrow.sample(rng), narrow, [limit], rng) == narrow.largest()


@pytest.mark.parametrize(
    ("name", "objectives"),
    [
        ("nsga2", ("miou", "params_m")),
        ("regularized", ("miou", "params_m")),
        ("optuna", ("miou", "params_m")),
        ("predictor", ("miou", "params_m")),
        ("opentuner", ("miou",)),  # it has one objective; a front it finds by weighing
    ],
)
def test_searching_beats_drawing_at_random(name, objectives):
    reference = np.array([0.0, 6.0])[: len(objectives)]
    volumes = {}
    for searcher in (name, "random"):
        problems = [replace(PROBLEM, seed=seed, objectives=objectives) for seed in range(2)]
        trials = [run(searcher, problem, batches=10) for problem in problems]
        costs = [cost_matrix(some, objectives) for some in trials]
        volumes[searcher] = np.mean([hypervolume(some, reference) for some in costs])
    assert volumes[name] > volumes["random"]


def test_an_encoder_of_one_layer_can_be_bred():
    shape = replace(SHAPE, depth=1, global_layers=(0,))
    space = build_space(SpaceConfig(removable=(), elastic_heads=True, elastic_embed=True), shape)
    rng = np.random.default_rng(0)
    bred = [breed([space.largest(), space.smallest()], space, rng) for _ in range(20)]
    assert len(set(bred)) > 1
    assert all(space.contains(spec) for spec in bred)


def test_a_restart_of_opentuner_asks_for_one_era_at_most(monkeypatch):
    monkeypatch.setattr(opentuner_bandit, "_ERA", 64)
    whole = tell_late(build_searcher("opentuner", PROBLEM), 22)
    asked = []
    request = opentuner_bandit.TechniqueDriver.next_request
    monkeypatch.setattr(
        opentuner_bandit.TechniqueDriver, "next_request", lambda t: asked.append(t) or request(t)
    )
    searcher = build_searcher("opentuner", PROBLEM)
    tell_late(searcher, 20, recorded=whole)
    assert asked == []
    searcher.ask(8)
    assert len({id(tuner) for tuner in asked}) == len(searcher._tuners)


def test_a_bandit_without_a_database_requests_what_opentuner_does():
    """For as long as no member is bred from: OpenTuner draws those by their addresses."""
    choices = gene_choices(SPACE)
    costs = [random.Random(i).random() for i in range(50)]

    def requests(ask, report):
        random.seed(5)
        found = []
        while len(found) < len(costs):
            if (request := ask()) is not None:
                report(request, costs[len(found)])
                found.append(dict(request.configuration.data))
        return found

    random.seed(4)
    ours = TechniqueDriver(choices)
    theirs = original_tuner(choices)
    assert requests(ours.next_request, ours.report) == requests(
        theirs.get_next_desired_result,
        lambda request, cost: theirs.report_result(request, Result(time=cost)),
    )


def original_tuner(choices):
    tuningrunmain.init_logging = lambda: None
    arguments = argparse.ArgumentParser(parents=opentuner.argparsers()).parse_args(
        ["--no-dups", "--quiet", "--database=sqlite://", "--parallelism=1"]
    )
    manipulator = opentuner.ConfigurationManipulator()
    for name, count in choices.items():
        manipulator.add_parameter(opentuner.IntegerParameter(name, 0, count - 1))
    return TuningRunManager(
        DefaultMeasurementInterface(
            args=arguments, manipulator=manipulator, project_name="p", program_name="s"
        ),
        arguments,
    )


def test_the_weights_of_each_tuner_sum_to_one():
    for objectives in range(1, 6):
        weights = opentuner_bandit.weightings(objectives)
        np.testing.assert_allclose(weights.sum(1), 1)
        assert weights.min() >= 0.1


@pytest.mark.parametrize("name", LEARNING)
def test_a_smaller_batch_is_the_beginning_of_a_larger_one(name):
    few, many = (build_searcher(name, PROBLEM).ask(count) for count in (3, 8))
    assert many[:3] == few


def test_searchers_leave_the_working_folder_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("opentuner", batches=2)
    run("optuna", batches=2)
    assert os.listdir(tmp_path) == []


def test_a_small_space_is_enumerated_once_and_then_there_is_no_more():
    space = build_space(
        SpaceConfig(removable=(1,), mlp_fractions=(0.5, 1.0)),
        replace(SHAPE, depth=2, global_layers=(1,)),
    )
    subnets = list(iter_subnets(space))
    assert len(subnets) == len(set(subnets)) == space.num_subnets()
    assert all(space.contains(spec) for spec in subnets)
    for name in ("exhaustive", "random"):
        searcher = build_searcher(name, replace(PROBLEM, space=space))
        proposed = searcher.ask(3) + searcher.ask(1000)
        assert set(proposed) == set(subnets)
        assert len(proposed) == len(subnets)
        assert searcher.ask(5) == []


def test_genes_are_the_subnet():
    rng = np.random.default_rng(0)
    for _ in range(50):
        spec = SPACE.sample(rng)
        assert spec_of(genes_of(spec, SPACE), SPACE) == spec


def test_regularized_evolution_breeds_from_the_whole_front():
    searcher = build_searcher("regularized", replace(PROBLEM, population=32))
    rng = np.random.default_rng(0)
    specs = list(dict.fromkeys(SPACE.sample(rng) for _ in range(200)))[:32]
    searcher.tell([
        replace(make_trial(i, miou=0.5 + i / 100, params_m=5 + i / 10), spec=spec)
        for i, spec in enumerate(specs)
    ])  # fmt: skip
    costs = cost_matrix(searcher._alive, PROBLEM.objectives)
    places = []
    for _ in range(2000):
        drawn = np.sort(rng.choice(32, 8, replace=False))
        places.append(drawn[drawn_winner(costs[drawn], rng)])
    middle = np.mean([8 <= place < 24 for place in places])
    ends = np.mean([place in (0, 31) for place in places])
    assert middle > 0.4  # half of the front has half of the children
    assert ends < 0.1


def test_a_child_has_the_residual_width_of_either_parent():
    large, small = SPACE.largest(), SPACE.smallest()
    rng = np.random.default_rng(0)
    dims = [splice(large, small, 3, rng).embed_dim for _ in range(200)]
    assert 60 < dims.count(small.embed_dim) < 140
    assert set(dims) == {large.embed_dim, small.embed_dim}


def test_opentuner_scales_costs_by_subnets_and_not_by_two_references_alone():
    searcher = build_searcher("opentuner", PROBLEM)
    references = [
        replace(make_trial(0, miou=0.750, params_m=5.0), spec=SPACE.smallest()),
        replace(make_trial(1, miou=0.754, params_m=6.0), spec=SPACE.largest()),
    ]
    searcher.tell(references)
    specs = searcher.ask(8)
    mious = np.linspace(0.74, 0.76, 8)
    searcher.tell([
        replace(make_trial(i, miou=m, params_m=5.5), spec=s)
        for i, (s, m) in enumerate(zip(specs, mious, strict=True))
    ])  # fmt: skip
    assert searcher._span[0] == pytest.approx(0.02)
    assert searcher._ideal[0] == pytest.approx(-0.76)


@pytest.mark.parametrize("name", ["random", "nsga2"])
def test_random_draws_spread_over_sizes_where_asked(name):
    ends = [known_costs(spec, SPACE)["params_m"] for spec in (SPACE.smallest(), SPACE.largest())]
    shares = {}
    for sampling in ("genes", "params_m"):
        searcher = build_searcher(name, replace(PROBLEM, sampling=sampling))
        sizes = np.array([known_costs(s, SPACE)["params_m"] for s in searcher.ask(100)])
        quarter = np.histogram((sizes - ends[0]) / (ends[1] - ends[0]), np.linspace(0, 1, 5))[0]
        shares[sampling] = quarter / len(sizes)
    assert shares["params_m"].min() > 0.1
    assert shares["genes"].min() < 0.05
