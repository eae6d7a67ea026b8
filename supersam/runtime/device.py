"""What computes: the CPU or a GPU, its name, and the arithmetic that it is made for."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import torch

from supersam.config import UserError

_CPUINFO = Path("/proc/cpuinfo")
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86, x86 and Arm


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means for this rank.

    Raises UserError where it is a GPU and none is here.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, and PyTorch sees no GPU here; take auto or cpu")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    # One visible GPU each is the usual cluster set-up; several visible ones are taken in turn.
    return torch.device("cuda", local_rank % max(1, torch.cuda.device_count()))


def describe_device(device: torch.device) -> str:
    """Name of the processor that computes, with the number of threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    name = _cpu_value("model name") or platform.processor() or platform.machine()
    return f"{name}, {threads} thread" + ("s" if threads > 1 else "")


def computes_bf16(precision: str, device: torch.device) -> bool:
    """Whether `auto`, `bf16` or `fp32` means bfloat16 on `device`."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not _BF16_FLAGS.isdisjoint(_cpu_value("flags", "Features").split())


def peak_memory_gib() -> float:
    """Peak memory: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _cpu_value(*names: str) -> str:
    """What Linux says of this host's first core under one of the names; empty elsewhere."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:  # platform.processor() knows other systems; on Linux it is empty
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")
