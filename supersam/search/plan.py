"""A search as streams of chunks: references, proposals and the front; then a final measurement."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from supersam.config import SearchRun
from supersam.search.ask_tell import AskTell, cut_chunks
from supersam.search.costs import (
    keeps_limits,
    require_measured_feasible,
    require_one_device,
)
from supersam.search.evaluator import Chunk, EvalRequest, protocol_of
from supersam.search.inputs import SearchInputs
from supersam.search.journal import (
    LARGEST,
    PRETRAINED,
    SMALLEST,
    Journal,
    Stage,
    Trial,
    trial_key,
)
from supersam.search.pareto import pareto_front
from supersam.search.searchers import build_searcher, pose_problem
from supersam.space import SubnetSpec


class SearchPlan:
    """What to evaluate next, from the first reference to the last subnet of the front."""

    def __init__(
        self,
        search: SearchRun,
        inputs: SearchInputs,
        journal: Journal,
        *,
        is_own: bool = False,
        is_earlier: bool = False,
    ) -> None:
        """is_own: whether the journal is of this search alone, so that it holds its proposals.

        is_earlier: whether these may be of a version that proposed otherwise.
        """
        self._search = search
        self._recorded = [trial for trial in journal if trial.stage == "search"] if is_own else []
        self._is_earlier = is_earlier
        self._inputs = inputs
        self._journal = journal
        self._references = self._reference_requests(final=False)
        self._schedule: AskTell | None = None
        self._finals: list[EvalRequest] | None = None
        self._chunks: deque[Chunk] = deque()
        self._enqueue(self._references)
        self._advance()

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to evaluate."""
        return self._finals is not None and self._has_all(self._finals)

    def next_chunk(self) -> Chunk | None:
        """What an evaluator should do now; None until more is complete, or at the end."""
        if self._chunks:
            return self._chunks.popleft()
        return self._schedule.next_chunk() if self._schedule is not None else None

    def complete(self, trials: Iterable[Trial]) -> list[Trial]:
        """Write trials to the journal and go on. Returns those that are new.

        Raises UserError where latency or memory was measured on another kind of device than the
        journal's; nothing is written then.
        """
        trials = list(trials)
        if self._search.measured:
            require_one_device([*self._journal, *trials], self._search.measured)
        new = self._journal.append(trials)
        self._advance()
        return new

    def trials(self) -> list[Trial]:
        """The search's trials so far, in the order of their proposals."""
        return self._schedule.trials() if self._schedule is not None else []

    def references(self) -> dict[str, Trial]:
        """The reference subnets evaluated so far, as well as the front was."""
        final = self._finals is not None and self._has_all(self._finals)
        requests = self._reference_requests(final=final)
        return {
            request.searcher: self._journal[request.key]
            for request in requests
            if request.key in self._journal
        }

    def front(self) -> list[Trial]:
        """The best of all so far; at full resolution when the plan is finished."""
        candidates = self._candidates()
        if not self.is_finished or self._finals is None:
            return candidates
        finals = [
            self._journal[request.key] for request in self._finals if request.searcher != PRETRAINED
        ]
        feasible = [trial for trial in finals if self._is_feasible(trial)]
        return pareto_front(feasible, self._search.objectives)

    def _advance(self) -> None:
        if not self._has_all(self._references):
            return
        told = [self._journal[j.key] for j in self._references if j.searcher != PRETRAINED]
        if self._schedule is None:
            search, space = self._search, self._inputs.space
            fixed = {request.searcher: self._journal[request.key] for request in self._references}
            require_measured_feasible(
                search.constraints, smallest=fixed[SMALLEST], largest=fixed[LARGEST]
            )
            self._schedule = AskTell(
                search,
                build_searcher(search.searcher, pose_problem(search, space)),
                self._journal,
                protocol=self._protocol(),
                references=[t for t in told if self._is_feasible(t)],
                recorded=self._recorded,
                is_earlier=self._is_earlier,
            )
        self._schedule.advance()
        if self._schedule.is_finished and self._finals is None:
            front = [self._final_request(trial) for trial in self._candidates()]
            self._finals = [*front, *self._reference_requests(final=True)]
            self._enqueue(self._finals)

    def _candidates(self) -> list[Trial]:
        """The front of the search's own numbers; references may be on it."""
        fixed = [self._journal[j.key] for j in self._references if j.key in self._journal]
        named = [t for t in fixed if t.searcher != PRETRAINED and self._is_feasible(t)]
        return pareto_front([*self.trials(), *named], self._search.objectives)

    def _is_feasible(self, trial: Trial) -> bool:
        return keeps_limits(dict(trial.metrics), self._search.constraints)

    def _reference_requests(self, *, final: bool) -> list[EvalRequest]:
        space = self._inputs.space
        named = {LARGEST: space.largest(), SMALLEST: space.smallest()}
        if self._inputs.train_run.model.checkpoint is not None:
            named[PRETRAINED] = space.largest()
        requests = [
            self._request(spec, "reference", name, place, final=final)
            for place, (name, spec) in enumerate(named.items())
        ]
        can = {LARGEST, SMALLEST, *([PRETRAINED] if self._inputs.has_start else [])}
        return [
            request
            for request in requests
            if request.searcher in can or request.key in self._journal
        ]

    def _final_request(self, trial: Trial) -> EvalRequest:
        return self._request(trial.spec, "final", trial.searcher, trial.index, final=True)

    def _request(
        self, spec: SubnetSpec, stage: Stage, name: str, place: int, *, final: bool
    ) -> EvalRequest:
        protocol = self._protocol(final=final)
        return _request(spec, protocol, "final" if final else stage, name, (-1, place))

    def _protocol(self, *, final: bool = False) -> Mapping[str, Any]:
        inputs = self._inputs
        return protocol_of(self._search, weights=inputs.weights, data=inputs.data, final=final)

    def _enqueue(self, requests: list[EvalRequest]) -> None:
        self._chunks += _missing_chunks(requests, self._journal, self._search.chunk_size)

    def _has_all(self, requests: list[EvalRequest]) -> bool:
        return all(request.key in self._journal for request in requests)


