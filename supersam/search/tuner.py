"""A search on Ray Tune: each Tune trial is an evaluator that stays, each of its steps a chunk.

Tune places the evaluators, starts lost ones again and says what failed. With a trial for every
chunk and `reuse_actors`, Tune hands a finished actor to the next trial and ends the one that was
being started for it: where a start takes longer than a chunk, one evaluator did all the work.

The journal is the truth, so everything of Tune that keeps a second one is off: its checkpoints, its
loggers, its experiment state on shared storage.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.result import HOSTNAME
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from supersam.config import SearchRun, UserError
from supersam.runs.weights import WeightSource
from supersam.runtime.scratch import scratch_folder
from supersam.runtime.signals import StopFlag
from supersam.runtime.table import count
from supersam.search.evaluator import Chunk, SubnetEvaluator, prepare_process
from supersam.search.image_set import ImageSet
from supersam.search.journal import Trial
from supersam.search.work_queue import WorkQueue

logger = logging.getLogger(__name__)

_MAX_FAILURES = 3
"""Times that one evaluator is started again, and that one chunk may fail."""
_TRIALS, _KEPT, _FAULT = "trials", "kept_bytes", "fault"

OnTrials = Callable[[list[Trial]], None]


class Work(Protocol):
    """A stream of chunks: a `SearchPlan` or a `FinalPlan`."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to evaluate."""

    def next_chunk(self) -> Chunk | None:
        """What an evaluator should do now; None until more is complete, or at the end."""

    def complete(self, trials: Iterable[Trial]) -> list[Trial]:
        """Take results. Returns those that are new."""


@dataclass(frozen=True)
class Evaluators:
    """How many there are, and what each takes of its host."""

    count: int
    per_node: int
    cpus: float
    gpus: float

    sharers: int
    """Evaluators in the memory of one host, or of one GPU."""


def plan_evaluators(search: SearchRun, nodes: Sequence[Mapping[str, float]]) -> Evaluators:
    """One a GPU, or `evaluators_per_node`, else one a host; none takes more than one GPU.

    nodes: for each host, how many of `CPU` and `GPU` Ray has there.
    """
    gpus = min(int(node.get("GPU", 0)) for node in nodes) if search.device != "cpu" else 0
    per_node = search.cluster.evaluators_per_node or max(1, gpus)
    sharers = math.ceil(per_node / gpus) if gpus else per_node
    cpus = min(node["CPU"] for node in nodes) / per_node
    return Evaluators(per_node * len(nodes), per_node, cpus, 1 / sharers if gpus else 0.0, sharers)


def evaluate_on_ray(
    search: SearchRun,
    source: WeightSource,
    plan: Work,
    *,
    images: ImageSet,
    stop: StopFlag,
    on_trials: OnTrials,
    evaluator: type | None = None,
) -> None:
    """Carry the plan out on the Ray that this process has joined.

    Where a stop is requested, chunks under way are finished and no other is begun. `evaluator`
    stands in for `Evaluator` where a benchmark wants one that takes a known time.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    evaluators = plan_evaluators(search, nodes)
    logger.info("loading the supernet and the images: %s on %s",
                count(evaluators.count, "evaluator"), count(len(nodes), "host"))  # fmt: skip
    # All evaluators start at once; by default one after the other.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(evaluators.count)
    queue: Any = (
        ray.remote(num_cpus=0)(WorkQueue).options(scheduling_strategy=_on_this_node()).remote()
    )
    handler = _ResultHandler(plan, queue, stop, on_trials)
    parameters = {"queue": queue, "search": search, "source": source,
                  "images": images, "evaluators": evaluators}  # fmt: skip
    trainable = tune.with_resources(
        tune.with_parameters(evaluator or Evaluator, place=os.getcwd(), **parameters),
        {"cpu": evaluators.cpus, "gpu": evaluators.gpus},
    )
    with scratch_folder("ss-tune-") as scratch:
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(num_samples=evaluators.count),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(scratch),
                stop=_Stopper(handler),
                callbacks=[handler],
                failure_config=tune.FailureConfig(max_failures=_MAX_FAILURES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
                log_to_file=False,
            ),
        ).fit()
    if handler.fault is not None:
        raise handler.fault
    if handler.failure is not None or not (plan.is_finished or stop):
        raise RuntimeError(handler.failure or "every evaluator was lost; see Ray's messages above")


class Evaluator(tune.Trainable):  # type: ignore[misc]  # Ray is untyped
    """A `SubnetEvaluator` that takes one chunk after another from the work queue."""

    cache_bytes = 0.0
    _fault = ""
    """What a user can mend, found here: told with a step, for Tune would only start another."""

    def setup(
        self,
        config: dict[str, Any],
        queue: Any,
        search: SearchRun,
        source: WeightSource,
        images: ImageSet,
        evaluators: Evaluators,
        place: str,
    ) -> None:
        """Load the supernet and the images, once."""
        os.chdir(place)  # relative paths of the run start there
        self._queue = queue
        prepare_process(search, evaluators.per_node)
        try:
            self._objective = SubnetEvaluator(
                search, source, images=images, sharers=evaluators.sharers
            )
            self.cache_bytes = self._objective.cache_bytes
        except UserError as fault:
            self._fault = str(fault)

    def step(self) -> dict[str, Any]:
        """Evaluate the next chunk; the last step has none."""
        trials: list[Trial] = []
        if not self._fault:
            chunk: Chunk | None = ray.get(self._queue.take.remote(self.trial_id))
            try:
                trials = [] if chunk is None else self.evaluate(chunk)
            except UserError as fault:
                self._fault = str(fault)
        return {_TRIALS: trials, _KEPT: self.cache_bytes, _FAULT: self._fault}

    def evaluate(self, chunk: Chunk) -> list[Trial]:
        """The trials of a chunk."""
        return self._objective.evaluate(chunk)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: a chunk is evaluated whole or again."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load nothing."""


