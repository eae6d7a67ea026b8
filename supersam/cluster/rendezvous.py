"""Where the ranks of a Slurm step meet: rank 0 chooses, the others read it from the run folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from supersam.config import UserError
from supersam.runtime.atomic import write_json
from supersam.runtime.waiting import wait_until

_FOLDER = "rendezvous"
DEADLINE_S = 300.0  # the slowest rank may still be reading Python from a cold file system
RANK_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""What a rank reads of its environment: torchrun's names."""


def free_port(host: str = "") -> int:
    """Return a TCP port on which this machine can listen now, on `host` or on all its addresses."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def clear_rendezvous(folder: Path) -> None:
    """Forget where the ranks of earlier attempts met."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)


def join_step(
    folder: Path, environment: Mapping[str, str], *, deadline_s: float = DEADLINE_S
) -> dict[str, str]:
    """Return this task's place, as `init_world` wants it, from what Slurm says of it.

    Keyed by job, restart and step, so that a rank never meets those of an earlier attempt.
    """
    rank = int(environment["SLURM_PROCID"])
    world_size = int(environment["SLURM_NTASKS"])
    nodes = int(environment["SLURM_NNODES"])
    key = "-".join(
        environment.get(name, "0")
        for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
    )
    address_file = folder / _FOLDER / f"{key}.json"
    address, port = _choose(address_file) if rank == 0 else _read(address_file, deadline_s)
    place = {
        "RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_RANK": int(environment["SLURM_LOCALID"]),
        "LOCAL_WORLD_SIZE": world_size // nodes,
        "GROUP_RANK": int(environment["SLURM_NODEID"]),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }
    return {name: str(value) for name, value in place.items()}


def _choose(address_file: Path) -> tuple[str, int]:
    address, port = socket.gethostname(), free_port()
    address_file.parent.mkdir(exist_ok=True)
    write_json(address_file, {"address": address, "port": port})
    return address, port


def _read(address_file: Path, deadline_s: float) -> tuple[str, int]:
    def look() -> tuple[str, int] | None:
        try:
            values = json.loads(address_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                os.listdir(address_file.parent)  # makes NFS look again
            return None
        return str(values["address"]), int(values["port"])

    found = wait_until(look, timeout_s=deadline_s)
    if found is None:
        raise UserError(
            f"rank 0 did not say within {deadline_s:g} s where to meet ({address_file}); see its "
            "log, and whether all nodes share this folder"
        )
    return found
