"""The evaluation images of a search, decoded and scaled once, kept on the evaluator's device.

Letters: B images of a batch, N prompts of an image, S input side, s = S / 4 mask-logit side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from supersam.config import UserError
from supersam.config.search import ProtocolConfig
from supersam.data.dataset import EvalDataset
from supersam.data.sample import LABEL_PAD, LOGIT_STRIDE, EvalImage
from supersam.data.shards import ShardReader
from supersam.evaluation.evaluator import slices
from supersam.model.input_size import resize_images, scale_points
from supersam.search.image_set import ImageSet

_ORDER_SEED = 0
_PIXELS_AT_A_TIME = 2**25
"""Pixels of masks drawn at full size at a time: 160 MiB."""


@dataclass(frozen=True)
class GridTargets:
    """What the masks of some images are compared with on the grid of the mask logits."""

    valid: Tensor
    """(B, N) bool: the objects there are."""
    masks: Tensor
    """(B, N, s, s) bool: the annotated masks."""
    inside: Tensor
    """(B, 1, s, s) bool: the part of that grid that is image, not padding."""


@dataclass(frozen=True)
class Prompts:
    """One prompt for each object of some images."""

    points: Tensor
    """(B, N, 2, 2) float32, pixels (x, y) of the padded square."""
    labels: Tensor
    """(B, N, 2) int64; LABEL_PAD where an image has fewer than N objects."""


@dataclass(frozen=True)
class ImageBatch:
    """Some images with their prompts and objects, on one device."""

    images: Tensor
    """(B, 3, S, S) uint8 RGB, padded right and below."""
    sizes: Tensor
    """(B, 2) int64, (height, width) inside the padding."""
    prompts: tuple[Prompts, ...]
    """Each kind of prompt that the protocol has, for the same objects."""
    sample_ids: Tensor
    """(B,) int64, on the CPU."""
    groups: Tensor
    """(B,) int64, on the CPU: the images' groups, the unit of resampling; see `Origin.group`."""
    targets: GridTargets | tuple[EvalImage, ...]
    """The annotated masks on the grid of the logits at the model's own resolution, whatever the
    subnet's is; or the images, at the original resolution."""

    def at(self, side: int) -> ImageBatch:
        """Return images and prompts scaled to `side` pixels; the targets stay."""
        before = self.images.shape[-1]
        if before == side:
            return self
        images, sizes = resize_images(self.images, self.sizes, side)
        prompts = tuple(
            Prompts(scale_points(each.points, before, side), each.labels) for each in self.prompts
        )
        return replace(self, images=images, sizes=sizes, prompts=prompts)


def chosen_images(count: int, limit: int | None) -> list[int]:
    """Which of `count` images are looked at: spread evenly, in a fixed random order.

    So the first of them are a fair sample for early stopping.
    """
    wanted = count if limit is None else min(limit, count)
    spread = [index * count // wanted for index in range(wanted)]
    return [spread[i] for i in np.random.default_rng(_ORDER_SEED).permutation(wanted)]


def load_images(
    images: ImageSet,
    protocol: ProtocolConfig,
    *,
    side: int,
    device: torch.device,
    originals: bool,
) -> list[ImageBatch]:
    """The images of a protocol, in batches. Images without an object are left out.

    originals: whether masks are compared at the original resolution.

    Raises UserError where no image has one.
    """
    readers = [ShardReader(folder) for folder in images.folders]
    first, *others = (EvalDataset(readers, side=side, prompt=name) for name in protocol.prompts)
    places = images.places()
    chosen = [int(places[i]) for i in chosen_images(len(places), protocol.images)]
    scenes = []
    for place in chosen:
        image = some_objects(first[place], protocol.objects_per_image)
        if len(image.masks) > 0:
            alike = [some_objects(other[place], protocol.objects_per_image) for other in others]
            scenes.append(_Scene(image, tuple((i.points, i.labels) for i in (image, *alike))))
    if not scenes:
        raise UserError(f"no image of {images} has an annotated object")
    step = protocol.images_per_batch
    return [
        _stack(scenes[begin : begin + step], side, device, originals=originals)
        for begin in range(0, len(scenes), step)
    ]


@dataclass(frozen=True)
class _Scene:
    """An image, and (points, labels) of its objects for each kind of prompt."""

    image: EvalImage
    prompts: tuple[tuple[Tensor, Tensor], ...]


def some_objects(image: EvalImage, limit: int | None) -> EvalImage:
    """Return the image with at most `limit` of its objects, spread evenly; None keeps all."""
    count = len(image.masks)
    if limit is None or count <= limit:
        return image
    some = [index * count // limit for index in range(limit)]
    return image.select(some)


def _stack(
    scenes: Sequence[_Scene], side: int, device: torch.device, *, originals: bool
) -> ImageBatch:
    images = [scene.image for scene in scenes]
    kinds = zip(*(scene.prompts for scene in scenes), strict=True)
    return ImageBatch(
        images=torch.stack([image.image for image in images]).to(device),
        sizes=torch.tensor([image.size for image in images], device=device),
        prompts=tuple(_stack_prompts(prompts, device) for prompts in kinds),
        sample_ids=torch.tensor([image.sample_id for image in images]),
        groups=torch.tensor([image.group for image in images]),
        targets=tuple(images) if originals else _grid_targets(images, side, device),
    )


def _stack_prompts(prompts: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> Prompts:
    most = max(len(points) for points, _ in prompts)
    points = torch.zeros(len(prompts), most, 2, 2)
    labels = torch.full((len(prompts), most, 2), LABEL_PAD)
    for row, (some, kinds) in enumerate(prompts):
        points[row, : len(some)], labels[row, : len(some)] = some, kinds
    return Prompts(points.to(device), labels.to(device))


def _grid_targets(images: Sequence[EvalImage], side: int, device: torch.device) -> GridTargets:
    batch, cells = len(images), side // LOGIT_STRIDE
    most = max(len(image.masks) for image in images)
    valid = torch.zeros(batch, most, dtype=torch.bool)
    masks = torch.zeros(batch, most, cells, cells, dtype=torch.bool)
    inside = torch.zeros(batch, 1, cells, cells, dtype=torch.bool)
    for row, image in enumerate(images):
        count = len(image.masks)
        height, width = (-(-length // LOGIT_STRIDE) for length in image.size)
        valid[row, :count] = True
        for some in slices(count, max(1, _PIXELS_AT_A_TIME // math.prod(image.original_size))):
            masks[row, :count][some, :height, :width] = scale_masks(
                image.masks[some], (height, width)
            )
        inside[row, :, :height, :width] = True
    return GridTargets(valid.to(device), masks.to(device), inside.to(device))


def scale_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks on a coarser grid: cells that are half covered; the most covered where none is.

    masks: (M, H, W) bool. Returns (M, *size) bool; an object never vanishes.
    """
    covered = F.interpolate(masks[None].float(), size, mode="area")[0]
    most = covered.amax((1, 2), keepdim=True)
    return (covered >= most.clamp(max=0.5)) & (covered > 0)
