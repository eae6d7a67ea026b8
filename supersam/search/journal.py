"""What was evaluated, one line a trial: append-only, keyed by content, safe to kill at any moment.

Everything else in a search's folder can be made again from this file and `search.json`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from supersam.config import UserError
from supersam.runtime.jsonl import append_lines, open_jsonl, read_jsonl
from supersam.space import SubnetSpec

logger = logging.getLogger(__name__)

Stage = Literal["reference", "search", "final", "measured"]
"""A fixed subnet to compare with, a searcher's proposal, the front at full resolution, or a subnet
of the front on images that no proposal saw."""
PRETRAINED, LARGEST, SMALLEST = "pretrained", "largest", "smallest"
"""Names of the fixed subnets that every search evaluates, as a trial's `searcher`."""
GroupSum = tuple[int, int, float]
"""Number of a group of images, objects in it, sum of their IoUs."""
Status = Literal["complete", "stopped", "infeasible"]
"""complete: seen on all images; stopped: given up after some (`num_images`); infeasible: not
evaluated, for a measured constraint."""
_DIGEST_LETTERS = 12


@dataclass(frozen=True)
class Trial:
    """One subnet's evaluation. Equal keys mean the same subnet, weights, data and protocol."""

    key: str
    """16 hex digits of everything that the numbers depend on; see `trial_key`."""
    spec: SubnetSpec
    stage: Stage
    status: Status
    metrics: Mapping[str, float]
    """By name: `params_m`, `flops_g`; unless infeasible `miou` with its 95 % interval `miou_lo`,
    `miou_hi`; where asked for `latency_ms`, `latency_iqr_ms`, `peak_mem_mib`."""
    num_images: int
    """Images behind `miou`: the fidelity. 0 where infeasible."""
    num_objects: int
    """Objects behind `miou`."""
    seconds: float
    """Time in the model and the scoring, this trial's share of what it shared with others."""
    searcher: str
    """Who proposed it; for a reference its name, such as `LARGEST`."""
    batch: int
    """Number of the proposal's batch; -1 for references and finals."""
    index: int
    """Its place in the batch. (batch, index) orders the proposals, whoever finished first."""
    step: int
    """Optimizer steps of the checkpoint; 0 for the weights before training."""
    host: str
    """Where it was evaluated."""
    resolution: Literal["logits", "original"] = "logits"
    """Where IoU is taken: on the model's mask logits (S / 4), or on the original image's pixels."""
    rungs: tuple[tuple[int, float], ...] = field(default=())
    """(images, mIoU on them) at each early-stopping decision, fewest first."""
    device: str = ""
    """Name of the processor: what is measured compares on the same one alone. Empty in journals
    that did not say it yet."""

    by_group: tuple[GroupSum, ...] = ()
    """Where measured on other images: for differences between subnets, group by group."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        if not self.by_group:
            del plain["by_group"]
        return {**plain, "spec": self.spec.to_dict(), "metrics": dict(self.metrics)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trial:
        """The inverse of `to_dict`. Raises ValueError or TypeError where this is not a trial.

        Entries of a front may also hold what was measured on other images: it is left out.
        """
        if values["status"] not in get_args(Status) or values["stage"] not in get_args(Stage):
            raise ValueError(f"unknown status {values['status']!r} or stage {values['stage']!r}")
        return cls(
            **{
                **{name: value for name, value in values.items() if name != "final"},
                "spec": SubnetSpec.from_dict(values["spec"]),
                "rungs": tuple((int(images), float(miou)) for images, miou in values["rungs"]),
                "by_group": tuple(
                    (int(group), int(count), float(total))
                    for group, count, total in values.get("by_group", ())
                ),
            }
        )


def trial_key(spec: SubnetSpec, protocol: Mapping[str, Any]) -> str:
    """The key of `spec` evaluated as `protocol` (weights, data, prompts, precision, ...) says."""
    text = json.dumps({"spec": spec.to_dict(), **protocol}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """The trials of a search's folder, in memory and on disk. One writer at a time.

    A trial is on disk when `append` returns. A line cut short by a kill, or damaged, is passed over
    with a warning: its subnet is evaluated again.
    """

    def __init__(self, path: Path) -> None:
        """Open or create. Raises UserError where another process writes to it."""
        self._path = path
        self._file = open_jsonl(path)
        self._lock()
        self._trials = {trial.key: trial for trial in read_journal(path)}

    def __contains__(self, key: str) -> bool:
        return key in self._trials

    def __getitem__(self, key: str) -> Trial:
        return self._trials[key]

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._trials.values())

    def __len__(self) -> int:
        return len(self._trials)

    def append(self, trials: Iterable[Trial]) -> list[Trial]:
        """Add trials, and wait for the disk. Returns those whose key is new."""
        new = [trial for trial in trials if trial.key not in self._trials]
        if new:
            append_lines(self._file, b"".join(_line(trial) for trial in new), durable=True)
            self._trials |= {trial.key: trial for trial in new}
        return new

    def close(self) -> None:
        """Let another process write."""
        os.close(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            if fault.errno in (errno.EACCES, errno.EAGAIN):
                os.close(self._file)
                raise UserError(
                    f"another search is writing to {self._path}; wait for it, end it, or choose "
                    "another --out DIR"
                ) from None
            logger.warning(
                "%s cannot be locked (%s); start no second search on it", self._path, fault
            )


def read_journal(path: Path) -> list[Trial]:
    """The trials of a journal, the first of each key, in the order they were written.

    Safe while a search writes to it.
    """
    trials: dict[str, Trial] = {}
    for trial in read_jsonl(path, _parse, warn=True):
        trials.setdefault(trial.key, trial)
    return list(trials.values())


def _line(trial: Trial) -> bytes:
    body = json.dumps(trial.to_dict(), allow_nan=False)
    return f'{{"sha256": "{_digest(body)}", "trial": {body}}}\n'.encode()


def _parse(values: dict[str, Any]) -> Trial:
    body = json.dumps(values["trial"], allow_nan=False)  # numbers come back letter by letter
    if _digest(body) != values["sha256"]:
        raise ValueError("its content is not what was written")
    return Trial.from_dict(values["trial"])


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:_DIGEST_LETTERS]
