"""Checkpoints that are complete or absent, verified, and free of the world size that wrote them.

A checkpoint is a folder `step-000300`: tensors by name in safetensors files, one pair for each
rank that wrote, and `MANIFEST.json` with the hash of every file and everything else that resuming
needs. Each rank writes a part of the weights and its own share of the optimizer's moments, so that
nothing is exchanged. It is written beside its place and renamed into it when every rank has
finished.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from supersam.config import CheckpointConfig, UserError
from supersam.runtime.atomic import file_sha256, sync, write_json
from supersam.runtime.distributed import World, all_reduce_max, barrier
from supersam.runtime.tensors import save_tensors
from supersam.runtime.vitals import MANIFEST, PROGRESS, saved_step

logger = logging.getLogger(__name__)

FORMAT = 2
_READABLE = (1, FORMAT)
"""Format 1 had whole moments, gathered by all ranks."""
_NAME = re.compile(r"step-(\d{6,})")


class Share(NamedTuple):
    """A run of consecutive elements of a tensor, what one rank has of it."""

    name: str
    first: int
    """Where it begins in the flattened tensor."""
    values: Tensor
    """(n,) elements."""


@dataclass
class TrainState:
    """All that changes during a run besides weights and moments; the whole of what resuming needs.

    The loader's position, the learning rate and the subnet draws follow from `step`.
    """

    step: int = 0
    """Optimizer steps taken."""
    best_score: float | None = None
    """Highest validation score so far; None before the first validation."""
    best_step: int | None = None
    """The step of that score."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    state: TrainState
    order: dict[str, Any]
    """The sample order's constants (`SampleOrder.describe`)."""
    data: list[str]
    """Fingerprints of the training sets."""
    world_size: int
    """Ranks of the run that wrote it; any other number may read it."""
    files: dict[str, str]
    """SHA-256 of each file, by name."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of this software and of torch."""


