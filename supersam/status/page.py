"""How a run or a search is shown: a line of a table, a page of its own, the same for machines."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from supersam.cluster.slurm.jobs import JobQueue
from supersam.config import StatusRun, UserError
from supersam.runtime.table import aligned
from supersam.status.diagnosis import Why
from supersam.status.record import Record

Shown = TypeVar("Shown", bound=Record)


class Page(ABC, Generic[Shown]):
    """A run or a search, as it is shown."""

    noun: ClassVar[str]
    """What it is: run or search, also the key of its folder in JSON."""
    columns: ClassVar[tuple[str, ...]]
    """Heads of the table's columns."""

    def __init__(self, record: Shown) -> None:
        self.record = record

    @abstractmethod
    def why(self) -> Why:
        """What happened to it, in one line."""

    @abstractmethod
    def row(self, root: Path) -> tuple[str, ...]:
        """Its line of the table of what is below `root`, a word for each column."""

    @abstractmethod
    def lines(self) -> list[str]:
        """What its page says below the first line."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """What the table says, for machines."""

    def detail(self) -> dict[str, Any]:
        """What its page says, for machines."""
        return self.summary()

    @abstractmethod
    def cancel(self) -> str:
        """End it. Returns what was done. Raises UserError where that is done otherwise."""

    @abstractmethod
    def follow(self, rank: int, queue: JobQueue) -> None:
        """Print the log of a rank as it grows. Raises UserError where that is done otherwise."""

    def show(self, options: StatusRun, queue: JobQueue) -> None:
        """Do what the command line asks. Raises UserError where the folder cannot be read."""
        if self.record.fault is not None:
            raise UserError(self.record.fault)
        if options.cancel:
            print(self.cancel())
        elif options.follow:
            self.follow(options.rank, queue)
        elif options.json_ and options.why:
            print(json.dumps({self.noun: str(self.record.folder), **asdict(self.why())}))
        elif options.json_:
            print(json.dumps(self.detail()))
        elif options.why:
            print(self.why().text)
        else:
            print("\n".join([f"{self.record.folder}: {self.why().text}", *self.lines()]))


def table(pages: Sequence[Page[Any]], root: Path) -> str:
    """A line for each of the pages, which are all of runs or all of searches."""
    return aligned([pages[0].columns, *(page.row(root) for page in pages)])
