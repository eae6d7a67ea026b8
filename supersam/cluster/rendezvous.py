"""Where the ranks of a Slurm step meet: rank 0 chooses, the others read it from the run folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from supersam.config import UserError
from supersam.runtime.atomic import write_json

_FOLDER = "rendezvous"
DEADLINE_S = 300.0  # the slowest rank may still be reading Python from a cold file system


def free_port(host: str = "") -> int:
    """A TCP port on which this machine can listen now, on `host` or on all its addresses."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def clear_rendezvous(folder: Path) -> None:
    """Forget where the ranks of earlier attempts met."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)


def join_step(
    folder: Path, environment: Mapping[str, str], *, deadline_s: float = DEADLINE_S
) -> dict[str, str]:
    """This task's place, as `init_world` wants it, from what Slurm says of it.

    Keyed by job, restart and step, so that a rank never meets those of an earlier attempt.
    """
    rank = int(environment["SLURM_PROCID"])
    world_size = int(environment["SLURM_NTASKS"])
    nodes = int(environment["SLURM_NNODES"])
    key = "-".join(
        environment.get(name, "0")
        for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
    )
    meeting = folder / _FOLDER / f"{key}.json"
    address, port = _choose(meeting) if rank == 0 else _read(meeting, deadline_s)
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


def _choose(meeting: Path) -> tuple[str, int]:
    address, port = socket.gethostname(), free_port()
    meeting.parent.mkdir(exist_ok=True)
    write_json(meeting, {"address": address, "port": port})
    return address, port


def _read(meeting: Path, deadline_s: float) -> tuple[str, int]:
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        try:
            values = json.loads(meeting.read_text(encoding="utf-8"))
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                os.listdir(meeting.parent)  # makes NFS look again
            time.sleep(0.2)
            continue
        return str(values["address"]), int(values["port"])
    raise UserError(
        f"rank 0 did not say within {deadline_s:g} s where to meet ({meeting}); see its log, and "
        "whether all nodes share this folder"
    )
