"""What a source yields: an image with its objects, as annotated. Not yet checked or cut."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supersam.config import UserError
from supersam.data.rle import Runs


class SourceError(UserError, ValueError):
    """A source that is not laid out as its kind says."""


class BadInputError(UserError, ValueError):
    """One input image that cannot be used; the others can."""


@dataclass(frozen=True)
class Item:
    """An input image, listed but not read."""

    name: str
    """Relative to the source's root, parts joined by "/"."""
    num_bytes: int
    """About what it will take in a shard; decides how the inputs are shared out to shards."""
    detail: Any = None
    """What the source needs for reading it, besides the name. Pickles."""
    fault: str | None = None
    """Why it cannot be used, if that is known already."""
    first_frame: str | None = None
    """Name of the first image of its clip or stack; None where it stands alone."""


@dataclass(frozen=True)
class AnnotatedObject:
    """An object as its source states it."""

    runs: Runs
    rle: bytes | None = None
    """The source's own compressed run lengths of `runs`."""
    category: int = 0
    predicted_iou: float = 1.0
    stability_score: float = 1.0
    point: tuple[float, float] | None = None


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its objects as their source states them."""

    name: str
    image: bytes | NDArray[np.uint8]
    """An encoded file, or pixels (H, W) grey or (H, W, 3) RGB."""
    size: tuple[int, int]
    """(height, width), as annotated."""
    objects: Sequence[AnnotatedObject]
    content: int | None = None
    """`content_id` of the image as it lies in the source, where `image` was made from that."""


def list_files(folder: Path, suffixes: Iterable[str]) -> Iterator[tuple[str, int]]:
    """(path relative to `folder`, bytes) of the files below it with one of `suffixes`, sorted."""
    wanted = tuple(suffixes)
    found = []
    for here, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if name.lower().endswith(wanted) and not name.startswith("."):
                path = Path(here, name)
                found.append((path.relative_to(folder).as_posix(), path.stat().st_size))
    yield from sorted(found)


def read_file(path: Path) -> bytes:
    """The bytes of an input file; BadInputError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}") from error


def source_root(root: Path | None) -> Path:
    """`root`, which exists."""
    if root is None:
        raise SourceError("no source is named; give --root DIR, its folder")
    if not root.is_dir():
        raise SourceError(f"--root {root} is no folder; name that of the source")
    return root


def no_such_split(split: str, place: Path, splits: Iterable[str]) -> SourceError:
    """The error for a split that is not there, with those that are."""
    listed = ", ".join(sorted(splits)) or "none"
    return SourceError(f"no split {split!r} ({place}); --split takes one of: {listed}")
