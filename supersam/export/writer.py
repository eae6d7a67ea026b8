"""Write an exported folder: whole or not at all, every file hashed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import Sam

from supersam import __version__, standalone
from supersam.config import UserError
from supersam.model import SamSupernet, extract_subnet
from supersam.model.extract import sizes_of
from supersam.runtime.atomic import atomic_folder, file_sha256, sync, write_json
from supersam.runtime.tensors import save_tensors
from supersam.space import SubnetSpec
from supersam.standalone import (
    CARD_JSON,
    CONFIG,
    FORMAT,
    LOADER,
    MANIFEST,
    SPEC,
    WEIGHTS,
    load_subnet,
    read_files,
)

_IDENTITY = {
    "format": FORMAT,
    "model_type": "segment-anything",
    "architectures": ["Sam"],
    "produced_by": f"supersam {__version__}",
    "loader": f"{LOADER}: load_subnet()",
    "needs": ["torch", "segment-anything", "safetensors"],
}
"""What the folder is, for people and tools that meet it without SuperSAM."""
Complete = Callable[[Path, Sam], Mapping[str, Any]]
"""Adds the other files, given the folder and the model read back from it; returns the card.
Where it raises, no folder is left behind."""


def export_subnet(
    supernet: SamSupernet, spec: SubnetSpec, out: Path, *, complete: Complete | None = None
) -> None:
    """Write the subnet `spec` as the new folder `out`, which `load_subnet` reads.

    Raises UserError where `out` holds something already, or a file of the export or of the
    evaluation cannot be written or read.
    """
    require_free(out)
    try:
        with atomic_folder(out) as folder:
            _write_model(supernet, spec, folder)
            card = {} if complete is None else complete(folder, load_subnet(folder))
            write_json(folder / CARD_JSON, card)
            _write_manifest(folder)
    except OSError as fault:
        raise UserError(
            f"the export to {out} failed, and nothing of it is left: {fault}; mend that and run "
            "the same command again"
        ) from fault


def require_free(out: Path) -> None:
    """Raise UserError where `out` is a file or a folder that is not empty."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is there already, and nothing is overwritten; choose another --out")


def _write_model(supernet: SamSupernet, spec: SubnetSpec, folder: Path) -> None:
    sam = extract_subnet(supernet, spec)
    state = {name: tensor.cpu().contiguous() for name, tensor in sam.state_dict().items()}
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    save_tensors(state, folder / WEIGHTS, metadata={"format": "pt"})
    sizes = sizes_of(spec, supernet.space.shape)
    write_json(folder / CONFIG, {**_IDENTITY, "sizes": sizes.to_dict()})
    shutil.copyfile(standalone.__file__, folder / LOADER)
    spec.write(folder / SPEC)
    _write_manifest(folder)  # of what is there; reading back needs it


def _write_manifest(folder: Path) -> None:
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    for path in paths:
        sync(path)
    files = {path.name: file_sha256(path) for path in paths}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files})


def damaged_files(folder: Path) -> list[str]:
    """List the files that changed since the export. Raises ValueError on any other folder."""
    return [
        name
        for name, digest in read_files(folder).items()
        if not (folder / name).is_file() or file_sha256(folder / name) != digest
    ]
