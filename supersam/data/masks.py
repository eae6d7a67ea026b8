"""The masks of one image's objects, kept as runs and drawn when they are looked at.

A mask at full size takes a byte per pixel: thousands of objects in a large scan would need tens of
gigabytes at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from supersam.data.rle import Runs, window_runs
from supersam.data.transforms import Crop, MaskPatch, cut_patch

if TYPE_CHECKING:
    from torch import Tensor


Frame = tuple[slice, slice]
"""Rows and columns of an image."""


@dataclass(frozen=True)
class ObjectMasks:
    """M masks of an image of H x W pixels. `masks[some]` draws some of them."""

    runs: tuple[Runs, ...]
    size: tuple[int, int]
    """(H, W)."""

    @classmethod
    def of(cls, masks: Tensor) -> ObjectMasks:
        """Keep drawn masks, (M, H, W) bool."""
        height, width = masks.shape[1:]
        return cls(tuple(window_runs(m.numpy(), height, width) for m in masks), (height, width))

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, some: slice) -> Tensor:
        """Draw the masks of a slice at full size, (m, H, W) bool."""
        import torch

        chosen = self.runs[some]
        drawn = np.zeros((len(chosen), *self.size), bool)
        for mask, runs in zip(drawn, chosen, strict=True):
            if (patch := cut_patch(runs, self._frame)) is not None:
                x0, y0, x1, y1 = patch.box
                mask[y0:y1, x0:x1] = patch.pixels
        return torch.from_numpy(drawn)

    def draw(self, some: slice, frame: Frame) -> Tensor:
        """Draw the masks of a slice inside a frame of the image, (m, h, w) bool."""
        import torch

        rows, columns = frame
        y, x, height, width = (
            rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start
        )  # fmt: skip
        chosen = [runs.draw(y, x, height, width) for runs in self.runs[some]]
        return torch.from_numpy(np.stack(chosen))

    def frame(self, some: slice) -> Frame | None:
        """Return the smallest frame that holds the objects of a slice; None without a pixel."""
        boxes = [runs.bbox for runs in self.runs[some] if runs.area > 0]
        if not boxes:
            return None
        x0, y0, width, height = np.array(boxes).T
        return (
            slice(int(y0.min()), int((y0 + height).max())),
            slice(int(x0.min()), int((x0 + width).max())),
        )

    def areas(self, some: slice) -> Tensor:
        """Return the pixels of each object of a slice, (m,) int32."""
        import torch

        return torch.tensor([runs.area for runs in self.runs[some]], dtype=torch.int32)

    def __iter__(self) -> Iterator[Tensor]:
        """Draw one mask after the other, (H, W) bool each."""
        return (self[index : index + 1][0] for index in range(len(self)))

    def take(self, which: Sequence[int]) -> ObjectMasks:
        """Return the masks of some objects, by index; nothing is drawn."""
        return ObjectMasks(tuple(self.runs[index] for index in which), self.size)

    def patch(self, index: int) -> MaskPatch | None:
        """Draw one object in its tight box; None where it has no pixel."""
        return cut_patch(self.runs[index], self._frame)

    @property
    def _frame(self) -> Crop:
        return Crop(0, 0, self.size[1], self.size[0])
