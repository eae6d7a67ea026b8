"""Scale mask logits to masks of the original image as segment-anything does, only where needed.

`Sam.postprocess_masks` interpolates to the padded square, crops, and interpolates to the original
size. Each step is linear and separable, so all three are one matrix per axis, whose rows can be
chosen: a small object costs the pixels around it, not four full frames. The products are float64,
which neither autocast nor TF32 touches: no setting of the training around them moves a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS_ON_CPU = 256
"""Rows at a time on a CPU: of 32 to 256 the fastest, 0.68 of the time of all 1024 at once."""

Window = tuple[slice, slice]
"""Rows and columns of the original image."""


@dataclass(frozen=True)
class MaskUpscaler:
    """The way from s x s mask logits to an image of H x W pixels. Build it with `for_image`."""

    rows: Tensor
    """(H, s) float64: share of each logit row in each row of the image."""
    columns: Tensor
    """(W, s) float64: share of each logit column in each column of the image."""

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

    def window(self, logits: Tensor, frame: Window | None = None) -> Window:
        """Return the smallest window that holds `frame` and every pixel whose logit is above 0.

        logits: (n, k, s, s). The weights are not negative, so a pixel without a positive logit
        among its neighbours cannot be above 0. At least one pixel.
        """
        peak = logits.amax((0, 1))
        row_hit = self.rows @ (peak.amax(1) > 0).double()
        column_hit = self.columns @ (peak.amax(0) > 0).double()
        if frame is not None:
            row_hit[frame[0]] += 1
            column_hit[frame[1]] += 1
        return _span(row_hit), _span(column_hit)

    def upscale(self, logits: Tensor, window: Window) -> Tensor:
        """Logits of the pixels of `window`. logits: (..., s, s). Returns (..., h, w) float64."""
        return torch.cat(list(self._row_blocks(logits, window)), dim=-2)

    def masks(self, logits: Tensor, window: Window) -> Tensor:
        """Pixels of `window` whose logit is above 0. Returns (..., h, w) bool."""
        return torch.cat([rows > 0 for rows in self._row_blocks(logits, window)], dim=-2)

    def _row_blocks(self, logits: Tensor, window: Window) -> Iterator[Tensor]:
        """Logits of `window`, a few rows at a time: those need few of the rows of `logits`."""
        rows, columns = self.rows[window[0]], self.columns[window[1]]
        used = _span(columns.amax(0))
        widened = logits[..., used].double() @ columns[:, used].T
        step = _ROWS_ON_CPU if rows.device.type == "cpu" else len(rows)
        for first in range(0, len(rows), step):
            block = rows[first : first + step]
            cells = _span(block.amax(0))
            yield block[:, cells] @ widened[..., cells, :]


def _axis_weights(cells: int, *, side: int, size: int, original: int) -> Tensor:
    """(original, cells) float64: what SAM's three steps make of each logit cell along one axis."""
    squared = F.interpolate(torch.eye(cells)[None], side, mode="linear")
    return F.interpolate(squared[..., :size], original, mode="linear")[0].T.double()


def _span(hit: Tensor) -> slice:
    """From the first to the last cell of `hit` above 0; the first cell if none is."""
    cells = hit.nonzero()
    if len(cells) == 0:
        return slice(0, 1)
    return slice(int(cells[0]), int(cells[-1]) + 1)
