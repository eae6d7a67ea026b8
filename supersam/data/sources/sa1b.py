"""SA-1B: root/split/*.jpg beside *.json, one JSON an image. Split "." is the root itself."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from supersam.config.data import SourceConfig
from supersam.data.rle import compress_counts, decode_runs
from supersam.data.sources.annotated import (
    AnnotatedImage,
    AnnotatedObject,
    BadInputError,
    Item,
    list_files,
    no_such_split,
    read_file,
    source_root,
)

_IMAGES = (".jpg", ".jpeg", ".png")


def list_sa1b(config: SourceConfig) -> list[Item]:
    """Every image and every JSON file below the split's folder, paired by their stems."""
    root = source_root(config.root)
    folder = root / config.split
    if not folder.is_dir():
        splits = [path.name for path in root.iterdir() if path.is_dir()]
        if any(path.suffix in _IMAGES for path in root.iterdir()):
            splits.append(".")
        raise no_such_split(config.split, folder, splits)
    prefix = PurePosixPath(config.split)
    pairs: dict[PurePosixPath, dict[str, int]] = {}
    for name, num_bytes in list_files(folder, (*_IMAGES, ".json")):
        path = prefix / name
        pairs.setdefault(path.with_suffix(""), {})[path.suffix] = num_bytes
    return [_item(stem, files) for stem, files in sorted(pairs.items())]


def read_sa1b(config: SourceConfig, item: Item) -> AnnotatedImage:
    """One image and the annotations of the JSON beside it."""
    root = source_root(config.root)
    path = root / item.name
    annotation_path = path.with_suffix(".json")
    try:
        record = json.loads(read_file(annotation_path))
        annotations = record["annotations"]
        stated = record.get("image", {})
        size = (stated["height"], stated["width"]) if "height" in stated else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else f"is no SA-1B JSON: {error}"
        raise BadInputError(f"{annotation_path.name} {reason}") from error
    sizes = {size} if size is not None else set()
    objects = []
    for k, annotation in enumerate(annotations):
        try:
            objects.append(_object(annotation))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BadInputError(
                f"annotation {k} of {annotation_path.name} is broken: "
                f"{type(error).__name__}: {error}"
            ) from error
        sizes.add((objects[-1].runs.height, objects[-1].runs.width))
    if len(sizes) > 1:
        raise BadInputError(
            f"image and masks of {annotation_path.name} have different sizes: {sorted(sizes)}"
        )
    if len(sizes) == 0:
        raise BadInputError(f"{annotation_path.name} states no size of the image and has no mask")
    return AnnotatedImage(item.name, read_file(path), sizes.pop(), objects)


def _item(stem: PurePosixPath, files: dict[str, int]) -> Item:
    images = sorted(suffix for suffix in files if suffix != ".json")
    total = sum(files.values())
    if len(images) == 0:
        return Item(f"{stem}.json", total, fault=f"no image beside {stem.name}.json")
    name = f"{stem}{images[0]}"
    if len(images) > 1:
        return Item(name, total, fault=f"{len(images)} images of one name: {', '.join(images)}")
    if ".json" not in files:
        return Item(name, total, fault=f"no {stem.name}.json beside the image")
    return Item(name, total)


def _object(annotation: dict[str, Any]) -> AnnotatedObject:
    segmentation = annotation["segmentation"]
    height, width = segmentation["size"]
    rle = read_counts(segmentation["counts"], height, width)
    point = annotation.get("point_coords")
    return AnnotatedObject(
        decode_runs(rle, height, width),
        rle,
        category=int(annotation.get("category_id", 0)),
        predicted_iou=float(annotation.get("predicted_iou", 1.0)),
        stability_score=float(annotation.get("stability_score", 1.0)),
        point=(float(point[0][0]), float(point[0][1])) if point else None,
    )


def read_counts(counts: str | list[int], height: int, width: int) -> bytes:
    """Compressed run lengths of a JSON's `counts`, be they compressed text or a list."""
    if isinstance(counts, str):
        return counts.encode()
    return compress_counts(counts, height, width)
