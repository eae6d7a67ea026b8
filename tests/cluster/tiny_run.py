"""A real training run in processes of its own, small and watched closely."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from supersam.health.records import RankHeartbeat, read_heartbeats
from tests.paths import ROOT
from tests.patience import PATIENCE_S

TINY: dict[str, Any] = {
    "model": {
        "name": "tiny",
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "global_layers": [1],
        "image_size": 64,
        "window_size": 2,
    },
    "space": {"removable": [0], "width_multiple": 16},
    "data": {
        "source": "synthetic",
        "synthetic_train": {"images": 16, "size_px": 64},
        "synthetic_val": {"images": 2, "size_px": 64, "seed": 1},
        "workers": 0,
        "block_records": 4,
    },
    "sandwich": {"random_subnets": 0, "largest_only_steps": 0},
    "optim": {"steps": 4, "warmup_steps": 1, "global_batch": 2},
    "engine": {"threads": 1, "log_every": 1, "device": "cpu"},
    "checkpoint": {"every_steps": 2, "validate_every_steps": 4, "overlay_images": 0},
    "watchdog": {"heartbeat_s": 0.5, "stall_s": 60, "stall_steps": 5},
}
ENDLESS = ("--optim.steps", "100000", "--checkpoint.every-steps", "100000",
           "--checkpoint.validate-every-steps", "100000")  # fmt: skip
"""Steps and nothing else: whatever happens to a rank happens while it trains."""


class Training:
    """`launch/train.py` on a folder."""

    def __init__(self, folder: Path, *flags: str, tasks: int = 1) -> None:
        self.folder = folder
        config = folder.parent / "tiny.yaml"
        config.write_text(yaml.safe_dump(TINY), encoding="utf-8")
        where = ["--run", str(folder), "--cluster", "local", "--tasks-per-node", str(tasks)]
        again = (folder / "run.yaml").exists()
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "launch" / "train.py", *([] if again else ["--config", config])]
            + [*where, *flags],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def beat(self, rank: int) -> RankHeartbeat:
        """The rank's last sign of life."""
        return next(beat for beat in read_heartbeats(self.folder) if beat.rank == rank)

    def wait_for_step(self, step: int) -> None:
        """Until every rank has taken `step` steps in this process."""

        def reached() -> bool:
            beats = read_heartbeats(self.folder)
            return bool(beats) and all(b.step >= step and b.phase == "training" for b in beats)

        self.wait_until(reached, f"step {step}")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Poll; fail the test with what the run printed."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                pytest.fail(f"{what} was never reached: {self.process.communicate()[1][-3000:]}")
            time.sleep(0.1)

    def end(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit code, once the run has ended."""
        self.process.communicate(timeout=timeout_s)
        return self.process.returncode


def status(*words: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run `launch/status.py`."""
    return subprocess.run(
        [sys.executable, ROOT / "launch" / "status.py", *words],
        env={**(env or os.environ), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def why(folder: Path, env: dict[str, str] | None = None) -> dict[str, str]:
    """What `--why --json` says."""
    done = status(folder, "--why", "--json", env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