class _ResultHandler(tune.Callback):  # type: ignore[misc]  # Ray is untyped
    """Between Tune and the plan, in the driver: results in, chunks out."""

    def __init__(self, plan: Work, queue: Any, stop: StopFlag, on_trials: OnTrials) -> None:
        self._plan = plan
        self._queue = queue
        self._stop = stop
        self._on_trials = on_trials
        self._under_way = 0
        self._closed = False
        self._failures: Counter[str] = Counter()
        self._heard: set[str] = set()
        self.failure: str | None = None
        self.fault: UserError | None = None
        """What a user can mend; ends the search."""
        self._hand_out()

    @property
    def is_over(self) -> bool:
        """Whether no evaluator has anything left to deliver."""
        return self._closed and self._under_way == 0

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        """Write what an evaluator delivered, and hand out what follows from it."""
        if result[_FAULT]:
            self.fault = UserError(result[_FAULT])
            self._give_back(trial)
            return
        if trial.trial_id not in self._heard:
            self._heard.add(trial.trial_id)
            logger.info("an evaluator on %s keeps up to %.2f GiB of layers' outputs",
                        result[HOSTNAME], result[_KEPT] / 2**30)  # fmt: skip
        found: list[Trial] = result[_TRIALS]
        if not found:
            return
        self._queue.finish.remote(trial.trial_id, found[0].key)
        self._under_way -= 1
        try:
            self._on_trials(self._plan.complete(found))
        except UserError as fault:  # Tune would bury it under a traceback of its own
            self.fault = fault
        self._hand_out()

    def on_trial_recover(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any
    ) -> None:
        """An evaluator was lost and will be started again: others take its chunk meanwhile."""
        self._give_back(trial)

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any
    ) -> None:
        """An evaluator was lost for good."""
        self._give_back(trial)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **_: Any) -> None:
        """Close when there is no more to do, or when a stop is requested."""
        if not self._closed and (
            self._stop or self.failure or self.fault or self._plan.is_finished
        ):
            self._under_way -= ray.get(self._queue.close.remote())
            self._closed = True

    def _hand_out(self) -> None:
        chunks = list(iter(self._plan.next_chunk, None))
        if chunks and not self._closed:
            self._under_way += len(chunks)
            self._queue.put.remote(chunks)

    def _give_back(self, trial: TuneTrial) -> None:
        key = ray.get(self._queue.give_back.remote(trial.trial_id))
        if key is None:
            return
        self._failures[key] += 1
        if self._failures[key] > _MAX_FAILURES:
            self.failure = f"a chunk failed {self._failures[key]} times; see Ray's message above"
        if self._closed:
            self._under_way -= 1

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune keeps a copy of its settings for a restore that is never done."""
        return dict, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _ResultHandler:
        """There is one journal."""
        return self


class _Stopper(tune.Stopper):  # type: ignore[misc]  # Ray is untyped
    """Ends all evaluators when the result handler has everything."""

    def __init__(self, handler: _ResultHandler) -> None:
        self._handler = handler

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """An evaluator that got no chunk is done."""
        return not result[_TRIALS]

    def stop_all(self) -> bool:
        """Whether the rest need not be waited for."""
        return self._handler.is_over


def _on_this_node() -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
