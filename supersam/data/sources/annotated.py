"""What a source yields: an image with its objects, as annotated. Not yet checked or cut."""

from __future__ import annotations

import os
import posixpath
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supersam.config import UserError
from supersam.config.data import SourceConfig
from supersam.data.images import BadImageError, image_sizes, other_size
from supersam.data.manifest import Counts
from supersam.data.rle import Runs
from supersam.data.sources.segmentation import Size, stated_size
from supersam.data.sources.values import BadValueError, one_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")


class SourceError(UserError, ValueError):
    """A source that is not laid out as its kind says."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))  # names of files may hold anything


class BadInputError(UserError, ValueError):
    """One input image that cannot be used; the others can."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


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
    is_annotation: bool = False
    """Whether it is not an image but an annotation that belongs to none; it has a fault."""
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
    """Return the (height, width) of the picture that the masks were drawn on; None if unknown.

    That is what the JSON states, with two exceptions for photographs with an EXIF orientation: run
    lengths have the size of the upright picture, or the user says so with `exif`. A JSON that
    states nothing leaves it to the run lengths, and so to the first of them.

    A size that the image does not have, stored or upright, is refused here, before masks of that
    size are drawn: it may be any number. Raises BadInputError.
    """
    try:
        stored, upright = image_sizes(data)
        turned = upright if upright != stored else None
        size = _drawn_size(stated, segmentations, turned, config)
        if size is not None and size not in (stored, upright):
            raise other_size(stored, size)
    except BadImageError as error:
        raise BadInputError(str(error)) from error
    return size


def _drawn_size(
    stated: Size | None, segmentations: Iterable[object], turned: Size | None, config: SourceConfig
) -> Size | None:
    """The size that JSON and run lengths mean; `turned` is the upright one, if it is another."""
    drawn = [size for part in segmentations if (size := stated_size(part)) is not None]
    if stated is None:
        return drawn[0] if drawn else None
    if drawn and all(size == stated for size in drawn) or not drawn and config.exif != "upright":
        return stated
    is_upright = turned == stated[::-1] and all(size == turned for size in drawn)
    return turned if is_upright else stated


def list_files(folder: Path, suffixes: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield (path relative to `folder`, bytes) of the files with one of `suffixes`, sorted.

    Links to folders are followed, each folder once; hidden files and folders are left out. A link
    to nothing has 0 bytes: reading it says what is wrong. Raises OSError for a folder that may not
    be read: its images would be missing without a word.
    """
    wanted = tuple(suffixes)
    found, entered = [], {_identity(folder)}
    for here, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        folders[:] = _not_entered(here, folders, entered)
        for name in names:
            if name.lower().endswith(wanted) and not name.startswith("."):
                path = Path(here, name)
                found.append((path.relative_to(folder).as_posix(), file_bytes(path)))
    found.sort()
    yield from found


def _raise(error: OSError) -> None:
    raise error


def stem_key(name: str) -> str:
    """Return what an image and its annotation have in common: the name without its suffix.

    Two programs may write one letter with its accent as one character or as two.
    """
    stem = posixpath.splitext(name)[0]
    return stem if stem.isascii() else unicodedata.normalize("NFC", stem)


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
    except (OSError, ValueError):  # the latter where no file can have this name
        return 0


def read_file(path: Path) -> bytes:
    """Return the bytes of an input file; BadInputError where it cannot be read."""
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)  # a pipe would keep its reader waiting
        data = path.read_bytes() if is_file else b""
    except OSError as error:
        if path.is_symlink() and not path.exists():
            raise BadInputError(
                f"{path.name} is a link to {os.readlink(path)}, which does not exist; mount the "
                "folder that it points into, or copy the file"
            ) from error
        raise BadInputError(f"{path.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadInputError(f"{path.name} cannot be read: no file can have this name") from error
    if not is_file:
        raise BadInputError(f"{path.name} is a folder or a device; a file is needed")
    return data


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
