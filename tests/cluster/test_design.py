"""A design on the real cluster: nodes share its measurements, and a killed one is no loss."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from supersam.model import load_sam
from supersam.runs.attempts import read_attempts
from tests.cluster.handle import DevCluster
from tests.conftest import TINY
from tests.paths import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

FLAGS = ("--calibration.images", "6", "--calibration.batch", "2", "--threads", "1")
FLAGS += ("--limits.width-multiple", "32", "--limits.max-miou-drop", "1.0", "--device", "cpu")


def design(folder: Path, shards: Path, out: str, *flags: str, env: dict[str, str]) -> dict:
    """The evidence of `launch/design.py`, which must succeed."""
    words = ["--data", shards, "--checkpoint", folder / "tiny.pth", "--out", folder / out, *FLAGS]
    done = subprocess.run(
        [sys.executable, ROOT / "launch" / "design.py", *words, *flags],
        env={**env, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    beside = folder / f"{Path(out).stem}-design"
    return json.loads((beside / "evidence.json").read_text())


def test_four_ranks_on_two_nodes_design_what_one_process_does(
    devcluster: DevCluster, tmp_path: Path, synthetic_shards: Path
):
    torch.save(load_sam(TINY, seed=3).state_dict(), tmp_path / "tiny.pth")
    env = devcluster.env
    alone = design(tmp_path, synthetic_shards, "one.yaml", "--cluster", "inline", env=env)
    slurm = ("--nodes", "2", "--tasks-per-node", "2", "--time", "30:00", "--wait")
    shared = design(tmp_path, synthetic_shards, "two.yaml", *slurm, env=env)
    for key in ("sensitivity", "scores_before_reordering", "design"):
        assert shared[key] == alone[key]
    end = read_attempts(tmp_path / "two-design")[-1]
    assert (end.reason, end.world_size, len(set(end.hosts))) == ("finished", 4, 2)
