"""Records of shards to samples: drawn for training, whole for evaluation.

A training sample depends on (seed, turn, image id) and nothing else: not on the rank, the worker
or a restart.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from supersam.config.data import DataConfig
from supersam.data.identity import cut_by_frame, origin_by_name
from supersam.data.images import BadImageError, decode_rgb
from supersam.data.masks import ObjectMasks
from supersam.data.partition import AUGMENT_STREAM, SampleKey, philox
from supersam.data.prompts import draw_prompt, stored_prompts, visible_objects
from supersam.data.rle import Runs, decode_runs
from supersam.data.sample import LABEL_PAD, LOGIT_STRIDE, EvalImage
from supersam.data.shards import BadRecordError, ImageRecord, ShardReader
from supersam.data.transforms import (
    Crop,
    Geometry,
    MaskPatch,
    cut_patch,
    draw_geometry,
    draw_tone,
)

logger = logging.getLogger(__name__)

CROP_DRAWS = 8
"""Crops tried until one shows an object; then the whole image is taken."""
NEIGHBOUR_DRAWS = 16
"""Records in a row that may be damaged."""
Row = dict[str, Any]
"""One row of each field of a `Batch`, by the field's name, as arrays."""


class BadMaskError(ValueError):
    """The run lengths of a mask do not make a mask of its image."""


class TooManyBadRecordsError(RuntimeError):
    """More records are damaged than the run accepts."""


