"""COCO: root/split/*.jpg and root/annotations/instances_split.json, read once for all images."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from supersam.config.data import SourceConfig
from supersam.data.rle import decode_runs, rasterize_polygons
from supersam.data.sources.annotated import (
    AnnotatedImage,
    AnnotatedObject,
    BadInputError,
    Item,
    SourceError,
    no_such_split,
    read_file,
    source_root,
)
from supersam.data.sources.sa1b import read_counts

logger = logging.getLogger(__name__)


def list_coco(config: SourceConfig) -> list[Item]:
    """The images of the split, by name, each with its annotations."""
    root = source_root(config.root)
    path = root / "annotations" / f"instances_{config.split}.json"
    if not path.is_file():
        found = path.parent.glob("instances_*.json")
        splits = [other.stem.removeprefix("instances_") for other in found]
        raise no_such_split(config.split, path, splits)
    images, annotations = _load_index(path)
    repeated = {id for id, count in Counter(image["id"] for image in images).items() if count > 1}
    items = []
    for image in images:
        own = annotations.pop(image["id"], []) if image["id"] not in repeated else []
        name = f"{config.split}/{image['file_name']}"
        fault = f"image id {image['id']} is used twice" if image["id"] in repeated else None
        items.append(Item(name, _num_bytes(root / name, own), (image, own), fault))
    lost = sum(len(own) for id, own in annotations.items() if id not in repeated)
    if lost:
        logger.warning("%d annotations of %s belong to no image listed there", lost, path)
    return _flag_repeated_names(sorted(items, key=lambda item: item.name))


def read_coco(config: SourceConfig, item: Item) -> AnnotatedImage:
    """One image; crowd regions only with `include_crowds`."""
    image, annotations = item.detail
    try:
        size = (int(image["height"]), int(image["width"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"its entry in the JSON has no valid {error}") from error
    objects = []
    for annotation in annotations:
        if annotation.get("iscrowd", 0) and not config.include_crowds:
            continue
        try:
            objects.append(_object(annotation, size))
        except (ValueError, KeyError, TypeError) as error:
            raise BadInputError(
                f"annotation id {annotation.get('id')} is broken: {type(error).__name__}: {error}"
            ) from error
    return AnnotatedImage(item.name, read_file(source_root(config.root) / item.name), size, objects)


def _load_index(path: Path) -> tuple[list[dict[str, Any]], dict[Any, list[dict[str, Any]]]]:
    """The images, and the annotations by image id."""
    try:
        record = json.loads(path.read_bytes())
        images = record["images"]
        by_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in images}
        for annotation in record["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        if any("file_name" not in image for image in images):
            raise KeyError("file_name")
    except (ValueError, KeyError, TypeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else f"is no COCO JSON: {error}"
        raise SourceError(f"{path} {reason}; it takes images, annotations and their ids") from error
    return images, by_image


def _num_bytes(path: Path, annotations: list[dict[str, Any]]) -> int:
    image_bytes = path.stat().st_size if path.is_file() else 0
    return image_bytes + 200 * len(annotations)


def _flag_repeated_names(items: list[Item]) -> list[Item]:
    counts = Counter(item.name for item in items)
    return [
        Item(item.name, item.num_bytes, item.detail, item.fault or "file_name is used twice")
        if counts[item.name] > 1
        else item
        for item in items
    ]


def _object(annotation: dict[str, Any], size: tuple[int, int]) -> AnnotatedObject:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        rle = rasterize_polygons(segmentation, *size)
    else:
        if tuple(segmentation["size"]) != size:
            raise ValueError(f"its mask has size {segmentation['size']}, the image {list(size)}")
        rle = read_counts(segmentation["counts"], *size)
    return AnnotatedObject(decode_runs(rle, *size), rle, category=int(annotation["category_id"]))
