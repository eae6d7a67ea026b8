"""Mask logits to masks of the original image, as segment-anything does it, but only where needed.

`Sam.postprocess_masks` interpolates to the padded square, crops, and interpolates to the original
size. Each step is linear and separable, so all three are one matrix an axis, whose rows can be
chosen: a small object costs the pixels around it, not four full frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from supersam.evaluation.metrics import occupancy

Window = tuple[slice, slice]
"""Rows and columns of the original image."""


@dataclass(frozen=True)
class MaskUpscaler:
    """The way from s x s mask logits to an image of H x W pixels. Build it with `for_image`."""

    rows: Tensor
    """(H, s) float32: share of each logit row in each row of the image."""
    columns: Tensor
    """(W, s) float32: share of each logit column in each column of the image."""

    @classmethod
    def for_image(
        cls, logits: Tensor, *, side: int, size: tuple[int, int], original_size: tuple[int, int]
    ) -> MaskUpscaler:
        """For logits (..., s, s) of an image of `size` inside a padded square of `side` pixels."""
        rows, columns = (
            _axis_weights(logits.shape[-1], side=side, size=inner, original=outer).to(logits.device)
            for inner, outer in zip(size, original_size, strict=True)
        )
        return cls(rows, columns)

    def window(self, logits: Tensor, masks: Tensor) -> Window:
        """The smallest frame that holds all of `masks` and every pixel whose logit is above 0.

        logits: (n, k, s, s). masks: (n, H, W) bool. The weights are not negative, so a pixel
        without a positive logit among its neighbours cannot be above 0. At least one pixel.
        """
        positive = (logits > 0).flatten(0, 1).any(0)
        row_hit = self.rows @ positive.any(1).float() + occupancy(masks, dim=-2).amax(0)
        column_hit = self.columns @ positive.any(0).float() + occupancy(masks, dim=-1).amax(0)
        return _span(row_hit), _span(column_hit)

    def upscale(self, logits: Tensor, window: Window) -> Tensor:
        """Logits of the pixels of `window`. logits: (..., s, s). Returns (..., h, w) float32."""
        rows, columns = self.rows[window[0]], self.columns[window[1]]
        used_rows, used_columns = _span(rows.amax(0)), _span(columns.amax(0))
        with _full_precision(logits.device):
            scaled = rows[:, used_rows] @ logits[..., used_rows, used_columns].float()
            return scaled @ columns[:, used_columns].T


def _axis_weights(cells: int, *, side: int, size: int, original: int) -> Tensor:
    """(original, cells) float32: what SAM's three steps make of each logit cell along one axis."""
    squared = F.interpolate(torch.eye(cells)[None], side, mode="linear")
    return F.interpolate(squared[..., :size], original, mode="linear")[0].T.contiguous()


def _span(hit: Tensor) -> slice:
    """From the first to the last cell of `hit` above 0; the first cell if none is."""
    cells = hit.nonzero()
    if len(cells) == 0:
        return slice(0, 1)
    return slice(int(cells[0]), int(cells[-1]) + 1)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products, whatever autocast or TF32 the training around them has switched on."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