class ShardDataset(Dataset[Row]):
    """Training samples of one or more folders of shards, by `SampleKey`."""

    def __init__(
        self, readers: Sequence[ShardReader], config: DataConfig, *, side: int, seed: int
    ) -> None:
        """`side` is the model's input side in pixels; `seed` keys crops and prompts."""
        self.readers = tuple(readers)
        self.config = config
        self._side = _checked_side(side)
        self._seed = seed
        self.sample_bytes = 3 * side**2 + config.prompts_per_image * (side // LOGIT_STRIDE) ** 2
        """Bytes of a sample's image and masks; the rest is small."""

    def __getitem__(self, key: SampleKey | tuple[int, int, int]) -> Row:
        """Return the sample of a key, or of the next record that is not damaged."""
        dataset, asked, turn = key
        reader = self.readers[dataset]
        reasons = []
        for index in range(asked, asked + NEIGHBOUR_DRAWS):
            try:
                record = _Record(reader, index % reader.num_images)
                return self._load(record, turn, num_bad=int(index != asked))
            except (BadRecordError, BadImageError, BadMaskError) as error:
                logger.warning(
                    "a neighbour replaces a damaged record of set %d: %s", dataset, error
                )
                reasons.append(str(error))
        raise TooManyBadRecordsError(
            f"{len(reasons)} records in a row are damaged in data set {dataset} (from 0), from "
            f"image {asked} on; check its shards and make the damaged ones anew ({reasons[0]})"
        )

    def __getitems__(self, now_and_later: Sequence[Sequence[SampleKey]]) -> list[Row]:
        """Return the samples of the first keys; announce the second ones to the system."""
        now, later = now_and_later
        for dataset, index, _ in later:
            self.readers[dataset].will_need(index)
        return [self[key] for key in now]

    def _load(self, record: _Record, turn: int, *, num_bad: int) -> Row:
        rng = np.random.Generator(philox(self._seed, AUGMENT_STREAM, turn, record.meta.id))
        geometry, objects = self._draw_view(rng, record)
        image = geometry.map_image(record.pixels())
        if self.config.augment.brightness > 0:
            part = image[:, : geometry.size[0], : geometry.size[1]]
            part[...] = draw_tone(rng, self.config.augment.brightness)[part]
        n, cells = self.config.prompts_per_image, self._side // LOGIT_STRIDE
        points = np.zeros((n, 2, 2), np.float32)
        labels = np.full((n, 2), LABEL_PAD, np.int64)
        masks = np.zeros((n, cells, cells), np.uint8)
        for k, (patch, share) in enumerate(objects):
            masks[k] = share
            points[k], labels[k] = draw_prompt(
                rng, patch, geometry, kind=self.config.prompt, box_jitter=self.config.box_jitter
            )
        row = Row(
            images=image,
            sizes=np.array(geometry.size, np.int64),
            points=points,
            labels=labels,
            masks=masks,
            valid=np.arange(n) < len(objects),
            sample_ids=record.meta.id,
            num_bad=num_bad,
        )
        if self.config.clicks > 0:
            row["clicks"] = rng.random((n, self.config.clicks), np.float32)
        return row

    def _draw_view(
        self, rng: np.random.Generator, record: _Record
    ) -> tuple[Geometry, list[_Object]]:
        """A crop that shows objects, else the whole image; and up to N of the objects it shows."""
        height, width = record.meta.height, record.meta.width
        for _ in range(CROP_DRAWS):
            geometry = draw_geometry(
                rng, height, width, side=self._side, augment=self.config.augment
            )
            objects = self._draw_objects(rng, record, geometry)
            if len(objects) > 0:
                return geometry, objects
        geometry = Geometry(Crop(0, 0, width, height), self._side)
        return geometry, self._draw_objects(rng, record, geometry)

    def _draw_objects(
        self, rng: np.random.Generator, record: _Record, geometry: Geometry
    ) -> list[_Object]:
        """Up to N objects, drawn evenly from those in the crop; few others are decoded."""
        wanted = self.config.prompts_per_image
        drawn = rng.permutation(visible_objects(record.meta.masks["bbox"], geometry.crop))
        objects: list[_Object] = []
        # An object's box can be in the crop and its pixels elsewhere: draw once more for those.
        for some in (drawn[:wanted], drawn[wanted : 2 * wanted]):
            for runs in record.runs(some[: wanted - len(objects)].tolist()):
                patch = cut_patch(runs, geometry.crop)
                if patch is not None and (share := geometry.map_mask(patch)).any():
                    objects.append((patch, share))
        return objects


class EvalDataset(Dataset[EvalImage]):
    """Every image of the held-out folders, in order, with its objects and fixed prompts.

    Objects that the frame of a tile cuts are left out: what is annotated of them is the cut, not
    the object. A damaged record raises ShardFolderError: a score without it would not be the score
    of the set.
    """

    def __init__(
        self,
        readers: Sequence[ShardReader],
        *,
        side: int,
        prompt: Literal["point", "box"],
        cut_objects: bool = False,
    ) -> None:
        """`side` is the model's input side in pixels; `cut_objects` keeps objects that are cut."""
        self._readers = tuple(readers)
        self._cut_objects = cut_objects
        self._first = np.cumsum([0, *(reader.num_images for reader in readers)])
        self._side = _checked_side(side)
        self._prompt = prompt

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> EvalImage:
        """Return the image `index`, counted through all folders."""
        which = int(np.searchsorted(self._first, index, side="right")) - 1
        reader = self._readers[which]
        try:
            return self._load(_Record(reader, int(index - self._first[which])))
        except (BadRecordError, BadImageError, BadMaskError) as error:
            raise reader.damaged(error) from error

    def _load(self, record: _Record) -> EvalImage:
        meta = record.meta
        whole = Crop(0, 0, meta.width, meta.height)
        geometry = Geometry(whole, self._side)
        origin = origin_by_name(meta.name) if meta.origin is None else meta.origin
        kept = np.arange(len(meta.masks))
        if origin.tile is not None and not self._cut_objects:
            kept = kept[~cut_by_frame(meta.masks["bbox"], origin.tile)]
        table = meta.masks[kept]
        points, labels = stored_prompts(table, self._prompt, geometry)
        runs = record.runs(kept.tolist())
        return EvalImage(
            image=torch.from_numpy(geometry.map_image(record.pixels())),
            size=geometry.size,
            original_size=(meta.height, meta.width),
            points=torch.from_numpy(points),
            labels=torch.from_numpy(labels),
            masks=ObjectMasks(tuple(runs), (meta.height, meta.width)),
            boxes=torch.from_numpy(table["bbox"].copy()),
            sample_id=meta.id,
            source=origin.source,
            group=origin.group,
            tile=origin.tile,
            num_cut=len(meta.masks) - len(kept),
        )


_Object = tuple[MaskPatch, NDArray[np.uint8]]
"""What a crop shows of an object, and the share of each mask-logit cell."""


class _Record:
    """One image of a folder of shards: its table at once, its masks and pixels when asked for."""

    def __init__(self, reader: ShardReader, index: int) -> None:
        self._reader = reader
        self._index = index
        self.meta: ImageRecord = reader.read_image(index)

    def runs(self, which: Sequence[int]) -> list[Runs]:
        """The run lengths of some of its masks. Raises BadRecordError, BadMaskError."""
        rles = self._reader.read_masks(self._index, which)
        try:
            return [decode_runs(rle, self.meta.height, self.meta.width) for rle in rles]
        except ValueError as error:
            raise BadMaskError(f"image {self.meta.name}: {error}") from error

    def pixels(self) -> NDArray[np.uint8]:
        """(H, W, 3) RGB. Raises BadImageError."""
        pixels = decode_rgb(self.meta.image)
        if pixels.shape[:2] != (self.meta.height, self.meta.width):
            raise BadImageError(
                f"image {self.meta.name} has {pixels.shape[0]} x {pixels.shape[1]} px, its record "
                f"says {self.meta.height} x {self.meta.width}"
            )
        return pixels


def _checked_side(side: int) -> int:
    if side < LOGIT_STRIDE or side % LOGIT_STRIDE != 0:
        raise ValueError(f"side={side} px cannot be an input of the model; set a multiple of 16")
    return side
