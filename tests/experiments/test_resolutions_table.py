"""The table of smaller inputs beside narrower and shallower subnets."""

import json
import sys

import pytest

from experiments import resolutions


def test_each_alternative_is_counted_and_timed(monkeypatch, capsys):
    words = ["--model", "vit_t", "--image-size", "192", "--resolutions", "128", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["resolutions", *words])
    assert resolutions.main() == 0
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads(lines[-1])["resolutions"]
    whole = rows["whole, 192 px"]
    assert whole["ratio"] == 1
    assert all(row["flops_g"] <= whole["flops_g"] and row["ms"] > 0 for row in rows.values())
    assert rows["smallest, 128 px"]["flops_g"] == min(row["flops_g"] for row in rows.values())
    assert rows["128 px"]["params_m"] == pytest.approx(whole["params_m"], abs=0.05)
    assert any(line.startswith("7 of 12 layers, 128 px") for line in lines)
