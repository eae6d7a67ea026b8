"""Numbers and pictures of a run: TensorBoard and metrics.jsonl on rank 0, nothing elsewhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from supersam.config.files import METRICS_FILE, TENSORBOARD
from supersam.runtime.atomic import write_bytes
from supersam.runtime.extensions import load_extension

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


_FLUSH_S = 10
"""What is written shows after this time at most; TensorBoard's own two minutes are not live."""


# TensorBoard takes the columns of its HPARAMS tab from whichever run it reads first, so trainings
# and searches name those of both. It ticks five of each kind: settings that differ, then by name.
_SETTINGS: dict[str, float | str | bool] = dict(
    searcher="", constraint="", trials=0, lr=0.0, steps=0,
    model="", global_batch=0, random_subnets=0, distill=False, precision="",
    objectives="", population=0, seed=0,
)  # fmt: skip
"""Settings and an example of each one's type."""
_FIRST = ("searcher", "constraint", "trials", "lr", "steps")
_RESULTS = (
    *("val/miou/largest", "val/miou/smallest"),
    *("search/best_miou", "search/final_best_miou", "search/hypervolume", "search/front_size"),
)


class MetricWriter:
    """Writes to one TensorBoard folder over all restarts of a run.

    On the first write after a restart at step n, events of the steps after n are hidden, so that a
    curve has no doubled part; those of step n itself stay.
    """

    def __init__(self, folder: Path | None, *, first_step: int = 0, own: str | None = None) -> None:
        """folder: the run's folder; None for a rank that does not write.

        own: module:object of the user, called with the folder; its `scalars` and `close` are called
        after these.
        """
        self._own: Any = None
        self._board: SummaryWriter | None = None
        self._lines: Path | None = None
        if folder is None:
            return
        if own is not None:
            self._own = load_extension(own, "--engine.metric-writer")(folder)
        from torch.utils.tensorboard import SummaryWriter  # slow to import; rank 0 only

        _leave_disk_faults_to_callers()
        self._lines = folder / METRICS_FILE
        _drop_later_lines(self._lines, first_step)
        board = folder / TENSORBOARD
        purge_step = first_step + 1 if board.exists() else None  # TensorBoard's first hidden step
        self._board = SummaryWriter(str(board), purge_step=purge_step, flush_secs=_FLUSH_S)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars named by paths such as `train/loss`."""
        if self._board is None or self._lines is None:
            return
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._own is not None:
            self._own.scalars(dict(values), step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Write a picture. pixels: (H, W, 3) uint8."""
        if self._board is not None:
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def text(self, name: str, text: str) -> None:
        """Write preformatted text."""
        if self._board is not None:
            quoted = "\n".join("    " + line for line in text.splitlines())
            self._board.add_text(name, quoted, 0)

    def hparams(
        self, values: Mapping[str, float | str | bool], results: Mapping[str, float]
    ) -> None:
        """Write the settings of a run or a search; the last values of its results are shown.

        `add_hparams` would write into a folder below, which TensorBoard lists as one more run.
        """
        assert values.keys() <= _SETTINGS.keys()  # others would be no column
        if self._board is None:
            return
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        from torch.utils.tensorboard.summary import hparams

        columns, *_ = hparams(_SETTINGS, dict.fromkeys((*_RESULTS, *results), 0.0))  # type: ignore[no-untyped-call]  # no type in torch
        plugin_data = columns.value[0].metadata.plugin_data
        described = HParamsPluginData.FromString(plugin_data.content)
        for info in described.experiment.hparam_infos:
            info.differs = info.name in _FIRST
        plugin_data.content = described.SerializeToString()
        _, start, end = hparams(dict(values), {})  # type: ignore[no-untyped-call]  # no type in torch
        file: Any = self._board.file_writer
        for summary in (columns, start, end):
            file.add_summary(summary)

    def close(self) -> None:
        """Flush and close; a closed writer writes nothing more."""
        if self._board is not None:
            self._board.close()
            self._board = None
        if self._own is not None:
            self._own.close()
            self._own = None


def _leave_disk_faults_to_callers() -> None:
    """Print no traceback where TensorBoard's thread cannot write: its caller is told."""
    before = threading.excepthook

    def tell(args: threading.ExceptHookArgs) -> None:
        is_of_board = type(args.thread).__module__.startswith("tensorboard.")
        if not (is_of_board and isinstance(args.exc_value, OSError)):
            before(args)

    if getattr(before, "__qualname__", "") != tell.__qualname__:  # once a process
        threading.excepthook = tell


def _drop_later_lines(path: Path, first_step: int) -> None:
    """Forget numbers of steps that a restart will take again, and a line cut short by a crash."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= first_step:
                kept.append(line)
        except ValueError:
            continue
    write_bytes(path, "".join(line + "\n" for line in kept).encode())
