"""SA-1B: root/split/*.jpg beside *.json, one JSON per image. Split "." is the root itself."""

from __future__ import annotations

import posixpath
import sys
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from supersam.config.data import SourceConfig
from supersam.data.manifest import Counts
from supersam.data.sources.annotated import (
    IMAGE_SUFFIXES,
    AnnotatedImage,
    AnnotatedObject,
    BadInputError,
    Item,
    ObjectList,
    list_files,
    no_such_split,
    read_file,
    settle_size,
    source_root,
    stem_key,
)
from supersam.data.sources.segmentation import Size, has_mask, read_mask
from supersam.data.sources.values import (
    BadValueError,
    category,
    image_size,
    list_of,
    load_json,
    number,
    show,
)

_LARGEST_SCORE = 1e6
"""Estimates may leave 0 to 1; a number beyond any estimate is another one, or not a float32."""


def list_sa1b(config: SourceConfig) -> list[Item]:
    """Return every image and every JSON file below the split's folder, paired by their stems."""
    root = source_root(config.root)
    folder = root / config.split
    if not folder.is_dir():
        splits = [path.name for path in root.iterdir() if path.is_dir()]
        if any(path.suffix.lower() in IMAGE_SUFFIXES for path in root.iterdir()):
            splits.append(".")
        raise no_such_split(config.split, folder, splits)
    prefix = PurePosixPath(config.split)
    pairs: dict[str, dict[str, int]] = {}  # text: paths of 11 million images take gigabytes
    for listed, num_bytes in list_files(folder, (*IMAGE_SUFFIXES, ".json")):
        name = str(prefix / listed)
        stem = stem_key(name)
        pairs.setdefault(stem, {})[_part(stem, name)] = num_bytes
    ordered = sorted(pairs.items(), key=lambda pair: pair[0].split("/"))
    return [_item(stem, parts) for stem, parts in ordered]


def read_sa1b(config: SourceConfig, item: Item) -> AnnotatedImage:
    """Return one image and the annotations of the JSON beside it."""
    path = source_root(config.root) / item.name
    json_path = source_root(config.root) / _whole_name(stem_key(item.name), item.detail)
    try:
        stated, annotations = _read_record(read_file(json_path))
    except BadValueError as error:
        raise BadInputError(f"{json_path.name} {error}") from error
    data = read_file(path)
    masked = [each for each in annotations if not isinstance(each, dict) or _is_masked(each)]
    parts = [each.get("segmentation") for each in masked if isinstance(each, dict)]
    size = settle_size(stated, parts, data, config)
    if size is None:
        lack = "no mask of a readable size" if masked else "no mask"
        raise BadInputError(f"{json_path.name} states no size of the image and has {lack}")
    found = ObjectList(config)
    for k, annotation in enumerate(annotations):
        if not isinstance(annotation, dict) or _is_masked(annotation):
            found.add(f"annotation {k} of {json_path.name}", partial(_object, annotation, size))
    counts = Counts(without_mask=len(annotations) - len(masked))
    return AnnotatedImage(item.name, data, size, found.objects, found.bad, counts)


def _item(stem: str, parts: dict[str, int]) -> Item:
    """The image and the JSON of a stem, from the parts that `_part` made of their names."""
    texts = sorted(part for part in parts if part.lower().endswith(".json"))
    images = sorted(parts.keys() - {*texts})
    total = sum(parts.values())
    if len(images) == 0:
        name = _whole_name(stem, texts[0])
        return Item(name, total, fault=f"no image beside {posixpath.basename(name)}")
    name = _whole_name(stem, images[0])
    for kind, found in (("images", images), ("JSON files", texts)):
        if len(found) > 1:
            listed = ", ".join(PurePosixPath(_whole_name(stem, part)).suffix for part in found)
            return Item(name, total, fault=f"{len(found)} {kind} of one name: {listed}")
    if len(texts) == 0:
        return Item(name, total, fault=f"no {PurePosixPath(name).stem}.json beside the image")
    return Item(name, total, texts[0])


def _part(stem: str, name: str) -> str:
    """The suffix of a name; "/" and the name where its stem is written in other characters."""
    suffix = posixpath.splitext(name)[1]
    return sys.intern(suffix) if name == stem + suffix else f"/{name}"


def _whole_name(stem: str, part: str) -> str:
    return part[1:] if part.startswith("/") else stem + part


def _read_record(data: bytes) -> tuple[Size | None, list[Any]]:
    """The stated size and the annotations. Raises BadValueError that completes "a.json ..."."""
    record = load_json(data)
    if not isinstance(record, dict):
        raise BadValueError(f"is not an SA-1B JSON: it holds {show(record)}, not an object")
    if "annotations" not in record:
        raise BadValueError("is not an SA-1B JSON: it has no annotations")
    try:
        size = image_size(record.get("image"), "the image's")
        return size, list_of(record["annotations"], "the list of annotations")
    except BadValueError as error:
        raise BadValueError(f"is not an SA-1B JSON: {error}") from error


def _is_masked(annotation: dict[str, Any]) -> bool:
    return has_mask(annotation.get("segmentation"))


def _object(annotation: Any, size: Size) -> AnnotatedObject:
    if not isinstance(annotation, dict):
        raise BadValueError(f"it is {show(annotation)}; an object with a segmentation is needed")
    runs, rle = read_mask(annotation["segmentation"], size)
    return AnnotatedObject(
        runs,
        rle,
        category=category(annotation.get("category_id")),
        predicted_iou=_score(annotation, "predicted_iou"),
        stability_score=_score(annotation, "stability_score"),
        point=_point(annotation.get("point_coords")),
    )


def _score(annotation: dict[str, Any], name: str) -> float:
    value = annotation.get(name)
    score = 1.0 if value is None else number(value, name)
    if abs(score) > _LARGEST_SCORE:
        raise BadValueError(f"{name} is {show(value)}; about 0 to 1 is expected")
    return score


def _point(value: Any) -> tuple[float, float] | None:
    """The first point of a list of points, or a point without the list around it."""
    if not value:
        return None
    point = value[0] if isinstance(value, list) and isinstance(value[0], list) else value
    if not isinstance(point, list) or len(point) != 2:
        raise BadValueError(f"point_coords is {show(value)}; [[x, y]] is needed")
    return number(point[0], "a point's x"), number(point[1], "a point's y")
