"""Benchmarks of a GPU run as far as they can without one: none may fail when one is at hand."""

import importlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.paths import ROOT


@pytest.mark.slow
def test_every_part_runs_at_toy_size_without_a_failure(tmp_path):
    file = tmp_path / "gpu.json"
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--toy", "--json", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())
    assert set(results) == {"ceilings", "encoder", "sandwich", "widths", "latency"}
    rows = {**results["encoder"]["vit_b"], **results["sandwich"]["vit_b"]}
    assert len(rows) == 13
    assert [row["failed"] for row in rows.values() if "failed" in row] == []
    assert all(row["images_per_s"] > 0 and row["share_of_ceiling"] > 0 for row in rows.values())


def test_the_model_is_whole_on_the_device(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu = importlib.import_module("gpu")
    device, args = SimpleNamespace(device=torch.device("meta")), SimpleNamespace(toy=True)
    model = gpu.build("vit_b", device, args, attention="sdpa")
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--models", "vit_b"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 1
    assert "no GPU is visible; --toy" in done.stderr


@pytest.mark.slow
def test_the_attention_kernels_compile_for_an_h100_without_spilling():
    command = [sys.executable, ROOT / "benchmarks/attention_tiles.py", "--compile-for", "90"]
    command += ["--shapes", "global_80", "window_80", "--gate"]
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        command, env=plain, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" registers") == 10
