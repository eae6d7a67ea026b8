"""Chunks that wait for evaluators: each reaches one that lives, whoever is lost in between."""

import asyncio
from types import SimpleNamespace

from supersam.search.work_queue import WorkQueue


def chunk(key):
    return SimpleNamespace(requests=[SimpleNamespace(key=key)])


def test_a_chunk_of_a_lost_evaluator_is_the_next_one():
    async def story():
        queue = WorkQueue()
        await queue.put([chunk("a"), chunk("b")])
        assert (await queue.take("one")).requests[0].key == "a"
        assert await queue.give_back("one") == "a"
        assert await queue.give_back("one") is None
        assert (await queue.take("two")).requests[0].key == "a"
        await queue.finish("two", "a")
        assert await queue.give_back("two") is None
        assert await queue.close() == 1  # b, which nobody took

    asyncio.run(story())


def test_an_evaluator_lost_while_it_waited_takes_no_chunk_with_it():
    async def story():
        queue = WorkQueue()
        asked_before = asyncio.create_task(queue.take("one"))
        await asyncio.sleep(0)
        assert await queue.give_back("one") is None
        asked_again = asyncio.create_task(queue.take("one"))  # it was started again
        await asyncio.sleep(0)
        await queue.put([chunk("a")])
        assert await asyncio.wait_for(asked_before, 5) is None
        assert (await asyncio.wait_for(asked_again, 5)).requests[0].key == "a"

    asyncio.run(story())


def test_closing_sends_home_who_waits():
    async def story():
        queue = WorkQueue()
        waiting = [asyncio.create_task(queue.take(name)) for name in ("one", "two")]
        await asyncio.sleep(0)
        assert await queue.close() == 0
        assert await asyncio.gather(*waiting) == [None, None]

    asyncio.run(story())
