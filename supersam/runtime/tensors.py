"""Tensors in safetensors files; apart from `atomic`, which starts without torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, *, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors of any device, readable by everybody who may read the folder.

    safetensors' own files are for their owner alone: a group could not use a colleague's run.
    Raises OSError where the disk or the path is at fault.
    """
    held = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        save_file(held, path, metadata)
    except SafetensorError as fault:
        found = _OS_ERROR.search(str(fault))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from None
    path.chmod(path.parent.stat().st_mode & 0o666)
