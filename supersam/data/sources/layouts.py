"""Each kind of source as two functions: list the inputs, cheaply; read one of them, anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from supersam.config.data import SourceConfig
from supersam.data.identity import clip_of, content_id, stable_id
from supersam.data.sources.annotated import (
    AnnotatedImage,
    BadInputError,
    Item,
    SourceError,
    read_file,
)
from supersam.data.sources.coco import list_coco, read_coco
from supersam.data.sources.extension import list_extension, read_extension
from supersam.data.sources.labelmap import list_labelmap, read_labelmap
from supersam.data.sources.recognition import suggest_layout
from supersam.data.sources.sa1b import list_sa1b, read_sa1b
from supersam.data.sources.samples import Samples, make_samples
from supersam.data.sources.synthetic import list_synthetic, read_synthetic
from supersam.data.sources.tiff import list_tiff, read_page_content, read_tiff
from supersam.data.sources.values import not_utf8, one_line
from supersam.runtime.extensions import is_extension

_List = Callable[[SourceConfig], list[Item]]
_Read = Callable[[SourceConfig, Item], AnnotatedImage]
_LAYOUTS: dict[str, tuple[_List, _Read]] = {
    "sa1b": (list_sa1b, read_sa1b),
    "coco": (list_coco, read_coco),
    "labelmap": (list_labelmap, read_labelmap),
    "tiff": (list_tiff, read_tiff),
    "synthetic": (list_synthetic, read_synthetic),
}


def _layout(config: SourceConfig) -> tuple[_List, _Read]:
    if is_extension(config.kind):
        return list_extension, read_extension
    return _LAYOUTS[config.kind]


def list_items(config: SourceConfig) -> list[Item]:
    """Return the inputs of a source in the order of their names. Raises SourceError."""
    try:
        return _list_items(config)
    except OSError as error:
        place = error.filename or config.root
        raise SourceError(
            f"{place} cannot be read: {error.strerror}; allow it to be read, or name another --root"
        ) from error


def _list_items(config: SourceConfig) -> list[Item]:
    try:
        items = _layout(config)[0](config)
    except SourceError as error:
        raise SourceError(f"{error}{suggest_layout(config)}") from error
    advice = suggest_layout(config) if all(item.fault is not None for item in items) else ""
    if len(items) == 0:
        remedy = advice or "; --source names another layout, --split another split"
        raise SourceError(
            f"no images of kind {config.kind!r} in {config.root}, split {config.split!r}{remedy}"
        )
    if advice:
        raise SourceError(f"{items[0].name}: {items[0].fault}; so it is with every image{advice}")
    return _note_first_frames([_printable(item) for item in items])


def read_samples(config: SourceConfig, item: Item) -> Samples:
    """Read, check and cut one input. Raises BadInputError."""
    if item.fault is not None:
        raise BadInputError(f"{item.name}: {item.fault}")
    try:
        image = _layout(config)[1](config, item)
        group = None if item.first_frame is None else _first_content(config, item.first_frame)
        return make_samples(image, config, group=group)
    except BadInputError as error:
        raise BadInputError(f"{item.name}: {error}") from error
    except OSError as error:
        raise BadInputError(f"{item.name}: it cannot be read: {error.strerror}") from error


def _printable(item: Item) -> Item:
    """The item, refused by a name that can be printed where its own is not UTF-8."""
    if not not_utf8(item.name):
        return item
    shown = one_line(item.name)
    fault = "the file's name is not UTF-8 and cannot be stored; rename the file"
    return replace(item, name=shown, detail=None, fault=fault)


def _note_first_frames(items: list[Item]) -> list[Item]:
    """Let the frames of a clip know its first one: its content stands for the clip."""
    first: dict[str, str] = {}
    noted = []
    for item in items:
        clip = clip_of(item.name)
        if clip is not None and item.fault is None:
            item = replace(item, first_frame=first.setdefault(clip, item.name))
        noted.append(item)
    return noted


@lru_cache(maxsize=256)
def _first_content(config: SourceConfig, name: str) -> int:
    """The content of the first frame of a clip; its name's number where it cannot be read."""
    assert config.root is not None  # generated images stand alone
    with contextlib.suppress(BadInputError):
        if config.kind == "tiff":
            return read_page_content(config, name)
        return content_id(read_file(config.root / name))
    return stable_id(name)
