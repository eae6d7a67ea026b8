"""The device that a benchmark runs on: its clock, its memory, and what it can do at most."""

import statistics
import time

import torch


class Device:
    """The device that is measured, and its clock."""

    def __init__(self, toy):
        self.is_gpu = torch.cuda.is_available()
        if not self.is_gpu and not toy:
            raise SystemExit("no GPU is visible; --toy runs every part at toy size on the CPU")
        self.device = torch.device("cuda" if self.is_gpu else "cpu")

    def median_ms(self, call, rounds):
        """Median of `rounds` calls after two unmeasured ones."""
        for _ in range(2):
            call()
        return statistics.median(self._ms(call) for _ in range(rounds))

    def _ms(self, call):
        if not self.is_gpu:
            started = time.perf_counter()
            call()
            return (time.perf_counter() - started) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def fresh(self):
        """Forget what was allocated, and its peak."""
        if self.is_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self):
        return torch.cuda.max_memory_allocated() / 2**30 if self.is_gpu else None


def ceilings(device, args):
    """TFLOP/s of a large matmul and TB/s of a large copy (read and written bytes)."""
    n, bytes_ = (256, 2**20) if args.toy else (8192, 2**32)
    a, b = (torch.randn(n, n, device=device.device, dtype=torch.bfloat16) for _ in range(2))
    matmul_ms = device.median_ms(lambda: a @ b, args.rounds)
    source = torch.empty(bytes_, dtype=torch.uint8, device=device.device)
    target = torch.empty_like(source)
    copy_ms = device.median_ms(lambda: target.copy_(source), args.rounds)
    found = {"tflops": 2 * n**3 / matmul_ms / 1e9, "tb_per_s": 2 * bytes_ / copy_ms / 1e9}
    print(f"ceilings: {found['tflops']:.1f} TFLOP/s bf16, {found['tb_per_s']:.2f} TB/s")
    return found
