"""Which images a search selects subnets on, and on which others the front is measured. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from supersam.config import SearchRun, TrainRun, UserError
from supersam.data.identity import shared_sources
from supersam.data.manifest import read_manifest
from supersam.data.shards import ShardReader
from supersam.runs.folder import validation_folders
from supersam.runs.seen_data import data_id

_SEED = 0


@dataclass(frozen=True)
class ImageSet:
    """Images of some folders of shards: all, those kept aside for the end, or the others."""

    folders: tuple[Path, ...]
    aside: float | None = None
    """Share of the sources (clips, stacks, single images with all their tiles) kept aside."""
    is_aside: bool = False
    """Whether the images kept aside are meant; else the others."""

    def places(self) -> NDArray[np.int64]:
        """(N,) which images of the folders these are, in reading order."""
        groups = self.groups()
        if self.aside is None:
            return np.arange(len(groups))
        chosen = np.isin(groups, _kept_aside(groups, self.aside))
        return np.flatnonzero(chosen == self.is_aside)

    def groups(self) -> NDArray[np.int64]:
        """The group of each image of the folders, (M,); see `Origin.group`."""
        return np.concatenate([ShardReader(folder).origins().group for folder in self.folders])

    def id(self) -> str:
        """16 hex digits of the images' content."""
        whole = data_id(self.folders)
        if self.aside is None:
            return whole
        return hashlib.sha256(f"{whole} {self.aside} {self.is_aside}".encode()).hexdigest()[:16]

    def __str__(self) -> str:
        folders = ", ".join(map(str, self.folders))
        if self.aside is None:
            return folders
        share = self.aside if self.is_aside else 1 - self.aside
        return f"{folders}, {len(self.places())} images of {share:.0%} of the sources"


def selection_set(search: SearchRun, train_run: TrainRun) -> ImageSet:
    """The images that the proposals of a search are judged on. Raises UserError."""
    folders = tuple(search.data or validation_folders(train_run))
    if not folders:
        raise UserError(f"{search.run} has no validation set; name held-out shards with --data DIR")
    _require_shards(folders)
    found = ImageSet(folders, search.final_share)
    if search.final_share is not None and len(np.unique(found.groups())) < 2:
        raise UserError(
            f"--final-share {search.final_share:g} keeps whole sources aside, and {folders[0]} has "
            "one alone; name other shards with --final-data DIR"
        )
    return found


def final_set(search: SearchRun, selection: ImageSet) -> ImageSet | None:
    """The images that no proposal sees; None where none are asked for.

    Raises UserError where they are not apart from those of the selection.
    """
    if search.final_share is not None:
        return ImageSet(selection.folders, search.final_share, is_aside=True)
    if not search.final_data:
        return None
    _require_shards(search.final_data)
    shared = shared_sources(_readers(search.final_data), _readers(selection.folders))
    if shared.images > 0:
        raise UserError(
            f"--final-data shares {shared.images} images with the data of the search, compared "
            f"{shared.how}; name shards of other images, or keep some aside with --final-share 0.5"
        )
    return ImageSet(search.final_data)


def _kept_aside(groups: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """At least one group, and never all; the same on every machine."""
    distinct = np.unique(groups)
    count = min(max(1, round(share * len(distinct))), len(distinct) - 1)
    return np.random.default_rng(_SEED).permutation(distinct)[:count]


def _readers(folders: Sequence[Path]) -> list[ShardReader]:
    return [ShardReader(folder) for folder in folders]


def _require_shards(folders: tuple[Path, ...]) -> None:
    for folder in folders:
        read_manifest(folder)
    whole = [folder.resolve() for folder in folders]
    for place, folder in enumerate(whole):
        if folder in whole[:place]:
            raise UserError(
                f"the evaluation data name {folders[place]} twice, so that its images would count "
                "double; name each folder once"
            )
