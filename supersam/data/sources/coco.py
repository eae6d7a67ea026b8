"""COCO: one JSON for all images of a split, in the places where public tools put them."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import unquote, urlsplit

from supersam.config.data import SourceConfig
from supersam.data.manifest import Counts
from supersam.data.sources.annotated import (
    IMAGE_SUFFIXES,
    AnnotatedImage,
    AnnotatedObject,
    BadInputError,
    Item,
    ObjectList,
    SourceError,
    file_bytes,
    list_files,
    no_such_split,
    read_file,
    settle_size,
    source_root,
)
from supersam.data.sources.segmentation import Size, has_mask, read_mask
from supersam.data.sources.values import (
    BadValueError,
    category,
    image_size,
    list_of,
    load_json,
    show,
)
from supersam.runtime.table import count

logger = logging.getLogger(__name__)

_BESIDE_IMAGES = "_annotations.coco.json"
_YES, _NO = (1, "1", "true", "True"), (0, "0", "false", "False", "", None)
_Record = dict[str, Any]


@dataclass(frozen=True)
class _Detail:
    """What the JSON says of one image."""

    image: _Record
    annotations: list[_Record]


def list_coco(config: SourceConfig) -> list[Item]:
    """Return the images of the split by name, each with its annotations."""
    root = source_root(config.root)
    path = _find_json(root, config.split)
    images, annotations, items = _load_index(path)
    repeated = {id for id, times in Counter(map(_id, images)).items() if times > 1}
    places = _Places(root, config.split)
    for image in images:
        own = annotations.pop(_id(image), []) if _id(image) not in repeated else []
        name, fault = places.find(image)
        if _id(image) in repeated:
            fault = f"image id {show(image['id'])} is used twice"
        num_bytes = file_bytes(root / name) + 200 * len(own)
        items.append(Item(name, num_bytes, _Detail(image, own), fault))
    lost = sum(len(own) for id, own in annotations.items() if id not in repeated)
    if lost:
        logger.warning(
            "%s of %s %s to no image listed there, such as one of image_id %s",
            count(lost, "annotation"),
            path,
            "belongs" if lost == 1 else "belong",
            next(show(own[0]["image_id"]) for id, own in annotations.items() if id not in repeated),
        )
    return _flag_repeated_names(sorted(items, key=lambda item: item.name))


def coco_splits(root: Path) -> set[str]:
    """Return the splits that have a JSON file below `root`."""
    named = (path.stem for path in (root / "annotations").glob("*.json"))
    splits = {stem.removeprefix("instances_") for stem in named}
    splits |= {path.parent.name for path in root.glob(f"*/{_BESIDE_IMAGES}")}
    if (root / _BESIDE_IMAGES).is_file():
        splits.add(".")
    return splits


def read_coco(config: SourceConfig, item: Item) -> AnnotatedImage:
    """Return one image; crowd regions only with `include_crowds`, else they are counted."""
    detail: _Detail = item.detail
    try:
        stated = image_size(detail.image, "in the JSON, its")
    except BadValueError as error:
        raise BadInputError(str(error)) from error
    masked = [each for each in detail.annotations if has_mask(each.get("segmentation"))]
    data = read_file(source_root(config.root) / item.name)
    size = settle_size(stated, (each["segmentation"] for each in masked), data, config)
    if size is None:
        raise BadInputError("its entry in the JSON has no height and width")
    found, crowds = ObjectList(config), 0
    for annotation in masked:
        if annotation.get("iscrowd") in _YES and not config.include_crowds:
            crowds += 1
            continue
        which = f"annotation id {show(annotation.get('id'))}"
        found.add(which, partial(_object, annotation, size))
    counts = Counts(crowds=crowds, without_mask=len(detail.annotations) - len(masked))
    return AnnotatedImage(item.name, data, size, found.objects, found.bad, counts)


def _find_json(root: Path, split: str) -> Path:
    """The JSON of a split, where COCO and the exports of annotation tools put it."""
    places = (
        root / "annotations" / f"instances_{split}.json",
        root / "annotations" / f"{split}.json",
        root / split / _BESIDE_IMAGES,
    )
    for path in places:
        if path.is_file():
            return path
    raise no_such_split(split, places[0], coco_splits(root))


class _Places:
    """Finds the file of an image: tools name it in several forms, and use several folders."""

    def __init__(self, root: Path, split: str) -> None:
        self._root = root
        self._folders = (split, f"images/{split}", "images", ".")

    def find(self, image: _Record) -> tuple[str, str | None]:
        """Return the name relative to the root, and the fault where there is no such file."""
        written = _written_name(image)
        if written is None:
            given = show(image.get("file_name"))
            return f"image id {show(image['id'])}", f"its file_name is {given}; a name is needed"
        for name in self._candidates(written):
            if os.path.isfile(self._root / name):
                return name, None
        if not written.isascii():
            for name in self._candidates(written):
                if (found := self._by_letters.get(_letters(name))) is not None:
                    return found, None
        # Reading it will say that it is not there, or is a link to nothing.
        return next(self._candidates(written), f"{self._folders[0]}/{written}"), None

    @cached_property
    def _by_letters(self) -> dict[str, str]:
        """Files whose names may be written in other characters; listed where one is not found."""
        names = (name for name, _ in list_files(self._root, IMAGE_SUFFIXES))
        return {_letters(name): name for name in names if not name.isascii()}

    def _candidates(self, written: str) -> Iterator[str]:
        """Names to look for: as written, then without leading folders that are not here."""
        if not PureWindowsPath(written).is_absolute() and not written.startswith("/"):
            yield from (_join(folder, written) for folder in self._folders[:1])
        windows = "\\" in written or PureWindowsPath(written).drive
        parts = (PureWindowsPath if windows else PurePosixPath)(written).parts
        parts = tuple(part for part in parts if part.strip("/\\") and part != "..")
        parts = parts[1:] if PureWindowsPath(written).drive else parts
        for start in range(len(parts)):
            for folder in self._folders:
                yield _join(folder, "/".join(parts[start:]))
            folders = (self._root / folder / parts[start] for folder in self._folders[:3])
            if any(os.path.isdir(folder) for folder in folders):
                return  # that folder is here, so another one is not meant


def _letters(name: str) -> str:
    """A name in one form of Unicode: an accented letter may be one character or two."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name)))


