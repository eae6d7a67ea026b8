"""What crosses the data floor: a sample on disk, a batch on a device. Shapes are stated here.

Letters: B images, N prompts of an image, S input side in pixels, s = S / 4 mask-logit side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # the readers and the converter run where torch is not wanted
    import torch
    from torch import Tensor

    from supersam.data.masks import ObjectMasks

ImageFormat = Literal["jpeg", "png"]

# Prompt labels, as in segment-anything's ONNX export.
LABEL_PAD, LABEL_BACKGROUND, LABEL_FOREGROUND, LABEL_BOX_MIN, LABEL_BOX_MAX = -1, 0, 1, 2, 3
LOGIT_STRIDE = 4
"""Input pixels along a side of a mask-logit cell."""


@dataclass(frozen=True)
class Tile:
    """The place of a tile in the image that it was cut from, in pixels of that image."""

    y: int
    """Its first row."""
    x: int
    """Its first column."""
    height: int
    width: int
    source_height: int
    source_width: int


@dataclass(frozen=True)
class Origin:
    """Which photograph an image shows, whatever its name is."""

    source: int
    """Non-negative 63-bit number of the source image's content; tiles of one image share it."""
    group: int
    """Number of the clip or stack that the source belongs to; `source` where it stands alone."""
    tile: Tile | None = None
    """The tile's place in the source; None for a whole image."""


@dataclass(frozen=True)
class MaskRecord:
    """One object mask: COCO compressed run lengths and what can be known without decoding them."""

    rle: bytes
    """COCO compressed run-length counts of the full-size mask (column order), no size header."""
    area: int
    """Foreground pixels, counted from `rle`."""
    bbox: tuple[float, float, float, float]
    """Tight box (x, y, width, height) in pixels of the original image, from `rle`."""
    point: tuple[float, float]
    """A stored point prompt (x, y), a pixel of the mask: the source's own, else an inner one."""
    category: int = 0
    """The source's class id; 0 where it has none."""
    predicted_iou: float = 1.0
    """The annotator model's own estimate (SA-1B); 1 where the source has none."""
    stability_score: float = 1.0
    """SA-1B's stability score; 1 where the source has none."""


@dataclass(frozen=True)
class SegmentationSample:
    """One image with its object masks, still encoded."""

    id: int
    """Stable non-negative 63-bit number of the image, the same on every machine."""
    name: str
    """Where it came from, relative to the source's root: for messages and reports."""
    image: bytes
    """The encoded file, as found on disk where the format allows."""
    format: ImageFormat
    height: int
    width: int
    masks: tuple[MaskRecord, ...]
    origin: Origin | None = None
    """None where it is unknown: shards of schema 1.0 do not hold it."""


@dataclass(frozen=True)
class Batch:
    """What one training step sees. Tensors share one device."""

    images: Tensor
    """(B, 3, S, S) uint8 RGB, resized so that the longest side is S, padded right and below."""
    sizes: Tensor
    """(B, 2) int64: (height, width) of the image inside the padded square."""
    points: Tensor
    """(B, N, 2, 2) float32: two prompt points each, pixels (x, y) of the padded square."""
    labels: Tensor
    """(B, N, 2) int64: LABEL_* of each prompt point; a point prompt is (FOREGROUND, PAD)."""
    masks: Tensor
    """(B, N, s, s) uint8: the share of each mask-logit cell that the object covers, 0 to 255."""
    valid: Tensor
    """(B, N) bool: False where an image has fewer than N objects."""
    sample_ids: Tensor
    """(B,) int64: the ids of the images, for the data-order log."""

    num_bad: int = 0
    """Damaged records that were replaced by a neighbour in this batch."""
    clicks: Tensor | None = None
    """(B, N, `data.clicks`) float32 in [0, 1): which of the wrong cells each correction clicks on;
    None without corrections."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; copies from pinned memory do not block."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of a batch that another stream copied until `stream` is done with it."""
        for tensor in self._tensors().values():
            tensor.record_stream(stream)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; `DataLoader(pin_memory=True)` calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {n: change(tensor) for n, tensor in self._tensors().items()}
        return replace(self, **changed)

    def _tensors(self) -> dict[str, Tensor]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {n: value for n, value in found.items() if n != "num_bad" and value is not None}


@dataclass(frozen=True)
class EvalImage:
    """One held-out image with all its objects and their fixed prompts; nothing padded or repeated.

    H, W are the original image's pixels, M its number of objects.
    """

    image: Tensor
    """(3, S, S) uint8 RGB, resized and padded as in `Batch.images`."""
    size: tuple[int, int]
    """(height, width) of the image inside the padded square."""
    original_size: tuple[int, int]
    """(H, W)."""
    points: Tensor
    """(M, 2, 2) float32: two prompt points of each object, pixels (x, y) of the padded square."""
    labels: Tensor
    """(M, 2) int64: LABEL_* of each prompt point."""
    masks: ObjectMasks
    """The M annotated masks at the original resolution, drawn when they are looked at."""
    boxes: Tensor
    """(M, 4) float32: tight boxes (x, y, width, height), pixels of the original image."""
    sample_id: int
    """The image's id in the shards."""
    source: int
    """Number of the source image; tiles of one image share it. See `Origin`."""
    group: int
    """Number of the clip or stack, else of the source image: the unit of resampling."""
    tile: Tile | None = None
    """The tile's place in the source; None for a whole image, or where it is unknown."""
    num_cut: int = 0
    """Objects that were left out, since the tile's frame cuts them."""

    def select(self, which: Sequence[int]) -> EvalImage:
        """Return the image with some of its objects, by index, and their prompts."""
        rows = list(which)
        return replace(
            self,
            points=self.points[rows],
            labels=self.labels[rows],
            masks=self.masks.take(rows),
            boxes=self.boxes[rows],
        )
