"""A process's place in the job, as a value: everything else takes it as an argument."""

from __future__ import annotations

import datetime
import os
import socket
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, TCPStore

from supersam.runtime.device import choose_device

TIMEOUT_MIN = 10
LOOPBACK = "127.0.0.1"
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
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=_meeting_place(world),
            rank=world.rank,
            world_size=world.world_size,
            timeout=datetime.timedelta(minutes=TIMEOUT_MIN),
        )
    return world


def _meeting_place(world: World) -> HashStore | TCPStore | None:
    """Where the ranks find each other; None leaves it to PyTorch, which reads MASTER_*.

    PyTorch's own listens on all of a machine's addresses; ranks of one machine need only loopback.
    """
    if world.world_size == 1:
        return HashStore()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if address != LOOPBACK:
        return None
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
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


def share_cores(threads: int) -> None:
    """Let this rank compute with `threads` threads; 0: with its share of the host's cores.

    Ranks with more threads than cores would wait for each other's.
    """
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads or max(1, cores // ranks_here))


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
