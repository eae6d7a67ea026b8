"""A search under way: what it stands on, the evaluators that work on it, what is written."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, get_args

import numpy as np

from supersam.config import SearchRun
from supersam.config.files import FINAL_FILE, JOURNAL_FILE, LOGS
from supersam.runtime.device import choose_device
from supersam.runtime.distributed import World
from supersam.runtime.logging import setup_logging
from supersam.runtime.signals import StopFlag, stop_requested
from supersam.runtime.table import count
from supersam.search.evaluator import SubnetEvaluator, prepare_process
from supersam.search.folder import FORMAT, folder_format, prepare_folder, write_record
from supersam.search.front import SearchResult, write_front
from supersam.search.image_set import ImageSet
from supersam.search.inputs import SearchInputs, find_inputs
from supersam.search.journal import Journal, Status, Trial
from supersam.search.plan import FinalPlan, SearchPlan
from supersam.search.predictor import FEWEST, held_out_error
from supersam.search.ray.address import FindRay
from supersam.search.ray.session import joined_ray, local_ray
from supersam.search.tensorboard import TensorBoard

logger = logging.getLogger(__name__)
OnTrials = Callable[[list[Trial]], None]

_STOP_NOTICE = "stopping after the subnets that are being evaluated; Ctrl-C again to quit now"


def run_search(
    search: SearchRun, *, cluster: FindRay | None = None, stop: StopFlag | None = None
) -> SearchResult:
    """Search, from the beginning or from where the journal ends.

    Runs on the Ray that `cluster` finds, or on one of its own on this machine, or with `--cluster
    inline` in this process without Ray. `stop` is the flag of a caller that takes the signals
    already; by default they are taken once everything is checked. Raises UserError for what a user
    can mend; nothing is written then.
    """
    inputs = find_inputs(search)
    if cluster is None:
        choose_device(search.device)
    wanted = search.trials
    search = prepare_folder(search, inputs)
    setup_logging(World.single(), search.folder / LOGS / "search.log")
    if inputs.train_run.model.checkpoint is not None and not inputs.has_start:
        logger.warning("--model.checkpoint %s is gone: nothing pretrained to compare with",
                       inputs.train_run.model.checkpoint)  # fmt: skip
    if inputs.seen.seen:
        logger.warning("training saw the evaluation data: %s", inputs.seen.detail)
    if search.trials > wanted:
        logger.info("%d trials are done, and %d were asked for: nothing more is proposed; a larger "
                    "--trials goes on", search.trials, wanted)  # fmt: skip
    journal = Journal(search.folder / JOURNAL_FILE)
    try:
        with stop_requested(_STOP_NOTICE) if stop is None else nullcontext(stop) as flag:
            return _Session(search, inputs, journal, flag).run(cluster)
    finally:
        journal.close()


class _Session:
    """A search under way: its plan, the evaluators that work on it, and what is written."""

    def __init__(
        self, search: SearchRun, inputs: SearchInputs, journal: Journal, stop: StopFlag
    ) -> None:
        self._search = search
        self._inputs = inputs
        self._stop = stop
        self._started = time.time()
        self._measured: Journal | None = None
        self._final: FinalPlan | None = None
        known = len(journal)
        earlier = folder_format(search.folder) < FORMAT
        self._plan = SearchPlan(search, inputs, journal, is_own=True, is_earlier=earlier)
        self._tensorboard = TensorBoard(search, first_trial=len(self._plan.trials()))
        logger.info("%s in the journal; %s asked for", count(known, "subnet"),
                    count(search.trials, "trial"))  # fmt: skip

    def run(self, cluster: FindRay | None) -> SearchResult:
        """Evaluate what is left, and write the results, also where that fails."""
        try:
            self._evaluate(self._plan, self._inputs.selection, self._on_trials, cluster)
            final = self._begin_final()
            if final is not None and self._inputs.final is not None:
                self._evaluate(final, self._inputs.final, self._on_measured, cluster)
        finally:
            result = self._result()
            self._write(result)
            self._tensorboard.finish(self._plan.trials(), result)
            if self._measured is not None:
                self._measured.close()
        return result

    def _begin_final(self) -> FinalPlan | None:
        """The measurement on other images, once the search is over; None where none is due."""
        if self._inputs.final is None or not self._plan.is_finished:
            return None
        self._measured = Journal(self._search.folder / FINAL_FILE)
        front, references = self._plan.front(), self._plan.references()
        self._final = FinalPlan(self._search, self._inputs, self._measured, front, references)
        logger.info("measuring the front on %s", self._inputs.final)
        return self._final

    def _evaluate(
        self, work: SearchPlan | FinalPlan, images: ImageSet, on_trials: OnTrials,
        cluster: FindRay | None,
    ) -> None:  # fmt: skip
        if work.is_finished or self._stop:
            return
        place = self._search.cluster
        if cluster is None and place.cluster == "inline":
            self._evaluate_here(work, images, on_trials)
            return
        logger.info("joining Ray%s", "" if cluster is not None else ", starting on this machine")
        most = place.nodes or 1
        nodes = (place.min_nodes or most, most)
        ray = local_ray(self._search) if cluster is None else joined_ray(cluster, nodes=nodes)
        with ray:
            if self._stop:  # while Ray started: nothing is worth loading
                return
            from supersam.search.tuner import evaluate_on_ray  # Ray reads its environment only once

            evaluate_on_ray(
                self._search,
                self._inputs.source,
                work,
                images=images,
                stop=self._stop,
                on_trials=on_trials,
            )

    def _evaluate_here(
        self, work: SearchPlan | FinalPlan, images: ImageSet, on_trials: OnTrials
    ) -> None:
        prepare_process(self._search, 1)
        evaluator = SubnetEvaluator(self._search, self._inputs.source, images=images)
        logger.info("keeping up to %.2f GiB of layers' outputs", evaluator.cache_bytes / 2**30)
        while not self._stop and not work.is_finished:
            chunk = work.next_chunk()
            assert chunk is not None  # this is the only evaluator
            on_trials(work.complete(evaluator.evaluate(chunk)))

    def _on_measured(self, new: list[Trial]) -> None:
        assert self._final is not None  # its trials arrive
        done, front = len(self._final.front()), len(self._plan.front())
        logger.info("%d of %d subnets of the front are measured on the final data", done, front)

    def _on_trials(self, new: list[Trial]) -> None:
        trials, front = self._plan.trials(), self._plan.front()
        self._tensorboard.show(trials, front, self._plan.references())
        write_front(self._search.folder, front)
        logger.info("%d of %d trials, %d on the front",
                    len(trials), self._search.trials, len(front))  # fmt: skip

    @property
    def _is_measured(self) -> bool:
        """Whether nothing is left to measure on the final data."""
        return self._inputs.final is None or (self._final is not None and self._final.is_finished)

    def _result(self) -> SearchResult:
        return SearchResult(
            folder=self._search.folder,
            front=tuple(self._plan.front()),
            references=self._plan.references(),
            num_trials=len(self._plan.trials()),
            finished=self._plan.is_finished and self._is_measured,
            measured={} if self._final is None else self._final.front(),
            measured_references={} if self._final is None else self._final.references(),
            stopped_by=self._stop.number,
        )

    def _write(self, result: SearchResult) -> None:
        status = Counter(trial.status for trial in self._plan.trials())
        write_front(self._search.folder, result.front, result.comparisons())
        results = {
            "finished": result.finished,
            "num_trials": result.num_trials,
            "status": {name: status[name] for name in get_args(Status)},
            "seconds": time.time() - self._started,
            "front": [trial.key for trial in result.front],
            "references": {name: trial.to_dict() for name, trial in result.references.items()},
            "predictor": self._predictor_error(),
            "final_references": {
                name: trial.to_dict() for name, trial in result.measured_references.items()
            },
        }
        write_record(self._search, self._inputs, results)

    def _predictor_error(self) -> dict[str, Any] | None:
        complete = [trial for trial in self._plan.trials() if trial.status == "complete"]
        if len(complete) < FEWEST:
            return None
        miou = np.array([trial.metrics["miou"] for trial in complete])
        specs = [trial.spec for trial in complete]
        return asdict(held_out_error(self._inputs.space, specs, miou))
