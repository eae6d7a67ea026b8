"""A search on Ray Tune: a trial is a chunk of subnets, on an evaluator that stays alive.

The journal is the truth, so everything of Tune that keeps a second one is off: its checkpoints, its
loggers, its experiment state on shared storage.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher as TuneSearcher

from supersam.config import SearchRun
from supersam.runtime.signals import StopFlag
from supersam.search.journal import Trial
from supersam.search.objective import Chunk, SubnetObjective, prepare_process
from supersam.search.program import Program
from supersam.training.trained import WeightSource

_MAX_FAILURES = 3
"""Hosts or evaluators that may be lost under one chunk."""
_RESULT = "trials"

OnTrials = Callable[[list[Trial]], None]


@dataclass(frozen=True)
class Evaluators:
    """How many there are, and what each takes of its host."""

    count: int
    per_node: int
    cpus: float
    gpus: float


def plan_evaluators(asked: SearchRun) -> Evaluators:
    """One a GPU, or `evaluators_per_node`, else one a host, on the hosts that Ray has."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = min(int(node.get("GPU", 0)) for node in nodes) if asked.device != "cpu" else 0
    per_node = asked.cluster.evaluators_per_node or max(1, gpus)
    cpus = min(node["CPU"] for node in nodes) / per_node
    return Evaluators(per_node * len(nodes), per_node, cpus, gpus / per_node)


def evaluate_on_ray(
    asked: SearchRun,
    source: WeightSource,
    program: Program,
    *,
    stop: StopFlag,
    on_trials: OnTrials,
    evaluator: type | None = None,
) -> None:
    """Run the program to its end on the Ray that this process has joined.

    Where a stop is requested, chunks under way are finished and no other is begun. `evaluator`
    stands in for `Evaluator` where a benchmark wants one that takes a known time.
    """
    evaluators = plan_evaluators(asked)
    # All evaluators start at once; by default a searcher's trials start one after the other.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(evaluators.count)
    feed = _Feed(program, stop, on_trials)
    trainable = tune.with_resources(
        tune.with_parameters(
            evaluator or Evaluator,
            asked=asked,
            source=source,
            evaluators=evaluators,
            place=os.getcwd(),
        ),
        {"cpu": evaluators.cpus, "gpu": evaluators.gpus},
    )
    with tempfile.TemporaryDirectory(prefix="ss-tune-") as scratch:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=feed,
                num_samples=-1,
                max_concurrent_trials=evaluators.count,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,
                stop={"training_iteration": 1},
                failure_config=tune.FailureConfig(max_failures=_MAX_FAILURES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
                log_to_file=False,
            ),
        )
        results = tuner.fit()
    if feed.failure is not None:
        raise RuntimeError(feed.failure)
    for error in results.errors:
        raise error


class Evaluator(tune.Trainable):  # type: ignore[misc]
    """A `SubnetObjective` that Tune hands one chunk after another."""

    def setup(
        self,
        config: dict[str, Any],
        asked: SearchRun,
        source: WeightSource,
        evaluators: Evaluators,
        place: str,
    ) -> None:
        """Load the supernet and the images, once."""
        os.chdir(place)  # relative paths of the run start there
        prepare_process(asked, evaluators.per_node)
        self._objective = SubnetObjective(asked, source)
        self._chunk: Chunk = config["chunk"]

    def step(self) -> dict[str, Any]:
        """Evaluate the chunk."""
        return {_RESULT: self._objective.evaluate(self._chunk)}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another chunk without starting a process."""
        self._chunk = new_config["chunk"]
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a chunk is evaluated whole or again."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load."""


class _Feed(TuneSearcher):  # type: ignore[misc]
    """The program as Tune asks for it: next chunk, not yet, or no more."""

    def __init__(self, program: Program, stop: StopFlag, on_trials: OnTrials) -> None:
        super().__init__(metric=None, mode=None)
        self._program = program
        self._stop = stop
        self._on_trials = on_trials
        self.failure: str | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next chunk; None while others must finish first."""
        if self._stop or self.failure is not None or self._program.is_finished:
            return str(TuneSearcher.FINISHED)
        chunk = self._program.next_chunk()
        return None if chunk is None else {"chunk": chunk}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take the trials of a chunk."""
        if error or result is None or _RESULT not in result:
            self.failure = f"a chunk failed {_MAX_FAILURES + 1} times; see Ray's message above"
            return
        self._on_trials(self._program.complete(result[_RESULT]))

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune keeps a copy of its settings for a restore that is never done."""
        return dict, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Feed:
        """There is one journal."""
        return self

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is what lasts."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
