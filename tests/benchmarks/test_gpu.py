"""Benchmarks of a GPU run as far as they can without one: none may fail when one is at hand."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu
from tests.paths import ROOT
from tests.patience import PATIENCE_S


def benchmark(name, *words, env=None):
    """Run a benchmark as a user does."""
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *words],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip


@pytest.mark.slow
def test_every_part_runs_at_toy_size_without_a_failure(tmp_path):
    file = tmp_path / "gpu.json"
    done = benchmark("gpu", "--toy", "--json", file)
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())
    assert set(results) == {"ceilings", "encoder", "sandwich", "widths", "latency"}
    rows = {**results["encoder"]["vit_b"], **results["sandwich"]["vit_b"]}
    assert len(rows) == 13
    assert [row["failed"] for row in rows.values() if "failed" in row] == []
    assert all(row["images_per_s"] > 0 and row["share_of_ceiling"] > 0 for row in rows.values())


def test_the_model_is_whole_on_the_device():
    device, args = SimpleNamespace(device=torch.device("meta")), SimpleNamespace(toy=True)
    model = gpu.build("vit_b", device, args, attention="sdpa")
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_before_it_builds_a_model(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu", "--models", "vit_b"])
    monkeypatch.setattr(gpu, "build", None)
    with pytest.raises(SystemExit, match="no GPU is visible; --toy"):
        gpu.main()


@pytest.mark.slow
def test_the_attention_kernels_compile_for_an_h100_without_spilling():
    words = ("attention", "--compile-for", "90", "--shapes", "global_80", "window_80", "--gate")
    compiling = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = benchmark("kernels", *words, env=compiling)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" registers") == 10
