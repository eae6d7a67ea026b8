"""One open shard file: its records, read with `os.pread` and checked. No folder, no manifest.

`pread` takes no lock and leaves no HDF5 state to break in a forked worker; it is 6 to 36 times
faster at random records than chunks or variable-length types.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from supersam.data.hdf5 import FORMATS, MASK_META, read_layout
from supersam.data.sample import ImageFormat, Origin, Tile

_NUMBERS = ("image/offset", "image/crc32", "image/name_offset", "image/mask_crc32", "mask/of_image")

_ROW_BYTES = {"mask/offset": 8, "mask/meta": MASK_META.itemsize, "mask/crc32": 4}


class _MaskRows(NamedTuple):
    """The rows of one image's M masks."""

    meta: NDArray[np.void]
    """(M,) MASK_META."""
    offset: memoryview
    """(M + 1,) uint64, of the run lengths."""
    crc: memoryview
    """(M,) uint32, of the run lengths."""


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
    origin: Origin | None
    """None where the shard does not hold it."""


class OpenShard:
    """One shard file, open for reading. Thread-safe; belongs to the process that opened it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        layout = read_layout(path)
        self._position = layout.position
        self._ids: NDArray[np.uint64] = layout.index["image/meta"]["id"]
        self._meta = layout.index["image/meta"]
        self.origins = layout.origins
        """(num_images,) ORIGIN; None where the shard does not hold them."""
        self._names = layout.index["image/name"].tobytes()
        # Views, as a number taken out of one costs a tenth of what it costs out of an array.
        self._index = {name: layout.index[name].data for name in _NUMBERS}
        self.num_images = len(self._ids)
        self.index_bytes = sum(array.nbytes for array in layout.index.values())
        """Bytes of memory that it takes, nearly."""
        self.index_bytes += 0 if layout.origins is None else layout.origins.nbytes
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._last_rows: tuple[int, _MaskRows] | None = None

    def __del__(self) -> None:
        # Not closed explicitly: a thread may still read from a shard that was just evicted.
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def image_ids(self) -> NDArray[np.uint64]:
        """(num_images,) the id of every image."""
        return self._ids

    def read_image(self, i: int) -> ImageRecord:
        """Return image `i` and the table of its masks."""
        start, stop = self._span("image/offset", i)
        image = self._pread("image/data", start, stop, i)
        if isal_zlib.crc32(image) != self._index["image/crc32"][i]:
            raise self._bad(i, "the image's bytes are damaged (CRC-32)")
        id, height, width, format_code = self._meta[i].tolist()
        return ImageRecord(
            id,
            self.name(i),
            image,
            FORMATS[format_code],
            height,
            width,
            self._mask_rows(i).meta,
            self._origin(i, height, width),
        )

    def read_masks(self, i: int, which: Sequence[int]) -> list[bytes]:
        """Return the compressed run lengths of the masks `which` of image `i`."""
        if len(which) == 0:
            return []
        _, offset, crc = self._mask_rows(i)
        low, high = min(which), max(which)
        if low < 0 or high >= len(crc):
            raise IndexError(f"masks {list(which)} of image {i}, which has {len(crc)}")
        first = offset[low]
        data = self._pread("mask/data", first, offset[high + 1], i)
        rles = [data[offset[k] - first : offset[k + 1] - first] for k in which]
        for k, rle in zip(which, rles, strict=True):
            if isal_zlib.crc32(rle) != crc[k]:
                raise self._bad(i, f"the run lengths of mask {k} are damaged (CRC-32)")
        return rles

    def will_need(self, i: int) -> None:
        """Have the system begin to read image `i` and the table of its masks, and do not wait.

        A hint: where the system takes none, nothing happens.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        first, stop = self._span("mask/of_image", i)
        spans = {"image/data": self._span("image/offset", i)}
        spans |= {name: (size * first, size * (stop + 1)) for name, size in _ROW_BYTES.items()}
        for name, (start, end) in spans.items():
            place = self._position[name] + start
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._descriptor, place, end - start, os.POSIX_FADV_WILLNEED)

    def bad_records(self) -> list[BadRecordError]:
        """Read everything; return the faults found."""
        faults = []
        for i in range(self.num_images):
            try:
                masks = self.read_image(i).masks
                self.read_masks(i, range(len(masks)))
            except BadRecordError as error:
                faults.append(error)
        return faults

    def name(self, i: int) -> str:
        """Return the name of image `i`."""
        start, stop = self._span("image/name_offset", i)
        return self._names[start:stop].decode()

    def names(self) -> list[str]:
        """Return the name of every image."""
        return [self.name(i) for i in range(self.num_images)]

    def _origin(self, i: int, height: int, width: int) -> Origin | None:
        if self.origins is None:
            return None
        source, group, y, x, source_height, source_width = self.origins[i].tolist()
        if source_height == 0:
            return Origin(source, group)
        return Origin(source, group, Tile(y, x, height, width, source_height, source_width))

    def _mask_rows(self, i: int) -> _MaskRows:
        """What the shard holds of the masks of image `i`, besides their run lengths."""
        last = self._last_rows  # read_masks follows read_image: read and check the table once
        if last is not None and last[0] == i:
            return last[1]
        rows = self._read_mask_rows(i)
        self._last_rows = (i, rows)
        return rows

    def _read_mask_rows(self, i: int) -> _MaskRows:
        a, b = self._span("mask/of_image", i)
        offset = self._table("mask/offset", a, b + 1, i)
        meta = self._table("mask/meta", a, b, i)
        crc = self._table("mask/crc32", a, b, i)
        found = isal_zlib.crc32(crc, isal_zlib.crc32(meta, isal_zlib.crc32(offset)))
        if found != self._index["image/mask_crc32"][i]:
            raise self._bad(i, "the table of its masks is damaged (CRC-32)")
        return _MaskRows(
            np.frombuffer(meta, MASK_META),
            memoryview(offset).cast("Q"),
            memoryview(crc).cast("I"),
        )

    def _table(self, dataset: str, start: int, stop: int, i: int) -> bytes:
        size = _ROW_BYTES[dataset]
        return self._pread(dataset, size * start, size * stop, i)

    def _span(self, dataset: str, i: int) -> tuple[int, int]:
        starts = self._index[dataset]
        return starts[i], starts[i + 1]

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
        return BadRecordError(self.path.name, i, self.name(i), int(self._ids[i]), reason)
