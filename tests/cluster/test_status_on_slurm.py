"""launch/status.py on a real cluster without accounting, with its controller up and down."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.handle import DevCluster, wait_for
from tests.cluster.tiny_run import status, why
from tests.paths import ROOT

pytestmark = pytest.mark.cluster
RANK = """\
import sys, time
from pathlib import Path
from supersam.health.heartbeat import Heartbeat
place = {"rank": 0, "world_size": 1, "nodes": 1}
with Heartbeat(Path(sys.argv[1]), **place, interval_s=0.5, steps=10**6) as heartbeat:
    heartbeat.begin(0)
    step = 0
    while True:  # until the test ends it
        time.sleep(0.2)
        step += 1
        heartbeat.end_step(step)
"""


@pytest.fixture(scope="module")
def small_cluster(start_cluster: Callable[..., DevCluster]) -> DevCluster:
    return start_cluster(hosts=1)


@pytest.fixture
def submit(small_cluster: DevCluster, tmp_path: Path) -> Callable[[str], Path]:
    """Submit a job that beats; returns its run folder."""
    (tmp_path / "rank.py").write_text(RANK, encoding="utf-8")

    def submit(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = "{optim: {steps: 1000000}, watchdog: {heartbeat_s: 0.5}}"
        (folder / "run.yaml").write_text(config, encoding="utf-8")
        script = tmp_path / f"{name}.sh"
        command = f"env PYTHONPATH={ROOT} {sys.executable} {tmp_path}/rank.py {folder}"
        script.write_text(f"#!/bin/bash\nexec {command}\n", encoding="utf-8")
        job_id = small_cluster.submit(script, "--exclusive", f"--output={folder}/slurm.log")
        job = {"job_id": job_id, "submitted": time.time()}
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        return folder

    return submit


def test_pending_running_a_silent_controller_and_cancel(
    small_cluster: DevCluster, submit: Callable[[str], Path]
) -> None:
    env = small_cluster.env
    first = submit("first")
    wait_for(lambda: (first / "status.json").exists(), 90, what="the first sign of life")
    submitted = time.time()
    second = submit("second")
    assert why(first, env)["text"].startswith("running: step ")
    said = why(second, env)
    assert said["kind"] == "pending"
    wait_for(lambda: "reason Resources" in why(second, env)["text"], 30, what="Slurm's reason")
    small_cluster.wait_for_saved_state(submitted)
    small_cluster.kill("ctl")
    try:
        blind = status("--root", first.parent, env=env)  # bounded in itself
        assert blind.returncode == 0
        assert [line.split()[:2] for line in blind.stdout.splitlines()[1:]] == [
            ["first", "running"],
            ["second", "new"],
        ]
        assert blind.stderr.startswith("note: Slurm does not answer (")
        assert len(blind.stderr.splitlines()) == 1
    finally:
        small_cluster.start("ctl")
    wait_for(lambda: why(second, env)["kind"] == "pending", 30, what="Slurm's answer")
    for folder in (second, first):
        ended = status(folder, "--cancel", env=env)
        assert "it will not be requeued" in ended.stdout
        assert (folder / "cancel").exists()
    wait_for(lambda: status(first, "--cancel", env=env).returncode == 2, 60, what="the job's end")
    assert subprocess.run(["squeue", "-h"], env=env, capture_output=True).stdout.strip() == b""
