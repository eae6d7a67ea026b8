"""A process's place in the job, as a value: everything else takes it as an argument."""

from __future__ import annotations

import datetime
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, TCPStore

from supersam.config import UserError
from supersam.runtime.device import choose_device

logger = logging.getLogger(__name__)

TIMEOUT_MIN = 10
LOOPBACK = "127.0.0.1"
_INTERFACE = "GLOO_SOCKET_IFNAME"
Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """Which process this is, and of how many."""

    rank: int
    """0 to `world_size - 1`, unique in the job."""
    world_size: int
    """Processes in the job, one for each device."""
    local_rank: int
    """0-based number of this process on its node; its device."""
    node: int
    """0-based number of the node."""

    @classmethod
    def single(cls) -> World:
        """The world of a process on its own."""
        return cls(rank=0, world_size=1, local_rank=0, node=0)

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for the job."""
        return self.rank == 0


def init_world(device: torch.device) -> World:
    """Join the job that RANK, WORLD_SIZE, LOCAL_RANK, GROUP_RANK and MASTER_* describe.

    Without them this process is a world of its own. Only this function reads them. Starts the
    default process group: nccl for CUDA, gloo for CPU.
    """
    world = World(
        rank=int(os.environ.get("RANK", 0)),
        world_size=int(os.environ.get("WORLD_SIZE", 1)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        node=int(os.environ.get("GROUP_RANK", 0)),
    )
    if device.type == "cuda":
        torch.cuda.set_device(choose_device("cuda", world.local_rank))
    if not dist.is_initialized():
        _choose_interface(world)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=_meeting_place(world),
            rank=world.rank,
            world_size=world.world_size,
            timeout=datetime.timedelta(minutes=TIMEOUT_MIN),
        )
    return world


def _choose_interface(world: World) -> None:
    """Have gloo use loopback where all ranks are on this machine, whatever the environment says.

    Raises UserError where ranks of several hosts are to use an interface that is not here.
    """
    if world.world_size == 1 or os.environ["MASTER_ADDR"] == LOOPBACK:
        os.environ[_INTERFACE] = "lo"
        return
    here = [name for _, name in socket.if_nameindex()]
    asked = [name for name in os.environ.get(_INTERFACE, "").split(",") if name]
    if missing := [name for name in asked if name not in here]:
        raise UserError(
            f"{_INTERFACE}={os.environ[_INTERFACE]} names {missing[0]}, and the network interfaces "
            f"of {socket.gethostname()} are {', '.join(here)}; set one that all hosts have, or "
            "leave the variable out"
        )


def _meeting_place(world: World) -> HashStore | TCPStore | None:
    """Where the ranks find each other; None leaves it to PyTorch, which reads MASTER_*.

    PyTorch's own listens on all of a machine's addresses; ranks of one machine need only loopback.
    """
    if world.world_size == 1:
        return HashStore()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if address != LOOPBACK:
        return None
    listener = socket.create_server((address, port)).detach() if world.is_first else None
    return TCPStore(
        address,
        port,
        world.world_size,
        is_master=world.is_first,
        timeout=datetime.timedelta(minutes=TIMEOUT_MIN),
        master_listen_fd=listener,
        use_libuv=False,  # in PyTorch 2.6 libuv cannot take over a socket that listens
    )


def close_world() -> None:
    """Leave the default process group, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def share_cores(threads: int, world: World) -> None:
    """Let this rank compute with `threads` threads, or with 0 its part of the cores it may use.

    Ranks with more threads than cores would wait for each other's. Warns once where other work
    keeps the machine so busy that fewer threads are faster.
    """
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads or default_threads(world, os.environ, cores=cores))
    load, all_cores = os.getloadavg()[0], os.cpu_count() or cores
    if world.is_first and torch.get_num_threads() > 1 and load > all_cores:
        logger.warning(
            "other work keeps this machine busy (load %.0f on %d cores), and threads wait for each "
            "other: --threads 1 or OMP_NUM_THREADS=1 can be several times faster",
            load,
            all_cores,
        )


def default_threads(world: World, environment: Mapping[str, str], *, cores: int) -> int:
    """Threads of a rank that may use `cores` cores, by OMP_NUM_THREADS, Slurm, or an equal part.

    SLURM_CPUS_PER_TASK is of one rank where srun started the ranks; elsewhere all ranks of this
    host are in one task and share it.
    """
    if (asked := _positive(environment.get("OMP_NUM_THREADS"))) is not None:
        return asked
    ranks_here = _positive(environment.get("LOCAL_WORLD_SIZE")) or 1
    per_task = _positive(environment.get("SLURM_CPUS_PER_TASK"))
    if per_task is None:
        return max(1, cores // ranks_here)
    by_srun = environment.get("SLURM_NTASKS") == str(world.world_size)
    by_srun &= environment.get("SLURM_PROCID") == str(world.rank)
    return max(1, min(cores, per_task) // (1 if by_srun else ranks_here))


def _positive(text: str | None) -> int | None:
    """The number of a variable such as OMP_NUM_THREADS=4,2; None where it is not positive."""
    first = (text or "").partition(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else None


def collective_device() -> torch.device:
    """The device on which the default process group exchanges tensors."""
    uses_gpu = dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if uses_gpu else torch.device("cpu")


def all_reduce_mean(values: torch.Tensor) -> torch.Tensor:
    """The mean of `values` over all ranks, on every rank."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def all_reduce_max(value: float) -> float:
    """The largest `value` of all ranks, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=collective_device())
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return float(tensor)


def gather_objects(value: Value) -> list[Value]:
    """The values of all ranks, in rank order, on every rank; they are pickled."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Value | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return [part for part in values if part is not None]


def from_first(value: Value) -> Value:
    """Rank 0's value, on every rank; it is pickled."""
    values = [value]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
