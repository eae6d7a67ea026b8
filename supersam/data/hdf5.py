"""The layout of a shard file. The only door to h5py, which opens a file just to find its arrays.

Datasets of a shard with N images and M masks, little-endian, contiguous, unfiltered:

    /image/data         uint8[B]       encoded JPEG or PNG files, one after the other
    /image/offset       uint64[N + 1]  where each image starts
    /image/crc32        uint32[N]      CRC-32 of the encoded bytes
    /image/meta         IMAGE_META[N]
    /image/name         uint8[P]       UTF-8 names, one after the other
    /image/name_offset  uint64[N + 1]
    /image/mask_crc32   uint32[N]      of the image's rows of /mask/offset, /mask/meta, /mask/crc32
    /image/origin       ORIGIN[N]      since schema 1.1; absent where a sample's origin is unknown
    /mask/of_image      uint64[N + 1]  the masks of image i are of_image[i] to of_image[i + 1]
    /mask/data          uint8[R]       COCO compressed run lengths, one after the other
    /mask/offset        uint64[M + 1]
    /mask/crc32         uint32[M]      CRC-32 of the run lengths
    /mask/meta          MASK_META[M]

Root attributes: format, schema_major, schema_minor, writer, n, m, index_crc32, origin_crc32, the
converter's own, and complete = 1, written last. A reader ignores datasets, attributes and fields
that it does not know: a newer minor version may have them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isal import isal_zlib

# Shards never change once finished, and many cluster file systems cannot lock. HDF5 looks at this
# when it is loaded.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

import h5py
import numpy as np
from numpy.typing import NDArray

import supersam
from supersam.data.manifest import SCHEMA_MAJOR, SCHEMA_MINOR, ShardFolderError, check_schema
from supersam.data.sample import ImageFormat
from supersam.runtime.foreign import foreign_content, read_head

SHARD_FORMAT = "supersam-shard"
FORMATS: tuple[ImageFormat, ...] = ("jpeg", "png")
"""A format's code in a shard is its place here."""

IMAGE_META = np.dtype([("id", "<u8"), ("height", "<u4"), ("width", "<u4"), ("format", "u1")])
ORIGIN = np.dtype(
    [
        ("source", "<u8"),
        ("group", "<u8"),
        ("y", "<u4"),
        ("x", "<u4"),
        ("source_height", "<u4"),  # 0 for a whole image
        ("source_width", "<u4"),
    ]
)
MASK_META = np.dtype(
    [
        ("area", "<u8"),
        ("bbox", "<f4", (4,)),
        ("point", "<f4", (2,)),
        ("category", "<i8"),
        ("predicted_iou", "<f4"),
        ("stability_score", "<f4"),
    ]
)

# Kept in memory for each open shard, a few 10 KB; the rest is read record by record.
INDEX = (
    "image/offset",
    "image/crc32",
    "image/meta",
    "image/name",
    "image/name_offset",
    "image/mask_crc32",
    "mask/of_image",
)
ORIGINS = "image/origin"
RECORDS = ("image/data", "mask/data", "mask/offset", "mask/crc32", "mask/meta")


_REFUSED = {errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ENOMEM}


class DamagedShardError(RuntimeError):
    """A file that is not a whole shard."""


@dataclass(frozen=True)
class Layout:
    """What is kept of an open shard: its index, and where in the file the rest lies."""

    index: Mapping[str, NDArray[Any]]
    """The arrays of INDEX."""
    position: Mapping[str, int]
    """File offset in bytes of each dataset of RECORDS."""
    origins: NDArray[np.void] | None
    """(N,) ORIGIN; None where the shard does not hold them."""


def write_shard(
    path: Path, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, str | int]
) -> None:
    """Write a shard file. The same arguments write the same bytes on every machine."""
    with h5py.File(path, "w", locking=False) as file:
        for name in INDEX + RECORDS:
            file.create_dataset(name, data=arrays[name])
        if ORIGINS in arrays:
            file.create_dataset(ORIGINS, data=arrays[ORIGINS])
            file.attrs["origin_crc32"] = crc32(arrays[ORIGINS])
        file.attrs.update(attributes)
        file.attrs["format"] = SHARD_FORMAT
        file.attrs["schema_major"] = SCHEMA_MAJOR
        file.attrs["schema_minor"] = SCHEMA_MINOR
        file.attrs["writer"] = f"supersam {supersam.__version__}"
        file.attrs["n"] = len(arrays["image/meta"])
        file.attrs["m"] = len(arrays["mask/meta"])
        file.attrs["index_crc32"] = crc32(*(arrays[name] for name in INDEX))
        file.flush()
        file.attrs["complete"] = 1


def read_layout(path: Path) -> Layout:
    """Open a shard, check that it is whole and of a known version, and read its index.

    Raises DamagedShardError, ShardFolderError for another version, and OSError where the system
    refuses to open any file like it: too many are open, or permission or memory is lacking.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            check_schema(path, file.attrs["format"], file.attrs["schema_major"], SHARD_FORMAT)
            if file.attrs.get("complete") != 1:
                raise DamagedShardError("its writer was stopped before the end")
            index = {name: file[name][()] for name in INDEX}
            # An empty dataset has no place in the file.
            position = {name: file[name].id.get_offset() or 0 for name in RECORDS}
            index_crc32 = file.attrs["index_crc32"]
            origins = file[ORIGINS][()] if ORIGINS in file else None
            origin_crc32 = file.attrs["origin_crc32"] if origins is not None else None
    except (OSError, KeyError, RuntimeError) as error:
        if isinstance(error, ShardFolderError | DamagedShardError) or _is_refused(error):
            raise
        foreign = foreign_content(read_head(path))
        reason = f"cannot be opened: {error}" if foreign is None else f"is {foreign}"
        raise DamagedShardError(reason) from error
    if crc32(*(index[name] for name in INDEX)) != index_crc32:
        raise DamagedShardError("its index is damaged (CRC-32)")
    if origins is not None and crc32(origins) != origin_crc32:
        raise DamagedShardError("its table of source images is damaged (CRC-32)")
    return Layout(index, position, origins)


def _is_refused(error: Exception) -> bool:
    """Whether the system, and not the file, is why it cannot be opened."""
    return isinstance(error, OSError) and error.errno in _REFUSED


def crc32(*arrays: NDArray[Any]) -> int:
    """CRC-32 of the bytes of `arrays`, one after the other."""
    value = 0
    for array in arrays:
        value = isal_zlib.crc32(array.tobytes(), value)
    return value
