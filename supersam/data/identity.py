"""Which photograph an image is, and which clip it belongs to: by content, else by name.

Images are the same where their source files hold the same bytes, whatever the files are called and
wherever they lie. A tile has the identity of the image that it was cut from. Shards of schema 1.0
hold names only: there, the name without a tile's suffix stands for the image.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from supersam.data.sample import Origin, Tile

_TILE = re.compile(r"#y\d+,x\d+$")
_END = r"(?:_(?:jpe?g|png)\.rf\.\w+)?\.\w+"  # an extension, perhaps behind an exporter's hash
_WORD = r"(?:video|vid|clip|sequence|seq|shot)"
# Names that state a clip and a frame. A running number alone does not: photographs have one too.
_CLIPS = tuple(
    re.compile(rf"((?:.*[/_. -])?{clip}){frame}{_END}", re.IGNORECASE)
    for clip, frame in (
        (r"[a-z-]+_\d{6}", r"_\d{6}_(?:leftImg8bit|gt)\w*"),  # Cityscapes: city_sequence_frame
        (r"(?P<city>[a-z-]+)/(?P=city)_\d{6}", r"_\d{6}"),
        (r"(?:\d{4}[a-z][a-z\d]|seq\d\d[a-z]{2})", r"_f?\d{3,6}(?:_L)?"),  # CamVid
        (r"frames?", r"[_ -]?\d+"),
        (r"[^/]*", r"_(?:mp4|avi|mov|mkv|webm)-\d+"),
        (rf"{_WORD}[_ -]?\d+\w*?", r"[/_-](?:\w*?[_-])?\d+"),
    )
)
_PAGE = re.compile(r"(.*\.tiff?)#\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Origins:
    """The sources of the N images of a folder of shards, in reading order."""

    source: NDArray[np.int64]
    """(N,) the source image of each; see `Origin`."""
    group: NDArray[np.int64]
    """(N,) the clip, stack or single source image of each; see `Origin`."""
    by_content: bool
    """Whether content tells sources apart; where shards do not hold it, names do."""

    @staticmethod
    def by_name(names: Sequence[str]) -> Origins:
        """Return the origins of images of which only the names are known."""
        groups = [origin_by_name(name).group for name in names]
        return Origins(name_ids(names), np.array(groups, np.int64), by_content=False)


@dataclass(frozen=True)
class SharedSources:
    """How far two collections of shards show the same source images."""

    images: int
    """Images of the first whose source image is in the second too."""
    by_content: bool
    """Whether content was compared; otherwise names were, so that neither result is certain."""

    @property
    def how(self) -> str:
        """How they were compared, in words."""
        if self.by_content:
            return "by content"
        return "by name (some of the shards do not hold their images' content: make them anew)"


class HasSources(Protocol):
    """A `ShardReader`, as far as it is needed here."""

    def sources(self, *, by_content: bool) -> Iterator[NDArray[np.int64] | None]:
        """The source image of each image, one array a shard; None where that is unknown."""


def shared_sources(first: Sequence[HasSources], second: Sequence[HasSources]) -> SharedSources:
    """Compare the source images of two collections of shards, for example evaluation and training.

    Content is compared where all shards hold it, so that renamed copies and tiles are recognized;
    otherwise names are. Of the second, one shard at a time is in memory: training sets are large.
    """
    shared = _count_shared(first, second, by_content=True)
    if shared is not None:
        return SharedSources(shared, by_content=True)
    shared = _count_shared(first, second, by_content=False)
    assert shared is not None  # every image has a name
    return SharedSources(shared, by_content=False)


def _count_shared(
    first: Sequence[HasSources], second: Sequence[HasSources], *, by_content: bool
) -> int | None:
    """Images of the first whose source is in the second too; None where a source is unknown."""
    ours = [np.zeros(0, np.int64)]
    for part in _sources(first, by_content):
        if part is None:
            return None
        ours.append(part)
    distinct, place = np.unique(np.concatenate(ours), return_inverse=True)
    ended = np.append(distinct, -1)  # no image's number: what is beyond the last meets it
    is_shared = np.zeros(len(distinct), np.bool_)
    for part in _sources(second, by_content):
        if part is None:
            return None
        found = np.searchsorted(distinct, part)
        is_shared[found[ended[found] == part]] = True
    return int(is_shared[place].sum())


def _sources(readers: Sequence[HasSources], by_content: bool) -> Iterator[NDArray[np.int64] | None]:
    return itertools.chain.from_iterable(each.sources(by_content=by_content) for each in readers)


def stable_id(name: str) -> int:
    """Return a 63-bit number for a name, the same on every machine."""
    return _number(name.encode())


def content_id(image: bytes | NDArray[Any]) -> int:
    """Return a 63-bit number for an image's content: its file's bytes, or shape and pixels."""
    if isinstance(image, bytes):
        return _number(image)
    head = f"{image.dtype.str} {image.shape} ".encode()
    return _number(head, np.ascontiguousarray(image).tobytes())


def source_name(name: str) -> str:
    """Return the name of the source image: `name` without a tile's suffix."""
    return _TILE.sub("", name)


def clip_of(name: str) -> str | None:
    """Return what frames of one clip, or pages of one stack, have in common in their names.

    None where the name does not state a clip for certain.
    """
    for pattern in (_PAGE, *_CLIPS):
        if match := pattern.fullmatch(source_name(name)):
            return match[1]
    return None


def origin_by_name(name: str) -> Origin:
    """Return the origin of an image whose content is unknown. Only its name tells it apart."""
    source = source_name(name)
    group = clip_of(name)
    return Origin(stable_id(source), stable_id(source if group is None else group))


def name_ids(names: Iterable[str]) -> NDArray[np.int64]:
    """Return the `stable_id` of each name without its tile's suffix, (N,)."""
    return np.array([stable_id(source_name(name)) for name in names], np.int64)


def cut_sides(tile: Tile) -> tuple[bool, bool, bool, bool]:
    """Return whether the tile ends inside its source at the left, top, right and bottom."""
    right, bottom = tile.x + tile.width, tile.y + tile.height
    return tile.x > 0, tile.y > 0, right < tile.source_width, bottom < tile.source_height


def cut_by_frame(boxes: NDArray[np.float32], tile: Tile) -> NDArray[np.bool_]:
    """Return which objects of a tile reach a side at which the source goes on, (M,).

    boxes: (M, 4) tight boxes (x, y, width, height), pixels of the tile.
    """
    x, y, width, height = boxes.T
    reaches = (x <= 0, y <= 0, x + width >= tile.width, y + height >= tile.height)
    touches = [side & cut for side, cut in zip(reaches, cut_sides(tile), strict=True)]
    cut: NDArray[np.bool_] = np.any(touches, axis=0)
    return cut


def _number(*parts: bytes) -> int:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest()[:8], "big") >> 1
