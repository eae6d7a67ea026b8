"""Batches on the device that trains, the next one copied while the current one is in use."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from supersam.data.sample import Batch


class DeviceBatches:
    """Batches of a loader, on a device. On a GPU one batch is copied ahead, on its own stream."""

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches = batches
        self._device = device
        self._ahead: Batch | None = None
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # no type in torch

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch, self._ahead = self._ahead, None
        if batch is None:
            return next(self._batches).to(self._device)
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            batch.record_stream(current)
        return batch

    def copy_ahead(self) -> None:
        """Fetch the next batch and start its copy: call it while the device is busy.

        On a CPU, which is busy itself, nothing is done.
        """
        if self._stream is None or self._ahead is not None:
            return
        batch = next(self._batches, None)
        with torch.cuda.stream(self._stream):
            self._ahead = None if batch is None else batch.to(self._device)
