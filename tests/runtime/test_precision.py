"""`auto` computes in bfloat16 where the device has instructions for it, and nowhere else."""

import pytest
import torch

from supersam.runtime import device
from supersam.runtime.device import computes_bf16

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_precision_that_is_named_is_taken_as_it_is(device):
    assert computes_bf16("bf16", device)
    assert not computes_bf16("fp32", device)


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("", False),
        (None, False),
    ],
    ids=["AVX-512", "AMX", "Arm", "without", "empty", "no such file"],
)
def test_auto_follows_the_instructions_of_the_cpu(tmp_path, monkeypatch, cpuinfo, expected):
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    monkeypatch.setattr(device, "_CPUINFO", file)
    assert computes_bf16("auto", CPU) is expected


@pytest.mark.parametrize("expected", [True, False])
def test_auto_asks_the_gpu(monkeypatch, expected):
    def supported(*, including_emulation):
        return expected or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert computes_bf16("auto", GPU) is expected