def _join(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


def _written_name(image: _Record) -> str | None:
    """What the JSON calls the file; LVIS has its address in COCO's folders alone."""
    name = image.get("file_name")
    if name is None and isinstance(image.get("coco_url"), str):
        parts = PurePosixPath(unquote(urlsplit(image["coco_url"]).path)).parts
        return "/".join(parts[-2:])
    return name if isinstance(name, str) and name.strip() else None


def _load_index(path: Path) -> tuple[list[_Record], dict[Any, list[_Record]], list[Item]]:
    """The images, the annotations by image id, and the entries of either that are neither."""
    try:
        record = load_json(path.read_bytes())
        if not isinstance(record, dict):
            raise BadValueError(f"holds {show(record)}; images and annotations are needed")
        for name in ("images", "annotations"):
            if name not in record:
                raise BadValueError(f"has no {name}; images and annotations are needed")
        images, bad = _records(record["images"], "image", "id", path)
        annotations, more = _records(record["annotations"], "annotation", "image_id", path)
        by_image: dict[Any, list[_Record]] = {_id(image): [] for image in images}
        for annotation in annotations:
            by_image.setdefault(_id(annotation, "image_id"), []).append(annotation)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except BadValueError as error:
        raise SourceError(f"{path} {error}") from error
    return images, by_image, [*bad, *more]


def _records(value: Any, what: str, key: str, path: Path) -> tuple[list[_Record], list[Item]]:
    """The objects of a list that have `key`, and the other entries, to be refused or skipped.

    Raises BadValueError that completes "FILE ..." where it is no list, or one of other things.
    """
    try:
        found = list_of(value, f"the list of {what}s")
    except BadValueError as error:
        raise BadValueError(f"is not a COCO JSON: {error}") from error
    good, bad = [], []
    for k, each in enumerate(found):
        fault = _entry_fault(each, key)
        if fault is None:
            good.append(each)
            continue
        name, is_annotation = f"{what} {k} of {path.name}", what == "annotation"
        bad.append(Item(name, 0, fault=f"it {fault}", is_annotation=is_annotation))
    if bad and not good:
        raise BadValueError(f"is not a COCO JSON: {what} 0 {_entry_fault(found[0], key)}")
    return good, bad


def _entry_fault(entry: Any, key: str) -> str | None:
    if not isinstance(entry, dict):
        return f"is {show(entry)}, not an object"
    if entry.get(key) is None or isinstance(entry[key], list | dict):
        return f"has no {key}"
    return None


def _id(record: _Record, key: str = "id") -> Any:
    """An id to be compared: 7 and "7" are one image."""
    value = record[key]
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _flag_repeated_names(items: list[Item]) -> list[Item]:
    counts = Counter(item.name for item in items)
    return [
        replace(item, fault=item.fault or "file_name is used twice")
        if counts[item.name] > 1
        else item
        for item in items
    ]


def _object(annotation: _Record, size: Size) -> AnnotatedObject:
    crowd = annotation.get("iscrowd")
    if crowd not in _YES and crowd not in _NO:
        raise BadValueError(f"iscrowd is {show(crowd)}; 0 or 1 is needed")
    runs, rle = read_mask(annotation["segmentation"], size)
    return AnnotatedObject(runs, rle, category=category(annotation.get("category_id")))