class FinalPlan:
    """The front and the fixed subnets, measured once more on images that no proposal saw.

    What was measured lies in a journal of its own: the search's is left as it is.
    """

    def __init__(
        self,
        search: SearchRun,
        inputs: SearchInputs,
        journal: Journal,
        subnets: Iterable[Trial],
        references: Mapping[str, Trial],
    ) -> None:
        """journal: of final measurements; subnets: the front."""
        assert inputs.final is not None  # else there is nothing to measure on
        self._journal = journal
        weights, data = inputs.weights, inputs.final.id()
        self._protocol = protocol_of(search, weights=weights, data=data, final=True)
        self._requests = [self._request(trial) for trial in subnets]
        self._references = {name: self._request(trial) for name, trial in references.items()}
        wanted = [*self._requests, *self._references.values()]
        self._chunks = _missing_chunks(wanted, journal, search.chunk_size)

    @property
    def is_finished(self) -> bool:
        """Whether everything is measured."""
        return all(r.key in self._journal for r in (*self._requests, *self._references.values()))

    def next_chunk(self) -> Chunk | None:
        """What an evaluator should do now; None at the end."""
        return self._chunks.pop(0) if self._chunks else None

    def complete(self, trials: Iterable[Trial]) -> list[Trial]:
        """Write trials to the journal of final measurements. Returns those that are new."""
        return self._journal.append(trials)

    def front(self) -> dict[str, Trial]:
        """What is measured of the front, by the subnets' names (`SubnetSpec.key`)."""
        found = [self._journal[r.key] for r in self._requests if r.key in self._journal]
        return {trial.spec.key(): trial for trial in found}

    def references(self) -> dict[str, Trial]:
        """What is measured of the fixed subnets, by their names."""
        wanted = self._references.items()
        return {name: self._journal[r.key] for name, r in wanted if r.key in self._journal}

    def _request(self, trial: Trial) -> EvalRequest:
        place = trial.batch, trial.index
        return _request(trial.spec, self._protocol, "measured", trial.searcher, place)


def _request(
    spec: SubnetSpec,
    protocol: Mapping[str, Any],
    stage: Stage,
    searcher: str,
    place: tuple[int, int],
) -> EvalRequest:
    """place: batch, and place in it. The pretrained subnet has the weights before training."""
    if searcher == PRETRAINED:
        protocol = {**protocol, "weights": "before training"}
    return EvalRequest(
        key=trial_key(spec, protocol),
        spec=spec,
        stage=stage,
        searcher=searcher,
        batch=place[0],
        index=place[1],
    )


def _missing_chunks(requests: Iterable[EvalRequest], journal: Journal, size: int) -> list[Chunk]:
    """What the journal lacks, each subnet once; weights before training in chunks of their own."""
    distinct = {r.key: r for r in requests if r.key not in journal}
    pretrained = [r for r in distinct.values() if r.searcher == PRETRAINED]
    others = [r for r in distinct.values() if r.searcher != PRETRAINED]
    return [
        *cut_chunks(others, size),
        *cut_chunks(pretrained, size, before_training=True),
    ]
