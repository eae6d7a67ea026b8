"""Chunks that wait for evaluators: each reaches one that lives, whoever is lost in between."""

import asyncio
from types import SimpleNamespace

from supersam.config import UserError
from supersam.search import tuner
from supersam.search.tuner import _Desk


def chunk(key):
    return SimpleNamespace(jobs=[SimpleNamespace(key=key)])


def test_a_chunk_of_a_lost_evaluator_is_the_next_one():
    async def story():
        desk = _Desk()
        await desk.put([chunk("a"), chunk("b")])
        assert (await desk.take("one")).jobs[0].key == "a"
        assert await desk.give_back("one") == "a"
        assert await desk.give_back("one") is None
        assert (await desk.take("two")).jobs[0].key == "a"
        await desk.finish("two", "a")
        assert await desk.give_back("two") is None
        assert await desk.close() == 1  # b, which nobody took

    asyncio.run(story())


def test_an_evaluator_lost_while_it_waited_takes_no_chunk_with_it():
    async def story():
        desk = _Desk()
        asked_before = asyncio.create_task(desk.take("one"))
        await asyncio.sleep(0)
        assert await desk.give_back("one") is None
        asked_again = asyncio.create_task(desk.take("one"))  # it was started again
        await asyncio.sleep(0)
        await desk.put([chunk("a")])
        assert await asyncio.wait_for(asked_before, 5) is None
        assert (await asyncio.wait_for(asked_again, 5)).jobs[0].key == "a"

    asyncio.run(story())


def test_closing_sends_home_who_waits():
    async def story():
        desk = _Desk()
        waiting = [asyncio.create_task(desk.take(name)) for name in ("one", "two")]
        await asyncio.sleep(0)
        assert await desk.close() == 0
        assert await asyncio.gather(*waiting) == [None, None]

    asyncio.run(story())


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
