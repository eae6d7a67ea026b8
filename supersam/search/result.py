"""What a search has found, as its callers get it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from supersam.search.final_score import FinalScore
from supersam.search.journal import Trial
from supersam.search.plan import LARGEST


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    folder: Path
    front: tuple[Trial, ...]
    """The best subnets, at full resolution where `finished`."""
    references: dict[str, Trial]
    """largest, smallest, and pretrained where training began from given weights."""
    num_trials: int
    finished: bool
    """False where it was asked to stop before the end; the same command goes on."""
    stopped_by: int = 0
    """The signal that asked it to stop; 0 for none."""
    measured: Mapping[str, Trial] = field(default_factory=dict)
    """The front on images that no proposal saw, by `SubnetSpec.key`; empty where none are given."""
    measured_references: Mapping[str, Trial] = field(default_factory=dict)
    """The fixed subnets on those images, by name."""

    def comparisons(self) -> dict[str, FinalScore]:
        """What was measured on those images, each beside the largest subnet there."""
        largest = self.measured_references.get(LARGEST)
        return {name: FinalScore.of(trial, largest) for name, trial in self.measured.items()}
