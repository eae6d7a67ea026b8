"""Measure latency and peak memory of a subnet on this device, with one prompt per image."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from supersam.config.search import LatencyConfig
from supersam.data.sample import LABEL_FOREGROUND, LABEL_PAD
from supersam.evaluation import Predictor, SamModelPredictor, SubnetPredictor
from supersam.model import SamSupernet
from supersam.runtime.device import describe_device
from supersam.space import SubnetSpec, subnet_cost

_MIB = 2**20


@dataclass(frozen=True)
class Latency:
    """Time of one batch: all images encoded, one prompt decoded for each."""

    median_ms: float
    iqr_ms: float
    """Distance of the quartiles: the spread."""


def measure_latency(
    supernet: SamSupernet, spec: SubnetSpec, config: LatencyConfig, *, bf16: bool
) -> Latency:
    """Time a batch on the supernet's device, with this project's attention kernels.

    At a smaller resolution positions are interpolated each time, which an extracted model has done:
    2 of 63 ms for the smallest subnet of vit_s at 192 px, on one CPU thread.
    """
    return predictor_latency(
        SubnetPredictor(supernet, spec, bf16=bf16),
        config,
        side=supernet.space.input_px(spec),
        device=supernet.pixel_mean.device,
    )


def predictor_latency(
    predictor: Predictor, config: LatencyConfig, *, side: int, device: torch.device
) -> Latency:
    """Time a batch of images of `side` pixels on the predictor's device."""
    run = _forward(predictor, config.batch, side=side, device=device)
    wait = torch.cuda.synchronize if device.type == "cuda" else _nothing
    for _ in range(config.warmup):
        run()
    times = []
    for _ in range(config.repeats):
        wait()
        started = time.perf_counter()
        run()
        wait()
        times.append(1e3 * (time.perf_counter() - started))
    if len(times) < 2:
        return Latency(times[0], 0.0)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, high - low)


def measure_peak_memory(supernet: SamSupernet, spec: SubnetSpec, *, bf16: bool) -> float:
    """Measure the MiB of a forward pass of one image: fp32 weights of the subnet and activations.

    Activations are the bytes alive at the peak: on a GPU by the CUDA allocator, on a CPU by
    PyTorch's record of allocations, since the process keeps memory that is freed.
    """
    predictor, device = SubnetPredictor(supernet, spec, bf16=bf16), supernet.pixel_mean.device
    run = _forward(predictor, 1, side=supernet.space.input_px(spec), device=device)
    weights = 4 * subnet_cost(spec, supernet.space.shape).params
    peak = _cuda_peak if device.type == "cuda" else _cpu_peak
    return (weights + peak(run)) / _MIB


def _forward(
    predictor: Predictor, batch: int, *, side: int, device: torch.device
) -> Callable[[], object]:
    images = torch.zeros(batch, 3, side, side, dtype=torch.uint8, device=device)
    sizes = torch.full((batch, 2), side, device=device)
    points = torch.full((batch, 1, 2, 2), side / 2, device=device)
    labels: Tensor = torch.tensor([LABEL_FOREGROUND, LABEL_PAD], device=device)
    labels = labels.expand(batch, 1, 2)
    return lambda: predictor.predict(images, sizes, points, labels)


def _cuda_peak(run: Callable[[], object]) -> int:
    run()  # so that workspaces are there
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(run: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return int(peak)


def _nothing() -> None:
    """Do nothing: on a CPU the work is done when the call returns."""


def describe_latency(sam: Sam) -> dict[str, Any]:
    """Latency of an exported model as its card has it: one image and prompt, and on what device."""
    config = LatencyConfig()
    latency = predictor_latency(
        SamModelPredictor(sam), config, side=sam.image_encoder.img_size, device=sam.device
    )
    return {
        "median_ms": latency.median_ms,
        "iqr_ms": latency.iqr_ms,
        "warmup": config.warmup,
        "repeats": config.repeats,
        "precision": "fp32",
        "device": describe_device(sam.device),
    }
