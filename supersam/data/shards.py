"""Shards: folders of HDF5 files that hold encoded images and run-length masks.

`ShardWriter` makes one file, `ShardReader` reads a finished folder. The layout of a file is stated
in hdf5.py.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from supersam.data.hdf5 import (
    FORMATS,
    IMAGE_META,
    MASK_META,
    ORIGIN,
    ORIGINS,
    DamagedShardError,
    crc32,
    write_shard,
)
from supersam.data.identity import Origins, name_ids, shared_sources
from supersam.data.manifest import ShardFolderError, ShardInfo, read_manifest, write_manifest
from supersam.data.open_files import open_files
from supersam.data.sample import MaskRecord, Origin, SegmentationSample
from supersam.data.shard_file import BadRecordError, ImageRecord, OpenShard
from supersam.runtime.atomic import atomic_file, file_sha256

__all__ = [
    "MASK_META",
    "BadRecordError",
    "ImageRecord",
    "ShardFolderError",
    "ShardReader",
    "ShardWriter",
    "open_held_out",
    "write_manifest",
]


class ShardWriter:
    """Collects the samples of one shard in memory and writes it whole.

    The bytes of the file depend on the samples and arguments alone: no time, host or process.
    """

    def __init__(
        self, path: Path, *, shard_index: int = 0, attributes: Mapping[str, str] | None = None
    ) -> None:
        """`attributes` are stored at the root, for people: dataset_uuid, source, split."""
        self._path = path
        self._attributes: dict[str, str | int] = {"shard_index": shard_index, **(attributes or {})}
        self._image_data, self._mask_data, self._names = bytearray(), bytearray(), bytearray()
        self._image_offset, self._name_offset, self._mask_offset = [0], [0], [0]
        self._of_image = [0]
        self._image_crc: list[int] = []
        self._image_meta: list[tuple[Any, ...]] = []
        self._origins: list[Origin | None] = []
        self._mask_crc: list[int] = []
        self._mask_meta: list[tuple[Any, ...]] = []

    @property
    def num_bytes(self) -> int:
        """Bytes of images and masks so far."""
        return len(self._image_data) + len(self._mask_data)

    def add(self, sample: SegmentationSample) -> None:
        """Append a sample; it gets the next index."""
        if not 0 <= sample.id < 1 << 63:
            raise ValueError(f"id={sample.id} of {sample.name} is not a non-negative 63-bit number")
        format_code = FORMATS.index(sample.format)
        self._image_meta.append((sample.id, sample.height, sample.width, format_code))
        self._origins.append(sample.origin)
        self._image_crc.append(isal_zlib.crc32(sample.image))
        self._image_data += sample.image
        self._image_offset.append(len(self._image_data))
        self._names += sample.name.encode()
        self._name_offset.append(len(self._names))
        for mask in sample.masks:
            self._add_mask(mask)
        self._of_image.append(len(self._mask_meta))

    def finish(self) -> ShardInfo:
        """Write, read back, and only then name the file; an older file of the name is replaced."""
        with atomic_file(self._path) as temporary:
            write_shard(temporary, self._arrays(), self._attributes)
            sha256 = file_sha256(temporary)
            size = temporary.stat().st_size
            written = OpenShard(temporary)
            if bad := written.bad_records():
                raise OSError(f"{temporary} does not hold what was written to it: {bad[0]}")
        return ShardInfo(self._path.name, len(self._image_meta), len(self._mask_meta), size, sha256)

    def _add_mask(self, mask: MaskRecord) -> None:
        self._mask_data += mask.rle
        self._mask_offset.append(len(self._mask_data))
        self._mask_crc.append(isal_zlib.crc32(mask.rle))
        self._mask_meta.append(
            (
                mask.area,
                mask.bbox,
                mask.point,
                mask.category,
                mask.predicted_iou,
                mask.stability_score,
            )
        )

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {
            "image/data": np.frombuffer(self._image_data, np.uint8),
            "image/offset": np.array(self._image_offset, "<u8"),
            "image/crc32": np.array(self._image_crc, "<u4"),
            "image/meta": np.array(self._image_meta, IMAGE_META),
            "image/name": np.frombuffer(self._names, np.uint8),
            "image/name_offset": np.array(self._name_offset, "<u8"),
            "mask/data": np.frombuffer(self._mask_data, np.uint8),
            "mask/offset": np.array(self._mask_offset, "<u8"),
            "mask/crc32": np.array(self._mask_crc, "<u4"),
            "mask/meta": np.array(self._mask_meta, MASK_META),
            "mask/of_image": np.array(self._of_image, "<u8"),
        }
        rows = [
            (arrays["mask/offset"][a : b + 1], arrays["mask/meta"][a:b], arrays["mask/crc32"][a:b])
            for a, b in zip(self._of_image, self._of_image[1:], strict=False)
        ]
        arrays["image/mask_crc32"] = np.array([crc32(*row) for row in rows], "<u4")
        known = [origin for origin in self._origins if origin is not None]
        if len(known) == len(self._origins):
            arrays[ORIGINS] = np.array([_origin_row(origin) for origin in known], ORIGIN)
        return arrays


class ShardReader:
    """A finished folder of shards as one sequence of images. Pickles; safe across fork and spawn.

    Files are opened when first read, by each process for itself; all readers of a process together
    keep at most half as many open as the system allows, and 256 MiB of their indexes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = read_manifest(folder)
        _check_present(folder, manifest.shards)
        # Each loader worker has a reader: the lines of the manifest stay here.
        self._files = tuple(shard.file for shard in manifest.shards)
        self.fingerprint = manifest.fingerprint
        self.num_images = manifest.num_images
        self.num_masks = manifest.num_masks
        self.shard_sizes = tuple(shard.images for shard in manifest.shards)
        self._first = (0, *itertools.accumulate(self.shard_sizes))
        self._own_files()

    def __len__(self) -> int:
        return self.num_images

    def read_image(self, index: int) -> ImageRecord:
        """Return the encoded image `index` and its mask table. Raises BadRecordError."""
        shard, i = self._locate(index)
        return shard.read_image(i)

    def read_masks(self, index: int, which: Sequence[int]) -> list[bytes]:
        """Return the compressed run lengths of the masks `which` of image `index`."""
        shard, i = self._locate(index)
        return shard.read_masks(i, which)

    def will_need(self, index: int) -> None:
        """Have the system begin to read image `index`, which is needed soon, and do not wait.

        A damaged shard is passed over here: reading it will say so.
        """
        with contextlib.suppress(BadRecordError):
            shard, i = self._locate(index)
            shard.will_need(i)

    def image_ids(self) -> NDArray[np.uint64]:
        """Return the id of every image, (num_images,), from the shards' indexes alone.

        Raises ShardFolderError where a shard cannot be opened.
        """
        parts = [shard.image_ids() for shard in self._open_all()]
        return np.concatenate([np.zeros(0, np.uint64), *parts])

    def origins(self) -> Origins:
        """Return the source image and group of every image, from the shards' indexes alone.

        Raises ShardFolderError where a shard cannot be opened.
        """
        tables = [np.zeros(0, ORIGIN)]
        for shard in self._open_all():
            if shard.origins is None:
                return Origins.by_name([n for each in self._open_all() for n in each.names()])
            tables.append(shard.origins)
        table = np.concatenate(tables)
        source, group = (table[name].astype(np.int64) for name in ("source", "group"))
        return Origins(source, group, by_content=True)

    def sources(self, *, by_content: bool) -> Iterator[NDArray[np.int64] | None]:
        """The source image of each image, one array a shard: by its content, else by its name.

        None where content is asked for and the shard does not hold it. Raises ShardFolderError
        where a shard cannot be opened.
        """
        for shard in self._open_all():
            if not by_content:
                yield name_ids(shard.names())
            elif shard.origins is None:
                yield None
            else:
                yield shard.origins["source"].astype(np.int64)

    def _open_all(self) -> Iterator[OpenShard]:
        """Each shard that holds an image, opened."""
        for first in sorted({first for first in self._first if first < self.num_images}):
            try:
                yield self._locate(first)[0]
            except BadRecordError as error:
                raise self.damaged(error) from error

    def damaged(self, error: Exception) -> ShardFolderError:
        """Return `error` as a UserError that says how to find all that is damaged."""
        return ShardFolderError(
            f"{self.folder}: {error}; launch/shard.py --verify {self.folder} --full names all that "
            "is damaged"
        )

    def read(self, index: int) -> SegmentationSample:
        """Return everything that was written for image `index`."""
        record = self.read_image(index)
        rles = self.read_masks(index, range(len(record.masks)))
        masks = zip(rles, record.masks.tolist(), strict=True)
        return SegmentationSample(
            record.id,
            record.name,
            record.image,
            record.format,
            record.height,
            record.width,
            tuple(_mask_record(rle, row) for rle, row in masks),
            record.origin,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None, "_owner": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._own_files()

    def _own_files(self) -> None:
        self._last: _Located | None = None
        self._owner = object()
        weakref.finalize(self, _forget, self._owner).atexit = False

    def _locate(self, index: int) -> tuple[OpenShard, int]:
        last = self._last  # the masks of an image are asked for after its bytes
        if last is not None and last.image == index and last.pid == os.getpid():
            return last.shard, last.i
        if not 0 <= index < self.num_images:
            raise IndexError(f"image {index} of {self.folder}, which has {self.num_images}")
        k = bisect.bisect_right(self._first, index) - 1
        i = index - self._first[k]
        file, images = self._files[k], self.shard_sizes[k]
        self._last = None  # its file may have to be closed for the next
        try:
            shard = open_files().get(self._owner, self.folder / file)
            if shard.num_images != images:
                raise DamagedShardError(
                    f"holds {shard.num_images} images, {images} in the manifest"
                )
        except DamagedShardError as error:
            raise BadRecordError(file, i, None, None, str(error)) from error
        self._last = _Located(os.getpid(), index, shard, i)
        return shard, i


def _forget(owner: object) -> None:
    open_files().forget(owner)


class _Located(NamedTuple):
    """The image that was located last."""

    pid: int
    image: int
    shard: OpenShard
    i: int
    """Its index in the shard."""


def open_held_out(folders: Sequence[Path]) -> list[ShardReader]:
    """Open the folders of an evaluation.

    Raises ShardFolderError where two of them share source images: a score counts each image once.
    """
    readers = [ShardReader(folder) for folder in folders]
    opened = zip(folders, readers, strict=True)
    for (first, one), (second, other) in itertools.combinations(opened, 2):
        shared = shared_sources([one], [other])
        if shared.images > 0:
            raise ShardFolderError(
                f"{first} and {second} share {shared.images} of {one.num_images} images "
                f"{shared.how}, and a score counts each image once; name one of the two alone"
            )
    return readers


def _origin_row(origin: Origin) -> tuple[int, ...]:
    tile = origin.tile
    place = (
        (0, 0, 0, 0) if tile is None else (tile.y, tile.x, tile.source_height, tile.source_width)
    )
    return (origin.source, origin.group, *place)


def _mask_record(rle: bytes, row: tuple[Any, ...]) -> MaskRecord:
    area, (x, y, width, height), (point_x, point_y), category, predicted_iou, stability = row
    return MaskRecord(
        rle, area, (x, y, width, height), (point_x, point_y), category, predicted_iou, stability
    )


def _check_present(folder: Path, shards: Sequence[ShardInfo]) -> None:
    present = set(os.listdir(folder))  # one request to the file server, not one a shard
    missing = [shard.file for shard in shards if shard.file not in present]
    if missing:
        raise ShardFolderError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing[:8])}; "
            "run launch/shard.py again with the same source and output folder to make them anew"
        )
