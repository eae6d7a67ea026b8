"""Where the chunks of a search wait for evaluators on many hosts, of which any may be lost.

Apart from `tuner`: it is an actor, in a process of its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from supersam.search.evaluator import Chunk


class WorkQueue:
    """Gives each chunk to one evaluator that lives. A Ray actor, called from every host."""

    def __init__(self) -> None:
        self._waiting: deque[Chunk] = deque()
        self._taken: dict[str, Chunk] = {}
        self._lives: Counter[str] = Counter()  # a lost evaluator comes back under the same name
        self._closed = False
        self._news = asyncio.Event()

    async def put(self, chunks: list[Chunk]) -> None:
        """Add chunks."""
        self._waiting += chunks
        self._news.set()

    async def take(self, evaluator: str) -> Chunk | None:
        """Return the next chunk, as soon as there is one; None when no other will come."""
        life = self._lives[evaluator]
        while not self._waiting and not self._closed:
            self._news.clear()
            await self._news.wait()
            if self._lives[evaluator] != life:
                return None  # the caller was lost meanwhile: a chunk would be lost with it
        if self._closed:
            return None
        self._taken[evaluator] = self._waiting.popleft()
        return self._taken[evaluator]

    async def finish(self, evaluator: str, key: str) -> None:
        """An evaluator delivered the chunk whose first job has that key."""
        if evaluator in self._taken and self._taken[evaluator].requests[0].key == key:
            del self._taken[evaluator]

    async def give_back(self, evaluator: str) -> str | None:
        """An evaluator was lost: its chunk is next. Returns its first key; None for none."""
        self._lives[evaluator] += 1
        chunk = self._taken.pop(evaluator, None)
        if chunk is None:
            return None
        self._waiting.appendleft(chunk)
        self._news.set()
        return chunk.requests[0].key

    async def close(self) -> int:
        """Give out no more. Returns how many chunks nobody has taken."""
        self._closed = True
        self._news.set()
        return len(self._waiting)
