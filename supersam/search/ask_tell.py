"""Which subnets are evaluated next: a searcher asked batch after batch, the journal as its memory.

Two batches are under way at a time, so that no evaluator waits for the slowest of a batch. Batch g
is proposed when batches up to g - 2 are told, whoever finished first: proposals are a function of
the search's settings alone. A search that was killed is therefore repeated from its journal, and
arrives at the same subnets as one that was not.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from supersam.config import SearchRun
from supersam.search.evaluator import Chunk, EvalRequest
from supersam.search.journal import Journal, Trial, trial_key
from supersam.search.pareto import Costs, cost_row
from supersam.search.prefix import path_of
from supersam.search.searchers import Searcher
from supersam.space import SubnetSpec

logger = logging.getLogger(__name__)

_UNDER_WAY = 2
"""Batches proposed and not told yet."""


@dataclass(frozen=True)
class _Batch:
    requests: tuple[EvalRequest, ...]
    seen: tuple[Costs, ...]
    """What earlier batches had at each rung, when this one was proposed."""


class AskTell:
    """The search as a state: what to evaluate now, and whether it is over."""

    def __init__(
        self,
        search: SearchRun,
        searcher: Searcher,
        journal: Journal,
        *,
        protocol: Mapping[str, Any],
        references: Sequence[Trial] = (),
        recorded: Sequence[Trial] = (),
        is_earlier: bool = False,
    ) -> None:
        """protocol: what the keys are made of; references: told before the first batch.

        recorded: proposals of this search that the journal holds already. Whole batches of them
        are not proposed anew where the searcher can do without.
        is_earlier: whether they are of a version whose searchers proposed otherwise. Their batches
        are taken as they are, and the searcher is told of them.
        """
        self._search = search
        self._searcher = searcher
        self._journal = journal
        self._protocol = protocol
        self._batches: list[_Batch] = []
        self._num_told = 0
        self._chunks: deque[Chunk] = deque()
        self._is_exhausted = False
        self._rung_costs: list[list[Costs]] = [[] for _ in search.protocol.rungs]
        self._recorded = _batches_of(recorded)
        self._is_earlier = is_earlier
        self._fixed = [trial.spec for trial in references] if is_earlier else []
        searcher.tell(references)
        self.advance()

    @property
    def is_finished(self) -> bool:
        """Whether every batch is told and no other is to come."""
        return self._num_told == len(self._batches) and not self._may_propose

    @property
    def num_proposed(self) -> int:
        """Subnets proposed so far."""
        return sum(len(batch.requests) for batch in self._batches)

    def trials(self) -> list[Trial]:
        """The trials so far, in the order of their proposals."""
        requests = (request for batch in self._batches for request in batch.requests)
        return [self._journal[request.key] for request in requests if request.key in self._journal]

    def next_chunk(self) -> Chunk | None:
        """What an evaluator should do now; None until more is complete, or at the end."""
        return self._chunks.popleft() if self._chunks else None

    @property
    def _may_propose(self) -> bool:
        return not self._is_exhausted and self.num_proposed < self._search.trials

    def advance(self) -> None:
        """Tell what the journal completes, and propose what may be proposed then."""
        while True:
            # In this order, or a journal that holds the batch already would tell it too early.
            if len(self._batches) - self._num_told < _UNDER_WAY and self._may_propose:
                self._propose()
            elif self._num_told == len(self._batches) or not self._tell_next():
                return

    def _as_earlier(self, specs: list[SubnetSpec]) -> list[SubnetSpec]:
        """The next batch: `specs`, or what an earlier version had proposed instead of them.

        A journal does not repeat a fixed subnet that was proposed, so those fill the gaps first.
        """
        recorded = self._recorded.get(len(self._batches), []) if self._is_earlier else []
        earlier = [trial.spec for trial in recorded]
        if set(earlier) <= set(specs):
            return specs
        gaps = self._search.population - len(earlier)
        fixed, self._fixed = self._fixed[: max(0, gaps)], self._fixed[max(0, gaps) :]
        return list(dict.fromkeys((*earlier, *fixed, *specs)))[: self._search.population]

    def _tell_next(self) -> bool:
        """Tell the oldest batch if it is complete."""
        requests = self._batches[self._num_told].requests
        if not all(request.key in self._journal for request in requests):
            return False
        trials = [self._journal[request.key] for request in requests]
        self._searcher.tell(trials)
        for trial in trials:
            for costs, (_, miou) in zip(self._rung_costs, trial.rungs, strict=False):
                costs.append(cost_row({**trial.metrics, "miou": miou}, self._search.objectives))
        self._num_told += 1
        return True

    def _propose(self) -> None:
        if self._replay():
            return
        # Whole batches, so that a search that is prolonged goes on as a longer one would have.
        specs = self._as_earlier(self._searcher.ask(self._search.population))
        if not specs:
            self._is_exhausted = True
            logger.warning("no subnet is left to propose after %d of %d trials",
                           self.num_proposed, self._search.trials)  # fmt: skip
            return
        left = self._search.trials - self.num_proposed
        requests = tuple(
            EvalRequest(
                key=trial_key(spec, self._protocol),
                spec=spec,
                stage="search",
                searcher=self._search.searcher,
                batch=len(self._batches),
                index=index,
            )
            for index, spec in enumerate(specs[:left])
        )
        columns = len(self._search.objectives)
        seen = tuple(np.array(c, np.float64).reshape(-1, columns) for c in self._rung_costs)
        self._batches.append(_Batch(requests, seen))
        missing = [request for request in requests if request.key not in self._journal]
        self._chunks += cut_chunks(missing, self._search.chunk_size, seen=seen)

    def _replay(self) -> bool:
        """Take the next batch from the journal where it is there whole. A restart is then short."""
        trials = self._recorded.get(len(self._batches), [])
        count = self._search.population
        if [trial.index for trial in trials] != list(range(count)):
            return False  # also where a fixed subnet was proposed, which is not written again
        if self._search.trials - self.num_proposed < count:
            return False
        if not self._searcher.replay([trial.spec for trial in trials]):
            return False
        requests = (
            EvalRequest(t.key, t.spec, "search", t.searcher, t.batch, t.index) for t in trials
        )
        self._batches.append(_Batch(tuple(requests), ()))
        return True


def _batches_of(trials: Sequence[Trial]) -> dict[int, list[Trial]]:
    """The trials of each batch, by its number, in the order of their proposals."""
    batches: dict[int, list[Trial]] = defaultdict(list)
    for trial in sorted(trials, key=lambda trial: (trial.batch, trial.index)):
        batches[trial.batch].append(trial)
    return dict(batches)


def cut_chunks(
    requests: Sequence[EvalRequest],
    size: int,
    *,
    seen: tuple[Costs, ...] = (),
    before_training: bool = False,
) -> list[Chunk]:
    """Requests in pieces of up to `size`, neighbours in the tree of common layers together."""
    ordered = sorted(requests, key=lambda request: path_of(request.spec))
    return [
        Chunk(tuple(ordered[first : first + size]), before_training, seen)
        for first in range(0, len(ordered), size)
    ]