class CheckpointManager:
    """The checkpoints of one run folder."""

    def __init__(self, folder: Path, config: CheckpointConfig, world: World) -> None:
        """folder: the run's folder; checkpoints go to its `checkpoints`."""
        self._run = folder
        self._folder = folder / "checkpoints"
        self._config = config
        self.world = world

    def save(
        self,
        model: nn.Module,
        moments: Iterable[Share],
        state: TrainState,
        *,
        order: Mapping[str, object],
        data: list[str],
        versions: Mapping[str, str],
    ) -> Path:
        """Write the checkpoint of `state.step` and delete those no longer kept. A collective.

        moments: this rank's shares; all ranks' together are whole. Returns the checkpoint's folder.
        Raises OSError on every rank where one of them could not write.
        """
        final = self.path(state.step)
        partial = final.with_name(f".{final.name}.partial")
        fault = self._make_room(partial) if self.world.is_first else None
        self._agree(fault, partial)
        fault = self._write_share(partial, model, moments)
        self._agree(fault, partial)
        if self.world.is_first:
            manifest = Manifest(state, dict(order), data, self.world.world_size, {}, dict(versions))
            fault = self._finish(partial, final, manifest)
        self._agree(fault, partial)
        if self.world.is_first:
            self._delete_old(state)
        barrier()
        return final

    def latest(self) -> tuple[Path, Manifest] | None:
        """The newest checkpoint whose files are all as they were written; None in a new run.

        Raises UserError where the run made progress and no valid checkpoint is left: training must
        not start again from nothing by itself.
        """
        for path in reversed(self.all()):
            try:
                return path, verify(path)
            except UserError as fault:
                logger.warning("passing over a damaged checkpoint: %s", fault)
        if (self._run / PROGRESS).exists():
            raise UserError(
                f"{self._run} saved a checkpoint at step {saved_step(self._run)}, and no valid one "
                f"is left in {self._folder}; restore one, or start anew in another folder with "
                "--run"
            )
        return None

    def all(self) -> list[Path]:
        """Folders of the finished checkpoints, oldest first."""
        if not self._folder.is_dir():
            return []
        named = [(m, p) for p in self._folder.iterdir() if (m := _NAME.fullmatch(p.name))]
        return [path for _, path in sorted(named, key=lambda pair: int(pair[0][1]))]

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` is or would be."""
        return self._folder / f"step-{step:06d}"

    def _make_room(self, partial: Path) -> OSError | None:
        """Remove what killed writers left and create the folder to write in."""
        for leftover in self._folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
        except OSError as fault:
            return fault
        return None

    def _write_share(
        self, folder: Path, model: nn.Module, moments: Iterable[Share]
    ) -> OSError | None:
        """Write every R-th weight, and the shares of moments that this rank has."""
        rank, size = self.world.rank, self.world.world_size
        weights = {n: t for i, (n, t) in enumerate(model.state_dict().items()) if i % size == rank}
        mine = {f"{share.name}@{share.first}": share.values for share in moments}
        try:
            for kind, tensors in (("weights", weights), ("moments", mine)):
                path = folder / f"{kind}-{rank:05d}-of-{size:05d}.safetensors"
                save_tensors(tensors, path)
                sync(path)
        except (OSError, SafetensorError) as fault:
            return fault if isinstance(fault, OSError) else OSError(str(fault))
        return None

    def _finish(self, partial: Path, final: Path, manifest: Manifest) -> OSError | None:
        try:
            files = {path.name: file_sha256(path) for path in sorted(partial.glob("*.safetensors"))}
            write_json(partial / MANIFEST, {"format": FORMAT, **asdict(manifest), "files": files})
            if final.exists():  # an earlier attempt saved this very step
                shutil.rmtree(final)
            os.rename(partial, final)
            sync(final.parent)
            write_json(self._run / PROGRESS, {"step": manifest.state.step})
        except OSError as fault:
            return fault
        return None

    def _agree(self, fault: OSError | None, partial: Path) -> None:
        """Raise on every rank where one of them failed; a barrier otherwise."""
        if all_reduce_max(float(fault is not None)) == 0.0:
            return
        if self.world.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        reason = fault or "another rank failed; see its log"
        raise OSError(f"checkpoint {partial.parent} could not be written: {reason}") from fault

    def _delete_old(self, state: TrainState) -> None:
        kept = {self.path(step) for step in (*self._config.pin, state.best_step or -1)}
        kept |= set(self.all()[-self._config.keep_last :])
        for path in self.all():
            if path not in kept:
                _delete(path)


def _delete(path: Path) -> None:
    """Delete a checkpoint; it loses its name first, so that a kill leaves no half of it."""
    hidden = path.with_name(f".{path.name}.deleted")
    with contextlib.suppress(OSError):
        os.rename(path, hidden)
        shutil.rmtree(hidden)


def verify(path: Path) -> Manifest:
    """The manifest of a checkpoint whose files all have their hashes.

    Raises UserError that names the file that is missing or changed.
    """
    try:
        values = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version = values.pop("format")
        manifest = Manifest(**{**values, "state": TrainState(**values["state"])})
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise UserError(f"{path / MANIFEST} is missing or damaged ({fault})") from None
    if version not in _READABLE:
        raise UserError(f"{path} has format {version}; this software reads 1 to {FORMAT}")
    for name, digest in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file} is missing")
        if file_sha256(file) != digest:
            raise UserError(f"{file} is damaged: its content is not what was written")
    return manifest


def read_weights(path: Path, manifest: Manifest) -> dict[str, Tensor]:
    """The weights of a verified checkpoint, by name."""
    return _read(path, manifest, "weights")


def read_moments(path: Path, manifest: Manifest) -> dict[str, Tensor]:
    """The optimizer's moments of a verified checkpoint, by name, flattened."""
    shares: dict[str, dict[int, Tensor]] = {}
    for key, values in _read(path, manifest, "moments").items():
        name, _, first = key.partition("@")  # format 1 has none
        shares.setdefault(name, {})[int(first or 0)] = values.flatten()
    return {name: torch.cat([found[i] for i in sorted(found)]) for name, found in shares.items()}


def _read(path: Path, manifest: Manifest, kind: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in manifest.files:
        if name.startswith(f"{kind}-"):
            tensors.update(load_file(path / name))
    return tensors
