"""Chunks that wait for evaluators: each reaches one that lives, whoever is lost in between."""

import asyncio
from types import SimpleNamespace

from supersam.search.work_queue import WorkQueue


def chunk(key):
    return SimpleNamespace(jobs=[SimpleNamespace(key=key)])


def test_a_chunk_of_a_lost_evaluator_is_the_next_one():
    async def story():
        desk = WorkQueue()
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
        desk = WorkQueue()
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
        desk = WorkQueue()
        waiting = [asyncio.create_task(desk.take(name)) for name in ("one", "two")]
        await asyncio.sleep(0)
        assert await desk.close() == 0
        assert await asyncio.gather(*waiting) == [None, None]

    asyncio.run(story())
