"""Exported subnets. Importing this needs only torch, segment-anything and safetensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import supersam.runtime.light_torchvision  # noqa: F401 - before segment_anything
from supersam.standalone import load_subnet

if TYPE_CHECKING:
    from supersam.export.writer import export_subnet

__all__ = ["export_subnet", "load_subnet"]


def __getattr__(name: str) -> Any:
    """Import `export_subnet` on first use: loading an export needs none of its libraries."""
    if name != "export_subnet":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from supersam.export.writer import export_subnet

    return export_subnet
