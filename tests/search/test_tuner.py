"""Evaluators and who keeps their books: what a user can mend ends a search in its words."""

from types import SimpleNamespace

from supersam.config import UserError
from supersam.search import tuner
from tests.search.test_desk import chunk


def test_an_evaluator_that_cannot_be_set_up_says_why(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise UserError("no image has an annotated object")

    monkeypatch.setattr(tuner, "SubnetObjective", refuse)
    monkeypatch.setattr(tuner, "prepare_process", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    evaluator = object.__new__(tuner.Evaluator)
    evaluators = SimpleNamespace(per_node=1, sharers=1)
    evaluator.setup({}, None, None, None, evaluators, str(tmp_path))
    assert evaluator.step() == {
        "trials": [], "kept_bytes": 0.0, "fault": "no image has an annotated object"
    }  # fmt: skip


def test_an_evaluator_says_what_ended_a_chunk(monkeypatch):
    def refuse(chunk):
        raise UserError("it diverged")

    monkeypatch.setattr(tuner.ray, "get", lambda reference: reference)
    evaluator = object.__new__(tuner.Evaluator)
    evaluator._trial_info = SimpleNamespace(trial_id="one")
    evaluator._desk = SimpleNamespace(take=SimpleNamespace(remote=chunk))
    evaluator.evaluate = refuse
    assert evaluator.step() == {"trials": [], "kept_bytes": 0.0, "fault": "it diverged"}


def test_what_an_evaluator_says_ends_the_search(monkeypatch):
    monkeypatch.setattr(tuner.ray, "get", lambda reference: reference)
    desk = SimpleNamespace(
        put=SimpleNamespace(remote=lambda chunks: None),
        give_back=SimpleNamespace(remote=lambda evaluator: "a"),
        close=SimpleNamespace(remote=lambda: 1),
    )
    chunks = [chunk("a")]
    program = SimpleNamespace(
        next_chunk=lambda: chunks.pop() if chunks else None, is_finished=False
    )
    clerk = tuner._Clerk(program, desk, False, print)
    said = {"trials": [], "kept_bytes": 0.0, "fault": "it diverged"}
    clerk.on_trial_result(1, [], SimpleNamespace(trial_id="one"), said)
    assert not clerk.is_over
    clerk.on_step_end(1, [])
    assert clerk.is_over
    assert str(clerk.fault) == "it diverged"
