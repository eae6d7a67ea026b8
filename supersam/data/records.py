"""One open shard file: its records, read with `os.pread` and checked. No folder, no manifest.

`pread` takes no lock and leaves no HDF5 state to break in a forked worker; it is 6 to 36 times
faster at random records than chunks or variable-length types.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from supersam.data.hdf5 import FORMATS, MASK_META, crc32, read_layout
from supersam.data.sample import ImageFormat

_MaskRows = tuple[NDArray[Any], NDArray[np.void], NDArray[Any]]


class BadRecordError(RuntimeError):
    """A record that cannot be read; the other records are not affected, unless the shard is gone.

    Attributes: shard (file name), index (in the shard), name and id of the image (None where the
    damage hides them), reason.
    """

    def __init__(
        self, shard: str, index: int, name: str | None, id: int | None, reason: str
    ) -> None:
        super().__init__(shard, index, name, id, reason)  # the arguments: so it pickles
        self.shard, self.index, self.name, self.id, self.reason = shard, index, name, id, reason

    def __str__(self) -> str:
        image = "" if self.name is None else f" (image {self.name}, id {self.id})"
        return f"{self.shard} record {self.index}{image}: {self.reason}"


@dataclass(frozen=True)
class ImageRecord:
    """An encoded image and what is known of its masks; nothing decoded."""

    id: int
    name: str
    image: bytes
    format: ImageFormat
    height: int
    width: int
    masks: NDArray[np.void]
    """(M,) MASK_META."""


class OpenShard:
    """One shard file, open for reading. Thread-safe; belongs to the process that opened it."""

    def __init__(self, path: Path, *, check_crc: bool = True) -> None:
        self.path = path
        self._check_crc = check_crc
        layout = read_layout(path)
        self._index, self._position = layout.index, layout.position
        self.num_images = len(self._index["image/crc32"])
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._last_rows: tuple[int, _MaskRows] | None = None

    def __del__(self) -> None:
        # Not closed explicitly: a thread may still read from a shard that was just evicted.
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def image_ids(self) -> NDArray[np.uint64]:
        """(num_images,) the id of every image."""
        ids: NDArray[np.uint64] = self._index["image/meta"]["id"]
        return ids

    def read_image(self, i: int) -> ImageRecord:
        """Image `i` and the table of its masks."""
        start, stop = self._span("image/offset", i)
        image = self._pread("image/data", start, stop, i)
        if self._check_crc and zlib.crc32(image) != self._index["image/crc32"][i]:
            raise self._bad(i, "the image's bytes are damaged (CRC-32)")
        id, height, width, format_code = self._index["image/meta"][i].tolist()
        return ImageRecord(
            id, self.name(i), image, FORMATS[format_code], height, width, self._mask_rows(i)[1]
        )

    def read_masks(self, i: int, which: Sequence[int]) -> list[bytes]:
        """Compressed run lengths of the masks `which` of image `i`."""
        offset, _, crc = self._mask_rows(i)
        if any(not 0 <= k < len(crc) for k in which):
            raise IndexError(f"masks {list(which)} of image {i}, which has {len(crc)}")
        if len(which) == 0:
            return []
        first = int(offset[min(which)])
        data = self._pread("mask/data", first, int(offset[max(which) + 1]), i)
        rles = [data[int(offset[k]) - first : int(offset[k + 1]) - first] for k in which]
        for k, rle in zip(which, rles, strict=True):
            if self._check_crc and zlib.crc32(rle) != crc[k]:
                raise self._bad(i, f"the run lengths of mask {k} are damaged (CRC-32)")
        return rles

    def bad_records(self) -> list[BadRecordError]:
        """Reads everything; returns the faults found."""
        faults = []
        for i in range(self.num_images):
            try:
                masks = self.read_image(i).masks
                self.read_masks(i, range(len(masks)))
            except BadRecordError as error:
                faults.append(error)
        return faults

    def name(self, i: int) -> str:
        """Name of image `i`."""
        start, stop = self._span("image/name_offset", i)
        return self._index["image/name"][start:stop].tobytes().decode()

    def _mask_rows(self, i: int) -> _MaskRows:
        """Offsets (M + 1), MASK_META (M) and CRC-32 (M) of the masks of image `i`."""
        last = self._last_rows  # read_masks follows read_image: read and check the table once
        if last is not None and last[0] == i:
            return last[1]
        rows = self._read_mask_rows(i)
        self._last_rows = (i, rows)
        return rows

    def _read_mask_rows(self, i: int) -> _MaskRows:
        a, b = self._span("mask/of_image", i)
        offset = self._rows("mask/offset", "<u8", a, b + 1, i)
        meta: NDArray[np.void] = self._rows("mask/meta", MASK_META, a, b, i)
        crc = self._rows("mask/crc32", "<u4", a, b, i)
        if self._check_crc and crc32(offset, meta, crc) != self._index["image/mask_crc32"][i]:
            raise self._bad(i, "the table of its masks is damaged (CRC-32)")
        return offset, meta, crc

    def _rows(self, dataset: str, dtype: DTypeLike, start: int, stop: int, i: int) -> NDArray[Any]:
        dtype = np.dtype(dtype)
        data = self._pread(dataset, start * dtype.itemsize, stop * dtype.itemsize, i)
        return np.frombuffer(data, dtype)

    def _span(self, dataset: str, i: int) -> tuple[int, int]:
        start, stop = self._index[dataset][i : i + 2].tolist()
        return start, stop

    def _pread(self, dataset: str, start: int, stop: int, i: int) -> bytes:
        if start == stop:
            return b""
        try:
            data = os.pread(self._descriptor, stop - start, self._position[dataset] + start)
        except OSError as error:
            raise self._bad(i, f"cannot read {dataset}: {error}") from error
        if len(data) != stop - start:
            raise self._bad(i, f"the file ends inside {dataset}; it was truncated")
        return data

    def _bad(self, i: int, reason: str) -> BadRecordError:
        id = int(self._index["image/meta"]["id"][i])
        return BadRecordError(self.path.name, i, self.name(i), id, reason)
