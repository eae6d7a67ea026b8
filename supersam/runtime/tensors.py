"""Tensors in safetensors files; apart from `atomic`, which starts without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, *, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors of any device, readable by everybody who may read the folder.

    safetensors' own files are for their owner alone: a group could not use a colleague's run.
    """
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, metadata)
    path.chmod(path.parent.stat().st_mode & 0o666)
