"""Evaluators and who keeps their books: what a user can mend ends a search in its words."""

from types import SimpleNamespace

import pytest

from supersam.config import SearchRun, UserError
from supersam.search import tuner
from tests.search.test_work_queue import chunk

ONE = SimpleNamespace(trial_id="one")


def test_an_evaluator_that_cannot_be_set_up_says_why(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise UserError("no image has an annotated object")

    monkeypatch.setattr(tuner, "SubnetEvaluator", refuse)
    monkeypatch.setattr(tuner, "prepare_process", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    evaluator = object.__new__(tuner.Evaluator)
    evaluators = SimpleNamespace(per_node=1, sharers=1)
    evaluator.setup({}, None, None, None, None, evaluators, str(tmp_path))
    assert evaluator.step() == {
        "trials": [], "kept_bytes": 0.0, "fault": "no image has an annotated object"
    }  # fmt: skip


def test_an_evaluator_says_what_ended_a_chunk(monkeypatch):
    def refuse(chunk):
        raise UserError("it diverged")

    monkeypatch.setattr(tuner.ray, "get", lambda reference: reference)
    evaluator = object.__new__(tuner.Evaluator)
    evaluator._trial_info = SimpleNamespace(trial_id="one")
    evaluator._queue = SimpleNamespace(take=SimpleNamespace(remote=chunk))
    evaluator.evaluate = refuse
    assert evaluator.step() == {"trials": [], "kept_bytes": 0.0, "fault": "it diverged"}


@pytest.fixture
def handler(monkeypatch):
    """With one chunk, "a", that an evaluator holds."""
    monkeypatch.setattr(tuner.ray, "get", lambda reference: reference)
    queue = SimpleNamespace(
        put=SimpleNamespace(remote=lambda chunks: None),
        give_back=SimpleNamespace(remote=lambda evaluator: "a"),
        close=SimpleNamespace(remote=lambda: 1),
    )
    chunks = [chunk("a")]
    plan = SimpleNamespace(next_chunk=lambda: chunks.pop() if chunks else None, is_finished=False)
    return tuner._ResultHandler(plan, queue, False, print)


def test_what_an_evaluator_says_ends_the_search(handler):
    said = {"trials": [], "kept_bytes": 0.0, "fault": "it diverged"}
    handler.on_trial_result(1, [], ONE, said)
    assert not handler.is_over
    handler.on_step_end(1, [])
    assert handler.is_over
    assert str(handler.fault) == "it diverged"


def test_a_chunk_that_loses_every_evaluator_ends_the_search(handler):
    for _ in range(3):
        handler.on_trial_recover(1, [], ONE)
        handler.on_step_end(1, [])
        assert handler.failure is None
    handler.on_trial_error(1, [], ONE)
    handler.on_step_end(1, [])
    assert handler.failure == "a chunk failed 4 times; see Ray's message above"
    assert handler.is_over


@pytest.mark.parametrize(
    ("asked", "gpus", "count", "each"),
    [
        (None, 0, 1, (16, 0, 1)),
        (3, 0, 3, (16 / 3, 0, 3)),
        (None, 4, 4, (4, 1, 1)),
        (3, 2, 3, (16 / 3, 1 / 2, 2)),
        (3, 4, 3, (16 / 3, 1, 1)),
        (8, 4, 8, (2, 1 / 2, 2)),
    ],
)
def test_evaluators_share_the_gpus_of_a_host(tmp_path, asked, gpus, count, each):
    run = SearchRun(run=tmp_path, cluster={"evaluators_per_node": asked})
    nodes = [{"CPU": 16.0, "GPU": float(gpus)}] * 2
    found = tuner.plan_evaluators(run, nodes)
    assert (found.count, found.per_node) == (2 * count, count)
    assert (found.cpus, found.gpus, found.sharers) == each
    assert found.per_node <= found.sharers * max(1, gpus)


def test_evaluators_on_cpus_leave_the_gpus_alone(tmp_path):
    nodes = [{"CPU": 16.0, "GPU": 4.0}]
    assert tuner.plan_evaluators(SearchRun(run=tmp_path, device="cpu"), nodes).gpus == 0
