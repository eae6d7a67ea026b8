"""What a source yields: an image with its objects, as annotated. Not yet checked or cut."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supersam.config import UserError
from supersam.config.data import SourceConfig
from supersam.data.images import upright_size
from supersam.data.manifest import Counts
from supersam.data.rle import Runs
from supersam.data.sources.segmentation import Size, stated_size
from supersam.data.sources.values import BadValueError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")


class SourceError(UserError, ValueError):
    """A source that is not laid out as its kind says."""


class BadInputError(UserError, ValueError):
    """One input image that cannot be used; the others can."""


@dataclass(frozen=True, slots=True)  # there are as many as images
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
    size: Size
    """(height, width), as annotated."""
    objects: Sequence[AnnotatedObject]
    bad: Sequence[tuple[str, str]] = ()
    """Annotations that cannot be used: which, and why."""
    counts: Counts = field(default_factory=Counts)
    """What the reader left out or had to decide."""
    content: int | None = None
    """`content_id` of the image as it lies in the source, where `image` was made from that."""


class ObjectList:
    """The objects of one image as they are read; a bad annotation costs itself, not its image."""

    def __init__(self, config: SourceConfig) -> None:
        self._skips = config.on_bad == "skip"
        self.objects: list[AnnotatedObject] = []
        self.bad: list[tuple[str, str]] = []

    def add(self, which: str, read: Callable[[], AnnotatedObject]) -> None:
        """Append what `read` returns; BadInputError where it cannot and nothing is to be skipped.

        `which` names the annotation.
        """
        try:
            self.objects.append(read())
        except BadValueError as error:
            if not self._skips:
                raise BadInputError(f"{which}: {error}") from error
            self.bad.append((which, str(error)))


def settle_size(
    stated: Size | None, segmentations: Iterable[object], data: bytes, config: SourceConfig
) -> Size | None:
    """Return the (height, width) of the picture that the masks were drawn on.

    That is what the JSON states, with two exceptions for photographs with an EXIF orientation: run
    lengths have the size of the upright picture, or the user says so with `exif`. A JSON that
    states nothing leaves it to the run lengths, and so to the first of them.
    """
    drawn = [size for part in segmentations if (size := stated_size(part)) is not None]
    if stated is None:
        return drawn[0] if drawn else None
    if drawn and all(size == stated for size in drawn) or not drawn and config.exif != "upright":
        return stated  # the usual case: the image need not be looked at
    upright = upright_size(data)
    if upright is not None and upright == stated[::-1] and all(size == upright for size in drawn):
        return upright
    return stated


def list_files(folder: Path, suffixes: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield (path relative to `folder`, bytes) of the files with one of `suffixes`, sorted.

    Links to folders are followed, each folder once; hidden files and folders are left out. A link
    to nothing has 0 bytes: reading it says what is wrong.
    """
    wanted = tuple(suffixes)
    found, entered = [], {_identity(folder)}
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = _not_entered(here, folders, entered)
        for name in names:
            if name.lower().endswith(wanted) and not name.startswith("."):
                path = Path(here, name)
                found.append((path.relative_to(folder).as_posix(), file_bytes(path)))
    found.sort()
    yield from found


def _not_entered(here: str, names: list[str], entered: set[tuple[int, int]]) -> list[str]:
    """The folders to go on with: own ones before links, so that a link never hides a folder."""
    kept = []
    for name in sorted(names, key=lambda name: (os.path.islink(Path(here, name)), name)):
        if name.startswith(".") or name == "__MACOSX":
            continue
        identity = _identity(Path(here, name))
        if identity not in entered:
            entered.add(identity)
            kept.append(name)
    return kept


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def file_bytes(path: Path) -> int:
    """Return the size of a file; 0 where it cannot be asked for."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_file(path: Path) -> bytes:
    """Return the bytes of an input file; BadInputError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        if path.is_symlink() and not path.exists():
            raise BadInputError(
                f"{path.name} is a link to {os.readlink(path)}, which does not exist; mount the "
                "folder that it points into, or copy the file"
            ) from error
        raise BadInputError(f"{path.name} cannot be read: {error.strerror}") from error


def source_root(root: Path | None) -> Path:
    """Return `root`. Raises SourceError where it is not a folder."""
    if root is None:
        raise SourceError("no source is named; give --root DIR, its folder")
    if not root.is_dir():
        raise SourceError(f"--root {root} is not a folder; name the folder of the source")
    return root


def no_such_split(split: str, place: Path, splits: Iterable[str]) -> SourceError:
    """Return the error for a split that is not there, with those that are."""
    listed = ", ".join(sorted(name for name in splits if name == "." or name[0] != "."))
    remedy = f"--split takes one of: {listed}" if listed else "the folder has none of this layout"
    return SourceError(f"no split {split!r} ({place}); {remedy}")
