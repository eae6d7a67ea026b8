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
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from supersam.config.files import CHECKPOINT_MANIFEST, PROGRESS_FILE
from supersam.config import CheckpointConfig
from supersam.runtime.atomic import file_sha256, sync, write_json
from supersam.runtime.distributed import World, all_reduce_max, barrier
from supersam.runtime.tensors import save_tensors
from supersam.runs.checkpoints import FORMAT, Manifest, SavedCheckpoints, TrainState


class Share(NamedTuple):
    """A run of consecutive elements of a tensor, what one rank has of it."""

    name: str
    first: int
    """Where it begins in the flattened tensor."""
    values: Tensor
    """(n,) elements."""


class CheckpointManager(SavedCheckpoints):
    """Writes the checkpoints of one run folder."""

    def __init__(self, folder: Path, config: CheckpointConfig, world: World) -> None:
        """folder: the run's folder; checkpoints go to its `checkpoints`."""
        super().__init__(folder)
        self._config = config
        self.world = world

    def save(
        self,
        model: nn.Module,
        moments: Iterable[Share],
        state: TrainState,
        *,
        average: Mapping[str, Tensor] | None = None,
        order: Mapping[str, object],
        data: list[str],
        versions: Mapping[str, str],
    ) -> Path:
        """Write the checkpoint of `state.step` and delete those no longer kept. A collective.

        moments: this rank's shares; all ranks' together are whole. average: the moving average of
        the weights, where the run keeps one. Returns the checkpoint's folder.
        Raises OSError on every rank where one of them could not write.
        """
        final = self.path(state.step)
        partial = final.with_name(f".{final.name}.partial")
        fault = self._make_room(partial) if self.world.is_first else None
        self._agree(fault, partial)
        fault = self._write_share(partial, model, moments, average or {})
        self._agree(fault, partial)
        if self.world.is_first:
            manifest = Manifest(state, dict(order), data, self.world.world_size, {}, dict(versions))
            fault = self._finish(partial, final, manifest)
        self._agree(fault, partial)
        if self.world.is_first:
            self._delete_old(state)
        barrier()
        return final

    def record_score(self, state: TrainState) -> None:
        """Put `state`, with a new score, into the checkpoint of its step. A collective.

        Raises OSError on every rank where rank 0 could not write.
        """
        fault, path = None, self.path(state.step)
        if self.world.is_first:
            try:
                values = json.loads((path / CHECKPOINT_MANIFEST).read_text(encoding="utf-8"))
                write_json(path / CHECKPOINT_MANIFEST, {**values, "state": asdict(state)})
                self._delete_old(state)
            except OSError as problem:
                fault = problem
        self._agree(fault, path / CHECKPOINT_MANIFEST)

    def _make_room(self, partial: Path) -> OSError | None:
        """Remove what killed writers left and create the folder to write in."""
        for leftover in self._folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            self._folder.mkdir(exist_ok=True)  # without parents: a deleted run is not made anew
            partial.mkdir()
        except OSError as fault:
            return fault
        return None

    def _write_share(
        self,
        folder: Path,
        model: nn.Module,
        moments: Iterable[Share],
        average: Mapping[str, Tensor],
    ) -> OSError | None:
        """Write every R-th weight and average, and the shares of moments that this rank has."""
        rank, size = self.world.rank, self.world.world_size

        def share_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {n: t for i, (n, t) in enumerate(tensors.items()) if i % size == rank}

        kinds = {
            "weights": share_of(model.state_dict()),
            "moments": {f"{share.name}@{share.first}": share.values for share in moments},
        }
        if average:
            kinds["average"] = share_of(average)
        try:
            for kind, tensors in kinds.items():
                path = folder / f"{kind}-{rank:05d}-of-{size:05d}.safetensors"
                save_tensors(tensors, path)
                sync(path)
        except OSError as fault:
            return fault
        return None

    def _finish(self, partial: Path, final: Path, manifest: Manifest) -> OSError | None:
        try:
            files = {path.name: file_sha256(path) for path in sorted(partial.glob("*.safetensors"))}
            write_json(partial / CHECKPOINT_MANIFEST, {"format": FORMAT, **asdict(manifest), "files": files})
            if final.exists():  # an earlier attempt saved this very step
                shutil.rmtree(final)
            os.rename(partial, final)
            sync(final.parent)
            write_json(self._run / PROGRESS_FILE, {"step": manifest.state.step})
        except OSError as fault:
            return fault
        return None

    def _agree(self, fault: OSError | None, partial: Path) -> None:
        """Raise on every rank where one of them failed; a barrier otherwise."""
        if all_reduce_max(float(fault is not None)) == 0.0:
            return
        if self.world.is_first and partial.is_dir():
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


def read_weights(path: Path, manifest: Manifest) -> dict[str, Tensor]:
    """The weights of a verified checkpoint, by name."""
    return _read(path, manifest, "weights")


def read_average(path: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Return the moving average of the trained weights, by name; empty where the run kept none."""
    return _read(path, manifest, "average")


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
