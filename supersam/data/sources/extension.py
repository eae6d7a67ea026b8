"""A data set of the user's own, `--source module:object`: anything with a length and items.

The object is called with the root and the split. Item i of what it returns is an image, (H, W) or
(H, W, 3) uint8, and its masks, (N, H, W) bool; a PyTorch Dataset of such pairs will do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from supersam.config.data import SourceConfig
from supersam.data.rle import mask_runs
from supersam.data.sources.annotated import AnnotatedImage, AnnotatedObject, BadInputError, Item
from supersam.runtime.extensions import load_extension

_GUESSED_BYTES = 1 << 19
"""Bytes of an item that is not read yet: they decide only how items are shared out to shards."""


def list_extension(config: SourceConfig) -> list[Item]:
    """The items of the user's data set, unread."""
    return [
        Item(f"item-{index:08d}", _GUESSED_BYTES, index) for index in range(len(_dataset(config)))
    ]


def read_extension(config: SourceConfig, item: Item) -> AnnotatedImage:
    """Read one item. Raises BadInputError where it is not an image with masks."""
    image, masks = (np.asarray(part) for part in _dataset(config)[item.detail])
    is_image = image.dtype == np.uint8 and image.ndim in (2, 3) and image.shape[2:] in ((), (3,))
    if not is_image or masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
        raise BadInputError(
            f"an image of {image.dtype} {image.shape} with masks {masks.shape}; they must be uint8 "
            "(H, W) or (H, W, 3), and (N, H, W)"
        )
    objects = [AnnotatedObject(mask_runs(mask.astype(bool))) for mask in masks]
    return AnnotatedImage(item.name, image, (image.shape[0], image.shape[1]), objects)


@lru_cache(maxsize=4)
def _dataset(config: SourceConfig) -> Any:
    """Built once per process."""
    return load_extension(config.kind, "--source")(config.root, config.split)
